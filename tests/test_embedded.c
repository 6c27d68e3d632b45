// What small machines rely on: bounds of the workspace at compile time, little memory, and builds without
// some parts.
#include "calls.h"

#ifdef HYPERATTN_NO_HYPER
enum { WITH_HYPER = 0 };
#else
enum { WITH_HYPER = 1 };
#endif
#if defined(HYPERATTN_NO_HYPER) || defined(HYPERATTN_NO_JUDGING)
enum { WITH_JUDGING = 0 };
#else
enum { WITH_JUDGING = 1 };
#endif
#ifdef HYPERATTN_NO_SCAN
enum { WITH_SCAN = 0 };
#else
enum { WITH_SCAN = 1 };
#endif
#ifdef HYPERATTN_NO_JUDGING
enum { WITH_REPORTS = 0 };
#else
enum { WITH_REPORTS = WITH_HYPER || WITH_SCAN };
#endif
#ifdef HYPERATTN_NO_HALVES
enum { WITH_HALVES = 0 };
#else
enum { WITH_HALVES = 1 };
#endif

/* Fields that this build leaves out. */
enum { SLIDING, SOFTCAP, SINKS, MASKS, PAGES, CUSTOM, INDEX, N_PARTS };
static const unsigned char left_out[N_PARTS + 1] = {
#ifdef HYPERATTN_NO_SLIDING
    [SLIDING] = 1,
#endif
#ifdef HYPERATTN_NO_SOFTCAP
    [SOFTCAP] = 1,
#endif
#ifdef HYPERATTN_NO_SINKS
    [SINKS] = 1,
#endif
#ifdef HYPERATTN_NO_MASKS
    [MASKS] = 1,
#endif
#ifdef HYPERATTN_NO_PAGES
    [PAGES] = 1,
#endif
#if defined(HYPERATTN_NO_CUSTOM) || defined(HYPERATTN_NO_HALVES)
    [CUSTOM] = 1,
#endif
#if defined(HYPERATTN_NO_INDEX) || defined(HYPERATTN_NO_SCAN) || defined(HYPERATTN_NO_FEW)
    [INDEX] = 1,
#endif
    [N_PARTS] = 1};

#define EXACT_BYTES HYPERATTN_WORKSPACE_BOUND_EXACT(32, 32)
#define PAPER_BYTES HYPERATTN_WORKSPACE_BOUND(1, 1024, 32, 32, 256, 256, 256, 0, 0, 0, 7)
static unsigned char exact_workspace[EXACT_BYTES],
    paper_workspace[PAPER_BYTES];  // so they are constant expressions

static int64_t any(uint64_t *state, int64_t least, int64_t most) {
  return least + (int64_t)(splitmix(state) % (uint64_t)(most - least + 1));
}

