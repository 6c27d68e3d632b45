// The example engine (examples/llm) on a tiny model that is made here. Every kind of damage to its file is an
// error, never a crash; the engine names what it does not understand; formats, tokenizer and decoding are
// right. The sanitize preset runs this too.
#include "dequant.h"
#include "matmul.h"
#include "model.h"
#include "tokenizer.h"

#include "pool.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

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

// A block of any type: pseudo-random bytes, but with halves and floats of moderate size.
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

// Writes the model; *header becomes the offset where the data of its tensors begin.
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
  put_f32(to, "llama.rope.freq_base", 10000.0f),
      put_f32(to, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
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

// Does all that a program does with a file. Returns whether it was accepted; if not, *error says why.
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

// Uses a copy that ends where its allocation ends, so that sanitizers see a read past the end.
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
  // some changes do no harm, such as another letter in a token
  assert_true(refused > 1000 && accepted > 100);
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

// ---- Files with something that the engine does not understand ----------------------------

// A key of the model's file that is replaced, or a key that is added.
typedef struct change {
  const char *key;
  int type;  // a gguf_type, or ABSENT if the key is left out
  double number;
  const char *text;
} change;
enum { ABSENT = -1 };

static void put_change(bytes *to, const change *c) {
  float f32 = (float)c->number;
  static const size_t sizes[] = {1, 1, 2, 2, 4, 4, 0, 1, 0, 0, 8, 8, 0};
  put_string(to, c->key), put_integer(to, (uint64_t)c->type, 4);
  if (c->type == GGUF_F32)
    put(to, &f32, 4);
  else if (c->type == GGUF_F64)
    put(to, &c->number, 8);
  else if (c->type == GGUF_STRING)
    put_string(to, c->text);
  else if (c->type == GGUF_ARRAY)  // an array of one integer
    put_integer(to, GGUF_I32, 4), put_integer(to, 1, 8), put_integer(to, (uint64_t)c->number, 4);
  else
    put_integer(to, (uint64_t)(int64_t)c->number, sizes[c->type]);
}

// A tensor that is left out (type ABSENT), replaced or added; it is float32, and all its elements are
// `number`.
typedef struct tensor_change {
  const char *name;
  int type;
  uint64_t columns, rows;
  double number;
} tensor_change;

typedef struct edit {
  const change *value;
  const tensor_change *tensor;
  int is_added;     // added even if the file has one of that name
  uint64_t layout;  // data are at multiples of it, whatever the header says; 0: the header's alignment
} edit;

static void put_header_of(bytes *to, gguf_string name, const gguf_tensor *t, uint64_t offset) {
  put_integer(to, name.size, 8), put(to, name.data, name.size), put_integer(to, 2, 4);
  put_integer(to, (uint64_t)t->shape[0], 8), put_integer(to, (uint64_t)t->shape[1], 8);
  put_integer(to, t->type, 4), put_integer(to, offset, 8);
}

static void remake(bytes *to, edit e) {
  gguf file;
  llm_error error;
  gguf_tensor tensors[2 + 9 * LAYERS + 1];
  uint64_t n_values = 0, n_tensors = 0, offset = 0, layout = e.layout ? e.layout : 64;
  assert_true(gguf_parse(&file, made.data, made.size, &error));
  to->size = 0;
  put(to, "GGUF", 4), put_integer(to, 3, 4), put_integer(to, 0, 8), put_integer(to, 0, 8);
  for (size_t i = 0; i < file.n_values; i++) {
    gguf_string next = i + 1 < file.n_values ? file.values[i + 1].key : file.tensors[0].name;
    const char *begin = file.values[i].key.data - 8;
    if (e.value && !e.is_added && gguf_equal(file.values[i].key, e.value->key)) continue;
    put(to, begin, (size_t)(next.data - 8 - begin)), n_values++;
  }
  if (e.value && e.value->type != ABSENT) put_change(to, e.value), n_values++;
  if (e.tensor && e.tensor->type != ABSENT)
    tensors[n_tensors++] =
        (gguf_tensor){.name = {e.tensor->name, strlen(e.tensor->name)},
                      .type = (uint32_t)e.tensor->type,
                      .shape = {(int64_t)e.tensor->columns, (int64_t)e.tensor->rows, 1, 1}};
  for (size_t i = 0; i < file.n_tensors; i++)
    if (!e.tensor || e.is_added || !gguf_equal(file.tensors[i].name, e.tensor->name))
      tensors[n_tensors++] = file.tensors[i];
  size_t sizes[2 + 9 * LAYERS + 1];
  for (size_t i = 0; i < n_tensors; i++) {
    const dequant_format *format = dequant_find(tensors[i].type);
    sizes[i] = format
                   ? (size_t)(tensors[i].shape[0] * tensors[i].shape[1]) / format->elements * format->bytes
                   : 64;
    put_header_of(to, tensors[i].name, &tensors[i], offset);
    offset = (offset + sizes[i] + layout - 1) / layout * layout;
  }
  for (size_t i = 0; i < n_tensors; i++) {
    while (to->size % layout) put_integer(to, 0, 1);
    if (tensors[i].data) put(to, tensors[i].data, sizes[i]);
    for (size_t k = 0; !tensors[i].data && k < sizes[i]; k += 4)
      put(to, &(float){(float)e.tensor->number}, 4);
  }
  for (int i = 0; i < 8; i++) {
    to->data[8 + i] = (unsigned char)(n_tensors >> 8 * i);
    to->data[16 + i] = (unsigned char)(n_values >> 8 * i);
  }
  free(file.values), free(file.tensors);
}

// The edited file is accepted if `named` is NULL, and else refused by a sentence that contains `named`.
static void check_edit(edit e, const char *named, const char *what) {
  static bytes edited;
  llm_error error = {""};
  remake(&edited, e);
  unsigned char *exact = malloc(edited.size);
  memcpy(exact, edited.data, edited.size);
  int is_good = use(exact, edited.size, &error);
  free(exact);
  if (is_good != !named) fail_msg("%s: %s", what, is_good ? "accepted" : error.text);
  if (named && !strstr(error.text, named))
    fail_msg("%s is refused without naming %s: %s", what, named, error.text);
}

static void check_change(change c, int is_accepted) {
  char what[160];
  snprintf(what, sizeof what, "%s, type %d, %g %s", c.key, c.type, c.number, c.text ? c.text : "");
  check_edit((edit){.value = &c}, is_accepted ? NULL : c.key, what);
}

#define LLAMA "llama."
#define ATTENTION "llama.attention."
#define ROPE "llama.rope."
#define GGML "tokenizer.ggml."

static void keys_are_understood_or_refused_by_name(void **state) {
  (void)state;
  static const struct {
    const char *key;
    double good, bad;  // values of a float32 key
  } numbers[] = {
      // the first value changes nothing and is accepted; any other is refused
      {ATTENTION "causal", 1, 0},
      {ATTENTION "clamp_kqv", 0, 8},
      {ATTENTION "max_alibi_bias", 0, 8},
      {ATTENTION "sliding_window", 0, 16},
      {LLAMA "attn_logit_softcapping", 0, 50},
      {LLAMA "embedding_scale", 1, 12},
      {LLAMA "expert_count", 0, 8},
      {LLAMA "expert_shared_count", 0, 1},
      {LLAMA "expert_used_count", 0, 2},
      {LLAMA "final_logit_softcapping", 0, 30},
      {LLAMA "logit_scale", 1, 0.0625},
      {LLAMA "pooling_type", 0, 1},
      {LLAMA "residual_scale", 1, 0.22},
      {LLAMA "use_parallel_residual", 0, 1},
      {ROPE "scale_linear", 1, 4},
      {ROPE "scaling.attn_factor", 1, 1.2},
      {ROPE "scaling.factor", 1, 4},  // without rope.scaling.type
      {GGML "add_eos_token", 0, 1},
      {GGML "add_sep_token", 0, 1},
      {GGML "add_space_prefix", 0, 1},
      {GGML "remove_extra_whitespaces", 0, 1},
      {"general.quantization_version", 2, 1},
      // used, if it is in range
      {ATTENTION "layer_norm_rms_epsilon", 1e-6, NAN},
      {ATTENTION "layer_norm_rms_epsilon", 1e-5, -1},
      {ATTENTION "layer_norm_rms_epsilon", 1e-3, 0},
      {ATTENTION "layer_norm_rms_epsilon", 1e-8, 1e30},
      {ATTENTION "layer_norm_rms_epsilon", 1e-5, INFINITY},
      {ROPE "freq_base", 500000, 0},
      {ROPE "freq_base", 10, -10000},
      {ROPE "freq_base", 1e6, INFINITY},
      {ROPE "freq_base", 1e6, NAN},
  };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    check_change((change){numbers[i].key, GGUF_F32, numbers[i].good, NULL}, 1);
    check_change((change){numbers[i].key, GGUF_F64, numbers[i].good, NULL}, 1);
    check_change((change){numbers[i].key, GGUF_F32, numbers[i].bad, NULL}, 0);
    check_change((change){numbers[i].key, GGUF_F32, NAN, NULL}, 0);
    check_change((change){numbers[i].key, GGUF_STRING, 0, "1"}, 0);
    check_change((change){numbers[i].key, GGUF_ARRAY, numbers[i].good, NULL}, 0);
  }
  static const struct {
    const char *key;
    int64_t good, bad[4];
  } integers[] = {
      {LLAMA "block_count", LAYERS, {0, -1, 1 << 20, 1LL << 40}},
      {LLAMA "context_length", 8192, {0, -1, 1LL << 31, 1LL << 40}},
      {LLAMA "embedding_length", DIM, {0, -1, 1 << 20, 1LL << 40}},
      {LLAMA "feed_forward_length", HIDDEN, {0, -1, 1 << 24, 1LL << 40}},
      {LLAMA "vocab_size", VOCAB, {0, -1, VOCAB - 1, VOCAB + 1}},
      {ATTENTION "head_count", HEADS, {0, -1, 6, 1 << 20}},
      {ATTENTION "head_count_kv", KV_HEADS, {0, -1, 3, 2 * HEADS}},
      {ATTENTION "key_length", DIM / HEADS, {0, -1, 1 << 20, 1LL << 40}},
      {ATTENTION "value_length", DIM / HEADS, {0, -1, DIM / HEADS / 2, DIM}},
      {ROPE "dimension_count", DIM / HEADS / 2, {0, -2, DIM / HEADS - 1, DIM / HEADS + 2}},
      {GGML "bos_token_id", VOCAB - 1, {-1, VOCAB, 1 << 20, 1LL << 40}},
      {GGML "eos_token_id", VOCAB - 1, {-1, VOCAB, 1 << 20, 1LL << 40}},
      {GGML "eot_token_id", VOCAB - 1, {-1, VOCAB, 1 << 20, 1LL << 40}},
      {GGML "eom_token_id", VOCAB - 1, {-1, VOCAB, 1 << 20, 1LL << 40}},
      {"split.count", 1, {2, -1, 3, 4}},
  };
  static const int whole[] = {GGUF_U32, GGUF_I32, GGUF_U64, GGUF_I64, GGUF_U16, GGUF_I16},
                   other[] = {GGUF_BOOL, GGUF_F32, GGUF_F64, GGUF_ARRAY};
  for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
    const char *key = integers[i].key;
    for (int k = 0; k < 6; k++) check_change((change){key, whole[k], (double)integers[i].good, NULL}, 1);
    for (int k = 0; k < 4; k++) check_change((change){key, GGUF_I64, (double)integers[i].bad[k], NULL}, 0);
    for (int k = 0; k < 4; k++) check_change((change){key, other[k], 1, NULL}, 0);
    check_change((change){key, GGUF_STRING, 0, "2"}, 0);
  }
  static const struct {
    const char *key, *good, *bad;
  } texts[] = {
      {"general.architecture", "llama", "llama4"},
      {"general.architecture", "llama", "qwen2"},
      {"general.architecture", "llama", ""},
      {"general.type", "model", "adapter"},
      {GGML "model", "gpt2", "llama"},
      {GGML "pre", "gpt-2", "llama-bpe"},
      {GGML "pre", "smollm", "default"},
      {LLAMA "tensor_data_layout", "Meta AI original pth", "reference"},
      {ROPE "scaling.type", "none", "yarn"},
      {ROPE "scaling.type", "none", "longrope"},
      {ROPE "scaling.type", "none", ""},
  };
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    check_change((change){texts[i].key, GGUF_STRING, 0, texts[i].good}, 1);
    check_change((change){texts[i].key, GGUF_STRING, 0, texts[i].bad}, 0);
    check_change((change){texts[i].key, GGUF_U32, 0, NULL}, 0);
    check_change((change){texts[i].key, GGUF_ARRAY, 0, NULL}, 0);
  }
  static const char *const foreign[] = {
      LLAMA "attention.scale",
      LLAMA "attention.layer_norm_epsilon",
      LLAMA "attention.output_scale",
      LLAMA "attention.q_lora_rank",
      LLAMA "embedding_length_per_layer",
      LLAMA "expert_weights_scale",
      LLAMA "interleave_moe",
      LLAMA "nextn_predict_layers",
      LLAMA "rope.dimension_sections",
      LLAMA "rope.freq_base_swa",
      LLAMA "rope.scaling.yarn_ext_factor",
      LLAMA "swin_norm",
      LLAMA "never heard of",
      GGML "precompiled_charsmap",
      GGML "token_type_count",
      "tokenizer.never heard of",
      "adapter.lora.alpha",
      "general.tensor_extra.name",
  };
  for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
    check_change((change){foreign[i], GGUF_U32, 0, NULL}, 0);
    check_change((change){foreign[i], GGUF_STRING, 0, ""}, 0);
  }
  static const char *const harmless[] = {
      "general.name",          "general.file_type",       "general.sampling.temp",
      "quantize.imatrix.file", "tokenizer.chat_template", "tokenizer.chat_template.tools",
      GGML "padding_token_id", GGML "unknown_token_id",   ROPE "scaling.original_context_length",
  };
  for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
    check_change((change){harmless[i], GGUF_U32, 7, NULL}, 1);
  static const char *const required[] = {
      "general.architecture",
      LLAMA "block_count",
      LLAMA "context_length",
      LLAMA "embedding_length",
      LLAMA "feed_forward_length",
      ATTENTION "head_count",
      GGML "model",
      GGML "pre",
      GGML "tokens",
      GGML "merges",
      ATTENTION "layer_norm_rms_epsilon",
  };
  for (size_t i = 0; i < sizeof required / sizeof *required; i++)
    check_change((change){required[i], ABSENT, 0, NULL}, 0);
  check_change((change){GGML "token_type", ABSENT, 0, NULL}, 1);
  static const char *const arrays[] = {GGML "tokens", GGML "merges", GGML "token_type"};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
    check_change((change){arrays[i], GGUF_ARRAY, 1, NULL}, 0);
    check_change((change){arrays[i], GGUF_I32, 1, NULL}, 0);
    check_change((change){arrays[i], GGUF_STRING, 0, "a"}, 0);
  }
  check_change((change){GGML "add_bos_token", GGUF_BOOL, 0, NULL}, 1);
  check_change((change){GGML "add_bos_token", GGUF_U32, 0, NULL}, 0);
  check_change((change){GGML "add_bos_token", GGUF_BOOL, 2, NULL}, 0);
  const change without_bos = {GGML "add_bos_token", GGUF_BOOL, 1, NULL};
  check_edit((edit){.value = &without_bos}, GGML "bos_token_id", "a text begins with no token");
}

