/* Declarations, the implementation, and both once more: the second time must add nothing. */
#include "hyperattn.h"
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"
#include "hyperattn.h"

int main(void) { return hyperattn_detect_isa() == HYPERATTN_ISA_AUTO; }
