/* Proofs by CBMC (run.sh): the arithmetic of sizes, offsets and extents, over every value that its callers
   may hand in, neither overflows nor loses bits. Each function named prove_.. is one proof. */
#define HYPERATTN_STATIC
#define HYPERATTN_NO_SIMD
#define HYPERATTN_IMPLEMENTATION
#include <float.h>
#include <stdlib.h>

#include "hyperattn.h"

int any_int(void);
size_t any_size(void);
ptrdiff_t any_ptrdiff(void);
uint64_t any_uint64(void);
float any_float(void);
#define ASSUME(x) __CPROVER_assume(x)
#define PROVE(x) __CPROVER_assert(x, #x)

static const void *any_pointer(void) {
  static const int somewhere;
  return any_int() & 1 ? &somewhere : NULL;
}

/* Most rows, keys and heads; and a factor with which products of 64 bits finish. */
enum { MOST = 0x7fffffff, MANY = 1 << 16, FEW = 255 };

static hai_index any_index(hai_index least, hai_index most) {
  hai_index x = any_ptrdiff();
  ASSUME(x >= least && x <= most);
  return x;
}

void prove_times(void) {
  size_t a = any_size(), b = any_size(), times;
  ASSUME(b <= 15);
  times = hai_times(a, b);
  PROVE(b == 0 || times >= a);
}
void prove_plus(void) {
  size_t a = any_size(), b = any_size(), plus = hai_plus(a, b);
  PROVE(plus == SIZE_MAX || plus - b == a);
}

void prove_cut(void) {
  hai_index n = any_index(0, MOST), parts = any_index(1, MOST), i = any_index(0, MOST);
  ASSUME(i <= parts);
  PROVE(hai_cut(n, parts, i) >= 0);
}
void prove_part_of(void) {
  hai_index n = any_index(1, MOST), parts = any_index(1, MOST), x = any_index(0, MOST);
  ASSUME(x < n);
  PROVE(hai_part_of(n, parts, x) >= 0);
}
void prove_ceil_div(void) {
  hai_index a = any_index(0, PTRDIFF_MAX / 2), b = any_index(1, PTRDIFF_MAX / 2),
            parts = hai_ceil_div(a, b);
  PROVE(parts >= 0 && parts <= a);
}

/* Counts of chunks of keys. */
void prove_chunks(void) {
  hai_index n = any_index(0, MOST), probe = hai_probe_chunks(n), judge = hai_judge_chunks(n);
  PROVE(probe >= 0 && probe <= 64 && judge >= 0 && judge <= 16);
}

/* From any place on, an array of any size. */
void prove_take(void) {
  int overflow = 0;
  size_t begin = any_size(), bytes = any_size(), end;
  ASSUME(begin <= PTRDIFF_MAX - 128 && begin % 64 == 0);
  end = hai_take(&overflow, begin, bytes);
  PROVE(overflow || end - begin >= bytes);
  PROVE(end >= begin && end <= PTRDIFF_MAX - 128 && end % 64 == 0);
}

void prove_layout_size(void) {
  hai_layout y;
  int workers = (int)any_index(1, MOST);
  y.scratch = any_size(), y.scratch_bytes = (size_t)1 << any_index(6, 62); /* some of all sizes */
  ASSUME(y.scratch <= PTRDIFF_MAX - 128);
  size_t size = hai_layout_size(&y, workers);
  PROVE(size == 0 || (size >= y.scratch && size >= y.scratch_bytes && size <= PTRDIFF_MAX));
}

/* ---- What a rectangle costs ---- */

