/* Few queries over few or many keys, as decoding and the checking of drafts have them, in exact attention, by
   every kernel that this machine has. How keys are cut into parts, and which arithmetic takes few queries, is
   the library's own affair: nothing here depends on it. */
#include "../examples/amx.h"
#include "calls.h"
#include "same.h"

/* ---- Kernels ---- */

static hyperattn_isa isas[HYPERATTN_ISA_LAST];
static int n_isas;

static int set_up(void **state) {
  (void)state;
  ask_for_amx();
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++)
    if (has_kernel((hyperattn_isa)isa)) isas[n_isas++] = (hyperattn_isa)isa;
  return 0;
}

/* ---- Calls ---- */

typedef struct shape {
  int64_t n_query, n_key, n_kv_heads, group, head_dim, value_dim;
} shape;

/* One sequence, of which shape and dtypes are set, exact. */
static any_call new_decode(shape s, hyperattn_dtype query, hyperattn_dtype key, hyperattn_dtype value) {
  any_call a;
  hyperattn_problem *p = &a.c.problem;
  memset(&a, 0, sizeof a);
  a.c.params = hyperattn_default_params();
  a.c.params.method = HYPERATTN_EXACT;
  p->batch = 1, p->n_kv_heads = s.n_kv_heads, p->n_heads = s.n_kv_heads * s.group;
  p->n_query = s.n_query, p->n_key = s.n_key, p->head_dim = s.head_dim, p->value_dim = s.value_dim;
  p->query.dtype = query, p->key.dtype = key, p->value.dtype = value;
  return a;
}

static const int64_t queries[] = {1, 2, 3, 5, 8, 16, 17}, groups[] = {1, 2, 3, 4, 5, 7, 8, 12},
                     dims[] = {1, 3, 8, 15, 16, 17, 33, 40, 64, 80, 96, 100, 128},
                     lengths[] = {1,   2,   3,    4,    5,    63,   64,   65,   127,  128,
                                  129, 200, 2047, 2049, 4095, 4096, 4097, 6144, 6145, 9001};
enum { N_QUERIES = 7, N_GROUPS = 8, N_DIMS = 13, N_LENGTHS = 20 };

/* Dims that keep a call short, by the numbers of keys and values and by products; and results of so many
   numbers that they are not all near 0 by chance, where a relative error means little. */
static void draw_dims(shape *s, uint64_t *random) {
  int64_t most = 200000 / s->n_key / s->n_kv_heads, rows = s->n_query * s->group * s->n_kv_heads;
  if (most > 3000000 / s->n_key / rows) most = 3000000 / s->n_key / rows;
  do s->head_dim = one_of(random, dims, N_DIMS), s->value_dim = one_of(random, dims, N_DIMS);
  while ((s->head_dim + s->value_dim > most && s->head_dim + s->value_dim > 4) || rows * s->value_dim < 6);
}

/* A call with any fields. */
static any_call any_decode(unsigned fields, uint64_t *random) {
  shape s = {one_of(random, queries, N_QUERIES),
             one_of(random, lengths, N_LENGTHS),
             any_of(random, 1, 2),
             one_of(random, groups, N_GROUPS),
             1,
             1};
  draw_dims(&s, random);
  any_call a = new_decode(s, HYPERATTN_F32, HYPERATTN_F32, HYPERATTN_F32);
  hyperattn_problem *p = &a.c.problem;
  if (fields & FORMATS) any_dtypes(p, random);
  p->batch = s.n_key < 4000 ? any_of(random, 1, 2) : 1;
  p->causal = (int)any_of(random, 0, 1);
  fill_any_call(&a, fields, random);
  if (fields & WINDOW && any_of(random, 0, 1)) p->sliding_window = any_of(random, 1, 70);
  if (!any_of(random, 0, 7)) p->query.row_stride = 0;
  if (!any_of(random, 0, 7)) p->key.row_stride = p->value.head_stride = 0;
  return a;
}

/* `bound`, or what the rounding of weights to bfloat16 may cost a result of few numbers. */
static double bound_or_bf16(const hyperattn_problem *p, double bound) {
  return bound_of(p) > 1e-3 ? 2e-2 : bound;
}

