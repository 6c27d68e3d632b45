/* ---- Picking: which keys of an index a query meets, and how it fares (lookup.h) ---- */

#if HAI_INDEX
typedef struct hai_pick {
  hai_look look;
  hai_few *few; /* the query, and where rows of keys and values lie */
  float *place; /* [HAI_CHUNK]: random numbers, before a block moves them */
  int32_t *key; /* [HAI_LOOK_MET]: the keys that are met: sinks, kept ones, the others */
  float *times; /* [HAI_LOOK_MET]: 1 / P_j */
  float *score; /* [HAI_LOOK_MET]: exact scores */
  hai_index n, n_kept;
  float high, total;   /* the largest estimate, and the sum of all weights by it */
  float blur;          /* the variance of an estimate */
  float budget, level; /* of the weights by `high` */
  float rest;          /* the sum of those below the level */
  uint64_t hash;       /* of the seed and the query */
} hai_pick;

/* e^(tilt (high of span - high)), by which a span's weights are smaller than they stand there. */
static float hai_pick_factor(const hai_pick *pick, hai_index span) {
  return hai_share(HAI_LOOK_TILT * pick->look.span[3 * span], HAI_LOOK_TILT * pick->high);
}

/* The largest estimate, and the sum of all weights. Returns 0 where the query or an estimate is not
   finite. */
static int hai_pick_total(const hai_plan *plan, hai_pick *pick) {
  const float *span = pick->look.span, *query = pick->few->packed;
  hai_index spans = hai_ceil_div(pick->look.end, HAI_SPAN_BLOCKS * HAI_CHUNK), blocks, i;
  float square = 0.0f;
  pick->high = -hai_inf();
  pick->total = pick->blur = 0.0f;
  for (i = 0; i < plan->head_dim; i++) square += query[i] * query[i];
  for (i = 0; i < spans; i++)
    if (!(span[3 * i] <= pick->high)) pick->high = span[3 * i];
  if (pick->high == -hai_inf()) return 1;
  for (i = 0; i < spans; i++) {
    pick->total += hai_pick_factor(pick, i) * span[3 * i + 1];
    pick->blur += span[3 * i + 2];
  }
  blocks = pick->look.end / HAI_CHUNK;
  pick->blur *= HAI_LOOK_BLUR * square / HAI_AS(float, plan->head_dim *blocks);
  return hai_finite(pick->high) && hai_finite(pick->total);
}

/* Weights of more than `least` go to `heavy` [HAI_LOOK_MET]; returns how many there are, at most so many. */
static hai_index hai_pick_heavy(const hai_pick *pick, float least, float *heavy) {
  const hai_look *look = &pick->look;
  hai_index block, end = look->end / HAI_CHUNK, n = 0;
  float factor = 0.0f, above = hai_inf();
  for (block = 0; block < end; block++) {
    const float *weight = look->weight + block * HAI_CHUNK;
    uint64_t hits;
    if (block % HAI_SPAN_BLOCKS == 0) {
      factor = hai_pick_factor(pick, block / HAI_SPAN_BLOCKS);
      above = factor > 0.0f ? least / factor : hai_inf();
    }
    if (look->high[block] >= 0.0f && !(look->high[block] > 0.999f * above)) continue;
    for (hits = look->kernel->above(weight, above); hits && n < HAI_LOOK_MET; hits &= hits - 1)
      heavy[n++] = weight[hai_lowest_bit(hits)] * factor;
  }
  return n;
}

/* The sum of all weights below the level. */
static float hai_pick_rest(const hai_pick *pick) {
  const hai_look *look = &pick->look;
  float sum = 0.0f, lost = 0.0f, factor = 0.0f;
  hai_index key;
  for (key = 0; key < look->end; key++) {
    float weight;
    if (key % (HAI_SPAN_BLOCKS * HAI_CHUNK) == 0)
      factor = hai_pick_factor(pick, key / (HAI_SPAN_BLOCKS * HAI_CHUNK));
    weight = look->weight[key] * factor;
    if (weight > 0.0f && weight < pick->level) sum = hai_two_sum(sum, weight, &lost);
  }
  return sum + lost;
}

/* Lowers the level: weights above it are as good as 1, and what is left of the budget is for the others;
   so it falls as more and more weights are above it. Those below an eighth of where it begins are not
   looked at. Returns whether it stays above these. */
