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
