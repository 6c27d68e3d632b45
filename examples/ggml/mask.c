#include "mask.h"

#include <string.h>

#include "grow.h"

// The run that grows row by row while a mask is read.
typedef struct reading {
  mask_runs *runs;
  int64_t n_cell;       // columns of the mask
  int64_t cells_begin;  // where its cells begin in runs->cells
  int64_t n_first;      // cells that its first row sees
  int64_t n_lost;       // of its order, cells that its last row no longer sees
  int64_t cost;         // of the runs before
} reading;

// Fewer than four rows cost as much as four, since reading the keys takes the time; a run that sees nothing costs too.
static int64_t cost_of(int64_t n_row, int64_t n_cell) { return (n_row > 4 ? n_row : 4) * (n_cell + 8); }

static mask_run *last_run(mask_runs *runs) { return runs->run + runs->n_run - 1; }

static int room_for_cells(reading *r, int64_t n) {
  mask_runs *runs = r->runs;
  int32_t *cells = grow(runs->cells, &runs->cells_room, r->cells_begin + n, sizeof *cells);
  if (cells) runs->cells = cells;
  return cells != NULL;
}

// A new run, of one row. 0: that row has other values, or memory is short.
static int begin_run(reading *r, const uint16_t *row, int64_t index) {
  mask_runs *runs = r->runs;
  if (runs->n_run) {
    mask_run *before = last_run(runs);
    r->cells_begin += before->n_cell;
    r->cost += cost_of(before->n_row, before->n_cell);
  }
  mask_run *run = grow(runs->run, &runs->runs_room, runs->n_run + 1, sizeof *run);
  if (!run) return 0;
  runs->run = run;
  runs->n_run++;
  r->n_lost = 0;
  r->n_first = 0;
  if (!room_for_cells(r, r->n_cell)) return 0;
  int32_t *order = runs->cells + r->cells_begin;
  int is_mask = 1;
  for (int64_t i = 0; i < r->n_cell; i++) {
    order[r->n_first] = (int32_t)i;
    r->n_first += row[i] == MASK_SHOWN;
    is_mask &= row[i] == MASK_SHOWN || row[i] == MASK_HIDDEN;
  }
  *last_run(runs) = (mask_run){.first_row = index, .n_row = 1, .n_cell = r->n_first};
  return is_mask;
}

// How a row differs from the one before.
typedef struct difference {
  int64_t n_gained, n_lost, gained, lost;  // how many cells, and the last of each
} difference;

// Stops where more than one cell is gained or lost, which nothing here can use. What is neither zero nor minus infinity
// counts as two.
static difference compare(const uint16_t *before, const uint16_t *row, int64_t n_cell) {
  enum { PIECE = 512 };
  difference d = {0, 0, -1, -1};
  for (int64_t begin = 0; begin < n_cell && d.n_gained < 2 && d.n_lost < 2; begin += PIECE) {
    int64_t n = n_cell - begin < PIECE ? n_cell - begin : PIECE;
    if (!memcmp(before + begin, row + begin, (size_t)n * sizeof *row)) continue;
    for (int64_t i = begin; i < begin + n; i++) {
      if (before[i] == row[i]) continue;
      if (row[i] == MASK_SHOWN)
        d.n_gained++, d.gained = i;
      else
        d.n_lost += row[i] == MASK_HIDDEN ? 1 : 2, d.lost = i;
    }
  }
  return d;
}

// The first row's cells come in any order until they are lost, in the order in which they are.
static int lose_cell(reading *r, int64_t cell) {
  int32_t *order = r->runs->cells + r->cells_begin;
  for (int64_t i = r->n_lost; i < r->n_first; i++)
    if (order[i] == cell) {
      memmove(order + r->n_lost + 1, order + r->n_lost, (size_t)(i - r->n_lost) * sizeof *order);
      order[r->n_lost++] = (int32_t)cell;
      return 1;
    }
  if (r->n_lost < r->n_first || order[r->n_lost] != cell) return 0;
  r->n_lost++;
  return 1;
}

// Whether the row continues the run: it is as the row before, or it has one cell more and, once a window is full, one
// less.
static int continue_run(reading *r, difference d) {
  mask_run *run = last_run(r->runs);
  int grows = d.n_gained > 0;
  if (d.n_gained > 1 || d.n_lost > grows || (run->n_row > 1 && run->grows != grows)) return 0;
  if (grows) {
    int64_t n_seen = run->n_cell - r->n_lost;
    if ((run->window && !d.n_lost) || !room_for_cells(r, run->n_cell + 1)) return 0;
    if (d.n_lost && !lose_cell(r, d.lost)) return 0;
    if (d.n_lost) run->window = n_seen;
    r->runs->cells[r->cells_begin + run->n_cell++] = (int32_t)d.gained;
    run->grows = 1;
  }
  run->n_row++;
  return 1;
}

static void settle_cells(mask_runs *runs) {
  const int32_t *cells = runs->cells;
  for (int64_t i = 0; i < runs->n_run; i++) {
    mask_run *run = &runs->run[i];
    run->first_cell = run->n_cell ? cells[0] : 0;
    int64_t n = 0;
    while (n < run->n_cell && cells[n] == run->first_cell + n) n++;
    run->cells = n < run->n_cell ? cells : NULL;
    cells += run->n_cell;
  }
}

int mask_read(mask_runs *runs, const void *mask, int64_t n_row, int64_t n_cell, size_t stride) {
  reading r = {.runs = runs, .n_cell = n_cell};
  int64_t most = cost_of(n_row, n_cell);
  const uint16_t *before = NULL;
  runs->n_run = 0;
  for (int64_t i = 0; i < n_row; i++) {
    const uint16_t *row = (const uint16_t *)((const char *)mask + (size_t)i * stride);
    if (!before || !continue_run(&r, compare(before, row, n_cell))) {
      if (!begin_run(&r, row, i)) return 0;
    }
    mask_run *run = last_run(runs);
    if (r.cost + cost_of(run->n_row, run->n_cell) > most) return 0;
    before = row;
  }
  settle_cells(runs);
  return 1;
}

void mask_free(mask_runs *runs) {
  free(runs->run);
  free(runs->cells);
  *runs = (mask_runs){0};
}
