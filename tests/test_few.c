/* The arithmetic of few queries by every kernel that this machine has, plain C included, against double
   precision; and how few queries' keys are cut into parts. */
#include <float.h>

#include "support.h"
#include "formats.h"

/* ---- Kernels, and rows for them ---- */

static const hai_few_kernel *kernels[HYPERATTN_ISA_LAST];
static int n_kernels;

static int set_up(void **state) {
  (void)state;
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++) {
    const hai_kernel *kernel = hai_kernel_of((hyperattn_isa)isa);
    int is_new = kernel != NULL;
    for (int k = 0; k < n_kernels; k++) is_new = is_new && kernels[k] != kernel->few;
    if (is_new) kernels[n_kernels++] = kernel->few;
  }
  return 0;
}

/* Those that a kernel reads as they lie. */
static int reads(const hai_few_kernel *kernel, hyperattn_dtype dtype) {
  return dtype == HYPERATTN_F32 || (kernel->step > 1 && dtype != HYPERATTN_CUSTOM);
}

enum { POOL = 70, CHUNK = 64, GUARD = 16, MOST_DIM = 576, FEW_QUERIES = 16, ALIGN = 64 };
static const float guard = -77.0f;

/* Different rows and their numbers. Each lies at an odd multiple of an element's size, the least alignment
   that there may be (Q8_0: of 2 bytes). Nothing lies behind the last. */
typedef struct pool {
  hyperattn_dtype dtype;
  int64_t dim;
  char *memory;
  const char *row[POOL];
  float *numbers; /* [POOL][dim] */
} pool;

static pool new_pool(hyperattn_dtype dtype, int64_t dim, uint64_t *random) {
  pool x = {dtype, dim, NULL, {NULL}, many_gaussians(POOL * dim, splitmix(random))};
  size_t unit = dtype == HYPERATTN_F32 ? 4 : 2, bytes = row_bytes(dtype, dim);
  size_t step = bytes + (bytes / unit % 2 ? 1 : 2) * unit; /* an even number of units */
  x.memory = (char *)test_alloc(unit + (POOL - 1) * step + bytes);
  for (int r = 0; r < POOL; r++) {
    char *at = x.memory + unit + (size_t)r * step;
    encode_row(x.numbers + r * dim, dim, dtype, (unsigned char *)at);
    x.row[r] = at;
  }
  return x;
}
static void free_pool(pool *x) { free(x->memory), free(x->numbers); }

/* A list of rows: any order, with repeats. Rows behind the n that are met are there, but hold no numbers.
   Rows that are to be loaded ahead may be anywhere, even where there is no memory. */
typedef struct chunk {
  const pool *of;
  int row[CHUNK];
  const char *at[CHUNK], *ahead[CHUNK];
  char *bad;
  hai_few_rows rows;
} chunk;

static void open_chunk(chunk *x, const pool *of, int n, uint64_t *random) {
  size_t bytes = row_bytes(of->dtype, of->dim);
  int nowhere = (int)any_of(random, 0, 1);
  x->of = of;
  x->bad = (char *)test_alloc(bytes);
  memset(x->bad, 0xff, bytes);
  for (int j = 0; j < CHUNK; j++) {
    x->row[j] = (int)any_of(random, 0, any_of(random, 0, 3) ? POOL - 1 : 1);
    x->at[j] = j < n ? of->row[x->row[j]] : x->bad;
    x->ahead[j] = nowhere ? (const char *)(uintptr_t)(4096 + j) : x->at[j];
  }
  hai_few_rows rows = {of->dtype, (hai_index)of->dim, x->at, x->ahead, n};
  x->rows = rows;
}
static double number(const chunk *x, int j, int64_t t) {
  return (double)x->of->numbers[x->row[j] * x->of->dim + t];
}

/* n numbers, and a guard behind them; whether the guard is what it was. */
static float *guarded(int64_t n, uint64_t *random) {
  float *x = many_gaussians(n + GUARD, splitmix(random));
  for (int64_t i = n; i < n + GUARD; i++) x[i] = guard;
  return x;
}
static void assert_guard(const float *x, int64_t n) {
  for (int64_t i = n; i < n + GUARD; i++) assert_true(x[i] == guard);
}
static float *copy_of(const float *x, int64_t n) {
  return (float *)memcpy(test_alloc((size_t)(n + GUARD) * sizeof(float)), x,
                         (size_t)(n + GUARD) * sizeof(float));
}

