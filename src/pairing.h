/* ---- Pairing query groups with key sub-blocks by score ----
   Rows in the pairing's order are cut into query groups and key sub-blocks. Each group takes the `take`
   sub-blocks whose mean key scores best with its mean query. In large rectangles that is done in two
   levels: the HAI_TASK_GROUPS groups of a task first choose 2 * take superblocks together, and each group
   then looks for sub-blocks in these only. */

/* mean [head_dim] of the rows at places begin .. end - 1 of the pairing's order, queries of job->head or
   keys. Rows below `skip` are left out; if none remains, the mean is NaN, which scores worst. */
static void hai_mean_row(const hai_job *job, int of_key, hai_index begin, hai_index end, hai_index skip,
                         float *mean) {
  const int32_t *order = of_key ? hai_key_order(job) : hai_query_order(job);
  hai_index first = of_key ? job->rect.key_begin : job->rect.query_begin;
  hai_index dim = job->plan->head_dim, i, t, n = 0;
  float *widened = hai_line(job->tile, 0), share;
  for (t = 0; t < dim; t++) mean[t] = 0.0f;
  for (i = begin; i < end; i++) {
    hai_index row = hai_at(order, first, i);
    if (row < skip) continue;
    job->plan->float_kernel->add_row(
        mean, of_key ? hai_key_row(job, row, widened) : hai_query_row(job, job->head, row, widened), dim);
    n++;
  }
  share = n ? 1.0f / HAI_AS(float, n) : hai_float(0x7fc00000u);
  for (t = 0; t < dim; t++) mean[t] *= share;
}

/* Stage MEANS: mean keys of HAI_TASK_GROUPS sub-blocks, and of their superblocks. Sink keys are left out:
   they are pinned for every query anyway, and unlike all other keys. Reads keys and key_order; writes
   mean and superblock_mean. Cost: keys * head_dim. */
HAI_APART void hai_stage_means(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index n_blocks = hai_key_parts(plan, job->rect.n_key), dim = plan->head_dim, t, i;
  hai_index begin = job->chunk * HAI_TASK_GROUPS, end = hai_min(begin + HAI_TASK_GROUPS, n_blocks);
  if (!hai_is_needed(job)) return;
  for (i = begin; i < end; i++)
    hai_mean_row(job, 1, hai_cut(job->rect.n_key, n_blocks, i), hai_cut(job->rect.n_key, n_blocks, i + 1),
                 plan->sink_keys, hai_mean(job) + i * dim);
  if (!hai_two_levels(plan, job->rect.n_key)) return;
  for (i = begin; i < end; i++) {
    float *superblock = hai_superblock_mean(job) + i / HAI_SUPERBLOCK * dim;
    const float *mean = hai_mean(job) + i * dim;
    for (t = 0; t < dim && i % HAI_SUPERBLOCK == 0; t++) superblock[t] = 0.0f;
    for (t = 0; t < dim && mean[0] == mean[0]; t++) superblock[t] += mean[t] / HAI_AS(float, HAI_SUPERBLOCK);
  }
}

typedef struct hai_pairing_scratch {
  uint64_t *best;      /* [lanes][take]: a heap for each lane; before, one of 2 take superblocks */
  int32_t *superblock; /* [2 take]: superblocks chosen together, ascending */
  float *query;        /* [lanes][head_dim]: mean queries */
  float *best_score;   /* [superblocks]: the best score that any group gives each */
} hai_pairing_scratch;

static hai_pairing_scratch hai_pairing_scratch_of(const hai_job *job) {
  hai_index lanes = job->plan->float_kernel->lanes, take = job->plan->take;
  hai_pairing_scratch scratch;
  scratch.best = HAI_PLACE(uint64_t, job->scratch);
  scratch.superblock = HAI_PLACE(int32_t, scratch.best + lanes * take);
  scratch.query = HAI_PLACE(float, scratch.superblock + 2 * take);
  scratch.best_score = scratch.query + lanes * job->plan->head_dim;
  return scratch;
}

/* Fills the lanes with the mean queries of the wanted groups: group first + i for every bit i < end of
   `wanted`, until the lanes are full. Returns the bits of the wanted groups that are still to come. */
static uint64_t hai_pair_open(hai_job *job, hai_index first, uint64_t wanted, int end,
                              const hai_pairing_scratch *scratch) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, n_query = job->rect.n_query;
  hai_index groups = hai_query_parts(plan, n_query, job->rect.n_key);
  float *query = scratch->query;
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

/* Raises best_score [n_superblocks] to the best score that any group in the lanes gives each superblock; it
   begins there where `is_first`. */
static void hai_score_superblocks(hai_job *job, hai_index n_superblocks, int is_first, float *best_score) {
  const hai_kernel *kernel = job->plan->float_kernel;
  hai_tile *tile = job->tile;
  hai_index dim = job->plan->head_dim, s;
  int j;
  for (s = 0; s < n_superblocks; s += HAI_CHUNK) {
    int count = hai_to_int(hai_min(HAI_CHUNK, n_superblocks - s));
    for (j = 0; j < count; j++) tile->key[j] = hai_superblock_mean(job) + (s + j) * dim;
    hai_tile_products(tile, kernel, count);
    for (j = 0; j < count; j++) {
      float most = hai_largest(tile->score + j * kernel->lanes, tile->n);
      best_score[s + j] = !is_first && best_score[s + j] > most ? best_score[s + j] : most;
    }
  }
}

