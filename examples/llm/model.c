#define HYPERATTN_IMPLEMENTATION
#include "model.h"

#include "dequant.h"
#include "matmul.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// SLAB is the most rows that one task takes through the products before or after attention; the BLAS packs
// the weights once per slab. STEP_COLUMNS is the number of columns of a task of a product of one row. LANES
// is the number of partial results of a reduction, which compilers keep in vector registers.
enum { SLAB = 1024, LANES = 16, MODEL_MAX_HEAD_DIM = 576, STEP_COLUMNS = 64 };

double seconds_now(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- Loading: what the header says ----------------------------------------------------------------

// Keys that this program does not follow: each is accepted with the one value by which it changes nothing.
static const struct {
  const char *key;
  double value;
} neutral[] = {
    {"general.quantization_version", 2},  // the layout of blocks that dequant.c reads
    {"llama.attention.causal", 1},
    {"llama.attention.clamp_kqv", 0},
    {"llama.attention.max_alibi_bias", 0},
    {"llama.attention.sliding_window", 0},
    {"llama.attn_logit_softcapping", 0},
    {"llama.embedding_scale", 1},
    {"llama.expert_count", 0},
    {"llama.expert_shared_count", 0},
    {"llama.expert_used_count", 0},
    {"llama.final_logit_softcapping", 0},
    {"llama.logit_scale", 1},
    {"llama.pooling_type", 0},
    {"llama.residual_scale", 1},
    {"llama.rope.scale_linear", 1},
    {"llama.rope.scaling.attn_factor", 1},
    {"llama.use_parallel_residual", 0},
};

// Keys that are harmless with any value: both belong to kinds of scaling that read_rotation refuses.
static const char *const harmless[] = {
    "llama.rope.scaling.finetuned",
    "llama.rope.scaling.original_context_length",
};

static int read_size(const gguf *file, const char *key, int64_t most, int64_t *value, llm_error *error) {
  return gguf_has(file, key, error) && gguf_integer(file, key, 1, most, value, error);
}

static int read_heads(model *m, const gguf *file, llm_error *error) {
  static const char key_length[] = "llama.attention.key_length",
                    value_length[] = "llama.attention.value_length";
  m->n_kv_heads = m->n_heads, m->head_dim = m->dim / m->n_heads;
  if (!gguf_integer(file, "llama.attention.head_count_kv", 1, m->n_heads, &m->n_kv_heads, error) ||
      !gguf_integer(file, key_length, 1, MODEL_MAX_HEAD_DIM, &m->head_dim, error))
    return 0;
  if (m->n_heads % m->n_kv_heads)
    return llm_fail(error, "llama.attention.head_count_kv is %lld, which does not divide %lld heads",
                    (long long)m->n_kv_heads, (long long)m->n_heads);
  if (!gguf_find(file, key_length) && (m->dim % m->n_heads || m->head_dim > MODEL_MAX_HEAD_DIM))
    return llm_fail(error, "llama.attention.head_count is %lld, which does not fit %lld dimensions",
                    (long long)m->n_heads, (long long)m->dim);
  int64_t values = m->head_dim;
  return gguf_integer(file, value_length, m->head_dim, m->head_dim, &values, error);
}

static int read_rotation(model *m, const gguf *file, llm_error *error) {
  static const char factor[] = "llama.rope.scaling.factor", type[] = "llama.rope.scaling.type";
  gguf_string scaling = {"", 0};
  m->rope_dims = m->head_dim, m->rope_base = 10000, m->rope_scale = 1;
  if (!gguf_integer(file, "llama.rope.dimension_count", 2, m->head_dim, &m->rope_dims, error) ||
      !gguf_number(file, "llama.rope.freq_base", 2, 1e12, &m->rope_base, error) ||
      !gguf_text(file, type, &scaling, error) ||
      !gguf_number(file, factor, 1e-3, 1e6, &m->rope_scale, error))
    return 0;
  if (m->rope_dims % 2)
    return llm_fail(error, "llama.rope.dimension_count, or without it the size of a head, is %lld: odd",
                    (long long)m->rope_dims);
  if (gguf_equal(scaling, "linear")) return gguf_has(file, factor, error);
  if (gguf_find(file, type) && !gguf_equal(scaling, "none"))
    return llm_fail(error, "%s is '%.*s'; only none and linear are understood", type, gguf_shown(scaling),
                    scaling.data);
  if (!gguf_find(file, type) && m->rope_scale != 1)
    return llm_fail(error, "%s is %g and %s, which says of what, is missing", factor, m->rope_scale, type);
  m->rope_scale = 1;
  return 1;
}

int model_is_known(const gguf *file, llm_error *error) {
  gguf_string architecture = {"", 0}, type = {"model", 5};
  int64_t parts = 1;
  if (!gguf_text(file, "general.architecture", &architecture, error) ||
      !gguf_text(file, "general.type", &type, error))
    return 0;
  if (!gguf_equal(architecture, "llama"))
    return llm_fail(error, "general.architecture is '%.*s'; only llama is understood",
                    gguf_shown(architecture), architecture.data);
  if (!gguf_equal(type, "model"))
    return llm_fail(error, "general.type is '%.*s', not a model", gguf_shown(type), type.data);
  return gguf_integer(file, "split.count", 0, 1, &parts, error) &&
         gguf_keys_read(file, "adapter.", error) && gguf_keys_read(file, "general.tensor_extra.", error);
}

static int read_header(model *m, const gguf *file, llm_error *error) {
  static const char epsilon[] = "llama.attention.layer_norm_rms_epsilon",
                    layout[] = "llama.tensor_data_layout";
  double norm_epsilon;
  gguf_string rows = {"", 0};
  if (!model_is_known(file, error) || !read_size(file, "llama.block_count", 1024, &m->n_layers, error) ||
      !read_size(file, "llama.embedding_length", 1 << 16, &m->dim, error) ||
      !read_size(file, "llama.feed_forward_length", 1 << 20, &m->hidden, error) ||
      !read_size(file, "llama.attention.head_count", 1 << 12, &m->n_heads, error) ||
      !read_size(file, "llama.context_length", 1 << 30, &m->trained_context, error) ||
      !read_heads(m, file, error) || !read_rotation(m, file, error) || !gguf_has(file, epsilon, error) ||
      !gguf_number(file, epsilon, 1e-30, 1e-2, &norm_epsilon, error) ||
      !gguf_text(file, layout, &rows, error))
    return 0;
  m->norm_epsilon = (float)norm_epsilon;
  // If the order of a head's rows is named, it must be the order that rotate() expects.
  if (gguf_find(file, layout) && !gguf_equal(rows, "Meta AI original pth"))
    return llm_fail(error, "%s is '%.*s', which is not understood", layout, gguf_shown(rows), rows.data);

  const gguf_tensor *embedding = gguf_find_tensor(file, "token_embd.weight");
  const gguf_value *tokens = gguf_find(file, "tokenizer.ggml.tokens");
  if (!embedding) return llm_fail(error, "tensor 'token_embd.weight' is missing");
  m->n_vocab = embedding->shape[1];
  if (tokens && tokens->count != (uint64_t)m->n_vocab)
    return llm_fail(error, "tokenizer.ggml.tokens has %llu tokens, token_embd.weight rows for %lld",
                    (unsigned long long)tokens->count, (long long)m->n_vocab);
  if (!gguf_integer(file, "llama.vocab_size", m->n_vocab, m->n_vocab, &m->n_vocab, error)) return 0;

  for (size_t i = 0; i < sizeof neutral / sizeof *neutral; i++)
    if (!gguf_is_only(file, neutral[i].key, neutral[i].value, error)) return 0;
  gguf_pass_over(file, harmless, sizeof harmless / sizeof *harmless);
  return gguf_keys_read(file, "llama.", error);
}

// ---- Loading: tensors -----------------------------------------------------------------------------

typedef struct loader {
  const gguf *file;
  llm_error *error;
  int only_checks;  // checks names, shapes and types, and reads no numbers
} loader;

// Reads the tensor `name`, of shape [rows][columns], into `to`.
static int read_into(const loader *l, const char *name, int64_t rows, int64_t columns, float *to) {
  const gguf_tensor *tensor = gguf_find_tensor(l->file, name);
  if (!tensor) return llm_fail(l->error, "tensor '%s' is missing", name);
  if (tensor->shape[0] != columns || tensor->shape[1] != rows || tensor->shape[2] * tensor->shape[3] != 1)
    return llm_fail(l->error, "tensor '%s' is not %lld x %lld", name, (long long)columns, (long long)rows);
  const dequant_format *format = dequant_find(tensor->type);
  if (!format)
    return llm_fail(l->error, "tensor '%s' is of type %u, which is not read", name, (unsigned)tensor->type);
  if (l->only_checks) return 1;
  dequant(format, tensor->data, rows * columns / format->elements, to);
  int is_finite = 1;
  for (int64_t i = 0; i < rows * columns; i++) is_finite &= fabsf(to[i]) <= FLT_MAX;
  return is_finite ? 1 : llm_fail(l->error, "tensor '%s' holds infinities or no numbers", name);
}

// The tensors "<prefix><name>.weight", stored one below the other; rows 0 ends the list.
typedef struct part {
  const char *name;
  int64_t rows;
} part;

static int read_parts(const loader *l, const char *prefix, const part *parts, int64_t columns, float **to) {
  int64_t rows = 0;
  for (const part *p = parts; p->rows; p++) rows += p->rows;
  float *at = NULL;
  if (!l->only_checks && !(at = *to = malloc((size_t)(rows * columns) * sizeof *at)))
    return llm_fail(l->error, "out of memory");
  for (const part *p = parts; p->rows; p++) {
    char name[64];
    snprintf(name, sizeof name, "%s%s.weight", prefix, p->name);
    if (!read_into(l, name, p->rows, columns, at)) return 0;
    if (at) at += p->rows * columns;
  }
  return 1;
}

static int read_tensor(const loader *l, const char *prefix, const char *name, int64_t rows, int64_t columns,
                       float **to) {
  return read_parts(l, prefix, (part[2]){{name, rows}, {NULL, 0}}, columns, to);
}

static int read_layer(const model *m, model_layer *layer, const loader *l, int64_t i) {
  int64_t queries = m->n_heads * m->head_dim, keys = m->n_kv_heads * m->head_dim;
  const part qkv[] = {{"attn_q", queries}, {"attn_k", keys}, {"attn_v", keys}, {NULL, 0}};
  const part gate_up[] = {{"ffn_gate", m->hidden}, {"ffn_up", m->hidden}, {NULL, 0}};
  char prefix[32];
  snprintf(prefix, sizeof prefix, "blk.%lld.", (long long)i);
  return read_tensor(l, prefix, "attn_norm", 1, m->dim, &layer->attention_norm) &&
         read_parts(l, prefix, qkv, m->dim, &layer->qkv.floats) &&
         read_tensor(l, prefix, "attn_output", m->dim, queries, &layer->output.floats) &&
         read_tensor(l, prefix, "ffn_norm", 1, m->dim, &layer->ffn_norm) &&
         read_parts(l, prefix, gate_up, m->dim, &layer->gate_up.floats) &&
         read_tensor(l, prefix, "ffn_down", m->dim, m->hidden, &layer->down.floats);
}

static int read_tensors(model *m, const loader *l) {
  if (!read_tensor(l, "", "token_embd", m->n_vocab, m->dim, &m->embedding) ||
      !read_tensor(l, "", "output_norm", 1, m->dim, &m->output_norm) ||
      (gguf_find_tensor(l->file, "rope_freqs.weight") &&
       !read_tensor(l, "", "rope_freqs", 1, m->rope_dims / 2, &m->rope_factors)))
    return 0;
  for (int64_t i = 0; m->rope_factors && i < m->rope_dims / 2; i++)
    if (!(m->rope_factors[i] >= 1e-3f && m->rope_factors[i] <= 1e6f))
      return llm_fail(l->error, "tensor 'rope_freqs.weight' holds %g, not in 0.001 .. 1e+06",
                      (double)m->rope_factors[i]);
  m->output.floats = m->embedding;
  if (gguf_find_tensor(l->file, "output.weight") &&
      !read_tensor(l, "", "output", m->n_vocab, m->dim, &m->output.floats))
    return 0;
  for (int64_t i = 0; i < m->n_layers; i++)
    if (!read_layer(m, &m->layers[i], l, i)) return 0;
  return 1;
}

// The whole file is checked before any of its weights are read.
static int read_model(model *m, const gguf *file, llm_error *error) {
  loader l = {file, error, 1};
  if (!read_header(m, file, error)) return 0;
  m->layers = calloc((size_t)m->n_layers, sizeof *m->layers);
  if (!m->layers) return llm_fail(error, "out of memory");
  if (!read_tensors(m, &l) || !gguf_tensors_read(file, error)) return 0;
  l.only_checks = 0;
  return read_tensors(m, &l);
}

int model_open(model *m, const gguf *file, llm_error *error) {
  *m = (model){0};
  if (read_model(m, file, error)) return 1;
  model_close(m);
  return 0;
}

static void free_matrix(model_matrix *matrix) { free(matrix->floats), free(matrix->blocks); }

void model_close(model *m) {
  for (int64_t i = 0; m->layers && i < m->n_layers; i++) {
    model_layer *layer = &m->layers[i];
    free(layer->attention_norm), free(layer->ffn_norm);
    free_matrix(&layer->qkv), free_matrix(&layer->output);
    free_matrix(&layer->gate_up), free_matrix(&layer->down);
  }
  if (m->output.floats == m->embedding) m->embedding = NULL;
  free_matrix(&m->output);
  free(m->layers), free(m->embedding), free(m->output_norm), free(m->rope_factors);
  *m = (model){0};
}

static int pack(model_matrix *matrix, int64_t rows, int64_t columns, llm_error *error) {
  int64_t n_blocks = rows * (columns / MATMUL_BLOCK);
  if (columns % MATMUL_BLOCK) return 1;
  matrix->blocks = malloc((size_t)n_blocks * sizeof *matrix->blocks);
  if (!matrix->blocks) return llm_fail(error, "out of memory");
  matmul_pack8(matrix->floats, n_blocks, matrix->blocks);
  return 1;
}

int model_pack(model *m, llm_error *error) {
  int64_t width = m->n_heads * m->head_dim, all = width + 2 * m->n_kv_heads * m->head_dim;
  for (int64_t i = 0; i < m->n_layers; i++) {
    model_layer *layer = &m->layers[i];
    if (!pack(&layer->qkv, all, m->dim, error) || !pack(&layer->output, m->dim, width, error) ||
        !pack(&layer->gate_up, 2 * m->hidden, m->dim, error) ||
        !pack(&layer->down, m->dim, m->hidden, error))
      return 0;
  }
  return pack(&m->output, m->n_vocab, m->dim, error);
}

// ---- A window of tokens ---------------------------------------------------------------------------

static float *floats(int64_t n) { return malloc((size_t)n * sizeof(float)); }

int session_open(session *s, const model *m, const hyperattn_parallel *threads, int64_t capacity,
                 int keeps_all, hyperattn_dtype dtype, llm_error *error) {
  int64_t width = m->n_heads * m->head_dim, kv_width = m->n_kv_heads * m->head_dim;
  *s = (session){.m = m, .threads = threads, .capacity = capacity, .n_slots = keeps_all ? m->n_layers : 1};
  s->dtype = dtype;
  if (dtype == HYPERATTN_Q8_0 && m->head_dim % 32)
    return llm_fail(error, "heads are no multiple of Q8_0's blocks");
  s->scratch_floats = least(SLAB, capacity) * (m->dim + 2 * m->hidden + width + 2 * kv_width);
  int64_t for_losses = SESSION_LOSS_ROWS * (m->dim + m->n_vocab);
  if (s->scratch_floats < for_losses) s->scratch_floats = for_losses;
  s->cache = malloc(elements_size(s->n_slots * 2 * kv_width * capacity, dtype));
  s->hidden = floats(capacity * m->dim);
  s->query = floats(capacity * width), s->mixed = floats(capacity * width);
  s->rotation = floats(capacity * m->rope_dims);
  s->packed = malloc((size_t)((m->dim + width + m->hidden) / MATMUL_BLOCK + 1) * sizeof *s->packed);
  s->scratch = floats(threads->n_workers * s->scratch_floats);
  if (!s->cache || !s->hidden || !s->query || !s->mixed || !s->rotation || !s->packed || !s->scratch) {
    session_close(s);
    return llm_fail(error, "out of memory for a window of %lld tokens", (long long)capacity);
  }
  for (int64_t i = 0; i < m->rope_dims / 2; i++) {
    double frequency = pow(m->rope_base, -2.0 * (double)i / (double)m->rope_dims) / m->rope_scale;
    if (m->rope_factors) frequency /= (double)m->rope_factors[i];
    for (int64_t position = 0; position < capacity; position++) {
      float *at = s->rotation + position * m->rope_dims + 2 * i;
      at[0] = (float)cos((double)position * frequency), at[1] = (float)sin((double)position * frequency);
    }
  }
  return 1;
}

// A layer's heads: of n tokens, the last of n_key.
static hyperattn_problem layer_problem(const session *s, int64_t layer, int64_t n, int64_t n_key) {
  const model *m = s->m;
  hyperattn_problem problem = {0};
  problem.batch = 1, problem.n_heads = m->n_heads, problem.n_kv_heads = m->n_kv_heads;
  problem.n_query = n, problem.n_key = n_key, problem.causal = 1;
  problem.head_dim = problem.value_dim = m->head_dim;
  problem.query.data = s->query, problem.out.data = s->mixed;
  problem.query.head_stride = problem.out.head_stride = m->head_dim;
  problem.query.row_stride = problem.out.row_stride = m->n_heads * m->head_dim;
  problem.key.data = session_keys(s, layer, 0), problem.value.data = session_values(s, layer, 0);
  problem.key.dtype = problem.value.dtype = s->dtype;
  problem.key.head_stride = problem.value.head_stride = s->capacity * m->head_dim;
  problem.key.row_stride = problem.value.row_stride = m->head_dim;
  return problem;
}

int session_index(session *s, llm_error *error) {
  hyperattn_problem shape = layer_problem(s, 0, 0, s->capacity);
  size_t bytes = hyperattn_index_size(&shape);
  s->index = malloc((size_t)s->m->n_layers * sizeof *s->index);
  s->index_memory = malloc((size_t)s->m->n_layers * bytes);
  if (!s->index || !s->index_memory) return llm_fail(error, "out of memory for an index of the cache");
  for (int64_t i = 0; i < s->m->n_layers; i++) {
    char *memory = (char *)s->index_memory + (size_t)i * bytes;
    hyperattn_status status = hyperattn_index_init(&s->index[i], &shape, memory, bytes);
    if (status != HYPERATTN_OK) return llm_fail(error, "index: %s", hyperattn_status_string(status));
  }
  return 1;
}

// The index of a layer, once it knows the first n_key tokens of the cache and no others.
static hyperattn_status index_grow(session *s, int64_t layer, int64_t n_key) {
  hyperattn_problem past = layer_problem(s, layer, 0, s->n_past), all = layer_problem(s, layer, 0, n_key);
  hyperattn_status status = HYPERATTN_OK;
  if (hyperattn_index_length(s->index[layer]) > s->n_past)
    status = hyperattn_index_truncate(s->index[layer], &past);
  return status == HYPERATTN_OK ? hyperattn_index_append(s->index[layer], &all) : status;
}

void session_close(session *s) {
  free(s->index), free(s->index_memory);
  free(s->cache), free(s->hidden), free(s->query), free(s->mixed), free(s->rotation), free(s->packed);
  free(s->scratch), free(s->workspace);
  *s = (session){0};
}

static unsigned char *cache_row(const session *s, int64_t layer, int is_value, int64_t kv_head,
                                int64_t position) {
  int64_t row = ((layer % s->n_slots) * 2 + is_value) * s->m->n_kv_heads + kv_head;
  return s->cache + elements_size((row * s->capacity + position) * s->m->head_dim, s->dtype);
}
void session_repeat(session *s) {
  const size_t row = elements_size(s->m->head_dim, s->dtype);
  unsigned char *rows = s->cache;
  for (int64_t i = 0; i < s->n_slots * 2 * s->m->n_kv_heads; i++, rows += (size_t)s->capacity * row)
    for (int64_t has = s->n_past; has < s->capacity; has *= 2)
      memcpy(rows + (size_t)has * row, rows, (size_t)least(has, s->capacity - has) * row);
  s->n_past = s->capacity;
}
const void *session_keys(const session *s, int64_t layer, int64_t kv_head) {
  return cache_row(s, layer, 0, kv_head, 0);
}
const void *session_values(const session *s, int64_t layer, int64_t kv_head) {
  return cache_row(s, layer, 1, kv_head, 0);
}

static void in_parallel(const session *s, int64_t n_tasks, hyperattn_task task, void *arg) {
  s->threads->parallel_for(s->threads->context, n_tasks, task, arg);
}

// ---- One layer ------------------------------------------------------------------------------------

typedef struct layer_run {
  session *s;
  const model_layer *layer;
  int64_t index, n, slab;  // slab: rows of a task
} layer_run;

// to = x / sqrt(mean(x^2) + epsilon) * weight, row by row.
static void norm(const model *m, const float *x, const float *weight, int64_t rows, float *to) {
  for (int64_t r = 0; r < rows; r++, x += m->dim, to += m->dim) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= m->dim; i += LANES)
      for (int64_t lane = 0; lane < LANES; lane++) lanes[lane] += x[i + lane] * x[i + lane];
    for (; i < m->dim; i++) lanes[0] += x[i] * x[i];
    double squares = 0;
    for (int lane = 0; lane < LANES; lane++) squares += (double)lanes[lane];
    float scale = (float)(1 / sqrt(squares / (double)m->dim + (double)m->norm_epsilon));
    for (i = 0; i < m->dim; i++) to[i] = x[i] * scale * weight[i];
  }
}

