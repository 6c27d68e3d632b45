/* ---- Meeting: the queries that share a kv head meet what any of them keeps (lookup.h) ----
   The rows of keys and values that a query keeps lie anywhere in memory, and to read them takes longer
   than to meet them. So the queries of heads that share a kv head, at one position, keep keys by the same
   random numbers and meet the union: key j with P_j, the largest of theirs. No query's error is larger for
   it. Those whose error is above HAI_LOOK_SAFE of the tolerance try again together, and where one has to
   meet every key, all that are left do, since they read keys but once. */

#if HAI_INDEX
typedef struct hai_meet {
  hai_few *few;                      /* the queries, and where rows of keys and values lie */
  hai_pick *pick[HAI_LOOK_TOGETHER]; /* of each of its few->n queries */
  float *place;                      /* [HAI_CHUNK]: random numbers, before a block moves them */
  float shift[HAI_SPAN_BLOCKS];      /* of a span: by how much a block moves them */
  uint64_t kept[HAI_SPAN_BLOCKS];    /* of a span: bit j of a block: key j is kept */
  int32_t *key;                      /* [HAI_LOOK_MET]: the keys that are met: sinks, kept ones, the others */
  float *chance;                     /* [HAI_LOOK_MET]: P_j */
  float *more;                       /* [HAI_LOOK_MET]: 1 / P_j - 1 */
  hai_index n, n_kept;
  hai_index n_uncertain; /* of P_j < 1 */
  uint64_t hash;         /* of the seed and the first query */
} hai_meet;

/* The random numbers: HAI_CHUNK even steps, in an order of the seed. */
static void hai_meet_places(const hai_job *job, hai_meet *meet) {
  const float *query = meet->few->packed;
  hai_index t;
  int j;
  meet->hash = hai_random(job->plan->params->seed, 0, HAI_FOR_OFFSETS, 0);
  for (j = 0; j < HAI_CHUNK; j++) {
    int at = HAI_AS(int, hai_uniform(0, HAI_AS(uint64_t, j + 1), hai_mix(meet->hash + HAI_AS(uint64_t, j))));
    meet->place[j] = meet->place[at];
    meet->place[at] = HAI_AS(float, j) * (1.0f / HAI_CHUNK);
  }
  for (t = 0; t < job->plan->head_dim; t++) meet->hash = hai_mix(meet->hash ^ hai_bits(query[t]));
}

/* Adds keys that are met for certain. Returns 0 where there is no room. */
static int hai_meet_all(hai_meet *meet, hai_index begin, hai_index end) {
  if (end - begin > HAI_LOOK_MET - meet->n) return 0;
  for (; begin < end; begin++) {
    meet->chance[meet->n] = 1.0f;
    meet->key[meet->n++] = hai_to_int(begin);
  }
  return 1;
}

/* Shifts of n blocks from `block` on: (r + 1/2) / 2^22, r the 22 highest bits of a block's random number,
   or for every second block the 22 below them of the one before. Places are multiples of 1/64, so sums are
   exact and none is 0. */
static void hai_meet_shifts(hai_meet *meet, hai_index block, hai_index n) {
  hai_index i;
  uint64_t random = 0;
  for (i = 0; i < n; i++) {
    random = i % 2 ? random << 22 : hai_mix(meet->hash + HAI_AS(uint64_t, block + i));
    meet->shift[i] = (HAI_AS(float, HAI_AS(int32_t, random >> 42)) + 0.5f) * (1.0f / 4194304.0f);
  }
}

/* P_j of the keys from number `begin` on, of a span that begins with key `first`: the largest of what each
   query's weight calls for. */
static void hai_meet_chances(hai_meet *meet, hai_index begin, hai_index first, const hai_levels *levels) {
  int i;
  for (; begin < meet->n; begin++) {
    hai_index at = meet->key[begin] - first;
    int most = -HAI_STEP_OF_1;
    for (i = 0; i < levels->n; i++) {
      int x = levels->score[i][at] - levels->level[i];
      most = x > most ? x : most;
    }
    meet->chance[begin] = most < 0 ? hai_step_weight(most) : 1.0f;
  }
}

/* Sets P_j = 1 of the keys of a span that are met for sure. */
static void hai_meet_certain(hai_meet *meet, hai_index begin) {
  int i;
  for (; begin < meet->n; begin++) {
    hai_index key = meet->key[begin];
    for (i = 0; i < meet->few->n; i++)
      if (meet->pick[i]->look.sure[key / HAI_CHUNK] >> key % HAI_CHUNK & 1) meet->chance[begin] = 1.0f;
  }
}

