/* The key index: what grows, what it tells of keys, and what queries that look keys up in it get. */
#include "support.h"
#include "same.h"

enum { BLOCK = 64, LEAST = 1024 };

/* ---- Indexes ---- */

typedef struct kept_index {
  hyperattn_index *index;
  char *memory;
  size_t size;
} kept_index;

/* One for c's keys, of any alignment, with room for `capacity` keys. */
static kept_index new_index(const hyperattn_problem *p, int64_t capacity, int shift) {
  hyperattn_problem shape = *p;
  kept_index x;
  shape.n_key = capacity;
  x.size = hyperattn_index_size(&shape);
  assert_true(x.size > 0);
  x.memory = (char *)test_alloc(x.size + 64);
  forget(x.memory, x.size + 64);
  assert_int_equal(hyperattn_index_init(&x.index, &shape, x.memory + shift, x.size), HYPERATTN_OK);
  assert_int_equal(hyperattn_index_length(x.index), 0);
  return x;
}

static void append(const kept_index *x, const hyperattn_problem *p, int64_t n_key) {
  hyperattn_problem some = *p;
  some.n_key = n_key, some.n_query = 0;
  assert_int_equal(hyperattn_index_append(x->index, &some), HYPERATTN_OK);
  assert_int_equal(hyperattn_index_length(x->index), n_key);
}
static void truncate_to(const kept_index *x, const hyperattn_problem *p, int64_t n_key) {
  hyperattn_problem some = *p;
  some.n_key = n_key, some.n_query = 0, some.key.data = NULL;
  assert_int_equal(hyperattn_index_truncate(x->index, &some), HYPERATTN_OK);
  assert_int_equal(hyperattn_index_length(x->index), n_key);
}

/* The same blocks, for n_key keys. */
static void assert_same_index(const kept_index *x, const kept_index *y, const hyperattn_problem *p,
                              int64_t n_key) {
  size_t bytes = hai_block_layout_of((hai_index)p->head_dim).size;
  for (hai_index i = 0; i < p->batch * p->n_kv_heads; i++)
    for (hai_index b = 0; b < n_key / BLOCK; b++)
      assert_memory_equal(hai_index_block_at(x->index, i, b), hai_index_block_at(y->index, i, b), bytes);
}

/* ---- Growing ---- */

/* However keys were appended, dropped and appended anew, by heads or not, from any rows: the same bits. */
static void test_cuts_change_nothing(void **state) {
  static const int64_t dims[] = {1, 3, 16, 17, 31, 40, 64, 80, 96, 100, 128};
  uint64_t random = 5;
  (void)state;
  for (int i = 0; i < 66; i++) {
    any_call a;
    memset(&a, 0, sizeof a);
    hyperattn_problem *p = &a.c.problem;
    p->batch = any_of(&random, 1, 2), p->n_kv_heads = any_of(&random, 1, 3), p->n_heads = p->n_kv_heads;
    p->n_query = 1, p->n_key = any_of(&random, 1, 700), p->head_dim = dims[i % 11], p->value_dim = 1;
    if (i % 2) p->key.dtype = (hyperattn_dtype)any_of(&random, HYPERATTN_F32, HYPERATTN_CUSTOM);
    a.c.params = hyperattn_default_params();
    fill_any_call(&a, i % 3 ? 0 : PAGES, &random);
    kept_index once = new_index(p, p->n_key, 0), cut = new_index(p, p->n_key + any_of(&random, 0, 200), 7);
    append(&once, p, p->n_key);
    for (int64_t n = 0; n < p->n_key;) {
      int64_t to = any_of(&random, n, p->n_key);
      if (any_of(&random, 0, 2) == 0) {
        hyperattn_problem some = *p;
        some.n_key = to;
        for (int64_t h = p->batch * p->n_kv_heads; h-- > 0;)
          if (any_of(&random, 0, 3)) hyperattn_index_append_head(cut.index, &some, h);
      }
      append(&cut, p, n = to);
      if (!any_of(&random, 0, 3)) truncate_to(&cut, p, n = any_of(&random, 0, n));
      if (!any_of(&random, 0, 5)) n = p->n_key, append(&cut, p, n);
    }
    assert_same_index(&once, &cut, p, p->n_key);
    free(once.memory), free(cut.memory);
    free_any_call(&a);
  }
}

/* Estimates by each way of this machine are those of plain C, and near the products themselves: their error has
   the deviation that 2 bits cost a normal distribution, a third of that of what the keys differ from their mean. */
