/* The interface: layouts, heads, slices, workers, merging, and a status of its own for every mistake. */
#include "calls.h"

static hyperattn_params tiny(void) { return small_params(hyperattn_linear_params(), 24, 12, 10); }

static const int n_presets = 5;
static hyperattn_params preset(int which) {
  hyperattn_params p =
      small_params(which == 0 ? hyperattn_paper_params() : hyperattn_linear_params(), 24, 12, 10);
  if (which >= 2) p.method = which == 2 ? HYPERATTN_EXACT : HYPERATTN_SCAN;
  if (which == 4) p.tolerance = 0.1f;
  return p;
}

/* Tensors with tokens first, packed QKV, and negative strides give the bits of contiguous ones. */
static void test_strides(void **state) {
  (void)state;
  enum { B = 2, H = 4, KV = 2, N = 120, D = 8, ROW = (H + 2 * KV) * D + 5 };
  for (int which = 0; which < n_presets; which++) {
    call c = new_call(B, H, KV, N, N, D, D, 1, 81), d = c;
    c.params = preset(which);
    run(&c);
    float *packed = (float *)test_alloc(B * N * ROW * sizeof(float)),
          *out = (float *)test_alloc(N * B * H * D * sizeof(float));
    for (int b = 0; b < B; b++)
      for (int i = 0; i < N; i++) {
        float *row = packed + (b * N + (N - 1 - i)) * ROW; /* last row first: a negative stride */
        for (int t = 0; t < H * D; t++) row[t] = c.q[((b * H + t / D) * N + i) * D + t % D];
        for (int t = 0; t < KV * D; t++) row[H * D + t] = c.k[((b * KV + t / D) * N + i) * D + t % D];
        for (int t = 0; t < KV * D; t++)
          row[(H + KV) * D + t] = c.v[((b * KV + t / D) * N + i) * D + t % D];
      }
    hyperattn_problem *p = &d.problem;
    d.params = c.params;
    d.lse = (float *)test_alloc((size_t)lse_size(p) * sizeof(float));
    p->lse = d.lse;
    float *last = packed + (N - 1) * ROW;
    p->query.data = last, p->key.data = last + H * D, p->value.data = last + (H + KV) * D;
    p->query.batch_stride = p->key.batch_stride = p->value.batch_stride = N * ROW;
    p->query.head_stride = p->key.head_stride = p->value.head_stride = D;
    p->query.row_stride = p->key.row_stride = p->value.row_stride = -ROW;
    p->out.data = out;
    p->out.batch_stride = H * D, p->out.head_stride = D, p->out.row_stride = B * H * D;
    run(&d);
    for (int b = 0; b < B; b++)
      for (int h = 0; h < H; h++)
        for (int i = 0; i < N; i++)
          assert_memory_equal(out + ((i * B + b) * H + h) * D, c.out + ((b * H + h) * N + i) * D,
                              D * sizeof(float));
    assert_memory_equal(c.lse, d.lse, (size_t)lse_size(p) * sizeof(float));
    free(packed), free(out), free(d.lse);
    free_call(&c);
  }
}

/* With zero strides every head and batch reads the same rows. Strides of dimensions of size 1 are ignored. */
static void test_zero_and_idle_strides(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 100, 100, 8, 8, 1, 83);
  c.params = preset(1);
  run(&c);
  call d = c;
  d.problem.batch = 2, d.problem.n_heads = 3, d.problem.n_kv_heads = 3;
  d.out = (float *)test_alloc((size_t)out_size(&d.problem) * sizeof(float));
  d.lse = (float *)test_alloc((size_t)lse_size(&d.problem) * sizeof(float));
  bind(&d);
  d.problem.query.batch_stride = d.problem.query.head_stride = 0;
  d.problem.key.batch_stride = d.problem.key.head_stride = 0;
  d.problem.value.batch_stride = d.problem.value.head_stride = 0;
  run(&d);
  for (int i = 0; i < 6; i++) assert_memory_equal(d.out + i * 800, c.out, 800 * sizeof(float));
  free(d.out), free(d.lse);
  c.problem.query.batch_stride = c.problem.key.head_stride = c.problem.out.batch_stride = PTRDIFF_MIN;
  c.problem.out.head_stride = PTRDIFF_MAX;
  float before = c.out[799];
  run(&c);
  assert_true(before == c.out[799]);
  free_call(&c);
  c = new_call(1, 1, 1, 1, 1, 4, 4, 0, 83); /* one row: its stride is not even multiplied */
  c.problem.query.row_stride = c.problem.key.row_stride = PTRDIFF_MAX;
  c.problem.value.row_stride = c.problem.out.row_stride = PTRDIFF_MIN;
  run(&c);
  assert_memory_equal(c.out, c.v, 4 * sizeof(float));
  free_call(&c);
}

/* Heads that share a kv head give the bits of heads with keys of their own. */
static void test_grouped_heads_equal_expanded(void **state) {
  (void)state;
  for (int which = 0; which < n_presets; which++)
    for (int causal = 0; causal < 2; causal++) {
      call c = new_call(2, 6, 2, 130, 140, 8, 6, causal, 89),
           d = new_call(2, 6, 6, 130, 140, 8, 6, causal, 89);
      c.params = d.params = preset(which);
      memcpy(d.q, c.q, 2 * 6 * 130 * 8 * sizeof(float));
      for (int h = 0; h < 12; h++) {
        memcpy(d.k + h * 140 * 8, c.k + h / 3 * 140 * 8, 140 * 8 * sizeof(float));
        memcpy(d.v + h * 140 * 6, c.v + h / 3 * 140 * 6, 140 * 6 * sizeof(float));
      }
      run(&c), run(&d);
      assert_memory_equal(c.out, d.out, (size_t)out_size(&c.problem) * sizeof(float));
      assert_memory_equal(c.lse, d.lse, (size_t)lse_size(&c.problem) * sizeof(float));
      free_call(&c), free_call(&d);
    }
}

/* So do heads whose values are not finite, whichever other rows are in a tile. */
static void test_grouped_heads_with_infinite_values(void **state) {
  const float bad[] = {INFINITY, -INFINITY};
  (void)state;
  for (int b = 0; b < 2; b++) {
    call c = new_call(1, 16, 1, 128, 128, 8, 8, 1, 91), d = new_call(1, 16, 16, 128, 128, 8, 8, 1, 91);
    memcpy(d.q, c.q, 16 * 128 * 8 * sizeof(float));
    c.v[5 * 8] = c.v[77 * 8 + 3] = bad[b];
    for (int h = 0; h < 16; h++)
      memcpy(d.k + h * 1024, c.k, 1024 * sizeof(float)), memcpy(d.v + h * 1024, c.v, 1024 * sizeof(float));
    run(&c), run(&d);
    assert_memory_equal(c.out, d.out, (size_t)out_size(&c.problem) * sizeof(float));
    assert_true(isfinite(c.out[100 * 8 + 5]) && !isfinite(c.out[100 * 8]) && !isfinite(c.out[100 * 8 + 3]));
    free_call(&c), free_call(&d);
  }
}

/* One head of one batch, computed alone, gives the bits it has in the whole call. */
static void test_slices_equal_the_whole(void **state) {
  (void)state;
  for (int which = 0; which < n_presets; which++) {
    call c = new_call(2, 4, 2, 130, 130, 8, 8, 1, 97), d = c;
    c.params = preset(which);
    run(&c);
    d.params = c.params;
    d.problem.batch = 1, d.problem.n_heads = 1, d.problem.n_kv_heads = 1;
    d.q = c.q + 7 * 130 * 8, d.k = c.k + 3 * 130 * 8,
    d.v = c.v + 3 * 130 * 8; /* batch 1, head 3, kv head 1 */
    d.out = (float *)test_alloc(130 * 8 * sizeof(float)), d.lse = (float *)test_alloc(130 * sizeof(float));
    bind(&d);
    run(&d);
    assert_memory_equal(d.out, c.out + 7 * 130 * 8, 130 * 8 * sizeof(float));
    assert_memory_equal(d.lse, c.lse + 7 * 130, 130 * sizeof(float));
    free(d.out), free(d.lse);
    free_call(&c);
  }
}

