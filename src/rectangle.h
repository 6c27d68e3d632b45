/* ---- An approximated rectangle: blocks, pins, columns ---- */

/* The job goes on with the pairing that the rectangle's verdict names, if there is one. */
static void hai_adopt_pairing(hai_job *job) {
  if (job->plan->choosing && !hai_rect_is_exact(job)) job->pairing = hai_verdict_of(job).pairing;
}

/* Puts the query at a position of the pairing's order into a lane, and the lane into its query group.
   Positions ascend from lane to lane. */
static void hai_tile_sorted(hai_job *job, int lane, hai_index position) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_group *group = &tile->group[tile->n_groups ? tile->n_groups - 1 : 0];
  hai_index row = hai_at(hai_query_order(job), job->rect.query_begin, position),
            parts = job->pairing == HAI_NO_BLOCKS
                        ? 0
                        : hai_query_parts(plan, job->rect.n_query, job->rect.n_key),
            id;
  hai_rect_query(job, lane, row);
  if (!parts) return;
  id = hai_part_of(job->rect.n_query, parts, position);
  if (!tile->n_groups || group->id != id) {
    group = &tile->group[tile->n_groups++];
    group->id = hai_to_int(id);
    group->begin = lane;
    group->at = 0;
    group->blocks =
        plan->by_score ? hai_choice(job, id) : &group->id; /* by rank: the block of equal rank */
    group->n_blocks = hai_to_int(hai_min(plan->take, hai_key_parts(plan, job->rect.n_key)));
  }
  group->end = lane + 1;
}

/* Bit i: the group of lane i has chosen the sub-block. Cheapest for a sequence of ascending sub-blocks. */
static uint64_t hai_tile_holds(hai_tile *tile, int32_t block) {
  uint64_t bits = 0;
  int g;
  for (g = 0; g < tile->n_groups; g++) {
    hai_group *group = &tile->group[g];
    if (group->at && group->blocks[group->at - 1] >= block) group->at = 0;
    while (group->at < group->n_blocks && group->blocks[group->at] < block) group->at++;
    if (group->at < group->n_blocks && group->blocks[group->at] == block)
      bits |= hai_lane_bits(group->begin, group->end);
  }
  return bits;
}

/* Each query group meets the keys of its sub-blocks with weight 1, except pins, which all queries meet. */
static void hai_attend_blocks(hai_job *job) {
  hai_tile *tile = job->tile;
  const int32_t *order = hai_key_order(job);
  const uint32_t *pinned = hai_pinned(job);
  hai_index n_key = job->rect.n_key, parts = hai_key_parts(job->plan, n_key), rank;
  int g, b;
  for (g = 0; g < tile->n_groups; g++) {
    const hai_group *group = &tile->group[g];
    uint64_t bits = hai_lane_bits(group->begin, group->end);
    hai_tile_aim(tile, group->begin, group->end);
    for (b = 0; b < group->n_blocks; b++)
      for (rank = hai_cut(n_key, parts, group->blocks[b]);
           rank < hai_cut(n_key, parts, group->blocks[b] + 1); rank++) {
        hai_index key = hai_at(order, job->rect.key_begin, rank);
        if (!hai_is_pinned(job, pinned, key)) hai_tile_push(tile, key, bits);
      }
    hai_tile_flush(tile);
  }
}

/* Keys begin .. end - 1 of a list take their places in the chunk. The first n_pins of the list are pins, of
   weight 1, the others the columns of a draw. Returns the largest position of these keys. */
HAI_APART int32_t hai_list_rows(const hai_job *job, hai_tile *tile, int n_pins, int wide, int begin,
                                int end) {
  int32_t latest = 0;
  int j;
  for (j = 0; begin < end; j++, begin++) {
    int is_pin = begin < n_pins;
    const hai_column *column = &hai_columns(job, wide)[is_pin ? 0 : begin - n_pins];
    int32_t key = is_pin ? hai_pins(job)[begin] : column->key;
    tile->log_weight[j] = is_pin ? 0.0f : column->log_weight;
    latest = key > latest ? key : latest;
    hai_tile_put(tile, j, key);
  }
  return latest;
}

/* Some tiles meet the first n_pins pins and the columns of a draw (wide: 0 or 1; -1: none). A column is
   hidden from the queries that meet it in one of their blocks. Each row is read once for all tiles. */
static void hai_tiles_list(hai_job *job, hai_tile *const *tiles, int n_tiles, int n_pins, int wide) {
  int n = n_pins + (wide < 0 ? 0 : hai_counts(job)[1 + wide]), second = job->pairing == 1;
  int begin, end, hidden, i, j;
  for (i = 0; i < n_tiles; i++) hai_tile_aim(tiles[i], 0, tiles[i]->n);
  for (begin = 0; begin < n; begin = end) {
    int32_t latest;
    end = hai_to_int(hai_min(n, begin + HAI_CHUNK));
    latest = hai_list_rows(job, tiles[0], n_pins, wide > 0, begin, end);
    for (i = 0; i < n_tiles; i++) {
      hai_tile *tile = tiles[i];
      tile->n_keys = end - begin;
      tile->weighted = end > n_pins;
      hidden = tile->n_groups || hai_tile_sees(tile, 0, latest) != HAI_SEEN_ALL; /* may any key be */
      for (j = 0; hidden && j < tile->n_keys; j++) {
        int at = begin + j - n_pins;
        uint64_t held = at < 0 ? 0 : hai_tile_holds(tile, hai_columns(job, wide)[at].block[second]);
        hai_tile_show(tile, j, tile->id[j], ~held);
      }
      hai_tile_flush(tile);
    }
  }
}

static void hai_attend_pins(hai_job *job) { hai_tiles_list(job, &job->tile, 1, hai_counts(job)[0], -1); }
static void hai_attend_columns(hai_job *job, int wide) { hai_tiles_list(job, &job->tile, 1, 0, wide); }
