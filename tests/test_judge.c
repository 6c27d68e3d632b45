/* Judging: held-out queries choose what a rectangle meets, enforce a tolerance, and report the error. */
#include "oracle.h"

/* A call of this shape in which a few hundred tokens are approximated and judged. */
static call judged_call(int64_t heads, int64_t kv_heads, int64_t n_query, int64_t n_key, int causal,
                        float tolerance, uint64_t seed) {
  call c = new_call(1, heads, kv_heads, n_query, n_key, 8, 6, causal, seed);
  c.params = small_params(c.params, 24, 16, 10);
  c.params.order = HYPERATTN_ORDER_PROBED;
  c.params.lsh_bits = 3;
  c.params.tolerance = tolerance;
  return c;
}

/* Gives every query one key with most of the weight; those of neighbouring queries are `step` keys apart. */
static void plant(call *c, int64_t head, int64_t step, float strength) {
  const hyperattn_problem *p = &c->problem;
  for (int64_t i = 0; i < p->n_query; i++)
    for (int64_t t = 0; t < p->head_dim; t++)
      c->q[(head * p->n_query + i) * p->head_dim + t] =
          strength * c->k[(i * step + 3) % p->n_key * p->head_dim + t];
}

/* Keys in runs of eight equal ones; every eight queries look for one run. */
static void plant_runs(call *c, float strength) {
  const hyperattn_problem *p = &c->problem;
  for (int64_t i = 0; i < p->n_key * 8; i++) c->k[i] = c->k[i / 64 * 64 + i % 8];
  for (int64_t i = 0; i < p->n_query * 8; i++) c->q[i] = strength * c->k[i / 64 * 5 % 50 * 64 + i % 8];
}

/* The same, with noise in the queries. */
static void plant_noisy_runs(call *c, uint64_t random) {
  plant_runs(c, 2.5f);
  for (int64_t i = 0; i < c->problem.n_query * 8; i++) c->q[i] += test_gaussian(&random);
}

/* Runs full attention, approximated even if that costs more than exact attention, the tasks of a phase from the
   first to the last or backwards. Returns the workspace with the choices, which the caller frees. */
static void *run_in_order(call *c, hai_plan *plan, int backwards) {
  plan_call(plan, c, 1);
  void *workspace = test_alloc(hai_layout_size(&plan->layout, 1));
  for (int phase = 0; phase < hai_phases(plan); phase++)
    for (int64_t n = hai_phase_tasks(plan, phase), t = 0; t < n; t++)
      hai_run(plan, workspace, phase, backwards ? n - 1 - t : t, 0);
  return workspace;
}
static void *run_anyway(call *c, hai_plan *plan) { return run_in_order(c, plan, 0); }

/* The first rectangle's verdict on a head, from the workspace of a call that has just run. */
static hai_verdict verdict_of(const hai_plan *plan, void *workspace, int64_t head) {
  hai_job job;
  hai_job_at(&job, plan, workspace, hai_phases(plan) - 1 - plan->reporting, 0, 0);
  job.head = head;
  return hai_verdict_of(&job);
}

static double true_error(const call *c) {
  const hyperattn_problem *p = &c->problem;
  double *out = (double *)test_alloc((size_t)out_size(p) * sizeof(double)),
         *lse = (double *)test_alloc((size_t)lse_size(p) * sizeof(double));
  reference(p, out, lse);
  double error = relative_error(c->out, out, out_size(p));
  free(out), free(lse);
  return error;
}

/* Queries meet the keys that the verdict names, for every recipe and pairing. */
static void test_attention_follows_verdicts(void **state) {
  static const int64_t n[][2] = {{203, 203}, {97, 331}, {150, 400}};
  static const float tolerances[] = {0.0f, 0.05f, 0.6f};
  int recipes[3] = {0}, pairings[3] = {0};
  uint64_t seed = 1;
  (void)state;
  for (int shape = 0; shape < 3; shape++)
    for (int causal = 0; causal < 2; causal++)
      for (int tolerance = 0; tolerance < 3; tolerance++)
        for (int sampling = 0; sampling < 3; sampling += 2)
          for (int kind = 0; kind < 3; kind++) { /* PROBED by score, by rank; POSITION */
            call c = judged_call(2, 1, n[shape][0], n[shape][1], causal, tolerances[tolerance], ++seed);
            c.params.sampling = (hyperattn_sampling)sampling;
            if (kind == 1) c.params.query_group = c.params.key_group = 0;
            if (kind == 2) c.params.order = HYPERATTN_ORDER_POSITION;
            plant(&c, 1, 7, 1.5f);
            pairs w;
            listen(&c, &w, 0);
            compare(&c, &w, 3e-6);
            for (int i = 0; i < 3; i++) recipes[i] += w.recipes[i];
            for (int i = 0; i < 3; i++) pairings[i] += w.pairings[i];
            free(w.log_weight);
            free_call(&c);
          }
  for (int i = 0; i < 3; i++) assert_true(recipes[i] > 0);
  for (int i = 0; i < 3; i++) assert_true(pairings[i] > 0);
}

