/* Exact regions, and the loop over a task's tiles that rectangles use too. */

/* Opens the tile for rows row .. row + n - 1 of a kv head, where row r is query r / heads_per_kv of head r
   % heads_per_kv: heads that share keys share tiles. */
static void hai_exact_open(hai_job *job, hai_index row, int n) {
  const hai_plan *plan = job->plan;
  hai_index group = plan->heads_per_kv, first, last;
  int i;
  for (i = 0; i < n; i++) {
    hai_index head = job->kv_head * group + (row + i) % group, query = (row + i) / group;
    hai_exact_keys(plan, query, &first, &last);
    hai_tile_query(job, i, head, query, first, last);
    if (hai_masking(plan)) hai_mask_lane(job, i, head, query);
  }
  hai_tile_open(job, n, plan->value_dim);
  hai_tile_begin(job);
  job->tile->guarded = plan->problem->causal || hai_sliding(plan) || hai_masking(plan);
}

/* Attention of rows row .. end - 1, some tiles at a time: open(job, row, n) opens job->tile for n rows, and
   meet(job, tiles, n) lets n tiles meet their keys. */
static void hai_attend_rows(hai_job *job, void (*open)(hai_job *, hai_index, int),
                            void (*meet)(hai_job *, hai_tile *const *, int), hai_index row, hai_index end) {
  hai_tile *tiles[HAI_MAX_TILES];
  int n = hai_tiles_place(job, tiles), lanes = job->plan->float_kernel->lanes, i;
  while (row < end) {
    for (i = 0; i < n && row < end; i++, row += lanes) {
      job->tile = tiles[i];
      open(job, row, hai_to_int(hai_min(lanes, end - row)));
    }
    meet(job, tiles, i);
    while (i-- > 0) {
      job->tile = tiles[i];
      hai_tile_close(job);
    }
  }
}

static void hai_exact_meet(hai_job *job, hai_tile *const *tiles, int n) {
  hai_tiles_run(tiles, n, 0, job->plan->n_key);
}
static void hai_rect_meet(hai_job *job, hai_tile *const *tiles, int n) {
  hai_tiles_run(tiles, n, job->rect.key_begin, job->rect.key_begin + job->rect.n_key);
}

/* Exact attention of HAI_TASK_QUERIES rows of a kv head. */
HAI_APART void hai_stage_exact(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index row = job->chunk * HAI_TASK_QUERIES;
  hai_attend_rows(job, hai_exact_open, hai_exact_meet, row,
                  hai_min(row + HAI_TASK_QUERIES, plan->n_query * plan->heads_per_kv));
}
