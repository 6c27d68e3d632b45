#define HYPERATTN_IMPLEMENTATION
#include "attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grow.h"

// ---- The operation's parts ----

enum { QUERY, KEY, VALUE, MASK, SINKS, N_INPUTS };
// The last two change no result: sums are float32 anyway, and how many keys a row sees at most is a hint.
enum { SCALE, MAX_BIAS, SOFTCAP, PRECISION, MOST_KEYS, N_PARAMETERS };
enum { MOST_DIMS = 576 };  // of the library: the keys of multi-head latent attention

static float parameter(const struct ggml_tensor *op, int which) {
  float number;
  memcpy(&number, &op->op_params[which], sizeof number);
  return number;
}

static hyperattn_dtype dtype_of(enum ggml_type type) {
  switch (type) {
    case GGML_TYPE_F32: return HYPERATTN_F32;
    case GGML_TYPE_F16: return HYPERATTN_F16;
    case GGML_TYPE_BF16: return HYPERATTN_BF16;
    case GGML_TYPE_Q8_0: return HYPERATTN_Q8_0;
    default: return HYPERATTN_CUSTOM;
  }
}

// ---- What is refused ----

static int has_whole_blocks(const host *h, const struct ggml_tensor *t) {
  size_t block = h->ggml_get_type_traits(t->type)->type_size;
  return t->nb[0] == block && t->nb[1] % block == 0 && t->nb[2] % block == 0 && t->nb[3] % block == 0;
}

static refusal refusal_of_cache(const host *h, const struct ggml_tensor *op, const struct ggml_tensor *t) {
  const struct ggml_tensor *q = op->src[QUERY];
  if (dtype_of(t->type) == HYPERATTN_CUSTOM && !h->ggml_get_type_traits(t->type)->to_float)
    return REFUSED_FORMAT;
  if (!has_whole_blocks(h, t)) return REFUSED_ROWS;
  if (t->ne[0] > MOST_DIMS) return REFUSED_DIMS;
  if (t->ne[2] != op->src[KEY]->ne[2] || q->ne[2] % t->ne[2]) return REFUSED_HEADS;
  if (t->ne[1] != op->src[KEY]->ne[1]) return REFUSED_ROWS;
  return t->ne[3] == q->ne[3] ? REFUSED_TAKEN : REFUSED_BATCH;
}

static refusal refusal_of_mask(const struct ggml_tensor *q, const struct ggml_tensor *k,
                               const struct ggml_tensor *m) {
  int fits = m->type == GGML_TYPE_F16 && m->nb[0] == 2 && m->nb[1] % 2 == 0 && m->nb[2] % 2 == 0 &&
             m->nb[3] % 2 == 0 && m->ne[0] == k->ne[1] && m->ne[1] >= q->ne[1] &&
             (m->ne[2] == 1 || m->ne[2] == q->ne[2]) && (m->ne[3] == 1 || m->ne[3] == q->ne[3]);
  return fits ? REFUSED_TAKEN : REFUSED_MASK;
}

static int has_unknown(const struct ggml_tensor *op) {
  for (int i = N_INPUTS; i < GGML_MAX_SRC; i++)
    if (op->src[i]) return 1;
  for (size_t i = N_PARAMETERS; i < sizeof op->op_params / sizeof *op->op_params; i++)
    if (op->op_params[i]) return 1;
  if (!op->src[QUERY] || !op->src[KEY] || !op->src[VALUE]) return 1;
  float scale = parameter(op, SCALE), softcap = parameter(op, SOFTCAP);
  return !isfinite(scale) || scale == 0 || !isfinite(softcap) || softcap < 0;
}

// An operation that goes to another backend costs ggml two more graphs a layer, some 10 microseconds, in which it does
// LEAST multiply-adds by itself; docs/llamacpp.md has the measurement. SHORT take one thread here some 150 microseconds,
// twice what another thread takes to be made and joined.
enum { LEAST_MULTIPLY_ADDS = 1 << 19, SHORT_MULTIPLY_ADDS = 1 << 22 };