static void test_estimates(void **state) {
  static const int64_t dims[] = {16, 17, 64, 80, 100, 128, 576};
  (void)state;
  for (int i = 0; i < 7; i++) {
    hai_index dim = (hai_index)dims[i];
    call c = new_call(1, 1, 1, 1, 16 * BLOCK, dim, 1, 0, 9 + (uint64_t)i);
    for (int64_t t = 0; t < c.problem.n_key * dim; t++) c.k[t] += t % dim == 3 ? 9.0f : 0.0f;
    kept_index x = new_index(&c.problem, c.problem.n_key, 0);
    append(&x, &c.problem, c.problem.n_key);
    float *packed = (float *)test_alloc((size_t)dim * sizeof *packed);
    int16_t score[2 * BLOCK], plain[BLOCK];
    int32_t *word = (int32_t *)test_alloc(1024 * sizeof *word);
    hai_plan plan;
    memset(&plan, 0, sizeof plan);
    plan.head_dim = dim;
    memcpy(packed, c.q, (size_t)dim * sizeof *packed);
    hai_index_query query = hai_look_encode(&plan, packed, word), two[2];
    query.more = 0.0f, two[0] = two[1] = query; /* without what is added for errors */
    hai_block_layout layout = hai_block_layout_of(dim);
    double squares = 0.0, norm = 0.0, bias = 0.0;
    for (int64_t t = 0; t < dim; t++) norm += (double)c.q[t] * c.q[t];
    for (hai_index b = 0; b < 16; b++) {
      hai_index_block block;
      assert_true(hai_index_read(&layout, hai_index_block_at(x.index, 0, b), &block));
      hai_weights weights[2], expected = {(int)b * 50 - 400, {0.0f}};
      hai_index_guess_one(&two[0], &block, plain, &expected);
      for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++)
        for (int least = 0; least < 2 && hai_kernel_of((hyperattn_isa)isa); least++) {
          const hai_scan_kernel *k =
              hai_scan_kernel_by(hai_kernel_of((hyperattn_isa)isa), least ? 0 : hai_cpu());
          int16_t *scores[2] = {score, score + BLOCK};
          memset(weights, 0, sizeof weights);
          weights[0].from = weights[1].from = expected.from;
          k->guess(two, least + 1, &block, scores, weights);
          assert_true(!least || !memcmp(score, score + BLOCK, BLOCK * sizeof *score));
          double sum = 0.0;
          for (int j = 0; j < BLOCK; j++) {
            assert_true(abs(score[j] - plain[j]) <= 1);  // halves may be rounded either way
            sum += fmin((double)hai_step_weight(score[j] - expected.from),
                        ldexp(1.0, 100));  // as they are cut
          }
          assert_below(fabs((double)hai_lanes_sum(weights[least].lane) - sum), 1e-5 * sum);
          k->weigh(score, &weights[0]);
          assert_below(fabs((double)hai_lanes_sum(weights[0].lane) - 2 * sum), 2e-5 * sum);
        }
      for (int j = 0; j < BLOCK; j++) {
        double product = 0.0;
        for (int64_t t = 0; t < dim; t++) product += (double)c.q[t] * c.k[(b * BLOCK + j) * dim + t];
        double error =
            plain[j] / (0.8 * 8.0 / log(2.0)) - product;  // estimates count 0.8, in eighths of octaves
        squares += error * error, bias += error;
      }
    }
    /* a residual's coordinates have the deviation 1, and lose 0.1188 of their variance, 1 / (1 - 0.1188) in all */
    assert_below(sqrt(squares / c.problem.n_key / norm), dim < 40 ? 0.6 : 0.42);
    assert_below(fabs(bias / c.problem.n_key) / sqrt(norm), 0.05);
    free(packed), free(word), free(x.memory);
    free_call(&c);
  }
}

/* ---- Mistakes ---- */

static void test_mistakes(void **state) {
  (void)state;
  call c = new_call(2, 4, 2, 1, 200, 24, 8, 1, 3);
  hyperattn_problem *p = &c.problem, bad = *p;
  kept_index x = new_index(p, 200, 3);
  append(&x, p, 130);
  char *before = (char *)test_alloc(x.size + 64);
  memcpy(before, x.memory, x.size + 64);
  hyperattn_index *none = NULL;
  assert_int_equal(hyperattn_index_init(NULL, p, x.memory, x.size), HYPERATTN_ERROR_NULL_INDEX);
  assert_int_equal(hyperattn_index_init(&none, p, NULL, x.size), HYPERATTN_ERROR_NULL_INDEX);
  assert_int_equal(hyperattn_index_init(&none, NULL, x.memory, x.size), HYPERATTN_ERROR_NULL_PROBLEM);
  assert_int_equal(hyperattn_index_init(&none, p, x.memory, x.size - 1), HYPERATTN_ERROR_INDEX_SIZE);
  assert_null(none);
  assert_int_equal(hyperattn_index_append(NULL, p), HYPERATTN_ERROR_NULL_INDEX);
  assert_int_equal(hyperattn_index_append(x.index, NULL), HYPERATTN_ERROR_NULL_PROBLEM);
  assert_int_equal(hyperattn_index_truncate(NULL, p), HYPERATTN_ERROR_NULL_INDEX);
  bad.n_key = 129; /* fewer than before */
  assert_int_equal(hyperattn_index_append(x.index, &bad), HYPERATTN_ERROR_INDEX);
  bad.n_key = 131; /* more than before */
  assert_int_equal(hyperattn_index_truncate(x.index, &bad), HYPERATTN_ERROR_INDEX);
  bad.n_key = 201; /* more than there is room for */
  assert_int_equal(hyperattn_index_append(x.index, &bad), HYPERATTN_ERROR_INDEX);
  bad = *p, bad.head_dim = 23;
  assert_int_equal(hyperattn_index_append(x.index, &bad), HYPERATTN_ERROR_INDEX);
  bad = *p, bad.batch = 1;
  assert_int_equal(hyperattn_index_append(x.index, &bad), HYPERATTN_ERROR_INDEX);
  bad = *p, bad.n_kv_heads = 1;
  assert_int_equal(hyperattn_index_append(x.index, &bad), HYPERATTN_ERROR_INDEX);
  bad = *p, bad.head_dim = 0;
  assert_int_equal(hyperattn_index_append(x.index, &bad), HYPERATTN_ERROR_HEAD_DIM);
  assert_true(hyperattn_index_size(&bad) == 0 && hyperattn_index_size(NULL) == 0);
  bad = *p, bad.key.data = NULL;
  assert_int_equal(hyperattn_index_append(x.index, &bad), HYPERATTN_ERROR_NULL_KEY);
  bad = *p, bad.key.data = x.memory + 64 - (uintptr_t)x.memory % 64;
  assert_int_equal(hyperattn_index_append(x.index, &bad), HYPERATTN_ERROR_OVERLAP);
  hyperattn_index_append_head(x.index, p, 4);
  hyperattn_index_append_head(x.index, p, -1);
  hyperattn_index_append_head(x.index, &bad, 0);
  hyperattn_index_append_head(NULL, p, 0);
  assert_memory_equal(before, x.memory, x.size + 64);
  bad = *p, bad.batch = bad.n_kv_heads = bad.n_heads = 1 << 20, bad.n_key = INT64_MAX / 4;
  assert_true(hyperattn_index_size(&bad) == 0);
  free(before), free(x.memory);
  free_call(&c);
}