/* Compares what each kernel gives with the double reference. */
static void check_exact(call *c, double bound) {
  double *lse, *out = reference_of(c, &lse);
  for (int k = 0; k < n_isas; k++) {
    c->params.isa = isas[k];
    forget_results(c);
    run(c);
    assert_near(c, out, lse, bound);
  }
  free(out);
}

/* ---- Against the reference ---- */

/* Every number of queries over every number of keys. */
static void test_lengths(void **state) {
  uint64_t random = 71;
  int turn = 0;
  (void)state;
  for (int i = 0; i < N_QUERIES; i++)
    for (int j = 0; j < N_LENGTHS; j++, turn++) {
      if (!IS_FAST_BUILD && turn % 3) continue;
      shape s = {queries[i], lengths[j], any_of(&random, 1, 2), groups[turn % N_GROUPS], 1, 1};
      draw_dims(&s, &random);
      any_call a = new_decode(s, (hyperattn_dtype)(turn % 3), (hyperattn_dtype)(turn % 5),
                              (hyperattn_dtype)any_of(&random, HYPERATTN_F32, HYPERATTN_CUSTOM));
      a.c.problem.causal = turn / 2 % 2;
      fill_any_call(&a, turn % 4 ? 0 : PAGES, &random);
      a.c.problem.scale = 0.0f;
      check_exact(&a.c, bound_or_bf16(&a.c.problem, 2e-6));
      free_any_call(&a);
    }
}

/* Every dim of keys and of values, in every format. */
static void test_dims(void **state) {
  uint64_t random = 72;
  (void)state;
  for (int i = 0; i < N_DIMS; i++)
    for (int dtype = HYPERATTN_F32; dtype <= HYPERATTN_CUSTOM; dtype++) {
      shape s = {1 + 2 * (i % 2), 67 + 4100 * (dims[i] < 20),    1, groups[(i + dtype) % N_GROUPS],
                 dims[i],         dims[(i * 5 + dtype) % N_DIMS]};
      if (s.n_key > 100 && s.value_dim > 20) s.value_dim = 19;
      if (s.value_dim < 6) s.n_query = 6;
      any_call a = new_decode(s, HYPERATTN_F32, (hyperattn_dtype)dtype, (hyperattn_dtype)dtype);
      a.c.problem.causal = i / 2 % 2;
      fill_any_call(&a, 0, &random);
      a.c.problem.scale = 0.0f;
      check_exact(&a.c, 2e-6);
      free_any_call(&a);
    }
}

/* Shapes of language models: dim 128 in groups; a draft of 16 tokens; a window of 4096; and values that are
   the beginning of their keys, 512 of 576 numbers, as in multi-head latent attention. */
static void test_models(void **state) {
  static const shape shapes[] = {
      {1, 9001, 1, 8, 128, 128}, {5, 4097, 2, 4, 80, 96},  {16, 6145, 1, 2, 64, 64},
      {1, 8200, 2, 5, 100, 40},  {17, 4200, 1, 2, 64, 40}, {2, 4100, 1, 3, 576, 512},
  };
  static const hyperattn_dtype dtypes[] = {HYPERATTN_F16, HYPERATTN_BF16, HYPERATTN_Q8_0,
                                           HYPERATTN_F16, HYPERATTN_F32,  HYPERATTN_F16};
  uint64_t random = 73;
  (void)state;
  for (int i = 0; i < 6; i++) {
    if (!IS_FAST_BUILD && i != 1) continue;
    any_call a = new_decode(shapes[i], HYPERATTN_F32, dtypes[i], dtypes[i]);
    hyperattn_problem *p = &a.c.problem;
    p->causal = 1;
    fill_any_call(&a, 0, &random);
    p->scale = 0.0f;
    if (i == 3) p->sliding_window = 4096;
    if (p->head_dim == 576) p->value = p->key;
    check_exact(&a.c, 2e-6);
    free_any_call(&a);
  }
}

/* Any fields together; windows so narrow that most keys are out of sight, masks that hide runs of keys. */
static void test_fields(void **state) {
  uint64_t random = 74;
  (void)state;
  for (int i = 0; i < (IS_FAST_BUILD ? 120 : 30); i++) {
    any_call a =
        any_decode(i < 2 * N_FIELDS ? 1u << i / 2 : (unsigned)any_of(&random, 0, ALL_FIELDS), &random);
    check_exact(&a.c, bound_or_bf16(&a.c.problem, 5e-6));
    free_any_call(&a);
  }
}