static int hai_pick_lower(hai_pick *pick) {
  float *heavy = pick->score, least = 0.125f * pick->level, left = pick->budget, from = pick->total, next;
  hai_index n = hai_pick_heavy(pick, least, heavy), i;
  pick->rest = pick->total;
  while (pick->level > least) {
    for (i = 0; i < n;) {
      if (heavy[i] < pick->level) {
        i++;
        continue;
      }
      pick->rest -= heavy[i];
      left -= 1.0f;
      heavy[i] = heavy[--n];
    }
    if (!(pick->rest > 1e-5f * from)) from = pick->rest = hai_pick_rest(pick); /* rounding may be all of it */
    next = pick->rest / (left > 1.0f ? left : 1.0f);
    if (!(next < 0.99f * pick->level)) return 1;
    pick->level = next;
  }
  pick->level = least;
  return 0;
}

/* The level at which the sum of min(1, w_j / level) is the budget. */
static void hai_pick_level(hai_pick *pick) {
  int round = 0;
  pick->rest = pick->total;
  pick->level = pick->total / pick->budget;
  while (pick->level > 0.0f && !hai_pick_lower(pick) && pick->rest > 0.0f && round < 16) round++;
}

/* The random numbers: HAI_CHUNK even steps, in an order of the seed. */
static void hai_pick_places(const hai_job *job, hai_pick *pick) {
  const float *query = pick->few->packed;
  hai_index t;
  int j;
  pick->hash = hai_random(job->plan->params->seed, 0, HAI_FOR_OFFSETS, 0);
  for (j = 0; j < HAI_CHUNK; j++) {
    int at = HAI_AS(int, hai_uniform(0, HAI_AS(uint64_t, j + 1), hai_mix(pick->hash + HAI_AS(uint64_t, j))));
    pick->place[j] = pick->place[at];
    pick->place[at] = HAI_AS(float, j) * (1.0f / HAI_CHUNK);
  }
  for (t = 0; t < job->plan->head_dim; t++) pick->hash = hai_mix(pick->hash ^ hai_bits(query[t]));
}

/* Adds a key that is met; 0: there is no room. */
static int hai_pick_add(hai_pick *pick, hai_index key, float times) {
  if (pick->n == HAI_LOOK_MET) return 0;
  pick->key[pick->n] = hai_to_int(key);
  pick->times[pick->n++] = times;
  return 1;
}
static int hai_pick_all(hai_pick *pick, hai_index begin, hai_index end) {
  for (; begin < end; begin++)
    if (!hai_pick_add(pick, begin, 1.0f)) return 0;
  return 1;
}

/* The smallest random number of a block's keys, or a little less. */
static float hai_pick_least(float shift) {
  float steps = shift * HAI_CHUNK;
  return (steps - HAI_AS(float, HAI_AS(int, steps))) * (0.999f / HAI_CHUNK);
}

/* The keys of a block that are met for sure; sinks are met already. */
static uint64_t hai_pick_sure(const hai_pick *pick, hai_index block) {
  const float *weight = pick->look.weight + block * HAI_CHUNK;
  uint64_t bits = 0;
  int j;
  for (j = 0; j < HAI_CHUNK; j++)
    if (weight[j] < 0.0f && block * HAI_CHUNK + j >= pick->look.begin) bits |= UINT64_C(1) << j;
  return bits;
}

/* Keeps keys of a block. A random number is never 0, and exact: places are whole steps, and a block's
   shift has 22 bits and a half. */
static int hai_pick_block(hai_pick *pick, hai_index block, float level) {
  const float *weight = pick->look.weight + block * HAI_CHUNK;
  uint64_t random = hai_mix(pick->hash + HAI_AS(uint64_t, block)), hits = 0;
  float shift = (HAI_AS(float, random >> 42) + 0.5f) * (1.0f / 4194304.0f), high = pick->look.high[block];
  hai_index key = block * HAI_CHUNK;
  if (high < 0.0f) hits = hai_pick_sure(pick, block);
  if (high < 0.0f || high * 1.001f > level * hai_pick_least(shift))
    hits |= pick->look.kernel->picked(weight, pick->place, shift, level);
  for (; hits; hits &= hits - 1) {
    int j = hai_lowest_bit(hits), is_sure = weight[j] < 0.0f || weight[j] >= level;
    if (!hai_pick_add(pick, key + j, is_sure ? 1.0f : level / weight[j])) return 0;
  }
  return 1;
}

/* All that the query meets with the budget. Returns 0 where that is too much. */
static int hai_pick_keys(hai_pick *pick) {
  const hai_look *look = &pick->look;
  hai_index block, end = look->end / HAI_CHUNK;
  float level = hai_inf();
  pick->n = 0;
  if (!hai_pick_all(pick, 0, look->begin)) return 0;
  for (block = 0; block < end; block++) {
    if (block % HAI_SPAN_BLOCKS == 0) {
      float factor = hai_pick_factor(pick, block / HAI_SPAN_BLOCKS);
      level = factor > 0.0f ? pick->level / factor : hai_inf();
    }
    if (!hai_pick_block(pick, block, level)) return 0;
  }
  pick->n_kept = pick->n - look->begin;
  return hai_pick_all(pick, look->end, look->last + 1);
}

