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
