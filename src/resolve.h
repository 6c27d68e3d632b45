/* Resolution. From a problem and parameters to a plan. */

/* The scale of scores; its default is computed with the rounding of tasks. */
static float hai_scale_of(const hyperattn_problem *p, const hai_kernel *kernel) {
  uint32_t before;
  volatile float dim = HAI_AS(float, p->head_dim), scale; /* volatile: computed between the calls */
  if (p->scale != 0.0f) return p->scale;
  before = kernel->enter ? kernel->enter() : 0;
  scale = 1.0f / hai_sqrt(dim);
  if (kernel->leave) kernel->leave(before);
  return scale;
}

/* Does a sliding window hide any key? Where it does, it is below n_key or n_query. */
static int hai_slides(const hyperattn_problem *p) {
  return p->sliding_window &&
         (p->n_key > p->sliding_window || (!p->causal && p->n_query > p->sliding_window));
}

/* The problem's shape. */
static void hai_resolve_shape(hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  plan->n_heads = hai_to_index(p->n_heads);
  plan->n_kv_heads = hai_to_index(p->n_kv_heads);
  plan->n_query = hai_to_index(p->n_query);
  plan->n_key = hai_to_index(p->n_key);
  plan->head_dim = hai_to_index(p->head_dim);
  plan->value_dim = hai_to_index(p->value_dim);
  plan->heads_per_kv = plan->n_heads / plan->n_kv_heads;
  plan->reporting = HAI_REPORTS && p->report;
  plan->sliding = HAI_SLIDING && hai_slides(p) ? hai_to_index(p->sliding_window) : 0;
}

/* The parameters, and what follows from them. */
static void hai_resolve_params(hai_plan *plan) {
  const hyperattn_params *p = plan->params;
  int is_free = !hai_sliding(plan) && !hai_masking(plan);
  int may_scan = HAI_SCAN && p->method == HYPERATTN_SCAN && is_free;
  plan->min_seq_len = hai_clamp(p->min_seq_len, HAI_MAX_INDEX + 1);
  plan->block_size = hai_clamp(p->block_size, plan->n_key);
  plan->sample_size = hai_clamp(p->sample_size, plan->n_key);
  plan->heavy_keys = hai_clamp(p->heavy_keys, plan->n_key);
  plan->sink_keys = hai_clamp(p->sink_keys, plan->n_key);
  plan->probe_queries = hai_clamp(p->probe_queries, plan->n_query);
  plan->hyper = HAI_HYPER && p->method == HYPERATTN_HYPER && is_free;
#if HAI_INDEX
  plan->looking = hai_may_look(plan) && plan->n_query <= hai_most_looked(plan);
#endif
  plan->window = plan->problem->causal && (plan->hyper || may_scan) ? hai_clamp(p->window, plan->n_key) : 0;
#if HAI_SCAN
  plan->scanning = may_scan && hai_scan_pays(plan, hai_scanned_keys(plan, plan->n_query - 1));
#endif
  plan->choosing = HAI_JUDGING && hai_choosing(p);
#if HAI_SCAN
  plan->scans_rects = plan->choosing && p->tolerance > 0.0f && hai_may_approximate(plan) &&
                      hai_scan_pays(plan, plan->n_key / HAI_CHUNK * HAI_CHUNK);
#endif
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
  plan->max_pins = hai_min(plan->sink_keys + plan->heavy_keys, plan->n_key);
  plan->max_wide = hai_trying_columns(plan) ? hai_min(plan->sample_size + plan->block_size, plan->n_key) : 0;
  plan->weighing =
      (plan->sample_size > 0 || hai_trying_columns(plan)) && p->sampling != HYPERATTN_SAMPLE_UNIFORM;
}

/* Whole tiles of the held-out queries of a rectangle. */
static hai_index hai_truth_floats(const hai_plan *plan) {
  hai_index most = plan->reporting ? HAI_AUDITORS : HAI_JUDGES, lanes = plan->float_kernel->lanes;
  return hai_ceil_div(hai_min(most, plan->n_query), lanes) * lanes * (2 + plan->value_dim);
}

/* How the problem is cut, and what of it is approximated. */
static void hai_resolve_regions(hai_plan *plan) {
  int causal = plan->problem->causal, worth;
  plan->square = causal ? hai_min(plan->n_query, plan->n_key) : 0;
  plan->query_skip = causal ? plan->n_query - plan->square : 0;
  plan->key_skip = causal ? plan->n_key - plan->square : plan->n_key;
  plan->depth = 0;
  for (;;) { /* a level is approximated if its smallest rectangle is worth it */
    hai_index side = plan->square >> (plan->depth + 1);
    if (!side || !hai_worth(plan, side, side)) break;
    plan->depth++;
  }
  /* without a cut, prefix and square are attended exactly as one segment; so is exact full attention */
  worth = plan->key_skip > 0 && hai_worth(plan, plan->n_query, plan->key_skip);
  plan->outer = plan->key_skip > 0 && (worth || plan->depth > 0);
  plan->outer_exact = plan->outer && !worth;
  if (!causal) plan->key_skip = 0;
  plan->max_rects = plan->depth ? hai_power_of_2(plan->depth - 1) : 1;
}

/* The stages that a call needs. Stages of levels are counted even if this call has no levels, as long as
   hai_may_approximate, so that the size of scratch never falls as inputs grow. */
