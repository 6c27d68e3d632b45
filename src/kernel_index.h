/* Template: the scan of an index, for few queries, keys in the lanes. Included by kernel_scan.h for each of
   its ways, with its primitives and these:
     codes(p)              a register of the bytes at p
     low(x), down(x)       the lowest two bits of each byte; x with each two bits of a byte at the lower two's
                           place, whatever comes from the next byte above them
     nearest(x)            to integers, the nearest
     cut(p, x), wide(p)    stores each lane as 16 bits, cut to what these hold; loads such
     smaller(a, b), up(x)  of each lane; each lane times 2^20
   and these of 2 HAI_WIDTH integers of 16 bits, shorts(p) loads:
     shorts1(x)            x in all lanes
     less(a, b), more(a, b), most_short(a, b)   a - b, cut to 16 bits; a + b; the larger of each lane
     bits(u, v)            the bits of floats, of two registers, over 2^20
     over(a, b)            bit i: lane i of a is above that of b
   Codes of an index are 0 .. 127, the same as signed and as unsigned bytes. */

#define HAI_GUESS_MOST (HAI_N_ROWS / 2) /* queries whose sums fit the registers: 2 or 4 */
#define HAI_GUESS_LOAD(r)                          \
  y##r = HAI_ISA(codes)(code + 4 * r * HAI_WIDTH); \
  HAI_PREFETCH(HAI_REINTERPRET(const char *, code) + ahead + 4 * r * HAI_WIDTH);
#define HAI_GUESS_SUMS(r) HAI_INTS c0##r = HAI_ISA(ints1)(0), c1##r = c0##r, c2##r = c0##r, c3##r = c0##r;
#define HAI_GUESS_DOT(i, r) \
  if (n > i) c##i##r = HAI_SCAN_DOT(x, w##i, c##i##r);
