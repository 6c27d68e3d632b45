/* ---- Mending: the queries whose sample missed the tolerance ----
   Each task of the scan leaves a list of such rows. A head's are gathered into full tiles, which meet every
   key: a row alone would cost as much as a tile. */

#if HAI_SCAN
static const hai_tally *hai_tallies(const hai_job *job) {
  return HAI_PLACE(const hai_tally, hai_array_of(job, HAI_ARRAY_TALLY));
}

/* How many rows of the job's head missed the tolerance. */
static hai_index hai_missed_rows(const hai_job *job) {
  hai_index n = 0, task;
  for (task = 0; task < hai_scan_tasks(job->plan); task++) n += hai_tallies(job)[task].missed;
  return n;
}

/* The index-th of them. Rows ascend. */
static hai_index hai_missed_row(const hai_job *job, hai_index index) {
  const hai_tally *tally = hai_tallies(job);
  hai_index task = 0;
  while (index >= tally[task].missed) index -= tally[task++].missed;
  return hai_ints(job, HAI_ARRAY_MISSED)[task * HAI_SCAN_ROWS + index];
}

/* Opens the tile for n missed rows. */
static void hai_mend_open(hai_job *job, hai_index index, int n) {
  float *errors = hai_errors(job);
  hai_index row;
  int i;
  for (i = 0; i < n; i++) {
    row = hai_missed_row(job, index + i);
    hai_scan_lane(job, i, row);
    if (errors) errors[row] = 0.0f;
  }
  hai_scan_begin(job, n);
}

/* Stage MEND: HAI_TASK_QUERIES missed rows of a head meet every key, or those that there are. */
HAI_APART void hai_stage_mend(hai_job *job) {
  hai_index index = job->chunk * HAI_TASK_QUERIES;
  hai_attend_rows(job, hai_mend_open, hai_exact_meet, index,
                  hai_min(index + HAI_TASK_QUERIES, hai_missed_rows(job)));
}
#endif
