/* Included before the library, to give it two memory functions, so that it needs no <string.h>. */
#include <stddef.h>
void *fw_memcpy(void *to, const void *from, size_t n);
void *fw_memset(void *to, int byte, size_t n);
#define HYPERATTN_MEMCPY(d, s, n) fw_memcpy(d, s, n)
#define HYPERATTN_MEMSET(d, c, n) fw_memset(d, c, n)
