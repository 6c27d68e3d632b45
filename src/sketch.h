/* ---- The sketch: what a scan reads in place of keys ----
   The first n_key / HAI_CHUNK * HAI_CHUNK keys of a kv head in whole blocks of HAI_CHUNK keys. A block is
   known by its mean key and, for each key, codes of 8 bits a coordinate for how it differs from the mean,
   all worth the same unit: key[t] is about mean[t] + unit * code[t]. No key changes another block. Beside
   each key stand a random number, which decides whether it is kept, and how far its value lies from a
   value in their midst, which tells how large an error is. One sketch serves all query heads that share
   the keys. */

#if HAI_SCAN
/* The unit of a block of which a key or value is not finite: all of it is met exactly. */
#define HAI_WHOLE (-1.0f)

typedef struct hai_sketch {
  uint8_t *code;   /* [blocks][HAI_CHUNK][code_dim]: HAI_KEY_RAISED more than the codes */
  float *norm;     /* [blocks][code_dim / 4]: of any key, the largest norm of a word's codes */
  float *spread;   /* [code_dim / 4]: the mean sum of squares of a word's codes in some early blocks; */
  float *usual;    /* [code_dim / 4]: the mean norm there, */
  float *worth;    /* and the mean unit */
  float *mean;     /* [blocks][head_dim] */
  float *unit;     /* [blocks] */
  float *draw;     /* [blocks + 1][HAI_CHUNK]: -ln of a random number; the last block is the first again */
  float *distance; /* [blocks][HAI_CHUNK]: |value - centre|^2 */
  float *centre;   /* [value_dim] */
} hai_sketch;

static hai_sketch hai_sketch_of(const hai_job *job) {
  hai_sketch sketch;
  hai_index kv_head = hai_flat_kv_head(job);
  sketch.code = HAI_PLACE(uint8_t, hai_array_at(job, HAI_ARRAY_CODE, kv_head));
  sketch.norm = hai_floats(job, HAI_ARRAY_NORM);
  sketch.spread = hai_floats(job, HAI_ARRAY_SPREAD);
  sketch.usual = sketch.spread + hai_code_dim(job->plan) / 4;
  sketch.worth = sketch.usual + hai_code_dim(job->plan) / 4;
  sketch.mean = hai_floats(job, HAI_ARRAY_BLOCK_MEAN);
  sketch.unit = hai_floats(job, HAI_ARRAY_CODE_UNIT);
  sketch.draw = hai_floats(job, HAI_ARRAY_DRAW);
  sketch.distance = hai_floats(job, HAI_ARRAY_DISTANCE);
  sketch.centre = hai_floats(job, HAI_ARRAY_CENTRE);
  return sketch;
}

/* centre [value_dim] = the mean of HAI_CHUNK values, evenly spread over the head's keys; those that are not
   finite count as 0. Any value would do: the nearer to most results, the better are estimates of errors. */
static void hai_sketch_centre(const hai_job *job, float *room, float *centre) {
  const hai_plan *plan = job->plan;
  hai_index t, i;
  HYPERATTN_MEMSET(centre, 0, HAI_AS(size_t, plan->value_dim) * sizeof(float));
  for (i = 0; i < HAI_CHUNK; i++) {
    const float *value = hai_value_row(job, hai_cut(plan->n_key, HAI_CHUNK, i), room);
    if (!hai_row_finite(value, HYPERATTN_F32, plan->value_dim)) continue;
    for (t = 0; t < plan->value_dim; t++) centre[t] += value[t] * (1.0f / HAI_CHUNK);
  }
}

/* Means and codes of one block, whose rows are listed in `row` [HAI_CHUNK]. Returns whether its keys are
   finite. */
