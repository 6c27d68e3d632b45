/* ==== 7. Tiles =======================================================================================
   A tile holds up to kernel->lanes queries and their running states. Keys come in chunks, whose rows the
   tiles of a task share where all meet the same ones, or are pushed one by one; each chunk goes through the
   kernel. The state of a query is (m, l, o): running maximum, sum of weights, unnormalised output;
   out = o / l and lse = m + ln l. Between phases a state rests as these: lse in the workspace, out in its own
   place. */

/* Consecutive lanes of one query group. */
typedef struct hai_group {
  int32_t id;
  int begin, end;        /* lanes */
  const int32_t *blocks; /* the group's sub-blocks, ascending */
  int n_blocks, at;      /* how many; how far a walk through them has come */
} hai_group;

/* The rows of a kv head, keys or values, and room for a chunk of them in float32 where they are not. */
typedef struct hai_rows {
  const char *first; /* row 0 */
  ptrdiff_t stride;  /* bytes */
  hyperattn_dtype dtype;
  hai_index dim;
  float *widened; /* [chunk][dim], or NULL */
} hai_rows;

struct hai_tile {
  const hai_kernel *kernel;
  float *query, *o;               /* [head_dim][lanes], [value_dim and rounded][lanes] */
  float *m, *l, *factor;          /* [lanes], [2][lanes], [lanes] */
  float *sum, *lost;              /* as o: what it has been carried to, and what rounding took from that */
  float *spare;                   /* 3 x [lanes]: for the stage's use */
  const float *clip;              /* NULL, or [lanes]: scores are cut at it */
  int n;                          /* queries in use: lanes 0 .. n - 1 */
  int begin, end;                 /* lanes that the next keys are for, whole registers */
  uint64_t used;                  /* which of those lanes hold queries */
  int guard;                      /* are keys hidden that their lanes must not even multiply by 0, */
  int spoilt;                     /* and is any value of this chunk known not to be finite */
  hai_index state[HAI_MAX_LANES]; /* index into lse: flat head * n_query + row */
  const void *row[HAI_MAX_LANES]; /* query rows, of the kernel's dtype */
  float *out[HAI_MAX_LANES];      /* output rows in float32, where they rest between phases, */
  void *result[HAI_MAX_LANES];    /* and the caller's, where that is not float32 */
  hai_index first[HAI_MAX_LANES], last[HAI_MAX_LANES]; /* keys that a lane may see */
  hai_index min_first, max_last;                       /* keys beyond are seen by none */
  hai_index max_first, min_last;                       /* keys between are seen by all */
  int chunks;                                          /* that the lanes aimed at have met */
  int carried;          /* how many arrays o has been carried to: none, sum alone, or sum and lost */
  int n_keys;           /* keys waiting */
  int masked, weighted; /* is any hidden from a lane in use; has any a log-weight */
  hai_index value_dim;  /* 0: only m and l are wanted */
  int n_groups;         /* query groups of the lanes, in order */
  hai_group group[HAI_MAX_LANES];
  /* shared by the tiles of a task: */
  hai_rows keys, values;
  float *score;              /* [chunk][lanes], and half as many rows again if the kernel reads bfloat16 */
  const void **key, **value; /* [chunk]: rows of the keys that wait, of the kernel's dtype */
  float *log_weight;         /* [chunk]: theirs, if any has one */
  float *line;               /* [lanes][line_dim]: rows of queries or outputs in float32, or NULL */
  hai_index line_dim;
  /* each tile's own: */
  int32_t id[HAI_CHUNK];   /* keys of a list, or sub-blocks where these are paired; */
  int held[HAI_MAX_LANES]; /* how many each lane holds so far */
  float *
      per_key; /* [chunk]: for the stage's use; [chunk][kernel->value_multiple] elements of values in a guard */
  uint64_t visible[HAI_CHUNK]; /* bit i: lane i sees the key */
};

static hai_index hai_per_key_floats(const hai_plan *plan) {
#if HAI_AMX
  if (plan->may_use_amx) return HAI_CHUNK * HAI_AMX_ROWS / 2;
#endif
  (void)plan;
  return HAI_CHUNK;
}

