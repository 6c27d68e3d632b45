// Decoding over a key index: its errors step by step, needles, and its time beside exact attention's.
//
//   bench_index [HEAD ..] [--n N,..] [--tolerance T,..] [--steps S] [--needles N] [--isa NAME] [--csv FILE]
//   bench_index --time [HEAD ..] [--n N,..] [--tolerance T,..] [--group G,..] [--dim D,..] [--repeat R]
//               [--cache MB] [--isa NAME] [--csv FILE]
//
// HEAD and --n as for bench_scan. A step is one query at one of the last positions, S of them (default: 512), spread
// over the last 2048 tokens, over the keys up to it; the index is appended to from step to step. Caches are of f16.
//
// over, twice   share of the steps whose true relative error is above the tolerance, and above twice that
// frob.         of all steps together; truth: a step's error over its own estimate, median and 99 %
// keys, exact, doubled   that a step met; steps that met every key; that tried more than one budget
// bytes, ns     of the index for a key; of an append for a key, in blocks of 64
// lost          needles (scan_needles.h), of N, whose step has an error above 0.5
//
// --time: one head of keys and G query heads (default: 1,4). The cache lies in memory several times, MB megabytes in
// all (320), and each call meets the next copy. Rounds of R (default: 9) take exact attention and the index in turns,
// 16 steps each; the least of the rounds' means is told. For a dim of 128, rows stand side by side twice, at the scale
// that leaves scores as they are, with noise.
#define HYPERATTN_STATIC
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "record.h"
#include "reading.h"
#include "scan_needles.h"

#include <unistd.h>

enum { LAST = 2048, MAX_GROUP = 16, STEPS_OF_ROUND = 16, MOST_DIM = 128 };

#define STEP_COLUMNS                                                                             \
  "head,n,isa,tolerance,steps,over,twice,frobenius,mean,truth_q50,truth_q99,keys,exact,doubled," \
  "bytes_a_key,append_ns,needles,lost,worst_needle"
#define TIME_COLUMNS "head,n,isa,tolerance,group,dim,exact_seconds,index_seconds,speed,keys,exact,doubled"

typedef struct bench {
  const char *lengths, *tolerances, *groups, *dims, *csv;
  const char **heads;
  int n_heads, steps, needles, repeat, is_time;
  int64_t megabytes;
  hyperattn_isa isa;
  FILE *record;
  caller caller;
} bench;

// ---- A cache of one kv head, in f16, and its index ----

typedef struct cache {
  uint16_t *key, *value;  // [copies][n][dim]
  hyperattn_index **index;
  void **memory;
  int copies;
  int64_t n, dim;
  size_t index_bytes;
} cache;

static hyperattn_problem step_of(const cache *c, int copy, int group, const float *query, int64_t n_key,
                                 float *out) {
  hyperattn_problem p =
      hyperattn_heads_first(1, group, 1, 1, n_key, c->dim, c->dim, query, c->key + copy * c->n * c->dim,
                            c->value + copy * c->n * c->dim, out);
  p.key.dtype = p.value.dtype = HYPERATTN_F16;
  p.causal = 1;
  return p;
}

// The index of a copy, once it knows the first n_key keys and no others.
static void append(const cache *c, int copy, int64_t n_key) {
  hyperattn_problem p = step_of(c, copy, 1, NULL, n_key, NULL);
  hyperattn_status status = HYPERATTN_OK;
  p.n_query = 0;
  if (hyperattn_index_length(c->index[copy]) > n_key) status = hyperattn_index_truncate(c->index[copy], &p);
  if (status == HYPERATTN_OK) status = hyperattn_index_append(c->index[copy], &p);
  if (status != HYPERATTN_OK)
    fprintf(stderr, "bench_index: %s\n", hyperattn_status_string(status)), exit(2);
}

// Element t of a row of `dim`, of a head's rows.
static float element(const float *rows, int64_t row, int64_t t, int64_t dim, float scale, uint64_t noise) {
  float x = rows[row * HEAD_DIM + t % HEAD_DIM] * scale;
  return t < HEAD_DIM && dim == HEAD_DIM
             ? x
             : x * (1.0f + 0.02f * ((float)(hai_mix(noise) >> 40) / 16777216.0f - 0.5f));
}
static float scale_of(int64_t dim) { return powf((float)HEAD_DIM / (float)dim, 0.25f); }

