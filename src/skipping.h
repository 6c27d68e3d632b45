/* ---- Skipping: stages that a rectangle no longer needs ----
   Held-out queries try pairings one after another, and a rectangle whose verdict is settled needs no
   further one. How many tasks a phase has follows from shapes and parameters alone, so the tasks of a
   pairing that is not needed run all the same and return at once. */

/* Whether job->head needs the blocks of job->pairing: because that pairing is still to be tried, or because
   the verdict takes it. A task of a kv head (job->head < 0) is needed if any query head of the group needs
   the pairing, unless it is the last one that any of them tried: all that depends on its keys is then still
   in the workspace. */
static int hai_is_needed(const hai_job *job) {
  hai_job each = *job;
  hai_index n = job->plan->heads_per_kv;
  int needed = 0, tried = 0;
  if (!job->plan->choosing) return 1;
  for (each.head = job->kv_head * n; each.head < (job->kv_head + 1) * n; each.head++) {
    hai_verdict verdict;
    if (job->head >= 0 && job->head != each.head) continue;
    verdict = hai_verdict_of(&each);
    needed |= verdict.tried <= job->pairing ? !verdict.settled : hai_takes_blocks(&verdict, job->pairing);
    tried = verdict.tried > tried ? verdict.tried : tried;
  }
  return needed && (job->head >= 0 || tried != job->pairing + 1);
}