/* A mean over very many keys, of both signs and positive, does not drift. */
static void test_very_many_keys(void **state) {
  (void)state;
  for (int positive = 0; positive < 2; positive++) {
    call c = new_call(1, 2, 1, 1 + positive, IS_FAST_BUILD ? 70003 : 9001, 3, 2, 1, 75);
    for (int64_t i = 0; positive && i < c.problem.n_key * c.problem.value_dim; i++) c.v[i] = fabsf(c.v[i]);
    c.params.method = HYPERATTN_EXACT;
    check_exact(&c, 2e-6);
    free_call(&c);
  }
}

/* A report says that the call was exact, and how many keys a query met on average. */
static void test_reports(void **state) {
  (void)state;
  for (int n_query = 1; n_query < 18; n_query += 4)
    for (int kind = 0; kind < 8; kind++) {
      call c = new_call(2, 6, 2, n_query, kind % 2 ? 5000 : 30, 2, 2, kind / 2 % 2, 79);
      hyperattn_report report[12];
      double keys = 0.0;
      if (kind / 4) c.problem.sliding_window = 20;
      for (int64_t i = 0; i < n_query; i++)
        for (int64_t j = 0; j < c.problem.n_key; j++)
          keys += is_in_sight(&c.problem, i, j) ? 1.0 / n_query : 0.0;
      c.params.method = HYPERATTN_EXACT, c.params.isa = isas[kind % n_isas], c.problem.report = report;
      memset(report, 0xff, sizeof report);
      run(&c);
      for (int h = 0; h < 12; h++) {
        assert_true(report[h].error == 0.0f && report[h].max_error == 0.0f &&
                    report[h].window_mass == 1.0f);
        assert_below(fabs((double)report[h].keys_per_query - keys), 1e-6 * keys);
      }
      free_call(&c);
    }
}

/* ---- The same bits ---- */

/* So few queries are not worth an approximation: the presets attend exactly. */
static void check_presets(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  b.c.params = any_of(random, 0, 1) ? judged_params() : hyperattn_default_params();
  b.c.params.isa = a->c.params.isa;
  run(&b.c);
  assert_same_bits(&a->c, &b.c);
  free_any_call(&b);
}

/* Each kernel's turn at each check, with any fields. */
static void test_bits(void **state) {
  static void (*const checks[])(any_call *, uint64_t *) = {check_workers,  check_copies, check_narrow,
                                                           check_expanded, check_slice,  check_hidden,
                                                           check_company,  check_size,   check_presets};
  uint64_t random = 76;
  (void)state;
  for (int i = 0; i < (IS_FAST_BUILD ? 160 : 40); i++) {
    unsigned set = (unsigned)any_of(&random, 0, ALL_FIELDS);
    any_call a = any_decode(i % 2 ? set : set & (PAGES | FORMATS), &random);
    a.c.params.isa = isas[i % n_isas];
    run(&a.c);
    for (size_t check = 0; check < sizeof checks / sizeof *checks; check++)
      if (IS_FAST_BUILD || check % 3 == (size_t)i % 3) checks[check](&a, &random);
    free_any_call(&a);
  }
}

/* ---- What is not finite, and scores of any size ---- */

/* A number of a value that is not finite reaches its coordinate in the rows that see it, wherever the key
   stands; every other coordinate has the bits that it had. */
static void test_values_that_are_not_finite(void **state) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  uint64_t random = 77;
  (void)state;
  for (int i = 0; i < 48; i++)
    for (int k = 0; k < n_isas; k++) {
      int64_t n_query = queries[i % N_QUERIES], n_key = i % 2 ? 6145 : 90, value_dim = dims[i % 6];
      call c = new_call(1, 2, 1, n_query, n_key, 2, value_dim, 1, 77), d = c;
      int64_t key = n_key - 1 - any_of(&random, 0, i % 3 ? n_query : n_key - 1),
              t = any_of(&random, 0, value_dim - 1);
      float number = bad[i / 2 % 3];
      c.params.method = HYPERATTN_EXACT, c.params.isa = isas[k];
      if (i % 4 == 0) c.problem.sliding_window = 1 + n_key / 2;
      run(&c);
      d.params = c.params, d.problem.sliding_window = c.problem.sliding_window;
      new_results(&d);
      c.v[key * value_dim + t] = number;
      run(&d);
      assert_memory_equal(c.lse, d.lse, (size_t)lse_size(&c.problem) * sizeof(float));
      for (int64_t j = 0; j < out_size(&c.problem); j++)
        if (j % value_dim == t && is_in_sight(&c.problem, j / value_dim % n_query, key))
          assert_true(isnan(number) ? isnan(d.out[j]) : d.out[j] == number);
        else
          assert_memory_equal(c.out + j, d.out + j, sizeof(float));
      free(d.out), free(d.lse);
      free_call(&c);
    }
}

