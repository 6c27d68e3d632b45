/* Corners that ordinary cases pass by: each was found by a change to the library that no other test noticed. */
#include "support.h"

static hyperattn_params tiny(void) { return small_params(hyperattn_default_params(), 24, 12, 10); }

/* ---- Selection ---- */

/* 0.8 w / sum + 0.2 / n. */
static void test_probabilities_are_mixed_with_uniform(void **state) {
  (void)state;
  assert_below(fabs((double)hai_units(0.0f, 1.0f, 10) / 17592186044416.0 - 0.02), 1e-6);
  assert_below(fabs((double)hai_units(1.0f, 1.0f, 10) / 17592186044416.0 - 0.82), 1e-6);
}

/* |v|^2 for VALUE_NORM, M |v| for COLUMN_MASS: any positive weights would be unbiased. */
static void test_sampling_weights(void **state) {
  (void)state;
  for (int sampling = 1; sampling < 3; sampling++) {
    call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 43);
    hai_plan plan;
    hai_job job;
    c.params = tiny();
    c.params.sampling = HYPERATTN_SAMPLE_UNIFORM;
    void *workspace = run_and_look(&c, &plan, &job); /* uniform: masses stay */
    float mass[211];
    memcpy(mass, hai_mass(&job), sizeof mass);
    free(workspace);
    c.params.sampling = (hyperattn_sampling)sampling;
    workspace = run_and_look(&c, &plan, &job);
    for (int j = 0; j < 211; j++) {
      double norm = 0.0;
      for (int t = 0; t < 8; t++) norm += (double)c.v[j * 8 + t] * (double)c.v[j * 8 + t];
      double want = sampling == HYPERATTN_SAMPLE_VALUE_NORM ? norm : (double)mass[j] * sqrt(norm);
      assert_below(fabs((double)hai_mass(&job)[j] - want), 1e-5 * (1.0 + want));
    }
    free(workspace);
    free_call(&c);
  }
}

static void test_sinks_stay_out_of_means(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 53);
  hai_plan plan;
  hai_job job;
  c.params = tiny();
  c.params.sink_keys = 5; /* sub-block 0 and the first key of sub-block 1 */
  void *workspace = run_and_look(&c, &plan, &job);
  int64_t parts = hai_key_parts(&plan, 211), begin = hai_cut(211, parts, 1), end = hai_cut(211, parts, 2);
  assert_true(begin < 5 && end > 5);
  for (int t = 0; t < 8; t++) {
    double mean = 0.0;
    for (int64_t i = 5; i < end; i++) mean += (double)c.k[i * 8 + t] / (double)(end - 5);
    assert_below(fabs((double)hai_mean(&job)[8 + t] - mean), 1e-5);
  }
  assert_true(isnan(hai_mean(&job)[0])); /* sinks alone: the worst score */
  free(workspace);
  free_call(&c);
}

/* Sinks that are heavy as well leave all places for other heavy keys. */
static void test_sinks_take_no_heavy_places(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 43);
  hai_plan plan;
  hai_job job;
  c.params = tiny();
  c.params.sink_keys = 3, c.params.heavy_keys = 9;
  for (int i = 0; i < 90; i++) c.q[i * 8] = 4.0f;
  for (int i = 0; i < 3; i++) c.k[i * 8] = 8.0f;
  void *workspace = run_and_look(&c, &plan, &job);
  assert_int_equal(hai_counts(&job)[0], 12);
  free(workspace);
  free_call(&c);
}

