// Decode: a few queries over a long cache of keys and values, which is read from memory.
//
//   bench_decode [--group NAME,..] [--list] [--csv FILE]
//   bench_decode [--heads H,..] [--kv-heads H,..] [--n-query N,..] [--keys N,..] [--dim D,..]
//                [--dtype f32|f16|bf16|q8_0,..] [--threads T,..]
//   both: [--query f32|f16|bf16] [--isa NAME] [--repeat R] [--cache MB] [--small-pages]
//
// A group is a set of tables; without one, the lists say what is timed. Attention is exact and causal. The
// rows of a table are timed in turn, in R rounds (9 by default), in one process; a row's time is the least.
// A cache lies in memory several times, MB megabytes in all (320 by default, two copies at least), and each
// call meets the next copy, so that no call finds it in the processor's caches. It lies in huge pages where
// the system grants them, unless --small-pages asks for none; "huge" is the share that does.
//
// GB/s are bytes of keys and values over time. "share" is that over the rate at which the same number of
// threads adds up as much plain memory, in pages of the same kind; it is the next part of MB megabytes each
// time, and takes its turns in the same rounds. "over" names the row that a row is compared with, and the
// ratio is that of the rates; where there is none, it is the share. "target" is the least aimed at. The error
// is that of 16 rows against attention in double of the numbers that the cache holds. The data are those of
// bench_attention; queries are the head's last.
#define _DEFAULT_SOURCE
#define HYPERATTN_STATIC
#define HYPERATTN_IMPLEMENTATION
// How many queries of a head the kernel for few queries serves; negative: as many as the library lets it.
static int most_queries = -1;
#define HAI_FEW_QUERIES(measured) (most_queries < 0 ? (measured) : most_queries)
#include "hyperattn.h"

#include "amx.h"
#include "measure.h"
#include "pool.h"
#include "reading.h"
#include "record.h"
#include "splitmix.h"

#include <unistd.h>

enum { MAX_ROWS = 200, MAX_CACHES = 8, MAX_BLOCKS = 2000, PAGE_ROWS = 16, DATA_ROWS = 8192, JUDGED = 16 };
#define NONE ((double)NAN)

// What a cache holds, and how it lies.
typedef struct shape {
  int64_t kv_heads, n_key, key_dim, value_dim;
  hyperattn_dtype dtype;
  int is_latent;  // values are the first of the keys' numbers
  int is_paged;   // rows lie in shuffled pages
  int is_small;   // memory lies in the system's small pages
} shape;

typedef struct cache {
  shape s;
  char *key, *value;              // of the first copy; the others follow it
  size_t key_bytes, value_bytes;  // of one copy
  int copies, at;
  int32_t *page;
  float *k, *v;  // what a copy holds, in order, until the rounds begin
  double huge;
} cache;

typedef struct row row;
struct row {
  char name[64];
  void (*run)(row *);
  cache *cache;  // NULL: of plain memory
  int threads, n_problems, heads, n_query, most_queries;
  hyperattn_isa isa;
  hyperattn_problem *problems;
  int64_t *first;  // by each problem, the first of its rows in the cache
  double bytes, seconds, error, target;
  int reading, over;  // the rows that read plain memory, and that this one is compared with
  pool workers;
  hyperattn_parallel parallel;
  const void *plain;  // what is read, and the part that the next call reads
  int64_t at;
  void *workspace;
  size_t workspace_bytes;
};

typedef struct lists {
  const char *heads, *kv_heads, *n_query, *keys, *dims, *dtypes, *threads;
} lists;

typedef struct bench {
  int repeat, shows_progress, is_small;
  size_t cache_bytes;
  FILE *csv;
  hyperattn_params params;
  hyperattn_dtype query;
  lists asked;
  const char *group;
  row rows[MAX_ROWS];
  int n_rows;
  cache caches[MAX_CACHES];
  int n_caches;
  void *plain[2];            // memory that is read, in small and in huge pages
  void *blocks[MAX_BLOCKS];  // freed with the table
  int n_blocks;
} bench;

static bench b;

static void must(hyperattn_status status) {
  if (status != HYPERATTN_OK) fprintf(stderr, "%s\n", hyperattn_status_string(status)), exit(1);
}

