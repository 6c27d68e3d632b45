/* What is wrong in the authors' code (their float32, CUDA and Triton paths), each by name: here it must be right. */
#include "support.h"

/* Their float32 path loses the block mask: a sampled column in the query's own block counts twice. With blocks of half
   the keys and as many samples, the sum over e^lse would be far too large. */
static void test_a_column_in_the_own_block_counts_once(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 128, 128, 8, 8, 0, 201);
  memset(c.k, 0,
         128 * 8 * sizeof(float)); /* every key alike: the sum is 128 exactly, however columns fall */
  c.params = small_params(hyperattn_paper_params(), 16, 32, 32);
  double mean = 0.0;
  for (int seed = 0; seed < 400; seed++) {
    c.params.seed = (uint64_t)seed;
    run(&c);
    for (int i = 0; i < 128; i++) mean += exp((double)c.lse[i]) / (400 * 128);
  }
  assert_below(fabs(mean - 128.0), 0.5); /* counted twice: 160 */
  free_call(&c);
}

/* Their buckets are sorted by Gray encode, 96 of 127 neighbours adjacent: test_selection has all widths. */
static void test_gray_decode_not_encode(void **state) {
  (void)state;
  int adjacent = 0;
  uint32_t at[128];
  for (uint32_t code = 0; code < 128; code++) at[hai_gray_decode(code)] = code;
  for (int i = 0; i < 127; i++) adjacent += !((at[i] ^ at[i + 1]) & ((at[i] ^ at[i + 1]) - 1));
  assert_int_equal(adjacent, 127);
}

/* Their merge adds a float32 epsilon inside a logarithm: lse off by up to 0.05 where the second part dominates. */
static void test_lse_of_a_dominant_part(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 512, 512, 8, 8, 1, 203);
  for (int i = 0; i < 8; i++) c.k[500 * 8 + i] *= 40.0f;
  c.params =
      small_params(hyperattn_default_params(), 64, 512, 512); /* all keys: exact, through every level */
  assert_exact(&c, 2e-6);
  c.params.method = HYPERATTN_EXACT;
  assert_exact(&c, 2e-6);
  free_call(&c);
}

/* Their last sorted block is padded with zero keys that nobody masks: mass e^0 for keys that do not exist. */
static void test_no_padding_in_ragged_blocks(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 100, 101, 8, 8, 0, 207);
  for (int i = 0; i < 100 * 8; i++) c.q[i] = 3.0f;
  for (int i = 0; i < 101 * 8; i++) c.k[i] = -3.0f; /* scores of -25: a padded key would outweigh all */
  c.params = small_params(hyperattn_paper_params(), 16, 32, 32);
  run(&c);
  for (int i = 0; i < 100; i++) assert_below((double)c.lse[i], -15.0);
  free_call(&c);
}

/* block_size = 0 divides by zero there. */
static void test_no_blocks(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 300, 300, 8, 8, 1, 209);
  c.params = small_params(hyperattn_paper_params(), 32, 0, 16);
  run(&c);
  for (int64_t i = 0; i < out_size(&c.problem); i++) assert_true(isfinite(c.out[i]));
  free_call(&c);
}

/* Causal wants n_query == n_key there, value_dim == head_dim, and one key head per query head. */
static void test_causal_chunks_other_dims_shared_keys(void **state) {
  (void)state;
  call c = new_call(1, 4, 2, 200, 700, 16, 24, 1, 211);
  c.params = small_params(hyperattn_default_params(), 64, 256, 256);
  run(&c);
  double *out = (double *)test_alloc((size_t)out_size(&c.problem) * sizeof(double)),
         *lse = (double *)test_alloc((size_t)lse_size(&c.problem) * sizeof(double));
  reference(&c.problem, out, lse);
  assert_below(relative_error(c.out, out, out_size(&c.problem)), 1.0);
  for (int64_t i = 0; i < lse_size(&c.problem); i++) assert_below(fabs((double)c.lse[i] - lse[i]), 1.0);
  free(out), free(lse);
  free_call(&c);
}

/* Columns are drawn with replacement there, from a generator that every call moves on. */
static void test_columns_are_distinct_and_reproducible(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 300, 300, 8, 8, 0, 213);
  c.params = small_params(hyperattn_paper_params(), 32, 16, 100);
  size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  void *workspace = test_alloc(bytes);
  int32_t first[100];
  for (int round = 0; round < 2; round++) {
    hai_plan plan;
    hai_job job;
    char seen[300] = {0};
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, workspace, bytes), HYPERATTN_OK);
    hai_resolve(&plan, &c.problem, &c.params);
    hai_job_at(&job, &plan, workspace, hai_phases(&plan) - 1, 0, 0);
    assert_int_equal(hai_counts(&job)[1], 100);
    for (int i = 0; i < 100; i++) {
      assert_false(seen[hai_columns(&job, 0)[i].key]++);
      if (round) assert_int_equal(first[i], hai_columns(&job, 0)[i].key);
      first[i] = hai_columns(&job, 0)[i].key;
    }
  }
  free(workspace);
  free_call(&c);
}

/* An odd length pads a zero row at every level there. With keys alike and no blocks, the strata's weights add up to the
   keys of each rectangle: row i sums to i + 1, whatever was drawn. */
static void test_odd_lengths(void **state) {
  (void)state;
  for (int64_t n = 333; n < 341; n++) {
    call c = new_call(1, 1, 1, n, n, 8, 8, 1, 217);
    memset(c.k, 0, (size_t)n * 8 * sizeof(float));
    c.params = small_params(hyperattn_paper_params(), 20, 0, 7);
    run(&c);
    for (int64_t i = 0; i < n; i++) assert_below(fabs((double)c.lse[i] - log((double)i + 1.0)), 2e-6);
    free_call(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_a_column_in_the_own_block_counts_once),
      cmocka_unit_test(test_gray_decode_not_encode),
      cmocka_unit_test(test_lse_of_a_dominant_part),
      cmocka_unit_test(test_no_padding_in_ragged_blocks),
      cmocka_unit_test(test_no_blocks),
      cmocka_unit_test(test_causal_chunks_other_dims_shared_keys),
      cmocka_unit_test(test_columns_are_distinct_and_reproducible),
      cmocka_unit_test(test_odd_lengths),
  };
  return cmocka_run_group_tests_name("defects", tests, NULL, NULL);
}
