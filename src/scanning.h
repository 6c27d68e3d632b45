/* ---- Scanning: a tile from its first key to its result, and the stage ---- */

#if HAI_SCAN
/* The tile's queries see no key before `first` from here on. */
static void hai_tile_from(hai_tile *tile, hai_index first) {
  int i;
  for (i = 0; i < tile->n; i++) tile->first[i] = first;
  tile->min_first = tile->max_first = first;
}

/* One past the last key of the job's rectangle, and how many of its keys a query sees that sees none behind
   `last`. */
static hai_index hai_rect_end(const hai_job *job) { return job->rect.key_begin + job->rect.n_key; }
static hai_index hai_rect_seen(const hai_job *job, hai_index last) {
  return hai_max(0, hai_min(last + 1, hai_rect_end(job)) - job->rect.key_begin);
}

/* Which keys the tile of queries from `row` on scans: those of the rectangle behind the sinks that all of its
   queries see, up to the end of a block; none without a whole block, which the pilot needs. */
static void hai_scan_aim(const hai_job *job, hai_scan *scan, hai_index row) {
  hai_index end = hai_rect_end(job);
  scan->begin = hai_min(hai_max(job->plan->sink_keys, job->rect.key_begin), end);
  scan->end = hai_scan_end(job->plan, row, end);
  if (scan->end <= hai_ceil_div(scan->begin, HAI_CHUNK) * HAI_CHUNK) scan->end = scan->begin;
}

/* The tile's lanes meet what is not scanned: sinks, windows, and what does not fill a block. Leaves the
   lse of what counts in Z in scan->lse_total: at tolerance 0 no key behind the tile's first query, so that
   no later key changes a row. */
static void hai_scan_exact(hai_job *job, hai_scan *scan) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  hai_index end = hai_rect_end(job);
  hai_index split = plan->problem->causal && plan->params->tolerance == 0.0f ? tile->min_last + 1 : end;
  hai_tiles_run(&tile, 1, job->rect.key_begin, scan->begin);
  if (plan->reporting) hai_tile_lse(tile, scan->lse_sinks);
  hai_tile_from(tile, scan->end);
  hai_tiles_run(&tile, 1, scan->end, split);
  hai_tile_lse(tile, scan->lse_exact);
  HYPERATTN_MEMCPY(scan->lse_total, scan->lse_exact, HAI_AS(size_t, tile->kernel->lanes) * sizeof(float));
  if (split < end) {
    hai_tiles_run(&tile, 1, split, end);
    hai_tile_lse(tile, scan->lse_exact);
  }
  hai_tile_aim(tile, 0, tile->n);
}

/* Does a query miss the tolerance? */
static int hai_scan_misses_at(const hai_job *job, const hai_scan *scan, int lane) {
  float tolerance = job->plan->params->tolerance;
  return tolerance > 0.0f && !(scan->error[lane] <= tolerance);
}

/* Lists the queries that miss the tolerance, and drops them. */
static void hai_scan_miss(hai_job *job, hai_scan *scan, hai_index row) {
  int i;
  for (i = 0; i < job->tile->n; i++) {
    if (!hai_scan_misses_at(job, scan, i)) continue;
    scan->missed[scan->tally->missed++] = hai_to_int(row + i);
    hai_lane_drop(job->tile, i);
  }
}

/* Adds the tile to the task's tally, for the report. */
static void hai_scan_count(const hai_job *job, hai_scan *scan, int is_exact) {
  const hai_tile *tile = job->tile;
  hai_tally *tally = scan->tally;
  hai_index skipped = is_exact ? 0 : scan->end - scan->begin - scan->n_kept;
  int i;
  for (i = 0; i < tile->n; i++) {
    float lse = hai_state_lse(tile->m[i], tile->l[i]);
    tally->met += HAI_AS(float, hai_rect_seen(job, tile->last[i]) - skipped);
    tally->exact += is_exact;
    if (is_exact || hai_scan_misses_at(job, scan, i)) continue;
    tally->pinned += hai_share(scan->lse_sinks[i], lse) - hai_share(hai_lane_before(job, i), lse);
    tally->sampled +=
        hai_share(scan->lse_exact[i], lse) < 1.0f ? 1.0f - hai_share(scan->lse_exact[i], lse) : 0.0f;
  }
}

/* A tile of queries from `row` on meets what is exact and its sample. Returns 0 where it has to meet every
   key: its states are then to be begun anew. */
