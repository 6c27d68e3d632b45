/* Validation. The first check that fails decides the status. */

/* ---- Shapes and parameters ---- */

static int hai_count_ok(int64_t n, int64_t least) { return n >= least && n <= 0x7fffffff; }
/* Is it one of an enumeration's values, 0 .. last? */
static int hai_listed(int64_t value, int64_t last) { return value >= 0 && value <= last; }

/* Keys and values may have any dtype. */
static hyperattn_status hai_check_dtype(hyperattn_dtype dtype, int is_kv) {
  if (!hai_listed(HAI_AS(int, dtype), HYPERATTN_CUSTOM)) return HYPERATTN_ERROR_DTYPE;
  if ((!HAI_HALVES && dtype != HYPERATTN_F32) || (!HAI_CUSTOM && dtype == HYPERATTN_CUSTOM))
    return HYPERATTN_ERROR_LEFT_OUT;
  if (dtype == HYPERATTN_Q8_0 && !is_kv) return HYPERATTN_ERROR_DTYPE_UNSUPPORTED;
  return dtype == HYPERATTN_CUSTOM && !is_kv ? HYPERATTN_ERROR_CUSTOM : HYPERATTN_OK;
}

/* Only keys and values may have pages. */
static hyperattn_status hai_check_input(const hyperattn_input *x, int is_kv) {
  if (HAI_CUSTOM && is_kv && x->dtype == HYPERATTN_CUSTOM && !x->widen) return HYPERATTN_ERROR_NULL_WIDEN;
  if (HAI_PAGES && x->page && !is_kv) return HYPERATTN_ERROR_PAGED;
  if (HAI_PAGES && x->page && !hai_count_ok(x->page_rows, 1)) return HYPERATTN_ERROR_PAGE_ROWS;
  return hai_check_dtype(x->dtype, is_kv);
}

/* Is anything asked for that this build leaves out? Dtypes are looked at elsewhere. */
static int hai_is_left_out(const hyperattn_problem *p) {
  return (!HAI_SOFTCAP && p->softcap != 0.0f) || (!HAI_SLIDING && p->sliding_window) ||
         (!HAI_MASKS && p->mask.data) || (!HAI_SINKS && p->sink) ||
         (!HAI_PAGES && (p->key.page || p->value.page)) || (!HAI_REPORTS && p->report) ||
         (!HAI_SCAN && p->query_error) || (!HAI_INDEX && p->index);
}

static hyperattn_status hai_check_shape(const hyperattn_problem *p) {
  hyperattn_status status;
  if (!hai_count_ok(p->batch, 0)) return HYPERATTN_ERROR_BATCH;
  if (!hai_count_ok(p->n_heads, 1)) return HYPERATTN_ERROR_N_HEADS;
  if (!hai_count_ok(p->n_kv_heads, 1) || p->n_kv_heads > p->n_heads) return HYPERATTN_ERROR_N_KV_HEADS;
  if (p->n_heads % p->n_kv_heads) return HYPERATTN_ERROR_HEAD_GROUPS;
  if (!hai_count_ok(p->n_query, 0)) return HYPERATTN_ERROR_N_QUERY;
  if (!hai_count_ok(p->n_key, 0)) return HYPERATTN_ERROR_N_KEY;
  if (p->head_dim < 1 || p->head_dim > HAI_MAX_DIM) return HYPERATTN_ERROR_HEAD_DIM;
  if (p->value_dim < 1 || p->value_dim > HAI_MAX_DIM) return HYPERATTN_ERROR_VALUE_DIM;
  if (p->causal != 0 && p->causal != 1) return HYPERATTN_ERROR_CAUSAL;
  if (!hai_finite(p->scale)) return HYPERATTN_ERROR_SCALE;
  if ((status = hai_check_input(&p->query, 0)) != HYPERATTN_OK) return status;
  if ((status = hai_check_input(&p->key, 1)) != HYPERATTN_OK) return status;
  if ((status = hai_check_input(&p->value, 1)) != HYPERATTN_OK) return status;
  if ((status = hai_check_dtype(p->out.dtype, 0)) != HYPERATTN_OK) return status;
  if (HAI_MASKS && p->mask.data && (status = hai_check_input(&p->mask, 0)) != HYPERATTN_OK) return status;
  if (hai_is_left_out(p)) return HYPERATTN_ERROR_LEFT_OUT;
  if (HAI_SOFTCAP && (!hai_finite(p->softcap) || p->softcap < 0.0f)) return HYPERATTN_ERROR_SOFTCAP;
  if (HAI_SLIDING && p->sliding_window < 0) return HYPERATTN_ERROR_SLIDING_WINDOW;
  return HYPERATTN_OK;
}