/* A probe that is NaN or infinite has no say; the others find the heavy keys. */
static void test_a_bad_probe_has_no_say(void **state) {
  static const float bad[] = {NAN, INFINITY};
  (void)state;
  for (int b = 0; b < 2; b++) {
    call c = new_call(1, 1, 1, 300, 2000, 8, 8, 0, 43);
    hai_plan plan;
    hai_job job;
    c.params = tiny();
    c.params.sink_keys = 0;
    c.params.sampling = HYPERATTN_SAMPLE_UNIFORM; /* masses stay */
    for (int i = 0; i < 300; i++) c.q[i * 8] += 3.0f;
    c.k[555 * 8] = c.k[777 * 8] = c.k[1234 * 8] = c.k[1900 * 8] = 9.0f;
    hai_plan before;
    void *unused = run_and_look(&c, &before, &job);
    c.q[hai_probe_row(&job, 0) * 8] = bad[b];
    free(unused);
    void *workspace = run_and_look(&c, &plan, &job);
    double total = 0.0;
    for (int j = 0; j < 2000; j++) total += (double)hai_mass(&job)[j];
    assert_below(fabs(total - 7.0), 1e-3);
    assert_int_equal(hai_counts(&job)[0], 4);
    assert_true(hai_pins(&job)[0] == 555 && hai_pins(&job)[1] == 777 && hai_pins(&job)[2] == 1234 &&
                hai_pins(&job)[3] == 1900);
    free(workspace);
    free_call(&c);
  }
}

/* Turning queries and scale around changes nothing: hashing and pairing follow the sign of the scale. */
static void test_a_negative_scale(void **state) {
  (void)state;
  for (int order = 0; order < 2; order++) {
    call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 53), d = new_call(1, 1, 1, 90, 211, 8, 8, 0, 53);
    c.params = d.params = tiny();
    c.params.order = d.params.order = (hyperattn_order)order;
    for (int i = 0; i < 90 * 8; i++) d.q[i] = -c.q[i];
    d.problem.scale = -1.0f / hai_sqrt(8.0f);
    run(&c), run(&d);
    assert_memory_equal(c.out, d.out, 90 * 8 * sizeof(float));
    free_call(&c), free_call(&d);
  }
}

/* T is the largest over all tasks that look for it. */
static void test_cap_floor_over_several_tasks(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 600, 700, 8, 8, 0, 37);
  hai_plan plan;
  hai_job job;
  c.params = small_params(hyperattn_paper_params(), 20, 14, 250);
  c.params.order = HYPERATTN_ORDER_POSITION, c.params.cap_kappa = 1.0f;
  for (int i = 0; i < 600 * 8; i++) c.q[i] *= i >= 500 * 8 ? 2.0f : 0.1f;
  void *workspace = run_and_look(&c, &plan, &job);
  assert_true(hai_cap(&job)[1] > hai_cap(&job)[0]);
  for (int i = 0; i < 600; i++) assert_true(c.lse[i] >= hai_cap(&job)[1] - 1e-4f);
  free(workspace);
  free_call(&c);
}

/* ---- Regions ---- */

static void test_every_rectangle_has_its_own_random_numbers(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 1024, 1024, 8, 8, 1, 1);
  hai_plan plan;
  char seen[4096] = {0};
  c.params = tiny();
  assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
  assert_true(plan.depth > 1);
  for (int level = 0; level < hai_plan_levels(&plan); level++)
    for (int64_t i = 0; i < hai_plan_rects(&plan, level); i++)
      assert_false(seen[hai_rect_at(&plan, level, i).region]++);
  free_call(&c);
}

/* A rectangle of fewer than min_seq_len keys is exact, also where its twin has one key more. */
static void test_the_smaller_half_decides(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 255, 255, 1, 1, 1, 1);
  hai_plan plan;
  c.params = small_params(hyperattn_paper_params(), 128, 4, 4);
  assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
  assert_int_equal(plan.depth, 0);
  free_call(&c);
}

/* A prefix too short to approximate is exact beside a square that is not. */
static void test_a_short_prefix_is_exact(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 256, 316, 8, 8, 1, 5);
  double *out = (double *)test_alloc(256 * 8 * sizeof(double)),
         *lse = (double *)test_alloc(256 * sizeof(double));
  c.params = small_params(hyperattn_paper_params(), 64, 8, 8);
  run(&c);
  reference(&c.problem, out, lse);
  for (int i = 0; i < 64; i++) assert_below(fabs((double)c.lse[i] - lse[i]), 1e-5); /* the first segment */
  assert_above(fabs((double)c.lse[255] - lse[255]), 1e-5);
  free(out), free(lse);
  free_call(&c);
}

