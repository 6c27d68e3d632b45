/* ---- Probing: what a few queries think of every key ---- */

/* The last key of a rectangle that the query at `row` meets there: its window is attended elsewhere. */
static hai_index hai_rect_last(const hai_plan *plan, hai_index row) {
  const hyperattn_problem *p = plan->problem;
  return p->causal ? row + plan->n_key - plan->n_query - plan->window : plan->n_key;
}

/* Puts query `row` of the rectangle into a lane. */
static void hai_rect_query(hai_job *job, int lane, hai_index row) {
  hai_tile_query(job, lane, job->head, row, 0, hai_rect_last(job->plan, row));
}

static hai_index hai_n_probes(const hai_job *job) {
  return hai_min(job->plan->probe_queries, job->rect.n_query);
}

/* Held-out queries of a rectangle: runs of HAI_JUDGE_RUN, one from each stratum; all, if there are few. */
static int hai_n_judges(const hai_job *job) {
  return hai_to_int(hai_min(job->audit ? HAI_AUDITORS : HAI_JUDGES, job->rect.n_query));
}
static hai_index hai_judge_runs(const hai_job *job) {
  return (job->audit ? HAI_AUDITORS : HAI_JUDGES) / HAI_JUDGE_RUN;
}
static int hai_all_judge(const hai_job *job) {
  return job->rect.n_query <= hai_judge_runs(job) * HAI_JUDGE_RUN;
}
static hai_index hai_judge_row(const hai_job *job, hai_index i) {
  hai_index runs = hai_judge_runs(job), run = i / HAI_JUDGE_RUN, n = job->rect.n_query, begin, size;
  if (hai_all_judge(job)) return job->rect.query_begin + i;
  begin = hai_cut(n, runs, run);
  size = hai_cut(n, runs, run + 1) - begin;
  begin += HAI_AS(hai_index,
                  hai_uniform(0, HAI_AS(uint64_t, size - HAI_JUDGE_RUN + 1),
                              hai_random_of(job, job->audit ? HAI_FOR_AUDITORS : HAI_FOR_JUDGES, run)));
  return job->rect.query_begin + begin + i % HAI_JUDGE_RUN;
}

/* Probe t of a rectangle: one query from each stratum. One that is to judge gives way to its neighbour. */
static hai_index hai_probe_row(const hai_job *job, hai_index t) {
  hai_index n = job->rect.n_query, runs = hai_judge_runs(job), run;
  hai_index row = hai_draw(n, hai_n_probes(job), t, hai_random_of(job, HAI_FOR_PROBES, t));
  row += job->rect.query_begin;
  if (n < 2 * HAI_JUDGES) return row;
  run = hai_judge_row(job, hai_part_of(n, runs, row - job->rect.query_begin) * HAI_JUDGE_RUN);
  if (row < run || row >= run + HAI_JUDGE_RUN) return row;
  return run > job->rect.query_begin ? run - 1 : run + HAI_JUDGE_RUN;
}

/* Opens at most n tiles of queries row_of(first) .. row_of(end - 1); returns how many. */
static int hai_tiles_open(hai_job *job, hai_tile *const *tiles, int n, hai_index first, hai_index end,
                          hai_index (*row_of)(const hai_job *, hai_index), hai_index value_dim) {
  const hai_plan *plan = job->plan;
  int opened, i;
  for (opened = 0; opened < n && first < end; opened++) {
    job->tile = tiles[opened];
    for (i = 0; i < plan->float_kernel->lanes && first < end; i++)
      hai_rect_query(job, i, row_of(job, first++));
    hai_tile_open(job, i, plan->scale, value_dim);
  }
  return opened;
}

/* Keys of this task's chunk. */
static hai_index hai_probe_begin(const hai_job *job, hai_index chunk) {
  return hai_chunk_begin(job, hai_job_probe_chunks(job), chunk);
}

/* m and l of every probe over one chunk of keys. Cost: probes * keys of the chunk. */
HAI_APART void hai_stage_probe(hai_job *job) {
  float *partial = hai_partial(job, job->chunk);
  hai_tile *tiles[HAI_MAX_TILES];
  int most = hai_tiles_place(job, tiles), n, i, t;
  hai_index first = 0, probes = hai_n_probes(job);
  while (first < probes) {
    n = hai_tiles_open(job, tiles, most, first, probes, hai_probe_row, 0);
    hai_tiles_run(job, tiles, n, hai_probe_begin(job, job->chunk), hai_probe_begin(job, job->chunk + 1));
    for (t = 0; t < n; t++)
      for (i = 0; i < tiles[t]->n; i++, first++) {
        partial[2 * first] = tiles[t]->m[i];
        partial[2 * first + 1] = tiles[t]->l[i];
      }
  }
}

/* Every probe's sum over the rectangle: its logarithm takes the place of the first chunk's maximum. +inf
   (all weights 0) where a probe saw nothing or nothing finite. Cost: probes * chunks. */
HAI_APART void hai_stage_sum(hai_job *job) {
  hai_index chunks = hai_job_probe_chunks(job), probes = hai_n_probes(job), c, i;
  for (i = 0; i < probes; i++) {
    float lse = -hai_inf();
    for (c = 0; c < chunks && lse != hai_inf(); c++) {
      const float *partial = hai_partial(job, c) + 2 * i;
      float part = hai_state_lse(partial[0], partial[1]);
      lse = part != part || part == hai_inf() ? hai_inf() : hai_log_add(lse, part);
    }
    hai_partial(job, 0)[2 * i] = lse == -hai_inf() ? hai_inf() : lse;
  }
}