/* All of 48 queries judge, so the verdict's error is the error of the output, with a sink too. It is within the
   tolerance, and if the verdict takes more than columns, columns alone were not. */
static void test_verdicts_are_right(void **state) {
  static const float sink[] = {9.0f};
  static const float tolerances[] = {0.02f, 0.2f, 0.5f, 0.9f};
  int taken[3] = {0};
  (void)state;
  for (uint64_t seed = 0; seed < 80; seed++) {
    float tolerance = tolerances[seed % 4];
    call c = judged_call(1, 1, 48, 500, 0, tolerance, 100 + seed);
    hai_plan plan;
    c.params.block_size = 64;
    if (seed % 2) c.problem.sink = sink;
    if (seed % 3 == 1) plant(&c, 0, 7, 0.3f + 0.15f * (float)(seed % 13));
    if (seed % 3 == 2) plant_runs(&c, 2.5f + 0.15f * (float)(seed % 13));
    void *workspace = run_anyway(&c, &plan);
    hai_verdict verdict = verdict_of(&plan, workspace, 0);
    double error = true_error(&c);
    taken[verdict.recipe]++;
    if (verdict.recipe == HAI_EACH) {
      assert_below(error, 1e-5);
      assert_above((double)verdict.error, (double)tolerance); /* the best choice that was tried */
    } else {
      assert_below(fabs((double)verdict.error / error - 1.0), 1e-3);
      assert_below(error, (double)tolerance);
    }
    if (verdict.recipe != HAI_COLUMNS) {
      c.params.tolerance = 1e6f;
      free(workspace);
      workspace = run_anyway(&c, &plan);
      assert_above(true_error(&c), (double)tolerance);
    }
    free(workspace);
    free_call(&c);
  }
  assert_true(taken[HAI_COLUMNS] && taken[HAI_BLOCKS] && taken[HAI_EACH]);
}

/* The same where the exact result is merged from chunks of keys whose scores are far apart. */
static void test_verdicts_on_many_keys_are_right(void **state) {
  (void)state;
  for (int tallest = 0; tallest < 3; tallest++) {
    call c = judged_call(1, 1, 48, 9000, 0, 1e6f, 190 + (uint64_t)tallest);
    hai_plan plan;
    for (int64_t i = tallest * 3000 * 8; i < (tallest + 1) * 3000 * 8; i++) c.k[i] *= 2.0f;
    void *workspace = run_anyway(&c, &plan);
    assert_below(fabs((double)verdict_of(&plan, workspace, 0).error / true_error(&c) - 1.0), 1e-3);
    free(workspace);
    free_call(&c);
  }
}

/* At a fixed budget, if columns are good enough, the search ends before any pairing. */
static void test_good_columns_end_the_search(void **state) {
  (void)state;
  int ended = 0;
  for (uint64_t seed = 0; seed < 12; seed++) {
    call c = judged_call(1, 1, 48, 500, 0, 0.0f, 230 + seed);
    hai_plan plan;
    for (int64_t i = 0; i < 48 * 8 && seed % 2; i++) c.q[i] *= 0.01f;
    for (int64_t i = 0; i < 500 * 6 && seed % 2; i++) c.v[i] = 1.0f + 0.1f * c.v[i];
    void *workspace = run_anyway(&c, &plan);
    hai_verdict verdict = verdict_of(&plan, workspace, 0);
    if (verdict.recipe == HAI_COLUMNS && verdict.error <= 0.1f) { /* HAI_GOOD */
      assert_int_equal(verdict.tried, 0);
      ended++;
    } else {
      assert_true(verdict.tried > 0);
    }
    free(workspace);
    free_call(&c);
  }
  assert_true(ended >= 6);
}

/* Columns are drawn in the order by position. If that pairing wins after the other was tried, the columns
   have its sub-blocks again. */
static void test_the_first_pairing_wins_after_the_second(void **state) {
  int won = 0;
  (void)state;
  for (uint64_t seed = 0; seed < 20; seed++) {
    call c = judged_call(1, 1, 203, 403, 0, 0.0f, 260 + seed);
    hai_plan plan;
    plant_noisy_runs(&c, seed);
    void *workspace = run_anyway(&c, &plan);
    hai_verdict verdict = verdict_of(&plan, workspace, 0);
    won += verdict.recipe == HAI_BLOCKS && verdict.pairing == 0 && verdict.tried == 2;
    free(workspace);
    pairs w;
    listen(&c, &w, 1);
    compare(&c, &w, 3e-6);
    free(w.log_weight);
    free_call(&c);
  }
  assert_true(won > 2);
}

