// Converts number formats of GGUF tensors to float32: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K,
// Q5_K, Q6_K.
#ifndef LLM_DEQUANT_H
#define LLM_DEQUANT_H

#include <stdint.h>

typedef struct dequant_format {
  uint32_t type;
  const char *name;
  uint32_t elements, bytes;                              // of a block
  void (*block)(const unsigned char *bytes, float *to);  // one block
} dequant_format;

const dequant_format *dequant_find(uint32_t type);  // NULL if it is none of these
void dequant(const dequant_format *format, const unsigned char *bytes, int64_t n_blocks, float *to);

#endif
