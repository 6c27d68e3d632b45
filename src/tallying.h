/* ---- Tallying: the report of a scan ----
   Every query has estimated its own error, and every task has counted: the report adds up. Of a rectangle
   under HYPERATTN_HYPER the auditors' errors go into its record. */

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

/* Closes a head's report, of which shares, keys and what was doubled are set: the errors [n_query] of its
   queries, and what is left of the attention. Cost: O(n_query * value_dim). */
static void hai_report_close(const hai_job *job, const float *errors, hyperattn_report *r) {
  hai_index n = job->plan->n_query, row;
  float squared_error = 0.0f, squared_norm = 0.0f;
  for (row = 0; row < n; row++) {
    float norm = hai_squared_out(job, row, row + 1);
    r->max_error = errors[row] > r->max_error ? errors[row] : r->max_error;
    squared_norm += norm;
    squared_error += errors[row] == 0.0f ? 0.0f : errors[row] * errors[row] * norm;
  }
  r->error = hai_relative(squared_error, squared_norm);
  r->error_median = hai_quantile(errors, n, 500);
  r->error_99 = hai_quantile(errors, n, 990);
  r->error_999 = hai_quantile(errors, n, 999);
  r->escalated = r->doubled;
  r->window_mass = 1.0f - r->pinned_mass - r->sampled_mass;
  if (r->window_mass < 0.0f) r->window_mass = 0.0f; /* rounding */
  job->plan->problem->report[hai_flat_head(job)] = *r;
}

/* Sets what the tasks of the job's rectangle have counted: shares of its queries and of their attention, keys
   that they meet, queries that met every key. Everything else in r is 0. */
static void hai_tally_tasks(const hai_job *job, hyperattn_report *r) {
  const hai_tally *tally = hai_tallies(job);
  hai_index task, index, first, last, missed = hai_missed_rows(job), exact = missed, mended = 0;
  float rows = HAI_AS(float, job->rect.n_query);
  HYPERATTN_MEMSET(r, 0, sizeof *r);
  for (task = 0; task < hai_scan_tasks(job->rect.n_query); task++) {
    exact += tally[task].exact;
    r->doubled += HAI_AS(float, tally[task].doubled) / rows;
    r->keys_per_query += tally[task].met / rows;
    r->pinned_mass += tally[task].pinned / rows;
    r->sampled_mass += tally[task].sampled / rows;
  }
  for (index = 0; index < missed; index++) {
    hai_rect_keys(job->plan, hai_missed_row(job, index), &first, &last);
    mended += hai_rect_seen(job, last);
  }
  r->keys_per_query += HAI_AS(float, mended) / rows;
  r->exact = HAI_AS(float, exact) / rows;
}

/* The record's auditor i: what it estimates of itself, after its rectangle, of which `of` tells how much
   attention pins and sample have on average. */
static void hai_note_query(const hai_job *job, const hyperattn_report *of, int i) {
  hai_record *record = hai_record_of(job);
  hai_index row = hai_held_out_row(job, i);
  float lse = hai_stored_lse(job)[hai_flat_head(job) * job->plan->n_query + row];
  float error = hai_errors(job)[row], norm = hai_squared_out(job, row, row + 1);
  float share = of->pinned_mass + of->sampled_mass;
  record->query[i].row = hai_finite(lse) ? hai_to_int(row) : -1;
  record->query[i].error = error * error * norm;
  record->query[i].norm = norm;
  record->query[i].whole = lse;
  record->query[i].rect = share > 0.0f ? lse + hai_log(share) : -hai_inf();
  record->query[i].blocks = 0.0f;
  record->query[i].pinned = share > 0.0f ? of->pinned_mass / share : 0.0f;
}

/* Stage NOTE: the record of a rectangle and head that was scanned. Reads the tallies, the errors, lse and the
   result. Cost: O(auditors * value_dim). */
HAI_APART void hai_stage_note(hai_job *job) {
  hai_record *record = hai_record_of(job);
  hyperattn_report r;
  int i;
  if (!hai_is_scanned(job)) return;
  hai_tally_tasks(job, &r);
  record->keys = r.keys_per_query;
  record->exact = r.exact;
  for (i = 0; i < record->n; i++) hai_note_query(job, &r, i);
}

/* Stage TALLY: one head's report. Reads the tallies, the errors and the result; writes problem.report. */
HAI_APART void hai_stage_tally(hai_job *job) {
  hyperattn_report r;
  hai_tally_tasks(job, &r);
  hai_report_close(job, hai_errors(job), &r);
}
#endif

/* ---- Of lookups ---- */

#if HAI_INDEX
/* Stage RECOUNT: one head's report, from how each of its queries fared. */
HAI_APART void hai_stage_recount(hai_job *job) {
  const hai_plan *plan = job->plan;
  hyperattn_report r;
  float rows = HAI_AS(float, plan->n_query), error[HAI_LOOK_QUERIES] = {0};
  hai_index row, first, last;
  HYPERATTN_MEMSET(&r, 0, sizeof r);
  for (row = 0; row < plan->n_query; row++) {
    const hai_met *met = hai_met_of(job, job->head, row);
    hai_seen_keys(plan, row, &first, &last);
    r.exact += HAI_AS(float, met->exact) / rows;
    r.doubled += HAI_AS(float, met->doubled) / rows;
    r.keys_per_query += HAI_AS(float, met->exact ? hai_to_int(last + 1) : met->keys) / rows;
    if (met->exact) continue;
    error[row] = met->error;
    r.pinned_mass += met->pinned / rows;
    r.sampled_mass += met->sampled / rows;
  }
  hai_report_close(job, error, &r);
}
#endif
