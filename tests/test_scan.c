/* The scan: its kernels against their specification, its sums and its errors against double precision, and
   what none of its choices may change. */
#include "support.h"
#include "same.h"

#include <float.h>

enum { CHUNK = 64, PILOT = 8, KEY_RAISED = 128, LEAST_SCANNED = 128, SCALAR_LANES = 16, MOST_LANES = 64 };
static const double most_draw = 268435456.0, most_level = 536870912.0;

/* ---- Kernels ---- */

/* A kernel of the scan, with the lanes of the kernel beside it. */
typedef struct scan_kernel {
  const hai_scan_kernel *by;
  int lanes, width;
} scan_kernel;
static scan_kernel kernels[2 * HYPERATTN_ISA_LAST];
static int n_kernels;
static const hai_scan_kernel *plain;

/* Each way to multiply that this build has and this machine can run. */
static int find_scan_kernels(void **state) {
  (void)state;
  plain = hai_scan_kernel_by(hai_kernel_of(HYPERATTN_ISA_SCALAR), 0);
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++)
    for (int least = 0; least < 2; least++) {
      const hai_kernel *beside = hai_kernel_of((hyperattn_isa)isa);
      if (!beside) continue;
      scan_kernel k = {hai_scan_kernel_by(beside, least ? 0 : hai_cpu()), beside->lanes, beside->width};
      int is_new = 1;
      for (int i = 0; i < n_kernels; i++) is_new = is_new && kernels[i].by != k.by;
      if (is_new) kernels[n_kernels++] = k;
      assert_true(k.lanes <= MOST_LANES && k.lanes % k.width == 0);
    }
  return 0;
}

