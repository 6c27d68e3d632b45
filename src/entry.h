/* Entry points. */

#ifndef HYPERATTN_NO_TEXTS
/* Can this build return a status? Compilers evaluate it for each, and drop the sentences of the others. */
static int hai_occurs(int code) {
  return (HAI_SOFTCAP || code != HYPERATTN_ERROR_SOFTCAP) &&
         (HAI_SLIDING || code != HYPERATTN_ERROR_SLIDING_WINDOW) &&
         (HAI_CUSTOM || code != HYPERATTN_ERROR_NULL_WIDEN) &&
         (HAI_PAGES || (code != HYPERATTN_ERROR_PAGED && code != HYPERATTN_ERROR_PAGE_ROWS)) &&
         (HAI_MANY || code != HYPERATTN_ERROR_N_PROBLEMS) &&
         ((HAI_SCAN && HAI_HYPER) || code != HYPERATTN_ERROR_QUERY_ERROR) &&
         (HAI_INDEX || (code != HYPERATTN_ERROR_INDEX && code != HYPERATTN_ERROR_NULL_INDEX &&
                        code != HYPERATTN_ERROR_INDEX_SIZE));
}

#define HAI_UNKNOWN "unknown status"
#define HAI_STATUS_CASE(name, code, text) \
  case code: return hai_occurs(code) ? text : HAI_UNKNOWN;
HYPERATTN_API const char *hyperattn_status_string(hyperattn_status status) {
  switch (HAI_AS(int, status)) {
    HYPERATTN_STATUS_LIST(HAI_STATUS_CASE)
    default: return HAI_UNKNOWN;
  }
}
#else
HYPERATTN_API const char *hyperattn_status_string(hyperattn_status status) {
  (void)status;
  return "";
}
#endif

HYPERATTN_API hyperattn_params hyperattn_paper_params(void) {
  hyperattn_params p;
  HYPERATTN_MEMSET(&p, 0, sizeof p);
  p.method = HYPERATTN_HYPER;
  p.min_seq_len = 4096;
  p.block_size = 256;
  p.sample_size = 256;
  p.lsh_bits = 7;
  p.order = HYPERATTN_ORDER_SORTLSH;
  p.sampling = HYPERATTN_SAMPLE_UNIFORM;
  p.isa = HYPERATTN_ISA_AUTO;
  return p;
}

HYPERATTN_API hyperattn_params hyperattn_linear_params(void) {
  hyperattn_params p = hyperattn_paper_params();
  p.min_seq_len = 1024;
  p.sample_size = 160;
  p.heavy_keys = 96;
  p.sink_keys = 4;
  p.probe_queries = 96;
  p.window = 256;
  p.lsh_bits = 12;
  p.query_group = 16;
  p.key_group = 16;
  p.order = HYPERATTN_ORDER_PROBED;
  p.sampling = HYPERATTN_SAMPLE_COLUMN_MASS;
  return p;
}

HYPERATTN_API hyperattn_params hyperattn_default_params(void) {
  hyperattn_params p = hyperattn_linear_params();
  if (HAI_SCAN) {
    p.method = HYPERATTN_SCAN;
    p.sample_size = 256;
  }
  p.tolerance = 0.1f;
  return p;
}

#ifndef HYPERATTN_NO_BUILDERS
/* a * b, or some number where that would not fit: the problem is then invalid anyway. */
static ptrdiff_t hai_stride_of(int64_t a, int64_t b) {
  return HAI_AS(ptrdiff_t, HAI_AS(uint64_t, a) * HAI_AS(uint64_t, b));
}

/* Strides of a contiguous tensor. */
static hyperattn_input hai_contiguous(const void *data, int is_tokens_first, int64_t heads, int64_t rows,
                                      int64_t dim) {
  hyperattn_input x;
  HYPERATTN_MEMSET(&x, 0, sizeof x); /* float32 */
  x.data = data;
  x.head_stride = hai_stride_of(is_tokens_first ? 1 : rows, dim);
  x.row_stride = hai_stride_of(is_tokens_first ? heads : 1, dim);
  x.batch_stride = hai_stride_of(hai_stride_of(heads, rows), dim);
  return x;
}

