// One attention on ggml's CPU backend and on the hyperattn backend in turns, over shapes, formats and masks: how many
// times as fast, and how far apart.
//
//   GGML_BACKEND_PATH=libggml-hyperattn.so versus [--heads 32/8] [--dims 128/128] [--queries 1,512] [--cells 512,4096]
//                                                 [--types f16,q8_0] [--masks causal,alibi] [--threads 2] [--rounds 5]
//
// Prints CSV: the least time of the rounds on each side in milliseconds, with caches as warm as a round leaves them.
// Masks: none, causal, window (of a quarter of the cells), two (sequences that take turns in the cells), odd (no
// structure), alibi (minus the distance, times a slope).
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml.h"
#include "splitmix.h"

typedef struct shape {
  int64_t n_heads, n_kv_heads, head_dim, value_dim, n_query, n_cell;
  enum ggml_type type;
  const char *mask;
} shape;

static uint64_t seed = 1;
static const char *const mask_names[] = {"none", "causal", "window", "two", "odd", "alibi"};

// Numbers from -2 to 2 in the tensor's format.
static void fill(struct ggml_tensor *t) {
  int64_t n = ggml_nelements(t);
  float *numbers = malloc((size_t)n * sizeof *numbers);
  if (!numbers) abort();
  for (int64_t i = 0; i < n; i++) numbers[i] = (float)(4 * splitmix_uniform(&seed) - 2);
  if (t->type == GGML_TYPE_F32)
    memcpy(t->data, numbers, (size_t)n * sizeof *numbers);
  else
    ggml_quantize_chunk(t->type, numbers, t->data, 0, n / t->ne[0], t->ne[0], NULL);
  free(numbers);
}

static float mask_at(const shape *s, int64_t i, int64_t j) {
  int64_t last = s->n_cell - s->n_query + i, half = (s->n_query + 1) / 2;
  if (!strcmp(s->mask, "causal")) return j <= last ? 0 : -INFINITY;
  if (!strcmp(s->mask, "window")) return j <= last && last - j < s->n_cell / 4 + 1 ? 0 : -INFINITY;
  if (!strcmp(s->mask, "two"))
    return j % 2 == (i >= half) && j / 2 <= s->n_cell / 2 - half + i % half ? 0 : -INFINITY;
  if (!strcmp(s->mask, "odd")) return (j * 7 + i * 3) % 5 ? 0 : -INFINITY;
  return j <= last ? -(float)(last - j) / 64 : -INFINITY;
}

static struct ggml_tensor *mask_of(struct ggml_context *c, const shape *s) {
  if (!strcmp(s->mask, "none")) return NULL;
  struct ggml_tensor *mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, s->n_cell, s->n_query);
  for (int64_t i = 0; i < s->n_query; i++)
    for (int64_t j = 0; j < s->n_cell; j++)
      ((ggml_fp16_t *)mask->data)[i * s->n_cell + j] = ggml_fp32_to_fp16(mask_at(s, i, j));
  return mask;
}

// Rows of all heads side by side, as llama.cpp's caches have them.
static struct ggml_tensor *rows(struct ggml_context *c, enum ggml_type type, int64_t dim, int64_t n_heads,
                                int64_t n_row) {
  struct ggml_tensor *t = ggml_new_tensor_3d(c, type, dim, n_heads, n_row);
  fill(t);
  return ggml_permute(c, t, 0, 2, 1, 3);
}

static ggml_backend_t open_backend(enum ggml_backend_dev_type type, int n_threads) {
  ggml_backend_t backend = ggml_backend_init_by_type(type, NULL);
  if (!backend) return NULL;
  ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
  ggml_backend_set_n_threads_t set = (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
      registry, "ggml_backend_set_n_threads");
  if (set) set(backend, n_threads);
  return backend;
}