/* Numbers of a kind; of MIXED ones some are not finite. */
typedef enum kind { GAUSSIAN, TINY, HUGE_ONES, SIGNED_ZEROS, MIXED, N_KINDS } kind;
static float any_number(kind of, uint64_t *random) {
  static const float special[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0.0f, -0.0f, 1e-44f, 1e-30f};
  float x = test_gaussian(random);
  if (of == TINY) return x * (any_of(random, 0, 1) ? 1e-36f : 1e-40f);
  if (of == HUGE_ONES) return x * 6e37f;
  if (of == SIGNED_ZEROS) return x < 0.0f ? -0.0f : 0.0f;
  return of == MIXED && !any_of(random, 0, 99) ? special[any_of(random, 0, 8)] : x;
}
static float *any_numbers(kind of, int64_t n, uint64_t *random) {
  float *x = (float *)test_alloc((size_t)n * sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = any_number(of, random);
  return x;
}

/* Lanes from `first` on of rows [lanes], as the scalar kernel has them. */
static void *scalar_lanes(const void *of, int64_t rows, int lanes, int first) {
  const uint32_t *from = (const uint32_t *)of;
  uint32_t *to = (uint32_t *)test_alloc((size_t)(rows * SCALAR_LANES) * sizeof *to);
  memset(to, 0, (size_t)(rows * SCALAR_LANES) * sizeof *to);
  for (int64_t r = 0; r < rows; r++)
    for (int i = 0; i < SCALAR_LANES && first + i < lanes; i++)
      to[r * SCALAR_LANES + i] = from[r * lanes + first + i];
  return to;
}

static int same_number(float x, float y) { return (isnan(x) && isnan(y)) || hai_bits(x) == hai_bits(y); }
static int is_near(float x, double y, double bound) {
  return isnan(y) ? isnan(x) : (double)x == y || fabs((double)x - y) <= bound;
}

/* Some whole registers of a kernel. */
static void any_lanes(const scan_kernel *k, int *begin, int *end, uint64_t *random) {
  *begin = (int)any_of(random, 0, k->lanes / k->width - 1) * k->width;
  *end = *begin + (int)any_of(random, 1, (k->lanes - *begin) / k->width) * k->width;
}

static void for_each_kernel(void (*check)(const scan_kernel *k, int64_t dim, kind of, uint64_t *random)) {
  static const int64_t dims[] = {1,  2,  3,  4,  5,  7,  8,   9,   15,  16, 17,
                                 31, 33, 48, 63, 64, 65, 127, 130, 575, 576};
  uint64_t random = 71;
  for (int k = 0; k < n_kernels; k++)
    for (int i = 0; i < 21; i++)
      for (int of = 0; of < N_KINDS; of++)
        for (int round = 0; round < (dims[i] < 100 ? 4 : 1); round++)
          check(&kernels[k], dims[i], (kind)of, &random);
}

/* Code t of a lane. */
static int code_of(const int32_t *code, int lanes, int lane, int64_t t) {
  return (int8_t)((uint32_t)code[t / 4 * lanes + lane] >> t % 4 * 8 & 255u);
}

/* The largest of each lane; codes that are the nearest whole numbers, four to a word. */
static void check_queries(const scan_kernel *k, int64_t dim, kind of, uint64_t *random) {
  float *query = any_numbers(of, dim * k->lanes, random);
  int64_t words = (dim + 3) / 4;
  int32_t bits[MOST_LANES + 1], most = 0, *code = (int32_t *)gaussians((words + 1) * k->lanes, 1),
                                *before = (int32_t *)gaussians((words + 1) * k->lanes, 1);
  bits[k->lanes] = -7;
  k->by->largest(query, dim, bits);
  assert_int_equal(bits[k->lanes], -7);
  for (int i = 0; i < k->lanes; i++) {
    uint32_t want = 0;
    for (int64_t t = 0; t < dim; t++) {
      uint32_t size = hai_bits(query[t * k->lanes + i]) & 0x7fffffffu;
      want = size > want ? size : want;
    }
    assert_int_equal(bits[i], want);
    if (bits[i] < 0x7f800000 && bits[i] > most) most = bits[i];
  }
  float inverse = 63.0f / hai_float((uint32_t)most);
  if (!isfinite(inverse)) inverse = 0.0f;
  k->by->quantise(query, dim, inverse, code);
  assert_memory_equal(code + words * k->lanes, before + words * k->lanes, (size_t)k->lanes * 4);
  for (int first = 0; first < k->lanes; first += SCALAR_LANES) {
    float *part = (float *)scalar_lanes(query, dim, k->lanes, first);
    int32_t *want = (int32_t *)test_alloc((size_t)(words * SCALAR_LANES) * sizeof *want);
    plain->quantise(part, dim, inverse, want);
    for (int64_t t = 0; t < dim; t++)
      for (int i = 0; i < SCALAR_LANES && first + i < k->lanes; i++) {
        int a = code_of(code, k->lanes, first + i, t);
        double exact = (double)query[t * k->lanes + first + i] * (double)inverse;
        assert_int_equal(a, code_of(want, SCALAR_LANES, i, t));
        assert_in_range(a + 63, 0, 126);
        if (!isnan(exact) && isfinite(inverse * 1024.0f))
          assert_below(fabs(a - fmin(fmax(exact, -63.5), 63.5)), 0.502);
      }
    for (int64_t t = dim; t < words * 4; t++)
      for (int i = 0; i < SCALAR_LANES && first + i < k->lanes; i++)
        assert_int_equal(code_of(code, k->lanes, first + i, t), 0);
    free(part), free(want);
  }
  free(query), free(code), free(before);
}
static void test_codes_of_queries(void **state) {
  (void)state;
  for_each_kernel(check_queries);
}

/* A tile's codes and a block's, at random or all at their ends. */
typedef struct scan_input {
  hai_scan_queries queries;
  hai_scan_block block;
  float level[MOST_LANES], mean[MOST_LANES], draw[CHUNK];
  uint8_t *key;
} scan_input;

/* Squares of a word's codes: those of all lanes, and of the lane that has most. */
static void check_forces(const scan_kernel *k, const hai_scan_queries *queries) {
  int32_t all[150], most[150];
  all[queries->n_words] = most[queries->n_words] = -7;
  k->by->forces(queries, all, most);
  for (int w = 0; w < queries->n_words; w++) {
    int64_t sum = 0, largest = 0;
    for (int i = 0; i < k->lanes; i++) {
      int64_t squares = 0;
      for (int64_t t = 4 * w; t < 4 * w + 4; t++)
        squares += (int64_t)pow(code_of(queries->code, k->lanes, i, t), 2.0);
      sum += squares, largest = squares > largest ? squares : largest;
    }
    assert_true(all[w] == sum && most[w] == largest);
  }
  assert_true(all[queries->n_words] == -7 && most[queries->n_words] == -7);
}

static void new_scan_input(scan_input *x, const scan_kernel *k, int64_t dim, kind of, uint64_t *random) {
  static const float units[] = {1e-7f, 1e-6f, 1e-3f, 0.02f, 0.3f, 40.0f, 1e20f};
  int64_t words = (dim + 3) / 4, at_end = any_of(random, 0, 2);
  int8_t *code = (int8_t *)test_alloc((size_t)(words * k->lanes * 4));
  for (int64_t i = 0; i < words * k->lanes * 4; i++)
    code[i] = (int8_t)(at_end ? 63 : any_of(random, -63, 63));
  x->queries.code = (int32_t *)(void *)code, x->queries.n_words = (int)words;
  x->queries.word = (int32_t *)test_alloc((size_t)words * sizeof *x->queries.word);
  for (int w = 0; w < words; w++) { /* in any order */
    int at = (int)any_of(random, 0, w);
    x->queries.word[w] = x->queries.word[at], x->queries.word[at] = w;
  }
  x->queries.n_first = (int)any_of(random, 1, words);
  x->block.margin = (int32_t)any_of(random, 0, 1) * (int32_t)any_of(random, 0, 40000);
  x->queries.lift = (int32_t *)gaussians(2 * k->lanes, 1);
  k->by->lift(&x->queries);
  check_forces(k, &x->queries);
  x->queries.level = x->level;
  any_lanes(k, &x->queries.begin, &x->queries.end, random);
  x->key = (uint8_t *)test_alloc((size_t)(CHUNK * words * 4));
  for (int64_t i = 0; i < CHUNK * words * 4; i++)
    x->key[i] =
        (uint8_t)(KEY_RAISED + (at_end ? (i / words / 4 % 2 ? 127 : -127) : any_of(random, -127, 127)));
  x->block.unit = units[any_of(random, 0, 6)];
  double spread = sqrt((double)dim) * 4000.0 * (double)x->block.unit;
  for (int j = 0; j < CHUNK; j++) {
    x->draw[j] = -logf((float)(((double)(splitmix(random) >> 41) + 0.5) / 8388608.0));
  }
  for (int i = 0; i < k->lanes; i++) {
    x->mean[i] = any_number(of, random);
    x->level[i] = (float)((double)any_number(of, random) + 2.5 * spread);
    if (!any_of(random, 0, 9)) x->level[i] = any_of(random, 0, 1) ? INFINITY : -INFINITY;
  }
  x->block.code = x->key, x->block.draw = x->draw, x->block.mean = x->mean;
}
static void free_scan_input(scan_input *x) {
  free(x->queries.code), free(x->queries.word), free(x->queries.lift), free(x->key);
}

/* The sum of codes' products of the order's first n words. */
static int64_t code_product(const scan_input *x, int lanes, int i, int j, int n) {
  int64_t sum = 0;
  for (int w = 0; w < n; w++)
    for (int64_t t = 4 * x->queries.word[w]; t < 4 * x->queries.word[w] + 4; t++)
      sum += code_of(x->queries.code, lanes, i, t) * (x->key[4 * j * x->queries.n_words + t] - KEY_RAISED);
  return sum;
}

/* Estimates; lanes aside keep theirs. */
static void check_estimate(const scan_kernel *k, int64_t dim, kind of, uint64_t *random) {
  scan_input x;
  float score[PILOT * MOST_LANES];
  new_scan_input(&x, k, dim, of, random);
  int first = (int)any_of(random, 0, CHUNK / PILOT - 1) * PILOT;
  for (int i = 0; i < PILOT * k->lanes; i++) score[i] = -77.0f;
  k->by->estimate(&x.queries, &x.block, first, score);
  for (int j = 0; j < PILOT; j++)
    for (int i = 0; i < k->lanes; i++) {
      double part =
          (double)x.block.unit * (double)code_product(&x, k->lanes, i, first + j, x.queries.n_words);
      double want = (double)x.mean[i] + part;
      if (i < x.queries.begin || i >= x.queries.end)
        assert_true(score[j * k->lanes + i] == -77.0f);
      else if (fabs(want) < 3e38 || !isfinite(want))
        assert_true(
            is_near(score[j * k->lanes + i], want, 2e-7 * (fabs(part) + fabs((double)x.mean[i])) + 1e-44));
    }
  free_scan_input(&x);
}
static void test_estimates(void **state) {
  (void)state;
  for_each_kernel(check_estimate);
}

/* x / unit as the kernels have it, in whole numbers towards 0. */
static double in_units(float x, float inverse, double most) {
  double units = (double)stored(x * inverse);
  return !(units > -most) ? -most : units < most ? trunc(units) : most;
}

/* Hits are the keys whose largest excess over a lane's threshold, and draw, are above 0, by all words and by the
   first ones and the margin; `most` is the smaller excess. A compiler that keeps more digits than floats have may be one apart. */
static void check_hits(const scan_kernel *k, int64_t dim, kind of, uint64_t *random) {
  scan_input x;
  int32_t most[CHUNK];
  double threshold[MOST_LANES];
  new_scan_input(&x, k, dim, of, random);
  float inverse = stored(1.0f / x.block.unit);
  for (int i = 0; i < k->lanes; i++)
    threshold[i] = in_units(stored(x.level[i] - x.mean[i]), inverse, most_level);
  memset(most, 0x55, sizeof most);
  uint64_t hits = k->by->hits(&x.queries, &x.block, most);
  for (int j = 0; j < CHUNK; j++) {
    double best = -1e300, first = -1e300, slack = FLT_EVAL_METHOD ? 1.0 + 1e-6 * most_level : 0.0;
    for (int i = x.queries.begin; i < x.queries.end; i++) {
      best = fmax(best, (double)code_product(&x, k->lanes, i, j, x.queries.n_words) - threshold[i]);
      first = fmax(first, (double)code_product(&x, k->lanes, i, j, x.queries.n_first) - threshold[i]);
    }
    best = fmin(best, first + x.block.margin);
    double excess = best + in_units(x.draw[j], inverse, most_draw);
    if (fabs(excess - 0.5) > slack) assert_int_equal(hits >> j & 1, excess > 0.0);
    if (hits >> j & 1) assert_below(fabs(most[j] - best), slack);
  }
  free_scan_input(&x);
}
static void test_hits(void **state) {
  (void)state;
  for_each_kernel(check_hits);
}

/* The pilot's sums, from none and from some; empty lanes, and scores of -inf. */
static void check_collect(const scan_kernel *k, int64_t dim, kind of, uint64_t *random) {
  float score[PILOT * MOST_LANES], high[MOST_LANES], sum[MOST_LANES], group[MOST_LANES], was[3][MOST_LANES];
  int begin, end;
  (void)dim;
  if (of == MIXED || of == HUGE_ONES) return;
  any_lanes(k, &begin, &end, random);
  for (int i = 0; i < PILOT * k->lanes; i++) {
    score[i] = any_number(of, random) * 9.0f;
    if (!any_of(random, 0, 9)) score[i] = -INFINITY;
    if (i % k->lanes == begin) score[i] = -INFINITY;
  }
  for (int i = 0; i < k->lanes; i++) {
    int is_begun = (int)any_of(random, 0, 1) && i != begin;
    was[0][i] = high[i] = is_begun ? test_gaussian(random) * 9.0f : -INFINITY;
    was[1][i] = sum[i] = is_begun ? (float)any_of(random, 1, 50) : 0.0f;
    was[2][i] = group[i] = sum[i] * (float)splitmix_uniform(random);
  }
  k->by->collect(score, begin, end, high, sum, group);
  for (int i = 0; i < k->lanes; i++) {
    double most = (double)was[0][i], factor = 0.0, here = 0.0;
    for (int j = 0; j < PILOT; j++) most = fmax(most, (double)score[j * k->lanes + i]);
    if (most > -INFINITY) factor = exp((double)was[0][i] - most);
    for (int j = 0; j < PILOT && most > -INFINITY; j++) here += exp((double)score[j * k->lanes + i] - most);
    double all = (double)was[1][i] * factor + here, largest = fmax((double)was[2][i] * factor, here);
    if (i < begin || i >= end)
      assert_true(high[i] == was[0][i] && sum[i] == was[1][i] && group[i] == was[2][i]);
    else
      assert_true((double)high[i] == most && is_near(sum[i], all, 4e-6 * all + 1e-37) &&
                  is_near(group[i], largest, 4e-6 * largest + 1e-37));
  }
}
static void test_pilot_sums(void **state) {
  (void)state;
  for_each_kernel(check_collect);
}

/* The sample's variance, and norms and distances of a result. */
static void check_spread(const scan_kernel *k, int64_t dim, kind of, uint64_t *random) {
  int n_keys = (int)any_of(random, 1, CHUNK), begin, end;
  if (of != GAUSSIAN) return;
  float *weight = any_numbers(of, CHUNK * k->lanes, random), *o = any_numbers(of, dim * k->lanes, random),
        *centre = any_numbers(of, dim, random);
  float missing[CHUNK], distance[CHUNK], factor[MOST_LANES], near[MOST_LANES], far[MOST_LANES],
      l[MOST_LANES], norm[MOST_LANES], apart[MOST_LANES];
  any_lanes(k, &begin, &end, random);
  for (int j = 0; j < CHUNK; j++)
    missing[j] = (float)splitmix_uniform(random), distance[j] = (float)any_of(random, 0, 5) * 0.7f;
  for (int i = 0; i < k->lanes; i++) {
    near[i] = far[i] = 3.0f + (float)i, norm[i] = apart[i] = -7.0f;
    factor[i] = (float)splitmix_uniform(random), l[i] = 0.1f + 3.0f * (float)splitmix_uniform(random);
  }
  k->by->spread(weight, n_keys, missing, distance, factor, begin, end, near, far);
  k->by->distances(o, dim, l, centre, begin, end, norm, apart);
  for (int i = 0; i < k->lanes; i++) {
    double f = (double)factor[i], a = (3.0 + i) * f * f, b = a, norms = 0.0, aparts = 0.0, size = 0.0;
    for (int j = 0; j < n_keys; j++) {
      double w = (double)weight[j * k->lanes + i];
      a += w * w * (double)missing[j] * (double)distance[j], b += w * w * (double)missing[j];
    }
    for (int64_t t = 0; t < dim; t++) {
      double x = (double)o[t * k->lanes + i] / (double)l[i], c = (double)centre[t];
      norms += x * x, aparts += (x - c) * (x - c), size += x * x + c * c;
    }
    if (i < begin || i >= end) {
      assert_true(near[i] == 3.0f + (float)i && far[i] == near[i] && norm[i] == -7.0f && apart[i] == -7.0f);
    } else {
      assert_true(is_near(near[i], a, 1e-5 * a) && is_near(far[i], b, 1e-5 * b));
      assert_true(is_near(norm[i], norms, 1e-5 * size) && is_near(apart[i], aparts, 1e-5 * size));
    }
  }
  free(weight), free(o), free(centre);
}
static void test_spread_and_distances(void **state) {
  (void)state;
  for_each_kernel(check_spread);
}

/* The largest norm of each word of a block's codes. */
static void check_norms(const scan_kernel *k, int64_t words, uint64_t *random) {
  uint8_t *code = (uint8_t *)test_alloc((size_t)(CHUNK * words * 4));
  int32_t *norm = (int32_t *)test_alloc((size_t)(words + 1) * sizeof *norm),
          scale = any_of(random, 0, 3) ? 9 : 127;
  for (int64_t i = 0; i < CHUNK * words * 4; i++)
    code[i] =
        (uint8_t)(KEY_RAISED - scale + any_of(random, 0, 1) * 2 * scale * any_of(random, 0, 100) / 100);
  norm[words] = -7;
  k->by->norms(code, (int)words, norm);
  for (int64_t w = 0; w < words; w++) {
    int32_t most = 0;
    for (int j = 0; j < CHUNK; j++) {
      int32_t sum = 0;
      for (int y = 0; y < 4; y++) {
        int32_t x = code[4 * (j * words + w) + y] - KEY_RAISED;
        sum += x * x;
      }
      most = sum > most ? sum : most;
    }
    assert_int_equal(norm[w], most);
  }
  assert_int_equal(norm[words], -7);
  free(code), free(norm);
}

/* A block's mean, reach and codes have the bits of the scalar kernel, and are what they are called. Nothing
   behind a row of codes is written. */
static void check_sketch(const scan_kernel *k, int64_t dim, kind of, uint64_t *random) {
  float *rows = any_numbers(of, CHUNK * dim + CHUNK, random),
        *mean = any_numbers(GAUSSIAN, dim + 1, random), *want = any_numbers(GAUSSIAN, dim, random);
  const float *row[CHUNK];
  uint8_t code[580], other[580];
  float guard = mean[dim];
  int all_finite = 1;
  for (int j = 0; j < CHUNK; j++) row[j] = rows + j * dim + any_of(random, 0, j);
  k->by->mean(row, dim, mean);
  plain->mean(row, dim, want);
  assert_true(mean[dim] == guard);
  for (int64_t t = 0; t < dim; t++) {
    double sum = 0.0, size = 1e-44;
    for (int j = 0; j < CHUNK; j++) sum += (double)row[j][t], size += fabs((double)row[j][t]);
    assert_true(same_number(mean[t], want[t]));
    if (size < 3e38) assert_true(is_near(mean[t], sum / CHUNK, 4e-6 * size / CHUNK + 2e-45));
    all_finite = all_finite && isfinite(mean[t]) && size < INFINITY;
  }
  int32_t reach = k->by->reach(row, dim, mean), plain_reach = plain->reach(row, dim, mean);
  float most = 0.0f;
  for (int j = 0; j < CHUNK; j++)
    for (int64_t t = 0; t < dim; t++) most = fmaxf(most, fabsf(stored(row[j][t] - mean[t])));
  assert_true(reach == plain_reach || (reach > 0x7f800000 && plain_reach > 0x7f800000));
  assert_int_equal(reach < 0x7f800000, all_finite && most < INFINITY);
  if (all_finite) assert_true(hai_float((uint32_t)reach) == most);
  float inverse = 127.0f / most;
  if (reach >= 0x7f800000 || !isfinite(inverse)) inverse = 0.0f;
  for (int j = 0; j < CHUNK; j += 7) {
    int64_t padded = (dim + 3) / 4 * 4;
    memset(code, 99, sizeof code), memset(other, 99, sizeof other);
    k->by->encode(row[j], dim, mean, inverse, code);
    plain->encode(row[j], dim, mean, inverse, other);
    assert_memory_equal(code, other, sizeof code);
    for (int64_t t = 0; t < padded; t++) {
      double exact = t < dim ? ((double)row[j][t] - (double)mean[t]) * (double)inverse : 0.0;
      assert_in_range(code[t], 1, 255);
      if (all_finite && isfinite(inverse * 1024.0f))
        assert_below(fabs(code[t] - KEY_RAISED - exact), 0.502);
    }
    assert_true(code[padded] == 99);
  }
  check_norms(k, (dim + 3) / 4, random);
  double apart = 0.0, size = 0.0;
  for (int64_t t = 0; t < dim; t++)
    apart += pow((double)row[3][t] - (double)want[t], 2.0),
        size += pow((double)row[3][t], 2.0) + pow((double)want[t], 2.0);
  if (size < 1e38) assert_true(is_near(k->by->apart(row[3], dim, want), apart, 1e-5 * size + 1e-37));
  free(rows), free(mean), free(want);
}
static void test_sketches(void **state) {
  (void)state;
  for_each_kernel(check_sketch);
}

/* ---- Calls ---- */

/* A scan of all that is not small: budget, window, and so on. */
static hyperattn_params scan_params(int64_t budget, int64_t window, float tolerance) {
  hyperattn_params p = hyperattn_linear_params();
  p.method = HYPERATTN_SCAN;
  p.min_seq_len = 64, p.sample_size = budget, p.window = window, p.tolerance = tolerance;
  return p;
}

static int is_scanned(const call *c) {
  hai_plan plan;
  assert_int_equal(hai_resolve(&plan, &c->problem, &c->params), HYPERATTN_OK);
  return plan.scanning;
}

/* Lets a call tell the errors of its queries, between two guards, and a report. */
static void tell_errors(call *c) {
  int64_t rows = lse_size(&c->problem), heads = c->problem.batch * c->problem.n_heads;
  float *error = (float *)test_alloc((size_t)(rows + 2) * sizeof *error);
  memset(error, 0xff, (size_t)(rows + 2) * sizeof *error);
  error[0] = error[rows + 1] = 7.0f;
  c->problem.query_error = error + 1;
  c->problem.report = (hyperattn_report *)test_alloc((size_t)heads * sizeof(hyperattn_report));
}
static void assert_guards(const call *c) {
  assert_true(c->problem.query_error[-1] == 7.0f && c->problem.query_error[lse_size(&c->problem)] == 7.0f);
}
static void free_errors(call *c) { free(c->problem.query_error - 1), free(c->problem.report); }

/* |out - exact| / |exact| of a row. */
static double row_error(const call *c, const double *out, int64_t row) {
  int64_t dim = c->problem.value_dim;
  return relative_error(c->out + row * dim, out + row * dim, dim);
}

/* ---- Unbiasedness: over seeds, the mean of e^lse and of e^lse out is the exact sum, by z-tests ---- */

/* The largest |z| over rows, of the normaliser and of one coordinate of its product with out. */
static double largest_z(call *c, int seeds) {
  const hyperattn_problem *p = &c->problem;
  int64_t n = p->n_query * p->n_heads, dim = p->value_dim;
  double *lse, *out = reference_of(c, &lse), z = 0.0;
  double *sums = (double *)test_alloc((size_t)(4 * n) * sizeof(double));
  size_t bytes = hyperattn_workspace_size(p, &c->params, 1);
  void *workspace = test_alloc(bytes);
  memset(sums, 0, (size_t)(4 * n) * sizeof(double));
  assert_true(is_scanned(c));
  for (int seed = 0; seed < seeds; seed++) {
    c->params.seed = (uint64_t)seed;
    assert_int_equal(hyperattn_forward(p, &c->params, workspace, bytes), HYPERATTN_OK);
    for (int64_t i = 0; i < n; i++) {
      double x = exp((double)c->lse[i] - lse[i]), y = x * (double)c->out[i * dim];
      sums[4 * i] += x, sums[4 * i + 1] += x * x, sums[4 * i + 2] += y, sums[4 * i + 3] += y * y;
    }
  }
  for (int64_t i = 0; i < 2 * n; i++) {
    double mean = sums[2 * i] / seeds, variance = sums[2 * i + 1] / seeds - mean * mean,
           want = i % 2 ? out[i / 2 * dim] : 1.0;
    z = fmax(z, fabs(mean - want) / (sqrt(fmax(variance, 0.0) / seeds) + 2e-6));
  }
  free(out), free(sums), free(workspace);
  return z;
}

/* The largest of 600 normals passes 4.9 in less than one of a thousand tests; the seeds are fixed. */
static const double z_bound = 4.9;

/* So many for kernels of many lanes, which take less time. */
static int seeds_for(const call *c) {
  return !IS_FAST_BUILD ? 100 : hai_kernel_of(c->params.isa)->lanes > SCALAR_LANES ? 2000 : 600;
}

/* So few lanes that most keys of the sample have weights: full attention and causal, with windows and sinks
   of both kinds, capped scores, and codes so coarse that a step of one changes what is kept. */
static void test_sums_are_unbiased(void **state) {
  static const float sink[] = {1.5f};
  (void)state;
  for (int i = 0; i < 8; i++) {
    call c = new_call(1, 1, 1, LEAST_SCANNED + 2, i == 2 ? 520 : 390, 8, 8, i % 2, 41 + (uint64_t)i);
    c.params = scan_params(i == 2 ? 24 : 16, i == 1 ? 64 : 0, 0.0f);
    c.params.sink_keys = i * 2;
    for (int64_t t = 0; t < c.problem.n_key * 8; t++) c.v[t] += 1.0f;
    for (int64_t t = 0; t < c.problem.n_query * 8; t++) c.q[t] *= i == 3 ? 0.2f : i > 5 ? 0.6f : 1.5f;
    if (i == 4) c.problem.sink = sink;
    if (i == 5) c.problem.softcap = 4.0f;
    for (int64_t r = 0; r < c.problem.n_key && i > 5; r++) c.k[r * 8] = r % 2 ? 100.0f : -100.0f;
    for (int64_t r = 0; r < c.problem.n_query && i > 5; r++) c.q[r * 8] = r % 16 == 7 ? 100.0f : 0.0f;
    assert_below(largest_z(&c, seeds_for(&c)), z_bound);
    free_call(&c);
  }
}

/* The noise of out of two heads, and of two tiles, is not the same, even where they ask for nearly the same. (That of
   lse is: how many draws are small is the same for all of a call.) */
static void test_noise_is_not_shared(void **state) {
  enum { N = 192, ALIKE = 96, RUNS = 150 };
  call c = new_call(1, 2, 1, N, 400, 8, 8, 0, 45);
  double *lse, *out, sum[3][3] = {{0.0}};
  (void)state;
  c.params = scan_params(16, 0, 0.0f);
  for (int64_t t = 0; t < N * 8; t++) {
    if (t >= ALIKE * 8) c.q[t] = 1.001f * c.q[t - ALIKE * 8];
    c.q[N * 8 + t] = 0.999f * c.q[t];
  }
  out = reference_of(&c, &lse);
  for (int seed = 0; seed < RUNS; seed++) {
    c.params.seed = (uint64_t)seed;
    run(&c);
    for (int r = 0; r < ALIKE; r += 48) {
      const int64_t row[] = {r, r + ALIKE, N + r};
      double x[3];
      for (int i = 0; i < 3; i++) x[i] = (double)c.out[row[i] * 8] - out[row[i] * 8];
      for (int i = 0; i < 9; i++) sum[i / 3][i % 3] += x[i / 3] * x[i % 3];
    }
  }
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < i; j++) assert_below(fabs(sum[i][j]) / sqrt(sum[i][i] * sum[j][j]), 0.3);
  free(out);
  free_call(&c);
}

