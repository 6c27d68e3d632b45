/* Calls that must have the same bits. */
#ifndef HYPERATTN_TESTS_SAME_H
#define HYPERATTN_TESTS_SAME_H

#include "run.h"

/* A head, computed alone, has the bits it has in the whole call. */
static void check_slice(const call *c, const result *whole, bytes *in) {
  call d = *c;
  hyperattn_problem *p = &d.problem;
  int64_t b = below(in, 256) % p->batch, h = below(in, 256) % p->n_heads, head = b * p->n_heads + h;
  int64_t kv = h / (p->n_heads / p->n_kv_heads);
  p->query.data = tensor_row(&c->query, b, h, 0), p->out.data = tensor_row(&c->out, b, h, 0);
  if (p->n_key) {
    p->key.data = tensor_head(&c->key, b, kv), p->value.data = tensor_head(&c->value, b, kv);
    if (c->key.page) p->key.page = tensor_pages(&c->key, b);
    if (c->value.page) p->value.page = tensor_pages(&c->value, b);
  }
  if (p->mask.data) p->mask.data = tensor_head(&c->fields.mask, b, h);
  if (p->mask.data && p->mask_slope) p->mask_slope += h;
  if (p->sink) p->sink += h;
  p->batch = p->n_heads = p->n_kv_heads = 1;
  d.out.n[0] = d.out.n[1] = 1, d.out.data = (unsigned char *)p->out.data;
  result r = run(&d, 2, 0x55);
  same_rows(&d, whole, head, &r, 0, p->n_query, "a head alone");
  if (r.report) same_report(r.report, whole->report + head, 1, "report of a head alone");
  free_result(&r);
}

/* Does one of rows 0 .. rows - 1 see a key of a kv head? Approximated rows see what causality shows. */
static int is_seen(const call *c, int64_t b, int64_t kv, int64_t j, int64_t rows) {
  int64_t group = c->problem.n_heads / c->problem.n_kv_heads;
  for (int64_t h = kv * group; h < (kv + 1) * group; h++)
    for (int64_t i = rows; i-- > 0;)
      if (sees(c, b, h, i, j)) return 1;
  return 0;
}

/* No row depends on a key that it does not see: changes those that rows 0 .. rows - 1 do not see. */
static void check_hidden(call *c, const result *before, bytes *in) {
  hyperattn_problem *p = &c->problem;
  int64_t rows = 1 + below(in, 65536) % p->n_query, first = p->causal ? rows + p->n_key - p->n_query : 0;
  tensor *all[] = {&c->key, &c->value}, was[] = {c->key, c->value};
  if (first < 0 || p->mask.data || slides(p)) first = 0;
  if (first >= p->n_key) return;
  for (int i = 0; i < 2; i++) {
    was[i].block = (unsigned char *)malloc(was[i].size + 1);
    CHECK(was[i].block, "out of memory");
    memcpy(was[i].block, all[i]->block, was[i].size);
    was[i].data = was[i].block + (all[i]->data - all[i]->block);
    tensor_fill(all[i], take(in, 1), 3.0f, first);
  }
  for (uint64_t n = take(in, 1) % 4; n-- > 0;)
    tensor_plant(&c->key, in, first), tensor_plant(&c->value, in, first);
  for (int64_t b = 0; b < p->batch; b++) /* rows that are seen, even if by another name, are as they were */
    for (int64_t kv = 0; kv < p->n_kv_heads; kv++)
      for (int64_t j = 0; j < p->n_key; j++)
        for (int i = 0; i < 2 && is_seen(c, b, kv, j, rows); i++)
          memcpy(tensor_row(all[i], b, kv, j), tensor_row(&was[i], b, kv, j), tensor_row_bytes(all[i]));
  result r = run(c, 1, 0);
  for (int64_t head = 0; head < p->batch * p->n_heads; head++)
    same_rows(c, before, head, &r, head, rows, "hidden keys changed");
  free_result(&r), free(was[0].block), free(was[1].block);
}

/* A contiguous tensor for x's rows. */
static tensor contiguous(const tensor *x, hyperattn_dtype dtype) {
  tensor to = {.dtype = dtype, .n = {x->n[0], x->n[1], x->n[2]}, .dim = x->dim};
  to.stride[2] = (ptrdiff_t)((x->dim + unit_of(dtype) - 1) / unit_of(dtype) * unit_of(dtype));
  to.stride[1] = (ptrdiff_t)(x->n[2] * to.stride[2]), to.stride[0] = (ptrdiff_t)(x->n[1] * to.stride[1]);
  tensor_allocate(&to, 0, x->n[0] * to.stride[0], 0);
  return to;
}

