/* With unit_b.c: several units of one program, with one implementation, or with a private one in each. */
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"

int unit_b(void);
int main(void) { return hyperattn_default_params().block_size == unit_b() ? 0 : 1; }