static void test_pairing_is_counted(void **state) {
  (void)state;
  hyperattn_params p = hyperattn_default_params();
  p.min_seq_len = 1, p.block_size = 64, p.query_group = p.key_group = 1;
  p.sample_size = p.heavy_keys = p.sink_keys = p.probe_queries = 0;
  p.sampling = HYPERATTN_SAMPLE_UNIFORM, p.order = HYPERATTN_ORDER_POSITION, p.tolerance = 0.0f;
  assert_false(is_worth(&p, 4096, 4096));
  p.query_group = p.key_group = 2;
  assert_true(is_worth(&p, 4096, 4096));
}

/* ---- Workspace ---- */

/* Many rectangles in a level, four heads: no head's arrays reach into another's. */
static void test_many_rectangles(void **state) {
  (void)state;
  for (int64_t group = 4; group <= 8; group += 4) {
    call c = new_call(1, 4, 4, 4096, 4096, 8, 8, 1, 97), d = c;
    hai_plan plan;
    c.params = tiny();
    c.params.block_size = 8, c.params.sample_size = 4, c.params.heavy_keys = 2, c.params.sink_keys = 1;
    c.params.probe_queries = 4, c.params.query_group = c.params.key_group = group;
    assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
    assert_true(plan.max_rects >= 32);
    run(&c);
    d.params = c.params;
    d.problem.n_heads = d.problem.n_kv_heads = 1;
    d.out = (float *)test_alloc(4096 * 8 * sizeof(float)),
    d.lse = (float *)test_alloc(4096 * sizeof(float));
    for (int h = 0; h < 4; h++) {
      d.q = c.q + h * 32768, d.k = c.k + h * 32768, d.v = c.v + h * 32768;
      bind(&d);
      run(&d);
      assert_memory_equal(d.out, c.out + h * 32768, 32768 * sizeof(float));
    }
    free(d.out), free(d.lse);
    free_call(&c);
  }
}

/* Scratch is wide enough for mean queries, and for the masses of many heavy keys. */
static void test_scratch(void **state) {
  (void)state;
  for (int heavy = 0; heavy < 2; heavy++) {
    call c = new_call(1, 2, 1, 2000, 2000, 64, 64, !heavy, 107);
    c.params = tiny();
    if (heavy) {
      c.params.block_size = c.params.sample_size = c.params.query_group = c.params.key_group = 0;
      c.params.heavy_keys = 600, c.params.probe_queries = 2;
    }
    size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
    unsigned char *w = (unsigned char *)test_alloc(bytes + 8192);
    memset(w, 0xa5, bytes + 8192);
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, w, bytes), HYPERATTN_OK);
    for (size_t i = bytes; i < bytes + 8192; i++) assert_int_equal(w[i], 0xa5);
    free(w);
    free_call(&c);
  }
}

static void test_more_tasks_than_int64(void **state) {
  (void)state;
  hyperattn_problem p;
  hyperattn_params a = hyperattn_default_params();
  memset(&p, 0, sizeof p);
  p.batch = p.n_heads = p.n_kv_heads = 0x7fffffff;
  p.n_query = p.n_key = p.head_dim = p.value_dim = 1;
  assert_int_equal(hyperattn_workspace_size(&p, &a, 1), 0);
}

/* ---- Pointers ---- */

static void test_extents_of_negative_strides(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 1, 2, 1, 1, 0, 3);
  float b[8] = {0};
  size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  void *w = test_alloc(bytes);
  c.problem.value.data = b + 5, c.problem.value.row_stride = -1,
  c.problem.out.data = b + 4; /* value's second row */
  assert_int_equal(hyperattn_check(&c.problem, &c.params, w, bytes, 1), HYPERATTN_ERROR_OVERLAP);
  free(w);
  free_call(&c);
  /* each side fits, both together do not */
  c = new_call(1, 2, 2, 2, 2, 1, 1, 0, 3);
  bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  w = test_alloc(bytes);
  c.problem.query.head_stride = PTRDIFF_MAX / 4 - PTRDIFF_MAX / 12,
  c.problem.query.row_stride = -(PTRDIFF_MAX / 8);
  assert_int_equal(hyperattn_check(&c.problem, &c.params, w, bytes, 1), HYPERATTN_ERROR_EXTENT);
  free(w);
  free_call(&c);
}

