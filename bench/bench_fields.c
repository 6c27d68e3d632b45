// What each field of a problem costs: soft caps, sinks, windows, masks, pages, custom formats, many problems.
//
//   bench_fields [--group NAME,..] [--list] [--repeat R] [--csv FILE] [--isa NAME]
//
// A group is a table. Its rows are timed in turn, in R rounds (9 by default), in one process; a row's time is
// the least. "over" names the row of the same table that it is compared with, and the ratio is that of the
// times; "by pairs" means that the other row's time is first multiplied by the share of query-key pairs that
// this row sees. "target" is the largest ratio aimed at. The error is that of 256 rows against attention
// in double, of the numbers that the tensors hold. Attention is exact; the data are those of bench_attention.
// Tables are Markdown, as docs/fields.md has them. --csv appends to FILE. --list prints the groups.
#define HYPERATTN_STATIC
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "measure.h"
#include "pool.h"
#include "record.h"
#include "splitmix.h"

#include <unistd.h>

enum { MAX_ROWS = 24, MAX_BLOCKS = 256, LINE = 64, DIM = 64, N = 8192, N_CACHE = 32768, N_LONG = 131072 };
#define NONE ((double)NAN)

typedef struct row row;
struct row {
  char name[48];
  void (*run)(row *);
  int per;  // calls of a run
  int threads, n_problems;
  hyperattn_problem *problems;
  numbers *held;  // by each problem
  int over;       // the row it is compared with, or -1
  double share, target;
  void *workspace;
  size_t bytes;
  double seconds, error;
};

typedef struct bench {
  int repeat, bar;
  FILE *csv;
  hyperattn_params params;
  const hai_kernel *kernel;
  const char *group;
  row rows[MAX_ROWS];
  int n_rows;
  void *blocks[MAX_BLOCKS];  // freed with the table
  int n_blocks;
  pool workers;
  hyperattn_parallel parallel;
} bench;

static bench b;

// Memory until the end of the table; it begins with a line of the cache, as engines' tensors do.
static void *room(size_t bytes) {
  void *block = aligned_alloc(LINE, (bytes / LINE + 1) * LINE);
  if (!block || b.n_blocks == MAX_BLOCKS) fprintf(stderr, "out of memory\n"), exit(1);
  return b.blocks[b.n_blocks++] = block;
}

// n elements of a dtype in such memory.
static void *elements_of(const float *x, int64_t n, hyperattn_dtype dtype) {
  void *data = room(elements_size(n, dtype));
  elements_write(x, n, dtype, data);
  return data;
}

static hyperattn_input input_of(const float *x, int64_t n, int64_t dim, hyperattn_dtype dtype) {
  return (hyperattn_input){
      .data = elements_of(x, n * dim, dtype), .dtype = dtype, .row_stride = (ptrdiff_t)dim};
}

// The bench's data.
static const float *rows_of(const char *which, int64_t n, int64_t dim) {
  float *x = repeat_rows(which, n, dim);
  const float *kept = elements_of(x, n * dim, HYPERATTN_F32);
  free(x);
  return kept;
}

static int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

// ---- Runs ----

static void must(hyperattn_status status) {
  if (status != HYPERATTN_OK) fprintf(stderr, "%s\n", hyperattn_status_string(status)), exit(1);
}

static const hyperattn_parallel *parallel_of(const row *r) { return r->threads > 1 ? &b.parallel : NULL; }

static void run_calls(row *r) {
  for (int i = 0; i < r->n_problems; i++)
    must(r->threads > 1
             ? hyperattn_forward_parallel(&r->problems[i], &b.params, &b.parallel, r->workspace, r->bytes)
             : hyperattn_forward(&r->problems[i], &b.params, r->workspace, r->bytes));
}

static void run_as_one(row *r) {
  must(hyperattn_forward_many(r->problems, r->n_problems, &b.params, parallel_of(r), r->workspace, r->bytes,
                              NULL));
}

// ---- Rows ----

static row *add(const char *name, void (*run)(row *), int n_problems) {
  if (b.n_rows == MAX_ROWS) fprintf(stderr, "too many rows\n"), exit(1);
  row *r = &b.rows[b.n_rows++];
  memset(r, 0, sizeof *r);
  snprintf(r->name, sizeof r->name, "%s", name);
  r->run = run, r->per = r->threads = 1, r->n_problems = n_problems;
  r->problems = room((size_t)n_problems * sizeof *r->problems);
  r->held = room((size_t)n_problems * sizeof *r->held);
  r->over = -1, r->share = 1, r->target = NONE;
  return r;
}

