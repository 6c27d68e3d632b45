/* ---- The scan: every query its own keys ----
   A tile of queries of one head estimates its scores with all keys of the sketch that end before its first
   query's window, and keeps key j with probability
     P_j = min(1, max over lanes i of b e^(estimate_ij) / Z_i),
   Z_i an estimate of all that query i sees and b the budget. All lanes meet the kept keys, whose scores are
   exact, with log-weight -ln P_j: e^lse and e^lse out are unbiased at a fixed b, whatever the estimates are
   worth, and a key that matters to any lane has P_j = 1. Sinks, the window and what does not fill a block are
   met exactly.

   Z_i is the sum of what is met exactly and of a pilot's estimate: HAI_PILOT keys of up to HAI_PILOT_BLOCKS
   blocks, of which each lane's largest counts once and the others for those that were left out.

   The sample tells its own error: the variance of out_i is about the sum over kept keys of
   (1 - P_j) (w_ij / l_i)^2 |v_j - out_i|^2, w_ij the weight with which key j was met, and
   |v_j - out_i|^2 about |v_j - c|^2 + |out_i - c|^2, c the sketch's centre. Where queries miss the tolerance,
   a tile is scanned once more with a larger budget, or attends to all keys, or leaves these queries to a later
   phase (mending.h): whatever costs least. The budget that would have cost least is the next tile's.

   Draws are one table for all tiles, of which each tile begins at a place of its own, by a hash of its first
   query: so the noise of tiles and heads is not correlated, and nothing depends on workers, or on which heads
   and batches a call holds. */

typedef struct hai_kept {
  int32_t key;
  float log_share; /* ln of the probability with which it was kept */
} hai_kept;

typedef struct hai_scan {
  const hai_scan_kernel *kernel;
  hai_sketch sketch;
  hai_scan_queries queries;
  const float *query;                     /* [head_dim][lanes]: in float32, times the scale */
  float *packed;                          /* room for it where the kernel reads another dtype */
  float code;                             /* what a query's code is worth */
  uint64_t silent;                        /* bit i: the query of lane i is not finite */
  float *mean;                            /* [HAI_CHUNK][lanes]: products with the means of blocks */
  float *high, *sum;                      /* [lanes]: of the pilot */
  float *near, *far, *norm, *apart;       /* [lanes]: of the sample's variance */
  float distance;                         /* of values from the centre, squared, on average */
  float *error;                           /* [lanes]: relative error of each query */
  float *lse_sinks, *lse_level, *lse_exact; /* [lanes]: of sinks; of what counts in Z; of what is met exactly */
  float *state;                           /* the lanes' states before the sample */
  hai_kept *kept;                         /* [n_key] */
  int32_t n_kept;
  hai_index begin, end;                   /* the keys that are scanned */
  hai_index offset;                       /* of the tile in the draws */
  float budget;
  int exact_tiles;                        /* so many more tiles are attended exactly at once */
  hai_tally *tally;
  int32_t *missed;
} hai_scan;

/* ---- Where it pays ---- */

/* Work of a tile that scans so many keys and keeps some of them, in keys that are met exactly. */
static float hai_scan_work(const hai_plan *plan, float keys, float kept) {
  return keys * plan->scan_kernel->cost + kept * HAI_KEPT_COST;
}

/* Is it worth to scan so many keys? A tile keeps about HAI_KEPT_SHARE keys for each of the budget. */
static int hai_scan_pays(const hai_plan *plan, hai_index keys) {
  float n = HAI_AS(float, keys);
  return keys >= plan->min_seq_len &&
         hai_scan_work(plan, n, HAI_KEPT_SHARE * HAI_AS(float, plan->sample_size)) < n;
}

/* The first key behind those that the tile of queries from `row` on scans. */
static hai_index hai_scan_end(const hai_plan *plan, hai_index row) {
  hai_index first, last;
  hai_seen_keys(plan, row, &first, &last);
  return hai_max(0, last + 1 - plan->window) / HAI_CHUNK * HAI_CHUNK;
}

