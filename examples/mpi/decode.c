// Decoding one layer whose cache is spread over machines.
//
//   mpirun -n 4 decode [--tokens N] [--steps S] [--heads H] [--kv-heads K] [--dtype f32|f16|bf16] [--index]
//       [--check] [--csv] [--nan-on RANK]
//
// Each rank holds a share of the cache: a part of the prompt, and of the new tokens every R-th. A step sends
// the queries, and the new token's key and value, to all; each rank attends to its share, by its index where
// there is one, and has a state (out, lse) for each head; and one reduction, by an operation of our own,
// joins the states on rank 0. What travels does not grow with the context: some kilobytes a step.
#define PROGRAM "decode"
static const char usage[] =
    "usage: mpirun -n RANKS decode [--tokens N] [--steps S] [--heads H] [--kv-heads K] [--dtype "
    "f32|f16|bf16] [--index]\n"
    "         [--check] [--csv] [--nan-on RANK]\n";

#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "ranks.h"

// ---- A cache with room for more ----

typedef struct cache {
  char *key, *value;  // [n_kv_heads][room][HEAD_DIM]
  int64_t n, room;
  void *index_memory, *workspace;
  hyperattn_index *index;  // NULL: none
  size_t workspace_bytes;
} cache;

// One query of each head over the cache's keys.
static hyperattn_problem step_of(const layer *l, const cache *c, const float *query, float *out,
                                 float *lse) {
  hyperattn_problem p = hyperattn_heads_first(1, l->n_heads, l->n_kv_heads, 1, c->n, HEAD_DIM, HEAD_DIM,
                                              query, c->key, c->value, out);
  p.key.dtype = p.value.dtype = l->dtype;
  p.key.head_stride = p.value.head_stride = c->room * HEAD_DIM;
  p.lse = lse;
  p.index = c->index;
  return p;
}

static hyperattn_status cache_open(cache *c, const layer *l, int64_t room, const hyperattn_params *params,
                                   int with_index) {
  size_t bytes = elements_size(l->n_kv_heads * room * HEAD_DIM, l->dtype);
  hyperattn_status status = HYPERATTN_OK;
  *c = (cache){.key = allocate(bytes, 1), .value = allocate(bytes, 1), .room = room, .n = room};
  hyperattn_problem shape = step_of(l, c, NULL, NULL, NULL);  // as long as it will ever be
  if (with_index) {
    size_t size = hyperattn_index_size(&shape);
    c->index_memory = allocate(size, 1);
    status = hyperattn_index_init(&c->index, &shape, c->index_memory, size);
    shape.index = c->index;
  }
  c->workspace_bytes = hyperattn_workspace_size(&shape, params, 1);
  c->workspace = allocate(c->workspace_bytes, 1);
  c->n = 0;
  return status;
}
static void cache_close(cache *c) {
  free(c->key), free(c->value), free(c->index_memory), free(c->workspace);
}

// Takes up tokens first .. first + n - 1.
static void cache_fill(const layer *l, cache *c, int64_t first, int64_t n) {
  layer_rows(l, KEY, first, n, l->dtype, c->key, c->room, c->n);
  layer_rows(l, VALUE, first, n, l->dtype, c->value, c->room, c->n);
  c->n += n;
}

// Takes up one token, whose keys [n_kv_heads][HEAD_DIM] and values came from elsewhere.
static void cache_append(const layer *l, cache *c, const char *rows) {
  size_t bytes = elements_size(HEAD_DIM, l->dtype);
  for (int64_t h = 0; h < l->n_kv_heads; h++) {
    memcpy(c->key + (size_t)(h * c->room + c->n) * bytes, rows + (size_t)h * bytes, bytes);
    memcpy(c->value + (size_t)(h * c->room + c->n) * bytes, rows + (size_t)(l->n_kv_heads + h) * bytes,
           bytes);
  }
  c->n++;
}

// The state of one step over a cache, which may be empty. The index reads the blocks that are complete by
// now.
static hyperattn_status cache_attend(const layer *l, cache *c, const hyperattn_params *params,
                                     const float *query, float *out, float *lse) {
  hyperattn_problem p = step_of(l, c, query, out, lse);
  hyperattn_status status = c->index ? hyperattn_index_append(c->index, &p) : HYPERATTN_OK;
  return status == HYPERATTN_OK ? hyperattn_forward(&p, params, c->workspace, c->workspace_bytes) : status;
}

// ---- The reduction ----

// A state is out [n_heads][HEAD_DIM] and lse [n_heads] behind it: one element of the operation.
static void join_states(void *in, void *inout, int *n, MPI_Datatype *type) {
  int bytes;
  MPI_Type_size(*type, &bytes);
  int64_t state_heads = bytes / (int)sizeof(float) / (HEAD_DIM + 1);
  for (int i = 0; i < *n; i++) {
    float *b = (float *)in + i * state_heads * (HEAD_DIM + 1),
          *a = (float *)inout + i * state_heads * (HEAD_DIM + 1);
    hyperattn_output to = {.data = a, .head_stride = HEAD_DIM, .row_stride = HEAD_DIM};
    hyperattn_input from = {.data = b, .head_stride = HEAD_DIM, .row_stride = HEAD_DIM};
    hyperattn_merge(1, state_heads, 1, HEAD_DIM, to, a + state_heads * HEAD_DIM, from,
                    b + state_heads * HEAD_DIM);
  }
}

