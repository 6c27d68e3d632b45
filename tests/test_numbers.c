/* The small functions (exponential, logarithm, root, random numbers) and every kernel's operations,
   against double. */
#include "support.h"

static void test_exp(void **state) {
  (void)state;
  for (uint32_t i = 0; i < 0xff800000u; i += 4099) { /* over all exponents, both signs */
    float x = hai_float(i);
    double want = exp((double)x);
    if (isnan(x)) continue;
    float got = hai_exp(x);
    if (want < 1.17549435e-38 * 0.999)
      assert_true(got == 0.0f);
    else if (want > 3.4028235e38 * 1.001)
      assert_true(got == INFINITY);
    else if (want > 1.1754945e-38 && want < 3.4028e38)
      assert_below(fabs((double)got / want - 1.0), 2e-7 + 1e-7 * fabs((double)x));
  }
  assert_true(hai_exp(-INFINITY) == 0.0f);
  assert_true(hai_exp(INFINITY) == INFINITY);
  assert_true(hai_exp(0.0f) == 1.0f);
  assert_true(isnan(hai_exp(NAN)));
}

static void test_log(void **state) {
  (void)state;
  for (uint32_t i = 1; i < 0x7f800000u; i += 4099) {
    double want = log((double)hai_float(i));
    assert_below(fabs((double)hai_log(hai_float(i)) - want), 2e-7 * (1.0 + fabs(want)));
  }
  assert_true(hai_log(1.0f) == 0.0f);
  assert_true(hai_log(0.0f) == -INFINITY);
  assert_true(hai_log(INFINITY) == INFINITY);
  assert_true(isnan(hai_log(-1.0f)) && isnan(hai_log(NAN)));
}

static void test_sqrt(void **state) {
  (void)state;
  for (uint32_t i = 0x00800000u; i < 0x7f800000u; i += 4099)
    assert_below(fabs((double)hai_sqrt(hai_float(i)) / sqrt((double)hai_float(i)) - 1.0), 2e-7);
  for (int i = 1; i <= 1024; i++) assert_true(stored(hai_sqrt((float)i * (float)i)) == (float)i);
  assert_true(hai_sqrt(0.0f) == 0.0f && hai_sqrt(INFINITY) == INFINITY);
}

static void test_log_add(void **state) {
  (void)state;
  assert_true(hai_log_add(-INFINITY, -INFINITY) == -INFINITY);
  assert_true(hai_log_add(3.0f, -INFINITY) == 3.0f && hai_log_add(-INFINITY, 3.0f) == 3.0f);
  assert_below(fabs((double)hai_log_add(1.0f, 2.0f) - log(exp(1.0) + exp(2.0))), 1e-6);
  assert_true(hai_log_add(1e5f, -1e5f) == 1e5f);
}

static void test_random_numbers(void **state) {
  (void)state;
  double sum = 0.0, square = 0.0;
  for (int i = 0; i < 20000; i++) {
    uint64_t r = hai_random(1, 2, 3, (uint64_t)i);
    double u = (double)(r >> 11) / 9007199254740992.0;
    sum += u, square += u * u;
    assert_true(r != hai_random(1, 2, 2, (uint64_t)i) && r != hai_random(1, 1, 3, (uint64_t)i) &&
                r != hai_random(0, 2, 3, (uint64_t)i));
    int64_t x = hai_draw(1000, 7, i % 7, r);
    assert_in_range(x, hai_cut(1000, 7, i % 7), hai_cut(1000, 7, i % 7 + 1) - 1);
    assert_in_range(hai_uniform(5, (uint64_t)1 << 61, r), 5, ((uint64_t)1 << 61) + 4);
  }
  assert_below(fabs(sum / 20000 - 0.5), 0.01);
  assert_below(fabs(square / 20000 - 1.0 / 3.0), 0.01);
}