/* What a call is expected to cost, over what exact attention would: HAI_COST_POINTS of its queries stand for
   all. */
static float hai_scan_cost(const hai_plan *plan) {
  float work = 0.0f, exact = 0.0f, kept = HAI_KEPT_SHARE * HAI_AS(float, plan->sample_size);
  int point;
  if (!plan->scanning) return 1.0f;
  for (point = 0; point < HAI_COST_POINTS; point++) {
    hai_index row = hai_cut(plan->n_query, HAI_COST_POINTS, point), first, last, keys = hai_scan_end(plan, row);
    hai_seen_keys(plan, row, &first, &last);
    exact += HAI_AS(float, hai_max(0, last + 1));
    work += HAI_AS(float, hai_max(0, last + 1));
    if (hai_scan_pays(plan, keys))
      work += hai_scan_work(plan, HAI_AS(float, keys), kept) - HAI_AS(float, keys);
  }
  return exact > 0.0f ? work / exact : 1.0f;
}

/* ---- A tile's queries ---- */

/* The tile's packed queries in float32. */
static const float *hai_scan_query(const hai_job *job, const hai_scan *scan) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  int i;
  if (hai_is_f32(tile->kernel->dtype)) return tile->query;
  for (i = 0; i < tile->n; i++) {
    float *line = hai_line(tile, i);
    plan->float_kernel->widen(tile->row[i], tile->kernel->dtype, plan->head_dim, line);
    tile->row[i] = line;
  }
  plan->float_kernel->pack(tile->row, plan->head_dim, plan->scale, scan->packed);
  return scan->packed;
}

/* Where the tile begins in the draws: a hash of its first query's bits in float32. */
static hai_index hai_scan_offset(const hai_job *job, hai_index row) {
  const hai_plan *plan = job->plan;
  const float *query = hai_query_row(job, job->head, row, job->tile->line);
  uint64_t hash = hai_random(plan->params->seed, 0, HAI_FOR_OFFSETS, 0);
  hai_index t;
  for (t = 0; t < plan->head_dim; t++) hash = hai_mix(hash ^ hai_bits(query[t]));
  return HAI_AS(hai_index, hai_uniform(0, HAI_AS(uint64_t, hai_sketch_blocks(plan) * HAI_CHUNK), hash));
}

/* Codes of the tile's queries, by the largest coordinate of those that are finite. */
static void hai_scan_encode(const hai_job *job, hai_scan *scan) {
  const hai_tile *tile = job->tile;
  int32_t bits[HAI_MAX_LANES], most = 0;
  float largest, inverse;
  int i;
  scan->kernel->largest(scan->query, job->plan->head_dim, bits);
  scan->silent = 0;
  for (i = 0; i < tile->n; i++) {
    if (bits[i] >= 0x7f800000)
      scan->silent |= HAI_AS(uint64_t, 1) << i;
    else if (bits[i] > most)
      most = bits[i];
  }
  largest = hai_float(HAI_AS(uint32_t, most));
  inverse = 63.0f / largest;
  if (!hai_finite(inverse)) inverse = 0.0f;
  scan->code = largest * (1.0f / 63.0f);
  scan->kernel->quantise(scan->query, job->plan->head_dim, inverse, scan->queries.code);
  scan->queries.begin = tile->begin;
  scan->queries.end = tile->end;
}

/* ---- Blocks ---- */

/* Block `block` of the sketch as the kernel reads it, its products with the queries in row j of scan->mean.
   Returns 0 where the block is not known and has to be met whole. */
static int hai_scan_block_at(const hai_job *job, const hai_scan *scan, hai_index block, int j,
                             hai_scan_block *b) {
  hai_index draws = hai_sketch_blocks(job->plan) * HAI_CHUNK, at = block * HAI_CHUNK;
  b->code = scan->sketch.code + at * scan->queries.dim;
  b->lift = scan->sketch.lift + at;
  b->draw = scan->sketch.draw + (at + scan->offset) % draws;
  b->mean = scan->mean + j * job->tile->kernel->lanes;
  b->unit = scan->code * scan->sketch.unit[block];
  if (b->unit < HAI_LEAST_UNIT) b->unit = HAI_LEAST_UNIT;
  return scan->sketch.unit[block] != HAI_WHOLE;
}