// ---- Comparison, on rank 0: one process with the whole cache, and float64 ----

typedef struct comparison {
  whole w;
  cache c;
  float *out, *lse;
  deviation from_one, error, error_of_one;
} comparison;

static void compare_open(comparison *c, const layer *l, int64_t prompt, const hyperattn_params *params,
                         int with_index) {
  hyperattn_status status = cache_open(&c->c, l, l->n_token, params, with_index);
  if (status != HYPERATTN_OK) die("one process: %s", hyperattn_status_string(status));
  c->w = whole_make(l, 1);
  c->out = allocate((size_t)(l->n_heads * HEAD_DIM), sizeof(float));
  c->lse = allocate((size_t)l->n_heads, sizeof(float));
  cache_fill(l, &c->c, 0, prompt);
}
static void compare_close(comparison *c) {
  whole_free(&c->w), cache_close(&c->c), free(c->out), free(c->lse);
}

static void compare(comparison *c, const layer *l, const hyperattn_params *params, int64_t token,
                    const float *query, const float *out) {
  cache_fill(l, &c->c, token, 1);
  hyperattn_status status = cache_attend(l, &c->c, params, query, c->out, c->lse);
  if (status != HYPERATTN_OK) die("one process: %s", hyperattn_status_string(status));
  for (int64_t h = 0; h < l->n_heads; h++) {
    double is[HEAD_DIM], one[HEAD_DIM];
    for (int t = 0; t < HEAD_DIM; t++) one[t] = (double)c->out[h * HEAD_DIM + t];
    truth(l, &c->w, query + h * HEAD_DIM, h / (l->n_heads / l->n_kv_heads), token + 1, is);
    deviation_add(&c->from_one, out + h * HEAD_DIM, one);
    deviation_add(&c->error, out + h * HEAD_DIM, is);
    deviation_add(&c->error_of_one, c->out + h * HEAD_DIM, is);
  }
}

// ---- A rank ----

typedef struct rank_state {
  layer l;  // of n_token tokens, the new ones included
  hyperattn_params params;
  int rank, n_ranks, with_index, trouble;
  int64_t prompt;
  cache c;
  // What goes to all in a step: queries [n_heads][HEAD_DIM], and behind them the new token's keys and values.
  char *message;
  size_t query_bytes, token_bytes;
  float *state, *sum;  // of this rank, and on rank 0 of all
  MPI_Datatype state_type;
  MPI_Op join;
  double attending, talking;  // seconds
  uint64_t hash;              // of all results
} rank_state;

static void open_rank(rank_state *s, int64_t nan_on) {
  const layer *l = &s->l;
  int64_t begin = s->prompt * s->rank / s->n_ranks, end = s->prompt * (s->rank + 1) / s->n_ranks,
          room = end - begin + (l->n_token - s->prompt) / s->n_ranks + 1,
          numbers = l->n_kv_heads * room * HEAD_DIM;
  int floats = (int)l->n_heads * (HEAD_DIM + 1);
  all_or_none("no index", cache_open(&s->c, l, room, &s->params, s->with_index));
  cache_fill(l, &s->c, begin, end - begin);
  if (nan_on == s->rank && s->c.n) memset(s->c.value, 0xff, 4);
  all_or_none("a key or a value is not finite",
              !is_finite(s->c.key, numbers, l->dtype) || !is_finite(s->c.value, numbers, l->dtype));
  s->query_bytes = (size_t)(l->n_heads * HEAD_DIM) * sizeof(float);
  s->token_bytes = elements_size(2 * l->n_kv_heads * HEAD_DIM, l->dtype);
  s->message = allocate(s->query_bytes + s->token_bytes, 1);
  s->state = allocate((size_t)floats, sizeof(float));
  s->sum = allocate((size_t)floats, sizeof(float));
  MPI_Type_contiguous(floats, MPI_FLOAT, &s->state_type);
  MPI_Type_commit(&s->state_type);
  MPI_Op_create(join_states, 0, &s->join);  // not commutative: operands stay in the order of ranks
  s->hash = HASH_OF_NOTHING;
}
static void close_rank(rank_state *s) {
  MPI_Op_free(&s->join);
  MPI_Type_free(&s->state_type);
  cache_close(&s->c);
  free(s->message), free(s->state), free(s->sum);
  layer_close(&s->l);
}

// A rank that is in trouble goes on: the others wait for its states.
static void attend(rank_state *s) {
  const float *query = (const float *)(void *)s->message;
  if (!s->trouble)
    s->trouble =
        cache_attend(&s->l, &s->c, &s->params, query, s->state, s->state + s->l.n_heads * HEAD_DIM);
}