/* Compares each operation of a kernel, over lanes, counts and dims, with its formula in double. Lanes
   outside the range, and what the formula does not mention, must keep their bits. */
enum { HAI_TEST_CHUNK = 64 };

static void check_kernel(const hai_kernel *k, int64_t dim, int n_keys, int begin, int end, uint64_t seed) {
  int lanes = k->lanes;
  float *rows = gaussians(lanes * dim, seed), *keys = gaussians(n_keys * dim, seed + 1),
        *o = gaussians(dim * lanes, seed + 2);
  float *packed = (float *)test_alloc((size_t)(dim * lanes) * sizeof(float)),
        *back = gaussians(lanes * dim, seed + 3);
  float *score = (float *)test_alloc((size_t)(HAI_TEST_CHUNK * lanes) * sizeof(float));
  const void *row[64] = {0}, *key[64];
  float *out[64] = {0}, m[64], l[128], factor[64], sum[64], log_weight[64];
  uint64_t visible[64], random = seed + 4;
  for (int i = 0; i < lanes; i++)
    row[i] = i == 1 ? NULL : rows + i * dim, out[i] = i == 2 ? NULL : back + i * dim;
  for (int j = 0; j < n_keys; j++)
    key[j] = keys + j * dim, log_weight[j] = test_gaussian(&random), visible[j] = splitmix(&random);
  k->pack(row, dim, 0.75f, packed);
  for (int i = 0; i < lanes; i++)
    for (int64_t t = 0; t < dim; t++)
      assert_true(packed[t * lanes + i] == (row[i] ? stored(0.75f * rows[i * dim + t]) : 0.0f));
  for (int j = 0; j < HAI_TEST_CHUNK * lanes; j++) score[j] = -77.0f;
  k->scores(packed, dim, key, n_keys, begin, end, score);
  double *want = (double *)test_alloc((size_t)(n_keys * lanes + 1) * sizeof(double));
  for (int j = 0; j < n_keys; j++)
    for (int i = 0; i < lanes; i++) {
      double s = 0.0, size = 1e-6;
      for (int64_t t = 0; t < dim; t++)
        s += (double)packed[t * lanes + i] * (double)keys[j * dim + t],
            size += fabs((double)packed[t * lanes + i] * (double)keys[j * dim + t]);
      want[j * lanes + i] = s;
      if (i < begin || i >= end)
        assert_true(score[j * lanes + i] == -77.0f);
      else
        assert_below(fabs((double)score[j * lanes + i] - s) / size, 3e-6);
    }
  for (int j = 0; j < n_keys; j++)
    score[j * lanes + begin] = -INFINITY; /* in this lane no score is finite */
  for (int masked = 0; masked < 2; masked++)
    for (int started = 0; started < 4; started++) { /* bit 0: there is a state; bit 1: no log-weights */
      float weights[64];
      memcpy(weights, log_weight, sizeof weights);
      if (started & 2) memset(log_weight, 0, sizeof log_weight);
      float *s = (float *)test_alloc((size_t)(HAI_TEST_CHUNK * lanes) * sizeof(float));
      memcpy(s, score, (size_t)(HAI_TEST_CHUNK * lanes) * sizeof(float));
      for (int i = 0; i < lanes; i++)
        m[i] = started & 1 ? test_gaussian(&random) * 5.0f : -INFINITY, l[i] = started & 1 ? 2.0f : 0.0f,
        l[lanes + i] = started & 1 ? 1e-8f : 0.0f, factor[i] = -5.0f;
      float m_before[64], l_before[128];
      memcpy(m_before, m, sizeof m), memcpy(l_before, l, sizeof l);
      int moved = k->softmax(s, n_keys, started & 2 ? NULL : log_weight, masked ? visible : NULL, begin,
                             end, m, l, factor);
      int differs = 0;
      for (int i = 0; i < lanes; i++) {
        differs |= m[i] != m_before[i];
        if (i < begin || i >= end) {
          assert_true(m[i] == m_before[i] && l[i] == l_before[i] && factor[i] == -5.0f);
          assert_true(l[lanes + i] == l_before[lanes + i]);
          continue;
        }
        double high = (double)m_before[i], total = 0.0;
        for (int j = 0; j < n_keys; j++)
          if (!masked || (visible[j] >> i & 1))
            high = fmax(high, (double)score[j * lanes + i] + (double)log_weight[j]);
        /* a reference that moves goes ahead of the scores, except in leaps (here none is nearly 8) */
        if (high > (double)m_before[i] && high < (double)m_before[i] + 8.0) high += log(2.0);
        double f = high == -INFINITY ? 0.0 : exp((double)m_before[i] - high);
        for (int j = 0; j < n_keys; j++) {
          double w = high == -INFINITY || (masked && !(visible[j] >> i & 1))
                         ? 0.0
                         : exp((double)score[j * lanes + i] + (double)log_weight[j] - high);
          assert_below(fabs((double)s[j * lanes + i] - w),
                       (4e-6 + 1e-6 * fabs(log(w + 1e-40))) * w + 1e-37);
          if (w == 0.0) assert_true(s[j * lanes + i] == 0.0f);
          total += w;
        }
        if (high == -INFINITY)
          assert_true(m[i] == -INFINITY);
        else
          assert_below(fabs((double)m[i] - high), 1e-6 * fmax(1.0, fabs(high)));
        if (high != -INFINITY) assert_below(fabs((double)factor[i] - f), 4e-6 * f + 1e-37);
        assert_below(fabs((double)l[i] - (f * (double)l_before[i] + total)), 5e-6 * (total + 1.0));
        /* a sum and what it lost have more digits than a float; a state whose reference stays is not
           rounded */
        double both = (double)l_before[i] + (double)l_before[lanes + i];
        double rest = (double)l[i] + (double)l[lanes + i] - (f == 0.0 ? 0.0 : (double)factor[i] * both);
        for (int j = 0; j < n_keys; j++) rest -= (double)s[j * lanes + i];
        assert_below(fabs(rest), 3e-6 * total + (f == 1.0 ? 1e-14 : 2e-7 * f) * both + 1e-37);
        assert_below(fabs((double)l[lanes + i]), 6e-8 * (double)l[i] + 1e-37);
      }
      assert_int_equal(moved, differs);
      if (masked && started == 1) { /* values, and sums over lanes, with these weights */
        float *o_before = (float *)test_alloc((size_t)(dim * lanes) * sizeof(float));
        memcpy(o_before, o, (size_t)(dim * lanes) * sizeof(float));
        k->values(s, n_keys, key, dim, factor, begin, end, o);
        for (int64_t t = 0; t < dim; t++)
          for (int i = 0; i < lanes; i++) {
            double x = (double)o_before[t * lanes + i] * (double)factor[i], size = fabs(x) + 1e-6;
            for (int j = 0; j < n_keys; j++)
              x += (double)s[j * lanes + i] * (double)keys[j * dim + t],
                  size += fabs((double)s[j * lanes + i] * (double)keys[j * dim + t]);
            if (i < begin || i >= end)
              assert_true(o[t * lanes + i] == o_before[t * lanes + i]);
            else
              assert_below(fabs((double)o[t * lanes + i] - x) / size, 3e-6);
          }
        k->sum_lanes(s, n_keys, begin, end, sum);
        for (int j = 0; j < n_keys; j++) {
          double x = 0.0;
          for (int i = begin; i < end; i++) x += (double)s[j * lanes + i];
          assert_below(fabs((double)sum[j] - x), 1e-5 * (x + 1e-30));
        }
        free(o_before);
      }
      memcpy(log_weight, weights, sizeof weights);
      free(s);
    }
  float *kept = (float *)test_alloc((size_t)(lanes * dim) * sizeof(float));
  memcpy(kept, back, (size_t)(lanes * dim) * sizeof(float));
  for (int i = 0; i < lanes; i++) factor[i] = 0.5f + (float)i;
  k->unpack(o, dim, factor, out);
  for (int i = 0; i < lanes; i++)
    for (int64_t t = 0; t < dim; t++)
      assert_true(back[i * dim + t] == (out[i] ? stored(o[t * lanes + i] * factor[i]) : kept[i * dim + t]));
  free(rows), free(keys), free(o), free(packed), free(back), free(score), free(want), free(kept);
}

