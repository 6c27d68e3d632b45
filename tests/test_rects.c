/* Rectangles that are scanned: under HYPERATTN_HYPER those for which no choice of keys meets the tolerance. */
#include "support.h"
#include "same.h"

enum { DIM = 32, VALUES = 8, ROUNDS = IS_FAST_BUILD ? 24 : 8 };

/* A call of which held-out queries reject every choice of so few keys: each query has a key of its own, with some
   of its attention, and the rest is spread over keys whose values have a mean, so that a sample can do. */
static call new_rejected_call(int64_t heads, int64_t kv_heads, int64_t n_query, int64_t n_key, int causal,
                              uint64_t seed) {
  call c = new_call(1, heads, kv_heads, n_query, n_key, DIM, VALUES, causal, seed);
  c.params = small_params(hyperattn_linear_params(), 64, 32, 32);
  c.params.order = HYPERATTN_ORDER_PROBED, c.params.tolerance = 0.1f;
  for (int64_t t = 0; t < kv_heads * n_key * VALUES; t++) c.v[t] += 1.0f;
  for (int64_t i = 0; i < n_query * heads; i++) {
    int64_t row = i % n_query, seen = causal ? row + n_key - n_query + 1 : n_key;
    const float *key =
        c.k + (i / n_query / (heads / kv_heads) * n_key + (7 * row + 3 + 5 * (i / n_query)) % seen) * DIM;
    for (int t = 0; t < DIM; t++) c.q[i * DIM + t] = 1.2f * key[t];
  }
  c.problem.report = (hyperattn_report *)test_alloc((size_t)heads * sizeof(hyperattn_report));
  return c;
}
static void free_rejected_call(call *c) { free(c->problem.report), free_call(c); }

static hai_plan plan_of(const call *c) {
  hai_plan plan;
  assert_int_equal(hai_resolve(&plan, &c->problem, &c->params), HYPERATTN_OK);
  return plan;
}

/* Full attention, a causal square with several rectangles in a level, and chunks of a prefill. */
enum { FULL, FULL_OF_FEWER, SQUARE, CHUNK_OF_SQUARE, LONG_PREFIX, N_KINDS };
static call new_call_of(int kind, int64_t heads, int64_t kv_heads, uint64_t seed) {
  static const int64_t shapes[][2] = {{900, 900}, {400, 1200}, {1400, 1400}, {900, 1300}, {200, 1300}};
  call c = new_rejected_call(heads, kv_heads, shapes[kind][0], shapes[kind][1], kind >= SQUARE, seed);
  if (kind == SQUARE) assert_true(plan_of(&c).max_rects >= 4);
  return c;
}

/* |out - exact| / |exact| of a row. */
static double row_error(const call *c, const double *out, int64_t row) {
  return relative_error(c->out + row * VALUES, out + row * VALUES, VALUES);
}

/* Every query keeps the tolerance, or nearly so, and few but those of small rectangles meet every key. */
static void test_every_query_keeps_the_tolerance(void **state) {
  int above = 0, rows = 0;
  double escalated = 0.0, exact = 0.0;
  (void)state;
  for (int i = 0; i < 2 * N_KINDS; i++) {
    call c = new_call_of(i % N_KINDS, 2, 1, 300 + (uint64_t)i);
    double *lse, *out;
    if (i >= N_KINDS) c.params.tolerance = 0.07f;
    out = reference_of(&c, &lse);
    run(&c);
    for (int64_t r = 0; r < lse_size(&c.problem); r++) {
      double error = row_error(&c, out, r);
      assert_below(error, 3.0 * (double)c.params.tolerance);
      above += error > (double)c.params.tolerance, rows++;
    }
    for (int h = 0; h < 2; h++) {
      escalated += (double)c.problem.report[h].escalated / (4 * N_KINDS);
      exact += (double)c.problem.report[h].exact / (4 * N_KINDS);
      assert_true(c.problem.report[h].escalated > 0.0f && c.problem.report[h].error > 0.03f);
    }
    free(out);
    free_rejected_call(&c);
  }
  assert_below(above, 0.1 * rows);
  assert_above(escalated, 0.8);
  assert_below(exact, 0.5 * escalated);
}

