// Two ways to use an engine's own threads: hyperattn_forward_parallel with the engine's parallel_for (here a
// small pthread pool, or OpenMP if the compiler has it), and phases run by threads that are already running,
// with a barrier after each phase. All give the bits of a single thread.
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "pool.h"

#include <stdio.h>
#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

enum { HEADS = 2, N = 3000, D = 64, WORKERS = 3 };

#if defined(_OPENMP)
static void openmp_for(void *context, int64_t n_tasks, hyperattn_task task, void *arg) {
  (void)context;
#pragma omp parallel for schedule(dynamic) num_threads(WORKERS)
  for (int64_t i = 0; i < n_tasks; i++) task(arg, i, omp_get_thread_num());
}
#endif

// Threads that are already running: each takes every WORKERS-th task of a phase, then waits for the others.
typedef struct crew {
  const hyperattn_problem *problem;
  const hyperattn_params *params;
  void *workspace;
  pthread_barrier_t barrier;
} crew;
typedef struct member {
  crew *crew;
  int worker;
} member;

static void *run_phases(void *arg) {
  member *m = arg;
  crew *c = m->crew;
  int phases = hyperattn_phase_count(c->problem, c->params);
  for (int phase = 0; phase < phases; phase++) {
    int64_t n = hyperattn_phase_tasks(c->problem, c->params, phase);
    for (int64_t i = m->worker; i < n; i += WORKERS)
      hyperattn_run_task(c->problem, c->params, c->workspace, phase, i, m->worker);
    pthread_barrier_wait(&c->barrier);
  }
  return NULL;
}

static int same(const char *name, const float *x, const float *y) {
  int equal = !memcmp(x, y, sizeof(float) * HEADS * N * D);
  printf("%-20s %s\n", name, equal ? "the same bits" : "DIFFERENT BITS");
  return equal;
}

int main(void) {
  size_t size = (size_t)HEADS * N * D;
  float *x = malloc(3 * size * sizeof *x), *out = malloc(2 * size * sizeof *out);
  if (!x || !out) return 1;
  for (size_t i = 0; i < 3 * size; i++) x[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
  hyperattn_problem problem =
      hyperattn_heads_first(1, HEADS, HEADS, N, N, D, D, x, x + size, x + 2 * size, out);
  hyperattn_params params = hyperattn_default_params();
  problem.causal = 1;
  size_t bytes = hyperattn_workspace_size(&problem, &params, WORKERS);
  void *workspace = malloc(bytes);

  if (hyperattn_forward(&problem, &params, workspace, bytes) != HYPERATTN_OK) return 1;

  problem.out.data = out + size;
  pool workers;
  if (!pool_open(&workers, WORKERS)) return 1;
  hyperattn_parallel parallel = {WORKERS, &workers, pool_for};
  if (hyperattn_forward_parallel(&problem, &params, &parallel, workspace, bytes) != HYPERATTN_OK) return 1;
  pool_close(&workers);
  int good = same("pthread pool", out, out + size);

#if defined(_OPENMP)
  memset(out + size, 0, size * sizeof *out);
  parallel.parallel_for = openmp_for;
  if (hyperattn_forward_parallel(&problem, &params, &parallel, workspace, bytes) != HYPERATTN_OK) return 1;
  good &= same("OpenMP", out, out + size);
#endif

  memset(out + size, 0, size * sizeof *out);
  crew c = {&problem, &params, workspace, {{0}}};
  member members[WORKERS];
  pthread_t threads[WORKERS];
  if (hyperattn_check(&problem, &params, workspace, bytes, WORKERS) != HYPERATTN_OK) return 1;
  pthread_barrier_init(&c.barrier, NULL, WORKERS);
  for (int i = 0; i < WORKERS; i++) {
    members[i] = (member){&c, i};
    if (pthread_create(&threads[i], NULL, run_phases, &members[i])) return 1;
  }
  for (int i = 0; i < WORKERS; i++) pthread_join(threads[i], NULL);
  good &= same("phases and barrier", out, out + size);
  free(x), free(out), free(workspace);
  return !good;
}
