#include "gguf.h"

#include "dequant.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

// The unread rest of the file. A read past the end gives zeros and marks the file as too short.
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

// Finds the tensor's data, and *end, where they end. For a type that dequant.h does not know, data stays
// NULL, which is an error only if the tensor is used.
static int place_tensor(gguf_tensor *tensor, const unsigned char *data, size_t size, uint64_t *end,
                        llm_error *error) {
  const dequant_format *format = dequant_find(tensor->type);
  int length = gguf_shown(tensor->name);
  *end = tensor->offset;
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
  *end += bytes;
  return 1;
}

// Tensors are stored in the order of the header, each at the first multiple of the alignment; anything else
// means that the header does not fit the data.
static int place_tensors(gguf *file, const unsigned char *data, size_t size, uint64_t alignment,
                         llm_error *error) {
  uint64_t end = 0;
  int is_known = 1;  // whether `end` is known, which it is not after a type of unknown size
  for (size_t i = 0; i < file->n_tensors; i++) {
    gguf_tensor *tensor = &file->tensors[i];
    if (is_known && tensor->offset != (end + alignment - 1) / alignment * alignment)
      return llm_fail(error, "tensor '%.*s' does not follow the one before it by general.alignment, %llu",
                      gguf_shown(tensor->name), tensor->name.data, (unsigned long long)alignment);
    if (!place_tensor(tensor, data, size, &end, error)) return 0;
    is_known = tensor->data != NULL;
  }
  return 1;
}

static int compare_names(const void *a, const void *b) {
  const gguf_string *x = *(const gguf_string *const *)a, *y = *(const gguf_string *const *)b;
  int order = memcmp(x->data, y->data, x->size < y->size ? x->size : y->size);
  return order ? order : (x->size > y->size) - (x->size < y->size);
}

// Whether the names of n items differ; an item has `size` bytes and begins with its name.
static int are_distinct(const void *items, size_t n, size_t size, const char *what, llm_error *error) {
  const gguf_string **names = malloc((n + 1) * sizeof *names);
  if (!names) return llm_fail(error, "out of memory");
  for (size_t i = 0; i < n; i++) names[i] = (const void *)((const char *)items + i * size);
  qsort(names, n, sizeof *names, compare_names);
  size_t i = 1;
  while (i < n && compare_names(&names[i - 1], &names[i]) != 0) i++;
  if (i < n) llm_fail(error, "%s '%.*s' is there twice", what, gguf_shown(*names[i]), names[i]->data);
  free(names);
  return i >= n;
}

static int read_alignment(const gguf *file, uint64_t *alignment, llm_error *error) {
  const gguf_value *value = gguf_find(file, "general.alignment");
  *alignment = 32;
  if (!value) return 1;
  if (value->type != GGUF_U32)
    return llm_fail(error, "general.alignment is of type %d, not an unsigned integer of 32 bits",
                    (int)value->type);
  *alignment = gguf_u32(value->data);
  if (*alignment < 8 || *alignment > 1 << 20 || (*alignment & (*alignment - 1)))
    return llm_fail(error, "general.alignment is %llu, no power of two from 8 to 2^20",
                    (unsigned long long)*alignment);
  return 1;
}

