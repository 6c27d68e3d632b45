/* AMX: the products of bfloat16 by tile registers, 16 x 16 sums of 32 products at a time. A tile register
   holds 16 rows of 64 bytes. Scores multiply 16 keys x 32 coordinates, as they lie in memory, by the packed
   coordinates of 16 queries. Values multiply 16 coordinates x 32 keys, transposed, by the joined weights of
   16 queries. Tile registers 0 to 2 are the sums, one for each register of lanes; 3 is the left factor, 4 to
   6 are the right factors. head_dim is a multiple of 32, value_dim of 16. */

#if HAI_AMX
#define HAI_TARGET_amx \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma,amx-tile,amx-bf16")))
#define HAI_AMX_ROWS 16     /* of a tile register */
#define HAI_AMX_PRODUCTS 32 /* that a sum takes at a time */
#define HAI_AMX_TILE 256    /* floats in 16 rows of 64 bytes */

HAI_TARGET_amx static uint32_t hai_enter_amx(void) {
  static const struct {
    uint8_t palette, start, none[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&shape);
  return hai_enter_x86();
}
HAI_TARGET_amx static void hai_leave_amx(uint32_t before) {
  _tile_release();
  hai_leave_x86(before);
}

/* Adds to sums 0 .. n - 1 tile register 3 times the joined elements at `right` [16][lanes]. */
HAI_TARGET_amx HAI_INLINE void hai_dot_amx(const float *right, int n) {
  const int stride = HAI_LANES_avx512 * HAI_AS(int, sizeof(float));
  _tile_loadd(4, right, stride);
  _tile_dpbf16ps(0, 3, 4);
  if (n < 2) return;
  _tile_loadd(5, right + 16, stride);
  _tile_dpbf16ps(1, 3, 5);
  if (n < 3) return;
  _tile_loadd(6, right + 32, stride);
  _tile_dpbf16ps(2, 3, 6);
}
HAI_TARGET_amx HAI_INLINE void hai_load_sums_amx(const float *from, int n) { /* [16][lanes] */
  const int stride = HAI_LANES_avx512 * HAI_AS(int, sizeof(float));
  _tile_loadd(0, from, stride);
  if (n > 1) _tile_loadd(1, from + 16, stride);
  if (n > 2) _tile_loadd(2, from + 32, stride);
}
HAI_TARGET_amx HAI_INLINE void hai_store_sums_amx(float *to, int n) {
  const int stride = HAI_LANES_avx512 * HAI_AS(int, sizeof(float));
  _tile_stored(0, to, stride);
  if (n > 1) _tile_stored(1, to + 16, stride);
  if (n > 2) _tile_stored(2, to + 32, stride);
}
/* gcc's loads of tile registers do not tell the compiler that they read memory. */
#define HAI_AMX_FENCE() __asm__ volatile("" ::: "memory")

/* The distance in bytes between neighbouring rows; 0 if there are fewer than 16, or if it varies. */
static ptrdiff_t hai_even_rows(const void *const *row, int n) {
  ptrdiff_t stride = n > 1 ? HAI_AS(const char *, row[1]) - HAI_AS(const char *, row[0]) : 0;
  int i;
  if (n < HAI_AMX_ROWS) return 0;
  for (i = 2; i < HAI_AMX_ROWS; i++)
    if (HAI_AS(const char *, row[i]) - HAI_AS(const char *, row[i - 1]) != stride) return 0;
  return stride;
}

HAI_TARGET_amx static void hai_scores_amx(const float *query, hai_index dim, const void *const *key,
                                          int n_keys, int begin, int end, float *score) {
  unsigned char copy[HAI_AMX_ROWS][64];
  const float *factor = query + dim / 2 * HAI_LANES_avx512;
  int n = (end - begin) / HAI_WIDTH_avx512, i, j, r;
  hai_index t;
  for (j = 0; j < n_keys; j += HAI_AMX_ROWS) {
    int rows = n_keys - j < HAI_AMX_ROWS ? n_keys - j : HAI_AMX_ROWS;
    ptrdiff_t stride = hai_even_rows(key + j, rows);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (t = 0; t < dim; t += HAI_AMX_PRODUCTS) {
      for (r = 0; r < rows && !stride; r++) /* a row beyond them spoils a score that nobody reads */
        HYPERATTN_MEMCPY(copy[r], HAI_AS(const uint16_t *, key[j + r]) + t, sizeof copy[r]);
      HAI_AMX_FENCE();
      if (stride)
        _tile_loadd(3, HAI_AS(const uint16_t *, key[j]) + t, stride);
      else
        _tile_loadd(3, copy, 64);
      hai_dot_amx(query + t / 2 * HAI_LANES_avx512 + begin, n);
    }
    hai_store_sums_amx(score + HAI_AS(hai_index, j) * HAI_LANES_avx512 + begin, n);
  }
  for (j = 0; j < n_keys; j++, score += HAI_LANES_avx512)
    for (i = begin; i < end; i += HAI_WIDTH_avx512)
      hai_store_avx512(score + i, hai_mul_avx512(hai_load_avx512(score + i), hai_load_avx512(factor + i)));
}

/* Coordinates at .. at + 15 of n <= 32 values, absent ones as zeros: to[coordinate][key]. */
HAI_TARGET_amx static void hai_turn_values_amx(const void *const *value, int n, hai_index at, float *to) {
  const __m512i zip = hai_zip_lanes_avx512bf();
  float pair[HAI_AMX_ROWS][16];
  const void *row[HAI_AMX_ROWS];
  int r;
  hai_index t;
  for (r = 0; r < HAI_AMX_ROWS; r++) {
    __m256i a = _mm256_setzero_si256(), b = a;
    if (2 * r < n) a = hai_halves_avx512(HAI_AS(const uint16_t *, value[2 * r]) + at);
    if (2 * r + 1 < n) b = hai_halves_avx512(HAI_AS(const uint16_t *, value[2 * r + 1]) + at);
    hai_store_avx512(pair[r], _mm512_castsi512_ps(_mm512_permutexvar_epi16(
                                  zip, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1))));
    row[r] = pair[r];
  }
  for (t = 0; t < 16; t += 4, to += 64) {
    __m512 x0 = hai_gather4_avx512(row, t), x1 = hai_gather4_avx512(row + 1, t);
    __m512 x2 = hai_gather4_avx512(row + 2, t), x3 = hai_gather4_avx512(row + 3, t);
    hai_transpose4_avx512(&x0, &x1, &x2, &x3);
    hai_store_avx512(to, x0);
    hai_store_avx512(to + 16, x1);
    hai_store_avx512(to + 32, x2);
    hai_store_avx512(to + 48, x3);
  }
}

