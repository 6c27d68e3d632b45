/* Portability. */

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

/* Casts, which C++ wants by name. HAI_AS converts a number, or a pointer from or to a pointer to void;
   HAI_REINTERPRET keeps the bits of a pointer or of a vector. */
#ifdef __cplusplus
#define HAI_AS(type, x) static_cast<type>(x)
#define HAI_REINTERPRET(type, x) reinterpret_cast<type>(x)
#define HAI_NULL nullptr
#else
#define HAI_AS(type, x) ((type)(x))
#define HAI_REINTERPRET(type, x) ((type)(x))
#define HAI_NULL NULL
#endif
/* A pointer to bytes as a pointer to another type. */
#define HAI_PLACE(type, at) HAI_AS(type *, HAI_AS(void *, at))

/* Which instruction sets this build can hold. They need targets set by function, which gcc and clang have.
   gcc for Windows spills 32-byte registers to misaligned addresses (gcc bug 54412), unless it optimises. */
#if !defined(HYPERATTN_NO_SIMD) && defined(__x86_64__) && !defined(__ILP32__) && \
    ((defined(__clang__) && __clang_major__ >= 8) ||                             \
     (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 7)) &&             \
    !(defined(__MINGW32__) && !defined(__clang__) && !defined(__OPTIMIZE__))
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
/* Which ways to multiply small integers it can hold: AVX-512 VNNI, AVX-VNNI, and NEON's dot product, which
   needs the compiler's flags. */
#define HAI_AVX512_VNNI HAI_AVX512
#if HAI_AVX2 && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define HAI_AVX_VNNI 1
#else
#define HAI_AVX_VNNI 0
#endif
/* Is there a vector kernel? The compiler is then gcc or clang, and code that only saves time is wanted. */
#define HAI_SIMD (HAI_AVX512 || HAI_AVX2 || HAI_NEON)
/* Is there a kernel that rounds weights? */
#define HAI_ROUNDS (HAI_AVX512_BF16 || HAI_NEON_BF16)
#if HAI_SIMD
#define HAI_INLINE static inline __attribute__((always_inline))
#endif
/* A few operations for every key or row: inlined at gcc -O1 too, but left to the compiler at -Os. */
#if HAI_SIMD && !defined(__OPTIMIZE_SIZE__)
#define HAI_HOT HAI_INLINE
#else
#define HAI_HOT static
#endif

/* What this build holds besides exact attention on float32. Compilers drop the code that a zero here leaves
   without a caller. */
#ifdef HYPERATTN_NO_HYPER
#define HAI_HYPER 0
#else
#define HAI_HYPER 1
#endif
#ifdef HYPERATTN_NO_SCAN
#define HAI_SCAN 0
#else
#define HAI_SCAN 1
#endif
/* Held-out queries of rectangles, and reports, of whatever method. */
#if defined(HYPERATTN_NO_JUDGING) || !HAI_HYPER
#define HAI_JUDGING 0
#else
#define HAI_JUDGING 1
#endif
#if defined(HYPERATTN_NO_JUDGING) || !(HAI_HYPER || HAI_SCAN)
#define HAI_REPORTS 0
#else
#define HAI_REPORTS 1
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
#ifdef HYPERATTN_NO_SLIDING
#define HAI_SLIDING 0
#else
#define HAI_SLIDING 1
#endif
#ifdef HYPERATTN_NO_SOFTCAP
#define HAI_SOFTCAP 0
#else
#define HAI_SOFTCAP 1
#endif
#ifdef HYPERATTN_NO_SINKS
#define HAI_SINKS 0
#else
#define HAI_SINKS 1
#endif
#ifdef HYPERATTN_NO_MASKS
#define HAI_MASKS 0
#else
#define HAI_MASKS 1
#endif
#ifdef HYPERATTN_NO_PAGES
#define HAI_PAGES 0
#else
#define HAI_PAGES 1
#endif
#if defined(HYPERATTN_NO_CUSTOM) || defined(HYPERATTN_NO_HALVES)
#define HAI_CUSTOM 0
#else
#define HAI_CUSTOM 1
#endif
#ifdef HYPERATTN_NO_FEW
#define HAI_FEW 0
#else
#define HAI_FEW 1
#endif
#if defined(HYPERATTN_NO_INDEX) || defined(HYPERATTN_NO_FEW) || defined(HYPERATTN_NO_SCAN)
#define HAI_INDEX 0
#else
#define HAI_INDEX 1
#endif
#ifdef HYPERATTN_NO_MANY
#define HAI_MANY 0
#else
#define HAI_MANY 1
#endif