/* The same numbers in bfloat16; the caller frees the three tensors. */
static void to_bf16(call *c, void **owned) {
  hyperattn_problem *p = &c->problem;
  hyperattn_input *to[] = {&p->query, &p->key, &p->value};
  float *from[] = {c->q, c->k, c->v};
  for (int x = 0; x < 3; x++) {
    int64_t heads = x ? p->n_kv_heads : p->n_heads, rows = x ? p->n_key : p->n_query,
            dim = x == 2 ? VALUES : DIM, stride;
    owned[x] = encode(from[x], heads * rows, dim, HYPERATTN_BF16, &stride);
    set_input(to[x], owned[x], HYPERATTN_BF16, heads, rows, stride);
  }
}

/* Queries that stand alone each attend to one early key of their own: none is lost, in whatever rectangle the
   key lies, and by kernels that read bfloat16. */
static void test_no_needle_is_lost(void **state) {
  enum { NEEDLES = 40 };
  void *owned[3] = {NULL, NULL, NULL};
  (void)state;
  for (int i = 0; i < 2 * N_KINDS; i++) {
    call c = new_call_of(i % N_KINDS, 1, 1, 400 + (uint64_t)i);
    int64_t n_query = c.problem.n_query, n_key = c.problem.n_key, rows[NEEDLES];
    uint64_t random = 40 + (uint64_t)i;
    double *lse, *out;
    for (int j = 0; j < NEEDLES; j++) {
      int64_t row = rows[j] = n_query - 1 - j * (n_query / 2 / NEEDLES), position = row + n_key - n_query,
              key = any_of(&random, 0, c.problem.causal ? position - 80 : n_key - 1);
      double size = 0.0;
      for (int t = 0; t < DIM; t++) size += pow((double)c.k[key * DIM + t], 2.0);
      for (int t = 0; t < DIM; t++)
        c.q[row * DIM + t] = c.k[key * DIM + t] * (float)(16.0 * sqrt(DIM) / size);
      for (int t = 0; t < VALUES; t++) c.v[key * VALUES + t] *= 3.0f;
    }
    if (i >= N_KINDS) to_bf16(&c, owned);
    if (i >= N_KINDS && has_kernel(HYPERATTN_ISA_AVX512_BF16) && !getenv("HYPERATTN_TEST_ISA"))
      c.params.isa = HYPERATTN_ISA_AVX512_BF16;
    out = reference_of(&c, &lse);
    run(&c);
    assert_true(c.problem.report->escalated == 1.0f && c.problem.report->exact < 1.0f);
    for (int j = 0; j < NEEDLES; j++) {
      assert_below(row_error(&c, out, rows[j]), 0.05);
      assert_below(fabs((double)c.lse[rows[j]] - lse[rows[j]]), 0.05);
    }
    for (int x = 0; x < 3; x++) free(owned[x]), owned[x] = NULL;
    free(out);
    free_rejected_call(&c);
  }
}

