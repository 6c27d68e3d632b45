/* ---- The register tile: said once for every vector ISA ----
   HAI_MICRO(isa, R, N) defines, for a tile of N registers, the two inner loops over R rows at a time:
     hai_scores_<N>_<isa>   score[r][i] = sum_t query[t][i] key_r[t]                      for R keys
     hai_values_<N>_<isa>   o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[r]   for R coordinates
   A step loads N packed vectors a<register>, broadcasts R elements in turn, does N R fused multiply-adds. An
   element is a float, or a pair of bfloat16 whose two products are summed (hai_dot_<isa>).
   The accumulators c<row><register> have names: compilers keep an array of them in registers at -O3 only.
   With one register eight sums hide their own latency and little else: its scores take four steps at
   a time. */

#define HAI_ROWS_1(X, isa, N) X(0, isa, N)
#define HAI_ROWS_4(X, isa, N) X(0, isa, N) X(1, isa, N) X(2, isa, N) X(3, isa, N)
#define HAI_ROWS_8(X, isa, N) HAI_ROWS_4(X, isa, N) X(4, isa, N) X(5, isa, N) X(6, isa, N) X(7, isa, N)
#define HAI_ROWS_16(X, isa, N) \
  HAI_ROWS_8(X, isa, N)        \
  X(8, isa, N)                 \
  X(9, isa, N) X(10, isa, N) X(11, isa, N) X(12, isa, N) X(13, isa, N) X(14, isa, N) X(15, isa, N)

#define HAI_ZERO_1(r, isa) c##r##0 = hai_zero_##isa();
#define HAI_ZERO_2(r, isa) HAI_ZERO_1(r, isa) c##r##1 = hai_zero_##isa();
#define HAI_ZERO_3(r, isa) HAI_ZERO_2(r, isa) c##r##2 = hai_zero_##isa();
#define HAI_ZERO(r, isa, N) HAI_ZERO_##N(r, isa)

#define HAI_FMA_1(r, isa) c##r##0 = hai_dot_##isa(a0, b, c##r##0);
#define HAI_FMA_2(r, isa) HAI_FMA_1(r, isa) c##r##1 = hai_dot_##isa(a1, b, c##r##1);
#define HAI_FMA_3(r, isa) HAI_FMA_2(r, isa) c##r##2 = hai_dot_##isa(a2, b, c##r##2);

#define HAI_LOAD_1(isa, p) a0 = hai_load_##isa(p);
#define HAI_LOAD_2(isa, p) HAI_LOAD_1(isa, p) a1 = hai_load_##isa((p) + HAI_WIDTH_##isa);
#define HAI_LOAD_3(isa, p) HAI_LOAD_2(isa, p) a2 = hai_load_##isa((p) + 2 * HAI_WIDTH_##isa);

#define HAI_STORE_1(r, isa, p) hai_store_##isa(p, c##r##0);
#define HAI_STORE_2(r, isa, p) HAI_STORE_1(r, isa, p) hai_store_##isa((p) + HAI_WIDTH_##isa, c##r##1);
#define HAI_STORE_3(r, isa, p) HAI_STORE_2(r, isa, p) hai_store_##isa((p) + 2 * HAI_WIDTH_##isa, c##r##2);

#define HAI_MERGE_1(r, isa, p) c##r##0 = hai_fma_##isa(hai_load_##isa(p), a0, c##r##0);
#define HAI_MERGE_2(r, isa, p) \
  HAI_MERGE_1(r, isa, p) c##r##1 = hai_fma_##isa(hai_load_##isa((p) + HAI_WIDTH_##isa), a1, c##r##1);
#define HAI_MERGE_3(r, isa, p) \
  HAI_MERGE_2(r, isa, p) c##r##2 = hai_fma_##isa(hai_load_##isa((p) + 2 * HAI_WIDTH_##isa), a2, c##r##2);