static row *add_one(const char *name, const hyperattn_problem *p, numbers x) {
  row *r = add(name, run_calls, 1);
  r->problems[0] = *p, r->held[0] = x;
  return r;
}

static row *compare(row *r, int over, double target) {
  r->over = over, r->target = target;
  return r;
}

// The row just added: the share of the other row's pairs that it sees, by its window.
static void compare_pairs(int over, double target) {
  row *r = compare(&b.rows[b.n_rows - 1], over, target);
  const hyperattn_problem *p = r->problems, *all = b.rows[over].problems;
  double pairs = 0;
  for (int64_t i = 0, first, last; i < p->n_query; i++, pairs += (double)(last - first + 1))
    see(p, i, &first, &last);
  r->share = pairs / ((double)all->n_query * (double)all->n_key);
}

// Contiguous float32 tensors of the bench's data, with out; *x gets what they hold.
static hyperattn_problem problem_of(int64_t heads, int64_t kv_heads, int64_t n_query, int64_t n_key,
                                    int64_t dim, numbers *x) {
  x->q = rows_of("q", heads * n_query, dim);
  x->k = rows_of("k", kv_heads * n_key, dim);
  x->v = rows_of("v", kv_heads * n_key, dim);
  float *out = room((size_t)(heads * n_query * dim) * sizeof *out);
  return hyperattn_heads_first(1, heads, kv_heads, n_query, n_key, dim, dim, x->q, x->k, x->v, out);
}

static void prepare(row *r) {
  r->bytes = r->run == run_as_one
                 ? hyperattn_workspace_size_many(r->problems, r->n_problems, &b.params, r->threads)
                 : 0;
  for (int i = 0; i < r->n_problems && r->run != run_as_one; i++) {
    size_t bytes = hyperattn_workspace_size(&r->problems[i], &b.params, r->threads);
    if (bytes > r->bytes) r->bytes = bytes;
  }
  r->workspace = room(r->bytes);
  r->seconds = (double)INFINITY;
}

static double error_of_row(const row *r) {
  squares sum = {0, 0};
  for (int i = 0; i < r->n_problems; i++)
    add_squares(&sum, &r->problems[i], r->held[i], r->n_problems > 1 ? 4 : 256);
  return sqrt(sum.difference / sum.exact);
}

// ---- Tables ----

static double ratio_of(const row *r) {
  return r->over < 0 ? NONE : r->seconds / (r->share * b.rows[r->over].seconds);
}

static void print_table(void) {
  printf("\n| %-36s | %-36s | %9s | %13s | %6s | %7s |\n|---|---|---|---|---|---|\n", b.group, "over",
         "seconds", "ratio", "target", "error");
  for (int i = 0; i < b.n_rows; i++) {
    const row *r = &b.rows[i];
    char over[64] = "";
    if (r->over >= 0)
      snprintf(over, sizeof over, "%s%s", b.rows[r->over].name, r->share != 1 ? ", by pairs" : "");
    printf("| %-36s | %-36s |", r->name, over);
    cell(r->seconds < 1e-3 ? "%.3g" : "%#.4g", 9, r->seconds);
    cell(ratio_of(r) > r->target ? "%.3f: missed" : "%.3f", 13, ratio_of(r));
    cell("%.2f", 6, r->target), cell("%.1e", 7, r->error);
    printf("\n");
    if (!b.csv) continue;
    fprintf(b.csv, "%s,\"%s\",\"%s\",%.6g,%d,%s,%.4g,", b.group, r->name,
            r->over < 0 ? "" : b.rows[r->over].name, r->share, r->threads,
            hyperattn_isa_name(b.kernel->isa), r->seconds);
    field(b.csv, "%.4f", ratio_of(r)), field(b.csv, "%.2f", r->target);
    if (!isnan(r->error)) fprintf(b.csv, "%.2e", r->error);
    fprintf(b.csv, "\n");
  }
  fflush(stdout);
}

// A row's turn in a round: 10 ms at least.
static void take_turn(row *r, int round) {
  if (b.bar) fprintf(stderr, "\r\033[K%s %d/%d %s\r", b.group, round + 1, b.repeat, r->name);
  for (double begin = now(), spent = 0; spent < 0.01;) {
    double before = spent;
    r->run(r);
    spent = now() - begin;
    if ((spent - before) / r->per < r->seconds) r->seconds = (spent - before) / r->per;
  }
  if (!round) r->error = error_of_row(r);
}