/* Full attention is one rectangle: where it is scanned, it has the bits of HYPERATTN_SCAN. */
static void test_full_attention_is_a_scan(void **state) {
  static const float sinks[] = {3.0f, -1.0f, 0.5f, 2.0f};
  (void)state;
  for (int i = 0; i < 6; i++) {
    call c = new_call_of(i % 2 ? FULL : FULL_OF_FEWER, 4, 2, 500 + (uint64_t)i), d = c;
    hyperattn_report reports[4];
    c.params.seed = (uint64_t)i;
    if (i >= 2) c.problem.sink = sinks;
    if (i >= 4) c.problem.softcap = 3.0f;
    d.problem = c.problem, d.params = c.params;
    new_results(&d);
    d.params.method = HYPERATTN_SCAN, d.problem.report = reports;
    run(&c), run(&d);
    assert_true(plan_of(&d).scanning && c.problem.report[3].escalated == 1.0f);
    assert_same_bits(&c, &d);
    for (int h = 0; h < 4; h++) {
      assert_true(c.problem.report[h].exact == reports[h].exact);
      assert_below(c.problem.report[h].max_error, 1.00001 * (double)reports[h].max_error);
      assert_below(fabs((double)(c.problem.report[h].error - reports[h].error)),
                   0.15 * (double)reports[h].error);
      assert_below(fabs((double)(c.problem.report[h].sampled_mass - reports[h].sampled_mass)), 0.01);
      assert_below(fabs((double)(c.problem.report[h].pinned_mass - reports[h].pinned_mass)), 0.01);
    }
    free(d.out), free(d.lse);
    free_rejected_call(&c);
  }
}

/* What the report says of a causal call: the error is about the true one, and keys of all rectangles are
   counted. To a tolerance that no sample meets, all queries meet all keys, and it says that too. */
static void test_reports(void **state) {
  (void)state;
  for (int i = 0; i < 3 * (N_KINDS - SQUARE); i++) {
    call c = new_call_of(SQUARE + i % (N_KINDS - SQUARE), 1, 1, 600 + (uint64_t)i);
    const hyperattn_problem *p = &c.problem;
    const hyperattn_report *r = p->report;
    double *lse, *out = reference_of(&c, &lse), pairs = 0.0, error;
    for (int64_t q = 0; q < p->n_query; q++) pairs += (double)(q + p->n_key - p->n_query + 1);
    run(&c);
    error = relative_error(c.out, out, out_size(p));
    assert_above((double)r->error, 0.8 * error);
    assert_below((double)r->error, 1.7 * error);
    assert_below((double)r->max_error, 0.1 + 1e-6);
    assert_true(r->block_mass == 0.0f && r->sampled_mass > 0.05f && r->sampled_mass < 1.0f);
    assert_true(r->doubled == 0.0f && r->error_median == (float)INFINITY);
    assert_below(fabs((double)(r->pinned_mass + r->sampled_mass + r->window_mass) - 1.0), 1e-5);
    assert_above((double)r->keys_per_query, 0.2 * pairs / (double)p->n_query);
    c.params.tolerance = 1e-30f;
    run(&c);
    assert_true(r->exact == 1.0f && r->escalated == 1.0f && r->error == 0.0f && r->max_error == 0.0f);
    assert_true(r->sampled_mass == 0.0f && r->error_999 == 0.0f);
    assert_above((double)r->keys_per_query, pairs / (double)p->n_query);
    free(out);
    free_rejected_call(&c);
  }
}

/* A tile of few keys is not worth scanning: with so large a budget that holds for the smaller rectangles, or
   for all. */
static void test_what_does_not_pay_is_exact(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    call c = new_call_of(SQUARE, 1, 1, 700);
    double *lse, *out = reference_of(&c, &lse);
    int exact = 0;
    c.params.sample_size = i ? 400 : 100, c.params.block_size = 8, c.params.heavy_keys = 0;
    c.params.query_group = c.params.key_group = 4;
    c.params.tolerance = 0.05f;
    run(&c);
    for (int64_t r = 0; r < c.problem.n_query; r++) exact += row_error(&c, out, r) < 5e-6;
    if (i) assert_int_equal(exact, c.problem.n_query);
    assert_above(exact, 500 - 1);
    assert_int_equal(i ? 0 : 1, plan_of(&c).scans_rects && exact < c.problem.n_query);
    free(out);
    free_rejected_call(&c);
  }
}

/* ---- Any call ---- */

