/* What each field of a problem means: windows, soft caps, sinks, masks and pages, alone and together, against
   the double reference. */
#include "calls.h"
#include "problems.h"

/* ---- Against the reference ---- */

/* Exact attention; and the stages of approximation with a tolerance that only every key can meet, so that
   rows are probed, blocks and columns are chosen and judged, and the result is exact all the same. Returns
   1 if a rectangle was judged. */
static int check_fields(unsigned fields, int method, uint64_t *random) {
  any_call a = new_any_call(fields, random);
  const hyperattn_problem *p = &a.c.problem;
  int64_t reports = p->batch * p->n_heads;
  hyperattn_report *report =
      (hyperattn_report *)keep(&a, test_alloc((size_t)reports * sizeof(hyperattn_report)));
  int judged = 0;
  a.c.params.method = method ? HYPERATTN_EXACT : HYPERATTN_HYPER;
  a.c.params.tolerance = 1e-30f, a.c.params.order = HYPERATTN_ORDER_PROBED;
  a.c.problem.report = report;
  assert_exact(&a.c, bound_of(p));
  for (int64_t h = 0; h < reports; h++) {
    judged |= report[h].escalated > 0.0f;
    if (p->mask.data || method) assert_true(report[h].error == 0.0f && report[h].escalated == 0.0f);
  }
  free_any_call(&a);
  return judged;
}

static void test_fields_alone_and_together(void **state) {
  uint64_t random = 3;
  int judged = 0;
  (void)state;
  for (int a = 0; a < N_FIELDS; a++)
    for (int b = a; b < N_FIELDS; b++)
      for (int i = 0; i < 6; i++) judged += check_fields(1u << a | 1u << b, i % 2, &random);
  for (int i = 0; i < 40; i++) {
    judged += check_fields((unsigned)any_of(&random, 0, ALL_FIELDS), i % 2, &random);
    judged += check_fields(ALL_FIELDS & ~(unsigned)(MASK | WINDOW), i % 2, &random);
    judged += check_fields(ALL_FIELDS, i % 2, &random);
  }
  assert_above((double)judged, 10.0);
}

/* One query, as in decoding, over many keys in pages. */
static void test_decoding(void **state) {
  uint64_t random = 12;
  (void)state;
  for (int i = 0; i < 24; i++) {
    any_call a;
    memset(&a, 0, sizeof a);
    a.c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
    a.c.params.method = i % 2 ? HYPERATTN_EXACT : HYPERATTN_HYPER;
    a.c.problem.batch = 2, a.c.problem.n_heads = 6, a.c.problem.n_kv_heads = 2;
    a.c.problem.n_query = 1 + i % 3, a.c.problem.n_key = 700, a.c.problem.causal = 1;
    a.c.problem.head_dim = 64, a.c.problem.value_dim = 32;
    if (i % 5 == 4) a.c.problem.n_key = 150, a.c.problem.head_dim = 576, a.c.problem.value_dim = 512;
    any_dtypes(&a.c.problem, &random);
    fill_any_call(&a, PAGES | SINK | SOFTCAP | (i % 4 ? WINDOW : MASK), &random);
    assert_exact(&a.c, bound_of(&a.c.problem));
    free_any_call(&a);
  }
}

/* The error that a report states is near the true one, so what judges also caps scores and counts sinks. */
static void test_reported_errors(void **state) {
  uint64_t random = 13;
  (void)state;
  for (int i = 0; i < 4; i++) {
    any_call a;
    hyperattn_report report;
    memset(&a, 0, sizeof a);
    hyperattn_problem *p = &a.c.problem;
    p->batch = p->n_heads = p->n_kv_heads = 1, p->n_query = p->n_key = 700, p->head_dim = p->value_dim = 16;
    p->causal = i % 2;
    a.c.params = small_params(hyperattn_linear_params(), 64, 32, 64);
    fill_any_call(&a, PAGES, &random);
    float sink = 7.0f;
    p->scale = 1.0f, p->softcap = 2.0f, p->sink = i / 2 ? &sink : NULL, p->report = &report;
    run(&a.c);
    double *out = (double *)test_alloc((size_t)out_size(p) * sizeof(double)),
           *lse = (double *)test_alloc((size_t)lse_size(p) * sizeof(double));
    reference(p, out, lse);
    double error = relative_error(a.c.out, out, out_size(p));
    assert_above(error, 0.02);
    assert_below((double)report.error, 1.5 * error);
    assert_above((double)report.error, error / 1.5);
    free(out), free(lse);
    free_any_call(&a);
  }
}

