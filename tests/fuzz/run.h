/* A call of the fuzzer's, the ways to run it, and what comes out. */
#ifndef HYPERATTN_TESTS_RUN_H
#define HYPERATTN_TESTS_RUN_H

#include "fields.h"

typedef struct call {
  hyperattn_problem problem;
  hyperattn_params params;
  tensor query, key, value, out;
  fields fields;
  int valid;      /* by the manual: 1 or 0, or -1 if this is unknown */
  int runs;       /* whether it has the memory that its shape and strides imply */
  size_t offset;  /* of the workspace from 64-byte alignment */
  double q, k, v; /* the largest numbers of each input */
} call;

typedef struct result {
  unsigned char *out; /* [batch][n_heads][n_query][value_dim], of out's dtype */
  float *lse, *query_error;
  hyperattn_report *report;
} result;

static void free_call(call *c) {
  free(c->query.block), free(c->key.block), free(c->value.block), free(c->out.block);
  free(c->key.page_block), free(c->value.page_block), free_fields(&c->fields);
  free(c->problem.lse), free(c->problem.query_error), free(c->problem.report);
}

/* Is no rectangle approximated, whatever the method? */
static int is_exact(const call *c) {
  return c->params.method == HYPERATTN_EXACT || c->problem.mask.data || slides(&c->problem);
}

static int sees(const call *c, int64_t b, int64_t h, int64_t i, int64_t j) {
  const tensor *mask = &c->fields.mask;
  if (!is_near(&c->problem, i, j)) return 0;
  return !c->problem.mask.data || load(tensor_row(mask, b, h, i), mask->dtype, j) != -INFINITY;
}

/* ---- Running it ---- */

static void free_result(result *r) { free(r->out), free(r->lse), free(r->query_error), free(r->report); }

static void backwards(void *context, int64_t n_tasks, hyperattn_task task, void *arg) {
  for (int64_t i = n_tasks; i-- > 0;) task(arg, i, (int)(i % *(int *)context));
}

static void prepare(call *c) {
  hyperattn_problem *p = &c->problem;
  size_t heads = (size_t)(p->batch * p->n_heads), n_rows = heads * (size_t)p->n_query * sizeof(float);
  if (p->lse) memset(p->lse, 0xff, n_rows);
  if (p->query_error) memset(p->query_error, 0xff, n_rows);
  if (p->report) memset(p->report, 0xff, heads * sizeof *p->report);
}
static result collect(call *c) {
  hyperattn_problem *p = &c->problem;
  size_t heads = (size_t)(p->batch * p->n_heads), n_rows = heads * (size_t)p->n_query * sizeof(float),
         n_report = heads * sizeof *p->report;
  result r;
  r.out = tensor_rows_taken(&c->out);
  r.lse = p->lse ? (float *)memcpy(malloc(n_rows + 1), p->lse, n_rows) : NULL;
  r.query_error = p->query_error ? (float *)memcpy(malloc(n_rows + 1), p->query_error, n_rows) : NULL;
  r.report = p->report ? (hyperattn_report *)memcpy(malloc(n_report + 1), p->report, n_report) : NULL;
  return r;
}

/* A workspace all of `fill`, c->offset bytes from alignment, as the end of *block; and its end, with the
   check that the bytes before it are unchanged. */
static unsigned char *open_workspace(const call *c, size_t size, int fill, void **block) {
  CHECK(size && !posix_memalign(block, 64, c->offset + size), "workspace of %zu bytes", size);
  return (unsigned char *)memset(*block, fill, c->offset + size) + c->offset;
}
static void close_workspace(const call *c, void *block, int fill) {
  for (size_t i = 0; i < c->offset; i++)
    CHECK(((unsigned char *)block)[i] == (unsigned char)fill, "written before the workspace");
  free(block);
}

/* Runs c by one worker, by two workers of forward_parallel, or by phases, with tasks from the last to the
   first. */
static result run(call *c, int n_workers, int fill) {
  hyperattn_problem *p = &c->problem;
  size_t size = hyperattn_workspace_size(p, &c->params, n_workers);
  void *block = NULL;
  unsigned char *workspace = open_workspace(c, size, fill, &block);
  prepare(c);
  if (n_workers == 1) {
    hyperattn_status status = hyperattn_forward(p, &c->params, workspace, size);
    CHECK(status == HYPERATTN_OK, "checked, then %s", hyperattn_status_string(status));
  } else if (n_workers == 2) {
    hyperattn_parallel parallel = {n_workers, &n_workers, backwards};
    hyperattn_status status = hyperattn_forward_parallel(p, &c->params, &parallel, workspace, size);
    CHECK(status == HYPERATTN_OK, "checked, then %s", hyperattn_status_string(status));
  } else {
    for (int phase = 0, n = hyperattn_phase_count(p, &c->params); phase < n; phase++)
      for (int64_t i = hyperattn_phase_tasks(p, &c->params, phase); i-- > 0;)
        hyperattn_run_task(p, &c->params, workspace, phase, i, (int)(i % n_workers));
  }
  close_workspace(c, block, fill);
  return collect(c);
}

/* Checks that n numbers of a row of a have the bits of those of b. A NaN must be a NaN only: which
   operand's sign it gets depends on the machine. */
static void same_numbers(const void *a, const void *b, hyperattn_dtype dtype, int64_t n, const char *what) {
  if (!memcmp(a, b, (size_t)(n * unit_bytes(dtype)))) return;
  for (int64_t i = 0; i < n; i++) {
    float x = load(a, dtype, i), y = load(b, dtype, i);
    CHECK((isnan(x) && isnan(y)) || !memcmp(&x, &y, sizeof x), "%s: number %d is %.9g or %.9g", what,
          (int)i, (double)x, (double)y);
  }
}
/* Checks that rows 0 .. n - 1 of head `of_b` of b are those of head `of_a` of a. */
static void same_rows(const call *c, const result *a, int64_t of_a, const result *b, int64_t of_b,
                      int64_t n, const char *what) {
  int64_t all = c->problem.n_query, row = c->out.dim * unit_bytes(c->out.dtype);
  same_numbers(a->out + of_a * all * row, b->out + of_b * all * row, c->out.dtype, n * c->out.dim, what);
  if (a->lse) same_numbers(a->lse + of_a * all, b->lse + of_b * all, HYPERATTN_F32, n, what);
  if (a->query_error)
    same_numbers(a->query_error + of_a * all, b->query_error + of_b * all, HYPERATTN_F32, n, what);
}
static void same_report(const hyperattn_report *a, const hyperattn_report *b, int64_t n, const char *what) {
  if (a) same_numbers(a, b, HYPERATTN_F32, n * (int64_t)(sizeof *a / sizeof(float)), what);
}

#endif
