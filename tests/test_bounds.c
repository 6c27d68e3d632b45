/* Nothing but what a call was given is touched: pages that nobody may touch lie before and behind every
   buffer, what pads rows holds NaN or a pattern, and the gaps between the parts of the workspace are
   poisoned. And the sizes that are asked for are right up to the largest that a caller may name. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#define _DARWIN_C_SOURCE
#include "../examples/amx.h"
#include "support.h"
#include <limits.h>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#define HAS_PAGES 1
#else
#define HAS_PAGES 0
#endif

#if defined(__SANITIZE_ADDRESS__) || TEST_HAS_FEATURE(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define HAS_ASAN 1
#else
#define HAS_ASAN 0
#endif
enum { N_SHAPES = IS_FAST_BUILD ? 400 : 60 };

/* ---- Buffers between guard pages ---- */

enum { OUT, LSE, REPORT, WORKSPACE, QUERY, KEY, VALUE, N_ARENAS };
enum { ARENA = 1 << 24 };                              /* bytes of each, whole pages */
static struct arena { char *begin; } arenas[N_ARENAS]; /* what follows and precedes it cannot be touched */

static int open_arenas(void **state) {
  (void)state;
  for (int i = 0; i < N_ARENAS; i++) {
#if HAS_PAGES
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *all = (char *)mmap(NULL, ARENA + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(all != MAP_FAILED && ARENA % page == 0);
    assert_int_equal(mprotect(all + page, ARENA, PROT_READ | PROT_WRITE), 0);
    arenas[i].begin = all + page;
#else
    arenas[i].begin = (char *)test_alloc(ARENA);
#endif
  }
  return 0;
}

/* So many bytes of an arena, flush with its beginning or its end, every one of them `fill`. */
static char *place(int arena, size_t bytes, int at_end, int fill) {
  assert_true(bytes <= ARENA);
  return (char *)memset(arenas[arena].begin + (at_end ? ARENA - bytes : 0), fill, bytes);
}

/* ---- Gaps of the workspace ---- */

/* Closed, a gap cannot be touched (ASan), or what is written to it shows when it is opened. */
static void set_gap(char *begin, size_t bytes, int is_open) {
#if HAS_ASAN
  if (is_open)
    __asan_unpoison_memory_region(begin, bytes);
  else
    __asan_poison_memory_region(begin, bytes);
#else
  if (!is_open) memset(begin, 0x5a, bytes);
  for (size_t i = 0; i < bytes; i++) assert_int_equal(begin[i], 0x5a);
#endif
}

/* Bytes of an array, computed once more in a type that does not overflow. */
static double array_bytes(const hai_plan *plan, int i) {
  const hai_array *array = &hai_arrays[i];
  double heads = (double)(array->heads == HAI_OF_HEADS ? plan->n_heads : plan->n_kv_heads);
  return (double)plan->problem->batch * heads * (double)hai_array_count(plan, i) * (double)array->size;
}

/* Where it begins; the scan's follow one another. */
static size_t array_begin(const hai_plan *plan, int i) {
  size_t at = plan->layout.scan;
  if (i < HAI_ARRAY_CODE) return plan->layout.begin[i];
  for (int j = HAI_ARRAY_CODE; j < i; j++) at += ((size_t)array_bytes(plan, j) + 63) / 64 * 64;
  return at;
}

/* Closes or opens all that lies between arrays, between workers, and before and behind. */
static void set_gaps(const hai_plan *plan, char *workspace, size_t bytes, int workers, int is_open) {
  const hai_layout *y = &plan->layout;
  char *base = hai_align(workspace), *end = base + y->scratch + (size_t)workers * y->scratch_bytes;
  size_t used = hai_worker_bytes(plan), covered = 0;
  assert_true(bytes == (size_t)(end - base) + 63); /* aligned in the worst case, it still fits */
  for (int i = 0; i <= HAI_N_ARRAYS; i++) {
    size_t next = i < HAI_N_ARRAYS ? array_begin(plan, i) : y->scratch;
    if (next > covered) {
      /* a window's scratch lies where that of a shorter call would, which may be approximated */
      assert_true(next - covered < 64 || (plan->sliding && i == HAI_N_ARRAYS));
      set_gap(base + covered, next - covered, is_open);
    }
    if (i < HAI_N_ARRAYS) covered = hai_most(covered, next + (size_t)array_bytes(plan, i));
    assert_true(covered <= y->scratch);
  }
  for (int w = 0; w < workers; w++)
    set_gap(base + y->scratch + (size_t)w * y->scratch_bytes + used, y->scratch_bytes - used, is_open);
  set_gap(workspace, (size_t)(base - workspace), is_open);
  set_gap(end, (size_t)(workspace + bytes - end), is_open);
}

/* ---- Tensors ---- */

enum layout { CONTIGUOUS, PADDED, ROWS_FIRST, REVERSED, N_LAYOUTS };

typedef struct tensor {
  char *begin;
  size_t bytes;
  hyperattn_input x;
} tensor;

static tensor new_tensor(int arena, hyperattn_dtype dtype, enum layout layout, int at_end, int fill,
                         int64_t batch, int64_t heads, int64_t rows, int64_t dim) {
  int64_t unit = hai_unit(dtype), line = (dim + unit - 1) / unit * unit,
          pad = layout == CONTIGUOUS ? 0 : 3 * unit;
  int64_t row = layout == ROWS_FIRST ? heads * line + pad : line + pad;
  int64_t head = layout == ROWS_FIRST ? line : rows * row + pad;
  int64_t all = layout == ROWS_FIRST ? rows * row + pad : heads * head + pad;
  tensor t;
  memset(&t, 0, sizeof t);
  t.bytes = (size_t)hai_offset(
      dtype, (ptrdiff_t)((batch - 1) * all + (heads - 1) * head + (rows - 1) * row + line));
  t.begin = place(arena, t.bytes, at_end, fill);
  t.x.data = t.begin + (layout == REVERSED ? hai_offset(dtype, (ptrdiff_t)((rows - 1) * row)) : 0);
  t.x.dtype = dtype;
  t.x.batch_stride = (ptrdiff_t)all, t.x.head_stride = (ptrdiff_t)head;
  t.x.row_stride = (ptrdiff_t)(layout == REVERSED ? -row : row);
  return t;
}

/* Numbers that depend on the seed and the place in the tensor alone; what pads the rows is NaN. */
static hyperattn_input new_input(int arena, hyperattn_dtype dtype, enum layout layout, int at_end,
                                 int64_t batch, int64_t heads, int64_t rows, int64_t dim, uint64_t seed) {
  tensor t = new_tensor(arena, dtype, layout, at_end, 0xff, batch, heads, rows, dim);
  uint64_t random = seed;
  for (int64_t b = 0; b < batch; b++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t r = 0; r < rows; r++) {
        char *row = (char *)(uintptr_t)hai_row(&t.x, (hai_index)b, (hai_index)h, (hai_index)r);
        for (int64_t i = 0; i < dim; i++) {
          uint64_t bits = splitmix(&random);
          if (dtype != HYPERATTN_Q8_0) {
            hai_put(row, dtype, (hai_index)i, (float)((double)bits * 0x1p-62 - 2.0));
            continue;
          }
          uint16_t scale = hai_to_f16(0.02f);
          memcpy(row + i / 32 * 34, &scale, 2);
          row[i / 32 * 34 + 2 + i % 32] = (char)bits;
        }
      }
  return t.x;
}

/* Copies an output's rows out, then paints them over: all bytes must then be the pattern. */
static void take_output(const tensor *t, const hyperattn_problem *p, char *to) {
  size_t line = (size_t)p->value_dim * hai_unit_bytes(t->x.dtype);
  for (int64_t b = 0; b < p->batch; b++)
    for (int64_t h = 0; h < p->n_heads; h++)
      for (int64_t r = 0; r < p->n_query; r++, to += line) {
        char *row = hai_out_row(&p->out, (hai_index)b, (hai_index)h, (hai_index)r);
        memcpy(to, row, line);
        memset(row, 0x5a, line);
      }
  for (size_t i = 0; i < t->bytes; i++) assert_int_equal(t->begin[i], 0x5a);
}

/* ---- Runs ---- */

/* Tasks in any order, dealt out at random. */
typedef struct dealer {
  int n_workers;
  uint64_t random;
} dealer;
static void dealt_for(void *context, int64_t n_tasks, hyperattn_task task, void *arg) {
  dealer *d = (dealer *)context;
  int64_t *order = (int64_t *)test_alloc((size_t)n_tasks * sizeof *order);
  for (int64_t i = 0; i < n_tasks; i++) {
    int64_t j = (int64_t)(splitmix(&d->random) % (uint64_t)(i + 1));
    order[i] = order[j], order[j] = i;
  }
  for (int64_t i = 0; i < n_tasks; i++)
    task(arg, order[i], (int)(splitmix(&d->random) % (uint64_t)d->n_workers));
  free(order);
}

typedef struct result {
  char *out; /* rows, without what pads them */
  float *lse;
  hyperattn_report *report;
} result;

/* Runs a problem, of which shape and dtypes are set, with every buffer flush with one side of its arena. */
static result run_placed(hyperattn_problem p, const hyperattn_params *params, int reporting,
                         enum layout layout, int at_end, int workers, uint64_t seed) {
  enum layout out_layout = layout == REVERSED ? PADDED : layout;
  size_t rows = (size_t)lse_size(&p), reports = (size_t)(p.batch * p.n_heads), bytes;
  dealer d = {workers, seed + (uint64_t)at_end};
  hyperattn_parallel parallel = {workers, &d, dealt_for};
  hai_plan plan;
  result r;
  p.query =
      new_input(QUERY, p.query.dtype, layout, at_end, p.batch, p.n_heads, p.n_query, p.head_dim, seed);
  p.key = new_input(KEY, p.key.dtype, layout, at_end, p.batch, p.n_kv_heads, p.n_key, p.head_dim, seed + 1);
  p.value = new_input(VALUE, p.value.dtype, layout, at_end, p.batch, p.n_kv_heads, p.n_key, p.value_dim,
                      seed + 2);
  tensor out =
      new_tensor(OUT, p.out.dtype, out_layout, at_end, 0x5a, p.batch, p.n_heads, p.n_query, p.value_dim);
  p.out.data = out.begin, p.out.batch_stride = out.x.batch_stride;
  p.out.head_stride = out.x.head_stride, p.out.row_stride = out.x.row_stride;
  p.lse = (float *)(void *)place(LSE, rows * sizeof(float), at_end, 0xff);
  if (reporting)
    p.report = (hyperattn_report *)(void *)place(REPORT, reports * sizeof *p.report, at_end, 0xff);
  bytes = hyperattn_workspace_size(&p, params, workers);
  char *workspace = place(WORKSPACE, bytes, at_end, at_end ? 0xff : 0);
  assert_int_equal(hai_resolve(&plan, &p, params), HYPERATTN_OK);
  set_gaps(&plan, workspace, bytes, workers, 0);
  assert_string_equal(
      hyperattn_status_string(hyperattn_forward_parallel(&p, params, &parallel, workspace, bytes)), "ok");
  set_gaps(&plan, workspace, bytes, workers, 1);
  r.out = (char *)test_alloc((size_t)out_size(&p) * hai_unit_bytes(p.out.dtype));
  r.lse = (float *)test_alloc(rows * sizeof(float));
  r.report = (hyperattn_report *)test_alloc(reports * sizeof *r.report);
  take_output(&out, &p, r.out);
  memcpy(r.lse, p.lse, rows * sizeof(float));
  if (reporting) memcpy(r.report, p.report, reports * sizeof *r.report);
  return r;
}
static void free_result(result *r) { free(r->out), free(r->lse), free(r->report); }

/* Beginning and contiguous, then end and as may be, with other workers: the same bits. */
static void check_bounds(hyperattn_problem p, hyperattn_params params, int reporting, uint64_t seed) {
  size_t out_bytes = (size_t)out_size(&p) * hai_unit_bytes(p.out.dtype);
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++) {
    params.isa = (hyperattn_isa)isa;
    if (!hai_kernel_of(params.isa)) continue;
    result a = run_placed(p, &params, reporting, CONTIGUOUS, 0, 1, seed);
    result b =
        run_placed(p, &params, reporting, (enum layout)(seed % N_LAYOUTS), 1, 1 + (int)(seed % 3), seed);
    assert_memory_equal(a.out, b.out, out_bytes);
    assert_memory_equal(a.lse, b.lse, (size_t)lse_size(&p) * sizeof(float));
    if (reporting)
      assert_memory_equal(a.report, b.report, (size_t)(p.batch * p.n_heads) * sizeof *a.report);
    free_result(&a), free_result(&b);
  }
}