/* Products of the queries with the means of n blocks, `step` apart. */
static void hai_scan_means(const hai_job *job, const hai_scan *scan, hai_index block, hai_index step,
                           int n) {
  const hai_plan *plan = job->plan;
  const void *mean[HAI_CHUNK];
  int j;
  for (j = 0; j < n; j++) mean[j] = scan->sketch.mean + (block + j * step) * plan->head_dim;
  plan->float_kernel->scores(scan->query, plan->head_dim, mean, n, job->tile->begin, job->tile->end,
                             scan->mean);
}

/* The pilot: estimates of a few keys of some blocks. Leaves ln of what a lane's scanned keys add up to in
   scan->high. */
HAI_APART void hai_scan_pilot(const hai_job *job, hai_scan *scan) {
  hai_tile *tile = job->tile;
  hai_index first = hai_ceil_div(scan->begin, HAI_CHUNK), blocks = scan->end / HAI_CHUNK - first;
  hai_index step = hai_ceil_div(blocks, HAI_PILOT_BLOCKS), at;
  hai_scan_block block;
  float seen = 0.0f, others;
  int i, j, n;
  for (i = 0; i < tile->kernel->lanes; i++) {
    scan->high[i] = -hai_inf();
    scan->sum[i] = 0.0f;
  }
  for (at = 0; at < blocks; at += n * step) {
    n = hai_to_int(hai_min(HAI_CHUNK, hai_ceil_div(blocks - at, step)));
    hai_scan_means(job, scan, first + at, step, n);
    for (j = 0; j < n; j++) {
      hai_index b = first + at + j * step;
      int from = HAI_AS(int, hai_mix(HAI_AS(uint64_t, b)) % (HAI_CHUNK / HAI_PILOT)) * HAI_PILOT;
      if (!hai_scan_block_at(job, scan, b, j, &block)) continue;
      scan->kernel->estimate(&scan->queries, &block, from, tile->score);
      if (HAI_SOFTCAP && tile->softcap > 0.0f)
        tile->kernel->cap(tile->score, HAI_PILOT, tile->softcap, tile->begin, tile->end);
      scan->kernel->collect(tile->score, tile->begin, tile->end, scan->high, scan->sum);
      seen += HAI_PILOT;
    }
  }
  others = seen > 1.0f ? (HAI_AS(float, scan->end - scan->begin) - 1.0f) / (seen - 1.0f) : 0.0f;
  for (i = 0; i < tile->n && seen > 0.0f; i++)
    scan->high[i] = hai_add_log(scan->high[i], 1.0f + (scan->sum[i] - 1.0f) * others);
}

/* How much a softcap lifts a score that it makes `score`; infinite where it makes none so low, and 0 where none
   so high. Estimates are not capped, and keys whose score they tell too low would be kept too rarely: levels
   are lowered by the lift of keys whose share is so small that those below do not matter. */
static float hai_scan_lift(float softcap, float score) {
  if (score <= -softcap) return hai_inf();
  if (score >= softcap) return 0.0f;
  return score - 0.5f * softcap * hai_log((softcap + score) / (softcap - score));
}

/* What an estimate and a draw must reach together for a key to be kept: ln Z_i - ln b. Lanes whose sums are not
   finite, and those without a query, keep no key; a lane that has met nothing keeps all. */
static void hai_scan_levels(const hai_job *job, const hai_scan *scan) {
  const hai_tile *tile = job->tile;
  float log_budget = hai_log(scan->budget), log_keys = hai_log(HAI_AS(float, scan->end - scan->begin));
  int i;
  for (i = 0; i < tile->kernel->lanes; i++) {
    float level = i < tile->n ? hai_log_add(scan->lse_level[i], scan->high[i]) : hai_inf();
    if (HAI_SOFTCAP && tile->softcap > 0.0f && i < tile->n)
      level -= hai_scan_lift(tile->softcap, level - log_keys - HAI_LEAST_SHARE);
    level -= log_budget;
    scan->queries.level[i] = level < hai_inf() && !(scan->silent >> i & 1) ? level : hai_inf();
  }
}