static void alignment_is_of_its_type_and_that_of_the_data(void **state) {
  (void)state;
  static const char key[] = "general.alignment";
  for (uint64_t layout = 8; layout <= 4096; layout *= 2) {
    const change c = {key, GGUF_U32, (double)layout, NULL};
    check_edit((edit){.value = &c, .layout = layout}, NULL, "alignment");
  }
  static const double bad[] = {0, 1, 4, 24, 33, 63, 4294967295.0, 2147483648.0};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    check_change((change){key, GGUF_U32, bad[i], NULL}, 0);
  static const int types[] = {GGUF_I32, GGUF_U64, GGUF_U8, GGUF_F32, GGUF_F64, GGUF_BOOL, GGUF_ARRAY};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    check_change((change){key, types[i], 64, NULL}, 0);
  check_change((change){key, GGUF_STRING, 0, "64"}, 0);
  check_edit((edit){.layout = 8}, key, "64 declared, 8 kept");
  const change absent = {key, ABSENT, 0, NULL};
  check_edit((edit){.value = &absent, .layout = 32}, NULL, "32 where none is declared");
  check_edit((edit){.value = &absent, .layout = 128}, key, "128 where none is declared");
}

static void check_twice(edit e, const char *name) {
  char named[80];
  snprintf(named, sizeof named, "'%s' is there twice", name);
  check_edit(e, named, "a name there twice");
}

