/* What must not change a bit of a result, whatever fields are set: workers, where tensors lie, what a row may
   not see, and what has no effect. And what sizes and checks do not look at. */
#include "calls.h"
#include "same.h"

/* Calls a test with every field alone, with random sets of them and with all, by every method. */
static void for_each_call(void (*test)(any_call *a, uint64_t *random), unsigned fields, int rounds,
                          uint64_t seed) {
  for (int i = 0; i < rounds; i++) {
    unsigned set = i < 3 * N_FIELDS ? 1u << i / 3 : (unsigned)any_of(&seed, 0, ALL_FIELDS);
    any_call a = new_any_call(i % 7 == 6 ? fields : set & fields, &seed);
    a.c.params.method = (hyperattn_method)(i % 3);
    run(&a.c);
    test(&a, &seed);
    free_any_call(&a);
  }
}

/* ---- Workers ---- */

static void test_workers(void **state) {
  (void)state;
  for_each_call(check_workers, ALL_FIELDS, 60, 51);
}

/* ---- Where rows lie ---- */

static void test_rows_may_lie_anywhere(void **state) {
  (void)state;
  for_each_call(check_copies, ALL_FIELDS, 80, 52);
}

/* Pages of keys that causal and the window let no row see may be gone: their numbers lead nowhere. */
static void check_pages_out_of_sight(int64_t n_query, int64_t n_key, int causal) {
  enum { ROWS = 5, WINDOW = 30 };
  call a = new_call(1, 2, 1, n_query, n_key, 8, 8, causal, 61), b = a;
  int32_t *page = (int32_t *)test_alloc((size_t)(n_key / ROWS) * sizeof *page);
  int64_t first = n_key - n_query - WINDOW + 1;
  for (int i = 0; i < n_key / ROWS; i++) page[i] = i < first / ROWS ? INT32_MIN / 2 : i;
  a.problem.sliding_window = b.problem.sliding_window = WINDOW;
  run(&a);
  new_results(&b);
  b.problem.key.page = b.problem.value.page = page,
  b.problem.key.page_rows = b.problem.value.page_rows = ROWS;
  b.problem.key.page_stride = b.problem.value.page_stride = ROWS * 8;
  run(&b);
  assert_same_bits(&a, &b);
  free(page), free(b.out), free(b.lse);
  free_call(&a);
}
static void test_pages_out_of_sight(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++) {
    for (int n_query = 1; n_query < 90; n_query += 11) check_pages_out_of_sight(n_query, 400, causal);
    for (int n_query = 1; n_query < 18; n_query += 4) check_pages_out_of_sight(n_query, 8200, causal);
  }
}

static void test_results_of_16_bits(void **state) {
  (void)state;
  for_each_call(check_narrow, ALL_FIELDS, 60, 59);
}

/* A mask of 16 bits gives the bits of the same numbers as float32. */
static void check_mask_dtypes(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  const hyperattn_problem *p = &a->c.problem;
  float *mask = (float *)keep(&b, test_alloc((size_t)(lse_size(p) * p->n_key) * sizeof(float)));
  double *row = (double *)test_alloc((size_t)p->n_key * sizeof(double));
  (void)random;
  for (int64_t r = 0; p->mask.data && r < lse_size(p); r++) {
    read_row(&p->mask, r / p->n_query / p->n_heads, r / p->n_query % p->n_heads, r % p->n_query, p->n_key,
             row);
    for (int64_t j = 0; j < p->n_key; j++) mask[r * p->n_key + j] = (float)row[j];
  }
  if (p->mask.data) set_input(&b.c.problem.mask, mask, HYPERATTN_F32, p->n_heads, p->n_query, p->n_key);
  run(&b.c);
  assert_same_bits(&a->c, &b.c);
  free(row);
  free_any_call(&b);
}
static void test_masks_of_16_bits(void **state) {
  (void)state;
  for_each_call(check_mask_dtypes, MASK | SLOPE | SOFTCAP | SINK, 40, 53);
}

/* ---- Heads and batches ---- */

static void test_grouped_heads_equal_expanded(void **state) {
  (void)state;
  for_each_call(check_expanded, ALL_FIELDS, 80, 54);
}

/* Kernels of bfloat16 round the weights of two keys at a time. Where a tile's last chunk ends depends on its
   queries, and must not show: here it ends everywhere. */
static void test_chunks_of_bf16_may_end_anywhere(void **state) {
  uint64_t random = 58;
  (void)state;
  for (int i = 0; i < 64; i++) {
    any_call a;
    hyperattn_problem *p = &a.c.problem;
    memset(&a, 0, sizeof a);
    p->batch = p->n_kv_heads = 1, p->n_heads = 33, p->n_query = 40, p->n_key = 64 + i;
    p->head_dim = p->value_dim = 16, p->causal = 1;
    p->query.dtype = p->key.dtype = p->value.dtype = HYPERATTN_BF16;
    a.c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
    a.c.params.method = HYPERATTN_EXACT;
    if (i % 2 && has_kernel(HYPERATTN_ISA_AVX512_BF16)) a.c.params.isa = HYPERATTN_ISA_AVX512_BF16;
    fill_any_call(&a, 0, &random);
    p->scale = 1.0f, p->sliding_window = i % 3 ? 7 + i : 0;
    run(&a.c);
    check_expanded(&a, &random);
    free_any_call(&a);
  }
}

/* A sum of -1e-38 vanishes where scores leap by 80. Whether another chunk, hidden from one of the heads, is then
   met with weight 0 depends on the tile; the zero has the same sign. */
