/* Phases. A step is a stage at a level, or before or after the levels, in the order in which they run; a
   phase is a step with those behind it that may run beside it. A task is (step, batch, head, rectangle,
   chunk), and writes nothing that another task of its phase touches. */

static int hai_steps(const hai_plan *plan) {
  return plan->n_before + hai_plan_levels(plan) * plan->n_per_level + plan->n_after;
}

/* The stage of a step, and its level; -1 before and after the levels. */
static const hai_stage *hai_step_stage(const hai_plan *plan, int step, int *level) {
  int levels = hai_plan_levels(plan), n = step - plan->n_before;
  *level = -1;
  if (n >= levels * plan->n_per_level) {
    step -= (levels - 1) * plan->n_per_level;
  } else if (n >= 0) {
    *level = n / plan->n_per_level;
    step -= *level * plan->n_per_level;
  }
  return &hai_stages[plan->stages[step]];
}

static int hai_is_beside(const hai_plan *plan, int step) {
  int level;
  return HAI_HYPER && (hai_step_stage(plan, step, &level)->traits & HAI_BESIDE);
}

static int hai_phases(const hai_plan *plan) {
  return hai_steps(plan) - hai_plan_levels(plan) * plan->n_beside + plan->begins_beside;
}

/* The first step of a phase. */
static int hai_phase_begin(const hai_plan *plan, int phase) {
  int of_level = plan->n_per_level - plan->n_beside, begin = 0, levels;
  if (!HAI_HYPER) return phase; /* no levels */
  if (plan->begins_beside && phase-- == 0) return 0;
  if (HAI_SIMD && phase > plan->n_before && of_level > 0) { /* whole levels at once */
    levels = (phase - plan->n_before) / of_level;
    levels = levels < hai_plan_levels(plan) ? levels : hai_plan_levels(plan);
    begin = plan->n_before + levels * plan->n_per_level;
    phase -= plan->n_before + levels * of_level;
  }
  while (hai_is_beside(plan, begin) || phase-- > 0) begin++;
  return begin;
}

/* One past the last step of the phase that begins with `begin`. */
static int hai_phase_end(const hai_plan *plan, int begin) {
  int end = begin + 1;
  while (end < hai_steps(plan) && hai_is_beside(plan, end)) end++;
  return end;
}

/* Tasks of a step along each axis but the batch: heads (kv heads first, then query heads), rectangles,
   chunks. */
typedef struct hai_grid {
  hai_index kv_heads, heads, rects, chunks;
} hai_grid;

static hai_grid hai_step_grid(const hai_plan *plan, const hai_stage *stage, int level) {
  hai_grid g;
  hai_index n_query = plan->n_query, n_key = plan->n_key;
  g.kv_heads = stage->axes & HAI_KV_HEADS ? plan->n_kv_heads : 0;
  g.heads = stage->axes & HAI_HEADS ? plan->n_heads : 0;
  g.rects = 1;
  if (stage->when == HAI_PER_LEVEL) {
    n_query = hai_level_queries(plan, level);
    n_key = hai_level_keys(plan, level);
    g.rects = hai_plan_rects(plan, level);
  }
  g.chunks = stage->chunks(plan, n_query, n_key);
  if (level >= plan->depth && plan->outer_exact && stage->when == HAI_PER_LEVEL &&
      !(stage->traits & HAI_ALSO_EXACT))
    g.chunks = 0; /* every key is met there */
  return g;
}

static int64_t hai_step_tasks(const hai_plan *plan, int step) {
  int level;
  const hai_stage *stage = hai_step_stage(plan, step, &level);
  hai_grid g = hai_step_grid(plan, stage, level);
  int64_t rects = g.rects;
  return rects * g.chunks * (g.kv_heads + g.heads) * plan->problem->batch;
}

static int64_t hai_phase_tasks(const hai_plan *plan, int phase) {
  int step = hai_phase_begin(plan, phase), end = hai_phase_end(plan, step);
  int64_t tasks = 0;
  if (hai_is_nothing(plan->problem)) return 0; /* not even a report: no buffer was asked for */
  for (; step < end; step++) tasks += hai_step_tasks(plan, step);
  return tasks;
}

static char *hai_align(void *workspace) {
  uintptr_t slack = HAI_AS(uintptr_t, 0) - HAI_REINTERPRET(uintptr_t, workspace);
  return HAI_AS(char *, workspace) + slack % HAI_ALIGN;
}

/* Sets the job to task `index` of a phase: step by step batch, then head, rectangle and, fastest, chunk; the
   last chunk is the first task's, since under a causal mask it takes longest. Returns the task's stage. */
HAI_APART const hai_stage *hai_job_at(hai_job *job, const hai_plan *plan, void *workspace, int phase,
                                      int64_t index, int worker) {
  int step = hai_phase_begin(plan, phase);
  const hai_stage *stage;
  hai_grid g;
  hai_index head;
  int64_t tasks;
  for (; index >= (tasks = hai_step_tasks(plan, step)); step++) index -= tasks;
  stage = hai_step_stage(plan, step, &job->level);
  g = hai_step_grid(plan, stage, job->level);
  job->pairing = stage->pairing;
  job->audit = stage->traits & HAI_AUDITS;
  job->plan = plan;
  job->base = hai_align(workspace);
  job->scratch = job->base + plan->layout.scratch + plan->layout.scratch_bytes * HAI_AS(size_t, worker);
  /* NOLINTBEGIN(clang-analyzer-core.DivideZero): a step without chunks or heads has no task */
  job->chunk = g.chunks - 1 - hai_to_index(index % g.chunks);
  index /= g.chunks;
  hai_rect_set(&job->rect, plan, job->level, hai_to_index(index % g.rects));
  index /= g.rects;
  head = hai_to_index(index % (g.kv_heads + g.heads));
  job->batch = hai_to_index(index / (g.kv_heads + g.heads));
  /* NOLINTEND(clang-analyzer-core.DivideZero) */
  job->head = head < g.kv_heads ? -1 : head - g.kv_heads;
  job->kv_head = head < g.kv_heads ? head : job->head / plan->heads_per_kv;
  job->tile = hai_tile_place(job, HAI_NULL, &job->scratch);
  return stage;
}

HAI_APART void hai_run(const hai_plan *plan, void *workspace, int phase, int64_t index, int worker) {
  hai_job job;
  const hai_stage *stage = hai_job_at(&job, plan, workspace, phase, index, worker);
  uint32_t before = plan->kernel->enter ? plan->kernel->enter() : 0;
  stage->run(&job);
  if (plan->kernel->leave) plan->kernel->leave(before);
}