/* A cap of Algorithm 2 that caps nothing changes nothing in a report, with a sink or without: it counts once. */
static void test_capped_sums_count_a_sink_once(void **state) {
  (void)state;
  for (int with_sink = 0; with_sink < 2; with_sink++) {
    hyperattn_report report[2];
    float sink = 8.0f;
    for (int capping = 0; capping < 2; capping++) {
      call c = new_call(1, 1, 1, 1500, 1500, 16, 16, 0, 41);
      c.params = small_params(hyperattn_paper_params(), 64, 32, 64);
      c.params.cap_epsilon = capping ? 1000.0f : 0.0f;
      c.problem.sink = with_sink ? &sink : NULL, c.problem.report = &report[capping];
      run(&c);
      free_call(&c);
    }
    assert_below(fabs((double)report[1].error / (double)report[0].error - 1.0), 1e-3);
    assert_below(fabs((double)report[1].sampled_mass - (double)report[0].sampled_mass), 1e-3);
    assert_below(fabs((double)report[1].window_mass - (double)report[0].window_mass), 1e-3);
  }
}

/* ---- Windows ---- */

/* Windows of every size, about where they begin to hide keys behind, keys ahead, and none. */
static void test_windows_of_every_size(void **state) {
  static const int64_t lengths[][2] = {{60, 60}, {50, 90}, {90, 50}, {1, 70}};
  (void)state;
  for (int shape = 0; shape < 4; shape++)
    for (int64_t window = 1; window < 94; window += window % 10 == 2 ? 6 : 1)
      for (int kind = 0; kind < 4; kind++) {
        call c = new_call(1, 1, 1, lengths[shape][0], lengths[shape][1], 4, 4, kind % 2, 17);
        c.problem.sliding_window = window;
        c.params = small_params(hyperattn_linear_params(), 8, 4, 4);
        c.params.tolerance = 1e-30f; /* where the window is none */
        c.params.method = kind / 2 ? HYPERATTN_EXACT : HYPERATTN_HYPER;
        assert_exact(&c, 5e-6);
        free_call(&c);
      }
}

/* ---- Soft caps ---- */

/* Scores far above the cap become the cap itself, and far below it themselves, whatever a hyperbolic
   tangent overflows or cancels at. */
static void test_caps_of_any_size(void **state) {
  static const float caps[] = {1e-30f, 1e-3f, 0.5f, 30.0f, 1e4f, 1e6f, 1e30f, 3e38f};
  (void)state;
  for (int size = 0; size < 3; size++)
    for (int i = 0; i < 8; i++) {
      call c = new_call(1, 1, 1, 40, 90, 16, 16, 0, 5);
      c.problem.softcap = caps[i];
      c.problem.scale = size == 0 ? 1e-3f : size == 1 ? 1.0f : 3e4f;
      c.params.method = HYPERATTN_EXACT;
      /* a score of a million and a cap above it leave a float's rounding of the score */
      if (size < 2 || caps[i] < 1e3f) assert_exact(&c, 5e-6);
      run(&c);
      for (int64_t j = 0; j < out_size(&c.problem); j++) assert_true(isfinite(c.out[j]));
      free_call(&c);
    }
}

/* A key that is NaN makes each row that sees it NaN, though a cap bounds scores. */
static void test_caps_keep_nan(void **state) {
  (void)state;
  for (int method = 0; method < 2; method++) {
    call c = new_call(1, 1, 1, 70, 70, 8, 8, 1, 5);
    c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
    c.params.method = method ? HYPERATTN_EXACT : HYPERATTN_HYPER;
    c.problem.softcap = 3.0f, c.k[69 * 8 + 2] = NAN;
    run(&c);
    for (int i = 0; i < 70; i++) assert_int_equal(isnan(c.lse[i]) && isnan(c.out[i * 8]), i == 69);
    free_call(&c);
  }
}

/* ---- Rows that see nothing ---- */

