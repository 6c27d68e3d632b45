// What bench_quality measures on one head: attention with some parameters, against exact attention.
#ifndef QUALITY_MEASURE_H
#define QUALITY_MEASURE_H

#include "clock.h"
#include "elements.h"
#include "pool.h"
#include "quality_data.h"

#define NOT_MEASURED ((double)NAN)

// ---- What is measured ----

enum column {
  ERROR,
  SECOND_HALF,
  LSE_MEAN,
  LSE_MAX,
  BOUND,
  KEYS,
  SHARE,
  SECONDS,
  TIME,
  ESTIMATE,
  RATIO,
  WORST_PROBE,
  ESCALATED,
  EXACT,
  BLOCK_MASS,
  PINNED_MASS,
  WINDOW_MASS,
  SAMPLED_MASS,
  ALPHA,
  KAPPA,
  COLUMNS
};

static const struct {
  const char *name, *title;  // in the CSV file; in tables, or NULL if tables leave it out
  int width, digits;
} columns[COLUMNS] = {
    {"error", "error", 8, 4},
    {"second_half_error", "2nd half", 9, 4},
    {"lse_mean", "lse mean", 9, 5},
    {"lse_max", "lse max", 8, 3},
    {"error_over_bound", "of bound", 9, 5},
    {"keys_per_query", "keys/query", 11, 0},
    {"share_of_exact", "of exact", 9, 3},
    {"seconds", NULL, 0, 0},
    {"time_over_exact", "time", 7, 3},
    {"estimate", "estimate", 9, 4},
    {"estimate_over_error", "est/true", 9, 2},
    {"worst_probe", NULL, 0, 0},
    {"escalated", "escalated", 10, 3},
    {"exact", "exact", 6, 3},
    {"block_mass", NULL, 0, 0},
    {"pinned_mass", NULL, 0, 0},
    {"window_mass", NULL, 0, 0},
    {"sampled_mass", NULL, 0, 0},
    {"alpha", NULL, 0, 0},
    {"kappa", NULL, 0, 0},
};

typedef struct result {
  double at[COLUMNS];  // NAN: not measured
} result;

enum preset { DEFAULT, LINEAR, PAPER, PRESETS };
static const char *const preset_names[PRESETS] = {"default", "linear", "paper"};
static const char *const order_names[] = {"sortlsh", "position", "probed"};
static const char *const sampling_names[] = {"uniform", "value-norm", "column-mass"};

typedef struct point {  // one choice of parameters
  enum preset preset;
  double scale;  // of the preset's budget
  char label[24];
  int64_t essay_min_seq_len;
  hyperattn_params params;
} point;

typedef struct runner {
  int threads, with_bound;
  hyperattn_dtype dtype;        // of the approximated call's inputs; with q8_0 the queries are f32
  double worst_row, worst_lse;  // of exact attention against double
  pool workers;
  hyperattn_parallel parallel;
  void *workspace;
  size_t bytes;
} runner;

typedef struct truth {  // exact attention of a head
  float *out, *lse;
  double seconds, bound;
} truth;

// ---- Running ----

static hyperattn_problem problem_of(const head *h, float *out, float *lse) {
  hyperattn_problem p = {0};
  p.batch = p.n_heads = p.n_kv_heads = 1, p.n_query = p.n_key = h->n;
  p.head_dim = p.value_dim = HEAD_DIM, p.causal = h->causal, p.scale = h->scale;
  p.query.data = h->q, p.key.data = h->k, p.value.data = h->v, p.out.data = out, p.lse = lse;
  p.query.row_stride = p.key.row_stride = p.value.row_stride = p.out.row_stride = HEAD_DIM;
  return p;
}

static hyperattn_input as_dtype(hyperattn_input x, int64_t n, hyperattn_dtype dtype) {
  void *data = allocate(elements_size(n * HEAD_DIM, dtype));
  elements_write((const float *)x.data, n * HEAD_DIM, dtype, data);
  x.data = data, x.dtype = dtype;
  return x;
}

// Seconds of the best of some runs.
static double attend(runner *run, const hyperattn_problem *p, const hyperattn_params *params, int rounds) {
  size_t bytes = hyperattn_workspace_size(p, params, run->threads);
  double best = (double)INFINITY;
  if (bytes > run->bytes) {
    free(run->workspace);
    run->workspace = allocate(bytes), run->bytes = bytes;
  }
  for (int i = 0; i < rounds; i++) {
    double begin = now();
    hyperattn_status status =
        hyperattn_forward_parallel(p, params, &run->parallel, run->workspace, run->bytes);
    double seconds = now() - begin;
    if (status != HYPERATTN_OK)
      fprintf(stderr, "bench_quality: %s\n", hyperattn_status_string(status)), exit(2);
    if (seconds < best) best = seconds;
  }
  return best;
}

