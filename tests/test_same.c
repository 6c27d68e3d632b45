/* What must not change a bit of a result, whatever fields are set: workers, where tensors lie, what a row may
   not see, and what has no effect. And what sizes and checks do not look at. */
#include "calls.h"
#include "problems.h"

/* Calls a test with every field alone, with random sets of them and with all, by both methods. */
static void for_each_call(void (*test)(any_call *a, uint64_t *random), unsigned fields, int rounds,
                          uint64_t seed) {
  for (int i = 0; i < rounds; i++) {
    unsigned set = i < 2 * N_FIELDS ? 1u << i / 2 : (unsigned)any_of(&seed, 0, ALL_FIELDS);
    any_call a = new_any_call(i % 7 == 6 ? fields : set & fields, &seed);
    a.c.params.method = i % 2 ? HYPERATTN_EXACT : HYPERATTN_HYPER;
    run(&a.c);
    test(&a, &seed);
    free_any_call(&a);
  }
}

/* ---- Workers ---- */

static void check_workers(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  (void)random;
  run_shuffled(&b.c, 3);
  assert_same_bits(&a->c, &b.c);
  run_phases(&b.c, 3);
  assert_same_bits(&a->c, &b.c);
  free_any_call(&b);
}
static void test_workers(void **state) {
  (void)state;
  for_each_call(check_workers, ALL_FIELDS, 60, 51);
}

/* ---- Where rows lie ---- */

/* Pages, strides and masks that repeat give the bits of contiguous tensors. */
static void check_copies(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  const hyperattn_problem *p = &a->c.problem;
  (void)random;
  b.c.problem.query = copy_rows(&b, &p->query, p->n_heads, 1, p->n_query, p->head_dim);
  b.c.problem.key = copy_rows(&b, &p->key, p->n_kv_heads, 1, p->n_key, p->head_dim);
  b.c.problem.value = copy_rows(&b, &p->value, p->n_kv_heads, 1, p->n_key, p->value_dim);
  if (p->mask.data) b.c.problem.mask = copy_rows(&b, &p->mask, p->n_heads, 1, p->n_query, p->n_key);
  run(&b.c);
  assert_same_bits(&a->c, &b.c);
  free_any_call(&b);
}
static void test_rows_may_lie_anywhere(void **state) {
  (void)state;
  for_each_call(check_copies, ALL_FIELDS, 80, 52);
}

