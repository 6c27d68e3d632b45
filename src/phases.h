/* ==== 11. Phases =====================================================================================
   Phase by phase, independent tasks: a task is (batch, head, rectangle, chunk), and writes what no other task
   of its phase touches. */

static int hai_phases(const hai_plan *plan) {
  return plan->n_once + hai_plan_levels(plan) * plan->n_steps + plan->reporting;
}

/* The step of a phase, and its level (0 for steps outside levels). */
static hai_step hai_phase_step(const hai_plan *plan, int phase, int *level) {
  int n = phase - plan->n_once;
  hai_step report = {HAI_STAGE_REPORT, 0};
  *level = 0;
  if (n < 0) return plan->once;
  if (n >= hai_plan_levels(plan) * plan->n_steps) return report;
  *level = n / plan->n_steps;
  return plan->steps[n % plan->n_steps];
}

/* Tasks of a phase along each axis but the batch: heads (kv heads first, then query heads), rectangles,
   chunks. */
typedef struct hai_grid {
  hai_index kv_heads, heads, rects, chunks;
} hai_grid;

static hai_grid hai_phase_grid(const hai_plan *plan, hai_stage stage, int level) {
  hai_grid g;
  int once = stage == HAI_STAGE_EXACT || stage == HAI_STAGE_REPORT;
  hai_index n_query = once ? plan->n_query : hai_level_queries(plan, level);
  hai_index n_key = once ? plan->n_key : hai_level_keys(plan, level);
  int of_keys = stage == HAI_STAGE_EXACT || stage == HAI_STAGE_MEANS;
  g.kv_heads = of_keys || stage == HAI_STAGE_HASH || stage == HAI_STAGE_ORDER ? plan->n_kv_heads : 0;
  g.heads = of_keys ? 0 : plan->n_heads;
  g.rects = once ? 1 : hai_plan_rects(plan, level);
  g.chunks = 1;
  switch (stage) {
    case HAI_STAGE_EXACT: g.chunks = hai_ceil_div(n_query * plan->heads_per_kv, HAI_TASK_QUERIES); break;
    case HAI_STAGE_HASH: g.chunks = hai_ceil_div(hai_max(n_query, n_key), HAI_TASK_ROWS); break;
    case HAI_STAGE_MEANS: g.chunks = hai_ceil_div(hai_key_parts(plan, n_key), HAI_TASK_GROUPS); break;
    case HAI_STAGE_JUDGE:
    case HAI_STAGE_WITNESS: g.chunks = hai_judge_chunks(n_key); break;
    case HAI_STAGE_PROBE:
    case HAI_STAGE_MASS:
    case HAI_STAGE_WEIGH: g.chunks = hai_probe_chunks(n_key); break;
    case HAI_STAGE_PAIR:
    case HAI_STAGE_DRAFT:
      g.chunks = hai_ceil_div(hai_query_parts(plan, n_query, n_key), HAI_TASK_GROUPS);
      break;
    case HAI_STAGE_CAP:
      g.chunks = hai_ceil_div(hai_min(plan->sample_size, n_query), HAI_TASK_QUERIES);
      break;
    case HAI_STAGE_ATTEND: g.chunks = hai_ceil_div(n_query, HAI_TASK_QUERIES); break;
    case HAI_STAGE_ORDER:
    case HAI_STAGE_SUM:
    case HAI_STAGE_PIN:
    case HAI_STAGE_COLUMNS:
    case HAI_STAGE_TRY:
    case HAI_STAGE_AUDIT:
    case HAI_STAGE_REPORT: break;
  }
  if (!once && level >= plan->depth && plan->outer_exact && stage != HAI_STAGE_ATTEND)
    g.chunks = 0; /* no choice */
  return g;
}

static int64_t hai_phase_tasks(const hai_plan *plan, int phase) {
  int level;
  hai_stage stage = HAI_AS(hai_stage, hai_phase_step(plan, phase, &level).stage);
  hai_grid g = hai_phase_grid(plan, stage, level);
  int64_t rects = g.rects;
  if (plan->n_query == 0) return 0; /* not even a report: no buffer was asked for */
  return rects * g.chunks * (g.kv_heads + g.heads) * plan->problem->batch;
}

