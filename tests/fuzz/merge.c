/* Fuzzes hyperattn_merge. */
#include "hyperattn.h"

#include "fuzz.h"

static void take_lse(float *lse, int64_t n, bytes *in, float size) {
  static const float specials[] = {-INFINITY, INFINITY, NAN, 1e30f, -1e30f, 0.0f, -88.0f, 1e-40f};
  uint64_t seed = take(in, 1);
  for (int64_t i = 0; i < n; i++) lse[i] = size * gaussian(&seed);
  for (uint64_t k = take(in, 1) % 8; k-- > 0;)
    if (n) lse[below(in, 65536) % n] = specials[take(in, 1) % 8];
}

/* Checks one number of the merged result: the weighted mean of the parts, or a part unchanged. */
static void check_number(double merged, double a, double lse_a, double b, double lse_b, hyperattn_dtype out,
                         int same_dtype) {
  double high = fmax(lse_a, lse_b), share_a = exp(lse_a - high), share_b = exp(lse_b - high);
  double whole = share_a + share_b, size = fmax(fabs(a), fabs(b)), rest = fmin(share_a, share_b);
  if (isnan(lse_a) || isnan(lse_b) || high == INFINITY)
    return; /* such parts come from scores that are not finite */
  if (lse_b == -INFINITY || (lse_a == -INFINITY && same_dtype)) {
    double kept = lse_b == -INFINITY ? a : b;
    CHECK(merged == kept || (isnan(merged) && isnan(kept)), "%g, not %g: the other part is empty", merged,
          kept);
    return;
  }
  if (share_a < 1e-40) share_a = 0.0, a = 0.0; /* a part without weight is ignored */
  if (share_b < 1e-40) share_b = 0.0, b = 0.0;
  if (isnan(a) || isnan(b) || !(size < 1e37)) return;
  double rounding = out == HYPERATTN_F32 ? 0.0 : out == HYPERATTN_F16 ? 0x1p-10 : 0x1p-7;
  if (out == HYPERATTN_F16 && size > 6e4) return; /* may round to infinity */
  /* weights are e^(lse - whole lse), so they are as exact as a float32 lse */
  double room = size * (rounding + 2e-5 + fabs(high) * 0x1p-21 * (rest > 0.0 ? 1.0 : 0.0)) +
                1e-7 * (rounding > 0.0) + 1e-36;
  CHECK(fabs(merged - (share_a * a + share_b * b) / whole) <= room, "%.9g, not %.9g", merged,
        (share_a * a + share_b * b) / whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  bytes in_all = {data, data + size}, *in = &in_all;
  int64_t batch = below(in, 4), heads = 1 + below(in, 4), rows = below(in, 40);
  int64_t dim = one_in(in, 8) ? 1 + below(in, 576) : 1 + below(in, 20), bad_dim = dim;
  tensor a = {0}, b = {0};
  uint64_t dtypes = take(in, 1);
  while (batch * heads * rows * dim > 1 << 13) rows /= 2;
  a.dtype = (hyperattn_dtype)(dtypes % 3), b.dtype = (hyperattn_dtype)(dtypes / 3 % 3);
  a.n[0] = b.n[0] = batch, a.n[1] = b.n[1] = heads, a.n[2] = b.n[2] = rows, a.dim = b.dim = dim;
  tensor_make(&a, in, 1), tensor_make(&b, in, 0);
  int64_t n = batch * heads * rows, shape[3] = {batch, heads, rows};
  size_t lse_bytes = (size_t)n * sizeof(float);
  float *lse_a = (float *)malloc(lse_bytes + !n), *lse_b = (float *)malloc(lse_bytes + !n);
  float *was_lse = (float *)malloc(lse_bytes + !n);
  float sizes[] = {1.0f, 30.0f, 1e4f, 0.0f}, number = (float[]){1.0f, 1e-3f, 1e4f, 1e30f}[take(in, 1) & 3];
  take_lse(lse_a, n, in, sizes[take(in, 1) & 3]), take_lse(lse_b, n, in, sizes[take(in, 1) & 3]);
  int valid = !a.valid || !b.valid ? 0 : a.valid < b.valid ? a.valid : b.valid;
  int runs = !a.huge && !b.huge;
  hyperattn_output out = {a.data, a.dtype, a.stride[0], a.stride[1], a.stride[2]};
  hyperattn_input part; /* whose fields of keys and values alone are not read: callers may not know them */
  memset(&part, 0xa5, sizeof part);
  part.data = b.data, part.dtype = b.dtype;
  part.batch_stride = b.stride[0], part.head_stride = b.stride[1], part.row_stride = b.stride[2];
  if (runs) {
    uint64_t seed = take(in, 1);
    tensor_fill(&a, seed, number, 0), tensor_fill(&b, seed + 1, number, 0);
    for (uint64_t k = take(in, 1) % 4; k-- > 0;) tensor_plant(&a, in, 0), tensor_plant(&b, in, 0);
  }
  if (one_in(in, 8)) {
    uint64_t which = take(in, 1) % 10;
    int64_t x = wild(in);
    runs = 0, valid = -1;
    if (which < 3)
      shape[which] = x;
    else if (which == 3)
      bad_dim = x;
    else if (which == 4)
      out.dtype = (hyperattn_dtype)x;
    else if (which == 5)
      part.dtype = (hyperattn_dtype)x;
    else if (which == 6)
      out.data = NULL;
    else if (which == 7)
      part.data = NULL;
    else
      valid = n ? 0 : 1, part.data = out.data; /* overlap */
    if (which < 3 && !(x >= (which == 1) && x <= 0x7fffffff)) valid = 0;
    if (which == 3 && !(x >= 1 && x <= 576)) valid = 0;
    if ((which == 4 || which == 5) && !((int)x >= 0 && (int)x <= 2)) valid = 0;
    if ((which == 6 || which == 7) && n) valid = 0;
  } else if (!n && valid >= 0) {
    valid = 1;
  }
  if (valid && !runs) goto done; /* it may be valid, but not all of its memory is there */
  memcpy(was_lse, lse_a, lse_bytes);
  unsigned char *was = (unsigned char *)malloc(a.size + 1), *now;
  memcpy(was, a.block, a.size);
  hyperattn_status status = hyperattn_merge(shape[0], shape[1], shape[2], bad_dim, out, lse_a, part, lse_b);
  CHECK(status == HYPERATTN_OK || (status < 0 && status > HYPERATTN_STATUS_LAST), "status %d", (int)status);
  CHECK(valid < 0 || (status == HYPERATTN_OK) == valid, "valid %d: %s", valid,
        hyperattn_status_string(status));
  if (status != HYPERATTN_OK || !runs || !n) {
    CHECK(!memcmp(was, a.block, a.size) && !memcmp(was_lse, lse_a, lse_bytes), "an invalid call wrote");
  } else {
    hyperattn_dtype dtype = a.dtype;
    size_t row_bytes = (size_t)(dim * unit_bytes(dtype));
    now = tensor_rows_taken(&a);
    memcpy(a.block, was, a.size);
    for (int64_t row = 0; row < n; row++) {
      int64_t at[3] = {row / rows / heads, row / rows % heads, row % rows};
      const unsigned char *from_a = tensor_row(&a, at[0], at[1], at[2]),
                          *from_b = tensor_row(&b, at[0], at[1], at[2]);
      double x = (double)was_lse[row], y = (double)lse_b[row], z = (double)lse_a[row], high = fmax(x, y);
      for (int64_t t = 0; t < dim; t++)
        check_number((double)load(now + (size_t)row * row_bytes, dtype, t), (double)load(from_a, dtype, t),
                     x, (double)load(from_b, b.dtype, t), y, dtype, dtype == b.dtype);
      if (isnan(x) || isnan(y) || high == INFINITY) continue;
      double lse = high == -INFINITY ? high : high + log(exp(x - high) + exp(y - high));
      CHECK(lse == z || fabs(lse - z) <= 1e-6 + fabs(lse) * 0x1p-22, "lse %.9g, not %.9g", z, lse);
    }
    free(now);
  }
  free(was);
done:
  free(lse_a), free(lse_b), free(was_lse), free(a.block), free(b.block);
  return 0;
}
