/* ---- Algorithm 2's normaliser ---- */

/* The largest ln T over some of the sampled rows, which are drawn one from each stratum of the ordered
   queries. T is a row's sum of e^score over all keys but the pins and those of its blocks. Cost:
   sample_size * n_key in all. */
HAI_APART void hai_stage_cap(hai_job *job) {
  const hai_plan *plan = job->plan;
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  hai_index n_query = job->rect.n_query, n_key = job->rect.n_key, parts = hai_key_parts(plan, n_key), rank;
  hai_index rows = hai_min(plan->sample_size, n_query), at = job->chunk * HAI_TASK_QUERIES;
  hai_index end = hai_min(at + HAI_TASK_QUERIES, rows);
  float most = -hai_inf();
  int n, i;
  for (; at < end; at += n) {
    n = hai_to_int(hai_min(plan->float_kernel->lanes, end - at));
    job->tile->n_groups = 0;
    for (i = 0; i < n; i++) {
      uint64_t random = hai_random_of(job, HAI_FOR_CAP, at + i);
      hai_tile_sorted(job, i, hai_draw(n_query, rows, at + i, random));
    }
    hai_tile_open(job, n, 0);
    for (rank = 0; rank < n_key; rank++) {
      hai_index key = hai_at(order, job->rect.key_begin, rank);
      int32_t block = parts ? hai_to_int(hai_part_of(n_key, parts, rank)) : -1;
      if (!hai_is_pinned(job, pinned, key))
        hai_tile_push(job->tile, key, ~hai_tile_holds(job->tile, block));
    }
    hai_tile_flush(job->tile);
    for (i = 0; i < n; i++)
      most = hai_state_lse(job->tile->m[i], job->tile->l[i]) > most
                 ? hai_state_lse(job->tile->m[i], job->tile->l[i])
                 : most;
  }
  hai_cap(job)[job->chunk] = most;
}

/* Columns under the normaliser with Algorithm 2's cap and floor:
     C = eps^2 m / (n ln n) (B + T / kappa),
     D = B + max(sum over columns of w min(e^s, C), T / kappa) + e^sink, out = numerator / D, lse = ln D.
   B is the sum of what the tile has met so far; the numerator is not capped. The columns are met twice, for
   the numerator, and with clipped scores for D. Sums are kept as logarithms, since they may exceed a float's
   range. */
HAI_APART void hai_attend_columns_capped(hai_job *job) {
  const hyperattn_params *p = job->plan->params;
  hai_tile *tile = job->tile;
  int lanes = tile->kernel->lanes, i;
  float *block = tile->spare, *m = block + lanes, *clip = m + lanes;
  float n = HAI_AS(float, job->rect.n_key), least = -hai_inf();
  float rate = 2.0f * hai_log(p->cap_epsilon) + hai_log(HAI_AS(float, job->plan->sample_size)) -
               hai_log(n * hai_log(n));
  hai_index value_dim = tile->value_dim,
            chunks = hai_ceil_div(hai_min(job->plan->sample_size, job->rect.n_query), HAI_TASK_QUERIES);
  hai_index t;
  if (p->cap_kappa > 0.0f) least = hai_largest(hai_cap(job), chunks) - hai_log(p->cap_kappa);
  for (i = 0; i < tile->n; i++) {
    block[i] = hai_state_lse(tile->m[i], tile->l[i]);
    clip[i] = p->cap_epsilon > 0.0f ? rate + hai_log_add(block[i], least) : hai_inf();
  }
  hai_attend_columns(job, 0);
  hai_tile_settle(tile);
  for (i = 0; i < tile->n; i++) {
    m[i] = tile->m[i];
    hai_lane_set(tile, i, -hai_inf()); /* a sum of its own, over the columns alone */
  }
  tile->clip = clip;
  tile->value_dim = 0;
  hai_attend_columns(job, 0);
  tile->clip = HAI_NULL;
  tile->value_dim = value_dim;
  for (i = 0; i < tile->n; i++) {
    float rest = hai_state_lse(tile->m[i], tile->l[i]);
    float sum = hai_log_add(block[i], rest > least ? rest : least), factor;
    if (HAI_SINKS && !job->audit) sum = hai_log_add(sum, hai_lane_sink(job, i)); /* hai_compare has its own */
    factor = sum == -hai_inf() ? 0.0f : hai_exp(m[i] - sum);
    for (t = 0; t < value_dim; t++) tile->o[t * lanes + i] *= factor;
    hai_lane_set(tile, i, sum);
  }
  hai_tile_reset_sums(tile);
}
