#include <stddef.h>
#include <stdint.h>

#define HYPERATTN_VERSION_MAJOR 0
#define HYPERATTN_VERSION_MINOR 2
#define HYPERATTN_VERSION_PATCH 0

/* HYPERATTN_API is put before every function, where it is declared and where it is defined. */
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

/* Every kind of mistake with its code and its sentence: X(name, code, text). */
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
  X(ERROR_DTYPE_UNSUPPORTED, -21, "query, mask, out or a part of a merge is Q8_0")                      \
  X(ERROR_OUT_STRIDE, -23, "out's strides are negative or let rows overlap")                            \
  X(ERROR_EXTENT, -24, "a tensor's extent in bytes exceeds PTRDIFF_MAX")                                \
  X(ERROR_ALIGNMENT, -25, "a tensor is not aligned to its element")                                     \
  X(ERROR_OVERLAP, -26, "out, lse, query_error or workspace overlaps another buffer")                   \
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
  X(ERROR_WORKSPACE_SIZE, -52, "the workspace is smaller than hyperattn_workspace_size")                \
  X(ERROR_SOFTCAP, -53, "softcap is negative, NaN or infinite")                                         \
  X(ERROR_SLIDING_WINDOW, -54, "sliding_window is negative")                                            \
  X(ERROR_CUSTOM, -55, "query, mask, out or a part of a merge is CUSTOM")                               \
  X(ERROR_NULL_WIDEN, -56, "a CUSTOM key or value has no widen")                                        \
  X(ERROR_PAGED, -57, "query.page or mask.page is set: only keys and values have pages")                \
  X(ERROR_PAGE_ROWS, -58, "page_rows is not in 1 .. 2^31 - 1 where page is set")                        \
  X(ERROR_N_PROBLEMS, -59, "n_problems is negative")                                                    \
  X(ERROR_QUERY_ERROR, -60, "query_error is set under HYPERATTN_HYPER")                                 \
  X(ERROR_INDEX, -61, "index is none for this problem: other sizes, beyond n_key or full, or damaged")  \
  X(ERROR_NULL_INDEX, -62, "index or its memory is NULL")                                               \
  X(ERROR_INDEX_SIZE, -63, "the index's memory is smaller than hyperattn_index_size")

typedef enum hyperattn_status {
#define HYPERATTN_STATUS_ENUM(name, code, text) HYPERATTN_##name = code,
  HYPERATTN_STATUS_LIST(HYPERATTN_STATUS_ENUM)
#undef HYPERATTN_STATUS_ENUM
      HYPERATTN_STATUS_LAST = -64 /* not a status: below every code */
} hyperattn_status;

/* The sentence of a status, a constant string: "unknown status" for any number that is no status, "" under
   HYPERATTN_NO_TEXTS. */
HYPERATTN_API const char *hyperattn_status_string(hyperattn_status status);

/* ---- The problem: what to compute ------------------------------------------------------------------ */

/* 16-bit numbers are in the machine's byte order. Q8_0 is ggml's format: blocks of 34 bytes for 32 numbers
   x = d q, an F16 scale d followed by 32 signed bytes q. A row begins with a block. */
typedef enum hyperattn_dtype {
  HYPERATTN_F32 = 0,
  HYPERATTN_F16,  /* IEEE 754 binary16 */
  HYPERATTN_BF16, /* the upper half of an F32 */
  HYPERATTN_Q8_0, /* keys and values only; strides are multiples of 32 */
  /* Keys and values only: any format, by hyperattn_input.widen; strides, page_stride too, are in bytes. The
     library does not know how long a row is, so it checks its overlap with results for its first byte
     only. */
  HYPERATTN_CUSTOM
} hyperattn_dtype;

/* A tensor [batch][head][row][dim] whose last dimension is contiguous. Strides are in elements; the
   stride of a dimension of size 1 is ignored. Inputs may overlap one another and have zero or negative
   strides, so a row stride that was forgotten (0) means that every row is the same row, and is no error.
   For rows-first tensors [token][head][dim], head_stride = dim and row_stride = heads * dim.

   Keys and values may lie in pages. Row r of head h is then at data + b * batch_stride + h * head_stride +
   page[b * page_batch_stride + r / page_rows] * page_stride + (r % page_rows) * row_stride; a pool that
   all sequences share has batch_stride 0. With page_rows 1 the pages are a list of rows, in any order,
   with repeats. The caller keeps page numbers in range: sizes and checks do not read them, so neither the
   extent of the rows nor their overlap with a result is checked. The numbers of all keys that causal and
   sliding_window let any row see must be valid, also where a mask hides the key; others are not read. */