/* Rows of a tile's o: the coordinates of a value and, where weights are rounded, the sum of those. */
static hai_index hai_sum_rows(const hai_tile *tile) {
  return tile->value_dim + (HAI_ROUNDS && tile->value_dim && tile->kernel->round);
}
static hai_index hai_most_sum_rows(const hai_plan *plan) {
  return plan->value_dim + (HAI_ROUNDS && (plan->may_use_amx || plan->kernel->round));
}
/* May a tile meet so many keys that its sums are carried? */
static int hai_may_carry(const hai_plan *plan) {
  return HAI_LONG_SUMS && plan->n_key > HAI_CARRY_CHUNKS * HAI_CHUNK;
}

/* Bytes of a tile's own, without and with what it rarely touches. */
static size_t hai_tile_core_bytes(const hai_plan *plan) {
  size_t lanes = HAI_AS(size_t, plan->float_kernel->lanes), head_dim = HAI_AS(size_t, plan->head_dim);
  size_t floats = lanes * (head_dim + HAI_AS(size_t, hai_most_sum_rows(plan)) + 7);
  floats += HAI_AS(size_t, hai_per_key_floats(plan));
  return hai_round_up(sizeof(hai_tile)) + floats * sizeof(float) + 7 * HAI_ALIGN;
}
static size_t hai_tile_bytes(const hai_plan *plan) {
  size_t rows = hai_may_carry(plan) ? 2 * HAI_AS(size_t, hai_most_sum_rows(plan)) : 0;
  return hai_tile_core_bytes(plan) + rows * HAI_AS(size_t, plan->float_kernel->lanes) * sizeof(float) +
         2 * HAI_ALIGN;
}

/* Widened rows: [lanes] of queries or outputs (and single ones of any tensor), [chunk] of keys and values. */
static hai_index hai_line_dim(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  int is_float = hai_is_f32(p->query.dtype) && hai_is_f32(p->key.dtype) && hai_is_f32(p->value.dtype) &&
                 hai_is_f32(p->out.dtype);
  return is_float ? 0 : hai_max(plan->head_dim, plan->value_dim);
}
static hai_index hai_widened_floats(const hai_plan *plan, hyperattn_dtype dtype, hai_index dim) {
  int is_read = hai_is_f32(dtype) || (dtype == plan->kernel->dtype && !plan->may_use_amx);
  return is_read ? 0 : HAI_CHUNK * dim;
}
static hai_index hai_score_rows(const hai_plan *plan) {
  int room = plan->kernel->extra_rows;
#if HAI_AMX
  if (plan->may_use_amx) room = HAI_AS(int, hai_max(room, hai_kernel_amx.extra_rows));
#endif
  return HAI_CHUNK + room;
}
/* Bytes of what the tiles of a task share. */
static size_t hai_chunk_bytes(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  hai_index floats = HAI_CHUNK + plan->float_kernel->lanes * (hai_score_rows(plan) + hai_line_dim(plan)) +
                     hai_widened_floats(plan, p->key.dtype, plan->head_dim) +
                     hai_widened_floats(plan, p->value.dtype, plan->value_dim);
  return HAI_AS(size_t, floats) * sizeof(float) + 2 * HAI_CHUNK * sizeof(void *) + 4 * HAI_ALIGN;
}

/* Tiles of a task: what the kernel asks for, while they stay in the cache. */
static int hai_tiles(const hai_plan *plan) {
  if (HAI_MAX_TILES == 1) return 1; /* so that loops over tiles vanish */
  return hai_to_int(hai_max(1, hai_min(plan->float_kernel->tiles,
                                       HAI_TILES_BYTES / HAI_AS(hai_index, hai_tile_core_bytes(plan)))));
}

/* Memory for so many floats, NULL for none. */
static float *hai_carve(char **at, hai_index floats) {
  float *begin = HAI_PLACE(float, *at);
  *at += hai_round_up(HAI_AS(size_t, floats) * sizeof(float));
  return floats ? begin : HAI_NULL;
}

static hai_rows hai_rows_of(const hai_job *job, const hyperattn_input *x, hai_index dim, char **at) {
  hai_rows rows;
  rows.first = job->plan->n_key ? hai_row(x, job->batch, job->kv_head, 0) : HAI_NULL;
  rows.stride = job->plan->n_key > 1 ? hai_offset(x->dtype, x->row_stride) : 0;
  rows.dtype = x->dtype;
  rows.dim = dim;
  rows.widened = hai_carve(at, hai_widened_floats(job->plan, x->dtype, dim));
  return rows;
}

