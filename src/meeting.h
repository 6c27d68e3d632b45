/* ---- Meeting: the queries that share a kv head meet what any of them keeps (lookup.h) ----
   The rows of keys and values that a query keeps lie anywhere in memory, and to read them takes longer than
   to meet them. So the queries of heads that share a kv head, at one position, keep keys by the same random
   numbers and meet the union: key j with P_j, the largest of theirs. No query's error is larger for it. Those
   whose error is above the tolerance try again together, and where one has to meet every key, all that are
   left do, since they read keys but once. */

#if HAI_INDEX
typedef struct hai_meet {
  hai_few *few;                      /* the queries, and where rows of keys and values lie */
  hai_pick *pick[HAI_LOOK_TOGETHER]; /* of each of its few->n queries */
  float *place;                      /* [HAI_CHUNK]: random numbers, before a block moves them */
  int32_t *key;                      /* [HAI_LOOK_MET]: the keys that are met: sinks, kept ones, the others */
  float *times;                      /* [HAI_LOOK_MET]: 1 / P_j */
  float *missing;                    /* [HAI_LOOK_MET]: 1 - P_j */
  hai_index n, n_kept;
  uint64_t hash; /* of the seed and the first query */
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

/* Adds a key that is met with a probability; 0: there is no room. */
static int hai_meet_add(hai_meet *meet, hai_index key, float chance) {
  if (meet->n == HAI_LOOK_MET) return 0;
  meet->key[meet->n] = hai_to_int(key);
  meet->missing[meet->n] = 1.0f - chance;
  meet->times[meet->n++] = chance < 1.0f ? 1.0f / chance : 1.0f;
  return 1;
}
static int hai_meet_all(hai_meet *meet, hai_index begin, hai_index end) {
  for (; begin < end; begin++)
    if (!hai_meet_add(meet, begin, 1.0f)) return 0;
  return 1;
}

/* The smallest random number of a block's keys, or a little less. */
static float hai_meet_least(float shift) {
  float steps = shift * HAI_CHUNK;
  return (steps - HAI_AS(float, HAI_AS(int, steps))) * (0.999f / HAI_CHUNK);
}

/* P_j of key j of a block, the largest of what each query's weight calls for; `by`: one over the levels. */
static float hai_meet_chance(const hai_meet *meet, hai_index block, int j, const float *by) {
  float most = 0.0f;
  int i;
  for (i = 0; i < meet->few->n; i++) {
    float weight = meet->pick[i]->look.weight[block * HAI_CHUNK + j];
    if (weight < 0.0f) return 1.0f;
    if (weight * by[i] > most) most = weight * by[i];
  }
  return most < 1.0f ? most : 1.0f;
}

/* Keeps keys of a block by each query's level, `by` one over it. A random number is never 0, and exact:
   places are whole steps, and a block's shift has 22 bits and a half. */
static int hai_meet_block(hai_meet *meet, hai_index block, const float *level, const float *by) {
  uint64_t random = hai_mix(meet->hash + HAI_AS(uint64_t, block)), hits = 0;
  float shift = (HAI_AS(float, random >> 42) + 0.5f) * (1.0f / 4194304.0f), least = hai_meet_least(shift);
  int i, j;
  for (i = 0; i < meet->few->n; i++) {
    const hai_look *look = &meet->pick[i]->look;
    float high = look->high[block];
    if (high < 0.0f) hits |= hai_pick_sure(meet->pick[i], block);
    if (high < 0.0f || high * 1.001f > level[i] * least)
      hits |= look->kernel->picked(look->weight + block * HAI_CHUNK, meet->place, shift, level[i]);
  }
  for (; hits; hits &= hits - 1) {
    j = hai_lowest_bit(hits);
    if (!hai_meet_add(meet, block * HAI_CHUNK + j, hai_meet_chance(meet, block, j, by))) return 0;
  }
  return 1;
}

/* All that the queries meet with their budgets. Returns 0 where that is too much. */
static int hai_meet_keys(hai_meet *meet) {
  const hai_look *look = &meet->pick[0]->look; /* they see the same keys */
  hai_index block, end = look->end / HAI_CHUNK;
  float level[HAI_LOOK_TOGETHER], by[HAI_LOOK_TOGETHER];
  int i;
  meet->n = 0;
  if (!hai_meet_all(meet, 0, look->begin)) return 0;
  for (block = 0; block < end; block++) {
    for (i = 0; block % HAI_SPAN_BLOCKS == 0 && i < meet->few->n; i++) {
      float factor = hai_pick_factor(meet->pick[i], block / HAI_SPAN_BLOCKS);
      level[i] = factor > 0.0f ? meet->pick[i]->level / factor : hai_inf();
      by[i] = 1.0f / level[i];
    }
    if (!hai_meet_block(meet, block, level, by)) return 0;
  }
  meet->n_kept = meet->n - look->begin;
  return hai_meet_all(meet, look->end, look->last + 1);
}

/* ---- Meeting them ---- */

/* Lists the rows of keys at .. at + n - 1 that are met, and starts to load those of the next chunk. Returns
   n. */
static int hai_meet_rows(const hai_meet *meet, hai_index at) {
  hai_few *few = meet->few;
  hai_index end = hai_min(at + HAI_CHUNK, meet->n), next = hai_min(end + HAI_CHUNK, meet->n), i;
  size_t key_bytes = HAI_AS(size_t, hai_offset(few->keys.dtype, few->keys.dim));
  size_t value_bytes = HAI_AS(size_t, hai_offset(few->values.dtype, few->values.dim));
  int j;
  for (j = 0; j < HAI_CHUNK; j++) {
    i = hai_min(at + j, end - 1);
    few->key[0][j] = hai_walk_from(&few->keys, meet->key[i]).at;
    few->value[0][j] = hai_walk_from(&few->values, meet->key[i]).at;
  }
  for (i = end; HAI_SIMD && i < next; i++) {
    hai_fetch(hai_walk_from(&few->keys, meet->key[i]).at, key_bytes);
    hai_fetch(hai_walk_from(&few->values, meet->key[i]).at, value_bytes);
  }
  return hai_to_int(end - at);
}

/* Weights of n keys from `at` on, of all queries, times 1 / P_j. */
static void hai_meet_weigh(hai_meet *meet, hai_index at, int n) {
  hai_few *few = meet->few;
  float l[HAI_LOOK_TOGETHER];
  int i, j;
  for (i = 0; i < few->n; i++) {
    meet->pick[i]->by[at / HAI_CHUNK] = few->m[i];
    l[i] = few->l[i];
  }
  for (j = 0; j < n; j++) {
    float again = meet->times[at + j] - 1.0f;
    for (i = 0; i < few->n; i++) {
      float *weight = few->score + i * HAI_CHUNK + j, more = *weight * again;
      *weight += more;
      l[i] += more;
    }
  }
  for (i = 0; i < few->n; i++) {
    few->l[i] = l[i];
    HYPERATTN_MEMCPY(meet->pick[i]->weight + at, few->score + i * HAI_CHUNK,
                     HAI_AS(size_t, n) * sizeof(float));
  }
}

/* The queries meet the keys: m, l and o of `few`, and the weights of each. */
HAI_APART void hai_meet_attend(const hai_job *job, hai_meet *meet) {
  hai_few *few = meet->few;
  const hai_few_kernel *kernel = few->kernel->few;
  hai_index at;
  int n, i;
  for (i = 0; i < few->n; i++)
    hai_state_begin(
        HAI_SINKS && job->plan->problem->sink ? job->plan->problem->sink[few->query[i].head] : -hai_inf(),
        few->m + i, few->l + i);
  HYPERATTN_MEMSET(few->o, 0, HAI_AS(size_t, few->n * few->value_dim) * sizeof(float));
  for (at = 0; at < meet->n; at += n) {
    hai_few_rows keys, values;
    n = hai_meet_rows(meet, at);
    keys = hai_few_read(few, &few->keys, few->key_dim, few->key[0], few->wide_key, n);
    values = hai_few_read(few, &few->values, few->value_dim, few->value[0], few->wide_value, n);
    kernel->scores(&keys, few->packed, few->n, few->score);
    for (i = 0; i < few->n; i++) {
      hai_few_finish_scores(job, few, i, few->score + i * HAI_CHUNK, HAI_NULL);
      few->visible[i] = hai_lane_bits(0, n);
    }
    kernel->softmax(few->score, few->n, n, HAI_NULL, few->visible, few->m, few->l, few->factor);
    hai_meet_weigh(meet, at, n);
    kernel->values(&values, few->score, few->factor, few->n, few->o);
  }
}

/* How far values lie from the query's result `out`, squared, on average, as the sample's variance weights
   them: by every step-th key that is not certain. -1: there is none. */
static float hai_meet_apart(const hai_job *job, const hai_meet *meet, const float *share, const float *out,
                            float *room) {
  hai_index step = meet->n_kept / HAI_LOOK_JUDGED + 1, begin = meet->pick[0]->look.begin, i;
  float scatter = 0.0f, judged = 0.0f;
  for (i = begin; i < begin + meet->n_kept; i += step) {
    float square = meet->missing[i] * share[i] * share[i];
    if (square == 0.0f) continue;
    judged += square;
    scatter +=
        square * meet->pick[0]->look.kernel->apart(hai_rows_read(job, &meet->few->values, meet->key[i], room),
                                                   job->plan->value_dim, out);
  }
  return judged > 0.0f ? scatter / judged : -1.0f;
}

/* The relative error of what a query has met, and shares of it; its weights become shares. */
static void hai_meet_judge(const hai_job *job, const hai_meet *meet, int query) {
  const hai_few *few = meet->few;
  hai_pick *pick = meet->pick[query];
  const float *o = few->o + query * few->value_dim;
  hai_index dim = job->plan->value_dim, begin = pick->look.begin, t, i;
  float *out = few->o + few->n * few->value_dim, *room = out + few->value_dim, *share = pick->weight;
  float inverse = 1.0f / few->l[query], factor = 0.0f, apart;
  float norm = 0.0f, n = 0.0f, pinned = 0.0f, sampled = 0.0f, left = 0.0f, squares = 0.0f;
  for (t = 0; t < dim; t++) {
    out[t] = o[t] * inverse;
    norm += out[t] * out[t];
  }
  for (i = 0; i < begin + meet->n_kept; i++) {
    if (i % HAI_CHUNK == 0) factor = hai_share(pick->by[i / HAI_CHUNK], few->m[query]) * inverse;
    share[i] *= factor;
  }
  for (i = 0; i < begin; i++) pinned += share[i];
  for (; i < begin + meet->n_kept; i++) {
    float missing = meet->missing[i];
    sampled += share[i];
    left += missing > 0.0f ? share[i] : 0.0f;
    n += missing > 0.0f ? 1.0f : 0.0f;
    squares += missing * share[i] * share[i];
  }
  apart = hai_meet_apart(job, meet, share, out, room);
  if (n == 0.0f && pick->rest < pick->total) left = sampled * pick->rest / (pick->total - pick->rest);
  squares += left * left / (n > 0.0f ? n * (n + 1.0f) : 1.0f);
  pick->met->pinned = pinned;
  pick->met->sampled = sampled;
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
  meet->times = hai_carve(&at, HAI_LOOK_MET);
  meet->missing = hai_carve(&at, HAI_LOOK_MET);
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

/* Query i, which has met its keys, is written and leaves where its error is below the tolerance. Returns 0
   where a larger budget will not do. */
static int hai_meet_settle(const hai_job *job, hai_meet *meet, int i) {
  const hai_plan *plan = job->plan;
  const hai_few_query *query = &meet->few->query[i];
  float tolerance = HAI_LOOK_SAFE * plan->params->tolerance;
  hai_pick *pick = meet->pick[i];
  hai_met *met = pick->met;
  hai_meet_judge(job, meet, i);
  if (tolerance > 0.0f && !(met->error <= tolerance)) {
    hai_pick_more(pick, tolerance);
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

/* All queries meet what they keep, and judge themselves. Returns 0 where those that are left have to meet
   every key: if one has to, that takes the others little longer. */
static int hai_meet_round(const hai_job *job, hai_meet *meet) {
  int may_go_on = 1, i;
  if (!hai_meet_keys(meet)) return 0;
  hai_meet_attend(job, meet);
  for (i = meet->few->n - 1; i >= 0; i--) may_go_on &= hai_meet_settle(job, meet, i);
  return may_go_on;
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
  int i;
  hai_meet_places(job, meet);
  for (i = 0; i < meet->few->n; i++)
    if (!hai_pick_begin(job->plan, meet->pick[i], meet->few->packed + i * meet->few->key_dim)) return;
  while (meet->few->n > 0)
    if (!hai_meet_round(job, meet)) return;
}
#endif
