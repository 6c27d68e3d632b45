/* Template: the scan of a tile of queries. Included once for each way to multiply small integers, behind
   the primitives of an ISA and these of its integers (x, a, b registers of int32, HAI_INTS):
     HAI_WAY(name)        the name that a function has for this way: hai_scan_<name>_<way>
     HAI_SCAN_DOT(a, b, c) in each lane, c + the sum of four products of bytes: a's, which word() or
                           HAI_SCAN_LIFT gives, and b's, -63 .. 63; or of a's and a's, sizes
     HAI_SCAN_LIFT         HAI_KEY_RAISED in each byte; 0 where word() takes that from codes
     HAI_SCAN_TARGET       the function attribute for its instructions
     ints(p), put(p, x)    load, store; ints1(x): x in all lanes; word(p): the four codes at p in all lanes
     plus(a, b), minus(a, b), larger(a, b)
     truncate(x), floats(x)   to integers, towards 0, and back
     size(x)               the bits of |x| as an integer
     join(word, x)         word * 256 + x / HAI_CODE_FINE, for x >= 0
     flip(x), sizes(x)     each byte with its highest bit turned, which is 128 more or less; |each byte|
     positive(x)           is any lane above 0; top(x): the largest lane
     bytes(p, x)           stores each lane, which is in 0 .. 255, as a byte
   Sums are named variables for the reason that kernel_tile.h gives. */

#define HAI_SCAN_STARTS(r)                                                      \
  HAI_INTS c##r##0 = HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b0),              \
           c##r##1 = n > 1 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b1) : b1, \
           c##r##2 = n > 2 ? HAI_ISA(minus)(HAI_ISA(ints1)(start[r]), b2) : b2;
#define HAI_SCAN_LOAD(x, p)                             \
  x##0 = HAI_ISA(ints)(p);                              \
  x##1 = n > 1 ? HAI_ISA(ints)((p) + HAI_WIDTH) : x##0; \
  x##2 = n > 2 ? HAI_ISA(ints)((p) + 2 * HAI_WIDTH) : x##0;
#define HAI_SCAN_DOTS(s, key)                   \
  b0 = HAI_ISA(word)(key);                      \
  s##0 = HAI_SCAN_DOT(b0, a0, s##0);            \
  if (n > 1) s##1 = HAI_SCAN_DOT(b0, a1, s##1); \
  if (n > 2) s##2 = HAI_SCAN_DOT(b0, a2, s##2);
#define HAI_SCAN_ADD(r) HAI_SCAN_DOTS(c##r, key + r * dim + 4 * at)

/* Sums of codes' products: c<row><register> = start[row] - threshold, to which those of a word are added. */
#define HAI_SCAN_SUMS                                                                            \
  const int32_t *query = queries->code + queries->begin;                                         \
  hai_index dim = 4 * queries->n_words, w, at;                                                   \
  HAI_INTS a0, a1, a2, b0 = HAI_ISA(ints)(threshold), b1 = HAI_ISA(ints)(threshold + HAI_WIDTH), \
                       b2 = HAI_ISA(ints)(threshold + 2 * HAI_WIDTH);                            \
  HAI_ROWS(HAI_SCAN_STARTS)
#define HAI_SCAN_WORD                      \
  at = queries->word[w];                   \
  HAI_SCAN_LOAD(a, query + at * HAI_LANES) \
  HAI_ROWS(HAI_SCAN_ADD)

#define HAI_SCAN_OUT(r)                                  \
  HAI_SCAN_TELL(r, 0) if (n > 1) { HAI_SCAN_TELL(r, 1) } \
  if (n > 2) {                                           \
    HAI_SCAN_TELL(r, 2)                                  \
  }
