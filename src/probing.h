/* ---- Probing: which keys matter to a few queries ----
   Probes meet every key of the rectangle. The mass of a key is the attention that all probes together pay
   to it: M_j = sum over probes p of e^(s_pj - lse_p). The keys of largest mass are pinned (heavy keys),
   and masses weight the draw of columns. PROBE and SUM find each probe's lse, MASS then adds up; WEIGH makes
   sampling weights of masses. */

/* Keeps m and l of a tile's probes. */
static void hai_keep_partial(const hai_job *job, hai_index first) {
  float *partial = hai_partial(job, job->chunk) + 2 * first;
  int i;
  for (i = 0; i < job->tile->n; i++) {
    partial[2 * i] = job->tile->m[i];
    partial[2 * i + 1] = job->tile->l[i];
  }
}

/* Stage PROBE: m and l of every probe over one chunk of keys. Reads queries and keys; writes partial. Cost:
   probes * keys of the chunk. */
HAI_APART void hai_stage_probe(hai_job *job) {
  hai_meet_chunk(job, hai_n_probes(job), hai_probe_row, 0, hai_job_probe_chunks(job), hai_keep_partial);
}

/* Stage SUM: the lse of HAI_SUM_PROBES probes over the rectangle. Reads partial and stores each lse in place
   of the first chunk's m, or +inf, which makes all weights 0, where the probe met nothing or anything that
   is not finite. Cost: probes * chunks. */
HAI_APART void hai_stage_sum(hai_job *job) {
  hai_index chunks = hai_job_probe_chunks(job), c, i = job->chunk * HAI_SUM_PROBES,
            end = hai_min(i + HAI_SUM_PROBES, hai_n_probes(job));
  for (; i < end; i++) {
    float lse = -hai_inf();
    for (c = 0; c < chunks && lse != hai_inf(); c++) {
      const float *partial = hai_partial(job, c) + 2 * i;
      float part = hai_state_lse(partial[0], partial[1]);
      lse = part != part || part == hai_inf() ? hai_inf() : hai_log_add(lse, part);
    }
    hai_partial(job, 0)[2 * i] = lse == -hai_inf() ? hai_inf() : lse;
  }
}

/* Adds the squared weights (in tile->score) of the lanes in use to the squared masses of n_keys keys from
   `key` on, which begin at 0 where `is_first`. The report's alpha needs them. */
static void hai_add_squared_mass(const hai_job *job, hai_index key, int n_keys, int is_first) {
  const hai_tile *tile = job->tile;
  float *squared = hai_squared_mass(job) + (key - job->rect.key_begin);
  int lanes = tile->kernel->lanes, i, j;
  for (j = 0; j < n_keys; j++) {
    if (is_first) squared[j] = 0.0f;
    for (i = 0; i < tile->n; i++) squared[j] += tile->score[j * lanes + i] * tile->score[j * lanes + i];
  }
}

/* Adds the weights of the tile's `usable` probes (bits) to the masses of keys key .. key + count - 1. */
static void hai_tile_mass(hai_tile *tile, hai_index key, int count, uint64_t usable, float *mass) {
  int j;
  hai_tile_fill(tile, key, key + count);
  for (j = 0; j < count; j++) tile->visible[j] = tile->masked ? tile->visible[j] & usable : usable;
  tile->masked = 1;
  /* with each lane's reference m set to its lse, softmax leaves normalised weights e^(s - lse) */
  HYPERATTN_MEMCPY(tile->m, tile->spare, HAI_AS(size_t, tile->kernel->lanes) * sizeof(float));
  hai_tile_weights(tile);
  tile->kernel->sum_lanes(tile->score, count, tile->begin, tile->end, tile->per_key);
  for (j = 0; j < count; j++) mass[j] += tile->per_key[j];
}

/* Sets the references (tile->spare) of a tile whose lane 0 holds probe `first`: each probe's lse, raised a
   little, since lse is rounded and no score may lie above the reference. Returns the bits of the usable
   probes: those that met something, and only finite numbers. */