/* Calls `check` with the dtypes that each kernel reads, all counts of rows and of keys that it can meet. Dims
   are all that it takes up to 20 steps; those that are long come with fewer counts of keys. */
typedef void few_check(const hai_few_kernel *kernel, const pool *rows, int n, int n_keys, uint64_t *random);
static void for_each_shape(few_check *check, int least_keys, uint64_t seed) {
  for (int k = 0; k < n_kernels; k++)
    for (int dtype = HYPERATTN_F32; dtype < HYPERATTN_CUSTOM; dtype++)
      for (int64_t steps = 1; steps <= 20 && reads(kernels[k], (hyperattn_dtype)dtype); steps++) {
        int64_t dim = steps * kernels[k]->step <= MOST_DIM ? steps * kernels[k]->step : MOST_DIM;
        pool rows =
            new_pool((hyperattn_dtype)dtype, kernels[k]->step == 1 && steps > 16 ? steps * 28 : dim, &seed);
        for (int n = 1; n <= kernels[k]->most; n++)
          for (int n_keys = least_keys; n_keys <= CHUNK;
               n_keys += steps == 1 || n_keys < 2 ? 1 : (int)any_of(&seed, 7, IS_FAST_BUILD ? 40 : 70))
            check(kernels[k], &rows, n, n_keys, &seed);
        free_pool(&rows);
      }
}

/* ---- Scores ---- */

static void check_scores(const hai_few_kernel *kernel, const pool *rows, int n, int n_keys,
                         uint64_t *random) {
  int64_t dim = rows->dim;
  float *query = guarded(n * dim, random), *score = guarded(n * CHUNK, random), alone[CHUNK + GUARD];
  chunk keys;
  open_chunk(&keys, rows, n_keys, random);
  kernel->scores(&keys.rows, query, n, score);
  assert_guard(score, n * CHUNK);
  for (int i = 0; i < n; i++) {
    for (int j = 0; j < n_keys; j++) {
      double s = 0.0, size = 1e-6;
      for (int64_t t = 0; t < dim; t++)
        s += (double)query[i * dim + t] * number(&keys, j, t),
            size += fabs((double)query[i * dim + t] * number(&keys, j, t));
      assert_below(fabs((double)score[i * CHUNK + j] - s), 2e-6 * size);
    }
    if (n == 1) continue;
    kernel->scores(&keys.rows, query + i * dim, 1, alone);
    assert_memory_equal(alone, score + i * CHUNK, (size_t)n_keys * sizeof(float));
  }
  free(query), free(score), free(keys.bad);
}

static void test_scores(void **state) {
  (void)state;
  for_each_shape(check_scores, 1, 1);
}

/* ---- Values ---- */

static void check_values(const hai_few_kernel *kernel, const pool *rows, int n, int n_keys,
                         uint64_t *random) {
  int64_t dim = rows->dim;
  float *weight = guarded(n * CHUNK, random), *o = guarded(n * dim, random), *before = copy_of(o, n * dim),
        *alone = copy_of(o, n * dim), factor[4];
  chunk values;
  open_chunk(&values, rows, n_keys, random);
  for (int i = 0; i < n; i++) {
    factor[i] = any_of(random, 0, 2) ? (float)splitmix_uniform(random) : (float)any_of(random, 0, 1);
    for (int j = 0; j < CHUNK; j++) weight[i * CHUNK + j] = j < n_keys ? fabsf(weight[i * CHUNK + j]) : NAN;
  }
  kernel->values(&values.rows, weight, factor, n, o);
  assert_guard(o, n * dim);
  for (int i = 0; i < n; i++) {
    for (int64_t t = 0; t < dim; t++) {
      double x = (double)before[i * dim + t] * (double)factor[i], size = fabs(x) + 1e-6;
      for (int j = 0; j < n_keys; j++)
        x += (double)weight[i * CHUNK + j] * number(&values, j, t),
            size += fabs((double)weight[i * CHUNK + j] * number(&values, j, t));
      assert_below(fabs((double)o[i * dim + t] - x), 2e-6 * size);
    }
    kernel->values(&values.rows, weight + i * CHUNK, factor + i, 1, alone + i * dim);
  }
  assert_memory_equal(alone, o, (size_t)(n * dim + GUARD) * sizeof(float));
  free(weight), free(o), free(before), free(alone), free(values.bad);
}