/* A call with an index that is damaged, moved, or another's, is refused before anything is written. */
static void test_unsound_indexes(void **state) {
  (void)state;
  call c = new_call(1, 2, 1, 1, 2048, 16, 8, 1, 3);
  hyperattn_problem *p = &c.problem;
  kept_index x = new_index(p, 2048, 0), y = new_index(p, 4096, 0);
  c.params = hyperattn_default_params();
  append(&x, p, 2048);
  p->index = x.index;
  size_t bytes = hyperattn_workspace_size(p, &c.params, 1);
  void *workspace = test_alloc(bytes);
  assert_int_equal(hyperattn_forward(p, &c.params, workspace, bytes), HYPERATTN_OK);
  forget_results(&c);
  float *before = (float *)test_alloc(16 * sizeof *before);
  memcpy(before, c.out, 16 * sizeof *before);
  for (size_t i = 0; i < offsetof(hyperattn_index, self) + sizeof(void *);
       i++) { /* each byte of what it says of itself */
    char *at = (char *)x.index + i;
    *at = (char)(*at ^ 4);
    assert_int_equal(hyperattn_forward(p, &c.params, workspace, bytes), HYPERATTN_ERROR_INDEX);
    assert_int_equal(hyperattn_index_append(x.index, p), HYPERATTN_ERROR_INDEX);
    assert_int_equal(hyperattn_index_length(x.index), 0);
    *at = (char)(*at ^ 4);
  }
  assert_int_equal(hyperattn_index_length((hyperattn_index *)((char *)x.index + 1)), 0);
  hyperattn_problem longer = *p;
  longer.n_key = 1024 + LEAST;
  longer.n_key--; /* the index knows more */
  assert_int_equal(hyperattn_forward(&longer, &c.params, workspace, bytes), HYPERATTN_ERROR_INDEX);
  longer.n_key = 2048, longer.index = y.index, longer.head_dim = 15;
  assert_int_equal(hyperattn_forward(&longer, &c.params, workspace, bytes), HYPERATTN_ERROR_INDEX);
  longer.head_dim = 16, longer.out.data = (char *)y.index + 128;
  assert_int_equal(hyperattn_forward(&longer, &c.params, workspace, bytes), HYPERATTN_ERROR_OVERLAP);
  assert_memory_equal(before, c.out, 16 * sizeof *before);
  free(before), free(workspace), free(x.memory), free(y.memory);
  free_call(&c);
}

/* Whatever bytes the blocks hold, nothing is read outside, and the result is one. */
static void test_damaged_blocks(void **state) {
  uint64_t random = 8;
  (void)state;
  for (int i = 0; i < 20; i++) {
    call c = new_call(1, 2, 1, 2, 1500, 16, 8, 1, 3);
    kept_index x = new_index(&c.problem, 1500, 0);
    append(&x, &c.problem, 1500);
    size_t block = hai_block_layout_of(16).size;
    for (hai_index b = 0; b < 1500 / BLOCK; b++)
      for (size_t at = 0; at < block; at++)
        if (i % 2 || !any_of(&random, 0, 30))
          hai_index_block_at(x.index, 0, b)[at] = (uint8_t)splitmix(&random);
    c.params = hyperattn_default_params(), c.problem.index = x.index;
    run(&c);
    for (int64_t t = 0; t < out_size(&c.problem); t++) assert_true(isfinite(c.out[t]));
    free(x.memory);
    free_call(&c);
  }
}

/* ---- Queries ---- */

/* Keys of few queries that differ: scores have the deviation `sharp`. */
static call new_lookup(int64_t heads, int64_t kv_heads, int64_t n_query, int64_t n_key, float sharp,
                       uint64_t seed) {
  call c = new_call(1, heads, kv_heads, n_query, n_key, 32, 16, 1, seed);
  for (int64_t i = 0; i < heads * n_query * 32; i++) c.q[i] *= sharp;
  c.params = hyperattn_default_params();
  c.params.window = 64;
  return c;
}

/* Each query's error is what it says, and within the tolerance; every key that was met is in the report. */
static void test_errors(void **state) {
  static const float tolerances[] = {0.05f, 0.1f, 0.2f};
  static const int64_t heads[3][2] = {{4, 2}, {4, 4}, {6, 1}};
  double ratios[24 * 12], over = 0.0, twice = 0.0;
  int n = 0, rows = 0;
  (void)state;
  for (int i = 0; i < 24; i++) {
    int64_t n_heads = heads[i / 3 % 3][0];
    call c =
        new_lookup(n_heads, heads[i / 3 % 3][1], 2, 6000 + i * 50, 1.5f + (float)(i % 4), 31 + (uint64_t)i);
    hyperattn_report report[6];
    float error[12];
    for (int64_t t = 0; t < c.problem.n_kv_heads * c.problem.n_key * 16; t++) c.v[t] += 0.7f;
    kept_index x = new_index(&c.problem, 7200, 0);
    append(&x, &c.problem, 6000);
    c.params.tolerance = tolerances[i % 3];
    c.problem.index = x.index, c.problem.report = report, c.problem.query_error = error;
    double *lse, *out = reference_of(&c, &lse);
    run(&c);
    for (int r = 0; r < n_heads * 2; r++, rows++) {
      double e = relative_error(c.out + r * 16, out + r * 16, 16);
      if (error[r] > 0.0f) ratios[n++] = e / error[r];
      over += e > c.params.tolerance, twice += e > 2.0 * c.params.tolerance;
      assert_true(error[r] <= c.params.tolerance && error[r] <= report[r / 2].max_error);
    }
    for (int h = 0; h < n_heads; h++) {
      assert_true(report[h].keys_per_query < 6000.0f + (float)i * 50.0f &&
                  report[h].keys_per_query > 64.0f);
      assert_below(
          fabs((double)report[h].window_mass + report[h].sampled_mass + report[h].pinned_mass - 1.0),
          report[h].exact > 0.0f ? 1.0 : 1e-4);
    }
    free(out), free(x.memory);
    free_call(&c);
  }
  double sum = 0.0;
  for (int i = 0; i < n; i++) sum += ratios[i] * ratios[i];
  assert_above(n, rows / 3);
  assert_above(sqrt(sum / n), 0.8);
  assert_below(sqrt(sum / n), 1.15);
  assert_below(over / rows, 0.02);
  assert_below(twice, 0.0);
}

