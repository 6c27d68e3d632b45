/* ---- States of the lanes ---- */

/* Sets m and l to a sum of weights whose logarithm is lse; -inf: an empty sum; NaN or +inf: NaN. */
static void hai_state_begin(float lse, float *m, float *l) {
  *m = lse;
  *l = lse == -hai_inf() ? 0.0f : 1.0f;
  if (HAI_SINKS && !(lse < hai_inf())) *l = hai_float(0x7fc00000u);
}
static void hai_lane_set(hai_tile *tile, int lane, float lse) {
  hai_state_begin(lse, &tile->m[lane], &tile->l[lane]);
  tile->l[tile->kernel->lanes + lane] = 0.0f;
}

/* Puts query `row` of a head into a lane, to see keys first .. last. Lanes are filled from 0 on, without
   gaps. */
static void hai_tile_query(hai_job *job, int lane, hai_index head, hai_index row, hai_index first,
                           hai_index last) {
  const hyperattn_problem *p = job->plan->problem;
  hai_tile *tile = job->tile;
  if (hai_is_f32(tile->kernel->dtype))
    tile->row[lane] = hai_query_row(job, head, row, hai_line(tile, lane));
  else
    tile->row[lane] = hai_row(&p->query, job->batch, head, row);
  hai_fetch(HAI_AS(const char *, tile->row[lane]),
            HAI_AS(size_t, hai_offset(p->query.dtype, job->plan->head_dim)));
  tile->state[lane] = hai_flat_head_of(job, head) * job->plan->n_query + row;
  tile->result[lane] = hai_out_row(&p->out, job->batch, head, row);
  tile->out[lane] = hai_is_f32(p->out.dtype) ? HAI_AS(float *, tile->result[lane])
                    : hai_stores_states(job->plan)
                        ? hai_stored_out(job) + tile->state[lane] * job->plan->value_dim
                        : hai_line(tile, lane);
  tile->first[lane] = first;
  tile->last[lane] = last;
}

/* Opens the tile for the n queries that were put into lanes 0 .. n - 1: packs them, times the plan's scale,
   and empties their states: m = -inf, l = 0, o = 0. */
static void hai_tile_open(hai_job *job, int n, hai_index value_dim) {
  hai_tile *tile = job->tile;
  int i, lanes = tile->kernel->lanes;
  tile->n = n;
  tile->n_keys = tile->masked = tile->weighted = tile->guarded = tile->nonfinite = tile->carried = 0;
  tile->clip = HAI_NULL;
  if (HAI_SOFTCAP) tile->softcap = job->plan->problem->softcap;
  tile->value_dim = value_dim;
  tile->min_first = tile->max_first = tile->first[0];
  tile->min_last = tile->max_last = tile->last[0];
  for (i = 0; i < n; i++) {
    tile->min_first = hai_min(tile->min_first, tile->first[i]);
    tile->max_first = hai_max(tile->max_first, tile->first[i]);
    tile->min_last = hai_min(tile->min_last, tile->last[i]);
    tile->max_last = hai_max(tile->max_last, tile->last[i]);
  }
  for (i = 0; i < lanes; i++) {
    if (i >= n) tile->row[i] = tile->out[i] = HAI_NULL;
    hai_lane_set(tile, i, -hai_inf());
  }
  tile->kernel->pack(tile->row, job->plan->head_dim, job->plan->scale, tile->query);
  HYPERATTN_MEMSET(tile->o, 0, HAI_AS(size_t, hai_sum_rows(tile) * lanes) * sizeof(float));
  hai_tile_aim(tile, 0, n);
}

/* The sink of the head whose query is in a lane: what the query has met before any key; -inf: nothing. */
static float hai_lane_sink(const hai_job *job, int lane) {
  const hai_plan *plan = job->plan;
  if (!HAI_SINKS || !plan->problem->sink) return -hai_inf();
  return plan->problem->sink[job->tile->state[lane] / plan->n_query % plan->n_heads];
}

