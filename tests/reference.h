/* Attention in double precision, written plainly, by the definition of each field of a problem. */
#ifndef HYPERATTN_TESTS_REFERENCE_H
#define HYPERATTN_TESTS_REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "hyperattn.h"

static void *test_alloc(size_t bytes);

/* ---- Numbers of 16 bits ---- */

static double f16_value(unsigned half) {
  double sign = half >> 15 ? -1.0 : 1.0;
  int exponent = (int)(half >> 10 & 31), fraction = (int)(half & 1023);
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}
static double bf16_value(unsigned half) {
  double sign = half >> 15 ? -1.0 : 1.0;
  int exponent = (int)(half >> 7 & 255), fraction = (int)(half & 127);
  if (exponent == 255) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexp(128 + fraction, exponent - 134) : ldexp(fraction, -133));
}
static double value_of(hyperattn_dtype dtype, unsigned half) {
  return dtype == HYPERATTN_F16 ? f16_value(half) : bf16_value(half);
}
static double half_at(hyperattn_dtype dtype, const char *at) {
  uint16_t half;
  memcpy(&half, at, 2);
  return value_of(dtype, half);
}

/* ---- Rows ---- */

/* Bytes of a stride: those of Q8_0 are whole blocks, those of CUSTOM are bytes. */
static ptrdiff_t stride_bytes(hyperattn_dtype dtype, ptrdiff_t stride) {
  if (dtype == HYPERATTN_CUSTOM) return stride;
  if (dtype == HYPERATTN_Q8_0) return stride / 32 * 34;
  return stride * (dtype == HYPERATTN_F32 ? 4 : 2);
}

static const char *row_at(const hyperattn_input *x, int64_t b, int64_t h, int64_t r) {
  ptrdiff_t at = (ptrdiff_t)b * x->batch_stride + (ptrdiff_t)h * x->head_stride;
  if (x->page) {
    at += x->page[(ptrdiff_t)b * x->page_batch_stride + (ptrdiff_t)(r / x->page_rows)] * x->page_stride;
    r %= x->page_rows;
  }
  return (const char *)x->data + stride_bytes(x->dtype, at + (ptrdiff_t)r * x->row_stride);
}

static void read_row(const hyperattn_input *x, int64_t b, int64_t h, int64_t r, int64_t dim, double *to) {
  const char *row = row_at(x, b, h, r);
  float *wide = (float *)test_alloc((size_t)dim * sizeof(float));
  if (x->dtype == HYPERATTN_F32) memcpy(wide, row, (size_t)dim * sizeof(float));
  if (x->dtype == HYPERATTN_CUSTOM) x->widen(row, wide, dim);
  for (int64_t t = 0; t < dim; t++) {
    if (x->dtype == HYPERATTN_F16 || x->dtype == HYPERATTN_BF16)
      to[t] = half_at(x->dtype, row + 2 * t);
    else if (x->dtype == HYPERATTN_Q8_0)
      to[t] =
          half_at(HYPERATTN_F16, row + t / 32 * 34) * (double)(signed char)row[t / 32 * 34 + 2 + t % 32];
    else
      to[t] = (double)wide[t];
  }
  free(wide);
}

/* All rows of a head, which the caller frees. */
static double *read_rows(const hyperattn_input *x, int64_t b, int64_t h, int64_t rows, int64_t dim) {
  double *to = (double *)test_alloc((size_t)(rows * dim) * sizeof(double));
  for (int64_t r = 0; r < rows; r++) read_row(x, b, h, r, dim, to + r * dim);
  return to;
}

/* ---- Attention ---- */

static double reference_scale(const hyperattn_problem *p) {
  return p->scale != 0.0f ? (double)p->scale : 1.0 / sqrt((double)p->head_dim);
}

static double reference_score(const hyperattn_problem *p, const double *q, const double *k) {
  double score = 0.0, cap = (double)p->softcap;
  for (int64_t t = 0; t < p->head_dim; t++) score += q[t] * k[t];
  score *= reference_scale(p);
  return cap > 0.0 ? cap * tanh(score / cap) : score;
}