/* The same seed gives the same bits; another gives others. */
static void test_seeds(void **state) {
  (void)state;
  for (int which = 0; which < 2; which++) {
    call c = new_call(1, 1, 1, 200, 200, 8, 8, 0, 101);
    float again[200 * 8];
    c.params = preset(which);
    c.params.seed = 5;
    run(&c);
    memcpy(again, c.out, sizeof again);
    run(&c);
    assert_memory_equal(again, c.out, sizeof again);
    c.params.seed = 6;
    run(&c);
    assert_memory_not_equal(again, c.out, sizeof again);
    free_call(&c);
  }
}

/* ---- Workers ---- */

static void test_any_number_of_workers_gives_the_same_bits(void **state) {
  static const int workers[] = {1, 2, 3, 7};
  (void)state;
  for (int which = 0; which < n_presets; which++)
    for (int causal = 0; causal < 2; causal++) {
      call c = new_call(2, 2, 1, 500, 500, 8, 8, causal, 103);
      c.params = preset(which);
      run(&c);
      call d = c;
      new_results(&d);
      for (int w = 0; w < 4; w++) {
        run_shuffled(&d, workers[w]);
        assert_same_bits(&c, &d);
        run_phases(&d, workers[w]);
        assert_same_bits(&c, &d);
      }
      free(d.out), free(d.lse);
      free_call(&c);
    }
}

/* The presets are what the header says. */
static void test_presets(void **state) {
  (void)state;
  hyperattn_params p = (hyperattn_paper_params)(), d = (hyperattn_linear_params)(); /* as users get them */
  assert_true(p.method == HYPERATTN_HYPER && p.min_seq_len == 4096 && p.block_size == 256);
  assert_true(p.sample_size == 256 && p.lsh_bits == 7 && !p.query_group && !p.key_group);
  assert_true(p.order == HYPERATTN_ORDER_SORTLSH && p.sampling == HYPERATTN_SAMPLE_UNIFORM);
  assert_true(!p.sink_keys && !p.heavy_keys && !p.probe_queries && !p.window && p.tolerance == 0.0f);
  assert_true(d.method == HYPERATTN_HYPER && d.min_seq_len == 1024 && d.block_size == 16 * 16);
  assert_true(d.sample_size == 160 && d.sample_size + d.block_size == 416 && d.lsh_bits == 12);
  assert_true(d.query_group == 16 && d.key_group == 16 && d.order == HYPERATTN_ORDER_PROBED);
  assert_true(d.heavy_keys == 96 && d.sink_keys == 4 && d.window == 256 && d.probe_queries == 96);
  assert_true(d.sampling == HYPERATTN_SAMPLE_COLUMN_MASS && d.tolerance == 0.0f);
  assert_true(p.cap_epsilon == 0.0f && p.cap_kappa == 0.0f && p.isa == HYPERATTN_ISA_AUTO);
  assert_true(d.cap_epsilon == 0.0f && d.cap_kappa == 0.0f && d.isa == HYPERATTN_ISA_AUTO && !d.seed);
  assert_true((hyperattn_default_params)().tolerance == 0.1f);
}

/* ---- Errors of queries ---- */

/* Every query of an exact call has an error of 0, whichever kernel serves: tiles, few queries, and parts of
   many keys. No other byte changes, and the results are those of a call that does not ask. */
static void test_exact_queries_have_no_error(void **state) {
  static const int64_t n[][2] = {{120, 120}, {70, 40}, {1, 300}, {4, 5000}, {40, 5000}, {3, 0}};
  (void)state;
  for (int shape = 0; shape < 6; shape++)
    for (int causal = 0; causal < 2; causal++) {
      call c = new_call(2, 4, 2, n[shape][0], n[shape][1], 8, 8, causal, 111), d = c;
      int64_t rows = lse_size(&c.problem);
      float *error = (float *)test_alloc((size_t)(rows + 2) * sizeof *error);
      c.params.method = d.params.method = HYPERATTN_EXACT;
      run(&c);
      new_results(&d);
      for (int64_t i = 0; i < rows + 2; i++) error[i] = 7.0f;
      d.problem.query_error = error + 1;
      run_shuffled(&d, 3);
      assert_same_bits(&c, &d);
      assert_true(error[0] == 7.0f && error[rows + 1] == 7.0f);
      for (int64_t i = 1; i <= rows; i++) assert_true(error[i] == 0.0f);
      free(error), free(d.out), free(d.lse);
      free_call(&c);
    }
}

/* So has every query of a scan that approximates nothing; quantiles are 0 too. */
static void test_short_queries_have_no_error(void **state) {
  (void)state;
  float error[2 * 100];
  hyperattn_report report[2];
  call c = new_call(1, 2, 1, 100, 100, 8, 8, 1, 112);
  c.params = preset(3);
  c.params.min_seq_len = 200;
  c.problem.query_error = error, c.problem.report = report;
  memset(error, 0xff, sizeof error);
  assert_exact(&c, 3e-6);
  for (int i = 0; i < 200; i++) assert_true(error[i] == 0.0f);
  for (int h = 0; h < 2; h++) {
    assert_true(report[h].error == 0.0f && report[h].error_median == 0.0f && report[h].error_99 == 0.0f);
    assert_true(report[h].error_999 == 0.0f && report[h].doubled == 0.0f);
    assert_true(report[h].keys_per_query == 50.5f && report[h].window_mass == 1.0f);
  }
  free_call(&c);
}

/* A report of HYPERATTN_HYPER cannot tell quantiles, and says so where anything is approximated. */
static void test_hyper_has_no_quantiles(void **state) {
  (void)state;
  hyperattn_report report[2];
  for (int exact = 0; exact < 2; exact++) {
    call c = new_call(1, 2, 1, 300, 300, 8, 8, 1, 114);
    c.params = tiny();
    if (exact) c.params.min_seq_len = 1000;
    c.problem.report = report;
    run(&c);
    for (int h = 0; h < 2; h++) {
      float want = exact ? 0.0f : INFINITY;
      assert_true(report[h].error_median == want && report[h].error_99 == want);
      assert_true(report[h].error_999 == want && report[h].doubled == 0.0f);
    }
    free_call(&c);
  }
}

/* ---- Costs ---- */

static float cost_of(int64_t n_query, int64_t n_key, int causal, hyperattn_params params) {
  hyperattn_problem p;
  memset(&p, 0, sizeof p);
  p.batch = 2, p.n_heads = 4, p.n_kv_heads = 2, p.head_dim = p.value_dim = 64;
  p.n_query = n_query, p.n_key = n_key, p.causal = causal;
  return hyperattn_cost(&p, &params);
}

/* It is 1 where a call is exact, and 0 where it is invalid. */
static void test_costs_of_exact_and_invalid_calls(void **state) {
  (void)state;
  hyperattn_params exact = hyperattn_default_params(), linear = hyperattn_linear_params();
  exact.method = HYPERATTN_EXACT;
  for (int causal = 0; causal < 2; causal++) {
    assert_true(cost_of(32768, 32768, causal, exact) == 1.0f);
    for (int64_t n = 0; n < 1024; n = n * 2 + 1) {
      assert_true(cost_of(n, n, causal, linear) == 1.0f);
      assert_true(cost_of(n, n, causal, hyperattn_default_params()) == 1.0f);
    }
    assert_true(cost_of(1, 131072, causal, linear) == 1.0f); /* probes alone cost more */
    assert_true(cost_of(-1, 32768, causal, linear) == 0.0f);
    assert_true(cost_of((int64_t)1 << 31, 32768, causal, exact) == 0.0f);
  }
  linear.min_seq_len = 0;
  assert_true(cost_of(100, 100, 0, linear) == 0.0f);
  hyperattn_problem p = {0};
  assert_true(hyperattn_cost(NULL, &exact) == 0.0f && hyperattn_cost(&p, NULL) == 0.0f);
  /* what makes a call exact */
  static const float mask[1];
  linear = hyperattn_linear_params();
  p.batch = p.n_heads = p.n_kv_heads = 1, p.n_query = p.n_key = 32768, p.head_dim = p.value_dim = 64;
  assert_true(hyperattn_cost(&p, &linear) < 0.05f);
  p.sliding_window = 4096;
  assert_true(hyperattn_cost(&p, &linear) == 1.0f);
  p.sliding_window = 0, p.mask.data = mask;
  assert_true(hyperattn_cost(&p, &linear) == 1.0f);
}

