/* ---- Verdicts: which recipe a rectangle and head gets ----
   Trials (trials.h) leave what their held-out queries found, and the verdict follows from it whenever it is
   asked for: tasks of a trial need not wait for one another. */

typedef struct hai_verdict {
  hai_recipe recipe;
  int pairing;
  int settled; /* 1: no further trials */
  int tried;   /* how many pairings have been tried */
  float error; /* relative error of the held-out queries */
} hai_verdict;

/* Trials are made in the order of their numbers: columns alone, the first pairing, the second. */
static int hai_trial_number(int pairing) { return pairing == HAI_NO_BLOCKS ? 0 : 1 + pairing; }

/* Held-out queries of a task of a trial. */
static int hai_trial_queries(int number) { return number ? HAI_JUDGE_RUN : HAI_TRIAL_QUERIES; }

/* Notes that no trial has been made. */
static void hai_verdict_open(const hai_job *job) {
  hai_finding *found = hai_trials_of(job)->found[0];
  int i;
  for (i = 0; i < HAI_TRIALS * HAI_TRIAL_TASKS; i++) found[i].squared_norm = -1.0f;
}

/* The relative error that a trial found. */
static float hai_trial_error(const hai_finding *found) {
  float squared_error = 0.0f, squared_norm = 0.0f;
  int i;
  for (i = 0; i < HAI_TRIAL_TASKS && found[i].squared_norm >= 0.0f; i++) {
    squared_error += found[i].squared_error;
    squared_norm += found[i].squared_norm;
  }
  return hai_relative(squared_error, squared_norm);
}

/* What follows from the first `end` trials: the recipe of the smallest error, and whether that is small
   enough; HAI_EACH where all trials miss a tolerance. */
static hai_verdict hai_verdict_after(const hai_job *job, int end) {
  const hai_plan *plan = job->plan;
  float tolerance = plan->params->tolerance;
  hai_verdict verdict = {HAI_BLOCKS, 0, 0, 0, 0.0f};
  int number;
  verdict.error = hai_inf();
  for (number = 0; number < end; number++) {
    const hai_finding *found = hai_trials_of(job)->found[number];
    float error, enough = tolerance > 0.0f ? tolerance : number ? HAI_FAIR : HAI_GOOD;
    if (found->squared_norm < 0.0f) continue;
    verdict.tried = number; /* so many pairings: trial 0 has none */
    error = hai_trial_error(found);
    if (error < verdict.error) {
      verdict.recipe = number ? HAI_BLOCKS : HAI_COLUMNS;
      verdict.pairing = number ? number - 1 : HAI_NO_BLOCKS;
      verdict.error = error;
      verdict.settled = error <= enough;
    }
    if (tolerance > 0.0f && number == plan->n_pairings && !verdict.settled) verdict.recipe = HAI_EACH;
  }
  return verdict;
}
static hai_verdict hai_verdict_of(const hai_job *job) {
  return hai_verdict_after(job, 1 + job->plan->n_pairings);
}

static int hai_takes_blocks(const hai_verdict *verdict, int pairing) {
  return verdict->pairing == pairing && verdict->recipe == HAI_BLOCKS;
}

/* The recipe of a rectangle and head. */
static hai_recipe hai_recipe_of(const hai_job *job) {
  if (hai_rect_is_exact(job)) return HAI_EACH;
  return job->plan->choosing ? hai_verdict_of(job).recipe : HAI_BLOCKS;
}
/* Does the job's rectangle scan? The whole problem does, or a rectangle for which nothing was good enough. */
static int hai_is_scanned(const hai_job *job) {
  if (hai_scanning(job->plan)) return 1;
  return hai_scans_rects(job->plan) && !hai_rect_is_exact(job) && hai_recipe_of(job) == HAI_EACH;
}
