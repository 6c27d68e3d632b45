/* ---- Validation of shapes and parameters ---- */

static int hai_count_ok(int64_t n, int64_t least) { return n >= least && n <= 0x7fffffff; }
/* Is it a value of an enumeration whose last is this? */
static int hai_listed(int64_t value, int64_t last) { return value >= 0 && value <= last; }

static hyperattn_status hai_check_shape(const hyperattn_problem *p) {
  const hyperattn_dtype dtype[4] = {p->query.dtype, p->key.dtype, p->value.dtype, p->out.dtype};
  int i;
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
  for (i = 0; i < 4; i++)
    if (!hai_listed(HAI_AS(int, dtype[i]), HYPERATTN_Q8_0)) return HYPERATTN_ERROR_DTYPE;
  if (dtype[0] == HYPERATTN_Q8_0 || dtype[3] == HYPERATTN_Q8_0) return HYPERATTN_ERROR_DTYPE_UNSUPPORTED;
  for (i = 0; i < 4; i++)
    if (!HAI_HALVES && dtype[i] != HYPERATTN_F32) return HYPERATTN_ERROR_LEFT_OUT;
  if (!HAI_JUDGING && p->report) return HYPERATTN_ERROR_LEFT_OUT;
  if (hai_bits(p->softcap) << 1 || p->sliding_window || p->key_position) return HYPERATTN_ERROR_RESERVED;
  return HYPERATTN_OK;
}

/* Do held-out queries choose? */
static int hai_choosing(const hyperattn_params *p) {
  return p->tolerance > 0.0f || p->order == HYPERATTN_ORDER_PROBED;
}

static hyperattn_status hai_check_params(const hyperattn_params *p, int causal) {
  if (p->method != HYPERATTN_HYPER && p->method != HYPERATTN_EXACT) return HYPERATTN_ERROR_METHOD;
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
  if (!hai_listed(HAI_AS(int, p->isa), HYPERATTN_ISA_AMX_BF16)) return HYPERATTN_ERROR_ISA;
  if (!p->probe_queries && (p->heavy_keys || p->sampling == HYPERATTN_SAMPLE_COLUMN_MASS ||
                            p->order == HYPERATTN_ORDER_PROBED || p->tolerance > 0.0f))
    return HYPERATTN_ERROR_PROBES_NEEDED;
  if (causal && (p->cap_epsilon > 0.0f || p->cap_kappa > 0.0f)) return HYPERATTN_ERROR_CAP_CAUSAL;
  if (hai_choosing(p) && (p->cap_epsilon > 0.0f || p->cap_kappa > 0.0f)) return HYPERATTN_ERROR_CAP_CHOICE;
  if (p->method == HYPERATTN_HYPER && (!HAI_HYPER || (!HAI_JUDGING && hai_choosing(p))))
    return HYPERATTN_ERROR_LEFT_OUT;
  if (!hai_kernel_of(p->isa)) return HYPERATTN_ERROR_ISA_ABSENT;
  return HYPERATTN_OK;
}

/* Does the caller count further than this machine's indices reach, or have more tasks than INT64_MAX? */
static int hai_too_many(const hyperattn_problem *p) {
  uint64_t limit = HAI_MAX_INDEX, heads = HAI_AS(uint64_t, p->n_heads),
           n_query = HAI_AS(uint64_t, p->n_query);
  uint64_t rows = 2 * heads * (n_query + HAI_AS(uint64_t, p->n_key));
  return heads > limit || HAI_AS(uint64_t, p->n_key) > limit || HAI_AS(uint64_t, p->batch) > limit ||
         n_query > limit / heads || (rows && HAI_AS(uint64_t, p->batch) > INT64_MAX / rows);
}

/* ---- Validation of pointers and strides ---- */

/* The bytes that a tensor [batch][heads][rows][dim] spans: [data - before, data + after). */
typedef struct hai_extent {
  const char *data;
  size_t before, after;
} hai_extent;

/* Adds (n - 1) * stride elements of `size` bytes to a side of the span; 0 where PTRDIFF_MAX is passed. */
static int hai_extent_add(hai_extent *span, hai_index n, ptrdiff_t stride, size_t size) {
  size_t limit = PTRDIFF_MAX, steps, step;
  size_t *side = stride < 0 ? &span->before : &span->after;
  if (n <= 1 || stride == 0) return 1;
  steps = HAI_AS(size_t, n - 1);
  step = stride < 0 ? HAI_AS(size_t, -(stride + 1)) + 1 : HAI_AS(size_t, stride);
  if (step > limit / size || steps > limit / (step * size)) return 0;
  if (*side > limit - steps * step * size) return 0;
  *side += steps * step * size;
  return span->before <= limit - span->after;
}