static void test_zeros_have_one_sign(void **state) {
  enum { KEYS = 192 };
  float q[4] = {1, 0, 1, 0}, k[KEYS * 2], v[KEYS], mask[2 * KEYS], out[2][2];
  (void)state;
  for (int j = 0; j < KEYS; j++) {
    k[2 * j] = j < 64 ? 0.0f : 80.0f, k[2 * j + 1] = 0.0f, v[j] = j < 64 ? -1e-38f : 0.0f;
    mask[j] = j < 128 ? 0.0f : -INFINITY, mask[KEYS + j] = 0.0f;
  }
  for (int expanded = 0; expanded < 2; expanded++) {
    call c;
    memset(&c, 0, sizeof c);
    c.params = hyperattn_default_params();
    c.problem = hyperattn_heads_first(1, 2, 1 + expanded, 1, KEYS, 2, 1, q, k, v, out[expanded]);
    c.problem.key.head_stride = c.problem.value.head_stride = 0;
    c.problem.scale = 1.0f, c.problem.mask.data = mask, c.problem.mask.head_stride = KEYS;
    run(&c);
  }
  assert_memory_equal(out[0], out[1], sizeof out[0]);
}

static void test_slices_equal_the_whole(void **state) {
  (void)state;
  for_each_call(check_slice, ALL_FIELDS, 80, 55);
}

/* ---- What a row may not see ---- */

static void test_hidden_rows_change_nothing(void **state) {
  (void)state;
  for_each_call(check_hidden, ALL_FIELDS, 160, 56);
}

/* A window that hides no key of the call is none, also where the call then approximates. */
static void check_wide_window(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  hyperattn_problem *p = &b.c.problem;
  int64_t widest = p->causal || p->n_key > p->n_query ? p->n_key : p->n_query;
  p->sliding_window = any_of(random, 0, 3) ? widest : INT64_MAX;
  run(&b.c);
  assert_same_bits(&a->c, &b.c);
  free_any_call(&b);
}
static void test_wide_windows_are_none(void **state) {
  (void)state;
  for_each_call(check_wide_window, ALL_FIELDS & ~WINDOW, 60, 57);
}

/* ---- Sizes ---- */

static void test_sizes_are_what_is_needed(void **state) {
  (void)state;
  for_each_call(check_size, ALL_FIELDS, 60, 58);
}

/* Sizes never fall as queries, keys and workers become more, also where a window that hid nothing begins to
   hide, so that a call that was approximated becomes exact. */
static void test_sizes_never_fall(void **state) {
  uint64_t random = 59;
  (void)state;
  for (int round = 0; round < 300; round++) {
    unsigned fields = round < 4 * N_FIELDS ? 1u << round / 4 : (unsigned)any_of(&random, 0, ALL_FIELDS);
    hyperattn_problem p = nowhere(fields, round % 2);
    hyperattn_params a =
        small_params(round % 4 / 2 ? hyperattn_linear_params() : hyperattn_paper_params(),
                     any_of(&random, 1, 100), any_of(&random, 0, 60), any_of(&random, 0, 60));
    if (fields & WINDOW) p.sliding_window = any_of(&random, 1, 1000);
    if (any_of(&random, 0, 1)) p.report = (hyperattn_report *)(uintptr_t)4096;
    a.method = round % 3 ? HYPERATTN_HYPER : round % 16 ? HYPERATTN_SCAN : HYPERATTN_EXACT;
    if (a.method && any_of(&random, 0, 1)) p.query_error = (float *)(uintptr_t)4096;
    check_sizes_never_fall(p, &a, 1200, &random);
  }
}

/* Sizes, counts and checks read neither tensors nor tables, masks, slopes or sinks. */
static void test_checks_read_nothing(void **state) {
  (void)state;
  for (unsigned fields = 0; fields <= ALL_FIELDS; fields++)
    for (int method = 0; method < 3; method++) {
      hyperattn_problem p = nowhere(fields, method != 0);
      hyperattn_params a = small_params(hyperattn_linear_params(), 24, 12, 10);
      a.method = (hyperattn_method)method;
      p.n_query = p.n_key = 300, p.out.row_stride = 8;
      size_t bytes = hyperattn_workspace_size(&p, &a, 2);
      void *workspace = test_alloc(bytes);
      assert_string_equal(hyperattn_status_string(hyperattn_check(&p, &a, workspace, bytes, 2)), "ok");
      assert_true(bytes > 0 && hyperattn_phase_tasks(&p, &a, hyperattn_phase_count(&p, &a) - 1) > 0);
      free(workspace);
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_workers),
      cmocka_unit_test(test_rows_may_lie_anywhere),
      cmocka_unit_test(test_pages_out_of_sight),
      cmocka_unit_test(test_results_of_16_bits),
      cmocka_unit_test(test_masks_of_16_bits),
      cmocka_unit_test(test_grouped_heads_equal_expanded),
      cmocka_unit_test(test_chunks_of_bf16_may_end_anywhere),
      cmocka_unit_test(test_zeros_have_one_sign),
      cmocka_unit_test(test_slices_equal_the_whole),
      cmocka_unit_test(test_hidden_rows_change_nothing),
      cmocka_unit_test(test_wide_windows_are_none),
      cmocka_unit_test(test_sizes_are_what_is_needed),
      cmocka_unit_test(test_sizes_never_fall),
      cmocka_unit_test(test_checks_read_nothing),
  };
  return cmocka_run_group_tests_name("same", tests, NULL, NULL);
}
