/* Template: a whole kernel of float32, in plain C. Included once per ISA, behind that ISA's primitives, with
   the parameters of kernel_tile.h, which it undefines at its end. The primitives, x, a, b registers:
     zero(), set1(x), load(p), store(p, x), add, sub, mul, fma(a, b, c) = a b + c, sum(x) of all lanes
     dot(a, b, c)          what a product adds to c; each(p): the element at p in all lanes
     times(x, factor)      what packing multiplies by
     f16(p), bf16(p), int8(p)   a register of elements as floats; half(p): the float16 at p in all lanes
     max(a, b), min(a, b)  the larger, the smaller; b where either is NaN
     div(a, b); hidden(x)  bit i: lane i is -inf
     show(x, bits)         x in the lanes of `bits`, -inf elsewhere
     or_zero(x)            0 where x is -inf; known(x): 0 where x is NaN
     move(m, high)         the next reference of the lanes' sums (hai_kernel.softmax)
     differ(a, b)          whether any lane differs
     keep(x)               x, which the compiler may neither contract with what follows nor fold
     exp(x)                e^x for x <= 0, e^0 exactly 1, below 2^-126 exactly 0
     gather4(row, t), scatter4(x, row, t)   elements t .. t + 3 of rows 0, 4, 8, ..; transpose4: 4 x 4 */

#include "kernel_tile.h"

/* row[i][t] = (packed[t][i] + 0) * factor[i], the way back of packing. */
HAI_TARGET static void HAI_ISA(unpack)(const float *packed, hai_index dim, const float *factor,
                                       float *const *row) {
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), zero = HAI_ISA(zero)(), x0, x1, x2, x3;
    hai_index t = 0;
    hai_index whole =
        hai_rows_present(HAI_REINTERPRET(const void *const *, row + i), HAI_WIDTH) ? dim / 4 * 4 : 0;
    for (; t < whole; t += 4) {
      const float *at = packed + t * HAI_LANES + i;
      x0 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at), zero), f);
      x1 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + HAI_LANES), zero), f);
      x2 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + 2 * HAI_LANES), zero), f);
      x3 = HAI_ISA(mul)(HAI_ISA(add)(HAI_ISA(load)(at + 3 * HAI_LANES), zero), f);
      HAI_ISA(transpose4)(&x0, &x1, &x2, &x3);
      HAI_ISA(scatter4)(x0, row + i, t);
      HAI_ISA(scatter4)(x1, row + i + 1, t);
      HAI_ISA(scatter4)(x2, row + i + 2, t);
      HAI_ISA(scatter4)(x3, row + i + 3, t);
    }
    if (t < dim) hai_unpack_plain(packed, t, dim, factor, row, HAI_LANES, i, i + HAI_WIDTH);
  }
}

/* ---- What a score becomes ---- */

/* x between -most and most; NaN stays. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(clamp)(HAI_VECTOR x, float most) {
  return HAI_ISA(max)(HAI_ISA(set1)(-most), HAI_ISA(min)(HAI_ISA(set1)(most), x));
}

/* As hai_capped. */
HAI_TARGET static void HAI_ISA(cap)(float *score, int n_keys, float softcap, int begin, int end) {
  HAI_VECTOR inverse = HAI_ISA(set1)(hai_inverse(softcap));
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR s = HAI_ISA(load)(score + i), u, p, q;
      u = HAI_ISA(clamp)(HAI_ISA(mul)(s, inverse), HAI_TANH_END);
      u = HAI_ISA(mul)(u, u);
      p = HAI_ISA(fma)(HAI_ISA(set1)(HAI_TANH_P4), u, HAI_ISA(set1)(HAI_TANH_P3));
      q = HAI_ISA(fma)(HAI_ISA(set1)(HAI_TANH_Q4), u, HAI_ISA(set1)(HAI_TANH_Q3));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P2));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(HAI_TANH_Q2));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P1));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(HAI_TANH_Q1));
      p = HAI_ISA(fma)(p, u, HAI_ISA(set1)(HAI_TANH_P0));
      q = HAI_ISA(fma)(q, u, HAI_ISA(set1)(1.0f));
      HAI_ISA(store)(score + i, HAI_ISA(clamp)(HAI_ISA(mul)(s, HAI_ISA(div)(p, q)), softcap));
    }
}

HAI_TARGET static void HAI_ISA(hide)(const float *bias, int n_keys, int begin, int end, uint64_t *visible) {
  int i, j;
  for (j = 0; j < n_keys; j++, bias += HAI_LANES) {
    uint64_t hidden = 0;
    for (i = begin; i < end; i += HAI_WIDTH)
      hidden |= HAI_AS(uint64_t, HAI_ISA(hidden)(HAI_ISA(load)(bias + i))) << i;
    visible[j] &= ~hidden;
  }
}

