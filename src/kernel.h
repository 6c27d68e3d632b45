/* ==== 4. Kernels =====================================================================================
   One lane is one query. A kernel knows tiles of `lanes` queries, packed transposed, and chunks of at most
   HAI_CHUNK keys given by pointers to their rows; it knows nothing of where the keys come from. Functions
   take lanes [begin, end) of the tile, multiples of `width`, and leave other lanes alone; a lane's result
   does not depend on which other lanes are present. Arrays over lanes have row stride `lanes`. */

typedef struct hai_kernel {
  hyperattn_isa isa;
  hyperattn_dtype dtype; /* of the rows of queries, keys and values that it reads */
  int lanes;             /* queries per tile */
  int width;             /* lanes per register */
  int tiles;             /* how many tiles should meet a chunk of keys while it is in the cache */

  /* to[t] = row[t] for t < n, exactly, whatever the dtype but F32. */
  void (*widen)(const void *row, hyperattn_dtype dtype, hai_index n, float *to);
  /* packed[t][i] = factor * row[i][t], for t < dim, all lanes; a NULL row packs as zeros. Kernels of bfloat16
     pack pairs of coordinates, and the factor behind them. */
  void (*pack)(const void *const *row, hai_index dim, float factor, float *packed);
  /* row[i][t] = packed[t][i] * factor[i], for lanes whose row is not NULL. Rows do not overlap. */
  void (*unpack)(const float *packed, hai_index dim, const float *factor, float *const *row);
  /* score[j][i] = sum over t in order of query[t][i] * key[j][t], for j < n_keys; score has HAI_CHUNK
     rows, and those beyond n_keys may be written too. */
  void (*scores)(const float *query, hai_index dim, const void *const *key, int n_keys, int begin, int end,
                 float *score);
  /* Adds log_weight[j] (NULL: 0) and hides what visible[j]'s bit i does not show (NULL: shows all), then
       high = max_j score, m' = m where high <= m, else high + HAI_AHEAD, or high where that is a leap,
       factor = e^(m - m'), score[j][i] = e^(score - m'), l' = l factor + sum_j score[j][i].
     m is the reference of a lane's sums, no score is above it. It moves ahead of slowly rising scores, so
     that they do not multiply a state by a rounded factor in every chunk; a factor is exactly 1 where m
     stays. m = -inf: nothing seen yet. l is [2][lanes]: a sum, and what rounding has taken from it so far.
     NaN in a visible score makes l NaN. Returns whether any lane's m moved. */
  int (*softmax)(float *score, int n_keys, const float *log_weight, const uint64_t *visible, int begin,
                 int end, float *m, float *l, float *factor);
  /* NULL where products take the weights as they are. Otherwise: writes the weights, rounded, behind the
     scores, where `values` finds them, and adds them up as `values` would for a value of 1:
     sum[i] = sum[i] * factor[i] + sum_j rounded[j][i]. */
  void (*round)(float *score, int n_keys, const float *factor, int begin, int end, float *sum);
  /* o[t][i] = o[t][i] * factor[i] + sum_j score[j][i] * value[j][t], for t < dim. */
  void (*values)(float *score, int n_keys, const void *const *value, hai_index dim, const float *factor,
                 int begin, int end, float *o);
  /* x[t][i] = x[t][i] * factor[i], for t < rows. */
  void (*scale)(float *x, hai_index rows, const float *factor, int begin, int end);
  /* Adds o [rows][lanes] to sum, and what rounding takes from that to lost; o becomes 0. */
  void (*carry)(float *o, hai_index rows, int begin, int end, float *sum, float *lost);
  /* o = sum + (lost + o), the way back; lost may be NULL. */
  void (*gather)(float *o, hai_index rows, int begin, int end, const float *sum, const float *lost);
  /* sum[j] = sum over lanes i in [begin, end) of score[j][i]. */
  void (*sum_lanes)(const float *score, int n_keys, int begin, int end, float *sum);
  int extra_rows;     /* rows that rounding and values need behind the HAI_CHUNK rows of score, */
  int value_multiple; /* and what the dim of values is a multiple of */
  /* NULL, or what the thread does before and after a task that uses the kernel; leave takes what enter
     gave. */
  uint32_t (*enter)(void);
  void (*leave)(uint32_t before);
} hai_kernel;

/* Of a sum and an addend, the rounded sum; *lost += the rest, exactly, if rounding is to nearest (Knuth's
   TwoSum). */
static float hai_two_sum(float sum, float x, float *lost) {
  float next = sum + x, part = next - sum, rest = (sum - (next - part)) + (x - part);
  if (rest == rest) *lost += rest; /* of an infinite sum nothing is lost */
  return next;
}
