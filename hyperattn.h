/* hyperattn.h - attention over long contexts in near-linear time, on the CPU, in one file.
   MIT licence, in full at the end. C11; also compiles as C++11. No dependency, no libm.

   Softmax attention costs n_query * n_key dot products. HyperAttention (Han, Jayaram, Karbasi, Mirrokni,
   Woodruff, Zandieh; arXiv 2310.05869) lets every query meet a fixed number of keys: those that locality
   sensitive hashing puts beside it, exactly, and a sample of all others, weighted so that the sums stay
   unbiased. This library computes that, the better choices of keys that real models need, and exact
   attention.

   DO THIS
     In one source file:       #define HYPERATTN_IMPLEMENTATION
                               #include "hyperattn.h"
     Everywhere else:          #include "hyperattn.h"
     For a private copy:       #define HYPERATTN_STATIC as well, in each file that has the IMPLEMENTATION.

   EXAMPLE (cc -std=c11 -O2 -I. examples/minimal.c)

     // Causal attention of 4 heads over 4096 tokens, approximated by the default preset.
     #define HYPERATTN_IMPLEMENTATION
     #include "hyperattn.h"
     #include <stdio.h>
     #include <stdlib.h>

     int main(void) {
       enum { HEADS = 4, N = 4096, D = 64 };
       const size_t size = (size_t)HEADS * N * D;
       float *q = malloc(size * sizeof *q), *k = malloc(size * sizeof *k), *v = malloc(size * sizeof *v);
       float *out = malloc(size * sizeof *out);
       if (!q || !k || !v || !out) return 1;
       for (size_t i = 0; i < size; i++)  // any data: here a few waves
         q[i] = (float)(i * 7 % 13) / 13, k[i] = (float)(i * 5 % 11) / 11, v[i] = (float)(i * 3 % 17) / 17;

       hyperattn_problem problem = {0};
       problem.batch = 1, problem.n_heads = HEADS, problem.n_kv_heads = HEADS;
       problem.n_query = N, problem.n_key = N, problem.head_dim = D, problem.value_dim = D;
       problem.causal = 1;
       problem.query.data = q, problem.query.head_stride = (ptrdiff_t)N * D, problem.query.row_stride = D;
       problem.key.data = k, problem.key.head_stride = (ptrdiff_t)N * D, problem.key.row_stride = D;
       problem.value.data = v, problem.value.head_stride = (ptrdiff_t)N * D, problem.value.row_stride = D;
       problem.out.data = out, problem.out.head_stride = (ptrdiff_t)N * D, problem.out.row_stride = D;

       hyperattn_params params = hyperattn_default_params();
       size_t bytes = hyperattn_workspace_size(&problem, &params, 1);
       void *workspace = malloc(bytes);
       hyperattn_status status = hyperattn_forward(&problem, &params, workspace, bytes);
       printf("%s; out[last][0..3] = %g %g %g %g\n", hyperattn_status_string(status), (double)out[size - D],
              (double)out[size - D + 1], (double)out[size - D + 2], (double)out[size - D + 3]);
       free(workspace), free(out), free(v), free(k), free(q);
       return status == HYPERATTN_OK ? 0 : 1;
     }

   CONTENTS
     Public part            types, parameters, functions
     1. Portability         compilers, memory functions
     2. Numbers             exp, log, square root, finite tests
     3. Random numbers      counter-based: a function of (seed, region, purpose, index)
     4. Kernels             what one tile of queries does with a chunk of keys; per ISA
     5. Plan                parameters made definite, validation, regions, the causal split
     6. Workspace           one layout for the size query and for the run
     7. Tiles               queries in the lanes, keys in chunks, the running state
     8. Selection           hash, order, probe, pin, weigh, draw columns, pair
     9. Attention           exact regions and approximated rectangles
    10. Judging             held-out queries choose, hold a tolerance, and report
    11. Phases              the list of independent tasks
    12. Entry points

   WHAT IT DOES
     out[i] = sum_j exp(s_ij) value[j] / sum_j exp(s_ij),  lse[i] = ln sum_j exp(s_ij),
     s_ij = scale * <query[i], key[j]>, over the keys j that query i may see: all; or, causal, keys
     0 .. i + n_key - n_query. Under HYPERATTN_HYPER a query of a large region meets its block's keys, the
     pinned keys and its window with weight one, and sampled columns with the inverse of their probability.
     Causal attention is split recursively: exact diagonal segments, and at every level the rectangle of the
     second half's queries by the first half's keys.
   WHAT IT DOES NOT
     allocate, print, abort, start threads, recurse or keep state between calls; compute gradients; dropout.
     The fields softcap, sliding_window and key_position are reserved: setting one is an error, never ignored.
   WHEN IT HELPS
     Regions of many times more keys than the budget (block_size + sample_size + pins). Below min_seq_len
     keys, and where probing and the budget would touch as many key-query pairs as exact attention does, the
     result is exact. examples/demo.c prints time and error side by side; judge by both.

   SHAPES AND WORDS
     query [batch][n_heads][n_query][head_dim], key [batch][n_kv_heads][n_key][head_dim],
     value [batch][n_kv_heads][n_key][value_dim], out [batch][n_heads][n_query][value_dim]: each with its
     own strides, counted in elements, the last dimension contiguous. Heads-first, rows-first and packed QKV
     are only strides.
     kv head        head h reads kv head h / (n_heads / n_kv_heads): grouped and multi-query attention
     lse            natural logarithm of the sum of e^scores, scale applied; -inf where a query sees no key
     rectangle      a region in which every query may see every key; it is approximated as one
     block          keys that stand together in the order; group: queries that choose their blocks together
     column         a sampled key that all queries of a rectangle share
     pinned         of a key: met by all queries of a rectangle, weight one (sinks, heavy keys)
     probe          a query that meets every key of its rectangle, to learn which keys matter
     held out       of a query: it too meets every key, and judges what was chosen without it
   ACCURACY
     Exact attention has float32 rounding, of any number of keys: sums keep what rounding takes from them, so
     that up to 2^22 equal keys a mean is right to 2e-6 and lse to 4 units in its last place (not under
     -ffast-math, which takes that for zero). Errors of approximation depend on the data, so the default preset
     measures them: where the held-out queries of a rectangle see a relative error above params.tolerance,
     it takes more keys, in the end all. The tolerance is for each rectangle, and a sample judges it: over a
     head the error can come to a little more, or be a fraction of it. problem.report tells. At tolerance 0
     the number of keys is fixed and the error is what it is; e^lse and e^lse * out are then unbiased over
     seeds (but for HYPERATTN_ORDER_PROBED's choice), with uniform and with importance sampling; out itself
     is consistent, not unbiased. The paper's preset is faithful to the paper, and poor on language models.
   DETERMINISM
     The same inputs, parameters, ISA and build give the same bits (a NaN: a NaN), for any number of
     workers and, by a vector kernel, under any rounding mode of the caller's: tasks round to nearest, and set
     back what they found; a slice of batch or heads computed alone, and grouped heads expanded, give the bits of the
     whole. Causal, at tolerance 0: no key or value after a row changes that row by a bit (later queries
     of its rectangle may: they are ordered and probed together). A tolerance is judged by queries all
     over the rectangle, with what they have met before, and so later keys may decide whether a rectangle
     takes more keys or fewer. A NaN or infinity in a key or value reaches only rows that may see it; one
     in a query its own row, and, where blocks are chosen by score, which blocks its group takes.
   MEMORY
     All from the caller: hyperattn_workspace_size() bytes, any alignment, contents irrelevant before and
     after. The stack holds under 4 KiB of ours.
   THREADS
     None of its own. hyperattn_forward_parallel() runs tasks on the caller's; or drive the phases yourself
     (examples/threads.c does both).
   OPTIONS (macros, defined before the implementation)
     HYPERATTN_API          what stands before every function, in each file that includes this one; default:
                            extern. A shared library: __attribute__((visibility("default"))); a DLL:
                            __declspec(dllexport) where the implementation is, dllimport in files that use
                            it. HYPERATTN_STATIC overrules it: a private copy exports nothing
     HYPERATTN_MEMCPY(d, s, n), HYPERATTN_MEMSET(d, c, n)   default: <string.h>
     HYPERATTN_NO_SIMD, HYPERATTN_NO_AVX512, HYPERATTN_NO_AMX, HYPERATTN_NO_AVX2, HYPERATTN_NO_NEON   leave
     that code out
     For small targets (docs/embedded.md has the sizes), what then is asked for in vain is
     HYPERATTN_ERROR_LEFT_OUT:
     HYPERATTN_NO_HYPER     exact attention only
     HYPERATTN_NO_JUDGING   neither tolerance nor HYPERATTN_ORDER_PROBED nor report
     HYPERATTN_NO_HALVES    float32 only
     HYPERATTN_NO_LONG_SUMS every sum is one float, whose error grows with the keys beyond some 4096
     HYPERATTN_NO_TEXTS     no sentences: hyperattn_status_string gives ""
   SIMD
     AVX-512 (F, VL, BW, DQ), AVX2 with FMA and F16C, and NEON kernels are compiled in by gcc and clang
     whatever the flags; which runs is decided at run time (CPUID and what the system saves), or by
     params.isa. Others get plain C. Results differ between ISAs by rounding; hash buckets do not.
     Where queries, keys and values are BF16, products are AMX's (Linux, if the process has asked for them:
     examples/amx.h), or vdpbf16ps where that is faster (AMD), or ARMv8.6's where the compiler's flags allow.
   DTYPES
     Any mix; a row that is not float32 is widened, exactly, when it is met, a chunk of 64 keys at a time.
     Results are those of the same call on float32 tensors with the same numbers, bit for bit, and out is
     rounded once, at the end. The kernels of BF16 products sum in float32 as well, but round the weights
     e^(s - m) to BF16 (relative 2^-8 each) and take denormals as zero. They divide by the sum of the rounded
     weights, so that equal values are their own mean; lse is that of the exact ones.
   DIFFERENCES FROM THE PAPER AND FROM THE AUTHORS' CODE
     - Buckets are ordered by the Gray *decode* of their sign bits, so that neighbours differ in one bit
       (authors: encode).
     - Blocks are cut evenly, never padded with zero keys; n_query and n_key need not be equal.
     - Columns are drawn without replacement, one per stratum of the sorted order, and a column that lies in
       the query's own block is hidden from it, so that no pair counts twice (the authors' float32 and CUDA
       paths count it twice).
     - Hash planes have entries +1 and -1, so that buckets do not depend on how a compiler rounds.
     - The causal split works level by level on one running state per row, without recursion and merges.
     - The capped, floored normaliser of Algorithm 2 (cap_epsilon, cap_kappa) and value-norm sampling of
       Algorithm 3 are options; the authors' code has neither. */

#ifndef HYPERATTN_H
#define HYPERATTN_H

/* ======== api.h ======== */

#include <stddef.h>
#include <stdint.h>

#define HYPERATTN_VERSION_MAJOR 0
#define HYPERATTN_VERSION_MINOR 1
#define HYPERATTN_VERSION_PATCH 0

/* What stands before every function, declared or defined. */
#ifdef HYPERATTN_STATIC
#undef HYPERATTN_API
#if defined(__GNUC__) || defined(__clang__)
#define HYPERATTN_API static __attribute__((unused))
#else
#define HYPERATTN_API static
#endif
#elif !defined(HYPERATTN_API)
#define HYPERATTN_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status -------------------------------------------------------------------------------------- */

/* Every kind of mistake, its code and its sentence: X(name, code, text). */
#define HYPERATTN_STATUS_LIST(X)                                                                        \
  X(OK, 0, "ok")                                                                                        \
  X(ERROR_NULL_PROBLEM, -1, "problem is NULL")                                                          \
  X(ERROR_NULL_PARAMS, -2, "params is NULL")                                                            \
  X(ERROR_NULL_QUERY, -3, "query.data is NULL")                                                         \
  X(ERROR_NULL_KEY, -4, "key.data is NULL")                                                             \
  X(ERROR_NULL_VALUE, -5, "value.data is NULL")                                                         \
  X(ERROR_NULL_OUT, -6, "out.data is NULL")                                                             \
  X(ERROR_NULL_LSE, -7, "lse is NULL where it is needed (hyperattn_merge)")                             \
  X(ERROR_NULL_WORKSPACE, -8, "workspace is NULL")                                                      \
  X(ERROR_NULL_PARALLEL, -9, "parallel or its parallel_for is NULL")                                    \
  X(ERROR_BATCH, -10, "batch is negative or above 2^31 - 1")                                            \
  X(ERROR_N_HEADS, -11, "n_heads is not in 1 .. 2^31 - 1")                                              \
  X(ERROR_N_KV_HEADS, -12, "n_kv_heads is not in 1 .. n_heads")                                         \
  X(ERROR_HEAD_GROUPS, -13, "n_heads is not a multiple of n_kv_heads")                                  \
  X(ERROR_N_QUERY, -14, "n_query is negative or above 2^31 - 1")                                        \
  X(ERROR_N_KEY, -15, "n_key is negative or above 2^31 - 1")                                            \
  X(ERROR_HEAD_DIM, -16, "head_dim is not in 1 .. 576")                                                 \
  X(ERROR_VALUE_DIM, -17, "value_dim is not in 1 .. 576")                                               \
  X(ERROR_CAUSAL, -18, "causal is neither 0 nor 1")                                                     \
  X(ERROR_SCALE, -19, "scale is NaN or infinite")                                                       \
  X(ERROR_DTYPE, -20, "a dtype is not one of hyperattn_dtype")                                          \
  X(ERROR_DTYPE_UNSUPPORTED, -21, "query, out or a part of a merge is Q8_0")                            \
  X(ERROR_RESERVED, -22, "softcap, sliding_window or key_position is set: reserved, not built yet")     \
  X(ERROR_OUT_STRIDE, -23, "out's strides are negative or let rows overlap")                            \
  X(ERROR_EXTENT, -24, "a tensor's extent in bytes exceeds PTRDIFF_MAX")                                \
  X(ERROR_ALIGNMENT, -25, "a tensor is not aligned to its element")                                     \
  X(ERROR_OVERLAP, -26, "out, lse or workspace overlaps another buffer")                                \
  X(ERROR_STRIDE_Q8_0, -27, "a stride of a Q8_0 tensor is not a multiple of 32")                        \
  X(ERROR_METHOD, -30, "method is not one of hyperattn_method")                                         \
  X(ERROR_MIN_SEQ_LEN, -31, "min_seq_len is below 1")                                                   \
  X(ERROR_BLOCK_SIZE, -32, "block_size is negative")                                                    \
  X(ERROR_SAMPLE_SIZE, -33, "sample_size is negative")                                                  \
  X(ERROR_LSH_BITS, -34, "lsh_bits is not in 1 .. 16")                                                  \
  X(ERROR_GROUPS, -35, "query_group and key_group are not both 0 or both positive")                     \
  X(ERROR_ORDER, -36, "order is not one of hyperattn_order")                                            \
  X(ERROR_SINK_KEYS, -37, "sink_keys is negative")                                                      \
  X(ERROR_HEAVY_KEYS, -38, "heavy_keys is negative")                                                    \
  X(ERROR_PROBE_QUERIES, -39, "probe_queries is negative")                                              \
  X(ERROR_WINDOW, -40, "window is negative")                                                            \
  X(ERROR_SAMPLING, -41, "sampling is not one of hyperattn_sampling")                                   \
  X(ERROR_TOLERANCE, -42, "tolerance is negative, NaN or infinite")                                     \
  X(ERROR_PROBES_NEEDED, -43, "heavy_keys, COLUMN_MASS, PROBED and tolerance need probe_queries > 0")   \
  X(ERROR_LEFT_OUT, -45, "what is asked for was left out of this build (HYPERATTN_NO_..)")              \
  X(ERROR_CAP, -46, "cap_epsilon or cap_kappa is negative, NaN or infinite")                            \
  X(ERROR_CAP_CAUSAL, -47, "cap_epsilon and cap_kappa are for full attention: causal must be 0")        \
  X(ERROR_CAP_CHOICE, -44, "cap_epsilon and cap_kappa need tolerance 0 and an order other than PROBED") \
  X(ERROR_ISA, -48, "isa is not one of hyperattn_isa")                                                  \
  X(ERROR_ISA_ABSENT, -49, "isa is not available on this machine or in this build")                     \
  X(ERROR_WORKERS, -50, "n_workers is below 1")                                                         \
  X(ERROR_SIZE_OVERFLOW, -51, "the workspace would exceed SIZE_MAX, or tasks INT64_MAX")                \
  X(ERROR_WORKSPACE_SIZE, -52, "the workspace is smaller than hyperattn_workspace_size")

typedef enum hyperattn_status {
#define HYPERATTN_STATUS_ENUM(name, code, text) HYPERATTN_##name = code,
  HYPERATTN_STATUS_LIST(HYPERATTN_STATUS_ENUM)
#undef HYPERATTN_STATUS_ENUM
      HYPERATTN_STATUS_LAST = -53 /* not a status: below every code */
} hyperattn_status;

/* The sentence of a status, a string that lives for ever; "unknown status" for any other number; "" under
   HYPERATTN_NO_TEXTS. */
HYPERATTN_API const char *hyperattn_status_string(hyperattn_status status);

/* ---- The problem: what to compute ------------------------------------------------------------------ */

/* 16-bit numbers are in the machine's byte order. Q8_0 is ggml's: blocks of 34 bytes, an F16 scale d and 32
   signed bytes q, x = d q; a row begins with a block. */
typedef enum hyperattn_dtype {
  HYPERATTN_F32 = 0,
  HYPERATTN_F16,  /* IEEE 754 binary16 */
  HYPERATTN_BF16, /* the upper half of an F32 */
  HYPERATTN_Q8_0  /* keys and values only; strides are multiples of 32 */
} hyperattn_dtype;

/* A tensor [batch][head][row][dim], dim contiguous; strides in elements, ignored where a dimension has
   size 1. Inputs may overlap one another and have zero or negative strides; a stride that was forgotten is
   zero, and means that every row is the same row. Rows-first [token][head][dim]: head_stride = dim,
   row_stride = heads * dim. */
typedef struct hyperattn_input {
  const void *data;
  hyperattn_dtype dtype;
  ptrdiff_t batch_stride, head_stride, row_stride;
} hyperattn_input;

/* The same for a result: strides not negative, rows apart from one another. */
typedef struct hyperattn_output {
  void *data;
  hyperattn_dtype dtype;
  ptrdiff_t batch_stride, head_stride, row_stride;
} hyperattn_output;

/* How a call went, for one query head. Judged by queries that are held out: up to 48 of each approximated
   rectangle, in runs of four, which have no part in choosing its columns, meet all its keys; what they get
   is held against what the choice made for the rectangle gives them. An error of one rectangle counts as far
   as later keys have not outweighed it; errors of several add up like independent ones.
   Where there is no telling, as where weighted values leave a float's range, they are infinite. */
typedef struct hyperattn_report {
  float error; /* estimate of |out - exact| / |exact|, Frobenius norms over the head; 0: all exact */
  float
      max_error; /* the largest |out_i - exact_i| / |exact_i| that one rectangle causes a held-out query */
  float escalated;      /* share of the approximated rectangles that got more than the budget, */
  float exact;          /* and of those that got every key */
  float keys_per_query; /* key-query pairs, probing, pairing and judging included, over n_query */
  float block_mass, pinned_mass,
      sampled_mass;  /* shares of the attention, as the held-out queries see it: */
  float window_mass; /* the rest, met exactly: window, diagonal, exact regions */
  float alpha; /* the paper's: n_key times the largest squared column norm of the normalised scores, by the
                  probes (0 without), in the rectangle where it is largest */
  float kappa; /* the paper's: largest over smallest sum of e^score outside the blocks, by the held-out
                  queries, where it is largest */
} hyperattn_report;

/* Zero it first ({0} in C, {} in C++), then set what applies. */
typedef struct hyperattn_problem {
  int64_t batch, n_heads, n_kv_heads; /* batch may be 0; n_heads % n_kv_heads == 0 */
  int64_t n_query, n_key;             /* may be 0 */
  int64_t head_dim, value_dim;        /* 1 .. 576 */
  int causal;             /* 0: all keys; 1: query i sees keys 0 .. i + n_key - n_query (bottom-right) */
  float scale;            /* 0: 1 / sqrt(head_dim) */
  hyperattn_input query;  /* [batch][n_heads][n_query][head_dim] */
  hyperattn_input key;    /* [batch][n_kv_heads][n_key][head_dim] */
  hyperattn_input value;  /* [batch][n_kv_heads][n_key][value_dim] */
  hyperattn_output out;   /* [batch][n_heads][n_query][value_dim]; overlaps no input and no workspace */
  float *lse;             /* NULL, or contiguous [batch][n_heads][n_query], always in this order */
  float softcap;          /* reserved, 0 */
  int64_t sliding_window; /* reserved, 0 */
  const int32_t *key_position; /* reserved, NULL */
  hyperattn_report *report;    /* NULL, or contiguous [batch][n_heads]; set it before asking for sizes */
} hyperattn_problem;

/* ---- The parameters: how to approximate it -------------------------------------------------------- */

typedef enum hyperattn_method { HYPERATTN_HYPER = 0, HYPERATTN_EXACT } hyperattn_method;

typedef enum hyperattn_sampling {
  HYPERATTN_SAMPLE_UNIFORM = 0, /* practical section of the paper */
  HYPERATTN_SAMPLE_VALUE_NORM,  /* Algorithm 3: p_j = 0.8 |v_j|^2 / sum + 0.2 / n */
  HYPERATTN_SAMPLE_COLUMN_MASS /* p_j = 0.8 M_j |v_j| / sum + 0.2 / n, M_j the probes' attention to key j */
} hyperattn_sampling;

typedef enum hyperattn_order {
  HYPERATTN_ORDER_SORTLSH = 0, /* Algorithm 1: by angular hash */
  HYPERATTN_ORDER_POSITION,    /* as they come */
  HYPERATTN_ORDER_PROBED /* whichever held-out queries find better, per rectangle and head, or no blocks
                                  at all, their keys going to the sample */
} hyperattn_order;

typedef enum hyperattn_isa {
  HYPERATTN_ISA_AUTO = 0, /* the best this machine has */
  HYPERATTN_ISA_SCALAR,
  HYPERATTN_ISA_AVX2,
  HYPERATTN_ISA_AVX512,
  HYPERATTN_ISA_AVX512_BF16, /* vdpbf16ps where queries, keys and values are BF16, elsewhere AVX-512 */
  HYPERATTN_ISA_NEON,
  HYPERATTN_ISA_AMX_BF16 /* the same by AMX tiles. AUTO takes them where the process has asked Linux for them:
                            syscall(SYS_arch_prctl, 0x1023, 18) */
} hyperattn_isa;

/* Start from a preset, for exact attention too: p = hyperattn_default_params(); p.method =
   HYPERATTN_EXACT. All zeros is not valid. A count of 0 means none. Every field is checked, even where
   it is not used. */
typedef struct hyperattn_params {
  hyperattn_method method;
  int64_t min_seq_len; /* >= 1: regions of fewer keys are exact */
  int64_t block_size;  /* keys that a query meets exactly because of its order; 0: no blocks */
  int64_t sample_size; /* columns drawn from the other keys of a rectangle; >= their number: all of them */
  int32_t lsh_bits;    /* 1 .. 16 hyperplanes, 2^lsh_bits buckets */
  int64_t query_group; /* > 0: each so many queries choose block_size / key_group sub-blocks by score */
  int64_t key_group;   /* > 0: keys per sub-block. Both 0: the paper's pairing by rank */
  hyperattn_order order; /* how rows are ordered before grouping */
  int64_t sink_keys;     /* keys 0 .. sink_keys - 1 are pinned */
  int64_t heavy_keys;    /* per rectangle and head, the keys of largest column mass are pinned */
  int64_t probe_queries; /* per rectangle and head: queries that meet every key of it */
  int64_t
      window; /* causal: each query's last `window` keys, its own among them, are exact; full: no effect */
  hyperattn_sampling sampling;
  float tolerance; /* 0: a fixed number of keys. > 0: relative error allowed per rectangle, as held-out
                      queries judge it; where it is missed, more keys, in the end all */
  float cap_epsilon,
      cap_kappa;     /* full attention: Algorithm 2's cap and floor of the normaliser; 0: off, each */
  uint64_t seed;     /* any number */
  hyperattn_isa isa; /* one that is absent is an error, never a silent fallback */
} hyperattn_params;

/* The best measured quality for its cost on language models: 96 heavy columns, 4 sinks, a window of 256, and
   for each rectangle and head what held-out queries find best: 416 column-mass samples; or 160, and the 16
   sub-blocks of 16 keys that each group of 16 queries scores best, in order of position or by hash. Where all
   miss a tolerance of 0.1, 416 samples with blocks; in the end every key. */
HYPERATTN_API hyperattn_params hyperattn_default_params(void);

/* The paper's: sortLSH with 7 bits, blocks of 256 paired by rank, 256 uniform samples, exact below 4096
   keys. */
HYPERATTN_API hyperattn_params hyperattn_paper_params(void);

/* ---- Running it ------------------------------------------------------------------------------------- */

/* Bytes of workspace that a call with at most n_workers workers needs, including slack for any
   alignment. 0: the problem or params are invalid (hyperattn_check says why) or n_workers < 1. Reads
   no pointer and no stride. Never shrinks when n_query, n_key or n_workers grow. Cost: O(log n_key). */
HYPERATTN_API size_t hyperattn_workspace_size(const hyperattn_problem *problem,
                                              const hyperattn_params *params, int n_workers);

/* The same as constant expressions, for static arrays: bounds for one worker, float32 tensors and no
   report, with the kernels that this build may hold. Exact attention needs as much for any lengths and
   heads. Otherwise heads = batch * n_heads, n is the larger of n_query and n_key, pinned_keys = sink_keys
   + heavy_keys, group is the smaller of query_group and key_group, and probe_queries is 1 where it is 0
   under SAMPLE_VALUE_NORM. */
#define HYPERATTN_WORKSPACE_BOUND_EXACT(head_dim, value_dim)                                   \
  (HYPERATTN_BOUND_TILES *                                                                     \
       HYPERATTN_BOUND_TILE(HYPERATTN_BOUND_SIZE(head_dim), HYPERATTN_BOUND_SIZE(value_dim)) + \
   256 * HYPERATTN_BOUND_LANES + 128 * sizeof(void *) + 512)
#define HYPERATTN_WORKSPACE_BOUND(heads, n, head_dim, value_dim, min_seq_len, block_size, sample_size,     \
                                  pinned_keys, probe_queries, group, lsh_bits)                             \
  (HYPERATTN_WORKSPACE_BOUND_EXACT(head_dim, value_dim) + 1600 + (HYPERATTN_BOUND_SIZE(4) << (lsh_bits)) + \
   4 * HYPERATTN_BOUND_SIZE(lsh_bits) * (head_dim) + 8 * HYPERATTN_BOUND_SIZE(pinned_keys) +               \
   ((probe_queries) ? 1280 + 4 * HYPERATTN_BOUND_LANES * ((value_dim) + 4) : 0) +                          \
   ((group) ? 8 * (HYPERATTN_BOUND_LANES + 1) * ((block_size) / ((group) + !(group)) + 1) +                \
                  4 * HYPERATTN_BOUND_LANES * (head_dim) + HYPERATTN_BOUND_SIZE(n) / 64                    \
            : 0) +                                                                                         \
   HYPERATTN_BOUND_SIZE(heads) *                                                                           \
       (16 * HYPERATTN_BOUND_SIZE(n) + HYPERATTN_BOUND_SIZE(n) / 8 +                                       \
        ((probe_queries) ? 4 * HYPERATTN_BOUND_SIZE(n) : 0) +                                              \
        HYPERATTN_BOUND_RECTS(n, min_seq_len) *                                                            \
            (40 + 4 * HYPERATTN_BOUND_SIZE(pinned_keys) +                                                  \
             HYPERATTN_BOUND_SIZE(12) * (2 * (sample_size) + (block_size))) +                              \
        ((probe_queries)                                                                                   \
             ? (HYPERATTN_BOUND_SIZE(n) / 512 + 1 + HYPERATTN_BOUND_RECTS(n, min_seq_len)) * 8 *           \
                       (probe_queries) +                                                                   \
                   (HYPERATTN_BOUND_SIZE(n) / 4096 + 1 + HYPERATTN_BOUND_RECTS(n, min_seq_len)) * 256 *    \
                       ((value_dim) + 2)                                                                   \
             : 0) +                                                                                        \
        ((group)                                                                                           \
             ? (HYPERATTN_BOUND_SIZE(n) / ((group) + !(group)) + 1 +                                       \
                HYPERATTN_BOUND_RECTS(n, min_seq_len)) *                                                   \
                   (5 * HYPERATTN_BOUND_SIZE(head_dim) + 4 * ((block_size) / ((group) + !(group)) + 1))    \
             : 0)))
/* Their parts: a number as a size_t, by no cast that a unit's warnings might mind; rectangles of a level;
   what one tile of queries takes. */
#define HYPERATTN_BOUND_SIZE(x) (sizeof(char) * (x))
#define HYPERATTN_BOUND_RECTS(n, min_seq_len) \
  (HYPERATTN_BOUND_SIZE(n) / (2 * HYPERATTN_BOUND_SIZE(min_seq_len)) + 1)
#define HYPERATTN_BOUND_TILE(head_dim, value_dim)                                      \
  (4 * HYPERATTN_BOUND_LANES * ((head_dim) + HYPERATTN_BOUND_SUMS * (value_dim) + 7) + \
   768 * sizeof(void *) + 3328)
#ifdef HYPERATTN_NO_LONG_SUMS
#define HYPERATTN_BOUND_SUMS HYPERATTN_BOUND_SIZE(1)
#else
#define HYPERATTN_BOUND_SUMS HYPERATTN_BOUND_SIZE(3)
#endif
#if defined(HYPERATTN_NO_SIMD) || !(defined(__x86_64__) || defined(__aarch64__))
#define HYPERATTN_BOUND_LANES HYPERATTN_BOUND_SIZE(16)
#define HYPERATTN_BOUND_TILES HYPERATTN_BOUND_SIZE(1)
#else
#define HYPERATTN_BOUND_LANES HYPERATTN_BOUND_SIZE(48)
#define HYPERATTN_BOUND_TILES HYPERATTN_BOUND_SIZE(4)
#endif

/* Attention on the calling thread. Errors: any of the list but NULL_LSE, NULL_PARALLEL; all found before
   anything is written. Key-query pairs touched: exact n_query * n_key (causal: half); hyper, per
   rectangle of q queries and k keys, q * (block_size + sample_size + heavy_keys + sink_keys) + k *
   (probe_queries + 48 if any are held out) + q * k / (query_group * key_group), and q * k in all where a
   tolerance calls for every key. Source: Algorithms 2 to 4 of the paper, with the
   differences listed above. */
HYPERATTN_API hyperattn_status hyperattn_forward(const hyperattn_problem *problem,
                                                 const hyperattn_params *params, void *workspace,
                                                 size_t workspace_size);

typedef void (*hyperattn_task)(void *arg, int64_t index, int worker);

/* The engine's own threads. */
typedef struct hyperattn_parallel {
  int n_workers; /* >= 1; the workspace was sized for as many */
  void *context; /* handed through */
  /* Calls task(arg, index, worker) for every index in 0 .. n_tasks - 1, each once, in any order;
     concurrent calls carry different workers in 0 .. n_workers - 1. Returns when all are done, with
     their writes visible to later tasks. */
  void (*parallel_for)(void *context, int64_t n_tasks, hyperattn_task task, void *arg);
} hyperattn_parallel;

/* hyperattn_forward on those threads, the same bits. */
HYPERATTN_API hyperattn_status hyperattn_forward_parallel(const hyperattn_problem *problem,
                                                          const hyperattn_params *params,
                                                          const hyperattn_parallel *parallel,
                                                          void *workspace, size_t workspace_size);

/* The same as phases of independent tasks, for threads that are already running:
     hyperattn_check once; for each phase in order: its tasks 0 .. hyperattn_phase_tasks - 1, then a barrier.
   Both counts follow from shapes and params alone (no pointer is read) and are 0 for an invalid call. */
HYPERATTN_API int hyperattn_phase_count(const hyperattn_problem *problem, const hyperattn_params *params);
HYPERATTN_API int64_t hyperattn_phase_tasks(const hyperattn_problem *problem,
                                            const hyperattn_params *params, int phase);

/* One task. Unchecked: the call passed hyperattn_check, phase and index are in range, worker is in 0 ..
   n_workers - 1 and no concurrent task has the same. */
HYPERATTN_API void hyperattn_run_task(const hyperattn_problem *problem, const hyperattn_params *params,
                                      void *workspace, int phase, int64_t index, int worker);

/* Everything that hyperattn_forward checks, without running. */
HYPERATTN_API hyperattn_status hyperattn_check(const hyperattn_problem *problem,
                                               const hyperattn_params *params, const void *workspace,
                                               size_t workspace_size, int n_workers);

/* Combine two results over disjoint sets of keys (a split cache, several machines): a becomes the result
   over both, out_a = (e^lse_a out_a + e^lse_b out_b) / (e^lse_a + e^lse_b),  lse_a = ln(e^lse_a +
   e^lse_b). a, b: [batch][n_heads][n_query][value_dim]; lse: contiguous [batch][n_heads][n_query]. lse
   -inf is an empty part; the other is then kept to the bit. Errors: BATCH, N_HEADS, N_QUERY, VALUE_DIM,
   DTYPE.., NULL_OUT (a), NULL_VALUE (b), NULL_LSE, OUT_STRIDE, EXTENT, ALIGNMENT, OVERLAP. Source: the
   merge of attention states, as in FlashInfer. */
HYPERATTN_API hyperattn_status hyperattn_merge(int64_t batch, int64_t n_heads, int64_t n_query,
                                               int64_t value_dim, hyperattn_output a, float *lse_a,
                                               hyperattn_input b, const float *lse_b);

/* The ISA that HYPERATTN_ISA_AUTO stands for here, and a name for each ("unknown" for any other number). */
HYPERATTN_API hyperattn_isa hyperattn_detect_isa(void);
HYPERATTN_API const char *hyperattn_isa_name(hyperattn_isa isa);

#ifdef __cplusplus
}
#endif

#endif /* HYPERATTN_H */

#if defined(HYPERATTN_IMPLEMENTATION) && !defined(HYPERATTN_IMPLEMENTED)
#define HYPERATTN_IMPLEMENTED

/* ======== portability.h ======== */

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

/* ======== numbers.h ======== */

/* ==== 2. Numbers ====================================================================================
   Own functions, so that no libm is needed and every target computes the same. */

HAI_HOT float hai_float(uint32_t bits) {
  float x;
  HYPERATTN_MEMCPY(&x, &bits, sizeof x);
  return x;
}
HAI_HOT uint32_t hai_bits(float x) {
  uint32_t bits;
  HYPERATTN_MEMCPY(&bits, &x, sizeof bits);
  return bits;
}
static float hai_inf(void) { return hai_float(0x7f800000u); }
HAI_HOT int hai_finite(float x) { return (hai_bits(x) & 0x7f800000u) != 0x7f800000u; }

/* e^x = 2^n 2^f with n = round(x log2 e), |f| <= 1/2 and a polynomial for 2^f. Relative error at most
   2e-7 + 1e-7 |x|; below 2^-126 the result is exactly 0, from 2^128 on infinity; NaN stays NaN. */
static float hai_exp(float x) {
  float t = x * 1.44269504f, f, p;
  int32_t n;
  if (t < -126.0f) return 0.0f;
  if (t >= 128.0f) return hai_inf();
  if (t != t) return t;
  n = HAI_AS(int32_t, t + (t < 0.0f ? -0.5f : 0.5f));
  f = t - HAI_AS(float, n);
  p = 1.535336188e-4f;
  p = p * f + 1.339887440e-3f;
  p = p * f + 9.618437357e-3f;
  p = p * f + 5.550332471e-2f;
  p = p * f + 2.402264791e-1f;
  p = p * f + 6.931472028e-1f;
  p = p * f + 1.0f;
  if (n == 128) return p * 2.0f * hai_float(254u << 23);
  if (n == -126 && p < 1.0f) return 0.0f;
  return p * hai_float(HAI_AS(uint32_t, n + 127) << 23);
}

/* base + ln x for x >= 0; ln 0 = -inf, negative and NaN give NaN. x = 2^e y, y in [sqrt(1/2), sqrt(2)),
   ln y = 2 atanh((y - 1) / (y + 1)). e ln 2 comes in two parts, the first of so few bits that it is exact:
   where base and ln x cancel, what is left is still right to a few units in its last place. */
static float hai_add_log(float base, float x) {
  uint32_t bits;
  int32_t e = 0;
  float y, z, w;
  if (x == 0.0f) return -hai_inf();
  if (!(x > 0.0f)) return hai_float(0x7fc00000u);
  if (x == hai_inf()) return x;
  if (x < 1.17549435e-38f) {
    x *= 16777216.0f;
    e = -24;
  }
  bits = hai_bits(x) - 0x3f3504f3u; /* sqrt(1/2) */
  e += HAI_AS(int32_t, bits >> 23) - (bits >> 31 ? 512 : 0);
  y = hai_float((bits & 0x007fffffu) + 0x3f3504f3u);
  z = (y - 1.0f) / (y + 1.0f);
  w = z * z;
  w = 2.0f * z * (1.0f + w * (0.333333333f + w * (0.2f + w * (0.142857143f + w * 0.111111111f))));
  return base + HAI_AS(float, e) * 0.693145752f + (HAI_AS(float, e) * 1.42860677e-6f + w);
}

/* ln x. Absolute error at most 2e-7 (1 + |ln x|). */
static float hai_log(float x) { return hai_add_log(0.0f, x); }

/* Square root by Newton's method on 1 / sqrt(x), exact for small perfect squares; denormals, negative
   numbers and NaN give 0. */
static float hai_sqrt(float x) {
  float y, s;
  int i;
  if (!(x >= 1.17549435e-38f) || !hai_finite(x)) return x > 0.0f && !hai_finite(x) ? x : 0.0f;
  y = hai_float(0x5f375a86u - (hai_bits(x) >> 1));
  for (i = 0; i < 3; i++) y = y * (1.5f - 0.5f * x * y * y);
  s = x * y;
  return s + 0.5f * y * (x - s * s);
}

/* The largest of n numbers, NaN passed over; -inf of none. Four in turn, since one would wait for itself. */
static float hai_largest(const float *x, hai_index n) {
  float most0 = -hai_inf(), most1 = most0, most2 = most0, most3 = most0;
  hai_index i;
  for (i = 0; HAI_SIMD && i + 4 <= n; i += 4) {
    most0 = x[i] > most0 ? x[i] : most0;
    most1 = x[i + 1] > most1 ? x[i + 1] : most1;
    most2 = x[i + 2] > most2 ? x[i + 2] : most2;
    most3 = x[i + 3] > most3 ? x[i + 3] : most3;
  }
  for (; i < n; i++) most0 = x[i] > most0 ? x[i] : most0;
  most0 = most1 > most0 ? most1 : most0;
  most2 = most3 > most2 ? most3 : most2;
  return most2 > most0 ? most2 : most0;
}

