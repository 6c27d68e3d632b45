// What both programs share besides attention: a layer's tensors, of which a rank makes its own rows;
// agreement before anything is sent, so that a mistake of one rank ends all of them with a sentence; and
// float64 to compare with. hyperattn.h with its implementation stands before it, and PROGRAM and usage[] as
// program.h wants them.
#ifndef RANKS_H
#define RANKS_H

#include "elements.h"
#include "program.h"
#include "splitmix.h"

#include <mpi.h>

#ifndef MPI_EXAMPLE_DATA
#define MPI_EXAMPLE_DATA "examples/data/l28h1"
#endif

// ---- One layer ----

enum { HEAD_DIM = 64, QUERY = 0, KEY, VALUE };

typedef struct layer {
  int64_t n_token, n_heads, n_kv_heads;
  hyperattn_dtype dtype;  // of keys and values; queries and results are float32
  unsigned char
      *real[3];  // rows of a real head: queries, keys, values, [n_real][HEAD_DIM] little-endian halves
  int64_t n_real;
} layer;

static void layer_open(layer *l) {
  static const char *const paths[] = {MPI_EXAMPLE_DATA ".q.f16", MPI_EXAMPLE_DATA ".k.f16",
                                      MPI_EXAMPLE_DATA ".v.f16"};
  size_t bytes;
  for (int which = QUERY; which <= VALUE; which++)
    l->real[which] = (unsigned char *)read_file(paths[which], &bytes);
  l->n_real = (int64_t)bytes / (2 * HEAD_DIM);
}
static void layer_close(layer *l) {
  for (int which = QUERY; which <= VALUE; which++) free(l->real[which]);
}

// The row of a token: that of the real head, repeated, with noise that is the same on whatever rank it is
// made.
static void layer_row(const layer *l, int which, int64_t head, int64_t token, float *to) {
  uint64_t random = ((uint64_t)which << 48) + ((uint64_t)head << 40) + (uint64_t)token;
  const unsigned char *from = l->real[which] + token % l->n_real * 2 * HEAD_DIM;
  for (int t = 0; t < HEAD_DIM; t++)
    to[t] = half_to_float((uint16_t)(from[2 * t] | from[2 * t + 1] << 8)) +
            0.2f * (float)(splitmix_uniform(&random) - 0.5);
}

// Rows first .. first + n - 1 of every head behind one another, of row stride HEAD_DIM and head stride `rows`
// rows, from row `at` on.
static void layer_rows(const layer *l, int which, int64_t first, int64_t n, hyperattn_dtype dtype, void *to,
                       int64_t rows, int64_t at) {
  size_t row_bytes = elements_size(HEAD_DIM, dtype);
  float row[HEAD_DIM];
  for (int64_t h = 0; h < (which == QUERY ? l->n_heads : l->n_kv_heads); h++)
    for (int64_t i = 0; i < n; i++) {
      layer_row(l, which, h, first + i, row);
      elements_write(row, HEAD_DIM, dtype, (char *)to + (size_t)(h * rows + at + i) * row_bytes);
    }
}

// The whole layer in one process, for comparison: out [n_heads][n_query][HEAD_DIM] of the last n_query
// tokens.
typedef struct whole {
  float *query;
  char *key, *value;
  float *out;
} whole;

static whole whole_make(const layer *l, int64_t n_query) {
  size_t kv_bytes = elements_size(l->n_kv_heads * l->n_token * HEAD_DIM, l->dtype);
  size_t floats = (size_t)(l->n_heads * n_query * HEAD_DIM);
  whole w = {allocate(floats, sizeof(float)), allocate(kv_bytes, 1), allocate(kv_bytes, 1),
             allocate(floats, sizeof(float))};
  layer_rows(l, QUERY, l->n_token - n_query, n_query, HYPERATTN_F32, w.query, n_query, 0);
  layer_rows(l, KEY, 0, l->n_token, l->dtype, w.key, l->n_token, 0);
  layer_rows(l, VALUE, 0, l->n_token, l->dtype, w.value, l->n_token, 0);
  return w;
}
static void whole_free(whole *w) { free(w->query), free(w->key), free(w->value), free(w->out); }

static double element(const void *x, int64_t i, hyperattn_dtype dtype) {
  if (dtype == HYPERATTN_F32) return (double)((const float *)x)[i];
  uint16_t half = ((const uint16_t *)x)[i];
  return (double)(dtype == HYPERATTN_F16 ? half_to_float(half) : bf16_to_float(half));
}

// Attention of one query over keys 0 .. n_key - 1 of a kv head in float64.
static void truth(const layer *l, const whole *w, const float *query, int64_t kv_head, int64_t n_key,
                  double *out) {
  int64_t first = kv_head * l->n_token * HEAD_DIM;
  double *score = allocate((size_t)n_key, sizeof(double)), most = -INFINITY, sum = 0;
  for (int64_t j = 0; j < n_key; j++) {
    score[j] = 0;
    for (int t = 0; t < HEAD_DIM; t++)
      score[j] += (double)query[t] * element(w->key, first + j * HEAD_DIM + t, l->dtype);
    score[j] /= sqrt(HEAD_DIM);
    most = fmax(most, score[j]);
  }
  for (int t = 0; t < HEAD_DIM; t++) out[t] = 0;
  for (int64_t j = 0; j < n_key; j++) {
    double weight = exp(score[j] - most);
    sum += weight;
    for (int t = 0; t < HEAD_DIM; t++)
      out[t] += weight * element(w->value, first + j * HEAD_DIM + t, l->dtype);
  }
  for (int t = 0; t < HEAD_DIM; t++) out[t] /= sum;
  free(score);
}

