/* Hashing, ordering, drawing, choosing: each stage by a property that a wrong one violates. */
#include "support.h"

static hyperattn_params tiny(void) { return small_params(hyperattn_linear_params(), 24, 12, 10); }

/* Consecutive positions are Gray codes that differ in one bit, all 2^r - 1 times (the authors' order: 96 of 127). */
static void test_neighbouring_buckets_differ_in_one_bit(void **state) {
  (void)state;
  for (int bits = 1; bits <= 16; bits++) {
    uint32_t n = 1u << bits, *code_at = (uint32_t *)test_alloc(n * sizeof(uint32_t));
    memset(code_at, 0xff, n * sizeof(uint32_t));
    for (uint32_t code = 0; code < n; code++) {
      assert_true(hai_gray_decode(code) < n);
      code_at[hai_gray_decode(code)] = code;
    }
    for (uint32_t i = 0; i + 1 < n; i++) {
      uint32_t d = code_at[i] ^ code_at[i + 1];
      assert_true(d && !(d & (d - 1)));
    }
    free(code_at);
  }
}

static void test_parts_differ_by_at_most_one(void **state) {
  (void)state;
  for (int64_t n = 1; n < 200; n++)
    for (int64_t size = 1; size <= n + 1; size++) {
      int64_t parts = hai_ceil_div(n, size), least = n, most = 0;
      for (int64_t i = 0; i < parts; i++) {
        int64_t begin = hai_cut(n, parts, i), end = hai_cut(n, parts, i + 1);
        least = hai_min(least, end - begin), most = hai_max(most, end - begin);
        for (int64_t x = begin; x < end; x++) assert_int_equal(hai_part_of(n, parts, x), i);
      }
      assert_int_equal(hai_cut(n, parts, parts), n);
      assert_true(most <= size && most - least <= 1);
    }
}

/* Codes are the Gray positions of the signs of <row, plane>; every row of keys and queries has one. */
static void test_hash(void **state) {
  (void)state;
  for (int sign = -1; sign <= 1; sign += 2) {
    call c = new_call(2, 4, 2, 130, 150, 20, 4, 0, 3);
    c.problem.scale = 0.2f * (float)sign;
    c.params = small_params(hyperattn_paper_params(), 16, 8, 8);
    const int bits = sign < 0 ? 9 : 16; /* 16: the most */
    c.params.lsh_bits = bits;
    size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
    void *workspace = test_alloc(bytes);
    float planes[16 * 20];
    hai_planes(c.params.seed, bits, 20, planes);
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, workspace, bytes), HYPERATTN_OK);
    hai_plan plan;
    hai_job job;
    hai_resolve(&plan, &c.problem, &c.params);
    for (int64_t t = 0; t < hai_phase_tasks(&plan, 0); t++) {
      assert_true(hai_job_at(&job, &plan, workspace, 0, t, 0)->run == hai_stage_hash);
      int of_key = job.head < 0;
      int64_t n = of_key ? 150 : 130, rows = of_key ? hai_flat_kv_head(&job) : hai_flat_head(&job);
      for (int64_t i = 0; i < n; i++) {
        const float *row = (of_key ? c.k : c.q) + (rows * n + i) * 20;
        uint32_t code = 0;
        for (int b = 0; b < bits; b++) {
          double dot = 0.0;
          for (int x = 0; x < 20; x++) dot += (double)row[x] * (double)planes[b * 20 + x];
          code |= (uint32_t)((of_key ? dot : dot * sign) > 0.0) << b;
        }
        assert_int_equal(hai_codes(&job, of_key)[i], hai_gray_decode(code));
      }
    }
    free(workspace);
    free_call(&c);
  }
}

/* Planes are signs, as many of either, and none is another's or its opposite. */
static void test_planes(void **state) {
  enum { BITS = 16, DIM = 100 };
  static float planes[BITS * DIM];
  (void)state;
  hai_planes(7, BITS, DIM, planes);
  double sum = 0.0;
  for (int i = 0; i < BITS * DIM; i++) {
    assert_true(planes[i] == 1.0f || planes[i] == -1.0f);
    sum += (double)planes[i];
  }
  assert_below(fabs(sum), 160); /* four standard deviations */
  for (int a = 0; a < BITS; a++)
    for (int b = 0; b < a; b++) {
      double product = 0.0;
      for (int t = 0; t < DIM; t++) product += (double)planes[a * DIM + t] * (double)planes[b * DIM + t];
      assert_below(fabs(product), 50);
    }
}