static any_call new_rect_call(unsigned fields, uint64_t *random) {
  static const int64_t queries[] = {128, 129, 200, 290, 333}, keys[] = {200, 257, 400, 513},
                       dims[] = {1, 3, 8, 16, 24, 31, 33, 40}, windows[] = {0, 1, 16, 100},
                       sinks[] = {0, 1, 4, 70}, budgets[] = {0, 2, 10};
  any_call a;
  hyperattn_problem *p = &a.c.problem;
  memset(&a, 0, sizeof a);
  a.c.params = small_params(hyperattn_linear_params(), 24, 12, one_of(random, budgets, 3));
  a.c.params.window = one_of(random, windows, 4), a.c.params.sink_keys = one_of(random, sinks, 4);
  a.c.params.order = (hyperattn_order)any_of(random, 0, 2), a.c.params.seed = splitmix(random);
  a.c.params.tolerance = any_of(random, 0, 1) ? 0.02f : 0.15f;
  p->batch = any_of(random, 1, 2), p->n_kv_heads = any_of(random, 1, 2);
  p->n_heads = p->n_kv_heads * any_of(random, 1, 2);
  p->n_query = one_of(random, queries, 5);
  p->n_key = any_of(random, 0, 1) ? p->n_query : one_of(random, keys, 4);
  p->head_dim = one_of(random, dims, 8), p->value_dim = one_of(random, dims, 8);
  p->causal = (int)any_of(random, 0, 1);
  if (fields & FORMATS) any_dtypes(p, random);
  if (has_kernel(HYPERATTN_ISA_AVX512_BF16) && !getenv("HYPERATTN_TEST_ISA") && any_of(random, 0, 1))
    a.c.params.isa = HYPERATTN_ISA_AVX512_BF16;
  fill_any_call(&a, fields & ~(unsigned)(WINDOW | MASK), random);
  p->report =
      (hyperattn_report *)keep(&a, test_alloc((size_t)(p->batch * p->n_heads) * sizeof(hyperattn_report)));
  return a;
}

/* Calls a test with random calls. Those of the shape of the whole give its report too. */
static void for_each_rect_call(void (*test)(any_call *a, uint64_t *random), int is_whole, uint64_t seed) {
  int scanned = 0;
  for (int i = 0; i < ROUNDS; i++) {
    any_call a = new_rect_call(i % 4 ? (unsigned)any_of(&seed, 0, ALL_FIELDS) : 0, &seed);
    hyperattn_problem *p = &a.c.problem;
    size_t bytes = (size_t)(p->batch * p->n_heads) * sizeof *p->report;
    run(&a.c);
    hyperattn_report *report = (hyperattn_report *)memcpy(test_alloc(bytes), p->report, bytes);
    memset(p->report, 0xff, bytes);
    test(&a, &seed);
    if (is_whole) assert_memory_equal(p->report, report, bytes);
    scanned += report->escalated > 0.0f && plan_of(&a.c).scans_rects;
    free(report);
    free_any_call(&a);
  }
  assert_true(scanned > ROUNDS / 2);
}
static void test_workers(void **state) {
  (void)state;
  for_each_rect_call(check_workers, 1, 801);
}
static void test_rows_may_lie_anywhere(void **state) {
  (void)state;
  for_each_rect_call(check_copies, 1, 802);
}
static void test_results_of_16_bits(void **state) {
  (void)state;
  for_each_rect_call(check_narrow, 0, 803);
}
static void test_grouped_heads_equal_expanded(void **state) {
  (void)state;
  for_each_rect_call(check_expanded, 1, 804);
}
static void test_slices_equal_the_whole(void **state) {
  (void)state;
  for_each_rect_call(check_slice, 0, 805);
}
static void test_sizes_are_what_is_needed(void **state) {
  (void)state;
  for_each_rect_call(check_size, 1, 806);
}

/* That nobody asks for a report changes no bit. */
static void check_unreported(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  (void)random;
  b.c.problem.report = NULL;
  run(&b.c);
  assert_same_bits(&a->c, &b.c);
  free_any_call(&b);
}
static void test_reports_change_nothing(void **state) {
  (void)state;
  for_each_rect_call(check_unreported, 0, 807);
}