/* Each of the heads that share keys takes its own pairing, as if it were alone. The first pairing, if it
   is taken after the second was tried, is as if there were no second. */
static void test_heads_take_each_its_own_pairing(void **state) {
  int mixed = 0;
  (void)state;
  for (uint64_t seed = 0; seed < 40; seed++) {
    call c = judged_call(2, 1, 203, 403, 0, 0.0f, 1260 + seed);
    hai_plan plan;
    hai_verdict verdict[2];
    plant_noisy_runs(&c, seed);
    plant(&c, 1, 7, 1.5f);
    void *workspace = run_anyway(&c, &plan);
    for (int head = 0; head < 2; head++) verdict[head] = verdict_of(&plan, workspace, head);
    free(workspace);
    mixed += hai_takes_blocks(&verdict[0], 0) && hai_takes_blocks(&verdict[1], 1);
    float *together = (float *)test_alloc(sizeof(float) * 2 * 203 * 6), *query = c.q, *out = c.out;
    memcpy(together, c.out, sizeof(float) * 2 * 203 * 6);
    free(run_in_order(&c, &plan, 1));
    assert_memory_equal(c.out, together, sizeof(float) * 2 * 203 * 6);
    c.out = (float *)test_alloc(sizeof(float) * 203 * 6);
    c.problem.out.data = c.out;
    c.problem.n_heads = 1;
    for (int head = 0; head < 2; head++) {
      c.problem.query.data = query + head * 203 * 8;
      c.params.order = HYPERATTN_ORDER_PROBED;
      free(run_anyway(&c, &plan));
      assert_memory_equal(c.out, together + head * 203 * 6, sizeof(float) * 203 * 6);
      if (!hai_takes_blocks(&verdict[head], 0)) continue;
      c.params.order = HYPERATTN_ORDER_POSITION;
      free(run_anyway(&c, &plan));
      assert_memory_equal(c.out, together + head * 203 * 6, sizeof(float) * 203 * 6);
    }
    free(c.out), free(together);
    c.out = out;
    free_call(&c);
  }
  assert_true(mixed > 2);
}

/* PROBED tries two pairings of blocks, even of blocks of one key. */
static void test_blocks_of_one_key(void **state) {
  (void)state;
  call c = judged_call(1, 1, 203, 403, 1, 0.0f, 290);
  hai_plan plan;
  for (int64_t size = 0; size < 3; size++) {
    c.params.block_size = size;
    assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
    assert_int_equal(plan.n_pairings, size ? 2 : 1);
  }
  c.params.block_size = 1;
  check(&c, 3e-6);
  free_call(&c);
}

/* The positions of few and many held-out queries in a sorted order are right in every rectangle: of auditors
   alone, and of judges too where there is a tolerance. */
static void test_places_of_the_held_out(void **state) {
  static const int64_t n[] = {40, 90, 300, 1000};
  int seen[2] = {0};
  (void)state;
  for (int i = 0; i < 16; i++) {
    call c = judged_call(1, 1, n[i / 4], n[i / 4] + 400, i & 1, i & 2 ? 0.3f : 0.0f, 300 + (uint64_t)i);
    hai_plan plan;
    hai_job job;
    hyperattn_report report;
    c.problem.report = &report;
    c.params.order = HYPERATTN_ORDER_SORTLSH;
    void *workspace = run_and_look(&c, &plan, &job);
    hai_job_at(&job, &plan, workspace, hai_phases(&plan) - 2, 0, 0); /* of the last level */
    for (job.audit = !plan.choosing; hai_plan_levels(&plan) && job.audit < 2; job.audit++)
      for (int j = 0; j < hai_n_held_out(&job); j++, seen[job.audit]++)
        assert_int_equal(query_at(&job, hai_held_out_place(&job, j)), hai_held_out_row(&job, j));
    free(workspace);
    free_call(&c);
  }
  assert_int_equal(seen[0], 6 * 48); /* HAI_JUDGES */
  assert_true(seen[1] > 6 * 192);    /* HAI_AUDITORS */
}

/* At a fixed budget the choice by judging is as good as the better of the choices. */
static void test_a_fixed_budget_takes_the_better(void **state) {
  hai_plan plan;
  (void)state;
  for (uint64_t seed = 0; seed < 12; seed++) {
    call c = judged_call(1, 1, 48, 500, 0, 0.0f, 200 + seed);
    if (seed % 2) plant(&c, 0, 7, 1.0f);
    free(run_anyway(&c, &plan));
    /* the errors that end the search: HAI_FAIR, HAI_GOOD */
    double chosen = true_error(&c), enough = seed % 2 ? 0.4 : 0.1;
    c.params.order = HYPERATTN_ORDER_POSITION;
    free(run_anyway(&c, &plan));
    assert_below(chosen, fmax(true_error(&c) * 1.0001, enough));
    c.params.order = HYPERATTN_ORDER_PROBED, c.params.tolerance = 1e6f; /* columns */
    free(run_anyway(&c, &plan));
    assert_below(chosen, fmax(true_error(&c) * 1.0001, enough));
    free_call(&c);
  }
}

