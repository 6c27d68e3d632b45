// What an attention mask of zeros and minus infinities says: runs of rows, each of which sees cells of the cache
// in one order.
#ifndef GGML_MASK_H
#define GGML_MASK_H

#include <stddef.h>
#include <stdint.h>

enum { MASK_SHOWN = 0, MASK_HIDDEN = 0xFC00 };  // as halves

// Rows first_row .. first_row + n_row - 1. Cells are in the order in which rows begin to see them and, under a
// window, in which they cease to.
typedef struct mask_run {
  int64_t first_row, n_row;
  int64_t n_cell;  // cells that any of the rows sees
  int grows;  // row i sees n_cell - n_row + 1 + i cells, for a window the last of these; else all see all
  int64_t window;      // > 0: a row sees no more than so many
  int64_t first_cell;  // where cells is NULL, they are first_cell, first_cell + 1, ...
  const int32_t *cells;
} mask_run;

// The runs of one mask. Its arrays serve the next mask too, and grow as they must. Zero it first.
typedef struct mask_runs {
  mask_run *run;
  int64_t n_run;
  int32_t *cells;  // of all runs, one after the other
  int64_t runs_room, cells_room;
} mask_runs;

// Reads a mask [n_row][n_cell] of halves whose rows are stride bytes apart, in O(n_row n_cell) comparisons of
// neighbouring rows. 0: it has other values than zero and minus infinity, or its rows differ in too many ways for
// runs to be worth it, or memory is short. The result stays until the next call.
int mask_read(mask_runs *runs, const void *mask, int64_t n_row, int64_t n_cell, size_t stride);

void mask_free(mask_runs *runs);

#endif
