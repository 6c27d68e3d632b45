/* HyperAttention against a double reference that is told only the choices (orders, blocks, pins, columns) and applies
   the rule to them: every visible pair once, by the first of window, pinned, block, sample that holds it. */
#include "oracle.h"

/* Every combination of what params can choose. */
static void test_params(void **state) {
  (void)state;
  int seen = 0;
  for (int causal = 0; causal < 2; causal++)
    for (int order = 0; order < 2; order++)
      for (int sampling = 0; sampling < 3; sampling++)
        for (int score = 0; score < 2; score++)
          for (int block = 0; block < 2; block++)
            for (int pins = 0; pins < 2; pins++) {
              call c = new_call(1, 2, 1, 203, 203, 8, 6, causal, (uint64_t)(100 + seen));
              hyperattn_params a = small_params(hyperattn_default_params(), 24, block ? 12 : 0, 10);
              a.order = order ? HYPERATTN_ORDER_POSITION : HYPERATTN_ORDER_SORTLSH;
              a.sampling = (hyperattn_sampling)sampling;
              if (!score) a.query_group = a.key_group = 0;
              if (!pins) a.sink_keys = a.heavy_keys = 0;
              a.window = pins ? 9 : 0;
              c.params = a;
              check(&c, 3e-6);
              free_call(&c);
              seen++;
            }
  assert_int_equal(seen, 96);
}

/* Ragged blocks, more queries than keys and fewer, prefixes, windows longer than a half. */
static void test_shapes(void **state) {
  static const int64_t n[][2] = {{1, 300},   {5, 300},   {64, 300}, {300, 64}, {130, 157},
                                 {157, 130}, {300, 301}, {97, 331}, {331, 97}};
  (void)state;
  for (size_t i = 0; i < sizeof n / sizeof *n; i++)
    for (int causal = 0; causal < 2; causal++)
      for (int paper = 0; paper < 2; paper++)
        for (int64_t window = 0; window <= 120; window += 60) {
          call c = new_call(1, 1, 1, n[i][0], n[i][1], 8, 8, causal, 7);
          c.params = small_params(paper ? hyperattn_paper_params() : hyperattn_default_params(), 20, 7, 9);
          c.params.window = window;
          check(&c, 3e-6);
          free_call(&c);
        }
}

static void test_heads_and_batch(void **state) {
  (void)state;
  call c = new_call(2, 6, 2, 150, 150, 8, 8, 1, 17);
  c.params = small_params(hyperattn_default_params(), 24, 16, 10);
  check(&c, 3e-6);
  free_call(&c);
}

/* Groups of one query, groups larger than a tile, one sub-block, many. */
static void test_groups(void **state) {
  static const int64_t groups[][2] = {{1, 1}, {1, 8}, {3, 5}, {100, 2}, {16, 16}, {1000, 1000}};
  (void)state;
  for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
    for (int order = 0; order < 2; order++) {
      call c = new_call(1, 1, 1, 260, 260, 8, 8, 0, 23);
      c.params = small_params(hyperattn_default_params(), 24, 16, 10);
      c.params.query_group = groups[i][0], c.params.key_group = groups[i][1];
      c.params.order = (hyperattn_order)order;
      check(&c, 3e-6);
      free_call(&c);
    }
}

/* So many keys that sub-blocks are chosen in two levels. */
static void test_two_levels(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 70, 33001, 4, 4, 0, 27);
  c.params = small_params(hyperattn_default_params(), 24, 16, 10);
  hai_plan plan;
  assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
  assert_true(hai_two_levels(&plan, c.problem.n_key));
  check(&c, 3e-6);
  free_call(&c);
}

/* A block of all keys, or all keys as columns: exact. */
static void test_a_budget_of_all_keys_is_exact(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int which = 0; which < 4; which++) {
      call c = new_call(1, 1, 1, 200, 230, 8, 8, causal, 29);
      c.params = hyperattn_paper_params();
      c.params.min_seq_len = 8;
      c.params.block_size = which == 0 ? 230 : which == 1 ? INT64_MAX : 0;
      c.params.sample_size = which == 2 ? 230 : which == 3 ? INT64_MAX : 0;
      assert_exact(&c, 3e-6);
      free_call(&c);
    }
}