/* It falls as contexts grow, and never to 0. */
static void test_costs_fall_with_length(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int paper = 0; paper < 2; paper++) {
      hyperattn_params params = paper ? hyperattn_paper_params() : hyperattn_linear_params();
      float before = 1.0f;
      for (int64_t n = 8192; n < 0x7fffffff; n *= 2) {
        float cost = cost_of(n, n, causal, params);
        assert_true(cost > 0.0f && cost < before);
        before = cost;
      }
    }
  hyperattn_params nothing = hyperattn_paper_params();
  nothing.block_size = nothing.sample_size = 0;
  assert_true(cost_of(8192, 8192, 0, nothing) > 0.0f);
}

/* At a fixed budget it is what the report counts. */
static void test_costs_are_products(void **state) {
  static const int64_t n[][2] = {{300, 300}, {1000, 1000}, {150, 700}, {700, 500}};
  (void)state;
  for (int shape = 0; shape < 4; shape++)
    for (int causal = 0; causal < 2; causal++)
      for (int which = 0; which < 2; which++) {
        int64_t n_query = n[shape][0], n_key = n[shape][1], square = n_query < n_key ? n_query : n_key;
        call c = new_call(1, 1, 1, n_query, n_key, 4, 4, causal, 115);
        hyperattn_report report;
        c.params = preset(which);
        c.params.min_seq_len = 60;
        c.problem.report = &report;
        run(&c);
        double pairs = causal ? (double)(square * (2 * n_key - square + 1)) / 2 : (double)(n_query * n_key);
        double counted = (double)report.keys_per_query * (double)n_query / pairs;
        float cost = hyperattn_cost(&c.problem, &c.params);
        assert_true(cost > 0.0f && cost < 1.0f);
        assert_below(fabs((double)cost / counted - 1.0), 0.06);
        c.params.window = 200; /* the more the windows hold, the less an approximation saves */
        assert_true(hyperattn_cost(&c.problem, &c.params) < 1.0f);
        free_call(&c);
      }
}

/* out is the same with and without lse. */
static void test_without_lse(void **state) {
  (void)state;
  for (int which = 0; which < n_presets; which++) {
    call c = new_call(1, 2, 1, 150, 150, 8, 8, 1, 105);
    size_t size = (size_t)out_size(&c.problem) * sizeof(float);
    float *out = (float *)test_alloc(size);
    c.params = preset(which);
    run(&c);
    memcpy(out, c.out, size);
    memset(c.out, 0xff, size);
    c.problem.lse = NULL;
    run(&c);
    assert_memory_equal(out, c.out, size);
    free(out);
    free_call(&c);
  }
}

static void test_phases_of_invalid_calls(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 100, 100, 8, 8, 1, 1);
  c.params = preset(1);
  assert_int_equal(hyperattn_phase_tasks(&c.problem, &c.params, -1), 0);
  assert_int_equal(
      hyperattn_phase_tasks(&c.problem, &c.params, hyperattn_phase_count(&c.problem, &c.params)), 0);
  c.params.min_seq_len = 0;
  hyperattn_run_task(&c.problem, &c.params, NULL, 0, 0, 0); /* does nothing */
  assert_int_equal(hyperattn_phase_count(&c.problem, &c.params), 0);
  assert_int_equal(hyperattn_phase_tasks(&c.problem, &c.params, 0), 0);
  assert_int_equal(hyperattn_workspace_size(&c.problem, &c.params, 1), 0);
  free_call(&c);
}

/* ---- Workspace ---- */

/* A workspace may have any alignment, and nothing outside it is touched. */
static void test_workspace_alignment_and_bounds(void **state) {
  (void)state;
  call c = new_call(1, 2, 1, 300, 300, 8, 8, 1, 107);
  c.params = preset(1);
  size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  for (size_t shift = 0; shift < 70; shift += 3) {
    unsigned char *w = (unsigned char *)test_alloc(bytes + 200);
    memset(w, 0xa5, bytes + 200);
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, w + shift, bytes), HYPERATTN_OK);
    for (size_t i = 0; i < shift; i++) assert_int_equal(w[i], 0xa5);
    for (size_t i = shift + bytes; i < bytes + 200; i++) assert_int_equal(w[i], 0xa5);
    free(w);
  }
  free_call(&c);
}

/* The most workers whose workspace has no more than PTRDIFF_MAX bytes are accepted, one more is not. */
static void test_too_many_workers(void **state) {
  (void)state;
  hyperattn_problem p = {0};
  hyperattn_params a = hyperattn_linear_params();
  int is_wide = sizeof(size_t) == 8; /* in 32 bits one head is enough for 2^31 workers to be too many */
  p.batch = 1, p.n_heads = p.n_kv_heads = is_wide ? 1000 : 1;
  p.n_query = p.n_key = (int64_t)1 << (is_wide ? 30 : 16), p.head_dim = p.value_dim = 64;
  a.block_size = a.query_group = p.n_key, a.key_group = 1;
  int low = 1, high = INT32_MAX; /* low fits, high does not */
  assert_true(hyperattn_workspace_size(&p, &a, low) > 0);
  assert_int_equal(hyperattn_workspace_size(&p, &a, high), 0);
  while (high - low > 1) {
    int middle = low + (high - low) / 2;
    *(hyperattn_workspace_size(&p, &a, middle) ? &low : &high) = middle;
  }
  size_t one = hyperattn_workspace_size(&p, &a, 2) - hyperattn_workspace_size(&p, &a, 1);
  assert_true(hyperattn_workspace_size(&p, &a, low) <= PTRDIFF_MAX);
  assert_true(hyperattn_workspace_size(&p, &a, low) > PTRDIFF_MAX - one - 200);
  assert_int_equal(hyperattn_check(&p, &a, NULL, SIZE_MAX, high), HYPERATTN_ERROR_SIZE_OVERFLOW);
}

/* The size never falls as n_query, n_key or n_workers rise. */
static void test_workspace_never_shrinks(void **state) {
  (void)state;
  uint64_t random = 3;
  for (int round = 0; round < 400; round++) {
    hyperattn_problem p;
    memset(&p, 0, sizeof p);
    p.batch = 1, p.n_heads = 2, p.n_kv_heads = 1, p.head_dim = 16, p.value_dim = 8;
    p.causal = (int)(splitmix(&random) % 2);
    hyperattn_params a = splitmix(&random) % 2 ? hyperattn_linear_params() : hyperattn_paper_params();
    a.min_seq_len = 1 + (int64_t)(splitmix(&random) % 300);
    a.block_size = (int64_t)(splitmix(&random) % 100), a.sample_size = (int64_t)(splitmix(&random) % 100);
    if (a.query_group)
      a.query_group = 1 + (int64_t)(splitmix(&random) % 40),
      a.key_group = 1 + (int64_t)(splitmix(&random) % 40);
    if (a.probe_queries) a.probe_queries = 1 + (int64_t)(splitmix(&random) % 40);
    for (int axis = 0; axis < 2; axis++) {
      size_t before = 0;
      p.n_query = p.n_key = (int64_t)(splitmix(&random) % 1500);
      for (int64_t n = 0; n < 1500; n += 1 + (int64_t)(splitmix(&random) % 20)) {
        *(axis ? &p.n_key : &p.n_query) = n;
        size_t size = hyperattn_workspace_size(&p, &a, 1);
        assert_true(size >= before && size > 0);
        assert_true(hyperattn_workspace_size(&p, &a, 2) > size);
        before = size;
      }
    }
  }
}

