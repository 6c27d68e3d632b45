/* AMX's tile registers in plain C, so that the kernel made for them runs where a machine lacks them: included before
   hyperattn.h, it takes the place of the intrinsics. Source: Intel's manual, volume 2, TDPBF16PS. Rows of 64 bytes, 16 of
   them; two bfloat16 products are added to a sum, the even one first, each rounded, denormals as zeros. */
#ifndef TILES_EMULATED_H
#define TILES_EMULATED_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(shape) ((void)(shape))
#define _tile_release() ((void)0)
#define _tile_zero(r) memset(tile_register[r], 0, sizeof tile_register[r])
#define _tile_loadd(r, from, stride) tile_load(r, from, stride)
#define _tile_stored(r, to, stride) tile_store(r, to, stride)
#define _tile_dpbf16ps(sum, a, b) tile_dot(sum, a, b)

static unsigned char tile_register[8][16][64];

static inline void tile_load(int r, const void *from, ptrdiff_t stride) {
  for (int row = 0; row < 16; row++) memcpy(tile_register[r][row], (const char *)from + row * stride, 64);
}

static inline void tile_store(int r, void *to, ptrdiff_t stride) {
  for (int row = 0; row < 16; row++) memcpy((char *)to + row * stride, tile_register[r][row], 64);
}

static inline float tile_float(const unsigned char *at) {
  uint16_t half;
  memcpy(&half, at, sizeof half);
  uint32_t bits = half & 0x7f80 ? (uint32_t)half << 16 : 0;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* sum[row][column] += a[row][2 k] b[k][2 column] + a[row][2 k + 1] b[k][2 column + 1], for k = 0 .. 15. */
static inline void tile_dot(int sum, int a, int b) {
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 16; column++) {
      float x;
      memcpy(&x, &tile_register[sum][row][4 * column], sizeof x);
      for (int k = 0; k < 16; k++)
        for (int half = 0; half < 4; half += 2)
          x += tile_float(&tile_register[a][row][4 * k + half]) *
               tile_float(&tile_register[b][k][4 * column + half]);
      memcpy(&tile_register[sum][row][4 * column], &x, sizeof x);
    }
}

#endif
