/* ---- The report: one head's records added up ---- */

/* Sum of |out|^2 over rows begin .. end - 1, without those that are not finite. Each HAI_TASK_ROWS rows
   are summed apart, since single rows would be lost in the rounding of a sum over millions. Cost: rows *
   value_dim. */
static float hai_squared_out(const hai_job *job, hai_index begin, hai_index end) {
  const hyperattn_problem *p = job->plan->problem;
  float sum = 0.0f;
  while (begin < end) {
    float part = 0.0f;
    hai_index stop = hai_min(end, begin + HAI_TASK_ROWS);
    for (; begin < stop; begin++) {
      const float *out = hai_read(job, hai_out_row(&p->out, job->batch, job->head, begin), p->out.dtype,
                                  job->plan->value_dim, job->tile->line);
      float row = job->plan->float_kernel->square(out, job->plan->value_dim);
      part += hai_finite(row) ? row : 0.0f;
    }
    sum += part;
  }
  return sum;
}

/* Sums over a head's rectangles, beside the report itself. */
typedef struct hai_report_sums {
  float products;      /* of a query and a key */
  float rects;         /* rectangles that were up for approximation */
  float squared_error; /* estimate of |out - exact|^2 over all rows, */
  float variance;      /* and of that estimate's variance */
  float squared_norm;  /* |exact|^2 over all rows */
} hai_report_sums;

/* Sums over the auditors of one rectangle. */
typedef struct hai_auditor_sums {
  float error, error_squares;       /* of squared errors, and of their squares */
  float squared_out, squared_exact; /* |out|^2 of the result, and by all keys of the rectangle */
} hai_auditor_sums;

/* Adds auditor i of a record, whose row stands for `share` of the head's rows. Keys that a row meets
   after the rectangle take weight from its error: e^(2 (lse after the rectangle - lse at last)). There
   are none after a row's last rectangle: a difference of the two is then the choice's error. */
static void hai_report_query(const hai_job *job, const hai_record *record, int i, int is_last, float share,
                             hai_auditor_sums *sums, hyperattn_report *r) {
  const float *lse = hai_stored_lse(job) + hai_flat_head(job) * job->plan->n_query;
  hai_index row = record->query[i].row;
  float lse_whole = record->query[i].whole, squared_error = record->query[i].error, later, share_rect;
  if (row < 0) return;
  later = !is_last && lse[row] > lse_whole ? hai_exp(2.0f * (lse_whole - lse[row])) : 1.0f;
  share_rect = share * hai_share(record->query[i].rect, lse[row]);
  sums->error += squared_error * later;
  sums->error_squares += squared_error * later * squared_error * later;
  if (squared_error > r->max_error * r->max_error * record->query[i].norm)
    r->max_error = hai_relative(squared_error, record->query[i].norm);
  sums->squared_out += hai_squared_out(job, row, row + 1);
  sums->squared_exact += record->query[i].norm;
  r->block_mass += share_rect * record->query[i].blocks;
  r->pinned_mass += share_rect * record->query[i].pinned;
  r->sampled_mass += share_rect * (1.0f - record->query[i].blocks - record->query[i].pinned);
}

/* Adds a rectangle to a head's report. is_last: whether its rows meet no rectangle after it. Each of its
   n auditors stands for n_query / n rows; the variance is that of a total estimated from a sample drawn
   without replacement. Returns |exact|^2 over |out|^2, as the auditors see it. */
static float hai_report_rect(const hai_job *job, const hai_record *record, int is_last, hai_report_sums *sums,
                             hyperattn_report *r) {
  float rows_each = HAI_AS(float, job->rect.n_query) / HAI_AS(float, record->n),
        share = rows_each / HAI_AS(float, job->plan->n_query);
  hai_auditor_sums of = {0.0f, 0.0f, 0.0f, 0.0f};
  int i;
  r->alpha = record->alpha > r->alpha ? record->alpha : r->alpha;
  r->kappa = record->kappa > r->kappa ? record->kappa : r->kappa;
  if (record->exact == 1.0f) return 1.0f; /* and no query was compared */
  for (i = 0; i < record->n; i++) hai_report_query(job, record, i, is_last, share, &of, r);
  sums->squared_error += rows_each * of.error;
  if (record->n > 1)
    sums->variance += (1.0f - 1.0f / rows_each) * rows_each * rows_each *
                      (of.error_squares - of.error * of.error / HAI_AS(float, record->n)) *
                      HAI_AS(float, record->n) / HAI_AS(float, record->n - 1);
  return of.squared_out > 0.0f && of.squared_exact > 0.0f ? of.squared_exact / of.squared_out : 1.0f;
}