/* Pages of keys that causal and the window let no row see may be gone: their numbers lead nowhere. */
static void test_pages_out_of_sight(void **state) {
  enum { KEYS = 400, ROWS = 5, WINDOW = 30 };
  (void)state;
  for (int n_query = 1; n_query < 90; n_query += 11)
    for (int causal = 0; causal < 2; causal++) {
      call a = new_call(1, 2, 1, n_query, KEYS, 8, 8, causal, 61), b = a;
      int32_t page[KEYS / ROWS];
      int first = KEYS - n_query - WINDOW + 1;
      for (int i = 0; i < KEYS / ROWS; i++) page[i] = i < first / ROWS ? INT32_MIN / 2 : i;
      a.problem.sliding_window = b.problem.sliding_window = WINDOW;
      run(&a);
      new_results(&b);
      b.problem.key.page = b.problem.value.page = page,
      b.problem.key.page_rows = b.problem.value.page_rows = ROWS;
      b.problem.key.page_stride = b.problem.value.page_stride = ROWS * 8;
      run(&b);
      assert_same_bits(&a, &b);
      free(b.out), free(b.lse);
      free_call(&a);
    }
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

/* Heads that share a kv head give the bits of heads with keys of their own. With one kv head, these may be
   the same rows, in the same pages. */
static void check_expanded(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  const hyperattn_problem *p = &a->c.problem;
  int64_t copies = p->n_heads / p->n_kv_heads;
  if (p->n_kv_heads == 1 && any_of(random, 0, 1)) {
    b.c.problem.key.head_stride = b.c.problem.value.head_stride = 0;
  } else {
    b.c.problem.key = copy_rows(&b, &p->key, p->n_kv_heads, copies, p->n_key, p->head_dim);
    b.c.problem.value = copy_rows(&b, &p->value, p->n_kv_heads, copies, p->n_key, p->value_dim);
  }
  b.c.problem.n_kv_heads = p->n_heads;
  run(&b.c);
  assert_same_bits(&a->c, &b.c);
  free_any_call(&b);
}
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
    a.c.params = small_params(hyperattn_default_params(), 24, 12, 10);
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

/* A tensor from an element of its batch and a head on. */
static hyperattn_input slice_of(const hyperattn_input *x, int64_t b, int64_t h) {
  hyperattn_input y = *x;
  y.page = NULL;
  y.data = row_at(&y, b, h, 0);
  if (x->page) y.page = x->page + (ptrdiff_t)b * x->page_batch_stride;
  return y;
}

/* One head of one batch, computed alone with its mask, slope and sink, has the bits of the whole. */
static void check_slice(any_call *a, uint64_t *random) {
  any_call b = *a;
  const hyperattn_problem *p = &a->c.problem;
  hyperattn_problem *part = &b.c.problem;
  int64_t batch = any_of(random, 0, p->batch - 1), h = any_of(random, 0, p->n_heads - 1),
          kv = h / (p->n_heads / p->n_kv_heads), row = (batch * p->n_heads + h) * p->n_query;
  part->batch = part->n_heads = part->n_kv_heads = 1;
  part->query = slice_of(&p->query, batch, h);
  part->key = slice_of(&p->key, batch, kv), part->value = slice_of(&p->value, batch, kv);
  if (p->mask.data) part->mask = slice_of(&p->mask, batch, h);
  if (p->mask_slope) part->mask_slope = p->mask_slope + h;
  if (p->sink) part->sink = p->sink + h;
  new_results(&b.c);
  run(&b.c);
  assert_memory_equal(b.c.out, a->c.out + row * p->value_dim, (size_t)out_size(part) * sizeof(float));
  assert_memory_equal(b.c.lse, a->c.lse + row, (size_t)lse_size(part) * sizeof(float));
  free(b.c.out), free(b.c.lse);
}
static void test_slices_equal_the_whole(void **state) {
  (void)state;
  for_each_call(check_slice, ALL_FIELDS, 80, 55);
}

/* ---- What a row may not see ---- */

/* Overwrites a contiguous row with what is not a number, or with infinities where the format has them. */
static void spoil_row(const hyperattn_input *x, int64_t b, int64_t h, int64_t r, int64_t dim, float bad) {
  char *row = (char *)(uintptr_t)row_at(x, b, h, r);
  memset(row, 0xff, row_bytes(x->dtype, dim)); /* NaN as a number, and as a scale of blocks */
  for (int64_t t = 0; t < dim; t++) {
    uint16_t half = narrowed(x->dtype, bad);
    if (x->dtype == HYPERATTN_F32) memcpy(row + 4 * t, &bad, 4);
    if (x->dtype == HYPERATTN_F16 || x->dtype == HYPERATTN_BF16) memcpy(row + 2 * t, &half, 2);
  }
}

/* A key and value that become NaN or infinite change no bit of the rows that they are hidden from. */
static void check_hidden(any_call *a, uint64_t *random) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  any_call b = twin_of(a);
  const hyperattn_problem *p = &b.c.problem;
  int64_t spoilt = any_of(random, 0, p->n_key - 1), row = 0;
  double *weight = (double *)test_alloc((size_t)p->n_key * sizeof(double));
  b.c.problem.key = copy_rows(&b, &p->key, p->n_kv_heads, 1, p->n_key, p->head_dim);
  b.c.problem.value = copy_rows(&b, &p->value, p->n_kv_heads, 1, p->n_key, p->value_dim);
  for (int64_t i = 0; i < p->batch * p->n_kv_heads; i++) {
    spoil_row(&p->key, i / p->n_kv_heads, i % p->n_kv_heads, spoilt, p->head_dim,
              bad[any_of(random, 0, 2)]);
    spoil_row(&p->value, i / p->n_kv_heads, i % p->n_kv_heads, spoilt, p->value_dim,
              bad[any_of(random, 0, 2)]);
  }
  run(&b.c);
  for (int64_t i = 0; i < p->batch; i++)
    for (int64_t h = 0; h < p->n_heads; h++)
      for (int64_t r = 0; r < p->n_query; r++, row++) {
        reference_weights(p, i, h, r, weight);
        if (weight[spoilt] != -INFINITY) continue;
        assert_memory_equal(a->c.lse + row, b.c.lse + row, sizeof(float));
        assert_memory_equal(a->c.out + row * p->value_dim, b.c.out + row * p->value_dim,
                            (size_t)p->value_dim * sizeof(float));
      }
  free(weight);
  free_any_call(&b);
}
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