/* For the report: over the lanes in use, the squares of what is in the place of the scores of n_keys keys. */
static void hai_add_squares(const hai_job *job, hai_index key, int n_keys, int anew) {
  const hai_tile *tile = job->tile;
  float *square = hai_squared_mass(job) + (key - job->rect.key_begin);
  int lanes = tile->kernel->lanes, i, j;
  for (j = 0; j < n_keys; j++) {
    if (anew) square[j] = 0.0f;
    for (i = 0; i < tile->n; i++) square[j] += tile->score[j * lanes + i] * tile->score[j * lanes + i];
  }
}

/* Adds what those probes of the tile that are in `good` give to the masses of keys key .. key + count - 1. */
static void hai_tile_mass(hai_job *job, hai_index key, int count, uint64_t good, float *mass) {
  hai_tile *tile = job->tile;
  int j;
  hai_tile_fill(tile, key, key + count);
  for (j = 0; j < count; j++) tile->visible[j] = tile->masked ? tile->visible[j] & good : good;
  /* with the reference set to lse, softmax leaves the normalised weights */
  HYPERATTN_MEMCPY(tile->m, tile->spare, HAI_AS(size_t, tile->kernel->lanes) * sizeof(float));
  tile->kernel->scores(tile->query, job->plan->head_dim, tile->key, count, tile->begin, tile->end,
                       tile->score);
  tile->kernel->softmax(tile->score, count, HAI_NULL, tile->visible, tile->begin, tile->end, tile->m,
                        tile->l, tile->factor);
  tile->kernel->sum_lanes(tile->score, count, tile->begin, tile->end, tile->per_key);
  for (j = 0; j < count; j++) mass[j] += tile->per_key[j];
}

/* Column masses of one chunk of keys: M_j = sum over probes of e^(s_pj - lse_p), and for the report the
   largest sum of squares of that, in the place of the first probe's sum. Cost: probes * keys. */
HAI_APART void hai_stage_mass(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tiles[HAI_MAX_TILES];
  float *mass = hai_mass(job) - job->rect.key_begin;
  hai_index begin = hai_probe_begin(job, job->chunk), end = hai_probe_begin(job, job->chunk + 1);
  hai_index first = 0, probes = hai_n_probes(job), key;
  int most = hai_tiles_place(job, tiles), lanes = plan->float_kernel->lanes, n, t, i;
  for (key = begin; key < end; key++) mass[key] = 0.0f;
  while (first < probes) {
    /* probes that saw something, all of it finite: a bad one has no say */
    uint64_t good[HAI_MAX_TILES] = {0};
    int anew = first == 0;
    n = hai_tiles_open(job, tiles, most, first, probes, hai_probe_row, 0);
    for (t = 0; t < n; t++)
      for (i = 0; i < lanes; i++) {
        float lse = i < tiles[t]->n ? hai_partial(job, 0)[2 * first++] : hai_inf();
        good[t] |= HAI_AS(uint64_t, hai_finite(lse)) << i;
        /* no score may move the reference, though lse is rounded */
        tiles[t]->spare[i] = hai_finite(lse) ? lse + 1e-6f * (1.0f + (lse < 0.0f ? -lse : lse)) : lse;
      }
    for (key = begin; key < end; key += HAI_CHUNK) {
      int count = hai_to_int(hai_min(HAI_CHUNK, end - key));
      hai_tile_rows(tiles[0], key, key + count);
      for (t = 0; t < n; t++) {
        job->tile = tiles[t];
        hai_tile_mass(job, key, count, good[t], mass + key);
        if (plan->reporting) hai_add_squares(job, key, count, anew && t == 0);
      }
    }
  }
  if (plan->reporting)
    hai_partial(job, job->chunk)[1] =
        hai_largest(hai_squared_mass(job) + (begin - job->rect.key_begin), end - begin);
}

/* In four sums, since one would wait for itself. */
static float hai_squared_norm(const float *row, hai_index dim) {
  float sum0 = 0.0f, sum1 = 0.0f, sum2 = 0.0f, sum3 = 0.0f;
  hai_index t;
  for (t = 0; t + 4 <= dim; t += 4) {
    sum0 += row[t] * row[t];
    sum1 += row[t + 1] * row[t + 1];
    sum2 += row[t + 2] * row[t + 2];
    sum3 += row[t + 3] * row[t + 3];
  }
  for (; t < dim; t++) sum0 += row[t] * row[t];
  return sum0 + sum1 + (sum2 + sum3);
}

/* Sampling weights of one chunk of keys, in the place of their masses: M_j |v_j|, or |v_j|^2. Not finite
   counts as 0. */
HAI_APART void hai_stage_weigh(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index begin = hai_probe_begin(job, job->chunk), end = hai_probe_begin(job, job->chunk + 1), key;
  float *mass = hai_mass(job) - job->rect.key_begin;
  for (key = begin; key < end; key++) {
    float norm = hai_squared_norm(hai_value_row(job, key, job->tile->line), plan->value_dim);
    mass[key] = plan->params->sampling == HYPERATTN_SAMPLE_VALUE_NORM ? norm : mass[key] * hai_sqrt(norm);
    if (!hai_finite(mass[key])) mass[key] = 0.0f;
  }
}