/* A call of one query in which key `needle`, so many times as long as others, has nearly all of the attention; and
   where `far`, a key a hundred times as long, which the query does not care for. */
static call new_needle(int64_t needle, float longer, int far, uint64_t seed) {
  call c = new_lookup(1, 1, 1, 5000, 1.0f, seed);
  double norm = 0.0, product = 0.0;
  float *key = c.k + needle * 32, *other = c.k + 777 * 32;
  for (int t = 0; t < 32; t++) norm += (double)c.q[t] * c.q[t];
  for (int t = 0; t < 32; t++) key[t] *= longer, product += (double)c.q[t] * key[t];
  for (int t = 0; t < 32; t++) key[t] += c.q[t] * (float)((sqrt(32.0) * 12.0 - product) / norm);
  product = 0.0;
  for (int t = 0; t < 32 && far; t++) product += (double)c.q[t] * other[t];
  for (int t = 0; t < 32 && far; t++) other[t] = 100.0f * (other[t] - c.q[t] * (float)(product / norm));
  return c;
}

/* Runs c over an index of all its keys, and frees both: result and lse are as near to exact ones as this. */
static void check_looked_up(call *c, double bound) {
  float error;
  kept_index x = new_index(&c->problem, c->problem.n_key, 0);
  append(&x, &c->problem, c->problem.n_key);
  c->problem.index = x.index, c->problem.query_error = &error;
  double *lse, *out = reference_of(c, &lse);
  run(c);
  assert_below(relative_error(c->out, out, 16), bound);
  assert_below(fabs(c->lse[0] - lse[0]), bound);
  free(out), free(x.memory);
  free_call(c);
}

/* One key has most of a query's attention, anywhere, short or long, beside others that are long: none is lost. */
static void test_needles(void **state) {
  static const float longer[] = {1.0f, 3.0f, 6.0f, 12.0f, 20.0f};
  uint64_t random = 77;
  (void)state;
  for (int i = 0; i < (IS_FAST_BUILD ? 200 : 40); i++) {
    int64_t needle = any_of(&random, 64, 4900);
    call c = new_needle(needle == 777 ? 778 : needle, longer[i % 5], i / 5 % 2, 900 + (uint64_t)i);
    for (int64_t t = 0; t < c.problem.n_key * 16; t++)
      c.v[t] += i / 10 % 2 ? 2.0f : 0.0f;  // errors of the rest are small
    check_looked_up(&c, 0.15);
  }
}

/* Scores do not change where keys are multiplied by what queries are divided by, whatever squares that makes, and
   neither is a needle lost, nor an error told too small, by values of any scale. */
static void test_scales(void **state) {
  static const float scales[] = {1e-36f, 1e-22f, 1e-19f, 1e-10f, 1e10f, 1e18f, 1e20f, 1e30f};
  (void)state;
  for (int i = 0; i < 32; i++) {
    call c = new_needle(1000 + i * 100, 1.0f, 0, 40 + (uint64_t)i);
    float scale = scales[i % 8];
    for (int64_t t = 0; t < c.problem.n_key * 32; t++) c.k[t] *= scale;
    for (int t = 0; t < 32; t++) c.q[t] /= scale;
    for (int64_t t = 0; t < c.problem.n_key * 16; t++) c.v[t] *= i / 8 % 2 ? 1e-21f : 1.0f;
    check_looked_up(&c, 0.15);
  }
}

/* Scores beyond what 16 bits (3549 nats) and 32 bits hold of estimates. All keys of a block are equal, blocks have
   three values, and keys have one coordinate, so means are exact: the result is that of block 77, the highest. */
static void test_far_scores(void **state) {
  static const double scores[] = {-3700.0, -3400.0, 3400.0, 3700.0, 3e5, 3e8};
  (void)state;
  for (int i = 0; i < 6; i++) {
    call c = new_call(1, 1, 1, 1, 16384, 64, 16, 1, 6);
    for (int t = 0; t < 64; t++) c.q[t] = t ? 0.0f : 8.0f;
    for (int64_t key = 0; key < c.problem.n_key; key++) {
      double lower = fabs(scores[i]) * (key / BLOCK == 77 ? 0.0 : key / BLOCK < 240 ? 0.02 : 0.3);
      for (int t = 0; t < 64; t++) c.k[key * 64 + t] = t ? 0.0f : (float)(scores[i] - lower);
    }
    c.params = hyperattn_default_params(), c.params.window = 64;
    kept_index x = new_index(&c.problem, c.problem.n_key, 0);
    append(&x, &c.problem, c.problem.n_key);
    c.problem.index = x.index;
    double *lse, *out = reference_of(&c, &lse);
    run(&c);
    assert_below(relative_error(c.out, out, 16), 0.1);
    assert_below(fabs(c.lse[0] - lse[0]), 0.1 + 1e-6 * fabs(scores[i]));
    free(out), free(x.memory);
    free_call(&c);
  }
}

