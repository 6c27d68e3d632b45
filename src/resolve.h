/* Can products take queries, keys and values as they are, in bfloat16? */
static int hai_all_bf16(const hyperattn_problem *p) {
  return p->query.dtype == HYPERATTN_BF16 && p->key.dtype == HYPERATTN_BF16 &&
         p->value.dtype == HYPERATTN_BF16;
}

/* Everything about a call that needs no pointer and no stride. */
HAI_APART hyperattn_status hai_resolve(hai_plan *plan, const hyperattn_problem *problem,
                                       const hyperattn_params *params) {
  hyperattn_status status;
  hyperattn_isa isa;
  int bf16;
  if (!problem) return HYPERATTN_ERROR_NULL_PROBLEM;
  if (!params) return HYPERATTN_ERROR_NULL_PARAMS;
  if ((status = hai_check_shape(problem)) != HYPERATTN_OK) return status;
  if ((status = hai_check_params(params, problem->causal)) != HYPERATTN_OK) return status;
  if (hai_too_many(problem)) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  isa = params->isa;
  bf16 = hai_all_bf16(problem);
  plan->problem = problem;
  plan->params = params;
  hai_resolve_shape(plan);
  plan->float_kernel = hai_kernel_of(isa);
  plan->scale = hai_scale_of(problem, plan->float_kernel);
  plan->kernel = bf16 ? hai_kernel_of_bf16(isa, plan->head_dim, plan->value_dim) : HAI_NULL;
  plan->may_use_amx = bf16 && hai_may_use_amx(isa, plan->head_dim, plan->value_dim);
  if (!plan->kernel) plan->kernel = plan->float_kernel;
  hai_resolve_params(plan);
  hai_resolve_regions(plan);
  hai_resolve_steps(plan);
  hai_resolve_layout(plan);
  return plan->layout.overflow ? HYPERATTN_ERROR_SIZE_OVERFLOW : HYPERATTN_OK;
}
