/* Bytes for n workers, with the slack that aligns any workspace; 0: too many. */
static size_t hai_layout_size(const hai_layout *layout, int n_workers) {
  size_t limit = PTRDIFF_MAX - layout->scratch - HAI_ALIGN;
  if (HAI_AS(size_t, n_workers) > limit / layout->scratch_bytes) return 0;
  return layout->scratch + layout->scratch_bytes * HAI_AS(size_t, n_workers) + HAI_ALIGN - 1;
}

HAI_APART hyperattn_status hai_check_buffers(const hai_plan *plan, const void *workspace,
                                             size_t workspace_size, int n_workers) {
  const hyperattn_problem *p = plan->problem;
  hai_index batch = hai_to_index(p->batch);
  size_t need;
  hai_extent spans[7]; /* out, lse, report, workspace, query, key, value */
  hyperattn_status status;
  if (n_workers < 1) return HYPERATTN_ERROR_WORKERS;
  need = hai_layout_size(&plan->layout, n_workers);
  if (!need) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  if (!batch || !plan->n_query) return HYPERATTN_OK; /* nothing is read or written */
  if (!p->out.data) return HYPERATTN_ERROR_NULL_OUT;
  if (!p->query.data) return HYPERATTN_ERROR_NULL_QUERY;
  if (plan->n_key && !p->key.data) return HYPERATTN_ERROR_NULL_KEY;
  if (plan->n_key && !p->value.data) return HYPERATTN_ERROR_NULL_VALUE;
  if (!workspace) return HYPERATTN_ERROR_NULL_WORKSPACE;
  if (workspace_size < need) return HYPERATTN_ERROR_WORKSPACE_SIZE;
  HYPERATTN_MEMSET(spans, 0, sizeof spans);
  status = hai_check_output(&spans[0], &p->out, batch, plan->n_heads, plan->n_query, plan->value_dim);
  if (status == HYPERATTN_OK)
    status = hai_check_flat(&spans[1], p->lse, batch, plan->n_heads, plan->n_query, sizeof *p->lse);
  if (status == HYPERATTN_OK && p->report)
    status = hai_check_flat(&spans[2], p->report, batch, plan->n_heads, 1, sizeof *p->report);
  spans[3].data = HAI_AS(const char *, workspace);
  spans[3].after = need;
  if (status == HYPERATTN_OK)
    status = hai_check_input(&spans[4], &p->query, batch, plan->n_heads, plan->n_query, plan->head_dim);
  if (status == HYPERATTN_OK && plan->n_key)
    status = hai_check_input(&spans[5], &p->key, batch, plan->n_kv_heads, plan->n_key, plan->head_dim);
  if (status == HYPERATTN_OK && plan->n_key)
    status = hai_check_input(&spans[6], &p->value, batch, plan->n_kv_heads, plan->n_key, plan->value_dim);
  return status == HYPERATTN_OK ? hai_check_overlap(spans, 4, 7) : status;
}