/* A stable permutation, ascending by code. */
static void test_counting_sort(void **state) {
  (void)state;
  uint64_t random = 5;
  for (int bits = 1; bits <= 16; bits += 3)
    for (int64_t n = 0; n < 300; n += 37) {
      uint16_t code[400];
      int32_t order[300], *count = (int32_t *)test_alloc(sizeof(int32_t) << bits);
      for (int i = 0; i < 400; i++) code[i] = (uint16_t)(splitmix(&random) & ((1u << bits) - 1));
      hai_counting_sort(code, 100, n, bits, count, order);
      char seen[400] = {0};
      for (int64_t i = 0; i < n; i++) {
        assert_in_range(order[i], 100, 100 + n - 1);
        assert_false(seen[order[i]]++);
        if (!i) continue;
        assert_true(code[order[i - 1]] < code[order[i]] ||
                    (code[order[i - 1]] == code[order[i]] && order[i - 1] < order[i]));
      }
      free(count);
    }
}

/* The k best of a stream, ties to the smaller id, NaN last. */
static void test_offer(void **state) {
  (void)state;
  uint64_t random = 9;
  for (int round = 0; round < 300; round++) {
    int n = 1 + (int)(splitmix(&random) % 60), k = (int)(splitmix(&random) % 20), held = 0;
    float all[64];
    uint64_t heap[20];
    int32_t id[20];
    for (int i = 0; i < n; i++) {
      all[i] = (float)(splitmix(&random) % 12) - 6.0f;
      if (splitmix(&random) % 10 == 0) all[i] = NAN;
      if (splitmix(&random) % 10 == 0) all[i] = -all[i]; /* -0 is 0 */
      hai_offer(heap, &held, k, hai_candidate(all[i], i));
    }
    assert_int_equal(held, k < n ? k : n);
    for (int i = 0; i < held; i++) {
      float is = all[hai_candidate_id(heap[i])];
      assert_true(hai_candidate_value(heap[i]) == (isnan(is) ? -INFINITY : is));
    }
    hai_heap_ids(heap, held, id);
    for (int i = 1; i < held; i++) assert_true(id[i - 1] < id[i]);
    for (int i = 0; i < n; i++) {
      int better = 0, in = 0;
      for (int j = 0; j < n; j++) {
        float a = isnan(all[i]) ? -INFINITY : all[i], b = isnan(all[j]) ? -INFINITY : all[j];
        better += b > a || (b == a && j < i);
      }
      for (int j = 0; j < held; j++) in |= id[j] == i;
      assert_int_equal(in, better < k);
    }
  }
}

/* ---- Unbiasedness: the mean over seeds of e^lse and e^lse * out is the exact sum ----
   A z-test: with S seeds, |mean - exact| is at most a few standard errors. */

/* What to spoil between drawing and attending, to see that the test can fail. */
typedef enum spoil {
  SPOIL_NOTHING,
  SPOIL_OUTSIDE_BLOCK,
  SPOIL_ALL_KEYS_WITH_PINS,
  SPOIL_HIDE_NOTHING
} spoil;

static void spoil_columns(hai_job *job, spoil how) {
  int32_t *counts = hai_counts(job);
  int64_t n = job->rect.n_key;
  double m = (double)job->plan->sample_size;
  for (int32_t t = 0; t < counts[1]; t++) {
    hai_column *column = &hai_columns(job, 0)[t];
    if (how == SPOIL_OUTSIDE_BLOCK)
      column->log_weight = logf((float)((double)(n - job->plan->block_size) / m));
    if (how == SPOIL_ALL_KEYS_WITH_PINS) column->log_weight = logf((float)((double)n / m));
    if (how == SPOIL_HIDE_NOTHING) column->block[0] = -1;
  }
}

/* The largest |z| over rows, of the normaliser and of one output coordinate. */
static double largest_z(const hyperattn_params *params, int causal, int seeds, spoil how) {
  enum { N = 96, D = 8 };
  call c = new_call(1, 1, 1, N, N, D, D, causal, 41);
  for (int i = 0; i < N * D; i++) c.v[i] += 1.0f; /* a mean, so that e^lse * out tests something */
  double *out = (double *)test_alloc(N * D * sizeof(double)),
         *lse = (double *)test_alloc(N * sizeof(double));
  double sum[N][2] = {{0}}, square[N][2] = {{0}}, z = 0.0;
  c.params = *params;
  size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  void *workspace = test_alloc(bytes);
  reference(&c.problem, out, lse);
  for (int seed = 0; seed < seeds; seed++) {
    c.params.seed = (uint64_t)seed;
    hai_plan plan;
    assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
    assert_true(hai_plan_levels(&plan) > 0);
    for (int phase = 0; phase < hai_phases(&plan); phase++)
      for (int64_t t = 0; t < hai_phase_tasks(&plan, phase); t++) {
        hai_job job;
        hai_run(&plan, workspace, phase, t, 0);
        if (hai_job_at(&job, &plan, workspace, phase, t, 0)->run == hai_stage_columns && job.chunk == 0)
          spoil_columns(&job, how);
      }
    for (int i = 0; i < N; i++) {
      double x[2] = {exp((double)c.lse[i] - lse[i]), exp((double)c.lse[i] - lse[i]) * (double)c.out[i * D]};
      for (int t = 0; t < 2; t++) sum[i][t] += x[t], square[i][t] += x[t] * x[t];
    }
  }
  for (int i = 0; i < N; i++)
    for (int t = 0; t < 2; t++) {
      double mean = sum[i][t] / seeds, variance = square[i][t] / seeds - mean * mean;
      double want = t ? out[i * D] : 1.0, error = sqrt(fmax(variance, 0.0) / seeds) + 1e-6;
      z = fmax(z, fabs(mean - want) / error);
    }
  free(out), free(lse), free(workspace);
  free_call(&c);
  return z;
}

