/* Many problems. Several problems as one call. While it runs, the workspace holds from its aligned begin on a
   hai_many, the problems with their plans, the arrays of one problem behind those of another, the table of
   first tasks, and one scratch per worker, as large as the largest problem needs. Each plan is that of a
   separate call but for the places of its arrays and the scratch, so its tasks compute the same.

   Phase 0 makes all this, in one task; phase 1 + k is phase k of every problem that has one, its tasks in
   the order of the problems. The table has a row for each k, [n_problems + 1]: the first task of each
   problem, and behind them the number of tasks. Problems and params are copied, so that it does not matter
   whose copy a thread hands in. */
#if HAI_MANY

typedef struct hai_planned {
  hyperattn_problem problem;
  hai_plan plan;
} hai_planned;

/* What the problems share. */
typedef struct hai_many {
  hyperattn_params params;
  int n_problems;
  int phases;          /* of the problem that has most */
  int most_phases;     /* a bound on that, which never falls as n_query or n_key rise */
  uint64_t most_tasks; /* a bound on the tasks of a phase */
  size_t table;        /* where it lies, from the workspace's aligned begin */
  hai_layout layout;   /* of the call; begin and stride are not used */
} hai_many;

/* ---- Sizes and places, for the size query and for the run ---- */

/* A bound on a problem's phases by method and n_key alone, so that none can fall: a level is the outer
   rectangle or a halving of the causal square. */
static int hai_most_phases(const hai_plan *plan) {
  int levels = 0;
  hai_index side = HAI_HYPER && plan->params->method == HYPERATTN_HYPER ? plan->n_key : 0;
  for (; side && side >= plan->min_seq_len; side /= 2) levels++;
  return (1 + levels) * HAI_N_STAGES;
}

static void hai_many_begin(hai_many *many, int n_problems, const hyperattn_params *params) {
  hai_layout *y = &many->layout;
  size_t planned = hai_times(HAI_AS(size_t, n_problems), sizeof(hai_planned));
  HYPERATTN_MEMSET(many, 0, sizeof *many);
  many->params = *params;
  many->n_problems = n_problems;
  y->scratch = hai_take(&y->overflow, hai_round_up(sizeof *many), planned);
  y->scratch_bytes = HAI_ALIGN; /* without a problem too */
}

/* Adds a problem. Returns where its arrays begin. */
static size_t hai_many_add(hai_many *many, const hai_plan *plan) {
  hai_layout *y = &many->layout;
  size_t begin = y->scratch;
  int phases = hai_phases(plan), most_phases = hai_most_phases(plan);
  uint64_t tasks = hai_most_tasks(plan->problem) * HAI_AS(uint64_t, plan->problem->batch);
  y->scratch = hai_take(&y->overflow, begin, plan->layout.scratch);
  y->scratch_bytes = hai_most(y->scratch_bytes, plan->layout.scratch_bytes);
  if (many->phases < phases) many->phases = phases;
  if (many->most_phases < most_phases) many->most_phases = most_phases;
  if (tasks > INT64_MAX - many->most_tasks)
    y->overflow = 1;
  else
    many->most_tasks += tasks;
  return begin;
}

static void hai_many_end(hai_many *many) {
  hai_layout *y = &many->layout;
  size_t row = hai_times(HAI_AS(size_t, many->n_problems) + 1, sizeof(int64_t));
  many->table = y->scratch;
  y->scratch = hai_take(&y->overflow, many->table, hai_times(HAI_AS(size_t, many->most_phases), row));
}

/* Sums up what the problems need, and the tasks of a phase; finds every mistake that needs no pointer and no
   stride. *bad is the problem that is mistaken, or -1. */
HAI_APART hyperattn_status hai_many_sum(hai_many *many, const hyperattn_problem *problems, int n_problems,
                                        const hyperattn_params *params, int phase, int64_t *tasks,
                                        int *bad) {
  hai_plan plan;
  hyperattn_status status;
  int i;
  *bad = -1;
  *tasks = 0;
  if (n_problems < 0) return HYPERATTN_ERROR_N_PROBLEMS;
  if (n_problems && !problems) return HYPERATTN_ERROR_NULL_PROBLEM;
  if (!params) return HYPERATTN_ERROR_NULL_PARAMS;
  if ((status = hai_check_params(params, 0)) != HYPERATTN_OK) return status;
  hai_many_begin(many, n_problems, params);
  for (i = 0; i < n_problems; i++) {
    if ((status = hai_resolve(&plan, &problems[i], params)) != HYPERATTN_OK) {
      *bad = i;
      return status;
    }
    hai_many_add(many, &plan);
    if (phase >= 0 && phase < hai_phases(&plan) && !many->layout.overflow)
      *tasks += hai_phase_tasks(&plan, phase);
  }
  hai_many_end(many);
  return many->layout.overflow ? HYPERATTN_ERROR_SIZE_OVERFLOW : HYPERATTN_OK;
}