/* Keeps the hits of a block; bit j: key j. */
static void hai_scan_keep(hai_scan *scan, hai_index key, uint64_t hits, const int32_t *most, float unit) {
  for (; hits; hits &= hits - 1) {
    int j = hai_lowest_bit(hits);
    hai_kept *kept = &scan->kept[scan->n_kept++];
    kept->key = hai_to_int(key + j);
    kept->log_share = most && most[j] < 1 ? HAI_AS(float, most[j] - 1) * unit : 0.0f;
  }
}

/* Queries that are not finite keep no key: nor because their products with n means are NaN. */
static void hai_scan_silence(const hai_job *job, const hai_scan *scan, int n) {
  uint64_t bits;
  int j;
  for (bits = scan->silent; bits; bits &= bits - 1)
    for (j = 0; j < n; j++) scan->mean[j * job->tile->kernel->lanes + hai_lowest_bit(bits)] = 0.0f;
}

/* Scans all keys; leaves those that are kept in scan->kept. Cost: a product of small integers for each pair. */
HAI_APART void hai_scan_keys(const hai_job *job, hai_scan *scan) {
  hai_index block = scan->begin / HAI_CHUNK, blocks = scan->end / HAI_CHUNK;
  hai_scan_block b;
  int32_t most[HAI_CHUNK];
  int j, n;
  scan->n_kept = 0;
  for (; block < blocks; block += n) {
    n = hai_to_int(hai_min(HAI_CHUNK, blocks - block));
    hai_scan_means(job, scan, block, 1, n);
    hai_scan_silence(job, scan, n);
    for (j = 0; j < n; j++) {
      hai_index key = (block + j) * HAI_CHUNK;
      uint64_t hits = UINT64_MAX;
      int known = hai_scan_block_at(job, scan, block + j, j, &b);
      if (known) hits = scan->kernel->hits(&scan->queries, &b, most);
      if (key < scan->begin) hits &= UINT64_MAX << (scan->begin - key); /* sinks are met already */
      hai_scan_keep(scan, key, hits, known ? most : HAI_NULL, b.unit);
    }
  }
}

/* ---- The sample ---- */

/* Starts to load rows of kept keys begin .. end - 1. */
static void hai_scan_fetch(const hai_tile *tile, const hai_scan *scan, int32_t begin, int32_t end) {
  size_t key_bytes = HAI_AS(size_t, hai_offset(tile->keys.dtype, tile->keys.dim));
  size_t value_bytes = HAI_AS(size_t, hai_offset(tile->values.dtype, tile->values.dim));
  for (; HAI_SIMD && begin < end; begin++) {
    hai_fetch(hai_walk_from(&tile->keys, scan->kept[begin].key).at, key_bytes);
    hai_fetch(hai_walk_from(&tile->values, scan->kept[begin].key).at, value_bytes);
  }
}

/* The tile meets the kept keys. */
HAI_APART void hai_scan_attend(const hai_job *job, hai_scan *scan) {
  hai_tile *tile = job->tile;
  float missing[HAI_CHUNK], distance[HAI_CHUNK];
  int32_t at, next;
  int i, j;
  for (i = 0; i < tile->kernel->lanes; i++) scan->near[i] = scan->far[i] = 0.0f;
  hai_tile_aim(tile, 0, tile->n);
  for (at = 0; at < scan->n_kept; at = next) {
    next = at + HAI_CHUNK < scan->n_kept ? at + HAI_CHUNK : scan->n_kept;
    for (j = 0; j < next - at; j++) {
      const hai_kept *kept = &scan->kept[at + j];
      hai_tile_put(tile, j, kept->key);
      tile->log_weight[j] = -kept->log_share;
      missing[j] = 1.0f - hai_exp(kept->log_share);
      distance[j] = missing[j] > 0.0f ? scan->sketch.distance[kept->key] : 0.0f;
    }
    hai_scan_fetch(tile, scan, next, next + HAI_CHUNK < scan->n_kept ? next + HAI_CHUNK : scan->n_kept);
    tile->n_keys = next - at;
    tile->weighted = 1;
    hai_tile_flush(tile);
    scan->kernel->spread(tile->score, next - at, missing, distance, tile->factor, tile->begin, tile->end,
                         scan->near, scan->far);
  }
}

