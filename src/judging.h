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

/* Where the states of the tile that begins with held-out query `first` lie, over one chunk of keys. */
static float *hai_truth_of(const hai_job *job, hai_index chunk, hai_index first) {
  return hai_truth(job, chunk) + first / job->plan->float_kernel->lanes * hai_state_floats(job->plan);
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

/* Merges states b into a, lane by lane. Lanes without a query have m = -inf, l = 0. */
static void hai_merge_states(float *a, const float *b, int lanes, hai_index value_dim) {
  int i;
  hai_index t;
  for (i = 0; i < lanes; i++) {
    float m = a[i] > b[i] ? a[i] : b[i], shift = m == -hai_inf() ? 0.0f : m;
    float weight_a = hai_exp(a[i] - shift), weight_b = hai_exp(b[i] - shift);
    a[i] = m;
    a[lanes + i] = a[lanes + i] * weight_a + b[lanes + i] * weight_b;
    for (t = 2; t < 2 + value_dim; t++)
      a[t * lanes + i] = a[t * lanes + i] * weight_a + b[t * lanes + i] * weight_b;
  }
}

/* Merges the truth of all chunks into that of the first. Cost: held-out queries * value_dim * chunks. */
static void hai_gather_truth(const hai_job *job) {
  int n = hai_n_held_out(job), lanes = job->plan->float_kernel->lanes, first;
  hai_index chunks = hai_job_judge_chunks(job), c;
  for (first = 0; first < n; first += lanes)
    for (c = 1; c < chunks; c++)
      hai_merge_states(hai_truth_of(job, 0, first), hai_truth_of(job, c, first), lanes,
                       job->plan->value_dim);
}

/* Fills a sieve with the rows of the held-out queries. */
static void hai_held_out_sieve(const hai_job *job, uint32_t *sieve) {
  int n = hai_n_held_out(job), i;
  hai_sieve_clear(sieve);
  for (i = 0; i < n; i++) hai_sieve_add(sieve, hai_held_out_row(job, i));
}

/* Which held-out query a row is, or -1. Rows outside the sieve, nearly all, cost one look. */
static int hai_held_out_at(const hai_job *job, const uint32_t *sieve, hai_index row) {
  hai_index n = job->rect.n_query, at = row - job->rect.query_begin, run, ahead;
  if (!hai_sieve_holds(sieve, row)) return -1;
  if (hai_all_held_out(job)) return hai_to_int(at);
  run = hai_part_of(n, hai_held_out_runs(job), at) * HAI_JUDGE_RUN;
  ahead = row - hai_held_out_row(job, run);
  return ahead >= 0 && ahead < HAI_JUDGE_RUN ? hai_to_int(run + ahead) : -1;
}

/* place [held-out queries] = where each stands in the pairing's order. Cost: O(n_query) if that is
   sorted. */
static void hai_held_out_places(const hai_job *job, int32_t *place, uint32_t *sieve) {
  const int32_t *order = hai_query_order(job);
  hai_index n = order ? job->rect.n_query : 0, at;
  int held_out = hai_n_held_out(job), i;
  hai_held_out_sieve(job, sieve);
  for (i = 0; i < held_out; i++) place[i] = hai_to_int(hai_held_out_row(job, i) - job->rect.query_begin);
  for (at = 0; at < n; at++)
    if ((i = hai_held_out_at(job, sieve, order[at])) >= 0) place[i] = hai_to_int(at);
}

/* The scratch of TRY and AUDIT. */
typedef struct hai_judging_scratch {
  uint32_t *sieve;   /* [HAI_SIEVE] */
  int32_t *place;    /* [HAI_AUDITORS] */
  float *lse_blocks; /* [lanes]: each lane's lse over its blocks, */
  float *lse_pinned; /* [lanes]: and over its blocks and the pins */
} hai_judging_scratch;

static hai_judging_scratch hai_judging_scratch_of(const hai_job *job) {
  int lanes = job->plan->float_kernel->lanes;
  hai_judging_scratch scratch;
  scratch.sieve = HAI_PLACE(uint32_t, job->scratch);
  scratch.place = HAI_PLACE(int32_t, scratch.sieve + HAI_SIEVE);
  scratch.lse_blocks = HAI_PLACE(float, scratch.place + HAI_AUDITORS);
  scratch.lse_pinned = scratch.lse_blocks + lanes;
  return scratch;
}

/* Opens the tile that begins with held-out query `first`, whose queries meet their blocks in job->pairing
   and the pins; what is to be compared, the columns, is left to the caller. Returns 0 if there is no such
   query. scratch->place is filled before. Cost: O(queries of the tile * budget). */
static int hai_judge_open(hai_job *job, const hai_judging_scratch *scratch, int first) {
  int n = hai_to_int(hai_min(job->plan->float_kernel->lanes, hai_n_held_out(job) - first)), i;
  if (n <= 0) return 0;
  job->tile->n_groups = 0;
  for (i = 0; i < n; i++) hai_tile_sorted(job, i, scratch->place[first + i]);
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

/* Compares lane i of the tile, which has met what was chosen for it, with the truth (m, l, o, stride
   lanes). Both are merged first with what comes before: an output (NULL: 0) and its lse. */
static void hai_compare(const hai_job *job, int i, const float *truth, const float *out_before,
                        float lse_before, hai_comparison *c) {
  const hai_plan *plan = job->plan;
  const hai_tile *tile = job->tile;
  int lanes = plan->float_kernel->lanes;
  hai_index t;
  float lse_merged, weight_chosen, weight_exact, before_chosen, before_exact;
  c->lse_chosen = hai_state_lse(tile->m[i], tile->l[i]);
  c->lse_exact = hai_state_lse(truth[i], truth[lanes + i]);
  lse_merged = hai_log_add(c->lse_chosen, lse_before);
  c->lse_whole = hai_log_add(c->lse_exact, lse_before);
  weight_chosen = hai_weight_in(tile->m[i], lse_merged);
  weight_exact = hai_weight_in(truth[i], c->lse_whole);
  before_chosen = hai_weight_in(lse_before, lse_merged);
  before_exact = hai_weight_in(lse_before, c->lse_whole);
  c->squared_error = c->squared_norm = 0.0f;
  for (t = 0; t < plan->value_dim; t++) {
    float before = out_before ? out_before[t] : 0.0f;
    float chosen = tile->o[t * lanes + i] * weight_chosen + before * before_chosen;
    float exact = truth[(2 + t) * lanes + i] * weight_exact + before * before_exact;
    if (!hai_finite(exact)) c->lse_whole = hai_float(0x7fc00000u);
    c->squared_error += chosen == exact ? 0.0f : hai_squared(chosen - exact);
    c->squared_norm += exact == 0.0f ? 0.0f : hai_squared(exact);
  }
  if (!hai_finite(c->squared_error)) c->squared_error = hai_inf();
  if (!hai_finite(c->squared_norm)) c->squared_norm = hai_float(0x7f7fffffu);
}
