// Time, rate and error of attention, side by side.
//
//   bench_attention [--n N,..] [--dim D,..] [--mask full|causal|both] [--method exact,paper,linear,default]
//                   [--threads T,..] [--dtype f32|f16|bf16|q8_0,..] [--isa NAME] [--repeat R]
//                   [--min-seq-len N] [--csv] [--stages]
//
// --dtype is the dtype of queries, keys and values; with q8_0 the queries are f32. Results are always f32.
// There is one head. Its data are the real activations of examples/data, repeated with a little noise up to
// n tokens; for head dim 128 every row stands twice side by side, at the scale that leaves the scores as
// they are. The time is the least of R runs. The rate counts useful work: the 4 n^2 d operations of exact
// attention (half of them when causal), or those of the pairs that were met; its share of the peak is that of
// fused multiply-adds, or of vdpbf16ps where that multiplies. The error is that of 256 rows,
// against exact attention of the float32 data in double. --stages prints the share of time of each stage.
#define HYPERATTN_STATIC
#define HYPERATTN_STAGE_NAMES
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "amx.h"
#include "measure.h"
#include "pool.h"

// ---- The machine's peak: fused multiply-adds on registers only ----

#define FMA_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define PEAK(isa, target, width)                                              \
  target static double peak_##isa(void) {                                     \
    double best = 0;                                                          \
    float x[16] = {0}, sink = 0;                                              \
    for (int round = 0; round < 5; round++) {                                 \
      hai_vector_##isa a = hai_set1_##isa(0.999f), b = hai_set1_##isa(1e-9f); \
      FMA_12(PEAK_NAME_##isa)                                                 \
      double begin = now();                                                   \
      for (long i = 0; i < 4000000; i++) {                                    \
        FMA_12(PEAK_STEP_##isa)                                               \
      }                                                                       \
      double rate = 4e6 * 12 * 2 * (width) / (now() - begin) * 1e-9;          \
      FMA_12(PEAK_OUT_##isa)                                                  \
      if (rate > best) best = rate;                                           \
    }                                                                         \
    if (sink == 12345.0f) printf("\n");                                       \
    return best;                                                              \
  }
#if defined(__x86_64__)
#define PEAK_NAME_avx512(i) __m512 c##i = hai_set1_avx512((float)i);
#define PEAK_STEP_avx512(i) c##i = hai_fma_avx512(c##i, a, b);
#define PEAK_OUT_avx512(i)   \
  hai_store_avx512(x, c##i); \
  sink += x[0];
#define PEAK_NAME_avx2(i) __m256 c##i = hai_set1_avx2((float)i);
#define PEAK_STEP_avx2(i) c##i = hai_fma_avx2(c##i, a, b);
#define PEAK_OUT_avx2(i)   \
  hai_store_avx2(x, c##i); \
  sink += x[0];
PEAK(avx512, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), 16)
PEAK(avx2, __attribute__((target("avx2,fma,f16c"))), 8)
#if defined(HYPERATTN_NO_AVX512) || (defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 10)
#define HAS_BF16 0
#else
#define HAS_BF16 1
#define hai_set1_avx512bf hai_set1_avx512
#define PEAK_NAME_avx512bf(i) __m512 c##i = hai_set1_avx512((float)i);
#define PEAK_STEP_avx512bf(i) c##i = hai_dot_avx512bf(a, b, c##i);
#define PEAK_OUT_avx512bf(i) PEAK_OUT_avx512(i)
PEAK(avx512bf, __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma"))), 32)
#endif
#elif defined(__aarch64__)
#define PEAK_NAME_neon(i) float32x4_t c##i = hai_set1_neon((float)i);
#define PEAK_STEP_neon(i) c##i = hai_fma_neon(c##i, a, b);
#define PEAK_OUT_neon(i)   \
  hai_store_neon(x, c##i); \
  sink += x[0];
PEAK(neon, , 4)
#endif

static double peak(hyperattn_isa isa) {
#if defined(__x86_64__)
  if (isa == HYPERATTN_ISA_AVX512) return peak_avx512();
  if (isa == HYPERATTN_ISA_AVX2) return peak_avx2();
#if HAS_BF16
  if (isa == HYPERATTN_ISA_AVX512_BF16) return peak_avx512bf();
#endif
#elif defined(__aarch64__)
  if (isa == HYPERATTN_ISA_NEON) return peak_neon();
#endif
  (void)isa;
  return (double)NAN;  // plain C: unknown, since it depends on what the compiler may use
}

// ---- Rows ----

typedef struct options {
  int csv, stages, repeat;
  int64_t min_seq_len;
  hyperattn_isa isa;
  double peak, bf16_peak;  // of one core, GFLOP/s; the other is that of vdpbf16ps
} options;

// Shares of the time, by the stages' names in the order of the table.
static void print_stages(const hyperattn_problem *p, const hyperattn_params *params, void *workspace) {
  hai_plan plan;
  double seconds[HAI_N_STAGES] = {0}, sum = 0;
  hai_resolve(&plan, p, params);
  for (int phase = 0; phase < hai_phases(&plan); phase++)
    for (int64_t i = 0, n = hai_phase_tasks(&plan, phase); i < n; i++) {
      hai_job job;
      const hai_stage *stage = hai_job_at(&job, &plan, workspace, phase, i, 0);
      double begin = now(), took;
      int first = 0;
      hai_run(&plan, workspace, phase, i, 0);
      took = now() - begin;
      while (strcmp(hai_stages[first].name, stage->name)) first++;
      seconds[first] += took, sum += took;
    }
  printf("   ");
  for (int i = 0; i < HAI_N_STAGES; i++)
    if (seconds[i] > 0) printf(" %s %.1f%%", hai_stages[i].name, 100 * seconds[i] / sum);
  printf("\n");
}

// The ISA whose kernel reads the problem's rows.
static hyperattn_isa isa_of(const hyperattn_problem *p, hyperattn_isa isa) {
  hyperattn_params params = hyperattn_default_params();
  hai_plan plan;
  params.isa = isa;
  hai_resolve(&plan, p, &params);
  return plan.kernel->isa;
}

// How many key-query pairs a call meets, from its report.
static double pairs_of(hyperattn_problem p, const hyperattn_params *params) {
  hyperattn_report report;
  p.report = &report;
  size_t bytes = hyperattn_workspace_size(&p, params, 1);
  void *workspace = allocate(bytes);
  if (hyperattn_forward(&p, params, workspace, bytes) != HYPERATTN_OK) report.keys_per_query = NAN;
  free(workspace);
  return (double)report.keys_per_query * (double)p.n_query;
}

static hyperattn_input input_of(const float *x, int64_t n, int64_t dim, hyperattn_dtype dtype) {
  void *data = allocate(elements_size(n * dim, dtype));
  elements_write(x, n * dim, dtype, data);
  return (hyperattn_input){.data = data, .dtype = dtype, .row_stride = (ptrdiff_t)dim};
}

static void row(const options *o, const char *method, int64_t n, int64_t dim, hyperattn_dtype dtype,
                int causal, int threads) {
  hyperattn_problem p = {0};
  hyperattn_params params = !strcmp(method, "paper")    ? hyperattn_paper_params()
                            : !strcmp(method, "linear") ? hyperattn_linear_params()
                                                        : hyperattn_default_params();
  float *q = repeat_rows("q", n, dim), *k = repeat_rows("k", n, dim), *v = repeat_rows("v", n, dim);
  float *out = allocate((size_t)(n * dim) * sizeof *out);
  if (!strcmp(method, "exact")) params.method = HYPERATTN_EXACT;
  if (o->min_seq_len) params.min_seq_len = o->min_seq_len;
  params.isa = o->isa;
  p.batch = p.n_heads = p.n_kv_heads = 1, p.n_query = p.n_key = n, p.head_dim = p.value_dim = dim,
  p.causal = causal;
  p.query = input_of(q, n, dim, dtype == HYPERATTN_Q8_0 ? HYPERATTN_F32 : dtype);
  p.key = input_of(k, n, dim, dtype), p.value = input_of(v, n, dim, dtype);
  p.out.data = out, p.out.row_stride = (ptrdiff_t)dim;
  size_t bytes = hyperattn_workspace_size(&p, &params, threads),
         shared = bytes - (hyperattn_workspace_size(&p, &params, threads + 1) - bytes) * (size_t)threads;
  void *workspace = allocate(bytes);
  pool workers;
  if (!pool_open(&workers, threads)) fprintf(stderr, "no threads\n"), exit(1);
  hyperattn_parallel parallel = {threads, &workers, pool_for};
  double best = (double)INFINITY, spent = 0;
  for (int i = 0; i < o->repeat && (i < 2 || spent < 20); i++) {
    double begin = now();
    hyperattn_status status = hyperattn_forward_parallel(&p, &params, &parallel, workspace, bytes);
    double seconds = now() - begin;
    if (status != HYPERATTN_OK) fprintf(stderr, "%s\n", hyperattn_status_string(status)), exit(1);
    if (seconds < best) best = seconds;
    spent += seconds;
  }
  double error = error_of(&p, (numbers){q, k, v}), pairs = pairs_of(p, &params);
  hyperattn_isa isa = isa_of(&p, o->isa);
  double rate = pairs * 4 * (double)dim / best * 1e-9;
  double share = 100 * rate / ((isa == HYPERATTN_ISA_AVX512_BF16 ? o->bf16_peak : o->peak) * threads);
  if (o->csv)
    printf("%s,%lld,%lld,%s,%s,%d,%s,%.6f,%.1f,%.1f,%.0f,%.2e,%.1f\n", method, (long long)n, (long long)dim,
           element_names[dtype], causal ? "causal" : "full", threads, hyperattn_isa_name(isa), best, rate,
           share, pairs / (double)n, error, (double)shared / (double)n);
  else
    printf("%-8s %7lld %4lld %-5s %-6s %2d  %10.5f %8.1f %6.1f %10.0f %10.2e %8.1f\n", method, (long long)n,
           (long long)dim, element_names[dtype], causal ? "causal" : "full", threads, best, rate, share,
           pairs / (double)n, error, (double)shared / (double)n);
  if (o->stages) print_stages(&p, &params, workspace);
  fflush(stdout);
  pool_close(&workers);
  free((void *)(uintptr_t)p.query.data), free((void *)(uintptr_t)p.key.data),
      free((void *)(uintptr_t)p.value.data);
  free(q), free(k), free(v), free(out), free(workspace);
}

int main(int argc, char **argv) {
  const char *ns = "1024,2048,4096,8192,16384,32768", *dims = "64", *mask = "both",
             *methods = "exact,paper,linear,default", *threads = "1", *dtypes = "f32";
  options o = {0, 0, 5, 0, HYPERATTN_ISA_AUTO, 0, 0};
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (!strcmp(argv[i], "--csv"))
      o.csv = 1;
    else if (!strcmp(argv[i], "--stages"))
      o.stages = 1;
    else if (!strcmp(argv[i], "--n"))
      ns = value, i++;
    else if (!strcmp(argv[i], "--dim"))
      dims = value, i++;
    else if (!strcmp(argv[i], "--dtype"))
      dtypes = value, i++;
    else if (!strcmp(argv[i], "--mask"))
      mask = value, i++;
    else if (!strcmp(argv[i], "--method"))
      methods = value, i++;
    else if (!strcmp(argv[i], "--threads"))
      threads = value, i++;
    else if (!strcmp(argv[i], "--repeat"))
      o.repeat = atoi(value), i++;
    else if (!strcmp(argv[i], "--min-seq-len"))
      o.min_seq_len = atoll(value), i++;
    else if (!strcmp(argv[i], "--isa"))
      o.isa = isa_named(value), i++;
    else {
      fprintf(stderr, "see the top of bench/bench_attention.c for options\n");
      return 2;
    }
  }
  ask_for_amx();
  o.peak = peak(hai_kernel_of(o.isa)->isa);
  o.bf16_peak = hai_kernel_of(HYPERATTN_ISA_AVX512_BF16) ? peak(HYPERATTN_ISA_AVX512_BF16) : (double)NAN;
  if (o.csv)
    printf(
        "method,n,dim,dtype,mask,threads,isa,seconds,gflops,percent_of_peak,keys_per_query,error,bytes_per_"
        "token\n");
  else
    printf(
        "%s, FMA peak of one core %.1f GFLOP/s in this run\n%-8s %7s %4s %-5s %-6s %2s  %10s %8s %6s %10s "
        "%10s "
        "%8s\n",
        hyperattn_isa_name(hai_kernel_of(o.isa)->isa), o.peak, "method", "n", "dim", "dtype", "mask", "th",
        "seconds", "GFLOP/s", "% peak", "keys/query", "error", "B/token");
  for (int64_t dim; next_number(&dims, &dim);)
    for (int causal = 0; causal < 2; causal++) {
      const char *all = ns;
      if (!strcmp(mask, causal ? "full" : "causal")) continue;
      for (int64_t n; next_number(&all, &n);) {
        static const char *const names[] = {"exact", "paper", "linear", "default"};
        for (int m = 0; m < 4; m++)
          for (int dtype = HYPERATTN_F32; dtype <= HYPERATTN_Q8_0; dtype++) {
            const char *each = threads;
            if (!strstr(methods, names[m]) || !is_listed(element_names[dtype], dtypes)) continue;
            for (int64_t t; next_number(&each, &t);)
              row(&o, names[m], n, dim, (hyperattn_dtype)dtype, causal, (int)t);
          }
      }
    }
  return 0;
}
