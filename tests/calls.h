/* What all tests share: data, calls, and attention in double precision, written plainly. A test that
   includes only this uses the library as a user does, and links it. support.h is for tests that call inner
   functions. */
#ifndef HYPERATTN_TESTS_CALLS_H
#define HYPERATTN_TESTS_CALLS_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hyperattn.h"

#include "../examples/splitmix.h"
#include "reference.h"

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif

#if defined(__has_feature)
#define TEST_HAS_FEATURE(x) __has_feature(x)
#else
#define TEST_HAS_FEATURE(x) 0
#endif
#if TEST_HAS_FEATURE(memory_sanitizer)
#include <sanitizer/msan_interface.h>
#define TEST_NEVER_WRITTEN(memory, bytes) __msan_allocated_memory(memory, bytes)
#else
#define TEST_NEVER_WRITTEN(memory, bytes) ((void)0)
#endif

/* 1 where code is optimised and has no sanitizer that makes it many times slower: tests may then do more. */
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !TEST_HAS_FEATURE(address_sanitizer) && !TEST_HAS_FEATURE(memory_sanitizer)
enum { IS_FAST_BUILD = 1 };
#else
enum { IS_FAST_BUILD = 0 };
#endif

/* ---- Kernels ---- */

static int has_kernel(hyperattn_isa isa) {
  hyperattn_problem nothing = {0};
  hyperattn_params params = hyperattn_default_params();
  nothing.batch = nothing.n_heads = nothing.n_kv_heads = nothing.head_dim = nothing.value_dim = 1;
  params.isa = isa;
  return hyperattn_check(&nothing, &params, NULL, 0, 1) == HYPERATTN_OK;
}

/* HYPERATTN_TEST_ISA=avx2 makes the presets name that kernel, so that the same tests can run with each
   kernel. If there is no such kernel, the program ends as skipped. */
static hyperattn_params by_kernel(hyperattn_params params) {
  const char *name = getenv("HYPERATTN_TEST_ISA");
  if (!name) return params;
  int isa = HYPERATTN_ISA_AUTO;
  while (strcmp(name, hyperattn_isa_name((hyperattn_isa)isa)))
    if (isa++ == HYPERATTN_ISA_LAST) fail_msg("HYPERATTN_TEST_ISA: no kernel is named %s", name);
  params.isa = (hyperattn_isa)isa;
  if (has_kernel(params.isa)) return params;
  printf("SKIP: this machine or build has no %s\n", name);
  exit(77);
}
#define hyperattn_default_params() by_kernel(hyperattn_default_params())
#define hyperattn_linear_params() by_kernel(hyperattn_linear_params())
#define hyperattn_paper_params() by_kernel(hyperattn_paper_params())

/* HYPERATTN_HYPER as real models need it, to a tolerance: whatever the default preset is. */
static hyperattn_params judged_params(void) {
  hyperattn_params p = hyperattn_linear_params();
  p.tolerance = 0.1f;
  return p;
}

/* ---- Data ---- */

/* x rounded to float: x87 and others compute with more digits, and some compilers keep them. */
static float stored(float x) {
  volatile float in_memory = x;
  return in_memory;
}
static float test_gaussian(uint64_t *state) {
  double u = splitmix_uniform(state), v = splitmix_uniform(state);
  return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}
static void *test_alloc(size_t bytes) {
  void *p = malloc(bytes ? bytes : 1);
  assert_non_null(p);
  return p;
}
/* Fills memory whose contents must not matter with NaN; to MemorySanitizer it then counts as never
   written. */
static void forget(void *memory, size_t bytes) {
  memset(memory, 0xff, bytes);
  TEST_NEVER_WRITTEN(memory, bytes);
}
static float *gaussians(int64_t n, uint64_t seed) {
  float *x = (float *)test_alloc((size_t)n * sizeof(float));
  for (int64_t i = 0; i < n; i++) x[i] = test_gaussian(&seed);
  return x;
}

/* The same for many: after PERIOD of them, a prime, they repeat, which is many times as fast. */
static float *many_gaussians(int64_t n, uint64_t seed) {
  enum { PERIOD = 65521 };
  if (n <= PERIOD) return gaussians(n, seed);
  float *x = (float *)test_alloc((size_t)n * sizeof(float)), *first = gaussians(PERIOD, seed);
  for (int64_t i = 0; i < n; i += PERIOD)
    memcpy(x + i, first, (size_t)(n - i < PERIOD ? n - i : PERIOD) * sizeof(float));
  free(first);
  return x;
}