// Rotates neighbouring pairs (2 i, 2 i + 1); GGUF files of this architecture store their rows in that order.
static void rotate(const session *s, const float *x, int64_t position, float *to) {
  const float *angle = s->rotation + position * s->m->rope_dims;
  for (int64_t i = 0; i < s->m->rope_dims; i += 2) {
    to[i] = x[i] * angle[i] - x[i + 1] * angle[i + 1];
    to[i + 1] = x[i] * angle[i + 1] + x[i + 1] * angle[i];
  }
  for (int64_t i = s->m->rope_dims; i < s->m->head_dim; i++) to[i] = x[i];
}

// e^x = 2^n 2^f with a polynomial for 2^f, in a form that compilers vectorise; relative error below 3e-7.
static float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  float t = x * 1.44269504f + 12582912.0f;  // adding 1.5 2^23 rounds, and leaves n in the low bits
  float n = t - 12582912.0f;
  float f = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.98412698e-4f;
  p = p * f + 1.38888889e-3f, p = p * f + 8.33333333e-3f, p = p * f + 4.16666667e-2f,
  p = p * f + 1.66666667e-1f;
  p = p * f + 0.5f, p = p * f + 1.0f, p = p * f + 1.0f;
  uint32_t bits;
  memcpy(&bits, &t, sizeof bits);
  bits = (bits - 0x4b400000u + 127u) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