/* With a tolerance of almost nothing all keys are met, with a huge one few; and only heads that need more
   keys get them. */
static void test_extremes(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++) {
    call c = judged_call(2, 2, 300, 300, causal, 1e-7f, 300);
    hyperattn_report report[2];
    c.problem.report = report;
    run(&c);
    assert_below(true_error(&c), 1e-5);
    assert_true(report[0].exact == 1.0f && report[1].escalated == 1.0f && report[0].error == 0.0f);
    c.params.tolerance = 1e6f;
    run(&c);
    assert_true(report[0].escalated == 0.0f && report[0].exact == 0.0f && report[0].block_mass == 0.0f);
    assert_above(true_error(&c), 1e-2);
    c.params.tolerance = 0.05f;
    /* head 0: all queries and keys are equal; head 1: every query has its own key */
    for (int64_t i = 0; i < 300 * 8; i++) c.q[i] = c.k[i] = 0.1f;
    for (int64_t i = 0; i < 300 * 6; i++) c.v[i] = 1.0f;
    for (int64_t i = 0; i < 300; i++)
      for (int64_t t = 0; t < 8; t++) c.q[(300 + i) * 8 + t] = 3.0f * c.k[(300 + i * 7 % 300) * 8 + t];
    run(&c);
    assert_true(report[0].escalated == 0.0f);
    assert_above((double)report[1].escalated, 0.4);
    free_call(&c);
  }
}

/* Runs tasks from the last to the first, with workers in turn. */
static void backwards(void *context, int64_t n_tasks, hyperattn_task task, void *arg) {
  int n_workers = *(const int *)context;
  for (int64_t i = n_tasks; i-- > 0;) task(arg, i, (int)(i % n_workers));
}

/* No bit depends on the report, the number of workers, sharing of heads, heads computed alone, or what was
   in the workspace. */
static void test_bits(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int tolerance = 0; tolerance < 2; tolerance++) {
      call c = judged_call(4, 2, 260, 260, causal, tolerance ? 0.3f : 0.0f, 400);
      size_t size = (size_t)out_size(&c.problem) * sizeof(float);
      float *first = (float *)test_alloc(size);
      hyperattn_report report[4], other[4];
      plant(&c, 1, 7, 2.0f);
      run(&c);
      memcpy(first, c.out, size);
      c.problem.report = report;
      run(&c);
      assert_memory_equal(first, c.out, size);
      for (int workers = 1; workers <= 7; workers += 2) {
        size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, workers);
        void *workspace = test_alloc(bytes);
        hyperattn_parallel parallel = {workers, &workers, backwards};
        c.problem.report = other;
        memset(workspace, workers, bytes);
        memset(c.out, 0xff, size);
        assert_int_equal(hyperattn_forward_parallel(&c.problem, &c.params, &parallel, workspace, bytes),
                         HYPERATTN_OK);
        assert_memory_equal(first, c.out, size);
        assert_memory_equal(report, other, sizeof report);
        free(workspace);
      }
      for (int64_t head = 0; head < 4; head++) { /* each head alone */
        call one = c;
        one.problem.n_heads = one.problem.n_kv_heads = 1;
        one.q += head * 260 * 8, one.k += head / 2 * 260 * 8, one.v += head / 2 * 260 * 6;
        one.problem.report = other;
        bind(&one);
        run(&one);
        assert_memory_equal(first + head * 260 * 6, c.out, 260 * 6 * sizeof(float));
        assert_memory_equal(&report[head], other, sizeof *other);
      }
      free(first);
      free_call(&c);
    }
}

/* Up to 192 queries all of them audit, so the report is not an estimate, and is compared with double
   precision. */