static void measure(const char *name, void (*fill)(void)) {
  b.group = name, b.n_rows = 0;
  fill();
  for (int i = 0; i < b.n_rows; i++) prepare(&b.rows[i]);
  for (int round = 0; round < b.repeat; round++)
    for (int i = 0; i < b.n_rows; i++) take_turn(&b.rows[i], round);
  if (b.bar) fprintf(stderr, "\r\033[K");
  print_table();
  while (b.n_blocks) free(b.blocks[--b.n_blocks]);
}

// ---- Groups ----

static void fill_capping(void) {
  static const float sink[1] = {1};
  for (int64_t dim = DIM; dim <= 2 * DIM; dim += DIM)
    for (int causal = 0; causal < 2; causal++) {
      int plain = b.n_rows;
      char name[48];
      numbers x;
      hyperattn_problem p = problem_of(1, 1, N, N, dim, &x);
      p.causal = causal;
      snprintf(name, sizeof name, "%s, head dim %d", causal ? "causal" : "full", (int)dim);
      add_one(name, &p, x);
      p.softcap = 30;
      compare(add_one("softcap", &p, x), plain, NONE);
      p.softcap = 0, p.sink = sink;
      compare(add_one("sink", &p, x), plain, NONE);
    }
}

static void fill_window(void) {
  numbers x;
  hyperattn_problem p = problem_of(1, 1, N, N, DIM, &x);
  add_one("full, 8192", &p, x);
  p.sliding_window = 512;
  add_one("full, 8192, window of 512", &p, x), compare_pairs(0, NONE);
  p.causal = 1;
  add_one("causal, 8192, window of 512", &p, x), compare_pairs(0, NONE);
  p = problem_of(1, 1, N_LONG, N_LONG, DIM, &x);
  p.causal = 1, p.sliding_window = 4096;
  add_one("causal, 131072, window of 4096", &p, x), compare_pairs(0, 1.15);
}

// An F16 mask [N][N] of 0 where the keys are seen, else -inf: causal, or sequences of `part` tokens.
static hyperattn_input hiding_mask(int64_t part) {
  uint16_t *data = room((size_t)N * N * sizeof *data);
  for (int64_t i = 0; i < N; i++)
    for (int64_t j = 0; j < N; j++) data[i * N + j] = (part ? i / part == j / part : j <= i) ? 0 : 0xfc00;
  return (hyperattn_input){.data = data, .dtype = HYPERATTN_F16, .row_stride = N};
}

// The same mask with rows that do not lie a power of 2 apart, so that they do not share sets of the caches.
static hyperattn_input apart(const float *mask) {
  const int64_t stride = N + 32;
  float *data = room((size_t)N * (size_t)stride * sizeof *data);
  for (int64_t i = 0; i < N; i++) memcpy(data + i * stride, mask + i * N, N * sizeof *data);
  return (hyperattn_input){.data = data, .row_stride = (ptrdiff_t)stride};
}

static void fill_mask(void) {
  static const float slope[4] = {0.5f, 0.25f, 0.125f, 0.0625f};
  uint64_t state = 1;
  float *finite = room((size_t)N * N * sizeof *finite), *far = room(N * sizeof *far);
  for (int64_t i = 0; i < (int64_t)N * N; i++) finite[i] = (float)splitmix_uniform(&state) - 0.5f;
  for (int64_t j = 0; j < N; j++) far[j] = (float)(j - N);
  hyperattn_input masks[3];
  numbers x;
  hyperattn_problem p = problem_of(1, 1, N, N, DIM, &x), four;
  add_one("none", &p, x);
  for (int dtype = HYPERATTN_F32; dtype <= HYPERATTN_BF16; dtype++) {
    char name[48];
    p.mask = masks[dtype] = input_of(finite, N, N, (hyperattn_dtype)dtype);
    snprintf(name, sizeof name, "%s, one mask row per query", element_names[dtype]);
    compare(add_one(name, &p, x), 0, 1.25);
  }
  p.mask = apart(finite);
  compare(add_one("f32, row stride 8224", &p, x), 0, 1.25);
  p.mask = hiding_mask(N / 8);
  row *packed = compare(add_one("f16, eight packed sequences", &p, x), 0, NONE);
  packed->share = 0.125;
  p.mask = (hyperattn_input){0}, p.causal = 1;
  int causal = b.n_rows;
  add_one("none, causal = 1", &p, x);
  p.causal = 0, p.mask = hiding_mask(0);
  compare(add_one("f16, causal", &p, x), causal, NONE);
  four = problem_of(4, 4, N, N, DIM, &x);
  int plain = b.n_rows;
  add_one("none, 4 heads", &four, x);
  four.mask = masks[HYPERATTN_F16];
  compare(add_one("f16, shared by 4 heads", &four, x), plain, 1.25);
  four.mask = (hyperattn_input){.data = far}, four.mask_slope = slope;
  compare(add_one("f32, one row and 4 slopes (ALiBi)", &four, x), plain, 1.25);
}