/* Scores near +-1e5, exact in float32, that rise or fall by leaps as keys go on: some keys take all. */
static void test_huge_scores(void **state) {
  (void)state;
  for (int n_query = 1; n_query < 18; n_query += 8)
    for (int kind = 0; kind < 4; kind++) {
      call c = new_call(1, 3, 1, n_query, 5000, 4, 6, 1, 78);
      for (int64_t i = 0; i < 5000 * 4; i++) {
        int64_t step = i / 4 / (kind / 2 ? 700 : 9) % 7 + 1;
        c.k[i] = (float)(kind % 2 ? -64 : 64) * (float)step;
      }
      for (int64_t i = 0; i < 3 * n_query * 4; i++) c.q[i] = 128.0f;
      c.problem.scale = 0.5f, c.params.method = HYPERATTN_EXACT;
      check_exact(&c, 2e-6);
      free_call(&c);
    }
}

/* Keys whose score is -inf are seen, but weigh nothing, also where a whole run of keys has no other score.
   Rows that see only such keys are 0, and their lse is -inf. */
static void test_scores_of_minus_infinity(void **state) {
  (void)state;
  for (int n_query = 1; n_query < 18; n_query += 8)
    for (int kind = 0; kind < 4; kind++) {
      int64_t n_key = kind % 2 ? 6200 : 200;
      call c = new_call(1, 3, 1, n_query, n_key, 4, 6, 1, 79);
      for (int64_t i = 0; i < 3 * n_query; i++) c.q[i * 4] = 1.0f;
      for (int64_t j = 0; j < n_key; j++)
        if (kind / 2 || j < n_key / 2 || j % 7 == 0) c.k[j * 4] = -INFINITY;
      c.params.method = HYPERATTN_EXACT;
      if (kind / 2 == 0) check_exact(&c, 2e-6);
      for (int k = 0; k < n_isas && kind / 2; k++) {
        c.params.isa = isas[k];
        forget_results(&c);
        run(&c);
        for (int64_t i = 0; i < out_size(&c.problem); i++) assert_true(c.out[i] == 0.0f);
        for (int64_t i = 0; i < lse_size(&c.problem); i++) assert_true(c.lse[i] == -INFINITY);
      }
      free_call(&c);
    }
}

/* ---- Parts of the keys ---- */

/* The results for the keys before and behind any place merge to the result for all. */
static void test_merging_parts_of_the_keys(void **state) {
  static const int64_t places[] = {1, 64, 2048, 4096, 4097, 6999};
  (void)state;
  for (int i = 0; i < 6; i++)
    for (int k = 0; k < n_isas; k++) {
      int64_t n_query = queries[i], place = places[i];
      call whole = new_call(1, 6, 2, n_query, 7000, 9, 7, 0, 80), part[2];
      whole.params.method = HYPERATTN_EXACT, whole.params.isa = isas[k];
      run(&whole);
      for (int j = 0; j < 2; j++) {
        part[j] = whole;
        hyperattn_problem *p = &part[j].problem;
        new_results(&part[j]);
        p->n_key = j ? 7000 - place : place;
        p->key.data = whole.k + j * place * 9, p->value.data = whole.v + j * place * 7;
        run(&part[j]);
      }
      hyperattn_input other;
      memset(&other, 0, sizeof other);
      set_input(&other, part[1].out, HYPERATTN_F32, 6, n_query, 7);
      assert_int_equal(
          hyperattn_merge(1, 6, n_query, 7, part[0].problem.out, part[0].lse, other, part[1].lse),
          HYPERATTN_OK);
      double *lse, *out = reference_of(&whole, &lse);
      assert_near(&whole, out, lse, 2e-6);
      assert_near(&part[0], out, lse, 2e-6);
      free(out);
      for (int j = 0; j < 2; j++) free(part[j].out), free(part[j].lse);
      free_call(&whole);
    }
}