/* Sums and addends that are not finite, or whose sum is not, and what the sum then is. */
static const float bad_sum[] = {1.0f, INFINITY, -INFINITY, 3e38f, NAN, INFINITY},
                   bad_o[] = {INFINITY, 2.0f, 1.0f, 3e38f, 1.0f, -INFINITY},
                   bad_want[] = {INFINITY, INFINITY, -INFINITY, INFINITY, NAN, NAN};
enum { N_BAD = sizeof bad_o / sizeof *bad_o };

static void assert_same_or_nan(float got, float want) {
  if (isnan(want))
    assert_true(isnan(got));
  else
    assert_true(got == want);
}

/* x = x * factor. */
static void check_scale(const hai_kernel *k, int64_t n_rows, int begin, int end, uint64_t seed) {
  int64_t n = n_rows * k->lanes;
  float *x = gaussians(n, seed), *before = gaussians(n, seed), factor[64];
  for (int i = 0; i < k->lanes; i++) factor[i] = 0.25f + (float)i / 7.0f;
  x[begin] = before[begin] = INFINITY;
  k->scale(x, n_rows, factor, begin, end);
  for (int64_t t = 0; t < n; t++) {
    int i = (int)(t % k->lanes);
    assert_true(x[t] == (i < begin || i >= end ? before[t] : stored(before[t] * factor[i])));
  }
  free(x), free(before);
}