static int hai_scan_tile(hai_job *job, hai_scan *scan, hai_index row) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  float times = 1.0f, keys;
  int doubled = 0;
  hai_scan_aim(job, scan, row);
  keys = HAI_AS(float, scan->end - scan->begin);
  if (scan->exact_tiles > 0) {
    scan->exact_tiles--;
    return 0;
  }
  if (!hai_scan_pays(plan, scan->end - scan->begin)) return 0;
  scan->query = hai_scan_query(job, scan, row);
  scan->offset = hai_scan_offset(job, row);
  hai_scan_encode(job, scan);
  hai_scan_exact(job, scan);
  hai_tile_save(tile, scan->state);
  hai_scan_pilot(job, scan);
  for (;;) {
    hai_scan_levels(job, scan);
    hai_scan_keys(job, scan);
    times =
        plan->params->tolerance > 0.0f && HAI_AS(float, scan->n_kept) * HAI_KEPT_COST > keys ? 0.0f : 1.0f;
    if (times > 0.0f) {
      hai_scan_attend(job, scan);
      hai_scan_judge(job, scan);
      if (plan->params->tolerance == 0.0f) break;
      if (doubled < HAI_MOST_DOUBLED) times = hai_scan_times(job, scan);
    }
    if (times == 0.0f) scan->exact_tiles = HAI_HELD_TILES;
    if (times <= 1.0f) break;
    if (!doubled++) scan->tally->doubled += tile->n;
    scan->budget *= times;
    hai_tile_load(tile, scan->state);
  }
  if (plan->params->tolerance > 0.0f && times > 0.0f) hai_scan_learn(job, scan);
  return times > 0.0f;
}

/* ---- The stage ---- */

/* Opens the tile for the n queries that were put into its lanes. */
static void hai_scan_begin(hai_job *job, int n) {
  hai_tile_open(job, n, job->plan->value_dim);
  hai_tile_go_on(job);
  job->tile->guarded = job->plan->problem->causal;
}

/* Opens the tile for queries row .. row + n - 1 of the head. */
static void hai_scan_open(hai_job *job, hai_index row, int n) {
  int i;
  for (i = 0; i < n; i++) hai_rect_query(job, i, row + i);
  hai_scan_begin(job, n);
}

/* Where the relative errors of the job's queries go: [n_query], or NULL. */
static float *hai_errors(const hai_job *job) {
  const hai_plan *plan = job->plan;
  if (plan->problem->query_error) return plan->problem->query_error + hai_flat_head(job) * plan->n_query;
  return plan->reporting ? hai_floats(job, HAI_ARRAY_QUERY_ERROR) : HAI_NULL;
}

/* Floats for each lane of a scan's arrays, and bytes of all its memory. */
static hai_index hai_scan_packed_dim(const hai_plan *plan) { /* of queries that are packed once more */
  return hai_is_f32(plan->kernel->dtype) && !plan->may_use_amx ? 0 : plan->head_dim;
}
static hai_index hai_scan_lane_floats(const hai_plan *plan) {
  return hai_scan_packed_dim(plan) + hai_code_dim(plan) / 4 + 2 + 1 + HAI_CHUNK + 11 + 2 + plan->value_dim;
}
static size_t hai_scan_bytes(const hai_plan *plan) {
  hai_index lanes = plan->float_kernel->lanes;
  hai_index floats = hai_scan_lane_floats(plan) * lanes + hai_code_dim(plan) / 4 * 5;
  return hai_times(HAI_AS(size_t, floats), sizeof(float)) + 24 * HAI_ALIGN +
         hai_round_up(sizeof(hai_scan)) + hai_times(HAI_AS(size_t, plan->n_key), sizeof(hai_kept));
}

/* The mean squared distance of values from the sketch's centre, by some of them. */
static float hai_scan_distance(const hai_job *job, const hai_scan *scan) {
  hai_index n = hai_sketch_blocks(job->plan) * HAI_CHUNK, i;
  float sum = 0.0f, seen = 0.0f;
  for (i = 0; i < HAI_CHUNK; i++) {
    float distance = scan->sketch.distance[hai_cut(n, HAI_CHUNK, i)];
    if (!hai_finite(distance)) continue;
    sum += distance;
    seen += 1.0f;
  }
  return seen > 0.0f ? sum / seen : 0.0f;
}