/* ln(e^a + e^b); -inf is an empty sum. */
static float hai_log_add(float a, float b) {
  float high = a > b ? a : b, low = a > b ? b : a;
  if (low == -hai_inf()) return high;
  return hai_add_log(high, 1.0f + hai_exp(low - high));
}

/* e^(part - whole); an empty part has no share. */
static float hai_share(float part, float whole) {
  return part == -hai_inf() ? 0.0f : hai_exp(part - whole);
}

/* ln of a state's sum: m + ln l, -inf where nothing was met. */
static float hai_state_lse(float m, float l) { return hai_add_log(m, l); }

/* ======== elements.h ======== */

/* ---- Elements ----
   Rows lie in units of one element, or of a Q8_0 block. To float32 every conversion is exact; back it rounds
   to nearest, ties to even, and a NaN stays one. */

#define HAI_Q8_0_ELEMENTS 32
#define HAI_Q8_0_BYTES 34

HAI_HOT int hai_is_f32(hyperattn_dtype dtype) { return !HAI_HALVES || dtype == HYPERATTN_F32; }
HAI_HOT int hai_unit(hyperattn_dtype dtype) {
  return HAI_HALVES && dtype == HYPERATTN_Q8_0 ? HAI_Q8_0_ELEMENTS : 1;
}
HAI_HOT size_t hai_unit_bytes(hyperattn_dtype dtype) {
  return hai_is_f32(dtype) ? sizeof(float) : dtype == HYPERATTN_Q8_0 ? HAI_Q8_0_BYTES : sizeof(uint16_t);
}
static size_t hai_alignment(hyperattn_dtype dtype) {
  return hai_is_f32(dtype) ? sizeof(float) : sizeof(uint16_t);
}

static float hai_from_f16(uint16_t half) {
  uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  float x;
  if (rest >= 0x7c00u)
    return hai_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13 | HAI_AS(uint32_t, rest > 0x7c00u) << 22);
  if (rest >= 0x0400u) return hai_float(sign | ((rest << 13) + 0x38000000u));
  x = HAI_AS(float, rest) * 5.9604644775390625e-8f; /* subnormal: in units of 2^-24 */
  return sign ? -x : x;
}
static uint16_t hai_to_f16(float x) {
  uint32_t bits = hai_bits(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu, kept, lost, half;
  if (size > 0x7f800000u) return HAI_AS(uint16_t, sign | 0x7e00u);
  if (size >= 0x477ff000u) return HAI_AS(uint16_t, sign | 0x7c00u); /* 65520 is halfway to 2^16 */
  if (size >= 0x38800000u) {
    kept = (size - 0x38000000u) >> 13;
    lost = size & 0x1fffu;
    half = 0x1000u;
  } else { /* subnormal: the fraction with its leading one, shifted to units of 2^-24 */
    uint32_t shift = 126 - (size >> 23), fraction = (size & 0x007fffffu) | 0x00800000u;
    if (shift > 24) return HAI_AS(uint16_t, sign);
    kept = fraction >> shift;
    lost = fraction & ((1u << shift) - 1);
    half = 1u << (shift - 1);
  }
  kept += HAI_AS(uint32_t, lost > half || (lost == half && (kept & 1)));
  return HAI_AS(uint16_t, sign | kept);
}
static float hai_from_bf16(uint16_t half) { return hai_float(HAI_AS(uint32_t, half) << 16); }
static uint16_t hai_to_bf16(float x) {
  uint32_t bits = hai_bits(x);
  if (x != x) return HAI_AS(uint16_t, bits >> 16 | 0x40u);
  return HAI_AS(uint16_t, (bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Element t of a row, and its place taken by x. */
static float hai_get(const void *row, hyperattn_dtype dtype, hai_index t) {
  const char *at = HAI_AS(const char *, row) + HAI_AS(size_t, t / hai_unit(dtype)) * hai_unit_bytes(dtype);
  uint16_t half;
  float x;
  if (hai_is_f32(dtype)) {
    HYPERATTN_MEMCPY(&x, at, sizeof x);
    return x;
  }
  HYPERATTN_MEMCPY(&half, at, sizeof half);
  if (dtype == HYPERATTN_BF16) return hai_from_bf16(half);
  if (dtype == HYPERATTN_F16) return hai_from_f16(half);
  return hai_from_f16(half) *
         HAI_AS(float, HAI_AS(signed char, at[sizeof half + HAI_AS(size_t, t % HAI_Q8_0_ELEMENTS)]));
}
static void hai_put(void *row, hyperattn_dtype dtype, hai_index t, float x) {
  char *at = HAI_AS(char *, row) + HAI_AS(size_t, t) * hai_unit_bytes(dtype);
  uint16_t half = dtype == HYPERATTN_F16 ? hai_to_f16(x) : hai_to_bf16(x);
  if (hai_is_f32(dtype))
    HYPERATTN_MEMCPY(at, &x, sizeof x);
  else
    HYPERATTN_MEMCPY(at, &half, sizeof half);
}

/* row[t] = from[t] for t < n. */
static void hai_narrow(const float *from, hai_index n, hyperattn_dtype dtype, void *row) {
  hai_index t;
  for (t = 0; t < n; t++) hai_put(row, dtype, t, from[t]);
}

/* ======== random.h ======== */

/* ==== 3. Random numbers ==============================================================================
   A counter-based generator (SplitMix64's finaliser, three rounds): no state, so any task can draw its own,
   and no batch or head in it, so heads that share keys share their draws. */

enum {
  HAI_FOR_PLANES,
  HAI_FOR_PROBES,
  HAI_FOR_COLUMNS,
  HAI_FOR_CAP,
  HAI_FOR_JUDGES,
  HAI_FOR_AUDITORS,
  HAI_FOR_WIDE
};

static uint64_t hai_mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static uint64_t hai_random(uint64_t seed, uint64_t region, uint64_t purpose, uint64_t index) {
  uint64_t x = hai_mix(seed + 0x9e3779b97f4a7c15u);
  x = hai_mix(x + 0x9e3779b97f4a7c15u * (region + 1));
  return hai_mix(x + 0x9e3779b97f4a7c15u * (index + 1) + (purpose << 56));
}

/* begin + floor(u n) for a uniform u = random / 2^64: the high half of a 64 x 64 bit product. */
static uint64_t hai_uniform(uint64_t begin, uint64_t n, uint64_t random) {
  uint64_t n_low = n & 0xffffffffu, n_high = n >> 32, r_low = random & 0xffffffffu, r_high = random >> 32;
  uint64_t middle = n_high * r_low + (n_low * r_low >> 32), carry = (middle & 0xffffffffu) + n_low * r_high;
  return begin + n_high * r_high + (middle >> 32) + (carry >> 32);
}

/* One of the n things, uniform in part i of `parts`: a draw without replacement over all i. */
static hai_index hai_draw(hai_index n, hai_index parts, hai_index i, uint64_t random) {
  hai_index begin = hai_cut(n, parts, i), end = hai_cut(n, parts, i + 1);
  return HAI_AS(hai_index, hai_uniform(HAI_AS(uint64_t, begin), HAI_AS(uint64_t, end - begin), random));
}

/* ======== kernel.h ======== */

/* ==== 4. Kernels =====================================================================================
   One lane is one query. A kernel knows tiles of `lanes` queries, packed transposed, and chunks of at most
   HAI_CHUNK keys given by pointers to their rows; it knows nothing of where the keys come from. Functions
   take lanes [begin, end) of the tile, multiples of `width`, and leave other lanes alone; a lane's result
   does not depend on which other lanes are present. Arrays over lanes have row stride `lanes`. */

typedef struct hai_kernel {
  hyperattn_isa isa;
  hyperattn_dtype dtype; /* of the rows of queries, keys and values that it reads */
  int lanes;             /* queries per tile */
  int width;             /* lanes per register */
  int tiles;             /* how many tiles should meet a chunk of keys while it is in the cache */

  /* to[t] = row[t] for t < n, exactly, whatever the dtype but F32. */
  void (*widen)(const void *row, hyperattn_dtype dtype, hai_index n, float *to);
  /* packed[t][i] = factor * row[i][t], for t < dim, all lanes; a NULL row packs as zeros. Kernels of bfloat16
     pack pairs of coordinates, and the factor behind them. */
  void (*pack)(const void *const *row, hai_index dim, float factor, float *packed);
  /* row[i][t] = packed[t][i] * factor[i], for lanes whose row is not NULL. Rows do not overlap. */
  void (*unpack)(const float *packed, hai_index dim, const float *factor, float *const *row);
  /* score[j][i] = sum over t in order of query[t][i] * key[j][t], for j < n_keys; score has HAI_CHUNK
     rows, and those beyond n_keys may be written too. */
  void (*scores)(const float *query, hai_index dim, const void *const *key, int n_keys, int begin, int end,
                 float *score);
  /* Adds log_weight[j] (NULL: 0) and hides what visible[j]'s bit i does not show (NULL: shows all), then
       high = max_j score, m' = m where high <= m, else high + HAI_AHEAD, or high where that is a leap,
       factor = e^(m - m'), score[j][i] = e^(score - m'), l' = l factor + sum_j score[j][i].
     m is the reference of a lane's sums, no score is above it. It moves ahead of slowly rising scores, so
     that they do not multiply a state by a rounded factor in every chunk; a factor is exactly 1 where m
     stays. m = -inf: nothing seen yet. l is [2][lanes]: a sum, and what rounding has taken from it so far.
     NaN in a visible score makes l NaN. Returns whether any lane's m moved. */
  int (*softmax)(float *score, int n_keys, const float *log_weight, const uint64_t *visible, int begin,
                 int end, float *m, float *l, float *factor);
  /* NULL where products take the weights as they are. Otherwise: writes the weights, rounded, behind the
     scores, where `values` finds them, and adds them up as `values` would for a value of 1:
     sum[i] = sum[i] * factor[i] + sum_j rounded[j][i]. */
  void (*round)(float *score, int n_keys, const float *factor, int begin, int end, float *sum);
  /* o[t][i] = o[t][i] * factor[i] + sum_j score[j][i] * value[j][t], for t < dim. */
  void (*values)(float *score, int n_keys, const void *const *value, hai_index dim, const float *factor,
                 int begin, int end, float *o);
  /* x[t][i] = x[t][i] * factor[i], for t < rows. */
  void (*scale)(float *x, hai_index rows, const float *factor, int begin, int end);
  /* Adds o [rows][lanes] to sum, and what rounding takes from that to lost; o becomes 0. */
  void (*carry)(float *o, hai_index rows, int begin, int end, float *sum, float *lost);
  /* o = sum + (lost + o), the way back; lost may be NULL. */
  void (*gather)(float *o, hai_index rows, int begin, int end, const float *sum, const float *lost);
  /* sum[j] = sum over lanes i in [begin, end) of score[j][i]. */
  void (*sum_lanes)(const float *score, int n_keys, int begin, int end, float *sum);
  int extra_rows;     /* rows that rounding and values need behind the HAI_CHUNK rows of score, */
  int value_multiple; /* and what the dim of values is a multiple of */
  /* NULL, or what the thread does before and after a task that uses the kernel; leave takes what enter
     gave. */
  uint32_t (*enter)(void);
  void (*leave)(uint32_t before);
} hai_kernel;

/* Of a sum and an addend, the rounded sum; *lost += the rest, exactly, if rounding is to nearest (Knuth's
   TwoSum). */
static float hai_two_sum(float sum, float x, float *lost) {
  float next = sum + x, part = next - sum, rest = (sum - (next - part)) + (x - part);
  if (rest == rest) *lost += rest; /* of an infinite sum nothing is lost */
  return next;
}

/* ======== kernel_scalar.h ======== */

/* ---- Scalar: the specification ---- */

#define HAI_SCALAR_LANES 16

/* Elements from .. n - 1 of a row. */
static void hai_widen_plain(const void *row, hyperattn_dtype dtype, hai_index from, hai_index n,
                            float *to) {
  for (; from < n; from++) to[from] = hai_get(row, dtype, from);
}

/* Coordinates from .. dim - 1 of lanes begin .. end - 1. */
static void hai_pack_plain(const void *const *row, hai_index from, hai_index dim, float factor,
                           float *packed, int lanes, int begin, int end) {
  hai_index t;
  int i;
  for (i = begin; i < end; i++)
    for (t = from; t < dim; t++)
      packed[t * lanes + i] = row[i] ? factor * HAI_AS(const float *, row[i])[t] : 0.0f;
}

static void hai_unpack_plain(const float *packed, hai_index from, hai_index dim, const float *factor,
                             float *const *row, int lanes, int begin, int end) {
  hai_index t;
  int i;
  for (i = begin; i < end; i++)
    for (t = from; row[i] && t < dim; t++) row[i][t] = packed[t * lanes + i] * factor[i];
}

static void hai_widen_scalar(const void *row, hyperattn_dtype dtype, hai_index n, float *to) {
  hai_widen_plain(row, dtype, 0, n, to);
}

static void hai_pack_scalar(const void *const *row, hai_index dim, float factor, float *packed) {
  hai_pack_plain(row, 0, dim, factor, packed, HAI_SCALAR_LANES, 0, HAI_SCALAR_LANES);
}

static void hai_unpack_scalar(const float *packed, hai_index dim, const float *factor, float *const *row) {
  hai_unpack_plain(packed, 0, dim, factor, row, HAI_SCALAR_LANES, 0, HAI_SCALAR_LANES);
}

static void hai_scores_scalar(const float *query, hai_index dim, const void *const *key, int n_keys,
                              int begin, int end, float *score) {
  hai_index t;
  int i, j;
  for (j = 0; j < n_keys; j++) {
    float *s = score + j * HAI_SCALAR_LANES;
    const float *k = HAI_AS(const float *, key[j]);
    for (i = begin; i < end; i++) s[i] = 0.0f;
    for (t = 0; t < dim; t++)
      for (i = begin; i < end; i++) s[i] += query[t * HAI_SCALAR_LANES + i] * k[t];
  }
}

static int hai_softmax_scalar(float *score, int n_keys, const float *log_weight, const uint64_t *visible,
                              int begin, int end, float *m, float *l, float *factor) {
  int moved = 0, i, j;
  for (i = begin; i < end; i++) {
    float high = m[i], shift, sum = 0.0f, lost;
    for (j = 0; j < n_keys; j++) {
      float *s = score + j * HAI_SCALAR_LANES + i;
      if (log_weight) *s += log_weight[j];
      if (visible && !(visible[j] >> i & 1)) *s = -hai_inf();
      if (*s > high) high = *s;
    }
    if (high > m[i]) {
      if (high < m[i] + HAI_LEAP) high += HAI_AHEAD;
      moved = 1;
    }
    shift = high == -hai_inf() ? 0.0f : high;
    for (j = 0; j < n_keys; j++) {
      float *s = score + j * HAI_SCALAR_LANES + i;
      *s = hai_exp(*s - shift);
      sum += *s;
    }
    factor[i] = hai_exp(m[i] - shift);
    lost = 0.0f;
    l[i] = hai_two_sum(l[i] * factor[i], sum + l[HAI_SCALAR_LANES + i] * factor[i], &lost);
    l[HAI_SCALAR_LANES + i] = lost;
    m[i] = high;
  }
  return moved;
}

static void hai_values_scalar(float *score, int n_keys, const void *const *value, hai_index dim,
                              const float *factor, int begin, int end, float *o) {
  float sum[HAI_SCALAR_LANES];
  hai_index t;
  int i, j;
  for (t = 0; t < dim; t++) {
    for (i = begin; i < end; i++) sum[i] = 0.0f;
    for (j = 0; j < n_keys; j++) {
      float v = HAI_AS(const float *, value[j])[t];
      for (i = begin; i < end; i++) sum[i] += score[j * HAI_SCALAR_LANES + i] * v;
    }
    for (i = begin; i < end; i++)
      o[t * HAI_SCALAR_LANES + i] = o[t * HAI_SCALAR_LANES + i] * factor[i] + sum[i];
  }
}

static void hai_scale_scalar(float *x, hai_index rows, const float *factor, int begin, int end) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_SCALAR_LANES; t += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) x[t + i] *= factor[i];
}

static void hai_carry_scalar(float *o, hai_index rows, int begin, int end, float *sum, float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_SCALAR_LANES; t += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) {
      sum[t + i] = hai_two_sum(sum[t + i], o[t + i], &lost[t + i]);
      o[t + i] = 0.0f;
    }
}

static void hai_gather_scalar(float *o, hai_index rows, int begin, int end, const float *sum,
                              const float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_SCALAR_LANES; t += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) o[t + i] = sum[t + i] + ((lost ? lost[t + i] : 0.0f) + o[t + i]);
}

static void hai_sum_lanes_scalar(const float *score, int n_keys, int begin, int end, float *sum) {
  int i, j;
  for (j = 0; j < n_keys; j++) {
    sum[j] = 0.0f;
    for (i = begin; i < end; i++) sum[j] += score[j * HAI_SCALAR_LANES + i];
  }
}

static const hai_kernel hai_kernel_scalar = {
    /* isa */ HYPERATTN_ISA_SCALAR,
    /* dtype */ HYPERATTN_F32,
    /* lanes */ HAI_SCALAR_LANES,
    /* width */ 1,
    /* tiles */ 1,
    /* widen */ hai_widen_scalar,
    /* pack */ hai_pack_scalar,
    /* unpack */ hai_unpack_scalar,
    /* scores */ hai_scores_scalar,
    /* softmax */ hai_softmax_scalar,
    /* round */ HAI_NULL,
    /* values */ hai_values_scalar,
    /* scale */ hai_scale_scalar,
    /* carry */ HAI_LONG_SUMS ? hai_carry_scalar : HAI_NULL,
    /* gather */ HAI_LONG_SUMS ? hai_gather_scalar : HAI_NULL,
    /* sum_lanes */ hai_sum_lanes_scalar,
    /* extra_rows */ 0,
    /* value_multiple */ 1,
    /* enter */ HAI_NULL,
    /* leave */ HAI_NULL};

/* ======== kernel_vector.h ======== */

#if HAI_SIMD

/* gcc 105593: g++ 12 takes the undefined vectors inside its own AVX-512 intrinsics for a mistake of
   ours; at -O0 some of gcc's intrinsics are macros that convert signs. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if HAI_AVX512_BF16 || HAI_NEON_BF16
/* Two bfloat16: neighbouring coordinates of a row, or one coordinate of neighbouring keys. */
typedef struct hai_bf16x2 {
  uint16_t x[2];
} hai_bf16x2;

/* hai_pack_plain for pairs, which nothing multiplies. */
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

/* Sums and exponentials are those of rounding to nearest, whatever the caller's thread has set: the mode is
   set for a task and set back after it; flags that were raised meanwhile stay. */
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

static int hai_rows_present(const void *const *row, int n) {
  int i;
  for (i = 0; i < n; i++)
    if (!row[i]) return 0;
  return 1;
}

/* ======== kernel_tile.h ======== */

/* ---- The register tile: said once for every vector ISA ----
   HAI_MICRO(isa, R, N) defines, for a tile of N registers, the two inner loops over R rows at a time:
     hai_scores_<N>_<isa>   score[r][i] = sum_t query[t][i] key_r[t]                      for R keys
     hai_values_<N>_<isa>   o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[r]   for R coordinates
   A step loads N packed vectors a<register>, broadcasts R elements in turn, does N R fused multiply-adds. An
   element is a float, or a pair of bfloat16 whose two products are summed (hai_dot_<isa>).
   The accumulators c<row><register> have names: compilers keep an array of them in registers at -O3 only.
   With one register eight sums hide their own latency and little else: its scores take four steps at
   a time. */

#define HAI_ROWS_1(X, isa, N) X(0, isa, N)
#define HAI_ROWS_4(X, isa, N) X(0, isa, N) X(1, isa, N) X(2, isa, N) X(3, isa, N)
#define HAI_ROWS_8(X, isa, N) HAI_ROWS_4(X, isa, N) X(4, isa, N) X(5, isa, N) X(6, isa, N) X(7, isa, N)
#define HAI_ROWS_16(X, isa, N) \
  HAI_ROWS_8(X, isa, N)        \
  X(8, isa, N)                 \
  X(9, isa, N) X(10, isa, N) X(11, isa, N) X(12, isa, N) X(13, isa, N) X(14, isa, N) X(15, isa, N)

#define HAI_ZERO_1(r, isa) c##r##0 = hai_zero_##isa();
#define HAI_ZERO_2(r, isa) HAI_ZERO_1(r, isa) c##r##1 = hai_zero_##isa();
#define HAI_ZERO_3(r, isa) HAI_ZERO_2(r, isa) c##r##2 = hai_zero_##isa();
#define HAI_ZERO(r, isa, N) HAI_ZERO_##N(r, isa)

#define HAI_FMA_1(r, isa) c##r##0 = hai_dot_##isa(a0, b, c##r##0);
#define HAI_FMA_2(r, isa) HAI_FMA_1(r, isa) c##r##1 = hai_dot_##isa(a1, b, c##r##1);
#define HAI_FMA_3(r, isa) HAI_FMA_2(r, isa) c##r##2 = hai_dot_##isa(a2, b, c##r##2);

#define HAI_LOAD_1(isa, p) a0 = hai_load_##isa(p);
#define HAI_LOAD_2(isa, p) HAI_LOAD_1(isa, p) a1 = hai_load_##isa((p) + HAI_WIDTH_##isa);
#define HAI_LOAD_3(isa, p) HAI_LOAD_2(isa, p) a2 = hai_load_##isa((p) + 2 * HAI_WIDTH_##isa);

#define HAI_STORE_1(r, isa, p) hai_store_##isa(p, c##r##0);
#define HAI_STORE_2(r, isa, p) HAI_STORE_1(r, isa, p) hai_store_##isa((p) + HAI_WIDTH_##isa, c##r##1);
#define HAI_STORE_3(r, isa, p) HAI_STORE_2(r, isa, p) hai_store_##isa((p) + 2 * HAI_WIDTH_##isa, c##r##2);

#define HAI_MERGE_1(r, isa, p) c##r##0 = hai_fma_##isa(hai_load_##isa(p), a0, c##r##0);
#define HAI_MERGE_2(r, isa, p) \
  HAI_MERGE_1(r, isa, p) c##r##1 = hai_fma_##isa(hai_load_##isa((p) + HAI_WIDTH_##isa), a1, c##r##1);
#define HAI_MERGE_3(r, isa, p) \
  HAI_MERGE_2(r, isa, p) c##r##2 = hai_fma_##isa(hai_load_##isa((p) + 2 * HAI_WIDTH_##isa), a2, c##r##2);

#define HAI_NAMES_1(r, isa) hai_vector_##isa c##r##0;
#define HAI_NAMES_2(r, isa) HAI_NAMES_1(r, isa) hai_vector_##isa c##r##1;
#define HAI_NAMES_3(r, isa) HAI_NAMES_2(r, isa) hai_vector_##isa c##r##2;
#define HAI_NAMES(r, isa, N) HAI_NAMES_##N(r, isa)
#define HAI_VECTORS_1(isa) hai_vector_##isa a0, b;
#define HAI_VECTORS_2(isa) HAI_VECTORS_1(isa) hai_vector_##isa a1;
#define HAI_VECTORS_3(isa) HAI_VECTORS_2(isa) hai_vector_##isa a2;

#define HAI_KEY_ROW(r, isa, N) const HAI_ELEMENT_##isa *k##r = HAI_AS(const HAI_ELEMENT_##isa *, key[r]);
#define HAI_KEY_STEP(r, isa, N) \
  b = hai_each_##isa(k##r + t); \
  HAI_FMA_##N(r, isa)
#define HAI_SCORE_STEP(isa, R, N) \
  HAI_LOAD_##N(isa, query) HAI_ROWS_##R(HAI_KEY_STEP, isa, N) t++, query += HAI_LANES_##isa;
#define HAI_SCORE_STEPS_1(isa, R) \
  HAI_SCORE_STEP(isa, R, 1) HAI_SCORE_STEP(isa, R, 1) HAI_SCORE_STEP(isa, R, 1) HAI_SCORE_STEP(isa, R, 1)
#define HAI_SCORE_STEPS_2(isa, R) HAI_SCORE_STEP(isa, R, 2)
#define HAI_SCORE_STEPS_3(isa, R) HAI_SCORE_STEP(isa, R, 3)
enum { HAI_STEPS_1 = 4, HAI_STEPS_2 = 1, HAI_STEPS_3 = 1 };
#define HAI_SCORE_OUT(r, isa, N) HAI_STORE_##N(r, isa, score + r * HAI_LANES_##isa)
#define HAI_VALUE_STEP(r, isa, N) \
  b = hai_each_##isa(v + r);      \
  HAI_FMA_##N(r, isa)
#define HAI_VALUE_OUT(r, isa, N) \
  HAI_MERGE_##N(r, isa, o + r * HAI_LANES_##isa) HAI_STORE_##N(r, isa, o + r * HAI_LANES_##isa)

/* Scores of pairs are multiplied by the factor that lies behind the packed queries. */
#define HAI_TIMES_1(r, isa) c##r##0 = hai_mul_##isa(c##r##0, a0);
#define HAI_TIMES_2(r, isa) HAI_TIMES_1(r, isa) c##r##1 = hai_mul_##isa(c##r##1, a1);
#define HAI_TIMES_3(r, isa) HAI_TIMES_2(r, isa) c##r##2 = hai_mul_##isa(c##r##2, a2);
#define HAI_TIMES(r, isa, N) HAI_TIMES_##N(r, isa)
#define HAI_FINISH_PAIRS(isa, R, N) HAI_LOAD_##N(isa, query) HAI_ROWS_##R(HAI_TIMES, isa, N)

/* clang-format off */
#define HAI_MICRO_SCORES(isa, R, N)                                                    \
  HAI_TARGET_##isa static void hai_scores_##N##_##isa(const float *query, hai_index dim, \
                                                      const void *const *key, float *score) { \
    hai_index t;                                                                         \
    HAI_VECTORS_##N(isa)                                                               \
    HAI_ROWS_##R(HAI_NAMES, isa, N)                                                    \
    HAI_ROWS_##R(HAI_KEY_ROW, isa, N)                                                  \
    HAI_ROWS_##R(HAI_ZERO, isa, N)                                                     \
    for (t = 0; t + HAI_STEPS_##N <= dim;) {                                           \
      HAI_SCORE_STEPS_##N(isa, R)                                                      \
    }                                                                                  \
    while (t < dim) {                                                                  \
      HAI_SCORE_STEP(isa, R, N)                                                        \
    }                                                                                  \
    HAI_FINISH_##isa(isa, R, N)                                                        \
    HAI_ROWS_##R(HAI_SCORE_OUT, isa, N)                                                \
  }
#define HAI_MICRO_VALUES(isa, R, N, name)                                              \
  HAI_TARGET_##isa static void hai_##name##_##N##_##isa(const float *weight, int n_keys, \
                                                        const void *const *value, hai_index at, \
                                                        const float *factor, float *o) { \
    int j;                                                                             \
    HAI_VECTORS_##N(isa)                                                               \
    HAI_ROWS_##R(HAI_NAMES, isa, N)                                                    \
    HAI_ROWS_##R(HAI_ZERO, isa, N)                                                     \
    for (j = 0; j < n_keys; j++, weight += HAI_LANES_##isa) {                          \
      const HAI_ELEMENT_##isa *v = HAI_AS(const HAI_ELEMENT_##isa *, value[j]) + at;           \
      HAI_LOAD_##N(isa, weight)                                                        \
      HAI_ROWS_##R(HAI_VALUE_STEP, isa, N)                                             \
    }                                                                                  \
    HAI_LOAD_##N(isa, factor)                                                          \
    HAI_ROWS_##R(HAI_VALUE_OUT, isa, N)                                                \
  }
/* clang-format on */
#define HAI_MICRO(isa, R, N)          \
  HAI_MICRO_SCORES(isa, R, N)         \
  HAI_MICRO_VALUES(isa, R, N, values) \
  HAI_MICRO_VALUES(isa, 1, N, value)

/* The largest score goes by four maxima in turn, since one would wait for itself; exponentials wait for
   it, so all registers look for theirs first. */
#define HAI_SHOW(isa, r)                                                     \
  s = hai_load_##isa(at + (r)*HAI_LANES_##isa);                              \
  if (log_weight) s = hai_add_##isa(s, hai_set1_##isa(log_weight[j + (r)])); \
  if (visible) s = hai_show_##isa(s, visible[j + (r)] >> i);                 \
  hai_store_##isa(at + (r)*HAI_LANES_##isa, s);                              \
  high##r = hai_max_##isa(s, high##r);
#define HAI_HIGH(isa, r) high##r = hai_max_##isa(hai_load_##isa(at + (r)*HAI_LANES_##isa), high##r);
#define HAI_SOFTMAX(isa)                                                                               \
  HAI_TARGET_##isa static int hai_softmax_##isa(float *score, int n_keys, const float *log_weight,     \
                                                const uint64_t *visible, int begin, int end, float *m, \
                                                float *l, float *factor) {                             \
    int moved = 0, i, j;                                                                               \
    for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                   \
      hai_vector_##isa s, high0 = hai_load_##isa(m + i), high1 = high0, high2 = high0, high3 = high0;  \
      float *at = score + i;                                                                           \
      for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES_##isa) {                                \
        if (log_weight || visible) {                                                                   \
          HAI_SHOW(isa, 0) HAI_SHOW(isa, 1) HAI_SHOW(isa, 2) HAI_SHOW(isa, 3)                          \
        } else {                                                                                       \
          HAI_HIGH(isa, 0) HAI_HIGH(isa, 1) HAI_HIGH(isa, 2) HAI_HIGH(isa, 3)                          \
        }                                                                                              \
      }                                                                                                \
      for (; j < n_keys; j++, at += HAI_LANES_##isa) {                                                 \
        HAI_SHOW(isa, 0)                                                                               \
      }                                                                                                \
      high0 = hai_max_##isa(hai_max_##isa(high0, high1), hai_max_##isa(high2, high3));                 \
      s = hai_load_##isa(m + i);                                                                       \
      high0 = hai_move_##isa(s, high0);                                                                \
      moved |= hai_differ_##isa(s, high0);                                                             \
      s = hai_exp_##isa(hai_sub_##isa(s, hai_or_zero_##isa(high0)));                                   \
      hai_store_##isa(factor + i, s);                                                                  \
      hai_store_##isa(m + i, high0);                                                                   \
    }                                                                                                  \
    for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                   \
      hai_vector_##isa s, t, shift = hai_or_zero_##isa(hai_load_##isa(m + i));                         \
      hai_vector_##isa sum = hai_zero_##isa(), odd = sum, next, part;                                  \
      float *at = score + i;                                                                           \
      for (j = 0; j + 2 <= n_keys; j += 2, at += 2 * HAI_LANES_##isa) {                                \
        s = hai_exp_##isa(hai_sub_##isa(hai_load_##isa(at), shift));                                   \
        t = hai_exp_##isa(hai_sub_##isa(hai_load_##isa(at + HAI_LANES_##isa), shift));                 \
        hai_store_##isa(at, s);                                                                        \
        hai_store_##isa(at + HAI_LANES_##isa, t);                                                      \
        sum = hai_add_##isa(sum, s);                                                                   \
        odd = hai_add_##isa(odd, t);                                                                   \
      }                                                                                                \
      if (j < n_keys) {                                                                                \
        s = hai_exp_##isa(hai_sub_##isa(hai_load_##isa(at), shift));                                   \
        hai_store_##isa(at, s);                                                                        \
        sum = hai_add_##isa(sum, s);                                                                   \
      }                                                                                                \
      t = hai_load_##isa(factor + i);                                                                  \
      s = hai_mul_##isa(hai_load_##isa(l + i), t);                                                     \
      sum = hai_add_##isa(sum, odd);                                                                   \
      sum = hai_fma_##isa(hai_load_##isa(l + HAI_LANES_##isa + i), t, sum);                            \
      next = hai_add_##isa(s, sum), part = hai_sub_##isa(next, s);                                     \
      s = hai_add_##isa(hai_sub_##isa(s, hai_sub_##isa(next, part)), hai_sub_##isa(sum, part));        \
      hai_store_##isa(l + i, next);                                                                    \
      hai_store_##isa(l + HAI_LANES_##isa + i, s);                                                     \
    }                                                                                                  \
    return moved;                                                                                      \
  }

#define HAI_SCALE(isa)                                                                                    \
  HAI_TARGET_##isa static void hai_scale_##isa(float *x, hai_index rows, const float *factor, int begin,  \
                                               int end) {                                                 \
    hai_index t;                                                                                          \
    int i;                                                                                                \
    for (t = 0; t < rows * HAI_LANES_##isa; t += HAI_LANES_##isa)                                         \
      for (i = begin; i < end; i += HAI_WIDTH_##isa)                                                      \
        hai_store_##isa(x + t + i, hai_mul_##isa(hai_load_##isa(x + t + i), hai_load_##isa(factor + i))); \
  }

/* As hai_two_sum, a register at a time. */
#define HAI_CARRY(isa)                                                                                    \
  HAI_TARGET_##isa static void hai_carry_##isa(float *o, hai_index rows, int begin, int end, float *sum,  \
                                               float *lost) {                                             \
    hai_vector_##isa a, b, c, next, part; /* loads first: the arrays may alias in the cache */            \
    hai_index t;                                                                                          \
    int i;                                                                                                \
    for (t = 0; t < rows * HAI_LANES_##isa; t += HAI_LANES_##isa)                                         \
      for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                    \
        a = hai_load_##isa(sum + t + i), b = hai_load_##isa(o + t + i), c = hai_load_##isa(lost + t + i); \
        next = hai_add_##isa(a, b), part = hai_sub_##isa(next, a);                                        \
        a = hai_add_##isa(hai_sub_##isa(a, hai_sub_##isa(next, part)), hai_sub_##isa(b, part));           \
        hai_store_##isa(sum + t + i, next);                                                               \
        hai_store_##isa(lost + t + i, hai_add_##isa(c, hai_known_##isa(a)));                              \
        hai_store_##isa(o + t + i, hai_zero_##isa());                                                     \
      }                                                                                                   \
  }                                                                                                       \
  HAI_TARGET_##isa static void hai_gather_##isa(float *o, hai_index rows, int begin, int end,             \
                                                const float *sum, const float *lost) {                    \
    hai_index t;                                                                                          \
    int i;                                                                                                \
    for (t = 0; t < rows * HAI_LANES_##isa; t += HAI_LANES_##isa)                                         \
      for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                    \
        hai_vector_##isa rest = hai_load_##isa(o + t + i);                                                \
        if (lost) rest = hai_add_##isa(hai_load_##isa(lost + t + i), rest);                               \
        hai_store_##isa(o + t + i, hai_add_##isa(hai_load_##isa(sum + t + i), rest));                     \
      }                                                                                                   \
  }

/* Transposition goes by 4 x 4 squares within 128-bit parts: vector k of four holds rows k, k + 4, k + 8,
   .. */
#define HAI_PACK(isa)                                                                              \
  HAI_TARGET_##isa static void hai_pack_##isa(const void *const *row, hai_index dim, float factor, \
                                              float *packed) {                                     \
    hai_vector_##isa f = hai_set1_##isa(factor), x0, x1, x2, x3;                                   \
    int i;                                                                                         \
    for (i = 0; i < HAI_LANES_##isa; i += HAI_WIDTH_##isa) {                                       \
      hai_index t = 0, whole = hai_rows_present(row + i, HAI_WIDTH_##isa) ? dim / 4 * 4 : 0;       \
      for (; t < whole; t += 4) {                                                                  \
        float *at = packed + t * HAI_LANES_##isa + i;                                              \
        x0 = hai_gather4_##isa(row + i, t), x1 = hai_gather4_##isa(row + i + 1, t);                \
        x2 = hai_gather4_##isa(row + i + 2, t), x3 = hai_gather4_##isa(row + i + 3, t);            \
        hai_transpose4_##isa(&x0, &x1, &x2, &x3);                                                  \
        hai_store_##isa(at, hai_times_##isa(x0, f));                                               \
        hai_store_##isa(at + HAI_LANES_##isa, hai_times_##isa(x1, f));                             \
        hai_store_##isa(at + 2 * HAI_LANES_##isa, hai_times_##isa(x2, f));                         \
        hai_store_##isa(at + 3 * HAI_LANES_##isa, hai_times_##isa(x3, f));                         \
      }                                                                                            \
      if (t < dim)                                                                                 \
        hai_pack_rest_##isa(row, t, dim, factor, packed, HAI_LANES_##isa, i, i + HAI_WIDTH_##isa); \
    }                                                                                              \
  }
#define HAI_UNPACK(isa)                                                                                    \
  HAI_TARGET_##isa static void hai_unpack_##isa(const float *packed, hai_index dim, const float *factor,   \
                                                float *const *row) {                                       \
    int i;                                                                                                 \
    for (i = 0; i < HAI_LANES_##isa; i += HAI_WIDTH_##isa) {                                               \
      hai_vector_##isa f = hai_load_##isa(factor + i), x0, x1, x2, x3;                                     \
      hai_index t = 0,                                                                                     \
                whole = hai_rows_present(HAI_REINTERPRET(const void *const *, row + i), HAI_WIDTH_##isa)   \
                            ? dim / 4 * 4                                                                  \
                            : 0;                                                                           \
      for (; t < whole; t += 4) {                                                                          \
        const float *at = packed + t * HAI_LANES_##isa + i;                                                \
        x0 = hai_mul_##isa(hai_load_##isa(at), f);                                                         \
        x1 = hai_mul_##isa(hai_load_##isa(at + HAI_LANES_##isa), f);                                       \
        x2 = hai_mul_##isa(hai_load_##isa(at + 2 * HAI_LANES_##isa), f);                                   \
        x3 = hai_mul_##isa(hai_load_##isa(at + 3 * HAI_LANES_##isa), f);                                   \
        hai_transpose4_##isa(&x0, &x1, &x2, &x3);                                                          \
        hai_scatter4_##isa(x0, row + i, t), hai_scatter4_##isa(x1, row + i + 1, t);                        \
        hai_scatter4_##isa(x2, row + i + 2, t), hai_scatter4_##isa(x3, row + i + 3, t);                    \
      }                                                                                                    \
      if (t < dim) hai_unpack_plain(packed, t, dim, factor, row, HAI_LANES_##isa, i, i + HAI_WIDTH_##isa); \
    }                                                                                                      \
  }

#define HAI_SUM_LANES(isa)                                                                             \
  HAI_TARGET_##isa static void hai_sum_lanes_##isa(const float *score, int n_keys, int begin, int end, \
                                                   float *sum) {                                       \
    int i, j;                                                                                          \
    for (j = 0; j < n_keys; j++, score += HAI_LANES_##isa) {                                           \
      hai_vector_##isa x = hai_load_##isa(score + begin);                                              \
      for (i = begin + HAI_WIDTH_##isa; i < end; i += HAI_WIDTH_##isa)                                 \
        x = hai_add_##isa(x, hai_load_##isa(score + i));                                               \
      sum[j] = hai_sum_##isa(x);                                                                       \
    }                                                                                                  \
  }

/* A register of elements at a time, a Q8_0 block at a time; what is left over goes one by one. The vector
   part is a function of its own that calls none: gcc leaves out vzeroupper before a call in tail
   position. */
#define HAI_WIDEN(isa)                                                                           \
  HAI_TARGET_##isa static hai_index hai_widen_most_##isa(const char *row, hyperattn_dtype dtype, \
                                                         hai_index n, float *to) {               \
    hai_index t = 0, k, step = HAI_WIDTH_##isa;                                                  \
    if (dtype == HYPERATTN_F16) {                                                                \
      for (; t + step <= n; t += step) hai_store_##isa(to + t, hai_f16_##isa(row + 2 * t));      \
    } else if (dtype == HYPERATTN_BF16) {                                                        \
      for (; t + step <= n; t += step) hai_store_##isa(to + t, hai_bf16_##isa(row + 2 * t));     \
    } else {                                                                                     \
      for (; t + HAI_Q8_0_ELEMENTS <= n; t += HAI_Q8_0_ELEMENTS, row += HAI_Q8_0_BYTES) {        \
        hai_vector_##isa d =                                                                     \
            hai_first_##isa(hai_f16_##isa(row)); /* a register of halves fits in a block */      \
        for (k = 0; k < HAI_Q8_0_ELEMENTS; k += step)                                            \
          hai_store_##isa(to + t + k, hai_mul_##isa(d, hai_int8_##isa(row + 2 + k)));            \
      }                                                                                          \
    }                                                                                            \
    return t;                                                                                    \
  }                                                                                              \
  static void hai_widen_##isa(const void *row, hyperattn_dtype dtype, hai_index n, float *to) {  \
    hai_index t = hai_widen_most_##isa(HAI_AS(const char *, row), dtype, n, to);                 \
    if (t < n) hai_widen_plain(row, dtype, t, n, to);                                            \
  }