static double multiply_adds(const struct ggml_tensor *op) {
  const struct ggml_tensor *q = op->src[QUERY], *v = op->src[VALUE];
  return (double)q->ne[1] * (double)q->ne[2] * (double)q->ne[3] * (double)v->ne[1] *
         (double)(q->ne[0] + v->ne[0]);
}

refusal attention_refusal(const host *h, const struct ggml_tensor *op, int forced) {
  if (has_unknown(op)) return REFUSED_PARAMETER;
  const struct ggml_tensor *q = op->src[QUERY], *k = op->src[KEY], *mask = op->src[MASK],
                           *sinks = op->src[SINKS];
  if (q->type != GGML_TYPE_F32 || !has_whole_blocks(h, q)) return REFUSED_QUERY;
  if (op->type != GGML_TYPE_F32 || !has_whole_blocks(h, op) || op->ne[1] != q->ne[2] ||
      op->ne[2] != q->ne[1])
    return REFUSED_RESULT;
  refusal why = refusal_of_cache(h, op, k);
  if (!why) why = refusal_of_cache(h, op, op->src[VALUE]);
  if (!why && mask) why = refusal_of_mask(q, k, mask);
  if (!why && sinks && (sinks->type != GGML_TYPE_F32 || sinks->nb[0] != 4 || sinks->ne[0] != q->ne[2]))
    why = REFUSED_SINKS;
  if (!why && !forced && multiply_adds(op) < LEAST_MULTIPLY_ADDS) why = REFUSED_SLOWER;
  return why;
}

// ---- Problems ----

static hyperattn_input input_of(const host *h, const struct ggml_tensor *t) {
  const struct ggml_type_traits *traits = h->ggml_get_type_traits(t->type);
  hyperattn_input input = {.data = t->data, .dtype = dtype_of(t->type)};
  ptrdiff_t block = (ptrdiff_t)traits->type_size, elements = (ptrdiff_t)traits->blck_size;
  if (input.dtype == HYPERATTN_CUSTOM) input.widen = traits->to_float, block = elements = 1;
  input.row_stride = (ptrdiff_t)t->nb[1] / block * elements;
  input.head_stride = (ptrdiff_t)t->nb[2] / block * elements;
  input.batch_stride = (ptrdiff_t)t->nb[3] / block * elements;
  return input;
}

// Moves an input's data on by whole sequences, and by rows or cells.
static void advance(hyperattn_input *input, const struct ggml_tensor *t, int64_t sequence, int64_t row) {
  input->data = (const char *)input->data + (size_t)sequence * t->nb[3] + (size_t)row * t->nb[1];
}

// The whole operation without its mask.
static hyperattn_problem problem_of(const attention *a, const struct ggml_tensor *op) {
  const struct ggml_tensor *q = op->src[QUERY], *k = op->src[KEY], *v = op->src[VALUE];
  const size_t element = sizeof(float);
  hyperattn_problem p = {
      .batch = q->ne[3], .n_heads = q->ne[2], .n_kv_heads = k->ne[2], .n_query = q->ne[1]};
  p.n_key = k->ne[1], p.head_dim = q->ne[0], p.value_dim = v->ne[0];
  p.scale = parameter(op, SCALE), p.softcap = parameter(op, SOFTCAP);
  p.query = input_of(a->host, q), p.key = input_of(a->host, k), p.value = input_of(a->host, v);
  p.out.data = op->data;
  p.out.head_stride = (ptrdiff_t)(op->nb[1] / element), p.out.row_stride = (ptrdiff_t)(op->nb[2] / element);
  p.out.batch_stride = (ptrdiff_t)(op->nb[3] / element);
  if (op->src[SINKS]) p.sink = op->src[SINKS]->data;
  return p;
}

// Its mask as it is. Dimensions of size 1 are repeated.
static void put_mask(hyperattn_problem *p, const struct ggml_tensor *op, const float *slope) {
  const struct ggml_tensor *mask = op->src[MASK];
  p->mask = (hyperattn_input){
      .data = mask->data, .dtype = HYPERATTN_F16, .row_stride = (ptrdiff_t)(mask->nb[1] / 2)};
  p->mask.head_stride = mask->ne[2] > 1 ? (ptrdiff_t)(mask->nb[2] / 2) : 0;
  p->mask.batch_stride = mask->ne[3] > 1 ? (ptrdiff_t)(mask->nb[3] / 2) : 0;
  p->mask_slope = slope;
}

