/* The kernel in plain C: the specification of the others, and the one of machines without vectors. */

#define HAI_SCALAR_LANES 16

/* Elements from .. n - 1 of a row, as floats. */
static void hai_widen_plain(const void *row, hyperattn_dtype dtype, hai_index from, hai_index n, float *to) {
  for (; from < n; from++) to[from] = hai_get(row, dtype, from);
}

/* Packs coordinates from .. dim - 1 of lanes begin .. end - 1. */
static void hai_pack_plain(const void *const *row, hai_index from, hai_index dim, float factor, float *packed,
                           int lanes, int begin, int end) {
  hai_index t;
  int i;
  for (i = begin; i < end; i++)
    for (t = from; t < dim; t++)
      packed[t * lanes + i] = row[i] ? factor * HAI_AS(const float *, row[i])[t] : 0.0f;
}

static void hai_unpack_plain(const float *packed, hai_index from, hai_index dim, const float *factor,
                             float *const *row, int lanes, int begin, int end) {
  hai_index t;
  int i;
  for (i = begin; i < end; i++)
    for (t = from; row[i] && t < dim; t++) row[i][t] = (packed[t * lanes + i] + 0.0f) * factor[i];
}

static void hai_widen_scalar(const void *row, hyperattn_dtype dtype, hai_index n, float *to) {
  hai_widen_plain(row, dtype, 0, n, to);
}

static void hai_pack_scalar(const void *const *row, hai_index dim, float factor, float *packed) {
  hai_pack_plain(row, 0, dim, factor, packed, HAI_SCALAR_LANES, 0, HAI_SCALAR_LANES);
}

static void hai_unpack_scalar(const float *packed, hai_index dim, const float *factor, float *const *row) {
  hai_unpack_plain(packed, 0, dim, factor, row, HAI_SCALAR_LANES, 0, HAI_SCALAR_LANES);
}

static void hai_scores_scalar(const float *query, hai_index dim, const void *const *key, int n_keys,
                              int begin, int end, float *score) {
  hai_index t;
  int i, j;
  for (j = 0; j < n_keys; j++) {
    float *s = score + j * HAI_SCALAR_LANES;
    const float *k = HAI_AS(const float *, key[j]);
    for (i = begin; i < end; i++) s[i] = 0.0f;
    for (t = 0; t < dim; t++)
      for (i = begin; i < end; i++) s[i] += query[t * HAI_SCALAR_LANES + i] * k[t];
  }
}

static void hai_cap_scalar(float *score, int n_keys, float softcap, int begin, int end) {
  float inverse = hai_inverse(softcap);
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) score[i] = hai_capped(score[i], softcap, inverse);
}

static void hai_hide_scalar(const float *bias, int n_keys, int begin, int end, uint64_t *visible) {
  int i, j;
  for (j = 0; j < n_keys; j++, bias += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++)
      if (bias[i] == -hai_inf()) visible[j] &= ~(UINT64_C(1) << i);
}

static void hai_add_bias_scalar(float *score, int n_keys, const float *bias, const float *slope, int begin,
                                int end) {
  int i, j;
  for (j = 0; j < n_keys; j++, score += HAI_SCALAR_LANES, bias += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) score[i] += slope[i] * bias[i];
}

static int hai_softmax_scalar(float *score, int n_keys, const float *log_weight, const uint64_t *visible,
                              int begin, int end, float *m, float *l, float *factor) {
  int moved = 0, i, j;
  for (i = begin; i < end; i++) {
    float high = m[i], shift, sum = 0.0f, lost;
    for (j = 0; j < n_keys; j++) {
      float *s = score + j * HAI_SCALAR_LANES + i;
      if (log_weight) *s += log_weight[j];
      if (visible && !(visible[j] >> i & 1)) *s = -hai_inf();
      if (*s > high) high = *s;
    }
    if (high > m[i]) moved = 1;
    high = hai_moved(m[i], high);
    shift = hai_shift(high);
    for (j = 0; j < n_keys; j++) {
      float *s = score + j * HAI_SCALAR_LANES + i;
      *s = hai_exp(*s - shift);
      sum += *s;
    }
    factor[i] = hai_exp(m[i] - shift);
    l[i] *= factor[i];
    lost = 0.0f;
    /* read as volatile, so that the compiler does not contract the product with what follows */
    l[i] =
        hai_two_sum(*HAI_AS(const volatile float *, l + i), sum + l[HAI_SCALAR_LANES + i] * factor[i], &lost);
    l[HAI_SCALAR_LANES + i] = lost;
    m[i] = high;
  }
  return moved;
}

static void hai_values_scalar(float *score, int n_keys, const void *const *value, hai_index dim,
                              const float *factor, int begin, int end, float *o) {
  float sum[HAI_SCALAR_LANES];
  hai_index t;
  int i, j;
  for (t = 0; t < dim; t++) {
    for (i = begin; i < end; i++) sum[i] = 0.0f;
    for (j = 0; j < n_keys; j++) {
      float v = HAI_AS(const float *, value[j])[t];
      for (i = begin; i < end; i++) sum[i] += score[j * HAI_SCALAR_LANES + i] * v;
    }
    for (i = begin; i < end; i++)
      o[t * HAI_SCALAR_LANES + i] = o[t * HAI_SCALAR_LANES + i] * factor[i] + sum[i];
  }
}

