/* Fuzzes hyperattn_forward and hyperattn_forward_many: makes a call, valid or not, from bytes, and checks
   what the manual promises. An input that ends with FIELDS has a second part (split), which says what
   fields.h holds; without one the call has shapes, tensors and parameters alone. */
#define _POSIX_C_SOURCE 200809L
#include "hyperattn.h"

#include "amx.h"
#include "same.h"

enum { MAX_PRODUCTS = 1 << 18, MAX_NUMBERS = 1 << 15, MAX_WORKSPACE = 1 << 24, FIELDS = 243 };

/* ---- The call ---- */

static hyperattn_isa present[8];
static int n_present;

static void find_isas(void) {
  hyperattn_problem p = {.batch = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 1, .value_dim = 1};
  hyperattn_params a = hyperattn_default_params();
  ask_for_amx();
  for (int isa = HYPERATTN_ISA_AUTO; isa <= HYPERATTN_ISA_LAST; isa++) {
    a.isa = (hyperattn_isa)isa;
    if (hyperattn_workspace_size(&p, &a, 1)) present[n_present++] = a.isa;
  }
}

/* The last byte is FIELDS, the one before it the length of the second part, which stands before both. */
static bytes split(bytes *in) {
  bytes more = {in->end, in->end};
  if (in->end - in->at < 2 || in->end[-1] != FIELDS) return more;
  more.end = in->end - 2, more.at = in->end[-2] < more.end - in->at ? more.end - in->end[-2] : in->at;
  in->end = more.at;
  return more;
}

/* Makes a shape one of decoding: few queries, and so many keys that they may be cut into parts. */
static void make_decode(hyperattn_problem *p, int64_t n_key) {
  p->batch = 1, p->n_query = 1 + p->n_query % 17, p->n_key = n_key;
  while (p->n_heads * p->n_query * p->n_key * (p->head_dim + p->value_dim) > 2 * MAX_PRODUCTS)
    if (p->n_query > 3)
      p->n_query /= 2;
    else if (p->head_dim > 64 || p->value_dim > 64)
      p->head_dim = (p->head_dim + 1) / 2, p->value_dim = (p->value_dim + 1) / 2;
    else if (p->n_heads > 2)
      p->n_heads /= p->n_kv_heads, p->n_kv_heads = 1;
    else
      p->n_query = 1, p->head_dim = (p->head_dim + 1) / 2, p->value_dim = (p->value_dim + 1) / 2;
}

/* Returns whether the shape is one of decoding. */
static int take_shape(hyperattn_problem *p, bytes *in) {
  static const int64_t dims[] = {8, 1, 2, 3, 5, 16, 31, 32, 33, 64};
  int64_t size = (int64_t[]){24, 100, 300, 1200}[take(in, 1) & 3];
  p->batch = one_in(in, 8) ? below(in, 4) : 1;
  p->n_kv_heads = 1 + below(in, 8) / 5;
  p->n_heads = p->n_kv_heads * (1 + below(in, 8) / 4);
  p->n_query = below(in, size), p->n_key = one_in(in, 3) ? below(in, size) : p->n_query;
  /* long enough for sub-blocks in two levels, and for probing in several tasks */
  int kind = (int)take(in, 1), is_long = kind % 32 == 15, is_decode = kind % 32 == 31;
  p->head_dim = one_in(in, 10) ? 1 + below(in, 576) : dims[below(in, 10)];
  p->value_dim = one_in(in, 3) ? (one_in(in, 4) ? 1 + below(in, 576) : dims[below(in, 10)]) : p->head_dim;
  p->causal = (int)below(in, 2);
  if (is_long) {
    p->batch = p->n_heads = p->n_kv_heads = p->head_dim = p->value_dim = 1;
    p->n_query %= 16, p->n_key = 40000 - below(in, 40000);
  }
  if (is_decode) make_decode(p, 4000 + below(in, 2600));
  for (; !is_long && !is_decode;) { /* makes the call small enough to run in milliseconds */
    int64_t heads = p->batch * p->n_heads, dim = p->head_dim + p->value_dim;
    if (heads * p->n_query * p->n_key * dim <= MAX_PRODUCTS &&
        heads * (p->n_query + p->n_key) * dim <= MAX_NUMBERS)
      break;
    if (p->n_key > 4 * p->n_query || p->n_query < 2)
      p->n_key /= 2;
    else if (p->n_query > p->n_key)
      p->n_query /= 2;
    else
      p->n_query -= (p->n_query + 3) / 4, p->n_key -= (p->n_key + 3) / 4;
  }
  p->scale = one_in(in, 4) ? gaussian(&(uint64_t){take(in, 1)}) * (one_in(in, 8) ? 1e6f : 1.0f) : 0.0f;
  return is_decode;
}