/* ---- Random calls ---- */

static hyperattn_problem any_problem(uint64_t *random) {
  static const float sinks[] = {1.0f, -1.0f, 3.0f, -INFINITY, 0.0f, 2.0f};
  static const int64_t dims[] = {1, 2, 3, 7, 8, 16, 17, 31, 32, 32, 33, 48, 64, 65};
  hyperattn_problem p;
  int kind = (int)any_of(random, 0, 3);
  memset(&p, 0, sizeof p);
  p.batch = any_of(random, 1, 2), p.n_kv_heads = any_of(random, 1, 2);
  p.n_heads = p.n_kv_heads * any_of(random, 1, 3);
  p.n_query = any_of(random, 1, any_of(random, 0, 3) ? 130 : 17);
  p.n_key = any_of(random, 0, 2) ? any_of(random, 1, 200) : p.n_query;
  p.head_dim = one_of(random, dims, sizeof dims / sizeof *dims);
  p.value_dim = one_of(random, dims, sizeof dims / sizeof *dims);
  p.causal = (int)any_of(random, 0, 1);
  int64_t special = any_of(random, 0, 40);
  if (special == 0) p.head_dim = 576, p.n_query = any_of(random, 1, 9);
  if (special == 1) p.value_dim = 576, p.n_query = any_of(random, 1, 9);
  if (special == 2) { /* few queries over many keys */
    p.n_query = any_of(random, 1, 17), p.n_key = any_of(random, 4000, 6500);
    p.head_dim = any_of(random, 1, 17), p.value_dim = any_of(random, 1, 17);
  }
  p.query.dtype = kind == 0   ? HYPERATTN_F32
                  : kind == 1 ? HYPERATTN_BF16
                              : (hyperattn_dtype)any_of(random, 0, 2);
  p.key.dtype = kind < 2 ? p.query.dtype : (hyperattn_dtype)any_of(random, 0, 3);
  p.value.dtype = kind < 2 ? p.query.dtype : (hyperattn_dtype)any_of(random, 0, 3);
  p.out.dtype = kind == 0 ? HYPERATTN_F32 : (hyperattn_dtype)any_of(random, 0, 2);
  if (!any_of(random, 0, 3)) p.softcap = 3.0f;
  if (!any_of(random, 0, 3)) p.sink = sinks;
  if (!any_of(random, 0, 3)) p.sliding_window = any_of(random, 1, 200);
  return p;
}

