/* ==== 6. Workspace ===================================================================================
   One function lays out; the size query and the run both call it. Bounds depend on shapes through functions
   that never fall as n_query or n_key rise, so neither does the size. */

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
  int32_t settled; /* no further trials */
  int32_t tried;   /* how many pairings were */
  float error;     /* relative error of the held-out queries */
} hai_verdict;

/* What the report keeps of a rectangle and head. */
typedef struct hai_record {
  int32_t recipe, tried; /* how many pairings were */
  int32_t n;             /* held-out queries */
  float keys;            /* that a query meets */
  float alpha, kappa;
  struct {
    int32_t row;                /* -1: nothing to say */
    float error, norm;          /* |out' - out|^2, by the rectangle's choice and by all its keys; |out|^2 */
    float whole;                /* lse after the rectangle, by all its keys */
    float rect, blocks, pinned; /* lse of the choice; shares of it that blocks and pins have */
  } query[HAI_AUDITORS];
} hai_record;

/* Takes [heads][n] things of `size` bytes at the layout's end, rounded up to HAI_ALIGN; returns where
   they begin. */
static size_t hai_take(hai_layout *layout, size_t heads, hai_index n, size_t size) {
  size_t begin = layout->scratch, bytes = hai_times(heads, hai_times(HAI_AS(size_t, n), size));
  size_t limit = PTRDIFF_MAX - 3 * HAI_ALIGN; /* slack and rounding fit too */
  if (bytes > limit || begin + bytes > limit) {
    layout->overflow = 1;
    return 0;
  }
  layout->scratch = begin + hai_round_up(bytes);
  return begin;
}

typedef struct hai_tile hai_tile;
static size_t hai_tile_bytes(const hai_plan *plan);
static size_t hai_chunk_bytes(const hai_plan *plan);
static int hai_tiles(const hai_plan *plan);

/* May a call with these parameters, so many keys, and any number of queries hold an approximated region? */
static int hai_may_approximate(const hai_plan *plan) {
  return HAI_HYPER && plan->params->method == HYPERATTN_HYPER &&
         plan->n_key >=
             plan->min_seq_len + plan->problem->causal; /* a causal query's own key is in no rectangle */
}

/* Are states put down between phases? */
static int hai_stores_states(const hai_plan *plan) {
  return hai_may_approximate(plan) && (plan->problem->causal || plan->reporting);
}

/* Scratch beside the tile, used by one stage at a time. */
static size_t hai_stage_bytes(const hai_plan *plan) {
  size_t dim = HAI_AS(size_t, plan->head_dim), lanes = HAI_AS(size_t, plan->float_kernel->lanes),
         take = HAI_AS(size_t, plan->take);
  size_t most = HAI_AS(size_t, hai_tiles(plan) - 1) * hai_tile_bytes(plan); /* further tiles of a task */
  if (!hai_may_approximate(plan)) return most;
  most = hai_most(most, hai_times(HAI_AS(size_t, plan->heavy_keys), sizeof(uint64_t))); /* the heaviest */
  if (plan->sorted[plan->n_pairings - 1]) {
    most = hai_most(most, HAI_AS(size_t, plan->params->lsh_bits) * dim * sizeof(float)); /* planes */
  }
  if (plan->by_score) { /* each lane's best, or those of the spans; spans, mean queries, scores of spans */
    size_t spans = hai_two_levels(plan, plan->n_key)
                       ? HAI_AS(size_t, hai_key_parts(plan, plan->n_key)) / HAI_SUPERBLOCK + 1
                       : 0;
    most = hai_most(most, hai_plus(hai_times(lanes * sizeof(uint64_t), take),
                                   hai_times(sizeof(float), 2 * take + lanes * dim + spans)));
  }
  if (plan->choosing || plan->reporting) /* places in the order; lse after blocks and pins; m, l, o */
    most = hai_most(most, (HAI_SIEVE + HAI_AUDITORS) * sizeof(int32_t) +
                              lanes * (4 + HAI_AS(size_t, plan->value_dim)) * sizeof(float));
  return most;
}