static void put_cells(hyperattn_input *input, const mask_run *run) {
  if (!run->cells) return;
  input->page = run->cells, input->page_rows = 1, input->page_stride = input->row_stride;
}

// One sequence's run of rows in place of its mask.
static void put_run(hyperattn_problem *p, const struct ggml_tensor *op, int64_t sequence,
                    const mask_run *run) {
  int64_t first_cell = run->cells ? 0 : run->first_cell;
  p->batch = 1;
  p->n_query = run->n_row, p->n_key = run->n_cell;
  p->causal = run->grows, p->sliding_window = run->window;
  advance(&p->query, op->src[QUERY], sequence, run->first_row);
  advance(&p->key, op->src[KEY], sequence, first_cell);
  advance(&p->value, op->src[VALUE], sequence, first_cell);
  put_cells(&p->key, run), put_cells(&p->value, run);
  p->out.data = (char *)p->out.data + (size_t)sequence * op->nb[3] + (size_t)run->first_row * op->nb[2];
}

// One sequence with its mask as it is.
static void put_sequence(hyperattn_problem *p, const struct ggml_tensor *op, int64_t sequence,
                         const float *slope) {
  const mask_run all = {.n_row = p->n_query, .n_cell = p->n_key};
  put_run(p, op, sequence, &all);
  put_mask(p, op, slope);
  p->mask.data =
      (const char *)p->mask.data + (op->src[MASK]->ne[3] > 1 ? (size_t)sequence * op->src[MASK]->nb[3] : 0);
}

// ---- The mask, read once a graph ----

static void forget(mask_memo *m) {
  for (int64_t i = 0; i < m->n_sequence; i++) mask_free(&m->runs[i]);
  free(m->runs), free(m->is_readable), free(m->ends);
  *m = (mask_memo){0};
}

// Row 0 and row n_query - 1 of every sequence, compared with or copied to what was kept of them.
static int each_end(const mask_memo *m, const struct ggml_tensor *mask, int copies) {
  size_t bytes = (size_t)m->n_cell * sizeof *m->ends;
  for (int64_t i = 0; i < 2 * m->n_sequence; i++) {
    size_t row = i % 2 ? (size_t)(m->n_query - 1) : 0;
    const char *from = (const char *)mask->data + (size_t)(i / 2) * mask->nb[3] + row * mask->nb[1];
    uint16_t *kept = m->ends + i * m->n_cell;
    if (copies)
      memcpy(kept, from, bytes);
    else if (memcmp(kept, from, bytes))
      return 0;
  }
  return 1;
}

// The cache whose rows an operation's keys are: a tensor that no operation of the graph makes. NULL: they are computed.
static const void *cache_of_keys(const attention *a, const struct ggml_tensor *op) {
  const struct ggml_tensor *root = op->src[KEY]->view_src;
  return root && (int)root->op == a->host->operation.none ? root->data : NULL;
}

// The same mask in the same graph: neither this cache has come before nor the one that came first, which begins a graph
// also where later layers share a cache; and rows at the ends are what they were. Where keys are computed within the graph,
// nothing tells graphs apart.
static int still_holds(mask_memo *m, const struct ggml_tensor *op, const void *cache) {
  const struct ggml_tensor *mask = op->src[MASK];
  if (!m->runs || m->tensor != mask || m->data != mask->data || m->stride != mask->nb[1]) return 0;
  if (m->n_query != op->src[QUERY]->ne[1] || m->n_cell != mask->ne[0] || m->n_sequence != mask->ne[3])
    return 0;
  if (!cache || cache == m->first_cache || m->n_cache == ATTENTION_CACHES) return 0;
  for (int i = 0; i < m->n_cache; i++)
    if (m->cache[i] == cache) return 0;
  if (!each_end(m, mask, 0)) return 0;
  m->cache[m->n_cache++] = cache;
  return 1;
}