/* To what n blocks from `block` on keep, adds the keys that a query meets for sure. Returns whether there
   are any. */
static int hai_meet_sure(hai_meet *meet, hai_index block, hai_index n) {
  hai_index b;
  int is_sure = 0, i;
  for (i = 0; i < meet->few->n; i++) {
    const hai_look *look = &meet->pick[i]->look;
    if (!look->span[block / HAI_SPAN_BLOCKS].is_sure) continue;
    for (b = 0; b < n; b++) meet->kept[b] |= look->sure[block + b];
    is_sure = 1;
  }
  return is_sure;
}

/* Keeps keys of n blocks from `block` on, the first of a span, by each query's level. Returns 0 where there
   is no room. */
static int hai_meet_span(hai_meet *meet, hai_index block, hai_index n) {
  hai_index begin = meet->n, b;
  hai_levels levels = {{HAI_NULL}, {0}, meet->few->n, meet->place, meet->shift};
  int is_sure, i;
  for (i = 0; i < levels.n; i++) {
    levels.score[i] = meet->pick[i]->look.score + block * HAI_CHUNK;
    levels.level[i] = hai_pick_cut(meet->pick[i]->level, HAI_LEVEL_LEAST);
  }
  hai_meet_shifts(meet, block, n);
  meet->pick[0]->look.kernel->keep(&levels, n, meet->kept);
  is_sure = hai_meet_sure(meet, block, n);
  for (b = 0; b < n; b++) {
    uint64_t kept = meet->kept[b];
    int32_t *key = meet->key + meet->n;
    if (meet->n > HAI_LOOK_MET - HAI_CHUNK) return 0;
    for (; kept; kept &= kept - 1) *key++ = hai_to_int((block + b) * HAI_CHUNK) + hai_lowest_bit(kept);
    meet->n = key - meet->key;
  }
  hai_meet_chances(meet, begin, block * HAI_CHUNK, &levels);
  if (is_sure) hai_meet_certain(meet, begin);
  return 1;
}

/* Sets `more` and n_uncertain by each P_j. Behind the last key, its chunk is filled with keys of P_j = 1 that
   nobody meets. */
static void hai_meet_count(hai_meet *meet) {
  hai_index i, n = hai_ceil_div(meet->n, HAI_CHUNK) * HAI_CHUNK;
  int32_t certain = 0;
  for (i = meet->n; i < n; i++) meet->chance[i] = 1.0f;
  for (i = 0; i < n; i++) {
    meet->more[i] = 1.0f / meet->chance[i] - 1.0f;
    certain += meet->chance[i] == 1.0f;
  }
  meet->n_uncertain = n - certain;
}

/* All that the queries meet with their budgets. Returns 0 where that costs more than to meet every key: where
   one has to, that takes the others little longer. At tolerance 0 budgets decide (hai_pick_begin), and only
   the room besides: if draws that keep many keys were left out, what remains would be biased. */
static int hai_meet_keys(const hai_job *job, hai_meet *meet) {
  const hai_look *look = &meet->pick[0]->look; /* they see the same keys */
  hai_index block, end = look->end / HAI_CHUNK;
  meet->n = 0;
  if (!hai_meet_all(meet, 0, look->begin)) return 0;
  for (block = 0; block < end; block += HAI_SPAN_BLOCKS)
    if (!hai_meet_span(meet, block, hai_min(end - block, HAI_SPAN_BLOCKS))) return 0;
  meet->n_kept = meet->n - look->begin;
  if (job->plan->params->tolerance > 0.0f && HAI_AS(float, meet->n_kept) > hai_pick_most(meet->pick[0]))
    return 0;
  if (!hai_meet_all(meet, look->end, look->last + 1)) return 0;
  hai_meet_count(meet);
  return 1;
}

/* ---- Meeting them ---- */

/* Lists the rows of a chunk of keys that are met, from number `at` on, as those of a turn. Returns how many
   they are; the last stands for those behind it. */
static int hai_meet_rows(const hai_meet *meet, hai_index at, int turn) {
  hai_few *few = meet->few;
  hai_index last = hai_min(at + HAI_CHUNK, meet->n) - 1;
  int j;
  for (j = 0; at <= last && j < HAI_CHUNK; j++) {
    hai_index key = meet->key[hai_min(at + j, last)];
    few->key[turn][j] = hai_walk_from(&few->keys, key).at;
    few->value[turn][j] = hai_walk_from(&few->values, key).at;
  }
  return hai_to_int(hai_max(last + 1 - at, 0));
}

