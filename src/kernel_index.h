/* Template: the scan of an index, for few queries, keys in the lanes. Included by kernel_scan.h for each of
   its ways, with its primitives and these:
     codes(p)              a register of the bytes at p
     low(x), down(x)       the lowest two bits of each byte; x with each two bits of a byte at the lower two's
                           place, whatever comes from the next byte above them
     above(x)              bit i: lane i, a float, is above 0
   Codes of an index are 0 .. 127, the same as signed and as unsigned bytes. */

#define HAI_GUESS_MOST (HAI_N_ROWS / 2) /* queries whose sums fit the registers: 2 or 4 */
#define HAI_GUESS_LOAD(r)                          \
  y##r = HAI_ISA(codes)(code + 4 * r * HAI_WIDTH); \
  HAI_PREFETCH(HAI_REINTERPRET(const char *, code) + ahead + 4 * r * HAI_WIDTH);
#define HAI_GUESS_SUMS(r) HAI_INTS c0##r = HAI_ISA(ints1)(0), c1##r = c0##r, c2##r = c0##r, c3##r = c0##r;
#define HAI_GUESS_DOT(i, r) \
  if (n > i) c##i##r = HAI_SCAN_DOT(x, w##i, c##i##r);
#define HAI_GUESS_ADD(r)                                                            \
  x = HAI_ISA(low)(y##r);                                                           \
  HAI_GUESS_DOT(0, r) HAI_GUESS_DOT(1, r) HAI_GUESS_DOT(2, r) HAI_GUESS_DOT(3, r)   \
  y##r = HAI_ISA(down)(y##r);
#define HAI_GUESS_SUMS_OF(i) c##i##0, c##i##1, c##i##2, c##i##3
#define HAI_GUESS_OUT(i) \
  if (n > i) HAI_WAY(guess_out)(query + i, block, base[i], j, HAI_GUESS_SUMS_OF(i), score[i], high + i);

/* The mean's part of all scores of a block. */
HAI_SCAN_TARGET HAI_INLINE float HAI_WAY(guess_mean)(const hai_index_query *query,
                                                     const hai_index_block *block) {
  HAI_INTS sum = HAI_ISA(ints1)(0);
  hai_index w;
  for (w = 0; w < query->n_words; w += HAI_WIDTH)
    sum = HAI_SCAN_DOT(HAI_ISA(codes)(block->mean + 4 * w), HAI_ISA(ints)(query->word + w), sum);
  return query->unit * block->mean_unit *
         (HAI_ISA(sum)(HAI_ISA(floats)(sum)) - HAI_AS(float, HAI_MEAN_RAISED * query->sum));
}

/* Scores of four registers of keys from `at` on, from their sums; *high becomes the largest. */
#define HAI_GUESS_SCORE(r)                                                                              \
  x = HAI_ISA(floats)(HAI_ISA(minus)(HAI_ISA(plus)(c##r, c##r), lift));                                 \
  x = HAI_ISA(fma)(HAI_ISA(int8)(block->norm + at + r * HAI_WIDTH), HAI_ISA(fma)(x, unit, more), base); \
  HAI_ISA(store)(score + at + r * HAI_WIDTH, x);                                                        \
  most = HAI_ISA(max)(x, most);
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_out)(const hai_index_query *query, const hai_index_block *block,
                                                   float from, int at, HAI_INTS c0, HAI_INTS c1, HAI_INTS c2,
                                                   HAI_INTS c3, float *score, float *high) {
  HAI_INTS lift = HAI_ISA(ints1)(3 * query->sum);
  HAI_VECTOR unit = HAI_ISA(set1)(query->unit * block->norm_unit),
             more = HAI_ISA(set1)(query->more * block->norm_unit), base = HAI_ISA(set1)(from),
             most = HAI_ISA(set1)(*high), x;
  HAI_ROWS_4(HAI_GUESS_SCORE)
  *high = HAI_ISA(most)(most);
}

/* Four registers of keys at a time, so that each has its sums, for up to HAI_GUESS_MOST queries, which share
   what is taken out of the codes. c<query><register> are the sums. Registers: AVX2 2 x 4 sums, 4 codes, one
   of them alone and two words, 15 of 16; AVX-512 and NEON 4 x 4, 4, 1 and 4, 25 of 32. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_some)(const hai_index_query *query, const int n,
                                                    const hai_index_block *block, float *const *score,
                                                    float *high) {
  const int32_t *word[4] = {query->word, query[n > 1].word, query[n > 2 ? 2 : 0].word,
                            query[n > 3 ? 3 : 0].word};
  hai_index g;
  size_t ahead = block->ahead;
  float base[4] = {0.0f};
  int j, s, i;
  for (i = 0; i < n; i++) {
    base[i] = HAI_WAY(guess_mean)(query + i, block);
    high[i] = -hai_inf();
  }
  for (j = 0; j < HAI_CHUNK; j += 4 * HAI_WIDTH) {
    const uint8_t *code = block->code + 4 * j;
    HAI_INTS w0, w1, w2, w3, x, y0, y1, y2, y3;
    HAI_ROWS_4(HAI_GUESS_SUMS)
    for (g = 0; g < query->n_groups; g++, code += 4 * HAI_CHUNK) {
      HAI_ROWS_4(HAI_GUESS_LOAD)
      for (s = 0; s < 4; s++) {
        w0 = w1 = w2 = w3 = HAI_ISA(ints1)(word[0][4 * g + s]);
        if (n > 1) w1 = HAI_ISA(ints1)(word[1][4 * g + s]);
        if (n > 2) w2 = HAI_ISA(ints1)(word[2][4 * g + s]);
        if (n > 3) w3 = HAI_ISA(ints1)(word[3][4 * g + s]);
        HAI_ROWS_4(HAI_GUESS_ADD)
      }
    }
    HAI_ROWS_4(HAI_GUESS_OUT)
  }
}
HAI_SCAN_TARGET static void HAI_WAY(guess)(const hai_index_query *query, int n, const hai_index_block *block,
                                           float *const *score, float *high) {
  for (; n > HAI_GUESS_MOST; n -= HAI_GUESS_MOST) {
    HAI_WAY(guess_some)(query, HAI_GUESS_MOST, block, score, high);
    query += HAI_GUESS_MOST;
    score += HAI_GUESS_MOST;
    high += HAI_GUESS_MOST;
  }
  if (HAI_GUESS_MOST > 3 && n == 4)
    HAI_WAY(guess_some)(query, 4, block, score, high);
  else if (HAI_GUESS_MOST > 2 && n == 3)
    HAI_WAY(guess_some)(query, 3, block, score, high);
  else if (n == 2)
    HAI_WAY(guess_some)(query, 2, block, score, high);
  else
    HAI_WAY(guess_some)(query, 1, block, score, high);
}

HAI_SCAN_TARGET static float HAI_WAY(weigh)(float *score, hai_index n, float tilt, float high) {
  HAI_VECTOR by = HAI_ISA(set1)(tilt * HAI_BITS_OF_E), from = HAI_ISA(set1)(high), sum = HAI_ISA(zero)();
  HAI_VECTOR one = HAI_ISA(set1)(HAI_BITS_OF_1);
  hai_index j;
  for (j = 0; j < n; j += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(fma)(HAI_ISA(sub)(HAI_ISA(load)(score + j), from), by, one);
    x = HAI_ISA(by_bits)(HAI_ISA(truncate)(HAI_ISA(max)(x, HAI_ISA(zero)())));
    HAI_ISA(store)(score + j, x);
    sum = HAI_ISA(add)(sum, x);
  }
  return HAI_ISA(sum)(sum);
}

HAI_SCAN_TARGET static uint64_t HAI_WAY(above)(const float *weight, float level) {
  HAI_VECTOR from = HAI_ISA(set1)(level);
  uint64_t bits = 0;
  int j;
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH)
    bits |= HAI_AS(uint64_t, HAI_ISA(above)(HAI_ISA(sub)(HAI_ISA(load)(weight + j), from))) << j;
  return bits;
}

HAI_SCAN_TARGET static void HAI_WAY(keep)(const hai_levels *levels, hai_index n, uint64_t *bits) {
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++) {
    HAI_VECTOR from = HAI_ISA(set1)(levels->shift[b]);
    uint64_t kept = 0;
    for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH) {
      HAI_VECTOR u = HAI_ISA(add)(HAI_ISA(load)(levels->place + j), from);
      uint32_t here = 0;
      u = HAI_ISA(sub)(u, HAI_ISA(floats)(HAI_ISA(truncate)(u)));
      for (i = 0; i < levels->n; i++) {
        HAI_VECTOR weight = HAI_ISA(load)(levels->weight[i] + b * HAI_CHUNK + j);
        here |= HAI_ISA(above)(HAI_ISA(fma)(HAI_ISA(set1)(-levels->level[i]), u, weight));
      }
      kept |= HAI_AS(uint64_t, here) << j;
    }
    bits[b] = kept;
  }
}

/* The Hadamard matrix, x [n][HAI_TURNED], each row times `factor` at the end. */
HAI_SCAN_TARGET static void HAI_WAY(turn)(float *x, hai_index n, float factor) {
  HAI_VECTOR by = HAI_ISA(set1)(factor);
  hai_index half, t, u;
  for (half = HAI_TURNED; half < n * HAI_TURNED; half *= 2)
    for (t = 0; t < n * HAI_TURNED; t += 2 * half)
      for (u = t; u < t + half; u += HAI_WIDTH) {
        HAI_VECTOR a = HAI_ISA(load)(x + u), b = HAI_ISA(load)(x + u + half);
        HAI_ISA(store)(x + u, HAI_ISA(add)(a, b));
        HAI_ISA(store)(x + u + half, HAI_ISA(sub)(a, b));
      }
  for (t = 0; t < n * HAI_TURNED; t += HAI_WIDTH)
    HAI_ISA(store)(x + t, HAI_ISA(mul)(HAI_ISA(load)(x + t), by));
}

HAI_SCAN_TARGET static void HAI_WAY(differ)(float *x, hai_index dim, const float *mean, float *square) {
  hai_index t;
  int j;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (t = 0; t < dim; t++) {
      HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(x + t * HAI_TURNED + j), HAI_ISA(set1)(mean[t]));
      HAI_ISA(store)(x + t * HAI_TURNED + j, y);
      sum = HAI_ISA(fma)(y, y, sum);
    }
    HAI_ISA(store)(square + j, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(halve)(const float *x, hai_index dim, const float *inverse, uint8_t *code,
                                           float *product) {
  HAI_VECTOR two = HAI_ISA(set1)(2.0f), most = HAI_ISA(set1)(3.5f), three = HAI_ISA(set1)(-3.0f);
  int32_t words[HAI_WIDTH];
  hai_index begin;
  int j, at;
  for (j = 0; j < HAI_TURNED; j += HAI_WIDTH) {
    HAI_VECTOR by = HAI_ISA(load)(inverse + j), sum = HAI_ISA(zero)();
    for (begin = 0; begin < dim; begin += HAI_GROUP_DIM) {
      HAI_INTS word = HAI_ISA(ints1)(0), c;
      for (at = HAI_GROUP_DIM - 1; at >= 0; at--) {
        hai_index t = begin + at % 4 * 4 + at / 4;
        word = HAI_ISA(plus)(word, word);
        word = HAI_ISA(plus)(word, word);
        if (t < dim) {
          HAI_VECTOR y = HAI_ISA(load)(x + t * HAI_TURNED + j), z = HAI_ISA(fma)(y, by, two);
          c = HAI_ISA(truncate)(HAI_ISA(max)(HAI_ISA(min)(z, most), HAI_ISA(zero)()));
          word = HAI_ISA(plus)(word, c);
          sum = HAI_ISA(fma)(y, HAI_ISA(fma)(HAI_ISA(floats)(c), two, three), sum);
        }
      }
      HAI_ISA(put)(words, word);
      HYPERATTN_MEMCPY(code + 4 * (begin / HAI_GROUP_DIM * HAI_CHUNK + j), words, sizeof words);
    }
    HAI_ISA(store)(product + j, sum);
  }
}

#undef HAI_GUESS_MOST
#undef HAI_GUESS_LOAD
#undef HAI_GUESS_DOT
#undef HAI_GUESS_SUMS_OF
#undef HAI_GUESS_ADD
#undef HAI_GUESS_SUMS
#undef HAI_GUESS_SCORE
#undef HAI_GUESS_OUT