#define HAI_SCAN_TELL(r, k)               \
  HAI_ISA(store)                          \
  (score + r * HAI_LANES + k * HAI_WIDTH, \
   HAI_ISA(fma)(unit, HAI_ISA(floats)(c##r##k), HAI_ISA(load)(mean + k * HAI_WIDTH)));
#define HAI_SCAN_HIGH(x, s)                \
  x = s##0;                                \
  if (n > 1) x = HAI_ISA(larger)(x, s##1); \
  if (n > 2) x = HAI_ISA(larger)(x, s##2);
#define HAI_SCAN_HIT(r)                                                                        \
  HAI_SCAN_HIGH(a0, c##r)                                                                      \
  if (HAI_ISA(positive)(a0)) {                                                                 \
    most[r] = HAI_WAY(finish)(queries, key + r * dim, c##r##0, c##r##1, c##r##2, a0, rest, n); \
    hits |= HAI_AS(unsigned, most[r] > 0) << r;                                                \
  }

/* Estimates of HAI_N_ROWS keys. */
HAI_SCAN_TARGET HAI_INLINE void HAI_WAY(tell)(const hai_scan_queries *queries, const uint8_t *key, float u,
                                              const float *mean, float *score, const int n) {
  static const int32_t start[HAI_N_ROWS] = {0};
  const int32_t *threshold = queries->lift + HAI_LANES + queries->begin;
  HAI_VECTOR unit = HAI_ISA(set1)(u);
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_words; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_OUT)
}

/* The sums of a key that the first words let pass: adds those of the other words, less `rest`. Returns the
   largest, or where that is less, the largest of before, whose lanes' is `first`; 0 where none is above 0. */
HAI_SCAN_TARGET HAI_INLINE int32_t HAI_WAY(finish)(const hai_scan_queries *queries, const uint8_t *key,
                                                   HAI_INTS c0, HAI_INTS c1, HAI_INTS c2, HAI_INTS first,
                                                   const int32_t *rest, const int n) {
  const int32_t *query = queries->code + queries->begin;
  int32_t most, before;
  HAI_INTS a0, a1, a2, b0;
  int w;
  HAI_SCAN_LOAD(a, rest)
  c0 = HAI_ISA(minus)(c0, a0);
  if (n > 1) c1 = HAI_ISA(minus)(c1, a1);
  if (n > 2) c2 = HAI_ISA(minus)(c2, a2);
  for (w = queries->n_first; w < queries->n_words; w++) {
    hai_index at = queries->word[w];
    HAI_SCAN_LOAD(a, query + at * HAI_LANES)
    HAI_SCAN_DOTS(c, key + 4 * at)
  }
  HAI_SCAN_HIGH(a0, c)
  if (!HAI_ISA(positive)(a0)) return 0;
  most = HAI_ISA(top)(a0);
  before = HAI_ISA(top)(first);
  return most < before ? most : before;
}

/* Bit r: key r of HAI_N_ROWS is a hit. most[r], where it is: how far above 0 its sum is. */
HAI_SCAN_TARGET HAI_INLINE unsigned HAI_WAY(look)(const hai_scan_queries *queries, const uint8_t *key,
                                                  const int32_t *start, const int32_t *threshold,
                                                  const int32_t *rest, int32_t *most, const int n) {
  unsigned hits = 0;
  HAI_SCAN_SUMS
  for (w = 0; w < queries->n_first; w++) {
    HAI_SCAN_WORD
  }
  HAI_ROWS(HAI_SCAN_HIT)
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(estimate)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int first, float *score) {
  const float *mean = block->mean + queries->begin;
  int n = (queries->end - queries->begin) / HAI_WIDTH, j;
  score += queries->begin;
  for (j = first; j < first + HAI_PILOT; j += HAI_N_ROWS, score += HAI_N_ROWS * HAI_LANES) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 3);
    else if (n == 2)
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 2);
    else
      HAI_WAY(tell)(queries, key, block->unit, mean, score, 1);
  }
}

/* x cut off at -most and most, as an integer; NaN becomes -most. */
HAI_SCAN_TARGET HAI_INLINE HAI_INTS HAI_WAY(cut)(HAI_VECTOR x, float most) {
  x = HAI_ISA(max)(x, HAI_ISA(set1)(-most));
  return HAI_ISA(truncate)(HAI_ISA(min)(x, HAI_ISA(set1)(most)));
}

HAI_SCAN_TARGET static uint64_t HAI_WAY(hits)(const hai_scan_queries *queries, const hai_scan_block *block,
                                              int32_t *most) {
  int32_t draw[HAI_CHUNK], start[HAI_CHUNK], threshold[HAI_LANES] = {0}, rest[HAI_LANES] = {0};
  HAI_VECTOR inverse = HAI_ISA(set1)(1.0f / block->unit);
  HAI_INTS margin = HAI_ISA(ints1)(block->margin);
  uint64_t hits = 0, bits;
  int begin = queries->begin, n = (queries->end - begin) / HAI_WIDTH, i, j;
  for (i = begin; i < queries->end; i += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(queries->level + i), HAI_ISA(load)(block->mean + i));
    HAI_INTS level = HAI_WAY(cut)(HAI_ISA(mul)(x, inverse), HAI_MOST_LEVEL);
    HAI_INTS lift = HAI_ISA(ints)(queries->lift + i), all = HAI_ISA(ints)(queries->lift + HAI_LANES + i);
    HAI_ISA(put)(threshold + i - begin, HAI_ISA(plus)(level, lift));
    HAI_ISA(put)(rest + i - begin, HAI_ISA(plus)(HAI_ISA(minus)(all, lift), margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_WIDTH) {
    HAI_INTS x = HAI_WAY(cut)(HAI_ISA(mul)(HAI_ISA(load)(block->draw + j), inverse), HAI_MOST_DRAW);
    HAI_ISA(put)(draw + j, x);
    HAI_ISA(put)(start + j, HAI_ISA(plus)(x, margin));
  }
  for (j = 0; j < HAI_CHUNK; j += HAI_N_ROWS) {
    const uint8_t *key = block->code + 4 * j * queries->n_words;
    if (n == 3)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 3);
    else if (n == 2)
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 2);
    else
      bits = HAI_WAY(look)(queries, key, start + j, threshold, rest, most + j, 1);
    hits |= bits << j;
  }
  for (bits = hits; bits; bits &= bits - 1) {
    j = hai_lowest_bit(bits);
    most[j] -= draw[j];
  }
  return hits;
}

HAI_SCAN_TARGET static void HAI_WAY(largest)(const float *query, hai_index dim, int32_t *bits) {
  hai_index t;
  int i;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS x = HAI_ISA(ints1)(0);
    for (t = 0; t < dim; t++) x = HAI_ISA(larger)(x, HAI_ISA(size)(HAI_ISA(load)(query + t * HAI_LANES + i)));
    HAI_ISA(put)(bits + i, x);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(quantise)(const float *query, hai_index dim, float inverse,
                                              int32_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t, y;
  int i;
  for (t = 0; t < dim; t += 4, code += HAI_LANES)
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS word = HAI_ISA(ints1)(0), x;
      for (y = t + 3; y >= t; y--) {
        x = half;
        if (y < dim) {
          HAI_VECTOR product = HAI_ISA(mul)(HAI_ISA(load)(query + y * HAI_LANES + i), f);
          x = HAI_ISA(plus)(HAI_WAY(cut)(product, HAI_CODE_MOST), half);
        }
        word = HAI_ISA(join)(word, x);
      }
      HAI_ISA(put)(code + i, HAI_ISA(flip)(word));
    }
}

HAI_SCAN_TARGET static void HAI_WAY(forces)(const hai_scan_queries *queries, int32_t *all, int32_t *most) {
  HAI_INTS none = HAI_ISA(ints1)(0);
  int32_t part[HAI_WIDTH];
  int i, w;
  for (w = 0; w < queries->n_words; w++) {
    HAI_INTS sum = none, largest = none;
    for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
      HAI_INTS x = HAI_ISA(sizes)(HAI_ISA(ints)(queries->code + w * HAI_LANES + i));
      HAI_INTS squares = HAI_SCAN_DOT(x, x, none);
      sum = HAI_ISA(plus)(sum, squares);
      largest = HAI_ISA(larger)(largest, squares);
    }
    HAI_ISA(put)(part, sum);
    for (i = 0, all[w] = 0; i < HAI_WIDTH; i++) all[w] += part[i];
    most[w] = HAI_ISA(top)(largest);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(lift)(const hai_scan_queries *queries) {
  HAI_INTS raised = HAI_ISA(ints1)(HAI_SCAN_LIFT);
  int i, w;
  for (i = 0; i < HAI_LANES; i += HAI_WIDTH) {
    HAI_INTS sum = HAI_ISA(ints1)(0), first = sum;
    for (w = 0; w < queries->n_words; w++) {
      sum = HAI_SCAN_DOT(raised, HAI_ISA(ints)(queries->code + queries->word[w] * HAI_LANES + i), sum);
      if (w == queries->n_first - 1) first = sum;
    }
    HAI_ISA(put)(queries->lift + i, first);
    HAI_ISA(put)(queries->lift + HAI_LANES + i, sum);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(collect)(const float *score, int begin, int end, float *high, float *sum,
                                             float *group) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR before = HAI_ISA(load)(high + i), most = before, shift, factor, here = HAI_ISA(zero)();
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      most = HAI_ISA(max)(HAI_ISA(load)(score + j + i), most);
    shift = HAI_ISA(or_zero)(most);
    factor = HAI_ISA(exp)(HAI_ISA(sub)(before, shift));
    for (j = 0; j < HAI_PILOT * HAI_LANES; j += HAI_LANES)
      here = HAI_ISA(add)(here, HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(load)(score + j + i), shift)));
    HAI_ISA(store)(high + i, most);
    HAI_ISA(store)(sum + i, HAI_ISA(fma)(HAI_ISA(load)(sum + i), factor, here));
    HAI_ISA(store)(group + i, HAI_ISA(max)(HAI_ISA(mul)(HAI_ISA(load)(group + i), factor), here));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(missing)(const float *log_weight, int n, float *missing) {
  int j;
  for (j = 0; j < n; j += HAI_WIDTH) {
    HAI_VECTOR kept = HAI_ISA(exp)(HAI_ISA(sub)(HAI_ISA(zero)(), HAI_ISA(load)(log_weight + j)));
    HAI_ISA(store)(missing + j, HAI_ISA(sub)(HAI_ISA(set1)(1.0f), kept));
  }
}

HAI_SCAN_TARGET static void HAI_WAY(spread)(const float *weight, int n_keys, const float *missing,
                                            const float *distance, const float *factor, int begin, int end,
                                            float *scatter, float *squares) {
  int i, j;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR f = HAI_ISA(load)(factor + i), a, b, w;
    f = HAI_ISA(mul)(f, f);
    a = HAI_ISA(mul)(HAI_ISA(load)(scatter + i), f);
    b = HAI_ISA(mul)(HAI_ISA(load)(squares + i), f);
    for (j = 0; j < n_keys; j++) {
      w = HAI_ISA(load)(weight + j * HAI_LANES + i);
      w = HAI_ISA(mul)(HAI_ISA(mul)(w, w), HAI_ISA(set1)(missing[j]));
      a = HAI_ISA(fma)(w, HAI_ISA(set1)(distance[j]), a);
      b = HAI_ISA(add)(b, w);
    }
    HAI_ISA(store)(scatter + i, a);
    HAI_ISA(store)(squares + i, b);
  }
}

HAI_SCAN_TARGET static void HAI_WAY(distances)(const float *o, hai_index dim, const float *l,
                                               const float *centre, int begin, int end, float *norm,
                                               float *apart) {
  hai_index t;
  int i;
  for (i = begin; i < end; i += HAI_WIDTH) {
    HAI_VECTOR inverse = HAI_ISA(div)(HAI_ISA(set1)(1.0f), HAI_ISA(load)(l + i)), a = HAI_ISA(zero)(), b = a;
    for (t = 0; t < dim; t++) {
      HAI_VECTOR x = HAI_ISA(mul)(HAI_ISA(load)(o + t * HAI_LANES + i), inverse);
      HAI_VECTOR from = HAI_ISA(sub)(x, HAI_ISA(set1)(centre[t]));
      a = HAI_ISA(fma)(x, x, a);
      b = HAI_ISA(fma)(from, from, b);
    }
    HAI_ISA(store)(norm + i, a);
    HAI_ISA(store)(apart + i, b);
  }
}

/* ---- The sketch: coordinates in the lanes ---- */

HAI_SCAN_TARGET static void HAI_WAY(mean)(const float *const *row, hai_index dim, float *mean) {
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR sum = HAI_ISA(zero)();
    for (j = 0; j < HAI_CHUNK; j++) sum = HAI_ISA(add)(sum, HAI_ISA(load)(row[j] + t));
    HAI_ISA(store)(mean + t, HAI_ISA(mul)(sum, HAI_ISA(set1)(1.0f / HAI_CHUNK)));
  }
  hai_scan_mean_plain(row, t, dim, mean);
}

HAI_SCAN_TARGET static int32_t HAI_WAY(reach)(const float *const *row, hai_index dim, const float *mean) {
  HAI_INTS most = HAI_ISA(ints1)(0);
  hai_index t = 0;
  int j;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR m = HAI_ISA(load)(mean + t);
    for (j = 0; j < HAI_CHUNK; j++)
      most = HAI_ISA(larger)(most, HAI_ISA(size)(HAI_ISA(sub)(HAI_ISA(load)(row[j] + t), m)));
  }
  return hai_scan_reach_plain(row, t, dim, mean, HAI_ISA(top)(most));
}