typedef struct hyperattn_input {
  const void *data;
  hyperattn_dtype dtype;
  ptrdiff_t batch_stride, head_stride, row_stride;
  /* HYPERATTN_CUSTOM, else unused: to[t] = element t of the row at `row`, for t < n, which is head_dim or
     value_dim. It has the signature of ggml's to_float. Workers call it at the same time. */
  void (*widen)(const void *row, float *to, int64_t n);
  const int32_t *page; /* NULL, or page numbers [batch][page_batch_stride]; keys and values only */
  int64_t page_rows;   /* rows of a page: 1 .. 2^31 - 1 where page is set, else unused */
  ptrdiff_t page_stride, page_batch_stride; /* from page to page, as other strides; entries of page */
} hyperattn_input;

/* The same for a result: its strides are not negative and its rows do not overlap. */
typedef struct hyperattn_output {
  void *data;
  hyperattn_dtype dtype;
  ptrdiff_t batch_stride, head_stride, row_stride;
} hyperattn_output;

/* How a call went, for one query head. Under HYPERATTN_SCAN every query tells its own error, by the sample
   that it met. Under HYPERATTN_HYPER held-out queries measure it: up to 192 of each approximated rectangle,
   in runs of four, which have no part in any choice, meet all keys of the rectangle, and what they get is
   compared with what the rectangle's choice gives them; in a rectangle that is scanned (tolerance) they tell
   what they estimate of themselves. Keys that a row meets after a rectangle take weight from that rectangle's
   error; errors of several rectangles add up like independent ones. Where an error cannot be told, for
   example because weighted values exceed a float's range, it is infinite. */
typedef struct hyperattn_report {
  /* Estimate of |out - exact| / |exact|, in Frobenius norms over the head. 0: all of it is exact. SCAN: from
     what the queries estimate of themselves. */
  float error;
  /* HYPER: the largest |out_i - exact_i| / |exact_i| that one rectangle causes a held-out query. SCAN: the
     largest estimate of any query. */
  float max_error;
  /* HYPER: share of the approximated rectangles for which no budget was good enough. SCAN: `doubled`. */
  float escalated;
  /* Share of the queries that met every key; 0 in a call that approximates nothing. HYPER: of a rectangle, on
     average over those that were up for approximation. */
  float exact;
  /* Products of a query and a key over n_query. HYPER: probing, pairing and judging are included. The
     estimates of a scan are not counted. */
  float keys_per_query;
  /* Shares of the attention, as those queries see it, of blocks (SCAN: 0), pinned keys (SCAN: sink keys) and
     sampled keys. */
  float block_mass, pinned_mass, sampled_mass;
  /* The rest, which is met exactly: windows, diagonal segments and exact regions; and a sink's share. */
  float window_mass;
  /* The paper's alpha: n_key times the largest squared column norm of the normalised scores, measured by
     the probes (0 without), in the rectangle where it is largest. SCAN: 0. */
  float alpha;
  /* The paper's kappa: the largest over the smallest sum of e^score outside the blocks, measured by the
     held-out queries, in the rectangle where it is largest. SCAN: 0. */
  float kappa;
  /* The estimated relative error |out_i - exact_i| / |exact_i| of a query that 50 %, 99 % and 99.9 % of the
     head's queries do not exceed. HYPER: infinite where anything is approximated, since a few queries of each
     rectangle cannot tell. */
  float error_median, error_99, error_999;
  /* SCAN: share of the queries whose tile was scanned again, with a larger budget. HYPER: 0. */
  float doubled;
} hyperattn_report;

/* What is known of the keys of a cache: hyperattn_index_init makes it in the caller's memory. */
typedef struct hyperattn_index hyperattn_index;

