/* Many problems as one call: each gets the bits of a call of its own, however the tasks are run; and the
   mistakes of any are found before anything is written. */
#include "calls.h"
#include "problems.h"

enum { N = 64 };

/* Sequences of different lengths: prefill, decode, chunks and what has no rows. */
typedef struct sequences {
  any_call alone[N], together[N];
  hyperattn_report reports[2][N][6];
  hyperattn_problem problems[N]; /* those of `together` */
  hyperattn_params params;
} sequences;

static any_call any_sequence(uint64_t *random) {
  static const int64_t dims[] = {1, 8, 16, 33, 64};
  any_call a;
  hyperattn_problem *p = &a.c.problem;
  unsigned fields = (unsigned)(any_of(random, 0, ALL_FIELDS) & any_of(random, 0, ALL_FIELDS));
  int64_t kind = any_of(random, 0, 7);
  memset(&a, 0, sizeof a);
  p->batch = kind == 0 ? any_of(random, 0, 2) : 1, p->n_kv_heads = any_of(random, 1, 2);
  p->n_heads = p->n_kv_heads * any_of(random, 1, 3);
  p->n_key = any_of(random, kind == 1 ? 0 : 1, 300);
  p->n_query = kind < 4 ? 1 : kind < 6 ? p->n_key : any_of(random, 0, p->n_key);
  p->head_dim = one_of(random, dims, 5), p->value_dim = one_of(random, dims, 5);
  if (!any_of(random, 0, 15)) { /* few queries over many keys */
    p->n_query = any_of(random, 1, 17), p->n_key = any_of(random, 4000, 7000);
    p->head_dim = any_of(random, 1, 9), p->value_dim = any_of(random, 1, 9);
  }
  p->causal = any_of(random, 0, 4) > 0;
  if (fields & FORMATS) any_dtypes(p, random);
  fill_any_call(&a, fields, random);
  return a;
}

static sequences *new_sequences(int method, uint64_t seed) {
  sequences *s = (sequences *)test_alloc(sizeof *s);
  memset(s, 0, sizeof *s);
  s->params = small_params(hyperattn_linear_params(), 24, 12, 10);
  s->params.method = (hyperattn_method)method;
  s->params.order = HYPERATTN_ORDER_PROBED, s->params.tolerance = 0.1f;
  for (int i = 0; i < N; i++) {
    s->alone[i] = any_sequence(&seed);
    s->alone[i].c.params = s->params;
    if (i % 3 == 0) s->alone[i].c.problem.report = s->reports[0][i];
    run(&s->alone[i].c);
    s->together[i] = twin_of(&s->alone[i]);
    if (i % 3 == 0) s->together[i].c.problem.report = s->reports[1][i];
    s->problems[i] = s->together[i].c.problem;
  }
  return s;
}

static void free_sequences(sequences *s) {
  for (int i = 0; i < N; i++) free_any_call(&s->together[i]), free_any_call(&s->alone[i]);
  free(s);
}

static void forget_all(sequences *s) {
  for (int i = 0; i < N; i++) forget_results(&s->together[i].c);
  memset(s->reports[1], 0, sizeof s->reports[1]);
}

/* The first n got what each got alone, the others nothing. */
static void assert_as_alone(const sequences *s, int n) {
  for (int i = 0; i < N; i++) {
    const call *c = &s->together[i].c;
    if (i < n)
      assert_same_bits(&s->alone[i].c, c);
    else
      for (int64_t j = 0; j < lse_size(&c->problem); j++) assert_true(isnan(c->lse[j]));
  }
  if (n == N) assert_memory_equal(s->reports[0], s->reports[1], sizeof s->reports[0]);
}

/* ---- Results ---- */

/* Runs the first n, in a workspace that is the size asked for and has any alignment; what lies around it is
   not touched. */
static void run_many(sequences *s, int n, const hyperattn_parallel *parallel) {
  int workers = parallel ? parallel->n_workers : 1, bad = 7;
  size_t bytes = hyperattn_workspace_size_many(s->problems, n, &s->params, workers), guard = 101;
  unsigned char *w = (unsigned char *)test_alloc(bytes + 2 * guard);
  memset(w, 0xa5, bytes + 2 * guard);
  forget_all(s);
  assert_int_equal(
      hyperattn_forward_many(s->problems, n, &s->params, parallel, w + guard, bytes, n % 2 ? NULL : &bad),
      HYPERATTN_OK);
  assert_int_equal(bad, n % 2 ? 7 : -1);
  for (size_t i = 0; i < guard; i++) assert_true(w[i] == 0xa5 && w[guard + bytes + i] == 0xa5);
  assert_as_alone(s, n);
  free(w);
}

