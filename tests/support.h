/* What tests of the library's inner functions share: the implementation, and functions that look into a
   call. */
#ifndef HYPERATTN_TESTS_SUPPORT_H
#define HYPERATTN_TESTS_SUPPORT_H

#ifndef HYPERATTN_STATIC
#define HYPERATTN_STATIC
#endif
#ifndef HYPERATTN_IMPLEMENTATION
#define HYPERATTN_IMPLEMENTATION
#endif
#include "calls.h"

/* Whether the library approximates a rectangle of these sides, with these parameters. */
static int is_worth(const hyperattn_params *params, int64_t n_query, int64_t n_key) {
  hyperattn_problem p = {0};
  hai_plan plan;
  p.batch = p.n_heads = p.n_kv_heads = 1;
  p.n_query = n_query, p.n_key = n_key, p.head_dim = p.value_dim = 64;
  hyperattn_status status = hai_resolve(&plan, &p, params);
  assert_true(status == HYPERATTN_OK ||
              status == HYPERATTN_ERROR_SIZE_OVERFLOW); /* only found after the regions */
  return plan.outer;
}

/* Runs c to the end of the first phase that begins with the stage `last`, or of all where there is none, so that job
   gives that phase's choices. Returns the workspace, which the caller frees. */
static void *run_until(call *c, hai_plan *plan, hai_job *job, void (*last)(hai_job *)) {
  void *workspace = test_alloc(hyperattn_workspace_size(&c->problem, &c->params, 1));
  assert_int_equal(hai_resolve(plan, &c->problem, &c->params), HYPERATTN_OK);
  for (int phase = 0; phase < hai_phases(plan); phase++) {
    int64_t n = hai_phase_tasks(plan, phase);
    for (int64_t t = 0; t < n; t++) hai_run(plan, workspace, phase, t, 0);
    if (n && hai_job_at(job, plan, workspace, phase, 0, 0)->run == last) return workspace;
  }
  assert_true(!last); /* it was found */
  hai_job_at(job, plan, workspace, hai_phases(plan) - 1, 0, 0);
  return workspace;
}
static void *run_and_look(call *c, hai_plan *plan, hai_job *job) { return run_until(c, plan, job, NULL); }

/* A kernel that this machine has, with the dtype of the rows that its products read. */
typedef struct test_kernel {
  hyperattn_isa isa;
  hyperattn_dtype dtype;
} test_kernel;

/* Writes all of them, for these dims, to to[8]; returns how many there are. */
static int find_kernels(test_kernel *to, int64_t head_dim, int64_t value_dim) {
  int n = 0;
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++) {
    hyperattn_isa which = (hyperattn_isa)isa;
    if (!hai_kernel_of(which)) continue;
    to[n].isa = which;
    to[n++].dtype = hai_kernel_of_bf16(which, head_dim, value_dim) ? HYPERATTN_BF16 : HYPERATTN_F32;
  }
  return n;
}

/* The query or key at a position of the rectangle's order. */
static int64_t query_at(const hai_job *job, int64_t position) {
  return hai_at(hai_query_order(job), job->rect.query_begin, position);
}
static int64_t key_at(const hai_job *job, int64_t rank) {
  return hai_at(hai_key_order(job), job->rect.key_begin, rank);
}

#endif
