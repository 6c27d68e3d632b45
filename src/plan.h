/* ==== 5. Plan ========================================================================================
   A call with everything made definite: defaults filled in, counts clamped to what exists, regions cut.

   Regions. Query i stands at position P = i + n_key - n_query; the causal square is the last
   min(n_query, n_key) queries and keys. It is cut in halves `depth` times; level e (0: the whole) has 2^e
   rectangles, the second half's queries by the first half's keys of each of its segments. What remains are
   2^depth diagonal segments, exact. Outside the square lies one more rectangle: the prefix of chunked
   prefill, or for full attention the whole problem. Levels run from the diagonal outward, this one last. */

typedef enum hai_stage {
  HAI_STAGE_EXACT,   /* diagonal segments and windows, or everything; per kv head */
  HAI_STAGE_HASH,    /* bucket of every row */
  HAI_STAGE_ORDER,   /* per rectangle: rows in order */
  HAI_STAGE_MEANS,   /* mean key of each sub-block */
  HAI_STAGE_PROBE,   /* probes' maximum and sum over each chunk of keys */
  HAI_STAGE_SUM,     /* probes' sums over the rectangle */
  HAI_STAGE_MASS,    /* column masses */
  HAI_STAGE_PIN,     /* sinks and heavy keys */
  HAI_STAGE_WEIGH,   /* sampling weights */
  HAI_STAGE_COLUMNS, /* sampled columns */
  HAI_STAGE_PAIR,    /* sub-blocks of each query group */
  HAI_STAGE_CAP,     /* largest residual sum of the sampled rows */
  HAI_STAGE_ATTEND,
  HAI_STAGE_JUDGE,   /* judging, from here on: what held-out queries get from all keys */
  HAI_STAGE_DRAFT,   /* sub-blocks of the held-out queries' groups */
  HAI_STAGE_TRY,     /* what the held-out queries get from a choice */
  HAI_STAGE_WITNESS, /* what other held-out queries get from all keys, */
  HAI_STAGE_AUDIT,   /* and from what was chosen */
  HAI_STAGE_REPORT   /* per head: what the held-out queries saw */
} hai_stage;

/* Blocks come by one or two pairings, each an order of the rows and a choice of sub-blocks for each query
   group; a stage that has to do with blocks is about one of them. */
enum { HAI_NO_BLOCKS = 2 };

typedef struct hai_step {
  unsigned char stage, pairing; /* hai_stage; 0, 1 or HAI_NO_BLOCKS */
} hai_step;

/* Offsets in bytes into the workspace; arrays that a call does not need have no bytes. Per-head arrays are
   [batch][n_heads or n_kv_heads][..], the inner extents beside them. */
typedef struct hai_layout {
  size_t lse; /* f32 [n_query]: of what each query has met so far */
  size_t out; /* f32 [n_query][value_dim]: the result so far, where out itself is not float32 */
  size_t query_code, key_code; /* u16 [n_query], [n_key]: bucket; in the place of the choices, made later */
  size_t query_order,
      key_order;          /* i32 [n_query], [n_key]: row at each sorted position, rectangle by rectangle */
  size_t mean;            /* f32 [n_means][head_dim] */
  size_t superblock_mean; /* f32 [n_superblocks][head_dim]: of HAI_SUPERBLOCK sub-blocks */
  size_t partial;         /* f32 [n_partials][probe_queries][2]: m and l of a probe over a chunk of keys */
  size_t mass;            /* f32 [n_key]: column mass, then sampling weight before mixing */
  size_t squared_mass;    /* f32 [n_key]: for the report, sum of the probes' squared weights */
  size_t truth;   /* f32 [n_truths][truth_floats]: states of the held-out queries over a chunk of keys;
                          in the place of the masses, done with by then */
  size_t pinned;  /* u32 [n_pin_words]: one bit per key of a rectangle */
  size_t pins;    /* i32 [n_rects][max_pins] */
  size_t columns; /* hai_column [n_rects][max_columns + max_wide] */
  size_t counts;  /* i32 [n_rects][3]: pins, columns, columns of the wide draw */
  size_t choice;  /* i32 [n_choices][take]: sub-blocks of each query group, ascending */
  size_t verdict; /* hai_verdict [n_rects] */
  size_t record;  /* hai_record [all rectangles] */
  size_t cap;     /* f32 [cap_chunks]: ln of the largest residual sum */
  size_t scratch, scratch_bytes; /* last: one per worker */
  hai_index n_means, n_superblocks, n_partials, n_truths, truth_floats, n_pin_words, max_pins, max_columns,
      max_wide, n_choices, n_records, cap_chunks;
  int overflow;
} hai_layout;