/* ---- Meeting them ---- */

/* Lists the rows of keys at .. at + n - 1 of the pick, and starts to load those of the next chunk. Returns
   n. */
static int hai_pick_rows(const hai_pick *pick, hai_index at) {
  hai_few *few = pick->few;
  hai_index end = hai_min(at + HAI_CHUNK, pick->n), next = hai_min(end + HAI_CHUNK, pick->n), i;
  size_t key_bytes = HAI_AS(size_t, hai_offset(few->keys.dtype, few->keys.dim));
  size_t value_bytes = HAI_AS(size_t, hai_offset(few->values.dtype, few->values.dim));
  int j;
  for (j = 0; j < HAI_CHUNK; j++) {
    i = hai_min(at + j, end - 1);
    few->key[0][j] = hai_walk_from(&few->keys, pick->key[i]).at;
    few->value[0][j] = hai_walk_from(&few->values, pick->key[i]).at;
  }
  for (i = end; HAI_SIMD && i < next; i++) {
    hai_fetch(hai_walk_from(&few->keys, pick->key[i]).at, key_bytes);
    hai_fetch(hai_walk_from(&few->values, pick->key[i]).at, value_bytes);
  }
  return hai_to_int(end - at);
}

/* The query meets its keys: m, l and o of `few`, and the scores of the pick. */
HAI_APART void hai_pick_attend(const hai_job *job, hai_pick *pick) {
  hai_few *few = pick->few;
  const hai_few_kernel *kernel = few->kernel->few;
  hai_index at;
  int n, j;
  hai_state_begin(HAI_SINKS && job->plan->problem->sink ? job->plan->problem->sink[job->head] : -hai_inf(),
                  few->m, few->l);
  HYPERATTN_MEMSET(few->o, 0, HAI_AS(size_t, few->value_dim) * sizeof(float));
  for (at = 0; at < pick->n; at += n) {
    hai_few_rows keys, values;
    n = hai_pick_rows(pick, at);
    keys = hai_few_read(few, &few->keys, few->key_dim, few->key[0], few->wide_key, n);
    values = hai_few_read(few, &few->values, few->value_dim, few->value[0], few->wide_value, n);
    kernel->scores(&keys, few->packed, 1, few->score);
    hai_few_finish_scores(job, few, 0, few->score, HAI_NULL);
    HYPERATTN_MEMCPY(pick->score + at, few->score, HAI_AS(size_t, n) * sizeof(float));
    few->visible[0] = hai_lane_bits(0, n);
    kernel->softmax(few->score, 1, n, HAI_NULL, few->visible, few->m, few->l, few->factor);
    for (j = 0; j < n; j++) {
      float more = few->score[j] * (pick->times[at + j] - 1.0f);
      few->score[j] += more;
      few->l[0] += more;
    }
    kernel->values(&values, few->score, few->factor, 1, few->o);
  }
}

/* The relative error of what was met, and shares of it. Of many kept keys every step-th tells how far values
   are from the result, as weighted. */
static void hai_pick_judge(const hai_job *job, const hai_pick *pick, hai_met *met) {
  const hai_few *few = pick->few;
  hai_index dim = job->plan->value_dim, step = pick->n_kept / HAI_LOOK_JUDGED + 1, t, i;
  float *out = few->o + few->value_dim, *room = out + few->value_dim, inverse = 1.0f / few->l[0];
  float variance, norm = 0.0f, n = 0.0f, share = 0.0f, squares = 0.0f, scatter = 0.0f, judged = 0.0f;
  met->pinned = met->sampled = 0.0f;
  for (t = 0; t < dim; t++) {
    out[t] = few->o[t] * inverse;
    norm += out[t] * out[t];
  }
  for (i = 0; i < pick->look.begin; i++) met->pinned += hai_share(pick->score[i], few->m[0]) * inverse;
  for (; i < pick->look.begin + pick->n_kept; i++) {
    float a = hai_share(pick->score[i], few->m[0]) * pick->times[i] * inverse, square;
    met->sampled += a;
    if (pick->times[i] == 1.0f) continue;
    square = (1.0f - 1.0f / pick->times[i]) * a * a;
    n += 1.0f;
    share += a;
    squares += square;
    if (i % step) continue;
    judged += square;
    scatter +=
        square * pick->look.kernel->apart(hai_rows_read(job, &few->values, pick->key[i], room), dim, out);
  }
  if (n == 0.0f && pick->rest < pick->total) share = met->sampled * pick->rest / (pick->total - pick->rest);
  squares += share * share / (n > 0.0f ? n * (n + 1.0f) : 1.0f);
  variance = squares * (judged > 0.0f ? scatter / judged : 2.0f * norm);
  met->error = hai_relative(variance, norm);
  if (norm < HAI_LEAST_SQUARE && hai_largest_size(out, dim) > 0.0f)
    met->error = hai_inf(); /* squares vanish */
}