/* Zero it first ({0} in C, {} in C++), then set the fields that apply. */
typedef struct hyperattn_problem {
  int64_t batch, n_heads, n_kv_heads; /* batch may be 0; n_heads % n_kv_heads == 0 */
  int64_t n_query, n_key;             /* may be 0 */
  int64_t head_dim, value_dim;        /* 1 .. 576 */
  int causal;                         /* 0: all keys. 1: query i sees keys 0 .. i + n_key - n_query */
  float scale;                        /* 0: 1 / sqrt(head_dim) */
  hyperattn_input query;              /* [batch][n_heads][n_query][head_dim] */
  hyperattn_input key;                /* [batch][n_kv_heads][n_key][head_dim] */
  hyperattn_input value;              /* [batch][n_kv_heads][n_key][value_dim] */
  hyperattn_output out;        /* [batch][n_heads][n_query][value_dim]; overlaps no input, no workspace */
  float *lse;                  /* NULL, or contiguous [batch][n_heads][n_query], always in this order */
  float softcap;               /* 0, or > 0: scores become softcap * tanh(score / softcap), before the mask */
  /* 0, or > 0: a query at position P = i + n_key - n_query sees only keys j with P - j < sliding_window and,
     where causal is 0, j - P < sliding_window. Where that hides a key, the call is exact. */
  int64_t sliding_window;
  /* data NULL, or F32, F16 or BF16 [batch][n_heads][n_query][n_key], added to the scores; strides of 0
     repeat it. -inf hides a key, whatever it and its value hold; where its product with the slope is NaN or
     +inf, the row is NaN. With a mask the call is exact, whatever the method. Set data before asking for
     sizes: whether it is NULL counts. */
  hyperattn_input mask;
  const float *mask_slope; /* NULL: 1; else [n_heads], by which the mask, if any, is multiplied (ALiBi) */
  const float *sink; /* NULL, or [n_heads]: a score that joins each row's sum and has no value; -inf: none */
  hyperattn_report *report;    /* NULL, or contiguous [batch][n_heads]; set it before asking for sizes */
  /* NULL, or contiguous [batch][n_heads][n_query]: each query's estimated relative error |out - exact| /
     |exact|, 0 where it is exact, infinite where it cannot be told. HYPERATTN_SCAN estimates it; under
     HYPERATTN_EXACT all are 0; under HYPERATTN_HYPER it must be NULL. Set it before asking for sizes. */
  float *query_error;
  /* NULL, or what is known of the keys. Under SCAN and HYPER, up to 16 queries of a head (AVX2: 4, NEON: 8)
     then look up which keys matter to any of up to four heads that share them, and read no others:
     sample_size is their first budget, in keys of each query; sink_keys, window (causal), tolerance and seed
     apply. It pays from some 4000 keys on, for groups of four heads from 8000. Set it before asking for
     sizes: whether it is NULL counts. */
  hyperattn_index *index;
} hyperattn_problem;

#ifndef HYPERATTN_NO_BUILDERS
/* A whole problem for contiguous float32 tensors: heads first, [batch][head][row][dim], or tokens first,
   [batch][row][head][dim]. Not causal, no lse, everything else zero: change what differs. Numbers and
   pointers are checked by the call that takes the problem. */
HYPERATTN_API hyperattn_problem hyperattn_heads_first(int64_t batch, int64_t n_heads, int64_t n_kv_heads,
                                                      int64_t n_query, int64_t n_key, int64_t head_dim,
                                                      int64_t value_dim, const void *query, const void *key,
                                                      const void *value, void *out);
HYPERATTN_API hyperattn_problem hyperattn_tokens_first(int64_t batch, int64_t n_heads, int64_t n_kv_heads,
                                                       int64_t n_query, int64_t n_key, int64_t head_dim,
                                                       int64_t value_dim, const void *query, const void *key,
                                                       const void *value, void *out);
#endif

/* ---- The parameters: how to approximate it -------------------------------------------------------- */

typedef enum hyperattn_method {
  /* Near-linear: a rectangle's queries meet a budget of keys that is chosen for them together. With a
     tolerance, rectangles for which that is not good enough are scanned. */
  HYPERATTN_HYPER = 0,
  HYPERATTN_EXACT, /* every key */
  /* Every key's score is estimated for every query, in a tenth to a third of the time of exact attention; a
     few queries together then meet the keys that those estimates say matter to any of them, and a sample of
     the rest. Each query knows its own error. */
  HYPERATTN_SCAN
} hyperattn_method;

/* The probability p_j of drawing key j, of the n keys of a rectangle that are not pinned. */
typedef enum hyperattn_sampling {
  HYPERATTN_SAMPLE_UNIFORM = 0, /* 1 / n, as in the paper's practical section */
  HYPERATTN_SAMPLE_VALUE_NORM,  /* Algorithm 3: p_j = 0.8 |v_j|^2 / sum + 0.2 / n */
  HYPERATTN_SAMPLE_COLUMN_MASS /* p_j = 0.8 M_j |v_j| / sum + 0.2 / n, M_j the probes' attention to key j */
} hyperattn_sampling;

typedef enum hyperattn_order {
  HYPERATTN_ORDER_SORTLSH = 0, /* Algorithm 1: sorted by angular hash */
  HYPERATTN_ORDER_POSITION,    /* as they come */
  /* For each rectangle and head, the one of these two that held-out queries find better, or no blocks and
     block_size more sampled columns instead. */
  HYPERATTN_ORDER_PROBED
} hyperattn_order;