/* Products over any range of registers and any counts, from a tile of R rows and 1 to 3 registers; one
   register alone takes R1 rows, since R would wait for one another. */
#define HAI_PRODUCTS(isa, R, R1)                                                                      \
  HAI_PACK(isa)                                                                                       \
  HAI_MICRO(isa, R, 1)                                                                                \
  HAI_MICRO(isa, R, 2)                                                                                \
  HAI_MICRO(isa, R, 3)                                                                                \
  HAI_MICRO_VALUES(isa, R1, 1, values_long)                                                           \
  static void hai_scores_##isa(const float *query, hai_index dim, const void *const *key, int n_keys, \
                               int begin, int end, float *score) {                                    \
    const void *row[R];                                                                               \
    int j, r, n = (end - begin) / HAI_WIDTH_##isa;                                                    \
    query += begin, score += begin;                                                                   \
    for (j = 0; j < n_keys; j += R, key += R, score += R * HAI_LANES_##isa) {                         \
      if (n_keys - j < R) { /* the first key in place of absent ones */                               \
        for (r = 0; r < R; r++) row[r] = key[r < n_keys - j ? r : 0];                                 \
        key = row;                                                                                    \
      }                                                                                               \
      if (n == 3)                                                                                     \
        hai_scores_3_##isa(query, dim, key, score);                                                   \
      else if (n == 2)                                                                                \
        hai_scores_2_##isa(query, dim, key, score);                                                   \
      else                                                                                            \
        hai_scores_1_##isa(query, dim, key, score);                                                   \
    }                                                                                                 \
  }                                                                                                   \
  static void hai_values_##isa(float *score, int n_keys, const void *const *value, hai_index dim,     \
                               const float *factor, int begin, int end, float *o) {                   \
    hai_index t = 0;                                                                                  \
    int n = (end - begin) / HAI_WIDTH_##isa;                                                          \
    score += begin, factor += begin, o += begin;                                                      \
    for (; n == 1 && t + R1 <= dim; t += R1, o += R1 * HAI_LANES_##isa)                               \
      hai_values_long_1_##isa(score, n_keys, value, t, factor, o);                                    \
    for (; t + R <= dim; t += R, o += R * HAI_LANES_##isa) {                                          \
      if (n == 3)                                                                                     \
        hai_values_3_##isa(score, n_keys, value, t, factor, o);                                       \
      else if (n == 2)                                                                                \
        hai_values_2_##isa(score, n_keys, value, t, factor, o);                                       \
      else                                                                                            \
        hai_values_1_##isa(score, n_keys, value, t, factor, o);                                       \
    }                                                                                                 \
    for (; t < dim; t++, o += HAI_LANES_##isa) {                                                      \
      if (n == 3)                                                                                     \
        hai_value_3_##isa(score, n_keys, value, t, factor, o);                                        \
      else if (n == 2)                                                                                \
        hai_value_2_##isa(score, n_keys, value, t, factor, o);                                        \
      else                                                                                            \
        hai_value_1_##isa(score, n_keys, value, t, factor, o);                                        \
    }                                                                                                 \
  }

#define HAI_KERNEL(isa, R, R1) \
  HAI_WIDEN(isa)               \
  HAI_UNPACK(isa)              \
  HAI_SOFTMAX(isa)             \
  HAI_SCALE(isa)               \
  HAI_CARRY(isa)               \
  HAI_SUM_LANES(isa)           \
  HAI_PRODUCTS(isa, R, R1)

/* The products of bfloat16, from those of pairs: of coordinates for scores, of keys for values. A value is
   paired with that of the next key, the last of an odd number with zeros; weights are rounded to bfloat16,
   which is all that is rounded but sums. Even head_dim only. */
#define HAI_KERNEL_BF16(isa)                                                                               \
  HAI_PRODUCTS(isa, 8, 8)                                                                                  \
  static void hai_pack_bf16_##isa(const void *const *row, hai_index dim, float factor, float *packed) {    \
    int i;                                                                                                 \
    hai_pack_##isa(row, dim / 2, 1.0f, packed);                                                            \
    for (i = 0; i < HAI_LANES_##isa; i++) packed[dim / 2 * HAI_LANES_##isa + i] = factor;                  \
  }                                                                                                        \
  static void hai_scores_bf16_##isa(const float *query, hai_index dim, const void *const *key, int n_keys, \
                                    int begin, int end, float *score) {                                    \
    hai_scores_##isa(query, dim / 2, key, n_keys, begin, end, score);                                      \
  }                                                                                                        \
  HAI_TARGET_##isa static void hai_pair_values_##isa(const void *const *value, int n_keys, hai_index at,   \
                                                     hai_bf16x2 *pair) {                                   \
    static const uint16_t none[8] = {0};                                                                   \
    int j;                                                                                                 \
    for (j = 0; j < n_keys; j += 2, pair += 8)                                                             \
      hai_zip_##isa(HAI_AS(const uint16_t *, value[j]) + at,                                               \
                    j + 1 < n_keys ? HAI_AS(const uint16_t *, value[j + 1]) + at : none, pair);            \
  }                                                                                                        \
  HAI_TARGET_##isa static void hai_round_##isa(float *score, int n_keys, const float *factor, int begin,   \
                                               int end, float *sum) {                                      \
    static const hai_bf16x2 ones = {{0x3f80, 0x3f80}};                                                     \
    const hai_vector_##isa one = hai_each_##isa(&ones), zero = hai_zero_##isa();                           \
    int i, j;                                                                                              \
    for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                       \
      const float *at = score + i;                                                                         \
      float *pair = score + HAI_CHUNK * HAI_LANES_##isa + i;                                               \
      hai_vector_##isa even = zero, odd = zero, x;                                                         \
      for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES_##isa, pair += 2 * HAI_LANES_##isa) {       \
        x = hai_pair_##isa(hai_load_##isa(at), hai_load_##isa(at + HAI_LANES_##isa));                      \
        hai_store_##isa(pair, x);                                                                          \
        even = hai_dot_##isa(x, one, even);                                                                \
        x = hai_pair_##isa(hai_load_##isa(at + 2 * HAI_LANES_##isa),                                       \
                           hai_load_##isa(at + 3 * HAI_LANES_##isa));                                      \
        hai_store_##isa(pair + HAI_LANES_##isa, x);                                                        \
        odd = hai_dot_##isa(x, one, odd);                                                                  \
      }                                                                                                    \
      for (; j < n_keys; j += 2, at += 2 * HAI_LANES_##isa, pair += HAI_LANES_##isa) {                     \
        x = hai_pair_##isa(hai_load_##isa(at),                                                             \
                           j + 1 < n_keys ? hai_load_##isa(at + HAI_LANES_##isa) : zero);                  \
        hai_store_##isa(pair, x);                                                                          \
        even = hai_dot_##isa(x, one, even);                                                                \
      }                                                                                                    \
      even = hai_fma_##isa(hai_load_##isa(sum + i), hai_load_##isa(factor + i), hai_add_##isa(even, odd)); \
      hai_store_##isa(sum + i, even);                                                                      \
    }                                                                                                      \
  }                                                                                                        \
  static void hai_values_bf16_##isa(float *score, int n_keys, const void *const *value, hai_index dim,     \
                                    const float *factor, int begin, int end, float *o) {                   \
    hai_bf16x2 pair[HAI_CHUNK / 2][8];                                                                     \
    const void *row[HAI_CHUNK / 2];                                                                        \
    float *weight = score + HAI_CHUNK * HAI_LANES_##isa;                                                   \
    int pairs = (n_keys + 1) / 2, j;                                                                       \
    hai_index t, rest;                                                                                     \
    for (j = 0; j < pairs; j++) row[j] = pair[j];                                                          \
    for (t = 0; t + 8 <= dim; t += 8) {                                                                    \
      hai_pair_values_##isa(value, n_keys, t, pair[0]);                                                    \
      hai_values_##isa(weight, pairs, row, 8, factor, begin, end, o + t * HAI_LANES_##isa);                \
    }                                                                                                      \
    for (rest = 0; rest < dim - t; rest++)                                                                 \
      for (j = 0; j < pairs; j++) {                                                                        \
        pair[j][rest].x[0] = HAI_AS(const uint16_t *, value[2 * j])[t + rest];                             \
        pair[j][rest].x[1] =                                                                               \
            2 * j + 1 < n_keys ? HAI_AS(const uint16_t *, value[2 * j + 1])[t + rest] : 0;                 \
      }                                                                                                    \
    if (rest) hai_values_##isa(weight, pairs, row, rest, factor, begin, end, o + t * HAI_LANES_##isa);     \
  }

/* ======== kernel_avx512.h ======== */

/* ---- AVX-512: 16 lanes, tiles of 48; 24 accumulators + 3 packed + 1 broadcast = 28 of 32 registers ---- */

#if HAI_AVX512
/* What the functions may use, and what HAI_CPU_AVX512 promises: keep the two together. */
#define HAI_TARGET_avx512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
#define HAI_WIDTH_avx512 16
#define HAI_LANES_avx512 48
#define HAI_ELEMENT_avx512 float
#define hai_pack_rest_avx512 hai_pack_plain
#define HAI_FINISH_avx512(isa, R, N)
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
/* 16 elements */
HAI_TARGET_avx512 HAI_INLINE __m256i hai_halves_avx512(const void *p) {
  return _mm256_loadu_si256(HAI_AS(const __m256i *, p));
}
HAI_V_avx512 hai_f16_avx512(const void *p) { return _mm512_cvtph_ps(hai_halves_avx512(p)); }
HAI_V_avx512 hai_bf16_avx512(const void *p) {
  __m512i x = _mm512_cvtepu16_epi32(hai_halves_avx512(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
/* the first lane in all */
HAI_V_avx512 hai_first_avx512(__m512 x) { return _mm512_broadcastss_ps(_mm512_castps512_ps128(x)); }
HAI_V_avx512 hai_int8_avx512(const void *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(HAI_AS(const __m128i *, p))));
}
/* the larger; a NaN in a is passed over */
HAI_V_avx512 hai_max_avx512(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
/* x in the lanes of `bits`, -inf elsewhere */
HAI_V_avx512 hai_show_avx512(__m512 x, uint64_t bits) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(-hai_inf()), HAI_AS(__mmask16, bits), x);
}
/* 0 where x is -inf */
HAI_V_avx512 hai_or_zero_avx512(__m512 x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-hai_inf()), _CMP_NEQ_UQ), x);
}
/* 0 where x is NaN */
HAI_V_avx512 hai_known_avx512(__m512 x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
}
/* m and the largest score make the next reference */
HAI_V_avx512 hai_move_avx512(__m512 m, __m512 high) {
  __mmask16 steps = _mm512_cmp_ps_mask(high, _mm512_add_ps(m, _mm512_set1_ps(HAI_LEAP)), _CMP_LT_OQ);
  __mmask16 moves = _mm512_cmp_ps_mask(high, m, _CMP_GT_OQ);
  return _mm512_mask_add_ps(high, moves & steps, high, _mm512_set1_ps(HAI_AHEAD));
}
/* is any lane of a another than b's */
HAI_TARGET_avx512 HAI_INLINE int hai_differ_avx512(__m512 a, __m512 b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ) != 0;
}
/* e^x for x <= 0, below 2^-126 exactly 0: 2^floor(t) times a polynomial of degree 5 for 2^(t - floor(t)),
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
/* elements t .. t + 3 of rows 0, 4, 8, .. */
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

HAI_KERNEL(avx512, 8, 16)
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
    /* softmax */ hai_softmax_avx512,
    /* round */ HAI_NULL,
    /* values */ hai_values_avx512,
    /* scale */ hai_scale_avx512,
    /* carry */ hai_carry_avx512,
    /* gather */ hai_gather_avx512,
    /* sum_lanes */ hai_sum_lanes_avx512,
    /* extra_rows */ 0,
    /* value_multiple */ 1,
    /* enter */ hai_enter_x86,
    /* leave */ hai_leave_x86};
#endif

/* ======== kernel_avx512_bf16.h ======== */

/* ---- AVX-512 BF16: the same tile of pairs ---- */

#if HAI_AVX512_BF16
#define HAI_TARGET_avx512bf \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")))
#define HAI_WIDTH_avx512bf HAI_WIDTH_avx512
#define HAI_LANES_avx512bf HAI_LANES_avx512
#define HAI_ELEMENT_avx512bf hai_bf16x2
#define HAI_FINISH_avx512bf HAI_FINISH_PAIRS
typedef __m512 hai_vector_avx512bf;
#define HAI_V_avx512bf HAI_TARGET_avx512bf HAI_INLINE __m512
#define hai_zero_avx512bf hai_zero_avx512
#define hai_load_avx512bf hai_load_avx512
#define hai_store_avx512bf hai_store_avx512
#define hai_fma_avx512bf hai_fma_avx512
#define hai_mul_avx512bf hai_mul_avx512
#define hai_add_avx512bf hai_add_avx512
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
/* a in the low half of each lane, b in the high one */
HAI_V_avx512bf hai_pair_avx512bf(__m512 a, __m512 b) {
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(hai_zip_lanes_avx512bf(),
                                                      HAI_REINTERPRET(__m512i, _mm512_cvtne2ps_pbh(b, a))));
}
HAI_TARGET_avx512bf HAI_INLINE void hai_zip_avx512bf(const void *a, const void *b, hai_bf16x2 *pair) {
  __m128i x = _mm_loadu_si128(HAI_AS(const __m128i *, a));
  __m128i y = _mm_loadu_si128(HAI_AS(const __m128i *, b));
  _mm_storeu_si128(HAI_PLACE(__m128i, pair), _mm_unpacklo_epi16(x, y));
  _mm_storeu_si128(HAI_PLACE(__m128i, pair + 4), _mm_unpackhi_epi16(x, y));
}

HAI_KERNEL_BF16(avx512bf)
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
    /* softmax */ hai_softmax_avx512,
    /* round */ hai_round_avx512bf,
    /* values */ hai_values_bf16_avx512bf,
    /* scale */ hai_scale_avx512,
    /* carry */ hai_carry_avx512,
    /* gather */ hai_gather_avx512,
    /* sum_lanes */ hai_sum_lanes_avx512,
    /* extra_rows */ HAI_CHUNK / 2,
    /* value_multiple */ 1,
    /* enter */ hai_enter_x86,
    /* leave */ hai_leave_x86};
#endif

/* ======== kernel_amx.h ======== */

/* ---- AMX: the same products, 16 x 16 sums of 32 products at a time ----
   A tile register holds 16 rows of 64 bytes. Scores: 16 keys x 32 coordinates, as they lie, by the packed
   pairs of 16 queries. Values: 16 coordinates x 32 keys, transposed, by the pairs of weights of 16 queries.
   Tiles 0 to 2 are sums, one for each register of lanes; 3 is the left factor, 4 to 6 are the right ones.
   head_dim is a multiple of 32, value_dim of 16. */

#if HAI_AMX
#define HAI_TARGET_amx \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma,amx-tile,amx-bf16")))
#define HAI_AMX_ROWS 16                   /* of a tile register */
#define HAI_AMX_PRODUCTS 32               /* that a sum takes at a time */
#define HAI_AMX_TILE 256                  /* floats in 16 rows of 64 bytes */
#define HAI_AMX_ROOM (HAI_CHUNK / 2 + 11) /* weights; two tiles: values in pairs, and transposed */

HAI_TARGET_amx static uint32_t hai_enter_amx(void) {
  static const struct {
    uint8_t palette, start, none[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&shape);
  return hai_enter_x86();
}
HAI_TARGET_amx static void hai_leave_amx(uint32_t before) {
  _tile_release();
  hai_leave_x86(before);
}

/* Sums 0 .. n - 1 += tile 3 by the pairs at `right` [16][lanes]. */
HAI_TARGET_amx HAI_INLINE void hai_dot_amx(const float *right, int n) {
  const int stride = HAI_LANES_avx512 * HAI_AS(int, sizeof(float));
  _tile_loadd(4, right, stride);
  _tile_dpbf16ps(0, 3, 4);
  if (n < 2) return;
  _tile_loadd(5, right + 16, stride);
  _tile_dpbf16ps(1, 3, 5);
  if (n < 3) return;
  _tile_loadd(6, right + 32, stride);
  _tile_dpbf16ps(2, 3, 6);
}
HAI_TARGET_amx HAI_INLINE void hai_load_sums_amx(const float *from, int n) { /* [16][lanes] */
  const int stride = HAI_LANES_avx512 * HAI_AS(int, sizeof(float));
  _tile_loadd(0, from, stride);
  if (n > 1) _tile_loadd(1, from + 16, stride);
  if (n > 2) _tile_loadd(2, from + 32, stride);
}
HAI_TARGET_amx HAI_INLINE void hai_store_sums_amx(float *to, int n) {
  const int stride = HAI_LANES_avx512 * HAI_AS(int, sizeof(float));
  _tile_stored(0, to, stride);
  if (n > 1) _tile_stored(1, to + 16, stride);
  if (n > 2) _tile_stored(2, to + 32, stride);
}
/* gcc's loads of tiles do not say that they read memory. */
#define HAI_AMX_FENCE() __asm__ volatile("" ::: "memory")

/* The distance of 16 rows from one another; 0 if they are fewer, or if it varies. */
static ptrdiff_t hai_even_rows(const void *const *row, int n) {
  ptrdiff_t stride = n > 1 ? HAI_AS(const char *, row[1]) - HAI_AS(const char *, row[0]) : 0;
  int i;
  if (n < HAI_AMX_ROWS) return 0;
  for (i = 2; i < HAI_AMX_ROWS; i++)
    if (HAI_AS(const char *, row[i]) - HAI_AS(const char *, row[i - 1]) != stride) return 0;
  return stride;
}

HAI_TARGET_amx static void hai_scores_amx(const float *query, hai_index dim, const void *const *key,
                                          int n_keys, int begin, int end, float *score) {
  unsigned char copy[HAI_AMX_ROWS][64];
  const float *factor = query + dim / 2 * HAI_LANES_avx512;
  int n = (end - begin) / HAI_WIDTH_avx512, i, j, r;
  hai_index t;
  for (j = 0; j < n_keys; j += HAI_AMX_ROWS) {
    int rows = n_keys - j < HAI_AMX_ROWS ? n_keys - j : HAI_AMX_ROWS;
    ptrdiff_t stride = hai_even_rows(key + j, rows);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (t = 0; t < dim; t += HAI_AMX_PRODUCTS) {
      for (r = 0; r < rows && !stride; r++) /* a row beyond them spoils a score that nobody reads */
        HYPERATTN_MEMCPY(copy[r], HAI_AS(const uint16_t *, key[j + r]) + t, sizeof copy[r]);
      HAI_AMX_FENCE();
      if (stride)
        _tile_loadd(3, HAI_AS(const uint16_t *, key[j]) + t, stride);
      else
        _tile_loadd(3, copy, 64);
      hai_dot_amx(query + t / 2 * HAI_LANES_avx512 + begin, n);
    }
    hai_store_sums_amx(score + HAI_AS(hai_index, j) * HAI_LANES_avx512 + begin, n);
  }
  for (j = 0; j < n_keys; j++, score += HAI_LANES_avx512)
    for (i = begin; i < end; i += HAI_WIDTH_avx512)
      hai_store_avx512(score + i, hai_mul_avx512(hai_load_avx512(score + i), hai_load_avx512(factor + i)));
}

/* Coordinates at .. at + 15 of n <= 32 values, absent ones as zeros: to[coordinate][key]. */
HAI_TARGET_amx static void hai_turn_values_amx(const void *const *value, int n, hai_index at, float *pair,
                                               float *to) {
  const __m512i zip = hai_zip_lanes_avx512bf();
  const void *row[HAI_AMX_ROWS];
  int r;
  hai_index t;
  for (r = 0; r < HAI_AMX_ROWS; r++, pair += 16) {
    __m256i a = _mm256_setzero_si256(), b = a;
    if (2 * r < n) a = hai_halves_avx512(HAI_AS(const uint16_t *, value[2 * r]) + at);
    if (2 * r + 1 < n) b = hai_halves_avx512(HAI_AS(const uint16_t *, value[2 * r + 1]) + at);
    hai_store_avx512(pair, _mm512_castsi512_ps(_mm512_permutexvar_epi16(
                               zip, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1))));
    row[r] = pair;
  }
  for (t = 0; t < 16; t += 4, to += 64) {
    __m512 x0 = hai_gather4_avx512(row, t), x1 = hai_gather4_avx512(row + 1, t);
    __m512 x2 = hai_gather4_avx512(row + 2, t), x3 = hai_gather4_avx512(row + 3, t);
    hai_transpose4_avx512(&x0, &x1, &x2, &x3);
    hai_store_avx512(to, x0);
    hai_store_avx512(to + 16, x1);
    hai_store_avx512(to + 32, x2);
    hai_store_avx512(to + 48, x3);
  }
}

/* A tile register takes 16 pairs: absent ones weigh 0. */
static void hai_round_amx(float *score, int n_keys, const float *factor, int begin, int end, float *sum) {
  float *weight = score + HAI_CHUNK * HAI_LANES_avx512;
  int pairs = (n_keys + 1) / 2;
  hai_round_avx512bf(score, n_keys, factor, begin, end, sum);
  for (; pairs % HAI_AMX_ROWS; pairs++)
    HYPERATTN_MEMSET(weight + pairs * HAI_LANES_avx512, 0, HAI_LANES_avx512 * sizeof(float));
}

HAI_TARGET_amx static void hai_values_amx(float *score, int n_keys, const void *const *value, hai_index dim,
                                          const float *factor, int begin, int end, float *o) {
  float *weight = score + HAI_CHUNK * HAI_LANES_avx512;
  float *pair = weight + HAI_CHUNK / 2 * HAI_LANES_avx512, *turned = pair + HAI_AMX_TILE;
  int n = (end - begin) / HAI_WIDTH_avx512, scaled = 0, i, j;
  hai_index t;
  for (i = begin; i < end; i += HAI_WIDTH_avx512)
    scaled |= hai_differ_avx512(hai_load_avx512(factor + i), hai_set1_avx512(1.0f));
  for (t = 0; t < dim; t += HAI_AMX_ROWS, o += HAI_AMX_ROWS * HAI_LANES_avx512) {
    if (scaled) hai_scale_avx512(o, HAI_AMX_ROWS, factor, begin, end);
    HAI_AMX_FENCE();
    hai_load_sums_amx(o + begin, n);
    for (j = 0; j < n_keys; j += HAI_AMX_PRODUCTS) {
      hai_turn_values_amx(value + j, n_keys - j, t, pair, turned);
      HAI_AMX_FENCE();
      _tile_loadd(3, turned, 64);
      hai_dot_amx(weight + j / 2 * HAI_LANES_avx512 + begin, n);
    }
    hai_store_sums_amx(o + begin, n);
  }
}

static const hai_kernel hai_kernel_amx = {
    /* isa */ HYPERATTN_ISA_AMX_BF16,
    /* dtype */ HYPERATTN_BF16,
    /* lanes */ HAI_LANES_avx512,
    /* width */ HAI_WIDTH_avx512,
    /* tiles */ 4,
    /* widen */ hai_widen_avx512,
    /* pack */ hai_pack_bf16_avx512bf,
    /* unpack */ hai_unpack_avx512,
    /* scores */ hai_scores_amx,
    /* softmax */ hai_softmax_avx512,
    /* round */ hai_round_amx,
    /* values */ hai_values_amx,
    /* scale */ hai_scale_avx512,
    /* carry */ hai_carry_avx512,
    /* gather */ hai_gather_avx512,
    /* sum_lanes */ hai_sum_lanes_avx512,
    /* extra_rows */ HAI_AMX_ROOM,
    /* value_multiple */ HAI_AMX_ROWS,
    /* enter */ hai_enter_amx,
    /* leave */ hai_leave_amx};
#endif

/* ======== kernel_avx2.h ======== */

/* ---- AVX2, FMA: 8 lanes, tiles of 24; 12 accumulators + 3 packed + 1 broadcast = 16 of 16 registers ---- */

#if HAI_AVX2
#define HAI_TARGET_avx2 __attribute__((target("avx2,fma,f16c")))
#define HAI_WIDTH_avx2 8
#define HAI_LANES_avx2 24
#define HAI_ELEMENT_avx2 float
#define hai_pack_rest_avx2 hai_pack_plain
#define HAI_FINISH_avx2(isa, R, N)
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
/* 8 elements */
HAI_V_avx2 hai_f16_avx2(const void *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(HAI_AS(const __m128i *, p)));
}
HAI_V_avx2 hai_bf16_avx2(const void *p) {
  __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(HAI_AS(const __m128i *, p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
/* the first lane in all */
HAI_V_avx2 hai_first_avx2(__m256 x) { return _mm256_broadcastss_ps(_mm256_castps256_ps128(x)); }
HAI_V_avx2 hai_int8_avx2(const void *p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(HAI_AS(const __m128i *, p))));
}
/* the larger; a NaN in a is passed over */
HAI_V_avx2 hai_max_avx2(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
/* x in the lanes of `bits`, -inf elsewhere */
HAI_V_avx2 hai_show_avx2(__m256 x, uint64_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256i shown =
      _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(HAI_AS(int, bits & 255)), lane), lane);
  return _mm256_blendv_ps(_mm256_set1_ps(-hai_inf()), x, _mm256_castsi256_ps(shown));
}
/* 0 where x is -inf */
HAI_V_avx2 hai_or_zero_avx2(__m256 x) {
  return _mm256_and_ps(x, _mm256_cmp_ps(x, _mm256_set1_ps(-hai_inf()), _CMP_NEQ_UQ));
}
/* 0 where x is NaN */
HAI_V_avx2 hai_known_avx2(__m256 x) { return _mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q)); }
/* m and the largest score make the next reference */
HAI_V_avx2 hai_move_avx2(__m256 m, __m256 high) {
  __m256 steps = _mm256_cmp_ps(high, _mm256_add_ps(m, _mm256_set1_ps(HAI_LEAP)), _CMP_LT_OQ);
  __m256 moves = _mm256_and_ps(_mm256_cmp_ps(high, m, _CMP_GT_OQ), steps);
  return _mm256_add_ps(high, _mm256_and_ps(moves, _mm256_set1_ps(HAI_AHEAD)));
}
/* is any lane of a another than b's */
HAI_TARGET_avx2 HAI_INLINE int hai_differ_avx2(__m256 a, __m256 b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ)) != 0;
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
/* elements t .. t + 3 of rows 0, 4, 8, .. */
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

HAI_KERNEL(avx2, 4, 8)
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
    /* softmax */ hai_softmax_avx2,
    /* round */ HAI_NULL,
    /* values */ hai_values_avx2,
    /* scale */ hai_scale_avx2,
    /* carry */ hai_carry_avx2,
    /* gather */ hai_gather_avx2,
    /* sum_lanes */ hai_sum_lanes_avx2,
    /* extra_rows */ 0,
    /* value_multiple */ 1,
    /* enter */ hai_enter_x86,
    /* leave */ hai_leave_x86};
#endif

/* ======== kernel_neon.h ======== */

/* ---- NEON: 4 lanes, tiles of 12; 24 accumulators + 3 packed + 1 broadcast = 28 of 32 registers ---- */

#if HAI_NEON
#define HAI_TARGET_neon
#define HAI_WIDTH_neon 4
#define HAI_LANES_neon 12
#define HAI_ELEMENT_neon float
#define hai_pack_rest_neon hai_pack_plain
#define HAI_FINISH_neon(isa, R, N)
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
/* 4 elements */
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
/* the first lane in all */
HAI_V_neon hai_first_neon(float32x4_t x) { return vdupq_laneq_f32(x, 0); }
HAI_V_neon hai_int8_neon(const void *p) {
  int32_t four;
  HYPERATTN_MEMCPY(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
/* the larger; a NaN in a is passed over */
HAI_V_neon hai_max_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
/* x in the lanes of `bits`, -inf elsewhere */
HAI_V_neon hai_show_neon(float32x4_t x, uint64_t bits) {
  static const uint32_t lane[4] = {1, 2, 4, 8};
  return vbslq_f32(vtstq_u32(vdupq_n_u32(HAI_AS(uint32_t, bits)), vld1q_u32(lane)), x,
                   vdupq_n_f32(-hai_inf()));
}
/* 0 where x is -inf */
HAI_V_neon hai_or_zero_neon(float32x4_t x) {
  return vbslq_f32(vceqq_f32(x, vdupq_n_f32(-hai_inf())), vdupq_n_f32(0.0f), x);
}
/* 0 where x is NaN */
HAI_V_neon hai_known_neon(float32x4_t x) { return vbslq_f32(vceqq_f32(x, x), x, vdupq_n_f32(0.0f)); }
/* m and the largest score make the next reference */
HAI_V_neon hai_move_neon(float32x4_t m, float32x4_t high) {
  uint32x4_t steps = vcltq_f32(high, vaddq_f32(m, vdupq_n_f32(HAI_LEAP)));
  uint32x4_t moves = vandq_u32(vcgtq_f32(high, m), steps);
  return vaddq_f32(high,
                   vreinterpretq_f32_u32(vandq_u32(moves, vreinterpretq_u32_f32(vdupq_n_f32(HAI_AHEAD)))));
}
/* is any lane of a another than b's */
HAI_INLINE int hai_differ_neon(float32x4_t a, float32x4_t b) { return vminvq_u32(vceqq_f32(a, b)) == 0; }
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

HAI_KERNEL(neon, 8, 16)
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
    /* softmax */ hai_softmax_neon,
    /* round */ HAI_NULL,
    /* values */ hai_values_neon,
    /* scale */ hai_scale_neon,
    /* carry */ hai_carry_neon,
    /* gather */ hai_gather_neon,
    /* sum_lanes */ hai_sum_lanes_neon,
    /* extra_rows */ 0,
    /* value_multiple */ 1,
    /* enter */ hai_enter_neon,
    /* leave */ hai_leave_neon};
#endif

/* ======== kernel_neon_bf16.h ======== */

/* ---- NEON BF16 (ARMv8.6), where the compiler may use it everywhere: the same tile of pairs ---- */

#if HAI_NEON_BF16
#define HAI_TARGET_neonbf
#define HAI_WIDTH_neonbf HAI_WIDTH_neon
#define HAI_LANES_neonbf HAI_LANES_neon
#define HAI_ELEMENT_neonbf hai_bf16x2
#define HAI_FINISH_neonbf HAI_FINISH_PAIRS
typedef float32x4_t hai_vector_neonbf;
#define hai_zero_neonbf hai_zero_neon
#define hai_load_neonbf hai_load_neon
#define hai_store_neonbf hai_store_neon
#define hai_fma_neonbf hai_fma_neon
#define hai_mul_neonbf hai_mul_neon
#define hai_add_neonbf hai_add_neon
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
/* a in the low half of each lane, b in the high one */
HAI_V_neon hai_pair_neonbf(float32x4_t a, float32x4_t b) {
  uint32x4_t low = vmovl_u16(vreinterpret_u16_bf16(vcvt_bf16_f32(a)));
  uint32x4_t high = vmovl_u16(vreinterpret_u16_bf16(vcvt_bf16_f32(b)));
  return vreinterpretq_f32_u32(vorrq_u32(low, vshlq_n_u32(high, 16)));
}
HAI_INLINE void hai_zip_neonbf(const uint16_t *a, const uint16_t *b, hai_bf16x2 *pair) {
  uint16x8x2_t both = vzipq_u16(vld1q_u16(a), vld1q_u16(b));
  HYPERATTN_MEMCPY(pair, &both.val[0], sizeof both.val[0]);
  HYPERATTN_MEMCPY(pair + 4, &both.val[1], sizeof both.val[1]);
}

HAI_KERNEL_BF16(neonbf)
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
    /* softmax */ hai_softmax_neon,
    /* round */ hai_round_neonbf,
    /* values */ hai_values_bf16_neonbf,
    /* scale */ hai_scale_neon,
    /* carry */ hai_carry_neon,
    /* gather */ hai_gather_neon,
    /* sum_lanes */ hai_sum_lanes_neon,
    /* extra_rows */ HAI_CHUNK / 2,
    /* value_multiple */ 1,
    /* enter */ hai_enter_neon,
    /* leave */ hai_leave_neon};
#endif

/* ======== kernel_end.h ======== */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif /* any vector ISA */

/* ======== detect.h ======== */

/* ---- CPU detection and choice ---- */

/* FAST: bfloat16 products are faster than float32's multiply-adds, as on AMD's cores; on Intel's they are
   half as fast. */
enum {
  HAI_CPU_KNOWN = 1,
  HAI_CPU_AVX2 = 2,
  HAI_CPU_AVX512 = 4,
  HAI_CPU_AVX512_BF16 = 8,
  HAI_CPU_AVX512_BF16_FAST = 16,
  HAI_CPU_AMX = 32
};

#if HAI_AVX512 || HAI_AVX2
/* CPUID leaf and subleaf into eax, ebx, ecx, edx. */
static void hai_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
}
/* Which register states the system saves: bit 1 SSE, 2 AVX, 5 to 7 AVX-512. Only after CPUID has shown
   OSXSAVE. */
static uint64_t hai_xcr0(void) {
  uint32_t low, high;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0"
                   : "=a"(low), "=d"(high)
                   : "c"(0)); /* xgetbv, for old assemblers */
  return HAI_AS(uint64_t, high) << 32 | low;
}

/* What both the processor offers and the system saves. Tests hand in their own two functions. */
static int hai_cpu_features(void (*cpuid)(uint32_t, uint32_t, uint32_t[4]), uint64_t (*xcr0)(void)) {
  uint32_t r[4], leaves;
  uint64_t saved;
  int features = HAI_CPU_KNOWN, is_amd, has_tiles;
  cpuid(0, 0, r);
  leaves = r[0];
  is_amd = r[1] == 0x68747541u && r[3] == 0x69746e65u && r[2] == 0x444d4163u; /* "AuthenticAMD" */
  if (leaves < 7) return features;
  cpuid(1, 0, r);
  if (!(r[2] >> 27 & 1)) return features; /* OSXSAVE */
  saved = xcr0();
  if ((saved & 0x06) != 0x06) return features;
  if (!(r[2] >> 28 & 1) || !(r[2] >> 12 & 1) || !(r[2] >> 29 & 1)) return features; /* AVX, FMA, F16C */
  cpuid(7, 0, r);
  if (!(r[1] >> 5 & 1)) return features; /* AVX2 */
  features |= HAI_CPU_AVX2;
  if ((saved & 0xe6) != 0xe6) return features;
  if ((r[1] >> 16 & 1) && (r[1] >> 17 & 1) && (r[1] >> 30 & 1) && (r[1] >> 31 & 1)) /* F, DQ, BW, VL */
    features |= HAI_CPU_AVX512;
  has_tiles = (r[3] >> 22 & 1) && (r[3] >> 24 & 1) && (saved & 0x60000) == 0x60000; /* BF16, TILE */
  if (!(features & HAI_CPU_AVX512) || !r[0]) return features;
  cpuid(7, 1, r);
  if (!(r[0] >> 5 & 1)) return features;
  if (has_tiles) features |= HAI_CPU_AMX;
  features |= HAI_CPU_AVX512_BF16 | (is_amd ? HAI_CPU_AVX512_BF16_FAST : 0);
  return features;
}

/* Asked once: CPUID is slow, above all in a virtual machine. Whoever comes first writes the same word as
   any other. */
static int hai_cpu(void) {
  static int word;
  int features = __atomic_load_n(&word, __ATOMIC_RELAXED);
  if (!features) {
    features = hai_cpu_features(hai_cpuid, hai_xcr0);
    __atomic_store_n(&word, features, __ATOMIC_RELAXED);
  }
  return features;
}
#endif

#if HAI_AMX
/* Has the process asked Linux for AMX's registers? Whoever uses them without has done something illegal. The
   answer can turn to yes at any time, never back, so only yes is remembered, and no size depends on it. */
static int hai_amx_permitted(void) {
  static int word;
  uint64_t mask = 0;
  long result = 158; /* arch_prctl */
  if (!(hai_cpu() & HAI_CPU_AMX)) return 0;
  if (__atomic_load_n(&word, __ATOMIC_RELAXED)) return 1;
  __asm__ volatile("syscall" /* ARCH_GET_XCOMP_PERM */
                   : "+a"(result)
                   : "D"(0x1022L), "S"(&mask)
                   : "rcx", "r11", "memory");
  if (result || !(mask >> 18 & 1)) return 0;
  __atomic_store_n(&word, 1, __ATOMIC_RELAXED);
  return 1;
}
#endif

