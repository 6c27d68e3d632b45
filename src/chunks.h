/* ---- Chunks: the keys that wait, and what becomes of them ---- */

/* Key `key`, whose row and whose value's lie there, takes place j of the chunk that the tiles share. */
HAI_HOT void hai_tile_put_at(hai_tile *tile, int j, hai_index key, const char *key_at,
                             const char *value_at) {
  tile->id[j] = hai_to_int(key);
  *tile->n_joined = 0;
  tile->key[j] = hai_rows_at(&tile->keys, key_at, tile->kernel, tile->keys.widened, j);
  if (tile->value_dim)
    tile->value[j] = hai_rows_at(&tile->values, value_at, tile->kernel, tile->values.widened, j);
}
HAI_ONCE void hai_tile_put(hai_tile *tile, int j, hai_index key) {
  hai_tile_put_at(tile, j, key, hai_walk_from(&tile->keys, key).at, hai_walk_from(&tile->values, key).at);
}

/* Products of the packed queries with n rows of tile->key, by a kernel that reads these rows. */
static void hai_tile_products(hai_tile *tile, const hai_kernel *kernel, int n) {
  kernel->scores(tile->query, tile->keys.dim, tile->key, n, tile->begin, tile->end, tile->score);
}

/* score[j][i] = min(score[j][i], clip[i]). */
static void hai_tile_clip(hai_tile *tile) {
  int lanes = tile->kernel->lanes, i, j;
  for (j = 0; j < tile->n_keys; j++)
    for (i = 0; i < tile->n; i++)
      if (tile->score[j * lanes + i] > tile->clip[i]) tile->score[j * lanes + i] = tile->clip[i];
}

/* Scores of the keys that wait: their products, and then whatever changes a score. Every lane of the tile
   and every key in tile->id passes here, in attention and in probing. */
static void hai_tile_scores(hai_tile *tile) {
  hai_tile_products(tile, tile->kernel, tile->n_keys);
  if (HAI_SOFTCAP && tile->softcap > 0.0f)
    tile->kernel->cap(tile->score, tile->n_keys, tile->softcap, tile->begin, tile->end);
  if (HAI_MASKS && tile->mask)
    tile->kernel->add_bias(tile->score, tile->n_keys, tile->mask->bias, tile->mask->slope, tile->begin,
                           tile->end);
  if (tile->clip) hai_tile_clip(tile);
}

/* Weights of the keys that wait, e^(score + log_weight - m), 0 where hidden, in the place of their scores;
   m, l and factor as hai_kernel says. Returns whether any m moved. */
static int hai_tile_weights(hai_tile *tile) {
  hai_tile_scores(tile);
  return tile->kernel->softmax(tile->score, tile->n_keys, tile->weighted ? tile->log_weight : HAI_NULL,
                               tile->masked ? tile->visible : HAI_NULL, tile->begin, tile->end, tile->m,
                               tile->l, tile->factor);
}

/* Rounds the weights for a kernel that multiplies values by rounded ones, and adds these up in the last row
   of o. */
static void hai_tile_round(hai_tile *tile) {
  tile->kernel->round(tile->score, tile->n_keys, tile->factor, tile->begin, tile->end,
                      tile->o + tile->value_dim * tile->kernel->lanes);
}

/* The values as the kernel multiplies them: joined where it asks for that, once for all tiles that meet as
   many keys of the chunk. */
static void hai_tile_join(hai_tile *tile, const void *const *value, hai_index dim) {
  int is_chunk = value == HAI_AS(const void *const *, tile->value);
  if (is_chunk && *tile->n_joined == tile->n_keys) return;
  tile->kernel->join(value, tile->n_keys, dim, tile->joined);
  *tile->n_joined = is_chunk ? tile->n_keys : 0;
}

/* Rows t .. t + dim - 1 of o: o = o * factor + the sum of weights times values, of which `value` gives the
   rows from coordinate t on. */
static void hai_tile_add_values(hai_tile *tile, const void *const *value, hai_index t, hai_index dim) {
  const void *joined = tile->joined;
  if (HAI_ROUNDS && tile->kernel->join) {
    hai_tile_join(tile, value, dim);
    value = &joined;
  }
  tile->kernel->values(tile->score, tile->n_keys, value, dim, tile->factor, tile->begin, tile->end,
                       tile->o + t * tile->kernel->lanes);
}

/* Are all numbers of a row of float32 or bfloat16 finite? Eight bytes at a time: 1 added to an exponent of
   all ones carries into the place of the sign, which was cleared. */
