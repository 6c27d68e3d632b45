/* What must not change a bit of a result: checks of a call that was run, with any fields. */
#ifndef HYPERATTN_TESTS_SAME_H
#define HYPERATTN_TESTS_SAME_H

#include "problems.h"

/* ---- Workers ---- */

/* Any number of them, in any order, as one call or phase by phase. */
static void check_workers(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  run_shuffled(&b.c, (int)any_of(random, 2, 5));
  assert_same_bits(&a->c, &b.c);
  run_phases(&b.c, (int)any_of(random, 1, 5));
  assert_same_bits(&a->c, &b.c);
  free_any_call(&b);
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
/* Results of 16 bits are those of float32, rounded, also where no lse is asked for. */
static void check_narrow(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  hyperattn_problem *p = &b.c.problem;
  size_t n = (size_t)out_size(p);
  uint16_t *out = (uint16_t *)keep(&b, test_alloc(n * sizeof *out));
  p->out.data = out, p->out.dtype = (hyperattn_dtype)any_of(random, HYPERATTN_F16, HYPERATTN_BF16);
  if (any_of(random, 0, 1)) p->lse = NULL;
  memset(out, 0xff, n * sizeof *out);
  run(&b.c);
  for (size_t i = 0; i < n; i++) assert_int_equal(out[i], narrowed(p->out.dtype, a->c.out[i]));
  if (p->lse) assert_memory_equal(a->c.lse, b.c.lse, (size_t)lse_size(p) * sizeof(float));
  free_any_call(&b);
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

/* Does spoil_row leave NaN in rows of a dtype? */
static int is_spoilt_to_nan(hyperattn_dtype dtype, float bad) {
  return isnan(bad) || dtype > HYPERATTN_BF16;
}

/* A key and value that become NaN or infinite change no bit of the rows that they are hidden from. In exact
   attention NaN makes the others NaN: all of it in a key, out in a value. */
static void check_hidden(any_call *a, uint64_t *random) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  any_call b = twin_of(a);
  const hyperattn_problem *p = &b.c.problem;
  int is_near = (int)any_of(random, 0, 1); /* one of the last keys: causal hides it from some rows */
  int64_t spoilt =
              any_of(random, is_near && p->n_key > p->n_query ? p->n_key - p->n_query : 0, p->n_key - 1),
          row = 0;
  float bad_key = bad[any_of(random, 0, 2)], bad_value = bad[any_of(random, 0, 2)];
  double *weight = (double *)test_alloc((size_t)p->n_key * sizeof(double));
  b.c.problem.key = copy_rows(&b, &p->key, p->n_kv_heads, 1, p->n_key, p->head_dim);
  b.c.problem.value = copy_rows(&b, &p->value, p->n_kv_heads, 1, p->n_key, p->value_dim);
  for (int64_t i = 0; i < p->batch * p->n_kv_heads; i++) {
    spoil_row(&p->key, i / p->n_kv_heads, i % p->n_kv_heads, spoilt, p->head_dim, bad_key);
    spoil_row(&p->value, i / p->n_kv_heads, i % p->n_kv_heads, spoilt, p->value_dim, bad_value);
  }
  run(&b.c);
  for (int64_t i = 0; i < p->batch; i++)
    for (int64_t h = 0; h < p->n_heads; h++)
      for (int64_t r = 0; r < p->n_query; r++, row++) {
        const float *out = b.c.out + row * p->value_dim;
        size_t bytes = (size_t)p->value_dim * sizeof(float);
        int is_nan_key = is_spoilt_to_nan(p->key.dtype, bad_key);
        reference_weights(p, i, h, r, weight);
        if (weight[spoilt] == -INFINITY) {
          assert_memory_equal(a->c.lse + row, b.c.lse + row, sizeof(float));
          assert_memory_equal(a->c.out + row * p->value_dim, out, bytes);
        } else if (a->c.params.method == HYPERATTN_EXACT) {
          if (is_nan_key) assert_true(isnan(b.c.lse[row]));
          for (int64_t t = 0; t < p->value_dim; t++)
            if (is_nan_key || is_spoilt_to_nan(p->value.dtype, bad_value)) assert_true(isnan(out[t]));
        }
      }
  free(weight);
  free_any_call(&b);
}

/* In exact attention a row depends on no other row's query. */
static void check_company(any_call *a, uint64_t *random) {
  static const float other[] = {NAN, INFINITY, -INFINITY, 0.0f, -3.0f, 1e4f};
  any_call b = twin_of(a);
  const hyperattn_problem *p = &b.c.problem;
  int64_t kept = any_of(random, 0, lse_size(p) - 1), row = 0;
  b.c.problem.query = copy_rows(&b, &p->query, p->n_heads, 1, p->n_query, p->head_dim);
  for (int64_t i = 0; i < p->batch; i++)
    for (int64_t h = 0; h < p->n_heads; h++)
      for (int64_t r = 0; r < p->n_query; r++, row++)
        if (row != kept) spoil_row(&p->query, i, h, r, p->head_dim, other[any_of(random, 0, 5)]);
  run(&b.c);
  assert_memory_equal(a->c.lse + kept, b.c.lse + kept, sizeof(float));
  assert_memory_equal(a->c.out + kept * p->value_dim, b.c.out + kept * p->value_dim,
                      (size_t)p->value_dim * sizeof(float));
  free_any_call(&b);
}

/* ---- Sizes ---- */

/* The size that is asked for is what a call needs: one byte fewer is refused, and the bytes around it are
   not touched. What lies in it before does not matter. */
static void check_size(any_call *a, uint64_t *random) {
  static const int fills[] = {0, 0x7f, 0xa5, 0xff};
  any_call b = twin_of(a);
  const hyperattn_problem *p = &b.c.problem;
  const hyperattn_params *params = &b.c.params;
  shuffled s = {(int)any_of(random, 1, 5), 0};
  hyperattn_parallel parallel = {s.n_workers, &s, shuffled_for};
  size_t bytes = hyperattn_workspace_size(p, params, s.n_workers),
         guard = 128 + (size_t)any_of(random, 0, 63);
  unsigned char *w = (unsigned char *)test_alloc(bytes + 2 * guard),
                fill = (unsigned char)fills[any_of(random, 0, 3)];
  memset(w, fill, bytes + 2 * guard);
  assert_int_equal(hyperattn_check(p, params, w + guard, bytes - 1, s.n_workers),
                   HYPERATTN_ERROR_WORKSPACE_SIZE);
  assert_int_equal(hyperattn_forward_parallel(p, params, &parallel, w + guard, bytes), HYPERATTN_OK);
  for (size_t i = 0; i < guard; i++) assert_true(w[i] == fill && w[guard + bytes + i] == fill);
  assert_same_bits(&a->c, &b.c);
  free(w);
  free_any_call(&b);
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

/* Sizes for up to `top` rows never fall as queries, keys, both, and workers become more. */
static void check_sizes_never_fall(hyperattn_problem p, const hyperattn_params *a, int64_t top, uint64_t *random) {
  for (int axis = 0; axis < 3; axis++) {
    size_t before = 0;
    p.n_query = p.n_key = any_of(random, 0, top);
    for (int64_t n = 0; n < top; n += any_of(random, 1, top / 130)) {
      if (axis != 1) p.n_query = n;
      if (axis != 0) p.n_key = n;
      size_t size = hyperattn_workspace_size(&p, a, 1), two = hyperattn_workspace_size(&p, a, 2);
      assert_true(size >= before && size > 0);
      assert_true(two >= size && hyperattn_workspace_size(&p, a, 3) >= two);
      before = size;
    }
  }
}

#endif
