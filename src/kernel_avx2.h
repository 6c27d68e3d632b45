/* AVX2 with FMA: registers of 8 lanes, tiles of 24. Products take 12 sums, 3 packed vectors and 1 broadcast
   element: all 16 registers. kernel_vector.h says what each primitive does. */

#if HAI_AVX2
#define HAI_TARGET_avx2 __attribute__((target("avx2,fma,f16c")))
enum { HAI_WIDTH_avx2 = 8, HAI_LANES_avx2 = 24 };
#define hai_pack_rest_avx2 hai_pack_plain
typedef __m256 hai_vector_avx2;
#define HAI_V_avx2 HAI_TARGET_avx2 HAI_INLINE __m256
HAI_V_avx2 hai_zero_avx2(void) { return _mm256_setzero_ps(); }
HAI_V_avx2 hai_set1_avx2(float x) { return _mm256_set1_ps(x); }
HAI_V_avx2 hai_load_avx2(const float *p) { return _mm256_loadu_ps(p); }
HAI_TARGET_avx2 HAI_INLINE void hai_store_avx2(float *p, __m256 x) { _mm256_storeu_ps(p, x); }
HAI_V_avx2 hai_add_avx2(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
HAI_V_avx2 hai_sub_avx2(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
HAI_V_avx2 hai_mul_avx2(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
HAI_V_avx2 hai_fma_avx2(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
HAI_V_avx2 hai_dot_avx2(__m256 a, __m256 b, __m256 c) { return hai_fma_avx2(a, b, c); }
HAI_V_avx2 hai_times_avx2(__m256 x, __m256 factor) { return hai_mul_avx2(x, factor); }
HAI_V_avx2 hai_each_avx2(const float *p) { return hai_set1_avx2(*p); }
HAI_V_avx2 hai_f16_avx2(const void *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(HAI_AS(const __m128i *, p)));
}
HAI_V_avx2 hai_bf16_avx2(const void *p) {
  __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(HAI_AS(const __m128i *, p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
HAI_V_avx2 hai_half_avx2(const void *p) { return _mm256_cvtph_ps(_mm_set1_epi16(hai_two_bytes(p))); }
HAI_V_avx2 hai_int8_avx2(const void *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(HAI_AS(const __m128i *, p))));
}
HAI_V_avx2 hai_max_avx2(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
HAI_V_avx2 hai_min_avx2(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
HAI_V_avx2 hai_div_avx2(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
HAI_TARGET_avx2 HAI_INLINE uint32_t hai_hidden_avx2(__m256 x) {
  return HAI_AS(uint32_t, _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-hai_inf()), _CMP_EQ_OQ)));
}
HAI_V_avx2 hai_show_avx2(__m256 x, uint64_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256i shown =
      _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(HAI_AS(int, bits & 255)), lane), lane);
  return _mm256_blendv_ps(_mm256_set1_ps(-hai_inf()), x, _mm256_castsi256_ps(shown));
}
HAI_V_avx2 hai_or_zero_avx2(__m256 x) {
  return _mm256_and_ps(x, _mm256_cmp_ps(x, _mm256_set1_ps(-hai_inf()), _CMP_NEQ_UQ));
}
HAI_V_avx2 hai_known_avx2(__m256 x) { return _mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q)); }
HAI_V_avx2 hai_move_avx2(__m256 m, __m256 high) {
  __m256 steps = _mm256_cmp_ps(high, _mm256_add_ps(m, _mm256_set1_ps(HAI_LEAP)), _CMP_LT_OQ);
  __m256 moves = _mm256_and_ps(_mm256_cmp_ps(high, m, _CMP_GT_OQ), steps);
  return _mm256_add_ps(high, _mm256_and_ps(moves, _mm256_set1_ps(HAI_AHEAD)));
}
HAI_TARGET_avx2 HAI_INLINE int hai_differ_avx2(__m256 a, __m256 b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ)) != 0;
}
HAI_V_avx2 hai_keep_avx2(__m256 x) {
  __asm__("" : "+x"(x));
  return x;
}
/* e^x for x <= 0, as hai_exp with one degree less; below 2^-126 exactly 0. 1.5 2^23 + 127 + x log2(e) is
   rounded to an integer, whose lowest bits are n + 127, the exponent of 2^n. */