static hyperattn_problem problem;
static hyperattn_params params;
static void any_plan(hai_plan *plan) {
  plan->problem = &problem, plan->params = &params;
  plan->n_query = any_index(0, MOST), plan->n_key = any_index(0, MOST);
  plan->block_size = any_index(0, MOST), plan->sample_size = any_index(0, MOST);
  plan->heavy_keys = any_index(0, MOST), plan->sink_keys = any_index(0, MOST);
  plan->probe_queries = any_index(0, MOST);
  plan->query_group = any_index(1, MOST), plan->key_group = any_index(1, MOST);
  plan->by_score = any_int() & 1, plan->choosing = any_int() & 1;
}
void prove_pairing_products(void) {
  hai_plan plan;
  hai_index n_query = any_index(0, MOST), n_key = any_index(0, MOST);
  any_plan(&plan);
  hai_pairing_products(&plan, n_query, n_key);
}
void prove_rect_products_by_rank(void) {
  hai_plan plan;
  hai_index n_query = any_index(0, MOST), n_key = any_index(0, MOST);
  any_plan(&plan);
  plan.by_score = 0;
  hai_rect_products(&plan, n_query, n_key);
}

/* ---- Validation ---- */

void prove_too_many(void) {
  hyperattn_problem p;
  p.batch = any_index(0, MOST), p.n_heads = any_index(1, MOST);
  p.n_query = any_index(0, MOST), p.n_key = any_index(0, MOST);
  hai_too_many(&p);
}

/* A side of an extent: what is accepted fits. The size of a negative stride wraps around on purpose. */
void prove_extent_add(void) {
  hai_extent extent;
  ptrdiff_t stride = any_ptrdiff();
  hai_index n = any_index(1, FEW);
  size_t size = any_int() & 1 ? 4 : 34;
  extent.before = any_size(), extent.after = any_size();
  ASSUME(stride >= 0 && extent.before <= PTRDIFF_MAX && extent.after <= PTRDIFF_MAX - extent.before);
  size_t before = extent.before, after = extent.after;
  if (!hai_extent_add(&extent, n, stride, size)) return;
  PROVE(extent.before >= before && extent.after >= after);
  PROVE(extent.before <= PTRDIFF_MAX && extent.after <= PTRDIFF_MAX - extent.before);
}

/* Rows of outputs whose extent was accepted. */
void prove_rows_apart(void) {
  ptrdiff_t stride[3];
  hai_index n[3], dim = any_index(1, 576);
  int i;
  for (i = 0; i < 3; i++) {
    n[i] = any_index(1, FEW);
    stride[i] = any_ptrdiff();
    ASSUME(n[i] == 1 || stride[i] <= (PTRDIFF_MAX - 576) / 3 / (n[i] - 1));
  }
  hai_rows_apart(stride, n, dim);
}

void prove_add_flat(void) {
  hai_buffers buffers;
  hai_index rows = any_index(0, FEW);
  buffers.status = HYPERATTN_OK, buffers.n = (int)any_index(0, 6);
  buffers.batch = any_index(0, MOST), buffers.heads = any_index(1, FEW);
  hai_extent *extent = &buffers.extent[buffers.n];
  hai_add_flat(&buffers, NULL, rows, sizeof(float));
  if (buffers.status == HYPERATTN_OK) PROVE(extent->before == 0 && extent->after <= PTRDIFF_MAX);
}

/* The table of pages, and strides within pages; for the product of batch and stride see prove_extent_add. */
static void add_pages(int64_t page_rows) {
  hai_buffers buffers;
  hyperattn_input x;
  hai_index rows = any_index(1, MOST), heads = any_index(1, MOST);
  buffers.status = HYPERATTN_OK, buffers.n = (int)any_index(0, 6);
  buffers.batch = 1, buffers.heads = heads, buffers.rows = rows;
  x.data = x.page = NULL, x.dtype = (hyperattn_dtype)any_index(0, HYPERATTN_CUSTOM);
  x.page_rows = page_rows, x.page_batch_stride = any_ptrdiff();
  hai_extent *extent = &buffers.extent[buffers.n];
  hai_add_pages(&buffers, &x);
  PROVE(buffers.heads == heads && buffers.rows == rows);
  if (buffers.status != HYPERATTN_OK) return;
  PROVE(extent->after >= (size_t)hai_ceil_div(rows, page_rows) * sizeof(int32_t));
  PROVE(extent->before <= PTRDIFF_MAX && extent->after <= PTRDIFF_MAX - extent->before);
}

