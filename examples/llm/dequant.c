#include "dequant.h"

#include "halves.h"

#include <stddef.h>

static uint32_t u16_at(const unsigned char *b) { return (uint32_t)b[0] | (uint32_t)b[1] << 8; }
static uint32_t u32_at(const unsigned char *b) { return u16_at(b) | u16_at(b + 2) << 16; }
static float half_at(const unsigned char *b) { return half_to_float((uint16_t)u16_at(b)); }

static void f32(const unsigned char *b, float *to) { *to = bits_to_float(u32_at(b)); }
static void f16(const unsigned char *b, float *to) { *to = half_at(b); }
static void bf16(const unsigned char *b, float *to) { *to = bf16_to_float((uint16_t)u16_at(b)); }

// Blocks of 32: x = d q + m, where q has 4 bits, or 5 with the fifth in `high`; the low nibbles are the first
// half.
static void nibbles(const unsigned char *q, uint32_t high, float d, float m, float *to) {
  for (int i = 0; i < 16; i++) {
    to[i] = d * (float)((q[i] & 15) | (high >> i & 1) << 4) + m;
    to[i + 16] = d * (float)((uint32_t)(q[i] >> 4) | (high >> (i + 16) & 1) << 4) + m;
  }
}
static void q4_0(const unsigned char *b, float *to) { nibbles(b + 2, 0, half_at(b), -8 * half_at(b), to); }
static void q4_1(const unsigned char *b, float *to) { nibbles(b + 4, 0, half_at(b), half_at(b + 2), to); }
static void q5_0(const unsigned char *b, float *to) {
  nibbles(b + 6, u32_at(b + 2), half_at(b), -16 * half_at(b), to);
}
static void q5_1(const unsigned char *b, float *to) {
  nibbles(b + 8, u32_at(b + 4), half_at(b), half_at(b + 2), to);
}
static void q8_0(const unsigned char *b, float *to) {
  for (int i = 0; i < 32; i++) to[i] = half_at(b) * (float)(int8_t)b[2 + i];
}

// Super-blocks of 256 in 8 parts of 32: x = d s q - dmin m. s and m have 6 bits each and are packed in 12
// bytes: the low six bits of bytes 0..3 and 4..7 are s and m of parts 0..3; those of parts 4..7 have
// their low four bits in the nibbles of bytes 8..11 and their high two in the top bits of bytes 0..7.
static void k_scale(const unsigned char *p, int part, float *s, float *m) {
  if (part < 4) {
    *s = (float)(p[part] & 63), *m = (float)(p[part + 4] & 63);
  } else {
    *s = (float)((p[part + 4] & 15) | (p[part - 4] >> 6) << 4);
    *m = (float)((p[part + 4] >> 4) | (p[part] >> 6) << 4);
  }
}
// high is NULL, or 32 bytes whose bit `part` is the fifth bit of q.
static void k_parts(const unsigned char *b, const unsigned char *high, const unsigned char *q, float *to) {
  float d = half_at(b), dmin = half_at(b + 2), s, m;
  for (int part = 0; part < 8; part++) {
    k_scale(b + 4, part, &s, &m);
    const unsigned char *row = q + 32 * (part / 2);
    for (int i = 0; i < 32; i++) {
      int value = (part & 1 ? row[i] >> 4 : row[i] & 15) + (high ? (high[i] >> part & 1) << 4 : 0);
      to[32 * part + i] = d * s * (float)value - dmin * m;
    }
  }
}
static void q4_k(const unsigned char *b, float *to) { k_parts(b, NULL, b + 16, to); }
static void q5_k(const unsigned char *b, float *to) { k_parts(b, b + 16, b + 48, to); }

// Two halves of 128 in 4 parts of 32: 4 low bits in `low`, 2 high bits in `high`, a signed scale per 16.
static void q6_k(const unsigned char *b, float *to) {
  float d = half_at(b + 208);
  for (int half = 0; half < 2; half++)
    for (int part = 0; part < 4; part++) {
      const unsigned char *low = b + 64 * half + 32 * (part & 1), *high = b + 128 + 32 * half;
      const unsigned char *scales = b + 192 + 8 * half + 2 * part;
      for (int i = 0; i < 32; i++) {
        int value = (part < 2 ? low[i] & 15 : low[i] >> 4) | (high[i] >> 2 * part & 3) << 4;
        *to++ = d * (float)(int8_t)scales[i / 16] * (float)(value - 32);
      }
    }
}

const dequant_format *dequant_find(uint32_t type) {
  static const dequant_format formats[] = {
      {0, "F32", 1, 4, f32},        {1, "F16", 1, 2, f16},        {30, "BF16", 1, 2, bf16},
      {2, "Q4_0", 32, 18, q4_0},    {3, "Q4_1", 32, 20, q4_1},    {6, "Q5_0", 32, 22, q5_0},
      {7, "Q5_1", 32, 24, q5_1},    {8, "Q8_0", 32, 34, q8_0},    {12, "Q4_K", 256, 144, q4_k},
      {13, "Q5_K", 256, 176, q5_k}, {14, "Q6_K", 256, 210, q6_k},
  };
  for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
    if (formats[i].type == type) return &formats[i];
  return NULL;
}

void dequant(const dequant_format *format, const unsigned char *bytes, int64_t n_blocks, float *to) {
  for (int64_t i = 0; i < n_blocks; i++, bytes += format->bytes, to += format->elements)
    format->block(bytes, to);
}
