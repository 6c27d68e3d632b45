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

/* Does the sign of coordinate t change? */
static int hai_turns_sign(hai_index t) { return hai_mix(HAI_AS(uint64_t, t)) >> 63 != 0; }

/* The order of the matrix: the largest power of 2 that is no more than dim. */
static hai_index hai_turned_dim(hai_index dim) {
  hai_index n = 1;
  while (2 * n <= dim) n *= 2;
  return n;
}
static float hai_turn_factor(hai_index n) { return 1.0f / hai_sqrt(HAI_AS(float, n)); }

/* Turns keys, x [dim][HAI_TURNED]. Cost: HAI_TURNED dim log2 dim. */
static void hai_turn_keys(const hai_scan_kernel *kernel, float *x, hai_index dim) {
  hai_index n = hai_turned_dim(dim), t;
  int j;
  for (t = 0; t < dim; t++)
    for (j = 0; j < HAI_TURNED && hai_turns_sign(t); j++) x[t * HAI_TURNED + j] = -x[t * HAI_TURNED + j];
  kernel->turn(x, n, hai_turn_factor(n));
  if (n < dim) kernel->turn(x + (dim - n) * HAI_TURNED, n, hai_turn_factor(n));
}

/* Turns one vector x [dim]. Cost: dim log2 dim. */
static void hai_turn_part(float *x, hai_index n) {
  float factor = hai_turn_factor(n);
  hai_index half, t, u;
  for (half = 1; half < n; half *= 2)
    for (t = 0; t < n; t += 2 * half)
      for (u = t; u < t + half; u++) {
        float a = x[u], b = x[u + half];
        x[u] = a + b;
        x[u + half] = a - b;
      }
  for (t = 0; t < n; t++) x[t] *= factor;
}
HAI_APART void hai_turn_one(float *x, hai_index dim) {
  hai_index n = hai_turned_dim(dim), t;
  for (t = 0; t < dim; t++)
    if (hai_turns_sign(t)) x[t] = -x[t];
  hai_turn_part(x, n);
  if (n < dim) hai_turn_part(x + dim - n, n);
}
#endif
