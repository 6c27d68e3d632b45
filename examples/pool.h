// A small pool of POSIX threads with a parallel_for for hyperattn_parallel. An engine has one already.
// Workers take tasks one by one from a shared counter. Between calls the threads sleep, but before that they
// poll for the next call for a moment: a call of the library has some twenty phases a level, and waking a
// thread takes as long as the smallest of them. While polling they offer their core to others: threads that
// are on one core then take turns, and the system, which sees both ready to run, moves one to an idle core.
// If they slept instead, they would wake each other on the same core, call after call.
#ifndef POOL_H
#define POOL_H

#include "hyperattn.h"
#include "pause.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define POOL_LOOKS 4000  // polls before a thread sleeps: about a twentieth of a millisecond

typedef struct pool {
  int n_workers;  // the caller is worker 0
  pthread_t *threads;
  pthread_mutex_t lock;
  pthread_cond_t start, done;
  atomic_long round;  // counts calls; threads wait for it to move
  atomic_int busy;    // workers of this call that have not finished, the caller among them
  int asleep, stop, next_worker;
  hyperattn_task task;
  void *arg;
  int64_t n_tasks;
  atomic_llong next;
} pool;

static void pool_work(pool *p, int worker) {
  for (int64_t i; (i = atomic_fetch_add(&p->next, 1)) < p->n_tasks;) p->task(p->arg, i, worker);
  if (atomic_fetch_sub(&p->busy, 1) != 1) return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_signal(&p->done);
  pthread_mutex_unlock(&p->lock);
}

static void *pool_thread(void *arg) {
  pool *p = arg;
  pthread_mutex_lock(&p->lock);
  int worker = p->next_worker++;
  for (long seen = 0;;) {
    p->asleep++;
    while (p->round == seen && !p->stop) pthread_cond_wait(&p->start, &p->lock);
    p->asleep--;
    if (p->stop) break;
    seen = p->round;
    pthread_mutex_unlock(&p->lock);
    pool_work(p, worker);
    for (int i = 0; i < POOL_LOOKS && p->round == seen; i++) pause_between_looks(i);
    pthread_mutex_lock(&p->lock);
  }
  pthread_mutex_unlock(&p->lock);
  return NULL;
}

// hyperattn_parallel's parallel_for; context is the pool.
static void pool_for(void *context, int64_t n_tasks, hyperattn_task task, void *arg) {
  pool *p = context;
  if (n_tasks == 1) {  // no thread needs to be woken
    task(arg, 0, 0);
    return;
  }
  pthread_mutex_lock(&p->lock);
  p->task = task, p->arg = arg, p->n_tasks = n_tasks;
  atomic_store(&p->next, 0);
  p->busy = p->n_workers;
  p->round++;
  int asleep = p->asleep;
  pthread_mutex_unlock(&p->lock);
  if (asleep)
    pthread_cond_broadcast(&p->start);  // after unlocking, so that a woken thread finds the lock free
  pool_work(p, 0);
  for (int i = 0; i < POOL_LOOKS && p->busy; i++) pause_between_looks(i);
  pthread_mutex_lock(&p->lock);
  while (p->busy) pthread_cond_wait(&p->done, &p->lock);
  pthread_mutex_unlock(&p->lock);
}

static int pool_open(pool *p, int n_workers) {
  p->n_workers = n_workers;
  p->round = 0;
  p->busy = 0;
  p->asleep = 0;
  p->stop = 0;
  p->next_worker = 1;
  p->threads = malloc((size_t)n_workers * sizeof *p->threads);
  if (!p->threads) return 0;
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->start, NULL);
  pthread_cond_init(&p->done, NULL);
  for (int i = 1; i < n_workers; i++)
    if (pthread_create(&p->threads[i], NULL, pool_thread, p)) return 0;
  return 1;
}

static void pool_close(pool *p) {
  pthread_mutex_lock(&p->lock);
  p->stop = 1;
  pthread_cond_broadcast(&p->start);
  pthread_mutex_unlock(&p->lock);
  for (int i = 1; i < p->n_workers; i++) pthread_join(p->threads[i], NULL);
  free(p->threads);
}

#endif
