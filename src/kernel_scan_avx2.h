/* AVX2: the scan, by AVX-VNNI or by 16-bit products. kernel_scan.h says what each primitive does. */

#if HAI_AVX2 && HAI_SCAN
#define HAI_I_avx2 HAI_TARGET_avx2 HAI_INLINE __m256i
HAI_I_avx2 hai_ints_avx2(const void *p) { return _mm256_loadu_si256(HAI_AS(const __m256i *, p)); }
HAI_TARGET_avx2 HAI_INLINE void hai_put_avx2(void *p, __m256i x) {
  _mm256_storeu_si256(HAI_AS(__m256i *, p), x);
}
HAI_I_avx2 hai_ints1_avx2(int32_t x) { return _mm256_set1_epi32(x); }
HAI_I_avx2 hai_word_avx2(const uint8_t *p) { return _mm256_set1_epi32(hai_four_bytes(p)); }
HAI_I_avx2 hai_plus_avx2(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
HAI_I_avx2 hai_minus_avx2(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }
HAI_I_avx2 hai_larger_avx2(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }
HAI_I_avx2 hai_truncate_avx2(__m256 x) { return _mm256_cvttps_epi32(x); }
HAI_V_avx2 hai_floats_avx2(__m256i x) { return _mm256_cvtepi32_ps(x); }
HAI_V_avx2 hai_by_bits_avx2(__m256i x) { return _mm256_castsi256_ps(x); }
HAI_I_avx2 hai_size_avx2(__m256 x) {
  return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}
HAI_I_avx2 hai_join_avx2(__m256i word, __m256i x) {
  return _mm256_or_si256(_mm256_slli_epi32(word, 8), _mm256_srli_epi32(x, 10));
}
HAI_I_avx2 hai_flip_avx2(__m256i x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
HAI_I_avx2 hai_sizes_avx2(__m256i x) { return _mm256_abs_epi8(x); }
HAI_TARGET_avx2 HAI_INLINE int hai_positive_avx2(__m256i x) {
  return _mm256_movemask_epi8(_mm256_cmpgt_epi32(x, _mm256_setzero_si256())) != 0;
}
HAI_TARGET_avx2 HAI_INLINE void hai_bytes_avx2(void *p, __m256i x) {
  __m128i y = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64(HAI_AS(__m128i *, p), _mm_packus_epi16(y, y));
}
HAI_I_avx2 hai_codes_avx2(const uint8_t *p) { return hai_ints_avx2(p); }
HAI_I_avx2 hai_low_avx2(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(3)); }
HAI_I_avx2 hai_down_avx2(__m256i x) { return _mm256_srli_epi32(x, 2); }
HAI_I_avx2 hai_nearest_avx2(__m256 x) { return _mm256_cvtps_epi32(x); }
HAI_TARGET_avx2 HAI_INLINE void hai_cut_avx2(int16_t *p, __m256i x) {
  _mm_storeu_si128(HAI_AS(__m128i *, HAI_AS(void *, p)),
                   _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}
HAI_I_avx2 hai_wide_avx2(const int16_t *p) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(HAI_AS(const __m128i *, HAI_AS(const void *, p))));
}
HAI_I_avx2 hai_smaller_avx2(__m256i a, __m256i b) { return _mm256_min_epi32(a, b); }
HAI_I_avx2 hai_up_avx2(__m256i x) { return _mm256_slli_epi32(x, 20); }
HAI_I_avx2 hai_shorts_avx2(const int16_t *p) { return hai_ints_avx2(p); }
HAI_I_avx2 hai_shorts1_avx2(int x) { return _mm256_set1_epi16(HAI_AS(int16_t, x)); }
HAI_I_avx2 hai_less_avx2(__m256i a, __m256i b) { return _mm256_subs_epi16(a, b); }
HAI_I_avx2 hai_more_avx2(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
HAI_I_avx2 hai_most_short_avx2(__m256i a, __m256i b) { return _mm256_max_epi16(a, b); }
HAI_I_avx2 hai_bits_avx2(__m256 u, __m256 v) {
  __m256i a = _mm256_srli_epi32(_mm256_castps_si256(u), 20),
          b = _mm256_srli_epi32(_mm256_castps_si256(v), 20);
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}
HAI_TARGET_avx2 HAI_INLINE uint32_t hai_over_avx2(__m256i a, __m256i b) {
  __m256i x = _mm256_cmpgt_epi16(a, b);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  return HAI_AS(uint32_t, _mm_movemask_epi8(bytes));
}
HAI_TARGET_avx2 HAI_INLINE int32_t hai_top_avx2(__m256i x) {
  __m128i y = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}

#define HAI_ISA(name) hai_##name##_avx2
#define HAI_VECTOR __m256
#define HAI_INTS __m256i
#define HAI_WIDTH HAI_WIDTH_avx2
#define HAI_LANES HAI_LANES_avx2
#define HAI_ROWS(X) HAI_ROWS_4(X)
#define HAI_N_ROWS 4

#if HAI_AVX_VNNI
HAI_I_avx2 hai_vnni_avx2(__m256i a, __m256i b, __m256i c) {
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
  return c;
}
#define HAI_SCAN_TARGET HAI_TARGET_avx2
#define HAI_WAY(name) hai_scan_##name##_avx2_vnni
#define HAI_SCAN_DOT(a, b, c) hai_vnni_avx2(a, b, c)
#define HAI_SCAN_LIFT HAI_RAISED_BYTES
#define HAI_SCAN_COST 0.08f
#include "kernel_scan.h"
#endif

HAI_I_avx2 hai_pairs_avx2(__m256i a, __m256i b, __m256i c) {
  return _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)), c);
}
#define HAI_SCAN_TARGET HAI_TARGET_avx2
#define HAI_WAY(name) hai_scan_##name##_avx2
#define HAI_SCAN_DOT(a, b, c) hai_pairs_avx2(a, b, c)
#define HAI_SCAN_LIFT HAI_RAISED_BYTES
#define HAI_SCAN_COST 0.16f
#include "kernel_scan.h"
#undef HAI_ISA
#undef HAI_VECTOR
#undef HAI_INTS
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ROWS
#undef HAI_N_ROWS
#endif
