#include "gguf.h"

#include "dequant.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// The unread rest of the file. A read past the end yields zeros and marks it short.
typedef struct reader {
  const unsigned char *at;
  size_t left;
  int is_short;
} reader;

static uint64_t little_endian(const unsigned char *bytes, size_t n) {
  uint64_t x = 0;
  for (size_t i = n; i-- > 0;) x = x << 8 | bytes[i];
  return x;
}

uint32_t gguf_u32(const unsigned char *bytes) { return (uint32_t)little_endian(bytes, 4); }

static const unsigned char *skip(reader *r, uint64_t n) {
  const unsigned char *at = r->at;
  if (n > r->left) {
    r->is_short = 1;
    r->left = 0;
    return NULL;
  }
  r->at += n, r->left -= (size_t)n;
  return at;
}

static uint64_t read_integer(reader *r, size_t n) {
  const unsigned char *bytes = skip(r, n);
  return bytes ? little_endian(bytes, n) : 0;
}

static gguf_string read_string(reader *r) {
  uint64_t size = read_integer(r, 8);
  const unsigned char *data = skip(r, size);
  return data ? (gguf_string){(const char *)data, (size_t)size} : (gguf_string){"", 0};
}

int gguf_shown(gguf_string name) { return name.size < 60 ? (int)name.size : 60; }

// Bytes of a scalar; 0 for strings, arrays and types that GGUF does not have.
static size_t scalar_size(uint32_t type) {
  static const unsigned char sizes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < 13 ? sizes[type] : 0;
}

static int fail_short(llm_error *error) {
  return llm_fail(error, "the file ends inside its header: truncated or damaged");
}

static int read_value(reader *r, gguf_value *value, llm_error *error) {
  value->key = read_string(r);
  uint32_t type = (uint32_t)read_integer(r, 4), element = type;
  uint64_t count = 1;
  if (type == GGUF_ARRAY) element = (uint32_t)read_integer(r, 4), count = read_integer(r, 8);
  if (r->is_short) return fail_short(error);
  size_t size = scalar_size(element);
  if (!size && element != GGUF_STRING)
    return llm_fail(error, "key '%.*s' has a value of type %u, which is unknown or nested",
                    gguf_shown(value->key), value->key.data, (unsigned)element);
  value->type = (gguf_type)type, value->element = (gguf_type)element, value->count = count;
  value->data = r->at;
  if (size) {
    if (count > r->left / size) return fail_short(error);
    skip(r, count * size);
  } else {
    for (uint64_t i = 0; i < count && !r->is_short; i++) read_string(r);
  }
  return r->is_short ? fail_short(error) : 1;
}

static int read_tensor(reader *r, gguf_tensor *tensor, llm_error *error) {
  tensor->name = read_string(r);
  uint32_t n_dims = (uint32_t)read_integer(r, 4);
  if (r->is_short) return fail_short(error);
  int length = gguf_shown(tensor->name);
  if (n_dims > 4)
    return llm_fail(error, "tensor '%.*s' has %u dimensions", length, tensor->name.data, (unsigned)n_dims);
  for (uint32_t i = 0; i < 4; i++) {
    uint64_t n = i < n_dims ? read_integer(r, 8) : 1;
    if (n < 1 || n > INT32_MAX)
      return llm_fail(error, "tensor '%.*s' has a dimension out of range", length, tensor->name.data);
    tensor->shape[i] = (int64_t)n;
  }
  tensor->type = (uint32_t)read_integer(r, 4);
  tensor->offset = read_integer(r, 8);
  return r->is_short ? fail_short(error) : 1;
}

// Where the tensor's data lies. Types that dequant.h does not know keep data NULL: an error only if they
// are used.
static int place_tensor(gguf_tensor *tensor, const unsigned char *data, size_t size, llm_error *error) {
  const dequant_format *format = dequant_find(tensor->type);
  int length = gguf_shown(tensor->name);
  if (!format) return 1;
  if (tensor->shape[0] % format->elements)
    return llm_fail(error, "tensor '%.*s': rows are no multiple of its blocks", length, tensor->name.data);
  uint64_t bytes = (uint64_t)tensor->shape[0] / format->elements * format->bytes;  // < 2^34
  int fits = 1;
  for (int i = 1; i < 4 && fits; i++) {
    fits = bytes <= size / (uint64_t)tensor->shape[i];
    bytes *= fits ? (uint64_t)tensor->shape[i] : 1;
  }
  if (!fits || bytes > size || tensor->offset > size - bytes)
    return llm_fail(error, "tensor '%.*s' reaches beyond the end of the file: truncated or damaged", length,
                    tensor->name.data);
  tensor->data = data + tensor->offset;
  return 1;
}