#define HAI_GUESS_ADD(r)  \
  x = HAI_ISA(low)(y##r); \
  HAI_GUESS_DOT(0, r) HAI_GUESS_DOT(1, r) HAI_GUESS_DOT(2, r) HAI_GUESS_DOT(3, r) y##r = HAI_ISA(down)(y##r);
#define HAI_GUESS_SUMS_OF(i) c##i##0, c##i##1, c##i##2, c##i##3
#define HAI_GUESS_OUT(i)        \
  if (n > i) HAI_WAY(guess_out) \
  (query + i, block, base[i], f0, f1, f2, f3, HAI_GUESS_SUMS_OF(i), score[i] + j, weights + i);
#define HAI_GUESS_NORM(r) f##r = HAI_ISA(int8)(block->norm + j + r * HAI_WIDTH);
#define HAI_GUESS_SCORE(r)                                                            \
  x = HAI_ISA(fma)(HAI_ISA(floats)(c##r), HAI_ISA(set1)(slope), HAI_ISA(set1)(more)); \
  y = HAI_ISA(nearest)(HAI_ISA(fma)(f##r, x, HAI_ISA(set1)(base)));                   \
  HAI_ISA(cut)(score + r * HAI_WIDTH, y);                                             \
  sum = HAI_ISA(add)(sum, HAI_WAY(weight)(y, from));

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

HAI_SCAN_TARGET HAI_INLINE HAI_VECTOR HAI_WAY(weight)(HAI_INTS score, HAI_INTS from) {
  HAI_INTS steps = HAI_ISA(larger)(HAI_ISA(minus)(score, from), HAI_ISA(ints1)(HAI_STEP_LEAST));
  return HAI_ISA(by_bits)(HAI_ISA(up)(HAI_ISA(smaller)(steps, HAI_ISA(ints1)(HAI_STEP_TOP))));
}

/* Scores of four registers of keys, of norms f and sums c. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_out)(const hai_index_query *query, const hai_index_block *block,
                                                   float base, HAI_VECTOR f0, HAI_VECTOR f1, HAI_VECTOR f2,
                                                   HAI_VECTOR f3, HAI_INTS c0, HAI_INTS c1, HAI_INTS c2,
                                                   HAI_INTS c3, int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1), y;
  float slope = 2.0f * query->unit * block->norm_unit;
  float more = (query->more - HAI_AS(float, 3 * query->sum) * query->unit) * block->norm_unit;
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane), x;
  HAI_ROWS_4(HAI_GUESS_SCORE)
  HAI_ISA(store)(weights->lane, sum);
}

/* Four registers of keys at a time, so that each has its sums, for up to HAI_GUESS_MOST queries, which share
   what is taken out of the codes. c<query><register> are the sums. Registers: AVX2 2 x 4 sums, 4 codes, one
   of them alone and two words, 15 of 16; AVX-512 and NEON 4 x 4, 4, 1 and 4, 25 of 32. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(guess_some)(const hai_index_query *query, const int n,
                                                    const hai_index_block *block, int16_t *const *score,
                                                    hai_weights *weights) {
  const int32_t *word[4] = {query->word, query[n > 1].word, query[n > 2 ? 2 : 0].word,
                            query[n > 3 ? 3 : 0].word};
  hai_index g;
  size_t ahead = block->ahead;
  float base[4] = {0.0f};
  int j, s, i;
  for (i = 0; i < n; i++) base[i] = HAI_WAY(guess_mean)(query + i, block);
  for (j = 0; j < HAI_CHUNK; j += 4 * HAI_WIDTH) {
    const uint8_t *code = block->code + 4 * j;
    HAI_INTS w0, w1, w2, w3, x, y0, y1, y2, y3;
    HAI_VECTOR f0, f1, f2, f3;
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
    HAI_ROWS_4(HAI_GUESS_NORM)
    HAI_ROWS_4(HAI_GUESS_OUT)
  }
}
HAI_SCAN_TARGET static void HAI_WAY(guess)(const hai_index_query *query, int n, const hai_index_block *block,
                                           int16_t *const *score, hai_weights *weights) {
  for (; n > HAI_GUESS_MOST; n -= HAI_GUESS_MOST) {
    HAI_WAY(guess_some)(query, HAI_GUESS_MOST, block, score, weights);
    query += HAI_GUESS_MOST;
    score += HAI_GUESS_MOST;
    weights += HAI_GUESS_MOST;
  }
  if (HAI_GUESS_MOST > 3 && n == 4)
    HAI_WAY(guess_some)(query, 4, block, score, weights);
  else if (HAI_GUESS_MOST > 2 && n == 3)
    HAI_WAY(guess_some)(query, 3, block, score, weights);
  else if (n == 2)
    HAI_WAY(guess_some)(query, 2, block, score, weights);
  else
    HAI_WAY(guess_some)(query, 1, block, score, weights);
}

HAI_SCAN_TARGET static void HAI_WAY(weigh)(const int16_t *score, hai_weights *weights) {
  HAI_INTS from = HAI_ISA(ints1)(weights->from - HAI_STEP_OF_1);
  HAI_VECTOR sum = HAI_ISA(load)(weights->lane);
  int j;
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH)
    sum = HAI_ISA(add)(sum, HAI_WAY(weight)(HAI_ISA(wide)(score + j), from));
  HAI_ISA(store)(weights->lane, sum);
}

HAI_SCAN_TARGET static void HAI_WAY(at_least)(const int16_t *score, hai_index n, int least, uint64_t *bits) {
  HAI_INTS below = HAI_ISA(shorts1)(least - 1);
  hai_index b;
  int j;
  for (b = 0; b < n; b++, score += HAI_CHUNK)
    for (bits[b] = 0, j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH)
      bits[b] |= HAI_AS(uint64_t, HAI_ISA(over)(HAI_ISA(shorts)(score + j), below)) << j;
}

/* Floats above 0 order as their bits do, and those of a weight are 0 behind its steps: a weight is above u
   if its steps are more than u's whole ones. */
HAI_SCAN_TARGET static void HAI_WAY(keep)(const hai_levels *levels, hai_index n, uint64_t *bits) {
  HAI_INTS least = HAI_ISA(shorts1)(-HAI_STEP_OF_1);
  hai_index b;
  int i, j;
  for (b = 0; b < n; b++) {
    HAI_VECTOR from = HAI_ISA(set1)(levels->shift[b]);
    uint64_t kept = 0;
    for (j = 0; j < HAI_CHUNK; j += 2 * HAI_WIDTH) {
      HAI_VECTOR u = HAI_ISA(add)(HAI_ISA(load)(levels->place + j), from),
                 v = HAI_ISA(add)(HAI_ISA(load)(levels->place + j + HAI_WIDTH), from);
      HAI_INTS most = least;
      u = HAI_ISA(sub)(u, HAI_ISA(floats)(HAI_ISA(truncate)(u)));
      v = HAI_ISA(sub)(v, HAI_ISA(floats)(HAI_ISA(truncate)(v)));
      for (i = 0; i < levels->n; i++) {
        HAI_INTS score = HAI_ISA(shorts)(levels->score[i] + b * HAI_CHUNK + j);
        most = HAI_ISA(most_short)(HAI_ISA(less)(score, HAI_ISA(shorts1)(levels->level[i])), most);
      }
      kept |= HAI_AS(uint64_t, HAI_ISA(over)(most, HAI_ISA(more)(HAI_ISA(bits)(u, v), least))) << j;
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
#undef HAI_GUESS_NORM
#undef HAI_GUESS_SCORE
#undef HAI_GUESS_OUT
