// How accurate attention is at its cost, on heads of a language model and on synthetic ones (quality_data.h).
//
//   bench_quality [--qkv DIR] [--set essay,repeat,planted,clustered,gauss]
//                 [--preset default|linear|paper|all] [--seeds K] [--threads N] [--csv FILE] [--front]
//                 [--min-seq-len N] [--block-size N] [--sample-size N] [--heavy-keys N] [--probe-queries N]
//                 [--query-group N] [--key-group N] [--order sortlsh|position|probed]
//                 [--sampling uniform|value-norm|column-mass] [--tolerance X] [--dtype f32|f16|bf16|q8_0]
//
// The parameters apply to default and linear, and to the paper's preset if that is the only one;
// --min-seq-len applies to all. Its default is 1024, and 2048 for the essay by linear and paper. Without
// --qkv the essay is the one head of examples/data. The seeds change the library's choices and the
// synthetic data. --front sweeps the budget instead, at min_seq_len 1024; bench/plot.py --quality draws
// what --csv then writes. --dtype is the dtype of queries (f32 for q8_0), keys and values; errors are
// against the float32 data.
//
// error       |out - exact| / |exact|, Frobenius norms; 2nd half: over the second half of the queries
// of bound    the operator norm of out - exact, divided by |D^-1 A| |V|: the paper's measure
// keys/query  keys that a query meets, with probes, pairing and judging; of exact: over exact attention's
// time        divided by that of exact attention, each the better of two runs
// estimate    the library's own estimate of the error, from its report; est/true: divided by the error
#define HYPERATTN_STATIC
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "amx.h"
#include "quality_measure.h"

#include <unistd.h>

#ifndef BENCH_DATA
#define BENCH_DATA "examples/data/l28h1"
#endif

enum { MAX_POINTS = 16, MAX_SEEDS = 1000 };

typedef struct bench {
  const char *folder;
  FILE *csv;
  int front, seeds, presets, sets;  // presets, sets: bits
  int64_t block_size, sample_size, heavy_keys, probe_queries, query_group, key_group,
      min_seq_len;  // -1: as is
  int64_t order, sampling;
  double tolerance;
  source *sources;
  int n_sources, n_points, bar;
  point points[MAX_POINTS];
  result *results;  // [source][point][seed]
  runner run;
} bench;

static result *result_at(const bench *b, int src, int pt, int seed) {
  return &b->results[(src * b->n_points + pt) * b->seeds + seed];
}

static void progress(const bench *b, const char *what, const char *which) {
  if (b->bar) fprintf(stderr, "\r\033[K%s %s\r", what, which), fflush(stderr);
}

// ---- Statistics ----

typedef struct spread {
  double mean, low, high;
} spread;

static spread spread_of(const double *x, int n) {
  spread s = {0, (double)INFINITY, -(double)INFINITY};
  for (int i = 0; i < n; i++) {
    if (isnan(x[i])) return (spread){NOT_MEASURED, NOT_MEASURED, NOT_MEASURED};
    s.mean += x[i] / n, s.low = fmin(s.low, x[i]), s.high = fmax(s.high, x[i]);
  }
  return n ? s : (spread){NOT_MEASURED, NOT_MEASURED, NOT_MEASURED};
}

static double *zeros(int n) {
  double *x = calloc((size_t)n, sizeof *x);
  if (!x) fprintf(stderr, "out of memory\n"), exit(1);
  return x;
}

// Statistics over the heads of some sets, for one seed.
static spread over_heads(const bench *b, int sets, int pt, int seed, enum column c) {
  double *x = zeros(b->n_sources);
  int n = 0;
  for (int s = 0; s < b->n_sources; s++)
    if (pt >= 0 && sets >> b->sources[s].set & 1) x[n++] = result_at(b, s, pt, seed)->at[c];
  spread found = spread_of(x, n);
  free(x);
  return found;
}