/* Pairing in two levels is used for many keys, and only if it is less work, so that a region that is worth
   approximating remains so as it grows. */
static void test_workspace_never_shrinks_where_two_levels_begin(void **state) {
  (void)state;
  uint64_t random = 7;
  for (int round = 0; round < 300; round++) {
    hyperattn_problem p;
    hyperattn_params params = hyperattn_linear_params();
    memset(&p, 0, sizeof p);
    p.batch = p.n_heads = p.n_kv_heads = 1, p.causal = 1, p.head_dim = p.value_dim = 8;
    params.min_seq_len = 1, params.tolerance = 0.0f, params.order = HYPERATTN_ORDER_POSITION;
    params.sampling = HYPERATTN_SAMPLE_UNIFORM, params.heavy_keys = params.probe_queries = 0;
    params.block_size = round ? (int64_t)1 << splitmix(&random) % 15 : 8192;
    params.sample_size = round ? (int64_t)(splitmix(&random) % 5000) : 3900;
    params.query_group = round ? 1 + (int64_t)(splitmix(&random) % 9) : 4;
    params.key_group = round ? 1 + (int64_t)(splitmix(&random) % 9) : 1;
    int64_t n = round % 2 ? 1 + (int64_t)(splitmix(&random) % 4000) : 2 * 32768 - 40;
    size_t before = 0;
    for (int i = 0; i < 80; i++, n++) {
      p.n_query = p.n_key = n;
      size_t bytes = hyperattn_workspace_size(&p, &params, 1);
      assert_true(bytes >= before);
      before = bytes;
    }
  }
}

/* ---- Merging ---- */

static void test_merge(void **state) {
  (void)state;
  enum { N = 30, NK = 90, CUT = 37, D = 8 };
  call whole = new_call(1, 2, 2, N, NK, D, D, 0, 109), a = whole, b = whole;
  whole.params.method = HYPERATTN_EXACT;
  run(&whole);
  a.params.method = b.params.method = HYPERATTN_EXACT;
  a.problem.n_key = CUT, b.problem.n_key = NK - CUT;
  a.out = (float *)test_alloc(2 * N * D * sizeof(float)),
  a.lse = (float *)test_alloc(2 * N * sizeof(float));
  b.out = (float *)test_alloc(2 * N * D * sizeof(float)),
  b.lse = (float *)test_alloc(2 * N * sizeof(float));
  a.problem.out.data = a.out, a.problem.lse = a.lse, b.problem.out.data = b.out, b.problem.lse = b.lse;
  b.problem.key.data = b.k + CUT * D, b.problem.value.data = b.v + CUT * D;
  run(&a), run(&b);
  hyperattn_input part = {0};
  part.data = b.out;
  set_strides(&part.batch_stride, &part.head_stride, &part.row_stride, 2, N, D);
  float kept_out[2 * N * D], kept_lse[2 * N], empty[2 * N];
  memcpy(kept_out, a.out, sizeof kept_out), memcpy(kept_lse, a.lse, sizeof kept_lse);
  for (int i = 0; i < 2 * N; i++) empty[i] = -INFINITY;
  /* an empty part, on either side, changes no bit, whatever its output contains */
  assert_int_equal(hyperattn_merge(1, 2, N, D, a.problem.out, a.lse, part, empty), HYPERATTN_OK);
  assert_memory_equal(kept_out, a.out, sizeof kept_out);
  assert_memory_equal(kept_lse, a.lse, sizeof kept_lse);
  float nothing[2 * N * D], nothing_lse[2 * N];
  for (int i = 0; i < 2 * N * D; i++) nothing[i] = NAN;
  memcpy(nothing_lse, empty, sizeof empty);
  hyperattn_output none = a.problem.out;
  none.data = nothing;
  assert_int_equal(hyperattn_merge(1, 2, N, D, none, nothing_lse, part, b.lse), HYPERATTN_OK);
  assert_memory_equal(nothing, b.out, sizeof nothing);
  assert_memory_equal(nothing_lse, b.lse, sizeof nothing_lse);
  /* two empty parts make an empty one */
  memcpy(nothing_lse, empty, sizeof empty);
  assert_int_equal(hyperattn_merge(1, 2, N, D, none, nothing_lse, part, empty), HYPERATTN_OK);
  assert_true(nothing_lse[0] == -INFINITY);
  /* the two parts make the whole */
  assert_int_equal(hyperattn_merge(1, 2, N, D, a.problem.out, a.lse, part, b.lse), HYPERATTN_OK);
  for (int i = 0; i < 2 * N * D; i++) assert_below(fabs((double)a.out[i] - (double)whole.out[i]), 2e-6);
  for (int i = 0; i < 2 * N; i++) assert_below(fabs((double)a.lse[i] - (double)whole.lse[i]), 2e-6);
  /* parts whose lse are large and far apart */
  a.lse[0] = 1e5f, b.lse[0] = 1e5f - 100.0f;
  memcpy(kept_out, a.out, sizeof kept_out);
  assert_int_equal(hyperattn_merge(1, 2, N, D, a.problem.out, a.lse, part, b.lse), HYPERATTN_OK);
  assert_true(a.lse[0] == 1e5f);
  assert_memory_equal(kept_out, a.out, D * sizeof(float));
  free(a.out), free(a.lse), free(b.out), free(b.lse);
  free_call(&whole);
}

static void test_merge_mistakes(void **state) {
  (void)state;
  float x[64] = {0}, y[64] = {0}, lx[8] = {0}, ly[8] = {0};
  hyperattn_output a = {x, HYPERATTN_F32, 32, 16, 4};
  hyperattn_input b; /* callers of version 0.1 set five fields and leave the rest as it is */
  memset(&b, 0x55, sizeof b);
  b.data = y, b.dtype = HYPERATTN_F32, b.batch_stride = 32, b.head_stride = 16, b.row_stride = 4;
#define MERGE(batch, heads, n, dim, out, la, in, lb) hyperattn_merge(batch, heads, n, dim, out, la, in, lb)
  assert_int_equal(MERGE(2, 2, 2, 4, a, lx, b, ly), HYPERATTN_OK);
  assert_int_equal(MERGE(0, 2, 2, 4, a, NULL, b, NULL), HYPERATTN_OK);
  assert_int_equal(MERGE(-1, 2, 2, 4, a, lx, b, ly), HYPERATTN_ERROR_BATCH);
  assert_int_equal(MERGE(2, 0, 2, 4, a, lx, b, ly), HYPERATTN_ERROR_N_HEADS);
  assert_int_equal(MERGE(2, 2, -2, 4, a, lx, b, ly), HYPERATTN_ERROR_N_QUERY);
  assert_int_equal(MERGE(2, 2, 0, 4, a, NULL, b, NULL), HYPERATTN_OK);
  assert_int_equal(MERGE(2, 2, 2, 0, a, lx, b, ly), HYPERATTN_ERROR_VALUE_DIM);
  assert_int_equal(MERGE(2, 2, 2, 577, a, lx, b, ly), HYPERATTN_ERROR_VALUE_DIM);
  assert_int_equal(MERGE(2, 2, 2, 4, a, NULL, b, ly), HYPERATTN_ERROR_NULL_LSE);
  assert_int_equal(MERGE(2, 2, 2, 4, a, lx, b, NULL), HYPERATTN_ERROR_NULL_LSE);
  assert_int_equal(MERGE(2, 2, 2, 4, a, lx, b, lx), HYPERATTN_ERROR_OVERLAP);
  hyperattn_output bad = a;
  bad.data = NULL;
  assert_int_equal(MERGE(2, 2, 2, 4, bad, lx, b, ly), HYPERATTN_ERROR_NULL_OUT);
  bad = a, bad.row_stride = 3;
  assert_int_equal(MERGE(2, 2, 2, 4, bad, lx, b, ly), HYPERATTN_ERROR_OUT_STRIDE);
  bad = a, bad.data = y + 4;
  assert_int_equal(MERGE(2, 2, 2, 4, bad, lx, b, ly), HYPERATTN_ERROR_OVERLAP);
  bad = a, bad.dtype = HYPERATTN_Q8_0;
  assert_int_equal(MERGE(2, 2, 2, 4, bad, lx, b, ly), HYPERATTN_ERROR_DTYPE_UNSUPPORTED);
  bad = a, bad.dtype = HYPERATTN_CUSTOM;
  assert_int_equal(MERGE(2, 2, 2, 4, bad, lx, b, ly), HYPERATTN_ERROR_CUSTOM);
  bad = a, bad.dtype = (hyperattn_dtype)9;
  assert_int_equal(MERGE(2, 2, 2, 4, bad, lx, b, ly), HYPERATTN_ERROR_DTYPE);
  b.dtype = HYPERATTN_CUSTOM;
  assert_int_equal(MERGE(2, 2, 2, 4, a, lx, b, ly), HYPERATTN_ERROR_CUSTOM);
  b.dtype = (hyperattn_dtype)9;
  assert_int_equal(MERGE(2, 2, 2, 4, a, lx, b, ly), HYPERATTN_ERROR_DTYPE);
  b.dtype = HYPERATTN_F32, b.data = NULL;
  assert_int_equal(MERGE(2, 2, 2, 4, a, lx, b, ly), HYPERATTN_ERROR_NULL_VALUE);
#undef MERGE
}

