/* The authors' code, held to its words: cases recorded from it (tests/data/golden/README.md), their random choices fed
   into the library's own stages, arithmetic by the library's own blocks, samples and split.
   Runs every case folder of tests/data/golden, and of the folder HYPERATTN_GOLDEN where that is set. */
#include "support.h"

#include <dirent.h>

#ifndef TEST_DATA
#define TEST_DATA "tests/data"
#endif

typedef struct golden_call {
  int64_t heads, n_query, n_key, samples;
  int32_t *q_order, *k_order, *columns; /* [heads][..] */
} golden_call;

typedef struct golden_case {
  int64_t heads, n, d, block_size, sample_size, min_seq_len;
  int causal, n_calls;
  float scale;
  golden_call calls[32];
} golden_case;

static void *read_file(const char *folder, const char *name, size_t bytes) {
  char path[4200];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *f = fopen(path, "rb");
  void *data = test_alloc(bytes);
  if (!f || fread(data, 1, bytes, f) != bytes) fail_msg("cannot read %s", path);
  fclose(f);
  return data;
}

/* Fixtures are little-endian; floats and int32 alike are words of four bytes. */
static void *read_words(const char *folder, const char *name, int64_t n) {
  uint32_t *words = (uint32_t *)read_file(folder, name, (size_t)n * 4);
  for (int64_t i = 0; i < n; i++) {
    const unsigned char *b = (const unsigned char *)&words[i];
    uint32_t w = (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
    memcpy(&words[i], &w, 4);
  }
  return words;
}

static golden_case read_case(const char *folder) {
  golden_case g;
  char path[4200], name[64];
  double scale;
  long long heads, n, d, block, sample, min_len;
  memset(&g, 0, sizeof g);
  snprintf(path, sizeof path, "%s/case.txt", folder);
  FILE *f = fopen(path, "r");
  if (!f) fail_msg("cannot open %s", path);
  if (fscanf(f,
             "heads=%lld n=%lld d=%lld block_size=%lld sample_size=%lld min_seq_len=%lld causal=%d "
             "scale=%lf calls=%d",
             &heads, &n, &d, &block, &sample, &min_len, &g.causal, &scale, &g.n_calls) != 9)
    fail_msg("cannot parse %s", path);
  g.heads = heads, g.n = n, g.d = d, g.block_size = block, g.sample_size = sample, g.min_seq_len = min_len;
  g.scale = (float)scale;
  assert_in_range(g.n_calls, 0, 32);
  for (int c = 0; c < g.n_calls; c++) {
    long long h, nq, nk, m;
    int id;
    if (fscanf(f, " call%d heads=%lld n_query=%lld n_key=%lld samples=%lld", &id, &h, &nq, &nk, &m) != 5 ||
        id != c)
      fail_msg("cannot parse call %d of %s", c, path);
    golden_call *call = &g.calls[c];
    call->heads = h, call->n_query = nq, call->n_key = nk, call->samples = m;
    snprintf(name, sizeof name, "call%d.q_order.i32", c);
    call->q_order = (int32_t *)read_words(folder, name, h * nq);
    snprintf(name, sizeof name, "call%d.k_order.i32", c);
    call->k_order = (int32_t *)read_words(folder, name, h * nk);
    snprintf(name, sizeof name, "call%d.samples.i32", c);
    call->columns = (int32_t *)read_words(folder, name, h * m);
  }
  fclose(f);
  return g;
}

/* Puts the authors' order and columns where hai_stage_order and hai_stage_columns would leave theirs. */
static void inject(hai_job *job, const hai_stage *stage, const golden_call *call, int64_t entry) {
  const hai_plan *plan = job->plan;
  assert_int_equal(job->rect.n_query, call->n_query);
  assert_int_equal(job->rect.n_key, call->n_key);
  if (stage->run == hai_stage_order && job->head < 0) {
    for (int64_t i = 0; i < call->n_key; i++)
      hai_key_order(job)[i] = (int32_t)job->rect.key_begin + call->k_order[entry * call->n_key + i];
  } else if (stage->run == hai_stage_order) {
    for (int64_t i = 0; i < call->n_query; i++)
      hai_query_order(job)[i] = (int32_t)job->rect.query_begin + call->q_order[entry * call->n_query + i];
  } else {
    float weight = logf((float)call->n_key / (float)call->samples);
    hai_counts(job)[1] = (int32_t)call->samples;
    assert_int_equal(hai_counts(job)[0], 0);
    assert_true(call->samples <= plan->sample_size);
    int32_t *columns = call->columns + entry * call->samples;
    for (int64_t i = 1; i < call->samples; i++) /* the library's columns ascend */
      for (int64_t j = i; j && columns[j] < columns[j - 1]; j--) {
        int32_t swap = columns[j];
        columns[j] = columns[j - 1], columns[j - 1] = swap;
      }
    for (int64_t i = 0; i < call->samples; i++)
      hai_columns(job, 0)[i] = hai_column_at(job, columns[i], hai_key_parts(plan, call->n_key), weight);
  }
}

/* The authors approximate every rectangle of min_seq_len keys, also where that touches more pairs than exact
   attention would and the library therefore does not. */
static void resolve_as_authors(hai_plan *plan, const call *c) {
  assert_int_equal(hai_resolve(plan, &c->problem, &c->params), HYPERATTN_OK);
  for (plan->depth = 0; plan->square >> (plan->depth + 1) >= plan->min_seq_len;) plan->depth++;
  plan->outer = !c->problem.causal && c->problem.n_key >= plan->min_seq_len;
  plan->max_rects = plan->depth ? (int64_t)1 << (plan->depth - 1) : 1;
  hai_resolve_stages(plan);
  hai_resolve_layout(plan);
}

static void run_case(const char *folder) {
  golden_case g = read_case(folder);
  call c;
  memset(&c, 0, sizeof c);
  c.problem.batch = 1, c.problem.n_heads = c.problem.n_kv_heads = g.heads;
  c.problem.n_query = c.problem.n_key = g.n, c.problem.head_dim = c.problem.value_dim = g.d;
  c.problem.causal = g.causal, c.problem.scale = g.scale;
  int64_t size = g.heads * g.n * g.d;
  c.q = (float *)read_words(folder, "q.f32", size);
  c.k = (float *)read_words(folder, "k.f32", size);
  c.v = (float *)read_words(folder, "v.f32", size);
  c.out = (float *)test_alloc((size_t)size * sizeof(float));
  c.lse = (float *)test_alloc((size_t)(g.heads * g.n) * sizeof(float));
  bind(&c);
  c.params = hyperattn_paper_params();
  c.params.block_size = g.block_size, c.params.sample_size = g.sample_size,
  c.params.min_seq_len = g.min_seq_len;

  hai_plan plan;
  resolve_as_authors(&plan, &c);
  assert_int_equal(hai_plan_levels(&plan), g.n_calls); /* level 0 is the deepest, as call 0 is */
  size_t bytes = hai_layout_size(&plan.layout, 1);
  void *workspace = test_alloc(bytes);
  assert_int_equal(hai_check_buffers(&plan, workspace, bytes, 1), HYPERATTN_OK);
  for (int phase = 0; phase < hai_phases(&plan); phase++)
    for (int64_t i = 0; i < hai_phase_tasks(&plan, phase); i++) {
      hai_job job;
      const hai_stage *stage = hai_job_at(&job, &plan, workspace, phase, i, 0);
      if (stage->run == hai_stage_order || stage->run == hai_stage_columns)
        inject(&job, stage, &g.calls[job.level],
               job.kv_head * hai_plan_rects(&plan, job.level) + job.rect.index);
      else
        hai_run(&plan, workspace, phase, i, 0);
    }

  float *want = (float *)read_words(folder, "out.f32", size),
        *want_lse = (float *)read_words(folder, "lse.f32", g.heads * g.n);
  double *out = (double *)test_alloc((size_t)size * sizeof(double));
  double *lse = (double *)test_alloc((size_t)(g.heads * g.n) * sizeof(double));
  for (int64_t i = 0; i < size; i++) out[i] = (double)want[i];
  for (int64_t i = 0; i < g.heads * g.n; i++) lse[i] = (double)want_lse[i];
  print_message("%s: out %.2g, lse %.2g\n", folder, relative_error(c.out, out, size),
                lse_error(c.lse, lse, g.heads * g.n));
  assert_below(relative_error(c.out, out, size), 2e-5);
  assert_below(lse_error(c.lse, lse, g.heads * g.n), 2e-5);
  for (int i = 0; i < g.n_calls; i++)
    free(g.calls[i].q_order), free(g.calls[i].k_order), free(g.calls[i].columns);
  free(want), free(want_lse), free(out), free(lse), free(workspace);
  free_call(&c);
}

static int run_folder(const char *folder) {
  DIR *dir = opendir(folder);
  int n = 0;
  if (!dir) fail_msg("cannot open %s", folder);
  for (struct dirent *entry; (entry = readdir(dir));) {
    char path[4100], file[4200];
    snprintf(path, sizeof path, "%.2000s/%.255s", folder, entry->d_name);
    snprintf(file, sizeof file, "%s/case.txt", path);
    FILE *f = entry->d_name[0] == '.' ? NULL : fopen(file, "r");
    if (!f) continue;
    fclose(f);
    run_case(path);
    n++;
  }
  closedir(dir);
  return n;
}

static void test_cases_kept_here(void **state) {
  (void)state;
  assert_int_equal(run_folder(TEST_DATA "/golden"), 3);
}

static void test_cases_kept_elsewhere(void **state) {
  (void)state;
  const char *folder = getenv("HYPERATTN_GOLDEN");
  if (!folder || !*folder) skip();
  assert_true(run_folder(folder) > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases_kept_here),
                                     cmocka_unit_test(test_cases_kept_elsewhere)};
  return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
