// What programs with long options share: complaints that end them, memory, options, files. Before it is included,
// PROGRAM is their name, and usage[] what --help prints.
#ifndef EXAMPLES_PROGRAM_H
#define EXAMPLES_PROGRAM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *format, const char *what) {
  fputs(PROGRAM ": ", stderr), fprintf(stderr, format, what), fputc('\n', stderr);
  exit(1);
}
static void misuse(const char *what, const char *value) {
  fprintf(stderr, PROGRAM ": %s%s%s\n%s", what, value ? " " : "", value ? value : "", usage);
  exit(2);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) die("%s", "out of memory");
  return memory;
}

// One of these is set: where its value goes. Integers are least .. 2^31 - 1, numbers 0 to 1e12.
typedef struct option {
  const char *name;
  const char **text;
  int64_t *integer, least;
  double *number;
  int *flag;
} option;

static void set_option(const option *o, const char *value) {
  char *end = NULL;
  if (o->text) {
    *o->text = value;
  } else if (o->integer) {
    *o->integer = strtoll(value, &end, 10);
    if (end == value || *end || *o->integer < o->least || *o->integer > INT32_MAX)
      misuse(o->name, "is out of range");
  } else {
    *o->number = strtod(value, &end);
    if (end == value || *end || !(*o->number >= 0 && *o->number < 1e12)) misuse(o->name, "is out of range");
  }
}

// Reads the options of a table of n; *first is the one argument that is none.
static void read_table(int argc, char **argv, const option *table, size_t n, const char **first) {
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "--help")) fputs(usage, stdout), exit(0);
    size_t k = 0;
    while (k < n && strcmp(argv[i], table[k].name) != 0) k++;
    if (k == n && argv[i][0] != '-' && !*first) {
      *first = argv[i];
    } else if (k == n) {
      misuse("there is no", argv[i]);
    } else if (table[k].flag) {
      *table[k].flag = 1;
    } else if (++i == argc) {
      misuse(table[k].name, "needs a value");
    } else {
      set_option(&table[k], argv[i]);
    }
  }
}

// All of a file, with a 0 behind it, which *size does not count. The caller frees it.
static char *read_file(const char *path, size_t *size) {
  FILE *file = path ? fopen(path, "rb") : NULL;
  if (!file) die("%s: cannot be read", path ? path : "--text");
  size_t room = 1 << 16, n, got = 0;
  char *text = allocate(room, 1);
  while ((n = fread(text + got, 1, room - got - 1, file)) > 0) {
    got += n;
    if (got == room - 1 && !(text = realloc(text, room *= 2))) die("%s", "out of memory");
  }
  if (ferror(file)) die("%s: cannot be read", path);
  fclose(file);
  text[got] = 0;
  *size = got;
  return text;
}

#endif
