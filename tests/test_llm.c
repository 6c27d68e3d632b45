// The example engine (examples/llm) on a tiny model that is made here: damage of every kind to its file
// is an error, never a crash; formats, tokenizer, decoding. The sanitize preset runs it too.
#include "dequant.h"
#include "model.h"
#include "tokenizer.h"

#include "pool.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

// ---- A GGUF file in memory ------------------------------------------------------------------------

typedef struct bytes {
  unsigned char data[1 << 18];
  size_t size;
} bytes;

static void put(bytes *to, const void *data, size_t size) {
  assert_true(to->size + size <= sizeof to->data);
  memcpy(to->data + to->size, data, size);
  to->size += size;
}
static void put_integer(bytes *to, uint64_t x, size_t size) {
  for (size_t i = 0; i < size; i++) put(to, &(unsigned char){(unsigned char)(x >> 8 * i)}, 1);
}
static void put_string(bytes *to, const char *s) { put_integer(to, strlen(s), 8), put(to, s, strlen(s)); }
static void put_u32(bytes *to, const char *key, uint32_t x) {
  put_string(to, key), put_integer(to, GGUF_U32, 4), put_integer(to, x, 4);
}
static void put_text(bytes *to, const char *key, const char *x) {
  put_string(to, key), put_integer(to, GGUF_STRING, 4), put_string(to, x);
}
static void put_f32(bytes *to, const char *key, float x) {
  put_string(to, key), put_integer(to, GGUF_F32, 4), put(to, &x, 4);
}
static void put_array(bytes *to, const char *key, gguf_type element, uint64_t count) {
  put_string(to, key), put_integer(to, GGUF_ARRAY, 4), put_integer(to, element, 4),
      put_integer(to, count, 8);
}

enum { DIM = 32, HIDDEN = 64, HEADS = 4, KV_HEADS = 2, LAYERS = 2, VOCAB = 96 + 5 };

typedef struct tiny_tensor {
  char name[40];
  uint64_t columns, rows;
  uint32_t type;
} tiny_tensor;

static size_t tiny_tensors(tiny_tensor *t) {
  size_t n = 0;
  t[n++] = (tiny_tensor){"token_embd.weight", DIM, VOCAB, 8};
  t[n++] = (tiny_tensor){"output_norm.weight", DIM, 1, 0};
  for (int i = 0; i < LAYERS; i++) {
    const tiny_tensor layer[] = {
        {"attn_norm", DIM, 1, 0},      {"ffn_norm", DIM, 1, 0},     {"attn_q", DIM, DIM, 3},
        {"attn_k", DIM, DIM / 2, 2},   {"attn_v", DIM, DIM / 2, 8}, {"attn_output", DIM, DIM, 1},
        {"ffn_gate", DIM, HIDDEN, 30}, {"ffn_up", DIM, HIDDEN, 6},  {"ffn_down", HIDDEN, DIM, 7},
    };
    for (size_t k = 0; k < sizeof layer / sizeof *layer; k++) {
      t[n] = layer[k];
      snprintf(t[n++].name, sizeof t->name, "blk.%d.%.12s.weight", i, layer[k].name);
    }
  }
  return n;
}

// A block of any type with moderate numbers: pseudo-random bytes, but halves and floats in range.
static void put_block(bytes *to, const dequant_format *format, uint32_t *state) {
  unsigned char block[256];
  for (uint32_t i = 0; i < format->bytes; i++)
    block[i] = (unsigned char)((*state = *state * 1664525u + 1013904223u) >> 24);
  const int halves =
      format->type == 3 || format->type == 7 || format->type == 12 || format->type == 13 ? 2 : 1;
  unsigned char *scale = block + (format->type == 14 ? 208 : 0);
  for (int i = 0; i < halves && format->type != 0 && format->type != 30; i++)
    scale[2 * i + 1] = (unsigned char)((scale[2 * i + 1] & 0x83) | 0x28);  // 2^-5 to 2^-4, either sign
  if (format->type == 30) block[1] = (unsigned char)((block[1] & 0x80) | 0x3d);
  if (format->type == 0) block[3] = 0x3f, block[2] |= 0x80;  // 0.5 to 2
  put(to, block, format->bytes);
}