/* Rows out of sight of every key are 0; their lse is -inf, or the sink to the bit. */
static void assert_empty_rows(call *c, int64_t begin, int64_t end) {
  static const float sinks[] = {-3.25f, -INFINITY, 20.25f};
  int64_t dim = c->problem.value_dim;
  for (int with_sink = 0; with_sink < 4; with_sink++) {
    float sink = with_sink ? sinks[with_sink - 1] : -INFINITY;
    c->problem.sink = with_sink ? &sink : NULL;
    run(c);
    for (int64_t i = begin; i < end; i++) {
      assert_true(c->lse[i] == sink);
      for (int64_t t = 0; t < dim; t++) assert_true(c->out[i * dim + t] == 0.0f);
    }
    assert_exact(c, 5e-6);
  }
  free_call(c);
}

static call new_empty_rows(int64_t n_query, int64_t n_key, int causal, int method) {
  call c = new_call(1, 1, 1, n_query, n_key, 8, 6, causal, 21);
  c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
  c.params.tolerance = 1e-30f;
  c.params.method = method ? HYPERATTN_EXACT : HYPERATTN_HYPER;
  return c;
}

static void test_empty_rows(void **state) {
  static const int64_t lengths[][2] = {{140, 80}, {9, 3}, {16, 1}, {2, 1}},
                       masked[][2] = {{100, 130}, {3, 4500}};
  (void)state;
  for (int method = 0; method < 2; method++) {
    for (int i = 0; i < 4; i++) {
      int64_t n_query = lengths[i][0], n_key = lengths[i][1], window = 1 + n_key / 12;
      /* causal: the first queries stand before every key */
      call c = new_empty_rows(n_query, n_key, 1, method);
      assert_empty_rows(&c, 0, n_query - n_key);
      /* they stand further than the window before the first */
      c = new_empty_rows(n_query, n_key, 0, method);
      c.problem.sliding_window = window;
      assert_empty_rows(&c, 0, n_query - n_key - window + 1);
      /* there are no keys */
      c = new_empty_rows(n_query, 0, 0, method);
      assert_empty_rows(&c, 0, n_query);
    }
    for (int i = 0; i < 2; i++) { /* a mask hides all */
      call c = new_empty_rows(masked[i][0], masked[i][1], 0, method);
      float *mask = (float *)test_alloc((size_t)masked[i][1] * sizeof(float));
      for (int64_t j = 0; j < masked[i][1]; j++) mask[j] = -INFINITY;
      c.problem.mask.data = mask;
      assert_empty_rows(&c, 0, masked[i][0]);
      free(mask);
    }
  }
}

/* A sink of NaN or +inf makes its rows NaN, also those that see no key, whatever queries stand beside them. */
static void test_sinks_that_are_not_finite(void **state) {
  static const int lengths[][2] = {{1, 0}, {1, 100}, {2, 5000}, {199, 0}, {199, 100}};
  (void)state;
  for (int shape = 0; shape < 5; shape++)
    for (int is_nan = 0; is_nan < 2; is_nan++) {
      int n_query = lengths[shape][0], n_key = lengths[shape][1];
      call c = new_call(1, 1, 1, n_query, n_key, 4, 4, 0, 43);
      float sink = is_nan ? NAN : INFINITY,
            *mask = (float *)test_alloc((size_t)(n_query * n_key) * sizeof(float));
      for (int i = 0; i < n_query * n_key; i++)
        mask[i] = i < n_key ? -INFINITY : 0.0f; /* of the first row */
      c.params.method = HYPERATTN_EXACT;
      c.problem.sink = &sink, c.problem.mask.data = mask, c.problem.mask.row_stride = n_key;
      run(&c);
      for (int64_t i = 0; i < n_query; i++) assert_true(isnan(c.lse[i]) && isnan(c.out[4 * i]));
      free(mask);
      free_call(&c);
    }
}

/* ---- Masks ---- */

static call new_masked_call(const float *mask, int64_t row_stride) {
  call c = new_call(1, 2, 1, 90, 130, 8, 6, 0, 23);
  c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
  c.problem.mask.data = mask, c.problem.mask.row_stride = (ptrdiff_t)row_stride;
  return c;
}

/* A mask makes every method exact. One of zeros changes no bit of exact attention, whatever the slopes; nor
   do slopes of one, or without a mask any. */