static hyperattn_params exact_params(void) {
  hyperattn_params params = hyperattn_default_params();
  params.method = HYPERATTN_EXACT;
  return params;
}

// ---- The truth ----

// Compares exact attention with sums in double, on rows spread through the sequence.
static void check_exact(runner *run, const head *h, const truth *t) {
  enum { ROWS = 32 };
  double *s = allocate((size_t)h->n * sizeof *s);
  for (int64_t r = 0; r < ROWS; r++) {
    int64_t i = (r * 2 + 1) * h->n / (2 * ROWS), see = h->causal ? i + 1 : h->n;
    double high = -(double)INFINITY, sum = 0, o[HEAD_DIM] = {0}, difference = 0, size = 0;
    for (int64_t j = 0; j < see; j++) {
      double dot = 0;
      for (int u = 0; u < HEAD_DIM; u++)
        dot += (double)h->q[i * HEAD_DIM + u] * (double)h->k[j * HEAD_DIM + u];
      s[j] = dot * (double)h->scale;
      if (s[j] > high) high = s[j];
    }
    for (int64_t j = 0; j < see; j++) {
      double w = exp(s[j] - high);
      sum += w;
      for (int u = 0; u < HEAD_DIM; u++) o[u] += w * (double)h->v[j * HEAD_DIM + u];
    }
    for (int u = 0; u < HEAD_DIM; u++) {
      double e = o[u] / sum - (double)t->out[i * HEAD_DIM + u];
      difference += e * e, size += o[u] / sum * (o[u] / sum);
    }
    run->worst_row = fmax(run->worst_row, sqrt(difference / size));
    run->worst_lse = fmax(run->worst_lse, fabs(high + log(sum) - (double)t->lse[i]));
  }
  free(s);
  if (run->worst_row > 1e-4 || run->worst_lse > 1e-4)
    fprintf(stderr, "bench_quality: exact attention is off by %.1e, lse by %.1e\n", run->worst_row,
            run->worst_lse),
        exit(1);
}

static double normalise(double *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  sum = sqrt(sum);
  for (int64_t i = 0; i < n; i++) x[i] /= sum > 0 ? sum : 1;
  return sum;
}

// The largest singular value of M = x - y (of x if y is NULL), n rows of HEAD_DIM, by power iteration on M^T
// M.
static double norm_of_rows(const float *x, const float *y, int64_t n) {
  double gram[HEAD_DIM][HEAD_DIM] = {{0}}, a[HEAD_DIM], norm = 0;
  for (int64_t i = 0; i < n * HEAD_DIM; i += HEAD_DIM) {
    double row[HEAD_DIM];
    for (int u = 0; u < HEAD_DIM; u++) row[u] = (double)x[i + u] - (y ? (double)y[i + u] : 0);
    for (int u = 0; u < HEAD_DIM; u++)
      for (int w = 0; w < HEAD_DIM; w++) gram[u][w] += row[u] * row[w];
  }
  for (int u = 0; u < HEAD_DIM; u++) a[u] = 1 + sin(u);
  normalise(a, HEAD_DIM);
  for (int round = 0; round < 200; round++) {
    double next[HEAD_DIM] = {0};
    for (int u = 0; u < HEAD_DIM; u++)
      for (int w = 0; w < HEAD_DIM; w++) next[u] += gram[u][w] * a[w];
    norm = normalise(next, HEAD_DIM);
    memcpy(a, next, sizeof a);
  }
  return sqrt(norm);
}

// The operator norm of P = D^-1 A by power iteration. Exact attention computes both products. P x is
// attention with values x. (P^T y)_j = sum_i exp(s_ij - lse_i) y_i is attention in which the keys, extended
// by 1, are the queries, and the queries, extended by -lse_i, are the keys, multiplied by its sum of weights.
// Where P is causal, so is P^T with the rows in reversed order.
static double attention_norm(runner *run, const head *h, const truth *t) {
  enum { WIDE = HEAD_DIM + 1, ROUNDS = 40 };
  int64_t n = h->n;
  float *rows = allocate((size_t)(2 * n * WIDE) * sizeof *rows), *from = rows, *to = rows + n * WIDE;
  float *x = allocate((size_t)(4 * n) * sizeof *x), *y = x + n, *z = y + n, *sums = z + n;
  hyperattn_params params = exact_params();
  hyperattn_problem forth = problem_of(h, y, NULL), back;
  for (int64_t i = 0; i < n; i++) {
    int64_t r = n - 1 - i;
    for (int u = 0; u < HEAD_DIM; u++)
      from[r * WIDE + u] = h->k[i * HEAD_DIM + u], to[r * WIDE + u] = h->q[i * HEAD_DIM + u] * h->scale;
    from[r * WIDE + HEAD_DIM] = 1, to[r * WIDE + HEAD_DIM] = -t->lse[i];
    x[i] = 1 / sqrtf((float)n);
  }
  forth.value_dim = 1, forth.value.data = x, forth.value.row_stride = forth.out.row_stride = 1;
  back = forth;
  back.head_dim = WIDE, back.scale = 1, back.query.data = from, back.key.data = to;
  back.query.row_stride = back.key.row_stride = WIDE;
  back.value.data = y + n - 1, back.value.row_stride = -1, back.out.data = z, back.lse = sums;
  double norm = 0, last = -1;
  for (int round = 0; round < ROUNDS && fabs(norm - last) > 1e-3 * norm; round++) {
    double size = 0, next = 0;
    attend(run, &forth, &params, 1);
    attend(run, &back, &params, 1);
    for (int64_t i = 0; i < n; i++) {
      double sum = (double)z[i] * exp((double)sums[i]);
      z[i] = (float)sum;
      size += (double)y[i] * (double)y[i], next += sum * sum;
    }
    for (int64_t i = 0; i < n; i++) x[i] = (float)((double)z[n - 1 - i] / sqrt(next));
    last = norm, norm = sqrt(size);
  }
  free(rows), free(x);
  return norm;
}