/* May query i see key j, where both stand? */
static int is_in_sight(const hyperattn_problem *p, int64_t i, int64_t j) {
  int64_t behind = i + p->n_key - p->n_query - j;
  if (p->causal && behind < 0) return 0;
  return !p->sliding_window || (behind < p->sliding_window && -behind < p->sliding_window);
}

/* What each key's score of a row gains: slope times mask, -inf where the key is hidden. */
static void reference_weights(const hyperattn_problem *p, int64_t b, int64_t h, int64_t i, double *weight) {
  double slope = p->mask_slope ? (double)p->mask_slope[h] : 1.0;
  memset(weight, 0, (size_t)p->n_key * sizeof(double));
  if (p->mask.data) read_row(&p->mask, b, h, i, p->n_key, weight);
  for (int64_t j = 0; j < p->n_key; j++)
    weight[j] = !is_in_sight(p, i, j) || weight[j] == -INFINITY ? -INFINITY : slope * weight[j];
}

/* Row i of head h of a batch over that head's rows of keys and values, with given log-weights:
   out = sum w_j e^s_j v_j / (e^sink + sum w_j e^s_j); -inf hides a key. Returns the lse. */
static double reference_row(const hyperattn_problem *p, int64_t b, int64_t h, int64_t i, const double *key,
                            const double *value, const double *log_weight, double *out) {
  double *q = (double *)test_alloc((size_t)p->head_dim * sizeof(double)),
         *s = (double *)test_alloc((size_t)p->n_key * sizeof(double));
  double sink = p->sink ? (double)p->sink[h] : -INFINITY, high = sink, sum;
  read_row(&p->query, b, h, i, p->head_dim, q);
  for (int64_t j = 0; j < p->n_key; j++) {
    if (log_weight[j] == -INFINITY) continue;
    s[j] = reference_score(p, q, key + j * p->head_dim) + log_weight[j];
    if (s[j] > high) high = s[j];
  }
  sum = sink == -INFINITY ? 0.0 : exp(sink - high);
  for (int64_t t = 0; t < p->value_dim; t++) out[t] = 0.0;
  for (int64_t j = 0; j < p->n_key; j++) {
    if (log_weight[j] == -INFINITY) continue;
    double w = exp(s[j] - high);
    sum += w;
    for (int64_t t = 0; t < p->value_dim; t++) out[t] += w * value[j * p->value_dim + t];
  }
  for (int64_t t = 0; t < p->value_dim; t++) out[t] = sum == 0.0 ? 0.0 : out[t] / sum;
  free(q), free(s);
  return sum == 0.0 ? -INFINITY : high + log(sum);
}

/* A problem with log-weights [batch][n_heads][n_query][n_key], or, where they are NULL, exact attention,
   into contiguous arrays. */
static void reference_by(const hyperattn_problem *p, const double *log_weight, double *out, double *lse) {
  double *weight = (double *)test_alloc((size_t)p->n_key * sizeof(double));
  for (int64_t b = 0; b < p->batch; b++)
    for (int64_t h = 0; h < p->n_heads; h++) {
      int64_t kv = h / (p->n_heads / p->n_kv_heads);
      double *key = read_rows(&p->key, b, kv, p->n_key, p->head_dim),
             *value = read_rows(&p->value, b, kv, p->n_key, p->value_dim);
      for (int64_t i = 0; i < p->n_query; i++) {
        int64_t row = (b * p->n_heads + h) * p->n_query + i;
        if (!log_weight) reference_weights(p, b, h, i, weight);
        lse[row] = reference_row(p, b, h, i, key, value, log_weight ? log_weight + row * p->n_key : weight,
                                 out + row * p->value_dim);
      }
      free(key), free(value);
    }
  free(weight);
}

/* Exact attention. */
static void reference(const hyperattn_problem *p, double *out, double *lse) {
  reference_by(p, NULL, out, lse);
}

#endif
