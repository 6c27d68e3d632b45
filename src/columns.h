/* ---- Pins and columns: keys that all queries of a rectangle share ----
   Pins are met by every query with log-weight 0: the sink keys and the heavy keys. Columns are a sample of
   the other keys, R, whose log-weight makes up for the keys that were not drawn. Both draws run through R
   in the pairing's order and take one point from each of m strata, so that every bucket is represented. A
   column that a query meets in its blocks too is hidden from it (rectangle.h); no other weight changes. */

static void hai_set_pinned(const hai_job *job, uint32_t *pinned, hai_index key) {
  hai_index bit = key - job->rect.key_begin;
  pinned[bit / 32] |= UINT32_C(1) << (bit % 32);
}

/* The heavy keys: of the rectangle's keys that are no sink keys, those of largest mass. Marks them in
   `pinned`. */
static void hai_pin_heavy(const hai_job *job, hai_index first, uint32_t *pinned) {
  const float *mass = hai_mass(job) - job->rect.key_begin;
  uint64_t *heap = HAI_PLACE(uint64_t, job->scratch);
  hai_index end = job->rect.key_begin + job->rect.n_key, key;
  int most = hai_to_int(hai_min(job->plan->heavy_keys, end - first)), n = 0, i;
  float worst = -hai_inf(); /* of those held: an equal mass need not be offered, since the smaller id wins */
  for (key = first; key < end; key++) {
    if (HAI_SIMD && n == most && !(mass[key] > worst)) continue;
    hai_offer(heap, &n, most, hai_candidate(mass[key], hai_to_int(key)));
    worst = hai_candidate_value(heap[0]);
  }
  for (i = 0; i < n; i++) hai_set_pinned(job, pinned, hai_candidate_id(heap[i]));
}

/* Stage PIN: the pins of a rectangle for one query head. Reads mass; writes pinned (a bit a key), pins
   (ascending) and their count. Cost: n_key, and log heavy_keys for each change of the heaviest so far. */
HAI_APART void hai_stage_pin(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index begin = job->rect.key_begin, end = begin + job->rect.n_key,
            sink_end = hai_min(plan->sink_keys, end), key;
  uint32_t *pinned = hai_pinned(job);
  int32_t *pins = hai_pins(job), n = 0;
  HYPERATTN_MEMSET(pinned, 0, HAI_AS(size_t, hai_ceil_div(job->rect.n_key, 32)) * sizeof(uint32_t));
  if (plan->heavy_keys) hai_pin_heavy(job, hai_max(begin, sink_end), pinned);
  for (key = begin; key < sink_end; key++) hai_set_pinned(job, pinned, key);
  for (key = begin; key < end; key++) {
    hai_index bit = key - begin;
    if (HAI_SIMD && bit % 32 == 0 && !pinned[bit / 32])
      key += 31; /* no pin in a word */
    else if (hai_is_pinned(job, pinned, key))
      pins[n++] = hai_to_int(key);
  }
  hai_counts(job)[0] = n;
}

/* The column at a place of the pairing's order, of `n_blocks` sub-blocks (0: no blocks). */
static hai_column hai_column_at(const hai_job *job, hai_index place, hai_index n_blocks, float log_weight) {
  hai_column column;
  column.key = hai_to_int(hai_at(hai_key_order(job), job->rect.key_begin, place));
  column.block[0] = n_blocks ? hai_to_int(hai_part_of(job->rect.n_key, n_blocks, place)) : -1;
  column.block[1] = -1; /* until that pairing's keys are sorted */
  column.log_weight = log_weight;
  return column;
}

/* Draws one key from each of m strata of the n keys that are not pinned, with log-weight ln of the
   stratum's size; all n, with log-weight 0, if m >= n. Writes the columns in order of places; returns how
   many. Cost: n_key. */
static int32_t hai_draw_uniform(const hai_job *job, hai_index n, hai_index m, int purpose,
                                hai_column *columns) {
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  hai_index n_blocks = hai_key_parts(job->plan, job->rect.n_key), place, at = 0, t = 0, drawn = 0;
  m = hai_min(m, n);
  for (place = 0; place < job->rect.n_key && t < m; place++) {
    if (hai_is_pinned(job, pinned, hai_at(order, job->rect.key_begin, place))) continue;
    if (at == hai_cut(n, m, t)) drawn = hai_draw(n, m, t, hai_random_of(job, purpose, t));
    if (at == drawn)
      columns[t] = hai_column_at(job, place, n_blocks,
                                 hai_log(HAI_AS(float, hai_cut(n, m, t + 1) - hai_cut(n, m, t))));
    if (++at == hai_cut(n, m, t + 1)) t++;
  }
  return hai_to_int(m);
}