/* The kernel of an ISA, NULL where this machine or build has none; AUTO: the widest. It reads float32. */
static const hai_kernel *hai_kernel_of(hyperattn_isa isa) {
  int any = isa == HYPERATTN_ISA_AUTO;
#if HAI_AVX512_BF16
  if (isa == HYPERATTN_ISA_AVX512_BF16 && (hai_cpu() & HAI_CPU_AVX512_BF16)) return &hai_kernel_avx512;
#endif
#if HAI_AMX
  if (isa == HYPERATTN_ISA_AMX_BF16 && hai_amx_permitted()) return &hai_kernel_avx512;
#endif
#if HAI_AVX512
  if ((any || isa == HYPERATTN_ISA_AVX512) && (hai_cpu() & HAI_CPU_AVX512)) return &hai_kernel_avx512;
#endif
#if HAI_AVX2
  if ((any || isa == HYPERATTN_ISA_AVX2) && (hai_cpu() & HAI_CPU_AVX2)) return &hai_kernel_avx2;
#endif
#if HAI_NEON
  if (any || isa == HYPERATTN_ISA_NEON) return &hai_kernel_neon;
#endif
  return any || isa == HYPERATTN_ISA_SCALAR ? &hai_kernel_scalar : HAI_NULL;
}

/* May AMX's kernel be chosen now, or, once the process asks for it, later? */
static int hai_may_use_amx(hyperattn_isa isa, hai_index head_dim, hai_index value_dim) {
#if HAI_AMX
  return (isa == HYPERATTN_ISA_AUTO || isa == HYPERATTN_ISA_AMX_BF16) && (hai_cpu() & HAI_CPU_AMX) &&
         head_dim % HAI_AMX_PRODUCTS == 0 && value_dim % HAI_AMX_ROWS == 0;
#else
  (void)isa, (void)head_dim, (void)value_dim;
  return 0;
#endif
}

/* The kernel that reads bfloat16 itself, NULL where there is none; AUTO: if it is the fastest one. */
static const hai_kernel *hai_kernel_of_bf16(hyperattn_isa isa, hai_index head_dim, hai_index value_dim) {
#if HAI_AMX
  if (hai_may_use_amx(isa, head_dim, value_dim) && hai_amx_permitted()) return &hai_kernel_amx;
#endif
  if (head_dim % 2) return HAI_NULL;
#if HAI_AVX512_BF16
  if (isa == HYPERATTN_ISA_AVX512_BF16 || isa == HYPERATTN_ISA_AMX_BF16 ||
      (isa == HYPERATTN_ISA_AUTO && (hai_cpu() & HAI_CPU_AVX512_BF16_FAST)))
    return &hai_kernel_avx512_bf16;
#endif
#if HAI_NEON_BF16
  if (isa == HYPERATTN_ISA_AUTO || isa == HYPERATTN_ISA_NEON) return &hai_kernel_neon_bf16;
#endif
  (void)isa, (void)value_dim;
  return HAI_NULL;
}

/* ======== arrays.h ======== */

/* ==== 5. Arrays of the workspace =====================================================================
   The table of arrays, a row for each: its name, the size of an element, the heads that it has a part for, how
   many elements such a part has (hai_count_.. in workspace.h), and the array whose place it takes. Most take
   their own. Those that take another's follow it, and come one behind the other from where it begins: they
   are done with before it is written, or it before they are.
   Where an array is [n_query] or [n_key] its rows are those of the tensor. Where it is cut by rectangles,
   blocks or chunks of keys, the rectangles of a level share it (their accessors say how), and it is used
   anew for each level. */
#define HAI_ARRAYS(X)                                                                            \
  /* lse of what each query has met so far: [n_query] */                                         \
  X(LSE, sizeof(float), HAI_OF_HEADS, hai_count_lse, LSE)                                        \
  /* the result so far, where out itself is not float32: [n_query][value_dim] */                 \
  X(OUT, sizeof(float), HAI_OF_HEADS, hai_count_out, OUT)                                        \
  /* sub-blocks of each query group, ascending: [groups][take] */                                \
  X(CHOICE, sizeof(int32_t), HAI_OF_HEADS, hai_count_choice, CHOICE)                             \
  /* bucket of each row */                                                                       \
  X(QUERY_CODE, sizeof(uint16_t), HAI_OF_HEADS, hai_count_sorted_queries, CHOICE)                \
  X(KEY_CODE, sizeof(uint16_t), HAI_OF_KV_HEADS, hai_count_sorted_keys, CHOICE)                  \
  /* mean key of each sub-block: [sub-blocks][head_dim] */                                       \
  X(MEAN, sizeof(float), HAI_OF_KV_HEADS, hai_count_mean, MEAN)                                  \
  /* row at each sorted position, rectangle by rectangle: [n_query], [n_key] */                  \
  X(QUERY_ORDER, sizeof(int32_t), HAI_OF_HEADS, hai_count_sorted_queries, QUERY_ORDER)           \
  X(KEY_ORDER, sizeof(int32_t), HAI_OF_KV_HEADS, hai_count_sorted_keys, KEY_ORDER)               \
  /* mean key of each superblock: [superblocks][head_dim] */                                     \
  X(SUPERBLOCK_MEAN, sizeof(float), HAI_OF_KV_HEADS, hai_count_superblock_mean, SUPERBLOCK_MEAN) \
  /* m and l of each probe over each chunk of keys: [chunks][probe_queries][2] */                \
  X(PARTIAL, sizeof(float), HAI_OF_HEADS, hai_count_partial, PARTIAL)                            \
  /* states of the held-out queries over each chunk of keys: [chunks][truth_floats] */           \
  X(TRUTH, sizeof(float), HAI_OF_HEADS, hai_count_truth, TRUTH)                                  \
  /* column masses, then sampling weights before they are mixed: [n_key] */                      \
  X(MASS, sizeof(float), HAI_OF_HEADS, hai_count_mass, TRUTH)                                    \
  /* for the report, sums of the probes' squared weights: [n_key] */                             \
  X(SQUARED_MASS, sizeof(float), HAI_OF_HEADS, hai_count_squared_mass, SQUARED_MASS)             \
  /* one bit for each key of a rectangle, in words */                                            \
  X(PINNED, sizeof(uint32_t), HAI_OF_HEADS, hai_count_pinned, PINNED)                            \
  /* keys that are pinned, ascending: [max_rects][max_pins] */                                   \
  X(PINS, sizeof(int32_t), HAI_OF_HEADS, hai_count_pins, PINS)                                   \
  /* columns of the draw and of the wide draw: [max_rects][sample_size + max_wide] */            \
  X(COLUMNS, sizeof(hai_column), HAI_OF_HEADS, hai_count_columns, COLUMNS)                       \
  /* how many pins, columns, and columns of the wide draw: [max_rects][3] */                     \
  X(COUNTS, sizeof(int32_t), HAI_OF_HEADS, hai_count_counts, COUNTS)                             \
  /* what the held-out queries chose: [max_rects] */                                             \
  X(VERDICT, sizeof(hai_verdict), HAI_OF_HEADS, hai_count_verdict, VERDICT)                      \
  /* what the report keeps of each rectangle, of all levels: [2 max_rects] */                    \
  X(RECORD, sizeof(hai_record), HAI_OF_HEADS, hai_count_record, RECORD)                          \
  /* ln of the largest residual sum of each task of sampled rows */                              \
  X(CAP, sizeof(float), HAI_OF_HEADS, hai_count_cap, CAP)

enum { HAI_OF_HEADS, HAI_OF_KV_HEADS };

typedef enum hai_array_id {
#define HAI_ARRAY_ID(name, size, heads, count, place) HAI_ARRAY_##name,
  HAI_ARRAYS(HAI_ARRAY_ID) HAI_N_ARRAYS
} hai_array_id;

/* Where everything lies, in bytes from the workspace's aligned begin. */
typedef struct hai_layout {
  size_t begin[HAI_N_ARRAYS];  /* of each array; one that a call does not need has no bytes */
  size_t stride[HAI_N_ARRAYS]; /* bytes of each array for one head */
  size_t scratch;              /* first worker's scratch, behind all arrays */
  size_t scratch_bytes;        /* of each worker */
  int overflow;                /* set where a size passes PTRDIFF_MAX; the rest then means nothing */
} hai_layout;

/* ======== plan.h ======== */

/* ==== 6. Plan ========================================================================================
   A call with everything made definite: defaults filled in, counts clamped to what exists, regions cut.

   Regions. Query i stands at position P = i + n_key - n_query; the causal square is the last
   min(n_query, n_key) queries and keys. It is cut in halves `depth` times; level e (0: the whole) has 2^e
   rectangles, the second half's queries by the first half's keys of each of its segments. What remains are
   2^depth diagonal segments, which are exact. Outside the square lies one more rectangle: the prefix of chunked
   prefill, or for full attention the whole problem. Levels run from the diagonal outward; the outer rectangle
   is the last. */

/* Blocks come by one or two pairings, 0 and 1, each an order of the rows and a choice of sub-blocks for each
   query group. HAI_NO_BLOCKS stands for neither. */
enum { HAI_NO_BLOCKS = 2 };

typedef struct hai_plan {
  const hyperattn_problem *problem;
  const hyperattn_params *params;
  const hai_kernel *float_kernel; /* takes rows of float32 */
  const hai_kernel *kernel; /* takes the problem's rows as they lie, where there is such a kernel, else the
                               float_kernel. Both have the same lanes and width. */
  int may_use_amx;          /* sizes suffice for AMX's kernel, and for the others */
  float scale;              /* of scores, never 0 */

  /* The problem's shape. */
  hai_index n_heads, n_kv_heads, n_query, n_key, head_dim, value_dim;
  hai_index heads_per_kv; /* query heads that share a kv head */

  /* The parameters' counts, none above the number of rows that exist. */
  hai_index min_seq_len, block_size, sample_size, query_group, key_group, sink_keys, heavy_keys,
      probe_queries;
  hai_index window; /* 0 in full attention */

  /* The regions. */
  hai_index square;     /* queries and keys of the causal square; 0 in full attention */
  hai_index query_skip; /* queries before the square */
  hai_index key_skip;   /* keys before the square */
  int depth;            /* levels of the causal split */
  int outer;            /* 1 if there is an outer rectangle, which is one more level */
  int outer_exact;      /* 1 if that is attended exactly */
  hai_index max_rects;  /* most rectangles of any level */

  /* Blocks and samples of an approximated rectangle. */
  int by_score;           /* 1 if groups choose sub-blocks by score, 0 if by rank */
  int take;               /* sub-blocks of each query group */
  int n_pairings;         /* 1, or 2 to be tried */
  int sorted[2];          /* 1 if a pairing's order is by hash, 0 if by position */
  int probing;            /* 1 if probes are run */
  int weighing;           /* 1 if columns are drawn by weights */
  int choosing;           /* 1 if held-out queries choose the recipe */
  int reporting;          /* 1 if a report is wanted */
  hai_index max_pins;     /* most pins of a rectangle */
  hai_index max_wide;     /* most columns of the wide draw; 0 if there is none */
  hai_index truth_floats; /* floats of the held-out queries' states: whole tiles of m, l [lanes] and
                             o [value_dim][lanes] */

  /* The stages that the call needs, as rows of hai_stages: first those before the levels, then those of every
     level, then those after the levels. */
  int n_before, n_per_level, n_after;
  unsigned char stages[HAI_MAX_STAGES];
  hai_layout layout;
} hai_plan;

typedef struct hai_rect {
  hai_index query_begin, n_query, key_begin, n_key;
  hai_index index;  /* within its level */
  hai_index region; /* number in the split, whatever the lengths: of its random numbers and its record */
} hai_rect;

/* Can held-out queries choose columns alone, a recipe with the wide draw and no blocks? */
static int hai_trying_columns(const hai_plan *plan) { return plan->choosing && plan->block_size > 0; }

/* Is Algorithm 2's normaliser asked for? */
static int hai_capping(const hai_plan *plan) {
  return plan->params->cap_epsilon > 0.0f || plan->params->cap_kappa > 0.0f;
}

/* Sub-blocks that a query group scores where it first chooses superblocks; the superblocks not counted. */
static hai_index hai_superblock_blocks(const hai_plan *plan, hai_index n_key) {
  return 2 * HAI_SUPERBLOCK * (hai_min(plan->block_size, n_key) / plan->key_group + 1);
}

/* Are sub-blocks chosen within superblocks that were chosen first? Only of many keys, if that is less work. */
static int hai_two_levels(const hai_plan *plan, hai_index n_key) {
  hai_index blocks = n_key / plan->key_group;
  return n_key > HAI_PAIR_DENSE && hai_superblock_blocks(plan, n_key) < blocks - blocks / HAI_SUPERBLOCK;
}

/* Products of mean queries and mean keys that pairing takes. Groups are not rounded up to whole ones: the share
   of all products must not rise with the sides, or a region that is worth approximating could cease to be so
   as it grows. */
static uint64_t hai_pairing_products(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  uint64_t dense, group = HAI_AS(uint64_t, plan->query_group);
  if (!plan->by_score) return 0;
  dense = HAI_AS(uint64_t, n_query) * HAI_AS(uint64_t, n_key) / (group * HAI_AS(uint64_t, plan->key_group));
  if (!hai_two_levels(plan, n_key)) return dense;
  return dense / HAI_SUPERBLOCK +
         HAI_AS(uint64_t, n_query) * HAI_AS(uint64_t, hai_superblock_blocks(plan, n_key)) / group;
}

/* Products that probing, judging, pairing and the budget take in a rectangle; exact attention takes
   n_query * n_key. */
static uint64_t hai_rect_products(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  hai_index pins = hai_min(hai_min(plan->heavy_keys, n_key) + hai_min(plan->sink_keys, n_key), n_key);
  hai_index budget = hai_min(plan->block_size, n_key) + hai_min(plan->sample_size, n_key) + pins;
  hai_index probes = hai_min(plan->probe_queries, n_query);
  if (plan->choosing) probes += hai_min(HAI_JUDGES, n_query);
  return HAI_AS(uint64_t, n_query) * HAI_AS(uint64_t, hai_min(budget, n_key)) +
         HAI_AS(uint64_t, probes) * HAI_AS(uint64_t, n_key) + hai_pairing_products(plan, n_query, n_key);
}

/* Is a rectangle worth approximating? */
static int hai_worth(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  return HAI_HYPER && plan->params->method == HYPERATTN_HYPER && n_key >= plan->min_seq_len &&
         hai_rect_products(plan, n_query, n_key) < HAI_AS(uint64_t, n_query) * HAI_AS(uint64_t, n_key);
}

static int hai_plan_levels(const hai_plan *plan) { return plan->depth + plan->outer; }

static hai_index hai_plan_rects(const hai_plan *plan, int level) {
  return level < plan->depth ? hai_power_of_2(plan->depth - 1 - level) : 1;
}

/* Rectangle `index` of a level, levels counted in the order in which they run. */
static hai_rect hai_rect_at(const hai_plan *plan, int level, hai_index index) {
  hai_rect r;
  r.index = index;
  if (level < plan->depth) {
    hai_index parts = 2 * hai_plan_rects(plan, level);
    hai_index begin = hai_cut(plan->square, parts, 2 * index);
    hai_index half = hai_cut(plan->square, parts, 2 * index + 1);
    hai_index end = hai_cut(plan->square, parts, 2 * index + 2);
    r.query_begin = plan->query_skip + half;
    r.n_query = end - half;
    r.key_begin = plan->key_skip + begin;
    r.n_key = half - begin;
    r.region = parts / 2 + index; /* heap numbering: 1, 2 3, 4 5 6 7, .. */
  } else {
    r.query_begin = plan->problem->causal ? plan->query_skip : 0;
    r.n_query = plan->n_query - r.query_begin;
    r.key_begin = 0;
    r.n_key = plan->problem->causal ? plan->key_skip : plan->n_key;
    r.region = 0;
  }
  return r;
}

/* Largest sides of a level's rectangles. */
static hai_index hai_level_queries(const hai_plan *plan, int level) {
  return level < plan->depth ? hai_ceil_div(plan->square, 2 * hai_plan_rects(plan, level))
                             : hai_rect_at(plan, level, 0).n_query;
}
static hai_index hai_level_keys(const hai_plan *plan, int level) {
  return level < plan->depth ? hai_ceil_div(plan->square, 2 * hai_plan_rects(plan, level))
                             : hai_rect_at(plan, level, 0).n_key;
}

/* Blocks of a rectangle: key sub-blocks, and query groups (by rank: as many as key blocks). */
static hai_index hai_key_parts(const hai_plan *plan, hai_index n_key) {
  if (!plan->block_size) return 0;
  return hai_ceil_div(n_key, plan->by_score ? plan->key_group : plan->block_size);
}
static hai_index hai_query_parts(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  return plan->by_score ? hai_ceil_div(n_query, plan->query_group) : hai_key_parts(plan, n_key);
}

/* Probing and judging are cut into chunks of keys: how many n_key keys have. */
static hai_index hai_chunks_of(hai_index n_key, hai_index least_keys, hai_index most_chunks) {
  return hai_ceil_div(n_key, hai_max(least_keys, hai_ceil_div(n_key, most_chunks)));
}
static hai_index hai_probe_chunks(hai_index n_key) {
  return hai_chunks_of(n_key, HAI_PROBE_KEYS, HAI_PROBE_CHUNKS);
}
static hai_index hai_judge_chunks(hai_index n_key) {
  return hai_chunks_of(n_key, HAI_JUDGE_KEYS, HAI_JUDGE_CHUNKS);
}

/* ======== workspace.h ======== */

/* ==== 7. Workspace ===================================================================================
   How many bytes each array takes, where it lies, and how a task finds its part of it. One function lays out,
   for the size query and for the run. Counts depend on shapes through functions that never fall as n_query or
   n_key rise, so neither does the size. */

typedef struct hai_column {
  int32_t key;
  int32_t block;    /* sub-block that holds the key in the pairing last tried or taken, -1 without blocks */
  float log_weight; /* ln of the inverse of its probability */
} hai_column;

/* What a rectangle's queries meet besides the pins. */
typedef enum hai_recipe {
  HAI_BLOCKS,  /* blocks and columns, as the parameters say */
  HAI_COLUMNS, /* the wide draw of columns: as many more as blocks have keys */
  HAI_BOTH,    /* blocks and the wide draw */
  HAI_ALL      /* every key */
} hai_recipe;

/* The recipe of a rectangle and head, and how it came to it. */
typedef struct hai_verdict {
  int32_t recipe, pairing;
  int32_t settled; /* 1: no further trials */
  int32_t tried;   /* how many pairings have been tried */
  float error;     /* relative error of the held-out queries */
} hai_verdict;

/* What the report keeps of a rectangle and head. */
typedef struct hai_record {
  int32_t recipe;
  int32_t tried;      /* how many pairings have been tried */
  int32_t n;          /* held-out queries */
  float keys;         /* that a query meets */
  float alpha, kappa; /* of hyperattn_report */
  struct {
    int32_t row;  /* -1: left out of the report */
    float error;  /* |out' - out|^2, out' by the rectangle's choice, out by all its keys */
    float norm;   /* |out|^2 */
    float whole;  /* lse after the rectangle, by all its keys */
    float rect;   /* lse of the choice */
    float blocks; /* share of the choice's attention that the blocks have */
    float pinned; /* and that the pins have */
  } query[HAI_AUDITORS];
} hai_record;

typedef struct hai_tile hai_tile;
static size_t hai_tile_bytes(const hai_plan *plan);
static size_t hai_chunk_bytes(const hai_plan *plan);
static int hai_tiles(const hai_plan *plan);

/* May a call with these parameters, so many keys, and any number of queries hold an approximated rectangle? A
   causal query's own key is in none. */
static int hai_may_approximate(const hai_plan *plan) {
  return HAI_HYPER && plan->params->method == HYPERATTN_HYPER &&
         plan->n_key >= plan->min_seq_len + plan->problem->causal;
}

/* Are running states stored in the workspace between phases? */
static int hai_stores_states(const hai_plan *plan) {
  return hai_may_approximate(plan) && (plan->problem->causal || plan->reporting);
}

/* ---- How many elements an array has for one head, in a call that may approximate ---- */

static size_t hai_product(hai_index a, hai_index b) {
  return hai_times(HAI_AS(size_t, a), HAI_AS(size_t, b));
}

static size_t hai_count_lse(const hai_plan *plan) {
  return HAI_AS(size_t, hai_stores_states(plan) ? plan->n_query : 0);
}
static size_t hai_count_out(const hai_plan *plan) {
  if (hai_is_f32(plan->problem->out.dtype)) return 0;
  return hai_times(hai_count_lse(plan), HAI_AS(size_t, plan->value_dim));
}
static size_t hai_count_choice(const hai_plan *plan) {
  if (!plan->by_score) return 0;
  return hai_product(hai_ceil_div(plan->n_query, plan->query_group) + plan->max_rects, plan->take);
}
static size_t hai_count_sorted_queries(const hai_plan *plan) {
  return HAI_AS(size_t, plan->sorted[plan->n_pairings - 1] ? plan->n_query : 0);
}
static size_t hai_count_sorted_keys(const hai_plan *plan) {
  return HAI_AS(size_t, plan->sorted[plan->n_pairings - 1] ? plan->n_key : 0);
}
static hai_index hai_means(const hai_plan *plan) {
  return plan->by_score ? hai_ceil_div(plan->n_key, plan->key_group) + plan->max_rects : 0;
}
static size_t hai_count_mean(const hai_plan *plan) { return hai_product(hai_means(plan), plan->head_dim); }
static size_t hai_count_superblock_mean(const hai_plan *plan) {
  hai_index n = hai_means(plan) / HAI_SUPERBLOCK;
  if (!plan->by_score || !hai_two_levels(plan, plan->n_key)) return 0;
  return hai_product(n + hai_min(plan->max_rects, plan->n_key / HAI_PAIR_DENSE) + 2, plan->head_dim);
}
/* Chunks of a level's rectangles: those of the outer one, or of many smaller ones, each of at least one. Half of
   the square's keys are in a level. */
static size_t hai_count_partial(const hai_plan *plan) {
  hai_index inner = hai_min(plan->n_query, plan->n_key) / 2 / HAI_PROBE_KEYS + plan->max_rects;
  if (!plan->probing) return 0;
  return hai_times(hai_product(hai_max(hai_probe_chunks(plan->n_key), inner), plan->probe_queries), 2);
}
/* Here a rectangle of the square has one chunk, or few and large ones. */
static size_t hai_count_truth(const hai_plan *plan) {
  hai_index inner = hai_max(hai_min(plan->n_query, plan->n_key) / HAI_JUDGE_KEYS, plan->max_rects);
  if (!plan->choosing && !plan->reporting) return 0;
  return hai_product(hai_max(hai_judge_chunks(plan->n_key), inner), plan->truth_floats);
}
static size_t hai_count_mass(const hai_plan *plan) {
  return HAI_AS(size_t, plan->probing || plan->weighing ? plan->n_key : 0);
}
static size_t hai_count_squared_mass(const hai_plan *plan) {
  return HAI_AS(size_t, plan->probing && plan->reporting ? plan->n_key : 0);
}
static size_t hai_count_pinned(const hai_plan *plan) {
  return HAI_AS(size_t, plan->n_key / 32 + 1 + plan->max_rects);
}
static size_t hai_count_pins(const hai_plan *plan) { return hai_product(plan->max_rects, plan->max_pins); }
static size_t hai_count_columns(const hai_plan *plan) {
  return hai_product(plan->max_rects, plan->sample_size + plan->max_wide);
}
static size_t hai_count_counts(const hai_plan *plan) { return hai_product(plan->max_rects, 3); }
static size_t hai_count_verdict(const hai_plan *plan) {
  return HAI_AS(size_t, plan->choosing ? plan->max_rects : 0);
}
static size_t hai_count_record(const hai_plan *plan) {
  return HAI_AS(size_t, plan->reporting ? 2 * plan->max_rects : 0);
}
static size_t hai_count_cap(const hai_plan *plan) {
  return HAI_AS(size_t, hai_ceil_div(plan->sample_size, HAI_TASK_QUERIES));
}

/* ---- Layout ---- */

typedef struct hai_array {
  size_t (*count)(const hai_plan *plan); /* elements for one head */
  unsigned short size;                   /* bytes of an element */
  unsigned char heads;                   /* HAI_OF_HEADS or HAI_OF_KV_HEADS */
  unsigned char place;                   /* hai_array_id of the array whose place it takes */
} hai_array;

static const hai_array hai_arrays[] = {
#define HAI_ARRAY(name, size, heads, count, place) {count, size, heads, HAI_ARRAY_##place},
    HAI_ARRAYS(HAI_ARRAY)};

/* Gives an array so many bytes from `begin` on, rounded up to HAI_ALIGN; returns where they end. */
static size_t hai_take(hai_layout *layout, size_t begin, size_t bytes) {
  size_t limit = PTRDIFF_MAX - 3 * HAI_ALIGN; /* slack and rounding fit too */
  if (bytes > limit || begin + bytes > limit) {
    layout->overflow = 1;
    return begin;
  }
  return begin + hai_round_up(bytes);
}

/* Lays out the arrays, one behind the other but for those that take another's place. */
static void hai_resolve_arrays(hai_plan *plan) {
  hai_layout *y = &plan->layout;
  int is_empty = !hai_may_approximate(plan), i;
  size_t end = 0, batch = HAI_AS(size_t, plan->problem->batch);
  y->scratch = 0;
  y->overflow = 0;
  for (i = 0; HAI_HYPER && i < HAI_N_ARRAYS; i++) {
    const hai_array *array = &hai_arrays[i];
    hai_index heads = array->heads == HAI_OF_HEADS ? plan->n_heads : plan->n_kv_heads;
    y->stride[i] = is_empty ? 0 : hai_times(array->count(plan), array->size);
    if (array->place == i) end = y->scratch;
    if (array->place == i - 1) end = y->begin[i - 1];
    y->begin[i] = end;
    end = hai_take(y, end, hai_times(hai_times(batch, HAI_AS(size_t, heads)), y->stride[i]));
    y->scratch = hai_most(y->scratch, end);
  }
}

/* Bytes for n workers, with the slack that aligns any workspace; 0: too many. */
static size_t hai_layout_size(const hai_layout *layout, int n_workers) {
  size_t limit = PTRDIFF_MAX - layout->scratch - HAI_ALIGN;
  if (HAI_AS(size_t, n_workers) > limit / layout->scratch_bytes) return 0;
  return layout->scratch + layout->scratch_bytes * HAI_AS(size_t, n_workers) + HAI_ALIGN - 1;
}

/* ---- Access: rows of tensors, and arrays for one head and one rectangle ---- */

/* What a task works on. */
typedef struct hai_job {
  const hai_plan *plan;
  char *base;    /* workspace, aligned */
  char *scratch; /* what the tile leaves of this worker's */
  hai_tile *tile;
  hai_index batch, head, kv_head; /* head is -1 in tasks of a kv head */
  int level;
  int pairing; /* 0, 1 or HAI_NO_BLOCKS */
  int audit;   /* 1 if the held-out queries are those of the report */
  hai_rect rect;
  hai_index chunk; /* of the rectangle, or of the call */
} hai_job;

static hai_index hai_flat_head(const hai_job *job) { return job->batch * job->plan->n_heads + job->head; }
static hai_index hai_flat_kv_head(const hai_job *job) {
  return job->batch * job->plan->n_kv_heads + job->kv_head;
}
/* The rectangle's number `index` for a purpose. */
static uint64_t hai_random_of(const hai_job *job, int purpose, hai_index index) {
  return hai_random(job->plan->params->seed, HAI_AS(uint64_t, job->rect.region), HAI_AS(uint64_t, purpose),
                    HAI_AS(uint64_t, index));
}
/* Bytes of so many elements. */
HAI_HOT ptrdiff_t hai_offset(hyperattn_dtype dtype, ptrdiff_t elements) {
  return elements / hai_unit(dtype) * HAI_AS(ptrdiff_t, hai_unit_bytes(dtype));
}
/* Where a row lies: so many bytes after its tensor's first. */
HAI_HOT ptrdiff_t hai_row_offset(const hyperattn_input *x, hai_index batch, hai_index head, hai_index row) {
  return hai_offset(x->dtype, batch * x->batch_stride + head * x->head_stride + row * x->row_stride);
}
HAI_HOT const char *hai_row(const hyperattn_input *x, hai_index batch, hai_index head, hai_index row) {
  return HAI_AS(const char *, x->data) + hai_row_offset(x, batch, head, row);
}
/* An output as a tensor that is read. */
static hyperattn_input hai_tensor_of(const hyperattn_output *out) {
  hyperattn_input x;
  x.data = out->data;
  x.dtype = out->dtype;
  x.batch_stride = out->batch_stride;
  x.head_stride = out->head_stride;
  x.row_stride = out->row_stride;
  return x;
}
static char *hai_out_row(const hyperattn_output *out, hai_index batch, hai_index head, hai_index row) {
  hyperattn_input x = hai_tensor_of(out);
  return HAI_AS(char *, out->data) + hai_row_offset(&x, batch, head, row);
}
/* A row in float32: itself, or widened into `room` [dim]. */
static const float *hai_read(const hai_job *job, const void *row, hyperattn_dtype dtype, hai_index dim,
                             float *room) {
  if (hai_is_f32(dtype)) return HAI_AS(const float *, row);
  job->plan->float_kernel->widen(row, dtype, dim, room);
  return room;
}
static const float *hai_query_row(const hai_job *job, hai_index head, hai_index row, float *room) {
  const hyperattn_problem *p = job->plan->problem;
  return hai_read(job, hai_row(&p->query, job->batch, head, row), p->query.dtype, job->plan->head_dim,
                  room);
}
static const float *hai_key_row(const hai_job *job, hai_index key, float *room) {
  const hyperattn_problem *p = job->plan->problem;
  return hai_read(job, hai_row(&p->key, job->batch, job->kv_head, key), p->key.dtype, job->plan->head_dim,
                  room);
}
static const float *hai_value_row(const hai_job *job, hai_index key, float *room) {
  const hyperattn_problem *p = job->plan->problem;
  return hai_read(job, hai_row(&p->value, job->batch, job->kv_head, key), p->value.dtype,
                  job->plan->value_dim, room);
}

/* ---- Arrays ---- */

/* An array's first byte for the job's head, or for its kv head. */
static char *hai_array_of(const hai_job *job, hai_array_id array) {
  const hai_layout *y = &job->plan->layout;
  hai_index head = hai_arrays[array].heads == HAI_OF_HEADS ? hai_flat_head(job) : hai_flat_kv_head(job);
  return job->base + y->begin[array] + y->stride[array] * HAI_AS(size_t, head);
}
static float *hai_floats(const hai_job *job, hai_array_id array) {
  return HAI_PLACE(float, hai_array_of(job, array));
}
static int32_t *hai_ints(const hai_job *job, hai_array_id array) {
  return HAI_PLACE(int32_t, hai_array_of(job, array));
}
/* Of all heads: stored lse at [flat head * n_query + row], stored outputs at value_dim times that. */
static float *hai_stored_lse(const hai_job *job) {
  return HAI_PLACE(float, job->base + job->plan->layout.begin[HAI_ARRAY_LSE]);
}
static float *hai_stored_out(const hai_job *job) {
  return HAI_PLACE(float, job->base + job->plan->layout.begin[HAI_ARRAY_OUT]);
}

static uint16_t *hai_codes(const hai_job *job, int of_key) {
  return HAI_PLACE(uint16_t, hai_array_of(job, of_key ? HAI_ARRAY_KEY_CODE : HAI_ARRAY_QUERY_CODE));
}
/* Is the pairing's order by hash? */
static int hai_sorting(const hai_job *job) {
  return job->pairing != HAI_NO_BLOCKS && job->plan->sorted[job->pairing];
}
/* Rows of the rectangle in the pairing's order: [sorted position], rows of the tensor. NULL where the order is by
   position: rows then follow one another from the rectangle's first. */
static int32_t *hai_query_order(const hai_job *job) {
  return hai_sorting(job) ? hai_ints(job, HAI_ARRAY_QUERY_ORDER) + job->rect.query_begin : HAI_NULL;
}
static int32_t *hai_key_order(const hai_job *job) {
  return hai_sorting(job) ? hai_ints(job, HAI_ARRAY_KEY_ORDER) + job->rect.key_begin : HAI_NULL;
}
HAI_HOT hai_index hai_at(const int32_t *order, hai_index first, hai_index i) {
  return order ? order[i] : first + i;
}
/* Rectangles of a level share an array of blocks: each begins at its first key (or query) over the block's
   size, plus its index, which makes up for the rounding of all before it. */
static float *hai_mean(const hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index first = job->rect.key_begin / plan->key_group + job->rect.index;
  return hai_floats(job, HAI_ARRAY_MEAN) + first * plan->head_dim;
}
static float *hai_superblock_mean(const hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index first =
      (job->rect.key_begin / plan->key_group + job->rect.index) / HAI_SUPERBLOCK + job->rect.index;
  return hai_floats(job, HAI_ARRAY_SUPERBLOCK_MEAN) + first * plan->head_dim;
}
/* Chunks of keys of each of the level's rectangles. */
static hai_index hai_job_probe_chunks(const hai_job *job) {
  return hai_probe_chunks(hai_level_keys(job->plan, job->level));
}
static hai_index hai_job_judge_chunks(const hai_job *job) {
  return hai_judge_chunks(hai_level_keys(job->plan, job->level));
}
/* First key of a chunk, of so many that the rectangle is cut into; of chunk `chunks`, one past its last key. */
static hai_index hai_chunk_begin(const hai_job *job, hai_index chunks, hai_index chunk) {
  return job->rect.key_begin + hai_cut(job->rect.n_key, chunks, chunk);
}
/* Of one chunk: [probe][2]. */
static float *hai_partial(const hai_job *job, hai_index chunk) {
  hai_index at = job->rect.index * hai_job_probe_chunks(job) + chunk;
  return hai_floats(job, HAI_ARRAY_PARTIAL) + 2 * at * job->plan->probe_queries;
}
/* Of one chunk: for each tile of held-out queries m, l [lanes], o [value_dim][lanes]. */
static float *hai_truth(const hai_job *job, hai_index chunk) {
  hai_index at = job->rect.index * hai_job_judge_chunks(job) + chunk;
  return hai_floats(job, HAI_ARRAY_TRUTH) + at * job->plan->truth_floats;
}
static float *hai_mass(const hai_job *job) { return hai_floats(job, HAI_ARRAY_MASS) + job->rect.key_begin; }
static float *hai_squared_mass(const hai_job *job) {
  return hai_floats(job, HAI_ARRAY_SQUARED_MASS) + job->rect.key_begin;
}
static uint32_t *hai_pinned(const hai_job *job) {
  return HAI_PLACE(uint32_t, hai_array_of(job, HAI_ARRAY_PINNED)) + job->rect.key_begin / 32 +
         job->rect.index;
}
HAI_HOT int hai_is_pinned(const hai_job *job, const uint32_t *pinned, hai_index key) {
  hai_index bit = key - job->rect.key_begin;
  return HAI_AS(int, pinned[bit / 32] >> (bit % 32) & 1);
}
static int32_t *hai_pins(const hai_job *job) {
  return hai_ints(job, HAI_ARRAY_PINS) + job->rect.index * job->plan->max_pins;
}
static hai_column *hai_columns(const hai_job *job, int wide) {
  const hai_plan *plan = job->plan;
  return HAI_PLACE(hai_column, hai_array_of(job, HAI_ARRAY_COLUMNS)) +
         job->rect.index * (plan->sample_size + plan->max_wide) + (wide ? plan->sample_size : 0);
}
/* Pins, columns, columns of the wide draw. */
static int32_t *hai_counts(const hai_job *job) {
  return hai_ints(job, HAI_ARRAY_COUNTS) + 3 * job->rect.index;
}
static int32_t *hai_choice(const hai_job *job, hai_index group) {
  const hai_plan *plan = job->plan;
  hai_index first = job->rect.query_begin / plan->query_group + job->rect.index;
  return hai_ints(job, HAI_ARRAY_CHOICE) + (first + group) * plan->take;
}
static hai_verdict *hai_verdict_of(const hai_job *job) {
  return HAI_PLACE(hai_verdict, hai_array_of(job, HAI_ARRAY_VERDICT)) + job->rect.index;
}
static int hai_takes_blocks(const hai_verdict *verdict, int pairing) {
  return verdict->pairing == pairing && (verdict->recipe == HAI_BLOCKS || verdict->recipe == HAI_BOTH);
}
static void hai_verdict_open(hai_verdict *verdict) {
  verdict->recipe = HAI_BLOCKS;
  verdict->pairing = verdict->settled = verdict->tried = 0;
  verdict->error = hai_inf();
}
static hai_record *hai_record_of(const hai_job *job) {
  return HAI_PLACE(hai_record, hai_array_of(job, HAI_ARRAY_RECORD)) + job->rect.region;
}
static float *hai_cap(const hai_job *job) { return hai_floats(job, HAI_ARRAY_CAP); }

/* ======== validation.h ======== */

/* ==== 8. Validation ==================================================================================
   The order of the checks is that in which a call with several mistakes is answered. */

/* ---- Shapes and parameters ---- */

static int hai_count_ok(int64_t n, int64_t least) { return n >= least && n <= 0x7fffffff; }
/* Is it one of an enumeration's values, 0 .. last? */
static int hai_listed(int64_t value, int64_t last) { return value >= 0 && value <= last; }

static hyperattn_status hai_check_shape(const hyperattn_problem *p) {
  const hyperattn_dtype dtype[4] = {p->query.dtype, p->key.dtype, p->value.dtype, p->out.dtype};
  int i;
  if (!hai_count_ok(p->batch, 0)) return HYPERATTN_ERROR_BATCH;
  if (!hai_count_ok(p->n_heads, 1)) return HYPERATTN_ERROR_N_HEADS;
  if (!hai_count_ok(p->n_kv_heads, 1) || p->n_kv_heads > p->n_heads) return HYPERATTN_ERROR_N_KV_HEADS;
  if (p->n_heads % p->n_kv_heads) return HYPERATTN_ERROR_HEAD_GROUPS;
  if (!hai_count_ok(p->n_query, 0)) return HYPERATTN_ERROR_N_QUERY;
  if (!hai_count_ok(p->n_key, 0)) return HYPERATTN_ERROR_N_KEY;
  if (p->head_dim < 1 || p->head_dim > HAI_MAX_DIM) return HYPERATTN_ERROR_HEAD_DIM;
  if (p->value_dim < 1 || p->value_dim > HAI_MAX_DIM) return HYPERATTN_ERROR_VALUE_DIM;
  if (p->causal != 0 && p->causal != 1) return HYPERATTN_ERROR_CAUSAL;
  if (!hai_finite(p->scale)) return HYPERATTN_ERROR_SCALE;
  for (i = 0; i < 4; i++)
    if (!hai_listed(HAI_AS(int, dtype[i]), HYPERATTN_Q8_0)) return HYPERATTN_ERROR_DTYPE;
  if (dtype[0] == HYPERATTN_Q8_0 || dtype[3] == HYPERATTN_Q8_0) return HYPERATTN_ERROR_DTYPE_UNSUPPORTED;
  for (i = 0; i < 4; i++)
    if (!HAI_HALVES && dtype[i] != HYPERATTN_F32) return HYPERATTN_ERROR_LEFT_OUT;
  if (!HAI_JUDGING && p->report) return HYPERATTN_ERROR_LEFT_OUT;
  if (hai_bits(p->softcap) << 1 || p->sliding_window || p->key_position) return HYPERATTN_ERROR_RESERVED;
  return HYPERATTN_OK;
}