/* The relative error of a result, by the estimate of its square; infinite where it cannot be told. */
static float hai_scan_relative(float squared_error, float squared_norm) {
  if (squared_error == 0.0f && hai_finite(squared_norm)) return 0.0f;
  return hai_finite(squared_error) && squared_norm > 0.0f ? hai_sqrt(squared_error / squared_norm)
                                                          : hai_inf();
}

/* Each query's relative error. What the sample says of the variance is added to what it cannot say: of the
   scanned keys, whose share of the attention is s, it holds about n = b s of a lane's own, and where these are
   few, they may well all be missing, and the variance with them. With P_j at least b a_ij, a_ij the share of
   key j, the variance is at most sum_j a_ij |v_j - out_i|^2 / b, about s times the mean distance over b; that
   counts as if one more key had been seen, with the weight 1 / (n + 1). */
static void hai_scan_judge(const hai_job *job, hai_scan *scan) {
  hai_tile *tile = job->tile;
  int i;
  hai_tile_settle(tile);
  scan->kernel->distances(tile->o, tile->value_dim, tile->l, scan->sketch.centre, tile->begin, tile->end,
                          scan->norm, scan->apart);
  for (i = 0; i < tile->n; i++) {
    float l = tile->l[i], share = hai_share(scan->high[i], hai_log_add(scan->lse_exact[i], scan->high[i]));
    float near = l == 0.0f ? 0.0f : (scan->near[i] + scan->far[i] * scan->apart[i]) / l / l;
    float far = share * (scan->distance + scan->apart[i]) / scan->budget;
    scan->error[i] = hai_scan_relative(near + far / (scan->budget * share + 1.0f), scan->norm[i]);
    if (scan->norm[i] < 1e-30f && !hai_lane_is_zero(tile, i)) scan->error[i] = hai_inf(); /* squares vanish */
  }
}

/* ---- The budget ---- */

/* How many of the tile's queries would miss the tolerance with a budget `times` as large. */
static int hai_scan_misses(const hai_job *job, const hai_scan *scan, float times) {
  float allowed = job->plan->params->tolerance * hai_sqrt(times);
  int n = 0, i;
  for (i = 0; i < job->tile->n; i++) n += scan->error[i] > allowed;
  return n;
}

/* Work of a tile, in products of a query and a key, with a budget `times` as large: what is kept, and the
   queries that are left to be mended. */
static float hai_scan_price(const hai_job *job, const hai_scan *scan, float times) {
  float lanes = HAI_AS(float, job->tile->n), keys = HAI_AS(float, scan->end - scan->begin);
  float kept = HAI_AS(float, scan->n_kept) * hai_sqrt(times);
  return lanes * (kept < keys ? kept : keys) * HAI_KEPT_COST +
         HAI_AS(float, hai_scan_misses(job, scan, times)) * keys * HAI_MEND_COST;
}

/* How many times the budget a tile should have, of those at hand: 1 where its sample is good enough, 0 where
   exact attention is cheapest. */
static float hai_scan_times(const hai_job *job, const hai_scan *scan) {
  float lanes = HAI_AS(float, job->tile->n), keys = HAI_AS(float, scan->end - scan->begin), times, best = 1.0f;
  float least = HAI_AS(float, hai_scan_misses(job, scan, 1.0f)) * keys * HAI_MEND_COST;
  for (times = 2.0f; times <= 16.0f; times *= 2.0f) {
    float price = hai_scan_price(job, scan, times) + lanes * keys * job->plan->scan_kernel->cost;
    if (price < least) {
      least = price;
      best = times;
    }
  }
  return lanes * keys < least ? 0.0f : best;
}