/* Says that m, l and o are the lanes' states, with nothing carried and nothing lost by rounding. */
static void hai_tile_reset_sums(hai_tile *tile) {
  int lanes = tile->kernel->lanes;
  HYPERATTN_MEMSET(tile->l + lanes, 0, HAI_AS(size_t, lanes) * sizeof(float));
  if (HAI_ROUNDS && hai_sum_rows(tile) > tile->value_dim)
    HYPERATTN_MEMCPY(tile->o + tile->value_dim * lanes, tile->l, HAI_AS(size_t, lanes) * sizeof(float));
  tile->carried = 0;
}

/* What the states of an open tile begin as, before its queries meet the first keys of all: (m, l, o) =
   (sink, 1, 0), or empty. */
static void hai_tile_begin(const hai_job *job) {
  int i;
  if (!HAI_SINKS || !job->plan->problem->sink) return;
  for (i = 0; i < job->tile->n; i++) hai_lane_set(job->tile, i, hai_lane_sink(job, i));
  hai_tile_reset_sums(job->tile);
}

/* Carries o in the lanes that are aimed at: (sum, lost) += o, o = 0. A total of such partial sums, each
   over HAI_CARRY_CHUNKS chunks and added without losing what rounding takes, has a relative error of at
   most 2e-6 for any number of chunks. The first carry of all lanes just swaps the two arrays. */
static void hai_tile_carry(hai_tile *tile) {
  size_t bytes = HAI_AS(size_t, hai_sum_rows(tile) * tile->kernel->lanes) * sizeof(float);
  if (HAI_SIMD && !tile->carried && tile->begin == 0 && tile->end >= tile->n) {
    float *o = tile->o;
    tile->o = tile->sum;
    tile->sum = o;
    HYPERATTN_MEMSET(tile->o, 0, bytes);
    tile->carried = 1;
    return;
  }
  if (!tile->carried) HYPERATTN_MEMSET(tile->sum, 0, bytes);
  if (tile->carried < 2) HYPERATTN_MEMSET(tile->lost, 0, bytes);
  tile->carried = 2;
  tile->kernel->carry(tile->o, hai_sum_rows(tile), tile->begin, tile->end, tile->sum, tile->lost);
}

/* Makes the carried sums follow a chunk, before its values are added to o: carries o after every
   HAI_CARRY_CHUNKS chunks, and rescales where a reference has moved. */
static void hai_tile_follow(hai_tile *tile, int moved) {
  hai_index rows = hai_sum_rows(tile);
  if (!HAI_LONG_SUMS || !rows || !tile->sum) return;
  if (tile->chunks && tile->chunks % HAI_CARRY_CHUNKS == 0) hai_tile_carry(tile);
  tile->chunks++;
  if (tile->carried && moved) tile->kernel->scale(tile->sum, rows, tile->factor, tile->begin, tile->end);
  if (tile->carried > 1 && moved)
    tile->kernel->scale(tile->lost, rows, tile->factor, tile->begin, tile->end);
}

/* Makes m, l and o the states of all lanes again, so that out = o / l: adds to o what was carried, and
   where weights are rounded multiplies it by the sum of exact weights over the sum of rounded ones. If
   other lanes may have forced a carry, o is carried first, so that a row's bits do not depend on them. */
HAI_APART void hai_tile_settle(hai_tile *tile) {
  hai_index rows = hai_sum_rows(tile);
  int lanes = tile->kernel->lanes, i;
  if (HAI_LONG_SUMS && tile->carried) {
    hai_tile_aim(tile, 0, tile->n);
    if (tile->carried > 1) hai_tile_carry(tile);
    tile->kernel->gather(tile->o, rows, tile->begin, tile->end, tile->sum,
                         tile->carried > 1 ? tile->lost : HAI_NULL);
  }
  if (HAI_ROUNDS && rows > tile->value_dim) {
    const float *rounded = tile->o + tile->value_dim * lanes;
    for (i = 0; i < lanes; i++) tile->factor[i] = rounded[i] == 0.0f ? 0.0f : tile->l[i] / rounded[i];
    tile->kernel->scale(tile->o, tile->value_dim, tile->factor, 0, lanes);
  }
  hai_tile_reset_sums(tile);
}

