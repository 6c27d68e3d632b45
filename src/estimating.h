/* ---- Estimating: a tile's codes, the pilot, and the keys that are kept ---- */

#if HAI_SCAN
/* ---- A tile's queries ---- */

/* The tile's packed queries, those from `row` on, in float32. */
static const float *hai_scan_query(const hai_job *job, const hai_scan *scan, hai_index row) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  int i;
  if (hai_is_f32(tile->kernel->dtype)) return tile->query;
  for (i = 0; i < tile->n; i++) tile->row[i] = hai_query_row(job, job->head, row + i, hai_line(tile, i));
  for (; i < tile->kernel->lanes; i++) tile->row[i] = HAI_NULL;
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

/* The largest coordinate by which the tile's queries are encoded: that of all that are finite. With a
   tolerance, queries much larger than the others, whose codes would not tell them apart, are left out:
   they take no part in what is kept, and are mended. scan->outliers says which. */
static float hai_scan_largest(const hai_job *job, hai_scan *scan) {
  const hai_tile *tile = job->tile;
  int32_t *bits = tile->id; /* [lanes]: no key waits */
  float sum = 0.0f, seen = 0.0f, largest = 0.0f;
  int i;
  scan->kernel->largest(scan->query, job->plan->head_dim, bits);
  for (i = 0; i < tile->n; i++) {
    float x = hai_float(HAI_AS(uint32_t, bits[i]));
    if (!hai_finite(x)) continue;
    sum += x;
    seen += 1.0f;
  }
  scan->outliers = 0;
  for (i = 0; i < tile->n; i++) {
    float x = hai_float(HAI_AS(uint32_t, bits[i]));
    int is_large = job->plan->params->tolerance > 0.0f && x * seen > HAI_OUTLIER * sum;
    if (is_large || !hai_finite(x))
      scan->outliers |= UINT64_C(1) << i;
    else if (x > largest)
      largest = x;
  }
  return largest;
}
static int hai_scan_is_outlier(const hai_scan *scan, int lane) {
  return HAI_AS(int, scan->outliers >> lane & 1);
}

HAI_APART void hai_scan_encode(const hai_job *job, hai_scan *scan) {
  float largest = hai_scan_largest(job, scan), inverse = 63.0f / largest;
  if (!hai_finite(inverse)) inverse = 0.0f;
  scan->code = largest * (1.0f / 63.0f);
  scan->kernel->quantise(scan->query, job->plan->head_dim, inverse, scan->queries.code);
  hai_scan_order(job, scan);
  hai_scan_first(scan);
  scan->kernel->lift(&scan->queries);
  scan->queries.begin = job->tile->begin;
  scan->queries.end = job->tile->end;
}

/* ---- Blocks ---- */

/* Block `block` of the sketch as the kernel reads it, its products with the queries in row j of scan->mean.
   Returns 0 where the block is not known, or its codes are too coarse, and it has to be met whole. */
static int hai_scan_block_at(const hai_job *job, const hai_scan *scan, hai_index block, int j,
                             hai_scan_block *b) {
  hai_index draws = hai_sketch_blocks(job->plan) * HAI_CHUNK, at = block * HAI_CHUNK;
  b->code = scan->sketch.code + 4 * at * scan->queries.n_words;
  b->draw = scan->sketch.draw + (at + scan->offset) % draws;
  b->mean = scan->mean + j * job->tile->kernel->lanes;
  b->unit = scan->code * scan->sketch.unit[block];
  if (b->unit < HAI_LEAST_UNIT) b->unit = HAI_LEAST_UNIT;
  return scan->sketch.unit[block] != HAI_WHOLE && b->unit < HAI_MOST_UNIT;
}

/* Products of the queries with the means of n blocks, `step` apart; 0 for outliers, whose may be NaN. */
static void hai_scan_means(const hai_job *job, const hai_scan *scan, hai_index block, hai_index step, int n) {
  const hai_plan *plan = job->plan;
  const void **mean = job->tile->key; /* [chunk]: no key waits */
  uint64_t bits;
  int j;
  for (j = 0; j < n; j++) mean[j] = scan->sketch.mean + (block + j * step) * plan->head_dim;
  plan->float_kernel->scores(scan->query, plan->head_dim, mean, n, job->tile->begin, job->tile->end,
                             scan->mean);
  for (bits = scan->outliers; bits; bits &= bits - 1)
    for (j = 0; j < n; j++) scan->mean[j * plan->float_kernel->lanes + hai_lowest_bit(bits)] = 0.0f;
}