/* The next tile's budget: what would have been best for this one. */
static void hai_scan_learn(const hai_job *job, hai_scan *scan) {
  float times, best = 1.0f, least = hai_scan_price(job, scan, 1.0f);
  for (times = 0.5f; times <= 2.0f; times *= 1.41421356f) {
    float price = hai_scan_price(job, scan, times);
    if (price < least) {
      least = price;
      best = times;
    }
  }
  scan->budget *= best;
  if (scan->budget < HAI_LEAST_BUDGET) scan->budget = HAI_LEAST_BUDGET;
}

/* ---- A tile ---- */

/* lse [n] of the tile's lanes so far. */
static void hai_scan_lse(const hai_tile *tile, float *lse) {
  int i;
  for (i = 0; i < tile->n; i++) lse[i] = hai_state_lse(tile->m[i], tile->l[i]);
}

/* The tile's lanes meet what is not scanned: sinks, windows, and what does not fill a block. Leaves the lse of
   what counts in Z in scan->lse_level: at tolerance 0 no key behind the tile's first query, so that no
   later key changes a row. */
static void hai_scan_exact(hai_job *job, hai_scan *scan) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index split = plan->problem->causal && plan->params->tolerance == 0.0f ? tile->min_last + 1 : plan->n_key;
  hai_tiles_run(&tile, 1, 0, scan->begin);
  hai_scan_lse(tile, scan->lse_sinks);
  hai_tile_from(tile, scan->end);
  hai_tiles_run(&tile, 1, scan->end, split);
  hai_scan_lse(tile, scan->lse_level);
  hai_tiles_run(&tile, 1, split, plan->n_key);
  hai_scan_lse(tile, scan->lse_exact);
  hai_tile_aim(tile, 0, tile->n);
}

/* Adds the tile to the task's tally. */
static void hai_scan_count(const hai_job *job, hai_scan *scan, hai_index row, int is_exact) {
  const hai_tile *tile = job->tile;
  hai_tally *tally = scan->tally;
  hai_index skipped = is_exact ? 0 : scan->end - scan->begin - scan->n_kept;
  int i;
  for (i = 0; i < tile->n; i++) {
    float lse = hai_state_lse(tile->m[i], tile->l[i]);
    tally->met += HAI_AS(float, hai_max(0, tile->last[i] + 1 - skipped));
    if (is_exact) {
      scan->error[i] = 0.0f;
      tally->exact++;
      continue;
    }
    tally->pinned += hai_share(scan->lse_sinks[i], lse) - hai_share(hai_lane_sink(job, i), lse);
    tally->sampled += hai_share(scan->lse_exact[i], lse) < 1.0f ? 1.0f - hai_share(scan->lse_exact[i], lse) : 0.0f;
    if (job->plan->params->tolerance > 0.0f && !(scan->error[i] <= job->plan->params->tolerance))
      scan->missed[tally->missed++] = hai_to_int(row + i);
  }
}

/* A tile of queries from `row` on meets what is exact and its sample. Returns 0 where it has to meet every key:
   its states are then to be begun anew. */
