/* Declarations alone bring nothing but the API. */
#include "hyperattn.h"
#ifdef HAI_CHUNK
#error "an internal macro leaks"
#endif

extern unsigned char exact_memory[HYPERATTN_WORKSPACE_BOUND_EXACT(64, 64)];
extern unsigned char hyper_memory[HYPERATTN_WORKSPACE_BOUND(8, 4096, 64, 64, 1024, 256, 160, 100, 96, 16, 12)];

hyperattn_status use(const hyperattn_problem *problem, void *workspace, size_t size);
hyperattn_status use(const hyperattn_problem *problem, void *workspace, size_t size) {
  (void)problem, (void)workspace, (void)size;
  return HYPERATTN_OK;
}
