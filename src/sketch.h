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
  int8_t *code;    /* [blocks][HAI_CHUNK][code_dim] */
  int32_t *lift;   /* [blocks][HAI_CHUNK]: HAI_RAISED times the sum of a key's codes */
  float *mean;     /* [blocks][head_dim] */
  float *unit;     /* [blocks] */
  float *draw;     /* [blocks + 1][HAI_CHUNK]: -ln of a random number; the last block is the first again */
  float *distance; /* [blocks][HAI_CHUNK]: |value - centre|^2 */
  float *centre;   /* [value_dim] */
} hai_sketch;

static hai_sketch hai_sketch_of(const hai_job *job) {
  hai_sketch sketch;
  hai_index kv_head = hai_flat_kv_head(job);
  sketch.code = HAI_PLACE(int8_t, hai_array_at(job, HAI_ARRAY_CODE, kv_head));
  sketch.lift = HAI_PLACE(int32_t, hai_array_at(job, HAI_ARRAY_LIFT, kv_head));
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
  hai_index first = block * HAI_CHUNK, dim = plan->head_dim, code_dim = hai_code_dim(plan), j;
  for (j = 0; j < HAI_CHUNK; j++) row[j] = hai_key_row(job, first + j, room + j * dim);
  kernel->mean(row, dim, mean);
  reach = hai_float(HAI_AS(uint32_t, kernel->reach(row, dim, mean)));
  inverse = 127.0f / reach;
  if (!hai_finite(reach) || !hai_finite(inverse)) inverse = 0.0f;
  for (j = 0; j < HAI_CHUNK; j++)
    sketch->lift[first + j] =
        HAI_RAISED * kernel->encode(row[j], dim, mean, inverse, sketch->code + (first + j) * code_dim);
  sketch->unit[block] = reach * (1.0f / 127.0f);
  return hai_finite(reach);
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
  if (block == 0) HYPERATTN_MEMCPY(sketch.centre, centre, HAI_AS(size_t, plan->value_dim) * sizeof(float));
  for (; block < end; block++) {
    int is_finite = hai_sketch_keys(job, &sketch, block, row, room);
    for (j = block * HAI_CHUNK; j < (block + 1) * HAI_CHUNK; j++) {
      uint64_t random = hai_random(plan->params->seed, 0, HAI_FOR_DRAWS, HAI_AS(uint64_t, j));
      const float *value = hai_value_row(job, j, room);
      sketch.draw[j] = -hai_log((HAI_AS(float, random >> 41) + 0.5f) * (1.0f / 8388608.0f));
      sketch.distance[j] = plan->scan_kernel->apart(value, plan->value_dim, centre);
      is_finite &= hai_row_finite(value, HYPERATTN_F32, plan->value_dim); /* whatever the centre is */
    }
    if (!is_finite) sketch.unit[block] = HAI_WHOLE;
    if (block == 0)
      HYPERATTN_MEMCPY(sketch.draw + hai_sketch_blocks(plan) * HAI_CHUNK, sketch.draw,
                       HAI_CHUNK * sizeof(float));
  }
}
#endif