/* Do held-out queries choose? */
static int hai_choosing(const hyperattn_params *p) {
  return p->tolerance > 0.0f || p->order == HYPERATTN_ORDER_PROBED;
}

static hyperattn_status hai_check_params(const hyperattn_params *p, int causal) {
  int hyper = p->method == HYPERATTN_HYPER;
  if (!hai_listed(HAI_AS(int, p->method), HYPERATTN_SCAN)) return HYPERATTN_ERROR_METHOD;
  if (p->min_seq_len < 1) return HYPERATTN_ERROR_MIN_SEQ_LEN;
  if (p->block_size < 0) return HYPERATTN_ERROR_BLOCK_SIZE;
  if (p->sample_size < 0) return HYPERATTN_ERROR_SAMPLE_SIZE;
  if (p->lsh_bits < 1 || p->lsh_bits > 16) return HYPERATTN_ERROR_LSH_BITS;
  if (p->query_group < 0 || p->key_group < 0 || !p->query_group != !p->key_group)
    return HYPERATTN_ERROR_GROUPS;
  if (!hai_listed(HAI_AS(int, p->order), HYPERATTN_ORDER_PROBED)) return HYPERATTN_ERROR_ORDER;
  if (p->sink_keys < 0) return HYPERATTN_ERROR_SINK_KEYS;
  if (p->heavy_keys < 0) return HYPERATTN_ERROR_HEAVY_KEYS;
  if (p->probe_queries < 0) return HYPERATTN_ERROR_PROBE_QUERIES;
  if (p->window < 0) return HYPERATTN_ERROR_WINDOW;
  if (!hai_listed(HAI_AS(int, p->sampling), HYPERATTN_SAMPLE_COLUMN_MASS)) return HYPERATTN_ERROR_SAMPLING;
  if (!hai_finite(p->tolerance) || p->tolerance < 0.0f) return HYPERATTN_ERROR_TOLERANCE;
  if (!hai_finite(p->cap_epsilon) || p->cap_epsilon < 0.0f || !hai_finite(p->cap_kappa) ||
      p->cap_kappa < 0.0f)
    return HYPERATTN_ERROR_CAP;
  if (!hai_listed(HAI_AS(int, p->isa), HYPERATTN_ISA_LAST)) return HYPERATTN_ERROR_ISA;
  if (!p->probe_queries && (p->heavy_keys || p->sampling == HYPERATTN_SAMPLE_COLUMN_MASS ||
                            p->order == HYPERATTN_ORDER_PROBED || (hyper && p->tolerance > 0.0f)))
    return HYPERATTN_ERROR_PROBES_NEEDED;
  if (causal && (p->cap_epsilon > 0.0f || p->cap_kappa > 0.0f)) return HYPERATTN_ERROR_CAP_CAUSAL;
  if (hai_choosing(p) && (p->cap_epsilon > 0.0f || p->cap_kappa > 0.0f)) return HYPERATTN_ERROR_CAP_CHOICE;
  if (hyper && (!HAI_HYPER || (!HAI_JUDGING && hai_choosing(p)))) return HYPERATTN_ERROR_LEFT_OUT;
  if (!HAI_SCAN && p->method == HYPERATTN_SCAN) return HYPERATTN_ERROR_LEFT_OUT;
  if (!hai_kernel_of(p->isa)) return HYPERATTN_ERROR_ISA_ABSENT;
  return HYPERATTN_OK;
}

/* A bound on the tasks of a phase, for one element of the batch. */
static uint64_t hai_most_tasks(const hyperattn_problem *p) {
  return 2 * HAI_AS(uint64_t, p->n_heads) * (HAI_AS(uint64_t, p->n_query) + HAI_AS(uint64_t, p->n_key));
}

/* Do counts exceed this machine's indices, or may tasks exceed INT64_MAX? */
static int hai_too_many(const hyperattn_problem *p) {
  uint64_t limit = HAI_MAX_INDEX, heads = HAI_AS(uint64_t, p->n_heads),
           n_query = HAI_AS(uint64_t, p->n_query);
  uint64_t rows = hai_most_tasks(p);
  return heads > limit || HAI_AS(uint64_t, p->n_key) > limit || HAI_AS(uint64_t, p->batch) > limit ||
         n_query > limit / heads || (rows && HAI_AS(uint64_t, p->batch) > INT64_MAX / rows);
}

