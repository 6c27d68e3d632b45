/* Template: the products of a tile, in plain C. Included once per ISA, behind that ISA's primitives, with
   these parameters:
     HAI_ISA(name)   the name that a function or primitive has for this ISA: hai_<name>_<isa>
     HAI_TARGET      the function attribute that lets the compiler use its instructions
     HAI_VECTOR      its register, of HAI_WIDTH floats; a tile has HAI_LANES lanes, three registers
     HAI_ELEMENT     what a product reads: float, or two bfloat16 whose products are summed
     HAI_ROWS(X)     X(0) X(1) .. for the HAI_N_ROWS keys, or coordinates of values, multiplied at a time
     HAI_LONG(X)     the same for HAI_N_LONG coordinates where a tile has one register: its sums need to be
                     more to hide the latency of a multiply-add
     HAI_FACTORED    1 if a factor for each lane lies behind the packed queries
   A step of the inner loop loads up to three packed vectors a0 to a2, and for each row broadcasts one
   element b and does a multiply-add with each vector. The sums c<row><register> are named variables and not
   an array: gcc -O1 would store an array of them before the loop. The number of registers n is a constant
   where the inline functions are called, so that what belongs to absent registers is dropped. */

#define HAI_SUMS(r) HAI_VECTOR c##r##0 = HAI_ISA(zero)(), c##r##1 = c##r##0, c##r##2 = c##r##0;
#define HAI_LOAD(p)                                 \
  a0 = HAI_ISA(load)(p);                            \
  a1 = n > 1 ? HAI_ISA(load)((p) + HAI_WIDTH) : a0; \
  a2 = n > 2 ? HAI_ISA(load)((p) + 2 * HAI_WIDTH) : a0;
#define HAI_ADD(r)                                   \
  c##r##0 = HAI_ISA(dot)(a0, b, c##r##0);            \
  if (n > 1) c##r##1 = HAI_ISA(dot)(a1, b, c##r##1); \
  if (n > 2) c##r##2 = HAI_ISA(dot)(a2, b, c##r##2);
