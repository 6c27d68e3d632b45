// Time and error of the scan, beside exact attention and the near-linear methods, query by query.
//
//   bench_scan [HEAD ..] [--n N,..] [--mask causal|full|both] [--point NAME,..] [--isa NAME,..] [--repeat R]
//              [--seed S] [--min-seq-len N] [--window N] [--needles N] [--csv FILE]
//
// HEAD is PATH of PATH.q.f16, PATH.k.f16 and PATH.v.f16 (or the first of these, so that DIR/*.q.f16 names all
// heads of a folder), or "gauss": queries, keys and values N(0,1)^64. Default: the head of examples/data, and
// gauss. --n: tokens; where a head has fewer it is repeated, with noise of 5 % of its standard deviation.
// Default: as many as it has. Points: default, scan:BUDGET:TOLERANCE, hyper:TOLERANCE (linear with it), linear,
// paper, linear:SCALE, paper:SCALE (their budgets times SCALE). --min-seq-len and --window are those of scan:..
// points. All in float32, on one thread. Rounds take all points in turns, and a time is the least of R rounds.
//
// speed      exact attention's time over this one's, by the same ISA
// mean       mean of the relative errors |out_i - exact_i| / |exact_i| of all queries; frob.: Frobenius norms
// 50 % ..    that many of the queries have no larger error
// over       share of the queries whose error is above the tolerance (0.1 where it is 0), and above twice that
// truth      a query's error over its own estimate of it: median and 99 % of those estimated above 0.001
// keys, exact, doubled, estimate   from the report
// cost       hyperattn_cost
//
// --needles N tests N needles for each head (scan_needles.h) instead, at seeds 0 .. N - 1. lost: error above 0.5;
// unseen: lost, though the query's own estimate (the report's largest, where a method has none) is not above.
#define HYPERATTN_STATIC
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "record.h"
#include "scan_needles.h"

#include <unistd.h>

#define POINTS "scan:128:0.05,default,scan:128:0.2,scan:32:0,scan:64:0,scan:128:0,hyper:0.1,linear,paper"

#define CASE_COLUMNS "head,n,mask,isa,scan_price,point,sample_size,tolerance,min_seq_len,window,seed"
#define NEEDLE_COLUMNS CASE_COLUMNS ",needles,lost,unseen,mean_error,max_error,mean_estimate,mean_weight"

typedef struct bench {
  const char *lengths, *masks, *isas, *csv;
  const char **heads;
  int n_heads, repeat, needles, bar;
  int64_t seed, min_seq_len, window;
  int n_points;
  point points[MAX_POINTS];
  FILE *record;
  caller caller;
  double worst_exact;
} bench;

static void progress(const bench *b, const head *h, const char *what, int at, int of) {
  if (b->bar) fprintf(stderr, "\r\033[K%s %s %d/%d\r", h->name, what, at, of), fflush(stderr);
}
static void end_progress(const bench *b) {
  if (b->bar) fprintf(stderr, "\r\033[K"), fflush(stderr);
}

// ---- Rows ----

static void print_case(const head *h, int causal, const char *what) {
  printf("%-14s %7lld %-6s %-13s", h->name, (long long)h->n, causal ? "causal" : "full", what);
}

static void record_case(const bench *b, const head *h, int causal, hyperattn_isa isa, const point *pt) {
  const hyperattn_params *p = &pt->params;
  const hai_kernel *kernel = hai_kernel_of(isa);
  fprintf(b->record, "%s,%lld,%s,%s,%g,%s,%lld,%g,%lld,%lld,%lld", h->name, (long long)h->n,
          causal ? "causal" : "full", hyperattn_isa_name(kernel->isa),
          (double)hai_scan_kernel_of(kernel)->cost, pt->label, (long long)p->sample_size,
          (double)p->tolerance, (long long)p->min_seq_len, (long long)p->window, (long long)b->seed);
}

static void print_titles(void) {
  printf("%-14s %7s %-6s %-13s", "head", "n", "mask", "point");
  for (int c = 0; c < COLUMNS; c++)
    if (columns[c].title) printf(" %*s |", columns[c].width, columns[c].title);
  printf("\n");
}

static void write_result(const bench *b, const head *h, int causal, hyperattn_isa isa, const point *pt,
                         const result *r) {
  print_case(h, causal, pt->label);
  for (int c = 0; c < COLUMNS; c++)
    if (columns[c].title) cell(columns[c].format, columns[c].width, r->at[c] * (c == SECONDS ? 1e3 : 1));
  printf("\n"), fflush(stdout);
  if (!b->record) return;
  record_case(b, h, causal, isa, pt);
  for (int c = 0; c < COLUMNS; c++)
    isnan(r->at[c]) ? fprintf(b->record, ",") : fprintf(b->record, ",%.6g", r->at[c]);
  fprintf(b->record, "\n"), fflush(b->record);
}