static void hai_scale_scalar(float *x, hai_index rows, const float *factor, int begin, int end) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_SCALAR_LANES; t += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) x[t + i] *= factor[i];
}

static void hai_carry_scalar(float *o, hai_index rows, int begin, int end, float *sum, float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_SCALAR_LANES; t += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) {
      sum[t + i] = hai_two_sum(sum[t + i], o[t + i], &lost[t + i]);
      o[t + i] = 0.0f;
    }
}

static void hai_gather_scalar(float *o, hai_index rows, int begin, int end, const float *sum,
                              const float *lost) {
  hai_index t;
  int i;
  for (t = 0; t < rows * HAI_SCALAR_LANES; t += HAI_SCALAR_LANES)
    for (i = begin; i < end; i++) o[t + i] = sum[t + i] + ((lost ? lost[t + i] : 0.0f) + o[t + i]);
}

static void hai_sum_lanes_scalar(const float *score, int n_keys, int begin, int end, float *sum) {
  int i, j;
  for (j = 0; j < n_keys; j++) {
    sum[j] = 0.0f;
    for (i = begin; i < end; i++) sum[j] += score[j * HAI_SCALAR_LANES + i];
  }
}

static float hai_square_scalar(const float *row, hai_index dim) {
  float sum = 0.0f;
  hai_index t;
  for (t = 0; t < dim; t++) sum += row[t] * row[t];
  return sum;
}

static void hai_add_row_scalar(float *sum, const float *row, hai_index dim) {
  hai_index t;
  for (t = 0; t < dim; t++) sum[t] += row[t];
}

static void hai_few_scores_scalar(const hai_few_rows *keys, const float *query, int n, float *score) {
  hai_index t;
  int i, j;
  for (i = 0; i < n; i++, query += keys->dim, score += HAI_CHUNK)
    for (j = 0; j < keys->n; j++) {
      const float *key = HAI_AS(const float *, HAI_AS(const void *, keys->row[j]));
      score[j] = 0.0f;
      for (t = 0; t < keys->dim; t++) score[j] += query[t] * key[t];
    }
}

static void hai_few_softmax_scalar(float *score, int n, int n_keys, const float *log_weight,
                                   const uint64_t *visible, float *m, float *l, float *factor) {
  int i, j;
  for (i = 0; i < n; i++, score += HAI_CHUNK) {
    float high = m[i], shift, sum = 0.0f;
    for (j = 0; j < n_keys; j++) {
      if (log_weight) score[j] += log_weight[j];
      if (!(visible[i] >> j & 1)) score[j] = -hai_inf();
      if (score[j] > high) high = score[j];
    }
    high = hai_moved(m[i], high);
    shift = hai_shift(high);
    for (j = 0; j < n_keys; j++) {
      score[j] = hai_exp(score[j] - shift);
      sum += score[j];
    }
    factor[i] = hai_exp(m[i] - shift);
    l[i] = l[i] * factor[i] + sum;
    m[i] = high;
  }
}

static void hai_few_values_scalar(const hai_few_rows *values, const float *weight, const float *factor, int n,
                                  float *o) {
  hai_index t;
  int i, j;
  for (i = 0; i < n; i++, weight += HAI_CHUNK, o += values->dim)
    for (t = 0; t < values->dim; t++) {
      float sum = 0.0f;
      for (j = 0; j < values->n; j++)
        sum += weight[j] * HAI_AS(const float *, HAI_AS(const void *, values->row[j]))[t];
      o[t] = o[t] * factor[i] + sum;
    }
}

static const hai_few_kernel hai_few_scalar = {
    /* scores */ hai_few_scores_scalar,
    /* softmax */ hai_few_softmax_scalar,
    /* values */ hai_few_values_scalar,
    /* most */ 1,
    /* queries */ 4,
    /* step */ 1};

static const hai_kernel hai_kernel_scalar = {
    /* isa */ HYPERATTN_ISA_SCALAR,
    /* dtype */ HYPERATTN_F32,
    /* lanes */ HAI_SCALAR_LANES,
    /* width */ 1,
    /* tiles */ 1,
    /* widen */ hai_widen_scalar,
    /* pack */ hai_pack_scalar,
    /* unpack */ hai_unpack_scalar,
    /* scores */ hai_scores_scalar,
    /* cap */ HAI_SOFTCAP ? hai_cap_scalar : HAI_NULL,
    /* hide */ HAI_MASKS ? hai_hide_scalar : HAI_NULL,
    /* add_bias */ HAI_MASKS ? hai_add_bias_scalar : HAI_NULL,
    /* softmax */ hai_softmax_scalar,
    /* round */ HAI_NULL,
    /* join */ HAI_NULL,
    /* values */ hai_values_scalar,
    /* scale */ hai_scale_scalar,
    /* carry */ HAI_LONG_SUMS ? hai_carry_scalar : HAI_NULL,
    /* gather */ HAI_LONG_SUMS ? hai_gather_scalar : HAI_NULL,
    /* sum_lanes */ hai_sum_lanes_scalar,
    /* square */ hai_square_scalar,
    /* add_row */ hai_add_row_scalar,
    /* value_multiple */ 1,
    /* few */ HAI_FEW ? &hai_few_scalar : HAI_NULL,
    /* enter */ HAI_NULL,
    /* leave */ HAI_NULL};
