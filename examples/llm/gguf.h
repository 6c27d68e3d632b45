// A GGUF file, version 2 or 3, little-endian, mapped into memory. gguf_open checks every length and offset
// against the file's size, so that whatever it accepts can be read without further checks.
//
// Reading a key or a tensor marks it. What is unmarked at the end is what the program does not understand;
// gguf_keys_read and gguf_tensors_read refuse it by name.
#ifndef LLM_GGUF_H
#define LLM_GGUF_H

#include "error.h"

#include <stddef.h>
#include <stdint.h>

typedef struct gguf_string {  // inside the map, not terminated
  const char *data;
  size_t size;
} gguf_string;

typedef enum gguf_type {
  GGUF_U8 = 0,
  GGUF_I8,
  GGUF_U16,
  GGUF_I16,
  GGUF_U32,
  GGUF_I32,
  GGUF_F32,
  GGUF_BOOL,
  GGUF_STRING,
  GGUF_ARRAY,
  GGUF_U64,
  GGUF_I64,
  GGUF_F64
} gguf_type;

typedef struct gguf_value {
  gguf_string key;
  gguf_type type, element;    // element: of an array; else the same as type
  uint64_t count;             // elements; 1 if not an array
  const unsigned char *data;  // the first of them, unaligned
  int is_read;
} gguf_value;

typedef struct gguf_tensor {
  gguf_string name;
  uint32_t type;     // see dequant.h
  int64_t shape[4];  // shape[0] is contiguous; missing dimensions are 1
  uint64_t offset;   // from the start of the data part
  const unsigned char *data;
  int is_read;
} gguf_tensor;

typedef struct gguf {
  const unsigned char *map;
  size_t size;
  gguf_value *values;
  size_t n_values;
  gguf_tensor *tensors;
  size_t n_tensors;
} gguf;

int gguf_open(gguf *file, const char *path, llm_error *error);
int gguf_parse(gguf *file, const void *bytes, size_t size,
               llm_error *error);  // the bytes must outlive the file
void gguf_close(gguf *file);

// NULL if the file has none of that name.
const gguf_value *gguf_find(const gguf *file, const char *key);
const gguf_tensor *gguf_find_tensor(const gguf *file, const char *name);

// If the key is absent, the first four leave *value as it is. If its value is of another type or out of
// range, they return 0, and the error names the key.
int gguf_integer(const gguf *file, const char *key, int64_t least, int64_t most, int64_t *value,
                 llm_error *error);
int gguf_number(const gguf *file, const char *key, double least, double most, double *value,
                llm_error *error);
int gguf_text(const gguf *file, const char *key, gguf_string *value, llm_error *error);
int gguf_flag(const gguf *file, const char *key, int *value, llm_error *error);
int gguf_array(const gguf *file, const char *key, gguf_type element, const gguf_value **value,
               llm_error *error);                                   // NULL if the key is absent
int gguf_has(const gguf *file, const char *key, llm_error *error);  // an error if the key is absent

// For keys that this program does not implement: they must be absent, or an integer, float or boolean equal
// to `value`.
int gguf_is_only(const gguf *file, const char *key, double value, llm_error *error);

// Marks keys that are harmless with any value; one that ends with '.' means all keys that begin with it.
void gguf_pass_over(const gguf *file, const char *const *keys, size_t n);

// Whether all keys with that prefix, or all tensors, have been read.
int gguf_keys_read(const gguf *file, const char *prefix, llm_error *error);
int gguf_tensors_read(const gguf *file, llm_error *error);

// The string at the cursor of a GGUF_STRING array; the cursor moves to the next.
gguf_string gguf_next_string(const unsigned char **cursor);

uint32_t gguf_u32(const unsigned char *bytes);
int gguf_equal(gguf_string a, const char *b);
int gguf_begins(gguf_string a, const char *prefix);
int gguf_shown(gguf_string name);  // how many of its bytes an error message shows, for "%.*s"

#endif