/* The largest of 192 standard normals passes 4.9 once in ten thousand tests; the seeds are fixed. */
static const double z_bound = 4.9;

static hyperattn_params z_params(hyperattn_sampling sampling, int score, int pins) {
  hyperattn_params p = small_params(hyperattn_linear_params(), 24, 16, 12);
  p.sampling = sampling;
  p.order = score ? HYPERATTN_ORDER_POSITION : HYPERATTN_ORDER_SORTLSH;
  p.lsh_bits = 3;
  if (!score) p.query_group = p.key_group = 0;
  p.window = 5;
  if (!pins) p.sink_keys = p.heavy_keys = p.window = 0;
  p.probe_queries = sampling == HYPERATTN_SAMPLE_COLUMN_MASS || pins ? 6 : 0;
  return p;
}

static void test_sums_are_unbiased(void **state) {
  (void)state;
  for (int causal = 0; causal < 2; causal++)
    for (int sampling = 0; sampling < 3; sampling++)
      for (int score = 0; score < 2; score++)
        for (int pins = 0; pins < 2; pins++) {
          hyperattn_params p = z_params((hyperattn_sampling)sampling, score, pins);
          assert_below(largest_z(&p, causal, 1200, SPOIL_NOTHING), z_bound);
        }
}

/* The weights that DESIGN names as wrong are seen to be wrong. */
static void test_wrong_weights_fail_the_same_test(void **state) {
  (void)state;
  hyperattn_params p = z_params(HYPERATTN_SAMPLE_UNIFORM, 0, 0),
                   pinned = z_params(HYPERATTN_SAMPLE_UNIFORM, 0, 1);
  pinned.sink_keys = 12;
  assert_below(largest_z(&pinned, 0, 1200, SPOIL_NOTHING), z_bound);
  assert_above(largest_z(&p, 0, 1200, SPOIL_OUTSIDE_BLOCK), 2 * z_bound);
  assert_above(largest_z(&pinned, 0, 1200, SPOIL_ALL_KEYS_WITH_PINS), 2 * z_bound);
  assert_above(largest_z(&p, 0, 1200, SPOIL_HIDE_NOTHING), 2 * z_bound);
}

/* ---- Pins and columns ---- */

/* Sinks are pinned, the heavy keys are those of largest mass, columns are distinct, unpinned and in sorted order, and
   uniform weights are the sizes of their strata. */
static void test_pins_and_columns(void **state) {
  (void)state;
  for (int sampling = 0; sampling < 3; sampling++) {
    call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 43);
    c.params = z_params((hyperattn_sampling)sampling, 0, 1);
    c.params.sink_keys = 3, c.params.heavy_keys = 9, c.params.sample_size = 17;
    hai_plan plan;
    hai_job job;
    void *workspace = run_and_look(&c, &plan, &job);
    assert_int_equal(hai_counts(&job)[0], 12);
    double mass[211] = {0}, least = INFINITY, most = 0.0, total = 0.0;
    for (int t = 0; t < 6; t++) { /* masses in double */
      int64_t i = hai_probe_row(&job, t);
      double s[211], sum = 0.0;
      for (int j = 0; j < 211; j++) {
        s[j] = 0.0;
        for (int x = 0; x < 8; x++) s[j] += (double)c.q[i * 8 + x] * (double)c.k[j * 8 + x];
        sum += s[j] = exp(s[j] / sqrt(8.0));
      }
      for (int j = 0; j < 211; j++) mass[j] += s[j] / sum;
    }
    for (int j = 0; j < 211; j++) {
      if (!sampling)
        assert_below(fabs((double)hai_mass(&job)[j] - mass[j]), 1e-5); /* else weights by now */
      int pinned = holds_key(hai_pins(&job), 12, j);
      assert_int_equal(pinned, hai_is_pinned(&job, hai_pinned(&job), j));
      if (j < 3)
        assert_true(pinned);
      else if (pinned)
        least = fmin(least, mass[j]);
      else
        most = fmax(most, mass[j]);
    }
    assert_above(least, most - 1e-5);
    char met[211] = {0};
    int32_t n = hai_counts(&job)[1], before = -1;
    for (int32_t t = 0; t < n; t++) {
      const hai_column *column = &hai_columns(&job, 0)[t];
      int32_t rank = 0;
      while (key_at(&job, rank) != column->key) rank++;
      assert_true(rank > before);
      before = rank;
      assert_false(met[column->key]++);
      assert_false(holds_key(hai_pins(&job), 12, column->key));
      assert_int_equal(column->block[0], hai_part_of(211, hai_key_parts(&plan, 211), rank));
      total += exp((double)column->log_weight);
      if (sampling) continue;
      int64_t size = hai_cut(199, 17, t + 1) - hai_cut(199, 17, t);
      assert_below(fabs(exp((double)column->log_weight) - (double)size), 1e-4);
    }
    if (!sampling) assert_below(fabs(total - 199.0), 1e-3);
    assert_true(sampling ? n <= 17 : n == 17);
    free(workspace);
    free_call(&c);
  }
}