/* ---- Needles ---- */

/* Sixty queries, far apart, of which each attends to one early key of its own: never is one lost. Values of
   needles are longer than others, and a mean of values is not near them. */
static void check_needles(int causal, int64_t budget, float tolerance, uint64_t seed) {
  enum { N = 700, D = 48, NEEDLES = 60 };
  call c = new_call(1, 1, 1, N, N, D, 8, causal, seed);
  uint64_t random = seed;
  double *lse, *out;
  c.params = scan_params(budget, 16, tolerance);
  c.params.seed = seed;
  for (int64_t t = 0; t < N * D; t++) c.q[t] *= 0.5f;
  for (int i = 0; i < NEEDLES; i++) { /* needle i: key 5 i, query 340 + 6 i */
    float *query = c.q + (340 + 6 * i) * D, *key = c.k + 5 * i * D;
    double size = 0.0;
    for (int t = 0; t < D; t++) key[t] = test_gaussian(&random), size += (double)key[t] * (double)key[t];
    for (int t = 0; t < D; t++) query[t] = key[t] * (float)(16.0 * sqrt(D) / size);
    for (int t = 0; t < 8; t++) c.v[5 * i * 8 + t] *= 3.0f;
  }
  assert_true(is_scanned(&c));
  out = reference_of(&c, &lse);
  run(&c);
  for (int i = 0; i < NEEDLES; i++) {
    assert_below(row_error(&c, out, 340 + 6 * i), 0.05);
    assert_below(fabs((double)c.lse[340 + 6 * i] - lse[340 + 6 * i]), 0.05);
  }
  free(out);
  free_call(&c);
}
static void test_no_needle_is_lost(void **state) {
  (void)state;
  for (int i = 0; i < (IS_FAST_BUILD ? 48 : 6); i++)
    check_needles(i / 3 % 2, i % 3 == 0 ? 16 : 64, i % 3 == 2 ? 0.1f : 0.0f, 500 + (uint64_t)i);
}