typedef struct hai_plan {
  const hyperattn_problem *problem;
  const hyperattn_params *params;
  /* the problem's shape, and the parameters' counts, clamped to what exists; no window in full attention */
  hai_index n_heads, n_kv_heads, n_query, n_key, head_dim, value_dim;
  hai_index min_seq_len, block_size, sample_size, query_group, key_group, sink_keys, heavy_keys,
      probe_queries, window;
  const hai_kernel *float_kernel; /* takes rows of float32 */
  const hai_kernel *kernel; /* takes the problem's rows as they lie, where one does; else float_kernel. Both
                                     have the same lanes and width */
  int may_use_amx;          /* sizes provide for it, and for doing without */
  float scale;
  hai_index heads_per_kv;
  hai_index square, query_skip, key_skip; /* queries and keys that lie before the square */
  int depth;                              /* levels of the causal split */
  int outer, outer_exact;                 /* is there an outer rectangle; is it attended exactly */
  hai_index max_rects;                    /* bound on the rectangles of a level */
  int by_score, take;                     /* blocks: chosen by score, and how many each group takes */
  int n_pairings, sorted[2];              /* is a pairing's order by hash */
  int probing, weighing;                  /* are probes run; are sampling weights needed */
  int choosing, reporting;                /* do held-out queries choose; is a report wanted */
  int n_once, n_steps;                    /* steps before all levels, and of each: */
  hai_step once, steps[HAI_MAX_STEPS];
  hai_layout layout;
} hai_plan;

typedef struct hai_rect {
  hai_index query_begin, n_query, key_begin, n_key;
  hai_index index;  /* within its level */
  hai_index region; /* names its random numbers and its record: depends on its place in the split alone */
} hai_rect;

/* Sub-blocks that a query group scores in two levels, but for the spans. */
static hai_index hai_superblock_blocks(const hai_plan *plan, hai_index n_key) {
  return 2 * HAI_SUPERBLOCK * (hai_min(plan->block_size, n_key) / plan->key_group + 1);
}

/* Are sub-blocks chosen in two levels: in many keys, if it is less work. */
static int hai_two_levels(const hai_plan *plan, hai_index n_key) {
  hai_index blocks = n_key / plan->key_group;
  return n_key > HAI_PAIR_DENSE && hai_superblock_blocks(plan, n_key) < blocks - blocks / HAI_SUPERBLOCK;
}

/* Scores of mean queries with mean keys that pairing takes. Not rounded up to whole groups: its share of
   all pairs must not rise with the sides, or a region could cease to be worth it as it grows. */
static uint64_t hai_pairing_products(const hai_plan *plan, hai_index n_query, hai_index n_key) {
  uint64_t dense, group = HAI_AS(uint64_t, plan->query_group);
  if (!plan->by_score) return 0;
  dense = HAI_AS(uint64_t, n_query) * HAI_AS(uint64_t, n_key) / (group * HAI_AS(uint64_t, plan->key_group));
  if (!hai_two_levels(plan, n_key)) return dense;
  return dense / HAI_SUPERBLOCK +
         HAI_AS(uint64_t, n_query) * HAI_AS(uint64_t, hai_superblock_blocks(plan, n_key)) / group;
}

/* Key-query pairs that probing, judging, pairing and the budget touch in a rectangle, to be held against all
   of them. */
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

/* Judging is cut by keys: n_key keys in how many chunks. */
static hai_index hai_judge_chunks(hai_index n_key) {
  return hai_ceil_div(n_key, hai_max(HAI_JUDGE_KEYS, hai_ceil_div(n_key, HAI_JUDGE_CHUNKS)));
}

/* So is probing. */
static hai_index hai_probe_chunks(hai_index n_key) {
  return hai_ceil_div(n_key, hai_max(HAI_PROBE_KEYS, hai_ceil_div(n_key, HAI_PROBE_CHUNKS)));
}
