/* ---- Pairing query groups with key sub-blocks by score ---- */

/* sum [dim] += row; read before written, four at a time, so that compilers need not fear an overlap. */
static void hai_add_row(const float *row, hai_index dim, float *sum) {
  hai_index t;
  for (t = 0; HAI_SIMD && t + 4 <= dim; t += 4) {
    float a = sum[t] + row[t], b = sum[t + 1] + row[t + 1], c = sum[t + 2] + row[t + 2],
          d = sum[t + 3] + row[t + 3];
    sum[t] = a;
    sum[t + 1] = b;
    sum[t + 2] = c;
    sum[t + 3] = d;
  }
  for (; t < dim; t++) sum[t] += row[t];
}

/* mean [head_dim] of the rows at places begin .. end - 1 of an order (hai_at), queries of job->head or keys,
   those below `skip` left out; NaN, which scores worst, where none is left. */
static void hai_mean_row(const hai_job *job, int of_key, hai_index begin, hai_index end, hai_index skip,
                         float *mean) {
  const int32_t *order = of_key ? hai_key_order(job) : hai_query_order(job);
  hai_index first = of_key ? job->rect.key_begin : job->rect.query_begin;
  hai_index dim = job->plan->head_dim, i, t, n = 0;
  float *room = hai_line(job->tile, 0), share;
  for (t = 0; t < dim; t++) mean[t] = 0.0f;
  for (i = begin; i < end; i++) {
    hai_index row = hai_at(order, first, i);
    if (row < skip) continue;
    hai_add_row(of_key ? hai_key_row(job, row, room) : hai_query_row(job, job->head, row, room), dim, mean);
    n++;
  }
  share = n ? 1.0f / HAI_AS(float, n) : hai_float(0x7fc00000u);
  for (t = 0; t < dim; t++) mean[t] *= share;
}

/* Mean keys of some sub-blocks, and of spans of HAI_SUPERBLOCK sub-blocks; sinks, pinned for every head,
   stay out. */
HAI_APART void hai_stage_means(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index parts = hai_key_parts(plan, job->rect.n_key), dim = plan->head_dim, t, i;
  hai_index begin = job->chunk * HAI_TASK_GROUPS, end = hai_min(begin + HAI_TASK_GROUPS, parts);
  if (!hai_wanted(job)) return;
  for (i = begin; i < end; i++)
    hai_mean_row(job, 1, hai_cut(job->rect.n_key, parts, i), hai_cut(job->rect.n_key, parts, i + 1),
                 plan->sink_keys, hai_mean(job) + i * dim);
  if (!hai_two_levels(plan, job->rect.n_key)) return;
  for (i = begin; i < end; i++) {
    float *span = hai_superblock_mean(job) + i / HAI_SUPERBLOCK * dim;
    const float *mean = hai_mean(job) + i * dim;
    for (t = 0; t < dim && i % HAI_SUPERBLOCK == 0; t++) span[t] = 0.0f;
    for (t = 0; t < dim && mean[0] == mean[0]; t++) span[t] += mean[t] / HAI_AS(float, HAI_SUPERBLOCK);
  }
}

/* Pairing's scratch. */
typedef struct hai_pairing_scratch {
  uint64_t *best;      /* [lanes][take] candidates of each lane, or the best spans */
  int32_t *superblock; /* [2 take] */
  float *query;        /* [lanes][head_dim]: mean queries */
  float *reach;        /* [spans]: best score of any lane */
} hai_pairing_scratch;

static hai_pairing_scratch hai_pairing_scratch_of(const hai_job *job) {
  hai_index lanes = job->plan->float_kernel->lanes, take = job->plan->take;
  hai_pairing_scratch room;
  room.best = HAI_PLACE(uint64_t, job->scratch);
  room.superblock = HAI_PLACE(int32_t, room.best + lanes * take);
  room.query = HAI_PLACE(float, room.superblock + 2 * take);
  room.reach = room.query + lanes * job->plan->head_dim;
  return room;
}

/* Puts the next of the wanted query groups (bits, groups first .. first + 63) that no lane holds yet into the
   lanes, their means packed: none from bit `end` on, no more than fit. Returns the bits beyond them. */
static uint64_t hai_pair_open(hai_job *job, hai_index first, uint64_t wanted, int end,
                              const hai_pairing_scratch *room) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, n_query = job->rect.n_query;
  hai_index groups = hai_query_parts(plan, n_query, job->rect.n_key);
  float *query = room->query;
  int lanes = plan->float_kernel->lanes, n = 0, i;
  for (i = 0; i < end && n < lanes; i++) {
    hai_index id = first + i;
    if (!(wanted >> i & 1)) continue;
    hai_mean_row(job, 0, hai_cut(n_query, groups, id), hai_cut(n_query, groups, id + 1), 0, query);
    tile->group[n].id = hai_to_int(id);
    tile->row[n++] = query;
    query += dim;
  }
  wanted &= ~hai_lane_bits(0, i);
  for (i = n; i < lanes; i++) tile->row[i] = HAI_NULL;
  plan->float_kernel->pack(tile->row, dim, plan->scale, tile->query);
  tile->n = n;
  hai_tile_aim(tile, 0, n);
  return wanted;
}