/* ---- The stage ---- */

/* Behind the memory of few queries. */
static size_t hai_pick_bytes(const hai_plan *plan) {
  return hai_round_up(hai_few_bytes(plan)) + hai_round_up(sizeof(hai_pick)) +
         (HAI_CHUNK + 3 * HAI_LOOK_MET) * sizeof(float);
}
static hai_pick *hai_pick_place(const hai_job *job) {
  hai_pick *pick =
      HAI_PLACE(hai_pick, HAI_REINTERPRET(char *, job->tile) + hai_round_up(hai_few_bytes(job->plan)));
  char *at = HAI_REINTERPRET(char *, pick) + hai_round_up(sizeof *pick);
  pick->place = hai_carve(&at, HAI_CHUNK);
  pick->times = hai_carve(&at, HAI_LOOK_MET);
  pick->score = hai_carve(&at, HAI_LOOK_MET);
  pick->key = HAI_PLACE(int32_t, at);
  return pick;
}

/* A larger budget, for a query whose error is above the tolerance: errors fall with its root. The level
   falls by as much, which is a little more than it has to. */
static void hai_pick_more(hai_pick *pick, float error, float tolerance) {
  float times = error / tolerance * (error / tolerance) * 1.5f;
  times = times < 2.0f ? 2.0f : times < 8.0f ? times : 8.0f;
  pick->budget *= times;
  pick->level /= times;
}

/* The first budget: the parameters', or more where estimates are so blurred that a key with most of the
   attention might be missed. With this one it is kept unless its estimate is too small by HAI_LOOK_SURE
   deviations. */
static float hai_pick_first(const hai_plan *plan, const hai_pick *pick) {
  float asked = HAI_AS(float, hai_max(1, plan->sample_size));
  float sure = HAI_LOOK_NEEDLE * hai_exp(HAI_LOOK_TILT * HAI_LOOK_SURE * hai_sqrt(pick->blur));
  if (!hai_finite(pick->blur)) return hai_inf();
  return sure > asked ? sure : asked;
}

/* Tries budgets until the query's error is below the tolerance. Returns 0 where none will do. */
static int hai_pick_try(const hai_job *job, hai_pick *pick, hai_met *met) {
  float tolerance = HAI_LOOK_SAFE * job->plan->params->tolerance;
  float most = HAI_LOOK_SHARE * HAI_AS(float, pick->look.end - pick->look.begin);
  if (!hai_look_pays(&pick->look) || !hai_pick_total(job->plan, pick)) return 0;
  pick->budget = hai_pick_first(job->plan, pick);
  if (!(pick->budget <= most)) return 0;
  hai_pick_level(pick);
  while (pick->budget <= most) {
    if (!hai_pick_keys(pick)) return 0;
    hai_pick_attend(job, pick);
    hai_pick_judge(job, pick, met);
    if (tolerance == 0.0f || met->error <= tolerance) return 1;
    hai_pick_more(pick, met->error, tolerance);
    met->doubled = 1;
  }
  return 0;
}

/* One query meets what it keeps; its result is written, unless it has to meet every key. */
HAI_APART void hai_stage_meet(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_few *few = hai_few_place(job);
  hai_pick *pick = hai_pick_place(job);
  hai_met *met = hai_met_of(job, job->head, job->chunk);
  hai_index flat = hai_flat_head(job) * plan->n_query + job->chunk;
  HYPERATTN_MEMSET(met, 0, sizeof *met);
  hai_look_aim(job, &pick->look, job->head, job->chunk);
  pick->few = few;
  few->n = 1;
  hai_few_open_row(job, few, 0, job->chunk * plan->heads_per_kv + job->head % plan->heads_per_kv);
  hai_few_begin_rows(few);
  hai_pick_places(job, pick);
  met->exact = !hai_pick_try(job, pick, met);
  if (met->exact) return;
  met->keys = hai_to_int(pick->n);
  hai_few_close_row(job, job->head, job->chunk, few->m[0], few->l[0], few->o);
  if (plan->problem->query_error) plan->problem->query_error[flat] = met->error;
}
#endif
