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