// A row of queries, keys and values: rotation. Keys and values go to the cache.
static void place(const layer_run *run, int64_t r, const float *row) {
  session *s = run->s;
  const model *m = s->m;
  int64_t d = m->head_dim, width = m->n_heads * d, kv_width = m->n_kv_heads * d, position = s->n_past + r;
  float rotated[MODEL_MAX_HEAD_DIM];
  for (int64_t h = 0; h < m->n_heads; h++) rotate(s, row + h * d, position, s->query + r * width + h * d);
  for (int64_t h = 0; h < m->n_kv_heads; h++) {
    rotate(s, row + width + h * d, position, rotated);
    elements_write(rotated, d, s->dtype, cache_row(s, run->index, 0, h, position));
    elements_write(row + width + kv_width + h * d, d, s->dtype, cache_row(s, run->index, 1, h, position));
  }
}

// gate = silu(gate) up
static void apply_gate(float *gate, const float *up, int64_t n) {
  for (int64_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + fast_exp(-gate[i])) * up[i];
}

// For the rows of a slab: norm, then queries, keys and values.
static void before_attention(void *arg, int64_t slab, int worker) {
  layer_run *run = arg;
  session *s = run->s;
  const model *m = s->m;
  int64_t first = slab * run->slab, rows = least(run->slab, run->n - first), d = m->head_dim;
  int64_t all = (m->n_heads + 2 * m->n_kv_heads) * d;
  float *normed = s->scratch + worker * s->scratch_floats, *qkv = normed + run->slab * m->dim;
  norm(m, s->hidden + first * m->dim, run->layer->attention_norm, rows, normed);
  matmul(qkv, all, normed, m->dim, run->layer->qkv.floats, rows, m->dim, all, 0);
  for (int64_t r = 0; r < rows; r++) place(run, first + r, qkv + r * all);
}