static int parse(gguf *file, llm_error *error) {
  reader r = {file->map, file->size, 0};
  if (file->size < 24 || memcmp(skip(&r, 4), "GGUF", 4) != 0) return llm_fail(error, "not a GGUF file");
  uint32_t version = (uint32_t)read_integer(&r, 4);
  if (version != 2 && version != 3)
    return llm_fail(error, "GGUF version %u; only 2 and 3, little-endian, are read", (unsigned)version);
  uint64_t n_tensors = read_integer(&r, 8), n_values = read_integer(&r, 8);
  // A value takes at least 13 bytes, a tensor 24: counts beyond that are damage, and no reason to allocate.
  if (n_values > r.left / 13 || n_tensors > r.left / 24) return fail_short(error);
  file->values = calloc((size_t)n_values + 1, sizeof *file->values);
  file->tensors = calloc((size_t)n_tensors + 1, sizeof *file->tensors);
  if (!file->values || !file->tensors) return llm_fail(error, "out of memory");
  for (; file->n_values < n_values; file->n_values++)
    if (!read_value(&r, &file->values[file->n_values], error)) return 0;
  for (; file->n_tensors < n_tensors; file->n_tensors++)
    if (!read_tensor(&r, &file->tensors[file->n_tensors], error)) return 0;

  int64_t alignment = 32;
  gguf_integer(file, "general.alignment", &alignment);
  if (alignment < 1 || alignment > 1 << 20 || (alignment & (alignment - 1)))
    return llm_fail(error, "general.alignment is no power of two up to 2^20");
  size_t past = (size_t)(r.at - file->map) & (size_t)(alignment - 1);
  if (past) skip(&r, (uint64_t)alignment - past);
  if (r.is_short && n_tensors) return fail_short(error);
  for (size_t i = 0; i < file->n_tensors; i++)
    if (!place_tensor(&file->tensors[i], r.at, r.left, error)) return 0;
  return 1;
}

int gguf_parse(gguf *file, const void *bytes, size_t size, llm_error *error) {
  *file = (gguf){.map = bytes, .size = size};
  if (parse(file, error)) return 1;
  free(file->values), free(file->tensors);
  *file = (gguf){0};
  return 0;
}

int gguf_open(gguf *file, const char *path, llm_error *error) {
  *file = (gguf){0};
  int descriptor = open(path, O_RDONLY);
  struct stat status;
  if (descriptor < 0 || fstat(descriptor, &status)) {
    llm_fail(error, "%s: %s", path, strerror(errno));
    if (descriptor >= 0) close(descriptor);
    return 0;
  }
  void *map = MAP_FAILED;
  if (S_ISREG(status.st_mode) && status.st_size >= 24)
    map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  close(descriptor);
  if (map == MAP_FAILED) return llm_fail(error, "%s: not a GGUF file", path);
  llm_error why;
  if (gguf_parse(file, map, (size_t)status.st_size, &why)) return 1;
  munmap(map, (size_t)status.st_size);
  return llm_fail(error, "%.120s: %.180s", path, why.text);
}

void gguf_close(gguf *file) {
  free(file->values), free(file->tensors);
  if (file->map) munmap((void *)(uintptr_t)file->map, file->size);
  *file = (gguf){0};
}

int gguf_equal(gguf_string a, const char *b) { return a.size == strlen(b) && !memcmp(a.data, b, a.size); }

const gguf_value *gguf_find(const gguf *file, const char *key) {
  for (size_t i = 0; i < file->n_values; i++)
    if (gguf_equal(file->values[i].key, key)) return &file->values[i];
  return NULL;
}

const gguf_tensor *gguf_find_tensor(const gguf *file, const char *name) {
  for (size_t i = 0; i < file->n_tensors; i++)
    if (gguf_equal(file->tensors[i].name, name)) return &file->tensors[i];
  return NULL;
}

int gguf_integer(const gguf *file, const char *key, int64_t *value) {
  const gguf_value *found = gguf_find(file, key);
  if (!found) return 0;
  size_t size = scalar_size(found->type);
  uint64_t bits = size ? little_endian(found->data, size) : 0;
  switch (found->type) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64:
    case GGUF_BOOL: *value = bits > INT64_MAX ? INT64_MAX : (int64_t)bits; return 1;
    case GGUF_I8: *value = (int8_t)bits; return 1;
    case GGUF_I16: *value = (int16_t)bits; return 1;
    case GGUF_I32: *value = (int32_t)bits; return 1;
    case GGUF_I64: *value = (int64_t)bits; return 1;
    default: return 0;
  }
}

int gguf_number(const gguf *file, const char *key, double *value) {
  const gguf_value *found = gguf_find(file, key);
  int64_t integer;
  if (found && found->type == GGUF_F32) {
    uint32_t bits = gguf_u32(found->data);
    float x;
    memcpy(&x, &bits, sizeof x);
    *value = (double)x;
  } else if (found && found->type == GGUF_F64) {
    uint64_t bits = little_endian(found->data, 8);
    memcpy(value, &bits, sizeof *value);
  } else if (gguf_integer(file, key, &integer)) {
    *value = (double)integer;
  } else {
    return 0;
  }
  return 1;
}

int gguf_text(const gguf *file, const char *key, gguf_string *value) {
  const gguf_value *found = gguf_find(file, key);
  if (!found || found->type != GGUF_STRING) return 0;
  const unsigned char *cursor = found->data;
  *value = gguf_next_string(&cursor);
  return 1;
}

gguf_string gguf_next_string(const unsigned char **cursor) {
  size_t size = (size_t)little_endian(*cursor, 8);
  gguf_string string = {(const char *)*cursor + 8, size};
  *cursor += 8 + size;
  return string;
}