/* Lays a scan out in the job's scratch, and all its memory behind it. */
HAI_APART hai_scan *hai_scan_place(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index lanes = plan->float_kernel->lanes;
  hai_scan *scan = HAI_PLACE(hai_scan, job->scratch);
  char *at = job->scratch + hai_round_up(sizeof *scan);
  scan->kernel = plan->scan_kernel;
  scan->sketch = hai_sketch_of(job);
  scan->packed = hai_carve(&at, hai_scan_packed_dim(plan) * lanes);
  scan->queries.n_words = hai_to_int(hai_code_dim(plan) / 4);
  scan->queries.code = HAI_PLACE(int32_t, hai_carve(&at, scan->queries.n_words * lanes));
  scan->queries.word = HAI_PLACE(int32_t, hai_carve(&at, scan->queries.n_words));
  scan->queries.lift = HAI_PLACE(int32_t, hai_carve(&at, 2 * lanes));
  scan->all = HAI_PLACE(int32_t, hai_carve(&at, scan->queries.n_words));
  scan->most = HAI_PLACE(int32_t, hai_carve(&at, scan->queries.n_words));
  scan->told = hai_carve(&at, scan->queries.n_words);
  scan->force = hai_carve(&at, scan->queries.n_words);
  scan->queries.level = hai_carve(&at, lanes);
  scan->mean = hai_carve(&at, HAI_CHUNK * lanes);
  scan->high = hai_carve(&at, lanes);
  scan->sum = hai_carve(&at, lanes);
  scan->group = hai_carve(&at, lanes);
  scan->scatter = hai_carve(&at, lanes);
  scan->squares = hai_carve(&at, lanes);
  scan->norm = hai_carve(&at, lanes);
  scan->apart = hai_carve(&at, lanes);
  scan->error = hai_carve(&at, lanes);
  scan->lse_sinks = hai_carve(&at, lanes);
  scan->lse_total = hai_carve(&at, lanes);
  scan->lse_exact = hai_carve(&at, lanes);
  scan->state = hai_carve(&at, (2 + plan->value_dim) * lanes);
  scan->kept = HAI_PLACE(hai_kept, at);
  scan->budget = hai_scan_budget(plan);
  scan->distance = hai_scan_distance(job, scan);
  scan->exact_tiles = 0;
  scan->tally = hai_tallies(job) + job->chunk;
  scan->missed = hai_missed(job) + job->chunk * HAI_SCAN_ROWS;
  HYPERATTN_MEMSET(scan->tally, 0, sizeof *scan->tally);
  return scan;
}

/* n tiles, whose first query is `row`, begin anew and meet every key of the rectangle. */
static void hai_scan_afresh(hai_job *job, hai_tile *const *tiles, int n, hai_index row) {
  int i;
  for (i = 0; i < n; i++) {
    job->tile = tiles[i];
    hai_scan_open(job, row, tiles[i]->n);
    row += tiles[i]->n;
  }
  hai_rect_meet(job, tiles, n);
}

/* Writes what a tile has come to. */
HAI_APART void hai_scan_close(hai_job *job, hai_scan *scan, hai_index row, int is_exact) {
  float *errors = hai_errors(job);
  int i;
  if (job->plan->reporting) hai_scan_count(job, scan, is_exact);
  if (!is_exact) hai_scan_miss(job, scan, row);
  hai_tile_close(job);
  for (i = 0; errors && i < job->tile->n; i++) errors[row + i] = is_exact ? 0.0f : scan->error[i];
}

/* Some tiles of consecutive queries from `row` on: each scans, or meets every key. Where the first has to,
   all do, since tiles that meet keys together read them once. */
static void hai_scan_tiles(hai_job *job, hai_scan *scan, hai_tile *const *tiles, int n, hai_index row) {
  int t = 0, scanned, together;
  while (t < n) {
    job->tile = tiles[t];
    scanned = hai_scan_tile(job, scan, row);
    together = scanned || t ? 1 : n;
    if (!scanned) hai_scan_afresh(job, tiles + t, together, row);
    for (; together > 0; together--, t++) {
      job->tile = tiles[t];
      hai_scan_close(job, scan, row, !scanned);
      row += tiles[t]->n;
    }
  }
}

/* HAI_SCAN_ROWS queries of a head, from `row` on. */
HAI_APART void hai_scan_rows(hai_job *job, hai_index row) {
  hai_tile *tiles[HAI_MAX_TILES];
  hai_scan *scan;
  hai_index end = hai_min(row + HAI_SCAN_ROWS, job->rect.query_begin + job->rect.n_query), next;
  int n = hai_tiles_place(job, tiles), lanes = job->plan->float_kernel->lanes, i;
  scan = hai_scan_place(job);
  for (; row < end; row = next) {
    for (i = 0, next = row; i < n && next < end; i++, next += lanes) {
      job->tile = tiles[i];
      hai_scan_open(job, next, hai_to_int(hai_min(lanes, end - next)));
    }
    hai_scan_tiles(job, scan, tiles, i, row);
  }
}

/* Stage SCAN: HAI_SCAN_ROWS queries of a rectangle and head. Reads the sketch, queries, keys and values;
   writes results, errors, missed rows and the tally. Cost: for each query a product of small integers with
   each key, and the keys that are kept. */
HAI_APART void hai_stage_scan(hai_job *job) {
  hai_index at = job->chunk * HAI_SCAN_ROWS;
  if (hai_is_scanned(job) && at < job->rect.n_query) hai_scan_rows(job, job->rect.query_begin + at);
}
#endif
