#ifdef HYPERATTN_STATIC
#define HYPERATTN_IMPLEMENTATION
#endif
#include "hyperattn.h"

int unit_b(void);
int unit_b(void) { return (int)hyperattn_default_params().block_size; }
