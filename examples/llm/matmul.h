// Products of activations x and weights w, on the calling thread: y = x w^T, or y += x w^T. x [rows][inner],
// w [columns][inner], y [rows][columns]; the strides are those of x's and y's rows, w is contiguous.
#ifndef LLM_MATMUL_H
#define LLM_MATMUL_H

#include <stdint.h>

// Must be called first. Tells a BLAS that has threads of its own to use none. If OpenBLAS does not know this
// processor, names it one that is similar, and starts the program again.
void matmul_start(char **argv);
const char *matmul_name(
    void);  // what computes it: a BLAS, the processor whose kernels OpenBLAS uses, or "plain C"
void matmul(float *y, int64_t y_stride, const float *x, int64_t x_stride, const float *w, int64_t rows,
            int64_t inner, int64_t columns, int is_added);

// One row x by weights of 8 bits: every weight is used once, so what takes the time is reading them. Weights
// and x are packed beforehand, in blocks that have a scale each. A value that is no number makes its block's
// scale one, and so the product.
enum { MATMUL_BLOCK = 32 };
typedef struct matmul_block8 {
  float scale;
  int8_t values[MATMUL_BLOCK];
} matmul_block8;
typedef struct matmul_block16 {
  float scale;
  int16_t values[MATMUL_BLOCK];
} matmul_block16;

void matmul_pack8(const float *w, int64_t n_blocks, matmul_block8 *to);
void matmul_pack16(const float *x, int64_t n_blocks, matmul_block16 *to);

// x [n_blocks], w [columns][n_blocks], y [columns]
void matmul_packed(float *y, const matmul_block16 *x, const matmul_block8 *w, int64_t n_blocks,
                   int64_t columns, int is_added);

#endif
