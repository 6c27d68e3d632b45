/* ==== 1. Portability ================================================================================ */

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "hyperattn.h needs infinities: add -fno-finite-math-only after -ffast-math"
#endif

#if !defined(HYPERATTN_MEMCPY) || !defined(HYPERATTN_MEMSET)
#include <string.h>
#endif
#ifndef HYPERATTN_MEMCPY
#define HYPERATTN_MEMCPY(d, s, n) memcpy(d, s, n)
#endif
#ifndef HYPERATTN_MEMSET
#define HYPERATTN_MEMSET(d, c, n) memset(d, c, n)
#endif

/* Casts, by C++'s names in C++: of a number, or from or to a pointer to void; and of bits that stay as they
   are, a pointer's or a vector's. */
#ifdef __cplusplus
#define HAI_AS(type, x) static_cast<type>(x)
#define HAI_REINTERPRET(type, x) reinterpret_cast<type>(x)
#define HAI_NULL nullptr
#else
#define HAI_AS(type, x) ((type)(x))
#define HAI_REINTERPRET(type, x) ((type)(x))
#define HAI_NULL NULL
#endif
/* A place in memory of another type. */
#define HAI_PLACE(type, at) HAI_AS(type *, HAI_AS(void *, at))

/* Which instruction sets this build can hold. Compilers need per-function targets, which gcc and clang
   have. */
#if !defined(HYPERATTN_NO_SIMD) && defined(__x86_64__) && !defined(__ILP32__) && \
    ((defined(__clang__) && __clang_major__ >= 8) ||                             \
     (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 7)) &&             \
    !(defined(__MINGW32__) && !defined(__clang__) &&                             \
      !defined(__OPTIMIZE__)) /* gcc 54412: spills need 32 bytes */
#define HAI_X86_64 1
#include <immintrin.h>
#else
#define HAI_X86_64 0
#endif
#if HAI_X86_64 && !defined(HYPERATTN_NO_AVX512)
#define HAI_AVX512 1
#else
#define HAI_AVX512 0
#endif
#if HAI_AVX512 && ((defined(__clang__) && __clang_major__ >= 9) || (!defined(__clang__) && __GNUC__ >= 10))
#define HAI_AVX512_BF16 1
#else
#define HAI_AVX512_BF16 0
#endif
#if HAI_AVX512_BF16 && defined(__linux__) && !defined(HYPERATTN_NO_AMX) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define HAI_AMX 1
#else
#define HAI_AMX 0
#endif
#if HAI_X86_64 && !defined(HYPERATTN_NO_AVX2)
#define HAI_AVX2 1
#else
#define HAI_AVX2 0
#endif
#if !defined(HYPERATTN_NO_SIMD) && !defined(HYPERATTN_NO_NEON) && defined(__aarch64__) && \
    defined(__ARM_NEON)
#define HAI_NEON 1
#include <arm_neon.h>
#else
#define HAI_NEON 0
#endif
#if HAI_NEON && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HAI_NEON_BF16 1
#else
#define HAI_NEON_BF16 0
#endif
#define HAI_SIMD (HAI_AVX512 || HAI_AVX2 || HAI_NEON) /* any of them: the compiler is gcc or clang */
#define HAI_ROUNDS (HAI_AVX512_BF16 || HAI_NEON_BF16) /* does any kernel round weights */
#if HAI_SIMD
#define HAI_INLINE static inline __attribute__((always_inline))
#endif
/* A few operations for every key or row: inlined at gcc -O1 too, but not where size counts. */
#if HAI_SIMD && !defined(__OPTIMIZE_SIZE__)
#define HAI_HOT HAI_INLINE
#else
#define HAI_HOT static
#endif

/* What this build holds besides exact attention on float32. Code that a zero here leaves without a
   caller, compilers drop. */
#ifdef HYPERATTN_NO_HYPER
#define HAI_HYPER 0
#else
#define HAI_HYPER 1
#endif
#if defined(HYPERATTN_NO_JUDGING) || defined(HYPERATTN_NO_HYPER)
#define HAI_JUDGING 0
#else
#define HAI_JUDGING 1
#endif
#ifdef HYPERATTN_NO_HALVES
#define HAI_HALVES 0
#else
#define HAI_HALVES 1
#endif

#ifdef HYPERATTN_NO_LONG_SUMS
#define HAI_LONG_SUMS 0
#else
#define HAI_LONG_SUMS 1
#endif

/* A function that is never inlined: stack use is then that of the deepest callee, not the sum of all that were
   inlined into one frame. */
#if defined(__GNUC__) || defined(__clang__)
#define HAI_APART static __attribute__((noinline))
#else
#define HAI_APART static
#endif
/* A small function with many callers: inlined for speed, kept once where size counts. */
#ifdef __OPTIMIZE_SIZE__
#define HAI_ONCE HAI_APART
#else
#define HAI_ONCE HAI_HOT
#endif
#if HAI_SIMD
#define HAI_PREFETCH(at) __builtin_prefetch(at)
#else
#define HAI_PREFETCH(at) ((void)(at)) /* plain C is slower than memory */
#endif