void prove_add_pages(void) { add_pages(1), add_pages(2), add_pages(20), add_pages(256), add_pages(MOST); }

void prove_check_shape_and_params(void) {
  hyperattn_problem p;
  hyperattn_params a;
  p.scale = any_float(), p.softcap = any_float();
  p.key.page = any_pointer(), p.value.page = any_pointer(), p.query.page = any_pointer();
  p.mask.data = any_pointer(), p.mask.page = any_pointer();
  a.tolerance = any_float(), a.cap_epsilon = any_float(), a.cap_kappa = any_float();
  if (hai_check_shape(&p) == HYPERATTN_OK) {
    PROVE(p.n_heads >= 1 && p.n_heads <= MOST && p.n_kv_heads >= 1 && p.head_dim <= 576 && p.n_key <= MOST);
    PROVE(p.softcap >= 0.0f && p.softcap <= FLT_MAX && p.sliding_window >= 0 && !p.query.page);
    PROVE(!p.key.page || (p.key.page_rows >= 1 && p.key.page_rows <= MOST));
    PROVE(p.value.dtype != HYPERATTN_CUSTOM || p.value.widen);
    PROVE(!p.mask.data || (p.mask.dtype <= HYPERATTN_BF16 && !p.mask.page));
  }
  if (hai_check_params(&a, any_int()) == HYPERATTN_OK)
    PROVE(a.min_seq_len >= 1 && a.lsh_bits >= 1 && a.lsh_bits <= 16 && a.block_size >= 0);
}

/* ---- Sliding windows and pages ---- */

/* A window that hides keys fits an index; a call cut to what it leaves whole has none that hides. */
void prove_slides(void) {
  hyperattn_problem p;
  hai_plan plan;
  p.n_query = any_index(0, MOST), p.n_key = any_index(0, MOST), p.causal = any_int() & 1;
  ASSUME(p.sliding_window >= 0);
  if (!hai_slides(&p)) return;
  PROVE(p.sliding_window >= 1 && p.sliding_window < MOST);
  PROVE(hai_to_index(p.sliding_window) == p.sliding_window);
  plan.sliding = hai_to_index(p.sliding_window);
  p.n_key = hai_min(p.n_key, plan.sliding); /* as in hai_resolve_sliding */
  if (!p.causal) p.n_query = hai_min(p.n_query, plan.sliding);
  PROVE(p.n_key >= 0 && p.n_query >= 0 && !hai_slides(&p));
}

/* First and last are in range, and hold just the keys that the manual's words say. */
void prove_seen_keys(void) {
  hyperattn_problem p;
  hai_plan plan;
  hai_index n_query = any_index(1, MOST), n_key = any_index(0, MOST), w = any_index(0, MOST),
            row = any_index(0, MOST), j = any_index(0, MOST), first, last, ahead;
  int causal = any_int() & 1;
  ASSUME(row < n_query && j < n_key);
  p.causal = causal, plan.problem = &p;
  plan.n_query = n_query, plan.n_key = n_key, plan.sliding = w;
  hai_seen_keys(&plan, row, &first, &last);
  ahead = j - (row + n_key - n_query);
  PROVE(first >= 0 && last < n_key);
  PROVE((first <= j && j <= last) ==
        (causal ? ahead <= 0 && (!w || -ahead < w) : !w || (-ahead < w && ahead < w)));
}

/* A row's page is one that the table has, and its place one that the page has: a few rows, and many
   with divisors that CBMC knows. The quotient by a product is hai_rows_paged's. */