static int hai_row_finite(const void *row, hyperattn_dtype dtype, hai_index n) {
  int is_float = hai_is_f32(dtype);
  uint64_t signs = is_float ? 0x8000000080000000u : 0x8000800080008000u;
  uint64_t ones = is_float ? 0x0080000000800000u : 0x0080008000800080u, carries = 0;
  hai_index step = HAI_AS(hai_index, sizeof carries / hai_unit_bytes(dtype)), t;
  const char *at = HAI_AS(const char *, row);
  for (t = 0; t + step <= n; t += step, at += sizeof carries)
    carries |= (hai_eight_bytes(at) & ~signs) + ones;
  for (; t < n; t++) carries |= hai_finite(hai_get(row, dtype, t)) ? 0 : signs;
  return !(carries & signs);
}

/* Are the first n values of the chunk finite? */
static int hai_tile_values_finite(const hai_tile *tile, hai_index n) {
  hai_index j = 0;
  while (j < n && hai_row_finite(tile->value[j], tile->kernel->dtype, tile->value_dim)) j++;
  return j == n;
}

/* Is any of coordinates t .. t + value_multiple - 1 not finite in a value that is hidden from some lane? */
static int hai_tile_hides_nonfinite(const hai_tile *tile, hai_index t) {
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

/* Adds values of which hidden ones are not finite: 0 * inf is NaN, and a row must not depend on a key that
   it does not see. The kernel takes value_multiple coordinates at a time, or as many as hold no such value.
   Where one does, values that are not finite count as 0 in the kernel, and are then added in the lanes that
   see them. The order of all other sums, and so every other bit, is that of hai_tile_add_values. */
HAI_APART void hai_tile_values_guarded(hai_tile *tile) {
  hyperattn_dtype dtype = tile->kernel->dtype;
  size_t bytes = hai_unit_bytes(dtype);
  int lanes = tile->kernel->lanes, step = tile->kernel->value_multiple, i, j;
  hai_index t = 0, run;
  while (t < tile->value_dim) {
    for (run = t; run < tile->value_dim && !hai_tile_hides_nonfinite(tile, run);) run += step;
    for (j = 0; j < tile->n_keys; j++) /* tile->row is free: queries are packed */
      tile->row[j] = HAI_AS(const char *, tile->value[j]) + HAI_AS(size_t, t) * bytes;
    if (run > t) {
      hai_tile_add_values(tile, tile->row, t, run - t);
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
    hai_tile_add_values(tile, tile->row, t, step);
    for (run = t + step; t < run; t++)
      for (j = 0; j < tile->n_keys; j++) {
        float value = hai_get(tile->value[j], dtype, t);
        for (i = tile->begin; i < tile->end && !hai_finite(value); i++)
          if (tile->visible[j] >> i & 1) tile->o[t * lanes + i] += tile->score[j * lanes + i] * value;
      }
  }
}

/* The lanes aimed at attend to the keys that wait. */
static void hai_tile_flush(hai_tile *tile) {
  if (!tile->n_keys) return;
  hai_tile_follow(tile, hai_tile_weights(tile));
  if (HAI_ROUNDS && tile->value_dim && tile->kernel->round) hai_tile_round(tile);
  if (tile->value_dim && tile->masked && tile->nonfinite)
    hai_tile_values_guarded(tile);
  else if (tile->value_dim)
    hai_tile_add_values(tile, tile->value, 0, tile->value_dim);
  tile->n_keys = tile->masked = tile->weighted = 0;
}

/* The keys that wait are passed over, since no lane sees any of them. Sums are carried all the same: when
   that happens must not depend on which queries share a tile. */
static void hai_tile_pass(hai_tile *tile) {
  hai_tile_follow(tile, 0);
  tile->n_keys = tile->masked = 0;
}

/* Starts to load a row that is met once its chunk is full; one that was widened was read. */
HAI_HOT void hai_row_fetch(const hai_rows *rows, const void *row) {
  size_t bytes = HAI_AS(size_t, hai_offset(rows->dtype, rows->dim));
  if (!rows->widened) hai_fetch(HAI_AS(const char *, row), bytes);
}

/* One more key, of weight 1, for those of the lanes in `bits` that see it. A key that no lane sees takes
   its place in the chunk too: how sums are grouped must not depend on which queries share a tile. */
static void hai_tile_push(hai_tile *tile, hai_index key, uint64_t bits) {
  int j = tile->n_keys++;
  hai_tile_put(tile, j, key);
  hai_row_fetch(&tile->keys, tile->key[j]);
  if (tile->value_dim) hai_row_fetch(&tile->values, tile->value[j]);
  hai_tile_show(tile, j, key, bits);
  if (tile->n_keys == HAI_CHUNK) hai_tile_flush(tile);
}

/* Starts to load rows begin .. end - 1, which are met one chunk later. */
HAI_HOT void hai_rows_fetch(const hai_rows *rows, hai_index begin, hai_index end) {
  size_t bytes = HAI_AS(size_t, hai_offset(rows->dtype, rows->dim));
  hai_walk walk;
  if (!HAI_SIMD || begin >= end) return; /* plain C does not wait for memory */
  walk = hai_walk_from(rows, begin);
  for (;;) {
    hai_fetch(walk.at, bytes);
    if (++begin == end) return;
    hai_walk_on(&walk, rows, begin);
  }
}

/* Number i of n tiles that meet the same keys sees to its share of rows begin .. end - 1, the next chunk, of
   which all may load at once only at the price of waiting. */
HAI_HOT void hai_tile_fetch(const hai_tile *tile, int i, int n, hai_index begin, hai_index end) {
  hai_index rows = hai_max(0, end - begin);
  end = begin + rows * (i + 1) / n;
  begin += rows * i / n;
  hai_rows_fetch(&tile->keys, begin, end);
  if (tile->value_dim) hai_rows_fetch(&tile->values, begin, end);
}

/* Keys begin .. end - 1, at most a chunk, take their places, once for all tiles of a task. For keys before
   `first`, which nobody sees, that one stands: theirs may lie in pages that are gone. */
static void hai_tile_rows(hai_tile *tile, hai_index begin, hai_index end, hai_index first) {
  const hai_rows *keys = &tile->keys, *values = &tile->values;
  hai_index from = hai_max(begin, first), row;
  hai_walk key = hai_walk_from(keys, from), value = hai_walk_from(values, from);
  for (row = begin; row < end; row++) {
    if (row > from) {
      hai_walk_on(&key, keys, row);
      hai_walk_on(&value, values, row);
    }
    hai_tile_put_at(tile, hai_to_int(row - begin), row, key.at, value.at);
  }
}

/* Makes those of keys begin .. end - 1, at most a chunk, wait that some query of the tile may see. Returns
   whether there are any. The tile goes on to meet keys up to `all`. */
static int hai_tile_await(hai_tile *tile, hai_index begin, hai_index end, hai_index all) {
  if (hai_tile_sees(tile, begin, end - 1) == HAI_SEEN_NONE) return 0;
  hai_tile_fill(tile, begin, hai_min(end, tile->max_last + 1));
  tile->chunks = hai_to_int(begin / HAI_CHUNK); /* counted from key 0 */
  if (!HAI_MASKS || !tile->mask) return 1;
  hai_mask_fetch(tile, end, hai_min(end + HAI_CHUNK, all));
  if (hai_mask_chunk(tile, begin)) return 1;
  hai_tile_pass(tile);
  return 0;
}

/* Some tiles meet those of keys begin .. end - 1 that they see. Chunks begin at multiples of HAI_CHUNK, and
   a tile meets every chunk that any of its queries sees, so that the grouping of sums does not depend on
   which queries share a tile. */
static void hai_tiles_run(hai_tile *const *tiles, int n_tiles, hai_index begin, hai_index end) {
  hai_index first = end, last = begin - 1, next;
  int placed, nonfinite, i;
  for (i = 0; i < n_tiles; i++) {
    first = hai_min(first, tiles[i]->min_first);
    last = hai_max(last, tiles[i]->max_last);
    hai_tile_aim(tiles[i], 0, tiles[i]->n);
  }
  begin = hai_max(begin, first / HAI_CHUNK * HAI_CHUNK);
  end = hai_min(end, last + 1);
  for (; begin < end; begin = next) {
    next = hai_min(end, (begin / HAI_CHUNK + 1) * HAI_CHUNK);
    placed = 0;
    nonfinite = -1; /* not known yet */
    for (i = 0; i < n_tiles; i++) {
      if (!hai_tile_await(tiles[i], begin, next, end)) continue;
      if (!placed) hai_tile_rows(tiles[0], begin, next, first);
      placed = 1;
      if (tiles[i]->guarded && tiles[i]->masked && nonfinite < 0)
        nonfinite = !hai_tile_values_finite(tiles[0], next - begin);
      tiles[i]->nonfinite = nonfinite > 0;
      hai_tile_fetch(tiles[i], i, n_tiles, next, hai_min(next + HAI_CHUNK, end));
      hai_tile_flush(tiles[i]);
    }
  }
}
