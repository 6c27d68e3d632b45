// What the ggml backend (examples/ggml) reads before it needs a ggml. Of a mask: whatever runs it tells of, they show each
// row the cells that the mask shows it, no others, once each, in an order that the library's windows can follow. Of the
// environment: every setting, and a sentence for every mistake. What needs a ggml is tested by the preset llamacpp-ci.
#define HYPERATTN_IMPLEMENTATION
#include "mask.h"
#include "settings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "splitmix.h"

// ---- The mask ----

enum { ROWS = 40, CELLS = 160 };

typedef struct table {
  uint16_t at[ROWS][CELLS];
  int64_t n_row, n_cell;
} table;

static table *blank(int64_t n_row, int64_t n_cell) {
  static table t;
  t.n_row = n_row, t.n_cell = n_cell;
  for (int i = 0; i < ROWS * CELLS; i++) t.at[i / CELLS][i % CELLS] = MASK_HIDDEN;
  return &t;
}

static int read_table(mask_runs *runs, const table *t) {
  return mask_read(runs, t->at, t->n_row, t->n_cell, sizeof t->at[0]);
}

// As the library understands a run (hyperattn.h: causal, sliding_window, page).
static int is_shown(const mask_run *run, int64_t row, int64_t cell) {
  int64_t seen = run->grows ? run->n_cell - run->n_row + 1 + row : run->n_cell;
  int64_t first = run->window && seen > run->window ? seen - run->window : 0;
  int n = 0;
  for (int64_t i = first; i < seen; i++) n += (run->cells ? run->cells[i] : run->first_cell + i) == cell;
  assert_true(n <= 1);
  return n;
}

static void check(const mask_runs *runs, const table *t) {
  int64_t row = 0;
  for (int64_t i = 0; i < runs->n_run; i++) {
    const mask_run *run = &runs->run[i];
    assert_int_equal(run->first_row, row);
    assert_true(run->n_row > 0);
    for (int64_t r = 0; r < run->n_row; r++, row++)
      for (int64_t c = 0; c < t->n_cell; c++)
        assert_int_equal(is_shown(run, r, c), t->at[row][c] == MASK_SHOWN);
  }
  assert_int_equal(row, t->n_row);
}

static const mask_run *only_run(mask_runs *runs, const table *t) {
  assert_true(read_table(runs, t));
  check(runs, t);
  assert_int_equal(runs->n_run, 1);
  return runs->run;
}

// Row i of a context that has `before` tokens sees the last `window` of tokens 0 .. before + i; token p is in cell
// (first + p * step) % cells of the ring.
static table *context(int64_t n_row, int64_t before, int64_t window, int64_t first, int64_t step) {
  table *t = blank(n_row, CELLS);
  for (int64_t i = 0; i < n_row; i++)
    for (int64_t p = before + i; p >= 0 && p > before + i - window; p--)
      t->at[i][(first + p * step) % CELLS] = MASK_SHOWN;
  return t;
}

static void causal_rows_are_one_run(void **state) {
  (void)state;
  mask_runs runs = {0};
  const mask_run *run = only_run(&runs, context(30, 50, CELLS, 0, 1));
  assert_true(run->grows && !run->window && !run->cells && run->first_cell == 0 && run->n_cell == 80);
  run = only_run(&runs, context(30, 50, CELLS, 20, 1));
  assert_true(run->grows && !run->cells && run->first_cell == 20);
  run = only_run(&runs, context(30, 50, CELLS, 3, 7));  // in any order of cells
  assert_true(run->grows && !run->window && run->cells && run->n_cell == 80);
  run = only_run(&runs, context(1, 99, CELLS, 0, 1));
  assert_true(run->n_row == 1 && run->n_cell == 100 && !run->cells);
  mask_free(&runs);
}

static void windows_are_one_run(void **state) {
  (void)state;
  mask_runs runs = {0};
  for (int64_t before = 0; before < 60; before += 3)
    for (int64_t step = 1; step < 8; step += 6) {
      const mask_run *run = only_run(&runs, context(30, before, 20, 5, step));
      assert_int_equal(run->window, before + 30 > 20 ? 20 : 0);
      assert_int_equal(run->n_cell, before < 20 ? before + 30 : 49);
    }
  // a ring that is overwritten as it turns
  assert_int_equal(only_run(&runs, context(40, 130, 60, 0, 1))->window, 60);
  mask_free(&runs);
}