/* Weights of a chunk of keys from number `at` on, of all queries, times 1 / P_j. */
static void hai_meet_weigh(hai_meet *meet, hai_index at) {
  hai_few *few = meet->few;
  const float *more = meet->more + at;
  int i, j, lane;
  for (i = 0; i < few->n; i++) {
    float *weight = few->score + i * HAI_CHUNK, sum[HAI_SUM_LANES] = {0.0f};
    for (j = 0; j < HAI_CHUNK; j += HAI_SUM_LANES)
      for (lane = 0; lane < HAI_SUM_LANES; lane++) {
        float added = weight[j + lane] * more[j + lane];
        weight[j + lane] += added;
        sum[lane] += added;
      }
    few->l[i] += hai_lanes_sum(sum);
    meet->pick[i]->by[at / HAI_CHUNK] = few->m[i];
    HYPERATTN_MEMCPY(meet->pick[i]->weight + at, weight, HAI_CHUNK * sizeof(float));
  }
}

/* The queries meet n keys from number `at` on, whose rows are those of a turn; the `next` ones' start to
   load. */
static void hai_meet_some(const hai_job *job, hai_meet *meet, hai_index at, int turn, int n, int next) {
  hai_few *few = meet->few;
  const hai_few_kernel *kernel = few->kernel->few;
  hai_few_rows keys = hai_few_read(few, &few->keys, few->key_dim, few->key[turn], few->wide_key, n);
  hai_few_rows values = hai_few_read(few, &few->values, few->value_dim, few->value[turn], few->wide_value, n);
  int i;
  hai_few_load_ahead(few, turn, !next, &keys, &values);
  kernel->scores(&keys, few->packed, few->n, few->score);
  for (i = 0; i < few->n; i++) {
    hai_few_finish_scores(job, few, i, few->score + i * HAI_CHUNK, HAI_NULL);
    few->visible[i] = hai_lane_bits(0, n);
  }
  kernel->softmax(few->score, few->n, n, HAI_NULL, few->visible, few->m, few->l, few->factor);
  for (i = 0; i < few->n && n < HAI_CHUNK; i++)
    HYPERATTN_MEMSET(few->score + i * HAI_CHUNK + n, 0, HAI_AS(size_t, HAI_CHUNK - n) * sizeof(float));
  hai_meet_weigh(meet, at);
  kernel->values(&values, few->score, few->factor, few->n, few->o);
}

/* The queries meet the keys: m, l and o of `few`, and the weights of each. */
HAI_APART void hai_meet_attend(const hai_job *job, hai_meet *meet) {
  hai_few *few = meet->few;
  hai_index at;
  int turn = 0, n, next, i;
  for (i = 0; i < few->n; i++)
    hai_state_begin(
        HAI_SINKS && job->plan->problem->sink ? job->plan->problem->sink[few->query[i].head] : -hai_inf(),
        few->m + i, few->l + i);
  HYPERATTN_MEMSET(few->o, 0, HAI_AS(size_t, few->n * few->value_dim) * sizeof(float));
  n = hai_meet_rows(meet, 0, turn);
  for (at = 0; n > 0; at += HAI_CHUNK, n = next, turn ^= 1) {
    next = hai_meet_rows(meet, at + HAI_CHUNK, turn ^ 1);
    hai_meet_some(job, meet, at, turn, n, next);
  }
}

/* The mean of |v_j - out|^2, weighted by (1 - P_j) a_j^2, over those of every step-th kept key that are not
   certain, `share` the a_j. -1: none of these is. */
static float hai_meet_apart(const hai_job *job, const hai_meet *meet, const float *share, const float *out,
                            float *room) {
  hai_index step = meet->n_kept / HAI_LOOK_JUDGED + 1, begin = meet->pick[0]->look.begin, i;
  float scatter = 0.0f, judged = 0.0f;
  for (i = begin; i < begin + meet->n_kept; i += step) {
    float square = (1.0f - meet->chance[i]) * share[i] * share[i];
    if (square == 0.0f) continue;
    judged += square;
    scatter +=
        square * meet->pick[0]->look.kernel->apart(hai_rows_read(job, &meet->few->values, meet->key[i], room),
                                                   job->plan->value_dim, out);
  }
  return judged > 0.0f ? scatter / judged : -1.0f;
}