static cache new_cache(const head *h, int64_t dim, int copies) {
  size_t bytes = (size_t)(copies * h->n * dim) * sizeof(uint16_t);
  cache c = {.copies = copies,
             .n = h->n,
             .dim = dim,
             .key = allocate_pages(bytes, 1),
             .value = allocate_pages(bytes, 1)};
  c.index = allocate((size_t)copies * sizeof *c.index),
  c.memory = allocate((size_t)copies * sizeof *c.memory);
  for (int64_t i = 0; i < copies * h->n * dim; i++) {
    int64_t row = i / dim % h->n, t = i % dim;
    c.key[i] = float_to_half(element(h->rows[1], row, t, dim, scale_of(dim), (uint64_t)(2 * i)));
    c.value[i] = float_to_half(element(h->rows[2], row, t, dim, 1.0f, (uint64_t)(2 * i + 1)));
  }
  for (int i = 0; i < copies; i++) {
    hyperattn_problem shape = step_of(&c, i, 1, NULL, h->n, NULL);
    c.index_bytes = hyperattn_index_size(&shape);
    c.memory[i] = allocate_pages(c.index_bytes, 1);
    if (hyperattn_index_init(&c.index[i], &shape, c.memory[i], c.index_bytes)) exit(2);
  }
  return c;
}

static void free_cache(cache *c) {
  for (int i = 0; i < c->copies; i++) free(c->memory[i]);
  free(c->key), free(c->value), free(c->index), free(c->memory);
}

static hyperattn_params params_of(const bench *b, double tolerance) {
  hyperattn_params p = hyperattn_default_params();
  p.tolerance = (float)tolerance, p.isa = b->isa;
  return p;
}

// ---- Errors ----

typedef struct steps {
  int n, n_ratios;
  double over, twice, sum, keys, exact, doubled;
  squares all;
  float *ratio;
} steps;

// One query over the index, and by exact attention.
static double step_error(bench *b, const cache *c, const hyperattn_params *params, const float *query,
                         int64_t n_key, hyperattn_report *report, squares *s) {
  float out[HEAD_DIM], exact[HEAD_DIM];
  hyperattn_problem p = step_of(c, 0, 1, query, n_key, exact);
  hyperattn_params all = *params;
  all.method = HYPERATTN_EXACT;
  attend(&b->caller, &p, &all);
  p.out.data = out, p.index = c->index[0], p.report = report;
  attend(&b->caller, &p, params);
  *s = row_squares(out, exact);
  return relative(*s);
}

static void run_steps(bench *b, const head *h, const cache *c, double tolerance, steps *s) {
  hyperattn_params params = params_of(b, tolerance);
  int64_t first = h->n > LAST ? h->n - LAST : h->n / 2;
  for (s->n = 0; s->n < b->steps; s->n++) {
    int64_t at = first + s->n * (h->n - first) / b->steps;
    hyperattn_report r = {0};
    squares one;
    append(c, 0, at + 1);
    params.seed = (uint64_t)at;
    double error = step_error(b, c, &params, h->rows[0] + at * HEAD_DIM, at + 1, &r, &one);
    s->all.difference += one.difference, s->all.exact += one.exact, s->sum += error;
    s->over += error > tolerance, s->twice += error > 2 * tolerance;
    s->keys += (double)r.keys_per_query, s->exact += (double)r.exact, s->doubled += (double)r.doubled;
    if (r.max_error > LEAST_ESTIMATE) s->ratio[s->n_ratios++] = (float)error / r.max_error;
  }
}

// Needles of a head: how many are lost, and the worst error.
static int seek_steps(bench *b, head *h, const cache *c, double tolerance, double *worst) {
  hyperattn_params params = params_of(b, tolerance);
  hyperattn_problem p = problem_of(h, 1, NULL);
  double *scores = allocate((size_t)h->n * sizeof *scores), mean[HEAD_DIM];
  uint64_t random = 0;
  int lost = 0;
  mean_key(h, mean);
  for (int made = 0, tried = 0; made < b->needles && tried < 4 * b->needles; tried++) {
    hyperattn_report r = {0};
    squares one;
    needle x;
    int is_needle = put_needle(h, &p, mean, &random, scores, &x);
    params.seed = (uint64_t)tried;
    if (is_needle) {
      append(c, 0, x.query + 1);
      double error = step_error(b, c, &params, h->rows[0] + x.query * HEAD_DIM, x.query + 1, &r, &one);
      *worst = fmax(*worst, error), lost += error > LOST;
    }
    take_needle(h, &x);
    made += is_needle;
  }
  free(scores);
  return lost;
}

static void print_step_titles(void) {
  printf("%-16s %7s %9s | %6s | %6s | %6s | %6s | %5s | %5s | %6s | %7s | %9s | %5s | %5s | %4s | %5s |\n",
         "head", "n", "tolerance", "% over", "twice", "frob.", "mean", "truth", "99 %", "keys", "% exact",
         "% doubled", "bytes", "ns", "lost", "worst");
}