// Memory until the end of the table.
static void *keep(void *block) {
  if (b.n_blocks == MAX_BLOCKS) fprintf(stderr, "too many blocks\n"), exit(1);
  return b.blocks[b.n_blocks++] = block;
}
static void *room(size_t bytes) { return keep(allocate(bytes)); }

// ---- Caches ----

// n rows of the data in a dtype, in copies; *x gets what they hold.
static char *copies_of(const char *which, int64_t n, int64_t dim, const cache *c, size_t bytes, float **x) {
  char *to = allocate_pages(bytes * (size_t)c->copies, !c->s.is_small);
  *x = repeat_rows(which, n, dim);
  elements_write(*x, n * dim, c->s.dtype, to);
  elements_read(to, n * dim, c->s.dtype, *x);
  return keep(to);
}

// The rows of the first copy in pages [page][kv head][row], shuffled.
static void scatter(cache *c, char *rows, size_t row_bytes) {
  size_t bytes = row_bytes * (size_t)(c->s.kv_heads * c->s.n_key), size = row_bytes * PAGE_ROWS;
  char *from = allocate(bytes);
  memcpy(from, rows, bytes);
  for (int64_t head = 0, pages = c->s.n_key / PAGE_ROWS; head < c->s.kv_heads; head++)
    for (int64_t i = 0; i < pages; i++)
      memcpy(rows + (size_t)(c->page[i] * c->s.kv_heads + head) * size,
             from + (size_t)(head * pages + i) * size, size);
  free(from);
}

static int32_t *shuffled(int64_t n) {
  int32_t *page = room((size_t)n * sizeof *page);
  uint64_t state = 2;
  for (int64_t i = 0; i < n; i++) {
    int64_t other = (int64_t)(splitmix(&state) % (uint64_t)(i + 1));
    page[i] = page[other], page[other] = (int32_t)i;
  }
  return page;
}

static cache *add_cache(shape s) {
  if (b.n_caches == MAX_CACHES) fprintf(stderr, "too many caches\n"), exit(1);
  cache *c = &b.caches[b.n_caches++];
  int64_t rows = s.kv_heads * s.n_key;
  s.is_small |= b.is_small;
  *c = (cache){.s = s,
               .key_bytes = elements_size(rows * s.key_dim, s.dtype),
               .value_bytes = s.is_latent ? 0 : elements_size(rows * s.value_dim, s.dtype)};
  c->copies = (int)(b.cache_bytes / (c->key_bytes + c->value_bytes)) + 1;
  if (c->copies < 2) c->copies = 2;
  c->key = c->value = copies_of("k", rows, s.key_dim, c, c->key_bytes, &c->k);
  if (!s.is_latent) {
    c->value = copies_of("v", rows, s.value_dim, c, c->value_bytes, &c->v);
  } else {
    c->v = allocate((size_t)(rows * s.value_dim) * sizeof *c->v);
    for (int64_t i = 0; i < rows; i++)
      memcpy(c->v + i * s.value_dim, c->k + i * s.key_dim, (size_t)s.value_dim * sizeof *c->v);
  }
  if (s.is_paged) {
    c->page = shuffled(s.n_key / PAGE_ROWS);
    scatter(c, c->key, c->key_bytes / (size_t)rows), scatter(c, c->value, c->value_bytes / (size_t)rows);
  }
  for (int i = 1; i < c->copies; i++) {
    memcpy(c->key + (size_t)i * c->key_bytes, c->key, c->key_bytes);
    if (!s.is_latent) memcpy(c->value + (size_t)i * c->value_bytes, c->value, c->value_bytes);
  }
  c->huge = huge_share(c->key);
  return c;
}

// The keys or values of a problem, without data.
static hyperattn_input input_of(const cache *c, int64_t n_key, int64_t dim) {
  hyperattn_input input = {.dtype = c->s.dtype, .row_stride = (ptrdiff_t)dim};
  input.head_stride = (ptrdiff_t)((c->s.is_paged ? PAGE_ROWS : n_key) * dim);
  if (c->s.is_paged) {
    input.page = c->page, input.page_rows = PAGE_ROWS;
    input.page_stride = (ptrdiff_t)(c->s.kv_heads * PAGE_ROWS * dim);
  }
  return input;
}