HAI_TARGET static void HAI_ISA(add_bias)(float *score, int n_keys, const float *bias, const float *slope,
                                         int begin, int end) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES, bias += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH)
      HAI_ISA(store)
      (score + i, HAI_ISA(fma)(HAI_ISA(load)(slope + i), HAI_ISA(load)(bias + i), HAI_ISA(load)(score + i)));
}

/* ---- Softmax ---- */

/* The largest of m and of each lane's scores, for the lanes of one register: log-weights are added and hidden
   keys hidden first. Four maxima at a time hide one another's latency. */
#define HAI_SHOW(r)                                                        \
  s = HAI_ISA(load)(at + (r)*HAI_LANES);                                   \
  if (log_weight) s = HAI_ISA(add)(s, HAI_ISA(set1)(log_weight[j + (r)])); \
  if (visible) s = HAI_ISA(show)(s, visible[j + (r)] >> lane);             \
  HAI_ISA(store)(at + (r)*HAI_LANES, s);                                   \
  high##r = HAI_ISA(max)(s, high##r);
#define HAI_HIGH(r) high##r = HAI_ISA(max)(HAI_ISA(load)(at + (r)*HAI_LANES), high##r);
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(high)(float *at, int n_keys, const float *log_weight,
                                               const uint64_t *visible, int lane, HAI_VECTOR m) {
  HAI_VECTOR s, high0 = m, high1 = m, high2 = m, high3 = m;
  int j;
  for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES) {
    if (log_weight || visible) {
      HAI_SHOW(0) HAI_SHOW(1) HAI_SHOW(2) HAI_SHOW(3)
    } else {
      HAI_HIGH(0) HAI_HIGH(1) HAI_HIGH(2) HAI_HIGH(3)
    }
  }
  for (; j < n_keys; j++, at += HAI_LANES) {
    HAI_SHOW(0)
  }
  return HAI_ISA(max)(HAI_ISA(max)(high0, high1), HAI_ISA(max)(high2, high3));
}

/* Replaces the scores of one register's lanes by weights e^(score - shift); returns their sums. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(weigh)(float *at, int n_keys, HAI_VECTOR shift) {
  HAI_VECTOR s, t, even = HAI_ISA(zero)(), odd = even;
  int j;
  for (j = 0; j + 2 <= n_keys; j += 2, at += 2 * HAI_LANES) {
    s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
    t = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at + HAI_LANES), shift));
    HAI_ISA(store)(at, s);
    HAI_ISA(store)(at + HAI_LANES, t);
    even = HAI_ISA(add)(even, s);
    odd = HAI_ISA(add)(odd, t);
  }
  if (j < n_keys) {
    s = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(at), shift));
    HAI_ISA(store)(at, s);
    even = HAI_ISA(add)(even, s);
  }
  return HAI_ISA(add)(even, odd);
}

/* What rounding took from next = a + b, as in hai_two_sum. */
HAI_TARGET HAI_INLINE HAI_VECTOR HAI_ISA(lost)(HAI_VECTOR a, HAI_VECTOR b, HAI_VECTOR next) {
  HAI_VECTOR part = HAI_ISA(sub)(next, a);
  return HAI_ISA(add)(HAI_ISA(sub)(a, HAI_ISA(sub)(next, part)), HAI_ISA(sub)(b, part));
}

/* Exponentials need the largest score, so all registers look for theirs first. */
HAI_TARGET static int HAI_ISA(softmax)(float *score, int n_keys, const float *log_weight,
                                       const uint64_t *visible, int begin, int end, float *m, float *l,
                                       float *factor) {
  int moved = 0, i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(m + i);
    HAI_VECTOR after =
        HAI_ISA(move)(before, HAI_ISA(high)(score + i, n_keys, log_weight, visible, i, before));
    moved |= HAI_ISA(differ)(before, after);
    HAI_ISA(store)(factor + i, HAI_ISA(exp)(HAI_ISA(sub)(before, HAI_ISA(or_zero)(after))));
    HAI_ISA(store)(m + i, after);
  }
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(weigh)(score + i, n_keys, HAI_ISA(or_zero)(HAI_ISA(load)(m + i))), next;
    HAI_VECTOR f = HAI_ISA(load)(factor + i), before = HAI_ISA(keep)(HAI_ISA(mul)(HAI_ISA(load)(l + i), f));
    sum = HAI_ISA(fma)(HAI_ISA(load)(l + HAI_LANES + i), f, sum);
    next = HAI_ISA(add)(before, sum);
    HAI_ISA(store)(l + i, next);
    HAI_ISA(store)(l + HAI_LANES + i, HAI_ISA(lost)(before, sum, next));
  }
  return moved;
}

