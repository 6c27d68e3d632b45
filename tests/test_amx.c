/* The kernel for AMX, its tile registers emulated, against double: most machines lack them. */
#if defined(__x86_64__) && defined(__linux__) && !defined(HYPERATTN_NO_AMX) && \
    !defined(HYPERATTN_NO_AVX512) && !defined(HYPERATTN_NO_SIMD) &&            \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define HAS_KERNEL
#include "tiles_emulated.h"
#endif

#include "../examples/halves.h"
#include "support.h"

#ifdef HAS_KERNEL
enum { LANES = 48, CHUNK = 64, MOST_DIM = 96 };

static uint16_t rows[CHUNK][MOST_DIM], query[LANES][MOST_DIM];
static float packed[(MOST_DIM / 2 + 1) * LANES], score[(CHUNK + CHUNK / 2) * LANES], o[MOST_DIM * LANES],
    o_before[MOST_DIM * LANES], joined[CHUNK / 2 * MOST_DIM];

static void fill(uint16_t *to, int n, uint64_t seed) {
  float *x = gaussians(n, seed);
  for (int i = 0; i < n; i++) to[i] = float_to_bf16(x[i]);
  free(x);
}

/* Keys and values lie in another order than in memory where `apart` is set: not as tile registers load them. */
static void point_at_rows(const void **row, int n, int apart) {
  for (int j = 0; j < n; j++) row[j] = rows[apart ? j * 37 % CHUNK : j];
}

static int index_of(const void *row) { return (int)(((const uint16_t *)row - &rows[0][0]) / MOST_DIM); }

static void check_scores(const hai_kernel *k, int dim, int n_keys, int begin, int end, int apart) {
  const void *key[CHUNK], *q[LANES];
  point_at_rows(key, n_keys, apart);
  for (int i = 0; i < LANES; i++) q[i] = i % 7 == 3 ? NULL : query[i];
  k->pack(q, dim, 0.5f, packed);
  for (int j = 0; j < CHUNK * LANES; j++) score[j] = -3.0f;
  k->scores(packed, dim, key, n_keys, begin, end, score);
  for (int j = 0; j < n_keys; j++)
    for (int i = 0; i < LANES; i++) {
      double want = 0.0, size = 1e-6;
      for (int t = 0; t < dim && q[i]; t++) {
        double x =
            0.5 * (double)bf16_to_float(query[i][t]) * (double)bf16_to_float(((const uint16_t *)key[j])[t]);
        want += x, size += fabs(x);
      }
      if (i < begin || i >= end)
        assert_true(score[j * LANES + i] == -3.0f);
      else
        assert_below(fabs((double)score[j * LANES + i] - want), 2e-6 * size);
    }
}

static void check_values(const hai_kernel *k, int dim, int n_keys, int begin, int end, int apart) {
  const void *value[CHUNK], *values = joined;
  float factor[LANES], sum[LANES];
  uint64_t random = (uint64_t)(n_keys * 31 + begin);
  point_at_rows(value, n_keys, apart);
  for (int j = 0; j < n_keys * LANES; j++) score[j] = (float)splitmix_uniform(&random);
  for (int i = 0; i < LANES; i++) factor[i] = n_keys % 2 ? 1.0f : 0.25f + (float)i, sum[i] = 1.0f;
  for (int j = 0; j < dim * LANES; j++) o[j] = o_before[j] = (float)splitmix_uniform(&random);
  for (int j = 0; j < CHUNK / 2 * MOST_DIM; j++) joined[j] = NAN;
  for (int j = CHUNK * LANES; j < (CHUNK + CHUNK / 2) * LANES; j++) score[j] = NAN;
  k->round(score, n_keys, factor, begin, end, sum);
  k->join(value, n_keys, dim, joined);
  k->values(score, n_keys, &values, dim, factor, begin, end, o);
  for (int t = 0; t < dim; t++)
    for (int i = 0; i < LANES; i++) {
      double want = (double)o_before[t * LANES + i] * (double)factor[i], size = fabs(want);
      for (int j = 0; j < n_keys; j++) {
        double x = (double)bf16_to_float(float_to_bf16(score[j * LANES + i])) *
                   (double)bf16_to_float(rows[index_of(value[j])][t]);
        want += x, size += fabs(x);
      }
      if (i < begin || i >= end)
        assert_true(o[t * LANES + i] == o_before[t * LANES + i]);
      else
        assert_below(fabs((double)o[t * LANES + i] - want), 2e-6 * size);
    }
}

static void test_products(void **state) {
  const hai_kernel *k = &hai_kernel_amx;
  (void)state;
  if (!hai_kernel_of(HYPERATTN_ISA_AVX512_BF16)) skip(); /* the rest of the kernel is AVX512-BF16 */
  fill(&rows[0][0], CHUNK * MOST_DIM, 1);
  fill(&query[0][0], LANES * MOST_DIM, 2);
  for (int n_keys = 1; n_keys <= CHUNK; n_keys += n_keys < 3 || n_keys > 60 ? 1 : 7)
    for (int begin = 0; begin < LANES; begin += 16)
      for (int end = begin + 16; end <= LANES; end += 16)
        for (int apart = 0; apart < 2; apart++) {
          check_scores(k, n_keys % 2 ? 96 : 32, n_keys, begin, end, apart);
          check_values(k, n_keys % 2 ? 80 : 16, n_keys, begin, end, apart);
        }
}
#else
static void test_products(void **state) {
  (void)state;
  skip();
}
#endif

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_products)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
