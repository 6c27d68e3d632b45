// Converts rows of floats to any of hyperattn.h's dtypes, which an engine does once, as it fills its cache.
#ifndef EXAMPLES_ELEMENTS_H
#define EXAMPLES_ELEMENTS_H

#include "hyperattn.h"

#include "halves.h"

// A block of Q8_0: 32 signed bytes and a scale, chosen so that the largest value becomes 127.
static inline void write_q8_0(const float *x, unsigned char *to) {
  float most = 0;
  for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[i]));
  float d = most / 127;
  uint16_t scale = float_to_half(d);
  memcpy(to, &scale, sizeof scale);
  for (int i = 0; i < 32; i++) to[2 + i] = (unsigned char)(signed char)lrintf(d > 0 ? x[i] / d : 0);
}

// n elements, a multiple of 32 for Q8_0.
static inline size_t elements_size(int64_t n, hyperattn_dtype dtype) {
  return dtype == HYPERATTN_F32    ? (size_t)n * 4
         : dtype == HYPERATTN_Q8_0 ? (size_t)n / 32 * 34
                                   : (size_t)n * 2;
}
static inline void elements_write(const float *x, int64_t n, hyperattn_dtype dtype, void *to) {
  uint16_t *halves = (uint16_t *)to;
  if (dtype == HYPERATTN_F32) memcpy(to, x, (size_t)n * sizeof *x);
  for (int64_t i = 0; i < n && dtype == HYPERATTN_F16; i++) halves[i] = float_to_half(x[i]);
  for (int64_t i = 0; i < n && dtype == HYPERATTN_BF16; i++) halves[i] = float_to_bf16(x[i]);
  for (int64_t i = 0; i < n && dtype == HYPERATTN_Q8_0; i += 32)
    write_q8_0(x + i, (unsigned char *)to + i / 32 * 34);
}

// Names of dtypes, indexed by HYPERATTN_F32 .. Q8_0, and the dtype of a name; returns 0 if there is none.
static const char *const element_names[] = {"f32", "f16", "bf16", "q8_0"};
static inline int elements_named(const char *name, hyperattn_dtype *dtype) {
  for (int i = 0; i < 4; i++)
    if (!strcmp(name, element_names[i])) {
      *dtype = (hyperattn_dtype)i;
      return 1;
    }
  return 0;
}

#endif