/* Returns whether the call asks for the errors of queries. */
static int take_params(hyperattn_params *a, bytes *in, int causal) {
  uint64_t first = take(in, 1), base = first % 8;
  *a = base == 7 ? hyperattn_paper_params() : hyperattn_linear_params();
  if (base < 7) {
    a->min_seq_len = 1 + below(in, 40), a->block_size = below(in, 40), a->sample_size = below(in, 40);
    a->lsh_bits = 1 + (int32_t)below(in, 16);
    a->query_group = below(in, 17), a->key_group = a->query_group ? 1 + below(in, 16) : 0;
    a->order = (hyperattn_order)below(in, 3), a->sampling = (hyperattn_sampling)below(in, 3);
    a->sink_keys = below(in, 6), a->heavy_keys = below(in, 8), a->probe_queries = below(in, 20);
    a->window = below(in, 40);
    a->tolerance = (float[]){0.0f, 0.0f, 0.1f, 0.01f, 1.0f, 1e-30f, 1e30f, 0.0f}[below(in, 8)];
    if (!causal && a->order != HYPERATTN_ORDER_PROBED && one_in(in, 4)) {
      a->cap_epsilon = (float)below(in, 4) / 4.0f, a->cap_kappa = (float)below(in, 4) * 2.0f;
      a->tolerance = 0.0f;
    }
    if (!a->probe_queries && (a->heavy_keys || a->sampling == HYPERATTN_SAMPLE_COLUMN_MASS ||
                              a->order == HYPERATTN_ORDER_PROBED || a->tolerance > 0.0f))
      a->probe_queries = 1;
  }
  if (base == 6) a->method = HYPERATTN_EXACT;
  if (base < 6 && first >= 224) a->method = HYPERATTN_SCAN;
  a->seed = take(in, 2) * 0x9e3779b97f4a7c15u;
  a->isa = present[below(in, n_present)];
  return a->method != HYPERATTN_HYPER && first / 8 % 2;
}

/* Sets one field to any number. */
static void spoil(call *c, bytes *in) {
  hyperattn_problem *p = &c->problem;
  hyperattn_params *a = &c->params;
  int64_t *shape[] = {&p->batch, &p->n_heads,  &p->n_kv_heads, &p->n_query,
                      &p->n_key, &p->head_dim, &p->value_dim,  &p->sliding_window};
  int64_t *count[] = {&a->min_seq_len, &a->block_size, &a->sample_size,   &a->query_group, &a->key_group,
                      &a->sink_keys,   &a->heavy_keys, &a->probe_queries, &a->window};
  float *real[] = {&p->scale, &p->softcap, &a->tolerance, &a->cap_epsilon, &a->cap_kappa};
  uint64_t which = take(in, 1) % 34;
  int64_t x = wild(in);
  int small = (int)(int8_t)take(in, 1);
  if (which < 8)
    *shape[which] = x, c->runs &= which == 7;
  else if (which < 17)
    *count[which - 8] = x;
  else if (which < 22)
    *real[which - 17] = bits_to_float((uint32_t)take(in, 4));
  else if (which == 22)
    p->causal = small;
  else if (which == 23)
    p->query.dtype = (hyperattn_dtype)small, c->runs = 0;
  else if (which == 24)
    p->out.dtype = (hyperattn_dtype)small, c->runs = 0;
  else if (which == 25)
    a->method = (hyperattn_method)small;
  else if (which == 26)
    a->order = (hyperattn_order)small;
  else if (which == 27)
    a->sampling = (hyperattn_sampling)small;
  else if (which == 28)
    a->isa = (hyperattn_isa)small;
  else if (which == 29)
    a->lsh_bits = (int32_t)x;
  else if (which == 30)
    p->query.page = (const int32_t *)(const void *)c->key.block;
  else if (which == 31)
    p->query.data = NULL;
  else if (which == 32)
    p->value.data = NULL;
  else
    p->out.data = c->query.data; /* overlap */
}

