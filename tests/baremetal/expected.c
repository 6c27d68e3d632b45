/* expected FOLDER FILE: writes the host's results, by plain C, on q.f32, k.f32 and v.f32 of the folder. */
#define HYPERATTN_IMPLEMENTATION
#define HYPERATTN_NO_SIMD
#include "fixture.h"
#include <stdio.h>

static float q[N * D], k[N * D], v[N * D], out[N * D];

static int load(const char *folder, const char *name, float *x) {
  char path[4096];
  FILE *f;
  size_t n;
  snprintf(path, sizeof path, "%s/%s.f32", folder, name);
  f = fopen(path, "rb");
  n = f ? fread(x, sizeof *x, N * D, f) : 0;
  if (f) fclose(f);
  return n == N * D;
}

int main(int argc, char **argv) {
  FILE *f;
  size_t bytes;
  if (argc != 3 || !load(argv[1], "q", q) || !load(argv[1], "k", k) || !load(argv[1], "v", v)) return 1;
  f = fopen(argv[2], "wb");
  for (int i = 0; f && i < CASES; i++)
    if (run_case(i, q, k, v, out, &bytes) != HYPERATTN_OK || fwrite(out, sizeof *out, N * D, f) != N * D)
      return 1;
  return f && !fclose(f) ? 0 : 1;
}