static void test_values(void **state) {
  (void)state;
  for_each_shape(check_values, 0, 2);
}

/* ---- What is not finite ---- */

/* Is x what a sum is that has the product of a factor and of a number that is not finite? */
static int is_product(float x, float bad, float factor) {
  if (isnan(bad) || factor == 0.0f) return isnan(x);
  return x == (factor > 0.0f ? bad : -bad);
}

/* It changes the score of its own key, and its own coordinate of the results; all else keeps its bits. */
static void check_bad_number(const hai_few_kernel *kernel, float bad, uint64_t *random) {
  int64_t dim = kernel->step == 1 ? 50 : kernel->step * any_of(random, 1, 3),
          t = any_of(random, 0, dim - 1);
  int n = (int)any_of(random, 1, kernel->most), n_keys = (int)any_of(random, 1, CHUNK),
      at = (int)any_of(random, 0, n_keys - 1);
  pool rows = new_pool(HYPERATTN_F32, dim, random);
  float *query = gaussians(n * dim, splitmix(random)), *weight = gaussians(n * CHUNK, splitmix(random));
  float *row = (float *)test_alloc((size_t)dim * sizeof(float)), factor[4] = {0.5f, 1.0f, 0.0f, 1.0f};
  float *o[2], score[2][4 * CHUNK];
  chunk x;
  open_chunk(&x, &rows, n_keys, random);
  memcpy(row, x.at[at], (size_t)dim * sizeof(float));
  if (any_of(random, 0, 3) == 0) weight[at] = query[t] = 0.0f;
  for (int i = 0; i < 2; i++) {
    if (i) row[t] = bad, x.at[at] = (const char *)row;
    o[i] = gaussians(n * dim, 5);
    kernel->scores(&x.rows, query, n, score[i]);
    kernel->values(&x.rows, weight, factor, n, o[i]);
  }
  for (int i = 0; i < n; i++) {
    for (int j = 0; j < n_keys; j++)
      if (j == at)
        assert_true(is_product(score[1][i * CHUNK + j], bad, query[i * dim + t]));
      else
        assert_memory_equal(&score[1][i * CHUNK + j], &score[0][i * CHUNK + j], sizeof(float));
    for (int64_t u = 0; u < dim; u++)
      if (u == t)
        assert_true(is_product(o[1][i * dim + u], bad, weight[i * CHUNK + at]));
      else
        assert_memory_equal(&o[1][i * dim + u], &o[0][i * dim + u], sizeof(float));
  }
  free(query), free(weight), free(row), free(o[0]), free(o[1]), free(x.bad);
  free_pool(&rows);
}

static void test_numbers_that_are_not_finite(void **state) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  uint64_t random = 3;
  (void)state;
  for (int i = 0; i < 300; i++) check_bad_number(kernels[i % n_kernels], bad[i / n_kernels % 3], &random);
}

/* ---- Softmax ---- */

/* What n rows hand to softmax: random scores, of which each row has its own kind. */
typedef struct softmax_call {
  int n, n_keys;
  float *score, *log_weight, m[4 + 1], l[4 + 1], factor[4 + 1];
  uint64_t visible[4];
} softmax_call;

enum {
  STAYS,      /* no score is above m */
  RISES,      /* the largest is, by less than HAI_LEAP */
  LEAPS,      /* by more */
  JUST_LEAPS, /* by just that, where there are no log-weights */
  BEGINS,     /* there is no state */
  EMPTY,      /* all scores are -inf */
  HIDDEN,     /* no key is visible */
  HUGE_ONES,  /* scores of +-1e5 */
  NOT_A_NUMBER,
  INFINITE,
  N_KINDS
};