static char *hai_align(void *workspace) {
  uintptr_t slack = HAI_AS(uintptr_t, 0) - HAI_REINTERPRET(uintptr_t, workspace);
  return HAI_AS(char *, workspace) + slack % HAI_ALIGN;
}

/* Task `index` of a phase: which head, rectangle and chunk it is about. */
static hai_stage hai_job_at(hai_job *job, const hai_plan *plan, void *workspace, int phase, int64_t index,
                            int worker) {
  hai_step step = hai_phase_step(plan, phase, &job->level);
  hai_stage stage = HAI_AS(hai_stage, step.stage);
  hai_grid g = hai_phase_grid(plan, stage, job->level);
  hai_index head;
  job->pairing = step.pairing;
  job->audit = stage == HAI_STAGE_WITNESS || stage == HAI_STAGE_AUDIT;
  job->plan = plan;
  job->base = hai_align(workspace);
  job->scratch = job->base + plan->layout.scratch + plan->layout.scratch_bytes * HAI_AS(size_t, worker);
  job->chunk = hai_to_index(index % g.chunks); /* NOLINT(clang-analyzer-core.DivideZero): a task has one */
  index /= g.chunks;
  job->rect = hai_rect_at(plan, job->level, hai_to_index(index % g.rects));
  index /= g.rects;
  head = hai_to_index(index % (g.kv_heads + g.heads));
  job->batch = hai_to_index(index / (g.kv_heads + g.heads));
  job->head = head < g.kv_heads ? -1 : head - g.kv_heads;
  job->kv_head = head < g.kv_heads ? head : job->head / plan->heads_per_kv;
  job->tile = hai_tile_place(job, HAI_NULL, &job->scratch);
  return stage;
}

static void hai_run_hyper(hai_job *job, hai_stage stage) {
  switch (HAI_AS(int, stage)) {
    case HAI_STAGE_HASH: hai_stage_hash(job); break;
    case HAI_STAGE_ORDER: hai_stage_order(job); break;
    case HAI_STAGE_MEANS: hai_stage_means(job); break;
    case HAI_STAGE_PROBE: hai_stage_probe(job); break;
    case HAI_STAGE_SUM: hai_stage_sum(job); break;
    case HAI_STAGE_MASS: hai_stage_mass(job); break;
    case HAI_STAGE_PIN: hai_stage_pin(job); break;
    case HAI_STAGE_WEIGH: hai_stage_weigh(job); break;
    case HAI_STAGE_COLUMNS: hai_stage_columns(job); break;
    case HAI_STAGE_PAIR: hai_stage_pair(job); break;
    case HAI_STAGE_CAP: hai_stage_cap(job); break;
    default: hai_stage_attend(job);
  }
}

static void hai_run_judging(hai_job *job, hai_stage stage) {
  switch (HAI_AS(int, stage)) {
    case HAI_STAGE_DRAFT: hai_stage_draft(job); break;
    case HAI_STAGE_TRY: hai_stage_try(job); break;
    case HAI_STAGE_AUDIT: hai_stage_audit(job); break;
    case HAI_STAGE_REPORT: hai_stage_report(job); break;
    default: hai_stage_judge(job);
  }
}

HAI_APART void hai_run(const hai_plan *plan, void *workspace, int phase, int64_t index, int worker) {
  hai_job job;
  hai_stage stage = hai_job_at(&job, plan, workspace, phase, index, worker);
  uint32_t before = plan->kernel->enter ? plan->kernel->enter() : 0;
  if (stage == HAI_STAGE_EXACT)
    hai_stage_exact(&job);
  else if (HAI_JUDGING && stage >= HAI_STAGE_JUDGE)
    hai_run_judging(&job, stage);
  else if (HAI_HYPER)
    hai_run_hyper(&job, stage);
  if (plan->kernel->leave) plan->kernel->leave(before);
}
