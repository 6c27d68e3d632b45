/* Template: few queries, by an ISA's primitives. Coordinates lie in the lanes, and queries are rows [n][dim].
   Included by kernel_vector.h, with its parameters and primitives, and these:
     HAI_STEP_REGISTERS      registers of a step: 32 coordinates, a Q8_0 block
     HAI_MOST_ROWS           queries that are taken at once, 2 or 4
     HAI_MOST_QUERIES        up to how many queries of a head tiles are slower (docs/decode.md)
     most(x)                 the largest of all lanes, none of which is NaN
     sums4(to, a, b, c, d)   to[0 .. 3] = the sums of all lanes of each register
   Rows of keys and values are read as they lie. Sums are named variables for the reason that kernel_tile.h
   gives; their order does not depend on how many rows are taken at once. */

enum { HAI_ISA(row_step) = HAI_STEP_REGISTERS * HAI_WIDTH };
typedef char HAI_ISA(step_is_a_block)[HAI_ISA(row_step) == HAI_Q8_0_ELEMENTS ? 1 : -1];

/* The scale of the step at `at`, for Q8_0. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(row_scale)(const hyperattn_dtype dtype, const char *at) {
  return dtype == HYPERATTN_Q8_0 ? HAI_ISA(half)(at) : HAI_ISA(zero)();
}
/* Starts to load a step's bytes. */
HAI_TARGET HAI_INLINE void HAI_ISA(row_ahead)(const hyperattn_dtype dtype, const char *at) {
  HAI_PREFETCH(at);
  if (hai_is_f32(dtype)) HAI_PREFETCH(at + HAI_ALIGN);
}
/* Register k of the step at `at`. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(row_register)(const hyperattn_dtype dtype, const char *at,
                                                       const int k, HAI_VECTOR scale) {
  const int t = k * HAI_WIDTH;
  if (hai_is_f32(dtype)) return HAI_ISA(load)(HAI_AS(const float *, HAI_AS(const void *, at)) + t);
  if (dtype == HYPERATTN_F16) return HAI_ISA(f16)(at + 2 * t);
  if (dtype == HYPERATTN_BF16) return HAI_ISA(bf16)(at + 2 * t);
  return HAI_ISA(mul)(scale, HAI_ISA(int8)(at + 2 + t));
}

#if HAI_STEP_REGISTERS == 2
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1)
#elif HAI_STEP_REGISTERS == 4
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3)
#else
#define HAI_EACH_OF_STEP(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3) X(r, 4) X(r, 5) X(r, 6) X(r, 7)
#endif

/* Every dtype that is read, in the order of hyperattn_dtype, by each number of queries. */
#if HAI_MOST_ROWS == 4
#define HAI_EACH_COUNT(X, dtype) X(dtype, 1) X(dtype, 2) X(dtype, 3) X(dtype, 4)
#else
#define HAI_EACH_COUNT(X, dtype) X(dtype, 1) X(dtype, 2)
#endif
#if HAI_HALVES
#define HAI_EACH_FEW(X) \
  HAI_EACH_COUNT(X, F32) HAI_EACH_COUNT(X, F16) HAI_EACH_COUNT(X, BF16) HAI_EACH_COUNT(X, Q8_0)
#else
#define HAI_EACH_FEW(X) HAI_EACH_COUNT(X, F32)
#endif

/* ---- Scores: score[i][j] = sum_t query[i][t] key[j][t] ---- */

#define HAI_ROW_SUMS(r) \
  HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0, c##r##3 = c##r##0;
#define HAI_ROW_ADD(r, i, k) \
  if (n > i) c##r##i = HAI_ISA(fma)(x, HAI_ISA(load)(query + i * dim + (k)*HAI_WIDTH), c##r##i);
#define HAI_ROW_TIMES(r, k)                       \
  x = HAI_ISA(row_register)(dtype, at, k, scale); \
  HAI_ROW_ADD(r, 0, k)                            \
  HAI_ROW_ADD(r, 1, k)                            \
  HAI_ROW_ADD(r, 2, k)                            \
  HAI_ROW_ADD(r, 3, k)