/* Every 48th query looks along a coordinate that no other query and only one key has much of; queries and keys may
   be scaled against each other. */
static void check_odd_needle(double scale, float tolerance) {
  enum { N = 1152, D = 64 };
  call c = new_call(1, 1, 1, N, N, D, 8, 0, 77);
  double *lse, *out;
  c.params = scan_params(128, 0, tolerance);
  c.problem.scale = 0.3f;
  for (int64_t i = 0; i < N; i++)
    for (int t = 0; t < D; t++) {
      float *q = c.q + i * D + t, *k = c.k + i * D + t;
      if (t >= 32) *k *= 0.05f;
      if (t == 40) *q *= 0.05f, *k = i == 900 ? 6.0f : *k;
      if (i % 48 == 7) *q = t == 40 ? 6.0f : *q * 0.02f;
      *q = (float)((double)*q * scale), *k = (float)((double)*k / scale);
    }
  for (int64_t t = 0; t < N * 8; t++) c.v[t] += t / 8 == 900 ? 7.0f : 4.0f;
  assert_true(is_scanned(&c));
  out = reference_of(&c, &lse);
  run(&c);
  for (int64_t i = 7; i < N; i += 48) assert_below(row_error(&c, out, i), 0.1);
  free(out);
  free_call(&c);
}
static void test_odd_needles_at_any_scale(void **state) {
  static const double scales[] = {1.0, 1e-20, 1e19};
  (void)state;
  for (int i = 0; i < 6; i++) check_odd_needle(scales[i / 2], i % 2 ? 0.1f : 0.0f);
}