// The model; *header is where its tensors' data begin.
static void make_model(bytes *to, size_t *header) {
  tiny_tensor tensors[2 + 9 * LAYERS];
  size_t n = tiny_tensors(tensors);
  to->size = 0;
  put(to, "GGUF", 4), put_integer(to, 3, 4), put_integer(to, n, 8), put_integer(to, 17, 8);
  put_text(to, "general.architecture", "llama");
  put_u32(to, "llama.block_count", LAYERS), put_u32(to, "llama.embedding_length", DIM);
  put_u32(to, "llama.feed_forward_length", HIDDEN), put_u32(to, "llama.context_length", 64);
  put_u32(to, "llama.attention.head_count", HEADS), put_u32(to, "llama.attention.head_count_kv", KV_HEADS);
  put_u32(to, "llama.rope.dimension_count", DIM / HEADS), put_u32(to, "general.alignment", 64);
  put_f32(to, "llama.rope.freq_base", 10000.0f), put_f32(to, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
  put_text(to, "tokenizer.ggml.model", "gpt2"), put_text(to, "tokenizer.ggml.pre", "smollm");
  put_array(to, "tokenizer.ggml.tokens", GGUF_STRING, VOCAB);
  for (int c = '!'; c <= '~'; c++) put_string(to, (char[2]){(char)c, 0});
  static const char *const more[] = {"\xc4\xa0",    "\xc4\x8a", "he",    "\xc4\xa0t",
                                     "\xc4\xa0the", "<|x|>",    "<|x|>y"};
  for (int i = 0; i < 7; i++) put_string(to, more[i]);
  put_array(to, "tokenizer.ggml.token_type", GGUF_I32, VOCAB);
  for (int i = 0; i < VOCAB; i++) put_integer(to, i >= VOCAB - 2 ? 3 : 1, 4);
  put_array(to, "tokenizer.ggml.merges", GGUF_STRING, 3);
  put_string(to, "h e"), put_string(to, "\xc4\xa0 t"), put_string(to, "\xc4\xa0t he");
  put_u32(to, "tokenizer.ggml.eos_token_id", 0);
  uint64_t offset = 0;
  for (size_t i = 0; i < n; i++) {
    const dequant_format *format = dequant_find(tensors[i].type);
    put_string(to, tensors[i].name), put_integer(to, 2, 4);
    put_integer(to, tensors[i].columns, 8), put_integer(to, tensors[i].rows, 8);
    put_integer(to, tensors[i].type, 4), put_integer(to, offset, 8);
    offset += (tensors[i].columns * tensors[i].rows / format->elements * format->bytes + 63) / 64 * 64;
  }
  while (to->size % 64) put_integer(to, 0, 1);
  *header = to->size;
  uint32_t state = 1;
  for (size_t i = 0; i < n; i++) {
    const dequant_format *format = dequant_find(tensors[i].type);
    for (uint64_t k = 0; k < tensors[i].columns * tensors[i].rows / format->elements; k++)
      put_block(to, format, &state);
    while (to->size % 64) put_integer(to, 0, 1);
  }
}

static void one_thread(void *context, int64_t n_tasks, hyperattn_task task, void *arg) {
  (void)context;
  for (int64_t i = 0; i < n_tasks; i++) task(arg, i, 0);
}
static const hyperattn_parallel alone = {1, NULL, one_thread};

// Everything that a program does with a file. Returns whether it was accepted; *error says why not.
static int use(const void *data, size_t size, llm_error *error) {
  gguf file;
  tokenizer t;
  model m;
  if (!gguf_parse(&file, data, size, error)) return 0;
  int is_good = model_is_known(&file, error) && tokenizer_open(&t, &file, error);
  if (is_good) {
    int64_t n;
    char text[64];
    int32_t *tokens = tokenizer_encode(&t, "the <|x|> 12 \xff\xc3\xa9", 15, 1, &n);
    for (int64_t i = 0; i < n; i++) tokenizer_decode(&t, tokens[i], text, sizeof text);
    free(tokens);
    if ((is_good = model_open(&m, &file, error))) {
      session s;
      hyperattn_params params[1024];
      for (int i = 0; i < 1024; i++) params[i] = hyperattn_default_params();
      if ((is_good = m.n_vocab < 1 << 20 && session_open(&s, &m, &alone, 3, 0, HYPERATTN_F32, error))) {
        is_good = session_run(&s, (int32_t[3]){0, 1, 2}, 3, params, error);
        double loss[2];
        if (is_good) session_losses(&s, 0, 2, (int32_t[2]){0, 1}, loss);
        session_close(&s);
      }
      model_close(&m);
    }
    tokenizer_close(&t);
  }
  free(file.values), free(file.tensors);
  return is_good;
}

static bytes made;
static size_t made_header;

static int make(void **state) {
  (void)state;
  make_model(&made, &made_header);
  return 0;
}

// Of a copy that ends where the allocation does, so that a read past the end is seen by the sanitizers.
static int use_part(size_t size, size_t flip, unsigned char with) {
  llm_error error = {""};
  unsigned char *copy = malloc(size + 1);
  memcpy(copy, made.data, size);
  if (flip < size) copy[flip] ^= with;
  unsigned char *exact = realloc(copy, size ? size : 1);
  int is_good = use(exact, size, &error);
  if (!is_good) assert_true(error.text[0] != 0 && strlen(error.text) < sizeof error.text);
  free(exact);
  return is_good;
}

static void whole_file_is_accepted(void **state) {
  (void)state;
  llm_error error = {""};
  if (!use(made.data, made.size, &error)) fail_msg("%s", error.text);
}

static void every_truncation_is_an_error(void **state) {
  (void)state;
  for (size_t size = 0; size < made.size - 64; size += size < made_header ? 1 : 97)
    assert_false(use_part(size, size, 0));
}

static void no_damage_to_the_header_crashes(void **state) {
  (void)state;
  static const unsigned char with[] = {0x01, 0x80, 0xff, 0x20, 0x7f};
  int accepted = 0, refused = 0;
  for (size_t at = 0; at < made_header; at++)
    for (size_t i = 0; i < sizeof with; i++) use_part(made.size, at, with[i]) ? accepted++ : refused++;
  assert_true(refused > 1000 && accepted > 100);  // a changed letter of a token does no harm
}

static void foreign_files_are_refused(void **state) {
  (void)state;
  gguf file;
  llm_error error;
  assert_false(gguf_open(&file, "/nonexistent/model.gguf", &error));
  assert_false(gguf_open(&file, SOURCE_DIR, &error));
  assert_false(gguf_open(&file, SOURCE_DIR "/LICENSE", &error));
  assert_non_null(strstr(error.text, "not a GGUF file"));
}

// ---- Formats: sums of a block of bytes (7 i + 3) % 61, as gguf-py's dequantize gives them ---------

static void formats_agree_with_gguf(void **state) {
  (void)state;
  static const struct {
    uint32_t type;
    double sum, weighted;  // sum x_i, sum (i + 1) x_i
  } golden[] = {
#include "data/llm_formats.inc"
  };
  for (size_t k = 0; k < sizeof golden / sizeof *golden; k++) {
    const dequant_format *format = dequant_find(golden[k].type);
    unsigned char block[256];
    float x[256];
    double sum = 0, weighted = 0, size = 0;
    assert_non_null(format);
    for (uint32_t i = 0; i < format->bytes; i++) block[i] = (unsigned char)((i * 7 + 3) % 61);
    dequant(format, block, 1, x);
    for (uint32_t i = 0; i < format->elements; i++) {
      sum += (double)x[i], weighted += (i + 1.0) * (double)x[i], size += fabs((i + 1.0) * (double)x[i]);
    }
    assert_true(fabs(sum - golden[k].sum) <= 1e-5 * size &&
                fabs(weighted - golden[k].weighted) <= 1e-5 * size);
  }
  assert_null(dequant_find(10));
}

static void halves_round_to_even_and_back(void **state) {
  (void)state;
  for (uint32_t half = 0; half < 0x10000; half++) {
    float x = half_to_float((uint16_t)half);
    if (!isnan(x)) assert_int_equal(float_to_half(x), half);
  }
  assert_int_equal(float_to_half(1.0f + 0x1p-11f), 0x3c00);
  assert_int_equal(float_to_half(1.0f + 3 * 0x1p-11f), 0x3c02);
  assert_int_equal(float_to_half(65520.0f), 0x7c00);
  assert_true(isnan(half_to_float(float_to_half(NAN))));
}

// ---- Tokenizer and model --------------------------------------------------------------------------

static void words_merge_and_come_back(void **state) {
  (void)state;
  static const char text[] = "the the<|x|>y 'the' 12\n";
  gguf file;
  tokenizer t;
  llm_error error;
  assert_true(gguf_parse(&file, made.data, made.size, &error) && tokenizer_open(&t, &file, &error));
  const int32_t space = 94, line = 95, he = 96, the = 98, longer = 100;
  const int32_t expected[] = {'t' - '!', he,         the,   longer,    space,     '\'' - '!', 't' - '!',
                              he,        '\'' - '!', space, '1' - '!', '2' - '!', line};
  int64_t n;
  int32_t *tokens = tokenizer_encode(&t, text, sizeof text - 1, 1, &n);
  assert_int_equal(n, sizeof expected / sizeof *expected);
  // " '" is one word of two bytes, "the" the next: no merge crosses words.
  assert_memory_equal(tokens, expected, sizeof expected);
  char back[64];
  size_t size = 0;
  for (int64_t i = 0; i < n; i++) size += tokenizer_decode(&t, tokens[i], back + size, sizeof back - size);
  assert_int_equal(size, sizeof text - 1);
  assert_memory_equal(back, text, size);
  free(tokens);
  tokenizer_close(&t);
  free(file.values), free(file.tensors);
}

// Logits of the last of n tokens: read at once by two threads, and one by one over the cache.
static void decoding_equals_reading_at_once(void **state) {
  (void)state;
  enum { N = 50 };
  gguf file;
  model m;
  session s;
  llm_error error;
  pool threads;
  int32_t tokens[N];
  float at_once[VOCAB], one_by_one[VOCAB];
  hyperattn_params params[LAYERS] = {hyperattn_default_params(), hyperattn_default_params()};
  for (int i = 0; i < N; i++) tokens[i] = (i * 37 + 11) % VOCAB;
  assert_true(gguf_parse(&file, made.data, made.size, &error) && model_open(&m, &file, &error));
  assert_true(pool_open(&threads, 2));
  hyperattn_parallel two = {2, &threads, pool_for};
  assert_true(session_open(&s, &m, &two, N, 0, HYPERATTN_F32, &error) &&
              session_run(&s, tokens, N, params, &error));
  session_logits(&s, N - 1, at_once);
  assert_false(session_run(&s, tokens, 1, params, &error));  // the window is full
  double loss;
  session_losses(&s, N - 1, 1, (int32_t[1]){5}, &loss);
  double sum = 0;
  for (int i = 0; i < VOCAB; i++) sum += exp((double)at_once[i]);
  assert_true(fabs(loss - (log(sum) - (double)at_once[5])) < 1e-4);
  session_close(&s);
  // What the cache is kept in costs its rounding, which this model's random weights blow up; a wrong cache gives
  // other logits altogether.
  static const double bounds[] = {1e-3, 0.2, 1.0, 1.0};
  for (int dtype = HYPERATTN_F32; dtype <= HYPERATTN_Q8_0; dtype++) {
    double most = 0;
    int fits = dtype != HYPERATTN_Q8_0 || m.head_dim % 32 == 0;
    assert_int_equal(session_open(&s, &m, &alone, N, 1, (hyperattn_dtype)dtype, &error), fits);
    if (!fits) continue;
    for (int i = 0; i < N; i++) assert_true(session_run(&s, tokens + i, 1, params, &error));
    session_logits(&s, 0, one_by_one);
    for (int i = 0; i < VOCAB; i++)
      most = fmax(most, fabs((double)at_once[i] - (double)one_by_one[i]) / (1 + fabs((double)at_once[i])));
    if (!(most <= bounds[dtype])) fail_msg("cache %d: %g", dtype, most);
    if (dtype > HYPERATTN_F32) assert_true(most > 1e-4);  // it was kept in that
    session_close(&s);
  }
  pool_close(&threads);
  model_close(&m);
  free(file.values), free(file.tensors);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(whole_file_is_accepted),          cmocka_unit_test(every_truncation_is_an_error),
      cmocka_unit_test(no_damage_to_the_header_crashes), cmocka_unit_test(foreign_files_are_refused),
      cmocka_unit_test(formats_agree_with_gguf),         cmocka_unit_test(halves_round_to_even_and_back),
      cmocka_unit_test(words_merge_and_come_back),       cmocka_unit_test(decoding_equals_reading_at_once),
  };
  return cmocka_run_group_tests(tests, make, NULL);
}