static void names_are_there_once(void **state) {
  (void)state;
  static const change values[] = {{ROPE "freq_base", GGUF_F32, 10000, NULL},
                                  {LLAMA "block_count", GGUF_U32, LAYERS, NULL},
                                  {"general.architecture", GGUF_STRING, 0, "llama"},
                                  {"general.alignment", GGUF_U32, 64, NULL},
                                  {GGML "pre", GGUF_STRING, 0, "smollm"},
                                  {GGML "tokens", GGUF_ARRAY, 0, NULL},
                                  {GGML "eos_token_id", GGUF_U32, 0, NULL}};
  for (size_t i = 0; i < sizeof values / sizeof *values; i++)
    check_twice((edit){.value = &values[i], .is_added = 1}, values[i].key);
  static const tensor_change tensors[] = {{"output_norm.weight", GGUF_U8, DIM, 1, 1},
                                          {"blk.1.attn_norm.weight", GGUF_U8, DIM, 1, 1}};
  for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
    check_twice((edit){.tensor = &tensors[i], .is_added = 1}, tensors[i].name);
}

// The number by which positions are divided, for a file with both keys.
static double scale_of(const char *type, double factor) {
  static bytes once, twice;
  const change named = {ROPE "scaling.type", GGUF_STRING, 0, type};
  const change by = {ROPE "scaling.factor", GGUF_F32, factor, NULL};
  gguf file;
  model m;
  llm_error error;
  remake(&once, (edit){.value = &named});
  made = once;
  remake(&twice, (edit){.value = &by});
  make(NULL);
  assert_true(gguf_parse(&file, twice.data, twice.size, &error));
  double scale = -1;
  if (model_open(&m, &file, &error))
    scale = m.rope_scale, model_close(&m);
  else if (!strstr(error.text, by.key))
    fail_msg("%s by %g: %s", type, factor, error.text);
  free(file.values), free(file.tensors);
  return scale;
}