static void test_steps(bench *b, head *h, double tolerance) {
  cache c = new_cache(h, HEAD_DIM, 1);
  steps s = {.ratio = numbers_of(b->steps)};
  double n = b->steps, worst = 0, begin = now();
  append(&c, 0, h->n);
  double nanoseconds = (now() - begin) * 1e9 / (double)h->n, bytes = (double)c.index_bytes / (double)h->n;
  run_steps(b, h, &c, tolerance, &s);
  int lost = b->needles ? seek_steps(b, h, &c, tolerance, &worst) : 0;
  qsort(s.ratio, (size_t)s.n_ratios, sizeof *s.ratio, ascending);
  double half = quantile(s.ratio, s.n_ratios, 0.5), of_100 = quantile(s.ratio, s.n_ratios, 0.99);
  printf("%-16s %7lld %9g |", h->name, (long long)h->n, tolerance);
  cell("%.2f", 6, 100 * s.over / n), cell("%.2f", 6, 100 * s.twice / n), cell("%.4f", 6, relative(s.all));
  cell("%.4f", 6, s.sum / n), cell("%.2f", 5, half), cell("%.2f", 5, of_100), cell("%.0f", 6, s.keys / n);
  cell("%.1f", 7, 100 * s.exact / n), cell("%.1f", 9, 100 * s.doubled / n), cell("%.1f", 5, bytes);
  cell("%.0f", 5, nanoseconds), cell("%.0f", 4, b->needles ? lost : NOT_MEASURED);
  cell("%.2f", 5, b->needles ? worst : NOT_MEASURED);
  printf("\n"), fflush(stdout);
  if (b->record) {
    fprintf(b->record,
            "%s,%lld,%s,%g,%d,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.4g,%.4g,%d,%d,%.4g\n", h->name,
            (long long)h->n, hyperattn_isa_name(hai_kernel_of(b->isa)->isa), tolerance, b->steps,
            s.over / n, s.twice / n, relative(s.all), s.sum / n, half, of_100, s.keys / n, s.exact / n,
            s.doubled / n, bytes, nanoseconds, b->needles, lost, worst);
    fflush(b->record);
  }
  free(s.ratio), free_cache(&c);
}

// ---- Time ----

static void print_time_titles(void) {
  printf("%-16s %7s %9s %5s %4s | %9s | %9s | %5s | %6s | %7s | %9s |\n", "head", "n", "tolerance", "group",
         "dim", "exact us", "index us", "speed", "keys", "% exact", "% doubled");
}

typedef struct timed {
  double exact, index, keys, whole, doubled;  // seconds of a step; sums of reports
} timed;

// One round: STEPS_OF_ROUND steps, each over the next copy.
static void time_round(bench *b, const cache *c, const float *queries, int64_t group,
                       hyperattn_params params, int *copy, timed *t, int is_first) {
  float out[MAX_GROUP * MOST_DIM];
  double exact = 0, index = 0;
  for (int i = 0; i < STEPS_OF_ROUND; i++) {
    const float *query = queries + i * group * c->dim;
    hyperattn_report report[MAX_GROUP];
    hyperattn_problem p = step_of(c, *copy, (int)group, query, c->n, out);
    p.index = c->index[*copy], params.method = HYPERATTN_SCAN, params.seed = (uint64_t)i;
    index += attend(&b->caller, &p, &params);
    *copy = (*copy + 1) % c->copies;
    p = step_of(c, *copy, (int)group, query, c->n, out), params.method = HYPERATTN_EXACT;
    exact += attend(&b->caller, &p, &params);
    *copy = (*copy + 1) % c->copies;
    if (!is_first) continue;
    p.index = c->index[(*copy + c->copies - 1) % c->copies], p.report = report,
    params.method = HYPERATTN_SCAN;
    attend(&b->caller, &p, &params);
    for (int g = 0; g < group; g++) {
      t->keys += (double)report[g].keys_per_query, t->whole += (double)report[g].exact;
      t->doubled += (double)report[g].doubled;
    }
  }
  t->exact = fmin(t->exact, exact / STEPS_OF_ROUND), t->index = fmin(t->index, index / STEPS_OF_ROUND);
}

