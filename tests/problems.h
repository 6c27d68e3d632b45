/* Random problems, each field on or off, with tensors that lie as engines have them. */
#ifndef HYPERATTN_TESTS_PROBLEMS_H
#define HYPERATTN_TESTS_PROBLEMS_H

#include "formats.h"

/* SLOPE without MASK gives slopes that multiply nothing. */
enum { SOFTCAP = 1, SINK = 2, WINDOW = 4, MASK = 8, SLOPE = 16, PAGES = 32, FORMATS = 64, N_FIELDS = 7 };
enum { ALL_FIELDS = (1 << N_FIELDS) - 1 };

typedef struct any_call {
  call c; /* its tensors are not c.q, c.k, c.v, which are NULL */
  void *owned[16];
  int n_owned;
} any_call;

/* Memory that lives as long as the call. */
static void *keep(any_call *a, void *memory) {
  assert_true(a->n_owned < 16);
  return a->owned[a->n_owned++] = memory;
}
static void free_any_call(any_call *a) {
  while (a->n_owned) free(a->owned[--a->n_owned]);
  free_call(&a->c);
}

/* ---- Tensors ---- */

/* Page numbers in any order, with repeats; entries that no row needs lead nowhere. Either each batch has
   its part of the table and all share the pool, or all share the table and begin a page apart. */
static void any_pages(any_call *a, uint64_t *random, hyperattn_input *x, int64_t rows, int64_t n_pages) {
  int64_t batch = a->c.problem.batch, needed = (rows + x->page_rows - 1) / x->page_rows,
          entries = needed + any_of(random, 0, 3);
  int32_t *page = (int32_t *)keep(a, test_alloc((size_t)(batch * entries) * sizeof *page));
  x->page = page, x->page_stride = x->batch_stride;
  if (any_of(random, 0, 1))
    n_pages -= batch - 1;
  else
    x->batch_stride = 0, x->page_batch_stride = (ptrdiff_t)entries;
  for (int64_t i = 0; i < batch * entries; i++)
    page[i] = i % entries < needed ? (int32_t)any_of(random, 0, n_pages - 1) : INT32_MAX;
}

/* Rows as pages [page][row][head] or [page][head][row], from the first to the last or from the last to the
   first; a tensor without a table is a page for each batch. */
static hyperattn_input any_input(any_call *a, uint64_t *random, hyperattn_dtype dtype, int64_t heads,
                                 int64_t rows, int64_t dim, int paged) {
  static const int64_t sizes[] = {1, 2, 3, 16};
  int64_t batch = a->c.problem.batch, stride, page_rows = rows, n_pages = batch;
  int rows_first = (int)any_of(random, 0, 1);
  hyperattn_input x;
  memset(&x, 0, sizeof x);
  if (paged) {
    page_rows = any_of(random, 0, 4) ? one_of(random, sizes, 4) : any_of(random, 1, rows + 5);
    n_pages = batch * ((rows + page_rows - 1) / page_rows) + 3;
  }
  int64_t lines = n_pages * page_rows * heads;
  float *numbers = many_gaussians(lines * dim, splitmix(random));
  void *data = keep(a, encode(numbers, lines, dim, dtype, &stride));
  set_input(&x, data, dtype, heads, page_rows, stride);
  free(numbers);
  if (rows_first) x.head_stride = (ptrdiff_t)stride, x.row_stride = (ptrdiff_t)(heads * stride);
  if (!any_of(random, 0, 3)) {
    x.data = (const char *)data + stride_bytes(dtype, (ptrdiff_t)(page_rows - 1) * x.row_stride);
    x.row_stride = -x.row_stride;
  }
  x.page_rows = paged ? page_rows : -1; /* unused without a table */
  if (paged) any_pages(a, random, &x, rows, n_pages);
  return x;
}

/* A mask that hides a quarter of the keys and a tenth of the rows, and half the time a run of keys from all. What pads its rows is NaN, and any of
   its strides may be 0. */
static hyperattn_input any_mask(any_call *a, uint64_t *random, hyperattn_dtype dtype) {
  const hyperattn_problem *p = &a->c.problem;
  int64_t width = p->n_key + any_of(random, 0, 3), stride;
  int64_t batch = any_of(random, 0, 1) ? p->batch : 1, heads = any_of(random, 0, 1) ? p->n_heads : 1,
          rows = any_of(random, 0, 3) ? p->n_query : 1, lines = batch * heads * rows;
  int64_t run_begin = any_of(random, 0, p->n_key),
          run_end = any_of(random, 0, 1) * any_of(random, 0, p->n_key);
  float *numbers = many_gaussians(lines * width, splitmix(random));
  for (int64_t r = 0; r < lines; r++) {
    int hides_all = !any_of(random, 0, 9);
    for (int64_t j = 0; j < p->n_key; j++)
      if (hides_all || (run_begin <= j && j < run_end) || !any_of(random, 0, 3))
        numbers[r * width + j] = -INFINITY;
    for (int64_t j = p->n_key; j < width; j++) numbers[r * width + j] = NAN;
  }
  hyperattn_input x;
  memset(&x, 0, sizeof x);
  void *data = keep(a, encode(numbers, lines, width, dtype, &stride));
  set_input(&x, data, dtype, heads, rows, stride);
  free(numbers);
  if (batch == 1) x.batch_stride = 0;
  if (heads == 1) x.head_stride = 0;
  if (rows == 1) x.row_stride = 0;
  return x;
}