/* An empty part is not looked at, whichever side it is on, nor is one that weighs nothing. */
static void test_merging_with_nothing(void **state) {
  (void)state;
  const float light[] = {-INFINITY, -200.0f};
  for (int i = 0; i < 2; i++)
    for (int swap = 0; swap < 2; swap++) {
      float heavy[2] = {-0.0f, 3.0f}, none[2] = {NAN, INFINITY}, lse_heavy = 1.0f, lse_none = light[i];
      hyperattn_output a = {swap ? none : heavy, HYPERATTN_F32, 0, 0, 0};
      hyperattn_input b = {swap ? heavy : none, HYPERATTN_F32, 0, 0, 0};
      float *lse_a = swap ? &lse_none : &lse_heavy;
      assert_int_equal(hyperattn_merge(1, 1, 1, 2, a, lse_a, b, swap ? &lse_heavy : &lse_none),
                       HYPERATTN_OK);
      assert_true(((float *)a.data)[0] == 0.0f && ((float *)a.data)[1] == 3.0f && *lse_a == 1.0f);
      if (!swap) assert_true(signbit(heavy[0]));
    }
  /* an empty part adds nothing to one that overflowed either */
  for (int i = 0; i < 2; i++) {
    float kept = 3.0f, none = NAN, lse_kept = i ? NAN : INFINITY, lse_none = -INFINITY;
    hyperattn_output a = {&none, HYPERATTN_F32, 0, 0, 0};
    hyperattn_input b = {&kept, HYPERATTN_F32, 0, 0, 0};
    assert_int_equal(hyperattn_merge(1, 1, 1, 1, a, &lse_none, b, &lse_kept), HYPERATTN_OK);
    assert_true(none == 3.0f && (i ? lse_none != lse_none : lse_none == INFINITY));
  }
}

/* Without queries nothing is asked for, so nothing may be touched: no workspace, no report. */
static void test_no_queries_touch_nothing(void **state) {
  (void)state;
  call c = new_call(1, 2, 1, 0, 8, 16, 16, 0, 5);
  hyperattn_report report[2];
  memset(report, 0x55, sizeof report);
  c.problem.report = report;
  assert_int_equal(hyperattn_forward(&c.problem, &c.params, NULL, 0), HYPERATTN_OK);
  for (int phase = 0; phase < hyperattn_phase_count(&c.problem, &c.params); phase++)
    assert_int_equal(hyperattn_phase_tasks(&c.problem, &c.params, phase), 0);
  for (size_t i = 0; i < sizeof report; i++) assert_int_equal(((unsigned char *)report)[i], 0x55);
  free_call(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_probabilities_are_mixed_with_uniform),
      cmocka_unit_test(test_sampling_weights),
      cmocka_unit_test(test_sinks_stay_out_of_means),
      cmocka_unit_test(test_sinks_take_no_heavy_places),
      cmocka_unit_test(test_a_bad_probe_has_no_say),
      cmocka_unit_test(test_a_negative_scale),
      cmocka_unit_test(test_cap_floor_over_several_tasks),
      cmocka_unit_test(test_every_rectangle_has_its_own_random_numbers),
      cmocka_unit_test(test_the_smaller_half_decides),
      cmocka_unit_test(test_a_short_prefix_is_exact),
      cmocka_unit_test(test_pairing_is_counted),
      cmocka_unit_test(test_many_rectangles),
      cmocka_unit_test(test_scratch),
      cmocka_unit_test(test_more_tasks_than_int64),
      cmocka_unit_test(test_extents_of_negative_strides),
      cmocka_unit_test(test_merging_with_nothing),
      cmocka_unit_test(test_no_queries_touch_nothing),
  };
  return cmocka_run_group_tests_name("edges", tests, NULL, NULL);
}