/* Sampling weights of all zeros, NaN or infinity: every key keeps a chance, and nothing breaks. */
static void test_degenerate_weights(void **state) {
  static const float values[] = {0.0f, 1e30f, NAN, INFINITY};
  (void)state;
  for (int i = 0; i < 4; i++)
    for (int sampling = 1; sampling < 3; sampling++) {
      call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 47);
      for (int j = 0; j < 211 * 8; j++) c.v[j] = values[i];
      c.params = z_params((hyperattn_sampling)sampling, 0, 1);
      hai_plan plan;
      hai_job job;
      void *workspace = run_and_look(&c, &plan, &job);
      double total = 0.0;
      for (int32_t t = 0; t < hai_counts(&job)[1]; t++)
        total += exp((double)hai_columns(&job, 0)[t].log_weight);
      assert_below(fabs(total / (211.0 - hai_counts(&job)[0]) - 1.0), 0.01);
      free(workspace);
      free_call(&c);
    }
}

/* Each group takes the sub-blocks whose mean key has the largest product with its mean query. */
static void check_pairing(int query_group, int dim) {
  call c = new_call(1, 1, 1, 90, 211, dim, 8, 0, 53);
  c.params = z_params(HYPERATTN_SAMPLE_UNIFORM, 1, 0);
  c.params.query_group = query_group, c.params.key_group = 5, c.params.block_size = 20;
  hai_plan plan;
  hai_job job;
  void *workspace = run_and_look(&c, &plan, &job);
  int64_t groups = hai_query_parts(&plan, 90, 211), blocks = hai_key_parts(&plan, 211);
  for (int64_t g = 0; g < groups; g++) {
    double least = INFINITY, most = -INFINITY;
    for (int64_t b = 0; b < blocks; b++) {
      double q[8] = {0}, k[8] = {0}, score = 0.0;
      for (int64_t x = hai_cut(90, groups, g); x < hai_cut(90, groups, g + 1); x++)
        for (int t = 0; t < dim; t++) q[t] += (double)c.q[query_at(&job, x) * dim + t];
      int64_t begin = hai_cut(211, blocks, b), end = hai_cut(211, blocks, b + 1);
      for (int64_t x = begin; x < end; x++)
        for (int t = 0; t < dim; t++)
          k[t] += (double)c.k[key_at(&job, x) * dim + t] / (double)(end - begin);
      for (int t = 0; t < dim; t++) score += q[t] * k[t];
      if (holds_key(hai_choice(&job, g), 4, (int32_t)b))
        least = fmin(least, score);
      else
        most = fmax(most, score);
    }
    assert_above(least, most - 1e-4);
    for (int t = 1; t < 4; t++) assert_true(hai_choice(&job, g)[t - 1] < hai_choice(&job, g)[t]);
  }
  free(workspace);
  free_call(&c);
}

static void test_pairing(void **state) {
  (void)state;
  check_pairing(7, 8);
  check_pairing(1, 7); /* more groups than a task has; a head_dim that is no multiple of four */
}

static double dot(const double *a, const double *b, int n) {
  double sum = 0.0;
  for (int t = 0; t < n; t++) sum += a[t] * b[t];
  return sum;
}

/* In two levels: the sub-blocks that a group takes are the best of the 2 * take spans that some of its 16 neighbours
   scores best. */