static hyperattn_status hai_extent_of(hai_extent *span, const void *data, hyperattn_dtype dtype,
                                      const ptrdiff_t stride[3], const hai_index n[3], hai_index dim) {
  int unit = hai_unit(dtype), i;
  size_t bytes = hai_unit_bytes(dtype);
  span->data = HAI_AS(const char *, data);
  span->before = 0;
  span->after = HAI_AS(size_t, hai_ceil_div(dim, unit)) * bytes;
  for (i = 0; i < 3; i++) {
    if (n[i] > 1 && stride[i] % unit) return HYPERATTN_ERROR_STRIDE_Q8_0;
    if (!hai_extent_add(span, n[i], stride[i] / unit, bytes)) return HYPERATTN_ERROR_EXTENT;
  }
  return HAI_REINTERPRET(uintptr_t, data) % hai_alignment(dtype) ? HYPERATTN_ERROR_ALIGNMENT : HYPERATTN_OK;
}

static int hai_extents_meet(const hai_extent *a, const hai_extent *b) {
  uintptr_t a_begin = HAI_REINTERPRET(uintptr_t, a->data) - a->before,
            a_end = HAI_REINTERPRET(uintptr_t, a->data) + a->after;
  uintptr_t b_begin = HAI_REINTERPRET(uintptr_t, b->data) - b->before,
            b_end = HAI_REINTERPRET(uintptr_t, b->data) + b->after;
  return a->data && b->data && a_begin < b_end && b_begin < a_end;
}

/* Rows of an output are apart when, from the smallest stride up, each steps over all that the smaller
   ones span. */
static int hai_rows_apart(const ptrdiff_t stride[3], const hai_index n[3], hai_index dim) {
  int done[3] = {0, 0, 0}, i, round;
  hai_index span = dim;
  for (round = 0; round < 3; round++) {
    int least = -1;
    for (i = 0; i < 3; i++)
      if (!done[i] && (least < 0 || stride[i] < stride[least])) least = i;
    done[least] = 1;
    if (n[least] <= 1) continue;
    if (stride[least] < span) return 0;
    span += (n[least] - 1) * stride[least];
  }
  return 1;
}

static hyperattn_status hai_check_input(hai_extent *span, const hyperattn_input *x, hai_index batch,
                                        hai_index heads, hai_index rows, hai_index dim) {
  const ptrdiff_t stride[3] = {x->batch_stride, x->head_stride, x->row_stride};
  const hai_index n[3] = {batch, heads, rows};
  return hai_extent_of(span, x->data, x->dtype, stride, n, dim);
}

static hyperattn_status hai_check_output(hai_extent *span, const hyperattn_output *x, hai_index batch,
                                         hai_index heads, hai_index rows, hai_index dim) {
  const ptrdiff_t stride[3] = {x->batch_stride, x->head_stride, x->row_stride};
  const hai_index n[3] = {batch, heads, rows};
  hyperattn_status status;
  if ((status = hai_extent_of(span, x->data, x->dtype, stride, n, dim)) != HYPERATTN_OK) return status;
  return hai_rows_apart(stride, n, dim) ? HYPERATTN_OK : HYPERATTN_ERROR_OUT_STRIDE;
}

/* A contiguous [batch][heads][rows] of things of `size` bytes that hold floats; no data: nothing. */
static hyperattn_status hai_check_flat(hai_extent *span, const void *data, hai_index batch, hai_index heads,
                                       hai_index rows, size_t size) {
  span->data = HAI_AS(const char *, data);
  span->before = 0;
  span->after = hai_times(hai_times(HAI_AS(size_t, batch), HAI_AS(size_t, heads)),
                          hai_times(HAI_AS(size_t, rows), size));
  if (span->after > PTRDIFF_MAX) return HYPERATTN_ERROR_EXTENT;
  return HAI_REINTERPRET(uintptr_t, data) % sizeof(float) ? HYPERATTN_ERROR_ALIGNMENT : HYPERATTN_OK;
}

/* No result may share a byte with anything else; inputs may share with one another. Results come first. */
static hyperattn_status hai_check_overlap(const hai_extent *spans, int n_results, int n) {
  int i, j;
  for (i = 0; i < n_results; i++)
    for (j = i + 1; j < n; j++)
      if (hai_extents_meet(&spans[i], &spans[j])) return HYPERATTN_ERROR_OVERLAP;
  return HYPERATTN_OK;
}