/* The pilot: estimates of a few keys of some blocks. Leaves ln of what a lane's scanned keys add up to in
   scan->high, and ln Z_i in scan->lse_total. */
HAI_APART void hai_scan_pilot(const hai_job *job, hai_scan *scan) {
  hai_tile *tile = job->tile;
  hai_index first = hai_ceil_div(scan->begin, HAI_CHUNK), blocks = scan->end / HAI_CHUNK - first;
  hai_index step = hai_ceil_div(blocks, HAI_PILOT_BLOCKS), at;
  hai_scan_block block;
  float seen = 0.0f, others;
  int i, j, n;
  for (i = 0; i < tile->kernel->lanes; i++) {
    scan->high[i] = -hai_inf();
    scan->sum[i] = scan->group[i] = 0.0f;
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
      scan->kernel->collect(tile->score, tile->begin, tile->end, scan->high, scan->sum, scan->group);
      seen += HAI_PILOT;
    }
  }
  others =
      seen > HAI_PILOT ? (HAI_AS(float, scan->end - scan->begin) - HAI_PILOT) / (seen - HAI_PILOT) : 0.0f;
  for (i = 0; i < tile->n && seen > 0.0f; i++) {
    scan->high[i] = hai_add_log(scan->high[i], scan->group[i] + (scan->sum[i] - scan->group[i]) * others);
    scan->lse_total[i] = hai_log_add(scan->lse_total[i], scan->high[i]);
  }
}

/* How much a softcap lifts a score that it makes `score`; infinite where it makes none so low, and 0 where
   none so high. Estimates are not capped, and keys whose score they tell too low would be kept too rarely:
   levels are lowered by the lift of keys whose share is so small that those below do not matter. */
static float hai_scan_lift(float softcap, float score) {
  if (score <= -softcap) return hai_inf();
  if (score >= softcap) return 0.0f;
  return score - 0.5f * softcap * hai_log((softcap + score) / (softcap - score));
}

/* What an estimate and a draw must reach together for a key to be kept: ln Z_i - ln b. Outliers, lanes
   whose sums are not finite and those without a query keep no key; a lane that has met nothing keeps all. */
static void hai_scan_levels(const hai_job *job, const hai_scan *scan) {
  const hai_tile *tile = job->tile;
  float log_budget = hai_log(scan->budget), log_keys = hai_log(HAI_AS(float, scan->end - scan->begin));
  int i;
  for (i = 0; i < tile->kernel->lanes; i++) {
    float level = i < tile->n ? scan->lse_total[i] : hai_inf();
    if (HAI_SOFTCAP && tile->softcap > 0.0f && i < tile->n)
      level -= hai_scan_lift(tile->softcap, level - log_keys - HAI_LEAST_SHARE);
    level -= log_budget;
    scan->queries.level[i] = level < hai_inf() && !hai_scan_is_outlier(scan, i) ? level : hai_inf();
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

/* Scans all keys; leaves those that are kept in scan->kept. Cost: a product of small integers for each
   pair. */
HAI_APART void hai_scan_keys(const hai_job *job, hai_scan *scan) {
  hai_index block = scan->begin / HAI_CHUNK, blocks = scan->end / HAI_CHUNK;
  hai_scan_block b;
  int32_t *most = job->tile->id; /* [chunk]: no key waits */
  float above = hai_scan_above(scan);
  int j, n;
  scan->n_kept = 0;
  for (; block < blocks; block += n) {
    n = hai_to_int(hai_min(HAI_CHUNK, blocks - block));
    hai_scan_means(job, scan, block, 1, n);
    for (j = 0; j < n; j++) {
      hai_index key = (block + j) * HAI_CHUNK;
      uint64_t hits = UINT64_MAX;
      int known = hai_scan_block_at(job, scan, block + j, j, &b);
      if (known) {
        b.margin = hai_scan_margin(scan, block + j, b.unit, above);
        hits = scan->kernel->hits(&scan->queries, &b, most);
      }
      if (key < scan->begin) hits &= UINT64_MAX << (scan->begin - key); /* sinks are met already */
      hai_scan_keep(scan, key, hits, known ? most : HAI_NULL, b.unit);
    }
  }
}
#endif
