/* A user's program in two units: this one sees declarations alone. */
#include "hyperattn.h"
#include <stdio.h>

int main(void) {
  float q[2] = {1, 0}, k[4] = {1, 0, 0, 1}, v[4] = {1, 2, 3, 4}, out[2];
  static unsigned char workspace[1 << 18];
  static hyperattn_problem problem; /* zeros; an initialiser would warn in C++ */
  hyperattn_params params = hyperattn_default_params();
  problem.batch = problem.n_heads = problem.n_kv_heads = 1;
  problem.n_query = 1, problem.n_key = 2, problem.head_dim = problem.value_dim = 2;
  problem.query.data = q, problem.key.data = k, problem.value.data = v, problem.out.data = out;
  problem.query.row_stride = problem.key.row_stride = problem.value.row_stride = problem.out.row_stride = 2;
  hyperattn_status status = hyperattn_forward(&problem, &params, workspace, sizeof workspace);
  printf("%s: %g %g\n", hyperattn_status_string(status), (double)out[0], (double)out[1]);
  return !(status == HYPERATTN_OK && out[0] > 1.6f && out[0] < 1.7f);
}
