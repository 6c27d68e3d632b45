/* ---- The report ---- */

/* Sum of |out|^2 over rows begin .. end - 1, those left out that are not finite; by parts, since millions of
   addends would fall below a float's last place. */
static float hai_out_norm(const hai_job *job, hai_index begin, hai_index end) {
  const hyperattn_problem *p = job->plan->problem;
  float sum = 0.0f;
  while (begin < end) {
    float part = 0.0f;
    hai_index stop = hai_min(end, begin + HAI_TASK_ROWS);
    for (; begin < stop; begin++) {
      float row = hai_squared_norm(hai_read(job, hai_out_row(&p->out, job->batch, job->head, begin),
                                            p->out.dtype, job->plan->value_dim, job->tile->line),
                                   job->plan->value_dim);
      part += hai_finite(row) ? row : 0.0f;
    }
    sum += part;
  }
  return sum;
}

/* Adds a rectangle, the last one of its rows or not, to a head's report, its squared errors to *error, and
   the variance of their sum to *variance. Returns |exact|^2 over |out|^2, by its held-out queries. */
static float hai_report_rect(const hai_job *job, const hai_record *record, int is_last, float *error,
                             float *variance, hyperattn_report *r) {
  const hai_plan *plan = job->plan;
  const float *lse = hai_stored_lse(job) + hai_flat_head(job) * plan->n_query;
  float each = HAI_AS(float, job->rect.n_query) / HAI_AS(float, record->n),
        share = each / HAI_AS(float, plan->n_query);
  float mine = 0.0f, exact = 0.0f, sum = 0.0f, squares = 0.0f;
  int i;
  r->alpha = record->alpha > r->alpha ? record->alpha : r->alpha;
  r->kappa = record->kappa > r->kappa ? record->kappa : r->kappa;
  if (record->recipe == HAI_ALL) return 1.0f;
  for (i = 0; i < record->n; i++) {
    hai_index row = record->query[i].row;
    float whole = record->query[i].whole, later, part, squared = record->query[i].error;
    if (row < 0) continue;
    /* later keys outweigh an error; what a choice missed is missing in the last lse too */
    later = !is_last && lse[row] > whole ? hai_exp(2.0f * (whole - lse[row])) : 1.0f;
    part = share * hai_share(record->query[i].rect, lse[row]);
    sum += squared * later;
    squares += squared * later * squared * later;
    if (squared > r->max_error * r->max_error * record->query[i].norm)
      r->max_error = hai_relative(squared, record->query[i].norm);
    mine += hai_out_norm(job, row, row + 1);
    exact += record->query[i].norm;
    r->block_mass += part * record->query[i].blocks;
    r->pinned_mass += part * record->query[i].pinned;
    r->sampled_mass += part * (1.0f - record->query[i].blocks - record->query[i].pinned);
  }
  *error += each * sum;
  if (record->n > 1)
    *variance += (1.0f - 1.0f / each) * each * each * (squares - sum * sum / HAI_AS(float, record->n)) *
                 HAI_AS(float, record->n) / HAI_AS(float, record->n - 1);
  return mine > 0.0f && exact > 0.0f ? exact / mine : 1.0f;
}

/* Key-query pairs of a rectangle's probing, judging and pairing. The report's own are not counted. */
static float hai_overhead(const hai_job *job, const hai_record *record) {
  const hai_plan *plan = job->plan;
  hai_index n_query = job->rect.n_query, n_key = job->rect.n_key, judges = hai_n_judges(job);
  hai_index probed = hai_n_probes(job);
  uint64_t paired = hai_pairing_products(plan, n_query, n_key);
  float probes = plan->probing ? HAI_AS(float, probed) : 0.0f, pairs = 0.0f;
  if (plan->choosing) probes += HAI_AS(float, judges);
  if (record->recipe == HAI_BLOCKS || record->recipe == HAI_BOTH) pairs = HAI_AS(float, paired);
  /* trials pair the held-out queries' groups alone */
  if (judges < hai_query_parts(plan, n_query, n_key)) n_query = judges * plan->query_group;
  paired = hai_pairing_products(plan, n_query, n_key);
  pairs += HAI_AS(float, record->tried) * HAI_AS(float, paired);
  return HAI_AS(float, n_key) * probes + pairs;
}

/* One head's report. Cost: O(n_query * value_dim). */
HAI_APART void hai_stage_report(hai_job *job) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  hyperattn_report r;
  float error = 0.0f, variance = 0.0f, norm = 0.0f, pairs, rects = 0.0f;
  hai_index row, first, last, met = 0, rest = plan->n_query; /* rows below `rest` are in no rectangle */
  HYPERATTN_MEMSET(&r, 0, sizeof r);
  for (row = 0; row < plan->n_query && plan->n_before; row++) {
    hai_exact_keys(plan, row, &first, &last);
    met += hai_max(0, last - first + 1);
  }
  pairs = HAI_AS(float, met);
  for (job->level = 0; job->level < hai_plan_levels(plan); job->level++) {
    hai_index index, end = hai_plan_rects(plan, job->level);
    for (index = 0; index < end; index++) {
      const hai_record *record;
      int is_last = !index && !(plan->outer && job->level < plan->depth);
      float ratio = 1.0f;
      job->rect = hai_rect_at(plan, job->level, index);
      if (plan->outer_exact && job->level >= plan->depth) {
        pairs += HAI_AS(float, job->rect.n_query) * HAI_AS(float, job->rect.n_key);
      } else {
        record = hai_record_of(job);
        rects += 1.0f;
        r.exact += record->recipe == HAI_ALL ? 1.0f : 0.0f;
        r.escalated += record->recipe == HAI_ALL || record->recipe == HAI_BOTH ? 1.0f : 0.0f;
        pairs += hai_overhead(job, record) + HAI_AS(float, job->rect.n_query) * record->keys;
        ratio = hai_report_rect(job, record, is_last, &error, &variance, &r);
      }
      if (!is_last) continue;
      norm += ratio * hai_out_norm(job, job->rect.query_begin, job->rect.query_begin + job->rect.n_query);
      rest = hai_min(rest, job->rect.query_begin);
    }
  }
  norm += hai_out_norm(job, 0, rest);
  error +=
      hai_sqrt(variance); /* few queries hold most of an error, and samples miss them more often than not */
  r.error = hai_relative(error, norm);
  r.keys_per_query = plan->n_query ? pairs / HAI_AS(float, plan->n_query) : 0.0f;
  r.window_mass = 1.0f - r.block_mass - r.pinned_mass - r.sampled_mass;
  if (rects > 0.0f) {
    r.exact /= rects;
    r.escalated /= rects;
  }
  p->report[hai_flat_head(job)] = r;
}