/* carry leaves sum + o in two floats, exactly; gather rounds that to one. Where the sum is not finite,
   nothing counts as lost, and gather gives that sum. */
static void check_carry_and_gather(const hai_kernel *k, int64_t n_rows, int begin, int end, uint64_t seed) {
  int64_t n = n_rows * k->lanes;
  float *o = gaussians(n, seed), *sum = gaussians(n, seed + 1), *lost = gaussians(n, seed + 2);
  float *o_before = (float *)test_alloc((size_t)n * sizeof(float)),
        *sum_before = (float *)test_alloc((size_t)n * sizeof(float)),
        *lost_before = (float *)test_alloc((size_t)n * sizeof(float));
  for (int64_t t = 0; t < n; t++) o[t] *= 0.01f, lost[t] *= 1e-4f;
  for (int i = begin; i < end && i - begin < N_BAD; i++)
    sum[i] = bad_sum[i - begin], o[i] = bad_o[i - begin];
  memcpy(o_before, o, (size_t)n * sizeof(float)), memcpy(sum_before, sum, (size_t)n * sizeof(float));
  memcpy(lost_before, lost, (size_t)n * sizeof(float));
  k->carry(o, n_rows, begin, end, sum, lost);
  for (int64_t t = 0; t < n; t++) {
    int i = (int)(t % k->lanes);
    if (i < begin || i >= end) {
      assert_same_or_nan(sum[t], sum_before[t]);
      assert_true(o[t] == o_before[t] && lost[t] == lost_before[t]);
      continue;
    }
    assert_true(o[t] == 0.0f);
    if (t < k->lanes && i - begin < N_BAD) {
      assert_same_or_nan(sum[t], bad_want[i - begin]);
      assert_true(lost[t] == lost_before[t]);
      continue;
    }
    double rest = (double)sum_before[t] + (double)o_before[t] - (double)sum[t];
    assert_true(sum[t] == stored(sum_before[t] + o_before[t]));
    assert_true(lost[t] == (float)((double)lost_before[t] + rest));
  }
  memcpy(sum_before, sum, (size_t)n * sizeof(float));
  memcpy(lost_before, lost, (size_t)n * sizeof(float));
  for (int with_lost = 0; with_lost < 2; with_lost++) {
    for (int64_t t = 0; t < n; t++) o[t] = o_before[t] = t < k->lanes ? 0.0f : 3e-4f * (float)(t % 5);
    k->gather(o, n_rows, begin, end, sum, with_lost ? lost : NULL);
    for (int64_t t = 0; t < n; t++) {
      int i = (int)(t % k->lanes);
      double rest = (double)o_before[t] + (with_lost ? (double)lost[t] : 0.0), want = (double)sum[t] + rest;
      if (i < begin || i >= end)
        assert_true(o[t] == o_before[t]);
      else if (t < k->lanes && i - begin < N_BAD)
        assert_same_or_nan(o[t], bad_want[i - begin]);
      else
        assert_below(fabs((double)o[t] - want), 6e-8 * (fabs(want) + fabs(rest)));
    }
    assert_memory_equal(sum, sum_before, (size_t)n * sizeof(float)); /* gather only reads them */
    assert_memory_equal(lost, lost_before, (size_t)n * sizeof(float));
  }
  free(o), free(sum), free(lost), free(o_before), free(sum_before), free(lost_before);
}

