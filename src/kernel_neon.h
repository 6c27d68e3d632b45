/* NEON: registers of 4 lanes, tiles of 12. Products take 24 sums, 3 packed vectors and 1 broadcast element:
   28 of 32 registers. kernel_vector.h says what each primitive does. */

#if HAI_NEON
#define HAI_TARGET_neon
enum { HAI_WIDTH_neon = 4, HAI_LANES_neon = 12 };
#define hai_pack_rest_neon hai_pack_plain
typedef float32x4_t hai_vector_neon;
#define HAI_V_neon HAI_INLINE float32x4_t
HAI_V_neon hai_zero_neon(void) { return vdupq_n_f32(0.0f); }
HAI_V_neon hai_set1_neon(float x) { return vdupq_n_f32(x); }
HAI_V_neon hai_load_neon(const float *p) { return vld1q_f32(p); }
HAI_INLINE void hai_store_neon(float *p, float32x4_t x) { vst1q_f32(p, x); }
HAI_V_neon hai_add_neon(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
HAI_V_neon hai_sub_neon(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
HAI_V_neon hai_mul_neon(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
HAI_V_neon hai_fma_neon(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
HAI_V_neon hai_dot_neon(float32x4_t a, float32x4_t b, float32x4_t c) { return hai_fma_neon(a, b, c); }
HAI_V_neon hai_times_neon(float32x4_t x, float32x4_t factor) { return hai_mul_neon(x, factor); }
HAI_V_neon hai_each_neon(const float *p) { return hai_set1_neon(*p); }
HAI_V_neon hai_f16_neon(const void *p) {
  uint16x4_t x;
  HYPERATTN_MEMCPY(&x, p, sizeof x);
  return vcvt_f32_f16(vreinterpret_f16_u16(x));
}
HAI_V_neon hai_bf16_neon(const void *p) {
  uint16x4_t x;
  HYPERATTN_MEMCPY(&x, p, sizeof x);
  return vreinterpretq_f32_u32(vshll_n_u16(x, 16));
}
HAI_V_neon hai_half_neon(const void *p) {
  return vcvt_f32_f16(vreinterpret_f16_s16(vdup_n_s16(hai_two_bytes(p))));
}
HAI_V_neon hai_int8_neon(const void *p) {
  int32_t four;
  HYPERATTN_MEMCPY(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
HAI_V_neon hai_max_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
HAI_V_neon hai_min_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
HAI_V_neon hai_div_neon(float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }
HAI_INLINE uint32_t hai_hidden_neon(float32x4_t x) {
  static const uint32_t lane[4] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vceqq_f32(x, vdupq_n_f32(-hai_inf())), vld1q_u32(lane)));
}
HAI_V_neon hai_show_neon(float32x4_t x, uint64_t bits) {
  static const uint32_t lane[4] = {1, 2, 4, 8};
  return vbslq_f32(vtstq_u32(vdupq_n_u32(HAI_AS(uint32_t, bits)), vld1q_u32(lane)), x,
                   vdupq_n_f32(-hai_inf()));
}
HAI_V_neon hai_or_zero_neon(float32x4_t x) {
  return vbslq_f32(vceqq_f32(x, vdupq_n_f32(-hai_inf())), vdupq_n_f32(0.0f), x);
}
HAI_V_neon hai_known_neon(float32x4_t x) { return vbslq_f32(vceqq_f32(x, x), x, vdupq_n_f32(0.0f)); }
HAI_V_neon hai_move_neon(float32x4_t m, float32x4_t high) {
  uint32x4_t steps = vcltq_f32(high, vaddq_f32(m, vdupq_n_f32(HAI_LEAP)));
  uint32x4_t moves = vandq_u32(vcgtq_f32(high, m), steps);
  return vaddq_f32(high,
                   vreinterpretq_f32_u32(vandq_u32(moves, vreinterpretq_u32_f32(vdupq_n_f32(HAI_AHEAD)))));
}
HAI_INLINE int hai_differ_neon(float32x4_t a, float32x4_t b) { return vminvq_u32(vceqq_f32(a, b)) == 0; }
HAI_V_neon hai_keep_neon(float32x4_t x) {
  __asm__("" : "+w"(x));
  return x;
}
/* e^x for x <= 0, as hai_exp with one degree less; below 2^-126 exactly 0; a NaN's n is 0 or 2^31, whose
   shift leaves it a NaN */
HAI_V_neon hai_exp_neon(float32x4_t x) {
  float32x4_t t = vmulq_f32(x, vdupq_n_f32(1.44269504f));
  float32x4_t n = vrndnq_f32(t), f = vsubq_f32(t, n);
  float32x4_t p = vdupq_n_f32(1.326472715e-3f);
  p = hai_fma_neon(p, f, vdupq_n_f32(9.671512643e-3f));
  p = hai_fma_neon(p, f, vdupq_n_f32(5.550733743e-2f));
  p = hai_fma_neon(p, f, vdupq_n_f32(2.402224209e-1f));
  p = hai_fma_neon(p, f, vdupq_n_f32(6.931469776e-1f));
  p = hai_fma_neon(p, f, vdupq_n_f32(1.0f));
  p = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
  return vbslq_f32(vcltq_f32(t, vdupq_n_f32(-126.0f)), vdupq_n_f32(0.0f), p);
}
HAI_INLINE float hai_sum_neon(float32x4_t x) { return vaddvq_f32(x); }
HAI_INLINE float hai_most_neon(float32x4_t x) { return vmaxvq_f32(x); }
HAI_INLINE void hai_sums4_neon(float *to, float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
  vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
/* elements t .. t + 3 of row 0 */
HAI_V_neon hai_gather4_neon(const void *const *row, hai_index t) {
  return vld1q_f32(HAI_AS(const float *, row[0]) + t);
}
HAI_INLINE void hai_scatter4_neon(float32x4_t x, float *const *row, hai_index t) {
  vst1q_f32(row[0] + t, x);
}
HAI_INLINE void hai_transpose4_neon(float32x4_t *x0, float32x4_t *x1, float32x4_t *x2, float32x4_t *x3) {
  float32x4_t a = vzip1q_f32(*x0, *x2), b = vzip2q_f32(*x0, *x2);
  float32x4_t c = vzip1q_f32(*x1, *x3), d = vzip2q_f32(*x1, *x3);
  *x0 = vzip1q_f32(a, c);
  *x1 = vzip2q_f32(a, c);
  *x2 = vzip1q_f32(b, d);
  *x3 = vzip2q_f32(b, d);
}

#define HAI_ISA(name) hai_##name##_neon
#define HAI_TARGET HAI_TARGET_neon
#define HAI_VECTOR float32x4_t
#define HAI_WIDTH HAI_WIDTH_neon
#define HAI_LANES HAI_LANES_neon
#define HAI_ELEMENT float
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_LONG(X) HAI_ROWS_16(X)
#define HAI_N_LONG 16
#define HAI_FACTORED 0
#define HAI_STEP_REGISTERS 8
#define HAI_MOST_ROWS 2
#define HAI_MOST_QUERIES 8
#include "kernel_vector.h"

static const hai_kernel hai_kernel_neon = {
    /* isa */ HYPERATTN_ISA_NEON,
    /* dtype */ HYPERATTN_F32,
    /* lanes */ HAI_LANES_neon,
    /* width */ HAI_WIDTH_neon,
    /* tiles */ 4,
    /* widen */ hai_widen_neon,
    /* pack */ hai_pack_neon,
    /* unpack */ hai_unpack_neon,
    /* scores */ hai_scores_neon,
    /* cap */ hai_cap_neon,
    /* hide */ hai_hide_neon,
    /* add_bias */ hai_add_bias_neon,
    /* softmax */ hai_softmax_neon,
    /* round */ HAI_NULL,
    /* join */ HAI_NULL,
    /* values */ hai_values_neon,
    /* scale */ hai_scale_neon,
    /* carry */ hai_carry_neon,
    /* gather */ hai_gather_neon,
    /* sum_lanes */ hai_sum_lanes_neon,
    /* square */ hai_square_neon,
    /* add_row */ hai_add_row_neon,
    /* value_multiple */ 1,
    /* few */ HAI_FEW ? &hai_few_neon : HAI_NULL,
    /* enter */ hai_enter_neon,
    /* leave */ hai_leave_neon};
#endif