/* ---- Pointers and strides ---- */

/* Is there no row of out, so that nothing is read or written? */
static int hai_is_nothing(const hyperattn_problem *p) { return !p->batch || !p->n_query; }

/* The bytes that a tensor [batch][heads][rows][dim] occupies: [data - before, data + after). */
typedef struct hai_extent {
  const char *data;
  size_t before, after;
} hai_extent;

/* Adds (n - 1) * stride elements of `size` bytes to a side of the extent; 0 where PTRDIFF_MAX is passed. */
static int hai_extent_add(hai_extent *extent, hai_index n, ptrdiff_t stride, size_t size) {
  size_t limit = PTRDIFF_MAX, count, apart;
  size_t *side = stride < 0 ? &extent->before : &extent->after;
  if (n <= 1 || stride == 0) return 1;
  count = HAI_AS(size_t, n - 1);
  apart = stride < 0 ? HAI_AS(size_t, -(stride + 1)) + 1 : HAI_AS(size_t, stride);
  if (apart > limit / size || count > limit / (apart * size)) return 0;
  if (*side > limit - count * apart * size) return 0;
  *side += count * apart * size;
  return extent->before <= limit - extent->after;
}

static int hai_extents_meet(const hai_extent *a, const hai_extent *b) {
  uintptr_t a_begin = HAI_REINTERPRET(uintptr_t, a->data) - a->before,
            a_end = HAI_REINTERPRET(uintptr_t, a->data) + a->after;
  uintptr_t b_begin = HAI_REINTERPRET(uintptr_t, b->data) - b->before,
            b_end = HAI_REINTERPRET(uintptr_t, b->data) + b->after;
  return a->data && b->data && a_begin < b_end && b_begin < a_end;
}

/* Do rows of a result share no element? True where each stride, from the smallest up, reaches past all
   elements that the smaller ones reach. */
static int hai_rows_apart(const ptrdiff_t stride[3], const hai_index n[3], hai_index dim) {
  int done[3] = {0, 0, 0}, i, round;
  hai_index reach = dim;
  for (round = 0; round < 3; round++) {
    int least = -1;
    for (i = 0; i < 3; i++)
      if (!done[i] && (least < 0 || stride[i] < stride[least])) least = i;
    done[least] = 1;
    if (n[least] <= 1) continue;
    if (stride[least] < reach) return 0;
    reach += (n[least] - 1) * stride[least];
  }
  return 1;
}

/* A call's buffers, added one by one: results first, then inputs. */
typedef struct hai_buffers {
  hyperattn_status status; /* of the first mistake; what is added later is not looked at */
  int n, n_results;
  hai_extent extent[14];
  hai_index batch, heads, rows; /* of the buffers that are added next */
} hai_buffers;

static hai_extent *hai_add_extent(hai_buffers *buffers, const void *data, size_t bytes) {
  hai_extent *extent = &buffers->extent[buffers->n++];
  extent->data = HAI_AS(const char *, data);
  extent->before = 0;
  extent->after = bytes;
  return extent;
}

/* Adds a tensor [batch][heads][rows][dim]; of a row whose format only the caller knows, its first byte. */
static void hai_add_tensor(hai_buffers *buffers, const hyperattn_input *x, hai_index dim, int is_result) {
  const ptrdiff_t stride[3] = {x->batch_stride, x->head_stride, x->row_stride};
  const hai_index n[3] = {buffers->batch, buffers->heads, buffers->rows};
  int unit = hai_unit(x->dtype), i;
  size_t bytes = hai_unit_bytes(x->dtype);
  hai_extent *extent;
  if (buffers->status != HYPERATTN_OK) return;
  if (hai_is_custom(x->dtype)) dim = 1;
  extent = hai_add_extent(buffers, x->data, HAI_AS(size_t, hai_ceil_div(dim, unit)) * bytes);
  for (i = 0; i < 3 && buffers->status == HYPERATTN_OK; i++) {
    if (n[i] > 1 && stride[i] % unit)
      buffers->status = HYPERATTN_ERROR_STRIDE_Q8_0;
    else if (!hai_extent_add(extent, n[i], stride[i] / unit, bytes))
      buffers->status = HYPERATTN_ERROR_EXTENT;
  }
  if (buffers->status != HYPERATTN_OK) return;
  if (HAI_REINTERPRET(uintptr_t, x->data) % hai_alignment(x->dtype))
    buffers->status = HYPERATTN_ERROR_ALIGNMENT;
  else if (is_result && !hai_rows_apart(stride, n, dim))
    buffers->status = HYPERATTN_ERROR_OUT_STRIDE;
}

