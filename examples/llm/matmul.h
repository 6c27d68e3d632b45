// y = x w^T, or y += x w^T, on the calling thread. x [rows][inner], w [columns][inner], y
// [rows][columns]; the strides are those of x's and y's rows, w is contiguous.
#ifndef LLM_MATMUL_H
#define LLM_MATMUL_H

#include <stdint.h>

void matmul_start(void);        // once: a BLAS that has threads of its own is told to use none
const char *matmul_name(void);  // what does it: "BLAS" or "plain C"
void matmul(float *y, int64_t y_stride, const float *x, int64_t x_stride, const float *w, int64_t rows,
            int64_t inner, int64_t columns, int is_added);

#endif
