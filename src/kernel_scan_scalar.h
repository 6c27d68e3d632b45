/* The scan in plain C: the specification of the vector kernels. */

#if HAI_SCAN
/* The largest of |x| by its bits, which order as the numbers do. */
static void hai_scan_largest_scalar(const float *query, hai_index dim, int32_t *bits) {
  hai_index t;
  int i;
  for (i = 0; i < HAI_SCALAR_LANES; i++) bits[i] = 0;
  for (t = 0; t < dim; t++)
    for (i = 0; i < HAI_SCALAR_LANES; i++) {
      int32_t size = HAI_AS(int32_t, hai_bits(query[t * HAI_SCALAR_LANES + i]) & 0x7fffffffu);
      if (size > bits[i]) bits[i] = size;
    }
}

/* x as an integer, cut off at -most and most; NaN becomes -most. */
static int32_t hai_scan_truncate(float x, float most) {
  if (!(x > -most)) x = -most;
  return HAI_AS(int32_t, x < most ? x : most);
}

/* A product is rounded to thousandths first, towards 0, and those to whole numbers: no compiler can contract
   either step into another sum. */
static int32_t hai_scan_code(float x, float inverse) {
  int32_t fine = hai_scan_truncate(x * (inverse * HAI_CODE_FINE), HAI_CODE_MOST);
  return (fine + HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2) / HAI_CODE_FINE - HAI_KEY_RAISED;
}

static void hai_scan_quantise_scalar(const float *query, hai_index dim, float inverse, int32_t *code) {
  hai_index t, y;
  int i;
  for (t = 0; t < dim; t += 4)
    for (i = 0; i < HAI_SCALAR_LANES; i++) {
      uint32_t word = 0;
      for (y = hai_min(dim, t + 4) - 1; y >= t; y--)
        word = word << 8 | (HAI_AS(uint32_t, hai_scan_code(query[y * HAI_SCALAR_LANES + i], inverse)) & 255u);
      code[t / 4 * HAI_SCALAR_LANES + i] = HAI_AS(int32_t, word);
    }
}

static void hai_scan_forces_scalar(const hai_scan_queries *queries, int32_t *all, int32_t *most) {
  int i, w;
  for (w = 0; w < queries->n_words; w++) {
    all[w] = most[w] = 0;
    for (i = 0; i < HAI_SCALAR_LANES; i++) {
      uint32_t word = HAI_AS(uint32_t, queries->code[w * HAI_SCALAR_LANES + i]);
      int32_t sum = 0;
      for (; word; word >>= 8) sum += HAI_AS(int8_t, word & 255u) * HAI_AS(int8_t, word & 255u);
      all[w] += sum;
      most[w] = sum > most[w] ? sum : most[w];
    }
  }
}

/* Codes are not raised where they are multiplied. */
static void hai_scan_lift_scalar(const hai_scan_queries *queries) {
  HYPERATTN_MEMSET(queries->lift, 0, 2 * HAI_SCALAR_LANES * sizeof *queries->lift);
}

/* The sum of products of lane i's codes and a key's, of words begin .. end - 1 of the order. */
static int32_t hai_scan_product(const hai_scan_queries *queries, int i, const uint8_t *key, int begin,
                                int end) {
  int32_t sum = 0;
  for (; begin < end; begin++) {
    int32_t at = queries->word[begin];
    uint32_t word = HAI_AS(uint32_t, queries->code[at * HAI_SCALAR_LANES + i]);
    const uint8_t *four = key + 4 * at;
    sum += HAI_AS(int8_t, word & 255u) * (four[0] - HAI_KEY_RAISED) +
           HAI_AS(int8_t, word >> 8 & 255u) * (four[1] - HAI_KEY_RAISED) +
           HAI_AS(int8_t, word >> 16 & 255u) * (four[2] - HAI_KEY_RAISED) +
           HAI_AS(int8_t, word >> 24) * (four[3] - HAI_KEY_RAISED);
  }
  return sum;
}

