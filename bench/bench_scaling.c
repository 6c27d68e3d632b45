// How attention would scale with workers: the time of every task of a call, and what list scheduling makes of them.
//
//   bench_scaling [--method exact,default,linear] [--mask full|causal|both] [--n N,..] [--heads H,..]
//                 [--workers W,..] [--dim D] [--repeat R] [--check] [--stages] [--csv FILE]
//
// The tasks of one head run on one thread, phase by phase, in R rounds (default: 3); a task's time is the least of
// them. H heads are those tasks H times, one head after another. In a simulation of W
// workers each task, in its order, goes to the worker that is free first, as a shared counter deals them out; a phase
// begins when the one before has ended, log2 W times a barrier of two later, which is measured. What workers that
// run at once take from each other, memory above all, is not simulated. --check runs the one-head calls on as many
// threads as the machine has cores, and tells beside it what the simulation says of those, and how long as many calls
// take that run at once on a thread each: what the cores can do together.
//
// efficiency    one worker's time over that of W workers together
// bound         the stage that loses most at the last W: its tasks (of all its phases), the longest over the mean,
//               and its share of what is lost; --stages tells of each stage. Where stages share a phase, all of it
//               goes by the first.
// Data are those of bench_attention.
#define HYPERATTN_STATIC
#define HYPERATTN_STAGE_NAMES
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "measure.h"
#include "pool.h"
#include "record.h"

#include <unistd.h>

enum { MOST_WORKERS = 1024, BARRIERS = 2000 };

#define COLUMNS                                                                                            \
  "method,mask,n,heads,workers,phases,tasks,seconds,efficiency,bound,bound_tasks,longest_over_mean,share_" \
  "of_loss,measured_seconds,independent_seconds"

typedef struct bench {
  const char *methods, *mask, *lengths, *heads, *workers;
  int64_t dim;
  int repeat, check, stages;
  double barrier;  // seconds, of two workers
  FILE *record;
} bench;

// ---- A call's tasks ----

typedef struct phase {
  const char *stage;  // of its first task
  int64_t n;
  double *seconds;  // [n]
} phase;

typedef struct call {
  const char *method;
  int causal;
  hyperattn_problem problem;
  hyperattn_params params;
  hai_plan plan;
  int n_phases;
  phase *phases;
} call;

static void time_tasks(call *c, int repeat) {
  size_t bytes = hyperattn_workspace_size(&c->problem, &c->params, 1);
  void *workspace = allocate(bytes);
  hyperattn_status status = hyperattn_check(&c->problem, &c->params, workspace, bytes, 1);
  if (status == HYPERATTN_OK) status = hai_resolve(&c->plan, &c->problem, &c->params);
  if (status != HYPERATTN_OK) fprintf(stderr, "%s\n", hyperattn_status_string(status)), exit(1);
  c->n_phases = hai_phases(&c->plan);
  c->phases = allocate((size_t)c->n_phases * sizeof *c->phases);
  for (int p = 0; p < c->n_phases; p++) {
    phase *to = &c->phases[p];
    hai_job job;
    to->n = hai_phase_tasks(&c->plan, p);
    if (to->n) to->stage = hai_job_at(&job, &c->plan, workspace, p, 0, 0)->name;
    to->seconds = allocate((size_t)(to->n + 1) * sizeof *to->seconds);
    for (int64_t i = 0; i < to->n; i++) to->seconds[i] = (double)INFINITY;
  }
  for (int round = 0; round < repeat; round++)
    for (int p = 0; p < c->n_phases; p++)
      for (int64_t i = 0; i < c->phases[p].n; i++) {
        double begin = now();
        hai_run(&c->plan, workspace, p, i, 0);
        double took = now() - begin;
        if (took < c->phases[p].seconds[i]) c->phases[p].seconds[i] = took;
      }
  free(workspace);
}

static void free_tasks(call *c) {
  for (int p = 0; p < c->n_phases; p++) free(c->phases[p].seconds);
  free(c->phases);
}

// ---- List scheduling ----