static void fill_row(softmax_call *c, int i, int kind, uint64_t *random) {
  float *score = c->score + i * CHUNK;
  int at = (int)any_of(random, 0, c->n_keys - 1);
  uint64_t all = hai_lane_bits(0, c->n_keys);
  c->visible[i] = any_of(random, 0, 1) ? all : (splitmix(random) & all) | (uint64_t)1 << at;
  c->m[i] = 20.0f, c->l[i] = 1.0f + (float)splitmix_uniform(random);
  for (int j = 0; j < CHUNK;
       j++) { /* all below m, even with log-weights; those that are not met do not count */
    score[j] = -10.0f + 2.0f * test_gaussian(random);
    if (kind == HUGE_ONES) score[j] *= j % 3 ? 1e4f : -1e4f;
    if (kind == EMPTY || (j != at && !any_of(random, 0, 9))) score[j] = -INFINITY;
    if (j >= c->n_keys) score[j] = j % 2 ? 1e30f : NAN;
    if (!(c->visible[i] >> j & 1) && !any_of(random, 0, 2)) score[j] = j % 2 ? NAN : INFINITY;
  }
  if (kind == RISES) score[at] = 25.0f;
  if (kind == LEAPS) score[at] = 40.0f;
  if (kind == JUST_LEAPS) score[at] = 28.0f;
  if (kind == NOT_A_NUMBER) score[at] = NAN;
  if (kind == INFINITE) score[at] = INFINITY;
  if (kind == HIDDEN) c->visible[i] = 0;
  if (kind == BEGINS || any_of(random, 0, 7) == 0) c->m[i] = -INFINITY, c->l[i] = 0.0f;
}

static softmax_call new_softmax_call(const hai_few_kernel *kernel, int n_keys, uint64_t *random) {
  softmax_call c;
  memset(&c, 0, sizeof c);
  c.n = (int)any_of(random, 1, kernel->most), c.n_keys = n_keys;
  c.score = guarded(c.n * CHUNK, random);
  for (int i = 0; i <= 4; i++) c.m[i] = c.l[i] = c.factor[i] = guard;
  if (any_of(random, 0, 1)) c.log_weight = gaussians(CHUNK, splitmix(random));
  for (int i = 0; i < c.n; i++) fill_row(&c, i, (int)any_of(random, 0, N_KINDS - 1), random);
  return c;
}

/* A row's weights, m, l and factor against the formula, as the kernel rounds scores. */
static void check_row_of_softmax(const softmax_call *c, const softmax_call *was, int i) {
  const float *weight = c->score + i * CHUNK, before = was->m[i];
  float high = before, score[CHUNK], want;
  int is_bad = 0;
  for (int j = 0; j < c->n_keys; j++) {
    score[j] = was->score[i * CHUNK + j];
    if (c->log_weight) score[j] = stored(score[j] + c->log_weight[j]);
    if (!(c->visible[i] >> j & 1)) score[j] = -INFINITY;
    if (score[j] > high) high = score[j];
    is_bad |= isnan(score[j]) || score[j] == INFINITY;
  }
  want = high > before && high < before + 8.0f ? stored(high + 0.693147181f) : high;
  assert_true(c->m[i] == want);
  assert_int_equal(isnan(c->l[i]), is_bad);
  if (c->m[i] == before && before != -INFINITY) assert_true(c->factor[i] == 1.0f);
  if (is_bad) return;
  double shift = want == -INFINITY ? 0.0 : (double)want, f = exp((double)before - shift), total = 0.0;
  for (int j = 0; j < c->n_keys; j++) {
    double w = exp((double)score[j] - shift);
    assert_below(fabs((double)weight[j] - w), (4e-6 + 1e-6 * fabs(log(w + 1e-40))) * w + 1e-37);
    if (score[j] == -INFINITY) assert_true(weight[j] == 0.0f);
    total += w;
  }
  if (before != -INFINITY) assert_below(fabs((double)c->factor[i] - f), 4e-6 * f + 1e-37);
  double l = f * (double)was->l[i] + total;
  assert_below(fabs((double)c->l[i] - l), 5e-6 * l + 1e-35);
}

static void run_softmax(const hai_few_kernel *kernel, softmax_call *c, int i, int n) {
  kernel->softmax(c->score + i * CHUNK, n, c->n_keys, c->log_weight, c->visible + i, c->m + i, c->l + i,
                  c->factor + i);
}