static hyperattn_params any_params(uint64_t *random, int causal) {
  static const int64_t least[] = {2, 8, 24, 24, 64};
  hyperattn_params a = hyperattn_linear_params();
  a.method = any_of(random, 0, 5) ? HYPERATTN_HYPER : HYPERATTN_EXACT;
  a.min_seq_len = one_of(random, least, sizeof least / sizeof *least);
  a.block_size = any_of(random, 0, 24), a.sample_size = any_of(random, 0, 20);
  a.lsh_bits = (int32_t)any_of(random, 1, 9);
  a.query_group = any_of(random, 0, 2) ? any_of(random, 1, 20) : 0;
  a.key_group = a.query_group ? any_of(random, 1, 9) : 0;
  a.order = (hyperattn_order)any_of(random, 0, 2);
  a.sink_keys = any_of(random, 0, 5), a.heavy_keys = any_of(random, 0, 9);
  a.probe_queries = any_of(random, 1, 20), a.window = causal ? any_of(random, 0, 40) : 0;
  a.sampling = (hyperattn_sampling)any_of(random, 0, 2);
  a.tolerance = any_of(random, 0, 1) ? (float)splitmix_uniform(random) : 0.0f;
  a.seed = splitmix(random);
  if (!any_of(random, 0, 3)) { /* no probes, and so nothing that needs them */
    a.probe_queries = a.heavy_keys = 0, a.tolerance = 0.0f;
    if (a.order == HYPERATTN_ORDER_PROBED) a.order = HYPERATTN_ORDER_SORTLSH;
    if (a.sampling == HYPERATTN_SAMPLE_COLUMN_MASS) a.sampling = HYPERATTN_SAMPLE_VALUE_NORM;
  }
  if (!causal && a.tolerance == 0.0f && a.order != HYPERATTN_ORDER_PROBED && any_of(random, 0, 1))
    a.cap_epsilon = 0.5f, a.cap_kappa = 2.0f;
  return a;
}

