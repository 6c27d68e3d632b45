/* ---- Resolution ---- */

/* Are there trials without blocks? */
static int hai_trying_columns(const hai_plan *plan) { return plan->choosing && plan->block_size > 0; }

/* The scale of scores; its default is rounded as tasks round. */
static float hai_scale_of(const hyperattn_problem *p, const hai_kernel *kernel) {
  uint32_t before;
  volatile float dim = HAI_AS(float, p->head_dim), scale; /* compilers keep their order with the calls' */
  if (p->scale != 0.0f) return p->scale;
  before = kernel->enter ? kernel->enter() : 0;
  scale = 1.0f / hai_sqrt(dim);
  if (kernel->leave) kernel->leave(before);
  return scale;
}

static void hai_resolve_shape(hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  plan->n_heads = hai_to_index(p->n_heads);
  plan->n_kv_heads = hai_to_index(p->n_kv_heads);
  plan->n_query = hai_to_index(p->n_query);
  plan->n_key = hai_to_index(p->n_key);
  plan->head_dim = hai_to_index(p->head_dim);
  plan->value_dim = hai_to_index(p->value_dim);
  plan->heads_per_kv = plan->n_heads / plan->n_kv_heads;
  plan->reporting = HAI_JUDGING && p->report;
}

static void hai_resolve_params(hai_plan *plan) {
  const hyperattn_params *p = plan->params;
  plan->min_seq_len = hai_clamp(p->min_seq_len, HAI_MAX_INDEX + 1);
  plan->block_size = hai_clamp(p->block_size, plan->n_key);
  plan->sample_size = hai_clamp(p->sample_size, plan->n_key);
  plan->heavy_keys = hai_clamp(p->heavy_keys, plan->n_key);
  plan->sink_keys = hai_clamp(p->sink_keys, plan->n_key);
  plan->probe_queries = hai_clamp(p->probe_queries, plan->n_query);
  plan->window =
      plan->problem->causal && p->method == HYPERATTN_HYPER ? hai_clamp(p->window, plan->n_key) : 0;
  plan->query_group = hai_clamp(p->query_group, hai_max(1, plan->n_query));
  plan->key_group = hai_clamp(p->key_group, hai_max(1, plan->n_key));
  plan->by_score = plan->block_size > 0 && plan->query_group > 0;
  plan->take = !plan->block_size ? 0
               : plan->by_score  ? hai_to_int(hai_max(1, plan->block_size / plan->key_group))
                                 : 1;
  plan->probing =
      plan->probe_queries > 0 && (plan->heavy_keys > 0 || p->sampling == HYPERATTN_SAMPLE_COLUMN_MASS);
  plan->n_pairings = p->order == HYPERATTN_ORDER_PROBED && plan->block_size > 0 ? 2 : 1;
  plan->sorted[0] = p->order == HYPERATTN_ORDER_SORTLSH;
  plan->sorted[1] = 1;
  plan->choosing = HAI_JUDGING && hai_choosing(p);
  plan->weighing =
      (plan->sample_size > 0 || hai_trying_columns(plan)) && p->sampling != HYPERATTN_SAMPLE_UNIFORM;
}

static void hai_resolve_regions(hai_plan *plan) {
  int causal = plan->problem->causal, worth;
  plan->square = causal ? hai_min(plan->n_query, plan->n_key) : 0;
  plan->query_skip = causal ? plan->n_query - plan->square : 0;
  plan->key_skip = causal ? plan->n_key - plan->square : plan->n_key;
  plan->depth = 0;
  for (;;) { /* the smallest rectangle of the next level decides for all of it */
    hai_index side = plan->square >> (plan->depth + 1);
    if (!side || !hai_worth(plan, side, side)) break;
    plan->depth++;
  }
  /* an exact prefix without any cut is one segment with the square, as is exact full attention */
  worth = plan->key_skip > 0 && hai_worth(plan, plan->n_query, plan->key_skip);
  plan->outer = plan->key_skip > 0 && (worth || plan->depth > 0);
  plan->outer_exact = plan->outer && !worth;
  if (!causal) plan->key_skip = 0;
  plan->max_rects = plan->depth ? hai_power_of_2(plan->depth - 1) : 1;
}

/* Is Algorithm 2's normaliser asked for? */
static int hai_capping(const hai_plan *plan) {
  return plan->params->cap_epsilon > 0.0f || plan->params->cap_kappa > 0.0f;
}

static void hai_add_step(hai_plan *plan, int wanted, hai_stage stage, int pairing) {
  if (!wanted) return;
  plan->steps[plan->n_steps].stage = HAI_AS(unsigned char, stage);
  plan->steps[plan->n_steps++].pairing = HAI_AS(unsigned char, pairing);
}

/* The steps of a level. Cheap choices are tried before dear ones, and those that a settled rectangle does not
   need do nothing. A trial pairs no more groups than the held-out queries have; the choice then pairs all.
   The last trial's means are in place for that, those of one before it are made again. */
static void hai_resolve_steps(hai_plan *plan) {
  int pairing;
  plan->n_once = plan->problem->causal || !plan->outer;
  plan->once.stage = HAI_STAGE_EXACT;
  plan->once.pairing = 0;
  plan->n_steps = 0;
  hai_add_step(plan, plan->sorted[0], HAI_STAGE_HASH, 0);
  hai_add_step(plan, plan->sorted[0], HAI_STAGE_ORDER, 0);
  hai_add_step(plan, plan->probing, HAI_STAGE_PROBE, 0);
  hai_add_step(plan, plan->probing, HAI_STAGE_SUM, 0);
  hai_add_step(plan, plan->probing, HAI_STAGE_MASS, 0);
  hai_add_step(plan, 1, HAI_STAGE_PIN, 0);
  hai_add_step(plan, plan->weighing, HAI_STAGE_WEIGH, 0);
  hai_add_step(plan, 1, HAI_STAGE_COLUMNS, 0);
  hai_add_step(plan, plan->choosing, HAI_STAGE_JUDGE, 0);
  hai_add_step(plan, hai_trying_columns(plan), HAI_STAGE_TRY, HAI_NO_BLOCKS);
  for (pairing = 0; pairing < plan->n_pairings; pairing++) {
    hai_add_step(plan, pairing && plan->sorted[pairing], HAI_STAGE_HASH, pairing);
    hai_add_step(plan, pairing && plan->sorted[pairing], HAI_STAGE_ORDER, pairing);
    hai_add_step(plan, plan->by_score, HAI_STAGE_MEANS, pairing);
    hai_add_step(plan, plan->by_score && plan->choosing, HAI_STAGE_DRAFT, pairing);
    hai_add_step(plan, plan->choosing, HAI_STAGE_TRY, pairing);
  }
  while (pairing-- > 0) {
    hai_add_step(plan, plan->by_score && pairing < plan->n_pairings - 1, HAI_STAGE_MEANS, pairing);
    hai_add_step(plan, plan->by_score, HAI_STAGE_PAIR, pairing);
  }
  hai_add_step(plan, hai_capping(plan), HAI_STAGE_CAP, 0);
  hai_add_step(plan, plan->reporting, HAI_STAGE_WITNESS, 0);
  hai_add_step(plan, plan->reporting, HAI_STAGE_AUDIT, 0);
  hai_add_step(plan, 1, HAI_STAGE_ATTEND, 0);
}
