/* What the fuzz targets share: numbers from the bytes of the input, and checks that abort. */
#ifndef HYPERATTN_TESTS_FUZZ_H
#define HYPERATTN_TESTS_FUZZ_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition, ...)                                            \
  do {                                                                   \
    if (!(condition)) {                                                  \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);    \
      fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), fflush(stderr); \
      abort();                                                           \
    }                                                                    \
  } while (0)

#ifdef HYPERATTN_H
#include "../../examples/halves.h"
#include "../../examples/splitmix.h"

/* The input, followed by endless zeros. */
typedef struct bytes {
  const uint8_t *at, *end;
} bytes;

static uint64_t take(bytes *in, int n) {
  uint64_t x = 0;
  for (int i = 0; i < n; i++) x = x << 8 | (in->at < in->end ? *in->at++ : 0u);
  return x;
}
static int64_t below(bytes *in, int64_t n) { return (int64_t)take(in, n > 256 ? 2 : 1) % n; }
static int one_in(bytes *in, int n) { return (int)take(in, 1) % n == n - 1; } /* not for zeros */
static int64_t wild(bytes *in) {
  static const int64_t some[] = {-1, 0, 0x7fffffff, 0x80000000, INT64_MAX, INT64_MIN, INT64_MAX / 2, 1};
  uint64_t shift = take(in, 1);
  return some[shift & 7] + (int64_t)(shift >> 3 & 1) * (some[shift & 7] > 0 ? -1 : 1) * below(in, 70000);
}

static float gaussian(uint64_t *state) { /* approximately: the sum of four uniform numbers */
  uint64_t x = splitmix(state);
  double sum = (double)((x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48));
  return (float)((sum / 65536.0 - 2.0) * 1.7320508);
}

/* ---- Elements, by conversions written apart from the library's ---- */

static int64_t unit_of(hyperattn_dtype dtype) { return dtype == HYPERATTN_Q8_0 ? 32 : 1; }
static int64_t unit_bytes(hyperattn_dtype dtype) {
  return dtype == HYPERATTN_F32 ? 4 : dtype == HYPERATTN_Q8_0 ? 34 : 2;
}
static float of_half(uint16_t half, int is_bf16) {
  return is_bf16 ? bf16_to_float(half) : half_to_float(half);
}
/* Finite numbers stay finite. */
static uint16_t to_half(float x, int is_bf16) {
  if (is_bf16) return float_to_bf16(x);
  return float_to_half(isfinite(x) ? fmaxf(-65504.0f, fminf(x, 65504.0f)) : x);
}
static float load(const void *row, hyperattn_dtype dtype, int64_t t) {
  const unsigned char *at = (const unsigned char *)row + t / unit_of(dtype) * unit_bytes(dtype);
  uint16_t half;
  float x;
  if (dtype == HYPERATTN_F32) return memcpy(&x, at, 4), x;
  memcpy(&half, at, 2);
  if (dtype != HYPERATTN_Q8_0) return of_half(half, dtype == HYPERATTN_BF16);
  return of_half(half, 0) * (float)(signed char)at[2 + t % 32];
}
/* The scale of a Q8_0 block follows from its first element, or from a special number in it. */
static void store(void *row, hyperattn_dtype dtype, int64_t t, float x) {
  unsigned char *at = (unsigned char *)row + t / unit_of(dtype) * unit_bytes(dtype);
  uint16_t half = to_half(dtype == HYPERATTN_Q8_0 ? x / 64.0f : x, dtype == HYPERATTN_BF16);
  if (dtype == HYPERATTN_F32) {
    memcpy(at, &x, 4);
  } else if (dtype != HYPERATTN_Q8_0) {
    memcpy(at, &half, 2);
  } else {
    float scale, q;
    if (t % 32 == 0 || !isfinite(x) || fabsf(x) > 1e4f) memcpy(at, &half, 2);
    memcpy(&half, at, 2), scale = of_half(half, 0);
    q = scale != 0.0f && isfinite(scale) ? x / scale : 64.0f;
    at[2 + t % 32] = (unsigned char)(signed char)(q > 127.0f ? 127.0f : q < -128.0f ? -128.0f : q);
  }
}