/* ---- Problems made whole ---- */

/* Float32 rows with these strides, and nothing else set. */
static void assert_plain(const hyperattn_input *x, const void *data, ptrdiff_t batch, ptrdiff_t head,
                         ptrdiff_t row) {
  assert_true(x->data == data && x->dtype == HYPERATTN_F32);
  assert_true(x->batch_stride == batch && x->head_stride == head && x->row_stride == row);
  assert_true(!x->widen && !x->page && !x->page_rows && !x->page_stride && !x->page_batch_stride);
}

/* The builders' strides are those of the layouts that they name; what is no argument is off. */
static void test_builders(void **state) {
  (void)state;
  float q, k, v, o;
  for (int tokens = 0; tokens < 2; tokens++) {
    hyperattn_problem p =
        (tokens ? hyperattn_tokens_first : hyperattn_heads_first)(2, 6, 3, 40, 50, 8, 12, &q, &k, &v, &o);
    assert_true(p.batch == 2 && p.n_heads == 6 && p.n_kv_heads == 3 && p.n_query == 40 && p.n_key == 50);
    assert_true(p.head_dim == 8 && p.value_dim == 12 && !p.causal && p.scale == 0.0f && p.softcap == 0.0f);
    assert_true(!p.lse && !p.sliding_window && !p.mask_slope && !p.sink && !p.report && !p.query_error);
    assert_plain(&p.query, &q, 40 * 48, tokens ? 8 : 40 * 8, tokens ? 48 : 8);
    assert_plain(&p.key, &k, 50 * 24, tokens ? 8 : 50 * 8, tokens ? 24 : 8);
    assert_plain(&p.value, &v, 50 * 36, tokens ? 12 : 50 * 12, tokens ? 36 : 12);
    assert_true(p.out.data == &o && p.out.dtype == HYPERATTN_F32 && p.out.batch_stride == 40 * 72);
    assert_true(p.out.head_stride == (tokens ? 12 : 40 * 12) && p.out.row_stride == (tokens ? 72 : 12));
    assert_plain(&p.mask, NULL, 0, 0, 0);
  }
}

/* Any numbers may be given to a builder; the call answers. */
static void test_builders_take_any_numbers(void **state) {
  static const hyperattn_status wrong[] = {
      HYPERATTN_ERROR_BATCH, HYPERATTN_ERROR_N_HEADS,  HYPERATTN_ERROR_N_KV_HEADS, HYPERATTN_ERROR_N_QUERY,
      HYPERATTN_ERROR_N_KEY, HYPERATTN_ERROR_HEAD_DIM, HYPERATTN_ERROR_VALUE_DIM};
  static const int64_t numbers[] = {INT64_MIN, INT64_MIN / 2 - 1, -1, INT64_MAX / 2, INT64_MAX};
  hyperattn_params params = hyperattn_default_params();
  float x = 0.0f, o;
  (void)state;
  for (int which = 0; which < 8; which++)
    for (int i = 0; i < 5; i++)
      for (int tokens = 0; tokens < 2; tokens++) {
        int64_t n[] = {2, 4, 2, 9, 9, 8, 8};
        for (int j = 0; j < 7; j++)
          if (which == 7 || j == which) n[j] = numbers[i];
        hyperattn_problem p = (tokens ? hyperattn_tokens_first : hyperattn_heads_first)(
            n[0], n[1], n[2], n[3], n[4], n[5], n[6], &x, &x, &x, &o);
        assert_int_equal(hyperattn_check(&p, &params, NULL, 0, 1), wrong[which % 7]);
      }
}

/* ---- Mistakes ---- */

/* Expects `want` from every entry point that returns a status, and no byte of out, lse or workspace
   changed. */
static void expect(const call *c, hyperattn_status want, void *workspace, size_t bytes) {
  size_t out_bytes = 2 * 50 * 8 * sizeof(float), lse_bytes = 2 * 50 * sizeof(float);
  unsigned char *before = (unsigned char *)test_alloc(out_bytes + lse_bytes + (workspace ? bytes : 0));
  memcpy(before, c->out, out_bytes);
  memcpy(before + out_bytes, c->lse, lse_bytes);
  if (workspace) memcpy(before + out_bytes + lse_bytes, workspace, bytes);
  hyperattn_status got = hyperattn_forward(&c->problem, &c->params, workspace, bytes);
  if (got != want)
    fail_msg("wanted %s, got %s", hyperattn_status_string(want), hyperattn_status_string(got));
  assert_int_equal(hyperattn_check(&c->problem, &c->params, workspace, bytes, 1), want);
  shuffled s = {1, 0};
  hyperattn_parallel parallel = {1, &s, shuffled_for};
  assert_int_equal(hyperattn_forward_parallel(&c->problem, &c->params, &parallel, workspace, bytes), want);
  assert_int_equal(s.calls, 0);
  assert_memory_equal(before, c->out, out_bytes);
  assert_memory_equal(before + out_bytes, c->lse, lse_bytes);
  if (workspace) assert_memory_equal(before + out_bytes + lse_bytes, workspace, bytes);
  free(before);
}