/* The bounds hold for thousands of calls, and at least one of them is tight. */
static void test_bound_holds(void **state) {
  (void)state;
  static const float somewhere[1];
  double least = 1e9, least_scan = 1e9;
  uint64_t random = 17;
  for (int i = 0; i < 3000; i++) {
    hyperattn_problem p = {0};
    int judged = WITH_JUDGING && i % 2 == 0;
    hyperattn_params a = judged ? hyperattn_linear_params() : hyperattn_paper_params();
    p.batch = any(&random, 1, 3), p.n_heads = any(&random, 1, 4);
    p.n_kv_heads = p.n_heads % 2 ? p.n_heads : p.n_heads / 2;
    p.n_query = any(&random, 1, 1 << any(&random, 1, 18)),
    p.n_key = any(&random, 1, 1 << any(&random, 1, 18));
    p.head_dim = any(&random, 1, 576), p.value_dim = any(&random, 1, 200), p.causal = i / 2 % 2;
    a.min_seq_len = any(&random, 1, 4096), a.block_size = any(&random, 0, 600),
    a.lsh_bits = (int32_t)any(&random, 1, 14);
    a.sample_size = any(&random, 0, 600);
    if (judged) {
      a.sink_keys = any(&random, 0, 9), a.heavy_keys = any(&random, 0, 200),
      a.probe_queries = any(&random, 1, 200);
      if (i % 3)
        a.query_group = any(&random, 1, 40), a.key_group = any(&random, 1, 40);
      else
        a.query_group = a.key_group = 0;
      if (i % 5 == 0) a.order = HYPERATTN_ORDER_POSITION;
    }
    if (i % 2 && !left_out[SOFTCAP]) p.softcap = 1.0f;
    if (i % 3 == 0 && !left_out[SINKS]) p.sink = somewhere;
    if (i % 4 == 0 && !left_out[SLIDING]) p.sliding_window = any(&random, 1, 1 << 18);
    if (i % 7 == 0 && !left_out[MASKS]) p.mask.data = somewhere;
    if (i == 1) { /* mostly weights of columns */
      memset(&p, 0, sizeof p);
      a = hyperattn_paper_params();
      p.batch = 1, p.n_heads = p.n_kv_heads = 4, p.n_query = p.n_key = 16384;
      p.head_dim = p.value_dim = 64, p.causal = 1;
    }
    if (i == 1 || i % 7 == 0) a.sampling = HYPERATTN_SAMPLE_VALUE_NORM;
    if (judged && i % 4 == 0) a.tolerance = 0.1f;
    int64_t probes = a.probe_queries + (a.sampling == HYPERATTN_SAMPLE_VALUE_NORM && !a.probe_queries);
    int64_t n = p.n_query > p.n_key ? p.n_query : p.n_key;
    int64_t group = a.query_group < a.key_group ? a.query_group : a.key_group;
    size_t bound = HYPERATTN_WORKSPACE_BOUND(p.batch * p.n_heads, n, p.head_dim, p.value_dim, a.min_seq_len,
                                             a.block_size, a.sample_size, a.sink_keys + a.heavy_keys,
                                             probes, group, a.lsh_bits);
    size_t bytes = hyperattn_workspace_size(&p, &a, 1),
           more = (p.mask.data ? HYPERATTN_WORKSPACE_BOUND_MASK : 0) +
                  HYPERATTN_WORKSPACE_BOUND_FEW(p.batch * p.n_heads, p.n_key, p.value_dim);
    size_t scan = HYPERATTN_WORKSPACE_BOUND_SCAN(p.batch * p.n_heads, p.batch * p.n_kv_heads, n, p.head_dim,
                                                 p.value_dim);
    assert_true(bytes > 0 && bytes <= bound + more + (a.tolerance > 0.0f && WITH_SCAN ? scan : 0));
    if (a.tolerance == 0.0f) least = fmin(least, (double)bound / (double)bytes);
    if (WITH_SCAN) {
      a.method = HYPERATTN_SCAN;
      bytes = hyperattn_workspace_size(&p, &a, 1);
      assert_true(bytes > 0 && bytes <= scan + more);
      if (n >= 1000) least_scan = fmin(least_scan, (double)scan / (double)bytes);
    }
    a.method = HYPERATTN_EXACT;
    bytes = hyperattn_workspace_size(&p, &a, 1);
    bound = HYPERATTN_WORKSPACE_BOUND_EXACT(p.head_dim, p.value_dim);
    assert_true(bytes > 0 && bytes <= bound + more);
  }
  printf("the tightest bounds are %.3f and, of a scan, %.3f times what is needed\n", least, least_scan);
  assert_below(least, 1.5);
  if (WITH_SCAN) assert_below(least_scan, 1.5);
}

/* One head of 1024 tokens, head dim 32, in plain C needs 64 KiB at most, but for the scan's sketch, and no
   more than the static arrays have. */
