/* HyperAttention against a reference in double precision. The reference takes only the choices (orders,
   blocks, pins, columns) from the library and applies the rule to them: every visible pair counts once, in
   the first of window, pins, block and sample that contains it. */
#include "oracle.h"

static hyperattn_params tiny(void) { return small_params(hyperattn_linear_params(), 24, 12, 10); }

/* Every combination of parameters, with scores as they are, capped, and capped beside a sink. */
static void test_params(void **state) {
  static const float sink[] = {2.5f, -INFINITY};
  (void)state;
  int seen = 0;
  for (int causal = 0; causal < 6; causal++)
    for (int order = 0; order < 2; order++)
      for (int sampling = 0; sampling < 3; sampling++)
        for (int score = 0; score < 2; score++)
          for (int block = 0; block < 2; block++)
            for (int pins = 0; pins < 2; pins++) {
              call c = new_call(1, 2, 1, 203, 203, 8, 6, causal % 2, (uint64_t)(100 + seen));
              if (causal > 1) c.problem.softcap = 1.5f;
              if (causal > 3) c.problem.sink = sink;
              hyperattn_params a = small_params(hyperattn_linear_params(), 24, block ? 12 : 0, 10);
              a.order = order ? HYPERATTN_ORDER_POSITION : HYPERATTN_ORDER_SORTLSH;
              a.sampling = (hyperattn_sampling)sampling;
              if (!score) a.query_group = a.key_group = 0;
              if (!pins) a.sink_keys = a.heavy_keys = 0;
              a.window = pins ? 9 : 0;
              c.params = a;
              check(&c, 3e-6);
              free_call(&c);
              seen++;
            }
  assert_int_equal(seen, 288);
}

/* Blocks of unequal size, more queries than keys and fewer, prefixes, windows longer than half the keys. */
static void test_shapes(void **state) {
  static const int64_t n[][2] = {{1, 300},   {5, 300},   {64, 300}, {300, 64}, {130, 157},
                                 {157, 130}, {300, 301}, {97, 331}, {331, 97}};
  (void)state;
  for (size_t i = 0; i < sizeof n / sizeof *n; i++)
    for (int causal = 0; causal < 2; causal++)
      for (int paper = 0; paper < 2; paper++)
        for (int64_t window = 0; window <= 120; window += 60) {
          call c = new_call(1, 1, 1, n[i][0], n[i][1], 8, 8, causal, 7);
          c.params = small_params(paper ? hyperattn_paper_params() : hyperattn_linear_params(), 20, 7, 9);
          c.params.window = window;
          check(&c, 3e-6);
          free_call(&c);
        }
}

static void test_heads_and_batch(void **state) {
  (void)state;
  call c = new_call(2, 6, 2, 150, 150, 8, 8, 1, 17);
  c.params = small_params(hyperattn_linear_params(), 24, 16, 10);
  check(&c, 3e-6);
  free_call(&c);
}

/* Groups of one query and groups larger than a tile, one sub-block and many. */
static void test_groups(void **state) {
  static const int64_t groups[][2] = {{1, 1}, {1, 8}, {3, 5}, {100, 2}, {16, 16}, {1000, 1000}};
  (void)state;
  for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
    for (int order = 0; order < 2; order++) {
      call c = new_call(1, 1, 1, 260, 260, 8, 8, 0, 23);
      c.params = small_params(hyperattn_linear_params(), 24, 16, 10);
      c.params.query_group = groups[i][0], c.params.key_group = groups[i][1];
      c.params.order = (hyperattn_order)order;
      check(&c, 3e-6);
      free_call(&c);
    }
}

/* With so many keys, sub-blocks are chosen in two levels. */
static void test_two_levels(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 70, 33001, 4, 4, 0, 27);
  c.params = small_params(hyperattn_linear_params(), 24, 16, 10);
  hai_plan plan;
  assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
  assert_true(hai_two_levels(&plan, c.problem.n_key));
  check(&c, 3e-6);
  free_call(&c);
}