// For the rows of a slab: projects the result of attention and adds it; then adds down(silu(gate) up) of the
// norm.
static void after_attention(void *arg, int64_t slab, int worker) {
  layer_run *run = arg;
  session *s = run->s;
  const model *m = s->m;
  int64_t first = slab * run->slab, rows = least(run->slab, run->n - first),
          width = m->n_heads * m->head_dim;
  float *normed = s->scratch + worker * s->scratch_floats, *gate = normed + run->slab * m->dim;
  float *hidden = s->hidden + first * m->dim;
  matmul(hidden, m->dim, s->mixed + first * width, width, run->layer->output.floats, rows, width, m->dim,
         1);
  norm(m, hidden, run->layer->ffn_norm, rows, normed);
  matmul(gate, 2 * m->hidden, normed, m->dim, run->layer->gate_up.floats, rows, m->dim, 2 * m->hidden, 0);
  for (int64_t r = 0; r < rows; r++) {
    float *row = gate + r * 2 * m->hidden;
    apply_gate(row, row + m->hidden, m->hidden);
  }
  matmul(hidden, m->dim, gate, 2 * m->hidden, run->layer->down.floats, rows, m->hidden, m->dim, 1);
}

// ---- One layer for one token ----------------------------------------------------------------------

typedef struct step_product {
  const session *s;
  const model_matrix *w;
  const float *x;
  float *y;
  int64_t inner, columns;
  int is_added;
} step_product;

