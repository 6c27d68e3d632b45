/* What vector kernels share: lists of rows for the templates, pairs of bfloat16, and the rounding mode. */

#if HAI_SIMD

/* g++ 12 warns of undefined vectors inside its own AVX-512 intrinsics (gcc bug 105593); at -O0 some of gcc's
   intrinsics are macros that convert signs. The warnings return in detect.h. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

/* Lists of rows for the templates. */
#define HAI_ROWS_4(X) X(0) X(1) X(2) X(3)
#define HAI_ROWS_8(X) HAI_ROWS_4(X) X(4) X(5) X(6) X(7)
#define HAI_ROWS_16(X) HAI_ROWS_8(X) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

#if HAI_AVX512_BF16 || HAI_NEON_BF16
/* Two bfloat16: neighbouring coordinates of a row, or one coordinate of neighbouring keys. */
typedef struct hai_bf16x2 {
  uint16_t x[2];
} hai_bf16x2;

/* hai_pack_plain for two bfloat16 at a time, which nothing multiplies. */
static void hai_pack_bf16x2(const void *const *row, hai_index from, hai_index dim, float factor,
                            float *packed, int lanes, int begin, int end) {
  hai_index t;
  int i;
  (void)factor;
  for (i = begin; i < end; i++)
    for (t = from; t < dim; t++) {
      float *at = packed + t * lanes + i;
      if (row[i])
        HYPERATTN_MEMCPY(at, HAI_AS(const hai_bf16x2 *, row[i]) + t, sizeof(hai_bf16x2));
      else
        *at = 0.0f;
    }
}
#endif

/* A task rounds to nearest, whatever mode the caller's thread has set: the mode is set before the task and
   set back after it. Exception flags that were raised meanwhile stay. */
#if HAI_X86_64
enum { HAI_ROUNDING = 3 << 13 }; /* of MXCSR */
static uint32_t hai_enter_x86(void) {
  uint32_t before = _mm_getcsr();
  if (before & HAI_ROUNDING) _mm_setcsr(before & ~HAI_AS(uint32_t, HAI_ROUNDING));
  return before;
}
static void hai_leave_x86(uint32_t before) {
  if (before & HAI_ROUNDING) _mm_setcsr(_mm_getcsr() | (before & HAI_ROUNDING));
}
#elif HAI_NEON
enum { HAI_ROUNDING = 3 << 22 }; /* of FPCR */
static uint64_t hai_fpcr(void) {
  uint64_t fpcr;
  __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
  return fpcr;
}
static void hai_set_fpcr(uint64_t fpcr) { __asm__ volatile("msr fpcr, %0" : : "r"(fpcr)); }
static uint32_t hai_enter_neon(void) {
  uint64_t before = hai_fpcr();
  if (before & HAI_ROUNDING) hai_set_fpcr(before & ~HAI_AS(uint64_t, HAI_ROUNDING));
  return HAI_AS(uint32_t, before);
}
static void hai_leave_neon(uint32_t before) {
  if (before & HAI_ROUNDING) hai_set_fpcr(hai_fpcr() | (before & HAI_ROUNDING));
}
#endif

HAI_INLINE int16_t hai_two_bytes(const void *at) {
  int16_t x;
  HYPERATTN_MEMCPY(&x, at, sizeof x);
  return x;
}

HAI_INLINE int32_t hai_four_bytes(const void *at) {
  int32_t x;
  HYPERATTN_MEMCPY(&x, at, sizeof x);
  return x;
}

/* Whether n rows are all there. */
static int hai_rows_present(const void *const *row, int n) {
  int i;
  for (i = 0; i < n; i++)
    if (!row[i]) return 0;
  return 1;
}
#endif /* HAI_SIMD */