static void test_pairing_in_two_levels(void **state) {
  enum { NQ = 70, NK = 33001, D = 4, TAKE = 4, BLOCKS = 8251, SPANS = 516, GROUPS = 10 };
  (void)state;
  call c = new_call(1, 2, 2, NQ, NK, D, D, 0, 59); /* the second head must not get into the first's way */
  c.params = z_params(HYPERATTN_SAMPLE_UNIFORM, 1, 0);
  c.params.query_group = 7, c.params.key_group = 4, c.params.block_size = 16;
  for (int64_t j = NK - 30; j < NK;
       j++) /* in the last span, which is not whole: what the first group likes */
    for (int t = 0; t < D; t++) {
      c.k[j * D + t] = 0.0f;
      for (int i = 0; i < 7; i++) c.k[j * D + t] += 2.0f * c.q[i * D + t];
    }
  hai_plan plan;
  hai_job job;
  void *workspace = run_and_look(&c, &plan, &job);
  assert_int_equal(hai_query_parts(&plan, NQ, NK), GROUPS); /* fewer than choose together */
  assert_int_equal(hai_key_parts(&plan, NK), BLOCKS);
  double(*mean)[D] = (double(*)[D])test_alloc(BLOCKS * sizeof *mean),
  (*span)[D] = (double(*)[D])test_alloc(SPANS * sizeof *span);
  double query[GROUPS][D] = {{0}}, *reach = (double *)test_alloc(SPANS * sizeof *reach);
  memset(span, 0, SPANS * sizeof *span);
  for (int b = 0; b < BLOCKS; b++) {
    int64_t begin = hai_cut(NK, BLOCKS, b), end = hai_cut(NK, BLOCKS, b + 1);
    for (int t = 0; t < D; t++) {
      mean[b][t] = 0.0;
      for (int64_t x = begin; x < end; x++) mean[b][t] += (double)c.k[x * D + t] / (double)(end - begin);
      span[b / 16][t] += mean[b][t] / 16.0;
    }
  }
  for (int s = 0; s < SPANS; s++) reach[s] = -INFINITY;
  for (int g = 0; g < GROUPS; g++) {
    for (int64_t x = hai_cut(NQ, GROUPS, g); x < hai_cut(NQ, GROUPS, g + 1); x++)
      for (int t = 0; t < D; t++) query[g][t] += (double)c.q[x * D + t];
    for (int s = 0; s < SPANS; s++)
      reach[s] = fmax(reach[s], dot(query[g], span[s], D) /
                                    (double)(hai_cut(NQ, GROUPS, g + 1) - hai_cut(NQ, GROUPS, g)));
  }
  for (int g = 0; g < GROUPS; g++) {
    double least = INFINITY, most = -INFINITY;
    for (int s = 0; s < SPANS; s++) {
      int better = 0;
      for (int o = 0; o < SPANS; o++) better += reach[o] > reach[s];
      for (int b = 16 * s; b < 16 * s + 16 && b < BLOCKS; b++) {
        int taken = holds_key(hai_choice(&job, g), TAKE, b);
        if (better >= 2 * TAKE)
          assert_false(taken);
        else if (taken)
          least = fmin(least, dot(query[g], mean[b], D));
        else
          most = fmax(most, dot(query[g], mean[b], D));
      }
    }
    assert_above(least, most - 1e-4);
  }
  free(mean), free(span), free(reach), free(workspace);
  free_call(&c);
}

/* 0.8 w / sum + 0.2 / n. */
static void test_probabilities_are_mixed_with_uniform(void **state) {
  (void)state;
  assert_below(fabs((double)hai_units(0.0f, 1.0f, 10) / 17592186044416.0 - 0.02), 1e-6);
  assert_below(fabs((double)hai_units(1.0f, 1.0f, 10) / 17592186044416.0 - 0.82), 1e-6);
}

/* Runs c until its columns are drawn: later stages write over the masses. */
static void *run_to_columns(call *c, hai_plan *plan, hai_job *job) {
  return run_until(c, plan, job, hai_stage_columns);
}

/* |v|^2 for VALUE_NORM, M |v| for COLUMN_MASS: any positive weights would be unbiased. */
static void test_sampling_weights(void **state) {
  (void)state;
  for (int sampling = 1; sampling < 3; sampling++) {
    call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 43);
    hai_plan plan;
    hai_job job;
    c.params = tiny();
    c.params.sampling = HYPERATTN_SAMPLE_UNIFORM;
    void *workspace = run_to_columns(&c, &plan, &job); /* uniform: masses are not weighed */
    float mass[211];
    memcpy(mass, hai_mass(&job), sizeof mass);
    free(workspace);
    c.params.sampling = (hyperattn_sampling)sampling;
    workspace = run_to_columns(&c, &plan, &job);
    for (int j = 0; j < 211; j++) {
      double norm = 0.0;
      for (int t = 0; t < 8; t++) norm += (double)c.v[j * 8 + t] * (double)c.v[j * 8 + t];
      double want = sampling == HYPERATTN_SAMPLE_VALUE_NORM ? norm : (double)mass[j] * sqrt(norm);
      assert_below(fabs((double)hai_mass(&job)[j] - want), 1e-5 * (1.0 + want));
    }
    free(workspace);
    free_call(&c);
  }
}

static void test_sinks_stay_out_of_means(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 53);
  hai_plan plan;
  hai_job job;
  c.params = tiny();
  c.params.sink_keys = 5; /* sub-block 0 and the first key of sub-block 1 */
  void *workspace = run_and_look(&c, &plan, &job);
  int64_t parts = hai_key_parts(&plan, 211), begin = hai_cut(211, parts, 1), end = hai_cut(211, parts, 2);
  assert_true(begin < 5 && end > 5);
  for (int t = 0; t < 8; t++) {
    double mean = 0.0;
    for (int64_t i = 5; i < end; i++) mean += (double)c.k[i * 8 + t] / (double)(end - 5);
    assert_below(fabs((double)hai_mean(&job)[8 + t] - mean), 1e-5);
  }
  assert_true(isnan(hai_mean(&job)[0])); /* sinks alone: the worst score */
  free(workspace);
  free_call(&c);
}