static void test_masks_without_effect(void **state) {
  static const float zeros[130], ones[] = {1.0f, 1.0f}, slopes[] = {-3.0f, 1e30f};
  float *random = gaussians(90 * 130, 7);
  (void)state;
  for (int method = 0; method < 2; method++) {
    call c = new_masked_call(NULL, 0), d = new_masked_call(zeros, 0);
    c.params.method = HYPERATTN_EXACT, c.problem.mask_slope = slopes;
    d.params.method = method ? HYPERATTN_EXACT : HYPERATTN_HYPER, d.problem.mask_slope = slopes;
    run(&c), run(&d);
    assert_same_bits(&c, &d);
    c.problem.mask_slope = d.problem.mask_slope = NULL;
    run(&c);
    assert_same_bits(&c, &d);
    c.problem.mask.data = d.problem.mask.data = random;
    c.problem.mask.row_stride = d.problem.mask.row_stride = 130, d.problem.mask_slope = ones;
    run(&c), run(&d);
    assert_same_bits(&c, &d);
    free_call(&c), free_call(&d);
  }
  free(random);
}

/* -inf hides a key whatever the slope; the most negative finite number does not, so that a row of nothing
   else is an average. */
static void test_what_hides(void **state) {
  static const float slopes[] = {0.0f, -2.0f};
  float *mask = (float *)test_alloc(90 * 130 * sizeof(float));
  (void)state;
  for (int i = 0; i < 90; i++)
    for (int j = 0; j < 130; j++)
      mask[i * 130 + j] = i < 30 ? -INFINITY : i < 60 ? (j % 3 ? -INFINITY : 0.5f) : -3.0e38f;
  call c = new_masked_call(mask, 130);
  c.problem.mask_slope = slopes;
  run(&c);
  for (int h = 0; h < 2; h++)
    for (int i = 0; i < 30; i++)
      assert_true(c.lse[h * 90 + i] == -INFINITY && c.out[(h * 90 + i) * 6] == 0);
  c.problem.mask_slope = NULL;
  assert_exact(&c, 5e-6);
  double mean = 0.0;
  for (int j = 0; j < 130; j++) mean += (double)c.v[j * 6] / 130.0;
  assert_below(fabs((double)c.out[89 * 6] - mean), 1e-6);
  free_call(&c);
  free(mask);
}

/* NaN and +inf make a row NaN, and no other, whatever the slope. */
static void test_masks_that_are_not_finite(void **state) {
  static const float bad[] = {NAN, INFINITY}, slopes[] = {1.0f, 0.0f};
  float *mask = gaussians(90 * 130, 3);
  (void)state;
  for (int i = 0; i < 2; i++) {
    call c = new_masked_call(mask, 130), d = new_masked_call(mask, 130);
    c.problem.mask_slope = d.problem.mask_slope = slopes;
    run(&c);
    mask[50 * 130 + 70] = bad[i];
    run(&d);
    for (int r = 0; r < 180; r++) {
      if (r % 90 == 50)
        assert_true(isnan(d.lse[r]) && isnan(d.out[r * 6]) && isnan(d.out[r * 6 + 5]));
      else
        assert_memory_equal(c.out + r * 6, d.out + r * 6, 6 * sizeof(float));
    }
    mask[50 * 130 + 70] = 0.0f;
    free_call(&c), free_call(&d);
  }
  free(mask);
}

/* A mask of 0 and -inf is a causal mask or a window where it hides what they hide. */
static void test_masks_equal_positions(void **state) {
  (void)state;
  for (int window = 0; window < 60; window += 20)
    for (int causal = !window; causal < 2; causal++) {
      float *mask = (float *)test_alloc(90 * 130 * sizeof(float));
      call c = new_masked_call(NULL, 0), d = new_masked_call(mask, 130);
      c.problem.causal = causal, c.problem.sliding_window = window, c.params.method = HYPERATTN_EXACT;
      for (int i = 0; i < 90; i++)
        for (int j = 0; j < 130; j++) mask[i * 130 + j] = is_in_sight(&c.problem, i, j) ? 0.0f : -INFINITY;
      run(&c), run(&d);
      double *out = (double *)test_alloc((size_t)out_size(&c.problem) * sizeof(double));
      for (int64_t i = 0; i < out_size(&c.problem); i++) out[i] = (double)c.out[i];
      assert_below(relative_error(d.out, out, out_size(&c.problem)), 1e-6);
      free(out), free(mask);
      free_call(&c), free_call(&d);
    }
}

