/* ---- Growing: an index and its cache ---- */

#if HAI_INDEX
/* What an append or a truncation needs: the shape, and that the index is one for it, whatever its length. */
static hyperattn_status hai_index_resolve(hai_plan *plan, const hyperattn_index *index,
                                          const hyperattn_problem *p) {
  hyperattn_status status;
  if (!p) return HYPERATTN_ERROR_NULL_PROBLEM;
  if ((status = hai_check_shape(p)) != HYPERATTN_OK) return status;
  if (hai_too_many(p)) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  if (!index) return HYPERATTN_ERROR_NULL_INDEX;
  if (!hai_index_fits(index, p) || p->n_key > index->capacity) return HYPERATTN_ERROR_INDEX;
  HYPERATTN_MEMSET(plan, 0, sizeof *plan);
  plan->problem = p;
  hai_resolve_shape(plan);
  plan->float_kernel = plan->kernel = hai_kernel_of(HYPERATTN_ISA_AUTO);
  if (!plan->kernel) return HYPERATTN_ERROR_ISA_ABSENT;
  plan->scan_kernel = hai_scan_kernel_of(plan->kernel);
  return HYPERATTN_OK;
}

/* Everything that an append checks. */
static hyperattn_status hai_index_check_append(hai_plan *plan, const hyperattn_index *index,
                                               const hyperattn_problem *p) {
  hyperattn_status status = hai_index_resolve(plan, index, p);
  hai_buffers buffers;
  if (status != HYPERATTN_OK) return status;
  if (p->n_key < index->length) return HYPERATTN_ERROR_INDEX;
  if (!p->batch || !p->n_key) return HYPERATTN_OK;
  if (!p->key.data) return HYPERATTN_ERROR_NULL_KEY;
  HYPERATTN_MEMSET(&buffers, 0, sizeof buffers); /* status: ok */
  buffers.batch = hai_to_index(p->batch);
  buffers.heads = plan->n_kv_heads;
  buffers.rows = plan->n_key;
  buffers.n_results = 1;
  hai_add_index(&buffers, index);
  hai_add_rows(&buffers, &p->key, plan->head_dim);
  return hai_check_overlap(&buffers);
}

/* ---- A block ---- */

/* Room for making a block, in the index, for each kv head. */
typedef struct hai_index_room {
  float *mean; /* [head_dim]: of turned keys, as its codes tell it */
  float *x;    /* [head_dim][HAI_TURNED]: turned keys */
  float *row;  /* [head_dim]: a key that is widened */
  float *step; /* [HAI_CHUNK]: what a step of a key's codes is worth */
} hai_index_room;

static hai_index_room hai_index_room_at(float *at, hai_index dim) {
  hai_index_room room;
  room.mean = at;
  room.x = room.mean + dim;
  room.row = room.x + dim * HAI_TURNED;
  room.step = room.row + dim;
  return room;
}

/* The mean of the keys first .. first + HAI_CHUNK - 1, turned, and its codes. It is rounded to them before
   keys are compared with it, so that rounding it costs nothing. Returns the codes' unit. */
static float hai_index_centre(const hai_job *job, const hai_rows *keys, hai_index first,
                              const hai_index_room *room, uint8_t *code) {
  hai_index dim = job->plan->head_dim, t;
  float largest, *mean = room->mean, unit, inverse;
  int j;
  HYPERATTN_MEMSET(mean, 0, HAI_AS(size_t, dim) * sizeof *mean);
  for (j = 0; j < HAI_CHUNK; j++) {
    const float *row = hai_rows_read(job, keys, first + j, room->row);
    for (t = 0; t < dim; t++) mean[t] += row[t] * (1.0f / HAI_CHUNK);
  }
  hai_turn_one(mean, dim);
  largest = hai_largest_size(mean, dim);
  unit = largest * (1.0f / HAI_MEAN_MOST);
  inverse = largest > 0.0f ? HAI_MEAN_MOST / largest : 0.0f;
  if (!hai_finite(inverse)) inverse = 0.0f;
  for (t = 0; t < dim; t++) {
    float at = mean[t] * inverse;
    code[t] = HAI_AS(uint8_t, (at > -HAI_MEAN_MOST ? at : -HAI_MEAN_MOST) + HAI_MEAN_RAISED + 0.5f);
    mean[t] = HAI_AS(float, code[t] - HAI_MEAN_RAISED) * unit;
  }
  return unit;
}

