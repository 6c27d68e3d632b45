// A model of Llama architecture from a GGUF file, its weights converted to float32, and runs of it over a
// window of tokens.
#ifndef LLM_MODEL_H
#define LLM_MODEL_H

#include "gguf.h"
#include "matmul.h"

#include "elements.h"
#include "hyperattn.h"

typedef struct model_matrix {
  float *floats;
  matmul_block8 *blocks;  // the same weights in 8 bits, from model_pack; NULL: there are none
} model_matrix;

typedef struct model_layer {
  float *attention_norm, *ffn_norm;  // [dim]
  model_matrix qkv;                  // [(heads + 2 kv_heads) head_dim][dim]: query, key, value rows
  model_matrix output;               // [dim][heads head_dim]
  model_matrix gate_up;              // [2 hidden][dim]: gate rows, then up rows
  model_matrix down;                 // [dim][hidden]
} model_layer;

typedef struct model {
  int64_t n_layers, dim, hidden, n_heads, n_kv_heads, head_dim, n_vocab, trained_context;
  int64_t rope_dims;  // how many coordinates of a head are rotated, from the first on
  float norm_epsilon;
  double rope_base,
      rope_scale;       // angle = position / rope_scale * rope_base^(-2 i / rope_dims) / rope_factors[i]
  float *rope_factors;  // [rope_dims / 2], or NULL if all are 1
  float *embedding;     // [n_vocab][dim]
  model_matrix output;  // [n_vocab][dim]; its floats are the embedding itself where the two are tied
  float *output_norm;   // [dim]
  model_layer *layers;
} model;

// Whether the file is a whole model of an architecture that model_open understands.
int model_is_known(const gguf *file, llm_error *error);

// Refuses, by name, everything that would make it another model than the one computed here.
int model_open(model *m, const gguf *file, llm_error *error);  // the file may be closed afterwards
void model_close(model *m);

// Keeps the weights in 8 bits too, where rows are whole blocks of matmul.h. Steps of one token then read
// those, with the rounding that this implies. Runs of more tokens go on reading floats.
int model_pack(model *m, llm_error *error);

// A window of up to `capacity` tokens. With `keeps_all` every layer's keys and values are kept, for
// decoding.
typedef struct session {
  const model *m;
  const hyperattn_parallel *threads;
  int64_t capacity, n_past;  // n_past: tokens already in the cache
  int64_t n_slots;           // of the cache: n_layers, or 1 that all layers share
  hyperattn_dtype dtype;     // of the cache
  unsigned char *cache;      // [slot][key, value][kv head][capacity][head_dim]
  hyperattn_index **index;   // NULL, or what is known of each layer's keys
  void *index_memory;
  float *hidden;             // [capacity][dim], after the last layer of the last run, not normed
  float *query, *mixed;      // [capacity][heads head_dim]: queries, rotated; attention's result
  float *rotation;           // [capacity][rope_dims / 2][cosine, sine]
  matmul_block16 *packed;    // the left side of a step's product
  float *scratch;            // [worker][scratch_floats]
  int64_t scratch_floats;
  void *workspace;  // hyperattn's
  size_t workspace_size;
  double attention_seconds;  // of the last run
  // Called, if not NULL, when a layer's queries, keys and values are ready, and when the layer is done.
  void (*on_ready)(void *context, int64_t layer);
  void (*on_layer)(void *context, int64_t layer);
  void *ready_context, *layer_context;
} session;

int session_open(session *s, const model *m, const hyperattn_parallel *threads, int64_t capacity,
                 int keeps_all, hyperattn_dtype dtype, llm_error *error);
// Gives the cache, which keeps all layers, an index: steps of one token then look up which keys they read.
int session_index(session *s, llm_error *error);
void session_close(session *s);

// Runs n further tokens through all layers. Attention in layer i follows params[i]. The workers share the
// tokens, or, if n is 1, the columns of each product.
int session_run(session *s, const int32_t *tokens, int64_t n, const hyperattn_params *params,
                llm_error *error);

// Fills the cache, which keeps all layers, with repetitions of the tokens that it holds. What steps after a
// long text take can then be measured without reading one.
void session_repeat(session *s);

// The first of a head's rows in the cache; rows follow one another.
const void *session_keys(const session *s, int64_t layer, int64_t kv_head);
const void *session_values(const session *s, int64_t layer, int64_t kv_head);

// losses[i] = -ln p(next[i] | window up to row i) for n rows of the last run, from row `first` on.
void session_losses(session *s, int64_t first, int64_t n, const int32_t *next, double *losses);
void session_logits(session *s, int64_t row, float *logits);  // [n_vocab]
double model_loss(const model *m, const float *logits, int32_t next);

enum { SESSION_LOSS_ROWS = 128 };  // rows whose logits a worker holds at a time

double seconds_now(void);

#endif