typedef enum hyperattn_isa {
  HYPERATTN_ISA_AUTO = 0, /* the best that this machine has */
  HYPERATTN_ISA_SCALAR,
  HYPERATTN_ISA_AVX2,
  HYPERATTN_ISA_AVX512,
  /* vdpbf16ps where queries, keys and values are BF16 and queries are not few, otherwise AVX-512. */
  HYPERATTN_ISA_AVX512_BF16,
  HYPERATTN_ISA_NEON,
  /* AMX tiles where queries, keys and values are BF16 and queries are not few, otherwise AVX-512. AUTO
     takes them where the process has asked Linux for permission: syscall(SYS_arch_prctl, 0x1023, 18). */
  HYPERATTN_ISA_AMX_BF16,
  HYPERATTN_ISA_LAST = HYPERATTN_ISA_AMX_BF16 /* not one of its own: the largest of these */
} hyperattn_isa;

/* Start from a preset, for exact attention too: p = hyperattn_default_params(); p.method = HYPERATTN_EXACT.
   All zeros is not valid. A count of 0 means none. Every field is checked, even where it is not used:
   HYPERATTN_EXACT reads only isa; HYPERATTN_SCAN min_seq_len, sample_size, sink_keys, window, tolerance, seed
   and isa; HYPERATTN_HYPER all of them. */
typedef struct hyperattn_params {
  hyperattn_method method;
  int64_t min_seq_len; /* >= 1: where fewer keys would be scanned, or a region has fewer, all are met */
  int64_t block_size;  /* keys that a query meets because of their place in the order; 0: no blocks */
  /* HYPER: columns drawn from a rectangle's other keys; all of them if there are no more. Of a scan: the
     first budget b, and with a tolerance the least: a tile of queries keeps each key with probability min(1,
     b times the largest share of attention that the key is estimated to have in any of them). */
  int64_t sample_size;
  int32_t lsh_bits;    /* 1 .. 16 hyperplanes, so 2^lsh_bits buckets */
  /* Both positive: each query_group queries choose block_size / key_group sub-blocks of key_group keys by
     score. Both 0: the paper's pairing, block i of the queries with block i of the keys. */
  int64_t query_group;
  int64_t key_group;
  hyperattn_order order; /* how rows are ordered before they are cut into blocks or groups */
  int64_t sink_keys;     /* keys 0 .. sink_keys - 1 are met exactly (problem.sink is something else) */
  int64_t heavy_keys;    /* so many keys of largest column mass are pinned, per rectangle and head */
  int64_t probe_queries; /* so many queries meet every key, per rectangle and head */
  /* causal: a query's last `window` keys, its own included, are exact; else unused. It hides nothing: a
     model's window is problem.sliding_window. */
  int64_t window;
  hyperattn_sampling sampling;
  /* 0: the budget and no more. HYPER, > 0: the relative error that each rectangle may have, as held-out
     queries judge it (it needs probe_queries); a rectangle that misses it is scanned, as by SCAN, with
     sample_size as the first budget. SCAN, > 0: the relative error that each query may have, as its own
     sample tells; where queries of a tile miss it, the tile is scanned again with a larger budget or these
     queries meet every key, whatever costs less. */
  float tolerance;
  float cap_epsilon; /* full attention: the cap of Algorithm 2's normaliser; 0: off */
  float cap_kappa;   /* full attention: its floor; 0: off */
  uint64_t seed;     /* any number */
  hyperattn_isa isa; /* one that is absent is an error, never a silent fallback */
} hyperattn_params;

/* The best measured quality for its cost on language models: HYPERATTN_SCAN with a tolerance of 0.1 for each
   query, a budget of 256 or more, 4 sink keys, a window of 256, and exact attention where fewer than 1024
   keys would be scanned. The other fields are those of hyperattn_linear_params, which serves in its place in
   a build without the scan, with this tolerance. */
HYPERATTN_API hyperattn_params hyperattn_default_params(void);

/* HYPERATTN_HYPER with a fixed number of keys per query, for contexts so long that only near-linear time will
   do: 96 heavy keys, 4 sink keys, a window of 256 and, for each rectangle and head, whichever of these
   held-out queries find best: 416 columns sampled by mass, or 160 columns and the 16 sub-blocks of 16 keys
   that each group of 16 queries scores best, in order of position or by hash. Tolerance 0: no error is
   promised. */
HYPERATTN_API hyperattn_params hyperattn_linear_params(void);

/* The paper's parameters: sortLSH with 7 bits, blocks of 256 keys paired by rank, 256 columns sampled
   uniformly, and exact attention below 4096 keys. */