/* ---- Checks ---- */

/* Do none of the problems read or write anything? The workspace is not touched then. */
static int hai_many_is_nothing(const hyperattn_problem *problems, int n_problems) {
  int i;
  for (i = 0; i < n_problems; i++)
    if (!hai_is_nothing(&problems[i])) return 0;
  return 1;
}

/* Pointers, strides and overlaps of each problem. A workspace that is missing or too small is the mistake of
   none. */
HAI_APART hyperattn_status hai_many_check_buffers(const hyperattn_problem *problems, int n_problems,
                                                  const hyperattn_params *params, const void *workspace,
                                                  size_t workspace_size, size_t need, int *bad) {
  hai_plan plan;
  int i;
  for (i = 0; i < n_problems; i++) {
    hyperattn_status status = hai_resolve(&plan, &problems[i], params);
    if (status == HYPERATTN_OK) status = hai_check_buffers_within(&plan, workspace, workspace_size, need);
    if (status == HYPERATTN_OK) continue;
    if (status != HYPERATTN_ERROR_NULL_WORKSPACE && status != HYPERATTN_ERROR_WORKSPACE_SIZE) *bad = i;
    return status;
  }
  return HYPERATTN_OK;
}

HYPERATTN_API hyperattn_status hyperattn_check_many(const hyperattn_problem *problems, int n_problems,
                                                    const hyperattn_params *params, const void *workspace,
                                                    size_t workspace_size, int n_workers,
                                                    int *bad_problem) {
  hai_many many;
  int64_t tasks;
  size_t need;
  int bad;
  hyperattn_status status = hai_many_sum(&many, problems, n_problems, params, -1, &tasks, &bad);
  if (status == HYPERATTN_OK && n_workers < 1) status = HYPERATTN_ERROR_WORKERS;
  if (status == HYPERATTN_OK) {
    need = hai_layout_size(&many.layout, n_workers);
    status =
        need ? hai_many_check_buffers(problems, n_problems, params, workspace, workspace_size, need, &bad)
             : HYPERATTN_ERROR_SIZE_OVERFLOW;
  }
  if (bad_problem) *bad_problem = bad;
  return status;
}

HYPERATTN_API size_t hyperattn_workspace_size_many(const hyperattn_problem *problems, int n_problems,
                                                   const hyperattn_params *params, int n_workers) {
  hai_many many;
  int64_t tasks;
  int bad;
  hyperattn_status status = hai_many_sum(&many, problems, n_problems, params, -1, &tasks, &bad);
  return status != HYPERATTN_OK || n_workers < 1 ? 0 : hai_layout_size(&many.layout, n_workers);
}

/* ---- The run ---- */

static hai_many *hai_many_of(void *workspace) { return HAI_PLACE(hai_many, hai_align(workspace)); }
static hai_planned *hai_planned_of(hai_many *many) {
  return HAI_PLACE(hai_planned, HAI_REINTERPRET(char *, many) + hai_round_up(sizeof *many));
}
static int64_t *hai_first_tasks(hai_many *many, int phase) {
  size_t row = HAI_AS(size_t, many->n_problems) + 1;
  return HAI_PLACE(int64_t, HAI_REINTERPRET(char *, many) + many->table) + HAI_AS(size_t, phase) * row;
}