static int read_sequences(attention *a, mask_memo *m, const struct ggml_tensor *op, const void *cache) {
  const struct ggml_tensor *mask = op->src[MASK];
  const void *first_cache = m->tensor == mask && m->first_cache ? m->first_cache : cache;
  forget(m);
  m->first_cache = first_cache;
  m->tensor = mask, m->data = mask->data, m->stride = mask->nb[1];
  m->n_query = op->src[QUERY]->ne[1], m->n_cell = mask->ne[0];
  m->runs = calloc((size_t)mask->ne[3], sizeof *m->runs);
  m->is_readable = calloc((size_t)mask->ne[3], sizeof *m->is_readable);
  m->ends = malloc((size_t)(2 * mask->ne[3] * m->n_cell) * sizeof *m->ends);
  if (!m->runs || !m->is_readable || !m->ends) return forget(m), 0;
  m->n_sequence = mask->ne[3];
  if (cache) m->cache[m->n_cache++] = cache;
  each_end(m, mask, 1);
  for (int64_t i = 0; i < m->n_sequence; i++) {
    const char *data = (const char *)mask->data + (size_t)i * mask->nb[3];
    m->is_readable[i] = mask_read(&m->runs[i], data, m->n_query, m->n_cell, mask->nb[1]);
  }
  a->count[COUNT_MASKS]++;
  return 1;
}

// What there is to know of a mask that all heads share; NULL where it cannot be read.
static const mask_memo *read_mask(attention *a, const struct ggml_tensor *op) {
  mask_memo *found = NULL;
  for (int i = 0; i < ATTENTION_MASKS && !found; i++)
    if (a->memo[i].tensor == op->src[MASK]) found = &a->memo[i];
  if (!found) found = &a->memo[a->next_memo++ % ATTENTION_MASKS];
  const void *cache = cache_of_keys(a, op);
  if (!still_holds(found, op, cache) && !read_sequences(a, found, op, cache)) found = NULL;
  return found;
}

// ---- Of an operation, its problems ----

// ALiBi's slope of each head, as ggml has it: 2^(-max_bias (h + 1) / n) for the first n heads, where n is the largest
// power of two; for the others, the odd ones of twice as many.
static const float *slopes_of(attention *a, const struct ggml_tensor *op) {
  float max_bias = parameter(op, MAX_BIAS);
  int64_t n_heads = op->src[QUERY]->ne[2], n = 1;
  if (max_bias <= 0) return NULL;
  while (2 * n <= n_heads) n *= 2;
  for (int64_t h = 0; h < n_heads; h++)
    a->slope[h] = h < n ? powf(powf(2, -max_bias / (float)n), (float)(h + 1))
                        : powf(powf(2, -max_bias / 2 / (float)n), (float)(2 * (h - n) + 1));
  return a->slope;
}

static hyperattn_problem *next_problem(attention *a, const struct ggml_tensor *op) {
  hyperattn_problem *grown = grow(a->problem, &a->problem_room, a->n_problem + 1, sizeof *grown);
  if (!grown) return NULL;
  a->problem = grown;
  a->problem[a->n_problem] = problem_of(a, op);
  return &a->problem[a->n_problem++];
}

static attention_count kind_of(const mask_run *run) {
  if (run->n_row == 1) return COUNT_SINGLE;
  if (run->window) return COUNT_WINDOWED;
  return run->grows ? COUNT_CAUSAL : COUNT_ALIKE;
}

static int add_sequence(attention *a, const struct ggml_tensor *op, const mask_memo *memo, int64_t sequence,
                        const float *slope) {
  int64_t slice = sequence % memo->n_sequence;
  if (!memo->is_readable[slice]) {
    hyperattn_problem *p = next_problem(a, op);
    if (p) put_sequence(p, op, sequence, slope), a->count[COUNT_MASKED]++;
    return p != NULL;
  }
  const mask_runs *runs = &memo->runs[slice];
  a->count[COUNT_SEVERAL] += runs->n_run > 1;
  for (int64_t i = 0; i < runs->n_run; i++) {
    hyperattn_problem *p = next_problem(a, op);
    if (!p) return 0;
    put_run(p, op, sequence, &runs->run[i]);
    a->count[kind_of(&runs->run[i])]++;
    a->count[COUNT_GATHERED] += runs->run[i].cells != NULL;
  }
  return 1;
}

