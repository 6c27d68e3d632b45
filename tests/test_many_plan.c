/* Many problems as one call: where their plans, arrays and tasks lie. */
#include "support.h"

enum { N = 9 };

static hyperattn_problem shape(int64_t batch, int64_t n_query, int64_t n_key, int causal) {
  hyperattn_problem p;
  memset(&p, 0, sizeof p);
  p.batch = batch, p.n_heads = 4, p.n_kv_heads = 2, p.n_query = n_query, p.n_key = n_key;
  p.head_dim = 16, p.value_dim = 8, p.causal = causal;
  return p;
}

/* Prefill, decode, full attention, and problems without tasks: the first, one in the middle, the last. */
static void some_problems(hyperattn_problem p[N]) {
  const int64_t n[N][4] = {{0, 5, 5, 1},      {1, 900, 900, 1}, {2, 1, 700, 1},
                           {1, 300, 2000, 0}, {1, 0, 50, 1},    {1, 7, 0, 0},
                           {3, 64, 640, 1},   {1, 1500, 40, 1}, {1, 0, 0, 0}};
  for (int i = 0; i < N; i++) p[i] = shape(n[i][0], n[i][1], n[i][2], (int)n[i][3]);
}

/* What is prepared for these problems, in memory that the caller frees. */
static hai_many *prepare(const hyperattn_problem *p, int n, const hyperattn_params *params, void **memory) {
  size_t bytes = hyperattn_workspace_size_many(p, n, params, 1);
  *memory = test_alloc(bytes);
  memset(*memory, 0, bytes); /* padding, and stages that a plan has not */
  hyperattn_run_task_many(p, n, params, *memory, 0, 0, 0);
  return hai_many_of(*memory);
}

static hyperattn_params preset(int which) {
  hyperattn_params params = which == 1 ? hyperattn_paper_params() : hyperattn_linear_params();
  params.min_seq_len = 128;
  if (which == 2) params.method = HYPERATTN_EXACT;
  if (which == 3) params.method = HYPERATTN_SCAN, params.sample_size = 16;
  return params;
}

/* What a preset's plans of some problems must be. */
typedef void (*holds)(const hyperattn_problem *p, const hyperattn_params *params, hai_many *many);
static void for_each_preset(holds check) {
  hyperattn_problem p[N];
  some_problems(p);
  for (int which = 0; which < 4; which++) {
    hyperattn_params params = preset(which);
    void *memory;
    check(p, &params, prepare(p, N, &params, &memory));
    free(memory);
  }
}

/* A plan is the one of a call of its own, but for where things lie; arrays lie in a row, before the table. */
static void plans_differ_in_places_alone(const hyperattn_problem *p, const hyperattn_params *params,
                                         hai_many *many) {
  size_t end = (size_t)((char *)(hai_planned_of(many) + N) - (char *)many);
  assert_memory_equal(&many->params, params, sizeof *params);
  for (int i = 0; i < N; i++) {
    hai_planned *planned = &hai_planned_of(many)[i];
    hai_plan own, moved = planned->plan;
    memset(&own, 0, sizeof own);
    assert_int_equal(hai_resolve(&own, &p[i], params), HYPERATTN_OK);
    assert_memory_equal(&planned->problem, &p[i], sizeof p[i]);
    assert_ptr_equal(moved.problem, &planned->problem);
    assert_ptr_equal(moved.params, &many->params);
    assert_true(moved.layout.begin[0] >= end && moved.layout.begin[0] % 64 == 0);
    assert_true(moved.layout.scratch_bytes >= own.layout.scratch_bytes);
    end = moved.layout.begin[0] + own.layout.scratch;
    moved.problem = &p[i], moved.params = params;
    moved.layout.scan -= moved.layout.begin[0];
    for (int a = HAI_ARRAY_CODE - 1; a >= 0; a--) moved.layout.begin[a] -= moved.layout.begin[0];
    moved.layout.scratch = own.layout.scratch, moved.layout.scratch_bytes = own.layout.scratch_bytes;
    assert_memory_equal(&moved, &own, sizeof own);
  }
  assert_true(many->table >= end);
  assert_true((char *)hai_first_tasks(many, many->phases) <= (char *)many + many->layout.scratch);
}
static void test_plans_differ_in_places_alone(void **state) {
  (void)state;
  for_each_preset(plans_differ_in_places_alone);
}

