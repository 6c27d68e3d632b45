/* What a call may have besides shapes and tensors: a soft cap, a sliding window, sinks, a mask, keys and
   values in pages or in a format of the fuzzer's own. */
#ifndef HYPERATTN_TESTS_FIELDS_H
#define HYPERATTN_TESTS_FIELDS_H

#include "fuzz.h"

typedef struct fields {
  tensor mask;
  float *sink, *slope; /* the memory of the problem's, or NULL */
} fields;

/* ---- Formats and pages ---- */

static void widen(const void *row, hyperattn_dtype dtype, float *to, int64_t n) {
  for (int64_t t = 0; t < n; t++) to[t] = load(row, dtype, t);
}
static void widen_f32(const void *row, float *to, int64_t n) { widen(row, HYPERATTN_F32, to, n); }
static void widen_f16(const void *row, float *to, int64_t n) { widen(row, HYPERATTN_F16, to, n); }
static void widen_bf16(const void *row, float *to, int64_t n) { widen(row, HYPERATTN_BF16, to, n); }
static void widen_q8_0(const void *row, float *to, int64_t n) { widen(row, HYPERATTN_Q8_0, to, n); }

/* Makes the rows' format one that only the fuzzer knows: it has no alignment. */
static void make_custom(tensor *x) {
  int64_t unit = unit_of(x->dtype);
  for (int i = 0; i < 3; i++) x->stride[i] = (ptrdiff_t)(x->stride[i] / unit * unit);
  if (!x->valid) x->valid = x->huge ? -1 : 1;
  x->custom = 1;
}

/* Moves the rows, before they are filled, to pages of a pool: each sequence has its own, or all share one.
   Pages are taken in any order, some of them more than once, others never. */
static void make_pages(tensor *x, bytes *in) {
  int64_t unit = unit_of(x->dtype), row = (x->dim + unit - 1) / unit * unit, heads = x->n[1];
  x->page_rows = 1 + below(in, 20);
  int64_t needed = (x->n[2] + x->page_rows - 1) / x->page_rows, pool = 1 + below(in, 256) % (needed + 3);
  int64_t within = x->page_rows < x->n[2] ? x->page_rows : x->n[2], before = 0, after = row;
  unsigned kind = (unsigned)take(in, 1), signs = (unsigned)take(in, 1), order = (unsigned)take(in, 1);
  uint64_t state = take(in, 1);
  ptrdiff_t *stride = x->stride, *page = &x->page_stride, pad = (ptrdiff_t)(unit * (kind & 1));
  stride[2] = (ptrdiff_t)row + pad;
  if (kind & 2) /* heads outside pages */
    *page = (ptrdiff_t)x->page_rows * stride[2] + pad, stride[1] = (ptrdiff_t)pool * *page;
  else
    stride[1] = (ptrdiff_t)x->page_rows * stride[2], *page = (ptrdiff_t)heads * stride[1] + pad;
  stride[0] = kind & 4 ? 0 : (ptrdiff_t)pool * (ptrdiff_t)heads * (*page > stride[1] ? *page : stride[1]);
  ptrdiff_t *const strides[] = {&stride[0], &stride[1], &stride[2], page};
  const int64_t n[] = {x->n[0], x->n[1], within, pool};
  for (int i = 0; i < 4; i++) {
    if (signs >> 2 * i & 1) *strides[i] = signs >> 2 * i & 2 ? 0 : -*strides[i];
    if (i < 3 && n[i] <= 1 && (kind >> (3 + i) & 1))
      *strides[i] = (ptrdiff_t)wild(in); /* must be ignored */
    if (n[i] <= 1) continue;
    if (*strides[i] < 0)
      before -= *strides[i] * (n[i] - 1);
    else
      after += *strides[i] * (n[i] - 1);
  }
  free(x->block);
  tensor_allocate(x, before, after, 0);
  int64_t entries = needed + (kind >> 6 & 1), tables = x->n[0], first = order & 8 ? (order >> 4) % pool : 0;
  x->page_batch_stride = (ptrdiff_t)entries;
  if (kind >> 7) x->page_batch_stride = order & 4 ? 0 : -x->page_batch_stride;
  int64_t apart = tables > 1 && x->page_batch_stride ? entries * (tables - 1) : 0;
  int32_t *table = (int32_t *)malloc((size_t)(apart + needed) * sizeof *table + 1);
  CHECK(table, "out of memory");
  for (int64_t k = 0; k < apart + needed; k++) { /* numbers count from page `first` */
    int64_t number = (order & 3) == 0   ? k
                     : (order & 3) == 1 ? needed - k
                                        : (int64_t)(splitmix(&state) >> 1);
    table[k] = (int32_t)((number % pool + pool) % pool - first);
  }
  x->data = tensor_at(x, x->data, first * *page);
  x->page_block = table;
  x->page = table + (x->page_batch_stride < 0 ? apart : 0);
  if (tables <= 1 && (kind & 1)) x->page_batch_stride = (ptrdiff_t)wild(in);
  x->valid = 1, x->huge = 0;
}

