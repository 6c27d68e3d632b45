/* ---- Trials: which recipe a rectangle gets ----
   The paper gives each query the keys of its block and a sample of the others. Which blocks help, and
   whether any do, depends on the head, so the judges, held-out queries, try for each rectangle and head
   in turn:

     1. columns alone: the wide draw, in which sampled keys take the places of block keys;
     2. blocks and columns, in the first pairing (in order of position, under HYPERATTN_ORDER_PROBED);
     3. blocks and columns in the second pairing, if there are two (sorted by hash).

   With tolerance 0 the number of keys is fixed, and the best of these is taken; trials end early when an
   error is so small that others would hardly improve on it (HAI_GOOD for columns alone, HAI_FAIR for
   blocks). With a tolerance the first that meets it is taken, and where every trial misses it the rectangle
   is scanned (scan.h), or in a build without the scan its queries meet all of its keys. Each trial is one
   run of stage TRY, preceded by what its pairing needs. */

/* Stage DRAFT: pairs those groups among this task's HAI_TASK_GROUPS that hold held-out queries, since a
   trial needs no others. Reads and writes what PAIR does. Cost: O(queries of the groups), and PAIR's for
   those paired. */
HAI_APART void hai_stage_draft(hai_job *job) {
  const int32_t *order = hai_query_order(job);
  hai_index n = job->rect.n_query, groups = hai_query_parts(job->plan, n, job->rect.n_key),
            first = job->chunk * HAI_TASK_GROUPS, at, end;
  uint32_t *sieve = HAI_PLACE(uint32_t, job->scratch); /* read before pairing overwrites it */
  uint64_t wanted = 0;
  int i;
  if (!hai_is_needed(job)) return;
  hai_held_out_sieve(job, sieve);
  for (i = 0; i < HAI_TASK_GROUPS && first + i < groups; i++)
    for (at = hai_cut(n, groups, first + i), end = hai_cut(n, groups, first + i + 1); at < end; at++)
      if (hai_held_out_at(job, sieve, hai_at(order, job->rect.query_begin, at)) >= 0)
        wanted |= UINT64_C(1) << i;
  hai_pair_groups(job, wanted);
}

/* Sets the sub-block of the column whose key is `key`, if there is one; columns ascend by key. */
static void hai_place_column(const hai_job *job, hai_index key, int32_t block) {
  hai_column *column = hai_columns(job, 0);
  int32_t low = 0, n = hai_counts(job)[1], high = n;
  while (low < high) {
    int32_t middle = low + (high - low) / 2;
    if (column[middle].key < key)
      low = middle + 1;
    else
      high = middle;
  }
  if (low < n && column[low].key == key) column[low].block = block;
}

/* Sets the sub-blocks that hold the columns in job->pairing. Columns were drawn in the first pairing's
   order; two pairings exist only where that is by position, so columns ascend. Those of the wide draw are met
   without blocks. Cost: O(n_key), and a binary search for about one key in ten. */
static void hai_place_columns(const hai_job *job, uint32_t *sieve) {
  const int32_t *order = hai_key_order(job);
  hai_index n_key = job->rect.n_key, n_blocks = hai_key_parts(job->plan, n_key), place;
  int i;
  hai_sieve_clear(sieve);
  for (i = 0; i < hai_counts(job)[1]; i++) hai_sieve_add(sieve, hai_columns(job, 0)[i].key);
  for (place = 0; place < n_key; place++) {
    hai_index key = hai_at(order, job->rect.key_begin, place);
    if (hai_sieve_holds(sieve, key))
      hai_place_column(job, key, hai_to_int(hai_part_of(n_key, n_blocks, place)));
  }
}

/* Sums over held-out queries: |out' - out|^2 and |out|^2. */
typedef struct hai_trial {
  float squared_error, squared_norm;
} hai_trial;

/* Adds what the tile that begins with held-out query `first` finds, after it has met the columns of the
   recipe. Its queries are judged by the rectangle's keys and their sinks alone: no choice depends on states,
   which may hold later keys than some of them see. */
HAI_APART void hai_try_tile(hai_job *job, hai_recipe recipe, int first, hai_trial *trial) {
  hai_comparison c;
  int i;
  hai_attend_columns(job, recipe == HAI_COLUMNS);
  hai_tile_settle(job->tile);
  for (i = 0; i < job->tile->n; i++) {
    hai_compare(job, i, hai_truth_of(job, 0, first), HAI_NULL, hai_lane_sink(job, i), &c);
    if (c.lse_whole != c.lse_whole) continue;
    trial->squared_error += c.squared_error;
    trial->squared_norm += c.squared_norm;
  }
}

/* The verdict takes a recipe whose error is smaller than that of the one it has, and is settled where
   that error is small enough. */
static void hai_take_if_better(const hai_job *job, hai_recipe recipe, float error) {
  hai_verdict *verdict = hai_verdict_of(job);
  float enough = job->plan->params->tolerance;
  if (enough == 0.0f) enough = recipe == HAI_COLUMNS ? HAI_GOOD : HAI_FAIR;
  if (verdict->settled || !(error < verdict->error)) return;
  verdict->recipe = HAI_AS(int32_t, recipe);
  verdict->pairing = job->pairing;
  verdict->error = error;
  verdict->settled = error <= enough;
}

/* Stage TRY: tries job->pairing's blocks (none: columns alone) on the held-out queries, unless the
   verdict is settled. Reads truth, choice, pins and columns; writes verdict, and which sub-blocks hold the
   columns. Cost: O(held-out queries * budget), and with a sorted order O(n_query + n_key log budget). */
HAI_APART void hai_stage_try(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_verdict *verdict = hai_verdict_of(job);
  hai_judging_scratch scratch = hai_judging_scratch_of(job);
  hai_recipe recipe = job->pairing == HAI_NO_BLOCKS ? HAI_COLUMNS : HAI_BLOCKS;
  hai_trial trial = {0.0f, 0.0f};
  int is_first = job->pairing == (hai_trying_columns(plan) ? HAI_NO_BLOCKS : 0), first;
  if (is_first) hai_gather_truth(job);
  if (verdict->settled) return;
  if (recipe == HAI_BLOCKS) verdict->tried = job->pairing + 1;
  if (job->pairing == 1) hai_place_columns(job, scratch.sieve);
  hai_held_out_places(job, scratch.place, scratch.sieve);
  for (first = 0; hai_judge_open(job, &scratch, first); first += job->tile->n)
    hai_try_tile(job, recipe, first, &trial);
  hai_take_if_better(job, recipe, hai_relative(trial.squared_error, trial.squared_norm));
  if (plan->params->tolerance > 0.0f && job->pairing == plan->n_pairings - 1 && !verdict->settled)
    verdict->recipe = HAI_EACH;
  if (job->pairing == 1 && verdict->pairing == 0) { /* the first pairing stays: so do its sub-blocks */
    job->pairing = 0;
    hai_place_columns(job, scratch.sieve);
  }
}
