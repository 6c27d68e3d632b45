// What a thread does between two looks at something that another thread is about to change; looks are counted from 0.
#ifndef EXAMPLES_PAUSE_H
#define EXAMPLES_PAUSE_H

#include <sched.h>

static inline void pause_between_looks(int look) {
  if (look % 64 == 63) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

#endif
