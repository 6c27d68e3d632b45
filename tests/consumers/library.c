#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"
