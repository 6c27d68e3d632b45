/* What a kernel is: the arithmetic of one tile of queries with one chunk of keys, for one ISA. One lane holds
   one query. A tile has `lanes` queries, packed transposed; a chunk has at most HAI_CHUNK keys, given by
   pointers to their rows. A kernel does not know where the keys come from. Its functions compute lanes
   [begin, end) of the tile, which are multiples of `width`, and leave other lanes alone. A lane's result does
   not depend on which other lanes hold queries. Arrays over lanes have row stride `lanes`. */

/* Rows of keys or of values that few queries meet. */
typedef struct hai_few_rows {
  hyperattn_dtype dtype;
  hai_index dim;          /* a multiple of the kernel's step */
  const char *const *row; /* [HAI_CHUNK], of which all can be read */
  /* [HAI_CHUNK]: rows that start to load meanwhile, `row` where none need to. They are not read, and may be
     shorter or of another dtype. */
  const char *const *ahead;
  int n; /* rows that are met */
} hai_few_rows;

/* The same arithmetic for few queries, which are rows and not lanes: queries [n][dim], scores [n][HAI_CHUNK],
   o [n][dim], n at most `most`. A query's result does not depend on n. */
typedef struct hai_few_kernel {
  /* score[i][j] = sum_t query[i][t] * key[j][t]; scores of keys beyond the last may be written too. */
  void (*scores)(const hai_few_rows *keys, const float *query, int n, float *score);
  /* hai_kernel.softmax, where bit j of visible[i] shows key j to query i, and bits from n_keys on are 0.
     log_weight has HAI_CHUNK elements that can be read. Nothing makes up for what rounding takes from
     l [n]. */
  void (*softmax)(float *score, int n, int n_keys, const float *log_weight, const uint64_t *visible, float *m,
                  float *l, float *factor);
  /* o[i][t] = o[i][t] * factor[i] + sum_j weight[i][j] * value[j][t]. */
  void (*values)(const hai_few_rows *values, const float *weight, const float *factor, int n, float *o);
  int most;
  int queries; /* of a head, at most, for which it takes less time than tiles of float32 */
  int step;    /* 1: rows are read in float32 only; else in every dtype but CUSTOM */
} hai_few_kernel;

/* A tile of queries as a scan kernel reads it. A coordinate's code is round(63 x / largest), so -63 .. 63. */
typedef struct hai_scan_queries {
  int32_t *code;  /* [n_words][lanes]: the codes of four coordinates, the first in the lowest byte */
  int32_t *word;  /* [n_words]: the order in which words are multiplied */
  int n_words;    /* a quarter of the coordinates, rounded up */
  int n_first;    /* the products of so many words tell whether the others are worth it (block.margin) */
  int32_t *lift;  /* [2][lanes]: HAI_KEY_RAISED times the sum of a lane's codes, of first words and of all */
  float *level;   /* [lanes]: what an estimate must reach to be kept, less what chance adds to it */
  int begin, end; /* the lanes that hold queries, in whole registers */
} hai_scan_queries;

/* A block of HAI_CHUNK keys of a sketch. The product of query i and key j, scale included, is estimated as
   mean[i] + unit * (the sum over t of their codes' products). */
typedef struct hai_scan_block {
  const uint8_t *code; /* [HAI_CHUNK][4 n_words]: HAI_KEY_RAISED + each code, which is -127 .. 127 */
  const float *draw;   /* [HAI_CHUNK]: -ln of a random number in (0, 1) */
  const float *mean;   /* [lanes]: products of the queries with the mean of the block's keys */
  float unit;          /* > 0 */
  int32_t margin;      /* a key whose last words would have to add more than this to be a hit is none */
} hai_scan_block;

/* A query as the scan of an index reads it (lookup.h), turned and times the scale: coordinate t is about
   unit * code / HAI_LOOK_STEPS, code in -127 .. 127. */
typedef struct hai_index_query {
  const int32_t *word; /* [n_words]: the codes of four coordinates, the first in the lowest byte */
  hai_index n_groups;  /* of 4 words, as keys have them */
  hai_index n_words;   /* as means have them: at least 4 n_groups, words beyond which are 0 */
  int32_t sum;         /* of all codes */
  float unit;          /* in steps, as estimates are */
  float more; /* what an estimate is raised by, for each unit of its key's norm: it grows with its error */
} hai_index_query;