// ---- Time and error ----

static void time_points(bench *b, const head *h, const hyperattn_problem *p, const point *points,
                        result *r) {
  for (int pt = 0; pt < b->n_points; pt++)
    for (int c = 0; c < COLUMNS; c++) r[pt].at[c] = c == SECONDS ? (double)INFINITY : NOT_MEASURED;
  for (int round = 0; round < b->repeat; round++)
    for (int pt = 0; pt < b->n_points; pt++) {
      progress(b, h, points[pt].label, round + 1, b->repeat);
      r[pt].at[SECONDS] = fmin(r[pt].at[SECONDS], attend(&b->caller, p, &points[pt].params));
    }
  for (int pt = 0; pt < b->n_points; pt++) r[pt].at[SPEED] = r[0].at[SECONDS] / r[pt].at[SECONDS];
}

// Exact attention, held to sums in double on some rows.
static void find_exact(bench *b, const head *h, const hyperattn_problem *p, const point *pt) {
  squares sum = {0, 0};
  attend(&b->caller, p, &pt->params);
  add_squares(&sum, p, (numbers){h->rows[0], h->rows[1], h->rows[2]}, 32);
  b->worst_exact = fmax(b->worst_exact, relative(sum));
  if (b->worst_exact > 1e-4)
    fprintf(stderr, "bench_scan: exact attention is off by %.1e\n", b->worst_exact), exit(1);
}

static void compare(bench *b, head *h, int causal, hyperattn_isa isa, const point *points) {
  float *out = numbers_of(h->n * HEAD_DIM), *exact = numbers_of(h->n * HEAD_DIM);
  hyperattn_problem p = problem_of(h, causal, exact);
  result results[MAX_POINTS];
  find_exact(b, h, &p, &points[0]);
  p.out.data = out;
  time_points(b, h, &p, points, results);
  for (int pt = 0; pt < b->n_points; pt++) {
    progress(b, h, points[pt].label, 1, 1);
    measure(&b->caller, p, &points[pt], exact, &results[pt]);
    end_progress(b);
    write_result(b, h, causal, isa, &points[pt], &results[pt]);
  }
  free(out), free(exact);
}

// ---- Needles ----

static void print_needle_titles(void) {
  printf("%-14s %7s %-6s %-13s %7s | %4s | %6s | %10s | %9s | %13s | %6s |\n", "head", "n", "mask", "point",
         "needles", "lost", "unseen", "mean error", "max error", "mean estimate", "weight");
}

static void write_needles(const bench *b, const head *h, int causal, hyperattn_isa isa, const point *pt,
                          const needles *x) {
  double made = x->made ? x->made : NOT_MEASURED;
  print_case(h, causal, pt->label);
  printf(" %7d | %4d | %6d |", x->made, x->lost, x->unseen);
  cell("%.4f", 10, x->error / made), cell("%.3f", 9, x->worst), cell("%.4f", 13, x->estimate / made);
  cell("%.3f", 6, x->weight / made);
  printf("\n"), fflush(stdout);
  if (!b->record) return;
  record_case(b, h, causal, isa, pt);
  fprintf(b->record, ",%d,%d,%d,%.6g,%.6g,%.6g,%.6g\n", x->made, x->lost, x->unseen, x->error / made,
          x->worst, x->estimate / made, x->weight / made);
  fflush(b->record);
}

static void seek_all(bench *b, head *h, int causal, hyperattn_isa isa, const point *points) {
  float *out = numbers_of(h->n * HEAD_DIM), *estimates = numbers_of(h->n);
  double *scores = allocate((size_t)h->n * sizeof *scores), mean[HEAD_DIM];
  hyperattn_problem p = problem_of(h, causal, out);
  needles found[MAX_POINTS] = {{0}};
  uint64_t random = (uint64_t)b->seed;
  needle x;
  mean_key(h, mean);
  for (int made = 0, tried = 0; made < b->needles && tried < 4 * b->needles; tried++) {
    int is_needle = put_needle(h, &p, mean, &random, scores, &x);
    for (int pt = 1; pt < b->n_points && is_needle; pt++) {
      progress(b, h, points[pt].label, made + 1, b->needles);
      seek(&b->caller, p, &points[pt], made, &x, estimates, &found[pt]);
    }
    take_needle(h, &x);
    made += is_needle;
  }
  end_progress(b);
  for (int pt = 1; pt < b->n_points; pt++) write_needles(b, h, causal, isa, &points[pt], &found[pt]);
  free(out), free(estimates), free(scores);
}

// ---- Cases ----

static void run_isa(bench *b, head *h, int causal, hyperattn_isa isa) {
  point points[MAX_POINTS];
  memcpy(points, b->points, sizeof points);
  for (int pt = 0; pt < b->n_points; pt++) points[pt].params.isa = isa;
  (b->needles ? seek_all : compare)(b, h, causal, isa, points);
}