static void hai_scan_estimate_scalar(const hai_scan_queries *queries, const hai_scan_block *block, int first,
                                     float *score) {
  int i, j;
  for (j = first; j < first + HAI_PILOT; j++, score += HAI_SCALAR_LANES)
    for (i = queries->begin; i < queries->end; i++) {
      const uint8_t *key = block->code + 4 * j * queries->n_words;
      int32_t product = hai_scan_product(queries, i, key, 0, queries->n_words);
      score[i] = block->unit * HAI_AS(float, product) + block->mean[i];
    }
}

static void hai_scan_collect_scalar(const float *score, int begin, int end, float *high, float *sum,
                                    float *group) {
  int i, j;
  for (i = begin; i < end; i++) {
    float most = high[i], here = 0.0f, factor;
    for (j = 0; j < HAI_PILOT; j++)
      most = score[j * HAI_SCALAR_LANES + i] > most ? score[j * HAI_SCALAR_LANES + i] : most;
    factor = hai_exp(high[i] - hai_shift(most));
    for (j = 0; j < HAI_PILOT; j++) here += hai_exp(score[j * HAI_SCALAR_LANES + i] - hai_shift(most));
    sum[i] = sum[i] * factor + here;
    group[i] = group[i] * factor > here ? group[i] * factor : here;
    high[i] = most;
  }
}

static uint64_t hai_scan_hits_scalar(const hai_scan_queries *queries, const hai_scan_block *block,
                                     int32_t *most) {
  int32_t threshold[HAI_SCALAR_LANES] = {0};
  float inverse = 1.0f / block->unit;
  uint64_t hits = 0;
  int i, j;
  for (i = queries->begin; i < queries->end; i++)
    threshold[i] = hai_scan_truncate((queries->level[i] - block->mean[i]) * inverse, HAI_MOST_LEVEL);
  for (j = 0; j < HAI_CHUNK; j++) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    int32_t draw = hai_scan_truncate(block->draw[j] * inverse, HAI_MOST_DRAW), best = INT32_MIN,
            first = INT32_MIN;
    for (i = queries->begin; i < queries->end; i++) {
      int32_t over = hai_scan_product(queries, i, key, 0, queries->n_first) + block->margin - threshold[i];
      first = over > first ? over : first;
    }
    if (first + draw <= 0) continue;
    for (i = queries->begin; i < queries->end; i++) {
      int32_t over = hai_scan_product(queries, i, key, 0, queries->n_words) - threshold[i];
      best = over > best ? over : best;
    }
    most[j] = best < first ? best : first;
    hits |= HAI_AS(uint64_t, most[j] + draw > 0) << j;
  }
  return hits;
}

static void hai_scan_missing_scalar(const float *log_weight, int n, float *missing) {
  int j;
  for (j = 0; j < n; j++) missing[j] = 1.0f - hai_exp(-log_weight[j]);
}

static void hai_scan_spread_scalar(const float *weight, int n_keys, const float *missing,
                                   const float *distance, const float *factor, int begin, int end,
                                   float *scatter, float *squares) {
  int i, j;
  for (i = begin; i < end; i++) {
    scatter[i] *= factor[i] * factor[i];
    squares[i] *= factor[i] * factor[i];
    for (j = 0; j < n_keys; j++) {
      float w = weight[j * HAI_SCALAR_LANES + i], square = w * w * missing[j];
      scatter[i] += square * distance[j];
      squares[i] += square;
    }
  }
}

static void hai_scan_distances_scalar(const float *o, hai_index dim, const float *l, const float *centre,
                                      int begin, int end, float *norm, float *apart) {
  hai_index t;
  int i;
  for (i = begin; i < end; i++) {
    float inverse = 1.0f / l[i];
    norm[i] = apart[i] = 0.0f;
    for (t = 0; t < dim; t++) {
      float x = o[t * HAI_SCALAR_LANES + i] * inverse, from = x - centre[t];
      norm[i] += x * x;
      apart[i] += from * from;
    }
  }
}

/* ---- The sketch, from coordinate `from` on ---- */

