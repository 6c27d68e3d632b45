/* Few queries: exact attention where a tile's lanes would stay empty, as in decoding. Coordinates lie in the
   lanes, and each key is read once for the queries of all heads that share it, as it lies. Many keys are cut
   into parts, a task each, whose states rest in the workspace until they are merged. Parts follow from n_key,
   n_query and the sliding window. Given the parts, a row's result depends neither on other rows nor on how
   many there are. */

/* ---- Parts of the keys ---- */

/* The first key of the first part: no query sees one before it. */
static hai_index hai_few_begin(const hai_plan *plan) {
  hai_index first, last;
  hai_seen_keys(plan, 0, &first, &last);
  return hai_min(first, plan->n_key) / HAI_CHUNK * HAI_CHUNK;
}
static hai_index hai_few_parts(const hai_plan *plan) {
  return hai_few_parts_of(plan->n_key - hai_few_begin(plan));
}
/* Tasks of a kv head for each part, of HAI_FEW_ROWS rows each. */
static hai_index hai_few_row_tasks(const hai_plan *plan) {
  return hai_ceil_div(plan->n_query * plan->heads_per_kv, HAI_FEW_ROWS);
}

/* ---- What a task works on ---- */

/* A row: query `row` of a head. */
typedef struct hai_few_query {
  hai_index head, row;
  hai_index first, last; /* it sees keys first .. last */
  const char *mask;      /* its row of the mask, from key 0, by which a slope is multiplied */
  float slope;
} hai_few_query;

typedef struct hai_few {
  const hai_kernel *kernel;
  hai_rows keys, values;
  hai_index key_dim, value_dim;                            /* whole steps of coordinates */
  const char *key[2][HAI_CHUNK], *value[2][HAI_CHUNK];     /* rows of a chunk and of the next, by turns */
  const char *wide_key[HAI_CHUNK], *wide_value[HAI_CHUNK]; /* rows that are widened before they are met */
  const char *shown[HAI_CHUNK];                            /* values that are not hidden */
  int n;
  hai_few_query query[HAI_FEW_ROWS];
  uint64_t visible[HAI_FEW_ROWS]; /* bit j: key j of the chunk */
  float m[HAI_FEW_ROWS], l[HAI_FEW_ROWS], factor[HAI_FEW_ROWS];
  float *packed;       /* [n][key_dim]: queries, times the scale of scores */
  float *o;            /* [n][value_dim], and two rows more, for merging */
  float *score, *bias; /* [most][HAI_CHUNK] */
  float *slope;        /* [HAI_CHUNK], of one row */
} hai_few;

/* Rows of a task. */
static hai_index hai_few_most_rows(const hai_plan *plan) {
  return hai_min(hai_min(plan->n_query, hai_few_queries(plan)) * plan->heads_per_kv, HAI_FEW_ROWS);
}
static hai_index hai_few_dim(const hai_plan *plan, hai_index dim) {
  hai_index step = plan->float_kernel->few->step;
  return hai_ceil_div(dim, step) * step;
}
/* Floats of a chunk of rows that are widened: those that the kernel does not read as they lie, and those that
   so many queries meet that it takes less time to widen them once. */
static hai_index hai_few_widened(const hai_plan *plan, hyperattn_dtype dtype, hai_index dim) {
  int step = plan->float_kernel->few->step;
  int reads = hai_is_f32(dtype) ||
              (step > 1 && !hai_is_custom(dtype) && hai_few_most_rows(plan) <= HAI_FEW_UNWIDENED(dtype));
  return reads && dim % step == 0 ? 0 : HAI_CHUNK * hai_few_dim(plan, dim);
}
/* Bytes of a task's memory, which overlays that of the tile. */
static size_t hai_few_bytes(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  hai_index key_dim = hai_few_dim(plan, plan->head_dim), value_dim = hai_few_dim(plan, plan->value_dim);
  hai_index rows = hai_few_most_rows(plan), floats = rows * key_dim + (rows + 2) * value_dim;
  floats += HAI_CHUNK * (plan->float_kernel->few->most * 2 + 1);
  floats += hai_few_widened(plan, p->key.dtype, plan->head_dim) +
            hai_few_widened(plan, p->value.dtype, plan->value_dim);
  return hai_round_up(sizeof(hai_few)) + HAI_AS(size_t, floats) * sizeof(float) + 8 * HAI_ALIGN;
}

