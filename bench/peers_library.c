// hyperattn.h as a shared library for bench_peers.py, with the functions of peers.h.
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "amx.h"
#include "elements.h"
#include "peers.h"
#include "pool.h"
#include "reading.h"

#include <string.h>

typedef struct peer {
  peer_call call;
  int64_t at;                     // the copy that the next run meets
  size_t key_bytes, value_bytes;  // of a copy
  hyperattn_problem problem;
  hyperattn_params params;
  hyperattn_parallel parallel;
  pool workers;
  void *workspace;
  size_t bytes;
  uint64_t sum;
} peer;

const char *peer_version(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

static hyperattn_input input_of(const void *data, hyperattn_dtype dtype, int64_t rows, int64_t dim) {
  return (hyperattn_input){
      .data = data, .dtype = dtype, .head_stride = (ptrdiff_t)(rows * dim), .row_stride = (ptrdiff_t)dim};
}

// kind is "exact", "avx2" (exact, by the AVX2 kernel), "paper" or "linear"; or "read", which computes
// nothing but reads a copy of keys and values, whose bytes are multiples of READ_TASK.
void *peer_open(const peer_call *call) {
  peer *p = calloc(1, sizeof *p);
  const int64_t keys = call->kv_heads * call->n_key;
  hyperattn_dtype query, type;
  ask_for_amx();
  if (!p || !elements_named(call->query_dtype, &query) || !elements_named(call->dtype, &type)) return NULL;
  p->call = *call;
  p->params = strcmp(call->kind, "paper") ? hyperattn_linear_params() : hyperattn_paper_params();
  if (!strcmp(call->kind, "exact") || !strcmp(call->kind, "avx2")) p->params.method = HYPERATTN_EXACT;
  if (!strcmp(call->kind, "avx2")) p->params.isa = HYPERATTN_ISA_AVX2;
  p->problem.batch = 1, p->problem.n_heads = call->heads, p->problem.n_kv_heads = call->kv_heads;
  p->problem.n_query = call->n_query, p->problem.n_key = call->n_key;
  p->problem.head_dim = call->head_dim, p->problem.value_dim = call->value_dim;
  p->problem.causal = call->causal;
  p->problem.query = input_of(call->query, query, call->n_query, call->head_dim);
  p->problem.key = p->problem.value = input_of(call->key, type, call->n_key, call->head_dim);
  if (call->value) p->problem.value = input_of(call->value, type, call->n_key, call->value_dim);
  p->problem.out.data = call->out;
  p->problem.out.head_stride = (ptrdiff_t)(call->n_query * call->value_dim);
  p->problem.out.row_stride = (ptrdiff_t)call->value_dim;
  p->key_bytes = elements_size(keys * call->head_dim, type);
  p->value_bytes = call->value ? elements_size(keys * call->value_dim, type) : 0;
  p->bytes = hyperattn_workspace_size(&p->problem, &p->params, call->threads);
  p->workspace = malloc(p->bytes);
  if (!p->bytes || !p->workspace || !pool_open(&p->workers, call->threads)) return NULL;
  p->parallel = (hyperattn_parallel){call->threads, &p->workers, pool_for};
  return p;
}

static void read_task(void *arg, int64_t i, int worker) {
  peer *p = arg;
  const char *key = p->problem.key.data, *value = p->problem.value.data;
  size_t at = (size_t)i * READ_TASK;
  uint64_t sum = read_bytes(at < p->key_bytes ? key + at : value + (at - p->key_bytes), READ_TASK);
  if (!worker) p->sum += sum;
}

int peer_run(void *opened) {
  peer *p = opened;
  p->problem.key.data = (const char *)p->call.key + (size_t)p->at * p->key_bytes;
  p->problem.value.data =
      p->call.value ? (const char *)p->call.value + (size_t)p->at * p->value_bytes : p->problem.key.data;
  p->at = (p->at + 1) % p->call.copies;
  if (!strcmp(p->call.kind, "read")) {
    pool_for(&p->workers, (int64_t)((p->key_bytes + p->value_bytes) / READ_TASK), read_task, p);
    return 1;
  }
  return hyperattn_forward_parallel(&p->problem, &p->params, &p->parallel, p->workspace, p->bytes) ==
         HYPERATTN_OK;
}

void peer_close(void *opened) {
  peer *p = opened;
  pool_close(&p->workers);
  free(p->workspace), free(p);
}