#define HAI_NAMES_1(r, isa) hai_vector_##isa c##r##0;
#define HAI_NAMES_2(r, isa) HAI_NAMES_1(r, isa) hai_vector_##isa c##r##1;
#define HAI_NAMES_3(r, isa) HAI_NAMES_2(r, isa) hai_vector_##isa c##r##2;
#define HAI_NAMES(r, isa, N) HAI_NAMES_##N(r, isa)
#define HAI_VECTORS_1(isa) hai_vector_##isa a0, b;
#define HAI_VECTORS_2(isa) HAI_VECTORS_1(isa) hai_vector_##isa a1;
#define HAI_VECTORS_3(isa) HAI_VECTORS_2(isa) hai_vector_##isa a2;

#define HAI_KEY_ROW(r, isa, N) const HAI_ELEMENT_##isa *k##r = HAI_AS(const HAI_ELEMENT_##isa *, key[r]);
#define HAI_KEY_STEP(r, isa, N) \
  b = hai_each_##isa(k##r + t); \
  HAI_FMA_##N(r, isa)
#define HAI_SCORE_STEP(isa, R, N) \
  HAI_LOAD_##N(isa, query) HAI_ROWS_##R(HAI_KEY_STEP, isa, N) t++, query += HAI_LANES_##isa;
#define HAI_SCORE_STEPS_1(isa, R) \
  HAI_SCORE_STEP(isa, R, 1) HAI_SCORE_STEP(isa, R, 1) HAI_SCORE_STEP(isa, R, 1) HAI_SCORE_STEP(isa, R, 1)
#define HAI_SCORE_STEPS_2(isa, R) HAI_SCORE_STEP(isa, R, 2)
#define HAI_SCORE_STEPS_3(isa, R) HAI_SCORE_STEP(isa, R, 3)
enum { HAI_STEPS_1 = 4, HAI_STEPS_2 = 1, HAI_STEPS_3 = 1 };
#define HAI_SCORE_OUT(r, isa, N) HAI_STORE_##N(r, isa, score + r * HAI_LANES_##isa)
#define HAI_VALUE_STEP(r, isa, N) \
  b = hai_each_##isa(v + r);      \
  HAI_FMA_##N(r, isa)
#define HAI_VALUE_OUT(r, isa, N) \
  HAI_MERGE_##N(r, isa, o + r * HAI_LANES_##isa) HAI_STORE_##N(r, isa, o + r * HAI_LANES_##isa)

/* Scores of pairs are multiplied by the factor that lies behind the packed queries. */
#define HAI_TIMES_1(r, isa) c##r##0 = hai_mul_##isa(c##r##0, a0);
#define HAI_TIMES_2(r, isa) HAI_TIMES_1(r, isa) c##r##1 = hai_mul_##isa(c##r##1, a1);
#define HAI_TIMES_3(r, isa) HAI_TIMES_2(r, isa) c##r##2 = hai_mul_##isa(c##r##2, a2);
#define HAI_TIMES(r, isa, N) HAI_TIMES_##N(r, isa)
#define HAI_FINISH_PAIRS(isa, R, N) HAI_LOAD_##N(isa, query) HAI_ROWS_##R(HAI_TIMES, isa, N)

/* clang-format off */
#define HAI_MICRO_SCORES(isa, R, N)                                                    \
  HAI_TARGET_##isa static void hai_scores_##N##_##isa(const float *query, hai_index dim, \
                                                      const void *const *key, float *score) { \
    hai_index t;                                                                         \
    HAI_VECTORS_##N(isa)                                                               \
    HAI_ROWS_##R(HAI_NAMES, isa, N)                                                    \
    HAI_ROWS_##R(HAI_KEY_ROW, isa, N)                                                  \
    HAI_ROWS_##R(HAI_ZERO, isa, N)                                                     \
    for (t = 0; t + HAI_STEPS_##N <= dim;) {                                           \
      HAI_SCORE_STEPS_##N(isa, R)                                                      \
    }                                                                                  \
    while (t < dim) {                                                                  \
      HAI_SCORE_STEP(isa, R, N)                                                        \
    }                                                                                  \
    HAI_FINISH_##isa(isa, R, N)                                                        \
    HAI_ROWS_##R(HAI_SCORE_OUT, isa, N)                                                \
  }
