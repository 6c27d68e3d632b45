// The needle test: one query from the later part of a head is changed until one key from its earlier part has
// most of its weight, alone among all queries. Does the query keep it?
#ifndef SCAN_NEEDLES_H
#define SCAN_NEEDLES_H

#include "scan_measure.h"

#define NEEDLE_WEIGHT 0.9  // of the key, at least
#define LOST 0.5           // a query whose relative error is above this has lost its key

enum { NEEDLE_STEPS = 60 };

typedef struct needle {
  int64_t query, key;
  float before[HEAD_DIM];  // the query as it was
  float exact[HEAD_DIM];   // its result
  double weight;
} needle;

typedef struct needles {   // what became of them at one point
  int made, lost, unseen;  // unseen: lost, and the call's own estimate of that query's error is below LOST
  double weight, error, worst, estimate;  // sums of made, but for the worst error
} needles;

// The mean of every seventh key of the first half.
static void mean_key(const head *h, double *mean) {
  int64_t count = 0;
  memset(mean, 0, HEAD_DIM * sizeof *mean);
  for (int64_t j = 0; j < h->n / 2; j += 7, count++)
    for (int t = 0; t < HEAD_DIM; t++) mean[t] += (double)h->rows[1][j * HEAD_DIM + t];
  for (int t = 0; t < HEAD_DIM && count; t++) mean[t] /= (double)count;
}

// The result of the needle's query, which stands in its place, and its key's weight, by all keys that it sees. s
// has room for all scores.
static void meet_all(const head *h, const hyperattn_problem *p, needle *x, double *s) {
  int64_t first, last;
  double sum = 0, out[HEAD_DIM] = {0};
  see(p, x->query, &first, &last);
  double high = scores_of(p, (numbers){h->rows[0], h->rows[1], h->rows[2]}, 0, x->query, first, last, s);
  for (int64_t j = first; j <= last; j++) {
    double w = exp(s[j - first] - high);
    sum += w;
    for (int t = 0; t < HEAD_DIM; t++) out[t] += w * (double)h->rows[2][j * HEAD_DIM + t];
  }
  for (int t = 0; t < HEAD_DIM; t++) x->exact[t] = (float)(out[t] / sum);
  x->weight = exp(s[x->key - first] - high) / sum;
}

// A number in begin .. end - 1.
static int64_t between(int64_t begin, int64_t end, uint64_t *random) {
  return begin + (int64_t)(splitmix_uniform(random) * (double)(end - begin));
}

// Puts the next needle into the head: its query is moved towards the key, away from the mean key, until the key
// has its weight. Returns 0 where that cannot be.
static int put_needle(head *h, const hyperattn_problem *p, const double *mean, uint64_t *random, double *s,
                      needle *x) {
  double reach = 0.5;
  x->query = between(h->n * 5 / 8, h->n, random), x->key = between(h->n / 1024, h->n * 7 / 16, random);
  float *query = h->rows[0] + x->query * HEAD_DIM, *key = h->rows[1] + x->key * HEAD_DIM;
  memcpy(x->before, query, sizeof x->before);
  for (int step = 0; step < NEEDLE_STEPS; step++, reach *= 1.15) {
    for (int t = 0; t < HEAD_DIM; t++)
      query[t] = x->before[t] + (float)(reach * ((double)key[t] - mean[t]));
    meet_all(h, p, x, s);
    if (x->weight >= NEEDLE_WEIGHT) return 1;
  }
  return 0;
}

static void take_needle(head *h, const needle *x) {
  memcpy(h->rows[0] + x->query * HEAD_DIM, x->before, sizeof x->before);
}

// A call at a point, with the needle in its place.
static inline void seek(caller *c, hyperattn_problem p, const point *pt, int seed, const needle *x,
                 float *estimates, needles *found) {
  hyperattn_report report = {0};
  hyperattn_params params = pt->params;
  params.seed = (uint64_t)seed;
  if (params.method == HYPERATTN_SCAN)
    p.query_error = estimates;
  else
    p.report = &report;
  attend(c, &p, &params);
  double error = relative(row_squares((const float *)p.out.data + x->query * HEAD_DIM, x->exact));
  double estimate = (double)(p.query_error ? estimates[x->query] : report.max_error);
  found->made++, found->weight += x->weight, found->error += error, found->estimate += estimate;
  found->lost += error > LOST, found->unseen += error > LOST && estimate <= LOST;
  found->worst = fmax(found->worst, error);
}

#endif