HAI_V_avx2 hai_exp_avx2(__m256 x) {
  const __m256 log2_e = _mm256_set1_ps(1.44269504f), rounder = _mm256_set1_ps(12583039.0f);
  __m256 bits = _mm256_fmadd_ps(x, log2_e, rounder);
  __m256 f = _mm256_fmsub_ps(x, log2_e, _mm256_sub_ps(bits, rounder));
  __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(bits), 23));
  __m256 p = _mm256_set1_ps(1.326472715e-3f);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.671512643e-3f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.550733743e-2f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.402224209e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.931469776e-1f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-87.3365402f), _CMP_LT_OQ),
                          _mm256_mul_ps(p, power));
}
HAI_TARGET_avx2 HAI_INLINE float hai_sum_avx2(__m256 x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_shuffle_ps(y, y, 1)));
}
HAI_TARGET_avx2 HAI_INLINE float hai_most_avx2(__m256 x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_shuffle_ps(y, y, 1)));
}
HAI_TARGET_avx2 HAI_INLINE void hai_sums4_avx2(float *to, __m256 a, __m256 b, __m256 c, __m256 d) {
  __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  __m256 x = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}
HAI_V_avx2 hai_gather4_avx2(const void *const *row, hai_index t) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(HAI_AS(const float *, row[0]) + t)),
                              _mm_loadu_ps(HAI_AS(const float *, row[4]) + t), 1);
}
HAI_TARGET_avx2 HAI_INLINE void hai_scatter4_avx2(__m256 x, float *const *row, hai_index t) {
  _mm_storeu_ps(row[0] + t, _mm256_castps256_ps128(x));
  _mm_storeu_ps(row[4] + t, _mm256_extractf128_ps(x, 1));
}
HAI_TARGET_avx2 HAI_INLINE void hai_transpose4_avx2(__m256 *x0, __m256 *x1, __m256 *x2, __m256 *x3) {
  __m256 a = _mm256_unpacklo_ps(*x0, *x1), b = _mm256_unpackhi_ps(*x0, *x1);
  __m256 c = _mm256_unpacklo_ps(*x2, *x3), d = _mm256_unpackhi_ps(*x2, *x3);
  *x0 = _mm256_shuffle_ps(a, c, 0x44);
  *x1 = _mm256_shuffle_ps(a, c, 0xee);
  *x2 = _mm256_shuffle_ps(b, d, 0x44);
  *x3 = _mm256_shuffle_ps(b, d, 0xee);
}

#define HAI_ISA(name) hai_##name##_avx2
#define HAI_TARGET HAI_TARGET_avx2
#define HAI_VECTOR __m256
#define HAI_WIDTH HAI_WIDTH_avx2
#define HAI_LANES HAI_LANES_avx2
#define HAI_ELEMENT float
#define HAI_ROWS(X) HAI_ROWS_4(X)
#define HAI_N_ROWS 4
#define HAI_LONG(X) HAI_ROWS_8(X)
#define HAI_N_LONG 8
#define HAI_FACTORED 0
#define HAI_STEP_REGISTERS 4
#define HAI_MOST_ROWS 2
#define HAI_MOST_QUERIES 4
#include "kernel_vector.h"

static const hai_kernel hai_kernel_avx2 = {
    /* isa */ HYPERATTN_ISA_AVX2,
    /* dtype */ HYPERATTN_F32,
    /* lanes */ HAI_LANES_avx2,
    /* width */ HAI_WIDTH_avx2,
    /* tiles */ 4,
    /* widen */ hai_widen_avx2,
    /* pack */ hai_pack_avx2,
    /* unpack */ hai_unpack_avx2,
    /* scores */ hai_scores_avx2,
    /* cap */ hai_cap_avx2,
    /* hide */ hai_hide_avx2,
    /* add_bias */ hai_add_bias_avx2,
    /* softmax */ hai_softmax_avx2,
    /* round */ HAI_NULL,
    /* join */ HAI_NULL,
    /* values */ hai_values_avx2,
    /* scale */ hai_scale_avx2,
    /* carry */ hai_carry_avx2,
    /* gather */ hai_gather_avx2,
    /* sum_lanes */ hai_sum_lanes_avx2,
    /* square */ hai_square_avx2,
    /* add_row */ hai_add_row_avx2,
    /* value_multiple */ 1,
    /* few */ HAI_FEW ? &hai_few_avx2 : HAI_NULL,
    /* enter */ hai_enter_x86,
    /* leave */ hai_leave_x86};
#endif
