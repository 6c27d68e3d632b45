/* Template: the products of bfloat16, in plain C. Included once per ISA that has them, with the parameters of
   kernel_tile.h, which it undefines at its end. An element is two bfloat16: two coordinates of a row for
   scores, one coordinate of two keys for values. A value is joined with that of the next key, the last of an
   odd number with zeros. Weights are rounded to bfloat16; nothing else is rounded but sums. head_dim is even.
   Its own primitives: join(a, b) rounds a into the low and b into the high half of each lane; zip(a, b, to)
   joins 8 elements of two rows. */

#include "kernel_tile.h"

static void HAI_ISA(pack_bf16)(const void *const *row, hai_index dim, float factor, float *packed) {
  int i;
  HAI_ISA(pack)(row, dim / 2, 1.0f, packed);
  for (i = 0; i < HAI_LANES; i++) packed[dim / 2 * HAI_LANES + i] = factor;
}

static void HAI_ISA(scores_bf16)(const float *query, hai_index dim, const void *const *key, int n_keys,
                                 int begin, int end, float *score) {
  HAI_ISA(scores)(query, dim / 2, key, n_keys, begin, end, score);
}

/* Two sums in turn hide each other's latency. */
HAI_TARGET static void HAI_ISA(round)(float *score, int n_keys, const float *factor, int begin, int end,
                                      float *sum) {
  static const hai_bf16x2 ones = {{0x3f80, 0x3f80}};
  /* kept: gcc 12 writes a constant vector of bfloat16 as one of half precision */
  const HAI_VECTOR one = HAI_ISA(keep)(HAI_ISA(each)(&ones)), zero = HAI_ISA(zero)();
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    const float *at = score + i;
    float *joined = score + HAI_CHUNK * HAI_LANES + i;
    HAI_VECTOR even = zero, odd = zero, x, next;
    for (j = 0; j + 4 <= n_keys; j += 4, at += 4 * HAI_LANES, joined += 2 * HAI_LANES) {
      x = HAI_ISA(join)(HAI_ISA(load)(at), HAI_ISA(load)(at + HAI_LANES));
      HAI_ISA(store)(joined, x);
      even = HAI_ISA(dot)(x, one, even);
      x = HAI_ISA(join)(HAI_ISA(load)(at + 2 * HAI_LANES), HAI_ISA(load)(at + 3 * HAI_LANES));
      HAI_ISA(store)(joined + HAI_LANES, x);
      odd = HAI_ISA(dot)(x, one, odd);
    }
    for (; j < n_keys; j += 2, at += 2 * HAI_LANES, joined += HAI_LANES) { /* in turn, as if zeros followed */
      x = HAI_ISA(join)(HAI_ISA(load)(at), j + 1 < n_keys ? HAI_ISA(load)(at + HAI_LANES) : zero);
      HAI_ISA(store)(joined, x);
      next = HAI_ISA(dot)(x, one, even);
      even = odd;
      odd = next;
    }
    even = HAI_ISA(fma)(HAI_ISA(load)(sum + i), HAI_ISA(load)(factor + i), HAI_ISA(add)(even, odd));
    HAI_ISA(store)(sum + i, even);
  }
}

/* joined[key / 2][dim]: a coordinate of two keys is an element. */
HAI_TARGET static void HAI_ISA(join_values)(const void *const *value, int n_keys, hai_index dim,
                                            float *joined) {
  static const uint16_t none[8] = {0};
  int j;
  for (j = 0; j < n_keys; j += 2) {
    const uint16_t *even = HAI_AS(const uint16_t *, value[j]), *odd = none;
    hai_bf16x2 *to = HAI_PLACE(hai_bf16x2, joined);
    hai_index t = 0, step = 0; /* of `odd` */
    if (j + 1 < n_keys) {
      odd = HAI_AS(const uint16_t *, value[j + 1]);
      step = 1;
    }
    for (; t + 8 <= dim; t += 8) HAI_ISA(zip)(even + t, odd + step * t, to + t);
    for (; t < dim; t++) {
      to[t].x[0] = even[t];
      to[t].x[1] = odd[step * t];
    }
    joined += dim;
  }
}

static void HAI_ISA(values_bf16)(float *score, int n_keys, const void *const *value, hai_index dim,
                                 const float *factor, int begin, int end, float *o) {
  const void *row[HAI_CHUNK / 2];
  int n = (n_keys + 1) / 2, j;
  for (j = 0; j < n; j++) row[j] = HAI_AS(const float *, value[0]) + j * dim;
  HAI_ISA(values)(score + HAI_CHUNK * HAI_LANES, n, row, dim, factor, begin, end, o);
}

#include "kernel_end.h"