// A row's next call meets the next copy.
static void point(row *r) {
  cache *c = r->cache;
  const char *key = c->key + (size_t)c->at * c->key_bytes,
             *value = c->value + (size_t)c->at * c->value_bytes;
  if (c->s.is_latent) value = key;
  for (int i = 0; i < r->n_problems; i++) {
    r->problems[i].key.data = key + elements_size(r->first[i] * c->s.key_dim, c->s.dtype);
    r->problems[i].value.data = value + elements_size(r->first[i] * c->s.value_dim, c->s.dtype);
  }
  c->at = (c->at + 1) % c->copies;
}

// ---- Runs ----

// Runs a row by its own ISA and kernel.
static void run_row(row *r) {
  hyperattn_isa isa = b.params.isa;
  int most = most_queries;
  b.params.isa = r->isa, most_queries = r->most_queries;
  r->run(r);
  b.params.isa = isa, most_queries = most;
}

static void run_calls(row *r) {
  for (int i = 0; i < r->n_problems; i++)
    must(r->threads > 1 ? hyperattn_forward_parallel(&r->problems[i], &b.params, &r->parallel, r->workspace,
                                                     r->workspace_bytes)
                        : hyperattn_forward(&r->problems[i], &b.params, r->workspace, r->workspace_bytes));
}

static void run_as_one(row *r) {
  must(hyperattn_forward_many(r->problems, r->n_problems, &b.params, r->threads > 1 ? &r->parallel : NULL,
                              r->workspace, r->workspace_bytes, NULL));
}

static int64_t plain_tasks(void) { return (int64_t)(b.cache_bytes / READ_TASK) + 1; }

static volatile uint64_t total;  // what is read must be used
static void read_task(void *arg, int64_t i, int worker) {
  const row *r = (const row *)arg;
  (void)worker;
  total = read_bytes((const char *)r->plain + (r->at + i) % plain_tasks() * READ_TASK, READ_TASK);
}

// A call reads the next part of plain memory.
static void run_read(row *r) {
  int64_t tasks = (int64_t)(r->bytes / READ_TASK);
  pool_for(&r->workers, tasks, read_task, r);
  r->at = (r->at + tasks) % plain_tasks();
}

// ---- Rows ----

static row *add(const char *name, void (*run)(row *), int threads, int reading) {
  if (b.n_rows == MAX_ROWS) fprintf(stderr, "too many rows\n"), exit(1);
  row *r = &b.rows[b.n_rows++];
  memset(r, 0, sizeof *r);
  snprintf(r->name, sizeof r->name, "%s", name);
  r->run = run, r->threads = threads, r->reading = r->over = reading;
  r->isa = b.params.isa, r->most_queries = most_queries;
  r->error = r->target = NONE, r->seconds = (double)INFINITY;
  if (!pool_open(&r->workers, threads)) fprintf(stderr, "no threads\n"), exit(1);
  r->parallel = (hyperattn_parallel){threads, &r->workers, pool_for};
  return r;
}

// The row that reads as much plain memory as a cache has; it is there once for so many threads and such
// pages. Several threads are compared with one.
static int reading(int threads, const cache *c) {
  char name[64];
  int is_small = c->s.is_small;
  snprintf(name, sizeof name, "reading%s, %d thread%s", is_small ? " small pages" : "", threads,
           threads > 1 ? "s" : "");
  for (int i = 0; i < b.n_rows; i++)
    if (!strcmp(b.rows[i].name, name)) return i;
  size_t all = (size_t)plain_tasks() * READ_TASK, part = c->key_bytes + c->value_bytes;
  if (!b.plain[is_small]) memset(b.plain[is_small] = allocate_pages(all, !is_small), 1, all);
  int one = threads > 1 ? reading(1, c) : -1;
  row *r = add(name, run_read, threads, -1);
  part = part < all ? part / READ_TASK * READ_TASK : all;
  r->over = one, r->plain = b.plain[is_small], r->bytes = (double)(part ? part : READ_TASK);
  return (int)(r - b.rows);
}

static row *compare(row *r, const row *over, double target) {
  r->over = (int)(over - b.rows), r->target = target;
  return r;
}

static float *queries(int64_t n, int64_t dim) {
  float *all = repeat_rows("q", DATA_ROWS, dim), *last = room((size_t)(n * dim) * sizeof *last);
  memcpy(last, all + (DATA_ROWS - n) * dim, (size_t)(n * dim) * sizeof *last);
  free(all);
  return last;
}