/* Keys and values in pages or in a format of the fuzzer's own give the bits of contiguous ones. */
static void check_contiguous(const call *c, const result *r) {
  call d = *c;
  const tensor *from[] = {&c->key, &c->value};
  tensor *to[] = {&d.key, &d.value};
  hyperattn_input *input[] = {&d.problem.key, &d.problem.value};
  if (!c->key.page && !c->value.page && !c->key.custom && !c->value.custom) return;
  for (int x = 0; x < 2; x++) {
    *to[x] = contiguous(from[x], from[x]->custom ? HYPERATTN_F32 : from[x]->dtype);
    for (int64_t row = 0; row < tensor_rows(from[x]); row++) {
      int64_t i = row % from[x]->n[2], h = row / from[x]->n[2] % from[x]->n[1],
              b = row / from[x]->n[2] / from[x]->n[1];
      const unsigned char *at = tensor_row(from[x], b, h, i);
      if (!from[x]->custom) memcpy(tensor_row(to[x], b, h, i), at, tensor_row_bytes(to[x]));
      for (int64_t t = 0; t < to[x]->dim && from[x]->custom; t++)
        store(tensor_row(to[x], b, h, i), HYPERATTN_F32, t, load(at, from[x]->dtype, t));
    }
    memset(input[x], 0, sizeof *input[x]);
    bind_input(input[x], to[x]);
  }
  result other = run(&d, 2, 0x77);
  for (int64_t head = 0; head < c->problem.batch * c->problem.n_heads; head++)
    same_rows(c, r, head, &other, head, c->problem.n_query, "contiguous keys and values");
  same_report(r->report, other.report, c->problem.batch * c->problem.n_heads, "report of contiguous ones");
  free_result(&other), free(d.key.block), free(d.value.block);
}

/* Runs problems as one call, like run. */
static void run_many(const call *c, const hyperattn_problem *problems, int n, int n_workers, int fill) {
  const hyperattn_params *a = &c->params;
  hyperattn_parallel parallel = {n_workers, &n_workers, backwards};
  size_t size = hyperattn_workspace_size_many(problems, n, a, n_workers);
  void *block = NULL;
  unsigned char *workspace = open_workspace(c, size, fill, &block);
  int bad = 0;
  CHECK(size >= hyperattn_workspace_size_many(problems, n, a, 1), "more workers, less workspace");
  if (n_workers < 3) {
    hyperattn_status status =
        hyperattn_forward_many(problems, n, a, n_workers == 1 ? NULL : &parallel, workspace, size, &bad);
    CHECK(status == HYPERATTN_OK && bad == -1, "%s, problem %d", hyperattn_status_string(status), bad);
  } else {
    for (int phase = 0, phases = hyperattn_phase_count_many(problems, n, a); phase < phases; phase++)
      for (int64_t i = hyperattn_phase_tasks_many(problems, n, a, phase); i-- > 0;)
        hyperattn_run_task_many(problems, n, a, workspace, phase, i, (int)(i % n_workers));
  }
  close_workspace(c, block, fill);
}

/* Some problems made from c as one call: each gets the bits of a call of its own. */
static void check_many(const call *c, bytes *in) {
  enum { MOST = 4 };
  call part[MOST];
  result alone[MOST];
  hyperattn_problem problems[MOST];
  int n = (int)below(in, MOST + 1), workers = 1 + (int)below(in, 3), wrong = (int)take(in, 1), bad = 0;
  for (int i = 0; i < n; i++) {
    hyperattn_problem *p = &part[i].problem;
    unsigned drops = i ? (unsigned)take(in, 1) : 0;
    part[i] = *c;
    if (drops & 1) p->n_query = below(in, 65536) % (p->n_query + 1);
    if (drops & 2) p->n_key = below(in, 65536) % (p->n_key + 1);
    if (drops & 4) p->mask.data = NULL;
    if (drops & 8) p->sliding_window = 0;
    if (drops & 16) p->sink = NULL;
    part[i].out.n[2] = p->n_query, part[i].out = contiguous(&part[i].out, c->out.dtype);
    p->out.data = part[i].out.data, p->out.batch_stride = part[i].out.stride[0];
    p->out.head_stride = part[i].out.stride[1], p->out.row_stride = part[i].out.stride[2];
    size_t heads = (size_t)(p->batch * p->n_heads);
    if (p->lse) p->lse = (float *)malloc(heads * (size_t)p->n_query * sizeof(float) + 1);
    if (p->query_error) p->query_error = (float *)malloc(heads * (size_t)p->n_query * sizeof(float) + 1);
    if (p->report) p->report = (hyperattn_report *)malloc(heads * sizeof *p->report);
    alone[i] = run(&part[i], 1, 0x33);
    problems[i] = *p;
    prepare(&part[i]);
  }
  if (n && wrong % 4 == 3) { /* a mistake in one of them is told, and nothing is written */
    problems[wrong % n].n_heads = 0;
    hyperattn_status status = hyperattn_forward_many(problems, n, &c->params, NULL, NULL, 0, &bad);
    CHECK(status == HYPERATTN_ERROR_N_HEADS && bad == wrong % n, "%s, problem %d",
          hyperattn_status_string(status), bad);
    problems[wrong % n].n_heads = part[wrong % n].problem.n_heads;
  }
  run_many(c, problems, n, workers, 0xaa);
  for (int i = 0; i < n; i++) {
    int64_t heads = c->problem.batch * c->problem.n_heads;
    result r = collect(&part[i]);
    for (int64_t head = 0; head < heads; head++)
      same_rows(&part[i], &alone[i], head, &r, head, part[i].problem.n_query, "one of many");
    same_report(alone[i].report, r.report, heads, "report of one of many");
    free_result(&r), free_result(&alone[i]);
    free(part[i].out.block), free(part[i].problem.lse), free(part[i].problem.query_error);
    free(part[i].problem.report);
  }
}

#endif