// Ranks from 0; equal values all get the mean of their ranks.
static void rank(const double *x, double *ranks, int n) {
  for (int i = 0; i < n; i++) {
    ranks[i] = -0.5;
    for (int j = 0; j < n; j++) ranks[i] += x[j] < x[i] ? 1 : !(x[j] > x[i]) ? 0.5 : 0;
  }
}

static double correlation(const double *x, const double *y, int n) {
  double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
  for (int i = 0; i < n; i++) mx += x[i] / n, my += y[i] / n;
  for (int i = 0; i < n; i++)
    xx += (x[i] - mx) * (x[i] - mx), yy += (y[i] - my) * (y[i] - my), xy += (x[i] - mx) * (y[i] - my);
  return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NOT_MEASURED;
}

// ---- Tables ----

static void cell(int width, int digits, double x) {
  if (isnan(x))
    printf("%*s", width, "-");
  else
    printf("%*.*f", width, digits, x);
}

static void print_titles(const char *what) {
  printf("%-14s %-14s", what, "parameters");
  for (int c = 0; c < COLUMNS; c++) {
    if (columns[c].title) printf("%*s", columns[c].width, columns[c].title);
    if (c == ERROR) printf("  %-18s", "over seeds");
  }
  printf("\n");
}

// A head, or the mean of a set; for some columns the maximum of the set instead.
static void print_row(const bench *b, int src, int set, int pt) {
  double x[MAX_SEEDS];
  printf("%-14s %-14s", src < 0 ? set_names[set] : b->sources[src].name, b->points[pt].label);
  for (int c = 0; c < COLUMNS; c++) {
    if (!columns[c].title) continue;
    for (int seed = 0; seed < b->seeds; seed++) {
      spread heads = src < 0 ? over_heads(b, 1 << set, pt, seed, (enum column)c)
                             : spread_of(&result_at(b, src, pt, seed)->at[c], 1);
      x[seed] = c == LSE_MAX ? heads.high : heads.mean;
    }
    spread s = spread_of(x, b->seeds);
    cell(columns[c].width, columns[c].digits, c == LSE_MAX ? s.high : s.mean);
    if (c == ERROR) printf("  %7.4f .. %-7.4f", s.low, s.high);
  }
  printf("\n");
}

static void print_set_means(const bench *b) {
  int heads[SETS] = {0},
      least = b->front ? 1 : 2;  // the mean of one head is the head, which has been printed
  for (int src = 0; src < b->n_sources; src++) heads[b->sources[src].set]++;
  for (int set = 0, titles = 0; set < SETS; set++)
    for (int pt = 0; pt < b->n_points && heads[set] >= least; pt++) {
      if (!titles++) printf("\n"), print_titles("mean of a set");
      print_row(b, -1, set, pt);
    }
}

static void write_csv(const bench *b) {
  fprintf(b->csv,
          "set,head,preset,scale,seed,n,mask,min_seq_len,block_size,sample_size,heavy_keys,probe_queries,"
          "query_group,key_group,order,sampling,tolerance,threads,isa");
  for (int c = 0; c < COLUMNS; c++) fprintf(b->csv, ",%s", columns[c].name);
  fprintf(b->csv, "\n");
}

static void write_csv_row(const bench *b, const source *s, const head *h, const point *pt, int seed,
                          const result *r) {
  const hyperattn_params *p = &pt->params;
  fprintf(b->csv, "%s,%s,%s,%g,%d,%lld,%s,%lld", set_names[s->set], s->name, preset_names[pt->preset],
          pt->scale, seed, (long long)h->n, h->causal ? "causal" : "full",
          (long long)(s->set == ESSAY ? pt->essay_min_seq_len : p->min_seq_len));
  fprintf(b->csv, ",%lld,%lld,%lld,%lld,%lld,%lld", (long long)p->block_size, (long long)p->sample_size,
          (long long)p->heavy_keys, (long long)p->probe_queries, (long long)p->query_group,
          (long long)p->key_group);
  fprintf(b->csv, ",%s,%s,%g,%d,%s", order_names[p->order], sampling_names[p->sampling],
          (double)p->tolerance, b->run.threads, hyperattn_isa_name(hyperattn_detect_isa()));
  for (int c = 0; c < COLUMNS; c++)
    isnan(r->at[c]) ? fprintf(b->csv, ",") : fprintf(b->csv, ",%.6g", r->at[c]);
  fprintf(b->csv, "\n");
}