/* The weights of every kernel: e^x for x <= 0, right to a few units in the last place. */
static void test_exp_of_kernels(void **state) {
  (void)state;
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_NEON; isa++) {
    const hai_kernel *k = hai_kernel_of((hyperattn_isa)isa);
    if (!k) continue;
    for (int i = 0; i < 20000; i++) {
      float score[64 * 64] = {0}, m[64] = {0}, l[64] = {0}, factor[64], x = -(float)i / 1024.0f;
      for (int lane = 0; lane < k->width; lane++) score[lane] = x;
      k->softmax(score, 1, NULL, NULL, 0, k->width, m, l, factor);
      assert_below(fabs((double)score[k->width - 1] / exp((double)x) - 1.0),
                   2.5e-7 + 1e-7 * fabs((double)x));
    }
  }
}

static void test_kernels(void **state) {
  (void)state;
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_NEON; isa++) {
    const hai_kernel *k = hai_kernel_of((hyperattn_isa)isa);
    /* its float32 operations are AVX-512's; test_dtypes tests the others */
    if (isa == HYPERATTN_ISA_AVX512_BF16) continue;
    if (!k) {
      print_message("SKIP: this machine or build has no %s kernel\n",
                    hyperattn_isa_name((hyperattn_isa)isa));
      continue;
    }
    assert_int_equal(k->isa, isa);
    static const int64_t dims[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100};
    uint64_t seed = 1;
    for (int d = 0; d < 13; d++)
      for (int n = 1; n <= HAI_TEST_CHUNK; n += n < 9 ? 1 : 11) {
        int registers = k->lanes / k->width;
        for (int first = 0; first<registers; first += registers> 4 ? 5 : 1)
          for (int last = first + 1; last <= registers; last += registers > 4 ? 5 : 1) {
            int begin = first * k->width, end = last * k->width;
            check_kernel(k, dims[d], n, begin, end, seed++);
            if (n != 1) continue; /* the functions below do not depend on keys */
            check_scale(k, dims[d], begin, end, seed);
            if (k->carry) check_carry_and_gather(k, dims[d], begin, end, seed);
          }
      }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_exp),
      cmocka_unit_test(test_log),
      cmocka_unit_test(test_sqrt),
      cmocka_unit_test(test_log_add),
      cmocka_unit_test(test_random_numbers),
      cmocka_unit_test(test_exp_of_kernels),
      cmocka_unit_test(test_kernels),
  };
  return cmocka_run_group_tests_name("numbers", tests, NULL, NULL);
}