HYPERATTN_API hyperattn_params hyperattn_paper_params(void);

/* ---- Running it ------------------------------------------------------------------------------------- */

/* Bytes of workspace that a call with at most n_workers workers needs, slack for any alignment included. 0:
   the problem or params are invalid, or n_workers < 1; hyperattn_check says why, and so does a call that is
   made all the same. It reads no tensor and no stride; of pointers, whether mask.data, report, query_error
   and index are NULL counts. Its result never falls when n_query, n_key or n_workers rise. So a call of few
   queries is sized as if it could have more: with HYPERATTN_HYPER and many keys that is far more than it uses
   (from 48 queries on where held-out queries choose), with HYPERATTN_EXACT it is not. And a call of many
   queries and more than 4096 keys has the room that few need (HYPERATTN_WORKSPACE_BOUND_FEW). Cost:
   O(log n_key). */
HYPERATTN_API size_t hyperattn_workspace_size(const hyperattn_problem *problem,
                                              const hyperattn_params *params, int n_workers);

#ifndef HYPERATTN_NO_COST
/* What a call is expected to cost, over what exact attention would, from shapes and params alone (of pointers
   as above). 1: it is exact. 0: the problem or params are invalid; hyperattn_check says why. It counts
   products of a query and a key; what a tolerance adds to a budget depends on the data, and is not counted:
   over an index too a call may turn out exact, and slower. Cost: O(log n_key). */
HYPERATTN_API float hyperattn_cost(const hyperattn_problem *problem, const hyperattn_params *params);
#endif

/* Upper bounds of the same as constant expressions, for static arrays: for one worker, float32 tensors,
   no report, and the kernels that this build may hold. The bound for exact attention holds for up to 4096
   keys and any number of queries and heads. A mask takes HYPERATTN_WORKSPACE_BOUND_MASK more than either
   bound, and more than 4096 keys take HYPERATTN_WORKSPACE_BOUND_FEW more, whatever n_query and the method
   are; that is 0 for fewer keys and under HYPERATTN_NO_FEW. heads = batch * n_heads, n is the larger of
   n_query and n_key, pinned_keys = sink_keys + heavy_keys, group is the smaller of query_group and key_group,
   and probe_queries is to be given as 1 where it is 0 under HYPERATTN_SAMPLE_VALUE_NORM. */
#define HYPERATTN_WORKSPACE_BOUND_EXACT(head_dim, value_dim)                                   \
  (HYPERATTN_BOUND_TILES *                                                                     \
       HYPERATTN_BOUND_TILE(HYPERATTN_BOUND_SIZE(head_dim), HYPERATTN_BOUND_SIZE(value_dim)) + \
   256 * HYPERATTN_BOUND_LANES + 128 * sizeof(void *) + 512)
#define HYPERATTN_WORKSPACE_BOUND_MASK \
  (HYPERATTN_BOUND_TILES * (72 * sizeof(void *) + 320) + 256 * HYPERATTN_BOUND_LANES)
#ifdef HYPERATTN_NO_FEW
#define HYPERATTN_WORKSPACE_BOUND_FEW(heads, n_key, value_dim) HYPERATTN_BOUND_SIZE(0)
#else
#define HYPERATTN_WORKSPACE_BOUND_FEW(heads, n_key, value_dim)                               \
  ((n_key) > 4096 ? HYPERATTN_BOUND_SIZE(heads) * (HYPERATTN_BOUND_SIZE(n_key) / 2048 + 1) * \
                            (4 * HYPERATTN_BOUND_QUERIES * ((value_dim) + 48)) +             \
                        64                                                                   \
                  : HYPERATTN_BOUND_SIZE(0))