static int hai_scan_tile(hai_job *job, hai_scan *scan, hai_index row) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  float times = 1.0f, keys;
  int doubled = 0;
  scan->end = hai_scan_end(plan, row);
  scan->begin = hai_min(plan->sink_keys, scan->end);
  keys = HAI_AS(float, scan->end - scan->begin);
  if (scan->exact_tiles > 0) {
    scan->exact_tiles--;
    return 0;
  }
  if (!hai_scan_pays(plan, scan->end - scan->begin)) return 0;
  scan->query = hai_scan_query(job, scan);
  scan->offset = hai_scan_offset(job, row);
  hai_scan_encode(job, scan);
  hai_scan_exact(job, scan);
  hai_tile_save(tile, scan->state);
  hai_scan_pilot(job, scan);
  for (;;) {
    hai_scan_levels(job, scan);
    hai_scan_keys(job, scan);
    times = plan->params->tolerance > 0.0f && HAI_AS(float, scan->n_kept) * HAI_KEPT_COST > keys ? 0.0f : 1.0f;
    if (times > 0.0f) {
      hai_scan_attend(job, scan);
      hai_scan_judge(job, scan);
      if (plan->params->tolerance == 0.0f) break;
      if (doubled < HAI_MOST_DOUBLED) times = hai_scan_times(job, scan);
    }
    if (times == 0.0f) scan->exact_tiles = HAI_HELD_TILES;
    if (times <= 1.0f) break;
    if (!doubled++) scan->tally->doubled += tile->n;
    scan->budget *= times;
    hai_tile_load(tile, scan->state);
  }
  if (plan->params->tolerance > 0.0f && times > 0.0f) hai_scan_learn(job, scan);
  return times > 0.0f;
}

/* ---- The stage ---- */

/* Opens the tile for queries row .. row + n - 1 of the head. */
static void hai_scan_open(hai_job *job, hai_index row, int n) {
  hai_index first, last;
  int i;
  for (i = 0; i < n; i++) {
    hai_seen_keys(job->plan, row + i, &first, &last);
    hai_tile_query(job, i, job->head, row + i, first, last);
  }
  hai_tile_open(job, n, job->plan->value_dim);
  hai_tile_begin(job);
  job->tile->guarded = job->plan->problem->causal;
}

/* Where the relative errors of the job's queries go: [n_query], or NULL. */
static float *hai_errors(const hai_job *job) {
  const hai_plan *plan = job->plan;
  if (plan->problem->query_error) return plan->problem->query_error + hai_flat_head(job) * plan->n_query;
  return plan->reporting ? hai_floats(job, HAI_ARRAY_ERROR) : HAI_NULL;
}

/* Floats for each lane of a scan's arrays, and bytes of all its memory. */
static hai_index hai_scan_lane_floats(const hai_plan *plan) {
  hai_index packed = hai_is_f32(plan->kernel->dtype) && !plan->may_use_amx ? 0 : plan->head_dim;
  return packed + hai_code_dim(plan) / 4 + 1 + HAI_CHUNK + 10 + 2 + plan->value_dim;
}
static size_t hai_scan_bytes(const hai_plan *plan) {
  hai_index lanes = plan->float_kernel->lanes;
  return hai_times(HAI_AS(size_t, hai_scan_lane_floats(plan) * lanes), sizeof(float)) + 16 * HAI_ALIGN +
         hai_times(HAI_AS(size_t, plan->n_key), sizeof(hai_kept));
}

/* The mean squared distance of values from the sketch's centre, by some of them. */
static float hai_scan_distance(const hai_job *job, const hai_scan *scan) {
  hai_index n = hai_sketch_blocks(job->plan) * HAI_CHUNK, i;
  float sum = 0.0f, seen = 0.0f;
  for (i = 0; i < HAI_CHUNK; i++) {
    float distance = scan->sketch.distance[hai_cut(n, HAI_CHUNK, i)];
    if (!hai_finite(distance)) continue;
    sum += distance;
    seen += 1.0f;
  }
  return seen > 0.0f ? sum / seen : 0.0f;
}