static void scaling_is_followed_as_far_as_it_is_declared(void **state) {
  (void)state;
  const change linear = {ROPE "scaling.type", GGUF_STRING, 0, "linear"};
  check_edit((edit){.value = &linear}, ROPE "scaling.factor", "linear by nothing");
  assert_true(scale_of("linear", 4) == 4 && scale_of("linear", 0.5) == 0.5 && scale_of("none", 4) == 1);
  static const double bad[] = {0, -1, 1e30, NAN, INFINITY};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_true(scale_of("linear", bad[i]) == -1);
}

enum { F32 = 0, Q2_K = 10 };

static void tensors_are_understood_or_refused_by_name(void **state) {
  (void)state;
  static const char *const foreign[] = {
      "blk.0.attn_q.bias",
      "blk.0.attn_k.bias",
      "blk.1.attn_v.bias",
      "blk.0.attn_output.bias",
      "blk.0.ffn_gate.bias",
      "blk.0.ffn_up.bias",
      "blk.0.ffn_down.bias",
      "blk.0.attn_norm.bias",
      "blk.0.ffn_norm.bias",
      "blk.0.attn_q_norm.weight",
      "blk.0.attn_k_norm.weight",
      "blk.0.attn_norm_2.weight",
      "blk.0.post_norm.weight",
      "blk.0.attn_qkv.weight",
      "blk.0.attn_sinks.weight",
      "blk.0.ffn_gate_inp.weight",
      "blk.0.ffn_gate_exps.weight",
      "blk.0.layer_output_scale.weight",
      "blk.2.attn_norm.weight",
      "blk.00.attn_norm.weight",
      "blk.0.attn_norm.weight.scale",
      "output.bias",
      "output_norm.bias",
      "token_embd_norm.weight",
      "rope_factors_long.weight",
      "rope_freqs",
      "position_embd.weight",
      "never heard of",
  };
  for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
    const tensor_change t = {foreign[i], F32, DIM, 1, 5}, unread = {foreign[i], Q2_K, 256, 1, 5};
    check_edit((edit){.tensor = &t}, t.name, "a tensor of no use");
    check_edit((edit){.tensor = &unread}, t.name, "a tensor of no use, of an unknown type");
  }
  static const struct {
    tensor_change tensor;
    int is_accepted;
  } known[] = {
      {{"output.weight", F32, DIM, VOCAB, 0.1}, 1},
      {{"output.weight", F32, DIM, VOCAB + 1, 0.1}, 0},
      {{"output.weight", F32, DIM, VOCAB, NAN}, 0},
      {{"token_embd.weight", F32, DIM, VOCAB, 0.1}, 1},
      {{"token_embd.weight", F32, DIM, VOCAB - 1, 0.1}, 0},
      {{"token_embd.weight", F32, DIM, VOCAB + 1, 0.1}, 0},
      {{"output_norm.weight", ABSENT, 0, 0, 0}, 0},
      {{"blk.1.ffn_up.weight", ABSENT, 0, 0, 0}, 0},
      {{"blk.0.attn_norm.weight", F32, DIM, 1, 1}, 1},
      {{"blk.0.attn_norm.weight", F32, 1, DIM, 1}, 0},
      {{"blk.0.attn_norm.weight", F32, DIM, 2, 1}, 0},
      {{"blk.0.attn_norm.weight", F32, DIM, 1, INFINITY}, 0},
      {{"blk.0.attn_q.weight", F32, DIM, 2 * DIM, 0.1}, 0},
      {{"blk.0.attn_q.weight", Q2_K, 256, DIM, 0.1}, 0},
      {{"rope_freqs.weight", F32, DIM / HEADS / 2, 1, 1}, 1},
      {{"rope_freqs.weight", F32, DIM / HEADS / 2, 1, 32}, 1},
      {{"rope_freqs.weight", F32, DIM / HEADS / 2, 1, 0}, 0},
      {{"rope_freqs.weight", F32, DIM / HEADS / 2, 1, -1}, 0},
      {{"rope_freqs.weight", F32, DIM / HEADS / 2, 1, NAN}, 0},
      {{"rope_freqs.weight", F32, DIM / HEADS / 2, 1, INFINITY}, 0},
      {{"rope_freqs.weight", F32, DIM / HEADS / 2, 1, 1e-30}, 0},
      {{"rope_freqs.weight", F32, DIM / HEADS, 1, 1}, 0},
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    check_edit((edit){.tensor = &known[i].tensor}, known[i].is_accepted ? NULL : known[i].tensor.name,
               known[i].tensor.name);
}