static void test_nothing_outside_is_touched(void **state) {
  uint64_t random = 2024;
  int approximated = 0;
  (void)state;
  for (int i = 0; i < N_SHAPES; i++) {
    hyperattn_problem p = any_problem(&random);
    hyperattn_params a = any_params(&random, p.causal);
    approximated +=
        a.method == HYPERATTN_HYPER && is_worth(&a, p.n_query / (1 + p.causal), p.n_key / (1 + p.causal));
    check_bounds(p, a, (int)any_of(&random, 0, 1), splitmix(&random) >> 1);
  }
  assert_above((double)approximated, 0.2 * N_SHAPES);
}

/* So many keys that sub-blocks are chosen in two levels, and chunks of probing and judging are several. */
static void test_nothing_outside_is_touched_in_long_contexts(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int dtype = HYPERATTN_F32; dtype <= HYPERATTN_BF16; dtype += 2) {
      hyperattn_problem p;
      hyperattn_params a = small_params(hyperattn_linear_params(), 1024, 16, 20);
      hai_plan plan;
      memset(&p, 0, sizeof p);
      p.batch = 1, p.n_heads = 2, p.n_kv_heads = 1, p.n_query = 230, p.n_key = 35001, p.head_dim = 2,
      p.value_dim = 3;
      p.causal = causal;
      p.query.dtype = p.key.dtype = p.value.dtype = p.out.dtype = (hyperattn_dtype)dtype;
      a.order = HYPERATTN_ORDER_PROBED, a.tolerance = 0.3f, a.query_group = 2;
      assert_int_equal(hai_resolve(&plan, &p, &a), HYPERATTN_OK);
      assert_true(plan.outer && hai_two_levels(&plan, hai_level_keys(&plan, plan.depth)));
      check_bounds(p, a, 1, 1 + 4 * (uint64_t)causal);
    }
}