static void multiply_columns(void *arg, int64_t task, int worker) {
  const step_product *p = arg;
  int64_t first = task * STEP_COLUMNS, columns = least(STEP_COLUMNS, p->columns - first),
          n_blocks = p->inner / MATMUL_BLOCK;
  (void)worker;
  if (p->w->blocks)
    matmul_packed(p->y + first, p->s->packed, p->w->blocks + first * n_blocks, n_blocks, columns,
                  p->is_added);
  else
    matmul(p->y + first, p->columns, p->x, p->inner, p->w->floats + first * p->inner, 1, p->inner, columns,
           p->is_added);
}

// y = x w^T, or y += x w^T, for one row.
static void multiply(const session *s, float *y, const float *x, const model_matrix *w, int64_t inner,
                     int64_t columns, int is_added) {
  step_product p = {s, w, x, y, inner, columns, is_added};
  if (w->blocks) matmul_pack16(x, inner / MATMUL_BLOCK, s->packed);
  in_parallel(s, ceil_div(columns, STEP_COLUMNS), multiply_columns, &p);
}

static void step_before_attention(const layer_run *run) {
  session *s = run->s;
  const model *m = s->m;
  float *normed = s->scratch, *qkv = normed + m->dim;
  norm(m, s->hidden, run->layer->attention_norm, 1, normed);
  multiply(s, qkv, normed, &run->layer->qkv, m->dim, (m->n_heads + 2 * m->n_kv_heads) * m->head_dim, 0);
  place(run, 0, qkv);
}

