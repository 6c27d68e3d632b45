/* Dtypes: every conversion of 16 bits, and every mix of tensors. */
#include "../examples/amx.h"
#include "support.h"
#include "formats.h"

/* ---- Conversions, against the definition of the formats ---- */

/* x as the library rounds it. examples/halves.h, which other tests make their data with, must agree. */
static uint16_t put(hyperattn_dtype dtype, float x) {
  uint16_t half;
  hai_put(&half, dtype, 0, x);
  if (x == x) assert_int_equal(half, narrowed(dtype, x));
  return half;
}

static void assert_number(float x, double want) {
  int is_right = isnan(want) ? isnan(x) : (double)x == want && !signbit(x) == !signbit(want);
  if (!is_right) fail_msg("%g is not %g", (double)x, want);
}

static const hyperattn_isa isas[] = {HYPERATTN_ISA_SCALAR, HYPERATTN_ISA_AVX2, HYPERATTN_ISA_AVX512,
                                     HYPERATTN_ISA_NEON};
enum { N_ISAS = sizeof isas / sizeof *isas };

static void test_every_half_widens_exactly(void **state) {
  uint16_t *halves = (uint16_t *)test_alloc(65536 * sizeof *halves);
  float *wide = (float *)test_alloc(65536 * sizeof *wide);
  (void)state;
  for (unsigned i = 0; i < 65536; i++) halves[i] = (uint16_t)i;
  for (int dtype = HYPERATTN_F16; dtype <= HYPERATTN_BF16; dtype++) {
    for (unsigned i = 0; i < 65536; i++)
      assert_number(widened((hyperattn_dtype)dtype, halves[i]), value_of((hyperattn_dtype)dtype, i));
    for (int k = 0; k < N_ISAS; k++) {
      const hai_kernel *kernel = hai_kernel_of(isas[k]);
      if (!kernel) continue;
      kernel->widen(halves, (hyperattn_dtype)dtype, 65536, wide);
      for (unsigned i = 0; i < 65536; i++)
        assert_number(wide[i], value_of((hyperattn_dtype)dtype, halves[i]));
      for (int64_t n = 0; n < 40; n++) { /* any count, and no element beyond it is written */
        wide[n] = -7.0f;
        kernel->widen(halves + 16000, (hyperattn_dtype)dtype, n, wide);
        for (int64_t i = 0; i < n; i++)
          assert_number(wide[i], value_of((hyperattn_dtype)dtype, halves[16000 + i]));
        assert_true(wide[n] == -7.0f);
      }
    }
  }
  free(halves), free(wide);
}

/* A half that was widened is narrowed to itself, and so is every number nearer to it than to its neighbours;
   ties go to the even one. */
static void test_narrowing_rounds_to_nearest_even(void **state) {
  (void)state;
  for (int dtype = HYPERATTN_F16; dtype <= HYPERATTN_BF16; dtype++) {
    unsigned infinity = dtype == HYPERATTN_F16 ? 0x7c00 : 0x7f80;
    for (unsigned i = 0; i < 65536; i++) {
      unsigned sign = i & 0x8000, size = i & 0x7fff;
      double low = value_of((hyperattn_dtype)dtype, i), high, middle;
      if (size > infinity) {
        float nan = hai_get(&(uint16_t){(uint16_t)i}, (hyperattn_dtype)dtype, 0);
        assert_true(isnan(value_of((hyperattn_dtype)dtype, put((hyperattn_dtype)dtype, nan))));
        assert_true(isnan(value_of((hyperattn_dtype)dtype, narrowed((hyperattn_dtype)dtype, nan))));
        continue;
      }
      assert_int_equal(put((hyperattn_dtype)dtype, (float)low), i);
      if (size == infinity) continue;
      /* halfway to the next half; for the largest that is the next power of two */
      high = size + 1 == infinity ? 2.0 * low - value_of((hyperattn_dtype)dtype, i - 1)
                                  : value_of((hyperattn_dtype)dtype, i + 1);
      middle = (low + high) / 2.0;
      assert_true((double)(float)middle == middle);
      assert_int_equal(put((hyperattn_dtype)dtype, (float)middle), sign | (size + (size & 1)));
      assert_int_equal(put((hyperattn_dtype)dtype, nextafterf((float)middle, 0.0f)), i);
      assert_int_equal(put((hyperattn_dtype)dtype, nextafterf((float)middle, sign ? -INFINITY : INFINITY)),
                       i + 1);
    }
  }
}

