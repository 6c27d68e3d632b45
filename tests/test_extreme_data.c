/* The data that are worst for rounding and for choices of keys, with every kernel: exact attention is
   right, the error of approximations is what their report says, and what is not finite reaches only rows that
   may see it. */
#include "../examples/amx.h"
#include "../examples/halves.h"
#include "support.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
static unsigned flush_denormals(void) {
  unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040); /* flushes denormal results and operands to zero */
  return before;
}
static void restore(unsigned before) { _mm_setcsr(before); }
#else
static unsigned flush_denormals(void) { return 0; }
static void restore(unsigned before) { (void)before; }
#endif

enum { STEP = IS_FAST_BUILD ? 1 : 7 };
enum { DIM = 32, VALUE_DIM = 16 }; /* dims that AMX takes too */

/* ---- Kernels ---- */

static test_kernel kernels[8];
static int n_kernels;

static int set_up(void **state) {
  (void)state;
  ask_for_amx();
  n_kernels = find_kernels(kernels, DIM, VALUE_DIM);
  return 0;
}

static uint16_t *halves_of(const float *x, int64_t n) {
  uint16_t *halves = (uint16_t *)test_alloc((size_t)n * sizeof *halves);
  for (int64_t i = 0; i < n; i++) halves[i] = float_to_bf16(x[i]);
  return halves;
}

/* Runs c by a kernel. */
static void run_by(call *c, test_kernel k, int flushing) {
  call d = *c;
  hyperattn_problem *p = &d.problem;
  uint16_t *q16 = halves_of(c->q, p->n_heads * p->n_query * DIM),
           *k16 = halves_of(c->k, p->n_kv_heads * p->n_key * DIM),
           *v16 = halves_of(c->v, p->n_kv_heads * p->n_key * VALUE_DIM);
  d.params.isa = k.isa;
  if (k.dtype == HYPERATTN_BF16) {
    p->query.dtype = p->key.dtype = p->value.dtype = k.dtype;
    p->query.data = q16, p->key.data = k16, p->value.data = v16;
  }
  unsigned before = flushing ? flush_denormals() : 0;
  run(&d);
  if (flushing) restore(before);
  free(q16), free(k16), free(v16);
}

/* ---- Data ---- */

typedef enum data {
  GAUSSIAN,
  EQUAL_KEYS,
  EQUAL_QUERIES,
  EQUAL_ROWS,    /* all queries, keys and values */
  ONE_DIRECTION, /* of all rows, with different lengths: all are in one bucket */
  ZERO_QUERIES,
  ZERO_KEYS,
  ZERO_VALUES,
  LONG_KEY,
  ENDLESS_KEY, /* either it has all the weight, or none */
  DENORMAL_KEYS,
  DENORMAL_QUERIES,
  DENORMAL_VALUES,
  SMALL_VALUES, /* squares are denormal or 0 */
  LARGE_VALUES, /* squares are infinite */
  HUGE_VALUE,
  HUGE_VALUES, /* of both signs */
  HUGE_KEYS,
  N_FINITE,
  INFINITE_VALUES = N_FINITE,
  INFINITE_KEYS,
  INFINITE_QUERIES,
  NAN_VALUES,
  NAN_KEYS,
  NAN_QUERIES,
  N_DATA
} data;

/* Rounds all inputs to bfloat16, so that all kernels compute on the same numbers. */
static void round_inputs(call *c) {
  const hyperattn_problem *p = &c->problem;
  for (int64_t i = 0; i < p->n_query * DIM; i++) c->q[i] = bf16_to_float(float_to_bf16(c->q[i]));
  for (int64_t i = 0; i < p->n_key * DIM; i++) c->k[i] = bf16_to_float(float_to_bf16(c->k[i]));
  for (int64_t i = 0; i < p->n_key * VALUE_DIM; i++) c->v[i] = bf16_to_float(float_to_bf16(c->v[i]));
}