static void run_many_phases(sequences *s, int n, int workers) {
  size_t bytes = hyperattn_workspace_size_many(s->problems, n, &s->params, workers);
  int count = hyperattn_phase_count_many(s->problems, n, &s->params), bad = 7;
  void *w = test_alloc(bytes);
  forget(w, bytes);
  forget_all(s);
  assert_int_equal(hyperattn_check_many(s->problems, n, &s->params, w, bytes, workers, &bad), HYPERATTN_OK);
  assert_int_equal(bad, -1);
  assert_int_equal(hyperattn_phase_tasks_many(s->problems, n, &s->params, 0), 1);
  for (int phase = 0; phase < count; phase++)
    for (int64_t i = hyperattn_phase_tasks_many(s->problems, n, &s->params, phase); i-- > 0;)
      hyperattn_run_task_many(s->problems, n, &s->params, w, phase, i, (int)(i * 5 % workers));
  assert_as_alone(s, n);
  free(w);
}

static void check_sequences(int method, int n, uint64_t seed) {
  sequences *s = new_sequences(method, seed);
  shuffled on = {3, 0};
  hyperattn_parallel parallel = {3, &on, shuffled_for};
  run_many(s, n, NULL);
  run_many(s, n, &parallel);
  assert_true(on.calls > 0);
  run_many_phases(s, n, 1);
  run_many_phases(s, n, 4);
  free_sequences(s);
}

static void test_each_gets_its_own_bits(void **state) {
  (void)state;
  for (int method = HYPERATTN_HYPER; method <= HYPERATTN_SCAN; method++) {
    check_sequences(method, N, 61);
    check_sequences(method, N, 62);
    check_sequences(method, 1, 63);
    check_sequences(method, 17, 64);
  }
}

/* Problems may share their keys and values: sequences with a common beginning in one pool of pages. */
static void test_a_shared_pool(void **state) {
  enum { ROWS = 16, PAGES_EACH = 5 };
  static const int32_t page[3][PAGES_EACH] = {{4, 0, 9, 2, 7}, {4, 0, 1, 3, 5}, {4, 0, 9, 8, 6}};
  call one[3], many[3];
  hyperattn_problem problems[3];
  (void)state;
  call pool = new_call(1, 1, 1, 1, 10 * ROWS, 16, 16, 1, 65);
  for (int i = 0; i < 3; i++) {
    one[i] = new_call(1, 2, 1, i ? 1 : 70, 70, 16, 16, 1, 66);
    hyperattn_problem *p = &one[i].problem;
    p->key = pool.problem.key, p->value = pool.problem.value;
    p->key.page = page[i], p->key.page_rows = ROWS, p->key.page_stride = ROWS * 16;
    p->value.page = page[i], p->value.page_rows = ROWS, p->value.page_stride = ROWS * 16;
    run(&one[i]);
    many[i] = one[i];
    new_results(&many[i]);
    problems[i] = many[i].problem;
  }
  size_t bytes = hyperattn_workspace_size_many(problems, 3, &pool.params, 1);
  void *w = test_alloc(bytes);
  assert_int_equal(hyperattn_forward_many(problems, 3, &pool.params, NULL, w, bytes, NULL), HYPERATTN_OK);
  free(w);
  for (int i = 0; i < 3; i++) {
    assert_same_bits(&one[i], &many[i]);
    free(many[i].out), free(many[i].lse);
    free_call(&one[i]);
  }
  free_call(&pool);
}

/* ---- No problems ---- */

static void test_no_problems(void **state) {
  hyperattn_params params = hyperattn_default_params();
  hyperattn_problem nothing[2];
  int bad = 7;
  (void)state;
  memset(nothing, 0, sizeof nothing);
  for (int i = 0; i < 2; i++) {
    nothing[i].n_heads = nothing[i].n_kv_heads = nothing[i].head_dim = nothing[i].value_dim = 1;
    nothing[i].batch = i, nothing[i].n_key = 5; /* without a batch, or without queries */
  }
  for (int n = 0; n < 3; n++) {
    const hyperattn_problem *problems = n ? nothing : NULL;
    assert_int_equal(hyperattn_forward_many(problems, n, &params, NULL, NULL, 0, &bad), HYPERATTN_OK);
    assert_int_equal(bad, -1);
    assert_int_equal(hyperattn_check_many(problems, n, &params, NULL, 0, 1, &bad), HYPERATTN_OK);
    assert_true(hyperattn_workspace_size_many(problems, n, &params, 1) > 0);
    for (int phase = hyperattn_phase_count_many(problems, n, &params); phase-- > 0;)
      for (int64_t i = hyperattn_phase_tasks_many(problems, n, &params, phase); i-- > 0;)
        hyperattn_run_task_many(problems, n, &params, NULL, phase, i, 0);
  }
}