/* Numbers far below the smallest half, down to the smallest float, become zeros with their sign. */
static void test_too_small_for_a_half(void **state) {
  (void)state;
  for (int exponent = -149; exponent < -25; exponent++)
    for (int sign = 0; sign < 2; sign++) {
      float x = ldexpf(sign ? -1.0f : 1.0f, exponent);
      assert_int_equal(put(HYPERATTN_F16, x), sign << 15);
      if (exponent > -149) assert_int_equal(put(HYPERATTN_F16, nextafterf(2.0f * x, 0.0f)), sign << 15);
    }
}

static void test_q8_0_widens_exactly(void **state) {
  unsigned char block[2 * 34];
  float wide[65];
  (void)state;
  for (int k = 0; k < N_ISAS; k++) {
    const hai_kernel *kernel = hai_kernel_of(isas[k]);
    for (unsigned i = 0; kernel && i < 65536; i++) {
      uint16_t scale[2] = {(uint16_t)i, (uint16_t)(i * 40503u)};
      int64_t n = 1 + (int64_t)i % 64;
      for (int b = 0; b < 2; b++) {
        memcpy(block + b * 34, &scale[b], 2);
        for (unsigned t = 0; t < 32; t++)
          block[b * 34 + 2 + t] = (unsigned char)(i * 7 + t * 8 + (unsigned)b);
      }
      wide[n] = -7.0f;
      kernel->widen(block, HYPERATTN_Q8_0, n, wide);
      assert_true(wide[n] == -7.0f);
      for (int64_t t = 0; t < n; t++) {
        double d = f16_value(scale[t / 32]), q = (signed char)block[t / 32 * 34 + 2 + t % 32];
        assert_number(wide[t], d * q);
      }
    }
  }
}

/* ---- Mixes ---- */

/* A call on tensors of any dtypes gives the bits of the call on the same numbers in float32, rounded to
   out's dtype. Tests every mix, or a few of them. */