/* A key's probability 0.8 w / sum + 0.2 / n, in units of 2^-44: whole numbers, whose sums are exact. */
static uint64_t hai_units(float w, float sum, hai_index n) {
  float share = sum > 0.0f ? 0.8f * (w / sum) + 0.2f / HAI_AS(float, n) : 1.0f / HAI_AS(float, n);
  return HAI_AS(uint64_t, share * 17592186044416.0f) + 1;
}

/* A random point of stratum t of m of [0, total): the stratum is [total t / m, total (t + 1) / m), computed
   without overflow. */
static uint64_t hai_point(const hai_job *job, uint64_t total, hai_index m, hai_index t, int purpose) {
  uint64_t whole = total / HAI_AS(uint64_t, m), rest = total % HAI_AS(uint64_t, m), i = HAI_AS(uint64_t, t);
  uint64_t begin = whole * i + rest * i / HAI_AS(uint64_t, m),
           end = whole * (i + 1) + rest * (i + 1) / HAI_AS(uint64_t, m);
  return hai_uniform(begin, end - begin, hai_random_of(job, purpose, t));
}

/* The sum of all weights but those of pins. */
static float hai_weight_total(const hai_job *job) {
  hai_index chunks = hai_job_probe_chunks(job), c;
  float sum = 0.0f;
  for (c = 0; c < chunks; c++) sum += *hai_partial(job, c);
  return sum;
}

/* The sum of the units of the n keys that are not pinned; `sum` is that of their weights. */
static uint64_t hai_total_units(const hai_job *job, hai_index n, float sum) {
  const uint32_t *pinned = hai_pinned(job);
  const float *weight = hai_mass(job) - job->rect.key_begin;
  hai_index key = job->rect.key_begin, end = key + job->rect.n_key;
  uint64_t total = 0;
  for (; key < end; key++)
    if (!hai_is_pinned(job, pinned, key)) total += hai_units(weight[key], sum, n);
  return total;
}

/* Draws m points, one from each stratum of the cumulative probability of the n keys that are not pinned.
   A key that c points hit is one column of weight c / (m p). Writes the columns in order of places;
   returns how many. Cost: 2 n_key. */
static int32_t hai_draw_weighted(const hai_job *job, hai_index n, hai_index m, int purpose,
                                 hai_column *columns) {
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  const float *weight = hai_mass(job) - job->rect.key_begin;
  hai_index n_blocks = hai_key_parts(job->plan, job->rect.n_key), place, t = 0;
  float sum = hai_weight_total(job);
  uint64_t total = hai_total_units(job, n, sum), below = 0, point = hai_point(job, total, m, 0, purpose);
  int32_t count = 0;
  for (place = 0; place < job->rect.n_key && t < m; place++) {
    uint64_t units;
    hai_index hits = 0, key = hai_at(order, job->rect.key_begin, place);
    if (hai_is_pinned(job, pinned, key)) continue;
    units = hai_units(weight[key], sum, n);
    for (; t < m && point < below + units; hits++)
      if (++t < m) point = hai_point(job, total, m, t, purpose);
    if (hits)
      columns[count++] = hai_column_at(
          job, place, n_blocks,
          hai_log(HAI_AS(float, hits) / HAI_AS(float, m) * (HAI_AS(float, total) / HAI_AS(float, units))));
    below += units;
  }
  return count;
}

/* A draw of m from the n keys that are not pinned. */
static int32_t hai_draw_columns(const hai_job *job, hai_index n, hai_index m, int purpose,
                                hai_column *columns) {
  return job->plan->weighing && m > 0 && m < n ? hai_draw_weighted(job, n, m, purpose, columns)
                                               : hai_draw_uniform(job, n, m, purpose, columns);
}

/* Stage COLUMNS: chunk 0 is the draw of a rectangle for one query head, chunk 1 the wide draw, in which
   columns take the places of block keys. Reads pinned, key_order, the sampling weights (mass) and their sums
   (partial); writes columns, their count, and that no trial has been made. Cost: O(n_key). */
HAI_APART void hai_stage_columns(hai_job *job) {
  const hai_plan *plan = job->plan;
  int32_t *counts = hai_counts(job);
  hai_index n = job->rect.n_key - counts[0];
  int wide = job->chunk > 0;
  counts[1 + wide] = hai_draw_columns(job, n, wide ? plan->max_wide : plan->sample_size,
                                      wide ? HAI_FOR_WIDE : HAI_FOR_COLUMNS, hai_columns(job, wide));
  if (plan->choosing && !wide) hai_verdict_open(job);
}