/* Never inlined: the stack is as deep as the deepest callee, and not the sum of all that one frame would
   hold. */
#if defined(__GNUC__) || defined(__clang__)
#define HAI_APART static __attribute__((noinline))
#else
#define HAI_APART static
#endif
/* A small function with many callers: inlined for speed, and compiled once at -Os. */
#ifdef __OPTIMIZE_SIZE__
#define HAI_ONCE HAI_APART
#else
#define HAI_ONCE HAI_HOT
#endif
/* Starts to load a line into the second cache. */
#if HAI_SIMD
#define HAI_PREFETCH(at) __builtin_prefetch(at, 0, 2)
#else
#define HAI_PREFETCH(at) ((void)(at)) /* plain C does not wait for memory */
#endif

#define HAI_MAX_DIM 576  /* largest head_dim and value_dim */
#define HAI_MAX_LANES 64 /* most queries in a tile: one bit each in a mask */
#define HAI_CHUNK 64     /* most keys that a tile meets at a time */
#define HAI_ALIGN 64     /* alignment of every array in the workspace */
/* A larger score moves a lane's reference m to HAI_AHEAD (ln 2) above it, so that slowly rising scores seldom
   move m. A score HAI_LEAP or more above m moves m to itself: the sums before it then count little. */
#define HAI_AHEAD 0.693147181f
#define HAI_LEAP 8.0f
#define HAI_CARRY_CHUNKS 64 /* chunks added up in o before o is carried to sums of more digits */
#define HAI_MAX_STAGES 39   /* most rows of the table of stages */
#define HAI_MAX_TILES (HAI_SIMD ? 4 : 1) /* most tiles of a task */

/* Few queries. HYPERATTN_WORKSPACE_BOUND_FEW repeats some of these numbers. The bench that compares the two
   kernels redefines how many are few. */
#ifndef HAI_FEW_QUERIES
#define HAI_FEW_QUERIES(measured) measured
#endif
#define HAI_FEW_BF16 4                   /* as many are few where tiles could take products of bfloat16 */
#define HAI_FEW_UNCUT 4096               /* more keys are cut into parts */
#define HAI_FEW_KEYS 2048                /* of a part: a multiple of HAI_CHUNK */
#define HAI_FEW_ROWS (HAI_SIMD ? 64 : 8) /* most queries of a task, of all heads that share keys */
/* Most rows of a task for which keys are read as they lie, if not float32. */
#define HAI_FEW_UNWIDENED(dtype) ((dtype) == HYPERATTN_Q8_0 ? 6 : 16)

/* The scan. */
#define HAI_KEY_RAISED 128   /* what the codes of keys are raised by, so that none is negative */
#define HAI_RAISED_BYTES HAI_AS(int32_t, 0x80808080u) /* in each byte of a word */
#define HAI_CODE_FINE 1024   /* parts of a code to which a coordinate is rounded first */
#define HAI_CODE_MOST 65000  /* the most of these for a query, which make 63 codes, */
#define HAI_KEY_MOST 130500  /* and for a key, which make 127 */
#define HAI_PILOT 8         /* keys of a block that a pilot estimates */
/* Largest draw and largest threshold, in units of a block: their sum and a product of codes fit 31 bits. */
#define HAI_MOST_DRAW 268435456
#define HAI_MOST_LEVEL 536870912

#define HAI_PILOT_BLOCKS 64   /* most blocks of a pilot */
#define HAI_SPREAD_BLOCKS 4   /* blocks that tell how far codes spread; fewer than a task of the sketch has */
#define HAI_REST_MARGIN 2.0f  /* standard deviations of what the last words add to scores: a margin */
#define HAI_REST_SHARE 0.7f   /* -ln of the share of attention that is most */
#define HAI_PASSING_COST 2.0f /* of a word's products for one key, over its share of those for many */
#define HAI_MOST_MARGIN 16777216.0f
#define HAI_LEAST_UNIT 1e-7f /* of a block: no draw is then above HAI_MOST_DRAW */
#define HAI_MOST_UNIT 1.0f /* rounding a code may then change a score by 63 or more, which tells nothing */
#define HAI_KEPT_COST 1.25f  /* of meeting a key that is kept, over one of many in a row */
#define HAI_MEND_COST 1.15f  /* of meeting every key later, with queries of other tiles */
#define HAI_KEPT_SHARE 2.5f  /* keys that a tile keeps for each of the budget, about */
#define HAI_OUTLIER 4.0f /* a query this much larger than the mean of its tile is one */
#define HAI_LEAST_SQUARE 1e-30f /* squares of smaller norms may vanish */
#define HAI_LEAST_SHARE 5.0f  /* -ln of the share of a key, over that of an average one, that matters least */
#define HAI_MOST_DOUBLED 2 /* most times that a tile is scanned again */
#define HAI_HELD_TILES 8   /* tiles that attend exactly after one that had to */
#define HAI_COST_POINTS 32  /* queries that stand for all where a call's cost is told */
#define HAI_LEAST_SCANNED 128 /* fewer queries do not pay for the sketch */