/* A block of an index (index.h). */
typedef struct hai_index_block {
  const uint8_t *code; /* [n_groups][HAI_CHUNK][4]: two bits for coordinate y of each of a group's words */
  const uint8_t *norm; /* [HAI_CHUNK] */
  const uint8_t *mean; /* [4 n_words] */
  float mean_unit, norm_unit;
  float square; /* the mean over keys of the squared distance from the mean */
  size_t ahead; /* how many bytes behind the codes others lie that start to load meanwhile, or 0 */
} hai_index_block;

/* The sum of weights that a query's scores have: hai_step_weight(score - from), at most 2^100 each. */
typedef struct hai_weights {
  int from; /* in 16 bits */
  float lane[HAI_SUM_LANES];
} hai_weights;

#if HAI_INDEX
/* The number whose bits are so many steps, at least HAI_STEP_LEAST, more than those of 1: about 2^(steps /
   8), and at most 0.062 of itself larger. */
HAI_HOT float hai_step_weight(int steps) {
  int bits = steps + HAI_STEP_OF_1;
  return hai_float((HAI_AS(uint32_t, bits < HAI_STEP_LEAST ? HAI_STEP_LEAST : bits) & 2047u) << 20);
}

/* The steps at which a weight above 0 is nearest to x. */
HAI_HOT int hai_step_of(float x) { return HAI_AS(int, (hai_bits(x) + (1u << 19)) >> 20) - HAI_STEP_OF_1; }

/* Down to a whole octave, by which weights multiply exactly. */
HAI_HOT int hai_step_octave(int steps) { return (steps + (1 << 20)) / 8 * 8 - (1 << 20); }

/* The sum of HAI_SUM_LANES numbers. */
HAI_HOT float hai_lanes_sum(const float *x) {
  float sum = 0.0f;
  int lane;
  for (lane = 0; lane < HAI_SUM_LANES; lane++) sum += x[lane];
  return sum;
}
#endif

/* By what queries that share a kv head keep keys (meeting.h). */
typedef struct hai_levels {
  const int16_t *score[HAI_LOOK_TOGETHER]; /* [blocks][HAI_CHUNK], of each of n queries, in steps */
  int level[HAI_LOOK_TOGETHER];            /* at which a key is kept for certain, in 16 bits */
  int n;
  const float *place; /* [HAI_CHUNK] */
  const float *shift; /* [blocks] */
} hai_levels;