/* A key raised by 20 to 60 nats: the query meets fewer than 600 keys and is not exact, although the weights of all
   other keys vanish. */
static void test_sharp_queries(void **state) {
  (void)state;
  for (int i = 0; i < 24; i++) {
    call c = new_lookup(1, 1, 1, 8256, 1.0f, 300 + (uint64_t)i);
    int64_t at = 1000 + i * 37;
    double norm = 0.0, nats = (i % 3 + 1) * 20.0 + i / 24.0;
    hyperattn_report report;
    for (int t = 0; t < 32; t++) norm += (double)c.q[t] * c.q[t];
    for (int t = 0; t < 32; t++) c.k[at * 32 + t] += c.q[t] * (float)(sqrt(32.0) * nats / norm);
    for (int64_t t = 0; t < c.problem.n_key * 16; t++) c.v[t] += 1.0f;
    c.problem.report = &report;
    check_looked_up(&c, 0.1);
    assert_true(report.exact == 0.0f && report.keys_per_query < 600.0f);
  }
}

/* Scores near -3550 nats, the lowest that 16 bits hold: a key 15 nats above the others is met, with a tolerance and
   with a fixed budget. */
static void test_low_scores(void **state) {
  (void)state;
  for (int seed = 0; seed < 60; seed++) {
    call c = new_lookup(1, 1, 1, 5000, 1.0f, 5);
    for (int t = 0; t < 32; t++) c.q[t] = t == 0 ? -100.0f : t == 1 ? 50.0f : 0.0f;
    for (int64_t key = 0; key < c.problem.n_key; key++)
      for (int t = 0; t < 32; t++)
        c.k[key * 32 + t] = t == 0   ? 35.2f + (float)(seed % 20) * 0.04f
                            : t == 1 ? 0.0f
                                     : 0.004f * c.k[key * 32 + t];
    c.k[1000 * 32 + 1] = 0.3f;
    for (int t = 0; t < 16; t++) c.v[1000 * 16 + t] = 4.0f;
    c.problem.scale = 1.0f, c.params.seed = (uint64_t)seed;
    if (seed % 2) c.params.tolerance = 0.0f;
    check_looked_up(&c, 0.3);
  }
}

/* The keys of a block that are kept are the same by each way of this machine, and with the probability that levels
   call for; so are those at least at a level. */
static void test_kept_keys(void **state) {
  enum { BLOCKS = 40, N = 3 };
  static int16_t score[N][BLOCKS * BLOCK];
  float place[BLOCK], shift[BLOCKS];
  uint64_t kept[BLOCKS], expected[BLOCKS], random = 5;
  (void)state;
  for (int round = 0; round < 60; round++) {
    hai_levels levels = {{score[0], score[1], score[2]}, {0}, round % 3 + 1, place, shift};
    int count = 0, at = any_of(&random, 0, 2) * 32700 - 32700;
    double sum = 0.0;
    for (int j = 0; j < BLOCK; j++) place[j] = (float)((j * 11 + round) % BLOCK) / BLOCK;
    for (int b = 0; b < BLOCKS; b++)
      shift[b] = ((float)any_of(&random, 0, (1 << 22) - 1) + 0.5f) / (1 << 22);
    for (int i = 0; i < N; i++) {
      levels.level[i] = at + any_of(&random, -60, 60);
      for (int j = 0; j < BLOCKS * BLOCK; j++) {
        int x = any_of(&random, 0, 40) ? levels.level[i] - any_of(&random, -1, 80)
                                       : any_of(&random, -32768, 32767);
        score[i][j] = (int16_t)(x < -32768 ? -32768 : x > 32767 ? 32767 : x);
      }
    }
    hai_index_keep_scalar(&levels, BLOCKS, expected);
    for (int b = 0; b < BLOCKS; b++)
      for (int j = 0; j < BLOCK; j++) {
        double most = 0.0;
        for (int i = 0; i < levels.n; i++)
          most = fmax(most, pow(2.0, (score[i][b * BLOCK + j] - levels.level[i]) / 8.0));
        sum += fmin(most, 1.0), count += (int)(expected[b] >> j & 1);
      }
    assert_below(fabs(count / sum - 1.0), 0.2);  // a weight is at most 0.062 above a power of 2
    for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++)
      for (int least = 0; least < 2 && hai_kernel_of((hyperattn_isa)isa); least++) {
        const hai_scan_kernel *k =
            hai_scan_kernel_by(hai_kernel_of((hyperattn_isa)isa), least ? 0 : hai_cpu());
        k->keep(&levels, BLOCKS, kept);
        assert_memory_equal(kept, expected, sizeof kept);
        k->at_least(score[0], BLOCKS, levels.level[0], kept);
        for (int j = 0; j < BLOCKS * BLOCK; j++)
          assert_int_equal(kept[j / BLOCK] >> j % BLOCK & 1, score[0][j] >= levels.level[0]);
      }
  }
}

/* A finite query that turns into infinities, and spans of which no key has an estimate. */
static void test_odd_spans(void **state) {
  (void)state;
  for (int i = 0; i < 4; i++) {
    call c = new_lookup(1, 1, 1, 16384, 1.0f, 5);
    if (i == 0)
      for (int t = 0; t < 32; t++) c.q[t] = t % 3 ? 2e38f : -2e38f;
    if (i == 0)
      for (int64_t t = 0; t < c.problem.n_key * 32; t++) c.k[t] *= 1e-38f;
    if (i == 0) c.problem.scale = 1.0f;
    if (i >= 1)
      c.params.sink_keys = i == 1 ? 8192 : 8150; /* the first span, or nearly, and low scores behind it */
    for (int64_t key = 0; key < c.problem.n_key && i >= 2; key++)
      for (int t = 0; t < 32; t++) c.k[key * 32 + t] -= c.q[t] * (i == 2 ? 20.0f : 40.0f);
    c.problem.causal = i % 2;
    check_looked_up(&c, 0.2);
  }
}