// How long a phase of some heads takes `workers` workers.
static double span_of(const phase *p, int64_t heads, int64_t workers) {
  double end[MOST_WORKERS] = {0}, last = 0;
  for (int64_t i = 0; i < heads * p->n; i++) {
    int64_t first = 0;
    for (int64_t w = 1; w < workers; w++)
      if (end[w] < end[first]) first = w;
    end[first] += p->seconds[i % p->n];
    if (end[first] > last) last = end[first];
  }
  return last;
}

// What the phases of a stage take, and what they lose.
typedef struct stage_sum {
  const char *name;
  int phases;
  int64_t tasks;
  double work, lost, longest;  // of all tasks; of all workers; of a task, over their mean
} stage_sum;

typedef struct schedule {
  double work, seconds;  // of all tasks; of all phases, barriers included
  int64_t tasks;
  int n_stages, bound;  // the stage that loses most
  stage_sum stages[HAI_N_STAGES];
} schedule;

static double lost_by(const schedule *s, int64_t workers) { return (double)workers * s->seconds - s->work; }

static stage_sum *sum_of(schedule *s, const char *name) {
  int i = 0;
  while (i < s->n_stages && strcmp(s->stages[i].name, name)) i++;
  if (i == s->n_stages) s->stages[s->n_stages++] = (stage_sum){.name = name};
  return &s->stages[i];
}

static schedule simulate(const bench *b, const call *c, int64_t heads, int64_t workers) {
  schedule s = {0};
  for (int p = 0; p < c->n_phases; p++) {
    const phase *at = &c->phases[p];
    double work = 0, span = span_of(at, heads, workers);
    stage_sum *of;
    if (!at->n) continue;
    of = sum_of(&s, at->stage);
    for (int64_t i = 0; i < at->n; i++) {
      work += at->seconds[i];
      of->longest = at->seconds[i] > of->longest ? at->seconds[i] : of->longest;
    }
    work *= (double)heads;
    of->phases++, of->tasks += heads * at->n;
    of->work += work, of->lost += (double)workers * span - work;
    s.work += work, s.tasks += heads * at->n, s.seconds += span + b->barrier * log2((double)workers);
  }
  for (int i = 0; i < s.n_stages; i++) {
    s.stages[i].longest *= (double)s.stages[i].tasks / s.stages[i].work;
    if (s.stages[i].lost > s.stages[s.bound].lost) s.bound = i;
  }
  return s;
}

static void print_stages(const schedule *s, int64_t workers) {
  for (int i = 0; i < s->n_stages; i++) {
    const stage_sum *of = &s->stages[i];
    printf(
        "    %-10s %3d phases %6lld tasks, longest %5.1f of the mean: %4.1f%% of the work, %4.1f%% of what "
        "is lost\n",
        of->name, of->phases, (long long)of->tasks, of->longest, 100 * of->work / s->work,
        100 * of->lost / lost_by(s, workers));
  }
}

// ---- Threads ----

static void nothing(void *arg, int64_t index, int worker) { (void)arg, (void)index, (void)worker; }

// The least time of a phase of two tasks that do nothing, on two threads.
static double barrier_of(void) {
  double best = (double)INFINITY;
  pool workers;
  if (!pool_open(&workers, 2)) fprintf(stderr, "no threads\n"), exit(1);
  for (int round = 0; round < 5; round++) {
    double begin = now();
    for (int i = 0; i < BARRIERS; i++) pool_for(&workers, 2, nothing, NULL);
    double took = (now() - begin) / BARRIERS;
    if (took < best) best = took;
  }
  pool_close(&workers);
  return best;
}

static double seconds_on(const call *c, int threads, int repeat) {
  size_t bytes = hyperattn_workspace_size(&c->problem, &c->params, threads);
  void *workspace = allocate(bytes);
  double best = (double)INFINITY;
  pool workers;
  if (!pool_open(&workers, threads)) fprintf(stderr, "no threads\n"), exit(1);
  hyperattn_parallel parallel = {threads, &workers, pool_for};
  for (int i = 0; i < repeat; i++) {
    double begin = now();
    hyperattn_status status =
        hyperattn_forward_parallel(&c->problem, &c->params, &parallel, workspace, bytes);
    double took = now() - begin;
    if (status != HYPERATTN_OK) fprintf(stderr, "%s\n", hyperattn_status_string(status)), exit(1);
    if (took < best) best = took;
  }
  pool_close(&workers);
  free(workspace);
  return best;
}