/* Room for widened rows, if they are to be widened. */
static void hai_few_room(hai_rows *rows, hai_index floats, hai_index dim, const char **wide, char **at) {
  int j;
  rows->widened = hai_carve(at, floats);
  for (j = 0; rows->widened && j < HAI_CHUNK; j++)
    wide[j] = HAI_REINTERPRET(const char *, rows->widened + j * dim);
}
/* Coordinates behind a widened row's own are 0. */
static void hai_few_clear(const hai_rows *rows, hai_index dim) {
  if (rows->widened) HYPERATTN_MEMSET(rows->widened, 0, HAI_AS(size_t, HAI_CHUNK * dim) * sizeof(float));
}

static hai_few *hai_few_place(const hai_job *job) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  char *at = HAI_REINTERPRET(char *, job->tile);
  hai_few *few = HAI_PLACE(hai_few, at);
  at += hai_round_up(sizeof(hai_few));
  few->kernel = plan->float_kernel;
  few->key_dim = hai_few_dim(plan, plan->head_dim);
  few->value_dim = hai_few_dim(plan, plan->value_dim);
  few->packed = hai_carve(&at, hai_few_most_rows(plan) * few->key_dim);
  few->o = hai_carve(&at, (hai_few_most_rows(plan) + 2) * few->value_dim);
  few->score = hai_carve(&at, few->kernel->few->most * HAI_CHUNK);
  few->bias = hai_carve(&at, few->kernel->few->most * HAI_CHUNK);
  few->slope = hai_carve(&at, HAI_CHUNK);
  few->keys = hai_rows_of(job, &p->key, plan->head_dim);
  few->values = hai_rows_of(job, &p->value, plan->value_dim);
  hai_few_room(&few->keys, hai_few_widened(plan, p->key.dtype, plan->head_dim), few->key_dim, few->wide_key,
               &at);
  hai_few_room(&few->values, hai_few_widened(plan, p->value.dtype, plan->value_dim), few->value_dim,
               few->wide_value, &at);
  return few;
}

/* ---- The rows ---- */

static void hai_few_open_row(const hai_job *job, hai_few *few, int i, hai_index row) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  hai_few_query *q = &few->query[i];
  float *packed = few->packed + i * few->key_dim;
  const float *from;
  hai_index t;
  q->head = job->kv_head * plan->heads_per_kv + row % plan->heads_per_kv;
  q->row = row / plan->heads_per_kv;
  from = hai_query_row(job, q->head, q->row, packed);
  for (t = 0; t < plan->head_dim; t++) packed[t] = plan->scale * from[t];
  for (; t < few->key_dim; t++) packed[t] = 0.0f;
  hai_seen_keys(plan, q->row, &q->first, &q->last);
  hai_state_begin(-hai_inf(), &few->m[i], &few->l[i]);
  if (!hai_masking(plan)) return;
  q->mask = hai_row(&p->mask, job->batch, q->head, q->row);
  q->slope = hai_mask_slope(p, q->head);
}

/* Once the rows are open: nothing is met. */
static void hai_few_begin_rows(hai_few *few) {
  hai_few_clear(&few->keys, few->key_dim);
  hai_few_clear(&few->values, few->value_dim);
  HYPERATTN_MEMSET(few->o, 0, HAI_AS(size_t, few->n * few->value_dim) * sizeof(float));
  HYPERATTN_MEMSET(few->score, 0, HAI_AS(size_t, few->kernel->few->most * HAI_CHUNK) * sizeof(float));
}