/* Levels: as many keys are kept as the budget says, on average, but where the others weigh next to nothing. Estimates
   are made ones, from even to peaked, some spans far below the others; every 97th key has none. */
static void test_levels(void **state) {
  (void)state;
  enum { BLOCKS = 300, SPAN = 128, SPANS = 3, NONE = -32768 };  // a span is 128 blocks
  static int16_t score[BLOCKS * BLOCK];
  const double spreads[] = {0.0, 5.0, 20.0, 80.0, 400.0}, budgets[] = {1.0, 20.0, 256.0, 3000.0};
  for (int shift = -32700; shift <= 32767; shift += 32733)
    for (int spread = 0; spread < 5; spread++)
      for (int budget = 0; budget < 4; budget++)
        for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++) {
          hai_look_span spans[SPANS];
          hai_pick pick;
          if (!hai_kernel_of((hyperattn_isa)isa)) continue;
          memset(&pick, 0, sizeof pick);
          pick.look.kernel = hai_scan_kernel_by(hai_kernel_of((hyperattn_isa)isa), hai_cpu());
          pick.look.end = BLOCKS * BLOCK, pick.look.score = score, pick.look.span = spans;
          double total = 0.0, kept = 0.0, rest = 0.0,
                 near = 0.0;  // near: those within a step of the level
          for (int j = 0; j < BLOCKS * BLOCK; j++) {
            double u = (double)(hai_random(1, 2, 3, (uint64_t)j) >> 40) / 16777216.0;
            int span = j / BLOCK / SPAN;
            double x = shift +
                       (span == 1   ? 0.0
                        : span == 0 ? -20.0
                                    : -spreads[spread]) -
                       spreads[spread] * u * u * 4.0;
            score[j] = (int16_t)(j % 97 == 0 ? NONE : x < -32767.0 ? -32767.0 : x);
            if (j % 97) total += (double)hai_step_weight(score[j] - hai_step_octave(shift));
          }
          for (int span = 0; span < SPANS; span++) {
            hai_weights weights;
            memset(&weights, 0, sizeof weights);
            weights.from = hai_step_octave(shift + 3 * span);
            hai_index_query query = {NULL, 0, 0, 0, 1.0f, 0.0f};
            int end = (span + 1) * SPAN < BLOCKS ? (span + 1) * SPAN : BLOCKS;
            for (int b = span * SPAN; b < end && budget % 2; b++)
              pick.look.kernel->weigh(score + b * BLOCK,
                                      &weights);  // in even ones hai_look_whole has to sum them anew
            spans[span] = hai_look_whole(&pick.look, &query, &weights, span * SPAN, end);
          }
          hai_plan plan;
          float zero = 0.0f;
          memset(&plan, 0, sizeof plan);
          plan.head_dim = 1;
          assert_true(hai_pick_total(&plan, &pick, &zero));
          double unit =
              (double)hai_step_weight(hai_step_octave(shift) - pick.high);  // of what is summed up here
          assert_below(fabs((double)pick.total / unit / total - 1.0), 1e-3);
          pick.budget = (float)budgets[budget];
          hai_pick_level(&pick);
          for (int j = 0; j < BLOCKS * BLOCK; j++) {
            double w = (double)hai_step_weight(score[j] - hai_step_octave(shift)),
                   chance = (double)hai_step_weight(score[j] - pick.level);
            if (j % 97 == 0) continue;
            kept += chance < 1.0 ? chance : 1.0;
            rest += score[j] < pick.level ? w : 0.0;
            near += abs(score[j] - pick.level) <= 1 ? w : 0.0;
          }
          assert_below((rest - near - (double)pick.rest / unit) / total, 1e-3);
          assert_below(((double)pick.rest / unit - rest - near) / total, 1e-3);
          if (kept < 0.8 * budgets[budget]) assert_below(rest / total, 2e-5);
          assert_below(kept, 1.25 * budgets[budget] + 2.0);
        }
}

/* At a fixed budget, e^lse and e^lse out are right on average over seeds. */
static void test_unbiased(void **state) {
  enum { SEEDS = IS_FAST_BUILD ? 1500 : 60, HEADS = 4 };
  /* Few keys; as many as a query may keep; heads that keep together about as many */
  static const int64_t cases[][2] = {{1, 24}, {1, 565}, {HEADS, 230}};
  (void)state;
  for (int i = 0; i < 3; i++) {
    int64_t heads = cases[i][0];
    call c = new_lookup(heads, 1, 1, 3000, 2.0f, 5);
    kept_index x = new_index(&c.problem, 3000, 0);
    append(&x, &c.problem, 3000);
    c.params.tolerance = 0.0f, c.params.sample_size = cases[i][1], c.problem.index = x.index;
    double *lse, *out = reference_of(&c, &lse), sum[HEADS * 17] = {0}, squares[HEADS * 17] = {0};
    for (int s = 0; s < SEEDS; s++) {
      c.params.seed = (uint64_t)s * 7919 + 1;
      run(&c);
      for (int64_t h = 0; h < heads; h++)
        for (int t = 0; t < 17; t++) {
          double l = exp(c.lse[h] - lse[h]), y = t < 16 ? l * c.out[h * 16 + t] - out[h * 16 + t] : l - 1.0;
          sum[h * 17 + t] += y, squares[h * 17 + t] += y * y;
        }
    }
    for (int64_t t = 0; t < heads * 17; t++) {
      double mean = sum[t] / SEEDS, deviation = sqrt((squares[t] / SEEDS - mean * mean) / SEEDS);
      assert_above(deviation, 1e-6);
      assert_below(fabs(mean) / deviation, 4.5);
    }
    free(out), free(x.memory);
    free_call(&c);
  }
}