/* Adds a contiguous [batch][heads][rows] of things of `size` bytes that hold floats, which may be NULL. */
static void hai_add_flat(hai_buffers *buffers, const void *data, hai_index rows, size_t size) {
  size_t heads = hai_times(HAI_AS(size_t, buffers->batch), HAI_AS(size_t, buffers->heads));
  size_t bytes = hai_times(heads, hai_times(HAI_AS(size_t, rows), size));
  if (buffers->status != HYPERATTN_OK) return;
  hai_add_extent(buffers, data, bytes);
  if (bytes > PTRDIFF_MAX)
    buffers->status = HYPERATTN_ERROR_EXTENT;
  else if (HAI_REINTERPRET(uintptr_t, data) % sizeof(float))
    buffers->status = HYPERATTN_ERROR_ALIGNMENT;
}

/* Adds the page numbers [batch][page_batch_stride] of keys or values, and checks what can be checked of the
   pages themselves: the first one's alignment, and strides of Q8_0. */
static void hai_add_pages(hai_buffers *buffers, const hyperattn_input *x) {
  const ptrdiff_t stride[4] = {x->batch_stride, x->head_stride, x->row_stride, x->page_stride};
  const int64_t n[4] = {buffers->batch, buffers->heads,
                        hai_min(buffers->rows, hai_clamp(x->page_rows, HAI_MAX_INDEX)), 2};
  hai_index pages = hai_ceil_div(buffers->rows, hai_clamp(x->page_rows, HAI_MAX_INDEX)),
            heads = buffers->heads, rows = buffers->rows;
  hyperattn_input table;
  int i;
  if (buffers->status != HYPERATTN_OK) return;
  for (i = 0; i < 4; i++)
    if (n[i] > 1 && stride[i] % hai_unit(x->dtype)) buffers->status = HYPERATTN_ERROR_STRIDE_Q8_0;
  if (HAI_REINTERPRET(uintptr_t, x->data) % hai_alignment(x->dtype))
    buffers->status = HYPERATTN_ERROR_ALIGNMENT;
  table.data = x->page;
  table.dtype = HYPERATTN_F32; /* of the size of a page number */
  table.batch_stride = x->page_batch_stride;
  table.head_stride = table.row_stride = 0;
  buffers->heads = buffers->rows = 1;
  hai_add_tensor(buffers, &table, pages, 0);
  buffers->heads = heads;
  buffers->rows = rows;
}

/* Adds keys or values. */
static void hai_add_rows(hai_buffers *buffers, const hyperattn_input *x, hai_index dim) {
  if (!buffers->rows) return;
  if (HAI_PAGES && x->page)
    hai_add_pages(buffers, x);
  else
    hai_add_tensor(buffers, x, dim, 0);
}

#if HAI_INDEX
/* Adds an index that is sound. */
static void hai_add_index(hai_buffers *buffers, const hyperattn_index *index) {
  size_t bytes = hai_index_bytes(index->batch, index->n_kv_heads, index->head_dim, index->capacity);
  if (buffers->status == HYPERATTN_OK) hai_add_extent(buffers, index, bytes);
}
#endif

/* No result may share a byte with anything else; inputs may share with one another. */
static hyperattn_status hai_check_overlap(const hai_buffers *buffers) {
  int i, j;
  for (i = 0; i < buffers->n_results && buffers->status == HYPERATTN_OK; i++)
    for (j = i + 1; j < buffers->n; j++)
      if (hai_extents_meet(&buffers->extent[i], &buffers->extent[j])) return HYPERATTN_ERROR_OVERLAP;
  return buffers->status;
}