/* Is a row to meet every key? Over an index, only one for which no sample was good enough. */
static int hai_few_meets(const hai_job *job, hai_index head, hai_index row) {
#if HAI_INDEX
  return !hai_looking(job->plan) || hai_met_of(job, head, row)->exact;
#else
  (void)job, (void)head, (void)row;
  return 1;
#endif
}

/* Opens those of rows row .. row + n - 1 of a kv head, numbered as in hai_exact_open, that meet every key. */
static void hai_few_open(const hai_job *job, hai_few *few, hai_index row, int n) {
  hai_index heads = job->plan->heads_per_kv, end = row + n;
  for (few->n = 0; row < end; row++)
    if (hai_few_meets(job, job->kv_head * heads + row % heads, row / heads))
      hai_few_open_row(job, few, few->n++, row);
  hai_few_begin_rows(few);
}
/* Writes a row of the result from its state; o is overwritten. */
static void hai_few_close_row(const hai_job *job, hai_index head, hai_index row, float m, float l, float *o) {
  const hyperattn_problem *p = job->plan->problem;
  hai_index dim = job->plan->value_dim, t;
  char *result = hai_out_row(&p->out, job->batch, head, row);
  float factor = l == 0.0f ? 0.0f : 1.0f / l;
  for (t = 0; t < dim; t++) o[t] = (o[t] + 0.0f) * factor;
  if (hai_is_f32(p->out.dtype))
    HYPERATTN_MEMCPY(result, o, HAI_AS(size_t, dim) * sizeof(float));
  else
    hai_narrow(o, dim, p->out.dtype, result);
  hai_row_close(job->plan, hai_flat_head_of(job, head) * job->plan->n_query + row, hai_state_lse(m, l));
}

/* ---- A chunk ---- */

/* row[j] = where row begin + j lies, of at most a chunk. Rows before `first` are not looked up: nobody sees
   them, and their page numbers may be invalid. They and the entries behind the last repeat a row that is
   there, since kernels read several at a time. */
static void hai_few_walk(const hai_rows *rows, hai_index begin, hai_index end, hai_index first,
                         const char **row) {
  hai_index from = hai_max(begin, first), j = 0, n = end - begin;
  hai_walk walk = hai_walk_from(rows, from);
  for (; begin + j <= from; j++) row[j] = walk.at;
  for (; j < n; j++) {
    hai_walk_on(&walk, rows, begin + j);
    row[j] = walk.at;
  }
  for (; j < HAI_CHUNK; j++) row[j] = walk.at;
}

/* The rows as the kernel reads them. */
static hai_few_rows hai_few_read(const hai_few *few, const hai_rows *rows, hai_index dim,
                                 const char *const *row, const char *const *wide, int n) {
  hai_few_rows read = {rows->dtype, dim, row, row, n};
  float *to = rows->widened;
  int j;
  if (!to) return read;
  for (j = 0; j < n; j++, to += dim) {
    if (hai_is_f32(rows->dtype))
      HYPERATTN_MEMCPY(to, row[j], HAI_AS(size_t, rows->dim) * sizeof(float));
    else
      hai_rows_at(rows, row[j], few->kernel, to, 0);
  }
  read.dtype = HYPERATTN_F32;
  read.row = read.ahead = wide;
  return read;
}

/* Which of n keys from `key` on each row sees, the mask left out. Returns whether any row sees any. */
static int hai_few_look(hai_few *few, hai_index key, int n) {
  uint64_t any = 0;
  int i;
  for (i = 0; i < few->n; i++) {
    hai_index begin = hai_max(few->query[i].first - key, 0), end = hai_min(few->query[i].last - key + 1, n);
    few->visible[i] = begin < end ? hai_lane_bits(hai_to_int(begin), hai_to_int(end)) : 0;
    any |= few->visible[i];
  }
  return any != 0;
}

/* Functions of tiles take scores [key][lane]. A row's scores pass as those of one key, so many from j on as a
   tile has lanes. */