/* Where nothing is looked up, every bit is that of exact attention: an index that knows too few keys, a
   tolerance that no sample meets, a mask, a sliding window that hides keys, the method EXACT. */
static void test_exact_where_it_must_be(void **state) {
  (void)state;
  for (int i = 0; i < 5; i++) {
    call c = new_lookup(4, 2, 2, 5000, 3.0f, 5 + (uint64_t)i);
    kept_index x = new_index(&c.problem, 5000, 0);
    append(&x, &c.problem, i == 0 ? LEAST : 5000);
    float *mask = (float *)test_alloc(5000 * sizeof *mask), error[8], *exact;
    memset(mask, 0, 5000 * sizeof *mask);
    c.problem.query_error = error;
    if (i == 1) c.params.tolerance = 1e-6f;
    if (i == 2) c.problem.mask.data = mask;
    if (i == 3) c.problem.sliding_window = 4000;
    hyperattn_method method = c.params.method;
    c.params.method = HYPERATTN_EXACT;
    run(&c);
    exact = (float *)test_alloc((size_t)out_size(&c.problem) * sizeof *exact);
    memcpy(exact, c.out, (size_t)out_size(&c.problem) * sizeof *exact);
    c.problem.index = x.index;
    if (i < 4) c.params.method = method;
    forget_results(&c);
    run(&c);
    assert_memory_equal(exact, c.out, (size_t)out_size(&c.problem) * sizeof *exact);
    for (int r = 0; r < 8; r++) assert_true(error[r] == 0.0f);
    free(mask), free(exact), free(x.memory);
    free_call(&c);
  }
}

/* Keys that are not finite are met, as exact attention meets them; a query that is not finite is exact's. */
static void test_not_finite(void **state) {
  (void)state;
  for (int i = 0; i < 4; i++) {
    call c = new_lookup(1, 1, 1, 5000, 1.0f, 5), d;
    if (i == 0) c.k[2000 * 32 + 5] = INFINITY;
    if (i == 1) c.k[2000 * 32 + 5] = NAN;
    if (i == 2) c.k[2000 * 32 + 5] = 3e38f, c.k[2001 * 32 + 6] = -3e38f;
    if (i == 3) c.q[3] = NAN;
    kept_index x = new_index(&c.problem, 5000, 0);
    append(&x, &c.problem, 5000);
    d = c;
    new_results(&d);
    d.params.method = HYPERATTN_EXACT;
    run(&d);
    c.problem.index = x.index;
    run(&c);
    for (int t = 0; t < 16; t++)
      assert_true(isnan(d.out[t]) ? isnan(c.out[t]) : fabs((double)c.out[t] - d.out[t]) < 0.3);
    free(x.memory), free(d.out), free(d.lse);
    free_call(&c);
  }
}

/* A block whose estimates tell nothing, in a span without others: its keys are met for certain, by the query for
   which they are and by those that meet them with it. */
static void test_spans_without_estimates(void **state) {
  (void)state;
  for (int i = 0; i < 4; i++) {
    int64_t n_heads = i % 2 ? 4 : 1, loud = 8192;
    call c = new_lookup(n_heads, 1, 1, loud + 128, 1.0f, 90 + (uint64_t)i);
    kept_index x = new_index(&c.problem, 9000, 0);
    for (int64_t j = 0; j < c.problem.n_key; j++)
      for (int t = 0; t < 32; t++) {
        float *key = &c.k[j * 32 + t];
        *key = j / 64 != loud / 64 ? *key : t < 16 ? 0.0f : 20.0f * *key;
        if (t < 16) c.v[j * 16 + t] = 0.3f * c.v[j * 16 + t] + (j / 64 == loud / 64 ? -4.0f : 1.0f);
      }
    for (int64_t t = 0; t < n_heads * 32; t++) c.q[t] *= t % 32 >= 16 ? 0.0f : t < 32 ? 1.5f : 0.01f;
    append(&x, &c.problem, c.problem.n_key);
    c.params.tolerance = i < 2 ? 0.0f : 0.1f, c.problem.index = x.index;
    double *lse, *out = reference_of(&c, &lse);
    run(&c);
    for (int64_t h = 0; h < n_heads; h++)
      assert_below(relative_error(c.out + h * 16, out + h * 16, 16), 0.1);
    free(out), free(x.memory);
    free_call(&c);
  }
}

/* A query that kept no key, and one whose result's square overflows, do not tell that they are right. */
static void test_errors_that_cannot_be_told(void **state) {
  (void)state;
  for (int i = 0; i < (IS_FAST_BUILD ? 120 : 20); i++) {
    call c = new_lookup(1, 1, 1, 5000, i % 4 ? 0.002f : 0.3f, 300 + (uint64_t)i);
    kept_index x = new_index(&c.problem, 5000, 0);
    for (int64_t t = 0; t < 5000 * 16; t++)
      c.v[t] = i % 4 ? (t < 64 ? -3.0f : 1.0f) + 0.1f * c.v[t] : 6e18f * (1.0f + 0.5f * c.v[t]);
    append(&x, &c.problem, 5000);
    c.problem.causal = 0, c.problem.index = x.index, c.params.seed = (uint64_t)i;
    c.params.sample_size = i % 4 ? 1 + i % 3 : 8, c.params.tolerance = i % 4 ? 0.1f : 0.02f;
    double *lse, *out = reference_of(&c, &lse);
    run(&c);
    assert_below(relative_error(c.out, out, 16), i % 4 ? 0.5 : 0.04);
    free(out), free(x.memory);
    free_call(&c);
  }
}

