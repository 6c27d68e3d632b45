/* ---- Access: a call's arrays, for one head and one rectangle ---- */

/* What a task works on. */
typedef struct hai_job {
  const hai_plan *plan;
  char *base;    /* workspace, aligned */
  char *scratch; /* what is left of this worker's */
  hai_tile *tile;
  hai_index batch, head, kv_head; /* head is -1 in tasks of a kv head */
  int level, pairing;
  int audit; /* are the held-out queries those of the report */
  hai_rect rect;
  hai_index chunk;
} hai_job;

static hai_index hai_flat_head(const hai_job *job) { return job->batch * job->plan->n_heads + job->head; }
static hai_index hai_flat_kv_head(const hai_job *job) {
  return job->batch * job->plan->n_kv_heads + job->kv_head;
}
/* The rectangle's number `index` for a purpose. */
static uint64_t hai_random_of(const hai_job *job, int purpose, hai_index index) {
  return hai_random(job->plan->params->seed, HAI_AS(uint64_t, job->rect.region), HAI_AS(uint64_t, purpose),
                    HAI_AS(uint64_t, index));
}
/* Bytes of so many elements. */
HAI_HOT ptrdiff_t hai_offset(hyperattn_dtype dtype, ptrdiff_t elements) {
  return elements / hai_unit(dtype) * HAI_AS(ptrdiff_t, hai_unit_bytes(dtype));
}
/* Where a row lies. */
HAI_HOT const char *hai_row(const hyperattn_input *x, hai_index batch, hai_index head, hai_index row) {
  return HAI_AS(const char *, x->data) +
         hai_offset(x->dtype, batch * x->batch_stride + head * x->head_stride + row * x->row_stride);
}
static char *hai_out_row(const hyperattn_output *x, hai_index batch, hai_index head, hai_index row) {
  return HAI_AS(char *, x->data) +
         hai_offset(x->dtype, batch * x->batch_stride + head * x->head_stride + row * x->row_stride);
}
/* A row in float32: itself, or widened into `room` [dim]. */
static const float *hai_read(const hai_job *job, const void *row, hyperattn_dtype dtype, hai_index dim,
                             float *room) {
  if (hai_is_f32(dtype)) return HAI_AS(const float *, row);
  job->plan->float_kernel->widen(row, dtype, dim, room);
  return room;
}
static const float *hai_query_row(const hai_job *job, hai_index head, hai_index row, float *room) {
  const hyperattn_problem *p = job->plan->problem;
  return hai_read(job, hai_row(&p->query, job->batch, head, row), p->query.dtype, job->plan->head_dim,
                  room);
}
static const float *hai_key_row(const hai_job *job, hai_index key, float *room) {
  const hyperattn_problem *p = job->plan->problem;
  return hai_read(job, hai_row(&p->key, job->batch, job->kv_head, key), p->key.dtype, job->plan->head_dim,
                  room);
}
static const float *hai_value_row(const hai_job *job, hai_index key, float *room) {
  const hyperattn_problem *p = job->plan->problem;
  return hai_read(job, hai_row(&p->value, job->batch, job->kv_head, key), p->value.dtype,
                  job->plan->value_dim, room);
}
static float *hai_floats(const hai_job *job, size_t offset) { return HAI_PLACE(float, job->base + offset); }
static int32_t *hai_ints(const hai_job *job, size_t offset) {
  return HAI_PLACE(int32_t, job->base + offset);
}

static uint16_t *hai_codes(const hai_job *job, int of_key) {
  const hai_layout *y = &job->plan->layout;
  return HAI_PLACE(uint16_t, job->base + (of_key ? y->key_code : y->query_code)) +
         (of_key ? hai_flat_kv_head(job) * job->plan->n_key : hai_flat_head(job) * job->plan->n_query);
}
/* Rows of the rectangle in the pairing's order: sorted position -> row of the tensor. Position order needs no
   array: NULL, and rows follow one another from the rectangle's first. */
static int hai_sorting(const hai_job *job) {
  return job->pairing != HAI_NO_BLOCKS && job->plan->sorted[job->pairing];
}
static int32_t *hai_query_order(const hai_job *job) {
  if (!hai_sorting(job)) return HAI_NULL;
  return hai_ints(job, job->plan->layout.query_order) + hai_flat_head(job) * job->plan->n_query +
         job->rect.query_begin;
}
static int32_t *hai_key_order(const hai_job *job) {
  if (!hai_sorting(job)) return HAI_NULL;
  return hai_ints(job, job->plan->layout.key_order) + hai_flat_kv_head(job) * job->plan->n_key +
         job->rect.key_begin;
}
HAI_HOT hai_index hai_at(const int32_t *order, hai_index first, hai_index i) {
  return order ? order[i] : first + i;
}
/* Rectangles of a level share arrays: each begins at its first key (or query) over the unit, plus its
   index, which leaves room for the rounding of all before it. */
