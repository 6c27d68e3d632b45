// Prefill of one layer whose context is spread over machines: exact, or by any method of the library.
//
//   mpirun -n 4 context_parallel [--tokens N] [--heads H] [--kv-heads K] [--dtype f32|f16|bf16] [--full]
//       [--method exact|default|linear|paper] [--check] [--seeds S] [--csv] [--nan-on RANK]
//
// The tokens are cut into 2 R chunks for R ranks. Rank r holds chunks r and 2 R - 1 - r, queries, keys and
// values: under a causal mask early chunks see little and late ones much, and together every rank has the
// same work. Queries and results stay where they are. Keys and values go once round the ring, while what has
// just arrived is attended to:
//
//   at home   the first chunk's causal square; the second chunk's, which sees the first as well
//   step s    the keys of rank q = r - s. Where q < r, both chunks of queries see the first chunk of keys and
//             not the second; where q > r, the second chunk of queries sees both chunks of keys, and the
//             first sees none. Without a mask all queries see all keys.
//
// So each step is one ordinary call without a mask, on half of the pairs of a share with another. Each call
// gives a state (out, lse) over its keys; hyperattn_merge joins it to the state of the keys before.
//
// An engine changes four things: the communicator (here all ranks of the program), the layout of keys and values
// (here heads first, packed, so that a share is one message), the threads (a parallel_for whose first worker looks
// after the transfers, and MPI_THREAD_FUNNELED), and where the state begins (here empty; a prefix that is cached
// has a state already). A sink goes to the calls at home only. Masks and sliding windows go by token, not by place
// in a share, and are not shown here.
//
// A call runs task by task, and between two tasks the transfers are looked after: MPI moves large messages
// only while it is called.
#define PROGRAM "context_parallel"
static const char usage[] =
    "usage: mpirun -n RANKS context_parallel [--tokens N] [--heads H] [--kv-heads K] [--dtype "
    "f32|f16|bf16] [--full]\n"
    "         [--method exact|default|linear|paper] [--check] [--seeds S] [--csv] [--nan-on RANK]\n";

#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

#include "ranks.h"

#include <limits.h>

// ---- Who holds what ----

// The tokens of a rank: two chunks, the first from token begin[0] on, n[0] of them.
typedef struct share {
  int64_t begin[2], n[2];
} share;

static share share_of(int64_t n_token, int rank, int n_ranks) {
  int64_t chunks = 2 * (int64_t)n_ranks, of[2] = {rank, chunks - 1 - rank};
  share s;
  for (int i = 0; i < 2; i++) {
    s.begin[i] = n_token * of[i] / chunks;
    s.n[i] = n_token * (of[i] + 1) / chunks - s.begin[i];
  }
  return s;
}
static int64_t rows_of(share s) { return s.n[0] + s.n[1]; }

// Keys and values of a share as they travel: keys [n_kv_heads][rows][HEAD_DIM], and values behind them.
typedef struct block {
  share tokens;
  char *keys;
} block;

// ---- A rank ----

typedef struct rank_state {
  const layer *l;
  const hyperattn_params *params;
  int rank, n_ranks, causal;
  block own, travelling[2];
  size_t row_bytes;
  MPI_Datatype row;
  MPI_Request transfers[2];
  // Queries, results and lse of this rank's tokens, [n_heads][rows], the first chunk before the second; and
  // the same for the call at hand.
  float *query, *out, *lse, *part, *part_lse;
  void *workspace;
  size_t workspace_bytes;
  int trouble;                         // the first status that was not HYPERATTN_OK
  double attending, waiting, merging;  // seconds
  int64_t pairs, bytes_sent;           // of a query and a key that it sees, each head counted
} rank_state;

static char *values_of(const rank_state *s, const block *b) {
  return b->keys + (size_t)(s->l->n_kv_heads * rows_of(b->tokens)) * s->row_bytes;
}
static int rows_to_send(const rank_state *s, share tokens) {
  return (int)(2 * s->l->n_kv_heads * rows_of(tokens));
}

// ---- Attention ----

static double pairs_of(const hyperattn_problem *p) {
  double pairs = (double)p->n_query * (double)p->n_key;
  return p->causal ? pairs - (double)p->n_query * (double)(p->n_query - 1) / 2 : pairs;
}