#endif
#define HYPERATTN_WORKSPACE_BOUND(heads, n, head_dim, value_dim, min_seq_len, block_size, sample_size,     \
                                  pinned_keys, probe_queries, group, lsh_bits)                             \
  (HYPERATTN_WORKSPACE_BOUND_EXACT(head_dim, value_dim) + 1600 + (HYPERATTN_BOUND_SIZE(4) << (lsh_bits)) + \
   4 * HYPERATTN_BOUND_SIZE(lsh_bits) * (head_dim) + 8 * HYPERATTN_BOUND_SIZE(pinned_keys) +               \
   ((probe_queries) ? 8 * HYPERATTN_BOUND_LANES : 0) +                                                     \
   ((group) ? 8 * (HYPERATTN_BOUND_LANES + 1) * ((block_size) / ((group) + !(group)) + 1) +                \
                  4 * HYPERATTN_BOUND_LANES * (head_dim) + HYPERATTN_BOUND_SIZE(n) / 64                    \
            : 0) +                                                                                         \
   HYPERATTN_BOUND_SIZE(heads) *                                                                           \
       (16 * HYPERATTN_BOUND_SIZE(n) + HYPERATTN_BOUND_SIZE(n) / 8 +                                       \
        ((probe_queries) ? 4 * HYPERATTN_BOUND_SIZE(n) : 0) +                                              \
        HYPERATTN_BOUND_RECTS(n, min_seq_len) *                                                            \
            (544 + 4 * HYPERATTN_BOUND_SIZE(pinned_keys) +                                                 \
             HYPERATTN_BOUND_SIZE(16) * (2 * (sample_size) + (block_size))) +                              \
        ((probe_queries)                                                                                   \
             ? (HYPERATTN_BOUND_SIZE(n) / 512 + 1 + HYPERATTN_BOUND_RECTS(n, min_seq_len)) * 8 *           \
                       (probe_queries) +                                                                   \
                   (HYPERATTN_BOUND_SIZE(n) / 1024 + 1 + HYPERATTN_BOUND_RECTS(n, min_seq_len)) * 256 *    \
                       ((value_dim) + 2)                                                                   \
             : 0) +                                                                                        \
        ((group)                                                                                           \
             ? (HYPERATTN_BOUND_SIZE(n) / ((group) + !(group)) + 1 +                                       \
                HYPERATTN_BOUND_RECTS(n, min_seq_len)) *                                                   \
                   (5 * HYPERATTN_BOUND_SIZE(head_dim) + 4 * ((block_size) / ((group) + !(group)) + 1))    \
             : 0)))
/* For HYPERATTN_SCAN in place of the bound for exact attention; with a report 4 * n_query bytes more for each
   head. HYPERATTN_HYPER with a tolerance takes its own bound and this one together, unless the build leaves
   the scan out. None of these bounds is for calls with an index. */
#define HYPERATTN_WORKSPACE_BOUND_SCAN(heads, kv_heads, n, head_dim, value_dim)                            \
  (HYPERATTN_WORKSPACE_BOUND_EXACT(head_dim, value_dim) + 2560 +                                           \
   HYPERATTN_BOUND_SIZE(kv_heads) * (HYPERATTN_BOUND_SIZE(n) * ((head_dim) + 15) +                         \
                                     HYPERATTN_BOUND_SIZE(n) / 16 * ((head_dim) + 1) +                     \
                                     HYPERATTN_BOUND_SIZE(n) / 64 * ((head_dim) + 3) + 4 * (value_dim) +   \
                                     256) +                                                                \
   HYPERATTN_BOUND_SIZE(heads) * (4 * HYPERATTN_BOUND_SIZE(n) + HYPERATTN_BOUND_SIZE(n) / 32 + 24) +       \
   4 * HYPERATTN_BOUND_LANES * (2 * HYPERATTN_BOUND_SIZE(head_dim) + (value_dim) + 82) +                   \
   8 * HYPERATTN_BOUND_SIZE(n) + 256 * (HYPERATTN_BOUND_SIZE(head_dim) + (value_dim)) + 4 * (value_dim))
/* Parts of these bounds: a number as a size_t (not by a cast, of which the warnings of a file that uses
   the macro might complain), the rectangles of a level, and the bytes of a tile of queries. */
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
#define HYPERATTN_BOUND_QUERIES HYPERATTN_BOUND_SIZE(4)
#define HYPERATTN_BOUND_TILES HYPERATTN_BOUND_SIZE(1)
#else
#define HYPERATTN_BOUND_LANES HYPERATTN_BOUND_SIZE(48)
#define HYPERATTN_BOUND_QUERIES HYPERATTN_BOUND_SIZE(16)
#define HYPERATTN_BOUND_TILES HYPERATTN_BOUND_SIZE(4)
#endif

#if !defined(HYPERATTN_NO_INDEX) && !defined(HYPERATTN_NO_SCAN) && !defined(HYPERATTN_NO_FEW)
/* ---- The key index: decoding that does not read every key ------------------------------------------- */

/* A sketch of the keys of a cache [batch][n_kv_heads][n_key][head_dim], of 2 bits a coordinate, in memory of
   the caller, of any alignment; it may not be moved, and its capacity is fixed. Keys that it has seen must
   not change. Only whole blocks of 64 keys are in it; the others are met exactly, and so are those behind its
   length, which may not exceed a call's n_key: truncate it before a call over fewer keys. Its bits do not
   depend on how keys were cut into appends.

   Bytes for so many keys as shape->n_key. shape is checked as that of a call; batch, n_kv_heads, n_key and
   head_dim count. 0 for an invalid shape, or too many. About 19 bytes a key and kv head at head dim 64, 36 at
   128. */