/* Rows by themselves, and other scores of keys that are not met, give the same bits. */
static void check_softmax(const hai_few_kernel *kernel, softmax_call *c) {
  softmax_call was = *c, alone = *c;
  was.score = copy_of(c->score, c->n * CHUNK), alone.score = copy_of(c->score, c->n * CHUNK);
  run_softmax(kernel, c, 0, c->n);
  assert_guard(c->score, c->n * CHUNK);
  for (int i = c->n; i <= 4; i++)
    assert_true(c->m[i] == guard && c->l[i] == guard && c->factor[i] == guard);
  for (int i = 0; i < c->n; i++) {
    check_row_of_softmax(c, &was, i);
    for (int j = c->n_keys; j < CHUNK; j++) alone.score[i * CHUNK + j] = 0.0f;
    run_softmax(kernel, &alone, i, 1);
    for (int j = 0; j < c->n_keys; j++)
      if (!isnan(c->score[i * CHUNK + j]))
        assert_memory_equal(&c->score[i * CHUNK + j], &alone.score[i * CHUNK + j], sizeof(float));
    assert_true(c->m[i] == alone.m[i] && (c->l[i] == alone.l[i] || isnan(c->l[i])));
    assert_true(c->factor[i] == alone.factor[i] || isnan(c->factor[i]));
  }
  free(was.score), free(alone.score);
}

static void test_softmax(void **state) {
  uint64_t random = 4;
  (void)state;
  for (int k = 0; k < n_kernels; k++)
    for (int round = 0; round < 20; round++)
      for (int n_keys = 1; n_keys <= CHUNK; n_keys++) {
        softmax_call c = new_softmax_call(kernels[k], n_keys, &random);
        check_softmax(kernels[k], &c);
        free(c.score), free(c.log_weight);
      }
}

/* ---- Parts of the keys ---- */

/* Keys of a part: a power of 2. */
static hai_index part_keys(void) { return (1 << 30) / hai_few_parts_of(1 << 30); }

/* A call of few or of more queries, whose pointers lead nowhere. */
static hyperattn_problem any_shape(uint64_t *random) {
  static const int64_t lengths[] = {1,    64,   2048,  4095,  4096,   4097,   4160,      6144,
                                    6145, 8192, 32768, 70000, 131072, 131073, 0x7fffff00};
  static const char nowhere;
  hyperattn_problem p;
  memset(&p, 0, sizeof p);
  p.batch = any_of(random, 1, 3), p.n_kv_heads = any_of(random, 1, 4);
  p.n_heads = p.n_kv_heads * any_of(random, 1, any_of(random, 1, 40));
  p.n_query = any_of(random, 1, 17), p.n_key = one_of(random, lengths, 15) + any_of(random, 0, 70);
  p.head_dim = any_of(random, 1, MOST_DIM), p.value_dim = any_of(random, 1, MOST_DIM);
  if (any_of(random, 0, 1))
    p.head_dim = (p.head_dim + 31) / 32 * 32, p.value_dim = (p.value_dim + 31) / 32 * 32;
  p.causal = (int)any_of(random, 0, 1);
  p.query.dtype = (hyperattn_dtype)any_of(random, 0, HYPERATTN_BF16);
  p.key.dtype = (hyperattn_dtype)any_of(random, 0, HYPERATTN_CUSTOM);
  p.value.dtype = (hyperattn_dtype)any_of(random, 0, HYPERATTN_CUSTOM);
  p.query.data = p.key.data = p.value.data = &nowhere;
  p.key.widen = p.value.widen = widen_bytes;
  if (any_of(random, 0, 2) == 0) p.mask.data = &nowhere;
  if (any_of(random, 0, 1)) p.sliding_window = any_of(random, 1, any_of(random, 0, 1) ? 300 : p.n_key);
  return p;
}

static hyperattn_params any_params(uint64_t *random) {
  hyperattn_params params = hyperattn_linear_params();
  if (any_of(random, 0, 1)) params.method = HYPERATTN_EXACT;
  do params.isa = (hyperattn_isa)any_of(random, 0, HYPERATTN_ISA_LAST);
  while (!hai_kernel_of(params.isa));
  return params;
}

