// What the benches that time attention share: a clock, data, and the error of a call against exact attention
// in double. hyperattn.h with its implementation stands before it.
#ifndef MEASURE_H
#define MEASURE_H

#include "activations.h"
#include "clock.h"
#include "elements.h"

#ifndef BENCH_DATA
#define BENCH_DATA "examples/data/l28h1"
#endif

// ---- Data ----

// n rows: the head of examples/data, repeated with a little noise; for a larger dim every row stands side by
// side as often as it fits, at the scale that leaves the scores as they are.
static inline float *repeat_rows(const char *which, int64_t n, int64_t dim) {
  int64_t rows;
  float *head = read_activations(BENCH_DATA, which, &rows), *x = allocate((size_t)(n * dim) * sizeof *x);
  float scale =
      which[0] == 'v' ? 1.0f : sqrtf((float)HEAD_DIM / (float)dim) * sqrtf(sqrtf((float)dim / HEAD_DIM));
  for (int64_t i = 0; i < n * dim; i++) {
    uint64_t r = hai_random(7, (uint64_t)which[0], 0, (uint64_t)i);
    float noise = ((float)(r >> 40) / 16777216.0f - 0.5f) * 0.1f;
    x[i] = (head[i / dim % rows * HEAD_DIM + i % dim % HEAD_DIM] + (i / dim < rows ? 0.0f : noise)) * scale;
  }
  free(head);
  return x;
}

// What rows of a dtype hold, by functions that are not the library's.
static inline uint16_t half_at(const unsigned char *at) {
  uint16_t half;
  memcpy(&half, at, sizeof half);
  return half;
}

static inline void widen_q8_0(const void *block, float *to, int64_t n) {
  const unsigned char *at = block;
  for (int64_t i = 0; i < n; i += 32, at += 34) {
    float d = half_to_float(half_at(at));
    for (int t = 0; t < 32; t++) to[i + t] = d * (float)(signed char)at[2 + t];
  }
}
static inline void elements_read(const void *from, int64_t n, hyperattn_dtype dtype, float *to) {
  const uint16_t *halves = (const uint16_t *)from;
  if (dtype == HYPERATTN_F32) memcpy(to, from, (size_t)n * sizeof *to);
  for (int64_t i = 0; i < n && dtype == HYPERATTN_F16; i++) to[i] = half_to_float(halves[i]);
  for (int64_t i = 0; i < n && dtype == HYPERATTN_BF16; i++) to[i] = bf16_to_float(halves[i]);
  if (dtype == HYPERATTN_Q8_0) widen_q8_0(from, to, n);
}

// ---- Errors ----

// What a problem's tensors hold, in order and in float32: [head][row][dim] each.
typedef struct numbers {
  const float *q, *k, *v;
} numbers;

// A sum over some rows: |out - exact|^2 and |exact|^2.
typedef struct squares {
  double difference, exact;
} squares;

// Keys *first .. *last that the query at a position sees, as api.h says.
static inline void see(const hyperattn_problem *p, int64_t row, int64_t *first, int64_t *last) {
  int64_t position = row + p->n_key - p->n_query, window = p->sliding_window;
  *first = window && position - window + 1 > 0 ? position - window + 1 : 0;
  *last = p->n_key - 1;
  if (window && position + window - 1 < *last) *last = position + window - 1;
  if (p->causal && position < *last) *last = position;
}

static inline double mask_at(const hyperattn_problem *p, int64_t head, int64_t row, int64_t key) {
  const hyperattn_input *m = &p->mask;
  ptrdiff_t at = (ptrdiff_t)head * m->head_stride + (ptrdiff_t)row * m->row_stride + (ptrdiff_t)key;
  double slope = p->mask_slope ? (double)p->mask_slope[head] : 1;
  if (!m->data) return 0;
  return slope * (double)(m->dtype == HYPERATTN_F32   ? ((const float *)m->data)[at]
                          : m->dtype == HYPERATTN_F16 ? half_to_float(((const uint16_t *)m->data)[at])
                                                      : bf16_to_float(((const uint16_t *)m->data)[at]));
}