static call new_data(data kind, int64_t n_query, int64_t n_key, int causal) {
  call c = new_call(1, 1, 1, n_query, n_key, DIM, VALUE_DIM, causal, 300 + (uint64_t)kind);
  int64_t q = n_query * DIM, k = n_key * DIM, v = n_key * VALUE_DIM, place = 1 + n_key / 3;
  hyperattn_report *report = (hyperattn_report *)test_alloc(sizeof *report);
  c.problem.report = report;
  if (kind == HUGE_KEYS) c.problem.scale = 1.0f; /* so that no product with the scale is denormal */
  for (int64_t i = 0; i < q; i++) {
    float first = kind == ONE_DIRECTION ? c.k[i % DIM] : c.q[i % DIM], length = 0.3f + (float)(i / DIM % 7);
    if (kind == EQUAL_QUERIES || kind == EQUAL_ROWS) c.q[i] = first;
    if (kind == ONE_DIRECTION) c.q[i] = first * length * 0.1f;
    if (kind == ZERO_QUERIES) c.q[i] = i % 2 ? 0.0f : -0.0f;
    if (kind == DENORMAL_QUERIES) c.q[i] *= 1e-40f;
    if (kind == HUGE_KEYS && i % DIM == 3) c.q[i] = c.q[i] * 1e-37f + (c.q[i] < 0.0f ? -2e-38f : 2e-38f);
    if (kind == INFINITE_QUERIES && i % 97 == 5) c.q[i] = i % 2 ? INFINITY : -INFINITY;
    if (kind == NAN_QUERIES && i % 501 == 300) c.q[i] = NAN;
  }
  for (int64_t i = 0; i < k; i++) {
    float length = 0.3f + (float)(i / DIM % 5);
    if (kind == EQUAL_KEYS || kind == EQUAL_ROWS) c.k[i] = c.k[i % DIM];
    if (kind == ONE_DIRECTION) c.k[i] = c.k[i % DIM] * (i < DIM ? 1.0f : length);
    if (kind == ZERO_KEYS) c.k[i] = i % 3 ? 0.0f : -0.0f;
    if (kind == LONG_KEY && i / DIM == place) c.k[i] *= 300.0f;
    if (kind == ENDLESS_KEY && i / DIM == place) c.k[i] *= 1e30f;
    if (kind == DENORMAL_KEYS) c.k[i] *= 1e-40f;
    if (kind == HUGE_KEYS) c.k[i] = i % DIM == 3 ? (i / DIM % 2 ? 3e38f : -3e38f) : c.k[i];
    if (kind == INFINITE_KEYS && i % 997 == 500) c.k[i] = i % 2 ? INFINITY : -INFINITY;
    if (kind == NAN_KEYS && i == place * DIM + 7) c.k[i] = NAN;
  }
  for (int64_t i = 0; i < v; i++) {
    if (kind == EQUAL_ROWS) c.v[i] = c.v[i % VALUE_DIM];
    if (kind == ZERO_VALUES) c.v[i] = 0.0f;
    if (kind == DENORMAL_VALUES) c.v[i] *= 1e-40f;
    if (kind == SMALL_VALUES) c.v[i] *= 1e-24f;
    if (kind == LARGE_VALUES) c.v[i] *= 1e24f;
    if (kind == HUGE_VALUE && i / VALUE_DIM == place) c.v[i] = i % 2 ? 3e38f : -3e38f;
    if (kind == HUGE_VALUES) c.v[i] = (i / VALUE_DIM % 2 ? 3e38f : -3e38f) / (float)n_key;
    if (kind == INFINITE_VALUES && i / VALUE_DIM % 29 == 11) c.v[i] = i % 2 ? INFINITY : -INFINITY;
    if (kind == NAN_VALUES && i == place * VALUE_DIM + 5) c.v[i] = NAN;
  }
  round_inputs(&c);
  return c;
}

static void free_data(call *c) { free(c->problem.report), free_call(c); }

/* ---- Exact attention ---- */

/* The reference, and bounds of the error of float32, to first order in the errors of scores and weights. */
typedef struct expected {
  double out[VALUE_DIM], lse, out_bound, lse_bound;
  double rounding; /* what rounding weights to bfloat16 adds to out_bound */
} expected;