static void decode_token(rank_state *s, int64_t token) {
  char *rows = s->message + s->query_bytes;
  if (s->rank == 0) {
    layer_rows(&s->l, QUERY, token, 1, HYPERATTN_F32, s->message, 1, 0);
    layer_rows(&s->l, KEY, token, 1, s->l.dtype, rows, 1, 0);
    layer_rows(&s->l, VALUE, token, 1, s->l.dtype, rows + s->token_bytes / 2, 1, 0);
  }
  MPI_Barrier(MPI_COMM_WORLD);  // nobody is to wait for what rank 0 makes up
  double begin = MPI_Wtime(), sent, attended;
  MPI_Bcast(s->message, (int)(s->query_bytes + s->token_bytes), MPI_BYTE, 0, MPI_COMM_WORLD);
  sent = MPI_Wtime();
  if (token % s->n_ranks == s->rank) cache_append(&s->l, &s->c, rows);
  attend(s);
  attended = MPI_Wtime();
  MPI_Reduce(s->state, s->sum, 1, s->state_type, s->join, 0, MPI_COMM_WORLD);
  s->attending += attended - sent;
  s->talking += sent - begin + MPI_Wtime() - attended;
  if (s->rank == 0) s->hash = hash_bytes(s->hash, s->sum, s->query_bytes);
}

// ---- The program ----

static void report(const rank_state *s, int64_t steps, const comparison *one, int csv) {
  double attending = most_of_all(s->attending) / (double)steps * 1e6,
         talking = most_of_all(s->talking) / (double)steps * 1e6;
  double from_one = deviation_of(one->from_one), error = deviation_of(one->error),
         of_one = deviation_of(one->error_of_one);
  size_t bytes = s->query_bytes + s->token_bytes + (size_t)(s->l.n_heads * (HEAD_DIM + 1)) * sizeof(float);
  const char *how = s->with_index ? "index" : "exact", *dtype = element_names[s->l.dtype];
  if (s->rank) return;
  if (csv)
    printf("decode,%d,%lld,%lld,%lld,%s,,%s,,%.9f,%.9f,,%zu,,%.3e,%.3e,%.3e,%016llx\n", s->n_ranks,
           (long long)s->prompt, (long long)s->l.n_heads, (long long)s->l.n_kv_heads, how, dtype,
           attending * 1e-6, talking * 1e-6, bytes, from_one, error, of_one, (unsigned long long)s->hash);
  else
    printf(
        "%d ranks, %lld tokens, %s, %s: a step: attention %.1f us, messages and waiting %.1f us, %zu bytes "
        "to and from a "
        "rank; from one process %.1e; error %.2e, of one process %.2e\n",
        s->n_ranks, (long long)s->prompt, how, dtype, attending, talking, bytes, from_one, error, of_one);
}

// Exits with 1 where results are not what one process gives.
int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  rank_state s = {.l = {.n_heads = 8, .n_kv_heads = 2}, .prompt = 16384};
  const char *dtype = "f16", *stray = NULL;
  int check = 0, csv = 0;
  int64_t steps = 64, nan_on = -1;
  const option options[] = {
      {"--tokens", .integer = &s.prompt},
      {"--steps", .integer = &steps, .least = 1},
      {"--dtype", .text = &dtype},
      {"--heads", .integer = &s.l.n_heads, .least = 1},
      {"--index", .flag = &s.with_index},
      {"--kv-heads", .integer = &s.l.n_kv_heads, .least = 1},
      {"--check", .flag = &check},
      {"--nan-on", .integer = &nan_on},
      {"--csv", .flag = &csv},
  };
  read_table(argc, argv, options, sizeof options / sizeof *options, &stray);
  if (stray) misuse("there is no", stray);
  s.l.dtype = dtype_named(dtype);
  MPI_Comm_rank(MPI_COMM_WORLD, &s.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &s.n_ranks);
  s.params = params_named(s.with_index ? "default" : "exact");
  const fact facts[] = {{"tokens", s.prompt},  {"heads", s.l.n_heads},    {"kv heads", s.l.n_kv_heads},
                        {"dtypes", s.l.dtype}, {"indices", s.with_index}, {"steps", steps}};
  agree(facts, sizeof facts / sizeof *facts);
  check_shape(&s.l, &s.params);
  s.l.n_token = s.prompt + steps;
  layer_open(&s.l);
  open_rank(&s, nan_on);
  comparison one = {0};
  check &= s.rank == 0;
  if (check) compare_open(&one, &s.l, s.prompt, &s.params, s.with_index);

  attend(&s);  // the index reads the prompt, which is not a step's time
  MPI_Barrier(MPI_COMM_WORLD);
  for (int64_t token = s.prompt; token < s.l.n_token; token++) {
    decode_token(&s, token);
    if (check) compare(&one, &s.l, &s.params, token, (const float *)(void *)s.message, s.sum);
  }
  all_or_none("the library refuses a call", s.trouble);
  report(&s, steps, &one, csv);
  int good = s.with_index ? is_no_worse(one.error, one.error_of_one) : deviation_of(one.from_one) <= 2e-6;
  if (check) compare_close(&one);
  close_rank(&s);
  MPI_Finalize();
  return check && !good;
}
