/* The scan of an index in plain C: the specification of kernel_index.h. */

#if HAI_INDEX
/* The product of four codes and four of a query's. */
static int32_t hai_index_product(const uint8_t *code, int32_t word) {
  uint32_t four = HAI_AS(uint32_t, word);
  return code[0] * HAI_AS(int8_t, four & 255u) + code[1] * HAI_AS(int8_t, four >> 8 & 255u) +
         code[2] * HAI_AS(int8_t, four >> 16 & 255u) + code[3] * HAI_AS(int8_t, four >> 24);
}

/* An estimate as it is kept: rounded, in 16 bits. */
static int16_t hai_index_cut(float x) {
  float cut = x < -32768.0f ? -32768.0f : x < 32767.0f ? x : 32767.0f;
  return HAI_AS(int16_t, HAI_AS(int, cut + 32768.5f) - 32768);
}

/* A weight by a score. */
static float hai_index_weight(int score, int from) {
  int steps = score - from, top = HAI_STEP_TOP - HAI_STEP_OF_1;
  return hai_step_weight(steps < top ? steps : top);
}

static void hai_index_guess_one(const hai_index_query *query, const hai_index_block *block, int16_t *score,
                                hai_weights *weights) {
  int32_t mean = -HAI_MEAN_RAISED * query->sum;
  float slope = 2.0f * query->unit * block->norm_unit, base;
  float more = (query->more - HAI_AS(float, 3 * query->sum) * query->unit) * block->norm_unit;
  hai_index w;
  int j, y;
  for (w = 0; w < query->n_words; w++) mean += hai_index_product(block->mean + 4 * w, query->word[w]);
  base = query->unit * block->mean_unit * HAI_AS(float, mean);
  for (j = 0; j < HAI_CHUNK; j++) {
    int32_t sum = 0;
    for (w = 0; w < 4 * query->n_groups; w++) {
      const uint8_t *code = block->code + (w / 4 * HAI_CHUNK + j) * 4;
      uint8_t four[4];
      for (y = 0; y < 4; y++) four[y] = HAI_AS(uint8_t, code[y] >> w % 4 * 2 & 3);
      sum += hai_index_product(four, query->word[w]);
    }
    score[j] = hai_index_cut(HAI_AS(float, block->norm[j]) * (HAI_AS(float, sum) * slope + more) + base);
    weights->lane[j % HAI_SUM_LANES] += hai_index_weight(score[j], weights->from);
  }
}
static void hai_index_guess_scalar(const hai_index_query *query, int n, const hai_index_block *block,
                                   int16_t *const *score, hai_weights *weights) {
  int i;
  for (i = 0; i < n; i++) hai_index_guess_one(query + i, block, score[i], weights + i);
}

static void hai_index_weigh_scalar(const int16_t *score, hai_weights *weights) {
  int j;
  for (j = 0; j < HAI_CHUNK; j++)
    weights->lane[j % HAI_SUM_LANES] += hai_index_weight(score[j], weights->from);
}

static void hai_index_at_least_scalar(const int16_t *score, hai_index n, int least, uint64_t *bits) {
  hai_index b;
  int j;
  for (b = 0; b < n; b++, score += HAI_CHUNK)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j++) bits[b] |= HAI_AS(uint64_t, score[j] >= least) << j;
}

static void hai_index_keep_scalar(const hai_levels *levels, hai_index n, uint64_t *bits) {
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j++) {
      float u = levels->place[j] + levels->shift[b];
      int most = -HAI_STEP_OF_1;
      if (u >= 1.0f) u -= 1.0f;
      for (i = 0; i < levels->n; i++) {
        int x = levels->score[i][b * HAI_CHUNK + j] - levels->level[i];
        most = x > most ? x : most;
      }
      bits[b] |= HAI_AS(uint64_t, most >= 0 || hai_step_weight(most) > u) << j;
    }
}

/* Of x [n][lanes]. */
static void hai_index_turn_lanes(float *x, hai_index n, float factor, hai_index lanes) {
  hai_index half, t, u;
  for (half = lanes; half < n * lanes; half *= 2)
    for (t = 0; t < n * lanes; t += 2 * half)
      for (u = t; u < t + half; u++) {
        float a = x[u], b = x[u + half];
        x[u] = a + b;
        x[u + half] = a - b;
      }
  for (t = 0; t < n * lanes; t++) x[t] *= factor;
}
static void hai_index_turn_scalar(float *x, hai_index n, float factor) {
  hai_index_turn_lanes(x, n, factor, HAI_TURNED);
}

static void hai_index_differ_scalar(float *x, hai_index dim, const float *mean, float *square) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j++) square[j] = 0.0f;
  for (t = 0; t < dim; t++)
    for (j = 0; j < HAI_TURNED; j++) {
      float y = x[t * HAI_TURNED + j] - mean[t];
      x[t * HAI_TURNED + j] = y;
      square[j] += y * y;
    }
}

static void hai_index_halve_scalar(const float *x, hai_index dim, const float *inverse, uint8_t *code,
                                   float *product) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j++) {
    product[j] = 0.0f;
    for (t = 0; t < hai_ceil_div(dim, HAI_GROUP_DIM); t++)
      HYPERATTN_MEMSET(code + 4 * (t * HAI_CHUNK + j), 0, 4);
    for (t = 0; t < dim; t++) {
      uint8_t *to = code + 4 * (t / HAI_GROUP_DIM * HAI_CHUNK + j) + t % 4;
      float y = x[t * HAI_TURNED + j], z = y * inverse[j] + 2.0f;
      int c = z > 0.0f ? HAI_AS(int, z < 3.5f ? z : 3.5f) : 0;
      product[j] += y * HAI_AS(float, 2 * c - 3);
      *to = HAI_AS(uint8_t, *to | c << t % HAI_GROUP_DIM / 4 * 2);
    }
  }
}
#endif