// Problems that follow one another in a cache, with so many keys each.
static row *add_problems(const char *name, void (*run)(row *), cache *c, int threads, int n, int heads,
                         int n_query, const int64_t *n_key) {
  if (b.shows_progress) fprintf(stderr, "\r\033[K%s preparing %s", b.group, name);
  row *r = add(name, run, threads, reading(threads, c));
  int64_t rows = (int64_t)heads * n_query, dim = c->s.key_dim, at = 0;
  float *q = queries(n * rows, dim), *out = room((size_t)(n * rows * c->s.value_dim) * sizeof *out);
  char *query = room(elements_size(n * rows * dim, b.query));
  elements_write(q, n * rows * dim, b.query, query), elements_read(query, n * rows * dim, b.query, q);
  r->cache = c, r->n_problems = n, r->heads = heads, r->n_query = n_query;
  r->bytes = (double)(c->key_bytes + c->value_bytes);
  r->problems = room((size_t)n * sizeof *r->problems), r->first = room((size_t)n * sizeof *r->first);
  for (int i = 0; i < n; i++) {
    hyperattn_problem *p = &r->problems[i];
    *p = hyperattn_heads_first(1, heads, c->s.kv_heads, n_query, n_key[i], dim, c->s.value_dim,
                               query + elements_size(i * rows * dim, b.query), NULL, NULL,
                               out + i * rows * c->s.value_dim);
    p->causal = 1, p->query.dtype = b.query;
    p->key = input_of(c, n_key[i], dim),
    p->value = input_of(c, n_key[i], c->s.is_latent ? dim : c->s.value_dim);
    r->first[i] = at, at += c->s.kv_heads * n_key[i];
    size_t bytes = hyperattn_workspace_size(p, &b.params, threads);
    if (bytes > r->workspace_bytes) r->workspace_bytes = bytes;
  }
  if (run == run_as_one)
    r->workspace_bytes = hyperattn_workspace_size_many(r->problems, n, &b.params, threads);
  r->workspace = room(r->workspace_bytes);
  point(r), run_row(r);
  squares sum = {0, 0};
  for (int i = 0; i < n; i++) {
    numbers x = {q + i * rows * dim, c->k + r->first[i] * dim, c->v + r->first[i] * c->s.value_dim};
    add_squares(&sum, &r->problems[i], x, n > 1 ? 1 : JUDGED);
  }
  r->error = sqrt(sum.difference / sum.exact);
  return r;
}

static row *add_one(const char *name, cache *c, int threads, int heads, int n_query) {
  return add_problems(name, run_calls, c, threads, 1, heads, n_query, &c->s.n_key);
}

// ---- Tables ----

static double rate(const row *r) { return r->bytes / r->seconds * 1e-9; }
static double over(const row *r, int other) { return other < 0 ? NONE : rate(r) / rate(&b.rows[other]); }

static void record(const row *r) {
  const cache *c = r->cache;
  fprintf(b.csv, "%s,\"%s\",%d,%d,", b.group, r->name, r->heads, r->n_query);
  if (c)
    fprintf(b.csv, "%lld,%lld,%lld,%lld,%s,", (long long)c->s.kv_heads, (long long)c->s.n_key,
            (long long)c->s.key_dim, (long long)c->s.value_dim, element_names[c->s.dtype]);
  else
    fprintf(b.csv, ",,,,,");
  fprintf(b.csv, "%d,%s,", r->threads, hyperattn_isa_name(hai_kernel_of(r->isa)->isa));
  field(b.csv, "%.2f", c ? c->huge : huge_share(r->plain));
  if (c) fprintf(b.csv, "%d", c->copies);
  fprintf(b.csv, ",%.4g,%.2f,", r->seconds, rate(r));
  field(b.csv, "%.3f", over(r, r->reading));
  fprintf(b.csv, "\"%s\",", r->over < 0 ? "" : b.rows[r->over].name);
  field(b.csv, "%.3f", over(r, r->over)), field(b.csv, "%.2f", r->target);
  if (!isnan(r->error)) fprintf(b.csv, "%.2e", r->error);
  fprintf(b.csv, "\n");
}
static const char columns[] =
    "group,case,heads,n_query,kv_heads,n_key,head_dim,value_dim,dtype,threads,isa,huge,copies,seconds,"
    "gb_per_s,share,over,ratio,target,error";