static int add_problems(attention *a, const struct ggml_tensor *op) {
  const struct ggml_tensor *mask = op->src[MASK];
  float *grown = grow(a->slope, &a->slope_room, op->src[QUERY]->ne[2], sizeof *grown);
  if (!grown) return 0;
  a->slope = grown;
  a->n_problem = 0;
  const float *slope = slopes_of(a, op);
  const mask_memo *memo = mask && mask->ne[2] == 1 ? read_mask(a, op) : NULL;
  if (!memo) {
    hyperattn_problem *p = next_problem(a, op);
    if (p && mask) put_mask(p, op, slope);
    a->count[COUNT_MASKED] += mask != NULL;
    return p != NULL;
  }
  for (int64_t i = 0; i < op->src[QUERY]->ne[3]; i++)
    if (!add_sequence(a, op, memo, i, slope)) return 0;
  return 1;
}

// ---- Their run ----

static int64_t n_task_of_one(const void *work, int phase) {
  const attention *a = work;
  return hyperattn_phase_tasks(a->problem, &a->settings->params, phase);
}
static void run_of_one(const void *work, int phase, int64_t task, int worker) {
  const attention *a = work;
  hyperattn_run_task(a->problem, &a->settings->params, a->workspace, phase, task, worker);
}
static int64_t n_task_of_many(const void *work, int phase) {
  const attention *a = work;
  return hyperattn_phase_tasks_many(a->problem, a->n_problem, &a->settings->params, phase);
}
static void run_of_many(const void *work, int phase, int64_t task, int worker) {
  const attention *a = work;
  hyperattn_run_task_many(a->problem, a->n_problem, &a->settings->params, a->workspace, phase, task,
                          worker);
}

static int reserve_workspace(attention *a, size_t size) {
  if (size <= a->workspace_size) return 1;
  free(a->workspace);
  a->workspace = malloc(size);
  a->workspace_size = a->workspace ? size : 0;
  return a->workspace != NULL;
}

static const char *run_problems(attention *a, int is_short) {
  const hyperattn_params *params = &a->settings->params;
  int n = a->n_problem, n_workers = a->crew.n_threads;
  hyperattn_problem *p = a->problem;
  size_t size = n == 1 ? hyperattn_workspace_size(p, params, n_workers)
                       : hyperattn_workspace_size_many(p, n, params, n_workers);
  if (size && !reserve_workspace(a, size)) return "no memory for a workspace";
  hyperattn_status status =
      n == 1 ? hyperattn_check(p, params, a->workspace, a->workspace_size, n_workers)
             : hyperattn_check_many(p, n, params, a->workspace, a->workspace_size, n_workers, NULL);
  if (status) return hyperattn_status_string(status);
  crew_work work = {.work = a, .is_short = is_short};
  if (n == 1)
    work.n_phase = hyperattn_phase_count(p, params), work.n_task = n_task_of_one, work.run = run_of_one;
  else
    work.n_phase = hyperattn_phase_count_many(p, n, params), work.n_task = n_task_of_many,
    work.run = run_of_many;
  return crew_run(&a->crew, &work) ? NULL : "ggml's CPU backend cannot run a node";
}

const char *attention_run(attention *a, const struct ggml_tensor *op) {
  int64_t begin = a->host->ggml_time_us();
  int is_short = multiply_adds(op) < SHORT_MULTIPLY_ADDS;
  const char *why = add_problems(a, op) ? run_problems(a, is_short) : "no memory for problems";
  a->count[COUNT_OPERATIONS]++;
  a->microseconds = a->host->ggml_time_us() - begin;
  return why;
}

void attention_open(attention *a, const host *h, const settings *s) {
  *a = (attention){.host = h, .settings = s};
  crew_open(&a->crew, h);
}

void attention_close(attention *a) {
  for (int i = 0; i < ATTENTION_MASKS; i++) forget(&a->memo[i]);
  crew_close(&a->crew);
  free(a->problem), free(a->slope), free(a->workspace);
}
