// Half precision and bfloat16, to float32 and back. To float32 is exact; back rounds to nearest, ties to
// even, and a NaN stays a NaN. Written apart from hyperattn.h's own conversions, so that tests and benches
// can hold one to the other.
#ifndef EXAMPLES_HALVES_H
#define EXAMPLES_HALVES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static inline float half_to_float(uint16_t half) {
  uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
  if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  float x = (float)fraction * 0x1p-24f;  // subnormal
  return sign ? -x : x;
}
static inline uint16_t float_to_half(float x) {
  uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (size >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (size < 0x38800000u)  // subnormal: adding 1/2 leaves the half's fraction, rounded, in the last bits
    return (uint16_t)(sign | (float_to_bits(fabsf(x) + 0.5f) - 0x3f000000u));
  return (uint16_t)(sign | (size + 0xfffu + (size >> 13 & 1) - 0x38000000u) >> 13);
}

static inline float bf16_to_float(uint16_t half) { return bits_to_float((uint32_t)half << 16); }
static inline uint16_t float_to_bf16(float x) {
  uint32_t bits = float_to_bits(x);
  return (uint16_t)(x != x ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

#endif
