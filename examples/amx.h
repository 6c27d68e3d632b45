// AMX's registers are large, so Linux gives them only to processes that ask for them. hyperattn.h does not
// ask, since that is for the application to decide. Once they are granted, HYPERATTN_ISA_AUTO uses them where
// queries, keys and values are BF16.
#ifndef EXAMPLES_AMX_H
#define EXAMPLES_AMX_H

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
long syscall(long number, ...);

static inline int ask_for_amx(void) {  // returns 1 if granted
  const long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#else
static inline int ask_for_amx(void) { return 0; }
#endif

#endif