/* ---- Sums ---- */

HAI_TARGET static void HAI_ISA(scale)(float *x, hai_index rows, const float *factor, int begin, int end) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH)
      HAI_ISA(store)(x + t + i, HAI_ISA(mul)(HAI_ISA(load)(x + t + i), HAI_ISA(load)(factor + i)));
}

/* All three arrays are read before any is written: their rows may lie a multiple of 4096 bytes apart, and a
   load then waits for a store to the same place within a page. */
HAI_TARGET static void HAI_ISA(carry)(float *o, hai_index rows, int begin, int end, float *sum, float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR a = HAI_ISA(load)(sum + t + i), b = HAI_ISA(load)(o + t + i);
      HAI_VECTOR c = HAI_ISA(load)(lost + t + i), next = HAI_ISA(add)(a, b);
      HAI_ISA(store)(sum + t + i, next);
      HAI_ISA(store)(lost + t + i, HAI_ISA(add)(c, HAI_ISA(known)(HAI_ISA(lost)(a, b, next))));
      HAI_ISA(store)(o + t + i, HAI_ISA(zero)());
    }
}

HAI_TARGET static void HAI_ISA(gather)(float *o, hai_index rows, int begin, int end, const float *sum,
                                       const float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_LANES; t += HAI_LANES)
    for (i = begin; i < end; i += HAI_WIDTH) {
      HAI_VECTOR rest = HAI_ISA(load)(o + t + i);
      if (lost) rest = HAI_ISA(add)(HAI_ISA(load)(lost + t + i), rest);
      HAI_ISA(store)(o + t + i, HAI_ISA(add)(HAI_ISA(load)(sum + t + i), rest));
    }
}

HAI_TARGET static void HAI_ISA(sum_lanes)(const float *score, int n_keys, int begin, int end, float *sum) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_LANES) {
    HAI_VECTOR x = HAI_ISA(load)(score + begin);
    for (i = begin + HAI_WIDTH; i < end; i += HAI_WIDTH) x = HAI_ISA(add)(x, HAI_ISA(load)(score + i));
    sum[j] = HAI_ISA(sum)(x);
  }
}

HAI_TARGET static float HAI_ISA(square)(const float *row, hai_index dim) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH)
    sum = HAI_ISA(fma)(HAI_ISA(load)(row + t), HAI_ISA(load)(row + t), sum);
  return HAI_ISA(sum)(sum) + hai_square_scalar(row + t, dim - t);
}

HAI_TARGET static void HAI_ISA(add_row)(float *sum, const float *row, hai_index dim) {
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH)
    HAI_ISA(store)(sum + t, HAI_ISA(add)(HAI_ISA(load)(sum + t), HAI_ISA(load)(row + t)));
  for (; t < dim; t++) sum[t] += row[t];
}

/* ---- Widening ---- */

/* A register of elements at a time, a Q8_0 block at a time; returns how many are done. This is a function of
   its own that calls none: gcc leaves out vzeroupper before a call in tail position. */
HAI_TARGET static hai_index HAI_ISA(widen_most)(const char *row, hyperattn_dtype dtype, hai_index n,
                                                float *to) {
  hai_index t = 0, k;
  if (dtype == HYPERATTN_F16) {
    for (; t + HAI_WIDTH <= n; t += HAI_WIDTH) HAI_ISA(store)(to + t, HAI_ISA(f16)(row + 2 * t));
  } else if (dtype == HYPERATTN_BF16) {
    for (; t + HAI_WIDTH <= n; t += HAI_WIDTH) HAI_ISA(store)(to + t, HAI_ISA(bf16)(row + 2 * t));
  } else {
    for (; t + HAI_Q8_0_ELEMENTS <= n; t += HAI_Q8_0_ELEMENTS, row += HAI_Q8_0_BYTES) {
      HAI_VECTOR d = HAI_ISA(half)(row);
      for (k = 0; k < HAI_Q8_0_ELEMENTS; k += HAI_WIDTH)
        HAI_ISA(store)(to + t + k, HAI_ISA(mul)(d, HAI_ISA(int8)(row + 2 + k)));
    }
  }
  return t;
}

static void HAI_ISA(widen)(const void *row, hyperattn_dtype dtype, hai_index n, float *to) {
  hai_index t = HAI_ISA(widen_most)(HAI_AS(const char *, row), dtype, n, to);
  if (t < n) hai_widen_plain(row, dtype, t, n, to);
}

#include "kernel_few.h"
#undef HAI_SHOW
#undef HAI_HIGH
#include "kernel_end.h"
