/* ---- Which keys a query sees ---- */

/* Keys that the query at `row` sees in the problem: *first .. *last, none where *last < *first. A causal
   query sees the keys up to its own position P = row + n_key - n_query; in a sliding window of w, the keys j
   with P - j < w and j - P < w. All that follows derives from this. */
static void hai_seen_keys(const hai_plan *plan, hai_index row, hai_index *first, hai_index *last) {
  hai_index position = row + plan->n_key - plan->n_query;
  *first = 0;
  *last = plan->problem->causal ? position : plan->n_key - 1;
  if (!hai_sliding(plan)) return;
  *first = hai_max(0, position - plan->sliding + 1);
  *last = hai_min(*last, position + plan->sliding - 1);
}

/* Those that it meets before any rectangle: all, or those of its diagonal segment and its window. */
static void hai_exact_keys(const hai_plan *plan, hai_index row, hai_index *first, hai_index *last) {
  hai_index x, begin, segments = hai_power_of_2(plan->depth);
  hai_seen_keys(plan, row, first, last);
  x = *last - plan->key_skip; /* its position within the square */
  if (!plan->problem->causal || x < 0 || (!plan->depth && !plan->outer)) return;
  begin = plan->key_skip + hai_cut(plan->square, segments, hai_part_of(plan->square, segments, x));
  *first = hai_max(*first, hai_min(begin, *last - plan->window + 1));
}

/* Those that it meets in a rectangle, as far as the rectangle holds them: all before its window, which it has
   met. A problem that is scanned as a whole holds the window too; full attention has none. */
static void hai_rect_keys(const hai_plan *plan, hai_index row, hai_index *first, hai_index *last) {
  hai_seen_keys(plan, row, first, last);
  if (!hai_scanning(plan)) *last -= plan->window;
}

/* How many of some keys the queries of a tile see. */
typedef enum hai_seen { HAI_SEEN_NONE, HAI_SEEN_SOME, HAI_SEEN_ALL } hai_seen;

/* Of keys first .. last, NONE: no query sees any; ALL: every query sees every one. */
HAI_HOT hai_seen hai_tile_sees(const hai_tile *tile, hai_index first, hai_index last) {
  if (first >= tile->max_first && last <= tile->min_last) return HAI_SEEN_ALL;
  return last < tile->min_first || first > tile->max_last ? HAI_SEEN_NONE : HAI_SEEN_SOME;
}

/* Of keys key .. key + n - 1, bit i of visible[j]: lane i, one of those aimed at, sees key + j. A lane
   changes its bit at its first key and after its last. Cost: O(lanes + n). */
HAI_HOT void hai_tile_mask(const hai_tile *tile, hai_index key, int n, uint64_t *visible) {
  uint64_t seen = 0;
  int end = tile->end < tile->n ? tile->end : tile->n, i, j;
  for (j = 0; j < n; j++) visible[j] = 0;
  for (i = tile->begin; i < end; i++) {
    hai_index first = tile->first[i] - key, last = tile->last[i] - key;
    uint64_t bit = UINT64_C(1) << i;
    if (last < 0 || first >= n || last < first) continue;
    if (first <= 0)
      seen |= bit;
    else
      visible[first] ^= bit;
    if (last + 1 < n) visible[last + 1] ^= bit;
  }
  for (j = 0; j < n; j++) {
    seen ^= visible[j];
    visible[j] = seen;
  }
}

/* Key `key`, at place j of the chunk, is visible to those of the lanes in `bits` that see it. */
HAI_HOT void hai_tile_show(hai_tile *tile, int j, hai_index key, uint64_t bits) {
  uint64_t seen = UINT64_MAX;
  if (hai_tile_sees(tile, key, key) != HAI_SEEN_ALL) hai_tile_mask(tile, key, 1, &seen);
  tile->visible[j] = bits & seen;
  tile->masked |= (bits & seen & tile->used) != tile->used;
}

/* The keys that wait are begin .. end - 1, at most a chunk, for all lanes that see them. */
static void hai_tile_fill(hai_tile *tile, hai_index begin, hai_index end) {
  tile->n_keys = hai_to_int(end - begin);
  tile->masked = hai_tile_sees(tile, begin, end - 1) != HAI_SEEN_ALL;
  if (tile->masked) hai_tile_mask(tile, begin, tile->n_keys, tile->visible);
}