static void row_in_page(int64_t page_rows, hai_index most) {
  static char place[1];
  hyperattn_input x;
  hai_rows rows;
  uint64_t pages = any_uint64();
  hai_index n_key = any_index(1, most), row = any_index(0, MOST);
  ASSUME(row < n_key && pages <= (uint64_t)most);
  ASSUME(pages * (uint64_t)page_rows >= (uint64_t)n_key);    /* as many as hold all rows */
  int32_t *table = (int32_t *)malloc(pages * sizeof *table); /* reads outside it are found */
  ASSUME(table);
  x.page = table, x.page_rows = page_rows, x.dtype = HYPERATTN_F32;
  x.page_stride = x.page_batch_stride = 0;
  hai_rows_paged(&rows, &x, 0);
  rows.first = place, rows.stride = 1;
  const char *at = hai_walk_from(&rows, row).at;
  PROVE(at - place >= 0 && at - place < page_rows);
}
void prove_rows_address(void) { row_in_page(any_index(1, 15), 31); }
void prove_rows_address_of_many(void) {
  row_in_page(1, MANY), row_in_page(2, MANY), row_in_page(20, MANY), row_in_page(256, MANY);
}

/* ---- Few queries ---- */

/* No query sees a key before the first part, and the workspace has room for all parts: 48 floats for each
   query, as values of one number take. */
static void parts_of_few(hai_index n_query) {
  hyperattn_problem p;
  hai_plan plan;
  hai_index first, last, row = any_index(0, 15), begin, parts;
  p.causal = any_int() & 1, plan.problem = &p, plan.value_dim = 1;
  plan.n_query = n_query, plan.n_key = any_index(0, MOST), plan.sliding = any_index(0, MOST);
  ASSUME(row < n_query);
  hai_seen_keys(&plan, row, &first, &last);
  begin = hai_few_begin(&plan), parts = hai_few_parts(&plan);
  PROVE(begin >= 0 && (begin <= first || first > plan.n_key) && begin <= plan.n_key);
  PROVE(parts >= 1 && (parts == 1 || (size_t)(48 * n_query * parts) <= hai_count_few(&plan)));
}
void prove_parts_of_few(void) { parts_of_few(1), parts_of_few(2), parts_of_few(16); }

/* ---- The key index ---- */

enum { CHUNK = 64, GROUP = 16 }; /* keys of a block, coordinates of a group */

/* The parts of a block lie one behind the other, each as long as what is put there. */
void prove_index_block(void) {
  hai_index dim = any_index(1, 576);
  hai_block_layout y = hai_block_layout_of(dim);
  PROVE(y.groups * GROUP >= dim && y.norm == (size_t)y.groups * CHUNK * (GROUP / 4));
  PROVE(y.mean - y.norm == CHUNK && y.mean + (size_t)dim <= y.units && y.words * 4 >= dim);
  PROVE(y.units + 3 * sizeof(float) <= y.size && y.size % 64 == 0);
}

/* A size holds the header, the counts, the rooms and every block of every head, and the bound holds the size;
   or it is told that there is none. CBMC knows all but the capacity. */
static void index_sizes(int64_t heads, int64_t dim) {
  int64_t capacity = any_index(0, MANY);
  size_t all = 3 * (size_t)heads, bytes = hai_index_bytes(3, heads, dim, capacity);
  if (bytes == SIZE_MAX) return;
  PROVE(bytes <= PTRDIFF_MAX && hai_index_rooms(all) >= sizeof(hyperattn_index) + all * sizeof(int64_t));
  PROVE(hai_index_blocks(all, dim) >= hai_index_rooms(all) + all * hai_index_room_bytes(dim));
  PROVE(bytes - hai_index_blocks(all, dim) ==
        all * (size_t)(capacity / CHUNK) * hai_block_layout_of(dim).size);
  PROVE(bytes + 63 <= HYPERATTN_INDEX_BOUND(all, (size_t)capacity, (size_t)dim));
}
void prove_index_sizes(void) {
  index_sizes(1, 1), index_sizes(8, 64), index_sizes(1 << 20, 64), index_sizes(MOST, 576);
}