/* To a tolerance that no sample meets, the result is exact, whatever its fields: a query that was scanned goes
   on from where it was. */
static void check_exact(any_call *a, uint64_t *random) {
  double *lse, *out = reference_of(&a->c, &lse);
  (void)random;
  a->c.params.tolerance = 1e-30f;
  run(&a->c);
  assert_near(&a->c, out, lse, bound_of(&a->c.problem));
  for (int64_t h = 0; h < a->c.problem.batch * a->c.problem.n_heads; h++)
    assert_true(a->c.problem.report[h].exact == a->c.problem.report[h].escalated &&
                a->c.problem.report[h].error == 0.0f);
  free(out);
}
static void test_no_tolerance_is_exact(void **state) {
  (void)state;
  for_each_rect_call(check_exact, 0, 808);
}

/* What is not finite reaches only rows that may see it: a query's its own row, and that surely. */
static void test_what_is_not_finite(void **state) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  (void)state;
  for (int i = 0; i < 18; i++) {
    call c = new_call_of(i % 2 ? SQUARE : LONG_PREFIX, 1, 1, 900 + (uint64_t)i);
    int where = i / 2 % 3;
    double *lse, *out;
    if (where == 0) c.q[150 * DIM + 3] = bad[i / 6];
    if (where == 1) c.k[700 * DIM + 3] = bad[i / 6];
    if (where == 2) c.v[700 * VALUES + 3] = bad[i / 6];
    out = reference_of(&c, &lse);
    run(&c);
    for (int64_t r = 0; r < c.problem.n_query; r++) {
      int is_finite = isfinite(lse[r]) != 0;
      for (int t = 0; t < VALUES; t++) is_finite = is_finite && isfinite(out[r * VALUES + t]);
      for (int t = 0; t < VALUES && is_finite; t++) assert_true(isfinite(c.out[r * VALUES + t]));
      if (is_finite && where == 0) assert_below(row_error(&c, out, r), 0.3);
      if (!is_finite && where == 0) assert_true(isnan(c.lse[r]) && isnan(c.out[r * VALUES]));
    }
    free(out);
    free_rejected_call(&c);
  }
}

/* Sizes never fall as queries, keys and workers become more. */
static void test_sizes_never_fall(void **state) {
  uint64_t random = 89;
  (void)state;
  for (int round = 0; round < 60; round++) {
    hyperattn_problem p = nowhere(round % 3 ? 0 : (unsigned)any_of(&random, 0, ALL_FIELDS), round % 2);
    hyperattn_params a = small_params(hyperattn_linear_params(), any_of(&random, 1, 500),
                                      any_of(&random, 0, 99), any_of(&random, 0, 99));
    int64_t top = any_of(&random, 0, 2) ? 1200 : 40000;
    a.tolerance = 0.1f, a.order = (hyperattn_order)any_of(&random, 0, 2);
    if (any_of(&random, 0, 1)) p.report = (hyperattn_report *)(uintptr_t)4096;
    check_sizes_never_fall(p, &a, top, &random);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_query_keeps_the_tolerance),
      cmocka_unit_test(test_no_needle_is_lost),
      cmocka_unit_test(test_full_attention_is_a_scan),
      cmocka_unit_test(test_reports),
      cmocka_unit_test(test_what_does_not_pay_is_exact),
      cmocka_unit_test(test_workers),
      cmocka_unit_test(test_rows_may_lie_anywhere),
      cmocka_unit_test(test_results_of_16_bits),
      cmocka_unit_test(test_grouped_heads_equal_expanded),
      cmocka_unit_test(test_slices_equal_the_whole),
      cmocka_unit_test(test_sizes_are_what_is_needed),
      cmocka_unit_test(test_reports_change_nothing),
      cmocka_unit_test(test_no_tolerance_is_exact),
      cmocka_unit_test(test_what_is_not_finite),
      cmocka_unit_test(test_sizes_never_fall),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