/* Sinks that are heavy as well leave all places for other heavy keys. */
static void test_sinks_take_no_heavy_places(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 90, 211, 8, 8, 0, 43);
  hai_plan plan;
  hai_job job;
  c.params = tiny();
  c.params.sink_keys = 3, c.params.heavy_keys = 9;
  for (int i = 0; i < 90; i++) c.q[i * 8] = 4.0f;
  for (int i = 0; i < 3; i++) c.k[i * 8] = 8.0f;
  void *workspace = run_and_look(&c, &plan, &job);
  assert_int_equal(hai_counts(&job)[0], 12);
  free(workspace);
  free_call(&c);
}

/* A probe that is NaN or infinite has no say; the others find the heavy keys. */
static void test_a_bad_probe_has_no_say(void **state) {
  static const float bad[] = {NAN, INFINITY};
  (void)state;
  for (int b = 0; b < 2; b++) {
    call c = new_call(1, 1, 1, 300, 2000, 8, 8, 0, 43);
    hai_plan plan;
    hai_job job;
    c.params = tiny();
    c.params.sink_keys = 0;
    c.params.sampling = HYPERATTN_SAMPLE_UNIFORM; /* masses are not weighed */
    for (int i = 0; i < 300; i++) c.q[i * 8] += 3.0f;
    c.k[555 * 8] = c.k[777 * 8] = c.k[1234 * 8] = c.k[1900 * 8] = 9.0f;
    hai_plan before;
    void *unused = run_to_columns(&c, &before, &job);
    c.q[hai_probe_row(&job, 0) * 8] = bad[b];
    free(unused);
    void *workspace = run_to_columns(&c, &plan, &job);
    double total = 0.0;
    for (int j = 0; j < 2000; j++) total += (double)hai_mass(&job)[j];
    assert_below(fabs(total - 7.0), 1e-3);
    assert_int_equal(hai_counts(&job)[0], 4);
    assert_true(hai_pins(&job)[0] == 555 && hai_pins(&job)[1] == 777 && hai_pins(&job)[2] == 1234 &&
                hai_pins(&job)[3] == 1900);
    free(workspace);
    free_call(&c);
  }
}

static void test_every_rectangle_has_its_own_random_numbers(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 1024, 1024, 8, 8, 1, 1);
  hai_plan plan;
  char seen[4096] = {0};
  c.params = tiny();
  assert_int_equal(hai_resolve(&plan, &c.problem, &c.params), HYPERATTN_OK);
  assert_true(plan.depth > 1);
  for (int level = 0; level < hai_plan_levels(&plan); level++)
    for (int64_t i = 0; i < hai_plan_rects(&plan, level); i++)
      assert_false(seen[hai_rect_at(&plan, level, i).region]++);
  free_call(&c);
}

/* The authors' code draws columns with replacement, from a generator that every call moves on. */
static void test_columns_are_distinct_and_reproducible(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 300, 300, 8, 8, 0, 213);
  c.params = small_params(hyperattn_paper_params(), 32, 16, 100);
  size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1);
  void *workspace = test_alloc(bytes);
  int32_t first[100];
  for (int round = 0; round < 2; round++) {
    hai_plan plan;
    hai_job job;
    char seen[300] = {0};
    assert_int_equal(hyperattn_forward(&c.problem, &c.params, workspace, bytes), HYPERATTN_OK);
    hai_resolve(&plan, &c.problem, &c.params);
    hai_job_at(&job, &plan, workspace, hai_phases(&plan) - 1, 0, 0);
    assert_int_equal(hai_counts(&job)[1], 100);
    for (int i = 0; i < 100; i++) {
      assert_false(seen[hai_columns(&job, 0)[i].key]++);
      if (round) assert_int_equal(first[i], hai_columns(&job, 0)[i].key);
      first[i] = hai_columns(&job, 0)[i].key;
    }
  }
  free(workspace);
  free_call(&c);
}