/* The arithmetic of a scan and of its sketch (scan.h, sketch.h). Integers are the same in every kernel. */
typedef struct hai_scan_kernel {
  /* bits[i] = the largest of the bits of |query[t][i]|, as an integer: 0x7f800000 or more where a coordinate
     is not finite. All lanes; query is [dim][lanes]. */
  void (*largest)(const float *query, hai_index dim, int32_t *bits);
  /* Codes of all lanes: round(query * inverse), cut off at -63 and 63; those of absent coordinates are 0. */
  void (*quantise)(const float *query, hai_index dim, float inverse, int32_t *code);
  /* Of each word, in its own place: the sum over all lanes of the squares of its codes, and the largest of a
     lane. */
  void (*forces)(const hai_scan_queries *queries, int32_t *all, int32_t *most);
  /* lift of all lanes, or 0 where the kernel multiplies codes that are not raised. */
  void (*lift)(const hai_scan_queries *queries);
  /* score[j][i] = the estimated product of query i and key first + j, for HAI_PILOT keys. */
  void (*estimate)(const hai_scan_queries *queries, const hai_scan_block *block, int first, float *score);
  /* Takes the estimates of HAI_PILOT keys up: high[i] becomes the largest of them so far, sum[i] the sum of
     all e^(score - high[i]), and group[i] the largest sum of those that came together. */
  void (*collect)(const float *score, int begin, int end, float *high, float *sum, float *group);
  /* Bit j: key j is a hit, that is floor(draw[j] / unit) + most[j] > 0, where most[j] is the smaller of
     max_i (sum of all codes' products - floor'((level[i] - mean[i]) / unit)), floor' rounding towards 0, and
     of the same with the first words' products alone and the margin. most [HAI_CHUNK] is written for hits. */
  uint64_t (*hits)(const hai_scan_queries *queries, const hai_scan_block *block, int32_t *most);
  /* missing[j] = 1 - e^-log_weight[j], for n keys; both are [HAI_CHUNK], and more may be written. */
  void (*missing)(const float *log_weight, int n, float *missing);
  /* scatter[i] = scatter[i] factor[i]^2 + sum_j missing[j] weight[j][i]^2 distance[j]; squares[i] likewise
     without distance. */
  void (*spread)(const float *weight, int n_keys, const float *missing, const float *distance,
                 const float *factor, int begin, int end, float *scatter, float *squares);
  /* For x = o / l: norm[i] = sum_t x[t][i]^2, apart[i] = sum_t (x[t][i] - centre[t])^2. */
  void (*distances)(const float *o, hai_index dim, const float *l, const float *centre, int begin, int end,
                    float *norm, float *apart);
  /* The sketch. mean[t] = the mean over HAI_CHUNK rows of row[j][t]. */
  void (*mean)(const float *const *row, hai_index dim, float *mean);
  /* The largest of the bits of |row[j][t] - mean[t]| over HAI_CHUNK rows, as an integer. */
  int32_t (*reach)(const float *const *row, hai_index dim, const float *mean);
  /* code[t] = HAI_KEY_RAISED + round((row[t] - mean[t]) inverse), which is in 1 .. 255, and HAI_KEY_RAISED up
     to a multiple of 4. */
  void (*encode)(const float *row, hai_index dim, const float *mean, float inverse, uint8_t *code);
  /* norm[w] = the largest over HAI_CHUNK keys of the sum of squares of word w's codes. */
  void (*norms)(const uint8_t *code, int n_words, int32_t *norm);
  /* |row - centre|^2. */
  float (*apart)(const float *row, hai_index dim, const float *centre);
#if HAI_INDEX
  /* score[i][j] = the estimated product of query i and key j of a block, and `more` for its norm, in steps,
     rounded and cut to 16 bits, for n queries, whose weights are added to weights[i]. */
  void (*guess)(const hai_index_query *query, int n, const hai_index_block *block, int16_t *const *score,
                hai_weights *weights);
  /* Adds the weights of a block's scores. */
  void (*weigh)(const int16_t *score, hai_weights *weights);
  /* Bit j of bits[b]: score[b][j] is at least `least`, for n blocks. */
  void (*at_least)(const int16_t *score, hai_index n, int least, uint64_t *bits);
  /* Bit j of bits[b]: is the largest hai_step_weight(score[b][j] - level) of the queries above u[j] in
     block b of n, where u[j] = place[j] + shift[b], less 1 where that is 1 or more? */
  void (*keep)(const hai_levels *levels, hai_index n, uint64_t *bits);
  /* Of x [n][HAI_TURNED], n a power of 2: the product with the Hadamard matrix, times factor. */
  void (*turn)(float *x, hai_index n, float factor);
  /* x[t][j] -= mean[t], of x [dim][HAI_TURNED]; square[j] = the sum over t of their squares. */
  void (*differ)(float *x, hai_index dim, const float *mean, float *square);
  /* Codes of x [dim][HAI_TURNED]: floor(2 + x[t][j] inverse[j]), cut off at 0 and 3, where hai_index_block
     says; product[j] = the sum over t of x[t][j] (2 code - 3). Where inverse[j] is 0, any codes. */
  void (*halve)(const float *x, hai_index dim, const float *inverse, uint8_t *code, float *product);
#endif
  float cost; /* of estimating a pair, over that of meeting it exactly (docs/scan.md) */
} hai_scan_kernel;