/* Of a problem in a call that needs `need` bytes of workspace, which may be one of many problems. */
HAI_APART hyperattn_status hai_check_buffers_within(const hai_plan *plan, const void *workspace,
                                                    size_t workspace_size, size_t need) {
  const hyperattn_problem *p = plan->problem;
  hyperattn_input out = hai_tensor_of(&p->out);
  hai_buffers buffers;
  if (hai_is_nothing(p)) return HYPERATTN_OK;
  if (!p->out.data) return HYPERATTN_ERROR_NULL_OUT;
  if (!p->query.data) return HYPERATTN_ERROR_NULL_QUERY;
  if (plan->n_key && !p->key.data) return HYPERATTN_ERROR_NULL_KEY;
  if (plan->n_key && !p->value.data) return HYPERATTN_ERROR_NULL_VALUE;
  if (!workspace) return HYPERATTN_ERROR_NULL_WORKSPACE;
  if (workspace_size < need) return HYPERATTN_ERROR_WORKSPACE_SIZE;
#if HAI_INDEX
  if (hai_looking(plan) && (!hai_index_fits(p->index, p) || p->index->length > p->n_key))
    return HYPERATTN_ERROR_INDEX;
#endif
  HYPERATTN_MEMSET(&buffers, 0, sizeof buffers); /* status: ok */
  buffers.batch = hai_to_index(p->batch);
  buffers.heads = plan->n_heads;
  buffers.rows = plan->n_query;
  buffers.n_results = 5;
  hai_add_tensor(&buffers, &out, plan->value_dim, 1);
  hai_add_flat(&buffers, p->lse, plan->n_query, sizeof *p->lse);
  if (HAI_SCAN) hai_add_flat(&buffers, p->query_error, plan->n_query, sizeof *p->query_error);
  hai_add_flat(&buffers, p->report, 1, sizeof *p->report);
  if (buffers.status == HYPERATTN_OK) hai_add_extent(&buffers, workspace, need);
  hai_add_tensor(&buffers, &p->query, plan->head_dim, 0);
  if (hai_masking(plan) && plan->n_key) hai_add_tensor(&buffers, &p->mask, plan->n_key, 0);
  buffers.heads = plan->n_kv_heads;
  buffers.rows = plan->n_key;
  hai_add_rows(&buffers, &p->key, plan->head_dim);
  hai_add_rows(&buffers, &p->value, plan->value_dim);
  buffers.batch = 1;
  buffers.heads = plan->n_heads;
  if (hai_masking(plan)) hai_add_flat(&buffers, p->mask_slope, 1, sizeof *p->mask_slope);
  if (HAI_SINKS) hai_add_flat(&buffers, p->sink, 1, sizeof *p->sink);
#if HAI_INDEX
  if (hai_looking(plan)) hai_add_index(&buffers, p->index);
#endif
  return hai_check_overlap(&buffers);
}

static hyperattn_status hai_check_buffers(const hai_plan *plan, const void *workspace, size_t workspace_size,
                                          int n_workers) {
  size_t need;
  if (n_workers < 1) return HYPERATTN_ERROR_WORKERS;
  need = hai_layout_size(&plan->layout, n_workers);
  return need ? hai_check_buffers_within(plan, workspace, workspace_size, need)
              : HYPERATTN_ERROR_SIZE_OVERFLOW;
}

/* Everything that hyperattn_merge checks. */
static hyperattn_status hai_check_merge(int64_t batch, int64_t n_heads, int64_t n_query, int64_t value_dim,
                                        const hyperattn_input *a, const float *lse_a,
                                        const hyperattn_input *b, const float *lse_b) {
  hyperattn_status status;
  hai_buffers buffers;
  if (!hai_count_ok(batch, 0)) return HYPERATTN_ERROR_BATCH;
  if (!hai_count_ok(n_heads, 1)) return HYPERATTN_ERROR_N_HEADS;
  if (!hai_count_ok(n_query, 0)) return HYPERATTN_ERROR_N_QUERY;
  if (value_dim < 1 || value_dim > HAI_MAX_DIM) return HYPERATTN_ERROR_VALUE_DIM;
  if ((status = hai_check_dtype(a->dtype, 0)) != HYPERATTN_OK) return status;
  if ((status = hai_check_dtype(b->dtype, 0)) != HYPERATTN_OK) return status;
  if (batch == 0 || n_query == 0) return HYPERATTN_OK;
  if (!a->data) return HYPERATTN_ERROR_NULL_OUT;
  if (!b->data) return HYPERATTN_ERROR_NULL_VALUE;
  if (!lse_a || !lse_b) return HYPERATTN_ERROR_NULL_LSE;
  HYPERATTN_MEMSET(&buffers, 0, sizeof buffers); /* status: ok */
  buffers.batch = hai_to_index(batch);
  buffers.heads = hai_to_index(n_heads);
  buffers.rows = hai_to_index(n_query);
  buffers.n_results = 2;
  hai_add_tensor(&buffers, a, hai_to_index(value_dim), 1);
  hai_add_flat(&buffers, lse_a, buffers.rows, sizeof *lse_a);
  hai_add_tensor(&buffers, b, hai_to_index(value_dim), 0);
  hai_add_flat(&buffers, lse_b, buffers.rows, sizeof *lse_b);
  return hai_check_overlap(&buffers);
}