static void compare(ggml_backend_t *backend, const shape *s, int rounds) {
  struct ggml_init_params memory = {(size_t)3 << 30, NULL, false};
  struct ggml_context *c = ggml_init(memory);
  struct ggml_tensor *q = rows(c, GGML_TYPE_F32, s->head_dim, s->n_heads, s->n_query), *out[2];
  struct ggml_tensor *k = rows(c, s->type, s->head_dim, s->n_kv_heads, s->n_cell);
  struct ggml_tensor *v = rows(c, s->type, s->value_dim, s->n_kv_heads, s->n_cell), *mask = mask_of(c, s);
  double least[2] = {INFINITY, INFINITY}, difference = 0, norm = 0;
  float bias = strcmp(s->mask, "alibi") ? 0 : 8;
  struct ggml_cgraph *graph[2];
  for (int side = 0; side < 2; side++) {
    out[side] = ggml_flash_attn_ext(c, q, k, v, mask, 1 / sqrtf((float)s->head_dim), bias, 0);
    graph[side] = ggml_new_graph(c);
    ggml_build_forward_expand(graph[side], out[side]);
  }
  for (int round = -1; round < rounds; round++)
    for (int side = 0; side < 2; side++) {
      int64_t begin = ggml_time_us();
      ggml_backend_graph_compute(backend[side], graph[side]);
      double took = (double)(ggml_time_us() - begin) * 1e-6;
      if (round >= 0 && took < least[side]) least[side] = took;
    }
  const float *a = out[0]->data, *b = out[1]->data;
  for (int64_t i = 0; i < ggml_nelements(out[0]); i++)
    difference += pow((double)a[i] - (double)b[i], 2), norm += (double)a[i] * (double)a[i];
  printf("%lld/%lld,%lld/%lld,%lld,%lld,%s,%s,%.4f,%.4f,%.2f,%.1e\n", (long long)s->n_heads,
         (long long)s->n_kv_heads, (long long)s->head_dim, (long long)s->value_dim, (long long)s->n_query,
         (long long)s->n_cell, ggml_type_name(s->type), s->mask, least[0] * 1e3, least[1] * 1e3,
         least[0] / least[1], sqrt(difference / norm));
  fflush(stdout);
  ggml_free(c);
}

static enum ggml_type type_named(const char *name) {
  for (int i = 0; i < GGML_TYPE_COUNT; i++)
    if (ggml_type_name((enum ggml_type)i) && !strcmp(ggml_type_name((enum ggml_type)i), name))
      return (enum ggml_type)i;
  fprintf(stderr, "versus: no format %s\n", name);
  exit(2);
}

typedef struct list {
  char *item[32];
  int n;
} list;
static list split(const char *text) {
  list l = {{0}, 0};
  for (char *copy = strdup(text), *item = strtok(copy, ","); item && l.n < 32; item = strtok(NULL, ","))
    l.item[l.n++] = item;
  return l;
}

static int are_masks(const list *l) {
  for (int i = 0; i < l->n; i++) {
    int known = 0;
    for (size_t j = 0; j < sizeof mask_names / sizeof *mask_names; j++)
      known |= !strcmp(l->item[i], mask_names[j]);
    if (!known) return fprintf(stderr, "versus: no mask %s\n", l->item[i]), 0;
  }
  return 1;
}

typedef struct options {
  const char *heads, *dims, *queries, *cells, *types, *masks, *threads, *rounds;
} options;

static int read_options(options *o, int argc, char **argv) {
  const char *names[] = {"--heads", "--dims",  "--queries", "--cells",
                         "--types", "--masks", "--threads", "--rounds"};
  const char **values[] = {&o->heads, &o->dims,  &o->queries, &o->cells,
                           &o->types, &o->masks, &o->threads, &o->rounds};
  for (int i = 1; i < argc; i += 2) {
    int known = 0;
    for (int j = 0; j < 8; j++)
      if (!strcmp(argv[i], names[j]) && i + 1 < argc) *values[j] = argv[i + 1], known = 1;
    if (!known) return fprintf(stderr, "versus: what is %s? (the begin of versus.c tells)\n", argv[i]), 0;
  }
  return 1;
}

int main(int argc, char **argv) {
  options o = {"32/8", "128/128", "1,512", "512,4096", "f16", "causal", "2", "5"};
  if (!read_options(&o, argc, argv)) return 2;
  ggml_time_init();
  ggml_backend_load_all();
  int n_threads = atoi(o.threads);
  ggml_backend_t backend[2] = {open_backend(GGML_BACKEND_DEVICE_TYPE_CPU, n_threads),
                               open_backend(GGML_BACKEND_DEVICE_TYPE_ACCEL, n_threads)};
  if (!backend[0] || !backend[1]) return fprintf(stderr, "versus: GGML_BACKEND_PATH names no backend\n"), 1;
  list queries = split(o.queries), cells = split(o.cells), types = split(o.types), masks = split(o.masks);
  if (!are_masks(&masks)) return 2;
  long long h, hk, dk, dv;
  if (sscanf(o.heads, "%lld/%lld", &h, &hk) != 2 || sscanf(o.dims, "%lld/%lld", &dk, &dv) != 2) return 2;
  printf("heads,dims,queries,cells,type,mask,cpu_ms,here_ms,times,difference\n");
  for (int m = 0; m < masks.n; m++)
    for (int t = 0; t < types.n; t++)
      for (int i = 0; i < queries.n; i++)
        for (int j = 0; j < cells.n; j++) {
          shape s = {h,
                     hk,
                     dk,
                     dv,
                     atoll(queries.item[i]),
                     atoll(cells.item[j]),
                     type_named(types.item[t]),
                     masks.item[m]};
          if (s.n_query <= s.n_cell) compare(backend, &s, atoi(o.rounds));
        }
  for (int side = 0; side < 2; side++) ggml_backend_free(backend[side]);
  return 0;
}
