/* Rows of numbers in each format, encoded by code of the tests' own. */
#ifndef HYPERATTN_TESTS_FORMATS_H
#define HYPERATTN_TESTS_FORMATS_H

#include "../examples/halves.h"
#include "calls.h"

static float widened(hyperattn_dtype dtype, uint16_t half) {
  return dtype == HYPERATTN_F16 ? half_to_float(half) : bf16_to_float(half);
}
static uint16_t narrowed(hyperattn_dtype dtype, float x) {
  return dtype == HYPERATTN_F16 ? float_to_half(x) : float_to_bf16(x);
}

/* ---- The tests' custom format: a float32 scale, then signed bytes, at any address ---- */

static void widen_bytes(const void *row, float *to, int64_t n) {
  const signed char *at = (const signed char *)row;
  float scale;
  memcpy(&scale, at, sizeof scale);
  for (int64_t t = 0; t < n; t++) to[t] = scale * (float)at[sizeof scale + (size_t)t];
}

/* ---- Encoding ---- */

static size_t row_bytes(hyperattn_dtype dtype, int64_t dim) {
  if (dtype == HYPERATTN_CUSTOM) return sizeof(float) + (size_t)dim;
  if (dtype == HYPERATTN_Q8_0) return (size_t)((dim + 31) / 32 * 34);
  return (size_t)dim * (dtype == HYPERATTN_F32 ? 4 : 2);
}
/* From one contiguous row to the next, as a stride. */
static int64_t row_step(hyperattn_dtype dtype, int64_t dim) {
  if (dtype == HYPERATTN_CUSTOM) return (int64_t)row_bytes(dtype, dim);
  return dtype == HYPERATTN_Q8_0 ? (dim + 31) / 32 * 32 : dim;
}

static float largest(const float *x, int64_t n) {
  float most = 0.0f;
  for (int64_t t = 0; t < n; t++) most = fmaxf(most, fabsf(x[t]));
  return most;
}

static void encode_halves(float *x, int64_t dim, hyperattn_dtype dtype, unsigned char *row) {
  for (int64_t t = 0; t < dim; t++) {
    uint16_t half = narrowed(dtype, x[t]);
    memcpy(row + 2 * t, &half, 2);
    x[t] = (float)value_of(dtype, half);
  }
}

static void encode_bytes(float *x, int64_t n, float scale, unsigned char *to) {
  for (int64_t t = 0; t < n; t++) {
    signed char q = (signed char)lrintf(x[t] / scale);
    memcpy(to + t, &q, 1);
    x[t] = scale * (float)q;
  }
}

static void encode_row(float *x, int64_t dim, hyperattn_dtype dtype, unsigned char *row) {
  if (dtype == HYPERATTN_F32) memcpy(row, x, row_bytes(dtype, dim));
  if (dtype == HYPERATTN_F16 || dtype == HYPERATTN_BF16) encode_halves(x, dim, dtype, row);
  if (dtype == HYPERATTN_CUSTOM) {
    float scale = largest(x, dim) / 127.0f;
    memcpy(row, &scale, sizeof scale);
    encode_bytes(x, dim, scale, row + sizeof scale);
  }
  for (int64_t t = 0; t < dim && dtype == HYPERATTN_Q8_0; t += 32, row += 34) {
    int64_t n = dim - t < 32 ? dim - t : 32;
    uint16_t half = float_to_half(largest(x + t, n) / 127.0f);
    memcpy(row, &half, 2);
    memset(row + 2, 0x55, 32); /* those beyond dim must have no effect */
    encode_bytes(x + t, n, half_to_float(half), row + 2);
  }
}

/* Returns rows of `dim` floats as contiguous rows of a dtype (Q8_0: of whole blocks), and rounds the
   floats themselves to what the dtype can hold. */
static void *encode(float *x, int64_t rows, int64_t dim, hyperattn_dtype dtype, int64_t *stride) {
  size_t bytes = row_bytes(dtype, dim);
  unsigned char *all = (unsigned char *)test_alloc((size_t)rows * bytes);
  *stride = row_step(dtype, dim);
  for (int64_t r = 0; r < rows; r++) encode_row(x + r * dim, dim, dtype, all + (size_t)r * bytes);
  return all;
}

static void set_input(hyperattn_input *x, const void *data, hyperattn_dtype dtype, int64_t heads,
                      int64_t rows, int64_t stride) {
  x->data = data, x->dtype = dtype, x->widen = dtype == HYPERATTN_CUSTOM ? widen_bytes : NULL;
  set_strides(&x->batch_stride, &x->head_stride, &x->row_stride, heads, rows, stride);
}

#endif