/* ---- Causality ---- */

/* At a fixed budget, what keys and values after a row hold changes no bit of the row. */
static void check_causality(int64_t n_query, int64_t n_key, int64_t after, float bad_key, float bad_value,
                            int64_t last) {
  enum { D = 12, VD = 9 };
  call c = new_call(1, 2, 1, n_query, n_key, D, VD, 1, 61),
       d = new_call(1, 2, 1, n_query, n_key, D, VD, 1, 61);
  int64_t seen = after - (n_key - n_query) + 1; /* so many rows see no key behind `after` */
  c.params = d.params = scan_params(12, 20, 0.0f);
  for (int64_t j = after + 1; j <= last; j++) {
    for (int t = 0; t < D; t++) d.k[j * D + t] = bad_key == 7.0f ? -2.0f * d.k[j * D + t] : bad_key;
    for (int t = 0; t < VD; t++) d.v[j * VD + t] = bad_value == 7.0f ? d.v[j * VD + t] + 1.0f : bad_value;
  }
  assert_true(is_scanned(&c));
  run(&c), run(&d);
  for (int h = 0; h < 2; h++) {
    assert_memory_equal(c.lse + h * n_query, d.lse + h * n_query, (size_t)seen * sizeof(float));
    assert_memory_equal(c.out + h * n_query * VD, d.out + h * n_query * VD,
                        (size_t)(seen * VD) * sizeof(float));
  }
  free_call(&c), free_call(&d);
}
static void test_later_keys_change_nothing(void **state) {
  static const float bad[] = {NAN, INFINITY, -INFINITY, 1e30f, -3e38f, 0.0f, 7.0f, 1e20f};
  uint64_t random = 62;
  (void)state;
  for (int i = 0; i < (IS_FAST_BUILD ? 160 : 40); i++) {
    int64_t n_key = any_of(&random, 0, 1) ? 640 : 500, n_query = i % 3 ? n_key : 200,
            after = any_of(&random, n_key - n_query, n_key - 2),
            last = any_of(&random, 0, 1) ? n_key - 1 : any_of(&random, after + 1, n_key - 1);
    check_causality(n_query, n_key, after, i % 5 ? bad[any_of(&random, 0, 7)] : 7.0f, bad[i % 8], last);
  }
}

/* ---- Bits ---- */

/* Any call that is scanned. */
static any_call new_scanned_call(unsigned fields, uint64_t *random) {
  static const int64_t queries[] = {128, 129, 160, 200, 290}, keys[] = {199, 257, 330, 464, 520, 577},
                       dims[] = {1, 3, 8, 16, 24, 31, 33, 40}, budgets[] = {1, 4, 10, 20},
                       windows[] = {0, 1, 7, 16, 40, 63, 64, 0, 1, 16, 5000},
                       sinks[] = {0, 1, 4, 9, 64, 0, 1, 4, 0, 1, 2000};
  static const float tolerances[] = {0.0f, 0.0f, 0.1f, 0.4f};
  any_call a;
  hyperattn_problem *p = &a.c.problem;
  memset(&a, 0, sizeof a);
  a.c.params = scan_params(one_of(random, budgets, 4), one_of(random, windows, 11), 0.0f);
  a.c.params.tolerance = tolerances[any_of(random, 0, 3)];
  a.c.params.sink_keys = one_of(random, sinks, 11), a.c.params.seed = splitmix(random);
  p->batch = any_of(random, 1, 2), p->n_kv_heads = any_of(random, 1, 2);
  p->n_heads = p->n_kv_heads * any_of(random, 1, 2);
  p->n_query = one_of(random, queries, 5);
  p->n_key = any_of(random, 0, 5) ? one_of(random, keys, 6) : p->n_query;
  p->head_dim = one_of(random, dims, 8), p->value_dim = one_of(random, dims, 8);
  p->causal = (int)any_of(random, 0, 1);
  if (fields & FORMATS) any_dtypes(p, random);
  if (has_kernel(HYPERATTN_ISA_AVX512_BF16) && !getenv("HYPERATTN_TEST_ISA") && any_of(random, 0, 1))
    a.c.params.isa = HYPERATTN_ISA_AVX512_BF16;
  fill_any_call(&a, fields & ~(unsigned)(WINDOW | MASK), random);
  tell_errors(&a.c);
  keep(&a, p->query_error - 1), keep(&a, p->report);
  return a;
}

/* Calls a test with random calls; those that have the shape of the whole give its errors and reports too. */
static void for_each_scanned(void (*test)(any_call *a, uint64_t *random), int is_whole, int rounds,
                             uint64_t seed) {
  int scanned = 0;
  for (int i = 0; i < rounds; i++) {
    any_call a = new_scanned_call(i % 4 ? (unsigned)any_of(&seed, 0, ALL_FIELDS) : 0, &seed);
    const hyperattn_problem *p = &a.c.problem;
    size_t errors = (size_t)lse_size(p) * sizeof(float),
           reports = (size_t)(p->batch * p->n_heads) * sizeof(hyperattn_report);
    run(&a.c);
    float *error = (float *)memcpy(test_alloc(errors), p->query_error, errors);
    hyperattn_report *report = (hyperattn_report *)memcpy(test_alloc(reports), p->report, reports);
    memset(p->query_error, 0xff, errors), memset(p->report, 0xff, reports);
    test(&a, &seed);
    if (is_whole) assert_memory_equal(p->query_error, error, errors);
    if (is_whole) assert_memory_equal(p->report, report, reports);
    for (int64_t r = 0; r < lse_size(p); r++) assert_true(error[r] >= 0.0f);
    assert_guards(&a.c);
    scanned += is_scanned(&a.c);
    free(error), free(report);
    free_any_call(&a);
  }
  assert_true(scanned > rounds / 2);
}
enum { ROUNDS = IS_FAST_BUILD ? 24 : 8 };

static void test_workers(void **state) {
  (void)state;
  for_each_scanned(check_workers, 1, ROUNDS, 81);
}
static void test_rows_may_lie_anywhere(void **state) {
  (void)state;
  for_each_scanned(check_copies, 1, ROUNDS, 82);
}
static void test_results_of_16_bits(void **state) {
  (void)state;
  for_each_scanned(check_narrow, 0, ROUNDS, 83);
}
static void test_grouped_heads_equal_expanded(void **state) {
  (void)state;
  for_each_scanned(check_expanded, 1, ROUNDS, 84);
}
static void test_slices_equal_the_whole(void **state) {
  (void)state;
  for_each_scanned(check_slice, 0, ROUNDS, 85);
}
static void check_hidden_if_fixed(any_call *a, uint64_t *random) {
  if (a->c.params.tolerance == 0.0f) check_hidden(a, random);
}
static void test_hidden_rows_change_nothing(void **state) {
  (void)state;
  for_each_scanned(check_hidden_if_fixed, 0, 2 * ROUNDS, 86);
}
static void test_sizes_are_what_is_needed(void **state) {
  (void)state;
  for_each_scanned(check_size, 1, ROUNDS, 87);
}

/* Any dtype gives the bits of the same numbers as float32, but for kernels that read bfloat16: they round
   weights. */