static void print_table(void) {
  printf(
      "\n| %-44s | %9s | %6s | %5s | %-44s | %13s | %6s | %7s | %5s "
      "|\n|---|---|---|---|---|---|---|---|---|\n",
      b.group, "seconds", "GB/s", "share", "over", "ratio", "target", "error", "huge");
  for (int i = 0; i < b.n_rows; i++) {
    const row *r = &b.rows[i];
    printf("| %-44s |", r->name);
    cell(r->seconds < 1e-3 ? "%.3g" : "%#.4g", 9, r->seconds), cell("%.1f", 6, rate(r));
    cell("%.2f", 5, over(r, r->reading));
    printf(" %-44s |", r->over < 0 || r->over == r->reading ? "" : b.rows[r->over].name);
    cell(over(r, r->over) < r->target ? "%.2f: missed" : "%.2f", 13, over(r, r->over));
    cell("%.2f", 6, r->target), cell("%.1e", 7, r->error);
    cell("%.2f", 5, r->cache ? r->cache->huge : huge_share(r->plain));
    printf("\n");
    if (b.csv) record(r);
  }
  fflush(stdout);
  if (b.csv) fflush(b.csv);
}

// A row's turn in a round: 10 ms at least.
static void take_turn(row *r, int round) {
  if (b.shows_progress) fprintf(stderr, "\r\033[K%s %d/%d %s", b.group, round + 1, b.repeat, r->name);
  for (double first = now(), begin = first, end; begin - first < 0.01; begin = end) {
    if (r->cache) point(r), begin = now();
    run_row(r);
    end = now();
    if (end - begin < r->seconds) r->seconds = end - begin;
  }
}

static void end_table(void) {
  for (int i = 0; i < b.n_caches; i++) free(b.caches[i].k), free(b.caches[i].v);
  for (int round = 0; round < b.repeat; round++)
    for (int i = 0; i < b.n_rows; i++) take_turn(&b.rows[i], round);
  if (b.shows_progress) fprintf(stderr, "\r\033[K");
  print_table();
  for (int i = 0; i < b.n_rows; i++) pool_close(&b.rows[i].workers);
  while (b.n_blocks) free(b.blocks[--b.n_blocks]);
  b.n_rows = b.n_caches = 0;
}

// ---- Groups ----

// The least share of the reading rate that one thread is to reach with up to four rows a kv head.
static double share_aimed_at(const row *r) {
  const shape *s = &r->cache->s;
  if (r->threads > 1 || r->heads * r->n_query > 4 * s->kv_heads) return NONE;
  return s->dtype == HYPERATTN_Q8_0 ? 0.6 : s->dtype == HYPERATTN_F32 && s->key_dim > 64 ? 0.7 : 0.85;
}

// The rows of a cache: each number of heads, of queries and of threads. More threads are compared with one.
static void add_rows(cache *c, const lists *l, double two_over_one) {
  const char *heads = l->heads;
  for (int64_t h; next_number(&heads, &h);) {
    const char *n_query = l->n_query;
    if (h % c->s.kv_heads) continue;
    for (int64_t n; next_number(&n_query, &n);) {
      const char *threads = l->threads;
      row *one = NULL;
      for (int64_t t; next_number(&threads, &t);) {
        char name[64];
        snprintf(name, sizeof name, "%s d %d, %d keys, %d/%d heads, %d quer%s%s", element_names[c->s.dtype],
                 (int)c->s.key_dim, (int)c->s.n_key, (int)h, (int)c->s.kv_heads, (int)n,
                 n > 1 ? "ies" : "y", t > 1 ? ", 2 threads" : "");
        if (t > 1) snprintf(strrchr(name, ',') + 2, 16, "%d threads", (int)t);
        row *r = add_one(name, c, (int)t, (int)h, (int)n);
        r->target = share_aimed_at(r);
        if (t > 1 && one) compare(r, one, two_over_one);
        if (t == 1) one = r;
      }
    }
  }
}

// A table for each cache.
static void measure(const lists *l, double two_over_one) {
  const char *dims, *keys, *kv_heads;
  int64_t dim, n, kv;
  for (int dtype = HYPERATTN_F32; dtype <= HYPERATTN_Q8_0; dtype++)
    for (dims = l->dims; is_listed(element_names[dtype], l->dtypes) && next_number(&dims, &dim);)
      for (keys = l->keys; next_number(&keys, &n);)
        for (kv_heads = l->kv_heads; next_number(&kv_heads, &kv);) {
          shape s = {.kv_heads = kv,
                     .n_key = n,
                     .key_dim = dim,
                     .value_dim = dim,
                     .dtype = (hyperattn_dtype)dtype};
          add_rows(add_cache(s), l, two_over_one);
          end_table();
        }
}

