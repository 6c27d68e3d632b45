/* ---- Trials: which recipe a rectangle gets ----
   The paper gives each query the keys of its block and a sample of the others. Which blocks help, and
   whether any do, depends on the head, so the judges, held-out queries, try for each rectangle and head
   in turn:

     1. columns alone: the wide draw, in which sampled keys take the places of block keys;
     2. blocks and columns, in the first pairing (in order of position, under HYPERATTN_ORDER_PROBED);
     3. blocks and columns in the second pairing, if there are two (sorted by hash).

   With tolerance 0 the number of keys is fixed, and the best of these is taken; trials end early when an
   error is so small that others would hardly improve on it (HAI_GOOD for columns alone, HAI_FAIR for
   blocks). With a tolerance the first that meets it is taken; each pairing is then also tried with the
   wide draw beside its blocks, and where every trial misses the tolerance the rectangle's queries meet all
   of its keys. Each trial is one run of stage TRY, preceded by what its pairing needs. */

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

/* Sets the sub-block of a draw's column whose key is `key`, if there is one; columns ascend by key. */
static void hai_place_column(const hai_job *job, int wide, hai_index key, int32_t block) {
  hai_column *column = hai_columns(job, wide);
  int32_t low = 0, high = hai_counts(job)[1 + wide];
  while (low < high) {
    int32_t middle = low + (high - low) / 2;
    if (column[middle].key < key)
      low = middle + 1;
    else
      high = middle;
  }
  if (low < hai_counts(job)[1 + wide] && column[low].key == key) column[low].block = block;
}

/* Sets the sub-blocks that hold the columns in job->pairing. Columns were drawn in the first pairing's
   order; two pairings exist only where that is by position, so columns ascend. Cost: O(n_key), and a
   binary search for about one key in ten. */
static void hai_place_columns(const hai_job *job, uint32_t *sieve) {
  const int32_t *order = hai_key_order(job);
  hai_index n_key = job->rect.n_key, n_blocks = hai_key_parts(job->plan, n_key), place;
  int wide, i;
  hai_sieve_clear(sieve);
  for (wide = 0; wide < 2; wide++)
    for (i = 0; i < hai_counts(job)[1 + wide]; i++) hai_sieve_add(sieve, hai_columns(job, wide)[i].key);
  for (place = 0; place < n_key; place++) {
    hai_index key = hai_at(order, job->rect.key_begin, place);
    for (wide = 0; wide < 2 && hai_sieve_holds(sieve, key); wide++)
      hai_place_column(job, wide, key, hai_to_int(hai_part_of(n_key, n_blocks, place)));
  }
}

/* What one run of TRY tries, and what it finds. */
typedef struct hai_trials {
  int n;                  /* one recipe, or two */
  hai_recipe recipe[2];   /* tried on the same blocks and pins */
  int with_earlier;       /* compare with what queries have met before the rectangle */
  float squared_error[2]; /* sums over held-out queries: |out' - out|^2 of each recipe, */
  float squared_norm;     /* and |out|^2 */
} hai_trials;

static hai_trials hai_trials_of(const hai_job *job) {
  int has_tolerance = job->plan->params->tolerance > 0.0f, has_blocks = job->pairing != HAI_NO_BLOCKS;
  hai_trials trials;
  trials.n = has_blocks && has_tolerance && hai_trying_columns(job->plan) ? 2 : 1;
  trials.recipe[0] = has_blocks ? HAI_BLOCKS : HAI_COLUMNS;
  trials.recipe[1] = HAI_BOTH;
  /* with tolerance 0 no choice may depend on states, which hold later keys than some of the queries see */
  trials.with_earlier = has_tolerance;
  trials.squared_error[0] = trials.squared_error[1] = trials.squared_norm = 0.0f;
  return trials;
}

/* Adds what the lanes of the tile find, after they have met the columns of a recipe. */
HAI_APART void hai_try_compare(const hai_job *job, const float *truth, int trial, hai_trials *trials) {
  hai_comparison c;
  int i;
  for (i = 0; i < job->tile->n; i++) {
    hai_compare(job, i, truth, trials->with_earlier, &c);
    if (c.lse_whole != c.lse_whole) continue;
    trials->squared_error[trial] += c.squared_error;
    trials->squared_norm += trial ? 0.0f : c.squared_norm;
  }
}

/* Tries each recipe's columns on the tile that begins with held-out query `first`. */
HAI_APART void hai_try_tile(hai_job *job, float *state, int first, hai_trials *trials) {
  int trial;
  hai_tile_save(job->tile, state);
  for (trial = 0; trial < trials->n; trial++) {
    if (trial) hai_tile_load(job->tile, state);
    hai_attend_columns(job, trials->recipe[trial] != HAI_BLOCKS);
    hai_tile_settle(job->tile);
    hai_try_compare(job, hai_truth_of(job, 0, first), trial, trials);
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
   verdict is settled. Reads truth, choice, pins, columns, lse and out; writes verdict, and which
   sub-blocks hold the columns. Cost: O(held-out queries * budget), and with a sorted order O(n_query +
   n_key log budget). */
HAI_APART void hai_stage_try(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_verdict *verdict = hai_verdict_of(job);
  hai_judging_scratch scratch = hai_judging_scratch_of(job);
  hai_trials trials = hai_trials_of(job);
  int is_first = job->pairing == (hai_trying_columns(plan) ? HAI_NO_BLOCKS : 0), first, i;
  if (is_first) hai_gather_truth(job);
  if (verdict->settled) return;
  if (job->pairing != HAI_NO_BLOCKS) verdict->tried = job->pairing + 1;
  if (job->pairing == 1) hai_place_columns(job, scratch.sieve);
  hai_held_out_places(job, scratch.place, scratch.sieve);
  for (first = 0; hai_judge_open(job, &scratch, first); first += job->tile->n)
    hai_try_tile(job, scratch.state, first, &trials);
  for (i = 0; i < trials.n; i++)
    hai_take_if_better(job, trials.recipe[i], hai_relative(trials.squared_error[i], trials.squared_norm));
  if (plan->params->tolerance > 0.0f && job->pairing == plan->n_pairings - 1 && !verdict->settled)
    verdict->recipe = HAI_ALL;
  if (job->pairing == 1 && verdict->pairing == 0) { /* the first pairing stays: so do its sub-blocks */
    job->pairing = 0;
    hai_place_columns(job, scratch.sieve);
  }
}