static float *hai_mean(const hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index first = job->rect.key_begin / plan->key_group + job->rect.index;
  return hai_floats(job, plan->layout.mean) +
         (hai_flat_kv_head(job) * plan->layout.n_means + first) * plan->head_dim;
}
static float *hai_superblock_mean(const hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_index first =
      (job->rect.key_begin / plan->key_group + job->rect.index) / HAI_SUPERBLOCK + job->rect.index;
  return hai_floats(job, plan->layout.superblock_mean) +
         (hai_flat_kv_head(job) * plan->layout.n_superblocks + first) * plan->head_dim;
}
static float *hai_partial(const hai_job *job, hai_index chunk) { /* of one chunk: [probe][2] */
  const hai_plan *plan = job->plan;
  hai_index chunks = hai_probe_chunks(hai_level_keys(plan, job->level));
  return hai_floats(job, plan->layout.partial) +
         2 * (hai_flat_head(job) * plan->layout.n_partials + job->rect.index * chunks + chunk) *
             plan->probe_queries;
}
/* Of one chunk: for each tile of held-out queries m, l [lanes], o [value_dim][lanes]. */
static float *hai_truth(const hai_job *job, hai_index chunk) {
  const hai_plan *plan = job->plan;
  hai_index chunks = hai_judge_chunks(hai_level_keys(plan, job->level));
  return hai_floats(job, plan->layout.truth) +
         (hai_flat_head(job) * plan->layout.n_truths + job->rect.index * chunks + chunk) *
             plan->layout.truth_floats;
}
static float *hai_mass(const hai_job *job) {
  return hai_floats(job, job->plan->layout.mass) + hai_flat_head(job) * job->plan->n_key +
         job->rect.key_begin;
}
static float *hai_squared_mass(const hai_job *job) {
  return hai_floats(job, job->plan->layout.squared_mass) + hai_flat_head(job) * job->plan->n_key +
         job->rect.key_begin;
}
static uint32_t *hai_pinned(const hai_job *job) {
  return HAI_PLACE(uint32_t, job->base + job->plan->layout.pinned) +
         hai_flat_head(job) * job->plan->layout.n_pin_words + job->rect.key_begin / 32 + job->rect.index;
}
HAI_HOT int hai_is_pinned(const hai_job *job, const uint32_t *pinned, hai_index key) {
  hai_index bit = key - job->rect.key_begin;
  return HAI_AS(int, pinned[bit / 32] >> (bit % 32) & 1);
}
static int32_t *hai_pins(const hai_job *job) {
  const hai_plan *plan = job->plan;
  return hai_ints(job, plan->layout.pins) +
         (hai_flat_head(job) * plan->max_rects + job->rect.index) * plan->layout.max_pins;
}
static hai_column *hai_columns(const hai_job *job, int wide) {
  const hai_plan *plan = job->plan;
  return HAI_PLACE(hai_column, job->base + plan->layout.columns) +
         (hai_flat_head(job) * plan->max_rects + job->rect.index) *
             (plan->layout.max_columns + plan->layout.max_wide) +
         (wide ? plan->layout.max_columns : 0);
}
static int32_t *hai_counts(const hai_job *job) { /* pins, columns, columns of the wide draw */
  return hai_ints(job, job->plan->layout.counts) +
         3 * (hai_flat_head(job) * job->plan->max_rects + job->rect.index);
}
static int32_t *hai_choice(const hai_job *job, hai_index group) {
  const hai_plan *plan = job->plan;
  hai_index first = job->rect.query_begin / plan->query_group + job->rect.index;
  return hai_ints(job, plan->layout.choice) +
         (hai_flat_head(job) * plan->layout.n_choices + first + group) * plan->take;
}
static hai_verdict *hai_verdict_of(const hai_job *job) {
  return HAI_PLACE(hai_verdict, job->base + job->plan->layout.verdict) +
         hai_flat_head(job) * job->plan->max_rects + job->rect.index;
}
static int hai_takes_blocks(const hai_verdict *verdict, int pairing) {
  return verdict->pairing == pairing && (verdict->recipe == HAI_BLOCKS || verdict->recipe == HAI_BOTH);
}
static void hai_verdict_open(hai_verdict *verdict) {
  verdict->recipe = HAI_BLOCKS;
  verdict->pairing = verdict->settled = verdict->tried = 0;
  verdict->error = hai_inf();
}
static hai_record *hai_record_of(const hai_job *job) {
  return HAI_PLACE(hai_record, job->base + job->plan->layout.record) +
         hai_flat_head(job) * job->plan->layout.n_records + job->rect.region;
}
static float *hai_cap(const hai_job *job) {
  return hai_floats(job, job->plan->layout.cap) + hai_flat_head(job) * job->plan->layout.cap_chunks;
}