/* Sums over keys: of their shares, of those that are uncertain, and of their squares times 1 - P_j. */
typedef struct hai_meet_sums {
  float all[HAI_SUM_LANES], uncertain[HAI_SUM_LANES], squares[HAI_SUM_LANES];
} hai_meet_sums;
HAI_HOT void hai_meet_add(hai_meet_sums *sums, const float *chance, const float *share, const int n) {
  int lane;
  for (lane = 0; lane < n; lane++) {
    float missing = 1.0f - chance[lane];
    sums->all[lane] += share[lane];
    sums->uncertain[lane] += missing > 0.0f ? share[lane] : 0.0f;
    sums->squares[lane] += missing * share[lane] * share[lane];
  }
}
/* Over keys begin .. end - 1; each sum is then in its first lane. */
static hai_meet_sums hai_meet_sum(const hai_meet *meet, const float *share, hai_index begin, hai_index end) {
  hai_meet_sums sums = {{0.0f}, {0.0f}, {0.0f}};
  for (; begin + HAI_SUM_LANES <= end; begin += HAI_SUM_LANES)
    hai_meet_add(&sums, meet->chance + begin, share + begin, HAI_SUM_LANES);
  hai_meet_add(&sums, meet->chance + begin, share + begin, hai_to_int(end - begin));
  sums.all[0] = hai_lanes_sum(sums.all);
  sums.uncertain[0] = hai_lanes_sum(sums.uncertain);
  sums.squares[0] = hai_lanes_sum(sums.squares);
  return sums;
}

/* A query's weights of all keys that it has met become shares. */
static void hai_meet_share(const hai_meet *meet, int query, float inverse) {
  const hai_pick *pick = meet->pick[query];
  hai_index at;
  int j;
  for (at = 0; at < meet->n; at += HAI_CHUNK) {
    float factor = hai_share(pick->by[at / HAI_CHUNK], meet->few->m[query]) * inverse;
    for (j = 0; j < HAI_CHUNK; j++) pick->weight[at + j] *= factor;
  }
}

/* The relative error of what a query has met, and shares of it; its weights become shares. */
static void hai_meet_judge(const hai_job *job, const hai_meet *meet, int query) {
  const hai_few *few = meet->few;
  hai_pick *pick = meet->pick[query];
  const float *o = few->o + query * few->value_dim;
  hai_index dim = job->plan->value_dim, begin = pick->look.begin, t;
  float *out = few->o + few->n * few->value_dim, *room = out + few->value_dim;
  float inverse = 1.0f / few->l[query], norm = 0.0f, n = HAI_AS(float, meet->n_uncertain), left, apart,
        squares;
  hai_meet_sums sums;
  for (t = 0; t < dim; t++) {
    out[t] = o[t] * inverse;
    norm += out[t] * out[t];
  }
  hai_meet_share(meet, query, inverse);
  sums = hai_meet_sum(meet, pick->weight, begin, begin + meet->n_kept);
  apart = hai_meet_apart(job, meet, pick->weight, out, room);
  left = sums.uncertain[0];
  if (n == 0.0f && pick->rest < pick->total) left = sums.all[0] * pick->rest / (pick->total - pick->rest);
  squares = sums.squares[0] + left * left / (n > 0.0f ? n * (n + 1.0f) : 1.0f);
  pick->met->pinned = hai_meet_sum(meet, pick->weight, 0, begin).all[0];
  pick->met->sampled = sums.all[0];
  pick->met->error = hai_relative(squares * (apart >= 0.0f ? apart : 2.0f * norm), norm);
  if ((n == 0.0f && pick->rest > 0.0f &&
       !(pick->rest < pick->total)) ||                                /* nothing of what there is was kept */
      (norm < HAI_LEAST_SQUARE && hai_largest_size(out, dim) > 0.0f)) /* squares vanish */
    pick->met->error = hai_inf();
}

/* ---- The stage ---- */

/* Queries of a kv head that meet keys together; tasks of a position. */
static hai_index hai_meet_together(const hai_plan *plan) {
  hai_index most = hai_min(plan->float_kernel->few->most, HAI_LOOK_TOGETHER);
  return hai_min(most, plan->heads_per_kv);
}
static hai_index hai_meet_tasks(const hai_plan *plan) {
  return hai_ceil_div(plan->heads_per_kv, hai_meet_together(plan));
}

