/* The order of the sources: that in which a reader needs them, in which a compiler can take them, and in
   which hyperattn.h holds them. A file uses only what stands above it. A program may include this file in
   place of hyperattn.h, with the same macros: debuggers and editors then show src/. */
#include "manual.h"

#ifndef HYPERATTN_H
#define HYPERATTN_H

#include "api.h"
#endif /* HYPERATTN_H */

#if defined(HYPERATTN_IMPLEMENTATION) && !defined(HYPERATTN_IMPLEMENTED)
#define HYPERATTN_IMPLEMENTED

#include "glossary.h"
#include "portability.h"
#include "numbers.h"
#include "elements.h"
#include "random.h"
#include "kernel.h"
#include "kernel_scalar.h"
#include "kernel_scan_scalar.h"
#include "kernel_shared.h"
#include "kernel_avx512.h"
#include "kernel_scan_avx512.h"
#include "kernel_avx512_bf16.h"
#include "kernel_amx.h"
#include "kernel_avx2.h"
#include "kernel_scan_avx2.h"
#include "kernel_neon.h"
#include "kernel_scan_neon.h"
#include "kernel_neon_bf16.h"
#include "detect.h"
#include "arrays.h"
#include "plan.h"
#include "workspace.h"
#include "validation.h"
#include "tiles.h"
#include "visibility.h"
#include "states.h"
#include "masking.h"
#include "chunks.h"
#include "skipping.h"
#include "hashing.h"
#include "ordering.h"
#include "heldout.h"
#include "probing.h"
#include "best.h"
#include "columns.h"
#include "pairing.h"
#include "exact.h"
#include "sketch.h"
#include "scan.h"
#include "words.h"
#include "estimating.h"
#include "sampling.h"
#include "scanning.h"
#include "mending.h"
#include "few.h"
#include "rectangle.h"
#include "capping.h"
#include "attending.h"
#include "sieve.h"
#include "judging.h"
#include "trials.h"
#include "auditing.h"
#include "report.h"
#include "tallying.h"
#include "stages.h"
#include "resolve.h"
#include "phases.h"
#include "entry.h"
#include "many.h"

#include "undef.h"
#endif /* HYPERATTN_IMPLEMENTATION */

#include "licence.h"