// Rows of one kv head in pages of so many rows, which lie in a shuffled order or as they come.
static hyperattn_input paged(const float *from, int64_t n, int64_t page_rows, int is_shuffled) {
  int64_t pages = n / page_rows, size = page_rows * DIM;
  int32_t *page = room((size_t)pages * sizeof *page);
  float *data = room((size_t)(n * DIM) * sizeof *data);
  uint64_t state = 2;
  for (int64_t i = 0; i < pages; i++) {
    int64_t other = is_shuffled ? smaller((int64_t)(splitmix_uniform(&state) * (double)(i + 1)), i) : i;
    page[i] = page[other], page[other] = (int32_t)i;
  }
  for (int64_t i = 0; i < pages; i++)
    memcpy(data + page[i] * size, from + i * size, (size_t)size * sizeof *data);
  return (hyperattn_input){.data = data,
                           .row_stride = DIM,
                           .page = page,
                           .page_rows = page_rows,
                           .page_stride = (ptrdiff_t)size};
}

static void add_pages(const char *what, hyperattn_problem p, numbers x, double target) {
  static const struct {
    const char *name;
    int64_t rows;
    int is_shuffled;
  } pages[] = {
      {"pages of 64", 64, 1}, {"pages of 16", 16, 1}, {"pages of 1", 1, 1}, {"pages of 1, in order", 1, 0}};
  int contiguous = b.n_rows;
  add_one(what, &p, x);
  for (int i = 0; i < 4; i++) {
    p.key = paged(x.k, p.n_key, pages[i].rows, pages[i].is_shuffled);
    p.value = paged(x.v, p.n_key, pages[i].rows, pages[i].is_shuffled);
    compare(add_one(pages[i].name, &p, x), contiguous, pages[i].rows > 1 ? target : NONE);
  }
}

static void fill_pages(void) {
  numbers x;
  hyperattn_problem p = problem_of(1, 1, N, N, DIM, &x);
  add_pages("8192 queries, 8192 keys", p, x, 1.03);
  p = problem_of(1, 1, 1, N_CACHE, DIM, &x);
  add_pages("1 query, 32768 keys", p, x, 1.05);
  p = problem_of(8, 1, 1, N_CACHE, DIM, &x);
  add_pages("8 heads x 1 query, 32768 keys", p, x, 1.05);
}

// ---- Custom formats ----

// ggml's q8_0 by the kernel's own function.
static void widen_q8_0_fast(const void *at, float *to, int64_t n) {
  b.kernel->widen(at, HYPERATTN_Q8_0, (hai_index)n, to);
}
// ggml's q4_0: a scale, then 16 bytes, of which the lower halves are numbers 0 .. 15 and the upper 16 .. 31.
static void widen_q4_0(const void *block, float *to, int64_t n) {
  const unsigned char *at = block;
  for (int64_t i = 0; i < n; i += 32, at += 18) {
    float d = half_to_float(half_at(at));
    for (int t = 0; t < 16; t++) {
      to[i + t] = d * (float)((at[2 + t] & 15) - 8);
      to[i + 16 + t] = d * (float)((at[2 + t] >> 4) - 8);
    }
  }
}
static void write_q4_0(const float *x, unsigned char *to) {
  float most = 0;
  for (int i = 0; i < 32; i++) most = fmaxf(most, fabsf(x[i]));
  uint16_t scale = float_to_half(most / 7);
  float d = half_to_float(scale);
  memcpy(to, &scale, sizeof scale);
  for (int i = 0; i < 16; i++) {
    int low = d > 0 ? (int)lrintf(x[i] / d) + 8 : 8, high = d > 0 ? (int)lrintf(x[i + 16] / d) + 8 : 8;
    to[2 + i] = (unsigned char)((low & 15) | (high & 15) << 4);
  }
}

static hyperattn_input custom(const void *data, int64_t bytes,
                              void (*widen)(const void *, float *, int64_t)) {
  return (hyperattn_input){
      .data = data, .dtype = HYPERATTN_CUSTOM, .row_stride = (ptrdiff_t)bytes, .widen = widen};
}

