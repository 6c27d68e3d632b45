/* AVX512-BF16: the tile of AVX-512 with elements of two bfloat16. */

#if HAI_AVX512_BF16
#define HAI_TARGET_avx512bf \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")))
typedef __m512 hai_vector_avx512bf;
#define HAI_V_avx512bf HAI_TARGET_avx512bf HAI_INLINE __m512
#define hai_zero_avx512bf hai_zero_avx512
#define hai_load_avx512bf hai_load_avx512
#define hai_store_avx512bf hai_store_avx512
#define hai_fma_avx512bf hai_fma_avx512
#define hai_mul_avx512bf hai_mul_avx512
#define hai_add_avx512bf hai_add_avx512
#define hai_keep_avx512bf hai_keep_avx512
#define hai_gather4_avx512bf hai_gather4_avx512
#define hai_transpose4_avx512bf hai_transpose4_avx512
#define hai_pack_rest_avx512bf hai_pack_bf16x2
HAI_V_avx512bf hai_set1_avx512bf(float x) { return _mm512_set1_ps(x); }
HAI_V_avx512bf hai_times_avx512bf(__m512 x, __m512 factor) {
  (void)factor;
  return x;
}
HAI_V_avx512bf hai_each_avx512bf(const hai_bf16x2 *p) {
  int bits;
  HYPERATTN_MEMCPY(&bits, p, sizeof bits);
  return _mm512_castsi512_ps(_mm512_set1_epi32(bits));
}
/* c + a.low b.low + a.high b.high; denormals count as zero */
HAI_V_avx512bf hai_dot_avx512bf(__m512 a, __m512 b, __m512 c) {
  return _mm512_dpbf16_ps(c, HAI_REINTERPRET(__m512bh, a), HAI_REINTERPRET(__m512bh, b));
}
/* Of 32 halves, those of the lower 16 in turn with those of the upper 16. */
HAI_TARGET_avx512bf HAI_INLINE __m512i hai_zip_lanes_avx512bf(void) {
  return _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                          20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
}
HAI_V_avx512bf hai_join_avx512bf(__m512 a, __m512 b) {
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(hai_zip_lanes_avx512bf(),
                                                      HAI_REINTERPRET(__m512i, _mm512_cvtne2ps_pbh(b, a))));
}
HAI_TARGET_avx512bf HAI_INLINE void hai_zip_avx512bf(const void *a, const void *b, hai_bf16x2 *pair) {
  __m128i x = _mm_loadu_si128(HAI_AS(const __m128i *, a));
  __m128i y = _mm_loadu_si128(HAI_AS(const __m128i *, b));
  _mm_storeu_si128(HAI_PLACE(__m128i, pair), _mm_unpacklo_epi16(x, y));
  _mm_storeu_si128(HAI_PLACE(__m128i, pair + 4), _mm_unpackhi_epi16(x, y));
}

#define HAI_ISA(name) hai_##name##_avx512bf
#define HAI_TARGET HAI_TARGET_avx512bf
#define HAI_VECTOR __m512
#define HAI_WIDTH HAI_WIDTH_avx512
#define HAI_LANES HAI_LANES_avx512
#define HAI_ELEMENT hai_bf16x2
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_LONG(X) HAI_ROWS_8(X)
#define HAI_N_LONG 8
#define HAI_FACTORED 1
#include "kernel_bf16.h"

static const hai_kernel hai_kernel_avx512_bf16 = {
    /* isa */ HYPERATTN_ISA_AVX512_BF16,
    /* dtype */ HYPERATTN_BF16,
    /* lanes */ HAI_LANES_avx512,
    /* width */ HAI_WIDTH_avx512,
    /* tiles */ 4,
    /* widen */ hai_widen_avx512,
    /* pack */ hai_pack_bf16_avx512bf,
    /* unpack */ hai_unpack_avx512,
    /* scores */ hai_scores_bf16_avx512bf,
    /* cap */ hai_cap_avx512,
    /* hide */ hai_hide_avx512,
    /* add_bias */ hai_add_bias_avx512,
    /* softmax */ hai_softmax_avx512,
    /* round */ hai_round_avx512bf,
    /* join */ hai_join_values_avx512bf,
    /* values */ hai_values_bf16_avx512bf,
    /* scale */ hai_scale_avx512,
    /* carry */ hai_carry_avx512,
    /* gather */ hai_gather_avx512,
    /* sum_lanes */ hai_sum_lanes_avx512,
    /* square */ hai_square_avx512,
    /* add_row */ hai_add_row_avx512,
    /* value_multiple */ 1,
    /* few */ HAI_NULL,
    /* enter */ hai_enter_x86,
    /* leave */ hai_leave_x86};
#endif