#define HAI_MICRO_VALUES(isa, R, N, name)                                              \
  HAI_TARGET_##isa static void hai_##name##_##N##_##isa(const float *weight, int n_keys, \
                                                        const void *const *value, hai_index at, \
                                                        const float *factor, float *o) { \
    int j;                                                                             \
    HAI_VECTORS_##N(isa)                                                               \
    HAI_ROWS_##R(HAI_NAMES, isa, N)                                                    \
    HAI_ROWS_##R(HAI_ZERO, isa, N)                                                     \
    for (j = 0; j < n_keys; j++, weight += HAI_LANES_##isa) {                          \
      const HAI_ELEMENT_##isa *v = HAI_AS(const HAI_ELEMENT_##isa *, value[j]) + at;           \
      HAI_LOAD_##N(isa, weight)                                                        \
      HAI_ROWS_##R(HAI_VALUE_STEP, isa, N)                                             \
    }                                                                                  \
    HAI_LOAD_##N(isa, factor)                                                          \
    HAI_ROWS_##R(HAI_VALUE_OUT, isa, N)                                                \
  }
/* clang-format on */
#define HAI_MICRO(isa, R, N)          \
  HAI_MICRO_SCORES(isa, R, N)         \
  HAI_MICRO_VALUES(isa, R, N, values) \
  HAI_MICRO_VALUES(isa, 1, N, value)

/* The largest score goes by four maxima in turn, since one would wait for itself; exponentials wait for
   it, so all registers look for theirs first. */
#define HAI_SHOW(isa, r)                                                     \
  s = hai_load_##isa(at + (r)*HAI_LANES_##isa);                              \
  if (log_weight) s = hai_add_##isa(s, hai_set1_##isa(log_weight[j + (r)])); \
  if (visible) s = hai_show_##isa(s, visible[j + (r)] >> i);                 \
  hai_store_##isa(at + (r)*HAI_LANES_##isa, s);                              \
  high##r = hai_max_##isa(s, high##r);
