#include "matmul.h"

#include <string.h>

#ifdef LLM_OPENBLAS

#include <stdlib.h>
#include <unistd.h>

#include "hyperattn.h"

void openblas_set_num_threads(int n);
char *openblas_get_corename(void);

// An OpenBLAS that is older than the processor takes it for a Prescott and runs at a fifth of its speed. It
// reads OPENBLAS_CORETYPE only while it is loaded, so the program sets that and starts again.
static void name_the_processor(char **argv) {
  hyperattn_isa isa = hyperattn_detect_isa();
  if (strcmp(openblas_get_corename(), "Prescott") != 0 || isa == HYPERATTN_ISA_SCALAR) return;
  if (getenv("OPENBLAS_CORETYPE")) return;
  setenv("OPENBLAS_CORETYPE", isa == HYPERATTN_ISA_AVX2 ? "Haswell" : "SkylakeX", 1);
  execv("/proc/self/exe", argv);  // returns only if that fails; the program then stays slow
}

void matmul_start(char **argv) {
  name_the_processor(argv);
  openblas_set_num_threads(1);
}

#else

void matmul_start(char **argv) { (void)argv; }

#endif

#ifdef LLM_BLAS

// The part of CBLAS's interface that is used; distributions put its header in different places.
enum { row_major = 101, plain = 111, transposed = 112 };
void cblas_sgemm(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                 const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
void cblas_sgemv(int order, int transpose_a, int m, int n, float alpha, const float *a, int lda,
                 const float *x, int x_step, float beta, float *y, int y_step);

#ifdef LLM_OPENBLAS
const char *matmul_name(void) { return openblas_get_corename(); }
#else
const char *matmul_name(void) { return "BLAS"; }
#endif

void matmul(float *y, int64_t y_stride, const float *x, int64_t x_stride, const float *w, int64_t rows,
            int64_t inner, int64_t columns, int is_added) {
  float beta = is_added ? 1.0f : 0.0f;
  if (rows == 1)  // decoding: each weight is used once, and packing it would cost more than that
    cblas_sgemv(row_major, plain, (int)columns, (int)inner, 1.0f, w, (int)inner, x, 1, beta, y, 1);
  else
    cblas_sgemm(row_major, plain, transposed, (int)rows, (int)columns, (int)inner, 1.0f, x, (int)x_stride,
                w, (int)inner, beta, y, (int)y_stride);
}

#else

enum {
  ROWS = 4,
  COLUMNS = 32,
  DEPTH = 256
};  // a tile of y, and the depth of a panel of w that stays in cache

// y [n <= ROWS][COLUMNS] += x [n][depth] panel [depth][COLUMNS]; columns beyond `columns` are not written.
static void tile(float *y, int64_t y_stride, const float *x, int64_t x_stride, float panel[][COLUMNS],
                 int64_t n, int64_t depth, int64_t columns) {
  float sum[ROWS][COLUMNS] = {{0}};
  for (int64_t i = 0; i < depth; i++)
    for (int64_t r = 0; r < ROWS; r++) {
      float factor = x[(r < n ? r : 0) * x_stride + i];
      for (int64_t c = 0; c < COLUMNS; c++) sum[r][c] += factor * panel[i][c];
    }
  for (int64_t r = 0; r < n; r++)
    for (int64_t c = 0; c < columns; c++) y[r * y_stride + c] += sum[r][c];
}

const char *matmul_name(void) { return "plain C"; }

void matmul(float *y, int64_t y_stride, const float *x, int64_t x_stride, const float *w, int64_t rows,
            int64_t inner, int64_t columns, int is_added) {
  for (int64_t r = 0; r < rows && !is_added; r++) memset(y + r * y_stride, 0, (size_t)columns * sizeof *y);
  for (int64_t c = 0; c < columns; c += COLUMNS)
    for (int64_t i = 0; i < inner; i += DEPTH) {
      float panel[DEPTH][COLUMNS];
      int64_t depth = inner - i < DEPTH ? inner - i : DEPTH,
              width = columns - c < COLUMNS ? columns - c : COLUMNS;
      for (int64_t k = 0; k < COLUMNS; k++)
        for (int64_t j = 0; j < depth; j++) panel[j][k] = k < width ? w[(c + k) * inner + i + j] : 0.0f;
      for (int64_t r = 0; r < rows; r += ROWS)
        tile(y + r * y_stride + c, y_stride, x + r * x_stride + i, x_stride, panel,
             rows - r < ROWS ? rows - r : ROWS, depth, width);
    }
}

#endif

// ---- One row by weights of 8 bits -----------------------------------------------------------------

// The scale of a block whose largest value becomes `levels`; *inverse: what the values are multiplied by.
// Without their signs, floats are ordered as their bits are, with those that are no numbers on top.
static float block_scale(const float *x, float levels, float *inverse) {
  uint32_t bits[MATMUL_BLOCK], most = 0;
  memcpy(bits, x, sizeof bits);
  for (int i = 0; i < MATMUL_BLOCK; i++) {
    uint32_t size = bits[i] & 0x7fffffffu;
    most = size > most ? size : most;
  }
  float greatest;
  memcpy(&greatest, &most, sizeof greatest);
  *inverse = greatest > 1e-30f ? levels / greatest : 0.0f;
  return greatest / levels;
}

// The nearest integer, for |x| < 2^15: adding 1.5 2^23 rounds, and leaves it in the low bits.
static int16_t nearest(float x) {
  float shifted = x + 12582912.0f;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return (int16_t)(uint16_t)bits;
}

void matmul_pack8(const float *w, int64_t n_blocks, matmul_block8 *to) {
  for (int64_t b = 0; b < n_blocks; b++, w += MATMUL_BLOCK) {
    float inverse;
    to[b].scale = block_scale(w, 127, &inverse);
    for (int i = 0; i < MATMUL_BLOCK; i++) to[b].values[i] = (int8_t)nearest(w[i] * inverse);
  }
}

void matmul_pack16(const float *x, int64_t n_blocks, matmul_block16 *to) {
  for (int64_t b = 0; b < n_blocks; b++, x += MATMUL_BLOCK) {
    float inverse;
    to[b].scale = block_scale(x, 32767, &inverse);
    for (int i = 0; i < MATMUL_BLOCK; i++) to[b].values[i] = nearest(x[i] * inverse);
  }
}

void matmul_packed(float *y, const matmul_block16 *x, const matmul_block8 *w, int64_t n_blocks,
                   int64_t columns, int is_added) {
  for (int64_t c = 0; c < columns; c++) {
    float sum = 0;
    for (int64_t b = 0; b < n_blocks; b++, w++) {
      int32_t products = 0;  // below 2^15 2^7 2^5
      for (int i = 0; i < MATMUL_BLOCK; i++) products += x[b].values[i] * w->values[i];
      sum += (float)products * (x[b].scale * w->scale);
    }
    y[c] = is_added ? y[c] + sum : sum;
  }
}
