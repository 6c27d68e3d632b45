// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): random numbers
// from a state of 64 bits, which may begin as any number.
#ifndef EXAMPLES_SPLITMIX_H
#define EXAMPLES_SPLITMIX_H

#include <stdint.h>

static inline uint64_t splitmix(uint64_t *state) {
  uint64_t x = *state += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// Uniform in the open interval (0, 1), in steps of 2^-53.
static inline double splitmix_uniform(uint64_t *state) {
  return ((double)(splitmix(state) >> 11) + 0.5) / 9007199254740992.0;
}

#endif