/* Behind the memory of few queries. */
static size_t hai_meet_bytes(const hai_plan *plan) {
  size_t n = HAI_AS(size_t, hai_meet_together(plan));
  return hai_round_up(hai_few_bytes(plan)) + hai_round_up(sizeof(hai_meet)) +
         n * hai_round_up(sizeof(hai_pick)) + (HAI_CHUNK + (3 + n) * HAI_LOOK_MET) * sizeof(float);
}
static hai_meet *hai_meet_place(const hai_job *job) {
  hai_meet *meet =
      HAI_PLACE(hai_meet, HAI_REINTERPRET(char *, job->tile) + hai_round_up(hai_few_bytes(job->plan)));
  char *at = HAI_REINTERPRET(char *, meet) + hai_round_up(sizeof *meet);
  hai_index i;
  meet->place = hai_carve(&at, HAI_CHUNK);
  meet->chance = hai_carve(&at, HAI_LOOK_MET);
  meet->more = hai_carve(&at, HAI_LOOK_MET);
  meet->key = HAI_PLACE(int32_t, hai_carve(&at, HAI_LOOK_MET));
  for (i = 0; i < hai_meet_together(job->plan); i++) {
    meet->pick[i] = HAI_PLACE(hai_pick, at);
    at += hai_round_up(sizeof(hai_pick));
    meet->pick[i]->weight = hai_carve(&at, HAI_LOOK_MET);
  }
  return meet;
}

/* Query i leaves the others, of which the last takes its place. */
static void hai_meet_leave(hai_meet *meet, int i) {
  hai_few *few = meet->few;
  hai_pick *pick = meet->pick[i];
  int last = --few->n;
  if (i == last) return;
  meet->pick[i] = meet->pick[last];
  meet->pick[last] = pick;
  few->query[i] = few->query[last];
  HYPERATTN_MEMCPY(few->packed + i * few->key_dim, few->packed + last * few->key_dim,
                   HAI_AS(size_t, few->key_dim) * sizeof(float));
}

/* Query i, which has met its keys, is written and leaves where its error is at most HAI_LOOK_SAFE of the
   tolerance, or where that is 0. Returns 0 where a larger budget will not do. */
static int hai_meet_settle(const hai_job *job, hai_meet *meet, int i) {
  const hai_plan *plan = job->plan;
  const hai_few_query *query = &meet->few->query[i];
  float limit = HAI_LOOK_SAFE * plan->params->tolerance;
  hai_pick *pick = meet->pick[i];
  hai_met *met = pick->met;
  hai_meet_judge(job, meet, i);
  if (limit > 0.0f && !(met->error <= limit)) {
    hai_pick_more(pick, limit);
    met->doubled = 1;
    return pick->budget <= hai_pick_most(pick);
  }
  met->exact = 0;
  met->keys = hai_to_int(meet->n);
  hai_few_close_row(job, query->head, query->row, meet->few->m[i], meet->few->l[i],
                    meet->few->o + i * meet->few->value_dim);
  if (plan->problem->query_error)
    plan->problem->query_error[hai_flat_head_of(job, query->head) * plan->n_query + query->row] = met->error;
  hai_meet_leave(meet, i);
  return 1;
}

/* Opens n queries of a kv head from head `head` of those that share it on, at position `row`. */
static hai_meet *hai_meet_open(hai_job *job, hai_index head, hai_index row, int n) {
  hai_few *few = hai_few_place(job);
  hai_meet *meet = hai_meet_place(job);
  hai_index heads = job->plan->heads_per_kv;
  int i;
  meet->few = few;
  few->n = n;
  for (i = 0; i < n; i++) {
    hai_few_open_row(job, few, i, row * heads + head + i);
    hai_look_aim(job, &meet->pick[i]->look, few->query[i].head, row);
    meet->pick[i]->met = hai_met_of(job, few->query[i].head, row);
    HYPERATTN_MEMSET(meet->pick[i]->met, 0, sizeof(hai_met));
    meet->pick[i]->met->exact = 1;
  }
  hai_few_begin_rows(few);
  return meet;
}

/* Stage MEET: some queries of a kv head, at one position, meet what they keep; their results are written, but
   for those that have to meet every key. */
HAI_APART void hai_stage_meet(hai_job *job) {
  hai_index tasks = hai_meet_tasks(job->plan), together = hai_meet_together(job->plan);
  hai_index head = job->chunk % tasks * together, n = hai_min(together, job->plan->heads_per_kv - head);
  hai_meet *meet = hai_meet_open(job, head, job->chunk / tasks, hai_to_int(n));
  int may_go_on = 1, i;
  hai_meet_places(job, meet);
  for (i = 0; i < meet->few->n; i++)
    if (!hai_pick_begin(job->plan, meet->pick[i], meet->few->packed + i * meet->few->key_dim)) return;
  while (may_go_on && meet->few->n > 0 && hai_meet_keys(job, meet)) {
    hai_meet_attend(job, meet);
    for (i = meet->few->n - 1; i >= 0; i--) may_go_on &= hai_meet_settle(job, meet, i);
  }
}
#endif