HYPERATTN_API size_t hyperattn_index_size(const hyperattn_problem *shape);
/* The same as a constant expression, for batch * n_kv_heads. */
#define HYPERATTN_INDEX_BOUND(batch_kv_heads, n_key, head_dim)                                \
  (256 + HYPERATTN_BOUND_SIZE(batch_kv_heads) *                                               \
             (HYPERATTN_BOUND_SIZE(head_dim) * 72 + 328 +                                     \
              HYPERATTN_BOUND_SIZE(n_key) / 64 *                                              \
                  ((HYPERATTN_BOUND_SIZE(head_dim) + 15) / 16 * 256 + (head_dim) + 204)))

/* Makes an empty index in `memory`. Errors: of the shape; NULL_INDEX, INDEX_SIZE, SIZE_OVERFLOW. */
HYPERATTN_API hyperattn_status hyperattn_index_init(hyperattn_index **index, const hyperattn_problem *shape,
                                                    void *memory, size_t size);

/* The cache has problem->n_key keys now, not fewer than before and not more than the capacity: reads those of
   each block that this completes. Errors: of the shape, and of the key tensor; NULL_INDEX, INDEX; nothing is
   written then. Cost: 64 head_dim log2 head_dim for each block and kv head. */
HYPERATTN_API hyperattn_status hyperattn_index_append(hyperattn_index *index,
                                                      const hyperattn_problem *problem);
/* What append does for kv head `kv_head` of batch * n_kv_heads: workers call it at the same time for
   different ones, and then append, which finds them done. Does nothing where append would return an error. */
HYPERATTN_API void hyperattn_index_append_head(hyperattn_index *index, const hyperattn_problem *problem,
                                               int64_t kv_head);
/* Only the first problem->n_key keys remain, of those that there are. Reads no key. Errors: of the shape;
   NULL_INDEX, and INDEX where there are fewer. */
HYPERATTN_API hyperattn_status hyperattn_index_truncate(hyperattn_index *index,
                                                        const hyperattn_problem *problem);
/* Keys that it was told of, those of the incomplete block included; 0 for what is no index. */
HYPERATTN_API int64_t hyperattn_index_length(const hyperattn_index *index);
#endif

/* Attention on the calling thread. Errors: any of the list except NULL_LSE and NULL_PARALLEL; all are
   found before anything is written. Cost, in products of a query and a key: exact, n_query * n_key
   (causal: half); hyper, for a rectangle of q queries and k keys, q * (block_size + sample_size +
   heavy_keys + sink_keys) + k * (probe_queries, and 48 if any are held out) + q * k / (query_group *
   key_group), and a scan's where it misses a tolerance; scan, the keys that are met, and a tenth to a third
   of exact's time for the estimates, by instruction set. Source: Algorithms 2 to 4 of the paper, with the
   differences that the manual lists; the scan is this library's own. */
HYPERATTN_API hyperattn_status hyperattn_forward(const hyperattn_problem *problem,
                                                 const hyperattn_params *params, void *workspace,
                                                 size_t workspace_size);

typedef void (*hyperattn_task)(void *arg, int64_t index, int worker);

/* The caller's own threads. */
typedef struct hyperattn_parallel {
  int n_workers; /* >= 1; the workspace is sized for at least so many */
  void *context; /* passed to parallel_for */
  /* Calls task(arg, index, worker) once for every index in 0 .. n_tasks - 1, in any order. Calls that run
     at the same time carry different workers in 0 .. n_workers - 1. Returns when all are done and what
     they wrote is visible to later tasks. */
  void (*parallel_for)(void *context, int64_t n_tasks, hyperattn_task task, void *arg);
} hyperattn_parallel;

/* The same as hyperattn_forward, to the bit, on those threads. */
HYPERATTN_API hyperattn_status hyperattn_forward_parallel(const hyperattn_problem *problem,
                                                          const hyperattn_params *params,
                                                          const hyperattn_parallel *parallel,
                                                          void *workspace, size_t workspace_size);

/* The same as phases of independent tasks, for threads that are already running: call hyperattn_check
   once; then, for each phase in order, run its tasks 0 .. hyperattn_phase_tasks - 1 in any order, and
   wait for all of them before the next phase. Both counts follow from params and from what sizes follow
   from, and are 0 for an invalid call. Without a report, a call that approximates nothing has one phase, or
   two where few queries (as the manual says) see more than 4096 keys; a scan has two, and a third with a
   tolerance; with an index, few queries have two more; HYPERATTN_HYPER has more. */
