/* NEON: the scan, by dot products where the compiler's flags allow them. kernel_scan.h says what each
   primitive does. */

#if HAI_NEON && HAI_SCAN
#define HAI_I_neon HAI_INLINE int32x4_t
HAI_I_neon hai_ints_neon(const int32_t *p) { return vld1q_s32(p); }
HAI_INLINE void hai_put_neon(int32_t *p, int32x4_t x) { vst1q_s32(p, x); }
HAI_I_neon hai_ints1_neon(int32_t x) { return vdupq_n_s32(x); }
HAI_I_neon hai_flip_neon(int32x4_t x) { return veorq_s32(x, vdupq_n_s32(HAI_RAISED_BYTES)); }
HAI_I_neon hai_word_neon(const uint8_t *p) { return hai_flip_neon(vdupq_n_s32(hai_four_bytes(p))); }
HAI_I_neon hai_plus_neon(int32x4_t a, int32x4_t b) { return vaddq_s32(a, b); }
HAI_I_neon hai_minus_neon(int32x4_t a, int32x4_t b) { return vsubq_s32(a, b); }
HAI_I_neon hai_larger_neon(int32x4_t a, int32x4_t b) { return vmaxq_s32(a, b); }
HAI_I_neon hai_truncate_neon(float32x4_t x) { return vcvtq_s32_f32(x); }
HAI_V_neon hai_floats_neon(int32x4_t x) { return vcvtq_f32_s32(x); }
HAI_V_neon hai_by_bits_neon(int32x4_t x) { return vreinterpretq_f32_s32(x); }
HAI_I_neon hai_size_neon(float32x4_t x) {
  return vandq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x7fffffff));
}
HAI_I_neon hai_join_neon(int32x4_t word, int32x4_t x) {
  return vorrq_s32(vshlq_n_s32(word, 8), vshrq_n_s32(x, 10));
}
HAI_I_neon hai_sizes_neon(int32x4_t x) { return vreinterpretq_s32_s8(vabsq_s8(vreinterpretq_s8_s32(x))); }
HAI_INLINE int hai_positive_neon(int32x4_t x) { return vmaxvq_s32(x) > 0; }
HAI_INLINE void hai_bytes_neon(uint8_t *p, int32x4_t x) {
  int16x4_t y = vmovn_s32(x);
  int8x8_t z = vmovn_s16(vcombine_s16(y, y));
  HYPERATTN_MEMCPY(p, &z, 4);
}
HAI_I_neon hai_codes_neon(const uint8_t *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
HAI_I_neon hai_low_neon(int32x4_t x) { return vandq_s32(x, vreinterpretq_s32_u8(vdupq_n_u8(3))); }
HAI_I_neon hai_down_neon(int32x4_t x) { return vshrq_n_s32(x, 2); }
HAI_I_neon hai_nearest_neon(float32x4_t x) { return vcvtnq_s32_f32(x); }
HAI_INLINE void hai_cut_neon(int16_t *p, int32x4_t x) { vst1_s16(p, vqmovn_s32(x)); }
HAI_I_neon hai_wide_neon(const int16_t *p) { return vmovl_s16(vld1_s16(p)); }
HAI_I_neon hai_smaller_neon(int32x4_t a, int32x4_t b) { return vminq_s32(a, b); }
HAI_I_neon hai_up_neon(int32x4_t x) { return vshlq_n_s32(x, 20); }
#define HAI_SHORTS(x) vreinterpretq_s16_s32(x)
HAI_I_neon hai_shorts_neon(const int16_t *p) { return vreinterpretq_s32_s16(vld1q_s16(p)); }
HAI_I_neon hai_shorts1_neon(int x) { return vreinterpretq_s32_s16(vdupq_n_s16(HAI_AS(int16_t, x))); }
HAI_I_neon hai_less_neon(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s16(vqsubq_s16(HAI_SHORTS(a), HAI_SHORTS(b)));
}
HAI_I_neon hai_more_neon(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s16(vaddq_s16(HAI_SHORTS(a), HAI_SHORTS(b)));
}
HAI_I_neon hai_most_short_neon(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s16(vmaxq_s16(HAI_SHORTS(a), HAI_SHORTS(b)));
}
HAI_I_neon hai_bits_neon(float32x4_t u, float32x4_t v) {
  int32x4_t a = vshrq_n_s32(vreinterpretq_s32_f32(u), 20), b = vshrq_n_s32(vreinterpretq_s32_f32(v), 20);
  return vreinterpretq_s32_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
}
HAI_INLINE uint32_t hai_over_neon(int32x4_t a, int32x4_t b) {
  static const uint16_t lane[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vaddvq_u16(vandq_u16(vcgtq_s16(HAI_SHORTS(a), HAI_SHORTS(b)), vld1q_u16(lane)));
}
#undef HAI_SHORTS
HAI_INLINE int32_t hai_top_neon(int32x4_t x) { return vmaxvq_s32(x); }

/* Sums of four products of bytes, none of which is above 127: two of them fit 16 bits. */
HAI_I_neon hai_pairs_neon(int32x4_t a, int32x4_t b, int32x4_t c) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(c, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
#else
  int8x16_t x = vreinterpretq_s8_s32(a), y = vreinterpretq_s8_s32(b);
  int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_s8(vget_high_s8(x), vget_high_s8(y));
  return vpadalq_s16(c, vpaddq_s16(low, high));
#endif
}

#define HAI_ISA(name) hai_##name##_neon
#define HAI_VECTOR float32x4_t
#define HAI_INTS int32x4_t
#define HAI_WIDTH HAI_WIDTH_neon
#define HAI_LANES HAI_LANES_neon
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_SCAN_TARGET
#define HAI_WAY(name) hai_scan_##name##_neon
#define HAI_SCAN_DOT(a, b, c) hai_pairs_neon(a, b, c)
#define HAI_SCAN_LIFT 0
#ifdef __ARM_FEATURE_DOTPROD
#define HAI_SCAN_COST 0.1f
#else
#define HAI_SCAN_COST 0.27f
#endif
#include "kernel_scan.h"
#undef HAI_ISA
#undef HAI_VECTOR
#undef HAI_INTS
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ROWS
#undef HAI_N_ROWS
#endif