static int64_t any_of(uint64_t *random, int64_t from, int64_t to) {
  return from + (int64_t)(splitmix(random) % (uint64_t)(to - from + 1));
}
static int64_t one_of(uint64_t *random, const int64_t *list, int64_t n) {
  return list[any_of(random, 0, n - 1)];
}

/* ---- Calls ---- */

/* A problem with contiguous tensors of its own, filled with Gaussians. */
typedef struct call {
  hyperattn_problem problem;
  hyperattn_params params;
  float *q, *k, *v, *out, *lse;
} call;

static void set_strides(ptrdiff_t *batch, ptrdiff_t *head, ptrdiff_t *row, int64_t heads, int64_t rows,
                        int64_t dim) {
  *row = (ptrdiff_t)dim;
  *head = (ptrdiff_t)(rows * dim);
  *batch = (ptrdiff_t)(heads * rows * dim);
}

static void bind(call *c) { /* contiguous strides for the shape in c->problem */
  hyperattn_problem *p = &c->problem;
  p->query.data = c->q, p->key.data = c->k, p->value.data = c->v, p->out.data = c->out, p->lse = c->lse;
  set_strides(&p->query.batch_stride, &p->query.head_stride, &p->query.row_stride, p->n_heads, p->n_query,
              p->head_dim);
  set_strides(&p->key.batch_stride, &p->key.head_stride, &p->key.row_stride, p->n_kv_heads, p->n_key,
              p->head_dim);
  set_strides(&p->value.batch_stride, &p->value.head_stride, &p->value.row_stride, p->n_kv_heads, p->n_key,
              p->value_dim);
  set_strides(&p->out.batch_stride, &p->out.head_stride, &p->out.row_stride, p->n_heads, p->n_query,
              p->value_dim);
}

static int64_t out_size(const hyperattn_problem *p) {
  return p->batch * p->n_heads * p->n_query * p->value_dim;
}
static int64_t lse_size(const hyperattn_problem *p) { return p->batch * p->n_heads * p->n_query; }

/* NaN everywhere, so that what is not written shows. */
static void forget_results(const call *c) {
  memset(c->out, 0xff, (size_t)out_size(&c->problem) * sizeof(float));
  memset(c->lse, 0xff, (size_t)lse_size(&c->problem) * sizeof(float));
}

/* Contiguous results of its own. */
static void new_results(call *c) {
  hyperattn_problem *p = &c->problem;
  c->out = (float *)test_alloc((size_t)out_size(p) * sizeof(float));
  c->lse = (float *)test_alloc((size_t)lse_size(p) * sizeof(float));
  forget_results(c);
  p->out.data = c->out, p->lse = c->lse;
  set_strides(&p->out.batch_stride, &p->out.head_stride, &p->out.row_stride, p->n_heads, p->n_query,
              p->value_dim);
}

static call new_call(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n_query, int64_t n_key,
                     int64_t head_dim, int64_t value_dim, int causal, uint64_t seed) {
  call c;
  memset(&c, 0, sizeof c);
  c.problem.batch = batch, c.problem.n_heads = heads, c.problem.n_kv_heads = kv_heads;
  c.problem.n_query = n_query, c.problem.n_key = n_key;
  c.problem.head_dim = head_dim, c.problem.value_dim = value_dim, c.problem.causal = causal;
  c.q = gaussians(batch * heads * n_query * head_dim, seed * 3 + 1);
  c.k = gaussians(batch * kv_heads * n_key * head_dim, seed * 3 + 2);
  c.v = gaussians(batch * kv_heads * n_key * value_dim, seed * 3 + 3);
  new_results(&c);
  bind(&c);
  c.params = judged_params();
  return c;
}

static void assert_same_bits(const call *c, const call *d) {
  assert_memory_equal(c->out, d->out, (size_t)out_size(&c->problem) * sizeof(float));
  assert_memory_equal(c->lse, d->lse, (size_t)lse_size(&c->problem) * sizeof(float));
}

static void free_call(call *c) { free(c->q), free(c->k), free(c->v), free(c->out), free(c->lse); }

/* Parameters so small that a few hundred tokens are approximated. */
static hyperattn_params small_params(hyperattn_params p, int64_t min_seq_len, int64_t block,
                                     int64_t sample) {
  p.min_seq_len = min_seq_len, p.block_size = block, p.sample_size = sample;
  if (p.window) p.window = 16;
  if (p.probe_queries) p.probe_queries = 8, p.heavy_keys = 4;
  if (p.query_group) p.query_group = 8, p.key_group = 4;
  p.tolerance = 0.0f; /* test_judge.c tests judging */
  if (p.order == HYPERATTN_ORDER_PROBED) p.order = HYPERATTN_ORDER_POSITION;
  return p;
}

