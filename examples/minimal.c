// Causal attention of 4 heads over 4096 tokens, approximated by the default preset.
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"
#include <stdio.h>
#include <stdlib.h>

int main(void) {
  enum { HEADS = 4, N = 4096, D = 64 };
  const size_t size = (size_t)HEADS * N * D;
  float *q = malloc(size * sizeof *q), *k = malloc(size * sizeof *k), *v = malloc(size * sizeof *v);
  float *out = malloc(size * sizeof *out);
  if (!q || !k || !v || !out) return 1;
  for (size_t i = 0; i < size; i++)  // any data: here a few waves
    q[i] = (float)(i * 7 % 13) / 13, k[i] = (float)(i * 5 % 11) / 11, v[i] = (float)(i * 3 % 17) / 17;

  hyperattn_problem problem = hyperattn_heads_first(1, HEADS, HEADS, N, N, D, D, q, k, v, out);
  problem.causal = 1;

  hyperattn_params params = hyperattn_default_params();
  size_t bytes = hyperattn_workspace_size(&problem, &params, 1);
  void *workspace = malloc(bytes);
  hyperattn_status status = hyperattn_forward(&problem, &params, workspace, bytes);
  printf("%s; out[last][0..3] = %g %g %g %g\n", hyperattn_status_string(status), (double)out[size - D],
         (double)out[size - D + 1], (double)out[size - D + 2], (double)out[size - D + 3]);
  free(workspace), free(out), free(v), free(k), free(q);
  return status == HYPERATTN_OK ? 0 : 1;
}
