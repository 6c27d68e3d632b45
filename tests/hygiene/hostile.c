/* Declarations, implementation, each twice, among hostile macros; then exact attention of one query to two keys, whose
   result everyone knows. */
#include "hostile.h"
#include "hyperattn.h"
#include "hyperattn.h"
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"
#include "hyperattn.h"

static unsigned char workspace[HYPERATTN_WORKSPACE_BOUND_EXACT(1, 1)];

int main(void) {
  static const float query = 1.0f, key[2] = {2.0f, 2.0f}, value[2] = {1.0f, 4.0f};
  float out = 0.0f;
  hyperattn_problem problem;
  hyperattn_params params = hyperattn_default_params();
  HYPERATTN_MEMSET(&problem, 0, sizeof problem);
  params.method = HYPERATTN_EXACT;
  problem.batch = problem.n_heads = problem.n_kv_heads = problem.n_query = problem.head_dim = problem.value_dim = 1;
  problem.n_key = 2;
  problem.query.data = &query, problem.key.data = key, problem.value.data = value, problem.out.data = &out;
  problem.key.row_stride = problem.value.row_stride = 1;
  return hyperattn_forward(&problem, &params, workspace, sizeof workspace) == HYPERATTN_OK && out == 2.5f ? 0 : 1;
}