static void time_group(bench *b, const head *h, const cache *c, double tolerance, int64_t group) {
  float *queries = numbers_of(STEPS_OF_ROUND * group * c->dim);
  timed t = {.exact = (double)INFINITY, .index = (double)INFINITY};
  double rows = (double)(STEPS_OF_ROUND * group);
  int copy = 0;
  for (int64_t i = 0; i < STEPS_OF_ROUND * group * c->dim; i++) {  // of the last tokens, a prime apart
    int64_t row = h->n - 1 - i / c->dim * 37 % (h->n < LAST ? h->n : LAST);
    queries[i] = element(h->rows[0], row, i % c->dim, c->dim, scale_of(c->dim), (uint64_t)i);
  }
  for (int r = 0; r < b->repeat; r++)
    time_round(b, c, queries, group, params_of(b, tolerance), &copy, &t, r == 0);
  printf("%-16s %7lld %9g %5lld %4lld |", h->name, (long long)h->n, tolerance, (long long)group,
         (long long)c->dim);
  cell("%.1f", 9, t.exact * 1e6), cell("%.1f", 9, t.index * 1e6), cell("%.2f", 5, t.exact / t.index);
  cell("%.0f", 6, t.keys / rows), cell("%.1f", 7, 100 * t.whole / rows),
      cell("%.1f", 9, 100 * t.doubled / rows);
  printf("\n"), fflush(stdout);
  if (b->record) {
    fprintf(b->record, "%s,%lld,%s,%g,%lld,%lld,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g\n", h->name, (long long)h->n,
            hyperattn_isa_name(hai_kernel_of(b->isa)->isa), tolerance, (long long)group, (long long)c->dim,
            t.exact, t.index, t.exact / t.index, t.keys / rows, t.whole / rows, t.doubled / rows);
    fflush(b->record);
  }
  free(queries);
}

static void time_head(bench *b, const head *h, double tolerance) {
  const char *dims = b->dims, *groups;
  for (int64_t dim, group; next_number(&dims, &dim);) {
    int64_t copies = (b->megabytes << 20) / (h->n * dim * 4);
    cache c = new_cache(h, dim, (int)(copies < 2 ? 2 : copies));
    for (int i = 0; i < c.copies; i++) append(&c, i, h->n);
    for (groups = b->groups; next_number(&groups, &group);) time_group(b, h, &c, tolerance, group);
    free_cache(&c);
  }
}

// ---- Cases ----

static void run_head(bench *b, const char *path, int64_t n) {
  const char *at = b->tolerances;
  head h = open_head(path, n);
  while (*at) {
    double tolerance = atof(at);
    b->is_time ? time_head(b, &h, tolerance) : test_steps(b, &h, tolerance);
    at += strcspn(at, ","), at += *at == ',';
  }
  close_head(&h);
}

static void run_length(bench *b, int64_t n) {
  for (int i = 0; i < b->n_heads; i++) run_head(b, b->heads[i], n);
}

static void refuse(const char *what) {
  fprintf(stderr, "bench_index: %s: see the top of bench/bench_index.c for options\n", what), exit(2);
}

static int read_option(bench *b, const char *name, const char *value) {
  if (!strcmp(name, "--n")) return b->lengths = value, 1;
  if (!strcmp(name, "--tolerance")) return b->tolerances = value, 1;
  if (!strcmp(name, "--group")) return b->groups = value, 1;
  if (!strcmp(name, "--dim")) return b->dims = value, 1;
  if (!strcmp(name, "--csv")) return b->csv = value, 1;
  if (!strcmp(name, "--isa")) return b->isa = isa_named(value), 1;
  if (!strcmp(name, "--steps")) return (b->steps = atoi(value)) > 0;
  if (!strcmp(name, "--needles")) return (b->needles = atoi(value)) >= 0;
  if (!strcmp(name, "--repeat")) return (b->repeat = atoi(value)) > 0;
  if (!strcmp(name, "--cache")) return (b->megabytes = atoll(value)) > 0;
  return 0;
}

static void read_options(bench *b, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--time"))
      b->is_time = 1;
    else if (strncmp(argv[i], "--", 2))
      b->heads[b->n_heads++] = argv[i];
    else if (i + 1 == argc || !read_option(b, argv[i], argv[i + 1]))
      refuse(argv[i]);
    else
      i++;
  }
  if (!b->n_heads) b->heads[b->n_heads++] = BENCH_DATA;
  const char *dims = b->dims, *groups = b->groups;
  for (int64_t dim; next_number(&dims, &dim);)
    if (dim != HEAD_DIM && dim != MOST_DIM) refuse("--dim");
  for (int64_t group; next_number(&groups, &group);)
    if (group < 1 || group > MAX_GROUP) refuse("--group");
}

int main(int argc, char **argv) {
  bench b = {.lengths = "",
             .tolerances = "0.1",
             .groups = "1,4",
             .dims = "64",
             .steps = 512,
             .repeat = 9,
             .megabytes = 320};
  b.heads = allocate((size_t)(argc + 1) * sizeof *b.heads);
  read_options(&b, argc, argv);
  if (b.csv)
    b.record =
        open_record(b.csv, "bench_index", b.is_time ? TIME_COLUMNS : STEP_COLUMNS, b.repeat, argc, argv);
  b.is_time ? print_time_titles() : print_step_titles();
  const char *lengths = b.lengths;
  if (!*lengths) run_length(&b, 0);
  for (int64_t n; next_number(&lengths, &n);) run_length(&b, n);
  if (b.record && fclose(b.record))
    fprintf(stderr, "bench_index: the record could not be written\n"), exit(1);
  free(b.heads), free(b.caller.workspace);
  return 0;
}