/* With a block of all keys, or all keys as columns, the result is exact. */
static void test_a_budget_of_all_keys_is_exact(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int which = 0; which < 4; which++) {
      call c = new_call(1, 1, 1, 200, 230, 8, 8, causal, 29);
      c.params = hyperattn_paper_params();
      c.params.min_seq_len = 8;
      c.params.block_size = which == 0 ? 230 : which == 1 ? INT64_MAX : 0;
      c.params.sample_size = which == 2 ? 230 : which == 3 ? INT64_MAX : 0;
      assert_exact(&c, 3e-6);
      free_call(&c);
    }
}

/* The same, but the rectangle is approximated though that costs more: the stages themselves must be exact. */
static void test_stages_with_all_keys_are_exact(void **state) {
  (void)state;
  static const float sink = 3.0f;
  for (int i = 0; i < 6; i++) {
    int which = i % 3;
    call c = new_call(1, 1, 1, 200, 230, 8, 8, 0, 31);
    if (i > 2) c.problem.softcap = 0.7f, c.problem.sink = &sink;
    c.params = small_params(hyperattn_linear_params(), 8, which == 0 ? 230 : 0, which == 0 ? 0 : 230);
    if (which == 0) c.params.query_group = c.params.key_group = 0;
    c.params.sampling = which == 1 ? HYPERATTN_SAMPLE_COLUMN_MASS : HYPERATTN_SAMPLE_UNIFORM;
    hai_plan plan;
    assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
    plan.outer = 1;
    hai_resolve_stages(&plan);
    hai_resolve_layout(&plan);
    void *workspace = test_alloc(hai_layout_size(&plan.layout, 1));
    for (int phase = 0; phase < hai_phases(&plan); phase++)
      for (int64_t t = 0; t < hai_phase_tasks(&plan, phase); t++) hai_run(&plan, workspace, phase, t, 0);
    double *out = (double *)test_alloc((size_t)out_size(&c.problem) * sizeof(double));
    double *lse = (double *)test_alloc((size_t)lse_size(&c.problem) * sizeof(double));
    reference(&c.problem, out, lse);
    assert_below(relative_error(c.out, out, out_size(&c.problem)), 3e-6);
    assert_below(lse_error(c.lse, lse, lse_size(&c.problem)), 3e-6);
    free(out), free(lse), free(workspace);
    free_call(&c);
  }
}

/* The window is exact wherever rectangles begin: without anything else, rows are exact over their segment
   and window. */
static void test_window_is_exact(void **state) {
  (void)state;
  for (int64_t window = 0; window <= 203; window += 29) {
    call c = new_call(1, 1, 1, 203, 203, 8, 8, 1, 71);
    c.params = small_params(hyperattn_paper_params(), 20, 0, 0);
    c.params.window = window;
    c.params.sink_keys = 1; /* something must be left to approximate with */
    run(&c);
    hai_plan plan;
    assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
    assert_true(plan.depth > 1);
    double *key = read_rows(&c.problem.key, 0, 0, 203, 8),
           *value = read_rows(&c.problem.value, 0, 0, 203, 8);
    for (int i = 0; i < 203; i++) {
      double weight[203], out[8];
      for (int j = 0; j < 203; j++)
        weight[j] = j > i || (i - j >= window && j != 0 &&
                              hai_part_of(203, 1 << plan.depth, i) != hai_part_of(203, 1 << plan.depth, j))
                        ? -INFINITY
                        : 0.0;
      double lse = reference_row(&c.problem, 0, 0, i, key, value, weight, out);
      assert_below(fabs((double)c.lse[i] - lse), 1e-5);
      assert_below(relative_error(c.out + i * 8, out, 8), 1e-5);
    }
    free(key), free(value);
    free_call(&c);
  }
}

/* Rectangles that cost more to approximate than to compute exactly are exact; larger ones are
   approximated. */
static void test_what_is_worth_approximating(void **state) {
  (void)state;
  hyperattn_params p = hyperattn_linear_params();
  p.method = HYPERATTN_HYPER;
  assert_false(is_worth(&p, 1, 32768));   /* probes alone cost more */
  assert_true(is_worth(&p, 512, 32768));  /* a chunk of prefill */
  assert_false(is_worth(&p, 4096, 1023)); /* below min_seq_len */
  assert_true(is_worth(&p, 4096, 1024));
  p.sample_size = 1024;
  assert_false(is_worth(&p, 4096, 1024));
  /* the costs of the largest budgets and of groups of one are counted without overflow */
  p.block_size = p.sample_size = p.probe_queries = INT64_MAX, p.query_group = p.key_group = 1;
  assert_false(is_worth(&p, 0x7fffffff, 0x7fffffff));
}

