/* ==== 10. Judging ====================================================================================
   Queries that had no part in a rectangle's choices meet all of its keys, the truth, and then what was chosen
   for them: the relative error of that, over all of them, is the choice's worth. At a fixed budget the best
   choice is taken. Under a tolerance, which counts what the queries' rows have met before (levels run from
   the diagonal outward), it is the cheapest that meets it: columns alone, blocks and columns, blocks and as
   many columns as alone, at last every key. For the report, more such queries, drawn anew, audit what was
   chosen; those that chose are optimists. */

/* Tiles of held-out queries [lanes] in the order of their rows, over one chunk of keys: m, l and o for each.
   Cost: held-out queries * keys of the chunk, values included. */
HAI_APART void hai_stage_judge(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tiles[HAI_MAX_TILES];
  int most = hai_tiles_place(job, tiles), judges = hai_n_judges(job), first = 0, n, t;
  hai_index chunks = hai_job_judge_chunks(job);
  float *truth = hai_truth(job, job->chunk);
  while (first < judges) {
    n = hai_tiles_open(job, tiles, most, first, judges, hai_judge_row, plan->value_dim);
    hai_tiles_run(job, tiles, n, hai_chunk_begin(job, chunks, job->chunk),
                  hai_chunk_begin(job, chunks, job->chunk + 1));
    for (t = 0; t < n; t++) {
      hai_tile_save(tiles[t], truth);
      truth += (2 + plan->value_dim) * plan->float_kernel->lanes;
      first += tiles[t]->n;
    }
  }
}

/* The states over all chunks, in the place of the first chunk's. */
static void hai_gather_truth(const hai_job *job) {
  const hai_plan *plan = job->plan;
  int judges = hai_n_judges(job), lanes = plan->float_kernel->lanes, first, i;
  hai_index chunks = hai_job_judge_chunks(job), value_dim = plan->value_dim;
  hai_index size = (2 + value_dim) * lanes, c, t;
  for (first = 0; first < judges; first += lanes)
    for (c = 1; c < chunks; c++) {
      float *a = hai_truth(job, 0) + first / lanes * size;
      const float *b = hai_truth(job, c) + first / lanes * size;
      for (i = 0; i < lanes; i++) {
        float m = a[i] > b[i] ? a[i] : b[i], shift = m == -hai_inf() ? 0.0f : m;
        float wa = hai_exp(a[i] - shift), wb = hai_exp(b[i] - shift);
        a[i] = m;
        a[lanes + i] = a[lanes + i] * wa + b[lanes + i] * wb;
        for (t = 2; t < 2 + value_dim; t++)
          a[t * lanes + i] = a[t * lanes + i] * wa + b[t * lanes + i] * wb;
      }
    }
}

/* A few rows of many are looked for by their last twelve bits before anything dearer: HAI_SIEVE words. */
static void hai_sieve_clear(uint32_t *sieve) { HYPERATTN_MEMSET(sieve, 0, HAI_SIEVE * sizeof(uint32_t)); }
static void hai_sieve_add(uint32_t *sieve, hai_index row) {
  sieve[HAI_AS(size_t, row) / 32 % HAI_SIEVE] |= UINT32_C(1) << HAI_AS(size_t, row) % 32;
}
static int hai_sieve_holds(const uint32_t *sieve, hai_index row) {
  return HAI_AS(int, sieve[HAI_AS(size_t, row) / 32 % HAI_SIEVE] >> HAI_AS(size_t, row) % 32 & 1);
}

static void hai_judge_sieve(const hai_job *job, uint32_t *sieve) {
  int n = hai_n_judges(job), i;
  hai_sieve_clear(sieve);
  for (i = 0; i < n; i++) hai_sieve_add(sieve, hai_judge_row(job, i));
}

/* Which held-out query is a row, by their sieve; -1: none. */
static int hai_judge_at(const hai_job *job, const uint32_t *sieve, hai_index row) {
  hai_index n = job->rect.n_query, at = row - job->rect.query_begin, run, ahead;
  if (!hai_sieve_holds(sieve, row)) return -1;
  if (hai_all_judge(job)) return hai_to_int(at);
  run = hai_part_of(n, hai_judge_runs(job), at) * HAI_JUDGE_RUN;
  ahead = row - hai_judge_row(job, run);
  return ahead >= 0 && ahead < HAI_JUDGE_RUN ? hai_to_int(run + ahead) : -1;
}