static void test_report_is_true(void **state) {
  (void)state;
  for (uint64_t seed = 0; seed < 12; seed++) {
    enum { N = 90, KEYS = 400 };
    call c = judged_call(1, 1, N, KEYS, 0, seed % 3 ? 0.0f : 0.6f, 500 + seed);
    const hyperattn_problem *p = &c.problem;
    hyperattn_report report;
    c.params.probe_queries = N; /* every query probes, so alpha and masses are not estimates either */
    c.params.window = 0;
    if (seed % 2) plant(&c, 0, 7, 0.7f);
    if (seed % 4 == 3) c.params.order = HYPERATTN_ORDER_SORTLSH;
    if (seed % 4 == 0) /* here the heaviest column is the first of a chunk */
      for (int64_t t = 0; t < 8; t++) c.k[64 * 8 + t] = 3.0f * c.q[5 * 8 + t];
    c.problem.report = &report;
    pairs w;
    listen(&c, &w, 1);
    compare(&c, &w, 3e-6);
    assert_below(fabs((double)report.error - true_error(&c)), 1e-3 * true_error(&c) + 1e-6);
    double *out = (double *)test_alloc(N * 6 * sizeof(double)),
           *lse = (double *)test_alloc(N * sizeof(double));
    reference(p, out, lse);
    double most = 0, sampled = 0, keys = 0, column[KEYS] = {0}, alpha = 0;
    for (int64_t i = 0; i < N; i++) {
      most = fmax(most, relative_error(c.out + i * 6, out + i * 6, 6));
      for (int64_t j = 0; j < KEYS; j++) {
        double s = 0, weight = *pair_of(p, &w, 0, 0, i, j);
        for (int64_t t = 0; t < 8; t++) s += (double)c.q[i * 8 + t] * (double)c.k[j * 8 + t];
        column[j] += exp(2 * (s / sqrt(8.0) - lse[i]));
        if (weight != -INFINITY) keys += 1.0 / N;
        if (weight != -INFINITY && weight != 0)
          sampled += exp(s / sqrt(8.0) + weight - (double)c.lse[i]) / N;
      }
    }
    for (int64_t j = 0; j < KEYS; j++) alpha = fmax(alpha, KEYS * column[j]);
    assert_below(fabs((double)report.max_error - most), 1e-3 * most + 1e-6);
    if (report.exact == 0.0f) {
      assert_below(fabs((double)report.sampled_mass - sampled), 2e-3);
      assert_below(fabs((double)report.window_mass), 2e-3); /* all keys are in the rectangle */
    }
    assert_below(
        fabs((double)(report.sampled_mass + report.block_mass + report.pinned_mass + report.window_mass) -
             1.0),
        1e-5);
    assert_below(fabs((double)report.alpha - alpha), 1e-3 * alpha);
    assert_above((double)report.keys_per_query, keys - 1e-3); /* probing and judging are added to these */
    assert_above((double)report.kappa, 0.999);
    free(out), free(lse), free(w.log_weight);
    free_call(&c);
  }
}

/* So it is of the one rectangle of a causal call, where what a row met before has much of its attention. */
static void test_report_of_a_prefix_is_true(void **state) {
  enum { N = 90, KEYS = 490 };
  (void)state;
  for (uint64_t seed = 0; seed < 6; seed++) {
    call c = judged_call(1, 1, N, KEYS, 1, 0.0f, 540 + seed);
    hyperattn_report report;
    double *lse, *out, most = 0.0;
    c.params.min_seq_len = 100;
    for (int64_t t = (KEYS - N) * 6; t < KEYS * 6; t++) c.v[t] += 4.0f;
    for (int64_t t = (KEYS - N) * 8; t < KEYS * 8; t++) c.k[t] *= 1.5f;
    c.problem.report = &report;
    run(&c);
    out = reference_of(&c, &lse);
    for (int64_t i = 0; i < N; i++) most = fmax(most, relative_error(c.out + i * 6, out + i * 6, 6));
    assert_above(most, 0.01);
    assert_below(fabs((double)report.max_error - most), 1e-3 * most + 1e-6);
    assert_below(fabs((double)report.error - true_error(&c)), 1e-3 * true_error(&c) + 1e-6);
    free(out);
    free_call(&c);
  }
}

/* Without probes, blocks and queries that judge, the report's figures follow from the parameters. */
static void test_report_of_columns_alone(void **state) {
  enum { N = 90, KEYS = 400 };
  (void)state;
  call c = judged_call(1, 1, N, KEYS, 0, 0.0f, 520);
  hyperattn_report report;
  double *out = (double *)test_alloc(N * 6 * sizeof(double)), lse[N], least = INFINITY, most = -INFINITY;
  c.params = small_params(hyperattn_paper_params(), 24, 0, 10);
  c.params.sink_keys = 3;
  c.problem.report = &report;
  run(&c);
  reference(&c.problem, out, lse);
  for (int i = 0; i < N; i++) least = fmin(least, lse[i]), most = fmax(most, lse[i]);
  assert_below(fabs((double)report.kappa / exp(most - least) - 1.0), 1e-3);
  assert_true(report.alpha == 0.0f && report.block_mass == 0.0f && report.escalated == 0.0f);
  assert_true(report.pinned_mass > 0.0f && report.sampled_mass > 0.0f);
  assert_true(report.keys_per_query == 13.0f);
  free(out);
  free_call(&c);
}