// ---- Agreement ----

// Every rank calls it with the same sentence, and ends.
static void end_all(const char *sentence) {
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  fprintf(stderr, PROGRAM ", rank %d: %s\n", rank, sentence);
  MPI_Finalize();
  exit(1);
}

enum { MOST_FACTS = 16 };
typedef struct fact {
  const char *name;
  int64_t value;
} fact;

// All ranks must be told the same. The largest of x and of -x, of all facts at once, tell whether they were.
static void agree(const fact *facts, int n) {
  int64_t mine[2 * MOST_FACTS], most[2 * MOST_FACTS];
  for (int i = 0; i < n; i++) mine[2 * i] = facts[i].value, mine[2 * i + 1] = -facts[i].value;
  MPI_Allreduce(mine, most, 2 * n, MPI_INT64_T, MPI_MAX, MPI_COMM_WORLD);
  for (int i = 0; i < n; i++)
    if (most[2 * i] != -most[2 * i + 1]) {
      char sentence[200];
      snprintf(sentence, sizeof sentence, "ranks disagree on %s: %lld to %lld", facts[i].name,
               (long long)-most[2 * i + 1], (long long)most[2 * i]);
      end_all(sentence);
    }
}

// No rank goes on if one cannot: `trouble` is 0, a status of the library (negative), or positive, and `what`
// says it all.
static void all_or_none(const char *what, int trouble) {
  int mine[2] = {abs(trouble), 0}, worst[2], status = trouble < 0 ? trouble : 0;
  char sentence[300];
  MPI_Comm_rank(MPI_COMM_WORLD, &mine[1]);
  MPI_Allreduce(mine, worst, 1, MPI_2INT, MPI_MAXLOC, MPI_COMM_WORLD);
  if (!worst[0]) return;
  MPI_Bcast(&status, 1, MPI_INT, worst[1], MPI_COMM_WORLD);
  snprintf(sentence, sizeof sentence, "%s on rank %d%s%s", what, worst[1], status ? ": " : "",
           status ? hyperattn_status_string((hyperattn_status)status) : "");
  end_all(sentence);
}

// Does the library take the shape?
static void check_shape(const layer *l, const hyperattn_params *params) {
  hyperattn_problem shape =
      hyperattn_heads_first(1, l->n_heads, l->n_kv_heads, 0, 0, HEAD_DIM, HEAD_DIM, NULL, NULL, NULL, NULL);
  all_or_none("the library refuses the shape", hyperattn_check(&shape, params, NULL, 0, 1));
}

// Are all numbers of a share finite? One NaN among keys or values would spread to every result.
static int is_finite(const void *x, int64_t n, hyperattn_dtype dtype) {
  int64_t i = 0;
  while (i < n && isfinite(element(x, i, dtype))) i++;
  return i == n;
}

// ---- What ranks report ----

static double most_of_all(double x) {
  MPI_Allreduce(MPI_IN_PLACE, &x, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return x;
}

// FNV-1a of bytes, from HASH_OF_NOTHING on, to compare runs bit by bit.
#define HASH_OF_NOTHING 0xcbf29ce484222325u
static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n) {
  for (size_t i = 0; i < n; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
  return hash;
}

// Sums over rows, of which `error` sums those of a result and `norm` those of what it is compared with.
typedef struct deviation {
  double error, norm;
} deviation;

static void deviation_add(deviation *d, const float *x, const double *of) {
  for (int t = 0; t < HEAD_DIM; t++) {
    d->error += ((double)x[t] - of[t]) * ((double)x[t] - of[t]);
    d->norm += of[t] * of[t];
  }
}
static double deviation_of(deviation d) { return d.norm > 0 ? sqrt(d.error / d.norm) : 0; }
// Is an error at most a tenth larger than another, but for what float32 rounds?
static int is_no_worse(deviation d, deviation than) {
  return deviation_of(d) <= 1.1 * deviation_of(than) + 1e-6;
}

// ---- Options of both ----

// Parameters by name; ends the program where there is none of that name.
static hyperattn_params params_named(const char *name) {
  hyperattn_params params = hyperattn_default_params();
  if (!strcmp(name, "linear")) return hyperattn_linear_params();
  if (!strcmp(name, "paper")) return hyperattn_paper_params();
  if (!strcmp(name, "exact"))
    params.method = HYPERATTN_EXACT;
  else if (strcmp(name, "default") != 0)
    misuse("--method: there is no", name);
  return params;
}

// What keys and values may be.
static hyperattn_dtype dtype_named(const char *name) {
  hyperattn_dtype dtype = HYPERATTN_F32;
  if (!elements_named(name, &dtype) || dtype == HYPERATTN_Q8_0) misuse("--dtype: there is no", name);
  return dtype;
}

#endif
