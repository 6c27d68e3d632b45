/* hyperattn.h - attention over long contexts, exact or approximated, on the CPU, in one file.
   MIT licence, in full at the end. C11; also compiles as C++11. No dependency, no libm.
   Made of the files in src/ by cmake -P src/amalgamate.cmake: edit those (docs/architecture.md).

   Softmax attention costs n_query * n_key dot products. HyperAttention (Han, Jayaram, Karbasi, Mirrokni,
   Woodruff, Zandieh; arXiv 2310.05869) lets every query meet only a fixed number of keys: those that
   locality-sensitive hashing puts beside it, exactly, and a sample of all others, weighted so that the sums
   stay unbiased. This library computes that, exact attention, better choices of keys, which real models
   need, and a scan that looks at every key for every query, cheaply, so that each query knows its own error.

   DO THIS
     In one source file:       #define HYPERATTN_IMPLEMENTATION
                               #include "hyperattn.h"
     Everywhere else:          #include "hyperattn.h"
     For a private copy:       #define HYPERATTN_STATIC too, in each file that defines the implementation.

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

       hyperattn_problem problem = hyperattn_heads_first(1, HEADS, HEADS, N, N, D, D, q, k, v, out);
       problem.causal = 1;

       hyperattn_params params = hyperattn_default_params();
       size_t bytes = hyperattn_workspace_size(&problem, &params, 1);
       void *workspace = malloc(bytes);
       hyperattn_status status = hyperattn_forward(&problem, &params, workspace, bytes);
       printf("%s; out[last][0..3] = %g %g %g %g\n", hyperattn_status_string(status), (double)out[size - D],
              (double)out[size - D + 1], (double)out[size - D + 2], (double)out[size - D + 3]);
       free(workspace), free(out), free(v), free(k), free(q);
       return status == HYPERATTN_OK ? 0 : 1;
     }

   CONTENTS: the sources that this file is made from, in order; each begins at a line like
   "======== src/probing.h ========"
     api.h                  the public part: types, parameters, functions
     glossary.h             what words mean
     portability.h          compilers, memory functions, constants, sizes
     numbers.h              exp, log, square root, finite tests, the sums of a state
     elements.h             dtypes: float16, bfloat16, Q8_0
     random.h               counter-based numbers: a function of (seed, region, purpose, index)
     kernel.h               what a kernel does with one tile of queries and a chunk of keys
     kernel_scalar.h        plain C, the specification of the others
     kernel_index_scalar.h    of their scans of an index,
     kernel_scan_scalar.h     and of their other scans
     kernel_shared.h        what vector kernels share
     kernel_avx512.h        the operations of an ISA, from which its vector kernel is made: AVX-512,
     kernel_scan_avx512.h     its products of small integers, for the scan,
     kernel_avx512_bf16.h     its products of bfloat16 by vdpbf16ps,
     kernel_amx.h             its products of bfloat16 by AMX,
     kernel_avx2.h            AVX2,
     kernel_scan_avx2.h       its scan,
     kernel_neon.h            NEON,
     kernel_scan_neon.h       its scan,
     kernel_neon_bf16.h       its products of bfloat16 by ARMv8.6
     kernel_vector.h        templates, which stand once for each of these: a whole kernel of float32,
     kernel_tile.h            its scores,
     kernel_values.h          its sums of values,
     kernel_few.h             and the same for few queries;
     kernel_scan.h          the scan of a tile,
     kernel_index.h           that of an index, and what makes one,
     kernel_bf16.h            products of bfloat16,
     kernel_end.h             and the end of a template's parameters
     detect.h               which ISA this machine has
     arrays.h               the table of arrays of the workspace
     plan.h                 a call made definite: counts, regions, the causal split
     workspace.h            how large the arrays are, and where a task finds its part of them
     index.h                the key index: its parts, and when it is believed
     validation.h           checks of shapes, parameters, pointers, strides and overlaps
     tiles.h                queries in the lanes, and where rows of keys and values lie
     visibility.h           which keys a query sees
     states.h               what a state begins as; sums that many keys share; storing and loading
     masking.h              the caller's mask
     chunks.h               the keys that wait: their scores, weights and values
     verdict.h              which recipe a rectangle and head gets
     skipping.h             stages that a rectangle no longer needs
     hashing.h              the bucket of every query and key
     heldout.h              queries that meet every key: probes and held-out queries
     ordering.h             rows sorted by bucket
     probing.h              which keys matter to a few queries: column masses, sampling weights
     best.h                 the k best candidates of a stream
     columns.h              pinned keys and sampled columns
     pairing.h              query groups choose key sub-blocks by score
     exact.h                exact attention
     sketch.h               what a scan reads in place of keys
     scan.h                 every query its own keys: estimates, and what is kept
     sampling.h             what a tile then meets, its error, its budget
     scanning.h             a tile from its first key to its result
     mending.h              the queries whose sample missed the tolerance
     few.h                  few queries: parts of the keys, and their merge
     turning.h              the rotation of keys and queries that an index makes
     lookup.h               few queries over an index: estimates of all scores
     picking.h              how likely such a query keeps each key
     meeting.h              those that share a kv head meet what any keeps; their errors
     rectangle.h            an approximated rectangle: blocks, pins, columns
     capping.h              Algorithm 2's normaliser
     attending.h            a rectangle's queries meet what was chosen for them
     judging.h              held-out queries: what a choice gives them, against all keys
     trials.h               they try recipes
     auditing.h             what that recipe is worth, for the report
     report.h               the report of a head
     tallying.h             and that of a head that was scanned
     stages.h               the table of stages
     resolve.h              from a problem and parameters to a plan
     phases.h               phases: steps that run beside each other; their independent tasks
     entry.h                the public functions
     growing.h              the functions of an index
     many.h                 the functions for many problems in one call

   WHAT IT DOES
     out[i] = sum_j exp(s_ij) value[j] / sum_j exp(s_ij),  lse[i] = ln sum_j exp(s_ij),
     s_ij = scale * <query[i], key[j]>, over the keys j that query i may see: all keys or, with causal set,
     keys 0 .. i + n_key - n_query. params.method says how:
     HYPERATTN_EXACT computes just that.
     HYPERATTN_SCAN estimates every score from a sketch of the keys in 8 bits, in a tenth to a third of the
     time; a tile of queries then keeps each key with a probability that grows with the largest share of
     attention that it seems to have in any of them, up to 1, and meets the kept keys exactly, each weighted
     by the inverse of its probability.
     HYPERATTN_HYPER approximates in large regions, without a look at every key: there a query meets the keys
     of its block, the pinned keys and its window with weight one, and a sample of the other keys (columns),
     each weighted by the inverse of its probability. Causal attention is split recursively into exact
     segments along the diagonal and, at every level, the rectangle of the second half's queries by the first
     half's keys, which is approximated.
     With problem.index, a sketch of the keys in 2 bits a coordinate that the caller keeps beside a cache, few
     queries look up which keys matter (any method but EXACT): each estimates all its scores, keeps keys with
     probabilities that grow with their share, meets what it or a query of a head that shares the keys keeps,
     each key weighted by the inverse of its probability, and tells its error by this sample; where that is
     above the tolerance it takes more keys, in the end all of them.
   PRESETS
     hyperattn_default_params  HYPERATTN_SCAN: each query to a tolerance, which it estimates itself
     hyperattn_linear_params   HYPERATTN_HYPER with a fixed number of keys per query and the choices of keys
                               that real models need: time near-linear in the context, no error promised
     hyperattn_paper_params    HYPERATTN_HYPER as in the paper
     For exact attention, any of them with method = HYPERATTN_EXACT. hyperattn_cost tells what a call is
     expected to cost, over exact attention.
   WHAT MODELS ADD TO IT (fields of the problem, each off when zero, in any combination)
     softcap        s becomes softcap * tanh(s / softcap), after scale and before the mask
     sink           exp(sink of the head) joins the sum of each row and has no value: lse includes it, and a
                    row that sees no key has out = 0 and lse = sink. Where results are merged, one has it
     sliding_window the query at position P = i + n_key - n_query sees only keys j with P - j < sliding_window
                    and, not causal, j - P < sliding_window. Where it hides a key, the call is exact,
                    whatever params.method says, at the cost of the keys that are seen
     mask           slope * mask[i][j] is added to s, slope = mask_slope[head] or 1; -inf hides a key,
                    whatever the slope and whatever numbers the key and its value hold. The call is then
                    exact, whatever params.method says. Chunks of 64 keys that are hidden from a whole tile
                    of queries are not computed
     pages          keys and values in pages, or as a list of rows: read in place, by every method
     A row that sees no key has out = 0 and lse = -inf. A score, a sink or a product of slope and mask (where
     the mask is not -inf) that is NaN or +inf makes its row NaN.
   WHAT IT DOES NOT
     It does not allocate, print, abort, start threads, recurse or keep state between calls. It computes no
     gradients and no dropout.
   WHEN IT HELPS
     HYPERATTN_SCAN needs at least 128 queries, to pay for the sketch, and min_seq_len keys before their
     windows; its cost grows with n_query * n_key as exact attention's does, at a third of it and less for
     most heads of language models. HYPERATTN_HYPER helps in regions that have many times more keys than the
     budget (block_size + sample_size + pinned keys). Regions of fewer than min_seq_len keys are exact, and so
     are those where the approximation would cost as much as exact attention; hyperattn_cost is 1 where all of
     a call is exact, as every call of fewer than 128 queries is by the default preset without an index, and
     every call with a mask or with a sliding window that hides a key. examples/demo.c prints time and error
     side by side.

   SHAPES AND WORDS
     query [batch][n_heads][n_query][head_dim], key [batch][n_kv_heads][n_key][head_dim],
     value [batch][n_kv_heads][n_key][value_dim], out [batch][n_heads][n_query][value_dim]. Each has its own
     strides, counted in elements, and its last dimension is contiguous. Heads-first, rows-first and packed
     QKV differ only in strides.
     kv head        a head of key and value. Query head h reads kv head h / (n_heads / n_kv_heads), which
                    covers grouped-query and multi-query attention
     lse            natural logarithm of the sum of e^score, scale applied; -inf where a query sees no key
     rectangle      a range of queries by a range of keys, in which every query may see every key (or
                    those outside its window); it is approximated as one
     order          the rows of a rectangle sorted by hash, or left in order of position
     block          keys that stand together in the order and that a query meets exactly; made of sub-blocks
                    of key_group keys where blocks are chosen by score
     query group    query_group queries that stand together in the order and choose their sub-blocks together
     column         a sampled key, shared by all queries of a rectangle
     pinned key     a key that all queries of a rectangle meet with weight one: a sink key (one of the
                    first) or a heavy key (one to which the probes pay much attention)
     window         the last keys before a query, met exactly in causal attention
     few queries    at most 16 of each head by AVX-512, 8 by NEON, 4 by AVX2 and in plain C, in a call that
                    approximates nothing; 4 also where products of BF16 could serve the call. Such are steps
                    of decoding and drafts that are checked. A kernel of their own reads the keys and values
                    of a kv head once for all its query heads (for up to 64 queries; 8 in builds without
                    vector kernels)
     index          what is known of the keys of a cache: 64 keys a block, 2 bits a coordinate and 1 byte for
                    each key. Blocks never change; keys that fill none are met exactly
     part           2048 of the keys that few queries meet, where there are more than 4096
     probe          a query that meets every key of its rectangle, to learn which keys matter
     held-out query a query that also meets every key, but has no part in choosing keys; it judges the choice
   ACCURACY
     Exact attention has the rounding error of float32, which does not grow with the number of keys: sums keep
     track of what rounding takes from them (but not under -ffast-math, which optimises that away). Over up to
     2^22 equal keys a mean is right to 2e-6; where few keys outweigh many, to 1e-5. lse is right to 4 units
     in its last place where scores change slowly from key to key, and everywhere to 2e-7 + 1e-7 d, where d is
     how far the scores that matter lie below the largest.
     The error of an approximation depends on the data, so with a tolerance it is measured. HYPERATTN_SCAN: by
     every query, of its own sample; a query that misses the tolerance gets more keys, in the end all of them.
     So a query that needs one key which no other needs is seen to need it. The estimate is one of a standard
     deviation: the true error of some queries is above it, and of a few twice as large (docs/scan.md). Over
     an index likewise. problem.query_error has the estimates. HYPERATTN_HYPER: by the held-out queries of a
     rectangle; where they see a relative error above the tolerance by every choice, the rectangle is scanned
     in the same way. Elsewhere the tolerance applies to the rectangle, and a sample of queries judges it, so
     the error over a head can be a little more than the tolerance, or a fraction of it, and a query that
     alone needs a key that was left out is not seen. problem.report tells how a call went.
     At tolerance 0 there is the budget and no more, and no error is promised. e^lse and e^lse * out are then
     unbiased over seeds, with every sampling, except under HYPERATTN_ORDER_PROBED, which chooses by results;
     out itself is consistent, not unbiased. The paper's preset is faithful to the paper, and poor on language
     models.
   DETERMINISM
     The same inputs, parameters, ISA and build give the same bits, for any number of workers (where a
     result is NaN it is NaN again, with no promise about its bits). A slice of batch or heads computed
     alone gives the bits of its part of the whole, and grouped heads give those of heads whose keys and
     values are repeated; but over an index only a slice of whole kv heads does, since the heads that share
     one meet keys together. With a vector kernel the caller's rounding mode does not matter: tasks round to
     nearest, and restore the mode that they found.
     In exact attention, the last queries of a call have the same bits when they are computed alone over the
     same keys, if both calls are of few queries or neither is; otherwise they differ by rounding. So may few
     queries that see more than 4096 keys through a sliding window, since the first of them decides where
     parts begin. Where no sliding window hides a key, a token of a causal chunk of few queries has the bits
     of the same token decoded alone when the cache ended with it, if both calls have at most 4096 keys or
     both have more.
     Causal attention at tolerance 0: no key or value after a row changes that row by a bit. Later queries
     of the row's rectangle may, since they are ordered and probed together with it. With a tolerance they may
     also where queries scan: those of a tile share a budget, which depends on all that they have met.
     A NaN or infinity in a key or value reaches only rows that may see it. One in a query reaches its own
     row and, where blocks are chosen by score, affects which blocks its query group takes.
   MEMORY
     All of it is the caller's: hyperattn_workspace_size() bytes, of any alignment. Their contents do not
     matter before a call and mean nothing after it. The library's own stack frames take less than 4 KiB.
     Few queries leave what they get from each part of the keys in the workspace. Since sizes never fall as
     n_query rises, every call of more than 4096 keys has that room: at most 4 * (value_dim + 47) bytes for
     each part and each of up to 16 queries of a head. A scan takes some 1.1 head_dim + 8 bytes for each key
     and kv head, 4 for each query and head, and 8 for each key and worker. Lookups take 4 for each key, query
     and head, and up to 224 KiB for each worker; the index itself, about 19 for each key and kv head at head
     dim 64.
   THREADS
     It starts none. hyperattn_forward_parallel() runs tasks on the caller's threads; a caller whose threads
     are already running can drive the phases itself (examples/threads.c does both). Without a report, an
     exact call has one phase. Few queries that see more than 4096 keys have two: each part of the keys is a
     task, for all heads that share them, and then each head's parts are merged. Over an index, two phases
     come before: each 8192 keys are a task, for all heads that share them, and then up to four heads that
     share keys are, for each query.
   OPTIONS (macros, defined before the implementation)
     HYPERATTN_API          what is put before every function; define it alike in each file that includes
                            this one. Default: extern. For a shared library
                            __attribute__((visibility("default"))); for a DLL __declspec(dllexport) in the
                            file that has the implementation and dllimport in files that use it.
                            HYPERATTN_STATIC overrules it: a private copy exports nothing
     HYPERATTN_MEMCPY(d, s, n), HYPERATTN_MEMSET(d, c, n)   default: those of <string.h>
     HYPERATTN_NO_SIMD, HYPERATTN_NO_AVX512, HYPERATTN_NO_AMX, HYPERATTN_NO_AVX2, HYPERATTN_NO_NEON   leave
                            out that code
     For small targets (docs/embedded.md has the sizes). A call that asks for what was left out gets
     HYPERATTN_ERROR_LEFT_OUT (no call asks for FEW, LONG_SUMS or TEXTS):
     HYPERATTN_NO_SCAN      no HYPERATTN_SCAN and no query_error; under HYPERATTN_HYPER a rectangle that
                            misses its tolerance meets every key
     HYPERATTN_NO_HYPER     no HYPERATTN_HYPER; with HYPERATTN_NO_SCAN, exact attention only, and no report
     HYPERATTN_NO_JUDGING   under HYPERATTN_HYPER no tolerance and no HYPERATTN_ORDER_PROBED; no report
     HYPERATTN_NO_HALVES    float32 only
     HYPERATTN_NO_FEW       no kernels for few queries: those of many take them, in more time, and a call is
                            one phase whatever the number of keys
     HYPERATTN_NO_LONG_SUMS every sum is one float, whose error grows with the keys beyond some 4096 (but not
                            for few queries, whose parts are shorter)
     HYPERATTN_NO_INDEX     no index and no functions of one; so also with HYPERATTN_NO_SCAN or _NO_FEW
     HYPERATTN_NO_TEXTS     no sentences: hyperattn_status_string gives ""
     HYPERATTN_NO_MANY      no functions of many problems at once (hyperattn_.._many)
     HYPERATTN_NO_BUILDERS  no hyperattn_heads_first and hyperattn_tokens_first
     HYPERATTN_NO_COST      no hyperattn_cost
     HYPERATTN_NO_MASKS, HYPERATTN_NO_SOFTCAP, HYPERATTN_NO_SLIDING, HYPERATTN_NO_SINKS, HYPERATTN_NO_PAGES,
     HYPERATTN_NO_CUSTOM    no mask and mask_slope, no softcap, no sliding_window, no sink, no pages, no
                            HYPERATTN_CUSTOM
   SIMD
     gcc and clang compile kernels for AVX-512 (F, VL, BW, DQ), AVX2 with FMA and F16C, and NEON, whatever
     the flags. Which one runs is decided at run time, by CPUID and by what the system saves, or by
     params.isa. Other compilers get plain C. Results differ between ISAs by rounding; hash buckets do not.
     Where queries, keys and values are all BF16, and queries are not few, products are computed by AMX (on
     Linux, if the process has asked for permission: examples/amx.h), by vdpbf16ps where that is faster (AMD),
     or by ARMv8.6's bfloat16 instructions where the compiler's flags allow them.
   DTYPES
     Tensors may differ in dtype. A row that is not float32 is widened, exactly, when it is met, a chunk of
     64 keys at a time. For few queries vector kernels read it as it lies, and widen it in registers, if its
     dim is a multiple of 32, its dtype is not HYPERATTN_CUSTOM, and a task has at most 16 rows (Q8_0: 6),
     which are queries times query heads of the kv head.
     Results are, bit for bit, those of the same call on float32 tensors with the same numbers, and out is
     rounded once, at the end. Rows of HYPERATTN_CUSTOM are widened by the caller's function, likewise.
     There are two exceptions. Where queries, keys and values are all BF16 and kernels of BF16 products could
     serve, 5 to 16 queries of a head are not few, even while AMX is possible but not permitted, so that they
     can differ by rounding. And kernels of BF16 products, which take no few queries, sum in float32 as well,
     but round the weights e^(s - m) to BF16 (relative 2^-8 each) and take denormals as zero. They divide by
     the sum of the rounded weights, so that equal values are their own mean; lse is that of the exact
     weights.
   DIFFERENCES FROM THE PAPER AND FROM THE AUTHORS' CODE
     - Buckets are ordered by the Gray *decode* of their sign bits, so that neighbours differ in one bit
       (the authors' code encodes).
     - Blocks are cut evenly and never padded with zero keys; n_query and n_key need not be equal.
     - Columns are drawn without replacement, one from each stratum of the sorted order, and a column that
       lies in the query's own block is hidden from it, so that no pair of a query and a key counts twice
       (in the authors' float32 and CUDA code it does).
     - Hash planes have entries +1 and -1, so that buckets do not depend on how a compiler rounds.
     - The causal split works level by level on one running state per row, without recursion and merges.
     - The capped, floored normaliser of Algorithm 2 (cap_epsilon, cap_kappa) and the value-norm sampling of
       Algorithm 3 are options; the authors' code has neither. */

#ifndef HYPERATTN_H
#define HYPERATTN_H

/* ======== src/api.h ======== */

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

#endif /* HYPERATTN_H */

#if defined(HYPERATTN_IMPLEMENTATION) && !defined(HYPERATTN_IMPLEMENTED)
#define HYPERATTN_IMPLEMENTED

/* ======== src/glossary.h ======== */

/* Words: what each means in names and in comments. P, a query's position among the keys, is
   row + n_key - n_query.

   query, key, value  rows of the tensors; a query meets a key where their product is computed
   head, kv head      a head of queries; a head of keys and values, which heads_per_kv heads of queries share
   square             the part of a causal problem in which query i's own key is key i
   rectangle          a range of queries by a range of keys, all of which they see but for their windows
   level              the rectangles of one halving of the square, or the outer rectangle; of a lookup: the
                      estimate from which on a key of the index is kept for certain
   segment            the diagonal part of the square between rectangles, which is exact
   region             a segment or a rectangle; rect.region numbers rectangles and names their random numbers
   block              block_size keys that a query group meets exactly
   sub-block          key_group keys of a rectangle in the pairing's order
   superblock         HAI_SUPERBLOCK sub-blocks, scored together first in large rectangles
   query group        query_group queries in the pairing's order, which choose sub-blocks together
   pairing            an order of the rows, and each query group's choice of sub-blocks
   column             a sampled key, with the log-weight that makes up for the keys that were not drawn
   pin                a key that every query of a rectangle meets: a sink key, or one of large mass
   probe              a query that meets every key of a rectangle before the choice
   held-out query     a query that meets every key to judge a choice in which it had no part
   recipe             what the queries of a rectangle meet: blocks and columns, columns, or each its own
   trial              what held-out queries find a recipe in a pairing to be worth
   verdict            the recipe and the pairing that they found best
   record             what the report keeps of a rectangle and head
   sketch             codes of 8 bits for each key, by blocks of HAI_CHUNK keys (sketch.h)
   scan               estimates of a tile's scores with all keys of the sketch, by products of codes
   pilot              estimates of a few of them, made before the scan
   draw               the columns of a rectangle; of a scan: a key's random number, by which it is kept or not
   kept key           one that a tile meets exactly: with probability 1 where it matters to any of its queries
   budget, b          a key is kept with b times its largest estimated share of attention, at most 1
   missed row         one whose sample misses the tolerance: it is mended, that is attended exactly, later
   tally              what a task of the scan has done
   product            the dot product of a query and a key, times the scale
   score              a product after everything that changes it, before its log-weight
   weight             e^(score + log-weight - reference)
   state              (m, l, o) of a query: reference of its weights, their sum, weighted sum of values
   lse                m + ln l, the logarithm of a sum of e^score
   tile               up to `lanes` queries, packed transposed, with their states
   lane               the place of one query in a tile, and one element of vector registers
   chunk              up to HAI_CHUNK keys that tiles or few queries meet at a time; also a task's share of a
                      rectangle or of the call
   few queries        up to 4 to 16 queries of each head, by ISA, in a call that approximates nothing
                      (hai_is_few); their kernels keep them as rows, with coordinates in the lanes
   part               HAI_FEW_KEYS of the keys that few queries meet, where these are more than HAI_FEW_UNCUT
   kernel             the inner loops of an ISA; plan->kernel takes the problem's rows, plan->float_kernel
                      rows of float32
   row                one row of a tensor, or an index of it
   extent             the bytes that a tensor spans
   stage, step        a computation on all rectangles of a level; a stage at a level (also: a decoded token,
                      what a kernel takes at a time, a unit of an estimate)
   phase              a step, with those behind it that may run beside it
   task, job          a part of a phase, for one worker; what it works on
   workspace, array   the caller's memory; a part of it that has a name in hai_layout
   scratch            the part of the workspace that one worker uses during a task */

/* ======== src/portability.h ======== */

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

/* ======== src/numbers.h ======== */

/* Numbers. Functions of our own: no libm is needed, and every target computes the same. */

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
HAI_HOT uint64_t hai_eight_bytes(const char *at) {
  uint64_t x;
  HYPERATTN_MEMCPY(&x, at, sizeof x);
  return x;
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

/* 1 / x for x > 0, at most the largest float. */
static float hai_inverse(float x) {
  float inverse = 1.0f / x;
  return hai_finite(inverse) ? inverse : hai_float(0x7f7fffffu);
}

/* c tanh(s / c) = s P(x^2) / Q(x^2), x = s / c, for |x| <= HAI_TANH_END, beyond which tanh is 1; at most c. P
   and Q by their coefficients, a minimax fit of relative error 2.1e-8. NaN stays. `inverse` is that of c. No
   product with c is taken, so that scores far below a large c stay as they are. */
#define HAI_TANH_END 9.02f
#define HAI_TANH_P0 9.999999790e-01f
#define HAI_TANH_P1 1.337971971e-01f
#define HAI_TANH_P2 3.494036348e-03f
#define HAI_TANH_P3 2.058349910e-05f
#define HAI_TANH_P4 1.331907664e-08f
#define HAI_TANH_Q1 4.671303496e-01f
#define HAI_TANH_Q2 2.587108081e-02f
#define HAI_TANH_Q3 3.283095250e-04f
#define HAI_TANH_Q4 7.762025519e-07f
static float hai_capped(float s, float c, float inverse) {
  float x = s * inverse, u, p, q;
  x = x > HAI_TANH_END ? HAI_TANH_END : x < -HAI_TANH_END ? -HAI_TANH_END : x;
  u = x * x;
  p = (((HAI_TANH_P4 * u + HAI_TANH_P3) * u + HAI_TANH_P2) * u + HAI_TANH_P1) * u + HAI_TANH_P0;
  q = (((HAI_TANH_Q4 * u + HAI_TANH_Q3) * u + HAI_TANH_Q2) * u + HAI_TANH_Q1) * u + 1.0f;
  s *= p / q;
  return s > c ? c : s < -c ? -c : s;
}

/* base + ln x for x >= 0; ln 0 = -inf; NaN if x is negative or NaN. With x = 2^e y and y in [sqrt(1/2),
   sqrt(2)), ln y = 2 atanh((y - 1) / (y + 1)). ln 2 is split in two parts, the first of so few bits that
   its product with e is exact: where base and ln x cancel, the difference has an error of a few units in
   its last place. */
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

/* Square root by Newton's method for 1 / sqrt(x); exact for small squares of integers; 0 for denormals,
   negative numbers and NaN. */
static float hai_sqrt(float x) {
  float y, s;
  int i;
  if (!(x >= 1.17549435e-38f) || !hai_finite(x)) return x > 0.0f && !hai_finite(x) ? x : 0.0f;
  y = hai_float(0x5f375a86u - (hai_bits(x) >> 1));
  for (i = 0; i < 3; i++) y = y * (1.5f - 0.5f * x * y * y);
  s = x * y;
  return s + 0.5f * y * (x - s * s);
}

/* The largest of n numbers that are not NaN; -inf if there are none. Four accumulators hide the latency of
   the dependency chain. */
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

/* ln(e^a + e^b), where -inf is the logarithm of an empty sum. */
static float hai_log_add(float a, float b) {
  float high = a > b ? a : b, low = a > b ? b : a;
  if (low == -hai_inf()) return high;
  return hai_add_log(high, 1.0f + hai_exp(low - high));
}

/* e^(part - whole), the share of a part in a whole by their logarithms; 0 for an empty part. */
static float hai_share(float part, float whole) {
  return part == -hai_inf() ? 0.0f : hai_exp(part - whole);
}

/* m + ln l, the logarithm of a state's sum; -inf where it is empty. */
static float hai_state_lse(float m, float l) { return hai_add_log(m, l); }

/* |out' - out| / |out| from their squares; infinite if a square is not finite, or if there is an error and
   the norm is 0. */
static float hai_relative(float squared_error, float squared_norm) {
  int is_known = hai_finite(squared_error) && hai_finite(squared_norm) && squared_norm > 0.0f;
  if (squared_error == 0.0f) return 0.0f;
  return is_known ? hai_sqrt(squared_error / squared_norm) : hai_inf();
}

/* ======== src/elements.h ======== */

/* ---- Elements ----
   A row consists of units: single elements, Q8_0 blocks of 32 elements (a float16 scale, then 32 signed
   bytes), or bytes whose meaning only the caller knows (HYPERATTN_CUSTOM). Conversions to float32 are exact.
   Those from it round to nearest, ties to even, and keep NaN. */

#define HAI_Q8_0_ELEMENTS 32
#define HAI_Q8_0_BYTES 34

HAI_HOT int hai_is_f32(hyperattn_dtype dtype) { return !HAI_HALVES || dtype == HYPERATTN_F32; }
HAI_HOT int hai_is_custom(hyperattn_dtype dtype) { return HAI_CUSTOM && dtype == HYPERATTN_CUSTOM; }
/* Elements of a unit, bytes of a unit, and the alignment that a row needs. */
HAI_HOT int hai_unit(hyperattn_dtype dtype) {
  return HAI_HALVES && dtype == HYPERATTN_Q8_0 ? HAI_Q8_0_ELEMENTS : 1;
}
HAI_HOT size_t hai_unit_bytes(hyperattn_dtype dtype) {
  if (hai_is_custom(dtype)) return 1;
  return hai_is_f32(dtype) ? sizeof(float) : dtype == HYPERATTN_Q8_0 ? HAI_Q8_0_BYTES : sizeof(uint16_t);
}
/* Bytes of so many elements. */
HAI_HOT ptrdiff_t hai_offset(hyperattn_dtype dtype, ptrdiff_t elements) {
  return elements / hai_unit(dtype) * HAI_AS(ptrdiff_t, hai_unit_bytes(dtype));
}
static size_t hai_alignment(hyperattn_dtype dtype) {
  return hai_is_f32(dtype) ? sizeof(float) : hai_is_custom(dtype) ? 1 : sizeof(uint16_t);
}

/* float16: sign, 5 bits of exponent with bias 15, 10 bits of fraction. */
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
/* bfloat16: the upper half of a float32. */
static float hai_from_bf16(uint16_t half) { return hai_float(HAI_AS(uint32_t, half) << 16); }
static uint16_t hai_to_bf16(float x) {
  uint32_t bits = hai_bits(x);
  if (x != x) return HAI_AS(uint16_t, bits >> 16 | 0x40u);
  return HAI_AS(uint16_t, (bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Reads element t of a row of any dtype; writes x to it (not in Q8_0). */
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

/* row[t] = from[t] for t < n, rounded to dtype. */
static void hai_narrow(const float *from, hai_index n, hyperattn_dtype dtype, void *row) {
  hai_index t;
  for (t = 0; t < n; t++) hai_put(row, dtype, t, from[t]);
}

/* ======== src/random.h ======== */

/* Random numbers. A counter-based generator, three rounds of SplitMix64's finaliser. It has no state, so that
   any task can draw its own numbers. They do not depend on batch and head, so that heads that share keys
   share draws. */

/* What a number is drawn for. */
enum {
  HAI_FOR_PLANES,
  HAI_FOR_PROBES,
  HAI_FOR_COLUMNS,
  HAI_FOR_CAP,
  HAI_FOR_JUDGES,
  HAI_FOR_AUDITORS,
  HAI_FOR_WIDE,
  HAI_FOR_DRAWS,
  HAI_FOR_OFFSETS
};

/* SplitMix64's finaliser: a bijection of 64 bits. */
static uint64_t hai_mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/* Number `index` of a region for a purpose. */
static uint64_t hai_random(uint64_t seed, uint64_t region, uint64_t purpose, uint64_t index) {
  uint64_t x = hai_mix(seed + 0x9e3779b97f4a7c15u);
  x = hai_mix(x + 0x9e3779b97f4a7c15u * (region + 1));
  return hai_mix(x + 0x9e3779b97f4a7c15u * (index + 1) + (purpose << 56));
}

/* begin + floor(u n) with u = random / 2^64, uniform in [0, 1): the high half of a product of 64 by 64
   bits. */
static uint64_t hai_uniform(uint64_t begin, uint64_t n, uint64_t random) {
  uint64_t n_low = n & 0xffffffffu, n_high = n >> 32, r_low = random & 0xffffffffu, r_high = random >> 32;
  uint64_t middle = n_high * r_low + (n_low * r_low >> 32), carry = (middle & 0xffffffffu) + n_low * r_high;
  return begin + n_high * r_high + (middle >> 32) + (carry >> 32);
}

/* One of n things, uniform in part i of `parts`. Over all i these are draws without replacement. */
static hai_index hai_draw(hai_index n, hai_index parts, hai_index i, uint64_t random) {
  hai_index begin = hai_cut(n, parts, i), end = hai_cut(n, parts, i + 1);
  return HAI_AS(hai_index, hai_uniform(HAI_AS(uint64_t, begin), HAI_AS(uint64_t, end - begin), random));
}

/* ======== src/kernel.h ======== */

/* What a kernel is: the arithmetic of one tile of queries with one chunk of keys, for one ISA. One lane holds
   one query. A tile has `lanes` queries, packed transposed; a chunk has at most HAI_CHUNK keys, given by
   pointers to their rows. A kernel does not know where the keys come from. Its functions compute lanes
   [begin, end) of the tile, which are multiples of `width`, and leave other lanes alone. A lane's result does
   not depend on which other lanes hold queries. Arrays over lanes have row stride `lanes`. */

/* Rows of keys or of values that few queries meet. */
typedef struct hai_few_rows {
  hyperattn_dtype dtype;
  hai_index dim;          /* a multiple of the kernel's step */
  const char *const *row; /* [HAI_CHUNK], of which all can be read */
  /* [HAI_CHUNK]: rows that start to load meanwhile, `row` where none need to. They are not read, and may be
     shorter or of another dtype. */
  const char *const *ahead;
  int n; /* rows that are met */
} hai_few_rows;

/* The same arithmetic for few queries, which are rows and not lanes: queries [n][dim], scores [n][HAI_CHUNK],
   o [n][dim], n at most `most`. A query's result does not depend on n. */
typedef struct hai_few_kernel {
  /* score[i][j] = sum_t query[i][t] * key[j][t]; scores of keys beyond the last may be written too. */
  void (*scores)(const hai_few_rows *keys, const float *query, int n, float *score);
  /* hai_kernel.softmax, where bit j of visible[i] shows key j to query i, and bits from n_keys on are 0.
     log_weight has HAI_CHUNK elements that can be read. Nothing makes up for what rounding takes from
     l [n]. */
  void (*softmax)(float *score, int n, int n_keys, const float *log_weight, const uint64_t *visible, float *m,
                  float *l, float *factor);
  /* o[i][t] = o[i][t] * factor[i] + sum_j weight[i][j] * value[j][t]. */
  void (*values)(const hai_few_rows *values, const float *weight, const float *factor, int n, float *o);
  int most;
  int queries; /* of a head, at most, for which it takes less time than tiles of float32 */
  int step;    /* 1: rows are read in float32 only; else in every dtype but CUSTOM */
} hai_few_kernel;

/* A tile of queries as a scan kernel reads it. A coordinate's code is round(63 x / largest), so -63 .. 63. */
typedef struct hai_scan_queries {
  int32_t *code;  /* [n_words][lanes]: the codes of four coordinates, the first in the lowest byte */
  int32_t *word;  /* [n_words]: the order in which words are multiplied */
  int n_words;    /* a quarter of the coordinates, rounded up */
  int n_first;    /* the products of so many words tell whether the others are worth it (block.margin) */
  int32_t *lift;  /* [2][lanes]: HAI_KEY_RAISED times the sum of a lane's codes, of first words and of all */
  float *level;   /* [lanes]: what an estimate must reach to be kept, less what chance adds to it */
  int begin, end; /* the lanes that hold queries, in whole registers */
} hai_scan_queries;

/* A block of HAI_CHUNK keys of a sketch. The product of query i and key j, scale included, is estimated as
   mean[i] + unit * (the sum over t of their codes' products). */
typedef struct hai_scan_block {
  const uint8_t *code; /* [HAI_CHUNK][4 n_words]: HAI_KEY_RAISED + each code, which is -127 .. 127 */
  const float *draw;   /* [HAI_CHUNK]: -ln of a random number in (0, 1) */
  const float *mean;   /* [lanes]: products of the queries with the mean of the block's keys */
  float unit;          /* > 0 */
  int32_t margin;      /* a key whose last words would have to add more than this to be a hit is none */
} hai_scan_block;

/* A query as the scan of an index reads it (lookup.h), turned and times the scale: coordinate t is about
   unit * code / HAI_LOOK_STEPS, code in -127 .. 127. */
typedef struct hai_index_query {
  const int32_t *word; /* [n_words]: the codes of four coordinates, the first in the lowest byte */
  hai_index n_groups;  /* of 4 words, as keys have them */
  hai_index n_words;   /* as means have them: at least 4 n_groups, words beyond which are 0 */
  int32_t sum;         /* of all codes */
  float unit;          /* in steps, as estimates are */
  float more; /* what an estimate is raised by, for each unit of its key's norm: it grows with its error */
} hai_index_query;

/* A block of an index (index.h). */
typedef struct hai_index_block {
  const uint8_t *code; /* [n_groups][HAI_CHUNK][4]: two bits for coordinate y of each of a group's words */
  const uint8_t *norm; /* [HAI_CHUNK] */
  const uint8_t *mean; /* [4 n_words] */
  float mean_unit, norm_unit;
  float square; /* the mean over keys of the squared distance from the mean */
  size_t ahead; /* how many bytes behind the codes others lie that start to load meanwhile, or 0 */
} hai_index_block;

/* The sum of weights that a query's scores have: hai_step_weight(score - from), at most 2^100 each. */
typedef struct hai_weights {
  int from; /* in 16 bits */
  float lane[HAI_SUM_LANES];
} hai_weights;

#if HAI_INDEX
/* The number whose bits are so many steps, at least HAI_STEP_LEAST, more than those of 1: about 2^(steps /
   8), and at most 0.062 of itself larger. */
HAI_HOT float hai_step_weight(int steps) {
  int bits = steps + HAI_STEP_OF_1;
  return hai_float((HAI_AS(uint32_t, bits < HAI_STEP_LEAST ? HAI_STEP_LEAST : bits) & 2047u) << 20);
}

/* The steps at which a weight above 0 is nearest to x. */
HAI_HOT int hai_step_of(float x) { return HAI_AS(int, (hai_bits(x) + (1u << 19)) >> 20) - HAI_STEP_OF_1; }

/* Down to a whole octave, by which weights multiply exactly. */
HAI_HOT int hai_step_octave(int steps) { return (steps + (1 << 20)) / 8 * 8 - (1 << 20); }

/* The sum of HAI_SUM_LANES numbers. */
HAI_HOT float hai_lanes_sum(const float *x) {
  float sum = 0.0f;
  int lane;
  for (lane = 0; lane < HAI_SUM_LANES; lane++) sum += x[lane];
  return sum;
}
#endif

/* By what queries that share a kv head keep keys (meeting.h). */
typedef struct hai_levels {
  const int16_t *score[HAI_LOOK_TOGETHER]; /* [blocks][HAI_CHUNK], of each of n queries, in steps */
  int level[HAI_LOOK_TOGETHER];            /* at which a key is kept for certain, in 16 bits */
  int n;
  const float *place; /* [HAI_CHUNK] */
  const float *shift; /* [blocks] */
} hai_levels;

/* The arithmetic of a scan and of its sketch (scan.h, sketch.h). Integers are the same in every kernel. */
typedef struct hai_scan_kernel {
  /* bits[i] = the largest of the bits of |query[t][i]|, as an integer: 0x7f800000 or more where a coordinate
     is not finite. All lanes; query is [dim][lanes]. */
  void (*largest)(const float *query, hai_index dim, int32_t *bits);
  /* Codes of all lanes: round(query * inverse), cut off at -63 and 63; those of absent coordinates are 0. */
  void (*quantise)(const float *query, hai_index dim, float inverse, int32_t *code);
  /* Of each word, in its own place: the sum over all lanes of the squares of its codes, and the largest of a
     lane. */
  void (*forces)(const hai_scan_queries *queries, int32_t *all, int32_t *most);
  /* lift of all lanes, or 0 where the kernel multiplies codes that are not raised. */
  void (*lift)(const hai_scan_queries *queries);
  /* score[j][i] = the estimated product of query i and key first + j, for HAI_PILOT keys. */
  void (*estimate)(const hai_scan_queries *queries, const hai_scan_block *block, int first, float *score);
  /* Takes the estimates of HAI_PILOT keys up: high[i] becomes the largest of them so far, sum[i] the sum of
     all e^(score - high[i]), and group[i] the largest sum of those that came together. */
  void (*collect)(const float *score, int begin, int end, float *high, float *sum, float *group);
  /* Bit j: key j is a hit, that is floor(draw[j] / unit) + most[j] > 0, where most[j] is the smaller of
     max_i (sum of all codes' products - floor'((level[i] - mean[i]) / unit)), floor' rounding towards 0, and
     of the same with the first words' products alone and the margin. most [HAI_CHUNK] is written for hits. */
  uint64_t (*hits)(const hai_scan_queries *queries, const hai_scan_block *block, int32_t *most);
  /* missing[j] = 1 - e^-log_weight[j], for n keys; both are [HAI_CHUNK], and more may be written. */
  void (*missing)(const float *log_weight, int n, float *missing);
  /* scatter[i] = scatter[i] factor[i]^2 + sum_j missing[j] weight[j][i]^2 distance[j]; squares[i] likewise
     without distance. */
  void (*spread)(const float *weight, int n_keys, const float *missing, const float *distance,
                 const float *factor, int begin, int end, float *scatter, float *squares);
  /* For x = o / l: norm[i] = sum_t x[t][i]^2, apart[i] = sum_t (x[t][i] - centre[t])^2. */
  void (*distances)(const float *o, hai_index dim, const float *l, const float *centre, int begin, int end,
                    float *norm, float *apart);
  /* The sketch. mean[t] = the mean over HAI_CHUNK rows of row[j][t]. */
  void (*mean)(const float *const *row, hai_index dim, float *mean);
  /* The largest of the bits of |row[j][t] - mean[t]| over HAI_CHUNK rows, as an integer. */
  int32_t (*reach)(const float *const *row, hai_index dim, const float *mean);
  /* code[t] = HAI_KEY_RAISED + round((row[t] - mean[t]) inverse), which is in 1 .. 255, and HAI_KEY_RAISED up
     to a multiple of 4. */
  void (*encode)(const float *row, hai_index dim, const float *mean, float inverse, uint8_t *code);
  /* norm[w] = the largest over HAI_CHUNK keys of the sum of squares of word w's codes. */
  void (*norms)(const uint8_t *code, int n_words, int32_t *norm);
  /* |row - centre|^2. */
  float (*apart)(const float *row, hai_index dim, const float *centre);
#if HAI_INDEX
  /* score[i][j] = the estimated product of query i and key j of a block, and `more` for its norm, in steps,
     rounded and cut to 16 bits, for n queries, whose weights are added to weights[i]. */
  void (*guess)(const hai_index_query *query, int n, const hai_index_block *block, int16_t *const *score,
                hai_weights *weights);
  /* Adds the weights of a block's scores. */
  void (*weigh)(const int16_t *score, hai_weights *weights);
  /* Bit j of bits[b]: score[b][j] is at least `least`, for n blocks. */
  void (*at_least)(const int16_t *score, hai_index n, int least, uint64_t *bits);
  /* Bit j of bits[b]: is the largest hai_step_weight(score[b][j] - level) of the queries above u[j] in
     block b of n, where u[j] = place[j] + shift[b], less 1 where that is 1 or more? */
  void (*keep)(const hai_levels *levels, hai_index n, uint64_t *bits);
  /* Of x [n][HAI_TURNED], n a power of 2: the product with the Hadamard matrix, times factor. */
  void (*turn)(float *x, hai_index n, float factor);
  /* x[t][j] -= mean[t], of x [dim][HAI_TURNED]; square[j] = the sum over t of their squares. */
  void (*differ)(float *x, hai_index dim, const float *mean, float *square);
  /* Codes of x [dim][HAI_TURNED]: floor(2 + x[t][j] inverse[j]), cut off at 0 and 3, where hai_index_block
     says; product[j] = the sum over t of x[t][j] (2 code - 3). Where inverse[j] is 0, any codes. */
  void (*halve)(const float *x, hai_index dim, const float *inverse, uint8_t *code, float *product);
#endif
  float cost; /* of estimating a pair, over that of meeting it exactly (docs/scan.md) */
} hai_scan_kernel;

typedef struct hai_kernel {
  hyperattn_isa isa;
  hyperattn_dtype dtype; /* of the query, key and value rows that it reads */
  int lanes;             /* queries per tile */
  int width;             /* lanes per register */
  int tiles;             /* how many tiles should meet a chunk of keys while it is in the cache */

  /* to[t] = row[t] for t < n, exactly, for every dtype but F32 and CUSTOM. */
  void (*widen)(const void *row, hyperattn_dtype dtype, hai_index n, float *to);
  /* packed[t][i] = factor * row[i][t], for t < dim and all lanes; a NULL row packs as zeros. Kernels that
     read bfloat16 pack two coordinates into one float's place, and the factor behind them. */
  void (*pack)(const void *const *row, hai_index dim, float factor, float *packed);
  /* row[i][t] = (packed[t][i] + 0) * factor[i], for lanes whose row is not NULL: -0 becomes +0, since which
     of the two a sum is may depend on the lane's company. Rows do not overlap. */
  void (*unpack)(const float *packed, hai_index dim, const float *factor, float *const *row);
  /* score[j][i] = sum over t in order of query[t][i] * key[j][t], for j < n_keys; score has HAI_CHUNK
     rows, and those beyond n_keys may be written too. */
  void (*scores)(const float *query, hai_index dim, const void *const *key, int n_keys, int begin, int end,
                 float *score);
  /* score[j][i] = softcap * tanh(score[j][i] / softcap) for a softcap > 0; NaN stays. */
  void (*cap)(float *score, int n_keys, float softcap, int begin, int end);
  /* Clears bit i of visible[j] where bias[j][i] is -inf. */
  void (*hide)(const float *bias, int n_keys, int begin, int end, uint64_t *visible);
  /* score[j][i] += slope[i] * bias[j][i]. */
  void (*add_bias)(float *score, int n_keys, const float *bias, const float *slope, int begin, int end);
  /* Adds log_weight[j] (NULL: 0) and hides what visible[j]'s bit i does not show (NULL: shows all), then
       high = max_j score, m' = m where high <= m, else high + HAI_AHEAD, or high where that is a leap,
       factor = e^(m - m'), score[j][i] = e^(score - m'), l' = l factor + sum_j score[j][i].
     m is the reference of a lane's sums; no score is above it. It moves ahead of slowly rising scores, so
     that they do not multiply a state by a rounded factor in every chunk; the factor is exactly 1 where m
     stays. m = -inf means that nothing was met yet. l is [2][lanes]: a sum, and what rounding has taken from
     it so far. A NaN in a visible score makes l NaN. Returns whether any lane's m moved. */
  int (*softmax)(float *score, int n_keys, const float *log_weight, const uint64_t *visible, int begin,
                 int end, float *m, float *l, float *factor);
  /* NULL where products take the weights as they are. Otherwise it writes the rounded weights, two keys a
     row, behind the HAI_CHUNK rows of scores, where `values` finds them, and adds them up as `values` would
     for a value of 1:
     sum[i] = sum[i] * factor[i] + sum_j rounded[j][i]. */
  void (*round)(float *score, int n_keys, const float *factor, int begin, int end, float *sum);
  /* NULL where products take the rows of values as they lie. Otherwise it writes coordinates 0 .. dim - 1 of
     the values of a chunk into `joined` [HAI_CHUNK / 2][dim], as `values` multiplies them: this depends on no
     query, so that tiles share it. */
  void (*join)(const void *const *value, int n_keys, hai_index dim, float *joined);
  /* o[t][i] = o[t][i] * factor[i] + sum_j score[j][i] * value[j][t], for t < dim. Where there is a `join`,
     value[0] is what it wrote for these keys and coordinates. */
  void (*values)(float *score, int n_keys, const void *const *value, hai_index dim, const float *factor,
                 int begin, int end, float *o);
  /* x[t][i] = x[t][i] * factor[i], for t < rows. */
  void (*scale)(float *x, hai_index rows, const float *factor, int begin, int end);
  /* Adds o [rows][lanes] to sum, and what rounding takes from that addition to lost; o becomes 0. */
  void (*carry)(float *o, hai_index rows, int begin, int end, float *sum, float *lost);
  /* o = sum + (lost + o), the way back from `carry`; lost may be NULL. */
  void (*gather)(float *o, hai_index rows, int begin, int end, const float *sum, const float *lost);
  /* sum[j] = sum over lanes i in [begin, end) of score[j][i]. */
  void (*sum_lanes)(const float *score, int n_keys, int begin, int end, float *sum);
  /* |row|^2. */
  float (*square)(const float *row, hai_index dim);
  /* sum[t] += row[t], for t < dim. */
  void (*add_row)(float *sum, const float *row, hai_index dim);
  int value_multiple;        /* the dim of `values` is a multiple of it */
  const hai_few_kernel *few; /* NULL in a kernel that does not read float32 */
  /* What a thread does before and after a task that uses the kernel, or NULL; `leave` takes what `enter`
     returned. */
  uint32_t (*enter)(void);
  void (*leave)(uint32_t before);
} hai_kernel;

/* Returns the rounded sum + x and adds to *lost what rounding took from it, which is exact where rounding is
   to nearest (Knuth's TwoSum). */
static float hai_two_sum(float sum, float x, float *lost) {
  float next = sum + x, part = next - sum, rest = (sum - (next - part)) + (x - part);
  if (rest == rest) *lost += rest; /* an infinite sum loses nothing */
  return next;
}

/* The reference after a chunk whose largest score is `high`, m itself included; and what is taken from
   scores. */
HAI_HOT float hai_moved(float m, float high) {
  return high > m && high < m + HAI_LEAP ? high + HAI_AHEAD : high;
}
HAI_HOT float hai_shift(float m) { return m == -hai_inf() ? 0.0f : m; }

/* ======== src/kernel_scalar.h ======== */

/* The kernel in plain C: the specification of the others, and the one of machines without vectors. */

#define HAI_SCALAR_LANES 16

/* Elements from .. n - 1 of a row, as floats. */
static void hai_widen_plain(const void *row, hyperattn_dtype dtype, hai_index from, hai_index n, float *to) {
  for (; from < n; from++) to[from] = hai_get(row, dtype, from);
}

/* Packs coordinates from .. dim - 1 of lanes begin .. end - 1. */
static void hai_pack_plain(const void *const *row, hai_index from, hai_index dim, float factor, float *packed,
                           int lanes, int begin, int end) {
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
    for (t = from; row[i] && t < dim; t++) row[i][t] = (packed[t * lanes + i] + 0.0f) * factor[i];
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

static void hai_cap_scalar(float *score, int n_keys, float softcap, int begin, int end) {
  float inverse = hai_inverse(softcap);
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) score[i] = hai_capped(score[i], softcap, inverse);
}

static void hai_hide_scalar(const float *bias, int n_keys, int begin, int end, uint64_t *visible) {
  int i, j;
  for (j = 0; j < n_keys; j++, bias += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++)
      if (bias[i] == -hai_inf()) visible[j] &= ~(UINT64_C(1) << i);
}

static void hai_add_bias_scalar(float *score, int n_keys, const float *bias, const float *slope, int begin,
                                int end) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_SCALAR_LANES, bias += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) score[i] += slope[i] * bias[i];
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
    if (high > m[i]) moved = 1;
    high = hai_moved(m[i], high);
    shift = hai_shift(high);
    for (j = 0; j < n_keys; j++) {
      float *s = score + j * HAI_SCALAR_LANES + i;
      *s = hai_exp(*s - shift);
      sum += *s;
    }
    factor[i] = hai_exp(m[i] - shift);
    l[i] *= factor[i];
    lost = 0.0f;
    /* read as volatile, so that the compiler does not contract the product with what follows */
    l[i] =
        hai_two_sum(*HAI_AS(const volatile float *, l + i), sum + l[HAI_SCALAR_LANES + i] * factor[i], &lost);
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

static float hai_square_scalar(const float *row, hai_index dim) {
  float sum = 0.0f;
  hai_index t;
  for (t = 0; t < dim; t++) sum += row[t] * row[t];
  return sum;
}

static void hai_add_row_scalar(float *sum, const float *row, hai_index dim) {
  hai_index t;
  for (t = 0; t < dim; t++) sum[t] += row[t];
}

static void hai_few_scores_scalar(const hai_few_rows *keys, const float *query, int n, float *score) {
  hai_index t;
  int i, j;
  for (i = 0; i < n; i++, query += keys->dim, score += HAI_CHUNK)
    for (j = 0; j < keys->n; j++) {
      const float *key = HAI_AS(const float *, HAI_AS(const void *, keys->row[j]));
      score[j] = 0.0f;
      for (t = 0; t < keys->dim; t++) score[j] += query[t] * key[t];
    }
}

static void hai_few_softmax_scalar(float *score, int n, int n_keys, const float *log_weight,
                                   const uint64_t *visible, float *m, float *l, float *factor) {
  int i, j;
  for (i = 0; i < n; i++, score += HAI_CHUNK) {
    float high = m[i], shift, sum = 0.0f;
    for (j = 0; j < n_keys; j++) {
      if (log_weight) score[j] += log_weight[j];
      if (!(visible[i] >> j & 1)) score[j] = -hai_inf();
      if (score[j] > high) high = score[j];
    }
    high = hai_moved(m[i], high);
    shift = hai_shift(high);
    for (j = 0; j < n_keys; j++) {
      score[j] = hai_exp(score[j] - shift);
      sum += score[j];
    }
    factor[i] = hai_exp(m[i] - shift);
    l[i] = l[i] * factor[i] + sum;
    m[i] = high;
  }
}

static void hai_few_values_scalar(const hai_few_rows *values, const float *weight, const float *factor, int n,
                                  float *o) {
  hai_index t;
  int i, j;
  for (i = 0; i < n; i++, weight += HAI_CHUNK, o += values->dim)
    for (t = 0; t < values->dim; t++) {
      float sum = 0.0f;
      for (j = 0; j < values->n; j++)
        sum += weight[j] * HAI_AS(const float *, HAI_AS(const void *, values->row[j]))[t];
      o[t] = o[t] * factor[i] + sum;
    }
}

static const hai_few_kernel hai_few_scalar = {
    /* scores */ hai_few_scores_scalar,
    /* softmax */ hai_few_softmax_scalar,
    /* values */ hai_few_values_scalar,
    /* most */ 1,
    /* queries */ 4,
    /* step */ 1};

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
    /* cap */ HAI_SOFTCAP ? hai_cap_scalar : HAI_NULL,
    /* hide */ HAI_MASKS ? hai_hide_scalar : HAI_NULL,
    /* add_bias */ HAI_MASKS ? hai_add_bias_scalar : HAI_NULL,
    /* softmax */ hai_softmax_scalar,
    /* round */ HAI_NULL,
    /* join */ HAI_NULL,
    /* values */ hai_values_scalar,
    /* scale */ hai_scale_scalar,
    /* carry */ HAI_LONG_SUMS ? hai_carry_scalar : HAI_NULL,
    /* gather */ HAI_LONG_SUMS ? hai_gather_scalar : HAI_NULL,
    /* sum_lanes */ hai_sum_lanes_scalar,
    /* square */ hai_square_scalar,
    /* add_row */ hai_add_row_scalar,
    /* value_multiple */ 1,
    /* few */ HAI_FEW ? &hai_few_scalar : HAI_NULL,
    /* enter */ HAI_NULL,
    /* leave */ HAI_NULL};

/* ======== src/kernel_index_scalar.h ======== */

/* The scan of an index in plain C: the specification of kernel_index.h. */

#if HAI_INDEX
/* The product of four codes and four of a query's. */
static int32_t hai_index_product(const uint8_t *code, int32_t word) {
  uint32_t four = HAI_AS(uint32_t, word);
  return code[0] * HAI_AS(int8_t, four & 255u) + code[1] * HAI_AS(int8_t, four >> 8 & 255u) +
         code[2] * HAI_AS(int8_t, four >> 16 & 255u) + code[3] * HAI_AS(int8_t, four >> 24);
}

/* An estimate as it is kept: rounded, in 16 bits. */
static int16_t hai_index_cut(float x) {
  float cut = x < -32768.0f ? -32768.0f : x < 32767.0f ? x : 32767.0f;
  return HAI_AS(int16_t, HAI_AS(int, cut + 32768.5f) - 32768);
}

/* A weight by a score. */
static float hai_index_weight(int score, int from) {
  int steps = score - from, top = HAI_STEP_TOP - HAI_STEP_OF_1;
  return hai_step_weight(steps < top ? steps : top);
}

static void hai_index_guess_one(const hai_index_query *query, const hai_index_block *block, int16_t *score,
                                hai_weights *weights) {
  int32_t mean = -HAI_MEAN_RAISED * query->sum;
  float slope = 2.0f * query->unit * block->norm_unit, base;
  float more = (query->more - HAI_AS(float, 3 * query->sum) * query->unit) * block->norm_unit;
  hai_index w;
  int j, y;
  for (w = 0; w < query->n_words; w++) mean += hai_index_product(block->mean + 4 * w, query->word[w]);
  base = query->unit * block->mean_unit * HAI_AS(float, mean);
  for (j = 0; j < HAI_CHUNK; j++) {
    int32_t sum = 0;
    for (w = 0; w < 4 * query->n_groups; w++) {
      const uint8_t *code = block->code + (w / 4 * HAI_CHUNK + j) * 4;
      uint8_t four[4];
      for (y = 0; y < 4; y++) four[y] = HAI_AS(uint8_t, code[y] >> w % 4 * 2 & 3);
      sum += hai_index_product(four, query->word[w]);
    }
    score[j] = hai_index_cut(HAI_AS(float, block->norm[j]) * (HAI_AS(float, sum) * slope + more) + base);
    weights->lane[j % HAI_SUM_LANES] += hai_index_weight(score[j], weights->from);
  }
}
static void hai_index_guess_scalar(const hai_index_query *query, int n, const hai_index_block *block,
                                   int16_t *const *score, hai_weights *weights) {
  int i;
  for (i = 0; i < n; i++) hai_index_guess_one(query + i, block, score[i], weights + i);
}

static void hai_index_weigh_scalar(const int16_t *score, hai_weights *weights) {
  int j;
  for (j = 0; j < HAI_CHUNK; j++)
    weights->lane[j % HAI_SUM_LANES] += hai_index_weight(score[j], weights->from);
}

static void hai_index_at_least_scalar(const int16_t *score, hai_index n, int least, uint64_t *bits) {
  hai_index b;
  int j;
  for (b = 0; b < n; b++, score += HAI_CHUNK)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j++) bits[b] |= HAI_AS(uint64_t, score[j] >= least) << j;
}

static void hai_index_keep_scalar(const hai_levels *levels, hai_index n, uint64_t *bits) {
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j++) {
      float u = levels->place[j] + levels->shift[b];
      int most = -HAI_STEP_OF_1;
      if (u >= 1.0f) u -= 1.0f;
      for (i = 0; i < levels->n; i++) {
        int x = levels->score[i][b * HAI_CHUNK + j] - levels->level[i];
        most = x > most ? x : most;
      }
      bits[b] |= HAI_AS(uint64_t, most >= 0 || hai_step_weight(most) > u) << j;
    }
}

/* Of x [n][lanes]. */
static void hai_index_turn_lanes(float *x, hai_index n, float factor, hai_index lanes) {
  hai_index half, t, u;
  for (half = lanes; half < n * lanes; half *= 2)
    for (t = 0; t < n * lanes; t += 2 * half)
      for (u = t; u < t + half; u++) {
        float a = x[u], b = x[u + half];
        x[u] = a + b;
        x[u + half] = a - b;
      }
  for (t = 0; t < n * lanes; t++) x[t] *= factor;
}
static void hai_index_turn_scalar(float *x, hai_index n, float factor) {
  hai_index_turn_lanes(x, n, factor, HAI_TURNED);
}

static void hai_index_differ_scalar(float *x, hai_index dim, const float *mean, float *square) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j++) square[j] = 0.0f;
  for (t = 0; t < dim; t++)
    for (j = 0; j < HAI_TURNED; j++) {
      float y = x[t * HAI_TURNED + j] - mean[t];
      x[t * HAI_TURNED + j] = y;
      square[j] += y * y;
    }
}

static void hai_index_halve_scalar(const float *x, hai_index dim, const float *inverse, uint8_t *code,
                                   float *product) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j++) {
    product[j] = 0.0f;
    for (t = 0; t < hai_ceil_div(dim, HAI_GROUP_DIM); t++)
      HYPERATTN_MEMSET(code + 4 * (t * HAI_CHUNK + j), 0, 4);
    for (t = 0; t < dim; t++) {
      uint8_t *to = code + 4 * (t / HAI_GROUP_DIM * HAI_CHUNK + j) + t % 4;
      float y = x[t * HAI_TURNED + j], z = y * inverse[j] + 2.0f;
      int c = z > 0.0f ? HAI_AS(int, z < 3.5f ? z : 3.5f) : 0;
      product[j] += y * HAI_AS(float, 2 * c - 3);
      *to = HAI_AS(uint8_t, *to | c << t % HAI_GROUP_DIM / 4 * 2);
    }
  }
}
#endif

/* ======== src/kernel_scan_scalar.h ======== */

/* The scan in plain C: the specification of the vector kernels. */

#if HAI_SCAN
/* The largest of |x| by its bits, which order as the numbers do. */
static void hai_scan_largest_scalar(const float *query, hai_index dim, int32_t *bits) {
  hai_index t;
  int i;
  for (i = 0; i < HAI_SCALAR_LANES; i++) bits[i] = 0;
  for (t = 0; t < dim; t++)
    for (i = 0; i < HAI_SCALAR_LANES; i++) {
      int32_t size = HAI_AS(int32_t, hai_bits(query[t * HAI_SCALAR_LANES + i]) & 0x7fffffffu);
      if (size > bits[i]) bits[i] = size;
    }
}

/* x as an integer, cut off at -most and most; NaN becomes -most. */
static int32_t hai_scan_truncate(float x, float most) {
  if (!(x > -most)) x = -most;
  return HAI_AS(int32_t, x < most ? x : most);
}

/* A product is rounded to thousandths first, towards 0, and those to whole numbers: no compiler can contract
   either step into another sum. */
static int32_t hai_scan_code(float x, float inverse) {
  int32_t fine = hai_scan_truncate(x * (inverse * HAI_CODE_FINE), HAI_CODE_MOST);
  return (fine + HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2) / HAI_CODE_FINE - HAI_KEY_RAISED;
}

static void hai_scan_quantise_scalar(const float *query, hai_index dim, float inverse, int32_t *code) {
  hai_index t, y;
  int i;
  for (t = 0; t < dim; t += 4)
    for (i = 0; i < HAI_SCALAR_LANES; i++) {
      uint32_t word = 0;
      for (y = hai_min(dim, t + 4) - 1; y >= t; y--)
        word = word << 8 | (HAI_AS(uint32_t, hai_scan_code(query[y * HAI_SCALAR_LANES + i], inverse)) & 255u);
      code[t / 4 * HAI_SCALAR_LANES + i] = HAI_AS(int32_t, word);
    }
}

static void hai_scan_forces_scalar(const hai_scan_queries *queries, int32_t *all, int32_t *most) {
  int i, w;
  for (w = 0; w < queries->n_words; w++) {
    all[w] = most[w] = 0;
    for (i = 0; i < HAI_SCALAR_LANES; i++) {
      uint32_t word = HAI_AS(uint32_t, queries->code[w * HAI_SCALAR_LANES + i]);
      int32_t sum = 0;
      for (; word; word >>= 8) sum += HAI_AS(int8_t, word & 255u) * HAI_AS(int8_t, word & 255u);
      all[w] += sum;
      most[w] = sum > most[w] ? sum : most[w];
    }
  }
}

/* Codes are not raised where they are multiplied. */
static void hai_scan_lift_scalar(const hai_scan_queries *queries) {
  HYPERATTN_MEMSET(queries->lift, 0, 2 * HAI_SCALAR_LANES * sizeof *queries->lift);
}

/* The sum of products of lane i's codes and a key's, of words begin .. end - 1 of the order. */
static int32_t hai_scan_product(const hai_scan_queries *queries, int i, const uint8_t *key, int begin,
                                int end) {
  int32_t sum = 0;
  for (; begin < end; begin++) {
    int32_t at = queries->word[begin];
    uint32_t word = HAI_AS(uint32_t, queries->code[at * HAI_SCALAR_LANES + i]);
    const uint8_t *four = key + 4 * at;
    sum += HAI_AS(int8_t, word & 255u) * (four[0] - HAI_KEY_RAISED) +
           HAI_AS(int8_t, word >> 8 & 255u) * (four[1] - HAI_KEY_RAISED) +
           HAI_AS(int8_t, word >> 16 & 255u) * (four[2] - HAI_KEY_RAISED) +
           HAI_AS(int8_t, word >> 24) * (four[3] - HAI_KEY_RAISED);
  }
  return sum;
}

static void hai_scan_estimate_scalar(const hai_scan_queries *queries, const hai_scan_block *block, int first,
                                     float *score) {
  int i, j;
  for (j = first; j < first + HAI_PILOT; j++, score += HAI_SCALAR_LANES)
    for (i = queries->begin; i < queries->end; i++) {
      const uint8_t *key = block->code + 4 * j * queries->n_words;
      int32_t product = hai_scan_product(queries, i, key, 0, queries->n_words);
      score[i] = block->unit * HAI_AS(float, product) + block->mean[i];
    }
}

static void hai_scan_collect_scalar(const float *score, int begin, int end, float *high, float *sum,
                                    float *group) {
  int i, j;
  for (i = begin; i < end; i++) {
    float most = high[i], here = 0.0f, factor;
    for (j = 0; j < HAI_PILOT; j++)
      most = score[j * HAI_SCALAR_LANES + i] > most ? score[j * HAI_SCALAR_LANES + i] : most;
    factor = hai_exp(high[i] - hai_shift(most));
    for (j = 0; j < HAI_PILOT; j++) here += hai_exp(score[j * HAI_SCALAR_LANES + i] - hai_shift(most));
    sum[i] = sum[i] * factor + here;
    group[i] = group[i] * factor > here ? group[i] * factor : here;
    high[i] = most;
  }
}

static uint64_t hai_scan_hits_scalar(const hai_scan_queries *queries, const hai_scan_block *block,
                                     int32_t *most) {
  int32_t threshold[HAI_SCALAR_LANES] = {0};
  float inverse = 1.0f / block->unit;
  uint64_t hits = 0;
  int i, j;
  for (i = queries->begin; i < queries->end; i++)
    threshold[i] = hai_scan_truncate((queries->level[i] - block->mean[i]) * inverse, HAI_MOST_LEVEL);
  for (j = 0; j < HAI_CHUNK; j++) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    int32_t draw = hai_scan_truncate(block->draw[j] * inverse, HAI_MOST_DRAW), best = INT32_MIN,
            first = INT32_MIN;
    for (i = queries->begin; i < queries->end; i++) {
      int32_t over = hai_scan_product(queries, i, key, 0, queries->n_first) + block->margin - threshold[i];
      first = over > first ? over : first;
    }
    if (first + draw <= 0) continue;
    for (i = queries->begin; i < queries->end; i++) {
      int32_t over = hai_scan_product(queries, i, key, 0, queries->n_words) - threshold[i];
      best = over > best ? over : best;
    }
    most[j] = best < first ? best : first;
    hits |= HAI_AS(uint64_t, most[j] + draw > 0) << j;
  }
  return hits;
}

static void hai_scan_missing_scalar(const float *log_weight, int n, float *missing) {
  int j;
  for (j = 0; j < n; j++) missing[j] = 1.0f - hai_exp(-log_weight[j]);
}

static void hai_scan_spread_scalar(const float *weight, int n_keys, const float *missing,
                                   const float *distance, const float *factor, int begin, int end,
                                   float *scatter, float *squares) {
  int i, j;
  for (i = begin; i < end; i++) {
    scatter[i] *= factor[i] * factor[i];
    squares[i] *= factor[i] * factor[i];
    for (j = 0; j < n_keys; j++) {
      float w = weight[j * HAI_SCALAR_LANES + i], square = w * w * missing[j];
      scatter[i] += square * distance[j];
      squares[i] += square;
    }
  }
}

static void hai_scan_distances_scalar(const float *o, hai_index dim, const float *l, const float *centre,
                                      int begin, int end, float *norm, float *apart) {
  hai_index t;
  int i;
  for (i = begin; i < end; i++) {
    float inverse = 1.0f / l[i];
    norm[i] = apart[i] = 0.0f;
    for (t = 0; t < dim; t++) {
      float x = o[t * HAI_SCALAR_LANES + i] * inverse, from = x - centre[t];
      norm[i] += x * x;
      apart[i] += from * from;
    }
  }
}

/* ---- The sketch, from coordinate `from` on ---- */

static void hai_scan_mean_plain(const float *const *row, hai_index from, hai_index dim, float *mean) {
  hai_index t;
  int j;
  for (t = from; t < dim; t++) {
    mean[t] = 0.0f;
    for (j = 0; j < HAI_CHUNK; j++) mean[t] += row[j][t];
    mean[t] *= 1.0f / HAI_CHUNK;
  }
}
static int32_t hai_scan_reach_plain(const float *const *row, hai_index from, hai_index dim, const float *mean,
                                    int32_t most) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_CHUNK; j++)
    for (t = from; t < dim; t++) {
      int32_t size = HAI_AS(int32_t, hai_bits(row[j][t] - mean[t]) & 0x7fffffffu);
      most = size > most ? size : most;
    }
  return most;
}
static void hai_scan_encode_plain(const float *row, hai_index from, hai_index dim, const float *mean,
                                  float inverse, uint8_t *code) {
  hai_index t;
  for (t = from; t < dim; t++) {
    int32_t fine = hai_scan_truncate((row[t] - mean[t]) * (inverse * HAI_CODE_FINE), HAI_KEY_MOST);
    code[t] = HAI_AS(uint8_t, (fine + HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2) / HAI_CODE_FINE);
  }
  for (; t % 4; t++) code[t] = HAI_KEY_RAISED;
}
/* The sum of squares of a word's codes. */
static int32_t hai_scan_squares(const uint8_t *code) {
  int32_t sum = 0;
  int y;
  for (y = 0; y < 4; y++) sum += (code[y] - HAI_KEY_RAISED) * (code[y] - HAI_KEY_RAISED);
  return sum;
}
static void hai_scan_norms_plain(const uint8_t *code, int from, int n_words, int32_t *norm) {
  int j;
  for (; from < n_words; from++) {
    norm[from] = 0;
    for (j = 0; j < HAI_CHUNK; j++) {
      int32_t sum = hai_scan_squares(code + 4 * (j * n_words + from));
      norm[from] = sum > norm[from] ? sum : norm[from];
    }
  }
}
static float hai_scan_apart_plain(const float *row, hai_index from, hai_index dim, const float *centre) {
  float sum = 0.0f;
  for (; from < dim; from++) sum += (row[from] - centre[from]) * (row[from] - centre[from]);
  return sum;
}
static void hai_scan_mean_scalar(const float *const *row, hai_index dim, float *mean) {
  hai_scan_mean_plain(row, 0, dim, mean);
}
static int32_t hai_scan_reach_scalar(const float *const *row, hai_index dim, const float *mean) {
  return hai_scan_reach_plain(row, 0, dim, mean, 0);
}
static void hai_scan_encode_scalar(const float *row, hai_index dim, const float *mean, float inverse,
                                   uint8_t *code) {
  hai_scan_encode_plain(row, 0, dim, mean, inverse, code);
}
static void hai_scan_norms_scalar(const uint8_t *code, int n_words, int32_t *norm) {
  hai_scan_norms_plain(code, 0, n_words, norm);
}
static float hai_scan_apart_scalar(const float *row, hai_index dim, const float *centre) {
  return hai_scan_apart_plain(row, 0, dim, centre);
}

static const hai_scan_kernel hai_scan_kernel_scalar = {
    /* largest */ hai_scan_largest_scalar,
    /* quantise */ hai_scan_quantise_scalar,
    /* forces */ hai_scan_forces_scalar,
    /* lift */ hai_scan_lift_scalar,
    /* estimate */ hai_scan_estimate_scalar,
    /* collect */ hai_scan_collect_scalar,
    /* hits */ hai_scan_hits_scalar,
    /* missing */ hai_scan_missing_scalar,
    /* spread */ hai_scan_spread_scalar,
    /* distances */ hai_scan_distances_scalar,
    /* mean */ hai_scan_mean_scalar,
    /* reach */ hai_scan_reach_scalar,
    /* encode */ hai_scan_encode_scalar,
    /* norms */ hai_scan_norms_scalar,
    /* apart */ hai_scan_apart_scalar,
#if HAI_INDEX
    /* guess */ hai_index_guess_scalar,
    /* weigh */ hai_index_weigh_scalar,
    /* at_least */ hai_index_at_least_scalar,
    /* keep */ hai_index_keep_scalar,
    /* turn */ hai_index_turn_scalar,
    /* differ */ hai_index_differ_scalar,
    /* halve */ hai_index_halve_scalar,
#endif
    /* cost */ 0.3f};
#endif

/* ======== src/kernel_shared.h ======== */

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

/* ======== src/kernel_avx512.h ======== */

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
/* ======== src/kernel_vector.h ======== */

/* Template: a whole kernel of float32, in plain C. Included once per ISA, behind that ISA's primitives, with
   the parameters of kernel_tile.h, which it undefines at its end. The primitives, x, a, b registers:
     zero(), set1(x), load(p), store(p, x), add, sub, mul, fma(a, b, c) = a b + c, sum(x) of all lanes
     dot(a, b, c)          what a product adds to c; each(p): the element at p in all lanes
     times(x, factor)      what packing multiplies by
     f16(p), bf16(p), int8(p)   a register of elements as floats; half(p): the float16 at p in all lanes
     max(a, b), min(a, b)  the larger, the smaller; b where either is NaN
     div(a, b); hidden(x)  bit i: lane i is -inf
     show(x, bits)         x in the lanes of `bits`, -inf elsewhere
     or_zero(x)            0 where x is -inf; known(x): 0 where x is NaN
     move(m, high)         the next reference of the lanes' sums (hai_kernel.softmax)
     differ(a, b)          whether any lane differs
     keep(x)               x, which the compiler may neither contract with what follows nor fold
     exp(x)                e^x for x <= 0, e^0 exactly 1, below 2^-126 exactly 0
     gather4(row, t), scatter4(x, row, t)   elements t .. t + 3 of rows 0, 4, 8, ..; transpose4: 4 x 4 */

/* ======== src/kernel_tile.h ======== */

/* Template: the products of a tile, in plain C. Included once per ISA, behind that ISA's primitives, with
   these parameters:
     HAI_ISA(name)   the name that a function or primitive has for this ISA: hai_<name>_<isa>
     HAI_TARGET      the function attribute that lets the compiler use its instructions
     HAI_VECTOR      its register, of HAI_WIDTH floats; a tile has HAI_LANES lanes, three registers
     HAI_ELEMENT     what a product reads: float, or two bfloat16 whose products are summed
     HAI_ROWS(X)     X(0) X(1) .. for the HAI_N_ROWS keys, or coordinates of values, multiplied at a time
     HAI_LONG(X)     the same for HAI_N_LONG coordinates where a tile has one register: its sums need to be
                     more to hide the latency of a multiply-add
     HAI_FACTORED    1 if a factor for each lane lies behind the packed queries
   A step of the inner loop loads up to three packed vectors a0 to a2, and for each row broadcasts one
   element b and does a multiply-add with each vector. The sums c<row><register> are named variables and not
   an array: gcc -O1 would store an array of them before the loop. The number of registers n is a constant
   where the inline functions are called, so that what belongs to absent registers is dropped. */

#define HAI_SUMS(r) HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0;
#define HAI_LOAD(p)                                 \
  a0 = HAI_ISA(load)(p);                            \
  a1 = n > 1 ? HAI_ISA(load)((p) + HAI_WIDTH) : a0; \
  a2 = n > 2 ? HAI_ISA(load)((p) + 2 * HAI_WIDTH) : a0;
#define HAI_ADD(r)                                   \
  c##r##0 = HAI_ISA(dot)(a0, b, c##r##0);            \
  if (n > 1) c##r##1 = HAI_ISA(dot)(a1, b, c##r##1); \
  if (n > 2) c##r##2 = HAI_ISA(dot)(a2, b, c##r##2);
#define HAI_STORE(r, p)                                \
  HAI_ISA(store)(p, c##r##0);                          \
  if (n > 1) HAI_ISA(store)((p) + HAI_WIDTH, c##r##1); \
  if (n > 2) HAI_ISA(store)((p) + 2 * HAI_WIDTH, c##r##2);

/* ---- Packing ---- */

/* Transposes 4 x 4 submatrices within parts of 128 bits: vector k of four holds rows k, k + 4, k + 8, ... */
HAI_TARGET static void HAI_ISA(pack)(const void *const *row, hai_index dim, float factor, float *packed) {
  HAI_VECTOR f = HAI_ISA(set1)(factor), x0, x1, x2, x3;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    hai_index t = 0, whole = hai_rows_present(row + i, HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(gather4)(row + i, t);
      x1 = HAI_ISA(gather4)(row + i + 1, t);
      x2 = HAI_ISA(gather4)(row + i + 2, t);
      x3 = HAI_ISA(gather4)(row + i + 3, t);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(store)(at, HAI_ISA(times)(x0, f));
      HAI_ISA(store)(at + HAI_LANES, HAI_ISA(times)(x1, f));
      HAI_ISA(store)(at + 2 * HAI_LANES, HAI_ISA(times)(x2, f));
      HAI_ISA(store)(at + 3 * HAI_LANES, HAI_ISA(times)(x3, f));
    }
    if (t < dim) HAI_ISA(pack_rest)(row, t, dim, factor, packed, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- Scores ---- */

#define HAI_KEY_ROW(r) const HAI_ELEMENT *k##r = HAI_AS(const HAI_ELEMENT *, key[r]);
#define HAI_KEY_ADD(r)         \
  b = HAI_ISA(each)(k##r + t); \
  HAI_ADD(r)
#define HAI_STEP        \
  HAI_LOAD(query)       \
  HAI_ROWS(HAI_KEY_ADD) \
  t++;                  \
  query += HAI_LANES;
#define HAI_TIMES(r)                              \
  c##r##0 = HAI_ISA(mul)(c##r##0, a0);            \
  if (n > 1) c##r##1 = HAI_ISA(mul)(c##r##1, a1); \
  if (n > 2) c##r##2 = HAI_ISA(mul)(c##r##2, a2);
#define HAI_SCORES_OUT(r) HAI_STORE(r, score + r * HAI_LANES)

/* score[r][i] = sum_t query[t][i] key_r[t], times the lane's factor where there is one. One register alone
   takes four steps in each iteration: its eight sums leave no time for the loop's own instructions. */
HAI_TARGET HAI_INLINE void HAI_ISA(score_registers)(const float *query, hai_index dim,
                                                    const void *const *key, float *score, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  hai_index t = 0, by_four = n == 1 ? dim - 3 : 0;
  HAI_ROWS(HAI_SUMS)
  HAI_ROWS(HAI_KEY_ROW)
  while (t < by_four) {
    HAI_STEP HAI_STEP HAI_STEP HAI_STEP
  }
  while (t < dim) {
    HAI_STEP
  }
  if (HAI_FACTORED) {
    HAI_LOAD(query)
    HAI_ROWS(HAI_TIMES)
  }
  HAI_ROWS(HAI_SCORES_OUT)
}

HAI_TARGET static void HAI_ISA(score_rows)(const float *query, hai_index dim, const void *const *key,
                                           float *score, int n) {
  if (n == 3)
    HAI_ISA(score_registers)(query, dim, key, score, 3);
  else if (n == 2)
    HAI_ISA(score_registers)(query, dim, key, score, 2);
  else
    HAI_ISA(score_registers)(query, dim, key, score, 1);
}

static void HAI_ISA(scores)(const float *query, hai_index dim, const void *const *key, int n_keys,
                            int begin, int end, float *score) {
  const void *row[HAI_N_ROWS];
  int j, r, n = (end - begin) / HAI_WIDTH;
  query += begin;
  score += begin;
  for (j = 0; j < n_keys; j += HAI_N_ROWS, key += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    if (n_keys - j < HAI_N_ROWS) { /* the first key stands for absent ones */
      for (r = 0; r < HAI_N_ROWS; r++) row[r] = key[r < n_keys - j ? r : 0];
      key = row;
    }
    HAI_ISA(score_rows)(query, dim, key, score, n);
  }
}

/* ---- Values ---- */

#define HAI_VALUE_ADD(r)    \
  b = HAI_ISA(each)(v + r); \
  HAI_ADD(r)
#define HAI_UPDATE(r, p)                                                              \
  c##r##0 = HAI_ISA(fma)(HAI_ISA(load)(p), a0, c##r##0);                              \
  if (n > 1) c##r##1 = HAI_ISA(fma)(HAI_ISA(load)((p) + HAI_WIDTH), a1, c##r##1);     \
  if (n > 2) c##r##2 = HAI_ISA(fma)(HAI_ISA(load)((p) + 2 * HAI_WIDTH), a2, c##r##2); \
  HAI_STORE(r, p)
#define HAI_VALUES_OUT(r) HAI_UPDATE(r, o + r * HAI_LANES)

#define HAI_EACH(X) HAI_ROWS(X)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_rows)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) HAI_LONG(X)
#define HAI_REGISTERS 1
#define HAI_THESE(name) HAI_ISA(name##_long)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) X(0)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_row)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */


static void HAI_ISA(values)(float *score, int n_keys, const void *const *value, hai_index dim,
                            const float *factor, int begin, int end, float *o) {
  hai_index t = 0;
  int n = (end - begin) / HAI_WIDTH;
  score += begin;
  factor += begin;
  o += begin;
  for (; n == 1 && t + HAI_N_LONG <= dim; t += HAI_N_LONG)
    HAI_ISA(value_long)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t + HAI_N_ROWS <= dim; t += HAI_N_ROWS)
    HAI_ISA(value_rows)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t < dim; t++) HAI_ISA(value_row)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
}

#undef HAI_SUMS
#undef HAI_LOAD
#undef HAI_ADD
#undef HAI_STORE
#undef HAI_KEY_ROW
#undef HAI_KEY_ADD
#undef HAI_STEP
#undef HAI_TIMES
#undef HAI_SCORES_OUT
#undef HAI_VALUE_ADD
#undef HAI_UPDATE
#undef HAI_VALUES_OUT

/* ======== src/kernel_vector.h, continued ======== */


/* row[i][t] = (packed[t][i] + 0) * factor[i], the way back of packing. */
HAI_TARGET static void HAI_ISA(unpack)(const float *packed, hai_index dim, const float *factor,
                                       float *const *row) {
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), zero = HAI_ISA(zero)(), x0, x1, x2, x3;
    hai_index t = 0;
    hai_index whole =
        hai_rows_present(HAI_REINTERPRET(const void *const *, row + i), HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      const float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at), zero), f);
      x1 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + HAI_LANES), zero), f);
      x2 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + 2 * HAI_LANES), zero), f);
      x3 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + 3 * HAI_LANES), zero), f);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(scatter4)(x0, row + i, t);
      HAI_ISA(scatter4)(x1, row + i + 1, t);
      HAI_ISA(scatter4)(x2, row + i + 2, t);
      HAI_ISA(scatter4)(x3, row + i + 3, t);
    }
    if (t < dim) hai_unpack_plain(packed, t, dim, factor, row, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- What a score becomes ---- */

/* x between -most and most; NaN stays. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(clamp)(HAI_VECTOR x, float most) {
  return HAI_ISA(max)(HAI_ISA(set1)(-most), HAI_ISA(min)(HAI_ISA(set1)(most), x));
}

/* As hai_capped. */
HAI_TARGET static void HAI_ISA(cap)(float *score, int n_keys, float softcap, int begin, int end) {
  HAI_VECTOR inverse = HAI_ISA(set1)(hai_inverse(softcap));
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR s = HAI_ISA(load)(score + i), u, p, q;
      u = HAI_ISA(clamp)(HAI_ISA(mul)(s, inverse), HAI_TANH_END);
      u = HAI_ISA(mul)(u, u);
      p = HAI_ISA(fma)(HAI_ISA(set1)(HAI_TANH_P4), u, HAI_ISA(set1)(HAI_TANH_P3));
      q = HAI_ISA(fma)(HAI_ISA(set1)(HAI_TANH_Q4), u, HAI_ISA(set1)(HAI_TANH_Q3));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P2));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(HAI_TANH_Q2));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P1));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(HAI_TANH_Q1));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P0));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(1.0f));
      HAI_ISA(store)(score + i, HAI_ISA(clamp)(HAI_ISA(mul)(s, HAI_ISA(div)(p, q)), softcap));
    }
}

HAI_TARGET static void HAI_ISA(hide)(const float *bias, int n_keys, int begin, int end, uint64_t *visible) {
  int i, j;
  for (j = 0; j < n_keys; j++, bias += HAI_LANES) {
    uint64_t hidden = 0;
    for (i = begin; i < end; i += HAI_WIDTH)
      hidden |= HAI_AS(uint64_t, HAI_ISA(hidden)(HAI_ISA(load)(bias + i))) << i;
    visible[j] &= ~hidden;
  }
}

HAI_TARGET static void HAI_ISA(add_bias)(float *score, int n_keys, const float *bias, const float *slope,
                                         int begin, int end) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES, bias += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH)
      HAI_ISA(store)
      (score + i, HAI_ISA(fma)(HAI_ISA(load)(slope + i), HAI_ISA(load)(bias + i), HAI_ISA(load)(score + i)));
}

/* ---- Softmax ---- */

/* The largest of m and of each lane's scores, for the lanes of one register: log-weights are added and hidden
   keys hidden first. Four maxima at a time hide one another's latency. */
#define HAI_SHOW(r)                                                        \
  s = HAI_ISA(load)(at + (r)*HAI_LANES);                                   \
  if (log_weight) s = HAI_ISA(add)(s, HAI_ISA(set1)(log_weight[j + (r)])); \
  if (visible) s = HAI_ISA(show)(s, visible[j + (r)] >> lane);             \
  HAI_ISA(store)(at + (r)*HAI_LANES, s);                                   \
  high##r = HAI_ISA(max)(s, high##r);
#define HAI_HIGH(r) high##r = HAI_ISA(max)(HAI_ISA(load)(at + (r)*HAI_LANES), high##r);
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(high)(float *at, int n_keys, const float *log_weight,
                                               const uint64_t *visible, int lane, HAI_VECTOR m) {
  HAI_VECTOR s, high0 = m, high1 = m, high2 = m, high3 = m;
  int j;
  for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES) {
    if (log_weight || visible) {
      HAI_SHOW(0) HAI_SHOW(1) HAI_SHOW(2) HAI_SHOW(3)
    } else {
      HAI_HIGH(0) HAI_HIGH(1) HAI_HIGH(2) HAI_HIGH(3)
    }
  }
  for (; j < n_keys; j++, at += HAI_LANES) {
    HAI_SHOW(0)
  }
  return HAI_ISA(max)(HAI_ISA(max)(high0, high1), HAI_ISA(max)(high2, high3));
}

/* Replaces the scores of one register's lanes by weights e^(score - shift); returns their sums. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(weigh)(float *at, int n_keys, HAI_VECTOR shift) {
  HAI_VECTOR s, t, even = HAI_ISA(zero)(), odd = even;
  int j;
  for (j = 0; j + 2 <= n_keys; j += 2, at += 2 * HAI_LANES) {
    s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
    t = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at + HAI_LANES), shift));
    HAI_ISA(store)(at, s);
    HAI_ISA(store)(at + HAI_LANES, t);
    even = HAI_ISA(add)(even, s);
    odd = HAI_ISA(add)(odd, t);
  }
  if (j < n_keys) {
    s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
    HAI_ISA(store)(at, s);
    even = HAI_ISA(add)(even, s);
  }
  return HAI_ISA(add)(even, odd);
}

/* What rounding took from next = a + b, as in hai_two_sum. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(lost)(HAI_VECTOR a, HAI_VECTOR b, HAI_VECTOR next) {
  HAI_VECTOR part = HAI_ISA(sub)(next, a);
  return HAI_ISA(add)(HAI_ISA(sub)(a, HAI_ISA(sub)(next, part)), HAI_ISA(sub)(b, part));
}

/* Exponentials need the largest score, so all registers look for theirs first. */
HAI_TARGET static int HAI_ISA(softmax)(float *score, int n_keys, const float *log_weight,
                                       const uint64_t *visible, int begin, int end, float *m, float *l,
                                       float *factor) {
  int moved = 0, i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(m + i);
    HAI_VECTOR after =
        HAI_ISA(move)(before, HAI_ISA(high)(score + i, n_keys, log_weight, visible, i, before));
    moved |= HAI_ISA(differ)(before, after);
    HAI_ISA(store)(factor + i, HAI_ISA(exp)(HAI_ISA(sub)(before, HAI_ISA(or_zero)(after))));
    HAI_ISA(store)(m + i, after);
  }
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(weigh)(score + i, n_keys, HAI_ISA(or_zero)(HAI_ISA(load)(m + i))), next;
    HAI_VECTOR f = HAI_ISA(load)(factor + i), before = HAI_ISA(keep)(HAI_ISA(mul)(HAI_ISA(load)(l + i), f));
    sum = HAI_ISA(fma)(HAI_ISA(load)(l + HAI_LANES + i), f, sum);
    next = HAI_ISA(add)(before, sum);
    HAI_ISA(store)(l + i, next);
    HAI_ISA(store)(l + HAI_LANES + i, HAI_ISA(lost)(before, sum, next));
  }
  return moved;
}

/* ---- Sums ---- */

HAI_TARGET static void HAI_ISA(scale)(float *x, hai_index rows, const float *factor, int begin, int end) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH)
      HAI_ISA(store)(x + t + i, HAI_ISA(mul)(HAI_ISA(load)(x + t + i), HAI_ISA(load)(factor + i)));
}

/* All three arrays are read before any is written: their rows may lie a multiple of 4096 bytes apart, and a
   load then waits for a store to the same place within a page. */
HAI_TARGET static void HAI_ISA(carry)(float *o, hai_index rows, int begin, int end, float *sum, float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR a = HAI_ISA(load)(sum + t + i), b = HAI_ISA(load)(o + t + i);
      HAI_VECTOR c = HAI_ISA(load)(lost + t + i), next = HAI_ISA(add)(a, b);
      HAI_ISA(store)(sum + t + i, next);
      HAI_ISA(store)(lost + t + i, HAI_ISA(add)(c, HAI_ISA(known)(HAI_ISA(lost)(a, b, next))));
      HAI_ISA(store)(o + t + i, HAI_ISA(zero)());
    }
}

HAI_TARGET static void HAI_ISA(gather)(float *o, hai_index rows, int begin, int end, const float *sum,
                                       const float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR rest = HAI_ISA(load)(o + t + i);
      if (lost) rest = HAI_ISA(add)(HAI_ISA(load)(lost + t + i), rest);
      HAI_ISA(store)(o + t + i, HAI_ISA(add)(HAI_ISA(load)(sum + t + i), rest));
    }
}

HAI_TARGET static void HAI_ISA(sum_lanes)(const float *score, int n_keys, int begin, int end, float *sum) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES) {
    HAI_VECTOR x = HAI_ISA(load)(score + begin);
    for (i = begin + HAI_WIDTH; i < end; i += HAI_WIDTH) x = HAI_ISA(add)(x, HAI_ISA(load)(score + i));
    sum[j] = HAI_ISA(sum)(x);
  }
}

HAI_TARGET static float HAI_ISA(square)(const float *row, hai_index dim) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH)
    sum = HAI_ISA(fma)(HAI_ISA(load)(row + t), HAI_ISA(load)(row + t), sum);
  return HAI_ISA(sum)(sum) + hai_square_scalar(row + t, dim - t);
}

HAI_TARGET static void HAI_ISA(add_row)(float *sum, const float *row, hai_index dim) {
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH)
    HAI_ISA(store)(sum + t, HAI_ISA(add)(HAI_ISA(load)(sum + t), HAI_ISA(load)(row + t)));
  for (; t < dim; t++) sum[t] += row[t];
}

/* ---- Widening ---- */

/* A register of elements at a time, a Q8_0 block at a time; returns how many are done. This is a function of
   its own that calls none: gcc leaves out vzeroupper before a call in tail position. */
HAI_TARGET static hai_index HAI_ISA(widen_most)(const char *row, hyperattn_dtype dtype, hai_index n,
                                                float *to) {
  hai_index t = 0, k;
  if (dtype == HYPERATTN_F16) {
    for (; t + HAI_WIDTH <= n; t += HAI_WIDTH) HAI_ISA(store)(to + t, HAI_ISA(f16)(row + 2 * t));
  } else if (dtype == HYPERATTN_BF16) {
    for (; t + HAI_WIDTH <= n; t += HAI_WIDTH) HAI_ISA(store)(to + t, HAI_ISA(bf16)(row + 2 * t));
  } else {
    for (; t + HAI_Q8_0_ELEMENTS <= n; t += HAI_Q8_0_ELEMENTS, row += HAI_Q8_0_BYTES) {
      HAI_VECTOR d = HAI_ISA(half)(row);
      for (k = 0; k < HAI_Q8_0_ELEMENTS; k += HAI_WIDTH)
        HAI_ISA(store)(to + t + k, HAI_ISA(mul)(d, HAI_ISA(int8)(row + 2 + k)));
    }
  }
  return t;
}

static void HAI_ISA(widen)(const void *row, hyperattn_dtype dtype, hai_index n, float *to) {
  hai_index t = HAI_ISA(widen_most)(HAI_AS(const char *, row), dtype, n, to);
  if (t < n) hai_widen_plain(row, dtype, t, n, to);
}

/* ======== src/kernel_few.h ======== */

/* Template: few queries, by an ISA's primitives. Coordinates lie in the lanes, and queries are rows [n][dim].
   Included by kernel_vector.h, with its parameters and primitives, and these:
     HAI_STEP_REGISTERS      registers of a step: 32 coordinates, a Q8_0 block
     HAI_MOST_ROWS           queries that are taken at once, 2 or 4
     HAI_MOST_QUERIES        up to how many queries of a head tiles are slower (docs/decode.md)
     most(x)                 the largest of all lanes, none of which is NaN
     sums4(to, a, b, c, d)   to[0 .. 3] = the sums of all lanes of each register
   Rows of keys and values are read as they lie. Sums are named variables for the reason that kernel_tile.h
   gives; their order does not depend on how many rows are taken at once. */

enum { HAI_ISA(row_step) = HAI_STEP_REGISTERS * HAI_WIDTH };
typedef char HAI_ISA(step_is_a_block)[HAI_ISA(row_step) == HAI_Q8_0_ELEMENTS ? 1 : -1];

/* The scale of the step at `at`, for Q8_0. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(row_scale)(const hyperattn_dtype dtype, const char *at) {
  return dtype == HYPERATTN_Q8_0 ? HAI_ISA(half)(at) : HAI_ISA(zero)();
}
/* Starts to load a step's bytes. */
HAI_TARGET HAI_INLINE void HAI_ISA(row_ahead)(const hyperattn_dtype dtype, const char *at) {
  HAI_PREFETCH(at);
  if (hai_is_f32(dtype)) HAI_PREFETCH(at + HAI_ALIGN);
}
/* Register k of the step at `at`. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(row_register)(const hyperattn_dtype dtype, const char *at,
                                                       const int k, HAI_VECTOR scale) {
  const int t = k * HAI_WIDTH;
  if (hai_is_f32(dtype)) return HAI_ISA(load)(HAI_AS(const float *, HAI_AS(const void *, at)) + t);
  if (dtype == HYPERATTN_F16) return HAI_ISA(f16)(at + 2 * t);
  if (dtype == HYPERATTN_BF16) return HAI_ISA(bf16)(at + 2 * t);
  return HAI_ISA(mul)(scale, HAI_ISA(int8)(at + 2 + t));
}

#if HAI_STEP_REGISTERS == 2
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1)
#elif HAI_STEP_REGISTERS == 4
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3)
#else
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3) X(r, 4) X(r, 5) X(r, 6) X(r, 7)
#endif

/* Every dtype that is read, in the order of hyperattn_dtype, by each number of queries. */
#if HAI_MOST_ROWS == 4
#define HAI_EACH_COUNT(X, dtype) X(dtype, 1) X(dtype, 2) X(dtype, 3) X(dtype, 4)
#else
#define HAI_EACH_COUNT(X, dtype) X(dtype, 1) X(dtype, 2)
#endif
#if HAI_HALVES
#define HAI_EACH_FEW(X) \
  HAI_EACH_COUNT(X, F32) HAI_EACH_COUNT(X, F16) HAI_EACH_COUNT(X, BF16) HAI_EACH_COUNT(X, Q8_0)
#else
#define HAI_EACH_FEW(X) HAI_EACH_COUNT(X, F32)
#endif

/* ---- Scores: score[i][j] = sum_t query[i][t] key[j][t] ---- */

#define HAI_ROW_SUMS(r) \
  HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0;
#define HAI_ROW_ADD(r, i, k) \
  if (n > i) c##r##i = HAI_ISA(fma)(x, HAI_ISA(load)(query + i * dim + (k)*HAI_WIDTH), c##r##i);
#define HAI_ROW_TIMES(r, k)                       \
  x = HAI_ISA(row_register)(dtype, at, k, scale); \
  HAI_ROW_ADD(r, 0, k)                            \
  HAI_ROW_ADD(r, 1, k)                            \
  HAI_ROW_ADD(r, 2, k)                            \
  HAI_ROW_ADD(r, 3, k)
#define HAI_ROW_KEY(r)                         \
  at = key[r] + begin;                         \
  HAI_ISA(row_ahead)(dtype, ahead[r] + begin); \
  scale = HAI_ISA(row_scale)(dtype, at);       \
  HAI_EACH_OF_STEP(HAI_ROW_TIMES, r)
#define HAI_ROW_OUT(i) \
  if (n > i) HAI_ISA(sums4)(score + i * HAI_CHUNK, c0##i, c1##i, c2##i, c3##i);

/* n queries meet 4 keys at once: a register of a key is loaded once for all queries, one of a query once for
   all keys. More keys, for fewer queries, would be rows in more places, which processors foresee less well.
   c<key><query> are the sums. Registers: AVX-512 4 x 4 sums, x and scale, 18 of 32; AVX2 and NEON 4 x 2 and
   these, 10. */
HAI_TARGET HAI_INLINE void HAI_ISA(some_scores)(const hyperattn_dtype dtype, const int n, hai_index dim,
                                                const char *const *key, const char *const *ahead,
                                                const float *query, float *score) {
  HAI_VECTOR x, scale;
  const char *at;
  hai_index begin = 0, t;
  HAI_ROWS_4(HAI_ROW_SUMS)
  for (t = 0; t < dim; t += HAI_ISA(row_step)) {
    HAI_ROWS_4(HAI_ROW_KEY)
    begin += hai_offset(dtype, HAI_ISA(row_step));
    query += HAI_ISA(row_step);
  }
  HAI_ROW_OUT(0)
  HAI_ROW_OUT(1)
  HAI_ROW_OUT(2)
  HAI_ROW_OUT(3)
}

/* All keys of a chunk; a list of rows has HAI_CHUNK entries that can be read. */
HAI_TARGET HAI_INLINE void HAI_ISA(few_scores_of)(const hyperattn_dtype dtype, const int n,
                                                  const hai_few_rows *keys, const float *query,
                                                  float *score) {
  int j;
  for (j = 0; j < keys->n; j += 4)
    HAI_ISA(some_scores)(dtype, n, keys->dim, keys->row + j, keys->ahead + j, query, score + j);
}

/* A function for each dtype and number of queries: unoptimised, one frame would hold the registers of all. */
#define HAI_SCORES_NAME(dtype, n) HAI_ISA(few_scores_##dtype##_##n),
#define HAI_SCORES_OF(dtype, n)                                                                   \
  HAI_TARGET HAI_APART void HAI_ISA(few_scores_##dtype##_##n)(const hai_few_rows *keys,           \
                                                              const float *query, float *score) { \
    HAI_ISA(few_scores_of)(HYPERATTN_##dtype, n, keys, query, score);                             \
  }
HAI_EACH_FEW(HAI_SCORES_OF)
static void HAI_ISA(few_scores)(const hai_few_rows *keys, const float *query, int n, float *score) {
  static void (*const scores[])(const hai_few_rows *, const float *,
                                float *) = {HAI_EACH_FEW(HAI_SCORES_NAME)};
  scores[HAI_AS(int, keys->dtype) * HAI_MOST_ROWS + n - 1](keys, query, score);
}

/* ---- Softmax ---- */

/* Exponentials need the largest score, so all rows look for theirs first. Where m stays, factor is exactly
   1. */
HAI_TARGET static void HAI_ISA(few_softmax)(float *score, int n, int n_keys, const float *log_weight,
                                            const uint64_t *visible, float *m, float *l, float *factor) {
  int i, j;
  for (i = 0; i < n; i++) {
    HAI_VECTOR high = HAI_ISA(set1)(m[i]);
    float before = m[i];
    for (j = 0; j < n_keys; j += HAI_WIDTH) {
      float *at = score + i * HAI_CHUNK + j;
      HAI_VECTOR s = HAI_ISA(load)(at);
      if (log_weight) s = HAI_ISA(add)(s, HAI_ISA(load)(log_weight + j));
      s = HAI_ISA(show)(s, visible[i] >> j);
      HAI_ISA(store)(at, s);
      high = HAI_ISA(max)(s, high);
    }
    m[i] = hai_moved(before, HAI_ISA(most)(high));
    factor[i] = m[i] == before ? 1.0f : hai_exp(before - hai_shift(m[i]));
  }
  for (i = 0; i < n; i++) {
    HAI_VECTOR shift = HAI_ISA(set1)(hai_shift(m[i])), sum = HAI_ISA(zero)();
    for (j = 0; j < n_keys; j += HAI_WIDTH) {
      float *at = score + i * HAI_CHUNK + j;
      HAI_VECTOR s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
      HAI_ISA(store)(at, s);
      sum = HAI_ISA(add)(sum, s);
    }
    l[i] = l[i] * factor[i] + HAI_ISA(sum)(sum);
  }
}

/* ---- Values: o[i][t] = o[i][t] factor[i] + sum_j weight[i][j] value[j][t] ---- */

#define HAI_VALUE_SUM(k) HAI_VECTOR c0##k = HAI_ISA(zero)(), c1##k = c0##k, c2##k = c0##k, c3##k = c0##k;
#define HAI_VALUE_READ(k)                                                             \
  at = value + (k) / HAI_STEP_REGISTERS * hai_offset(dtype, HAI_ISA(row_step));       \
  if ((k) % HAI_STEP_REGISTERS == 0) HAI_ISA(row_ahead)(dtype, ahead + (at - value)); \
  if ((k) % HAI_STEP_REGISTERS == 0) scale = HAI_ISA(row_scale)(dtype, at);           \
  x = HAI_ISA(row_register)(dtype, at, (k) % HAI_STEP_REGISTERS, scale);
#define HAI_VALUE_TIMES(i, k) \
  if (n > i) c##i##k = HAI_ISA(fma)(x, w##i, c##i##k);
#define HAI_VALUE_ADD(k)                                                                    \
  if (registers > k) {                                                                      \
    HAI_VALUE_READ(k)                                                                       \
    HAI_VALUE_TIMES(0, k) HAI_VALUE_TIMES(1, k) HAI_VALUE_TIMES(2, k) HAI_VALUE_TIMES(3, k) \
  }
#define HAI_VALUE_STORE(i, k) \
  if (n > i && registers > k) HAI_ISA(row_add)(o + i * dim + (k)*HAI_WIDTH, f##i, c##i##k);
#define HAI_VALUE_OUT(k) \
  HAI_VALUE_STORE(0, k)  \
  HAI_VALUE_STORE(1, k)  \
  HAI_VALUE_STORE(2, k)  \
  HAI_VALUE_STORE(3, k)
#define HAI_VALUE_WEIGHT(i) (n > i ? HAI_ISA(set1)(weight[i * HAI_CHUNK + j]) : HAI_ISA(zero)())
#define HAI_VALUE_FACTOR(i) (n > i ? HAI_ISA(set1)(factor[i]) : HAI_ISA(zero)())

/* o = o * factor + sum, a register of it. */
HAI_TARGET HAI_INLINE void HAI_ISA(row_add)(float *o, HAI_VECTOR factor, HAI_VECTOR sum) {
  HAI_ISA(store)(o, HAI_ISA(fma)(HAI_ISA(load)(o), factor, sum));
}

/* So many registers of the outputs of n rows, from the coordinate `begin` bytes into each value. */
HAI_TARGET HAI_INLINE void HAI_ISA(some_values)(const hyperattn_dtype dtype, const int n,
                                                const int registers, const hai_few_rows *values,
                                                hai_index begin, const float *weight, const float *factor,
                                                float *o) {
  HAI_VECTOR x, scale = HAI_ISA(zero)(), w0, w1, w2, w3;
  HAI_VECTOR f0 = HAI_VALUE_FACTOR(0), f1 = HAI_VALUE_FACTOR(1), f2 = HAI_VALUE_FACTOR(2),
             f3 = HAI_VALUE_FACTOR(3);
  const char *at, *value, *ahead;
  hai_index dim = values->dim;
  int j;
  HAI_ROWS_8(HAI_VALUE_SUM)
  for (j = 0; j < values->n; j++) {
    value = values->row[j] + begin;
    ahead = values->ahead[j] + begin;
    w0 = HAI_VALUE_WEIGHT(0);
    w1 = HAI_VALUE_WEIGHT(1);
    w2 = HAI_VALUE_WEIGHT(2);
    w3 = HAI_VALUE_WEIGHT(3);
    HAI_ROWS_8(HAI_VALUE_ADD)
  }
  HAI_ROWS_8(HAI_VALUE_OUT)
}

/* As many registers at a time as there are sums for, whole steps: c<query><register>. Registers: AVX-512 4 x
   4 sums, 4 weights, x and scale, 22 of 32; AVX2 2 x 4, 12 of 16; NEON 2 x 8, 20 of 32. */
HAI_TARGET HAI_INLINE void HAI_ISA(few_values_of)(const hyperattn_dtype dtype, const int n,
                                                  const hai_few_rows *values, const float *weight,
                                                  const float *factor, float *o) {
  const int most = n == 1 || (n == 2 && HAI_N_ROWS == 8) ? 8 : 4;
  hai_index t = 0, done;
  for (; t < values->dim; t += done, o += done) {
    hai_index left = (values->dim - t) / HAI_WIDTH, begin = hai_offset(dtype, t);
    if (most == 8 && left >= 8) {
      HAI_ISA(some_values)(dtype, n, 8, values, begin, weight, factor, o);
      done = 8 * HAI_WIDTH;
    } else if (HAI_STEP_REGISTERS <= 4 && left >= 4) {
      HAI_ISA(some_values)(dtype, n, 4, values, begin, weight, factor, o);
      done = 4 * HAI_WIDTH;
    } else {
      HAI_ISA(some_values)(dtype, n, HAI_STEP_REGISTERS, values, begin, weight, factor, o);
      done = HAI_ISA(row_step);
    }
  }
}

#define HAI_VALUES_NAME(dtype, n) HAI_ISA(few_values_##dtype##_##n),
#define HAI_VALUES_OF(dtype, n)                                                         \
  HAI_TARGET HAI_APART void HAI_ISA(few_values_##dtype##_##n)(                          \
      const hai_few_rows *values, const float *weight, const float *factor, float *o) { \
    HAI_ISA(few_values_of)(HYPERATTN_##dtype, n, values, weight, factor, o);            \
  }
HAI_EACH_FEW(HAI_VALUES_OF)
static void HAI_ISA(few_values)(const hai_few_rows *values, const float *weight, const float *factor, int n,
                                float *o) {
  static void (*const add[])(const hai_few_rows *, const float *, const float *,
                             float *) = {HAI_EACH_FEW(HAI_VALUES_NAME)};
  add[HAI_AS(int, values->dtype) * HAI_MOST_ROWS + n - 1](values, weight, factor, o);
}

static const hai_few_kernel HAI_ISA(few) = {
    /* scores */ HAI_ISA(few_scores),
    /* softmax */ HAI_ISA(few_softmax),
    /* values */ HAI_ISA(few_values),
    /* most */ HAI_MOST_ROWS,
    /* queries */ HAI_MOST_QUERIES,
    /* step */ HAI_ISA(row_step)};

#undef HAI_EACH_OF_STEP
#undef HAI_EACH_COUNT
#undef HAI_EACH_FEW
#undef HAI_SCORES_NAME
#undef HAI_SCORES_OF
#undef HAI_VALUES_NAME
#undef HAI_VALUES_OF
#undef HAI_ROW_SUMS
#undef HAI_ROW_ADD
#undef HAI_ROW_TIMES
#undef HAI_ROW_KEY
#undef HAI_ROW_OUT
#undef HAI_VALUE_SUM
#undef HAI_VALUE_READ
#undef HAI_VALUE_TIMES
#undef HAI_VALUE_ADD
#undef HAI_VALUE_STORE
#undef HAI_VALUE_OUT
#undef HAI_VALUE_WEIGHT
#undef HAI_VALUE_FACTOR

/* ======== src/kernel_vector.h, continued ======== */

#undef HAI_SHOW
#undef HAI_HIGH
/* ======== src/kernel_end.h ======== */

#undef HAI_ISA
#undef HAI_TARGET
#undef HAI_VECTOR
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ELEMENT
#undef HAI_ROWS
#undef HAI_N_ROWS
#undef HAI_LONG
#undef HAI_N_LONG
#undef HAI_FACTORED
#undef HAI_STEP_REGISTERS
#undef HAI_MOST_ROWS
#undef HAI_MOST_QUERIES

/* ======== src/kernel_vector.h, continued ======== */


/* ======== src/kernel_avx512.h, continued ======== */


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

/* ======== src/kernel_scan_avx512.h ======== */

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
/* ======== src/kernel_scan.h ======== */

/* Template: the scan of a tile of queries. Included once for each way to multiply small integers, behind
   the primitives of an ISA and these of its integers (x, a, b registers of int32, HAI_INTS):
     HAI_WAY(name)        the name that a function has for this way: hai_scan_<name>_<way>
     HAI_SCAN_DOT(a, b, c) in each lane, c + the sum of four products of bytes: a's, which word() or
                           HAI_SCAN_LIFT gives, and b's, -63 .. 63; or of a's and a's, sizes
     HAI_SCAN_LIFT         HAI_KEY_RAISED in each byte; 0 where word() takes that from codes
     HAI_SCAN_TARGET       the function attribute for its instructions
     ints(p), put(p, x)    load, store; ints1(x): x in all lanes; word(p): the four codes at p in all lanes
     plus(a, b), minus(a, b), larger(a, b)
     truncate(x), floats(x)   to integers, towards 0, and back
     size(x)               the bits of |x| as an integer
     join(word, x)         word * 256 + x / HAI_CODE_FINE, for x >= 0
     flip(x), sizes(x)     each byte with its highest bit turned, which is 128 more or less; |each byte|
     positive(x)           is any lane above 0; top(x): the largest lane
     bytes(p, x)           stores each lane, which is in 0 .. 255, as a byte
   Sums are named variables for the reason that kernel_tile.h gives. */

#define HAI_SCAN_STARTS(r)                                                      \
  HAI_INTS c##r##0 = HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b0),              \
           c##r##1 = n > 1 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b1) : b1, \
           c##r##2 = n > 2 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b2) : b2;
#define HAI_SCAN_LOAD(x, p)                             \
  x##0 = HAI_ISA(ints)(p);                              \
  x##1 = n > 1 ? HAI_ISA(ints)((p) + HAI_WIDTH) : x##0; \
  x##2 = n > 2 ? HAI_ISA(ints)((p) + 2 * HAI_WIDTH) : x##0;
#define HAI_SCAN_DOTS(s, key)                   \
  b0 = HAI_ISA(word)(key);                      \
  s##0 = HAI_SCAN_DOT(b0, a0, s##0);            \
  if (n > 1) s##1 = HAI_SCAN_DOT(b0, a1, s##1); \
  if (n > 2) s##2 = HAI_SCAN_DOT(b0, a2, s##2);
#define HAI_SCAN_ADD(r) HAI_SCAN_DOTS(c##r, key + r * dim + 4 * at)

/* Sums of codes' products: c<row><register> = start[row] - threshold, to which those of a word are added. */
#define HAI_SCAN_SUMS                                                                            \
  const int32_t *query = queries->code + queries->begin;                                         \
  hai_index dim = 4 * queries->n_words, w, at;                                                   \
  HAI_INTS a0, a1, a2, b0 = HAI_ISA(ints)(threshold), b1 = HAI_ISA(ints)(threshold + HAI_WIDTH), \
                       b2 = HAI_ISA(ints)(threshold + 2 * HAI_WIDTH);                            \
  HAI_ROWS(HAI_SCAN_STARTS)
#define HAI_SCAN_WORD                      \
  at = queries->word[w];                   \
  HAI_SCAN_LOAD(a, query + at * HAI_LANES) \
  HAI_ROWS(HAI_SCAN_ADD)

#define HAI_SCAN_OUT(r)                                  \
  HAI_SCAN_TELL(r, 0) if (n > 1) { HAI_SCAN_TELL(r, 1) } \
  if (n > 2) {                                           \
    HAI_SCAN_TELL(r, 2)                                  \
  }
#define HAI_SCAN_TELL(r, k)               \
  HAI_ISA(store)                          \
  (score + r * HAI_LANES + k * HAI_WIDTH, \
   HAI_ISA(fma)(unit, HAI_ISA(floats)(c##r##k), HAI_ISA(load)(mean + k * HAI_WIDTH)));
#define HAI_SCAN_HIGH(x, s)                \
  x = s##0;                                \
  if (n > 1) x = HAI_ISA(larger)(x, s##1); \
  if (n > 2) x = HAI_ISA(larger)(x, s##2);
#define HAI_SCAN_HIT(r)                                                                        \
  HAI_SCAN_HIGH(a0, c##r)                                                                      \
  if (HAI_ISA(positive)(a0)) {                                                                 \
    most[r] = HAI_WAY(finish)(queries, key + r * dim, c##r##0, c##r##1, c##r##2, a0, rest, n); \
    hits |= HAI_AS(unsigned, most[r] > 0) << r;                                                \
  }

/* Estimates of HAI_N_ROWS keys. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(tell)(const hai_scan_queries *queries, const uint8_t *key, float u,
                                              const float *mean, float *score, const int n) {
  static const int32_t start[HAI_N_ROWS] = {0};
  const int32_t *threshold = queries->lift + HAI_LANES + queries->begin;
  HAI_VECTOR unit = HAI_ISA(set1)(u);
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_words; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_OUT)
}

/* The sums of a key that the first words let pass: adds those of the other words, less `rest`. Returns the
   largest, or where that is less, the largest of before, whose lanes' is `first`; 0 where none is above 0. */
HAI_SCAN_TARGET HAI_INLINE int32_t HAI_WAY(finish)(const hai_scan_queries *queries, const uint8_t *key,
                                                   HAI_INTS c0, HAI_INTS c1, HAI_INTS c2, HAI_INTS first,
                                                   const int32_t *rest, const int n) {
  const int32_t *query = queries->code + queries->begin;
  int32_t most, before;
  HAI_INTS a0, a1, a2, b0;
  int w;
  HAI_SCAN_LOAD(a, rest)
  c0 = HAI_ISA(minus)(c0, a0);
  if (n > 1) c1 = HAI_ISA(minus)(c1, a1);
  if (n > 2) c2 = HAI_ISA(minus)(c2, a2);
  for (w = queries->n_first; w < queries->n_words; w++) {
    hai_index at = queries->word[w];
    HAI_SCAN_LOAD(a, query + at * HAI_LANES)
    HAI_SCAN_DOTS(c, key + 4 * at)
  }
  HAI_SCAN_HIGH(a0, c)
  if (!HAI_ISA(positive)(a0)) return 0;
  most = HAI_ISA(top)(a0);
  before = HAI_ISA(top)(first);
  return most < before ? most : before;
}

/* Bit r: key r of HAI_N_ROWS is a hit. most[r], where it is: how far above 0 its sum is. */
HAI_SCAN_TARGET HAI_INLINE unsigned HAI_WAY(look)(const hai_scan_queries *queries, const uint8_t *key,
                                                  const int32_t *start, const int32_t *threshold,
                                                  const int32_t *rest, int32_t *most, const int n) {
  unsigned hits = 0;
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_first; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_HIT)
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(estimate)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int first, float *score) {
  const float *mean = block->mean + queries->begin;
  int n = (queries->end - queries->begin) / HAI_WIDTH, j;
  score += queries->begin;
  for (j = first; j < first + HAI_PILOT; j += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 3);
    else if (n == 2)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 2);
    else
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 1);
  }
}

/* x cut off at -most and most, as an integer; NaN becomes -most. */
HAI_SCAN_TARGET HAI_INLINE HAI_INTS HAI_WAY(cut)(HAI_VECTOR x, float most) {
  x = HAI_ISA(max)(x, HAI_ISA(set1)(-most));
  return HAI_ISA(truncate)(HAI_ISA(min)(x, HAI_ISA(set1)(most)));
}

HAI_SCAN_TARGET static uint64_t HAI_WAY(hits)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int32_t *most) {
  int32_t draw[HAI_CHUNK], start[HAI_CHUNK], threshold[HAI_LANES] = {0}, rest[HAI_LANES] = {0};
  HAI_VECTOR inverse = HAI_ISA(set1)(1.0f / block->unit);
  HAI_INTS margin = HAI_ISA(ints1)(block->margin);
  uint64_t hits = 0, bits;
  int begin = queries->begin, n = (queries->end - begin) / HAI_WIDTH, i, j;
  for (i = begin; i < queries->end; i += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(queries->level + i), HAI_ISA(load)(block->mean + i));
    HAI_INTS level = HAI_WAY(cut)(HAI_ISA(mul)(x, inverse), HAI_MOST_LEVEL);
    HAI_INTS lift = HAI_ISA(ints)(queries->lift + i), all = HAI_ISA(ints)(queries->lift + HAI_LANES + i);
    HAI_ISA(put)(threshold + i - begin, HAI_ISA(plus)(level, lift));
    HAI_ISA(put)(rest + i - begin, HAI_ISA(plus)(HAI_ISA(minus)(all, lift), margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH) {
    HAI_INTS x = HAI_WAY(cut)(HAI_ISA(mul)(HAI_ISA(load)(block->draw + j), inverse), HAI_MOST_DRAW);
    HAI_ISA(put)(draw + j, x);
    HAI_ISA(put)(start + j, HAI_ISA(plus)(x, margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_N_ROWS) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 3);
    else if (n == 2)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 2);
    else
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 1);
    hits |= bits << j;
  }
  for (bits = hits; bits; bits &= bits - 1) {
    j = hai_lowest_bit(bits);
    most[j] -= draw[j];
  }
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(largest)(const float *query, hai_index dim, int32_t *bits) {
  hai_index t;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS x = HAI_ISA(ints1)(0);
    for (t = 0; t < dim; t++) x = HAI_ISA(larger)(x, HAI_ISA(size)(HAI_ISA(load)(query + t * HAI_LANES + i)));
    HAI_ISA(put)(bits + i, x);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(quantise)(const float *query, hai_index dim, float inverse,
                                              int32_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t, y;
  int i;
  for (t = 0; t < dim; t += 4, code += HAI_LANES)
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS word = HAI_ISA(ints1)(0), x;
      for (y = t + 3; y >= t; y--) {
        x = half;
        if (y < dim) {
          HAI_VECTOR product = HAI_ISA(mul)(HAI_ISA(load)(query + y * HAI_LANES + i), f);
          x = HAI_ISA(plus)(HAI_WAY(cut)(product, HAI_CODE_MOST), half);
        }
        word = HAI_ISA(join)(word, x);
      }
      HAI_ISA(put)(code + i, HAI_ISA(flip)(word));
    }
}

HAI_SCAN_TARGET static void HAI_WAY(forces)(const hai_scan_queries *queries, int32_t *all, int32_t *most) {
  HAI_INTS none = HAI_ISA(ints1)(0);
  int32_t part[HAI_WIDTH];
  int i, w;
  for (w = 0; w < queries->n_words; w++) {
    HAI_INTS sum = none, largest = none;
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS x = HAI_ISA(sizes)(HAI_ISA(ints)(queries->code + w * HAI_LANES + i));
      HAI_INTS squares = HAI_SCAN_DOT(x, x, none);
      sum = HAI_ISA(plus)(sum, squares);
      largest = HAI_ISA(larger)(largest, squares);
    }
    HAI_ISA(put)(part, sum);
    for (i = 0, all[w] = 0; i < HAI_WIDTH; i++) all[w] += part[i];
    most[w] = HAI_ISA(top)(largest);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(lift)(const hai_scan_queries *queries) {
  HAI_INTS raised = HAI_ISA(ints1)(HAI_SCAN_LIFT);
  int i, w;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS sum = HAI_ISA(ints1)(0), first = sum;
    for (w = 0; w < queries->n_words; w++) {
      sum = HAI_SCAN_DOT(raised, HAI_ISA(ints)(queries->code + queries->word[w] * HAI_LANES + i), sum);
      if (w == queries->n_first - 1) first = sum;
    }
    HAI_ISA(put)(queries->lift + i, first);
    HAI_ISA(put)(queries->lift + HAI_LANES + i, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(collect)(const float *score, int begin, int end, float *high, float *sum,
                                             float *group) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(high + i), most = before, shift, factor, here = HAI_ISA(zero)();
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      most = HAI_ISA(max)(HAI_ISA(load)(score + j + i), most);
    shift = HAI_ISA(or_zero)(most);
    factor = HAI_ISA(exp)(HAI_ISA(sub)(before, shift));
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      here = HAI_ISA(add)(here, HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(score + j + i), shift)));
    HAI_ISA(store)(high + i, most);
    HAI_ISA(store)(sum + i, HAI_ISA(fma)(HAI_ISA(load)(sum + i), factor, here));
    HAI_ISA(store)(group + i, HAI_ISA(max)(HAI_ISA(mul)(HAI_ISA(load)(group + i), factor), here));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(missing)(const float *log_weight, int n, float *missing) {
  int j;
  for (j = 0; j < n; j += HAI_WIDTH) {
    HAI_VECTOR kept = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(zero)(), HAI_ISA(load)(log_weight + j)));
    HAI_ISA(store)(missing + j, HAI_ISA(sub)(HAI_ISA(set1)(1.0f), kept));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(spread)(const float *weight, int n_keys, const float *missing,
                                            const float *distance, const float *factor, int begin, int end,
                                            float *scatter, float *squares) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), a, b, w;
    f = HAI_ISA(mul)(f, f);
    a = HAI_ISA(mul)(HAI_ISA(load)(scatter + i), f);
    b = HAI_ISA(mul)(HAI_ISA(load)(squares + i), f);
    for (j = 0; j < n_keys; j++) {
      w = HAI_ISA(load)(weight + j * HAI_LANES + i);
      w = HAI_ISA(mul)(HAI_ISA(mul)(w, w), HAI_ISA(set1)(missing[j]));
      a = HAI_ISA(fma)(w, HAI_ISA(set1)(distance[j]), a);
      b = HAI_ISA(add)(b, w);
    }
    HAI_ISA(store)(scatter + i, a);
    HAI_ISA(store)(squares + i, b);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(distances)(const float *o, hai_index dim, const float *l,
                                               const float *centre, int begin, int end, float *norm,
                                               float *apart) {
  hai_index t;
  int i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR inverse = HAI_ISA(div)(HAI_ISA(set1)(1.0f), HAI_ISA(load)(l + i)), a = HAI_ISA(zero)(), b = a;
    for (t = 0; t < dim; t++) {
      HAI_VECTOR x = HAI_ISA(mul)(HAI_ISA(load)(o + t * HAI_LANES + i), inverse);
      HAI_VECTOR from = HAI_ISA(sub)(x, HAI_ISA(set1)(centre[t]));
      a = HAI_ISA(fma)(x, x, a);
      b = HAI_ISA(fma)(from, from, b);
    }
    HAI_ISA(store)(norm + i, a);
    HAI_ISA(store)(apart + i, b);
  }
}

/* ---- The sketch: coordinates in the lanes ---- */

HAI_SCAN_TARGET static void HAI_WAY(mean)(const float *const *row, hai_index dim, float *mean) {
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (j = 0; j < HAI_CHUNK; j++) sum = HAI_ISA(add)(sum, HAI_ISA(load)(row[j] + t));
    HAI_ISA(store)(mean + t, HAI_ISA(mul)(sum, HAI_ISA(set1)(1.0f / HAI_CHUNK)));
  }
  hai_scan_mean_plain(row, t, dim, mean);
}

HAI_SCAN_TARGET static int32_t HAI_WAY(reach)(const float *const *row, hai_index dim, const float *mean) {
  HAI_INTS most = HAI_ISA(ints1)(0);
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR m = HAI_ISA(load)(mean + t);
    for (j = 0; j < HAI_CHUNK; j++)
      most = HAI_ISA(larger)(most, HAI_ISA(size)(HAI_ISA(sub)(HAI_ISA(load)(row[j] + t), m)));
  }
  return hai_scan_reach_plain(row, t, dim, mean, HAI_ISA(top)(most));
}

HAI_SCAN_TARGET static void HAI_WAY(encode)(const float *row, hai_index dim, const float *mean, float inverse,
                                            uint8_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(mean + t));
    HAI_INTS x = HAI_ISA(plus)(HAI_WAY(cut)(HAI_ISA(mul)(y, f), HAI_KEY_MOST), half);
    HAI_ISA(bytes)(code + t, HAI_ISA(join)(HAI_ISA(ints1)(0), x));
  }
  hai_scan_encode_plain(row, t, dim, mean, inverse, code);
}

HAI_SCAN_TARGET static void HAI_WAY(norms)(const uint8_t *code, int n_words, int32_t *norm) {
  int32_t words[HAI_WIDTH];
  int w = 0, j;
  for (; w + HAI_WIDTH <= n_words; w += HAI_WIDTH) {
    HAI_INTS none = HAI_ISA(ints1)(0), most = none;
    for (j = 0; j < HAI_CHUNK; j++) {
      HAI_INTS x;
      HYPERATTN_MEMCPY(words, code + 4 * (j * n_words + w), sizeof words);
      x = HAI_ISA(sizes)(HAI_ISA(flip)(HAI_ISA(ints)(words)));
      most = HAI_ISA(larger)(most, HAI_SCAN_DOT(x, x, none));
    }
    HAI_ISA(put)(norm + w, most);
  }
  hai_scan_norms_plain(code, w, n_words, norm);
}

HAI_SCAN_TARGET static float HAI_WAY(apart)(const float *row, hai_index dim, const float *centre) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(centre + t));
    sum = HAI_ISA(fma)(x, x, sum);
  }
  return HAI_ISA(sum)(sum) + hai_scan_apart_plain(row, t, dim, centre);
}

#if HAI_INDEX
/* ======== src/kernel_index.h ======== */

/* Template: the scan of an index, for few queries, keys in the lanes. Included by kernel_scan.h for each of
   its ways, with its primitives and these:
     codes(p)              a register of the bytes at p
     low(x), down(x)       the lowest two bits of each byte; x with each two bits of a byte at the lower two's
                           place, whatever comes from the next byte above them
     nearest(x)            to integers, the nearest
     cut(p, x), wide(p)    stores each lane as 16 bits, cut to what these hold; loads such
     smaller(a, b), up(x)  of each lane; each lane times 2^20
   and these of 2 HAI_WIDTH integers of 16 bits, shorts(p) loads:
     shorts1(x)            x in all lanes
     less(a, b), more(a, b), most_short(a, b)   a - b, cut to 16 bits; a + b; the larger of each lane
     bits(u, v)            the bits of floats, of two registers, over 2^20
     over(a, b)            bit i: lane i of a is above that of b
   Codes of an index are 0 .. 127, the same as signed and as unsigned bytes. */

#define HAI_GUESS_MOST (HAI_N_ROWS / 2) /* queries whose sums fit the registers: 2 or 4 */
#define HAI_GUESS_LOAD(r)                          \
  y##r = HAI_ISA(codes)(code + 4 * r * HAI_WIDTH); \
  HAI_PREFETCH(HAI_REINTERPRET(const char *, code) + ahead + 4 * r * HAI_WIDTH);
#define HAI_GUESS_SUMS(r) HAI_INTS c0##r = HAI_ISA(ints1)(0), c1##r = c0##r, c2##r = c0##r, c3##r = c0##r;
#define HAI_GUESS_DOT(i, r) \
  if (n > i) c##i##r = HAI_SCAN_DOT(x, w##i, c##i##r);
#define HAI_GUESS_ADD(r)  \
  x = HAI_ISA(low)(y##r); \
  HAI_GUESS_DOT(0, r) HAI_GUESS_DOT(1, r) HAI_GUESS_DOT(2, r) HAI_GUESS_DOT(3, r) y##r = HAI_ISA(down)(y##r);
#define HAI_GUESS_SUMS_OF(i) c##i##0, c##i##1, c##i##2, c##i##3
#define HAI_GUESS_OUT(i)        \
  if (n > i) HAI_WAY(guess_out) \
  (query + i, block, base[i], f0, f1, f2, f3, HAI_GUESS_SUMS_OF(i), score[i] + j, weights + i);
#define HAI_GUESS_NORM(r) f##r = HAI_ISA(int8)(block->norm + j + r * HAI_WIDTH);
#define HAI_GUESS_SCORE(r)                                                            \
  x = HAI_ISA(fma)(HAI_ISA(floats)(c##r), HAI_ISA(set1)(slope), HAI_ISA(set1)(more)); \
  y = HAI_ISA(nearest)(HAI_ISA(fma)(f##r, x, HAI_ISA(set1)(base)));                   \
  HAI_ISA(cut)(score + r * HAI_WIDTH, y);                                             \
  sum = HAI_ISA(add)(sum, HAI_WAY(weight)(y, from));

/* The mean's part of all scores of a block. */
HAI_SCAN_TARGET HAI_INLINE float HAI_WAY(guess_mean)(const hai_index_query *query,
                                                     const hai_index_block *block) {
  HAI_INTS sum = HAI_ISA(ints1)(0);
  hai_index w;
  for (w = 0; w < query->n_words; w += HAI_WIDTH)
    sum = HAI_SCAN_DOT(HAI_ISA(codes)(block->mean + 4 * w), HAI_ISA(ints)(query->word + w), sum);
  return query->unit * block->mean_unit *
         (HAI_ISA(sum)(HAI_ISA(floats)(sum)) - HAI_AS(float, HAI_MEAN_RAISED * query->sum));
}

HAI_SCAN_TARGET HAI_INLINE HAI_VECTOR HAI_WAY(weight)(HAI_INTS score, HAI_INTS from) {
  HAI_INTS steps = HAI_ISA(larger)(HAI_ISA(minus)(score, from), HAI_ISA(ints1)(HAI_STEP_LEAST));
  return HAI_ISA(by_bits)(HAI_ISA(up)(HAI_ISA(smaller)(steps, HAI_ISA(ints1)(HAI_STEP_TOP))));
}

/* Scores of four registers of keys, of norms f and sums c. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_out)(const hai_index_query *query, const hai_index_block *block,
                                                   float base, HAI_VECTOR f0, HAI_VECTOR f1, HAI_VECTOR f2,
                                                   HAI_VECTOR f3, HAI_INTS c0, HAI_INTS c1, HAI_INTS c2,
                                                   HAI_INTS c3, int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1), y;
  float slope = 2.0f * query->unit * block->norm_unit;
  float more = (query->more - HAI_AS(float, 3 * query->sum) * query->unit) * block->norm_unit;
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane), x;
  HAI_ROWS_4(HAI_GUESS_SCORE)
  HAI_ISA(store)(weights->lane, sum);
}

/* Four registers of keys at a time, so that each has its sums, for up to HAI_GUESS_MOST queries, which share
   what is taken out of the codes. c<query><register> are the sums. Registers: AVX2 2 x 4 sums, 4 codes, one
   of them alone and two words, 15 of 16; AVX-512 and NEON 4 x 4, 4, 1 and 4, 25 of 32. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_some)(const hai_index_query *query, const int n,
                                                    const hai_index_block *block, int16_t *const *score,
                                                    hai_weights *weights) {
  const int32_t *word[4] = {query->word, query[n > 1].word, query[n > 2 ? 2 : 0].word,
                            query[n > 3 ? 3 : 0].word};
  hai_index g;
  size_t ahead = block->ahead;
  float base[4] = {0.0f};
  int j, s, i;
  for (i = 0; i < n; i++) base[i] = HAI_WAY(guess_mean)(query + i, block);
  for (j = 0; j < HAI_CHUNK; j += 4 * HAI_WIDTH) {
    const uint8_t *code = block->code + 4 * j;
    HAI_INTS w0, w1, w2, w3, x, y0, y1, y2, y3;
    HAI_VECTOR f0, f1, f2, f3;
    HAI_ROWS_4(HAI_GUESS_SUMS)
    for (g = 0; g < query->n_groups; g++, code += 4 * HAI_CHUNK) {
      HAI_ROWS_4(HAI_GUESS_LOAD)
      for (s = 0; s < 4; s++) {
        w0 = w1 = w2 = w3 = HAI_ISA(ints1)(word[0][4 * g + s]);
        if (n > 1) w1 = HAI_ISA(ints1)(word[1][4 * g + s]);
        if (n > 2) w2 = HAI_ISA(ints1)(word[2][4 * g + s]);
        if (n > 3) w3 = HAI_ISA(ints1)(word[3][4 * g + s]);
        HAI_ROWS_4(HAI_GUESS_ADD)
      }
    }
    HAI_ROWS_4(HAI_GUESS_NORM)
    HAI_ROWS_4(HAI_GUESS_OUT)
  }
}
HAI_SCAN_TARGET static void HAI_WAY(guess)(const hai_index_query *query, int n, const hai_index_block *block,
                                           int16_t *const *score, hai_weights *weights) {
  for (; n > HAI_GUESS_MOST; n -= HAI_GUESS_MOST) {
    HAI_WAY(guess_some)(query, HAI_GUESS_MOST, block, score, weights);
    query += HAI_GUESS_MOST;
    score += HAI_GUESS_MOST;
    weights += HAI_GUESS_MOST;
  }
  if (HAI_GUESS_MOST > 3 && n == 4)
    HAI_WAY(guess_some)(query, 4, block, score, weights);
  else if (HAI_GUESS_MOST > 2 && n == 3)
    HAI_WAY(guess_some)(query, 3, block, score, weights);
  else if (n == 2)
    HAI_WAY(guess_some)(query, 2, block, score, weights);
  else
    HAI_WAY(guess_some)(query, 1, block, score, weights);
}

HAI_SCAN_TARGET static void HAI_WAY(weigh)(const int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1);
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane);
  int j;
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH)
    sum = HAI_ISA(add)(sum, HAI_WAY(weight)(HAI_ISA(wide)(score + j), from));
  HAI_ISA(store)(weights->lane, sum);
}

HAI_SCAN_TARGET static void HAI_WAY(at_least)(const int16_t *score, hai_index n, int least, uint64_t *bits) {
  HAI_INTS below = HAI_ISA(shorts1)(least - 1);
  hai_index b;
  int j;
  for (b = 0; b < n; b++, score += HAI_CHUNK)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH)
      bits[b] |= HAI_AS(uint64_t, HAI_ISA(over)(HAI_ISA(shorts)(score + j), below)) << j;
}

/* Floats above 0 order as their bits do, and those of a weight are 0 behind its steps: a weight is above u
   if its steps are more than u's whole ones. */
HAI_SCAN_TARGET static void HAI_WAY(keep)(const hai_levels *levels, hai_index n, uint64_t *bits) {
  HAI_INTS least = HAI_ISA(shorts1)(-HAI_STEP_OF_1);
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++) {
    HAI_VECTOR from = HAI_ISA(set1)(levels->shift[b]);
    uint64_t kept = 0;
    for (j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH) {
      HAI_VECTOR u = HAI_ISA(add)(HAI_ISA(load)(levels->place + j), from),
                 v = HAI_ISA(add)(HAI_ISA(load)(levels->place + j + HAI_WIDTH), from);
      HAI_INTS most = least;
      u = HAI_ISA(sub)(u, HAI_ISA(floats)(HAI_ISA(truncate)(u)));
      v = HAI_ISA(sub)(v, HAI_ISA(floats)(HAI_ISA(truncate)(v)));
      for (i = 0; i < levels->n; i++) {
        HAI_INTS score = HAI_ISA(shorts)(levels->score[i] + b * HAI_CHUNK + j);
        most = HAI_ISA(most_short)(HAI_ISA(less)(score, HAI_ISA(shorts1)(levels->level[i])), most);
      }
      kept |= HAI_AS(uint64_t, HAI_ISA(over)(most, HAI_ISA(more)(HAI_ISA(bits)(u, v), least))) << j;
    }
    bits[b] = kept;
  }
}

/* The Hadamard matrix, x [n][HAI_TURNED], each row times `factor` at the end. */
HAI_SCAN_TARGET static void HAI_WAY(turn)(float *x, hai_index n, float factor) {
  HAI_VECTOR by = HAI_ISA(set1)(factor);
  hai_index half, t, u;
  for (half = HAI_TURNED; half < n * HAI_TURNED; half *= 2)
    for (t = 0; t < n * HAI_TURNED; t += 2 * half)
      for (u = t; u < t + half; u += HAI_WIDTH) {
        HAI_VECTOR a = HAI_ISA(load)(x + u), b = HAI_ISA(load)(x + u + half);
        HAI_ISA(store)(x + u, HAI_ISA(add)(a, b));
        HAI_ISA(store)(x + u + half, HAI_ISA(sub)(a, b));
      }
  for (t = 0; t < n * HAI_TURNED; t += HAI_WIDTH)
    HAI_ISA(store)(x + t, HAI_ISA(mul)(HAI_ISA(load)(x + t), by));
}

HAI_SCAN_TARGET static void HAI_WAY(differ)(float *x, hai_index dim, const float *mean, float *square) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (t = 0; t < dim; t++) {
      HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(x + t * HAI_TURNED + j), HAI_ISA(set1)(mean[t]));
      HAI_ISA(store)(x + t * HAI_TURNED + j, y);
      sum = HAI_ISA(fma)(y, y, sum);
    }
    HAI_ISA(store)(square + j, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(halve)(const float *x, hai_index dim, const float *inverse, uint8_t *code,
                                           float *product) {
  HAI_VECTOR two = HAI_ISA(set1)(2.0f), most = HAI_ISA(set1)(3.5f), three = HAI_ISA(set1)(-3.0f);
  int32_t words[HAI_WIDTH];
  hai_index begin;
  int j, at;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR by = HAI_ISA(load)(inverse + j), sum = HAI_ISA(zero)();
    for (begin = 0; begin < dim; begin += HAI_GROUP_DIM) {
      HAI_INTS word = HAI_ISA(ints1)(0), c;
      for (at = HAI_GROUP_DIM - 1; at >= 0; at--) {
        hai_index t = begin + at % 4 * 4 + at / 4;
        word = HAI_ISA(plus)(word, word);
        word = HAI_ISA(plus)(word, word);
        if (t < dim) {
          HAI_VECTOR y = HAI_ISA(load)(x + t * HAI_TURNED + j), z = HAI_ISA(fma)(y, by, two);
          c = HAI_ISA(truncate)(HAI_ISA(max)(HAI_ISA(min)(z, most), HAI_ISA(zero)()));
          word = HAI_ISA(plus)(word, c);
          sum = HAI_ISA(fma)(y, HAI_ISA(fma)(HAI_ISA(floats)(c), two, three), sum);
        }
      }
      HAI_ISA(put)(words, word);
      HYPERATTN_MEMCPY(code + 4 * (begin / HAI_GROUP_DIM * HAI_CHUNK + j), words, sizeof words);
    }
    HAI_ISA(store)(product + j, sum);
  }
}

#undef HAI_GUESS_MOST
#undef HAI_GUESS_LOAD
#undef HAI_GUESS_DOT
#undef HAI_GUESS_SUMS_OF
#undef HAI_GUESS_ADD
#undef HAI_GUESS_SUMS
#undef HAI_GUESS_NORM
#undef HAI_GUESS_SCORE
#undef HAI_GUESS_OUT

/* ======== src/kernel_scan.h, continued ======== */

#endif

static const hai_scan_kernel HAI_WAY(kernel) = {
    /* largest */ HAI_WAY(largest),
    /* quantise */ HAI_WAY(quantise),
    /* forces */ HAI_WAY(forces),
    /* lift */ HAI_WAY(lift),
    /* estimate */ HAI_WAY(estimate),
    /* collect */ HAI_WAY(collect),
    /* hits */ HAI_WAY(hits),
    /* missing */ HAI_WAY(missing),
    /* spread */ HAI_WAY(spread),
    /* distances */ HAI_WAY(distances),
    /* mean */ HAI_WAY(mean),
    /* reach */ HAI_WAY(reach),
    /* encode */ HAI_WAY(encode),
    /* norms */ HAI_WAY(norms),
    /* apart */ HAI_WAY(apart),
#if HAI_INDEX
    /* guess */ HAI_WAY(guess),
    /* weigh */ HAI_WAY(weigh),
    /* at_least */ HAI_WAY(at_least),
    /* keep */ HAI_WAY(keep),
    /* turn */ HAI_WAY(turn),
    /* differ */ HAI_WAY(differ),
    /* halve */ HAI_WAY(halve),
#endif
    /* cost */ HAI_SCAN_COST};

#undef HAI_SCAN_STARTS
#undef HAI_SCAN_LOAD
#undef HAI_SCAN_DOTS
#undef HAI_SCAN_ADD
#undef HAI_SCAN_SUMS
#undef HAI_SCAN_WORD
#undef HAI_SCAN_OUT
#undef HAI_SCAN_TELL
#undef HAI_SCAN_HIGH
#undef HAI_SCAN_HIT
#undef HAI_WAY
#undef HAI_SCAN_DOT
#undef HAI_SCAN_TARGET
#undef HAI_SCAN_LIFT
#undef HAI_SCAN_COST

/* ======== src/kernel_scan_avx512.h, continued ======== */


HAI_I_avx512 hai_pairs_avx512(__m512i a, __m512i b, __m512i c) {
  return _mm512_add_epi32(_mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)), c);
}
#define HAI_SCAN_TARGET HAI_TARGET_avx512
#define HAI_WAY(name) hai_scan_##name##_avx512
#define HAI_SCAN_DOT(a, b, c) hai_pairs_avx512(a, b, c)
#define HAI_SCAN_LIFT HAI_RAISED_BYTES
#define HAI_SCAN_COST 0.17f
/* ======== src/kernel_scan.h ======== */

/* Template: the scan of a tile of queries. Included once for each way to multiply small integers, behind
   the primitives of an ISA and these of its integers (x, a, b registers of int32, HAI_INTS):
     HAI_WAY(name)        the name that a function has for this way: hai_scan_<name>_<way>
     HAI_SCAN_DOT(a, b, c) in each lane, c + the sum of four products of bytes: a's, which word() or
                           HAI_SCAN_LIFT gives, and b's, -63 .. 63; or of a's and a's, sizes
     HAI_SCAN_LIFT         HAI_KEY_RAISED in each byte; 0 where word() takes that from codes
     HAI_SCAN_TARGET       the function attribute for its instructions
     ints(p), put(p, x)    load, store; ints1(x): x in all lanes; word(p): the four codes at p in all lanes
     plus(a, b), minus(a, b), larger(a, b)
     truncate(x), floats(x)   to integers, towards 0, and back
     size(x)               the bits of |x| as an integer
     join(word, x)         word * 256 + x / HAI_CODE_FINE, for x >= 0
     flip(x), sizes(x)     each byte with its highest bit turned, which is 128 more or less; |each byte|
     positive(x)           is any lane above 0; top(x): the largest lane
     bytes(p, x)           stores each lane, which is in 0 .. 255, as a byte
   Sums are named variables for the reason that kernel_tile.h gives. */

#define HAI_SCAN_STARTS(r)                                                      \
  HAI_INTS c##r##0 = HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b0),              \
           c##r##1 = n > 1 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b1) : b1, \
           c##r##2 = n > 2 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b2) : b2;
#define HAI_SCAN_LOAD(x, p)                             \
  x##0 = HAI_ISA(ints)(p);                              \
  x##1 = n > 1 ? HAI_ISA(ints)((p) + HAI_WIDTH) : x##0; \
  x##2 = n > 2 ? HAI_ISA(ints)((p) + 2 * HAI_WIDTH) : x##0;
#define HAI_SCAN_DOTS(s, key)                   \
  b0 = HAI_ISA(word)(key);                      \
  s##0 = HAI_SCAN_DOT(b0, a0, s##0);            \
  if (n > 1) s##1 = HAI_SCAN_DOT(b0, a1, s##1); \
  if (n > 2) s##2 = HAI_SCAN_DOT(b0, a2, s##2);
#define HAI_SCAN_ADD(r) HAI_SCAN_DOTS(c##r, key + r * dim + 4 * at)

/* Sums of codes' products: c<row><register> = start[row] - threshold, to which those of a word are added. */
#define HAI_SCAN_SUMS                                                                            \
  const int32_t *query = queries->code + queries->begin;                                         \
  hai_index dim = 4 * queries->n_words, w, at;                                                   \
  HAI_INTS a0, a1, a2, b0 = HAI_ISA(ints)(threshold), b1 = HAI_ISA(ints)(threshold + HAI_WIDTH), \
                       b2 = HAI_ISA(ints)(threshold + 2 * HAI_WIDTH);                            \
  HAI_ROWS(HAI_SCAN_STARTS)
#define HAI_SCAN_WORD                      \
  at = queries->word[w];                   \
  HAI_SCAN_LOAD(a, query + at * HAI_LANES) \
  HAI_ROWS(HAI_SCAN_ADD)

#define HAI_SCAN_OUT(r)                                  \
  HAI_SCAN_TELL(r, 0) if (n > 1) { HAI_SCAN_TELL(r, 1) } \
  if (n > 2) {                                           \
    HAI_SCAN_TELL(r, 2)                                  \
  }
#define HAI_SCAN_TELL(r, k)               \
  HAI_ISA(store)                          \
  (score + r * HAI_LANES + k * HAI_WIDTH, \
   HAI_ISA(fma)(unit, HAI_ISA(floats)(c##r##k), HAI_ISA(load)(mean + k * HAI_WIDTH)));
#define HAI_SCAN_HIGH(x, s)                \
  x = s##0;                                \
  if (n > 1) x = HAI_ISA(larger)(x, s##1); \
  if (n > 2) x = HAI_ISA(larger)(x, s##2);
#define HAI_SCAN_HIT(r)                                                                        \
  HAI_SCAN_HIGH(a0, c##r)                                                                      \
  if (HAI_ISA(positive)(a0)) {                                                                 \
    most[r] = HAI_WAY(finish)(queries, key + r * dim, c##r##0, c##r##1, c##r##2, a0, rest, n); \
    hits |= HAI_AS(unsigned, most[r] > 0) << r;                                                \
  }

/* Estimates of HAI_N_ROWS keys. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(tell)(const hai_scan_queries *queries, const uint8_t *key, float u,
                                              const float *mean, float *score, const int n) {
  static const int32_t start[HAI_N_ROWS] = {0};
  const int32_t *threshold = queries->lift + HAI_LANES + queries->begin;
  HAI_VECTOR unit = HAI_ISA(set1)(u);
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_words; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_OUT)
}

/* The sums of a key that the first words let pass: adds those of the other words, less `rest`. Returns the
   largest, or where that is less, the largest of before, whose lanes' is `first`; 0 where none is above 0. */
HAI_SCAN_TARGET HAI_INLINE int32_t HAI_WAY(finish)(const hai_scan_queries *queries, const uint8_t *key,
                                                   HAI_INTS c0, HAI_INTS c1, HAI_INTS c2, HAI_INTS first,
                                                   const int32_t *rest, const int n) {
  const int32_t *query = queries->code + queries->begin;
  int32_t most, before;
  HAI_INTS a0, a1, a2, b0;
  int w;
  HAI_SCAN_LOAD(a, rest)
  c0 = HAI_ISA(minus)(c0, a0);
  if (n > 1) c1 = HAI_ISA(minus)(c1, a1);
  if (n > 2) c2 = HAI_ISA(minus)(c2, a2);
  for (w = queries->n_first; w < queries->n_words; w++) {
    hai_index at = queries->word[w];
    HAI_SCAN_LOAD(a, query + at * HAI_LANES)
    HAI_SCAN_DOTS(c, key + 4 * at)
  }
  HAI_SCAN_HIGH(a0, c)
  if (!HAI_ISA(positive)(a0)) return 0;
  most = HAI_ISA(top)(a0);
  before = HAI_ISA(top)(first);
  return most < before ? most : before;
}

/* Bit r: key r of HAI_N_ROWS is a hit. most[r], where it is: how far above 0 its sum is. */
HAI_SCAN_TARGET HAI_INLINE unsigned HAI_WAY(look)(const hai_scan_queries *queries, const uint8_t *key,
                                                  const int32_t *start, const int32_t *threshold,
                                                  const int32_t *rest, int32_t *most, const int n) {
  unsigned hits = 0;
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_first; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_HIT)
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(estimate)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int first, float *score) {
  const float *mean = block->mean + queries->begin;
  int n = (queries->end - queries->begin) / HAI_WIDTH, j;
  score += queries->begin;
  for (j = first; j < first + HAI_PILOT; j += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 3);
    else if (n == 2)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 2);
    else
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 1);
  }
}

/* x cut off at -most and most, as an integer; NaN becomes -most. */
HAI_SCAN_TARGET HAI_INLINE HAI_INTS HAI_WAY(cut)(HAI_VECTOR x, float most) {
  x = HAI_ISA(max)(x, HAI_ISA(set1)(-most));
  return HAI_ISA(truncate)(HAI_ISA(min)(x, HAI_ISA(set1)(most)));
}

HAI_SCAN_TARGET static uint64_t HAI_WAY(hits)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int32_t *most) {
  int32_t draw[HAI_CHUNK], start[HAI_CHUNK], threshold[HAI_LANES] = {0}, rest[HAI_LANES] = {0};
  HAI_VECTOR inverse = HAI_ISA(set1)(1.0f / block->unit);
  HAI_INTS margin = HAI_ISA(ints1)(block->margin);
  uint64_t hits = 0, bits;
  int begin = queries->begin, n = (queries->end - begin) / HAI_WIDTH, i, j;
  for (i = begin; i < queries->end; i += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(queries->level + i), HAI_ISA(load)(block->mean + i));
    HAI_INTS level = HAI_WAY(cut)(HAI_ISA(mul)(x, inverse), HAI_MOST_LEVEL);
    HAI_INTS lift = HAI_ISA(ints)(queries->lift + i), all = HAI_ISA(ints)(queries->lift + HAI_LANES + i);
    HAI_ISA(put)(threshold + i - begin, HAI_ISA(plus)(level, lift));
    HAI_ISA(put)(rest + i - begin, HAI_ISA(plus)(HAI_ISA(minus)(all, lift), margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH) {
    HAI_INTS x = HAI_WAY(cut)(HAI_ISA(mul)(HAI_ISA(load)(block->draw + j), inverse), HAI_MOST_DRAW);
    HAI_ISA(put)(draw + j, x);
    HAI_ISA(put)(start + j, HAI_ISA(plus)(x, margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_N_ROWS) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 3);
    else if (n == 2)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 2);
    else
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 1);
    hits |= bits << j;
  }
  for (bits = hits; bits; bits &= bits - 1) {
    j = hai_lowest_bit(bits);
    most[j] -= draw[j];
  }
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(largest)(const float *query, hai_index dim, int32_t *bits) {
  hai_index t;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS x = HAI_ISA(ints1)(0);
    for (t = 0; t < dim; t++) x = HAI_ISA(larger)(x, HAI_ISA(size)(HAI_ISA(load)(query + t * HAI_LANES + i)));
    HAI_ISA(put)(bits + i, x);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(quantise)(const float *query, hai_index dim, float inverse,
                                              int32_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t, y;
  int i;
  for (t = 0; t < dim; t += 4, code += HAI_LANES)
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS word = HAI_ISA(ints1)(0), x;
      for (y = t + 3; y >= t; y--) {
        x = half;
        if (y < dim) {
          HAI_VECTOR product = HAI_ISA(mul)(HAI_ISA(load)(query + y * HAI_LANES + i), f);
          x = HAI_ISA(plus)(HAI_WAY(cut)(product, HAI_CODE_MOST), half);
        }
        word = HAI_ISA(join)(word, x);
      }
      HAI_ISA(put)(code + i, HAI_ISA(flip)(word));
    }
}

HAI_SCAN_TARGET static void HAI_WAY(forces)(const hai_scan_queries *queries, int32_t *all, int32_t *most) {
  HAI_INTS none = HAI_ISA(ints1)(0);
  int32_t part[HAI_WIDTH];
  int i, w;
  for (w = 0; w < queries->n_words; w++) {
    HAI_INTS sum = none, largest = none;
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS x = HAI_ISA(sizes)(HAI_ISA(ints)(queries->code + w * HAI_LANES + i));
      HAI_INTS squares = HAI_SCAN_DOT(x, x, none);
      sum = HAI_ISA(plus)(sum, squares);
      largest = HAI_ISA(larger)(largest, squares);
    }
    HAI_ISA(put)(part, sum);
    for (i = 0, all[w] = 0; i < HAI_WIDTH; i++) all[w] += part[i];
    most[w] = HAI_ISA(top)(largest);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(lift)(const hai_scan_queries *queries) {
  HAI_INTS raised = HAI_ISA(ints1)(HAI_SCAN_LIFT);
  int i, w;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS sum = HAI_ISA(ints1)(0), first = sum;
    for (w = 0; w < queries->n_words; w++) {
      sum = HAI_SCAN_DOT(raised, HAI_ISA(ints)(queries->code + queries->word[w] * HAI_LANES + i), sum);
      if (w == queries->n_first - 1) first = sum;
    }
    HAI_ISA(put)(queries->lift + i, first);
    HAI_ISA(put)(queries->lift + HAI_LANES + i, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(collect)(const float *score, int begin, int end, float *high, float *sum,
                                             float *group) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(high + i), most = before, shift, factor, here = HAI_ISA(zero)();
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      most = HAI_ISA(max)(HAI_ISA(load)(score + j + i), most);
    shift = HAI_ISA(or_zero)(most);
    factor = HAI_ISA(exp)(HAI_ISA(sub)(before, shift));
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      here = HAI_ISA(add)(here, HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(score + j + i), shift)));
    HAI_ISA(store)(high + i, most);
    HAI_ISA(store)(sum + i, HAI_ISA(fma)(HAI_ISA(load)(sum + i), factor, here));
    HAI_ISA(store)(group + i, HAI_ISA(max)(HAI_ISA(mul)(HAI_ISA(load)(group + i), factor), here));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(missing)(const float *log_weight, int n, float *missing) {
  int j;
  for (j = 0; j < n; j += HAI_WIDTH) {
    HAI_VECTOR kept = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(zero)(), HAI_ISA(load)(log_weight + j)));
    HAI_ISA(store)(missing + j, HAI_ISA(sub)(HAI_ISA(set1)(1.0f), kept));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(spread)(const float *weight, int n_keys, const float *missing,
                                            const float *distance, const float *factor, int begin, int end,
                                            float *scatter, float *squares) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), a, b, w;
    f = HAI_ISA(mul)(f, f);
    a = HAI_ISA(mul)(HAI_ISA(load)(scatter + i), f);
    b = HAI_ISA(mul)(HAI_ISA(load)(squares + i), f);
    for (j = 0; j < n_keys; j++) {
      w = HAI_ISA(load)(weight + j * HAI_LANES + i);
      w = HAI_ISA(mul)(HAI_ISA(mul)(w, w), HAI_ISA(set1)(missing[j]));
      a = HAI_ISA(fma)(w, HAI_ISA(set1)(distance[j]), a);
      b = HAI_ISA(add)(b, w);
    }
    HAI_ISA(store)(scatter + i, a);
    HAI_ISA(store)(squares + i, b);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(distances)(const float *o, hai_index dim, const float *l,
                                               const float *centre, int begin, int end, float *norm,
                                               float *apart) {
  hai_index t;
  int i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR inverse = HAI_ISA(div)(HAI_ISA(set1)(1.0f), HAI_ISA(load)(l + i)), a = HAI_ISA(zero)(), b = a;
    for (t = 0; t < dim; t++) {
      HAI_VECTOR x = HAI_ISA(mul)(HAI_ISA(load)(o + t * HAI_LANES + i), inverse);
      HAI_VECTOR from = HAI_ISA(sub)(x, HAI_ISA(set1)(centre[t]));
      a = HAI_ISA(fma)(x, x, a);
      b = HAI_ISA(fma)(from, from, b);
    }
    HAI_ISA(store)(norm + i, a);
    HAI_ISA(store)(apart + i, b);
  }
}

/* ---- The sketch: coordinates in the lanes ---- */

HAI_SCAN_TARGET static void HAI_WAY(mean)(const float *const *row, hai_index dim, float *mean) {
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (j = 0; j < HAI_CHUNK; j++) sum = HAI_ISA(add)(sum, HAI_ISA(load)(row[j] + t));
    HAI_ISA(store)(mean + t, HAI_ISA(mul)(sum, HAI_ISA(set1)(1.0f / HAI_CHUNK)));
  }
  hai_scan_mean_plain(row, t, dim, mean);
}

HAI_SCAN_TARGET static int32_t HAI_WAY(reach)(const float *const *row, hai_index dim, const float *mean) {
  HAI_INTS most = HAI_ISA(ints1)(0);
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR m = HAI_ISA(load)(mean + t);
    for (j = 0; j < HAI_CHUNK; j++)
      most = HAI_ISA(larger)(most, HAI_ISA(size)(HAI_ISA(sub)(HAI_ISA(load)(row[j] + t), m)));
  }
  return hai_scan_reach_plain(row, t, dim, mean, HAI_ISA(top)(most));
}

HAI_SCAN_TARGET static void HAI_WAY(encode)(const float *row, hai_index dim, const float *mean, float inverse,
                                            uint8_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(mean + t));
    HAI_INTS x = HAI_ISA(plus)(HAI_WAY(cut)(HAI_ISA(mul)(y, f), HAI_KEY_MOST), half);
    HAI_ISA(bytes)(code + t, HAI_ISA(join)(HAI_ISA(ints1)(0), x));
  }
  hai_scan_encode_plain(row, t, dim, mean, inverse, code);
}

HAI_SCAN_TARGET static void HAI_WAY(norms)(const uint8_t *code, int n_words, int32_t *norm) {
  int32_t words[HAI_WIDTH];
  int w = 0, j;
  for (; w + HAI_WIDTH <= n_words; w += HAI_WIDTH) {
    HAI_INTS none = HAI_ISA(ints1)(0), most = none;
    for (j = 0; j < HAI_CHUNK; j++) {
      HAI_INTS x;
      HYPERATTN_MEMCPY(words, code + 4 * (j * n_words + w), sizeof words);
      x = HAI_ISA(sizes)(HAI_ISA(flip)(HAI_ISA(ints)(words)));
      most = HAI_ISA(larger)(most, HAI_SCAN_DOT(x, x, none));
    }
    HAI_ISA(put)(norm + w, most);
  }
  hai_scan_norms_plain(code, w, n_words, norm);
}

HAI_SCAN_TARGET static float HAI_WAY(apart)(const float *row, hai_index dim, const float *centre) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(centre + t));
    sum = HAI_ISA(fma)(x, x, sum);
  }
  return HAI_ISA(sum)(sum) + hai_scan_apart_plain(row, t, dim, centre);
}

#if HAI_INDEX
/* ======== src/kernel_index.h ======== */

/* Template: the scan of an index, for few queries, keys in the lanes. Included by kernel_scan.h for each of
   its ways, with its primitives and these:
     codes(p)              a register of the bytes at p
     low(x), down(x)       the lowest two bits of each byte; x with each two bits of a byte at the lower two's
                           place, whatever comes from the next byte above them
     nearest(x)            to integers, the nearest
     cut(p, x), wide(p)    stores each lane as 16 bits, cut to what these hold; loads such
     smaller(a, b), up(x)  of each lane; each lane times 2^20
   and these of 2 HAI_WIDTH integers of 16 bits, shorts(p) loads:
     shorts1(x)            x in all lanes
     less(a, b), more(a, b), most_short(a, b)   a - b, cut to 16 bits; a + b; the larger of each lane
     bits(u, v)            the bits of floats, of two registers, over 2^20
     over(a, b)            bit i: lane i of a is above that of b
   Codes of an index are 0 .. 127, the same as signed and as unsigned bytes. */

#define HAI_GUESS_MOST (HAI_N_ROWS / 2) /* queries whose sums fit the registers: 2 or 4 */
#define HAI_GUESS_LOAD(r)                          \
  y##r = HAI_ISA(codes)(code + 4 * r * HAI_WIDTH); \
  HAI_PREFETCH(HAI_REINTERPRET(const char *, code) + ahead + 4 * r * HAI_WIDTH);
#define HAI_GUESS_SUMS(r) HAI_INTS c0##r = HAI_ISA(ints1)(0), c1##r = c0##r, c2##r = c0##r, c3##r = c0##r;
#define HAI_GUESS_DOT(i, r) \
  if (n > i) c##i##r = HAI_SCAN_DOT(x, w##i, c##i##r);
#define HAI_GUESS_ADD(r)  \
  x = HAI_ISA(low)(y##r); \
  HAI_GUESS_DOT(0, r) HAI_GUESS_DOT(1, r) HAI_GUESS_DOT(2, r) HAI_GUESS_DOT(3, r) y##r = HAI_ISA(down)(y##r);
#define HAI_GUESS_SUMS_OF(i) c##i##0, c##i##1, c##i##2, c##i##3
#define HAI_GUESS_OUT(i)        \
  if (n > i) HAI_WAY(guess_out) \
  (query + i, block, base[i], f0, f1, f2, f3, HAI_GUESS_SUMS_OF(i), score[i] + j, weights + i);
#define HAI_GUESS_NORM(r) f##r = HAI_ISA(int8)(block->norm + j + r * HAI_WIDTH);
#define HAI_GUESS_SCORE(r)                                                            \
  x = HAI_ISA(fma)(HAI_ISA(floats)(c##r), HAI_ISA(set1)(slope), HAI_ISA(set1)(more)); \
  y = HAI_ISA(nearest)(HAI_ISA(fma)(f##r, x, HAI_ISA(set1)(base)));                   \
  HAI_ISA(cut)(score + r * HAI_WIDTH, y);                                             \
  sum = HAI_ISA(add)(sum, HAI_WAY(weight)(y, from));

/* The mean's part of all scores of a block. */
HAI_SCAN_TARGET HAI_INLINE float HAI_WAY(guess_mean)(const hai_index_query *query,
                                                     const hai_index_block *block) {
  HAI_INTS sum = HAI_ISA(ints1)(0);
  hai_index w;
  for (w = 0; w < query->n_words; w += HAI_WIDTH)
    sum = HAI_SCAN_DOT(HAI_ISA(codes)(block->mean + 4 * w), HAI_ISA(ints)(query->word + w), sum);
  return query->unit * block->mean_unit *
         (HAI_ISA(sum)(HAI_ISA(floats)(sum)) - HAI_AS(float, HAI_MEAN_RAISED * query->sum));
}

HAI_SCAN_TARGET HAI_INLINE HAI_VECTOR HAI_WAY(weight)(HAI_INTS score, HAI_INTS from) {
  HAI_INTS steps = HAI_ISA(larger)(HAI_ISA(minus)(score, from), HAI_ISA(ints1)(HAI_STEP_LEAST));
  return HAI_ISA(by_bits)(HAI_ISA(up)(HAI_ISA(smaller)(steps, HAI_ISA(ints1)(HAI_STEP_TOP))));
}

/* Scores of four registers of keys, of norms f and sums c. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_out)(const hai_index_query *query, const hai_index_block *block,
                                                   float base, HAI_VECTOR f0, HAI_VECTOR f1, HAI_VECTOR f2,
                                                   HAI_VECTOR f3, HAI_INTS c0, HAI_INTS c1, HAI_INTS c2,
                                                   HAI_INTS c3, int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1), y;
  float slope = 2.0f * query->unit * block->norm_unit;
  float more = (query->more - HAI_AS(float, 3 * query->sum) * query->unit) * block->norm_unit;
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane), x;
  HAI_ROWS_4(HAI_GUESS_SCORE)
  HAI_ISA(store)(weights->lane, sum);
}

/* Four registers of keys at a time, so that each has its sums, for up to HAI_GUESS_MOST queries, which share
   what is taken out of the codes. c<query><register> are the sums. Registers: AVX2 2 x 4 sums, 4 codes, one
   of them alone and two words, 15 of 16; AVX-512 and NEON 4 x 4, 4, 1 and 4, 25 of 32. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_some)(const hai_index_query *query, const int n,
                                                    const hai_index_block *block, int16_t *const *score,
                                                    hai_weights *weights) {
  const int32_t *word[4] = {query->word, query[n > 1].word, query[n > 2 ? 2 : 0].word,
                            query[n > 3 ? 3 : 0].word};
  hai_index g;
  size_t ahead = block->ahead;
  float base[4] = {0.0f};
  int j, s, i;
  for (i = 0; i < n; i++) base[i] = HAI_WAY(guess_mean)(query + i, block);
  for (j = 0; j < HAI_CHUNK; j += 4 * HAI_WIDTH) {
    const uint8_t *code = block->code + 4 * j;
    HAI_INTS w0, w1, w2, w3, x, y0, y1, y2, y3;
    HAI_VECTOR f0, f1, f2, f3;
    HAI_ROWS_4(HAI_GUESS_SUMS)
    for (g = 0; g < query->n_groups; g++, code += 4 * HAI_CHUNK) {
      HAI_ROWS_4(HAI_GUESS_LOAD)
      for (s = 0; s < 4; s++) {
        w0 = w1 = w2 = w3 = HAI_ISA(ints1)(word[0][4 * g + s]);
        if (n > 1) w1 = HAI_ISA(ints1)(word[1][4 * g + s]);
        if (n > 2) w2 = HAI_ISA(ints1)(word[2][4 * g + s]);
        if (n > 3) w3 = HAI_ISA(ints1)(word[3][4 * g + s]);
        HAI_ROWS_4(HAI_GUESS_ADD)
      }
    }
    HAI_ROWS_4(HAI_GUESS_NORM)
    HAI_ROWS_4(HAI_GUESS_OUT)
  }
}
HAI_SCAN_TARGET static void HAI_WAY(guess)(const hai_index_query *query, int n, const hai_index_block *block,
                                           int16_t *const *score, hai_weights *weights) {
  for (; n > HAI_GUESS_MOST; n -= HAI_GUESS_MOST) {
    HAI_WAY(guess_some)(query, HAI_GUESS_MOST, block, score, weights);
    query += HAI_GUESS_MOST;
    score += HAI_GUESS_MOST;
    weights += HAI_GUESS_MOST;
  }
  if (HAI_GUESS_MOST > 3 && n == 4)
    HAI_WAY(guess_some)(query, 4, block, score, weights);
  else if (HAI_GUESS_MOST > 2 && n == 3)
    HAI_WAY(guess_some)(query, 3, block, score, weights);
  else if (n == 2)
    HAI_WAY(guess_some)(query, 2, block, score, weights);
  else
    HAI_WAY(guess_some)(query, 1, block, score, weights);
}

HAI_SCAN_TARGET static void HAI_WAY(weigh)(const int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1);
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane);
  int j;
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH)
    sum = HAI_ISA(add)(sum, HAI_WAY(weight)(HAI_ISA(wide)(score + j), from));
  HAI_ISA(store)(weights->lane, sum);
}

HAI_SCAN_TARGET static void HAI_WAY(at_least)(const int16_t *score, hai_index n, int least, uint64_t *bits) {
  HAI_INTS below = HAI_ISA(shorts1)(least - 1);
  hai_index b;
  int j;
  for (b = 0; b < n; b++, score += HAI_CHUNK)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH)
      bits[b] |= HAI_AS(uint64_t, HAI_ISA(over)(HAI_ISA(shorts)(score + j), below)) << j;
}

/* Floats above 0 order as their bits do, and those of a weight are 0 behind its steps: a weight is above u
   if its steps are more than u's whole ones. */
HAI_SCAN_TARGET static void HAI_WAY(keep)(const hai_levels *levels, hai_index n, uint64_t *bits) {
  HAI_INTS least = HAI_ISA(shorts1)(-HAI_STEP_OF_1);
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++) {
    HAI_VECTOR from = HAI_ISA(set1)(levels->shift[b]);
    uint64_t kept = 0;
    for (j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH) {
      HAI_VECTOR u = HAI_ISA(add)(HAI_ISA(load)(levels->place + j), from),
                 v = HAI_ISA(add)(HAI_ISA(load)(levels->place + j + HAI_WIDTH), from);
      HAI_INTS most = least;
      u = HAI_ISA(sub)(u, HAI_ISA(floats)(HAI_ISA(truncate)(u)));
      v = HAI_ISA(sub)(v, HAI_ISA(floats)(HAI_ISA(truncate)(v)));
      for (i = 0; i < levels->n; i++) {
        HAI_INTS score = HAI_ISA(shorts)(levels->score[i] + b * HAI_CHUNK + j);
        most = HAI_ISA(most_short)(HAI_ISA(less)(score, HAI_ISA(shorts1)(levels->level[i])), most);
      }
      kept |= HAI_AS(uint64_t, HAI_ISA(over)(most, HAI_ISA(more)(HAI_ISA(bits)(u, v), least))) << j;
    }
    bits[b] = kept;
  }
}

/* The Hadamard matrix, x [n][HAI_TURNED], each row times `factor` at the end. */
HAI_SCAN_TARGET static void HAI_WAY(turn)(float *x, hai_index n, float factor) {
  HAI_VECTOR by = HAI_ISA(set1)(factor);
  hai_index half, t, u;
  for (half = HAI_TURNED; half < n * HAI_TURNED; half *= 2)
    for (t = 0; t < n * HAI_TURNED; t += 2 * half)
      for (u = t; u < t + half; u += HAI_WIDTH) {
        HAI_VECTOR a = HAI_ISA(load)(x + u), b = HAI_ISA(load)(x + u + half);
        HAI_ISA(store)(x + u, HAI_ISA(add)(a, b));
        HAI_ISA(store)(x + u + half, HAI_ISA(sub)(a, b));
      }
  for (t = 0; t < n * HAI_TURNED; t += HAI_WIDTH)
    HAI_ISA(store)(x + t, HAI_ISA(mul)(HAI_ISA(load)(x + t), by));
}

HAI_SCAN_TARGET static void HAI_WAY(differ)(float *x, hai_index dim, const float *mean, float *square) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (t = 0; t < dim; t++) {
      HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(x + t * HAI_TURNED + j), HAI_ISA(set1)(mean[t]));
      HAI_ISA(store)(x + t * HAI_TURNED + j, y);
      sum = HAI_ISA(fma)(y, y, sum);
    }
    HAI_ISA(store)(square + j, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(halve)(const float *x, hai_index dim, const float *inverse, uint8_t *code,
                                           float *product) {
  HAI_VECTOR two = HAI_ISA(set1)(2.0f), most = HAI_ISA(set1)(3.5f), three = HAI_ISA(set1)(-3.0f);
  int32_t words[HAI_WIDTH];
  hai_index begin;
  int j, at;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR by = HAI_ISA(load)(inverse + j), sum = HAI_ISA(zero)();
    for (begin = 0; begin < dim; begin += HAI_GROUP_DIM) {
      HAI_INTS word = HAI_ISA(ints1)(0), c;
      for (at = HAI_GROUP_DIM - 1; at >= 0; at--) {
        hai_index t = begin + at % 4 * 4 + at / 4;
        word = HAI_ISA(plus)(word, word);
        word = HAI_ISA(plus)(word, word);
        if (t < dim) {
          HAI_VECTOR y = HAI_ISA(load)(x + t * HAI_TURNED + j), z = HAI_ISA(fma)(y, by, two);
          c = HAI_ISA(truncate)(HAI_ISA(max)(HAI_ISA(min)(z, most), HAI_ISA(zero)()));
          word = HAI_ISA(plus)(word, c);
          sum = HAI_ISA(fma)(y, HAI_ISA(fma)(HAI_ISA(floats)(c), two, three), sum);
        }
      }
      HAI_ISA(put)(words, word);
      HYPERATTN_MEMCPY(code + 4 * (begin / HAI_GROUP_DIM * HAI_CHUNK + j), words, sizeof words);
    }
    HAI_ISA(store)(product + j, sum);
  }
}

#undef HAI_GUESS_MOST
#undef HAI_GUESS_LOAD
#undef HAI_GUESS_DOT
#undef HAI_GUESS_SUMS_OF
#undef HAI_GUESS_ADD
#undef HAI_GUESS_SUMS
#undef HAI_GUESS_NORM
#undef HAI_GUESS_SCORE
#undef HAI_GUESS_OUT

/* ======== src/kernel_scan.h, continued ======== */

#endif

static const hai_scan_kernel HAI_WAY(kernel) = {
    /* largest */ HAI_WAY(largest),
    /* quantise */ HAI_WAY(quantise),
    /* forces */ HAI_WAY(forces),
    /* lift */ HAI_WAY(lift),
    /* estimate */ HAI_WAY(estimate),
    /* collect */ HAI_WAY(collect),
    /* hits */ HAI_WAY(hits),
    /* missing */ HAI_WAY(missing),
    /* spread */ HAI_WAY(spread),
    /* distances */ HAI_WAY(distances),
    /* mean */ HAI_WAY(mean),
    /* reach */ HAI_WAY(reach),
    /* encode */ HAI_WAY(encode),
    /* norms */ HAI_WAY(norms),
    /* apart */ HAI_WAY(apart),
#if HAI_INDEX
    /* guess */ HAI_WAY(guess),
    /* weigh */ HAI_WAY(weigh),
    /* at_least */ HAI_WAY(at_least),
    /* keep */ HAI_WAY(keep),
    /* turn */ HAI_WAY(turn),
    /* differ */ HAI_WAY(differ),
    /* halve */ HAI_WAY(halve),
#endif
    /* cost */ HAI_SCAN_COST};

#undef HAI_SCAN_STARTS
#undef HAI_SCAN_LOAD
#undef HAI_SCAN_DOTS
#undef HAI_SCAN_ADD
#undef HAI_SCAN_SUMS
#undef HAI_SCAN_WORD
#undef HAI_SCAN_OUT
#undef HAI_SCAN_TELL
#undef HAI_SCAN_HIGH
#undef HAI_SCAN_HIT
#undef HAI_WAY
#undef HAI_SCAN_DOT
#undef HAI_SCAN_TARGET
#undef HAI_SCAN_LIFT
#undef HAI_SCAN_COST

/* ======== src/kernel_scan_avx512.h, continued ======== */

#undef HAI_ISA
#undef HAI_VECTOR
#undef HAI_INTS
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ROWS
#undef HAI_N_ROWS
#endif

/* ======== src/kernel_avx512_bf16.h ======== */

/* AVX512-BF16: the tile of AVX-512 with elements of two bfloat16. */

#if HAI_AVX512_BF16
#define HAI_TARGET_avx512bf \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")))
typedef __m512 hai_vector_avx512bf;
#define HAI_V_avx512bf HAI_TARGET_avx512bf HAI_INLINE __m512
#define hai_zero_avx512bf hai_zero_avx512
#define hai_load_avx512bf hai_load_avx512
#define hai_store_avx512bf hai_store_avx512
#define hai_fma_avx512bf hai_fma_avx512
#define hai_mul_avx512bf hai_mul_avx512
#define hai_add_avx512bf hai_add_avx512
#define hai_keep_avx512bf hai_keep_avx512
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
HAI_V_avx512bf hai_join_avx512bf(__m512 a, __m512 b) {
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(hai_zip_lanes_avx512bf(),
                                                      HAI_REINTERPRET(__m512i, _mm512_cvtne2ps_pbh(b, a))));
}
HAI_TARGET_avx512bf HAI_INLINE void hai_zip_avx512bf(const void *a, const void *b, hai_bf16x2 *pair) {
  __m128i x = _mm_loadu_si128(HAI_AS(const __m128i *, a));
  __m128i y = _mm_loadu_si128(HAI_AS(const __m128i *, b));
  _mm_storeu_si128(HAI_PLACE(__m128i, pair), _mm_unpacklo_epi16(x, y));
  _mm_storeu_si128(HAI_PLACE(__m128i, pair + 4), _mm_unpackhi_epi16(x, y));
}

#define HAI_ISA(name) hai_##name##_avx512bf
#define HAI_TARGET HAI_TARGET_avx512bf
#define HAI_VECTOR __m512
#define HAI_WIDTH HAI_WIDTH_avx512
#define HAI_LANES HAI_LANES_avx512
#define HAI_ELEMENT hai_bf16x2
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_LONG(X) HAI_ROWS_8(X)
#define HAI_N_LONG 8
#define HAI_FACTORED 1
/* ======== src/kernel_bf16.h ======== */

/* Template: the products of bfloat16, in plain C. Included once per ISA that has them, with the parameters of
   kernel_tile.h, which it undefines at its end. An element is two bfloat16: two coordinates of a row for
   scores, one coordinate of two keys for values. A value is joined with that of the next key, the last of an
   odd number with zeros. Weights are rounded to bfloat16; nothing else is rounded but sums. head_dim is even.
   Its own primitives: join(a, b) rounds a into the low and b into the high half of each lane; zip(a, b, to)
   joins 8 elements of two rows. */

/* ======== src/kernel_tile.h ======== */

/* Template: the products of a tile, in plain C. Included once per ISA, behind that ISA's primitives, with
   these parameters:
     HAI_ISA(name)   the name that a function or primitive has for this ISA: hai_<name>_<isa>
     HAI_TARGET      the function attribute that lets the compiler use its instructions
     HAI_VECTOR      its register, of HAI_WIDTH floats; a tile has HAI_LANES lanes, three registers
     HAI_ELEMENT     what a product reads: float, or two bfloat16 whose products are summed
     HAI_ROWS(X)     X(0) X(1) .. for the HAI_N_ROWS keys, or coordinates of values, multiplied at a time
     HAI_LONG(X)     the same for HAI_N_LONG coordinates where a tile has one register: its sums need to be
                     more to hide the latency of a multiply-add
     HAI_FACTORED    1 if a factor for each lane lies behind the packed queries
   A step of the inner loop loads up to three packed vectors a0 to a2, and for each row broadcasts one
   element b and does a multiply-add with each vector. The sums c<row><register> are named variables and not
   an array: gcc -O1 would store an array of them before the loop. The number of registers n is a constant
   where the inline functions are called, so that what belongs to absent registers is dropped. */

#define HAI_SUMS(r) HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0;
#define HAI_LOAD(p)                                 \
  a0 = HAI_ISA(load)(p);                            \
  a1 = n > 1 ? HAI_ISA(load)((p) + HAI_WIDTH) : a0; \
  a2 = n > 2 ? HAI_ISA(load)((p) + 2 * HAI_WIDTH) : a0;
#define HAI_ADD(r)                                   \
  c##r##0 = HAI_ISA(dot)(a0, b, c##r##0);            \
  if (n > 1) c##r##1 = HAI_ISA(dot)(a1, b, c##r##1); \
  if (n > 2) c##r##2 = HAI_ISA(dot)(a2, b, c##r##2);
#define HAI_STORE(r, p)                                \
  HAI_ISA(store)(p, c##r##0);                          \
  if (n > 1) HAI_ISA(store)((p) + HAI_WIDTH, c##r##1); \
  if (n > 2) HAI_ISA(store)((p) + 2 * HAI_WIDTH, c##r##2);

/* ---- Packing ---- */

/* Transposes 4 x 4 submatrices within parts of 128 bits: vector k of four holds rows k, k + 4, k + 8, ... */
HAI_TARGET static void HAI_ISA(pack)(const void *const *row, hai_index dim, float factor, float *packed) {
  HAI_VECTOR f = HAI_ISA(set1)(factor), x0, x1, x2, x3;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    hai_index t = 0, whole = hai_rows_present(row + i, HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(gather4)(row + i, t);
      x1 = HAI_ISA(gather4)(row + i + 1, t);
      x2 = HAI_ISA(gather4)(row + i + 2, t);
      x3 = HAI_ISA(gather4)(row + i + 3, t);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(store)(at, HAI_ISA(times)(x0, f));
      HAI_ISA(store)(at + HAI_LANES, HAI_ISA(times)(x1, f));
      HAI_ISA(store)(at + 2 * HAI_LANES, HAI_ISA(times)(x2, f));
      HAI_ISA(store)(at + 3 * HAI_LANES, HAI_ISA(times)(x3, f));
    }
    if (t < dim) HAI_ISA(pack_rest)(row, t, dim, factor, packed, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- Scores ---- */

#define HAI_KEY_ROW(r) const HAI_ELEMENT *k##r = HAI_AS(const HAI_ELEMENT *, key[r]);
#define HAI_KEY_ADD(r)         \
  b = HAI_ISA(each)(k##r + t); \
  HAI_ADD(r)
#define HAI_STEP        \
  HAI_LOAD(query)       \
  HAI_ROWS(HAI_KEY_ADD) \
  t++;                  \
  query += HAI_LANES;
#define HAI_TIMES(r)                              \
  c##r##0 = HAI_ISA(mul)(c##r##0, a0);            \
  if (n > 1) c##r##1 = HAI_ISA(mul)(c##r##1, a1); \
  if (n > 2) c##r##2 = HAI_ISA(mul)(c##r##2, a2);
#define HAI_SCORES_OUT(r) HAI_STORE(r, score + r * HAI_LANES)

/* score[r][i] = sum_t query[t][i] key_r[t], times the lane's factor where there is one. One register alone
   takes four steps in each iteration: its eight sums leave no time for the loop's own instructions. */
HAI_TARGET HAI_INLINE void HAI_ISA(score_registers)(const float *query, hai_index dim,
                                                    const void *const *key, float *score, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  hai_index t = 0, by_four = n == 1 ? dim - 3 : 0;
  HAI_ROWS(HAI_SUMS)
  HAI_ROWS(HAI_KEY_ROW)
  while (t < by_four) {
    HAI_STEP HAI_STEP HAI_STEP HAI_STEP
  }
  while (t < dim) {
    HAI_STEP
  }
  if (HAI_FACTORED) {
    HAI_LOAD(query)
    HAI_ROWS(HAI_TIMES)
  }
  HAI_ROWS(HAI_SCORES_OUT)
}

HAI_TARGET static void HAI_ISA(score_rows)(const float *query, hai_index dim, const void *const *key,
                                           float *score, int n) {
  if (n == 3)
    HAI_ISA(score_registers)(query, dim, key, score, 3);
  else if (n == 2)
    HAI_ISA(score_registers)(query, dim, key, score, 2);
  else
    HAI_ISA(score_registers)(query, dim, key, score, 1);
}

static void HAI_ISA(scores)(const float *query, hai_index dim, const void *const *key, int n_keys,
                            int begin, int end, float *score) {
  const void *row[HAI_N_ROWS];
  int j, r, n = (end - begin) / HAI_WIDTH;
  query += begin;
  score += begin;
  for (j = 0; j < n_keys; j += HAI_N_ROWS, key += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    if (n_keys - j < HAI_N_ROWS) { /* the first key stands for absent ones */
      for (r = 0; r < HAI_N_ROWS; r++) row[r] = key[r < n_keys - j ? r : 0];
      key = row;
    }
    HAI_ISA(score_rows)(query, dim, key, score, n);
  }
}

/* ---- Values ---- */

#define HAI_VALUE_ADD(r)    \
  b = HAI_ISA(each)(v + r); \
  HAI_ADD(r)
#define HAI_UPDATE(r, p)                                                              \
  c##r##0 = HAI_ISA(fma)(HAI_ISA(load)(p), a0, c##r##0);                              \
  if (n > 1) c##r##1 = HAI_ISA(fma)(HAI_ISA(load)((p) + HAI_WIDTH), a1, c##r##1);     \
  if (n > 2) c##r##2 = HAI_ISA(fma)(HAI_ISA(load)((p) + 2 * HAI_WIDTH), a2, c##r##2); \
  HAI_STORE(r, p)
#define HAI_VALUES_OUT(r) HAI_UPDATE(r, o + r * HAI_LANES)

#define HAI_EACH(X) HAI_ROWS(X)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_rows)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) HAI_LONG(X)
#define HAI_REGISTERS 1
#define HAI_THESE(name) HAI_ISA(name##_long)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) X(0)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_row)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */


static void HAI_ISA(values)(float *score, int n_keys, const void *const *value, hai_index dim,
                            const float *factor, int begin, int end, float *o) {
  hai_index t = 0;
  int n = (end - begin) / HAI_WIDTH;
  score += begin;
  factor += begin;
  o += begin;
  for (; n == 1 && t + HAI_N_LONG <= dim; t += HAI_N_LONG)
    HAI_ISA(value_long)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t + HAI_N_ROWS <= dim; t += HAI_N_ROWS)
    HAI_ISA(value_rows)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t < dim; t++) HAI_ISA(value_row)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
}

#undef HAI_SUMS
#undef HAI_LOAD
#undef HAI_ADD
#undef HAI_STORE
#undef HAI_KEY_ROW
#undef HAI_KEY_ADD
#undef HAI_STEP
#undef HAI_TIMES
#undef HAI_SCORES_OUT
#undef HAI_VALUE_ADD
#undef HAI_UPDATE
#undef HAI_VALUES_OUT

/* ======== src/kernel_bf16.h, continued ======== */


static void HAI_ISA(pack_bf16)(const void *const *row, hai_index dim, float factor, float *packed) {
  int i;
  HAI_ISA(pack)(row, dim / 2, 1.0f, packed);
  for (i = 0; i < HAI_LANES; i++) packed[dim / 2 * HAI_LANES + i] = factor;
}

static void HAI_ISA(scores_bf16)(const float *query, hai_index dim, const void *const *key, int n_keys,
                                 int begin, int end, float *score) {
  HAI_ISA(scores)(query, dim / 2, key, n_keys, begin, end, score);
}

/* Two sums in turn hide each other's latency. */
HAI_TARGET static void HAI_ISA(round)(float *score, int n_keys, const float *factor, int begin, int end,
                                      float *sum) {
  static const hai_bf16x2 ones = {{0x3f80, 0x3f80}};
  /* kept: gcc 12 writes a constant vector of bfloat16 as one of half precision */
  const HAI_VECTOR one = HAI_ISA(keep)(HAI_ISA(each)(&ones)), zero = HAI_ISA(zero)();
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    const float *at = score + i;
    float *joined = score + HAI_CHUNK * HAI_LANES + i;
    HAI_VECTOR even = zero, odd = zero, x, next;
    for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES, joined += 2 * HAI_LANES) {
      x = HAI_ISA(join)(HAI_ISA(load)(at), HAI_ISA(load)(at + HAI_LANES));
      HAI_ISA(store)(joined, x);
      even = HAI_ISA(dot)(x, one, even);
      x = HAI_ISA(join)(HAI_ISA(load)(at + 2 * HAI_LANES), HAI_ISA(load)(at + 3 * HAI_LANES));
      HAI_ISA(store)(joined + HAI_LANES, x);
      odd = HAI_ISA(dot)(x, one, odd);
    }
    for (; j < n_keys; j += 2, at += 2 * HAI_LANES, joined += HAI_LANES) { /* in turn, as if zeros followed */
      x = HAI_ISA(join)(HAI_ISA(load)(at), j + 1 < n_keys ? HAI_ISA(load)(at + HAI_LANES) : zero);
      HAI_ISA(store)(joined, x);
      next = HAI_ISA(dot)(x, one, even);
      even = odd;
      odd = next;
    }
    even = HAI_ISA(fma)(HAI_ISA(load)(sum + i), HAI_ISA(load)(factor + i), HAI_ISA(add)(even, odd));
    HAI_ISA(store)(sum + i, even);
  }
}

/* joined[key / 2][dim]: a coordinate of two keys is an element. */
HAI_TARGET static void HAI_ISA(join_values)(const void *const *value, int n_keys, hai_index dim,
                                            float *joined) {
  static const uint16_t none[8] = {0};
  int j;
  for (j = 0; j < n_keys; j += 2) {
    const uint16_t *even = HAI_AS(const uint16_t *, value[j]), *odd = none;
    hai_bf16x2 *to = HAI_PLACE(hai_bf16x2, joined);
    hai_index t = 0, step = 0; /* of `odd` */
    if (j + 1 < n_keys) {
      odd = HAI_AS(const uint16_t *, value[j + 1]);
      step = 1;
    }
    for (; t + 8 <= dim; t += 8) HAI_ISA(zip)(even + t, odd + step * t, to + t);
    for (; t < dim; t++) {
      to[t].x[0] = even[t];
      to[t].x[1] = odd[step * t];
    }
    joined += dim;
  }
}

static void HAI_ISA(values_bf16)(float *score, int n_keys, const void *const *value, hai_index dim,
                                 const float *factor, int begin, int end, float *o) {
  const void *row[HAI_CHUNK / 2];
  int n = (n_keys + 1) / 2, j;
  for (j = 0; j < n; j++) row[j] = HAI_AS(const float *, value[0]) + j * dim;
  HAI_ISA(values)(score + HAI_CHUNK * HAI_LANES, n, row, dim, factor, begin, end, o);
}

/* ======== src/kernel_end.h ======== */

#undef HAI_ISA
#undef HAI_TARGET
#undef HAI_VECTOR
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ELEMENT
#undef HAI_ROWS
#undef HAI_N_ROWS
#undef HAI_LONG
#undef HAI_N_LONG
#undef HAI_FACTORED
#undef HAI_STEP_REGISTERS
#undef HAI_MOST_ROWS
#undef HAI_MOST_QUERIES

/* ======== src/kernel_bf16.h, continued ======== */


/* ======== src/kernel_avx512_bf16.h, continued ======== */


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
    /* cap */ hai_cap_avx512,
    /* hide */ hai_hide_avx512,
    /* add_bias */ hai_add_bias_avx512,
    /* softmax */ hai_softmax_avx512,
    /* round */ hai_round_avx512bf,
    /* join */ hai_join_values_avx512bf,
    /* values */ hai_values_bf16_avx512bf,
    /* scale */ hai_scale_avx512,
    /* carry */ hai_carry_avx512,
    /* gather */ hai_gather_avx512,
    /* sum_lanes */ hai_sum_lanes_avx512,
    /* square */ hai_square_avx512,
    /* add_row */ hai_add_row_avx512,
    /* value_multiple */ 1,
    /* few */ HAI_NULL,
    /* enter */ hai_enter_x86,
    /* leave */ hai_leave_x86};
#endif

/* ======== src/kernel_amx.h ======== */

/* AMX: the products of bfloat16 by tile registers, 16 x 16 sums of 32 products at a time. A tile register
   holds 16 rows of 64 bytes. Scores multiply 16 keys x 32 coordinates, as they lie in memory, by the packed
   coordinates of 16 queries. Values multiply 16 coordinates x 32 keys, transposed, by the joined weights of
   16 queries. Tile registers 0 to 2 are the sums, one for each register of lanes; 3 is the left factor, 4 to
   6 are the right factors. head_dim is a multiple of 32, value_dim of 16. */

#if HAI_AMX
#define HAI_TARGET_amx \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma,amx-tile,amx-bf16")))
#define HAI_AMX_ROWS 16     /* of a tile register */
#define HAI_AMX_PRODUCTS 32 /* that a sum takes at a time */
#define HAI_AMX_TILE 256    /* floats in 16 rows of 64 bytes */

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

/* Adds to sums 0 .. n - 1 tile register 3 times the joined elements at `right` [16][lanes]. */
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
/* gcc's loads of tile registers do not tell the compiler that they read memory. */
#define HAI_AMX_FENCE() __asm__ volatile("" ::: "memory")

/* The distance in bytes between neighbouring rows; 0 if there are fewer than 16, or if it varies. */
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
HAI_TARGET_amx static void hai_turn_values_amx(const void *const *value, int n, hai_index at, float *to) {
  const __m512i zip = hai_zip_lanes_avx512bf();
  float pair[HAI_AMX_ROWS][16];
  const void *row[HAI_AMX_ROWS];
  int r;
  hai_index t;
  for (r = 0; r < HAI_AMX_ROWS; r++) {
    __m256i a = _mm256_setzero_si256(), b = a;
    if (2 * r < n) a = hai_halves_avx512(HAI_AS(const uint16_t *, value[2 * r]) + at);
    if (2 * r + 1 < n) b = hai_halves_avx512(HAI_AS(const uint16_t *, value[2 * r + 1]) + at);
    hai_store_avx512(pair[r], _mm512_castsi512_ps(_mm512_permutexvar_epi16(
                                  zip, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1))));
    row[r] = pair[r];
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

/* joined[coordinate / 16][key / 32]: tile registers. */
HAI_TARGET_amx static void hai_join_amx(const void *const *value, int n_keys, hai_index dim, float *joined) {
  hai_index t;
  int j;
  for (t = 0; t < dim; t += HAI_AMX_ROWS)
    for (j = 0; j < n_keys; j += HAI_AMX_PRODUCTS, joined += HAI_AMX_TILE)
      hai_turn_values_amx(value + j, n_keys - j, t, joined);
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
  const float *weight = score + HAI_CHUNK * HAI_LANES_avx512, *joined = HAI_AS(const float *, value[0]);
  int n = (end - begin) / HAI_WIDTH_avx512, scaled = 0, i, j;
  hai_index t;
  for (i = begin; i < end; i += HAI_WIDTH_avx512)
    scaled |= hai_differ_avx512(hai_load_avx512(factor + i), hai_set1_avx512(1.0f));
  for (t = 0; t < dim; t += HAI_AMX_ROWS, o += HAI_AMX_ROWS * HAI_LANES_avx512) {
    if (scaled) hai_scale_avx512(o, HAI_AMX_ROWS, factor, begin, end);
    HAI_AMX_FENCE();
    hai_load_sums_amx(o + begin, n);
    for (j = 0; j < n_keys; j += HAI_AMX_PRODUCTS, joined += HAI_AMX_TILE) {
      _tile_loadd(3, joined, 64);
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
    /* cap */ hai_cap_avx512,
    /* hide */ hai_hide_avx512,
    /* add_bias */ hai_add_bias_avx512,
    /* softmax */ hai_softmax_avx512,
    /* round */ hai_round_amx,
    /* join */ hai_join_amx,
    /* values */ hai_values_amx,
    /* scale */ hai_scale_avx512,
    /* carry */ hai_carry_avx512,
    /* gather */ hai_gather_avx512,
    /* sum_lanes */ hai_sum_lanes_avx512,
    /* square */ hai_square_avx512,
    /* add_row */ hai_add_row_avx512,
    /* value_multiple */ HAI_AMX_ROWS,
    /* few */ HAI_NULL,
    /* enter */ hai_enter_amx,
    /* leave */ hai_leave_amx};
#endif

/* ======== src/kernel_avx2.h ======== */

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
/* ======== src/kernel_vector.h ======== */

/* Template: a whole kernel of float32, in plain C. Included once per ISA, behind that ISA's primitives, with
   the parameters of kernel_tile.h, which it undefines at its end. The primitives, x, a, b registers:
     zero(), set1(x), load(p), store(p, x), add, sub, mul, fma(a, b, c) = a b + c, sum(x) of all lanes
     dot(a, b, c)          what a product adds to c; each(p): the element at p in all lanes
     times(x, factor)      what packing multiplies by
     f16(p), bf16(p), int8(p)   a register of elements as floats; half(p): the float16 at p in all lanes
     max(a, b), min(a, b)  the larger, the smaller; b where either is NaN
     div(a, b); hidden(x)  bit i: lane i is -inf
     show(x, bits)         x in the lanes of `bits`, -inf elsewhere
     or_zero(x)            0 where x is -inf; known(x): 0 where x is NaN
     move(m, high)         the next reference of the lanes' sums (hai_kernel.softmax)
     differ(a, b)          whether any lane differs
     keep(x)               x, which the compiler may neither contract with what follows nor fold
     exp(x)                e^x for x <= 0, e^0 exactly 1, below 2^-126 exactly 0
     gather4(row, t), scatter4(x, row, t)   elements t .. t + 3 of rows 0, 4, 8, ..; transpose4: 4 x 4 */

/* ======== src/kernel_tile.h ======== */

/* Template: the products of a tile, in plain C. Included once per ISA, behind that ISA's primitives, with
   these parameters:
     HAI_ISA(name)   the name that a function or primitive has for this ISA: hai_<name>_<isa>
     HAI_TARGET      the function attribute that lets the compiler use its instructions
     HAI_VECTOR      its register, of HAI_WIDTH floats; a tile has HAI_LANES lanes, three registers
     HAI_ELEMENT     what a product reads: float, or two bfloat16 whose products are summed
     HAI_ROWS(X)     X(0) X(1) .. for the HAI_N_ROWS keys, or coordinates of values, multiplied at a time
     HAI_LONG(X)     the same for HAI_N_LONG coordinates where a tile has one register: its sums need to be
                     more to hide the latency of a multiply-add
     HAI_FACTORED    1 if a factor for each lane lies behind the packed queries
   A step of the inner loop loads up to three packed vectors a0 to a2, and for each row broadcasts one
   element b and does a multiply-add with each vector. The sums c<row><register> are named variables and not
   an array: gcc -O1 would store an array of them before the loop. The number of registers n is a constant
   where the inline functions are called, so that what belongs to absent registers is dropped. */

#define HAI_SUMS(r) HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0;
#define HAI_LOAD(p)                                 \
  a0 = HAI_ISA(load)(p);                            \
  a1 = n > 1 ? HAI_ISA(load)((p) + HAI_WIDTH) : a0; \
  a2 = n > 2 ? HAI_ISA(load)((p) + 2 * HAI_WIDTH) : a0;
#define HAI_ADD(r)                                   \
  c##r##0 = HAI_ISA(dot)(a0, b, c##r##0);            \
  if (n > 1) c##r##1 = HAI_ISA(dot)(a1, b, c##r##1); \
  if (n > 2) c##r##2 = HAI_ISA(dot)(a2, b, c##r##2);
#define HAI_STORE(r, p)                                \
  HAI_ISA(store)(p, c##r##0);                          \
  if (n > 1) HAI_ISA(store)((p) + HAI_WIDTH, c##r##1); \
  if (n > 2) HAI_ISA(store)((p) + 2 * HAI_WIDTH, c##r##2);

/* ---- Packing ---- */

/* Transposes 4 x 4 submatrices within parts of 128 bits: vector k of four holds rows k, k + 4, k + 8, ... */
HAI_TARGET static void HAI_ISA(pack)(const void *const *row, hai_index dim, float factor, float *packed) {
  HAI_VECTOR f = HAI_ISA(set1)(factor), x0, x1, x2, x3;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    hai_index t = 0, whole = hai_rows_present(row + i, HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(gather4)(row + i, t);
      x1 = HAI_ISA(gather4)(row + i + 1, t);
      x2 = HAI_ISA(gather4)(row + i + 2, t);
      x3 = HAI_ISA(gather4)(row + i + 3, t);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(store)(at, HAI_ISA(times)(x0, f));
      HAI_ISA(store)(at + HAI_LANES, HAI_ISA(times)(x1, f));
      HAI_ISA(store)(at + 2 * HAI_LANES, HAI_ISA(times)(x2, f));
      HAI_ISA(store)(at + 3 * HAI_LANES, HAI_ISA(times)(x3, f));
    }
    if (t < dim) HAI_ISA(pack_rest)(row, t, dim, factor, packed, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- Scores ---- */

#define HAI_KEY_ROW(r) const HAI_ELEMENT *k##r = HAI_AS(const HAI_ELEMENT *, key[r]);
#define HAI_KEY_ADD(r)         \
  b = HAI_ISA(each)(k##r + t); \
  HAI_ADD(r)
#define HAI_STEP        \
  HAI_LOAD(query)       \
  HAI_ROWS(HAI_KEY_ADD) \
  t++;                  \
  query += HAI_LANES;
#define HAI_TIMES(r)                              \
  c##r##0 = HAI_ISA(mul)(c##r##0, a0);            \
  if (n > 1) c##r##1 = HAI_ISA(mul)(c##r##1, a1); \
  if (n > 2) c##r##2 = HAI_ISA(mul)(c##r##2, a2);
#define HAI_SCORES_OUT(r) HAI_STORE(r, score + r * HAI_LANES)

/* score[r][i] = sum_t query[t][i] key_r[t], times the lane's factor where there is one. One register alone
   takes four steps in each iteration: its eight sums leave no time for the loop's own instructions. */
HAI_TARGET HAI_INLINE void HAI_ISA(score_registers)(const float *query, hai_index dim,
                                                    const void *const *key, float *score, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  hai_index t = 0, by_four = n == 1 ? dim - 3 : 0;
  HAI_ROWS(HAI_SUMS)
  HAI_ROWS(HAI_KEY_ROW)
  while (t < by_four) {
    HAI_STEP HAI_STEP HAI_STEP HAI_STEP
  }
  while (t < dim) {
    HAI_STEP
  }
  if (HAI_FACTORED) {
    HAI_LOAD(query)
    HAI_ROWS(HAI_TIMES)
  }
  HAI_ROWS(HAI_SCORES_OUT)
}

HAI_TARGET static void HAI_ISA(score_rows)(const float *query, hai_index dim, const void *const *key,
                                           float *score, int n) {
  if (n == 3)
    HAI_ISA(score_registers)(query, dim, key, score, 3);
  else if (n == 2)
    HAI_ISA(score_registers)(query, dim, key, score, 2);
  else
    HAI_ISA(score_registers)(query, dim, key, score, 1);
}

static void HAI_ISA(scores)(const float *query, hai_index dim, const void *const *key, int n_keys,
                            int begin, int end, float *score) {
  const void *row[HAI_N_ROWS];
  int j, r, n = (end - begin) / HAI_WIDTH;
  query += begin;
  score += begin;
  for (j = 0; j < n_keys; j += HAI_N_ROWS, key += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    if (n_keys - j < HAI_N_ROWS) { /* the first key stands for absent ones */
      for (r = 0; r < HAI_N_ROWS; r++) row[r] = key[r < n_keys - j ? r : 0];
      key = row;
    }
    HAI_ISA(score_rows)(query, dim, key, score, n);
  }
}

/* ---- Values ---- */

#define HAI_VALUE_ADD(r)    \
  b = HAI_ISA(each)(v + r); \
  HAI_ADD(r)
#define HAI_UPDATE(r, p)                                                              \
  c##r##0 = HAI_ISA(fma)(HAI_ISA(load)(p), a0, c##r##0);                              \
  if (n > 1) c##r##1 = HAI_ISA(fma)(HAI_ISA(load)((p) + HAI_WIDTH), a1, c##r##1);     \
  if (n > 2) c##r##2 = HAI_ISA(fma)(HAI_ISA(load)((p) + 2 * HAI_WIDTH), a2, c##r##2); \
  HAI_STORE(r, p)
#define HAI_VALUES_OUT(r) HAI_UPDATE(r, o + r * HAI_LANES)

#define HAI_EACH(X) HAI_ROWS(X)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_rows)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) HAI_LONG(X)
#define HAI_REGISTERS 1
#define HAI_THESE(name) HAI_ISA(name##_long)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) X(0)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_row)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */


static void HAI_ISA(values)(float *score, int n_keys, const void *const *value, hai_index dim,
                            const float *factor, int begin, int end, float *o) {
  hai_index t = 0;
  int n = (end - begin) / HAI_WIDTH;
  score += begin;
  factor += begin;
  o += begin;
  for (; n == 1 && t + HAI_N_LONG <= dim; t += HAI_N_LONG)
    HAI_ISA(value_long)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t + HAI_N_ROWS <= dim; t += HAI_N_ROWS)
    HAI_ISA(value_rows)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t < dim; t++) HAI_ISA(value_row)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
}

#undef HAI_SUMS
#undef HAI_LOAD
#undef HAI_ADD
#undef HAI_STORE
#undef HAI_KEY_ROW
#undef HAI_KEY_ADD
#undef HAI_STEP
#undef HAI_TIMES
#undef HAI_SCORES_OUT
#undef HAI_VALUE_ADD
#undef HAI_UPDATE
#undef HAI_VALUES_OUT

/* ======== src/kernel_vector.h, continued ======== */


/* row[i][t] = (packed[t][i] + 0) * factor[i], the way back of packing. */
HAI_TARGET static void HAI_ISA(unpack)(const float *packed, hai_index dim, const float *factor,
                                       float *const *row) {
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), zero = HAI_ISA(zero)(), x0, x1, x2, x3;
    hai_index t = 0;
    hai_index whole =
        hai_rows_present(HAI_REINTERPRET(const void *const *, row + i), HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      const float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at), zero), f);
      x1 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + HAI_LANES), zero), f);
      x2 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + 2 * HAI_LANES), zero), f);
      x3 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + 3 * HAI_LANES), zero), f);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(scatter4)(x0, row + i, t);
      HAI_ISA(scatter4)(x1, row + i + 1, t);
      HAI_ISA(scatter4)(x2, row + i + 2, t);
      HAI_ISA(scatter4)(x3, row + i + 3, t);
    }
    if (t < dim) hai_unpack_plain(packed, t, dim, factor, row, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- What a score becomes ---- */

/* x between -most and most; NaN stays. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(clamp)(HAI_VECTOR x, float most) {
  return HAI_ISA(max)(HAI_ISA(set1)(-most), HAI_ISA(min)(HAI_ISA(set1)(most), x));
}

/* As hai_capped. */
HAI_TARGET static void HAI_ISA(cap)(float *score, int n_keys, float softcap, int begin, int end) {
  HAI_VECTOR inverse = HAI_ISA(set1)(hai_inverse(softcap));
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR s = HAI_ISA(load)(score + i), u, p, q;
      u = HAI_ISA(clamp)(HAI_ISA(mul)(s, inverse), HAI_TANH_END);
      u = HAI_ISA(mul)(u, u);
      p = HAI_ISA(fma)(HAI_ISA(set1)(HAI_TANH_P4), u, HAI_ISA(set1)(HAI_TANH_P3));
      q = HAI_ISA(fma)(HAI_ISA(set1)(HAI_TANH_Q4), u, HAI_ISA(set1)(HAI_TANH_Q3));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P2));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(HAI_TANH_Q2));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P1));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(HAI_TANH_Q1));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P0));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(1.0f));
      HAI_ISA(store)(score + i, HAI_ISA(clamp)(HAI_ISA(mul)(s, HAI_ISA(div)(p, q)), softcap));
    }
}

HAI_TARGET static void HAI_ISA(hide)(const float *bias, int n_keys, int begin, int end, uint64_t *visible) {
  int i, j;
  for (j = 0; j < n_keys; j++, bias += HAI_LANES) {
    uint64_t hidden = 0;
    for (i = begin; i < end; i += HAI_WIDTH)
      hidden |= HAI_AS(uint64_t, HAI_ISA(hidden)(HAI_ISA(load)(bias + i))) << i;
    visible[j] &= ~hidden;
  }
}

HAI_TARGET static void HAI_ISA(add_bias)(float *score, int n_keys, const float *bias, const float *slope,
                                         int begin, int end) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES, bias += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH)
      HAI_ISA(store)
      (score + i, HAI_ISA(fma)(HAI_ISA(load)(slope + i), HAI_ISA(load)(bias + i), HAI_ISA(load)(score + i)));
}

/* ---- Softmax ---- */

/* The largest of m and of each lane's scores, for the lanes of one register: log-weights are added and hidden
   keys hidden first. Four maxima at a time hide one another's latency. */
#define HAI_SHOW(r)                                                        \
  s = HAI_ISA(load)(at + (r)*HAI_LANES);                                   \
  if (log_weight) s = HAI_ISA(add)(s, HAI_ISA(set1)(log_weight[j + (r)])); \
  if (visible) s = HAI_ISA(show)(s, visible[j + (r)] >> lane);             \
  HAI_ISA(store)(at + (r)*HAI_LANES, s);                                   \
  high##r = HAI_ISA(max)(s, high##r);
#define HAI_HIGH(r) high##r = HAI_ISA(max)(HAI_ISA(load)(at + (r)*HAI_LANES), high##r);
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(high)(float *at, int n_keys, const float *log_weight,
                                               const uint64_t *visible, int lane, HAI_VECTOR m) {
  HAI_VECTOR s, high0 = m, high1 = m, high2 = m, high3 = m;
  int j;
  for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES) {
    if (log_weight || visible) {
      HAI_SHOW(0) HAI_SHOW(1) HAI_SHOW(2) HAI_SHOW(3)
    } else {
      HAI_HIGH(0) HAI_HIGH(1) HAI_HIGH(2) HAI_HIGH(3)
    }
  }
  for (; j < n_keys; j++, at += HAI_LANES) {
    HAI_SHOW(0)
  }
  return HAI_ISA(max)(HAI_ISA(max)(high0, high1), HAI_ISA(max)(high2, high3));
}

/* Replaces the scores of one register's lanes by weights e^(score - shift); returns their sums. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(weigh)(float *at, int n_keys, HAI_VECTOR shift) {
  HAI_VECTOR s, t, even = HAI_ISA(zero)(), odd = even;
  int j;
  for (j = 0; j + 2 <= n_keys; j += 2, at += 2 * HAI_LANES) {
    s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
    t = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at + HAI_LANES), shift));
    HAI_ISA(store)(at, s);
    HAI_ISA(store)(at + HAI_LANES, t);
    even = HAI_ISA(add)(even, s);
    odd = HAI_ISA(add)(odd, t);
  }
  if (j < n_keys) {
    s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
    HAI_ISA(store)(at, s);
    even = HAI_ISA(add)(even, s);
  }
  return HAI_ISA(add)(even, odd);
}

/* What rounding took from next = a + b, as in hai_two_sum. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(lost)(HAI_VECTOR a, HAI_VECTOR b, HAI_VECTOR next) {
  HAI_VECTOR part = HAI_ISA(sub)(next, a);
  return HAI_ISA(add)(HAI_ISA(sub)(a, HAI_ISA(sub)(next, part)), HAI_ISA(sub)(b, part));
}

/* Exponentials need the largest score, so all registers look for theirs first. */
HAI_TARGET static int HAI_ISA(softmax)(float *score, int n_keys, const float *log_weight,
                                       const uint64_t *visible, int begin, int end, float *m, float *l,
                                       float *factor) {
  int moved = 0, i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(m + i);
    HAI_VECTOR after =
        HAI_ISA(move)(before, HAI_ISA(high)(score + i, n_keys, log_weight, visible, i, before));
    moved |= HAI_ISA(differ)(before, after);
    HAI_ISA(store)(factor + i, HAI_ISA(exp)(HAI_ISA(sub)(before, HAI_ISA(or_zero)(after))));
    HAI_ISA(store)(m + i, after);
  }
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(weigh)(score + i, n_keys, HAI_ISA(or_zero)(HAI_ISA(load)(m + i))), next;
    HAI_VECTOR f = HAI_ISA(load)(factor + i), before = HAI_ISA(keep)(HAI_ISA(mul)(HAI_ISA(load)(l + i), f));
    sum = HAI_ISA(fma)(HAI_ISA(load)(l + HAI_LANES + i), f, sum);
    next = HAI_ISA(add)(before, sum);
    HAI_ISA(store)(l + i, next);
    HAI_ISA(store)(l + HAI_LANES + i, HAI_ISA(lost)(before, sum, next));
  }
  return moved;
}

/* ---- Sums ---- */

HAI_TARGET static void HAI_ISA(scale)(float *x, hai_index rows, const float *factor, int begin, int end) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH)
      HAI_ISA(store)(x + t + i, HAI_ISA(mul)(HAI_ISA(load)(x + t + i), HAI_ISA(load)(factor + i)));
}

/* All three arrays are read before any is written: their rows may lie a multiple of 4096 bytes apart, and a
   load then waits for a store to the same place within a page. */
HAI_TARGET static void HAI_ISA(carry)(float *o, hai_index rows, int begin, int end, float *sum, float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR a = HAI_ISA(load)(sum + t + i), b = HAI_ISA(load)(o + t + i);
      HAI_VECTOR c = HAI_ISA(load)(lost + t + i), next = HAI_ISA(add)(a, b);
      HAI_ISA(store)(sum + t + i, next);
      HAI_ISA(store)(lost + t + i, HAI_ISA(add)(c, HAI_ISA(known)(HAI_ISA(lost)(a, b, next))));
      HAI_ISA(store)(o + t + i, HAI_ISA(zero)());
    }
}

HAI_TARGET static void HAI_ISA(gather)(float *o, hai_index rows, int begin, int end, const float *sum,
                                       const float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR rest = HAI_ISA(load)(o + t + i);
      if (lost) rest = HAI_ISA(add)(HAI_ISA(load)(lost + t + i), rest);
      HAI_ISA(store)(o + t + i, HAI_ISA(add)(HAI_ISA(load)(sum + t + i), rest));
    }
}

HAI_TARGET static void HAI_ISA(sum_lanes)(const float *score, int n_keys, int begin, int end, float *sum) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES) {
    HAI_VECTOR x = HAI_ISA(load)(score + begin);
    for (i = begin + HAI_WIDTH; i < end; i += HAI_WIDTH) x = HAI_ISA(add)(x, HAI_ISA(load)(score + i));
    sum[j] = HAI_ISA(sum)(x);
  }
}

HAI_TARGET static float HAI_ISA(square)(const float *row, hai_index dim) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH)
    sum = HAI_ISA(fma)(HAI_ISA(load)(row + t), HAI_ISA(load)(row + t), sum);
  return HAI_ISA(sum)(sum) + hai_square_scalar(row + t, dim - t);
}

HAI_TARGET static void HAI_ISA(add_row)(float *sum, const float *row, hai_index dim) {
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH)
    HAI_ISA(store)(sum + t, HAI_ISA(add)(HAI_ISA(load)(sum + t), HAI_ISA(load)(row + t)));
  for (; t < dim; t++) sum[t] += row[t];
}

/* ---- Widening ---- */

/* A register of elements at a time, a Q8_0 block at a time; returns how many are done. This is a function of
   its own that calls none: gcc leaves out vzeroupper before a call in tail position. */
HAI_TARGET static hai_index HAI_ISA(widen_most)(const char *row, hyperattn_dtype dtype, hai_index n,
                                                float *to) {
  hai_index t = 0, k;
  if (dtype == HYPERATTN_F16) {
    for (; t + HAI_WIDTH <= n; t += HAI_WIDTH) HAI_ISA(store)(to + t, HAI_ISA(f16)(row + 2 * t));
  } else if (dtype == HYPERATTN_BF16) {
    for (; t + HAI_WIDTH <= n; t += HAI_WIDTH) HAI_ISA(store)(to + t, HAI_ISA(bf16)(row + 2 * t));
  } else {
    for (; t + HAI_Q8_0_ELEMENTS <= n; t += HAI_Q8_0_ELEMENTS, row += HAI_Q8_0_BYTES) {
      HAI_VECTOR d = HAI_ISA(half)(row);
      for (k = 0; k < HAI_Q8_0_ELEMENTS; k += HAI_WIDTH)
        HAI_ISA(store)(to + t + k, HAI_ISA(mul)(d, HAI_ISA(int8)(row + 2 + k)));
    }
  }
  return t;
}

static void HAI_ISA(widen)(const void *row, hyperattn_dtype dtype, hai_index n, float *to) {
  hai_index t = HAI_ISA(widen_most)(HAI_AS(const char *, row), dtype, n, to);
  if (t < n) hai_widen_plain(row, dtype, t, n, to);
}

/* ======== src/kernel_few.h ======== */

/* Template: few queries, by an ISA's primitives. Coordinates lie in the lanes, and queries are rows [n][dim].
   Included by kernel_vector.h, with its parameters and primitives, and these:
     HAI_STEP_REGISTERS      registers of a step: 32 coordinates, a Q8_0 block
     HAI_MOST_ROWS           queries that are taken at once, 2 or 4
     HAI_MOST_QUERIES        up to how many queries of a head tiles are slower (docs/decode.md)
     most(x)                 the largest of all lanes, none of which is NaN
     sums4(to, a, b, c, d)   to[0 .. 3] = the sums of all lanes of each register
   Rows of keys and values are read as they lie. Sums are named variables for the reason that kernel_tile.h
   gives; their order does not depend on how many rows are taken at once. */

enum { HAI_ISA(row_step) = HAI_STEP_REGISTERS * HAI_WIDTH };
typedef char HAI_ISA(step_is_a_block)[HAI_ISA(row_step) == HAI_Q8_0_ELEMENTS ? 1 : -1];

/* The scale of the step at `at`, for Q8_0. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(row_scale)(const hyperattn_dtype dtype, const char *at) {
  return dtype == HYPERATTN_Q8_0 ? HAI_ISA(half)(at) : HAI_ISA(zero)();
}
/* Starts to load a step's bytes. */
HAI_TARGET HAI_INLINE void HAI_ISA(row_ahead)(const hyperattn_dtype dtype, const char *at) {
  HAI_PREFETCH(at);
  if (hai_is_f32(dtype)) HAI_PREFETCH(at + HAI_ALIGN);
}
/* Register k of the step at `at`. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(row_register)(const hyperattn_dtype dtype, const char *at,
                                                       const int k, HAI_VECTOR scale) {
  const int t = k * HAI_WIDTH;
  if (hai_is_f32(dtype)) return HAI_ISA(load)(HAI_AS(const float *, HAI_AS(const void *, at)) + t);
  if (dtype == HYPERATTN_F16) return HAI_ISA(f16)(at + 2 * t);
  if (dtype == HYPERATTN_BF16) return HAI_ISA(bf16)(at + 2 * t);
  return HAI_ISA(mul)(scale, HAI_ISA(int8)(at + 2 + t));
}

#if HAI_STEP_REGISTERS == 2
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1)
#elif HAI_STEP_REGISTERS == 4
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3)
#else
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3) X(r, 4) X(r, 5) X(r, 6) X(r, 7)
#endif

/* Every dtype that is read, in the order of hyperattn_dtype, by each number of queries. */
#if HAI_MOST_ROWS == 4
#define HAI_EACH_COUNT(X, dtype) X(dtype, 1) X(dtype, 2) X(dtype, 3) X(dtype, 4)
#else
#define HAI_EACH_COUNT(X, dtype) X(dtype, 1) X(dtype, 2)
#endif
#if HAI_HALVES
#define HAI_EACH_FEW(X) \
  HAI_EACH_COUNT(X, F32) HAI_EACH_COUNT(X, F16) HAI_EACH_COUNT(X, BF16) HAI_EACH_COUNT(X, Q8_0)
#else
#define HAI_EACH_FEW(X) HAI_EACH_COUNT(X, F32)
#endif

/* ---- Scores: score[i][j] = sum_t query[i][t] key[j][t] ---- */

#define HAI_ROW_SUMS(r) \
  HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0;
#define HAI_ROW_ADD(r, i, k) \
  if (n > i) c##r##i = HAI_ISA(fma)(x, HAI_ISA(load)(query + i * dim + (k)*HAI_WIDTH), c##r##i);
#define HAI_ROW_TIMES(r, k)                       \
  x = HAI_ISA(row_register)(dtype, at, k, scale); \
  HAI_ROW_ADD(r, 0, k)                            \
  HAI_ROW_ADD(r, 1, k)                            \
  HAI_ROW_ADD(r, 2, k)                            \
  HAI_ROW_ADD(r, 3, k)
#define HAI_ROW_KEY(r)                         \
  at = key[r] + begin;                         \
  HAI_ISA(row_ahead)(dtype, ahead[r] + begin); \
  scale = HAI_ISA(row_scale)(dtype, at);       \
  HAI_EACH_OF_STEP(HAI_ROW_TIMES, r)
#define HAI_ROW_OUT(i) \
  if (n > i) HAI_ISA(sums4)(score + i * HAI_CHUNK, c0##i, c1##i, c2##i, c3##i);

/* n queries meet 4 keys at once: a register of a key is loaded once for all queries, one of a query once for
   all keys. More keys, for fewer queries, would be rows in more places, which processors foresee less well.
   c<key><query> are the sums. Registers: AVX-512 4 x 4 sums, x and scale, 18 of 32; AVX2 and NEON 4 x 2 and
   these, 10. */
HAI_TARGET HAI_INLINE void HAI_ISA(some_scores)(const hyperattn_dtype dtype, const int n, hai_index dim,
                                                const char *const *key, const char *const *ahead,
                                                const float *query, float *score) {
  HAI_VECTOR x, scale;
  const char *at;
  hai_index begin = 0, t;
  HAI_ROWS_4(HAI_ROW_SUMS)
  for (t = 0; t < dim; t += HAI_ISA(row_step)) {
    HAI_ROWS_4(HAI_ROW_KEY)
    begin += hai_offset(dtype, HAI_ISA(row_step));
    query += HAI_ISA(row_step);
  }
  HAI_ROW_OUT(0)
  HAI_ROW_OUT(1)
  HAI_ROW_OUT(2)
  HAI_ROW_OUT(3)
}

/* All keys of a chunk; a list of rows has HAI_CHUNK entries that can be read. */
HAI_TARGET HAI_INLINE void HAI_ISA(few_scores_of)(const hyperattn_dtype dtype, const int n,
                                                  const hai_few_rows *keys, const float *query,
                                                  float *score) {
  int j;
  for (j = 0; j < keys->n; j += 4)
    HAI_ISA(some_scores)(dtype, n, keys->dim, keys->row + j, keys->ahead + j, query, score + j);
}

/* A function for each dtype and number of queries: unoptimised, one frame would hold the registers of all. */
#define HAI_SCORES_NAME(dtype, n) HAI_ISA(few_scores_##dtype##_##n),
#define HAI_SCORES_OF(dtype, n)                                                                   \
  HAI_TARGET HAI_APART void HAI_ISA(few_scores_##dtype##_##n)(const hai_few_rows *keys,           \
                                                              const float *query, float *score) { \
    HAI_ISA(few_scores_of)(HYPERATTN_##dtype, n, keys, query, score);                             \
  }
HAI_EACH_FEW(HAI_SCORES_OF)
static void HAI_ISA(few_scores)(const hai_few_rows *keys, const float *query, int n, float *score) {
  static void (*const scores[])(const hai_few_rows *, const float *,
                                float *) = {HAI_EACH_FEW(HAI_SCORES_NAME)};
  scores[HAI_AS(int, keys->dtype) * HAI_MOST_ROWS + n - 1](keys, query, score);
}

/* ---- Softmax ---- */

/* Exponentials need the largest score, so all rows look for theirs first. Where m stays, factor is exactly
   1. */
HAI_TARGET static void HAI_ISA(few_softmax)(float *score, int n, int n_keys, const float *log_weight,
                                            const uint64_t *visible, float *m, float *l, float *factor) {
  int i, j;
  for (i = 0; i < n; i++) {
    HAI_VECTOR high = HAI_ISA(set1)(m[i]);
    float before = m[i];
    for (j = 0; j < n_keys; j += HAI_WIDTH) {
      float *at = score + i * HAI_CHUNK + j;
      HAI_VECTOR s = HAI_ISA(load)(at);
      if (log_weight) s = HAI_ISA(add)(s, HAI_ISA(load)(log_weight + j));
      s = HAI_ISA(show)(s, visible[i] >> j);
      HAI_ISA(store)(at, s);
      high = HAI_ISA(max)(s, high);
    }
    m[i] = hai_moved(before, HAI_ISA(most)(high));
    factor[i] = m[i] == before ? 1.0f : hai_exp(before - hai_shift(m[i]));
  }
  for (i = 0; i < n; i++) {
    HAI_VECTOR shift = HAI_ISA(set1)(hai_shift(m[i])), sum = HAI_ISA(zero)();
    for (j = 0; j < n_keys; j += HAI_WIDTH) {
      float *at = score + i * HAI_CHUNK + j;
      HAI_VECTOR s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
      HAI_ISA(store)(at, s);
      sum = HAI_ISA(add)(sum, s);
    }
    l[i] = l[i] * factor[i] + HAI_ISA(sum)(sum);
  }
}

/* ---- Values: o[i][t] = o[i][t] factor[i] + sum_j weight[i][j] value[j][t] ---- */

#define HAI_VALUE_SUM(k) HAI_VECTOR c0##k = HAI_ISA(zero)(), c1##k = c0##k, c2##k = c0##k, c3##k = c0##k;
#define HAI_VALUE_READ(k)                                                             \
  at = value + (k) / HAI_STEP_REGISTERS * hai_offset(dtype, HAI_ISA(row_step));       \
  if ((k) % HAI_STEP_REGISTERS == 0) HAI_ISA(row_ahead)(dtype, ahead + (at - value)); \
  if ((k) % HAI_STEP_REGISTERS == 0) scale = HAI_ISA(row_scale)(dtype, at);           \
  x = HAI_ISA(row_register)(dtype, at, (k) % HAI_STEP_REGISTERS, scale);
#define HAI_VALUE_TIMES(i, k) \
  if (n > i) c##i##k = HAI_ISA(fma)(x, w##i, c##i##k);
#define HAI_VALUE_ADD(k)                                                                    \
  if (registers > k) {                                                                      \
    HAI_VALUE_READ(k)                                                                       \
    HAI_VALUE_TIMES(0, k) HAI_VALUE_TIMES(1, k) HAI_VALUE_TIMES(2, k) HAI_VALUE_TIMES(3, k) \
  }
#define HAI_VALUE_STORE(i, k) \
  if (n > i && registers > k) HAI_ISA(row_add)(o + i * dim + (k)*HAI_WIDTH, f##i, c##i##k);
#define HAI_VALUE_OUT(k) \
  HAI_VALUE_STORE(0, k)  \
  HAI_VALUE_STORE(1, k)  \
  HAI_VALUE_STORE(2, k)  \
  HAI_VALUE_STORE(3, k)
#define HAI_VALUE_WEIGHT(i) (n > i ? HAI_ISA(set1)(weight[i * HAI_CHUNK + j]) : HAI_ISA(zero)())
#define HAI_VALUE_FACTOR(i) (n > i ? HAI_ISA(set1)(factor[i]) : HAI_ISA(zero)())

/* o = o * factor + sum, a register of it. */
HAI_TARGET HAI_INLINE void HAI_ISA(row_add)(float *o, HAI_VECTOR factor, HAI_VECTOR sum) {
  HAI_ISA(store)(o, HAI_ISA(fma)(HAI_ISA(load)(o), factor, sum));
}

/* So many registers of the outputs of n rows, from the coordinate `begin` bytes into each value. */
HAI_TARGET HAI_INLINE void HAI_ISA(some_values)(const hyperattn_dtype dtype, const int n,
                                                const int registers, const hai_few_rows *values,
                                                hai_index begin, const float *weight, const float *factor,
                                                float *o) {
  HAI_VECTOR x, scale = HAI_ISA(zero)(), w0, w1, w2, w3;
  HAI_VECTOR f0 = HAI_VALUE_FACTOR(0), f1 = HAI_VALUE_FACTOR(1), f2 = HAI_VALUE_FACTOR(2),
             f3 = HAI_VALUE_FACTOR(3);
  const char *at, *value, *ahead;
  hai_index dim = values->dim;
  int j;
  HAI_ROWS_8(HAI_VALUE_SUM)
  for (j = 0; j < values->n; j++) {
    value = values->row[j] + begin;
    ahead = values->ahead[j] + begin;
    w0 = HAI_VALUE_WEIGHT(0);
    w1 = HAI_VALUE_WEIGHT(1);
    w2 = HAI_VALUE_WEIGHT(2);
    w3 = HAI_VALUE_WEIGHT(3);
    HAI_ROWS_8(HAI_VALUE_ADD)
  }
  HAI_ROWS_8(HAI_VALUE_OUT)
}

/* As many registers at a time as there are sums for, whole steps: c<query><register>. Registers: AVX-512 4 x
   4 sums, 4 weights, x and scale, 22 of 32; AVX2 2 x 4, 12 of 16; NEON 2 x 8, 20 of 32. */
HAI_TARGET HAI_INLINE void HAI_ISA(few_values_of)(const hyperattn_dtype dtype, const int n,
                                                  const hai_few_rows *values, const float *weight,
                                                  const float *factor, float *o) {
  const int most = n == 1 || (n == 2 && HAI_N_ROWS == 8) ? 8 : 4;
  hai_index t = 0, done;
  for (; t < values->dim; t += done, o += done) {
    hai_index left = (values->dim - t) / HAI_WIDTH, begin = hai_offset(dtype, t);
    if (most == 8 && left >= 8) {
      HAI_ISA(some_values)(dtype, n, 8, values, begin, weight, factor, o);
      done = 8 * HAI_WIDTH;
    } else if (HAI_STEP_REGISTERS <= 4 && left >= 4) {
      HAI_ISA(some_values)(dtype, n, 4, values, begin, weight, factor, o);
      done = 4 * HAI_WIDTH;
    } else {
      HAI_ISA(some_values)(dtype, n, HAI_STEP_REGISTERS, values, begin, weight, factor, o);
      done = HAI_ISA(row_step);
    }
  }
}

#define HAI_VALUES_NAME(dtype, n) HAI_ISA(few_values_##dtype##_##n),
#define HAI_VALUES_OF(dtype, n)                                                         \
  HAI_TARGET HAI_APART void HAI_ISA(few_values_##dtype##_##n)(                          \
      const hai_few_rows *values, const float *weight, const float *factor, float *o) { \
    HAI_ISA(few_values_of)(HYPERATTN_##dtype, n, values, weight, factor, o);            \
  }
HAI_EACH_FEW(HAI_VALUES_OF)
static void HAI_ISA(few_values)(const hai_few_rows *values, const float *weight, const float *factor, int n,
                                float *o) {
  static void (*const add[])(const hai_few_rows *, const float *, const float *,
                             float *) = {HAI_EACH_FEW(HAI_VALUES_NAME)};
  add[HAI_AS(int, values->dtype) * HAI_MOST_ROWS + n - 1](values, weight, factor, o);
}

static const hai_few_kernel HAI_ISA(few) = {
    /* scores */ HAI_ISA(few_scores),
    /* softmax */ HAI_ISA(few_softmax),
    /* values */ HAI_ISA(few_values),
    /* most */ HAI_MOST_ROWS,
    /* queries */ HAI_MOST_QUERIES,
    /* step */ HAI_ISA(row_step)};

#undef HAI_EACH_OF_STEP
#undef HAI_EACH_COUNT
#undef HAI_EACH_FEW
#undef HAI_SCORES_NAME
#undef HAI_SCORES_OF
#undef HAI_VALUES_NAME
#undef HAI_VALUES_OF
#undef HAI_ROW_SUMS
#undef HAI_ROW_ADD
#undef HAI_ROW_TIMES
#undef HAI_ROW_KEY
#undef HAI_ROW_OUT
#undef HAI_VALUE_SUM
#undef HAI_VALUE_READ
#undef HAI_VALUE_TIMES
#undef HAI_VALUE_ADD
#undef HAI_VALUE_STORE
#undef HAI_VALUE_OUT
#undef HAI_VALUE_WEIGHT
#undef HAI_VALUE_FACTOR

/* ======== src/kernel_vector.h, continued ======== */

#undef HAI_SHOW
#undef HAI_HIGH
/* ======== src/kernel_end.h ======== */

#undef HAI_ISA
#undef HAI_TARGET
#undef HAI_VECTOR
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ELEMENT
#undef HAI_ROWS
#undef HAI_N_ROWS
#undef HAI_LONG
#undef HAI_N_LONG
#undef HAI_FACTORED
#undef HAI_STEP_REGISTERS
#undef HAI_MOST_ROWS
#undef HAI_MOST_QUERIES

/* ======== src/kernel_vector.h, continued ======== */


/* ======== src/kernel_avx2.h, continued ======== */


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

/* ======== src/kernel_scan_avx2.h ======== */

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
/* ======== src/kernel_scan.h ======== */

/* Template: the scan of a tile of queries. Included once for each way to multiply small integers, behind
   the primitives of an ISA and these of its integers (x, a, b registers of int32, HAI_INTS):
     HAI_WAY(name)        the name that a function has for this way: hai_scan_<name>_<way>
     HAI_SCAN_DOT(a, b, c) in each lane, c + the sum of four products of bytes: a's, which word() or
                           HAI_SCAN_LIFT gives, and b's, -63 .. 63; or of a's and a's, sizes
     HAI_SCAN_LIFT         HAI_KEY_RAISED in each byte; 0 where word() takes that from codes
     HAI_SCAN_TARGET       the function attribute for its instructions
     ints(p), put(p, x)    load, store; ints1(x): x in all lanes; word(p): the four codes at p in all lanes
     plus(a, b), minus(a, b), larger(a, b)
     truncate(x), floats(x)   to integers, towards 0, and back
     size(x)               the bits of |x| as an integer
     join(word, x)         word * 256 + x / HAI_CODE_FINE, for x >= 0
     flip(x), sizes(x)     each byte with its highest bit turned, which is 128 more or less; |each byte|
     positive(x)           is any lane above 0; top(x): the largest lane
     bytes(p, x)           stores each lane, which is in 0 .. 255, as a byte
   Sums are named variables for the reason that kernel_tile.h gives. */

#define HAI_SCAN_STARTS(r)                                                      \
  HAI_INTS c##r##0 = HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b0),              \
           c##r##1 = n > 1 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b1) : b1, \
           c##r##2 = n > 2 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b2) : b2;
#define HAI_SCAN_LOAD(x, p)                             \
  x##0 = HAI_ISA(ints)(p);                              \
  x##1 = n > 1 ? HAI_ISA(ints)((p) + HAI_WIDTH) : x##0; \
  x##2 = n > 2 ? HAI_ISA(ints)((p) + 2 * HAI_WIDTH) : x##0;
#define HAI_SCAN_DOTS(s, key)                   \
  b0 = HAI_ISA(word)(key);                      \
  s##0 = HAI_SCAN_DOT(b0, a0, s##0);            \
  if (n > 1) s##1 = HAI_SCAN_DOT(b0, a1, s##1); \
  if (n > 2) s##2 = HAI_SCAN_DOT(b0, a2, s##2);
#define HAI_SCAN_ADD(r) HAI_SCAN_DOTS(c##r, key + r * dim + 4 * at)

/* Sums of codes' products: c<row><register> = start[row] - threshold, to which those of a word are added. */
#define HAI_SCAN_SUMS                                                                            \
  const int32_t *query = queries->code + queries->begin;                                         \
  hai_index dim = 4 * queries->n_words, w, at;                                                   \
  HAI_INTS a0, a1, a2, b0 = HAI_ISA(ints)(threshold), b1 = HAI_ISA(ints)(threshold + HAI_WIDTH), \
                       b2 = HAI_ISA(ints)(threshold + 2 * HAI_WIDTH);                            \
  HAI_ROWS(HAI_SCAN_STARTS)
#define HAI_SCAN_WORD                      \
  at = queries->word[w];                   \
  HAI_SCAN_LOAD(a, query + at * HAI_LANES) \
  HAI_ROWS(HAI_SCAN_ADD)

#define HAI_SCAN_OUT(r)                                  \
  HAI_SCAN_TELL(r, 0) if (n > 1) { HAI_SCAN_TELL(r, 1) } \
  if (n > 2) {                                           \
    HAI_SCAN_TELL(r, 2)                                  \
  }
#define HAI_SCAN_TELL(r, k)               \
  HAI_ISA(store)                          \
  (score + r * HAI_LANES + k * HAI_WIDTH, \
   HAI_ISA(fma)(unit, HAI_ISA(floats)(c##r##k), HAI_ISA(load)(mean + k * HAI_WIDTH)));
#define HAI_SCAN_HIGH(x, s)                \
  x = s##0;                                \
  if (n > 1) x = HAI_ISA(larger)(x, s##1); \
  if (n > 2) x = HAI_ISA(larger)(x, s##2);
#define HAI_SCAN_HIT(r)                                                                        \
  HAI_SCAN_HIGH(a0, c##r)                                                                      \
  if (HAI_ISA(positive)(a0)) {                                                                 \
    most[r] = HAI_WAY(finish)(queries, key + r * dim, c##r##0, c##r##1, c##r##2, a0, rest, n); \
    hits |= HAI_AS(unsigned, most[r] > 0) << r;                                                \
  }

/* Estimates of HAI_N_ROWS keys. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(tell)(const hai_scan_queries *queries, const uint8_t *key, float u,
                                              const float *mean, float *score, const int n) {
  static const int32_t start[HAI_N_ROWS] = {0};
  const int32_t *threshold = queries->lift + HAI_LANES + queries->begin;
  HAI_VECTOR unit = HAI_ISA(set1)(u);
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_words; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_OUT)
}

/* The sums of a key that the first words let pass: adds those of the other words, less `rest`. Returns the
   largest, or where that is less, the largest of before, whose lanes' is `first`; 0 where none is above 0. */
HAI_SCAN_TARGET HAI_INLINE int32_t HAI_WAY(finish)(const hai_scan_queries *queries, const uint8_t *key,
                                                   HAI_INTS c0, HAI_INTS c1, HAI_INTS c2, HAI_INTS first,
                                                   const int32_t *rest, const int n) {
  const int32_t *query = queries->code + queries->begin;
  int32_t most, before;
  HAI_INTS a0, a1, a2, b0;
  int w;
  HAI_SCAN_LOAD(a, rest)
  c0 = HAI_ISA(minus)(c0, a0);
  if (n > 1) c1 = HAI_ISA(minus)(c1, a1);
  if (n > 2) c2 = HAI_ISA(minus)(c2, a2);
  for (w = queries->n_first; w < queries->n_words; w++) {
    hai_index at = queries->word[w];
    HAI_SCAN_LOAD(a, query + at * HAI_LANES)
    HAI_SCAN_DOTS(c, key + 4 * at)
  }
  HAI_SCAN_HIGH(a0, c)
  if (!HAI_ISA(positive)(a0)) return 0;
  most = HAI_ISA(top)(a0);
  before = HAI_ISA(top)(first);
  return most < before ? most : before;
}

/* Bit r: key r of HAI_N_ROWS is a hit. most[r], where it is: how far above 0 its sum is. */
HAI_SCAN_TARGET HAI_INLINE unsigned HAI_WAY(look)(const hai_scan_queries *queries, const uint8_t *key,
                                                  const int32_t *start, const int32_t *threshold,
                                                  const int32_t *rest, int32_t *most, const int n) {
  unsigned hits = 0;
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_first; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_HIT)
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(estimate)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int first, float *score) {
  const float *mean = block->mean + queries->begin;
  int n = (queries->end - queries->begin) / HAI_WIDTH, j;
  score += queries->begin;
  for (j = first; j < first + HAI_PILOT; j += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 3);
    else if (n == 2)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 2);
    else
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 1);
  }
}

/* x cut off at -most and most, as an integer; NaN becomes -most. */
HAI_SCAN_TARGET HAI_INLINE HAI_INTS HAI_WAY(cut)(HAI_VECTOR x, float most) {
  x = HAI_ISA(max)(x, HAI_ISA(set1)(-most));
  return HAI_ISA(truncate)(HAI_ISA(min)(x, HAI_ISA(set1)(most)));
}

HAI_SCAN_TARGET static uint64_t HAI_WAY(hits)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int32_t *most) {
  int32_t draw[HAI_CHUNK], start[HAI_CHUNK], threshold[HAI_LANES] = {0}, rest[HAI_LANES] = {0};
  HAI_VECTOR inverse = HAI_ISA(set1)(1.0f / block->unit);
  HAI_INTS margin = HAI_ISA(ints1)(block->margin);
  uint64_t hits = 0, bits;
  int begin = queries->begin, n = (queries->end - begin) / HAI_WIDTH, i, j;
  for (i = begin; i < queries->end; i += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(queries->level + i), HAI_ISA(load)(block->mean + i));
    HAI_INTS level = HAI_WAY(cut)(HAI_ISA(mul)(x, inverse), HAI_MOST_LEVEL);
    HAI_INTS lift = HAI_ISA(ints)(queries->lift + i), all = HAI_ISA(ints)(queries->lift + HAI_LANES + i);
    HAI_ISA(put)(threshold + i - begin, HAI_ISA(plus)(level, lift));
    HAI_ISA(put)(rest + i - begin, HAI_ISA(plus)(HAI_ISA(minus)(all, lift), margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH) {
    HAI_INTS x = HAI_WAY(cut)(HAI_ISA(mul)(HAI_ISA(load)(block->draw + j), inverse), HAI_MOST_DRAW);
    HAI_ISA(put)(draw + j, x);
    HAI_ISA(put)(start + j, HAI_ISA(plus)(x, margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_N_ROWS) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 3);
    else if (n == 2)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 2);
    else
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 1);
    hits |= bits << j;
  }
  for (bits = hits; bits; bits &= bits - 1) {
    j = hai_lowest_bit(bits);
    most[j] -= draw[j];
  }
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(largest)(const float *query, hai_index dim, int32_t *bits) {
  hai_index t;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS x = HAI_ISA(ints1)(0);
    for (t = 0; t < dim; t++) x = HAI_ISA(larger)(x, HAI_ISA(size)(HAI_ISA(load)(query + t * HAI_LANES + i)));
    HAI_ISA(put)(bits + i, x);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(quantise)(const float *query, hai_index dim, float inverse,
                                              int32_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t, y;
  int i;
  for (t = 0; t < dim; t += 4, code += HAI_LANES)
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS word = HAI_ISA(ints1)(0), x;
      for (y = t + 3; y >= t; y--) {
        x = half;
        if (y < dim) {
          HAI_VECTOR product = HAI_ISA(mul)(HAI_ISA(load)(query + y * HAI_LANES + i), f);
          x = HAI_ISA(plus)(HAI_WAY(cut)(product, HAI_CODE_MOST), half);
        }
        word = HAI_ISA(join)(word, x);
      }
      HAI_ISA(put)(code + i, HAI_ISA(flip)(word));
    }
}

HAI_SCAN_TARGET static void HAI_WAY(forces)(const hai_scan_queries *queries, int32_t *all, int32_t *most) {
  HAI_INTS none = HAI_ISA(ints1)(0);
  int32_t part[HAI_WIDTH];
  int i, w;
  for (w = 0; w < queries->n_words; w++) {
    HAI_INTS sum = none, largest = none;
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS x = HAI_ISA(sizes)(HAI_ISA(ints)(queries->code + w * HAI_LANES + i));
      HAI_INTS squares = HAI_SCAN_DOT(x, x, none);
      sum = HAI_ISA(plus)(sum, squares);
      largest = HAI_ISA(larger)(largest, squares);
    }
    HAI_ISA(put)(part, sum);
    for (i = 0, all[w] = 0; i < HAI_WIDTH; i++) all[w] += part[i];
    most[w] = HAI_ISA(top)(largest);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(lift)(const hai_scan_queries *queries) {
  HAI_INTS raised = HAI_ISA(ints1)(HAI_SCAN_LIFT);
  int i, w;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS sum = HAI_ISA(ints1)(0), first = sum;
    for (w = 0; w < queries->n_words; w++) {
      sum = HAI_SCAN_DOT(raised, HAI_ISA(ints)(queries->code + queries->word[w] * HAI_LANES + i), sum);
      if (w == queries->n_first - 1) first = sum;
    }
    HAI_ISA(put)(queries->lift + i, first);
    HAI_ISA(put)(queries->lift + HAI_LANES + i, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(collect)(const float *score, int begin, int end, float *high, float *sum,
                                             float *group) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(high + i), most = before, shift, factor, here = HAI_ISA(zero)();
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      most = HAI_ISA(max)(HAI_ISA(load)(score + j + i), most);
    shift = HAI_ISA(or_zero)(most);
    factor = HAI_ISA(exp)(HAI_ISA(sub)(before, shift));
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      here = HAI_ISA(add)(here, HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(score + j + i), shift)));
    HAI_ISA(store)(high + i, most);
    HAI_ISA(store)(sum + i, HAI_ISA(fma)(HAI_ISA(load)(sum + i), factor, here));
    HAI_ISA(store)(group + i, HAI_ISA(max)(HAI_ISA(mul)(HAI_ISA(load)(group + i), factor), here));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(missing)(const float *log_weight, int n, float *missing) {
  int j;
  for (j = 0; j < n; j += HAI_WIDTH) {
    HAI_VECTOR kept = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(zero)(), HAI_ISA(load)(log_weight + j)));
    HAI_ISA(store)(missing + j, HAI_ISA(sub)(HAI_ISA(set1)(1.0f), kept));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(spread)(const float *weight, int n_keys, const float *missing,
                                            const float *distance, const float *factor, int begin, int end,
                                            float *scatter, float *squares) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), a, b, w;
    f = HAI_ISA(mul)(f, f);
    a = HAI_ISA(mul)(HAI_ISA(load)(scatter + i), f);
    b = HAI_ISA(mul)(HAI_ISA(load)(squares + i), f);
    for (j = 0; j < n_keys; j++) {
      w = HAI_ISA(load)(weight + j * HAI_LANES + i);
      w = HAI_ISA(mul)(HAI_ISA(mul)(w, w), HAI_ISA(set1)(missing[j]));
      a = HAI_ISA(fma)(w, HAI_ISA(set1)(distance[j]), a);
      b = HAI_ISA(add)(b, w);
    }
    HAI_ISA(store)(scatter + i, a);
    HAI_ISA(store)(squares + i, b);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(distances)(const float *o, hai_index dim, const float *l,
                                               const float *centre, int begin, int end, float *norm,
                                               float *apart) {
  hai_index t;
  int i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR inverse = HAI_ISA(div)(HAI_ISA(set1)(1.0f), HAI_ISA(load)(l + i)), a = HAI_ISA(zero)(), b = a;
    for (t = 0; t < dim; t++) {
      HAI_VECTOR x = HAI_ISA(mul)(HAI_ISA(load)(o + t * HAI_LANES + i), inverse);
      HAI_VECTOR from = HAI_ISA(sub)(x, HAI_ISA(set1)(centre[t]));
      a = HAI_ISA(fma)(x, x, a);
      b = HAI_ISA(fma)(from, from, b);
    }
    HAI_ISA(store)(norm + i, a);
    HAI_ISA(store)(apart + i, b);
  }
}

/* ---- The sketch: coordinates in the lanes ---- */

HAI_SCAN_TARGET static void HAI_WAY(mean)(const float *const *row, hai_index dim, float *mean) {
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (j = 0; j < HAI_CHUNK; j++) sum = HAI_ISA(add)(sum, HAI_ISA(load)(row[j] + t));
    HAI_ISA(store)(mean + t, HAI_ISA(mul)(sum, HAI_ISA(set1)(1.0f / HAI_CHUNK)));
  }
  hai_scan_mean_plain(row, t, dim, mean);
}

HAI_SCAN_TARGET static int32_t HAI_WAY(reach)(const float *const *row, hai_index dim, const float *mean) {
  HAI_INTS most = HAI_ISA(ints1)(0);
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR m = HAI_ISA(load)(mean + t);
    for (j = 0; j < HAI_CHUNK; j++)
      most = HAI_ISA(larger)(most, HAI_ISA(size)(HAI_ISA(sub)(HAI_ISA(load)(row[j] + t), m)));
  }
  return hai_scan_reach_plain(row, t, dim, mean, HAI_ISA(top)(most));
}

HAI_SCAN_TARGET static void HAI_WAY(encode)(const float *row, hai_index dim, const float *mean, float inverse,
                                            uint8_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(mean + t));
    HAI_INTS x = HAI_ISA(plus)(HAI_WAY(cut)(HAI_ISA(mul)(y, f), HAI_KEY_MOST), half);
    HAI_ISA(bytes)(code + t, HAI_ISA(join)(HAI_ISA(ints1)(0), x));
  }
  hai_scan_encode_plain(row, t, dim, mean, inverse, code);
}

HAI_SCAN_TARGET static void HAI_WAY(norms)(const uint8_t *code, int n_words, int32_t *norm) {
  int32_t words[HAI_WIDTH];
  int w = 0, j;
  for (; w + HAI_WIDTH <= n_words; w += HAI_WIDTH) {
    HAI_INTS none = HAI_ISA(ints1)(0), most = none;
    for (j = 0; j < HAI_CHUNK; j++) {
      HAI_INTS x;
      HYPERATTN_MEMCPY(words, code + 4 * (j * n_words + w), sizeof words);
      x = HAI_ISA(sizes)(HAI_ISA(flip)(HAI_ISA(ints)(words)));
      most = HAI_ISA(larger)(most, HAI_SCAN_DOT(x, x, none));
    }
    HAI_ISA(put)(norm + w, most);
  }
  hai_scan_norms_plain(code, w, n_words, norm);
}

HAI_SCAN_TARGET static float HAI_WAY(apart)(const float *row, hai_index dim, const float *centre) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(centre + t));
    sum = HAI_ISA(fma)(x, x, sum);
  }
  return HAI_ISA(sum)(sum) + hai_scan_apart_plain(row, t, dim, centre);
}

#if HAI_INDEX
/* ======== src/kernel_index.h ======== */

/* Template: the scan of an index, for few queries, keys in the lanes. Included by kernel_scan.h for each of
   its ways, with its primitives and these:
     codes(p)              a register of the bytes at p
     low(x), down(x)       the lowest two bits of each byte; x with each two bits of a byte at the lower two's
                           place, whatever comes from the next byte above them
     nearest(x)            to integers, the nearest
     cut(p, x), wide(p)    stores each lane as 16 bits, cut to what these hold; loads such
     smaller(a, b), up(x)  of each lane; each lane times 2^20
   and these of 2 HAI_WIDTH integers of 16 bits, shorts(p) loads:
     shorts1(x)            x in all lanes
     less(a, b), more(a, b), most_short(a, b)   a - b, cut to 16 bits; a + b; the larger of each lane
     bits(u, v)            the bits of floats, of two registers, over 2^20
     over(a, b)            bit i: lane i of a is above that of b
   Codes of an index are 0 .. 127, the same as signed and as unsigned bytes. */

#define HAI_GUESS_MOST (HAI_N_ROWS / 2) /* queries whose sums fit the registers: 2 or 4 */
#define HAI_GUESS_LOAD(r)                          \
  y##r = HAI_ISA(codes)(code + 4 * r * HAI_WIDTH); \
  HAI_PREFETCH(HAI_REINTERPRET(const char *, code) + ahead + 4 * r * HAI_WIDTH);
#define HAI_GUESS_SUMS(r) HAI_INTS c0##r = HAI_ISA(ints1)(0), c1##r = c0##r, c2##r = c0##r, c3##r = c0##r;
#define HAI_GUESS_DOT(i, r) \
  if (n > i) c##i##r = HAI_SCAN_DOT(x, w##i, c##i##r);
#define HAI_GUESS_ADD(r)  \
  x = HAI_ISA(low)(y##r); \
  HAI_GUESS_DOT(0, r) HAI_GUESS_DOT(1, r) HAI_GUESS_DOT(2, r) HAI_GUESS_DOT(3, r) y##r = HAI_ISA(down)(y##r);
#define HAI_GUESS_SUMS_OF(i) c##i##0, c##i##1, c##i##2, c##i##3
#define HAI_GUESS_OUT(i)        \
  if (n > i) HAI_WAY(guess_out) \
  (query + i, block, base[i], f0, f1, f2, f3, HAI_GUESS_SUMS_OF(i), score[i] + j, weights + i);
#define HAI_GUESS_NORM(r) f##r = HAI_ISA(int8)(block->norm + j + r * HAI_WIDTH);
#define HAI_GUESS_SCORE(r)                                                            \
  x = HAI_ISA(fma)(HAI_ISA(floats)(c##r), HAI_ISA(set1)(slope), HAI_ISA(set1)(more)); \
  y = HAI_ISA(nearest)(HAI_ISA(fma)(f##r, x, HAI_ISA(set1)(base)));                   \
  HAI_ISA(cut)(score + r * HAI_WIDTH, y);                                             \
  sum = HAI_ISA(add)(sum, HAI_WAY(weight)(y, from));

/* The mean's part of all scores of a block. */
HAI_SCAN_TARGET HAI_INLINE float HAI_WAY(guess_mean)(const hai_index_query *query,
                                                     const hai_index_block *block) {
  HAI_INTS sum = HAI_ISA(ints1)(0);
  hai_index w;
  for (w = 0; w < query->n_words; w += HAI_WIDTH)
    sum = HAI_SCAN_DOT(HAI_ISA(codes)(block->mean + 4 * w), HAI_ISA(ints)(query->word + w), sum);
  return query->unit * block->mean_unit *
         (HAI_ISA(sum)(HAI_ISA(floats)(sum)) - HAI_AS(float, HAI_MEAN_RAISED * query->sum));
}

HAI_SCAN_TARGET HAI_INLINE HAI_VECTOR HAI_WAY(weight)(HAI_INTS score, HAI_INTS from) {
  HAI_INTS steps = HAI_ISA(larger)(HAI_ISA(minus)(score, from), HAI_ISA(ints1)(HAI_STEP_LEAST));
  return HAI_ISA(by_bits)(HAI_ISA(up)(HAI_ISA(smaller)(steps, HAI_ISA(ints1)(HAI_STEP_TOP))));
}

/* Scores of four registers of keys, of norms f and sums c. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_out)(const hai_index_query *query, const hai_index_block *block,
                                                   float base, HAI_VECTOR f0, HAI_VECTOR f1, HAI_VECTOR f2,
                                                   HAI_VECTOR f3, HAI_INTS c0, HAI_INTS c1, HAI_INTS c2,
                                                   HAI_INTS c3, int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1), y;
  float slope = 2.0f * query->unit * block->norm_unit;
  float more = (query->more - HAI_AS(float, 3 * query->sum) * query->unit) * block->norm_unit;
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane), x;
  HAI_ROWS_4(HAI_GUESS_SCORE)
  HAI_ISA(store)(weights->lane, sum);
}

/* Four registers of keys at a time, so that each has its sums, for up to HAI_GUESS_MOST queries, which share
   what is taken out of the codes. c<query><register> are the sums. Registers: AVX2 2 x 4 sums, 4 codes, one
   of them alone and two words, 15 of 16; AVX-512 and NEON 4 x 4, 4, 1 and 4, 25 of 32. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_some)(const hai_index_query *query, const int n,
                                                    const hai_index_block *block, int16_t *const *score,
                                                    hai_weights *weights) {
  const int32_t *word[4] = {query->word, query[n > 1].word, query[n > 2 ? 2 : 0].word,
                            query[n > 3 ? 3 : 0].word};
  hai_index g;
  size_t ahead = block->ahead;
  float base[4] = {0.0f};
  int j, s, i;
  for (i = 0; i < n; i++) base[i] = HAI_WAY(guess_mean)(query + i, block);
  for (j = 0; j < HAI_CHUNK; j += 4 * HAI_WIDTH) {
    const uint8_t *code = block->code + 4 * j;
    HAI_INTS w0, w1, w2, w3, x, y0, y1, y2, y3;
    HAI_VECTOR f0, f1, f2, f3;
    HAI_ROWS_4(HAI_GUESS_SUMS)
    for (g = 0; g < query->n_groups; g++, code += 4 * HAI_CHUNK) {
      HAI_ROWS_4(HAI_GUESS_LOAD)
      for (s = 0; s < 4; s++) {
        w0 = w1 = w2 = w3 = HAI_ISA(ints1)(word[0][4 * g + s]);
        if (n > 1) w1 = HAI_ISA(ints1)(word[1][4 * g + s]);
        if (n > 2) w2 = HAI_ISA(ints1)(word[2][4 * g + s]);
        if (n > 3) w3 = HAI_ISA(ints1)(word[3][4 * g + s]);
        HAI_ROWS_4(HAI_GUESS_ADD)
      }
    }
    HAI_ROWS_4(HAI_GUESS_NORM)
    HAI_ROWS_4(HAI_GUESS_OUT)
  }
}
HAI_SCAN_TARGET static void HAI_WAY(guess)(const hai_index_query *query, int n, const hai_index_block *block,
                                           int16_t *const *score, hai_weights *weights) {
  for (; n > HAI_GUESS_MOST; n -= HAI_GUESS_MOST) {
    HAI_WAY(guess_some)(query, HAI_GUESS_MOST, block, score, weights);
    query += HAI_GUESS_MOST;
    score += HAI_GUESS_MOST;
    weights += HAI_GUESS_MOST;
  }
  if (HAI_GUESS_MOST > 3 && n == 4)
    HAI_WAY(guess_some)(query, 4, block, score, weights);
  else if (HAI_GUESS_MOST > 2 && n == 3)
    HAI_WAY(guess_some)(query, 3, block, score, weights);
  else if (n == 2)
    HAI_WAY(guess_some)(query, 2, block, score, weights);
  else
    HAI_WAY(guess_some)(query, 1, block, score, weights);
}

HAI_SCAN_TARGET static void HAI_WAY(weigh)(const int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1);
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane);
  int j;
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH)
    sum = HAI_ISA(add)(sum, HAI_WAY(weight)(HAI_ISA(wide)(score + j), from));
  HAI_ISA(store)(weights->lane, sum);
}

HAI_SCAN_TARGET static void HAI_WAY(at_least)(const int16_t *score, hai_index n, int least, uint64_t *bits) {
  HAI_INTS below = HAI_ISA(shorts1)(least - 1);
  hai_index b;
  int j;
  for (b = 0; b < n; b++, score += HAI_CHUNK)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH)
      bits[b] |= HAI_AS(uint64_t, HAI_ISA(over)(HAI_ISA(shorts)(score + j), below)) << j;
}

/* Floats above 0 order as their bits do, and those of a weight are 0 behind its steps: a weight is above u
   if its steps are more than u's whole ones. */
HAI_SCAN_TARGET static void HAI_WAY(keep)(const hai_levels *levels, hai_index n, uint64_t *bits) {
  HAI_INTS least = HAI_ISA(shorts1)(-HAI_STEP_OF_1);
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++) {
    HAI_VECTOR from = HAI_ISA(set1)(levels->shift[b]);
    uint64_t kept = 0;
    for (j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH) {
      HAI_VECTOR u = HAI_ISA(add)(HAI_ISA(load)(levels->place + j), from),
                 v = HAI_ISA(add)(HAI_ISA(load)(levels->place + j + HAI_WIDTH), from);
      HAI_INTS most = least;
      u = HAI_ISA(sub)(u, HAI_ISA(floats)(HAI_ISA(truncate)(u)));
      v = HAI_ISA(sub)(v, HAI_ISA(floats)(HAI_ISA(truncate)(v)));
      for (i = 0; i < levels->n; i++) {
        HAI_INTS score = HAI_ISA(shorts)(levels->score[i] + b * HAI_CHUNK + j);
        most = HAI_ISA(most_short)(HAI_ISA(less)(score, HAI_ISA(shorts1)(levels->level[i])), most);
      }
      kept |= HAI_AS(uint64_t, HAI_ISA(over)(most, HAI_ISA(more)(HAI_ISA(bits)(u, v), least))) << j;
    }
    bits[b] = kept;
  }
}

/* The Hadamard matrix, x [n][HAI_TURNED], each row times `factor` at the end. */
HAI_SCAN_TARGET static void HAI_WAY(turn)(float *x, hai_index n, float factor) {
  HAI_VECTOR by = HAI_ISA(set1)(factor);
  hai_index half, t, u;
  for (half = HAI_TURNED; half < n * HAI_TURNED; half *= 2)
    for (t = 0; t < n * HAI_TURNED; t += 2 * half)
      for (u = t; u < t + half; u += HAI_WIDTH) {
        HAI_VECTOR a = HAI_ISA(load)(x + u), b = HAI_ISA(load)(x + u + half);
        HAI_ISA(store)(x + u, HAI_ISA(add)(a, b));
        HAI_ISA(store)(x + u + half, HAI_ISA(sub)(a, b));
      }
  for (t = 0; t < n * HAI_TURNED; t += HAI_WIDTH)
    HAI_ISA(store)(x + t, HAI_ISA(mul)(HAI_ISA(load)(x + t), by));
}

HAI_SCAN_TARGET static void HAI_WAY(differ)(float *x, hai_index dim, const float *mean, float *square) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (t = 0; t < dim; t++) {
      HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(x + t * HAI_TURNED + j), HAI_ISA(set1)(mean[t]));
      HAI_ISA(store)(x + t * HAI_TURNED + j, y);
      sum = HAI_ISA(fma)(y, y, sum);
    }
    HAI_ISA(store)(square + j, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(halve)(const float *x, hai_index dim, const float *inverse, uint8_t *code,
                                           float *product) {
  HAI_VECTOR two = HAI_ISA(set1)(2.0f), most = HAI_ISA(set1)(3.5f), three = HAI_ISA(set1)(-3.0f);
  int32_t words[HAI_WIDTH];
  hai_index begin;
  int j, at;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR by = HAI_ISA(load)(inverse + j), sum = HAI_ISA(zero)();
    for (begin = 0; begin < dim; begin += HAI_GROUP_DIM) {
      HAI_INTS word = HAI_ISA(ints1)(0), c;
      for (at = HAI_GROUP_DIM - 1; at >= 0; at--) {
        hai_index t = begin + at % 4 * 4 + at / 4;
        word = HAI_ISA(plus)(word, word);
        word = HAI_ISA(plus)(word, word);
        if (t < dim) {
          HAI_VECTOR y = HAI_ISA(load)(x + t * HAI_TURNED + j), z = HAI_ISA(fma)(y, by, two);
          c = HAI_ISA(truncate)(HAI_ISA(max)(HAI_ISA(min)(z, most), HAI_ISA(zero)()));
          word = HAI_ISA(plus)(word, c);
          sum = HAI_ISA(fma)(y, HAI_ISA(fma)(HAI_ISA(floats)(c), two, three), sum);
        }
      }
      HAI_ISA(put)(words, word);
      HYPERATTN_MEMCPY(code + 4 * (begin / HAI_GROUP_DIM * HAI_CHUNK + j), words, sizeof words);
    }
    HAI_ISA(store)(product + j, sum);
  }
}

#undef HAI_GUESS_MOST
#undef HAI_GUESS_LOAD
#undef HAI_GUESS_DOT
#undef HAI_GUESS_SUMS_OF
#undef HAI_GUESS_ADD
#undef HAI_GUESS_SUMS
#undef HAI_GUESS_NORM
#undef HAI_GUESS_SCORE
#undef HAI_GUESS_OUT

/* ======== src/kernel_scan.h, continued ======== */

#endif

static const hai_scan_kernel HAI_WAY(kernel) = {
    /* largest */ HAI_WAY(largest),
    /* quantise */ HAI_WAY(quantise),
    /* forces */ HAI_WAY(forces),
    /* lift */ HAI_WAY(lift),
    /* estimate */ HAI_WAY(estimate),
    /* collect */ HAI_WAY(collect),
    /* hits */ HAI_WAY(hits),
    /* missing */ HAI_WAY(missing),
    /* spread */ HAI_WAY(spread),
    /* distances */ HAI_WAY(distances),
    /* mean */ HAI_WAY(mean),
    /* reach */ HAI_WAY(reach),
    /* encode */ HAI_WAY(encode),
    /* norms */ HAI_WAY(norms),
    /* apart */ HAI_WAY(apart),
#if HAI_INDEX
    /* guess */ HAI_WAY(guess),
    /* weigh */ HAI_WAY(weigh),
    /* at_least */ HAI_WAY(at_least),
    /* keep */ HAI_WAY(keep),
    /* turn */ HAI_WAY(turn),
    /* differ */ HAI_WAY(differ),
    /* halve */ HAI_WAY(halve),
#endif
    /* cost */ HAI_SCAN_COST};

#undef HAI_SCAN_STARTS
#undef HAI_SCAN_LOAD
#undef HAI_SCAN_DOTS
#undef HAI_SCAN_ADD
#undef HAI_SCAN_SUMS
#undef HAI_SCAN_WORD
#undef HAI_SCAN_OUT
#undef HAI_SCAN_TELL
#undef HAI_SCAN_HIGH
#undef HAI_SCAN_HIT
#undef HAI_WAY
#undef HAI_SCAN_DOT
#undef HAI_SCAN_TARGET
#undef HAI_SCAN_LIFT
#undef HAI_SCAN_COST

/* ======== src/kernel_scan_avx2.h, continued ======== */

#endif

HAI_I_avx2 hai_pairs_avx2(__m256i a, __m256i b, __m256i c) {
  return _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)), c);
}
#define HAI_SCAN_TARGET HAI_TARGET_avx2
#define HAI_WAY(name) hai_scan_##name##_avx2
#define HAI_SCAN_DOT(a, b, c) hai_pairs_avx2(a, b, c)
#define HAI_SCAN_LIFT HAI_RAISED_BYTES
#define HAI_SCAN_COST 0.16f
/* ======== src/kernel_scan.h ======== */

/* Template: the scan of a tile of queries. Included once for each way to multiply small integers, behind
   the primitives of an ISA and these of its integers (x, a, b registers of int32, HAI_INTS):
     HAI_WAY(name)        the name that a function has for this way: hai_scan_<name>_<way>
     HAI_SCAN_DOT(a, b, c) in each lane, c + the sum of four products of bytes: a's, which word() or
                           HAI_SCAN_LIFT gives, and b's, -63 .. 63; or of a's and a's, sizes
     HAI_SCAN_LIFT         HAI_KEY_RAISED in each byte; 0 where word() takes that from codes
     HAI_SCAN_TARGET       the function attribute for its instructions
     ints(p), put(p, x)    load, store; ints1(x): x in all lanes; word(p): the four codes at p in all lanes
     plus(a, b), minus(a, b), larger(a, b)
     truncate(x), floats(x)   to integers, towards 0, and back
     size(x)               the bits of |x| as an integer
     join(word, x)         word * 256 + x / HAI_CODE_FINE, for x >= 0
     flip(x), sizes(x)     each byte with its highest bit turned, which is 128 more or less; |each byte|
     positive(x)           is any lane above 0; top(x): the largest lane
     bytes(p, x)           stores each lane, which is in 0 .. 255, as a byte
   Sums are named variables for the reason that kernel_tile.h gives. */

#define HAI_SCAN_STARTS(r)                                                      \
  HAI_INTS c##r##0 = HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b0),              \
           c##r##1 = n > 1 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b1) : b1, \
           c##r##2 = n > 2 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b2) : b2;
#define HAI_SCAN_LOAD(x, p)                             \
  x##0 = HAI_ISA(ints)(p);                              \
  x##1 = n > 1 ? HAI_ISA(ints)((p) + HAI_WIDTH) : x##0; \
  x##2 = n > 2 ? HAI_ISA(ints)((p) + 2 * HAI_WIDTH) : x##0;
#define HAI_SCAN_DOTS(s, key)                   \
  b0 = HAI_ISA(word)(key);                      \
  s##0 = HAI_SCAN_DOT(b0, a0, s##0);            \
  if (n > 1) s##1 = HAI_SCAN_DOT(b0, a1, s##1); \
  if (n > 2) s##2 = HAI_SCAN_DOT(b0, a2, s##2);
#define HAI_SCAN_ADD(r) HAI_SCAN_DOTS(c##r, key + r * dim + 4 * at)

/* Sums of codes' products: c<row><register> = start[row] - threshold, to which those of a word are added. */
#define HAI_SCAN_SUMS                                                                            \
  const int32_t *query = queries->code + queries->begin;                                         \
  hai_index dim = 4 * queries->n_words, w, at;                                                   \
  HAI_INTS a0, a1, a2, b0 = HAI_ISA(ints)(threshold), b1 = HAI_ISA(ints)(threshold + HAI_WIDTH), \
                       b2 = HAI_ISA(ints)(threshold + 2 * HAI_WIDTH);                            \
  HAI_ROWS(HAI_SCAN_STARTS)
#define HAI_SCAN_WORD                      \
  at = queries->word[w];                   \
  HAI_SCAN_LOAD(a, query + at * HAI_LANES) \
  HAI_ROWS(HAI_SCAN_ADD)

#define HAI_SCAN_OUT(r)                                  \
  HAI_SCAN_TELL(r, 0) if (n > 1) { HAI_SCAN_TELL(r, 1) } \
  if (n > 2) {                                           \
    HAI_SCAN_TELL(r, 2)                                  \
  }
#define HAI_SCAN_TELL(r, k)               \
  HAI_ISA(store)                          \
  (score + r * HAI_LANES + k * HAI_WIDTH, \
   HAI_ISA(fma)(unit, HAI_ISA(floats)(c##r##k), HAI_ISA(load)(mean + k * HAI_WIDTH)));
#define HAI_SCAN_HIGH(x, s)                \
  x = s##0;                                \
  if (n > 1) x = HAI_ISA(larger)(x, s##1); \
  if (n > 2) x = HAI_ISA(larger)(x, s##2);
#define HAI_SCAN_HIT(r)                                                                        \
  HAI_SCAN_HIGH(a0, c##r)                                                                      \
  if (HAI_ISA(positive)(a0)) {                                                                 \
    most[r] = HAI_WAY(finish)(queries, key + r * dim, c##r##0, c##r##1, c##r##2, a0, rest, n); \
    hits |= HAI_AS(unsigned, most[r] > 0) << r;                                                \
  }

/* Estimates of HAI_N_ROWS keys. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(tell)(const hai_scan_queries *queries, const uint8_t *key, float u,
                                              const float *mean, float *score, const int n) {
  static const int32_t start[HAI_N_ROWS] = {0};
  const int32_t *threshold = queries->lift + HAI_LANES + queries->begin;
  HAI_VECTOR unit = HAI_ISA(set1)(u);
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_words; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_OUT)
}

/* The sums of a key that the first words let pass: adds those of the other words, less `rest`. Returns the
   largest, or where that is less, the largest of before, whose lanes' is `first`; 0 where none is above 0. */
HAI_SCAN_TARGET HAI_INLINE int32_t HAI_WAY(finish)(const hai_scan_queries *queries, const uint8_t *key,
                                                   HAI_INTS c0, HAI_INTS c1, HAI_INTS c2, HAI_INTS first,
                                                   const int32_t *rest, const int n) {
  const int32_t *query = queries->code + queries->begin;
  int32_t most, before;
  HAI_INTS a0, a1, a2, b0;
  int w;
  HAI_SCAN_LOAD(a, rest)
  c0 = HAI_ISA(minus)(c0, a0);
  if (n > 1) c1 = HAI_ISA(minus)(c1, a1);
  if (n > 2) c2 = HAI_ISA(minus)(c2, a2);
  for (w = queries->n_first; w < queries->n_words; w++) {
    hai_index at = queries->word[w];
    HAI_SCAN_LOAD(a, query + at * HAI_LANES)
    HAI_SCAN_DOTS(c, key + 4 * at)
  }
  HAI_SCAN_HIGH(a0, c)
  if (!HAI_ISA(positive)(a0)) return 0;
  most = HAI_ISA(top)(a0);
  before = HAI_ISA(top)(first);
  return most < before ? most : before;
}

/* Bit r: key r of HAI_N_ROWS is a hit. most[r], where it is: how far above 0 its sum is. */
HAI_SCAN_TARGET HAI_INLINE unsigned HAI_WAY(look)(const hai_scan_queries *queries, const uint8_t *key,
                                                  const int32_t *start, const int32_t *threshold,
                                                  const int32_t *rest, int32_t *most, const int n) {
  unsigned hits = 0;
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_first; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_HIT)
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(estimate)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int first, float *score) {
  const float *mean = block->mean + queries->begin;
  int n = (queries->end - queries->begin) / HAI_WIDTH, j;
  score += queries->begin;
  for (j = first; j < first + HAI_PILOT; j += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 3);
    else if (n == 2)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 2);
    else
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 1);
  }
}

/* x cut off at -most and most, as an integer; NaN becomes -most. */
HAI_SCAN_TARGET HAI_INLINE HAI_INTS HAI_WAY(cut)(HAI_VECTOR x, float most) {
  x = HAI_ISA(max)(x, HAI_ISA(set1)(-most));
  return HAI_ISA(truncate)(HAI_ISA(min)(x, HAI_ISA(set1)(most)));
}

HAI_SCAN_TARGET static uint64_t HAI_WAY(hits)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int32_t *most) {
  int32_t draw[HAI_CHUNK], start[HAI_CHUNK], threshold[HAI_LANES] = {0}, rest[HAI_LANES] = {0};
  HAI_VECTOR inverse = HAI_ISA(set1)(1.0f / block->unit);
  HAI_INTS margin = HAI_ISA(ints1)(block->margin);
  uint64_t hits = 0, bits;
  int begin = queries->begin, n = (queries->end - begin) / HAI_WIDTH, i, j;
  for (i = begin; i < queries->end; i += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(queries->level + i), HAI_ISA(load)(block->mean + i));
    HAI_INTS level = HAI_WAY(cut)(HAI_ISA(mul)(x, inverse), HAI_MOST_LEVEL);
    HAI_INTS lift = HAI_ISA(ints)(queries->lift + i), all = HAI_ISA(ints)(queries->lift + HAI_LANES + i);
    HAI_ISA(put)(threshold + i - begin, HAI_ISA(plus)(level, lift));
    HAI_ISA(put)(rest + i - begin, HAI_ISA(plus)(HAI_ISA(minus)(all, lift), margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH) {
    HAI_INTS x = HAI_WAY(cut)(HAI_ISA(mul)(HAI_ISA(load)(block->draw + j), inverse), HAI_MOST_DRAW);
    HAI_ISA(put)(draw + j, x);
    HAI_ISA(put)(start + j, HAI_ISA(plus)(x, margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_N_ROWS) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 3);
    else if (n == 2)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 2);
    else
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 1);
    hits |= bits << j;
  }
  for (bits = hits; bits; bits &= bits - 1) {
    j = hai_lowest_bit(bits);
    most[j] -= draw[j];
  }
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(largest)(const float *query, hai_index dim, int32_t *bits) {
  hai_index t;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS x = HAI_ISA(ints1)(0);
    for (t = 0; t < dim; t++) x = HAI_ISA(larger)(x, HAI_ISA(size)(HAI_ISA(load)(query + t * HAI_LANES + i)));
    HAI_ISA(put)(bits + i, x);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(quantise)(const float *query, hai_index dim, float inverse,
                                              int32_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t, y;
  int i;
  for (t = 0; t < dim; t += 4, code += HAI_LANES)
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS word = HAI_ISA(ints1)(0), x;
      for (y = t + 3; y >= t; y--) {
        x = half;
        if (y < dim) {
          HAI_VECTOR product = HAI_ISA(mul)(HAI_ISA(load)(query + y * HAI_LANES + i), f);
          x = HAI_ISA(plus)(HAI_WAY(cut)(product, HAI_CODE_MOST), half);
        }
        word = HAI_ISA(join)(word, x);
      }
      HAI_ISA(put)(code + i, HAI_ISA(flip)(word));
    }
}

HAI_SCAN_TARGET static void HAI_WAY(forces)(const hai_scan_queries *queries, int32_t *all, int32_t *most) {
  HAI_INTS none = HAI_ISA(ints1)(0);
  int32_t part[HAI_WIDTH];
  int i, w;
  for (w = 0; w < queries->n_words; w++) {
    HAI_INTS sum = none, largest = none;
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS x = HAI_ISA(sizes)(HAI_ISA(ints)(queries->code + w * HAI_LANES + i));
      HAI_INTS squares = HAI_SCAN_DOT(x, x, none);
      sum = HAI_ISA(plus)(sum, squares);
      largest = HAI_ISA(larger)(largest, squares);
    }
    HAI_ISA(put)(part, sum);
    for (i = 0, all[w] = 0; i < HAI_WIDTH; i++) all[w] += part[i];
    most[w] = HAI_ISA(top)(largest);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(lift)(const hai_scan_queries *queries) {
  HAI_INTS raised = HAI_ISA(ints1)(HAI_SCAN_LIFT);
  int i, w;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS sum = HAI_ISA(ints1)(0), first = sum;
    for (w = 0; w < queries->n_words; w++) {
      sum = HAI_SCAN_DOT(raised, HAI_ISA(ints)(queries->code + queries->word[w] * HAI_LANES + i), sum);
      if (w == queries->n_first - 1) first = sum;
    }
    HAI_ISA(put)(queries->lift + i, first);
    HAI_ISA(put)(queries->lift + HAI_LANES + i, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(collect)(const float *score, int begin, int end, float *high, float *sum,
                                             float *group) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(high + i), most = before, shift, factor, here = HAI_ISA(zero)();
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      most = HAI_ISA(max)(HAI_ISA(load)(score + j + i), most);
    shift = HAI_ISA(or_zero)(most);
    factor = HAI_ISA(exp)(HAI_ISA(sub)(before, shift));
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      here = HAI_ISA(add)(here, HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(score + j + i), shift)));
    HAI_ISA(store)(high + i, most);
    HAI_ISA(store)(sum + i, HAI_ISA(fma)(HAI_ISA(load)(sum + i), factor, here));
    HAI_ISA(store)(group + i, HAI_ISA(max)(HAI_ISA(mul)(HAI_ISA(load)(group + i), factor), here));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(missing)(const float *log_weight, int n, float *missing) {
  int j;
  for (j = 0; j < n; j += HAI_WIDTH) {
    HAI_VECTOR kept = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(zero)(), HAI_ISA(load)(log_weight + j)));
    HAI_ISA(store)(missing + j, HAI_ISA(sub)(HAI_ISA(set1)(1.0f), kept));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(spread)(const float *weight, int n_keys, const float *missing,
                                            const float *distance, const float *factor, int begin, int end,
                                            float *scatter, float *squares) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), a, b, w;
    f = HAI_ISA(mul)(f, f);
    a = HAI_ISA(mul)(HAI_ISA(load)(scatter + i), f);
    b = HAI_ISA(mul)(HAI_ISA(load)(squares + i), f);
    for (j = 0; j < n_keys; j++) {
      w = HAI_ISA(load)(weight + j * HAI_LANES + i);
      w = HAI_ISA(mul)(HAI_ISA(mul)(w, w), HAI_ISA(set1)(missing[j]));
      a = HAI_ISA(fma)(w, HAI_ISA(set1)(distance[j]), a);
      b = HAI_ISA(add)(b, w);
    }
    HAI_ISA(store)(scatter + i, a);
    HAI_ISA(store)(squares + i, b);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(distances)(const float *o, hai_index dim, const float *l,
                                               const float *centre, int begin, int end, float *norm,
                                               float *apart) {
  hai_index t;
  int i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR inverse = HAI_ISA(div)(HAI_ISA(set1)(1.0f), HAI_ISA(load)(l + i)), a = HAI_ISA(zero)(), b = a;
    for (t = 0; t < dim; t++) {
      HAI_VECTOR x = HAI_ISA(mul)(HAI_ISA(load)(o + t * HAI_LANES + i), inverse);
      HAI_VECTOR from = HAI_ISA(sub)(x, HAI_ISA(set1)(centre[t]));
      a = HAI_ISA(fma)(x, x, a);
      b = HAI_ISA(fma)(from, from, b);
    }
    HAI_ISA(store)(norm + i, a);
    HAI_ISA(store)(apart + i, b);
  }
}

/* ---- The sketch: coordinates in the lanes ---- */

HAI_SCAN_TARGET static void HAI_WAY(mean)(const float *const *row, hai_index dim, float *mean) {
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (j = 0; j < HAI_CHUNK; j++) sum = HAI_ISA(add)(sum, HAI_ISA(load)(row[j] + t));
    HAI_ISA(store)(mean + t, HAI_ISA(mul)(sum, HAI_ISA(set1)(1.0f / HAI_CHUNK)));
  }
  hai_scan_mean_plain(row, t, dim, mean);
}

HAI_SCAN_TARGET static int32_t HAI_WAY(reach)(const float *const *row, hai_index dim, const float *mean) {
  HAI_INTS most = HAI_ISA(ints1)(0);
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR m = HAI_ISA(load)(mean + t);
    for (j = 0; j < HAI_CHUNK; j++)
      most = HAI_ISA(larger)(most, HAI_ISA(size)(HAI_ISA(sub)(HAI_ISA(load)(row[j] + t), m)));
  }
  return hai_scan_reach_plain(row, t, dim, mean, HAI_ISA(top)(most));
}

HAI_SCAN_TARGET static void HAI_WAY(encode)(const float *row, hai_index dim, const float *mean, float inverse,
                                            uint8_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(mean + t));
    HAI_INTS x = HAI_ISA(plus)(HAI_WAY(cut)(HAI_ISA(mul)(y, f), HAI_KEY_MOST), half);
    HAI_ISA(bytes)(code + t, HAI_ISA(join)(HAI_ISA(ints1)(0), x));
  }
  hai_scan_encode_plain(row, t, dim, mean, inverse, code);
}

HAI_SCAN_TARGET static void HAI_WAY(norms)(const uint8_t *code, int n_words, int32_t *norm) {
  int32_t words[HAI_WIDTH];
  int w = 0, j;
  for (; w + HAI_WIDTH <= n_words; w += HAI_WIDTH) {
    HAI_INTS none = HAI_ISA(ints1)(0), most = none;
    for (j = 0; j < HAI_CHUNK; j++) {
      HAI_INTS x;
      HYPERATTN_MEMCPY(words, code + 4 * (j * n_words + w), sizeof words);
      x = HAI_ISA(sizes)(HAI_ISA(flip)(HAI_ISA(ints)(words)));
      most = HAI_ISA(larger)(most, HAI_SCAN_DOT(x, x, none));
    }
    HAI_ISA(put)(norm + w, most);
  }
  hai_scan_norms_plain(code, w, n_words, norm);
}

HAI_SCAN_TARGET static float HAI_WAY(apart)(const float *row, hai_index dim, const float *centre) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(centre + t));
    sum = HAI_ISA(fma)(x, x, sum);
  }
  return HAI_ISA(sum)(sum) + hai_scan_apart_plain(row, t, dim, centre);
}

#if HAI_INDEX
/* ======== src/kernel_index.h ======== */

/* Template: the scan of an index, for few queries, keys in the lanes. Included by kernel_scan.h for each of
   its ways, with its primitives and these:
     codes(p)              a register of the bytes at p
     low(x), down(x)       the lowest two bits of each byte; x with each two bits of a byte at the lower two's
                           place, whatever comes from the next byte above them
     nearest(x)            to integers, the nearest
     cut(p, x), wide(p)    stores each lane as 16 bits, cut to what these hold; loads such
     smaller(a, b), up(x)  of each lane; each lane times 2^20
   and these of 2 HAI_WIDTH integers of 16 bits, shorts(p) loads:
     shorts1(x)            x in all lanes
     less(a, b), more(a, b), most_short(a, b)   a - b, cut to 16 bits; a + b; the larger of each lane
     bits(u, v)            the bits of floats, of two registers, over 2^20
     over(a, b)            bit i: lane i of a is above that of b
   Codes of an index are 0 .. 127, the same as signed and as unsigned bytes. */

#define HAI_GUESS_MOST (HAI_N_ROWS / 2) /* queries whose sums fit the registers: 2 or 4 */
#define HAI_GUESS_LOAD(r)                          \
  y##r = HAI_ISA(codes)(code + 4 * r * HAI_WIDTH); \
  HAI_PREFETCH(HAI_REINTERPRET(const char *, code) + ahead + 4 * r * HAI_WIDTH);
#define HAI_GUESS_SUMS(r) HAI_INTS c0##r = HAI_ISA(ints1)(0), c1##r = c0##r, c2##r = c0##r, c3##r = c0##r;
#define HAI_GUESS_DOT(i, r) \
  if (n > i) c##i##r = HAI_SCAN_DOT(x, w##i, c##i##r);
#define HAI_GUESS_ADD(r)  \
  x = HAI_ISA(low)(y##r); \
  HAI_GUESS_DOT(0, r) HAI_GUESS_DOT(1, r) HAI_GUESS_DOT(2, r) HAI_GUESS_DOT(3, r) y##r = HAI_ISA(down)(y##r);
#define HAI_GUESS_SUMS_OF(i) c##i##0, c##i##1, c##i##2, c##i##3
#define HAI_GUESS_OUT(i)        \
  if (n > i) HAI_WAY(guess_out) \
  (query + i, block, base[i], f0, f1, f2, f3, HAI_GUESS_SUMS_OF(i), score[i] + j, weights + i);
#define HAI_GUESS_NORM(r) f##r = HAI_ISA(int8)(block->norm + j + r * HAI_WIDTH);
#define HAI_GUESS_SCORE(r)                                                            \
  x = HAI_ISA(fma)(HAI_ISA(floats)(c##r), HAI_ISA(set1)(slope), HAI_ISA(set1)(more)); \
  y = HAI_ISA(nearest)(HAI_ISA(fma)(f##r, x, HAI_ISA(set1)(base)));                   \
  HAI_ISA(cut)(score + r * HAI_WIDTH, y);                                             \
  sum = HAI_ISA(add)(sum, HAI_WAY(weight)(y, from));

/* The mean's part of all scores of a block. */
HAI_SCAN_TARGET HAI_INLINE float HAI_WAY(guess_mean)(const hai_index_query *query,
                                                     const hai_index_block *block) {
  HAI_INTS sum = HAI_ISA(ints1)(0);
  hai_index w;
  for (w = 0; w < query->n_words; w += HAI_WIDTH)
    sum = HAI_SCAN_DOT(HAI_ISA(codes)(block->mean + 4 * w), HAI_ISA(ints)(query->word + w), sum);
  return query->unit * block->mean_unit *
         (HAI_ISA(sum)(HAI_ISA(floats)(sum)) - HAI_AS(float, HAI_MEAN_RAISED * query->sum));
}

HAI_SCAN_TARGET HAI_INLINE HAI_VECTOR HAI_WAY(weight)(HAI_INTS score, HAI_INTS from) {
  HAI_INTS steps = HAI_ISA(larger)(HAI_ISA(minus)(score, from), HAI_ISA(ints1)(HAI_STEP_LEAST));
  return HAI_ISA(by_bits)(HAI_ISA(up)(HAI_ISA(smaller)(steps, HAI_ISA(ints1)(HAI_STEP_TOP))));
}

/* Scores of four registers of keys, of norms f and sums c. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_out)(const hai_index_query *query, const hai_index_block *block,
                                                   float base, HAI_VECTOR f0, HAI_VECTOR f1, HAI_VECTOR f2,
                                                   HAI_VECTOR f3, HAI_INTS c0, HAI_INTS c1, HAI_INTS c2,
                                                   HAI_INTS c3, int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1), y;
  float slope = 2.0f * query->unit * block->norm_unit;
  float more = (query->more - HAI_AS(float, 3 * query->sum) * query->unit) * block->norm_unit;
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane), x;
  HAI_ROWS_4(HAI_GUESS_SCORE)
  HAI_ISA(store)(weights->lane, sum);
}

/* Four registers of keys at a time, so that each has its sums, for up to HAI_GUESS_MOST queries, which share
   what is taken out of the codes. c<query><register> are the sums. Registers: AVX2 2 x 4 sums, 4 codes, one
   of them alone and two words, 15 of 16; AVX-512 and NEON 4 x 4, 4, 1 and 4, 25 of 32. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_some)(const hai_index_query *query, const int n,
                                                    const hai_index_block *block, int16_t *const *score,
                                                    hai_weights *weights) {
  const int32_t *word[4] = {query->word, query[n > 1].word, query[n > 2 ? 2 : 0].word,
                            query[n > 3 ? 3 : 0].word};
  hai_index g;
  size_t ahead = block->ahead;
  float base[4] = {0.0f};
  int j, s, i;
  for (i = 0; i < n; i++) base[i] = HAI_WAY(guess_mean)(query + i, block);
  for (j = 0; j < HAI_CHUNK; j += 4 * HAI_WIDTH) {
    const uint8_t *code = block->code + 4 * j;
    HAI_INTS w0, w1, w2, w3, x, y0, y1, y2, y3;
    HAI_VECTOR f0, f1, f2, f3;
    HAI_ROWS_4(HAI_GUESS_SUMS)
    for (g = 0; g < query->n_groups; g++, code += 4 * HAI_CHUNK) {
      HAI_ROWS_4(HAI_GUESS_LOAD)
      for (s = 0; s < 4; s++) {
        w0 = w1 = w2 = w3 = HAI_ISA(ints1)(word[0][4 * g + s]);
        if (n > 1) w1 = HAI_ISA(ints1)(word[1][4 * g + s]);
        if (n > 2) w2 = HAI_ISA(ints1)(word[2][4 * g + s]);
        if (n > 3) w3 = HAI_ISA(ints1)(word[3][4 * g + s]);
        HAI_ROWS_4(HAI_GUESS_ADD)
      }
    }
    HAI_ROWS_4(HAI_GUESS_NORM)
    HAI_ROWS_4(HAI_GUESS_OUT)
  }
}
HAI_SCAN_TARGET static void HAI_WAY(guess)(const hai_index_query *query, int n, const hai_index_block *block,
                                           int16_t *const *score, hai_weights *weights) {
  for (; n > HAI_GUESS_MOST; n -= HAI_GUESS_MOST) {
    HAI_WAY(guess_some)(query, HAI_GUESS_MOST, block, score, weights);
    query += HAI_GUESS_MOST;
    score += HAI_GUESS_MOST;
    weights += HAI_GUESS_MOST;
  }
  if (HAI_GUESS_MOST > 3 && n == 4)
    HAI_WAY(guess_some)(query, 4, block, score, weights);
  else if (HAI_GUESS_MOST > 2 && n == 3)
    HAI_WAY(guess_some)(query, 3, block, score, weights);
  else if (n == 2)
    HAI_WAY(guess_some)(query, 2, block, score, weights);
  else
    HAI_WAY(guess_some)(query, 1, block, score, weights);
}

HAI_SCAN_TARGET static void HAI_WAY(weigh)(const int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1);
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane);
  int j;
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH)
    sum = HAI_ISA(add)(sum, HAI_WAY(weight)(HAI_ISA(wide)(score + j), from));
  HAI_ISA(store)(weights->lane, sum);
}

HAI_SCAN_TARGET static void HAI_WAY(at_least)(const int16_t *score, hai_index n, int least, uint64_t *bits) {
  HAI_INTS below = HAI_ISA(shorts1)(least - 1);
  hai_index b;
  int j;
  for (b = 0; b < n; b++, score += HAI_CHUNK)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH)
      bits[b] |= HAI_AS(uint64_t, HAI_ISA(over)(HAI_ISA(shorts)(score + j), below)) << j;
}

/* Floats above 0 order as their bits do, and those of a weight are 0 behind its steps: a weight is above u
   if its steps are more than u's whole ones. */
HAI_SCAN_TARGET static void HAI_WAY(keep)(const hai_levels *levels, hai_index n, uint64_t *bits) {
  HAI_INTS least = HAI_ISA(shorts1)(-HAI_STEP_OF_1);
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++) {
    HAI_VECTOR from = HAI_ISA(set1)(levels->shift[b]);
    uint64_t kept = 0;
    for (j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH) {
      HAI_VECTOR u = HAI_ISA(add)(HAI_ISA(load)(levels->place + j), from),
                 v = HAI_ISA(add)(HAI_ISA(load)(levels->place + j + HAI_WIDTH), from);
      HAI_INTS most = least;
      u = HAI_ISA(sub)(u, HAI_ISA(floats)(HAI_ISA(truncate)(u)));
      v = HAI_ISA(sub)(v, HAI_ISA(floats)(HAI_ISA(truncate)(v)));
      for (i = 0; i < levels->n; i++) {
        HAI_INTS score = HAI_ISA(shorts)(levels->score[i] + b * HAI_CHUNK + j);
        most = HAI_ISA(most_short)(HAI_ISA(less)(score, HAI_ISA(shorts1)(levels->level[i])), most);
      }
      kept |= HAI_AS(uint64_t, HAI_ISA(over)(most, HAI_ISA(more)(HAI_ISA(bits)(u, v), least))) << j;
    }
    bits[b] = kept;
  }
}

/* The Hadamard matrix, x [n][HAI_TURNED], each row times `factor` at the end. */
HAI_SCAN_TARGET static void HAI_WAY(turn)(float *x, hai_index n, float factor) {
  HAI_VECTOR by = HAI_ISA(set1)(factor);
  hai_index half, t, u;
  for (half = HAI_TURNED; half < n * HAI_TURNED; half *= 2)
    for (t = 0; t < n * HAI_TURNED; t += 2 * half)
      for (u = t; u < t + half; u += HAI_WIDTH) {
        HAI_VECTOR a = HAI_ISA(load)(x + u), b = HAI_ISA(load)(x + u + half);
        HAI_ISA(store)(x + u, HAI_ISA(add)(a, b));
        HAI_ISA(store)(x + u + half, HAI_ISA(sub)(a, b));
      }
  for (t = 0; t < n * HAI_TURNED; t += HAI_WIDTH)
    HAI_ISA(store)(x + t, HAI_ISA(mul)(HAI_ISA(load)(x + t), by));
}

HAI_SCAN_TARGET static void HAI_WAY(differ)(float *x, hai_index dim, const float *mean, float *square) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (t = 0; t < dim; t++) {
      HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(x + t * HAI_TURNED + j), HAI_ISA(set1)(mean[t]));
      HAI_ISA(store)(x + t * HAI_TURNED + j, y);
      sum = HAI_ISA(fma)(y, y, sum);
    }
    HAI_ISA(store)(square + j, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(halve)(const float *x, hai_index dim, const float *inverse, uint8_t *code,
                                           float *product) {
  HAI_VECTOR two = HAI_ISA(set1)(2.0f), most = HAI_ISA(set1)(3.5f), three = HAI_ISA(set1)(-3.0f);
  int32_t words[HAI_WIDTH];
  hai_index begin;
  int j, at;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR by = HAI_ISA(load)(inverse + j), sum = HAI_ISA(zero)();
    for (begin = 0; begin < dim; begin += HAI_GROUP_DIM) {
      HAI_INTS word = HAI_ISA(ints1)(0), c;
      for (at = HAI_GROUP_DIM - 1; at >= 0; at--) {
        hai_index t = begin + at % 4 * 4 + at / 4;
        word = HAI_ISA(plus)(word, word);
        word = HAI_ISA(plus)(word, word);
        if (t < dim) {
          HAI_VECTOR y = HAI_ISA(load)(x + t * HAI_TURNED + j), z = HAI_ISA(fma)(y, by, two);
          c = HAI_ISA(truncate)(HAI_ISA(max)(HAI_ISA(min)(z, most), HAI_ISA(zero)()));
          word = HAI_ISA(plus)(word, c);
          sum = HAI_ISA(fma)(y, HAI_ISA(fma)(HAI_ISA(floats)(c), two, three), sum);
        }
      }
      HAI_ISA(put)(words, word);
      HYPERATTN_MEMCPY(code + 4 * (begin / HAI_GROUP_DIM * HAI_CHUNK + j), words, sizeof words);
    }
    HAI_ISA(store)(product + j, sum);
  }
}

#undef HAI_GUESS_MOST
#undef HAI_GUESS_LOAD
#undef HAI_GUESS_DOT
#undef HAI_GUESS_SUMS_OF
#undef HAI_GUESS_ADD
#undef HAI_GUESS_SUMS
#undef HAI_GUESS_NORM
#undef HAI_GUESS_SCORE
#undef HAI_GUESS_OUT

/* ======== src/kernel_scan.h, continued ======== */

#endif

static const hai_scan_kernel HAI_WAY(kernel) = {
    /* largest */ HAI_WAY(largest),
    /* quantise */ HAI_WAY(quantise),
    /* forces */ HAI_WAY(forces),
    /* lift */ HAI_WAY(lift),
    /* estimate */ HAI_WAY(estimate),
    /* collect */ HAI_WAY(collect),
    /* hits */ HAI_WAY(hits),
    /* missing */ HAI_WAY(missing),
    /* spread */ HAI_WAY(spread),
    /* distances */ HAI_WAY(distances),
    /* mean */ HAI_WAY(mean),
    /* reach */ HAI_WAY(reach),
    /* encode */ HAI_WAY(encode),
    /* norms */ HAI_WAY(norms),
    /* apart */ HAI_WAY(apart),
#if HAI_INDEX
    /* guess */ HAI_WAY(guess),
    /* weigh */ HAI_WAY(weigh),
    /* at_least */ HAI_WAY(at_least),
    /* keep */ HAI_WAY(keep),
    /* turn */ HAI_WAY(turn),
    /* differ */ HAI_WAY(differ),
    /* halve */ HAI_WAY(halve),
#endif
    /* cost */ HAI_SCAN_COST};

#undef HAI_SCAN_STARTS
#undef HAI_SCAN_LOAD
#undef HAI_SCAN_DOTS
#undef HAI_SCAN_ADD
#undef HAI_SCAN_SUMS
#undef HAI_SCAN_WORD
#undef HAI_SCAN_OUT
#undef HAI_SCAN_TELL
#undef HAI_SCAN_HIGH
#undef HAI_SCAN_HIT
#undef HAI_WAY
#undef HAI_SCAN_DOT
#undef HAI_SCAN_TARGET
#undef HAI_SCAN_LIFT
#undef HAI_SCAN_COST

/* ======== src/kernel_scan_avx2.h, continued ======== */

#undef HAI_ISA
#undef HAI_VECTOR
#undef HAI_INTS
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ROWS
#undef HAI_N_ROWS
#endif

/* ======== src/kernel_neon.h ======== */

/* NEON: registers of 4 lanes, tiles of 12. Products take 24 sums, 3 packed vectors and 1 broadcast element:
   28 of 32 registers. kernel_vector.h says what each primitive does. */

#if HAI_NEON
#define HAI_TARGET_neon
enum { HAI_WIDTH_neon = 4, HAI_LANES_neon = 12 };
#define hai_pack_rest_neon hai_pack_plain
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
HAI_V_neon hai_half_neon(const void *p) {
  return vcvt_f32_f16(vreinterpret_f16_s16(vdup_n_s16(hai_two_bytes(p))));
}
HAI_V_neon hai_int8_neon(const void *p) {
  int32_t four;
  HYPERATTN_MEMCPY(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
HAI_V_neon hai_max_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
HAI_V_neon hai_min_neon(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
HAI_V_neon hai_div_neon(float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }
HAI_INLINE uint32_t hai_hidden_neon(float32x4_t x) {
  static const uint32_t lane[4] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vceqq_f32(x, vdupq_n_f32(-hai_inf())), vld1q_u32(lane)));
}
HAI_V_neon hai_show_neon(float32x4_t x, uint64_t bits) {
  static const uint32_t lane[4] = {1, 2, 4, 8};
  return vbslq_f32(vtstq_u32(vdupq_n_u32(HAI_AS(uint32_t, bits)), vld1q_u32(lane)), x,
                   vdupq_n_f32(-hai_inf()));
}
HAI_V_neon hai_or_zero_neon(float32x4_t x) {
  return vbslq_f32(vceqq_f32(x, vdupq_n_f32(-hai_inf())), vdupq_n_f32(0.0f), x);
}
HAI_V_neon hai_known_neon(float32x4_t x) { return vbslq_f32(vceqq_f32(x, x), x, vdupq_n_f32(0.0f)); }
HAI_V_neon hai_move_neon(float32x4_t m, float32x4_t high) {
  uint32x4_t steps = vcltq_f32(high, vaddq_f32(m, vdupq_n_f32(HAI_LEAP)));
  uint32x4_t moves = vandq_u32(vcgtq_f32(high, m), steps);
  return vaddq_f32(high,
                   vreinterpretq_f32_u32(vandq_u32(moves, vreinterpretq_u32_f32(vdupq_n_f32(HAI_AHEAD)))));
}
HAI_INLINE int hai_differ_neon(float32x4_t a, float32x4_t b) { return vminvq_u32(vceqq_f32(a, b)) == 0; }
HAI_V_neon hai_keep_neon(float32x4_t x) {
  __asm__("" : "+w"(x));
  return x;
}
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
HAI_INLINE float hai_most_neon(float32x4_t x) { return vmaxvq_f32(x); }
HAI_INLINE void hai_sums4_neon(float *to, float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
  vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
}
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

#define HAI_ISA(name) hai_##name##_neon
#define HAI_TARGET HAI_TARGET_neon
#define HAI_VECTOR float32x4_t
#define HAI_WIDTH HAI_WIDTH_neon
#define HAI_LANES HAI_LANES_neon
#define HAI_ELEMENT float
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_LONG(X) HAI_ROWS_16(X)
#define HAI_N_LONG 16
#define HAI_FACTORED 0
#define HAI_STEP_REGISTERS 8
#define HAI_MOST_ROWS 2
#define HAI_MOST_QUERIES 8
/* ======== src/kernel_vector.h ======== */

/* Template: a whole kernel of float32, in plain C. Included once per ISA, behind that ISA's primitives, with
   the parameters of kernel_tile.h, which it undefines at its end. The primitives, x, a, b registers:
     zero(), set1(x), load(p), store(p, x), add, sub, mul, fma(a, b, c) = a b + c, sum(x) of all lanes
     dot(a, b, c)          what a product adds to c; each(p): the element at p in all lanes
     times(x, factor)      what packing multiplies by
     f16(p), bf16(p), int8(p)   a register of elements as floats; half(p): the float16 at p in all lanes
     max(a, b), min(a, b)  the larger, the smaller; b where either is NaN
     div(a, b); hidden(x)  bit i: lane i is -inf
     show(x, bits)         x in the lanes of `bits`, -inf elsewhere
     or_zero(x)            0 where x is -inf; known(x): 0 where x is NaN
     move(m, high)         the next reference of the lanes' sums (hai_kernel.softmax)
     differ(a, b)          whether any lane differs
     keep(x)               x, which the compiler may neither contract with what follows nor fold
     exp(x)                e^x for x <= 0, e^0 exactly 1, below 2^-126 exactly 0
     gather4(row, t), scatter4(x, row, t)   elements t .. t + 3 of rows 0, 4, 8, ..; transpose4: 4 x 4 */

/* ======== src/kernel_tile.h ======== */

/* Template: the products of a tile, in plain C. Included once per ISA, behind that ISA's primitives, with
   these parameters:
     HAI_ISA(name)   the name that a function or primitive has for this ISA: hai_<name>_<isa>
     HAI_TARGET      the function attribute that lets the compiler use its instructions
     HAI_VECTOR      its register, of HAI_WIDTH floats; a tile has HAI_LANES lanes, three registers
     HAI_ELEMENT     what a product reads: float, or two bfloat16 whose products are summed
     HAI_ROWS(X)     X(0) X(1) .. for the HAI_N_ROWS keys, or coordinates of values, multiplied at a time
     HAI_LONG(X)     the same for HAI_N_LONG coordinates where a tile has one register: its sums need to be
                     more to hide the latency of a multiply-add
     HAI_FACTORED    1 if a factor for each lane lies behind the packed queries
   A step of the inner loop loads up to three packed vectors a0 to a2, and for each row broadcasts one
   element b and does a multiply-add with each vector. The sums c<row><register> are named variables and not
   an array: gcc -O1 would store an array of them before the loop. The number of registers n is a constant
   where the inline functions are called, so that what belongs to absent registers is dropped. */

#define HAI_SUMS(r) HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0;
#define HAI_LOAD(p)                                 \
  a0 = HAI_ISA(load)(p);                            \
  a1 = n > 1 ? HAI_ISA(load)((p) + HAI_WIDTH) : a0; \
  a2 = n > 2 ? HAI_ISA(load)((p) + 2 * HAI_WIDTH) : a0;
#define HAI_ADD(r)                                   \
  c##r##0 = HAI_ISA(dot)(a0, b, c##r##0);            \
  if (n > 1) c##r##1 = HAI_ISA(dot)(a1, b, c##r##1); \
  if (n > 2) c##r##2 = HAI_ISA(dot)(a2, b, c##r##2);
#define HAI_STORE(r, p)                                \
  HAI_ISA(store)(p, c##r##0);                          \
  if (n > 1) HAI_ISA(store)((p) + HAI_WIDTH, c##r##1); \
  if (n > 2) HAI_ISA(store)((p) + 2 * HAI_WIDTH, c##r##2);

/* ---- Packing ---- */

/* Transposes 4 x 4 submatrices within parts of 128 bits: vector k of four holds rows k, k + 4, k + 8, ... */
HAI_TARGET static void HAI_ISA(pack)(const void *const *row, hai_index dim, float factor, float *packed) {
  HAI_VECTOR f = HAI_ISA(set1)(factor), x0, x1, x2, x3;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    hai_index t = 0, whole = hai_rows_present(row + i, HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(gather4)(row + i, t);
      x1 = HAI_ISA(gather4)(row + i + 1, t);
      x2 = HAI_ISA(gather4)(row + i + 2, t);
      x3 = HAI_ISA(gather4)(row + i + 3, t);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(store)(at, HAI_ISA(times)(x0, f));
      HAI_ISA(store)(at + HAI_LANES, HAI_ISA(times)(x1, f));
      HAI_ISA(store)(at + 2 * HAI_LANES, HAI_ISA(times)(x2, f));
      HAI_ISA(store)(at + 3 * HAI_LANES, HAI_ISA(times)(x3, f));
    }
    if (t < dim) HAI_ISA(pack_rest)(row, t, dim, factor, packed, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- Scores ---- */

#define HAI_KEY_ROW(r) const HAI_ELEMENT *k##r = HAI_AS(const HAI_ELEMENT *, key[r]);
#define HAI_KEY_ADD(r)         \
  b = HAI_ISA(each)(k##r + t); \
  HAI_ADD(r)
#define HAI_STEP        \
  HAI_LOAD(query)       \
  HAI_ROWS(HAI_KEY_ADD) \
  t++;                  \
  query += HAI_LANES;
#define HAI_TIMES(r)                              \
  c##r##0 = HAI_ISA(mul)(c##r##0, a0);            \
  if (n > 1) c##r##1 = HAI_ISA(mul)(c##r##1, a1); \
  if (n > 2) c##r##2 = HAI_ISA(mul)(c##r##2, a2);
#define HAI_SCORES_OUT(r) HAI_STORE(r, score + r * HAI_LANES)

/* score[r][i] = sum_t query[t][i] key_r[t], times the lane's factor where there is one. One register alone
   takes four steps in each iteration: its eight sums leave no time for the loop's own instructions. */
HAI_TARGET HAI_INLINE void HAI_ISA(score_registers)(const float *query, hai_index dim,
                                                    const void *const *key, float *score, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  hai_index t = 0, by_four = n == 1 ? dim - 3 : 0;
  HAI_ROWS(HAI_SUMS)
  HAI_ROWS(HAI_KEY_ROW)
  while (t < by_four) {
    HAI_STEP HAI_STEP HAI_STEP HAI_STEP
  }
  while (t < dim) {
    HAI_STEP
  }
  if (HAI_FACTORED) {
    HAI_LOAD(query)
    HAI_ROWS(HAI_TIMES)
  }
  HAI_ROWS(HAI_SCORES_OUT)
}

HAI_TARGET static void HAI_ISA(score_rows)(const float *query, hai_index dim, const void *const *key,
                                           float *score, int n) {
  if (n == 3)
    HAI_ISA(score_registers)(query, dim, key, score, 3);
  else if (n == 2)
    HAI_ISA(score_registers)(query, dim, key, score, 2);
  else
    HAI_ISA(score_registers)(query, dim, key, score, 1);
}

static void HAI_ISA(scores)(const float *query, hai_index dim, const void *const *key, int n_keys,
                            int begin, int end, float *score) {
  const void *row[HAI_N_ROWS];
  int j, r, n = (end - begin) / HAI_WIDTH;
  query += begin;
  score += begin;
  for (j = 0; j < n_keys; j += HAI_N_ROWS, key += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    if (n_keys - j < HAI_N_ROWS) { /* the first key stands for absent ones */
      for (r = 0; r < HAI_N_ROWS; r++) row[r] = key[r < n_keys - j ? r : 0];
      key = row;
    }
    HAI_ISA(score_rows)(query, dim, key, score, n);
  }
}

/* ---- Values ---- */

#define HAI_VALUE_ADD(r)    \
  b = HAI_ISA(each)(v + r); \
  HAI_ADD(r)
#define HAI_UPDATE(r, p)                                                              \
  c##r##0 = HAI_ISA(fma)(HAI_ISA(load)(p), a0, c##r##0);                              \
  if (n > 1) c##r##1 = HAI_ISA(fma)(HAI_ISA(load)((p) + HAI_WIDTH), a1, c##r##1);     \
  if (n > 2) c##r##2 = HAI_ISA(fma)(HAI_ISA(load)((p) + 2 * HAI_WIDTH), a2, c##r##2); \
  HAI_STORE(r, p)
#define HAI_VALUES_OUT(r) HAI_UPDATE(r, o + r * HAI_LANES)

#define HAI_EACH(X) HAI_ROWS(X)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_rows)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) HAI_LONG(X)
#define HAI_REGISTERS 1
#define HAI_THESE(name) HAI_ISA(name##_long)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) X(0)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_row)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */


static void HAI_ISA(values)(float *score, int n_keys, const void *const *value, hai_index dim,
                            const float *factor, int begin, int end, float *o) {
  hai_index t = 0;
  int n = (end - begin) / HAI_WIDTH;
  score += begin;
  factor += begin;
  o += begin;
  for (; n == 1 && t + HAI_N_LONG <= dim; t += HAI_N_LONG)
    HAI_ISA(value_long)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t + HAI_N_ROWS <= dim; t += HAI_N_ROWS)
    HAI_ISA(value_rows)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t < dim; t++) HAI_ISA(value_row)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
}

#undef HAI_SUMS
#undef HAI_LOAD
#undef HAI_ADD
#undef HAI_STORE
#undef HAI_KEY_ROW
#undef HAI_KEY_ADD
#undef HAI_STEP
#undef HAI_TIMES
#undef HAI_SCORES_OUT
#undef HAI_VALUE_ADD
#undef HAI_UPDATE
#undef HAI_VALUES_OUT

/* ======== src/kernel_vector.h, continued ======== */


/* row[i][t] = (packed[t][i] + 0) * factor[i], the way back of packing. */
HAI_TARGET static void HAI_ISA(unpack)(const float *packed, hai_index dim, const float *factor,
                                       float *const *row) {
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), zero = HAI_ISA(zero)(), x0, x1, x2, x3;
    hai_index t = 0;
    hai_index whole =
        hai_rows_present(HAI_REINTERPRET(const void *const *, row + i), HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      const float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at), zero), f);
      x1 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + HAI_LANES), zero), f);
      x2 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + 2 * HAI_LANES), zero), f);
      x3 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + 3 * HAI_LANES), zero), f);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(scatter4)(x0, row + i, t);
      HAI_ISA(scatter4)(x1, row + i + 1, t);
      HAI_ISA(scatter4)(x2, row + i + 2, t);
      HAI_ISA(scatter4)(x3, row + i + 3, t);
    }
    if (t < dim) hai_unpack_plain(packed, t, dim, factor, row, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- What a score becomes ---- */

/* x between -most and most; NaN stays. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(clamp)(HAI_VECTOR x, float most) {
  return HAI_ISA(max)(HAI_ISA(set1)(-most), HAI_ISA(min)(HAI_ISA(set1)(most), x));
}

/* As hai_capped. */
HAI_TARGET static void HAI_ISA(cap)(float *score, int n_keys, float softcap, int begin, int end) {
  HAI_VECTOR inverse = HAI_ISA(set1)(hai_inverse(softcap));
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR s = HAI_ISA(load)(score + i), u, p, q;
      u = HAI_ISA(clamp)(HAI_ISA(mul)(s, inverse), HAI_TANH_END);
      u = HAI_ISA(mul)(u, u);
      p = HAI_ISA(fma)(HAI_ISA(set1)(HAI_TANH_P4), u, HAI_ISA(set1)(HAI_TANH_P3));
      q = HAI_ISA(fma)(HAI_ISA(set1)(HAI_TANH_Q4), u, HAI_ISA(set1)(HAI_TANH_Q3));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P2));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(HAI_TANH_Q2));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P1));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(HAI_TANH_Q1));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P0));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(1.0f));
      HAI_ISA(store)(score + i, HAI_ISA(clamp)(HAI_ISA(mul)(s, HAI_ISA(div)(p, q)), softcap));
    }
}

HAI_TARGET static void HAI_ISA(hide)(const float *bias, int n_keys, int begin, int end, uint64_t *visible) {
  int i, j;
  for (j = 0; j < n_keys; j++, bias += HAI_LANES) {
    uint64_t hidden = 0;
    for (i = begin; i < end; i += HAI_WIDTH)
      hidden |= HAI_AS(uint64_t, HAI_ISA(hidden)(HAI_ISA(load)(bias + i))) << i;
    visible[j] &= ~hidden;
  }
}

HAI_TARGET static void HAI_ISA(add_bias)(float *score, int n_keys, const float *bias, const float *slope,
                                         int begin, int end) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES, bias += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH)
      HAI_ISA(store)
      (score + i, HAI_ISA(fma)(HAI_ISA(load)(slope + i), HAI_ISA(load)(bias + i), HAI_ISA(load)(score + i)));
}

/* ---- Softmax ---- */

/* The largest of m and of each lane's scores, for the lanes of one register: log-weights are added and hidden
   keys hidden first. Four maxima at a time hide one another's latency. */
#define HAI_SHOW(r)                                                        \
  s = HAI_ISA(load)(at + (r)*HAI_LANES);                                   \
  if (log_weight) s = HAI_ISA(add)(s, HAI_ISA(set1)(log_weight[j + (r)])); \
  if (visible) s = HAI_ISA(show)(s, visible[j + (r)] >> lane);             \
  HAI_ISA(store)(at + (r)*HAI_LANES, s);                                   \
  high##r = HAI_ISA(max)(s, high##r);
#define HAI_HIGH(r) high##r = HAI_ISA(max)(HAI_ISA(load)(at + (r)*HAI_LANES), high##r);
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(high)(float *at, int n_keys, const float *log_weight,
                                               const uint64_t *visible, int lane, HAI_VECTOR m) {
  HAI_VECTOR s, high0 = m, high1 = m, high2 = m, high3 = m;
  int j;
  for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES) {
    if (log_weight || visible) {
      HAI_SHOW(0) HAI_SHOW(1) HAI_SHOW(2) HAI_SHOW(3)
    } else {
      HAI_HIGH(0) HAI_HIGH(1) HAI_HIGH(2) HAI_HIGH(3)
    }
  }
  for (; j < n_keys; j++, at += HAI_LANES) {
    HAI_SHOW(0)
  }
  return HAI_ISA(max)(HAI_ISA(max)(high0, high1), HAI_ISA(max)(high2, high3));
}

/* Replaces the scores of one register's lanes by weights e^(score - shift); returns their sums. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(weigh)(float *at, int n_keys, HAI_VECTOR shift) {
  HAI_VECTOR s, t, even = HAI_ISA(zero)(), odd = even;
  int j;
  for (j = 0; j + 2 <= n_keys; j += 2, at += 2 * HAI_LANES) {
    s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
    t = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at + HAI_LANES), shift));
    HAI_ISA(store)(at, s);
    HAI_ISA(store)(at + HAI_LANES, t);
    even = HAI_ISA(add)(even, s);
    odd = HAI_ISA(add)(odd, t);
  }
  if (j < n_keys) {
    s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
    HAI_ISA(store)(at, s);
    even = HAI_ISA(add)(even, s);
  }
  return HAI_ISA(add)(even, odd);
}

/* What rounding took from next = a + b, as in hai_two_sum. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(lost)(HAI_VECTOR a, HAI_VECTOR b, HAI_VECTOR next) {
  HAI_VECTOR part = HAI_ISA(sub)(next, a);
  return HAI_ISA(add)(HAI_ISA(sub)(a, HAI_ISA(sub)(next, part)), HAI_ISA(sub)(b, part));
}

/* Exponentials need the largest score, so all registers look for theirs first. */
HAI_TARGET static int HAI_ISA(softmax)(float *score, int n_keys, const float *log_weight,
                                       const uint64_t *visible, int begin, int end, float *m, float *l,
                                       float *factor) {
  int moved = 0, i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(m + i);
    HAI_VECTOR after =
        HAI_ISA(move)(before, HAI_ISA(high)(score + i, n_keys, log_weight, visible, i, before));
    moved |= HAI_ISA(differ)(before, after);
    HAI_ISA(store)(factor + i, HAI_ISA(exp)(HAI_ISA(sub)(before, HAI_ISA(or_zero)(after))));
    HAI_ISA(store)(m + i, after);
  }
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(weigh)(score + i, n_keys, HAI_ISA(or_zero)(HAI_ISA(load)(m + i))), next;
    HAI_VECTOR f = HAI_ISA(load)(factor + i), before = HAI_ISA(keep)(HAI_ISA(mul)(HAI_ISA(load)(l + i), f));
    sum = HAI_ISA(fma)(HAI_ISA(load)(l + HAI_LANES + i), f, sum);
    next = HAI_ISA(add)(before, sum);
    HAI_ISA(store)(l + i, next);
    HAI_ISA(store)(l + HAI_LANES + i, HAI_ISA(lost)(before, sum, next));
  }
  return moved;
}

/* ---- Sums ---- */

HAI_TARGET static void HAI_ISA(scale)(float *x, hai_index rows, const float *factor, int begin, int end) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH)
      HAI_ISA(store)(x + t + i, HAI_ISA(mul)(HAI_ISA(load)(x + t + i), HAI_ISA(load)(factor + i)));
}

/* All three arrays are read before any is written: their rows may lie a multiple of 4096 bytes apart, and a
   load then waits for a store to the same place within a page. */
HAI_TARGET static void HAI_ISA(carry)(float *o, hai_index rows, int begin, int end, float *sum, float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR a = HAI_ISA(load)(sum + t + i), b = HAI_ISA(load)(o + t + i);
      HAI_VECTOR c = HAI_ISA(load)(lost + t + i), next = HAI_ISA(add)(a, b);
      HAI_ISA(store)(sum + t + i, next);
      HAI_ISA(store)(lost + t + i, HAI_ISA(add)(c, HAI_ISA(known)(HAI_ISA(lost)(a, b, next))));
      HAI_ISA(store)(o + t + i, HAI_ISA(zero)());
    }
}

HAI_TARGET static void HAI_ISA(gather)(float *o, hai_index rows, int begin, int end, const float *sum,
                                       const float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR rest = HAI_ISA(load)(o + t + i);
      if (lost) rest = HAI_ISA(add)(HAI_ISA(load)(lost + t + i), rest);
      HAI_ISA(store)(o + t + i, HAI_ISA(add)(HAI_ISA(load)(sum + t + i), rest));
    }
}

HAI_TARGET static void HAI_ISA(sum_lanes)(const float *score, int n_keys, int begin, int end, float *sum) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES) {
    HAI_VECTOR x = HAI_ISA(load)(score + begin);
    for (i = begin + HAI_WIDTH; i < end; i += HAI_WIDTH) x = HAI_ISA(add)(x, HAI_ISA(load)(score + i));
    sum[j] = HAI_ISA(sum)(x);
  }
}

HAI_TARGET static float HAI_ISA(square)(const float *row, hai_index dim) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH)
    sum = HAI_ISA(fma)(HAI_ISA(load)(row + t), HAI_ISA(load)(row + t), sum);
  return HAI_ISA(sum)(sum) + hai_square_scalar(row + t, dim - t);
}

HAI_TARGET static void HAI_ISA(add_row)(float *sum, const float *row, hai_index dim) {
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH)
    HAI_ISA(store)(sum + t, HAI_ISA(add)(HAI_ISA(load)(sum + t), HAI_ISA(load)(row + t)));
  for (; t < dim; t++) sum[t] += row[t];
}

/* ---- Widening ---- */

/* A register of elements at a time, a Q8_0 block at a time; returns how many are done. This is a function of
   its own that calls none: gcc leaves out vzeroupper before a call in tail position. */
HAI_TARGET static hai_index HAI_ISA(widen_most)(const char *row, hyperattn_dtype dtype, hai_index n,
                                                float *to) {
  hai_index t = 0, k;
  if (dtype == HYPERATTN_F16) {
    for (; t + HAI_WIDTH <= n; t += HAI_WIDTH) HAI_ISA(store)(to + t, HAI_ISA(f16)(row + 2 * t));
  } else if (dtype == HYPERATTN_BF16) {
    for (; t + HAI_WIDTH <= n; t += HAI_WIDTH) HAI_ISA(store)(to + t, HAI_ISA(bf16)(row + 2 * t));
  } else {
    for (; t + HAI_Q8_0_ELEMENTS <= n; t += HAI_Q8_0_ELEMENTS, row += HAI_Q8_0_BYTES) {
      HAI_VECTOR d = HAI_ISA(half)(row);
      for (k = 0; k < HAI_Q8_0_ELEMENTS; k += HAI_WIDTH)
        HAI_ISA(store)(to + t + k, HAI_ISA(mul)(d, HAI_ISA(int8)(row + 2 + k)));
    }
  }
  return t;
}

static void HAI_ISA(widen)(const void *row, hyperattn_dtype dtype, hai_index n, float *to) {
  hai_index t = HAI_ISA(widen_most)(HAI_AS(const char *, row), dtype, n, to);
  if (t < n) hai_widen_plain(row, dtype, t, n, to);
}

/* ======== src/kernel_few.h ======== */

/* Template: few queries, by an ISA's primitives. Coordinates lie in the lanes, and queries are rows [n][dim].
   Included by kernel_vector.h, with its parameters and primitives, and these:
     HAI_STEP_REGISTERS      registers of a step: 32 coordinates, a Q8_0 block
     HAI_MOST_ROWS           queries that are taken at once, 2 or 4
     HAI_MOST_QUERIES        up to how many queries of a head tiles are slower (docs/decode.md)
     most(x)                 the largest of all lanes, none of which is NaN
     sums4(to, a, b, c, d)   to[0 .. 3] = the sums of all lanes of each register
   Rows of keys and values are read as they lie. Sums are named variables for the reason that kernel_tile.h
   gives; their order does not depend on how many rows are taken at once. */

enum { HAI_ISA(row_step) = HAI_STEP_REGISTERS * HAI_WIDTH };
typedef char HAI_ISA(step_is_a_block)[HAI_ISA(row_step) == HAI_Q8_0_ELEMENTS ? 1 : -1];

/* The scale of the step at `at`, for Q8_0. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(row_scale)(const hyperattn_dtype dtype, const char *at) {
  return dtype == HYPERATTN_Q8_0 ? HAI_ISA(half)(at) : HAI_ISA(zero)();
}
/* Starts to load a step's bytes. */
HAI_TARGET HAI_INLINE void HAI_ISA(row_ahead)(const hyperattn_dtype dtype, const char *at) {
  HAI_PREFETCH(at);
  if (hai_is_f32(dtype)) HAI_PREFETCH(at + HAI_ALIGN);
}
/* Register k of the step at `at`. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(row_register)(const hyperattn_dtype dtype, const char *at,
                                                       const int k, HAI_VECTOR scale) {
  const int t = k * HAI_WIDTH;
  if (hai_is_f32(dtype)) return HAI_ISA(load)(HAI_AS(const float *, HAI_AS(const void *, at)) + t);
  if (dtype == HYPERATTN_F16) return HAI_ISA(f16)(at + 2 * t);
  if (dtype == HYPERATTN_BF16) return HAI_ISA(bf16)(at + 2 * t);
  return HAI_ISA(mul)(scale, HAI_ISA(int8)(at + 2 + t));
}

#if HAI_STEP_REGISTERS == 2
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1)
#elif HAI_STEP_REGISTERS == 4
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3)
#else
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3) X(r, 4) X(r, 5) X(r, 6) X(r, 7)
#endif

/* Every dtype that is read, in the order of hyperattn_dtype, by each number of queries. */
#if HAI_MOST_ROWS == 4
#define HAI_EACH_COUNT(X, dtype) X(dtype, 1) X(dtype, 2) X(dtype, 3) X(dtype, 4)
#else
#define HAI_EACH_COUNT(X, dtype) X(dtype, 1) X(dtype, 2)
#endif
#if HAI_HALVES
#define HAI_EACH_FEW(X) \
  HAI_EACH_COUNT(X, F32) HAI_EACH_COUNT(X, F16) HAI_EACH_COUNT(X, BF16) HAI_EACH_COUNT(X, Q8_0)
#else
#define HAI_EACH_FEW(X) HAI_EACH_COUNT(X, F32)
#endif

/* ---- Scores: score[i][j] = sum_t query[i][t] key[j][t] ---- */

#define HAI_ROW_SUMS(r) \
  HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0;
#define HAI_ROW_ADD(r, i, k) \
  if (n > i) c##r##i = HAI_ISA(fma)(x, HAI_ISA(load)(query + i * dim + (k)*HAI_WIDTH), c##r##i);
#define HAI_ROW_TIMES(r, k)                       \
  x = HAI_ISA(row_register)(dtype, at, k, scale); \
  HAI_ROW_ADD(r, 0, k)                            \
  HAI_ROW_ADD(r, 1, k)                            \
  HAI_ROW_ADD(r, 2, k)                            \
  HAI_ROW_ADD(r, 3, k)
#define HAI_ROW_KEY(r)                         \
  at = key[r] + begin;                         \
  HAI_ISA(row_ahead)(dtype, ahead[r] + begin); \
  scale = HAI_ISA(row_scale)(dtype, at);       \
  HAI_EACH_OF_STEP(HAI_ROW_TIMES, r)
#define HAI_ROW_OUT(i) \
  if (n > i) HAI_ISA(sums4)(score + i * HAI_CHUNK, c0##i, c1##i, c2##i, c3##i);

/* n queries meet 4 keys at once: a register of a key is loaded once for all queries, one of a query once for
   all keys. More keys, for fewer queries, would be rows in more places, which processors foresee less well.
   c<key><query> are the sums. Registers: AVX-512 4 x 4 sums, x and scale, 18 of 32; AVX2 and NEON 4 x 2 and
   these, 10. */
HAI_TARGET HAI_INLINE void HAI_ISA(some_scores)(const hyperattn_dtype dtype, const int n, hai_index dim,
                                                const char *const *key, const char *const *ahead,
                                                const float *query, float *score) {
  HAI_VECTOR x, scale;
  const char *at;
  hai_index begin = 0, t;
  HAI_ROWS_4(HAI_ROW_SUMS)
  for (t = 0; t < dim; t += HAI_ISA(row_step)) {
    HAI_ROWS_4(HAI_ROW_KEY)
    begin += hai_offset(dtype, HAI_ISA(row_step));
    query += HAI_ISA(row_step);
  }
  HAI_ROW_OUT(0)
  HAI_ROW_OUT(1)
  HAI_ROW_OUT(2)
  HAI_ROW_OUT(3)
}

/* All keys of a chunk; a list of rows has HAI_CHUNK entries that can be read. */
HAI_TARGET HAI_INLINE void HAI_ISA(few_scores_of)(const hyperattn_dtype dtype, const int n,
                                                  const hai_few_rows *keys, const float *query,
                                                  float *score) {
  int j;
  for (j = 0; j < keys->n; j += 4)
    HAI_ISA(some_scores)(dtype, n, keys->dim, keys->row + j, keys->ahead + j, query, score + j);
}

/* A function for each dtype and number of queries: unoptimised, one frame would hold the registers of all. */
#define HAI_SCORES_NAME(dtype, n) HAI_ISA(few_scores_##dtype##_##n),
#define HAI_SCORES_OF(dtype, n)                                                                   \
  HAI_TARGET HAI_APART void HAI_ISA(few_scores_##dtype##_##n)(const hai_few_rows *keys,           \
                                                              const float *query, float *score) { \
    HAI_ISA(few_scores_of)(HYPERATTN_##dtype, n, keys, query, score);                             \
  }
HAI_EACH_FEW(HAI_SCORES_OF)
static void HAI_ISA(few_scores)(const hai_few_rows *keys, const float *query, int n, float *score) {
  static void (*const scores[])(const hai_few_rows *, const float *,
                                float *) = {HAI_EACH_FEW(HAI_SCORES_NAME)};
  scores[HAI_AS(int, keys->dtype) * HAI_MOST_ROWS + n - 1](keys, query, score);
}

/* ---- Softmax ---- */

/* Exponentials need the largest score, so all rows look for theirs first. Where m stays, factor is exactly
   1. */
HAI_TARGET static void HAI_ISA(few_softmax)(float *score, int n, int n_keys, const float *log_weight,
                                            const uint64_t *visible, float *m, float *l, float *factor) {
  int i, j;
  for (i = 0; i < n; i++) {
    HAI_VECTOR high = HAI_ISA(set1)(m[i]);
    float before = m[i];
    for (j = 0; j < n_keys; j += HAI_WIDTH) {
      float *at = score + i * HAI_CHUNK + j;
      HAI_VECTOR s = HAI_ISA(load)(at);
      if (log_weight) s = HAI_ISA(add)(s, HAI_ISA(load)(log_weight + j));
      s = HAI_ISA(show)(s, visible[i] >> j);
      HAI_ISA(store)(at, s);
      high = HAI_ISA(max)(s, high);
    }
    m[i] = hai_moved(before, HAI_ISA(most)(high));
    factor[i] = m[i] == before ? 1.0f : hai_exp(before - hai_shift(m[i]));
  }
  for (i = 0; i < n; i++) {
    HAI_VECTOR shift = HAI_ISA(set1)(hai_shift(m[i])), sum = HAI_ISA(zero)();
    for (j = 0; j < n_keys; j += HAI_WIDTH) {
      float *at = score + i * HAI_CHUNK + j;
      HAI_VECTOR s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
      HAI_ISA(store)(at, s);
      sum = HAI_ISA(add)(sum, s);
    }
    l[i] = l[i] * factor[i] + HAI_ISA(sum)(sum);
  }
}

/* ---- Values: o[i][t] = o[i][t] factor[i] + sum_j weight[i][j] value[j][t] ---- */

#define HAI_VALUE_SUM(k) HAI_VECTOR c0##k = HAI_ISA(zero)(), c1##k = c0##k, c2##k = c0##k, c3##k = c0##k;
#define HAI_VALUE_READ(k)                                                             \
  at = value + (k) / HAI_STEP_REGISTERS * hai_offset(dtype, HAI_ISA(row_step));       \
  if ((k) % HAI_STEP_REGISTERS == 0) HAI_ISA(row_ahead)(dtype, ahead + (at - value)); \
  if ((k) % HAI_STEP_REGISTERS == 0) scale = HAI_ISA(row_scale)(dtype, at);           \
  x = HAI_ISA(row_register)(dtype, at, (k) % HAI_STEP_REGISTERS, scale);
#define HAI_VALUE_TIMES(i, k) \
  if (n > i) c##i##k = HAI_ISA(fma)(x, w##i, c##i##k);
#define HAI_VALUE_ADD(k)                                                                    \
  if (registers > k) {                                                                      \
    HAI_VALUE_READ(k)                                                                       \
    HAI_VALUE_TIMES(0, k) HAI_VALUE_TIMES(1, k) HAI_VALUE_TIMES(2, k) HAI_VALUE_TIMES(3, k) \
  }
#define HAI_VALUE_STORE(i, k) \
  if (n > i && registers > k) HAI_ISA(row_add)(o + i * dim + (k)*HAI_WIDTH, f##i, c##i##k);
#define HAI_VALUE_OUT(k) \
  HAI_VALUE_STORE(0, k)  \
  HAI_VALUE_STORE(1, k)  \
  HAI_VALUE_STORE(2, k)  \
  HAI_VALUE_STORE(3, k)
#define HAI_VALUE_WEIGHT(i) (n > i ? HAI_ISA(set1)(weight[i * HAI_CHUNK + j]) : HAI_ISA(zero)())
#define HAI_VALUE_FACTOR(i) (n > i ? HAI_ISA(set1)(factor[i]) : HAI_ISA(zero)())

/* o = o * factor + sum, a register of it. */
HAI_TARGET HAI_INLINE void HAI_ISA(row_add)(float *o, HAI_VECTOR factor, HAI_VECTOR sum) {
  HAI_ISA(store)(o, HAI_ISA(fma)(HAI_ISA(load)(o), factor, sum));
}

/* So many registers of the outputs of n rows, from the coordinate `begin` bytes into each value. */
HAI_TARGET HAI_INLINE void HAI_ISA(some_values)(const hyperattn_dtype dtype, const int n,
                                                const int registers, const hai_few_rows *values,
                                                hai_index begin, const float *weight, const float *factor,
                                                float *o) {
  HAI_VECTOR x, scale = HAI_ISA(zero)(), w0, w1, w2, w3;
  HAI_VECTOR f0 = HAI_VALUE_FACTOR(0), f1 = HAI_VALUE_FACTOR(1), f2 = HAI_VALUE_FACTOR(2),
             f3 = HAI_VALUE_FACTOR(3);
  const char *at, *value, *ahead;
  hai_index dim = values->dim;
  int j;
  HAI_ROWS_8(HAI_VALUE_SUM)
  for (j = 0; j < values->n; j++) {
    value = values->row[j] + begin;
    ahead = values->ahead[j] + begin;
    w0 = HAI_VALUE_WEIGHT(0);
    w1 = HAI_VALUE_WEIGHT(1);
    w2 = HAI_VALUE_WEIGHT(2);
    w3 = HAI_VALUE_WEIGHT(3);
    HAI_ROWS_8(HAI_VALUE_ADD)
  }
  HAI_ROWS_8(HAI_VALUE_OUT)
}

/* As many registers at a time as there are sums for, whole steps: c<query><register>. Registers: AVX-512 4 x
   4 sums, 4 weights, x and scale, 22 of 32; AVX2 2 x 4, 12 of 16; NEON 2 x 8, 20 of 32. */
HAI_TARGET HAI_INLINE void HAI_ISA(few_values_of)(const hyperattn_dtype dtype, const int n,
                                                  const hai_few_rows *values, const float *weight,
                                                  const float *factor, float *o) {
  const int most = n == 1 || (n == 2 && HAI_N_ROWS == 8) ? 8 : 4;
  hai_index t = 0, done;
  for (; t < values->dim; t += done, o += done) {
    hai_index left = (values->dim - t) / HAI_WIDTH, begin = hai_offset(dtype, t);
    if (most == 8 && left >= 8) {
      HAI_ISA(some_values)(dtype, n, 8, values, begin, weight, factor, o);
      done = 8 * HAI_WIDTH;
    } else if (HAI_STEP_REGISTERS <= 4 && left >= 4) {
      HAI_ISA(some_values)(dtype, n, 4, values, begin, weight, factor, o);
      done = 4 * HAI_WIDTH;
    } else {
      HAI_ISA(some_values)(dtype, n, HAI_STEP_REGISTERS, values, begin, weight, factor, o);
      done = HAI_ISA(row_step);
    }
  }
}

#define HAI_VALUES_NAME(dtype, n) HAI_ISA(few_values_##dtype##_##n),
#define HAI_VALUES_OF(dtype, n)                                                         \
  HAI_TARGET HAI_APART void HAI_ISA(few_values_##dtype##_##n)(                          \
      const hai_few_rows *values, const float *weight, const float *factor, float *o) { \
    HAI_ISA(few_values_of)(HYPERATTN_##dtype, n, values, weight, factor, o);            \
  }
HAI_EACH_FEW(HAI_VALUES_OF)
static void HAI_ISA(few_values)(const hai_few_rows *values, const float *weight, const float *factor, int n,
                                float *o) {
  static void (*const add[])(const hai_few_rows *, const float *, const float *,
                             float *) = {HAI_EACH_FEW(HAI_VALUES_NAME)};
  add[HAI_AS(int, values->dtype) * HAI_MOST_ROWS + n - 1](values, weight, factor, o);
}

static const hai_few_kernel HAI_ISA(few) = {
    /* scores */ HAI_ISA(few_scores),
    /* softmax */ HAI_ISA(few_softmax),
    /* values */ HAI_ISA(few_values),
    /* most */ HAI_MOST_ROWS,
    /* queries */ HAI_MOST_QUERIES,
    /* step */ HAI_ISA(row_step)};

#undef HAI_EACH_OF_STEP
#undef HAI_EACH_COUNT
#undef HAI_EACH_FEW
#undef HAI_SCORES_NAME
#undef HAI_SCORES_OF
#undef HAI_VALUES_NAME
#undef HAI_VALUES_OF
#undef HAI_ROW_SUMS
#undef HAI_ROW_ADD
#undef HAI_ROW_TIMES
#undef HAI_ROW_KEY
#undef HAI_ROW_OUT
#undef HAI_VALUE_SUM
#undef HAI_VALUE_READ
#undef HAI_VALUE_TIMES
#undef HAI_VALUE_ADD
#undef HAI_VALUE_STORE
#undef HAI_VALUE_OUT
#undef HAI_VALUE_WEIGHT
#undef HAI_VALUE_FACTOR

/* ======== src/kernel_vector.h, continued ======== */

#undef HAI_SHOW
#undef HAI_HIGH
/* ======== src/kernel_end.h ======== */

#undef HAI_ISA
#undef HAI_TARGET
#undef HAI_VECTOR
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ELEMENT
#undef HAI_ROWS
#undef HAI_N_ROWS
#undef HAI_LONG
#undef HAI_N_LONG
#undef HAI_FACTORED
#undef HAI_STEP_REGISTERS
#undef HAI_MOST_ROWS
#undef HAI_MOST_QUERIES

/* ======== src/kernel_vector.h, continued ======== */


/* ======== src/kernel_neon.h, continued ======== */


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
    /* cap */ hai_cap_neon,
    /* hide */ hai_hide_neon,
    /* add_bias */ hai_add_bias_neon,
    /* softmax */ hai_softmax_neon,
    /* round */ HAI_NULL,
    /* join */ HAI_NULL,
    /* values */ hai_values_neon,
    /* scale */ hai_scale_neon,
    /* carry */ hai_carry_neon,
    /* gather */ hai_gather_neon,
    /* sum_lanes */ hai_sum_lanes_neon,
    /* square */ hai_square_neon,
    /* add_row */ hai_add_row_neon,
    /* value_multiple */ 1,
    /* few */ HAI_FEW ? &hai_few_neon : HAI_NULL,
    /* enter */ hai_enter_neon,
    /* leave */ hai_leave_neon};
#endif

/* ======== src/kernel_scan_neon.h ======== */

/* NEON: the scan, by dot products where the compiler's flags allow them. kernel_scan.h says what each
   primitive does. */

#if HAI_NEON && HAI_SCAN
#define HAI_I_neon HAI_INLINE int32x4_t
HAI_I_neon hai_ints_neon(const int32_t *p) { return vld1q_s32(p); }
HAI_INLINE void hai_put_neon(int32_t *p, int32x4_t x) { vst1q_s32(p, x); }
HAI_I_neon hai_ints1_neon(int32_t x) { return vdupq_n_s32(x); }
HAI_I_neon hai_flip_neon(int32x4_t x) { return veorq_s32(x, vdupq_n_s32(HAI_RAISED_BYTES)); }
HAI_I_neon hai_word_neon(const uint8_t *p) { return hai_flip_neon(vdupq_n_s32(hai_four_bytes(p))); }
HAI_I_neon hai_plus_neon(int32x4_t a, int32x4_t b) { return vaddq_s32(a, b); }
HAI_I_neon hai_minus_neon(int32x4_t a, int32x4_t b) { return vsubq_s32(a, b); }
HAI_I_neon hai_larger_neon(int32x4_t a, int32x4_t b) { return vmaxq_s32(a, b); }
HAI_I_neon hai_truncate_neon(float32x4_t x) { return vcvtq_s32_f32(x); }
HAI_V_neon hai_floats_neon(int32x4_t x) { return vcvtq_f32_s32(x); }
HAI_V_neon hai_by_bits_neon(int32x4_t x) { return vreinterpretq_f32_s32(x); }
HAI_I_neon hai_size_neon(float32x4_t x) {
  return vandq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x7fffffff));
}
HAI_I_neon hai_join_neon(int32x4_t word, int32x4_t x) {
  return vorrq_s32(vshlq_n_s32(word, 8), vshrq_n_s32(x, 10));
}
HAI_I_neon hai_sizes_neon(int32x4_t x) { return vreinterpretq_s32_s8(vabsq_s8(vreinterpretq_s8_s32(x))); }
HAI_INLINE int hai_positive_neon(int32x4_t x) { return vmaxvq_s32(x) > 0; }
HAI_INLINE void hai_bytes_neon(uint8_t *p, int32x4_t x) {
  int16x4_t y = vmovn_s32(x);
  int8x8_t z = vmovn_s16(vcombine_s16(y, y));
  HYPERATTN_MEMCPY(p, &z, 4);
}
HAI_I_neon hai_codes_neon(const uint8_t *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
HAI_I_neon hai_low_neon(int32x4_t x) { return vandq_s32(x, vreinterpretq_s32_u8(vdupq_n_u8(3))); }
HAI_I_neon hai_down_neon(int32x4_t x) { return vshrq_n_s32(x, 2); }
HAI_I_neon hai_nearest_neon(float32x4_t x) { return vcvtnq_s32_f32(x); }
HAI_INLINE void hai_cut_neon(int16_t *p, int32x4_t x) { vst1_s16(p, vqmovn_s32(x)); }
HAI_I_neon hai_wide_neon(const int16_t *p) { return vmovl_s16(vld1_s16(p)); }
HAI_I_neon hai_smaller_neon(int32x4_t a, int32x4_t b) { return vminq_s32(a, b); }
HAI_I_neon hai_up_neon(int32x4_t x) { return vshlq_n_s32(x, 20); }
#define HAI_SHORTS(x) vreinterpretq_s16_s32(x)
HAI_I_neon hai_shorts_neon(const int16_t *p) { return vreinterpretq_s32_s16(vld1q_s16(p)); }
HAI_I_neon hai_shorts1_neon(int x) { return vreinterpretq_s32_s16(vdupq_n_s16(HAI_AS(int16_t, x))); }
HAI_I_neon hai_less_neon(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s16(vqsubq_s16(HAI_SHORTS(a), HAI_SHORTS(b)));
}
HAI_I_neon hai_more_neon(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s16(vaddq_s16(HAI_SHORTS(a), HAI_SHORTS(b)));
}
HAI_I_neon hai_most_short_neon(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s16(vmaxq_s16(HAI_SHORTS(a), HAI_SHORTS(b)));
}
HAI_I_neon hai_bits_neon(float32x4_t u, float32x4_t v) {
  int32x4_t a = vshrq_n_s32(vreinterpretq_s32_f32(u), 20), b = vshrq_n_s32(vreinterpretq_s32_f32(v), 20);
  return vreinterpretq_s32_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
}
HAI_INLINE uint32_t hai_over_neon(int32x4_t a, int32x4_t b) {
  static const uint16_t lane[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vaddvq_u16(vandq_u16(vcgtq_s16(HAI_SHORTS(a), HAI_SHORTS(b)), vld1q_u16(lane)));
}
#undef HAI_SHORTS
HAI_INLINE int32_t hai_top_neon(int32x4_t x) { return vmaxvq_s32(x); }

/* Sums of four products of bytes, none of which is above 127: two of them fit 16 bits. */
HAI_I_neon hai_pairs_neon(int32x4_t a, int32x4_t b, int32x4_t c) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(c, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
#else
  int8x16_t x = vreinterpretq_s8_s32(a), y = vreinterpretq_s8_s32(b);
  int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_s8(vget_high_s8(x), vget_high_s8(y));
  return vpadalq_s16(c, vpaddq_s16(low, high));
#endif
}

#define HAI_ISA(name) hai_##name##_neon
#define HAI_VECTOR float32x4_t
#define HAI_INTS int32x4_t
#define HAI_WIDTH HAI_WIDTH_neon
#define HAI_LANES HAI_LANES_neon
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_SCAN_TARGET
#define HAI_WAY(name) hai_scan_##name##_neon
#define HAI_SCAN_DOT(a, b, c) hai_pairs_neon(a, b, c)
#define HAI_SCAN_LIFT 0
#ifdef __ARM_FEATURE_DOTPROD
#define HAI_SCAN_COST 0.1f
#else
#define HAI_SCAN_COST 0.27f
#endif
/* ======== src/kernel_scan.h ======== */

/* Template: the scan of a tile of queries. Included once for each way to multiply small integers, behind
   the primitives of an ISA and these of its integers (x, a, b registers of int32, HAI_INTS):
     HAI_WAY(name)        the name that a function has for this way: hai_scan_<name>_<way>
     HAI_SCAN_DOT(a, b, c) in each lane, c + the sum of four products of bytes: a's, which word() or
                           HAI_SCAN_LIFT gives, and b's, -63 .. 63; or of a's and a's, sizes
     HAI_SCAN_LIFT         HAI_KEY_RAISED in each byte; 0 where word() takes that from codes
     HAI_SCAN_TARGET       the function attribute for its instructions
     ints(p), put(p, x)    load, store; ints1(x): x in all lanes; word(p): the four codes at p in all lanes
     plus(a, b), minus(a, b), larger(a, b)
     truncate(x), floats(x)   to integers, towards 0, and back
     size(x)               the bits of |x| as an integer
     join(word, x)         word * 256 + x / HAI_CODE_FINE, for x >= 0
     flip(x), sizes(x)     each byte with its highest bit turned, which is 128 more or less; |each byte|
     positive(x)           is any lane above 0; top(x): the largest lane
     bytes(p, x)           stores each lane, which is in 0 .. 255, as a byte
   Sums are named variables for the reason that kernel_tile.h gives. */

#define HAI_SCAN_STARTS(r)                                                      \
  HAI_INTS c##r##0 = HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b0),              \
           c##r##1 = n > 1 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b1) : b1, \
           c##r##2 = n > 2 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b2) : b2;
#define HAI_SCAN_LOAD(x, p)                             \
  x##0 = HAI_ISA(ints)(p);                              \
  x##1 = n > 1 ? HAI_ISA(ints)((p) + HAI_WIDTH) : x##0; \
  x##2 = n > 2 ? HAI_ISA(ints)((p) + 2 * HAI_WIDTH) : x##0;
#define HAI_SCAN_DOTS(s, key)                   \
  b0 = HAI_ISA(word)(key);                      \
  s##0 = HAI_SCAN_DOT(b0, a0, s##0);            \
  if (n > 1) s##1 = HAI_SCAN_DOT(b0, a1, s##1); \
  if (n > 2) s##2 = HAI_SCAN_DOT(b0, a2, s##2);
#define HAI_SCAN_ADD(r) HAI_SCAN_DOTS(c##r, key + r * dim + 4 * at)

/* Sums of codes' products: c<row><register> = start[row] - threshold, to which those of a word are added. */
#define HAI_SCAN_SUMS                                                                            \
  const int32_t *query = queries->code + queries->begin;                                         \
  hai_index dim = 4 * queries->n_words, w, at;                                                   \
  HAI_INTS a0, a1, a2, b0 = HAI_ISA(ints)(threshold), b1 = HAI_ISA(ints)(threshold + HAI_WIDTH), \
                       b2 = HAI_ISA(ints)(threshold + 2 * HAI_WIDTH);                            \
  HAI_ROWS(HAI_SCAN_STARTS)
#define HAI_SCAN_WORD                      \
  at = queries->word[w];                   \
  HAI_SCAN_LOAD(a, query + at * HAI_LANES) \
  HAI_ROWS(HAI_SCAN_ADD)

#define HAI_SCAN_OUT(r)                                  \
  HAI_SCAN_TELL(r, 0) if (n > 1) { HAI_SCAN_TELL(r, 1) } \
  if (n > 2) {                                           \
    HAI_SCAN_TELL(r, 2)                                  \
  }
#define HAI_SCAN_TELL(r, k)               \
  HAI_ISA(store)                          \
  (score + r * HAI_LANES + k * HAI_WIDTH, \
   HAI_ISA(fma)(unit, HAI_ISA(floats)(c##r##k), HAI_ISA(load)(mean + k * HAI_WIDTH)));
#define HAI_SCAN_HIGH(x, s)                \
  x = s##0;                                \
  if (n > 1) x = HAI_ISA(larger)(x, s##1); \
  if (n > 2) x = HAI_ISA(larger)(x, s##2);
#define HAI_SCAN_HIT(r)                                                                        \
  HAI_SCAN_HIGH(a0, c##r)                                                                      \
  if (HAI_ISA(positive)(a0)) {                                                                 \
    most[r] = HAI_WAY(finish)(queries, key + r * dim, c##r##0, c##r##1, c##r##2, a0, rest, n); \
    hits |= HAI_AS(unsigned, most[r] > 0) << r;                                                \
  }

/* Estimates of HAI_N_ROWS keys. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(tell)(const hai_scan_queries *queries, const uint8_t *key, float u,
                                              const float *mean, float *score, const int n) {
  static const int32_t start[HAI_N_ROWS] = {0};
  const int32_t *threshold = queries->lift + HAI_LANES + queries->begin;
  HAI_VECTOR unit = HAI_ISA(set1)(u);
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_words; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_OUT)
}

/* The sums of a key that the first words let pass: adds those of the other words, less `rest`. Returns the
   largest, or where that is less, the largest of before, whose lanes' is `first`; 0 where none is above 0. */
HAI_SCAN_TARGET HAI_INLINE int32_t HAI_WAY(finish)(const hai_scan_queries *queries, const uint8_t *key,
                                                   HAI_INTS c0, HAI_INTS c1, HAI_INTS c2, HAI_INTS first,
                                                   const int32_t *rest, const int n) {
  const int32_t *query = queries->code + queries->begin;
  int32_t most, before;
  HAI_INTS a0, a1, a2, b0;
  int w;
  HAI_SCAN_LOAD(a, rest)
  c0 = HAI_ISA(minus)(c0, a0);
  if (n > 1) c1 = HAI_ISA(minus)(c1, a1);
  if (n > 2) c2 = HAI_ISA(minus)(c2, a2);
  for (w = queries->n_first; w < queries->n_words; w++) {
    hai_index at = queries->word[w];
    HAI_SCAN_LOAD(a, query + at * HAI_LANES)
    HAI_SCAN_DOTS(c, key + 4 * at)
  }
  HAI_SCAN_HIGH(a0, c)
  if (!HAI_ISA(positive)(a0)) return 0;
  most = HAI_ISA(top)(a0);
  before = HAI_ISA(top)(first);
  return most < before ? most : before;
}

/* Bit r: key r of HAI_N_ROWS is a hit. most[r], where it is: how far above 0 its sum is. */
HAI_SCAN_TARGET HAI_INLINE unsigned HAI_WAY(look)(const hai_scan_queries *queries, const uint8_t *key,
                                                  const int32_t *start, const int32_t *threshold,
                                                  const int32_t *rest, int32_t *most, const int n) {
  unsigned hits = 0;
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_first; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_HIT)
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(estimate)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int first, float *score) {
  const float *mean = block->mean + queries->begin;
  int n = (queries->end - queries->begin) / HAI_WIDTH, j;
  score += queries->begin;
  for (j = first; j < first + HAI_PILOT; j += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 3);
    else if (n == 2)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 2);
    else
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 1);
  }
}

/* x cut off at -most and most, as an integer; NaN becomes -most. */
HAI_SCAN_TARGET HAI_INLINE HAI_INTS HAI_WAY(cut)(HAI_VECTOR x, float most) {
  x = HAI_ISA(max)(x, HAI_ISA(set1)(-most));
  return HAI_ISA(truncate)(HAI_ISA(min)(x, HAI_ISA(set1)(most)));
}

HAI_SCAN_TARGET static uint64_t HAI_WAY(hits)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int32_t *most) {
  int32_t draw[HAI_CHUNK], start[HAI_CHUNK], threshold[HAI_LANES] = {0}, rest[HAI_LANES] = {0};
  HAI_VECTOR inverse = HAI_ISA(set1)(1.0f / block->unit);
  HAI_INTS margin = HAI_ISA(ints1)(block->margin);
  uint64_t hits = 0, bits;
  int begin = queries->begin, n = (queries->end - begin) / HAI_WIDTH, i, j;
  for (i = begin; i < queries->end; i += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(queries->level + i), HAI_ISA(load)(block->mean + i));
    HAI_INTS level = HAI_WAY(cut)(HAI_ISA(mul)(x, inverse), HAI_MOST_LEVEL);
    HAI_INTS lift = HAI_ISA(ints)(queries->lift + i), all = HAI_ISA(ints)(queries->lift + HAI_LANES + i);
    HAI_ISA(put)(threshold + i - begin, HAI_ISA(plus)(level, lift));
    HAI_ISA(put)(rest + i - begin, HAI_ISA(plus)(HAI_ISA(minus)(all, lift), margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH) {
    HAI_INTS x = HAI_WAY(cut)(HAI_ISA(mul)(HAI_ISA(load)(block->draw + j), inverse), HAI_MOST_DRAW);
    HAI_ISA(put)(draw + j, x);
    HAI_ISA(put)(start + j, HAI_ISA(plus)(x, margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_N_ROWS) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 3);
    else if (n == 2)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 2);
    else
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 1);
    hits |= bits << j;
  }
  for (bits = hits; bits; bits &= bits - 1) {
    j = hai_lowest_bit(bits);
    most[j] -= draw[j];
  }
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(largest)(const float *query, hai_index dim, int32_t *bits) {
  hai_index t;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS x = HAI_ISA(ints1)(0);
    for (t = 0; t < dim; t++) x = HAI_ISA(larger)(x, HAI_ISA(size)(HAI_ISA(load)(query + t * HAI_LANES + i)));
    HAI_ISA(put)(bits + i, x);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(quantise)(const float *query, hai_index dim, float inverse,
                                              int32_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t, y;
  int i;
  for (t = 0; t < dim; t += 4, code += HAI_LANES)
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS word = HAI_ISA(ints1)(0), x;
      for (y = t + 3; y >= t; y--) {
        x = half;
        if (y < dim) {
          HAI_VECTOR product = HAI_ISA(mul)(HAI_ISA(load)(query + y * HAI_LANES + i), f);
          x = HAI_ISA(plus)(HAI_WAY(cut)(product, HAI_CODE_MOST), half);
        }
        word = HAI_ISA(join)(word, x);
      }
      HAI_ISA(put)(code + i, HAI_ISA(flip)(word));
    }
}

HAI_SCAN_TARGET static void HAI_WAY(forces)(const hai_scan_queries *queries, int32_t *all, int32_t *most) {
  HAI_INTS none = HAI_ISA(ints1)(0);
  int32_t part[HAI_WIDTH];
  int i, w;
  for (w = 0; w < queries->n_words; w++) {
    HAI_INTS sum = none, largest = none;
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS x = HAI_ISA(sizes)(HAI_ISA(ints)(queries->code + w * HAI_LANES + i));
      HAI_INTS squares = HAI_SCAN_DOT(x, x, none);
      sum = HAI_ISA(plus)(sum, squares);
      largest = HAI_ISA(larger)(largest, squares);
    }
    HAI_ISA(put)(part, sum);
    for (i = 0, all[w] = 0; i < HAI_WIDTH; i++) all[w] += part[i];
    most[w] = HAI_ISA(top)(largest);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(lift)(const hai_scan_queries *queries) {
  HAI_INTS raised = HAI_ISA(ints1)(HAI_SCAN_LIFT);
  int i, w;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS sum = HAI_ISA(ints1)(0), first = sum;
    for (w = 0; w < queries->n_words; w++) {
      sum = HAI_SCAN_DOT(raised, HAI_ISA(ints)(queries->code + queries->word[w] * HAI_LANES + i), sum);
      if (w == queries->n_first - 1) first = sum;
    }
    HAI_ISA(put)(queries->lift + i, first);
    HAI_ISA(put)(queries->lift + HAI_LANES + i, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(collect)(const float *score, int begin, int end, float *high, float *sum,
                                             float *group) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(high + i), most = before, shift, factor, here = HAI_ISA(zero)();
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      most = HAI_ISA(max)(HAI_ISA(load)(score + j + i), most);
    shift = HAI_ISA(or_zero)(most);
    factor = HAI_ISA(exp)(HAI_ISA(sub)(before, shift));
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      here = HAI_ISA(add)(here, HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(score + j + i), shift)));
    HAI_ISA(store)(high + i, most);
    HAI_ISA(store)(sum + i, HAI_ISA(fma)(HAI_ISA(load)(sum + i), factor, here));
    HAI_ISA(store)(group + i, HAI_ISA(max)(HAI_ISA(mul)(HAI_ISA(load)(group + i), factor), here));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(missing)(const float *log_weight, int n, float *missing) {
  int j;
  for (j = 0; j < n; j += HAI_WIDTH) {
    HAI_VECTOR kept = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(zero)(), HAI_ISA(load)(log_weight + j)));
    HAI_ISA(store)(missing + j, HAI_ISA(sub)(HAI_ISA(set1)(1.0f), kept));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(spread)(const float *weight, int n_keys, const float *missing,
                                            const float *distance, const float *factor, int begin, int end,
                                            float *scatter, float *squares) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), a, b, w;
    f = HAI_ISA(mul)(f, f);
    a = HAI_ISA(mul)(HAI_ISA(load)(scatter + i), f);
    b = HAI_ISA(mul)(HAI_ISA(load)(squares + i), f);
    for (j = 0; j < n_keys; j++) {
      w = HAI_ISA(load)(weight + j * HAI_LANES + i);
      w = HAI_ISA(mul)(HAI_ISA(mul)(w, w), HAI_ISA(set1)(missing[j]));
      a = HAI_ISA(fma)(w, HAI_ISA(set1)(distance[j]), a);
      b = HAI_ISA(add)(b, w);
    }
    HAI_ISA(store)(scatter + i, a);
    HAI_ISA(store)(squares + i, b);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(distances)(const float *o, hai_index dim, const float *l,
                                               const float *centre, int begin, int end, float *norm,
                                               float *apart) {
  hai_index t;
  int i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR inverse = HAI_ISA(div)(HAI_ISA(set1)(1.0f), HAI_ISA(load)(l + i)), a = HAI_ISA(zero)(), b = a;
    for (t = 0; t < dim; t++) {
      HAI_VECTOR x = HAI_ISA(mul)(HAI_ISA(load)(o + t * HAI_LANES + i), inverse);
      HAI_VECTOR from = HAI_ISA(sub)(x, HAI_ISA(set1)(centre[t]));
      a = HAI_ISA(fma)(x, x, a);
      b = HAI_ISA(fma)(from, from, b);
    }
    HAI_ISA(store)(norm + i, a);
    HAI_ISA(store)(apart + i, b);
  }
}

/* ---- The sketch: coordinates in the lanes ---- */

HAI_SCAN_TARGET static void HAI_WAY(mean)(const float *const *row, hai_index dim, float *mean) {
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (j = 0; j < HAI_CHUNK; j++) sum = HAI_ISA(add)(sum, HAI_ISA(load)(row[j] + t));
    HAI_ISA(store)(mean + t, HAI_ISA(mul)(sum, HAI_ISA(set1)(1.0f / HAI_CHUNK)));
  }
  hai_scan_mean_plain(row, t, dim, mean);
}

HAI_SCAN_TARGET static int32_t HAI_WAY(reach)(const float *const *row, hai_index dim, const float *mean) {
  HAI_INTS most = HAI_ISA(ints1)(0);
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR m = HAI_ISA(load)(mean + t);
    for (j = 0; j < HAI_CHUNK; j++)
      most = HAI_ISA(larger)(most, HAI_ISA(size)(HAI_ISA(sub)(HAI_ISA(load)(row[j] + t), m)));
  }
  return hai_scan_reach_plain(row, t, dim, mean, HAI_ISA(top)(most));
}

HAI_SCAN_TARGET static void HAI_WAY(encode)(const float *row, hai_index dim, const float *mean, float inverse,
                                            uint8_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(mean + t));
    HAI_INTS x = HAI_ISA(plus)(HAI_WAY(cut)(HAI_ISA(mul)(y, f), HAI_KEY_MOST), half);
    HAI_ISA(bytes)(code + t, HAI_ISA(join)(HAI_ISA(ints1)(0), x));
  }
  hai_scan_encode_plain(row, t, dim, mean, inverse, code);
}

HAI_SCAN_TARGET static void HAI_WAY(norms)(const uint8_t *code, int n_words, int32_t *norm) {
  int32_t words[HAI_WIDTH];
  int w = 0, j;
  for (; w + HAI_WIDTH <= n_words; w += HAI_WIDTH) {
    HAI_INTS none = HAI_ISA(ints1)(0), most = none;
    for (j = 0; j < HAI_CHUNK; j++) {
      HAI_INTS x;
      HYPERATTN_MEMCPY(words, code + 4 * (j * n_words + w), sizeof words);
      x = HAI_ISA(sizes)(HAI_ISA(flip)(HAI_ISA(ints)(words)));
      most = HAI_ISA(larger)(most, HAI_SCAN_DOT(x, x, none));
    }
    HAI_ISA(put)(norm + w, most);
  }
  hai_scan_norms_plain(code, w, n_words, norm);
}

HAI_SCAN_TARGET static float HAI_WAY(apart)(const float *row, hai_index dim, const float *centre) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(centre + t));
    sum = HAI_ISA(fma)(x, x, sum);
  }
  return HAI_ISA(sum)(sum) + hai_scan_apart_plain(row, t, dim, centre);
}

#if HAI_INDEX
/* ======== src/kernel_index.h ======== */

/* Template: the scan of an index, for few queries, keys in the lanes. Included by kernel_scan.h for each of
   its ways, with its primitives and these:
     codes(p)              a register of the bytes at p
     low(x), down(x)       the lowest two bits of each byte; x with each two bits of a byte at the lower two's
                           place, whatever comes from the next byte above them
     nearest(x)            to integers, the nearest
     cut(p, x), wide(p)    stores each lane as 16 bits, cut to what these hold; loads such
     smaller(a, b), up(x)  of each lane; each lane times 2^20
   and these of 2 HAI_WIDTH integers of 16 bits, shorts(p) loads:
     shorts1(x)            x in all lanes
     less(a, b), more(a, b), most_short(a, b)   a - b, cut to 16 bits; a + b; the larger of each lane
     bits(u, v)            the bits of floats, of two registers, over 2^20
     over(a, b)            bit i: lane i of a is above that of b
   Codes of an index are 0 .. 127, the same as signed and as unsigned bytes. */

#define HAI_GUESS_MOST (HAI_N_ROWS / 2) /* queries whose sums fit the registers: 2 or 4 */
#define HAI_GUESS_LOAD(r)                          \
  y##r = HAI_ISA(codes)(code + 4 * r * HAI_WIDTH); \
  HAI_PREFETCH(HAI_REINTERPRET(const char *, code) + ahead + 4 * r * HAI_WIDTH);
#define HAI_GUESS_SUMS(r) HAI_INTS c0##r = HAI_ISA(ints1)(0), c1##r = c0##r, c2##r = c0##r, c3##r = c0##r;
#define HAI_GUESS_DOT(i, r) \
  if (n > i) c##i##r = HAI_SCAN_DOT(x, w##i, c##i##r);
#define HAI_GUESS_ADD(r)  \
  x = HAI_ISA(low)(y##r); \
  HAI_GUESS_DOT(0, r) HAI_GUESS_DOT(1, r) HAI_GUESS_DOT(2, r) HAI_GUESS_DOT(3, r) y##r = HAI_ISA(down)(y##r);
#define HAI_GUESS_SUMS_OF(i) c##i##0, c##i##1, c##i##2, c##i##3
#define HAI_GUESS_OUT(i)        \
  if (n > i) HAI_WAY(guess_out) \
  (query + i, block, base[i], f0, f1, f2, f3, HAI_GUESS_SUMS_OF(i), score[i] + j, weights + i);
#define HAI_GUESS_NORM(r) f##r = HAI_ISA(int8)(block->norm + j + r * HAI_WIDTH);
#define HAI_GUESS_SCORE(r)                                                            \
  x = HAI_ISA(fma)(HAI_ISA(floats)(c##r), HAI_ISA(set1)(slope), HAI_ISA(set1)(more)); \
  y = HAI_ISA(nearest)(HAI_ISA(fma)(f##r, x, HAI_ISA(set1)(base)));                   \
  HAI_ISA(cut)(score + r * HAI_WIDTH, y);                                             \
  sum = HAI_ISA(add)(sum, HAI_WAY(weight)(y, from));

/* The mean's part of all scores of a block. */
HAI_SCAN_TARGET HAI_INLINE float HAI_WAY(guess_mean)(const hai_index_query *query,
                                                     const hai_index_block *block) {
  HAI_INTS sum = HAI_ISA(ints1)(0);
  hai_index w;
  for (w = 0; w < query->n_words; w += HAI_WIDTH)
    sum = HAI_SCAN_DOT(HAI_ISA(codes)(block->mean + 4 * w), HAI_ISA(ints)(query->word + w), sum);
  return query->unit * block->mean_unit *
         (HAI_ISA(sum)(HAI_ISA(floats)(sum)) - HAI_AS(float, HAI_MEAN_RAISED * query->sum));
}

HAI_SCAN_TARGET HAI_INLINE HAI_VECTOR HAI_WAY(weight)(HAI_INTS score, HAI_INTS from) {
  HAI_INTS steps = HAI_ISA(larger)(HAI_ISA(minus)(score, from), HAI_ISA(ints1)(HAI_STEP_LEAST));
  return HAI_ISA(by_bits)(HAI_ISA(up)(HAI_ISA(smaller)(steps, HAI_ISA(ints1)(HAI_STEP_TOP))));
}

/* Scores of four registers of keys, of norms f and sums c. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_out)(const hai_index_query *query, const hai_index_block *block,
                                                   float base, HAI_VECTOR f0, HAI_VECTOR f1, HAI_VECTOR f2,
                                                   HAI_VECTOR f3, HAI_INTS c0, HAI_INTS c1, HAI_INTS c2,
                                                   HAI_INTS c3, int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1), y;
  float slope = 2.0f * query->unit * block->norm_unit;
  float more = (query->more - HAI_AS(float, 3 * query->sum) * query->unit) * block->norm_unit;
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane), x;
  HAI_ROWS_4(HAI_GUESS_SCORE)
  HAI_ISA(store)(weights->lane, sum);
}

/* Four registers of keys at a time, so that each has its sums, for up to HAI_GUESS_MOST queries, which share
   what is taken out of the codes. c<query><register> are the sums. Registers: AVX2 2 x 4 sums, 4 codes, one
   of them alone and two words, 15 of 16; AVX-512 and NEON 4 x 4, 4, 1 and 4, 25 of 32. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_some)(const hai_index_query *query, const int n,
                                                    const hai_index_block *block, int16_t *const *score,
                                                    hai_weights *weights) {
  const int32_t *word[4] = {query->word, query[n > 1].word, query[n > 2 ? 2 : 0].word,
                            query[n > 3 ? 3 : 0].word};
  hai_index g;
  size_t ahead = block->ahead;
  float base[4] = {0.0f};
  int j, s, i;
  for (i = 0; i < n; i++) base[i] = HAI_WAY(guess_mean)(query + i, block);
  for (j = 0; j < HAI_CHUNK; j += 4 * HAI_WIDTH) {
    const uint8_t *code = block->code + 4 * j;
    HAI_INTS w0, w1, w2, w3, x, y0, y1, y2, y3;
    HAI_VECTOR f0, f1, f2, f3;
    HAI_ROWS_4(HAI_GUESS_SUMS)
    for (g = 0; g < query->n_groups; g++, code += 4 * HAI_CHUNK) {
      HAI_ROWS_4(HAI_GUESS_LOAD)
      for (s = 0; s < 4; s++) {
        w0 = w1 = w2 = w3 = HAI_ISA(ints1)(word[0][4 * g + s]);
        if (n > 1) w1 = HAI_ISA(ints1)(word[1][4 * g + s]);
        if (n > 2) w2 = HAI_ISA(ints1)(word[2][4 * g + s]);
        if (n > 3) w3 = HAI_ISA(ints1)(word[3][4 * g + s]);
        HAI_ROWS_4(HAI_GUESS_ADD)
      }
    }
    HAI_ROWS_4(HAI_GUESS_NORM)
    HAI_ROWS_4(HAI_GUESS_OUT)
  }
}
HAI_SCAN_TARGET static void HAI_WAY(guess)(const hai_index_query *query, int n, const hai_index_block *block,
                                           int16_t *const *score, hai_weights *weights) {
  for (; n > HAI_GUESS_MOST; n -= HAI_GUESS_MOST) {
    HAI_WAY(guess_some)(query, HAI_GUESS_MOST, block, score, weights);
    query += HAI_GUESS_MOST;
    score += HAI_GUESS_MOST;
    weights += HAI_GUESS_MOST;
  }
  if (HAI_GUESS_MOST > 3 && n == 4)
    HAI_WAY(guess_some)(query, 4, block, score, weights);
  else if (HAI_GUESS_MOST > 2 && n == 3)
    HAI_WAY(guess_some)(query, 3, block, score, weights);
  else if (n == 2)
    HAI_WAY(guess_some)(query, 2, block, score, weights);
  else
    HAI_WAY(guess_some)(query, 1, block, score, weights);
}

HAI_SCAN_TARGET static void HAI_WAY(weigh)(const int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1);
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane);
  int j;
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH)
    sum = HAI_ISA(add)(sum, HAI_WAY(weight)(HAI_ISA(wide)(score + j), from));
  HAI_ISA(store)(weights->lane, sum);
}

HAI_SCAN_TARGET static void HAI_WAY(at_least)(const int16_t *score, hai_index n, int least, uint64_t *bits) {
  HAI_INTS below = HAI_ISA(shorts1)(least - 1);
  hai_index b;
  int j;
  for (b = 0; b < n; b++, score += HAI_CHUNK)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH)
      bits[b] |= HAI_AS(uint64_t, HAI_ISA(over)(HAI_ISA(shorts)(score + j), below)) << j;
}

/* Floats above 0 order as their bits do, and those of a weight are 0 behind its steps: a weight is above u
   if its steps are more than u's whole ones. */
HAI_SCAN_TARGET static void HAI_WAY(keep)(const hai_levels *levels, hai_index n, uint64_t *bits) {
  HAI_INTS least = HAI_ISA(shorts1)(-HAI_STEP_OF_1);
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++) {
    HAI_VECTOR from = HAI_ISA(set1)(levels->shift[b]);
    uint64_t kept = 0;
    for (j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH) {
      HAI_VECTOR u = HAI_ISA(add)(HAI_ISA(load)(levels->place + j), from),
                 v = HAI_ISA(add)(HAI_ISA(load)(levels->place + j + HAI_WIDTH), from);
      HAI_INTS most = least;
      u = HAI_ISA(sub)(u, HAI_ISA(floats)(HAI_ISA(truncate)(u)));
      v = HAI_ISA(sub)(v, HAI_ISA(floats)(HAI_ISA(truncate)(v)));
      for (i = 0; i < levels->n; i++) {
        HAI_INTS score = HAI_ISA(shorts)(levels->score[i] + b * HAI_CHUNK + j);
        most = HAI_ISA(most_short)(HAI_ISA(less)(score, HAI_ISA(shorts1)(levels->level[i])), most);
      }
      kept |= HAI_AS(uint64_t, HAI_ISA(over)(most, HAI_ISA(more)(HAI_ISA(bits)(u, v), least))) << j;
    }
    bits[b] = kept;
  }
}

/* The Hadamard matrix, x [n][HAI_TURNED], each row times `factor` at the end. */
HAI_SCAN_TARGET static void HAI_WAY(turn)(float *x, hai_index n, float factor) {
  HAI_VECTOR by = HAI_ISA(set1)(factor);
  hai_index half, t, u;
  for (half = HAI_TURNED; half < n * HAI_TURNED; half *= 2)
    for (t = 0; t < n * HAI_TURNED; t += 2 * half)
      for (u = t; u < t + half; u += HAI_WIDTH) {
        HAI_VECTOR a = HAI_ISA(load)(x + u), b = HAI_ISA(load)(x + u + half);
        HAI_ISA(store)(x + u, HAI_ISA(add)(a, b));
        HAI_ISA(store)(x + u + half, HAI_ISA(sub)(a, b));
      }
  for (t = 0; t < n * HAI_TURNED; t += HAI_WIDTH)
    HAI_ISA(store)(x + t, HAI_ISA(mul)(HAI_ISA(load)(x + t), by));
}

HAI_SCAN_TARGET static void HAI_WAY(differ)(float *x, hai_index dim, const float *mean, float *square) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (t = 0; t < dim; t++) {
      HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(x + t * HAI_TURNED + j), HAI_ISA(set1)(mean[t]));
      HAI_ISA(store)(x + t * HAI_TURNED + j, y);
      sum = HAI_ISA(fma)(y, y, sum);
    }
    HAI_ISA(store)(square + j, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(halve)(const float *x, hai_index dim, const float *inverse, uint8_t *code,
                                           float *product) {
  HAI_VECTOR two = HAI_ISA(set1)(2.0f), most = HAI_ISA(set1)(3.5f), three = HAI_ISA(set1)(-3.0f);
  int32_t words[HAI_WIDTH];
  hai_index begin;
  int j, at;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR by = HAI_ISA(load)(inverse + j), sum = HAI_ISA(zero)();
    for (begin = 0; begin < dim; begin += HAI_GROUP_DIM) {
      HAI_INTS word = HAI_ISA(ints1)(0), c;
      for (at = HAI_GROUP_DIM - 1; at >= 0; at--) {
        hai_index t = begin + at % 4 * 4 + at / 4;
        word = HAI_ISA(plus)(word, word);
        word = HAI_ISA(plus)(word, word);
        if (t < dim) {
          HAI_VECTOR y = HAI_ISA(load)(x + t * HAI_TURNED + j), z = HAI_ISA(fma)(y, by, two);
          c = HAI_ISA(truncate)(HAI_ISA(max)(HAI_ISA(min)(z, most), HAI_ISA(zero)()));
          word = HAI_ISA(plus)(word, c);
          sum = HAI_ISA(fma)(y, HAI_ISA(fma)(HAI_ISA(floats)(c), two, three), sum);
        }
      }
      HAI_ISA(put)(words, word);
      HYPERATTN_MEMCPY(code + 4 * (begin / HAI_GROUP_DIM * HAI_CHUNK + j), words, sizeof words);
    }
    HAI_ISA(store)(product + j, sum);
  }
}

#undef HAI_GUESS_MOST
#undef HAI_GUESS_LOAD
#undef HAI_GUESS_DOT
#undef HAI_GUESS_SUMS_OF
#undef HAI_GUESS_ADD
#undef HAI_GUESS_SUMS
#undef HAI_GUESS_NORM
#undef HAI_GUESS_SCORE
#undef HAI_GUESS_OUT

/* ======== src/kernel_scan.h, continued ======== */

#endif

static const hai_scan_kernel HAI_WAY(kernel) = {
    /* largest */ HAI_WAY(largest),
    /* quantise */ HAI_WAY(quantise),
    /* forces */ HAI_WAY(forces),
    /* lift */ HAI_WAY(lift),
    /* estimate */ HAI_WAY(estimate),
    /* collect */ HAI_WAY(collect),
    /* hits */ HAI_WAY(hits),
    /* missing */ HAI_WAY(missing),
    /* spread */ HAI_WAY(spread),
    /* distances */ HAI_WAY(distances),
    /* mean */ HAI_WAY(mean),
    /* reach */ HAI_WAY(reach),
    /* encode */ HAI_WAY(encode),
    /* norms */ HAI_WAY(norms),
    /* apart */ HAI_WAY(apart),
#if HAI_INDEX
    /* guess */ HAI_WAY(guess),
    /* weigh */ HAI_WAY(weigh),
    /* at_least */ HAI_WAY(at_least),
    /* keep */ HAI_WAY(keep),
    /* turn */ HAI_WAY(turn),
    /* differ */ HAI_WAY(differ),
    /* halve */ HAI_WAY(halve),
#endif
    /* cost */ HAI_SCAN_COST};

#undef HAI_SCAN_STARTS
#undef HAI_SCAN_LOAD
#undef HAI_SCAN_DOTS
#undef HAI_SCAN_ADD
#undef HAI_SCAN_SUMS
#undef HAI_SCAN_WORD
#undef HAI_SCAN_OUT
#undef HAI_SCAN_TELL
#undef HAI_SCAN_HIGH
#undef HAI_SCAN_HIT
#undef HAI_WAY
#undef HAI_SCAN_DOT
#undef HAI_SCAN_TARGET
#undef HAI_SCAN_LIFT
#undef HAI_SCAN_COST

/* ======== src/kernel_scan_neon.h, continued ======== */

#undef HAI_ISA
#undef HAI_VECTOR
#undef HAI_INTS
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ROWS
#undef HAI_N_ROWS
#endif

/* ======== src/kernel_neon_bf16.h ======== */

/* NEON with BF16 (ARMv8.6), where the compiler may use it everywhere: the tile of NEON with elements of two
   bfloat16. */

#if HAI_NEON_BF16
#define HAI_TARGET_neonbf
typedef float32x4_t hai_vector_neonbf;
#define hai_zero_neonbf hai_zero_neon
#define hai_load_neonbf hai_load_neon
#define hai_store_neonbf hai_store_neon
#define hai_fma_neonbf hai_fma_neon
#define hai_mul_neonbf hai_mul_neon
#define hai_add_neonbf hai_add_neon
#define hai_keep_neonbf hai_keep_neon
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
HAI_V_neon hai_join_neonbf(float32x4_t a, float32x4_t b) {
  uint32x4_t low = vmovl_u16(vreinterpret_u16_bf16(vcvt_bf16_f32(a)));
  uint32x4_t high = vmovl_u16(vreinterpret_u16_bf16(vcvt_bf16_f32(b)));
  return vreinterpretq_f32_u32(vorrq_u32(low, vshlq_n_u32(high, 16)));
}
HAI_INLINE void hai_zip_neonbf(const uint16_t *a, const uint16_t *b, hai_bf16x2 *pair) {
  uint16x8x2_t both = vzipq_u16(vld1q_u16(a), vld1q_u16(b));
  HYPERATTN_MEMCPY(pair, &both.val[0], sizeof both.val[0]);
  HYPERATTN_MEMCPY(pair + 4, &both.val[1], sizeof both.val[1]);
}

#define HAI_ISA(name) hai_##name##_neonbf
#define HAI_TARGET HAI_TARGET_neonbf
#define HAI_VECTOR float32x4_t
#define HAI_WIDTH HAI_WIDTH_neon
#define HAI_LANES HAI_LANES_neon
#define HAI_ELEMENT hai_bf16x2
#define HAI_ROWS(X) HAI_ROWS_8(X)
#define HAI_N_ROWS 8
#define HAI_LONG(X) HAI_ROWS_8(X)
#define HAI_N_LONG 8
#define HAI_FACTORED 1
/* ======== src/kernel_bf16.h ======== */

/* Template: the products of bfloat16, in plain C. Included once per ISA that has them, with the parameters of
   kernel_tile.h, which it undefines at its end. An element is two bfloat16: two coordinates of a row for
   scores, one coordinate of two keys for values. A value is joined with that of the next key, the last of an
   odd number with zeros. Weights are rounded to bfloat16; nothing else is rounded but sums. head_dim is even.
   Its own primitives: join(a, b) rounds a into the low and b into the high half of each lane; zip(a, b, to)
   joins 8 elements of two rows. */

/* ======== src/kernel_tile.h ======== */

/* Template: the products of a tile, in plain C. Included once per ISA, behind that ISA's primitives, with
   these parameters:
     HAI_ISA(name)   the name that a function or primitive has for this ISA: hai_<name>_<isa>
     HAI_TARGET      the function attribute that lets the compiler use its instructions
     HAI_VECTOR      its register, of HAI_WIDTH floats; a tile has HAI_LANES lanes, three registers
     HAI_ELEMENT     what a product reads: float, or two bfloat16 whose products are summed
     HAI_ROWS(X)     X(0) X(1) .. for the HAI_N_ROWS keys, or coordinates of values, multiplied at a time
     HAI_LONG(X)     the same for HAI_N_LONG coordinates where a tile has one register: its sums need to be
                     more to hide the latency of a multiply-add
     HAI_FACTORED    1 if a factor for each lane lies behind the packed queries
   A step of the inner loop loads up to three packed vectors a0 to a2, and for each row broadcasts one
   element b and does a multiply-add with each vector. The sums c<row><register> are named variables and not
   an array: gcc -O1 would store an array of them before the loop. The number of registers n is a constant
   where the inline functions are called, so that what belongs to absent registers is dropped. */

#define HAI_SUMS(r) HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0;
#define HAI_LOAD(p)                                 \
  a0 = HAI_ISA(load)(p);                            \
  a1 = n > 1 ? HAI_ISA(load)((p) + HAI_WIDTH) : a0; \
  a2 = n > 2 ? HAI_ISA(load)((p) + 2 * HAI_WIDTH) : a0;
#define HAI_ADD(r)                                   \
  c##r##0 = HAI_ISA(dot)(a0, b, c##r##0);            \
  if (n > 1) c##r##1 = HAI_ISA(dot)(a1, b, c##r##1); \
  if (n > 2) c##r##2 = HAI_ISA(dot)(a2, b, c##r##2);
#define HAI_STORE(r, p)                                \
  HAI_ISA(store)(p, c##r##0);                          \
  if (n > 1) HAI_ISA(store)((p) + HAI_WIDTH, c##r##1); \
  if (n > 2) HAI_ISA(store)((p) + 2 * HAI_WIDTH, c##r##2);

/* ---- Packing ---- */

/* Transposes 4 x 4 submatrices within parts of 128 bits: vector k of four holds rows k, k + 4, k + 8, ... */
HAI_TARGET static void HAI_ISA(pack)(const void *const *row, hai_index dim, float factor, float *packed) {
  HAI_VECTOR f = HAI_ISA(set1)(factor), x0, x1, x2, x3;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    hai_index t = 0, whole = hai_rows_present(row + i, HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(gather4)(row + i, t);
      x1 = HAI_ISA(gather4)(row + i + 1, t);
      x2 = HAI_ISA(gather4)(row + i + 2, t);
      x3 = HAI_ISA(gather4)(row + i + 3, t);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(store)(at, HAI_ISA(times)(x0, f));
      HAI_ISA(store)(at + HAI_LANES, HAI_ISA(times)(x1, f));
      HAI_ISA(store)(at + 2 * HAI_LANES, HAI_ISA(times)(x2, f));
      HAI_ISA(store)(at + 3 * HAI_LANES, HAI_ISA(times)(x3, f));
    }
    if (t < dim) HAI_ISA(pack_rest)(row, t, dim, factor, packed, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- Scores ---- */

#define HAI_KEY_ROW(r) const HAI_ELEMENT *k##r = HAI_AS(const HAI_ELEMENT *, key[r]);
#define HAI_KEY_ADD(r)         \
  b = HAI_ISA(each)(k##r + t); \
  HAI_ADD(r)
#define HAI_STEP        \
  HAI_LOAD(query)       \
  HAI_ROWS(HAI_KEY_ADD) \
  t++;                  \
  query += HAI_LANES;
#define HAI_TIMES(r)                              \
  c##r##0 = HAI_ISA(mul)(c##r##0, a0);            \
  if (n > 1) c##r##1 = HAI_ISA(mul)(c##r##1, a1); \
  if (n > 2) c##r##2 = HAI_ISA(mul)(c##r##2, a2);
#define HAI_SCORES_OUT(r) HAI_STORE(r, score + r * HAI_LANES)

/* score[r][i] = sum_t query[t][i] key_r[t], times the lane's factor where there is one. One register alone
   takes four steps in each iteration: its eight sums leave no time for the loop's own instructions. */
HAI_TARGET HAI_INLINE void HAI_ISA(score_registers)(const float *query, hai_index dim,
                                                    const void *const *key, float *score, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  hai_index t = 0, by_four = n == 1 ? dim - 3 : 0;
  HAI_ROWS(HAI_SUMS)
  HAI_ROWS(HAI_KEY_ROW)
  while (t < by_four) {
    HAI_STEP HAI_STEP HAI_STEP HAI_STEP
  }
  while (t < dim) {
    HAI_STEP
  }
  if (HAI_FACTORED) {
    HAI_LOAD(query)
    HAI_ROWS(HAI_TIMES)
  }
  HAI_ROWS(HAI_SCORES_OUT)
}

HAI_TARGET static void HAI_ISA(score_rows)(const float *query, hai_index dim, const void *const *key,
                                           float *score, int n) {
  if (n == 3)
    HAI_ISA(score_registers)(query, dim, key, score, 3);
  else if (n == 2)
    HAI_ISA(score_registers)(query, dim, key, score, 2);
  else
    HAI_ISA(score_registers)(query, dim, key, score, 1);
}

static void HAI_ISA(scores)(const float *query, hai_index dim, const void *const *key, int n_keys,
                            int begin, int end, float *score) {
  const void *row[HAI_N_ROWS];
  int j, r, n = (end - begin) / HAI_WIDTH;
  query += begin;
  score += begin;
  for (j = 0; j < n_keys; j += HAI_N_ROWS, key += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    if (n_keys - j < HAI_N_ROWS) { /* the first key stands for absent ones */
      for (r = 0; r < HAI_N_ROWS; r++) row[r] = key[r < n_keys - j ? r : 0];
      key = row;
    }
    HAI_ISA(score_rows)(query, dim, key, score, n);
  }
}

/* ---- Values ---- */

#define HAI_VALUE_ADD(r)    \
  b = HAI_ISA(each)(v + r); \
  HAI_ADD(r)
#define HAI_UPDATE(r, p)                                                              \
  c##r##0 = HAI_ISA(fma)(HAI_ISA(load)(p), a0, c##r##0);                              \
  if (n > 1) c##r##1 = HAI_ISA(fma)(HAI_ISA(load)((p) + HAI_WIDTH), a1, c##r##1);     \
  if (n > 2) c##r##2 = HAI_ISA(fma)(HAI_ISA(load)((p) + 2 * HAI_WIDTH), a2, c##r##2); \
  HAI_STORE(r, p)
#define HAI_VALUES_OUT(r) HAI_UPDATE(r, o + r * HAI_LANES)

#define HAI_EACH(X) HAI_ROWS(X)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_rows)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) HAI_LONG(X)
#define HAI_REGISTERS 1
#define HAI_THESE(name) HAI_ISA(name##_long)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */

#define HAI_EACH(X) X(0)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_row)
/* ======== src/kernel_values.h ======== */

/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE

/* ======== src/kernel_tile.h, continued ======== */


static void HAI_ISA(values)(float *score, int n_keys, const void *const *value, hai_index dim,
                            const float *factor, int begin, int end, float *o) {
  hai_index t = 0;
  int n = (end - begin) / HAI_WIDTH;
  score += begin;
  factor += begin;
  o += begin;
  for (; n == 1 && t + HAI_N_LONG <= dim; t += HAI_N_LONG)
    HAI_ISA(value_long)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t + HAI_N_ROWS <= dim; t += HAI_N_ROWS)
    HAI_ISA(value_rows)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t < dim; t++) HAI_ISA(value_row)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
}

#undef HAI_SUMS
#undef HAI_LOAD
#undef HAI_ADD
#undef HAI_STORE
#undef HAI_KEY_ROW
#undef HAI_KEY_ADD
#undef HAI_STEP
#undef HAI_TIMES
#undef HAI_SCORES_OUT
#undef HAI_VALUE_ADD
#undef HAI_UPDATE
#undef HAI_VALUES_OUT

/* ======== src/kernel_bf16.h, continued ======== */


static void HAI_ISA(pack_bf16)(const void *const *row, hai_index dim, float factor, float *packed) {
  int i;
  HAI_ISA(pack)(row, dim / 2, 1.0f, packed);
  for (i = 0; i < HAI_LANES; i++) packed[dim / 2 * HAI_LANES + i] = factor;
}

static void HAI_ISA(scores_bf16)(const float *query, hai_index dim, const void *const *key, int n_keys,
                                 int begin, int end, float *score) {
  HAI_ISA(scores)(query, dim / 2, key, n_keys, begin, end, score);
}

/* Two sums in turn hide each other's latency. */
HAI_TARGET static void HAI_ISA(round)(float *score, int n_keys, const float *factor, int begin, int end,
                                      float *sum) {
  static const hai_bf16x2 ones = {{0x3f80, 0x3f80}};
  /* kept: gcc 12 writes a constant vector of bfloat16 as one of half precision */
  const HAI_VECTOR one = HAI_ISA(keep)(HAI_ISA(each)(&ones)), zero = HAI_ISA(zero)();
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    const float *at = score + i;
    float *joined = score + HAI_CHUNK * HAI_LANES + i;
    HAI_VECTOR even = zero, odd = zero, x, next;
    for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES, joined += 2 * HAI_LANES) {
      x = HAI_ISA(join)(HAI_ISA(load)(at), HAI_ISA(load)(at + HAI_LANES));
      HAI_ISA(store)(joined, x);
      even = HAI_ISA(dot)(x, one, even);
      x = HAI_ISA(join)(HAI_ISA(load)(at + 2 * HAI_LANES), HAI_ISA(load)(at + 3 * HAI_LANES));
      HAI_ISA(store)(joined + HAI_LANES, x);
      odd = HAI_ISA(dot)(x, one, odd);
    }
    for (; j < n_keys; j += 2, at += 2 * HAI_LANES, joined += HAI_LANES) { /* in turn, as if zeros followed */
      x = HAI_ISA(join)(HAI_ISA(load)(at), j + 1 < n_keys ? HAI_ISA(load)(at + HAI_LANES) : zero);
      HAI_ISA(store)(joined, x);
      next = HAI_ISA(dot)(x, one, even);
      even = odd;
      odd = next;
    }
    even = HAI_ISA(fma)(HAI_ISA(load)(sum + i), HAI_ISA(load)(factor + i), HAI_ISA(add)(even, odd));
    HAI_ISA(store)(sum + i, even);
  }
}

/* joined[key / 2][dim]: a coordinate of two keys is an element. */
HAI_TARGET static void HAI_ISA(join_values)(const void *const *value, int n_keys, hai_index dim,
                                            float *joined) {
  static const uint16_t none[8] = {0};
  int j;
  for (j = 0; j < n_keys; j += 2) {
    const uint16_t *even = HAI_AS(const uint16_t *, value[j]), *odd = none;
    hai_bf16x2 *to = HAI_PLACE(hai_bf16x2, joined);
    hai_index t = 0, step = 0; /* of `odd` */
    if (j + 1 < n_keys) {
      odd = HAI_AS(const uint16_t *, value[j + 1]);
      step = 1;
    }
    for (; t + 8 <= dim; t += 8) HAI_ISA(zip)(even + t, odd + step * t, to + t);
    for (; t < dim; t++) {
      to[t].x[0] = even[t];
      to[t].x[1] = odd[step * t];
    }
    joined += dim;
  }
}

static void HAI_ISA(values_bf16)(float *score, int n_keys, const void *const *value, hai_index dim,
                                 const float *factor, int begin, int end, float *o) {
  const void *row[HAI_CHUNK / 2];
  int n = (n_keys + 1) / 2, j;
  for (j = 0; j < n; j++) row[j] = HAI_AS(const float *, value[0]) + j * dim;
  HAI_ISA(values)(score + HAI_CHUNK * HAI_LANES, n, row, dim, factor, begin, end, o);
}

/* ======== src/kernel_end.h ======== */

#undef HAI_ISA
#undef HAI_TARGET
#undef HAI_VECTOR
#undef HAI_WIDTH
#undef HAI_LANES
#undef HAI_ELEMENT
#undef HAI_ROWS
#undef HAI_N_ROWS
#undef HAI_LONG
#undef HAI_N_LONG
#undef HAI_FACTORED
#undef HAI_STEP_REGISTERS
#undef HAI_MOST_ROWS
#undef HAI_MOST_QUERIES

/* ======== src/kernel_bf16.h, continued ======== */


/* ======== src/kernel_neon_bf16.h, continued ======== */


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
    /* cap */ hai_cap_neon,
    /* hide */ hai_hide_neon,
    /* add_bias */ hai_add_bias_neon,
    /* softmax */ hai_softmax_neon,
    /* round */ hai_round_neonbf,
    /* join */ hai_join_values_neonbf,
    /* values */ hai_values_bf16_neonbf,
    /* scale */ hai_scale_neon,
    /* carry */ hai_carry_neon,
    /* gather */ hai_gather_neon,
    /* sum_lanes */ hai_sum_lanes_neon,
    /* square */ hai_square_neon,
    /* add_row */ hai_add_row_neon,
    /* value_multiple */ 1,
    /* few */ HAI_NULL,
    /* enter */ hai_enter_neon,
    /* leave */ hai_leave_neon};
#endif

/* ======== src/detect.h ======== */

#if HAI_SIMD && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/* Which kernels this machine can run, and which one a call takes. */

/* What the processor has. FAST: bfloat16 products take less time than float32's multiply-adds, as on AMD's
   cores; on Intel's they take twice as long. */
enum {
  HAI_CPU_KNOWN = 1,
  HAI_CPU_AVX2 = 2,
  HAI_CPU_AVX512 = 4,
  HAI_CPU_AVX512_BF16 = 8,
  HAI_CPU_AVX512_BF16_FAST = 16,
  HAI_CPU_AMX = 32,
  HAI_CPU_AVX512_VNNI = 64,
  HAI_CPU_AVX_VNNI = 128
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

/* The features that the processor has and whose registers the system saves. Tests pass two functions of their
   own. */
static int hai_cpu_features(void (*cpuid)(uint32_t, uint32_t, uint32_t[4]), uint64_t (*xcr0)(void)) {
  uint32_t r[4], leaves;
  uint64_t saved;
  int features = HAI_CPU_KNOWN, is_amd, has_512, has_tiles;
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
  has_512 = (saved & 0xe6) == 0xe6 && (r[1] >> 16 & 1) && (r[1] >> 17 & 1) && (r[1] >> 30 & 1) &&
            (r[1] >> 31 & 1); /* F, DQ, BW, VL */
  has_tiles = (r[3] >> 22 & 1) && (r[3] >> 24 & 1) && (saved & 0x60000) == 0x60000; /* BF16, TILE */
  if (has_512) features |= HAI_CPU_AVX512 | (r[2] >> 11 & 1 ? HAI_CPU_AVX512_VNNI : 0);
  if (!r[0]) return features;
  cpuid(7, 1, r);
  if (r[0] >> 4 & 1) features |= HAI_CPU_AVX_VNNI;
  if (!has_512 || !(r[0] >> 5 & 1)) return features;
  if (has_tiles) features |= HAI_CPU_AMX;
  features |= HAI_CPU_AVX512_BF16 | (is_amd ? HAI_CPU_AVX512_BF16_FAST : 0);
  return features;
}

/* The same, kept after the first call: CPUID is slow, above all in a virtual machine. Threads that come first
   together write the same word. */
static int hai_cpu(void) {
  static int word;
  int features = __atomic_load_n(&word, __ATOMIC_RELAXED);
  if (!features) {
    features = hai_cpu_features(hai_cpuid, hai_xcr0);
    __atomic_store_n(&word, features, __ATOMIC_RELAXED);
  }
  return features;
}
#else
static int hai_cpu(void) { return HAI_CPU_KNOWN; }
#endif

#if HAI_AMX
/* Whether the process has asked Linux for AMX's registers: using them without permission raises SIGILL. The
   answer can turn to yes at any time and never back, so only yes is kept, and no size depends on it. */
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

/* ---- The table of ISAs ---- */

#if HAI_AVX512
#define HAI_IF_AVX512(x) x
#else
#define HAI_IF_AVX512(x) HAI_NULL
#endif
#if HAI_AVX512_BF16
#define HAI_IF_AVX512_BF16(x) x
#else
#define HAI_IF_AVX512_BF16(x) HAI_NULL
#endif
#if HAI_AMX
#define HAI_IF_AMX(x) x
#else
#define HAI_IF_AMX(x) HAI_NULL
#endif
#if HAI_AVX2
#define HAI_IF_AVX2(x) x
#else
#define HAI_IF_AVX2(x) HAI_NULL
#endif
#if HAI_NEON
#define HAI_IF_NEON(x) x
#else
#define HAI_IF_NEON(x) HAI_NULL
#endif

typedef struct hai_isa {
  unsigned char isa;        /* hyperattn_isa */
  unsigned char features;   /* that the processor must have */
  const hai_kernel *kernel; /* for rows of float32; NULL where this build has none */
  const char *name;
} hai_isa;

/* One row for each ISA, the best first: HYPERATTN_ISA_AUTO stands for the first that this machine has. */
static const hai_isa hai_isas[] = {
    {HYPERATTN_ISA_AMX_BF16, HAI_CPU_AMX, HAI_IF_AMX(&hai_kernel_avx512), "amx-bf16"},
    {HYPERATTN_ISA_AVX512_BF16, HAI_CPU_AVX512_BF16, HAI_IF_AVX512_BF16(&hai_kernel_avx512), "avx512-bf16"},
    {HYPERATTN_ISA_AVX512, HAI_CPU_AVX512, HAI_IF_AVX512(&hai_kernel_avx512), "avx512"},
    {HYPERATTN_ISA_AVX2, HAI_CPU_AVX2, HAI_IF_AVX2(&hai_kernel_avx2), "avx2"},
    {HYPERATTN_ISA_NEON, 0, HAI_IF_NEON(&hai_kernel_neon), "neon"},
    {HYPERATTN_ISA_SCALAR, 0, &hai_kernel_scalar, "scalar"},
    {HYPERATTN_ISA_AUTO, 0, HAI_NULL, "auto"}};
enum { HAI_N_ISAS = sizeof hai_isas / sizeof hai_isas[0] };

static int hai_can_run(const hai_isa *row) {
#if HAI_AMX
  if (row->isa == HYPERATTN_ISA_AMX_BF16) return hai_amx_permitted();
#endif
  return row->kernel && !(row->features & ~hai_cpu());
}

/* The kernel of an ISA for rows of float32, NULL where this machine or build has none. AUTO skips the
   row of AMX, whose test asks the system each time until it permits; a later row has the same kernel. */
HAI_APART const hai_kernel *hai_kernel_of(hyperattn_isa isa) {
  int i;
  for (i = 0; i < HAI_N_ISAS; i++) {
    int fits = isa == HYPERATTN_ISA_AUTO ? hai_isas[i].isa != HYPERATTN_ISA_AMX_BF16
                                         : hai_isas[i].isa == HAI_AS(int, isa);
    if (fits && hai_can_run(&hai_isas[i])) return hai_isas[i].kernel;
  }
  return HAI_NULL;
}

/* ---- Kernels that read bfloat16 ---- */

/* Whether AMX's kernel may be chosen now, or later, once the process asks for it. */
static int hai_may_use_amx(hyperattn_isa isa, hai_index head_dim, hai_index value_dim) {
#if HAI_AMX
  return (isa == HYPERATTN_ISA_AUTO || isa == HYPERATTN_ISA_AMX_BF16) && (hai_cpu() & HAI_CPU_AMX) &&
         head_dim % HAI_AMX_PRODUCTS == 0 && value_dim % HAI_AMX_ROWS == 0;
#else
  (void)isa, (void)head_dim, (void)value_dim;
  return 0;
#endif
}

/* The kernel whose products read bfloat16, NULL where there is none or, under AUTO, where it is slower than
   the one for float32. */
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

/* ---- Kernels of the scan ---- */

/* The scan's kernel beside a kernel for float32: the fastest way of the same ISA, with the same lanes, that a
   processor with these features has. */
static const hai_scan_kernel *hai_scan_kernel_by(const hai_kernel *kernel, int features) {
  (void)kernel, (void)features;
#if HAI_SCAN
#if HAI_AVX512
  if (kernel->isa == HYPERATTN_ISA_AVX512)
    return features & HAI_CPU_AVX512_VNNI ? &hai_scan_kernel_avx512_vnni : &hai_scan_kernel_avx512;
#endif
#if HAI_AVX_VNNI
  if (kernel->isa == HYPERATTN_ISA_AVX2 && (features & HAI_CPU_AVX_VNNI)) return &hai_scan_kernel_avx2_vnni;
#endif
#if HAI_AVX2
  if (kernel->isa == HYPERATTN_ISA_AVX2) return &hai_scan_kernel_avx2;
#endif
#if HAI_NEON
  if (kernel->isa == HYPERATTN_ISA_NEON) return &hai_scan_kernel_neon;
#endif
  return &hai_scan_kernel_scalar;
#else
  return HAI_NULL;
#endif
}
static const hai_scan_kernel *hai_scan_kernel_of(const hai_kernel *kernel) {
  return hai_scan_kernel_by(kernel, hai_cpu());
}

/* ======== src/arrays.h ======== */

/* The tables of arrays of the workspace, a row for each: its name, the size of an element, the heads that it
   has a part for, how many elements such a part has (hai_count_.. in workspace.h), and the array whose place
   it takes. Most have a place of their own. Arrays that share a place are listed after its owner and lie one
   behind the other from its start; they are never in use at the same time as the owner. Arrays [n_query] and
   [n_key] have an element for each row of the tensor. The others are shared by the rectangles of a level, as
   their accessors say, and written anew at each level; RECORD is kept. */
#define HAI_ARRAYS(X)                                                                            \
  /* lse of what each query has met so far: [n_query] */                                         \
  X(LSE, sizeof(float), HAI_OF_HEADS, hai_count_lse, LSE)                                        \
  /* the result so far, where out itself is not float32: [n_query][value_dim] */                 \
  X(OUT, sizeof(float), HAI_OF_HEADS, hai_count_out, OUT)                                        \
  /* states of few queries over each part of the keys: [parts][n_query][value_dim, m, l, ..] */  \
  X(FEW, sizeof(float), HAI_OF_HEADS, hai_count_few, FEW)                                        \
  /* sub-blocks of each query group, ascending: [groups][take] */                                \
  X(CHOICE, sizeof(int32_t), HAI_OF_HEADS, hai_count_choice, CHOICE)                             \
  /* bucket of each row */                                                                       \
  X(QUERY_CODE, sizeof(uint16_t), HAI_OF_HEADS, hai_count_sorted_queries, CHOICE)                \
  X(KEY_CODE, sizeof(uint16_t), HAI_OF_KV_HEADS, hai_count_sorted_keys, CHOICE)                  \
  /* mean key of each sub-block: [sub-blocks][head_dim] */                                       \
  X(MEAN, sizeof(float), HAI_OF_KV_HEADS, hai_count_mean, MEAN)                                  \
  /* column masses, then sampling weights before they are mixed: [n_key] */                      \
  X(MASS, sizeof(float), HAI_OF_HEADS, hai_count_mass, MEAN)                                     \
  /* row at each sorted position, rectangle by rectangle: [n_query], [n_key] */                  \
  X(QUERY_ORDER, sizeof(int32_t), HAI_OF_HEADS, hai_count_sorted_queries, QUERY_ORDER)           \
  X(KEY_ORDER, sizeof(int32_t), HAI_OF_KV_HEADS, hai_count_sorted_keys, KEY_ORDER)               \
  /* mean key of each superblock: [superblocks][head_dim] */                                     \
  X(SUPERBLOCK_MEAN, sizeof(float), HAI_OF_KV_HEADS, hai_count_superblock_mean, SUPERBLOCK_MEAN) \
  /* m, l of probes over chunks, then sums of weights: [chunks][probe_queries or 1][2] */        \
  X(PARTIAL, sizeof(float), HAI_OF_HEADS, hai_count_partial, PARTIAL)                            \
  /* states of the held-out queries over each chunk of keys: [chunks][truth_floats] */           \
  X(TRUTH, sizeof(float), HAI_OF_HEADS, hai_count_truth, TRUTH)                                  \
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
  /* what the judges found, and where they stand in the sorted order: [max_rects] */             \
  X(TRIALS, sizeof(hai_trials), HAI_OF_HEADS, hai_count_trials, TRIALS)                          \
  /* what the report keeps of each rectangle, of all levels: [2 max_rects] */                    \
  X(RECORD, sizeof(hai_record), HAI_OF_HEADS, hai_count_record, RECORD)                          \
  /* ln of the largest residual sum of each task of sampled rows */                              \
  X(CAP, sizeof(float), HAI_OF_HEADS, hai_count_cap, CAP)

/* Those of the scan, in a table of their own, which a build without it leaves out. */
#define HAI_SCAN_ARRAYS(X)                                                           \
  /* the sketch: codes of each key, [blocks][HAI_CHUNK][code_dim] */                 \
  X(CODE, sizeof(uint8_t), HAI_OF_KV_HEADS, hai_count_code, CODE)                    \
  /* largest norm of each word's codes: [blocks][code_dim / 4] */                    \
  X(NORM, sizeof(float), HAI_OF_KV_HEADS, hai_count_norms, NORM)                     \
  /* mean squares of words, mean norms, and the mean unit: [code_dim / 2 + 1] */     \
  X(SPREAD, sizeof(float), HAI_OF_KV_HEADS, hai_count_spread, SPREAD)                \
  /* mean key of each block: [blocks][head_dim] */                                   \
  X(BLOCK_MEAN, sizeof(float), HAI_OF_KV_HEADS, hai_count_block_mean, BLOCK_MEAN)    \
  /* what a code is worth, or HAI_WHOLE: [blocks] */                                 \
  X(CODE_UNIT, sizeof(float), HAI_OF_KV_HEADS, hai_count_blocks, CODE_UNIT)          \
  /* -ln of a random number for each key, the first HAI_CHUNK again at the end */    \
  X(DRAW, sizeof(float), HAI_OF_KV_HEADS, hai_count_draws, DRAW)                     \
  /* a value that others are measured from: [value_dim] */                           \
  X(CENTRE, sizeof(float), HAI_OF_KV_HEADS, hai_count_centre, CENTRE)                \
  /* each value's squared distance from it */                                        \
  X(DISTANCE, sizeof(float), HAI_OF_KV_HEADS, hai_count_sketched, DISTANCE)          \
  /* rows that missed the tolerance, each task's from its first row on: [n_query] */ \
  X(MISSED, sizeof(int32_t), HAI_OF_HEADS, hai_count_missed, MISSED)                 \
  /* relative error of each query, where a report alone needs it: [n_query] */       \
  X(QUERY_ERROR, sizeof(float), HAI_OF_HEADS, hai_count_error, QUERY_ERROR)          \
  /* what each task of the scan has done: [tasks of all rectangles of a level] */    \
  X(TALLY, sizeof(hai_tally), HAI_OF_HEADS, hai_count_tally, TALLY)

/* Those of lookups, likewise. */
#define HAI_INDEX_ARRAYS(X)                                                            \
  /* weights of all keys of the index for each query, and what they come from */       \
  X(LOOK, sizeof(float), HAI_OF_HEADS, hai_count_look, LOOK)                           \
  /* how each query fared: [n_query] */                                                \
  X(MET, sizeof(hai_met), HAI_OF_HEADS, hai_count_met, MET)

enum { HAI_OF_HEADS, HAI_OF_KV_HEADS };

typedef enum hai_array_id {
#define HAI_ARRAY_ID(name, size, heads, count, place) HAI_ARRAY_##name,
  HAI_ARRAYS(HAI_ARRAY_ID) HAI_SCAN_ARRAYS(HAI_ARRAY_ID) HAI_INDEX_ARRAYS(HAI_ARRAY_ID)
      HAI_N_ARRAY_IDS
} hai_array_id;

/* Where everything lies, in bytes from the workspace's aligned begin. */
typedef struct hai_layout {
  size_t begin[HAI_ARRAY_CODE];  /* of each array; one that a call does not need has no bytes */
  size_t stride[HAI_ARRAY_CODE]; /* bytes of each array for one head */
  size_t scan;                 /* where the scan's arrays begin, which lie one behind the other */
  size_t scratch;              /* first worker's scratch, behind all arrays */
  size_t scratch_bytes;        /* of each worker */
  int overflow;                /* set where a size passes PTRDIFF_MAX; the rest then means nothing */
} hai_layout;

/* ======== src/plan.h ======== */

/* Plan. A call with everything made definite: defaults filled in, counts clamped to what exists, regions
   cut.

   Regions. Query i stands at position P = i + n_key - n_query; the causal square is the last
   min(n_query, n_key) queries and keys. It is cut in halves `depth` times; halving e (0: of the whole)
   gives 2^e rectangles, the second half's queries by the first half's keys of each part. What remains are
   2^depth diagonal segments, which are exact. Outside the square lies one more rectangle: the prefix of
   chunked prefill, or for full attention the whole problem. Levels run from the diagonal outward; the outer
   rectangle is the last. */

/* Blocks come by one or two pairings, 0 and 1, each an order of the rows and a choice of sub-blocks for each
   query group. HAI_NO_BLOCKS stands for neither. */
enum { HAI_NO_BLOCKS = 2 };

typedef struct hai_plan {
  const hyperattn_problem *problem;
  const hyperattn_params *params;
  const hai_kernel *float_kernel; /* takes rows of float32 */
  const hai_kernel *kernel; /* takes the problem's rows as they lie, where there is such a kernel, else the
                               float_kernel. Both have the same lanes and width. */
  const hai_scan_kernel *scan_kernel; /* beside float_kernel; NULL in a build without the scan */
  unsigned char may_use_amx;          /* sizes suffice for AMX's kernel, and for the others */
  float scale;                        /* of scores, never 0 */

  /* The problem's shape. */
  hai_index n_heads, n_kv_heads, n_query, n_key, head_dim, value_dim;
  hai_index heads_per_kv; /* query heads that share a kv head */

  /* The parameters' counts, none above the number of rows that exist. */
  hai_index min_seq_len, block_size, sample_size, query_group, key_group, sink_keys, heavy_keys,
      probe_queries;
  hai_index window;          /* 0 in full attention */
  hai_index sliding;         /* the problem's sliding window; 0 where that hides nothing */
  unsigned char hyper;       /* 1 if rectangles may be approximated */
  unsigned char scanning;    /* 1 if the call's queries scan a sketch of the keys */
  unsigned char looking;     /* 1 if they are few and look keys up in an index */
  unsigned char scans_rects; /* 1 if those of a rectangle do for which no trial meets the tolerance */

  /* The regions. */
  hai_index square;          /* queries and keys of the causal square; 0 in full attention */
  hai_index query_skip;      /* queries before the square */
  hai_index key_skip;        /* keys before the square */
  int depth;                 /* levels of the causal split */
  unsigned char outer;       /* 1 if there is an outer rectangle, which is one more level */
  unsigned char outer_exact; /* 1 if that is attended exactly */
  hai_index max_rects;       /* most rectangles of any level */

  /* Blocks and samples of an approximated rectangle. */
  int take;                 /* sub-blocks of each query group */
  unsigned char by_score;   /* 1 if groups choose sub-blocks by score, 0 if by rank */
  unsigned char n_pairings; /* 1, or 2 to be tried */
  unsigned char sorted[2];  /* 1 if a pairing's order is by hash, 0 if by position */
  unsigned char probing;    /* 1 if probes are run */
  unsigned char weighing;   /* 1 if columns are drawn by weights */
  unsigned char choosing;   /* 1 if held-out queries choose the recipe */
  unsigned char reporting;  /* 1 if a report is wanted */
  hai_index max_pins;       /* most pins of a rectangle */
  hai_index max_wide;       /* most columns of the wide draw; 0 if there is none */
  hai_index truth_floats;   /* floats of the held-out queries' states: whole tiles of m, l [lanes] and
                             o [value_dim][lanes] */

  /* The stages that the call needs, as rows of hai_stages: first those before the levels, then those of every
     level, then those after the levels. Of those of a level, n_beside run beside the stage before them;
     begins_beside: 1 if the first stage of all is one of them, and leads a phase all the same. */
  unsigned char n_before, n_per_level, n_after, n_beside, begins_beside;
  unsigned char stages[HAI_MAX_STAGES];
  hai_layout layout;
} hai_plan;

typedef struct hai_rect {
  hai_index query_begin, n_query, key_begin, n_key;
  hai_index index;  /* within its level */
  hai_index region; /* number in the split, whatever the lengths: of its random numbers and its record */
} hai_rect;

/* Does a sliding window hide keys, is there a mask? Constant in a build without them. */
static int hai_sliding(const hai_plan *plan) { return HAI_SLIDING && plan->sliding; }
static int hai_masking(const hai_plan *plan) { return HAI_MASKS && plan->problem->mask.data; }

/* Do the call's queries scan, or those of rectangles for which no trial meets the tolerance? Constant in a
   build without the scan. */
static int hai_scanning(const hai_plan *plan) { return HAI_SCAN && plan->scanning; }
static int hai_scans_rects(const hai_plan *plan) { return HAI_SCAN && HAI_JUDGING && plan->scans_rects; }

/* Do the call's queries look keys up in an index, and would fewer of them? Constant in a build without it. */
static int hai_looking(const hai_plan *plan) { return HAI_INDEX && plan->looking; }

/* Do the queries of a rectangle go on from states that earlier phases stored? The problem that is scanned as
   a whole, and the rectangle of full attention, come first. */
static int hai_resumes(const hai_plan *plan) { return plan->problem->causal && !hai_scanning(plan); }

/* Do queries meet keys exactly before any rectangle: those of a segment of the causal split, or all? */
static int hai_meets_exactly(const hai_plan *plan) { return plan->problem->causal || !plan->outer; }

/* Which kernel serves: the one for few queries, or that of tiles, whose lanes more queries fill. In exact
   attention n_query decides for every number of heads, so that heads which share keys compute what they
   would compute apart. Tiles of a kernel that reads bfloat16, now or once the process asks for AMX, are so
   fast that fewer queries are few. */
static hai_index hai_few_queries(const hai_plan *plan) {
  return HAI_FEW ? HAI_FEW_QUERIES(plan->float_kernel->few->queries) : 0;
}
static int hai_is_few(const hai_plan *plan) {
  int is_bf16 = plan->may_use_amx || plan->kernel != plan->float_kernel;
  hai_index most = is_bf16 ? hai_min(HAI_FEW_BF16, hai_few_queries(plan)) : hai_few_queries(plan);
  if (hai_looking(plan)) return 1;
  return HAI_FEW && plan->n_query <= most && !plan->depth && !plan->outer && !hai_scanning(plan);
}

#if HAI_INDEX
static hai_index hai_most_looked(const hai_plan *plan) {
  return hai_min(HAI_LOOK_QUERIES, hai_few_queries(plan));
}

/* May a call with these parameters, so many keys and any number of queries look keys up? */
static int hai_may_look(const hai_plan *plan) {
  return plan->problem->index && plan->params->method != HYPERATTN_EXACT && !hai_sliding(plan) &&
         !hai_masking(plan) && plan->n_key >= HAI_LOOK_LEAST;
}
#else
static int hai_may_look(const hai_plan *plan) { return (void)plan, 0; }
#endif

/* Parts that so many keys are cut into for few queries. */
static hai_index hai_few_parts_of(hai_index n_key) {
  return n_key <= HAI_FEW_UNCUT ? 1 : hai_ceil_div(n_key, HAI_FEW_KEYS);
}

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

/* Are sub-blocks chosen within superblocks that were chosen first? Only of many keys, if that is less
   work. */
static int hai_two_levels(const hai_plan *plan, hai_index n_key) {
  hai_index blocks = n_key / plan->key_group;
  return n_key > HAI_PAIR_DENSE && hai_superblock_blocks(plan, n_key) < blocks - blocks / HAI_SUPERBLOCK;
}

/* Products of mean queries and mean keys that pairing takes. Groups are not rounded up to whole ones: the
   share of all products must not rise with the sides, or a region that is worth approximating could cease to
   be so as it grows. */
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
HAI_ONCE int hai_worth(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  return HAI_HYPER && plan->hyper && !hai_looking(plan) && n_key >= plan->min_seq_len &&
         hai_rect_products(plan, n_query, n_key) < HAI_AS(uint64_t, n_query) * HAI_AS(uint64_t, n_key);
}

static int hai_plan_levels(const hai_plan *plan) { return plan->depth + plan->outer; }

static hai_index hai_plan_rects(const hai_plan *plan, int level) {
  return level < plan->depth ? hai_power_of_2(plan->depth - 1 - level) : 1;
}

/* Sets r to rectangle `index` of a level, levels counted in the order in which they run; -1: to the whole
   problem, which tasks before and after the levels are about. In place, since a second one on a task's stack
   would lie below all that the task calls. */
static void hai_rect_set(hai_rect *r, const hai_plan *plan, int level, hai_index index) {
  r->index = index;
  if (level < 0) {
    r->query_begin = r->key_begin = r->region = 0;
    r->n_query = plan->n_query;
    r->n_key = plan->n_key;
  } else if (level < plan->depth) {
    hai_index parts = 2 * hai_plan_rects(plan, level);
    hai_index begin = hai_cut(plan->square, parts, 2 * index);
    hai_index half = hai_cut(plan->square, parts, 2 * index + 1);
    hai_index end = hai_cut(plan->square, parts, 2 * index + 2);
    r->query_begin = plan->query_skip + half;
    r->n_query = end - half;
    r->key_begin = plan->key_skip + begin;
    r->n_key = half - begin;
    r->region = parts / 2 + index; /* heap numbering: 1, 2 3, 4 5 6 7, .. */
  } else {
    r->query_begin = plan->problem->causal ? plan->query_skip : 0;
    r->n_query = plan->n_query - r->query_begin;
    r->key_begin = 0;
    r->n_key = plan->problem->causal ? plan->key_skip : plan->n_key;
    r->region = 0;
  }
}
static hai_rect hai_rect_at(const hai_plan *plan, int level, hai_index index) {
  hai_rect r;
  hai_rect_set(&r, plan, level, index);
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

/* Probing and judging are cut into chunks of at least so many keys: how many chunks n_key keys have. */
static hai_index hai_chunks_of(hai_index n_key, hai_index least_keys, hai_index most_chunks) {
  return hai_min(hai_max(1, n_key / least_keys), most_chunks);
}
static hai_index hai_probe_chunks(hai_index n_key) {
  return hai_chunks_of(n_key, HAI_PROBE_KEYS, HAI_PROBE_CHUNKS);
}
static hai_index hai_judge_chunks(hai_index n_key) {
  return hai_chunks_of(n_key, HAI_JUDGE_KEYS, HAI_JUDGE_CHUNKS);
}

#ifndef HYPERATTN_NO_COST
/* ---- What a call is expected to cost, over what exact attention would ---- */

/* Of HYPERATTN_HYPER: products that probing, pairing and budgets take, instead of those of rectangles that
   are approximated. A rectangle's pairs that lie in a window are met exactly all the same: about half of a
   corner of that size. */
static float hai_hyper_cost(const hai_plan *plan) {
  float square = HAI_AS(float, plan->square), n_key = HAI_AS(float, plan->n_key), saved = 0.0f;
  float pairs = plan->problem->causal ? square * (n_key - 0.5f * (square - 1.0f))
                                      : HAI_AS(float, plan->n_query) * n_key;
  int level = HAI_HYPER ? hai_plan_levels(plan) - plan->outer_exact : 0;
  if (!level) return 1.0f;
  while (level-- > 0) {
    hai_rect r = hai_rect_at(plan, level, 0); /* the level's others differ by a row */
    hai_index rects = hai_plan_rects(plan, level);
    hai_index rows = hai_min(plan->window, r.n_query), keys = hai_min(plan->window, r.n_key);
    uint64_t products = hai_rect_products(plan, r.n_query, r.n_key);
    float exact = HAI_AS(float, r.n_query) * HAI_AS(float, r.n_key);
    exact -= 0.5f * HAI_AS(float, rows) * HAI_AS(float, keys);
    saved += HAI_AS(float, rects) * (exact - HAI_AS(float, products));
  }
  return saved > 0.001f * pairs ? 1.0f - saved / pairs : 0.999f; /* 1 is for what is exact */
}
#endif

/* ======== src/workspace.h ======== */

/* Workspace. How many bytes each array takes, where it lies, and how a task finds its part of it. One
   function lays out, for the size query and for the run. Counts depend on shapes through functions that never
   fall as n_query or n_key rise, so neither does the size. */

typedef struct hai_column {
  int32_t key;
  int32_t block[2]; /* sub-block that holds the key in each pairing, -1 without blocks */
  float log_weight; /* ln of the inverse of its probability */
} hai_column;

/* What a rectangle's queries meet besides the pins. */
typedef enum hai_recipe {
  HAI_BLOCKS,  /* blocks and columns, as the parameters say */
  HAI_COLUMNS, /* the wide draw of columns: as many more as blocks have keys */
  HAI_EACH     /* nothing is chosen for them together: each meets what it keeps of a scan, or every key */
} hai_recipe;

/* What the held-out queries of a task found in a trial: sums of |out' - out|^2 and |out|^2. */
typedef struct hai_finding {
  float squared_error, squared_norm; /* squared_norm < 0: no such task yet */
} hai_finding;

/* Trials: columns alone, and each of two pairings. */
enum { HAI_TRIALS = 3, HAI_TRIAL_TASKS = HAI_JUDGES / HAI_JUDGE_RUN };

/* Of a rectangle and head: what the judges found in each trial, by tasks, and where they stand in the sorted
   order. Of two pairings only the second is sorted, so one place is enough. */
typedef struct hai_trials {
  hai_finding found[HAI_TRIALS][HAI_TRIAL_TASKS];
  int32_t place[HAI_JUDGES];
} hai_trials;

/* What the report keeps of a rectangle and head. */
typedef struct hai_record {
  int32_t recipe;
  int32_t tried;      /* how many pairings have been tried */
  int32_t n;          /* held-out queries */
  float keys;         /* that a query meets */
  float exact;        /* share of its queries that meet every key */
  float alpha, kappa; /* of hyperattn_report */
  struct {
    int32_t place; /* in the sorted order */
    int32_t row;   /* -1: left out of the report */
    float error;   /* |out' - out|^2, out' by the rectangle's choice, out by all its keys; or its estimate */
    float norm;    /* |out|^2 */
    float whole;   /* lse after the rectangle, by all its keys */
    float rect;    /* lse of the choice; of a scan: of pins and sample, by their mean share */
    float blocks;  /* share of the choice's attention that the blocks have */
    float pinned;  /* and that the pins have */
  } query[HAI_AUDITORS];
} hai_record;

/* What a task of the scan has done, for the later phases and the report. */
typedef struct hai_tally {
  int32_t missed;        /* rows that missed the tolerance: no shares of theirs are added */
  int32_t doubled;       /* whose first budget was not enough */
  int32_t exact;         /* that met every key */
  float met;             /* keys met exactly, summed over rows */
  float pinned, sampled; /* shares of the attention, summed over rows */
} hai_tally;

/* How a query over an index fared. */
typedef struct hai_met {
  float error;           /* relative */
  float pinned, sampled; /* shares of the attention, of sinks and of kept keys */
  int32_t keys;          /* that it met */
  int32_t doubled;       /* 1: the first budget was not enough */
  int32_t exact;         /* 1: it is yet to meet every key */
} hai_met;

typedef struct hai_tile hai_tile;

/* May a call with these parameters and so many keys hold an approximated rectangle? A causal query's own key
   is in none. Of the number of queries only this counts, so that sizes never fall as it rises: where held-out
   queries choose, HAI_JUDGES of them meet every key, so that approximation cannot pay for fewer queries. */
static int hai_may_approximate(const hai_plan *plan) {
  if (plan->choosing && plan->n_query < HAI_JUDGES) return 0;
  return HAI_HYPER && plan->hyper && plan->n_key >= plan->min_seq_len + plan->problem->causal;
}

/* Have the keys a sketch? */
static int hai_sketching(const hai_plan *plan) { return hai_scanning(plan) || hai_scans_rects(plan); }

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
/* Floats of a part's state of a query: o in whole steps of any kernel, m and l, in whole lines. */
static hai_index hai_few_stride(const hai_plan *plan) {
  return hai_ceil_div(plan->value_dim, HAI_Q8_0_ELEMENTS) * HAI_Q8_0_ELEMENTS + 16;
}
/* For the most queries that are few, and the most keys that they can see. */
static size_t hai_count_few(const hai_plan *plan) {
  hai_index n_query = hai_min(plan->n_query, hai_few_queries(plan)), n_key = plan->n_key;
  if (hai_sliding(plan)) n_key = hai_min(n_key, plan->sliding + n_query + HAI_CHUNK);
  if (!HAI_FEW || hai_few_parts_of(n_key) == 1) return 0;
  return hai_times(hai_product(hai_few_parts_of(n_key), n_query), HAI_AS(size_t, hai_few_stride(plan)));
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
/* For all key chunks of a level: those of the outer rectangle, or of the inner ones. Half of the square's
   keys are in a level, and a rectangle has one chunk at least. */
static hai_index hai_level_chunks(const hai_plan *plan, hai_index of_outer, hai_index least_keys) {
  hai_index inner = (hai_min(plan->n_query, plan->n_key) / 2 + plan->max_rects) / least_keys;
  return hai_max(of_outer, hai_max(inner, plan->max_rects));
}
static size_t hai_count_partial(const hai_plan *plan) {
  hai_index chunks = hai_level_chunks(plan, hai_probe_chunks(plan->n_key), HAI_PROBE_KEYS);
  if (!plan->probing && !plan->weighing) return 0;
  return hai_times(hai_product(chunks, hai_max(1, plan->probe_queries)), 2);
}
static size_t hai_count_truth(const hai_plan *plan) {
  if (!plan->choosing && !plan->reporting) return 0;
  return hai_product(hai_level_chunks(plan, hai_judge_chunks(plan->n_key), HAI_JUDGE_KEYS),
                     plan->truth_floats);
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
static size_t hai_count_trials(const hai_plan *plan) {
  return HAI_AS(size_t, plan->choosing ? plan->max_rects : 0);
}
static size_t hai_count_record(const hai_plan *plan) {
  return HAI_AS(size_t, plan->reporting ? 2 * plan->max_rects : 0);
}
static size_t hai_count_cap(const hai_plan *plan) {
  return HAI_AS(size_t, hai_ceil_div(plan->sample_size, HAI_TASK_QUERIES));
}

/* ---- For the scan ---- */

#if HAI_SCAN
static hai_index hai_sketch_blocks(const hai_plan *plan) { return plan->n_key / HAI_CHUNK; }
static hai_index hai_code_dim(const hai_plan *plan) { return hai_ceil_div(plan->head_dim, 4) * 4; }
/* Tasks that scan for so many queries. */
static hai_index hai_scan_tasks(hai_index n_query) { return hai_ceil_div(n_query, HAI_SCAN_ROWS); }
static size_t hai_count_blocks(const hai_plan *plan) { return HAI_AS(size_t, hai_sketch_blocks(plan)); }
static size_t hai_count_sketched(const hai_plan *plan) {
  return HAI_AS(size_t, hai_sketch_blocks(plan) * HAI_CHUNK);
}
static size_t hai_count_draws(const hai_plan *plan) { return hai_count_sketched(plan) + HAI_CHUNK; }
static size_t hai_count_code(const hai_plan *plan) {
  return hai_times(hai_count_sketched(plan), HAI_AS(size_t, hai_code_dim(plan)));
}
static size_t hai_count_block_mean(const hai_plan *plan) {
  return hai_product(hai_sketch_blocks(plan), plan->head_dim);
}
static size_t hai_count_norms(const hai_plan *plan) {
  return hai_times(hai_count_blocks(plan), HAI_AS(size_t, hai_code_dim(plan) / 4));
}
static size_t hai_count_spread(const hai_plan *plan) {
  return HAI_AS(size_t, hai_code_dim(plan) / 4 * 2 + 1);
}
static size_t hai_count_centre(const hai_plan *plan) { return HAI_AS(size_t, plan->value_dim); }
static size_t hai_count_missed(const hai_plan *plan) {
  return HAI_AS(size_t, plan->params->tolerance > 0.0f ? plan->n_query : 0);
}
static size_t hai_count_error(const hai_plan *plan) {
  return HAI_AS(size_t, plan->reporting && !plan->problem->query_error ? plan->n_query : 0);
}
static size_t hai_count_tally(const hai_plan *plan) {
  return HAI_AS(size_t, hai_scan_tasks(plan->n_query) + plan->max_rects - 1);
}
#endif

/* ---- For lookups: of the most queries that are few ---- */

#if HAI_INDEX
static hai_index hai_look_blocks(const hai_plan *plan) { return plan->n_key / HAI_CHUNK; }
static hai_index hai_look_spans(const hai_plan *plan) {
  return hai_ceil_div(hai_look_blocks(plan), HAI_SPAN_BLOCKS);
}
/* Of a query, in 4 bytes: 16 bits for each key, 64 of each block, 4 numbers of each span. */
static hai_index hai_look_words(const hai_plan *plan) {
  hai_index words = hai_look_blocks(plan) * (HAI_CHUNK / 2 + 2) + hai_look_spans(plan) * 4;
  return hai_ceil_div(words, HAI_ALIGN / 4) * (HAI_ALIGN / 4);
}
static hai_index hai_look_queries(const hai_plan *plan) {
  return hai_min(plan->n_query, hai_most_looked(plan));
}
static size_t hai_count_look(const hai_plan *plan) {
  return hai_product(hai_look_queries(plan), hai_look_words(plan));
}
static size_t hai_count_met(const hai_plan *plan) { return HAI_AS(size_t, hai_look_queries(plan)); }
#endif

/* ---- Layout ---- */

typedef struct hai_array {
  size_t (*count)(const hai_plan *plan); /* elements for one head */
  unsigned short size;                   /* bytes of an element */
  unsigned char heads;                   /* HAI_OF_HEADS or HAI_OF_KV_HEADS */
  unsigned char place;                   /* hai_array_id of the array whose place it takes */
} hai_array;

static const hai_array hai_arrays[] = {
#define HAI_ARRAY(name, size, heads, count, place) {count, size, heads, HAI_ARRAY_##place},
    HAI_ARRAYS(HAI_ARRAY)
#if HAI_SCAN
        HAI_SCAN_ARRAYS(HAI_ARRAY)
#endif
#if HAI_INDEX
            HAI_INDEX_ARRAYS(HAI_ARRAY)
#endif
};
enum { HAI_N_ARRAYS = sizeof hai_arrays / sizeof *hai_arrays };

/* Elements of an array for one head, in any call. */
static size_t hai_array_count(const hai_plan *plan, int array) {
  int wanted = array >= HAI_ARRAY_LOOK   ? hai_may_look(plan)
               : array >= HAI_ARRAY_CODE ? hai_sketching(plan)
                                         : array == HAI_ARRAY_FEW || hai_may_approximate(plan);
  return wanted ? hai_arrays[array].count(plan) : 0;
}

/* Gives an array so many bytes from `begin` on, rounded up to HAI_ALIGN; returns where they end. */
static size_t hai_take(int *overflow, size_t begin, size_t bytes) {
  size_t limit = PTRDIFF_MAX - 3 * HAI_ALIGN; /* slack and rounding fit too */
  if (bytes > limit || begin + bytes > limit) {
    *overflow = 1;
    return begin;
  }
  return begin + hai_round_up(bytes);
}

/* Bytes of an array for one head, and where it ends if it lies at `begin`. */
static size_t hai_array_stride(const hai_plan *plan, int array) {
  return hai_times(hai_array_count(plan, array), hai_arrays[array].size);
}
static size_t hai_array_end(const hai_plan *plan, int array, size_t begin, int *overflow) {
  hai_index heads = hai_arrays[array].heads == HAI_OF_HEADS ? plan->n_heads : plan->n_kv_heads;
  size_t all = hai_times(HAI_AS(size_t, plan->problem->batch), HAI_AS(size_t, heads));
  return hai_take(overflow, begin, hai_times(all, hai_array_stride(plan, array)));
}

/* Lays out the arrays, one behind the other but for those that take another's place. */
static void hai_resolve_arrays(hai_plan *plan) {
  hai_layout *y = &plan->layout;
  int i;
  size_t end = 0;
  HYPERATTN_MEMSET(y, 0, sizeof *y);
  if (!HAI_FEW && !hai_may_approximate(plan) && !hai_scanning(plan)) return;
  for (i = 0; i < HAI_ARRAY_CODE; i++) {
    y->stride[i] = hai_array_stride(plan, i);
    if (hai_arrays[i].place == i) end = y->scratch;
    if (hai_arrays[i].place == i - 1) end = y->begin[i - 1];
    y->begin[i] = end;
    end = hai_array_end(plan, i, end, &y->overflow);
    y->scratch = hai_most(y->scratch, end);
  }
  y->scan = y->scratch;
  for (; i < HAI_N_ARRAYS; i++) y->scratch = hai_array_end(plan, i, y->scratch, &y->overflow);
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

static hai_index hai_flat_head_of(const hai_job *job, hai_index head) {
  return job->batch * job->plan->n_heads + head;
}
static hai_index hai_flat_head(const hai_job *job) { return hai_flat_head_of(job, job->head); }
static hai_index hai_flat_kv_head(const hai_job *job) {
  return job->batch * job->plan->n_kv_heads + job->kv_head;
}
/* The rectangle's number `index` for a purpose. */
static uint64_t hai_random_of(const hai_job *job, int purpose, hai_index index) {
  return hai_random(job->plan->params->seed, HAI_AS(uint64_t, job->rect.region), HAI_AS(uint64_t, purpose),
                    HAI_AS(uint64_t, index));
}
HAI_HOT const char *hai_row(const hyperattn_input *x, hai_index batch, hai_index head, hai_index row) {
  return HAI_AS(const char *, x->data) +
         hai_offset(x->dtype, batch * x->batch_stride + head * x->head_stride + row * x->row_stride);
}
static char *hai_out_row(const hyperattn_output *out, hai_index batch, hai_index head, hai_index row) {
  return HAI_AS(char *, out->data) +
         hai_offset(out->dtype, batch * out->batch_stride + head * out->head_stride + row * out->row_stride);
}
/* An output as a tensor that is read. */
static hyperattn_input hai_tensor_of(const hyperattn_output *out) {
  hyperattn_input x;
  HYPERATTN_MEMSET(&x, 0, sizeof x);
  x.data = out->data;
  x.dtype = out->dtype;
  x.batch_stride = out->batch_stride;
  x.head_stride = out->head_stride;
  x.row_stride = out->row_stride;
  return x;
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
  return hai_read(job, hai_row(&p->query, job->batch, head, row), p->query.dtype, job->plan->head_dim, room);
}

/* ---- Arrays ---- */

#if HAI_SCAN
/* As hai_array_at for an array of the scan. Their places are worked out anew, since a plan lies on the
   stack. */
static char *hai_scan_array_at(const hai_job *job, hai_array_id array, hai_index flat_head) {
  const hai_plan *plan = job->plan;
  size_t begin = plan->layout.scan;
  int overflow, i;
  for (i = HAI_ARRAY_CODE; i < HAI_AS(int, array); i++) begin = hai_array_end(plan, i, begin, &overflow);
  return job->base + begin + hai_array_stride(plan, i) * HAI_AS(size_t, flat_head);
}
#endif
/* An array's first byte for a flat head; for the job's head, or for its kv head. */
static char *hai_array_at(const hai_job *job, hai_array_id array, hai_index flat_head) {
  const hai_layout *y = &job->plan->layout;
#if HAI_SCAN
  if (array >= HAI_ARRAY_CODE) return hai_scan_array_at(job, array, flat_head);
#endif
  return job->base + y->begin[array] + y->stride[array] * HAI_AS(size_t, flat_head);
}
static char *hai_array_of(const hai_job *job, hai_array_id array) {
  return hai_array_at(job, array,
                      hai_arrays[array].heads == HAI_OF_HEADS ? hai_flat_head(job) : hai_flat_kv_head(job));
}
#if HAI_INDEX
static hai_met *hai_met_of(const hai_job *job, hai_index head, hai_index row) {
  return HAI_PLACE(hai_met, hai_array_at(job, HAI_ARRAY_MET, hai_flat_head_of(job, head))) + row;
}
#endif
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
/* Rows of the tensor in the pairing's order: [sorted position] from the rectangle's first. NULL where the
   order is by position: the rectangle's rows then follow one another. */
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
   size, plus its index, since each rectangle before it may round up to one block more. */
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
/* First key of a chunk, of `chunks` that the rectangle is cut into; one past its last key is that of the
   next. */
static hai_index hai_chunk_begin(const hai_job *job, hai_index chunks, hai_index chunk) {
  return job->rect.key_begin + hai_cut(job->rect.n_key, chunks, chunk);
}
/* Of one chunk: [probe][2], or its sum of weights. */
static float *hai_partial(const hai_job *job, hai_index chunk) {
  hai_index at = job->rect.index * hai_job_probe_chunks(job) + chunk;
  return hai_floats(job, HAI_ARRAY_PARTIAL) + 2 * at * hai_max(1, job->plan->probe_queries);
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
static hai_trials *hai_trials_of(const hai_job *job) {
  return HAI_PLACE(hai_trials, hai_array_of(job, HAI_ARRAY_TRIALS)) + job->rect.index;
}
/* Whether this is the outer rectangle and not worth approximating, so that its queries meet every key. */
static int hai_rect_is_exact(const hai_job *job) {
  return job->plan->outer_exact && job->level >= job->plan->depth;
}
#if HAI_SCAN
/* Of the tasks that scan the job's rectangle: [tasks]. */
static hai_tally *hai_tallies(const hai_job *job) {
  return HAI_PLACE(hai_tally, hai_array_of(job, HAI_ARRAY_TALLY)) + job->rect.query_begin / HAI_SCAN_ROWS +
         job->rect.index;
}
/* Rows that missed the tolerance, each task's from its first row on. */
static int32_t *hai_missed(const hai_job *job) {
  return hai_ints(job, HAI_ARRAY_MISSED) + job->rect.query_begin;
}
#endif
static hai_record *hai_record_of(const hai_job *job) {
  return HAI_PLACE(hai_record, hai_array_of(job, HAI_ARRAY_RECORD)) + job->rect.region;
}
static float *hai_cap(const hai_job *job) { return hai_floats(job, HAI_ARRAY_CAP); }

/* ======== src/index.h ======== */

/* ---- The key index: a sketch that a cache keeps ----
   Keys that do not change need to be sketched once. An index holds, for each kv head, blocks of HAI_CHUNK
   keys, of which the keys that make up no whole block are left out. Keys are turned: multiplied by one
   orthogonal matrix, which products with queries that are turned likewise do not notice, and which makes
   coordinates alike. A block knows the mean of its turned keys, and each key by 2 bits a coordinate of what
   it differs from the mean, worth -3, -1, 1, 3 times one number for the key:
     turned key[t] is about mean_unit (mean[t] - HAI_MEAN_RAISED) + norm_unit norm (2 code[t] - 3).
   A block depends on its own keys alone, so the bits do not depend on how appends were cut.

   In the caller's memory, from an aligned address on: this header; for each kv head of the batch, how many
   blocks it has, room in which they are made, and the blocks, capacity / HAI_CHUNK of them. */

#if HAI_INDEX
struct hyperattn_index {
  uint64_t check; /* a hash of all that follows */
  int64_t batch, n_kv_heads, head_dim, capacity, length;
  const void *self; /* where it lies */
};

/* Parts of a block, in bytes from its begin. */
typedef struct hai_block_layout {
  hai_index groups; /* of HAI_GROUP_DIM coordinates */
  hai_index words;  /* of four coordinates of a mean, which is padded to HAI_ALIGN bytes */
  size_t norm, mean, units, size;
} hai_block_layout;

static hai_block_layout hai_block_layout_of(hai_index head_dim) {
  hai_block_layout y;
  y.groups = hai_ceil_div(head_dim, HAI_GROUP_DIM);
  y.norm = HAI_AS(size_t, y.groups * HAI_CHUNK * 4);
  y.mean = y.norm + HAI_CHUNK;
  y.units = y.mean + hai_round_up(HAI_AS(size_t, head_dim));
  y.words = HAI_AS(hai_index, (y.units - y.mean) / 4);
  y.size = hai_round_up(y.units + 3 * sizeof(float));
  return y;
}

/* Bytes of the room for making a block: floats of hai_index_room. */
static size_t hai_index_room_bytes(int64_t head_dim) {
  return hai_round_up(HAI_AS(size_t, head_dim * (HAI_TURNED + 2) + HAI_CHUNK) * sizeof(float));
}

/* Where the rooms and the blocks begin, of so many kv heads of the whole batch. */
static size_t hai_index_rooms(size_t heads) {
  return hai_round_up(hai_plus(sizeof(hyperattn_index), hai_times(heads, sizeof(int64_t))));
}
static size_t hai_index_blocks(size_t heads, int64_t head_dim) {
  return hai_plus(hai_index_rooms(heads), hai_times(heads, hai_index_room_bytes(head_dim)));
}

/* Bytes from an aligned address on; SIZE_MAX: too many. */
static size_t hai_index_bytes(int64_t batch, int64_t n_kv_heads, int64_t head_dim, int64_t capacity) {
  size_t heads = hai_times(HAI_AS(size_t, batch), HAI_AS(size_t, n_kv_heads));
  size_t blocks = hai_times(HAI_AS(size_t, capacity / HAI_CHUNK), heads);
  size_t bytes = hai_times(blocks, hai_block_layout_of(hai_to_index(head_dim)).size);
  size_t others = hai_times(heads, sizeof(int64_t) + hai_index_room_bytes(head_dim));
  if (hai_plus(bytes, others) > PTRDIFF_MAX / 2) return SIZE_MAX;
  return hai_index_blocks(heads, head_dim) + bytes;
}

static uint64_t hai_index_check(const hyperattn_index *index) {
  const int64_t field[] = {index->batch, index->n_kv_heads, index->head_dim, index->capacity, index->length};
  uint64_t hash = hai_mix(HAI_REINTERPRET(uintptr_t, index->self) + 1u);
  int i;
  for (i = 0; i < 5; i++) hash = hai_mix(hash ^ HAI_AS(uint64_t, field[i]));
  return hash;
}

/* Is it an index, and where it was made? No field is believed before. */
static int hai_index_is_sound(const hyperattn_index *index) {
  return index && HAI_REINTERPRET(uintptr_t, index) % HAI_ALIGN == 0 && index->self == index &&
         index->check == hai_index_check(index);
}

/* Is it one for keys of the problem's shape, however many? */
static int hai_index_fits(const hyperattn_index *index, const hyperattn_problem *p) {
  return hai_index_is_sound(index) && index->batch == p->batch && index->n_kv_heads == p->n_kv_heads &&
         index->head_dim == p->head_dim;
}

/* How many blocks of a kv head there are. */
static int64_t *hai_index_done(hyperattn_index *index, hai_index flat_kv_head) {
  return HAI_PLACE(int64_t, HAI_REINTERPRET(char *, index + 1)) + flat_kv_head;
}

/* Room for making its blocks. */
static float *hai_index_space(hyperattn_index *index, hai_index flat_kv_head) {
  size_t heads = HAI_AS(size_t, index->batch * index->n_kv_heads), at = HAI_AS(size_t, flat_kv_head);
  char *rooms = HAI_REINTERPRET(char *, index) + hai_index_rooms(heads);
  return HAI_PLACE(float, rooms + at * hai_index_room_bytes(index->head_dim));
}

/* Block `block` of a kv head. */
static uint8_t *hai_index_block_at(hyperattn_index *index, hai_index flat_kv_head, hai_index block) {
  size_t heads = HAI_AS(size_t, index->batch * index->n_kv_heads), at = HAI_AS(size_t, flat_kv_head);
  size_t blocks = at * HAI_AS(size_t, index->capacity / HAI_CHUNK) + HAI_AS(size_t, block);
  return HAI_REINTERPRET(uint8_t *, index) + hai_index_blocks(heads, index->head_dim) +
         blocks * hai_block_layout_of(hai_to_index(index->head_dim)).size;
}

/* The block at `at` as a kernel reads it. Returns 0 if a key of it was not finite: nothing is known of it
   then. */
static int hai_index_read(const hai_block_layout *y, const uint8_t *at, hai_index_block *b) {
  float unit[3];
  b->code = at;
  b->norm = at + y->norm;
  b->mean = at + y->mean;
  HYPERATTN_MEMCPY(unit, at + y->units, sizeof unit);
  b->mean_unit = unit[0];
  b->norm_unit = unit[1];
  b->square = unit[2];
  b->ahead = 0;
  return hai_finite(unit[0]) && hai_finite(unit[1]);
}
#endif

/* ======== src/validation.h ======== */

/* Validation. The first check that fails decides the status. */

/* ---- Shapes and parameters ---- */

static int hai_count_ok(int64_t n, int64_t least) { return n >= least && n <= 0x7fffffff; }
/* Is it one of an enumeration's values, 0 .. last? */
static int hai_listed(int64_t value, int64_t last) { return value >= 0 && value <= last; }

/* Keys and values may have any dtype. */
static hyperattn_status hai_check_dtype(hyperattn_dtype dtype, int is_kv) {
  if (!hai_listed(HAI_AS(int, dtype), HYPERATTN_CUSTOM)) return HYPERATTN_ERROR_DTYPE;
  if ((!HAI_HALVES && dtype != HYPERATTN_F32) || (!HAI_CUSTOM && dtype == HYPERATTN_CUSTOM))
    return HYPERATTN_ERROR_LEFT_OUT;
  if (dtype == HYPERATTN_Q8_0 && !is_kv) return HYPERATTN_ERROR_DTYPE_UNSUPPORTED;
  return dtype == HYPERATTN_CUSTOM && !is_kv ? HYPERATTN_ERROR_CUSTOM : HYPERATTN_OK;
}

/* Only keys and values may have pages. */
static hyperattn_status hai_check_input(const hyperattn_input *x, int is_kv) {
  if (HAI_CUSTOM && is_kv && x->dtype == HYPERATTN_CUSTOM && !x->widen) return HYPERATTN_ERROR_NULL_WIDEN;
  if (HAI_PAGES && x->page && !is_kv) return HYPERATTN_ERROR_PAGED;
  if (HAI_PAGES && x->page && !hai_count_ok(x->page_rows, 1)) return HYPERATTN_ERROR_PAGE_ROWS;
  return hai_check_dtype(x->dtype, is_kv);
}

/* Is anything asked for that this build leaves out? Dtypes are looked at elsewhere. */
static int hai_is_left_out(const hyperattn_problem *p) {
  return (!HAI_SOFTCAP && p->softcap != 0.0f) || (!HAI_SLIDING && p->sliding_window) ||
         (!HAI_MASKS && p->mask.data) || (!HAI_SINKS && p->sink) ||
         (!HAI_PAGES && (p->key.page || p->value.page)) || (!HAI_REPORTS && p->report) ||
         (!HAI_SCAN && p->query_error) || (!HAI_INDEX && p->index);
}

static hyperattn_status hai_check_shape(const hyperattn_problem *p) {
  hyperattn_status status;
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
  if ((status = hai_check_input(&p->query, 0)) != HYPERATTN_OK) return status;
  if ((status = hai_check_input(&p->key, 1)) != HYPERATTN_OK) return status;
  if ((status = hai_check_input(&p->value, 1)) != HYPERATTN_OK) return status;
  if ((status = hai_check_dtype(p->out.dtype, 0)) != HYPERATTN_OK) return status;
  if (HAI_MASKS && p->mask.data && (status = hai_check_input(&p->mask, 0)) != HYPERATTN_OK) return status;
  if (hai_is_left_out(p)) return HYPERATTN_ERROR_LEFT_OUT;
  if (HAI_SOFTCAP && (!hai_finite(p->softcap) || p->softcap < 0.0f)) return HYPERATTN_ERROR_SOFTCAP;
  if (HAI_SLIDING && p->sliding_window < 0) return HYPERATTN_ERROR_SLIDING_WINDOW;
  return HYPERATTN_OK;
}

/* Do held-out queries choose? */
static int hai_choosing(const hyperattn_params *p) {
  return p->tolerance > 0.0f || p->order == HYPERATTN_ORDER_PROBED;
}

static hyperattn_status hai_check_params(const hyperattn_params *p, int causal) {
  int hyper = p->method == HYPERATTN_HYPER;
  if (!hai_listed(HAI_AS(int, p->method), HYPERATTN_SCAN)) return HYPERATTN_ERROR_METHOD;
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
  if (!hai_listed(HAI_AS(int, p->isa), HYPERATTN_ISA_LAST)) return HYPERATTN_ERROR_ISA;
  if (!p->probe_queries && (p->heavy_keys || p->sampling == HYPERATTN_SAMPLE_COLUMN_MASS ||
                            p->order == HYPERATTN_ORDER_PROBED || (hyper && p->tolerance > 0.0f)))
    return HYPERATTN_ERROR_PROBES_NEEDED;
  if (causal && (p->cap_epsilon > 0.0f || p->cap_kappa > 0.0f)) return HYPERATTN_ERROR_CAP_CAUSAL;
  if (hai_choosing(p) && (p->cap_epsilon > 0.0f || p->cap_kappa > 0.0f)) return HYPERATTN_ERROR_CAP_CHOICE;
  if (hyper && (!HAI_HYPER || (!HAI_JUDGING && hai_choosing(p)))) return HYPERATTN_ERROR_LEFT_OUT;
  if (!HAI_SCAN && p->method == HYPERATTN_SCAN) return HYPERATTN_ERROR_LEFT_OUT;
  if (!hai_kernel_of(p->isa)) return HYPERATTN_ERROR_ISA_ABSENT;
  return HYPERATTN_OK;
}

/* A bound on the tasks of a phase, for one element of the batch. */
static uint64_t hai_most_tasks(const hyperattn_problem *p) {
  return 2 * HAI_AS(uint64_t, p->n_heads) * (HAI_AS(uint64_t, p->n_query) + HAI_AS(uint64_t, p->n_key));
}

/* Do counts exceed this machine's indices, or may tasks exceed INT64_MAX? */
static int hai_too_many(const hyperattn_problem *p) {
  uint64_t limit = HAI_MAX_INDEX, heads = HAI_AS(uint64_t, p->n_heads),
           n_query = HAI_AS(uint64_t, p->n_query);
  uint64_t rows = hai_most_tasks(p);
  return heads > limit || HAI_AS(uint64_t, p->n_key) > limit || HAI_AS(uint64_t, p->batch) > limit ||
         n_query > limit / heads || (rows && HAI_AS(uint64_t, p->batch) > INT64_MAX / rows);
}

/* ---- Pointers and strides ---- */

/* Is there no row of out, so that nothing is read or written? */
static int hai_is_nothing(const hyperattn_problem *p) { return !p->batch || !p->n_query; }

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
  hai_extent extent[14];
  hai_index batch, heads, rows; /* of the buffers that are added next */
} hai_buffers;

static hai_extent *hai_add_extent(hai_buffers *buffers, const void *data, size_t bytes) {
  hai_extent *extent = &buffers->extent[buffers->n++];
  extent->data = HAI_AS(const char *, data);
  extent->before = 0;
  extent->after = bytes;
  return extent;
}

/* Adds a tensor [batch][heads][rows][dim]; of a row whose format only the caller knows, its first byte. */
static void hai_add_tensor(hai_buffers *buffers, const hyperattn_input *x, hai_index dim, int is_result) {
  const ptrdiff_t stride[3] = {x->batch_stride, x->head_stride, x->row_stride};
  const hai_index n[3] = {buffers->batch, buffers->heads, buffers->rows};
  int unit = hai_unit(x->dtype), i;
  size_t bytes = hai_unit_bytes(x->dtype);
  hai_extent *extent;
  if (buffers->status != HYPERATTN_OK) return;
  if (hai_is_custom(x->dtype)) dim = 1;
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

/* Adds the page numbers [batch][page_batch_stride] of keys or values, and checks what can be checked of the
   pages themselves: the first one's alignment, and strides of Q8_0. */
static void hai_add_pages(hai_buffers *buffers, const hyperattn_input *x) {
  const ptrdiff_t stride[4] = {x->batch_stride, x->head_stride, x->row_stride, x->page_stride};
  const int64_t n[4] = {buffers->batch, buffers->heads,
                        hai_min(buffers->rows, hai_clamp(x->page_rows, HAI_MAX_INDEX)), 2};
  hai_index pages = hai_ceil_div(buffers->rows, hai_clamp(x->page_rows, HAI_MAX_INDEX)),
            heads = buffers->heads, rows = buffers->rows;
  hyperattn_input table;
  int i;
  if (buffers->status != HYPERATTN_OK) return;
  for (i = 0; i < 4; i++)
    if (n[i] > 1 && stride[i] % hai_unit(x->dtype)) buffers->status = HYPERATTN_ERROR_STRIDE_Q8_0;
  if (HAI_REINTERPRET(uintptr_t, x->data) % hai_alignment(x->dtype))
    buffers->status = HYPERATTN_ERROR_ALIGNMENT;
  table.data = x->page;
  table.dtype = HYPERATTN_F32; /* of the size of a page number */
  table.batch_stride = x->page_batch_stride;
  table.head_stride = table.row_stride = 0;
  buffers->heads = buffers->rows = 1;
  hai_add_tensor(buffers, &table, pages, 0);
  buffers->heads = heads;
  buffers->rows = rows;
}

/* Adds keys or values. */
static void hai_add_rows(hai_buffers *buffers, const hyperattn_input *x, hai_index dim) {
  if (!buffers->rows) return;
  if (HAI_PAGES && x->page)
    hai_add_pages(buffers, x);
  else
    hai_add_tensor(buffers, x, dim, 0);
}

#if HAI_INDEX
/* Adds an index that is sound. */
static void hai_add_index(hai_buffers *buffers, const hyperattn_index *index) {
  size_t bytes = hai_index_bytes(index->batch, index->n_kv_heads, index->head_dim, index->capacity);
  if (buffers->status == HYPERATTN_OK) hai_add_extent(buffers, index, bytes);
}
#endif

/* No result may share a byte with anything else; inputs may share with one another. */
static hyperattn_status hai_check_overlap(const hai_buffers *buffers) {
  int i, j;
  for (i = 0; i < buffers->n_results && buffers->status == HYPERATTN_OK; i++)
    for (j = i + 1; j < buffers->n; j++)
      if (hai_extents_meet(&buffers->extent[i], &buffers->extent[j])) return HYPERATTN_ERROR_OVERLAP;
  return buffers->status;
}

/* Of a problem in a call that needs `need` bytes of workspace, which may be one of many problems. */
HAI_APART hyperattn_status hai_check_buffers_within(const hai_plan *plan, const void *workspace,
                                                    size_t workspace_size, size_t need) {
  const hyperattn_problem *p = plan->problem;
  hyperattn_input out = hai_tensor_of(&p->out);
  hai_buffers buffers;
  if (hai_is_nothing(p)) return HYPERATTN_OK;
  if (!p->out.data) return HYPERATTN_ERROR_NULL_OUT;
  if (!p->query.data) return HYPERATTN_ERROR_NULL_QUERY;
  if (plan->n_key && !p->key.data) return HYPERATTN_ERROR_NULL_KEY;
  if (plan->n_key && !p->value.data) return HYPERATTN_ERROR_NULL_VALUE;
  if (!workspace) return HYPERATTN_ERROR_NULL_WORKSPACE;
  if (workspace_size < need) return HYPERATTN_ERROR_WORKSPACE_SIZE;
#if HAI_INDEX
  if (hai_looking(plan) && (!hai_index_fits(p->index, p) || p->index->length > p->n_key))
    return HYPERATTN_ERROR_INDEX;
#endif
  HYPERATTN_MEMSET(&buffers, 0, sizeof buffers); /* status: ok */
  buffers.batch = hai_to_index(p->batch);
  buffers.heads = plan->n_heads;
  buffers.rows = plan->n_query;
  buffers.n_results = 5;
  hai_add_tensor(&buffers, &out, plan->value_dim, 1);
  hai_add_flat(&buffers, p->lse, plan->n_query, sizeof *p->lse);
  if (HAI_SCAN) hai_add_flat(&buffers, p->query_error, plan->n_query, sizeof *p->query_error);
  hai_add_flat(&buffers, p->report, 1, sizeof *p->report);
  if (buffers.status == HYPERATTN_OK) hai_add_extent(&buffers, workspace, need);
  hai_add_tensor(&buffers, &p->query, plan->head_dim, 0);
  if (hai_masking(plan) && plan->n_key) hai_add_tensor(&buffers, &p->mask, plan->n_key, 0);
  buffers.heads = plan->n_kv_heads;
  buffers.rows = plan->n_key;
  hai_add_rows(&buffers, &p->key, plan->head_dim);
  hai_add_rows(&buffers, &p->value, plan->value_dim);
  buffers.batch = 1;
  buffers.heads = plan->n_heads;
  if (hai_masking(plan)) hai_add_flat(&buffers, p->mask_slope, 1, sizeof *p->mask_slope);
  if (HAI_SINKS) hai_add_flat(&buffers, p->sink, 1, sizeof *p->sink);
#if HAI_INDEX
  if (hai_looking(plan)) hai_add_index(&buffers, p->index);
#endif
  return hai_check_overlap(&buffers);
}

static hyperattn_status hai_check_buffers(const hai_plan *plan, const void *workspace, size_t workspace_size,
                                          int n_workers) {
  size_t need;
  if (n_workers < 1) return HYPERATTN_ERROR_WORKERS;
  need = hai_layout_size(&plan->layout, n_workers);
  return need ? hai_check_buffers_within(plan, workspace, workspace_size, need)
              : HYPERATTN_ERROR_SIZE_OVERFLOW;
}

/* Everything that hyperattn_merge checks. */
static hyperattn_status hai_check_merge(int64_t batch, int64_t n_heads, int64_t n_query, int64_t value_dim,
                                        const hyperattn_input *a, const float *lse_a,
                                        const hyperattn_input *b, const float *lse_b) {
  hyperattn_status status;
  hai_buffers buffers;
  if (!hai_count_ok(batch, 0)) return HYPERATTN_ERROR_BATCH;
  if (!hai_count_ok(n_heads, 1)) return HYPERATTN_ERROR_N_HEADS;
  if (!hai_count_ok(n_query, 0)) return HYPERATTN_ERROR_N_QUERY;
  if (value_dim < 1 || value_dim > HAI_MAX_DIM) return HYPERATTN_ERROR_VALUE_DIM;
  if ((status = hai_check_dtype(a->dtype, 0)) != HYPERATTN_OK) return status;
  if ((status = hai_check_dtype(b->dtype, 0)) != HYPERATTN_OK) return status;
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

/* ======== src/tiles.h ======== */

/* Tiles. A tile holds up to kernel->lanes queries and their running states, and meets keys chunk by chunk.
   The tiles of a task share a chunk's rows where all of them meet the same keys. The state of a query is (m,
   l, o): the reference of its weights, their sum, and the weighted sum of values; out = o / l and lse = m +
   ln l. Between phases a state is stored as lse, in the workspace, and out, in the caller's tensor if that is
   float32 and otherwise in the workspace. */

/* Consecutive lanes that belong to one query group. */
typedef struct hai_group {
  int32_t id;
  int begin, end;        /* lanes begin .. end - 1 */
  const int32_t *blocks; /* the group's sub-blocks, ascending */
  int n_blocks;
  int at; /* position of a walk through the sub-blocks */
} hai_group;

/* Keys or values of one kv head. */
typedef struct hai_rows {
  const char *first;   /* row 0, or of page 0 the first row */
  ptrdiff_t stride;    /* bytes from row to row, of a page where there are pages */
  const int32_t *page; /* NULL, or the numbers of the pages: row r is in page[r / page_rows] */
  uint32_t page_rows;
  uint64_t page_inverse; /* r / page_rows = r * page_inverse >> page_shift */
  int page_shift;
  ptrdiff_t page_stride;                                 /* bytes */
  void (*custom)(const void *row, float *to, int64_t n); /* HYPERATTN_CUSTOM's, else NULL */
  hyperattn_dtype dtype;
  hai_index dim;
  float
      *widened; /* [chunk][dim]: a chunk's rows in float32; NULL where the kernel reads them as they lie */
} hai_rows;

/* The caller's mask, as a tile of exact attention reads it (masking.h). */
typedef struct hai_mask {
  const hai_kernel *kernel; /* of float32: its packing turns rows into lanes */
  hyperattn_dtype dtype;
  float *bias;                    /* [chunk][lanes], shared by the tiles of a task: of the keys that wait */
  float slope[HAI_MAX_LANES];     /* by which a lane's mask is multiplied */
  const char *row[HAI_MAX_LANES]; /* a lane's row of the mask, from key 0 */
} hai_mask;

struct hai_tile {
  const hai_kernel *kernel;
  /* the lanes' states: */
  float *query;        /* [head_dim][lanes]: packed, times the scale of scores */
  float *m;            /* [lanes] */
  float *l;            /* [2][lanes]: the sum, and what rounding has taken from it */
  float *o;            /* [hai_sum_rows][lanes] */
  float *sum;          /* shaped as o: the sum of what was carried from o, */
  float *lost;         /* and what rounding has taken from that */
  float *factor;       /* [lanes]: e^(old m - new m) of the last chunk */
  int carried;         /* how many arrays are in use besides o: 0, 1 (sum) or 2 (sum and lost) */
  int chunks;          /* chunks that the lanes aimed at have met */
  hai_index value_dim; /* 0: only m and l are computed */
  /* the lanes' queries: */
  int n;                          /* lanes 0 .. n - 1 hold queries */
  hai_index state[HAI_MAX_LANES]; /* index into lse: flat head * n_query + row */
  const void *row[HAI_MAX_LANES]; /* query rows, of the kernel's dtype, until they are packed */
  float *out[HAI_MAX_LANES];      /* output rows in float32, */
  void *result[HAI_MAX_LANES];    /* the caller's output rows; the same as `out` if they are float32 */
  hai_index first[HAI_MAX_LANES], last[HAI_MAX_LANES]; /* a lane sees keys first .. last */
  hai_index min_first, max_last;                       /* no lane sees a key outside these, */
  hai_index max_first, min_last;                       /* and every lane sees the keys from here to there */
  int n_groups;                                        /* query groups of the lanes, in order */
  hai_group group[HAI_MAX_LANES];
  /* the keys that wait: */
  int n_keys;                  /* at most HAI_CHUNK */
  int begin, end;              /* lanes that meet them: whole registers */
  uint64_t used;               /* bit i: lane i is one of those and holds a query */
  uint64_t visible[HAI_CHUNK]; /* [key], where `masked`: bit i: lane i sees the key */
  int masked;                  /* is any of the keys hidden from a lane in use */
  int weighted;                /* has any of the keys a log-weight */
  int guarded;                 /* hidden values must not reach a lane even as 0 * inf */
  int nonfinite;               /* a value of this chunk is known not to be finite */
  float softcap;               /* 0, or scores are capped softly by it */
  const float *clip;           /* NULL, or [lanes]: scores above it become it */
  hai_mask *mask;              /* NULL, or what is added to scores */
  /* a stage's own: */
  float *spare;   /* [3][lanes] */
  float *per_key; /* [chunk]; or values [chunk][kernel->value_multiple] that are free of infinities */
  /* shared by the tiles of a task: */
  hai_rows keys, values;
  float *score;              /* [chunk][lanes], and half as many rows again if the kernel reads bfloat16 */
  const void **key, **value; /* [chunk]: rows of the keys that wait, of the kernel's dtype */
  float *joined;             /* NULL, or the values as kernel->join writes them, */
  int *n_joined;             /* of the first so many keys that wait: 0 where they are still to be joined */
  int32_t *id;               /* [chunk]: positions of these keys; sub-blocks where those are scored */
  float *log_weight;         /* [chunk]: log-weights of these keys, where `weighted` */
  float *line;               /* [lanes][line_dim]: rows of queries or outputs in float32, or NULL */
  hai_index line_dim;
};

static hai_index hai_per_key_floats(const hai_plan *plan) {
#if HAI_AMX
  if (plan->may_use_amx) return HAI_CHUNK * HAI_AMX_ROWS / 2;
#endif
  (void)plan;
  return HAI_CHUNK;
}

/* May weights be rounded, and values joined, which the same kernels do? */
static int hai_may_round(const hai_plan *plan) {
  return HAI_ROUNDS && (plan->may_use_amx || plan->kernel->round);
}

/* Rows of a tile's o: the coordinates of a value and, where weights are rounded, the sum of those. */
static hai_index hai_sum_rows(const hai_tile *tile) {
  return tile->value_dim + (HAI_ROUNDS && tile->value_dim && tile->kernel->round);
}
static hai_index hai_most_sum_rows(const hai_plan *plan) {
  return plan->value_dim + hai_may_round(plan);
}
/* Can a tile meet so many keys that its sums are carried? */
static int hai_may_carry(const hai_plan *plan) {
  return HAI_LONG_SUMS && plan->n_key > HAI_CARRY_CHUNKS * HAI_CHUNK;
}

/* Bytes of what each tile has for itself. */
static size_t hai_tile_bytes(const hai_plan *plan) {
  size_t lanes = HAI_AS(size_t, plan->float_kernel->lanes), head_dim = HAI_AS(size_t, plan->head_dim);
  size_t rows = HAI_AS(size_t, hai_most_sum_rows(plan)) * (hai_may_carry(plan) ? 3 : 1);
  size_t floats = lanes * (head_dim + rows + 7) + HAI_AS(size_t, hai_per_key_floats(plan));
  return hai_round_up(sizeof(hai_tile)) + floats * sizeof(float) + 9 * HAI_ALIGN +
         (hai_masking(plan) ? hai_round_up(sizeof(hai_mask)) : 0);
}

/* Floats of a row widened in tile->line (0 where all tensors are float32), and of a chunk of widened keys
   or values (0 where the kernels read that dtype as it lies). */
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
/* Floats of a chunk of values that are joined. */
static hai_index hai_joined_floats(const hai_plan *plan) {
  return hai_may_round(plan) ? HAI_CHUNK / 2 * plan->value_dim : 0;
}
/* Floats of the mask of a chunk. */
static hai_index hai_bias_floats(const hai_plan *plan) {
  return hai_masking(plan) ? HAI_CHUNK * plan->float_kernel->lanes : 0;
}
/* Rows of a chunk's scores, and of the rounded weights behind them. */
static hai_index hai_score_rows(const hai_plan *plan) {
  return HAI_CHUNK + (hai_may_round(plan) ? HAI_CHUNK / 2 : 0);
}
/* Bytes of what the tiles of a task share. */
static size_t hai_chunk_bytes(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  hai_index floats = 2 * HAI_CHUNK +
                     plan->float_kernel->lanes * (hai_score_rows(plan) + hai_line_dim(plan)) +
                     hai_widened_floats(plan, p->key.dtype, plan->head_dim) +
                     hai_widened_floats(plan, p->value.dtype, plan->value_dim) + hai_joined_floats(plan) +
                     hai_bias_floats(plan);
  return HAI_AS(size_t, floats) * sizeof(float) + 2 * HAI_CHUNK * sizeof(void *) + 5 * HAI_ALIGN;
}

/* Tiles of a task. Where their states exceed a cache, as those of long rows do, reading keys and values less
   often still takes less time. */
static int hai_tiles(const hai_plan *plan) {
  return HAI_MAX_TILES == 1 ? 1 : plan->float_kernel->tiles; /* so that loops over tiles vanish */
}

/* Takes memory for so many floats from *at, rounded up to HAI_ALIGN; NULL for none. */
static float *hai_carve(char **at, hai_index floats) {
  float *begin = HAI_PLACE(float, *at);
  *at += hai_round_up(HAI_AS(size_t, floats) * sizeof(float));
  return floats ? begin : HAI_NULL;
}

/* Says in which pages the rows of an element of the batch lie. For all r < 2^31, floor(r / d), d = page_rows,
   is r * i >> k with k = 31 + s, 2^s the smallest power of 2 that is at least d, and i = floor(2^k / d) + 1:
   i d exceeds 2^k by at most d <= 2^s, and r 2^s < 2^k, so that r i / 2^k exceeds r / d by less than 1 / d.
   The product fits, since i <= 2^32. */
static void hai_rows_paged(hai_rows *rows, const hyperattn_input *x, hai_index batch) {
  uint64_t d = HAI_AS(uint64_t, x->page_rows);
  int k = 31;
  while (UINT64_C(1) << (k - 31) < d) k++;
  rows->page = x->page + batch * x->page_batch_stride;
  rows->page_rows = HAI_AS(uint32_t, d);
  rows->page_inverse = (UINT64_C(1) << k) / d + 1;
  rows->page_shift = k;
  rows->page_stride = hai_offset(x->dtype, x->page_stride);
}

/* Keys or values of the job's kv head. */
static hai_rows hai_rows_of(const hai_job *job, const hyperattn_input *x, hai_index dim) {
  hai_rows rows;
  int has_stride = job->plan->n_key > 1 && !(HAI_PAGES && x->page && x->page_rows == 1);
  HYPERATTN_MEMSET(&rows, 0, sizeof rows);
  if (job->plan->n_key) rows.first = hai_row(x, job->batch, job->kv_head, 0);
  if (has_stride) rows.stride = hai_offset(x->dtype, x->row_stride);
  if (HAI_PAGES && x->page) hai_rows_paged(&rows, x, job->batch);
  if (hai_is_custom(x->dtype)) rows.custom = x->widen;
  rows.dtype = x->dtype;
  rows.dim = dim;
  return rows;
}

/* Lays a tile out at *at and moves *at behind it. The tiles of a task share the chunk of its first one. */
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
  if (HAI_MASKS) tile->mask = HAI_NULL;
  if (hai_masking(plan)) {
    tile->mask = HAI_PLACE(hai_mask, *at);
    *at += hai_round_up(sizeof(hai_mask));
  }
  if (first) {
    tile->keys = first->keys;
    tile->values = first->values;
    tile->score = first->score;
    tile->key = first->key;
    tile->value = first->value;
    tile->joined = first->joined;
    tile->n_joined = first->n_joined;
    tile->line = first->line;
    tile->line_dim = first->line_dim;
    tile->id = first->id;
    tile->log_weight = first->log_weight;
    if (hai_masking(plan)) tile->mask->bias = first->mask->bias;
    return tile;
  }
  if (hai_masking(plan)) tile->mask->bias = hai_carve(at, hai_bias_floats(plan));
  tile->score = hai_carve(at, hai_score_rows(plan) * lanes);
  tile->keys = hai_rows_of(job, &p->key, plan->head_dim);
  tile->keys.widened = hai_carve(at, hai_widened_floats(plan, p->key.dtype, plan->head_dim));
  tile->values = hai_rows_of(job, &p->value, plan->value_dim);
  tile->values.widened = hai_carve(at, hai_widened_floats(plan, p->value.dtype, plan->value_dim));
  tile->joined = hai_carve(at, hai_joined_floats(plan));
  tile->n_joined = HAI_PLACE(int, *at);
  *at += HAI_ALIGN;
  tile->line_dim = hai_line_dim(plan);
  tile->line = hai_carve(at, lanes * tile->line_dim);
  tile->log_weight = hai_carve(at, HAI_CHUNK);
  tile->id = HAI_PLACE(int32_t, *at);
  *at += HAI_CHUNK * sizeof(int32_t);
  tile->key = HAI_PLACE(const void *, *at);
  tile->value = tile->key + HAI_CHUNK;
  *at += 2 * HAI_CHUNK * sizeof(void *);
  return tile;
}

/* Places all tiles of a task: the job's own is the first, the others lie in its scratch. Returns how
   many there are. */
static int hai_tiles_place(hai_job *job, hai_tile **tiles) {
  int n = hai_tiles(job->plan), i;
  tiles[0] = job->tile;
  for (i = 1; i < n; i++) tiles[i] = hai_tile_place(job, tiles[0], &job->scratch);
  return n;
}

/* The place of lane i for a row in float32. */
static float *hai_line(const hai_tile *tile, int i) {
  return tile->line ? tile->line + i * tile->line_dim : HAI_NULL;
}

/* A walk along rows of keys or values: where it stands, and how many rows are left of the page, this one
   included. */
typedef struct hai_walk {
  const char *at;
  uint32_t left;
} hai_walk;

/* A walk from row `row` on: all that reads keys and values finds them here. */
HAI_HOT hai_walk hai_walk_from(const hai_rows *rows, hai_index row) {
  uint32_t r = HAI_AS(uint32_t, row), page;
  hai_walk walk = {rows->first, UINT32_MAX};
  if (HAI_PAGES && rows->page) {
    page = HAI_AS(uint32_t, r * rows->page_inverse >> rows->page_shift);
    row = HAI_AS(ptrdiff_t, r - page * rows->page_rows);
    walk.at += rows->page[page] * rows->page_stride;
    walk.left = rows->page_rows - HAI_AS(uint32_t, row);
  }
  walk.at += row * rows->stride;
  return walk;
}
/* Goes on to the next row, which is `row`. */
HAI_HOT void hai_walk_on(hai_walk *walk, const hai_rows *rows, hai_index row) {
  walk->at += rows->stride;
  if (HAI_PAGES && --walk->left == 0) *walk = hai_walk_from(rows, row);
}

/* The row of keys or values at an address as a kernel reads it: as it lies, or widened into row j of `room`
   [][dim]. */
HAI_HOT const void *hai_rows_at(const hai_rows *rows, const char *at, const hai_kernel *kernel, float *room,
                                hai_index j) {
  if (hai_is_f32(rows->dtype) || rows->dtype == kernel->dtype) return at;
  room += j * rows->dim;
  if (HAI_CUSTOM && rows->custom)
    rows->custom(at, room, rows->dim);
  else
    kernel->widen(at, rows->dtype, rows->dim, room);
  return room;
}

/* A key or value row in float32: as it lies, or widened into `widened`. */
static const float *hai_rows_read(const hai_job *job, const hai_rows *rows, hai_index row, float *widened) {
  return HAI_AS(const float *,
                hai_rows_at(rows, hai_walk_from(rows, row).at, job->plan->float_kernel, widened, 0));
}
static const float *hai_key_row(const hai_job *job, hai_index key, float *widened) {
  return hai_rows_read(job, &job->tile->keys, key, widened);
}
static const float *hai_value_row(const hai_job *job, hai_index key, float *widened) {
  return hai_rows_read(job, &job->tile->values, key, widened);
}

/* Bits begin .. end - 1. */
HAI_HOT uint64_t hai_lane_bits(int begin, int end) {
  uint64_t below_end = end >= 64 ? UINT64_MAX : (UINT64_C(1) << end) - 1;
  return below_end & ~((UINT64_C(1) << begin) - 1);
}
/* The next keys are for lanes begin .. end - 1, and for all others in the same registers. Chunks are
   counted from here. */
static void hai_tile_aim(hai_tile *tile, int begin, int end) {
  int width = tile->kernel->width;
  tile->chunks = 0;
  tile->begin = begin / width * width;
  tile->end = (end + width - 1) / width * width;
  tile->used = hai_lane_bits(tile->begin, hai_to_int(hai_min(tile->end, tile->n)));
}

/* ======== src/visibility.h ======== */

/* ---- Which keys a query sees ---- */

/* Keys that the query at `row` sees in the problem: *first .. *last, none where *last < *first. A causal
   query sees the keys up to its own position P = row + n_key - n_query; in a sliding window of w, the keys j
   with P - j < w and j - P < w. All that follows derives from this. */
static void hai_seen_keys(const hai_plan *plan, hai_index row, hai_index *first, hai_index *last) {
  hai_index position = row + plan->n_key - plan->n_query;
  *first = 0;
  *last = plan->problem->causal ? position : plan->n_key - 1;
  if (!hai_sliding(plan)) return;
  *first = hai_max(0, position - plan->sliding + 1);
  *last = hai_min(*last, position + plan->sliding - 1);
}

/* Those that it meets before any rectangle: all, or those of its diagonal segment and its window. */
static void hai_exact_keys(const hai_plan *plan, hai_index row, hai_index *first, hai_index *last) {
  hai_index x, begin, segments = hai_power_of_2(plan->depth);
  hai_seen_keys(plan, row, first, last);
  x = *last - plan->key_skip; /* its position within the square */
  if (!plan->problem->causal || x < 0 || (!plan->depth && !plan->outer)) return;
  begin = plan->key_skip + hai_cut(plan->square, segments, hai_part_of(plan->square, segments, x));
  *first = hai_max(*first, hai_min(begin, *last - plan->window + 1));
}

/* Those that it meets in a rectangle, as far as the rectangle holds them: all before its window, which it has
   met. A problem that is scanned as a whole holds the window too; full attention has none. */
static void hai_rect_keys(const hai_plan *plan, hai_index row, hai_index *first, hai_index *last) {
  hai_seen_keys(plan, row, first, last);
  if (!hai_scanning(plan)) *last -= plan->window;
}

/* How many of some keys the queries of a tile see. */
typedef enum hai_seen { HAI_SEEN_NONE, HAI_SEEN_SOME, HAI_SEEN_ALL } hai_seen;

/* Of keys first .. last, NONE: no query sees any; ALL: every query sees every one. */
HAI_HOT hai_seen hai_tile_sees(const hai_tile *tile, hai_index first, hai_index last) {
  if (first >= tile->max_first && last <= tile->min_last) return HAI_SEEN_ALL;
  return last < tile->min_first || first > tile->max_last ? HAI_SEEN_NONE : HAI_SEEN_SOME;
}

/* Of keys key .. key + n - 1, bit i of visible[j]: lane i, one of those aimed at, sees key + j. A lane
   changes its bit at its first key and after its last. Cost: O(lanes + n). */
HAI_HOT void hai_tile_mask(const hai_tile *tile, hai_index key, int n, uint64_t *visible) {
  uint64_t seen = 0;
  int end = tile->end < tile->n ? tile->end : tile->n, i, j;
  for (j = 0; j < n; j++) visible[j] = 0;
  for (i = tile->begin; i < end; i++) {
    hai_index first = tile->first[i] - key, last = tile->last[i] - key;
    uint64_t bit = UINT64_C(1) << i;
    if (last < 0 || first >= n || last < first) continue;
    if (first <= 0)
      seen |= bit;
    else
      visible[first] ^= bit;
    if (last + 1 < n) visible[last + 1] ^= bit;
  }
  for (j = 0; j < n; j++) {
    seen ^= visible[j];
    visible[j] = seen;
  }
}

/* Key `key`, at place j of the chunk, is visible to those of the lanes in `bits` that see it. */
HAI_HOT void hai_tile_show(hai_tile *tile, int j, hai_index key, uint64_t bits) {
  uint64_t seen = UINT64_MAX;
  if (hai_tile_sees(tile, key, key) != HAI_SEEN_ALL) hai_tile_mask(tile, key, 1, &seen);
  tile->visible[j] = bits & seen;
  tile->masked |= (bits & seen & tile->used) != tile->used;
}

/* The keys that wait are begin .. end - 1, at most a chunk, for all lanes that see them. */
static void hai_tile_fill(hai_tile *tile, hai_index begin, hai_index end) {
  tile->n_keys = hai_to_int(end - begin);
  tile->masked = hai_tile_sees(tile, begin, end - 1) != HAI_SEEN_ALL;
  if (tile->masked) hai_tile_mask(tile, begin, tile->n_keys, tile->visible);
}

/* ======== src/states.h ======== */

/* ---- States of the lanes ---- */

/* Sets m and l to a sum of weights whose logarithm is lse; -inf: an empty sum; NaN or +inf: NaN. */
static void hai_state_begin(float lse, float *m, float *l) {
  *m = lse;
  *l = lse == -hai_inf() ? 0.0f : 1.0f;
  if (HAI_SINKS && !(lse < hai_inf())) *l = hai_float(0x7fc00000u);
}
static void hai_lane_set(hai_tile *tile, int lane, float lse) {
  hai_state_begin(lse, &tile->m[lane], &tile->l[lane]);
  tile->l[tile->kernel->lanes + lane] = 0.0f;
}

/* Puts query `row` of a head into a lane, to see keys first .. last. Lanes are filled from 0 on, without
   gaps. */
static void hai_tile_query(hai_job *job, int lane, hai_index head, hai_index row, hai_index first,
                           hai_index last) {
  const hyperattn_problem *p = job->plan->problem;
  hai_tile *tile = job->tile;
  if (hai_is_f32(tile->kernel->dtype))
    tile->row[lane] = hai_query_row(job, head, row, hai_line(tile, lane));
  else
    tile->row[lane] = hai_row(&p->query, job->batch, head, row);
  hai_fetch(HAI_AS(const char *, tile->row[lane]),
            HAI_AS(size_t, hai_offset(p->query.dtype, job->plan->head_dim)));
  tile->state[lane] = hai_flat_head_of(job, head) * job->plan->n_query + row;
  tile->result[lane] = hai_out_row(&p->out, job->batch, head, row);
  tile->out[lane] = hai_is_f32(p->out.dtype) ? HAI_AS(float *, tile->result[lane])
                    : hai_stores_states(job->plan)
                        ? hai_stored_out(job) + tile->state[lane] * job->plan->value_dim
                        : hai_line(tile, lane);
  tile->first[lane] = first;
  tile->last[lane] = last;
}

/* Opens the tile for the n queries that were put into lanes 0 .. n - 1: packs them, times the plan's scale,
   and empties their states: m = -inf, l = 0, o = 0. */
static void hai_tile_open(hai_job *job, int n, hai_index value_dim) {
  hai_tile *tile = job->tile;
  int i, lanes = tile->kernel->lanes;
  tile->n = n;
  tile->n_keys = tile->masked = tile->weighted = tile->guarded = tile->nonfinite = tile->carried = 0;
  tile->clip = HAI_NULL;
  if (HAI_SOFTCAP) tile->softcap = job->plan->problem->softcap;
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
    hai_lane_set(tile, i, -hai_inf());
  }
  tile->kernel->pack(tile->row, job->plan->head_dim, job->plan->scale, tile->query);
  HYPERATTN_MEMSET(tile->o, 0, HAI_AS(size_t, hai_sum_rows(tile) * lanes) * sizeof(float));
  hai_tile_aim(tile, 0, n);
}

/* The sink of the head whose query is in a lane: what the query has met before any key; -inf: nothing. */
static float hai_lane_sink(const hai_job *job, int lane) {
  const hai_plan *plan = job->plan;
  if (!HAI_SINKS || !plan->problem->sink) return -hai_inf();
  return plan->problem->sink[job->tile->state[lane] / plan->n_query % plan->n_heads];
}

/* Says that m, l and o are the lanes' states, with nothing carried and nothing lost by rounding. */
static void hai_tile_reset_sums(hai_tile *tile) {
  int lanes = tile->kernel->lanes;
  HYPERATTN_MEMSET(tile->l + lanes, 0, HAI_AS(size_t, lanes) * sizeof(float));
  if (HAI_ROUNDS && hai_sum_rows(tile) > tile->value_dim)
    HYPERATTN_MEMCPY(tile->o + tile->value_dim * lanes, tile->l, HAI_AS(size_t, lanes) * sizeof(float));
  tile->carried = 0;
}

/* What the states of an open tile begin as, before its queries meet the first keys of all: (m, l, o) =
   (sink, 1, 0), or empty. */
static void hai_tile_begin(const hai_job *job) {
  int i;
  if (!HAI_SINKS || !job->plan->problem->sink) return;
  for (i = 0; i < job->tile->n; i++) hai_lane_set(job->tile, i, hai_lane_sink(job, i));
  hai_tile_reset_sums(job->tile);
}

/* Carries o in the lanes that are aimed at: (sum, lost) += o, o = 0. A total of such partial sums, each
   over HAI_CARRY_CHUNKS chunks and added without losing what rounding takes, has a relative error of at
   most 2e-6 for any number of chunks. The first carry of all lanes just swaps the two arrays. */
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

/* Makes the carried sums follow a chunk, before its values are added to o: carries o after every
   HAI_CARRY_CHUNKS chunks, and rescales where a reference has moved. */
static void hai_tile_follow(hai_tile *tile, int moved) {
  hai_index rows = hai_sum_rows(tile);
  if (!HAI_LONG_SUMS || !rows || !tile->sum) return;
  if (tile->chunks && tile->chunks % HAI_CARRY_CHUNKS == 0) hai_tile_carry(tile);
  tile->chunks++;
  if (tile->carried && moved) tile->kernel->scale(tile->sum, rows, tile->factor, tile->begin, tile->end);
  if (tile->carried > 1 && moved)
    tile->kernel->scale(tile->lost, rows, tile->factor, tile->begin, tile->end);
}

/* Makes m, l and o the states of all lanes again, so that out = o / l: adds to o what was carried, and
   where weights are rounded multiplies it by the sum of exact weights over the sum of rounded ones. If
   other lanes may have forced a carry, o is carried first, so that a row's bits do not depend on them. */
HAI_APART void hai_tile_settle(hai_tile *tile) {
  hai_index rows = hai_sum_rows(tile);
  int lanes = tile->kernel->lanes, i;
  if (HAI_LONG_SUMS && tile->carried) {
    hai_tile_aim(tile, 0, tile->n);
    if (tile->carried > 1) hai_tile_carry(tile);
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

/* Loads the states that earlier phases stored. */
static void hai_tile_resume(hai_job *job) {
  hai_tile *tile = job->tile;
  int i;
  HYPERATTN_MEMCPY(tile->row, tile->out, sizeof tile->row); /* NULL in lanes without a query */
  job->plan->float_kernel->pack(tile->row, job->plan->value_dim, 1.0f, tile->o);
  for (i = 0; i < tile->n; i++) hai_lane_set(tile, i, hai_stored_lse(job)[tile->state[i]]);
  hai_tile_reset_sums(tile);
}

/* lse of what lane i has met before the job's rectangle. Where no states are resumed that is the sink
   alone, whose output is 0. */
static float hai_lane_before(const hai_job *job, int i) {
  return hai_resumes(job->plan) ? hai_stored_lse(job)[job->tile->state[i]] : hai_lane_sink(job, i);
}

/* The states of an open tile are what its queries have met before the job's rectangle. */
static void hai_tile_go_on(hai_job *job) {
  if (hai_resumes(job->plan))
    hai_tile_resume(job);
  else
    hai_tile_begin(job);
}

/* Writes what a row has beside its out, at its place among all rows. Its error is 0 until a stage that
   approximates it says otherwise. */
static void hai_row_close(const hai_plan *plan, hai_index at, float lse) {
  if (plan->problem->lse) plan->problem->lse[at] = lse;
  if (HAI_SCAN && plan->problem->query_error) plan->problem->query_error[at] = 0.0f;
}

#if HAI_SCAN
/* What lane i has met is not to be written: its row stays as it was. */
static void hai_lane_drop(hai_tile *tile, int i) { tile->out[i] = HAI_NULL; }
#endif
/* Writes what lane i has beside its out in float32. */
static void hai_lane_close(const hai_job *job, int i) {
  const hai_plan *plan = job->plan;
  const hai_tile *tile = job->tile;
  hyperattn_dtype dtype = plan->problem->out.dtype;
  float lse = hai_state_lse(tile->m[i], tile->l[i]);
  hai_row_close(plan, tile->state[i], lse);
  if (hai_stores_states(plan)) hai_stored_lse(job)[tile->state[i]] = lse;
  if (!hai_is_f32(dtype)) hai_narrow(tile->out[i], plan->value_dim, dtype, tile->result[i]);
}

/* Writes out and lse: the result, or the states that later phases load. */
static void hai_tile_close(hai_job *job) {
  hai_tile *tile = job->tile;
  int i;
  hai_tile_settle(tile);
  for (i = 0; i < tile->n; i++) tile->factor[i] = tile->l[i] == 0.0f ? 0.0f : 1.0f / tile->l[i];
  tile->kernel->unpack(tile->o, tile->value_dim, tile->factor, tile->out);
  for (i = 0; i < tile->n; i++)
    if (tile->out[i]) hai_lane_close(job, i);
}

/* lse [n] of the tile's lanes so far. */
static void hai_tile_lse(const hai_tile *tile, float *lse) {
  int i;
  for (i = 0; i < tile->n; i++) lse[i] = hai_state_lse(tile->m[i], tile->l[i]);
}

/* Copies the states of all lanes to memory, and back: m, l [lanes], o [value_dim][lanes]. */
static void hai_tile_save(hai_tile *tile, float *state) {
  size_t lanes = HAI_AS(size_t, tile->kernel->lanes);
  hai_tile_settle(tile);
  HYPERATTN_MEMCPY(state, tile->m, lanes * sizeof(float));
  HYPERATTN_MEMCPY(state + lanes, tile->l, lanes * sizeof(float));
  HYPERATTN_MEMCPY(state + 2 * lanes, tile->o, HAI_AS(size_t, tile->value_dim) * lanes * sizeof(float));
}
#if HAI_SCAN
static void hai_tile_load(hai_tile *tile, const float *state) {
  size_t lanes = HAI_AS(size_t, tile->kernel->lanes);
  HYPERATTN_MEMCPY(tile->m, state, lanes * sizeof(float));
  HYPERATTN_MEMCPY(tile->l, state + lanes, lanes * sizeof(float));
  HYPERATTN_MEMCPY(tile->o, state + 2 * lanes, HAI_AS(size_t, tile->value_dim) * lanes * sizeof(float));
  hai_tile_reset_sums(tile);
}
#endif

/* ======== src/masking.h ======== */

/* ---- The caller's mask, in exact attention ----
   Rows of the mask [n_query][n_key] stand in memory as keys do, one after another; scores stand lane by
   lane. So a tile's part of the mask is turned chunk by chunk, by the packing of queries, and what it hides
   is known before any product is computed. */

/* By what a head's mask is multiplied. */
static float hai_mask_slope(const hyperattn_problem *p, hai_index head) {
  return p->mask_slope ? p->mask_slope[head] : 1.0f;
}

/* Lane i, which holds query `row` of a head, gets its row of the mask and its slope. Lanes are filled from 0
   on; those that stay empty have slope 0. */
static void hai_mask_lane(const hai_job *job, int i, hai_index head, hai_index row) {
  const hyperattn_problem *p = job->plan->problem;
  hai_mask *mask = job->tile->mask;
  if (i == 0) {
    mask->kernel = job->plan->float_kernel;
    mask->dtype = p->mask.dtype;
    HYPERATTN_MEMSET(mask->slope, 0, sizeof mask->slope);
  }
  mask->row[i] = hai_row(&p->mask, job->batch, head, row);
  mask->slope[i] = hai_mask_slope(p, head);
}

/* Does lane i have the row of the lane before it, as heads have that share a mask? */
HAI_HOT int hai_mask_repeats(const hai_mask *mask, int i) { return i && mask->row[i] == mask->row[i - 1]; }

/* Points tile->row at the lanes' n elements of the mask from `key` on, in float32: as they lie, or widened
   into the place of the scores, which are not computed yet. Lanes that share a row share its copy. */
static void hai_mask_rows(hai_tile *tile, hai_index key, int n) {
  const hai_mask *mask = tile->mask;
  int i;
  for (i = 0; i < tile->n; i++) {
    const char *at = mask->row[i] + HAI_AS(size_t, key) * hai_unit_bytes(mask->dtype);
    if (hai_mask_repeats(mask, i)) {
      tile->row[i] = tile->row[i - 1];
    } else if (hai_is_f32(mask->dtype)) {
      tile->row[i] = at;
    } else {
      mask->kernel->widen(at, mask->dtype, n, tile->score + i * HAI_CHUNK);
      tile->row[i] = tile->score + i * HAI_CHUNK;
    }
  }
  for (; i < tile->kernel->lanes; i++) tile->row[i] = HAI_NULL;
}

/* Starts to load a tile's elements of the mask for keys key .. end - 1, those of the next chunk:
   processors do not foresee so many streams. */
HAI_HOT void hai_mask_fetch(const hai_tile *tile, hai_index key, hai_index end) {
  const hai_mask *mask = tile->mask;
  size_t bytes = hai_unit_bytes(mask->dtype);
  int i;
  for (i = 0; i < tile->n; i++)
    if (!hai_mask_repeats(mask, i))
      hai_fetch(mask->row[i] + HAI_AS(size_t, key) * bytes, HAI_AS(size_t, end - key) * bytes);
}

/* Eight bytes of elements that are -inf. */
static uint64_t hai_hidden_bytes(hyperattn_dtype dtype) {
  if (hai_is_f32(dtype)) return 0xff800000ff800000u;
  return dtype == HYPERATTN_F16 ? 0xfc00fc00fc00fc00u : 0xff80ff80ff80ff80u;
}

/* Is every element of the mask -inf, for all lanes and the n keys from `key` on? It stops at the first eight
   bytes that differ, mostly at once. */
static int hai_mask_hides(const hai_tile *tile, hai_index key, int n) {
  const hai_mask *mask = tile->mask;
  size_t size = hai_unit_bytes(mask->dtype), bytes = HAI_AS(size_t, n) * size, t;
  uint64_t hidden = hai_hidden_bytes(mask->dtype);
  int i;
  for (i = 0; i < tile->n; i++) {
    const char *at = mask->row[i] + HAI_AS(size_t, key) * size;
    if (hai_mask_repeats(mask, i)) continue;
    for (t = 0; t + sizeof hidden <= bytes; t += sizeof hidden)
      if (hai_eight_bytes(at + t) != hidden) return 0;
    for (; t < bytes; t += size)
      if (hai_get(at + t, mask->dtype, 0) != -hai_inf()) return 0;
  }
  return 1;
}

/* The keys that wait, from `key` on, get their bias, and are hidden where it is -inf. Returns whether any
   lane sees any of them. */
static int hai_mask_chunk(hai_tile *tile, hai_index key) {
  const hai_mask *mask = tile->mask;
  uint64_t any = 0, all = UINT64_MAX;
  int j;
  if (hai_mask_hides(tile, key, tile->n_keys)) return 0;
  hai_mask_rows(tile, key, tile->n_keys);
  mask->kernel->pack(tile->row, tile->n_keys, 1.0f, mask->bias);
  for (j = 0; j < tile->n_keys && !tile->masked; j++) tile->visible[j] = UINT64_MAX;
  mask->kernel->hide(mask->bias, tile->n_keys, tile->begin, tile->end, tile->visible);
  for (j = 0; j < tile->n_keys; j++) {
    any |= tile->visible[j];
    all &= tile->visible[j];
  }
  tile->masked = (all & tile->used) != tile->used;
  return (any & tile->used) != 0;
}

/* ======== src/chunks.h ======== */

/* ---- Chunks: the keys that wait, and what becomes of them ---- */

/* Key `key`, whose row and whose value's lie there, takes place j of the chunk that the tiles share. */
HAI_HOT void hai_tile_put_at(hai_tile *tile, int j, hai_index key, const char *key_at,
                             const char *value_at) {
  tile->id[j] = hai_to_int(key);
  *tile->n_joined = 0;
  tile->key[j] = hai_rows_at(&tile->keys, key_at, tile->kernel, tile->keys.widened, j);
  if (tile->value_dim)
    tile->value[j] = hai_rows_at(&tile->values, value_at, tile->kernel, tile->values.widened, j);
}
HAI_ONCE void hai_tile_put(hai_tile *tile, int j, hai_index key) {
  hai_tile_put_at(tile, j, key, hai_walk_from(&tile->keys, key).at, hai_walk_from(&tile->values, key).at);
}

/* Products of the packed queries with n rows of tile->key, by a kernel that reads these rows. */
static void hai_tile_products(hai_tile *tile, const hai_kernel *kernel, int n) {
  kernel->scores(tile->query, tile->keys.dim, tile->key, n, tile->begin, tile->end, tile->score);
}

/* score[j][i] = min(score[j][i], clip[i]). */
static void hai_tile_clip(hai_tile *tile) {
  int lanes = tile->kernel->lanes, i, j;
  for (j = 0; j < tile->n_keys; j++)
    for (i = 0; i < tile->n; i++)
      if (tile->score[j * lanes + i] > tile->clip[i]) tile->score[j * lanes + i] = tile->clip[i];
}

/* Scores of the keys that wait: their products, and then whatever changes a score. Every lane of the tile
   and every key in tile->id passes here, in attention and in probing. */
static void hai_tile_scores(hai_tile *tile) {
  hai_tile_products(tile, tile->kernel, tile->n_keys);
  if (HAI_SOFTCAP && tile->softcap > 0.0f)
    tile->kernel->cap(tile->score, tile->n_keys, tile->softcap, tile->begin, tile->end);
  if (HAI_MASKS && tile->mask)
    tile->kernel->add_bias(tile->score, tile->n_keys, tile->mask->bias, tile->mask->slope, tile->begin,
                           tile->end);
  if (tile->clip) hai_tile_clip(tile);
}

/* Weights of the keys that wait, e^(score + log_weight - m), 0 where hidden, in the place of their scores;
   m, l and factor as hai_kernel says. Returns whether any m moved. */
static int hai_tile_weights(hai_tile *tile) {
  hai_tile_scores(tile);
  return tile->kernel->softmax(tile->score, tile->n_keys, tile->weighted ? tile->log_weight : HAI_NULL,
                               tile->masked ? tile->visible : HAI_NULL, tile->begin, tile->end, tile->m,
                               tile->l, tile->factor);
}

/* Rounds the weights for a kernel that multiplies values by rounded ones, and adds these up in the last row
   of o. */
static void hai_tile_round(hai_tile *tile) {
  tile->kernel->round(tile->score, tile->n_keys, tile->factor, tile->begin, tile->end,
                      tile->o + tile->value_dim * tile->kernel->lanes);
}

/* The values as the kernel multiplies them: joined where it asks for that, once for all tiles that meet as
   many keys of the chunk. */
static void hai_tile_join(hai_tile *tile, const void *const *value, hai_index dim) {
  int is_chunk = value == HAI_AS(const void *const *, tile->value);
  if (is_chunk && *tile->n_joined == tile->n_keys) return;
  tile->kernel->join(value, tile->n_keys, dim, tile->joined);
  *tile->n_joined = is_chunk ? tile->n_keys : 0;
}

/* Rows t .. t + dim - 1 of o: o = o * factor + the sum of weights times values, of which `value` gives the
   rows from coordinate t on. */
static void hai_tile_add_values(hai_tile *tile, const void *const *value, hai_index t, hai_index dim) {
  const void *joined = tile->joined;
  if (HAI_ROUNDS && tile->kernel->join) {
    hai_tile_join(tile, value, dim);
    value = &joined;
  }
  tile->kernel->values(tile->score, tile->n_keys, value, dim, tile->factor, tile->begin, tile->end,
                       tile->o + t * tile->kernel->lanes);
}

/* Are all numbers of a row of float32 or bfloat16 finite? Eight bytes at a time: 1 added to an exponent of
   all ones carries into the place of the sign, which was cleared. */
static int hai_row_finite(const void *row, hyperattn_dtype dtype, hai_index n) {
  int is_float = hai_is_f32(dtype);
  uint64_t signs = is_float ? 0x8000000080000000u : 0x8000800080008000u;
  uint64_t ones = is_float ? 0x0080000000800000u : 0x0080008000800080u, carries = 0;
  hai_index step = HAI_AS(hai_index, sizeof carries / hai_unit_bytes(dtype)), t;
  const char *at = HAI_AS(const char *, row);
  for (t = 0; t + step <= n; t += step, at += sizeof carries)
    carries |= (hai_eight_bytes(at) & ~signs) + ones;
  for (; t < n; t++) carries |= hai_finite(hai_get(row, dtype, t)) ? 0 : signs;
  return !(carries & signs);
}

/* Are the first n values of the chunk finite? */
static int hai_tile_values_finite(const hai_tile *tile, hai_index n) {
  hai_index j = 0;
  while (j < n && hai_row_finite(tile->value[j], tile->kernel->dtype, tile->value_dim)) j++;
  return j == n;
}

/* Is any of coordinates t .. t + value_multiple - 1 not finite in a value that is hidden from some lane? */
static int hai_tile_hides_nonfinite(const hai_tile *tile, hai_index t) {
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

/* Adds values of which hidden ones are not finite: 0 * inf is NaN, and a row must not depend on a key that
   it does not see. The kernel takes value_multiple coordinates at a time, or as many as hold no such value.
   Where one does, values that are not finite count as 0 in the kernel, and are then added in the lanes that
   see them. The order of all other sums, and so every other bit, is that of hai_tile_add_values. */
HAI_APART void hai_tile_values_guarded(hai_tile *tile) {
  hyperattn_dtype dtype = tile->kernel->dtype;
  size_t bytes = hai_unit_bytes(dtype);
  int lanes = tile->kernel->lanes, step = tile->kernel->value_multiple, i, j;
  hai_index t = 0, run;
  while (t < tile->value_dim) {
    for (run = t; run < tile->value_dim && !hai_tile_hides_nonfinite(tile, run);) run += step;
    for (j = 0; j < tile->n_keys; j++) /* tile->row is free: queries are packed */
      tile->row[j] = HAI_AS(const char *, tile->value[j]) + HAI_AS(size_t, t) * bytes;
    if (run > t) {
      hai_tile_add_values(tile, tile->row, t, run - t);
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
    hai_tile_add_values(tile, tile->row, t, step);
    for (run = t + step; t < run; t++)
      for (j = 0; j < tile->n_keys; j++) {
        float value = hai_get(tile->value[j], dtype, t);
        for (i = tile->begin; i < tile->end && !hai_finite(value); i++)
          if (tile->visible[j] >> i & 1) tile->o[t * lanes + i] += tile->score[j * lanes + i] * value;
      }
  }
}

/* The lanes aimed at attend to the keys that wait. */
static void hai_tile_flush(hai_tile *tile) {
  if (!tile->n_keys) return;
  hai_tile_follow(tile, hai_tile_weights(tile));
  if (HAI_ROUNDS && tile->value_dim && tile->kernel->round) hai_tile_round(tile);
  if (tile->value_dim && tile->masked && tile->nonfinite)
    hai_tile_values_guarded(tile);
  else if (tile->value_dim)
    hai_tile_add_values(tile, tile->value, 0, tile->value_dim);
  tile->n_keys = tile->masked = tile->weighted = 0;
}

/* The keys that wait are passed over, since no lane sees any of them. Sums are carried all the same: when
   that happens must not depend on which queries share a tile. */
static void hai_tile_pass(hai_tile *tile) {
  hai_tile_follow(tile, 0);
  tile->n_keys = tile->masked = 0;
}

/* Starts to load a row that is met once its chunk is full; one that was widened was read. */
HAI_HOT void hai_row_fetch(const hai_rows *rows, const void *row) {
  size_t bytes = HAI_AS(size_t, hai_offset(rows->dtype, rows->dim));
  if (!rows->widened) hai_fetch(HAI_AS(const char *, row), bytes);
}

/* One more key, of weight 1, for those of the lanes in `bits` that see it. A key that no lane sees takes
   its place in the chunk too: how sums are grouped must not depend on which queries share a tile. */
static void hai_tile_push(hai_tile *tile, hai_index key, uint64_t bits) {
  int j = tile->n_keys++;
  hai_tile_put(tile, j, key);
  hai_row_fetch(&tile->keys, tile->key[j]);
  if (tile->value_dim) hai_row_fetch(&tile->values, tile->value[j]);
  hai_tile_show(tile, j, key, bits);
  if (tile->n_keys == HAI_CHUNK) hai_tile_flush(tile);
}

/* Starts to load rows begin .. end - 1, which are met one chunk later. */
HAI_HOT void hai_rows_fetch(const hai_rows *rows, hai_index begin, hai_index end) {
  size_t bytes = HAI_AS(size_t, hai_offset(rows->dtype, rows->dim));
  hai_walk walk;
  if (!HAI_SIMD || begin >= end) return; /* plain C does not wait for memory */
  walk = hai_walk_from(rows, begin);
  for (;;) {
    hai_fetch(walk.at, bytes);
    if (++begin == end) return;
    hai_walk_on(&walk, rows, begin);
  }
}

/* Number i of n tiles that meet the same keys sees to its share of rows begin .. end - 1, the next chunk, of
   which all may load at once only at the price of waiting. */
HAI_HOT void hai_tile_fetch(const hai_tile *tile, int i, int n, hai_index begin, hai_index end) {
  hai_index rows = hai_max(0, end - begin);
  end = begin + rows * (i + 1) / n;
  begin += rows * i / n;
  hai_rows_fetch(&tile->keys, begin, end);
  if (tile->value_dim) hai_rows_fetch(&tile->values, begin, end);
}

/* Keys begin .. end - 1, at most a chunk, take their places, once for all tiles of a task. For keys before
   `first`, which nobody sees, that one stands: theirs may lie in pages that are gone. */
static void hai_tile_rows(hai_tile *tile, hai_index begin, hai_index end, hai_index first) {
  const hai_rows *keys = &tile->keys, *values = &tile->values;
  hai_index from = hai_max(begin, first), row;
  hai_walk key = hai_walk_from(keys, from), value = hai_walk_from(values, from);
  for (row = begin; row < end; row++) {
    if (row > from) {
      hai_walk_on(&key, keys, row);
      hai_walk_on(&value, values, row);
    }
    hai_tile_put_at(tile, hai_to_int(row - begin), row, key.at, value.at);
  }
}

/* Makes those of keys begin .. end - 1, at most a chunk, wait that some query of the tile may see. Returns
   whether there are any. The tile goes on to meet keys up to `all`. */
static int hai_tile_await(hai_tile *tile, hai_index begin, hai_index end, hai_index all) {
  if (hai_tile_sees(tile, begin, end - 1) == HAI_SEEN_NONE) return 0;
  hai_tile_fill(tile, begin, hai_min(end, tile->max_last + 1));
  tile->chunks = hai_to_int(begin / HAI_CHUNK); /* counted from key 0 */
  if (!HAI_MASKS || !tile->mask) return 1;
  hai_mask_fetch(tile, end, hai_min(end + HAI_CHUNK, all));
  if (hai_mask_chunk(tile, begin)) return 1;
  hai_tile_pass(tile);
  return 0;
}

/* Some tiles meet those of keys begin .. end - 1 that they see. Chunks begin at multiples of HAI_CHUNK, and
   a tile meets every chunk that any of its queries sees, so that the grouping of sums does not depend on
   which queries share a tile. */
static void hai_tiles_run(hai_tile *const *tiles, int n_tiles, hai_index begin, hai_index end) {
  hai_index first = end, last = begin - 1, next;
  int placed, nonfinite, i;
  for (i = 0; i < n_tiles; i++) {
    first = hai_min(first, tiles[i]->min_first);
    last = hai_max(last, tiles[i]->max_last);
    hai_tile_aim(tiles[i], 0, tiles[i]->n);
  }
  begin = hai_max(begin, first / HAI_CHUNK * HAI_CHUNK);
  end = hai_min(end, last + 1);
  for (; begin < end; begin = next) {
    next = hai_min(end, (begin / HAI_CHUNK + 1) * HAI_CHUNK);
    placed = 0;
    nonfinite = -1; /* not known yet */
    for (i = 0; i < n_tiles; i++) {
      if (!hai_tile_await(tiles[i], begin, next, end)) continue;
      if (!placed) hai_tile_rows(tiles[0], begin, next, first);
      placed = 1;
      if (tiles[i]->guarded && tiles[i]->masked && nonfinite < 0)
        nonfinite = !hai_tile_values_finite(tiles[0], next - begin);
      tiles[i]->nonfinite = nonfinite > 0;
      hai_tile_fetch(tiles[i], i, n_tiles, next, hai_min(next + HAI_CHUNK, end));
      hai_tile_flush(tiles[i]);
    }
  }
}

/* ======== src/verdict.h ======== */

/* ---- Verdicts: which recipe a rectangle and head gets ----
   Trials (trials.h) leave what their held-out queries found, and the verdict follows from it whenever it is
   asked for: tasks of a trial need not wait for one another. */

typedef struct hai_verdict {
  hai_recipe recipe;
  int pairing;
  int settled; /* 1: no further trials */
  int tried;   /* how many pairings have been tried */
  float error; /* relative error of the held-out queries */
} hai_verdict;

/* Trials are made in the order of their numbers: columns alone, the first pairing, the second. */
static int hai_trial_number(int pairing) { return pairing == HAI_NO_BLOCKS ? 0 : 1 + pairing; }

/* Held-out queries of a task of a trial. */
static int hai_trial_queries(int number) { return number ? HAI_JUDGE_RUN : HAI_TRIAL_QUERIES; }

/* Notes that no trial has been made. */
static void hai_verdict_open(const hai_job *job) {
  hai_finding *found = hai_trials_of(job)->found[0];
  int i;
  for (i = 0; i < HAI_TRIALS * HAI_TRIAL_TASKS; i++) found[i].squared_norm = -1.0f;
}

/* The relative error that a trial found. */
static float hai_trial_error(const hai_finding *found) {
  float squared_error = 0.0f, squared_norm = 0.0f;
  int i;
  for (i = 0; i < HAI_TRIAL_TASKS && found[i].squared_norm >= 0.0f; i++) {
    squared_error += found[i].squared_error;
    squared_norm += found[i].squared_norm;
  }
  return hai_relative(squared_error, squared_norm);
}

/* What follows from the first `end` trials: the recipe of the smallest error, and whether that is small
   enough; HAI_EACH where all trials miss a tolerance. */
static hai_verdict hai_verdict_after(const hai_job *job, int end) {
  const hai_plan *plan = job->plan;
  float tolerance = plan->params->tolerance;
  hai_verdict verdict = {HAI_BLOCKS, 0, 0, 0, 0.0f};
  int number;
  verdict.error = hai_inf();
  for (number = 0; number < end; number++) {
    const hai_finding *found = hai_trials_of(job)->found[number];
    float error, enough = tolerance > 0.0f ? tolerance : number ? HAI_FAIR : HAI_GOOD;
    if (found->squared_norm < 0.0f) continue;
    verdict.tried = number; /* so many pairings: trial 0 has none */
    error = hai_trial_error(found);
    if (error < verdict.error) {
      verdict.recipe = number ? HAI_BLOCKS : HAI_COLUMNS;
      verdict.pairing = number ? number - 1 : HAI_NO_BLOCKS;
      verdict.error = error;
      verdict.settled = error <= enough;
    }
    if (tolerance > 0.0f && number == plan->n_pairings && !verdict.settled) verdict.recipe = HAI_EACH;
  }
  return verdict;
}
static hai_verdict hai_verdict_of(const hai_job *job) {
  return hai_verdict_after(job, 1 + job->plan->n_pairings);
}

static int hai_takes_blocks(const hai_verdict *verdict, int pairing) {
  return verdict->pairing == pairing && verdict->recipe == HAI_BLOCKS;
}

/* The recipe of a rectangle and head. */
static hai_recipe hai_recipe_of(const hai_job *job) {
  if (hai_rect_is_exact(job)) return HAI_EACH;
  return job->plan->choosing ? hai_verdict_of(job).recipe : HAI_BLOCKS;
}
/* Does the job's rectangle scan? The whole problem does, or a rectangle for which nothing was good enough. */
static int hai_is_scanned(const hai_job *job) {
  if (hai_scanning(job->plan)) return 1;
  return hai_scans_rects(job->plan) && !hai_rect_is_exact(job) && hai_recipe_of(job) == HAI_EACH;
}

/* ======== src/skipping.h ======== */

/* ---- Skipping: stages that a rectangle no longer needs ----
   Held-out queries try pairings one after another, and a rectangle whose verdict is settled needs no
   further one. How many tasks a phase has follows from shapes and parameters alone, so the tasks of a
   pairing that is not needed run all the same and return at once. */

/* Whether job->head needs the blocks of job->pairing: because that pairing is still to be tried, or because
   the verdict takes it. A task of a kv head (job->head < 0) is needed if any query head of the group needs
   the pairing, unless it is the last one that any of them tried: all that depends on its keys is then still
   in the workspace. */
static int hai_is_needed(const hai_job *job) {
  hai_job each = *job;
  hai_index n = job->plan->heads_per_kv;
  int needed = 0, tried = 0;
  if (!job->plan->choosing) return 1;
  for (each.head = job->kv_head * n; each.head < (job->kv_head + 1) * n; each.head++) {
    hai_verdict verdict;
    if (job->head >= 0 && job->head != each.head) continue;
    verdict = hai_verdict_of(&each);
    needed |= verdict.tried <= job->pairing ? !verdict.settled : hai_takes_blocks(&verdict, job->pairing);
    tried = verdict.tried > tried ? verdict.tried : tried;
  }
  return needed && (job->head >= 0 || tried != job->pairing + 1);
}

/* ======== src/hashing.h ======== */

/* ---- Hashing: the bucket of every query and key (Algorithm 1) ----
   A row's code has one bit for each of lsh_bits hyperplanes: the sign of its product with the plane's
   normal. Rows at a small angle differ in few bits. Its bucket is the position of that code in Gray
   order, in which neighbouring buckets differ in one bit, so that rows which are close together in the
   order of buckets tend to point in similar directions. */

/* The position of Gray code `code`, of at most 16 bits. */
static uint32_t hai_gray_decode(uint32_t code) {
  code ^= code >> 1;
  code ^= code >> 2;
  code ^= code >> 4;
  code ^= code >> 8;
  return code;
}

/* planes [bits][dim]: random signs, 64 from each random number. With entries +1 and -1 every product is
   rounded alike on all machines, so buckets do not depend on the ISA. */
static void hai_planes(uint64_t seed, int bits, hai_index dim, float *planes) {
  hai_index i;
  uint64_t word = 0;
  for (i = 0; i < bits * dim; i++) {
    if (i % 64 == 0) word = hai_random(seed, 0, HAI_FOR_PLANES, HAI_AS(uint64_t, i) / 64);
    planes[i] = word >> (i % 64) & 1 ? 1.0f : -1.0f;
  }
}

/* The bucket of the row in a lane, from its products with the planes. */
static uint16_t hai_bucket(const hai_tile *tile, int bits, int lanes, int lane) {
  uint32_t code = 0;
  int b;
  for (b = 0; b < bits; b++) code |= HAI_AS(uint32_t, tile->score[b * lanes + lane] > 0.0f) << b;
  return HAI_AS(uint16_t, hai_gray_decode(code));
}

/* Stage HASH: buckets of HAI_TASK_ROWS rows of a rectangle, queries of job->head or, where job->head < 0,
   keys of the kv head. Reads queries or keys; writes query_code or key_code. Cost: rows * lsh_bits *
   head_dim. */
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
  if (job->pairing && !hai_is_needed(job)) return;
  hai_planes(plan->params->seed, bits, plan->head_dim, planes);
  for (b = 0; b < bits; b++) plane[b] = planes + b * plan->head_dim;
  for (; row < end; row += lanes) {
    int count = hai_to_int(hai_min(lanes, end - row));
    for (i = 0; i < lanes; i++)
      tile->row[i] = i >= count ? HAI_NULL
                     : of_key   ? hai_key_row(job, row + i, hai_line(tile, i))
                                : hai_query_row(job, job->head, row + i, hai_line(tile, i));
    /* under a negative scale a query likes the keys opposite to it, so it is hashed with its sign turned */
    plan->float_kernel->pack(tile->row, plan->head_dim, of_key || plan->scale > 0.0f ? 1.0f : -1.0f,
                             tile->query);
    plan->float_kernel->scores(tile->query, plan->head_dim, plane, bits, 0, lanes, tile->score);
    for (i = 0; i < count; i++) code[row + i] = hai_bucket(tile, bits, lanes, i);
  }
}

/* ======== src/heldout.h ======== */

/* ---- Queries that meet every key: probes and held-out queries ----
   A rectangle's keys are chosen by what a few of its queries think of all of them, and the choice is
   judged by what a few others get from all of them. Both kinds meet every key of the rectangle, at a cost
   of n_key products each:

   - probes tell which keys matter (probing.h): one query from each of up to probe_queries strata of rows;
   - held-out queries have no part in choosing a rectangle's keys. Up to HAI_JUDGES of them decide which
     recipe the rectangle gets (trials.h, verdict.h). Where a report is wanted, up to HAI_AUDITORS others,
     drawn anew, measure what that recipe is worth (auditing.h): the queries that decided would flatter
     it.

   Strata of rows spread both evenly over the rectangle, and neither kind depends on data. Held-out
   queries come in runs of HAI_JUDGE_RUN neighbouring rows, one run from each stratum, since neighbours
   often share a query group, whose pairing then serves several of them. A query that had a say in the
   choice would judge it too kindly, so a probe that falls on a judge's row gives way and takes the row
   beside the run. Small rectangles, in which all or most queries judge, have too few rows for that.

   The keys are met in chunks, one a task. A task leaves the states of all these queries over its chunk in
   the workspace, and a later stage merges the chunks. */

/* Puts query `row` of the rectangle into a lane. */
static void hai_rect_query(hai_job *job, int lane, hai_index row) {
  hai_index first, last;
  hai_rect_keys(job->plan, row, &first, &last);
  hai_tile_query(job, lane, job->head, row, first, last);
}

static hai_index hai_n_probes(const hai_job *job) {
  return hai_min(job->plan->probe_queries, job->rect.n_query);
}

/* How many held-out queries a rectangle has: auditors in a task that serves the report, judges in
   others. */
static hai_index hai_max_held_out(const hai_job *job) { return job->audit ? HAI_AUDITORS : HAI_JUDGES; }
static int hai_n_held_out(const hai_job *job) {
  return hai_to_int(hai_min(hai_max_held_out(job), job->rect.n_query));
}
static hai_index hai_held_out_runs(const hai_job *job) { return hai_max_held_out(job) / HAI_JUDGE_RUN; }
static int hai_all_held_out(const hai_job *job) { return job->rect.n_query <= hai_max_held_out(job); }

/* The row of held-out query i. They ascend. */
static hai_index hai_held_out_row(const hai_job *job, hai_index i) {
  hai_index runs = hai_held_out_runs(job), run = i / HAI_JUDGE_RUN, n = job->rect.n_query, begin, size;
  if (hai_all_held_out(job)) return job->rect.query_begin + i;
  begin = hai_cut(n, runs, run);
  size = hai_cut(n, runs, run + 1) - begin;
  begin += HAI_AS(hai_index,
                  hai_uniform(0, HAI_AS(uint64_t, size - HAI_JUDGE_RUN + 1),
                              hai_random_of(job, job->audit ? HAI_FOR_AUDITORS : HAI_FOR_JUDGES, run)));
  return job->rect.query_begin + begin + i % HAI_JUDGE_RUN;
}

/* Where the place of held-out query i in a sorted order is kept. */
static int32_t *hai_place_of(const hai_job *job, int i) {
  return job->audit ? &hai_record_of(job)->query[i].place : &hai_trials_of(job)->place[i];
}

/* Where held-out query i stands in the pairing's order. */
static hai_index hai_held_out_place(const hai_job *job, int i) {
  return hai_sorting(job) ? *hai_place_of(job, i) : hai_held_out_row(job, i) - job->rect.query_begin;
}

/* The row of probe t. Rows of probes never descend. */
static hai_index hai_probe_row(const hai_job *job, hai_index t) {
  hai_index n = job->rect.n_query, runs = hai_held_out_runs(job), run;
  hai_index row = hai_draw(n, hai_n_probes(job), t, hai_random_of(job, HAI_FOR_PROBES, t));
  row += job->rect.query_begin;
  if (n < 2 * HAI_JUDGES) return row;
  run = hai_held_out_row(job, hai_part_of(n, runs, row - job->rect.query_begin) * HAI_JUDGE_RUN);
  if (row < run || row >= run + HAI_JUDGE_RUN) return row;
  return run > job->rect.query_begin ? run - 1 : run + HAI_JUDGE_RUN;
}

/* Fills up to n tiles with queries row_of(first) .. row_of(end - 1), whose rows never descend, and starts
   empty states. Returns how many tiles it took. */
static int hai_tiles_open(hai_job *job, hai_tile *const *tiles, int n, hai_index first, hai_index end,
                          hai_index (*row_of)(const hai_job *, hai_index), hai_index value_dim) {
  const hai_plan *plan = job->plan;
  int opened, i;
  for (opened = 0; opened < n && first < end; opened++) {
    job->tile = tiles[opened];
    for (i = 0; i < plan->float_kernel->lanes && first < end; i++)
      hai_rect_query(job, i, row_of(job, first++));
    hai_tile_open(job, i, value_dim);
  }
  return opened;
}

/* Queries row_of(0) .. row_of(n - 1) meet the keys of this task's chunk, one of `chunks`. `keep` then takes
   the states of each tile (job->tile), whose lane 0 holds query `first`. Cost: n * keys of the chunk. */
static void hai_meet_chunk(hai_job *job, hai_index n, hai_index (*row_of)(const hai_job *, hai_index),
                           hai_index value_dim, hai_index chunks,
                           void (*keep)(const hai_job *job, hai_index first)) {
  hai_tile *tiles[HAI_MAX_TILES];
  int most = hai_tiles_place(job, tiles), opened, i;
  hai_index begin = hai_chunk_begin(job, chunks, job->chunk),
            end = hai_chunk_begin(job, chunks, job->chunk + 1), first = 0;
  while (first < n) {
    opened = hai_tiles_open(job, tiles, most, first, n, row_of, value_dim);
    hai_tiles_run(tiles, opened, begin, end);
    for (i = 0; i < opened; i++) {
      job->tile = tiles[i];
      keep(job, first);
      first += tiles[i]->n;
    }
  }
}

/* ======== src/ordering.h ======== */

/* ---- Ordering: rows sorted by bucket ---- */

/* order [n] = rows begin .. begin + n - 1, sorted by code[row], rows of equal code in the order of rows.
   Leaves end [2^bits] = where the rows of each code end. Cost: n + 2^bits. */
static void hai_counting_sort(const uint16_t *code, hai_index begin, hai_index n, int bits, int32_t *end,
                              int32_t *order) {
  hai_index i, buckets = hai_power_of_2(bits);
  int32_t sum = 0;
  HYPERATTN_MEMSET(end, 0, HAI_AS(size_t, buckets) * sizeof(int32_t));
  for (i = 0; i < n; i++) end[code[begin + i]]++;
  for (i = 0; i < buckets; i++) {
    int32_t here = end[i];
    end[i] = sum;
    sum += here;
  }
  for (i = 0; i < n; i++) order[end[code[begin + i]]++] = hai_to_int(begin + i);
}

/* A sorted order: what hai_counting_sort has read and written. */
typedef struct hai_sorted {
  const uint16_t *code; /* [row of the tensor] */
  const int32_t *end;   /* [2^bits] */
  const int32_t *order;
} hai_sorted;

/* Where a row stands in it. Cost: log n. */
static int32_t hai_place_in(const hai_sorted *sorted, int32_t row) {
  int32_t bucket = sorted->code[row], low = bucket ? sorted->end[bucket - 1] : 0, high = sorted->end[bucket];
  while (low < high) {
    int32_t middle = low + (high - low) / 2;
    if (sorted->order[middle] < row)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* Notes where a query head's held-out queries stand: judges (audit 0) where there are any, and auditors (1)
   where there is a report. */
static void hai_place_queries(hai_job *job, const hai_sorted *sorted) {
  int i;
  for (job->audit = !job->plan->choosing; HAI_JUDGING && job->audit <= job->plan->reporting; job->audit++)
    for (i = 0; i < hai_n_held_out(job); i++)
      *hai_place_of(job, i) = hai_place_in(sorted, hai_to_int(hai_held_out_row(job, i)));
}

/* Notes which sub-blocks of a second pairing hold the columns of the query heads that share a kv head. Those
   of the wide draw are met without blocks. */
static void hai_place_columns(hai_job *job, const hai_sorted *sorted) {
  hai_index n_key = job->rect.n_key, n_blocks = hai_key_parts(job->plan, n_key), n = job->plan->heads_per_kv;
  int i;
  if (!HAI_JUDGING || job->pairing == 0) return;
  for (job->head = job->kv_head * n; job->head < (job->kv_head + 1) * n; job->head++)
    for (i = 0; i < hai_counts(job)[1]; i++) {
      hai_column *column = &hai_columns(job, 0)[i];
      column->block[1] = hai_to_int(hai_part_of(n_key, n_blocks, hai_place_in(sorted, column->key)));
    }
}

/* Stage ORDER: sorts a rectangle's queries (of job->head) or, where job->head < 0, its keys (of the kv
   head) by bucket. Reads query_code or key_code; writes query_order, and places in trials and record, or
   key_order, and the columns' blocks in a second pairing. This stage needs no tile, so the counters use the
   tile's memory. Cost: rows + 2^lsh_bits, and a binary search for each held-out query or column. */
HAI_APART void hai_stage_order(hai_job *job) {
  int of_key = job->head < 0;
  hai_index begin = of_key ? job->rect.key_begin : job->rect.query_begin;
  int32_t *end = HAI_PLACE(int32_t, job->tile), *order = of_key ? hai_key_order(job) : hai_query_order(job);
  hai_sorted sorted;
  if (job->pairing && !hai_is_needed(job)) return;
  sorted.code = hai_codes(job, of_key);
  sorted.end = end;
  sorted.order = order;
  hai_counting_sort(sorted.code, begin, of_key ? job->rect.n_key : job->rect.n_query,
                    job->plan->params->lsh_bits, end, order);
  if (of_key)
    hai_place_columns(job, &sorted);
  else
    hai_place_queries(job, &sorted);
}

/* ======== src/probing.h ======== */

/* ---- Probing: which keys matter to a few queries ----
   Probes meet every key of the rectangle. The mass of a key is the attention that all probes together pay
   to it: M_j = sum over probes p of e^(s_pj - lse_p). The keys of largest mass are pinned (heavy keys),
   and masses weight the draw of columns. PROBE and SUM find each probe's lse, MASS then adds up; WEIGH makes
   sampling weights of masses. */

/* Keeps m and l of a tile's probes. */
static void hai_keep_partial(const hai_job *job, hai_index first) {
  float *partial = hai_partial(job, job->chunk) + 2 * first;
  int i;
  for (i = 0; i < job->tile->n; i++) {
    partial[2 * i] = job->tile->m[i];
    partial[2 * i + 1] = job->tile->l[i];
  }
}

/* Stage PROBE: m and l of every probe over one chunk of keys. Reads queries and keys; writes partial. Cost:
   probes * keys of the chunk. */
HAI_APART void hai_stage_probe(hai_job *job) {
  hai_meet_chunk(job, hai_n_probes(job), hai_probe_row, 0, hai_job_probe_chunks(job), hai_keep_partial);
}

/* Stage SUM: the lse of HAI_SUM_PROBES probes over the rectangle. Reads partial and stores each lse in place
   of the first chunk's m, or +inf, which makes all weights 0, where the probe met nothing or anything that
   is not finite. Cost: probes * chunks. */
HAI_APART void hai_stage_sum(hai_job *job) {
  hai_index chunks = hai_job_probe_chunks(job), c, i = job->chunk * HAI_SUM_PROBES,
            end = hai_min(i + HAI_SUM_PROBES, hai_n_probes(job));
  for (; i < end; i++) {
    float lse = -hai_inf();
    for (c = 0; c < chunks && lse != hai_inf(); c++) {
      const float *partial = hai_partial(job, c) + 2 * i;
      float part = hai_state_lse(partial[0], partial[1]);
      lse = part != part || part == hai_inf() ? hai_inf() : hai_log_add(lse, part);
    }
    hai_partial(job, 0)[2 * i] = lse == -hai_inf() ? hai_inf() : lse;
  }
}

/* Adds the squared weights (in tile->score) of the lanes in use to the squared masses of n_keys keys from
   `key` on, which begin at 0 where `is_first`. The report's alpha needs them. */
static void hai_add_squared_mass(const hai_job *job, hai_index key, int n_keys, int is_first) {
  const hai_tile *tile = job->tile;
  float *squared = hai_squared_mass(job) + (key - job->rect.key_begin);
  int lanes = tile->kernel->lanes, i, j;
  for (j = 0; j < n_keys; j++) {
    if (is_first) squared[j] = 0.0f;
    for (i = 0; i < tile->n; i++) squared[j] += tile->score[j * lanes + i] * tile->score[j * lanes + i];
  }
}

/* Adds the weights of the tile's `usable` probes (bits) to the masses of keys key .. key + count - 1. */
static void hai_tile_mass(hai_tile *tile, hai_index key, int count, uint64_t usable, float *mass) {
  int j;
  hai_tile_fill(tile, key, key + count);
  for (j = 0; j < count; j++) tile->visible[j] = tile->masked ? tile->visible[j] & usable : usable;
  tile->masked = 1;
  /* with each lane's reference m set to its lse, softmax leaves normalised weights e^(s - lse) */
  HYPERATTN_MEMCPY(tile->m, tile->spare, HAI_AS(size_t, tile->kernel->lanes) * sizeof(float));
  hai_tile_weights(tile);
  tile->kernel->sum_lanes(tile->score, count, tile->begin, tile->end, tile->per_key);
  for (j = 0; j < count; j++) mass[j] += tile->per_key[j];
}

/* Sets the references (tile->spare) of a tile whose lane 0 holds probe `first`: each probe's lse, raised a
   little, since lse is rounded and no score may lie above the reference. Returns the bits of the usable
   probes: those that met something, and only finite numbers. */
static uint64_t hai_set_references(const hai_job *job, hai_tile *tile, hai_index first) {
  uint64_t usable = 0;
  int i;
  for (i = 0; i < tile->kernel->lanes; i++) {
    float lse = i < tile->n ? hai_partial(job, 0)[2 * (first + i)] : hai_inf();
    usable |= HAI_AS(uint64_t, hai_finite(lse)) << i;
    tile->spare[i] = hai_finite(lse) ? lse + 1e-6f * (1.0f + (lse < 0.0f ? -lse : lse)) : lse;
  }
  return usable;
}

/* Stage MASS: column masses of one chunk of keys, and for the report their largest squared mass, which is
   written over the first probe's l. Reads queries, keys and partial; writes mass, squared_mass and partial.
   Cost: probes * keys of the chunk. */
HAI_APART void hai_stage_mass(hai_job *job) {
  hai_tile *tiles[HAI_MAX_TILES];
  uint64_t usable[HAI_MAX_TILES] = {0};
  float *mass = hai_mass(job) - job->rect.key_begin;
  hai_index chunks = hai_job_probe_chunks(job), begin = hai_chunk_begin(job, chunks, job->chunk),
            end = hai_chunk_begin(job, chunks, job->chunk + 1);
  hai_index first = 0, probes = hai_n_probes(job), key;
  int most = hai_tiles_place(job, tiles), is_first = 1, n, t;
  for (key = begin; key < end; key++) mass[key] = 0.0f;
  for (; first < probes; is_first = 0) {
    n = hai_tiles_open(job, tiles, most, first, probes, hai_probe_row, 0);
    for (t = 0; t < n; t++) {
      usable[t] = hai_set_references(job, tiles[t], first);
      first += tiles[t]->n;
    }
    for (key = begin; key < end; key += HAI_CHUNK) {
      int count = hai_to_int(hai_min(HAI_CHUNK, end - key));
      hai_tile_rows(tiles[0], key, key + count, key);
      for (t = 0; t < n; t++) {
        job->tile = tiles[t];
        hai_tile_fetch(tiles[t], t, n, key + count, hai_min(key + count + HAI_CHUNK, end));
        hai_tile_mass(tiles[t], key, count, usable[t], mass + key);
        if (job->plan->reporting) hai_add_squared_mass(job, key, count, is_first && t == 0);
      }
    }
  }
  if (job->plan->reporting)
    hai_partial(job, job->chunk)[1] =
        hai_largest(hai_squared_mass(job) + (begin - job->rect.key_begin), end - begin);
}

/* Stage WEIGH: sampling weights of one chunk of keys, written over their masses: M_j |v_j| for
   HYPERATTN_SAMPLE_COLUMN_MASS, |v_j|^2 for HYPERATTN_SAMPLE_VALUE_NORM, and 0 for what is not finite; and
   their sum over all keys but the pins. Reads values, mass and pinned; writes mass and partial. Cost: keys
   of the chunk * value_dim. */
HAI_APART void hai_stage_weigh(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index chunks = hai_job_probe_chunks(job), key = hai_chunk_begin(job, chunks, job->chunk),
            end = hai_chunk_begin(job, chunks, job->chunk + 1);
  float *mass = hai_mass(job) - job->rect.key_begin, sum = 0.0f;
  const uint32_t *pinned = hai_pinned(job);
  for (; key < end; key++) {
    float norm = plan->float_kernel->square(hai_value_row(job, key, job->tile->line), plan->value_dim);
    mass[key] = plan->params->sampling == HYPERATTN_SAMPLE_VALUE_NORM ? norm : mass[key] * hai_sqrt(norm);
    if (!hai_finite(mass[key])) mass[key] = 0.0f;
    if (!hai_is_pinned(job, pinned, key)) sum += mass[key];
  }
  *hai_partial(job, job->chunk) = sum;
}

/* ======== src/best.h ======== */

/* ---- The k best candidates of a stream ----
   A candidate is a value (a score or a mass) with the id of what has it, packed into one word: the
   value's bits, in an encoding whose integer order is the order of the numbers, above the complement of
   the id. The larger word is the better candidate. Among equal values the smaller id wins, and NaN counts
   as -inf. The best k so far form a binary heap whose root is the worst of them. */

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

/* Restores the heap of the first n words after the one at `at` was replaced by a better one: moves it
   away from the root until neither child is worse. */
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

/* Offers a candidate to a heap of the *n best so far, of which at most k are kept. */
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

/* Writes the ids of a heap of n in ascending order; the heap's contents are lost. A heapsort by the
   complements of the ids: its root is the largest id that is left. */
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

/* ======== src/columns.h ======== */

/* ---- Pins and columns: keys that all queries of a rectangle share ----
   Pins are met by every query with log-weight 0: the sink keys and the heavy keys. Columns are a sample of
   the other keys, R, whose log-weight makes up for the keys that were not drawn. Both draws run through R
   in the pairing's order and take one point from each of m strata, so that every bucket is represented. A
   column that a query meets in its blocks too is hidden from it (rectangle.h); no other weight changes. */

static void hai_set_pinned(const hai_job *job, uint32_t *pinned, hai_index key) {
  hai_index bit = key - job->rect.key_begin;
  pinned[bit / 32] |= UINT32_C(1) << (bit % 32);
}

/* The heavy keys: of the rectangle's keys that are no sink keys, those of largest mass. Marks them in
   `pinned`. */
static void hai_pin_heavy(const hai_job *job, hai_index first, uint32_t *pinned) {
  const float *mass = hai_mass(job) - job->rect.key_begin;
  uint64_t *heap = HAI_PLACE(uint64_t, job->scratch);
  hai_index end = job->rect.key_begin + job->rect.n_key, key;
  int most = hai_to_int(hai_min(job->plan->heavy_keys, end - first)), n = 0, i;
  float worst = -hai_inf(); /* of those held: an equal mass need not be offered, since the smaller id wins */
  for (key = first; key < end; key++) {
    if (HAI_SIMD && n == most && !(mass[key] > worst)) continue;
    hai_offer(heap, &n, most, hai_candidate(mass[key], hai_to_int(key)));
    worst = hai_candidate_value(heap[0]);
  }
  for (i = 0; i < n; i++) hai_set_pinned(job, pinned, hai_candidate_id(heap[i]));
}

/* Stage PIN: the pins of a rectangle for one query head. Reads mass; writes pinned (a bit a key), pins
   (ascending) and their count. Cost: n_key, and log heavy_keys for each change of the heaviest so far. */
HAI_APART void hai_stage_pin(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index begin = job->rect.key_begin, end = begin + job->rect.n_key,
            sink_end = hai_min(plan->sink_keys, end), key;
  uint32_t *pinned = hai_pinned(job);
  int32_t *pins = hai_pins(job), n = 0;
  HYPERATTN_MEMSET(pinned, 0, HAI_AS(size_t, hai_ceil_div(job->rect.n_key, 32)) * sizeof(uint32_t));
  if (plan->heavy_keys) hai_pin_heavy(job, hai_max(begin, sink_end), pinned);
  for (key = begin; key < sink_end; key++) hai_set_pinned(job, pinned, key);
  for (key = begin; key < end; key++) {
    hai_index bit = key - begin;
    if (HAI_SIMD && bit % 32 == 0 && !pinned[bit / 32])
      key += 31; /* no pin in a word */
    else if (hai_is_pinned(job, pinned, key))
      pins[n++] = hai_to_int(key);
  }
  hai_counts(job)[0] = n;
}

/* The column at a place of the pairing's order, of `n_blocks` sub-blocks (0: no blocks). */
static hai_column hai_column_at(const hai_job *job, hai_index place, hai_index n_blocks, float log_weight) {
  hai_column column;
  column.key = hai_to_int(hai_at(hai_key_order(job), job->rect.key_begin, place));
  column.block[0] = n_blocks ? hai_to_int(hai_part_of(job->rect.n_key, n_blocks, place)) : -1;
  column.block[1] = -1; /* until that pairing's keys are sorted */
  column.log_weight = log_weight;
  return column;
}

/* Draws one key from each of m strata of the n keys that are not pinned, with log-weight ln of the
   stratum's size; all n, with log-weight 0, if m >= n. Writes the columns in order of places; returns how
   many. Cost: n_key. */
static int32_t hai_draw_uniform(const hai_job *job, hai_index n, hai_index m, int purpose,
                                hai_column *columns) {
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  hai_index n_blocks = hai_key_parts(job->plan, job->rect.n_key), place, at = 0, t = 0, drawn = 0;
  m = hai_min(m, n);
  for (place = 0; place < job->rect.n_key && t < m; place++) {
    if (hai_is_pinned(job, pinned, hai_at(order, job->rect.key_begin, place))) continue;
    if (at == hai_cut(n, m, t)) drawn = hai_draw(n, m, t, hai_random_of(job, purpose, t));
    if (at == drawn)
      columns[t] = hai_column_at(job, place, n_blocks,
                                 hai_log(HAI_AS(float, hai_cut(n, m, t + 1) - hai_cut(n, m, t))));
    if (++at == hai_cut(n, m, t + 1)) t++;
  }
  return hai_to_int(m);
}

/* A key's probability 0.8 w / sum + 0.2 / n, in units of 2^-44: whole numbers, whose sums are exact. */
static uint64_t hai_units(float w, float sum, hai_index n) {
  float share = sum > 0.0f ? 0.8f * (w / sum) + 0.2f / HAI_AS(float, n) : 1.0f / HAI_AS(float, n);
  return HAI_AS(uint64_t, share * 17592186044416.0f) + 1;
}

/* A random point of stratum t of m of [0, total): the stratum is [total t / m, total (t + 1) / m), computed
   without overflow. */
static uint64_t hai_point(const hai_job *job, uint64_t total, hai_index m, hai_index t, int purpose) {
  uint64_t whole = total / HAI_AS(uint64_t, m), rest = total % HAI_AS(uint64_t, m), i = HAI_AS(uint64_t, t);
  uint64_t begin = whole * i + rest * i / HAI_AS(uint64_t, m),
           end = whole * (i + 1) + rest * (i + 1) / HAI_AS(uint64_t, m);
  return hai_uniform(begin, end - begin, hai_random_of(job, purpose, t));
}

/* The sum of all weights but those of pins. */
static float hai_weight_total(const hai_job *job) {
  hai_index chunks = hai_job_probe_chunks(job), c;
  float sum = 0.0f;
  for (c = 0; c < chunks; c++) sum += *hai_partial(job, c);
  return sum;
}

/* The sum of the units of the n keys that are not pinned; `sum` is that of their weights. */
static uint64_t hai_total_units(const hai_job *job, hai_index n, float sum) {
  const uint32_t *pinned = hai_pinned(job);
  const float *weight = hai_mass(job) - job->rect.key_begin;
  hai_index key = job->rect.key_begin, end = key + job->rect.n_key;
  uint64_t total = 0;
  for (; key < end; key++)
    if (!hai_is_pinned(job, pinned, key)) total += hai_units(weight[key], sum, n);
  return total;
}

/* Draws m points, one from each stratum of the cumulative probability of the n keys that are not pinned.
   A key that c points hit is one column of weight c / (m p). Writes the columns in order of places;
   returns how many. Cost: 2 n_key. */
static int32_t hai_draw_weighted(const hai_job *job, hai_index n, hai_index m, int purpose,
                                 hai_column *columns) {
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  const float *weight = hai_mass(job) - job->rect.key_begin;
  hai_index n_blocks = hai_key_parts(job->plan, job->rect.n_key), place, t = 0;
  float sum = hai_weight_total(job);
  uint64_t total = hai_total_units(job, n, sum), below = 0, point = hai_point(job, total, m, 0, purpose);
  int32_t count = 0;
  for (place = 0; place < job->rect.n_key && t < m; place++) {
    uint64_t units;
    hai_index hits = 0, key = hai_at(order, job->rect.key_begin, place);
    if (hai_is_pinned(job, pinned, key)) continue;
    units = hai_units(weight[key], sum, n);
    for (; t < m && point < below + units; hits++)
      if (++t < m) point = hai_point(job, total, m, t, purpose);
    if (hits)
      columns[count++] = hai_column_at(
          job, place, n_blocks,
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

/* Stage COLUMNS: chunk 0 is the draw of a rectangle for one query head, chunk 1 the wide draw, in which
   columns take the places of block keys. Reads pinned, key_order, the sampling weights (mass) and their sums
   (partial); writes columns, their count, and that no trial has been made. Cost: O(n_key). */
HAI_APART void hai_stage_columns(hai_job *job) {
  const hai_plan *plan = job->plan;
  int32_t *counts = hai_counts(job);
  hai_index n = job->rect.n_key - counts[0];
  int wide = job->chunk > 0;
  counts[1 + wide] = hai_draw_columns(job, n, wide ? plan->max_wide : plan->sample_size,
                                      wide ? HAI_FOR_WIDE : HAI_FOR_COLUMNS, hai_columns(job, wide));
  if (plan->choosing && !wide) hai_verdict_open(job);
}

/* ======== src/pairing.h ======== */

/* ---- Pairing query groups with key sub-blocks by score ----
   Rows in the pairing's order are cut into query groups and key sub-blocks. Each group takes the `take`
   sub-blocks whose mean key scores best with its mean query. In large rectangles that is done in two
   levels: the HAI_TASK_GROUPS groups of a task first choose 2 * take superblocks together, and each group
   then looks for sub-blocks in these only. */

/* mean [head_dim] of the rows at places begin .. end - 1 of the pairing's order, queries of job->head or
   keys. Rows below `skip` are left out; if none remains, the mean is NaN, which scores worst. */
static void hai_mean_row(const hai_job *job, int of_key, hai_index begin, hai_index end, hai_index skip,
                         float *mean) {
  const int32_t *order = of_key ? hai_key_order(job) : hai_query_order(job);
  hai_index first = of_key ? job->rect.key_begin : job->rect.query_begin;
  hai_index dim = job->plan->head_dim, i, t, n = 0;
  float *widened = hai_line(job->tile, 0), share;
  for (t = 0; t < dim; t++) mean[t] = 0.0f;
  for (i = begin; i < end; i++) {
    hai_index row = hai_at(order, first, i);
    if (row < skip) continue;
    job->plan->float_kernel->add_row(
        mean, of_key ? hai_key_row(job, row, widened) : hai_query_row(job, job->head, row, widened), dim);
    n++;
  }
  share = n ? 1.0f / HAI_AS(float, n) : hai_float(0x7fc00000u);
  for (t = 0; t < dim; t++) mean[t] *= share;
}

/* Stage MEANS: mean keys of HAI_TASK_GROUPS sub-blocks, and of their superblocks. Sink keys are left out:
   they are pinned for every query anyway, and unlike all other keys. Reads keys and key_order; writes
   mean and superblock_mean. Cost: keys * head_dim. */
HAI_APART void hai_stage_means(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index n_blocks = hai_key_parts(plan, job->rect.n_key), dim = plan->head_dim, t, i;
  hai_index begin = job->chunk * HAI_TASK_GROUPS, end = hai_min(begin + HAI_TASK_GROUPS, n_blocks);
  if (!hai_is_needed(job)) return;
  for (i = begin; i < end; i++)
    hai_mean_row(job, 1, hai_cut(job->rect.n_key, n_blocks, i), hai_cut(job->rect.n_key, n_blocks, i + 1),
                 plan->sink_keys, hai_mean(job) + i * dim);
  if (!hai_two_levels(plan, job->rect.n_key)) return;
  for (i = begin; i < end; i++) {
    float *superblock = hai_superblock_mean(job) + i / HAI_SUPERBLOCK * dim;
    const float *mean = hai_mean(job) + i * dim;
    for (t = 0; t < dim && i % HAI_SUPERBLOCK == 0; t++) superblock[t] = 0.0f;
    for (t = 0; t < dim && mean[0] == mean[0]; t++) superblock[t] += mean[t] / HAI_AS(float, HAI_SUPERBLOCK);
  }
}

typedef struct hai_pairing_scratch {
  uint64_t *best;      /* [lanes][take]: a heap for each lane; before, one of 2 take superblocks */
  int32_t *superblock; /* [2 take]: superblocks chosen together, ascending */
  float *query;        /* [lanes][head_dim]: mean queries */
  float *best_score;   /* [superblocks]: the best score that any group gives each */
} hai_pairing_scratch;

static hai_pairing_scratch hai_pairing_scratch_of(const hai_job *job) {
  hai_index lanes = job->plan->float_kernel->lanes, take = job->plan->take;
  hai_pairing_scratch scratch;
  scratch.best = HAI_PLACE(uint64_t, job->scratch);
  scratch.superblock = HAI_PLACE(int32_t, scratch.best + lanes * take);
  scratch.query = HAI_PLACE(float, scratch.superblock + 2 * take);
  scratch.best_score = scratch.query + lanes * job->plan->head_dim;
  return scratch;
}

/* Fills the lanes with the mean queries of the wanted groups: group first + i for every bit i < end of
   `wanted`, until the lanes are full. Returns the bits of the wanted groups that are still to come. */
static uint64_t hai_pair_open(hai_job *job, hai_index first, uint64_t wanted, int end,
                              const hai_pairing_scratch *scratch) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, n_query = job->rect.n_query;
  hai_index groups = hai_query_parts(plan, n_query, job->rect.n_key);
  float *query = scratch->query;
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

/* Raises best_score [n_superblocks] to the best score that any group in the lanes gives each superblock; it
   begins there where `is_first`. */
static void hai_score_superblocks(hai_job *job, hai_index n_superblocks, int is_first, float *best_score) {
  const hai_kernel *kernel = job->plan->float_kernel;
  hai_tile *tile = job->tile;
  hai_index dim = job->plan->head_dim, s;
  int j;
  for (s = 0; s < n_superblocks; s += HAI_CHUNK) {
    int count = hai_to_int(hai_min(HAI_CHUNK, n_superblocks - s));
    for (j = 0; j < count; j++) tile->key[j] = hai_superblock_mean(job) + (s + j) * dim;
    hai_tile_products(tile, kernel, count);
    for (j = 0; j < count; j++) {
      float most = hai_largest(tile->score + j * kernel->lanes, tile->n);
      best_score[s + j] = !is_first && best_score[s + j] > most ? best_score[s + j] : most;
    }
  }
}

/* Groups first .. first + n - 1 choose 2 * take superblocks together: those that any of them scores best.
   Writes them to scratch->superblock, ascending; returns how many. The last of the groups stay in the
   lanes. */
static int hai_pair_superblocks(hai_job *job, hai_index first, int n, const hai_pairing_scratch *scratch) {
  hai_index superblocks = hai_ceil_div(hai_key_parts(job->plan, job->rect.n_key), HAI_SUPERBLOCK), s;
  uint64_t all = hai_lane_bits(0, n), rest = all;
  int held = 0;
  while (rest) {
    int is_first = rest == all;
    rest = hai_pair_open(job, first, rest, n, scratch);
    hai_score_superblocks(job, superblocks, is_first, scratch->best_score);
  }
  for (s = 0; s < superblocks; s++)
    hai_offer(scratch->best, &held, 2 * job->plan->take,
              hai_candidate(scratch->best_score[s], hai_to_int(s)));
  hai_heap_ids(scratch->best, held, scratch->superblock);
  return held;
}

/* Offers the scores of `count` sub-blocks (tile->id, ascending) to each lane's heap of `take`. All heaps hold
   equally many, *held, since each score goes to all until they are full. Then a score that is no larger than
   the worst of a heap (tile->spare [lanes]) need not be offered: ids ascend, and the smaller id wins. */
static void hai_offer_blocks(hai_tile *tile, int count, int take, uint64_t *best, hai_index stride,
                             int *held) {
  int lanes = tile->kernel->lanes, before, i, j;
  for (j = 0; j < count; j++) {
    const float *score = tile->score + j * lanes;
    before = *held;
    for (i = 0; i < tile->n; i++) {
      if (before == take && !(score[i] > tile->spare[i])) continue;
      *held = before; /* of this heap too */
      hai_offer(best + i * stride, held, take, hai_candidate(score[i], tile->id[j]));
      tile->spare[i] = hai_candidate_value(best[i * stride]);
    }
  }
}

/* Each group in the lanes takes the sub-blocks whose mean key its mean query scores best, out of n
   superblocks: superblock[0 .. n - 1], or the first n where that is NULL. Writes the groups' choices,
   ascending. */
static void hai_pair_tile(hai_job *job, const int32_t *superblock, hai_index n, uint64_t *best) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, n_blocks = hai_key_parts(plan, job->rect.n_key), stride = plan->take, s;
  int take = hai_to_int(hai_min(plan->take, n_blocks)), held = 0, i;
  for (s = 0; s < n;) {
    int count = 0;
    for (; s < n && count + HAI_SUPERBLOCK <= HAI_CHUNK; s++) {
      hai_index block = (superblock ? superblock[s] : s) * HAI_SUPERBLOCK,
                end = hai_min(block + HAI_SUPERBLOCK, n_blocks);
      for (; block < end; block++, count++) {
        tile->key[count] = hai_mean(job) + block * dim;
        tile->id[count] = hai_to_int(block);
      }
    }
    hai_tile_products(tile, plan->float_kernel, count);
    hai_offer_blocks(tile, count, take, best, stride, &held);
  }
  for (i = 0; i < tile->n; i++) hai_heap_ids(best + i * stride, take, hai_choice(job, tile->group[i].id));
}

/* Pairs the wanted query groups (bits) of this task's HAI_TASK_GROUPS. The superblocks are chosen by all
   of them, wanted or not, so that a group's choice does not depend on which others are wanted.
   Cost of a group: keys / key_group products of head_dim; in two levels, a HAI_SUPERBLOCK-th of that and
   2 * take * HAI_SUPERBLOCK. */
static void hai_pair_groups(hai_job *job, uint64_t wanted) {
  hai_index first = job->chunk * HAI_TASK_GROUPS, n_key = job->rect.n_key;
  hai_index groups = hai_query_parts(job->plan, job->rect.n_query, n_key);
  hai_index superblocks = hai_ceil_div(hai_key_parts(job->plan, n_key), HAI_SUPERBLOCK);
  hai_pairing_scratch scratch = hai_pairing_scratch_of(job);
  int two_levels = hai_two_levels(job->plan, n_key);
  int n = hai_to_int(hai_max(0, hai_min(HAI_TASK_GROUPS, groups - first)));
  uint64_t all = hai_lane_bits(0, n), rest = wanted & all;
  /* whether choosing superblocks leaves just the wanted groups in the lanes */
  int in_lanes = two_levels && rest == all && n <= job->plan->float_kernel->lanes;
  if (rest && two_levels) superblocks = hai_pair_superblocks(job, first, n, &scratch);
  while (rest) {
    rest = in_lanes ? 0 : hai_pair_open(job, first, rest, n, &scratch);
    hai_pair_tile(job, two_levels ? scratch.superblock : HAI_NULL, superblocks, scratch.best);
  }
}

/* Stage PAIR: the sub-blocks of HAI_TASK_GROUPS query groups. Reads queries, query_order, mean and
   superblock_mean; writes choice. */
HAI_APART void hai_stage_pair(hai_job *job) {
  if (hai_is_needed(job)) hai_pair_groups(job, UINT64_MAX);
}

/* ======== src/exact.h ======== */

/* Exact regions, and the loop over a task's tiles that rectangles use too. */

/* Opens the tile for rows row .. row + n - 1 of a kv head, where row r is query r / heads_per_kv of head r
   % heads_per_kv: heads that share keys share tiles. */
static void hai_exact_open(hai_job *job, hai_index row, int n) {
  const hai_plan *plan = job->plan;
  hai_index group = plan->heads_per_kv, first, last;
  int i;
  for (i = 0; i < n; i++) {
    hai_index head = job->kv_head * group + (row + i) % group, query = (row + i) / group;
    hai_exact_keys(plan, query, &first, &last);
    hai_tile_query(job, i, head, query, first, last);
    if (hai_masking(plan)) hai_mask_lane(job, i, head, query);
  }
  hai_tile_open(job, n, plan->value_dim);
  hai_tile_begin(job);
  job->tile->guarded = plan->problem->causal || hai_sliding(plan) || hai_masking(plan);
}

/* Attention of rows row .. end - 1, some tiles at a time: open(job, row, n) opens job->tile for n rows, and
   meet(job, tiles, n) lets n tiles meet their keys. */
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
  hai_tiles_run(tiles, n, 0, job->plan->n_key);
}
static void hai_rect_meet(hai_job *job, hai_tile *const *tiles, int n) {
  hai_tiles_run(tiles, n, job->rect.key_begin, job->rect.key_begin + job->rect.n_key);
}

/* Exact attention of HAI_TASK_QUERIES rows of a kv head. */
HAI_APART void hai_stage_exact(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index row = job->chunk * HAI_TASK_QUERIES;
  hai_attend_rows(job, hai_exact_open, hai_exact_meet, row,
                  hai_min(row + HAI_TASK_QUERIES, plan->n_query * plan->heads_per_kv));
}

/* ======== src/sketch.h ======== */

/* ---- The sketch: what a scan reads in place of keys ----
   The first n_key / HAI_CHUNK * HAI_CHUNK keys of a kv head in whole blocks of HAI_CHUNK keys. A block is
   known by its mean key and, for each key, codes of 8 bits a coordinate for how it differs from the mean,
   all worth the same unit: key[t] is about mean[t] + unit * code[t]. No key changes another block. Beside
   each key stand a random number, which decides whether it is kept, and how far its value lies from a
   value in their midst, which tells how large an error is. One sketch serves all query heads that share
   the keys. */

#if HAI_SCAN
/* The unit of a block of which a key or value is not finite: all of it is met exactly. */
#define HAI_WHOLE (-1.0f)

typedef struct hai_sketch {
  uint8_t *code;   /* [blocks][HAI_CHUNK][code_dim]: HAI_KEY_RAISED more than the codes */
  float *norm;     /* [blocks][code_dim / 4]: of any key, the largest norm of a word's codes */
  float *spread;   /* [code_dim / 4]: the mean sum of squares of a word's codes in some early blocks; */
  float *usual;    /* [code_dim / 4]: the mean norm there, */
  float *worth;    /* and the mean unit */
  float *mean;     /* [blocks][head_dim] */
  float *unit;     /* [blocks] */
  float *draw;     /* [blocks + 1][HAI_CHUNK]: -ln of a random number; the last block is the first again */
  float *distance; /* [blocks][HAI_CHUNK]: |value - centre|^2 */
  float *centre;   /* [value_dim] */
} hai_sketch;

static hai_sketch hai_sketch_of(const hai_job *job) {
  hai_sketch sketch;
  hai_index kv_head = hai_flat_kv_head(job);
  sketch.code = HAI_PLACE(uint8_t, hai_array_at(job, HAI_ARRAY_CODE, kv_head));
  sketch.norm = hai_floats(job, HAI_ARRAY_NORM);
  sketch.spread = hai_floats(job, HAI_ARRAY_SPREAD);
  sketch.usual = sketch.spread + hai_code_dim(job->plan) / 4;
  sketch.worth = sketch.usual + hai_code_dim(job->plan) / 4;
  sketch.mean = hai_floats(job, HAI_ARRAY_BLOCK_MEAN);
  sketch.unit = hai_floats(job, HAI_ARRAY_CODE_UNIT);
  sketch.draw = hai_floats(job, HAI_ARRAY_DRAW);
  sketch.distance = hai_floats(job, HAI_ARRAY_DISTANCE);
  sketch.centre = hai_floats(job, HAI_ARRAY_CENTRE);
  return sketch;
}

/* centre [value_dim] = the mean of HAI_CHUNK values, evenly spread over the head's keys; those that are not
   finite count as 0. Any value would do: the nearer to most results, the better are estimates of errors. */
static void hai_sketch_centre(const hai_job *job, float *room, float *centre) {
  const hai_plan *plan = job->plan;
  hai_index t, i;
  HYPERATTN_MEMSET(centre, 0, HAI_AS(size_t, plan->value_dim) * sizeof(float));
  for (i = 0; i < HAI_CHUNK; i++) {
    const float *value = hai_value_row(job, hai_cut(plan->n_key, HAI_CHUNK, i), room);
    if (!hai_row_finite(value, HYPERATTN_F32, plan->value_dim)) continue;
    for (t = 0; t < plan->value_dim; t++) centre[t] += value[t] * (1.0f / HAI_CHUNK);
  }
}

/* Means and codes of one block, whose rows are listed in `row` [HAI_CHUNK]. Returns whether its keys are
   finite. */
static int hai_sketch_keys(const hai_job *job, const hai_sketch *sketch, hai_index block, const float **row,
                           float *room) {
  const hai_plan *plan = job->plan;
  const hai_scan_kernel *kernel = plan->scan_kernel;
  float *mean = sketch->mean + block * plan->head_dim, reach, inverse;
  int32_t *norm = HAI_PLACE(int32_t, room); /* rows are read before it is written */
  hai_index first = block * HAI_CHUNK, dim = plan->head_dim, code_dim = hai_code_dim(plan);
  hai_index n_words = code_dim / 4, j;
  for (j = 0; j < HAI_CHUNK; j++) row[j] = hai_key_row(job, first + j, room + j * dim);
  kernel->mean(row, dim, mean);
  reach = hai_float(HAI_AS(uint32_t, kernel->reach(row, dim, mean)));
  inverse = 127.0f / reach;
  if (!hai_finite(reach) || !hai_finite(inverse)) inverse = 0.0f;
  for (j = 0; j < HAI_CHUNK; j++)
    kernel->encode(row[j], dim, mean, inverse, sketch->code + (first + j) * code_dim);
  kernel->norms(sketch->code + first * code_dim, hai_to_int(n_words), norm);
  for (j = 0; j < n_words; j++) sketch->norm[block * n_words + j] = hai_sqrt(HAI_AS(float, norm[j]));
  sketch->unit[block] = reach * (1.0f / 127.0f);
  return hai_finite(reach);
}

/* How far codes spread and what they are worth, by the first blocks but the very first, whose keys are often
   like no others. Every query that scans sees these blocks: so no later key has a part in what it keeps. */
static void hai_sketch_spread(const hai_job *job, const hai_sketch *sketch) {
  const hai_plan *plan = job->plan;
  hai_index dim = hai_code_dim(plan), most = hai_min(plan->min_seq_len / HAI_CHUNK, HAI_SPREAD_BLOCKS);
  hai_index block = most > 1, n = hai_max(1, most) - block, w, j;
  float each = 1.0f / HAI_AS(float, n);
  HYPERATTN_MEMSET(sketch->spread, 0, HAI_AS(size_t, dim / 4 * 2 + 1) * sizeof(float));
  for (; n-- > 0; block++) {
    if (sketch->unit[block] == HAI_WHOLE) continue;
    for (w = 0; w < dim / 4; w++) {
      const uint8_t *code = sketch->code + block * HAI_CHUNK * dim + 4 * w;
      int32_t sum = 0;
      for (j = 0; j < HAI_CHUNK; j++, code += dim) sum += hai_scan_squares(code);
      sketch->spread[w] += each * (1.0f / HAI_CHUNK) * HAI_AS(float, sum);
      sketch->usual[w] += each * sketch->norm[block * (dim / 4) + w];
    }
    *sketch->worth += each * sketch->unit[block];
  }
}

/* Stage SKETCH: some blocks of a kv head. Reads keys and values; writes the sketch. Cost: keys * (head_dim +
   value_dim). */
HAI_APART void hai_stage_sketch(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_sketch sketch = hai_sketch_of(job);
  const float **row = HAI_PLACE(const float *, job->scratch);
  float *centre = HAI_PLACE(float, row + HAI_CHUNK), *room = centre + plan->value_dim;
  hai_index block = job->chunk * (HAI_TASK_ROWS / HAI_CHUNK), j;
  hai_index end = hai_min(block + HAI_TASK_ROWS / HAI_CHUNK, hai_sketch_blocks(plan));
  hai_sketch_centre(job, room, centre);
  for (; block < end; block++) {
    int is_finite = hai_sketch_keys(job, &sketch, block, row, room);
    for (j = block * HAI_CHUNK; j < (block + 1) * HAI_CHUNK; j++) {
      uint64_t random = hai_random(plan->params->seed, 0, HAI_FOR_DRAWS, HAI_AS(uint64_t, j));
      const float *value = hai_value_row(job, j, room);
      sketch.draw[j] = -hai_log((HAI_AS(float, random >> 41) + 0.5f) * (1.0f / 8388608.0f));
      sketch.distance[j] = plan->scan_kernel->apart(value, plan->value_dim, centre);
      /* its square may overflow, but what the block is must not depend on the centre */
      if (!hai_finite(sketch.distance[j])) is_finite &= hai_row_finite(value, HYPERATTN_F32, plan->value_dim);
    }
    if (!is_finite) sketch.unit[block] = HAI_WHOLE;
  }
  if (job->chunk) return;
  HYPERATTN_MEMCPY(sketch.draw + hai_sketch_blocks(plan) * HAI_CHUNK, sketch.draw, HAI_CHUNK * sizeof(float));
  HYPERATTN_MEMCPY(sketch.centre, centre, HAI_AS(size_t, plan->value_dim) * sizeof(float));
  hai_sketch_spread(job, &sketch);
}
#endif

/* ======== src/scan.h ======== */

/* ---- The scan: every query its own keys ----
   The queries of a rectangle scan its keys: under HYPERATTN_SCAN those of the whole problem, and under
   HYPERATTN_HYPER those of a rectangle for which no trial met the tolerance, which go on from what they have
   met before. A tile of queries of one head estimates its scores with all keys of the sketch that end before
   its first query's window, and keeps key j with probability
     P_j = min(1, max over lanes i of b e^(estimate_ij) / Z_i),
   Z_i an estimate of all that query i has met and sees here, and b the budget. All lanes meet the kept keys,
   whose scores are exact, with log-weight -ln P_j: e^lse and e^lse out are unbiased at a fixed b, whatever
   the estimates are worth, and a key that matters to any lane has P_j = 1. Sinks, the window and what does
   not fill a block are met exactly.

   Most keys are done with by a part of their coordinates (words.h).

   Z_i is the sum of what is met exactly and of a pilot's estimate: a group of HAI_PILOT neighbouring keys
   from each of up to HAI_PILOT_BLOCKS blocks, of which a lane's largest group counts once, and the others
   for those that were left out: a few keys that have most of the weight must not count for many.

   The sample tells its own error: the variance of out_i is about the sum over kept keys of (1 - P_j) (w_ij
   / l_i)^2 |v_j - out_i|^2, w_ij the weight with which key j was met, and |v_j - out_i|^2 about |v_j -
   c|^2 + |out_i - c|^2, c the sketch's centre. Where queries miss the tolerance, a tile is scanned
   again with a larger budget, or attends to all keys, or leaves these queries to a later phase (mending.h):
   whatever costs least. The budget that would have cost least is the next tile's.

   Draws are one table for all tiles, of which each tile begins at a place of its own, by a hash of its
   first query: so the noise of tiles and heads is not correlated, and nothing depends on workers, or on
   which heads and batches a call holds. */

#if HAI_SCAN
typedef struct hai_kept {
  int32_t key;
  float log_share; /* ln of the probability with which it was kept */
} hai_kept;

typedef struct hai_scan {
  const hai_scan_kernel *kernel;
  hai_sketch sketch;
  hai_scan_queries queries;
  const float *query;                      /* [head_dim][lanes]: in float32, times the scale */
  float *packed;                           /* room for it where the kernel reads another dtype */
  float code;                              /* what a query's code is worth */
  uint64_t outliers;                       /* bit i: lane i takes no part in what is kept */
  int32_t *all, *most;                     /* [n_words]: squares of words' codes, of all lanes; of one */
  float *told, *force;                     /* [n_words]: what words tell */
  float margin;                            /* of a usual block, */
  float *mean;                             /* [HAI_CHUNK][lanes]: products with the means of blocks; of kept
                                              keys, two numbers each */
  float *high, *sum, *group;               /* [lanes]: of the pilot */
  float *scatter, *squares, *norm, *apart; /* [lanes]: of the sample's variance */
  float distance;                          /* of values from the centre, squared, on average */
  float *error;                            /* [lanes]: relative error of each query */
  float *lse_sinks, *lse_total,
      *lse_exact; /* [lanes]: with sinks; of what counts in Z, so far; of what is met exactly */
  float *state;   /* the lanes' states before the sample */
  hai_kept *kept; /* [n_key] */
  int32_t n_kept;
  hai_index begin, end; /* the keys that are scanned */
  hai_index offset;     /* of the tile in the draws */
  float budget;
  int exact_tiles; /* so many more tiles are attended exactly at once */
  hai_tally *tally;
  int32_t *missed;
} hai_scan;

/* ---- Where it pays ---- */

/* A task's first budget, and with a tolerance its least. */
static float hai_scan_budget(const hai_plan *plan) {
  return HAI_AS(float, hai_max(1, plan->sample_size));
}

/* Work of a tile that scans so many keys and keeps some of them, in keys that are met exactly. */
static float hai_scan_work(const hai_plan *plan, float keys, float kept) {
  return keys * plan->scan_kernel->cost + kept * HAI_KEPT_COST;
}

/* Is it worth to scan so many keys? A tile keeps about HAI_KEPT_SHARE keys for each of the budget. */
static int hai_scan_pays(const hai_plan *plan, hai_index keys) {
  float n = HAI_AS(float, keys);
  return plan->n_query >= HAI_LEAST_SCANNED && keys >= plan->min_seq_len &&
         hai_scan_work(plan, n, HAI_KEPT_SHARE * HAI_AS(float, plan->sample_size)) < n;
}

/* The first key behind those that the tile of queries from `row` on scans, of keys that end at `end`; and how
   many it scans of a whole problem. */
static hai_index hai_scan_end(const hai_plan *plan, hai_index row, hai_index end) {
  hai_index first, last;
  hai_seen_keys(plan, row, &first, &last);
  return hai_max(0, hai_min(last + 1 - plan->window, end)) / HAI_CHUNK * HAI_CHUNK;
}
static hai_index hai_scanned_keys(const hai_plan *plan, hai_index row) {
  return hai_max(0, hai_scan_end(plan, row, plan->n_key) - plan->sink_keys);
}

#ifndef HYPERATTN_NO_COST
/* What a call is expected to cost, over what exact attention would: HAI_COST_POINTS of its queries stand for
   all. */
static float hai_scan_cost(const hai_plan *plan) {
  float work = 0.0f, exact = 0.0f, kept = HAI_KEPT_SHARE * HAI_AS(float, plan->sample_size);
  int point;
  for (point = 0; point < HAI_COST_POINTS; point++) {
    hai_index row = hai_cut(plan->n_query, HAI_COST_POINTS, point), first, last,
              keys = hai_scanned_keys(plan, row);
    hai_seen_keys(plan, row, &first, &last);
    if (last < 0) continue;
    exact += HAI_AS(float, last + 1);
    work += HAI_AS(float, last + 1);
    if (hai_scan_pays(plan, keys))
      work += hai_scan_work(plan, HAI_AS(float, keys), kept) - HAI_AS(float, keys);
  }
  return work < 0.999f * exact ? work / exact : 0.999f; /* 1 is for what is exact */
}
#endif
#endif

/* ======== src/words.h ======== */

/* ---- Words: which coordinates a scan multiplies first ----
   An estimate is a sum over words of four coordinates. The words that tell most, by the squares of the tile's
   codes and of keys', are multiplied first, and where they and a margin reach no lane's level, the others are
   not: most keys are done with half of the products. P_j is the smaller of what the first words, with the
   margin, and all words give, so nothing is lost on average whatever the margin is. */

#if HAI_SCAN
/* Orders the words, those first that tell most of scores: told [n_words] becomes the mean square of what
   each adds to a sum of products, over lanes and keys, and force [n_words] the largest norm of a lane. Cost:
   the square of words. */
static void hai_scan_order(const hai_job *job, hai_scan *scan) {
  hai_scan_queries *queries = &scan->queries;
  float each = 1.0f / (HAI_AS(float, job->tile->n) * 4.0f);
  int w, at;
  scan->kernel->forces(queries, scan->all, scan->most);
  for (w = 0; w < queries->n_words; w++) {
    scan->force[w] = hai_sqrt(HAI_AS(float, scan->most[w]));
    scan->told[w] = HAI_AS(float, scan->all[w]) * each * scan->sketch.spread[w];
    for (at = w; at > 0 && scan->told[queries->word[at - 1]] < scan->told[w]; at--)
      queries->word[at] = queries->word[at - 1];
    queries->word[at] = w;
  }
}

/* How far above its level the score of a key is that has most of a query's attention. */
static float hai_scan_above(const hai_scan *scan) { return hai_log(scan->budget) - HAI_REST_SHARE; }

/* How many words are first: as many as make the products few, those of all words for the keys that pass
   included. What the last words add to scores has a standard deviation s over the keys, and with the margin
   HAI_REST_MARGIN s nearly all keys pass that all words would let pass. To a key that has most of a query's
   attention they may add more, up to the product of norms: for a usual block that must not be more than the
   margin and hai_scan_above. Where the early blocks tell nothing, all words are first. */
static void hai_scan_first(hai_scan *scan) {
  hai_scan_queries *queries = &scan->queries;
  int n_words = queries->n_words, n;
  float unit = scan->code * *scan->sketch.worth, least = HAI_AS(float, n_words);
  float kept = HAI_KEPT_SHARE * scan->budget / HAI_AS(float, scan->end - scan->begin);
  float above = hai_scan_above(scan), rest = 0.0f, pull = 0.0f;
  queries->n_first = n_words;
  scan->margin = 0.0f;
  if (!(unit * scan->told[queries->word[0]] > 0.0f)) return;
  for (n = n_words - 1; n > 0; n--) {
    float margin, passing, cost;
    rest += scan->told[queries->word[n]];
    pull += scan->force[queries->word[n]] * scan->sketch.usual[queries->word[n]];
    margin = HAI_REST_MARGIN * hai_sqrt(rest);
    if (!(pull * unit <= above + margin * unit) || !(margin < HAI_MOST_MARGIN)) break;
    passing = kept * hai_exp(margin * unit);
    if (passing > 1.0f) passing = 1.0f;
    cost = HAI_AS(float, n) + HAI_PASSING_COST * passing * HAI_AS(float, n_words - n);
    if (cost >= least) continue;
    least = cost;
    queries->n_first = n;
    scan->margin = margin;
  }
}

/* A block's margin: at least what the last words of any of its keys might add, for any lane, to a score that
   is as far above its level as that of a key which has most of a query's attention: the product of norms. So
   no such key is lost, whatever it is like. `above`: hai_scan_above. */
static int32_t hai_scan_margin(const hai_scan *scan, hai_index block, float unit, float above) {
  const hai_scan_queries *queries = &scan->queries;
  const float *norm = scan->sketch.norm + block * queries->n_words;
  float pull = 0.0f;
  int n;
  for (n = queries->n_first; n < queries->n_words; n++)
    pull += scan->force[queries->word[n]] * norm[queries->word[n]];
  pull -= above / unit;
  if (pull < scan->margin) pull = scan->margin;
  return HAI_AS(int32_t, pull < HAI_MOST_MARGIN ? pull : HAI_MOST_MARGIN);
}
#endif

/* ======== src/estimating.h ======== */

/* ---- Estimating: a tile's codes, the pilot, and the keys that are kept ---- */

#if HAI_SCAN
/* ---- A tile's queries ---- */

/* The tile's packed queries, those from `row` on, in float32. */
static const float *hai_scan_query(const hai_job *job, const hai_scan *scan, hai_index row) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  int i;
  if (hai_is_f32(tile->kernel->dtype)) return tile->query;
  for (i = 0; i < tile->n; i++) tile->row[i] = hai_query_row(job, job->head, row + i, hai_line(tile, i));
  for (; i < tile->kernel->lanes; i++) tile->row[i] = HAI_NULL;
  plan->float_kernel->pack(tile->row, plan->head_dim, plan->scale, scan->packed);
  return scan->packed;
}

/* Where the tile begins in the draws: a hash of its first query's bits in float32. */
static hai_index hai_scan_offset(const hai_job *job, hai_index row) {
  const hai_plan *plan = job->plan;
  const float *query = hai_query_row(job, job->head, row, job->tile->line);
  uint64_t hash = hai_random(plan->params->seed, 0, HAI_FOR_OFFSETS, 0);
  hai_index t;
  for (t = 0; t < plan->head_dim; t++) hash = hai_mix(hash ^ hai_bits(query[t]));
  return HAI_AS(hai_index, hai_uniform(0, HAI_AS(uint64_t, hai_sketch_blocks(plan) * HAI_CHUNK), hash));
}

/* The largest coordinate by which the tile's queries are encoded: that of all that are finite. With a
   tolerance, queries much larger than the others, whose codes would not tell them apart, are left out:
   they take no part in what is kept, and are mended. scan->outliers says which. */
static float hai_scan_largest(const hai_job *job, hai_scan *scan) {
  const hai_tile *tile = job->tile;
  int32_t *bits = tile->id; /* [lanes]: no key waits */
  float sum = 0.0f, seen = 0.0f, largest = 0.0f;
  int i;
  scan->kernel->largest(scan->query, job->plan->head_dim, bits);
  for (i = 0; i < tile->n; i++) {
    float x = hai_float(HAI_AS(uint32_t, bits[i]));
    if (!hai_finite(x)) continue;
    sum += x;
    seen += 1.0f;
  }
  scan->outliers = 0;
  for (i = 0; i < tile->n; i++) {
    float x = hai_float(HAI_AS(uint32_t, bits[i]));
    int is_large = job->plan->params->tolerance > 0.0f && x * seen > HAI_OUTLIER * sum;
    if (is_large || !hai_finite(x))
      scan->outliers |= UINT64_C(1) << i;
    else if (x > largest)
      largest = x;
  }
  return largest;
}
static int hai_scan_is_outlier(const hai_scan *scan, int lane) {
  return HAI_AS(int, scan->outliers >> lane & 1);
}

HAI_APART void hai_scan_encode(const hai_job *job, hai_scan *scan) {
  float largest = hai_scan_largest(job, scan), inverse = 63.0f / largest;
  if (!hai_finite(inverse)) inverse = 0.0f;
  scan->code = largest * (1.0f / 63.0f);
  scan->kernel->quantise(scan->query, job->plan->head_dim, inverse, scan->queries.code);
  hai_scan_order(job, scan);
  hai_scan_first(scan);
  scan->kernel->lift(&scan->queries);
  scan->queries.begin = job->tile->begin;
  scan->queries.end = job->tile->end;
}

/* ---- Blocks ---- */

/* Block `block` of the sketch as the kernel reads it, its products with the queries in row j of scan->mean.
   Returns 0 where the block is not known, or its codes are too coarse, and it has to be met whole. */
static int hai_scan_block_at(const hai_job *job, const hai_scan *scan, hai_index block, int j,
                             hai_scan_block *b) {
  hai_index draws = hai_sketch_blocks(job->plan) * HAI_CHUNK, at = block * HAI_CHUNK;
  b->code = scan->sketch.code + 4 * at * scan->queries.n_words;
  b->draw = scan->sketch.draw + (at + scan->offset) % draws;
  b->mean = scan->mean + j * job->tile->kernel->lanes;
  b->unit = scan->code * scan->sketch.unit[block];
  if (b->unit < HAI_LEAST_UNIT) b->unit = HAI_LEAST_UNIT;
  return scan->sketch.unit[block] != HAI_WHOLE && b->unit < HAI_MOST_UNIT;
}

/* Products of the queries with the means of n blocks, `step` apart; 0 for outliers, whose may be NaN. */
static void hai_scan_means(const hai_job *job, const hai_scan *scan, hai_index block, hai_index step, int n) {
  const hai_plan *plan = job->plan;
  const void **mean = job->tile->key; /* [chunk]: no key waits */
  uint64_t bits;
  int j;
  for (j = 0; j < n; j++) mean[j] = scan->sketch.mean + (block + j * step) * plan->head_dim;
  plan->float_kernel->scores(scan->query, plan->head_dim, mean, n, job->tile->begin, job->tile->end,
                             scan->mean);
  for (bits = scan->outliers; bits; bits &= bits - 1)
    for (j = 0; j < n; j++) scan->mean[j * plan->float_kernel->lanes + hai_lowest_bit(bits)] = 0.0f;
}

/* The pilot: estimates of a few keys of some blocks. Leaves ln of what a lane's scanned keys add up to in
   scan->high, and ln Z_i in scan->lse_total. */
HAI_APART void hai_scan_pilot(const hai_job *job, hai_scan *scan) {
  hai_tile *tile = job->tile;
  hai_index first = hai_ceil_div(scan->begin, HAI_CHUNK), blocks = scan->end / HAI_CHUNK - first;
  hai_index step = hai_ceil_div(blocks, HAI_PILOT_BLOCKS), at;
  hai_scan_block block;
  float seen = 0.0f, others;
  int i, j, n;
  for (i = 0; i < tile->kernel->lanes; i++) {
    scan->high[i] = -hai_inf();
    scan->sum[i] = scan->group[i] = 0.0f;
  }
  for (at = 0; at < blocks; at += n * step) {
    n = hai_to_int(hai_min(HAI_CHUNK, hai_ceil_div(blocks - at, step)));
    hai_scan_means(job, scan, first + at, step, n);
    for (j = 0; j < n; j++) {
      hai_index b = first + at + j * step;
      int from = HAI_AS(int, hai_mix(HAI_AS(uint64_t, b)) % (HAI_CHUNK / HAI_PILOT)) * HAI_PILOT;
      if (!hai_scan_block_at(job, scan, b, j, &block)) continue;
      scan->kernel->estimate(&scan->queries, &block, from, tile->score);
      if (HAI_SOFTCAP && tile->softcap > 0.0f)
        tile->kernel->cap(tile->score, HAI_PILOT, tile->softcap, tile->begin, tile->end);
      scan->kernel->collect(tile->score, tile->begin, tile->end, scan->high, scan->sum, scan->group);
      seen += HAI_PILOT;
    }
  }
  others =
      seen > HAI_PILOT ? (HAI_AS(float, scan->end - scan->begin) - HAI_PILOT) / (seen - HAI_PILOT) : 0.0f;
  for (i = 0; i < tile->n && seen > 0.0f; i++) {
    scan->high[i] = hai_add_log(scan->high[i], scan->group[i] + (scan->sum[i] - scan->group[i]) * others);
    scan->lse_total[i] = hai_log_add(scan->lse_total[i], scan->high[i]);
  }
}

/* How much a softcap lifts a score that it makes `score`; infinite where it makes none so low, and 0 where
   none so high. Estimates are not capped, and keys whose score they tell too low would be kept too rarely:
   levels are lowered by the lift of keys whose share is so small that those below do not matter. */
static float hai_scan_lift(float softcap, float score) {
  if (score <= -softcap) return hai_inf();
  if (score >= softcap) return 0.0f;
  return score - 0.5f * softcap * hai_log((softcap + score) / (softcap - score));
}

/* What an estimate and a draw must reach together for a key to be kept: ln Z_i - ln b. Outliers, lanes
   whose sums are not finite and those without a query keep no key; a lane that has met nothing keeps all. */
static void hai_scan_levels(const hai_job *job, const hai_scan *scan) {
  const hai_tile *tile = job->tile;
  float log_budget = hai_log(scan->budget), log_keys = hai_log(HAI_AS(float, scan->end - scan->begin));
  int i;
  for (i = 0; i < tile->kernel->lanes; i++) {
    float level = i < tile->n ? scan->lse_total[i] : hai_inf();
    if (HAI_SOFTCAP && tile->softcap > 0.0f && i < tile->n)
      level -= hai_scan_lift(tile->softcap, level - log_keys - HAI_LEAST_SHARE);
    level -= log_budget;
    scan->queries.level[i] = level < hai_inf() && !hai_scan_is_outlier(scan, i) ? level : hai_inf();
  }
}

/* Keeps the hits of a block; bit j: key j. */
static void hai_scan_keep(hai_scan *scan, hai_index key, uint64_t hits, const int32_t *most, float unit) {
  for (; hits; hits &= hits - 1) {
    int j = hai_lowest_bit(hits);
    hai_kept *kept = &scan->kept[scan->n_kept++];
    kept->key = hai_to_int(key + j);
    kept->log_share = most && most[j] < 1 ? HAI_AS(float, most[j] - 1) * unit : 0.0f;
  }
}

/* Scans all keys; leaves those that are kept in scan->kept. Cost: a product of small integers for each
   pair. */
HAI_APART void hai_scan_keys(const hai_job *job, hai_scan *scan) {
  hai_index block = scan->begin / HAI_CHUNK, blocks = scan->end / HAI_CHUNK;
  hai_scan_block b;
  int32_t *most = job->tile->id; /* [chunk]: no key waits */
  float above = hai_scan_above(scan);
  int j, n;
  scan->n_kept = 0;
  for (; block < blocks; block += n) {
    n = hai_to_int(hai_min(HAI_CHUNK, blocks - block));
    hai_scan_means(job, scan, block, 1, n);
    for (j = 0; j < n; j++) {
      hai_index key = (block + j) * HAI_CHUNK;
      uint64_t hits = UINT64_MAX;
      int known = hai_scan_block_at(job, scan, block + j, j, &b);
      if (known) {
        b.margin = hai_scan_margin(scan, block + j, b.unit, above);
        hits = scan->kernel->hits(&scan->queries, &b, most);
      }
      if (key < scan->begin) hits &= UINT64_MAX << (scan->begin - key); /* sinks are met already */
      hai_scan_keep(scan, key, hits, known ? most : HAI_NULL, b.unit);
    }
  }
}
#endif

/* ======== src/sampling.h ======== */

/* ---- The sample of a scan: what a tile meets, what its error is, and which budget it should have ---- */

#if HAI_SCAN
/* Starts to load rows of kept keys begin .. end - 1. */
HAI_HOT void hai_scan_fetch(const hai_tile *tile, const hai_scan *scan, int32_t begin, int32_t end) {
  size_t key_bytes = HAI_AS(size_t, hai_offset(tile->keys.dtype, tile->keys.dim));
  size_t value_bytes = HAI_AS(size_t, hai_offset(tile->values.dtype, tile->values.dim));
  for (; HAI_SIMD && begin < end; begin++) {
    hai_fetch(hai_walk_from(&tile->keys, scan->kept[begin].key).at, key_bytes);
    hai_fetch(hai_walk_from(&tile->values, scan->kept[begin].key).at, value_bytes);
  }
}

/* The tile meets the kept keys. */
HAI_APART void hai_scan_attend(const hai_job *job, hai_scan *scan) {
  hai_tile *tile = job->tile;
  float *missing = scan->mean, *distance = missing + HAI_CHUNK; /* [chunk]: no block is read meanwhile */
  int32_t at, next;
  int i, j;
  for (i = 0; i < tile->kernel->lanes; i++) scan->scatter[i] = scan->squares[i] = 0.0f;
  hai_tile_aim(tile, 0, tile->n);
  for (at = 0; at < scan->n_kept; at = next) {
    next = at + HAI_CHUNK < scan->n_kept ? at + HAI_CHUNK : scan->n_kept;
    for (j = 0; j < next - at; j++) {
      const hai_kept *kept = &scan->kept[at + j];
      hai_tile_put(tile, j, kept->key);
      tile->log_weight[j] = -kept->log_share;
    }
    for (; j < HAI_CHUNK; j++) tile->log_weight[j] = 0.0f; /* a register of them is read */
    scan->kernel->missing(tile->log_weight, next - at, missing);
    for (j = 0; j < next - at; j++)
      distance[j] = missing[j] > 0.0f ? scan->sketch.distance[scan->kept[at + j].key] : 0.0f;
    hai_scan_fetch(tile, scan, next, next + HAI_CHUNK < scan->n_kept ? next + HAI_CHUNK : scan->n_kept);
    tile->n_keys = next - at;
    tile->weighted = 1;
    hai_tile_flush(tile);
    scan->kernel->spread(tile->score, next - at, missing, distance, tile->factor, tile->begin, tile->end,
                         scan->scatter, scan->squares);
  }
}

/* Is the lane's result 0 in every coordinate? */
static int hai_lane_is_zero(const hai_tile *tile, int lane) {
  hai_index t = 0;
  while (t < tile->value_dim && tile->o[t * tile->kernel->lanes + lane] == 0.0f) t++;
  return t == tile->value_dim;
}

/* e^part / (e^part + e^rest); 0 for an empty part. */
static float hai_part_share(float part, float rest) {
  return part == -hai_inf() ? 0.0f : 1.0f / (1.0f + hai_exp(rest - part));
}

/* Each query's relative error. What the sample says of the variance is added to what it cannot say. Of the
   scanned keys, whose share of the attention is s, it holds about n = b s of a lane's own, and where these
   are few, they may well all be missing, and the variance with them. With P_j at least b a_ij, a_ij the
   share of key j, the variance is at most sum_j a_ij |v_j - out_i|^2 / b, about s times the mean distance
   over b; that counts as if one more key had been seen, with the weight 1 / (n + 1). Where the pilot took
   Z_i for more than the sample finds, b was less by as much. */
static void hai_scan_judge(const hai_job *job, hai_scan *scan) {
  hai_tile *tile = job->tile;
  int i;
  hai_tile_settle(tile);
  scan->kernel->distances(tile->o, tile->value_dim, tile->l, scan->sketch.centre, tile->begin, tile->end,
                          scan->norm, scan->apart);
  for (i = 0; i < tile->n; i++) {
    float l = tile->l[i], found = l * hai_exp(tile->m[i] - scan->lse_total[i]); /* of Z_i */
    float share = hai_part_share(scan->high[i], scan->lse_exact[i]);
    float budget = scan->budget * (found < 1.0f ? found : 1.0f);
    float seen = l == 0.0f ? 0.0f : (scan->scatter[i] + scan->squares[i] * scan->apart[i]) / l / l;
    float unseen = share * (scan->distance + scan->apart[i]) / budget;
    scan->error[i] = hai_relative(seen + unseen / (budget * share + 1.0f), scan->norm[i]);
    if (scan->norm[i] < HAI_LEAST_SQUARE && !hai_lane_is_zero(tile, i)) scan->error[i] = hai_inf();
    if (hai_scan_is_outlier(scan, i)) scan->error[i] = hai_inf();
  }
}

/* ---- The budget ---- */

/* How many of the tile's queries would miss the tolerance with a budget `times` as large. */
static float hai_scan_misses(const hai_job *job, const hai_scan *scan, float times) {
  float allowed = job->plan->params->tolerance * hai_sqrt(times), n = 0.0f;
  int i;
  for (i = 0; i < job->tile->n; i++) n += scan->error[i] > allowed ? 1.0f : 0.0f;
  return n;
}

/* Work of a tile, in products of a query and a key, with a budget `times` as large: what is kept, and the
   queries that are left to be mended. */
static float hai_scan_price(const hai_job *job, const hai_scan *scan, float times) {
  float lanes = HAI_AS(float, job->tile->n), keys = HAI_AS(float, scan->end - scan->begin);
  float kept = HAI_AS(float, scan->n_kept) * hai_sqrt(times);
  return lanes * (kept < keys ? kept : keys) * HAI_KEPT_COST +
         hai_scan_misses(job, scan, times) * keys * HAI_MEND_COST;
}

/* Which of n budgets, as multiples of the tile's, costs least: what is kept, the queries left to be mended
   and, for a budget other than the tile's own, `again`. */
static float hai_scan_cheapest(const hai_job *job, const hai_scan *scan, const float *times, int n, float own,
                               float again) {
  float best = 1.0f, least = own;
  int i;
  for (i = 0; i < n; i++) {
    float price = hai_scan_price(job, scan, times[i]) + again;
    if (price < least) {
      least = price;
      best = times[i];
    }
  }
  return best;
}

/* How many times the budget a tile should have: 1 where its sample is good enough, since that is paid for, 0
   where exact attention is cheapest. */
static float hai_scan_times(const hai_job *job, const hai_scan *scan) {
  static const float more[] = {2.0f, 4.0f, 8.0f, 16.0f};
  float lanes = HAI_AS(float, job->tile->n), keys = HAI_AS(float, scan->end - scan->begin);
  float again = lanes * keys * job->plan->scan_kernel->cost;
  float own = hai_scan_misses(job, scan, 1.0f) * keys * HAI_MEND_COST;
  float best = hai_scan_cheapest(job, scan, more, 4, own, again);
  float least = best > 1.0f ? hai_scan_price(job, scan, best) + again : own;
  return lanes * keys < least ? 0.0f : best;
}

/* The next tile's budget: what would have been best for this one, but no less than the parameters'. A smaller
   one saves little, and lets every query that is easy err as much as the tolerance allows. */
static void hai_scan_learn(const hai_job *job, hai_scan *scan) {
  static const float around[] = {0.5f, 0.70710678f, 1.41421356f, 2.0f};
  scan->budget *= hai_scan_cheapest(job, scan, around, 4, hai_scan_price(job, scan, 1.0f), 0.0f);
  if (scan->budget < hai_scan_budget(job->plan)) scan->budget = hai_scan_budget(job->plan);
}
#endif

/* ======== src/scanning.h ======== */

/* ---- Scanning: a tile from its first key to its result, and the stage ---- */

#if HAI_SCAN
/* The tile's queries see no key before `first` from here on. */
static void hai_tile_from(hai_tile *tile, hai_index first) {
  int i;
  for (i = 0; i < tile->n; i++) tile->first[i] = first;
  tile->min_first = tile->max_first = first;
}

/* One past the last key of the job's rectangle, and how many of its keys a query sees that sees none behind
   `last`. */
static hai_index hai_rect_end(const hai_job *job) { return job->rect.key_begin + job->rect.n_key; }
static hai_index hai_rect_seen(const hai_job *job, hai_index last) {
  return hai_max(0, hai_min(last + 1, hai_rect_end(job)) - job->rect.key_begin);
}

/* Which keys the tile of queries from `row` on scans: those of the rectangle behind the sinks that all of its
   queries see, up to the end of a block; none without a whole block, which the pilot needs. */
static void hai_scan_aim(const hai_job *job, hai_scan *scan, hai_index row) {
  hai_index end = hai_rect_end(job);
  scan->begin = hai_min(hai_max(job->plan->sink_keys, job->rect.key_begin), end);
  scan->end = hai_scan_end(job->plan, row, end);
  if (scan->end <= hai_ceil_div(scan->begin, HAI_CHUNK) * HAI_CHUNK) scan->end = scan->begin;
}

/* The tile's lanes meet what is not scanned: sinks, windows, and what does not fill a block. Leaves the
   lse of what counts in Z in scan->lse_total: at tolerance 0 no key behind the tile's first query, so that
   no later key changes a row. */
static void hai_scan_exact(hai_job *job, hai_scan *scan) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index end = hai_rect_end(job);
  hai_index split = plan->problem->causal && plan->params->tolerance == 0.0f ? tile->min_last + 1 : end;
  hai_tiles_run(&tile, 1, job->rect.key_begin, scan->begin);
  if (plan->reporting) hai_tile_lse(tile, scan->lse_sinks);
  hai_tile_from(tile, scan->end);
  hai_tiles_run(&tile, 1, scan->end, split);
  hai_tile_lse(tile, scan->lse_exact);
  HYPERATTN_MEMCPY(scan->lse_total, scan->lse_exact, HAI_AS(size_t, tile->kernel->lanes) * sizeof(float));
  if (split < end) {
    hai_tiles_run(&tile, 1, split, end);
    hai_tile_lse(tile, scan->lse_exact);
  }
  hai_tile_aim(tile, 0, tile->n);
}

/* Does a query miss the tolerance? */
static int hai_scan_misses_at(const hai_job *job, const hai_scan *scan, int lane) {
  float tolerance = job->plan->params->tolerance;
  return tolerance > 0.0f && !(scan->error[lane] <= tolerance);
}

/* Lists the queries that miss the tolerance, and drops them. */
static void hai_scan_miss(hai_job *job, hai_scan *scan, hai_index row) {
  int i;
  for (i = 0; i < job->tile->n; i++) {
    if (!hai_scan_misses_at(job, scan, i)) continue;
    scan->missed[scan->tally->missed++] = hai_to_int(row + i);
    hai_lane_drop(job->tile, i);
  }
}

/* Adds the tile to the task's tally, for the report. */
static void hai_scan_count(const hai_job *job, hai_scan *scan, int is_exact) {
  const hai_tile *tile = job->tile;
  hai_tally *tally = scan->tally;
  hai_index skipped = is_exact ? 0 : scan->end - scan->begin - scan->n_kept;
  int i;
  for (i = 0; i < tile->n; i++) {
    float lse = hai_state_lse(tile->m[i], tile->l[i]);
    tally->met += HAI_AS(float, hai_rect_seen(job, tile->last[i]) - skipped);
    tally->exact += is_exact;
    if (is_exact || hai_scan_misses_at(job, scan, i)) continue;
    tally->pinned += hai_share(scan->lse_sinks[i], lse) - hai_share(hai_lane_before(job, i), lse);
    tally->sampled +=
        hai_share(scan->lse_exact[i], lse) < 1.0f ? 1.0f - hai_share(scan->lse_exact[i], lse) : 0.0f;
  }
}

/* A tile of queries from `row` on meets what is exact and its sample. Returns 0 where it has to meet every
   key: its states are then to be begun anew. */
static int hai_scan_tile(hai_job *job, hai_scan *scan, hai_index row) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  float times = 1.0f, keys;
  int doubled = 0;
  hai_scan_aim(job, scan, row);
  keys = HAI_AS(float, scan->end - scan->begin);
  if (scan->exact_tiles > 0) {
    scan->exact_tiles--;
    return 0;
  }
  if (!hai_scan_pays(plan, scan->end - scan->begin)) return 0;
  scan->query = hai_scan_query(job, scan, row);
  scan->offset = hai_scan_offset(job, row);
  hai_scan_encode(job, scan);
  hai_scan_exact(job, scan);
  hai_tile_save(tile, scan->state);
  hai_scan_pilot(job, scan);
  for (;;) {
    hai_scan_levels(job, scan);
    hai_scan_keys(job, scan);
    times =
        plan->params->tolerance > 0.0f && HAI_AS(float, scan->n_kept) * HAI_KEPT_COST > keys ? 0.0f : 1.0f;
    if (times > 0.0f) {
      hai_scan_attend(job, scan);
      hai_scan_judge(job, scan);
      if (plan->params->tolerance == 0.0f) break;
      if (doubled < HAI_MOST_DOUBLED) times = hai_scan_times(job, scan);
    }
    if (times == 0.0f) scan->exact_tiles = HAI_HELD_TILES;
    if (times <= 1.0f) break;
    if (!doubled++) scan->tally->doubled += tile->n;
    scan->budget *= times;
    hai_tile_load(tile, scan->state);
  }
  if (plan->params->tolerance > 0.0f && times > 0.0f) hai_scan_learn(job, scan);
  return times > 0.0f;
}

/* ---- The stage ---- */

/* Opens the tile for the n queries that were put into its lanes. */
static void hai_scan_begin(hai_job *job, int n) {
  hai_tile_open(job, n, job->plan->value_dim);
  hai_tile_go_on(job);
  job->tile->guarded = job->plan->problem->causal;
}

/* Opens the tile for queries row .. row + n - 1 of the head. */
static void hai_scan_open(hai_job *job, hai_index row, int n) {
  int i;
  for (i = 0; i < n; i++) hai_rect_query(job, i, row + i);
  hai_scan_begin(job, n);
}

/* Where the relative errors of the job's queries go: [n_query], or NULL. */
static float *hai_errors(const hai_job *job) {
  const hai_plan *plan = job->plan;
  if (plan->problem->query_error) return plan->problem->query_error + hai_flat_head(job) * plan->n_query;
  return plan->reporting ? hai_floats(job, HAI_ARRAY_QUERY_ERROR) : HAI_NULL;
}

/* Floats for each lane of a scan's arrays, and bytes of all its memory. */
static hai_index hai_scan_packed_dim(const hai_plan *plan) { /* of queries that are packed once more */
  return hai_is_f32(plan->kernel->dtype) && !plan->may_use_amx ? 0 : plan->head_dim;
}
static hai_index hai_scan_lane_floats(const hai_plan *plan) {
  return hai_scan_packed_dim(plan) + hai_code_dim(plan) / 4 + 2 + 1 + HAI_CHUNK + 11 + 2 + plan->value_dim;
}
static size_t hai_scan_bytes(const hai_plan *plan) {
  hai_index lanes = plan->float_kernel->lanes;
  hai_index floats = hai_scan_lane_floats(plan) * lanes + hai_code_dim(plan) / 4 * 5;
  return hai_times(HAI_AS(size_t, floats), sizeof(float)) + 24 * HAI_ALIGN +
         hai_round_up(sizeof(hai_scan)) + hai_times(HAI_AS(size_t, plan->n_key), sizeof(hai_kept));
}

/* The mean squared distance of values from the sketch's centre, by some of them. */
static float hai_scan_distance(const hai_job *job, const hai_scan *scan) {
  hai_index n = hai_sketch_blocks(job->plan) * HAI_CHUNK, i;
  float sum = 0.0f, seen = 0.0f;
  for (i = 0; i < HAI_CHUNK; i++) {
    float distance = scan->sketch.distance[hai_cut(n, HAI_CHUNK, i)];
    if (!hai_finite(distance)) continue;
    sum += distance;
    seen += 1.0f;
  }
  return seen > 0.0f ? sum / seen : 0.0f;
}

/* Lays a scan out in the job's scratch, and all its memory behind it. */
HAI_APART hai_scan *hai_scan_place(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index lanes = plan->float_kernel->lanes;
  hai_scan *scan = HAI_PLACE(hai_scan, job->scratch);
  char *at = job->scratch + hai_round_up(sizeof *scan);
  scan->kernel = plan->scan_kernel;
  scan->sketch = hai_sketch_of(job);
  scan->packed = hai_carve(&at, hai_scan_packed_dim(plan) * lanes);
  scan->queries.n_words = hai_to_int(hai_code_dim(plan) / 4);
  scan->queries.code = HAI_PLACE(int32_t, hai_carve(&at, scan->queries.n_words * lanes));
  scan->queries.word = HAI_PLACE(int32_t, hai_carve(&at, scan->queries.n_words));
  scan->queries.lift = HAI_PLACE(int32_t, hai_carve(&at, 2 * lanes));
  scan->all = HAI_PLACE(int32_t, hai_carve(&at, scan->queries.n_words));
  scan->most = HAI_PLACE(int32_t, hai_carve(&at, scan->queries.n_words));
  scan->told = hai_carve(&at, scan->queries.n_words);
  scan->force = hai_carve(&at, scan->queries.n_words);
  scan->queries.level = hai_carve(&at, lanes);
  scan->mean = hai_carve(&at, HAI_CHUNK * lanes);
  scan->high = hai_carve(&at, lanes);
  scan->sum = hai_carve(&at, lanes);
  scan->group = hai_carve(&at, lanes);
  scan->scatter = hai_carve(&at, lanes);
  scan->squares = hai_carve(&at, lanes);
  scan->norm = hai_carve(&at, lanes);
  scan->apart = hai_carve(&at, lanes);
  scan->error = hai_carve(&at, lanes);
  scan->lse_sinks = hai_carve(&at, lanes);
  scan->lse_total = hai_carve(&at, lanes);
  scan->lse_exact = hai_carve(&at, lanes);
  scan->state = hai_carve(&at, (2 + plan->value_dim) * lanes);
  scan->kept = HAI_PLACE(hai_kept, at);
  scan->budget = hai_scan_budget(plan);
  scan->distance = hai_scan_distance(job, scan);
  scan->exact_tiles = 0;
  scan->tally = hai_tallies(job) + job->chunk;
  scan->missed = hai_missed(job) + job->chunk * HAI_SCAN_ROWS;
  HYPERATTN_MEMSET(scan->tally, 0, sizeof *scan->tally);
  return scan;
}

/* n tiles, whose first query is `row`, begin anew and meet every key of the rectangle. */
static void hai_scan_afresh(hai_job *job, hai_tile *const *tiles, int n, hai_index row) {
  int i;
  for (i = 0; i < n; i++) {
    job->tile = tiles[i];
    hai_scan_open(job, row, tiles[i]->n);
    row += tiles[i]->n;
  }
  hai_rect_meet(job, tiles, n);
}

/* Writes what a tile has come to. */
HAI_APART void hai_scan_close(hai_job *job, hai_scan *scan, hai_index row, int is_exact) {
  float *errors = hai_errors(job);
  int i;
  if (job->plan->reporting) hai_scan_count(job, scan, is_exact);
  if (!is_exact) hai_scan_miss(job, scan, row);
  hai_tile_close(job);
  for (i = 0; errors && i < job->tile->n; i++) errors[row + i] = is_exact ? 0.0f : scan->error[i];
}

/* Some tiles of consecutive queries from `row` on: each scans, or meets every key. Where the first has to,
   all do, since tiles that meet keys together read them once. */
static void hai_scan_tiles(hai_job *job, hai_scan *scan, hai_tile *const *tiles, int n, hai_index row) {
  int t = 0, scanned, together;
  while (t < n) {
    job->tile = tiles[t];
    scanned = hai_scan_tile(job, scan, row);
    together = scanned || t ? 1 : n;
    if (!scanned) hai_scan_afresh(job, tiles + t, together, row);
    for (; together > 0; together--, t++) {
      job->tile = tiles[t];
      hai_scan_close(job, scan, row, !scanned);
      row += tiles[t]->n;
    }
  }
}

/* HAI_SCAN_ROWS queries of a head, from `row` on. */
HAI_APART void hai_scan_rows(hai_job *job, hai_index row) {
  hai_tile *tiles[HAI_MAX_TILES];
  hai_scan *scan;
  hai_index end = hai_min(row + HAI_SCAN_ROWS, job->rect.query_begin + job->rect.n_query), next;
  int n = hai_tiles_place(job, tiles), lanes = job->plan->float_kernel->lanes, i;
  scan = hai_scan_place(job);
  for (; row < end; row = next) {
    for (i = 0, next = row; i < n && next < end; i++, next += lanes) {
      job->tile = tiles[i];
      hai_scan_open(job, next, hai_to_int(hai_min(lanes, end - next)));
    }
    hai_scan_tiles(job, scan, tiles, i, row);
  }
}

/* Stage SCAN: HAI_SCAN_ROWS queries of a rectangle and head. Reads the sketch, queries, keys and values;
   writes results, errors, missed rows and the tally. Cost: for each query a product of small integers with
   each key, and the keys that are kept. */
HAI_APART void hai_stage_scan(hai_job *job) {
  hai_index at = job->chunk * HAI_SCAN_ROWS;
  if (hai_is_scanned(job) && at < job->rect.n_query) hai_scan_rows(job, job->rect.query_begin + at);
}
#endif

/* ======== src/mending.h ======== */

/* ---- Mending: the queries whose sample missed the tolerance ----
   Each task of the scan leaves a list of such rows. Those of a rectangle and head are gathered into full
   tiles, which meet every key of it: a row alone would cost as much as a tile. */

#if HAI_SCAN
/* How many rows of the job's rectangle and head missed the tolerance. */
static hai_index hai_missed_rows(const hai_job *job) {
  hai_index n = 0, task;
  for (task = 0; task < hai_scan_tasks(job->rect.n_query); task++) n += hai_tallies(job)[task].missed;
  return n;
}

/* The index-th of them. Rows ascend. */
static hai_index hai_missed_row(const hai_job *job, hai_index index) {
  const hai_tally *tally = hai_tallies(job);
  hai_index task = 0;
  while (index >= tally[task].missed) index -= tally[task++].missed;
  return hai_missed(job)[task * HAI_SCAN_ROWS + index];
}

/* Opens the tile for n missed rows. */
static void hai_mend_open(hai_job *job, hai_index index, int n) {
  float *errors = hai_errors(job);
  hai_index row;
  int i;
  for (i = 0; i < n; i++) {
    row = hai_missed_row(job, index + i);
    hai_rect_query(job, i, row);
    if (errors) errors[row] = 0.0f;
  }
  hai_scan_begin(job, n);
}

/* Rows of a task: missed rows over the rectangle's tasks, rounded up to whole tiles. So a few rows keep as
   many workers busy as they can. */
static hai_index hai_mend_rows(const hai_job *job, hai_index missed) {
  hai_index lanes = job->plan->float_kernel->lanes;
  hai_index each = hai_ceil_div(missed, hai_ceil_div(job->rect.n_query, HAI_TASK_QUERIES));
  return hai_ceil_div(each, lanes) * lanes;
}

/* Stage MEND: some missed rows of a rectangle and head meet every key of it. */
HAI_APART void hai_stage_mend(hai_job *job) {
  hai_index missed, rows, index;
  if (!hai_is_scanned(job)) return;
  missed = hai_missed_rows(job);
  rows = hai_mend_rows(job, missed);
  index = job->chunk * rows;
  hai_attend_rows(job, hai_mend_open, hai_rect_meet, index, hai_min(index + rows, missed));
}
#endif

/* ======== src/few.h ======== */

/* Few queries: exact attention where a tile's lanes would stay empty, as in decoding. Coordinates lie in the
   lanes, and each key is read once for the queries of all heads that share it, as it lies. Many keys are cut
   into parts, a task each, whose states rest in the workspace until they are merged. Parts follow from n_key,
   n_query and the sliding window. Given the parts, a row's result depends neither on other rows nor on how
   many there are. */

/* ---- Parts of the keys ---- */

/* The first key of the first part: no query sees one before it. */
static hai_index hai_few_begin(const hai_plan *plan) {
  hai_index first, last;
  hai_seen_keys(plan, 0, &first, &last);
  return hai_min(first, plan->n_key) / HAI_CHUNK * HAI_CHUNK;
}
static hai_index hai_few_parts(const hai_plan *plan) {
  return hai_few_parts_of(plan->n_key - hai_few_begin(plan));
}
/* Tasks of a kv head for each part, of HAI_FEW_ROWS rows each. */
static hai_index hai_few_row_tasks(const hai_plan *plan) {
  return hai_ceil_div(plan->n_query * plan->heads_per_kv, HAI_FEW_ROWS);
}

/* ---- What a task works on ---- */

/* A row: query `row` of a head. */
typedef struct hai_few_query {
  hai_index head, row;
  hai_index first, last; /* it sees keys first .. last */
  const char *mask;      /* its row of the mask, from key 0, by which a slope is multiplied */
  float slope;
} hai_few_query;

typedef struct hai_few {
  const hai_kernel *kernel;
  hai_rows keys, values;
  hai_index key_dim, value_dim;                            /* whole steps of coordinates */
  const char *key[2][HAI_CHUNK], *value[2][HAI_CHUNK];     /* rows of a chunk and of the next, by turns */
  const char *wide_key[HAI_CHUNK], *wide_value[HAI_CHUNK]; /* rows that are widened before they are met */
  const char *shown[HAI_CHUNK];                            /* values that are not hidden */
  int n;
  hai_few_query query[HAI_FEW_ROWS];
  uint64_t visible[HAI_FEW_ROWS]; /* bit j: key j of the chunk */
  float m[HAI_FEW_ROWS], l[HAI_FEW_ROWS], factor[HAI_FEW_ROWS];
  float *packed;       /* [n][key_dim]: queries, times the scale of scores */
  float *o;            /* [n][value_dim], and two rows more, for merging */
  float *score, *bias; /* [most][HAI_CHUNK] */
  float *slope;        /* [HAI_CHUNK], of one row */
} hai_few;

/* Rows of a task. */
static hai_index hai_few_most_rows(const hai_plan *plan) {
  return hai_min(hai_min(plan->n_query, hai_few_queries(plan)) * plan->heads_per_kv, HAI_FEW_ROWS);
}
static hai_index hai_few_dim(const hai_plan *plan, hai_index dim) {
  hai_index step = plan->float_kernel->few->step;
  return hai_ceil_div(dim, step) * step;
}
/* Floats of a chunk of rows that are widened: those that the kernel does not read as they lie, and those that
   so many queries meet that it takes less time to widen them once. */
static hai_index hai_few_widened(const hai_plan *plan, hyperattn_dtype dtype, hai_index dim) {
  int step = plan->float_kernel->few->step;
  int reads = hai_is_f32(dtype) ||
              (step > 1 && !hai_is_custom(dtype) && hai_few_most_rows(plan) <= HAI_FEW_UNWIDENED(dtype));
  return reads && dim % step == 0 ? 0 : HAI_CHUNK * hai_few_dim(plan, dim);
}
/* Bytes of a task's memory, which overlays that of the tile. */
static size_t hai_few_bytes(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  hai_index key_dim = hai_few_dim(plan, plan->head_dim), value_dim = hai_few_dim(plan, plan->value_dim);
  hai_index rows = hai_few_most_rows(plan), floats = rows * key_dim + (rows + 2) * value_dim;
  floats += HAI_CHUNK * (plan->float_kernel->few->most * 2 + 1);
  floats += hai_few_widened(plan, p->key.dtype, plan->head_dim) +
            hai_few_widened(plan, p->value.dtype, plan->value_dim);
  return hai_round_up(sizeof(hai_few)) + HAI_AS(size_t, floats) * sizeof(float) + 8 * HAI_ALIGN;
}

/* Room for widened rows, if they are to be widened. */
static void hai_few_room(hai_rows *rows, hai_index floats, hai_index dim, const char **wide, char **at) {
  int j;
  rows->widened = hai_carve(at, floats);
  for (j = 0; rows->widened && j < HAI_CHUNK; j++)
    wide[j] = HAI_REINTERPRET(const char *, rows->widened + j * dim);
}
/* Coordinates behind a widened row's own are 0. */
static void hai_few_clear(const hai_rows *rows, hai_index dim) {
  if (rows->widened) HYPERATTN_MEMSET(rows->widened, 0, HAI_AS(size_t, HAI_CHUNK * dim) * sizeof(float));
}

static hai_few *hai_few_place(const hai_job *job) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  char *at = HAI_REINTERPRET(char *, job->tile);
  hai_few *few = HAI_PLACE(hai_few, at);
  at += hai_round_up(sizeof(hai_few));
  few->kernel = plan->float_kernel;
  few->key_dim = hai_few_dim(plan, plan->head_dim);
  few->value_dim = hai_few_dim(plan, plan->value_dim);
  few->packed = hai_carve(&at, hai_few_most_rows(plan) * few->key_dim);
  few->o = hai_carve(&at, (hai_few_most_rows(plan) + 2) * few->value_dim);
  few->score = hai_carve(&at, few->kernel->few->most * HAI_CHUNK);
  few->bias = hai_carve(&at, few->kernel->few->most * HAI_CHUNK);
  few->slope = hai_carve(&at, HAI_CHUNK);
  few->keys = hai_rows_of(job, &p->key, plan->head_dim);
  few->values = hai_rows_of(job, &p->value, plan->value_dim);
  hai_few_room(&few->keys, hai_few_widened(plan, p->key.dtype, plan->head_dim), few->key_dim, few->wide_key,
               &at);
  hai_few_room(&few->values, hai_few_widened(plan, p->value.dtype, plan->value_dim), few->value_dim,
               few->wide_value, &at);
  return few;
}

/* ---- The rows ---- */

static void hai_few_open_row(const hai_job *job, hai_few *few, int i, hai_index row) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  hai_few_query *q = &few->query[i];
  float *packed = few->packed + i * few->key_dim;
  const float *from;
  hai_index t;
  q->head = job->kv_head * plan->heads_per_kv + row % plan->heads_per_kv;
  q->row = row / plan->heads_per_kv;
  from = hai_query_row(job, q->head, q->row, packed);
  for (t = 0; t < plan->head_dim; t++) packed[t] = plan->scale * from[t];
  for (; t < few->key_dim; t++) packed[t] = 0.0f;
  hai_seen_keys(plan, q->row, &q->first, &q->last);
  hai_state_begin(-hai_inf(), &few->m[i], &few->l[i]);
  if (!hai_masking(plan)) return;
  q->mask = hai_row(&p->mask, job->batch, q->head, q->row);
  q->slope = hai_mask_slope(p, q->head);
}

/* Once the rows are open: nothing is met. */
static void hai_few_begin_rows(hai_few *few) {
  hai_few_clear(&few->keys, few->key_dim);
  hai_few_clear(&few->values, few->value_dim);
  HYPERATTN_MEMSET(few->o, 0, HAI_AS(size_t, few->n * few->value_dim) * sizeof(float));
  HYPERATTN_MEMSET(few->score, 0, HAI_AS(size_t, few->kernel->few->most * HAI_CHUNK) * sizeof(float));
}

/* Is a row to meet every key? Over an index, only one for which no sample was good enough. */
static int hai_few_meets(const hai_job *job, hai_index head, hai_index row) {
#if HAI_INDEX
  return !hai_looking(job->plan) || hai_met_of(job, head, row)->exact;
#else
  (void)job, (void)head, (void)row;
  return 1;
#endif
}

/* Opens those of rows row .. row + n - 1 of a kv head, numbered as in hai_exact_open, that meet every key. */
static void hai_few_open(const hai_job *job, hai_few *few, hai_index row, int n) {
  hai_index heads = job->plan->heads_per_kv, end = row + n;
  for (few->n = 0; row < end; row++)
    if (hai_few_meets(job, job->kv_head * heads + row % heads, row / heads))
      hai_few_open_row(job, few, few->n++, row);
  hai_few_begin_rows(few);
}
/* Writes a row of the result from its state; o is overwritten. */
static void hai_few_close_row(const hai_job *job, hai_index head, hai_index row, float m, float l, float *o) {
  const hyperattn_problem *p = job->plan->problem;
  hai_index dim = job->plan->value_dim, t;
  char *result = hai_out_row(&p->out, job->batch, head, row);
  float factor = l == 0.0f ? 0.0f : 1.0f / l;
  for (t = 0; t < dim; t++) o[t] = (o[t] + 0.0f) * factor;
  if (hai_is_f32(p->out.dtype))
    HYPERATTN_MEMCPY(result, o, HAI_AS(size_t, dim) * sizeof(float));
  else
    hai_narrow(o, dim, p->out.dtype, result);
  hai_row_close(job->plan, hai_flat_head_of(job, head) * job->plan->n_query + row, hai_state_lse(m, l));
}

/* ---- A chunk ---- */

/* row[j] = where row begin + j lies, of at most a chunk. Rows before `first` are not looked up: nobody sees
   them, and their page numbers may be invalid. They and the entries behind the last repeat a row that is
   there, since kernels read several at a time. */
static void hai_few_walk(const hai_rows *rows, hai_index begin, hai_index end, hai_index first,
                         const char **row) {
  hai_index from = hai_max(begin, first), j = 0, n = end - begin;
  hai_walk walk = hai_walk_from(rows, from);
  for (; begin + j <= from; j++) row[j] = walk.at;
  for (; j < n; j++) {
    hai_walk_on(&walk, rows, begin + j);
    row[j] = walk.at;
  }
  for (; j < HAI_CHUNK; j++) row[j] = walk.at;
}

/* The rows as the kernel reads them. */
static hai_few_rows hai_few_read(const hai_few *few, const hai_rows *rows, hai_index dim,
                                 const char *const *row, const char *const *wide, int n) {
  hai_few_rows read = {rows->dtype, dim, row, row, n};
  float *to = rows->widened;
  int j;
  if (!to) return read;
  for (j = 0; j < n; j++, to += dim) {
    if (hai_is_f32(rows->dtype))
      HYPERATTN_MEMCPY(to, row[j], HAI_AS(size_t, rows->dim) * sizeof(float));
    else
      hai_rows_at(rows, row[j], few->kernel, to, 0);
  }
  read.dtype = HYPERATTN_F32;
  read.row = read.ahead = wide;
  return read;
}

/* Which of n keys from `key` on each row sees, the mask left out. Returns whether any row sees any. */
static int hai_few_look(hai_few *few, hai_index key, int n) {
  uint64_t any = 0;
  int i;
  for (i = 0; i < few->n; i++) {
    hai_index begin = hai_max(few->query[i].first - key, 0), end = hai_min(few->query[i].last - key + 1, n);
    few->visible[i] = begin < end ? hai_lane_bits(hai_to_int(begin), hai_to_int(end)) : 0;
    any |= few->visible[i];
  }
  return any != 0;
}

/* Functions of tiles take scores [key][lane]. A row's scores pass as those of one key, so many from j on as a
   tile has lanes. */
static int hai_row_lanes(const hai_kernel *kernel, int j) {
  return hai_to_int(hai_min(kernel->lanes, HAI_CHUNK - j));
}

/* Reads row i's bias of the n keys from `key` on, and hides the keys where it is -inf. */
static void hai_few_mask(const hai_job *job, hai_few *few, int i, hai_index key, int n, float *bias) {
  hyperattn_dtype dtype = job->plan->problem->mask.dtype;
  const char *at = few->query[i].mask + HAI_AS(size_t, key) * hai_unit_bytes(dtype);
  int j;
  HYPERATTN_MEMSET(bias, 0, HAI_CHUNK * sizeof(float));
  if (hai_is_f32(dtype))
    HYPERATTN_MEMCPY(bias, at, HAI_AS(size_t, n) * sizeof(float));
  else
    few->kernel->widen(at, dtype, n, bias);
  for (j = 0; j < HAI_CHUNK; j += few->kernel->lanes) {
    uint64_t shown = UINT64_MAX;
    few->kernel->hide(bias + j, 1, 0, hai_row_lanes(few->kernel, j), &shown);
    few->visible[i] &= ~(~shown << j);
  }
}

/* Caps the scores of a chunk of keys. */
static void hai_cap_row(const hai_kernel *kernel, float *score, float softcap) {
  int j;
  for (j = 0; j < HAI_CHUNK; j += kernel->lanes)
    kernel->cap(score + j, 1, softcap, 0, hai_row_lanes(kernel, j));
}

/* What row i's products become: scores. */
static void hai_few_finish_scores(const hai_job *job, hai_few *few, int i, float *score, const float *bias) {
  float softcap = job->plan->problem->softcap;
  int j;
  if (HAI_SOFTCAP && softcap > 0.0f) hai_cap_row(few->kernel, score, softcap);
  if (!hai_masking(job->plan)) return;
  for (j = 0; j < HAI_CHUNK; j++) few->slope[j] = few->query[i].slope;
  for (j = 0; j < HAI_CHUNK; j += few->kernel->lanes)
    few->kernel->add_bias(score + j, 1, bias + j, few->slope, 0, hai_row_lanes(few->kernel, j));
}

/* Rows i .. i + n - 1, which see the same keys of the chunk, add their values. A hidden value is not read:
   0 * inf is NaN. Leaving it out changes no bit, since its weight is 0. */
static void hai_few_add_values(hai_few *few, hai_few_rows values, int i, int n, float *weight) {
  uint64_t visible = few->visible[i];
  int shown = 0, j, k;
  if (visible != hai_lane_bits(0, values.n)) {
    for (j = 0; j < values.n; j++) {
      if (!(visible >> j & 1)) continue;
      for (k = 0; k < n; k++) weight[k * HAI_CHUNK + shown] = weight[k * HAI_CHUNK + j];
      few->shown[shown++] = values.row[j];
    }
    values.row = few->shown;
    values.n = shown;
    values.ahead = few->shown;
  }
  few->kernel->few->values(&values, weight, few->factor + i, n, few->o + i * few->value_dim);
}

/* Rows i .. i + n - 1 meet the keys of a chunk, the first of which is `key`. */
static void hai_few_meet(const hai_job *job, hai_few *few, int i, int n, hai_index key,
                         const hai_few_rows *keys, hai_few_rows values) {
  const hai_few_kernel *kernel = few->kernel->few;
  uint64_t any = 0;
  int k, end;
  for (k = 0; k < n; k++) {
    if (hai_masking(job->plan)) hai_few_mask(job, few, i + k, key, keys->n, few->bias + k * HAI_CHUNK);
    any |= few->visible[i + k];
  }
  if (!any) return;
  kernel->scores(keys, few->packed + i * few->key_dim, n, few->score);
  for (k = 0; k < n; k++)
    hai_few_finish_scores(job, few, i + k, few->score + k * HAI_CHUNK, few->bias + k * HAI_CHUNK);
  kernel->softmax(few->score, n, keys->n, HAI_NULL, few->visible + i, few->m + i, few->l + i,
                  few->factor + i);
  for (k = 0; k < n; k = end) {
    for (end = k + 1; end < n && few->visible[i + end] == few->visible[i + k];) end++;
    hai_few_add_values(few, values, i + k, end - k, few->score + k * HAI_CHUNK);
    values.ahead = values.row;
  }
}

/* What starts to load while the chunk of this turn is met: its values while scores are computed, and the next
   chunk's keys while values are added up. Rows that are widened have been read before, so that theirs are the
   next chunk's. */
static void hai_few_load_ahead(const hai_few *few, int turn, int is_last, hai_few_rows *keys,
                               hai_few_rows *values) {
  if (!is_last) values->ahead = few->key[turn ^ 1];
  if (!few->values.widened)
    keys->ahead = few->value[turn];
  else if (!is_last)
    keys->ahead = few->value[turn ^ 1];
}

/* All rows meet keys begin .. end - 1, chunk by chunk, in as few sets as can be, of sizes as even as can be:
   5 queries are 2 and 3. The first set starts to load what comes next. */
static void hai_few_run(const hai_job *job, hai_few *few, hai_index begin, hai_index end) {
  const hai_kernel *kernel = few->kernel;
  hai_index first = end, last = begin - 1, next;
  hai_few_rows keys, values;
  int i, n, sets, turn = 0;
  for (i = 0; i < few->n; i++) {
    first = hai_min(first, few->query[i].first);
    last = hai_max(last, few->query[i].last);
  }
  begin = hai_max(begin, first / HAI_CHUNK * HAI_CHUNK);
  end = hai_min(end, last + 1);
  if (begin >= end) return;
  hai_few_walk(&few->keys, begin, hai_min(begin + HAI_CHUNK, end), first, few->key[0]);
  hai_few_walk(&few->values, begin, hai_min(begin + HAI_CHUNK, end), first, few->value[0]);
  for (; begin < end; begin = next, turn ^= 1) {
    next = hai_min(begin + HAI_CHUNK, end);
    n = hai_to_int(next - begin);
    if (next < end) {
      hai_few_walk(&few->keys, next, hai_min(next + HAI_CHUNK, end), first, few->key[turn ^ 1]);
      hai_few_walk(&few->values, next, hai_min(next + HAI_CHUNK, end), first, few->value[turn ^ 1]);
    }
    if (!hai_few_look(few, begin, n)) continue;
    keys = hai_few_read(few, &few->keys, few->key_dim, few->key[turn], few->wide_key, n);
    values = hai_few_read(few, &few->values, few->value_dim, few->value[turn], few->wide_value, n);
    hai_few_load_ahead(few, turn, next == end, &keys, &values);
    sets = (few->n + kernel->few->most - 1) / kernel->few->most;
    for (i = 0; i < sets; i++) {
      int from = few->n * i / sets;
      hai_few_meet(job, few, from, few->n * (i + 1) / sets - from, begin, &keys, values);
      keys.ahead = keys.row;
      values.ahead = values.row;
    }
  }
}

/* ---- The stages ---- */

/* A part's state of a query, in the workspace: o, then m and l. */
static float *hai_few_state(const hai_job *job, hai_index head, hai_index part, hai_index row) {
  const hai_plan *plan = job->plan;
  return HAI_PLACE(float, hai_array_at(job, HAI_ARRAY_FEW, hai_flat_head_of(job, head))) +
         (part * plan->n_query + row) * hai_few_stride(plan);
}

/* Some rows of a kv head meet a part of the keys. A sink joins the first part only. */
HAI_APART void hai_stage_few(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_few *few = hai_few_place(job);
  hai_index parts = hai_few_parts(plan), part = job->chunk % parts, row = job->chunk / parts * HAI_FEW_ROWS;
  hai_index begin = hai_few_begin(plan), end = plan->n_key;
  int i;
  hai_few_open(job, few, row, hai_to_int(hai_min(HAI_FEW_ROWS, plan->n_query * plan->heads_per_kv - row)));
  if (!few->n) return;
  for (i = 0; HAI_SINKS && plan->problem->sink && part == 0 && i < few->n; i++)
    hai_state_begin(plan->problem->sink[few->query[i].head], &few->m[i], &few->l[i]);
  if (parts > 1) {
    begin += part * HAI_FEW_KEYS;
    end = hai_min(end, begin + HAI_FEW_KEYS);
  }
  hai_few_run(job, few, begin, end);
  for (i = 0; i < few->n; i++) {
    const hai_few_query *q = &few->query[i];
    float *o = few->o + i * few->value_dim;
    if (parts == 1) {
      hai_few_close_row(job, q->head, q->row, few->m[i], few->l[i], o);
    } else {
      float *state = hai_few_state(job, q->head, part, q->row);
      HYPERATTN_MEMCPY(state, o, HAI_AS(size_t, few->value_dim) * sizeof(float));
      state[few->value_dim] = few->m[i];
      state[few->value_dim + 1] = few->l[i];
    }
  }
}

/* Does a part count? One whose share is 0 does if it holds a NaN. Its sums may be infinite where its scores
   are far below the row's, since they were added up by a lower reference. */
static int hai_few_counts(const float *state, hai_index n, float share) {
  hai_index t;
  for (t = 0; share == 0.0f && t < n; t++)
    if (state[t] != state[t]) return 1;
  return share != 0.0f;
}

/* m = max over parts of m_p, l = sum of e^(m_p - m) l_p, out = sum of e^(m_p - m) o_p / l. The kernel adds up
   o_p as values, up to HAI_CHUNK parts at a time, into few->o; few->shown lists their states, few->score has
   their weights. The two rows behind few->o are the sum of these sums, and what rounding takes from it. */
static void hai_few_merge(const hai_job *job, hai_few *few, hai_index row, hai_index parts) {
  hai_index dim = few->value_dim, part, t;
  hai_few_rows values = {HYPERATTN_F32, dim, few->shown, few->shown, 0};
  float m = -hai_inf(), l = 0.0f, l_lost = 0.0f, *sum = few->o + dim, *lost = sum + dim, zero = 0.0f;
  for (part = 0; part < parts; part++) {
    float of_part = hai_few_state(job, job->head, part, row)[dim];
    m = of_part > m ? of_part : m;
  }
  HYPERATTN_MEMSET(sum, 0, HAI_AS(size_t, 2 * dim) * sizeof(float));
  for (part = 0; part < parts;) {
    for (values.n = 0; values.n < HAI_CHUNK && part < parts; part++) {
      const float *state = hai_few_state(job, job->head, part, row);
      float share = hai_share(state[dim], m);
      if (!hai_few_counts(state, dim + 2, share)) continue;
      few->shown[values.n] = HAI_REINTERPRET(const char *, state);
      few->score[values.n++] = share;
      l = hai_two_sum(l, share * state[dim + 1], &l_lost);
    }
    HYPERATTN_MEMSET(few->o, 0, HAI_AS(size_t, dim) * sizeof(float));
    few->kernel->few->values(&values, few->score, &zero, 1, few->o);
    for (t = 0; t < dim; t++) sum[t] = hai_two_sum(sum[t], few->o[t], &lost[t]);
  }
  for (t = 0; t < dim; t++) sum[t] += lost[t];
  hai_few_close_row(job, job->head, row, m, l + l_lost, sum);
}

/* The parts of a head's queries become results. */
HAI_APART void hai_stage_merge(hai_job *job) {
  hai_few *few = hai_few_place(job);
  hai_index row;
  for (row = 0; row < job->plan->n_query; row++)
    if (hai_few_meets(job, job->head, row)) hai_few_merge(job, few, row, hai_few_parts(job->plan));
}

/* ======== src/turning.h ======== */

/* ---- Turning: what an index does to keys and queries ----
   x becomes H S x: S changes the sign of some coordinates, H is an orthogonal Hadamard matrix, or the product
   of two, of the first and of the last coordinates, where their number is no power of 2. After it every
   coordinate has a part in every other, so that none is larger than the others for long. */

#if HAI_INDEX
/* The largest |x[i]|; infinite or NaN where a number is not finite. By bits, which order as the numbers
   do. */
static float hai_largest_size(const float *x, hai_index n) {
  uint32_t most = 0;
  hai_index i;
  for (i = 0; i < n; i++) {
    uint32_t size = hai_bits(x[i]) & 0x7fffffffu;
    most = size > most ? size : most;
  }
  return hai_float(most);
}

/* Bit t % 64: does the sign of coordinate t change? */
static uint64_t hai_turned_signs(hai_index t) { return hai_mix(HAI_AS(uint64_t, t / 64 + 1)); }

/* Turns vectors x [dim][lanes], by `turn`, the product of n rows of so many lanes with the matrix of order n.
   Cost: lanes dim log2 dim. */
static void hai_turn(float *x, hai_index dim, int lanes, void (*turn)(float *x, hai_index n, float factor)) {
  hai_index n = 1, t;
  uint64_t signs = 0;
  float factor;
  int j;
  while (2 * n <= dim) n *= 2;
  factor = 1.0f / hai_sqrt(HAI_AS(float, n));
  for (t = 0; t < dim; t++) {
    if (t % 64 == 0) signs = hai_turned_signs(t);
    for (j = 0; j < lanes && (signs >> t % 64 & 1); j++) x[t * lanes + j] = -x[t * lanes + j];
  }
  turn(x, n, factor);
  if (n < dim) turn(x + (dim - n) * lanes, n, factor);
}

/* Turns one vector. */
static void hai_turn_row(float *x, hai_index n, float factor) { hai_index_turn_lanes(x, n, factor, 1); }
static void hai_turn_one(float *x, hai_index dim) { hai_turn(x, dim, 1, hai_turn_row); }
#endif

/* ======== src/lookup.h ======== */

/* ---- Lookup: few queries over an index ----
   Stage LOOK estimates a query's scores with all keys of the index that end before its window, and raises
   each by HAI_LOOK_SURE deviations, which grow with its key's length: e_j for key j, kept as
   round(HAI_LOOK_STEPS e_j) in 16 bits, since all of them are written and read again. The weight w_j is
   about e^(HAI_LOOK_TILT (e_j - max)), a factor of 2 for 8 steps. Each key has a chance of min(1, w_j /
   level), the level such that as many would be kept as the budget says. Stage MEET keeps key j with
   probability P_j, the largest of its chances for the queries that meet keys together (meeting.h), and
   these meet what is kept, the sinks, the window and all that the index does not hold, by exact scores with
   log-weight -ln P_j. So at a fixed budget e^lse and e^lse out are unbiased, but for keys of P_j < 2^-19,
   whose chances the 22 bits of a random number round; and a key that has more than a budget's share of a
   query's weight is met for certain.

   The sample tells its error, squared and times |out|^2: D (sum (1 - P_j) a_j^2 + S^2 / (n (n + 1))), a_j
   the share of the attention with which kept key j was met, 1 / P_j included, n and S the number and the
   share of those of P_j < 1, and D the mean of |v_j - out|^2 over at most HAI_LOOK_JUDGED of the kept keys,
   weighted by (1 - P_j) a_j^2, or 2 |out|^2 where none of these is uncertain. Where n = 0, S is the share
   that estimates give to keys below the level. A query whose error is above HAI_LOOK_SAFE of the tolerance
   tries again, with the budget that its error calls for; where that is too large, it meets every key
   (few.h).

   The random numbers of a block's keys are evenly spread over [0, 1), in an order of the seed, and moved
   around by a number of the block and the first query: nothing depends on workers, or on which kv heads a
   call holds. */

#if HAI_INDEX
typedef struct hai_look_span {
  int32_t high;    /* the octave of the sum of its weights, in steps; HAI_STEP_NONE: there are none */
  float sum;       /* that sum over the weight of `high`: 1 to 2 */
  float square;    /* the sum of the blocks' squares; not finite where the query's unit is not */
  int32_t is_sure; /* are there keys that are met for sure? */
} hai_look_span;

typedef struct hai_look {
  hyperattn_index *index;
  const hai_scan_kernel *kernel;
  hai_index begin, end; /* keys that are looked up: whole blocks but for sinks */
  hai_index last;       /* the query sees keys up to this one */
  int16_t *score;       /* [blocks][HAI_CHUNK]: estimates, in steps; HAI_STEP_NONE for sinks and sure keys */
  uint64_t *sure;       /* [blocks]: bit j: key j is met for sure */
  hai_look_span *span;  /* [spans] */
  float square;         /* of the span that is looked at: see hai_look_span */
  int is_sure;
} hai_look;

/* ---- Where things lie ---- */

/* What query `row` of a head of the job's kv head looks up: the keys that are in the index, that it sees and
   that are not in its window. */
static void hai_look_aim(const hai_job *job, hai_look *look, hai_index head, hai_index row) {
  const hai_plan *plan = job->plan;
  hai_index first, end, blocks = hai_look_blocks(plan);
  uint32_t *words;
  hai_seen_keys(plan, row, &first, &look->last);
  look->index = plan->problem->index;
  look->kernel = plan->scan_kernel;
  end = hai_min(hai_to_index(look->index->length), look->last + 1 - plan->window);
  look->end = hai_max(0, end) / HAI_CHUNK * HAI_CHUNK;
  look->begin = hai_min(plan->sink_keys, look->end);
  words = HAI_PLACE(uint32_t, hai_array_at(job, HAI_ARRAY_LOOK, hai_flat_head_of(job, head)));
  words += row * hai_look_words(plan);
  look->score = HAI_PLACE(int16_t, words);
  look->sure = HAI_PLACE(uint64_t, look->score + blocks * HAI_CHUNK);
  look->span = HAI_PLACE(hai_look_span, look->sure + blocks);
}
/* Are there keys enough to look up? */
static int hai_look_pays(const hai_look *look) { return look->end - look->begin >= HAI_LOOK_LEAST; }

#ifndef HYPERATTN_NO_COST
/* What a call is expected to cost, over what exact attention would: the index is read, and a few times the
   first budget of keys, which lie anywhere. */
static float hai_look_cost(const hai_plan *plan) {
  float n = HAI_AS(float, plan->n_key), always = HAI_AS(float, plan->window + plan->sink_keys);
  float cost = HAI_LOOK_COST + (always + HAI_LOOK_KEY_COST * HAI_AS(float, plan->sample_size)) / n;
  return cost < 0.999f ? cost : 0.999f; /* 1 is for what is exact */
}
#endif

/* ---- Stage LOOK ---- */

/* Turns packed [head_dim], the query times the scale, and makes codes of it: word [n_words]. The unit is
   not finite where a turned coordinate is not, as a finite query's may be. Where the query is too small to
   have codes, they and `more` are 0. */
static hai_index_query hai_look_encode(const hai_plan *plan, float *packed, int32_t *word) {
  hai_block_layout y = hai_block_layout_of(plan->head_dim);
  hai_index_query query = {word, y.groups, y.words, 0, 0.0f, 0.0f};
  float largest, inverse, square = 0.0f;
  hai_index t;
  hai_turn_one(packed, plan->head_dim);
  largest = hai_largest_size(packed, plan->head_dim);
  HYPERATTN_MEMSET(word, 0, HAI_AS(size_t, y.words) * sizeof *word);
  query.unit = HAI_LOOK_STEPS * largest * (1.0f / 127.0f);
  inverse = 127.0f / largest;
  if (!hai_finite(query.unit) || !hai_finite(inverse)) return query;
  for (t = 0; t < plan->head_dim; t++) {
    int code = HAI_AS(int, packed[t] * inverse + 127.5f) - 127;
    square += packed[t] * packed[t];
    query.sum += code;
    word[t / 4] |= HAI_AS(int32_t, (HAI_AS(uint32_t, code) & 255u) << t % 4 * 8);
  }
  query.more = HAI_LOOK_STEPS * HAI_LOOK_SURE * HAI_LOOK_ERROR * hai_sqrt(square);
  return query;
}

/* May the estimate of a key err so much that it tells nothing? Its norm code times norm_unit is `norm`. */
static int hai_look_is_sure(const hai_index_query *query, float norm) {
  return !(query->more * norm <= HAI_LOOK_STEPS * HAI_LOOK_SURE * HAI_LOOK_MOST);
}

/* The most that the size of a block's estimates may be, whatever its codes. Below 32767 they are not cut;
   from HAI_STEP_MOST on they are not in the range of integers, and tell nothing. Between these, keys that are
   cut at the top are met for certain, since levels are cut too, and those at the bottom weigh nothing beside
   any key that a level reaches (HAI_LEVEL_LEAST). */
static float hai_look_reach(const hai_index_query *query, const hai_index_block *b) {
  float most = 127.0f * HAI_AS(float, HAI_GROUP_DIM * query->n_groups);
  float norm = 127.0f * b->norm_unit, mean = HAI_MEAN_MOST * b->mean_unit;
  return norm * (3.0f * most * query->unit + query->more) + mean * most * query->unit;
}

/* A block of a kv head, and where it lies. */
typedef struct hai_look_place {
  hai_block_layout layout;
  const uint8_t *at;
  hai_index block;
} hai_look_place;
static hai_look_place hai_look_at(const hai_job *job, hai_index block) {
  hyperattn_index *index = job->plan->problem->index;
  hai_look_place place;
  place.layout = hai_block_layout_of(job->plan->head_dim);
  place.at = hai_index_block_at(index, hai_flat_kv_head(job), block);
  place.block = block;
  return place;
}
static void hai_look_on(hai_look_place *place) {
  place->at += place->layout.size;
  place->block++;
}

/* Sets the scores of sinks and of keys that are met for sure to HAI_STEP_NONE. Returns the bits of the
   latter; b HAI_NULL: every key but sinks is one. */
static uint64_t hai_look_hide(const hai_look *look, const hai_index_query *query, const hai_index_block *b,
                              hai_index block) {
  int16_t *score = look->score + block * HAI_CHUNK;
  uint64_t sure = 0;
  int j;
  for (j = 0; j < HAI_CHUNK; j++) {
    int is_sink = block * HAI_CHUNK + j < look->begin;
    int is_sure = !b || hai_look_is_sure(query, HAI_AS(float, b->norm[j]) * b->norm_unit);
    if (is_sink || is_sure) score[j] = HAI_STEP_NONE;
    sure |= HAI_AS(uint64_t, is_sure && !is_sink) << j;
  }
  return sure;
}

/* Caps a block's estimates. `room`: [HAI_CHUNK]. */
static void hai_look_cap(const hai_plan *plan, int16_t *score, float *room) {
  int j;
  for (j = 0; j < HAI_CHUNK; j++) room[j] = HAI_AS(float, score[j]);
  hai_cap_row(plan->float_kernel, room, HAI_LOOK_STEPS * plan->problem->softcap);
  for (j = 0; j < HAI_CHUNK; j++) score[j] = hai_index_cut(room[j]);
}

/* The queries that a task looks at together. */
typedef struct hai_look_group {
  hai_look look[HAI_FEW_ROWS];
  hai_index_query query[HAI_FEW_ROWS];
  hai_weights weights[HAI_FEW_ROWS];     /* of the span so far */
  hai_weights nothing[HAI_LOOK_GUESSED]; /* for those that are not wanted */
  hai_index_query worst;                 /* has the largest unit and `more` of all */
  float room[HAI_CHUNK];
} hai_look_group;

/* Finishes query i's estimates of a block: caps them, withdraws those of sinks and of keys that are met for
   sure, and adds their weights. Returns the bits of the keys that are met for sure; where b is HAI_NULL or
   the estimates may exceed HAI_STEP_MOST, these are all but sinks. */
static uint64_t hai_look_mend(const hai_plan *plan, hai_look_group *group, hai_index i,
                              const hai_index_block *b, hai_index block) {
  hai_look *look = &group->look[i];
  const hai_index_query *query = &group->query[i];
  int16_t *score = look->score + block * HAI_CHUNK;
  uint64_t sure = 0;
  if (!b || !(hai_look_reach(query, b) < HAI_STEP_MOST)) return hai_look_hide(look, query, HAI_NULL, block);
  look->square += b->square;
  if (HAI_SOFTCAP && plan->problem->softcap > 0.0f) hai_look_cap(plan, score, group->room);
  if (block * HAI_CHUNK < look->begin || hai_look_is_sure(query, 127.0f * b->norm_unit))
    sure = hai_look_hide(look, query, b, block);
  look->kernel->weigh(score, &group->weights[i]);
  return sure;
}

/* Estimates of a block for n queries from number i on, at most HAI_LOOK_GUESSED. A block some way ahead
   starts to load, in whichever span it lies. */
static void hai_look_block(const hai_plan *plan, hai_look_group *group, hai_index i, int n,
                           const hai_look_place *place) {
  hai_index_block b;
  hai_index block = place->block, last = i + n, first = i;
  int is_known = hai_index_read(&place->layout, place->at, &b), is_plain;
  int16_t *score[HAI_LOOK_GUESSED];
  for (; i < last; i++) score[i - first] = group->look[i].score + block * HAI_CHUNK;
  if ((block + HAI_LOOK_AHEAD) * HAI_CHUNK < group->look[first].end) {
    b.ahead = HAI_LOOK_AHEAD * place->layout.size;
    hai_fetch(HAI_REINTERPRET(const char *, b.norm) + b.ahead, place->layout.size - place->layout.norm);
  }
  is_plain = is_known && hai_look_reach(&group->worst, &b) < 32767.0f &&
             !hai_look_is_sure(&group->worst, 127.0f * b.norm_unit) && block * HAI_CHUNK >= plan->sink_keys &&
             !(HAI_SOFTCAP && plan->problem->softcap > 0.0f);
  if (is_known)
    group->look->kernel->guess(group->query + first, n, &b, score,
                               is_plain ? group->weights + first : group->nothing);
  for (i = first; i < last; i++) {
    uint64_t sure = 0;
    if (is_plain)
      group->look[i].square += b.square;
    else
      sure = hai_look_mend(plan, group, i, is_known ? &b : HAI_NULL, block);
    group->look[i].sure[block] = sure;
    group->look[i].is_sure |= sure != 0;
  }
}

/* The largest of n scores. */
static int hai_look_highest(const int16_t *score, hai_index n) {
  int high = HAI_STEP_NONE;
  hai_index j;
  for (j = 0; j < n; j++) high = score[j] > high ? score[j] : high;
  return high;
}

/* Weights of a span are summed relative to the octave of its first key's estimate. References are whole
   octaves everywhere, since only these weights multiply exactly: hai_step_weight(a + b) is the product of
   both where one is a multiple of 8. */
static void hai_look_refer(hai_look_group *group, hai_index n, const hai_look_place *place) {
  hai_index_block b;
  int is_known = hai_index_read(&place->layout, place->at, &b);
  hai_index i;
  HYPERATTN_MEMSET(group->weights, 0, sizeof group->weights);
  for (i = 0; is_known && i < n; i++) {
    int16_t *score = group->look[i].score + place->block * HAI_CHUNK;
    if (place->block * HAI_CHUNK >= group->look[i].end) continue;
    group->look[i].kernel->guess(group->query + i, 1, &b, &score, group->nothing);
    group->weights[i].from = hai_step_octave(score[0]);
  }
}

/* The sum of the weights of n keys. Where the reference was so far away that weights were cut, which sums
   beyond 2^-60 .. 2^96 tell, they are summed again relative to the largest. */
static float hai_look_sum(const hai_look *look, const int16_t *score, hai_index n, hai_weights *weights) {
  float sum = hai_lanes_sum(weights->lane);
  if (sum > 1e-18f && sum < 1e29f) return sum;
  HYPERATTN_MEMSET(weights, 0, sizeof *weights);
  weights->from = hai_step_octave(hai_look_highest(score, n));
  for (; n > 0; n -= HAI_CHUNK, score += HAI_CHUNK) look->kernel->weigh(score, weights);
  return hai_lanes_sum(weights->lane);
}

/* What there is for a query of a span that begins at a block, up to block `end`. */
static hai_look_span hai_look_whole(const hai_look *look, const hai_index_query *query, hai_weights *weights,
                                    hai_index block, hai_index end) {
  hai_look_span span = {HAI_STEP_NONE, 0.0f, look->square, look->is_sure};
  const int16_t *score = look->score + block * HAI_CHUNK;
  float sum = end > block ? hai_look_sum(look, score, (end - block) * HAI_CHUNK, weights) : 0.0f;
  int octaves;
  if (!hai_finite(query->unit)) span.square = query->unit;
  if (!(sum > 0.0f)) return span;
  octaves = hai_step_octave(hai_step_of(sum));
  span.high = weights->from + octaves;
  span.sum = sum * hai_step_weight(-octaves);
  return span;
}

/* Opens n rows of a kv head's queries from `row` on: heads first, then positions. packed [head_dim], word
   [n] of what a query's codes take. */
static void hai_look_open(const hai_job *job, hai_look_group *group, hai_index row, hai_index n,
                          float *packed, int32_t *word) {
  const hai_plan *plan = job->plan;
  hai_index heads = plan->heads_per_kv, words = hai_block_layout_of(plan->head_dim).words, i, t;
  HYPERATTN_MEMSET(&group->worst, 0, sizeof group->worst);
  HYPERATTN_MEMSET(group->nothing, 0, sizeof group->nothing);
  for (i = 0; i < n; i++) {
    hai_look *look = &group->look[i];
    hai_index_query *query = &group->query[i];
    hai_index head = job->kv_head * heads + (row + i) % heads;
    const float *from = hai_query_row(job, head, (row + i) / heads, packed);
    for (t = 0; t < plan->head_dim; t++) packed[t] = plan->scale * from[t];
    *query = hai_look_encode(plan, packed, word + i * words);
    hai_look_aim(job, look, head, (row + i) / heads);
    look->square = 0.0f;
    look->is_sure = 0;
    group->worst.n_groups = query->n_groups;
    if (query->unit > group->worst.unit) group->worst.unit = query->unit;
    if (query->more > group->worst.more) group->worst.more = query->more;
  }
}

/* A span of keys, for all queries that share a kv head. Each block is read once for up to HAI_FEW_ROWS
   queries, of which those behind the first that sees it do too. */
HAI_APART void hai_stage_look(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_look_group *group = HAI_PLACE(hai_look_group, job->scratch);
  float *packed = HAI_PLACE(float, group + 1);
  int32_t *word = HAI_PLACE(int32_t, packed + plan->head_dim);
  hai_index span = hai_look_spans(plan) - 1 - job->chunk; /* the first task's is the first: see hai_job_at */
  hai_index begin = span * HAI_SPAN_BLOCKS, to = begin + HAI_SPAN_BLOCKS, row, i, n;
  hai_index rows = plan->n_query * plan->heads_per_kv;
  for (row = 0; row < rows; row += n) {
    hai_look_place place = hai_look_at(job, begin);
    hai_index end, first = 0;
    n = hai_min(HAI_FEW_ROWS, rows - row);
    hai_look_open(job, group, row, n, packed, word);
    end = hai_min(to, group->look[n - 1].end / HAI_CHUNK);
    if (begin < end) hai_look_refer(group, n, &place);
    for (; place.block < end; hai_look_on(&place)) {
      while (place.block * HAI_CHUNK >= group->look[first].end) first++;
      for (i = first; i < n; i += HAI_LOOK_GUESSED)
        hai_look_block(plan, group, i, hai_to_int(hai_min(n - i, HAI_LOOK_GUESSED)), &place);
    }
    for (i = 0; i < n; i++) {
      const hai_look *look = &group->look[i];
      end = hai_min(to, look->end / HAI_CHUNK);
      look->span[span] = hai_look_whole(look, &group->query[i], &group->weights[i], begin, end);
    }
  }
}
#endif

/* ======== src/picking.h ======== */

/* ---- Picking: how likely a query keeps each key of an index (lookup.h) ---- */

#if HAI_INDEX
typedef struct hai_pick {
  hai_look look;
  hai_met *met;  /* how the query fares */
  float *weight; /* [HAI_LOOK_MET]: e^(score - by of its chunk) / P_j of each key it meets; then shares */
  float by[HAI_LOOK_MET / HAI_CHUNK]; /* the reference that the query had in each chunk */
  int high;                           /* the largest of its spans' `high`: weights are by this one */
  int level;                          /* in steps, at which a key is kept for certain */
  float total;                        /* the sum of all weights */
  float rest;                         /* the sum of those below the first level */
  float blur;                         /* the variance of an estimate */
  uint64_t hits[HAI_SPAN_BLOCKS];     /* of a span: bit j of a block: key j is counted */
  float budget;
} hai_pick;

/* Sets high, total and blur. query: [head_dim], times the scale. Returns 0 where blur is not finite: the
   query has to meet every key. */
static int hai_pick_total(const hai_plan *plan, hai_pick *pick, const float *query) {
  const hai_look_span *span = pick->look.span;
  hai_index spans = hai_ceil_div(pick->look.end, HAI_SPAN_BLOCKS * HAI_CHUNK), i;
  hai_index blocks = pick->look.end / HAI_CHUNK;
  float square = 0.0f;
  pick->high = HAI_STEP_NONE;
  pick->total = pick->blur = 0.0f;
  for (i = 0; i < plan->head_dim; i++) square += query[i] * query[i];
  for (i = 0; i < spans; i++) pick->high = span[i].high > pick->high ? span[i].high : pick->high;
  for (i = 0; i < spans; i++) {
    pick->total += hai_step_weight(span[i].high - pick->high) * span[i].sum;
    pick->blur += span[i].square;
  }
  pick->blur *= HAI_LOOK_BLUR * square / HAI_AS(float, plan->head_dim *blocks);
  return hai_finite(pick->blur);
}

/* A level as kernels take it, in 16 bits. */
static int hai_pick_cut(int level, int least) {
  return level < least ? least : level < 32767 ? level : 32767;
}

/* How many keys there are at each step from `from` on, and behind those how many above. */
typedef struct hai_pick_steps {
  int from;
  int n[HAI_PICK_STEPS + 1];
  float above; /* the sum of the weights of these */
} hai_pick_steps;

/* Adds the keys of a block, whose bits are `hits`, that are below a step. */
static void hai_pick_add(const hai_pick *pick, hai_pick_steps *steps, const int16_t *score, uint64_t hits,
                         int below) {
  for (; hits; hits &= hits - 1) {
    int here = score[hai_lowest_bit(hits)], step = here - steps->from;
    if (here >= below) continue;
    if (step >= HAI_PICK_STEPS) steps->above += hai_step_weight(here - pick->high);
    steps->n[step < HAI_PICK_STEPS ? step : HAI_PICK_STEPS]++;
  }
}

/* Counts the keys at steps from .. below - 1. */
static void hai_pick_count(hai_pick *pick, hai_pick_steps *steps, int from, int below) {
  const hai_look *look = &pick->look;
  hai_index blocks = look->end / HAI_CHUNK, begin, n, b;
  HYPERATTN_MEMSET(steps, 0, sizeof *steps);
  steps->from = from;
  for (begin = 0; begin < blocks; begin += n) {
    n = hai_min(HAI_SPAN_BLOCKS, blocks - begin);
    look->kernel->at_least(look->score + begin * HAI_CHUNK, n, from, pick->hits);
    for (b = 0; b < n; b++)
      hai_pick_add(pick, steps, look->score + (begin + b) * HAI_CHUNK, pick->hits[b], below);
  }
}

/* Lowers the level step by step: weights from it on are as good as 1, and what is left of the budget, `left`,
   is for the others. Returns whether it has come to where it stays, as it has where the others weigh next to
   nothing. */
static int hai_pick_lower(hai_pick *pick, const hai_pick_steps *steps, float *left) {
  int step;
  for (step = HAI_PICK_STEPS; step >= 0; step--) {
    float n = HAI_AS(float, steps->n[step]), level;
    int at = steps->from + step - pick->high;
    pick->rest -= step == HAI_PICK_STEPS ? steps->above : n * hai_step_weight(at);
    *left -= n;
    pick->level = pick->high + at;
    if (!(pick->rest > HAI_PICK_LEAST * pick->total)) return 1;
    level = pick->rest / (*left > 1.0f ? *left : 1.0f);
    if (step == 0 || level < hai_step_weight(at - 1)) continue;
    pick->level = pick->high + hai_step_of(level);
    return 1;
  }
  return 0;
}

/* The level at which the sum of min(1, w_j / level) is about the budget. */
static void hai_pick_level(hai_pick *pick) {
  float left = pick->budget;
  int from = pick->high + hai_step_of(pick->total / pick->budget), below = 32768;
  hai_pick_steps steps;
  int round;
  pick->rest = pick->total;
  pick->level = from;
  for (round = 0; pick->total > 0.0f && round < HAI_PICK_ROUNDS; round++) {
    from = hai_pick_cut(from - HAI_PICK_STEPS, HAI_STEP_NONE + 1);
    hai_pick_count(pick, &steps, from, below);
    if (hai_pick_lower(pick, &steps, &left)) break;
    below = from;
  }
  pick->rest = pick->rest > 0.0f ? pick->rest : 0.0f;
}

/* ---- The budget ---- */

/* A larger budget for a query whose error is above the limit. Errors fall with the root of the budget, so
   it grows by 1.5 (error / limit)^2, at least 2 and at most 8. The level falls by the same factor: each P_j
   < 1 grows by it, and somewhat fewer keys than the budget are kept. */
static void hai_pick_more(hai_pick *pick, float limit) {
  float times = pick->met->error / limit * (pick->met->error / limit) * 1.5f;
  times = times < 2.0f ? 2.0f : times < 8.0f ? times : 8.0f;
  pick->budget *= times;
  pick->level -= hai_step_of(times);
}

/* The first budget: the parameters', or more where estimates are so blurred that a key with most of the
   attention might be missed. With this one it is kept unless its estimate is too small by HAI_LOOK_SURE
   deviations. */
static float hai_pick_first(const hai_plan *plan, const hai_pick *pick) {
  float asked = HAI_AS(float, hai_max(1, plan->sample_size));
  float needed = HAI_LOOK_NEEDLE * hai_exp(HAI_LOOK_TILT * HAI_LOOK_SURE * hai_sqrt(pick->blur));
  return needed > asked ? needed : asked;
}

/* The largest budget, and the most keys that queries that meet keys together keep: where more are called for,
   all are met, which then costs less. */
static float hai_pick_most(const hai_pick *pick) {
  return HAI_LOOK_SHARE * HAI_AS(float, pick->look.end - pick->look.begin);
}

/* Sets the first budget and its level. Returns 0 where the query has to meet every key, as it has where its
   estimates are at the end of 16 bits. `query`: [head_dim], times the scale. */
static int hai_pick_begin(const hai_plan *plan, hai_pick *pick, const float *query) {
  if (!hai_look_pays(&pick->look) || !hai_pick_total(plan, pick, query)) return 0;
  pick->budget = hai_pick_first(plan, pick);
  if (!(pick->budget <= hai_pick_most(pick))) return 0;
  hai_pick_level(pick);
  return pick->level >= HAI_LEVEL_LEAST;
}
#endif

/* ======== src/meeting.h ======== */

/* ---- Meeting: the queries that share a kv head meet what any of them keeps (lookup.h) ----
   The rows of keys and values that a query keeps lie anywhere in memory, and to read them takes longer
   than to meet them. So the queries of heads that share a kv head, at one position, keep keys by the same
   random numbers and meet the union: key j with P_j, the largest of theirs. No query's error is larger for
   it. Those whose error is above HAI_LOOK_SAFE of the tolerance try again together, and where one has to
   meet every key, all that are left do, since they read keys but once. */

#if HAI_INDEX
typedef struct hai_meet {
  hai_few *few;                      /* the queries, and where rows of keys and values lie */
  hai_pick *pick[HAI_LOOK_TOGETHER]; /* of each of its few->n queries */
  float *place;                      /* [HAI_CHUNK]: random numbers, before a block moves them */
  float shift[HAI_SPAN_BLOCKS];      /* of a span: by how much a block moves them */
  uint64_t kept[HAI_SPAN_BLOCKS];    /* of a span: bit j of a block: key j is kept */
  int32_t *key;                      /* [HAI_LOOK_MET]: the keys that are met: sinks, kept ones, the others */
  float *chance;                     /* [HAI_LOOK_MET]: P_j */
  float *more;                       /* [HAI_LOOK_MET]: 1 / P_j - 1 */
  hai_index n, n_kept;
  hai_index n_uncertain; /* of P_j < 1 */
  uint64_t hash;         /* of the seed and the first query */
} hai_meet;

/* The random numbers: HAI_CHUNK even steps, in an order of the seed. */
static void hai_meet_places(const hai_job *job, hai_meet *meet) {
  const float *query = meet->few->packed;
  hai_index t;
  int j;
  meet->hash = hai_random(job->plan->params->seed, 0, HAI_FOR_OFFSETS, 0);
  for (j = 0; j < HAI_CHUNK; j++) {
    int at = HAI_AS(int, hai_uniform(0, HAI_AS(uint64_t, j + 1), hai_mix(meet->hash + HAI_AS(uint64_t, j))));
    meet->place[j] = meet->place[at];
    meet->place[at] = HAI_AS(float, j) * (1.0f / HAI_CHUNK);
  }
  for (t = 0; t < job->plan->head_dim; t++) meet->hash = hai_mix(meet->hash ^ hai_bits(query[t]));
}

/* Adds keys that are met for certain. Returns 0 where there is no room. */
static int hai_meet_all(hai_meet *meet, hai_index begin, hai_index end) {
  if (end - begin > HAI_LOOK_MET - meet->n) return 0;
  for (; begin < end; begin++) {
    meet->chance[meet->n] = 1.0f;
    meet->key[meet->n++] = hai_to_int(begin);
  }
  return 1;
}

/* Shifts of n blocks from `block` on: (r + 1/2) / 2^22, r the 22 highest bits of a block's random number,
   or for every second block the 22 below them of the one before. Places are multiples of 1/64, so sums are
   exact and none is 0. */
static void hai_meet_shifts(hai_meet *meet, hai_index block, hai_index n) {
  hai_index i;
  uint64_t random = 0;
  for (i = 0; i < n; i++) {
    random = i % 2 ? random << 22 : hai_mix(meet->hash + HAI_AS(uint64_t, block + i));
    meet->shift[i] = (HAI_AS(float, HAI_AS(int32_t, random >> 42)) + 0.5f) * (1.0f / 4194304.0f);
  }
}

/* P_j of the keys from number `begin` on, of a span that begins with key `first`: the largest of what each
   query's weight calls for. */
static void hai_meet_chances(hai_meet *meet, hai_index begin, hai_index first, const hai_levels *levels) {
  int i;
  for (; begin < meet->n; begin++) {
    hai_index at = meet->key[begin] - first;
    int most = -HAI_STEP_OF_1;
    for (i = 0; i < levels->n; i++) {
      int x = levels->score[i][at] - levels->level[i];
      most = x > most ? x : most;
    }
    meet->chance[begin] = most < 0 ? hai_step_weight(most) : 1.0f;
  }
}

/* Sets P_j = 1 of the keys of a span that are met for sure. */
static void hai_meet_certain(hai_meet *meet, hai_index begin) {
  int i;
  for (; begin < meet->n; begin++) {
    hai_index key = meet->key[begin];
    for (i = 0; i < meet->few->n; i++)
      if (meet->pick[i]->look.sure[key / HAI_CHUNK] >> key % HAI_CHUNK & 1) meet->chance[begin] = 1.0f;
  }
}

/* To what n blocks from `block` on keep, adds the keys that a query meets for sure. Returns whether there
   are any. */
static int hai_meet_sure(hai_meet *meet, hai_index block, hai_index n) {
  hai_index b;
  int is_sure = 0, i;
  for (i = 0; i < meet->few->n; i++) {
    const hai_look *look = &meet->pick[i]->look;
    if (!look->span[block / HAI_SPAN_BLOCKS].is_sure) continue;
    for (b = 0; b < n; b++) meet->kept[b] |= look->sure[block + b];
    is_sure = 1;
  }
  return is_sure;
}

/* Keeps keys of n blocks from `block` on, the first of a span, by each query's level. Returns 0 where there
   is no room. */
static int hai_meet_span(hai_meet *meet, hai_index block, hai_index n) {
  hai_index begin = meet->n, b;
  hai_levels levels = {{HAI_NULL}, {0}, meet->few->n, meet->place, meet->shift};
  int is_sure, i;
  for (i = 0; i < levels.n; i++) {
    levels.score[i] = meet->pick[i]->look.score + block * HAI_CHUNK;
    levels.level[i] = hai_pick_cut(meet->pick[i]->level, HAI_LEVEL_LEAST);
  }
  hai_meet_shifts(meet, block, n);
  meet->pick[0]->look.kernel->keep(&levels, n, meet->kept);
  is_sure = hai_meet_sure(meet, block, n);
  for (b = 0; b < n; b++) {
    uint64_t kept = meet->kept[b];
    int32_t *key = meet->key + meet->n;
    if (meet->n > HAI_LOOK_MET - HAI_CHUNK) return 0;
    for (; kept; kept &= kept - 1) *key++ = hai_to_int((block + b) * HAI_CHUNK) + hai_lowest_bit(kept);
    meet->n = key - meet->key;
  }
  hai_meet_chances(meet, begin, block * HAI_CHUNK, &levels);
  if (is_sure) hai_meet_certain(meet, begin);
  return 1;
}

/* Sets `more` and n_uncertain by each P_j. Behind the last key, its chunk is filled with keys of P_j = 1 that
   nobody meets. */
static void hai_meet_count(hai_meet *meet) {
  hai_index i, n = hai_ceil_div(meet->n, HAI_CHUNK) * HAI_CHUNK;
  int32_t certain = 0;
  for (i = meet->n; i < n; i++) meet->chance[i] = 1.0f;
  for (i = 0; i < n; i++) {
    meet->more[i] = 1.0f / meet->chance[i] - 1.0f;
    certain += meet->chance[i] == 1.0f;
  }
  meet->n_uncertain = n - certain;
}

/* All that the queries meet with their budgets. Returns 0 where that costs more than to meet every key: where
   one has to, that takes the others little longer. At tolerance 0 budgets decide (hai_pick_begin), and only
   the room besides: if draws that keep many keys were left out, what remains would be biased. */
static int hai_meet_keys(const hai_job *job, hai_meet *meet) {
  const hai_look *look = &meet->pick[0]->look; /* they see the same keys */
  hai_index block, end = look->end / HAI_CHUNK;
  meet->n = 0;
  if (!hai_meet_all(meet, 0, look->begin)) return 0;
  for (block = 0; block < end; block += HAI_SPAN_BLOCKS)
    if (!hai_meet_span(meet, block, hai_min(end - block, HAI_SPAN_BLOCKS))) return 0;
  meet->n_kept = meet->n - look->begin;
  if (job->plan->params->tolerance > 0.0f && HAI_AS(float, meet->n_kept) > hai_pick_most(meet->pick[0]))
    return 0;
  if (!hai_meet_all(meet, look->end, look->last + 1)) return 0;
  hai_meet_count(meet);
  return 1;
}

/* ---- Meeting them ---- */

/* Lists the rows of a chunk of keys that are met, from number `at` on, as those of a turn. Returns how many
   they are; the last stands for those behind it. */
static int hai_meet_rows(const hai_meet *meet, hai_index at, int turn) {
  hai_few *few = meet->few;
  hai_index last = hai_min(at + HAI_CHUNK, meet->n) - 1;
  int j;
  for (j = 0; at <= last && j < HAI_CHUNK; j++) {
    hai_index key = meet->key[hai_min(at + j, last)];
    few->key[turn][j] = hai_walk_from(&few->keys, key).at;
    few->value[turn][j] = hai_walk_from(&few->values, key).at;
  }
  return hai_to_int(hai_max(last + 1 - at, 0));
}

/* Weights of a chunk of keys from number `at` on, of all queries, times 1 / P_j. */
static void hai_meet_weigh(hai_meet *meet, hai_index at) {
  hai_few *few = meet->few;
  const float *more = meet->more + at;
  int i, j, lane;
  for (i = 0; i < few->n; i++) {
    float *weight = few->score + i * HAI_CHUNK, sum[HAI_SUM_LANES] = {0.0f};
    for (j = 0; j < HAI_CHUNK; j += HAI_SUM_LANES)
      for (lane = 0; lane < HAI_SUM_LANES; lane++) {
        float added = weight[j + lane] * more[j + lane];
        weight[j + lane] += added;
        sum[lane] += added;
      }
    few->l[i] += hai_lanes_sum(sum);
    meet->pick[i]->by[at / HAI_CHUNK] = few->m[i];
    HYPERATTN_MEMCPY(meet->pick[i]->weight + at, weight, HAI_CHUNK * sizeof(float));
  }
}

/* The queries meet n keys from number `at` on, whose rows are those of a turn; the `next` ones' start to
   load. */
static void hai_meet_some(const hai_job *job, hai_meet *meet, hai_index at, int turn, int n, int next) {
  hai_few *few = meet->few;
  const hai_few_kernel *kernel = few->kernel->few;
  hai_few_rows keys = hai_few_read(few, &few->keys, few->key_dim, few->key[turn], few->wide_key, n);
  hai_few_rows values = hai_few_read(few, &few->values, few->value_dim, few->value[turn], few->wide_value, n);
  int i;
  hai_few_load_ahead(few, turn, !next, &keys, &values);
  kernel->scores(&keys, few->packed, few->n, few->score);
  for (i = 0; i < few->n; i++) {
    hai_few_finish_scores(job, few, i, few->score + i * HAI_CHUNK, HAI_NULL);
    few->visible[i] = hai_lane_bits(0, n);
  }
  kernel->softmax(few->score, few->n, n, HAI_NULL, few->visible, few->m, few->l, few->factor);
  for (i = 0; i < few->n && n < HAI_CHUNK; i++)
    HYPERATTN_MEMSET(few->score + i * HAI_CHUNK + n, 0, HAI_AS(size_t, HAI_CHUNK - n) * sizeof(float));
  hai_meet_weigh(meet, at);
  kernel->values(&values, few->score, few->factor, few->n, few->o);
}

/* The queries meet the keys: m, l and o of `few`, and the weights of each. */
HAI_APART void hai_meet_attend(const hai_job *job, hai_meet *meet) {
  hai_few *few = meet->few;
  hai_index at;
  int turn = 0, n, next, i;
  for (i = 0; i < few->n; i++)
    hai_state_begin(
        HAI_SINKS && job->plan->problem->sink ? job->plan->problem->sink[few->query[i].head] : -hai_inf(),
        few->m + i, few->l + i);
  HYPERATTN_MEMSET(few->o, 0, HAI_AS(size_t, few->n * few->value_dim) * sizeof(float));
  n = hai_meet_rows(meet, 0, turn);
  for (at = 0; n > 0; at += HAI_CHUNK, n = next, turn ^= 1) {
    next = hai_meet_rows(meet, at + HAI_CHUNK, turn ^ 1);
    hai_meet_some(job, meet, at, turn, n, next);
  }
}

/* The mean of |v_j - out|^2, weighted by (1 - P_j) a_j^2, over those of every step-th kept key that are not
   certain, `share` the a_j. -1: none of these is. */
static float hai_meet_apart(const hai_job *job, const hai_meet *meet, const float *share, const float *out,
                            float *room) {
  hai_index step = meet->n_kept / HAI_LOOK_JUDGED + 1, begin = meet->pick[0]->look.begin, i;
  float scatter = 0.0f, judged = 0.0f;
  for (i = begin; i < begin + meet->n_kept; i += step) {
    float square = (1.0f - meet->chance[i]) * share[i] * share[i];
    if (square == 0.0f) continue;
    judged += square;
    scatter +=
        square * meet->pick[0]->look.kernel->apart(hai_rows_read(job, &meet->few->values, meet->key[i], room),
                                                   job->plan->value_dim, out);
  }
  return judged > 0.0f ? scatter / judged : -1.0f;
}

/* Sums over keys: of their shares, of those that are uncertain, and of their squares times 1 - P_j. */
typedef struct hai_meet_sums {
  float all[HAI_SUM_LANES], uncertain[HAI_SUM_LANES], squares[HAI_SUM_LANES];
} hai_meet_sums;
HAI_HOT void hai_meet_add(hai_meet_sums *sums, const float *chance, const float *share, const int n) {
  int lane;
  for (lane = 0; lane < n; lane++) {
    float missing = 1.0f - chance[lane];
    sums->all[lane] += share[lane];
    sums->uncertain[lane] += missing > 0.0f ? share[lane] : 0.0f;
    sums->squares[lane] += missing * share[lane] * share[lane];
  }
}
/* Over keys begin .. end - 1; each sum is then in its first lane. */
static hai_meet_sums hai_meet_sum(const hai_meet *meet, const float *share, hai_index begin, hai_index end) {
  hai_meet_sums sums = {{0.0f}, {0.0f}, {0.0f}};
  for (; begin + HAI_SUM_LANES <= end; begin += HAI_SUM_LANES)
    hai_meet_add(&sums, meet->chance + begin, share + begin, HAI_SUM_LANES);
  hai_meet_add(&sums, meet->chance + begin, share + begin, hai_to_int(end - begin));
  sums.all[0] = hai_lanes_sum(sums.all);
  sums.uncertain[0] = hai_lanes_sum(sums.uncertain);
  sums.squares[0] = hai_lanes_sum(sums.squares);
  return sums;
}

/* A query's weights of all keys that it has met become shares. */
static void hai_meet_share(const hai_meet *meet, int query, float inverse) {
  const hai_pick *pick = meet->pick[query];
  hai_index at;
  int j;
  for (at = 0; at < meet->n; at += HAI_CHUNK) {
    float factor = hai_share(pick->by[at / HAI_CHUNK], meet->few->m[query]) * inverse;
    for (j = 0; j < HAI_CHUNK; j++) pick->weight[at + j] *= factor;
  }
}

/* The relative error of what a query has met, and shares of it; its weights become shares. */
static void hai_meet_judge(const hai_job *job, const hai_meet *meet, int query) {
  const hai_few *few = meet->few;
  hai_pick *pick = meet->pick[query];
  const float *o = few->o + query * few->value_dim;
  hai_index dim = job->plan->value_dim, begin = pick->look.begin, t;
  float *out = few->o + few->n * few->value_dim, *room = out + few->value_dim;
  float inverse = 1.0f / few->l[query], norm = 0.0f, n = HAI_AS(float, meet->n_uncertain), left, apart,
        squares;
  hai_meet_sums sums;
  for (t = 0; t < dim; t++) {
    out[t] = o[t] * inverse;
    norm += out[t] * out[t];
  }
  hai_meet_share(meet, query, inverse);
  sums = hai_meet_sum(meet, pick->weight, begin, begin + meet->n_kept);
  apart = hai_meet_apart(job, meet, pick->weight, out, room);
  left = sums.uncertain[0];
  if (n == 0.0f && pick->rest < pick->total) left = sums.all[0] * pick->rest / (pick->total - pick->rest);
  squares = sums.squares[0] + left * left / (n > 0.0f ? n * (n + 1.0f) : 1.0f);
  pick->met->pinned = hai_meet_sum(meet, pick->weight, 0, begin).all[0];
  pick->met->sampled = sums.all[0];
  pick->met->error = hai_relative(squares * (apart >= 0.0f ? apart : 2.0f * norm), norm);
  if ((n == 0.0f && pick->rest > 0.0f &&
       !(pick->rest < pick->total)) ||                                /* nothing of what there is was kept */
      (norm < HAI_LEAST_SQUARE && hai_largest_size(out, dim) > 0.0f)) /* squares vanish */
    pick->met->error = hai_inf();
}

/* ---- The stage ---- */

/* Queries of a kv head that meet keys together; tasks of a position. */
static hai_index hai_meet_together(const hai_plan *plan) {
  hai_index most = hai_min(plan->float_kernel->few->most, HAI_LOOK_TOGETHER);
  return hai_min(most, plan->heads_per_kv);
}
static hai_index hai_meet_tasks(const hai_plan *plan) {
  return hai_ceil_div(plan->heads_per_kv, hai_meet_together(plan));
}

/* Behind the memory of few queries. */
static size_t hai_meet_bytes(const hai_plan *plan) {
  size_t n = HAI_AS(size_t, hai_meet_together(plan));
  return hai_round_up(hai_few_bytes(plan)) + hai_round_up(sizeof(hai_meet)) +
         n * hai_round_up(sizeof(hai_pick)) + (HAI_CHUNK + (3 + n) * HAI_LOOK_MET) * sizeof(float);
}
static hai_meet *hai_meet_place(const hai_job *job) {
  hai_meet *meet =
      HAI_PLACE(hai_meet, HAI_REINTERPRET(char *, job->tile) + hai_round_up(hai_few_bytes(job->plan)));
  char *at = HAI_REINTERPRET(char *, meet) + hai_round_up(sizeof *meet);
  hai_index i;
  meet->place = hai_carve(&at, HAI_CHUNK);
  meet->chance = hai_carve(&at, HAI_LOOK_MET);
  meet->more = hai_carve(&at, HAI_LOOK_MET);
  meet->key = HAI_PLACE(int32_t, hai_carve(&at, HAI_LOOK_MET));
  for (i = 0; i < hai_meet_together(job->plan); i++) {
    meet->pick[i] = HAI_PLACE(hai_pick, at);
    at += hai_round_up(sizeof(hai_pick));
    meet->pick[i]->weight = hai_carve(&at, HAI_LOOK_MET);
  }
  return meet;
}

/* Query i leaves the others, of which the last takes its place. */
static void hai_meet_leave(hai_meet *meet, int i) {
  hai_few *few = meet->few;
  hai_pick *pick = meet->pick[i];
  int last = --few->n;
  if (i == last) return;
  meet->pick[i] = meet->pick[last];
  meet->pick[last] = pick;
  few->query[i] = few->query[last];
  HYPERATTN_MEMCPY(few->packed + i * few->key_dim, few->packed + last * few->key_dim,
                   HAI_AS(size_t, few->key_dim) * sizeof(float));
}

/* Query i, which has met its keys, is written and leaves where its error is at most HAI_LOOK_SAFE of the
   tolerance, or where that is 0. Returns 0 where a larger budget will not do. */
static int hai_meet_settle(const hai_job *job, hai_meet *meet, int i) {
  const hai_plan *plan = job->plan;
  const hai_few_query *query = &meet->few->query[i];
  float limit = HAI_LOOK_SAFE * plan->params->tolerance;
  hai_pick *pick = meet->pick[i];
  hai_met *met = pick->met;
  hai_meet_judge(job, meet, i);
  if (limit > 0.0f && !(met->error <= limit)) {
    hai_pick_more(pick, limit);
    met->doubled = 1;
    return pick->budget <= hai_pick_most(pick);
  }
  met->exact = 0;
  met->keys = hai_to_int(meet->n);
  hai_few_close_row(job, query->head, query->row, meet->few->m[i], meet->few->l[i],
                    meet->few->o + i * meet->few->value_dim);
  if (plan->problem->query_error)
    plan->problem->query_error[hai_flat_head_of(job, query->head) * plan->n_query + query->row] = met->error;
  hai_meet_leave(meet, i);
  return 1;
}

/* Opens n queries of a kv head from head `head` of those that share it on, at position `row`. */
static hai_meet *hai_meet_open(hai_job *job, hai_index head, hai_index row, int n) {
  hai_few *few = hai_few_place(job);
  hai_meet *meet = hai_meet_place(job);
  hai_index heads = job->plan->heads_per_kv;
  int i;
  meet->few = few;
  few->n = n;
  for (i = 0; i < n; i++) {
    hai_few_open_row(job, few, i, row * heads + head + i);
    hai_look_aim(job, &meet->pick[i]->look, few->query[i].head, row);
    meet->pick[i]->met = hai_met_of(job, few->query[i].head, row);
    HYPERATTN_MEMSET(meet->pick[i]->met, 0, sizeof(hai_met));
    meet->pick[i]->met->exact = 1;
  }
  hai_few_begin_rows(few);
  return meet;
}

/* Stage MEET: some queries of a kv head, at one position, meet what they keep; their results are written, but
   for those that have to meet every key. */
HAI_APART void hai_stage_meet(hai_job *job) {
  hai_index tasks = hai_meet_tasks(job->plan), together = hai_meet_together(job->plan);
  hai_index head = job->chunk % tasks * together, n = hai_min(together, job->plan->heads_per_kv - head);
  hai_meet *meet = hai_meet_open(job, head, job->chunk / tasks, hai_to_int(n));
  int may_go_on = 1, i;
  hai_meet_places(job, meet);
  for (i = 0; i < meet->few->n; i++)
    if (!hai_pick_begin(job->plan, meet->pick[i], meet->few->packed + i * meet->few->key_dim)) return;
  while (may_go_on && meet->few->n > 0 && hai_meet_keys(job, meet)) {
    hai_meet_attend(job, meet);
    for (i = meet->few->n - 1; i >= 0; i--) may_go_on &= hai_meet_settle(job, meet, i);
  }
}
#endif

/* ======== src/rectangle.h ======== */

/* ---- An approximated rectangle: blocks, pins, columns ---- */

/* The job goes on with the pairing that the rectangle's verdict names, if there is one. */
static void hai_adopt_pairing(hai_job *job) {
  if (job->plan->choosing && !hai_rect_is_exact(job)) job->pairing = hai_verdict_of(job).pairing;
}

/* Puts the query at a position of the pairing's order into a lane, and the lane into its query group.
   Positions ascend from lane to lane. */
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

/* Bit i: the group of lane i has chosen the sub-block. Cheapest for a sequence of ascending sub-blocks. */
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

/* Each query group meets the keys of its sub-blocks with weight 1, except pins, which all queries meet. */
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
        if (!hai_is_pinned(job, pinned, key)) hai_tile_push(tile, key, bits);
      }
    hai_tile_flush(tile);
  }
}

/* Keys begin .. end - 1 of a list take their places in the chunk. The first n_pins of the list are pins, of
   weight 1, the others the columns of a draw. Returns the largest position of these keys. */
HAI_APART int32_t hai_list_rows(const hai_job *job, hai_tile *tile, int n_pins, int wide, int begin,
                                int end) {
  int32_t latest = 0;
  int j;
  for (j = 0; begin < end; j++, begin++) {
    int is_pin = begin < n_pins;
    const hai_column *column = &hai_columns(job, wide)[is_pin ? 0 : begin - n_pins];
    int32_t key = is_pin ? hai_pins(job)[begin] : column->key;
    tile->log_weight[j] = is_pin ? 0.0f : column->log_weight;
    latest = key > latest ? key : latest;
    hai_tile_put(tile, j, key);
  }
  return latest;
}

/* Some tiles meet the first n_pins pins and the columns of a draw (wide: 0 or 1; -1: none). A column is
   hidden from the queries that meet it in one of their blocks. Each row is read once for all tiles. */
static void hai_tiles_list(hai_job *job, hai_tile *const *tiles, int n_tiles, int n_pins, int wide) {
  int n = n_pins + (wide < 0 ? 0 : hai_counts(job)[1 + wide]), second = job->pairing == 1;
  int begin, end, hidden, i, j;
  for (i = 0; i < n_tiles; i++) hai_tile_aim(tiles[i], 0, tiles[i]->n);
  for (begin = 0; begin < n; begin = end) {
    int32_t latest;
    end = hai_to_int(hai_min(n, begin + HAI_CHUNK));
    latest = hai_list_rows(job, tiles[0], n_pins, wide > 0, begin, end);
    for (i = 0; i < n_tiles; i++) {
      hai_tile *tile = tiles[i];
      tile->n_keys = end - begin;
      tile->weighted = end > n_pins;
      hidden = tile->n_groups || hai_tile_sees(tile, 0, latest) != HAI_SEEN_ALL; /* may any key be */
      for (j = 0; hidden && j < tile->n_keys; j++) {
        int at = begin + j - n_pins;
        uint64_t held = at < 0 ? 0 : hai_tile_holds(tile, hai_columns(job, wide)[at].block[second]);
        hai_tile_show(tile, j, tile->id[j], ~held);
      }
      hai_tile_flush(tile);
    }
  }
}

static void hai_attend_pins(hai_job *job) { hai_tiles_list(job, &job->tile, 1, hai_counts(job)[0], -1); }
static void hai_attend_columns(hai_job *job, int wide) { hai_tiles_list(job, &job->tile, 1, 0, wide); }

/* ======== src/capping.h ======== */

/* ---- Algorithm 2's normaliser ---- */

/* The largest ln T over some of the sampled rows, which are drawn one from each stratum of the ordered
   queries. T is a row's sum of e^score over all keys but the pins and those of its blocks. Cost:
   sample_size * n_key in all. */
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
    hai_tile_open(job, n, 0);
    for (rank = 0; rank < n_key; rank++) {
      hai_index key = hai_at(order, job->rect.key_begin, rank);
      int32_t block = parts ? hai_to_int(hai_part_of(n_key, parts, rank)) : -1;
      if (!hai_is_pinned(job, pinned, key))
        hai_tile_push(job->tile, key, ~hai_tile_holds(job->tile, block));
    }
    hai_tile_flush(job->tile);
    for (i = 0; i < n; i++)
      most = hai_state_lse(job->tile->m[i], job->tile->l[i]) > most
                 ? hai_state_lse(job->tile->m[i], job->tile->l[i])
                 : most;
  }
  hai_cap(job)[job->chunk] = most;
}

/* Columns under the normaliser with Algorithm 2's cap and floor:
     C = eps^2 m / (n ln n) (B + T / kappa),
     D = B + max(sum over columns of w min(e^s, C), T / kappa) + e^sink, out = numerator / D, lse = ln D.
   B is the sum of what the tile has met so far; the numerator is not capped. The columns are met twice, for
   the numerator, and with clipped scores for D. Sums are kept as logarithms, since they may exceed a float's
   range. */
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
    hai_lane_set(tile, i, -hai_inf()); /* a sum of its own, over the columns alone */
  }
  tile->clip = clip;
  tile->value_dim = 0;
  hai_attend_columns(job, 0);
  tile->clip = HAI_NULL;
  tile->value_dim = value_dim;
  for (i = 0; i < tile->n; i++) {
    float rest = hai_state_lse(tile->m[i], tile->l[i]);
    float sum = hai_log_add(block[i], rest > least ? rest : least), factor;
    if (HAI_SINKS && !job->audit) sum = hai_log_add(sum, hai_lane_sink(job, i)); /* hai_compare has its own */
    factor = sum == -hai_inf() ? 0.0f : hai_exp(m[i] - sum);
    for (t = 0; t < value_dim; t++) tile->o[t * lanes + i] *= factor;
    hai_lane_set(tile, i, sum);
  }
  hai_tile_reset_sums(tile);
}

/* ======== src/attending.h ======== */

/* Opens the tile for queries at .. at + n - 1 of the rectangle, in the pairing's order; they meet their
   blocks. */
static void hai_sorted_open(hai_job *job, hai_index at, int n) {
  const hai_plan *plan = job->plan;
  int i;
  job->tile->n_groups = 0;
  for (i = 0; i < n; i++) hai_tile_sorted(job, i, at + i);
  hai_tile_open(job, n, plan->value_dim);
  if (!hai_capping(plan))
    hai_tile_go_on(job); /* the capped sums are those of keys: a sink joins them last */
  hai_attend_blocks(job);
}

/* Some tiles meet the first n_pins pins (0 where they have met them) and the columns of the recipe. */
static void hai_tiles_sample(hai_job *job, hai_tile *const *tiles, int n, int n_pins) {
  int wide = hai_recipe_of(job) == HAI_COLUMNS, capping = hai_capping(job->plan), i;
  hai_tiles_list(job, tiles, n, n_pins, capping ? -1 : wide);
  for (i = 0; i < n && capping; i++) {
    job->tile = tiles[i];
    hai_attend_columns_capped(job);
  }
}
static void hai_sample_meet(hai_job *job, hai_tile *const *tiles, int n) {
  hai_tiles_sample(job, tiles, n, hai_counts(job)[0]);
}

/* Stage ATTEND: HAI_TASK_QUERIES queries of a rectangle and head meet what was chosen for them, or every key.
   Those of a rectangle that is scanned are left to the scan. */
HAI_APART void hai_stage_attend(hai_job *job) {
  hai_index at = job->chunk * HAI_TASK_QUERIES, end = hai_min(at + HAI_TASK_QUERIES, job->rect.n_query);
  int is_each = hai_recipe_of(job) == HAI_EACH;
  if (hai_is_scanned(job)) return;
  hai_adopt_pairing(job);
  if (is_each) job->pairing = HAI_NO_BLOCKS; /* rows in their own order */
  hai_attend_rows(job, hai_sorted_open, is_each ? hai_rect_meet : hai_sample_meet, at, end);
}

/* ======== src/judging.h ======== */

/* ---- Judging: what held-out queries get from a choice, against what they get from all keys ----
   Held-out queries (heldout.h) first meet every key of their rectangle; what they get is the truth, in
   stages JUDGE and, for the report, WITNESS. They then meet what was chosen for them: the blocks of their
   query groups, the pins, and columns. The relative error of a choice is |out' - out| / |out| over all
   held-out queries of a rectangle and head, out' by the choice and out by all keys. Trials (trials.h)
   choose by it, and the audit (auditing.h) reports it. */

/* Floats of the states of one tile: m, l [lanes], o [value_dim][lanes]. */
static hai_index hai_state_floats(const hai_plan *plan) {
  return (2 + plan->value_dim) * plan->float_kernel->lanes;
}

/* Where the state of held-out query i over one chunk of keys begins: m, l, o [value_dim], stride lanes. */
static float *hai_truth_of(const hai_job *job, hai_index chunk, hai_index i) {
  hai_index lanes = job->plan->float_kernel->lanes;
  return hai_truth(job, chunk) + i / lanes * hai_state_floats(job->plan) + i % lanes;
}

static void hai_keep_truth(const hai_job *job, hai_index first) {
  hai_tile_save(job->tile, hai_truth_of(job, job->chunk, first));
}

/* Stages JUDGE and WITNESS: the states of all held-out queries over one chunk of keys. Reads queries,
   keys and values; writes truth, tiles of queries in the order of their rows. Cost: held-out queries *
   keys of the chunk. */
HAI_APART void hai_stage_judge(hai_job *job) {
  hai_meet_chunk(job, hai_n_held_out(job), hai_held_out_row, job->plan->value_dim, hai_job_judge_chunks(job),
                 hai_keep_truth);
}

/* Merges the states of HAI_MERGE_LANES lanes b into a. Lanes without a query have m = -inf, l = 0. */
static void hai_merge_states(float *a, const float *b, int lanes, hai_index value_dim) {
  float weight_a[HAI_MERGE_LANES], weight_b[HAI_MERGE_LANES], sum[HAI_MERGE_LANES];
  hai_index t;
  int i;
  for (i = 0; i < HAI_MERGE_LANES; i++) {
    float m = a[i] > b[i] ? a[i] : b[i], shift = m == -hai_inf() ? 0.0f : m;
    weight_a[i] = hai_exp(a[i] - shift);
    weight_b[i] = hai_exp(b[i] - shift);
    a[i] = m;
  }
  for (t = 1; t < 2 + value_dim; t++) {
    for (i = 0; i < HAI_MERGE_LANES; i++)
      sum[i] = a[t * lanes + i] * weight_a[i] + b[t * lanes + i] * weight_b[i];
    HYPERATTN_MEMCPY(a + t * lanes, sum, sizeof sum);
  }
}

/* Merges the truth of held-out queries first .. end - 1 over all chunks into that over the first; `first` is
   a multiple of HAI_MERGE_LANES. Cost: queries * value_dim * chunks. */
static void hai_gather_truth(const hai_job *job, int first, int end) {
  hai_index chunks = hai_job_judge_chunks(job), c;
  for (; first < end; first += HAI_MERGE_LANES)
    for (c = 1; c < chunks; c++)
      hai_merge_states(hai_truth_of(job, 0, first), hai_truth_of(job, c, first),
                       job->plan->float_kernel->lanes, job->plan->value_dim);
}

/* The scratch of TRY and AUDIT. */
typedef struct hai_judging_scratch {
  float *lse_blocks; /* [lanes]: each lane's lse over its blocks, */
  float *lse_pinned; /* [lanes]: and over its blocks and the pins */
} hai_judging_scratch;

static hai_judging_scratch hai_judging_scratch_of(const hai_job *job) {
  hai_judging_scratch scratch;
  scratch.lse_blocks = HAI_PLACE(float, job->scratch);
  scratch.lse_pinned = scratch.lse_blocks + job->plan->float_kernel->lanes;
  return scratch;
}

/* Opens the tile that begins with held-out query `first`, whose queries meet their blocks in job->pairing
   and the pins; what is to be compared, the columns, is left to the caller. Returns 0 if that is no query
   before `end`. Cost: O(queries of the tile * budget). */
static int hai_judge_open(hai_job *job, const hai_judging_scratch *scratch, int first, int end) {
  int n = hai_to_int(hai_min(job->plan->float_kernel->lanes, end - first)), i;
  if (n <= 0) return 0;
  job->tile->n_groups = 0;
  for (i = 0; i < n; i++) hai_tile_sorted(job, i, hai_held_out_place(job, first + i));
  hai_tile_open(job, n, job->plan->value_dim);
  hai_attend_blocks(job);
  hai_tile_lse(job->tile, scratch->lse_blocks);
  hai_attend_pins(job);
  hai_tile_lse(job->tile, scratch->lse_pinned);
  return 1;
}

/* x^2 of an x that is not 0: at least the smallest normal number, since an error that is rounded to 0
   would pass for none. */
static float hai_squared(float x) {
  float least = hai_float(0x00800000u);
  return x * x < least ? least : x * x;
}

/* e^(part - whole), the weight of a part's output in a whole of that lse; 0 where the whole is empty, where
   hai_share would be NaN. */
static float hai_weight_in(float part, float whole) {
  return whole == -hai_inf() ? 0.0f : hai_exp(part - whole);
}

/* One held-out query: its choice against the truth. */
typedef struct hai_comparison {
  float lse_chosen, lse_exact; /* over the rectangle: by the choice, by all keys */
  float lse_whole;             /* by all keys, with what comes before; NaN where nothing can be said */
  float squared_error;         /* |out' - out|^2 */
  float squared_norm;          /* |out|^2 */
} hai_comparison;

/* Compares lane i of the tile, which has met what was chosen for it, with the truth of its query (m, l, o,
   stride lanes). Both are merged first with what comes before: an output (NULL: 0) and its lse. */
static void hai_compare(const hai_job *job, int i, const float *truth, const float *out_before,
                        float lse_before, hai_comparison *c) {
  const hai_plan *plan = job->plan;
  const hai_tile *tile = job->tile;
  int lanes = plan->float_kernel->lanes;
  hai_index t;
  float lse_merged, weight_chosen, weight_exact, before_chosen, before_exact;
  c->lse_chosen = hai_state_lse(tile->m[i], tile->l[i]);
  c->lse_exact = hai_state_lse(truth[0], truth[lanes]);
  lse_merged = hai_log_add(c->lse_chosen, lse_before);
  c->lse_whole = hai_log_add(c->lse_exact, lse_before);
  weight_chosen = hai_weight_in(tile->m[i], lse_merged);
  weight_exact = hai_weight_in(truth[0], c->lse_whole);
  before_chosen = hai_weight_in(lse_before, lse_merged);
  before_exact = hai_weight_in(lse_before, c->lse_whole);
  c->squared_error = c->squared_norm = 0.0f;
  for (t = 0; t < plan->value_dim; t++) {
    float before = out_before ? out_before[t] : 0.0f;
    float chosen = tile->o[t * lanes + i] * weight_chosen + before * before_chosen;
    float exact = truth[(2 + t) * lanes] * weight_exact + before * before_exact;
    if (!hai_finite(exact)) c->lse_whole = hai_float(0x7fc00000u);
    c->squared_error += chosen == exact ? 0.0f : hai_squared(chosen - exact);
    c->squared_norm += exact == 0.0f ? 0.0f : hai_squared(exact);
  }
  if (!hai_finite(c->squared_error)) c->squared_error = hai_inf();
  if (!hai_finite(c->squared_norm)) c->squared_norm = hai_float(0x7f7fffffu);
}

/* ======== src/trials.h ======== */

/* ---- Trials: held-out queries try recipes ----
   The paper gives each query the keys of its block and a sample of the others. Which blocks help, and
   whether any do, depends on the head, so the judges, held-out queries, try for each rectangle and head
   in turn:

     1. columns alone: the wide draw, in which sampled keys take the places of block keys;
     2. blocks and columns, in the first pairing (in order of position, under HYPERATTN_ORDER_PROBED);
     3. blocks and columns in the second pairing, if there are two (sorted by hash).

   With tolerance 0 the number of keys is fixed, and the best of these is taken; trials end early when an
   error is so small that others would hardly improve on it (HAI_GOOD for columns alone, HAI_FAIR for
   blocks). With a tolerance the first that meets it is taken, and where every trial misses it the rectangle
   is scanned (scan.h), or in a build without the scan its queries meet all of its keys. Each trial is one
   run of stage TRY, preceded by what its pairing needs. */

/* Stage DRAFT: pairs those groups among this task's HAI_TASK_GROUPS that hold held-out queries, since a
   trial needs no others. Reads trials, and reads and writes what PAIR does. Cost: O(held-out queries), and
   PAIR's for the groups paired. */
HAI_APART void hai_stage_draft(hai_job *job) {
  hai_index n = job->rect.n_query, groups = hai_query_parts(job->plan, n, job->rect.n_key);
  uint64_t wanted = 0;
  int i;
  if (!hai_is_needed(job)) return;
  for (i = 0; i < hai_n_held_out(job); i++) {
    hai_index id = hai_part_of(n, groups, hai_held_out_place(job, i)) - job->chunk * HAI_TASK_GROUPS;
    if (id >= 0 && id < HAI_TASK_GROUPS) wanted |= UINT64_C(1) << id;
  }
  hai_pair_groups(job, wanted);
}

/* Adds what the tile that begins with held-out query `first` finds, after it has met the columns of the
   recipe. Its queries are judged by the rectangle's keys and their sinks alone: no choice depends on states,
   which may hold later keys than some of them see. */
HAI_APART void hai_try_tile(hai_job *job, hai_recipe recipe, int first, hai_finding *found) {
  hai_comparison c;
  int i;
  hai_attend_columns(job, recipe == HAI_COLUMNS);
  hai_tile_settle(job->tile);
  for (i = 0; i < job->tile->n; i++) {
    hai_compare(job, i, hai_truth_of(job, 0, first + i), HAI_NULL, hai_lane_sink(job, i), &c);
    if (c.lse_whole != c.lse_whole) continue;
    found->squared_error += c.squared_error;
    found->squared_norm += c.squared_norm;
  }
}

/* Stage TRY: some held-out queries try job->pairing's blocks (HAI_NO_BLOCKS: columns alone),
   unless the verdict is settled. Reads truth, choice, pins, columns and trials; writes what they found to
   trials, and in the first trial their merged truth to the first chunk's. Cost: O(queries * budget). */
HAI_APART void hai_stage_try(hai_job *job) {
  hai_recipe recipe = job->pairing == HAI_NO_BLOCKS ? HAI_COLUMNS : HAI_BLOCKS;
  int number = hai_trial_number(job->pairing), n = hai_trial_queries(number),
      first = hai_to_int(job->chunk) * n, end = hai_to_int(hai_min(first + n, hai_n_held_out(job)));
  hai_judging_scratch scratch = hai_judging_scratch_of(job);
  hai_finding found = {0.0f, 0.0f};
  if (number == (hai_trying_columns(job->plan) ? 0 : 1)) hai_gather_truth(job, first, end);
  if (hai_verdict_after(job, number).settled) return;
  for (; hai_judge_open(job, &scratch, first, end); first += job->tile->n)
    hai_try_tile(job, recipe, first, &found);
  hai_trials_of(job)->found[number][job->chunk] = found;
}

/* ======== src/auditing.h ======== */

/* ---- Auditing: what a rectangle's recipe is worth, for the report ----
   Auditors, held-out queries that had no part in the verdict either, compare what the recipe gives them
   with the truth. Each rectangle and head leaves a record; stage REPORT adds them up. */

/* The largest squared mass over the rectangle's chunks, which MASS left in the first probe's l. */
static float hai_largest_squared_mass(const hai_job *job) {
  hai_index chunks = hai_job_probe_chunks(job), c;
  float most = 0.0f;
  for (c = 0; c < chunks; c++) most = hai_partial(job, c)[1] > most ? hai_partial(job, c)[1] : most;
  return most;
}

/* The paper's alpha: n_key times the largest squared column norm of the normalised scores. Probes stand
   for all queries. */
static float hai_alpha(const hai_job *job) {
  hai_index probes = hai_n_probes(job);
  if (!job->plan->probing) return 0.0f;
  return HAI_AS(float, job->rect.n_key) * HAI_AS(float, job->rect.n_query) / HAI_AS(float, probes) *
         hai_largest_squared_mass(job);
}

/* Keys that a query of the rectangle meets by a recipe: pins, columns, and its blocks' keys on average. */
static float hai_keys_met(const hai_job *job, hai_recipe recipe) {
  hai_index n_blocks = hai_key_parts(job->plan, job->rect.n_key),
            taken = hai_min(job->plan->take, n_blocks);
  const int32_t *counts = hai_counts(job);
  float keys = HAI_AS(float, counts[0]) + HAI_AS(float, counts[recipe == HAI_BLOCKS ? 1 : 2]);
  if (recipe == HAI_EACH) return HAI_AS(float, job->rect.n_key);
  if (recipe == HAI_BLOCKS && n_blocks)
    keys += HAI_AS(float, job->rect.n_key) * HAI_AS(float, taken) / HAI_AS(float, n_blocks);
  return keys;
}

/* Over auditors: the extremes of lse outside the blocks. */
typedef struct hai_lse_range {
  float least, most;
} hai_lse_range;

/* lse over the rectangle's keys outside the query's blocks; -inf where rounding leaves none. */
static float hai_lse_outside(float lse_blocks, float lse_exact) {
  float inside = hai_exp(lse_blocks - lse_exact);
  return inside < 1.0f ? lse_exact + hai_log(1.0f - inside) : -hai_inf();
}

/* Records what one auditor found. Its row is -1, which leaves it out of the report, where sums are not
   finite. */
static void hai_record_query(const hai_job *job, const hai_comparison *c, int i, float lse_blocks,
                             float lse_pinned) {
  hai_record *record = hai_record_of(job);
  float share_blocks = hai_share(lse_blocks, c->lse_chosen);
  int is_good = hai_finite(c->lse_whole) && c->lse_chosen == c->lse_chosen &&
                c->lse_chosen < hai_inf(); /* -inf is good: the query met nothing */
  record->query[i].row = is_good ? hai_to_int(hai_held_out_row(job, i)) : -1;
  record->query[i].error = c->squared_error;
  record->query[i].norm = c->squared_norm;
  record->query[i].whole = c->lse_whole;
  record->query[i].rect = c->lse_chosen;
  record->query[i].blocks = share_blocks;
  record->query[i].pinned = hai_share(lse_pinned, c->lse_chosen) - share_blocks;
}

/* The tile that begins with auditor `first` meets the recipe's columns and compares. */
static void hai_audit_tile(hai_job *job, const hai_judging_scratch *scratch, int first,
                           hai_lse_range *outside) {
  hai_comparison c;
  int i;
  hai_tiles_sample(job, &job->tile, 1, 0);
  hai_tile_settle(job->tile);
  for (i = 0; i < job->tile->n; i++) {
    float lse;
    hai_compare(job, i, hai_truth_of(job, 0, first + i),
                hai_resumes(job->plan) ? job->tile->out[i] : HAI_NULL, hai_lane_before(job, i), &c);
    hai_record_query(job, &c, first + i, scratch->lse_blocks[i], scratch->lse_pinned[i]);
    lse = hai_lse_outside(scratch->lse_blocks[i], c.lse_exact);
    if (!hai_finite(lse)) continue;
    outside->least = lse < outside->least ? lse : outside->least;
    outside->most = lse > outside->most ? lse : outside->most;
  }
}

/* Stage AUDIT: the record of a rectangle and head. Reads truth, choice, pins, columns, trials, partial, lse
   and out; reads (places) and writes record. Cost: O(auditors * budget). */
HAI_APART void hai_stage_audit(hai_job *job) {
  hai_record *record = hai_record_of(job);
  hai_recipe recipe = hai_recipe_of(job);
  hai_lse_range outside;
  hai_judging_scratch scratch = hai_judging_scratch_of(job);
  int first;
  hai_adopt_pairing(job);
  record->recipe = HAI_AS(int32_t, recipe);
  record->tried = job->plan->choosing ? hai_verdict_of(job).tried : 0;
  record->n = hai_n_held_out(job);
  record->alpha = hai_alpha(job);
  record->keys = hai_keys_met(job, recipe);
  record->kappa = 1.0f;
  record->exact = recipe == HAI_EACH ? 1.0f : 0.0f;
  if (recipe == HAI_EACH) return; /* every key, or a scan, which tells its own errors (tallying.h) */
  outside.least = hai_inf();
  outside.most = -hai_inf();
  hai_gather_truth(job, 0, record->n);
  for (first = 0; hai_judge_open(job, &scratch, first, record->n); first += job->tile->n)
    hai_audit_tile(job, &scratch, first, &outside);
  if (outside.most >= outside.least) record->kappa = hai_exp(outside.most - outside.least);
}

/* ======== src/report.h ======== */

/* ---- The report: one head's records added up ---- */

/* Sum of |out|^2 over rows begin .. end - 1, without those that are not finite. Each HAI_TASK_ROWS rows
   are summed apart, since single rows would be lost in the rounding of a sum over millions. Cost: rows *
   value_dim. */
static float hai_squared_out(const hai_job *job, hai_index begin, hai_index end) {
  const hyperattn_problem *p = job->plan->problem;
  float sum = 0.0f;
  while (begin < end) {
    float part = 0.0f;
    hai_index stop = hai_min(end, begin + HAI_TASK_ROWS);
    for (; begin < stop; begin++) {
      const float *out = hai_read(job, hai_out_row(&p->out, job->batch, job->head, begin), p->out.dtype,
                                  job->plan->value_dim, job->tile->line);
      float row = job->plan->float_kernel->square(out, job->plan->value_dim);
      part += hai_finite(row) ? row : 0.0f;
    }
    sum += part;
  }
  return sum;
}

/* Sums over a head's rectangles, beside the report itself. */
typedef struct hai_report_sums {
  float products;      /* of a query and a key */
  float rects;         /* rectangles that were up for approximation */
  float squared_error; /* estimate of |out - exact|^2 over all rows, */
  float variance;      /* and of that estimate's variance */
  float squared_norm;  /* |exact|^2 over all rows */
} hai_report_sums;

/* Sums over the auditors of one rectangle. */
typedef struct hai_auditor_sums {
  float error, error_squares;       /* of squared errors, and of their squares */
  float squared_out, squared_exact; /* |out|^2 of the result, and by all keys of the rectangle */
} hai_auditor_sums;

/* Adds auditor i of a record, whose row stands for `share` of the head's rows. Keys that a row meets
   after the rectangle take weight from its error: e^(2 (lse after the rectangle - lse at last)). There
   are none after a row's last rectangle: a difference of the two is then the choice's error. */
static void hai_report_query(const hai_job *job, const hai_record *record, int i, int is_last, float share,
                             hai_auditor_sums *sums, hyperattn_report *r) {
  const float *lse = hai_stored_lse(job) + hai_flat_head(job) * job->plan->n_query;
  hai_index row = record->query[i].row;
  float lse_whole = record->query[i].whole, squared_error = record->query[i].error, later, share_rect;
  if (row < 0) return;
  later = !is_last && lse[row] > lse_whole ? hai_exp(2.0f * (lse_whole - lse[row])) : 1.0f;
  share_rect = share * hai_share(record->query[i].rect, lse[row]);
  sums->error += squared_error * later;
  sums->error_squares += squared_error * later * squared_error * later;
  if (squared_error > r->max_error * r->max_error * record->query[i].norm)
    r->max_error = hai_relative(squared_error, record->query[i].norm);
  sums->squared_out += hai_squared_out(job, row, row + 1);
  sums->squared_exact += record->query[i].norm;
  r->block_mass += share_rect * record->query[i].blocks;
  r->pinned_mass += share_rect * record->query[i].pinned;
  r->sampled_mass += share_rect * (1.0f - record->query[i].blocks - record->query[i].pinned);
}

/* Adds a rectangle to a head's report. is_last: whether its rows meet no rectangle after it. Each of its
   n auditors stands for n_query / n rows; the variance is that of a total estimated from a sample drawn
   without replacement. Returns |exact|^2 over |out|^2, as the auditors see it. */
static float hai_report_rect(const hai_job *job, const hai_record *record, int is_last, hai_report_sums *sums,
                             hyperattn_report *r) {
  float rows_each = HAI_AS(float, job->rect.n_query) / HAI_AS(float, record->n),
        share = rows_each / HAI_AS(float, job->plan->n_query);
  hai_auditor_sums of = {0.0f, 0.0f, 0.0f, 0.0f};
  int i;
  r->alpha = record->alpha > r->alpha ? record->alpha : r->alpha;
  r->kappa = record->kappa > r->kappa ? record->kappa : r->kappa;
  if (record->exact == 1.0f) return 1.0f; /* and no query was compared */
  for (i = 0; i < record->n; i++) hai_report_query(job, record, i, is_last, share, &of, r);
  sums->squared_error += rows_each * of.error;
  if (record->n > 1)
    sums->variance += (1.0f - 1.0f / rows_each) * rows_each * rows_each *
                      (of.error_squares - of.error * of.error / HAI_AS(float, record->n)) *
                      HAI_AS(float, record->n) / HAI_AS(float, record->n - 1);
  return of.squared_out > 0.0f && of.squared_exact > 0.0f ? of.squared_exact / of.squared_out : 1.0f;
}

/* Products of a rectangle's probing, judging and pairing. What the report itself takes is not counted. */
static float hai_choosing_products(const hai_job *job, const hai_record *record) {
  const hai_plan *plan = job->plan;
  hai_index n_query = job->rect.n_query, n_key = job->rect.n_key, judges = hai_n_held_out(job);
  hai_index probed = hai_n_probes(job);
  uint64_t paired = hai_pairing_products(plan, n_query, n_key);
  float meet_all = plan->probing ? HAI_AS(float, probed) : 0.0f, products = 0.0f;
  if (plan->choosing) meet_all += HAI_AS(float, judges);
  if (record->recipe == HAI_BLOCKS) products = HAI_AS(float, paired);
  /* trials pair only the groups of the judges */
  if (judges < hai_query_parts(plan, n_query, n_key)) n_query = judges * plan->query_group;
  paired = hai_pairing_products(plan, n_query, n_key);
  products += HAI_AS(float, record->tried) * HAI_AS(float, paired);
  return HAI_AS(float, n_key) * meet_all + products;
}

/* Products before any rectangle, for one head. Cost: n_query. */
static float hai_exact_products(const hai_plan *plan) {
  hai_index row, first, last;
  int64_t met = 0;
  for (row = 0; row < plan->n_query && hai_meets_exactly(plan); row++) {
    hai_exact_keys(plan, row, &first, &last);
    met += hai_max(0, last - first + 1);
  }
  return HAI_AS(float, met);
}

/* Adds job->rect. Returns |exact|^2 over |out|^2 for its rows. */
static float hai_report_add(const hai_job *job, int is_last, hai_report_sums *sums, hyperattn_report *r) {
  const hai_plan *plan = job->plan;
  const hai_record *record;
  float n_query = HAI_AS(float, job->rect.n_query);
  if (plan->outer_exact && job->level >= plan->depth) { /* it was never up for approximation */
    sums->products += n_query * HAI_AS(float, job->rect.n_key);
    return 1.0f;
  }
  record = hai_record_of(job);
  sums->rects += 1.0f;
  r->exact += record->exact;
  r->escalated += record->recipe == HAI_EACH ? 1.0f : 0.0f;
  sums->products += hai_choosing_products(job, record) + n_query * record->keys;
  return hai_report_rect(job, record, is_last, sums, r);
}

/* Adds all rectangles of a head. Levels run from the diagonal outward, so a row's last rectangle is the
   outer one, or, without an outer one, its level's first. Rows that are in no rectangle are exact. */
static void hai_report_rects(hai_job *job, hai_report_sums *sums, hyperattn_report *r) {
  const hai_plan *plan = job->plan;
  hai_index index, n, exact_rows = plan->n_query;
  for (job->level = 0; job->level < hai_plan_levels(plan); job->level++) {
    n = hai_plan_rects(plan, job->level);
    for (index = 0; index < n; index++) {
      int is_last = !index && !(plan->outer && job->level < plan->depth);
      float ratio;
      hai_rect_set(&job->rect, plan, job->level, index);
      ratio = hai_report_add(job, is_last, sums, r);
      if (!is_last) continue;
      sums->squared_norm +=
          ratio * hai_squared_out(job, job->rect.query_begin, job->rect.query_begin + job->rect.n_query);
      exact_rows = hai_min(exact_rows, job->rect.query_begin);
    }
  }
  sums->squared_norm += hai_squared_out(job, 0, exact_rows);
}

/* Stage REPORT: one head's report. Reads records, lse and the result; writes problem.report. Cost:
   O(n_query * value_dim). */
HAI_APART void hai_stage_report(hai_job *job) {
  const hai_plan *plan = job->plan;
  hyperattn_report r;
  hai_report_sums sums = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  HYPERATTN_MEMSET(&r, 0, sizeof r);
  sums.products = hai_exact_products(plan);
  hai_report_rects(job, &sums, &r);
  /* A few queries hold most of an error, and a sample misses them more often than not, so the estimate is
     raised by its own standard deviation. */
  sums.squared_error += hai_sqrt(sums.variance);
  r.error = hai_relative(sums.squared_error, sums.squared_norm);
  r.keys_per_query = plan->n_query ? sums.products / HAI_AS(float, plan->n_query) : 0.0f;
  r.window_mass = 1.0f - r.block_mass - r.pinned_mass - r.sampled_mass;
  if (r.window_mass < 0.0f) r.window_mass = 0.0f; /* rounding */
  if (sums.rects > 0.0f) {
    r.exact /= sums.rects;
    r.escalated /= sums.rects;
    if (r.exact < 1.0f) r.error_median = r.error_99 = r.error_999 = hai_inf(); /* too few queries to tell */
  }
  plan->problem->report[hai_flat_head(job)] = r;
}

/* ======== src/tallying.h ======== */

/* ---- Tallying: the report of a scan ----
   Every query has estimated its own error, and every task has counted: the report adds up. Of a rectangle
   under HYPERATTN_HYPER the auditors' errors go into its record. */

#if HAI_SCAN
/* The number of which `rank` of x [n] are smaller, by bisection of its bits, which order as numbers of one
   sign do. Cost: 31 n. */
static float hai_ranked(const float *x, hai_index n, hai_index rank) {
  uint32_t low = 0, bit;
  for (bit = 1u << 30; bit; bit >>= 1) {
    hai_index below = 0, i;
    for (i = 0; i < n; i++) below += hai_bits(x[i]) < (low | bit);
    if (below <= rank) low |= bit;
  }
  return hai_float(low);
}

/* A quantile of n numbers: `of_1000` thousandths of them are smaller. */
static float hai_quantile(const float *x, hai_index n, hai_index of_1000) {
  return n ? hai_ranked(x, n, hai_min(n - 1, hai_cut(n, 1000, of_1000))) : 0.0f;
}

/* Closes a head's report, of which shares, keys and what was doubled are set: the errors [n_query] of its
   queries, and what is left of the attention. Cost: O(n_query * value_dim). */
static void hai_report_close(const hai_job *job, const float *errors, hyperattn_report *r) {
  hai_index n = job->plan->n_query, row;
  float squared_error = 0.0f, squared_norm = 0.0f;
  for (row = 0; row < n; row++) {
    float norm = hai_squared_out(job, row, row + 1);
    r->max_error = errors[row] > r->max_error ? errors[row] : r->max_error;
    squared_norm += norm;
    squared_error += errors[row] == 0.0f ? 0.0f : errors[row] * errors[row] * norm;
  }
  r->error = hai_relative(squared_error, squared_norm);
  r->error_median = hai_quantile(errors, n, 500);
  r->error_99 = hai_quantile(errors, n, 990);
  r->error_999 = hai_quantile(errors, n, 999);
  r->escalated = r->doubled;
  r->window_mass = 1.0f - r->pinned_mass - r->sampled_mass;
  if (r->window_mass < 0.0f) r->window_mass = 0.0f; /* rounding */
  job->plan->problem->report[hai_flat_head(job)] = *r;
}

/* Sets what the tasks of the job's rectangle have counted: shares of its queries and of their attention, keys
   that they meet, queries that met every key. Everything else in r is 0. */
static void hai_tally_tasks(const hai_job *job, hyperattn_report *r) {
  const hai_tally *tally = hai_tallies(job);
  hai_index task, index, first, last, missed = hai_missed_rows(job), exact = missed, mended = 0;
  float rows = HAI_AS(float, job->rect.n_query);
  HYPERATTN_MEMSET(r, 0, sizeof *r);
  for (task = 0; task < hai_scan_tasks(job->rect.n_query); task++) {
    exact += tally[task].exact;
    r->doubled += HAI_AS(float, tally[task].doubled) / rows;
    r->keys_per_query += tally[task].met / rows;
    r->pinned_mass += tally[task].pinned / rows;
    r->sampled_mass += tally[task].sampled / rows;
  }
  for (index = 0; index < missed; index++) {
    hai_rect_keys(job->plan, hai_missed_row(job, index), &first, &last);
    mended += hai_rect_seen(job, last);
  }
  r->keys_per_query += HAI_AS(float, mended) / rows;
  r->exact = HAI_AS(float, exact) / rows;
}

/* The record's auditor i: what it estimates of itself, after its rectangle, of which `of` tells how much
   attention pins and sample have on average. */
static void hai_note_query(const hai_job *job, const hyperattn_report *of, int i) {
  hai_record *record = hai_record_of(job);
  hai_index row = hai_held_out_row(job, i);
  float lse = hai_stored_lse(job)[hai_flat_head(job) * job->plan->n_query + row];
  float error = hai_errors(job)[row], norm = hai_squared_out(job, row, row + 1);
  float share = of->pinned_mass + of->sampled_mass;
  record->query[i].row = hai_finite(lse) ? hai_to_int(row) : -1;
  record->query[i].error = error * error * norm;
  record->query[i].norm = norm;
  record->query[i].whole = lse;
  record->query[i].rect = share > 0.0f ? lse + hai_log(share) : -hai_inf();
  record->query[i].blocks = 0.0f;
  record->query[i].pinned = share > 0.0f ? of->pinned_mass / share : 0.0f;
}

/* Stage NOTE: the record of a rectangle and head that was scanned. Reads the tallies, the errors, lse and the
   result. Cost: O(auditors * value_dim). */
HAI_APART void hai_stage_note(hai_job *job) {
  hai_record *record = hai_record_of(job);
  hyperattn_report r;
  int i;
  if (!hai_is_scanned(job)) return;
  hai_tally_tasks(job, &r);
  record->keys = r.keys_per_query;
  record->exact = r.exact;
  for (i = 0; i < record->n; i++) hai_note_query(job, &r, i);
}

/* Stage TALLY: one head's report. Reads the tallies, the errors and the result; writes problem.report. */
HAI_APART void hai_stage_tally(hai_job *job) {
  hyperattn_report r;
  hai_tally_tasks(job, &r);
  hai_report_close(job, hai_errors(job), &r);
}
#endif

/* ---- Of lookups ---- */

#if HAI_INDEX
/* Stage RECOUNT: one head's report, from how each of its queries fared. */
HAI_APART void hai_stage_recount(hai_job *job) {
  const hai_plan *plan = job->plan;
  hyperattn_report r;
  float rows = HAI_AS(float, plan->n_query), error[HAI_LOOK_QUERIES] = {0};
  hai_index row, first, last;
  HYPERATTN_MEMSET(&r, 0, sizeof r);
  for (row = 0; row < plan->n_query; row++) {
    const hai_met *met = hai_met_of(job, job->head, row);
    hai_seen_keys(plan, row, &first, &last);
    r.exact += HAI_AS(float, met->exact) / rows;
    r.doubled += HAI_AS(float, met->doubled) / rows;
    r.keys_per_query += HAI_AS(float, met->exact ? hai_to_int(last + 1) : met->keys) / rows;
    if (met->exact) continue;
    error[row] = met->error;
    r.pinned_mass += met->pinned / rows;
    r.sampled_mass += met->sampled / rows;
  }
  hai_report_close(job, error, &r);
}
#endif

/* ======== src/stages.h ======== */

/* Stages. The table of stages: a row for each function that tasks run, in the order in which they run. A
   stage that is about the blocks of one pairing has a row for each. Everything else about a stage is a
   column, given by the functions below or by the stage's own file. */

typedef enum hai_when { HAI_BEFORE, HAI_PER_LEVEL, HAI_AFTER } hai_when; /* ..the levels */

/* Who a task is about, besides an element of the batch: a kv head, a query head, or either. */
enum { HAI_KV_HEADS = 1, HAI_HEADS = 2 };

/* What sets a stage apart: its held-out queries are those of the report; it also runs for a rectangle that is
   attended exactly, where nothing is chosen; it runs beside the stage before it, whichever the call wants,
   which may be the last of the level before: tasks of neither write what those of the other touch. */
enum { HAI_PLAIN = 0, HAI_AUDITS = 1, HAI_ALSO_EXACT = 2, HAI_BESIDE = 4 };

typedef struct hai_stage {
  void (*run)(hai_job *job); /* NULL in a build that leaves the stage out */
  /* Whether a call wants it. Called only for pairings in use. */
  int (*wanted)(const hai_plan *plan, int pairing);
  /* Tasks of a head in a rectangle, or before and after the levels in the call, of so many rows. */
  hai_index (*chunks)(const hai_plan *plan, hai_index n_query, hai_index n_key);
  size_t (*scratch)(const hai_plan *plan); /* bytes of a worker that it needs beside the tile */
  unsigned char when, pairing, axes, traits;
#ifdef HYPERATTN_STAGE_NAMES
  const char *name; /* only in builds that print it: the benchmark */
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
  return hai_meets_exactly(plan) && !hai_is_few(plan) && !hai_scanning(plan);
}
#if HAI_SCAN
static int hai_wants_sketch(const hai_plan *plan, int pairing) {
  (void)pairing;
  return hai_sketching(plan);
}
static int hai_wants_scan(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->scanning;
}
static int hai_wants_rect_scan(const hai_plan *plan, int pairing) {
  (void)pairing;
  return hai_scans_rects(plan);
}
static int hai_wants_note(const hai_plan *plan, int pairing) {
  (void)pairing;
  return hai_scans_rects(plan) && plan->reporting;
}
static int hai_wants_mend(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->scanning && plan->params->tolerance > 0.0f;
}
static int hai_wants_tally(const hai_plan *plan, int pairing) {
  (void)pairing;
  return plan->scanning && plan->reporting;
}
#endif
static int hai_wants_few(const hai_plan *plan, int pairing) {
  (void)pairing;
  return hai_is_few(plan);
}
static int hai_wants_merge(const hai_plan *plan, int pairing) {
  (void)pairing;
  return hai_is_few(plan) && hai_few_parts(plan) > 1;
}
#if HAI_INDEX
static int hai_wants_look(const hai_plan *plan, int pairing) {
  (void)pairing;
  return hai_looking(plan);
}
static int hai_wants_recount(const hai_plan *plan, int pairing) {
  (void)pairing;
  return hai_looking(plan) && plan->reporting;
}
#endif
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
  return plan->reporting && !hai_scanning(plan) && !hai_looking(plan);
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
#if HAI_SCAN
/* None where no rectangle of the call is up for approximation. */
static hai_index hai_cut_sketch(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  int is_read = hai_scanning(plan) || hai_plan_levels(plan) > plan->outer_exact;
  (void)n_query;
  return is_read ? hai_ceil_div(n_key, HAI_TASK_ROWS) : 0;
}
static hai_index hai_cut_scan(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  (void)n_key;
  return hai_scan_tasks(n_query);
}
#endif
/* Some rows of all heads that share a kv head, by a part of the keys. */
static hai_index hai_cut_few(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)n_query;
  (void)n_key;
  return hai_few_row_tasks(plan) * hai_few_parts(plan);
}
#if HAI_INDEX
static hai_index hai_cut_spans(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)n_query;
  (void)n_key;
  return hai_look_spans(plan);
}
static hai_index hai_cut_meetings(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)n_key;
  return n_query * hai_meet_tasks(plan);
}
#endif
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
static hai_index hai_cut_probes(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)n_key;
  return hai_ceil_div(hai_min(plan->probe_queries, n_query), HAI_SUM_PROBES);
}
/* The draw, and the wide draw. */
static hai_index hai_cut_draws(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  (void)n_query;
  (void)n_key;
  return 2;
}
static hai_index hai_cut_judges(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  (void)n_key;
  return hai_ceil_div(hai_min(HAI_JUDGES, n_query), hai_trial_queries(0));
}
static hai_index hai_cut_block_judges(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  (void)plan;
  (void)n_key;
  return hai_ceil_div(hai_min(HAI_JUDGES, n_query), hai_trial_queries(1));
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
#if HAI_SCAN
/* A list of rows, a centre, and a block of keys or values. */
static size_t hai_scratch_sketch(const hai_plan *plan) {
  hai_index dim = hai_max(plan->head_dim, plan->value_dim);
  return HAI_CHUNK * sizeof(float *) + HAI_AS(size_t, plan->value_dim + HAI_CHUNK * dim) * sizeof(float);
}
static size_t hai_scratch_scan(const hai_plan *plan) {
  return hai_plus(hai_scratch_tiles(plan), hai_scan_bytes(plan));
}
#endif
/* Few queries overlay the tile's memory; this is what exceeds it. */
static size_t hai_scratch_few(const hai_plan *plan) {
  size_t bytes = hai_few_bytes(plan);
  return bytes - hai_least(bytes, hai_chunk_bytes(plan) + hai_tile_bytes(plan));
}
#if HAI_INDEX
static size_t hai_scratch_look(const hai_plan *plan) {
  size_t words = HAI_AS(size_t, hai_block_layout_of(plan->head_dim).words);
  return sizeof(hai_look_group) + HAI_AS(size_t, plan->head_dim) * sizeof(float) +
         HAI_FEW_ROWS * words * sizeof(int32_t);
}
static size_t hai_scratch_meet(const hai_plan *plan) {
  size_t bytes = hai_meet_bytes(plan);
  return bytes - hai_least(bytes, hai_chunk_bytes(plan) + hai_tile_bytes(plan));
}
#endif
/* Random planes: [lsh_bits][head_dim]. */
static size_t hai_scratch_planes(const hai_plan *plan) {
  return HAI_AS(size_t, plan->params->lsh_bits) * HAI_AS(size_t, plan->head_dim) * sizeof(float);
}
/* Bucket counters overlay the tile's memory; this is what exceeds it. */
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
/* lse after blocks and after pins [lanes]. */
static size_t hai_scratch_judges(const hai_plan *plan) {
  return 2 * HAI_AS(size_t, plan->float_kernel->lanes) * sizeof(float);
}

/* ---- The table ---- */

/* A row. What a build leaves out is NULL, so that compilers drop it. */
#define HAI_IF(build, what) (build) ? (what) : HAI_NULL
#ifdef HYPERATTN_STAGE_NAMES
#define HAI_NAME(name) , name
#else
#define HAI_NAME(name)
#endif
/* clang-format off */
#define HAI_STAGE(when, build, name, run, pairing, axes, traits, wanted, chunks, scratch) \
  {HAI_IF(build, run), HAI_IF(build, wanted), HAI_IF(build, chunks), HAI_IF(build, scratch), \
   when, pairing, axes, traits HAI_NAME(name)}

/* Cheap choices are tried before expensive ones, and trials of a rectangle that is settled do nothing. A
   trial pairs only the groups of the held-out queries; what was chosen is then paired for all. */
static const hai_stage hai_stages[] = {
  HAI_STAGE(HAI_BEFORE, 1, "exact", hai_stage_exact, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_exact, hai_cut_shared_queries, hai_scratch_tiles),
#if HAI_INDEX
  HAI_STAGE(HAI_BEFORE, 1, "look", hai_stage_look, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_look, hai_cut_spans, hai_scratch_look),
  HAI_STAGE(HAI_BEFORE, 1, "meet", hai_stage_meet, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_look, hai_cut_meetings, hai_scratch_meet),
#endif
  HAI_STAGE(HAI_BEFORE, HAI_FEW, "few", hai_stage_few, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_few, hai_cut_few, hai_scratch_few),
  HAI_STAGE(HAI_BEFORE, HAI_FEW, "merge", hai_stage_merge, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_merge, hai_cut_nothing, hai_scratch_few),
#if HAI_SCAN
  HAI_STAGE(HAI_BEFORE, 1, "sketch", hai_stage_sketch, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_sketch, hai_cut_sketch, hai_scratch_sketch),
  HAI_STAGE(HAI_BEFORE, 1, "scan", hai_stage_scan, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_scan, hai_cut_scan, hai_scratch_scan),
  HAI_STAGE(HAI_BEFORE, 1, "mend", hai_stage_mend, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_mend, hai_cut_queries, hai_scratch_tiles),
#endif

  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "hash", hai_stage_hash, 0, HAI_KV_HEADS | HAI_HEADS, HAI_PLAIN,
            hai_wants_order, hai_cut_rows, hai_scratch_planes),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "order", hai_stage_order, 0, HAI_KV_HEADS | HAI_HEADS, HAI_PLAIN,
            hai_wants_order, hai_cut_nothing, hai_scratch_counters),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "probe", hai_stage_probe, 0, HAI_HEADS, HAI_BESIDE,
            hai_wants_probes, hai_cut_probed_keys, hai_scratch_tiles),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "sum", hai_stage_sum, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_probes, hai_cut_probes, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "mass", hai_stage_mass, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_probes, hai_cut_probed_keys, hai_scratch_tiles),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "pin", hai_stage_pin, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_always, hai_cut_nothing, hai_scratch_heavy),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "weigh", hai_stage_weigh, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_weights, hai_cut_probed_keys, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "columns", hai_stage_columns, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_always, hai_cut_draws, hai_scratch_none),

  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "judge", hai_stage_judge, 0, HAI_HEADS, HAI_BESIDE,
            hai_wants_judges, hai_cut_judged_keys, hai_scratch_tiles),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "try", hai_stage_try, HAI_NO_BLOCKS, HAI_HEADS, HAI_PLAIN,
            hai_wants_judges, hai_cut_judges, hai_scratch_judges),
  HAI_STAGE(HAI_PER_LEVEL, HAI_HYPER, "means", hai_stage_means, 0, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_scores, hai_cut_blocks, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "draft", hai_stage_draft, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_draft, hai_cut_groups, hai_scratch_pairing),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "try", hai_stage_try, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_judges, hai_cut_block_judges, hai_scratch_judges),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "hash", hai_stage_hash, 1, HAI_KV_HEADS | HAI_HEADS, HAI_PLAIN,
            hai_wants_order, hai_cut_rows, hai_scratch_planes),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "order", hai_stage_order, 1, HAI_KV_HEADS | HAI_HEADS, HAI_PLAIN,
            hai_wants_order, hai_cut_nothing, hai_scratch_counters),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "means", hai_stage_means, 1, HAI_KV_HEADS, HAI_PLAIN,
            hai_wants_scores, hai_cut_blocks, hai_scratch_none),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "draft", hai_stage_draft, 1, HAI_HEADS, HAI_PLAIN,
            hai_wants_draft, hai_cut_groups, hai_scratch_pairing),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "try", hai_stage_try, 1, HAI_HEADS, HAI_PLAIN,
            hai_wants_judges, hai_cut_block_judges, hai_scratch_judges),

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
#if HAI_SCAN
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "scan", hai_stage_scan, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_rect_scan, hai_cut_scan, hai_scratch_scan),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "mend", hai_stage_mend, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_rect_scan, hai_cut_queries, hai_scratch_tiles),
  HAI_STAGE(HAI_PER_LEVEL, HAI_JUDGING, "note", hai_stage_note, 0, HAI_HEADS, HAI_AUDITS,
            hai_wants_note, hai_cut_nothing, hai_scratch_none),
#endif

  HAI_STAGE(HAI_AFTER, HAI_REPORTS, "report", hai_stage_report, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_report, hai_cut_nothing, hai_scratch_none),
#if HAI_SCAN
  HAI_STAGE(HAI_AFTER, HAI_REPORTS, "tally", hai_stage_tally, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_tally, hai_cut_nothing, hai_scratch_none),
#endif
#if HAI_INDEX
  HAI_STAGE(HAI_AFTER, HAI_REPORTS, "recount", hai_stage_recount, 0, HAI_HEADS, HAI_PLAIN,
            hai_wants_recount, hai_cut_nothing, hai_scratch_none),
#endif
};
/* clang-format on */

enum { HAI_N_STAGES = sizeof hai_stages / sizeof *hai_stages };
typedef char hai_plan_holds_all_stages[HAI_N_STAGES <= HAI_MAX_STAGES ? 1 : -1];

/* ======== src/resolve.h ======== */

/* Resolution. From a problem and parameters to a plan. */

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

/* Does a sliding window hide any key? Where it does, it is below n_key or n_query. */
static int hai_slides(const hyperattn_problem *p) {
  return p->sliding_window &&
         (p->n_key > p->sliding_window || (!p->causal && p->n_query > p->sliding_window));
}

/* The problem's shape. */
static void hai_resolve_shape(hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  plan->n_heads = hai_to_index(p->n_heads);
  plan->n_kv_heads = hai_to_index(p->n_kv_heads);
  plan->n_query = hai_to_index(p->n_query);
  plan->n_key = hai_to_index(p->n_key);
  plan->head_dim = hai_to_index(p->head_dim);
  plan->value_dim = hai_to_index(p->value_dim);
  plan->heads_per_kv = plan->n_heads / plan->n_kv_heads;
  plan->reporting = HAI_REPORTS && p->report;
  plan->sliding = HAI_SLIDING && hai_slides(p) ? hai_to_index(p->sliding_window) : 0;
}

/* The parameters, and what follows from them. */
static void hai_resolve_params(hai_plan *plan) {
  const hyperattn_params *p = plan->params;
  int is_free = !hai_sliding(plan) && !hai_masking(plan);
  int may_scan = HAI_SCAN && p->method == HYPERATTN_SCAN && is_free;
  plan->min_seq_len = hai_clamp(p->min_seq_len, HAI_MAX_INDEX + 1);
  plan->block_size = hai_clamp(p->block_size, plan->n_key);
  plan->sample_size = hai_clamp(p->sample_size, plan->n_key);
  plan->heavy_keys = hai_clamp(p->heavy_keys, plan->n_key);
  plan->sink_keys = hai_clamp(p->sink_keys, plan->n_key);
  plan->probe_queries = hai_clamp(p->probe_queries, plan->n_query);
  plan->hyper = HAI_HYPER && p->method == HYPERATTN_HYPER && is_free;
#if HAI_INDEX
  plan->looking = hai_may_look(plan) && plan->n_query <= hai_most_looked(plan);
#endif
  plan->window = plan->problem->causal && (plan->hyper || may_scan) ? hai_clamp(p->window, plan->n_key) : 0;
#if HAI_SCAN
  plan->scanning = may_scan && hai_scan_pays(plan, hai_scanned_keys(plan, plan->n_query - 1));
#endif
  plan->choosing = HAI_JUDGING && hai_choosing(p);
#if HAI_SCAN
  plan->scans_rects = plan->choosing && p->tolerance > 0.0f && hai_may_approximate(plan) &&
                      hai_scan_pays(plan, plan->n_key / HAI_CHUNK * HAI_CHUNK);
#endif
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
  plan->max_pins = hai_min(plan->sink_keys + plan->heavy_keys, plan->n_key);
  plan->max_wide = hai_trying_columns(plan) ? hai_min(plan->sample_size + plan->block_size, plan->n_key) : 0;
  plan->weighing =
      (plan->sample_size > 0 || hai_trying_columns(plan)) && p->sampling != HYPERATTN_SAMPLE_UNIFORM;
}

/* Whole tiles of the held-out queries of a rectangle. */
static hai_index hai_truth_floats(const hai_plan *plan) {
  hai_index most = plan->reporting ? HAI_AUDITORS : HAI_JUDGES, lanes = plan->float_kernel->lanes;
  return hai_ceil_div(hai_min(most, plan->n_query), lanes) * lanes * (2 + plan->value_dim);
}

/* How the problem is cut, and what of it is approximated. */
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
  /* without a cut, prefix and square are attended exactly as one segment; so is exact full attention */
  worth = plan->key_skip > 0 && hai_worth(plan, plan->n_query, plan->key_skip);
  plan->outer = plan->key_skip > 0 && (worth || plan->depth > 0);
  plan->outer_exact = plan->outer && !worth;
  if (!causal) plan->key_skip = 0;
  plan->max_rects = plan->depth ? hai_power_of_2(plan->depth - 1) : 1;
}

/* The stages that a call needs. Stages of levels are counted even if this call has no levels, as long as
   hai_may_approximate, so that the size of scratch never falls as inputs grow. */
static void hai_resolve_stages(hai_plan *plan) {
  unsigned char *count[] = {&plan->n_before, &plan->n_per_level, &plan->n_after}; /* by hai_when */
  int may_approximate = hai_may_approximate(plan), n = 0, i;
  plan->n_before = plan->n_per_level = plan->n_after = plan->n_beside = 0;
  for (i = 0; i < HAI_N_STAGES; i++) {
    const hai_stage *stage = &hai_stages[i];
    int has_pairing = stage->pairing == HAI_NO_BLOCKS || stage->pairing < plan->n_pairings;
    if (!may_approximate && stage->when == HAI_PER_LEVEL) continue;
    if (!stage->run || !has_pairing || !stage->wanted(plan, stage->pairing)) continue;
    plan->stages[n++] = HAI_AS(unsigned char, i);
    ++*count[stage->when];
    if (stage->traits & HAI_BESIDE) plan->n_beside++;
  }
  plan->begins_beside = !plan->n_before && hai_plan_levels(plan) &&
                        (hai_stages[plan->stages[0]].traits & HAI_BESIDE);
}

/* Bytes of a worker: what its tiles share, a tile, and what any stage needs beside them. */
static size_t hai_worker_bytes(const hai_plan *plan) {
  size_t most = 0;
  int i, n = plan->n_before + plan->n_per_level + plan->n_after;
  for (i = 0; i < n; i++) most = hai_most(most, hai_stages[plan->stages[i]].scratch(plan));
  if (HAI_FEW) most = hai_most(most, hai_scratch_few(plan)); /* a call of fewer queries may need it */
#if HAI_INDEX
  if (hai_may_look(plan)) { /* and so may one of more queries, or fewer keys */
    most = hai_most(most, hai_most(hai_scratch_look(plan), hai_scratch_meet(plan)));
    most = hai_most(most, hai_scratch_tiles(plan));
  }
#endif
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

/* What follows from a plan's shape, parameters and kernels. */
HAI_APART void hai_resolve_rest(hai_plan *plan) {
  hai_resolve_params(plan);
  hai_resolve_regions(plan);
  plan->truth_floats = hai_truth_floats(plan);
  hai_resolve_stages(plan);
  hai_resolve_layout(plan);
}

/* The rest, where a sliding window hides keys. That makes a call exact; in a shorter call the same window may
   hide none, and rectangles are approximated, which takes more memory. So that sizes do not fall as lengths
   rise, the layout is no smaller than that of the longest such call. */
static void hai_resolve_sliding(hai_plan *plan) {
  hai_layout *y = &plan->layout;
  hai_index n_query = plan->n_query, n_key = plan->n_key, sliding = plan->sliding;
  size_t scratch, scratch_bytes;
  int overflow;
  plan->sliding = 0;
  plan->n_key = hai_min(n_key, sliding);
  if (!plan->problem->causal) plan->n_query = hai_min(n_query, sliding);
  hai_resolve_rest(plan);
  scratch = y->scratch;
  scratch_bytes = y->scratch_bytes;
  overflow = y->overflow;
  plan->n_query = n_query;
  plan->n_key = n_key;
  plan->sliding = sliding;
  hai_resolve_rest(plan);
  y->scratch = hai_most(y->scratch, scratch);
  y->scratch_bytes = hai_most(y->scratch_bytes, scratch_bytes);
  y->overflow |= overflow;
}

/* All that is to be known of a call without reading a tensor or a stride. Of pointers, it counts whether
   mask.data, report and query_error are NULL. */
HAI_APART hyperattn_status hai_resolve(hai_plan *plan, const hyperattn_problem *problem,
                                       const hyperattn_params *params) {
  hyperattn_status status;
  hyperattn_isa isa;
  int bf16;
  if (!problem) return HYPERATTN_ERROR_NULL_PROBLEM;
  if (!params) return HYPERATTN_ERROR_NULL_PARAMS;
  if ((status = hai_check_shape(problem)) != HYPERATTN_OK) return status;
  if ((status = hai_check_params(params, problem->causal)) != HYPERATTN_OK) return status;
  if (HAI_SCAN && problem->query_error && params->method == HYPERATTN_HYPER)
    return HYPERATTN_ERROR_QUERY_ERROR;
  if (hai_too_many(problem)) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  isa = params->isa;
  bf16 = hai_all_bf16(problem);
  plan->problem = problem;
  plan->params = params;
  hai_resolve_shape(plan);
  plan->float_kernel = hai_kernel_of(isa);
  plan->scan_kernel = hai_scan_kernel_of(plan->float_kernel);
  plan->scale = hai_scale_of(problem, plan->float_kernel);
  plan->kernel = bf16 ? hai_kernel_of_bf16(isa, plan->head_dim, plan->value_dim) : HAI_NULL;
  plan->may_use_amx = bf16 && hai_may_use_amx(isa, plan->head_dim, plan->value_dim);
  if (!plan->kernel) plan->kernel = plan->float_kernel;
  if (hai_sliding(plan))
    hai_resolve_sliding(plan);
  else
    hai_resolve_rest(plan);
  return plan->layout.overflow ? HYPERATTN_ERROR_SIZE_OVERFLOW : HYPERATTN_OK;
}

/* ======== src/phases.h ======== */

/* Phases. A step is a stage at a level, or before or after the levels, in the order in which they run; a
   phase is a step with those behind it that may run beside it. A task is (step, batch, head, rectangle,
   chunk), and writes nothing that another task of its phase touches. */

static int hai_steps(const hai_plan *plan) {
  return plan->n_before + hai_plan_levels(plan) * plan->n_per_level + plan->n_after;
}

/* The stage of a step, and its level; -1 before and after the levels. */
static const hai_stage *hai_step_stage(const hai_plan *plan, int step, int *level) {
  int levels = hai_plan_levels(plan), n = step - plan->n_before;
  *level = -1;
  if (n >= levels * plan->n_per_level) {
    step -= (levels - 1) * plan->n_per_level;
  } else if (n >= 0) {
    *level = n / plan->n_per_level;
    step -= *level * plan->n_per_level;
  }
  return &hai_stages[plan->stages[step]];
}

static int hai_is_beside(const hai_plan *plan, int step) {
  int level;
  return HAI_HYPER && (hai_step_stage(plan, step, &level)->traits & HAI_BESIDE);
}

static int hai_phases(const hai_plan *plan) {
  return hai_steps(plan) - hai_plan_levels(plan) * plan->n_beside + plan->begins_beside;
}

/* The first step of a phase. */
static int hai_phase_begin(const hai_plan *plan, int phase) {
  int of_level = plan->n_per_level - plan->n_beside, begin = 0, levels;
  if (!HAI_HYPER) return phase; /* no levels */
  if (plan->begins_beside && phase-- == 0) return 0;
  if (HAI_SIMD && phase > plan->n_before && of_level > 0) { /* whole levels at once */
    levels = (phase - plan->n_before) / of_level;
    levels = levels < hai_plan_levels(plan) ? levels : hai_plan_levels(plan);
    begin = plan->n_before + levels * plan->n_per_level;
    phase -= plan->n_before + levels * of_level;
  }
  while (hai_is_beside(plan, begin) || phase-- > 0) begin++;
  return begin;
}

/* One past the last step of the phase that begins with `begin`. */
static int hai_phase_end(const hai_plan *plan, int begin) {
  int end = begin + 1;
  while (end < hai_steps(plan) && hai_is_beside(plan, end)) end++;
  return end;
}

/* Tasks of a step along each axis but the batch: heads (kv heads first, then query heads), rectangles,
   chunks. */
typedef struct hai_grid {
  hai_index kv_heads, heads, rects, chunks;
} hai_grid;

static hai_grid hai_step_grid(const hai_plan *plan, const hai_stage *stage, int level) {
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

static int64_t hai_step_tasks(const hai_plan *plan, int step) {
  int level;
  const hai_stage *stage = hai_step_stage(plan, step, &level);
  hai_grid g = hai_step_grid(plan, stage, level);
  int64_t rects = g.rects;
  return rects * g.chunks * (g.kv_heads + g.heads) * plan->problem->batch;
}

static int64_t hai_phase_tasks(const hai_plan *plan, int phase) {
  int step = hai_phase_begin(plan, phase), end = hai_phase_end(plan, step);
  int64_t tasks = 0;
  if (hai_is_nothing(plan->problem)) return 0; /* not even a report: no buffer was asked for */
  for (; step < end; step++) tasks += hai_step_tasks(plan, step);
  return tasks;
}

static char *hai_align(void *workspace) {
  uintptr_t slack = HAI_AS(uintptr_t, 0) - HAI_REINTERPRET(uintptr_t, workspace);
  return HAI_AS(char *, workspace) + slack % HAI_ALIGN;
}

/* Sets the job to task `index` of a phase: step by step batch, then head, rectangle and, fastest, chunk; the
   last chunk is the first task's, since under a causal mask it takes longest. Returns the task's stage. */
HAI_APART const hai_stage *hai_job_at(hai_job *job, const hai_plan *plan, void *workspace, int phase,
                                      int64_t index, int worker) {
  int step = hai_phase_begin(plan, phase);
  const hai_stage *stage;
  hai_grid g;
  hai_index head;
  int64_t tasks;
  for (; index >= (tasks = hai_step_tasks(plan, step)); step++) index -= tasks;
  stage = hai_step_stage(plan, step, &job->level);
  g = hai_step_grid(plan, stage, job->level);
  job->pairing = stage->pairing;
  job->audit = stage->traits & HAI_AUDITS;
  job->plan = plan;
  job->base = hai_align(workspace);
  job->scratch = job->base + plan->layout.scratch + plan->layout.scratch_bytes * HAI_AS(size_t, worker);
  /* NOLINTBEGIN(clang-analyzer-core.DivideZero): a step without chunks or heads has no task */
  job->chunk = g.chunks - 1 - hai_to_index(index % g.chunks);
  index /= g.chunks;
  hai_rect_set(&job->rect, plan, job->level, hai_to_index(index % g.rects));
  index /= g.rects;
  head = hai_to_index(index % (g.kv_heads + g.heads));
  job->batch = hai_to_index(index / (g.kv_heads + g.heads));
  /* NOLINTEND(clang-analyzer-core.DivideZero) */
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

/* ======== src/entry.h ======== */

/* Entry points. */

#ifndef HYPERATTN_NO_TEXTS
/* Can this build return a status? Compilers evaluate it for each, and drop the sentences of the others. */
static int hai_occurs(int code) {
  return (HAI_SOFTCAP || code != HYPERATTN_ERROR_SOFTCAP) &&
         (HAI_SLIDING || code != HYPERATTN_ERROR_SLIDING_WINDOW) &&
         (HAI_CUSTOM || code != HYPERATTN_ERROR_NULL_WIDEN) &&
         (HAI_PAGES || (code != HYPERATTN_ERROR_PAGED && code != HYPERATTN_ERROR_PAGE_ROWS)) &&
         (HAI_MANY || code != HYPERATTN_ERROR_N_PROBLEMS) &&
         ((HAI_SCAN && HAI_HYPER) || code != HYPERATTN_ERROR_QUERY_ERROR) &&
         (HAI_INDEX || (code != HYPERATTN_ERROR_INDEX && code != HYPERATTN_ERROR_NULL_INDEX &&
                        code != HYPERATTN_ERROR_INDEX_SIZE));
}

#define HAI_UNKNOWN "unknown status"
#define HAI_STATUS_CASE(name, code, text) \
  case code: return hai_occurs(code) ? text : HAI_UNKNOWN;
HYPERATTN_API const char *hyperattn_status_string(hyperattn_status status) {
  switch (HAI_AS(int, status)) {
    HYPERATTN_STATUS_LIST(HAI_STATUS_CASE)
    default: return HAI_UNKNOWN;
  }
}
#else
HYPERATTN_API const char *hyperattn_status_string(hyperattn_status status) {
  (void)status;
  return "";
}
#endif

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

HYPERATTN_API hyperattn_params hyperattn_linear_params(void) {
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
  p.sampling = HYPERATTN_SAMPLE_COLUMN_MASS;
  return p;
}

HYPERATTN_API hyperattn_params hyperattn_default_params(void) {
  hyperattn_params p = hyperattn_linear_params();
  if (HAI_SCAN) {
    p.method = HYPERATTN_SCAN;
    p.sample_size = 256;
  }
  p.tolerance = 0.1f;
  return p;
}

#ifndef HYPERATTN_NO_BUILDERS
/* a * b, or some number where that would not fit: the problem is then invalid anyway. */
static ptrdiff_t hai_stride_of(int64_t a, int64_t b) {
  return HAI_AS(ptrdiff_t, HAI_AS(uint64_t, a) * HAI_AS(uint64_t, b));
}

/* Strides of a contiguous tensor. */
static hyperattn_input hai_contiguous(const void *data, int is_tokens_first, int64_t heads, int64_t rows,
                                      int64_t dim) {
  hyperattn_input x;
  HYPERATTN_MEMSET(&x, 0, sizeof x); /* float32 */
  x.data = data;
  x.head_stride = hai_stride_of(is_tokens_first ? 1 : rows, dim);
  x.row_stride = hai_stride_of(is_tokens_first ? heads : 1, dim);
  x.batch_stride = hai_stride_of(hai_stride_of(heads, rows), dim);
  return x;
}

static hyperattn_problem hai_problem(int is_tokens_first, int64_t batch, int64_t n_heads,
                                     int64_t n_kv_heads, int64_t n_query, int64_t n_key, int64_t head_dim,
                                     int64_t value_dim, const void *query, const void *key,
                                     const void *value, void *out) {
  hyperattn_input result = hai_contiguous(out, is_tokens_first, n_heads, n_query, value_dim);
  hyperattn_problem p;
  HYPERATTN_MEMSET(&p, 0, sizeof p);
  p.batch = batch;
  p.n_heads = n_heads;
  p.n_kv_heads = n_kv_heads;
  p.n_query = n_query;
  p.n_key = n_key;
  p.head_dim = head_dim;
  p.value_dim = value_dim;
  p.query = hai_contiguous(query, is_tokens_first, n_heads, n_query, head_dim);
  p.key = hai_contiguous(key, is_tokens_first, n_kv_heads, n_key, head_dim);
  p.value = hai_contiguous(value, is_tokens_first, n_kv_heads, n_key, value_dim);
  p.out.data = out;
  p.out.batch_stride = result.batch_stride;
  p.out.head_stride = result.head_stride;
  p.out.row_stride = result.row_stride;
  return p;
}

HYPERATTN_API hyperattn_problem hyperattn_heads_first(int64_t batch, int64_t n_heads, int64_t n_kv_heads,
                                                      int64_t n_query, int64_t n_key, int64_t head_dim,
                                                      int64_t value_dim, const void *query, const void *key,
                                                      const void *value, void *out) {
  return hai_problem(0, batch, n_heads, n_kv_heads, n_query, n_key, head_dim, value_dim, query, key, value,
                     out);
}

HYPERATTN_API hyperattn_problem hyperattn_tokens_first(int64_t batch, int64_t n_heads, int64_t n_kv_heads,
                                                       int64_t n_query, int64_t n_key, int64_t head_dim,
                                                       int64_t value_dim, const void *query, const void *key,
                                                       const void *value, void *out) {
  return hai_problem(1, batch, n_heads, n_kv_heads, n_query, n_key, head_dim, value_dim, query, key, value,
                     out);
}
#endif

HYPERATTN_API size_t hyperattn_workspace_size(const hyperattn_problem *problem,
                                              const hyperattn_params *params, int n_workers) {
  hai_plan plan;
  if (n_workers < 1 || hai_resolve(&plan, problem, params) != HYPERATTN_OK) return 0;
  return hai_layout_size(&plan.layout, n_workers);
}

#ifndef HYPERATTN_NO_COST
HYPERATTN_API float hyperattn_cost(const hyperattn_problem *problem, const hyperattn_params *params) {
  hai_plan plan;
  float cost;
  if (hai_resolve(&plan, problem, params) != HYPERATTN_OK) return 0.0f;
#if HAI_SCAN
  cost = hai_scanning(&plan) ? hai_scan_cost(&plan) : hai_hyper_cost(&plan);
#if HAI_INDEX
  if (hai_looking(&plan)) cost = hai_look_cost(&plan);
#endif
#else
  cost = hai_hyper_cost(&plan);
#endif
  return cost > 0.0f ? cost : 1e-9f; /* a budget may have no keys */
}
#endif

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
  const hai_kernel *kernel = bf16 ? bf16 : hai_kernel_of(HYPERATTN_ISA_AUTO);
  return kernel ? kernel->isa : HYPERATTN_ISA_SCALAR;
}

HYPERATTN_API const char *hyperattn_isa_name(hyperattn_isa isa) {
  int i;
  for (i = 0; i < HAI_N_ISAS; i++)
    if (hai_isas[i].isa == HAI_AS(int, isa)) return hai_isas[i].name;
  return "unknown";
}

/* ======== src/growing.h ======== */

/* ---- Growing: an index and its cache ---- */

#if HAI_INDEX
/* What an append or a truncation needs: the shape, and that the index is one for it, whatever its length. */
static hyperattn_status hai_index_resolve(hai_plan *plan, const hyperattn_index *index,
                                          const hyperattn_problem *p) {
  hyperattn_status status;
  if (!p) return HYPERATTN_ERROR_NULL_PROBLEM;
  if ((status = hai_check_shape(p)) != HYPERATTN_OK) return status;
  if (hai_too_many(p)) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  if (!index) return HYPERATTN_ERROR_NULL_INDEX;
  if (!hai_index_fits(index, p) || p->n_key > index->capacity) return HYPERATTN_ERROR_INDEX;
  HYPERATTN_MEMSET(plan, 0, sizeof *plan);
  plan->problem = p;
  hai_resolve_shape(plan);
  plan->float_kernel = plan->kernel = hai_kernel_of(HYPERATTN_ISA_AUTO);
  if (!plan->kernel) return HYPERATTN_ERROR_ISA_ABSENT;
  plan->scan_kernel = hai_scan_kernel_of(plan->kernel);
  return HYPERATTN_OK;
}

/* Everything that an append checks. */
static hyperattn_status hai_index_check_append(hai_plan *plan, const hyperattn_index *index,
                                               const hyperattn_problem *p) {
  hyperattn_status status = hai_index_resolve(plan, index, p);
  hai_buffers buffers;
  if (status != HYPERATTN_OK) return status;
  if (p->n_key < index->length) return HYPERATTN_ERROR_INDEX;
  if (!p->batch || !p->n_key) return HYPERATTN_OK;
  if (!p->key.data) return HYPERATTN_ERROR_NULL_KEY;
  HYPERATTN_MEMSET(&buffers, 0, sizeof buffers); /* status: ok */
  buffers.batch = hai_to_index(p->batch);
  buffers.heads = plan->n_kv_heads;
  buffers.rows = plan->n_key;
  buffers.n_results = 1;
  hai_add_index(&buffers, index);
  hai_add_rows(&buffers, &p->key, plan->head_dim);
  return hai_check_overlap(&buffers);
}

/* ---- A block ---- */

/* Room for making a block, in the index, for each kv head. */
typedef struct hai_index_room {
  float *mean; /* [head_dim]: of turned keys, as its codes tell it */
  float *x;    /* [head_dim][HAI_TURNED]: turned keys */
  float *row;  /* [head_dim]: a key that is widened */
  float *step; /* [HAI_CHUNK]: what a step of a key's codes is worth */
} hai_index_room;

static hai_index_room hai_index_room_at(float *at, hai_index dim) {
  hai_index_room room;
  room.mean = at;
  room.x = room.mean + dim;
  room.row = room.x + dim * HAI_TURNED;
  room.step = room.row + dim;
  return room;
}

/* The mean of the keys first .. first + HAI_CHUNK - 1, turned, and its codes. It is rounded to them before
   keys are compared with it, so that rounding it costs nothing. Returns the codes' unit. */
static float hai_index_centre(const hai_job *job, const hai_rows *keys, hai_index first,
                              const hai_index_room *room, uint8_t *code) {
  hai_index dim = job->plan->head_dim, t;
  float largest, *mean = room->mean, unit, inverse;
  int j;
  HYPERATTN_MEMSET(mean, 0, HAI_AS(size_t, dim) * sizeof *mean);
  for (j = 0; j < HAI_CHUNK; j++) {
    const float *row = hai_rows_read(job, keys, first + j, room->row);
    for (t = 0; t < dim; t++) mean[t] += row[t] * (1.0f / HAI_CHUNK);
  }
  hai_turn_one(mean, dim);
  largest = hai_largest_size(mean, dim);
  unit = largest * (1.0f / HAI_MEAN_MOST);
  inverse = largest > 0.0f ? HAI_MEAN_MOST / largest : 0.0f;
  if (!hai_finite(inverse)) inverse = 0.0f;
  for (t = 0; t < dim; t++) {
    float at = mean[t] * inverse;
    code[t] = HAI_AS(uint8_t, (at > -HAI_MEAN_MOST ? at : -HAI_MEAN_MOST) + HAI_MEAN_RAISED + 0.5f);
    mean[t] = HAI_AS(float, code[t] - HAI_MEAN_RAISED) * unit;
  }
  return unit;
}

/* Does key j of those that are turned differ from the mean in no coordinate? Else its square may vanish. */
static int hai_index_is_zero(const hai_index_room *room, hai_index dim, int j) {
  hai_index t = 0;
  while (t < dim && room->x[t * HAI_TURNED + j] == 0.0f) t++;
  return t == dim;
}

/* Codes of keys first .. first + HAI_TURNED - 1 of a block, of what room->x differs from the mean. A
   coordinate of a key whose coordinates have the deviation s has the code 0 below -a s, 3 above a s, and else
   1 or 2 by its sign, a that of the best even steps for a normal distribution (Max, Quantizing for minimum
   distortion, 1960). What a step is worth makes the product with the key itself right. Returns the sum
   of what x squared has of the mean of the block. */
static float hai_index_encode(const hai_job *job, const hai_index_room *room, int first, uint8_t *code) {
  const hai_scan_kernel *kernel = job->plan->scan_kernel;
  float square[HAI_TURNED], product[HAI_TURNED], inverse[HAI_TURNED], sum = 0.0f;
  hai_index dim = job->plan->head_dim;
  int j;
  kernel->differ(room->x, dim, room->mean, square);
  for (j = 0; j < HAI_TURNED; j++) {
    float edge = 0.9957f * hai_sqrt(square[j] / HAI_AS(float, dim));
    inverse[j] = edge > 0.0f && hai_finite(edge) ? hai_inverse(edge) : 0.0f;
  }
  kernel->halve(room->x, dim, inverse, code + 4 * first, product);
  for (j = 0; j < HAI_TURNED; j++) { /* of NaN or infinities: NaN or infinite */
    room->step[first + j] = product[j] > 0.0f ? square[j] / product[j] : square[j] - square[j];
    if (square[j] < HAI_LEAST_SQUARE && !hai_index_is_zero(room, dim, j)) room->step[first + j] = hai_inf();
  }
  for (j = 0; j < HAI_TURNED; j++) sum += square[j] * (1.0f / HAI_CHUNK);
  return sum;
}

/* Norms by the steps. Returns their unit; not finite where a step is not. */
static float hai_index_norms(const float *step, uint8_t *norm) {
  float most = hai_largest_size(step, HAI_CHUNK), inverse;
  int j;
  inverse = most > 0.0f ? 127.0f / most : 0.0f;
  if (!hai_finite(inverse) || !hai_finite(most)) inverse = 0.0f;
  for (j = 0; j < HAI_CHUNK; j++) norm[j] = HAI_AS(uint8_t, inverse > 0.0f ? step[j] * inverse + 0.5f : 0.0f);
  return most * (1.0f / 127.0f);
}

/* Makes block `block` of the job's kv head. */
static void hai_index_make(const hai_job *job, const hai_rows *keys, hai_index block,
                           const hai_index_room *room, uint8_t *to) {
  hai_index dim = job->plan->head_dim, first = block * HAI_CHUNK, t;
  hai_block_layout y = hai_block_layout_of(dim);
  float unit[3];
  int begin, j;
  HYPERATTN_MEMSET(to, 0, y.size);
  unit[2] = 0.0f;
  unit[0] = hai_index_centre(job, keys, first, room, to + y.mean);
  for (begin = 0; begin < HAI_CHUNK; begin += HAI_TURNED) {
    for (j = 0; j < HAI_TURNED; j++) {
      const float *row = hai_rows_read(job, keys, first + begin + j, room->row);
      for (t = 0; t < dim; t++) room->x[t * HAI_TURNED + j] = row[t];
    }
    hai_turn(room->x, dim, HAI_TURNED, job->plan->scan_kernel->turn);
    unit[2] += hai_index_encode(job, room, begin, to);
  }
  unit[1] = hai_index_norms(room->step, to + y.norm);
  HYPERATTN_MEMCPY(to + y.units, unit, sizeof unit);
}

/* Makes the blocks of a kv head that are missing. */
static void hai_index_grow(const hai_plan *plan, hyperattn_index *index, hai_index flat_kv_head) {
  int64_t *done = hai_index_done(index, flat_kv_head);
  hai_index blocks = plan->n_key / HAI_CHUNK, block = *done >= 0 ? hai_clamp(*done, blocks) : 0;
  hai_index_room room = hai_index_room_at(hai_index_space(index, flat_kv_head), plan->head_dim);
  uint32_t before = 0;
  hai_rows keys;
  hai_job job;
  HYPERATTN_MEMSET(&job, 0, sizeof job);
  job.plan = plan;
  job.batch = flat_kv_head / plan->n_kv_heads;
  job.kv_head = flat_kv_head % plan->n_kv_heads;
  keys = hai_rows_of(&job, &plan->problem->key, plan->head_dim);
  if (plan->kernel->enter) before = plan->kernel->enter();
  for (; block < blocks; block++)
    hai_index_make(&job, &keys, block, &room, hai_index_block_at(index, flat_kv_head, block));
  if (plan->kernel->leave) plan->kernel->leave(before);
  *done = blocks;
}

/* ---- The calls ---- */

HYPERATTN_API size_t hyperattn_index_size(const hyperattn_problem *shape) {
  size_t bytes;
  if (!shape || hai_check_shape(shape) != HYPERATTN_OK || hai_too_many(shape)) return 0;
  bytes = hai_index_bytes(shape->batch, shape->n_kv_heads, shape->head_dim, shape->n_key);
  return bytes == SIZE_MAX ? 0 : bytes + HAI_ALIGN - 1;
}

HYPERATTN_API hyperattn_status hyperattn_index_init(hyperattn_index **index, const hyperattn_problem *shape,
                                                    void *memory, size_t size) {
  hyperattn_status status;
  hyperattn_index *made;
  size_t need;
  hai_index i;
  if (!shape) return HYPERATTN_ERROR_NULL_PROBLEM;
  if ((status = hai_check_shape(shape)) != HYPERATTN_OK) return status;
  if (!index || !memory) return HYPERATTN_ERROR_NULL_INDEX;
  need = hyperattn_index_size(shape);
  if (!need) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  if (size < need) return HYPERATTN_ERROR_INDEX_SIZE;
  made = HAI_PLACE(hyperattn_index, hai_align(memory));
  HYPERATTN_MEMSET(made, 0, sizeof *made);
  made->self = made;
  made->batch = shape->batch;
  made->n_kv_heads = shape->n_kv_heads;
  made->head_dim = shape->head_dim;
  made->capacity = shape->n_key;
  for (i = 0; i < shape->batch * shape->n_kv_heads; i++) *hai_index_done(made, i) = 0;
  made->check = hai_index_check(made);
  *index = made;
  return HYPERATTN_OK;
}

static void hai_index_set_length(hyperattn_index *index, int64_t length) {
  index->length = length;
  index->check = hai_index_check(index);
}

HYPERATTN_API hyperattn_status hyperattn_index_append(hyperattn_index *index,
                                                      const hyperattn_problem *problem) {
  hai_plan plan;
  hyperattn_status status = hai_index_check_append(&plan, index, problem);
  hai_index i;
  if (status != HYPERATTN_OK) return status;
  for (i = 0; i < problem->batch * problem->n_kv_heads; i++) hai_index_grow(&plan, index, i);
  hai_index_set_length(index, problem->n_key);
  return HYPERATTN_OK;
}

HYPERATTN_API void hyperattn_index_append_head(hyperattn_index *index, const hyperattn_problem *problem,
                                               int64_t kv_head) {
  hai_plan plan;
  if (hai_index_check_append(&plan, index, problem) == HYPERATTN_OK && kv_head >= 0 &&
      kv_head < problem->batch * problem->n_kv_heads)
    hai_index_grow(&plan, index, hai_to_index(kv_head));
}

HYPERATTN_API hyperattn_status hyperattn_index_truncate(hyperattn_index *index,
                                                        const hyperattn_problem *problem) {
  hai_plan plan;
  hyperattn_status status = hai_index_resolve(&plan, index, problem);
  hai_index i;
  if (status != HYPERATTN_OK) return status;
  if (problem->n_key > index->length) return HYPERATTN_ERROR_INDEX;
  for (i = 0; i < problem->batch * problem->n_kv_heads; i++) {
    int64_t *done = hai_index_done(index, i);
    if (*done > problem->n_key / HAI_CHUNK) *done = problem->n_key / HAI_CHUNK;
  }
  hai_index_set_length(index, problem->n_key);
  return HYPERATTN_OK;
}

HYPERATTN_API int64_t hyperattn_index_length(const hyperattn_index *index) {
  return hai_index_is_sound(index) ? index->length : 0;
}
#endif

/* ======== src/many.h ======== */

/* Many problems. Several problems as one call. While it runs, the workspace holds from its aligned begin on a
   hai_many, the problems with their plans, the arrays of one problem behind those of another, the table of
   first tasks, and one scratch per worker, as large as the largest problem needs. Each plan is that of a
   separate call but for the places of its arrays and the scratch, so its tasks compute the same.

   Phase 0 makes all this, in one task; phase 1 + k is phase k of every problem that has one, its tasks in
   the order of the problems. The table has a row for each k, [n_problems + 1]: the first task of each
   problem, and behind them the number of tasks. Problems and params are copied, so that it does not matter
   whose copy a thread hands in. */
#if HAI_MANY

typedef struct hai_planned {
  hyperattn_problem problem;
  hai_plan plan;
} hai_planned;

/* What the problems share. */
typedef struct hai_many {
  hyperattn_params params;
  int n_problems;
  int phases;          /* of the problem that has most */
  int most_phases;     /* a bound on that, which never falls as n_query or n_key rise */
  uint64_t most_tasks; /* a bound on the tasks of a phase */
  size_t table;        /* where it lies, from the workspace's aligned begin */
  hai_layout layout;   /* of the call; begin and stride are not used */
} hai_many;

/* ---- Sizes and places, for the size query and for the run ---- */

/* A bound on a problem's phases by method and n_key alone, so that none can fall: a level is the outer
   rectangle or a halving of the causal square. */
static int hai_most_phases(const hai_plan *plan) {
  int levels = 0;
  hai_index side = HAI_HYPER && plan->params->method == HYPERATTN_HYPER ? plan->n_key : 0;
  for (; side && side >= plan->min_seq_len; side /= 2) levels++;
  return (1 + levels) * HAI_N_STAGES;
}

static void hai_many_begin(hai_many *many, int n_problems, const hyperattn_params *params) {
  hai_layout *y = &many->layout;
  size_t planned = hai_times(HAI_AS(size_t, n_problems), sizeof(hai_planned));
  HYPERATTN_MEMSET(many, 0, sizeof *many);
  many->params = *params;
  many->n_problems = n_problems;
  y->scratch = hai_take(&y->overflow, hai_round_up(sizeof *many), planned);
  y->scratch_bytes = HAI_ALIGN; /* without a problem too */
}

/* Adds a problem. Returns where its arrays begin. */
static size_t hai_many_add(hai_many *many, const hai_plan *plan) {
  hai_layout *y = &many->layout;
  size_t begin = y->scratch;
  int phases = hai_phases(plan), most_phases = hai_most_phases(plan);
  uint64_t tasks = hai_most_tasks(plan->problem) * HAI_AS(uint64_t, plan->problem->batch);
  y->scratch = hai_take(&y->overflow, begin, plan->layout.scratch);
  y->scratch_bytes = hai_most(y->scratch_bytes, plan->layout.scratch_bytes);
  if (many->phases < phases) many->phases = phases;
  if (many->most_phases < most_phases) many->most_phases = most_phases;
  if (tasks > INT64_MAX - many->most_tasks)
    y->overflow = 1;
  else
    many->most_tasks += tasks;
  return begin;
}

static void hai_many_end(hai_many *many) {
  hai_layout *y = &many->layout;
  size_t row = hai_times(HAI_AS(size_t, many->n_problems) + 1, sizeof(int64_t));
  many->table = y->scratch;
  y->scratch = hai_take(&y->overflow, many->table, hai_times(HAI_AS(size_t, many->most_phases), row));
}

/* Sums up what the problems need, and the tasks of a phase; finds every mistake that needs no pointer and no
   stride. *bad is the problem that is mistaken, or -1. */
HAI_APART hyperattn_status hai_many_sum(hai_many *many, const hyperattn_problem *problems, int n_problems,
                                        const hyperattn_params *params, int phase, int64_t *tasks,
                                        int *bad) {
  hai_plan plan;
  hyperattn_status status;
  int i;
  *bad = -1;
  *tasks = 0;
  if (n_problems < 0) return HYPERATTN_ERROR_N_PROBLEMS;
  if (n_problems && !problems) return HYPERATTN_ERROR_NULL_PROBLEM;
  if (!params) return HYPERATTN_ERROR_NULL_PARAMS;
  if ((status = hai_check_params(params, 0)) != HYPERATTN_OK) return status;
  hai_many_begin(many, n_problems, params);
  for (i = 0; i < n_problems; i++) {
    if ((status = hai_resolve(&plan, &problems[i], params)) != HYPERATTN_OK) {
      *bad = i;
      return status;
    }
    hai_many_add(many, &plan);
    if (phase >= 0 && phase < hai_phases(&plan) && !many->layout.overflow)
      *tasks += hai_phase_tasks(&plan, phase);
  }
  hai_many_end(many);
  return many->layout.overflow ? HYPERATTN_ERROR_SIZE_OVERFLOW : HYPERATTN_OK;
}

/* ---- Checks ---- */

/* Do none of the problems read or write anything? The workspace is not touched then. */
static int hai_many_is_nothing(const hyperattn_problem *problems, int n_problems) {
  int i;
  for (i = 0; i < n_problems; i++)
    if (!hai_is_nothing(&problems[i])) return 0;
  return 1;
}

/* Pointers, strides and overlaps of each problem. A workspace that is missing or too small is the mistake of
   none. */
HAI_APART hyperattn_status hai_many_check_buffers(const hyperattn_problem *problems, int n_problems,
                                                  const hyperattn_params *params, const void *workspace,
                                                  size_t workspace_size, size_t need, int *bad) {
  hai_plan plan;
  int i;
  for (i = 0; i < n_problems; i++) {
    hyperattn_status status = hai_resolve(&plan, &problems[i], params);
    if (status == HYPERATTN_OK) status = hai_check_buffers_within(&plan, workspace, workspace_size, need);
    if (status == HYPERATTN_OK) continue;
    if (status != HYPERATTN_ERROR_NULL_WORKSPACE && status != HYPERATTN_ERROR_WORKSPACE_SIZE) *bad = i;
    return status;
  }
  return HYPERATTN_OK;
}

HYPERATTN_API hyperattn_status hyperattn_check_many(const hyperattn_problem *problems, int n_problems,
                                                    const hyperattn_params *params, const void *workspace,
                                                    size_t workspace_size, int n_workers,
                                                    int *bad_problem) {
  hai_many many;
  int64_t tasks;
  size_t need;
  int bad;
  hyperattn_status status = hai_many_sum(&many, problems, n_problems, params, -1, &tasks, &bad);
  if (status == HYPERATTN_OK && n_workers < 1) status = HYPERATTN_ERROR_WORKERS;
  if (status == HYPERATTN_OK) {
    need = hai_layout_size(&many.layout, n_workers);
    status =
        need ? hai_many_check_buffers(problems, n_problems, params, workspace, workspace_size, need, &bad)
             : HYPERATTN_ERROR_SIZE_OVERFLOW;
  }
  if (bad_problem) *bad_problem = bad;
  return status;
}

HYPERATTN_API size_t hyperattn_workspace_size_many(const hyperattn_problem *problems, int n_problems,
                                                   const hyperattn_params *params, int n_workers) {
  hai_many many;
  int64_t tasks;
  int bad;
  hyperattn_status status = hai_many_sum(&many, problems, n_problems, params, -1, &tasks, &bad);
  return status != HYPERATTN_OK || n_workers < 1 ? 0 : hai_layout_size(&many.layout, n_workers);
}

/* ---- The run ---- */

static hai_many *hai_many_of(void *workspace) { return HAI_PLACE(hai_many, hai_align(workspace)); }
static hai_planned *hai_planned_of(hai_many *many) {
  return HAI_PLACE(hai_planned, HAI_REINTERPRET(char *, many) + hai_round_up(sizeof *many));
}
static int64_t *hai_first_tasks(hai_many *many, int phase) {
  size_t row = HAI_AS(size_t, many->n_problems) + 1;
  return HAI_PLACE(int64_t, HAI_REINTERPRET(char *, many) + many->table) + HAI_AS(size_t, phase) * row;
}

/* Makes the plans and the table. The problems passed the checks. */
HAI_APART void hai_many_prepare(const hyperattn_problem *problems, int n_problems,
                                const hyperattn_params *params, void *workspace) {
  hai_many *many = hai_many_of(workspace);
  hai_planned *planned = hai_planned_of(many);
  size_t begin;
  int i, array, phase;
  hai_many_begin(many, n_problems, params);
  for (i = 0; i < n_problems; i++) {
    hai_plan *plan = &planned[i].plan;
    planned[i].problem = problems[i];
    hai_resolve(plan, &planned[i].problem, &many->params);
    begin = hai_many_add(many, plan);
    for (array = 0; array < HAI_ARRAY_CODE; array++) plan->layout.begin[array] += begin;
    plan->layout.scan += begin;
  }
  hai_many_end(many);
  for (i = 0; i < n_problems; i++) {
    planned[i].plan.layout.scratch = many->layout.scratch;
    planned[i].plan.layout.scratch_bytes = many->layout.scratch_bytes;
  }
  for (phase = 0; phase < many->phases; phase++) {
    int64_t *first = hai_first_tasks(many, phase);
    first[0] = 0;
    for (i = 0; i < n_problems; i++) {
      const hai_plan *plan = &planned[i].plan;
      first[i + 1] = first[i] + (phase < hai_phases(plan) ? hai_phase_tasks(plan, phase) : 0);
    }
  }
}

/* The problem that a task belongs to, by its phase's row of the table. */
static int hai_problem_of(const int64_t *first, int n_problems, int64_t index) {
  int begin = 0, end = n_problems; /* it is one of begin .. end - 1 */
  while (end - begin > 1) {
    int middle = begin + (end - begin) / 2;
    if (first[middle] <= index)
      begin = middle;
    else
      end = middle;
  }
  return begin;
}

/* Runs a task of a phase behind phase 0; `phase` is counted without that. */
static void hai_many_run(hai_many *many, int phase, int64_t index, int worker) {
  const int64_t *first = hai_first_tasks(many, phase);
  int problem = hai_problem_of(first, many->n_problems, index);
  hai_run(&hai_planned_of(many)[problem].plan, many, phase, index - first[problem], worker);
}

HYPERATTN_API int hyperattn_phase_count_many(const hyperattn_problem *problems, int n_problems,
                                             const hyperattn_params *params) {
  hai_many many;
  int64_t tasks;
  int bad;
  hyperattn_status status = hai_many_sum(&many, problems, n_problems, params, -1, &tasks, &bad);
  return status == HYPERATTN_OK ? 1 + many.phases : 0;
}

HYPERATTN_API int64_t hyperattn_phase_tasks_many(const hyperattn_problem *problems, int n_problems,
                                                 const hyperattn_params *params, int phase) {
  hai_many many;
  int64_t tasks;
  int bad;
  if (phase < 0 ||
      hai_many_sum(&many, problems, n_problems, params, phase - 1, &tasks, &bad) != HYPERATTN_OK)
    return 0;
  return phase ? tasks : 1;
}

HYPERATTN_API void hyperattn_run_task_many(const hyperattn_problem *problems, int n_problems,
                                           const hyperattn_params *params, void *workspace, int phase,
                                           int64_t index, int worker) {
  if (phase)
    hai_many_run(hai_many_of(workspace), phase - 1, index, worker);
  else if (!hai_many_is_nothing(problems, n_problems))
    hai_many_prepare(problems, n_problems, params, workspace);
}

typedef struct hai_many_phase {
  hai_many *many;
  int phase;
} hai_many_phase;

static void hai_many_task(void *arg, int64_t index, int worker) {
  const hai_many_phase *p = HAI_AS(const hai_many_phase *, arg);
  hai_many_run(p->many, p->phase, index, worker);
}

HYPERATTN_API hyperattn_status hyperattn_forward_many(const hyperattn_problem *problems, int n_problems,
                                                      const hyperattn_params *params,
                                                      const hyperattn_parallel *parallel, void *workspace,
                                                      size_t workspace_size, int *bad_problem) {
  hai_many_phase p;
  hyperattn_status status;
  int n_workers = parallel ? parallel->n_workers : 1;
  if (bad_problem) *bad_problem = -1;
  if (parallel && !parallel->parallel_for) return HYPERATTN_ERROR_NULL_PARALLEL;
  status =
      hyperattn_check_many(problems, n_problems, params, workspace, workspace_size, n_workers, bad_problem);
  if (status != HYPERATTN_OK || hai_many_is_nothing(problems, n_problems)) return status;
  hai_many_prepare(problems, n_problems, params, workspace);
  p.many = hai_many_of(workspace);
  for (p.phase = 0; p.phase < p.many->phases; p.phase++) {
    int64_t index, n = hai_first_tasks(p.many, p.phase)[n_problems];
    if (parallel && n) parallel->parallel_for(parallel->context, n, hai_many_task, &p);
    for (index = 0; !parallel && index < n; index++) hai_many_task(&p, index, 0);
  }
  return HYPERATTN_OK;
}
#endif


#undef HAI_AHEAD
#undef HAI_ALIGN
#undef HAI_AMX
#undef HAI_AMX_FENCE
#undef HAI_AMX_PRODUCTS
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
#undef HAI_AVX512_VNNI
#undef HAI_AVX_VNNI
#undef HAI_CARRY_CHUNKS
#undef HAI_CHUNK
#undef HAI_CODE_FINE
#undef HAI_CODE_MOST
#undef HAI_COST_POINTS
#undef HAI_CUSTOM
#undef HAI_FAIR
#undef HAI_FEW
#undef HAI_FEW_BF16
#undef HAI_FEW_KEYS
#undef HAI_FEW_QUERIES
#undef HAI_FEW_ROWS
#undef HAI_FEW_UNCUT
#undef HAI_FEW_UNWIDENED
#undef HAI_GOOD
#undef HAI_GROUP_DIM
#undef HAI_HALVES
#undef HAI_HELD_TILES
#undef HAI_HOT
#undef HAI_HYPER
#undef HAI_IF
#undef HAI_IF_AMX
#undef HAI_IF_AVX2
#undef HAI_IF_AVX512
#undef HAI_IF_AVX512_BF16
#undef HAI_IF_NEON
#undef HAI_INDEX
#undef HAI_INDEX_ARRAYS
#undef HAI_INLINE
#undef HAI_I_avx2
#undef HAI_I_avx512
#undef HAI_I_neon
#undef HAI_JUDGES
#undef HAI_JUDGE_CHUNKS
#undef HAI_JUDGE_KEYS
#undef HAI_JUDGE_RUN
#undef HAI_JUDGING
#undef HAI_KEPT_COST
#undef HAI_KEPT_SHARE
#undef HAI_KEY_MOST
#undef HAI_KEY_RAISED
#undef HAI_LEAP
#undef HAI_LEAST_SCANNED
#undef HAI_LEAST_SHARE
#undef HAI_LEAST_SQUARE
#undef HAI_LEAST_UNIT
#undef HAI_LEVEL_LEAST
#undef HAI_LONG_SUMS
#undef HAI_LOOK_AHEAD
#undef HAI_LOOK_BLUR
#undef HAI_LOOK_COST
#undef HAI_LOOK_ERROR
#undef HAI_LOOK_GUESSED
#undef HAI_LOOK_JUDGED
#undef HAI_LOOK_KEY_COST
#undef HAI_LOOK_LEAST
#undef HAI_LOOK_MET
#undef HAI_LOOK_MOST
#undef HAI_LOOK_NEEDLE
#undef HAI_LOOK_QUERIES
#undef HAI_LOOK_SAFE
#undef HAI_LOOK_SHARE
#undef HAI_LOOK_STEPS
#undef HAI_LOOK_SURE
#undef HAI_LOOK_TILT
#undef HAI_LOOK_TOGETHER
#undef HAI_MANY
#undef HAI_MASKS
#undef HAI_MAX_DIM
#undef HAI_MAX_INDEX
#undef HAI_MAX_LANES
#undef HAI_MAX_STAGES
#undef HAI_MAX_TILES
#undef HAI_MEAN_MOST
#undef HAI_MEAN_RAISED
#undef HAI_MEND_COST
#undef HAI_MERGE_LANES
#undef HAI_MOST_DOUBLED
#undef HAI_MOST_DRAW
#undef HAI_MOST_LEVEL
#undef HAI_MOST_MARGIN
#undef HAI_MOST_UNIT
#undef HAI_NAME
#undef HAI_NEON
#undef HAI_NEON_BF16
#undef HAI_NULL
#undef HAI_ONCE
#undef HAI_OUTLIER
#undef HAI_PAGES
#undef HAI_PAIR_DENSE
#undef HAI_PASSING_COST
#undef HAI_PICK_LEAST
#undef HAI_PICK_ROUNDS
#undef HAI_PICK_STEPS
#undef HAI_PILOT
#undef HAI_PILOT_BLOCKS
#undef HAI_PLACE
#undef HAI_PREFETCH
#undef HAI_PROBE_CHUNKS
#undef HAI_PROBE_KEYS
#undef HAI_Q8_0_BYTES
#undef HAI_Q8_0_ELEMENTS
#undef HAI_RAISED_BYTES
#undef HAI_REINTERPRET
#undef HAI_REPORTS
#undef HAI_REST_MARGIN
#undef HAI_REST_SHARE
#undef HAI_ROUNDS
#undef HAI_ROWS_16
#undef HAI_ROWS_4
#undef HAI_ROWS_8
#undef HAI_SCALAR_LANES
#undef HAI_SCAN
#undef HAI_SCAN_ARRAYS
#undef HAI_SCAN_ROWS
#undef HAI_SIMD
#undef HAI_SINKS
#undef HAI_SLIDING
#undef HAI_SOFTCAP
#undef HAI_SPAN_BLOCKS
#undef HAI_SPREAD_BLOCKS
#undef HAI_STAGE
#undef HAI_STATUS_CASE
#undef HAI_STEP_LEAST
#undef HAI_STEP_MOST
#undef HAI_STEP_NONE
#undef HAI_STEP_OF_1
#undef HAI_STEP_TOP
#undef HAI_SUM_LANES
#undef HAI_SUM_PROBES
#undef HAI_SUPERBLOCK
#undef HAI_TANH_END
#undef HAI_TANH_P0
#undef HAI_TANH_P1
#undef HAI_TANH_P2
#undef HAI_TANH_P3
#undef HAI_TANH_P4
#undef HAI_TANH_Q1
#undef HAI_TANH_Q2
#undef HAI_TANH_Q3
#undef HAI_TANH_Q4
#undef HAI_TARGET_amx
#undef HAI_TARGET_avx2
#undef HAI_TARGET_avx512
#undef HAI_TARGET_avx512bf
#undef HAI_TARGET_neon
#undef HAI_TARGET_neonbf
#undef HAI_TASK_GROUPS
#undef HAI_TASK_QUERIES
#undef HAI_TASK_ROWS
#undef HAI_TRIAL_QUERIES
#undef HAI_TURNED
#undef HAI_UNKNOWN
#undef HAI_V_avx2
#undef HAI_V_avx512
#undef HAI_V_avx512bf
#undef HAI_V_neon
#undef HAI_WHOLE
#undef HAI_X86_64
#undef hai_add_avx512bf
#undef hai_add_neonbf
#undef hai_fma_avx512bf
#undef hai_fma_neonbf
#undef hai_gather4_avx512bf
#undef hai_gather4_neonbf
#undef hai_keep_avx512bf
#undef hai_keep_neonbf
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
