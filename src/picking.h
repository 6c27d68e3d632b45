/* ---- Picking: how likely a query keeps each key of an index (lookup.h) ---- */

#if HAI_INDEX
typedef struct hai_pick {
  hai_look look;
  hai_met *met;  /* how the query fares */
  float *weight; /* [HAI_LOOK_MET]: e^(score - by of its chunk) / P_j of each key it meets; then shares */
  float by[HAI_LOOK_MET / HAI_CHUNK]; /* the reference that the query had in each chunk */
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

/* Weights in steps of an eighth of an octave, three octaves in all, and in one step more all that are above:
   how many there are, and their sum. */
typedef struct hai_pick_steps {
  float n[HAI_PICK_STEPS + 1], sum[HAI_PICK_STEPS + 1];
  uint32_t least; /* the bits of the number at which step 0 begins */
} hai_pick_steps;

/* Where a step begins. The bits of numbers order as they do, and 20 of 23 are less than an eighth. */
static float hai_pick_at(const hai_pick_steps *steps, int step) {
  return hai_float(steps->least + (HAI_AS(uint32_t, step) << 20));
}

/* Counts the weights from `least` on that are below `below`. */
static void hai_pick_count(const hai_pick *pick, hai_pick_steps *steps, float least, float below) {
  const hai_look *look = &pick->look;
  hai_index block, end = look->end / HAI_CHUNK;
  float factor = 0.0f, above = hai_inf();
  HYPERATTN_MEMSET(steps, 0, sizeof *steps);
  steps->least = hai_bits(least);
  for (block = 0; block < end; block++) {
    const float *weight = look->weight + block * HAI_CHUNK;
    uint64_t hits;
    if (block % HAI_SPAN_BLOCKS == 0) {
      factor = hai_pick_factor(pick, block / HAI_SPAN_BLOCKS);
      above = factor > 0.0f ? 0.999f * least / factor : hai_inf();
    }
    if (!(look->high[block] > above)) continue;
    for (hits = look->kernel->above(weight, above); hits; hits &= hits - 1) {
      float here = weight[hai_lowest_bit(hits)] * factor;
      uint32_t step;
      if (!(here >= least && here < below)) continue;
      step = (hai_bits(here) - steps->least) >> 20;
      step = step < HAI_PICK_STEPS ? step : HAI_PICK_STEPS;
      steps->n[step] += 1.0f;
      steps->sum[step] += here;
    }
  }
}

/* Lowers the level step by step: weights above it are as good as 1, and what is left of the budget, `left`,
   is for the others. Returns whether it has come to where it stays, as it has where the others weigh next to
   nothing. */
static int hai_pick_lower(hai_pick *pick, const hai_pick_steps *steps, float *left) {
  int step;
  for (step = HAI_PICK_STEPS; step >= 0; step--) {
    pick->rest -= steps->sum[step];
    *left -= steps->n[step];
    pick->level = pick->rest / (*left > 1.0f ? *left : 1.0f);
    if (step > 0 && pick->level >= hai_pick_at(steps, step - 1)) return 1;
    pick->level = hai_pick_at(steps, step);
    if (!(pick->rest > HAI_PICK_LEAST * pick->total)) return 1;
  }
  return 0;
}

/* The level at which the sum of min(1, w_j / level) is about the budget. */
static void hai_pick_level(hai_pick *pick) {
  float left = pick->budget, from = pick->total / pick->budget, below = hai_inf();
  hai_pick_steps steps;
  int round;
  pick->rest = pick->total;
  pick->level = from;
  for (round = 0; from > 0.0f && round < HAI_PICK_ROUNDS; round++) {
    from *= 0.125f;
    hai_pick_count(pick, &steps, from, below);
    if (hai_pick_lower(pick, &steps, &left)) break;
    below = from;
  }
  pick->rest = pick->rest > 0.0f ? pick->rest : 0.0f;
}

/* ---- The budget ---- */

/* A larger budget, for a query whose error is above the tolerance: errors fall with its root, so 1.5 (error /
   tolerance)^2 times as large, but 2 to 8 times. The level falls by as much, which is a little more than it
   has to. */
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

/* The largest budget, and the most keys that queries that meet keys together keep: where more are called for,
   all are met, which then costs less. */
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