static void check_dtypes(any_call *a, uint64_t *random) {
  any_call b = twin_of(a);
  const hyperattn_problem *p = &a->c.problem;
  hyperattn_input *to[] = {&b.c.problem.query, &b.c.problem.key, &b.c.problem.value};
  hai_plan plan;
  (void)random;
  for (int x = 0; x < 3; x++) {
    hyperattn_input from = *to[x];
    int64_t heads = x ? p->n_kv_heads : p->n_heads, rows = x ? p->n_key : p->n_query,
            dim = x == 2 ? p->value_dim : p->head_dim;
    float *all = (float *)keep(&b, test_alloc((size_t)(p->batch * heads * rows * dim) * sizeof(float)));
    double *row = (double *)test_alloc((size_t)dim * sizeof(double));
    memset(to[x], 0, sizeof *to[x]);
    set_input(to[x], all, HYPERATTN_F32, heads, rows, dim);
    for (int64_t r = 0; r < p->batch * heads * rows; r++) {
      read_row(&from, r / rows / heads, r / rows % heads, r % rows, dim, row);
      for (int64_t t = 0; t < dim; t++) all[r * dim + t] = (float)row[t];
    }
    free(row);
  }
  run(&b.c);
  assert_int_equal(hai_resolve(&plan, p, &a->c.params), HYPERATTN_OK);
  if (plan.kernel == plan.float_kernel) {
    assert_same_bits(&a->c, &b.c);
  } else {
    double *lse, *out = reference_of(&a->c, &lse);
    int64_t n = out_size(p);
    assert_below(relative_error(a->c.out, out, n), 1.2 * relative_error(b.c.out, out, n) + bound_of(p));
    assert_below(lse_error(a->c.lse, lse, lse_size(p)), 1.2 * lse_error(b.c.lse, lse, lse_size(p)) + 5e-3);
    free(out);
  }
  free_any_call(&b);
}
static void test_dtypes_are_their_numbers(void **state) {
  (void)state;
  for_each_scanned(check_dtypes, 0, 2 * ROUNDS, 88);
}

/* Sizes never fall as queries, keys and workers become more, with errors, reports and a tolerance or not. */
static void test_sizes_never_fall(void **state) {
  uint64_t random = 89;
  (void)state;
  for (int round = 0; round < 60; round++) {
    hyperattn_problem p = nowhere(round % 3 ? 0 : (unsigned)any_of(&random, 0, ALL_FIELDS), round % 2);
    hyperattn_params a =
        scan_params(any_of(&random, 0, 300), any_of(&random, 0, 99), round % 5 ? 0.1f : 0.0f);
    int64_t top = any_of(&random, 0, 2) ? 1200 : 40000;
    a.min_seq_len = any_of(&random, 1, 500);
    if (any_of(&random, 0, 1)) p.report = (hyperattn_report *)(uintptr_t)4096;
    if (any_of(&random, 0, 1)) p.query_error = (float *)(uintptr_t)4096;
    check_sizes_never_fall(p, &a, top, &random);
  }
}

/* ---- Errors that queries tell of themselves ---- */

typedef enum made { CLUSTERS, SINKS, LONE_NEEDLES, TREND, SHARP, N_MADE } made;
enum { MADE_ROWS = IS_FAST_BUILD ? 1500 : 1100, MADE_DIM = 32, MADE_VALUES = 16 };

/* A causal head: keys about some centres, which queries look for; sinks without values that take most of the
   attention; needles; values that drift; sharp attention. */
static call new_made_call(made kind, uint64_t seed) {
  call c = new_call(1, 1, 1, MADE_ROWS, MADE_ROWS, MADE_DIM, MADE_VALUES, 1, seed);
  float *centre = gaussians(16 * (MADE_DIM + MADE_VALUES), seed + 9);
  uint64_t random = seed;
  for (int64_t i = 0; i < MADE_ROWS; i++) {
    float *q = c.q + i * MADE_DIM, *k = c.k + i * MADE_DIM, *v = c.v + i * MADE_VALUES;
    int64_t of_query = any_of(&random, 0, 15), of_key = any_of(&random, 0, 15);
    for (int t = 0; t < MADE_DIM; t++) {
      if (kind == CLUSTERS)
        q[t] += 0.7f * centre[of_query * 48 + t], k[t] += 0.7f * centre[of_key * 48 + t];
      if (kind == SINKS) q[t] += 1.0f, k[t] = i < 4 ? 1.0f : k[t] - 0.3f;
      if (kind == SHARP) q[t] *= 3.0f;
      if (kind == LONE_NEEDLES && i > 200 && i % 50 == 0) q[t] = c.k[(i / 2 - 77) * MADE_DIM + t] * 2.5f;
    }
    for (int t = 0; t < MADE_VALUES; t++) {
      if (kind == CLUSTERS) v[t] = 0.4f * v[t] + centre[of_key * 48 + MADE_DIM + t];
      if (kind == SINKS) v[t] = i < 4 ? 0.0f : v[t] + 1.0f;
      if (kind == LONE_NEEDLES) v[t] += 0.7f;
      if (kind == TREND) v[t] += 1.0f + (float)i / MADE_ROWS;
    }
  }
  free(centre);
  c.params = scan_params(64, 64, 0.0f);
  tell_errors(&c);
  assert_true(is_scanned(&c));
  return c;
}
static void free_made_call(call *c) { free_errors(c), free_call(c); }