/* ---- Sizes ---- */

/* Sizes never fall as queries, keys or workers become more: from few queries to many, and from few keys to as
   many as there may be. */
static void check_sizes_rise(hyperattn_problem *p, const hyperattn_params *params) {
  static const int64_t rows[] = {64, 192, 193, 1000, 100000, 0x7fffffff},
                       keys[] = {0,    1,    63,   64,   65,   2047, 2048, 2049,   4095,       4096,
                                 4097, 4160, 6143, 6144, 6145, 8192, 8193, 131072, 0x7ffffffe, 0x7fffffff};
  enum { N_ROWS = 41 + 6, N_KEYS = 20 };
  size_t size[N_ROWS][N_KEYS];
  for (int i = 0; i < N_ROWS; i++)
    for (int j = 0; j < N_KEYS; j++) {
      size_t before;
      p->n_query = i < 41 ? i : rows[i - 41], p->n_key = keys[j];
      before = size[i][j] = hyperattn_workspace_size(p, params, 1);
      assert_true(size[i][j] > 0 || (sizeof(size_t) < 8 && (i > 40 || j > 16))); /* 0: more than there is */
      assert_true(!size[i][j] || i == 0 || size[i][j] >= size[i - 1][j]);
      assert_true(!size[i][j] || j == 0 || size[i][j] >= size[i][j - 1]);
      for (int workers = 2; workers < 70 && size[i][j]; workers = workers * 3 - 1) {
        size_t more = hyperattn_workspace_size(p, params, workers);
        assert_true(more >= before || !more);
        before = more;
      }
    }
}
static void test_sizes_never_fall(void **state) {
  uint64_t random = 81;
  (void)state;
  for (int round = 0; round < 60; round++) {
    unsigned fields = round < 4 * N_FIELDS ? 1u << round / 4 : (unsigned)any_of(&random, 0, ALL_FIELDS);
    hyperattn_problem p = nowhere(fields, round % 2);
    hyperattn_params params = hyperattn_linear_params();
    p.n_heads = one_of(&random, groups, N_GROUPS), p.batch = any_of(&random, 1, 3);
    if (fields & WINDOW) p.sliding_window = one_of(&random, lengths, N_LENGTHS);
    params.method = (hyperattn_method)(round / 2 % 3);
    params.isa = isas[round % n_isas];
    check_sizes_rise(&p, &params);
  }
}

/* Parts whose scores are far below the row's count for nothing, though their own sums overflow. */
static void test_parts_that_overflow_far_below(void **state) {
  enum { KEYS = 6144, NEAR = 2048 };
  (void)state;
  for (int isa = HYPERATTN_ISA_AUTO; isa <= HYPERATTN_ISA_LAST; isa++) {
    call c = new_call(1, 1, 1, 1, KEYS, 1, 1, 1, 3);
    c.params.method = HYPERATTN_EXACT, c.params.isa = (hyperattn_isa)isa, c.problem.scale = 1;
    c.q[0] = 1;
    for (int j = 0; j < KEYS; j++) c.k[j] = j < NEAR ? 0.0f : -200.0f, c.v[j] = j < NEAR ? 1.0f : 1e36f;
    if (hyperattn_workspace_size(&c.problem, &c.params, 1)) {
      run(&c);
      assert_below(fabs((double)c.out[0] - 1), 1e-6);
      c.v[KEYS - 1] = NAN; /* whatever its weight */
      run(&c);
      assert_true(isnan(c.out[0]));
    }
    free_call(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_lengths),
      cmocka_unit_test(test_dims),
      cmocka_unit_test(test_models),
      cmocka_unit_test(test_fields),
      cmocka_unit_test(test_very_many_keys),
      cmocka_unit_test(test_reports),
      cmocka_unit_test(test_bits),
      cmocka_unit_test(test_values_that_are_not_finite),
      cmocka_unit_test(test_huge_scores),
      cmocka_unit_test(test_scores_of_minus_infinity),
      cmocka_unit_test(test_merging_parts_of_the_keys),
      cmocka_unit_test(test_sizes_never_fall),
      cmocka_unit_test(test_parts_that_overflow_far_below),
  };
  return cmocka_run_group_tests_name("decode", tests, set_up, NULL);
}