/* The index. HYPERATTN_INDEX_BOUND repeats some of these numbers. */
#define HAI_GROUP_DIM 16   /* coordinates of a key that share bytes */
#define HAI_TURNED 16      /* keys that are turned together; divides HAI_CHUNK */
#define HAI_MEAN_RAISED 64 /* what the codes of means are raised by */
#define HAI_MEAN_MOST 63.0f
#define HAI_STEP_OF_1 1016 /* the bits of 1 in float32, in steps of 2^20: about eighths of octaves */
#define HAI_STEP_LEAST 8   /* so many steps are the least number that is not denormal */
#define HAI_STEP_TOP 1816  /* the bits of 2^100, the most that a weight is when it is summed */
#define HAI_STEP_NONE -32768 /* of a key without an estimate; of others, if 16 bits have cut it */
#define HAI_STEP_MOST 2e9f   /* most that an estimate may be before it is cut to 16 bits */
#define HAI_LEVEL_LEAST (HAI_STEP_NONE + 200) /* so high that no key without an estimate is kept by chance */
#define HAI_LOOK_TILT 0.8f /* of an estimate that counts: the rest may be its error */
#define HAI_LOOK_STEPS (HAI_LOOK_TILT * 11.5415603f) /* steps of a nat: 8 / ln 2 of a weight's */
#define HAI_SPAN_BLOCKS 128 /* blocks of an index that a task reads */
#define HAI_LOOK_MET 8192  /* most keys that a query meets; one that needs more meets all */
#define HAI_LOOK_BLUR 0.135f /* what two bits lose of a key's square: 0.1188 / (1 - 0.1188) */
#define HAI_LOOK_ERROR 0.65f /* the deviation of an estimate in nats, over |query| norm_unit norm */
#define HAI_LOOK_MOST 4.0f   /* one that is larger tells nothing: the key is met for sure */
#define HAI_LOOK_SURE 3.3f /* deviations of an estimate by which a key with most of the attention may miss, */
#define HAI_LOOK_NEEDLE 4.0f /* and the budget that would do if estimates were exact */
#define HAI_LOOK_COST 0.13f     /* of reading the index, over that of meeting every key */
#define HAI_LOOK_KEY_COST 28.0f /* of what a query keeps for each of the first budget, in keys in a row */
#define HAI_LOOK_GUESSED 4 /* queries whose estimates of a block are made together */
#define HAI_PICK_STEPS 24  /* of an eighth of an octave, by which a level falls */
#define HAI_PICK_ROUNDS 16 /* most times that it falls by all of them */
#define HAI_PICK_LEAST 1e-5f /* of all weights: those of so small a sum are not worth a budget */
#define HAI_LOOK_AHEAD 8 /* blocks that start to load ahead */
#define HAI_LOOK_JUDGED 64 /* most kept keys whose values tell how far values are apart */
#define HAI_LOOK_TOGETHER 4 /* most queries that meet keys together */
#define HAI_LOOK_QUERIES 16 /* most queries of a head that look keys up */
#define HAI_LOOK_SAFE 0.7f /* of the tolerance: what a query's estimate may be */
#define HAI_SUM_LANES 16 /* sums that go on beside each other, for compilers to keep in registers */
#define HAI_LOOK_SHARE 0.2f /* of the keys, the most that are kept: where more are, all are met */
#define HAI_LOOK_LEAST 1024 /* fewer keys are not worth looking up */

