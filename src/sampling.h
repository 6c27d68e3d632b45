/* ---- The sample of a scan: what a tile meets, what its error is, and which budget it should have ---- */

#if HAI_SCAN
/* Starts to load rows of kept keys begin .. end - 1. */
HAI_HOT void hai_scan_fetch(const hai_tile *tile, const hai_scan *scan, int32_t begin, int32_t end) {
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
  float *missing = scan->mean, *distance = missing + HAI_CHUNK; /* [chunk]: no block is read meanwhile */
  int32_t at, next;
  int i, j;
  for (i = 0; i < tile->kernel->lanes; i++) scan->scatter[i] = scan->squares[i] = 0.0f;
  hai_tile_aim(tile, 0, tile->n);
  for (at = 0; at < scan->n_kept; at = next) {
    next = at + HAI_CHUNK < scan->n_kept ? at + HAI_CHUNK : scan->n_kept;
    for (j = 0; j < next - at; j++) {
      const hai_kept *kept = &scan->kept[at + j];
      hai_tile_put(tile, j, kept->key);
      tile->log_weight[j] = -kept->log_share;
    }
    for (; j < HAI_CHUNK; j++) tile->log_weight[j] = 0.0f; /* a register of them is read */
    scan->kernel->missing(tile->log_weight, next - at, missing);
    for (j = 0; j < next - at; j++)
      distance[j] = missing[j] > 0.0f ? scan->sketch.distance[scan->kept[at + j].key] : 0.0f;
    hai_scan_fetch(tile, scan, next, next + HAI_CHUNK < scan->n_kept ? next + HAI_CHUNK : scan->n_kept);
    tile->n_keys = next - at;
    tile->weighted = 1;
    hai_tile_flush(tile);
    scan->kernel->spread(tile->score, next - at, missing, distance, tile->factor, tile->begin, tile->end,
                         scan->scatter, scan->squares);
  }
}

/* Is the lane's result 0 in every coordinate? */
static int hai_lane_is_zero(const hai_tile *tile, int lane) {
  hai_index t = 0;
  while (t < tile->value_dim && tile->o[t * tile->kernel->lanes + lane] == 0.0f) t++;
  return t == tile->value_dim;
}

/* e^part / (e^part + e^rest); 0 for an empty part. */
static float hai_part_share(float part, float rest) {
  return part == -hai_inf() ? 0.0f : 1.0f / (1.0f + hai_exp(rest - part));
}

/* Each query's relative error. What the sample says of the variance is added to what it cannot say. Of the
   scanned keys, whose share of the attention is s, it holds about n = b s of a lane's own, and where these
   are few, they may well all be missing, and the variance with them. With P_j at least b a_ij, a_ij the
   share of key j, the variance is at most sum_j a_ij |v_j - out_i|^2 / b, about s times the mean distance
   over b; that counts as if one more key had been seen, with the weight 1 / (n + 1). Where the pilot took
   Z_i for more than the sample finds, b was less by as much. */
static void hai_scan_judge(const hai_job *job, hai_scan *scan) {
  hai_tile *tile = job->tile;
  int i;
  hai_tile_settle(tile);
  scan->kernel->distances(tile->o, tile->value_dim, tile->l, scan->sketch.centre, tile->begin, tile->end,
                          scan->norm, scan->apart);
  for (i = 0; i < tile->n; i++) {
    float l = tile->l[i], found = l * hai_exp(tile->m[i] - scan->lse_total[i]); /* of Z_i */
    float share = hai_part_share(scan->high[i], scan->lse_exact[i]);
    float budget = scan->budget * (found < 1.0f ? found : 1.0f);
    float seen = l == 0.0f ? 0.0f : (scan->scatter[i] + scan->squares[i] * scan->apart[i]) / l / l;
    float unseen = share * (scan->distance + scan->apart[i]) / budget;
    scan->error[i] = hai_relative(seen + unseen / (budget * share + 1.0f), scan->norm[i]);
    if (scan->norm[i] < HAI_LEAST_SQUARE && !hai_lane_is_zero(tile, i)) scan->error[i] = hai_inf();
    if (hai_scan_is_outlier(scan, i)) scan->error[i] = hai_inf();
  }
}

/* ---- The budget ---- */

/* How many of the tile's queries would miss the tolerance with a budget `times` as large. */
static float hai_scan_misses(const hai_job *job, const hai_scan *scan, float times) {
  float allowed = job->plan->params->tolerance * hai_sqrt(times), n = 0.0f;
  int i;
  for (i = 0; i < job->tile->n; i++) n += scan->error[i] > allowed ? 1.0f : 0.0f;
  return n;
}

/* Work of a tile, in products of a query and a key, with a budget `times` as large: what is kept, and the
   queries that are left to be mended. */
static float hai_scan_price(const hai_job *job, const hai_scan *scan, float times) {
  float lanes = HAI_AS(float, job->tile->n), keys = HAI_AS(float, scan->end - scan->begin);
  float kept = HAI_AS(float, scan->n_kept) * hai_sqrt(times);
  return lanes * (kept < keys ? kept : keys) * HAI_KEPT_COST +
         hai_scan_misses(job, scan, times) * keys * HAI_MEND_COST;
}

/* Which of n budgets, as multiples of the tile's, costs least: what is kept, the queries left to be mended
   and, for a budget other than the tile's own, `again`. */
static float hai_scan_cheapest(const hai_job *job, const hai_scan *scan, const float *times, int n, float own,
                               float again) {
  float best = 1.0f, least = own;
  int i;
  for (i = 0; i < n; i++) {
    float price = hai_scan_price(job, scan, times[i]) + again;
    if (price < least) {
      least = price;
      best = times[i];
    }
  }
  return best;
}

/* How many times the budget a tile should have: 1 where its sample is good enough, since that is paid for, 0
   where exact attention is cheapest. */
static float hai_scan_times(const hai_job *job, const hai_scan *scan) {
  static const float more[] = {2.0f, 4.0f, 8.0f, 16.0f};
  float lanes = HAI_AS(float, job->tile->n), keys = HAI_AS(float, scan->end - scan->begin);
  float again = lanes * keys * job->plan->scan_kernel->cost;
  float own = hai_scan_misses(job, scan, 1.0f) * keys * HAI_MEND_COST;
  float best = hai_scan_cheapest(job, scan, more, 4, own, again);
  float least = best > 1.0f ? hai_scan_price(job, scan, best) + again : own;
  return lanes * keys < least ? 0.0f : best;
}

/* The next tile's budget: what would have been best for this one, but no less than the parameters'. A smaller
   one saves little, and lets every query that is easy err as much as the tolerance allows. */
static void hai_scan_learn(const hai_job *job, hai_scan *scan) {
  static const float around[] = {0.5f, 0.70710678f, 1.41421356f, 2.0f};
  scan->budget *= hai_scan_cheapest(job, scan, around, 4, hai_scan_price(job, scan, 1.0f), 0.0f);
  if (scan->budget < hai_scan_budget(job->plan)) scan->budget = hai_scan_budget(job->plan);
}
#endif