#define HAI_HIGH(isa, r) high##r = hai_max_##isa(hai_load_##isa(at + (r)*HAI_LANES_##isa), high##r);
#define HAI_SOFTMAX(isa)                                                                               \
  HAI_TARGET_##isa static int hai_softmax_##isa(float *score, int n_keys, const float *log_weight,     \
                                                const uint64_t *visible, int begin, int end, float *m, \
                                                float *l, float *factor) {                             \
    int moved = 0, i, j;                                                                               \
    for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                   \
      hai_vector_##isa s, high0 = hai_load_##isa(m + i), high1 = high0, high2 = high0, high3 = high0;  \
      float *at = score + i;                                                                           \
      for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES_##isa) {                                \
        if (log_weight || visible) {                                                                   \
          HAI_SHOW(isa, 0) HAI_SHOW(isa, 1) HAI_SHOW(isa, 2) HAI_SHOW(isa, 3)                          \
        } else {                                                                                       \
          HAI_HIGH(isa, 0) HAI_HIGH(isa, 1) HAI_HIGH(isa, 2) HAI_HIGH(isa, 3)                          \
        }                                                                                              \
      }                                                                                                \
      for (; j < n_keys; j++, at += HAI_LANES_##isa) {                                                 \
        HAI_SHOW(isa, 0)                                                                               \
      }                                                                                                \
      high0 = hai_max_##isa(hai_max_##isa(high0, high1), hai_max_##isa(high2, high3));                 \
      s = hai_load_##isa(m + i);                                                                       \
      high0 = hai_move_##isa(s, high0);                                                                \
      moved |= hai_differ_##isa(s, high0);                                                             \
      s = hai_exp_##isa(hai_sub_##isa(s, hai_or_zero_##isa(high0)));                                   \
      hai_store_##isa(factor + i, s);                                                                  \
      hai_store_##isa(m + i, high0);                                                                   \
    }                                                                                                  \
    for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                   \
      hai_vector_##isa s, t, shift = hai_or_zero_##isa(hai_load_##isa(m + i));                         \
      hai_vector_##isa sum = hai_zero_##isa(), odd = sum, next, part;                                  \
      float *at = score + i;                                                                           \
      for (j = 0; j + 2 <= n_keys; j += 2, at += 2 * HAI_LANES_##isa) {                                \
        s = hai_exp_##isa(hai_sub_##isa(hai_load_##isa(at), shift));                                   \
        t = hai_exp_##isa(hai_sub_##isa(hai_load_##isa(at + HAI_LANES_##isa), shift));                 \
        hai_store_##isa(at, s);                                                                        \
        hai_store_##isa(at + HAI_LANES_##isa, t);                                                      \
        sum = hai_add_##isa(sum, s);                                                                   \
        odd = hai_add_##isa(odd, t);                                                                   \
      }                                                                                                \
      if (j < n_keys) {                                                                                \
        s = hai_exp_##isa(hai_sub_##isa(hai_load_##isa(at), shift));                                   \
        hai_store_##isa(at, s);                                                                        \
        sum = hai_add_##isa(sum, s);                                                                   \
      }                                                                                                \
      t = hai_load_##isa(factor + i);                                                                  \
      s = hai_mul_##isa(hai_load_##isa(l + i), t);                                                     \
      sum = hai_add_##isa(sum, odd);                                                                   \
      sum = hai_fma_##isa(hai_load_##isa(l + HAI_LANES_##isa + i), t, sum);                            \
      next = hai_add_##isa(s, sum), part = hai_sub_##isa(next, s);                                     \
      s = hai_add_##isa(hai_sub_##isa(s, hai_sub_##isa(next, part)), hai_sub_##isa(sum, part));        \
      hai_store_##isa(l + i, next);                                                                    \
      hai_store_##isa(l + HAI_LANES_##isa + i, s);                                                     \
    }                                                                                                  \
    return moved;                                                                                      \
  }

#define HAI_SCALE(isa)                                                                                    \
  HAI_TARGET_##isa static void hai_scale_##isa(float *x, hai_index rows, const float *factor, int begin,  \
                                               int end) {                                                 \
    hai_index t;                                                                                          \
    int i;                                                                                                \
    for (t = 0; t < rows * HAI_LANES_##isa; t += HAI_LANES_##isa)                                         \
      for (i = begin; i < end; i += HAI_WIDTH_##isa)                                                      \
        hai_store_##isa(x + t + i, hai_mul_##isa(hai_load_##isa(x + t + i), hai_load_##isa(factor + i))); \
  }

/* As hai_two_sum, a register at a time. */
#define HAI_CARRY(isa)                                                                                    \
  HAI_TARGET_##isa static void hai_carry_##isa(float *o, hai_index rows, int begin, int end, float *sum,  \
                                               float *lost) {                                             \
    hai_vector_##isa a, b, c, next, part; /* loads first: the arrays may alias in the cache */            \
    hai_index t;                                                                                          \
    int i;                                                                                                \
    for (t = 0; t < rows * HAI_LANES_##isa; t += HAI_LANES_##isa)                                         \
      for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                    \
        a = hai_load_##isa(sum + t + i), b = hai_load_##isa(o + t + i), c = hai_load_##isa(lost + t + i); \
        next = hai_add_##isa(a, b), part = hai_sub_##isa(next, a);                                        \
        a = hai_add_##isa(hai_sub_##isa(a, hai_sub_##isa(next, part)), hai_sub_##isa(b, part));           \
        hai_store_##isa(sum + t + i, next);                                                               \
        hai_store_##isa(lost + t + i, hai_add_##isa(c, hai_known_##isa(a)));                              \
        hai_store_##isa(o + t + i, hai_zero_##isa());                                                     \
      }                                                                                                   \
  }                                                                                                       \
  HAI_TARGET_##isa static void hai_gather_##isa(float *o, hai_index rows, int begin, int end,             \
                                                const float *sum, const float *lost) {                    \
    hai_index t;                                                                                          \
    int i;                                                                                                \
    for (t = 0; t < rows * HAI_LANES_##isa; t += HAI_LANES_##isa)                                         \
      for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                    \
        hai_vector_##isa rest = hai_load_##isa(o + t + i);                                                \
        if (lost) rest = hai_add_##isa(hai_load_##isa(lost + t + i), rest);                               \
        hai_store_##isa(o + t + i, hai_add_##isa(hai_load_##isa(sum + t + i), rest));                     \
      }                                                                                                   \
  }