static void hai_scan_mean_plain(const float *const *row, hai_index from, hai_index dim, float *mean) {
  hai_index t;
  int j;
  for (t = from; t < dim; t++) {
    mean[t] = 0.0f;
    for (j = 0; j < HAI_CHUNK; j++) mean[t] += row[j][t];
    mean[t] *= 1.0f / HAI_CHUNK;
  }
}
static int32_t hai_scan_reach_plain(const float *const *row, hai_index from, hai_index dim, const float *mean,
                                    int32_t most) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_CHUNK; j++)
    for (t = from; t < dim; t++) {
      int32_t size = HAI_AS(int32_t, hai_bits(row[j][t] - mean[t]) & 0x7fffffffu);
      most = size > most ? size : most;
    }
  return most;
}
static void hai_scan_encode_plain(const float *row, hai_index from, hai_index dim, const float *mean,
                                  float inverse, uint8_t *code) {
  hai_index t;
  for (t = from; t < dim; t++) {
    int32_t fine = hai_scan_truncate((row[t] - mean[t]) * (inverse * HAI_CODE_FINE), HAI_KEY_MOST);
    code[t] = HAI_AS(uint8_t, (fine + HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2) / HAI_CODE_FINE);
  }
  for (; t % 4; t++) code[t] = HAI_KEY_RAISED;
}
/* The sum of squares of a word's codes. */
static int32_t hai_scan_squares(const uint8_t *code) {
  int32_t sum = 0;
  int y;
  for (y = 0; y < 4; y++) sum += (code[y] - HAI_KEY_RAISED) * (code[y] - HAI_KEY_RAISED);
  return sum;
}
static void hai_scan_norms_plain(const uint8_t *code, int from, int n_words, int32_t *norm) {
  int j;
  for (; from < n_words; from++) {
    norm[from] = 0;
    for (j = 0; j < HAI_CHUNK; j++) {
      int32_t sum = hai_scan_squares(code + 4 * (j * n_words + from));
      norm[from] = sum > norm[from] ? sum : norm[from];
    }
  }
}
static float hai_scan_apart_plain(const float *row, hai_index from, hai_index dim, const float *centre) {
  float sum = 0.0f;
  for (; from < dim; from++) sum += (row[from] - centre[from]) * (row[from] - centre[from]);
  return sum;
}
static void hai_scan_mean_scalar(const float *const *row, hai_index dim, float *mean) {
  hai_scan_mean_plain(row, 0, dim, mean);
}
static int32_t hai_scan_reach_scalar(const float *const *row, hai_index dim, const float *mean) {
  return hai_scan_reach_plain(row, 0, dim, mean, 0);
}
static void hai_scan_encode_scalar(const float *row, hai_index dim, const float *mean, float inverse,
                                   uint8_t *code) {
  hai_scan_encode_plain(row, 0, dim, mean, inverse, code);
}
static void hai_scan_norms_scalar(const uint8_t *code, int n_words, int32_t *norm) {
  hai_scan_norms_plain(code, 0, n_words, norm);
}
static float hai_scan_apart_scalar(const float *row, hai_index dim, const float *centre) {
  return hai_scan_apart_plain(row, 0, dim, centre);
}

static const hai_scan_kernel hai_scan_kernel_scalar = {
    /* largest */ hai_scan_largest_scalar,
    /* quantise */ hai_scan_quantise_scalar,
    /* forces */ hai_scan_forces_scalar,
    /* lift */ hai_scan_lift_scalar,
    /* estimate */ hai_scan_estimate_scalar,
    /* collect */ hai_scan_collect_scalar,
    /* hits */ hai_scan_hits_scalar,
    /* missing */ hai_scan_missing_scalar,
    /* spread */ hai_scan_spread_scalar,
    /* distances */ hai_scan_distances_scalar,
    /* mean */ hai_scan_mean_scalar,
    /* reach */ hai_scan_reach_scalar,
    /* encode */ hai_scan_encode_scalar,
    /* norms */ hai_scan_norms_scalar,
    /* apart */ hai_scan_apart_scalar,
#if HAI_INDEX
    /* guess */ hai_index_guess_scalar,
    /* weigh */ hai_index_weigh_scalar,
    /* at_least */ hai_index_at_least_scalar,
    /* keep */ hai_index_keep_scalar,
    /* turn */ hai_index_turn_scalar,
    /* differ */ hai_index_differ_scalar,
    /* halve */ hai_index_halve_scalar,
#endif
    /* cost */ 0.3f};
#endif
