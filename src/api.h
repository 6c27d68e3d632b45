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