static int parse(gguf *file, llm_error *error) {
  reader r = {file->map, file->size, 0};
  if (file->size < 24 || memcmp(skip(&r, 4), "GGUF", 4) != 0) return llm_fail(error, "not a GGUF file");
  uint32_t version = (uint32_t)read_integer(&r, 4);
  if (version != 2 && version != 3)
    return llm_fail(error, "GGUF version %u; only 2 and 3, little-endian, are read", (unsigned)version);
  uint64_t n_tensors = read_integer(&r, 8), n_values = read_integer(&r, 8);
  // A value takes at least 13 bytes, a tensor 24. Larger counts mean a damaged file: nothing is allocated for
  // them.
  if (n_values > r.left / 13 || n_tensors > r.left / 24) return fail_short(error);
  file->values = calloc((size_t)n_values + 1, sizeof *file->values);
  file->tensors = calloc((size_t)n_tensors + 1, sizeof *file->tensors);
  if (!file->values || !file->tensors) return llm_fail(error, "out of memory");
  for (; file->n_values < n_values; file->n_values++)
    if (!read_value(&r, &file->values[file->n_values], error)) return 0;
  for (; file->n_tensors < n_tensors; file->n_tensors++)
    if (!read_tensor(&r, &file->tensors[file->n_tensors], error)) return 0;

  uint64_t alignment;
  if (!are_distinct(file->values, file->n_values, sizeof *file->values, "key", error) ||
      !are_distinct(file->tensors, file->n_tensors, sizeof *file->tensors, "tensor", error) ||
      !read_alignment(file, &alignment, error))
    return 0;
  size_t past = (size_t)(r.at - file->map) & (size_t)(alignment - 1);
  if (past) skip(&r, alignment - past);
  if (r.is_short && n_tensors) return fail_short(error);
  return place_tensors(file, r.at, r.left, alignment, error);
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

// ---- Queries on a file ----------------------------------------------------------------------

int gguf_equal(gguf_string a, const char *b) { return a.size == strlen(b) && !memcmp(a.data, b, a.size); }

int gguf_begins(gguf_string a, const char *prefix) {
  size_t n = strlen(prefix);
  return a.size >= n && !memcmp(a.data, prefix, n);
}

const gguf_value *gguf_find(const gguf *file, const char *key) {
  for (size_t i = 0; i < file->n_values; i++)
    if (gguf_equal(file->values[i].key, key)) return file->values[i].is_read = 1, &file->values[i];
  return NULL;
}

const gguf_tensor *gguf_find_tensor(const gguf *file, const char *name) {
  for (size_t i = 0; i < file->n_tensors; i++)
    if (gguf_equal(file->tensors[i].name, name)) return file->tensors[i].is_read = 1, &file->tensors[i];
  return NULL;
}

static int fail_type(const gguf_value *value, const char *key, const char *wanted, llm_error *error) {
  return value->type == GGUF_ARRAY
             ? llm_fail(error, "%s is an array of type %d, not %s", key, (int)value->element, wanted)
             : llm_fail(error, "%s is of type %d, not %s", key, (int)value->type, wanted);
}

static int integer_of(const gguf_value *value, int64_t *integer) {
  size_t size = scalar_size(value->type);
  uint64_t bits = size ? little_endian(value->data, size) : 0;
  switch (value->type) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64: *integer = bits > INT64_MAX ? INT64_MAX : (int64_t)bits; return 1;
    case GGUF_I8: *integer = (int8_t)bits; return 1;
    case GGUF_I16: *integer = (int16_t)bits; return 1;
    case GGUF_I32: *integer = (int32_t)bits; return 1;
    case GGUF_I64: *integer = (int64_t)bits; return 1;
    default: return 0;
  }
}

static int number_of(const gguf_value *value, double *number) {
  if (value->type == GGUF_F32) {
    uint32_t bits = gguf_u32(value->data);
    float x;
    memcpy(&x, &bits, sizeof x);
    *number = (double)x;
  } else if (value->type == GGUF_F64) {
    uint64_t bits = little_endian(value->data, 8);
    memcpy(number, &bits, sizeof *number);
  } else {
    return 0;
  }
  return 1;
}

int gguf_integer(const gguf *file, const char *key, int64_t least, int64_t most, int64_t *value,
                 llm_error *error) {
  const gguf_value *found = gguf_find(file, key);
  int64_t integer;
  if (!found) return 1;
  if (!integer_of(found, &integer)) return fail_type(found, key, "an integer", error);
  if (integer != least && least == most)
    return llm_fail(error, "%s is %lld; only %lld is understood", key, (long long)integer,
                    (long long)least);
  if (integer < least || integer > most)
    return llm_fail(error, "%s is %lld, not in %lld .. %lld", key, (long long)integer, (long long)least,
                    (long long)most);
  *value = integer;
  return 1;
}

