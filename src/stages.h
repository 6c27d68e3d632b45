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