/* Rectangles that are scanned, several in a level. */
static void test_nothing_outside_is_touched_by_scans(void **state) {
  (void)state;
  for (int i = 0; i < (IS_FAST_BUILD ? 12 : 4); i++) {
    hyperattn_problem p;
    hyperattn_params a = small_params(hyperattn_linear_params(), 24, 12, 10);
    hai_plan plan;
    memset(&p, 0, sizeof p);
    p.batch = 1, p.n_heads = 2, p.n_kv_heads = 1, p.n_query = 900 + i * 77,
    p.n_key = i % 3 ? 900 + i * 77 : 1000, p.head_dim = 9, p.value_dim = 5;
    p.causal = i % 2;
    p.query.dtype = p.key.dtype = p.value.dtype = p.out.dtype = i % 4 < 2 ? HYPERATTN_F32 : HYPERATTN_BF16;
    a.tolerance = i % 5 ? 0.05f : 1e-30f;
    assert_int_equal(hai_resolve(&plan, &p, &a), HYPERATTN_OK);
    assert_true(plan.scans_rects && (!p.causal || plan.max_rects >= 4));
    check_bounds(p, a, i / 2 % 2, 1 + (uint64_t)i);
  }
}

/* ---- Merging ---- */

static void test_merging_touches_nothing_outside(void **state) {
  uint64_t random = 7;
  (void)state;
  for (int i = 0; i < N_SHAPES; i++) {
    int64_t batch = any_of(&random, 1, 2), heads = any_of(&random, 1, 3), rows = any_of(&random, 1, 9),
            dim = any_of(&random, 1, 40);
    hyperattn_dtype dtype = (hyperattn_dtype)any_of(&random, 0, 2),
                    other = (hyperattn_dtype)any_of(&random, 0, 2);
    size_t bytes = (size_t)(batch * heads * rows) * sizeof(float);
    char *merged[2];
    for (int at_end = 0; at_end < 2; at_end++) {
      hyperattn_problem p;
      enum layout layout = at_end ? (enum layout)any_of(&random, 0, N_LAYOUTS - 1) : CONTIGUOUS;
      memset(&p, 0, sizeof p);
      p.batch = batch, p.n_heads = heads, p.n_query = rows, p.value_dim = dim;
      hyperattn_input from = new_input(VALUE, other, layout, at_end, batch, heads, rows, dim, 11),
                      start = new_input(KEY, dtype, CONTIGUOUS, at_end, batch, heads, rows, dim, 12);
      tensor out = new_tensor(OUT, dtype, layout == REVERSED ? PADDED : layout, at_end, 0x5a, batch, heads,
                              rows, dim);
      p.out.data = out.begin, p.out.dtype = dtype, p.out.batch_stride = out.x.batch_stride;
      p.out.head_stride = out.x.head_stride, p.out.row_stride = out.x.row_stride;
      for (int64_t r = 0; r < batch * heads * rows; r++)
        memcpy(hai_out_row(&p.out, (hai_index)(r / rows / heads), (hai_index)(r / rows % heads),
                           (hai_index)(r % rows)),
               (const char *)start.data + (size_t)(r * dim) * hai_unit_bytes(dtype),
               (size_t)dim * hai_unit_bytes(dtype));
      float *lse_a = (float *)(void *)place(LSE, bytes, at_end, 0);
      float *lse_b = (float *)(void *)place(QUERY, bytes, at_end, 0);
      assert_int_equal(hyperattn_merge(batch, heads, rows, dim, p.out, lse_a, from, lse_b), HYPERATTN_OK);
      merged[at_end] = (char *)test_alloc((size_t)out_size(&p) * hai_unit_bytes(dtype));
      take_output(&out, &p, merged[at_end]);
    }
    assert_memory_equal(merged[0], merged[1], (size_t)(batch * heads * rows * dim) * hai_unit_bytes(dtype));
    free(merged[0]), free(merged[1]);
  }
}