/* Places of the held-out queries in the pairing's order. Cost: O(n_query) if that is sorted. */
static void hai_judge_places(const hai_job *job, int32_t *place, uint32_t *sieve) {
  const int32_t *order = hai_query_order(job);
  hai_index n = order ? job->rect.n_query : 0, at;
  int judges = hai_n_judges(job), i;
  hai_judge_sieve(job, sieve);
  for (i = 0; i < judges; i++) place[i] = hai_to_int(hai_judge_row(job, i) - job->rect.query_begin);
  for (at = 0; at < n; at++)
    if ((i = hai_judge_at(job, sieve, order[at])) >= 0) place[i] = hai_to_int(at);
}

/* Pairs the groups of the held-out queries among this task's HAI_TASK_GROUPS. */
HAI_APART void hai_stage_draft(hai_job *job) {
  const int32_t *order = hai_query_order(job);
  hai_index n = job->rect.n_query, groups = hai_query_parts(job->plan, n, job->rect.n_key),
            first = job->chunk * HAI_TASK_GROUPS, at, end;
  uint32_t *sieve = HAI_PLACE(uint32_t, job->scratch); /* before pairing takes its place */
  uint64_t held = 0;
  int i;
  if (!hai_wanted(job)) return;
  hai_judge_sieve(job, sieve);
  for (i = 0; i < HAI_TASK_GROUPS && first + i < groups; i++)
    for (at = hai_cut(n, groups, first + i), end = hai_cut(n, groups, first + i + 1); at < end; at++)
      if (hai_judge_at(job, sieve, hai_at(order, job->rect.query_begin, at)) >= 0) held |= UINT64_C(1) << i;
  hai_pair_groups(job, held);
}

/* The sub-blocks that hold the columns in this pairing; they were drawn for another, ascending by position.
   Cost: O(n_key), and a binary search for about one key in ten. */
static void hai_place_columns(const hai_job *job, uint32_t *sieve) {
  const int32_t *order = hai_key_order(job);
  hai_index n_key = job->rect.n_key, parts = hai_key_parts(job->plan, n_key), rank;
  int wide, i;
  hai_sieve_clear(sieve);
  for (wide = 0; wide < 2; wide++)
    for (i = 0; i < hai_counts(job)[1 + wide]; i++) hai_sieve_add(sieve, hai_columns(job, wide)[i].key);
  for (rank = 0; rank < n_key; rank++) {
    hai_index key = hai_at(order, job->rect.key_begin, rank);
    for (wide = 0; wide < 2 && hai_sieve_holds(sieve, key); wide++) {
      hai_column *column = hai_columns(job, wide);
      int32_t low = 0, high = hai_counts(job)[1 + wide];
      while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (column[middle].key < key)
          low = middle + 1;
        else
          high = middle;
      }
      if (low < hai_counts(job)[1 + wide] && column[low].key == key)
        column[low].block = hai_to_int(hai_part_of(n_key, parts, rank));
    }
  }
}

/* |out' - out| / |out|, of their squares; infinite where there is no telling how wrong. */
static float hai_relative(float error, float norm) {
  if (error == 0.0f) return 0.0f;
  return hai_finite(error) && norm > 0.0f ? hai_sqrt(error / norm) : hai_inf();
}

/* x^2 of an x that is not 0, never so small that it is lost: what is wrong must not pass for right. */
static float hai_squared(float x) {
  float least = hai_float(0x00800000u);
  return x * x < least ? least : x * x;
}

/* Lane i of the tile, which has met what the choice gives it, against the truth (m, l, o, stride lanes).
   *error = |out' - out|^2, *norm = |out|^2; both with what the query has met before where `resting`. Returns
   the lse of the truth, so merged; NaN where there is no telling. */