// Runs a call's tasks in order, and looks after the transfers between them.
static void run(rank_state *s, const hyperattn_problem *p) {
  double begin = MPI_Wtime();
  int phases = hyperattn_phase_count(p, s->params), done;
  for (int phase = 0; phase < phases; phase++)
    for (int64_t i = 0, n = hyperattn_phase_tasks(p, s->params, phase); i < n; i++) {
      hyperattn_run_task(p, s->params, s->workspace, phase, i, 0);
      MPI_Testall(2, s->transfers, &done, MPI_STATUSES_IGNORE);
    }
  s->attending += MPI_Wtime() - begin;
}

// Joins the call's result to the state of queries first .. first + n - 1. Each lse is contiguous within a
// head.
static void merge(rank_state *s, int64_t first, int64_t n) {
  double begin = MPI_Wtime();
  int64_t rows = rows_of(s->own.tokens);
  for (int64_t h = 0; h < s->l->n_heads; h++) {
    hyperattn_output a = {.data = s->out + (h * rows + first) * HEAD_DIM, .row_stride = HEAD_DIM};
    hyperattn_input b = {.data = s->part + h * n * HEAD_DIM, .row_stride = HEAD_DIM};
    hyperattn_status status =
        hyperattn_merge(1, 1, n, HEAD_DIM, a, s->lse + h * rows + first, b, s->part_lse + h * n);
    if (status != HYPERATTN_OK) s->trouble = status;
  }
  s->merging += MPI_Wtime() - begin;
}

// Queries first .. first + n - 1 of this rank meet the first n_key keys of a block. Causal: the last query
// sees the last key, and so on back.
static void attend(rank_state *s, int64_t first, int64_t n, const block *b, int64_t n_key, int causal) {
  int64_t q_rows = rows_of(s->own.tokens), k_rows = rows_of(b->tokens);
  hyperattn_problem p =
      hyperattn_heads_first(1, s->l->n_heads, s->l->n_kv_heads, n, n_key, HEAD_DIM, HEAD_DIM,
                            s->query + first * HEAD_DIM, b->keys, values_of(s, b), s->part);
  p.query.head_stride = q_rows * HEAD_DIM;
  p.key.head_stride = p.value.head_stride = k_rows * HEAD_DIM;
  p.key.dtype = p.value.dtype = s->l->dtype;
  p.causal = causal;
  p.lse = s->part_lse;
  if (!n || !n_key) return;
  if (!s->trouble) s->trouble = hyperattn_check(&p, s->params, s->workspace, s->workspace_bytes, 1);
  if (s->trouble) return;  // the others still need what passes through here
  run(s, &p);
  merge(s, first, n);
  s->pairs += (int64_t)pairs_of(&p) * s->l->n_heads;
}

// ---- The ring ----

// Starts to send a block to the next rank and to receive, into `to`, the one that the rank before this one
// attends to.
static void pass_on(rank_state *s, const block *from, block *to, int owner) {
  int next = (s->rank + 1) % s->n_ranks, previous = (s->rank + s->n_ranks - 1) % s->n_ranks;
  int send = rows_to_send(s, from->tokens);
  to->tokens = share_of(s->l->n_token, owner, s->n_ranks);
  MPI_Irecv(to->keys, rows_to_send(s, to->tokens), s->row, previous, 0, MPI_COMM_WORLD, &s->transfers[0]);
  MPI_Isend(from->keys, send, s->row, next, 0, MPI_COMM_WORLD, &s->transfers[1]);
  s->bytes_sent += (int64_t)send * (int64_t)s->row_bytes;
}

static void await(rank_state *s) {
  double begin = MPI_Wtime();
  MPI_Waitall(2, s->transfers, MPI_STATUSES_IGNORE);
  s->waiting += MPI_Wtime() - begin;
}