// ---- Formats: sums over a block with bytes (7 i + 3) % 61, recorded from gguf-py's dequantize ---------

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
  // " '" is one word of two bytes and "the" the next; no merge crosses words.
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

static void special_tokens_are_those_of_their_type(void **state) {
  (void)state;
  static const char text[] = "<|x|>y1";
  static bytes with_bos;
  const int32_t x = VOCAB - 2, longer = VOCAB - 1;
  const change bos = {GGML "bos_token_id", GGUF_U32, 5, NULL},
               add_bos = {GGML "add_bos_token", GGUF_BOOL, 1, NULL};
  remake(&with_bos, (edit){.value = &bos});
  made = with_bos;
  remake(&with_bos, (edit){.value = &add_bos});
  gguf file;
  tokenizer t;
  llm_error error;
  assert_true(gguf_parse(&file, with_bos.data, with_bos.size, &error));
  unsigned char *types = with_bos.data + (gguf_find(&file, GGML "token_type")->data - with_bos.data);
  types[4 * ('y' - '!')] = 4;
  for (int type = 0; type < 8; type++) {
    int64_t n;
    types[4 * x] = (unsigned char)type;  // "<|x|>y" remains a control token
    if (!tokenizer_open(&t, &file, &error)) {
      assert_non_null(strstr(error.text, GGML "token_type"));
      assert_true(type == 0 || type > 5);
      continue;
    }
    assert_true(type >= 1 && type <= 5);
    int32_t *tokens = tokenizer_encode(&t, text, sizeof text - 1, 1, &n);
    assert_true(n == 3 && tokens[0] == 5 && tokens[1] == longer && tokens[2] == '1' - '!');
    free(tokens);
    tokens = tokenizer_encode(&t, text, sizeof text - 1, 0, &n);
    assert_true(tokens[0] == 5);
    if (type == 4)  // user-defined tokens are found in every text
      assert_true(n == 4 && tokens[1] == x && tokens[2] == 'y' - '!' && tokens[3] == '1' - '!');
    else
      assert_true(n == 8 && tokens[1] == '<' - '!' && tokens[7] == '1' - '!');
    free(tokens);
    assert_true(tokenizer_is_end(&t, 0) && !tokenizer_is_end(&t, 1) && !tokenizer_is_end(&t, -2));
    tokenizer_close(&t);
  }
  free(file.values), free(file.tensors);
  make(NULL);
}

static void merges_make_tokens_of_tokens(void **state) {
  (void)state;
  static const char *const bad[] = {"hhe", " he", "he ", "h \xff", "h h"};
  gguf file;
  tokenizer t;
  llm_error error;
  assert_true(gguf_parse(&file, made.data, made.size, &error));
  unsigned char *first = made.data + (gguf_find(&file, GGML "merges")->data - made.data) + 8;
  assert_memory_equal(first, "h e", 3);
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    memcpy(first, bad[i], 3);
    assert_false(tokenizer_open(&t, &file, &error));
    assert_non_null(strstr(error.text, GGML "merges"));
    assert_non_null(strstr(error.text, bad[i]));
  }
  free(file.values), free(file.tensors);
  make(NULL);
}

// ---- Merging, compared with the plain way to do it -------------------------------------------------------

enum { MOST_MERGES = 1500, MOST_TOKENS = 26 + MOST_MERGES, MOST_LETTERS = 12 };

// Letters, and merges of random pairs of tokens, in order of rank.
typedef struct merge_table {
  int n_letters, n_tokens, n_merges;
  char tokens[MOST_TOKENS][MOST_LETTERS + 1];
  int32_t merges[MOST_MERGES][3];           // left, right, result
  int32_t ranks[MOST_TOKENS][MOST_TOKENS];  // of left and right, or -1 if they do not merge
} merge_table;

