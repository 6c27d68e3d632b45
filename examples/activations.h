// Reads a head of activations: PATH.q.f16, .k.f16, .v.f16, each rows of 64 little-endian IEEE halves.
#ifndef ACTIVATIONS_H
#define ACTIVATIONS_H

#include "halves.h"

#include <stdio.h>
#include <stdlib.h>

enum { HEAD_DIM = 64 };

static void *allocate(size_t bytes) {
  void *p = malloc(bytes ? bytes : 1);
  if (!p) fprintf(stderr, "out of memory\n"), exit(1);
  return p;
}

// which is "q", "k" or "v". Exits with a message if the file is missing or not of that form.
static float *read_activations(const char *head, const char *which, int64_t *rows) {
  char path[4096];
  snprintf(path, sizeof path, "%s.%s.f16", head, which);
  FILE *f = fopen(path, "rb");
  if (!f) fprintf(stderr, "cannot open %s\n", path), exit(1);
  fseek(f, 0, SEEK_END);
  long bytes = ftell(f);
  if (bytes <= 0 || bytes % (2 * HEAD_DIM))
    fprintf(stderr, "%s is not rows of %d halves\n", path, HEAD_DIM), exit(1);
  rewind(f);
  unsigned char *raw = allocate((size_t)bytes);
  if (fread(raw, 1, (size_t)bytes, f) != (size_t)bytes) fprintf(stderr, "cannot read %s\n", path), exit(1);
  fclose(f);
  float *x = allocate((size_t)bytes / 2 * sizeof *x);
  for (long i = 0; i < bytes / 2; i++) x[i] = half_to_float((uint16_t)(raw[2 * i] | raw[2 * i + 1] << 8));
  free(raw);
  *rows = bytes / (2 * HEAD_DIM);
  return x;
}

#endif
