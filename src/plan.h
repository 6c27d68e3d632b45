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
