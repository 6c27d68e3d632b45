/* AVX-512: the scan, by VNNI or by its own 16-bit products. kernel_scan.h says what each primitive does. */

#if HAI_AVX512 && HAI_SCAN
#define HAI_I_avx512 HAI_TARGET_avx512 HAI_INLINE __m512i
HAI_I_avx512 hai_ints_avx512(const int32_t *p) { return _mm512_loadu_si512(p); }
HAI_TARGET_avx512 HAI_INLINE void hai_put_avx512(int32_t *p, __m512i x) { _mm512_storeu_si512(p, x); }
HAI_I_avx512 hai_ints1_avx512(int32_t x) { return _mm512_set1_epi32(x); }
HAI_I_avx512 hai_word_avx512(const uint8_t *p) { return _mm512_set1_epi32(hai_four_bytes(p)); }
HAI_I_avx512 hai_plus_avx512(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
HAI_I_avx512 hai_minus_avx512(__m512i a, __m512i b) { return _mm512_sub_epi32(a, b); }
HAI_I_avx512 hai_larger_avx512(__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }
HAI_I_avx512 hai_truncate_avx512(__m512 x) { return _mm512_cvttps_epi32(x); }
HAI_V_avx512 hai_floats_avx512(__m512i x) { return _mm512_cvtepi32_ps(x); }
HAI_V_avx512 hai_by_bits_avx512(__m512i x) { return _mm512_castsi512_ps(x); }
HAI_I_avx512 hai_size_avx512(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}
HAI_I_avx512 hai_join_avx512(__m512i word, __m512i x) {
  return _mm512_or_si512(_mm512_slli_epi32(word, 8), _mm512_srli_epi32(x, 10));
}
HAI_I_avx512 hai_flip_avx512(__m512i x) { return _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
HAI_I_avx512 hai_sizes_avx512(__m512i x) { return _mm512_abs_epi8(x); }
HAI_TARGET_avx512 HAI_INLINE int hai_positive_avx512(__m512i x) {
  return _mm512_cmpgt_epi32_mask(x, _mm512_setzero_si512()) != 0;
}
HAI_TARGET_avx512 HAI_INLINE void hai_bytes_avx512(void *p, __m512i x) {
  _mm_storeu_si128(HAI_AS(__m128i *, p), _mm512_cvtepi32_epi8(x));
}
HAI_I_avx512 hai_codes_avx512(const uint8_t *p) { return _mm512_loadu_si512(p); }
HAI_I_avx512 hai_low_avx512(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(3)); }
HAI_I_avx512 hai_down_avx512(__m512i x) { return _mm512_srli_epi32(x, 2); }
HAI_I_avx512 hai_nearest_avx512(__m512 x) { return _mm512_cvtps_epi32(x); }
HAI_TARGET_avx512 HAI_INLINE void hai_cut_avx512(int16_t *p, __m512i x) {
  _mm256_storeu_si256(HAI_AS(__m256i *, HAI_AS(void *, p)), _mm512_cvtsepi32_epi16(x));
}
HAI_I_avx512 hai_wide_avx512(const int16_t *p) {
  return _mm512_cvtepi16_epi32(_mm256_loadu_si256(HAI_AS(const __m256i *, HAI_AS(const void *, p))));
}
HAI_I_avx512 hai_smaller_avx512(__m512i a, __m512i b) { return _mm512_min_epi32(a, b); }
HAI_I_avx512 hai_up_avx512(__m512i x) { return _mm512_slli_epi32(x, 20); }
HAI_I_avx512 hai_shorts_avx512(const int16_t *p) { return _mm512_loadu_si512(p); }
HAI_I_avx512 hai_shorts1_avx512(int x) { return _mm512_set1_epi16(HAI_AS(int16_t, x)); }
HAI_I_avx512 hai_less_avx512(__m512i a, __m512i b) { return _mm512_subs_epi16(a, b); }
HAI_I_avx512 hai_more_avx512(__m512i a, __m512i b) { return _mm512_add_epi16(a, b); }
HAI_I_avx512 hai_most_short_avx512(__m512i a, __m512i b) { return _mm512_max_epi16(a, b); }
HAI_I_avx512 hai_bits_avx512(__m512 u, __m512 v) {
  __m256i a = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(u), 20));
  __m256i b = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 20));
  return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}
HAI_TARGET_avx512 HAI_INLINE uint32_t hai_over_avx512(__m512i a, __m512i b) {
  return _mm512_cmpgt_epi16_mask(a, b);
}
HAI_TARGET_avx512 HAI_INLINE int32_t hai_top_avx512(__m512i x) { return _mm512_reduce_max_epi32(x); }

#define HAI_ISA(name) hai_##name##_avx512
#define HAI_VECTOR __m512
#define HAI_INTS __m512i
#define HAI_WIDTH HAI_WIDTH_avx512
#define HAI_LANES HAI_LANES_avx512
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8

/* gcc 12 keeps sums of _mm512_dpbusd_epi32 on the stack: the instruction by name does not. */
HAI_I_avx512 hai_vnni_avx512(__m512i a, __m512i b, __m512i c) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}
#define HAI_SCAN_TARGET HAI_TARGET_avx512
#define HAI_WAY(name) hai_scan_##name##_avx512_vnni
#define HAI_SCAN_DOT(a, b, c) hai_vnni_avx512(a, b, c)
#define HAI_SCAN_LIFT HAI_RAISED_BYTES
#define HAI_SCAN_COST 0.09f
#include "kernel_scan.h"

HAI_I_avx512 hai_pairs_avx512(__m512i a, __m512i b, __m512i c) {
  return _mm512_add_epi32(_mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)), c);
}
#define HAI_SCAN_TARGET HAI_TARGET_avx512
#define HAI_WAY(name) hai_scan_##name##_avx512
#define HAI_SCAN_DOT(a, b, c) hai_pairs_avx512(a, b, c)
#define HAI_SCAN_LIFT HAI_RAISED_BYTES
#define HAI_SCAN_COST 0.17f
#include "kernel_scan.h"
#undef HAI_ISA
#undef HAI_VECTOR
#undef HAI_INTS
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ROWS
#undef HAI_N_ROWS
#endif