/* Parts hold what is seen, none of them nothing, and no more than a part may; few keys are one part. What is
   not seen by any row, before the first part, is none. */
static void check_parts(const hai_plan *plan, const hyperattn_params *params) {
  const hyperattn_problem *p = plan->problem;
  hai_index parts = hai_few_parts(plan), begin = hai_few_begin(plan), seen = plan->n_key - begin, first,
            last;
  for (int64_t i = 0; i < p->n_query; i++) {
    hai_seen_keys(plan, (hai_index)i, &first, &last);
    assert_true(begin <= first);
  }
  hai_seen_keys(plan, 0, &first, &last);
  assert_true(begin % CHUNK == 0 && first - begin < CHUNK);
  assert_int_equal(parts > 1, seen > 4096);
  if (parts > 1) assert_true((parts - 1) * part_keys() < seen && seen <= parts * part_keys());
  int64_t rows = p->n_query * p->n_heads / p->n_kv_heads, most = hai_few_most_rows(plan),
          blocks = (rows + most - 1) / most;
  assert_true(most <= rows);
  assert_int_equal(hyperattn_phase_count(p, params), parts > 1 ? 2 : 1);
  assert_int_equal(hyperattn_phase_tasks(p, params, 0), p->batch * p->n_kv_heads * blocks * parts);
  if (parts > 1) assert_int_equal(hyperattn_phase_tasks(p, params, 1), p->batch * p->n_heads);
}

/* Nothing but lengths and the window decides on parts. */
static void check_that_shapes_decide(const hai_plan *plan, const hyperattn_params *params,
                                     uint64_t *random) {
  hyperattn_problem p = any_shape(random);
  hyperattn_params other = any_params(random);
  hai_plan twin;
  p.n_query = plan->n_query, p.n_key = plan->n_key, p.causal = plan->problem->causal;
  p.sliding_window = plan->problem->sliding_window;
  if (params->method != other.method && !hai_sliding(plan)) p.mask.data = p.key.data; /* exact too */
  assert_int_equal(hai_resolve(&twin, &p, &other), HYPERATTN_OK);
  if (!hai_is_few(&twin)) return;
  assert_int_equal(hai_few_parts(&twin), hai_few_parts(plan));
  assert_int_equal(hai_few_begin(&twin), hai_few_begin(plan));
}

/* Each part's state of each query has its place in the workspace's array, and that is as large as callers are
   told. */
static void check_states(const hai_plan *plan, double *least) {
  const hyperattn_problem *p = plan->problem;
  hai_index parts = hai_few_parts(plan), floats = hai_few_dim(plan, plan->value_dim) + 2;
  size_t begin = plan->layout.begin[HAI_ARRAY_FEW], size = plan->layout.stride[HAI_ARRAY_FEW],
         heads = (size_t)(p->batch * p->n_heads),
         bound = HYPERATTN_WORKSPACE_BOUND_FEW(heads, (size_t)p->n_key, (size_t)p->value_dim);
  hai_job job;
  static char base;
  assert_true(heads * size + 63 <= bound || !size);
  double all = (double)(heads * size) / (double)p->n_query * (double)HYPERATTN_BOUND_QUERIES;
  if (size && (double)bound / all < *least) *least = (double)bound / all;
  if (parts == 1) return;
  job.plan = plan, job.base = &base, job.batch = plan->problem->batch - 1;
  uintptr_t end = (uintptr_t)&base + begin + heads * size;
#define STATE(head, part, row) ((uintptr_t)hai_few_state(&job, head, part, row))
  uintptr_t state = STATE(plan->n_heads - 1, parts - 1, plan->n_query - 1);
  assert_true(state + (size_t)floats * sizeof(float) <= end);
  for (hai_index row = 1; row < plan->n_query; row++)
    assert_true(STATE(0, 0, row) - STATE(0, 0, row - 1) >= (size_t)floats * sizeof(float));
  assert_true(STATE(0, 1, 0) - STATE(0, 0, plan->n_query - 1) >= (size_t)floats * sizeof(float));
  if (plan->n_heads > 1) assert_true(STATE(1, 0, 0) - STATE(0, 0, 0) == size);
  job.batch = 0;
  assert_true(STATE(0, 0, 0) == (uintptr_t)&base + begin);
#undef STATE
}

