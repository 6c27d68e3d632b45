// What peers_library.c and peers_ggml.c offer to peers_libraries.py: a call of attention that is opened once
// and run many times.
#ifndef PEERS_H
#define PEERS_H

#include <stdint.h>

// Tensors lie heads first, [head][row][dim]. Of keys and values there are copies, one behind the other; each
// run meets the next one.
typedef struct peer_call {
  const char *kind, *query_dtype, *dtype;  // dtype is that of keys and values; out is float32
  int32_t threads, causal;
  int64_t heads, kv_heads, n_query, n_key, head_dim, value_dim, copies;
  const void *query, *key, *value;  // value NULL: values are the first numbers of the keys' rows
  float *out;
} peer_call;

// NULL if this machine cannot run it.
void *peer_open(const peer_call *call);
int peer_run(void *opened);  // returns 1 if it went well
void peer_close(void *opened);
const char *peer_version(void);

#endif