/* Do held-out queries choose? */
static int hai_choosing(const hyperattn_params *p) {
  return p->tolerance > 0.0f || p->order == HYPERATTN_ORDER_PROBED;
}

static hyperattn_status hai_check_params(const hyperattn_params *p, int causal) {
  if (p->method != HYPERATTN_HYPER && p->method != HYPERATTN_EXACT) return HYPERATTN_ERROR_METHOD;
  if (p->min_seq_len < 1) return HYPERATTN_ERROR_MIN_SEQ_LEN;
  if (p->block_size < 0) return HYPERATTN_ERROR_BLOCK_SIZE;
  if (p->sample_size < 0) return HYPERATTN_ERROR_SAMPLE_SIZE;
  if (p->lsh_bits < 1 || p->lsh_bits > 16) return HYPERATTN_ERROR_LSH_BITS;
  if (p->query_group < 0 || p->key_group < 0 || !p->query_group != !p->key_group)
    return HYPERATTN_ERROR_GROUPS;
  if (!hai_listed(HAI_AS(int, p->order), HYPERATTN_ORDER_PROBED)) return HYPERATTN_ERROR_ORDER;
  if (p->sink_keys < 0) return HYPERATTN_ERROR_SINK_KEYS;
  if (p->heavy_keys < 0) return HYPERATTN_ERROR_HEAVY_KEYS;
  if (p->probe_queries < 0) return HYPERATTN_ERROR_PROBE_QUERIES;
  if (p->window < 0) return HYPERATTN_ERROR_WINDOW;
  if (!hai_listed(HAI_AS(int, p->sampling), HYPERATTN_SAMPLE_COLUMN_MASS)) return HYPERATTN_ERROR_SAMPLING;
  if (!hai_finite(p->tolerance) || p->tolerance < 0.0f) return HYPERATTN_ERROR_TOLERANCE;
  if (!hai_finite(p->cap_epsilon) || p->cap_epsilon < 0.0f || !hai_finite(p->cap_kappa) ||
      p->cap_kappa < 0.0f)
    return HYPERATTN_ERROR_CAP;
  if (!hai_listed(HAI_AS(int, p->isa), HYPERATTN_ISA_AMX_BF16)) return HYPERATTN_ERROR_ISA;
  if (!p->probe_queries && (p->heavy_keys || p->sampling == HYPERATTN_SAMPLE_COLUMN_MASS ||
                            p->order == HYPERATTN_ORDER_PROBED || p->tolerance > 0.0f))
    return HYPERATTN_ERROR_PROBES_NEEDED;
  if (causal && (p->cap_epsilon > 0.0f || p->cap_kappa > 0.0f)) return HYPERATTN_ERROR_CAP_CAUSAL;
  if (hai_choosing(p) && (p->cap_epsilon > 0.0f || p->cap_kappa > 0.0f)) return HYPERATTN_ERROR_CAP_CHOICE;
  if (p->method == HYPERATTN_HYPER && (!HAI_HYPER || (!HAI_JUDGING && hai_choosing(p))))
    return HYPERATTN_ERROR_LEFT_OUT;
  if (!hai_kernel_of(p->isa)) return HYPERATTN_ERROR_ISA_ABSENT;
  return HYPERATTN_OK;
}

/* Do counts exceed this machine's indices, or may tasks exceed INT64_MAX? */
static int hai_too_many(const hyperattn_problem *p) {
  uint64_t limit = HAI_MAX_INDEX, heads = HAI_AS(uint64_t, p->n_heads),
           n_query = HAI_AS(uint64_t, p->n_query);
  uint64_t rows = 2 * heads * (n_query + HAI_AS(uint64_t, p->n_key));
  return heads > limit || HAI_AS(uint64_t, p->n_key) > limit || HAI_AS(uint64_t, p->batch) > limit ||
         n_query > limit / heads || (rows && HAI_AS(uint64_t, p->batch) > INT64_MAX / rows);
}

/* ---- Pointers and strides ---- */

/* The bytes that a tensor [batch][heads][rows][dim] occupies: [data - before, data + after). */
typedef struct hai_extent {
  const char *data;
  size_t before, after;
} hai_extent;

/* Adds (n - 1) * stride elements of `size` bytes to a side of the extent; 0 where PTRDIFF_MAX is passed. */
static int hai_extent_add(hai_extent *extent, hai_index n, ptrdiff_t stride, size_t size) {
  size_t limit = PTRDIFF_MAX, count, apart;
  size_t *side = stride < 0 ? &extent->before : &extent->after;
  if (n <= 1 || stride == 0) return 1;
  count = HAI_AS(size_t, n - 1);
  apart = stride < 0 ? HAI_AS(size_t, -(stride + 1)) + 1 : HAI_AS(size_t, stride);
  if (apart > limit / size || count > limit / (apart * size)) return 0;
  if (*side > limit - count * apart * size) return 0;
  *side += count * apart * size;
  return extent->before <= limit - extent->after;
}

static int hai_extents_meet(const hai_extent *a, const hai_extent *b) {
  uintptr_t a_begin = HAI_REINTERPRET(uintptr_t, a->data) - a->before,
            a_end = HAI_REINTERPRET(uintptr_t, a->data) + a->after;
  uintptr_t b_begin = HAI_REINTERPRET(uintptr_t, b->data) - b->before,
            b_end = HAI_REINTERPRET(uintptr_t, b->data) + b->after;
  return a->data && b->data && a_begin < b_end && b_begin < a_end;
}

/* Do rows of a result share no element? True where each stride, from the smallest up, reaches past all
   elements that the smaller ones reach. */
static int hai_rows_apart(const ptrdiff_t stride[3], const hai_index n[3], hai_index dim) {
  int done[3] = {0, 0, 0}, i, round;
  hai_index reach = dim;
  for (round = 0; round < 3; round++) {
    int least = -1;
    for (i = 0; i < 3; i++)
      if (!done[i] && (least < 0 || stride[i] < stride[least])) least = i;
    done[least] = 1;
    if (n[least] <= 1) continue;
    if (stride[least] < reach) return 0;
    reach += (n[least] - 1) * stride[least];
  }
  return 1;
}

/* A call's buffers, added one by one: results first, then inputs. */
typedef struct hai_buffers {
  hyperattn_status status; /* of the first mistake; what is added later is not looked at */
  int n, n_results;
  hai_extent extent[7];
  hai_index batch, heads, rows; /* of the buffers that are added next */
} hai_buffers;

static hai_extent *hai_add_extent(hai_buffers *buffers, const void *data, size_t bytes) {
  hai_extent *extent = &buffers->extent[buffers->n++];
  extent->data = HAI_AS(const char *, data);
  extent->before = 0;
  extent->after = bytes;
  return extent;
}

/* Adds a tensor [batch][heads][rows][dim]. */
static void hai_add_tensor(hai_buffers *buffers, const hyperattn_input *x, hai_index dim, int is_result) {
  const ptrdiff_t stride[3] = {x->batch_stride, x->head_stride, x->row_stride};
  const hai_index n[3] = {buffers->batch, buffers->heads, buffers->rows};
  int unit = hai_unit(x->dtype), i;
  size_t bytes = hai_unit_bytes(x->dtype);
  hai_extent *extent;
  if (buffers->status != HYPERATTN_OK) return;
  extent = hai_add_extent(buffers, x->data, HAI_AS(size_t, hai_ceil_div(dim, unit)) * bytes);
  for (i = 0; i < 3 && buffers->status == HYPERATTN_OK; i++) {
    if (n[i] > 1 && stride[i] % unit)
      buffers->status = HYPERATTN_ERROR_STRIDE_Q8_0;
    else if (!hai_extent_add(extent, n[i], stride[i] / unit, bytes))
      buffers->status = HYPERATTN_ERROR_EXTENT;
  }
  if (buffers->status != HYPERATTN_OK) return;
  if (HAI_REINTERPRET(uintptr_t, x->data) % hai_alignment(x->dtype))
    buffers->status = HYPERATTN_ERROR_ALIGNMENT;
  else if (is_result && !hai_rows_apart(stride, n, dim))
    buffers->status = HYPERATTN_ERROR_OUT_STRIDE;
}

/* Adds a contiguous [batch][heads][rows] of things of `size` bytes that hold floats, which may be NULL. */
static void hai_add_flat(hai_buffers *buffers, const void *data, hai_index rows, size_t size) {
  size_t heads = hai_times(HAI_AS(size_t, buffers->batch), HAI_AS(size_t, buffers->heads));
  size_t bytes = hai_times(heads, hai_times(HAI_AS(size_t, rows), size));
  if (buffers->status != HYPERATTN_OK) return;
  hai_add_extent(buffers, data, bytes);
  if (bytes > PTRDIFF_MAX)
    buffers->status = HYPERATTN_ERROR_EXTENT;
  else if (HAI_REINTERPRET(uintptr_t, data) % sizeof(float))
    buffers->status = HYPERATTN_ERROR_ALIGNMENT;
}

/* No result may share a byte with anything else; inputs may share with one another. */
static hyperattn_status hai_check_overlap(const hai_buffers *buffers) {
  int i, j;
  for (i = 0; i < buffers->n_results && buffers->status == HYPERATTN_OK; i++)
    for (j = i + 1; j < buffers->n; j++)
      if (hai_extents_meet(&buffers->extent[i], &buffers->extent[j])) return HYPERATTN_ERROR_OVERLAP;
  return buffers->status;
}

HAI_APART hyperattn_status hai_check_buffers(const hai_plan *plan, const void *workspace,
                                             size_t workspace_size, int n_workers) {
  const hyperattn_problem *p = plan->problem;
  hyperattn_input out = hai_tensor_of(&p->out);
  hai_buffers buffers;
  size_t need;
  if (n_workers < 1) return HYPERATTN_ERROR_WORKERS;
  need = hai_layout_size(&plan->layout, n_workers);
  if (!need) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  if (!p->batch || !plan->n_query) return HYPERATTN_OK; /* nothing is read or written */
  if (!p->out.data) return HYPERATTN_ERROR_NULL_OUT;
  if (!p->query.data) return HYPERATTN_ERROR_NULL_QUERY;
  if (plan->n_key && !p->key.data) return HYPERATTN_ERROR_NULL_KEY;
  if (plan->n_key && !p->value.data) return HYPERATTN_ERROR_NULL_VALUE;
  if (!workspace) return HYPERATTN_ERROR_NULL_WORKSPACE;
  if (workspace_size < need) return HYPERATTN_ERROR_WORKSPACE_SIZE;
  HYPERATTN_MEMSET(&buffers, 0, sizeof buffers); /* status: ok */
  buffers.batch = hai_to_index(p->batch);
  buffers.heads = plan->n_heads;
  buffers.rows = plan->n_query;
  buffers.n_results = 4;
  hai_add_tensor(&buffers, &out, plan->value_dim, 1);
  hai_add_flat(&buffers, p->lse, plan->n_query, sizeof *p->lse);
  hai_add_flat(&buffers, p->report, 1, sizeof *p->report);
  if (buffers.status == HYPERATTN_OK) hai_add_extent(&buffers, workspace, need);
  hai_add_tensor(&buffers, &p->query, plan->head_dim, 0);
  buffers.heads = plan->n_kv_heads;
  buffers.rows = plan->n_key;
  if (plan->n_key) hai_add_tensor(&buffers, &p->key, plan->head_dim, 0);
  if (plan->n_key) hai_add_tensor(&buffers, &p->value, plan->value_dim, 0);
  return hai_check_overlap(&buffers);
}

/* Everything that hyperattn_merge checks. */
static hyperattn_status hai_check_merge(int64_t batch, int64_t n_heads, int64_t n_query, int64_t value_dim,
                                        const hyperattn_input *a, const float *lse_a,
                                        const hyperattn_input *b, const float *lse_b) {
  hai_buffers buffers;
  if (!hai_count_ok(batch, 0)) return HYPERATTN_ERROR_BATCH;
  if (!hai_count_ok(n_heads, 1)) return HYPERATTN_ERROR_N_HEADS;
  if (!hai_count_ok(n_query, 0)) return HYPERATTN_ERROR_N_QUERY;
  if (value_dim < 1 || value_dim > HAI_MAX_DIM) return HYPERATTN_ERROR_VALUE_DIM;
  if (!hai_listed(HAI_AS(int, a->dtype), HYPERATTN_Q8_0) ||
      !hai_listed(HAI_AS(int, b->dtype), HYPERATTN_Q8_0))
    return HYPERATTN_ERROR_DTYPE;
  if (a->dtype == HYPERATTN_Q8_0 || b->dtype == HYPERATTN_Q8_0) return HYPERATTN_ERROR_DTYPE_UNSUPPORTED;
  if (batch == 0 || n_query == 0) return HYPERATTN_OK;
  if (!a->data) return HYPERATTN_ERROR_NULL_OUT;
  if (!b->data) return HYPERATTN_ERROR_NULL_VALUE;
  if (!lse_a || !lse_b) return HYPERATTN_ERROR_NULL_LSE;
  HYPERATTN_MEMSET(&buffers, 0, sizeof buffers); /* status: ok */
  buffers.batch = hai_to_index(batch);
  buffers.heads = hai_to_index(n_heads);
  buffers.rows = hai_to_index(n_query);
  buffers.n_results = 2;
  hai_add_tensor(&buffers, a, hai_to_index(value_dim), 1);
  hai_add_flat(&buffers, lse_a, buffers.rows, sizeof *lse_a);
  hai_add_tensor(&buffers, b, hai_to_index(value_dim), 0);
  hai_add_flat(&buffers, lse_b, buffers.rows, sizeof *lse_b);
  return hai_check_overlap(&buffers);
}

/* ======== tiles.h ======== */

/* ==== 7. Tiles =======================================================================================
   A tile holds up to kernel->lanes queries and their running states. Keys come in chunks, whose rows the
   tiles of a task share where all meet the same ones, or are pushed one by one; each chunk goes through the
   kernel. The state of a query is (m, l, o): running maximum, sum of weights, unnormalised output;
   out = o / l and lse = m + ln l. Between phases a state rests as these: lse in the workspace, out in its own
   place. */

/* Consecutive lanes of one query group. */
typedef struct hai_group {
  int32_t id;
  int begin, end;        /* lanes */
  const int32_t *blocks; /* the group's sub-blocks, ascending */
  int n_blocks, at;      /* how many; how far a walk through them has come */
} hai_group;

/* The rows of a kv head, keys or values, and room for a chunk of them in float32 where they are not. */
typedef struct hai_rows {
  const char *first; /* row 0 */
  ptrdiff_t stride;  /* bytes */
  hyperattn_dtype dtype;
  hai_index dim;
  float *widened; /* [chunk][dim], or NULL */
} hai_rows;

struct hai_tile {
  const hai_kernel *kernel;
  float *query, *o;               /* [head_dim][lanes], [value_dim and rounded][lanes] */
  float *m, *l, *factor;          /* [lanes], [2][lanes], [lanes] */
  float *sum, *lost;              /* as o: what it has been carried to, and what rounding took from that */
  float *spare;                   /* 3 x [lanes]: for the stage's use */
  const float *clip;              /* NULL, or [lanes]: scores are cut at it */
  int n;                          /* queries in use: lanes 0 .. n - 1 */
  int begin, end;                 /* lanes that the next keys are for, whole registers */
  uint64_t used;                  /* which of those lanes hold queries */
  int guard;                      /* are keys hidden that their lanes must not even multiply by 0, */
  int spoilt;                     /* and is any value of this chunk known not to be finite */
  hai_index state[HAI_MAX_LANES]; /* index into lse: flat head * n_query + row */
  const void *row[HAI_MAX_LANES]; /* query rows, of the kernel's dtype */
  float *out[HAI_MAX_LANES];      /* output rows in float32, where they rest between phases, */
  void *result[HAI_MAX_LANES];    /* and the caller's, where that is not float32 */
  hai_index first[HAI_MAX_LANES], last[HAI_MAX_LANES]; /* keys that a lane may see */
  hai_index min_first, max_last;                       /* keys beyond are seen by none */
  hai_index max_first, min_last;                       /* keys between are seen by all */
  int chunks;                                          /* that the lanes aimed at have met */
  int carried;          /* how many arrays o has been carried to: none, sum alone, or sum and lost */
  int n_keys;           /* keys waiting */
  int masked, weighted; /* is any hidden from a lane in use; has any a log-weight */
  hai_index value_dim;  /* 0: only m and l are wanted */
  int n_groups;         /* query groups of the lanes, in order */
  hai_group group[HAI_MAX_LANES];
  /* shared by the tiles of a task: */
  hai_rows keys, values;
  float *score;              /* [chunk][lanes], and half as many rows again if the kernel reads bfloat16 */
  const void **key, **value; /* [chunk]: rows of the keys that wait, of the kernel's dtype */
  float *log_weight;         /* [chunk]: theirs, if any has one */
  float *line;               /* [lanes][line_dim]: rows of queries or outputs in float32, or NULL */
  hai_index line_dim;
  /* each tile's own: */
  int32_t id[HAI_CHUNK];   /* keys of a list, or sub-blocks where these are paired; */
  int held[HAI_MAX_LANES]; /* how many each lane holds so far */
  float *
      per_key; /* [chunk]: for the stage's use; [chunk][kernel->value_multiple] elements of values in a guard */
  uint64_t visible[HAI_CHUNK]; /* bit i: lane i sees the key */
};

static hai_index hai_per_key_floats(const hai_plan *plan) {
#if HAI_AMX
  if (plan->may_use_amx) return HAI_CHUNK * HAI_AMX_ROWS / 2;
#endif
  (void)plan;
  return HAI_CHUNK;
}

/* Rows of a tile's o: the coordinates of a value and, where weights are rounded, the sum of those. */
static hai_index hai_sum_rows(const hai_tile *tile) {
  return tile->value_dim + (HAI_ROUNDS && tile->value_dim && tile->kernel->round);
}
static hai_index hai_most_sum_rows(const hai_plan *plan) {
  return plan->value_dim + (HAI_ROUNDS && (plan->may_use_amx || plan->kernel->round));
}
/* May a tile meet so many keys that its sums are carried? */
static int hai_may_carry(const hai_plan *plan) {
  return HAI_LONG_SUMS && plan->n_key > HAI_CARRY_CHUNKS * HAI_CHUNK;
}

/* Bytes of a tile's own, without and with what it rarely touches. */
static size_t hai_tile_core_bytes(const hai_plan *plan) {
  size_t lanes = HAI_AS(size_t, plan->float_kernel->lanes), head_dim = HAI_AS(size_t, plan->head_dim);
  size_t floats = lanes * (head_dim + HAI_AS(size_t, hai_most_sum_rows(plan)) + 7);
  floats += HAI_AS(size_t, hai_per_key_floats(plan));
  return hai_round_up(sizeof(hai_tile)) + floats * sizeof(float) + 7 * HAI_ALIGN;
}
static size_t hai_tile_bytes(const hai_plan *plan) {
  size_t rows = hai_may_carry(plan) ? 2 * HAI_AS(size_t, hai_most_sum_rows(plan)) : 0;
  return hai_tile_core_bytes(plan) + rows * HAI_AS(size_t, plan->float_kernel->lanes) * sizeof(float) +
         2 * HAI_ALIGN;
}

/* Widened rows: [lanes] of queries or outputs (and single ones of any tensor), [chunk] of keys and values. */
static hai_index hai_line_dim(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  int is_float = hai_is_f32(p->query.dtype) && hai_is_f32(p->key.dtype) && hai_is_f32(p->value.dtype) &&
                 hai_is_f32(p->out.dtype);
  return is_float ? 0 : hai_max(plan->head_dim, plan->value_dim);
}
static hai_index hai_widened_floats(const hai_plan *plan, hyperattn_dtype dtype, hai_index dim) {
  int is_read = hai_is_f32(dtype) || (dtype == plan->kernel->dtype && !plan->may_use_amx);
  return is_read ? 0 : HAI_CHUNK * dim;
}
static hai_index hai_score_rows(const hai_plan *plan) {
  int room = plan->kernel->extra_rows;
#if HAI_AMX
  if (plan->may_use_amx) room = HAI_AS(int, hai_max(room, hai_kernel_amx.extra_rows));
#endif
  return HAI_CHUNK + room;
}
/* Bytes of what the tiles of a task share. */
static size_t hai_chunk_bytes(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  hai_index floats = HAI_CHUNK + plan->float_kernel->lanes * (hai_score_rows(plan) + hai_line_dim(plan)) +
                     hai_widened_floats(plan, p->key.dtype, plan->head_dim) +
                     hai_widened_floats(plan, p->value.dtype, plan->value_dim);
  return HAI_AS(size_t, floats) * sizeof(float) + 2 * HAI_CHUNK * sizeof(void *) + 4 * HAI_ALIGN;
}

/* Tiles of a task: what the kernel asks for, while they stay in the cache. */
static int hai_tiles(const hai_plan *plan) {
  if (HAI_MAX_TILES == 1) return 1; /* so that loops over tiles vanish */
  return hai_to_int(hai_max(1, hai_min(plan->float_kernel->tiles,
                                       HAI_TILES_BYTES / HAI_AS(hai_index, hai_tile_core_bytes(plan)))));
}

/* Memory for so many floats, NULL for none. */
static float *hai_carve(char **at, hai_index floats) {
  float *begin = HAI_PLACE(float, *at);
  *at += hai_round_up(HAI_AS(size_t, floats) * sizeof(float));
  return floats ? begin : HAI_NULL;
}

static hai_rows hai_rows_of(const hai_job *job, const hyperattn_input *x, hai_index dim, char **at) {
  hai_rows rows;
  rows.first = job->plan->n_key ? hai_row(x, job->batch, job->kv_head, 0) : HAI_NULL;
  rows.stride = job->plan->n_key > 1 ? hai_offset(x->dtype, x->row_stride) : 0;
  rows.dtype = x->dtype;
  rows.dim = dim;
  rows.widened = hai_carve(at, hai_widened_floats(job->plan, x->dtype, dim));
  return rows;
}

/* Lays a tile out at *at and moves *at behind it. Tiles after the first share its chunk. */
HAI_APART hai_tile *hai_tile_place(const hai_job *job, const hai_tile *first, char **at) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  hai_index lanes = plan->float_kernel->lanes;
  hai_tile *tile = HAI_PLACE(hai_tile, *at);
  *at += hai_round_up(sizeof(hai_tile));
  tile->kernel = plan->kernel;
  tile->query = hai_carve(at, plan->head_dim * lanes);
  tile->o = hai_carve(at, hai_most_sum_rows(plan) * lanes);
  tile->sum = hai_carve(at, hai_may_carry(plan) ? hai_most_sum_rows(plan) * lanes : 0);
  tile->lost = hai_carve(at, hai_may_carry(plan) ? hai_most_sum_rows(plan) * lanes : 0);
  tile->m = hai_carve(at, lanes);
  tile->l = hai_carve(at, 2 * lanes);
  tile->factor = hai_carve(at, lanes);
  tile->spare = hai_carve(at, 3 * lanes);
  tile->per_key = hai_carve(at, hai_per_key_floats(plan));
  if (first) {
    tile->keys = first->keys;
    tile->values = first->values;
    tile->score = first->score;
    tile->key = first->key;
    tile->value = first->value;
    tile->line = first->line;
    tile->line_dim = first->line_dim;
    tile->log_weight = first->log_weight;
    return tile;
  }
  tile->score = hai_carve(at, hai_score_rows(plan) * lanes);
  tile->keys = hai_rows_of(job, &p->key, plan->head_dim, at);
  tile->values = hai_rows_of(job, &p->value, plan->value_dim, at);
  tile->line_dim = hai_line_dim(plan);
  tile->line = hai_carve(at, lanes * tile->line_dim);
  tile->log_weight = hai_carve(at, HAI_CHUNK);
  tile->key = HAI_PLACE(const void *, *at);
  tile->value = tile->key + HAI_CHUNK;
  *at += 2 * HAI_CHUNK * sizeof(void *);
  return tile;
}

/* All tiles of a task: the job's, and further ones in its scratch. */
static int hai_tiles_place(hai_job *job, hai_tile **tiles) {
  int n = hai_tiles(job->plan), i;
  tiles[0] = job->tile;
  for (i = 1; i < n; i++) tiles[i] = hai_tile_place(job, tiles[0], &job->scratch);
  return n;
}

/* Room for a widened row, of lane i. */
static float *hai_line(const hai_tile *tile, int i) {
  return tile->line ? tile->line + i * tile->line_dim : HAI_NULL;
}

/* Row `row` of keys or values as the kernel reads it, widened where it must be into place j of the chunk. */
HAI_HOT const void *hai_rows_at(const hai_tile *tile, const hai_rows *rows, hai_index row, hai_index j) {
  const char *at = rows->first + row * rows->stride;
  if (hai_is_f32(rows->dtype) || rows->dtype == tile->kernel->dtype) return at;
  tile->kernel->widen(at, rows->dtype, rows->dim, rows->widened + j * rows->dim);
  return rows->widened + j * rows->dim;
}

HAI_HOT uint64_t hai_lane_bits(int begin, int end) {
  uint64_t below_end = end >= 64 ? UINT64_MAX : (UINT64_C(1) << end) - 1;
  return below_end & ~((UINT64_C(1) << begin) - 1);
}

/* The next keys are for queries [begin, end) of the tile: the registers that hold them take part. Where
   their sums are carried is counted from here. */
static void hai_tile_aim(hai_tile *tile, int begin, int end) {
  int width = tile->kernel->width;
  tile->chunks = 0;
  tile->begin = begin / width * width;
  tile->end = (end + width - 1) / width * width;
  tile->used = hai_lane_bits(tile->begin, hai_to_int(hai_min(tile->end, tile->n)));
}

/* Puts query `row` of a head into a lane; it may see keys first .. last. Fill lanes 0 .. n - 1 in turn. */
static void hai_tile_query(hai_job *job, int lane, hai_index head, hai_index row, hai_index first,
                           hai_index last) {
  const hyperattn_problem *p = job->plan->problem;
  hai_tile *tile = job->tile;
  if (hai_is_f32(tile->kernel->dtype))
    tile->row[lane] = hai_query_row(job, head, row, hai_line(tile, lane));
  else
    tile->row[lane] = hai_row(&p->query, job->batch, head, row);
  tile->state[lane] = (job->batch * job->plan->n_heads + head) * job->plan->n_query + row;
  tile->result[lane] = hai_out_row(&p->out, job->batch, head, row);
  tile->out[lane] = hai_is_f32(p->out.dtype) ? HAI_AS(float *, tile->result[lane])
                    : hai_stores_states(job->plan)
                        ? hai_stored_out(job) + tile->state[lane] * job->plan->value_dim
                        : hai_line(tile, lane);
  tile->first[lane] = first;
  tile->last[lane] = last;
}

/* n queries are in place: packs them times `scale` and starts empty states. */
static void hai_tile_open(hai_job *job, int n, float scale, hai_index value_dim) {
  hai_tile *tile = job->tile;
  int i, lanes = tile->kernel->lanes;
  tile->n = n;
  tile->n_keys = tile->masked = tile->weighted = tile->guard = tile->spoilt = tile->carried = 0;
  tile->clip = HAI_NULL;
  tile->value_dim = value_dim;
  tile->min_first = tile->max_first = tile->first[0];
  tile->min_last = tile->max_last = tile->last[0];
  for (i = 0; i < n; i++) {
    tile->min_first = hai_min(tile->min_first, tile->first[i]);
    tile->max_first = hai_max(tile->max_first, tile->first[i]);
    tile->min_last = hai_min(tile->min_last, tile->last[i]);
    tile->max_last = hai_max(tile->max_last, tile->last[i]);
  }
  for (i = 0; i < lanes; i++) {
    if (i >= n) tile->row[i] = tile->out[i] = HAI_NULL;
    tile->m[i] = -hai_inf();
    tile->l[i] = tile->l[lanes + i] = 0.0f;
  }
  tile->kernel->pack(tile->row, job->plan->head_dim, scale, tile->query);
  HYPERATTN_MEMSET(tile->o, 0, HAI_AS(size_t, hai_sum_rows(tile) * lanes) * sizeof(float));
  hai_tile_aim(tile, 0, n);
}

/* The lanes' states are now m, l and o alone. */
static void hai_tile_reset_sums(hai_tile *tile) {
  int lanes = tile->kernel->lanes;
  HYPERATTN_MEMSET(tile->l + lanes, 0, HAI_AS(size_t, lanes) * sizeof(float));
  if (HAI_ROUNDS && hai_sum_rows(tile) > tile->value_dim)
    HYPERATTN_MEMCPY(tile->o + tile->value_dim * lanes, tile->l, HAI_AS(size_t, lanes) * sizeof(float));
  tile->carried = 0;
}

/* Carries o in the lanes that are aimed at: (sum, lost) += o, o = 0. A sum that HAI_CARRY_CHUNKS chunks fill in
   turn, and whose rounding is kept, is right to 2e-6 however many they are. The first time the arrays change
   places, and nothing is lost yet. */
static void hai_tile_carry(hai_tile *tile) {
  size_t bytes = HAI_AS(size_t, hai_sum_rows(tile) * tile->kernel->lanes) * sizeof(float);
  if (HAI_SIMD && !tile->carried && tile->begin == 0 && tile->end >= tile->n) {
    float *o = tile->o;
    tile->o = tile->sum;
    tile->sum = o;
    HYPERATTN_MEMSET(tile->o, 0, bytes);
    tile->carried = 1;
    return;
  }
  if (!tile->carried) HYPERATTN_MEMSET(tile->sum, 0, bytes);
  if (tile->carried < 2) HYPERATTN_MEMSET(tile->lost, 0, bytes);
  tile->carried = 2;
  tile->kernel->carry(tile->o, hai_sum_rows(tile), tile->begin, tile->end, tile->sum, tile->lost);
}

/* Makes the states of all lanes (m, l, o) again, out = o / l: takes back what was carried, and weighs o by
   exact over rounded weights. */
HAI_APART void hai_tile_settle(hai_tile *tile) {
  hai_index rows = hai_sum_rows(tile);
  int lanes = tile->kernel->lanes, i;
  if (HAI_LONG_SUMS && tile->carried) {
    hai_tile_aim(tile, 0, tile->n);
    tile->kernel->gather(tile->o, rows, tile->begin, tile->end, tile->sum,
                         tile->carried > 1 ? tile->lost : HAI_NULL);
  }
  if (HAI_ROUNDS && rows > tile->value_dim) {
    const float *rounded = tile->o + tile->value_dim * lanes;
    for (i = 0; i < lanes; i++) tile->factor[i] = rounded[i] == 0.0f ? 0.0f : tile->l[i] / rounded[i];
    tile->kernel->scale(tile->o, tile->value_dim, tile->factor, 0, lanes);
  }
  hai_tile_reset_sums(tile);
}

/* Takes up the states that earlier phases left. */
static void hai_tile_resume(hai_job *job) {
  hai_tile *tile = job->tile;
  int i;
  HYPERATTN_MEMCPY(tile->row, tile->out, sizeof tile->row); /* NULL in lanes without a query */
  job->plan->float_kernel->pack(tile->row, job->plan->value_dim, 1.0f, tile->o);
  for (i = 0; i < tile->n; i++) {
    tile->m[i] = hai_stored_lse(job)[tile->state[i]];
    tile->l[i] = tile->m[i] == -hai_inf() ? 0.0f : 1.0f;
  }
  hai_tile_reset_sums(tile);
}

/* Writes out and lse: the result, or what later phases take up. */
static void hai_tile_close(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hyperattn_dtype dtype = plan->problem->out.dtype;
  int resting = hai_stores_states(plan), i;
  hai_tile_settle(tile);
  for (i = 0; i < tile->n; i++) {
    float l = tile->l[i], lse = hai_state_lse(tile->m[i], l);
    tile->factor[i] = l == 0.0f ? 0.0f : 1.0f / l;
    if (plan->problem->lse) plan->problem->lse[tile->state[i]] = lse;
    if (resting) hai_stored_lse(job)[tile->state[i]] = lse;
  }
  tile->kernel->unpack(tile->o, plan->value_dim, tile->factor, tile->out);
  for (i = 0; i < tile->n && !hai_is_f32(dtype); i++)
    hai_narrow(tile->out[i], plan->value_dim, dtype, tile->result[i]);
}

/* The states of all lanes, put aside and taken back: m, l [lanes], o [value_dim][lanes]. */
static void hai_tile_save(hai_tile *tile, float *state) {
  size_t lanes = HAI_AS(size_t, tile->kernel->lanes);
  hai_tile_settle(tile);
  HYPERATTN_MEMCPY(state, tile->m, lanes * sizeof(float));
  HYPERATTN_MEMCPY(state + lanes, tile->l, lanes * sizeof(float));
  HYPERATTN_MEMCPY(state + 2 * lanes, tile->o, HAI_AS(size_t, tile->value_dim) * lanes * sizeof(float));
}
static void hai_tile_load(hai_tile *tile, const float *state) {
  size_t lanes = HAI_AS(size_t, tile->kernel->lanes);
  HYPERATTN_MEMCPY(tile->m, state, lanes * sizeof(float));
  HYPERATTN_MEMCPY(tile->l, state + lanes, lanes * sizeof(float));
  HYPERATTN_MEMCPY(tile->o, state + 2 * lanes, HAI_AS(size_t, tile->value_dim) * lanes * sizeof(float));
  hai_tile_reset_sums(tile);
}

/* Are all numbers of a row, float32 or bfloat16, finite? Eight bytes at a time: adding 1 to an exponent
   of all ones carries into the sign's place. */
static int hai_row_finite(const void *row, hyperattn_dtype dtype, hai_index n) {
  int is_float = hai_is_f32(dtype);
  uint64_t signs = is_float ? 0x8000000080000000u : 0x8000800080008000u;
  uint64_t ones = is_float ? 0x0080000000800000u : 0x0080008000800080u, eight, carries = 0;
  hai_index step = HAI_AS(hai_index, sizeof eight / hai_unit_bytes(dtype)), t;
  const char *at = HAI_AS(const char *, row);
  for (t = 0; t + step <= n; t += step, at += sizeof eight) {
    HYPERATTN_MEMCPY(&eight, at, sizeof eight);
    carries |= (eight & ~signs) + ones;
  }
  for (; t < n; t++) carries |= hai_finite(hai_get(row, dtype, t)) ? 0 : signs;
  return !(carries & signs);
}

/* Are the first n values of the chunk finite? */
static int hai_tile_clean(const hai_tile *tile, hai_index n) {
  hai_index j = 0;
  while (j < n && hai_row_finite(tile->value[j], tile->kernel->dtype, tile->value_dim)) j++;
  return j == n;
}

/* Is any of the kernel's step of coordinates from t on, in a row that is hidden from some lane, not
   finite? */
static int hai_tile_bad(const hai_tile *tile, hai_index t) {
  hyperattn_dtype dtype = tile->kernel->dtype;
  uint64_t all = hai_lane_bits(0, tile->n);
  int j;
  for (j = 0; j < tile->n_keys; j++)
    if ((tile->visible[j] & all) != all &&
        !hai_row_finite(HAI_AS(const char *, tile->value[j]) + HAI_AS(size_t, t) * hai_unit_bytes(dtype),
                        dtype, tile->kernel->value_multiple))
      return 1;
  return 0;
}

/* Values with a guard: 0 * inf is NaN, and a row must not feel a key that it may not see. Coordinates in
   which a hidden value is not finite, as few as the kernel takes, go through it alone, such values as 0, and
   then to the lanes that do see them; the order of sums, and so every other bit, stays. */
HAI_APART void hai_tile_values_guarded(hai_tile *tile) {
  hyperattn_dtype dtype = tile->kernel->dtype;
  size_t bytes = hai_unit_bytes(dtype);
  int lanes = tile->kernel->lanes, step = tile->kernel->value_multiple, i, j;
  hai_index t = 0, run;
  while (t < tile->value_dim) {
    for (run = t; run < tile->value_dim && !hai_tile_bad(tile, run);) run += step;
    for (j = 0; j < tile->n_keys; j++) /* queries are packed: their rows are done with */
      tile->row[j] = HAI_AS(const char *, tile->value[j]) + HAI_AS(size_t, t) * bytes;
    if (run > t) {
      tile->kernel->values(tile->score, tile->n_keys, tile->row, run - t, tile->factor, tile->begin,
                           tile->end, tile->o + t * lanes);
      t = run;
      continue;
    }
    for (j = 0; j < tile->n_keys; j++) {
      char *kept = HAI_PLACE(char, tile->per_key) + HAI_AS(size_t, j * step) * bytes;
      for (i = 0; i < step; i++) {
        float value = hai_get(tile->value[j], dtype, t + i);
        hai_put(kept, dtype, i, hai_finite(value) ? value : 0.0f);
      }
      tile->row[j] = kept;
    }
    tile->kernel->values(tile->score, tile->n_keys, tile->row, step, tile->factor, tile->begin, tile->end,
                         tile->o + t * lanes);
    for (run = t + step; t < run; t++)
      for (j = 0; j < tile->n_keys; j++) {
        float value = hai_get(tile->value[j], dtype, t);
        for (i = tile->begin; i < tile->end && !hai_finite(value); i++)
          if (tile->visible[j] >> i & 1) tile->o[t * lanes + i] += tile->score[j * lanes + i] * value;
      }
  }
}

static void hai_tile_clip(hai_tile *tile) {
  int lanes = tile->kernel->lanes, i, j;
  for (j = 0; j < tile->n_keys; j++)
    for (i = 0; i < tile->n; i++)
      if (tile->score[j * lanes + i] > tile->clip[i]) tile->score[j * lanes + i] = tile->clip[i];
}