static truth find_truth(runner *run, const head *h) {
  truth t = {new_rows(h->n), allocate((size_t)h->n * sizeof(float)), 0, NOT_MEASURED};
  hyperattn_params params = exact_params();
  hyperattn_problem p = problem_of(h, t.out, t.lse);
  t.seconds = attend(run, &p, &params, 2);
  check_exact(run, h, &t);
  if (run->with_bound) t.bound = attention_norm(run, h, &t) * norm_of_rows(h->v, NULL, h->n);
  return t;
}

// ---- Measuring ----

static double relative_error(const float *x, const float *exact, int64_t n) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < n; i++) {
    double e = (double)x[i] - (double)exact[i];
    difference += e * e, size += (double)exact[i] * (double)exact[i];
  }
  return sqrt(difference / size);
}

static result measure(runner *run, const source *s, const head *h, const truth *t, const point *pt,
                      int seed) {
  result r;
  float *out = new_rows(h->n), *lse = allocate((size_t)h->n * sizeof *lse);
  hyperattn_problem p = problem_of(h, out, lse);
  p.query = as_dtype(p.query, h->n, run->dtype == HYPERATTN_Q8_0 ? HYPERATTN_F32 : run->dtype);
  p.key = as_dtype(p.key, h->n, run->dtype), p.value = as_dtype(p.value, h->n, run->dtype);
  hyperattn_params params = pt->params;
  int64_t half = h->n / 2;
  double pairs = h->causal ? (double)(h->n + 1) / 2 : (double)h->n, sum = 0, high = 0;
  for (int i = 0; i < COLUMNS; i++) r.at[i] = NOT_MEASURED;
  params.seed = (uint64_t)seed;
  if (s->set == ESSAY) params.min_seq_len = pt->essay_min_seq_len;
  hyperattn_report report = {0};
  r.at[SECONDS] = attend(run, &p, &params, 2);
  p.report = &report;  // from a second run, since a report takes time
  attend(run, &p, &params, 1);
  r.at[TIME] = r.at[SECONDS] / t->seconds;
  r.at[ERROR] = relative_error(out, t->out, h->n * HEAD_DIM);
  if (s->set == REPEAT)
    r.at[SECOND_HALF] =
        relative_error(out + half * HEAD_DIM, t->out + half * HEAD_DIM, (h->n - half) * HEAD_DIM);
  for (int64_t i = 0; i < h->n; i++) {
    double e = fabs((double)lse[i] - (double)t->lse[i]);
    sum += e, high = fmax(high, e);
  }
  r.at[LSE_MEAN] = sum / (double)h->n, r.at[LSE_MAX] = high;
  if (run->with_bound) r.at[BOUND] = norm_of_rows(out, t->out, h->n) / t->bound;
  r.at[KEYS] = (double)report.keys_per_query;
  r.at[ESTIMATE] = (double)report.error, r.at[WORST_PROBE] = (double)report.max_error;
  r.at[RATIO] = r.at[ERROR] > 0 ? r.at[ESTIMATE] / r.at[ERROR] : r.at[ESTIMATE] > 0 ? (double)INFINITY : 1;
  r.at[BLOCK_MASS] = (double)report.block_mass, r.at[PINNED_MASS] = (double)report.pinned_mass;
  r.at[WINDOW_MASS] = (double)report.window_mass, r.at[SAMPLED_MASS] = (double)report.sampled_mass;
  r.at[ALPHA] = (double)report.alpha, r.at[KAPPA] = (double)report.kappa;
  r.at[ESCALATED] = (double)report.escalated, r.at[EXACT] = (double)report.exact;
  r.at[SHARE] = r.at[KEYS] / pairs;
  free((void *)(uintptr_t)p.query.data), free((void *)(uintptr_t)p.key.data);
  free((void *)(uintptr_t)p.value.data), free(out), free(lse);
  return r;
}

#endif
