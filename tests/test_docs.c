/* The documentation agrees: examples/minimal.c, the README and the header's manual have the same example, what
   docs/integrating.md shows is in examples/engine.c, and calls are exact where the pages say so. */
#include "calls.h"

#ifndef SOURCE_DIR
#define SOURCE_DIR "."
#endif

static char *read_text(const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", SOURCE_DIR, name);
  FILE *f = fopen(path, "rb");
  if (!f) fail_msg("cannot open %s", path);
  fseek(f, 0, SEEK_END);
  long n = ftell(f);
  rewind(f);
  char *text = (char *)test_alloc((size_t)n + 1);
  assert_int_equal(fread(text, 1, (size_t)n, f), n);
  text[n] = 0;
  fclose(f);
  return text;
}

static void test_the_example_is_the_same_everywhere(void **state) {
  (void)state;
  char *example = read_text("examples/minimal.c"), *readme = read_text("README.md"),
       *header = read_text("hyperattn.h");
  int lines = 0;
  for (char *at = example; *at; at++) lines += *at == '\n';
  assert_in_range(lines, 1, 40);
  assert_non_null(strstr(readme, example));
  char *indented = (char *)test_alloc(strlen(example) + (size_t)lines * 5 + 1), *to = indented;
  for (char *at = example; *at;) {
    if (*at != '\n') memcpy(to, "     ", 5), to += 5;
    while (*at != '\n') *to++ = *at++;
    *to++ = *at++;
  }
  *to = 0;
  assert_non_null(strstr(header, indented));
  free(example), free(readme), free(header), free(indented);
}

/* Drops the spaces that lines begin with. */
static void unindent(char *text) {
  char *to = text;
  for (char *at = text; *at; at++)
    if (*at != ' ' || (to > text && to[-1] != '\n')) *to++ = *at;
  *to = 0;
}

static void test_what_the_integrators_page_shows_is_compiled(void **state) {
  (void)state;
  char *page = read_text("docs/integrating.md"), *example = read_text("examples/engine.c"), *end = page,
       *code;
  int blocks = 0;
  unindent(page), unindent(example);
  while ((code = strstr(end, "```c\n"))) {
    code += 5, end = strstr(code, "```\n");
    assert_non_null(end);
    *end++ = 0, blocks++;
    if (!strstr(example, code)) fail_msg("not in examples/engine.c: %s", code);
  }
  assert_int_equal(blocks, 9);
  free(page), free(example);
}

static int is_approximated(int causal, int64_t n_query, int64_t n_key) {
  static float data[1];
  hyperattn_params params = hyperattn_default_params();
  hyperattn_problem p = hyperattn_tokens_first(1, 8, 2, n_query, n_key, 128, 128, data, data, data, data);
  p.causal = causal;
  return hyperattn_cost(&p, &params) < 1.0f;
}

/* The README, docs/integrating.md and docs/python.md name these lengths. */
static void test_where_the_default_preset_begins_to_approximate(void **state) {
  (void)state;
  assert_false(is_approximated(0, 1087, 1087));
  assert_true(is_approximated(0, 1088, 1088));
  assert_false(is_approximated(1, 1343, 1343));
  assert_true(is_approximated(1, 1344, 1344));
  assert_false(is_approximated(1, 127, 32768)); /* chunks */
  assert_true(is_approximated(1, 128, 32768));
  assert_false(is_approximated(1, 300, 1343));
  assert_true(is_approximated(1, 300, 1344));
  assert_false(is_approximated(1, 1, 131072)); /* decoding */
}

/* What docs/integrating.md says of 64 decode steps; the kernel has a part in the sizes. */
static void test_workspaces_of_decoding(void **state) {
  (void)state;
  static float data[1];
  hyperattn_params params[] = {hyperattn_paper_params(), hyperattn_linear_params(),
                               hyperattn_default_params(), hyperattn_default_params()};
  hyperattn_problem p[64];
  double bytes[4];
  params[3].method = HYPERATTN_EXACT;
  for (int i = 0; i < 64; i++) {
    p[i] = hyperattn_tokens_first(1, 8, 2, 1, 32768, 128, 128, data, data, data, data);
    p[i].causal = 1;
  }
  for (int i = 0; i < 4; i++) bytes[i] = (double)hyperattn_workspace_size_many(p, 64, &params[i], 2);
  print_message("64 decode steps: %.0f, %.0f, %.0f and %.0f bytes\n", bytes[0], bytes[1], bytes[2],
                bytes[3]);
  assert_true(bytes[3] > 0 && bytes[1] < 1.05 * bytes[3] && bytes[2] < 1.05 * bytes[3] &&
              bytes[0] > 5 * bytes[3]);
}

static void test_the_readme_has_both_commands(void **state) {
  (void)state;
  char *readme = read_text("README.md"), *ci = read_text(".ci/run");
  const char *commands[] = {"cmake --workflow --preset demo", "sh tests/run.sh"};
  for (int i = 0; i < 2; i++) {
    assert_non_null(strstr(readme, commands[i]));
    assert_non_null(strstr(ci, commands[i]));
  }
  free(readme), free(ci);
}

/* The header contains the licence, so that every copy has it, as the licence demands. */
static void test_the_header_has_the_licence(void **state) {
  (void)state;
  char *licence = read_text("LICENSE"), *header = read_text("hyperattn.h");
  assert_non_null(strstr(licence, "Copyright (c)"));
  assert_non_null(strstr(header, licence));
  free(licence), free(header);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_the_example_is_the_same_everywhere),
      cmocka_unit_test(test_what_the_integrators_page_shows_is_compiled),
      cmocka_unit_test(test_where_the_default_preset_begins_to_approximate),
      cmocka_unit_test(test_workspaces_of_decoding),
      cmocka_unit_test(test_the_header_has_the_licence),
      cmocka_unit_test(test_the_readme_has_both_commands)};
  return cmocka_run_group_tests_name("docs", tests, NULL, NULL);
}