static void assert_mix_equals_floats(hyperattn_params params, int is_every, int64_t n_query, int64_t n_key,
                                     int64_t head_dim, int64_t value_dim, int causal) {
  for (int q = 0; q < 3; q++)
    for (int k = 0; k <= HYPERATTN_CUSTOM; k++)
      for (int v = 0; v <= HYPERATTN_CUSTOM; v++) {
        int is_bf16 = q == HYPERATTN_BF16 && k == HYPERATTN_BF16 && v == HYPERATTN_BF16;
        if (is_bf16 && hai_kernel_of_bf16(params.isa, head_dim, value_dim))
          continue; /* rows are not widened then; tested below */
        if (!is_every && (q + k + v) % 5) continue;
        call c = new_call(1, 4, 2, n_query, n_key, head_dim, value_dim, causal, 7), mixed;
        int64_t q_stride, k_stride, v_stride;
        hyperattn_report reports[2][4];
        c.params = params;
        void *query = encode(c.q, 4 * n_query, head_dim, (hyperattn_dtype)q, &q_stride);
        void *key = encode(c.k, 2 * n_key, head_dim, (hyperattn_dtype)k, &k_stride);
        void *value = encode(c.v, 2 * n_key, value_dim, (hyperattn_dtype)v, &v_stride);
        c.problem.report = reports[0];
        run(&c);
        for (int o = 0; o < 3; o++) {
          size_t size = o == HYPERATTN_F32 ? 4 : 2;
          mixed = c;
          mixed.out = NULL, mixed.lse = (float *)test_alloc((size_t)lse_size(&c.problem) * sizeof(float));
          char *out = (char *)test_alloc((size_t)out_size(&c.problem) * size);
          mixed.problem.lse = mixed.lse, mixed.problem.report = reports[1];
          set_input(&mixed.problem.query, query, (hyperattn_dtype)q, 4, n_query, q_stride);
          set_input(&mixed.problem.key, key, (hyperattn_dtype)k, 2, n_key, k_stride);
          set_input(&mixed.problem.value, value, (hyperattn_dtype)v, 2, n_key, v_stride);
          mixed.problem.out.data = out, mixed.problem.out.dtype = (hyperattn_dtype)o;
          memset(out, 0xff, (size_t)out_size(&c.problem) * size);
          run(&mixed);
          assert_memory_equal(mixed.lse, c.lse, (size_t)lse_size(&c.problem) * sizeof(float));
          for (int64_t i = 0; i < out_size(&c.problem); i++) {
            if (o == HYPERATTN_F32) {
              assert_memory_equal(out + 4 * i, &c.out[i], 4);
              continue;
            }
            uint16_t half = narrowed((hyperattn_dtype)o, c.out[i]);
            assert_memory_equal(out + 2 * i, &half, 2);
          }
          if (o == HYPERATTN_F32) assert_memory_equal(reports[0], reports[1], sizeof reports[0]);
          for (int h = 0; h < 4; h++) /* the report divides by the norm of the rounded out */
            assert_below(fabs((double)reports[1][h].error - (double)reports[0][h].error),
                         0.01 * (double)reports[0][h].error);
          free(out), free(mixed.lse);
        }
        free(query), free(key), free(value);
        free_call(&c);
      }
}

static void test_mixes_exact(void **state) {
  hyperattn_params p = hyperattn_default_params();
  int widest = hai_kernel_of(HYPERATTN_ISA_AUTO)->width;
  (void)state;
  p.method = HYPERATTN_EXACT;
  for (int k = 0; k < N_ISAS; k++) {
    p.isa = isas[k];
    if (!hai_kernel_of(p.isa)) continue;
    int is_every = hai_kernel_of(p.isa)->width == widest;
    assert_mix_equals_floats(p, is_every, 70, 90, 40, 33, 1);
    assert_mix_equals_floats(p, is_every, 5, 66, 64, 96, 0);
    assert_mix_equals_floats(p, 0, 2, 4200, 33, 7, 1);
  }
}

static void test_mixes_approximated(void **state) {
  hyperattn_params p = small_params(hyperattn_linear_params(), 24, 12, 10);
  int widest = hai_kernel_of(HYPERATTN_ISA_AUTO)->width;
  (void)state;
  for (int k = 0; k < N_ISAS; k++) {
    p.isa = isas[k];
    if (!hai_kernel_of(p.isa)) continue;
    int is_every = hai_kernel_of(p.isa)->width == widest;
    p.order = HYPERATTN_ORDER_SORTLSH; /* keys are hashed */
    assert_mix_equals_floats(p, is_every, 110, 130, 40, 33, 1);
    p.order = HYPERATTN_ORDER_PROBED, p.tolerance = 0.05f;
    assert_mix_equals_floats(p, is_every, 90, 130, 40, 33, 0);
    p.order = HYPERATTN_ORDER_POSITION, p.tolerance = 0.0f;
  }
}

/* ---- Mistakes, strides, merging ---- */

