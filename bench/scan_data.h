// The heads that bench_scan measures on: activations from files, and Gaussian rows that are made here.
#ifndef SCAN_DATA_H
#define SCAN_DATA_H

#include "activations.h"
#include "splitmix.h"

#include <math.h>
#include <string.h>

#define GAUSS "gauss"

enum { GAUSS_N = 8192, NAME_SIZE = 256 };

typedef struct head {
  char name[NAME_SIZE];
  int64_t n;
  float *rows[3];  // queries, keys, values: [n][HEAD_DIM]
} head;

static double normal(uint64_t *state) {
  double radius = sqrt(-2 * log(splitmix_uniform(state)));
  return radius * cos(6.283185307179586 * splitmix_uniform(state));
}

static double deviation(const float *x, int64_t count) {
  double sum = 0, square = 0;
  for (int64_t i = 0; i < count; i++) sum += (double)x[i], square += (double)x[i] * (double)x[i];
  return sqrt(square / (double)count - sum / (double)count * (sum / (double)count));
}

// x, of `rows` rows, repeated to n rows, with noise of a twentieth of its standard deviation behind the first
// copy.
static float *lengthen(float *x, int64_t rows, int64_t n, uint64_t seed) {
  double noise = 0.05 * deviation(x, rows * HEAD_DIM);
  if (n <= rows) return x;
  x = realloc(x, (size_t)(n * HEAD_DIM) * sizeof *x);
  if (!x) fprintf(stderr, "out of memory\n"), exit(1);
  for (int64_t i = rows * HEAD_DIM; i < n * HEAD_DIM; i++)
    x[i] = x[i % (rows * HEAD_DIM)] + (float)(noise * normal(&seed));
  return x;
}

static float *gauss_rows(int64_t n, uint64_t seed) {
  float *x = allocate((size_t)(n * HEAD_DIM) * sizeof *x);
  for (int64_t i = 0; i < n * HEAD_DIM; i++) x[i] = (float)normal(&seed);
  return x;
}

// What a head is called: the last part of its path.
static void name_head(const char *path, char *name) {
  const char *slash = strrchr(path, '/');
  snprintf(name, NAME_SIZE, "%.*s", NAME_SIZE - 1, slash ? slash + 1 : path);
}

// The head of a path, or GAUSS, with n tokens; 0: as many as it has. A path may be that of its file of queries,
// so that a pattern of a shell can name many heads.
static head open_head(const char *path, int64_t n) {
  static const char *const which[3] = {"q", "k", "v"};
  char stem[4000];
  size_t length = strlen(path);
  head h = {.n = n};
  if (length > 6 && !strcmp(path + length - 6, ".q.f16")) length -= 6;
  snprintf(stem, sizeof stem, "%.*s", (int)length, path);
  name_head(stem, h.name);
  if (!h.n && !strcmp(path, GAUSS)) h.n = GAUSS_N;
  for (int i = 0; i < 3; i++) {
    int64_t rows;
    if (!strcmp(path, GAUSS)) {
      h.rows[i] = gauss_rows(h.n, (uint64_t)i + 1);
      continue;
    }
    h.rows[i] = read_activations(stem, which[i], &rows);
    if (!h.n) h.n = rows;
    h.rows[i] = lengthen(h.rows[i], rows, h.n, (uint64_t)i + 1);
  }
  return h;
}

static void close_head(head *h) {
  for (int i = 0; i < 3; i++) free(h->rows[i]);
}

#endif
