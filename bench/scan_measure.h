// What bench_scan measures: points (a method and its parameters), the time of a call, and how far the result of
// every query lies from that of exact attention, beside what the call says of it.
#ifndef SCAN_MEASURE_H
#define SCAN_MEASURE_H

#include "measure.h"
#include "scan_data.h"

#define NOT_MEASURED ((double)NAN)
#define USUAL_TOLERANCE 0.1    // what errors are counted against where a point has no tolerance
#define LEAST_ESTIMATE 0.001f  // of an error that the truth is divided by

// ---- Points ----

enum { MAX_POINTS = 32, LABEL_SIZE = 32 };

typedef struct point {
  char label[LABEL_SIZE];
  hyperattn_params params;
} point;

static void scale_budget(hyperattn_params *p, double scale) {
  p->block_size = (int64_t)((double)p->block_size * scale);
  p->sample_size = (int64_t)((double)p->sample_size * scale);
  p->heavy_keys = (int64_t)((double)p->heavy_keys * scale);
}

// exact, default, scan:BUDGET:TOLERANCE, hyper:TOLERANCE, linear, paper, linear:SCALE, paper:SCALE (their budgets
// times SCALE). 1: it is one of these.
static inline int read_point(const char *text, size_t length, point *pt) {
  char rest;
  double scale = 1, budget, tolerance;
  if (length >= LABEL_SIZE) return 0;
  snprintf(pt->label, LABEL_SIZE, "%.*s", (int)length, text);
  pt->params = hyperattn_default_params();
  if (!strcmp(pt->label, "default")) return 1;
  if (!strcmp(pt->label, "exact")) return pt->params.method = HYPERATTN_EXACT, 1;
  if (sscanf(pt->label, "scan:%lf:%lf%c", &budget, &tolerance, &rest) == 2) {
    pt->params.method = HYPERATTN_SCAN;
    pt->params.sample_size = (int64_t)budget, pt->params.tolerance = (float)tolerance;
    return budget >= 0 && budget < 1e9 && tolerance >= 0;
  }
  if (sscanf(pt->label, "hyper:%lf%c", &tolerance, &rest) == 1) {
    pt->params = hyperattn_linear_params();
    pt->params.tolerance = (float)tolerance;
    return tolerance >= 0;
  }
  if (strchr(pt->label, ':') &&
      (sscanf(strchr(pt->label, ':'), ":%lf%c", &scale, &rest) != 1 || !(scale > 0)))
    return 0;
  length = strcspn(pt->label, ":");
  if (length == 6 && !strncmp(pt->label, "linear", length))
    pt->params = hyperattn_linear_params();
  else if (length == 5 && !strncmp(pt->label, "paper", length))
    pt->params = hyperattn_paper_params();
  else
    return 0;
  return scale_budget(&pt->params, scale), 1;
}

// ---- Results ----

enum column {
  SECONDS,
  SPEED,
  MEAN,
  FROBENIUS,
  HALF_BELOW,
  OF_100,
  OF_1000,
  WORST,
  OVER,
  OVER_TWICE,
  TRUTH,
  TRUTH_OF_100,
  KEYS,
  EXACT,
  DOUBLED,
  ESTIMATE,
  ESTIMATE_HALF,
  ESTIMATE_OF_100,
  ESTIMATE_OF_1000,
  ESTIMATE_WORST,
  COST,
  COLUMNS
};

static const struct {
  const char *name, *title, *format;  // in the record; in tables, or NULL if they leave it out; of a cell
  int width;
} columns[COLUMNS] = {
    {"seconds", "ms", "%.1f", 8},
    {"speed", "speed", "%.2f", 5},
    {"mean", "mean", "%.4f", 6},
    {"frobenius", "frob.", "%.4f", 6},
    {"q50", "50 %", "%.4f", 6},
    {"q99", "99 %", "%.3f", 6},
    {"q999", "99.9 %", "%.3f", 6},
    {"max", "worst", "%.2f", 6},
    {"over", "% over", "%.2f", 6},
    {"over_twice", "twice", "%.3f", 6},
    {"truth_q50", "truth", "%.2f", 5},
    {"truth_q99", "99 %", "%.2f", 5},
    {"keys_per_query", "keys", "%.0f", 6},
    {"exact", "% exact", "%.1f", 7},
    {"doubled", "% doubled", "%.1f", 9},
    {"estimate", "estimate", "%.4f", 8},
    {"estimate_q50", NULL, NULL, 0},
    {"estimate_q99", NULL, NULL, 0},
    {"estimate_q999", NULL, NULL, 0},
    {"estimate_max", NULL, NULL, 0},
    {"cost", "cost", "%.2f", 5},
};

typedef struct result {
  double at[COLUMNS];  // NAN: not measured
} result;

// ---- Calls ----

typedef struct caller {
  void *workspace;
  size_t bytes;
} caller;

