// What the benches that keep a record share: its head, and the cells of the tables that they print.
#ifndef RECORD_H
#define RECORD_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "gcc " __VERSION__
#endif

// The name of the CPU and its family, which a name like "AMD EPYC" does not tell, as Linux has them.
static inline void print_cpu(FILE *to) {
  char line[256];
  int family = 0;
  FILE *f = fopen("/proc/cpuinfo", "r");
  while (f && fgets(line, sizeof line, f)) {
    const char *value = strchr(line, ':');
    if (value && !strncmp(line, "cpu family", 10)) family = atoi(value + 1);
    if (!value || strncmp(line, "model name", 10)) continue;
    fprintf(to, "# CPU:%.*s", (int)strcspn(value + 1, "\n"), value + 1);
    if (family) fprintf(to, ", family %d", family);
    fprintf(to, "\n");
    break;
  }
  if (f) fclose(f);
}

// A CSV file to append to: what was run, where and when; in a file that is new, the columns' names stand
// behind that.
static inline FILE *open_record(const char *path, const char *program, const char *columns, int rounds,
                                int argc, char **argv) {
  char date[16];
  time_t t = time(NULL);
  FILE *to = fopen(path, "a");
  if (!to || fseek(to, 0, SEEK_END)) fprintf(stderr, "cannot write %s\n", path), exit(1);
  int is_new = !ftell(to);
  fprintf(to, "# command: %s", program);
  for (int i = 1; i < argc; i++) fprintf(to, " %s", argv[i]);
  fprintf(to, "\n");
  print_cpu(to);
  strftime(date, sizeof date, "%Y-%m-%d", gmtime(&t));
  fprintf(to, "# hyperattn.h by %s; date: %s; rounds: %d\n", COMPILER, date, rounds);
  if (is_new) fprintf(to, "%s\n", columns);
  return to;
}

// A number at the end of a cell of a width, or a dash.
static inline void cell(const char *format, int width, double x) {
  char text[32] = "-";
  if (!isnan(x)) snprintf(text, sizeof text, format, x);
  printf(" %*s |", width, text);
}

// A number between the commas of a record, or nothing.
static inline void field(FILE *to, const char *format, double x) {
  if (!isnan(x)) fprintf(to, format, x);
  fprintf(to, ",");
}

#endif
