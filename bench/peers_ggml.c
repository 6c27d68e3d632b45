// ggml's flash attention of one head for bench_peers.py, with the three functions of peers_library.c.
#include "ggml-cpu.h"
#include "ggml.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct peer {
  struct ggml_cgraph *graph;
  struct ggml_cplan plan;
} peer;

const char *peer_version(void) {
  static char text[100];
  snprintf(text, sizeof text, "ggml %s of " GGML_SOURCE, ggml_version());
  return text;
}

static struct ggml_tensor *tensor(struct ggml_context *c, enum ggml_type type, int64_t rows, int64_t dim,
                                  const float *data) {
  struct ggml_tensor *t = ggml_new_tensor_4d(c, type, dim, rows, 1, 1);
  t->data = (void *)(uintptr_t)data;
  if (type != GGML_TYPE_F32 && (t->data = malloc(ggml_nbytes(t))))
    ggml_quantize_chunk(type, data, t->data, 0, rows, dim, NULL);
  return t;
}

// ggml knows a causal mask only as an n by n table of halves: 0 or minus infinity.
static struct ggml_tensor *causal_mask(struct ggml_context *c, int64_t n) {
  struct ggml_tensor *t = ggml_new_tensor_2d(c, GGML_TYPE_F16, n, n);
  ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY),
              *mask = t->data = calloc((size_t)(n * n), sizeof *mask);
  if (mask)
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = i + 1; j < n; j++) mask[i * n + j] = hidden;
  return t;
}

// kind is "flash"; dtype is that of keys and values: "f32", "f16" or "q8_0".
void *peer_open(const char *kind, const char *dtype, int threads, int causal, int64_t n, int64_t dim,
                const float *q, const float *k, const float *v, float *out) {
  peer *p = calloc(1, sizeof *p);
  struct ggml_init_params room = {16 * ggml_tensor_overhead() + ggml_graph_overhead(), NULL, true};
  struct ggml_context *c = ggml_init(room);
  if (!p || !c || strcmp(kind, "flash")) return NULL;
  ggml_cpu_init();
  enum ggml_type type = !strcmp(dtype, "q8_0")  ? GGML_TYPE_Q8_0
                        : !strcmp(dtype, "f16") ? GGML_TYPE_F16
                                                : GGML_TYPE_F32;
  struct ggml_tensor *mask = causal ? causal_mask(c, n) : NULL, *key = tensor(c, type, n, dim, k),
                     *value = tensor(c, type, n, dim, v);
  if (!key->data || !value->data || (mask && !mask->data)) return NULL;
  struct ggml_tensor *result = ggml_flash_attn_ext(c, tensor(c, GGML_TYPE_F32, n, dim, q), key, value, mask,
                                                   1 / sqrtf((float)dim), 0, 0);
  result->data = out;
  p->graph = ggml_new_graph(c);
  ggml_build_forward_expand(p->graph, result);
  p->plan = ggml_graph_plan(p->graph, threads, NULL);
  p->plan.work_data = malloc(p->plan.work_size + 1);
  return p->plan.work_data ? p : NULL;
}

int peer_run(void *opened) {
  peer *p = opened;
  return ggml_graph_compute(p->graph, &p->plan) == GGML_STATUS_SUCCESS;
}