/* ---- Calls ---- */

static void any_dtypes(hyperattn_problem *p, uint64_t *random) {
  int all_bf16 = !any_of(random, 0, 3);
  p->query.dtype = all_bf16 ? HYPERATTN_BF16 : (hyperattn_dtype)any_of(random, 0, HYPERATTN_BF16);
  p->key.dtype = all_bf16 ? HYPERATTN_BF16 : (hyperattn_dtype)any_of(random, 0, HYPERATTN_CUSTOM);
  p->value.dtype = all_bf16 ? HYPERATTN_BF16 : (hyperattn_dtype)any_of(random, 0, HYPERATTN_CUSTOM);
}

/* A float for each head: one of a list, or a Gaussian. */
static float *any_per_head(any_call *a, uint64_t *random, const float *list, int64_t n) {
  float *x = (float *)keep(a, gaussians(a->c.problem.n_heads, splitmix(random)));
  for (int64_t h = 0; h < a->c.problem.n_heads; h++)
    if (any_of(random, 0, 1)) x[h] = list[any_of(random, 0, n - 1)];
  return x;
}

/* Gives a problem, of which shape and dtypes are set, its tensors and fields. */
static void fill_any_call(any_call *a, unsigned fields, uint64_t *random) {
  static const float scales[] = {0.0f, 0.4f, -0.3f}, caps[] = {0.25f, 1.0f, 7.0f, 50.0f},
                     slopes[] = {0.0f, -0.5f, 1.0f, 3.0f}, sinks[] = {-INFINITY, 0.0f, 4.0f, 20.0f};
  hyperattn_problem *p = &a->c.problem;
  int64_t paged = fields & PAGES ? any_of(random, 1, 3) : 0; /* keys, values or both */
  p->query = any_input(a, random, p->query.dtype, p->n_heads, p->n_query, p->head_dim, 0);
  p->key = any_input(a, random, p->key.dtype, p->n_kv_heads, p->n_key, p->head_dim, paged & 1);
  p->value = any_input(a, random, p->value.dtype, p->n_kv_heads, p->n_key, p->value_dim, paged & 2);
  p->scale = scales[any_of(random, 0, 2)];
  if (fields & SOFTCAP) p->softcap = caps[any_of(random, 0, 3)];
  if (fields & WINDOW) p->sliding_window = any_of(random, 1, any_of(random, 1, p->n_key + 3));
  if (fields & MASK) p->mask = any_mask(a, random, (hyperattn_dtype)any_of(random, 0, HYPERATTN_BF16));
  if (fields & SLOPE) p->mask_slope = any_per_head(a, random, slopes, 4);
  if (fields & SINK) p->sink = any_per_head(a, random, sinks, 4);
  new_results(&a->c);
}

static any_call new_any_call(unsigned fields, uint64_t *random) {
  static const int64_t lengths[] = {1, 2, 5, 31, 63, 64, 65, 100, 129, 200, 300},
                       dims[] = {1, 3, 8, 16, 31, 32, 33, 40, 64};
  any_call a;
  hyperattn_problem *p = &a.c.problem;
  memset(&a, 0, sizeof a);
  a.c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
  p->batch = any_of(random, 1, 2), p->n_kv_heads = any_of(random, 1, 2);
  p->n_heads = p->n_kv_heads * any_of(random, 1, 3);
  p->n_query = one_of(random, lengths, 10);
  p->n_key = any_of(random, 0, 1) ? p->n_query : one_of(random, lengths, 11);
  p->head_dim = one_of(random, dims, 9), p->value_dim = one_of(random, dims, 9);
  p->causal = (int)any_of(random, 0, 1);
  if (fields & FORMATS) any_dtypes(p, random);
  fill_any_call(&a, fields, random);
  return a;
}

/* Errors of float32; of kernels that round weights to bfloat16. */
static double bound_of(const hyperattn_problem *p) {
  int is_bf16 = p->query.dtype == HYPERATTN_BF16 && p->key.dtype == HYPERATTN_BF16 &&
                p->value.dtype == HYPERATTN_BF16;
  return is_bf16 ? 5e-3 : 5e-6;
}

/* ---- Bits ---- */

/* The same call with results of its own; it reads a's tensors, which must outlive it. */
static any_call twin_of(const any_call *a) {
  any_call twin = *a;
  twin.n_owned = 0;
  new_results(&twin.c);
  return twin;
}

/* The same rows in the same format, contiguous, each head so often in a row. */
static hyperattn_input copy_rows(any_call *a, const hyperattn_input *x, int64_t heads, int64_t copies,
                                 int64_t rows, int64_t dim) {
  size_t bytes = row_bytes(x->dtype, dim);
  int64_t batch = a->c.problem.batch;
  char *to = (char *)keep(a, test_alloc((size_t)(batch * heads * copies * rows) * bytes));
  hyperattn_input y;
  memset(&y, 0, sizeof y);
  set_input(&y, to, x->dtype, heads * copies, rows, row_step(x->dtype, dim));
  for (int64_t b = 0; b < batch; b++)
    for (int64_t h = 0; h < heads * copies; h++)
      for (int64_t r = 0; r < rows; r++, to += bytes) memcpy(to, row_at(x, b, h / copies, r), bytes);
  return y;
}

#endif