static void test_mistakes_of_dtypes(void **state) {
  call c = new_call(1, 2, 2, 40, 50, 64, 32, 1, 3);
  hyperattn_status status;
  int64_t k_stride;
  (void)state;
  void *key = encode(c.k, 2 * 50, 64, HYPERATTN_Q8_0, &k_stride);
  size_t bytes = hyperattn_workspace_size(&c.problem, &c.params, 1) + 65536;
  void *workspace = test_alloc(bytes);
#define STATUS(code)                                                   \
  status = hyperattn_forward(&c.problem, &c.params, workspace, bytes); \
  assert_string_equal(hyperattn_status_string(status), hyperattn_status_string(HYPERATTN_##code))
  set_input(&c.problem.key, key, HYPERATTN_Q8_0, 2, 50, 64);
  STATUS(OK);
  c.problem.key.row_stride = 65;
  STATUS(ERROR_STRIDE_Q8_0);
  c.problem.key.row_stride = 64, c.problem.key.batch_stride = 7; /* with one batch, its stride is ignored */
  STATUS(OK);
  c.problem.key.data = (const char *)key + 1;
  STATUS(ERROR_ALIGNMENT);
  c.problem.key.data = key, c.problem.key.row_stride = PTRDIFF_MAX / 34 / 40 * 32;
  STATUS(ERROR_EXTENT);
  c.problem.key.row_stride = 64;
  /* 32 elements of Q8_0 take 34 bytes: out in the last two bytes of the keys overlaps them, out behind
     them does not */
  c.problem.out.dtype = HYPERATTN_F16, c.problem.out.data = (char *)key + 2 * 50 * 68 - 2;
  STATUS(ERROR_OVERLAP);
  c.problem.out.data = (char *)c.out + 1;
  STATUS(ERROR_ALIGNMENT);
  c.problem.out.data = (char *)c.out + 2;
  STATUS(OK);
  c.problem.out.dtype = HYPERATTN_Q8_0;
  STATUS(ERROR_DTYPE_UNSUPPORTED);
  c.problem.out.dtype = HYPERATTN_F32, c.problem.out.data = c.out, c.problem.query.dtype = HYPERATTN_Q8_0;
  STATUS(ERROR_DTYPE_UNSUPPORTED);
#undef STATUS
  free(workspace), free(key);
  free_call(&c);
}

/* Keys from the last to the first, by a negative stride. */
static void test_negative_strides_of_q8_0(void **state) {
  call c = new_call(1, 1, 1, 20, 50, 64, 32, 0, 5), d = new_call(1, 1, 1, 20, 50, 64, 32, 0, 5);
  int64_t stride;
  (void)state;
  c.params.method = d.params.method = HYPERATTN_EXACT;
  char *key = (char *)encode(c.k, 50, 64, HYPERATTN_Q8_0, &stride);
  for (int j = 0; j < 50; j++) memcpy(d.k + 64 * j, c.k + 64 * (49 - j), 64 * sizeof(float));
  set_input(&c.problem.key, key + 49 * 68, HYPERATTN_Q8_0, 1, 50, 64);
  c.problem.key.row_stride = -64;
  run(&c), run(&d);
  assert_memory_equal(c.out, d.out, 20 * 32 * sizeof(float));
  free(key), free_call(&c), free_call(&d);
}

/* The 16-bit results for two halves of the keys merge to the result for all keys. */
static void test_merging_halves(void **state) {
  (void)state;
  for (int dtype = HYPERATTN_F16; dtype <= HYPERATTN_BF16; dtype++) {
    call c = new_call(1, 1, 1, 20, 60, 16, 16, 0, 9);
    uint16_t part[2][20 * 16], kept[20 * 16];
    float lse[2][20];
    double *out = (double *)test_alloc(20 * 16 * sizeof(double)),
           *sum = (double *)test_alloc(20 * sizeof(double));
    float merged[20 * 16];
    reference(&c.problem, out, sum);
    c.params.method = HYPERATTN_EXACT, c.problem.n_key = 30, c.problem.out.dtype = (hyperattn_dtype)dtype;
    for (int i = 0; i < 2; i++) {
      c.problem.out.data = part[i], c.problem.lse = lse[i];
      c.problem.key.data = c.k + 30 * 16 * i, c.problem.value.data = c.v + 30 * 16 * i;
      run(&c);
    }
    hyperattn_output a = c.problem.out;
    hyperattn_input b = {0};
    set_input(&b, part[1], (hyperattn_dtype)dtype, 1, 20, 16);
    a.data = part[0];
    assert_int_equal(hyperattn_merge(1, 1, 20, 16, a, lse[0], b, lse[1]), HYPERATTN_OK);
    for (int i = 0; i < 20 * 16; i++) merged[i] = (float)value_of((hyperattn_dtype)dtype, part[0][i]);
    assert_below(relative_error(merged, out, 20 * 16), dtype == HYPERATTN_F16 ? 6e-4 : 5e-3);
    assert_below(lse_error(lse[0], sum, 20), 2e-6);
    for (int i = 0; i < 20; i++) lse[1][i] = -INFINITY; /* if one part is empty, the other keeps its bits */
    memcpy(kept, part[0], sizeof kept);
    assert_int_equal(hyperattn_merge(1, 1, 20, 16, a, lse[0], b, lse[1]), HYPERATTN_OK);
    assert_memory_equal(kept, part[0], sizeof kept);
    b.dtype = HYPERATTN_Q8_0;
    assert_int_equal(hyperattn_merge(1, 1, 20, 16, a, lse[0], b, lse[1]),
                     HYPERATTN_ERROR_DTYPE_UNSUPPORTED);
    free(out), free(sum);
    free_call(&c);
  }
}

/* ---- Kernels that read bfloat16 ---- */

/* The ISAs that have kernels for bfloat16, and the one under test. */
static const hyperattn_isa bf16_isas[] = {HYPERATTN_ISA_AVX512_BF16, HYPERATTN_ISA_AMX_BF16,
                                          HYPERATTN_ISA_NEON};
static hyperattn_isa bf16_isa = HYPERATTN_ISA_AUTO;

static void for_each_bf16_isa(void (*test)(void)) {
  for (int i = 0; i < 3; i++) {
    bf16_isa = bf16_isas[i];
    if (hai_kernel_of(bf16_isa) && hai_kernel_of_bf16(bf16_isa, 576, 576))
      test();
    else
      print_message("SKIP: no %s here\n", hyperattn_isa_name(bf16_isa));
  }
  bf16_isa = HYPERATTN_ISA_AUTO; /* whichever kernel that is */
  test();
}

/* Scores are products of bfloat16 summed in float32, whatever the scale. Weights are rounded to bfloat16;
   the lse is that of the weights before rounding. */
static void assert_bf16_kernel(int64_t n_query, int64_t n_key, int64_t head_dim, int64_t value_dim,
                               int causal, float scale) {
  call c = new_call(1, 4, 2, n_query, n_key, head_dim, value_dim, causal, 21);
  int64_t stride;
  double *out = (double *)test_alloc((size_t)out_size(&c.problem) * sizeof(double));
  double *lse = (double *)test_alloc((size_t)lse_size(&c.problem) * sizeof(double));
  void *query = encode(c.q, 4 * n_query, head_dim, HYPERATTN_BF16, &stride);
  void *key = encode(c.k, 2 * n_key, head_dim, HYPERATTN_BF16, &stride);
  void *value = encode(c.v, 2 * n_key, value_dim, HYPERATTN_BF16, &stride);
  c.problem.scale = scale;
  reference(&c.problem, out, lse);
  set_input(&c.problem.query, query, HYPERATTN_BF16, 4, n_query, head_dim);
  set_input(&c.problem.key, key, HYPERATTN_BF16, 2, n_key, head_dim);
  set_input(&c.problem.value, value, HYPERATTN_BF16, 2, n_key, value_dim);
  c.params.method = HYPERATTN_EXACT, c.params.isa = bf16_isa;
  run(&c);
  assert_below(lse_error(c.lse, lse, lse_size(&c.problem)), 3e-6);
  double error = relative_error(c.out, out, out_size(&c.problem));
  assert_below(error, 0x1p-9);
  if (bf16_isa != HYPERATTN_ISA_AUTO && head_dim % 2 == 0 && n_key > 1 && n_query > 16)
    assert_above(error, 1e-5); /* so weights were rounded: it was that kernel */
  free(out), free(lse), free(query), free(key), free(value);
  free_call(&c);
}

static void check_bf16_kernel(void) {
  assert_bf16_kernel(70, 90, 64, 64, 1, 0.0f);
  /* an odd number of keys, dims that are no multiple of 8, a scale */
  assert_bf16_kernel(5, 67, 40, 33, 0, 0.37f);
  assert_bf16_kernel(131, 200, 2, 1, 1, -1.3f);
  assert_bf16_kernel(9, 33, 33, 8, 0, 0.0f); /* with an odd head_dim rows are widened */
  assert_bf16_kernel(1, 1, 128, 128, 1, 0.0f);
  /* dims that AMX takes, and counts that do not fill a tile */
  assert_bf16_kernel(97, 150, 96, 48, 1, 0.0f);
  assert_bf16_kernel(60, 79, 32, 16, 0, 0.7f);
}

/* An infinite or NaN value changes no bit of a row that may not see it. */
static void check_that_bad_values_are_hidden_in(int dim) {
  static const uint16_t bad[] = {0x7f80, 0x7fc0, 0xff80};
  call c = new_call(1, 2, 1, 60, 60, 32, dim, 1, 33);
  int64_t stride;
  float clean[2 * 60 * 48];
  void *query = encode(c.q, 120, 32, HYPERATTN_BF16, &stride),
       *key = encode(c.k, 60, 32, HYPERATTN_BF16, &stride);
  uint16_t *value = (uint16_t *)encode(c.v, 60, dim, HYPERATTN_BF16, &stride);
  set_input(&c.problem.query, query, HYPERATTN_BF16, 2, 60, 32);
  set_input(&c.problem.key, key, HYPERATTN_BF16, 1, 60, 32);
  set_input(&c.problem.value, value, HYPERATTN_BF16, 1, 60, dim);
  c.params.method = HYPERATTN_EXACT, c.params.isa = bf16_isa;
  run(&c);
  memcpy(clean, c.out, (size_t)(120 * dim) * sizeof(float));
  for (int b = 0; b < 3; b++)
    for (int t = 0; t < dim; t += dim - 1) {
      uint16_t good = value[37 * dim + t];
      value[37 * dim + t] = bad[b];
      run(&c);
      for (int row = 0; row < 120; row++)
        for (int k = 0; k < dim; k++) {
          if (row % 60 >= 37 && k == t)
            assert_false(isfinite(c.out[row * dim + k]));
          else
            assert_memory_equal(&c.out[row * dim + k], &clean[row * dim + k], sizeof(float));
        }
      value[37 * dim + t] = good;
    }
  free(query), free(key), free(value);
  free_call(&c);
}

static void check_that_bad_values_are_hidden(void) {
  check_that_bad_values_are_hidden_in(20);
  check_that_bad_values_are_hidden_in(48); /* a dim that AMX takes */
}

/* Weights are rounded to bfloat16 for `values`, and what it divides by is the sum of the rounded ones.
   Values that form the identity show the rounded weights, wherever a kernel puts them. */
static void check_rounding_in(const hai_kernel *k, int n_keys, int begin, int end) {
  enum { CHUNK = 64, MOST_LANES = 64 };
  static uint16_t identity[CHUNK][CHUNK];
  float joined[CHUNK / 2 * CHUNK];
  const void *value[CHUNK], *values = joined;
  int lanes = k->lanes;
  size_t score_size = (size_t)((CHUNK + CHUNK / 2) * lanes);
  float *weight = (float *)test_alloc(score_size * sizeof(float)), factor[MOST_LANES], sum[MOST_LANES],
        *o = gaussians(CHUNK * lanes, 5), *o_before = gaussians(CHUNK * lanes, 5);
  float *before = (float *)test_alloc((size_t)(n_keys * lanes) * sizeof(float));
  uint64_t random = (uint64_t)n_keys;
  assert_true(lanes <= MOST_LANES);
  forget(weight, score_size * sizeof(float));
  for (int j = 0; j < CHUNK; j++) identity[j][j] = float_to_bf16(1.0f), value[j] = identity[j];
  for (int j = 0; j < n_keys * lanes; j++)
    before[j] = weight[j] = j % 5 ? (float)splitmix_uniform(&random) : 0.0f;
  for (int i = 0; i < lanes; i++) factor[i] = i % 3 ? 0.3f : 1.0f, sum[i] = 2.0f + (float)i;
  k->round(weight, n_keys, factor, begin, end, sum);
  assert_memory_equal(weight, before, (size_t)(n_keys * lanes) * sizeof(float));
  uint32_t entered = k->enter ? k->enter() : 0;
  k->join(value, n_keys, CHUNK, joined);
  k->values(weight, n_keys, &values, CHUNK, factor, begin, end, o);
  if (k->leave) k->leave(entered);
  for (int i = 0; i < lanes; i++) {
    double want = (2.0 + i) * (double)factor[i];
    for (int j = 0; j < CHUNK; j++) {
      double was = (double)o_before[j * lanes + i] * (double)factor[i],
             rounded = j < n_keys ? (double)bf16_to_float(float_to_bf16(before[j * lanes + i])) : 0.0;
      want += rounded;
      if (i < begin || i >= end)
        assert_true(o[j * lanes + i] == o_before[j * lanes + i]);
      else
        assert_below(fabs((double)o[j * lanes + i] - (was + rounded)), 1.5e-7 * (fabs(was) + rounded));
    }
    if (i < begin || i >= end)
      assert_true(sum[i] == 2.0f + (float)i);
    else
      assert_below(fabs((double)sum[i] / want - 1.0), 1e-6);
  }
  free(weight), free(before), free(o), free(o_before);
}

static void check_rounding(void) {
  const hai_kernel *k = hai_kernel_of_bf16(bf16_isa, 64, 64);
  for (int n_keys = 1; k && n_keys <= 64; n_keys += n_keys < 9 ? 1 : 11)
    for (int begin = 0; begin < k->lanes; begin += k->width)
      for (int end = begin + k->width; end <= k->lanes; end += k->width)
        check_rounding_in(k, n_keys, begin, end);
}

/* In approximated regions the choices are those of the float32 kernel, and the result differs by rounding
   only. */
static void check_approximation(void) {
  call c = new_call(1, 1, 1, 400, 400, 32, 32, 1, 41);
  int64_t stride;
  float plain[400 * 32];
  void *query = encode(c.q, 400, 32, HYPERATTN_BF16, &stride),
       *key = encode(c.k, 400, 32, HYPERATTN_BF16, &stride);
  void *value = encode(c.v, 400, 32, HYPERATTN_BF16, &stride);
  c.params = small_params(hyperattn_linear_params(), 24, 12, 10);
  c.params.heavy_keys = 0,
  c.params.sampling = HYPERATTN_SAMPLE_UNIFORM; /* so that rounding changes no choice */
  c.params.order = HYPERATTN_ORDER_SORTLSH;
  run(&c);
  memcpy(plain, c.out, sizeof plain);
  set_input(&c.problem.query, query, HYPERATTN_BF16, 1, 400, 32);
  set_input(&c.problem.key, key, HYPERATTN_BF16, 1, 400, 32);
  set_input(&c.problem.value, value, HYPERATTN_BF16, 1, 400, 32);
  c.params.isa = bf16_isa;
  run(&c);
  double want[400 * 32];
  for (int i = 0; i < 400 * 32; i++) want[i] = (double)plain[i];
  assert_below(relative_error(c.out, want, 400 * 32), 0x1p-9);
  free(query), free(key), free(value);
  free_call(&c);
}

/* Once permission is granted, the first call already finds AMX. */
static void test_amx_is_there_at_once(void **state) {
  (void)state;
  const hai_kernel *first = hai_kernel_of(HYPERATTN_ISA_AMX_BF16);
  assert_ptr_equal(first, hai_kernel_of(HYPERATTN_ISA_AMX_BF16));
}

/* AMX takes whole tiles only, the other kernels pairs. A kernel that cannot take the dims is replaced by
   the next. */
static void test_who_reads_bf16(void **state) {
  (void)state;
  if (hai_kernel_of(HYPERATTN_ISA_AMX_BF16)) {
    static const int64_t whole[][2] = {{32, 16}, {64, 64}, {576, 48}},
                         rest[][2] = {{34, 16}, {32, 8}, {48, 64}};
    for (int i = 0; i < 3; i++) {
      assert_int_equal(hai_kernel_of_bf16(HYPERATTN_ISA_AMX_BF16, whole[i][0], whole[i][1])->isa,
                       HYPERATTN_ISA_AMX_BF16);
      assert_int_equal(hai_kernel_of_bf16(HYPERATTN_ISA_AUTO, whole[i][0], whole[i][1])->isa,
                       HYPERATTN_ISA_AMX_BF16);
      assert_int_equal(hai_kernel_of_bf16(HYPERATTN_ISA_AMX_BF16, rest[i][0], rest[i][1])->isa,
                       HYPERATTN_ISA_AVX512_BF16);
    }
  }
  if (hai_kernel_of(HYPERATTN_ISA_AVX512_BF16))
    assert_int_equal(hai_kernel_of_bf16(HYPERATTN_ISA_AVX512_BF16, 32, 16)->isa, HYPERATTN_ISA_AVX512_BF16);
#if defined(__x86_64__) && !defined(HYPERATTN_NO_SIMD)
  /* dims that AMX cannot take: vdpbf16ps, but only if it is faster */
  if (hai_kernel_of(HYPERATTN_ISA_AVX512_BF16))
    assert_int_equal(hai_kernel_of_bf16(HYPERATTN_ISA_AUTO, 34, 16) != NULL,
                     (hai_cpu() & HAI_CPU_AVX512_BF16_FAST) != 0);
#endif
  assert_null(hai_kernel_of_bf16(HYPERATTN_ISA_AUTO, 33, 16));
  assert_null(hai_kernel_of_bf16(HYPERATTN_ISA_SCALAR, 32, 16));
}

static void test_bf16_kernels(void **state) {
  (void)state;
  for_each_bf16_isa(check_bf16_kernel);
}
static void test_bf16_kernels_round_weights(void **state) {
  (void)state;
  for_each_bf16_isa(check_rounding);
}
static void test_bf16_kernels_hide_bad_values(void **state) {
  (void)state;
  for_each_bf16_isa(check_that_bad_values_are_hidden);
}
static void test_bf16_kernels_approximate_alike(void **state) {
  (void)state;
  for_each_bf16_isa(check_approximation);
}

int main(int argc, char **argv) {
  ask_for_amx();
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_amx_is_there_at_once), /* must run first */
      cmocka_unit_test(test_every_half_widens_exactly),
      cmocka_unit_test(test_narrowing_rounds_to_nearest_even),
      cmocka_unit_test(test_too_small_for_a_half),
      cmocka_unit_test(test_q8_0_widens_exactly),
      cmocka_unit_test(test_mixes_exact),
      cmocka_unit_test(test_mixes_approximated),
      cmocka_unit_test(test_mistakes_of_dtypes),
      cmocka_unit_test(test_negative_strides_of_q8_0),
      cmocka_unit_test(test_merging_halves),
      cmocka_unit_test(test_who_reads_bf16),
      cmocka_unit_test(test_bf16_kernels),
      cmocka_unit_test(test_bf16_kernels_round_weights),
      cmocka_unit_test(test_bf16_kernels_hide_bad_values),
      cmocka_unit_test(test_bf16_kernels_approximate_alike),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