/* ---- CPU detection: what the processor says and what the system saves, by fakes ---- */
#if defined(__x86_64__) && !defined(HYPERATTN_NO_SIMD)
static uint32_t fake_leaves, fake_1_ecx, fake_7_ebx, fake_7_ecx, fake_7_edx, fake_7_1_eax;
static const char *fake_vendor = "GenuineIntel"; /* ebx, edx, ecx */
static uint64_t fake_saved;
static int fake_asked_xcr0;
static void fake_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
  memset(r, 0, 4 * sizeof *r);
  if (leaf == 0) {
    r[0] = fake_leaves;
    memcpy(&r[1], fake_vendor, 4), memcpy(&r[3], fake_vendor + 4, 4), memcpy(&r[2], fake_vendor + 8, 4);
  }
  if (leaf == 1) r[2] = fake_1_ecx;
  if (leaf == 7 && subleaf == 0)
    r[1] = fake_7_ebx, r[2] = fake_7_ecx, r[3] = fake_7_edx,
    r[0] = fake_7_1_eax ? 1 : 0; /* eax: the last subleaf */
  if (leaf == 7 && subleaf == 1) {
    assert_true(fake_7_1_eax); /* else it is not there */
    r[0] = fake_7_1_eax;
  }
}
static uint64_t fake_xcr0(void) {
  fake_asked_xcr0 = 1;
  return fake_saved;
}
static int fake(uint32_t leaves, uint32_t ecx, uint32_t ebx, uint64_t saved) {
  fake_leaves = leaves, fake_1_ecx = ecx, fake_7_ebx = ebx, fake_saved = saved, fake_asked_xcr0 = 0;
  return hai_cpu_features(fake_cpuid, fake_xcr0);
}

static void test_detection(void **state) {
  (void)state;
  const uint32_t osxsave = 1u << 27, avx = 1u << 28, fma = 1u << 12, f16c = 1u << 29, avx2 = 1u << 5;
  const uint32_t f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, all = avx2 | f | dq | bw | vl;
  const uint32_t base = osxsave | avx | fma | f16c;
  assert_int_equal(fake(7, base, all, 0xe7), HAI_CPU_KNOWN | HAI_CPU_AVX2 | HAI_CPU_AVX512);
  assert_int_equal(fake(6, base, all, 0xe7), HAI_CPU_KNOWN); /* leaf 7 is not there */
  assert_int_equal(fake(0, base, all, 0xe7), HAI_CPU_KNOWN);
  assert_int_equal(fake(7, base & ~osxsave, all, 0xe7), HAI_CPU_KNOWN);
  assert_false(fake_asked_xcr0); /* xgetbv would trap */
  assert_int_equal(fake(7, base & ~avx, all, 0xe7), HAI_CPU_KNOWN);
  assert_int_equal(fake(7, base & ~fma, all, 0xe7), HAI_CPU_KNOWN);
  assert_int_equal(fake(7, base & ~f16c, all, 0xe7), HAI_CPU_KNOWN);
  assert_int_equal(fake(7, base, all & ~avx2, 0xe7), HAI_CPU_KNOWN);
  assert_int_equal(fake(7, base, all, 0x03), HAI_CPU_KNOWN); /* the system saves no AVX state */
  assert_int_equal(fake(7, base, all, 0x07), HAI_CPU_KNOWN | HAI_CPU_AVX2); /* and no AVX-512 state */
  assert_int_equal(fake(7, base, all, 0x67), HAI_CPU_KNOWN | HAI_CPU_AVX2);
  const uint32_t needed[] = {f, dq, bw, vl};
  for (int i = 0; i < 4; i++)
    assert_int_equal(fake(7, base, all & ~needed[i], 0xe7), HAI_CPU_KNOWN | HAI_CPU_AVX2);
  /* bfloat16 needs all of AVX-512, and is fast on AMD's */
  const int best = HAI_CPU_KNOWN | HAI_CPU_AVX2 | HAI_CPU_AVX512;
  fake_7_1_eax = 1u << 5;
  assert_int_equal(fake(7, base, all, 0xe7), best | HAI_CPU_AVX512_BF16);
  assert_int_equal(fake(7, base, all, 0x07), HAI_CPU_KNOWN | HAI_CPU_AVX2);
  assert_int_equal(fake(7, base, all & ~vl, 0xe7), HAI_CPU_KNOWN | HAI_CPU_AVX2);
  fake_7_edx = 1u << 22 | 1u << 24; /* AMX: both of its bits, both of its states */
  assert_int_equal(fake(7, base, all, 0x600e7), best | HAI_CPU_AVX512_BF16 | HAI_CPU_AMX);
  assert_int_equal(fake(7, base, all, 0x400e7), best | HAI_CPU_AVX512_BF16);
  assert_int_equal(fake(7, base, all, 0x200e7), best | HAI_CPU_AVX512_BF16);
  fake_7_edx = 1u << 22;
  assert_int_equal(fake(7, base, all, 0x600e7), best | HAI_CPU_AVX512_BF16);
  fake_7_edx = 1u << 24;
  assert_int_equal(fake(7, base, all, 0x600e7), best | HAI_CPU_AVX512_BF16);
  static const char *const nearly[] = {"AuthenticXXX", "AuthXXXXcAMD", "XXXXenticAMD"};
  fake_7_edx = 0;
  for (int i = 0; i < 3; i++) {
    fake_vendor = nearly[i];
    assert_int_equal(fake(7, base, all, 0xe7), best | HAI_CPU_AVX512_BF16);
  }
  assert_int_equal(fake(7, base, all & ~f, 0xe7), HAI_CPU_KNOWN | HAI_CPU_AVX2);
  assert_int_equal(HAI_CPU_KNOWN | HAI_CPU_AVX2 | HAI_CPU_AVX512 | HAI_CPU_AVX512_BF16 |
                       HAI_CPU_AVX512_BF16_FAST | HAI_CPU_AMX | HAI_CPU_AVX512_VNNI | HAI_CPU_AVX_VNNI,
                   HAI_CPU_KNOWN + HAI_CPU_AVX2 + HAI_CPU_AVX512 + HAI_CPU_AVX512_BF16 +
                       HAI_CPU_AVX512_BF16_FAST + HAI_CPU_AMX + HAI_CPU_AVX512_VNNI +
                       HAI_CPU_AVX_VNNI); /* a bit each */
  fake_vendor = "AuthenticAMD";
  assert_int_equal(fake(7, base, all, 0xe7), best | HAI_CPU_AVX512_BF16 | HAI_CPU_AVX512_BF16_FAST);
  fake_7_1_eax = ~(1u << 5 | 1u << 4);
  assert_int_equal(fake(7, base, all, 0xe7), best);
  /* products of small integers: AVX-VNNI needs no AVX-512, AVX-512's needs all of it */
  fake_7_1_eax = 1u << 4;
  assert_int_equal(fake(7, base, all, 0xe7), best | HAI_CPU_AVX_VNNI);
  assert_int_equal(fake(7, base, all, 0x07), HAI_CPU_KNOWN | HAI_CPU_AVX2 | HAI_CPU_AVX_VNNI);
  assert_int_equal(fake(7, base, all & ~avx2, 0xe7), HAI_CPU_KNOWN);
  fake_7_1_eax = 0;
  fake_7_ecx = 1u << 11;
  assert_int_equal(fake(7, base, all, 0xe7), best | HAI_CPU_AVX512_VNNI);
  assert_int_equal(fake(7, base, all & ~dq, 0xe7), HAI_CPU_KNOWN | HAI_CPU_AVX2);
  assert_int_equal(fake(7, base, all, 0x07), HAI_CPU_KNOWN | HAI_CPU_AVX2);
  fake_7_ecx = ~(1u << 11);
  assert_int_equal(fake(7, base, all, 0xe7), best);
}