/* Attends to the keys that wait. */
static void hai_tile_flush(hai_job *job) {
  hai_tile *tile = job->tile;
  const hai_kernel *kernel = tile->kernel;
  hai_index rows = hai_sum_rows(tile);
  int moved;
  if (!tile->n_keys) return;
  kernel->scores(tile->query, job->plan->head_dim, tile->key, tile->n_keys, tile->begin, tile->end,
                 tile->score);
  if (tile->clip) hai_tile_clip(tile);
  moved = kernel->softmax(tile->score, tile->n_keys, tile->weighted ? tile->log_weight : HAI_NULL,
                          tile->masked ? tile->visible : HAI_NULL, tile->begin, tile->end, tile->m, tile->l,
                          tile->factor);
  if (HAI_LONG_SUMS && rows && tile->sum) {
    if (tile->chunks && tile->chunks % HAI_CARRY_CHUNKS == 0) hai_tile_carry(tile);
    tile->chunks++;
    if (tile->carried && moved) kernel->scale(tile->sum, rows, tile->factor, tile->begin, tile->end);
    if (tile->carried > 1 && moved) kernel->scale(tile->lost, rows, tile->factor, tile->begin, tile->end);
  }
  if (HAI_ROUNDS && tile->value_dim && kernel->round)
    kernel->round(tile->score, tile->n_keys, tile->factor, tile->begin, tile->end,
                  tile->o + tile->value_dim * kernel->lanes);
  if (tile->value_dim && tile->masked && tile->spoilt)
    hai_tile_values_guarded(tile);
  else if (tile->value_dim)
    kernel->values(tile->score, tile->n_keys, tile->value, tile->value_dim, tile->factor, tile->begin,
                   tile->end, tile->o);
  tile->n_keys = tile->masked = tile->weighted = 0;
}

/* Lanes that may see a key, by their bounds. */
HAI_HOT uint64_t hai_tile_sees(const hai_tile *tile, hai_index key) {
  uint64_t bits = 0;
  int i;
  if (key >= tile->max_first && key <= tile->min_last) return UINT64_MAX;
  for (i = 0; i < tile->n; i++)
    bits |= HAI_AS(uint64_t, key >= tile->first[i] && key <= tile->last[i]) << i;
  return bits;
}

/* Key `key` at place j of the chunk; then who of a tile sees it, of the lanes in `bits`. */
HAI_HOT void hai_tile_put(hai_tile *tile, int j, hai_index key) {
  tile->key[j] = hai_rows_at(tile, &tile->keys, key, j);
  if (tile->value_dim) tile->value[j] = hai_rows_at(tile, &tile->values, key, j);
}
HAI_HOT void hai_tile_show(hai_tile *tile, int j, hai_index key, uint64_t bits) {
  bits &= hai_tile_sees(tile, key);
  tile->visible[j] = bits;
  tile->masked |= (bits & tile->used) != tile->used;
}

/* One more key, weight 1. A key that nobody sees still takes its place in the chunk: how sums are grouped
   must not depend on which queries share a tile. */
static void hai_tile_push(hai_job *job, hai_index key, uint64_t bits) {
  hai_tile *tile = job->tile;
  int j = tile->n_keys++;
  hai_tile_put(tile, j, key);
  hai_tile_show(tile, j, key, bits);
  if (tile->n_keys == HAI_CHUNK) hai_tile_flush(job);
}

/* Rows on the way from memory by the time they are multiplied: values while scores are. */
static void hai_rows_fetch(const hai_rows *rows, const void *row) {
  hai_index bytes = hai_offset(rows->dtype, rows->dim), t;
  for (t = 0; t < bytes; t += HAI_ALIGN) HAI_PREFETCH(HAI_AS(const char *, row) + t);
}

/* Keys begin .. end - 1 in a row, at most a chunk: their rows, once for all tiles; then who sees them, in a
   tile whose queries come in ascending order. */
static void hai_tile_rows(hai_tile *tile, hai_index begin, hai_index end) {
  hai_index j;
  for (j = 0; j < end - begin; j++) {
    hai_tile_put(tile, hai_to_int(j), begin + j);
    hai_rows_fetch(&tile->keys, tile->key[j]);
    if (tile->value_dim) hai_rows_fetch(&tile->values, tile->value[j]);
  }
}
static void hai_tile_fill(hai_tile *tile, hai_index begin, hai_index end) {
  int j, low = 0, high = 0;
  tile->n_keys = hai_to_int(end - begin);
  tile->masked = begin < tile->max_first || end - 1 > tile->min_last;
  for (j = 0; j < tile->n_keys && tile->masked; j++) { /* first and last rise from lane to lane */
    while (low < tile->n && tile->last[low] < begin + j) low++;
    while (high < tile->n && tile->first[high] <= begin + j) high++;
    tile->visible[j] = low < high ? hai_lane_bits(low, high) : 0;
  }
}

/* Some tiles, queries ascending, meet keys begin .. end - 1 in a row. Chunks begin at multiples of
   HAI_CHUNK, and a tile joins a chunk where any of its queries sees it: how sums are grouped does not depend
   on which queries share a tile. */
static void hai_tiles_run(hai_job *job, hai_tile *const *tiles, int n_tiles, hai_index begin,
                          hai_index end) {
  hai_index first = end, last = begin - 1, next;
  int i, spoilt;
  for (i = 0; i < n_tiles; i++) {
    first = hai_min(first, tiles[i]->min_first);
    last = hai_max(last, tiles[i]->max_last);
    hai_tile_aim(tiles[i], 0, tiles[i]->n);
  }
  begin = hai_max(begin, first / HAI_CHUNK * HAI_CHUNK);
  end = hai_min(end, last + 1);
  for (; begin < end; begin = next) {
    next = hai_min(end, (begin / HAI_CHUNK + 1) * HAI_CHUNK);
    hai_tile_rows(tiles[0], begin, next);
    spoilt = -1; /* not known */
    for (i = 0; i < n_tiles; i++) {
      if (next <= tiles[i]->min_first || begin > tiles[i]->max_last) continue;
      job->tile = tiles[i];
      hai_tile_fill(tiles[i], begin, hai_min(next, tiles[i]->max_last + 1));
      if (tiles[i]->guard && tiles[i]->masked && spoilt < 0)
        spoilt = !hai_tile_clean(tiles[0], next - begin);
      tiles[i]->spoilt = spoilt > 0;
      tiles[i]->chunks = hai_to_int(begin / HAI_CHUNK); /* from key 0, whichever queries share the tile */
      hai_tile_flush(job);
    }
  }
}

/* ======== hashing.h ======== */

/* ==== 8. Selection ===================================================================================
   Which keys, with which log-weight, a group of queries meets. Plain C; the only arithmetic in bulk is the
   kernel's products of a tile with a list of rows. */

/* ---- Hashing (Algorithm 1) ---- */

/* The position of Gray code `code`: neighbours in position differ in one bit of the code. */
static uint32_t hai_gray_decode(uint32_t code) {
  code ^= code >> 1;
  code ^= code >> 2;
  code ^= code >> 4;
  code ^= code >> 8;
  return code;
}

/* planes [bits][dim] of random signs: with +-1 every sum is rounded alike everywhere, so buckets are
   portable. */
static void hai_planes(uint64_t seed, int bits, hai_index dim, float *planes) {
  hai_index i;
  uint64_t word = 0;
  for (i = 0; i < bits * dim; i++) {
    if (i % 64 == 0) word = hai_random(seed, 0, HAI_FOR_PLANES, HAI_AS(uint64_t, i) / 64);
    planes[i] = word >> (i % 64) & 1 ? 1.0f : -1.0f;
  }
}

/* Is a pairing called for by job->head: to be tried, or once it was, as the choice? In tasks of a kv head, by
   any of its heads, unless it was the last that any of them tried: all about its keys is in place. */
static int hai_wanted(const hai_job *job) {
  hai_job each = *job;
  hai_index n = job->plan->heads_per_kv;
  int wanted = 0, tried = 0;
  if (!job->plan->choosing) return 1;
  for (each.head = job->kv_head * n; each.head < (job->kv_head + 1) * n; each.head++) {
    const hai_verdict *verdict = hai_verdict_of(&each);
    if (job->head >= 0 && job->head != each.head) continue;
    wanted |= verdict->tried <= job->pairing ? !verdict->settled : hai_takes_blocks(verdict, job->pairing);
    tried = verdict->tried > tried ? verdict->tried : tried;
  }
  return wanted && (job->head >= 0 || tried != job->pairing + 1);
}

/* Buckets of HAI_TASK_ROWS rows of a rectangle, of a query head or, with job->head < 0, of a kv head:
   code = Gray position of the signs of <row, plane>. Cost: rows * lsh_bits * head_dim. */
HAI_APART void hai_stage_hash(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  int of_key = job->head < 0, bits = plan->params->lsh_bits, lanes = plan->float_kernel->lanes, i, b;
  hai_index first = of_key ? job->rect.key_begin : job->rect.query_begin,
            row = first + job->chunk * HAI_TASK_ROWS;
  hai_index end = hai_min(row + HAI_TASK_ROWS, first + (of_key ? job->rect.n_key : job->rect.n_query));
  uint16_t *code = hai_codes(job, of_key);
  float *planes = HAI_PLACE(float, job->scratch);
  const void *plane[16];
  if (job->pairing && !hai_wanted(job)) return;
  hai_planes(plan->params->seed, bits, plan->head_dim, planes);
  for (b = 0; b < bits; b++) plane[b] = planes + b * plan->head_dim;
  for (; row < end; row += lanes) {
    int count = hai_to_int(hai_min(lanes, end - row));
    for (i = 0; i < lanes; i++)
      tile->row[i] = i >= count ? HAI_NULL
                     : of_key   ? hai_key_row(job, row + i, hai_line(tile, i))
                                : hai_query_row(job, job->head, row + i, hai_line(tile, i));
    /* a negative scale turns every query around */
    plan->float_kernel->pack(tile->row, plan->head_dim, of_key || plan->scale > 0.0f ? 1.0f : -1.0f,
                             tile->query);
    plan->float_kernel->scores(tile->query, plan->head_dim, plane, bits, 0, lanes, tile->score);
    for (i = 0; i < count; i++) {
      uint32_t gray = 0;
      for (b = 0; b < bits; b++) gray |= HAI_AS(uint32_t, tile->score[b * lanes + i] > 0.0f) << b;
      code[row + i] = HAI_AS(uint16_t, hai_gray_decode(gray));
    }
  }
}

/* ======== ordering.h ======== */

/* ---- Ordering ---- */

/* order = rows begin .. begin + n - 1, stably sorted by code[row]; count has 2^bits places. Cost: n +
   2^bits. */
static void hai_counting_sort(const uint16_t *code, hai_index begin, hai_index n, int bits, int32_t *count,
                              int32_t *order) {
  hai_index i, buckets = hai_power_of_2(bits);
  int32_t sum = 0;
  HYPERATTN_MEMSET(count, 0, HAI_AS(size_t, buckets) * sizeof(int32_t));
  for (i = 0; i < n; i++) count[code[begin + i]]++;
  for (i = 0; i < buckets; i++) {
    int32_t here = count[i];
    count[i] = sum;
    sum += here;
  }
  for (i = 0; i < n; i++) order[count[code[begin + i]]++] = hai_to_int(begin + i);
}

/* Sorts a rectangle's queries (one query head) or keys (one kv head) by bucket. No tile is needed: the
   counters take its place. */
HAI_APART void hai_stage_order(hai_job *job) {
  int of_key = job->head < 0;
  if (job->pairing && !hai_wanted(job)) return;
  hai_counting_sort(hai_codes(job, of_key), of_key ? job->rect.key_begin : job->rect.query_begin,
                    of_key ? job->rect.n_key : job->rect.n_query, job->plan->params->lsh_bits,
                    HAI_PLACE(int32_t, job->tile), of_key ? hai_key_order(job) : hai_query_order(job));
}

/* ======== probing.h ======== */

/* ---- Probing: what a few queries think of every key ---- */

/* The last key of a rectangle that the query at `row` meets there: its window is attended elsewhere. */
static hai_index hai_rect_last(const hai_plan *plan, hai_index row) {
  const hyperattn_problem *p = plan->problem;
  return p->causal ? row + plan->n_key - plan->n_query - plan->window : plan->n_key;
}

/* Puts query `row` of the rectangle into a lane. */
static void hai_rect_query(hai_job *job, int lane, hai_index row) {
  hai_tile_query(job, lane, job->head, row, 0, hai_rect_last(job->plan, row));
}

static hai_index hai_n_probes(const hai_job *job) {
  return hai_min(job->plan->probe_queries, job->rect.n_query);
}

/* Held-out queries of a rectangle: runs of HAI_JUDGE_RUN, one from each stratum; all, if there are few. */
static int hai_n_judges(const hai_job *job) {
  return hai_to_int(hai_min(job->audit ? HAI_AUDITORS : HAI_JUDGES, job->rect.n_query));
}
static hai_index hai_judge_runs(const hai_job *job) {
  return (job->audit ? HAI_AUDITORS : HAI_JUDGES) / HAI_JUDGE_RUN;
}
static int hai_all_judge(const hai_job *job) {
  return job->rect.n_query <= hai_judge_runs(job) * HAI_JUDGE_RUN;
}
static hai_index hai_judge_row(const hai_job *job, hai_index i) {
  hai_index runs = hai_judge_runs(job), run = i / HAI_JUDGE_RUN, n = job->rect.n_query, begin, size;
  if (hai_all_judge(job)) return job->rect.query_begin + i;
  begin = hai_cut(n, runs, run);
  size = hai_cut(n, runs, run + 1) - begin;
  begin += HAI_AS(hai_index,
                  hai_uniform(0, HAI_AS(uint64_t, size - HAI_JUDGE_RUN + 1),
                              hai_random_of(job, job->audit ? HAI_FOR_AUDITORS : HAI_FOR_JUDGES, run)));
  return job->rect.query_begin + begin + i % HAI_JUDGE_RUN;
}

/* Probe t of a rectangle: one query from each stratum. One that is to judge gives way to its neighbour. */
static hai_index hai_probe_row(const hai_job *job, hai_index t) {
  hai_index n = job->rect.n_query, runs = hai_judge_runs(job), run;
  hai_index row = hai_draw(n, hai_n_probes(job), t, hai_random_of(job, HAI_FOR_PROBES, t));
  row += job->rect.query_begin;
  if (n < 2 * HAI_JUDGES) return row;
  run = hai_judge_row(job, hai_part_of(n, runs, row - job->rect.query_begin) * HAI_JUDGE_RUN);
  if (row < run || row >= run + HAI_JUDGE_RUN) return row;
  return run > job->rect.query_begin ? run - 1 : run + HAI_JUDGE_RUN;
}

/* Opens at most n tiles of queries row_of(first) .. row_of(end - 1); returns how many. */
static int hai_tiles_open(hai_job *job, hai_tile *const *tiles, int n, hai_index first, hai_index end,
                          hai_index (*row_of)(const hai_job *, hai_index), hai_index value_dim) {
  const hai_plan *plan = job->plan;
  int opened, i;
  for (opened = 0; opened < n && first < end; opened++) {
    job->tile = tiles[opened];
    for (i = 0; i < plan->float_kernel->lanes && first < end; i++)
      hai_rect_query(job, i, row_of(job, first++));
    hai_tile_open(job, i, plan->scale, value_dim);
  }
  return opened;
}

/* Keys of this task's chunk. */
static hai_index hai_probe_begin(const hai_job *job, hai_index chunk) {
  return hai_chunk_begin(job, hai_job_probe_chunks(job), chunk);
}

/* m and l of every probe over one chunk of keys. Cost: probes * keys of the chunk. */
HAI_APART void hai_stage_probe(hai_job *job) {
  float *partial = hai_partial(job, job->chunk);
  hai_tile *tiles[HAI_MAX_TILES];
  int most = hai_tiles_place(job, tiles), n, i, t;
  hai_index first = 0, probes = hai_n_probes(job);
  while (first < probes) {
    n = hai_tiles_open(job, tiles, most, first, probes, hai_probe_row, 0);
    hai_tiles_run(job, tiles, n, hai_probe_begin(job, job->chunk), hai_probe_begin(job, job->chunk + 1));
    for (t = 0; t < n; t++)
      for (i = 0; i < tiles[t]->n; i++, first++) {
        partial[2 * first] = tiles[t]->m[i];
        partial[2 * first + 1] = tiles[t]->l[i];
      }
  }
}

/* Every probe's sum over the rectangle: its logarithm takes the place of the first chunk's maximum. +inf
   (all weights 0) where a probe saw nothing or nothing finite. Cost: probes * chunks. */
HAI_APART void hai_stage_sum(hai_job *job) {
  hai_index chunks = hai_job_probe_chunks(job), probes = hai_n_probes(job), c, i;
  for (i = 0; i < probes; i++) {
    float lse = -hai_inf();
    for (c = 0; c < chunks && lse != hai_inf(); c++) {
      const float *partial = hai_partial(job, c) + 2 * i;
      float part = hai_state_lse(partial[0], partial[1]);
      lse = part != part || part == hai_inf() ? hai_inf() : hai_log_add(lse, part);
    }
    hai_partial(job, 0)[2 * i] = lse == -hai_inf() ? hai_inf() : lse;
  }
}

/* For the report: over the lanes in use, the squares of what is in the place of the scores of n_keys keys. */
static void hai_add_squares(const hai_job *job, hai_index key, int n_keys, int anew) {
  const hai_tile *tile = job->tile;
  float *square = hai_squared_mass(job) + (key - job->rect.key_begin);
  int lanes = tile->kernel->lanes, i, j;
  for (j = 0; j < n_keys; j++) {
    if (anew) square[j] = 0.0f;
    for (i = 0; i < tile->n; i++) square[j] += tile->score[j * lanes + i] * tile->score[j * lanes + i];
  }
}

/* Adds what those probes of the tile that are in `good` give to the masses of keys key .. key + count - 1. */
static void hai_tile_mass(hai_job *job, hai_index key, int count, uint64_t good, float *mass) {
  hai_tile *tile = job->tile;
  int j;
  hai_tile_fill(tile, key, key + count);
  for (j = 0; j < count; j++) tile->visible[j] = tile->masked ? tile->visible[j] & good : good;
  /* with the reference set to lse, softmax leaves the normalised weights */
  HYPERATTN_MEMCPY(tile->m, tile->spare, HAI_AS(size_t, tile->kernel->lanes) * sizeof(float));
  tile->kernel->scores(tile->query, job->plan->head_dim, tile->key, count, tile->begin, tile->end,
                       tile->score);
  tile->kernel->softmax(tile->score, count, HAI_NULL, tile->visible, tile->begin, tile->end, tile->m,
                        tile->l, tile->factor);
  tile->kernel->sum_lanes(tile->score, count, tile->begin, tile->end, tile->per_key);
  for (j = 0; j < count; j++) mass[j] += tile->per_key[j];
}

/* Column masses of one chunk of keys: M_j = sum over probes of e^(s_pj - lse_p), and for the report the
   largest sum of squares of that, in the place of the first probe's sum. Cost: probes * keys. */
HAI_APART void hai_stage_mass(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tiles[HAI_MAX_TILES];
  float *mass = hai_mass(job) - job->rect.key_begin;
  hai_index begin = hai_probe_begin(job, job->chunk), end = hai_probe_begin(job, job->chunk + 1);
  hai_index first = 0, probes = hai_n_probes(job), key;
  int most = hai_tiles_place(job, tiles), lanes = plan->float_kernel->lanes, n, t, i;
  for (key = begin; key < end; key++) mass[key] = 0.0f;
  while (first < probes) {
    /* probes that saw something, all of it finite: a bad one has no say */
    uint64_t good[HAI_MAX_TILES] = {0};
    int anew = first == 0;
    n = hai_tiles_open(job, tiles, most, first, probes, hai_probe_row, 0);
    for (t = 0; t < n; t++)
      for (i = 0; i < lanes; i++) {
        float lse = i < tiles[t]->n ? hai_partial(job, 0)[2 * first++] : hai_inf();
        good[t] |= HAI_AS(uint64_t, hai_finite(lse)) << i;
        /* no score may move the reference, though lse is rounded */
        tiles[t]->spare[i] = hai_finite(lse) ? lse + 1e-6f * (1.0f + (lse < 0.0f ? -lse : lse)) : lse;
      }
    for (key = begin; key < end; key += HAI_CHUNK) {
      int count = hai_to_int(hai_min(HAI_CHUNK, end - key));
      hai_tile_rows(tiles[0], key, key + count);
      for (t = 0; t < n; t++) {
        job->tile = tiles[t];
        hai_tile_mass(job, key, count, good[t], mass + key);
        if (plan->reporting) hai_add_squares(job, key, count, anew && t == 0);
      }
    }
  }
  if (plan->reporting)
    hai_partial(job, job->chunk)[1] =
        hai_largest(hai_squared_mass(job) + (begin - job->rect.key_begin), end - begin);
}

/* In four sums, since one would wait for itself. */
static float hai_squared_norm(const float *row, hai_index dim) {
  float sum0 = 0.0f, sum1 = 0.0f, sum2 = 0.0f, sum3 = 0.0f;
  hai_index t;
  for (t = 0; t + 4 <= dim; t += 4) {
    sum0 += row[t] * row[t];
    sum1 += row[t + 1] * row[t + 1];
    sum2 += row[t + 2] * row[t + 2];
    sum3 += row[t + 3] * row[t + 3];
  }
  for (; t < dim; t++) sum0 += row[t] * row[t];
  return sum0 + sum1 + (sum2 + sum3);
}

/* Sampling weights of one chunk of keys, in the place of their masses: M_j |v_j|, or |v_j|^2. Not finite
   counts as 0. */
HAI_APART void hai_stage_weigh(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index begin = hai_probe_begin(job, job->chunk), end = hai_probe_begin(job, job->chunk + 1), key;
  float *mass = hai_mass(job) - job->rect.key_begin;
  for (key = begin; key < end; key++) {
    float norm = hai_squared_norm(hai_value_row(job, key, job->tile->line), plan->value_dim);
    mass[key] = plan->params->sampling == HYPERATTN_SAMPLE_VALUE_NORM ? norm : mass[key] * hai_sqrt(norm);
    if (!hai_finite(mass[key])) mass[key] = 0.0f;
  }
}

/* ======== best.h ======== */

/* ---- The k best of a stream ----
   A candidate is one word: its value, as bits in the order of the numbers, over the complement of its id. The
   larger word is the better candidate; ties go to the smaller id; NaN counts as -inf. The best so far
   stand in a heap, the worst of them on top. */

static uint64_t hai_candidate(float value, int32_t id) {
  uint32_t bits = hai_bits(value == value ? value + 0.0f : -hai_inf()); /* -0 + 0 = +0 */
  bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
  return HAI_AS(uint64_t, bits) << 32 | HAI_AS(uint32_t, ~id);
}
static int32_t hai_candidate_id(uint64_t candidate) {
  return HAI_AS(int32_t, ~HAI_AS(uint32_t, candidate));
}
static float hai_candidate_value(uint64_t candidate) {
  uint32_t bits = HAI_AS(uint32_t, candidate >> 32);
  return hai_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}

/* Sinks the word at `at` until no child among the first n is worse. */
static void hai_sink(uint64_t *heap, hai_index n, hai_index at) {
  uint64_t word = heap[at];
  hai_index child;
  while ((child = 2 * at + 1) < n) {
    if (child + 1 < n) child += heap[child + 1] < heap[child];
    if (heap[child] >= word) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = word;
}

/* Offers a candidate to the best *n of at most k so far. */
static void hai_offer(uint64_t *heap, int *n, int k, uint64_t candidate) {
  if (*n < k) {
    hai_index at = (*n)++;
    for (; at && heap[(at - 1) / 2] > candidate; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = candidate;
  } else if (k && candidate > heap[0]) {
    heap[0] = candidate;
    hai_sink(heap, k, 0);
  }
}

/* Empties the heap into its ids, ascending: ordered by complement alone, it gives up the largest id first. */
static void hai_heap_ids(uint64_t *heap, hai_index n, int32_t *id) {
  hai_index at;
  for (at = 0; at < n; at++) heap[at] = HAI_AS(uint32_t, heap[at]);
  for (at = n / 2; at-- > 0;) hai_sink(heap, n, at);
  for (at = n; at-- > 0;) {
    id[at] = hai_candidate_id(heap[0]);
    heap[0] = heap[at];
    hai_sink(heap, at, 0);
  }
}

/* ======== columns.h ======== */

/* ---- Pins and columns ---- */

/* Marks the rectangle's sinks and its keys of largest column mass, and lists them upwards. */
HAI_APART void hai_stage_pin(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index begin = job->rect.key_begin, end = begin + job->rect.n_key,
            sinks = hai_min(plan->sink_keys, end), key;
  uint32_t *pinned = hai_pinned(job);
  int32_t *pins = hai_pins(job), n = 0;
  int heavy = 0, i;
  HYPERATTN_MEMSET(pinned, 0, HAI_AS(size_t, hai_ceil_div(job->rect.n_key, 32)) * sizeof(uint32_t));
  if (plan->heavy_keys) {
    const float *mass = hai_mass(job) - begin;
    uint64_t *heap = HAI_PLACE(uint64_t, job->scratch);
    int k =
        hai_to_int(hai_min(plan->heavy_keys, end - hai_max(begin, sinks))); /* sinks are pinned anyway */
    for (key = hai_max(begin, sinks); key < end; key++)
      hai_offer(heap, &heavy, k, hai_candidate(mass[key], hai_to_int(key)));
    for (i = 0; i < heavy; i++) pins[i] = hai_candidate_id(heap[i]);
  }
  for (i = 0; i < heavy; i++) pinned[(pins[i] - begin) / 32] |= UINT32_C(1) << ((pins[i] - begin) % 32);
  for (key = begin; key < sinks; key++) pinned[(key - begin) / 32] |= UINT32_C(1) << ((key - begin) % 32);
  for (key = begin; key < end; key++)
    if (hai_is_pinned(job, pinned, key)) pins[n++] = hai_to_int(key);
  hai_counts(job)[0] = n;
}

static hai_column hai_column_at(const hai_job *job, hai_index rank, hai_index parts, float log_weight) {
  hai_column column;
  column.key = hai_to_int(hai_at(hai_key_order(job), job->rect.key_begin, rank));
  column.block = parts ? hai_to_int(hai_part_of(job->rect.n_key, parts, rank)) : -1;
  column.log_weight = log_weight;
  return column;
}

/* One key of each stratum of the n keys that are not pinned, in sorted order; m >= n: all of them,
   weight 1. */
static int32_t hai_draw_uniform(const hai_job *job, hai_index n, hai_index m, int purpose,
                                hai_column *columns) {
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  hai_index parts = hai_key_parts(job->plan, job->rect.n_key), rank, at = 0, t = 0, next = 0;
  m = hai_min(m, n);
  for (rank = 0; rank < job->rect.n_key && t < m; rank++) {
    if (hai_is_pinned(job, pinned, hai_at(order, job->rect.key_begin, rank))) continue;
    if (at == hai_cut(n, m, t)) next = hai_draw(n, m, t, hai_random_of(job, purpose, t));
    if (at == next)
      columns[t] =
          hai_column_at(job, rank, parts, hai_log(HAI_AS(float, hai_cut(n, m, t + 1) - hai_cut(n, m, t))));
    if (++at == hai_cut(n, m, t + 1)) t++;
  }
  return hai_to_int(m);
}

/* Units of 2^-44 of a key's probability 0.8 w / sum + 0.2 / n: whole numbers, so that the table adds up
   exactly. */
static uint64_t hai_units(float w, float sum, hai_index n) {
  float share = sum > 0.0f ? 0.8f * (w / sum) + 0.2f / HAI_AS(float, n) : 1.0f / HAI_AS(float, n);
  return HAI_AS(uint64_t, share * 17592186044416.0f) + 1;
}

/* A point in part t of m of [0, total); the part is [total t / m, total (t + 1) / m), cut without
   overflow. */
static uint64_t hai_point(const hai_job *job, uint64_t total, hai_index m, hai_index t, int purpose) {
  uint64_t whole = total / HAI_AS(uint64_t, m), rest = total % HAI_AS(uint64_t, m), i = HAI_AS(uint64_t, t);
  uint64_t begin = whole * i + rest * i / HAI_AS(uint64_t, m),
           end = whole * (i + 1) + rest * (i + 1) / HAI_AS(uint64_t, m);
  return hai_uniform(begin, end - begin, hai_random_of(job, purpose, t));
}

/* m points, one in each m-th part of the cumulative table; a key hit c times is one column of weight c /
   (m p). */
static int32_t hai_draw_weighted(const hai_job *job, hai_index n, hai_index m, int purpose,
                                 hai_column *columns) {
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  const float *weight = hai_mass(job) - job->rect.key_begin;
  hai_index parts = hai_key_parts(job->plan, job->rect.n_key), rank, t = 0;
  uint64_t total = 0, below = 0, point;
  int32_t count = 0;
  float sum = 0.0f;
  int pass;
  for (pass = 0; pass < 2; pass++) /* the sum of weights, then the table's total */
    for (rank = 0; rank < job->rect.n_key; rank++) {
      hai_index key = hai_at(order, job->rect.key_begin, rank);
      if (hai_is_pinned(job, pinned, key)) continue;
      if (pass == 0)
        sum += weight[key];
      else
        total += hai_units(weight[key], sum, n);
    }
  point = hai_point(job, total, m, 0, purpose);
  for (rank = 0; rank < job->rect.n_key && t < m; rank++) {
    uint64_t units;
    hai_index hits = 0, key = hai_at(order, job->rect.key_begin, rank);
    if (hai_is_pinned(job, pinned, key)) continue;
    units = hai_units(weight[key], sum, n);
    for (; t < m && point < below + units; hits++)
      if (++t < m) point = hai_point(job, total, m, t, purpose);
    if (hits)
      columns[count++] = hai_column_at(
          job, rank, parts,
          hai_log(HAI_AS(float, hits) / HAI_AS(float, m) * (HAI_AS(float, total) / HAI_AS(float, units))));
    below += units;
  }
  return count;
}

/* A draw of m from the n keys that are not pinned. */
static int32_t hai_draw_columns(const hai_job *job, hai_index n, hai_index m, int purpose,
                                hai_column *columns) {
  return job->plan->weighing && m > 0 && m < n ? hai_draw_weighted(job, n, m, purpose, columns)
                                               : hai_draw_uniform(job, n, m, purpose, columns);
}

/* Columns of a rectangle for one query head. Cost: O(n_key). */
HAI_APART void hai_stage_columns(hai_job *job) {
  const hai_plan *plan = job->plan;
  int32_t *counts = hai_counts(job);
  hai_index n = job->rect.n_key - counts[0];
  counts[1] = hai_draw_columns(job, n, plan->sample_size, HAI_FOR_COLUMNS, hai_columns(job, 0));
  counts[2] = hai_draw_columns(job, n, plan->max_wide, HAI_FOR_WIDE, hai_columns(job, 1));
  if (job->plan->choosing) hai_verdict_open(hai_verdict_of(job));
}

/* ======== pairing.h ======== */

/* ---- Pairing query groups with key sub-blocks by score ---- */

/* sum [dim] += row; read before written, four at a time, so that compilers need not fear an overlap. */
static void hai_add_row(const float *row, hai_index dim, float *sum) {
  hai_index t;
  for (t = 0; HAI_SIMD && t + 4 <= dim; t += 4) {
    float a = sum[t] + row[t], b = sum[t + 1] + row[t + 1], c = sum[t + 2] + row[t + 2],
          d = sum[t + 3] + row[t + 3];
    sum[t] = a;
    sum[t + 1] = b;
    sum[t + 2] = c;
    sum[t + 3] = d;
  }
  for (; t < dim; t++) sum[t] += row[t];
}

/* mean [head_dim] of the rows at places begin .. end - 1 of an order (hai_at), queries of job->head or keys,
   those below `skip` left out; NaN, which scores worst, where none is left. */
static void hai_mean_row(const hai_job *job, int of_key, hai_index begin, hai_index end, hai_index skip,
                         float *mean) {
  const int32_t *order = of_key ? hai_key_order(job) : hai_query_order(job);
  hai_index first = of_key ? job->rect.key_begin : job->rect.query_begin;
  hai_index dim = job->plan->head_dim, i, t, n = 0;
  float *room = hai_line(job->tile, 0), share;
  for (t = 0; t < dim; t++) mean[t] = 0.0f;
  for (i = begin; i < end; i++) {
    hai_index row = hai_at(order, first, i);
    if (row < skip) continue;
    hai_add_row(of_key ? hai_key_row(job, row, room) : hai_query_row(job, job->head, row, room), dim, mean);
    n++;
  }
  share = n ? 1.0f / HAI_AS(float, n) : hai_float(0x7fc00000u);
  for (t = 0; t < dim; t++) mean[t] *= share;
}

/* Mean keys of some sub-blocks, and of spans of HAI_SUPERBLOCK sub-blocks; sinks, pinned for every head,
   stay out. */
HAI_APART void hai_stage_means(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index parts = hai_key_parts(plan, job->rect.n_key), dim = plan->head_dim, t, i;
  hai_index begin = job->chunk * HAI_TASK_GROUPS, end = hai_min(begin + HAI_TASK_GROUPS, parts);
  if (!hai_wanted(job)) return;
  for (i = begin; i < end; i++)
    hai_mean_row(job, 1, hai_cut(job->rect.n_key, parts, i), hai_cut(job->rect.n_key, parts, i + 1),
                 plan->sink_keys, hai_mean(job) + i * dim);
  if (!hai_two_levels(plan, job->rect.n_key)) return;
  for (i = begin; i < end; i++) {
    float *span = hai_superblock_mean(job) + i / HAI_SUPERBLOCK * dim;
    const float *mean = hai_mean(job) + i * dim;
    for (t = 0; t < dim && i % HAI_SUPERBLOCK == 0; t++) span[t] = 0.0f;
    for (t = 0; t < dim && mean[0] == mean[0]; t++) span[t] += mean[t] / HAI_AS(float, HAI_SUPERBLOCK);
  }
}

/* Pairing's scratch. */
typedef struct hai_pairing_scratch {
  uint64_t *best;      /* [lanes][take] candidates of each lane, or the best spans */
  int32_t *superblock; /* [2 take] */
  float *query;        /* [lanes][head_dim]: mean queries */
  float *reach;        /* [spans]: best score of any lane */
} hai_pairing_scratch;

static hai_pairing_scratch hai_pairing_scratch_of(const hai_job *job) {
  hai_index lanes = job->plan->float_kernel->lanes, take = job->plan->take;
  hai_pairing_scratch room;
  room.best = HAI_PLACE(uint64_t, job->scratch);
  room.superblock = HAI_PLACE(int32_t, room.best + lanes * take);
  room.query = HAI_PLACE(float, room.superblock + 2 * take);
  room.reach = room.query + lanes * job->plan->head_dim;
  return room;
}

/* Puts the next of the wanted query groups (bits, groups first .. first + 63) that no lane holds yet into the
   lanes, their means packed: none from bit `end` on, no more than fit. Returns the bits beyond them. */
static uint64_t hai_pair_open(hai_job *job, hai_index first, uint64_t wanted, int end,
                              const hai_pairing_scratch *room) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, n_query = job->rect.n_query;
  hai_index groups = hai_query_parts(plan, n_query, job->rect.n_key);
  float *query = room->query;
  int lanes = plan->float_kernel->lanes, n = 0, i;
  for (i = 0; i < end && n < lanes; i++) {
    hai_index id = first + i;
    if (!(wanted >> i & 1)) continue;
    hai_mean_row(job, 0, hai_cut(n_query, groups, id), hai_cut(n_query, groups, id + 1), 0, query);
    tile->group[n].id = hai_to_int(id);
    tile->row[n++] = query;
    query += dim;
  }
  wanted &= ~hai_lane_bits(0, i);
  for (i = n; i < lanes; i++) tile->row[i] = HAI_NULL;
  plan->float_kernel->pack(tile->row, dim, plan->scale, tile->query);
  tile->n = n;
  hai_tile_aim(tile, 0, n);
  return wanted;
}

/* The spans that any of groups first .. first + n - 1 scores best, ascending; returns how many. The last of
   the groups stay in the lanes. */
static int hai_pair_superblocks(hai_job *job, hai_index first, int n, const hai_pairing_scratch *room) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, s;
  hai_index spans = hai_ceil_div(hai_key_parts(plan, job->rect.n_key), HAI_SUPERBLOCK);
  uint64_t all = hai_lane_bits(0, n), rest = all;
  int lanes = plan->float_kernel->lanes, held = 0, j;
  while (rest) {
    int anew = rest == all;
    rest = hai_pair_open(job, first, rest, n, room);
    for (s = 0; s < spans; s += HAI_CHUNK) {
      int count = hai_to_int(hai_min(HAI_CHUNK, spans - s));
      for (j = 0; j < count; j++) tile->key[j] = hai_superblock_mean(job) + (s + j) * dim;
      plan->float_kernel->scores(tile->query, dim, tile->key, count, tile->begin, tile->end, tile->score);
      for (j = 0; j < count; j++) {
        float most = hai_largest(tile->score + j * lanes, tile->n);
        room->reach[s + j] = !anew && room->reach[s + j] > most ? room->reach[s + j] : most;
      }
    }
  }
  for (s = 0; s < spans; s++)
    hai_offer(room->best, &held, 2 * plan->take, hai_candidate(room->reach[s], hai_to_int(s)));
  hai_heap_ids(room->best, held, room->superblock);
  return held;
}

/* Each group in the lanes takes the sub-blocks whose mean key its mean query likes best, of some spans
   (span[0 .. spans - 1]; NULL: the first). */
static void hai_pair_tile(hai_job *job, const int32_t *span, hai_index spans,
                          const hai_pairing_scratch *room) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, blocks = hai_key_parts(plan, job->rect.n_key), stride = plan->take, s;
  int lanes = plan->float_kernel->lanes, take = hai_to_int(hai_min(plan->take, blocks)), i, j;
  HYPERATTN_MEMSET(tile->held, 0, sizeof tile->held);
  for (s = 0; s < spans;) {
    int count = 0;
    for (; s < spans && count + HAI_SUPERBLOCK <= HAI_CHUNK; s++) {
      hai_index block = (span ? span[s] : s) * HAI_SUPERBLOCK,
                last = hai_min(block + HAI_SUPERBLOCK, blocks);
      for (; block < last; block++, count++) {
        tile->key[count] = hai_mean(job) + block * dim;
        tile->id[count] = hai_to_int(block);
      }
    }
    plan->float_kernel->scores(tile->query, dim, tile->key, count, tile->begin, tile->end, tile->score);
    for (i = 0; i < tile->n; i++) {
      uint64_t *heap = room->best + i * stride;
      for (j = 0; j < count; j++) {
        float score = tile->score[j * lanes + i];
        if (tile->held[i] < take ||
            score > hai_candidate_value(heap[0])) /* ids ascend: ties change nothing */
          hai_offer(heap, &tile->held[i], take, hai_candidate(score, tile->id[j]));
      }
    }
  }
  for (i = 0; i < tile->n; i++)
    hai_heap_ids(room->best + i * stride, take, hai_choice(job, tile->group[i].id));
}

