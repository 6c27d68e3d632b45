// Attention without a heap: tensors and workspace are static arrays, as on a microcontroller.
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"
#include <stdio.h>

enum { N = 512, D = 32 };
static float q[N * D], k[N * D], v[N * D], out[N * D];
// A constant expression. The arguments are those of the call below, whose preset has no pins, probes and
// groups.
static unsigned char workspace[HYPERATTN_WORKSPACE_BOUND(1, N, D, D, 256, 64, 64, 0, 0, 0, 7)];

static float wave(int i, int period) { return (float)(i % period) / (float)period - 0.5f; }

int main(void) {
  hyperattn_problem problem = hyperattn_heads_first(1, 1, 1, N, N, D, D, q, k, v, out);
  hyperattn_params params = hyperattn_paper_params();
  hyperattn_status status;
  for (int i = 0; i < N * D; i++) {
    q[i] = wave(i * 31, 97);
    k[i] = wave(i * 17, 89);
    v[i] = wave(i * 13, 101);
  }
  params.min_seq_len = 256, params.block_size = 64, params.sample_size = 64;

  status = hyperattn_forward(&problem, &params, workspace, sizeof workspace);
  printf("%s; %lu of %lu bytes of workspace needed; out[0][0] = %g\n", hyperattn_status_string(status),
         (unsigned long)hyperattn_workspace_size(&problem, &params, 1), (unsigned long)sizeof workspace,
         (double)out[0]);
  return status == HYPERATTN_OK ? 0 : 1;
}