static expected expect_row(const call *c, int64_t row) {
  const hyperattn_problem *p = &c->problem;
  int64_t n = p->causal ? row + 1 + p->n_key - p->n_query : p->n_key;
  double *s = (double *)test_alloc((size_t)n * 2 * sizeof *s), *size = s + n, high = -INFINITY, sum = 0.0;
  expected e;
  memset(&e, 0, sizeof e);
  for (int64_t j = 0; j < n; j++) {
    s[j] = size[j] = 0.0;
    for (int t = 0; t < DIM; t++) {
      double product = (double)c->q[row * DIM + t] * (double)c->k[j * DIM + t] * reference_scale(p);
      s[j] += product, size[j] += fabs(product);
    }
    if (s[j] > high) high = s[j];
  }
  if (high == -INFINITY) high = 0.0; /* every weight is 0, and so is the result */
  for (int64_t j = 0; j < n; j++) sum += exp(s[j] - high);
  for (int64_t j = 0; j < n; j++) {
    double share = sum == 0.0 ? 0.0 : exp(s[j] - high) / sum;
    double bound = share > 0.0 ? share * (2e-6 + 3e-6 * size[j] + 3e-7 * (high - s[j])) : 0.0, most = 0.0;
    for (int t = 0; t < VALUE_DIM; t++) {
      double v = (double)c->v[j * VALUE_DIM + t];
      e.out[t] += share * v;
      most = fmax(most, fabs(v));
    }
    e.out_bound += bound * most * (2.0 * (1.0 - share)) + 2e-6 * share * most + 2e-38;
    e.lse_bound += bound;
  }
  for (int t = 0; t < VALUE_DIM;
       t++) { /* a weight that is rounded pulls the mean towards its value or away */
    double rounding = 0.0;
    for (int64_t j = 0; j < n; j++) {
      double share = sum == 0.0 ? 0.0 : exp(s[j] - high) / sum;
      if (share > 0.0) rounding += 0x1p-8 * share * fabs((double)c->v[j * VALUE_DIM + t] - e.out[t]);
    }
    e.rounding = fmax(e.rounding, rounding);
  }
  e.lse = high + log(sum);
  e.lse_bound += 2e-6 * fabs(e.lse) + 1e-6;
  free(s);
  return e;
}

/* Where the reference is finite, the result is right; elsewhere it is not finite either. */
static void assert_row(const call *c, int64_t row, const expected *e, test_kernel k, int kind) {
  double lse = (double)c->lse[row], bound = e->out_bound + (k.dtype == HYPERATTN_BF16 ? e->rounding : 0.0);
  for (int t = 0; t < VALUE_DIM; t++) {
    double out = (double)c->out[row * VALUE_DIM + t];
    if (isfinite(e->out[t]) ? fabs(out - e->out[t]) <= bound : !isfinite(out)) continue;
    fail_msg("data %d, %s, row %d: %g is not %g +- %g", kind, hyperattn_isa_name(k.isa), (int)row, out,
             e->out[t], bound);
  }
  if (isfinite(e->lse) ? fabs(lse - e->lse) <= e->lse_bound : !isfinite(lse)) return;
  fail_msg("data %d, %s, row %d: lse %g is not %g +- %g", kind, hyperattn_isa_name(k.isa), (int)row, lse,
           e->lse, e->lse_bound);
}

static expected *expect(const call *c) {
  expected *e = (expected *)test_alloc((size_t)c->problem.n_query * sizeof *e);
  for (int64_t i = 0; i < c->problem.n_query; i++) e[i] = expect_row(c, i);
  return e;
}

static const int64_t shapes[][2] = {{70, 70}, {17, 150}, {130, 131}};

static void test_exact_attention_is_right(void **state) {
  (void)state;
  for (int shape = 0; shape < 3; shape++)
    for (int causal = 0; causal < 2; causal++)
      for (int kind = 0; kind < N_DATA; kind++) {
        call c = new_data((data)kind, shapes[shape][0], shapes[shape][1], causal);
        expected *e = expect(&c);
        c.params.method = HYPERATTN_EXACT;
        for (int k = 0; k < n_kernels; k++)
          for (int flushing = 0; flushing < 2; flushing++) {
            run_by(&c, kernels[k], flushing);
            for (int64_t i = 0; i < c.problem.n_query; i++) assert_row(&c, i, &e[i], kernels[k], kind);
          }
        free(e);
        free_data(&c);
      }
}