// Calls that run at once, on a thread each.
typedef struct calls {
  const call *of;
  char *workspaces;
  size_t bytes;  // of a workspace, [workers]
  float *outs;
  int64_t floats;  // of a result, [workers]
} calls;

static void run_one(void *arg, int64_t index, int worker) {
  const calls *c = (const calls *)arg;
  hyperattn_problem p = c->of->problem;
  p.out.data = c->outs + index * c->floats;
  (void)worker;
  if (hyperattn_forward(&p, &c->of->params, c->workspaces + (size_t)index * c->bytes, c->bytes) !=
      HYPERATTN_OK)
    fprintf(stderr, "a call failed\n"), exit(1);
}

// Seconds of so many calls that run at once, over their number.
static double seconds_of_each(const call *c, int threads, int repeat) {
  calls all = {c, NULL, hyperattn_workspace_size(&c->problem, &c->params, 1), NULL,
               c->problem.n_query * c->problem.value_dim};
  double best = (double)INFINITY;
  pool workers;
  all.workspaces = allocate(all.bytes * (size_t)threads);
  all.outs = allocate((size_t)(all.floats * threads) * sizeof *all.outs);
  if (!pool_open(&workers, threads)) fprintf(stderr, "no threads\n"), exit(1);
  for (int i = 0; i < repeat; i++) {
    double begin = now();
    pool_for(&workers, threads, run_one, &all);
    double took = now() - begin;
    if (took < best) best = took;
  }
  pool_close(&workers);
  free(all.workspaces), free(all.outs);
  return best / threads;
}

// ---- Rows ----

// The share of what is lost that its stage loses.
static double bound_share(const schedule *s, int64_t workers) {
  double lost = lost_by(s, workers);
  return lost > 0 ? s->stages[s->bound].lost / lost : 0;
}

static void write_row(const bench *b, const call *c, int64_t heads, int64_t workers, const schedule *s,
                      const double *measured) {
  const stage_sum *bound = &s->stages[s->bound];
  if (!b->record) return;
  fprintf(b->record, "%s,%s,%lld,%lld,%lld,%d,%lld,%.6f,%.4f,%s,%lld,%.2f,%.3f,", c->method,
          c->causal ? "causal" : "full", (long long)c->problem.n_query, (long long)heads,
          (long long)workers, c->n_phases, (long long)s->tasks, s->seconds,
          s->work / s->seconds / (double)workers, bound->name, (long long)bound->tasks, bound->longest,
          bound_share(s, workers));
  if (measured)
    fprintf(b->record, "%.6f,%.6f\n", measured[0], measured[1]);
  else
    fprintf(b->record, ",\n");
  fflush(b->record);
}

static void print_row(const bench *b, const call *c, int64_t heads) {
  const char *all = b->workers;
  schedule s = {0};
  int64_t last = 1;
  printf("%-8s %-6s %7lld %3lld |", c->method, c->causal ? "causal" : "full", (long long)c->problem.n_query,
         (long long)heads);
  for (int64_t workers; next_number(&all, &workers);) {
    s = simulate(b, c, heads, workers), last = workers;
    if (workers == 1) printf(" %9.4f |", s.seconds);
    cell("%.3f", 6, s.work / s.seconds / (double)workers);
    write_row(b, c, heads, workers, &s, NULL);
  }
  const stage_sum *bound = &s.stages[s.bound];
  printf(" %s: %lld tasks, %.1f, %.0f%%\n", bound->name, (long long)bound->tasks, bound->longest,
         100 * bound_share(&s, last));
  if (b->stages) print_stages(&s, last);
  fflush(stdout);
}

static void check(const bench *b, const call *c) {
  int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
  schedule s = simulate(b, c, 1, cores);
  double one = seconds_on(c, 1, b->repeat);
  double all[2] = {seconds_on(c, cores, b->repeat), seconds_of_each(c, cores, b->repeat)};
  printf(
      "    on %d threads: %.4f s, %.2f times as fast as one; simulated %.2f times; %.3f of calls that run "
      "at once\n",
      cores, all[0], one / all[0], s.work / s.seconds, all[1] / all[0]);
  write_row(b, c, 1, cores, &s, all);
}