/* ---- Sizes ---- */

/* The whole workspace and the number of tasks, computed again in a type that does not overflow. What is
   small enough is right to the rounding of parts, the rest is refused. */
static void check_sizes(const hyperattn_problem *p, const hyperattn_params *a, int workers, int *fits) {
  hai_plan plan;
  double sum = 0.0, taken[HAI_N_ARRAYS] = {0}, most = (double)PTRDIFF_MAX,
         queries = (double)p->n_heads * (double)p->n_query;
  double rows = 2.0 * (double)p->batch * (queries + (double)p->n_heads * (double)p->n_key);
  hyperattn_status status = hai_resolve(&plan, p, a);
  size_t size = hyperattn_workspace_size(p, a, workers);
  if (status != HYPERATTN_OK) {
    assert_int_equal(status, HYPERATTN_ERROR_SIZE_OVERFLOW);
    assert_int_equal(size, 0);
    if (queries > 0.24 * most || rows > 0.99 * (double)INT64_MAX) return; /* that alone is too much */
  }
  for (int i = 0; i < HAI_N_ARRAYS; i++) { /* of those that share a place, the larger counts */
    double bytes = array_bytes(&plan, i);
    sum += bytes;
    if (hai_arrays[i].place != i) taken[hai_arrays[i].place] += bytes;
  }
  for (int i = 0; i < HAI_N_ARRAYS; i++) sum -= fmin(array_bytes(&plan, i), taken[i]);
  sum += (double)plan.layout.scratch_bytes * (double)workers;
  if (status != HYPERATTN_OK || !size) {
    assert_above(sum, 0.99 * most);
    return;
  }
  ++*fits;
  assert_below((double)size, most);
  assert_below(fabs((double)size - sum), 64.0 * (HAI_N_ARRAYS + 2) + sum * 1e-12);
  for (int phase = 0; phase < hai_phases(&plan); phase++) {
    double tasks = 0.0;
    for (int begin = hai_phase_begin(&plan, phase), step = begin; step < hai_phase_end(&plan, begin);
         step++) {
      int level;
      const hai_stage *stage = hai_step_stage(&plan, step, &level);
      hai_grid g = hai_step_grid(&plan, stage, level);
      tasks +=
          (double)g.rects * (double)g.chunks * ((double)g.kv_heads + (double)g.heads) * (double)p->batch;
    }
    if (p->n_query) assert_below(fabs((double)hyperattn_phase_tasks(p, a, phase) - tasks), tasks * 1e-12);
  }
}

