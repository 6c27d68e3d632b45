/* Fuzzes the key index: appends, by heads or not, and truncations in any order give what one append gives; whatever
   bytes its memory holds, nothing outside is read or written, and what it says of itself is checked. */
#include "hyperattn.h"

#include "fuzz.h"

enum { MOST_KEYS = 1400, MOST_QUERIES = 4 };

typedef struct kept {
  hyperattn_index *index;
  unsigned char *memory, *begin; /* to the byte */
  size_t size;
} kept;

static kept make(const hyperattn_problem *p, int64_t capacity, int off) {
  hyperattn_problem shape = *p;
  kept x = {0};
  shape.n_key = capacity;
  x.size = hyperattn_index_size(&shape);
  x.memory = (unsigned char *)malloc(x.size + (size_t)off);
  CHECK(x.size && x.memory, "no index of %d keys", (int)capacity);
  x.begin = (unsigned char *)memset(x.memory, 0xa5, x.size + (size_t)off) + off;
  CHECK(hyperattn_index_init(&x.index, &shape, x.begin, x.size) == HYPERATTN_OK, "init");
  return x;
}

/* Some operation, valid or not: what it must return is worked out here. */
static void operate(const kept *x, const hyperattn_problem *p, int64_t capacity, bytes *in) {
  hyperattn_problem some = *p;
  int64_t length = hyperattn_index_length(x->index), n = below(in, MOST_KEYS + 50);
  hyperattn_status status;
  some.n_key = n;
  switch (take(in, 1) % 4) {
    case 0:
      if (n <= p->n_key) hyperattn_index_append_head(x->index, &some, below(in, 9) - 1);
      break;
    case 1:
      some.key.data = NULL;
      status = hyperattn_index_truncate(x->index, &some);
      CHECK((status == HYPERATTN_OK) == (n <= length), "truncate: %s", hyperattn_status_string(status));
      length = n <= length ? n : length;
      break;
    default:
      if (n > p->n_key) break; /* there are no such keys */
      status = hyperattn_index_append(x->index, &some);
      CHECK((status == HYPERATTN_OK) == (n >= length && n <= capacity), "append: %s",
            hyperattn_status_string(status));
      if (status == HYPERATTN_OK) length = n;
  }
  CHECK(hyperattn_index_length(x->index) == length, "length %d", (int)hyperattn_index_length(x->index));
}

/* The result of a call; refused calls write nothing. */
static hyperattn_status attend(hyperattn_problem p, hyperattn_index *index, const hyperattn_params *params,
                               float *out, int64_t n) {
  p.index = index, p.out.data = out;
  size_t size = hyperattn_workspace_size(&p, params, 1);
  void *workspace = malloc(size);
  CHECK(size && workspace, "no workspace");
  memset(workspace, 0xff, size), memset(out, 0x77, (size_t)n * sizeof *out);
  hyperattn_status status = hyperattn_forward(&p, params, workspace, size);
  for (int64_t i = 0; status != HYPERATTN_OK && i < n * 4; i++)
    CHECK(((unsigned char *)out)[i] == 0x77, "a refused call wrote");
  free(workspace);
  return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  bytes in_all = {data, data + size}, *in = &in_all;
  int64_t batch = 1 + below(in, 2), kv_heads = 1 + below(in, 2), group = 1 + below(in, 2),
          n_query = 1 + below(in, MOST_QUERIES);
  int64_t dim = one_in(in, 8) ? 1 + below(in, 70) : 1 + below(in, 20), n_key = 1 + below(in, MOST_KEYS),
          value_dim = 3;
  tensor query = {.n = {batch, kv_heads * group, n_query}, .dim = dim},
         key = {.n = {batch, kv_heads, n_key}, .dim = dim},
         value = {.n = {batch, kv_heads, n_key}, .dim = value_dim};
  uint64_t seed = take(in, 1), more = take(in, 1);
  key.dtype = (hyperattn_dtype)(more % 3);
  tensor *all[] = {&query, &key, &value};
  for (int i = 0; i < 3; i++) {
    bytes none = {NULL, NULL}; /* contiguous */
    tensor_make(all[i], &none, 0);
    tensor_fill(all[i], seed + (uint64_t)i, i ? 1.0f : (float)(1 + more / 3 % 5), 0);
  }
  for (uint64_t k = take(in, 1) % 4; k-- > 0;) tensor_plant(&key, in, 0), tensor_plant(&query, in, 0);
  hyperattn_problem p = hyperattn_heads_first(batch, kv_heads * group, kv_heads, n_query, n_key, dim,
                                              value_dim, query.data, key.data, value.data, NULL);
  hyperattn_params params = hyperattn_default_params();
  p.key.dtype = key.dtype, p.causal = (int)(more >> 6 & 1);
  params.window = 32, params.tolerance = more >> 7 ? 0.1f : 0.0f, params.seed = seed;
  int64_t capacity = n_key + below(in, 200), n = batch * kv_heads * group * n_query * value_dim;
  kept cut = make(&p, capacity, (int)take(in, 1) % 64), once = make(&p, capacity, 0);
  for (uint64_t k = take(in, 1) % 12; k-- > 0;) operate(&cut, &p, capacity, in);
  CHECK(hyperattn_index_append(cut.index, &p) == HYPERATTN_OK &&
            hyperattn_index_append(once.index, &p) == HYPERATTN_OK,
        "append");
  float *a = (float *)malloc((size_t)n * sizeof *a), *b = (float *)malloc((size_t)n * sizeof *b);
  CHECK(attend(p, cut.index, &params, a, n) == HYPERATTN_OK &&
            attend(p, once.index, &params, b, n) == HYPERATTN_OK,
        "run");
  for (int64_t i = 0; i < n; i++)
    CHECK((isnan(a[i]) && isnan(b[i])) || !memcmp(&a[i], &b[i], sizeof *a), "number %d: %g or %g", (int)i,
          (double)a[i], (double)b[i]);
  for (uint64_t k = 1 + take(in, 1) % 40; k-- > 0;) {
    size_t at = (size_t)take(in, 3) % cut.size;
    cut.begin[at] = (unsigned char)take(in, 1);
  }
  hyperattn_status status = attend(p, cut.index, &params, a, n);
  CHECK(status == HYPERATTN_OK || status == HYPERATTN_ERROR_INDEX, "%s", hyperattn_status_string(status));
  hyperattn_index_append(cut.index, &p);
  free(a), free(b), free(cut.memory), free(once.memory), free(query.block), free(key.block),
      free(value.block);
  return 0;
}