static int hai_row_lanes(const hai_kernel *kernel, int j) {
  return hai_to_int(hai_min(kernel->lanes, HAI_CHUNK - j));
}

/* Reads row i's bias of the n keys from `key` on, and hides the keys where it is -inf. */
static void hai_few_mask(const hai_job *job, hai_few *few, int i, hai_index key, int n, float *bias) {
  hyperattn_dtype dtype = job->plan->problem->mask.dtype;
  const char *at = few->query[i].mask + HAI_AS(size_t, key) * hai_unit_bytes(dtype);
  int j;
  HYPERATTN_MEMSET(bias, 0, HAI_CHUNK * sizeof(float));
  if (hai_is_f32(dtype))
    HYPERATTN_MEMCPY(bias, at, HAI_AS(size_t, n) * sizeof(float));
  else
    few->kernel->widen(at, dtype, n, bias);
  for (j = 0; j < HAI_CHUNK; j += few->kernel->lanes) {
    uint64_t shown = UINT64_MAX;
    few->kernel->hide(bias + j, 1, 0, hai_row_lanes(few->kernel, j), &shown);
    few->visible[i] &= ~(~shown << j);
  }
}

/* Caps the scores of a chunk of keys. */
static void hai_cap_row(const hai_kernel *kernel, float *score, float softcap) {
  int j;
  for (j = 0; j < HAI_CHUNK; j += kernel->lanes)
    kernel->cap(score + j, 1, softcap, 0, hai_row_lanes(kernel, j));
}

/* What row i's products become: scores. */
static void hai_few_finish_scores(const hai_job *job, hai_few *few, int i, float *score, const float *bias) {
  float softcap = job->plan->problem->softcap;
  int j;
  if (HAI_SOFTCAP && softcap > 0.0f) hai_cap_row(few->kernel, score, softcap);
  if (!hai_masking(job->plan)) return;
  for (j = 0; j < HAI_CHUNK; j++) few->slope[j] = few->query[i].slope;
  for (j = 0; j < HAI_CHUNK; j += few->kernel->lanes)
    few->kernel->add_bias(score + j, 1, bias + j, few->slope, 0, hai_row_lanes(few->kernel, j));
}

/* Rows i .. i + n - 1, which see the same keys of the chunk, add their values. A hidden value is not read:
   0 * inf is NaN. Leaving it out changes no bit, since its weight is 0. */
static void hai_few_add_values(hai_few *few, hai_few_rows values, int i, int n, float *weight) {
  uint64_t visible = few->visible[i];
  int shown = 0, j, k;
  if (visible != hai_lane_bits(0, values.n)) {
    for (j = 0; j < values.n; j++) {
      if (!(visible >> j & 1)) continue;
      for (k = 0; k < n; k++) weight[k * HAI_CHUNK + shown] = weight[k * HAI_CHUNK + j];
      few->shown[shown++] = values.row[j];
    }
    values.row = few->shown;
    values.n = shown;
    values.ahead = few->shown;
  }
  few->kernel->few->values(&values, weight, few->factor + i, n, few->o + i * few->value_dim);
}

/* Rows i .. i + n - 1 meet the keys of a chunk, the first of which is `key`. */
static void hai_few_meet(const hai_job *job, hai_few *few, int i, int n, hai_index key,
                         const hai_few_rows *keys, hai_few_rows values) {
  const hai_few_kernel *kernel = few->kernel->few;
  uint64_t any = 0;
  int k, end;
  for (k = 0; k < n; k++) {
    if (hai_masking(job->plan)) hai_few_mask(job, few, i + k, key, keys->n, few->bias + k * HAI_CHUNK);
    any |= few->visible[i + k];
  }
  if (!any) return;
  kernel->scores(keys, few->packed + i * few->key_dim, n, few->score);
  for (k = 0; k < n; k++)
    hai_few_finish_scores(job, few, i + k, few->score + k * HAI_CHUNK, few->bias + k * HAI_CHUNK);
  kernel->softmax(few->score, n, keys->n, HAI_NULL, few->visible + i, few->m + i, few->l + i,
                  few->factor + i);
  for (k = 0; k < n; k = end) {
    for (end = k + 1; end < n && few->visible[i + end] == few->visible[i + k];) end++;
    hai_few_add_values(few, values, i + k, end - k, few->score + k * HAI_CHUNK);
    values.ahead = values.row;
  }
}

