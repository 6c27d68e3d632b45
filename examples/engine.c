// What models and engines ask for, each in a few lines: Gemma's and gpt-oss's layers, ALiBi, a speculative tree,
// a paged, a unified and a quantised cache, an index of keys, a batch of sequences. Each result is compared with
// its definition, in double.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "halves.h"

enum { HEADS = 4, KV_HEADS = 2, D = 32, N = 300, NEW = 40, PAGE = 16, SEQUENCES = 8 };
enum { CAPACITY = 2000, PROMPT = 1900 };

// Tokens first, as engines keep them: [token][head][dim].
static float q[CAPACITY][HEADS][D], k[CAPACITY][KV_HEADS][D], v[CAPACITY][KV_HEADS][D];
static float out[CAPACITY][HEADS][D];
static const float sinks[HEADS] = {0.5f, -1, 2, 0},
                   slopes[HEADS] = {0.25f, 0.0625f, 0.015625f, 0.00390625f};

static float wave(size_t i) { return (float)(i * 2654435761u % 4096) / 2048 - 1; }

// What a layer makes of a query's score for a key; -INFINITY hides it.
typedef double (*becomes)(int head, int position, int key, double score);

static double as_it_is(int head, int position, int key, double score) {
  (void)head;
  return key <= position ? score : -INFINITY;
}
static double gemma(int head, int position, int key, double score) {
  score *= sqrt((double)D / 144);
  return position - key < 64 ? 50 * tanh(as_it_is(head, position, key, score) / 50) : -INFINITY;
}
static double gpt_oss(int head, int position, int key, double score) {
  return position - key < 128 ? as_it_is(head, position, key, score) : -INFINITY;
}
static double alibi(int head, int position, int key, double score) {
  return as_it_is(head, position, key, score) + (double)slopes[head] * (key - position);
}
static const int parent[NEW] = {-1, 0, 0, 1, 1, 2, 2, 3, 3, 4,
                                4,  5, 5, 6, 6, 7, 7, 8, 8, 9};  // others: the root
static int is_ancestor(int of, int node) {
  while (of > node) of = parent[of];
  return of == node;
}
static double tree(int head, int position, int key, double score) {
  (void)head;
  return key < N - NEW || is_ancestor(position - (N - NEW), key - (N - NEW)) ? score : -INFINITY;
}

// The largest difference of the last n_query tokens' results from the definition, over n_key keys.
static double difference(int n_query, int n_key, becomes score_becomes, int with_sinks) {
  double most = 0, s[CAPACITY], o;
  for (int i = 0; i < n_query; i++)
    for (int h = 0; h < HEADS; h++) {
      int position = n_key - n_query + i, kv = h / (HEADS / KV_HEADS);
      double sum = with_sinks ? exp((double)sinks[h]) : 0;
      for (int j = 0; j < n_key; j++) {
        double dot = 0;
        for (int t = 0; t < D; t++) dot += (double)q[position][h][t] * (double)k[j][kv][t];
        s[j] = score_becomes(h, position, j, dot / sqrt((double)D));
        s[j] = s[j] == -INFINITY ? 0 : exp(s[j]);
        sum += s[j];
      }
      for (int t = 0; t < D; t++) {
        o = 0;
        for (int j = 0; j < n_key; j++) o += s[j] / sum * (double)v[j][kv][t];
        most = fmax(most, fabs(o - (double)out[position][h][t]));
      }
    }
  return most;
}

static int worst(const char *what, double error, double bound) {
  printf("%-20s %.1e from its definition\n", what, error);
  return !(error <= bound);
}

static int run(const hyperattn_problem *p) {
  hyperattn_params params = hyperattn_default_params();
  size_t bytes = hyperattn_workspace_size(p, &params, 1);
  void *workspace = malloc(bytes);
  hyperattn_status status =
      workspace ? hyperattn_forward(p, &params, workspace, bytes) : HYPERATTN_ERROR_NULL_WORKSPACE;
  if (status) printf("%s\n", hyperattn_status_string(status));
  free(workspace);
  return status != HYPERATTN_OK;
}

// A layer's call: the last n_query of n_key tokens.
static hyperattn_problem layer_of(int n_query, int n_key) {
  hyperattn_problem p = hyperattn_tokens_first(1, HEADS, KV_HEADS, n_query, n_key, D, D, q[n_key - n_query],
                                               k, v, out[n_key - n_query]);
  p.causal = 1;
  return p;
}

