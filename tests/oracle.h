/* The oracle: HyperAttention in double precision. Told only the choices (orders, blocks, pins, columns,
   recipes), it applies the rule to them: every visible pair once, by the first of window, pinned, block,
   sample that holds it. */
#ifndef HYPERATTN_TESTS_ORACLE_H
#define HYPERATTN_TESTS_ORACLE_H

#include "support.h"

/* ln of the weight of key j for query i, -inf: not met. Counts pairs met twice. */
typedef struct pairs {
  double *log_weight; /* [batch][n_heads][n_query][n_key] */
  int64_t twice;
  int recipes[3], pairings[3]; /* rectangles by what they took */
} pairs;

static double *pair_of(const hyperattn_problem *p, pairs *w, int64_t b, int64_t h, int64_t i, int64_t j) {
  return &w->log_weight[((b * p->n_heads + h) * p->n_query + i) * p->n_key + j];
}

static void meet(const hyperattn_problem *p, pairs *w, int64_t b, int64_t h, int64_t i, int64_t j,
                 double log_weight) {
  double *at = pair_of(p, w, b, h, i, j);
  if (*at != -INFINITY) w->twice++;
  *at = log_weight;
}

static int in_window(const hyperattn_problem *p, const hyperattn_params *a, int64_t i, int64_t j) {
  return p->causal && a->method == HYPERATTN_HYPER && i + p->n_key - p->n_query - j < a->window;
}

/* The pairs of one approximated rectangle, from what selection left in the workspace. */
static void meet_rect(hai_job *job, const call *c, pairs *w) {
  const hyperattn_problem *p = &c->problem;
  int64_t parts = hai_key_parts(job->plan, job->rect.n_key),
          groups = hai_query_parts(job->plan, job->rect.n_query, job->rect.n_key);
  const int32_t *pins = hai_pins(job);
  hai_recipe recipe = hai_recipe_of(job);
  hai_adopt_pairing(job);
  int wide = recipe == HAI_COLUMNS;
  w->recipes[recipe]++, w->pairings[job->pairing]++;
  for (int64_t x = 0; x < job->rect.n_query; x++) {
    int64_t i = recipe == HAI_EACH ? job->rect.query_begin + x : query_at(job, x);
    char *met = (char *)test_alloc((size_t)p->n_key);
    memset(met, 0, (size_t)p->n_key);
    for (int64_t j = job->rect.key_begin; recipe == HAI_EACH && j < job->rect.key_begin + job->rect.n_key;
         j++)
      if (!in_window(p, &c->params, i, j)) meet(p, w, job->batch, job->head, i, j, 0.0);
    if (recipe == HAI_EACH) {
      free(met);
      continue;
    }
    for (int32_t t = 0; t < hai_counts(job)[0]; t++) {
      if (!in_window(p, &c->params, i, pins[t])) meet(p, w, job->batch, job->head, i, pins[t], 0.0);
      met[pins[t]] = 1;
    }
    int64_t group = parts ? hai_part_of(job->rect.n_query, groups, x) : 0;
    for (int64_t rank = 0; parts && recipe != HAI_COLUMNS && rank < job->rect.n_key; rank++) {
      int32_t block = (int32_t)hai_part_of(job->rect.n_key, parts, rank);
      int mine = job->plan->by_score
                     ? holds_key(hai_choice(job, group), hai_min(job->plan->take, parts), block)
                     : block == group;
      if (!mine || met[key_at(job, rank)]) continue;
      met[key_at(job, rank)] = 1;
      if (!in_window(p, &c->params, i, key_at(job, rank)))
        meet(p, w, job->batch, job->head, i, key_at(job, rank), 0.0);
    }
    for (int32_t t = 0; t < hai_counts(job)[1 + wide]; t++) {
      const hai_column *column = &hai_columns(job, wide)[t];
      if (met[column->key] || in_window(p, &c->params, i, column->key)) continue;
      meet(p, w, job->batch, job->head, i, column->key, (double)column->log_weight);
    }
    free(met);
  }
}

/* The plan of c without a scan, whose sample is no choice: as in a build that leaves it out, a rectangle that
   misses its tolerance meets every key. `anyway`: full attention is approximated also where that is dearer
   than exact. */
static void plan_call(hai_plan *plan, const call *c, int anyway) {
  assert_int_equal(hai_resolve(plan, &c->problem, &c->params), HYPERATTN_OK);
  plan->scans_rects = 0;
  if (anyway) plan->outer = 1;
  hai_resolve_stages(plan);
  hai_resolve_layout(plan);
}

/* Runs c phase by phase and listens to what is chosen; w->log_weight is the caller's to free. */
static void listen(call *c, pairs *w, int anyway) {
  const hyperattn_problem *p = &c->problem;
  hai_plan plan;
  plan_call(&plan, c, anyway);
  size_t bytes = hai_layout_size(&plan.layout, 1);
  void *workspace = test_alloc(bytes);
  memset(w, 0, sizeof *w);
  w->log_weight =
      (double *)test_alloc((size_t)(p->batch * p->n_heads * p->n_query * p->n_key) * sizeof(double));
  forget(workspace, bytes);
  assert_int_equal(hai_check_buffers(&plan, workspace, bytes, 1), HYPERATTN_OK);
  for (int64_t i = 0; i < p->batch * p->n_heads * p->n_query * p->n_key; i++) w->log_weight[i] = -INFINITY;
  for (int64_t b = 0; b < p->batch; b++) /* diagonal segments and windows */
    for (int64_t h = 0; h < p->n_heads; h++)
      for (int64_t i = 0; i < p->n_query; i++)
        for (int64_t j = 0; j < p->n_key; j++) {
          int64_t at = i + p->n_key - p->n_query, x = at - plan.key_skip, y = j - plan.key_skip;
          if (p->causal ? j > at : plan.outer) continue;
          int same = !p->causal || (y >= 0 ? hai_part_of(plan.square, 1 << plan.depth, x) ==
                                                 hai_part_of(plan.square, 1 << plan.depth, y)
                                           : !plan.outer && !plan.depth);
          if (same || in_window(p, &c->params, i, j)) meet(p, w, b, h, i, j, 0.0);
        }
  for (int phase = 0; phase < hai_phases(&plan); phase++)
    for (int64_t t = 0; t < hai_phase_tasks(&plan, phase); t++) {
      hai_job job;
      const hai_stage *stage = hai_job_at(&job, &plan, workspace, phase, t, 0);
      if (stage->run == hai_stage_attend && job.chunk == 0) meet_rect(&job, c, w);
      hai_run(&plan, workspace, phase, t, 0);
    }
  assert_int_equal(w->twice, 0);
  free(workspace);
}

/* The output of c against what those pairs give. */
static void compare(const call *c, pairs *w, double bound) {
  const hyperattn_problem *p = &c->problem;
  double *out = (double *)test_alloc((size_t)out_size(p) * sizeof(double)),
         *lse = (double *)test_alloc((size_t)lse_size(p) * sizeof(double));
  reference_by(p, w->log_weight, out, lse);
  assert_near(c, out, lse, bound);
  free(out), free(lse);
}

/* Runs c and compares. */
static void check(call *c, double bound) {
  pairs w;
  listen(c, &w, 0);
  compare(c, &w, bound);
  free(w.log_weight);
}

#endif
