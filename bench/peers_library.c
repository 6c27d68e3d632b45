// hyperattn.h as a shared library for bench_peers.py: one call of one head, opened once and run many times.
// peers_ggml.c has the same three functions.
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "amx.h"
#include "elements.h"
#include "pool.h"

#include <string.h>

typedef struct peer {
  hyperattn_problem problem;
  hyperattn_params params;
  hyperattn_parallel parallel;
  pool workers;
  void *workspace;
  size_t bytes;
} peer;

const char *peer_version(void) {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

static hyperattn_input input_of(const float *x, int64_t n, int64_t dim, hyperattn_dtype dtype) {
  hyperattn_input input = {
      .data = malloc(elements_size(n * dim, dtype)), .dtype = dtype, .row_stride = (ptrdiff_t)dim};
  if (input.data) elements_write(x, n * dim, dtype, (void *)(uintptr_t)input.data);
  return input;
}

// kind is "exact", "avx2" (exact, by the AVX2 kernel), "paper" or "fixed" (the default preset at tolerance
// 0). dtype is that of queries, keys and values; with q8_0 the queries are f32. Returns NULL if this machine
// cannot run it. What is opened lives until the process ends.
void *peer_open(const char *kind, const char *dtype, int threads, int causal, int64_t n, int64_t dim,
                const float *q, const float *k, const float *v, float *out) {
  peer *p = calloc(1, sizeof *p);
  hyperattn_dtype type;
  ask_for_amx();
  if (!p || !elements_named(dtype, &type) || !pool_open(&p->workers, threads)) return NULL;
  p->params = strcmp(kind, "paper") ? hyperattn_default_params() : hyperattn_paper_params();
  p->params.tolerance = 0;
  if (!strcmp(kind, "exact") || !strcmp(kind, "avx2")) p->params.method = HYPERATTN_EXACT;
  if (!strcmp(kind, "avx2")) p->params.isa = HYPERATTN_ISA_AVX2;
  p->problem.batch = p->problem.n_heads = p->problem.n_kv_heads = 1;
  p->problem.n_query = p->problem.n_key = n, p->problem.head_dim = p->problem.value_dim = dim;
  p->problem.causal = causal;
  p->problem.query = input_of(q, n, dim, type == HYPERATTN_Q8_0 ? HYPERATTN_F32 : type);
  p->problem.key = input_of(k, n, dim, type), p->problem.value = input_of(v, n, dim, type);
  if (!p->problem.query.data || !p->problem.key.data || !p->problem.value.data) return NULL;
  p->problem.out.data = out, p->problem.out.row_stride = (ptrdiff_t)dim;
  p->parallel.n_workers = threads, p->parallel.context = &p->workers, p->parallel.parallel_for = pool_for;
  p->bytes = hyperattn_workspace_size(&p->problem, &p->params, threads);
  p->workspace = malloc(p->bytes);
  if (!p->bytes || !p->workspace) return NULL;
  return p;
}

int peer_run(void *opened) {
  peer *p = opened;
  return hyperattn_forward_parallel(&p->problem, &p->params, &p->parallel, p->workspace, p->bytes) ==
         HYPERATTN_OK;
}
