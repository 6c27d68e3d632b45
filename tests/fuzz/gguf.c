/* Fuzzes the example engine's reader of GGUF files, and its tokenizer, on a file in memory. */
#include "dequant.h"
#include "tokenizer.h"

#include "fuzz.h"

/* Reads everything that an accepted file promises. */
static uint64_t read_all(const gguf *file) {
  uint64_t sum = 0;
  int64_t integer;
  double number;
  int flag;
  gguf_string text;
  llm_error error;
  for (size_t i = 0; i < file->n_values; i++) {
    const gguf_value *value = &file->values[i];
    const unsigned char *cursor = value->data;
    char key[64];
    snprintf(key, sizeof key, "%.*s", gguf_shown(value->key), value->key.data);
    sum += (uint64_t)gguf_integer(file, key, INT64_MIN, INT64_MAX, &integer, &error) +
           (uint64_t)gguf_number(file, key, -1.0, 1.0, &number, &error) +
           (uint64_t)gguf_text(file, key, &text, &error) + (uint64_t)gguf_flag(file, key, &flag, &error) +
           (uint64_t)gguf_is_only(file, key, 1.0, &error);
    for (uint64_t k = 0; value->element == GGUF_STRING && k < value->count; k++) {
      text = gguf_next_string(&cursor);
      for (size_t at = 0; at < text.size; at++) sum += (unsigned char)text.data[at];
    }
  }
  for (size_t i = 0; i < file->n_tensors; i++) {
    const gguf_tensor *tensor = &file->tensors[i];
    const dequant_format *format = dequant_find(tensor->type);
    if (!tensor->data) continue;
    CHECK(format && tensor->shape[0] % format->elements == 0, "tensor %zu", i);
    float block[256];
    int64_t n =
        tensor->shape[0] / format->elements * tensor->shape[1] * tensor->shape[2] * tensor->shape[3];
    CHECK(n > 0 && (uint64_t)n * format->bytes <= file->size, "tensor %zu of %lld blocks", i, (long long)n);
    for (int64_t k = 0; k<n; k += n> 8 ? n - 1 : 1)
      dequant(format, tensor->data + (size_t)k * format->bytes, 1, block), sum += block[0] > 0.0f;
  }
  return sum;
}

/* The tokens of a text exist, and there are at most as many as it has bytes, plus the one that begins it. */
static void use_tokenizer(const tokenizer *t, const char *text, size_t size) {
  for (int with_special = 0; with_special < 2; with_special++) {
    int64_t n = -1;
    int32_t *tokens = tokenizer_encode(t, text, size, with_special, &n);
    CHECK(tokens && n >= 0 && n <= (int64_t)size + t->add_bos, "%lld tokens of %zu bytes", (long long)n,
          size);
    for (int64_t i = 0; i < n; i++) {
      char bytes[8];
      CHECK(tokens[i] >= 0 && tokens[i] < t->n_tokens, "token %d of %d", (int)tokens[i], (int)t->n_tokens);
      CHECK(tokenizer_decode(t, tokens[i], bytes, sizeof bytes) <= sizeof bytes, "room");
    }
    free(tokens);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static volatile uint64_t sink;
  llm_error error = {""};
  gguf file;
  tokenizer t;
  if (!gguf_parse(&file, data, size, &error)) {
    CHECK(error.text[0] && strlen(error.text) < sizeof error.text, "an error without a sentence");
    CHECK(!file.values && !file.tensors && !file.map, "a refused file is left open");
    return 0;
  }
  sink = read_all(&file);
  if (tokenizer_open(&t, &file, &error)) {
    use_tokenizer(&t, "the <|x|>he 12 \xff\xc3\xa9\n", 19);
    use_tokenizer(&t, (const char *)data + (size > 64 ? size - 64 : 0), size > 64 ? 64 : size);
    tokenizer_close(&t);
  } else {
    CHECK(error.text[0], "an error without a sentence");
  }
  free(file.values), free(file.tensors);
  return sink == UINT64_MAX;
}
