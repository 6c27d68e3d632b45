/* ---- Trials: held-out queries try recipes ----
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
   trial needs no others. Reads trials, and reads and writes what PAIR does. Cost: O(held-out queries), and
   PAIR's for the groups paired. */
HAI_APART void hai_stage_draft(hai_job *job) {
  hai_index n = job->rect.n_query, groups = hai_query_parts(job->plan, n, job->rect.n_key);
  uint64_t wanted = 0;
  int i;
  if (!hai_is_needed(job)) return;
  for (i = 0; i < hai_n_held_out(job); i++) {
    hai_index id = hai_part_of(n, groups, hai_held_out_place(job, i)) - job->chunk * HAI_TASK_GROUPS;
    if (id >= 0 && id < HAI_TASK_GROUPS) wanted |= UINT64_C(1) << id;
  }
  hai_pair_groups(job, wanted);
}

/* Adds what the tile that begins with held-out query `first` finds, after it has met the columns of the
   recipe. Its queries are judged by the rectangle's keys and their sinks alone: no choice depends on states,
   which may hold later keys than some of them see. */
HAI_APART void hai_try_tile(hai_job *job, hai_recipe recipe, int first, hai_finding *found) {
  hai_comparison c;
  int i;
  hai_attend_columns(job, recipe == HAI_COLUMNS);
  hai_tile_settle(job->tile);
  for (i = 0; i < job->tile->n; i++) {
    hai_compare(job, i, hai_truth_of(job, 0, first + i), HAI_NULL, hai_lane_sink(job, i), &c);
    if (c.lse_whole != c.lse_whole) continue;
    found->squared_error += c.squared_error;
    found->squared_norm += c.squared_norm;
  }
}

/* Stage TRY: some held-out queries try job->pairing's blocks (HAI_NO_BLOCKS: columns alone),
   unless the verdict is settled. Reads truth, choice, pins, columns and trials; writes what they found to
   trials, and in the first trial their merged truth to the first chunk's. Cost: O(queries * budget). */
HAI_APART void hai_stage_try(hai_job *job) {
  hai_recipe recipe = job->pairing == HAI_NO_BLOCKS ? HAI_COLUMNS : HAI_BLOCKS;
  int number = hai_trial_number(job->pairing), n = hai_trial_queries(number),
      first = hai_to_int(job->chunk) * n, end = hai_to_int(hai_min(first + n, hai_n_held_out(job)));
  hai_judging_scratch scratch = hai_judging_scratch_of(job);
  hai_finding found = {0.0f, 0.0f};
  if (number == (hai_trying_columns(job->plan) ? 0 : 1)) hai_gather_truth(job, first, end);
  if (hai_verdict_after(job, number).settled) return;
  for (; hai_judge_open(job, &scratch, first, end); first += job->tile->n)
    hai_try_tile(job, recipe, first, &found);
  hai_trials_of(job)->found[number][job->chunk] = found;
}