/* Workers, heads that share keys, slices of heads, and where rows lie change no bit. */
/* Errors that stay unknown, however many keys are kept, where nearly all estimates are too low to have a weight, so that
   no budget keeps more: a query meets every key in the end. */
static void test_no_budget_tells_more(void **state) {
  (void)state;
  call c = new_lookup(1, 1, 1, 5000, 0.3f, 400);
  kept_index x = new_index(&c.problem, 5000, 0);
  hyperattn_report report;
  for (int64_t t = 0; t < 5000 * 32; t++)
    c.k[t] = 0.02f * c.k[t] + (t % 32 ? 0.0f : t / 32 / BLOCK == 7 ? 3.0f : -3.0f);
  c.q[0] = 200.0f;
  for (int64_t t = 0; t < 5000 * 16; t++) c.v[t] = 6e18f * (1.0f + 0.5f * c.v[t]);
  append(&x, &c.problem, 5000);
  c.problem.causal = 0, c.problem.index = x.index, c.problem.report = &report;
  double *lse, *out = reference_of(&c, &lse);
  run(&c);
  assert_below(relative_error(c.out, out, 16), 1e-4);
  assert_below(0.99, report.exact);
  free(out), free(x.memory);
  free_call(&c);
}

static void test_same_bits(void **state) {
  uint64_t random = 12;
  (void)state;
  for (int i = 0; i < 10; i++) {
    call c = new_lookup(4, 2, 1 + i % 3, 5000 + i, 2.0f, 50 + (uint64_t)i), d;
    hyperattn_report report[4];
    float error[12];
    kept_index x = new_index(&c.problem, 5100, 0);
    append(&x, &c.problem, 4990);
    c.problem.index = x.index, c.problem.report = report, c.problem.query_error = error;
    if (i % 2) c.params.tolerance = 0.03f;
    if (i == 4) c.params = judged_params();
    if (i == 4) c.problem.query_error = NULL;
    run(&c);
    d = c;
    new_results(&d);
    run_shuffled(&d, (int)any_of(&random, 2, 5));
    assert_same_bits(&c, &d);
    run_phases(&d, (int)any_of(&random, 1, 5));
    assert_same_bits(&c, &d);
    /* kv head 1 alone, by an index of its own */
    hyperattn_problem part = c.problem;
    part.n_heads = 2, part.n_kv_heads = 1, part.report = NULL, part.query_error = NULL;
    part.query.data = c.q + 2 * c.problem.n_query * 32, part.key.data = c.k + c.problem.n_key * 32;
    part.value.data = c.v + c.problem.n_key * 16;
    kept_index y = new_index(&part, 5000 + i, 5);
    append(&y, &part, 4990);
    part.index = y.index;
    d.problem = part, d.problem.out.data = d.out, d.problem.lse = d.lse;
    run(&d);
    int64_t half = out_size(&part);
    assert_memory_equal(d.out, c.out + half, (size_t)half * sizeof *d.out);
    free(x.memory), free(y.memory), free(d.out), free(d.lse);
    free_call(&c);
  }
}

/* Sizes never fall as queries and keys become more, with an index too; and the constant expression bounds an
   index's. */
static void test_sizes(void **state) {
  uint64_t random = 4;
  (void)state;
  for (int i = 0; i < 12; i++) {
    hyperattn_problem p = nowhere(0, i % 2);
    hyperattn_params a = i % 3 ? hyperattn_default_params() : judged_params();
    p.index = (hyperattn_index *)(uintptr_t)4096; /* sizes do not read it */
    if (i % 4 == 1) p.report = (hyperattn_report *)(uintptr_t)4096;
    if (i % 3 == 1) p.query.dtype = p.key.dtype = p.value.dtype = HYPERATTN_BF16;
    check_sizes_never_fall(p, &a, i % 2 ? 6000 : 40000, &random);
  }
  for (int i = 0; i < 300; i++) {
    hyperattn_problem p = nowhere(0, 0);
    p.batch = any_of(&random, 1, 3), p.n_kv_heads = any_of(&random, 1, 4), p.n_heads = p.n_kv_heads;
    p.head_dim = any_of(&random, 1, 576), p.n_key = any_of(&random, 0, 3000);
    assert_true(HYPERATTN_INDEX_BOUND((size_t)(p.batch * p.n_kv_heads), (size_t)p.n_key,
                                      (size_t)p.head_dim) >= hyperattn_index_size(&p));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_cuts_change_nothing),
      cmocka_unit_test(test_estimates),
      cmocka_unit_test(test_mistakes),
      cmocka_unit_test(test_unsound_indexes),
      cmocka_unit_test(test_damaged_blocks),
      cmocka_unit_test(test_errors),
      cmocka_unit_test(test_needles),
      cmocka_unit_test(test_scales),
      cmocka_unit_test(test_far_scores),
      cmocka_unit_test(test_sharp_queries),
      cmocka_unit_test(test_low_scores),
      cmocka_unit_test(test_kept_keys),
      cmocka_unit_test(test_odd_spans),
      cmocka_unit_test(test_levels),
      cmocka_unit_test(test_unbiased),
      cmocka_unit_test(test_exact_where_it_must_be),
      cmocka_unit_test(test_not_finite),
      cmocka_unit_test(test_spans_without_estimates),
      cmocka_unit_test(test_errors_that_cannot_be_told),
      cmocka_unit_test(test_no_budget_tells_more),
      cmocka_unit_test(test_same_bits),
      cmocka_unit_test(test_sizes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
