/* What both the host and the microcontroller compute: one head of a golden case, exact and by two
   presets, one of them with a tolerance that its rectangles miss, so that they are scanned; and exact attention of few queries to many keys, which overlap in
   memory. */
#include "hyperattn.h"

enum { N = 512, D = 32, CASES = 4, FEW = 3, MANY = 8192 };
static unsigned char workspace[160 * 1024];

static const char *const case_name[CASES] = {"exact", "paper", "judged", "few"};

static hyperattn_status run_case(int number, const float *q, const float *k, const float *v, float *out,
                                 size_t *bytes) {
  static hyperattn_problem p; /* static, so that only the library's stack is measured */
  static hyperattn_params params;
  static hyperattn_report report;
  for (int i = 0; i < N * D; i++) out[i] = 0.0f;
  params = number == 2 ? hyperattn_linear_params() : hyperattn_paper_params();
  p.batch = p.n_heads = p.n_kv_heads = 1;
  p.n_query = number == 3 ? FEW : N;
  p.n_key = number == 3 ? MANY : N;
  p.head_dim = p.value_dim = D;
  p.causal = 1;
  p.query.data = q, p.key.data = k, p.value.data = v, p.out.data = out;
  p.query.row_stride = p.out.row_stride = D;
  p.key.row_stride = p.value.row_stride = number == 3 ? 1 : D;
  params.method = number % 3 ? HYPERATTN_HYPER : HYPERATTN_EXACT;
  params.min_seq_len = 64, params.block_size = 16, params.sample_size = 16;
  if (number == 2) {
    params.probe_queries = 8, params.heavy_keys = 8, params.window = 16, params.key_group = 8;
    params.tolerance = 0.1f;
  }
  p.report = number == 2 ? &report : NULL;
  *bytes = hyperattn_workspace_size(&p, &params, 1);
  return hyperattn_forward(&p, &params, workspace, sizeof workspace);
}
