// ggml's own threads at work on the phases of one call of the library, since a second pool of threads would spin beside
// ggml's between calls: the team of OpenMP where ggml has one, else those of a CPU backend that runs a node of ours.
#ifndef GGML_CREW_H
#define GGML_CREW_H

#include <stdint.h>

#include "host.h"

// What threads do together: phases one after the other, the tasks of each in any order.
typedef struct crew_work {
  int n_phase;
  int64_t (*n_task)(const void *work, int phase);
  void (*run)(const void *work, int phase, int64_t task, int worker);
  const void *work;
  int is_short;  // over before a thread could be made for it
} crew_work;

typedef struct crew {
  const host *host;
  int n_threads;
  // of OpenMP's runtime, the one that ggml uses; NULL where it uses none
  void (*team)(void (*function)(void *), void *argument, unsigned n_threads, unsigned flags);
  int (*thread_number)(void), (*team_size)(void);
  ggml_backend_t cpu;  // where ggml has no OpenMP; made when it is first needed
} crew;

void crew_open(crew *c, const host *h);
void crew_close(crew *c);
const char *crew_route(const crew *c);

// Runs it; workers are 0 .. n_threads - 1. 0: ggml could not.
int crew_run(crew *c, const crew_work *work);

#endif
