// What the environment asks for.
#ifndef GGML_SETTINGS_H
#define GGML_SETTINGS_H

#include "hyperattn.h"

typedef struct settings {
  const char *method;  // HYPERATTN_GGML
  hyperattn_params params;
  int forced;      // nothing is refused because ggml is faster at it
  int statistics;  // HYPERATTN_GGML_STATS
} settings;

// Reads HYPERATTN_GGML, HYPERATTN_GGML_TOLERANCE, HYPERATTN_GGML_MIN_SEQ_LEN and HYPERATTN_GGML_STATS. NULL, or a
// sentence that names the mistake.
const char *settings_read(settings *s);

#endif