static int in_range(int64_t x, int64_t least, int64_t most) { return x >= least && x <= most; }
static int is_size(float x) { return isfinite(x) && x >= 0.0f; }

/* Whether shapes and parameters are valid by the manual; -1 if only their size may be too large. */
static int is_valid(const hyperattn_problem *p, const hyperattn_params *a) {
  const int64_t most = 0x7fffffff;
  int is_hyper = a->method == HYPERATTN_HYPER;
  int probes = a->heavy_keys || a->sampling == HYPERATTN_SAMPLE_COLUMN_MASS ||
               a->order == HYPERATTN_ORDER_PROBED || (is_hyper && a->tolerance > 0.0f);
  int caps = a->cap_epsilon > 0.0f || a->cap_kappa > 0.0f, has_isa = 0;
  for (int i = 0; i < n_present; i++) has_isa |= present[i] == a->isa;
  if (!in_range(p->batch, 0, most) || !in_range(p->n_heads, 1, most) ||
      !in_range(p->n_kv_heads, 1, p->n_heads) || p->n_heads % p->n_kv_heads ||
      !in_range(p->n_query, 0, most) || !in_range(p->n_key, 0, most) || !in_range(p->head_dim, 1, 576) ||
      !in_range(p->value_dim, 1, 576) || !in_range(p->causal, 0, 1) || !isfinite(p->scale) ||
      !in_range((int)p->query.dtype, 0, 2) || !in_range((int)p->key.dtype, 0, 4) ||
      !in_range((int)p->value.dtype, 0, 4) || !in_range((int)p->out.dtype, 0, 2) || !are_valid(p))
    return 0;
  if (is_hyper && p->query_error) return 0;
  if (!in_range((int)a->method, 0, 2) || a->min_seq_len < 1 || a->block_size < 0 || a->sample_size < 0 ||
      !in_range(a->lsh_bits, 1, 16) || a->query_group < 0 || a->key_group < 0 ||
      (a->query_group > 0) != (a->key_group > 0) || !in_range((int)a->order, 0, 2) || a->sink_keys < 0 ||
      a->heavy_keys < 0 || a->probe_queries < 0 || a->window < 0 || !in_range((int)a->sampling, 0, 2) ||
      !is_size(a->tolerance) || !is_size(a->cap_epsilon) || !is_size(a->cap_kappa) || !has_isa ||
      (probes && !a->probe_queries) || (caps && (p->causal || a->tolerance > 0.0f)) ||
      (caps && a->order == HYPERATTN_ORDER_PROBED))
    return 0;
  return (double)p->batch * (double)p->n_heads * (double)(p->n_query + p->n_key) < 1e6 ? 1 : -1;
}