static inline double product(const float *x, const float *y, int64_t dim) {
  double sum[4] = {0};
  for (int64_t t = 0; t + 4 <= dim; t += 4)
    for (int u = 0; u < 4; u++) sum[u] += (double)x[t + u] * (double)y[t + u];
  return sum[0] + sum[1] + sum[2] + sum[3];
}

// Scores of keys first .. last for one query, to s[0 ..]. Returns the highest.
static inline double scores_of(const hyperattn_problem *p, numbers x, int64_t head, int64_t row,
                               int64_t first, int64_t last, double *s) {
  int64_t dim = p->head_dim, kv_head = head / (p->n_heads / p->n_kv_heads);
  const float *q = x.q + (head * p->n_query + row) * dim, *k = x.k + kv_head * p->n_key * dim;
  double high = p->sink ? (double)p->sink[head] : -(double)INFINITY, cap = (double)p->softcap;
  for (int64_t j = first; j <= last; j++) {
    double score = product(q, k + j * dim, dim) / sqrt((double)dim);
    if (cap > 0) score = cap * tanh(score / cap);
    s[j - first] = score + mask_at(p, head, row, j);
    if (s[j - first] > high) high = s[j - first];
  }
  return high;
}

// Adds up `count` rows spread over heads and queries; out is float32. head_dim is a multiple of 4, the scale
// is the default, and the batch is 1.
static inline void add_squares(squares *to, const hyperattn_problem *p, numbers x, int64_t count) {
  int64_t d = p->value_dim, rows = p->n_heads * p->n_query, first, last;
  double *s = allocate((size_t)p->n_key * sizeof *s), *o = allocate((size_t)d * sizeof *o);
  if (count > rows) count = rows;
  for (int64_t r = 0; r < count; r++) {
    int64_t at = (r * 2 + 1) * rows / (2 * count), head = at / p->n_query, row = at % p->n_query;
    const float *v = x.v + head / (p->n_heads / p->n_kv_heads) * p->n_key * d;
    const float *out = (const float *)p->out.data + (ptrdiff_t)head * p->out.head_stride +
                       (ptrdiff_t)row * p->out.row_stride;
    see(p, row, &first, &last);
    double high = scores_of(p, x, head, row, first, last, s);
    double sum = p->sink ? exp((double)p->sink[head] - high) : 0;
    memset(o, 0, (size_t)d * sizeof *o);
    for (int64_t j = first; j <= last; j++) {
      double w = exp(s[j - first] - high);
      sum += w;
      if (w > 1e-12)
        for (int64_t t = 0; t < d; t++) o[t] += w * (double)v[j * d + t];
    }
    for (int64_t t = 0; t < d; t++) {
      double e = o[t] / sum - (double)out[t];
      to->difference += e * e;
      to->exact += o[t] / sum * (o[t] / sum);
    }
  }
  free(s), free(o);
}

// |out - exact| / |exact| over 256 rows.
static inline double error_of(const hyperattn_problem *p, numbers x) {
  squares sum = {0, 0};
  add_squares(&sum, p, x, 256);
  return sqrt(sum.difference / sum.exact);
}

// ---- Options ----

// Whether the item is in a comma-separated list, whole: "f16" is not in "bf16".
static inline int is_listed(const char *item, const char *list) {
  size_t size = strlen(item);
  for (; *list; list += strcspn(list, ","), list += *list == ',')
    if (strcspn(list, ",") == size && !strncmp(list, item, size)) return 1;
  return 0;
}

// The next number of a comma-separated list, which moves on; 0 at its end.
static inline int next_number(const char **list, int64_t *n) {
  char *end;
  if (!**list) return 0;
  *n = strtoll(*list, &end, 10);
  *list = *end == ',' ? end + 1 : end;
  return end != *list || *n > 0;
}

// The ISA of a name, AUTO if there is none; exits where this machine has no such kernel.
static inline hyperattn_isa isa_named(const char *name) {
  hyperattn_isa found = HYPERATTN_ISA_AUTO;
  for (int isa = HYPERATTN_ISA_AUTO; isa <= HYPERATTN_ISA_LAST; isa++)
    if (!strcmp(hyperattn_isa_name((hyperattn_isa)isa), name)) found = (hyperattn_isa)isa;
  if (!hai_kernel_of(found)) fprintf(stderr, "this machine has no such kernel\n"), exit(1);
  return found;
}

#endif