/* Bytes for elements; wraps around where only an invalid call, or an unused stride, has so many. */
static ptrdiff_t in_bytes(const tensor *x, ptrdiff_t elements) {
  return (ptrdiff_t)((uint64_t)(elements / unit_of(x->dtype)) * (uint64_t)unit_bytes(x->dtype));
}
static void bind_input(hyperattn_input *to, const tensor *x) {
  static void (*const widens[])(const void *, float *, int64_t) = {widen_f32, widen_f16, widen_bf16,
                                                                   widen_q8_0};
  to->data = x->data, to->dtype = x->dtype;
  to->batch_stride = x->stride[0], to->head_stride = x->stride[1], to->row_stride = x->stride[2];
  if (x->page) {
    to->page = x->page, to->page_rows = x->page_rows;
    to->page_stride = x->page_stride, to->page_batch_stride = x->page_batch_stride;
  }
  if (!x->custom) return;
  to->dtype = HYPERATTN_CUSTOM, to->widen = widens[x->dtype];
  to->batch_stride = in_bytes(x, to->batch_stride), to->head_stride = in_bytes(x, to->head_stride);
  to->row_stride = in_bytes(x, to->row_stride), to->page_stride = in_bytes(x, to->page_stride);
}

/* ---- What queries see ---- */

/* Does query i see key j by its position? */
static int is_near(const hyperattn_problem *p, int64_t i, int64_t j) {
  int64_t ahead = j - (i + p->n_key - p->n_query), window = p->sliding_window;
  return p->causal ? ahead <= 0 && (!window || -ahead < window)
                   : !window || (ahead < window && -ahead < window);
}
/* Does the window hide any key? The call is exact then. */
static int slides(const hyperattn_problem *p) {
  int64_t window = p->sliding_window;
  return window && (p->n_key > window || (!p->causal && p->n_query > window));
}

static void make_mask(tensor *mask, const hyperattn_problem *p, bytes *in) {
  mask->n[0] = p->batch, mask->n[1] = p->n_heads, mask->n[2] = p->n_query, mask->dim = p->n_key;
  mask->dtype = (hyperattn_dtype)below(in, 3);
  tensor_make(mask, in, 0);
  unsigned kind = (unsigned)take(in, 1), hides = kind >> 2 & 3; /* 1: places, 2: rows, 3: chunks of keys */
  uint64_t state = take(in, 1), share = (uint64_t[]){4, 2, 10, 16}[kind >> 4 & 3]; /* of 16 */
  float size = (float[]){0.0f, 1.0f, 30.0f, 3e4f}[kind & 3];
  if (mask->huge) return;
  for (int64_t b = 0; b < p->batch; b++)
    for (int64_t h = 0; h < p->n_heads; h++)
      for (int64_t i = 0; i < p->n_query; i++) {
        int hidden = hides == 2 && splitmix(&state) % 16 < share;
        for (int64_t j = 0; j < p->n_key; j++) {
          if (hides == 1 || (hides == 3 && j % 64 == 0)) hidden = splitmix(&state) % 16 < share;
          float x = hidden ? -INFINITY : size > 0.0f ? size * gaussian(&state) : 0.0f;
          if ((kind & 64) && !is_near(p, i, j)) x = NAN;
          store(tensor_row(mask, b, h, i), mask->dtype, j, x);
        }
      }
  for (uint64_t n = kind & 128 ? 1 + take(in, 1) % 3 : 0; n-- > 0;) tensor_plant(mask, in, 0);
}

/* A number for each head. */
static float *make_floats(int64_t n, bytes *in) {
  static const float specials[] = {0.0f, -INFINITY, 1e30f, -1e30f, INFINITY, NAN, -1.0f, 1e-40f};
  float *x = (float *)malloc((size_t)n * sizeof *x + 2),
        size = (float[]){1.0f, 30.0f, 1e-3f, 0.0f}[take(in, 1) & 3];
  uint64_t state = take(in, 1);
  CHECK(x, "out of memory");
  for (int64_t i = 0; i < n; i++)
    x[i] = one_in(in, 4) ? specials[take(in, 1) % 8] : size * gaussian(&state);
  return x;
}

/* ---- The choice ---- */

