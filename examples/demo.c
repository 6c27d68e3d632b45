// Causal attention on a real head of a language model: exact, by the paper's parameters and by the default
// preset, with time and error side by side.
//
//   demo [--min-seq-len N] [HEAD ...]
//
// HEAD is the path of a head's activations, without ".q.f16", ".k.f16" and ".v.f16": rows of 64 little-endian
// IEEE halves, scale 1/8. Without an argument, the demo takes the head in examples/data (see README.md
// there).
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "activations.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#define is_terminal() isatty(STDOUT_FILENO)
#else
#define is_terminal() 0
#endif

#ifndef DEMO_DATA
#define DEMO_DATA "examples/data/l28h1"
#endif
static double now(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Runs the phases one task after another, with a progress bar if on a terminal. Returns seconds.
static double run(const hyperattn_problem *problem, const hyperattn_params *params, const char *name) {
  size_t bytes = hyperattn_workspace_size(problem, params, 1);
  void *workspace = allocate(bytes ? bytes : 1);
  hyperattn_status status = hyperattn_check(problem, params, workspace, bytes, 1);
  if (status != HYPERATTN_OK) fprintf(stderr, "demo: %s\n", hyperattn_status_string(status)), exit(1);
  int64_t total = 0, done = 0, shown = -1;
  int phases = hyperattn_phase_count(problem, params), bar = is_terminal();
  for (int phase = 0; phase < phases; phase++) total += hyperattn_phase_tasks(problem, params, phase);
  double begin = now();
  for (int phase = 0; phase < phases; phase++)
    for (int64_t i = 0, n = hyperattn_phase_tasks(problem, params, phase); i < n; i++, done++) {
      hyperattn_run_task(problem, params, workspace, phase, i, 0);
      if (!bar || done * 40 / total == shown) continue;
      shown = done * 40 / total;
      printf("\r  %-8s [%-40.*s]", name, (int)shown, "########################################");
      fflush(stdout);
    }
  double seconds = now() - begin;
  if (bar) printf("\r%60s\r", "");
  free(workspace);
  return seconds;
}

static double relative_error(const float *x, const float *y, int64_t n) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < n; i++) {
    difference += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    size += (double)y[i] * (double)y[i];
  }
  return sqrt(difference / size);
}

static double mean_difference(const float *x, const float *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += fabs((double)x[i] - (double)y[i]);
  return sum / (double)n;
}

// Prints one head's table; adds the errors of paper and default to sum[1], sum[2].
static void demo(const char *head, int64_t min_seq_len, double sum[3]) {
  static const char *const names[3] = {"exact", "paper", "default"};
  int64_t n, n_key, n_value;
  float *q = read_activations(head, "q", &n), *k = read_activations(head, "k", &n_key),
        *v = read_activations(head, "v", &n_value);
  if (n != n_key || n != n_value) fprintf(stderr, "demo: %s: q, k and v differ in length\n", head), exit(1);
  float *out[2] = {allocate((size_t)n * HEAD_DIM * sizeof(float)),
                   allocate((size_t)n * HEAD_DIM * sizeof(float))};
  float *lse[2] = {allocate((size_t)n * sizeof(float)), allocate((size_t)n * sizeof(float))};

  hyperattn_problem problem = hyperattn_heads_first(1, 1, 1, n, n, HEAD_DIM, HEAD_DIM, q, k, v, NULL);
  problem.causal = 1;

  printf("%s: %lld tokens, head dim %d, causal, min_seq_len %lld, %s, one thread\n", head, (long long)n,
         HEAD_DIM, (long long)min_seq_len, hyperattn_isa_name(hyperattn_detect_isa()));
  printf("  %-8s %9s %8s %11s %10s %10s %10s\n", "", "seconds", "speedup", "keys/query", "error",
         "estimate", "lse error");
  double exact_seconds = 0;
  for (int i = 0; i < 3; i++) {
    hyperattn_params params = i == 1 ? hyperattn_paper_params() : hyperattn_default_params();
    if (i == 0) params.method = HYPERATTN_EXACT;
    params.min_seq_len = min_seq_len;
    problem.out.data = out[i > 0], problem.lse = lse[i > 0];
    double seconds = run(&problem, &params, names[i]);
    if (i == 0) exact_seconds = seconds;
    double error = i ? relative_error(out[1], out[0], n * HEAD_DIM) : 0;
    hyperattn_report report;
    problem.report = &report;  // from a second run, since a report takes time
    run(&problem, &params, names[i]);
    problem.report = NULL;
    printf("  %-8s %9.4f %8.2f %11.0f %10.4f %10.4f %10.4f\n", names[i], seconds, exact_seconds / seconds,
           (double)report.keys_per_query, error, (double)report.error,
           i ? mean_difference(lse[1], lse[0], n) : 0);
    sum[i] += error;
  }
  free(q), free(k), free(v), free(out[0]), free(out[1]), free(lse[0]), free(lse[1]);
}

int main(int argc, char **argv) {
  int64_t min_seq_len = 1024;
  double sum[3] = {0};
  int heads = 0;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--min-seq-len") && i + 1 < argc) {
      min_seq_len = atoll(argv[++i]);
    } else if (argv[i][0] == '-') {
      fprintf(stderr, "usage: demo [--min-seq-len N] [HEAD ...]\n");
      return 2;
    } else {
      demo(argv[i], min_seq_len, sum);
      heads++;
    }
  }
  if (!heads) demo(DEMO_DATA, min_seq_len, sum);
  if (heads > 1)
    printf("mean error over %d heads: paper %.4f, default %.4f\n", heads, sum[1] / heads, sum[2] / heads);
  printf("error: |out - exact| / |exact|, Frobenius; estimate: the library's own;\n");
  printf("lse error: mean |difference|. Times are this machine's, now.\n");
  return 0;
}