static void prefill(rank_state *s) {
  const block *now = &s->own;
  share mine = s->own.tokens;
  for (int64_t i = 0; i < s->l->n_heads * rows_of(mine); i++) s->lse[i] = -INFINITY;  // nothing is met yet
  for (int step = 0; step < s->n_ranks; step++) {
    int owner = (s->rank - step + s->n_ranks) % s->n_ranks;
    if (step) now = &s->travelling[step % 2];
    if (step + 1 < s->n_ranks)
      pass_on(s, now, &s->travelling[(step + 1) % 2], (owner + s->n_ranks - 1) % s->n_ranks);
    if (!s->causal) {
      attend(s, 0, rows_of(mine), now, rows_of(now->tokens), 0);
    } else if (step == 0) {
      attend(s, 0, mine.n[0], now, mine.n[0], 1);
      attend(s, mine.n[0], mine.n[1], now, rows_of(mine), 1);
    } else if (owner < s->rank) {
      attend(s, 0, rows_of(mine), now, now->tokens.n[0], 0);
    } else {
      attend(s, mine.n[0], mine.n[1], now, rows_of(now->tokens), 0);
    }
    await(s);
  }
}

// ---- One run ----

static void open_rank(rank_state *s) {
  const layer *l = s->l;
  share mine = share_of(l->n_token, s->rank, s->n_ranks);
  int64_t rows = rows_of(mine), most_rows = 2 * (l->n_token / (2 * s->n_ranks) + 1);
  size_t floats = (size_t)(l->n_heads * rows);
  s->row_bytes = elements_size(HEAD_DIM, l->dtype);
  MPI_Type_contiguous((int)s->row_bytes, MPI_BYTE, &s->row);
  MPI_Type_commit(&s->row);
  s->transfers[0] = s->transfers[1] = MPI_REQUEST_NULL;
  s->own.tokens = mine;
  s->own.keys = allocate((size_t)(2 * l->n_kv_heads * rows), s->row_bytes);
  for (int i = 0; i < 2; i++)
    s->travelling[i].keys = allocate((size_t)(2 * l->n_kv_heads * most_rows), s->row_bytes);
  s->query = allocate(floats * HEAD_DIM, sizeof(float));
  s->out = allocate(floats * HEAD_DIM, sizeof(float));
  s->part = allocate(floats * HEAD_DIM, sizeof(float));
  s->lse = allocate(floats, sizeof(float));
  s->part_lse = allocate(floats, sizeof(float));
  for (int i = 0; i < 2; i++) {
    int64_t at = i ? mine.n[0] : 0;
    layer_rows(l, QUERY, mine.begin[i], mine.n[i], HYPERATTN_F32, s->query, rows, at);
    layer_rows(l, KEY, mine.begin[i], mine.n[i], l->dtype, s->own.keys, rows, at);
    layer_rows(l, VALUE, mine.begin[i], mine.n[i], l->dtype, values_of(s, &s->own), rows, at);
  }
  // Sizes never fall as lengths grow: one workspace for all calls.
  for (int causal = 0; causal < 2; causal++) {
    hyperattn_problem p = hyperattn_heads_first(1, l->n_heads, l->n_kv_heads, most_rows, most_rows,
                                                HEAD_DIM, HEAD_DIM, NULL, NULL, NULL, NULL);
    p.causal = causal;
    p.key.dtype = p.value.dtype = l->dtype;
    size_t bytes = hyperattn_workspace_size(&p, s->params, 1);
    if (bytes > s->workspace_bytes) s->workspace_bytes = bytes;
  }
  s->workspace = allocate(s->workspace_bytes, 1);
}

static void close_rank(rank_state *s) {
  free(s->own.keys), free(s->travelling[0].keys), free(s->travelling[1].keys);
  free(s->query), free(s->out), free(s->part), free(s->lse), free(s->part_lse), free(s->workspace);
  MPI_Type_free(&s->row);
}

// ---- Comparison: the same layer in one process, which each rank computes for itself, and float64 ----

typedef struct comparison {
  whole w;
  double *truth;  // of this rank's rows: [n_heads][rows][HEAD_DIM]
  deviation from_one, error, error_of_one;
} comparison;