static uint32_t below(uint32_t *state, uint32_t n) {
  *state = *state * 1664525u + 1013904223u;
  return (uint32_t)(((uint64_t)*state * n) >> 32);
}

static void add_merge(merge_table *m, int32_t left, int32_t right) {
  char both[2 * MOST_LETTERS + 1];
  if (strlen(m->tokens[left]) + strlen(m->tokens[right]) > MOST_LETTERS || m->ranks[left][right] >= 0)
    return;
  snprintf(both, sizeof both, "%s%s", m->tokens[left], m->tokens[right]);
  int32_t result = 0;
  while (result < m->n_tokens && strcmp(m->tokens[result], both) != 0) result++;
  if (result == m->n_tokens) memcpy(m->tokens[m->n_tokens++], both, strlen(both) + 1);
  m->ranks[left][right] = m->n_merges;
  memcpy(m->merges[m->n_merges++], (int32_t[3]){left, right, result}, sizeof *m->merges);
}

// Merges of every token with every other, from the letters on; or of random tokens; or the latter in random
// order, so that a token may have merges of lower rank than the merge that makes it, which does not occur in
// trained tables.
typedef enum table_kind { REGULAR, RANDOM, SHUFFLED } table_kind;

static void make_table(merge_table *m, table_kind kind, int n_letters, int n_merges, uint32_t *state) {
  m->n_letters = m->n_tokens = n_letters, m->n_merges = 0;
  memset(m->ranks, 0xff, sizeof m->ranks);
  for (int i = 0; i < n_letters; i++) m->tokens[i][0] = (char)('a' + i), m->tokens[i][1] = 0;
  for (int32_t i = 0; kind == REGULAR && i < m->n_tokens; i++)
    for (int32_t k = 0; k <= i && m->n_merges + 2 <= n_merges; k++) add_merge(m, i, k), add_merge(m, k, i);
  for (int tries = 0; kind != REGULAR && m->n_merges < n_merges && tries < 100 * n_merges; tries++) {
    const int32_t left = (int32_t)below(state, (uint32_t)m->n_tokens);
    add_merge(m, left, (int32_t)below(state, (uint32_t)m->n_tokens));
  }
  for (int i = m->n_merges - 1; kind == SHUFFLED && i > 0; i--) {
    int32_t kept[3], k = (int32_t)below(state, (uint32_t)i + 1);
    memcpy(kept, m->merges[i], sizeof kept), memcpy(m->merges[i], m->merges[k], sizeof kept);
    memcpy(m->merges[k], kept, sizeof kept);
  }
  for (int32_t rank = 0; rank < m->n_merges; rank++)
    m->ranks[m->merges[rank][0]][m->merges[rank][1]] = rank;
}

// A file without tensors, with the tokenizer of that table.
static void open_table(const merge_table *m, bytes *to, gguf *file, tokenizer *t) {
  llm_error error;
  to->size = 0;
  put(to, "GGUF", 4), put_integer(to, 3, 4), put_integer(to, 0, 8), put_integer(to, 4, 8);
  put_text(to, "tokenizer.ggml.model", "gpt2"), put_text(to, "tokenizer.ggml.pre", "gpt-2");
  put_array(to, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)m->n_tokens);
  for (int i = 0; i < m->n_tokens; i++) put_string(to, m->tokens[i]);
  put_array(to, "tokenizer.ggml.merges", GGUF_STRING, (uint64_t)m->n_merges);
  for (int i = 0; i < m->n_merges; i++) {
    char pair[2 * MOST_LETTERS + 2];
    snprintf(pair, sizeof pair, "%s %s", m->tokens[m->merges[i][0]], m->tokens[m->merges[i][1]]);
    put_string(to, pair);
  }
  if (!gguf_parse(file, to->data, to->size, &error) || !tokenizer_open(t, file, &error))
    fail_msg("%s", error.text);
}

// Merging by its definition: the pair of lowest rank merges everywhere, from the left, until no pair merges.
// Every round looks at the whole word.
static int64_t merge_plainly(const merge_table *m, int32_t *tokens, int64_t n, int64_t *n_steps) {
  for (;;) {
    int32_t rank = INT32_MAX;
    for (int64_t i = 0; i + 1 < n; i++, ++*n_steps) {
      int32_t other = m->ranks[tokens[i]][tokens[i + 1]];
      if (other >= 0 && other < rank) rank = other;
    }
    if (rank == INT32_MAX) return n;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; kept++) {
      int is_pair = i + 1 < n && m->ranks[tokens[i]][tokens[i + 1]] == rank;
      tokens[kept] = is_pair ? m->merges[rank][2] : tokens[i];
      i += is_pair ? 2 : 1;
    }
    n = kept;
  }
}

static merge_table table;
static bytes table_file;