static void make_call(call *c, bytes *in, bytes *more) {
  hyperattn_problem *p = &c->problem;
  tensor *all[] = {&c->query, &c->key, &c->value, &c->out, &c->fields.mask};
  memset(c, 0, sizeof *c);
  int is_decode = take_shape(p, in);
  int asks = take_params(&c->params, in, p->causal);
  if (is_decode) c->params.method = HYPERATTN_EXACT;
  uint64_t dtypes = take(in, 2);
  int same = (dtypes >> 12) % 3 == 1; /* all of one dtype, since BF16 has kernels of its own */
  c->runs = 1, c->valid = 1;
  for (int i = 0; i < 4; i++) {
    int is_kv = i == 1 || i == 2;
    all[i]->n[0] = p->batch, all[i]->n[1] = is_kv ? p->n_kv_heads : p->n_heads;
    all[i]->n[2] = is_kv ? p->n_key : p->n_query, all[i]->dim = i < 2 ? p->head_dim : p->value_dim;
    all[i]->dtype = (hyperattn_dtype)((dtypes >> 3 * i & 7) % (is_kv ? 4 : 3));
    if (same && i < 3) all[i]->dtype = HYPERATTN_BF16;
    tensor_make(all[i], in, i == 3);
  }
  bind_input(&p->query, &c->query);
  p->out.data = c->out.data, p->out.dtype = c->out.dtype, p->out.batch_stride = c->out.stride[0];
  p->out.head_stride = c->out.stride[1], p->out.row_stride = c->out.stride[2];
  if (one_in(in, 2))
    p->lse = (float *)malloc((size_t)(p->batch * p->n_heads * p->n_query) * sizeof(float) + 1);
  if (asks)
    p->query_error = (float *)malloc((size_t)(p->batch * p->n_heads * p->n_query) * sizeof(float) + 1);
  if (one_in(in, 4))
    p->report = (hyperattn_report *)malloc((size_t)(p->batch * p->n_heads) * sizeof *p->report + 1);
  take_fields(&c->fields, p, &c->key, &c->value, more);
  for (int i = 0; i < 5; i++) {
    if (i == 4 && (!p->mask.data || !p->n_key)) continue;
    c->runs &= !all[i]->huge;
    if (tensor_rows(&c->query) && tensor_rows(all[i]) && all[i]->valid < c->valid && c->valid)
      c->valid = all[i]->valid;
  }
  c->offset = (size_t)below(in, 64);
  uint64_t seed = take(in, 1), size = take(in, 1), n_specials = take(in, 1) % 8;
  for (int i = 0; i < 3 && c->runs; i++) {
    tensor_fill(all[i], seed + (uint64_t)i, (float[]){1.0f, 0.01f, 8.0f, 1e15f}[(size >> 2 * i & 3)], 0);
    if (n_specials < 4) continue;
    for (uint64_t k = 4; k < n_specials; k++) tensor_plant(all[i], in, 0);
  }
  if (c->runs) c->q = tensor_most(&c->query), c->k = tensor_most(&c->key), c->v = tensor_most(&c->value);
  /* valid is unknown then, since the new value may make a bad stride valid */
  if (one_in(in, 8)) spoil(c, in), c->valid = -1;
  if (one_in(more, 8)) c->runs &= spoil_fields(p, &c->fields, more), c->valid = -1;
  int shapes = is_valid(p, &c->params);
  if (c->valid) c->valid = shapes == 1 ? c->valid : shapes;
  CHECK(shapes < 0 || !hyperattn_workspace_size(p, &c->params, 1) == !shapes, "workspace_size, valid %d",
        shapes);
}

#define SHOW(x) fprintf(stderr, #x " %.9g, ", (double)(x))
static void show(const call *c) { /* for the reader of a crash */
  const hyperattn_problem *p = &c->problem;
  const hyperattn_params *a = &c->params;
  const tensor *all[] = {&c->query, &c->key, &c->value, &c->out, &c->fields.mask};
  SHOW(p->batch), SHOW(p->n_heads), SHOW(p->n_kv_heads), SHOW(p->n_query), SHOW(p->n_key),
      SHOW(p->head_dim);
  SHOW(p->value_dim), SHOW(p->causal), SHOW(p->scale), SHOW(p->lse != NULL), SHOW(p->report != NULL);
  SHOW(p->query_error != NULL);
  SHOW(p->softcap), SHOW(p->sliding_window), SHOW(p->sink != NULL), SHOW(p->mask_slope != NULL);
  for (int i = 0; i < (p->mask.data ? 5 : 4); i++) {
    SHOW(all[i]->dtype), SHOW(all[i]->stride[0]), SHOW(all[i]->stride[1]), SHOW(all[i]->stride[2]);
    if (all[i]->custom) SHOW(all[i]->custom);
    if (all[i]->page) SHOW(all[i]->page_rows), SHOW(all[i]->page_stride), SHOW(all[i]->page_batch_stride);
  }
  SHOW(a->method), SHOW(a->min_seq_len), SHOW(a->block_size), SHOW(a->sample_size), SHOW(a->lsh_bits);
  SHOW(a->query_group), SHOW(a->key_group), SHOW(a->order), SHOW(a->sampling), SHOW(a->sink_keys);
  SHOW(a->heavy_keys), SHOW(a->probe_queries), SHOW(a->window), SHOW(a->tolerance), SHOW(a->cap_epsilon);
  SHOW(a->cap_kappa), SHOW(a->seed), SHOW(a->isa), SHOW(c->q), SHOW(c->k), SHOW(c->v), SHOW(c->valid);
  fputc('\n', stderr);
}