/* Every key-query pair is counted: those that are met, and those of probing, judging and each pairing. */
static void test_report_counts_pairs(void **state) {
  (void)state;
  for (int kind = 0; kind < 3; kind++) {
    call c = judged_call(1, 1, 300, 403, 0, kind == 2 ? 1e-7f : 0.0f, 530);
    hyperattn_report report;
    hai_plan plan;
    hai_job job;
    if (kind == 0) c.params.order = HYPERATTN_ORDER_POSITION;
    if (kind == 1) plant_runs(&c, 3.0f); /* both pairings are tried */
    c.problem.report = &report;
    void *workspace = run_anyway(&c, &plan);
    hai_job_at(&job, &plan, workspace, hai_phases(&plan) - 2, 0, 0); /* ATTEND */
    int tried = kind ? hai_verdict_of(&job).tried : 0;
    hai_recipe recipe = hai_recipe_of(&job);
    double met = (double)hai_counts(&job)[0] + (double)hai_counts(&job)[recipe == HAI_BLOCKS ? 1 : 2];
    if (recipe != HAI_COLUMNS) met += 403.0 * plan.take / (double)hai_key_parts(&plan, 403);
    if (recipe == HAI_EACH) met = 403.0;
    /* a trial pairs at most 48 groups, here all of them */
    int paired = recipe == HAI_BLOCKS;
    double want =
        met + 403.0 * (8 + (kind ? 48 : 0)) / 300.0 + (tried + paired) * (300.0 * 403.0 / (8 * 4)) / 300.0;
    assert_below(fabs((double)report.keys_per_query - want), 0.05);
    if (kind == 1) assert_int_equal(tried, 2);
    if (kind == 2) assert_int_equal(recipe, HAI_EACH);
    free(workspace);
    free_call(&c);
  }
  /* the prefix is too short to approximate, so all of it is met */
  call c = new_call(1, 1, 1, 256, 316, 8, 8, 1, 5);
  hyperattn_report report;
  c.problem.report = &report;
  c.params = small_params(hyperattn_paper_params(), 64, 8, 8);
  hai_plan plan;
  assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
  assert_true(plan.outer_exact && plan.depth == 2);
  run(&c);
  assert_below(fabs((double)report.keys_per_query - (60.0 + 32.5 + 8.0 + 8.0)), 0.05);
  free_call(&c);
}

/* The error of a rectangle counts little for rows that have most of their weight on keys outside it. */
static void test_later_keys_outweigh_errors(void **state) {
  (void)state;
  double ratio = 0;
  for (uint64_t seed = 0; seed < 10; seed++) {
    call c = judged_call(1, 1, 640, 900, 1, 0.0f, 560 + seed);
    hyperattn_report report;
    for (int64_t i = 0; i < 640; i++) c.q[i * 8 + 7] = 3.0f;
    for (int64_t j = 0; j < 900; j++) c.k[j * 8 + 7] = j ? 0.0f : 10.0f; /* the first key is a sink */
    c.problem.report = &report;
    run(&c);
    ratio += (double)report.error / true_error(&c) / 10;
    free_call(&c);
  }
  assert_true(ratio > 0.7 && ratio < 1.5);
}

/* The estimate for all queries from a sample: the sum of squared errors and the variance of that sum, as
   in textbooks. */
static void test_report_of_a_sample(void **state) {
  enum { N = 800, AUDITORS = 192 };
  (void)state;
  call c = judged_call(1, 1, N, 900, 0, 0.0f, 580);
  hyperattn_report report;
  hai_plan plan;
  hai_job job;
  c.params.order = HYPERATTN_ORDER_POSITION;
  c.problem.report = &report;
  void *workspace = run_anyway(&c, &plan);
  hai_job_at(&job, &plan, workspace, hai_phases(&plan) - 1, 0, 0);
  const hai_record *record = hai_record_of(&job);
  hai_report_sums sums = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  hai_report_rect(&job, record, 1, &sums, &report);
  double sum = 0.0, squares = 0.0;
  assert_int_equal(record->n, AUDITORS);
  for (int i = 0; i < AUDITORS; i++) {
    sum += (double)record->query[i].error;
    squares += (double)record->query[i].error * (double)record->query[i].error;
  }
  double spread = (squares - sum * sum / AUDITORS) / (AUDITORS - 1);
  double want = (1.0 - (double)AUDITORS / N) * N * N * spread / AUDITORS;
  assert_below(fabs((double)sums.squared_error / (sum * N / AUDITORS) - 1.0), 1e-4);
  assert_below(fabs((double)sums.variance / want - 1.0), 1e-3);
  free(workspace);
  free_call(&c);
}