/* After `set` in c, which is otherwise `good`, in a workspace w. */
#define EXPECT(set, status)                         \
  do {                                              \
    c = good;                                       \
    set;                                            \
    expect(&c, HYPERATTN_ERROR_##status, w, bytes); \
  } while (0)

static void widen_nothing(const void *row, float *to, int64_t n) { (void)row, (void)to, (void)n; }

static void test_every_mistake_has_its_status(void **state) {
  (void)state;
  call c = new_call(1, 2, 1, 50, 60, 8, 8, 1, 113), good;
  c.params = preset(1);
  good = c;
  size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  void *w = test_alloc(bytes + 64);
  memset(w, 0, bytes + 64);
  hyperattn_problem *p = &c.problem;
  hyperattn_params *a = &c.params;
  static const int64_t too_many = (int64_t)1 << 31;
  static float error[2 * 50 + 1];
  EXPECT(p->batch = -1, BATCH);
  EXPECT(p->batch = too_many, BATCH);
  EXPECT(p->n_heads = 0, N_HEADS);
  EXPECT(p->n_heads = too_many, N_HEADS);
  EXPECT(p->n_kv_heads = 0, N_KV_HEADS);
  EXPECT(p->n_kv_heads = 3, N_KV_HEADS);
  EXPECT((p->n_heads = 3, p->n_kv_heads = 2), HEAD_GROUPS);
  EXPECT(p->n_query = -1, N_QUERY);
  EXPECT(p->n_query = too_many, N_QUERY);
  EXPECT(p->n_key = -1, N_KEY);
  EXPECT(p->n_key = too_many, N_KEY);
  EXPECT(p->head_dim = 0, HEAD_DIM);
  EXPECT(p->head_dim = 577, HEAD_DIM);
  EXPECT(p->value_dim = 0, VALUE_DIM);
  EXPECT(p->value_dim = 577, VALUE_DIM);
  EXPECT(p->causal = 2, CAUSAL);
  EXPECT(p->causal = -1, CAUSAL);
  EXPECT(p->scale = NAN, SCALE);
  EXPECT(p->scale = -INFINITY, SCALE);
  EXPECT(p->query.dtype = (hyperattn_dtype)5, DTYPE);
  EXPECT(p->key.dtype = (hyperattn_dtype)-1, DTYPE);
  EXPECT(p->query.dtype = HYPERATTN_Q8_0, DTYPE_UNSUPPORTED);
  EXPECT(p->out.dtype = HYPERATTN_Q8_0, DTYPE_UNSUPPORTED);
  EXPECT(p->query.data = NULL, NULL_QUERY);
  EXPECT(p->key.data = NULL, NULL_KEY);
  EXPECT(p->value.data = NULL, NULL_VALUE);
  EXPECT(p->out.data = NULL, NULL_OUT);
  EXPECT(p->out.row_stride = -8, OUT_STRIDE);
  EXPECT(p->out.row_stride = 7, OUT_STRIDE);
  EXPECT(p->out.head_stride = 49 * 8 + 7, OUT_STRIDE);
  EXPECT(p->out.head_stride = 0, OUT_STRIDE);
  EXPECT(p->query.row_stride = PTRDIFF_MAX / 8, EXTENT);
  EXPECT(p->key.row_stride = PTRDIFF_MIN, EXTENT);
  EXPECT(p->value.row_stride = PTRDIFF_MIN / 4, EXTENT);
  EXPECT(p->out.head_stride = PTRDIFF_MAX / 4, EXTENT);
  EXPECT(p->query.data = (const char *)c.q + 1, ALIGNMENT);
  EXPECT(p->lse = (float *)(void *)((char *)c.lse + 2), ALIGNMENT);
  EXPECT(p->out.data = c.q, OVERLAP);
  EXPECT(p->out.data = c.k + 60 * 8 - 1, OVERLAP);
  EXPECT(p->out.data = c.lse, OVERLAP);
  EXPECT(p->lse = c.v, OVERLAP);
  EXPECT(p->lse = (float *)w, OVERLAP);
  EXPECT(p->value.data = w, OVERLAP);
  for (int method = HYPERATTN_EXACT; method <= HYPERATTN_SCAN; method++) {
    good.params.method = (hyperattn_method)method;
    EXPECT(p->query_error = c.q, OVERLAP);
    EXPECT(p->query_error = c.k + 60 * 8 - 1, OVERLAP);
    EXPECT(p->query_error = c.v, OVERLAP);
    EXPECT(p->query_error = c.out + 7, OVERLAP);
    EXPECT(p->query_error = c.lse + 99, OVERLAP);
    EXPECT(p->query_error = (float *)w, OVERLAP);
    EXPECT(p->query_error = (float *)(void *)((char *)error + 2), ALIGNMENT);
    c = good;
    p->query_error = error;
    assert_int_equal(hyperattn_check(p, a, w, bytes, 1), HYPERATTN_OK);
    /* of these, only HYPERATTN_HYPER needs probes for its tolerance */
    a->probe_queries = a->heavy_keys = 0, a->sampling = HYPERATTN_SAMPLE_UNIFORM, a->tolerance = 0.1f;
    assert_int_equal(hyperattn_check(p, a, w, bytes, 1), HYPERATTN_OK);
    a->heavy_keys = 1;
    assert_int_equal(hyperattn_check(p, a, w, bytes, 1), HYPERATTN_ERROR_PROBES_NEEDED);
  }
  good.params.method = HYPERATTN_HYPER;
  EXPECT(p->query_error = error, QUERY_ERROR);
  EXPECT(a->method = (hyperattn_method)3, METHOD);
  EXPECT(a->method = (hyperattn_method)-1, METHOD);
  EXPECT(a->min_seq_len = 0, MIN_SEQ_LEN);
  EXPECT(a->block_size = -1, BLOCK_SIZE);
  EXPECT(a->sample_size = -1, SAMPLE_SIZE);
  EXPECT(a->lsh_bits = 0, LSH_BITS);
  EXPECT(a->lsh_bits = 17, LSH_BITS);
  EXPECT(a->query_group = 0, GROUPS);
  EXPECT(a->key_group = 0, GROUPS);
  EXPECT(a->query_group = -1, GROUPS);
  EXPECT(a->order = (hyperattn_order)3, ORDER);
  EXPECT(a->sink_keys = -1, SINK_KEYS);
  EXPECT(a->heavy_keys = -1, HEAVY_KEYS);
  EXPECT(a->probe_queries = -1, PROBE_QUERIES);
  EXPECT(a->window = -1, WINDOW);
  EXPECT(a->sampling = (hyperattn_sampling)3, SAMPLING);
  EXPECT(a->tolerance = -0.5f, TOLERANCE);
  EXPECT(a->tolerance = NAN, TOLERANCE);
  EXPECT(a->probe_queries = 0, PROBES_NEEDED);
  EXPECT((a->probe_queries = 0, a->heavy_keys = 0), PROBES_NEEDED);
  EXPECT((a->probe_queries = 0, a->heavy_keys = 0, a->sampling = HYPERATTN_SAMPLE_UNIFORM,
          a->tolerance = 0.1f),
         PROBES_NEEDED);
  EXPECT(a->cap_epsilon = -1.0f, CAP);
  EXPECT(a->cap_kappa = NAN, CAP);
  EXPECT(a->cap_epsilon = NAN, CAP);
  EXPECT(a->cap_kappa = -1.0f, CAP);
  EXPECT(a->cap_epsilon = 1.0f, CAP_CAUSAL);
  EXPECT(a->cap_kappa = 1.0f, CAP_CAUSAL);
  EXPECT((p->causal = 0, a->cap_epsilon = 1.0f, a->tolerance = 0.1f), CAP_CHOICE);
  EXPECT((p->causal = 0, a->cap_kappa = 1.0f, a->order = HYPERATTN_ORDER_PROBED), CAP_CHOICE);
  EXPECT((a->query_group = -1, a->key_group = -1), GROUPS);
  EXPECT(a->key_group = -1, GROUPS);
  EXPECT(a->isa = (hyperattn_isa)(HYPERATTN_ISA_LAST + 1), ISA);
  EXPECT((a->method = HYPERATTN_EXACT, a->block_size = -1), BLOCK_SIZE); /* also if unused */
  int absent = 0;
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++)
    if (!has_kernel((hyperattn_isa)isa)) {
      EXPECT(a->isa = (hyperattn_isa)isa, ISA_ABSENT);
      absent++;
    }
  assert_true(absent > 0); /* no machine has them all */
  c = good;
  expect(&c, HYPERATTN_ERROR_NULL_WORKSPACE, NULL, bytes);
  expect(&c, HYPERATTN_ERROR_WORKSPACE_SIZE, w, bytes - 1);
  assert_int_equal(hyperattn_forward(NULL, &c.params, w, bytes), HYPERATTN_ERROR_NULL_PROBLEM);
  assert_int_equal(hyperattn_forward(&c.problem, NULL, w, bytes), HYPERATTN_ERROR_NULL_PARAMS);
  assert_int_equal(hyperattn_forward_parallel(&c.problem, &c.params, NULL, w, bytes),
                   HYPERATTN_ERROR_NULL_PARALLEL);
  hyperattn_parallel nobody = {0, NULL, shuffled_for};
  assert_int_equal(hyperattn_forward_parallel(&c.problem, &c.params, &nobody, w, bytes),
                   HYPERATTN_ERROR_WORKERS);
  nobody.parallel_for = NULL;
  assert_int_equal(hyperattn_forward_parallel(&c.problem, &c.params, &nobody, w, bytes),
                   HYPERATTN_ERROR_NULL_PARALLEL);
  assert_int_equal(hyperattn_check(&c.problem, &c.params, w, bytes, 0), HYPERATTN_ERROR_WORKERS);
  assert_int_equal(hyperattn_workspace_size(&c.problem, &c.params, 0), 0);
  assert_int_equal(hyperattn_forward(&c.problem, &c.params, w, bytes),
                   HYPERATTN_OK); /* the original call is valid */
  /* a workspace of more than SIZE_MAX bytes */
  p->batch = p->n_heads = p->n_kv_heads = p->n_query = p->n_key = 0x7fffffff;
  assert_int_equal(hyperattn_forward(p, a, w, bytes), HYPERATTN_ERROR_SIZE_OVERFLOW);
  assert_int_equal(hyperattn_workspace_size(p, a, 1), 0);
  /* more tasks than int64 can count, in a small workspace */
  a->method = HYPERATTN_EXACT;
  assert_int_equal(hyperattn_forward(p, a, w, bytes), HYPERATTN_ERROR_SIZE_OVERFLOW);
  assert_int_equal(hyperattn_phase_tasks(p, a, 0), 0);
  /* out within a workspace of SIZE_MAX bytes */
  c = good;
  p->out.data = (char *)w + 64;
  assert_int_equal(hyperattn_check(p, a, w, SIZE_MAX, 1), HYPERATTN_ERROR_OVERLAP);
  free(w);
  free_call(&good);
}