/* The same, with the rectangle approximated by force: the stages themselves must come out exact. */
static void test_stages_with_all_keys_are_exact(void **state) {
  (void)state;
  for (int which = 0; which < 3; which++) {
    call c = new_call(1, 1, 1, 200, 230, 8, 8, 0, 31);
    c.params = small_params(hyperattn_default_params(), 8, which == 0 ? 230 : 0, which == 0 ? 0 : 230);
    if (which == 0) c.params.query_group = c.params.key_group = 0;
    c.params.sampling = which == 1 ? HYPERATTN_SAMPLE_COLUMN_MASS : HYPERATTN_SAMPLE_UNIFORM;
    hai_plan plan;
    assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
    plan.outer = 1;
    hai_resolve_steps(&plan);
    hai_resolve_layout(&plan);
    void *workspace = test_alloc(hai_layout_size(&plan.layout, 1));
    for (int phase = 0; phase < hai_phases(&plan); phase++)
      for (int64_t t = 0; t < hai_phase_tasks(&plan, phase); t++) hai_run(&plan, workspace, phase, t, 0);
    double *out = (double *)test_alloc((size_t)out_size(&c.problem) * sizeof(double));
    double *lse = (double *)test_alloc((size_t)lse_size(&c.problem) * sizeof(double));
    reference(&c.problem, out, lse);
    assert_below(relative_error(c.out, out, out_size(&c.problem)), 3e-6);
    assert_below(lse_error(c.lse, lse, lse_size(&c.problem)), 3e-6);
    free(out), free(lse), free(workspace);
    free_call(&c);
  }
}

/* Rectangles that would cost more by choice than exactly are exact; larger ones are not. */
static void test_what_is_worth_approximating(void **state) {
  (void)state;
  hyperattn_params p = hyperattn_default_params();
  p.method = HYPERATTN_HYPER;
  assert_false(is_worth(&p, 1, 32768));   /* probes alone cost more */
  assert_true(is_worth(&p, 512, 32768));  /* a chunk of prefill */
  assert_false(is_worth(&p, 4096, 1023)); /* below min_seq_len */
  assert_true(is_worth(&p, 4096, 1024));
  p.sample_size = 1024;
  assert_false(is_worth(&p, 4096, 1024));
}