static hyperattn_status whole_run(const layer *l, const whole *w, int causal,
                                  const hyperattn_params *params) {
  hyperattn_problem p = hyperattn_heads_first(1, l->n_heads, l->n_kv_heads, l->n_token, l->n_token,
                                              HEAD_DIM, HEAD_DIM, w->query, w->key, w->value, w->out);
  p.key.dtype = p.value.dtype = l->dtype;
  p.causal = causal;
  size_t bytes = hyperattn_workspace_size(&p, params, 1);
  void *workspace = allocate(bytes, 1);
  hyperattn_status status = hyperattn_forward(&p, params, workspace, bytes);
  free(workspace);
  return status;
}

// A rank's row i of a head, in a result of the whole layer.
static int64_t token_of(share mine, int64_t i) {
  return i < mine.n[0] ? mine.begin[0] + i : mine.begin[1] + i - mine.n[0];
}

static void compare_open(comparison *c, const rank_state *s) {
  const layer *l = s->l;
  int64_t rows = rows_of(s->own.tokens);
  c->w = whole_make(l, l->n_token);
  c->truth = allocate((size_t)(l->n_heads * rows * HEAD_DIM), sizeof(double));
  for (int64_t at = 0; at < l->n_heads * rows; at++)
    truth(l, &c->w, s->query + at * HEAD_DIM, at / rows / (l->n_heads / l->n_kv_heads),
          s->causal ? token_of(s->own.tokens, at % rows) + 1 : l->n_token, c->truth + at * HEAD_DIM);
}
static void compare_close(comparison *c) { whole_free(&c->w), free(c->truth); }

static void compare(comparison *c, const rank_state *s) {
  const layer *l = s->l;
  int64_t rows = rows_of(s->own.tokens);
  all_or_none("one process cannot do it", whole_run(l, &c->w, s->causal, s->params));
  for (int64_t at = 0; at < l->n_heads * rows; at++) {
    const float *here = s->out + at * HEAD_DIM;
    const float *there =
        c->w.out + (at / rows * l->n_token + token_of(s->own.tokens, at % rows)) * HEAD_DIM;
    double one[HEAD_DIM];
    for (int t = 0; t < HEAD_DIM; t++) one[t] = (double)there[t];
    deviation_add(&c->from_one, here, one);
    deviation_add(&c->error, here, c->truth + at * HEAD_DIM);
    deviation_add(&c->error_of_one, there, c->truth + at * HEAD_DIM);
  }
}

// ---- The program ----

typedef struct request {
  const char *method, *dtype;
  int full, check, csv;
  int64_t seeds, nan_on;
} request;

static void read_request(int argc, char **argv, request *r, layer *l) {
  const char *stray = NULL;
  const option options[] = {
      {"--tokens", .integer = &l->n_token, .least = 1},
      {"--heads", .integer = &l->n_heads, .least = 1},
      {"--kv-heads", .integer = &l->n_kv_heads, .least = 1},
      {"--method", .text = &r->method},
      {"--dtype", .text = &r->dtype},
      {"--full", .flag = &r->full},
      {"--check", .flag = &r->check},
      {"--seeds", .integer = &r->seeds, .least = 1},
      {"--csv", .flag = &r->csv},
      {"--nan-on", .integer = &r->nan_on},
  };
  read_table(argc, argv, options, sizeof options / sizeof *options, &stray);
  if (stray) misuse("there is no", stray);
  l->dtype = dtype_named(r->dtype);
}

// Before anything is sent: the same layer everywhere, a shape that the library takes, and finite numbers.
static void check_request(const request *r, rank_state *s) {
  const layer *l = s->l;
  const fact facts[] = {{"tokens", l->n_token},
                        {"heads", l->n_heads},
                        {"kv heads", l->n_kv_heads},
                        {"dtypes", l->dtype},
                        {"masks", r->full},
                        {"methods", s->params->method},
                        {"budgets", s->params->sample_size},
                        {"checks", r->check},
                        {"seeds", r->seeds}};
  agree(facts, sizeof facts / sizeof *facts);
  check_shape(l, s->params);
  share longest = share_of(l->n_token, 0, s->n_ranks);
  all_or_none("a share has more rows than a message of MPI's",
              2 * l->n_kv_heads > INT_MAX / (rows_of(longest) + 2));
  open_rank(s);
  int64_t numbers = 2 * l->n_kv_heads * rows_of(s->own.tokens) * HEAD_DIM;
  if (r->nan_on == s->rank && numbers) memset(s->own.keys, 0xff, 4);
  all_or_none("a key or a value is not finite", !is_finite(s->own.keys, numbers, l->dtype));
}

