/* NEON with BF16 (ARMv8.6), where the compiler may use it everywhere: the tile of NEON with elements of two
   bfloat16. */

#if HAI_NEON_BF16
#define HAI_TARGET_neonbf
typedef float32x4_t hai_vector_neonbf;
#define hai_zero_neonbf hai_zero_neon
#define hai_load_neonbf hai_load_neon
#define hai_store_neonbf hai_store_neon
#define hai_fma_neonbf hai_fma_neon
#define hai_mul_neonbf hai_mul_neon
#define hai_add_neonbf hai_add_neon
#define hai_keep_neonbf hai_keep_neon
#define hai_gather4_neonbf hai_gather4_neon
#define hai_transpose4_neonbf hai_transpose4_neon
#define hai_pack_rest_neonbf hai_pack_bf16x2
HAI_V_neon hai_set1_neonbf(float x) { return vdupq_n_f32(x); }
HAI_V_neon hai_times_neonbf(float32x4_t x, float32x4_t factor) {
  (void)factor;
  return x;
}
HAI_V_neon hai_each_neonbf(const hai_bf16x2 *p) {
  uint32_t bits;
  HYPERATTN_MEMCPY(&bits, p, sizeof bits);
  return vreinterpretq_f32_u32(vdupq_n_u32(bits));
}
/* c + a.low b.low + a.high b.high; denormals count as zero */
HAI_V_neon hai_dot_neonbf(float32x4_t a, float32x4_t b, float32x4_t c) {
  return vbfdotq_f32(c, vreinterpretq_bf16_f32(a), vreinterpretq_bf16_f32(b));
}
HAI_V_neon hai_join_neonbf(float32x4_t a, float32x4_t b) {
  uint32x4_t low = vmovl_u16(vreinterpret_u16_bf16(vcvt_bf16_f32(a)));
  uint32x4_t high = vmovl_u16(vreinterpret_u16_bf16(vcvt_bf16_f32(b)));
  return vreinterpretq_f32_u32(vorrq_u32(low, vshlq_n_u32(high, 16)));
}
HAI_INLINE void hai_zip_neonbf(const uint16_t *a, const uint16_t *b, hai_bf16x2 *pair) {
  uint16x8x2_t both = vzipq_u16(vld1q_u16(a), vld1q_u16(b));
  HYPERATTN_MEMCPY(pair, &both.val[0], sizeof both.val[0]);
  HYPERATTN_MEMCPY(pair + 4, &both.val[1], sizeof both.val[1]);
}

#define HAI_ISA(name) hai_##name##_neonbf
#define HAI_TARGET HAI_TARGET_neonbf
#define HAI_VECTOR float32x4_t
#define HAI_WIDTH HAI_WIDTH_neon
#define HAI_LANES HAI_LANES_neon
#define HAI_ELEMENT hai_bf16x2
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_LONG(X) HAI_ROWS_8(X)
#define HAI_N_LONG 8
#define HAI_FACTORED 1
#include "kernel_bf16.h"

static const hai_kernel hai_kernel_neon_bf16 = {
    /* isa */ HYPERATTN_ISA_NEON,
    /* dtype */ HYPERATTN_BF16,
    /* lanes */ HAI_LANES_neon,
    /* width */ HAI_WIDTH_neon,
    /* tiles */ 4,
    /* widen */ hai_widen_neon,
    /* pack */ hai_pack_bf16_neonbf,
    /* unpack */ hai_unpack_neon,
    /* scores */ hai_scores_bf16_neonbf,
    /* cap */ hai_cap_neon,
    /* hide */ hai_hide_neon,
    /* add_bias */ hai_add_bias_neon,
    /* softmax */ hai_softmax_neon,
    /* round */ hai_round_neonbf,
    /* join */ hai_join_values_neonbf,
    /* values */ hai_values_bf16_neonbf,
    /* scale */ hai_scale_neon,
    /* carry */ hai_carry_neon,
    /* gather */ hai_gather_neon,
    /* sum_lanes */ hai_sum_lanes_neon,
    /* square */ hai_square_neon,
    /* add_row */ hai_add_row_neon,
    /* value_multiple */ 1,
    /* few */ HAI_NULL,
    /* enter */ hai_enter_neon,
    /* leave */ hai_leave_neon};
#endif