// ---- The targets ----

static int point_of(const bench *b, enum preset preset) {
  for (int i = 0; i < b->n_points; i++)
    if (b->points[i].preset == preset) return i;
  return -1;
}

static double essay_mean(const bench *b, int seed) {
  return over_heads(b, 1 << ESSAY, point_of(b, LINEAR), seed, ERROR).mean;
}
static double essay_worst(const bench *b, int seed) {
  return over_heads(b, 1 << ESSAY, point_of(b, LINEAR), seed, ERROR).high;
}
static double planted_mean(const bench *b, int seed) {
  return over_heads(b, 1 << PLANTED_1, point_of(b, LINEAR), seed, ERROR).mean;
}
static double repeat_of_paper(const bench *b, int seed) {
  return over_heads(b, 1 << REPEAT, point_of(b, LINEAR), seed, SECOND_HALF).mean /
         over_heads(b, 1 << REPEAT, point_of(b, PAPER), seed, SECOND_HALF).mean;
}
static double worst_of_tolerance(const bench *b, int seed) {
  int pt = point_of(b, DEFAULT);
  double tolerance = pt < 0 ? 0 : (double)b->points[pt].params.tolerance;
  return tolerance > 0 ? over_heads(b, (1 << SETS) - 1, pt, seed, ERROR).high / tolerance : NOT_MEASURED;
}
static double essay_share(const bench *b, int seed) {
  return over_heads(b, 1 << ESSAY, point_of(b, DEFAULT), seed, SHARE).mean;
}
static double estimate_rank(const bench *b, int seed) {
  int n = b->n_sources, pt = point_of(b, LINEAR);
  if (pt < 0 || isnan(over_heads(b, (1 << SETS) - 1, pt, seed, ESTIMATE).mean)) return NOT_MEASURED;
  double *x = zeros(4 * n);
  for (int s = 0; s < n; s++)
    x[s] = result_at(b, s, pt, seed)->at[ERROR], x[n + s] = result_at(b, s, pt, seed)->at[ESTIMATE];
  rank(x, x + 2 * n, n), rank(x + n, x + 3 * n, n);
  double found = correlation(x + 2 * n, x + 3 * n, n);
  free(x);
  return found;
}
static double estimate_near(const bench *b, int seed) {
  int near = 0, pt = point_of(b, LINEAR);
  if (pt < 0 || isnan(over_heads(b, (1 << SETS) - 1, pt, seed, RATIO).mean)) return NOT_MEASURED;
  for (int s = 0; s < b->n_sources; s++) {
    double ratio = result_at(b, s, pt, seed)->at[RATIO];
    near += ratio <= 1.5 && ratio >= 1 / 1.5;
  }
  return near / (double)b->n_sources;
}