/* ---- Tensors [batch][head][row][dim], each allocated to the byte ---- */

typedef struct tensor {
  hyperattn_dtype dtype; /* of its rows, also where the call takes them as HYPERATTN_CUSTOM */
  int64_t n[3], dim;
  ptrdiff_t stride[3];
  unsigned char *block, *data;
  size_t size;
  int32_t *page; /* NULL, or the pages' numbers, in page_block */
  int64_t page_rows;
  ptrdiff_t page_stride, page_batch_stride;
  void *page_block;
  int custom;
  int valid; /* whether the manual allows it as an input, or as an output if it is one; -1 if unknown */
  int huge;  /* its strides imply too much memory to allocate */
} tensor;

static int64_t tensor_rows(const tensor *x) { return x->n[0] * x->n[1] * x->n[2]; }
static unsigned char *tensor_at(const tensor *x, unsigned char *from, int64_t elements) {
  return from + elements / unit_of(x->dtype) * unit_bytes(x->dtype);
}
/* Where a head begins: its row 0, or of page 0 the first row. */
static unsigned char *tensor_head(const tensor *x, int64_t b, int64_t h) {
  int64_t at = (x->n[0] > 1 ? b * x->stride[0] : 0) + (x->n[1] > 1 ? h * x->stride[1] : 0);
  return tensor_at(x, x->data, at);
}
/* The page numbers of a sequence. */
static const int32_t *tensor_pages(const tensor *x, int64_t b) {
  return x->page ? x->page + (x->n[0] > 1 ? b * x->page_batch_stride : 0) : NULL;
}
static unsigned char *tensor_row(const tensor *x, int64_t b, int64_t h, int64_t i) {
  int64_t rows = x->n[2], at = 0;
  if (x->page) {
    at = tensor_pages(x, b)[i / x->page_rows] * x->page_stride;
    i %= x->page_rows, rows = x->page_rows < rows ? x->page_rows : rows;
  }
  return tensor_at(x, tensor_head(x, b, h), at + (rows > 1 ? i * x->stride[2] : 0));
}
static size_t tensor_row_bytes(const tensor *x) {
  return (size_t)((x->dim + unit_of(x->dtype) - 1) / unit_of(x->dtype) * unit_bytes(x->dtype));
}

/* Memory for elements -before .. after - 1, `off` bytes away from alignment, all of it 0xff. */
static void tensor_allocate(tensor *x, int64_t before, int64_t after, int off) {
  int64_t unit = unit_of(x->dtype);
  before = (before + unit - 1) / unit, after = (after + unit - 1) / unit;
  x->size = (tensor_rows(x) ? (size_t)((before + after) * unit_bytes(x->dtype)) : 0) + (size_t)off;
  x->block = (unsigned char *)malloc(x->size + !x->size);
  CHECK(x->block, "out of memory");
  memset(x->block, 0xff, x->size);
  x->data = x->block + off + before * unit_bytes(x->dtype);
}