static void merging_equals_its_definition(void **state) {
  (void)state;
  uint32_t random = 1;
  int64_t n_steps = 0, n_merged = 0;
  for (int k = 0; k < 200; k++) {
    gguf file;
    tokenizer t;
    make_table(&table, (table_kind)(k % 3), 1 + (int)below(&random, 5), (int)below(&random, 80), &random);
    open_table(&table, &table_file, &file, &t);
    for (int i = 0; i < 50; i++) {
      char word[100];
      int32_t expected[100];
      int64_t n = 1 + below(&random, 100), n_tokens;
      for (int64_t c = 0; c < n; c++) {
        expected[c] = (int32_t)below(&random, (uint32_t)table.n_letters);
        word[c] = (char)('a' + expected[c]);
      }
      const int64_t n_expected = merge_plainly(&table, expected, n, &n_steps);
      int32_t *tokens = tokenizer_encode(&t, word, (size_t)n, 0, &n_tokens);
      if (n_tokens != n_expected || memcmp(tokens, expected, (size_t)n_tokens * sizeof *tokens) != 0)
        fail_msg("table %d, %.*s: %d tokens, not %d", k, (int)n, word, (int)n_tokens, (int)n_expected);
      n_merged += n - n_tokens;
      free(tokens);
    }
    tokenizer_close(&t);
    free(file.values), free(file.tensors);
  }
  assert_true(n_merged > 100000);
}

// A word of n letters, all equal or random, takes at most 4 n log n steps. For random letters the plain way
// takes many times as many.
static void a_long_word_takes_n_log_n_steps(void **state) {
  (void)state;
  enum { N = 20000 };
  static int32_t tokens[N], plain[N];
  uint32_t random = 7;
  for (int n_letters = 1; n_letters <= 8; n_letters += 7) {
    gguf file;
    tokenizer t;
    tokenizer_work work = {0};
    make_table(&table, REGULAR, n_letters, MOST_MERGES, &random);
    open_table(&table, &table_file, &file, &t);
    for (int i = 0; i < N; i++) tokens[i] = plain[i] = (int32_t)below(&random, (uint32_t)n_letters);
    int64_t plain_steps = 0, bound = (int64_t)(4 * N * log2(N));
    int64_t n = tokenizer_merge_word(&t, &work, tokens, N);
    assert_int_equal(n, merge_plainly(&table, plain, N, &plain_steps));
    assert_memory_equal(tokens, plain, (size_t)n * sizeof *tokens);
    if (work.n_steps > bound)
      fail_msg("%lld steps, at most %lld", (long long)work.n_steps, (long long)bound);
    if (n_letters > 1 && plain_steps < 4 * bound)
      fail_msg("the plain way takes only %lld", (long long)plain_steps);
    free(work.links), free(work.pairs);
    tokenizer_close(&t);
    free(file.values), free(file.tensors);
  }
}

// Products of blocks beside those of floats: within the rounding of weights to 8 bits, and exact where the
// weights have 8 bits already. A block of zeros is zeros; what is no number stays none.
static void packed_products_are_products(void **state) {
  (void)state;
  enum { BLOCKS = 3, INNER = BLOCKS * MATMUL_BLOCK, COLUMNS = 5 };
  float x[INNER], w[COLUMNS * INNER], y[COLUMNS], expected[COLUMNS];
  matmul_block16 packed[BLOCKS];
  matmul_block8 blocks[COLUMNS * BLOCKS];
  for (int is_rounded = 0; is_rounded < 2; is_rounded++) {
    for (int i = 0; i < INNER; i++) x[i] = i / MATMUL_BLOCK == 1 ? 0 : sinf((float)(i * i));
    for (int i = 0; i < COLUMNS * INNER; i++)
      w[i] = is_rounded ? sinf((float)i) : (float)(i % MATMUL_BLOCK ? i * 31 % 255 - 127 : 127) / 64;
    for (int c = 0; c < COLUMNS; c++) y[c] = expected[c] = (float)c;
    matmul(expected, COLUMNS, x, INNER, w, 1, INNER, COLUMNS, 1);
    matmul_pack16(x, BLOCKS, packed);
    matmul_pack8(w, COLUMNS * BLOCKS, blocks);
    matmul_packed(y, packed, blocks, BLOCKS, COLUMNS, 1);
    for (int c = 0; c < COLUMNS; c++)
      assert_true(fabsf(y[c] - expected[c]) <= (is_rounded ? INNER / 254.0f : 1e-2f));
    matmul_packed(expected, packed, blocks, BLOCKS, COLUMNS, 0);
    for (int c = 0; c < COLUMNS; c++) assert_true(fabsf(y[c] - (float)c - expected[c]) < 1e-4f);
  }
  static const float no_numbers[] = {NAN, INFINITY};
  for (int i = 0; i < 2; i++) {
    x[40] = no_numbers[i];
    matmul_pack16(x, BLOCKS, packed);
    matmul_packed(y, packed, blocks, BLOCKS, COLUMNS, 0);
    for (int c = 0; c < COLUMNS; c++) assert_false(isfinite(y[c]));
  }
}

// The logits of the last of n tokens are the same if two threads read all at once, and if tokens are read one
// by one.
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
  // The dtype of the cache adds its rounding, which this model's random weights amplify; with a wrong cache
  // the logits would be unrelated.
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
    if (dtype > HYPERATTN_F32) assert_true(most > 1e-4);  // so the cache had that dtype
    session_close(&s);
  }
  // So does the rounding of weights to 8 bits. Two threads and one give the same bits.
  float packed[2][VOCAB];
  double most = 0;
  assert_true(model_pack(&m, &error));
  for (int i = 0; i < 2; i++) {
    assert_true(session_open(&s, &m, i ? &two : &alone, N, 1, HYPERATTN_F32, &error));
    for (int k = 0; k < N; k++) assert_true(session_run(&s, tokens + k, 1, params, &error));
    session_logits(&s, 0, packed[i]);
    session_close(&s);
  }
  assert_memory_equal(packed[0], packed[1], sizeof packed[0]);
  for (int i = 0; i < VOCAB; i++)
    most = fmax(most, fabs((double)at_once[i] - (double)packed[0][i]) / (1 + fabs((double)at_once[i])));
  if (!(most <= 1.0 && most > 1e-4)) fail_msg("weights of 8 bits: %g", most);
  pool_close(&threads);
  model_close(&m);
  free(file.values), free(file.tensors);
}