/* Loads the states that earlier phases stored. */
static void hai_tile_resume(hai_job *job) {
  hai_tile *tile = job->tile;
  int i;
  HYPERATTN_MEMCPY(tile->row, tile->out, sizeof tile->row); /* NULL in lanes without a query */
  job->plan->float_kernel->pack(tile->row, job->plan->value_dim, 1.0f, tile->o);
  for (i = 0; i < tile->n; i++) hai_lane_set(tile, i, hai_stored_lse(job)[tile->state[i]]);
  hai_tile_reset_sums(tile);
}

/* lse of what lane i has met before the job's rectangle. Where no states are resumed that is the sink
   alone, whose output is 0. */
static float hai_lane_before(const hai_job *job, int i) {
  return hai_resumes(job->plan) ? hai_stored_lse(job)[job->tile->state[i]] : hai_lane_sink(job, i);
}

/* The states of an open tile are what its queries have met before the job's rectangle. */
static void hai_tile_go_on(hai_job *job) {
  if (hai_resumes(job->plan))
    hai_tile_resume(job);
  else
    hai_tile_begin(job);
}

/* Writes what a row has beside its out, at its place among all rows. Its error is 0 until a stage that
   approximates it says otherwise. */
static void hai_row_close(const hai_plan *plan, hai_index at, float lse) {
  if (plan->problem->lse) plan->problem->lse[at] = lse;
  if (HAI_SCAN && plan->problem->query_error) plan->problem->query_error[at] = 0.0f;
}

#if HAI_SCAN
/* What lane i has met is not to be written: its row stays as it was. */
static void hai_lane_drop(hai_tile *tile, int i) { tile->out[i] = HAI_NULL; }
#endif
/* Writes what lane i has beside its out in float32. */
static void hai_lane_close(const hai_job *job, int i) {
  const hai_plan *plan = job->plan;
  const hai_tile *tile = job->tile;
  hyperattn_dtype dtype = plan->problem->out.dtype;
  float lse = hai_state_lse(tile->m[i], tile->l[i]);
  hai_row_close(plan, tile->state[i], lse);
  if (hai_stores_states(plan)) hai_stored_lse(job)[tile->state[i]] = lse;
  if (!hai_is_f32(dtype)) hai_narrow(tile->out[i], plan->value_dim, dtype, tile->result[i]);
}

/* Writes out and lse: the result, or the states that later phases load. */
static void hai_tile_close(hai_job *job) {
  hai_tile *tile = job->tile;
  int i;
  hai_tile_settle(tile);
  for (i = 0; i < tile->n; i++) tile->factor[i] = tile->l[i] == 0.0f ? 0.0f : 1.0f / tile->l[i];
  tile->kernel->unpack(tile->o, tile->value_dim, tile->factor, tile->out);
  for (i = 0; i < tile->n; i++)
    if (tile->out[i]) hai_lane_close(job, i);
}

/* lse [n] of the tile's lanes so far. */
static void hai_tile_lse(const hai_tile *tile, float *lse) {
  int i;
  for (i = 0; i < tile->n; i++) lse[i] = hai_state_lse(tile->m[i], tile->l[i]);
}

/* Copies the states of all lanes to memory, and back: m, l [lanes], o [value_dim][lanes]. */
static void hai_tile_save(hai_tile *tile, float *state) {
  size_t lanes = HAI_AS(size_t, tile->kernel->lanes);
  hai_tile_settle(tile);
  HYPERATTN_MEMCPY(state, tile->m, lanes * sizeof(float));
  HYPERATTN_MEMCPY(state + lanes, tile->l, lanes * sizeof(float));
  HYPERATTN_MEMCPY(state + 2 * lanes, tile->o, HAI_AS(size_t, tile->value_dim) * lanes * sizeof(float));
}
#if HAI_SCAN
static void hai_tile_load(hai_tile *tile, const float *state) {
  size_t lanes = HAI_AS(size_t, tile->kernel->lanes);
  HYPERATTN_MEMCPY(tile->m, state, lanes * sizeof(float));
  HYPERATTN_MEMCPY(tile->l, state + lanes, lanes * sizeof(float));
  HYPERATTN_MEMCPY(tile->o, state + 2 * lanes, HAI_AS(size_t, tile->value_dim) * lanes * sizeof(float));
  hai_tile_reset_sums(tile);
}
#endif