/* The arrays of a task lie apart, within the bytes that a worker has. */
static void check_memory(const hai_plan *plan) {
  size_t bytes = hai_few_bytes(plan), most = plan->layout.scratch_bytes - ALIGN;
  assert_true(bytes <= most);
  char *memory = (char *)test_alloc(bytes + ALIGN), *base = (char *)hai_align(memory);
  hai_job job;
  memset(&job, 0, sizeof job);
  job.plan = plan, job.tile = (hai_tile *)(void *)base;
  const hai_few *few = hai_few_place(&job);
  hai_index rows = hai_few_most_rows(plan), sets = CHUNK * plan->float_kernel->few->most;
  const struct {
    const float *at;
    hai_index floats;
  } part[] = {{(const float *)(const void *)base, (hai_index)(sizeof(hai_few) / sizeof(float))},
              {few->packed, rows * few->key_dim},
              {few->o, (rows + 2) * few->value_dim},
              {few->score, sets},
              {few->bias, sets},
              {few->slope, CHUNK},
              {few->keys.widened, few->keys.widened ? CHUNK * few->key_dim : 0},
              {few->values.widened, few->values.widened ? CHUNK * few->value_dim : 0}};
  assert_true(few->key_dim >= plan->head_dim && few->value_dim >= plan->value_dim);
  for (int i = 0; i < 8; i++) {
    if (!part[i].floats) continue;
    const char *begin = (const char *)part[i].at, *end = (const char *)(part[i].at + part[i].floats);
    assert_true(base <= begin && end <= base + bytes);
    for (int j = 0; j < i; j++)
      assert_true(!part[j].floats || begin >= (const char *)(part[j].at + part[j].floats) ||
                  end <= (const char *)part[j].at);
  }
  free(memory);
}

static void test_sizes(void **state) {
  uint64_t random = 5;
  int n_cut = 0;
  double least = 1e9;
  (void)state;
  for (int round = 0; round < 4000; round++) {
    hyperattn_problem p = any_shape(&random);
    hyperattn_params params = any_params(&random);
    hai_plan plan;
    hyperattn_status status = hai_resolve(&plan, &p, &params);
    if (status == HYPERATTN_ERROR_SIZE_OVERFLOW) continue; /* of a machine with small pointers */
    assert_int_equal(status, HYPERATTN_OK);
    if (p.n_query > FEW_QUERIES) assert_false(hai_is_few(&plan));
    check_memory(&plan);
    if (!hai_is_few(&plan)) continue;
    n_cut += hai_few_parts(&plan) > 1;
    check_parts(&plan, &params);
    check_that_shapes_decide(&plan, &params, &random);
    check_states(&plan, &least);
  }
  assert_true(n_cut > 100);
  assert_below(least, 1.2);
}

/* One kv head gives 16 cores work at 32768 keys; up to 4096 keys there is one phase alone; a window over very
   many keys is no more work than its own length. */
static void test_tasks(void **state) {
  hyperattn_params params = hyperattn_default_params();
  hyperattn_problem p;
  (void)state;
  memset(&p, 0, sizeof p);
  p.batch = p.n_heads = p.n_kv_heads = p.n_query = p.causal = 1, p.head_dim = p.value_dim = 128;
  params.method = HYPERATTN_EXACT;
  p.n_key = 4096;
  assert_int_equal(hyperattn_phase_count(&p, &params), 1);
  assert_int_equal(hyperattn_phase_tasks(&p, &params, 0), 1);
  p.n_key = 32768;
  assert_int_equal(hyperattn_phase_count(&p, &params), 2);
  assert_true(hyperattn_phase_tasks(&p, &params, 0) >= 16);
  p.n_key = 131072, p.sliding_window = 6000;
  assert_in_range(hyperattn_phase_tasks(&p, &params, 0), 2, 4);
  p.sliding_window = 1024;
  assert_int_equal(hyperattn_phase_count(&p, &params), 1);
  assert_int_equal(hyperattn_phase_tasks(&p, &params, 0), 1);
}