static int hai_sketch_keys(const hai_job *job, const hai_sketch *sketch, hai_index block, const float **row,
                           float *room) {
  const hai_plan *plan = job->plan;
  const hai_scan_kernel *kernel = plan->scan_kernel;
  float *mean = sketch->mean + block * plan->head_dim, reach, inverse;
  int32_t *norm = HAI_PLACE(int32_t, room); /* rows are read before it is written */
  hai_index first = block * HAI_CHUNK, dim = plan->head_dim, code_dim = hai_code_dim(plan);
  hai_index n_words = code_dim / 4, j;
  for (j = 0; j < HAI_CHUNK; j++) row[j] = hai_key_row(job, first + j, room + j * dim);
  kernel->mean(row, dim, mean);
  reach = hai_float(HAI_AS(uint32_t, kernel->reach(row, dim, mean)));
  inverse = 127.0f / reach;
  if (!hai_finite(reach) || !hai_finite(inverse)) inverse = 0.0f;
  for (j = 0; j < HAI_CHUNK; j++)
    kernel->encode(row[j], dim, mean, inverse, sketch->code + (first + j) * code_dim);
  kernel->norms(sketch->code + first * code_dim, hai_to_int(n_words), norm);
  for (j = 0; j < n_words; j++) sketch->norm[block * n_words + j] = hai_sqrt(HAI_AS(float, norm[j]));
  sketch->unit[block] = reach * (1.0f / 127.0f);
  return hai_finite(reach);
}

/* How far codes spread and what they are worth, by the first blocks but the very first, whose keys are often
   like no others. Every query that scans sees these blocks: so no later key has a part in what it keeps. */
static void hai_sketch_spread(const hai_job *job, const hai_sketch *sketch) {
  const hai_plan *plan = job->plan;
  hai_index dim = hai_code_dim(plan), most = hai_min(plan->min_seq_len / HAI_CHUNK, HAI_SPREAD_BLOCKS);
  hai_index block = most > 1, n = hai_max(1, most) - block, w, j;
  float each = 1.0f / HAI_AS(float, n);
  HYPERATTN_MEMSET(sketch->spread, 0, HAI_AS(size_t, dim / 4 * 2 + 1) * sizeof(float));
  for (; n-- > 0; block++) {
    if (sketch->unit[block] == HAI_WHOLE) continue;
    for (w = 0; w < dim / 4; w++) {
      const uint8_t *code = sketch->code + block * HAI_CHUNK * dim + 4 * w;
      int32_t sum = 0;
      for (j = 0; j < HAI_CHUNK; j++, code += dim) sum += hai_scan_squares(code);
      sketch->spread[w] += each * (1.0f / HAI_CHUNK) * HAI_AS(float, sum);
      sketch->usual[w] += each * sketch->norm[block * (dim / 4) + w];
    }
    *sketch->worth += each * sketch->unit[block];
  }
}

/* Stage SKETCH: some blocks of a kv head. Reads keys and values; writes the sketch. Cost: keys * (head_dim +
   value_dim). */
HAI_APART void hai_stage_sketch(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_sketch sketch = hai_sketch_of(job);
  const float **row = HAI_PLACE(const float *, job->scratch);
  float *centre = HAI_PLACE(float, row + HAI_CHUNK), *room = centre + plan->value_dim;
  hai_index block = job->chunk * (HAI_TASK_ROWS / HAI_CHUNK), j;
  hai_index end = hai_min(block + HAI_TASK_ROWS / HAI_CHUNK, hai_sketch_blocks(plan));
  hai_sketch_centre(job, room, centre);
  for (; block < end; block++) {
    int is_finite = hai_sketch_keys(job, &sketch, block, row, room);
    for (j = block * HAI_CHUNK; j < (block + 1) * HAI_CHUNK; j++) {
      uint64_t random = hai_random(plan->params->seed, 0, HAI_FOR_DRAWS, HAI_AS(uint64_t, j));
      const float *value = hai_value_row(job, j, room);
      sketch.draw[j] = -hai_log((HAI_AS(float, random >> 41) + 0.5f) * (1.0f / 8388608.0f));
      sketch.distance[j] = plan->scan_kernel->apart(value, plan->value_dim, centre);
      /* its square may overflow, but what the block is must not depend on the centre */
      if (!hai_finite(sketch.distance[j])) is_finite &= hai_row_finite(value, HYPERATTN_F32, plan->value_dim);
    }
    if (!is_finite) sketch.unit[block] = HAI_WHOLE;
  }
  if (job->chunk) return;
  HYPERATTN_MEMCPY(sketch.draw + hai_sketch_blocks(plan) * HAI_CHUNK, sketch.draw, HAI_CHUNK * sizeof(float));
  HYPERATTN_MEMCPY(sketch.centre, centre, HAI_AS(size_t, plan->value_dim) * sizeof(float));
  hai_sketch_spread(job, &sketch);
}
#endif
