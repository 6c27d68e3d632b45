// How the parts of this program report failure: they return 0 and write a sentence.
#ifndef LLM_ERROR_H
#define LLM_ERROR_H

#include <stdarg.h>
#include <stdio.h>

typedef struct llm_error {
  char text[320];
} llm_error;

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static inline int
llm_fail(llm_error *error, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->text, sizeof error->text, format, arguments);
  va_end(arguments);
  return 0;
}

#endif