static hyperattn_problem hai_problem(int is_tokens_first, int64_t batch, int64_t n_heads,
                                     int64_t n_kv_heads, int64_t n_query, int64_t n_key, int64_t head_dim,
                                     int64_t value_dim, const void *query, const void *key,
                                     const void *value, void *out) {
  hyperattn_input result = hai_contiguous(out, is_tokens_first, n_heads, n_query, value_dim);
  hyperattn_problem p;
  HYPERATTN_MEMSET(&p, 0, sizeof p);
  p.batch = batch;
  p.n_heads = n_heads;
  p.n_kv_heads = n_kv_heads;
  p.n_query = n_query;
  p.n_key = n_key;
  p.head_dim = head_dim;
  p.value_dim = value_dim;
  p.query = hai_contiguous(query, is_tokens_first, n_heads, n_query, head_dim);
  p.key = hai_contiguous(key, is_tokens_first, n_kv_heads, n_key, head_dim);
  p.value = hai_contiguous(value, is_tokens_first, n_kv_heads, n_key, value_dim);
  p.out.data = out;
  p.out.batch_stride = result.batch_stride;
  p.out.head_stride = result.head_stride;
  p.out.row_stride = result.row_stride;
  return p;
}

HYPERATTN_API hyperattn_problem hyperattn_heads_first(int64_t batch, int64_t n_heads, int64_t n_kv_heads,
                                                      int64_t n_query, int64_t n_key, int64_t head_dim,
                                                      int64_t value_dim, const void *query, const void *key,
                                                      const void *value, void *out) {
  return hai_problem(0, batch, n_heads, n_kv_heads, n_query, n_key, head_dim, value_dim, query, key, value,
                     out);
}

HYPERATTN_API hyperattn_problem hyperattn_tokens_first(int64_t batch, int64_t n_heads, int64_t n_kv_heads,
                                                       int64_t n_query, int64_t n_key, int64_t head_dim,
                                                       int64_t value_dim, const void *query, const void *key,
                                                       const void *value, void *out) {
  return hai_problem(1, batch, n_heads, n_kv_heads, n_query, n_key, head_dim, value_dim, query, key, value,
                     out);
}
#endif

HYPERATTN_API size_t hyperattn_workspace_size(const hyperattn_problem *problem,
                                              const hyperattn_params *params, int n_workers) {
  hai_plan plan;
  if (n_workers < 1 || hai_resolve(&plan, problem, params) != HYPERATTN_OK) return 0;
  return hai_layout_size(&plan.layout, n_workers);
}

#ifndef HYPERATTN_NO_COST
HYPERATTN_API float hyperattn_cost(const hyperattn_problem *problem, const hyperattn_params *params) {
  hai_plan plan;
  float cost;
  if (hai_resolve(&plan, problem, params) != HYPERATTN_OK) return 0.0f;
#if HAI_SCAN
  cost = hai_scanning(&plan) ? hai_scan_cost(&plan) : hai_hyper_cost(&plan);
#if HAI_INDEX
  if (hai_looking(&plan)) cost = hai_look_cost(&plan);
#endif
#else
  cost = hai_hyper_cost(&plan);
#endif
  return cost > 0.0f ? cost : 1e-9f; /* a budget may have no keys */
}
#endif

static hyperattn_status hai_check(hai_plan *plan, const hyperattn_problem *problem,
                                  const hyperattn_params *params, const void *workspace,
                                  size_t workspace_size, int n_workers) {
  hyperattn_status status = hai_resolve(plan, problem, params);
  return status == HYPERATTN_OK ? hai_check_buffers(plan, workspace, workspace_size, n_workers) : status;
}

HYPERATTN_API hyperattn_status hyperattn_check(const hyperattn_problem *problem,
                                               const hyperattn_params *params, const void *workspace,
                                               size_t workspace_size, int n_workers) {
  hai_plan plan;
  return hai_check(&plan, problem, params, workspace, workspace_size, n_workers);
}

HYPERATTN_API hyperattn_status hyperattn_forward(const hyperattn_problem *problem,
                                                 const hyperattn_params *params, void *workspace,
                                                 size_t workspace_size) {
  hai_plan plan;
  hyperattn_status status = hai_check(&plan, problem, params, workspace, workspace_size, 1);
  int phase;
  int64_t index, n;
  if (status != HYPERATTN_OK) return status;
  for (phase = 0; phase < hai_phases(&plan); phase++)
    for (index = 0, n = hai_phase_tasks(&plan, phase); index < n; index++)
      hai_run(&plan, workspace, phase, index, 0);
  return HYPERATTN_OK;
}

typedef struct hai_parallel_phase {
  const hai_plan *plan;
  void *workspace;
  int phase;
} hai_parallel_phase;

