// The rate at which the machine's memory can be read, by a plain sum of vectors; and memory in pages of a
// size.
#ifndef READING_H
#define READING_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 1 << 21, READ_TASK = 1 << 18 };

// The sum of memory that is aligned to 64 bytes, of a multiple of 256 bytes.
static inline uint64_t read_bytes(const void *from, size_t bytes) {
  typedef uint64_t line __attribute__((vector_size(64)));
  const line *at = (const line *)from, *end = at + bytes / sizeof *at;
  line sum[4] = {{0}};
  for (; at < end; at += 4) sum[0] += at[0], sum[1] += at[1], sum[2] += at[2], sum[3] += at[3];
  sum[0] += sum[1] + sum[2] + sum[3];
  for (int i = 1; i < 8; i++) sum[0][0] += sum[0][i];
  return sum[0][0];
}

// Memory of whole huge pages, for which the system is asked or which it is asked not to take.
static inline void *allocate_pages(size_t bytes, int is_huge) {
  size_t whole = (bytes / HUGE_PAGE + 1) * HUGE_PAGE;
  void *p = aligned_alloc(HUGE_PAGE, whole);
  if (!p) fprintf(stderr, "out of memory\n"), exit(1);
#ifdef MADV_HUGEPAGE
  madvise(p, whole, is_huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
  (void)is_huge;
#endif
  return p;
}

// The share of the mappings around an address that lies in huge pages, as Linux has it; else NaN.
static inline double huge_share(const void *at) {
  char line[256];
  unsigned long long begin, end, kilobytes, size = 0, huge = 0;
  int is_it = 0;
  FILE *f = fopen("/proc/self/smaps", "r");
  while (f && fgets(line, sizeof line, f)) {
    if (sscanf(line, "%llx-%llx ", &begin, &end) == 2)
      is_it = begin <= (uintptr_t)at && (uintptr_t)at < end;
    else if (is_it && sscanf(line, "Size: %llu", &kilobytes) == 1)
      size += kilobytes;
    else if (is_it && sscanf(line, "AnonHugePages: %llu", &kilobytes) == 1)
      huge += kilobytes;
  }
  if (f) fclose(f);
  return size ? (double)huge / (double)size : (double)NAN;
}

#endif