/* ---- What must hold of a result ---- */

/* A row's scores in double precision, -inf where a key is hidden, and the error that each may have: it is a
   sum of head_dim rounded products. Returns 0; NaN where the row's mask makes it NaN, and infinity where
   a product with the mask is as large as a float can be. */
static double reference_scores(const call *c, int64_t row, double *score, double *error) {
  const hyperattn_problem *p = &c->problem;
  const tensor *mask = &c->fields.mask;
  int64_t b = row / p->n_query / p->n_heads, h = row / p->n_query % p->n_heads, i = row % p->n_query;
  double scale = p->scale != 0.0f ? (double)p->scale : 1.0 / sqrt((double)p->head_dim), special = 0.0;
  double cap = (double)p->softcap, slope = p->mask.data && p->mask_slope ? (double)p->mask_slope[h] : 1.0;
  const unsigned char *q = tensor_row(&c->query, b, h, i);
  for (int64_t j = 0; j < p->n_key; j++) {
    const unsigned char *k = tensor_row(&c->key, b, h / (p->n_heads / p->n_kv_heads), j);
    double s = 0.0, size = 0.0, bias = 0.0;
    score[j] = -INFINITY, error[j] = 0.0;
    if (!sees(c, b, h, i, j)) continue;
    if (p->mask.data) {
      double x = (double)load(tensor_row(mask, b, h, i), mask->dtype, j);
      bias = slope * x;
      if (isnan(bias) || bias >= 4e38) special = NAN;
      if (!(fabs(bias) < 1e38) && special == 0.0) special = INFINITY;
    }
    for (int64_t t = 0; t < p->head_dim; t++) {
      double x = (double)load(q, c->query.dtype, t) * (double)load(k, c->key.dtype, t) * scale;
      s += x, size += fabs(x);
    }
    score[j] = (cap > 0.0 ? cap * tanh(s / cap) : s) + bias;
    error[j] = (size + fabs(bias)) * (double)(p->head_dim + 8) * 0x1p-23 + cap * 0x1p-147;
  }
  return special;
}

/* Checks that every row is within the range of the values that it may see, and exact rows against double
   precision. The bounds: scores have the errors of reference_scores; weights have the error of exp and of
   rescaling; the kernels of BF16 round each weight by a relative 2^-8 at most, and divide by the sum of the
   rounded weights. */