static void step_after_attention(const layer_run *run) {
  session *s = run->s;
  const model *m = s->m;
  float *normed = s->scratch, *gate = normed + m->dim;
  multiply(s, s->hidden, s->mixed, &run->layer->output, m->n_heads * m->head_dim, m->dim, 1);
  norm(m, s->hidden, run->layer->ffn_norm, 1, normed);
  multiply(s, gate, normed, &run->layer->gate_up, m->dim, 2 * m->hidden, 0);
  apply_gate(gate, gate + m->hidden, m->hidden);
  multiply(s, s->hidden, gate, &run->layer->down, m->hidden, m->dim, 1);
}

// ---- All layers -----------------------------------------------------------------------------------

static int attend(const layer_run *run, const hyperattn_params *params, llm_error *error) {
  session *s = run->s;
  hyperattn_problem problem = layer_problem(s, run->index, run->n, s->n_past + run->n);
  hyperattn_status status = s->index ? index_grow(s, run->index, problem.n_key) : HYPERATTN_OK;
  if (status != HYPERATTN_OK) return llm_fail(error, "index: %s", hyperattn_status_string(status));
  problem.index = s->index ? s->index[run->index] : NULL;

  size_t bytes = hyperattn_workspace_size(&problem, params, s->threads->n_workers);
  if (bytes > s->workspace_size) {
    free(s->workspace);
    s->workspace = malloc(bytes), s->workspace_size = s->workspace ? bytes : 0;
    if (!s->workspace) return llm_fail(error, "out of memory for attention");
  }
  status = hyperattn_forward_parallel(&problem, params, s->threads, s->workspace, s->workspace_size);
  return status == HYPERATTN_OK ? 1 : llm_fail(error, "attention: %s", hyperattn_status_string(status));
}

