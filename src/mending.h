/* ---- Mending: the queries whose sample missed the tolerance ----
   Each task of the scan leaves a list of such rows. Those of a rectangle and head are gathered into full
   tiles, which meet every key of it: a row alone would cost as much as a tile. */

#if HAI_SCAN
/* How many rows of the job's rectangle and head missed the tolerance. */
static hai_index hai_missed_rows(const hai_job *job) {
  hai_index n = 0, task;
  for (task = 0; task < hai_scan_tasks(job->rect.n_query); task++) n += hai_tallies(job)[task].missed;
  return n;
}

/* The index-th of them. Rows ascend. */
static hai_index hai_missed_row(const hai_job *job, hai_index index) {
  const hai_tally *tally = hai_tallies(job);
  hai_index task = 0;
  while (index >= tally[task].missed) index -= tally[task++].missed;
  return hai_missed(job)[task * HAI_SCAN_ROWS + index];
}

/* Opens the tile for n missed rows. */
static void hai_mend_open(hai_job *job, hai_index index, int n) {
  float *errors = hai_errors(job);
  hai_index row;
  int i;
  for (i = 0; i < n; i++) {
    row = hai_missed_row(job, index + i);
    hai_rect_query(job, i, row);
    if (errors) errors[row] = 0.0f;
  }
  hai_scan_begin(job, n);
}

/* Rows of a task: missed rows over the rectangle's tasks, rounded up to whole tiles. So a few rows keep as
   many workers busy as they can. */
static hai_index hai_mend_rows(const hai_job *job, hai_index missed) {
  hai_index lanes = job->plan->float_kernel->lanes;
  hai_index each = hai_ceil_div(missed, hai_ceil_div(job->rect.n_query, HAI_TASK_QUERIES));
  return hai_ceil_div(each, lanes) * lanes;
}

/* Stage MEND: some missed rows of a rectangle and head meet every key of it. */
HAI_APART void hai_stage_mend(hai_job *job) {
  hai_index missed, rows, index;
  if (!hai_is_scanned(job)) return;
  missed = hai_missed_rows(job);
  rows = hai_mend_rows(job, missed);
  index = job->chunk * rows;
  hai_attend_rows(job, hai_mend_open, hai_rect_meet, index, hai_min(index + rows, missed));
}
#endif