/* The spans that any of groups first .. first + n - 1 scores best, ascending; returns how many. The last of
   the groups stay in the lanes. */
static int hai_pair_superblocks(hai_job *job, hai_index first, int n, const hai_pairing_scratch *room) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, s;
  hai_index spans = hai_ceil_div(hai_key_parts(plan, job->rect.n_key), HAI_SUPERBLOCK);
  uint64_t all = hai_lane_bits(0, n), rest = all;
  int lanes = plan->float_kernel->lanes, held = 0, j;
  while (rest) {
    int anew = rest == all;
    rest = hai_pair_open(job, first, rest, n, room);
    for (s = 0; s < spans; s += HAI_CHUNK) {
      int count = hai_to_int(hai_min(HAI_CHUNK, spans - s));
      for (j = 0; j < count; j++) tile->key[j] = hai_superblock_mean(job) + (s + j) * dim;
      hai_tile_products(tile, plan->float_kernel, count);
      for (j = 0; j < count; j++) {
        float most = hai_largest(tile->score + j * lanes, tile->n);
        room->reach[s + j] = !anew && room->reach[s + j] > most ? room->reach[s + j] : most;
      }
    }
  }
  for (s = 0; s < spans; s++)
    hai_offer(room->best, &held, 2 * plan->take, hai_candidate(room->reach[s], hai_to_int(s)));
  hai_heap_ids(room->best, held, room->superblock);
  return held;
}

/* Each group in the lanes takes the sub-blocks whose mean key its mean query likes best, of some spans
   (span[0 .. spans - 1]; NULL: the first). */
static void hai_pair_tile(hai_job *job, const int32_t *span, hai_index spans,
                          const hai_pairing_scratch *room) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, blocks = hai_key_parts(plan, job->rect.n_key), stride = plan->take, s;
  int lanes = plan->float_kernel->lanes, take = hai_to_int(hai_min(plan->take, blocks)), i, j;
  HYPERATTN_MEMSET(tile->held, 0, sizeof tile->held);
  for (s = 0; s < spans;) {
    int count = 0;
    for (; s < spans && count + HAI_SUPERBLOCK <= HAI_CHUNK; s++) {
      hai_index block = (span ? span[s] : s) * HAI_SUPERBLOCK,
                last = hai_min(block + HAI_SUPERBLOCK, blocks);
      for (; block < last; block++, count++) {
        tile->key[count] = hai_mean(job) + block * dim;
        tile->id[count] = hai_to_int(block);
      }
    }
    hai_tile_products(tile, plan->float_kernel, count);
    for (i = 0; i < tile->n; i++) {
      uint64_t *heap = room->best + i * stride;
      for (j = 0; j < count; j++) {
        float score = tile->score[j * lanes + i];
        if (tile->held[i] < take ||
            score > hai_candidate_value(heap[0])) /* ids ascend: ties change nothing */
          hai_offer(heap, &tile->held[i], take, hai_candidate(score, tile->id[j]));
      }
    }
  }
  for (i = 0; i < tile->n; i++)
    hai_heap_ids(room->best + i * stride, take, hai_choice(job, tile->group[i].id));
}

/* Pairs the wanted query groups (bits) of this task's HAI_TASK_GROUPS. In large rectangles, HAI_PAIR_GROUPS
   neighbours first choose 2 * take spans of sub-blocks together, wanted or not, and look only there. Cost, a
   group: keys / key_group products of head_dim; in two levels, a HAI_SUPERBLOCK-th of that and 2 * take *
   HAI_SUPERBLOCK. */
static void hai_pair_groups(hai_job *job, uint64_t wanted) {
  hai_index first = job->chunk * HAI_TASK_GROUPS, n_key = job->rect.n_key;
  hai_index groups = hai_query_parts(job->plan, job->rect.n_query, n_key);
  hai_index spans = hai_ceil_div(hai_key_parts(job->plan, n_key), HAI_SUPERBLOCK);
  hai_pairing_scratch room = hai_pairing_scratch_of(job);
  int two = hai_two_levels(job->plan, n_key), step = two ? HAI_PAIR_GROUPS : HAI_TASK_GROUPS, begin;
  for (begin = 0; begin < HAI_TASK_GROUPS && first + begin < groups; begin += step) {
    int end = hai_to_int(hai_min(begin + step, groups - first));
    uint64_t all = hai_lane_bits(begin, end), rest = wanted & all;
    int in_lanes = two && rest == all && end - begin <= job->plan->float_kernel->lanes;
    if (rest && two) spans = hai_pair_superblocks(job, first + begin, end - begin, &room);
    while (rest) {
      rest = in_lanes ? 0 : hai_pair_open(job, first, rest, end, &room);
      hai_pair_tile(job, two ? room.superblock : HAI_NULL, spans, &room);
    }
  }
}

HAI_APART void hai_stage_pair(hai_job *job) {
  if (hai_wanted(job)) hai_pair_groups(job, UINT64_MAX);
}