/* Algorithm 2's normaliser, recomputed in double from the same choices. */
static void check_cap(float epsilon, float kappa, float spread) {
  call c = new_call(1, 1, 1, 120, 140, 8, 8, 0, 37);
  const hyperattn_problem *p = &c.problem;
  for (int64_t i = 0; i < 120 * 8; i++) c.q[i] *= spread;
  c.params = small_params(hyperattn_paper_params(), 20, 14, 20);
  c.params.cap_epsilon = epsilon, c.params.cap_kappa = kappa;
  size_t bytes = hyperattn_workspace_size(p, &c.params, 1);
  void *workspace = test_alloc(bytes);
  assert_int_equal(hyperattn_forward(p, &c.params, workspace, bytes), HYPERATTN_OK);
  hai_plan plan;
  hai_job job;
  assert_int_equal(hai_resolve(&plan, p, &c.params), HYPERATTN_OK);
  hai_job_at(&job, &plan, workspace, hai_phases(&plan) - 1, 0, 0); /* the choices still lie there */
  double residual_most = 0.0, scale = reference_scale(p);
  double s[120][140];
  int block_of_key[140];
  for (int rank = 0; rank < 140; rank++) block_of_key[key_at(&job, rank)] = (int)hai_part_of(140, 10, rank);
  for (int x = 0; x < 120; x++)
    for (int j = 0; j < 140; j++) {
      s[x][j] = 0.0;
      for (int t = 0; t < 8; t++)
        s[x][j] += (double)c.q[query_at(&job, x) * 8 + t] * (double)c.k[j * 8 + t];
      s[x][j] = exp(s[x][j] * scale);
    }
  for (int t = 0; t < 20; t++) { /* the sampled rows */
    int64_t x = hai_draw(120, 20, t, hai_random(c.params.seed, 0, HAI_FOR_CAP, (uint64_t)t));
    double residual = 0.0;
    for (int j = 0; j < 140; j++)
      if (block_of_key[j] != hai_part_of(120, 10, x)) residual += s[x][j];
    if (residual > residual_most) residual_most = residual;
  }
  double floor_sum = kappa > 0.0f ? residual_most / (double)kappa : 0.0;
  int capped = 0, floored = 0;
  for (int x = 0; x < 120; x++) {
    int64_t i = query_at(&job, x), group = (int)hai_part_of(120, 10, x);
    double block = 0.0, rest = 0.0, top[8] = {0};
    for (int j = 0; j < 140; j++)
      if (block_of_key[j] == group) {
        block += s[x][j];
        for (int t = 0; t < 8; t++) top[t] += s[x][j] * (double)c.v[j * 8 + t];
      }
    double cap = (double)epsilon * (double)epsilon * 20.0 / (140.0 * log(140.0)) * (block + floor_sum);
    for (int t = 0; t < hai_counts(&job)[1]; t++) {
      const hai_column *column = &hai_columns(&job, 0)[t];
      if (column->block == group) continue;
      double w = exp((double)column->log_weight), a = s[x][column->key];
      if (epsilon > 0.0f && a > cap) capped++;
      rest += w * (epsilon > 0.0f && a > cap ? cap : a);
      for (int u = 0; u < 8; u++) top[u] += w * a * (double)c.v[column->key * 8 + u];
    }
    if (rest < floor_sum) floored++;
    double d = block + fmax(rest, floor_sum);
    assert_below(fabs((double)c.lse[i] - log(d)) / fmax(1.0, fabs(log(d))), 3e-6);
    for (int t = 0; t < 8; t++)
      assert_below(fabs((double)c.out[i * 8 + t] - top[t] / d), 2e-5 * fmax(1.0, fabs(top[t] / d)));
  }
  if (epsilon > 0.0f && epsilon < 4.0f) assert_true(capped > 0);
  if (kappa > 0.0f && kappa < 4.0f) assert_true(floored > 0);
  free(workspace);
  free_call(&c);
}

/* Pins are no part of what is capped and floored: neither biting, the result is the plain one. */
static void test_cap_beside_pins(void **state) {
  (void)state;
  for (int by_score = 0; by_score < 2; by_score++) {
    call c = new_call(1, 2, 1, 120, 140, 8, 8, 0, 67);
    double want[2 * 120 * 8], lse[2 * 120];
    c.params = small_params(hyperattn_default_params(), 20, by_score ? 14 : 0, 20);
    c.params.order = HYPERATTN_ORDER_POSITION;
    run(&c);
    for (int i = 0; i < 2 * 120 * 8; i++) want[i] = (double)c.out[i];
    for (int i = 0; i < 2 * 120; i++) lse[i] = (double)c.lse[i];
    c.params.cap_epsilon = 1e6f, c.params.cap_kappa = 1e30f;
    run(&c);
    assert_below(relative_error(c.out, want, 2 * 120 * 8), 1e-5);
    assert_below(lse_error(c.lse, lse, 2 * 120), 1e-5);
    free_call(&c);
  }
}

static void test_cap(void **state) {
  (void)state;
  check_cap(1.0f, 0.0f, 1.0f);
  check_cap(0.0f, 2.0f, 1.0f);
  check_cap(2.0f, 3.0f, 1.0f);
  check_cap(1.0f, 1.5f, 4.0f);
  check_cap(100.0f, 1000.0f, 1.0f); /* neither bites: plain */
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_params),
      cmocka_unit_test(test_shapes),
      cmocka_unit_test(test_heads_and_batch),
      cmocka_unit_test(test_groups),
      cmocka_unit_test(test_two_levels),
      cmocka_unit_test(test_a_budget_of_all_keys_is_exact),
      cmocka_unit_test(test_stages_with_all_keys_are_exact),
      cmocka_unit_test(test_what_is_worth_approximating),
      cmocka_unit_test(test_cap),
      cmocka_unit_test(test_cap_beside_pins),
  };
  return cmocka_run_group_tests_name("hyper", tests, NULL, NULL);
}
