/* The shared library: the implementation, which exports what HYPERATTN_API stands before. */
#ifdef _WIN32
#define HYPERATTN_API __declspec(dllexport)
#else
#define HYPERATTN_API __attribute__((visibility("default")))
#endif
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"
