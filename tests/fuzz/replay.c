/* Runs a fuzz target on its arguments: on files, and on every file of folders. */
#define _POSIX_C_SOURCE 200809L
#include "fuzz.h"

#include <dirent.h>
#include <sys/stat.h>

static int replay_file(const char *path) {
  FILE *file = fopen(path, "rb");
  long size;
  if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET)) {
    perror(path);
    exit(1);
  }
  /* of the exact size, so that sanitizers see a read past the end */
  uint8_t *data = (uint8_t *)malloc(size ? (size_t)size : 1);
  if (!data || fread(data, 1, (size_t)size, file) != (size_t)size) {
    perror(path);
    exit(1);
  }
  fclose(file);
  if (getenv("REPLAY_NAMES")) fprintf(stderr, "%s\n", path);
  LLVMFuzzerTestOneInput(data, (size_t)size);
  free(data);
  return 1;
}

static int replay(const char *path) {
  DIR *folder = opendir(path);
  int n = 0;
  if (!folder) return replay_file(path);
  for (struct dirent *entry; (entry = readdir(folder));) {
    char inner[4096];
    struct stat status;
    snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
    if (!stat(inner, &status) && S_ISREG(status.st_mode)) n += replay_file(inner);
  }
  closedir(folder);
  return n;
}

int main(int argc, char **argv) {
  int n = 0;
  for (int i = 1; i < argc; i++) n += replay(argv[i]);
  printf("%d inputs replayed\n", n);
  return n ? 0 : 1;
}