/* Algorithm 2's normaliser, recomputed in double from the same choices. A sink joins it as it is. */
static void check_cap(float epsilon, float kappa, float spread, float softcap, float sink) {
  call c = new_call(1, 1, 1, 120, 140, 8, 8, 0, 37);
  const hyperattn_problem *p = &c.problem;
  c.problem.softcap = softcap, c.problem.sink = &sink;
  for (int64_t i = 0; i < 120 * 8; i++) c.q[i] *= spread;
  c.params = small_params(hyperattn_paper_params(), 20, 14, 20);
  c.params.cap_epsilon = epsilon, c.params.cap_kappa = kappa;
  size_t bytes = hyperattn_workspace_size(p, &c.params, 1);
  void *workspace = test_alloc(bytes);
  assert_int_equal(hyperattn_forward(p, &c.params, workspace, bytes), HYPERATTN_OK);
  hai_plan plan;
  hai_job job;
  assert_int_equal(hai_resolve(&plan, p, &c.params), HYPERATTN_OK);
  hai_job_at(&job, &plan, workspace, hai_phases(&plan) - 1, 0, 0); /* the workspace still has the choices */
  double residual_most = 0.0, s[120][140];
  double *query = read_rows(&p->query, 0, 0, 120, 8), *key = read_rows(&p->key, 0, 0, 140, 8);
  int block_of_key[140];
  for (int rank = 0; rank < 140; rank++) block_of_key[key_at(&job, rank)] = (int)hai_part_of(140, 10, rank);
  for (int x = 0; x < 120; x++)
    for (int j = 0; j < 140; j++)
      s[x][j] = exp(reference_score(p, query + query_at(&job, x) * 8, key + j * 8));
  for (int t = 0; t < 20; t++) { /* the sampled rows */
    int64_t x = hai_draw(120, 20, t, hai_random(c.params.seed, 0, HAI_FOR_CAP, (uint64_t)t));
    double residual = 0.0;
    for (int j = 0; j < 140; j++)
      if (block_of_key[j] != hai_part_of(120, 10, x)) residual += s[x][j];
    if (residual > residual_most) residual_most = residual;
  }
  double floor_sum = kappa > 0.0f ? residual_most / (double)kappa : 0.0;
  int capped = 0, floored = 0;
  for (int x = 0; x < 120; x++) {
    int64_t i = query_at(&job, x), group = (int)hai_part_of(120, 10, x);
    double block = 0.0, rest = 0.0, top[8] = {0};
    for (int j = 0; j < 140; j++)
      if (block_of_key[j] == group) {
        block += s[x][j];
        for (int t = 0; t < 8; t++) top[t] += s[x][j] * (double)c.v[j * 8 + t];
      }
    double cap = (double)epsilon * (double)epsilon * 20.0 / (140.0 * log(140.0)) * (block + floor_sum);
    for (int t = 0; t < hai_counts(&job)[1]; t++) {
      const hai_column *column = &hai_columns(&job, 0)[t];
      if (column->block[0] == group) continue;
      double w = exp((double)column->log_weight), a = s[x][column->key];
      if (epsilon > 0.0f && a > cap) capped++;
      rest += w * (epsilon > 0.0f && a > cap ? cap : a);
      for (int u = 0; u < 8; u++) top[u] += w * a * (double)c.v[column->key * 8 + u];
    }
    if (rest < floor_sum) floored++;
    double d = block + fmax(rest, floor_sum) + exp((double)sink);
    assert_below(fabs((double)c.lse[i] - log(d)) / fmax(1.0, fabs(log(d))), 3e-6);
    for (int t = 0; t < 8; t++)
      assert_below(fabs((double)c.out[i * 8 + t] - top[t] / d), 2e-5 * fmax(1.0, fabs(top[t] / d)));
  }
  if (epsilon > 0.0f && epsilon < 4.0f) assert_true(capped > 0);
  if (kappa > 0.0f && kappa < 4.0f) assert_true(floored > 0);
  free(workspace), free(query), free(key);
  free_call(&c);
}

