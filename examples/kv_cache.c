// A key-value cache as engines keep it: tokens arrive in chunks, keys and values are stored token by token,
// query heads share key heads, and the caller provides the memory, sized once for the longest context. Each
// chunk gives what one call over the whole sequence gives for its rows, and so do the merged results of two
// halves of the cache.
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 6, KV_HEADS = 2, D = 64, CONTEXT = 2048, CHUNK = 512 };

// The cache of one layer: [token][kv head][dim], as many tokens as there is room for.
static float keys[CONTEXT][KV_HEADS][D], values[CONTEXT][KV_HEADS][D];
static float queries[CONTEXT][HEADS][D], whole[CONTEXT][HEADS][D], chunked[CONTEXT][HEADS][D],
    part[HEADS][D];

// Queries of tokens first .. first + n - 1 over keys from .. to - 1 of the cache, tokens first.
static hyperattn_problem attend(int64_t first, int64_t n, int64_t from, int64_t to, int causal,
                                float *out) {
  hyperattn_problem p = hyperattn_tokens_first(1, HEADS, KV_HEADS, n, to - from, D, D, queries[first],
                                               keys[from], values[from], out);
  p.causal = causal;  // aligned at the bottom right: the last query sees the last key
  return p;
}

static float wave(size_t i) { return (float)(i * 2654435761u % 4096) / 2048 - 1; }

// The largest |x - y|; NaN if any is NaN.
static float difference(const float *x, const float *y, size_t n) {
  float most = 0;
  for (size_t i = 0; i < n; i++) {
    float d = x[i] > y[i] ? x[i] - y[i] : y[i] - x[i];
    if (!(d <= most)) most = d;
  }
  return most;
}

int main(void) {
  hyperattn_params params = hyperattn_default_params();
  // Exact, so that results can be compared; approximation pays only for longer contexts.
  params.method = HYPERATTN_EXACT;

  // One workspace for all later calls: the size that a call needs never falls as n_query and n_key grow.
  hyperattn_problem p = attend(0, CONTEXT, 0, CONTEXT, 1, whole[0][0]);
  size_t bytes = hyperattn_workspace_size(&p, &params, 1);
  void *workspace = malloc(bytes);
  if (!workspace) return 1;

  for (size_t t = 0; t < CONTEXT; t++)
    for (size_t i = 0; i < HEADS * D; i++) {
      queries[t][i / D][i % D] = 3 * wave(t * 7 + i * 13);
      if (i < KV_HEADS * D)
        keys[t][i / D][i % D] = wave(t * 5 + i), values[t][i / D][i % D] = wave(t * 3 + i);
    }
  if (hyperattn_forward(&p, &params, workspace, bytes)) return 1;

  // Prefill in chunks: n_query < n_key, causal at the bottom right. Then one token at a time.
  for (int64_t at = 0, n; at < CONTEXT; at += n) {
    n = at < CONTEXT - CHUNK ? CHUNK : 1;
    p = attend(at, n, 0, at + n, 1, chunked[at][0]);
    if (hyperattn_forward(&p, &params, workspace, bytes)) return 1;
  }
  float chunks = difference(whole[0][0], chunked[0][0], sizeof whole / sizeof(float));
  printf("chunks of %d, then single tokens: %.1e from the whole\n", CHUNK, (double)chunks);

  // The last token over two halves of the cache, which could be on two machines: each gives out and lse, and
  // hyperattn_merge joins them.
  float lse_a[HEADS], lse_b[HEADS];
  p = attend(CONTEXT - 1, 1, 0, CONTEXT / 2, 0, chunked[CONTEXT - 1][0]), p.lse = lse_a;
  if (hyperattn_forward(&p, &params, workspace, bytes)) return 1;
  hyperattn_output a = p.out;
  p = attend(CONTEXT - 1, 1, CONTEXT / 2, CONTEXT, 0, part[0]), p.lse = lse_b;
  if (hyperattn_forward(&p, &params, workspace, bytes)) return 1;
  hyperattn_input b = {.data = part, .head_stride = D, .row_stride = HEADS * D};
  if (hyperattn_merge(1, HEADS, 1, D, a, lse_a, b, lse_b)) return 1;
  float halves = difference(whole[CONTEXT - 1][0], chunked[CONTEXT - 1][0], HEADS * D);
  printf("two halves of the cache, merged: %.1e\n", (double)halves);
  free(workspace);
  return chunks < 1e-5f && halves < 1e-5f ? 0 : 1;
}
