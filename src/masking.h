/* ---- The caller's mask, in exact attention ----
   Rows of the mask [n_query][n_key] stand in memory as keys do, one after another; scores stand lane by
   lane. So a tile's part of the mask is turned chunk by chunk, by the packing of queries, and what it hides
   is known before any product is computed. */

/* By what a head's mask is multiplied. */
static float hai_mask_slope(const hyperattn_problem *p, hai_index head) {
  return p->mask_slope ? p->mask_slope[head] : 1.0f;
}

/* Lane i, which holds query `row` of a head, gets its row of the mask and its slope. Lanes are filled from 0
   on; those that stay empty have slope 0. */
static void hai_mask_lane(const hai_job *job, int i, hai_index head, hai_index row) {
  const hyperattn_problem *p = job->plan->problem;
  hai_mask *mask = job->tile->mask;
  if (i == 0) {
    mask->kernel = job->plan->float_kernel;
    mask->dtype = p->mask.dtype;
    HYPERATTN_MEMSET(mask->slope, 0, sizeof mask->slope);
  }
  mask->row[i] = hai_row(&p->mask, job->batch, head, row);
  mask->slope[i] = hai_mask_slope(p, head);
}

/* Does lane i have the row of the lane before it, as heads have that share a mask? */
HAI_HOT int hai_mask_repeats(const hai_mask *mask, int i) { return i && mask->row[i] == mask->row[i - 1]; }

/* Points tile->row at the lanes' n elements of the mask from `key` on, in float32: as they lie, or widened
   into the place of the scores, which are not computed yet. Lanes that share a row share its copy. */
static void hai_mask_rows(hai_tile *tile, hai_index key, int n) {
  const hai_mask *mask = tile->mask;
  int i;
  for (i = 0; i < tile->n; i++) {
    const char *at = mask->row[i] + HAI_AS(size_t, key) * hai_unit_bytes(mask->dtype);
    if (hai_mask_repeats(mask, i)) {
      tile->row[i] = tile->row[i - 1];
    } else if (hai_is_f32(mask->dtype)) {
      tile->row[i] = at;
    } else {
      mask->kernel->widen(at, mask->dtype, n, tile->score + i * HAI_CHUNK);
      tile->row[i] = tile->score + i * HAI_CHUNK;
    }
  }
  for (; i < tile->kernel->lanes; i++) tile->row[i] = HAI_NULL;
}

/* Starts to load a tile's elements of the mask for keys key .. end - 1, those of the next chunk:
   processors do not foresee so many streams. */
HAI_HOT void hai_mask_fetch(const hai_tile *tile, hai_index key, hai_index end) {
  const hai_mask *mask = tile->mask;
  size_t bytes = hai_unit_bytes(mask->dtype);
  int i;
  for (i = 0; i < tile->n; i++)
    if (!hai_mask_repeats(mask, i))
      hai_fetch(mask->row[i] + HAI_AS(size_t, key) * bytes, HAI_AS(size_t, end - key) * bytes);
}

/* Eight bytes of elements that are -inf. */
static uint64_t hai_hidden_bytes(hyperattn_dtype dtype) {
  if (hai_is_f32(dtype)) return 0xff800000ff800000u;
  return dtype == HYPERATTN_F16 ? 0xfc00fc00fc00fc00u : 0xff80ff80ff80ff80u;
}

/* Is every element of the mask -inf, for all lanes and the n keys from `key` on? It stops at the first eight
   bytes that differ, mostly at once. */
static int hai_mask_hides(const hai_tile *tile, hai_index key, int n) {
  const hai_mask *mask = tile->mask;
  size_t size = hai_unit_bytes(mask->dtype), bytes = HAI_AS(size_t, n) * size, t;
  uint64_t hidden = hai_hidden_bytes(mask->dtype);
  int i;
  for (i = 0; i < tile->n; i++) {
    const char *at = mask->row[i] + HAI_AS(size_t, key) * size;
    if (hai_mask_repeats(mask, i)) continue;
    for (t = 0; t + sizeof hidden <= bytes; t += sizeof hidden)
      if (hai_eight_bytes(at + t) != hidden) return 0;
    for (; t < bytes; t += size)
      if (hai_get(at + t, mask->dtype, 0) != -hai_inf()) return 0;
  }
  return 1;
}

/* The keys that wait, from `key` on, get their bias, and are hidden where it is -inf. Returns whether any
   lane sees any of them. */
static int hai_mask_chunk(hai_tile *tile, hai_index key) {
  const hai_mask *mask = tile->mask;
  uint64_t any = 0, all = UINT64_MAX;
  int j;
  if (hai_mask_hides(tile, key, tile->n_keys)) return 0;
  hai_mask_rows(tile, key, tile->n_keys);
  mask->kernel->pack(tile->row, tile->n_keys, 1.0f, mask->bias);
  for (j = 0; j < tile->n_keys && !tile->masked; j++) tile->visible[j] = UINT64_MAX;
  mask->kernel->hide(mask->bias, tile->n_keys, tile->begin, tile->end, tile->visible);
  for (j = 0; j < tile->n_keys; j++) {
    any |= tile->visible[j];
    all &= tile->visible[j];
  }
  tile->masked = (all & tile->used) != tile->used;
  return (any & tile->used) != 0;
}