/* Pins are neither capped nor floored. If cap and floor have no effect, the result is that without them. */
static void test_cap_beside_pins(void **state) {
  static const float sink[] = {6.0f, -1.0f};
  (void)state;
  for (int i = 0; i < 4; i++) {
    int by_score = i % 2;
    call c = new_call(1, 2, 1, 120, 140, 8, 8, 0, 67);
    c.problem.sink = i > 1 ? sink : NULL;
    double want[2 * 120 * 8], lse[2 * 120];
    c.params = small_params(hyperattn_linear_params(), 20, by_score ? 14 : 0, 20);
    c.params.order = HYPERATTN_ORDER_POSITION;
    run(&c);
    for (int j = 0; j < 2 * 120 * 8; j++) want[j] = (double)c.out[j];
    for (int j = 0; j < 2 * 120; j++) lse[j] = (double)c.lse[j];
    c.params.cap_epsilon = 1e6f, c.params.cap_kappa = 1e30f;
    run(&c);
    assert_below(relative_error(c.out, want, 2 * 120 * 8), 1e-5);
    assert_below(lse_error(c.lse, lse, 2 * 120), 1e-5);
    free_call(&c);
  }
}

static void test_cap(void **state) {
  (void)state;
  check_cap(1.0f, 0.0f, 1.0f, 0.0f, -INFINITY);
  check_cap(0.0f, 2.0f, 1.0f, 0.0f, -INFINITY);
  check_cap(2.0f, 3.0f, 1.0f, 0.0f, -INFINITY);
  check_cap(1.0f, 1.5f, 4.0f, 0.0f, -INFINITY);
  check_cap(100.0f, 1000.0f, 1.0f, 0.0f, -INFINITY); /* cap and floor have no effect */
  check_cap(1.0f, 0.0f, 1.0f, 0.0f, 4.0f);
  check_cap(2.0f, 1.5f, 1.0f, 5.0f, 4.0f);
  check_cap(0.5f, 1.1f, 4.0f, 2.0f, 0.5f);
}

/* Negating queries and scale changes nothing, because hashing and pairing follow the sign of the scale. */
static void test_a_negative_scale(void **state) {
  (void)state;
  for (int order = 0; order < 2; order++) {
    call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 53), d = new_call(1, 1, 1, 90, 211, 8, 8, 0, 53);
    c.params = d.params = tiny();
    c.params.order = d.params.order = (hyperattn_order)order;
    for (int i = 0; i < 90 * 8; i++) d.q[i] = -c.q[i];
    d.problem.scale = -1.0f / hai_sqrt(8.0f);
    run(&c), run(&d);
    assert_memory_equal(c.out, d.out, 90 * 8 * sizeof(float));
    free_call(&c), free_call(&d);
  }
}

/* T is the largest over all tasks that compute it. */
static void test_cap_floor_over_several_tasks(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 600, 700, 8, 8, 0, 37);
  hai_plan plan;
  hai_job job;
  c.params = small_params(hyperattn_paper_params(), 20, 14, 250);
  c.params.order = HYPERATTN_ORDER_POSITION, c.params.cap_kappa = 1.0f;
  for (int i = 0; i < 600 * 8; i++) c.q[i] *= i >= 500 * 8 ? 2.0f : 0.1f;
  void *workspace = run_and_look(&c, &plan, &job);
  assert_true(hai_cap(&job)[1] > hai_cap(&job)[0]);
  for (int i = 0; i < 600; i++) assert_true(c.lse[i] >= hai_cap(&job)[1] - 1e-4f);
  free(workspace);
  free_call(&c);
}

/* A rectangle of fewer than min_seq_len keys is exact, also if the other of its level has one key more. */
static void test_the_smaller_half_decides(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 255, 255, 1, 1, 1, 1);
  hai_plan plan;
  c.params = small_params(hyperattn_paper_params(), 128, 4, 4);
  assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
  assert_int_equal(plan.depth, 0);
  free_call(&c);
}