HAI_APART void hai_resolve_layout(hai_plan *plan) {
  hai_layout *y = &plan->layout;
  size_t heads = hai_times(HAI_AS(size_t, plan->problem->batch), HAI_AS(size_t, plan->n_heads)),
         each = sizeof(float);
  size_t kv_heads = hai_times(HAI_AS(size_t, plan->problem->batch), HAI_AS(size_t, plan->n_kv_heads)),
         least;
  hai_index n_query = plan->n_query, n_key = plan->n_key, rects = plan->max_rects,
            lanes = plan->float_kernel->lanes;
  hai_index square = hai_min(n_query, n_key); /* or less; half of its keys in each level */
  int hyper = hai_may_approximate(plan), probing = hyper && plan->probing,
      choosing = hyper && plan->choosing;
  int sorting = hyper && plan->sorted[plan->n_pairings - 1], score = hyper && plan->by_score;
  int reporting = hyper && plan->reporting, resting = hai_stores_states(plan);

  y->overflow = 0;
  y->n_means = score ? hai_ceil_div(n_key, plan->key_group) + rects : 0;
  y->n_superblocks = score && hai_two_levels(plan, n_key)
                         ? y->n_means / HAI_SUPERBLOCK + hai_min(rects, n_key / HAI_PAIR_DENSE) + 2
                         : 0;
  y->n_partials = probing ? hai_max(hai_probe_chunks(n_key), square / 2 / HAI_PROBE_KEYS + rects) : 0;
  y->n_truths = choosing || reporting /* one a rectangle, or they are few and large */
                    ? hai_max(hai_judge_chunks(n_key), hai_max(square / HAI_JUDGE_KEYS, rects))
                    : 0;
  y->truth_floats = hai_ceil_div(hai_min(plan->reporting ? HAI_AUDITORS : HAI_JUDGES, n_query), lanes) *
                    lanes * (2 + plan->value_dim);
  y->n_pin_words = hyper ? n_key / 32 + 1 + rects : 0;
  y->max_pins = hyper ? hai_min(plan->sink_keys + plan->heavy_keys, n_key) : 0;
  y->max_columns = hyper ? plan->sample_size : 0;
  y->max_wide =
      hyper && hai_trying_columns(plan) ? hai_min(plan->sample_size + plan->block_size, n_key) : 0;
  y->n_choices = score ? hai_ceil_div(n_query, plan->query_group) + rects : 0;
  y->n_records = reporting ? 2 * rects : 0;
  y->cap_chunks = hyper ? hai_ceil_div(plan->sample_size, HAI_TASK_QUERIES) : 0;

  y->scratch = 0;
  y->lse = hai_take(y, heads, resting ? n_query : 0, each);
  y->out = hai_take(y, heads, resting && !hai_is_f32(plan->problem->out.dtype) ? n_query : 0,
                    each * HAI_AS(size_t, plan->value_dim));
  y->choice = hai_take(y, heads, y->n_choices, hai_times(HAI_AS(size_t, plan->take), sizeof(int32_t)));
  least = y->scratch;
  y->scratch = y->query_code = y->choice; /* the choices' place */
  hai_take(y, heads, sorting ? n_query : 0, sizeof(uint16_t));
  y->key_code = hai_take(y, kv_heads, sorting ? n_key : 0, sizeof(uint16_t));
  y->scratch = hai_most(y->scratch, least);
  y->mean = hai_take(y, kv_heads, y->n_means, each * HAI_AS(size_t, plan->head_dim));
  y->query_order = hai_take(y, heads, sorting ? n_query : 0, sizeof(int32_t));
  y->key_order = hai_take(y, kv_heads, sorting ? n_key : 0, sizeof(int32_t));
  y->superblock_mean = hai_take(y, kv_heads, y->n_superblocks, each * HAI_AS(size_t, plan->head_dim));
  y->partial = hai_take(y, heads, y->n_partials, hai_times(HAI_AS(size_t, plan->probe_queries), 2 * each));
  y->mass = y->truth = hai_take(y, heads, y->n_truths, HAI_AS(size_t, y->truth_floats) * each);
  least = y->scratch;
  y->scratch = y->mass; /* the truths' place */
  hai_take(y, heads, hyper && (plan->probing || plan->weighing) ? n_key : 0, each);
  y->scratch = hai_most(y->scratch, least);
  y->squared_mass = hai_take(y, heads, probing && reporting ? n_key : 0, each);
  y->pinned = hai_take(y, heads, y->n_pin_words, sizeof(uint32_t));
  y->pins = hai_take(y, heads, rects, hai_times(HAI_AS(size_t, y->max_pins), sizeof(int32_t)));
  y->columns = hai_take(y, heads, rects,
                        hai_times(HAI_AS(size_t, y->max_columns + y->max_wide), sizeof(hai_column)));
  y->counts = hai_take(y, heads, hyper ? rects : 0, 3 * sizeof(int32_t));
  y->verdict = hai_take(y, heads, choosing ? rects : 0, sizeof(hai_verdict));
  y->record = hai_take(y, heads, y->n_records, sizeof(hai_record));
  y->cap = hai_take(y, heads, y->cap_chunks, each);
  y->scratch_bytes = hai_plus(hai_chunk_bytes(plan) + hai_tile_bytes(plan), hai_stage_bytes(plan));
  if (sorting) y->scratch_bytes = hai_most(y->scratch_bytes, sizeof(int32_t) << plan->params->lsh_bits);
  if (y->scratch_bytes > PTRDIFF_MAX - 2 * HAI_ALIGN) y->overflow = 1;
  y->scratch_bytes = hai_round_up(y->scratch_bytes + HAI_ALIGN);
}
