// ggml's flash attention for bench_peers.py, with the functions of peers.h.
#include "ggml-cpu.h"
#include "ggml.h"
#include "peers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct peer {
  peer_call call;
  int64_t at;  // the copy that the next run meets
  struct ggml_context *context;
  struct ggml_tensor *key, *value, *mask;
  struct ggml_cgraph *graph;
  struct ggml_cplan plan;
} peer;

const char *peer_version(void) {
  static char text[100];
  snprintf(text, sizeof text, "ggml %s of " GGML_SOURCE, ggml_version());
  return text;
}

static struct ggml_tensor *tensor(struct ggml_context *c, enum ggml_type type, int64_t heads, int64_t rows,
                                  int64_t dim, const void *data) {
  struct ggml_tensor *t = ggml_new_tensor_4d(c, type, dim, rows, heads, 1);
  t->data = (void *)(uintptr_t)data;
  return t;
}

// ggml knows a causal mask only as a table of halves for each query and key: 0 or minus infinity.
static struct ggml_tensor *causal_mask(struct ggml_context *c, int64_t n_query, int64_t n_key) {
  struct ggml_tensor *t = ggml_new_tensor_2d(c, GGML_TYPE_F16, n_key, n_query);
  ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY),
              *mask = t->data = calloc((size_t)(n_query * n_key), sizeof *mask);
  if (mask)
    for (int64_t i = 0; i < n_query; i++)
      for (int64_t j = i + 1 + n_key - n_query; j < n_key; j++) mask[i * n_key + j] = hidden;
  return t;
}

// kind is "flash"; queries are float32, and of several heads there is one query.
void *peer_open(const peer_call *call) {
  static const char *const names[] = {"f32", "f16", "bf16", "q8_0"};
  static const enum ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0};
  peer *p = calloc(1, sizeof *p);
  struct ggml_init_params room = {16 * ggml_tensor_overhead() + ggml_graph_overhead(), NULL, true};
  struct ggml_context *c = ggml_init(room);
  int type = 0;
  while (type < 4 && strcmp(call->dtype, names[type])) type++;
  if (!p || !c || type == 4 || strcmp(call->kind, "flash") || strcmp(call->query_dtype, "f32") ||
      (call->heads > 1 && call->n_query > 1))
    return NULL;
  ggml_cpu_init();
  p->call = *call, p->context = c;
  p->mask = call->causal ? causal_mask(c, call->n_query, call->n_key) : NULL;
  if (p->mask && !p->mask->data) return NULL;
  p->key = tensor(c, types[type], call->kv_heads, call->n_key, call->head_dim, call->key);
  p->value = call->value ? tensor(c, types[type], call->kv_heads, call->n_key, call->value_dim, call->value)
                         : ggml_view_4d(c, p->key, call->value_dim, call->n_key, call->kv_heads, 1,
                                        p->key->nb[1], p->key->nb[2], p->key->nb[3], 0);
  struct ggml_tensor *query =
      tensor(c, GGML_TYPE_F32, call->heads, call->n_query, call->head_dim, call->query);
  struct ggml_tensor *result =
      ggml_flash_attn_ext(c, query, p->key, p->value, p->mask, 1 / sqrtf((float)call->head_dim), 0, 0);
  result->data = call->out;
  p->graph = ggml_new_graph(c);
  ggml_build_forward_expand(p->graph, result);
  p->plan = ggml_graph_plan(p->graph, call->threads, NULL);
  p->plan.work_data = malloc(p->plan.work_size + 1);
  return p->plan.work_data ? p : NULL;
}

int peer_run(void *opened) {
  peer *p = opened;
  p->key->data = (char *)(uintptr_t)p->call.key + (size_t)p->at * ggml_nbytes(p->key);
  p->value->data = p->call.value ? (char *)(uintptr_t)p->call.value + (size_t)p->at * ggml_nbytes(p->value)
                                 : p->key->data;
  p->at = (p->at + 1) % p->call.copies;
  return ggml_graph_compute(p->graph, &p->plan) == GGML_STATUS_SUCCESS;
}

void peer_close(void *opened) {
  peer *p = opened;
  if (p->mask) free(p->mask->data);
  free(p->plan.work_data), ggml_free(p->context), free(p);
}