static void print_targets(const bench *b) {
  static const struct {
    const char *what;
    double limit;
    int at_least;
    double (*measured)(const bench *b, int seed);
  } targets[] = {
      {"linear: essay, mean error", 0.030, 0, essay_mean},
      {"linear: planted 0.1, error", 0.27, 0, planted_mean},
      {"linear: repeat, mean error of the second half over the paper's", 0.40, 0, repeat_of_paper},
      {"linear: essay, worst head", 0.12, 0, essay_worst},
      {"default: worst head of all data, error over tolerance", 1.5, 0, worst_of_tolerance},
      {"default: essay, share of exact attention's pairs", 0.45, 0, essay_share},
      {"linear: estimate against error, rank correlation", 0.9, 1, estimate_rank},
      {"linear: estimate within 1.5x of the error, share of heads", 0.9, 1, estimate_near},
  };
  printf("\n%-64s %11s %9s  %-16s\n", "target", "", "measured", "over seeds");
  for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
    double x[MAX_SEEDS];
    for (int seed = 0; seed < b->seeds; seed++) x[seed] = targets[i].measured(b, seed);
    spread s = spread_of(x, b->seeds);
    printf("%-64s %s %5.3f ", targets[i].what, targets[i].at_least ? ">=" : "<=", targets[i].limit);
    if (isnan(s.mean))
      printf("%11s  not measured\n", "-");
    else
      printf("%11.4f  %.4f .. %.4f  %s\n", s.mean, s.low, s.high,
             (targets[i].at_least ? s.low >= targets[i].limit : s.high <= targets[i].limit) ? "met"
                                                                                            : "missed");
  }
  printf("met: by every seed. The speed rows are bench_attention's.\n");
}

// ---- Points ----

static void change(int64_t *field, int64_t value) {
  if (value >= 0) *field = value;
}

static point *add_point(bench *b, enum preset preset, double scale) {
  point *pt = &b->points[b->n_points++];
  hyperattn_params *p = &pt->params;
  pt->preset = preset, pt->scale = scale;
  snprintf(pt->label, sizeof pt->label, "%s", preset_names[preset]);
  *p = preset == PAPER    ? hyperattn_paper_params()
       : preset == LINEAR ? hyperattn_linear_params()
                          : hyperattn_default_params();
  p->min_seq_len = b->min_seq_len >= 0 ? b->min_seq_len : 1024;
  pt->essay_min_seq_len = preset == DEFAULT || b->front || b->min_seq_len >= 0 ? p->min_seq_len : 2048;
  if (preset != PAPER || b->presets == 1 << PAPER) {
    change(&p->block_size, b->block_size), change(&p->sample_size, b->sample_size);
    change(&p->heavy_keys, b->heavy_keys), change(&p->probe_queries, b->probe_queries);
    change(&p->query_group, b->query_group), change(&p->key_group, b->key_group);
    if (b->order >= 0) p->order = (hyperattn_order)b->order;
    if (b->sampling >= 0) p->sampling = (hyperattn_sampling)b->sampling;
    if (b->tolerance >= 0) p->tolerance = (float)b->tolerance;
  }
  if (preset == LINEAR) p->tolerance = 0;
  p->block_size = (int64_t)((double)p->block_size * scale);
  p->sample_size = (int64_t)((double)p->sample_size * scale);
  p->heavy_keys = (int64_t)((double)p->heavy_keys * scale);
  return pt;
}

static void add_front(bench *b) {
  static const char *const names[] = {"/4", "/2", "", " x2", " x4"};
  for (int preset = LINEAR; preset <= PAPER; preset++)
    for (int i = 0; i < 5; i++) {
      if (!(b->presets >> preset & 1)) continue;
      point *pt = add_point(b, (enum preset)preset, ldexp(1, i - 2));
      snprintf(pt->label, sizeof pt->label, "%s%s", preset_names[preset], names[i]);
    }
  static const float tolerances[] = {0.4f, 0.2f, 0.1f, 0.05f};
  for (int i = 0; i < 4; i++) {
    if (!(b->presets >> DEFAULT & 1)) continue;
    point *pt = add_point(b, DEFAULT, 1);
    pt->params.tolerance = tolerances[i];
    snprintf(pt->label, sizeof pt->label, "tolerance %g", (double)tolerances[i]);
  }
}

// ---- Options ----

static int number(const char *text, double least, double most, double *x) {
  char *end;
  *x = strtod(text, &end);
  return end != text && !*end && *x >= least && *x <= most;
}

static int whole(const char *text, int64_t least, int64_t most, int64_t *x) {
  char *end;
  *x = strtoll(text, &end, 10);
  return end != text && !*end && *x >= least && *x <= most;
}