/* Lays a tile out at *at and moves *at behind it. Tiles after the first share its chunk. */
HAI_APART hai_tile *hai_tile_place(const hai_job *job, const hai_tile *first, char **at) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  hai_index lanes = plan->float_kernel->lanes;
  hai_tile *tile = HAI_PLACE(hai_tile, *at);
  *at += hai_round_up(sizeof(hai_tile));
  tile->kernel = plan->kernel;
  tile->query = hai_carve(at, plan->head_dim * lanes);
  tile->o = hai_carve(at, hai_most_sum_rows(plan) * lanes);
  tile->sum = hai_carve(at, hai_may_carry(plan) ? hai_most_sum_rows(plan) * lanes : 0);
  tile->lost = hai_carve(at, hai_may_carry(plan) ? hai_most_sum_rows(plan) * lanes : 0);
  tile->m = hai_carve(at, lanes);
  tile->l = hai_carve(at, 2 * lanes);
  tile->factor = hai_carve(at, lanes);
  tile->spare = hai_carve(at, 3 * lanes);
  tile->per_key = hai_carve(at, hai_per_key_floats(plan));
  if (first) {
    tile->keys = first->keys;
    tile->values = first->values;
    tile->score = first->score;
    tile->key = first->key;
    tile->value = first->value;
    tile->line = first->line;
    tile->line_dim = first->line_dim;
    tile->log_weight = first->log_weight;
    return tile;
  }
  tile->score = hai_carve(at, hai_score_rows(plan) * lanes);
  tile->keys = hai_rows_of(job, &p->key, plan->head_dim, at);
  tile->values = hai_rows_of(job, &p->value, plan->value_dim, at);
  tile->line_dim = hai_line_dim(plan);
  tile->line = hai_carve(at, lanes * tile->line_dim);
  tile->log_weight = hai_carve(at, HAI_CHUNK);
  tile->key = HAI_PLACE(const void *, *at);
  tile->value = tile->key + HAI_CHUNK;
  *at += 2 * HAI_CHUNK * sizeof(void *);
  return tile;
}

/* All tiles of a task: the job's, and further ones in its scratch. */
static int hai_tiles_place(hai_job *job, hai_tile **tiles) {
  int n = hai_tiles(job->plan), i;
  tiles[0] = job->tile;
  for (i = 1; i < n; i++) tiles[i] = hai_tile_place(job, tiles[0], &job->scratch);
  return n;
}

/* Room for a widened row, of lane i. */
static float *hai_line(const hai_tile *tile, int i) {
  return tile->line ? tile->line + i * tile->line_dim : HAI_NULL;
}

/* Row `row` of keys or values as the kernel reads it, widened where it must be into place j of the chunk. */
HAI_HOT const void *hai_rows_at(const hai_tile *tile, const hai_rows *rows, hai_index row, hai_index j) {
  const char *at = rows->first + row * rows->stride;
  if (hai_is_f32(rows->dtype) || rows->dtype == tile->kernel->dtype) return at;
  tile->kernel->widen(at, rows->dtype, rows->dim, rows->widened + j * rows->dim);
  return rows->widened + j * rows->dim;
}

HAI_HOT uint64_t hai_lane_bits(int begin, int end) {
  uint64_t below_end = end >= 64 ? UINT64_MAX : (UINT64_C(1) << end) - 1;
  return below_end & ~((UINT64_C(1) << begin) - 1);
}

/* The next keys are for queries [begin, end) of the tile: the registers that hold them take part. Where
   their sums are carried is counted from here. */
static void hai_tile_aim(hai_tile *tile, int begin, int end) {
  int width = tile->kernel->width;
  tile->chunks = 0;
  tile->begin = begin / width * width;
  tile->end = (end + width - 1) / width * width;
  tile->used = hai_lane_bits(tile->begin, hai_to_int(hai_min(tile->end, tile->n)));
}