static void measure_asked(void) { measure(&b.asked, NONE); }
static void measure_bandwidth(void) {
  measure(&(lists){"1,2,4", "1", "1", "32768,131072", "64,128", "f32,f16,bf16,q8_0", "1"}, NONE);
}
static void measure_grouped(void) {
  measure(&(lists){"32", "8", "1", "4096,32768", "128", "f16,q8_0", "1,2"}, NONE);
}
static void measure_ungrouped(void) {
  measure(&(lists){"16", "16", "1", "32768", "64", "f32,f16", "1,2"}, NONE);
}
static void measure_threads(void) {
  measure(&(lists){"8", "1", "1", "32768", "64,128", "f16", "1,2"}, 1.7);
}

// The kernel for few queries over tiles, by each ISA that has both.
static void measure_crossing(void) {
  static const hyperattn_isa isas[] = {HYPERATTN_ISA_AVX512, HYPERATTN_ISA_AVX2, HYPERATTN_ISA_NEON};
  hyperattn_isa asked = b.params.isa;
  for (int i = 0; i < 3; i++)
    for (int dtype = HYPERATTN_F32; dtype <= HYPERATTN_Q8_0 && hai_kernel_of(isas[i]); dtype++) {
      cache *c = add_cache((shape){
          .kv_heads = 1, .n_key = 8192, .key_dim = 128, .value_dim = 128, .dtype = (hyperattn_dtype)dtype});
      b.params.isa = isas[i];
      for (int heads = 1; heads <= 8; heads += 3 + heads / 4)
        for (int n = 1; n <= 32; n *= 2) {
          char name[64];
          snprintf(name, sizeof name, "%s %s, %d/1 heads, %d queries", hyperattn_isa_name(isas[i]),
                   element_names[dtype], heads, n);
          most_queries = 0;
          row *tiles = add_one("tiles", c, 1, heads, n);
          most_queries = 32;
          compare(add_one(name, c, 1, heads, n), tiles, NONE);
        }
      most_queries = -1;
      end_table();
    }
  b.params.isa = asked;
}

// Multi-head latent attention: one kv head, whose values are the first 512 of the keys' 576 numbers.
static void measure_latent(void) {
  cache *c = add_cache((shape){.kv_heads = 1,
                               .n_key = 32768,
                               .key_dim = 576,
                               .value_dim = 512,
                               .dtype = HYPERATTN_F16,
                               .is_latent = 1});
  add_rows(c, &(lists){.heads = "128", .n_query = "1", .threads = "1,2"}, NONE);
  end_table();
}

// Pages of 16 rows, shuffled, beside the same rows one behind the other.
static void measure_pages(void) {
  for (int dtype = HYPERATTN_F16; dtype <= HYPERATTN_Q8_0; dtype += HYPERATTN_Q8_0 - HYPERATTN_F16)
    for (int64_t kv_heads = 1; kv_heads <= 8; kv_heads *= 8) {
      shape s = {.kv_heads = kv_heads,
                 .n_key = 131072 / kv_heads,
                 .key_dim = 128,
                 .value_dim = 128,
                 .dtype = (hyperattn_dtype)dtype};
      char name[64];
      int heads = (int)kv_heads * 4;
      snprintf(name, sizeof name, "%s d 128, %d keys, %d/%d heads", element_names[dtype], (int)s.n_key,
               heads, (int)kv_heads);
      row *contiguous = add_one(name, add_cache(s), 1, heads, 1);
      s.is_paged = 1;
      compare(add_one("pages of 16", add_cache(s), 1, heads, 1), contiguous, 0.95);
      end_table();
    }
}

static void measure_huge(void) {
  for (int heads = 1; heads <= 4; heads *= 4) {
    shape s = {.kv_heads = 1, .n_key = 131072, .key_dim = 128, .value_dim = 128, .dtype = HYPERATTN_F16};
    char name[64];
    snprintf(name, sizeof name, "f16 d 128, 131072 keys, %d/1 heads", heads);
    row *huge = add_one(name, add_cache(s), 1, heads, 1);
    s.is_small = 1;
    compare(add_one("small pages", add_cache(s), 1, heads, 1), huge, NONE);
    end_table();
  }
}