static hyperattn_input as_q4_0(const float *x, int64_t n) {
  unsigned char *data = room((size_t)n * DIM / 32 * 18);
  for (int64_t i = 0; i < n * DIM / 32; i++) write_q4_0(x + i * 32, data + i * 18);
  return custom(data, DIM / 32 * 18, widen_q4_0);
}

// What a tensor holds, if the function of a custom format reads it.
static const float *read_by(const hyperattn_input *input, int64_t row_bytes, int64_t n,
                            void (*widen)(const void *, float *, int64_t)) {
  float *x = room((size_t)(n * DIM) * sizeof *x);
  for (int64_t i = 0; i < n; i++) widen((const char *)input->data + i * row_bytes, x + i * DIM, DIM);
  return x;
}

static void add_formats(const char *what, hyperattn_problem p, numbers x) {
  const int64_t bytes = DIM / 32 * 34, fewer = DIM / 32 * 18, n = p.n_key;
  int as_it_is = b.n_rows;
  numbers x4 = x;
  hyperattn_input k4 = as_q4_0(x.k, n), v4 = as_q4_0(x.v, n);
  x4.k = read_by(&k4, fewer, n, widen_q4_0), x4.v = read_by(&v4, fewer, n, widen_q4_0);
  p.key = input_of(x.k, n, DIM, HYPERATTN_Q8_0), p.value = input_of(x.v, n, DIM, HYPERATTN_Q8_0);
  const void *k = p.key.data, *v = p.value.data;
  x.k = read_by(&p.key, bytes, n, widen_q8_0), x.v = read_by(&p.value, bytes, n, widen_q8_0);
  add_one(what, &p, x);
  p.key = custom(k, bytes, widen_q8_0_fast), p.value = custom(v, bytes, widen_q8_0_fast);
  compare(add_one("custom, by the library's function", &p, x), as_it_is, 1 / 0.9);
  p.key = custom(k, bytes, widen_q8_0), p.value = custom(v, bytes, widen_q8_0);
  compare(add_one("custom, in plain C", &p, x), as_it_is, NONE);
  p.key = k4, p.value = v4;
  compare(add_one("custom q4_0, in plain C", &p, x4), as_it_is, NONE);
}

static void fill_custom(void) {
  numbers x;
  hyperattn_problem p = problem_of(1, 1, N, N, DIM, &x);
  add_formats("q8_0, 8192 queries", p, x);
  p = problem_of(8, 1, 1, N_CACHE, DIM, &x);
  add_formats("q8_0, 8 heads x 1 query", p, x);
}

// ---- Many ----

enum { HEADS = 8, SEQUENCES = 64, STEPS = 256, STEP_KEYS = 512 };

// Problems of these sizes, their tensors one behind the other, as two rows: a call each, and one call.
static void add_many(const char *what, int threads, int n, int kv_heads, const int64_t *n_query,
                     const int64_t *n_key) {
  char name[48];
  snprintf(name, sizeof name, "%s: %d calls", what, n);
  row *calls = add(name, run_calls, n), *one = add("one call", run_as_one, n);
  int64_t queries = 0, keys = 0;
  for (int i = 0; i < n; i++) queries += HEADS * n_query[i], keys += kv_heads * n_key[i];
  numbers x = {rows_of("q", queries, DIM), rows_of("k", keys, DIM), rows_of("v", keys, DIM)};
  float *out = room((size_t)(queries * DIM) * sizeof *out);
  for (int i = 0; i < n; i++) {
    calls->problems[i] =
        hyperattn_heads_first(1, HEADS, kv_heads, n_query[i], n_key[i], DIM, DIM, x.q, x.k, x.v, out);
    calls->problems[i].causal = 1;
    one->problems[i] = calls->problems[i], one->held[i] = calls->held[i] = x;
    x.q += HEADS * n_query[i] * DIM, out += HEADS * n_query[i] * DIM;
    x.k += kv_heads * n_key[i] * DIM, x.v += kv_heads * n_key[i] * DIM;
  }
  calls->threads = one->threads = threads;
  compare(one, (int)(calls - b.rows), NONE);
}