/* Puts query `row` of a head into a lane; it may see keys first .. last. Fill lanes 0 .. n - 1 in turn. */
static void hai_tile_query(hai_job *job, int lane, hai_index head, hai_index row, hai_index first,
                           hai_index last) {
  const hyperattn_problem *p = job->plan->problem;
  hai_tile *tile = job->tile;
  if (hai_is_f32(tile->kernel->dtype))
    tile->row[lane] = hai_query_row(job, head, row, hai_line(tile, lane));
  else
    tile->row[lane] = hai_row(&p->query, job->batch, head, row);
  tile->state[lane] = (job->batch * job->plan->n_heads + head) * job->plan->n_query + row;
  tile->result[lane] = hai_out_row(&p->out, job->batch, head, row);
  tile->out[lane] = hai_is_f32(p->out.dtype) ? HAI_AS(float *, tile->result[lane])
                    : hai_stores_states(job->plan)
                        ? hai_stored_out(job) + tile->state[lane] * job->plan->value_dim
                        : hai_line(tile, lane);
  tile->first[lane] = first;
  tile->last[lane] = last;
}

/* n queries are in place: packs them times `scale` and starts empty states. */
static void hai_tile_open(hai_job *job, int n, float scale, hai_index value_dim) {
  hai_tile *tile = job->tile;
  int i, lanes = tile->kernel->lanes;
  tile->n = n;
  tile->n_keys = tile->masked = tile->weighted = tile->guard = tile->spoilt = tile->carried = 0;
  tile->clip = HAI_NULL;
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
    tile->m[i] = -hai_inf();
    tile->l[i] = tile->l[lanes + i] = 0.0f;
  }
  tile->kernel->pack(tile->row, job->plan->head_dim, scale, tile->query);
  HYPERATTN_MEMSET(tile->o, 0, HAI_AS(size_t, hai_sum_rows(tile) * lanes) * sizeof(float));
  hai_tile_aim(tile, 0, n);
}

/* The lanes' states are now m, l and o alone. */
static void hai_tile_reset_sums(hai_tile *tile) {
  int lanes = tile->kernel->lanes;
  HYPERATTN_MEMSET(tile->l + lanes, 0, HAI_AS(size_t, lanes) * sizeof(float));
  if (HAI_ROUNDS && hai_sum_rows(tile) > tile->value_dim)
    HYPERATTN_MEMCPY(tile->o + tile->value_dim * lanes, tile->l, HAI_AS(size_t, lanes) * sizeof(float));
  tile->carried = 0;
}

/* Carries o in the lanes that are aimed at: (sum, lost) += o, o = 0. A sum that HAI_CARRY_CHUNKS chunks fill in
   turn, and whose rounding is kept, is right to 2e-6 however many they are. The first time the arrays change
   places, and nothing is lost yet. */
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

/* Makes the states of all lanes (m, l, o) again, out = o / l: takes back what was carried, and weighs o by
   exact over rounded weights. */
