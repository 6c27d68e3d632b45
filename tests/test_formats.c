/* Keys and values in formats of the caller's own: ggml's blocks of 4 and 5 bits, widened by a function with
   the signature of ggml's to_float. */
#include "calls.h"
#include "formats.h"
#include "ggml.h"

/* ---- Blocks ---- */

/* Random codes, and scales that are not too large. */
static void any_block(int format, uint64_t *random, unsigned char *block) {
  const block_format *f = &block_formats[format];
  for (size_t i = 0; i < f->bytes; i++) block[i] = (unsigned char)splitmix(random);
  uint16_t d = float_to_half((float)splitmix_uniform(random) * 0.2f),
           m = float_to_half((float)splitmix_uniform(random) - 1.0f);
  memcpy(block, &d, 2);
  if (f->least_at >= 0) memcpy(block + f->least_at, &m, 2);
}

/* Every code in every place, by both decoders; no element beyond n is written. */
static void test_every_code(void **state) {
  uint64_t random = 3;
  (void)state;
  for (int format = 0; format < N_BLOCK_FORMATS; format++) {
    const block_format *f = &block_formats[format];
    unsigned char blocks[2 * 24], seen[32][32] = {{0}};
    unsigned n_seen = 0;
    float wide[65];
    for (int round = 0; round < 2000; round++) {
      int64_t n = 1 + round % 64;
      any_block(format, &random, blocks), any_block(format, &random, blocks + f->bytes);
      wide[n] = -7.0f;
      f->widen(blocks, wide, n);
      assert_true(wide[n] == -7.0f);
      for (int t = 0; t < n; t++)
        assert_true(wide[t] ==
                    stored((float)block_element(format, blocks + (size_t)(t / 32) * f->bytes, t % 32)));
      for (int t = 0; t < n && t < 32; t++) {
        unsigned char *code = &seen[t][block_code(f, blocks, t)];
        n_seen += !*code, *code = 1;
      }
    }
    assert_int_equal(n_seen, 32 * f->n_codes);
  }
}

/* ---- Attention over them ---- */

enum { N = 90, HEAD_DIM = 64, VALUE_DIM = 96 };

/* Rows of blocks, at an odd address. Returns the memory; the numbers go to `wide`. */
static char *any_rows(int format, uint64_t *random, int64_t rows, int64_t dim, hyperattn_input *x,
                      float *wide) {
  const block_format *f = &block_formats[format];
  int64_t line = dim / 32 * (int64_t)f->bytes;
  char *memory = (char *)test_alloc((size_t)(rows * line) + 1);
  for (int64_t b = 0; b < rows * dim / 32; b++)
    any_block(format, random, (unsigned char *)memory + 1 + (size_t)b * f->bytes);
  set_input(x, memory + 1, HYPERATTN_CUSTOM, 2, rows / 2, line);
  x->widen = f->widen;
  for (int64_t r = 0; r < rows; r++) f->widen(memory + 1 + r * line, wide + r * dim, dim);
  return memory;
}

/* The rows of x by a table of pages of two, the last first. */
static void page_backwards(hyperattn_input *x, int32_t *page) {
  for (int i = 0; i < N / 2; i++) page[i] = N / 2 - 1 - i;
  x->page = page, x->page_rows = 2, x->page_stride = 2 * x->row_stride, x->page_batch_stride = 0;
}

/* The same keys and values as float32 give the same bits, in pages too. */
static void check_formats(int key, int value, hyperattn_params params, int causal) {
  uint64_t random = (uint64_t)(key * 10 + value);
  int32_t page[N / 2];
  call c = new_call(1, 4, 2, 70, N, HEAD_DIM, VALUE_DIM, causal, 7), d = c;
  char *keys = any_rows(key, &random, 2 * N, HEAD_DIM, &d.problem.key, c.k),
       *values = any_rows(value, &random, 2 * N, VALUE_DIM, &d.problem.value, c.v);
  c.params = d.params = params;
  new_results(&d);
  run(&c), run(&d);
  assert_same_bits(&c, &d);
  page_backwards(&c.problem.key, page), page_backwards(&d.problem.key, page);
  page_backwards(&c.problem.value, page), page_backwards(&d.problem.value, page);
  run(&c), run(&d);
  assert_same_bits(&c, &d);
  free(keys), free(values);
  free(d.out), free(d.lse);
  free_call(&c);
}

static void test_blocks_equal_floats(void **state) {
  hyperattn_params params = small_params(hyperattn_linear_params(), 24, 12, 10);
  (void)state;
  for (int key = 0; key < N_BLOCK_FORMATS; key++)
    for (int value = 0; value < N_BLOCK_FORMATS; value++)
      for (int i = 0; i < 4; i++) {
        params.method = i % 2 ? HYPERATTN_EXACT : HYPERATTN_HYPER;
        params.order = value % 2 ? HYPERATTN_ORDER_POSITION : HYPERATTN_ORDER_SORTLSH;
        check_formats(key, value, params, i / 2);
      }
}

/* ---- What widen is given ---- */

static int64_t n_keys, n_values;
static void widen_key(const void *row, float *to, int64_t n) {
  assert_int_equal(n, HEAD_DIM);
  memcpy(to, row, HEAD_DIM * sizeof(float));
  n_keys++;
}
static void widen_value(const void *row, float *to, int64_t n) {
  assert_int_equal(n, VALUE_DIM);
  memcpy(to, row, VALUE_DIM * sizeof(float));
  n_values++;
}

/* Keys are widened to head_dim numbers, values to value_dim. */
static void test_widen_is_given_rows(void **state) {
  (void)state;
  call c = new_call(1, 1, 1, 30, N, HEAD_DIM, VALUE_DIM, 0, 7), d = c;
  c.params.method = d.params.method = HYPERATTN_EXACT;
  new_results(&d);
  set_input(&d.problem.key, c.k, HYPERATTN_CUSTOM, 1, N, HEAD_DIM * sizeof(float));
  set_input(&d.problem.value, c.v, HYPERATTN_CUSTOM, 1, N, VALUE_DIM * sizeof(float));
  d.problem.key.widen = widen_key, d.problem.value.widen = widen_value;
  run(&c), run(&d);
  assert_same_bits(&c, &d);
  assert_true(n_keys >= N && n_values >= N);
  free(d.out), free(d.lse);
  free_call(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_code),
      cmocka_unit_test(test_blocks_equal_floats),
      cmocka_unit_test(test_widen_is_given_rows),
  };
  return cmocka_run_group_tests_name("formats", tests, NULL, NULL);
}