/* The report's arrays do not overlap those of the choices, even if they are larger than all others. */
static void test_a_report_of_many_keys_changes_nothing(void **state) {
  (void)state;
  call c = new_call(1, 3, 3, 64, 4000, 4, 1, 0, 590);
  float out[3 * 64];
  hyperattn_report report[3];
  hai_plan plan;
  c.params = small_params(c.params, 24, 16, 10);
  free(run_anyway(&c, &plan));
  memcpy(out, c.out, sizeof out);
  c.problem.report = report;
  free(run_anyway(&c, &plan));
  assert_memory_equal(out, c.out, sizeof out);
  free_call(&c);
}

/* Keys are counted in integers, since a float cannot represent the count for so many queries exactly. */
static void test_report_counts_keys_of_many_queries(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 100000, 513, 1, 1, 0, 9);
  hyperattn_report report;
  c.problem.report = &report;
  c.params.method = HYPERATTN_EXACT;
  run(&c);
  assert_below(fabs((double)report.keys_per_query - 513.0), 0.01);
  free_call(&c);
}

/* In causal attention the errors of levels are added as independent errors are. */
static void test_causal_report(void **state) {
  (void)state;
  double ratio = 0;
  for (uint64_t seed = 0; seed < 10; seed++) {
    call c = judged_call(1, 1, 320, 320, 1, 0.0f, 600 + seed);
    hyperattn_report report;
    c.problem.report = &report;
    run(&c);
    double r = (double)report.error / true_error(&c);
    assert_true(r > 1 / 1.7 && r < 1.7);
    ratio += r / 10;
    assert_true(report.window_mass > 0.0f && report.window_mass < 1.0f);
    free_call(&c);
  }
  assert_true(ratio > 0.85 && ratio < 1.2);
}

static void test_bad_reports(void **state) {
  (void)state;
  call c = judged_call(2, 1, 100, 100, 0, 0.1f, 700);
  hyperattn_report report[3];
  size_t bytes = (c.problem.report = report, hyperattn_workspace_size(&c.problem, &c.params, 1));
  char *workspace = (char *)test_alloc(bytes);
  void *places[] = {c.out, c.lse, workspace, c.q, c.k, c.v};
  assert_int_equal(hyperattn_check(&c.problem, &c.params, workspace, bytes, 1), HYPERATTN_OK);
  for (int i = 0; i < 6; i++) {
    c.problem.report = (hyperattn_report *)places[i];
    assert_int_equal(hyperattn_check(&c.problem, &c.params, workspace, bytes, 1), HYPERATTN_ERROR_OVERLAP);
  }
  c.problem.report = (hyperattn_report *)(void *)((char *)report + 1);
  assert_int_equal(hyperattn_check(&c.problem, &c.params, workspace, bytes, 1), HYPERATTN_ERROR_ALIGNMENT);
  free(workspace);
  free_call(&c);
}

/* Verdicts leave out a query with NaN or infinity; in a key or value these reach only rows that see them. */
static void test_what_is_not_finite(void **state) {
  const float bad[] = {NAN, INFINITY, -INFINITY};
  (void)state;
  for (int b = 0; b < 3; b++)
    for (int where = 0; where < 3; where++)
      for (int tolerance = 0; tolerance < 2; tolerance++) {
        call c = judged_call(1, 1, 300, 300, 1, tolerance ? 0.2f : 0.0f, 800);
        hyperattn_report report;
        c.problem.report = &report;
        float *x = where == 0 ? c.q : where == 1 ? c.k : c.v;
        x[where == 2 ? 200 * 6 : 200 * 8] = bad[b];
        run(&c);
        for (int64_t i = 0; i < 300 * 6; i++)
          if (where ? i / 6 < 200 : i / 6 != 200) assert_true(isfinite(c.out[i]));
        free_call(&c);
      }
}

/* At tolerance 0 no key or value after a row changes a bit of it, although choices are judged. */
static void test_causality(void **state) {
  (void)state;
  for (int64_t row = 40; row < 300; row += 53) {
    call c = judged_call(1, 1, 300, 300, 1, 0.0f, 900);
    float before[300 * 6];
    run(&c);
    memcpy(before, c.out, sizeof before);
    for (int64_t i = (row + 1) * 8; i < 300 * 8; i++) c.k[i] = -2.0f * c.k[i];
    for (int64_t i = (row + 1) * 6; i < 300 * 6; i++) c.v[i] = 9.0f;
    run(&c);
    assert_memory_equal(before, c.out, (size_t)(row + 1) * 6 * sizeof(float));
    free_call(&c);
  }
}