static void run(const bench *b, const char *method, int causal, int64_t n) {
  int64_t d = b->dim;
  float *q = repeat_rows("q", n, d), *k = repeat_rows("k", n, d), *v = repeat_rows("v", n, d);
  float *out = allocate((size_t)(n * d) * sizeof *out);
  call c = {.method = method, .causal = causal};
  const char *all = b->heads;
  c.params = strcmp(method, "linear") ? hyperattn_default_params() : hyperattn_linear_params();
  if (!strcmp(method, "exact")) c.params.method = HYPERATTN_EXACT;
  c.problem = hyperattn_heads_first(1, 1, 1, n, n, d, d, q, k, v, out);
  c.problem.causal = causal;
  time_tasks(&c, b->repeat);
  for (int64_t heads; next_number(&all, &heads);) print_row(b, &c, heads);
  if (b->check) check(b, &c);
  free_tasks(&c);
  free(q), free(k), free(v), free(out);
}

// ---- Options ----

static void print_head(const bench *b) {
  const char *all = b->workers;
  printf("a phase of two workers begins %.2f us after the one before\n%-8s %-6s %7s %3s |",
         1e6 * b->barrier, "method", "mask", "n", "h");
  for (int64_t workers; next_number(&all, &workers);) {
    char title[32];
    snprintf(title, sizeof title, "%lld", (long long)workers);
    if (workers == 1) printf(" %9s |", "1: s");
    printf(" %6s |", title);
  }
  printf(" bound: tasks, longest over mean, share of loss\n");
}

static int read_options(bench *b, const char **csv, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (!strcmp(argv[i], "--check") || !strcmp(argv[i], "--stages")) {
      *(argv[i][2] == 'c' ? &b->check : &b->stages) = 1;
      continue;
    }
    if (!strcmp(argv[i], "--method"))
      b->methods = value;
    else if (!strcmp(argv[i], "--mask"))
      b->mask = value;
    else if (!strcmp(argv[i], "--n"))
      b->lengths = value;
    else if (!strcmp(argv[i], "--heads"))
      b->heads = value;
    else if (!strcmp(argv[i], "--workers"))
      b->workers = value;
    else if (!strcmp(argv[i], "--dim"))
      b->dim = atoll(value);
    else if (!strcmp(argv[i], "--repeat"))
      b->repeat = atoi(value);
    else if (!strcmp(argv[i], "--csv"))
      *csv = value;
    else
      return 0;
    i++;
  }
  const char *all = b->workers;
  for (int64_t workers; next_number(&all, &workers);)
    if (workers < 1 || workers > MOST_WORKERS) return 0;
  return b->dim >= HEAD_DIM && b->dim % HEAD_DIM == 0 && b->repeat > 0;
}

int main(int argc, char **argv) {
  bench b = {
      .methods = "exact,default,linear", .mask = "both", .lengths = "8192,32768,131072", .heads = "1,8,32"};
  const char *csv = NULL;
  b.workers = "1,2,4,8,16,32,64,128", b.dim = HEAD_DIM, b.repeat = 3;
  if (!read_options(&b, &csv, argc, argv)) {
    fprintf(stderr, "see the top of bench/bench_scaling.c for options\n");
    return 2;
  }
  if (csv) b.record = open_record(csv, "bench_scaling", COLUMNS, b.repeat, argc, argv);
  b.barrier = barrier_of();
  if (b.record)
    fprintf(b.record, "# a phase of two workers begins %.2f us after the one before\n", 1e6 * b.barrier);
  print_head(&b);
  static const char *const methods[] = {"exact", "default", "linear"};
  for (int m = 0; m < 3; m++)
    for (int causal = 0; causal < 2; causal++) {
      const char *all = b.lengths;
      if (!is_listed(methods[m], b.methods) || !strcmp(b.mask, causal ? "full" : "causal")) continue;
      for (int64_t n; next_number(&all, &n);) run(&b, methods[m], causal, n);
    }
  if (b.record) fclose(b.record);
  return 0;
}