static uint64_t hai_set_references(const hai_job *job, hai_tile *tile, hai_index first) {
  uint64_t usable = 0;
  int i;
  for (i = 0; i < tile->kernel->lanes; i++) {
    float lse = i < tile->n ? hai_partial(job, 0)[2 * (first + i)] : hai_inf();
    usable |= HAI_AS(uint64_t, hai_finite(lse)) << i;
    tile->spare[i] = hai_finite(lse) ? lse + 1e-6f * (1.0f + (lse < 0.0f ? -lse : lse)) : lse;
  }
  return usable;
}

/* Stage MASS: column masses of one chunk of keys, and for the report their largest squared mass, which is
   written over the first probe's l. Reads queries, keys and partial; writes mass, squared_mass and partial.
   Cost: probes * keys of the chunk. */
HAI_APART void hai_stage_mass(hai_job *job) {
  hai_tile *tiles[HAI_MAX_TILES];
  uint64_t usable[HAI_MAX_TILES] = {0};
  float *mass = hai_mass(job) - job->rect.key_begin;
  hai_index chunks = hai_job_probe_chunks(job), begin = hai_chunk_begin(job, chunks, job->chunk),
            end = hai_chunk_begin(job, chunks, job->chunk + 1);
  hai_index first = 0, probes = hai_n_probes(job), key;
  int most = hai_tiles_place(job, tiles), is_first = 1, n, t;
  for (key = begin; key < end; key++) mass[key] = 0.0f;
  for (; first < probes; is_first = 0) {
    n = hai_tiles_open(job, tiles, most, first, probes, hai_probe_row, 0);
    for (t = 0; t < n; t++) {
      usable[t] = hai_set_references(job, tiles[t], first);
      first += tiles[t]->n;
    }
    for (key = begin; key < end; key += HAI_CHUNK) {
      int count = hai_to_int(hai_min(HAI_CHUNK, end - key));
      hai_tile_rows(tiles[0], key, key + count, key);
      for (t = 0; t < n; t++) {
        job->tile = tiles[t];
        hai_tile_fetch(tiles[t], t, n, key + count, hai_min(key + count + HAI_CHUNK, end));
        hai_tile_mass(tiles[t], key, count, usable[t], mass + key);
        if (job->plan->reporting) hai_add_squared_mass(job, key, count, is_first && t == 0);
      }
    }
  }
  if (job->plan->reporting)
    hai_partial(job, job->chunk)[1] =
        hai_largest(hai_squared_mass(job) + (begin - job->rect.key_begin), end - begin);
}

/* Stage WEIGH: sampling weights of one chunk of keys, written over their masses: M_j |v_j| for
   HYPERATTN_SAMPLE_COLUMN_MASS, |v_j|^2 for HYPERATTN_SAMPLE_VALUE_NORM, and 0 for what is not finite; and
   their sum over all keys but the pins. Reads values, mass and pinned; writes mass and partial. Cost: keys
   of the chunk * value_dim. */
HAI_APART void hai_stage_weigh(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index chunks = hai_job_probe_chunks(job), key = hai_chunk_begin(job, chunks, job->chunk),
            end = hai_chunk_begin(job, chunks, job->chunk + 1);
  float *mass = hai_mass(job) - job->rect.key_begin, sum = 0.0f;
  const uint32_t *pinned = hai_pinned(job);
  for (; key < end; key++) {
    float norm = plan->float_kernel->square(hai_value_row(job, key, job->tile->line), plan->value_dim);
    mass[key] = plan->params->sampling == HYPERATTN_SAMPLE_VALUE_NORM ? norm : mass[key] * hai_sqrt(norm);
    if (!hai_finite(mass[key])) mass[key] = 0.0f;
    if (!hai_is_pinned(job, pinned, key)) sum += mass[key];
  }
  *hai_partial(job, job->chunk) = sum;
}
