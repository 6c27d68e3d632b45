/* Exact attention against the double reference, over shapes. */
#include "calls.h"

static void check(int64_t batch, int64_t heads, int64_t kv_heads, int64_t n_query, int64_t n_key,
                  int64_t head_dim, int64_t value_dim, int causal) {
  call c = new_call(batch, heads, kv_heads, n_query, n_key, head_dim, value_dim, causal,
                    (uint64_t)(n_query * 31 + n_key));
  c.params.method = HYPERATTN_EXACT;
  assert_exact(&c, 2e-6);
  free_call(&c);
}

static void test_sizes(void **state) {
  static const int64_t n[] = {1, 2, 3, 15, 16, 17, 31, 47, 48, 49, 63, 64, 65, 97, 127, 128, 129, 193, 257};
  (void)state;
  for (size_t i = 0; i < sizeof n / sizeof *n; i++)
    for (int causal = 0; causal < 2; causal++) check(1, 1, 1, n[i], n[i], 16, 16, causal);
}

static void test_rectangular(void **state) {
  static const int64_t n[] = {1, 7, 50, 64, 130, 300};
  (void)state;
  for (size_t i = 0; i < 6; i++)
    for (size_t j = 0; j < 6; j++)
      for (int causal = 0; causal < 2; causal++) check(1, 2, 1, n[i], n[j], 8, 12, causal);
}

static void test_dims(void **state) {
  static const int64_t d[] = {1, 2, 3, 5, 7, 8, 9, 40, 64, 72, 80, 96, 128, 192, 256, 575, 576};
  (void)state;
  for (size_t i = 0; i < sizeof d / sizeof *d; i++) {
    check(1, 1, 1, 33, 70, d[i], d[sizeof d / sizeof *d - 1 - i], 1);
    check(1, 1, 1, 33, 70, d[i], d[i], 0);
  }
}

static void test_heads_and_batch(void **state) {
  (void)state;
  check(2, 6, 6, 40, 40, 16, 16, 1);
  check(3, 6, 2, 40, 90, 16, 16, 1);
  check(2, 8, 1, 1, 200, 32, 32, 1);
}

static void test_nothing(void **state) {
  (void)state;
  static const int64_t shape[][3] = {{0, 5, 5}, {1, 0, 5}, {1, 5, 0}, {0, 0, 0}};
  for (int causal = 0; causal < 2; causal++)
    for (int i = 0; i < 4; i++)
      for (int method = 0; method < 2; method++) {
        call c = new_call(shape[i][0], 2, 1, shape[i][1], shape[i][2], 4, 3, causal, 1);
        if (method) c.params.method = HYPERATTN_EXACT;
        run(&c);
        for (int64_t j = 0; j < out_size(&c.problem); j++) assert_true(c.out[j] == 0.0f);
        for (int64_t j = 0; j < lse_size(&c.problem); j++) assert_true(c.lse[j] == -INFINITY);
        free_call(&c);
      }
}

static void test_rows_before_the_first_key_are_empty(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 40, 10, 8, 8, 1, 5);
  run(&c);
  for (int i = 0; i < 30; i++) {
    assert_true(c.lse[i] == -INFINITY);
    for (int t = 0; t < 8; t++) assert_true(c.out[i * 8 + t] == 0.0f);
  }
  assert_true(isfinite(c.lse[30]));
  free_call(&c);
}

static void test_scale(void **state) {
  (void)state;
  static const float scale[] = {0.3f, 1.0f, -0.7f, 1e-20f};
  for (int i = 0; i < 4; i++) {
    call c = new_call(1, 1, 1, 50, 60, 24, 24, 0, 8);
    c.problem.scale = scale[i];
    c.params.method = HYPERATTN_EXACT;
    assert_exact(&c, 2e-6);
    free_call(&c);
  }
}

/* Scores near +-1e5: one key takes all, or many tie. Nothing overflows, and no row becomes empty. */
static void test_large_logits(void **state) {
  (void)state;
  for (int sign = -1; sign <= 1; sign += 2) {
    call c = new_call(1, 1, 1, 70, 200, 4, 6, 1, 9);
    for (int64_t i = 0; i < 200 * 4; i++) c.k[i] = (float)(sign * 64) * (float)(((i / 4) % 7) + 1);
    for (int64_t i = 0; i < 70 * 4; i++) c.q[i] = 128.0f;
    c.problem.scale = 0.5f; /* scores up to 64 * 7 * 128 * 4 / 2 = 114688, exact in float */
    c.params.method = HYPERATTN_EXACT;
    assert_exact(&c, 2e-6);
    c.params = small_params(hyperattn_linear_params(), 32, 16, 16);
    run(&c);
    for (int64_t i = 0; i < 70 * 6; i++) assert_true(isfinite(c.out[i]));
    free_call(&c);
  }
}

/* A value row without a finite number is hidden from queries that may not see it, and reaches those that
   may. */
static void test_only_bad_values_are_hidden(void **state) {
  (void)state;
  for (int value_dim = 1; value_dim < 20; value_dim += 6) {
    call c = new_call(1, 1, 1, 2, 2, 4, value_dim, 1, 13);
    for (int t = 0; t < value_dim; t++) c.v[value_dim + t] = INFINITY;
    c.params.method = HYPERATTN_EXACT;
    run(&c);
    for (int t = 0; t < value_dim; t++) {
      assert_true(c.out[t] == c.v[t]); /* the one key that it sees */
      assert_true(c.out[value_dim + t] == INFINITY);
    }
    free_call(&c);
  }
}

/* NaN and infinity in a key or value reach every row that sees it, and no other. */
static void test_not_finite(void **state) {
  const float bad[] = {NAN, INFINITY, -INFINITY};
  (void)state;
  for (int which = 0; which < 3; which++)
    for (int b = 0; b < 3; b++) {
      call c = new_call(1, 1, 1, 150, 150, 8, 8, 1, 11), d = new_call(1, 1, 1, 150, 150, 8, 8, 1, 11);
      c.params.method = d.params.method = HYPERATTN_EXACT;
      float *x = which == 0 ? d.q : which == 1 ? d.k : d.v;
      x[77 * 8 + 3] = bad[b];
      run(&c), run(&d);
      for (int i = 0; i < 150; i++) {
        int touched = which == 0 ? i == 77 : i >= 77;
        if (!touched) {
          assert_memory_equal(c.out + i * 8, d.out + i * 8, 8 * sizeof(float));
          assert_memory_equal(c.lse + i, d.lse + i, sizeof(float));
        } else if (which == 2) {
          assert_false(isfinite(d.out[i * 8 + 3]));
          assert_true(isfinite(d.out[i * 8 + 4]) && isfinite(d.lse[i]));
        } else if (b == 0) {
          assert_true(isnan(d.out[i * 8]) && isnan(d.lse[i]));
        }
      }
      free_call(&c), free_call(&d);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_rectangular),
      cmocka_unit_test(test_dims),
      cmocka_unit_test(test_heads_and_batch),
      cmocka_unit_test(test_nothing),
      cmocka_unit_test(test_rows_before_the_first_key_are_empty),
      cmocka_unit_test(test_scale),
      cmocka_unit_test(test_large_logits),
      cmocka_unit_test(test_only_bad_values_are_hidden),
      cmocka_unit_test(test_not_finite),
  };
  return cmocka_run_group_tests_name("exact", tests, NULL, NULL);
}