/* A prefix too short to approximate is exact, although the causal square is approximated. */
static void test_a_short_prefix_is_exact(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 256, 316, 8, 8, 1, 5);
  double *out = (double *)test_alloc(256 * 8 * sizeof(double)),
         *lse = (double *)test_alloc(256 * sizeof(double));
  c.params = small_params(hyperattn_paper_params(), 64, 8, 8);
  run(&c);
  reference(&c.problem, out, lse);
  for (int i = 0; i < 64; i++) assert_below(fabs((double)c.lse[i] - lse[i]), 1e-5); /* the first segment */
  assert_above(fabs((double)c.lse[255] - lse[255]), 1e-5);
  free(out), free(lse);
  free_call(&c);
}

static void test_pairing_is_counted(void **state) {
  (void)state;
  hyperattn_params p = hyperattn_linear_params();
  p.min_seq_len = 1, p.block_size = 64, p.query_group = p.key_group = 1;
  p.sample_size = p.heavy_keys = p.sink_keys = p.probe_queries = 0;
  p.sampling = HYPERATTN_SAMPLE_UNIFORM, p.order = HYPERATTN_ORDER_POSITION, p.tolerance = 0.0f;
  assert_false(is_worth(&p, 4096, 4096));
  p.query_group = p.key_group = 2;
  assert_true(is_worth(&p, 4096, 4096));
}

/* With many rectangles in a level and four heads, no head's arrays overlap another's. */
static void test_many_rectangles(void **state) {
  (void)state;
  for (int64_t group = 4; group <= 8; group += 4) {
    call c = new_call(1, 4, 4, 4096, 4096, 8, 8, 1, 97), d = c;
    hai_plan plan;
    c.params = tiny();
    c.params.block_size = 8, c.params.sample_size = 4, c.params.heavy_keys = 2, c.params.sink_keys = 1;
    c.params.probe_queries = 4, c.params.query_group = c.params.key_group = group;
    assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
    assert_true(plan.max_rects >= 32);
    run(&c);
    d.params = c.params;
    d.problem.n_heads = d.problem.n_kv_heads = 1;
    d.out = (float *)test_alloc(4096 * 8 * sizeof(float)),
    d.lse = (float *)test_alloc(4096 * sizeof(float));
    for (int h = 0; h < 4; h++) {
      d.q = c.q + h * 32768, d.k = c.k + h * 32768, d.v = c.v + h * 32768;
      bind(&d);
      run(&d);
      assert_memory_equal(d.out, c.out + h * 32768, 32768 * sizeof(float));
    }
    free(d.out), free(d.lse);
    free_call(&c);
  }
}

/* ---- Faults of the authors' code (float32, CUDA, Triton) that this library must not have ---- */

/* Their float32 path loses the block mask, so that a sampled column in the query's own block counts twice.
   With blocks of half the keys and as many samples, e^lse would be far too large. */
static void test_a_column_in_the_own_block_counts_once(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 128, 128, 8, 8, 0, 201);
  /* all keys are equal, so the sum is exactly 128 whichever columns are drawn */
  memset(c.k, 0, 128 * 8 * sizeof(float));
  c.params = small_params(hyperattn_paper_params(), 16, 32, 32);
  double mean = 0.0;
  for (int seed = 0; seed < 400; seed++) {
    c.params.seed = (uint64_t)seed;
    run(&c);
    for (int i = 0; i < 128; i++) mean += exp((double)c.lse[i]) / (400 * 128);
  }
  assert_below(fabs(mean - 128.0), 0.5); /* it would be 160 if columns counted twice */
  free_call(&c);
}

/* Their merge adds a float32 epsilon inside a logarithm, so that lse is wrong by up to 0.05 if the second
   part dominates. */
static void test_lse_of_a_dominant_part(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 512, 512, 8, 8, 1, 203);
  for (int i = 0; i < 8; i++) c.k[500 * 8 + i] *= 40.0f;
  /* all keys are met, so every level is exact */
  c.params = small_params(hyperattn_linear_params(), 64, 512, 512);
  assert_exact(&c, 2e-6);
  c.params.method = HYPERATTN_EXACT;
  assert_exact(&c, 2e-6);
  free_call(&c);
}