/* Pairs the wanted query groups (bits) of this task's HAI_TASK_GROUPS. In large rectangles, HAI_PAIR_GROUPS
   neighbours first choose 2 * take spans of sub-blocks together, wanted or not, and look only there. Cost, a
   group: keys / key_group products of head_dim; in two levels, a HAI_SUPERBLOCK-th of that and 2 * take *
   HAI_SUPERBLOCK. */
static void hai_pair_groups(hai_job *job, uint64_t wanted) {
  hai_index first = job->chunk * HAI_TASK_GROUPS, n_key = job->rect.n_key;
  hai_index groups = hai_query_parts(job->plan, job->rect.n_query, n_key);
  hai_index spans = hai_ceil_div(hai_key_parts(job->plan, n_key), HAI_SUPERBLOCK);
  hai_pairing_scratch room = hai_pairing_scratch_of(job);
  int two = hai_two_levels(job->plan, n_key), step = two ? HAI_PAIR_GROUPS : HAI_TASK_GROUPS, begin;
  for (begin = 0; begin < HAI_TASK_GROUPS && first + begin < groups; begin += step) {
    int end = hai_to_int(hai_min(begin + step, groups - first));
    uint64_t all = hai_lane_bits(begin, end), rest = wanted & all;
    int in_lanes = two && rest == all && end - begin <= job->plan->float_kernel->lanes;
    if (rest && two) spans = hai_pair_superblocks(job, first + begin, end - begin, &room);
    while (rest) {
      rest = in_lanes ? 0 : hai_pair_open(job, first, rest, end, &room);
      hai_pair_tile(job, two ? room.superblock : HAI_NULL, spans, &room);
    }
  }
}

HAI_APART void hai_stage_pair(hai_job *job) {
  if (hai_wanted(job)) hai_pair_groups(job, UINT64_MAX);
}

/* ======== exact.h ======== */

/* ==== 9. Attention ===================================================================================
   Exact regions and approximated rectangles, tile by tile. */

/* Keys that a query meets before any rectangle: 0 .. P, or those of its diagonal segment and its window. */
static void hai_exact_keys(const hai_plan *plan, hai_index query, hai_index *first, hai_index *last) {
  const hyperattn_problem *p = plan->problem;
  hai_index x, segments = hai_power_of_2(plan->depth);
  *first = 0;
  *last = p->causal ? query + plan->n_key - plan->n_query : plan->n_key - 1;
  x = *last - plan->key_skip; /* place within the square */
  if (p->causal && x >= 0 && (plan->depth || plan->outer)) {
    *first = plan->key_skip + hai_cut(plan->square, segments, hai_part_of(plan->square, segments, x));
    *first = hai_max(0, hai_min(*first, *last - plan->window + 1));
  }
}

/* Puts rows row .. row + n - 1 of a kv head into the tile: row r is query r / heads_per_kv of head r %
   heads_per_kv, so that heads that share keys fill a tile together. */
static void hai_exact_open(hai_job *job, hai_index row, int n) {
  const hai_plan *plan = job->plan;
  hai_index group = plan->heads_per_kv, first, last;
  int i;
  for (i = 0; i < n; i++) {
    hai_exact_keys(plan, (row + i) / group, &first, &last);
    hai_tile_query(job, i, job->kv_head * group + (row + i) % group, (row + i) / group, first, last);
  }
  hai_tile_open(job, n, plan->scale, plan->value_dim);
  job->tile->guard = plan->problem->causal;
}

/* Rows row .. end - 1, some tiles at a time: `open` fills one, `meet` leads them all to their keys. */
static void hai_attend_rows(hai_job *job, void (*open)(hai_job *, hai_index, int),
                            void (*meet)(hai_job *, hai_tile *const *, int), hai_index row, hai_index end) {
  hai_tile *tiles[HAI_MAX_TILES];
  int n = hai_tiles_place(job, tiles), lanes = job->plan->float_kernel->lanes, i;
  while (row < end) {
    for (i = 0; i < n && row < end; i++, row += lanes) {
      job->tile = tiles[i];
      open(job, row, hai_to_int(hai_min(lanes, end - row)));
    }
    meet(job, tiles, i);
    while (i-- > 0) {
      job->tile = tiles[i];
      hai_tile_close(job);
    }
  }
}

static void hai_exact_meet(hai_job *job, hai_tile *const *tiles, int n) {
  hai_tiles_run(job, tiles, n, 0, job->plan->n_key);
}
static void hai_rect_meet(hai_job *job, hai_tile *const *tiles, int n) {
  hai_tiles_run(job, tiles, n, job->rect.key_begin, job->rect.key_begin + job->rect.n_key);
}

/* Exact attention of HAI_TASK_QUERIES rows of a kv head. */
HAI_APART void hai_stage_exact(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index row = job->chunk * HAI_TASK_QUERIES;
  hai_attend_rows(job, hai_exact_open, hai_exact_meet, row,
                  hai_min(row + HAI_TASK_QUERIES, plan->n_query * plan->heads_per_kv));
}

/* ======== rectangle.h ======== */

/* ---- An approximated rectangle: blocks, pins, columns ---- */

/* The recipe of a rectangle and head; sets the pairing of its blocks. */
static hai_recipe hai_recipe_of(hai_job *job) {
  const hai_plan *plan = job->plan;
  if (plan->outer_exact && job->level >= plan->depth) return HAI_ALL;
  if (!plan->choosing) return HAI_BLOCKS;
  job->pairing = hai_verdict_of(job)->pairing;
  return HAI_AS(hai_recipe, hai_verdict_of(job)->recipe);
}

/* Puts the query at a sorted position into a lane, and the lane into its query group. Positions come
   ascending. */
static void hai_tile_sorted(hai_job *job, int lane, hai_index position) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_group *group = &tile->group[tile->n_groups ? tile->n_groups - 1 : 0];
  hai_index row = hai_at(hai_query_order(job), job->rect.query_begin, position),
            parts = job->pairing == HAI_NO_BLOCKS
                        ? 0
                        : hai_query_parts(plan, job->rect.n_query, job->rect.n_key),
            id;
  hai_rect_query(job, lane, row);
  if (!parts) return;
  id = hai_part_of(job->rect.n_query, parts, position);
  if (!tile->n_groups || group->id != id) {
    group = &tile->group[tile->n_groups++];
    group->id = hai_to_int(id);
    group->begin = lane;
    group->at = 0;
    group->blocks =
        plan->by_score ? hai_choice(job, id) : &group->id; /* by rank: the block of equal rank */
    group->n_blocks = hai_to_int(hai_min(plan->take, hai_key_parts(plan, job->rect.n_key)));
  }
  group->end = lane + 1;
}

/* Lanes whose group holds a sub-block. Quick where sub-blocks are asked for in ascending order. */
static uint64_t hai_tile_holds(hai_tile *tile, int32_t block) {
  uint64_t bits = 0;
  int g;
  for (g = 0; g < tile->n_groups; g++) {
    hai_group *group = &tile->group[g];
    if (group->at && group->blocks[group->at - 1] >= block) group->at = 0;
    while (group->at < group->n_blocks && group->blocks[group->at] < block) group->at++;
    if (group->at < group->n_blocks && group->blocks[group->at] == block)
      bits |= hai_lane_bits(group->begin, group->end);
  }
  return bits;
}

/* Each group meets the keys of its sub-blocks, weight 1; pinned ones come later, for all. */
static void hai_attend_blocks(hai_job *job) {
  hai_tile *tile = job->tile;
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  hai_index n_key = job->rect.n_key, parts = hai_key_parts(job->plan, n_key), rank;
  int g, b;
  for (g = 0; g < tile->n_groups; g++) {
    const hai_group *group = &tile->group[g];
    uint64_t bits = hai_lane_bits(group->begin, group->end);
    hai_tile_aim(tile, group->begin, group->end);
    for (b = 0; b < group->n_blocks; b++)
      for (rank = hai_cut(n_key, parts, group->blocks[b]);
           rank < hai_cut(n_key, parts, group->blocks[b] + 1); rank++) {
        hai_index key = hai_at(order, job->rect.key_begin, rank);
        if (!hai_is_pinned(job, pinned, key)) hai_tile_push(job, key, bits);
      }
    hai_tile_flush(job);
  }
}

/* Keys begin .. end - 1 of a list take their places in a chunk: its first n_pins are pins, weight 1, the
   others columns of a draw. Returns the latest of these keys. */
HAI_APART int32_t hai_list_rows(const hai_job *job, hai_tile *tile, int n_pins, int wide, int begin,
                                int end) {
  int32_t latest = 0;
  int j;
  for (j = 0; begin < end; j++, begin++) {
    int is_pin = begin < n_pins;
    const hai_column *column = &hai_columns(job, wide)[is_pin ? 0 : begin - n_pins];
    tile->id[j] = is_pin ? hai_pins(job)[begin] : column->key;
    tile->log_weight[j] = is_pin ? 0.0f : column->log_weight;
    latest = tile->id[j] > latest ? tile->id[j] : latest;
    hai_tile_put(tile, j, tile->id[j]);
  }
  return latest;
}

/* Some tiles meet so many pins and the columns of a draw (wide: 0 or 1; -1: none), which are hidden from
   queries whose block holds them. Rows are looked for once for all tiles. */
static void hai_tiles_list(hai_job *job, hai_tile *const *tiles, int n_tiles, int n_pins, int wide) {
  int n = n_pins + (wide < 0 ? 0 : hai_counts(job)[1 + wide]), begin, end, i, j;
  for (i = 0; i < n_tiles; i++) hai_tile_aim(tiles[i], 0, tiles[i]->n);
  for (begin = 0; begin < n; begin = end) {
    int32_t latest;
    end = hai_to_int(hai_min(n, begin + HAI_CHUNK));
    latest = hai_list_rows(job, tiles[0], n_pins, wide > 0, begin, end);
    for (i = 0; i < n_tiles; i++) {
      hai_tile *tile = tiles[i];
      job->tile = tile;
      tile->n_keys = end - begin;
      tile->weighted = end > n_pins;
      /* where nothing is hidden, `visible` is not read */
      for (j = 0; j < tile->n_keys && (tile->n_groups || latest > tile->min_last); j++) {
        int at = begin + j - n_pins;
        hai_tile_show(tile, j, tiles[0]->id[j],
                      at < 0 ? UINT64_MAX : ~hai_tile_holds(tile, hai_columns(job, wide)[at].block));
      }
      hai_tile_flush(job);
    }
  }
}

static void hai_attend_pins(hai_job *job) { hai_tiles_list(job, &job->tile, 1, hai_counts(job)[0], -1); }
static void hai_attend_columns(hai_job *job, int wide) { hai_tiles_list(job, &job->tile, 1, 0, wide); }

/* ======== capping.h ======== */

/* ---- Algorithm 2's normaliser ---- */

/* ln T over some of the sampled rows, one from each stratum of the sorted queries: their sums over all keys
   outside their blocks and the pins. Cost: sample_size * n_key in all. */
HAI_APART void hai_stage_cap(hai_job *job) {
  const hai_plan *plan = job->plan;
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  hai_index n_query = job->rect.n_query, n_key = job->rect.n_key, parts = hai_key_parts(plan, n_key), rank;
  hai_index rows = hai_min(plan->sample_size, n_query), at = job->chunk * HAI_TASK_QUERIES;
  hai_index end = hai_min(at + HAI_TASK_QUERIES, rows);
  float most = -hai_inf();
  int n, i;
  for (; at < end; at += n) {
    n = hai_to_int(hai_min(plan->float_kernel->lanes, end - at));
    job->tile->n_groups = 0;
    for (i = 0; i < n; i++) {
      uint64_t random = hai_random_of(job, HAI_FOR_CAP, at + i);
      hai_tile_sorted(job, i, hai_draw(n_query, rows, at + i, random));
    }
    hai_tile_open(job, n, plan->scale, 0);
    for (rank = 0; rank < n_key; rank++) {
      hai_index key = hai_at(order, job->rect.key_begin, rank);
      int32_t block = parts ? hai_to_int(hai_part_of(n_key, parts, rank)) : -1;
      if (!hai_is_pinned(job, pinned, key)) hai_tile_push(job, key, ~hai_tile_holds(job->tile, block));
    }
    hai_tile_flush(job);
    for (i = 0; i < n; i++)
      most = hai_state_lse(job->tile->m[i], job->tile->l[i]) > most
                 ? hai_state_lse(job->tile->m[i], job->tile->l[i])
                 : most;
  }
  hai_cap(job)[job->chunk] = most;
}

/* Columns under the capped, floored normaliser: C = eps^2 m / (n ln n) (B + T / kappa), D = B + max(sum
   over columns of w min(e^s, C), T / kappa), out = numerator / D, lse = ln D. B is what the tile has met
   so far; the numerator is not capped. In logarithms, since the sums may exceed a float's range. */
HAI_APART void hai_attend_columns_capped(hai_job *job) {
  const hyperattn_params *p = job->plan->params;
  hai_tile *tile = job->tile;
  int lanes = tile->kernel->lanes, i;
  float *block = tile->spare, *m = block + lanes, *clip = m + lanes;
  float n = HAI_AS(float, job->rect.n_key), least = -hai_inf();
  float rate = 2.0f * hai_log(p->cap_epsilon) + hai_log(HAI_AS(float, job->plan->sample_size)) -
               hai_log(n * hai_log(n));
  hai_index value_dim = tile->value_dim,
            chunks = hai_ceil_div(hai_min(job->plan->sample_size, job->rect.n_query), HAI_TASK_QUERIES);
  hai_index t;
  if (p->cap_kappa > 0.0f) least = hai_largest(hai_cap(job), chunks) - hai_log(p->cap_kappa);
  for (i = 0; i < tile->n; i++) {
    block[i] = hai_state_lse(tile->m[i], tile->l[i]);
    clip[i] = p->cap_epsilon > 0.0f ? rate + hai_log_add(block[i], least) : hai_inf();
  }
  hai_attend_columns(job, 0);
  hai_tile_settle(tile);
  for (i = 0; i < tile->n; i++) {
    m[i] = tile->m[i];
    tile->m[i] = -hai_inf();
    tile->l[i] = 0.0f;
  }
  tile->clip = clip;
  tile->value_dim = 0;
  hai_attend_columns(job, 0);
  tile->clip = HAI_NULL;
  tile->value_dim = value_dim;
  for (i = 0; i < tile->n; i++) {
    float rest = hai_state_lse(tile->m[i], tile->l[i]);
    float sum = hai_log_add(block[i], rest > least ? rest : least);
    float factor = sum == -hai_inf() ? 0.0f : hai_exp(m[i] - sum);
    for (t = 0; t < value_dim; t++) tile->o[t * lanes + i] *= factor;
    tile->m[i] = sum == -hai_inf() ? 0.0f : sum;
    tile->l[i] = sum == -hai_inf() ? 0.0f : 1.0f;
  }
  hai_tile_reset_sums(tile);
}

/* ======== attending.h ======== */

/* Puts queries at .. at + n - 1 of a rectangle, in order, into the tile, which meets their blocks, if any. */
static void hai_sorted_open(hai_job *job, hai_index at, int n) {
  const hai_plan *plan = job->plan;
  int i;
  job->tile->n_groups = 0;
  for (i = 0; i < n; i++) hai_tile_sorted(job, i, at + i);
  hai_tile_open(job, n, plan->scale, plan->value_dim);
  if (plan->problem->causal) hai_tile_resume(job);
  hai_attend_blocks(job);
}

/* Some tiles meet so many pins (0 if they have), and the recipe's columns. */
static void hai_tiles_sample(hai_job *job, hai_tile *const *tiles, int n, int n_pins) {
  int wide = hai_recipe_of(job) != HAI_BLOCKS, capping = hai_capping(job->plan), i;
  hai_tiles_list(job, tiles, n, n_pins, capping ? -1 : wide);
  for (i = 0; i < n && capping; i++) {
    job->tile = tiles[i];
    hai_attend_columns_capped(job);
  }
}
static void hai_sample_meet(hai_job *job, hai_tile *const *tiles, int n) {
  hai_tiles_sample(job, tiles, n, hai_counts(job)[0]);
}

/* HAI_TASK_QUERIES queries of a rectangle and one head, in order, meet what was chosen for them. */
HAI_APART void hai_stage_attend(hai_job *job) {
  hai_index at = job->chunk * HAI_TASK_QUERIES, end = hai_min(at + HAI_TASK_QUERIES, job->rect.n_query);
  int is_all = hai_recipe_of(job) == HAI_ALL;
  if (is_all) job->pairing = HAI_NO_BLOCKS; /* in order of rows, as runs of keys want it */
  hai_attend_rows(job, hai_sorted_open, is_all ? hai_rect_meet : hai_sample_meet, at, end);
}

/* ======== judging.h ======== */

/* ==== 10. Judging ====================================================================================
   Queries that had no part in a rectangle's choices meet all of its keys, the truth, and then what was chosen
   for them: the relative error of that, over all of them, is the choice's worth. At a fixed budget the best
   choice is taken. Under a tolerance, which counts what the queries' rows have met before (levels run from
   the diagonal outward), it is the cheapest that meets it: columns alone, blocks and columns, blocks and as
   many columns as alone, at last every key. For the report, more such queries, drawn anew, audit what was
   chosen; those that chose are optimists. */

/* Tiles of held-out queries [lanes] in the order of their rows, over one chunk of keys: m, l and o for each.
   Cost: held-out queries * keys of the chunk, values included. */
HAI_APART void hai_stage_judge(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tiles[HAI_MAX_TILES];
  int most = hai_tiles_place(job, tiles), judges = hai_n_judges(job), first = 0, n, t;
  hai_index chunks = hai_job_judge_chunks(job);
  float *truth = hai_truth(job, job->chunk);
  while (first < judges) {
    n = hai_tiles_open(job, tiles, most, first, judges, hai_judge_row, plan->value_dim);
    hai_tiles_run(job, tiles, n, hai_chunk_begin(job, chunks, job->chunk),
                  hai_chunk_begin(job, chunks, job->chunk + 1));
    for (t = 0; t < n; t++) {
      hai_tile_save(tiles[t], truth);
      truth += (2 + plan->value_dim) * plan->float_kernel->lanes;
      first += tiles[t]->n;
    }
  }
}

/* The states over all chunks, in the place of the first chunk's. */
static void hai_gather_truth(const hai_job *job) {
  const hai_plan *plan = job->plan;
  int judges = hai_n_judges(job), lanes = plan->float_kernel->lanes, first, i;
  hai_index chunks = hai_job_judge_chunks(job), value_dim = plan->value_dim;
  hai_index size = (2 + value_dim) * lanes, c, t;
  for (first = 0; first < judges; first += lanes)
    for (c = 1; c < chunks; c++) {
      float *a = hai_truth(job, 0) + first / lanes * size;
      const float *b = hai_truth(job, c) + first / lanes * size;
      for (i = 0; i < lanes; i++) {
        float m = a[i] > b[i] ? a[i] : b[i], shift = m == -hai_inf() ? 0.0f : m;
        float wa = hai_exp(a[i] - shift), wb = hai_exp(b[i] - shift);
        a[i] = m;
        a[lanes + i] = a[lanes + i] * wa + b[lanes + i] * wb;
        for (t = 2; t < 2 + value_dim; t++)
          a[t * lanes + i] = a[t * lanes + i] * wa + b[t * lanes + i] * wb;
      }
    }
}

/* A few rows of many are looked for by their last twelve bits before anything dearer: HAI_SIEVE words. */
static void hai_sieve_clear(uint32_t *sieve) { HYPERATTN_MEMSET(sieve, 0, HAI_SIEVE * sizeof(uint32_t)); }
static void hai_sieve_add(uint32_t *sieve, hai_index row) {
  sieve[HAI_AS(size_t, row) / 32 % HAI_SIEVE] |= UINT32_C(1) << HAI_AS(size_t, row) % 32;
}
static int hai_sieve_holds(const uint32_t *sieve, hai_index row) {
  return HAI_AS(int, sieve[HAI_AS(size_t, row) / 32 % HAI_SIEVE] >> HAI_AS(size_t, row) % 32 & 1);
}

static void hai_judge_sieve(const hai_job *job, uint32_t *sieve) {
  int n = hai_n_judges(job), i;
  hai_sieve_clear(sieve);
  for (i = 0; i < n; i++) hai_sieve_add(sieve, hai_judge_row(job, i));
}

/* Which held-out query is a row, by their sieve; -1: none. */
static int hai_judge_at(const hai_job *job, const uint32_t *sieve, hai_index row) {
  hai_index n = job->rect.n_query, at = row - job->rect.query_begin, run, ahead;
  if (!hai_sieve_holds(sieve, row)) return -1;
  if (hai_all_judge(job)) return hai_to_int(at);
  run = hai_part_of(n, hai_judge_runs(job), at) * HAI_JUDGE_RUN;
  ahead = row - hai_judge_row(job, run);
  return ahead >= 0 && ahead < HAI_JUDGE_RUN ? hai_to_int(run + ahead) : -1;
}

/* Places of the held-out queries in the pairing's order. Cost: O(n_query) if that is sorted. */
static void hai_judge_places(const hai_job *job, int32_t *place, uint32_t *sieve) {
  const int32_t *order = hai_query_order(job);
  hai_index n = order ? job->rect.n_query : 0, at;
  int judges = hai_n_judges(job), i;
  hai_judge_sieve(job, sieve);
  for (i = 0; i < judges; i++) place[i] = hai_to_int(hai_judge_row(job, i) - job->rect.query_begin);
  for (at = 0; at < n; at++)
    if ((i = hai_judge_at(job, sieve, order[at])) >= 0) place[i] = hai_to_int(at);
}

/* Pairs the groups of the held-out queries among this task's HAI_TASK_GROUPS. */
HAI_APART void hai_stage_draft(hai_job *job) {
  const int32_t *order = hai_query_order(job);
  hai_index n = job->rect.n_query, groups = hai_query_parts(job->plan, n, job->rect.n_key),
            first = job->chunk * HAI_TASK_GROUPS, at, end;
  uint32_t *sieve = HAI_PLACE(uint32_t, job->scratch); /* before pairing takes its place */
  uint64_t held = 0;
  int i;
  if (!hai_wanted(job)) return;
  hai_judge_sieve(job, sieve);
  for (i = 0; i < HAI_TASK_GROUPS && first + i < groups; i++)
    for (at = hai_cut(n, groups, first + i), end = hai_cut(n, groups, first + i + 1); at < end; at++)
      if (hai_judge_at(job, sieve, hai_at(order, job->rect.query_begin, at)) >= 0) held |= UINT64_C(1) << i;
  hai_pair_groups(job, held);
}

/* The sub-blocks that hold the columns in this pairing; they were drawn for another, ascending by position.
   Cost: O(n_key), and a binary search for about one key in ten. */
static void hai_place_columns(const hai_job *job, uint32_t *sieve) {
  const int32_t *order = hai_key_order(job);
  hai_index n_key = job->rect.n_key, parts = hai_key_parts(job->plan, n_key), rank;
  int wide, i;
  hai_sieve_clear(sieve);
  for (wide = 0; wide < 2; wide++)
    for (i = 0; i < hai_counts(job)[1 + wide]; i++) hai_sieve_add(sieve, hai_columns(job, wide)[i].key);
  for (rank = 0; rank < n_key; rank++) {
    hai_index key = hai_at(order, job->rect.key_begin, rank);
    for (wide = 0; wide < 2 && hai_sieve_holds(sieve, key); wide++) {
      hai_column *column = hai_columns(job, wide);
      int32_t low = 0, high = hai_counts(job)[1 + wide];
      while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (column[middle].key < key)
          low = middle + 1;
        else
          high = middle;
      }
      if (low < hai_counts(job)[1 + wide] && column[low].key == key)
        column[low].block = hai_to_int(hai_part_of(n_key, parts, rank));
    }
  }
}

/* |out' - out| / |out|, of their squares; infinite where there is no telling how wrong. */
static float hai_relative(float error, float norm) {
  if (error == 0.0f) return 0.0f;
  return hai_finite(error) && norm > 0.0f ? hai_sqrt(error / norm) : hai_inf();
}

/* x^2 of an x that is not 0, never so small that it is lost: what is wrong must not pass for right. */
static float hai_squared(float x) {
  float least = hai_float(0x00800000u);
  return x * x < least ? least : x * x;
}

/* Lane i of the tile, which has met what the choice gives it, against the truth (m, l, o, stride lanes).
   *error = |out' - out|^2, *norm = |out|^2; both with what the query has met before where `resting`. Returns
   the lse of the truth, so merged; NaN where there is no telling. */
static float hai_compare(const hai_job *job, int i, const float *truth, int resting, float *error,
                         float *norm) {
  const hai_plan *plan = job->plan;
  const hai_tile *tile = job->tile;
  int lanes = plan->float_kernel->lanes;
  hai_index t;
  float before = resting && plan->problem->causal ? hai_stored_lse(job)[tile->state[i]] : -hai_inf();
  float mine = hai_state_lse(tile->m[i], tile->l[i]), exact = hai_state_lse(truth[i], truth[lanes + i]);
  float merged = hai_log_add(mine, before), whole = hai_log_add(exact, before);
  /* out = o e^(m - lse) */
  float a = merged == -hai_inf() ? 0.0f : hai_exp(tile->m[i] - merged);
  float b = whole == -hai_inf() ? 0.0f : hai_exp(truth[i] - whole);
  float rest = (merged == -hai_inf() ? 0.0f : hai_exp(before - merged)), rest_b;
  rest_b = whole == -hai_inf() ? 0.0f : hai_exp(before - whole);
  *error = *norm = 0.0f;
  for (t = 0; t < plan->value_dim; t++) {
    float old = before == -hai_inf() ? 0.0f : tile->out[i][t];
    float x = tile->o[t * lanes + i] * a + old * rest, y = truth[(2 + t) * lanes + i] * b + old * rest_b;
    if (!hai_finite(y)) whole = hai_float(0x7fc00000u);
    *error += x == y ? 0.0f : hai_squared(x - y);
    *norm += y == 0.0f ? 0.0f : hai_squared(y);
  }
  if (!hai_finite(*error)) *error = hai_inf();
  if (!hai_finite(*norm)) *norm = hai_float(0x7f7fffffu);
  return whole;
}

/* Held-out queries first .. first + n - 1 meet the blocks and pins that a choice gives them; `blocks` and
   `pins` take the lse of each lane after either. */
static void hai_judge_open(hai_job *job, const int32_t *place, int first, int n, float *blocks,
                           float *pins) {
  hai_tile *tile = job->tile;
  int i;
  tile->n_groups = 0;
  for (i = 0; i < n; i++) hai_tile_sorted(job, i, place[first + i]);
  hai_tile_open(job, n, job->plan->scale, job->plan->value_dim);
  hai_attend_blocks(job);
  for (i = 0; i < n; i++) blocks[i] = hai_state_lse(tile->m[i], tile->l[i]);
  hai_attend_pins(job);
  for (i = 0; i < n; i++) pins[i] = hai_state_lse(tile->m[i], tile->l[i]);
}

/* A rectangle takes a recipe where it is better than what it had. */
static void hai_rule(const hai_job *job, hai_recipe recipe, float error) {
  hai_verdict *verdict = hai_verdict_of(job);
  float enough = job->plan->params->tolerance;
  if (enough == 0.0f) enough = recipe == HAI_COLUMNS ? HAI_GOOD : HAI_FAIR;
  if (verdict->settled || !(error < verdict->error)) return;
  verdict->recipe = HAI_AS(int32_t, recipe);
  verdict->pairing = job->pairing;
  verdict->error = error;
  verdict->settled = error <= enough;
}

/* Tries a choice on the held-out queries: columns alone, or a pairing's blocks with columns, and, where there
   is a tolerance, with the wide draw. Missed to the last, a tolerance calls for all keys. Cost: O(held-out
   queries * budget), and with a sorted order O(n_query + n_key log budget). */
HAI_APART void hai_stage_try(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  int alone = job->pairing == HAI_NO_BLOCKS, judges = hai_n_judges(job), lanes = plan->float_kernel->lanes;
  /* at a fixed budget no choice depends on states: they know later keys than some of the queries */
  int bound = plan->params->tolerance > 0.0f,
      n_trials = !alone && bound && hai_trying_columns(plan) ? 2 : 1;
  hai_index size = (2 + plan->value_dim) * lanes;
  uint32_t *sieve = HAI_PLACE(uint32_t, job->scratch);
  int32_t *place = HAI_PLACE(int32_t, sieve + HAI_SIEVE);
  float *blocks = HAI_PLACE(float, place + HAI_AUDITORS), *pins = blocks + lanes, *state = pins + lanes;
  hai_recipe recipe[2];
  float sum[2] = {0.0f, 0.0f}, norm = 0.0f; /* of |out' - out|^2, and of |out|^2 */
  int first, n, i, c;
  if (job->pairing == (hai_trying_columns(plan) ? HAI_NO_BLOCKS : 0)) hai_gather_truth(job);
  if (hai_verdict_of(job)->settled) return;
  if (!alone) hai_verdict_of(job)->tried = job->pairing + 1;
  if (job->pairing == 1) hai_place_columns(job, sieve);
  hai_judge_places(job, place, sieve);
  recipe[0] = alone ? HAI_COLUMNS : HAI_BLOCKS;
  recipe[1] = HAI_BOTH;
  for (first = 0; first < judges; first += n) {
    const float *truth = hai_truth(job, 0) + first / lanes * size;
    n = hai_to_int(hai_min(lanes, judges - first));
    hai_judge_open(job, place, first, n, blocks, pins);
    hai_tile_save(tile, state);
    for (c = 0; c < n_trials; c++) {
      if (c) hai_tile_load(tile, state);
      hai_attend_columns(job, recipe[c] != HAI_BLOCKS);
      hai_tile_settle(tile);
      for (i = 0; i < n; i++) {
        float error, squared, whole = hai_compare(job, i, truth, bound, &error, &squared);
        if (whole != whole) continue;
        sum[c] += error;
        norm += c ? 0.0f : squared;
      }
    }
  }
  for (c = 0; c < n_trials; c++) hai_rule(job, recipe[c], hai_relative(sum[c], norm));
  if (bound && job->pairing == plan->n_pairings - 1 && !hai_verdict_of(job)->settled)
    hai_verdict_of(job)->recipe = HAI_ALL;
  if (job->pairing == 1 && hai_verdict_of(job)->pairing == 0) {
    job->pairing = 0;
    hai_place_columns(job, sieve);
  }
}

/* What a rectangle's choice is worth to queries that had no part in it, for the report. */
HAI_APART void hai_stage_audit(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_record *record = hai_record_of(job);
  hai_recipe recipe = hai_recipe_of(job);
  int judges = hai_n_judges(job), lanes = plan->float_kernel->lanes, first, n, i;
  hai_index size = (2 + plan->value_dim) * lanes, parts = hai_key_parts(plan, job->rect.n_key);
  hai_index chunks = hai_job_probe_chunks(job), c;
  hai_index probes = hai_n_probes(job), taken = hai_min(plan->take, parts);
  uint32_t *sieve = HAI_PLACE(uint32_t, job->scratch);
  int32_t *place = HAI_PLACE(int32_t, sieve + HAI_SIEVE);
  float *blocks = HAI_PLACE(float, place + HAI_AUDITORS), *pins = blocks + lanes;
  float least = hai_inf(), most = -hai_inf(), peak = 0.0f;
  record->recipe = HAI_AS(int32_t, recipe);
  record->tried = plan->choosing ? hai_verdict_of(job)->tried : 0;
  record->n = judges;
  for (c = 0; c < chunks && plan->probing; c++)
    peak = hai_partial(job, c)[1] > peak ? hai_partial(job, c)[1] : peak;
  record->alpha = plan->probing ? HAI_AS(float, job->rect.n_key) * HAI_AS(float, job->rect.n_query) /
                                      HAI_AS(float, probes) * peak
                                : 0.0f;
  record->keys =
      HAI_AS(float, hai_counts(job)[0]) + HAI_AS(float, hai_counts(job)[recipe == HAI_BLOCKS ? 1 : 2]);
  if (recipe != HAI_COLUMNS && parts)
    record->keys += HAI_AS(float, job->rect.n_key) * HAI_AS(float, taken) / HAI_AS(float, parts);
  record->kappa = 1.0f;
  if (recipe == HAI_ALL) record->keys = HAI_AS(float, job->rect.n_key);
  if (recipe == HAI_ALL) return;
  hai_gather_truth(job);
  hai_judge_places(job, place, sieve);
  for (first = 0; first < judges; first += n) {
    const float *truth = hai_truth(job, 0) + first / lanes * size;
    n = hai_to_int(hai_min(lanes, judges - first));
    hai_judge_open(job, place, first, n, blocks, pins);
    hai_tiles_sample(job, &job->tile, 1, 0);
    hai_tile_settle(tile);
    for (i = 0; i < n; i++) {
      float error, norm, whole = hai_compare(job, i, truth, 1, &error, &norm);
      float mine = hai_state_lse(tile->m[i], tile->l[i]), exact = hai_state_lse(truth[i], truth[lanes + i]);
      float beside = hai_exp(blocks[i] - exact), in_blocks = hai_share(blocks[i], mine);
      int good = hai_finite(whole) && mine == mine && mine < hai_inf(); /* -inf: it met nothing */
      record->query[first + i].row = good ? hai_to_int(hai_judge_row(job, first + i)) : -1;
      record->query[first + i].error = error;
      record->query[first + i].norm = norm;
      record->query[first + i].whole = whole;
      record->query[first + i].rect = mine;
      record->query[first + i].blocks = in_blocks;
      record->query[first + i].pinned = hai_share(pins[i], mine) - in_blocks;
      beside = beside < 1.0f ? exact + hai_log(1.0f - beside) : -hai_inf();
      if (!hai_finite(beside)) continue;
      least = beside < least ? beside : least;
      most = beside > most ? beside : most;
    }
  }
  if (most >= least) record->kappa = hai_exp(most - least);
}

/* ======== report.h ======== */

/* ---- The report ---- */

/* Sum of |out|^2 over rows begin .. end - 1, those left out that are not finite; by parts, since millions of
   addends would fall below a float's last place. */
static float hai_out_norm(const hai_job *job, hai_index begin, hai_index end) {
  const hyperattn_problem *p = job->plan->problem;
  float sum = 0.0f;
  while (begin < end) {
    float part = 0.0f;
    hai_index stop = hai_min(end, begin + HAI_TASK_ROWS);
    for (; begin < stop; begin++) {
      float row = hai_squared_norm(hai_read(job, hai_out_row(&p->out, job->batch, job->head, begin),
                                            p->out.dtype, job->plan->value_dim, job->tile->line),
                                   job->plan->value_dim);
      part += hai_finite(row) ? row : 0.0f;
    }
    sum += part;
  }
  return sum;
}

/* Adds a rectangle, the last one of its rows or not, to a head's report, its squared errors to *error, and
   the variance of their sum to *variance. Returns |exact|^2 over |out|^2, by its held-out queries. */
static float hai_report_rect(const hai_job *job, const hai_record *record, int is_last, float *error,
                             float *variance, hyperattn_report *r) {
  const hai_plan *plan = job->plan;
  const float *lse = hai_stored_lse(job) + hai_flat_head(job) * plan->n_query;
  float each = HAI_AS(float, job->rect.n_query) / HAI_AS(float, record->n),
        share = each / HAI_AS(float, plan->n_query);
  float mine = 0.0f, exact = 0.0f, sum = 0.0f, squares = 0.0f;
  int i;
  r->alpha = record->alpha > r->alpha ? record->alpha : r->alpha;
  r->kappa = record->kappa > r->kappa ? record->kappa : r->kappa;
  if (record->recipe == HAI_ALL) return 1.0f;
  for (i = 0; i < record->n; i++) {
    hai_index row = record->query[i].row;
    float whole = record->query[i].whole, later, part, squared = record->query[i].error;
    if (row < 0) continue;
    /* later keys outweigh an error; what a choice missed is missing in the last lse too */
    later = !is_last && lse[row] > whole ? hai_exp(2.0f * (whole - lse[row])) : 1.0f;
    part = share * hai_share(record->query[i].rect, lse[row]);
    sum += squared * later;
    squares += squared * later * squared * later;
    if (squared > r->max_error * r->max_error * record->query[i].norm)
      r->max_error = hai_relative(squared, record->query[i].norm);
    mine += hai_out_norm(job, row, row + 1);
    exact += record->query[i].norm;
    r->block_mass += part * record->query[i].blocks;
    r->pinned_mass += part * record->query[i].pinned;
    r->sampled_mass += part * (1.0f - record->query[i].blocks - record->query[i].pinned);
  }
  *error += each * sum;
  if (record->n > 1)
    *variance += (1.0f - 1.0f / each) * each * each * (squares - sum * sum / HAI_AS(float, record->n)) *
                 HAI_AS(float, record->n) / HAI_AS(float, record->n - 1);
  return mine > 0.0f && exact > 0.0f ? exact / mine : 1.0f;
}

/* Key-query pairs of a rectangle's probing, judging and pairing. The report's own are not counted. */
static float hai_overhead(const hai_job *job, const hai_record *record) {
  const hai_plan *plan = job->plan;
  hai_index n_query = job->rect.n_query, n_key = job->rect.n_key, judges = hai_n_judges(job);
  hai_index probed = hai_n_probes(job);
  uint64_t paired = hai_pairing_products(plan, n_query, n_key);
  float probes = plan->probing ? HAI_AS(float, probed) : 0.0f, pairs = 0.0f;
  if (plan->choosing) probes += HAI_AS(float, judges);
  if (record->recipe == HAI_BLOCKS || record->recipe == HAI_BOTH) pairs = HAI_AS(float, paired);
  /* trials pair the held-out queries' groups alone */
  if (judges < hai_query_parts(plan, n_query, n_key)) n_query = judges * plan->query_group;
  paired = hai_pairing_products(plan, n_query, n_key);
  pairs += HAI_AS(float, record->tried) * HAI_AS(float, paired);
  return HAI_AS(float, n_key) * probes + pairs;
}