static float hai_compare(const hai_job *job, int i, const float *truth, int resting, float *error,
                         float *norm) {
  const hai_plan *plan = job->plan;
  const hai_tile *tile = job->tile;
  int lanes = plan->float_kernel->lanes;
  hai_index t;
  float before = resting && plan->problem->causal ? hai_stored_lse(job)[tile->state[i]] : -hai_inf();
  float mine = hai_state_lse(tile->m[i], tile->l[i]), exact = hai_state_lse(truth[i], truth[lanes + i]);
  float merged = hai_log_add(mine, before), whole = hai_log_add(exact, before);
  /* out = o e^(m - lse) */
  float a = merged == -hai_inf() ? 0.0f : hai_exp(tile->m[i] - merged);
  float b = whole == -hai_inf() ? 0.0f : hai_exp(truth[i] - whole);
  float rest = (merged == -hai_inf() ? 0.0f : hai_exp(before - merged)), rest_b;
  rest_b = whole == -hai_inf() ? 0.0f : hai_exp(before - whole);
  *error = *norm = 0.0f;
  for (t = 0; t < plan->value_dim; t++) {
    float old = before == -hai_inf() ? 0.0f : tile->out[i][t];
    float x = tile->o[t * lanes + i] * a + old * rest, y = truth[(2 + t) * lanes + i] * b + old * rest_b;
    if (!hai_finite(y)) whole = hai_float(0x7fc00000u);
    *error += x == y ? 0.0f : hai_squared(x - y);
    *norm += y == 0.0f ? 0.0f : hai_squared(y);
  }
  if (!hai_finite(*error)) *error = hai_inf();
  if (!hai_finite(*norm)) *norm = hai_float(0x7f7fffffu);
  return whole;
}

/* Held-out queries first .. first + n - 1 meet the blocks and pins that a choice gives them; `blocks` and
   `pins` take the lse of each lane after either. */
static void hai_judge_open(hai_job *job, const int32_t *place, int first, int n, float *blocks,
                           float *pins) {
  hai_tile *tile = job->tile;
  int i;
  tile->n_groups = 0;
  for (i = 0; i < n; i++) hai_tile_sorted(job, i, place[first + i]);
  hai_tile_open(job, n, job->plan->scale, job->plan->value_dim);
  hai_attend_blocks(job);
  for (i = 0; i < n; i++) blocks[i] = hai_state_lse(tile->m[i], tile->l[i]);
  hai_attend_pins(job);
  for (i = 0; i < n; i++) pins[i] = hai_state_lse(tile->m[i], tile->l[i]);
}

/* A rectangle takes a recipe where it is better than what it had. */
static void hai_rule(const hai_job *job, hai_recipe recipe, float error) {
  hai_verdict *verdict = hai_verdict_of(job);
  float enough = job->plan->params->tolerance;
  if (enough == 0.0f) enough = recipe == HAI_COLUMNS ? HAI_GOOD : HAI_FAIR;
  if (verdict->settled || !(error < verdict->error)) return;
  verdict->recipe = HAI_AS(int32_t, recipe);
  verdict->pairing = job->pairing;
  verdict->error = error;
  verdict->settled = error <= enough;
}

/* Tries a choice on the held-out queries: columns alone, or a pairing's blocks with columns, and, where there
   is a tolerance, with the wide draw. Missed to the last, a tolerance calls for all keys. Cost: O(held-out
   queries * budget), and with a sorted order O(n_query + n_key log budget). */
HAI_APART void hai_stage_try(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  int alone = job->pairing == HAI_NO_BLOCKS, judges = hai_n_judges(job), lanes = plan->float_kernel->lanes;
  /* at a fixed budget no choice depends on states: they know later keys than some of the queries */
  int bound = plan->params->tolerance > 0.0f,
      n_trials = !alone && bound && hai_trying_columns(plan) ? 2 : 1;
  hai_index size = (2 + plan->value_dim) * lanes;
  uint32_t *sieve = HAI_PLACE(uint32_t, job->scratch);
  int32_t *place = HAI_PLACE(int32_t, sieve + HAI_SIEVE);
  float *blocks = HAI_PLACE(float, place + HAI_AUDITORS), *pins = blocks + lanes, *state = pins + lanes;
  hai_recipe recipe[2];
  float sum[2] = {0.0f, 0.0f}, norm = 0.0f; /* of |out' - out|^2, and of |out|^2 */
  int first, n, i, c;
  if (job->pairing == (hai_trying_columns(plan) ? HAI_NO_BLOCKS : 0)) hai_gather_truth(job);
  if (hai_verdict_of(job)->settled) return;
  if (!alone) hai_verdict_of(job)->tried = job->pairing + 1;
  if (job->pairing == 1) hai_place_columns(job, sieve);
  hai_judge_places(job, place, sieve);
  recipe[0] = alone ? HAI_COLUMNS : HAI_BLOCKS;
  recipe[1] = HAI_BOTH;
  for (first = 0; first < judges; first += n) {
    const float *truth = hai_truth(job, 0) + first / lanes * size;
    n = hai_to_int(hai_min(lanes, judges - first));
    hai_judge_open(job, place, first, n, blocks, pins);
    hai_tile_save(tile, state);
    for (c = 0; c < n_trials; c++) {
      if (c) hai_tile_load(tile, state);
      hai_attend_columns(job, recipe[c] != HAI_BLOCKS);
      hai_tile_settle(tile);
      for (i = 0; i < n; i++) {
        float error, squared, whole = hai_compare(job, i, truth, bound, &error, &squared);
        if (whole != whole) continue;
        sum[c] += error;
        norm += c ? 0.0f : squared;
      }
    }
  }
  for (c = 0; c < n_trials; c++) hai_rule(job, recipe[c], hai_relative(sum[c], norm));
  if (bound && job->pairing == plan->n_pairings - 1 && !hai_verdict_of(job)->settled)
    hai_verdict_of(job)->recipe = HAI_ALL;
  if (job->pairing == 1 && hai_verdict_of(job)->pairing == 0) {
    job->pairing = 0;
    hai_place_columns(job, sieve);
  }
}

