/* Numbers. Functions of our own: no libm is needed, and every target computes the same. */

HAI_HOT float hai_float(uint32_t bits) {
  float x;
  HYPERATTN_MEMCPY(&x, &bits, sizeof x);
  return x;
}
HAI_HOT uint32_t hai_bits(float x) {
  uint32_t bits;
  HYPERATTN_MEMCPY(&bits, &x, sizeof bits);
  return bits;
}
HAI_HOT uint64_t hai_eight_bytes(const char *at) {
  uint64_t x;
  HYPERATTN_MEMCPY(&x, at, sizeof x);
  return x;
}
static float hai_inf(void) { return hai_float(0x7f800000u); }
HAI_HOT int hai_finite(float x) { return (hai_bits(x) & 0x7f800000u) != 0x7f800000u; }

/* e^x = 2^n 2^f with n = round(x log2 e), |f| <= 1/2 and a polynomial for 2^f. Relative error at most
   2e-7 + 1e-7 |x|; below 2^-126 the result is exactly 0, from 2^128 on infinity; NaN stays NaN. */
static float hai_exp(float x) {
  float t = x * 1.44269504f, f, p;
  int32_t n;
  if (t < -126.0f) return 0.0f;
  if (t >= 128.0f) return hai_inf();
  if (t != t) return t;
  n = HAI_AS(int32_t, t + (t < 0.0f ? -0.5f : 0.5f));
  f = t - HAI_AS(float, n);
  p = 1.535336188e-4f;
  p = p * f + 1.339887440e-3f;
  p = p * f + 9.618437357e-3f;
  p = p * f + 5.550332471e-2f;
  p = p * f + 2.402264791e-1f;
  p = p * f + 6.931472028e-1f;
  p = p * f + 1.0f;
  if (n == 128) return p * 2.0f * hai_float(254u << 23);
  if (n == -126 && p < 1.0f) return 0.0f;
  return p * hai_float(HAI_AS(uint32_t, n + 127) << 23);
}

/* 1 / x for x > 0, at most the largest float. */
static float hai_inverse(float x) {
  float inverse = 1.0f / x;
  return hai_finite(inverse) ? inverse : hai_float(0x7f7fffffu);
}

/* c tanh(s / c) = s P(x^2) / Q(x^2), x = s / c, for |x| <= HAI_TANH_END, beyond which tanh is 1; at most c. P
   and Q by their coefficients, a minimax fit of relative error 2.1e-8. NaN stays. `inverse` is that of c. No
   product with c is taken, so that scores far below a large c stay as they are. */
#define HAI_TANH_END 9.02f
#define HAI_TANH_P0 9.999999790e-01f
#define HAI_TANH_P1 1.337971971e-01f
#define HAI_TANH_P2 3.494036348e-03f
#define HAI_TANH_P3 2.058349910e-05f
#define HAI_TANH_P4 1.331907664e-08f
#define HAI_TANH_Q1 4.671303496e-01f
#define HAI_TANH_Q2 2.587108081e-02f
#define HAI_TANH_Q3 3.283095250e-04f
#define HAI_TANH_Q4 7.762025519e-07f
static float hai_capped(float s, float c, float inverse) {
  float x = s * inverse, u, p, q;
  x = x > HAI_TANH_END ? HAI_TANH_END : x < -HAI_TANH_END ? -HAI_TANH_END : x;
  u = x * x;
  p = (((HAI_TANH_P4 * u + HAI_TANH_P3) * u + HAI_TANH_P2) * u + HAI_TANH_P1) * u + HAI_TANH_P0;
  q = (((HAI_TANH_Q4 * u + HAI_TANH_Q3) * u + HAI_TANH_Q2) * u + HAI_TANH_Q1) * u + 1.0f;
  s *= p / q;
  return s > c ? c : s < -c ? -c : s;
}