// Decode steps of 64 sequences of 512 to 8192 keys: a call each, and one call.
static void measure_many(void) {
  enum { SEQUENCES = 64 };
  int64_t n_key[SEQUENCES], all = 0;
  uint64_t state = 3;
  for (int i = 0; i < SEQUENCES; i++)
    all += n_key[i] = 512 + (int64_t)(splitmix(&state) % (8192 - 512 + 1));
  for (int64_t kv_heads = 1; kv_heads <= 2; kv_heads++) {
    cache *c = add_cache((shape){
        .kv_heads = kv_heads, .n_key = all, .key_dim = 128, .value_dim = 128, .dtype = HYPERATTN_F16});
    for (int threads = 1; threads <= 2; threads++) {
      char name[64];
      snprintf(name, sizeof name, "8/%d heads, 64 calls%s", (int)kv_heads,
               threads > 1 ? ", 2 threads" : "");
      row *calls = add_problems(name, run_calls, c, threads, SEQUENCES, 8, 1, n_key);
      row *one = add_problems("one call", run_as_one, c, threads, SEQUENCES, 8, 1, n_key);
      compare(one, calls, threads > 1 ? 1.3 : NONE);
    }
    end_table();
  }
}

static const struct {
  const char *name;
  void (*measure)(void);
} groups[] = {{"bandwidth", measure_bandwidth}, {"grouped", measure_grouped},
              {"ungrouped", measure_ungrouped}, {"threads", measure_threads},
              {"latent", measure_latent},       {"pages", measure_pages},
              {"huge", measure_huge},           {"many", measure_many},
              {"crossing", measure_crossing},   {"asked", measure_asked}};
enum { N_GROUPS = sizeof groups / sizeof *groups };

int main(int argc, char **argv) {
  const char *list = "asked", *csv = NULL, *query = "f32", *isa = "auto", *repeat = "9", *megabytes = "320";
  b.asked = (lists){"4", "1", "1", "32768", "128", "f16", "1"};
  const struct {
    const char *name, **value;
  } options[] = {{"--group", &list},
                 {"--csv", &csv},
                 {"--query", &query},
                 {"--isa", &isa},
                 {"--repeat", &repeat},
                 {"--cache", &megabytes},
                 {"--heads", &b.asked.heads},
                 {"--kv-heads", &b.asked.kv_heads},
                 {"--keys", &b.asked.keys},
                 {"--n-query", &b.asked.n_query},
                 {"--dim", &b.asked.dims},
                 {"--dtype", &b.asked.dtypes},
                 {"--threads", &b.asked.threads}};
  const int n_options = sizeof options / sizeof *options;
  for (int i = 1, o; i < argc; i++) {
    for (o = 0; o < n_options && strcmp(argv[i], options[o].name);) o++;
    if (!strcmp(argv[i], "--list")) {
      for (int g = 0; g < N_GROUPS; g++) printf("%s\n", groups[g].name);
      return 0;
    }
    if (!strcmp(argv[i], "--small-pages")) {
      b.is_small = 1;
    } else if (o < n_options && i + 1 < argc) {
      *options[o].value = argv[++i];
    } else {
      fprintf(stderr, "see the top of bench/bench_decode.c for options\n");
      return 2;
    }
  }
  if (!elements_named(query, &b.query) || b.query == HYPERATTN_Q8_0)
    fprintf(stderr, "queries are f32, f16 or bf16\n"), exit(2);
  ask_for_amx();
  b.repeat = atoi(repeat) > 0 ? atoi(repeat) : 1, b.shows_progress = isatty(2);
  b.cache_bytes = (size_t)atoll(megabytes) * 1000000;
  b.params = hyperattn_default_params(), b.params.method = HYPERATTN_EXACT, b.params.isa = isa_named(isa);
  if (csv) b.csv = open_record(csv, "bench_decode", columns, b.repeat, argc, argv);
  for (int g = 0; g < N_GROUPS; g++)
    if (is_listed(groups[g].name, list)) b.group = groups[g].name, groups[g].measure();
  if (b.csv) fclose(b.csv);
  free(b.plain[0]), free(b.plain[1]);
  return 0;
}