int session_run(session *s, const int32_t *tokens, int64_t n, const hyperattn_params *params,
                llm_error *error) {
  const model *m = s->m;
  if (n < 1 || n > s->capacity - s->n_past)
    return llm_fail(error, "%lld tokens do not fit the window", (long long)n);
  s->attention_seconds = 0;
  for (int64_t i = 0; i < n; i++) {
    if (tokens[i] < 0 || tokens[i] >= m->n_vocab)
      return llm_fail(error, "token %d is not in the model", (int)tokens[i]);
    memcpy(s->hidden + i * m->dim, m->embedding + tokens[i] * m->dim, (size_t)m->dim * sizeof(float));
  }
  // As many slabs as workers, or a multiple of that if slabs would be too large.
  int64_t workers = s->threads->n_workers, turns = ceil_div(n, workers * SLAB),
          slab = ceil_div(n, turns * workers);
  for (int64_t i = 0; i < m->n_layers; i++) {
    layer_run run = {s, &m->layers[i], i, n, slab};
    if (n == 1)
      step_before_attention(&run);
    else
      in_parallel(s, ceil_div(n, slab), before_attention, &run);
    if (s->on_ready) s->on_ready(s->ready_context, i);
    double begin = seconds_now();
    if (!attend(&run, &params[i], error)) return 0;
    s->attention_seconds += seconds_now() - begin;
    if (n == 1)
      step_after_attention(&run);
    else
      in_parallel(s, ceil_div(n, slab), after_attention, &run);
    if (s->on_layer) s->on_layer(s->layer_context, i);
  }
  s->n_past += n;
  return 1;
}