static hyperattn_problem problem_of(const head *h, int causal, float *out) {
  hyperattn_problem p = hyperattn_heads_first(1, 1, 1, h->n, h->n, HEAD_DIM, HEAD_DIM, h->rows[0],
                                              h->rows[1], h->rows[2], out);
  p.causal = causal;
  return p;
}

// Seconds of one call.
static double attend(caller *c, const hyperattn_problem *p, const hyperattn_params *params) {
  size_t bytes = hyperattn_workspace_size(p, params, 1);
  if (bytes > c->bytes) {
    free(c->workspace);
    c->workspace = allocate(bytes), c->bytes = bytes;
  }
  double begin = now();
  hyperattn_status status = hyperattn_forward(p, params, c->workspace, c->bytes);
  double seconds = now() - begin;
  if (status != HYPERATTN_OK) fprintf(stderr, "bench_scan: %s\n", hyperattn_status_string(status)), exit(2);
  return seconds;
}

// ---- Errors ----

static float *numbers_of(int64_t count) { return allocate((size_t)count * sizeof(float)); }

static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

// Of n ascending numbers the one that `share` of them do not exceed.
static double quantile(const float *x, int64_t n, double share) {
  int64_t at = (int64_t)(share * (double)n);
  return n ? (double)x[at < n ? at : n - 1] : NOT_MEASURED;
}

// Squared norms of one row's difference from exact attention, and of exact attention.
static squares row_squares(const float *x, const float *exact) {
  squares s = {0, 0};
  for (int t = 0; t < HEAD_DIM; t++) {
    double e = (double)x[t] - (double)exact[t];
    s.difference += e * e, s.exact += (double)exact[t] * (double)exact[t];
  }
  return s;
}

// error |out - exact| / |exact|; 0 where nothing differs.
static double relative(squares s) { return s.difference > 0 ? sqrt(s.difference / s.exact) : 0; }

// Every query's error, to error [n], and what all of them amount to.
static void measure_errors(int64_t n, const float *out, const float *exact, double allowed, float *error,
                           result *r) {
  squares all = {0, 0};
  double sum = 0, over = 0, twice = 0;
  for (int64_t i = 0; i < n; i++) {
    squares s = row_squares(out + i * HEAD_DIM, exact + i * HEAD_DIM);
    double e = relative(s);
    all.difference += s.difference, all.exact += s.exact;
    sum += e, over += e > allowed, twice += e > 2 * allowed;
    error[i] = (float)e;
  }
  r->at[MEAN] = sum / (double)n, r->at[FROBENIUS] = relative(all);
  r->at[OVER] = 100 * over / (double)n, r->at[OVER_TWICE] = 100 * twice / (double)n;
}

static void measure_quantiles(float *error, int64_t n, result *r) {
  qsort(error, (size_t)n, sizeof *error, ascending);
  r->at[HALF_BELOW] = quantile(error, n, 0.5), r->at[OF_100] = quantile(error, n, 0.99);
  r->at[OF_1000] = quantile(error, n, 0.999), r->at[WORST] = quantile(error, n, 1);
}

// Quantiles of truth over estimate, of queries that are neither exact nor without an estimate.
static void measure_truth(const float *error, const float *estimate, int64_t n, result *r) {
  float *ratio = numbers_of(n);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++)
    if (estimate[i] > LEAST_ESTIMATE && isfinite(estimate[i])) ratio[count++] = error[i] / estimate[i];
  qsort(ratio, (size_t)count, sizeof *ratio, ascending);
  r->at[TRUTH] = quantile(ratio, count, 0.5), r->at[TRUTH_OF_100] = quantile(ratio, count, 0.99);
  free(ratio);
}

static void measure_report(const hyperattn_report *report, result *r) {
  r->at[KEYS] = (double)report->keys_per_query;
  r->at[EXACT] = 100 * (double)report->exact, r->at[DOUBLED] = 100 * (double)report->doubled;
  r->at[ESTIMATE] = (double)report->error;
  r->at[ESTIMATE_HALF] = (double)report->error_median, r->at[ESTIMATE_OF_100] = (double)report->error_99;
  r->at[ESTIMATE_OF_1000] = (double)report->error_999, r->at[ESTIMATE_WORST] = (double)report->max_error;
}

// All of a point's result but its time, from a call of its own, since reports and estimates take time.
static inline void measure(caller *c, hyperattn_problem p, const point *pt, const float *exact, result *r) {
  hyperattn_report report = {0};
  int64_t n = p.n_query;
  float *estimate = numbers_of(n), *error = numbers_of(n);
  double allowed = pt->params.tolerance > 0 ? (double)pt->params.tolerance : USUAL_TOLERANCE;
  r->at[COST] = (double)hyperattn_cost(&p, &pt->params);
  p.report = &report;
  if (pt->params.method == HYPERATTN_SCAN) p.query_error = estimate;
  attend(c, &p, &pt->params);
  measure_errors(n, (const float *)p.out.data, exact, allowed, error, r);
  if (p.query_error) measure_truth(error, estimate, n, r);
  measure_quantiles(error, n, r);
  measure_report(&report, r);
  free(estimate), free(error);
}

#endif