static void test_little_memory(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    call c = new_call(1, 1, 1, 1024, 1024, 32, 32, i, 5);
    c.params = hyperattn_paper_params();
    c.params.isa = HYPERATTN_ISA_SCALAR;
    c.params.method = HYPERATTN_EXACT;
    size_t exact = hyperattn_workspace_size(&c.problem, &c.params, 1);
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, exact_workspace, sizeof exact_workspace),
                     HYPERATTN_OK);
    c.params.method = HYPERATTN_HYPER;
    c.params.min_seq_len = 256;
    size_t paper = hyperattn_workspace_size(&c.problem, &c.params, 1);
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, paper_workspace, sizeof paper_workspace),
                     WITH_HYPER ? HYPERATTN_OK : HYPERATTN_ERROR_LEFT_OUT);
    c.params = hyperattn_linear_params();
    c.params.isa = HYPERATTN_ISA_SCALAR;
    size_t linear = hyperattn_workspace_size(&c.problem, &c.params, 1); /* 0 if it was left out */
    c.params = hyperattn_default_params();
    c.params.isa = HYPERATTN_ISA_SCALAR;
    size_t preset = hyperattn_workspace_size(&c.problem, &c.params, 1);
    printf(
        "1024 tokens, head dim 32, %s, plain C: exact %zu bytes, paper (min_seq_len 256) %zu, linear %zu, "
        "default %zu\n",
        i ? "causal" : "full", exact, paper, linear, preset);
    assert_true(exact <= 65536 && paper <= 65536 && linear <= 65536);
    assert_true(preset <= (WITH_SCAN ? HYPERATTN_WORKSPACE_BOUND_SCAN(1, 1, 1024, 32, 32) : 65536));
    free_call(&c);
  }
}

/* Every build has exact attention on float32. A call for what was left out returns a status, and writes
   nothing. */
static void test_left_out(void **state) {
  (void)state;
  call c = new_call(1, 2, 1, 300, 300, 8, 8, 1, 3);
  hyperattn_report report[2];
  float error[2 * 300];
  c.params = small_params(hyperattn_paper_params(), 32, 16, 16);
  c.params.method = HYPERATTN_EXACT;
  run(&c);
  double *out = (double *)test_alloc((size_t)out_size(&c.problem) * sizeof(double));
  double *lse = (double *)test_alloc((size_t)lse_size(&c.problem) * sizeof(double));
  reference(&c.problem, out, lse);
  assert_below(relative_error(c.out, out, out_size(&c.problem)), 3e-6);
  free(out), free(lse);
  size_t bytes = 1 << 22;
  void *workspace = test_alloc(bytes);
  c.params.method = HYPERATTN_HYPER;
  assert_int_equal(hyperattn_forward(&c.problem, &c.params, workspace, bytes),
                   WITH_HYPER ? HYPERATTN_OK : HYPERATTN_ERROR_LEFT_OUT);
  hyperattn_params judged = c.params;
  judged.probe_queries = 8, judged.tolerance = 0.1f;
  assert_int_equal(hyperattn_forward(&c.problem, &judged, workspace, bytes),
                   WITH_JUDGING ? HYPERATTN_OK : HYPERATTN_ERROR_LEFT_OUT);
  judged.tolerance = 0.0f, judged.order = HYPERATTN_ORDER_PROBED;
  assert_int_equal(hyperattn_forward(&c.problem, &judged, workspace, bytes),
                   WITH_JUDGING ? HYPERATTN_OK : HYPERATTN_ERROR_LEFT_OUT);
  judged.method = HYPERATTN_EXACT; /* exact attention uses none of these */
  assert_int_equal(hyperattn_forward(&c.problem, &judged, workspace, bytes), HYPERATTN_OK);
  judged.method = HYPERATTN_SCAN, judged.order = HYPERATTN_ORDER_POSITION, judged.tolerance = 0.1f;
  assert_int_equal(hyperattn_forward(&c.problem, &judged, workspace, bytes),
                   WITH_SCAN ? HYPERATTN_OK : HYPERATTN_ERROR_LEFT_OUT);
  c.params.method = HYPERATTN_EXACT;
  c.problem.query_error = error;
  assert_int_equal(hyperattn_forward(&c.problem, &c.params, workspace, bytes),
                   WITH_SCAN ? HYPERATTN_OK : HYPERATTN_ERROR_LEFT_OUT);
  c.problem.query_error = NULL;
  c.problem.report = report;
  assert_int_equal(hyperattn_forward(&c.problem, &c.params, workspace, bytes),
                   WITH_REPORTS ? HYPERATTN_OK : HYPERATTN_ERROR_LEFT_OUT);
  c.problem.report = NULL;
  for (int i = 1; i < 3; i++) {
    c.problem.key.dtype = (hyperattn_dtype)i;
    float before = c.out[0] = 77.0f;
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, workspace, bytes),
                     WITH_HALVES ? HYPERATTN_OK : HYPERATTN_ERROR_LEFT_OUT);
    assert_true(WITH_HALVES || c.out[0] == before);
  }
