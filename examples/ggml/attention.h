// ggml's operation FLASH_ATTN_EXT by the library: what of it is taken, and its run.
//
// Its tensors, innermost dimension first: queries [head_dim, n_query, n_heads, batch], keys [head_dim, n_key, n_kv_heads,
// batch], values [value_dim, n_key, n_kv_heads, batch], the mask [n_key, n_query or more, 1 or n_heads, 1 or batch], sinks
// [n_heads]; the result is [value_dim, n_heads, n_query, batch].
#ifndef GGML_ATTENTION_H
#define GGML_ATTENTION_H

#include "crew.h"
#include "mask.h"
#include "settings.h"

// Why an operation is left to ggml's CPU backend.
#define REFUSALS(X)                                                                   \
  X(TAKEN, "taken")                                                                   \
  X(QUERY, "queries that are not rows of f32")                                        \
  X(FORMAT, "keys or values in a format that ggml cannot widen")                      \
  X(ROWS, "rows that are not contiguous, or strides that are no whole blocks")        \
  X(DIMS, "a head dim above 576")                                                     \
  X(HEADS, "key heads that differ from value heads or do not divide the query heads") \
  X(BATCH, "keys or values that are shared among a batch")                            \
  X(MASK, "a mask that is not f16, or that is shared among some heads or sequences")  \
  X(SINKS, "sinks that are not one f32 a head")                                       \
  X(RESULT, "a result that is not f32")                                               \
  X(PARAMETER, "a parameter or an input that this does not know")                     \
  X(SLOWER, "ggml is faster at so little")                                            \
  X(PROBE, "a context's first graph, by which -fa auto decides")

typedef enum refusal {
#define REFUSAL_NAME(name, text) REFUSED_##name,
  REFUSALS(REFUSAL_NAME)
#undef REFUSAL_NAME
      N_REFUSALS
} refusal;

// From shapes, types and parameters alone; no tensor's data is read.
refusal attention_refusal(const host *h, const struct ggml_tensor *op, int forced);

// What ran: runs are of rows, and are counted as single, causal, alike or windowed.
#define ATTENTION_COUNTS(X)                  \
  X(OPERATIONS, "operations")                \
  X(SINGLE, "rows alone")                    \
  X(CAUSAL, "causal runs")                   \
  X(ALIKE, "runs of rows that see the same") \
  X(WINDOWED, "runs under a window")         \
  X(GATHERED, "runs of gathered cells")      \
  X(SEVERAL, "sequences of several runs")    \
  X(MASKED, "problems with their mask")      \
  X(MASKS, "masks read")

typedef enum attention_count {
#define ATTENTION_COUNT_NAME(name, text) COUNT_##name,
  ATTENTION_COUNTS(ATTENTION_COUNT_NAME)
#undef ATTENTION_COUNT_NAME
      N_COUNTS
} attention_count;

enum { ATTENTION_MASKS = 4, ATTENTION_CACHES = 512 };

// What was read of a mask. Layers of a graph share it: it holds until a cache comes again, which is the next
// graph's.
typedef struct mask_memo {
  const struct ggml_tensor *tensor;
  const void *data, *first_cache, *cache[ATTENTION_CACHES];
  int n_cache;
  int64_t n_query, n_cell, n_sequence;
  size_t stride;
  uint16_t *ends;    // first and last rows of each sequence, as they were
  mask_runs *runs;   // of each sequence
  int *is_readable;  // of each sequence
} mask_memo;

// All that one instance of the backend keeps between operations.
typedef struct attention {
  const host *host;
  const settings *settings;
  crew crew;
  mask_memo memo[ATTENTION_MASKS];
  int next_memo;
  hyperattn_problem *problem;
  int n_problem;
  int64_t problem_room;
  float *slope;
  int64_t slope_room;
  void *workspace;
  size_t workspace_size;
  long count[N_COUNTS];  // until they are added to those of the process
  int64_t microseconds;  // of the last operation
} attention;

void attention_open(attention *a, const host *h, const settings *s);
void attention_close(attention *a);

// NULL, or a sentence that says why it could not.
const char *attention_run(attention *a, const struct ggml_tensor *op);

#endif