#define HAI_MAX_DIM 576        /* largest head_dim and value_dim */
#define HAI_MAX_LANES 64       /* most queries in a tile: one bit each in a mask */
#define HAI_CHUNK 64           /* most keys that a tile meets at a time */
#define HAI_ALIGN 64           /* alignment of every array in the workspace */
#define HAI_AHEAD 0.693147181f /* ln 2: how far ahead of a score the reference of a lane's sums moves, */
#define HAI_LEAP 8.0f          /* unless it moves so far that little is left of what was summed before */
#define HAI_CARRY_CHUNKS \
  64 /* chunks whose sums gather in o before they are carried to sums of more digits */
#define HAI_MAX_STAGES 32 /* most rows of the table of stages */
#define HAI_MAX_TILES (HAI_SIMD ? 4 : 1) /* most tiles of a task, */
#define HAI_TILES_BYTES (288 * 1024)     /* and most bytes of them where there are several */

/* Sizes of tasks: from shapes alone, so that any number of workers computes the same. */
#define HAI_TASK_QUERIES 192 /* rows attended by one task: a multiple of every kernel's tile */
#define HAI_TASK_ROWS 1024   /* rows hashed by one task */
#define HAI_TASK_GROUPS 64   /* query groups paired, or sub-blocks averaged, by one task */
#define HAI_PAIR_DENSE 32768 /* in rectangles of more keys, sub-blocks are chosen in two levels: */
#define HAI_SUPERBLOCK 16    /* sub-blocks of a span; divides HAI_TASK_GROUPS and HAI_CHUNK */
#define HAI_PAIR_GROUPS 16   /* query groups that choose spans together; divides HAI_TASK_GROUPS */
#define HAI_PROBE_CHUNKS 64  /* a rectangle's keys are probed in at most so many tasks ... */
#define HAI_PROBE_KEYS 512   /* ... of at least so many keys */
#define HAI_JUDGES 48        /* most held-out queries of a rectangle and head that choose, */
#define HAI_AUDITORS 192     /* and that see what the choice is worth, for the report; */
#define HAI_JUDGE_RUN 4      /* so many in a row; both numbers are multiples */
#define HAI_JUDGE_CHUNKS 16  /* they meet its keys in at most so many tasks ... */
#define HAI_JUDGE_KEYS 4096  /* ... of at least so many keys */
#define HAI_GOOD 0.1f        /* at a fixed budget: error of columns alone that blocks need not better, */
#define HAI_FAIR 0.4f        /* and error that a second pairing need not better */
#define HAI_SIEVE 128        /* words of a sieve for rows */

/* Counts of rows, keys, floats and tasks' parts: as wide as a pointer, whatever the width of the caller's. */
typedef ptrdiff_t hai_index;
#define HAI_MAX_INDEX (PTRDIFF_MAX / 4) /* most queries or keys: sums of a few such numbers fit */

/* Narrower, on machines where it is; elsewhere the types are the same, and some compilers warn of a cast from
   one to itself: these go by way of an unsigned type. */
HAI_HOT hai_index hai_to_index(int64_t x) { return HAI_AS(hai_index, HAI_AS(uint64_t, x)); }
HAI_HOT int hai_to_int(hai_index x) { return HAI_AS(int, HAI_AS(size_t, x)); }
static hai_index hai_power_of_2(int exponent) {
  hai_index one = 1;
  return one << exponent;
}
HAI_ONCE hai_index hai_min(hai_index a, hai_index b) { return a < b ? a : b; }
HAI_HOT hai_index hai_max(hai_index a, hai_index b) { return a > b ? a : b; }
HAI_ONCE hai_index hai_ceil_div(hai_index a, hai_index b) { return (a + b - 1) / b; }
/* A caller's number, cut at `most`. */
HAI_ONCE hai_index hai_clamp(int64_t x, hai_index most) { return x < most ? hai_to_index(x) : most; }

/* Sizes that would not fit stay at SIZE_MAX. */
static size_t hai_times(size_t a, size_t b) { return b && a > SIZE_MAX / b ? SIZE_MAX : a * b; }
static size_t hai_plus(size_t a, size_t b) { return a > SIZE_MAX - b ? SIZE_MAX : a + b; }
static size_t hai_most(size_t a, size_t b) { return a > b ? a : b; }
static size_t hai_least(size_t a, size_t b) { return a < b ? a : b; }

/* n things in `parts` parts whose sizes differ by at most one: part i is [hai_cut(i), hai_cut(i + 1)). */
HAI_ONCE hai_index hai_cut(hai_index n, hai_index parts, hai_index i) {
  int64_t wide = n;
  return hai_to_index(wide * i / parts); /* NOLINT(clang-analyzer-core.DivideZero): parts > 0 */
}
/* The part that holds x. */
HAI_ONCE hai_index hai_part_of(hai_index n, hai_index parts, hai_index x) {
  int64_t wide = x;
  return hai_to_index(((wide + 1) * parts - 1) / n);
}

static size_t hai_round_up(size_t bytes) { return (bytes + HAI_ALIGN - 1) / HAI_ALIGN * HAI_ALIGN; }