/* What a rectangle's choice is worth to queries that had no part in it, for the report. */
HAI_APART void hai_stage_audit(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_record *record = hai_record_of(job);
  hai_recipe recipe = hai_recipe_of(job);
  int judges = hai_n_judges(job), lanes = plan->float_kernel->lanes, first, n, i;
  hai_index size = (2 + plan->value_dim) * lanes, parts = hai_key_parts(plan, job->rect.n_key);
  hai_index chunks = hai_job_probe_chunks(job), c;
  hai_index probes = hai_n_probes(job), taken = hai_min(plan->take, parts);
  uint32_t *sieve = HAI_PLACE(uint32_t, job->scratch);
  int32_t *place = HAI_PLACE(int32_t, sieve + HAI_SIEVE);
  float *blocks = HAI_PLACE(float, place + HAI_AUDITORS), *pins = blocks + lanes;
  float least = hai_inf(), most = -hai_inf(), peak = 0.0f;
  record->recipe = HAI_AS(int32_t, recipe);
  record->tried = plan->choosing ? hai_verdict_of(job)->tried : 0;
  record->n = judges;
  for (c = 0; c < chunks && plan->probing; c++)
    peak = hai_partial(job, c)[1] > peak ? hai_partial(job, c)[1] : peak;
  record->alpha = plan->probing ? HAI_AS(float, job->rect.n_key) * HAI_AS(float, job->rect.n_query) /
                                      HAI_AS(float, probes) * peak
                                : 0.0f;
  record->keys =
      HAI_AS(float, hai_counts(job)[0]) + HAI_AS(float, hai_counts(job)[recipe == HAI_BLOCKS ? 1 : 2]);
  if (recipe != HAI_COLUMNS && parts)
    record->keys += HAI_AS(float, job->rect.n_key) * HAI_AS(float, taken) / HAI_AS(float, parts);
  record->kappa = 1.0f;
  if (recipe == HAI_ALL) record->keys = HAI_AS(float, job->rect.n_key);
  if (recipe == HAI_ALL) return;
  hai_gather_truth(job);
  hai_judge_places(job, place, sieve);
  for (first = 0; first < judges; first += n) {
    const float *truth = hai_truth(job, 0) + first / lanes * size;
    n = hai_to_int(hai_min(lanes, judges - first));
    hai_judge_open(job, place, first, n, blocks, pins);
    hai_tiles_sample(job, &job->tile, 1, 0);
    hai_tile_settle(tile);
    for (i = 0; i < n; i++) {
      float error, norm, whole = hai_compare(job, i, truth, 1, &error, &norm);
      float mine = hai_state_lse(tile->m[i], tile->l[i]), exact = hai_state_lse(truth[i], truth[lanes + i]);
      float beside = hai_exp(blocks[i] - exact), in_blocks = hai_share(blocks[i], mine);
      int good = hai_finite(whole) && mine == mine && mine < hai_inf(); /* -inf: it met nothing */
      record->query[first + i].row = good ? hai_to_int(hai_judge_row(job, first + i)) : -1;
      record->query[first + i].error = error;
      record->query[first + i].norm = norm;
      record->query[first + i].whole = whole;
      record->query[first + i].rect = mine;
      record->query[first + i].blocks = in_blocks;
      record->query[first + i].pinned = hai_share(pins[i], mine) - in_blocks;
      beside = beside < 1.0f ? exact + hai_log(1.0f - beside) : -hai_inf();
      if (!hai_finite(beside)) continue;
      least = beside < least ? beside : least;
      most = beside > most ? beside : most;
    }
  }
  if (most >= least) record->kappa = hai_exp(most - least);
}