/* One head's report. Cost: O(n_query * value_dim). */
HAI_APART void hai_stage_report(hai_job *job) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  hyperattn_report r;
  float error = 0.0f, variance = 0.0f, norm = 0.0f, pairs, rects = 0.0f;
  hai_index row, first, last, met = 0, rest = plan->n_query; /* rows below `rest` are in no rectangle */
  HYPERATTN_MEMSET(&r, 0, sizeof r);
  for (row = 0; row < plan->n_query && plan->n_before; row++) {
    hai_exact_keys(plan, row, &first, &last);
    met += hai_max(0, last - first + 1);
  }
  pairs = HAI_AS(float, met);
  for (job->level = 0; job->level < hai_plan_levels(plan); job->level++) {
    hai_index index, end = hai_plan_rects(plan, job->level);
    for (index = 0; index < end; index++) {
      const hai_record *record;
      int is_last = !index && !(plan->outer && job->level < plan->depth);
      float ratio = 1.0f;
      job->rect = hai_rect_at(plan, job->level, index);
      if (plan->outer_exact && job->level >= plan->depth) {
        pairs += HAI_AS(float, job->rect.n_query) * HAI_AS(float, job->rect.n_key);
      } else {
        record = hai_record_of(job);
        rects += 1.0f;
        r.exact += record->recipe == HAI_ALL ? 1.0f : 0.0f;
        r.escalated += record->recipe == HAI_ALL || record->recipe == HAI_BOTH ? 1.0f : 0.0f;
        pairs += hai_overhead(job, record) + HAI_AS(float, job->rect.n_query) * record->keys;
        ratio = hai_report_rect(job, record, is_last, &error, &variance, &r);
      }
      if (!is_last) continue;
      norm += ratio * hai_out_norm(job, job->rect.query_begin, job->rect.query_begin + job->rect.n_query);
      rest = hai_min(rest, job->rect.query_begin);
    }
  }
  norm += hai_out_norm(job, 0, rest);
  error +=
      hai_sqrt(variance); /* few queries hold most of an error, and samples miss them more often than not */
  r.error = hai_relative(error, norm);
  r.keys_per_query = plan->n_query ? pairs / HAI_AS(float, plan->n_query) : 0.0f;
  r.window_mass = 1.0f - r.block_mass - r.pinned_mass - r.sampled_mass;
  if (rects > 0.0f) {
    r.exact /= rects;
    r.escalated /= rects;
  }
  p->report[hai_flat_head(job)] = r;
}

/* ======== stages.h ======== */

/* ==== 12. Stages =====================================================================================
   The table of stages: a row for each function that tasks run, in the order in which they run. A stage that
   is about the blocks of one pairing has a row for each. Everything else about a stage is a column, given by
   the functions below or by the stage's own file. */

typedef enum hai_when { HAI_BEFORE, HAI_PER_LEVEL, HAI_AFTER } hai_when; /* ..the levels */

/* Who a task is about, besides an element of the batch: a kv head, a query head, or either. */
enum { HAI_KV_HEADS = 1, HAI_HEADS = 2 };

/* What sets a stage apart: its held-out queries are those of the report; it also runs for a rectangle that is
   attended exactly, where nothing is chosen. */
enum { HAI_PLAIN = 0, HAI_AUDITS = 1, HAI_ALSO_EXACT = 2 };

typedef struct hai_stage {
  void (*run)(hai_job *job); /* NULL in a build that leaves the stage out */
  /* Is it wanted by a call? Asked only of pairings that the call has. */
  int (*wanted)(const hai_plan *plan, int pairing);
  /* Tasks of a head in a rectangle, or before and after the levels in the call, of so many rows. */
  hai_index (*chunks)(const hai_plan *plan, hai_index n_query, hai_index n_key);
  size_t (*scratch)(const hai_plan *plan); /* bytes of a worker that it needs beside the tile */
  unsigned char when, pairing, axes, traits;
#ifndef HYPERATTN_NO_TEXTS
  const char *name;
#endif
} hai_stage;

/* ---- Wanted ---- */

static int hai_wants_always(const hai_plan *plan, int pairing) {
  (void)plan;
  (void)pairing;
  return 1;
}
static int hai_wants_exact(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->problem->causal || !plan->outer;
}
static int hai_wants_order(const hai_plan *plan, int pairing) { return plan->sorted[pairing]; }
static int hai_wants_probes(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->probing;
}
static int hai_wants_weights(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->weighing;
}
static int hai_wants_judges(const hai_plan *plan, int pairing) {
  return plan->choosing && (pairing != HAI_NO_BLOCKS || hai_trying_columns(plan));
}
static int hai_wants_scores(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->by_score;
}
static int hai_wants_draft(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->by_score && plan->choosing;
}
/* The means of a pairing that was not the last to be tried are no longer in place. */
static int hai_wants_means_again(const hai_plan *plan, int pairing) {
  return plan->by_score && pairing < plan->n_pairings - 1;
}
static int hai_wants_cap(const hai_plan *plan, int pairing) {
  (void)pairing;
  return hai_capping(plan);
}
static int hai_wants_report(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->reporting;
}

/* ---- Chunks ---- */

static hai_index hai_cut_nothing(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  (void)n_query;
  (void)n_key;
  return 1;
}
static hai_index hai_cut_queries(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  (void)n_key;
  return hai_ceil_div(n_query, HAI_TASK_QUERIES);
}
/* Queries of all heads that share a kv head. */
static hai_index hai_cut_shared_queries(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  return hai_cut_queries(plan, n_query * plan->heads_per_kv, n_key);
}
static hai_index hai_cut_sampled_queries(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  return hai_cut_queries(plan, hai_min(plan->sample_size, n_query), n_key);
}
static hai_index hai_cut_rows(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  return hai_ceil_div(hai_max(n_query, n_key), HAI_TASK_ROWS);
}
static hai_index hai_cut_blocks(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)n_query;
  return hai_ceil_div(hai_key_parts(plan, n_key), HAI_TASK_GROUPS);
}
static hai_index hai_cut_groups(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  return hai_ceil_div(hai_query_parts(plan, n_query, n_key), HAI_TASK_GROUPS);
}
static hai_index hai_cut_probed_keys(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  (void)n_query;
  return hai_probe_chunks(n_key);
}
static hai_index hai_cut_judged_keys(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  (void)n_query;
  return hai_judge_chunks(n_key);
}

/* ---- Scratch ---- */

static size_t hai_scratch_none(const hai_plan *plan) {
  (void)plan;
  return 0;
}
/* The tiles of a task beyond the first. */
static size_t hai_scratch_tiles(const hai_plan *plan) {
  return HAI_AS(size_t, hai_tiles(plan) - 1) * hai_tile_bytes(plan);
}
/* Random planes: [lsh_bits][head_dim]. */
static size_t hai_scratch_planes(const hai_plan *plan) {
  return HAI_AS(size_t, plan->params->lsh_bits) * HAI_AS(size_t, plan->head_dim) * sizeof(float);
}
/* Counters of buckets, which lie where the tile would, and may need more. */
static size_t hai_scratch_counters(const hai_plan *plan) {
  size_t bytes = sizeof(int32_t) << plan->params->lsh_bits;
  return bytes - hai_least(bytes, hai_chunk_bytes(plan) + hai_tile_bytes(plan));
}
/* Candidates for the heaviest keys. */
static size_t hai_scratch_heavy(const hai_plan *plan) {
  return hai_times(HAI_AS(size_t, plan->heavy_keys), sizeof(uint64_t));
}
/* hai_pairing_scratch. */
static size_t hai_scratch_pairing(const hai_plan *plan) {
  size_t lanes = HAI_AS(size_t, plan->float_kernel->lanes), take = HAI_AS(size_t, plan->take);
  size_t words = 2 * take + lanes * HAI_AS(size_t, plan->head_dim);
  if (hai_two_levels(plan, plan->n_key))
    words += HAI_AS(size_t, hai_key_parts(plan, plan->n_key)) / HAI_SUPERBLOCK + 1;
  return hai_plus(hai_times(lanes * sizeof(uint64_t), take), hai_times(sizeof(float), words));
}
/* A sieve, places in the order, lse after blocks and after pins [lanes], and states m, l, o. */
static size_t hai_scratch_judges(const hai_plan *plan) {
  size_t floats = HAI_AS(size_t, plan->float_kernel->lanes) * (4 + HAI_AS(size_t, plan->value_dim));
  return (HAI_SIEVE + HAI_AUDITORS) * sizeof(int32_t) + floats * sizeof(float);
}

/* ---- The table ---- */

/* A row. What a build leaves out is NULL, so that compilers drop it. */
#define HAI_IF(build, what) (build) ? (what) : HAI_NULL
#ifdef HYPERATTN_NO_TEXTS
#define HAI_NAME(build, name)
#else
#define HAI_NAME(build, name) , HAI_IF(build, name)
#endif
/* clang-format off */
#define HAI_STAGE(when, build, name, run, pairing, axes, traits, wanted, chunks, scratch) \
  {HAI_IF(build, run), HAI_IF(build, wanted), HAI_IF(build, chunks), HAI_IF(build, scratch), \
   when, pairing, axes, traits HAI_NAME(build, name)}

/* Cheap choices are tried before expensive ones, and trials of a rectangle that is settled do nothing. A trial
   pairs only the groups of the held-out queries; what was chosen is then paired for all. */
static const hai_stage hai_stages[] = {
  HAI_STAGE(HAI_BEFORE, 1, "exact", hai_stage_exact, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_exact, hai_cut_shared_queries, hai_scratch_tiles),

  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "hash", hai_stage_hash, 0, HAI_KV_HEADS | HAI_HEADS, HAI_PLAIN,
            hai_wants_order, hai_cut_rows, hai_scratch_planes),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "order", hai_stage_order, 0, HAI_KV_HEADS | HAI_HEADS, HAI_PLAIN,
            hai_wants_order, hai_cut_nothing, hai_scratch_counters),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "probe", hai_stage_probe, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_probes, hai_cut_probed_keys, hai_scratch_tiles),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "sum", hai_stage_sum, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_probes, hai_cut_nothing, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "mass", hai_stage_mass, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_probes, hai_cut_probed_keys, hai_scratch_tiles),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "pin", hai_stage_pin, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_always, hai_cut_nothing, hai_scratch_heavy),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "weigh", hai_stage_weigh, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_weights, hai_cut_probed_keys, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "columns", hai_stage_columns, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_always, hai_cut_nothing, hai_scratch_none),

  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "judge", hai_stage_judge, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_judges, hai_cut_judged_keys, hai_scratch_tiles),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "try", hai_stage_try, HAI_NO_BLOCKS, HAI_HEADS, HAI_PLAIN,
            hai_wants_judges, hai_cut_nothing, hai_scratch_judges),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "means", hai_stage_means, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_scores, hai_cut_blocks, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "draft", hai_stage_draft, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_draft, hai_cut_groups, hai_scratch_pairing),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "try", hai_stage_try, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_judges, hai_cut_nothing, hai_scratch_judges),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "hash", hai_stage_hash, 1, HAI_KV_HEADS | HAI_HEADS, HAI_PLAIN,
            hai_wants_order, hai_cut_rows, hai_scratch_planes),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "order", hai_stage_order, 1, HAI_KV_HEADS | HAI_HEADS, HAI_PLAIN,
            hai_wants_order, hai_cut_nothing, hai_scratch_counters),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "means", hai_stage_means, 1, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_scores, hai_cut_blocks, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "draft", hai_stage_draft, 1, HAI_HEADS, HAI_PLAIN,
            hai_wants_draft, hai_cut_groups, hai_scratch_pairing),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "try", hai_stage_try, 1, HAI_HEADS, HAI_PLAIN,
            hai_wants_judges, hai_cut_nothing, hai_scratch_judges),

  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "pair", hai_stage_pair, 1, HAI_HEADS, HAI_PLAIN,
            hai_wants_scores, hai_cut_groups, hai_scratch_pairing),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "means", hai_stage_means, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_means_again, hai_cut_blocks, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "pair", hai_stage_pair, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_scores, hai_cut_groups, hai_scratch_pairing),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "cap", hai_stage_cap, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_cap, hai_cut_sampled_queries, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "witness", hai_stage_judge, 0, HAI_HEADS, HAI_AUDITS,
            hai_wants_report, hai_cut_judged_keys, hai_scratch_tiles),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "audit", hai_stage_audit, 0, HAI_HEADS, HAI_AUDITS,
            hai_wants_report, hai_cut_nothing, hai_scratch_judges),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "attend", hai_stage_attend, 0, HAI_HEADS, HAI_ALSO_EXACT,
            hai_wants_always, hai_cut_queries, hai_scratch_tiles),

  HAI_STAGE(HAI_AFTER, HAI_JUDGING, "report", hai_stage_report, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_report, hai_cut_nothing, hai_scratch_none)
};
/* clang-format on */

enum { HAI_N_STAGES = sizeof hai_stages / sizeof *hai_stages };
typedef char hai_plan_holds_all_stages[HAI_N_STAGES <= HAI_MAX_STAGES ? 1 : -1];

/* ======== resolve.h ======== */

/* ==== 13. Resolution =================================================================================
   From a problem and parameters to a plan. */

/* The scale of scores; its default is computed with the rounding of tasks. */
static float hai_scale_of(const hyperattn_problem *p, const hai_kernel *kernel) {
  uint32_t before;
  volatile float dim = HAI_AS(float, p->head_dim), scale; /* volatile: computed between the calls */
  if (p->scale != 0.0f) return p->scale;
  before = kernel->enter ? kernel->enter() : 0;
  scale = 1.0f / hai_sqrt(dim);
  if (kernel->leave) kernel->leave(before);
  return scale;
}

static void hai_resolve_shape(hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  plan->n_heads = hai_to_index(p->n_heads);
  plan->n_kv_heads = hai_to_index(p->n_kv_heads);
  plan->n_query = hai_to_index(p->n_query);
  plan->n_key = hai_to_index(p->n_key);
  plan->head_dim = hai_to_index(p->head_dim);
  plan->value_dim = hai_to_index(p->value_dim);
  plan->heads_per_kv = plan->n_heads / plan->n_kv_heads;
  plan->reporting = HAI_JUDGING && p->report;
}

static void hai_resolve_params(hai_plan *plan) {
  const hyperattn_params *p = plan->params;
  plan->min_seq_len = hai_clamp(p->min_seq_len, HAI_MAX_INDEX + 1);
  plan->block_size = hai_clamp(p->block_size, plan->n_key);
  plan->sample_size = hai_clamp(p->sample_size, plan->n_key);
  plan->heavy_keys = hai_clamp(p->heavy_keys, plan->n_key);
  plan->sink_keys = hai_clamp(p->sink_keys, plan->n_key);
  plan->probe_queries = hai_clamp(p->probe_queries, plan->n_query);
  plan->window =
      plan->problem->causal && p->method == HYPERATTN_HYPER ? hai_clamp(p->window, plan->n_key) : 0;
  plan->query_group = hai_clamp(p->query_group, hai_max(1, plan->n_query));
  plan->key_group = hai_clamp(p->key_group, hai_max(1, plan->n_key));
  plan->by_score = plan->block_size > 0 && plan->query_group > 0;
  plan->take = !plan->block_size ? 0
               : plan->by_score  ? hai_to_int(hai_max(1, plan->block_size / plan->key_group))
                                 : 1;
  plan->probing =
      plan->probe_queries > 0 && (plan->heavy_keys > 0 || p->sampling == HYPERATTN_SAMPLE_COLUMN_MASS);
  plan->n_pairings = p->order == HYPERATTN_ORDER_PROBED && plan->block_size > 0 ? 2 : 1;
  plan->sorted[0] = p->order == HYPERATTN_ORDER_SORTLSH;
  plan->sorted[1] = 1;
  plan->choosing = HAI_JUDGING && hai_choosing(p);
  plan->max_pins = hai_min(plan->sink_keys + plan->heavy_keys, plan->n_key);
  plan->max_wide =
      hai_trying_columns(plan) ? hai_min(plan->sample_size + plan->block_size, plan->n_key) : 0;
  plan->weighing =
      (plan->sample_size > 0 || hai_trying_columns(plan)) && p->sampling != HYPERATTN_SAMPLE_UNIFORM;
}

/* Whole tiles of the held-out queries of a rectangle. */
static hai_index hai_truth_floats(const hai_plan *plan) {
  hai_index most = plan->reporting ? HAI_AUDITORS : HAI_JUDGES, lanes = plan->float_kernel->lanes;
  return hai_ceil_div(hai_min(most, plan->n_query), lanes) * lanes * (2 + plan->value_dim);
}

static void hai_resolve_regions(hai_plan *plan) {
  int causal = plan->problem->causal, worth;
  plan->square = causal ? hai_min(plan->n_query, plan->n_key) : 0;
  plan->query_skip = causal ? plan->n_query - plan->square : 0;
  plan->key_skip = causal ? plan->n_key - plan->square : plan->n_key;
  plan->depth = 0;
  for (;;) { /* a level is approximated if its smallest rectangle is worth it */
    hai_index side = plan->square >> (plan->depth + 1);
    if (!side || !hai_worth(plan, side, side)) break;
    plan->depth++;
  }
  /* without any cut an exact prefix and the square are one segment; so is exact full attention */
  worth = plan->key_skip > 0 && hai_worth(plan, plan->n_query, plan->key_skip);
  plan->outer = plan->key_skip > 0 && (worth || plan->depth > 0);
  plan->outer_exact = plan->outer && !worth;
  if (!causal) plan->key_skip = 0;
  plan->max_rects = plan->depth ? hai_power_of_2(plan->depth - 1) : 1;
}

/* The stages that a call needs. */
static void hai_resolve_stages(hai_plan *plan) {
  int count[3] = {0, 0, 0}, n = 0, i; /* by hai_when */
  for (i = 0; i < HAI_N_STAGES; i++) {
    const hai_stage *stage = &hai_stages[i];
    int has_pairing = stage->pairing == HAI_NO_BLOCKS || stage->pairing < plan->n_pairings;
    if (!stage->run || !has_pairing || !stage->wanted(plan, stage->pairing)) continue;
    plan->stages[n++] = HAI_AS(unsigned char, i);
    count[stage->when]++;
  }
  plan->n_before = count[HAI_BEFORE];
  plan->n_per_level = count[HAI_PER_LEVEL];
  plan->n_after = count[HAI_AFTER];
}

/* Bytes of a worker: what its tiles share, a tile, and what any stage needs beside them. Whether there are
   levels must not matter, since that may change back as lengths grow. */
static size_t hai_worker_bytes(const hai_plan *plan) {
  size_t most = 0;
  int i, n = plan->n_before + (hai_may_approximate(plan) ? plan->n_per_level : 0);
  for (i = 0; i < n; i++) most = hai_most(most, hai_stages[plan->stages[i]].scratch(plan));
  return hai_plus(hai_chunk_bytes(plan) + hai_tile_bytes(plan), most);
}

/* The workspace, once all stages are known. */
HAI_APART void hai_resolve_layout(hai_plan *plan) {
  hai_layout *y = &plan->layout;
  hai_resolve_arrays(plan);
  y->scratch_bytes = hai_worker_bytes(plan);
  if (y->scratch_bytes > PTRDIFF_MAX - 2 * HAI_ALIGN) y->overflow = 1;
  y->scratch_bytes = hai_round_up(y->scratch_bytes + HAI_ALIGN);
}

/* Are queries, keys and values all in bfloat16, so that a kernel for it can take them as they are? */
static int hai_all_bf16(const hyperattn_problem *p) {
  return p->query.dtype == HYPERATTN_BF16 && p->key.dtype == HYPERATTN_BF16 &&
         p->value.dtype == HYPERATTN_BF16;
}

/* Everything about a call that needs no pointer and no stride. */
HAI_APART hyperattn_status hai_resolve(hai_plan *plan, const hyperattn_problem *problem,
                                       const hyperattn_params *params) {
  hyperattn_status status;
  hyperattn_isa isa;
  int bf16;
  if (!problem) return HYPERATTN_ERROR_NULL_PROBLEM;
  if (!params) return HYPERATTN_ERROR_NULL_PARAMS;
  if ((status = hai_check_shape(problem)) != HYPERATTN_OK) return status;
  if ((status = hai_check_params(params, problem->causal)) != HYPERATTN_OK) return status;
  if (hai_too_many(problem)) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  isa = params->isa;
  bf16 = hai_all_bf16(problem);
  plan->problem = problem;
  plan->params = params;
  hai_resolve_shape(plan);
  plan->float_kernel = hai_kernel_of(isa);
  plan->scale = hai_scale_of(problem, plan->float_kernel);
  plan->kernel = bf16 ? hai_kernel_of_bf16(isa, plan->head_dim, plan->value_dim) : HAI_NULL;
  plan->may_use_amx = bf16 && hai_may_use_amx(isa, plan->head_dim, plan->value_dim);
  if (!plan->kernel) plan->kernel = plan->float_kernel;
  hai_resolve_params(plan);
  hai_resolve_regions(plan);
  plan->truth_floats = hai_truth_floats(plan);
  hai_resolve_stages(plan);
  hai_resolve_layout(plan);
  return plan->layout.overflow ? HYPERATTN_ERROR_SIZE_OVERFLOW : HYPERATTN_OK;
}

/* ======== phases.h ======== */

/* ==== 14. Phases =====================================================================================
   Phase by phase, independent tasks. A phase is a stage at a level, or a stage before or after the levels; a
   task is (batch, head, rectangle, chunk), and writes nothing that another task of its phase touches. */

static int hai_phases(const hai_plan *plan) {
  return plan->n_before + hai_plan_levels(plan) * plan->n_per_level + plan->n_after;
}

/* The stage of a phase, and its level; 0 before and after the levels. */
static const hai_stage *hai_phase_stage(const hai_plan *plan, int phase, int *level) {
  int levels = hai_plan_levels(plan), n = phase - plan->n_before;
  *level = 0;
  if (n >= levels * plan->n_per_level) {
    phase -= (levels - 1) * plan->n_per_level;
  } else if (n >= 0) {
    *level = n / plan->n_per_level;
    phase -= *level * plan->n_per_level;
  }
  return &hai_stages[plan->stages[phase]];
}

/* Tasks of a phase along each axis but the batch: heads (kv heads first, then query heads), rectangles,
   chunks. */
typedef struct hai_grid {
  hai_index kv_heads, heads, rects, chunks;
} hai_grid;

static hai_grid hai_phase_grid(const hai_plan *plan, const hai_stage *stage, int level) {
  hai_grid g;
  hai_index n_query = plan->n_query, n_key = plan->n_key;
  g.kv_heads = stage->axes & HAI_KV_HEADS ? plan->n_kv_heads : 0;
  g.heads = stage->axes & HAI_HEADS ? plan->n_heads : 0;
  g.rects = 1;
  if (stage->when == HAI_PER_LEVEL) {
    n_query = hai_level_queries(plan, level);
    n_key = hai_level_keys(plan, level);
    g.rects = hai_plan_rects(plan, level);
  }
  g.chunks = stage->chunks(plan, n_query, n_key);
  if (level >= plan->depth && plan->outer_exact && stage->when == HAI_PER_LEVEL &&
      !(stage->traits & HAI_ALSO_EXACT))
    g.chunks = 0; /* every key is met there */
  return g;
}

static int64_t hai_phase_tasks(const hai_plan *plan, int phase) {
  int level;
  const hai_stage *stage = hai_phase_stage(plan, phase, &level);
  hai_grid g = hai_phase_grid(plan, stage, level);
  int64_t rects = g.rects;
  if (plan->n_query == 0) return 0; /* not even a report: no buffer was asked for */
  return rects * g.chunks * (g.kv_heads + g.heads) * plan->problem->batch;
}

static char *hai_align(void *workspace) {
  uintptr_t slack = HAI_AS(uintptr_t, 0) - HAI_REINTERPRET(uintptr_t, workspace);
  return HAI_AS(char *, workspace) + slack % HAI_ALIGN;
}

/* Task `index` of a phase: which head, rectangle and chunk it is about. */
static const hai_stage *hai_job_at(hai_job *job, const hai_plan *plan, void *workspace, int phase,
                                   int64_t index, int worker) {
  const hai_stage *stage = hai_phase_stage(plan, phase, &job->level);
  hai_grid g = hai_phase_grid(plan, stage, job->level);
  hai_index head;
  job->pairing = stage->pairing;
  job->audit = stage->traits & HAI_AUDITS;
  job->plan = plan;
  job->base = hai_align(workspace);
  job->scratch = job->base + plan->layout.scratch + plan->layout.scratch_bytes * HAI_AS(size_t, worker);
  job->chunk = hai_to_index(index % g.chunks); /* NOLINT(clang-analyzer-core.DivideZero): a task has one */
  index /= g.chunks;
  job->rect = hai_rect_at(plan, job->level, hai_to_index(index % g.rects));
  index /= g.rects;
  head = hai_to_index(index % (g.kv_heads + g.heads));
  job->batch = hai_to_index(index / (g.kv_heads + g.heads));
  job->head = head < g.kv_heads ? -1 : head - g.kv_heads;
  job->kv_head = head < g.kv_heads ? head : job->head / plan->heads_per_kv;
  job->tile = hai_tile_place(job, HAI_NULL, &job->scratch);
  return stage;
}

HAI_APART void hai_run(const hai_plan *plan, void *workspace, int phase, int64_t index, int worker) {
  hai_job job;
  const hai_stage *stage = hai_job_at(&job, plan, workspace, phase, index, worker);
  uint32_t before = plan->kernel->enter ? plan->kernel->enter() : 0;
  stage->run(&job);
  if (plan->kernel->leave) plan->kernel->leave(before);
}

/* ======== entry.h ======== */

/* ==== 15. Entry points =============================================================================== */

#define HAI_STATUS_CASE(name, code, text) \
  case code: return text;
HYPERATTN_API const char *hyperattn_status_string(hyperattn_status status) {
#ifdef HYPERATTN_NO_TEXTS
  (void)status;
  return "";
#else
  switch (HAI_AS(int, status)) {
    HYPERATTN_STATUS_LIST(HAI_STATUS_CASE)
    default: return "unknown status";
  }
#endif
}

HYPERATTN_API hyperattn_params hyperattn_paper_params(void) {
  hyperattn_params p;
  HYPERATTN_MEMSET(&p, 0, sizeof p);
  p.method = HYPERATTN_HYPER;
  p.min_seq_len = 4096;
  p.block_size = 256;
  p.sample_size = 256;
  p.lsh_bits = 7;
  p.order = HYPERATTN_ORDER_SORTLSH;
  p.sampling = HYPERATTN_SAMPLE_UNIFORM;
  p.isa = HYPERATTN_ISA_AUTO;
  return p;
}

HYPERATTN_API hyperattn_params hyperattn_default_params(void) {
  hyperattn_params p = hyperattn_paper_params();
  p.min_seq_len = 1024;
  p.sample_size = 160;
  p.heavy_keys = 96;
  p.sink_keys = 4;
  p.probe_queries = 96;
  p.window = 256;
  p.lsh_bits = 12;
  p.query_group = 16;
  p.key_group = 16;
  p.order = HYPERATTN_ORDER_PROBED;
  p.tolerance = 0.1f;
  p.sampling = HYPERATTN_SAMPLE_COLUMN_MASS;
  return p;
}

HYPERATTN_API size_t hyperattn_workspace_size(const hyperattn_problem *problem,
                                              const hyperattn_params *params, int n_workers) {
  hai_plan plan;
  if (n_workers < 1 || hai_resolve(&plan, problem, params) != HYPERATTN_OK) return 0;
  return hai_layout_size(&plan.layout, n_workers);
}

static hyperattn_status hai_check(hai_plan *plan, const hyperattn_problem *problem,
                                  const hyperattn_params *params, const void *workspace,
                                  size_t workspace_size, int n_workers) {
  hyperattn_status status = hai_resolve(plan, problem, params);
  return status == HYPERATTN_OK ? hai_check_buffers(plan, workspace, workspace_size, n_workers) : status;
}

HYPERATTN_API hyperattn_status hyperattn_check(const hyperattn_problem *problem,
                                               const hyperattn_params *params, const void *workspace,
                                               size_t workspace_size, int n_workers) {
  hai_plan plan;
  return hai_check(&plan, problem, params, workspace, workspace_size, n_workers);
}

HYPERATTN_API hyperattn_status hyperattn_forward(const hyperattn_problem *problem,
                                                 const hyperattn_params *params, void *workspace,
                                                 size_t workspace_size) {
  hai_plan plan;
  hyperattn_status status = hai_check(&plan, problem, params, workspace, workspace_size, 1);
  int phase;
  int64_t index, n;
  if (status != HYPERATTN_OK) return status;
  for (phase = 0; phase < hai_phases(&plan); phase++)
    for (index = 0, n = hai_phase_tasks(&plan, phase); index < n; index++)
      hai_run(&plan, workspace, phase, index, 0);
  return HYPERATTN_OK;
}

typedef struct hai_parallel_phase {
  const hai_plan *plan;
  void *workspace;
  int phase;
} hai_parallel_phase;

static void hai_parallel_task(void *arg, int64_t index, int worker) {
  const hai_parallel_phase *p = HAI_AS(const hai_parallel_phase *, arg);
  hai_run(p->plan, p->workspace, p->phase, index, worker);
}

HYPERATTN_API hyperattn_status hyperattn_forward_parallel(const hyperattn_problem *problem,
                                                          const hyperattn_params *params,
                                                          const hyperattn_parallel *parallel,
                                                          void *workspace, size_t workspace_size) {
  hai_plan plan;
  hai_parallel_phase p;
  hyperattn_status status;
  if (!parallel || !parallel->parallel_for) return HYPERATTN_ERROR_NULL_PARALLEL;
  status = hai_check(&plan, problem, params, workspace, workspace_size, parallel->n_workers);
  if (status != HYPERATTN_OK) return status;
  p.plan = &plan;
  p.workspace = workspace;
  for (p.phase = 0; p.phase < hai_phases(&plan); p.phase++) {
    int64_t n = hai_phase_tasks(&plan, p.phase);
    if (n) parallel->parallel_for(parallel->context, n, hai_parallel_task, &p);
  }
  return HYPERATTN_OK;
}

HYPERATTN_API int hyperattn_phase_count(const hyperattn_problem *problem, const hyperattn_params *params) {
  hai_plan plan;
  return hai_resolve(&plan, problem, params) == HYPERATTN_OK ? hai_phases(&plan) : 0;
}

HYPERATTN_API int64_t hyperattn_phase_tasks(const hyperattn_problem *problem,
                                            const hyperattn_params *params, int phase) {
  hai_plan plan;
  if (hai_resolve(&plan, problem, params) != HYPERATTN_OK || phase < 0 || phase >= hai_phases(&plan))
    return 0;
  return hai_phase_tasks(&plan, phase);
}

HYPERATTN_API void hyperattn_run_task(const hyperattn_problem *problem, const hyperattn_params *params,
                                      void *workspace, int phase, int64_t index, int worker) {
  hai_plan plan;
  if (hai_resolve(&plan, problem, params) == HYPERATTN_OK) hai_run(&plan, workspace, phase, index, worker);
}

HYPERATTN_API hyperattn_status hyperattn_merge(int64_t batch, int64_t n_heads, int64_t n_query,
                                               int64_t value_dim, hyperattn_output a, float *lse_a,
                                               hyperattn_input b, const float *lse_b) {
  hyperattn_input tensor = hai_tensor_of(&a);
  hyperattn_status status = hai_check_merge(batch, n_heads, n_query, value_dim, &tensor, lse_a, &b, lse_b);
  hai_index i, h, q, t, flat = 0;
  if (status != HYPERATTN_OK) return status;
  for (i = 0; i < batch; i++)
    for (h = 0; h < n_heads; h++)
      for (q = 0; q < n_query; q++, flat++) {
        char *out_a = hai_out_row(&a, i, h, q);
        const char *out_b = hai_row(&b, i, h, q);
        /* b alone has met something, finite or not */
        int alone = lse_a[flat] == -hai_inf() && lse_b[flat] != -hai_inf();
        float lse = hai_log_add(lse_a[flat], lse_b[flat]);
        float weight_a = hai_share(lse_a[flat], lse), weight_b = alone ? 1.0f : hai_share(lse_b[flat], lse);
        if (weight_b == 0.0f) continue; /* it may hold anything and is not read */
        for (t = 0; t < value_dim; t++) {
          float x = weight_b * hai_get(out_b, b.dtype, t);
          hai_put(out_a, a.dtype, t, weight_a == 0.0f ? x : weight_a * hai_get(out_a, a.dtype, t) + x);
        }
        lse_a[flat] = lse;
      }
  return HYPERATTN_OK;
}

HYPERATTN_API hyperattn_isa hyperattn_detect_isa(void) {
  const hai_kernel *bf16 = hai_kernel_of_bf16(HYPERATTN_ISA_AUTO, HAI_MAX_DIM, HAI_MAX_DIM);
  return (bf16 ? bf16 : hai_kernel_of(HYPERATTN_ISA_AUTO))->isa;
}

HYPERATTN_API const char *hyperattn_isa_name(hyperattn_isa isa) {
  switch (HAI_AS(int, isa)) {
    case HYPERATTN_ISA_AUTO: return "auto";
    case HYPERATTN_ISA_SCALAR: return "scalar";
    case HYPERATTN_ISA_AVX2: return "avx2";
    case HYPERATTN_ISA_AVX512: return "avx512";
    case HYPERATTN_ISA_AVX512_BF16: return "avx512-bf16";
    case HYPERATTN_ISA_NEON: return "neon";
    case HYPERATTN_ISA_AMX_BF16: return "amx-bf16";
    default: return "unknown";
  }
}


#undef HAI_AHEAD
#undef HAI_ALIGN
#undef HAI_AMX
#undef HAI_AMX_FENCE
#undef HAI_AMX_PRODUCTS
#undef HAI_AMX_ROOM
#undef HAI_AMX_ROWS
#undef HAI_AMX_TILE
#undef HAI_APART
#undef HAI_ARRAY
#undef HAI_ARRAYS
#undef HAI_ARRAY_ID
#undef HAI_AS
#undef HAI_AUDITORS
#undef HAI_AVX2
#undef HAI_AVX512
#undef HAI_AVX512_BF16
#undef HAI_CARRY
#undef HAI_CARRY_CHUNKS
#undef HAI_CHUNK
#undef HAI_ELEMENT_avx2
#undef HAI_ELEMENT_avx512
#undef HAI_ELEMENT_avx512bf
#undef HAI_ELEMENT_neon
#undef HAI_ELEMENT_neonbf
#undef HAI_FAIR
#undef HAI_FINISH_PAIRS
#undef HAI_FINISH_avx2
#undef HAI_FINISH_avx512
#undef HAI_FINISH_avx512bf
#undef HAI_FINISH_neon
#undef HAI_FINISH_neonbf
#undef HAI_FMA_1
#undef HAI_FMA_2
#undef HAI_FMA_3
#undef HAI_GOOD
#undef HAI_HALVES
#undef HAI_HIGH
#undef HAI_HOT
#undef HAI_HYPER
#undef HAI_IF
#undef HAI_INLINE
#undef HAI_JUDGES
#undef HAI_JUDGE_CHUNKS
#undef HAI_JUDGE_KEYS
#undef HAI_JUDGE_RUN
#undef HAI_JUDGING
#undef HAI_KERNEL
#undef HAI_KERNEL_BF16
#undef HAI_KEY_ROW
#undef HAI_KEY_STEP
#undef HAI_LANES_avx2
#undef HAI_LANES_avx512
#undef HAI_LANES_avx512bf
#undef HAI_LANES_neon
#undef HAI_LANES_neonbf
#undef HAI_LEAP
#undef HAI_LOAD_1
#undef HAI_LOAD_2
#undef HAI_LOAD_3
#undef HAI_LONG_SUMS
#undef HAI_MAX_DIM
#undef HAI_MAX_INDEX
#undef HAI_MAX_LANES
#undef HAI_MAX_STAGES
#undef HAI_MAX_TILES
#undef HAI_MERGE_1
#undef HAI_MERGE_2
#undef HAI_MERGE_3
#undef HAI_MICRO
#undef HAI_MICRO_SCORES
#undef HAI_MICRO_VALUES
#undef HAI_NAME
#undef HAI_NAMES
#undef HAI_NAMES_1
#undef HAI_NAMES_2
#undef HAI_NAMES_3
#undef HAI_NEON
#undef HAI_NEON_BF16
#undef HAI_NULL
#undef HAI_ONCE
#undef HAI_PACK
#undef HAI_PAIR_DENSE
#undef HAI_PAIR_GROUPS
#undef HAI_PLACE
#undef HAI_PREFETCH
#undef HAI_PROBE_CHUNKS
#undef HAI_PROBE_KEYS
#undef HAI_PRODUCTS
#undef HAI_Q8_0_BYTES
#undef HAI_Q8_0_ELEMENTS
#undef HAI_REINTERPRET
#undef HAI_ROUNDS
#undef HAI_ROWS_1
#undef HAI_ROWS_16
#undef HAI_ROWS_4
#undef HAI_ROWS_8
#undef HAI_SCALAR_LANES
#undef HAI_SCALE
#undef HAI_SCORE_OUT
#undef HAI_SCORE_STEP
#undef HAI_SCORE_STEPS_1
#undef HAI_SCORE_STEPS_2
#undef HAI_SCORE_STEPS_3
#undef HAI_SHOW
#undef HAI_SIEVE
#undef HAI_SIMD
#undef HAI_SOFTMAX
#undef HAI_STAGE
#undef HAI_STATUS_CASE
#undef HAI_STORE_1
#undef HAI_STORE_2
#undef HAI_STORE_3
#undef HAI_SUM_LANES
#undef HAI_SUPERBLOCK
#undef HAI_TARGET_amx
#undef HAI_TARGET_avx2
#undef HAI_TARGET_avx512
#undef HAI_TARGET_avx512bf
#undef HAI_TARGET_neon
#undef HAI_TARGET_neonbf
#undef HAI_TASK_GROUPS
#undef HAI_TASK_QUERIES
#undef HAI_TASK_ROWS
#undef HAI_TILES_BYTES
#undef HAI_TIMES
#undef HAI_TIMES_1
#undef HAI_TIMES_2
#undef HAI_TIMES_3
#undef HAI_UNPACK
#undef HAI_VALUE_OUT
#undef HAI_VALUE_STEP
#undef HAI_VECTORS_1
#undef HAI_VECTORS_2
#undef HAI_VECTORS_3
#undef HAI_V_avx2
#undef HAI_V_avx512
#undef HAI_V_avx512bf
#undef HAI_V_neon
#undef HAI_WIDEN
#undef HAI_WIDTH_avx2
#undef HAI_WIDTH_avx512
#undef HAI_WIDTH_avx512bf
#undef HAI_WIDTH_neon
#undef HAI_WIDTH_neonbf
#undef HAI_X86_64
#undef HAI_ZERO
#undef HAI_ZERO_1
#undef HAI_ZERO_2
#undef HAI_ZERO_3
#undef hai_add_avx512bf
#undef hai_add_neonbf
#undef hai_fma_avx512bf
#undef hai_fma_neonbf
#undef hai_gather4_avx512bf
#undef hai_gather4_neonbf
#undef hai_load_avx512bf
#undef hai_load_neonbf
#undef hai_mul_avx512bf
#undef hai_mul_neonbf
#undef hai_pack_rest_avx2
#undef hai_pack_rest_avx512
#undef hai_pack_rest_avx512bf
#undef hai_pack_rest_neon
#undef hai_pack_rest_neonbf
#undef hai_store_avx512bf
#undef hai_store_neonbf
#undef hai_transpose4_avx512bf
#undef hai_transpose4_neonbf
#undef hai_zero_avx512bf
#undef hai_zero_neonbf

#endif /* HYPERATTN_IMPLEMENTATION */

/*
MIT License

Copyright (c) 2026 the hyperattn.h authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
*/