#define HAI_STORE(r, p)                                \
  HAI_ISA(store)(p, c##r##0);                          \
  if (n > 1) HAI_ISA(store)((p) + HAI_WIDTH, c##r##1); \
  if (n > 2) HAI_ISA(store)((p) + 2 * HAI_WIDTH, c##r##2);

/* ---- Packing ---- */

/* Transposes 4 x 4 submatrices within parts of 128 bits: vector k of four holds rows k, k + 4, k + 8, ... */
HAI_TARGET static void HAI_ISA(pack)(const void *const *row, hai_index dim, float factor, float *packed) {
  HAI_VECTOR f = HAI_ISA(set1)(factor), x0, x1, x2, x3;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    hai_index t = 0, whole = hai_rows_present(row + i, HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(gather4)(row + i, t);
      x1 = HAI_ISA(gather4)(row + i + 1, t);
      x2 = HAI_ISA(gather4)(row + i + 2, t);
      x3 = HAI_ISA(gather4)(row + i + 3, t);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(store)(at, HAI_ISA(times)(x0, f));
      HAI_ISA(store)(at + HAI_LANES, HAI_ISA(times)(x1, f));
      HAI_ISA(store)(at + 2 * HAI_LANES, HAI_ISA(times)(x2, f));
      HAI_ISA(store)(at + 3 * HAI_LANES, HAI_ISA(times)(x3, f));
    }
    if (t < dim) HAI_ISA(pack_rest)(row, t, dim, factor, packed, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- Scores ---- */

#define HAI_KEY_ROW(r) const HAI_ELEMENT *k##r = HAI_AS(const HAI_ELEMENT *, key[r]);
#define HAI_KEY_ADD(r)         \
  b = HAI_ISA(each)(k##r + t); \
  HAI_ADD(r)
#define HAI_STEP        \
  HAI_LOAD(query)       \
  HAI_ROWS(HAI_KEY_ADD) \
  t++;                  \
  query += HAI_LANES;
#define HAI_TIMES(r)                              \
  c##r##0 = HAI_ISA(mul)(c##r##0, a0);            \
  if (n > 1) c##r##1 = HAI_ISA(mul)(c##r##1, a1); \
  if (n > 2) c##r##2 = HAI_ISA(mul)(c##r##2, a2);
#define HAI_SCORES_OUT(r) HAI_STORE(r, score + r * HAI_LANES)

/* score[r][i] = sum_t query[t][i] key_r[t], times the lane's factor where there is one. One register alone
   takes four steps in each iteration: its eight sums leave no time for the loop's own instructions. */
HAI_TARGET HAI_INLINE void HAI_ISA(score_registers)(const float *query, hai_index dim,
                                                    const void *const *key, float *score, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  hai_index t = 0, by_four = n == 1 ? dim - 3 : 0;
  HAI_ROWS(HAI_SUMS)
  HAI_ROWS(HAI_KEY_ROW)
  while (t < by_four) {
    HAI_STEP HAI_STEP HAI_STEP HAI_STEP
  }
  while (t < dim) {
    HAI_STEP
  }
  if (HAI_FACTORED) {
    HAI_LOAD(query)
    HAI_ROWS(HAI_TIMES)
  }
  HAI_ROWS(HAI_SCORES_OUT)
}

HAI_TARGET static void HAI_ISA(score_rows)(const float *query, hai_index dim, const void *const *key,
                                           float *score, int n) {
  if (n == 3)
    HAI_ISA(score_registers)(query, dim, key, score, 3);
  else if (n == 2)
    HAI_ISA(score_registers)(query, dim, key, score, 2);
  else
    HAI_ISA(score_registers)(query, dim, key, score, 1);
}

static void HAI_ISA(scores)(const float *query, hai_index dim, const void *const *key, int n_keys,
                            int begin, int end, float *score) {
  const void *row[HAI_N_ROWS];
  int j, r, n = (end - begin) / HAI_WIDTH;
  query += begin;
  score += begin;
  for (j = 0; j < n_keys; j += HAI_N_ROWS, key += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    if (n_keys - j < HAI_N_ROWS) { /* the first key stands for absent ones */
      for (r = 0; r < HAI_N_ROWS; r++) row[r] = key[r < n_keys - j ? r : 0];
      key = row;
    }
    HAI_ISA(score_rows)(query, dim, key, score, n);
  }
}

/* ---- Values ---- */

#define HAI_VALUE_ADD(r)    \
  b = HAI_ISA(each)(v + r); \
  HAI_ADD(r)
#define HAI_UPDATE(r, p)                                                              \
  c##r##0 = HAI_ISA(fma)(HAI_ISA(load)(p), a0, c##r##0);                              \
  if (n > 1) c##r##1 = HAI_ISA(fma)(HAI_ISA(load)((p) + HAI_WIDTH), a1, c##r##1);     \
  if (n > 2) c##r##2 = HAI_ISA(fma)(HAI_ISA(load)((p) + 2 * HAI_WIDTH), a2, c##r##2); \
  HAI_STORE(r, p)
#define HAI_VALUES_OUT(r) HAI_UPDATE(r, o + r * HAI_LANES)

#define HAI_EACH(X) HAI_ROWS(X)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_rows)
#include "kernel_values.h"
#define HAI_EACH(X) HAI_LONG(X)
#define HAI_REGISTERS 1
#define HAI_THESE(name) HAI_ISA(name##_long)
#include "kernel_values.h"
#define HAI_EACH(X) X(0)
#define HAI_REGISTERS 3
#define HAI_THESE(name) HAI_ISA(name##_row)
#include "kernel_values.h"

static void HAI_ISA(values)(float *score, int n_keys, const void *const *value, hai_index dim,
                            const float *factor, int begin, int end, float *o) {
  hai_index t = 0;
  int n = (end - begin) / HAI_WIDTH;
  score += begin;
  factor += begin;
  o += begin;
  for (; n == 1 && t + HAI_N_LONG <= dim; t += HAI_N_LONG)
    HAI_ISA(value_long)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t + HAI_N_ROWS <= dim; t += HAI_N_ROWS)
    HAI_ISA(value_rows)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
  for (; t < dim; t++) HAI_ISA(value_row)(score, n_keys, value, t, factor, o + t * HAI_LANES, n);
}

#undef HAI_SUMS
#undef HAI_LOAD
#undef HAI_ADD
#undef HAI_STORE
#undef HAI_KEY_ROW
#undef HAI_KEY_ADD
#undef HAI_STEP
#undef HAI_TIMES
#undef HAI_SCORES_OUT
#undef HAI_VALUE_ADD
#undef HAI_UPDATE
#undef HAI_VALUES_OUT