/* Groups first .. first + n - 1 choose 2 * take superblocks together: those that any of them scores best.
   Writes them to scratch->superblock, ascending; returns how many. The last of the groups stay in the
   lanes. */
static int hai_pair_superblocks(hai_job *job, hai_index first, int n, const hai_pairing_scratch *scratch) {
  hai_index superblocks = hai_ceil_div(hai_key_parts(job->plan, job->rect.n_key), HAI_SUPERBLOCK), s;
  uint64_t all = hai_lane_bits(0, n), rest = all;
  int held = 0;
  while (rest) {
    int is_first = rest == all;
    rest = hai_pair_open(job, first, rest, n, scratch);
    hai_score_superblocks(job, superblocks, is_first, scratch->best_score);
  }
  for (s = 0; s < superblocks; s++)
    hai_offer(scratch->best, &held, 2 * job->plan->take,
              hai_candidate(scratch->best_score[s], hai_to_int(s)));
  hai_heap_ids(scratch->best, held, scratch->superblock);
  return held;
}

/* Offers the scores of `count` sub-blocks (tile->id, ascending) to each lane's heap of `take`. All heaps hold
   equally many, *held, since each score goes to all until they are full. Then a score that is no larger than
   the worst of a heap (tile->spare [lanes]) need not be offered: ids ascend, and the smaller id wins. */
static void hai_offer_blocks(hai_tile *tile, int count, int take, uint64_t *best, hai_index stride,
                             int *held) {
  int lanes = tile->kernel->lanes, before, i, j;
  for (j = 0; j < count; j++) {
    const float *score = tile->score + j * lanes;
    before = *held;
    for (i = 0; i < tile->n; i++) {
      if (before == take && !(score[i] > tile->spare[i])) continue;
      *held = before; /* of this heap too */
      hai_offer(best + i * stride, held, take, hai_candidate(score[i], tile->id[j]));
      tile->spare[i] = hai_candidate_value(best[i * stride]);
    }
  }
}

/* Each group in the lanes takes the sub-blocks whose mean key its mean query scores best, out of n
   superblocks: superblock[0 .. n - 1], or the first n where that is NULL. Writes the groups' choices,
   ascending. */
static void hai_pair_tile(hai_job *job, const int32_t *superblock, hai_index n, uint64_t *best) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index dim = plan->head_dim, n_blocks = hai_key_parts(plan, job->rect.n_key), stride = plan->take, s;
  int take = hai_to_int(hai_min(plan->take, n_blocks)), held = 0, i;
  for (s = 0; s < n;) {
    int count = 0;
    for (; s < n && count + HAI_SUPERBLOCK <= HAI_CHUNK; s++) {
      hai_index block = (superblock ? superblock[s] : s) * HAI_SUPERBLOCK,
                end = hai_min(block + HAI_SUPERBLOCK, n_blocks);
      for (; block < end; block++, count++) {
        tile->key[count] = hai_mean(job) + block * dim;
        tile->id[count] = hai_to_int(block);
      }
    }
    hai_tile_products(tile, plan->float_kernel, count);
    hai_offer_blocks(tile, count, take, best, stride, &held);
  }
  for (i = 0; i < tile->n; i++) hai_heap_ids(best + i * stride, take, hai_choice(job, tile->group[i].id));
}

/* Pairs the wanted query groups (bits) of this task's HAI_TASK_GROUPS. The superblocks are chosen by all
   of them, wanted or not, so that a group's choice does not depend on which others are wanted.
   Cost of a group: keys / key_group products of head_dim; in two levels, a HAI_SUPERBLOCK-th of that and
   2 * take * HAI_SUPERBLOCK. */
static void hai_pair_groups(hai_job *job, uint64_t wanted) {
  hai_index first = job->chunk * HAI_TASK_GROUPS, n_key = job->rect.n_key;
  hai_index groups = hai_query_parts(job->plan, job->rect.n_query, n_key);
  hai_index superblocks = hai_ceil_div(hai_key_parts(job->plan, n_key), HAI_SUPERBLOCK);
  hai_pairing_scratch scratch = hai_pairing_scratch_of(job);
  int two_levels = hai_two_levels(job->plan, n_key);
  int n = hai_to_int(hai_max(0, hai_min(HAI_TASK_GROUPS, groups - first)));
  uint64_t all = hai_lane_bits(0, n), rest = wanted & all;
  /* whether choosing superblocks leaves just the wanted groups in the lanes */
  int in_lanes = two_levels && rest == all && n <= job->plan->float_kernel->lanes;
  if (rest && two_levels) superblocks = hai_pair_superblocks(job, first, n, &scratch);
  while (rest) {
    rest = in_lanes ? 0 : hai_pair_open(job, first, rest, n, &scratch);
    hai_pair_tile(job, two_levels ? scratch.superblock : HAI_NULL, superblocks, scratch.best);
  }
}

/* Stage PAIR: the sub-blocks of HAI_TASK_GROUPS query groups. Reads queries, query_order, mean and
   superblock_mean; writes choice. */
HAI_APART void hai_stage_pair(hai_job *job) {
  if (hai_is_needed(job)) hai_pair_groups(job, UINT64_MAX);
}