/* Held-out queries are in ascending order, and none of those that judge is a probe. */
static void test_who_is_held_out(void **state) {
  (void)state;
  for (int64_t n = 1; n < 3000; n = n * 3 / 2 + 1) {
    call c = judged_call(1, 1, n, 3000, 0, 0.1f, 1000);
    hai_plan plan;
    hai_job job;
    c.params.probe_queries = 40;
    assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
    memset(&job, 0, sizeof job);
    job.plan = &plan;
    job.rect = hai_rect_at(&plan, 0, 0);
    char *judge = (char *)test_alloc((size_t)n);
    for (job.audit = 1; job.audit >= 0; job.audit--) {
      memset(judge, 0, (size_t)n);
      int64_t last = -1;
      for (int64_t i = 0; i < hai_n_held_out(&job); i++) {
        int64_t row = hai_held_out_row(&job, i);
        assert_true(row > last && row < n);
        judge[last = row] = 1;
      }
    }
    job.audit = 0;
    for (int64_t t = 0; t < hai_n_probes(&job); t++) {
      int64_t row = hai_probe_row(&job, t);
      assert_true(row >= 0 && row < n);
      if (n >= 96) assert_false(judge[row]);
    }
    free(judge);
    free_call(&c);
  }
}

/* Fewer queries than judges meet every key, in the workspace that this takes. */
static void test_fewer_queries_than_judges_are_exact(void **state) {
  static const int64_t n_query[] = {1, 20, 47};
  (void)state;
  for (int i = 0; i < 6; i++) {
    call c = new_call(1, 2, 1, n_query[i / 2], 3000, 8, 8, i & 1, 70 + (uint64_t)i);
    size_t size = (size_t)out_size(&c.problem) * sizeof(float);
    float *linear = (float *)test_alloc(size);
    hyperattn_report report[2];
    c.params = hyperattn_linear_params();
    c.problem.report = report;
    size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 3);
    run(&c);
    memcpy(linear, c.out, size);
    assert_true(report[0].error == 0.0f && report[1].error == 0.0f);
    c.params.method = HYPERATTN_EXACT;
    assert_int_equal(bytes, hyperattn_workspace_size(&c.problem, &c.params, 3));
    run(&c);
    assert_memory_equal(linear, c.out, size);
    free(linear);
    free_call(&c);
  }
}

/* The workspace takes at most 48 bytes per token and head, and 256 KiB per worker. A larger call never
   needs less. */
static void test_workspace(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++) {
    hyperattn_problem p = {0};
    hyperattn_params a = hyperattn_linear_params();
    hyperattn_report report;
    p.batch = p.n_heads = p.n_kv_heads = 1, p.n_query = p.n_key = 131072, p.head_dim = p.value_dim = 64;
    p.causal = causal;
    assert_true(hyperattn_workspace_size(&p, &a, 1) <= 48 * 131072 + 262144);
    for (int with = 0; with < 2; with++) {
      uint64_t random = 77;
      p.report = with ? &report : NULL;
      for (int i = 0; i < 300; i++) {
        p.n_query = (int64_t)(splitmix(&random) % 9000), p.n_key = (int64_t)(splitmix(&random) % 9000);
        size_t size = hyperattn_workspace_size(&p, &a, 1);
        hyperattn_problem more = p;
        more.n_query += (int64_t)(splitmix(&random) % 3000);
        assert_true(hyperattn_workspace_size(&more, &a, 1) >= size);
        more = p;
        more.n_key += (int64_t)(splitmix(&random) % 3000);
        assert_true(hyperattn_workspace_size(&more, &a, 2) >= size);
      }
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_attention_follows_verdicts),
      cmocka_unit_test(test_verdicts_are_right),
      cmocka_unit_test(test_verdicts_on_many_keys_are_right),
      cmocka_unit_test(test_good_columns_end_the_search),
      cmocka_unit_test(test_the_first_pairing_wins_after_the_second),
      cmocka_unit_test(test_heads_take_each_its_own_pairing),
      cmocka_unit_test(test_blocks_of_one_key),
      cmocka_unit_test(test_places_of_the_held_out),
      cmocka_unit_test(test_a_fixed_budget_takes_the_better),
      cmocka_unit_test(test_extremes),
      cmocka_unit_test(test_bits),
      cmocka_unit_test(test_report_is_true),
      cmocka_unit_test(test_report_of_a_prefix_is_true),
      cmocka_unit_test(test_report_of_columns_alone),
      cmocka_unit_test(test_report_counts_pairs),
      cmocka_unit_test(test_later_keys_outweigh_errors),
      cmocka_unit_test(test_report_of_a_sample),
      cmocka_unit_test(test_a_report_of_many_keys_changes_nothing),
      cmocka_unit_test(test_report_counts_keys_of_many_queries),
      cmocka_unit_test(test_causal_report),
      cmocka_unit_test(test_bad_reports),
      cmocka_unit_test(test_what_is_not_finite),
      cmocka_unit_test(test_causality),
      cmocka_unit_test(test_who_is_held_out),
      cmocka_unit_test(test_fewer_queries_than_judges_are_exact),
      cmocka_unit_test(test_workspace),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
