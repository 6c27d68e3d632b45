/* ---- Tallying: the report of a scan ----
   Every query has estimated its own error, and every task has counted: the report adds up. */

#if HAI_SCAN
/* The number of which `rank` of x [n] are smaller, by bisection of its bits, which order as numbers of one
   sign do. Cost: 31 n. */
static float hai_ranked(const float *x, hai_index n, hai_index rank) {
  uint32_t low = 0, bit;
  for (bit = 1u << 30; bit; bit >>= 1) {
    hai_index below = 0, i;
    for (i = 0; i < n; i++) below += hai_bits(x[i]) < (low | bit);
    if (below <= rank) low |= bit;
  }
  return hai_float(low);
}

/* A quantile of n numbers: `of_1000` thousandths of them are smaller. */
static float hai_quantile(const float *x, hai_index n, hai_index of_1000) {
  return n ? hai_ranked(x, n, hai_min(n - 1, hai_cut(n, 1000, of_1000))) : 0.0f;
}

/* Adds what the head's tasks have counted. */
static void hai_tally_tasks(const hai_job *job, hyperattn_report *r) {
  const hai_tally *tally = hai_tallies(job);
  float rows = HAI_AS(float, job->plan->n_query);
  hai_index task, index, first, last, missed = hai_missed_rows(job);
  for (task = 0; task < hai_scan_tasks(job->plan); task++) {
    r->doubled += HAI_AS(float, tally[task].doubled) / rows;
    r->exact += HAI_AS(float, tally[task].exact) / rows;
    r->keys_per_query += tally[task].met / rows;
    r->pinned_mass += tally[task].pinned / rows;
    r->sampled_mass += tally[task].sampled / rows;
  }
  for (index = 0; index < missed; index++) {
    hai_seen_keys(job->plan, hai_missed_row(job, index), &first, &last);
    r->keys_per_query += HAI_AS(float, last + 1 - first) / rows;
  }
  r->exact += HAI_AS(float, missed) / rows;
  r->escalated = r->doubled;
}

/* Stage TALLY: one head's report. Reads the tallies, the errors and the result; writes problem.report. Cost:
   O(n_query * value_dim). */
HAI_APART void hai_stage_tally(hai_job *job) {
  const hai_plan *plan = job->plan;
  const float *errors = hai_errors(job);
  hyperattn_report r;
  hai_index row;
  float squared_error = 0.0f, squared_norm = 0.0f;
  HYPERATTN_MEMSET(&r, 0, sizeof r);
  hai_tally_tasks(job, &r);
  for (row = 0; row < plan->n_query; row++) {
    float norm = hai_squared_out(job, row, row + 1);
    r.max_error = errors[row] > r.max_error ? errors[row] : r.max_error;
    squared_norm += norm;
    squared_error += errors[row] == 0.0f ? 0.0f : errors[row] * errors[row] * norm;
  }
  r.error = hai_relative(squared_error, squared_norm);
  r.error_median = hai_quantile(errors, plan->n_query, 500);
  r.error_99 = hai_quantile(errors, plan->n_query, 990);
  r.error_999 = hai_quantile(errors, plan->n_query, 999);
  r.window_mass = 1.0f - r.pinned_mass - r.sampled_mass;
  if (r.window_mass < 0.0f) r.window_mass = 0.0f; /* rounding */
  plan->problem->report[hai_flat_head(job)] = r;
}
#endif