static int layers(void) {
  int failed = 0, layer = 0;
  {
    // Gemma 2
    hyperattn_problem p = layer_of(N, N);
    p.softcap = 50;
    p.scale = 1 / sqrtf(144);               // the model's query_pre_attn_scalar; 0 means 1 / sqrt(head_dim)
    p.sliding_window = layer % 2 ? 0 : 64;  // the model's is 4096

    failed |= run(&p) || worst("Gemma's layer", difference(N, N, gemma, 0), 1e-6);
  }
  {
    // gpt-oss
    hyperattn_problem p = layer_of(N, N);
    p.sink = sinks;  // of this layer: [heads], learned, as float32
    p.sliding_window = layer % 2 ? 0 : 128;

    failed |= run(&p) || worst("gpt-oss's layer", difference(N, N, gpt_oss, 1), 1e-6);
  }
  {
    // Bloom, MPT, Baichuan
    static float distance[NEW + N - 1];
    for (int t = 0; t < NEW + N - 1; t++) distance[t] = (float)(t - (N - 1));
    hyperattn_problem p = layer_of(NEW, N);
    p.mask.data = distance + NEW - 1, p.mask.row_stride = -1;  // mask[i][j] = j - (i + n_key - n_query)
    p.mask_slope = slopes;                                     // of the model: [heads], as float32

    failed |= run(&p) || worst("ALiBi", difference(NEW, N, alibi, 0), 1e-6);
  }
  return failed;
}

// ggml's q4_0, 32 numbers: x = d (nibble - 8). The low nibbles come first.
typedef struct q4_0 {
  uint16_t d;  // float16
  uint8_t nibbles[16];
} q4_0;

// Of the signature of ggml's to_float.
static void widen_q4_0(const void *row, float *to, int64_t n) {
  for (const q4_0 *block = row; n > 0; n -= 32, to += 32, block++)
    for (int t = 0; t < 16; t++) {
      to[t] = half_to_float(block->d) * (float)((block->nibbles[t] & 15) - 8);
      to[t + 16] = half_to_float(block->d) * (float)((block->nibbles[t] >> 4) - 8);
    }
}

// Quantises 32 numbers, and makes them what the block holds.
static void pack_q4_0(float *x, q4_0 *block) {
  block->d = float_to_half(0.140625f);  // of numbers from -1 to 1
  for (int t = 0; t < 16; t++)
    block->nibbles[t] = (uint8_t)(lrintf(x[t] * 7) + 8 + (lrintf(x[t + 16] * 7) + 8) * 16);
  widen_q4_0(block, x, 32);
}

static int caches(void) {
  int failed = 0;
  {
    // A speculative tree
    static float mask[NEW][N];  // -INFINITY where a drafted token is no ancestor
    for (int i = 0; i < NEW; i++)
      for (int j = 0; j < N; j++) mask[i][j] = j < N - NEW || is_ancestor(i, j - (N - NEW)) ? 0 : -INFINITY;
    hyperattn_problem p = layer_of(NEW, N);
    p.causal = 0, p.mask.data = mask, p.mask.row_stride = N;

    failed |= run(&p) || worst("a speculative tree", difference(NEW, N, tree, 0), 1e-6);
  }
  {
    static float pool_k[N / PAGE + 1][PAGE][KV_HEADS][D], pool_v[N / PAGE + 1][PAGE][KV_HEADS][D];
    static int32_t table[N / PAGE + 1];
    for (int i = 0; i < N; i++) {
      int page = table[i / PAGE] = (i / PAGE * 5 + 3) % (N / PAGE + 1);
      for (int t = 0; t < KV_HEADS * D; t++) {
        pool_k[page][i % PAGE][t / D][t % D] = k[i][t / D][t % D];
        pool_v[page][i % PAGE][t / D][t % D] = v[i][t / D][t % D];
      }
    }
    // A paged cache
    hyperattn_problem p = layer_of(1, N);
    p.key.data = pool_k, p.value.data = pool_v, p.key.page = p.value.page = table;
    p.key.page_rows = p.value.page_rows = PAGE;
    p.key.page_stride = p.value.page_stride = PAGE * KV_HEADS * D;

    failed |= run(&p) || worst("a paged cache", difference(1, N, as_it_is, 0), 1e-6);
  }
  {
    // Half of the cells are free or hold other sequences.
    static float cell_k[2 * N][KV_HEADS][D], cell_v[2 * N][KV_HEADS][D];
    static int32_t cells[N];
    for (int i = 0; i < N; i++) {
      cells[i] = (i * 7 + 3) % (2 * N);
      memcpy(cell_k[cells[i]], k[i], sizeof k[i]), memcpy(cell_v[cells[i]], v[i], sizeof v[i]);
    }
    // A unified cache
    hyperattn_problem p = layer_of(NEW, N);
    p.key.data = cell_k, p.value.data = cell_v;
    p.key.page = p.value.page = cells;        // of this sequence, oldest first
    p.key.page_rows = p.value.page_rows = 1;  // so row_stride is not used
    p.key.page_stride = p.value.page_stride = KV_HEADS * D;

    failed |= run(&p) || worst("a unified cache", difference(NEW, N, as_it_is, 0), 1e-6);
  }
  {
    static q4_0 packed_k[N][KV_HEADS][D / 32], packed_v[N][KV_HEADS][D / 32];
    for (int i = 0; i < N * KV_HEADS * D / 32; i++) {
      pack_q4_0(&k[0][0][0] + i * 32, &packed_k[0][0][0] + i);
      pack_q4_0(&v[0][0][0] + i * 32, &packed_v[0][0][0] + i);
    }
    // A quantised cache
    hyperattn_problem p = layer_of(1, N);
    p.key.data = packed_k, p.value.data = packed_v;
    p.key.dtype = p.value.dtype = HYPERATTN_CUSTOM, p.key.widen = p.value.widen = widen_q4_0;
    p.key.head_stride = p.value.head_stride = sizeof packed_k[0][0];  // in bytes
    p.key.row_stride = p.value.row_stride = sizeof packed_k[0];

    failed |= run(&p) || worst("a quantised cache", difference(1, N, as_it_is, 0), 1e-6);
  }
  return failed;
}