/* What this machine has is in the build, and the widest is chosen. */
static void test_the_widest_kernel_is_chosen(void **state) {
  (void)state;
  int cpu = hai_cpu_features(hai_cpuid, hai_xcr0);
  hyperattn_isa widest = HYPERATTN_ISA_SCALAR;
#ifndef HYPERATTN_NO_AVX2
  if (cpu & HAI_CPU_AVX2) widest = HYPERATTN_ISA_AVX2;
#endif
#ifndef HYPERATTN_NO_AVX512
  if (cpu & HAI_CPU_AVX512) widest = HYPERATTN_ISA_AVX512;
#endif
  assert_int_equal(hai_kernel_of(HYPERATTN_ISA_AUTO)->isa, widest);
}
#else
static void test_detection(void **state) {
  (void)state;
  skip();
}
static void test_the_widest_kernel_is_chosen(void **state) {
  (void)state;
  skip();
}
#endif

/* A kernel can be asked for where there is one, and only there. */
static void test_kernels_that_are_not_here_are_refused(void **state) {
  (void)state;
  for (int isa = HYPERATTN_ISA_AUTO; isa <= HYPERATTN_ISA_LAST; isa++)
    assert_int_equal(has_kernel((hyperattn_isa)isa), hai_kernel_of((hyperattn_isa)isa) != NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_neighbouring_buckets_differ_in_one_bit),
      cmocka_unit_test(test_parts_differ_by_at_most_one),
      cmocka_unit_test(test_hash),
      cmocka_unit_test(test_planes),
      cmocka_unit_test(test_counting_sort),
      cmocka_unit_test(test_offer),
      cmocka_unit_test(test_sums_are_unbiased),
      cmocka_unit_test(test_wrong_weights_fail_the_same_test),
      cmocka_unit_test(test_pins_and_columns),
      cmocka_unit_test(test_degenerate_weights),
      cmocka_unit_test(test_pairing),
      cmocka_unit_test(test_pairing_in_two_levels),
      cmocka_unit_test(test_detection),
      cmocka_unit_test(test_the_widest_kernel_is_chosen),
      cmocka_unit_test(test_kernels_that_are_not_here_are_refused),
      cmocka_unit_test(test_probabilities_are_mixed_with_uniform),
      cmocka_unit_test(test_sampling_weights),
      cmocka_unit_test(test_sinks_stay_out_of_means),
      cmocka_unit_test(test_sinks_take_no_heavy_places),
      cmocka_unit_test(test_a_bad_probe_has_no_say),
      cmocka_unit_test(test_every_rectangle_has_its_own_random_numbers),
      cmocka_unit_test(test_columns_are_distinct_and_reproducible),
  };
  return cmocka_run_group_tests_name("selection", tests, NULL, NULL);
}
