/* hyperattn.h - attention over long contexts in near-linear time, on the CPU, in one file.
   MIT licence, in full at the end. C11; also compiles as C++11. No dependency, no libm.
   Made of the files in src/ by cmake -P src/amalgamate.cmake: edit those (docs/architecture.md).

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
