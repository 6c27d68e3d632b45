/* ---- Auditing: what a rectangle's recipe is worth, for the report ----
   Auditors, held-out queries that had no part in the verdict either, compare what the recipe gives them
   with the truth. Each rectangle and head leaves a record; stage REPORT adds them up. */

/* The largest squared mass over the rectangle's chunks, which MASS left in the first probe's l. */
static float hai_largest_squared_mass(const hai_job *job) {
  hai_index chunks = hai_job_probe_chunks(job), c;
  float most = 0.0f;
  for (c = 0; c < chunks; c++) most = hai_partial(job, c)[1] > most ? hai_partial(job, c)[1] : most;
  return most;
}

/* The paper's alpha: n_key times the largest squared column norm of the normalised scores. Probes stand
   for all queries. */
static float hai_alpha(const hai_job *job) {
  hai_index probes = hai_n_probes(job);
  if (!job->plan->probing) return 0.0f;
  return HAI_AS(float, job->rect.n_key) * HAI_AS(float, job->rect.n_query) / HAI_AS(float, probes) *
         hai_largest_squared_mass(job);
}

/* Keys that a query of the rectangle meets by a recipe: pins, columns, and its blocks' keys on average. */
static float hai_keys_met(const hai_job *job, hai_recipe recipe) {
  hai_index n_blocks = hai_key_parts(job->plan, job->rect.n_key),
            taken = hai_min(job->plan->take, n_blocks);
  const int32_t *counts = hai_counts(job);
  float keys = HAI_AS(float, counts[0]) + HAI_AS(float, counts[recipe == HAI_BLOCKS ? 1 : 2]);
  if (recipe == HAI_EACH) return HAI_AS(float, job->rect.n_key);
  if (recipe == HAI_BLOCKS && n_blocks)
    keys += HAI_AS(float, job->rect.n_key) * HAI_AS(float, taken) / HAI_AS(float, n_blocks);
  return keys;
}

/* Over auditors: the extremes of lse outside the blocks. */
typedef struct hai_lse_range {
  float least, most;
} hai_lse_range;

/* lse over the rectangle's keys outside the query's blocks; -inf where rounding leaves none. */
static float hai_lse_outside(float lse_blocks, float lse_exact) {
  float inside = hai_exp(lse_blocks - lse_exact);
  return inside < 1.0f ? lse_exact + hai_log(1.0f - inside) : -hai_inf();
}

/* Records what one auditor found. Its row is -1, which leaves it out of the report, where sums are not
   finite. */
static void hai_record_query(const hai_job *job, const hai_comparison *c, int i, float lse_blocks,
                             float lse_pinned) {
  hai_record *record = hai_record_of(job);
  float share_blocks = hai_share(lse_blocks, c->lse_chosen);
  int is_good = hai_finite(c->lse_whole) && c->lse_chosen == c->lse_chosen &&
                c->lse_chosen < hai_inf(); /* -inf is good: the query met nothing */
  record->query[i].row = is_good ? hai_to_int(hai_held_out_row(job, i)) : -1;
  record->query[i].error = c->squared_error;
  record->query[i].norm = c->squared_norm;
  record->query[i].whole = c->lse_whole;
  record->query[i].rect = c->lse_chosen;
  record->query[i].blocks = share_blocks;
  record->query[i].pinned = hai_share(lse_pinned, c->lse_chosen) - share_blocks;
}

/* The tile that begins with auditor `first` meets the recipe's columns and compares. */
static void hai_audit_tile(hai_job *job, const hai_judging_scratch *scratch, int first,
                           hai_lse_range *outside) {
  hai_comparison c;
  int i;
  hai_tiles_sample(job, &job->tile, 1, 0);
  hai_tile_settle(job->tile);
  for (i = 0; i < job->tile->n; i++) {
    float lse;
    hai_compare(job, i, hai_truth_of(job, 0, first + i),
                hai_resumes(job->plan) ? job->tile->out[i] : HAI_NULL, hai_lane_before(job, i), &c);
    hai_record_query(job, &c, first + i, scratch->lse_blocks[i], scratch->lse_pinned[i]);
    lse = hai_lse_outside(scratch->lse_blocks[i], c.lse_exact);
    if (!hai_finite(lse)) continue;
    outside->least = lse < outside->least ? lse : outside->least;
    outside->most = lse > outside->most ? lse : outside->most;
  }
}

/* Stage AUDIT: the record of a rectangle and head. Reads truth, choice, pins, columns, trials, partial, lse
   and out; reads (places) and writes record. Cost: O(auditors * budget). */
HAI_APART void hai_stage_audit(hai_job *job) {
  hai_record *record = hai_record_of(job);
  hai_recipe recipe = hai_recipe_of(job);
  hai_lse_range outside;
  hai_judging_scratch scratch = hai_judging_scratch_of(job);
  int first;
  hai_adopt_pairing(job);
  record->recipe = HAI_AS(int32_t, recipe);
  record->tried = job->plan->choosing ? hai_verdict_of(job).tried : 0;
  record->n = hai_n_held_out(job);
  record->alpha = hai_alpha(job);
  record->keys = hai_keys_met(job, recipe);
  record->kappa = 1.0f;
  record->exact = recipe == HAI_EACH ? 1.0f : 0.0f;
  if (recipe == HAI_EACH) return; /* every key, or a scan, which tells its own errors (tallying.h) */
  outside.least = hai_inf();
  outside.most = -hai_inf();
  hai_gather_truth(job, 0, record->n);
  for (first = 0; hai_judge_open(job, &scratch, first, record->n); first += job->tile->n)
    hai_audit_tile(job, &scratch, first, &outside);
  if (outside.most >= outside.least) record->kappa = hai_exp(outside.most - outside.least);
}
