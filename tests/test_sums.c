/* Sums over very many keys, rounded weights and rounding modes must not make means and lse drift. */
#include "../examples/amx.h"
#include "../examples/halves.h"
#include "support.h"

#include <fenv.h>

enum { DIM = 32 }; /* a dim that AMX takes too */

static test_kernel kernels[8];
static int n_kernels;

static int set_up(void **state) {
  (void)state;
  ask_for_amx();
  n_kernels = find_kernels(kernels, DIM, DIM);
  return 0;
}

enum { LONGEST = IS_FAST_BUILD ? 22 : 17 };

static hyperattn_problem one_query(int64_t n_key, int64_t dim, const void *query, const void *key,
                                   const void *value, float *out, float *lse) {
  hyperattn_problem p;
  memset(&p, 0, sizeof p);
  p.batch = p.n_heads = p.n_kv_heads = p.n_query = 1, p.n_key = n_key, p.head_dim = p.value_dim = dim,
  p.scale = 1.0f;
  p.query.data = query, p.key.data = key, p.value.data = value, p.out.data = out, p.lse = lse;
  return p;
}

static void run_exact(hyperattn_problem p, hyperattn_isa isa) {
  hyperattn_params a = hyperattn_default_params();
  a.method = HYPERATTN_EXACT, a.isa = isa;
  size_t bytes = hyperattn_workspace_size(&p, &a, 1);
  void *workspace = test_alloc(bytes);
  assert_int_equal(hyperattn_forward(&p, &a, workspace, bytes), HYPERATTN_OK);
  free(workspace);
}

/* Scores that rise slowly from key to key move the reference of a row's sums again and again. */
static void test_slowly_rising_scores(void **state) {
  (void)state;
  static const double rates[] = {1e-6, 3e-6, 1e-4, 1e-3, 0.3};
  for (int power = 15; power <= LONGEST; power += LONGEST - 15)
    for (int r = 0; r < 5; r++) {
      int64_t n = (int64_t)1 << power;
      float *key = (float *)test_alloc((size_t)n * sizeof *key),
            *value = (float *)test_alloc((size_t)n * sizeof *value);
      float one = 1.0f, out, lse;
      double sum = 0.0, weighted = 0.0;
      for (int64_t j = 0; j < n; j++)
        key[j] = (float)((double)j * rates[r]), value[j] = j % 3 ? 1.0f : -0.5f;
      for (int64_t j = 0; j < n; j++) {
        double weight = exp((double)key[j] - (double)key[n - 1]);
        sum += weight, weighted += weight * (double)value[j];
      }
      double want = (double)key[n - 1] + log(sum),
             unit = (double)nextafterf((float)want, INFINITY) - (double)(float)want;
      for (int k = 0; k < n_kernels; k++) {
        hyperattn_problem p = one_query(n, 1, &one, key, value, &out, &lse);
        p.key.row_stride = p.value.row_stride = 1;
        run_exact(p, kernels[k].isa);
        assert_below(fabs((double)lse - want), 4.0 * unit);
        assert_below(fabs((double)out - weighted / sum), 2e-6);
      }
      free(key), free(value);
    }
}

/* Of 2^22 equal keys and values, the mean is the value. */
static void test_equal_rows(void **state) {
  (void)state;
  static const float values[] = {0.1f, 0.7f, 1.0f / 3.0f, 1.0f};
  for (int v = 0; v < 4; v++)
    for (int k = 0; k < n_kernels; k++) {
      float value = bf16_to_float(float_to_bf16(values[v])), rows[3][DIM], out[DIM], lse;
      uint16_t halves[3][DIM];
      int is_half = kernels[k].dtype == HYPERATTN_BF16;
      int64_t n = ((int64_t)1 << LONGEST) - 37, dim = is_half ? DIM : 1;
      if (!is_half) value = values[v];
      for (int t = 0; t < DIM; t++) {
        rows[0][t] = rows[1][t] = 0.25f, rows[2][t] = value;
        for (int i = 0; i < 3; i++) halves[i][t] = float_to_bf16(rows[i][t]);
      }
      hyperattn_problem p = is_half ? one_query(n, dim, halves[0], halves[1], halves[2], out, &lse)
                                    : one_query(n, dim, rows[0], rows[1], rows[2], out, &lse);
      /* row strides are 0, so all keys are one row */
      p.query.dtype = p.key.dtype = p.value.dtype = kernels[k].dtype;
      run_exact(p, kernels[k].isa);
      for (int t = 0; t < dim; t++)
        assert_below(fabs((double)out[t] / (double)value - 1.0), is_half ? 1e-6 : 2e-6);
      assert_below(fabs((double)lse - ((double)dim / 16.0 + log((double)n))), 4e-6);
    }
}

