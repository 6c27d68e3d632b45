// An array that grows as it must.
#ifndef GGML_GROW_H
#define GGML_GROW_H

#include <stdint.h>
#include <stdlib.h>

// Makes room for `need` elements, and half as many more. NULL: memory is short, and the array is as it was; where nothing
// was needed, the array itself.
static inline void *grow(void *array, int64_t *room, int64_t need, size_t element) {
  if (need <= *room) return array;
  int64_t more = need + need / 2 + 16;
  void *moved = realloc(array, (size_t)more * element);
  if (moved) *room = more;
  return moved;
}

#endif