/* Mistakes in what modifies scores, and in where rows lie. */
static void test_every_mistake_of_a_field_has_its_status(void **state) {
  (void)state;
  static const int64_t too_many = (int64_t)1 << 31;
  static float mask[60], two[3];
  static int32_t page[60];
  call c = new_call(1, 2, 1, 50, 60, 8, 8, 1, 113), good;
  c.params = preset(1);
  c.problem.mask.data = mask, c.problem.mask_slope = c.problem.sink = two;
  c.problem.key.page = c.problem.value.page = page;
  c.problem.key.page_rows = 1, c.problem.value.page_rows = too_many - 1;
  good = c;
  size_t bytes =
      hyperattn_workspace_size(&c.problem, &c.params, 1) + 8192; /* also for keys that are widened */
  void *w = test_alloc(bytes);
  memset(w, 0, bytes);
  hyperattn_problem *p = &c.problem;
  assert_int_equal(hyperattn_check(p, &c.params, w, bytes, 1), HYPERATTN_OK);
  EXPECT(p->softcap = -1.0f, SOFTCAP);
  EXPECT(p->softcap = NAN, SOFTCAP);
  EXPECT(p->softcap = INFINITY, SOFTCAP);
  EXPECT(p->sliding_window = -1, SLIDING_WINDOW);
  EXPECT(p->sliding_window = INT64_MIN, SLIDING_WINDOW);
  EXPECT(p->query.dtype = HYPERATTN_CUSTOM, CUSTOM);
  EXPECT((p->query.dtype = HYPERATTN_CUSTOM, p->query.widen = widen_nothing), CUSTOM);
  EXPECT(p->mask.dtype = HYPERATTN_CUSTOM, CUSTOM);
  EXPECT(p->out.dtype = HYPERATTN_CUSTOM, CUSTOM);
  EXPECT(p->key.dtype = HYPERATTN_CUSTOM, NULL_WIDEN);
  EXPECT(p->value.dtype = HYPERATTN_CUSTOM, NULL_WIDEN);
  EXPECT(p->query.page = page, PAGED);
  EXPECT(p->mask.page = page, PAGED);
  EXPECT(p->key.page_rows = 0, PAGE_ROWS);
  EXPECT(p->key.page_rows = too_many, PAGE_ROWS);
  EXPECT(p->value.page_rows = -1, PAGE_ROWS);
  EXPECT(p->value.page_rows = INT64_MAX, PAGE_ROWS);
  EXPECT(p->mask.dtype = HYPERATTN_Q8_0, DTYPE_UNSUPPORTED);
  EXPECT(p->mask.dtype = (hyperattn_dtype)5, DTYPE);
  EXPECT(p->mask.data = (const char *)mask + 2, ALIGNMENT);
  EXPECT((p->mask.data = (const char *)mask + 1, p->mask.dtype = HYPERATTN_F16), ALIGNMENT);
  EXPECT(p->sink = (const float *)(const void *)((const char *)two + 1), ALIGNMENT);
  EXPECT(p->mask_slope = (const float *)(const void *)((const char *)two + 2), ALIGNMENT);
  EXPECT(p->key.page = (const int32_t *)(const void *)((const char *)page + 2), ALIGNMENT);
  EXPECT(p->key.data = (const char *)p->key.data + 2, ALIGNMENT); /* the first page */
  EXPECT(p->mask.row_stride = PTRDIFF_MAX / 8, EXTENT);
  EXPECT(p->mask.head_stride = PTRDIFF_MIN, EXTENT);
  EXPECT(p->mask.data = c.out, OVERLAP);
  EXPECT(p->mask.data = c.lse + 99, OVERLAP);
  EXPECT(p->mask.data = w, OVERLAP);
  EXPECT(p->sink = c.out + 799, OVERLAP);
  EXPECT(p->sink = c.lse, OVERLAP);
  EXPECT(p->sink = (const float *)w, OVERLAP);
  EXPECT(p->mask_slope = c.out, OVERLAP);
  EXPECT(p->mask_slope = c.lse + 98, OVERLAP);
  EXPECT(p->mask_slope = (const float *)w + 1, OVERLAP);
  EXPECT(p->key.page = (const int32_t *)(const void *)c.out, OVERLAP);
  EXPECT(p->value.page = (const int32_t *)(const void *)c.lse, OVERLAP);
  EXPECT(p->value.page = (const int32_t *)w, OVERLAP);
  /* rows of a Q8_0 tensor begin with blocks, in each page */
  EXPECT((p->key.dtype = HYPERATTN_Q8_0, p->key.row_stride = 32, p->key.page_stride = 33), STRIDE_Q8_0);
  c = good;
  p->key.dtype = HYPERATTN_Q8_0, p->key.row_stride = 32, p->key.page_stride = -64;
  assert_int_equal(hyperattn_check(p, &c.params, w, bytes, 1), HYPERATTN_OK);
  /* what is unused may hold anything */
  c = good;
  p->query.widen = p->mask.widen = widen_nothing, p->query.page_rows = p->mask.page_rows = -7;
  p->query.page_stride = p->mask.page_batch_stride = PTRDIFF_MIN;
  p->key.page = p->value.page = NULL, p->key.page_rows = p->value.page_rows = -1;
  assert_int_equal(hyperattn_check(p, &c.params, w, bytes, 1), HYPERATTN_OK);
  free(w);
  free_call(&good);
}
#undef EXPECT

/* A result of 2 bytes for each of 2^61 heads fits an address space, their lse do not. */
static void test_lse_beyond_the_address_space(void **state) {
  call c = new_call(1, 1, 1, 1, 0, 1, 1, 0, 109);
  hyperattn_problem *p = &c.problem;
  (void)state;
  if (sizeof(void *) == 8) {
    c.params.method = HYPERATTN_EXACT;
    p->batch = 1 << 30, p->n_heads = p->n_kv_heads = 0x7fffffff;
    p->query.batch_stride = p->query.head_stride = 0;
    p->out.dtype = HYPERATTN_F16, p->out.head_stride = 1, p->out.batch_stride = 0x7fffffff;
    size_t bytes = hyperattn_workspace_size(p, &c.params, 1);
    void *w = test_alloc(bytes);
    assert_int_equal(hyperattn_check(p, &c.params, w, bytes, 1), HYPERATTN_ERROR_EXTENT);
    free(w);
  }
  free_call(&c);
}