/* Transposition goes by 4 x 4 squares within 128-bit parts: vector k of four holds rows k, k + 4, k + 8,
   .. */
#define HAI_PACK(isa)                                                                              \
  HAI_TARGET_##isa static void hai_pack_##isa(const void *const *row, hai_index dim, float factor, \
                                              float *packed) {                                     \
    hai_vector_##isa f = hai_set1_##isa(factor), x0, x1, x2, x3;                                   \
    int i;                                                                                         \
    for (i = 0; i < HAI_LANES_##isa; i += HAI_WIDTH_##isa) {                                       \
      hai_index t = 0, whole = hai_rows_present(row + i, HAI_WIDTH_##isa) ? dim / 4 * 4 : 0;       \
      for (; t < whole; t += 4) {                                                                  \
        float *at = packed + t * HAI_LANES_##isa + i;                                              \
        x0 = hai_gather4_##isa(row + i, t), x1 = hai_gather4_##isa(row + i + 1, t);                \
        x2 = hai_gather4_##isa(row + i + 2, t), x3 = hai_gather4_##isa(row + i + 3, t);            \
        hai_transpose4_##isa(&x0, &x1, &x2, &x3);                                                  \
        hai_store_##isa(at, hai_times_##isa(x0, f));                                               \
        hai_store_##isa(at + HAI_LANES_##isa, hai_times_##isa(x1, f));                             \
        hai_store_##isa(at + 2 * HAI_LANES_##isa, hai_times_##isa(x2, f));                         \
        hai_store_##isa(at + 3 * HAI_LANES_##isa, hai_times_##isa(x3, f));                         \
      }                                                                                            \
      if (t < dim)                                                                                 \
        hai_pack_rest_##isa(row, t, dim, factor, packed, HAI_LANES_##isa, i, i + HAI_WIDTH_##isa); \
    }                                                                                              \
  }
#define HAI_UNPACK(isa)                                                                                    \
  HAI_TARGET_##isa static void hai_unpack_##isa(const float *packed, hai_index dim, const float *factor,   \
                                                float *const *row) {                                       \
    int i;                                                                                                 \
    for (i = 0; i < HAI_LANES_##isa; i += HAI_WIDTH_##isa) {                                               \
      hai_vector_##isa f = hai_load_##isa(factor + i), x0, x1, x2, x3;                                     \
      hai_index t = 0,                                                                                     \
                whole = hai_rows_present(HAI_REINTERPRET(const void *const *, row + i), HAI_WIDTH_##isa)   \
                            ? dim / 4 * 4                                                                  \
                            : 0;                                                                           \
      for (; t < whole; t += 4) {                                                                          \
        const float *at = packed + t * HAI_LANES_##isa + i;                                                \
        x0 = hai_mul_##isa(hai_load_##isa(at), f);                                                         \
        x1 = hai_mul_##isa(hai_load_##isa(at + HAI_LANES_##isa), f);                                       \
        x2 = hai_mul_##isa(hai_load_##isa(at + 2 * HAI_LANES_##isa), f);                                   \
        x3 = hai_mul_##isa(hai_load_##isa(at + 3 * HAI_LANES_##isa), f);                                   \
        hai_transpose4_##isa(&x0, &x1, &x2, &x3);                                                          \
        hai_scatter4_##isa(x0, row + i, t), hai_scatter4_##isa(x1, row + i + 1, t);                        \
        hai_scatter4_##isa(x2, row + i + 2, t), hai_scatter4_##isa(x3, row + i + 3, t);                    \
      }                                                                                                    \
      if (t < dim) hai_unpack_plain(packed, t, dim, factor, row, HAI_LANES_##isa, i, i + HAI_WIDTH_##isa); \
    }                                                                                                      \
  }

#define HAI_SUM_LANES(isa)                                                                             \
  HAI_TARGET_##isa static void hai_sum_lanes_##isa(const float *score, int n_keys, int begin, int end, \
                                                   float *sum) {                                       \
    int i, j;                                                                                          \
    for (j = 0; j < n_keys; j++, score += HAI_LANES_##isa) {                                           \
      hai_vector_##isa x = hai_load_##isa(score + begin);                                              \
      for (i = begin + HAI_WIDTH_##isa; i < end; i += HAI_WIDTH_##isa)                                 \
        x = hai_add_##isa(x, hai_load_##isa(score + i));                                               \
      sum[j] = hai_sum_##isa(x);                                                                       \
    }                                                                                                  \
  }

/* A register of elements at a time, a Q8_0 block at a time; what is left over goes one by one. The vector
   part is a function of its own that calls none: gcc leaves out vzeroupper before a call in tail
   position. */
#define HAI_WIDEN(isa)                                                                           \
  HAI_TARGET_##isa static hai_index hai_widen_most_##isa(const char *row, hyperattn_dtype dtype, \
                                                         hai_index n, float *to) {               \
    hai_index t = 0, k, step = HAI_WIDTH_##isa;                                                  \
    if (dtype == HYPERATTN_F16) {                                                                \
      for (; t + step <= n; t += step) hai_store_##isa(to + t, hai_f16_##isa(row + 2 * t));      \
    } else if (dtype == HYPERATTN_BF16) {                                                        \
      for (; t + step <= n; t += step) hai_store_##isa(to + t, hai_bf16_##isa(row + 2 * t));     \
    } else {                                                                                     \
      for (; t + HAI_Q8_0_ELEMENTS <= n; t += HAI_Q8_0_ELEMENTS, row += HAI_Q8_0_BYTES) {        \
        hai_vector_##isa d =                                                                     \
            hai_first_##isa(hai_f16_##isa(row)); /* a register of halves fits in a block */      \
        for (k = 0; k < HAI_Q8_0_ELEMENTS; k += step)                                            \
          hai_store_##isa(to + t + k, hai_mul_##isa(d, hai_int8_##isa(row + 2 + k)));            \
      }                                                                                          \
    }                                                                                            \
    return t;                                                                                    \
  }                                                                                              \
  static void hai_widen_##isa(const void *row, hyperattn_dtype dtype, hai_index n, float *to) {  \
    hai_index t = hai_widen_most_##isa(HAI_AS(const char *, row), dtype, n, to);                 \
    if (t < n) hai_widen_plain(row, dtype, t, n, to);                                            \
  }