static void report(const request *r, const rank_state *s, double seconds, const comparison *c) {
  const layer *l = s->l;
  size_t floats = (size_t)(l->n_heads * rows_of(s->own.tokens) * HEAD_DIM);
  unsigned long long hash = hash_bytes(HASH_OF_NOTHING, s->out, floats * sizeof(float));
  double pairs = (double)s->pairs, attending = most_of_all(s->attending), waiting = most_of_all(s->waiting);
  double merging = most_of_all(s->merging), sent = most_of_all((double)s->bytes_sent) / (double)r->seeds;
  double balance = most_of_all(pairs);
  MPI_Allreduce(MPI_IN_PLACE, &pairs, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  balance *= s->n_ranks / pairs;
  hash *= 2 * (unsigned long long)s->rank + 1;  // which rank has which bits matters
  MPI_Allreduce(MPI_IN_PLACE, &hash, 1, MPI_UNSIGNED_LONG_LONG, MPI_SUM, MPI_COMM_WORLD);
  if (s->rank) return;
  const char *mask = r->full ? "full" : "causal";
  double from_one = deviation_of(c->from_one), error = deviation_of(c->error),
         of_one = deviation_of(c->error_of_one);
  if (r->csv)
    printf("prefill,%d,%lld,%lld,%lld,%s,%s,%s,%.6f,%.6f,%.6f,%.6f,%.0f,%.5f,%.3e,%.3e,%.3e,%016llx\n",
           s->n_ranks, (long long)l->n_token, (long long)l->n_heads, (long long)l->n_kv_heads, r->method,
           mask, r->dtype, seconds, attending, waiting, merging, sent, balance, from_one, error, of_one,
           hash);
  else
    printf(
        "%d ranks, %lld tokens, %s, %s, %s: %.3f s: attention %.3f, waiting %.3f, merging %.3f; %.2f MB "
        "sent by a rank; "
        "most pairs over mean %.4f; from one process %.1e; error %.2e, of one process %.2e\n",
        s->n_ranks, (long long)l->n_token, r->method, mask, r->dtype, seconds, attending, waiting, merging,
        sent * 1e-6, balance, from_one, error, of_one);
}

// Exits with 1 on every rank where the results of ranks are not what one process gives: exact ones to 2e-6,
// others with an error that is larger by more than a tenth (and by what float32 rounds), over all seeds.
int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  layer l = {.n_token = 4096, .n_heads = 2, .n_kv_heads = 1};
  request r = {.method = "exact", .dtype = "f32", .seeds = 1, .nan_on = -1};
  read_request(argc, argv, &r, &l);
  hyperattn_params params = params_named(r.method);
  rank_state s = {.l = &l, .params = &params, .causal = !r.full};
  MPI_Comm_rank(MPI_COMM_WORLD, &s.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &s.n_ranks);
  layer_open(&l);
  check_request(&r, &s);
  comparison c = {0};
  if (r.check) compare_open(&c, &s);

  double seconds = 0;
  for (; params.seed < (uint64_t)r.seeds; params.seed++) {
    MPI_Barrier(MPI_COMM_WORLD);
    double begin = MPI_Wtime();
    prefill(&s);
    seconds += most_of_all(MPI_Wtime() - begin);
    all_or_none("the library refuses a call", s.trouble);
    if (r.check) compare(&c, &s);
  }
  deviation *sums[] = {&c.from_one, &c.error, &c.error_of_one};
  for (int i = 0; i < 3; i++) MPI_Allreduce(MPI_IN_PLACE, sums[i], 2, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  report(&r, &s, seconds, &c);
  int good = params.method == HYPERATTN_EXACT ? deviation_of(c.from_one) <= 2e-6
                                              : is_no_worse(c.error, c.error_of_one);
  if (r.check) compare_close(&c);
  close_rank(&s);
  layer_close(&l);
  MPI_Finalize();
  return r.check && !good;
}
