/* ---- The scan: every query its own keys ----
   The queries of a rectangle scan its keys: under HYPERATTN_SCAN those of the whole problem, and under
   HYPERATTN_HYPER those of a rectangle for which no trial met the tolerance, which go on from what they have
   met before. A tile of queries of one head estimates its scores with all keys of the sketch that end before
   its first query's window, and keeps key j with probability
     P_j = min(1, max over lanes i of b e^(estimate_ij) / Z_i),
   Z_i an estimate of all that query i has met and sees here, and b the budget. All lanes meet the kept keys,
   whose scores are exact, with log-weight -ln P_j: e^lse and e^lse out are unbiased at a fixed b, whatever
   the estimates are worth, and a key that matters to any lane has P_j = 1. Sinks, the window and what does
   not fill a block are met exactly.

   Most keys are done with by a part of their coordinates (words.h).

   Z_i is the sum of what is met exactly and of a pilot's estimate: a group of HAI_PILOT neighbouring keys
   from each of up to HAI_PILOT_BLOCKS blocks, of which a lane's largest group counts once, and the others
   for those that were left out: a few keys that have most of the weight must not count for many.

   The sample tells its own error: the variance of out_i is about the sum over kept keys of (1 - P_j) (w_ij
   / l_i)^2 |v_j - out_i|^2, w_ij the weight with which key j was met, and |v_j - out_i|^2 about |v_j -
   c|^2 + |out_i - c|^2, c the sketch's centre. Where queries miss the tolerance, a tile is scanned
   again with a larger budget, or attends to all keys, or leaves these queries to a later phase (mending.h):
   whatever costs least. The budget that would have cost least is the next tile's.

   Draws are one table for all tiles, of which each tile begins at a place of its own, by a hash of its
   first query: so the noise of tiles and heads is not correlated, and nothing depends on workers, or on
   which heads and batches a call holds. */

#if HAI_SCAN
typedef struct hai_kept {
  int32_t key;
  float log_share; /* ln of the probability with which it was kept */
} hai_kept;

typedef struct hai_scan {
  const hai_scan_kernel *kernel;
  hai_sketch sketch;
  hai_scan_queries queries;
  const float *query;                      /* [head_dim][lanes]: in float32, times the scale */
  float *packed;                           /* room for it where the kernel reads another dtype */
  float code;                              /* what a query's code is worth */
  uint64_t outliers;                       /* bit i: lane i takes no part in what is kept */
  int32_t *all, *most;                     /* [n_words]: squares of words' codes, of all lanes; of one */
  float *told, *force;                     /* [n_words]: what words tell */
  float margin;                            /* of a usual block, */
  float *mean;                             /* [HAI_CHUNK][lanes]: products with the means of blocks; of kept
                                              keys, two numbers each */
  float *high, *sum, *group;               /* [lanes]: of the pilot */
  float *scatter, *squares, *norm, *apart; /* [lanes]: of the sample's variance */
  float distance;                          /* of values from the centre, squared, on average */
  float *error;                            /* [lanes]: relative error of each query */
  float *lse_sinks, *lse_total,
      *lse_exact; /* [lanes]: with sinks; of what counts in Z, so far; of what is met exactly */
  float *state;   /* the lanes' states before the sample */
  hai_kept *kept; /* [n_key] */
  int32_t n_kept;
  hai_index begin, end; /* the keys that are scanned */
  hai_index offset;     /* of the tile in the draws */
  float budget;
  int exact_tiles; /* so many more tiles are attended exactly at once */
  hai_tally *tally;
  int32_t *missed;
} hai_scan;

/* ---- Where it pays ---- */

/* A task's first budget, and with a tolerance its least. */
static float hai_scan_budget(const hai_plan *plan) {
  return HAI_AS(float, hai_max(1, plan->sample_size));
}

/* Work of a tile that scans so many keys and keeps some of them, in keys that are met exactly. */
static float hai_scan_work(const hai_plan *plan, float keys, float kept) {
  return keys * plan->scan_kernel->cost + kept * HAI_KEPT_COST;
}

/* Is it worth to scan so many keys? A tile keeps about HAI_KEPT_SHARE keys for each of the budget. */
static int hai_scan_pays(const hai_plan *plan, hai_index keys) {
  float n = HAI_AS(float, keys);
  return plan->n_query >= HAI_LEAST_SCANNED && keys >= plan->min_seq_len &&
         hai_scan_work(plan, n, HAI_KEPT_SHARE * HAI_AS(float, plan->sample_size)) < n;
}

/* The first key behind those that the tile of queries from `row` on scans, of keys that end at `end`; and how
   many it scans of a whole problem. */
static hai_index hai_scan_end(const hai_plan *plan, hai_index row, hai_index end) {
  hai_index first, last;
  hai_seen_keys(plan, row, &first, &last);
  return hai_max(0, hai_min(last + 1 - plan->window, end)) / HAI_CHUNK * HAI_CHUNK;
}
static hai_index hai_scanned_keys(const hai_plan *plan, hai_index row) {
  return hai_max(0, hai_scan_end(plan, row, plan->n_key) - plan->sink_keys);
}

#ifndef HYPERATTN_NO_COST
/* What a call is expected to cost, over what exact attention would: HAI_COST_POINTS of its queries stand for
   all. */
static float hai_scan_cost(const hai_plan *plan) {
  float work = 0.0f, exact = 0.0f, kept = HAI_KEPT_SHARE * HAI_AS(float, plan->sample_size);
  int point;
  for (point = 0; point < HAI_COST_POINTS; point++) {
    hai_index row = hai_cut(plan->n_query, HAI_COST_POINTS, point), first, last,
              keys = hai_scanned_keys(plan, row);
    hai_seen_keys(plan, row, &first, &last);
    if (last < 0) continue;
    exact += HAI_AS(float, last + 1);
    work += HAI_AS(float, last + 1);
    if (hai_scan_pays(plan, keys))
      work += hai_scan_work(plan, HAI_AS(float, keys), kept) - HAI_AS(float, keys);
  }
  return work < 0.999f * exact ? work / exact : 0.999f; /* 1 is for what is exact */
}
#endif
#endif