/* ---- Merging ---- */

enum { DIM = 5, QUERIES = 3, HEADS = 2, ROWS = HEADS * QUERIES };

/* A part's state of a row: o [dim], m, l. Some parts have seen no key, those of row 1 none; in row 4 the
   first one's scores were all NaN. With `rounding`, the first part's sums are so large that a float loses
   those of the others, one by one. */
static void make_state(float *o, hai_index dim, int row, hai_index part, int rounding, uint64_t *random) {
  int is_first = part == 0, is_empty = !rounding && (row == 1 || !any_of(random, 0, 3));
  memset(o, 0, (size_t)dim * sizeof *o);
  o[dim] = is_empty ? -INFINITY : rounding ? 3.0f : 9.0f * test_gaussian(random);
  o[dim + 1] = is_empty ? 0.0f : rounding && is_first ? 16777216.0f : 1.0f;
  if (!rounding && is_first && row == 4) o[dim] = -INFINITY, o[dim + 1] = NAN, is_empty = 1;
  for (int t = 0; t < DIM && !is_empty; t++)
    if (rounding)
      o[t] = is_first ? 16777216.0f : t && part % CHUNK == 0 ? 1.0f : 0.0f;
    else
      o[t] = test_gaussian(random);
}

static void assert_close(float x, double want, double bound) {
  assert_int_equal(isnan(x), isnan(want));
  if (!isnan(want) && (double)x != want) assert_below(fabs((double)x - want), bound);
}

/* Runs the second phase on states that were made up, and compares with double precision. */
static void check_merge(hyperattn_isa isa, hai_index parts, int rounding, uint64_t *random) {
  call c = new_call(1, HEADS, 1, QUERIES, 1, 3, DIM, 0, 6);
  double out[ROWS][DIM] = {{0}}, l[ROWS] = {0};
  hai_plan plan;
  hai_job job;
  c.params.isa = isa, c.params.method = HYPERATTN_EXACT, c.problem.n_key = (int64_t)parts * part_keys();
  assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
  assert_int_equal(hai_few_parts(&plan), parts);
  void *workspace = test_alloc(hyperattn_workspace_size(&c.problem, &c.params, 1));
  hai_index dim = hai_few_dim(&plan, DIM);
  for (int r = 0; r < ROWS; r++) {
    hai_job_at(&job, &plan, workspace, 1, r / QUERIES, 0);
    for (hai_index part = 0; part < parts; part++) {
      float *o = hai_few_state(&job, r / QUERIES, part, r % QUERIES);
      make_state(o, dim, r, part, rounding, random);
      for (int t = 0; t < DIM; t++) out[r][t] += exp((double)o[dim]) * (double)o[t];
      l[r] += exp((double)o[dim]) * (double)o[dim + 1];
    }
  }
  for (int64_t task = 0; task < HEADS; task++) hai_run(&plan, workspace, 1, task, 0);
  for (int r = 0; r < ROWS; r++) {
    assert_close(c.lse[r], log(l[r]), 1e-5);
    for (int t = 0; t < DIM; t++)
      assert_close(c.out[r * DIM + t], l[r] == 0.0 ? 0.0 : out[r][t] / l[r], rounding ? 3e-7 : 3e-6);
  }
  free(workspace);
  free_call(&c);
}

static void test_merge(void **state) {
  uint64_t random = 7;
  (void)state;
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++) {
    if (!hai_kernel_of((hyperattn_isa)isa)) continue;
    for (hai_index parts = 3; parts<200; parts += parts> 62 && parts < 66 ? 1 : 10)
      check_merge((hyperattn_isa)isa, parts, 0, &random);
    if (FLT_EVAL_METHOD == 0) /* x87 rounds a sum only when it is stored, and finds no loss */
      check_merge((hyperattn_isa)isa, 1300, 1, &random);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_scores),
      cmocka_unit_test(test_values),
      cmocka_unit_test(test_numbers_that_are_not_finite),
      cmocka_unit_test(test_softmax),
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_tasks),
      cmocka_unit_test(test_merge),
  };
  return cmocka_run_group_tests_name("few", tests, set_up, NULL);
}
