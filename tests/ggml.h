/* ggml's blocks of 32 numbers in 4 and 5 bits, decoded twice: block by block, as an engine would, with the
   signature of ggml's to_float; and one element at a time in double precision, from the format's
   definition. */
#ifndef HYPERATTN_TESTS_GGML_H
#define HYPERATTN_TESTS_GGML_H

#include <string.h>

#include "../examples/halves.h"
#include "calls.h"

enum { Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, N_BLOCK_FORMATS };

static const float iq4_nl_numbers[16] = {-127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f, -22.0f, -10.0f,
                                         1.0f,    13.0f,   25.0f,  38.0f,  53.0f,  69.0f,  89.0f,  113.0f};

/* ---- As an engine does ---- */

static float half_of(const unsigned char *at) {
  uint16_t half;
  memcpy(&half, at, 2);
  return half_to_float(half);
}

/* The nibbles of 16 bytes as numbers: the low ones come first. */
static void widen_nibbles(const unsigned char *nibbles, uint32_t fifth_bits, const float *number,
                          float factor, float least, float *to, int64_t n) {
  for (int i = 0; i < 16; i++) {
    unsigned low = (nibbles[i] & 15u) | (fifth_bits >> i & 1) << 4,
             high = nibbles[i] >> 4 | (fifth_bits >> (i + 16) & 1) << 4;
    if (i < n) to[i] = factor * number[low] + least;
    if (i + 16 < n) to[i + 16] = factor * number[high] + least;
  }
}

static void widen_blocks(int format, const void *row, float *to, int64_t n) {
  static const size_t block_bytes[] = {18, 20, 22, 24, 18};
  int has_least = format == Q4_1 || format == Q5_1, has_fifth = format == Q5_0 || format == Q5_1;
  float number[32];
  for (int i = 0; i < 32; i++)
    number[i] = format == IQ4_NL ? iq4_nl_numbers[i % 16]
                                 : (float)(i - (format == Q4_0   ? 8
                                                : format == Q5_0 ? 16
                                                                 : 0));
  const unsigned char *at = (const unsigned char *)row;
  for (; n > 0; n -= 32, to += 32, at += block_bytes[format]) {
    uint32_t fifth_bits = 0;
    size_t head = has_least ? 4 : 2;
    if (has_fifth) memcpy(&fifth_bits, at + head, 4);
    widen_nibbles(at + head + (has_fifth ? 4 : 0), fifth_bits, number, half_of(at),
                  has_least ? half_of(at + 2) : 0.0f, to, n);
  }
}

static void widen_q4_0(const void *row, float *to, int64_t n) { widen_blocks(Q4_0, row, to, n); }
static void widen_q4_1(const void *row, float *to, int64_t n) { widen_blocks(Q4_1, row, to, n); }
static void widen_q5_0(const void *row, float *to, int64_t n) { widen_blocks(Q5_0, row, to, n); }
static void widen_q5_1(const void *row, float *to, int64_t n) { widen_blocks(Q5_1, row, to, n); }
static void widen_iq4_nl(const void *row, float *to, int64_t n) { widen_blocks(IQ4_NL, row, to, n); }

/* ---- As they are defined ---- */

typedef struct block_format {
  size_t bytes, codes_at; /* of a block; where its nibbles begin */
  int fifth_at, least_at; /* where the fifth bits and m lie; -1: nowhere */
  unsigned n_codes;       /* 16 or 32 */
  int offset;             /* x = d (code - offset), and m more; IQ4_NL has a table */
  void (*widen)(const void *row, float *to, int64_t n);
} block_format;

static const block_format block_formats[N_BLOCK_FORMATS] = {{18, 2, -1, -1, 16, 8, widen_q4_0},
                                                            {20, 4, -1, 2, 16, 0, widen_q4_1},
                                                            {22, 6, 2, -1, 32, 16, widen_q5_0},
                                                            {24, 8, 4, 2, 32, 0, widen_q5_1},
                                                            {18, 2, -1, -1, 16, 0, widen_iq4_nl}};

/* Element t's code; a machine of the other byte order has ggml's fifth bits in its own. */
static unsigned block_code(const block_format *f, const unsigned char *block, int t) {
  unsigned byte = block[f->codes_at + (size_t)(t % 16)], code = t < 16 ? byte % 16 : byte / 16;
  uint32_t bits = 0;
  if (f->fifth_at >= 0) memcpy(&bits, block + f->fifth_at, 4);
  return code + 16 * (bits >> t & 1);
}

static double block_element(int format, const unsigned char *block, int t) {
  const block_format *f = &block_formats[format];
  unsigned code = block_code(f, block, t);
  double number = format == IQ4_NL ? (double)iq4_nl_numbers[code] : (double)code - f->offset;
  double x = half_at(HYPERATTN_F16, (const char *)block) * number;
  return f->least_at < 0 ? x : x + half_at(HYPERATTN_F16, (const char *)block + f->least_at);
}

#endif