/* The size that is asked for is what a call needs: one byte fewer is refused, and the bytes around it are
   not touched. */
static void check_size(any_call *a, uint64_t *random) {
  const hyperattn_problem *p = &a->c.problem;
  const hyperattn_params *params = &a->c.params;
  size_t bytes = hyperattn_workspace_size(p, params, 1), guard = 128 + (size_t)any_of(random, 0, 63);
  unsigned char *w = (unsigned char *)test_alloc(bytes + 2 * guard);
  memset(w, 0xa5, bytes + 2 * guard);
  assert_int_equal(hyperattn_check(p, params, w + guard, bytes - 1, 1), HYPERATTN_ERROR_WORKSPACE_SIZE);
  assert_int_equal(hyperattn_forward(p, params, w + guard, bytes), HYPERATTN_OK);
  for (size_t i = 0; i < guard; i++) assert_true(w[i] == 0xa5 && w[guard + bytes + i] == 0xa5);
  free(w);
}
static void test_sizes_are_what_is_needed(void **state) {
  (void)state;
  for_each_call(check_size, ALL_FIELDS, 60, 58);
}

/* A problem whose pointers lead nowhere, so that a read of them ends the program. */
static hyperattn_problem nowhere(unsigned fields, int causal) {
  char *unmapped = (char *)(uintptr_t)4096;
  hyperattn_problem p;
  memset(&p, 0, sizeof p);
  p.batch = 1, p.n_heads = 2, p.n_kv_heads = 1, p.head_dim = 16, p.value_dim = 8, p.causal = causal;
  p.query.data = p.key.data = p.value.data = unmapped, p.out.data = (char *)(uintptr_t)(1u << 30);
  set_strides(&p.out.batch_stride, &p.out.head_stride, &p.out.row_stride, 1, 1, 8);
  p.out.head_stride = 1 << 20;
  if (fields & SOFTCAP) p.softcap = 30.0f;
  if (fields & SINK) p.sink = (const float *)(const void *)unmapped;
  if (fields & WINDOW) p.sliding_window = 400;
  if (fields & MASK) p.mask.data = unmapped;
  if (fields & SLOPE) p.mask_slope = (const float *)(const void *)unmapped;
  if (fields & PAGES) {
    p.key.page = p.value.page = (const int32_t *)(const void *)unmapped;
    p.key.page_rows = 3, p.value.page_rows = 16;
  }
  if (fields & FORMATS) p.key.dtype = HYPERATTN_CUSTOM, p.value.dtype = HYPERATTN_Q8_0;
  p.key.widen = widen_bytes;
  return p;
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
        small_params(round % 4 / 2 ? hyperattn_default_params() : hyperattn_paper_params(),
                     any_of(&random, 1, 100), any_of(&random, 0, 60), any_of(&random, 0, 60));
    if (fields & WINDOW) p.sliding_window = any_of(&random, 1, 1000);
    if (any_of(&random, 0, 1)) p.report = (hyperattn_report *)(uintptr_t)4096;
    a.method = round % 16 ? HYPERATTN_HYPER : HYPERATTN_EXACT;
    for (int axis = 0; axis < 3; axis++) {
      size_t before = 0;
      p.n_query = p.n_key = any_of(&random, 0, 1200);
      for (int64_t n = 0; n < 1200; n += any_of(&random, 1, 9)) {
        if (axis != 1) p.n_query = n;
        if (axis != 0) p.n_key = n;
        size_t size = hyperattn_workspace_size(&p, &a, 1);
        assert_true(size >= before && size > 0);
        assert_true(hyperattn_workspace_size(&p, &a, 2) >= size);
        before = size;
      }
    }
  }
}

/* Sizes, counts and checks read neither tensors nor tables, masks, slopes or sinks. */
static void test_checks_read_nothing(void **state) {
  (void)state;
  for (unsigned fields = 0; fields <= ALL_FIELDS; fields++)
    for (int method = 0; method < 2; method++) {
      hyperattn_problem p = nowhere(fields, method);
      hyperattn_params a = small_params(hyperattn_default_params(), 24, 12, 10);
      a.method = method ? HYPERATTN_EXACT : HYPERATTN_HYPER;
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