/* What starts to load while the chunk of this turn is met: its values while scores are computed, and the next
   chunk's keys while values are added up. Rows that are widened have been read before, so that theirs are the
   next chunk's. */
static void hai_few_load_ahead(const hai_few *few, int turn, int is_last, hai_few_rows *keys,
                               hai_few_rows *values) {
  if (!is_last) values->ahead = few->key[turn ^ 1];
  if (!few->values.widened)
    keys->ahead = few->value[turn];
  else if (!is_last)
    keys->ahead = few->value[turn ^ 1];
}

/* All rows meet keys begin .. end - 1, chunk by chunk, in as few sets as can be, of sizes as even as can be:
   5 queries are 2 and 3. The first set starts to load what comes next. */
static void hai_few_run(const hai_job *job, hai_few *few, hai_index begin, hai_index end) {
  const hai_kernel *kernel = few->kernel;
  hai_index first = end, last = begin - 1, next;
  hai_few_rows keys, values;
  int i, n, sets, turn = 0;
  for (i = 0; i < few->n; i++) {
    first = hai_min(first, few->query[i].first);
    last = hai_max(last, few->query[i].last);
  }
  begin = hai_max(begin, first / HAI_CHUNK * HAI_CHUNK);
  end = hai_min(end, last + 1);
  if (begin >= end) return;
  hai_few_walk(&few->keys, begin, hai_min(begin + HAI_CHUNK, end), first, few->key[0]);
  hai_few_walk(&few->values, begin, hai_min(begin + HAI_CHUNK, end), first, few->value[0]);
  for (; begin < end; begin = next, turn ^= 1) {
    next = hai_min(begin + HAI_CHUNK, end);
    n = hai_to_int(next - begin);
    if (next < end) {
      hai_few_walk(&few->keys, next, hai_min(next + HAI_CHUNK, end), first, few->key[turn ^ 1]);
      hai_few_walk(&few->values, next, hai_min(next + HAI_CHUNK, end), first, few->value[turn ^ 1]);
    }
    if (!hai_few_look(few, begin, n)) continue;
    keys = hai_few_read(few, &few->keys, few->key_dim, few->key[turn], few->wide_key, n);
    values = hai_few_read(few, &few->values, few->value_dim, few->value[turn], few->wide_value, n);
    hai_few_load_ahead(few, turn, next == end, &keys, &values);
    sets = (few->n + kernel->few->most - 1) / kernel->few->most;
    for (i = 0; i < sets; i++) {
      int from = few->n * i / sets;
      hai_few_meet(job, few, from, few->n * (i + 1) / sets - from, begin, &keys, values);
      keys.ahead = keys.row;
      values.ahead = values.row;
    }
  }
}

/* ---- The stages ---- */

/* A part's state of a query, in the workspace: o, then m and l. */
static float *hai_few_state(const hai_job *job, hai_index head, hai_index part, hai_index row) {
  const hai_plan *plan = job->plan;
  return HAI_PLACE(float, hai_array_at(job, HAI_ARRAY_FEW, hai_flat_head_of(job, head))) +
         (part * plan->n_query + row) * hai_few_stride(plan);
}