/* Does key j of those that are turned differ from the mean in no coordinate? Else its square may vanish. */
static int hai_index_is_zero(const hai_index_room *room, hai_index dim, int j) {
  hai_index t = 0;
  while (t < dim && room->x[t * HAI_TURNED + j] == 0.0f) t++;
  return t == dim;
}

/* Codes of keys first .. first + HAI_TURNED - 1 of a block, of what room->x differs from the mean. A
   coordinate of a key whose coordinates have the deviation s has the code 0 below -a s, 3 above a s, and else
   1 or 2 by its sign, a that of the best even steps for a normal distribution (Max, Quantizing for minimum
   distortion, 1960). What a step is worth makes the product with the key itself right. Returns the sum
   of what x squared has of the mean of the block. */
static float hai_index_encode(const hai_job *job, const hai_index_room *room, int first, uint8_t *code) {
  const hai_scan_kernel *kernel = job->plan->scan_kernel;
  float square[HAI_TURNED], product[HAI_TURNED], inverse[HAI_TURNED], sum = 0.0f;
  hai_index dim = job->plan->head_dim;
  int j;
  kernel->differ(room->x, dim, room->mean, square);
  for (j = 0; j < HAI_TURNED; j++) {
    float edge = 0.9957f * hai_sqrt(square[j] / HAI_AS(float, dim));
    inverse[j] = edge > 0.0f && hai_finite(edge) ? hai_inverse(edge) : 0.0f;
  }
  kernel->halve(room->x, dim, inverse, code + 4 * first, product);
  for (j = 0; j < HAI_TURNED; j++) { /* of NaN or infinities: NaN or infinite */
    room->step[first + j] = product[j] > 0.0f ? square[j] / product[j] : square[j] - square[j];
    if (square[j] < HAI_LEAST_SQUARE && !hai_index_is_zero(room, dim, j)) room->step[first + j] = hai_inf();
  }
  for (j = 0; j < HAI_TURNED; j++) sum += square[j] * (1.0f / HAI_CHUNK);
  return sum;
}

/* Norms by the steps. Returns their unit; not finite where a step is not. */
static float hai_index_norms(const float *step, uint8_t *norm) {
  float most = hai_largest_size(step, HAI_CHUNK), inverse;
  int j;
  inverse = most > 0.0f ? 127.0f / most : 0.0f;
  if (!hai_finite(inverse) || !hai_finite(most)) inverse = 0.0f;
  for (j = 0; j < HAI_CHUNK; j++) norm[j] = HAI_AS(uint8_t, inverse > 0.0f ? step[j] * inverse + 0.5f : 0.0f);
  return most * (1.0f / 127.0f);
}

/* Makes block `block` of the job's kv head. */
static void hai_index_make(const hai_job *job, const hai_rows *keys, hai_index block,
                           const hai_index_room *room, uint8_t *to) {
  hai_index dim = job->plan->head_dim, first = block * HAI_CHUNK, t;
  hai_block_layout y = hai_block_layout_of(dim);
  float unit[3];
  int begin, j;
  HYPERATTN_MEMSET(to, 0, y.size);
  unit[2] = 0.0f;
  unit[0] = hai_index_centre(job, keys, first, room, to + y.mean);
  for (begin = 0; begin < HAI_CHUNK; begin += HAI_TURNED) {
    for (j = 0; j < HAI_TURNED; j++) {
      const float *row = hai_rows_read(job, keys, first + begin + j, room->row);
      for (t = 0; t < dim; t++) room->x[t * HAI_TURNED + j] = row[t];
    }
    hai_turn(room->x, dim, HAI_TURNED, job->plan->scan_kernel->turn);
    unit[2] += hai_index_encode(job, room, begin, to);
  }
  unit[1] = hai_index_norms(room->step, to + y.norm);
  HYPERATTN_MEMCPY(to + y.units, unit, sizeof unit);
}