HAI_APART void hai_tile_settle(hai_tile *tile) {
  hai_index rows = hai_sum_rows(tile);
  int lanes = tile->kernel->lanes, i;
  if (HAI_LONG_SUMS && tile->carried) {
    hai_tile_aim(tile, 0, tile->n);
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

/* Takes up the states that earlier phases left. */
static void hai_tile_resume(hai_job *job) {
  hai_tile *tile = job->tile;
  int i;
  HYPERATTN_MEMCPY(tile->row, tile->out, sizeof tile->row); /* NULL in lanes without a query */
  job->plan->float_kernel->pack(tile->row, job->plan->value_dim, 1.0f, tile->o);
  for (i = 0; i < tile->n; i++) {
    tile->m[i] = hai_stored_lse(job)[tile->state[i]];
    tile->l[i] = tile->m[i] == -hai_inf() ? 0.0f : 1.0f;
  }
  hai_tile_reset_sums(tile);
}

/* Writes out and lse: the result, or what later phases take up. */
static void hai_tile_close(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hyperattn_dtype dtype = plan->problem->out.dtype;
  int resting = hai_stores_states(plan), i;
  hai_tile_settle(tile);
  for (i = 0; i < tile->n; i++) {
    float l = tile->l[i], lse = hai_state_lse(tile->m[i], l);
    tile->factor[i] = l == 0.0f ? 0.0f : 1.0f / l;
    if (plan->problem->lse) plan->problem->lse[tile->state[i]] = lse;
    if (resting) hai_stored_lse(job)[tile->state[i]] = lse;
  }
  tile->kernel->unpack(tile->o, plan->value_dim, tile->factor, tile->out);
  for (i = 0; i < tile->n && !hai_is_f32(dtype); i++)
    hai_narrow(tile->out[i], plan->value_dim, dtype, tile->result[i]);
}

/* The states of all lanes, put aside and taken back: m, l [lanes], o [value_dim][lanes]. */
static void hai_tile_save(hai_tile *tile, float *state) {
  size_t lanes = HAI_AS(size_t, tile->kernel->lanes);
  hai_tile_settle(tile);
  HYPERATTN_MEMCPY(state, tile->m, lanes * sizeof(float));
  HYPERATTN_MEMCPY(state + lanes, tile->l, lanes * sizeof(float));
  HYPERATTN_MEMCPY(state + 2 * lanes, tile->o, HAI_AS(size_t, tile->value_dim) * lanes * sizeof(float));
}
static void hai_tile_load(hai_tile *tile, const float *state) {
  size_t lanes = HAI_AS(size_t, tile->kernel->lanes);
  HYPERATTN_MEMCPY(tile->m, state, lanes * sizeof(float));
  HYPERATTN_MEMCPY(tile->l, state + lanes, lanes * sizeof(float));
  HYPERATTN_MEMCPY(tile->o, state + 2 * lanes, HAI_AS(size_t, tile->value_dim) * lanes * sizeof(float));
  hai_tile_reset_sums(tile);
}

/* Are all numbers of a row, float32 or bfloat16, finite? Eight bytes at a time: adding 1 to an exponent
   of all ones carries into the sign's place. */
static int hai_row_finite(const void *row, hyperattn_dtype dtype, hai_index n) {
  int is_float = hai_is_f32(dtype);
  uint64_t signs = is_float ? 0x8000000080000000u : 0x8000800080008000u;
  uint64_t ones = is_float ? 0x0080000000800000u : 0x0080008000800080u, eight, carries = 0;
  hai_index step = HAI_AS(hai_index, sizeof eight / hai_unit_bytes(dtype)), t;
  const char *at = HAI_AS(const char *, row);
  for (t = 0; t + step <= n; t += step, at += sizeof eight) {
    HYPERATTN_MEMCPY(&eight, at, sizeof eight);
    carries |= (eight & ~signs) + ones;
  }
  for (; t < n; t++) carries |= hai_finite(hai_get(row, dtype, t)) ? 0 : signs;
  return !(carries & signs);
}

/* Are the first n values of the chunk finite? */
static int hai_tile_clean(const hai_tile *tile, hai_index n) {
  hai_index j = 0;
  while (j < n && hai_row_finite(tile->value[j], tile->kernel->dtype, tile->value_dim)) j++;
  return j == n;
}

/* Is any of the kernel's step of coordinates from t on, in a row that is hidden from some lane, not
   finite? */
static int hai_tile_bad(const hai_tile *tile, hai_index t) {
  hyperattn_dtype dtype = tile->kernel->dtype;
  uint64_t all = hai_lane_bits(0, tile->n);
  int j;
  for (j = 0; j < tile->n_keys; j++)
    if ((tile->visible[j] & all) != all &&
        !hai_row_finite(HAI_AS(const char *, tile->value[j]) + HAI_AS(size_t, t) * hai_unit_bytes(dtype),
                        dtype, tile->kernel->value_multiple))
      return 1;
  return 0;
}

/* Values with a guard: 0 * inf is NaN, and a row must not feel a key that it may not see. Coordinates in
   which a hidden value is not finite, as few as the kernel takes, go through it alone, such values as 0, and
   then to the lanes that do see them; the order of sums, and so every other bit, stays. */
HAI_APART void hai_tile_values_guarded(hai_tile *tile) {
  hyperattn_dtype dtype = tile->kernel->dtype;
  size_t bytes = hai_unit_bytes(dtype);
  int lanes = tile->kernel->lanes, step = tile->kernel->value_multiple, i, j;
  hai_index t = 0, run;
  while (t < tile->value_dim) {
    for (run = t; run < tile->value_dim && !hai_tile_bad(tile, run);) run += step;
    for (j = 0; j < tile->n_keys; j++) /* queries are packed: their rows are done with */
      tile->row[j] = HAI_AS(const char *, tile->value[j]) + HAI_AS(size_t, t) * bytes;
    if (run > t) {
      tile->kernel->values(tile->score, tile->n_keys, tile->row, run - t, tile->factor, tile->begin,
                           tile->end, tile->o + t * lanes);
      t = run;
      continue;
    }
    for (j = 0; j < tile->n_keys; j++) {
      char *kept = HAI_PLACE(char, tile->per_key) + HAI_AS(size_t, j * step) * bytes;
      for (i = 0; i < step; i++) {
        float value = hai_get(tile->value[j], dtype, t + i);
        hai_put(kept, dtype, i, hai_finite(value) ? value : 0.0f);
      }
      tile->row[j] = kept;
    }
    tile->kernel->values(tile->score, tile->n_keys, tile->row, step, tile->factor, tile->begin, tile->end,
                         tile->o + t * lanes);
    for (run = t + step; t < run; t++)
      for (j = 0; j < tile->n_keys; j++) {
        float value = hai_get(tile->value[j], dtype, t);
        for (i = tile->begin; i < tile->end && !hai_finite(value); i++)
          if (tile->visible[j] >> i & 1) tile->o[t * lanes + i] += tile->score[j * lanes + i] * value;
      }
  }
}

static void hai_tile_clip(hai_tile *tile) {
  int lanes = tile->kernel->lanes, i, j;
  for (j = 0; j < tile->n_keys; j++)
    for (i = 0; i < tile->n; i++)
      if (tile->score[j * lanes + i] > tile->clip[i]) tile->score[j * lanes + i] = tile->clip[i];
}

/* Attends to the keys that wait. */
static void hai_tile_flush(hai_job *job) {
  hai_tile *tile = job->tile;
  const hai_kernel *kernel = tile->kernel;
  hai_index rows = hai_sum_rows(tile);
  int moved;
  if (!tile->n_keys) return;
  kernel->scores(tile->query, job->plan->head_dim, tile->key, tile->n_keys, tile->begin, tile->end,
                 tile->score);
  if (tile->clip) hai_tile_clip(tile);
  moved = kernel->softmax(tile->score, tile->n_keys, tile->weighted ? tile->log_weight : HAI_NULL,
                          tile->masked ? tile->visible : HAI_NULL, tile->begin, tile->end, tile->m, tile->l,
                          tile->factor);
  if (HAI_LONG_SUMS && rows && tile->sum) {
    if (tile->chunks && tile->chunks % HAI_CARRY_CHUNKS == 0) hai_tile_carry(tile);
    tile->chunks++;
    if (tile->carried && moved) kernel->scale(tile->sum, rows, tile->factor, tile->begin, tile->end);
    if (tile->carried > 1 && moved) kernel->scale(tile->lost, rows, tile->factor, tile->begin, tile->end);
  }
  if (HAI_ROUNDS && tile->value_dim && kernel->round)
    kernel->round(tile->score, tile->n_keys, tile->factor, tile->begin, tile->end,
                  tile->o + tile->value_dim * kernel->lanes);
  if (tile->value_dim && tile->masked && tile->spoilt)
    hai_tile_values_guarded(tile);
  else if (tile->value_dim)
    kernel->values(tile->score, tile->n_keys, tile->value, tile->value_dim, tile->factor, tile->begin,
                   tile->end, tile->o);
  tile->n_keys = tile->masked = tile->weighted = 0;
}

/* Lanes that may see a key, by their bounds. */
HAI_HOT uint64_t hai_tile_sees(const hai_tile *tile, hai_index key) {
  uint64_t bits = 0;
  int i;
  if (key >= tile->max_first && key <= tile->min_last) return UINT64_MAX;
  for (i = 0; i < tile->n; i++)
    bits |= HAI_AS(uint64_t, key >= tile->first[i] && key <= tile->last[i]) << i;
  return bits;
}

/* Key `key` at place j of the chunk; then who of a tile sees it, of the lanes in `bits`. */
HAI_HOT void hai_tile_put(hai_tile *tile, int j, hai_index key) {
  tile->key[j] = hai_rows_at(tile, &tile->keys, key, j);
  if (tile->value_dim) tile->value[j] = hai_rows_at(tile, &tile->values, key, j);
}
HAI_HOT void hai_tile_show(hai_tile *tile, int j, hai_index key, uint64_t bits) {
  bits &= hai_tile_sees(tile, key);
  tile->visible[j] = bits;
  tile->masked |= (bits & tile->used) != tile->used;
}

/* One more key, weight 1. A key that nobody sees still takes its place in the chunk: how sums are grouped
   must not depend on which queries share a tile. */
static void hai_tile_push(hai_job *job, hai_index key, uint64_t bits) {
  hai_tile *tile = job->tile;
  int j = tile->n_keys++;
  hai_tile_put(tile, j, key);
  hai_tile_show(tile, j, key, bits);
  if (tile->n_keys == HAI_CHUNK) hai_tile_flush(job);
}

/* Rows on the way from memory by the time they are multiplied: values while scores are. */
static void hai_rows_fetch(const hai_rows *rows, const void *row) {
  hai_index bytes = hai_offset(rows->dtype, rows->dim), t;
  for (t = 0; t < bytes; t += HAI_ALIGN) HAI_PREFETCH(HAI_AS(const char *, row) + t);
}

/* Keys begin .. end - 1 in a row, at most a chunk: their rows, once for all tiles; then who sees them, in a
   tile whose queries come in ascending order. */
static void hai_tile_rows(hai_tile *tile, hai_index begin, hai_index end) {
  hai_index j;
  for (j = 0; j < end - begin; j++) {
    hai_tile_put(tile, hai_to_int(j), begin + j);
    hai_rows_fetch(&tile->keys, tile->key[j]);
    if (tile->value_dim) hai_rows_fetch(&tile->values, tile->value[j]);
  }
}
static void hai_tile_fill(hai_tile *tile, hai_index begin, hai_index end) {
  int j, low = 0, high = 0;
  tile->n_keys = hai_to_int(end - begin);
  tile->masked = begin < tile->max_first || end - 1 > tile->min_last;
  for (j = 0; j < tile->n_keys && tile->masked; j++) { /* first and last rise from lane to lane */
    while (low < tile->n && tile->last[low] < begin + j) low++;
    while (high < tile->n && tile->first[high] <= begin + j) high++;
    tile->visible[j] = low < high ? hai_lane_bits(low, high) : 0;
  }
}

/* Some tiles, queries ascending, meet keys begin .. end - 1 in a row. Chunks begin at multiples of
   HAI_CHUNK, and a tile joins a chunk where any of its queries sees it: how sums are grouped does not depend
   on which queries share a tile. */
static void hai_tiles_run(hai_job *job, hai_tile *const *tiles, int n_tiles, hai_index begin,
                          hai_index end) {
  hai_index first = end, last = begin - 1, next;
  int i, spoilt;
  for (i = 0; i < n_tiles; i++) {
    first = hai_min(first, tiles[i]->min_first);
    last = hai_max(last, tiles[i]->max_last);
    hai_tile_aim(tiles[i], 0, tiles[i]->n);
  }
  begin = hai_max(begin, first / HAI_CHUNK * HAI_CHUNK);
  end = hai_min(end, last + 1);
  for (; begin < end; begin = next) {
    next = hai_min(end, (begin / HAI_CHUNK + 1) * HAI_CHUNK);
    hai_tile_rows(tiles[0], begin, next);
    spoilt = -1; /* not known */
    for (i = 0; i < n_tiles; i++) {
      if (next <= tiles[i]->min_first || begin > tiles[i]->max_last) continue;
      job->tile = tiles[i];
      hai_tile_fill(tiles[i], begin, hai_min(next, tiles[i]->max_last + 1));
      if (tiles[i]->guard && tiles[i]->masked && spoilt < 0)
        spoilt = !hai_tile_clean(tiles[0], next - begin);
      tiles[i]->spoilt = spoilt > 0;
      tiles[i]->chunks = hai_to_int(begin / HAI_CHUNK); /* from key 0, whichever queries share the tile */
      hai_tile_flush(job);
    }
  }
}