static void hai_resolve_stages(hai_plan *plan) {
  unsigned char *count[] = {&plan->n_before, &plan->n_per_level, &plan->n_after}; /* by hai_when */
  int may_approximate = hai_may_approximate(plan), n = 0, i;
  plan->n_before = plan->n_per_level = plan->n_after = plan->n_beside = 0;
  for (i = 0; i < HAI_N_STAGES; i++) {
    const hai_stage *stage = &hai_stages[i];
    int has_pairing = stage->pairing == HAI_NO_BLOCKS || stage->pairing < plan->n_pairings;
    if (!may_approximate && stage->when == HAI_PER_LEVEL) continue;
    if (!stage->run || !has_pairing || !stage->wanted(plan, stage->pairing)) continue;
    plan->stages[n++] = HAI_AS(unsigned char, i);
    ++*count[stage->when];
    if (stage->traits & HAI_BESIDE) plan->n_beside++;
  }
  plan->begins_beside = !plan->n_before && hai_plan_levels(plan) &&
                        (hai_stages[plan->stages[0]].traits & HAI_BESIDE);
}

/* Bytes of a worker: what its tiles share, a tile, and what any stage needs beside them. */
static size_t hai_worker_bytes(const hai_plan *plan) {
  size_t most = 0;
  int i, n = plan->n_before + plan->n_per_level + plan->n_after;
  for (i = 0; i < n; i++) most = hai_most(most, hai_stages[plan->stages[i]].scratch(plan));
  if (HAI_FEW) most = hai_most(most, hai_scratch_few(plan)); /* a call of fewer queries may need it */
#if HAI_INDEX
  if (hai_may_look(plan)) { /* and so may one of more queries, or fewer keys */
    most = hai_most(most, hai_most(hai_scratch_look(plan), hai_scratch_meet(plan)));
    most = hai_most(most, hai_scratch_tiles(plan));
  }
#endif
  return hai_plus(hai_chunk_bytes(plan) + hai_tile_bytes(plan), most);
}

/* The workspace, once all stages are known. */
HAI_APART void hai_resolve_layout(hai_plan *plan) {
  hai_layout *y = &plan->layout;
  hai_resolve_arrays(plan);
  y->scratch_bytes = hai_worker_bytes(plan);
  if (y->scratch_bytes > PTRDIFF_MAX - 2 * HAI_ALIGN) y->overflow = 1;
  y->scratch_bytes = hai_round_up(y->scratch_bytes + HAI_ALIGN);
}

/* Are queries, keys and values all in bfloat16, so that a kernel for it can take them as they are? */
static int hai_all_bf16(const hyperattn_problem *p) {
  return p->query.dtype == HYPERATTN_BF16 && p->key.dtype == HYPERATTN_BF16 &&
         p->value.dtype == HYPERATTN_BF16;
}

/* What follows from a plan's shape, parameters and kernels. */
HAI_APART void hai_resolve_rest(hai_plan *plan) {
  hai_resolve_params(plan);
  hai_resolve_regions(plan);
  plan->truth_floats = hai_truth_floats(plan);
  hai_resolve_stages(plan);
  hai_resolve_layout(plan);
}

/* The rest, where a sliding window hides keys. That makes a call exact; in a shorter call the same window may
   hide none, and rectangles are approximated, which takes more memory. So that sizes do not fall as lengths
   rise, the layout is no smaller than that of the longest such call. */
static void hai_resolve_sliding(hai_plan *plan) {
  hai_layout *y = &plan->layout;
  hai_index n_query = plan->n_query, n_key = plan->n_key, sliding = plan->sliding;
  size_t scratch, scratch_bytes;
  int overflow;
  plan->sliding = 0;
  plan->n_key = hai_min(n_key, sliding);
  if (!plan->problem->causal) plan->n_query = hai_min(n_query, sliding);
  hai_resolve_rest(plan);
  scratch = y->scratch;
  scratch_bytes = y->scratch_bytes;
  overflow = y->overflow;
  plan->n_query = n_query;
  plan->n_key = n_key;
  plan->sliding = sliding;
  hai_resolve_rest(plan);
  y->scratch = hai_most(y->scratch, scratch);
  y->scratch_bytes = hai_most(y->scratch_bytes, scratch_bytes);
  y->overflow |= overflow;
}

/* All that is to be known of a call without reading a tensor or a stride. Of pointers, it counts whether
   mask.data, report and query_error are NULL. */
HAI_APART hyperattn_status hai_resolve(hai_plan *plan, const hyperattn_problem *problem,
                                       const hyperattn_params *params) {
  hyperattn_status status;
  hyperattn_isa isa;
  int bf16;
  if (!problem) return HYPERATTN_ERROR_NULL_PROBLEM;
  if (!params) return HYPERATTN_ERROR_NULL_PARAMS;
  if ((status = hai_check_shape(problem)) != HYPERATTN_OK) return status;
  if ((status = hai_check_params(params, problem->causal)) != HYPERATTN_OK) return status;
  if (HAI_SCAN && problem->query_error && params->method == HYPERATTN_HYPER)
    return HYPERATTN_ERROR_QUERY_ERROR;
  if (hai_too_many(problem)) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  isa = params->isa;
  bf16 = hai_all_bf16(problem);
  plan->problem = problem;
  plan->params = params;
  hai_resolve_shape(plan);
  plan->float_kernel = hai_kernel_of(isa);
  plan->scan_kernel = hai_scan_kernel_of(plan->float_kernel);
  plan->scale = hai_scale_of(problem, plan->float_kernel);
  plan->kernel = bf16 ? hai_kernel_of_bf16(isa, plan->head_dim, plan->value_dim) : HAI_NULL;
  plan->may_use_amx = bf16 && hai_may_use_amx(isa, plan->head_dim, plan->value_dim);
  if (!plan->kernel) plan->kernel = plan->float_kernel;
  if (hai_sliding(plan))
    hai_resolve_sliding(plan);
  else
    hai_resolve_rest(plan);
  return plan->layout.overflow ? HYPERATTN_ERROR_SIZE_OVERFLOW : HYPERATTN_OK;
}