/* Strides and memory for n[0] x n[1] x n[2] rows, the memory filled with 0xff. */
static void tensor_make(tensor *x, bytes *in, int is_out) {
  int64_t unit = unit_of(x->dtype), row = (x->dim + unit - 1) / unit * unit, before = 0, after = row;
  int kind = (int)below(in, 8), signs = (int)take(in, 1), by_rows = kind == 1 || kind == 2,
      inner = 2 - by_rows;
  int64_t pad = kind == 2 || kind == 3 ? unit * (signs >> 4 & 3) : 0;
  x->valid = 1, x->huge = 0;
  x->stride[inner] = (ptrdiff_t)(row + pad);
  x->stride[3 - inner] = (ptrdiff_t)(x->stride[inner] * (x->n[inner] ? x->n[inner] : 1) + pad);
  x->stride[0] = (ptrdiff_t)(x->stride[3 - inner] * (x->n[3 - inner] ? x->n[3 - inner] : 1));
  for (int i = 0; i < 3; i++) {
    if (kind == 4 && (signs >> i & 1)) x->stride[i] = -x->stride[i];
    if (kind == 5 && (signs >> i & 1)) x->stride[i] = 0;
    if (x->n[i] <= 1 && (signs >> (3 + i) & 1)) x->stride[i] = (ptrdiff_t)wild(in); /* must be ignored */
    if (x->n[i] > 1 && x->stride[i] <= 0) x->valid &= !is_out;
  }
  if (kind == 6 && signs % 4 < 3) {
    x->stride[signs % 4] = (ptrdiff_t)(signs & 64 ? wild(in) : (int64_t)take(in, 2) - 300);
    x->valid = -1; /* unknown */
  }
  for (int i = 0; i < 3; i++) {
    if (x->n[i] <= 1) continue;
    if (x->stride[i] > 1 << 20 || x->stride[i] < -(1 << 20))
      x->huge = 1;
    else if (x->stride[i] < 0)
      before -= x->stride[i] * (x->n[i] - 1);
    else
      after += x->stride[i] * (x->n[i] - 1);
  }
  x->huge |= before + after > 1 << 21 || tensor_rows(x) > 1 << 20;
  if (x->huge) before = 0, after = row, x->valid = x->valid ? -1 : 0;
  int off = one_in(in, 32) ? 1 + (int)below(in, 3) : 0;
  tensor_allocate(x, before, after, off);
  if (off % (x->dtype == HYPERATTN_F32 ? 4 : 2)) x->valid = 0;
  if (!tensor_rows(x) && one_in(in, 2)) x->data = NULL;
}

/* Fills rows from `first` on with Gaussians times `size`. */
static void tensor_fill(tensor *x, uint64_t seed, float size, int64_t first) {
  for (int64_t b = 0; b < x->n[0]; b++)
    for (int64_t h = 0; h < x->n[1]; h++)
      for (int64_t i = first; i < x->n[2]; i++)
        for (int64_t t = 0; t < x->dim; t++)
          store(tensor_row(x, b, h, i), x->dtype, t, size * gaussian(&seed));
}
/* Puts a number that is likely to do harm into one of them. */
static void tensor_plant(tensor *x, bytes *in, int64_t first) {
  static const float specials[] = {INFINITY, -INFINITY, NAN, 1e-40f, 3e38f, -3e38f, -0.0f, 1e5f};
  float special = specials[take(in, 1) % 8];
  int64_t place = (int64_t)take(in, 3);
  if (x->n[2] > first && tensor_rows(x) && x->dim)
    store(tensor_row(x, place % x->n[0], place % x->n[1], first + place % (x->n[2] - first)), x->dtype,
          place % x->dim, special);
}
/* The largest absolute value; infinity if any number is not finite. */
static inline double tensor_most(const tensor *x) {
  double most = 0.0;
  for (int64_t b = 0; b < x->n[0]; b++)
    for (int64_t h = 0; h < x->n[1]; h++)
      for (int64_t i = 0; i < x->n[2]; i++)
        for (int64_t t = 0; t < x->dim; t++) {
          double size = fabs((double)load(tensor_row(x, b, h, i), x->dtype, t));
          most = size <= most ? most : isnan(size) ? INFINITY : size;
        }
  return most;
}
/* Returns the rows, which the caller frees, and fills them with 0xff; all other bytes of the tensor must
   be 0xff. */
static unsigned char *tensor_rows_taken(const tensor *x) {
  size_t bytes_of_row = tensor_row_bytes(x), n = 0;
  unsigned char *rows = (unsigned char *)malloc((size_t)tensor_rows(x) * bytes_of_row + 1);
  CHECK(rows, "out of memory");
  for (int64_t b = 0; b < x->n[0]; b++)
    for (int64_t h = 0; h < x->n[1]; h++)
      for (int64_t i = 0; i < x->n[2]; i++, n += bytes_of_row) {
        memcpy(rows + n, tensor_row(x, b, h, i), bytes_of_row);
        memset(tensor_row(x, b, h, i), 0xff, bytes_of_row);
      }
  for (size_t i = 0; i < x->size; i++) CHECK(x->block[i] == 0xff, "byte %zu between rows was written", i);
  return rows;
}

#endif
#endif