/* ---- Approximated attention ---- */

enum { N_PRESETS = 4 };
static hyperattn_params preset(int which) {
  hyperattn_params p = which ? hyperattn_linear_params() : hyperattn_paper_params();
  p = small_params(p, 24, 12, 10);
  p.lsh_bits = 4;
  if (which > 1) p.order = HYPERATTN_ORDER_PROBED;
  if (which > 2) p.tolerance = 0.1f;
  return p;
}

/* The error over all rows, and in *rounding the part that float32 may have in it. */
static double error_of(const call *c, const expected *e, test_kernel k, double *rounding) {
  double difference = 0.0, size = 0.0, bounds = 0.0;
  for (int64_t i = 0; i < c->problem.n_query; i++) {
    double bound = e[i].out_bound + (k.dtype == HYPERATTN_BF16 ? e[i].rounding : 0.0);
    for (int t = 0; t < VALUE_DIM; t++) {
      double d = (double)c->out[i * VALUE_DIM + t] - e[i].out[t];
      difference += d * d, size += e[i].out[t] * e[i].out[t], bounds += bound * bound;
    }
  }
  *rounding = size > 0.0 ? sqrt(bounds / size) : 0.0;
  return size > 0.0 ? sqrt(difference / size) : sqrt(difference);
}

/* Every query of these rectangles is held out, so the report's error is no estimate. But it adds the
   errors of several rectangles as if they were independent; where they are not, the true error may be 3 times
   as large. */
static void assert_as_reported(const call *c, const expected *e, test_kernel k, int which, int kind) {
  double rounding, error = error_of(c, e, k, &rounding), stated = (double)c->problem.report->error;
  for (int64_t i = 0; i < out_size(&c->problem); i++) assert_true(isfinite(c->out[i]));
  for (int64_t i = 0; i < lse_size(&c->problem); i++) assert_true(isfinite(c->lse[i]));
  assert_false(isnan(stated));
  if (!(error <= 3.0 * stated + rounding))
    fail_msg("data %d, preset %d, %s: error %g, %g stated", kind, which, hyperattn_isa_name(k.isa), error,
             stated);
}

static void test_approximations_are_as_wrong_as_reported(void **state) {
  (void)state;
  for (int shape = 0; shape < 3; shape++)
    for (int causal = 0; causal < 2; causal++)
      for (int kind = 0; kind < N_FINITE; kind++) {
        call c = new_data((data)kind, 60 + shapes[shape][0], 60 + shapes[shape][1], causal);
        expected *e = expect(&c);
        for (int which = 0; which < N_PRESETS; which++)
          for (int k = 0; k < n_kernels; k++) {
            c.params = preset(which);
            run_by(&c, kernels[k], k % 2);
            assert_as_reported(&c, e, kernels[k], which, kind);
            double rounding, error = error_of(&c, e, kernels[k], &rounding);
            if (which == 3)
              assert_below(error, 0.2 + rounding); /* the tolerance of 0.1 is for each rectangle */
          }
        free(e);
        free_data(&c);
      }
}

/* One key has nearly all the attention, at every position in turn, and so at every beginning and end of
   segments, blocks, strata, chunks and windows. */
static void test_a_heavy_key_at_every_place(void **state) {
  enum { N = 130 };
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int64_t place = 0; place < N; place += STEP) {
      call c = new_data(GAUSSIAN, N, N, causal);
      for (int i = 0; i < N; i++) c.q[i * DIM + 1] += 4.0f;
      c.k[place * DIM + 1] = 16.0f;
      round_inputs(&c);
      expected *e = expect(&c);
      for (int which = -1; which < N_PRESETS; which++)
        for (int k = 0; k < n_kernels; k++) {
          c.params = preset(which < 0 ? 0 : which);
          if (which < 0) c.params.method = HYPERATTN_EXACT;
          run_by(&c, kernels[k], 0);
          for (int64_t i = 0; i < N && which < 0; i++) assert_row(&c, i, &e[i], kernels[k], GAUSSIAN);
          assert_as_reported(&c, e, kernels[k], which, GAUSSIAN);
        }
      free(e);
      free_data(&c);
    }
}

