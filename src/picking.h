/* ---- Picking: how likely a query keeps each key of an index (lookup.h) ---- */

#if HAI_INDEX
typedef struct hai_pick {
  hai_look look;
  hai_met *met;  /* how the query fares */
  float *weight; /* [HAI_LOOK_MET]: e^(score - by of its chunk) / P_j of each key it meets; then shares */
  float by[HAI_LOOK_MET / HAI_CHUNK]; /* the reference that the query had in each chunk */
  int high;                           /* the largest of its spans' `high`: weights are by this one */
  int level;                          /* in steps, at which a key is kept for certain */
  float total;                        /* the sum of all weights */
  float rest;                         /* the sum of those below the first level */
  float blur;                         /* the variance of an estimate */
  uint64_t hits[HAI_SPAN_BLOCKS];     /* of a span: bit j of a block: key j is counted */
  float budget;
} hai_pick;

/* Sets high, total and blur. query: [head_dim], times the scale. Returns 0 where blur is not finite: the
   query has to meet every key. */
static int hai_pick_total(const hai_plan *plan, hai_pick *pick, const float *query) {
  const hai_look_span *span = pick->look.span;
  hai_index spans = hai_ceil_div(pick->look.end, HAI_SPAN_BLOCKS * HAI_CHUNK), i;
  hai_index blocks = pick->look.end / HAI_CHUNK;
  float square = 0.0f;
  pick->high = HAI_STEP_NONE;
  pick->total = pick->blur = 0.0f;
  for (i = 0; i < plan->head_dim; i++) square += query[i] * query[i];
  for (i = 0; i < spans; i++) pick->high = span[i].high > pick->high ? span[i].high : pick->high;
  for (i = 0; i < spans; i++) {
    pick->total += hai_step_weight(span[i].high - pick->high) * span[i].sum;
    pick->blur += span[i].square;
  }
  pick->blur *= HAI_LOOK_BLUR * square / HAI_AS(float, plan->head_dim *blocks);
  return hai_finite(pick->blur);
}

/* A level as kernels take it, in 16 bits. */
static int hai_pick_cut(int level, int least) {
  return level < least ? least : level < 32767 ? level : 32767;
}

/* How many keys there are at each step from `from` on, and behind those how many above. */
typedef struct hai_pick_steps {
  int from;
  int n[HAI_PICK_STEPS + 1];
  float above; /* the sum of the weights of these */
} hai_pick_steps;

/* Adds the keys of a block, whose bits are `hits`, that are below a step. */
static void hai_pick_add(const hai_pick *pick, hai_pick_steps *steps, const int16_t *score, uint64_t hits,
                         int below) {
  for (; hits; hits &= hits - 1) {
    int here = score[hai_lowest_bit(hits)], step = here - steps->from;
    if (here >= below) continue;
    if (step >= HAI_PICK_STEPS) steps->above += hai_step_weight(here - pick->high);
    steps->n[step < HAI_PICK_STEPS ? step : HAI_PICK_STEPS]++;
  }
}

/* Counts the keys at steps from .. below - 1. */
static void hai_pick_count(hai_pick *pick, hai_pick_steps *steps, int from, int below) {
  const hai_look *look = &pick->look;
  hai_index blocks = look->end / HAI_CHUNK, begin, n, b;
  HYPERATTN_MEMSET(steps, 0, sizeof *steps);
  steps->from = from;
  for (begin = 0; begin < blocks; begin += n) {
    n = hai_min(HAI_SPAN_BLOCKS, blocks - begin);
    look->kernel->at_least(look->score + begin * HAI_CHUNK, n, from, pick->hits);
    for (b = 0; b < n; b++)
      hai_pick_add(pick, steps, look->score + (begin + b) * HAI_CHUNK, pick->hits[b], below);
  }
}

/* Lowers the level step by step: weights from it on are as good as 1, and what is left of the budget, `left`,
   is for the others. Returns whether it has come to where it stays, as it has where the others weigh next to
   nothing. */
static int hai_pick_lower(hai_pick *pick, const hai_pick_steps *steps, float *left) {
  int step;
  for (step = HAI_PICK_STEPS; step >= 0; step--) {
    float n = HAI_AS(float, steps->n[step]), level;
    int at = steps->from + step - pick->high;
    pick->rest -= step == HAI_PICK_STEPS ? steps->above : n * hai_step_weight(at);
    *left -= n;
    pick->level = pick->high + at;
    if (!(pick->rest > HAI_PICK_LEAST * pick->total)) return 1;
    level = pick->rest / (*left > 1.0f ? *left : 1.0f);
    if (step == 0 || level < hai_step_weight(at - 1)) continue;
    pick->level = pick->high + hai_step_of(level);
    return 1;
  }
  return 0;
}

/* The level at which the sum of min(1, w_j / level) is about the budget. */
static void hai_pick_level(hai_pick *pick) {
  float left = pick->budget;
  int from = pick->high + hai_step_of(pick->total / pick->budget), below = 32768;
  hai_pick_steps steps;
  int round;
  pick->rest = pick->total;
  pick->level = from;
  for (round = 0; pick->total > 0.0f && round < HAI_PICK_ROUNDS; round++) {
    from = hai_pick_cut(from - HAI_PICK_STEPS, HAI_STEP_NONE + 1);
    hai_pick_count(pick, &steps, from, below);
    if (hai_pick_lower(pick, &steps, &left)) break;
    below = from;
  }
  pick->rest = pick->rest > 0.0f ? pick->rest : 0.0f;
}

/* ---- The budget ---- */

/* A larger budget for a query whose error is above the limit. Errors fall with the root of the budget, so
   it grows by 1.5 (error / limit)^2, at least 2 and at most 8. The level falls by the same factor: each P_j
   < 1 grows by it, and somewhat fewer keys than the budget are kept. */
static void hai_pick_more(hai_pick *pick, float limit) {
  float times = pick->met->error / limit * (pick->met->error / limit) * 1.5f;
  times = times < 2.0f ? 2.0f : times < 8.0f ? times : 8.0f;
  pick->budget *= times;
  pick->level -= hai_step_of(times);
}

/* The first budget: the parameters', or more where estimates are so blurred that a key with most of the
   attention might be missed. With this one it is kept unless its estimate is too small by HAI_LOOK_SURE
   deviations. */
static float hai_pick_first(const hai_plan *plan, const hai_pick *pick) {
  float asked = HAI_AS(float, hai_max(1, plan->sample_size));
  float needed = HAI_LOOK_NEEDLE * hai_exp(HAI_LOOK_TILT * HAI_LOOK_SURE * hai_sqrt(pick->blur));
  return needed > asked ? needed : asked;
}

/* The largest budget, and the most keys that queries that meet keys together keep: where more are called for,
   all are met, which then costs less. */
static float hai_pick_most(const hai_pick *pick) {
  return HAI_LOOK_SHARE * HAI_AS(float, pick->look.end - pick->look.begin);
}

/* Sets the first budget and its level. Returns 0 where the query has to meet every key, as it has where its
   estimates are at the end of 16 bits. `query`: [head_dim], times the scale. */
static int hai_pick_begin(const hai_plan *plan, hai_pick *pick, const float *query) {
  if (!hai_look_pays(&pick->look) || !hai_pick_total(plan, pick, query)) return 0;
  pick->budget = hai_pick_first(plan, pick);
  if (!(pick->budget <= hai_pick_most(pick))) return 0;
  hai_pick_level(pick);
  return pick->level >= HAI_LEVEL_LEAST;
}
#endif
