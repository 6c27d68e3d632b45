// y = x w^T, or y += x w^T, on the calling thread. x [rows][inner], w [columns][inner], y
// [rows][columns]; the strides are those of x's and y's rows, w is contiguous.
#ifndef LLM_MATMUL_H
#define LLM_MATMUL_H

#include <stdint.h>

// First of all: a BLAS that has threads of its own is told to use none; one that does not know this processor is told
// which it resembles, and the program begins anew.
void matmul_start(char **argv);
const char *matmul_name(void);  // what does it: a BLAS, the processor that OpenBLAS has kernels for, or "plain C"
void matmul(float *y, int64_t y_stride, const float *x, int64_t x_stride, const float *w, int64_t rows,
            int64_t inner, int64_t columns, int is_added);

#endif