/* Some rows of a kv head meet a part of the keys. A sink joins the first part only. */
HAI_APART void hai_stage_few(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_few *few = hai_few_place(job);
  hai_index parts = hai_few_parts(plan), part = job->chunk % parts, row = job->chunk / parts * HAI_FEW_ROWS;
  hai_index begin = hai_few_begin(plan), end = plan->n_key;
  int i;
  hai_few_open(job, few, row, hai_to_int(hai_min(HAI_FEW_ROWS, plan->n_query * plan->heads_per_kv - row)));
  if (!few->n) return;
  for (i = 0; HAI_SINKS && plan->problem->sink && part == 0 && i < few->n; i++)
    hai_state_begin(plan->problem->sink[few->query[i].head], &few->m[i], &few->l[i]);
  if (parts > 1) {
    begin += part * HAI_FEW_KEYS;
    end = hai_min(end, begin + HAI_FEW_KEYS);
  }
  hai_few_run(job, few, begin, end);
  for (i = 0; i < few->n; i++) {
    const hai_few_query *q = &few->query[i];
    float *o = few->o + i * few->value_dim;
    if (parts == 1) {
      hai_few_close_row(job, q->head, q->row, few->m[i], few->l[i], o);
    } else {
      float *state = hai_few_state(job, q->head, part, q->row);
      HYPERATTN_MEMCPY(state, o, HAI_AS(size_t, few->value_dim) * sizeof(float));
      state[few->value_dim] = few->m[i];
      state[few->value_dim + 1] = few->l[i];
    }
  }
}

/* Does a part count? One whose share is 0 does if it holds a NaN. Its sums may be infinite where its scores
   are far below the row's, since they were added up by a lower reference. */
static int hai_few_counts(const float *state, hai_index n, float share) {
  hai_index t;
  for (t = 0; share == 0.0f && t < n; t++)
    if (state[t] != state[t]) return 1;
  return share != 0.0f;
}

/* m = max over parts of m_p, l = sum of e^(m_p - m) l_p, out = sum of e^(m_p - m) o_p / l. The kernel adds up
   o_p as values, up to HAI_CHUNK parts at a time, into few->o; few->shown lists their states, few->score has
   their weights. The two rows behind few->o are the sum of these sums, and what rounding takes from it. */
static void hai_few_merge(const hai_job *job, hai_few *few, hai_index row, hai_index parts) {
  hai_index dim = few->value_dim, part, t;
  hai_few_rows values = {HYPERATTN_F32, dim, few->shown, few->shown, 0};
  float m = -hai_inf(), l = 0.0f, l_lost = 0.0f, *sum = few->o + dim, *lost = sum + dim, zero = 0.0f;
  for (part = 0; part < parts; part++) {
    float of_part = hai_few_state(job, job->head, part, row)[dim];
    m = of_part > m ? of_part : m;
  }
  HYPERATTN_MEMSET(sum, 0, HAI_AS(size_t, 2 * dim) * sizeof(float));
  for (part = 0; part < parts;) {
    for (values.n = 0; values.n < HAI_CHUNK && part < parts; part++) {
      const float *state = hai_few_state(job, job->head, part, row);
      float share = hai_share(state[dim], m);
      if (!hai_few_counts(state, dim + 2, share)) continue;
      few->shown[values.n] = HAI_REINTERPRET(const char *, state);
      few->score[values.n++] = share;
      l = hai_two_sum(l, share * state[dim + 1], &l_lost);
    }
    HYPERATTN_MEMSET(few->o, 0, HAI_AS(size_t, dim) * sizeof(float));
    few->kernel->few->values(&values, few->score, &zero, 1, few->o);
    for (t = 0; t < dim; t++) sum[t] = hai_two_sum(sum[t], few->o[t], &lost[t]);
  }
  for (t = 0; t < dim; t++) sum[t] += lost[t];
  hai_few_close_row(job, job->head, row, m, l + l_lost, sum);
}

/* The parts of a head's queries become results. */
HAI_APART void hai_stage_merge(hai_job *job) {
  hai_few *few = hai_few_place(job);
  hai_index row;
  for (row = 0; row < job->plan->n_query; row++)
    if (hai_few_meets(job, job->head, row)) hai_few_merge(job, few, row, hai_few_parts(job->plan));
}