static void run_head(bench *b, head *h, int causal) {
  if (!*b->isas) run_isa(b, h, causal, HYPERATTN_ISA_AUTO);
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++)
    if (is_listed(hyperattn_isa_name((hyperattn_isa)isa), b->isas))
      run_isa(b, h, causal, (hyperattn_isa)isa);
}

static void run_length(bench *b, int64_t n) {
  for (int i = 0; i < b->n_heads; i++) {
    head h = open_head(b->heads[i], n);
    for (int causal = 1; causal >= 0; causal--)
      if (strcmp(b->masks, causal ? "full" : "causal")) run_head(b, &h, causal);
    close_head(&h);
  }
}

static void run_all(bench *b) {
  const char *lengths = b->lengths;
  if (!*lengths) run_length(b, 0);
  for (int64_t n; next_number(&lengths, &n);) run_length(b, n);
}

// ---- Options ----

static void refuse(const char *what) {
  fprintf(stderr, "bench_scan: %s: see the top of bench/bench_scan.c for options\n", what), exit(2);
}

// Point 0 is exact attention.
static void read_points(bench *b, const char *list) {
  read_point("exact", 5, &b->points[0]);
  b->n_points = 1;
  for (size_t length; *list; list += length, list += *list == ',') {
    length = strcspn(list, ",");
    if (b->n_points == MAX_POINTS || !read_point(list, length, &b->points[b->n_points++])) refuse(list);
  }
  for (int pt = 0; pt < b->n_points; pt++) {
    hyperattn_params *p = &b->points[pt].params;
    int is_scan = !strncmp(b->points[pt].label, "scan:", 5);
    p->seed = (uint64_t)b->seed;
    if (is_scan && b->min_seq_len > 0) p->min_seq_len = b->min_seq_len;
    if (is_scan && b->window >= 0) p->window = b->window;
  }
}

static void check_isas(const char *list) {
  for (size_t length; *list; list += length, list += *list == ',') {
    char name[LABEL_SIZE];
    length = strcspn(list, ",");
    snprintf(name, sizeof name, "%.*s", (int)length, list);
    if (isa_named(name) == HYPERATTN_ISA_AUTO) refuse(list);
  }
}

static void read_options(bench *b, int argc, char **argv) {
  const char *points = POINTS;
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
    if (strncmp(name, "--", 2)) {
      b->heads[b->n_heads++] = name;
      continue;
    }
    if (!*value) refuse(name);
    i++;
    if (!strcmp(name, "--n"))
      b->lengths = value;
    else if (!strcmp(name, "--mask"))
      b->masks = value;
    else if (!strcmp(name, "--point"))
      points = value;
    else if (!strcmp(name, "--isa"))
      b->isas = value;
    else if (!strcmp(name, "--csv"))
      b->csv = value;
    else if (!strcmp(name, "--repeat"))
      b->repeat = atoi(value);
    else if (!strcmp(name, "--needles"))
      b->needles = atoi(value);
    else if (!strcmp(name, "--seed"))
      b->seed = atoll(value);
    else if (!strcmp(name, "--min-seq-len"))
      b->min_seq_len = atoll(value);
    else if (!strcmp(name, "--window"))
      b->window = atoll(value);
    else
      refuse(name);
  }
  if (!is_listed(b->masks, "causal,full,both")) refuse("--mask");
  if (b->repeat < 1 || b->needles < 0) refuse("--repeat or --needles");
  if (!b->n_heads) b->heads[b->n_heads++] = BENCH_DATA, b->heads[b->n_heads++] = GAUSS;
  check_isas(b->isas);
  read_points(b, points);
}

// The columns of the record of times and errors.
static const char *result_columns(void) {
  static char text[1024];
  size_t at = (size_t)snprintf(text, sizeof text, "%s", CASE_COLUMNS);
  for (int c = 0; c < COLUMNS; c++)
    at += (size_t)snprintf(text + at, sizeof text - at, ",%s", columns[c].name);
  return text;
}

int main(int argc, char **argv) {
  bench b = {.lengths = "", .masks = "causal", .isas = "", .repeat = 3, .window = -1};
  b.heads = allocate((size_t)(argc + 2) * sizeof *b.heads);
  read_options(&b, argc, argv);
  b.bar = isatty(STDERR_FILENO);
  if (b.csv)
    b.record = open_record(b.csv, "bench_scan", b.needles ? NEEDLE_COLUMNS : result_columns(), b.repeat,
                           argc, argv);
  b.needles ? print_needle_titles() : print_titles();
  run_all(&b);
  if (!b.needles) printf("exact attention against double: rows within %.1e\n", b.worst_exact);
  if (b.record && fclose(b.record))
    fprintf(stderr, "bench_scan: the record could not be written\n"), exit(1);
  free(b.heads), free(b.caller.workspace);
  return 0;
}
