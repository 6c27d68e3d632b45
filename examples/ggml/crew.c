#include "crew.h"

#include <stdatomic.h>
#include <string.h>

#include "../pause.h"

// ---- Threads that meet between phases ----

typedef struct shift {
  const crew_work *work;
  atomic_llong next, n_task;  // of this phase
  atomic_int arrived, phase;
} shift;

static void begin_phase(shift *s, int phase) {
  const crew_work *w = s->work;
  atomic_store(&s->next, 0);
  atomic_store(&s->n_task, phase < w->n_phase ? w->n_task(w->work, phase) : 0);
  atomic_store(&s->arrived, 0);
  atomic_store(&s->phase, phase);
}

// What each thread does. The last one to arrive begins the next phase.
static void take_tasks(shift *s, int worker, int n_worker) {
  const crew_work *w = s->work;
  for (int phase = 0; phase < w->n_phase; phase++) {
    for (int look = 0; atomic_load(&s->phase) < phase; look++) pause_between_looks(look);
    for (int64_t task; (task = atomic_fetch_add(&s->next, 1)) < s->n_task;)
      w->run(w->work, phase, task, worker);
    if (atomic_fetch_add(&s->arrived, 1) == n_worker - 1) begin_phase(s, phase + 1);
  }
}

// ---- Where threads come from ----

typedef struct team_argument {
  shift *shift;
  const crew *crew;
} team_argument;

static void in_team(void *argument) {
  const team_argument *a = argument;
  take_tasks(a->shift, a->crew->thread_number(), a->crew->team_size());
}

static void in_node(struct ggml_tensor *to, int thread, int n_thread, void *argument) {
  (void)to;
  take_tasks(argument, thread, n_thread);
}

// With as many threads as the workspace is for.
static ggml_backend_t open_cpu(crew *c) {
  const host *h = c->host;
  ggml_backend_dev_t device = h->ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  ggml_backend_reg_t registry = device ? h->ggml_backend_dev_backend_reg(device) : NULL;
  void *found =
      registry ? h->ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads") : NULL;
  if (!found) return NULL;
  if (!c->cpu) c->cpu = h->ggml_backend_dev_init(device, NULL);
  if (c->cpu) ((ggml_backend_set_n_threads_t)found)(c->cpu, c->n_threads);
  return c->cpu;
}

// A graph of one node that every thread of the backend runs.
static int run_as_node(crew *c, shift *s) {
  enum { GRAPH_SIZE = 8, ROOM = 16384 };
  _Alignas(64) char room[ROOM];
  struct ggml_init_params memory = {sizeof room, room, true};
  const host *h = c->host;
  ggml_backend_t cpu = open_cpu(c);
  struct ggml_context *context = cpu ? h->ggml_init(memory) : NULL;
  if (!context) return 0;
  float nothing = 0;
  struct ggml_tensor *one = h->ggml_new_tensor_1d(context, GGML_TYPE_F32, 1);
  one->data = &nothing;
  struct ggml_tensor *node = h->ggml_custom_inplace(context, one, NULL, 0, in_node, GGML_N_TASKS_MAX, s);
  node->flags |= GGML_TENSOR_FLAG_COMPUTE;
  struct ggml_cgraph *graph = h->ggml_new_graph_custom(context, GRAPH_SIZE, false);
  h->ggml_graph_add_node(graph, node);
  int done = h->ggml_backend_graph_compute(cpu, graph) == GGML_STATUS_SUCCESS;
  h->ggml_free(context);
  return done;
}

int crew_run(crew *c, const crew_work *work) {
  shift s = {.work = work};
  begin_phase(&s, 0);
  if (c->n_threads == 1 || (!c->team && work->is_short)) {
    take_tasks(&s, 0, 1);
  } else if (c->team) {
    team_argument argument = {&s, c};
    c->team(in_team, &argument, (unsigned)c->n_threads, 0);
  } else {
    return run_as_node(c, &s);
  }
  return 1;
}

// ---- Opening ----

static int uses_openmp(const host *h, ggml_backend_reg_t cpu) {
  ggml_backend_get_features_t features =
      (ggml_backend_get_features_t)h->ggml_backend_reg_get_proc_address(cpu, "ggml_backend_get_features");
  for (struct ggml_backend_feature *f = features ? features(cpu) : NULL; f && f->name; f++)
    if (!strcmp(f->name, "OPENMP")) return 1;
  return 0;
}

void crew_open(crew *c, const host *h) {
  *c = (crew){.host = h, .n_threads = GGML_DEFAULT_N_THREADS};
  ggml_backend_dev_t device = h->ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  ggml_backend_reg_t cpu = device ? h->ggml_backend_dev_backend_reg(device) : NULL;
  if (!cpu || !uses_openmp(h, cpu)) return;
  void *near = h->ggml_backend_reg_get_proc_address(cpu, "ggml_backend_set_n_threads");
  void *found[3] = {host_symbol(near, "GOMP_parallel"), host_symbol(near, "omp_get_thread_num"),
                    host_symbol(near, "omp_get_num_threads")};
  if (!found[0] || !found[1] || !found[2]) return;
  memcpy(&c->team, &found[0], sizeof found[0]);
  memcpy(&c->thread_number, &found[1], sizeof found[1]);
  memcpy(&c->team_size, &found[2], sizeof found[2]);
}

void crew_close(crew *c) {
  if (c->cpu) c->host->ggml_backend_free(c->cpu);
  c->cpu = NULL;
}

const char *crew_route(const crew *c) { return c->team ? "OpenMP's" : "a CPU backend's"; }