static void hai_parallel_task(void *arg, int64_t index, int worker) {
  const hai_parallel_phase *p = HAI_AS(const hai_parallel_phase *, arg);
  hai_run(p->plan, p->workspace, p->phase, index, worker);
}

HYPERATTN_API hyperattn_status hyperattn_forward_parallel(const hyperattn_problem *problem,
                                                          const hyperattn_params *params,
                                                          const hyperattn_parallel *parallel,
                                                          void *workspace, size_t workspace_size) {
  hai_plan plan;
  hai_parallel_phase p;
  hyperattn_status status;
  if (!parallel || !parallel->parallel_for) return HYPERATTN_ERROR_NULL_PARALLEL;
  status = hai_check(&plan, problem, params, workspace, workspace_size, parallel->n_workers);
  if (status != HYPERATTN_OK) return status;
  p.plan = &plan;
  p.workspace = workspace;
  for (p.phase = 0; p.phase < hai_phases(&plan); p.phase++) {
    int64_t n = hai_phase_tasks(&plan, p.phase);
    if (n) parallel->parallel_for(parallel->context, n, hai_parallel_task, &p);
  }
  return HYPERATTN_OK;
}

HYPERATTN_API int hyperattn_phase_count(const hyperattn_problem *problem, const hyperattn_params *params) {
  hai_plan plan;
  return hai_resolve(&plan, problem, params) == HYPERATTN_OK ? hai_phases(&plan) : 0;
}

HYPERATTN_API int64_t hyperattn_phase_tasks(const hyperattn_problem *problem,
                                            const hyperattn_params *params, int phase) {
  hai_plan plan;
  if (hai_resolve(&plan, problem, params) != HYPERATTN_OK || phase < 0 || phase >= hai_phases(&plan))
    return 0;
  return hai_phase_tasks(&plan, phase);
}

HYPERATTN_API void hyperattn_run_task(const hyperattn_problem *problem, const hyperattn_params *params,
                                      void *workspace, int phase, int64_t index, int worker) {
  hai_plan plan;
  if (hai_resolve(&plan, problem, params) == HYPERATTN_OK) hai_run(&plan, workspace, phase, index, worker);
}

HYPERATTN_API hyperattn_status hyperattn_merge(int64_t batch, int64_t n_heads, int64_t n_query,
                                               int64_t value_dim, hyperattn_output a, float *lse_a,
                                               hyperattn_input b, const float *lse_b) {
  hyperattn_input tensor = hai_tensor_of(&a);
  hyperattn_status status = hai_check_merge(batch, n_heads, n_query, value_dim, &tensor, lse_a, &b, lse_b);
  hai_index i, h, q, t, flat = 0;
  if (status != HYPERATTN_OK) return status;
  for (i = 0; i < batch; i++)
    for (h = 0; h < n_heads; h++)
      for (q = 0; q < n_query; q++, flat++) {
        char *out_a = hai_out_row(&a, i, h, q);
        const char *out_b = hai_row(&b, i, h, q);
        /* b alone has met something, finite or not */
        int alone = lse_a[flat] == -hai_inf() && lse_b[flat] != -hai_inf();
        float lse = hai_log_add(lse_a[flat], lse_b[flat]);
        float weight_a = hai_share(lse_a[flat], lse), weight_b = alone ? 1.0f : hai_share(lse_b[flat], lse);
        if (weight_b == 0.0f) continue; /* it may hold anything and is not read */
        for (t = 0; t < value_dim; t++) {
          float x = weight_b * hai_get(out_b, b.dtype, t);
          hai_put(out_a, a.dtype, t, weight_a == 0.0f ? x : weight_a * hai_get(out_a, a.dtype, t) + x);
        }
        lse_a[flat] = lse;
      }
  return HYPERATTN_OK;
}

HYPERATTN_API hyperattn_isa hyperattn_detect_isa(void) {
  const hai_kernel *bf16 = hai_kernel_of_bf16(HYPERATTN_ISA_AUTO, HAI_MAX_DIM, HAI_MAX_DIM);
  const hai_kernel *kernel = bf16 ? bf16 : hai_kernel_of(HYPERATTN_ISA_AUTO);
  return kernel ? kernel->isa : HYPERATTN_ISA_SCALAR;
}

HYPERATTN_API const char *hyperattn_isa_name(hyperattn_isa isa) {
  int i;
  for (i = 0; i < HAI_N_ISAS; i++)
    if (hai_isas[i].isa == HAI_AS(int, isa)) return hai_isas[i].name;
  return "unknown";
}