HYPERATTN_API int hyperattn_phase_count(const hyperattn_problem *problem, const hyperattn_params *params);
HYPERATTN_API int64_t hyperattn_phase_tasks(const hyperattn_problem *problem,
                                            const hyperattn_params *params, int phase);

/* Runs one task. The caller guarantees, unchecked, that the call passed hyperattn_check, that phase and
   index are in range, and that worker is in 0 .. n_workers - 1 and differs from those of tasks that run
   at the same time. */
HYPERATTN_API void hyperattn_run_task(const hyperattn_problem *problem, const hyperattn_params *params,
                                      void *workspace, int phase, int64_t index, int worker);

/* Checks all that hyperattn_forward checks, and computes nothing. */
HYPERATTN_API hyperattn_status hyperattn_check(const hyperattn_problem *problem,
                                               const hyperattn_params *params, const void *workspace,
                                               size_t workspace_size, int n_workers);

/* ---- Many problems at once ---------------------------------------------------------------------------

   Several problems with the same params as one call, for example sequences of different lengths, prefill
   beside decode: the tasks of all of them share the workers. Results have the same bits as separate calls.
   What is to be known of each problem is worked out once and kept in the workspace, whose size is about
   the sum of what the problems need and never falls as lengths, n_problems or n_workers rise. No problem
   may write where another reads or writes, which is not checked; n_problems may be 0. *bad_problem (if not
   NULL) is set to the index of the first invalid problem, or to -1 if there is none. Errors: as for one
   problem, and N_PROBLEMS. */
#ifndef HYPERATTN_NO_MANY
HYPERATTN_API size_t hyperattn_workspace_size_many(const hyperattn_problem *problems, int n_problems,
                                                   const hyperattn_params *params, int n_workers);

/* parallel may be NULL: all runs on the calling thread. */
HYPERATTN_API hyperattn_status hyperattn_forward_many(const hyperattn_problem *problems, int n_problems,
                                                      const hyperattn_params *params,
                                                      const hyperattn_parallel *parallel, void *workspace,
                                                      size_t workspace_size, int *bad_problem);

/* The same as phases. The first has one task, which copies problems and params into the workspace; after it
   the caller's may change. Counting phases and tasks takes O(n_problems) each time. */
HYPERATTN_API hyperattn_status hyperattn_check_many(const hyperattn_problem *problems, int n_problems,
                                                    const hyperattn_params *params, const void *workspace,
                                                    size_t workspace_size, int n_workers, int *bad_problem);
HYPERATTN_API int hyperattn_phase_count_many(const hyperattn_problem *problems, int n_problems,
                                             const hyperattn_params *params);
HYPERATTN_API int64_t hyperattn_phase_tasks_many(const hyperattn_problem *problems, int n_problems,
                                                 const hyperattn_params *params, int phase);
HYPERATTN_API void hyperattn_run_task_many(const hyperattn_problem *problems, int n_problems,
                                           const hyperattn_params *params, void *workspace, int phase,
                                           int64_t index, int worker);
#endif

/* Merges two results over disjoint sets of keys (a split cache, several machines). a becomes the result
   over both: out_a = (e^lse_a out_a + e^lse_b out_b) / (e^lse_a + e^lse_b), lse_a = ln(e^lse_a +
   e^lse_b). a and b are [batch][n_heads][n_query][value_dim], each lse contiguous
   [batch][n_heads][n_query]. Where one lse is -inf, that part is empty and the other is kept to the bit. Of
   b only data, dtype and the three strides are read. A sink goes to one of the parts. Errors: BATCH,
   N_HEADS, N_QUERY, VALUE_DIM, DTYPE, DTYPE_UNSUPPORTED, CUSTOM, NULL_OUT (a), NULL_VALUE (b), NULL_LSE,
   OUT_STRIDE, EXTENT, ALIGNMENT, OVERLAP. Source: the merge of attention states, as in FlashInfer. */
HYPERATTN_API hyperattn_status hyperattn_merge(int64_t batch, int64_t n_heads, int64_t n_query,
                                               int64_t value_dim, hyperattn_output a, float *lse_a,
                                               hyperattn_input b, const float *lse_b);

/* The ISA that HYPERATTN_ISA_AUTO stands for here, and a name for each ("unknown" for any other number). */
HYPERATTN_API hyperattn_isa hyperattn_detect_isa(void);
HYPERATTN_API const char *hyperattn_isa_name(hyperattn_isa isa);

#ifdef __cplusplus
}
#endif
