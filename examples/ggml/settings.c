#include "settings.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// A variable's number, or what it is without one. 0: it is set, but not to a number in the range.
static int read_number(const char *name, double least, double most, double *number) {
  const char *text = getenv(name);
  if (!text || !*text) return 1;
  char *end;
  *number = strtod(text, &end);
  return !*end && *number >= least && *number <= most;
}

const char *settings_read(settings *s) {
  const char *method = getenv("HYPERATTN_GGML");
  *s = (settings){.method = method && *method ? method : "exact", .params = hyperattn_default_params()};
  s->forced = !strcmp(s->method, "force");
  int is_paper = !strcmp(s->method, "paper");
  if (s->forced || !strcmp(s->method, "exact") || !strcmp(s->method, "off"))
    s->params.method = HYPERATTN_EXACT;
  else if (!strcmp(s->method, "linear"))
    s->params = hyperattn_linear_params();
  else if (is_paper)
    s->params = hyperattn_paper_params();
  else if (strcmp(s->method, "default"))
    return "HYPERATTN_GGML is none of exact, default, linear, paper, force or off";
  double tolerance = (double)s->params.tolerance, length = (double)s->params.min_seq_len, statistics = 0;
  if (!read_number("HYPERATTN_GGML_TOLERANCE", 0, 1e6, &tolerance))
    return "HYPERATTN_GGML_TOLERANCE is not a number from 0 to 1e6";
  if (tolerance > 0 && is_paper)
    return "HYPERATTN_GGML_TOLERANCE needs probes, which HYPERATTN_GGML=paper has not";
  if (!read_number("HYPERATTN_GGML_MIN_SEQ_LEN", 1, 1e9, &length) || length != floor(length))
    return "HYPERATTN_GGML_MIN_SEQ_LEN is not a whole number from 1 to 1e9";
  if (!read_number("HYPERATTN_GGML_STATS", 0, 1, &statistics))
    return "HYPERATTN_GGML_STATS is neither 0 nor 1";
  s->params.tolerance = (float)tolerance;
  s->params.min_seq_len = (int64_t)length;
  s->statistics = statistics > 0;
  return NULL;
}
