/* ---- Turning: what an index does to keys and queries ----
   x becomes H S x: S changes the sign of some coordinates, H is an orthogonal Hadamard matrix, or the product
   of two, of the first and of the last coordinates, where their number is no power of 2. After it every
   coordinate has a part in every other, so that none is larger than the others for long. */

#if HAI_INDEX
/* The largest |x[i]|; infinite or NaN where a number is not finite. By bits, which order as the numbers
   do. */
static float hai_largest_size(const float *x, hai_index n) {
  uint32_t most = 0;
  hai_index i;
  for (i = 0; i < n; i++) {
    uint32_t size = hai_bits(x[i]) & 0x7fffffffu;
    most = size > most ? size : most;
  }
  return hai_float(most);
}

/* Bit t % 64: does the sign of coordinate t change? */
static uint64_t hai_turned_signs(hai_index t) { return hai_mix(HAI_AS(uint64_t, t / 64 + 1)); }

/* Turns vectors x [dim][lanes], by `turn`, the product of n rows of so many lanes with the matrix of order n.
   Cost: lanes dim log2 dim. */
static void hai_turn(float *x, hai_index dim, int lanes, void (*turn)(float *x, hai_index n, float factor)) {
  hai_index n = 1, t;
  uint64_t signs = 0;
  float factor;
  int j;
  while (2 * n <= dim) n *= 2;
  factor = 1.0f / hai_sqrt(HAI_AS(float, n));
  for (t = 0; t < dim; t++) {
    if (t % 64 == 0) signs = hai_turned_signs(t);
    for (j = 0; j < lanes && (signs >> t % 64 & 1); j++) x[t * lanes + j] = -x[t * lanes + j];
  }
  turn(x, n, factor);
  if (n < dim) turn(x + (dim - n) * lanes, n, factor);
}

/* Turns one vector. */
static void hai_turn_row(float *x, hai_index n, float factor) { hai_index_turn_lanes(x, n, factor, 1); }
static void hai_turn_one(float *x, hai_index dim) { hai_turn(x, dim, 1, hai_turn_row); }
#endif