/* Tasks of a phase: those of the first problem, then those of the next. */
static void every_task_finds_its_problem(const hyperattn_problem *p, const hyperattn_params *params,
                                         hai_many *many) {
  assert_int_equal(1 + many->phases, hyperattn_phase_count_many(p, N, params));
  assert_int_equal(hyperattn_phase_tasks_many(p, N, params, 0), 1);
  for (int phase = 0; phase < many->phases; phase++) {
    const int64_t *first = hai_first_tasks(many, phase);
    int64_t task = 0;
    for (int i = 0; i < N; i++) {
      int64_t n = hyperattn_phase_tasks(&p[i], params, phase);
      assert_int_equal(first[i], task);
      for (; n; n--) assert_int_equal(hai_problem_of(first, N, task++), i);
    }
    assert_int_equal(first[N], task);
    assert_int_equal(hyperattn_phase_tasks_many(p, N, params, 1 + phase), task);
  }
}
static void test_every_task_finds_its_problem(void **state) {
  (void)state;
  for_each_preset(every_task_finds_its_problem);
}

/* The table has rows for all phases, whatever the lengths, and their number never falls as lengths rise. */
static void test_table_has_room(void **state) {
  (void)state;
  const int64_t least[] = {1, 2, 100, 1024, 100000, INT64_MAX};
  for (int which = 0; which < 3; which++)
    for (int l = 0; l < 6; l++)
      for (int causal = 0; causal < 2; causal++) {
        hyperattn_params params = preset(which);
        params.min_seq_len = least[l];
        int before = 0;
        for (int64_t n_key = 0; n_key <= 0x7fffffff; n_key += n_key / 3 + 1) {
          for (int64_t n_query = 0; n_query <= 0x7fffffff; n_query += 3 * n_query + 1) {
            hyperattn_problem p = shape(1, n_query, n_key, causal);
            hai_plan plan;
            if (hai_resolve(&plan, &p, &params) != HYPERATTN_OK) continue;
            assert_true(hai_phases(&plan) <= hai_most_phases(&plan));
            assert_true(hai_most_phases(&plan) >= before);
            before = hai_most_phases(&plan);
          }
        }
      }
}

static void test_sizes_never_fall(void **state) {
  (void)state;
  uint64_t random = 7;
  for (int round = 0; round < 2000; round++) {
    hyperattn_params params = preset(round % 3);
    hyperattn_problem p[3];
    for (int i = 0; i < 3; i++) {
      p[i] = shape(1, (int64_t)(splitmix(&random) % 3000), (int64_t)(splitmix(&random) % 3000), i & 1);
      if (i == 2) p[i].sliding_window = 1000;
    }
    size_t size = hyperattn_workspace_size_many(p, 3, &params, 2);
    assert_true(size && size >= hyperattn_workspace_size_many(p, 2, &params, 2));
    assert_true(size >= hyperattn_workspace_size_many(p, 3, &params, 1));
    int64_t *grows = splitmix(&random) % 2 ? &p[round % 3].n_query : &p[round % 3].n_key;
    *grows += (int64_t)(splitmix(&random) % 2000);
    assert_true(hyperattn_workspace_size_many(p, 3, &params, 2) >= size);
  }
}

/* Tasks of all problems together have to be countable. */
static void test_too_many_tasks(void **state) {
  (void)state;
  hyperattn_params params = preset(2);
  hyperattn_problem p[3];
  int bad = 1;
  for (int i = 0; i < 3; i++) {
    p[i] = shape(0x40000000, 0x20000000, 0x20000000, 0); /* 2^62 tasks at most */
    p[i].n_heads = p[i].n_kv_heads = 2;
  }
  if (hyperattn_workspace_size(p, &params, 1) == 0) skip(); /* indices of 32 bits */
  assert_true(hyperattn_workspace_size_many(p, 1, &params, 1) > 0);
  assert_int_equal(hyperattn_workspace_size_many(p, 3, &params, 1), 0);
  assert_int_equal(hyperattn_check_many(p, 3, &params, NULL, 0, 1, &bad), HYPERATTN_ERROR_SIZE_OVERFLOW);
  assert_int_equal(bad, -1);
  assert_int_equal(hyperattn_phase_tasks_many(p, 3, &params, 1), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_plans_differ_in_places_alone),
      cmocka_unit_test(test_every_task_finds_its_problem),
      cmocka_unit_test(test_table_has_room),
      cmocka_unit_test(test_sizes_never_fall),
      cmocka_unit_test(test_too_many_tasks),
  };
  return cmocka_run_group_tests_name("many_plan", tests, NULL, NULL);
}