typedef struct hai_kernel {
  hyperattn_isa isa;
  hyperattn_dtype dtype; /* of the query, key and value rows that it reads */
  int lanes;             /* queries per tile */
  int width;             /* lanes per register */
  int tiles;             /* how many tiles should meet a chunk of keys while it is in the cache */

  /* to[t] = row[t] for t < n, exactly, for every dtype but F32 and CUSTOM. */
  void (*widen)(const void *row, hyperattn_dtype dtype, hai_index n, float *to);
  /* packed[t][i] = factor * row[i][t], for t < dim and all lanes; a NULL row packs as zeros. Kernels that
     read bfloat16 pack two coordinates into one float's place, and the factor behind them. */
  void (*pack)(const void *const *row, hai_index dim, float factor, float *packed);
  /* row[i][t] = (packed[t][i] + 0) * factor[i], for lanes whose row is not NULL: -0 becomes +0, since which
     of the two a sum is may depend on the lane's company. Rows do not overlap. */
  void (*unpack)(const float *packed, hai_index dim, const float *factor, float *const *row);
  /* score[j][i] = sum over t in order of query[t][i] * key[j][t], for j < n_keys; score has HAI_CHUNK
     rows, and those beyond n_keys may be written too. */
  void (*scores)(const float *query, hai_index dim, const void *const *key, int n_keys, int begin, int end,
                 float *score);
  /* score[j][i] = softcap * tanh(score[j][i] / softcap) for a softcap > 0; NaN stays. */
  void (*cap)(float *score, int n_keys, float softcap, int begin, int end);
  /* Clears bit i of visible[j] where bias[j][i] is -inf. */
  void (*hide)(const float *bias, int n_keys, int begin, int end, uint64_t *visible);
  /* score[j][i] += slope[i] * bias[j][i]. */
  void (*add_bias)(float *score, int n_keys, const float *bias, const float *slope, int begin, int end);
  /* Adds log_weight[j] (NULL: 0) and hides what visible[j]'s bit i does not show (NULL: shows all), then
       high = max_j score, m' = m where high <= m, else high + HAI_AHEAD, or high where that is a leap,
       factor = e^(m - m'), score[j][i] = e^(score - m'), l' = l factor + sum_j score[j][i].
     m is the reference of a lane's sums; no score is above it. It moves ahead of slowly rising scores, so
     that they do not multiply a state by a rounded factor in every chunk; the factor is exactly 1 where m
     stays. m = -inf means that nothing was met yet. l is [2][lanes]: a sum, and what rounding has taken from
     it so far. A NaN in a visible score makes l NaN. Returns whether any lane's m moved. */
  int (*softmax)(float *score, int n_keys, const float *log_weight, const uint64_t *visible, int begin,
                 int end, float *m, float *l, float *factor);
  /* NULL where products take the weights as they are. Otherwise it writes the rounded weights, two keys a
     row, behind the HAI_CHUNK rows of scores, where `values` finds them, and adds them up as `values` would
     for a value of 1:
     sum[i] = sum[i] * factor[i] + sum_j rounded[j][i]. */
  void (*round)(float *score, int n_keys, const float *factor, int begin, int end, float *sum);
  /* NULL where products take the rows of values as they lie. Otherwise it writes coordinates 0 .. dim - 1 of
     the values of a chunk into `joined` [HAI_CHUNK / 2][dim], as `values` multiplies them: this depends on no
     query, so that tiles share it. */
  void (*join)(const void *const *value, int n_keys, hai_index dim, float *joined);
  /* o[t][i] = o[t][i] * factor[i] + sum_j score[j][i] * value[j][t], for t < dim. Where there is a `join`,
     value[0] is what it wrote for these keys and coordinates. */
  void (*values)(float *score, int n_keys, const void *const *value, hai_index dim, const float *factor,
                 int begin, int end, float *o);
  /* x[t][i] = x[t][i] * factor[i], for t < rows. */
  void (*scale)(float *x, hai_index rows, const float *factor, int begin, int end);
  /* Adds o [rows][lanes] to sum, and what rounding takes from that addition to lost; o becomes 0. */
  void (*carry)(float *o, hai_index rows, int begin, int end, float *sum, float *lost);
  /* o = sum + (lost + o), the way back from `carry`; lost may be NULL. */
  void (*gather)(float *o, hai_index rows, int begin, int end, const float *sum, const float *lost);
  /* sum[j] = sum over lanes i in [begin, end) of score[j][i]. */
  void (*sum_lanes)(const float *score, int n_keys, int begin, int end, float *sum);
  /* |row|^2. */
  float (*square)(const float *row, hai_index dim);
  /* sum[t] += row[t], for t < dim. */
  void (*add_row)(float *sum, const float *row, hai_index dim);
  int value_multiple;        /* the dim of `values` is a multiple of it */
  const hai_few_kernel *few; /* NULL in a kernel that does not read float32 */
  /* What a thread does before and after a task that uses the kernel, or NULL; `leave` takes what `enter`
     returned. */
  uint32_t (*enter)(void);
  void (*leave)(uint32_t before);
} hai_kernel;

/* Returns the rounded sum + x and adds to *lost what rounding took from it, which is exact where rounding is
   to nearest (Knuth's TwoSum). */
static float hai_two_sum(float sum, float x, float *lost) {
  float next = sum + x, part = next - sum, rest = (sum - (next - part)) + (x - part);
  if (rest == rest) *lost += rest; /* an infinite sum loses nothing */
  return next;
}

/* The reference after a chunk whose largest score is `high`, m itself included; and what is taken from
   scores. */
HAI_HOT float hai_moved(float m, float high) {
  return high > m && high < m + HAI_LEAP ? high + HAI_AHEAD : high;
}
HAI_HOT float hai_shift(float m) { return m == -hai_inf() ? 0.0f : m; }