static void run(call *c) {
  size_t bytes = hyperattn_workspace_size(&c->problem, &c->params, 1);
  void *workspace = test_alloc(bytes);
  forget(workspace, bytes);
  assert_int_equal(hyperattn_forward(&c->problem, &c->params, workspace, bytes), HYPERATTN_OK);
  free(workspace);
}

/* ---- Workers ---- */

/* Runs the tasks from the last to the first, with workers in turn, as an engine might. */
typedef struct shuffled {
  int n_workers;
  int64_t calls;
} shuffled;
static void shuffled_for(void *context, int64_t n_tasks, hyperattn_task task, void *arg) {
  shuffled *s = (shuffled *)context;
  s->calls++;
  for (int64_t i = n_tasks; i-- > 0;) task(arg, i, (int)(i % s->n_workers));
}

/* Runs c on so many workers. */
static void run_shuffled(call *c, int workers) {
  shuffled s = {workers, 0};
  hyperattn_parallel parallel = {workers, &s, shuffled_for};
  size_t bytes = hyperattn_workspace_size(&c->problem, &c->params, workers);
  void *workspace = test_alloc(bytes);
  forget(workspace, bytes);
  forget_results(c);
  assert_int_equal(hyperattn_forward_parallel(&c->problem, &c->params, &parallel, workspace, bytes),
                   HYPERATTN_OK);
  assert_true(s.calls > 0);
  free(workspace);
}

/* The same in phases, each from its last task to its first. */
static void run_phases(call *c, int workers) {
  size_t bytes = hyperattn_workspace_size(&c->problem, &c->params, workers);
  void *workspace = test_alloc(bytes);
  forget(workspace, bytes);
  forget_results(c);
  for (int phase = 0; phase < hyperattn_phase_count(&c->problem, &c->params); phase++)
    for (int64_t i = hyperattn_phase_tasks(&c->problem, &c->params, phase); i-- > 0;)
      hyperattn_run_task(&c->problem, &c->params, workspace, phase, i, (int)(i * 5 % workers));
  free(workspace);
}

/* ---- Measures ---- */

static int holds_key(const int32_t *list, int64_t n, int32_t key) {
  for (int64_t i = 0; i < n; i++)
    if (list[i] == key) return 1;
  return 0;
}

/* |x - y| / |y|, Frobenius norms. With NaN or infinity in x or y it is NaN or infinite. */
static double relative_error(const float *x, const double *y, int64_t n) {
  double difference = 0.0, size = 0.0;
  for (int64_t i = 0; i < n; i++) {
    difference += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    size += y[i] * y[i];
  }
  return sqrt(difference) / (size > 0.0 ? sqrt(size) : 1.0);
}

/* max |x - y| / max(1, |y|); equal infinities are equal, NaN gives infinity. */
static double lse_error(const float *x, const double *y, int64_t n) {
  double most = 0.0;
  for (int64_t i = 0; i < n; i++) {
    double e = (double)x[i] == y[i] ? 0.0 : fabs((double)x[i] - y[i]) / fmax(1.0, fabs(y[i]));
    if (!(e <= most)) most = isnan(e) ? INFINITY : e;
  }
  return most;
}

#define assert_below(x, bound)                                                    \
  do {                                                                            \
    double x_ = (x);                                                              \
    if (!(x_ <= (bound))) fail_msg("%s = %g, above %g", #x, x_, (double)(bound)); \
  } while (0)
#define assert_above(x, bound)                                                    \
  do {                                                                            \
    double x_ = (x);                                                              \
    if (!(x_ >= (bound))) fail_msg("%s = %g, below %g", #x, x_, (double)(bound)); \
  } while (0)

static void assert_near(const call *c, const double *out, const double *lse, double bound) {
  assert_below(relative_error(c->out, out, out_size(&c->problem)), bound);
  assert_below(lse_error(c->lse, lse, lse_size(&c->problem)), bound);
}

/* What exact attention gives c; the caller frees out, and lse lies in the same memory. */
static double *reference_of(const call *c, double **lse) {
  int64_t n = out_size(&c->problem);
  double *out = (double *)test_alloc((size_t)(n + lse_size(&c->problem)) * sizeof(double));
  reference(&c->problem, out, *lse = out + n);
  return out;
}

/* Runs c and compares out and lse with exact attention. */
static void assert_exact(call *c, double bound) {
  double *lse, *out = reference_of(c, &lse);
  run(c);
  assert_near(c, out, lse, bound);
  free(out);
}

#endif