static void check_numbers(const call *c, const result *r) {
  const hyperattn_problem *p = &c->problem;
  const hyperattn_params *a = &c->params;
  int exact = is_exact(c), is_f16 = c->out.dtype == HYPERATTN_F16;
  int bf16 = p->query.dtype == HYPERATTN_BF16 && p->key.dtype == HYPERATTN_BF16 &&
             p->value.dtype == HYPERATTN_BF16;
  int no_budget = !a->block_size && !a->sample_size && !a->sink_keys && !a->heavy_keys;
  if (a->method == HYPERATTN_SCAN) no_budget = 1; /* a sample may be empty */
  double scale = p->scale != 0.0f ? (double)p->scale : 1.0 / sqrt((double)p->head_dim);
  double most = c->q * c->k * fabs(scale) * (double)p->head_dim;
  double rounding = c->out.dtype == HYPERATTN_F32 ? 0.0 : is_f16 ? 0x1p-11 : 0x1p-8;
  double slack = 2e-5 + (double)p->n_key * 0x1p-22 + (bf16 ? 0x1p-8 : 0.0);
  if (!(most < 1e30 && c->v < 1e15) || a->cap_epsilon > 0.0f || a->cap_kappa > 0.0f) return;
  double *sum = (double *)malloc((size_t)(p->value_dim * 3 + p->n_key * 2) * sizeof *sum);
  double *low = sum + p->value_dim, *high = low + p->value_dim, *score = high + p->value_dim,
         *error = score + p->n_key;
  for (int64_t row = 0; row < p->batch * p->n_heads * p->n_query; row++) {
    int64_t b = row / p->n_query / p->n_heads, h = row / p->n_query % p->n_heads, i = row % p->n_query;
    int64_t kv = h / (p->n_heads / p->n_kv_heads), seen = 0;
    double sink = p->sink ? (double)p->sink[h] : -INFINITY, lse = r->lse ? (double)r->lse[row] : 0.0;
    double special = exact ? reference_scores(c, row, score, error) : 0.0;
    if (!(sink < INFINITY)) special = NAN;
    if (special == INFINITY) continue;
    double top = sink, total, delta = 0.0;
    for (int64_t j = 0; j < p->n_key && exact; j++) top = score[j] > top ? score[j] : top;
    total = sink == -INFINITY ? 0.0 : exp(sink - top);
    for (int64_t t = 0; t < p->value_dim; t++) sum[t] = 0.0, low[t] = INFINITY, high[t] = -INFINITY;
    for (int64_t j = 0; j < p->n_key; j++) {
      const unsigned char *v = tensor_row(&c->value, b, kv, j);
      double weight = exact ? exp(score[j] - top) : 0.0;
      if (!sees(c, b, h, i, j)) continue;
      if (exact && score[j] + error[j] > top - 100.0 && error[j] > delta) delta = error[j];
      seen++, total += weight;
      for (int64_t t = 0; t < p->value_dim; t++) {
        double x = (double)load(v, c->value.dtype, t);
        if (x < low[t]) low[t] = x;
        if (x > high[t]) high[t] = x;
        sum[t] += weight * x;
      }
    }
    double own = r->query_error ? (double)r->query_error[row] : 0.0;
    CHECK(own >= 0.0 && (own == 0.0 || !exact), "row %d: error %g", (int)row, own);
    if (r->lse) CHECK(isnan(lse) == isnan(special) && !(lse >= 1e35), "row %d: lse %g", (int)row, lse);
    if (r->lse && !seen && special == 0.0) CHECK(lse == sink, "row %d sees no key: lse %g", (int)row, lse);
    if (r->lse && seen && !no_budget) CHECK(lse != -INFINITY, "row %d: lse %g", (int)row, lse);
    if (r->lse && seen && exact && special == 0.0)
      CHECK(fabs(lse - top - log(total)) <= delta + slack + (fabs(top) + 1.0) * 0x1p-21,
            "row %d: lse %.9g, not %.9g", (int)row, lse, top + log(total));
    for (int64_t t = 0; t < p->value_dim; t++) {
      const unsigned char *at = r->out + (size_t)(row * p->value_dim) * (size_t)unit_bytes(c->out.dtype);
      double x = (double)load(at, c->out.dtype, t), size = fmax(fabs(low[t]), fabs(high[t]));
      if (!seen || isnan(special)) {
        CHECK(isnan(special) ? isnan(x) : x == 0.0, "row %d sees %d keys and gets %g", (int)row, (int)seen,
              x);
        continue;
      }
      if ((no_budget && !exact) || sink > -INFINITY)
        low[t] = fmin(low[t], 0.0), high[t] = fmax(high[t], 0.0);
      if (is_f16 && size * (1.0 + slack) >= 65519.0) continue; /* may round to infinity */
      double room = size * (slack + rounding) + (is_f16 ? 0x1p-25 : 1e-37);
      CHECK(x >= low[t] - room && x <= high[t] + room, "row %d, %d: %.9g outside %.9g .. %.9g", (int)row,
            (int)t, x, low[t], high[t]);
      if (exact && delta < 0.05)
        CHECK(fabs(x - sum[t] / total) <= room + 4.0 * delta * size, "row %d, %d: %.9g, not %.9g (+- %g)",
              (int)row, (int)t, x, sum[t] / total, room + 4.0 * delta * size);
    }
  }
  free(sum);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  bytes in = {data, data + size}, extra = split(&in);
  call c;
  if (!n_present) find_isas();
  make_call(&c, &in, &extra);
  if (getenv("FUZZ_SHOW")) show(&c);
  hyperattn_problem *p = &c.problem;
  hyperattn_params *a = &c.params;
  size_t bytes_1 = hyperattn_workspace_size(p, a, 1), bytes_3 = hyperattn_workspace_size(p, a, 3);
  CHECK(!bytes_3 || bytes_3 >= bytes_1, "more workers, less workspace");
  CHECK(!hyperattn_workspace_size(p, a, 0) && !hyperattn_workspace_size(p, a, -3), "no workers");
  CHECK(!bytes_1 == !hyperattn_phase_count(p, a) || !bytes_1, "%d phases", hyperattn_phase_count(p, a));
  if (bytes_1 && p->n_key < 1 << 20) {
    hyperattn_problem more = *p;
    more.n_key += below(&in, 300), more.n_query += below(&in, 300);
    size_t bytes_more = hyperattn_workspace_size(&more, a, 1);
    CHECK(!bytes_more || bytes_more >= bytes_1, "%zu bytes for more keys, %zu for fewer", bytes_more,
          bytes_1);
  }
  if (bytes_1 >= MAX_WORKSPACE) c.runs = 0, c.valid = -1;
  void *workspace = malloc(bytes_1 && bytes_1 < MAX_WORKSPACE ? bytes_1 : 1);
  hyperattn_status status = hyperattn_check(p, a, workspace, bytes_1, 1);
  CHECK(status == HYPERATTN_OK || (status < 0 && status > HYPERATTN_STATUS_LAST), "status %d", (int)status);
  CHECK(c.valid < 0 || (status == HYPERATTN_OK) == c.valid, "valid %d: %s", c.valid,
        hyperattn_status_string(status));
  if (status != HYPERATTN_OK) { /* then nothing may have been written */
    size_t n_lse = (size_t)(c.out.n[0] * c.out.n[1] * c.out.n[2]) * sizeof(float);
    if (p->lse) memset(p->lse, 0xff, n_lse);
    CHECK(hyperattn_forward(p, a, workspace, bytes_1) == status, "not the status of hyperattn_check");
    for (size_t i = 0; p->lse && i < n_lse; i++) CHECK(((unsigned char *)p->lse)[i] == 0xff, "lse written");
    for (size_t i = 0; i < c.out.size; i++) CHECK(c.out.block[i] == 0xff, "out written");
  } else if (c.runs && tensor_rows(&c.out)) {
    CHECK(hyperattn_forward(p, a, workspace, bytes_1 - 1) == HYPERATTN_ERROR_WORKSPACE_SIZE,
          "a byte too few");
    result first = run(&c, 1, 0xff);
    check_numbers(&c, &first);
    result other = run(&c, 3, 0);
    for (int64_t head = 0; head < p->batch * p->n_heads; head++)
      same_rows(&c, &first, head, &other, head, p->n_query, "three workers");
    same_report(first.report, other.report, p->batch * p->n_heads, "report by three workers");
    free_result(&other);
    check_slice(&c, &first, &in);
    check_contiguous(&c, &first);
    if (one_in(&extra, 4)) check_many(&c, &extra);
    if (is_exact(&c) || (p->causal && a->tolerance == 0.0f)) check_hidden(&c, &first, &in);
    free_result(&first);
  }
  free(workspace);
  free_call(&c);
  return 0;
}