static int compare_doubles(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* At a fixed budget, the true errors are those that are told, by and large. */
static void test_errors_are_true(void **state) {
  (void)state;
  for (int kind = 0; kind < N_MADE; kind++) {
    call c = new_made_call((made)kind, 700 + (uint64_t)kind);
    double *lse, *out = reference_of(&c, &lse), ratio[MADE_ROWS];
    int n = 0;
    run(&c);
    for (int64_t i = 0; i < MADE_ROWS; i++) {
      double told = (double)c.problem.query_error[i], truth = row_error(&c, out, i);
      if (told == 0.0) assert_below(truth, 5e-6);
      if (told > 0.0) ratio[n++] = truth / told;
    }
    assert_above(n, MADE_ROWS / 4);
    qsort(ratio, (size_t)n, sizeof *ratio, compare_doubles);
    assert_below(ratio[n / 2], 1.15);
    assert_above(ratio[n / 2], kind == SHARP ? 0.2 : 0.6);
    assert_below(ratio[n * 99 / 100], 2.5);
    free(out);
    free_made_call(&c);
  }
}

/* With a tolerance, hardly a query misses it; those that were mended, or met every key at once, are exact;
   and the report says what the errors are. */
static void check_report(const call *c) {
  const hyperattn_report *r = c->problem.report;
  const float *error = c->problem.query_error;
  double sorted[MADE_ROWS], most = 0.0, squares = 0.0, norms = 0.0;
  int zeros = 0;
  for (int64_t i = 0; i < MADE_ROWS; i++) {
    double norm = 0.0;
    for (int t = 0; t < MADE_VALUES; t++) norm += pow((double)c->out[i * MADE_VALUES + t], 2.0);
    sorted[i] = (double)error[i], most = fmax(most, sorted[i]), zeros += error[i] == 0.0f;
    squares += sorted[i] * sorted[i] * norm, norms += norm;
  }
  qsort(sorted, MADE_ROWS, sizeof *sorted, compare_doubles);
  assert_true((double)r->error_median == sorted[MADE_ROWS / 2]);
  assert_true((double)r->error_99 == sorted[MADE_ROWS * 99 / 100]);
  assert_true((double)r->error_999 == sorted[MADE_ROWS * 999 / 1000]);
  assert_true((double)r->max_error == most);
  assert_below(fabs((double)r->error - sqrt(squares / norms)), 1e-5);
  assert_below(fabs((double)r->exact - (double)zeros / MADE_ROWS), 1e-5);
  assert_true(r->doubled >= 0.0f && r->doubled <= 1.0f && r->escalated == r->doubled);
  assert_true(r->keys_per_query > 0.0f && r->keys_per_query <= (float)MADE_ROWS);
  assert_true(r->pinned_mass >= 0.0f && r->sampled_mass >= 0.0f && r->window_mass >= 0.0f);
  assert_true(r->block_mass == 0.0f && r->alpha == 0.0f && r->kappa == 0.0f);
  assert_below(fabs((double)(r->pinned_mass + r->sampled_mass + r->window_mass) - 1.0), 1e-5);
}
static void test_tolerances_are_kept(void **state) {
  int above = 0, far_above = 0, rows = 0, scanned = 0;
  (void)state;
  for (int i = 0; i < 2 * N_MADE; i++) {
    call c = new_made_call((made)(i / 2), 710 + (uint64_t)i), d = c;
    double *lse, *out = reference_of(&c, &lse);
    c.params.tolerance = 0.1f;
    if (i % 2) c.params.sample_size = 16, c.params.window = 16;
    run(&c);
    new_results(&d);
    d.params.method = HYPERATTN_EXACT, d.problem.query_error = NULL, d.problem.report = NULL;
    run(&d);
    assert_guards(&c);
    check_report(&c);
    for (int64_t r = 0; r < MADE_ROWS; r++) {
      double truth = row_error(&c, out, r), told = (double)c.problem.query_error[r];
      assert_below(told, 0.1 + 1e-7);
      above += truth > 0.1, far_above += truth > 0.2, rows++, scanned += told > 0.0;
      for (int t = 0; t < MADE_VALUES && told == 0.0; t++)
        assert_below(fabs((double)(c.out[r * MADE_VALUES + t] - d.out[r * MADE_VALUES + t])), 5e-6);
      if (told == 0.0) assert_below(fabs((double)(c.lse[r] - d.lse[r])), 5e-6);
    }
    hyperattn_report report = *c.problem.report,
                     alone; /* errors that nobody asks for are told all the same */
    d.params = c.params, d.problem.report = &alone;
    memset(&alone, 0xff, sizeof alone);
    run(&d);
    assert_memory_equal(&alone, &report, sizeof report);
    free(out), free(d.out), free(d.lse);
    free_made_call(&c);
  }
  assert_above(scanned, rows / 10);
  assert_below(above, 0.03 * rows); /* where all queries are alike, their budget ends just below */
  assert_below(far_above, 0.001 * rows);
}

/* Where a tolerance asks for less than the budget, no tile keeps fewer keys than the budget does alone. */
static void test_budgets_do_not_fall(void **state) {
  (void)state;
  for (int kind = 0; kind < N_MADE; kind++) {
    call c = new_made_call((made)kind, 720 + (uint64_t)kind);
    run(&c);
    float alone = c.problem.report->keys_per_query;
    c.params.tolerance = 100.0f;
    run(&c);
    assert_above((double)c.problem.report->keys_per_query, 0.98 * (double)alone);
    free_made_call(&c);
  }
}

/* What the report says of masses at a fixed budget is what they are: those of sink keys, and of all that is
   scanned. A sink's is the rest's. */
static void test_masses(void **state) {
  static const float sink[] = {5.0f};
  (void)state;
  for (int with_sink = 0; with_sink < 2; with_sink++) {
    call c = new_made_call(SINKS, 730);
    double *lse, *out = reference_of(&c, &lse), pinned = 0.0, others = 0.0, keys[2] = {0.0, 0.0};
    if (with_sink) c.problem.sink = sink;
    free(out);
    out = reference_of(&c, &lse);
    c.params.sink_keys = 3;
    run(&c);
    check_report(&c);
    for (int64_t i = 0; i < MADE_ROWS; i++) {
      if (c.problem.query_error[i] == 0.0f) continue; /* met every key: no shares are told */
      for (int64_t j = 0; j <= i; j++) {
        double score = 0.0;
        for (int t = 0; t < MADE_DIM; t++)
          score += (double)c.q[i * MADE_DIM + t] * (double)c.k[j * MADE_DIM + t];
        double share = exp(score / sqrt(MADE_DIM) - lse[i]);
        if (j < 3) pinned += share / MADE_ROWS;
        if (j >= 3 && j < i - 64) others += share / MADE_ROWS, keys[0] += 1.0 / MADE_ROWS;
        if (j >= 3 && j < i - 64 - 63 - 64) keys[1] += share / MADE_ROWS;
      }
    }
    assert_below(fabs((double)c.problem.report->pinned_mass - pinned), 0.01);
    assert_below((double)c.problem.report->sampled_mass, others + 0.01);
    assert_above((double)c.problem.report->sampled_mass, keys[1] - 0.01);
    free(out);
    free_made_call(&c);
  }
}

/* ---- Hostile data ---- */

/* Runs c at a fixed budget and to a tolerance. A row is NaN where it is in exact attention; every other is as
   near to that as its error says, but for so many of them. */
static void check_hostile_but(call *c, double rounding, const char *what, int lost) {
  const hyperattn_problem *p = &c->problem;
  double *lse, *out = reference_of(c, &lse);
  tell_errors(c);
  for (int fixed = 0; fixed < 2; fixed++) {
    c->params.tolerance = fixed ? 0.0f : 0.1f;
    forget_results(c);
    run(c);
    assert_guards(c);
    for (int64_t r = 0; r < lse_size(p); r++) {
      double told = (double)p->query_error[r], truth = row_error(c, out, r);
      int is_nan = 0, has_values = 0;
      for (int t = 0; t < p->value_dim; t++) {
        has_values = has_values || out[r * p->value_dim + t] != 0.0;
        is_nan = is_nan || isnan(out[r * p->value_dim + t]);
        if (!isnan(c->out[r * p->value_dim + t]) != !isnan(out[r * p->value_dim + t]))
          fail_msg("%s: row %d is %g", what, (int)r, (double)c->out[r * p->value_dim + t]);
      }
      if (isnan(lse[r]) != isnan(c->lse[r]))
        fail_msg("%s: lse of row %d is %g", what, (int)r, (double)c->lse[r]);
      if (is_nan) continue;
      if (!(told >= 0.0) || (!fixed && told > 0.1 + 1e-7))
        fail_msg("%s: row %d tells %g", what, (int)r, told);
      if (truth > fmin(fixed ? 1e300 : 0.6, 8.0 * told) + rounding && lost-- > 0) continue;
      if (truth > fmin(fixed ? 1e300 : 0.6, 8.0 * told) + rounding)
        fail_msg("%s: row %d has an error of %g and tells %g (%d)", what, (int)r, truth, told, fixed);
      double lse_bound = told == 0.0 && has_values ? 1e-5 + 0.1 * rounding : 1.5;
      if ((double)c->lse[r] == lse[r]) continue;
      if (!(fabs((double)c->lse[r] - lse[r]) <= lse_bound * fmax(1.0, fabs(lse[r]))))
        fail_msg("%s: lse of row %d is %g, not %g; the error %g", what, (int)r, (double)c->lse[r], lse[r],
                 told);
    }
  }
  free(out);
  free_errors(c);
}

static void check_hostile(call *c, double rounding, const char *what) {
  check_hostile_but(c, rounding, what, 0);
}

static call new_hostile_call(int64_t n_query, int64_t n_key, int64_t dim, int64_t value_dim, int causal) {
  call c = new_call(1, 2, 1, n_query, n_key, dim, value_dim, causal, 91);
  c.params = scan_params(12, 16, 0.1f);
  for (int64_t t = 0; t < n_key * value_dim; t++) c.v[t] += 1.0f;
  return c;
}

static void multiply(float *x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

static void test_shapes(void **state) {
  static const int64_t n[][2] = {{600, 400}, {130, 1500}, {300, 577}, {500, 500}, {1000, 129}};
  static const int64_t dims[][2] = {{1, 5}, {3, 1}, {33, 17}, {64, 3}};
  static const int64_t sinks[] = {0, 4, 64, 100, 5000}, windows[] = {0, 1, 100, 5000};
  uint64_t random = 92;
  (void)state;
  for (int i = 0; i < 40; i++) {
    const int64_t *shape = n[i % 5], *dim = dims[any_of(&random, 0, 3)];
    call c = new_hostile_call(shape[0], shape[1], dim[0], dim[1], i % 10 < 7);
    c.params.sink_keys = one_of(&random, sinks, 5), c.params.window = one_of(&random, windows, 4);
    check_hostile(&c, 1e-5, "a shape");
    free_call(&c);
  }
  call c = new_hostile_call(130, 300, 576, 576, 1);
  check_hostile(&c, 1e-5, "dims of 576");
  free_call(&c);
}

/* Keys that are equal, or zero; numbers that are huge or tiny; scores of a thousand. */
static void test_extreme_numbers(void **state) {
  (void)state;
  for (int i = 0; i < 26; i++) {
    int64_t n = 400, dim = 24;
    call c = new_hostile_call(n, n, dim, 6, i % 2);
    double rounding = 1e-5;
    int lost = 0; /* of scores of a thousand, codes of 8 bits tell too little */
    char what[40];
    snprintf(what, sizeof what, "extreme numbers %d", i / 2);
    switch (i / 2) {
      case 0:
        for (int64_t t = 0; t < n * dim; t++) c.k[t] = c.k[t % dim];
        break;
      case 1: multiply(c.k, n * dim, 0.0f); break;
      case 2: multiply(c.q, 2 * n * dim, 0.0f); break;
      case 3:
        multiply(c.k, n * dim, 0.0f), multiply(c.q, 2 * n * dim, 0.0f), multiply(c.v, n * 6, 0.0f);
        break;
      case 4: multiply(c.v, n * 6, 1e30f); break;
      case 5: multiply(c.v, n * 6, 1e-30f); break;
      case 6: multiply(c.k, n * dim, 1e30f), multiply(c.q, 2 * n * dim, 1e-30f); break;
      case 7: multiply(c.k, n * dim, 1e-30f), multiply(c.q, 2 * n * dim, 1e30f); break;
      case 8: multiply(c.k, n * dim, 1e-30f), multiply(c.q, 2 * n * dim, 1e-30f); break;
      case 9: multiply(c.q, 2 * n * dim, 300.0f), rounding = 5e-3, lost = 8; break;
      case 10:
        for (int64_t t = 0; t < 2 * n * dim; t += dim) c.q[t] = -70.0f;
        for (int64_t t = 0; t < n * dim; t += dim) c.k[t] = 70.0f;
        rounding = 2e-3;
        break;
      case 11:
        for (int64_t t = 0; t < 2 * n * dim; t += 23 * dim) multiply(c.q + t, dim, 30.0f);
        rounding = 0.02;
        break;
      default: multiply(c.k + 130 * dim, dim, 100.0f);
    }
    check_hostile_but(&c, rounding, what, lost);
    free_call(&c);
  }
}

/* Softcaps, of which scores are far below, about and far beyond; sinks. */
static void test_softcaps_and_sinks(void **state) {
  static const float caps[] = {0.5f, 3.0f, 20.0f, 50.0f}, levels[] = {0.0f, -10.0f, -60.0f, -300.0f, 60.0f},
                     sink[] = {3.0f, -INFINITY};
  (void)state;
  for (int i = 0; i < 40; i++) {
    call c = new_hostile_call(300, 400, 16, 6, i % 2);
    c.problem.scale = 1.0f, c.problem.softcap = caps[i / 2 % 4];
    multiply(c.q, 2 * 300 * 16, 0.3f);
    for (int64_t t = 0; t < 2 * 300 * 16; t += 16) c.q[t] = 2.0f;
    for (int64_t t = 0; t < 400 * 16; t += 16) c.k[t] = levels[i / 8] * 0.5f;
    if (i % 3 == 0) c.problem.sink = sink;
    check_hostile(&c, 1e-4, "a softcap");
    free_call(&c);
  }
}

/* A key, a value or a query that is not finite: rows that cannot see it are as they should be. */
static void test_what_is_not_finite(void **state) {
  static const float bad[] = {NAN, INFINITY, -INFINITY};
  (void)state;
  for (int i = 0; i < 36; i++) {
    call c = new_hostile_call(400, 400, 16, 6, i % 4 > 0);
    int64_t row = i % 5 == 0 ? 0 : 17 * i % 400;
    if (i % 3 == 0) c.k[row * 16 + 5] = NAN;
    if (i % 3 == 1) c.v[row * 6 + 2] = bad[i / 3 % 3];
    if (i % 3 == 2)
      for (int64_t t = 0; t < 16; t++) c.q[row * 16 + t] = i / 3 % 2 ? NAN : c.q[row * 16 + t];
    if (i % 3 == 2) c.q[row * 16 + 7] = NAN;
    check_hostile(&c, 1e-5, i % 3 == 0 ? "a key" : i % 3 == 1 ? "a value" : "a query");
    free_call(&c);
  }
}

/* A query that is not finite adds no key to the samples of others. */
static void test_a_bad_query_keeps_no_key(void **state) {
  static const float bad[] = {NAN, INFINITY};
  (void)state;
  for (int i = 0; i < 2; i++) {
    call c = new_call(1, 1, 1, 600, 900, 16, 6, 0, 93);
    float keys[2];
    c.params = scan_params(16, 0, 0.0f);
    tell_errors(&c);
    for (int is_bad = 0; is_bad < 2; is_bad++) {
      for (int64_t r = 5; r < 600 && is_bad; r += 16) c.q[r * 16 + r % 16] = bad[i];
      run(&c);
      keys[is_bad] = c.problem.report->keys_per_query;
    }
    assert_below(fabs((double)(keys[1] / keys[0]) - 1.0), 0.1);
    for (int64_t r = 0; r < 600; r++) assert_int_equal(isfinite(c.problem.query_error[r]), r % 16 != 5);
    free_errors(&c);
    free_call(&c);
  }
}

/* Sums of more chunks than are added at once: of what is met exactly, and of the sample. */
static void test_long_sums(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) {
    call c = new_hostile_call(130, i ? 16384 : 9000, 8, 4, !i);
    c.params.sample_size = i ? 2600 : 12, c.params.sink_keys = i ? 0 : 4200;
    assert_true(is_scanned(&c));
    check_hostile(&c, 1e-5, "a long sum");
    tell_errors(&c);
    run(&c);
    assert_above((double)c.problem.report->keys_per_query, 4200);
    assert_true((double)c.problem.report->keys_per_query < 0.8 * (double)c.problem.n_key);
    free_errors(&c);
    free_call(&c);
  }
}

/* ---- What is not scanned ---- */

/* Few queries, few keys, masks and windows: the bits of exact attention, and errors of 0. A call's cost is 1
   where it is exact, and else less. */
static void test_what_is_exact(void **state) {
  static const int64_t n[][3] = {{127, 700, 64}, {3, 5000, 64}, {300, 300, 301},
                                 {700, 63, 1},   {0, 300, 64},  {300, 0, 1}};
  (void)state;
  for (int i = 0; i < 18; i++) {
    const int64_t *shape = n[i < 12 ? i / 2 : 2];
    call c = new_call(1, 4, 2, shape[0], shape[1], 16, 8, i % 2, 95), d = c;
    float *mask = gaussians(300 * 300, 3);
    c.params = scan_params(8, 16, i % 3 ? 0.1f : 0.0f);
    c.params.min_seq_len = shape[2];
    if (shape[1] != 63) assert_false(is_scanned(&c));
    if (i >= 12) c.params.min_seq_len = 64;
    if (i >= 12 && i < 16) c.problem.sliding_window = i < 14 ? 100 : 299;
    if (i >= 16) set_input(&c.problem.mask, mask, HYPERATTN_F32, 1, 300, 300);
    if (i >= 16) c.problem.mask.head_stride = 0;
    d.problem = c.problem, d.params = c.params;
    tell_errors(&c);
    new_results(&d);
    d.params.method = HYPERATTN_EXACT;
    run(&c), run(&d);
    assert_same_bits(&c, &d);
    assert_guards(&c);
    for (int64_t r = 0; r < lse_size(&c.problem); r++) assert_true(c.problem.query_error[r] == 0.0f);
    assert_true(hyperattn_cost(&c.problem, &c.params) == 1.0f);
    c.problem.sliding_window = 0, c.problem.mask.data = NULL;
    if (i >= 12) assert_true(is_scanned(&c) && hyperattn_cost(&c.problem, &c.params) < 0.999f);
    free(mask), free(d.out), free(d.lse);
    free_errors(&c);
    free_call(&c);
  }
}

int main(int argc, char **argv) {
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_codes_of_queries),
      cmocka_unit_test(test_estimates),
      cmocka_unit_test(test_hits),
      cmocka_unit_test(test_pilot_sums),
      cmocka_unit_test(test_spread_and_distances),
      cmocka_unit_test(test_sketches),
      cmocka_unit_test(test_sums_are_unbiased),
      cmocka_unit_test(test_noise_is_not_shared),
      cmocka_unit_test(test_no_needle_is_lost),
      cmocka_unit_test(test_odd_needles_at_any_scale),
      cmocka_unit_test(test_later_keys_change_nothing),
      cmocka_unit_test(test_workers),
      cmocka_unit_test(test_rows_may_lie_anywhere),
      cmocka_unit_test(test_results_of_16_bits),
      cmocka_unit_test(test_grouped_heads_equal_expanded),
      cmocka_unit_test(test_slices_equal_the_whole),
      cmocka_unit_test(test_hidden_rows_change_nothing),
      cmocka_unit_test(test_sizes_are_what_is_needed),
      cmocka_unit_test(test_dtypes_are_their_numbers),
      cmocka_unit_test(test_sizes_never_fall),
      cmocka_unit_test(test_errors_are_true),
      cmocka_unit_test(test_tolerances_are_kept),
      cmocka_unit_test(test_budgets_do_not_fall),
      cmocka_unit_test(test_masses),
      cmocka_unit_test(test_shapes),
      cmocka_unit_test(test_extreme_numbers),
      cmocka_unit_test(test_softcaps_and_sinks),
      cmocka_unit_test(test_what_is_not_finite),
      cmocka_unit_test(test_a_bad_query_keeps_no_key),
      cmocka_unit_test(test_long_sums),
      cmocka_unit_test(test_what_is_exact),
  };
  return cmocka_run_group_tests_name("scan", tests, find_scan_kernels, NULL);
}