static void test_sizes_at_every_limit(void **state) {
  static const int64_t counts[] = {0, 1, 191, 65536, (int64_t)1 << 30, 0x7ffffffe, 0x7fffffff};
  static const int64_t heads[] = {1, 3, 32767, 0x7fffffff};
  int fits = 0, all = 0;
  (void)state;
  for (int q = 0; q < 7; q++)
    for (int k = 0; k < 7; k++)
      for (int h = 0; h < 4; h++)
        for (int b = 0; b < 4; b++)
          for (int kind = 0; kind < 2 * 6; kind++) {
            hyperattn_problem p;
            hyperattn_params a = kind % 6 ? hyperattn_linear_params() : hyperattn_paper_params();
            hyperattn_report report;
            memset(&p, 0, sizeof p);
            p.batch = heads[b] - (heads[b] == 1 && q % 2), p.n_heads = p.n_kv_heads = heads[h];
            p.n_query = counts[q], p.n_key = counts[k], p.causal = kind / 6;
            p.head_dim = (q + k) % 2 ? 1 : 576, p.value_dim = (q + b) % 2 ? 1 : 576;
            if (h % 2) p.n_kv_heads = 1;
            if (kind % 6 == 2) p.report = &report, p.out.dtype = HYPERATTN_BF16, a.tolerance = 0.1f;
            if (kind % 6 == 3) a.method = HYPERATTN_EXACT;
            if (kind % 6 >= 4) { /* budgets without end, groups of one or without end */
              a.block_size = a.sample_size = a.sink_keys = a.heavy_keys = a.probe_queries = a.window =
                  INT64_MAX;
              a.query_group = a.key_group = kind % 6 == 4 ? 1 : INT64_MAX;
              a.min_seq_len = 1, a.lsh_bits = 16;
            }
            check_sizes(&p, &a, 1, &fits), check_sizes(&p, &a, 3, &fits),
                check_sizes(&p, &a, INT_MAX, &fits);
            all += 3;
          }
  assert_true(fits > all / 4 && fits < all);
}

/* Strides and counts at the limits of extents: what fits is accepted, one element more is not. */
static void test_extents_at_their_limit(void **state) {
  static const hyperattn_dtype dtypes[] = {HYPERATTN_F32, HYPERATTN_F16, HYPERATTN_Q8_0};
  int tried = 0;
  (void)state;
  for (int i = 0; i < 3; i++)
    for (int sign = -1; sign < 2; sign += 2)
      for (hai_index n = 2; n < 100000; n = n * 3 + 1) {
        ptrdiff_t unit = hai_unit(dtypes[i]), bytes = (ptrdiff_t)hai_unit_bytes(dtypes[i]);
        ptrdiff_t step = (PTRDIFF_MAX - bytes) / bytes / (n - 1); /* beside one unit */
        hai_buffers buffers;
        hyperattn_input x = {0};
        x.dtype = dtypes[i], x.row_stride = sign * step * unit;
        if (step >= PTRDIFF_MAX / unit) continue;
        memset(&buffers, 0, sizeof buffers);
        buffers.batch = buffers.heads = 1, buffers.rows = n;
        hai_add_tensor(&buffers, &x, unit, 0);
        assert_int_equal(buffers.status, HYPERATTN_OK);
        assert_true(buffers.extent[0].before + buffers.extent[0].after ==
                    (size_t)(step * (n - 1) * bytes + bytes));
        x.row_stride += sign * unit;
        hai_add_tensor(&buffers, &x, unit, 0);
        assert_int_equal(buffers.status, HYPERATTN_ERROR_EXTENT);
        tried++;
      }
  assert_true(tried > 40);
}

int main(void) {
  ask_for_amx();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_nothing_outside_is_touched),
      cmocka_unit_test(test_nothing_outside_is_touched_in_long_contexts),
      cmocka_unit_test(test_nothing_outside_is_touched_by_scans),
      cmocka_unit_test(test_merging_touches_nothing_outside),
      cmocka_unit_test(test_sizes_at_every_limit),
      cmocka_unit_test(test_extents_at_their_limit),
  };
  return cmocka_run_group_tests_name("bounds", tests, open_arenas, NULL);
}
