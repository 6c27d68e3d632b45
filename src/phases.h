/* Phases. Phase by phase, independent tasks. A phase is a stage at a level, or a stage before or after the
   levels; a task is (batch, head, rectangle, chunk), and writes nothing that another task of its phase
   touches. */

static int hai_phases(const hai_plan *plan) {
  return plan->n_before + hai_plan_levels(plan) * plan->n_per_level + plan->n_after;
}

/* The stage of a phase, and its level; -1 before and after the levels. */
static const hai_stage *hai_phase_stage(const hai_plan *plan, int phase, int *level) {
  int levels = hai_plan_levels(plan), n = phase - plan->n_before;
  *level = -1;
  if (n >= levels * plan->n_per_level) {
    phase -= (levels - 1) * plan->n_per_level;
  } else if (n >= 0) {
    *level = n / plan->n_per_level;
    phase -= *level * plan->n_per_level;
  }
  return &hai_stages[plan->stages[phase]];
}

/* Tasks of a phase along each axis but the batch: heads (kv heads first, then query heads), rectangles,
   chunks. */
typedef struct hai_grid {
  hai_index kv_heads, heads, rects, chunks;
} hai_grid;

static hai_grid hai_phase_grid(const hai_plan *plan, const hai_stage *stage, int level) {
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

static int64_t hai_phase_tasks(const hai_plan *plan, int phase) {
  int level;
  const hai_stage *stage = hai_phase_stage(plan, phase, &level);
  hai_grid g = hai_phase_grid(plan, stage, level);
  int64_t rects = g.rects;
  if (hai_is_nothing(plan->problem)) return 0; /* not even a report: no buffer was asked for */
  return rects * g.chunks * (g.kv_heads + g.heads) * plan->problem->batch;
}

static char *hai_align(void *workspace) {
  uintptr_t slack = HAI_AS(uintptr_t, 0) - HAI_REINTERPRET(uintptr_t, workspace);
  return HAI_AS(char *, workspace) + slack % HAI_ALIGN;
}

/* Sets the job to task `index` of a phase: batch, then head, rectangle and, fastest, chunk; the last chunk is
   the first task's, since under a causal mask it takes longest. Returns the phase's stage. */
static const hai_stage *hai_job_at(hai_job *job, const hai_plan *plan, void *workspace, int phase,
                                   int64_t index, int worker) {
  const hai_stage *stage = hai_phase_stage(plan, phase, &job->level);
  hai_grid g = hai_phase_grid(plan, stage, job->level);
  hai_index head;
  job->pairing = stage->pairing;
  job->audit = stage->traits & HAI_AUDITS;
  job->plan = plan;
  job->base = hai_align(workspace);
  job->scratch = job->base + plan->layout.scratch + plan->layout.scratch_bytes * HAI_AS(size_t, worker);
  /* NOLINTBEGIN(clang-analyzer-core.DivideZero): a phase without chunks or heads has no task */
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