/* joined[coordinate / 16][key / 32]: tile registers. */
HAI_TARGET_amx static void hai_join_amx(const void *const *value, int n_keys, hai_index dim, float *joined) {
  hai_index t;
  int j;
  for (t = 0; t < dim; t += HAI_AMX_ROWS)
    for (j = 0; j < n_keys; j += HAI_AMX_PRODUCTS, joined += HAI_AMX_TILE)
      hai_turn_values_amx(value + j, n_keys - j, t, joined);
}

/* A tile register takes 16 pairs: absent ones weigh 0. */
static void hai_round_amx(float *score, int n_keys, const float *factor, int begin, int end, float *sum) {
  float *weight = score + HAI_CHUNK * HAI_LANES_avx512;
  int pairs = (n_keys + 1) / 2;
  hai_round_avx512bf(score, n_keys, factor, begin, end, sum);
  for (; pairs % HAI_AMX_ROWS; pairs++)
    HYPERATTN_MEMSET(weight + pairs * HAI_LANES_avx512, 0, HAI_LANES_avx512 * sizeof(float));
}

HAI_TARGET_amx static void hai_values_amx(float *score, int n_keys, const void *const *value, hai_index dim,
                                          const float *factor, int begin, int end, float *o) {
  const float *weight = score + HAI_CHUNK * HAI_LANES_avx512, *joined = HAI_AS(const float *, value[0]);
  int n = (end - begin) / HAI_WIDTH_avx512, scaled = 0, i, j;
  hai_index t;
  for (i = begin; i < end; i += HAI_WIDTH_avx512)
    scaled |= hai_differ_avx512(hai_load_avx512(factor + i), hai_set1_avx512(1.0f));
  for (t = 0; t < dim; t += HAI_AMX_ROWS, o += HAI_AMX_ROWS * HAI_LANES_avx512) {
    if (scaled) hai_scale_avx512(o, HAI_AMX_ROWS, factor, begin, end);
    HAI_AMX_FENCE();
    hai_load_sums_amx(o + begin, n);
    for (j = 0; j < n_keys; j += HAI_AMX_PRODUCTS, joined += HAI_AMX_TILE) {
      _tile_loadd(3, joined, 64);
      hai_dot_amx(weight + j / 2 * HAI_LANES_avx512 + begin, n);
    }
    hai_store_sums_amx(o + begin, n);
  }
}

static const hai_kernel hai_kernel_amx = {
    /* isa */ HYPERATTN_ISA_AMX_BF16,
    /* dtype */ HYPERATTN_BF16,
    /* lanes */ HAI_LANES_avx512,
    /* width */ HAI_WIDTH_avx512,
    /* tiles */ 4,
    /* widen */ hai_widen_avx512,
    /* pack */ hai_pack_bf16_avx512bf,
    /* unpack */ hai_unpack_avx512,
    /* scores */ hai_scores_amx,
    /* cap */ hai_cap_avx512,
    /* hide */ hai_hide_avx512,
    /* add_bias */ hai_add_bias_avx512,
    /* softmax */ hai_softmax_avx512,
    /* round */ hai_round_amx,
    /* join */ hai_join_amx,
    /* values */ hai_values_amx,
    /* scale */ hai_scale_avx512,
    /* carry */ hai_carry_avx512,
    /* gather */ hai_gather_avx512,
    /* sum_lanes */ hai_sum_lanes_avx512,
    /* square */ hai_square_avx512,
    /* add_row */ hai_add_row_avx512,
    /* value_multiple */ HAI_AMX_ROWS,
    /* few */ HAI_NULL,
    /* enter */ hai_enter_amx,
    /* leave */ hai_leave_amx};
#endif