/* Lays the scan's memory out in the job's scratch. */
static void hai_scan_place(hai_job *job, hai_scan *scan) {
  const hai_plan *plan = job->plan;
  hai_index lanes = plan->float_kernel->lanes, row = job->chunk * HAI_SCAN_ROWS;
  char *at = job->scratch;
  int has_packed = !hai_is_f32(plan->kernel->dtype) || plan->may_use_amx;
  scan->kernel = plan->scan_kernel;
  scan->sketch = hai_sketch_of(job);
  scan->packed = hai_carve(&at, has_packed ? plan->head_dim * lanes : 0);
  scan->queries.dim = hai_code_dim(plan);
  scan->queries.code = HAI_PLACE(int32_t, hai_carve(&at, hai_code_dim(plan) / 4 * lanes));
  scan->queries.level = hai_carve(&at, lanes);
  scan->mean = hai_carve(&at, HAI_CHUNK * lanes);
  scan->high = hai_carve(&at, lanes);
  scan->sum = hai_carve(&at, lanes);
  scan->near = hai_carve(&at, lanes);
  scan->far = hai_carve(&at, lanes);
  scan->norm = hai_carve(&at, lanes);
  scan->apart = hai_carve(&at, lanes);
  scan->error = hai_carve(&at, lanes);
  scan->lse_sinks = hai_carve(&at, lanes);
  scan->lse_level = hai_carve(&at, lanes);
  scan->lse_exact = hai_carve(&at, lanes);
  scan->state = hai_carve(&at, (2 + plan->value_dim) * lanes);
  scan->kept = HAI_PLACE(hai_kept, at);
  scan->budget = HAI_AS(float, hai_max(1, plan->sample_size));
  scan->distance = hai_scan_distance(job, scan);
  scan->exact_tiles = 0;
  scan->tally = HAI_PLACE(hai_tally, hai_array_of(job, HAI_ARRAY_TALLY)) + job->chunk;
  scan->missed = hai_ints(job, HAI_ARRAY_MISSED) + row;
  HYPERATTN_MEMSET(scan->tally, 0, sizeof *scan->tally);
}

/* Tiles t .. n - 1, whose first query is `row`, begin anew and meet every key. */
static void hai_scan_nothing(hai_job *job, hai_tile *const *tiles, int n, hai_index row) {
  int i;
  for (i = 0; i < n; i++) {
    job->tile = tiles[i];
    hai_scan_open(job, row, tiles[i]->n);
    row += tiles[i]->n;
  }
  hai_tiles_run(tiles, n, 0, job->plan->n_key);
}

/* Writes what a tile has come to. */
static void hai_scan_close(hai_job *job, hai_scan *scan, hai_index row, int is_exact) {
  float *errors = hai_errors(job);
  int i;
  hai_scan_count(job, scan, row, is_exact);
  hai_tile_close(job);
  for (i = 0; errors && i < job->tile->n; i++) errors[row + i] = scan->error[i];
}

/* Some tiles of consecutive queries from `row` on: each scans, or meets every key. Where the first has to, all
   do, since tiles that meet keys together read them once. */
static void hai_scan_tiles(hai_job *job, hai_scan *scan, hai_tile *const *tiles, int n, hai_index row) {
  int t = 0, scanned, together;
  while (t < n) {
    job->tile = tiles[t];
    scanned = hai_scan_tile(job, scan, row);
    together = scanned || t ? 1 : n;
    if (!scanned) hai_scan_nothing(job, tiles + t, together, row);
    for (; together > 0; together--, t++) {
      job->tile = tiles[t];
      hai_scan_close(job, scan, row, !scanned);
      row += tiles[t]->n;
    }
  }
}

/* Stage SCAN: HAI_SCAN_ROWS queries of a head. Reads the sketch, queries, keys and values; writes results,
   errors, missed rows and the tally. Cost: for each query a product of small integers with each key, and the
   keys that are kept. */
HAI_APART void hai_stage_scan(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tiles[HAI_MAX_TILES];
  hai_scan scan;
  hai_index row = job->chunk * HAI_SCAN_ROWS, end = hai_min(row + HAI_SCAN_ROWS, plan->n_query), next;
  int n = hai_tiles_place(job, tiles), lanes = plan->float_kernel->lanes, i;
  hai_scan_place(job, &scan);
  for (; row < end; row = next) {
    for (i = 0, next = row; i < n && next < end; i++, next += lanes) {
      job->tile = tiles[i];
      hai_scan_open(job, next, hai_to_int(hai_min(lanes, end - next)));
    }
    hai_scan_tiles(job, &scan, tiles, i, row);
  }
}