// Sequences of 100 .. 4000 keys, of which every fourth is a prefill and the others have one query; and decode
// steps of 512 keys.
static void fill_many_by(int threads) {
  int64_t n_query[STEPS], n_key[STEPS];
  uint64_t state = 3;
  for (int i = 0; i < SEQUENCES; i++) {
    n_key[i] = 100 + (int64_t)(splitmix_uniform(&state) * 3901);
    n_query[i] = i % 4 ? 1 : n_key[i];
  }
  add_many("mixed, 2 kv heads", threads, SEQUENCES, 2, n_query, n_key);
  for (int i = 0; i < STEPS; i++) n_query[i] = 1, n_key[i] = STEP_KEYS;
  add_many("decode, 2 kv heads", threads, STEPS, 2, n_query, n_key);
  add_many("decode, 1 kv head", threads, STEPS, 1, n_query, n_key);
}
static void fill_many(void) { fill_many_by(1); }
static void fill_threads(void) { fill_many_by(2); }

// ---- Plans ----

enum { PLANS = 1000 };
static hai_plan plan;

static void run_resolve(row *r) {
  for (int i = 0; i < r->per; i++) must(hai_resolve(&plan, r->problems, &b.params));
}
static void run_planned(row *r) {
  hai_resolve(&plan, r->problems, &b.params);
  for (int i = 0; i < r->per; i++) hai_run(&plan, r->workspace, 0, 0, 0);
}
static void run_task(row *r) {
  for (int i = 0; i < r->per; i++) hyperattn_run_task(r->problems, &b.params, r->workspace, 0, 0, 0);
}
static void run_forward(row *r) {
  for (int i = 0; i < r->per; i++) must(hyperattn_forward(r->problems, &b.params, r->workspace, r->bytes));
}
static void run_forward_hyper(row *r) {
  b.params.method = HYPERATTN_HYPER;
  run_resolve(r);
  b.params.method = HYPERATTN_EXACT;
}

static void fill_plan(void) {
  static const struct {
    const char *name;
    void (*run)(row *);
  } runs[] = {{"planned task", run_planned},
              {"hyperattn_run_task", run_task},
              {"hyperattn_forward", run_forward},
              {"its plan", run_resolve},
              {"its plan by the linear preset", run_forward_hyper}};
  for (int64_t n = 1; n <= N; n *= N) {
    numbers x;
    hyperattn_problem p = problem_of(1, 1, 1, n, DIM, &x);
    int first = b.n_rows;
    for (int i = 0; i < 5; i++) {
      row *r = add_one(runs[i].name, &p, x);
      if (!i) snprintf(r->name, sizeof r->name, "1 query, n_key %d: %s", (int)n, runs[i].name);
      r->run = runs[i].run, r->per = PLANS / (n > 1 ? 100 : 1);
      if (i) compare(r, first, NONE);
    }
  }
}

static const struct {
  const char *name;
  void (*fill)(void);
} groups[] = {{"capping", fill_capping}, {"window", fill_window}, {"mask", fill_mask},
              {"pages", fill_pages},     {"custom", fill_custom}, {"many", fill_many},
              {"threads", fill_threads}, {"plan", fill_plan}};
enum { N_GROUPS = sizeof groups / sizeof *groups };

int main(int argc, char **argv) {
  const char *list = NULL, *csv = NULL;
  b.repeat = 9, b.bar = isatty(2);
  b.params = hyperattn_linear_params(), b.params.method = HYPERATTN_EXACT;
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (!strcmp(argv[i], "--list")) {
      for (int g = 0; g < N_GROUPS; g++) printf("%s\n", groups[g].name);
      return 0;
    }
    if (!strcmp(argv[i], "--group"))
      list = value, i++;
    else if (!strcmp(argv[i], "--repeat"))
      b.repeat = atoi(value), i++;
    else if (!strcmp(argv[i], "--csv"))
      csv = value, i++;
    else if (!strcmp(argv[i], "--isa"))
      b.params.isa = isa_named(value), i++;
    else {
      fprintf(stderr, "see the top of bench/bench_fields.c for options\n");
      return 2;
    }
  }
  if (b.repeat < 1) b.repeat = 1;
  b.kernel = hai_kernel_of(b.params.isa);
  if (csv)
    b.csv = open_record(csv, "bench_fields",
                        "group,case,over,share_of_pairs,threads,isa,seconds,ratio,target,error", b.repeat,
                        argc, argv);
  if (!pool_open(&b.workers, 2)) fprintf(stderr, "no threads\n"), exit(1);
  b.parallel = (hyperattn_parallel){2, &b.workers, pool_for};
  for (int g = 0; g < N_GROUPS; g++)
    if (!list || is_listed(groups[g].name, list)) measure(groups[g].name, groups[g].fill);
  pool_close(&b.workers);
  if (b.csv) fclose(b.csv);
  return 0;
}