/* ---- Sinks ---- */

/* A sink of -inf is none, to the bit, under every method. */
static void test_sinks_without_effect(void **state) {
  static const float none[] = {-INFINITY, -INFINITY};
  (void)state;
  for (int method = 0; method < 2; method++)
    for (int causal = 0; causal < 2; causal++) {
      call c = new_call(1, 2, 1, 200, 200, 8, 6, causal, 31),
           d = new_call(1, 2, 1, 200, 200, 8, 6, causal, 31);
      c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
      c.params.method = method ? HYPERATTN_EXACT : HYPERATTN_HYPER;
      d.params = c.params, d.problem.sink = none;
      run(&c), run(&d);
      assert_same_bits(&c, &d);
      free_call(&c), free_call(&d);
    }
}

/* The largest float as a sink leaves a row nothing else, the most negative one leaves it as it is. */
static void test_sinks_of_any_size(void **state) {
  static const float sinks[] = {-3.4e38f, 3.4e38f};
  (void)state;
  for (int method = 0; method < 2; method++) {
    call c = new_call(1, 2, 1, 200, 200, 8, 6, method, 35), d = c;
    c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
    c.params.method = method ? HYPERATTN_EXACT : HYPERATTN_HYPER;
    d.params = c.params, d.problem.sink = sinks;
    new_results(&d);
    run(&c), run(&d);
    assert_memory_equal(c.out, d.out, 200 * 6 * sizeof(float));
    assert_memory_equal(c.lse, d.lse, 200 * sizeof(float));
    for (int i = 200; i < 400; i++) assert_true(d.lse[i] == sinks[1] && d.out[i * 6 + i % 6] == 0.0f);
    free(d.out), free(d.lse);
    free_call(&c);
  }
}

/* Two halves of the keys, one of them with the sink, merge to the whole. */
static void test_sinks_go_to_one_part(void **state) {
  static const float sink[] = {1.5f, 4.0f};
  (void)state;
  call whole = new_call(1, 2, 2, 40, 100, 8, 6, 0, 33), part[2] = {whole, whole};
  whole.problem.sink = sink;
  assert_exact(&whole, 2e-6);
  for (int i = 0; i < 2; i++) {
    hyperattn_problem *p = &part[i].problem;
    new_results(&part[i]);
    p->n_key = i ? 63 : 37, p->sink = i ? sink : NULL;
    p->key.data = whole.k + (i ? 37 * 8 : 0), p->value.data = whole.v + (i ? 37 * 6 : 0);
    run(&part[i]);
  }
  hyperattn_input other;
  set_input(&other, part[1].out, HYPERATTN_F32, 2, 40, 6);
  assert_int_equal(hyperattn_merge(1, 2, 40, 6, part[0].problem.out, part[0].lse, other, part[1].lse),
                   HYPERATTN_OK);
  for (int i = 0; i < 80 * 6; i++) assert_below(fabs((double)part[0].out[i] - (double)whole.out[i]), 1e-6);
  for (int i = 0; i < 80; i++) assert_below(fabs((double)part[0].lse[i] - (double)whole.lse[i]), 2e-6);
  for (int i = 0; i < 2; i++) free(part[i].out), free(part[i].lse);
  free_call(&whole);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_fields_alone_and_together),
      cmocka_unit_test(test_decoding),
      cmocka_unit_test(test_reported_errors),
      cmocka_unit_test(test_capped_sums_count_a_sink_once),
      cmocka_unit_test(test_sinks_that_are_not_finite),
      cmocka_unit_test(test_windows_of_every_size),
      cmocka_unit_test(test_caps_of_any_size),
      cmocka_unit_test(test_caps_keep_nan),
      cmocka_unit_test(test_empty_rows),
      cmocka_unit_test(test_masks_without_effect),
      cmocka_unit_test(test_what_hides),
      cmocka_unit_test(test_masks_that_are_not_finite),
      cmocka_unit_test(test_masks_equal_positions),
      cmocka_unit_test(test_sinks_without_effect),
      cmocka_unit_test(test_sinks_of_any_size),
      cmocka_unit_test(test_sinks_go_to_one_part),
  };
  return cmocka_run_group_tests_name("fields", tests, NULL, NULL);
}