static void equal_rows_are_one_run(void **state) {
  (void)state;
  mask_runs runs = {0};
  table *t = blank(20, 100);
  assert_int_equal(only_run(&runs, t)->n_cell, 0);  // that see nothing
  for (int i = 0; i < 20; i++)
    for (int c = 10; c < 70; c++) t->at[i][c] = MASK_SHOWN;
  const mask_run *run = only_run(&runs, t);
  assert_true(!run->grows && !run->window && !run->cells && run->first_cell == 10 && run->n_cell == 60);
  for (int i = 0; i < 20; i++) t->at[i][40] = MASK_HIDDEN;
  assert_non_null(only_run(&runs, t)->cells);
  mask_free(&runs);
}

// A batch's rows by sequence, in one cache whose cells they share out in turns.
static void sequences_are_runs(void **state) {
  (void)state;
  mask_runs runs = {0};
  table *t = blank(40, CELLS);
  for (int i = 0; i < 40; i++)
    for (int p = 0; p <= 40 + i % 20; p++) t->at[i][2 * p + i / 20] = MASK_SHOWN;
  assert_true(read_table(&runs, t));
  check(&runs, t);
  assert_int_equal(runs.n_run, 2);
  // first rows that see nothing, as where a sequence was shortened
  for (int i = 0; i < 5; i++)
    for (int c = 0; c < CELLS; c++) t->at[i][c] = MASK_HIDDEN;
  assert_true(read_table(&runs, t));
  check(&runs, t);
  mask_free(&runs);
}

static void other_masks_are_left(void **state) {
  (void)state;
  mask_runs runs = {0};
  table *t = context(30, 50, CELLS, 0, 1);
  const uint16_t others[] = {0x8000, 0x3C00, 0xBC00, 0x7E00, 0xFBFF, 0x7C00};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++)
    for (int row = 0; row < 30; row += 29)
      for (int cell = 10; cell < CELLS; cell += 140) {  // one that is shown, one that is hidden
        uint16_t was = t->at[row][cell];
        t->at[row][cell] = others[i];
        assert_false(read_table(&runs, t));
        t->at[row][cell] = was;
      }
  assert_true(read_table(&runs, t));
  // Rows that have nothing in common: a call by the mask reads keys once for all of them.
  t = blank(30, CELLS);
  for (int i = 0; i < 30; i++)
    for (int c = 0; c < CELLS; c++)
      if ((c * 7 + i * 3) % 5) t->at[i][c] = MASK_SHOWN;
  assert_false(read_table(&runs, t));
  mask_free(&runs);
}

// Rows that continue, repeat, begin anew, lose the wrong cell or gain two, at random: what is read is right.
static void any_mask_is_read_right_or_left(void **state) {
  (void)state;
  mask_runs runs = {0};
  uint64_t seed = 1;
  int n_read = 0;
  for (int trial = 0; trial < 4000; trial++) {
    table *t = blank(1 + (int64_t)(splitmix(&seed) % ROWS), 20 + (int64_t)(splitmix(&seed) % (CELLS - 20)));
    uint64_t wildness = splitmix(&seed) % 12 + 2;
    for (int64_t i = 0; i < t->n_row; i++) {
      if (i) memcpy(t->at[i], t->at[i - 1], sizeof t->at[i]);
      uint64_t what = i ? splitmix(&seed) % wildness : 0;
      int64_t cell = (int64_t)(splitmix(&seed) % (uint64_t)t->n_cell);
      if (what > 3) what = 1 + (uint64_t)(trial & 1);
      for (int64_t c = 0; what == 0 && c < t->n_cell; c++)
        t->at[i][c] = splitmix(&seed) % 3 ? MASK_HIDDEN : MASK_SHOWN;
      for (int64_t c = 0; what >= 1 && c < t->n_cell; c++, cell = (cell + 1) % t->n_cell)
        if (t->at[i][cell] == MASK_HIDDEN) {
          t->at[i][cell] = MASK_SHOWN;
          break;
        }
      for (int64_t c = 0; what >= 2 && c < t->n_cell; c++)
        if (t->at[i][c] == MASK_SHOWN) {
          t->at[i][c] = MASK_HIDDEN;
          if (what == 2) break;
        }
    }
    if (!read_table(&runs, t)) continue;
    check(&runs, t);
    n_read++;
  }
  assert_true(n_read > 400);
  mask_free(&runs);
}