HAI_SCAN_TARGET static void HAI_WAY(encode)(const float *row, hai_index dim, const float *mean, float inverse,
                                            uint8_t *code) {
  HAI_VECTOR f = HAI_ISA(set1)(inverse * HAI_CODE_FINE);
  HAI_INTS half = HAI_ISA(ints1)(HAI_KEY_RAISED * HAI_CODE_FINE + HAI_CODE_FINE / 2);
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR y = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(mean + t));
    HAI_INTS x = HAI_ISA(plus)(HAI_WAY(cut)(HAI_ISA(mul)(y, f), HAI_KEY_MOST), half);
    HAI_ISA(bytes)(code + t, HAI_ISA(join)(HAI_ISA(ints1)(0), x));
  }
  hai_scan_encode_plain(row, t, dim, mean, inverse, code);
}

HAI_SCAN_TARGET static void HAI_WAY(norms)(const uint8_t *code, int n_words, int32_t *norm) {
  int32_t words[HAI_WIDTH];
  int w = 0, j;
  for (; w + HAI_WIDTH <= n_words; w += HAI_WIDTH) {
    HAI_INTS none = HAI_ISA(ints1)(0), most = none;
    for (j = 0; j < HAI_CHUNK; j++) {
      HAI_INTS x;
      HYPERATTN_MEMCPY(words, code + 4 * (j * n_words + w), sizeof words);
      x = HAI_ISA(sizes)(HAI_ISA(flip)(HAI_ISA(ints)(words)));
      most = HAI_ISA(larger)(most, HAI_SCAN_DOT(x, x, none));
    }
    HAI_ISA(put)(norm + w, most);
  }
  hai_scan_norms_plain(code, w, n_words, norm);
}

