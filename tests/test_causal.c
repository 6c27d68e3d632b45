/* Causality: a row does not depend on keys and values after it. */
#include "calls.h"

static hyperattn_params preset(int which) {
  hyperattn_params p =
      small_params(which == 0 ? hyperattn_paper_params() : hyperattn_linear_params(), 20, 8, 10);
  if (which == 2) p.order = HYPERATTN_ORDER_SORTLSH, p.sampling = HYPERATTN_SAMPLE_VALUE_NORM;
  if (which == 3) p.method = HYPERATTN_EXACT;
  return p;
}

/* Changing key or value j, to another number or to NaN, leaves all rows before j bit-identical. */
static void test_no_row_feels_a_later_key(void **state) {
  static const int64_t shape[][2] = {{203, 203}, {90, 203}, {203, 90}};
  static const float to[] = {7.0f, NAN, INFINITY, -3e38f, 0.0f};
  (void)state;
  for (int which = 0; which < 4; which++)
    for (int s = 0; s < 3; s++) {
      int64_t nq = shape[s][0], nk = shape[s][1];
      call c = new_call(1, 2, 1, nq, nk, 8, 8, 1, 61);
      c.params = preset(which);
      run(&c);
      float *out = (float *)test_alloc((size_t)out_size(&c.problem) * sizeof(float)),
            *lse = (float *)test_alloc((size_t)lse_size(&c.problem) * sizeof(float));
      memcpy(out, c.out, (size_t)out_size(&c.problem) * sizeof(float));
      memcpy(lse, c.lse, (size_t)lse_size(&c.problem) * sizeof(float));
      for (int64_t j = 0; j < nk; j += 13)
        for (int v = 0; v < 2; v++)
          for (int t = 0; t < 5; t++) {
            float *x = (v ? c.v : c.k) + j * 8 + j % 8, was = *x;
            *x = to[t];
            run(&c);
            *x = was;
            int64_t before = j < nk - nq ? 0 : j - (nk - nq); /* rows 0 .. before - 1 cannot see j */
            for (int64_t h = 0; h < 2; h++) {
              assert_memory_equal(c.out + h * nq * 8, out + h * nq * 8, (size_t)before * 8 * sizeof(float));
              assert_memory_equal(c.lse + h * nq, lse + h * nq, (size_t)before * sizeof(float));
            }
            if (before < nq && t == 1)
              assert_memory_not_equal(c.out, out, (size_t)(nq * 8) * sizeof(float));
          }
      free(out), free(lse);
      free_call(&c);
    }
}

/* A NaN in a query spoils its own row. It may change the choices of others, but their rows stay finite. */
static void test_a_bad_query_spoils_its_own_row(void **state) {
  const float bad[] = {NAN, INFINITY, -INFINITY};
  (void)state;
  for (int which = 0; which < 4; which++)
    for (int causal = 0; causal < 2; causal++)
      for (int b = 0; b < 3; b++) {
        call c = new_call(1, 1, 1, 203, 203, 8, 8, causal, 67);
        c.params = preset(which);
        c.q[151 * 8 + 2] = bad[b];
        run(&c);
        for (int i = 0; i < 203; i++)
          for (int t = 0; t < 8; t++)
            if (i != 151) assert_true(isfinite(c.out[i * 8 + t]));
        assert_false(isfinite(c.lse[151]));
        free_call(&c);
      }
}

/* Chunked prefill: exact attention of the last rows alone equals those rows of the whole, to the bit if one kernel
   serves both: few queries are at least 4 and at most 16. */
static void test_chunks_equal_the_whole(void **state) {
  enum { FEW = 4, MOST = 16 };
  static const int64_t lengths[] = {150, FEW};
  (void)state;
  for (int w = 0; w < 2; w++) {
    int64_t whole = lengths[w];
    call c = new_call(1, 1, 1, whole, 150, 8, 8, 1, 73);
    c.params.method = HYPERATTN_EXACT;
    run(&c);
    for (int64_t rows = 1; rows <= whole; rows += w ? 1 : 37) {
      int is_same = w || rows > MOST;
      call d = c;
      d.problem.n_query = rows;
      d.q = c.q + (whole - rows) * 8;
      d.out = (float *)test_alloc((size_t)rows * 8 * sizeof(float)),
      d.lse = (float *)test_alloc((size_t)rows * sizeof(float));
      bind(&d);
      run(&d);
      const float *out = c.out + (whole - rows) * 8, *lse = c.lse + whole - rows;
      if (is_same) assert_memory_equal(d.out, out, (size_t)rows * 8 * sizeof(float));
      if (is_same) assert_memory_equal(d.lse, lse, (size_t)rows * sizeof(float));
      for (int64_t j = 0; j < rows * 8; j++) assert_below(fabs((double)d.out[j] - (double)out[j]), 1e-6);
      free(d.out), free(d.lse);
    }
    free_call(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_no_row_feels_a_later_key),
      cmocka_unit_test(test_a_bad_query_spoils_its_own_row),
      cmocka_unit_test(test_chunks_equal_the_whole),
  };
  return cmocka_run_group_tests_name("causal", tests, NULL, NULL);
}
