/* Opens the tile for queries at .. at + n - 1 of the rectangle, in the pairing's order; they meet their
   blocks. */
static void hai_sorted_open(hai_job *job, hai_index at, int n) {
  const hai_plan *plan = job->plan;
  int i;
  job->tile->n_groups = 0;
  for (i = 0; i < n; i++) hai_tile_sorted(job, i, at + i);
  hai_tile_open(job, n, plan->value_dim);
  if (!hai_capping(plan))
    hai_tile_go_on(job); /* the capped sums are those of keys: a sink joins them last */
  hai_attend_blocks(job);
}

/* Some tiles meet the first n_pins pins (0 where they have met them) and the columns of the recipe. */
static void hai_tiles_sample(hai_job *job, hai_tile *const *tiles, int n, int n_pins) {
  int wide = hai_recipe_of(job) == HAI_COLUMNS, capping = hai_capping(job->plan), i;
  hai_tiles_list(job, tiles, n, n_pins, capping ? -1 : wide);
  for (i = 0; i < n && capping; i++) {
    job->tile = tiles[i];
    hai_attend_columns_capped(job);
  }
}
static void hai_sample_meet(hai_job *job, hai_tile *const *tiles, int n) {
  hai_tiles_sample(job, tiles, n, hai_counts(job)[0]);
}

/* Stage ATTEND: HAI_TASK_QUERIES queries of a rectangle and head meet what was chosen for them, or every key.
   Those of a rectangle that is scanned are left to the scan. */
HAI_APART void hai_stage_attend(hai_job *job) {
  hai_index at = job->chunk * HAI_TASK_QUERIES, end = hai_min(at + HAI_TASK_QUERIES, job->rect.n_query);
  int is_each = hai_recipe_of(job) == HAI_EACH;
  if (hai_is_scanned(job)) return;
  hai_adopt_pairing(job);
  if (is_each) job->pairing = HAI_NO_BLOCKS; /* rows in their own order */
  hai_attend_rows(job, hai_sorted_open, is_each ? hai_rect_meet : hai_sample_meet, at, end);
}