static void a_cache_is_repeated(void **state) {
  (void)state;
  enum { N = 11, HAS = 3 };
  gguf file;
  model m;
  session s;
  llm_error error;
  hyperattn_params params[LAYERS] = {hyperattn_default_params(), hyperattn_default_params()};
  assert_true(gguf_parse(&file, made.data, made.size, &error) && model_open(&m, &file, &error));
  assert_true(session_open(&s, &m, &alone, N, 1, HYPERATTN_F16, &error) &&
              session_run(&s, (int32_t[HAS]){3, 1, 4}, HAS, params, &error));
  session_repeat(&s);
  assert_int_equal(s.n_past, N);
  size_t row = elements_size(m.head_dim, HYPERATTN_F16);
  for (int64_t head = 0; head < m.n_kv_heads; head++)
    for (size_t i = HAS; i < N; i++) {
      const char *keys = session_keys(&s, LAYERS - 1, head), *values = session_values(&s, 0, head);
      assert_memory_equal(keys + i * row, keys + i % HAS * row, row);
      assert_memory_equal(values + i * row, values + i % HAS * row, row);
    }
  session_close(&s), model_close(&m);
  free(file.values), free(file.tensors);
}

// ---- The program ----------------------------------------------------------------------------------

static const char *program;  // NULL: none was given

// What the program prints, with the model and these arguments, both streams together.
static void run_program(const char *arguments, char *printed, size_t room) {
  char path[] = "/tmp/test_llm.XXXXXX", command[2048];
  int file = mkstemp(path);
  assert_true(file >= 0 && write(file, made.data, made.size) == (ssize_t)made.size);
  close(file);
  snprintf(command, sizeof command, "'%s' %s --threads 2 --model %s 2>&1", program, arguments, path);
  FILE *out = popen(command, "r");
  assert_non_null(out);
  printed[fread(printed, 1, room - 1, out)] = 0;
  pclose(out);
  remove(path);
}

static void decoding_says_how_fast_it_is(void **state) {
  (void)state;
  static const char decode[] =
      "decode --text '" SOURCE_DIR "/LICENSE' --context 20 --csv --steps 4 --lengths ";
  char printed[4096], arguments[1024];
  long length[2], steps;
  double figures[4];
  if (!program) skip();
  run_program("generate --prompt 'the the' --tokens 5", printed, sizeof printed);
  if (!strstr(printed, "tokens read at") || !strstr(printed, "in attention)")) fail_msg("%s", printed);
  snprintf(arguments, sizeof arguments, "%s12,60", decode);
  run_program(arguments, printed, sizeof printed);
  const char *line = strchr(printed, '\n');
  for (int i = 0; i < 2; i++) {
    if (!line || sscanf(line, "\n%ld,%ld,%lf,%lf,%lf,%lf", &length[i], &steps, &figures[0], &figures[1],
                        &figures[2], &figures[3]) != 6)
      fail_msg("%s", printed);
    assert_true(steps == 4 && figures[2] > 0 && figures[2] < figures[1] && figures[3] < 1);
    line = strchr(line + 1, '\n');
  }
  assert_true(length[0] == 12 && length[1] == 60);
  static const char *const wrong[] = {"5", "12,x", "''", "99999999999999999999"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    snprintf(arguments, sizeof arguments, "%s%s", decode, wrong[i]);
    run_program(arguments, printed, sizeof printed);
    if (!strstr(printed, "--lengths")) fail_msg("%s: %s", wrong[i], printed);
  }
}

// The first argument, if there is one, is the program llm.
int main(int argc, char **argv) {
  program = argc > 1 ? argv[1] : NULL;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(whole_file_is_accepted),
      cmocka_unit_test(every_truncation_is_an_error),
      cmocka_unit_test(no_damage_to_the_header_crashes),
      cmocka_unit_test(foreign_files_are_refused),
      cmocka_unit_test(formats_agree_with_gguf),
      cmocka_unit_test(halves_round_to_even_and_back),
      cmocka_unit_test(keys_are_understood_or_refused_by_name),
      cmocka_unit_test(alignment_is_of_its_type_and_that_of_the_data),
      cmocka_unit_test(names_are_there_once),
      cmocka_unit_test(scaling_is_followed_as_far_as_it_is_declared),
      cmocka_unit_test(tensors_are_understood_or_refused_by_name),
      cmocka_unit_test(words_merge_and_come_back),
      cmocka_unit_test(special_tokens_are_those_of_their_type),
      cmocka_unit_test(merges_make_tokens_of_tokens),
      cmocka_unit_test(merging_equals_its_definition),
      cmocka_unit_test(a_long_word_takes_n_log_n_steps),
      cmocka_unit_test(packed_products_are_products),
      cmocka_unit_test(decoding_equals_reading_at_once),
      cmocka_unit_test(a_cache_is_repeated),
      cmocka_unit_test(decoding_says_how_fast_it_is),
  };
  return cmocka_run_group_tests(tests, make, NULL);
}
