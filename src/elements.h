/* ---- Elements ----
   A row consists of units: single elements, Q8_0 blocks of 32 elements (a float16 scale, then 32 signed
   bytes), or bytes whose meaning only the caller knows (HYPERATTN_CUSTOM). Conversions to float32 are exact.
   Those from it round to nearest, ties to even, and keep NaN. */

#define HAI_Q8_0_ELEMENTS 32
#define HAI_Q8_0_BYTES 34

HAI_HOT int hai_is_f32(hyperattn_dtype dtype) { return !HAI_HALVES || dtype == HYPERATTN_F32; }
HAI_HOT int hai_is_custom(hyperattn_dtype dtype) { return HAI_CUSTOM && dtype == HYPERATTN_CUSTOM; }
/* Elements of a unit, bytes of a unit, and the alignment that a row needs. */
HAI_HOT int hai_unit(hyperattn_dtype dtype) {
  return HAI_HALVES && dtype == HYPERATTN_Q8_0 ? HAI_Q8_0_ELEMENTS : 1;
}
HAI_HOT size_t hai_unit_bytes(hyperattn_dtype dtype) {
  if (hai_is_custom(dtype)) return 1;
  return hai_is_f32(dtype) ? sizeof(float) : dtype == HYPERATTN_Q8_0 ? HAI_Q8_0_BYTES : sizeof(uint16_t);
}
/* Bytes of so many elements. */
HAI_HOT ptrdiff_t hai_offset(hyperattn_dtype dtype, ptrdiff_t elements) {
  return elements / hai_unit(dtype) * HAI_AS(ptrdiff_t, hai_unit_bytes(dtype));
}
static size_t hai_alignment(hyperattn_dtype dtype) {
  return hai_is_f32(dtype) ? sizeof(float) : hai_is_custom(dtype) ? 1 : sizeof(uint16_t);
}

/* float16: sign, 5 bits of exponent with bias 15, 10 bits of fraction. */
static float hai_from_f16(uint16_t half) {
  uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  float x;
  if (rest >= 0x7c00u)
    return hai_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13 | HAI_AS(uint32_t, rest > 0x7c00u) << 22);
  if (rest >= 0x0400u) return hai_float(sign | ((rest << 13) + 0x38000000u));
  x = HAI_AS(float, rest) * 5.9604644775390625e-8f; /* subnormal: in units of 2^-24 */
  return sign ? -x : x;
}
static uint16_t hai_to_f16(float x) {
  uint32_t bits = hai_bits(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu, kept, lost, half;
  if (size > 0x7f800000u) return HAI_AS(uint16_t, sign | 0x7e00u);
  if (size >= 0x477ff000u) return HAI_AS(uint16_t, sign | 0x7c00u); /* 65520 is halfway to 2^16 */
  if (size >= 0x38800000u) {
    kept = (size - 0x38000000u) >> 13;
    lost = size & 0x1fffu;
    half = 0x1000u;
  } else { /* subnormal: the fraction with its leading one, shifted to units of 2^-24 */
    uint32_t shift = 126 - (size >> 23), fraction = (size & 0x007fffffu) | 0x00800000u;
    if (shift > 24) return HAI_AS(uint16_t, sign);
    kept = fraction >> shift;
    lost = fraction & ((1u << shift) - 1);
    half = 1u << (shift - 1);
  }
  kept += HAI_AS(uint32_t, lost > half || (lost == half && (kept & 1)));
  return HAI_AS(uint16_t, sign | kept);
}
/* bfloat16: the upper half of a float32. */
static float hai_from_bf16(uint16_t half) { return hai_float(HAI_AS(uint32_t, half) << 16); }
static uint16_t hai_to_bf16(float x) {
  uint32_t bits = hai_bits(x);
  if (x != x) return HAI_AS(uint16_t, bits >> 16 | 0x40u);
  return HAI_AS(uint16_t, (bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Reads element t of a row of any dtype; writes x to it (not in Q8_0). */
static float hai_get(const void *row, hyperattn_dtype dtype, hai_index t) {
  const char *at = HAI_AS(const char *, row) + HAI_AS(size_t, t / hai_unit(dtype)) * hai_unit_bytes(dtype);
  uint16_t half;
  float x;
  if (hai_is_f32(dtype)) {
    HYPERATTN_MEMCPY(&x, at, sizeof x);
    return x;
  }
  HYPERATTN_MEMCPY(&half, at, sizeof half);
  if (dtype == HYPERATTN_BF16) return hai_from_bf16(half);
  if (dtype == HYPERATTN_F16) return hai_from_f16(half);
  return hai_from_f16(half) *
         HAI_AS(float, HAI_AS(signed char, at[sizeof half + HAI_AS(size_t, t % HAI_Q8_0_ELEMENTS)]));
}
static void hai_put(void *row, hyperattn_dtype dtype, hai_index t, float x) {
  char *at = HAI_AS(char *, row) + HAI_AS(size_t, t) * hai_unit_bytes(dtype);
  uint16_t half = dtype == HYPERATTN_F16 ? hai_to_f16(x) : hai_to_bf16(x);
  if (hai_is_f32(dtype))
    HYPERATTN_MEMCPY(at, &x, sizeof x);
  else
    HYPERATTN_MEMCPY(at, &half, sizeof half);
}

/* row[t] = from[t] for t < n, rounded to dtype. */
static void hai_narrow(const float *from, hai_index n, hyperattn_dtype dtype, void *row) {
  hai_index t;
  for (t = 0; t < n; t++) hai_put(row, dtype, t, from[t]);
}