static int decode(void) {
  // An index of keys
  hyperattn_problem shape = layer_of(0, CAPACITY);
  size_t bytes = hyperattn_index_size(&shape);
  void *memory = malloc(bytes);  // for each layer
  hyperattn_index *index;
  int failed = hyperattn_index_init(&index, &shape, memory, bytes) != HYPERATTN_OK;
  for (int n = PROMPT; n <= CAPACITY && !failed; n++) {  // tokens in the cache, the new one included
    hyperattn_problem p = layer_of(1, n);
    failed |= hyperattn_index_append(index, &p) != HYPERATTN_OK;  // reads 64 keys where a block is full
    p.index = index;
    failed |= run(&p);
  }
  hyperattn_problem shorter = layer_of(0, PROMPT);  // a sequence that is cut off, or goes on otherwise
  failed |= failed || hyperattn_index_truncate(index, &shorter) != HYPERATTN_OK;

  free(memory);
  return failed || worst("an index of keys", difference(1, CAPACITY, as_it_is, 0), 0.02);
}

// Sequence i has 20 + 40 i tokens; all of them are new, or just the last one.
static int n_new(int i) { return i % 2 ? 1 : 20 + 40 * i; }
static hyperattn_problem sequence(int i, float result[][HEADS][D]) {
  hyperattn_problem p = layer_of(n_new(i), 20 + 40 * i);
  p.out.data = result[20 + 40 * i - n_new(i)];
  return p;
}

static int batch(const hyperattn_parallel *parallel) {
  static float result[SEQUENCES][N][HEADS][D];
  double most = 0;
  // A batch of 8 sequences
  hyperattn_params params = hyperattn_default_params();
  params.method = HYPERATTN_EXACT;
  hyperattn_problem p[SEQUENCES];
  for (int i = 0; i < SEQUENCES; i++) p[i] = sequence(i, result[i]);
  size_t bytes = hyperattn_workspace_size_many(p, SEQUENCES, &params, parallel ? parallel->n_workers : 1);
  void *workspace = malloc(bytes);
  hyperattn_status status = hyperattn_forward_many(p, SEQUENCES, &params, parallel, workspace, bytes, NULL);

  for (int i = 0; i < SEQUENCES && !status; i++) {
    memcpy(out, result[i], sizeof result[i]);
    most = fmax(most, difference(n_new(i), 20 + 40 * i, as_it_is, 0));
  }
  free(workspace);
  return status || worst("8 sequences", most, 1e-6);
}

int main(void) {
  for (size_t i = 0; i < CAPACITY; i++)
    for (size_t t = 0; t < HEADS * D; t++) {
      q[i][t / D][t % D] = 3 * wave(i * 7 + t * 13);
      if (t < KV_HEADS * D) k[i][t / D][t % D] = wave(i * 5 + t), v[i][t / D][t % D] = wave(i * 3 + t);
    }
  return layers() | caches() | decode() | batch(NULL);
}