#ifdef HYPERATTN_NO_TEXTS
  assert_string_equal(hyperattn_status_string(HYPERATTN_OK), "");
#else
  assert_string_equal(hyperattn_status_string(HYPERATTN_OK), "ok");
#endif
  free(workspace);
  free_call(&c);
}

/* A field that was left out is refused where it is set, and changes nothing where it is not. */
static void expect_left_out(int is_left_out, call *c) {
  size_t bytes = 1 << 22;
  void *workspace = test_alloc(bytes);
  c->params.method = HYPERATTN_EXACT, c->out[0] = 77.0f;
  assert_int_equal(hyperattn_forward(&c->problem, &c->params, workspace, bytes),
                   is_left_out ? HYPERATTN_ERROR_LEFT_OUT : HYPERATTN_OK);
  assert_int_equal(c->out[0] == 77.0f, is_left_out);
  free(workspace);
  free_call(c);
}

static void widen_floats(const void *row, float *to, int64_t n) {
  memcpy(to, row, (size_t)n * sizeof(float));
}

static void test_fields_left_out(void **state) {
  static const float numbers[200];
  static const int32_t page[200];
  (void)state;
  for (int i = 0; i < N_PARTS; i++) {
    call c = new_call(1, 2, 1, 150, 200, 8, 8, 0, 3);
    hyperattn_problem *p = &c.problem;
    if (i == SLIDING) p->sliding_window = 20;
    if (i == SOFTCAP) p->softcap = 3.0f;
    if (i == SINKS) p->sink = numbers;
    if (i == MASKS) p->mask.data = numbers;
    if (i == PAGES) p->key.page = page, p->key.page_rows = 1, p->key.page_stride = 8;
    if (i == CUSTOM)
      p->value.dtype = HYPERATTN_CUSTOM, p->value.widen = widen_floats, p->value.row_stride = 32;
    if (i == INDEX) p->index = (hyperattn_index *)(uintptr_t)4096; /* EXACT does not look at it */
    expect_left_out(left_out[i], &c);
  }
}

/* 0 would mean that the call is invalid. */
static void test_no_query_is_a_call_of_some_phases(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 0, 5000, 8, 8, 1, 1);
  c.params.method = HYPERATTN_EXACT;
  assert_true(hyperattn_phase_count(&c.problem, &c.params) > 0);
  assert_int_equal(hyperattn_phase_tasks(&c.problem, &c.params, 0), 0);
  free_call(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
#ifndef HYPERATTN_NO_HYPER
      cmocka_unit_test(test_bound_holds),
#endif
      cmocka_unit_test(test_little_memory),
      cmocka_unit_test(test_left_out),
      cmocka_unit_test(test_fields_left_out),
      cmocka_unit_test(test_no_query_is_a_call_of_some_phases),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
