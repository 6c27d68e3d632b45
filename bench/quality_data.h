// What bench_quality measures on: heads of activations from a folder, and synthetic heads that are made here.
//
//   essay      DIR/lLLhH.{q,k,v}.f16: a language model reads a text; causal, scale 1/8
//   repeat     DIR/repeat.lLLhH.*: the model reads a text twice, and in the second half looks up the first
//   planted    keys and values N(0,1)^64, query i = key[perm(i)] + noise N(0,1)^64, scale 1/4, full
//   clustered  64 centres N(0,1)^64; every key and every query is some centre + 0.5 N(0,1)^64, in no order;
//              values N(0,1)^64, scale 1/8, full: a query attends to the 128 keys of its centre
//   gauss      queries, keys and values N(0,1)^64, scale 1/8, full
#ifndef QUALITY_DATA_H
#define QUALITY_DATA_H

#include "activations.h"
#include "splitmix.h"

#include <dirent.h>
#include <string.h>

typedef enum data_set { ESSAY, REPEAT, PLANTED_1, PLANTED_3, PLANTED_5, CLUSTERED, GAUSS, SETS } data_set;
static const char *const set_names[SETS] = {"essay",       "repeat",    "planted 0.1", "planted 0.3",
                                            "planted 0.5", "clustered", "gauss"};
enum { MADE_N = 8192, CENTRES = 64 };

typedef struct source {  // where a head comes from
  data_set set;
  char *name, *path;  // path: NULL if synthetic
} source;

typedef struct head {
  int64_t n;
  int causal;
  float scale, *q, *k, *v;
} head;

// ---- Finding ----

static char *join(const char *a, const char *b, const char *c) {
  size_t size = strlen(a) + strlen(b) + strlen(c) + 1;
  char *s = allocate(size);
  snprintf(s, size, "%s%s%s", a, b, c);
  return s;
}

static void add_source(source **list, int *count, data_set set, char *name, char *path) {
  *list = realloc(*list, (size_t)(*count + 1) * sizeof **list);
  if (!*list) fprintf(stderr, "out of memory\n"), exit(1);
  (*list)[(*count)++] = (source){set, name, path};
}

static int by_set_and_name(const void *a, const void *b) {
  const source *x = a, *y = b;
  return x->set != y->set ? (int)x->set - (int)y->set : strcmp(x->name, y->name);
}

static int is_head_name(const char *s) { return s[0] == 'l' && s[1] >= '0' && s[1] <= '9'; }

// Appends every head in the folder; returns 0 if there is no such folder.
static int find_heads(const char *folder, source **list, int *count) {
  DIR *d = opendir(folder);
  if (!d) return 0;
  for (struct dirent *e; (e = readdir(d));) {
    size_t length = strlen(e->d_name);
    int repeat = !strncmp(e->d_name, "repeat.", 7);
    if (length < 7 || strcmp(e->d_name + length - 6, ".q.f16")) continue;
    if (!is_head_name(e->d_name + (repeat ? 7 : 0))) continue;
    char *path = join(folder, "/", e->d_name), *name = join(e->d_name, "", "");
    path[strlen(path) - 6] = name[length - 6] = 0;
    add_source(list, count, repeat ? REPEAT : ESSAY, name, path);
  }
  closedir(d);
  return 1;
}

// ---- Synthetic heads ----

static void fill_gauss(float *x, int64_t n, double size,
                       uint64_t *state) {  // adds N(0, size^2), by Box-Muller; n is even
  for (int64_t i = 0; i + 1 < n; i += 2) {
    double u = splitmix_uniform(state);
    double angle = (double)(splitmix(state) >> 11) * (6.283185307179586 / 9007199254740992.0);
    double radius = size * sqrt(-2 * log(u));
    x[i] += (float)(radius * cos(angle)), x[i + 1] += (float)(radius * sin(angle));
  }
}

static float *new_rows(int64_t n) {
  size_t bytes = (size_t)(n * HEAD_DIM) * sizeof(float);
  return memset(allocate(bytes), 0, bytes);
}

static void copy_row(float *to, const float *from) { memcpy(to, from, HEAD_DIM * sizeof *to); }

static void plant(head *h, double noise, uint64_t *state) {
  int64_t *perm = allocate((size_t)h->n * sizeof *perm);
  for (int64_t i = 0; i < h->n; i++) perm[i] = i;
  for (int64_t i = h->n - 1; i > 0; i--) {
    int64_t j = (int64_t)(splitmix(state) % (uint64_t)(i + 1)), t = perm[i];
    perm[i] = perm[j], perm[j] = t;
  }
  for (int64_t i = 0; i < h->n; i++) copy_row(h->q + i * HEAD_DIM, h->k + perm[i] * HEAD_DIM);
  fill_gauss(h->q, h->n * HEAD_DIM, noise, state);
  h->scale = 0.25f;
  free(perm);
}

static void cluster(head *h, uint64_t *state) {
  float *centre = new_rows(CENTRES);
  fill_gauss(centre, CENTRES * HEAD_DIM, 1, state);
  for (int64_t i = 0; i < h->n; i++) {
    copy_row(h->q + i * HEAD_DIM, centre + splitmix(state) % CENTRES * HEAD_DIM);
    copy_row(h->k + i * HEAD_DIM, centre + splitmix(state) % CENTRES * HEAD_DIM);
  }
  fill_gauss(h->q, h->n * HEAD_DIM, 0.5, state);
  fill_gauss(h->k, h->n * HEAD_DIM, 0.5, state);
  free(centre);
}

static head read_head(const source *s) {
  head h = {0, 1, 0.125f, NULL, NULL, NULL};
  int64_t n_key, n_value;
  h.q = read_activations(s->path, "q", &h.n);
  h.k = read_activations(s->path, "k", &n_key);
  h.v = read_activations(s->path, "v", &n_value);
  if (h.n != n_key || h.n != n_value)
    fprintf(stderr, "%s: q, k and v differ in length\n", s->path), exit(1);
  return h;
}

static head make_head(data_set set, uint64_t seed) {
  head h = {MADE_N, 0, 0.125f, new_rows(MADE_N), new_rows(MADE_N), new_rows(MADE_N)};
  uint64_t state = (seed + 1) * 0xD1342543DE82EF95u + (uint64_t)set;
  fill_gauss(h.v, h.n * HEAD_DIM, 1, &state);
  if (set == CLUSTERED) {
    cluster(&h, &state);
    return h;
  }
  fill_gauss(h.k, h.n * HEAD_DIM, 1, &state);
  if (set == GAUSS)
    fill_gauss(h.q, h.n * HEAD_DIM, 1, &state);
  else
    plant(&h, set == PLANTED_1 ? 0.1 : set == PLANTED_3 ? 0.3 : 0.5, &state);
  return h;
}

static void free_head(head *h) { free(h->q), free(h->k), free(h->v); }

#endif