// ---- Logits ---------------------------------------------------------------------------------------

static float greatest(const float *x, int64_t n) {
  float lanes[LANES], most = x[0];
  int64_t i = 0;
  for (int lane = 0; lane < LANES; lane++) lanes[lane] = x[0];
  for (; i + LANES <= n; i += LANES)
    for (int64_t lane = 0; lane < LANES; lane++)
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  for (; i < n; i++) most = x[i] > most ? x[i] : most;
  for (int lane = 0; lane < LANES; lane++) most = lanes[lane] > most ? lanes[lane] : most;
  return most;
}

static double sum_exp(const float *x, int64_t n, float shift) {
  float lanes[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int64_t lane = 0; lane < LANES; lane++) lanes[lane] += fast_exp(x[i + lane] - shift);
  for (; i < n; i++) lanes[0] += fast_exp(x[i] - shift);
  double sum = 0;
  for (int lane = 0; lane < LANES; lane++) sum += (double)lanes[lane];
  return sum;
}

// loss = ln sum_t exp(logit_t) - logit_next
double model_loss(const model *m, const float *logits, int32_t next) {
  float most = greatest(logits, m->n_vocab);
  return log(sum_exp(logits, m->n_vocab, most)) + (double)most - (double)logits[next];
}

typedef struct loss_run {
  session *s;
  int64_t first, n;
  const int32_t *next;
  double *losses;
} loss_run;

// The logits stay in a worker's scratch.
static void loss_task(void *arg, int64_t slab, int worker) {
  loss_run *run = arg;
  session *s = run->s;
  int64_t begin = slab * SESSION_LOSS_ROWS, rows = least(SESSION_LOSS_ROWS, run->n - begin),
          n_vocab = s->m->n_vocab, dim = s->m->dim;
  float *normed = s->scratch + worker * s->scratch_floats, *logits = normed + SESSION_LOSS_ROWS * dim;
  norm(s->m, s->hidden + (run->first + begin) * dim, s->m->output_norm, rows, normed);
  matmul(logits, n_vocab, normed, dim, s->m->output.floats, rows, dim, n_vocab, 0);
  for (int64_t r = 0; r < rows; r++)
    run->losses[begin + r] = model_loss(s->m, logits + r * n_vocab, run->next[begin + r]);
}

void session_losses(session *s, int64_t first, int64_t n, const int32_t *next, double *losses) {
  loss_run run = {s, first, n, next, losses};
  in_parallel(s, (n + SESSION_LOSS_ROWS - 1) / SESSION_LOSS_ROWS, loss_task, &run);
}

void session_logits(session *s, int64_t row, float *logits) {
  const model *m = s->m;
  norm(m, s->hidden + row * m->dim, m->output_norm, 1, s->scratch);
  multiply(s, logits, s->scratch, &m->output, m->dim, m->n_vocab, 0);
}
