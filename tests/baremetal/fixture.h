/* What the host and the microcontroller both compute: one head of a golden case, exact and by the paper's preset. */
#include "hyperattn.h"

enum { N = 512, D = 32, CASES = 2 };
static unsigned char workspace[128 * 1024];

static hyperattn_status run_case(int hyper, const float *q, const float *k, const float *v, float *out,
                                 size_t *bytes) {
  hyperattn_problem p = {0};
  hyperattn_params params = hyperattn_paper_params();
  p.batch = p.n_heads = p.n_kv_heads = 1;
  p.n_query = p.n_key = N;
  p.head_dim = p.value_dim = D;
  p.causal = 1;
  p.query.data = q, p.key.data = k, p.value.data = v, p.out.data = out;
  p.query.row_stride = p.key.row_stride = p.value.row_stride = p.out.row_stride = D;
  params.method = hyper ? HYPERATTN_HYPER : HYPERATTN_EXACT;
  params.min_seq_len = 64, params.block_size = 16, params.sample_size = 16;
  *bytes = hyperattn_workspace_size(&p, &params, 1);
  return hyperattn_forward(&p, &params, workspace, sizeof workspace);
}