/* Scratch is large enough for mean queries, and for the masses of many heavy keys. */
static void test_scratch(void **state) {
  (void)state;
  for (int heavy = 0; heavy < 2; heavy++) {
    call c = new_call(1, 2, 1, 2000, 2000, 64, 64, !heavy, 107);
    c.params = tiny();
    if (heavy) {
      c.params.block_size = c.params.sample_size = c.params.query_group = c.params.key_group = 0;
      c.params.heavy_keys = 600, c.params.probe_queries = 2;
    }
    size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
    unsigned char *w = (unsigned char *)test_alloc(bytes + 8192);
    memset(w, 0xa5, bytes + 8192);
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, w, bytes), HYPERATTN_OK);
    for (size_t i = bytes; i < bytes + 8192; i++) assert_int_equal(w[i], 0xa5);
    free(w);
    free_call(&c);
  }
}

static void test_more_tasks_than_int64(void **state) {
  (void)state;
  hyperattn_problem p;
  hyperattn_params a = hyperattn_default_params();
  memset(&p, 0, sizeof p);
  p.batch = p.n_heads = p.n_kv_heads = 0x7fffffff;
  p.n_query = p.n_key = p.head_dim = p.value_dim = 1;
  assert_int_equal(hyperattn_workspace_size(&p, &a, 1), 0);
}

static void test_extents_of_negative_strides(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 1, 2, 1, 1, 0, 3);
  float b[8] = {0};
  size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  void *w = test_alloc(bytes);
  c.problem.value.data = b + 5, c.problem.value.row_stride = -1,
  c.problem.out.data = b + 4; /* value's second row */
  assert_int_equal(hyperattn_check(&c.problem, &c.params, w, bytes, 1), HYPERATTN_ERROR_OVERLAP);
  free(w);
  free_call(&c);
  /* the bytes of each side can be counted, those of both together cannot */
  c = new_call(1, 2, 2, 2, 2, 1, 1, 0, 3);
  bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  w = test_alloc(bytes);
  c.problem.query.head_stride = PTRDIFF_MAX / 4 - PTRDIFF_MAX / 12,
  c.problem.query.row_stride = -(PTRDIFF_MAX / 8);
  assert_int_equal(hyperattn_check(&c.problem, &c.params, w, bytes, 1), HYPERATTN_ERROR_EXTENT);
  free(w);
  free_call(&c);
}

/* The values of an empty part are not read, whichever side it is on, nor are those of a part without
   weight. */
static void test_merging_with_nothing(void **state) {
  (void)state;
  const float light[] = {-INFINITY, -200.0f};
  for (int i = 0; i < 2; i++)
    for (int swap = 0; swap < 2; swap++) {
      float heavy[2] = {-0.0f, 3.0f}, none[2] = {NAN, INFINITY}, lse_heavy = 1.0f, lse_none = light[i];
      hyperattn_output a = {swap ? none : heavy, HYPERATTN_F32, 0, 0, 0};
      hyperattn_input b = {0};
      b.data = swap ? heavy : none;
      float *lse_a = swap ? &lse_none : &lse_heavy;
      assert_int_equal(hyperattn_merge(1, 1, 1, 2, a, lse_a, b, swap ? &lse_heavy : &lse_none),
                       HYPERATTN_OK);
      assert_true(((float *)a.data)[0] == 0.0f && ((float *)a.data)[1] == 3.0f && *lse_a == 1.0f);
      if (!swap) assert_true(signbit(heavy[0]));
    }
  /* nor does an empty part add anything to one that has overflowed */
  for (int i = 0; i < 2; i++) {
    float kept = 3.0f, none = NAN, lse_kept = i ? NAN : INFINITY, lse_none = -INFINITY;
    hyperattn_output a = {&none, HYPERATTN_F32, 0, 0, 0};
    hyperattn_input b = {0};
    b.data = &kept;
    assert_int_equal(hyperattn_merge(1, 1, 1, 1, a, &lse_none, b, &lse_kept), HYPERATTN_OK);
    assert_true(none == 3.0f && (i ? lse_none != lse_none : lse_none == INFINITY));
  }
}

/* Without queries nothing is touched: neither workspace nor report. */
static void test_no_queries_touch_nothing(void **state) {
  (void)state;
  call c = new_call(1, 2, 1, 0, 8, 16, 16, 0, 5);
  hyperattn_report report[2];
  memset(report, 0x55, sizeof report);
  c.problem.report = report;
  assert_int_equal(hyperattn_forward(&c.problem, &c.params, NULL, 0), HYPERATTN_OK);
  for (int phase = 0; phase < hyperattn_phase_count(&c.problem, &c.params); phase++)
    assert_int_equal(hyperattn_phase_tasks(&c.problem, &c.params, phase), 0);
  for (size_t i = 0; i < sizeof report; i++) assert_int_equal(((unsigned char *)report)[i], 0x55);
  free_call(&c);
}

static void test_statuses_have_texts(void **state) {
  (void)state;
#define DISTINCT(name, code, text)                                      \
  assert_string_equal(hyperattn_status_string(HYPERATTN_##name), text); \
  assert_int_equal(HYPERATTN_##name, code);                             \
  assert_true(HYPERATTN_##name > HYPERATTN_STATUS_LAST);
  HYPERATTN_STATUS_LIST(DISTINCT)
#undef DISTINCT
  assert_string_equal(hyperattn_status_string((hyperattn_status)12345), "unknown status");
  for (int isa = 0; isa < 6; isa++)
    assert_string_not_equal(hyperattn_isa_name((hyperattn_isa)isa), "unknown");
  assert_string_equal(hyperattn_isa_name((hyperattn_isa)77), "unknown");
  assert_true(has_kernel(hyperattn_detect_isa()));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_strides),
      cmocka_unit_test(test_zero_and_idle_strides),
      cmocka_unit_test(test_grouped_heads_equal_expanded),
      cmocka_unit_test(test_grouped_heads_with_infinite_values),
      cmocka_unit_test(test_slices_equal_the_whole),
      cmocka_unit_test(test_seeds),
      cmocka_unit_test(test_any_number_of_workers_gives_the_same_bits),
      cmocka_unit_test(test_presets),
      cmocka_unit_test(test_exact_queries_have_no_error),
      cmocka_unit_test(test_short_queries_have_no_error),
      cmocka_unit_test(test_hyper_has_no_quantiles),
      cmocka_unit_test(test_costs_of_exact_and_invalid_calls),
      cmocka_unit_test(test_costs_fall_with_length),
      cmocka_unit_test(test_costs_are_products),
      cmocka_unit_test(test_without_lse),
      cmocka_unit_test(test_phases_of_invalid_calls),
      cmocka_unit_test(test_workspace_alignment_and_bounds),
      cmocka_unit_test(test_too_many_workers),
      cmocka_unit_test(test_workspace_never_shrinks),
      cmocka_unit_test(test_workspace_never_shrinks_where_two_levels_begin),
      cmocka_unit_test(test_merge),
      cmocka_unit_test(test_merge_mistakes),
      cmocka_unit_test(test_builders),
      cmocka_unit_test(test_builders_take_any_numbers),
      cmocka_unit_test(test_every_mistake_has_its_status),
      cmocka_unit_test(test_every_mistake_of_a_field_has_its_status),
      cmocka_unit_test(test_statuses_have_texts),
      cmocka_unit_test(test_lse_beyond_the_address_space),
      cmocka_unit_test(test_scratch),
      cmocka_unit_test(test_more_tasks_than_int64),
      cmocka_unit_test(test_extents_of_negative_strides),
      cmocka_unit_test(test_merging_with_nothing),
      cmocka_unit_test(test_no_queries_touch_nothing),
  };
  return cmocka_run_group_tests_name("api", tests, NULL, NULL);
}