/* base + ln x for x >= 0; ln 0 = -inf; NaN if x is negative or NaN. With x = 2^e y and y in [sqrt(1/2),
   sqrt(2)), ln y = 2 atanh((y - 1) / (y + 1)). ln 2 is split in two parts, the first of so few bits that
   its product with e is exact: where base and ln x cancel, the difference has an error of a few units in
   its last place. */
static float hai_add_log(float base, float x) {
  uint32_t bits;
  int32_t e = 0;
  float y, z, w;
  if (x == 0.0f) return -hai_inf();
  if (!(x > 0.0f)) return hai_float(0x7fc00000u);
  if (x == hai_inf()) return x;
  if (x < 1.17549435e-38f) {
    x *= 16777216.0f;
    e = -24;
  }
  bits = hai_bits(x) - 0x3f3504f3u; /* sqrt(1/2) */
  e += HAI_AS(int32_t, bits >> 23) - (bits >> 31 ? 512 : 0);
  y = hai_float((bits & 0x007fffffu) + 0x3f3504f3u);
  z = (y - 1.0f) / (y + 1.0f);
  w = z * z;
  w = 2.0f * z * (1.0f + w * (0.333333333f + w * (0.2f + w * (0.142857143f + w * 0.111111111f))));
  return base + HAI_AS(float, e) * 0.693145752f + (HAI_AS(float, e) * 1.42860677e-6f + w);
}

/* ln x. Absolute error at most 2e-7 (1 + |ln x|). */
static float hai_log(float x) { return hai_add_log(0.0f, x); }

/* Square root by Newton's method for 1 / sqrt(x); exact for small squares of integers; 0 for denormals,
   negative numbers and NaN. */
static float hai_sqrt(float x) {
  float y, s;
  int i;
  if (!(x >= 1.17549435e-38f) || !hai_finite(x)) return x > 0.0f && !hai_finite(x) ? x : 0.0f;
  y = hai_float(0x5f375a86u - (hai_bits(x) >> 1));
  for (i = 0; i < 3; i++) y = y * (1.5f - 0.5f * x * y * y);
  s = x * y;
  return s + 0.5f * y * (x - s * s);
}

/* The largest of n numbers that are not NaN; -inf if there are none. Four accumulators hide the latency of
   the dependency chain. */
static float hai_largest(const float *x, hai_index n) {
  float most0 = -hai_inf(), most1 = most0, most2 = most0, most3 = most0;
  hai_index i;
  for (i = 0; HAI_SIMD && i + 4 <= n; i += 4) {
    most0 = x[i] > most0 ? x[i] : most0;
    most1 = x[i + 1] > most1 ? x[i + 1] : most1;
    most2 = x[i + 2] > most2 ? x[i + 2] : most2;
    most3 = x[i + 3] > most3 ? x[i + 3] : most3;
  }
  for (; i < n; i++) most0 = x[i] > most0 ? x[i] : most0;
  most0 = most1 > most0 ? most1 : most0;
  most2 = most3 > most2 ? most3 : most2;
  return most2 > most0 ? most2 : most0;
}

/* ln(e^a + e^b), where -inf is the logarithm of an empty sum. */
static float hai_log_add(float a, float b) {
  float high = a > b ? a : b, low = a > b ? b : a;
  if (low == -hai_inf()) return high;
  return hai_add_log(high, 1.0f + hai_exp(low - high));
}

/* e^(part - whole), the share of a part in a whole by their logarithms; 0 for an empty part. */
static float hai_share(float part, float whole) {
  return part == -hai_inf() ? 0.0f : hai_exp(part - whole);
}

/* m + ln l, the logarithm of a state's sum; -inf where it is empty. */
static float hai_state_lse(float m, float l) { return hai_add_log(m, l); }

/* |out' - out| / |out| from their squares; infinite if a square is not finite, or if there is an error and
   the norm is 0. */
static float hai_relative(float squared_error, float squared_norm) {
  int is_known = hai_finite(squared_error) && hai_finite(squared_norm) && squared_norm > 0.0f;
  if (squared_error == 0.0f) return 0.0f;
  return is_known ? hai_sqrt(squared_error / squared_norm) : hai_inf();
}
