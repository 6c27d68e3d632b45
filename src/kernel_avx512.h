/* AVX-512: registers of 16 lanes, tiles of 48. Products take 24 sums, 3 packed vectors and 1 broadcast
   element: 28 of 32 registers. kernel_vector.h says what each primitive does. */

#if HAI_AVX512
/* What these functions may use. HAI_CPU_AVX512 must promise the same. */
#define HAI_TARGET_avx512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
enum { HAI_WIDTH_avx512 = 16, HAI_LANES_avx512 = 48 };
#define hai_pack_rest_avx512 hai_pack_plain
typedef __m512 hai_vector_avx512;
#define HAI_V_avx512 HAI_TARGET_avx512 HAI_INLINE __m512
HAI_V_avx512 hai_zero_avx512(void) { return _mm512_setzero_ps(); }
HAI_V_avx512 hai_set1_avx512(float x) { return _mm512_set1_ps(x); }
HAI_V_avx512 hai_load_avx512(const float *p) { return _mm512_loadu_ps(p); }
HAI_TARGET_avx512 HAI_INLINE void hai_store_avx512(float *p, __m512 x) { _mm512_storeu_ps(p, x); }
HAI_V_avx512 hai_add_avx512(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
HAI_V_avx512 hai_sub_avx512(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
HAI_V_avx512 hai_mul_avx512(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
HAI_V_avx512 hai_fma_avx512(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
HAI_V_avx512 hai_dot_avx512(__m512 a, __m512 b, __m512 c) { return hai_fma_avx512(a, b, c); }
HAI_V_avx512 hai_times_avx512(__m512 x, __m512 factor) { return hai_mul_avx512(x, factor); }
HAI_V_avx512 hai_each_avx512(const float *p) { return hai_set1_avx512(*p); }
HAI_TARGET_avx512 HAI_INLINE __m256i hai_halves_avx512(const void *p) {
  return _mm256_loadu_si256(HAI_AS(const __m256i *, p));
}
HAI_V_avx512 hai_f16_avx512(const void *p) { return _mm512_cvtph_ps(hai_halves_avx512(p)); }
HAI_V_avx512 hai_bf16_avx512(const void *p) {
  __m512i x = _mm512_cvtepu16_epi32(hai_halves_avx512(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
HAI_V_avx512 hai_half_avx512(const void *p) {
  return _mm512_cvtph_ps(_mm256_set1_epi16(hai_two_bytes(p)));
}
HAI_V_avx512 hai_int8_avx512(const void *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(HAI_AS(const __m128i *, p))));
}
HAI_V_avx512 hai_max_avx512(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
HAI_V_avx512 hai_min_avx512(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
HAI_V_avx512 hai_div_avx512(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
HAI_TARGET_avx512 HAI_INLINE uint32_t hai_hidden_avx512(__m512 x) {
  return HAI_AS(uint32_t, _mm512_cmp_ps_mask(x, _mm512_set1_ps(-hai_inf()), _CMP_EQ_OQ));
}
HAI_V_avx512 hai_show_avx512(__m512 x, uint64_t bits) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(-hai_inf()), HAI_AS(__mmask16, bits), x);
}
HAI_V_avx512 hai_or_zero_avx512(__m512 x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-hai_inf()), _CMP_NEQ_UQ), x);
}
HAI_V_avx512 hai_known_avx512(__m512 x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
}
HAI_V_avx512 hai_move_avx512(__m512 m, __m512 high) {
  __mmask16 steps = _mm512_cmp_ps_mask(high, _mm512_add_ps(m, _mm512_set1_ps(HAI_LEAP)), _CMP_LT_OQ);
  __mmask16 moves = _mm512_cmp_ps_mask(high, m, _CMP_GT_OQ);
  return _mm512_mask_add_ps(high, moves & steps, high, _mm512_set1_ps(HAI_AHEAD));
}
HAI_TARGET_avx512 HAI_INLINE int hai_differ_avx512(__m512 a, __m512 b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ) != 0;
}
HAI_V_avx512 hai_keep_avx512(__m512 x) {
  __asm__("" : "+v"(x));
  return x;
}
/* 2^floor(t) times a polynomial of degree 5 for 2^(t - floor(t)), t = x log2(e),
   which is 1 and 2 at the ends, so that e^x has no step at whole t, and e^0 = 1 */
HAI_V_avx512 hai_exp_avx512(__m512 x) {
  __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(1.879318634e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.990995082e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.581867603e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.401592714e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931517388e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(t, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p, t);
}
HAI_TARGET_avx512 HAI_INLINE float hai_sum_avx512(__m512 x) { return _mm512_reduce_add_ps(x); }
HAI_TARGET_avx512 HAI_INLINE float hai_most_avx512(__m512 x) { return _mm512_reduce_max_ps(x); }
HAI_TARGET_avx512 HAI_INLINE void hai_sums4_avx512(float *to, __m512 a, __m512 b, __m512 c, __m512 d) {
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512 x = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
}
HAI_V_avx512 hai_gather4_avx512(const void *const *row, hai_index t) {
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(HAI_AS(const float *, row[0]) + t));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(HAI_AS(const float *, row[4]) + t), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(HAI_AS(const float *, row[8]) + t), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(HAI_AS(const float *, row[12]) + t), 3);
}
HAI_TARGET_avx512 HAI_INLINE void hai_scatter4_avx512(__m512 x, float *const *row, hai_index t) {
  _mm_storeu_ps(row[0] + t, _mm512_castps512_ps128(x));
  _mm_storeu_ps(row[4] + t, _mm512_extractf32x4_ps(x, 1));
  _mm_storeu_ps(row[8] + t, _mm512_extractf32x4_ps(x, 2));
  _mm_storeu_ps(row[12] + t, _mm512_extractf32x4_ps(x, 3));
}
HAI_TARGET_avx512 HAI_INLINE void hai_transpose4_avx512(__m512 *x0, __m512 *x1, __m512 *x2, __m512 *x3) {
  __m512 a = _mm512_unpacklo_ps(*x0, *x1), b = _mm512_unpackhi_ps(*x0, *x1);
  __m512 c = _mm512_unpacklo_ps(*x2, *x3), d = _mm512_unpackhi_ps(*x2, *x3);
  *x0 = _mm512_shuffle_ps(a, c, 0x44);
  *x1 = _mm512_shuffle_ps(a, c, 0xee);
  *x2 = _mm512_shuffle_ps(b, d, 0x44);
  *x3 = _mm512_shuffle_ps(b, d, 0xee);
}

#define HAI_ISA(name) hai_##name##_avx512
#define HAI_TARGET HAI_TARGET_avx512
#define HAI_VECTOR __m512
#define HAI_WIDTH HAI_WIDTH_avx512
#define HAI_LANES HAI_LANES_avx512
#define HAI_ELEMENT float
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_LONG(X) HAI_ROWS_16(X)
#define HAI_N_LONG 16
#define HAI_FACTORED 0
#define HAI_STEP_REGISTERS 2
#define HAI_MOST_ROWS 4
#define HAI_MOST_QUERIES 16
#include "kernel_vector.h"

static const hai_kernel hai_kernel_avx512 = {
    /* isa */ HYPERATTN_ISA_AVX512,
    /* dtype */ HYPERATTN_F32,
    /* lanes */ HAI_LANES_avx512,
    /* width */ HAI_WIDTH_avx512,
    /* tiles */ 4,
    /* widen */ hai_widen_avx512,
    /* pack */ hai_pack_avx512,
    /* unpack */ hai_unpack_avx512,
    /* scores */ hai_scores_avx512,
    /* cap */ hai_cap_avx512,
    /* hide */ hai_hide_avx512,
    /* add_bias */ hai_add_bias_avx512,
    /* softmax */ hai_softmax_avx512,
    /* round */ HAI_NULL,
    /* join */ HAI_NULL,
    /* values */ hai_values_avx512,
    /* scale */ hai_scale_avx512,
    /* carry */ hai_carry_avx512,
    /* gather */ hai_gather_avx512,
    /* sum_lanes */ hai_sum_lanes_avx512,
    /* square */ hai_square_avx512,
    /* add_row */ hai_add_row_avx512,
    /* value_multiple */ 1,
    /* few */ HAI_FEW ? &hai_few_avx512 : HAI_NULL,
    /* enter */ hai_enter_x86,
    /* leave */ hai_leave_x86};
#endif