HAI_SCAN_TARGET static float HAI_WAY(apart)(const float *row, hai_index dim, const float *centre) {
  HAI_VECTOR sum = HAI_ISA(zero)();
  hai_index t = 0;
  for (; t + HAI_WIDTH <= dim; t += HAI_WIDTH) {
    HAI_VECTOR x = HAI_ISA(sub)(HAI_ISA(load)(row + t), HAI_ISA(load)(centre + t));
    sum = HAI_ISA(fma)(x, x, sum);
  }
  return HAI_ISA(sum)(sum) + hai_scan_apart_plain(row, t, dim, centre);
}

#if HAI_INDEX
#include "kernel_index.h"
#endif

static const hai_scan_kernel HAI_WAY(kernel) = {
    /* largest */ HAI_WAY(largest),
    /* quantise */ HAI_WAY(quantise),
    /* forces */ HAI_WAY(forces),
    /* lift */ HAI_WAY(lift),
    /* estimate */ HAI_WAY(estimate),
    /* collect */ HAI_WAY(collect),
    /* hits */ HAI_WAY(hits),
    /* missing */ HAI_WAY(missing),
    /* spread */ HAI_WAY(spread),
    /* distances */ HAI_WAY(distances),
    /* mean */ HAI_WAY(mean),
    /* reach */ HAI_WAY(reach),
    /* encode */ HAI_WAY(encode),
    /* norms */ HAI_WAY(norms),
    /* apart */ HAI_WAY(apart),
#if HAI_INDEX
    /* guess */ HAI_WAY(guess),
    /* weigh */ HAI_WAY(weigh),
    /* at_least */ HAI_WAY(at_least),
    /* keep */ HAI_WAY(keep),
    /* turn */ HAI_WAY(turn),
    /* differ */ HAI_WAY(differ),
    /* halve */ HAI_WAY(halve),
#endif
    /* cost */ HAI_SCAN_COST};

#undef HAI_SCAN_STARTS
#undef HAI_SCAN_LOAD
#undef HAI_SCAN_DOTS
#undef HAI_SCAN_ADD
#undef HAI_SCAN_SUMS
#undef HAI_SCAN_WORD
#undef HAI_SCAN_OUT
#undef HAI_SCAN_TELL
#undef HAI_SCAN_HIGH
#undef HAI_SCAN_HIT
#undef HAI_WAY
#undef HAI_SCAN_DOT
#undef HAI_SCAN_TARGET
#undef HAI_SCAN_LIFT
#undef HAI_SCAN_COST
