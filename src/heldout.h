/* ---- Queries that meet every key: probes and held-out queries ----
   A rectangle's keys are chosen by what a few of its queries think of all of them, and the choice is
   judged by what a few others get from all of them. Both kinds meet every key of the rectangle, at a cost
   of n_key products each:

   - probes tell which keys matter (probing.h): one query from each of up to probe_queries strata of rows;
   - held-out queries have no part in choosing a rectangle's keys. Up to HAI_JUDGES of them decide which
     recipe the rectangle gets (trials.h, verdict.h). Where a report is wanted, up to HAI_AUDITORS others,
     drawn anew, measure what that recipe is worth (auditing.h): the queries that decided would flatter
     it.

   Strata of rows spread both evenly over the rectangle, and neither kind depends on data. Held-out
   queries come in runs of HAI_JUDGE_RUN neighbouring rows, one run from each stratum, since neighbours
   often share a query group, whose pairing then serves several of them. A query that had a say in the
   choice would judge it too kindly, so a probe that falls on a judge's row gives way and takes the row
   beside the run. Small rectangles, in which all or most queries judge, have too few rows for that.

   The keys are met in chunks, one a task. A task leaves the states of all these queries over its chunk in
   the workspace, and a later stage merges the chunks. */

/* Puts query `row` of the rectangle into a lane. */
static void hai_rect_query(hai_job *job, int lane, hai_index row) {
  hai_index first, last;
  hai_rect_keys(job->plan, row, &first, &last);
  hai_tile_query(job, lane, job->head, row, first, last);
}

static hai_index hai_n_probes(const hai_job *job) {
  return hai_min(job->plan->probe_queries, job->rect.n_query);
}

/* How many held-out queries a rectangle has: auditors in a task that serves the report, judges in
   others. */
static hai_index hai_max_held_out(const hai_job *job) { return job->audit ? HAI_AUDITORS : HAI_JUDGES; }
static int hai_n_held_out(const hai_job *job) {
  return hai_to_int(hai_min(hai_max_held_out(job), job->rect.n_query));
}
static hai_index hai_held_out_runs(const hai_job *job) { return hai_max_held_out(job) / HAI_JUDGE_RUN; }
static int hai_all_held_out(const hai_job *job) { return job->rect.n_query <= hai_max_held_out(job); }

/* The row of held-out query i. They ascend. */
static hai_index hai_held_out_row(const hai_job *job, hai_index i) {
  hai_index runs = hai_held_out_runs(job), run = i / HAI_JUDGE_RUN, n = job->rect.n_query, begin, size;
  if (hai_all_held_out(job)) return job->rect.query_begin + i;
  begin = hai_cut(n, runs, run);
  size = hai_cut(n, runs, run + 1) - begin;
  begin += HAI_AS(hai_index,
                  hai_uniform(0, HAI_AS(uint64_t, size - HAI_JUDGE_RUN + 1),
                              hai_random_of(job, job->audit ? HAI_FOR_AUDITORS : HAI_FOR_JUDGES, run)));
  return job->rect.query_begin + begin + i % HAI_JUDGE_RUN;
}

/* Where the place of held-out query i in a sorted order is kept. */
static int32_t *hai_place_of(const hai_job *job, int i) {
  return job->audit ? &hai_record_of(job)->query[i].place : &hai_trials_of(job)->place[i];
}

/* Where held-out query i stands in the pairing's order. */
static hai_index hai_held_out_place(const hai_job *job, int i) {
  return hai_sorting(job) ? *hai_place_of(job, i) : hai_held_out_row(job, i) - job->rect.query_begin;
}

/* The row of probe t. Rows of probes never descend. */
static hai_index hai_probe_row(const hai_job *job, hai_index t) {
  hai_index n = job->rect.n_query, runs = hai_held_out_runs(job), run;
  hai_index row = hai_draw(n, hai_n_probes(job), t, hai_random_of(job, HAI_FOR_PROBES, t));
  row += job->rect.query_begin;
  if (n < 2 * HAI_JUDGES) return row;
  run = hai_held_out_row(job, hai_part_of(n, runs, row - job->rect.query_begin) * HAI_JUDGE_RUN);
  if (row < run || row >= run + HAI_JUDGE_RUN) return row;
  return run > job->rect.query_begin ? run - 1 : run + HAI_JUDGE_RUN;
}

/* Fills up to n tiles with queries row_of(first) .. row_of(end - 1), whose rows never descend, and starts
   empty states. Returns how many tiles it took. */
static int hai_tiles_open(hai_job *job, hai_tile *const *tiles, int n, hai_index first, hai_index end,
                          hai_index (*row_of)(const hai_job *, hai_index), hai_index value_dim) {
  const hai_plan *plan = job->plan;
  int opened, i;
  for (opened = 0; opened < n && first < end; opened++) {
    job->tile = tiles[opened];
    for (i = 0; i < plan->float_kernel->lanes && first < end; i++)
      hai_rect_query(job, i, row_of(job, first++));
    hai_tile_open(job, i, value_dim);
  }
  return opened;
}

/* Queries row_of(0) .. row_of(n - 1) meet the keys of this task's chunk, one of `chunks`. `keep` then takes
   the states of each tile (job->tile), whose lane 0 holds query `first`. Cost: n * keys of the chunk. */
static void hai_meet_chunk(hai_job *job, hai_index n, hai_index (*row_of)(const hai_job *, hai_index),
                           hai_index value_dim, hai_index chunks,
                           void (*keep)(const hai_job *job, hai_index first)) {
  hai_tile *tiles[HAI_MAX_TILES];
  int most = hai_tiles_place(job, tiles), opened, i;
  hai_index begin = hai_chunk_begin(job, chunks, job->chunk),
            end = hai_chunk_begin(job, chunks, job->chunk + 1), first = 0;
  while (first < n) {
    opened = hai_tiles_open(job, tiles, most, first, n, row_of, value_dim);
    hai_tiles_run(tiles, opened, begin, end);
    for (i = 0; i < opened; i++) {
      job->tile = tiles[i];
      keep(job, first);
      first += tiles[i]->n;
    }
  }
}