/* Products of a rectangle's probing, judging and pairing. What the report itself takes is not counted. */
static float hai_choosing_products(const hai_job *job, const hai_record *record) {
  const hai_plan *plan = job->plan;
  hai_index n_query = job->rect.n_query, n_key = job->rect.n_key, judges = hai_n_held_out(job);
  hai_index probed = hai_n_probes(job);
  uint64_t paired = hai_pairing_products(plan, n_query, n_key);
  float meet_all = plan->probing ? HAI_AS(float, probed) : 0.0f, products = 0.0f;
  if (plan->choosing) meet_all += HAI_AS(float, judges);
  if (record->recipe == HAI_BLOCKS) products = HAI_AS(float, paired);
  /* trials pair only the groups of the judges */
  if (judges < hai_query_parts(plan, n_query, n_key)) n_query = judges * plan->query_group;
  paired = hai_pairing_products(plan, n_query, n_key);
  products += HAI_AS(float, record->tried) * HAI_AS(float, paired);
  return HAI_AS(float, n_key) * meet_all + products;
}

/* Products before any rectangle, for one head. Cost: n_query. */
static float hai_exact_products(const hai_plan *plan) {
  hai_index row, first, last;
  int64_t met = 0;
  for (row = 0; row < plan->n_query && hai_meets_exactly(plan); row++) {
    hai_exact_keys(plan, row, &first, &last);
    met += hai_max(0, last - first + 1);
  }
  return HAI_AS(float, met);
}

/* Adds job->rect. Returns |exact|^2 over |out|^2 for its rows. */
static float hai_report_add(const hai_job *job, int is_last, hai_report_sums *sums, hyperattn_report *r) {
  const hai_plan *plan = job->plan;
  const hai_record *record;
  float n_query = HAI_AS(float, job->rect.n_query);
  if (plan->outer_exact && job->level >= plan->depth) { /* it was never up for approximation */
    sums->products += n_query * HAI_AS(float, job->rect.n_key);
    return 1.0f;
  }
  record = hai_record_of(job);
  sums->rects += 1.0f;
  r->exact += record->exact;
  r->escalated += record->recipe == HAI_EACH ? 1.0f : 0.0f;
  sums->products += hai_choosing_products(job, record) + n_query * record->keys;
  return hai_report_rect(job, record, is_last, sums, r);
}

/* Adds all rectangles of a head. Levels run from the diagonal outward, so a row's last rectangle is the
   outer one, or, without an outer one, its level's first. Rows that are in no rectangle are exact. */
static void hai_report_rects(hai_job *job, hai_report_sums *sums, hyperattn_report *r) {
  const hai_plan *plan = job->plan;
  hai_index index, n, exact_rows = plan->n_query;
  for (job->level = 0; job->level < hai_plan_levels(plan); job->level++) {
    n = hai_plan_rects(plan, job->level);
    for (index = 0; index < n; index++) {
      int is_last = !index && !(plan->outer && job->level < plan->depth);
      float ratio;
      hai_rect_set(&job->rect, plan, job->level, index);
      ratio = hai_report_add(job, is_last, sums, r);
      if (!is_last) continue;
      sums->squared_norm +=
          ratio * hai_squared_out(job, job->rect.query_begin, job->rect.query_begin + job->rect.n_query);
      exact_rows = hai_min(exact_rows, job->rect.query_begin);
    }
  }
  sums->squared_norm += hai_squared_out(job, 0, exact_rows);
}

/* Stage REPORT: one head's report. Reads records, lse and the result; writes problem.report. Cost:
   O(n_query * value_dim). */
HAI_APART void hai_stage_report(hai_job *job) {
  const hai_plan *plan = job->plan;
  hyperattn_report r;
  hai_report_sums sums = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  HYPERATTN_MEMSET(&r, 0, sizeof r);
  sums.products = hai_exact_products(plan);
  hai_report_rects(job, &sums, &r);
  /* A few queries hold most of an error, and a sample misses them more often than not, so the estimate is
     raised by its own standard deviation. */
  sums.squared_error += hai_sqrt(sums.variance);
  r.error = hai_relative(sums.squared_error, sums.squared_norm);
  r.keys_per_query = plan->n_query ? sums.products / HAI_AS(float, plan->n_query) : 0.0f;
  r.window_mass = 1.0f - r.block_mass - r.pinned_mass - r.sampled_mass;
  if (r.window_mass < 0.0f) r.window_mass = 0.0f; /* rounding */
  if (sums.rects > 0.0f) {
    r.exact /= sums.rects;
    r.escalated /= sums.rects;
    if (r.exact < 1.0f) r.error_median = r.error_99 = r.error_999 = hai_inf(); /* too few queries to tell */
  }
  plan->problem->report[hai_flat_head(job)] = r;
}