/* Makes the blocks of a kv head that are missing. */
static void hai_index_grow(const hai_plan *plan, hyperattn_index *index, hai_index flat_kv_head) {
  int64_t *done = hai_index_done(index, flat_kv_head);
  hai_index blocks = plan->n_key / HAI_CHUNK, block = *done >= 0 ? hai_clamp(*done, blocks) : 0;
  hai_index_room room = hai_index_room_at(hai_index_space(index, flat_kv_head), plan->head_dim);
  uint32_t before = 0;
  hai_rows keys;
  hai_job job;
  HYPERATTN_MEMSET(&job, 0, sizeof job);
  job.plan = plan;
  job.batch = flat_kv_head / plan->n_kv_heads;
  job.kv_head = flat_kv_head % plan->n_kv_heads;
  keys = hai_rows_of(&job, &plan->problem->key, plan->head_dim);
  if (plan->kernel->enter) before = plan->kernel->enter();
  for (; block < blocks; block++)
    hai_index_make(&job, &keys, block, &room, hai_index_block_at(index, flat_kv_head, block));
  if (plan->kernel->leave) plan->kernel->leave(before);
  *done = blocks;
}

/* ---- The calls ---- */

HYPERATTN_API size_t hyperattn_index_size(const hyperattn_problem *shape) {
  size_t bytes;
  if (!shape || hai_check_shape(shape) != HYPERATTN_OK || hai_too_many(shape)) return 0;
  bytes = hai_index_bytes(shape->batch, shape->n_kv_heads, shape->head_dim, shape->n_key);
  return bytes == SIZE_MAX ? 0 : bytes + HAI_ALIGN - 1;
}

HYPERATTN_API hyperattn_status hyperattn_index_init(hyperattn_index **index, const hyperattn_problem *shape,
                                                    void *memory, size_t size) {
  hyperattn_status status;
  hyperattn_index *made;
  size_t need;
  hai_index i;
  if (!shape) return HYPERATTN_ERROR_NULL_PROBLEM;
  if ((status = hai_check_shape(shape)) != HYPERATTN_OK) return status;
  if (!index || !memory) return HYPERATTN_ERROR_NULL_INDEX;
  need = hyperattn_index_size(shape);
  if (!need) return HYPERATTN_ERROR_SIZE_OVERFLOW;
  if (size < need) return HYPERATTN_ERROR_INDEX_SIZE;
  made = HAI_PLACE(hyperattn_index, hai_align(memory));
  HYPERATTN_MEMSET(made, 0, sizeof *made);
  made->self = made;
  made->batch = shape->batch;
  made->n_kv_heads = shape->n_kv_heads;
  made->head_dim = shape->head_dim;
  made->capacity = shape->n_key;
  for (i = 0; i < shape->batch * shape->n_kv_heads; i++) *hai_index_done(made, i) = 0;
  made->check = hai_index_check(made);
  *index = made;
  return HYPERATTN_OK;
}

static void hai_index_set_length(hyperattn_index *index, int64_t length) {
  index->length = length;
  index->check = hai_index_check(index);
}

HYPERATTN_API hyperattn_status hyperattn_index_append(hyperattn_index *index,
                                                      const hyperattn_problem *problem) {
  hai_plan plan;
  hyperattn_status status = hai_index_check_append(&plan, index, problem);
  hai_index i;
  if (status != HYPERATTN_OK) return status;
  for (i = 0; i < problem->batch * problem->n_kv_heads; i++) hai_index_grow(&plan, index, i);
  hai_index_set_length(index, problem->n_key);
  return HYPERATTN_OK;
}

HYPERATTN_API void hyperattn_index_append_head(hyperattn_index *index, const hyperattn_problem *problem,
                                               int64_t kv_head) {
  hai_plan plan;
  if (hai_index_check_append(&plan, index, problem) == HYPERATTN_OK && kv_head >= 0 &&
      kv_head < problem->batch * problem->n_kv_heads)
    hai_index_grow(&plan, index, hai_to_index(kv_head));
}

HYPERATTN_API hyperattn_status hyperattn_index_truncate(hyperattn_index *index,
                                                        const hyperattn_problem *problem) {
  hai_plan plan;
  hyperattn_status status = hai_index_resolve(&plan, index, problem);
  hai_index i;
  if (status != HYPERATTN_OK) return status;
  if (problem->n_key > index->length) return HYPERATTN_ERROR_INDEX;
  for (i = 0; i < problem->batch * problem->n_kv_heads; i++) {
    int64_t *done = hai_index_done(index, i);
    if (*done > problem->n_key / HAI_CHUNK) *done = problem->n_key / HAI_CHUNK;
  }
  hai_index_set_length(index, problem->n_key);
  return HYPERATTN_OK;
}

HYPERATTN_API int64_t hyperattn_index_length(const hyperattn_index *index) {
  return hai_index_is_sound(index) ? index->length : 0;
}
#endif