/* The last block of the last head ends where the index does, and its room before the blocks. */
void prove_index_places(void) {
  int64_t batch = any_index(1, 3), heads = any_index(1, 3), capacity = any_index(CHUNK, MANY);
  size_t bytes = hai_index_bytes(batch, heads, 64, capacity), all = (size_t)(batch * heads);
  hyperattn_index *index = (hyperattn_index *)malloc(bytes);
  hai_index head = any_index(0, 8), block = any_index(0, MANY);
  ASSUME(index && head < batch * heads && block < capacity / CHUNK);
  index->batch = batch, index->n_kv_heads = heads, index->head_dim = 64, index->capacity = capacity;
  size_t at = (size_t)(hai_index_block_at(index, head, block) - (uint8_t *)index);
  size_t room = (size_t)((char *)hai_index_space(index, head) - (char *)index);
  PROVE(at + hai_block_layout_of(64).size <= bytes && at >= hai_index_blocks(all, 64));
  PROVE(room + hai_index_room_bytes(64) <= hai_index_blocks(all, 64));
}

/* ---- Many problems ---- */

static void any_many(hai_many *many) {
  many->phases = (int)any_index(0, MOST), many->most_phases = (int)any_index(0, MOST);
  many->most_tasks = any_uint64(), many->layout.overflow = any_int() & 1;
  many->layout.scratch = any_size(), many->layout.scratch_bytes = any_size();
  ASSUME(many->most_tasks <= INT64_MAX);
  ASSUME(many->layout.scratch <= PTRDIFF_MAX - 128 && many->layout.scratch % 64 == 0);
}
void prove_many_begin(void) {
  hai_many many;
  hyperattn_params a;
  hai_many_begin(&many, (int)any_index(0, MOST), &a);
  PROVE(many.layout.scratch <= PTRDIFF_MAX - 128 && many.layout.scratch % 64 == 0);
}
void prove_many_add(void) {
  hai_many many;
  hai_plan plan;
  any_many(&many);
  uint64_t tasks = many.most_tasks;
  size_t scratch = many.layout.scratch, bytes = many.layout.scratch_bytes, begin;
  int overflow = many.layout.overflow;
  any_plan(&plan);
  problem.batch = any_index(0, FEW), problem.n_heads = any_index(1, MOST);
  problem.n_query = plan.n_query, problem.n_key = plan.n_key;
  ASSUME(!hai_too_many(&problem));
  plan.depth = (int)any_index(0, 31), plan.outer = any_int() & 1, plan.min_seq_len = any_index(1, MOST);
  begin = hai_many_add(&many, &plan);
  PROVE(begin == scratch && many.layout.scratch >= begin && many.layout.scratch <= PTRDIFF_MAX - 128);
  PROVE(many.layout.overflow || many.layout.scratch - begin >= plan.layout.scratch);
  PROVE(many.layout.scratch_bytes >= bytes && many.layout.scratch_bytes >= plan.layout.scratch_bytes);
  PROVE(many.most_tasks >= tasks && many.most_tasks <= INT64_MAX);
  PROVE(many.layout.overflow >= overflow);
}
void prove_many_end(void) {
  hai_many many;
  any_many(&many);
  many.n_problems = (int)any_index(0, MOST);
  ASSUME(many.most_phases <= FEW);
  hai_many_end(&many);
  PROVE(many.table <= many.layout.scratch && many.layout.scratch <= PTRDIFF_MAX - 128);
  if (!many.layout.overflow) PROVE(many.layout.scratch - many.table >= (size_t)many.most_phases * 8);
}

/* ---- Random numbers: the high half of a product ---- */

void prove_uniform(void) {
  uint64_t n = any_uint64(), random = any_uint64();
  ASSUME(n >= 1 && n <= MOST);
  hai_uniform(any_index(0, MOST), n, random);
}