/* Values of 1 have the mean 1, whatever the weights are and however they are rounded. */
static void test_values_of_one(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 2, 63, 64, 65, 700, 6000};
  for (int approximated = 0; approximated < 3; approximated++)
    for (int i = 0; i < 7; i++)
      for (int k = 0; k < n_kernels; k++) {
        int64_t n = lengths[i], size = n * DIM;
        if (approximated && n < 700) continue;
        call c = new_call(1, 1, 1, n < 800 ? n : 800, n, DIM, DIM, 1, (uint64_t)(10 * i + k));
        uint16_t *halves = (uint16_t *)test_alloc((size_t)(3 * size) * sizeof *halves), *q = halves,
                 *key = q + size;
        for (int64_t j = 0; j < size; j++) {
          c.v[j] = 1.0f, halves[2 * size + j] = float_to_bf16(1.0f), key[j] = float_to_bf16(c.k[j]);
          if (j < c.problem.n_query * DIM) q[j] = float_to_bf16(c.q[j]);
        }
        if (kernels[k].dtype == HYPERATTN_BF16) {
          c.problem.query.data = q, c.problem.key.data = key, c.problem.value.data = halves + 2 * size;
          c.problem.query.dtype = c.problem.key.dtype = c.problem.value.dtype = HYPERATTN_BF16;
        }
        c.params = approximated == 1 ? hyperattn_paper_params() : judged_params();
        c.params.min_seq_len = 128, c.params.isa = kernels[k].isa;
        if (!approximated) c.params.method = HYPERATTN_EXACT;
        run(&c);
        for (int64_t j = 0; j < out_size(&c.problem); j++) assert_below(fabs((double)c.out[j] - 1.0), 1e-6);
        free(halves);
        free_call(&c);
      }
}

/* A row has the same bits whichever rows share its tile: those of other queries, which go on to later keys, and those
   of other heads. The lengths let queries on both sides of a chunk's end, and of several carries, share a tile. */
static void test_company_changes_nothing(void **state) {
  (void)state;
  enum { QUERIES = 40, HEADS = 3, ALONE = 17 }; /* one query, so often that they are not few */
  static const int64_t lengths[] = {2500, 9000, 12308, 16404};
  for (int n = 0; n < 4; n++)
    for (int k = 0; k < n_kernels; k++) {
      int64_t keys = lengths[n];
      call c = new_call(1, HEADS, 1, QUERIES, keys, DIM, DIM, 1, 7);
      c.params.method = HYPERATTN_EXACT, c.params.isa = kernels[k].isa;
      for (int64_t j = 0; j < keys * DIM; j++) c.k[j] += (float)(j / DIM) * 1e-4f; /* references move */
      run(&c);
      for (int i = 0; i < HEADS * QUERIES; i += 3) {
        hyperattn_problem p = c.problem;
        float out[ALONE][DIM], lse[ALONE];
        p.n_heads = 1, p.n_query = ALONE, p.n_key = keys - QUERIES + 1 + i % QUERIES;
        p.query.data = c.q + i * DIM, p.query.row_stride = 0, p.out.data = out, p.lse = lse;
        run_exact(p, kernels[k].isa);
        assert_memory_equal(out[ALONE - 1], c.out + i * DIM, sizeof out[0]);
        assert_true(lse[ALONE - 1] == c.lse[i]);
      }
      free_call(&c);
    }
}

/* A value that is not finite leaves the other coordinates right, also after sums have been carried. */
static void test_not_finite_late(void **state) {
  (void)state;
  enum { KEYS = 13000 };
  for (int k = 0; k < n_kernels; k++) {
    call c = new_call(1, 1, 1, 1, KEYS, DIM, DIM, 0, 9);
    c.params.method = HYPERATTN_EXACT, c.params.isa = kernels[k].isa;
    float before[DIM];
    run(&c);
    memcpy(before, c.out, sizeof before);
    c.v[2000 * DIM + 3] = INFINITY, c.v[9000 * DIM + 5] = -INFINITY, c.v[12999 * DIM + 7] = NAN;
    run(&c);
    for (int t = 0; t < DIM; t++)
      if (t == 3)
        assert_true(c.out[t] == INFINITY);
      else if (t == 5)
        assert_true(c.out[t] == -INFINITY);
      else if (t == 7)
        assert_true(isnan(c.out[t]));
      else
        assert_true(c.out[t] == before[t]);
    free_call(&c);
  }
}

/* Vector kernels round to nearest under any rounding mode of the caller's, and restore that mode; plain C
   rounds in the caller's mode. */
static void test_rounding_modes(void **state) {
  (void)state;
  static const int modes[] = {
#if defined(FE_UPWARD) && defined(FE_DOWNWARD) && defined(FE_TOWARDZERO)
    FE_UPWARD,
    FE_DOWNWARD,
    FE_TOWARDZERO,
#endif
    FE_TONEAREST
  };
  for (int k = 0; k < n_kernels; k++) {
    call c = new_call(1, 2, 1, 100, 5000, DIM, DIM, 1, 11);
    c.params.method = HYPERATTN_EXACT, c.params.isa = kernels[k].isa;
    run(&c);
    float *out = (float *)test_alloc((size_t)out_size(&c.problem) * sizeof *out);
    memcpy(out, c.out, (size_t)out_size(&c.problem) * sizeof *out);
    for (int m = 0; m < (int)(sizeof modes / sizeof *modes); m++) {
      if (fesetround(modes[m])) continue;
      run(&c);
      int after = fegetround();
      fesetround(FE_TONEAREST);
      assert_int_equal(after, modes[m]);
      for (int64_t i = 0; i < out_size(&c.problem); i++)
        if (kernels[k].isa == HYPERATTN_ISA_SCALAR)
          assert_below(fabs((double)c.out[i] - (double)out[i]), 2e-5);
        else
          assert_true(c.out[i] == out[i]);
    }
    free(out);
    free_call(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_slowly_rising_scores), cmocka_unit_test(test_equal_rows),
      cmocka_unit_test(test_values_of_one),        cmocka_unit_test(test_company_changes_nothing),
      cmocka_unit_test(test_not_finite_late),      cmocka_unit_test(test_rounding_modes),
  };
  return cmocka_run_group_tests_name("sums", tests, set_up, NULL);
}