#define HAI_ROW_KEY(r)                         \
  at = key[r] + begin;                         \
  HAI_ISA(row_ahead)(dtype, ahead[r] + begin); \
  scale = HAI_ISA(row_scale)(dtype, at);       \
  HAI_EACH_OF_STEP(HAI_ROW_TIMES, r)
#define HAI_ROW_OUT(i) \
  if (n > i) HAI_ISA(sums4)(score + i * HAI_CHUNK, c0##i, c1##i, c2##i, c3##i);

/* n queries meet 4 keys at once: a register of a key is loaded once for all queries, one of a query once for
   all keys. More keys, for fewer queries, would be rows in more places, which processors foresee less well.
   c<key><query> are the sums. Registers: AVX-512 4 x 4 sums, x and scale, 18 of 32; AVX2 and NEON 4 x 2 and
   these, 10. */
HAI_TARGET HAI_INLINE void HAI_ISA(some_scores)(const hyperattn_dtype dtype, const int n, hai_index dim,
                                                const char *const *key, const char *const *ahead,
                                                const float *query, float *score) {
  HAI_VECTOR x, scale;
  const char *at;
  hai_index begin = 0, t;
  HAI_ROWS_4(HAI_ROW_SUMS)
  for (t = 0; t < dim; t += HAI_ISA(row_step)) {
    HAI_ROWS_4(HAI_ROW_KEY)
    begin += hai_offset(dtype, HAI_ISA(row_step));
    query += HAI_ISA(row_step);
  }
  HAI_ROW_OUT(0)
  HAI_ROW_OUT(1)
  HAI_ROW_OUT(2)
  HAI_ROW_OUT(3)
}

/* All keys of a chunk; a list of rows has HAI_CHUNK entries that can be read. */
HAI_TARGET HAI_INLINE void HAI_ISA(few_scores_of)(const hyperattn_dtype dtype, const int n,
                                                  const hai_few_rows *keys, const float *query,
                                                  float *score) {
  int j;
  for (j = 0; j < keys->n; j += 4)
    HAI_ISA(some_scores)(dtype, n, keys->dim, keys->row + j, keys->ahead + j, query, score + j);
}

/* A function for each dtype and number of queries: unoptimised, one frame would hold the registers of all. */
#define HAI_SCORES_NAME(dtype, n) HAI_ISA(few_scores_##dtype##_##n),
#define HAI_SCORES_OF(dtype, n)                                                                   \
  HAI_TARGET HAI_APART void HAI_ISA(few_scores_##dtype##_##n)(const hai_few_rows *keys,           \
                                                              const float *query, float *score) { \
    HAI_ISA(few_scores_of)(HYPERATTN_##dtype, n, keys, query, score);                             \
  }
HAI_EACH_FEW(HAI_SCORES_OF)
static void HAI_ISA(few_scores)(const hai_few_rows *keys, const float *query, int n, float *score) {
  static void (*const scores[])(const hai_few_rows *, const float *,
                                float *) = {HAI_EACH_FEW(HAI_SCORES_NAME)};
  scores[HAI_AS(int, keys->dtype) * HAI_MOST_ROWS + n - 1](keys, query, score);
}

/* ---- Softmax ---- */

/* Exponentials need the largest score, so all rows look for theirs first. Where m stays, factor is exactly
   1. */
HAI_TARGET static void HAI_ISA(few_softmax)(float *score, int n, int n_keys, const float *log_weight,
                                            const uint64_t *visible, float *m, float *l, float *factor) {
  int i, j;
  for (i = 0; i < n; i++) {
    HAI_VECTOR high = HAI_ISA(set1)(m[i]);
    float before = m[i];
    for (j = 0; j < n_keys; j += HAI_WIDTH) {
      float *at = score + i * HAI_CHUNK + j;
      HAI_VECTOR s = HAI_ISA(load)(at);
      if (log_weight) s = HAI_ISA(add)(s, HAI_ISA(load)(log_weight + j));
      s = HAI_ISA(show)(s, visible[i] >> j);
      HAI_ISA(store)(at, s);
      high = HAI_ISA(max)(s, high);
    }
    m[i] = hai_moved(before, HAI_ISA(most)(high));
    factor[i] = m[i] == before ? 1.0f : hai_exp(before - hai_shift(m[i]));
  }
  for (i = 0; i < n; i++) {
    HAI_VECTOR shift = HAI_ISA(set1)(hai_shift(m[i])), sum = HAI_ISA(zero)();
    for (j = 0; j < n_keys; j += HAI_WIDTH) {
      float *at = score + i * HAI_CHUNK + j;
      HAI_VECTOR s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
      HAI_ISA(store)(at, s);
      sum = HAI_ISA(add)(sum, s);
    }
    l[i] = l[i] * factor[i] + HAI_ISA(sum)(sum);
  }
}

/* ---- Values: o[i][t] = o[i][t] factor[i] + sum_j weight[i][j] value[j][t] ---- */

#define HAI_VALUE_SUM(k) HAI_VECTOR c0##k = HAI_ISA(zero)(), c1##k = c0##k, c2##k = c0##k, c3##k = c0##k;
#define HAI_VALUE_READ(k)                                                             \
  at = value + (k) / HAI_STEP_REGISTERS * hai_offset(dtype, HAI_ISA(row_step));       \
  if ((k) % HAI_STEP_REGISTERS == 0) HAI_ISA(row_ahead)(dtype, ahead + (at - value)); \
  if ((k) % HAI_STEP_REGISTERS == 0) scale = HAI_ISA(row_scale)(dtype, at);           \
  x = HAI_ISA(row_register)(dtype, at, (k) % HAI_STEP_REGISTERS, scale);
#define HAI_VALUE_TIMES(i, k) \
  if (n > i) c##i##k = HAI_ISA(fma)(x, w##i, c##i##k);
#define HAI_VALUE_ADD(k)                                                                    \
  if (registers > k) {                                                                      \
    HAI_VALUE_READ(k)                                                                       \
    HAI_VALUE_TIMES(0, k) HAI_VALUE_TIMES(1, k) HAI_VALUE_TIMES(2, k) HAI_VALUE_TIMES(3, k) \
  }
#define HAI_VALUE_STORE(i, k) \
  if (n > i && registers > k) HAI_ISA(row_add)(o + i * dim + (k)*HAI_WIDTH, f##i, c##i##k);
#define HAI_VALUE_OUT(k) \
  HAI_VALUE_STORE(0, k)  \
  HAI_VALUE_STORE(1, k)  \
  HAI_VALUE_STORE(2, k)  \
  HAI_VALUE_STORE(3, k)
#define HAI_VALUE_WEIGHT(i) (n > i ? HAI_ISA(set1)(weight[i * HAI_CHUNK + j]) : HAI_ISA(zero)())
#define HAI_VALUE_FACTOR(i) (n > i ? HAI_ISA(set1)(factor[i]) : HAI_ISA(zero)())

/* o = o * factor + sum, a register of it. */
HAI_TARGET HAI_INLINE void HAI_ISA(row_add)(float *o, HAI_VECTOR factor, HAI_VECTOR sum) {
  HAI_ISA(store)(o, HAI_ISA(fma)(HAI_ISA(load)(o), factor, sum));
}

/* So many registers of the outputs of n rows, from the coordinate `begin` bytes into each value. */
HAI_TARGET HAI_INLINE void HAI_ISA(some_values)(const hyperattn_dtype dtype, const int n,
                                                const int registers, const hai_few_rows *values,
                                                hai_index begin, const float *weight, const float *factor,
                                                float *o) {
  HAI_VECTOR x, scale = HAI_ISA(zero)(), w0, w1, w2, w3;
  HAI_VECTOR f0 = HAI_VALUE_FACTOR(0), f1 = HAI_VALUE_FACTOR(1), f2 = HAI_VALUE_FACTOR(2),
             f3 = HAI_VALUE_FACTOR(3);
  const char *at, *value, *ahead;
  hai_index dim = values->dim;
  int j;
  HAI_ROWS_8(HAI_VALUE_SUM)
  for (j = 0; j < values->n; j++) {
    value = values->row[j] + begin;
    ahead = values->ahead[j] + begin;
    w0 = HAI_VALUE_WEIGHT(0);
    w1 = HAI_VALUE_WEIGHT(1);
    w2 = HAI_VALUE_WEIGHT(2);
    w3 = HAI_VALUE_WEIGHT(3);
    HAI_ROWS_8(HAI_VALUE_ADD)
  }
  HAI_ROWS_8(HAI_VALUE_OUT)
}

/* As many registers at a time as there are sums for, whole steps: c<query><register>. Registers: AVX-512 4 x
   4 sums, 4 weights, x and scale, 22 of 32; AVX2 2 x 4, 12 of 16; NEON 2 x 8, 20 of 32. */
HAI_TARGET HAI_INLINE void HAI_ISA(few_values_of)(const hyperattn_dtype dtype, const int n,
                                                  const hai_few_rows *values, const float *weight,
                                                  const float *factor, float *o) {
  const int most = n == 1 || (n == 2 && HAI_N_ROWS == 8) ? 8 : 4;
  hai_index t = 0, done;
  for (; t < values->dim; t += done, o += done) {
    hai_index left = (values->dim - t) / HAI_WIDTH, begin = hai_offset(dtype, t);
    if (most == 8 && left >= 8) {
      HAI_ISA(some_values)(dtype, n, 8, values, begin, weight, factor, o);
      done = 8 * HAI_WIDTH;
    } else if (HAI_STEP_REGISTERS <= 4 && left >= 4) {
      HAI_ISA(some_values)(dtype, n, 4, values, begin, weight, factor, o);
      done = 4 * HAI_WIDTH;
    } else {
      HAI_ISA(some_values)(dtype, n, HAI_STEP_REGISTERS, values, begin, weight, factor, o);
      done = HAI_ISA(row_step);
    }
  }
}

#define HAI_VALUES_NAME(dtype, n) HAI_ISA(few_values_##dtype##_##n),
#define HAI_VALUES_OF(dtype, n)                                                         \
  HAI_TARGET HAI_APART void HAI_ISA(few_values_##dtype##_##n)(                          \
      const hai_few_rows *values, const float *weight, const float *factor, float *o) { \
    HAI_ISA(few_values_of)(HYPERATTN_##dtype, n, values, weight, factor, o);            \
  }
HAI_EACH_FEW(HAI_VALUES_OF)
static void HAI_ISA(few_values)(const hai_few_rows *values, const float *weight, const float *factor, int n,
                                float *o) {
  static void (*const add[])(const hai_few_rows *, const float *, const float *,
                             float *) = {HAI_EACH_FEW(HAI_VALUES_NAME)};
  add[HAI_AS(int, values->dtype) * HAI_MOST_ROWS + n - 1](values, weight, factor, o);
}

static const hai_few_kernel HAI_ISA(few) = {
    /* scores */ HAI_ISA(few_scores),
    /* softmax */ HAI_ISA(few_softmax),
    /* values */ HAI_ISA(few_values),
    /* most */ HAI_MOST_ROWS,
    /* queries */ HAI_MOST_QUERIES,
    /* step */ HAI_ISA(row_step)};

#undef HAI_EACH_OF_STEP
#undef HAI_EACH_COUNT
#undef HAI_EACH_FEW
#undef HAI_SCORES_NAME
#undef HAI_SCORES_OF
#undef HAI_VALUES_NAME
#undef HAI_VALUES_OF
#undef HAI_ROW_SUMS
#undef HAI_ROW_ADD
#undef HAI_ROW_TIMES
#undef HAI_ROW_KEY
#undef HAI_ROW_OUT
#undef HAI_VALUE_SUM
#undef HAI_VALUE_READ
#undef HAI_VALUE_TIMES
#undef HAI_VALUE_ADD
#undef HAI_VALUE_STORE
#undef HAI_VALUE_OUT
#undef HAI_VALUE_WEIGHT
#undef HAI_VALUE_FACTOR