/* Their last sorted block is padded with zero keys without a mask, so that keys that do not exist have the
   mass e^0. */
static void test_no_padding_in_ragged_blocks(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 100, 101, 8, 8, 0, 207);
  for (int i = 0; i < 100 * 8; i++) c.q[i] = 3.0f;
  /* scores are -25, so a padded key would have nearly all the weight */
  for (int i = 0; i < 101 * 8; i++) c.k[i] = -3.0f;
  c.params = small_params(hyperattn_paper_params(), 16, 32, 32);
  run(&c);
  for (int i = 0; i < 100; i++) assert_below((double)c.lse[i], -15.0);
  free_call(&c);
}

/* Their code divides by zero if block_size is 0. */
static void test_no_blocks(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 300, 300, 8, 8, 1, 209);
  c.params = small_params(hyperattn_paper_params(), 32, 0, 16);
  run(&c);
  for (int64_t i = 0; i < out_size(&c.problem); i++) assert_true(isfinite(c.out[i]));
  free_call(&c);
}

/* Their causal attention needs n_query == n_key, value_dim == head_dim, and one key head for each query
   head. */
static void test_causal_chunks_other_dims_shared_keys(void **state) {
  (void)state;
  call c = new_call(1, 4, 2, 200, 700, 16, 24, 1, 211);
  c.params = small_params(hyperattn_linear_params(), 64, 256, 256);
  run(&c);
  double *out = (double *)test_alloc((size_t)out_size(&c.problem) * sizeof(double)),
         *lse = (double *)test_alloc((size_t)lse_size(&c.problem) * sizeof(double));
  reference(&c.problem, out, lse);
  assert_below(relative_error(c.out, out, out_size(&c.problem)), 1.0);
  for (int64_t i = 0; i < lse_size(&c.problem); i++) assert_below(fabs((double)c.lse[i] - lse[i]), 1.0);
  free(out), free(lse);
  free_call(&c);
}

/* With an odd length, their code pads a zero row at every level. Here, with equal keys and no blocks, the
   weights of the strata add up to the number of keys of each rectangle: row i sums to i + 1, whichever
   columns were drawn. */
static void test_odd_lengths(void **state) {
  (void)state;
  for (int64_t n = 333; n < 341; n++) {
    call c = new_call(1, 1, 1, n, n, 8, 8, 1, 217);
    memset(c.k, 0, (size_t)n * 8 * sizeof(float));
    c.params = small_params(hyperattn_paper_params(), 20, 0, 7);
    run(&c);
    for (int64_t i = 0; i < n; i++) assert_below(fabs((double)c.lse[i] - log((double)i + 1.0)), 2e-6);
    free_call(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_params),
      cmocka_unit_test(test_shapes),
      cmocka_unit_test(test_heads_and_batch),
      cmocka_unit_test(test_groups),
      cmocka_unit_test(test_two_levels),
      cmocka_unit_test(test_a_budget_of_all_keys_is_exact),
      cmocka_unit_test(test_stages_with_all_keys_are_exact),
      cmocka_unit_test(test_window_is_exact),
      cmocka_unit_test(test_what_is_worth_approximating),
      cmocka_unit_test(test_cap),
      cmocka_unit_test(test_cap_beside_pins),
      cmocka_unit_test(test_a_negative_scale),
      cmocka_unit_test(test_cap_floor_over_several_tasks),
      cmocka_unit_test(test_the_smaller_half_decides),
      cmocka_unit_test(test_a_short_prefix_is_exact),
      cmocka_unit_test(test_pairing_is_counted),
      cmocka_unit_test(test_many_rectangles),
      cmocka_unit_test(test_a_column_in_the_own_block_counts_once),
      cmocka_unit_test(test_lse_of_a_dominant_part),
      cmocka_unit_test(test_no_padding_in_ragged_blocks),
      cmocka_unit_test(test_no_blocks),
      cmocka_unit_test(test_causal_chunks_other_dims_shared_keys),
      cmocka_unit_test(test_odd_lengths),
  };
  return cmocka_run_group_tests_name("hyper", tests, NULL, NULL);
}