/* Sizes of tasks follow from shapes alone, so that any number of workers computes the same. */
#define HAI_TASK_QUERIES 192 /* rows attended by one task: a multiple of every kernel's tile */
#define HAI_SCAN_ROWS 384    /* queries of a head that one task scans for: a multiple of every task's tiles */
#define HAI_TASK_ROWS 1024   /* rows hashed by one task */
#define HAI_TASK_GROUPS 16   /* query groups paired (together, with superblocks), or sub-blocks averaged */
#define HAI_PAIR_DENSE 32768 /* in rectangles of more keys, superblocks are chosen first */
#define HAI_SUPERBLOCK 16    /* sub-blocks of a superblock; divides HAI_TASK_GROUPS and HAI_CHUNK */
#define HAI_PROBE_CHUNKS 64  /* most tasks that probe a rectangle's keys */
#define HAI_PROBE_KEYS 512   /* least keys that one of them probes */
#define HAI_SUM_PROBES 16    /* probes whose sums one task finishes */
#define HAI_JUDGES 48        /* most held-out queries of a rectangle and head that choose */
#define HAI_AUDITORS 192     /* most held-out queries that measure the choice for the report */
#define HAI_JUDGE_RUN 4      /* neighbours among held-out queries; divides both numbers */
#define HAI_MERGE_LANES 4    /* lanes merged together; divides a kernel's, and queries of any trial's task */
#define HAI_TRIAL_QUERIES 16 /* held-out queries that try columns alone in one task; blocks: one run */
#define HAI_JUDGE_CHUNKS 64  /* most tasks in which held-out queries meet a rectangle's keys */
#define HAI_JUDGE_KEYS 1024  /* least keys of one of them */
#define HAI_GOOD 0.1f        /* at a fixed budget, blocks are not tried if columns alone err by no more */
#define HAI_FAIR 0.4f /* at a fixed budget, no second pairing is tried if the first errs by no more */

/* Counts of rows, keys, floats and chunks are as wide as a pointer. The caller's are int64_t. */
typedef ptrdiff_t hai_index;
#define HAI_MAX_INDEX (PTRDIFF_MAX / 4) /* most queries or keys: sums of a few such numbers fit */

/* Conversions to a type that is narrower on some machines and the same on others. They go by way of an
   unsigned type, since some compilers warn of a cast from a type to itself. */
HAI_HOT hai_index hai_to_index(int64_t x) { return HAI_AS(hai_index, HAI_AS(uint64_t, x)); }
HAI_HOT int hai_to_int(hai_index x) { return HAI_AS(int, HAI_AS(size_t, x)); }
static hai_index hai_power_of_2(int exponent) {
  hai_index one = 1;
  return one << exponent;
}
HAI_ONCE hai_index hai_min(hai_index a, hai_index b) { return a < b ? a : b; }
HAI_HOT hai_index hai_max(hai_index a, hai_index b) { return a > b ? a : b; }
HAI_ONCE hai_index hai_ceil_div(hai_index a, hai_index b) { return (a + b - 1) / b; }
/* The smaller of a caller's number and `most`. */
HAI_ONCE hai_index hai_clamp(int64_t x, hai_index most) { return x < most ? hai_to_index(x) : most; }

#if HAI_SCAN
/* The number of the lowest bit of x that is set; x is not 0. */
HAI_HOT int hai_lowest_bit(uint64_t x) {
#if HAI_SIMD
  return __builtin_ctzll(x);
#else
  int i = 0;
  while (!(x >> i & 1)) i++;
  return i;
#endif
}
#endif

/* Products and sums of sizes; SIZE_MAX where they would not fit. */
static size_t hai_times(size_t a, size_t b) { return b && a > SIZE_MAX / b ? SIZE_MAX : a * b; }
static size_t hai_plus(size_t a, size_t b) { return a > SIZE_MAX - b ? SIZE_MAX : a + b; }
static size_t hai_most(size_t a, size_t b) { return a > b ? a : b; }
static size_t hai_least(size_t a, size_t b) { return a < b ? a : b; }

/* Cuts n things into `parts` parts whose sizes differ by at most one: part i is hai_cut(n, parts, i) ..
   hai_cut(n, parts, i + 1) - 1. */
HAI_ONCE hai_index hai_cut(hai_index n, hai_index parts, hai_index i) {
  int64_t wide = n;
  return hai_to_index(wide * i / parts); /* NOLINT(clang-analyzer-core.DivideZero): parts > 0 */
}
/* The part that holds thing x. */
HAI_ONCE hai_index hai_part_of(hai_index n, hai_index parts, hai_index x) {
  int64_t wide = x;
  return hai_to_index(((wide + 1) * parts - 1) / n);
}

/* Starts to load so many bytes, line by line. The empty instruction is an effect: gcc -O2 drops calls of
   functions that have none. */
HAI_HOT void hai_fetch(const char *at, size_t bytes) {
  const char *end = at + bytes;
  for (at -= HAI_REINTERPRET(uintptr_t, at) % HAI_ALIGN; HAI_SIMD && at < end; at += HAI_ALIGN)
    HAI_PREFETCH(at);
#if HAI_SIMD
  __asm__ volatile("" : : "r"(end));
#endif
}

/* The next multiple of HAI_ALIGN. */
static size_t hai_round_up(size_t bytes) { return (bytes + HAI_ALIGN - 1) / HAI_ALIGN * HAI_ALIGN; }