/* Makes the plans and the table. The problems passed the checks. */
HAI_APART void hai_many_prepare(const hyperattn_problem *problems, int n_problems,
                                const hyperattn_params *params, void *workspace) {
  hai_many *many = hai_many_of(workspace);
  hai_planned *planned = hai_planned_of(many);
  size_t begin;
  int i, array, phase;
  hai_many_begin(many, n_problems, params);
  for (i = 0; i < n_problems; i++) {
    hai_plan *plan = &planned[i].plan;
    planned[i].problem = problems[i];
    hai_resolve(plan, &planned[i].problem, &many->params);
    begin = hai_many_add(many, plan);
    for (array = 0; array < HAI_ARRAY_CODE; array++) plan->layout.begin[array] += begin;
    plan->layout.scan += begin;
  }
  hai_many_end(many);
  for (i = 0; i < n_problems; i++) {
    planned[i].plan.layout.scratch = many->layout.scratch;
    planned[i].plan.layout.scratch_bytes = many->layout.scratch_bytes;
  }
  for (phase = 0; phase < many->phases; phase++) {
    int64_t *first = hai_first_tasks(many, phase);
    first[0] = 0;
    for (i = 0; i < n_problems; i++) {
      const hai_plan *plan = &planned[i].plan;
      first[i + 1] = first[i] + (phase < hai_phases(plan) ? hai_phase_tasks(plan, phase) : 0);
    }
  }
}

/* The problem that a task belongs to, by its phase's row of the table. */
static int hai_problem_of(const int64_t *first, int n_problems, int64_t index) {
  int begin = 0, end = n_problems; /* it is one of begin .. end - 1 */
  while (end - begin > 1) {
    int middle = begin + (end - begin) / 2;
    if (first[middle] <= index)
      begin = middle;
    else
      end = middle;
  }
  return begin;
}

/* Runs a task of a phase behind phase 0; `phase` is counted without that. */
static void hai_many_run(hai_many *many, int phase, int64_t index, int worker) {
  const int64_t *first = hai_first_tasks(many, phase);
  int problem = hai_problem_of(first, many->n_problems, index);
  hai_run(&hai_planned_of(many)[problem].plan, many, phase, index - first[problem], worker);
}

HYPERATTN_API int hyperattn_phase_count_many(const hyperattn_problem *problems, int n_problems,
                                             const hyperattn_params *params) {
  hai_many many;
  int64_t tasks;
  int bad;
  hyperattn_status status = hai_many_sum(&many, problems, n_problems, params, -1, &tasks, &bad);
  return status == HYPERATTN_OK ? 1 + many.phases : 0;
}

HYPERATTN_API int64_t hyperattn_phase_tasks_many(const hyperattn_problem *problems, int n_problems,
                                                 const hyperattn_params *params, int phase) {
  hai_many many;
  int64_t tasks;
  int bad;
  if (phase < 0 ||
      hai_many_sum(&many, problems, n_problems, params, phase - 1, &tasks, &bad) != HYPERATTN_OK)
    return 0;
  return phase ? tasks : 1;
}

HYPERATTN_API void hyperattn_run_task_many(const hyperattn_problem *problems, int n_problems,
                                           const hyperattn_params *params, void *workspace, int phase,
                                           int64_t index, int worker) {
  if (phase)
    hai_many_run(hai_many_of(workspace), phase - 1, index, worker);
  else if (!hai_many_is_nothing(problems, n_problems))
    hai_many_prepare(problems, n_problems, params, workspace);
}

typedef struct hai_many_phase {
  hai_many *many;
  int phase;
} hai_many_phase;

static void hai_many_task(void *arg, int64_t index, int worker) {
  const hai_many_phase *p = HAI_AS(const hai_many_phase *, arg);
  hai_many_run(p->many, p->phase, index, worker);
}

HYPERATTN_API hyperattn_status hyperattn_forward_many(const hyperattn_problem *problems, int n_problems,
                                                      const hyperattn_params *params,
                                                      const hyperattn_parallel *parallel, void *workspace,
                                                      size_t workspace_size, int *bad_problem) {
  hai_many_phase p;
  hyperattn_status status;
  int n_workers = parallel ? parallel->n_workers : 1;
  if (bad_problem) *bad_problem = -1;
  if (parallel && !parallel->parallel_for) return HYPERATTN_ERROR_NULL_PARALLEL;
  status =
      hyperattn_check_many(problems, n_problems, params, workspace, workspace_size, n_workers, bad_problem);
  if (status != HYPERATTN_OK || hai_many_is_nothing(problems, n_problems)) return status;
  hai_many_prepare(problems, n_problems, params, workspace);
  p.many = hai_many_of(workspace);
  for (p.phase = 0; p.phase < p.many->phases; p.phase++) {
    int64_t index, n = hai_first_tasks(p.many, p.phase)[n_problems];
    if (parallel && n) parallel->parallel_for(parallel->context, n, hai_many_task, &p);
    for (index = 0; !parallel && index < n; index++) hai_many_task(&p, index, 0);
  }
  return HYPERATTN_OK;
}
#endif