/* ---- What is not finite ---- */

/* At a fixed number of keys, a key or value that is not finite changes no bit of a row that may not see
   it. With a tolerance, or if it is a query, it may change bits of other rows, but they stay finite. */
static void test_what_is_not_finite_stays_where_it_is_seen(void **state) {
  enum { N = 190 };
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  float *clean = (float *)test_alloc(N * VALUE_DIM * sizeof *clean);
  (void)state;
  for (int which = 0; which < N_PRESETS; which++)
    for (int k = 0; k < n_kernels; k++)
      for (int64_t place = 0; place < N; place += 1 + 9 * STEP)
        for (int kind = 0; kind < 9; kind++) { /* three bad numbers in a query, a key and a value */
          call c = new_data(GAUSSIAN, N, N, 1);
          float *x = kind / 3 == 0   ? c.q + place * DIM
                     : kind / 3 == 1 ? c.k + place * DIM
                                     : c.v + place * VALUE_DIM;
          c.params = preset(which);
          run_by(&c, kernels[k], 0);
          memcpy(clean, c.out, N * VALUE_DIM * sizeof *clean);
          x[(size_t)place % VALUE_DIM] = bad[kind % 3];
          run_by(&c, kernels[k], 0);
          for (int64_t i = 0; i < N * VALUE_DIM; i++) {
            int64_t row = i / VALUE_DIM;
            int is_hidden = kind / 3 ? row < place : row != place, is_bound = which < 3 && kind / 3;
            if (is_hidden && is_bound) assert_memory_equal(&c.out[i], &clean[i], sizeof *clean);
            if (is_hidden) assert_true(isfinite(c.out[i]));
            if (kind / 3 == 2 && i % VALUE_DIM != place % VALUE_DIM) assert_true(isfinite(c.out[i]));
          }
          if (kind / 3 == 2 || kind == 0)
            assert_false(isfinite(c.out[place * VALUE_DIM + place % VALUE_DIM]));
          free_data(&c);
        }
  free(clean);
}

/* The report leaves out a query that is not finite. */
static void test_reports_leave_out_what_is_not_finite(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++) {
    call c = new_data(GAUSSIAN, 190, 190, causal);
    c.params = preset(0);
    run_by(&c, kernels[0], 0);
    double clean = (double)c.problem.report->error;
    c.q[100 * DIM + 3] = NAN;
    run_by(&c, kernels[0], 0);
    assert_below(fabs((double)c.problem.report->error - clean), 0.2 * clean);
    free_data(&c);
  }
}

/* With a sink and a window only, or with nothing, the errors of queries that meet no key of a rectangle
   are reported. */
static void test_what_meets_nothing_is_reported(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int k = 0; k < n_kernels; k++) {
      call c = new_data(GAUSSIAN, 190, 190, causal);
      expected *e = expect(&c);
      const hyperattn_report *r = c.problem.report;
      c.params = preset(0);
      c.params.block_size = c.params.sample_size = 0, c.params.sink_keys = causal, c.params.window = 8;
      run_by(&c, kernels[k], 0);
      if (causal)
        assert_as_reported(&c, e, kernels[k], 0, GAUSSIAN);
      else
        assert_above((double)r->error, 0.999); /* or infinite, where |out| is 0 */
      assert_above((double)r->error, 0.3);
      double masses = (double)(r->block_mass + r->pinned_mass + r->sampled_mass + r->window_mass);
      assert_below(fabs(masses - 1.0), 1e-5);
      free(e);
      free_data(&c);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_exact_attention_is_right),
      cmocka_unit_test(test_approximations_are_as_wrong_as_reported),
      cmocka_unit_test(test_a_heavy_key_at_every_place),
      cmocka_unit_test(test_what_is_not_finite_stays_where_it_is_seen),
      cmocka_unit_test(test_reports_leave_out_what_is_not_finite),
      cmocka_unit_test(test_what_meets_nothing_is_reported),
  };
  return cmocka_run_group_tests_name("extreme_data", tests, set_up, NULL);
}