/* ---- Mistakes ---- */

/* Expects a status and whose mistake it is, from every entry point, before anything is written. */
static void expect_many(const sequences *s, int n, const hyperattn_params *params, hyperattn_status want,
                        int whose, unsigned char *w, size_t bytes) {
  shuffled on = {3, 0};
  hyperattn_parallel parallel = {3, &on, shuffled_for};
  for (int i = 0; i < 3; i++) {
    int bad = 7;
    hyperattn_status got =
        i == 2 ? hyperattn_check_many(s->problems, n, params, w, bytes, 3, &bad)
               : hyperattn_forward_many(s->problems, n, params, i ? &parallel : NULL, w, bytes, &bad);
    assert_string_equal(hyperattn_status_string(got), hyperattn_status_string(want));
    assert_int_equal(bad, whose);
  }
  assert_int_equal(hyperattn_forward_many(s->problems, n, params, NULL, w, bytes, NULL), want);
  assert_int_equal(on.calls, 0);
  assert_as_alone(s, 0);
  for (size_t i = 0; w && i < bytes; i++) assert_true(w[i] == 0xa5);
}

static void test_every_mistake_has_its_problem(void **state) {
  (void)state;
  sequences *s = new_sequences(HYPERATTN_HYPER, 67);
  hyperattn_params bad_params = s->params;
  size_t bytes = hyperattn_workspace_size_many(s->problems, N, &s->params, 3);
  unsigned char *w = (unsigned char *)test_alloc(bytes);
  hyperattn_problem *p = &s->problems[17], good;
  memset(w, 0xa5, bytes);
  forget_all(s);
  p->batch = 1, p->n_query = 1, p->n_key = 1; /* it has rows, and says where */
  p->key.page = p->value.page = NULL;
  good = *p;
#define EXPECT(set, status)                                                \
  do {                                                                     \
    *p = good;                                                             \
    set;                                                                   \
    expect_many(s, N, &s->params, HYPERATTN_ERROR_##status, 17, w, bytes); \
  } while (0)
  EXPECT(p->head_dim = 0, HEAD_DIM);
  EXPECT(p->n_key = -1, N_KEY);
  EXPECT(p->sliding_window = -1, SLIDING_WINDOW);
  EXPECT(p->query.data = NULL, NULL_QUERY);
  EXPECT(p->key.dtype = (hyperattn_dtype)5, DTYPE);
  EXPECT((p->n_query = 2, p->out.row_stride = -1), OUT_STRIDE);
  EXPECT(p->lse = (float *)p->out.data, OVERLAP);
  EXPECT(p->out.data = w, OVERLAP);
  EXPECT(p->value.data = w + bytes / 128 * 64, OVERLAP);
#undef EXPECT
  *p = good;
  bad_params.min_seq_len = 0;
  expect_many(s, N, &bad_params, HYPERATTN_ERROR_MIN_SEQ_LEN, -1, w, bytes);
  expect_many(s, N, NULL, HYPERATTN_ERROR_NULL_PARAMS, -1, w, bytes);
  expect_many(s, -1, &s->params, HYPERATTN_ERROR_N_PROBLEMS, -1, w, bytes);
  expect_many(s, N, &s->params, HYPERATTN_ERROR_NULL_WORKSPACE, -1, NULL, bytes);
  free(w);
  free_sequences(s);
}

static void test_mistakes_of_none(void **state) {
  (void)state;
  sequences *s = new_sequences(HYPERATTN_EXACT, 68);
  const hyperattn_params *params = &s->params;
  size_t bytes = hyperattn_workspace_size_many(s->problems, N, params, 1);
  unsigned char *w = (unsigned char *)test_alloc(bytes);
  shuffled on = {1, 0};
  hyperattn_parallel nobody = {0, &on, shuffled_for}, nothing = {1, &on, NULL};
  int bad = 7;
  memset(w, 0xa5, bytes);
  forget_all(s);
  expect_many(s, N, params, HYPERATTN_ERROR_WORKSPACE_SIZE, -1, w, bytes - 1);
  assert_int_equal(hyperattn_forward_many(NULL, N, params, NULL, w, bytes, &bad),
                   HYPERATTN_ERROR_NULL_PROBLEM);
  assert_int_equal(bad, -1);
  assert_int_equal(hyperattn_forward_many(s->problems, N, params, &nobody, w, bytes, &bad),
                   HYPERATTN_ERROR_WORKERS);
  assert_int_equal(hyperattn_forward_many(s->problems, N, params, &nothing, w, bytes, &bad),
                   HYPERATTN_ERROR_NULL_PARALLEL);
  assert_int_equal(hyperattn_workspace_size_many(s->problems, N, params, 0), 0);
  assert_int_equal(hyperattn_workspace_size_many(s->problems, -1, params, 1), 0);
  assert_int_equal(hyperattn_phase_tasks_many(s->problems, N, params, -1), 0);
  int count = hyperattn_phase_count_many(s->problems, N, params);
  assert_true(count > 1 && hyperattn_phase_tasks_many(s->problems, N, params, count - 1) > 0);
  assert_int_equal(hyperattn_phase_tasks_many(s->problems, N, params, count), 0);
  s->problems[3].head_dim = 0;
  assert_int_equal(hyperattn_phase_count_many(s->problems, N, params), 0);
  assert_int_equal(hyperattn_phase_tasks_many(s->problems, N, params, 0), 0);
  assert_int_equal(hyperattn_workspace_size_many(s->problems, N, params, 1), 0);
  assert_as_alone(s, 0);
  free(w);
  free_sequences(s);
}

/* ---- Sizes ---- */

/* The size never falls as problems, workers, queries or keys become more. */
static void test_sizes_never_fall(void **state) {
  uint64_t random = 69;
  (void)state;
  for (int method = HYPERATTN_HYPER; method <= HYPERATTN_SCAN; method++) {
    sequences *s = new_sequences(method, 70);
    size_t before = 0;
    for (int n = 0; n <= N; n++) {
      size_t size = hyperattn_workspace_size_many(s->problems, n, &s->params, 1);
      assert_true(size >= before && hyperattn_workspace_size_many(s->problems, n, &s->params, 2) >= size);
      before = size;
    }
    for (int axis = 0; axis < 3; axis++)
      for (int i = 0; i < 4; i++) {
        hyperattn_problem *p = &s->problems[i];
        before = 0, p->sliding_window = i % 2 ? 700 : 0;
        for (int64_t n = 0; n < 3000; n += any_of(&random, 1, 60)) {
          if (axis != 1) p->n_query = n;
          if (axis != 0) p->n_key = n;
          size_t size = hyperattn_workspace_size_many(s->problems, 5, &s->params, 1);
          assert_true(size >= before && size > 0);
          before = size;
        }
      }
    free_sequences(s);
  }
}

/* Workspaces that each fit, but not together. */
static void test_too_much_together(void **state) {
  enum { FEW = 16 };
  hyperattn_problem problems[FEW];
  hyperattn_params params = hyperattn_linear_params();
  int bad = 7;
  (void)state;
  memset(problems, 0, sizeof problems);
  for (int i = 0; i < FEW; i++) {
    problems[i].batch = sizeof(size_t) == 8 ? 1 << 30 : 1, problems[i].n_heads = problems[i].n_kv_heads = 2;
    problems[i].n_query = problems[i].n_key = 1 << 24, problems[i].head_dim = problems[i].value_dim = 16;
  }
  assert_true(hyperattn_workspace_size_many(problems, 1, &params, 1) > PTRDIFF_MAX / FEW);
  assert_int_equal(hyperattn_workspace_size_many(problems, FEW, &params, 1), 0);
  assert_int_equal(hyperattn_check_many(problems, FEW, &params, NULL, SIZE_MAX, 1, &bad),
                   HYPERATTN_ERROR_SIZE_OVERFLOW);
  assert_int_equal(bad, -1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_each_gets_its_own_bits),
      cmocka_unit_test(test_a_shared_pool),
      cmocka_unit_test(test_no_problems),
      cmocka_unit_test(test_every_mistake_has_its_problem),
      cmocka_unit_test(test_mistakes_of_none),
      cmocka_unit_test(test_sizes_never_fall),
      cmocka_unit_test(test_too_much_together),
  };
  return cmocka_run_group_tests_name("many", tests, NULL, NULL);
}