// ---- The environment ----

static const char *read_with(settings *s, const char *method, const char *tolerance, const char *length) {
  const char *const names[] = {"HYPERATTN_GGML", "HYPERATTN_GGML_TOLERANCE", "HYPERATTN_GGML_MIN_SEQ_LEN"};
  const char *const values[] = {method, tolerance, length};
  for (int i = 0; i < 3; i++) values[i] ? setenv(names[i], values[i], 1) : unsetenv(names[i]);
  return settings_read(s);
}

static void settings_are_presets(void **state) {
  (void)state;
  settings s;
  hyperattn_params preset = hyperattn_default_params(), paper = hyperattn_paper_params(),
                   linear = hyperattn_linear_params();
  assert_null(read_with(&s, NULL, NULL, NULL));
  assert_true(s.params.method == HYPERATTN_EXACT && !s.forced && !s.statistics &&
              !strcmp(s.method, "exact"));
  assert_null(read_with(&s, "", "", ""));
  assert_int_equal(s.params.method, HYPERATTN_EXACT);
  assert_null(read_with(&s, "force", NULL, NULL));
  assert_true(s.params.method == HYPERATTN_EXACT && s.forced);
  assert_null(read_with(&s, "default", NULL, NULL));
  assert_true(s.params.method == preset.method && s.params.tolerance == preset.tolerance && !s.forced);
  assert_null(read_with(&s, "default", "0.05", "2048"));
  assert_true(s.params.tolerance == 0.05f && s.params.min_seq_len == 2048);
  assert_null(read_with(&s, "linear", NULL, NULL));
  assert_true(s.params.heavy_keys == linear.heavy_keys && s.params.tolerance == 0);
  assert_null(read_with(&s, "linear", "0.2", NULL));
  assert_true(s.params.method == HYPERATTN_HYPER && s.params.tolerance == 0.2f);
  assert_null(read_with(&s, "paper", NULL, NULL));
  assert_true(s.params.sample_size == paper.sample_size && s.params.tolerance == 0);
  assert_null(read_with(&s, "off", NULL, NULL));
  setenv("HYPERATTN_GGML_STATS", "1", 1);
  assert_null(settings_read(&s));
  assert_true(s.statistics);
  setenv("HYPERATTN_GGML_STATS", "yes", 1);
  assert_non_null(settings_read(&s));
  unsetenv("HYPERATTN_GGML_STATS");
}

static void mistakes_are_named(void **state) {
  (void)state;
  settings s;
  const char *const wrong[][4] = {
      {"Exact", NULL, NULL, "HYPERATTN_GGML is"},
      {"default", "-0.1", NULL, "HYPERATTN_GGML_TOLERANCE"},
      {"default", "nan", NULL, "HYPERATTN_GGML_TOL"},
      {"default", "inf", NULL, "HYPERATTN_GGML_TOLERANCE"},
      {"default", "0.1x", NULL, "HYPERATTN_GGML_TOL"},
      {"default", "x", NULL, "HYPERATTN_GGML_TOLERANCE"},
      {"paper", "0.1", NULL, "HYPERATTN_GGML_TOLERANCE"},
      {"default", NULL, "0", "HYPERATTN_GGML_MIN_SEQ_LEN"},
      {"default", NULL, "1.5", "HYPERATTN_GGML_MIN_SEQ"},
      {"default", NULL, "1e30", "HYPERATTN_GGML_MIN_SEQ_LEN"},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    const char *said = read_with(&s, wrong[i][0], wrong[i][1], wrong[i][2]);
    assert_non_null(said);
    assert_int_equal(strncmp(said, wrong[i][3], strlen(wrong[i][3])), 0);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(causal_rows_are_one_run), cmocka_unit_test(windows_are_one_run),
      cmocka_unit_test(equal_rows_are_one_run),  cmocka_unit_test(sequences_are_runs),
      cmocka_unit_test(other_masks_are_left),    cmocka_unit_test(any_mask_is_read_right_or_left),
      cmocka_unit_test(settings_are_presets),    cmocka_unit_test(mistakes_are_named),
  };
  return cmocka_run_group_tests_name("llamacpp", tests, NULL, NULL);
}
