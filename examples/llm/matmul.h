// y = x w^T, or y += x w^T, on the calling thread. x [rows][inner], w [columns][inner], y
// [rows][columns]; the strides are those of x's and y's rows, w is contiguous.
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

#endif
