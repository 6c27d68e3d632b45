/* ---- Words: which coordinates a scan multiplies first ----
   An estimate is a sum over words of four coordinates. The words that tell most, by the squares of the tile's
   codes and of keys', are multiplied first, and where they and a margin reach no lane's level, the others are
   not: most keys are done with half of the products. P_j is the smaller of what the first words, with the
   margin, and all words give, so nothing is lost on average whatever the margin is. */

#if HAI_SCAN
/* Orders the words, those first that tell most of scores: told [n_words] becomes the mean square of what
   each adds to a sum of products, over lanes and keys, and force [n_words] the largest norm of a lane. Cost:
   the square of words. */
static void hai_scan_order(const hai_job *job, hai_scan *scan) {
  hai_scan_queries *queries = &scan->queries;
  float each = 1.0f / (HAI_AS(float, job->tile->n) * 4.0f);
  int w, at;
  scan->kernel->forces(queries, scan->all, scan->most);
  for (w = 0; w < queries->n_words; w++) {
    scan->force[w] = hai_sqrt(HAI_AS(float, scan->most[w]));
    scan->told[w] = HAI_AS(float, scan->all[w]) * each * scan->sketch.spread[w];
    for (at = w; at > 0 && scan->told[queries->word[at - 1]] < scan->told[w]; at--)
      queries->word[at] = queries->word[at - 1];
    queries->word[at] = w;
  }
}

/* How far above its level the score of a key is that has most of a query's attention. */
static float hai_scan_above(const hai_scan *scan) { return hai_log(scan->budget) - HAI_REST_SHARE; }

/* How many words are first: as many as make the products few, those of all words for the keys that pass
   included. What the last words add to scores has a standard deviation s over the keys, and with the margin
   HAI_REST_MARGIN s nearly all keys pass that all words would let pass. To a key that has most of a query's
   attention they may add more, up to the product of norms: for a usual block that must not be more than the
   margin and hai_scan_above. Where the early blocks tell nothing, all words are first. */
static void hai_scan_first(hai_scan *scan) {
  hai_scan_queries *queries = &scan->queries;
  int n_words = queries->n_words, n;
  float unit = scan->code * *scan->sketch.worth, least = HAI_AS(float, n_words);
  float kept = HAI_KEPT_SHARE * scan->budget / HAI_AS(float, scan->end - scan->begin);
  float above = hai_scan_above(scan), rest = 0.0f, pull = 0.0f;
  queries->n_first = n_words;
  scan->margin = 0.0f;
  if (!(unit * scan->told[queries->word[0]] > 0.0f)) return;
  for (n = n_words - 1; n > 0; n--) {
    float margin, passing, cost;
    rest += scan->told[queries->word[n]];
    pull += scan->force[queries->word[n]] * scan->sketch.usual[queries->word[n]];
    margin = HAI_REST_MARGIN * hai_sqrt(rest);
    if (!(pull * unit <= above + margin * unit) || !(margin < HAI_MOST_MARGIN)) break;
    passing = kept * hai_exp(margin * unit);
    if (passing > 1.0f) passing = 1.0f;
    cost = HAI_AS(float, n) + HAI_PASSING_COST * passing * HAI_AS(float, n_words - n);
    if (cost >= least) continue;
    least = cost;
    queries->n_first = n;
    scan->margin = margin;
  }
}

/* A block's margin: at least what the last words of any of its keys might add, for any lane, to a score that
   is as far above its level as that of a key which has most of a query's attention: the product of norms. So
   no such key is lost, whatever it is like. `above`: hai_scan_above. */
static int32_t hai_scan_margin(const hai_scan *scan, hai_index block, float unit, float above) {
  const hai_scan_queries *queries = &scan->queries;
  const float *norm = scan->sketch.norm + block * queries->n_words;
  float pull = 0.0f;
  int n;
  for (n = queries->n_first; n < queries->n_words; n++)
    pull += scan->force[queries->word[n]] * norm[queries->word[n]];
  pull -= above / unit;
  if (pull < scan->margin) pull = scan->margin;
  return HAI_AS(int32_t, pull < HAI_MOST_MARGIN ? pull : HAI_MOST_MARGIN);
}
#endif