/* Products over any range of registers and any counts, from a tile of R rows and 1 to 3 registers; one
   register alone takes R1 rows, since R would wait for one another. */
#define HAI_PRODUCTS(isa, R, R1)                                                                      \
  HAI_PACK(isa)                                                                                       \
  HAI_MICRO(isa, R, 1)                                                                                \
  HAI_MICRO(isa, R, 2)                                                                                \
  HAI_MICRO(isa, R, 3)                                                                                \
  HAI_MICRO_VALUES(isa, R1, 1, values_long)                                                           \
  static void hai_scores_##isa(const float *query, hai_index dim, const void *const *key, int n_keys, \
                               int begin, int end, float *score) {                                    \
    const void *row[R];                                                                               \
    int j, r, n = (end - begin) / HAI_WIDTH_##isa;                                                    \
    query += begin, score += begin;                                                                   \
    for (j = 0; j < n_keys; j += R, key += R, score += R * HAI_LANES_##isa) {                         \
      if (n_keys - j < R) { /* the first key in place of absent ones */                               \
        for (r = 0; r < R; r++) row[r] = key[r < n_keys - j ? r : 0];                                 \
        key = row;                                                                                    \
      }                                                                                               \
      if (n == 3)                                                                                     \
        hai_scores_3_##isa(query, dim, key, score);                                                   \
      else if (n == 2)                                                                                \
        hai_scores_2_##isa(query, dim, key, score);                                                   \
      else                                                                                            \
        hai_scores_1_##isa(query, dim, key, score);                                                   \
    }                                                                                                 \
  }                                                                                                   \
  static void hai_values_##isa(float *score, int n_keys, const void *const *value, hai_index dim,     \
                               const float *factor, int begin, int end, float *o) {                   \
    hai_index t = 0;                                                                                  \
    int n = (end - begin) / HAI_WIDTH_##isa;                                                          \
    score += begin, factor += begin, o += begin;                                                      \
    for (; n == 1 && t + R1 <= dim; t += R1, o += R1 * HAI_LANES_##isa)                               \
      hai_values_long_1_##isa(score, n_keys, value, t, factor, o);                                    \
    for (; t + R <= dim; t += R, o += R * HAI_LANES_##isa) {                                          \
      if (n == 3)                                                                                     \
        hai_values_3_##isa(score, n_keys, value, t, factor, o);                                       \
      else if (n == 2)                                                                                \
        hai_values_2_##isa(score, n_keys, value, t, factor, o);                                       \
      else                                                                                            \
        hai_values_1_##isa(score, n_keys, value, t, factor, o);                                       \
    }                                                                                                 \
    for (; t < dim; t++, o += HAI_LANES_##isa) {                                                      \
      if (n == 3)                                                                                     \
        hai_value_3_##isa(score, n_keys, value, t, factor, o);                                        \
      else if (n == 2)                                                                                \
        hai_value_2_##isa(score, n_keys, value, t, factor, o);                                        \
      else                                                                                            \
        hai_value_1_##isa(score, n_keys, value, t, factor, o);                                        \
    }                                                                                                 \
  }

#define HAI_KERNEL(isa, R, R1) \
  HAI_WIDEN(isa)               \
  HAI_UNPACK(isa)              \
  HAI_SOFTMAX(isa)             \
  HAI_SCALE(isa)               \
  HAI_CARRY(isa)               \
  HAI_SUM_LANES(isa)           \
  HAI_PRODUCTS(isa, R, R1)

/* The products of bfloat16, from those of pairs: of coordinates for scores, of keys for values. A value is
   paired with that of the next key, the last of an odd number with zeros; weights are rounded to bfloat16,
   which is all that is rounded but sums. Even head_dim only. */
#define HAI_KERNEL_BF16(isa)                                                                               \
  HAI_PRODUCTS(isa, 8, 8)                                                                                  \
  static void hai_pack_bf16_##isa(const void *const *row, hai_index dim, float factor, float *packed) {    \
    int i;                                                                                                 \
    hai_pack_##isa(row, dim / 2, 1.0f, packed);                                                            \
    for (i = 0; i < HAI_LANES_##isa; i++) packed[dim / 2 * HAI_LANES_##isa + i] = factor;                  \
  }                                                                                                        \
  static void hai_scores_bf16_##isa(const float *query, hai_index dim, const void *const *key, int n_keys, \
                                    int begin, int end, float *score) {                                    \
    hai_scores_##isa(query, dim / 2, key, n_keys, begin, end, score);                                      \
  }                                                                                                        \
  HAI_TARGET_##isa static void hai_pair_values_##isa(const void *const *value, int n_keys, hai_index at,   \
                                                     hai_bf16x2 *pair) {                                   \
    static const uint16_t none[8] = {0};                                                                   \
    int j;                                                                                                 \
    for (j = 0; j < n_keys; j += 2, pair += 8)                                                             \
      hai_zip_##isa(HAI_AS(const uint16_t *, value[j]) + at,                                               \
                    j + 1 < n_keys ? HAI_AS(const uint16_t *, value[j + 1]) + at : none, pair);            \
  }                                                                                                        \
  HAI_TARGET_##isa static void hai_round_##isa(float *score, int n_keys, const float *factor, int begin,   \
                                               int end, float *sum) {                                      \
    static const hai_bf16x2 ones = {{0x3f80, 0x3f80}};                                                     \
    const hai_vector_##isa one = hai_each_##isa(&ones), zero = hai_zero_##isa();                           \
    int i, j;                                                                                              \
    for (i = begin; i < end; i += HAI_WIDTH_##isa) {                                                       \
      const float *at = score + i;                                                                         \
      float *pair = score + HAI_CHUNK * HAI_LANES_##isa + i;                                               \
      hai_vector_##isa even = zero, odd = zero, x;                                                         \
      for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES_##isa, pair += 2 * HAI_LANES_##isa) {       \
        x = hai_pair_##isa(hai_load_##isa(at), hai_load_##isa(at + HAI_LANES_##isa));                      \
        hai_store_##isa(pair, x);                                                                          \
        even = hai_dot_##isa(x, one, even);                                                                \
        x = hai_pair_##isa(hai_load_##isa(at + 2 * HAI_LANES_##isa),                                       \
                           hai_load_##isa(at + 3 * HAI_LANES_##isa));                                      \
        hai_store_##isa(pair + HAI_LANES_##isa, x);                                                        \
        odd = hai_dot_##isa(x, one, odd);                                                                  \
      }                                                                                                    \
      for (; j < n_keys; j += 2, at += 2 * HAI_LANES_##isa, pair += HAI_LANES_##isa) {                     \
        x = hai_pair_##isa(hai_load_##isa(at),                                                             \
                           j + 1 < n_keys ? hai_load_##isa(at + HAI_LANES_##isa) : zero);                  \
        hai_store_##isa(pair, x);                                                                          \
        even = hai_dot_##isa(x, one, even);                                                                \
      }                                                                                                    \
      even = hai_fma_##isa(hai_load_##isa(sum + i), hai_load_##isa(factor + i), hai_add_##isa(even, odd)); \
      hai_store_##isa(sum + i, even);                                                                      \
    }                                                                                                      \
  }                                                                                                        \
  static void hai_values_bf16_##isa(float *score, int n_keys, const void *const *value, hai_index dim,     \
                                    const float *factor, int begin, int end, float *o) {                   \
    hai_bf16x2 pair[HAI_CHUNK / 2][8];                                                                     \
    const void *row[HAI_CHUNK / 2];                                                                        \
    float *weight = score + HAI_CHUNK * HAI_LANES_##isa;                                                   \
    int pairs = (n_keys + 1) / 2, j;                                                                       \
    hai_index t, rest;                                                                                     \
    for (j = 0; j < pairs; j++) row[j] = pair[j];                                                          \
    for (t = 0; t + 8 <= dim; t += 8) {                                                                    \
      hai_pair_values_##isa(value, n_keys, t, pair[0]);                                                    \
      hai_values_##isa(weight, pairs, row, 8, factor, begin, end, o + t * HAI_LANES_##isa);                \
    }                                                                                                      \
    for (rest = 0; rest < dim - t; rest++)                                                                 \
      for (j = 0; j < pairs; j++) {                                                                        \
        pair[j][rest].x[0] = HAI_AS(const uint16_t *, value[2 * j])[t + rest];                             \
        pair[j][rest].x[1] =                                                                               \
            2 * j + 1 < n_keys ? HAI_AS(const uint16_t *, value[2 * j + 1])[t + rest] : 0;                 \
      }                                                                                                    \
    if (rest) hai_values_##isa(weight, pairs, row, rest, factor, begin, end, o + t * HAI_LANES_##isa);     \
  }