static int one_of(const char *text, const char *const *names, int count) {
  for (int i = 0; i < count; i++)
    if (!strcmp(text, names[i])) return i;
  return -1;
}

// The sets in a list, as bits; "planted" means all three of them. 0 if one is unknown.
static int read_sets(const char *list) {
  int sets = 0;
  while (*list) {
    size_t length = strcspn(list, ",");
    int found = 0;
    for (int set = 0; set < SETS; set++)
      if (length == strcspn(set_names[set], " ") && !strncmp(list, set_names[set], length))
        found |= 1 << set;
    if (!found) return 0;
    sets |= found;
    list += length + (list[length] == ',');
  }
  return sets;
}

// Returns 1 if the option and its value are valid.
static int read_option(bench *b, const char *name, const char *value) {
  const struct {
    const char *name;
    int64_t *value, least;
  } counts[] = {{"--min-seq-len", &b->min_seq_len, 1},     {"--block-size", &b->block_size, 0},
                {"--sample-size", &b->sample_size, 0},     {"--heavy-keys", &b->heavy_keys, 0},
                {"--probe-queries", &b->probe_queries, 0}, {"--query-group", &b->query_group, 0},
                {"--key-group", &b->key_group, 0}};
  int64_t count = 0;
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
    if (!strcmp(name, counts[i].name)) return whole(value, counts[i].least, INT32_MAX, counts[i].value);
  if (!strcmp(name, "--qkv")) return *(b->folder = value) != 0;
  if (!strcmp(name, "--set")) return (b->sets = read_sets(value)) != 0;
  if (!strcmp(name, "--order")) return (b->order = one_of(value, order_names, 3)) >= 0;
  if (!strcmp(name, "--sampling")) return (b->sampling = one_of(value, sampling_names, 3)) >= 0;
  if (!strcmp(name, "--dtype")) return elements_named(value, &b->run.dtype);
  if (!strcmp(name, "--tolerance")) return number(value, 0, 1e6, &b->tolerance);
  if (!strcmp(name, "--seeds") && whole(value, 1, MAX_SEEDS, &count)) return (b->seeds = (int)count) > 0;
  if (!strcmp(name, "--threads") && whole(value, 1, 1024, &count)) return (b->run.threads = (int)count) > 0;
  if (!strcmp(name, "--preset")) {
    int preset = one_of(value, preset_names, PRESETS);
    b->presets = strcmp(value, "all") ? preset < 0 ? 0 : 1 << preset : (1 << PRESETS) - 1;
    return b->presets != 0;
  }
  if (!strcmp(name, "--csv")) {
    if (b->csv) fclose(b->csv);
    b->csv = fopen(value, "w");
    if (!b->csv) fprintf(stderr, "bench_quality: cannot write %s\n", value);
    return b->csv != NULL;
  }
  return 0;
}

static void read_options(bench *b, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--front")) {
      b->front = 1;
    } else if (i + 1 >= argc || !read_option(b, argv[i], argv[i + 1])) {
      fprintf(stderr, "bench_quality: %s%s%s: see the top of bench/bench_quality.c for options\n", argv[i],
              i + 1 < argc ? " " : "", i + 1 < argc ? argv[i + 1] : "");
      exit(2);
    } else {
      i++;
    }
  }
  if (!b->seeds) b->seeds = b->front ? 1 : 3;
}

