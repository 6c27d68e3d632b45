/* ---- Picking: how likely a query keeps each key of an index (lookup.h) ---- */

#if HAI_INDEX
typedef struct hai_pick {
  hai_look look;
  hai_met *met;  /* how the query fares */
  float *weight; /* [HAI_LOOK_MET]: of the keys that it meets, in each chunk by the reference */
  float by[HAI_LOOK_MET / HAI_CHUNK]; /* that the chunk has */
  float high, total;                  /* the largest estimate, and the sum of all weights by it */
  float blur;                         /* the variance of an estimate */
  float budget, level;                /* of the weights by `high` */
  float rest;                         /* the sum of those below the level */
} hai_pick;

/* e^(tilt (high of span - high)), by which a span's weights are smaller than they stand there. */
static float hai_pick_factor(const hai_pick *pick, hai_index span) {
  return hai_share(HAI_LOOK_TILT * pick->look.span[3 * span], HAI_LOOK_TILT * pick->high);
}

/* The largest estimate, and the sum of all weights. Returns 0 where the query [head_dim] or an estimate is
   not finite. */
static int hai_pick_total(const hai_plan *plan, hai_pick *pick, const float *query) {
  const float *span = pick->look.span;
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

/* Finite weights of more than `least` go to `heavy` [HAI_LOOK_MET]; returns how many there are, at most so many. */
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
    if (!(look->high[block] > 0.999f * above)) continue;
    for (hits = look->kernel->above(weight, above); hits && n < HAI_LOOK_MET; hits &= hits - 1) {
      float heaviest = weight[hai_lowest_bit(hits)] * factor;
      if (heaviest < hai_inf()) heavy[n++] = heaviest;
    }
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
  float *heavy = pick->weight, least = 0.125f * pick->level, left = pick->budget, from = pick->total, next;
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

/* ---- The budget ---- */

/* A larger budget, for a query whose error is above the tolerance: errors fall with its root. The level
   falls by as much, which is a little more than it has to. */
static void hai_pick_more(hai_pick *pick, float tolerance) {
  float times = pick->met->error / tolerance * (pick->met->error / tolerance) * 1.5f;
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

/* The largest budget: a query that needs more meets every key. */
static float hai_pick_most(const hai_pick *pick) {
  return HAI_LOOK_SHARE * HAI_AS(float, pick->look.end - pick->look.begin);
}

/* Sets the first budget and its level. Returns 0 where the query has to meet every key. `query`: [head_dim],
   times the scale. */
static int hai_pick_begin(const hai_plan *plan, hai_pick *pick, const float *query) {
  if (!hai_look_pays(&pick->look) || !hai_pick_total(plan, pick, query)) return 0;
  pick->budget = hai_pick_first(plan, pick);
  if (!(pick->budget <= hai_pick_most(pick))) return 0;
  hai_pick_level(pick);
  return 1;
}
#endif
