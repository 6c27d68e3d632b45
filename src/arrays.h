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