static void find_sources(bench *b) {
  source *all = NULL;
  int count = 0;
  if (!b->folder) {
    printf("no --qkv: the essay is the one head of examples/data, and there is no repeated text\n");
    add_source(&all, &count, ESSAY, join("l28h1", "", ""), join(BENCH_DATA, "", ""));
  } else if (!find_heads(b->folder, &all, &count)) {
    fprintf(stderr, "bench_quality: cannot read the folder %s\n", b->folder);
    exit(2);
  } else if (!count) {
    fprintf(stderr, "bench_quality: no heads (lLLhH.q.f16, repeat.lLLhH.q.f16) in %s\n", b->folder);
    exit(2);
  }
  for (int set = PLANTED_1; set < SETS; set++)
    add_source(&all, &count, (data_set)set, join(set_names[set], "", ""), NULL);
  qsort(all, (size_t)count, sizeof *all, by_set_and_name);
  for (int i = 0; i < count; i++) {
    if (b->sets >> all[i].set & 1)
      add_source(&b->sources, &b->n_sources, all[i].set, all[i].name, all[i].path);
    else
      free(all[i].name), free(all[i].path);
  }
  free(all);
  if (!b->n_sources) fprintf(stderr, "bench_quality: no data of these sets\n"), exit(2);
}

// ---- The bench ----

// A head that was read is the same for every seed; a synthetic one is not.
static void bench_source(bench *b, int src) {
  const source *s = &b->sources[src];
  head h = {0};
  truth t = {0};
  for (int seed = 0; seed < b->seeds; seed++) {
    if (!seed || !s->path) {
      progress(b, s->name, "exact");
      free_head(&h), free(t.out), free(t.lse);
      h = s->path ? read_head(s) : make_head(s->set, (uint64_t)seed);
      t = find_truth(&b->run, &h);
    }
    for (int pt = 0; pt < b->n_points; pt++) {
      progress(b, s->name, b->points[pt].label);
      result *r = result_at(b, src, pt, seed);
      *r = measure(&b->run, s, &h, &t, &b->points[pt], seed);
      if (b->csv) write_csv_row(b, s, &h, &b->points[pt], seed, r);
    }
  }
  free_head(&h), free(t.out), free(t.lse);
  progress(b, "", "");
}

int main(int argc, char **argv) {
  bench b = {.presets = (1 << PRESETS) - 1, .sets = (1 << SETS) - 1, .tolerance = -1};
  b.block_size = b.sample_size = b.heavy_keys = b.probe_queries = b.query_group = b.key_group =
      b.min_seq_len = -1;
  b.order = b.sampling = -1, b.run.threads = 1;
  ask_for_amx();
  read_options(&b, argc, argv);
  b.run.with_bound = !b.front;
  find_sources(&b);
  if (b.front) add_front(&b);
  for (int preset = 0; preset < PRESETS && !b.front; preset++)
    if (b.presets >> preset & 1) add_point(&b, (enum preset)preset, 1);
  if (!b.n_points) fprintf(stderr, "bench_quality: nothing to run\n"), exit(2);
  b.results = allocate((size_t)(b.n_sources * b.n_points * b.seeds) * sizeof *b.results);
  b.bar = isatty(STDERR_FILENO);
  if (!pool_open(&b.run.workers, b.run.threads)) fprintf(stderr, "no threads\n"), exit(1);
  b.run.parallel = (hyperattn_parallel){b.run.threads, &b.run.workers, pool_for};
  if (b.csv) write_csv(&b);
  printf("%s, threads: %d, seeds: %d\n", hyperattn_isa_name(hyperattn_detect_isa()), b.run.threads,
         b.seeds);
  if (!b.front) printf("\n"), print_titles("head");
  for (int src = 0; src < b.n_sources; src++) {
    bench_source(&b, src);
    for (int pt = 0; pt < b.n_points && !b.front; pt++) print_row(&b, src, 0, pt);
    fflush(stdout);
  }
  print_set_means(&b);
  if (!b.front) print_targets(&b);
  printf("exact attention against double: rows within %.1e, lse within %.1e\n", b.run.worst_row,
         b.run.worst_lse);
  if (b.csv && fclose(b.csv)) fprintf(stderr, "bench_quality: the csv could not be written\n"), exit(1);
  for (int i = 0; i < b.n_sources; i++) free(b.sources[i].name), free(b.sources[i].path);
  pool_close(&b.run.workers);
  free(b.sources), free(b.results), free(b.run.workspace);
  return 0;
}