/* Sets what the manual says is not looked at. */
static void set_unused(hyperattn_problem *p, const void *somewhere) {
  hyperattn_input *all[] = {&p->query, &p->key, &p->value};
  for (int i = 0; i < 3; i++) {
    if (all[i]->dtype != HYPERATTN_CUSTOM) all[i]->widen = widen_f32;
    if (!all[i]->page)
      all[i]->page_rows = -7, all[i]->page_stride = all[i]->page_batch_stride = PTRDIFF_MIN;
  }
  if (p->mask.data) return;
  p->mask = p->query;
  p->mask.data = NULL, p->mask.dtype = (hyperattn_dtype)99, p->mask.page = (const int32_t *)somewhere;
  p->mask_slope = (const float *)somewhere;
}

/* Keys and values have their memory already, and are bound here. No bytes, no fields. */
static void take_fields(fields *f, hyperattn_problem *p, tensor *key, tensor *value, bytes *in) {
  unsigned which = (unsigned)take(in, 1), more = (unsigned)take(in, 1);
  if (which & 1)
    p->softcap = (float[]){30.0f, 1.0f, 0.01f, 1e-40f, 3e38f, 5.0f, -1.0f, NAN}[take(in, 1) % 8];
  if (which & 2) {
    const int64_t windows[] = {1 + below(in, 40),   1,        p->n_key, p->n_key - 1,
                               1 + below(in, 1200), INT64_MAX};
    uint64_t kind = take(in, 1) % 8;
    p->sliding_window = kind < 6 ? windows[kind] : kind == 6 ? below(in, p->n_key + 1) : wild(in);
  }
  if (which & 4) p->sink = f->sink = make_floats(p->n_heads, in);
  if (which & 8) {
    make_mask(&f->mask, p, in);
    bind_input(&p->mask, &f->mask);
    if (more & 1) p->mask_slope = f->slope = make_floats(p->n_heads, in);
  }
  if (which & 16) make_pages(key, in);
  if (which & 32) make_pages(value, in);
  if (which & 64) make_custom(key);
  if (which & 128) make_custom(value);
  bind_input(&p->key, key), bind_input(&p->value, value);
  if (more & 2) set_unused(p, key->block);
}

/* Is what was set here valid by the manual? */
static int are_valid(const hyperattn_problem *p) {
  const hyperattn_input *rows[] = {&p->key, &p->value};
  for (int i = 0; i < 2; i++)
    if ((rows[i]->dtype == HYPERATTN_CUSTOM && !rows[i]->widen) ||
        (rows[i]->page && (rows[i]->page_rows < 1 || rows[i]->page_rows > 0x7fffffff)))
      return 0;
  return isfinite(p->softcap) && p->softcap >= 0.0f && p->sliding_window >= 0 && !p->query.page &&
         !(p->mask.data && (p->mask.page || (int)p->mask.dtype < 0 || (int)p->mask.dtype > 2));
}

/* Sets one of these fields to any number, or a pointer to where it must not point. Returns whether the call
   can still run if it is valid. */
static int spoil_fields(hyperattn_problem *p, const fields *f, bytes *in) {
  const char *const out = (const char *)p->out.data;
  hyperattn_input *const rows = one_in(in, 2) ? &p->value : &p->key;
  uint64_t which = take(in, 1) % 14;
  int64_t x = wild(in);
  if (which == 0) p->softcap = bits_to_float((uint32_t)take(in, 4));
  if (which == 1) p->sliding_window = x;
  if (which == 2) rows->page_rows = x;
  if (which == 3) rows->dtype = (hyperattn_dtype)(int8_t)x;
  if (which == 4) rows->widen = NULL;
  if (which == 5) p->query.page = (const int32_t *)(const void *)out;
  if (which == 6) p->mask.page = (const int32_t *)(const void *)out;
  if (which == 7) p->mask.dtype = (hyperattn_dtype)(int8_t)x;
  if (which == 8) p->mask.batch_stride = p->mask.row_stride = (ptrdiff_t)x;
  if (which == 9 && out) rows->page = (const int32_t *)(const void *)(out + (x & 3)); /* overlap */
  if (which == 10 && out) p->sink = (const float *)(const void *)(out + (x & 3));
  if (which == 11 && p->mask.data) p->mask_slope = (const float *)(const void *)(out ? out + (x & 3) : out);
  if (which == 12 && f->sink) p->sink = (const float *)(const void *)((const char *)f->sink + (x & 1));
  if (which == 13 && out && p->mask.data) p->mask.data = out;
  return which < 2 || which == 4 || which == 5 || which == 6 || which == 12;
}

static void free_fields(fields *f) { free(f->mask.block), free(f->sink), free(f->slope); }

#endif