int gguf_number(const gguf *file, const char *key, double least, double most, double *value,
                llm_error *error) {
  const gguf_value *found = gguf_find(file, key);
  double number;
  if (!found) return 1;
  if (!number_of(found, &number)) return fail_type(found, key, "a float", error);
  if (!(number >= least && number <= most))
    return llm_fail(error, "%s is %g, not in %g .. %g", key, number, least, most);
  *value = number;
  return 1;
}

int gguf_text(const gguf *file, const char *key, gguf_string *value, llm_error *error) {
  const gguf_value *found = gguf_find(file, key);
  if (!found) return 1;
  if (found->type != GGUF_STRING) return fail_type(found, key, "a string", error);
  const unsigned char *cursor = found->data;
  *value = gguf_next_string(&cursor);
  return 1;
}

int gguf_flag(const gguf *file, const char *key, int *value, llm_error *error) {
  const gguf_value *found = gguf_find(file, key);
  if (!found) return 1;
  if (found->type != GGUF_BOOL || found->data[0] > 1)
    return fail_type(found, key, "0 or 1, a boolean", error);
  *value = found->data[0];
  return 1;
}

int gguf_array(const gguf *file, const char *key, gguf_type element, const gguf_value **value,
               llm_error *error) {
  *value = gguf_find(file, key);
  if (!*value || ((*value)->type == GGUF_ARRAY && (*value)->element == element)) return 1;
  return fail_type(*value, key,
                   element == GGUF_STRING ? "an array of strings" : "an array of integers of 32 bits",
                   error);
}

int gguf_has(const gguf *file, const char *key, llm_error *error) {
  return gguf_find(file, key) ? 1 : llm_fail(error, "%s is missing", key);
}

int gguf_is_only(const gguf *file, const char *key, double value, llm_error *error) {
  const gguf_value *found = gguf_find(file, key);
  double number;
  int64_t integer;
  if (!found) return 1;
  if (integer_of(found, &integer)) {
    number = (double)integer;
  } else if (found->type == GGUF_BOOL) {
    number = found->data[0];
  } else if (!number_of(found, &number)) {
    return fail_type(found, key, "a number", error);
  }
  return number == value ? 1 : llm_fail(error, "%s is %g; only %g is understood", key, number, value);
}

void gguf_pass_over(const gguf *file, const char *const *keys, size_t n) {
  for (size_t k = 0; k < n; k++)
    for (size_t i = 0; i < file->n_values; i++) {
      gguf_string key = file->values[i].key;
      int is_prefix = keys[k][strlen(keys[k]) - 1] == '.';
      if (is_prefix ? gguf_begins(key, keys[k]) : gguf_equal(key, keys[k])) file->values[i].is_read = 1;
    }
}

int gguf_keys_read(const gguf *file, const char *prefix, llm_error *error) {
  for (size_t i = 0; i < file->n_values; i++) {
    gguf_string key = file->values[i].key;
    if (gguf_begins(key, prefix) && !file->values[i].is_read)
      return llm_fail(error, "key '%.*s' is not understood", gguf_shown(key), key.data);
  }
  return 1;
}

int gguf_tensors_read(const gguf *file, llm_error *error) {
  for (size_t i = 0; i < file->n_tensors; i++) {
    gguf_string name = file->tensors[i].name;
    if (!file->tensors[i].is_read)
      return llm_fail(error, "tensor '%.*s' is not understood", gguf_shown(name), name.data);
  }
  return 1;
}

gguf_string gguf_next_string(const unsigned char **cursor) {
  size_t size = (size_t)little_endian(*cursor, 8);
  gguf_string string = {(const char *)*cursor + 8, size};
  *cursor += 8 + size;
  return string;
}
