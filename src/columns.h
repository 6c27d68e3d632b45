/* ---- Pins and columns ---- */

/* Marks the rectangle's sinks and its keys of largest column mass, and lists them upwards. */
HAI_APART void hai_stage_pin(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index begin = job->rect.key_begin, end = begin + job->rect.n_key,
            sinks = hai_min(plan->sink_keys, end), key;
  uint32_t *pinned = hai_pinned(job);
  int32_t *pins = hai_pins(job), n = 0;
  int heavy = 0, i;
  HYPERATTN_MEMSET(pinned, 0, HAI_AS(size_t, hai_ceil_div(job->rect.n_key, 32)) * sizeof(uint32_t));
  if (plan->heavy_keys) {
    const float *mass = hai_mass(job) - begin;
    uint64_t *heap = HAI_PLACE(uint64_t, job->scratch);
    int k =
        hai_to_int(hai_min(plan->heavy_keys, end - hai_max(begin, sinks))); /* sinks are pinned anyway */
    for (key = hai_max(begin, sinks); key < end; key++)
      hai_offer(heap, &heavy, k, hai_candidate(mass[key], hai_to_int(key)));
    for (i = 0; i < heavy; i++) pins[i] = hai_candidate_id(heap[i]);
  }
  for (i = 0; i < heavy; i++) pinned[(pins[i] - begin) / 32] |= UINT32_C(1) << ((pins[i] - begin) % 32);
  for (key = begin; key < sinks; key++) pinned[(key - begin) / 32] |= UINT32_C(1) << ((key - begin) % 32);
  for (key = begin; key < end; key++)
    if (hai_is_pinned(job, pinned, key)) pins[n++] = hai_to_int(key);
  hai_counts(job)[0] = n;
}

static hai_column hai_column_at(const hai_job *job, hai_index rank, hai_index parts, float log_weight) {
  hai_column column;
  column.key = hai_to_int(hai_at(hai_key_order(job), job->rect.key_begin, rank));
  column.block = parts ? hai_to_int(hai_part_of(job->rect.n_key, parts, rank)) : -1;
  column.log_weight = log_weight;
  return column;
}

/* One key of each stratum of the n keys that are not pinned, in sorted order; m >= n: all of them,
   weight 1. */
static int32_t hai_draw_uniform(const hai_job *job, hai_index n, hai_index m, int purpose,
                                hai_column *columns) {
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  hai_index parts = hai_key_parts(job->plan, job->rect.n_key), rank, at = 0, t = 0, next = 0;
  m = hai_min(m, n);
  for (rank = 0; rank < job->rect.n_key && t < m; rank++) {
    if (hai_is_pinned(job, pinned, hai_at(order, job->rect.key_begin, rank))) continue;
    if (at == hai_cut(n, m, t)) next = hai_draw(n, m, t, hai_random_of(job, purpose, t));
    if (at == next)
      columns[t] =
          hai_column_at(job, rank, parts, hai_log(HAI_AS(float, hai_cut(n, m, t + 1) - hai_cut(n, m, t))));
    if (++at == hai_cut(n, m, t + 1)) t++;
  }
  return hai_to_int(m);
}

/* Units of 2^-44 of a key's probability 0.8 w / sum + 0.2 / n: whole numbers, so that the table adds up
   exactly. */
static uint64_t hai_units(float w, float sum, hai_index n) {
  float share = sum > 0.0f ? 0.8f * (w / sum) + 0.2f / HAI_AS(float, n) : 1.0f / HAI_AS(float, n);
  return HAI_AS(uint64_t, share * 17592186044416.0f) + 1;
}

/* A point in part t of m of [0, total); the part is [total t / m, total (t + 1) / m), cut without
   overflow. */
static uint64_t hai_point(const hai_job *job, uint64_t total, hai_index m, hai_index t, int purpose) {
  uint64_t whole = total / HAI_AS(uint64_t, m), rest = total % HAI_AS(uint64_t, m), i = HAI_AS(uint64_t, t);
  uint64_t begin = whole * i + rest * i / HAI_AS(uint64_t, m),
           end = whole * (i + 1) + rest * (i + 1) / HAI_AS(uint64_t, m);
  return hai_uniform(begin, end - begin, hai_random_of(job, purpose, t));
}

/* m points, one in each m-th part of the cumulative table; a key hit c times is one column of weight c /
   (m p). */
static int32_t hai_draw_weighted(const hai_job *job, hai_index n, hai_index m, int purpose,
                                 hai_column *columns) {
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  const float *weight = hai_mass(job) - job->rect.key_begin;
  hai_index parts = hai_key_parts(job->plan, job->rect.n_key), rank, t = 0;
  uint64_t total = 0, below = 0, point;
  int32_t count = 0;
  float sum = 0.0f;
  int pass;
  for (pass = 0; pass < 2; pass++) /* the sum of weights, then the table's total */
    for (rank = 0; rank < job->rect.n_key; rank++) {
      hai_index key = hai_at(order, job->rect.key_begin, rank);
      if (hai_is_pinned(job, pinned, key)) continue;
      if (pass == 0)
        sum += weight[key];
      else
        total += hai_units(weight[key], sum, n);
    }
  point = hai_point(job, total, m, 0, purpose);
  for (rank = 0; rank < job->rect.n_key && t < m; rank++) {
    uint64_t units;
    hai_index hits = 0, key = hai_at(order, job->rect.key_begin, rank);
    if (hai_is_pinned(job, pinned, key)) continue;
    units = hai_units(weight[key], sum, n);
    for (; t < m && point < below + units; hits++)
      if (++t < m) point = hai_point(job, total, m, t, purpose);
    if (hits)
      columns[count++] = hai_column_at(
          job, rank, parts,
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

/* Columns of a rectangle for one query head. Cost: O(n_key). */
HAI_APART void hai_stage_columns(hai_job *job) {
  const hai_plan *plan = job->plan;
  int32_t *counts = hai_counts(job);
  hai_index n = job->rect.n_key - counts[0];
  counts[1] = hai_draw_columns(job, n, plan->sample_size, HAI_FOR_COLUMNS, hai_columns(job, 0));
  counts[2] = hai_draw_columns(job, n, plan->max_wide, HAI_FOR_WIDE, hai_columns(job, 1));
  if (job->plan->choosing) hai_verdict_open(hai_verdict_of(job));
}
