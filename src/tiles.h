/* Tiles. A tile holds up to kernel->lanes queries and their running states, and meets keys chunk by chunk.
   The tiles of a task share a chunk's rows where all of them meet the same keys. The state of a query is (m,
   l, o): the reference of its weights, their sum, and the weighted sum of values; out = o / l and lse = m +
   ln l. Between phases a state is stored as lse, in the workspace, and out, in the caller's tensor if that is
   float32 and otherwise in the workspace. */

/* Consecutive lanes that belong to one query group. */
typedef struct hai_group {
  int32_t id;
  int begin, end;        /* lanes begin .. end - 1 */
  const int32_t *blocks; /* the group's sub-blocks, ascending */
  int n_blocks;
  int at; /* position of a walk through the sub-blocks */
} hai_group;

/* Keys or values of one kv head. */
typedef struct hai_rows {
  const char *first;   /* row 0, or of page 0 the first row */
  ptrdiff_t stride;    /* bytes from row to row, of a page where there are pages */
  const int32_t *page; /* NULL, or the numbers of the pages: row r is in page[r / page_rows] */
  uint32_t page_rows;
  uint64_t page_inverse; /* r / page_rows = r * page_inverse >> page_shift */
  int page_shift;
  ptrdiff_t page_stride;                                 /* bytes */
  void (*custom)(const void *row, float *to, int64_t n); /* HYPERATTN_CUSTOM's, else NULL */
  hyperattn_dtype dtype;
  hai_index dim;
  float
      *widened; /* [chunk][dim]: a chunk's rows in float32; NULL where the kernel reads them as they lie */
} hai_rows;

/* The caller's mask, as a tile of exact attention reads it (masking.h). */
typedef struct hai_mask {
  const hai_kernel *kernel; /* of float32: its packing turns rows into lanes */
  hyperattn_dtype dtype;
  float *bias;                    /* [chunk][lanes], shared by the tiles of a task: of the keys that wait */
  float slope[HAI_MAX_LANES];     /* by which a lane's mask is multiplied */
  const char *row[HAI_MAX_LANES]; /* a lane's row of the mask, from key 0 */
} hai_mask;

struct hai_tile {
  const hai_kernel *kernel;
  /* the lanes' states: */
  float *query;        /* [head_dim][lanes]: packed, times the scale of scores */
  float *m;            /* [lanes] */
  float *l;            /* [2][lanes]: the sum, and what rounding has taken from it */
  float *o;            /* [hai_sum_rows][lanes] */
  float *sum;          /* shaped as o: the sum of what was carried from o, */
  float *lost;         /* and what rounding has taken from that */
  float *factor;       /* [lanes]: e^(old m - new m) of the last chunk */
  int carried;         /* how many arrays are in use besides o: 0, 1 (sum) or 2 (sum and lost) */
  int chunks;          /* chunks that the lanes aimed at have met */
  hai_index value_dim; /* 0: only m and l are computed */
  /* the lanes' queries: */
  int n;                          /* lanes 0 .. n - 1 hold queries */
  hai_index state[HAI_MAX_LANES]; /* index into lse: flat head * n_query + row */
  const void *row[HAI_MAX_LANES]; /* query rows, of the kernel's dtype, until they are packed */
  float *out[HAI_MAX_LANES];      /* output rows in float32, */
  void *result[HAI_MAX_LANES];    /* the caller's output rows; the same as `out` if they are float32 */
  hai_index first[HAI_MAX_LANES], last[HAI_MAX_LANES]; /* a lane sees keys first .. last */
  hai_index min_first, max_last;                       /* no lane sees a key outside these, */
  hai_index max_first, min_last;                       /* and every lane sees the keys from here to there */
  int n_groups;                                        /* query groups of the lanes, in order */
  hai_group group[HAI_MAX_LANES];
  /* the keys that wait: */
  int n_keys;                  /* at most HAI_CHUNK */
  int begin, end;              /* lanes that meet them: whole registers */
  uint64_t used;               /* bit i: lane i is one of those and holds a query */
  uint64_t visible[HAI_CHUNK]; /* [key], where `masked`: bit i: lane i sees the key */
  int masked;                  /* is any of the keys hidden from a lane in use */
  int weighted;                /* has any of the keys a log-weight */
  int guarded;                 /* hidden values must not reach a lane even as 0 * inf */
  int nonfinite;               /* a value of this chunk is known not to be finite */
  float softcap;               /* 0, or scores are capped softly by it */
  const float *clip;           /* NULL, or [lanes]: scores above it become it */
  hai_mask *mask;              /* NULL, or what is added to scores */
  /* a stage's own: */
  float *spare;   /* [3][lanes] */
  float *per_key; /* [chunk]; or values [chunk][kernel->value_multiple] that are free of infinities */
  /* shared by the tiles of a task: */
  hai_rows keys, values;
  float *score;              /* [chunk][lanes], and half as many rows again if the kernel reads bfloat16 */
  const void **key, **value; /* [chunk]: rows of the keys that wait, of the kernel's dtype */
  float *joined;             /* NULL, or the values as kernel->join writes them, */
  int *n_joined;             /* of the first so many keys that wait: 0 where they are still to be joined */
  int32_t *id;               /* [chunk]: positions of these keys; sub-blocks where those are scored */
  float *log_weight;         /* [chunk]: log-weights of these keys, where `weighted` */
  float *line;               /* [lanes][line_dim]: rows of queries or outputs in float32, or NULL */
  hai_index line_dim;
};

static hai_index hai_per_key_floats(const hai_plan *plan) {
#if HAI_AMX
  if (plan->may_use_amx) return HAI_CHUNK * HAI_AMX_ROWS / 2;
#endif
  (void)plan;
  return HAI_CHUNK;
}

/* May weights be rounded, and values joined, which the same kernels do? */
static int hai_may_round(const hai_plan *plan) {
  return HAI_ROUNDS && (plan->may_use_amx || plan->kernel->round);
}

/* Rows of a tile's o: the coordinates of a value and, where weights are rounded, the sum of those. */
static hai_index hai_sum_rows(const hai_tile *tile) {
  return tile->value_dim + (HAI_ROUNDS && tile->value_dim && tile->kernel->round);
}
static hai_index hai_most_sum_rows(const hai_plan *plan) {
  return plan->value_dim + hai_may_round(plan);
}
/* Can a tile meet so many keys that its sums are carried? */
static int hai_may_carry(const hai_plan *plan) {
  return HAI_LONG_SUMS && plan->n_key > HAI_CARRY_CHUNKS * HAI_CHUNK;
}

/* Bytes of what each tile has for itself. */
static size_t hai_tile_bytes(const hai_plan *plan) {
  size_t lanes = HAI_AS(size_t, plan->float_kernel->lanes), head_dim = HAI_AS(size_t, plan->head_dim);
  size_t rows = HAI_AS(size_t, hai_most_sum_rows(plan)) * (hai_may_carry(plan) ? 3 : 1);
  size_t floats = lanes * (head_dim + rows + 7) + HAI_AS(size_t, hai_per_key_floats(plan));
  return hai_round_up(sizeof(hai_tile)) + floats * sizeof(float) + 9 * HAI_ALIGN +
         (hai_masking(plan) ? hai_round_up(sizeof(hai_mask)) : 0);
}

/* Floats of a row widened in tile->line (0 where all tensors are float32), and of a chunk of widened keys
   or values (0 where the kernels read that dtype as it lies). */
static hai_index hai_line_dim(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  int is_float = hai_is_f32(p->query.dtype) && hai_is_f32(p->key.dtype) && hai_is_f32(p->value.dtype) &&
                 hai_is_f32(p->out.dtype);
  return is_float ? 0 : hai_max(plan->head_dim, plan->value_dim);
}
static hai_index hai_widened_floats(const hai_plan *plan, hyperattn_dtype dtype, hai_index dim) {
  int is_read = hai_is_f32(dtype) || (dtype == plan->kernel->dtype && !plan->may_use_amx);
  return is_read ? 0 : HAI_CHUNK * dim;
}
/* Floats of a chunk of values that are joined. */
static hai_index hai_joined_floats(const hai_plan *plan) {
  return hai_may_round(plan) ? HAI_CHUNK / 2 * plan->value_dim : 0;
}
/* Floats of the mask of a chunk. */
static hai_index hai_bias_floats(const hai_plan *plan) {
  return hai_masking(plan) ? HAI_CHUNK * plan->float_kernel->lanes : 0;
}
/* Rows of a chunk's scores, and of the rounded weights behind them. */
static hai_index hai_score_rows(const hai_plan *plan) {
  return HAI_CHUNK + (hai_may_round(plan) ? HAI_CHUNK / 2 : 0);
}
/* Bytes of what the tiles of a task share. */
static size_t hai_chunk_bytes(const hai_plan *plan) {
  const hyperattn_problem *p = plan->problem;
  hai_index floats = 2 * HAI_CHUNK +
                     plan->float_kernel->lanes * (hai_score_rows(plan) + hai_line_dim(plan)) +
                     hai_widened_floats(plan, p->key.dtype, plan->head_dim) +
                     hai_widened_floats(plan, p->value.dtype, plan->value_dim) + hai_joined_floats(plan) +
                     hai_bias_floats(plan);
  return HAI_AS(size_t, floats) * sizeof(float) + 2 * HAI_CHUNK * sizeof(void *) + 5 * HAI_ALIGN;
}

/* Tiles of a task. Where their states exceed a cache, as those of long rows do, reading keys and values less
   often still takes less time. */
static int hai_tiles(const hai_plan *plan) {
  return HAI_MAX_TILES == 1 ? 1 : plan->float_kernel->tiles; /* so that loops over tiles vanish */
}

/* Takes memory for so many floats from *at, rounded up to HAI_ALIGN; NULL for none. */
static float *hai_carve(char **at, hai_index floats) {
  float *begin = HAI_PLACE(float, *at);
  *at += hai_round_up(HAI_AS(size_t, floats) * sizeof(float));
  return floats ? begin : HAI_NULL;
}

/* Says in which pages the rows of an element of the batch lie. For all r < 2^31, floor(r / d), d = page_rows,
   is r * i >> k with k = 31 + s, 2^s the smallest power of 2 that is at least d, and i = floor(2^k / d) + 1:
   i d exceeds 2^k by at most d <= 2^s, and r 2^s < 2^k, so that r i / 2^k exceeds r / d by less than 1 / d.
   The product fits, since i <= 2^32. */
static void hai_rows_paged(hai_rows *rows, const hyperattn_input *x, hai_index batch) {
  uint64_t d = HAI_AS(uint64_t, x->page_rows);
  int k = 31;
  while (UINT64_C(1) << (k - 31) < d) k++;
  rows->page = x->page + batch * x->page_batch_stride;
  rows->page_rows = HAI_AS(uint32_t, d);
  rows->page_inverse = (UINT64_C(1) << k) / d + 1;
  rows->page_shift = k;
  rows->page_stride = hai_offset(x->dtype, x->page_stride);
}

/* Keys or values of the job's kv head. */
static hai_rows hai_rows_of(const hai_job *job, const hyperattn_input *x, hai_index dim) {
  hai_rows rows;
  int has_stride = job->plan->n_key > 1 && !(HAI_PAGES && x->page && x->page_rows == 1);
  HYPERATTN_MEMSET(&rows, 0, sizeof rows);
  if (job->plan->n_key) rows.first = hai_row(x, job->batch, job->kv_head, 0);
  if (has_stride) rows.stride = hai_offset(x->dtype, x->row_stride);
  if (HAI_PAGES && x->page) hai_rows_paged(&rows, x, job->batch);
  if (hai_is_custom(x->dtype)) rows.custom = x->widen;
  rows.dtype = x->dtype;
  rows.dim = dim;
  return rows;
}

/* Lays a tile out at *at and moves *at behind it. The tiles of a task share the chunk of its first one. */
HAI_APART hai_tile *hai_tile_place(const hai_job *job, const hai_tile *first, char **at) {
  const hai_plan *plan = job->plan;
  const hyperattn_problem *p = plan->problem;
  hai_index lanes = plan->float_kernel->lanes;
  hai_tile *tile = HAI_PLACE(hai_tile, *at);
  *at += hai_round_up(sizeof(hai_tile));
  tile->kernel = plan->kernel;
  tile->query = hai_carve(at, plan->head_dim * lanes);
  tile->o = hai_carve(at, hai_most_sum_rows(plan) * lanes);
  tile->sum = hai_carve(at, hai_may_carry(plan) ? hai_most_sum_rows(plan) * lanes : 0);
  tile->lost = hai_carve(at, hai_may_carry(plan) ? hai_most_sum_rows(plan) * lanes : 0);
  tile->m = hai_carve(at, lanes);
  tile->l = hai_carve(at, 2 * lanes);
  tile->factor = hai_carve(at, lanes);
  tile->spare = hai_carve(at, 3 * lanes);
  tile->per_key = hai_carve(at, hai_per_key_floats(plan));
  if (HAI_MASKS) tile->mask = HAI_NULL;
  if (hai_masking(plan)) {
    tile->mask = HAI_PLACE(hai_mask, *at);
    *at += hai_round_up(sizeof(hai_mask));
  }
  if (first) {
    tile->keys = first->keys;
    tile->values = first->values;
    tile->score = first->score;
    tile->key = first->key;
    tile->value = first->value;
    tile->joined = first->joined;
    tile->n_joined = first->n_joined;
    tile->line = first->line;
    tile->line_dim = first->line_dim;
    tile->id = first->id;
    tile->log_weight = first->log_weight;
    if (hai_masking(plan)) tile->mask->bias = first->mask->bias;
    return tile;
  }
  if (hai_masking(plan)) tile->mask->bias = hai_carve(at, hai_bias_floats(plan));
  tile->score = hai_carve(at, hai_score_rows(plan) * lanes);
  tile->keys = hai_rows_of(job, &p->key, plan->head_dim);
  tile->keys.widened = hai_carve(at, hai_widened_floats(plan, p->key.dtype, plan->head_dim));
  tile->values = hai_rows_of(job, &p->value, plan->value_dim);
  tile->values.widened = hai_carve(at, hai_widened_floats(plan, p->value.dtype, plan->value_dim));
  tile->joined = hai_carve(at, hai_joined_floats(plan));
  tile->n_joined = HAI_PLACE(int, *at);
  *at += HAI_ALIGN;
  tile->line_dim = hai_line_dim(plan);
  tile->line = hai_carve(at, lanes * tile->line_dim);
  tile->log_weight = hai_carve(at, HAI_CHUNK);
  tile->id = HAI_PLACE(int32_t, *at);
  *at += HAI_CHUNK * sizeof(int32_t);
  tile->key = HAI_PLACE(const void *, *at);
  tile->value = tile->key + HAI_CHUNK;
  *at += 2 * HAI_CHUNK * sizeof(void *);
  return tile;
}

/* Places all tiles of a task: the job's own is the first, the others lie in its scratch. Returns how
   many there are. */
static int hai_tiles_place(hai_job *job, hai_tile **tiles) {
  int n = hai_tiles(job->plan), i;
  tiles[0] = job->tile;
  for (i = 1; i < n; i++) tiles[i] = hai_tile_place(job, tiles[0], &job->scratch);
  return n;
}

/* The place of lane i for a row in float32. */
static float *hai_line(const hai_tile *tile, int i) {
  return tile->line ? tile->line + i * tile->line_dim : HAI_NULL;
}

/* A walk along rows of keys or values: where it stands, and how many rows are left of the page, this one
   included. */
typedef struct hai_walk {
  const char *at;
  uint32_t left;
} hai_walk;

/* A walk from row `row` on: all that reads keys and values finds them here. */
HAI_HOT hai_walk hai_walk_from(const hai_rows *rows, hai_index row) {
  uint32_t r = HAI_AS(uint32_t, row), page;
  hai_walk walk = {rows->first, UINT32_MAX};
  if (HAI_PAGES && rows->page) {
    page = HAI_AS(uint32_t, r * rows->page_inverse >> rows->page_shift);
    row = HAI_AS(ptrdiff_t, r - page * rows->page_rows);
    walk.at += rows->page[page] * rows->page_stride;
    walk.left = rows->page_rows - HAI_AS(uint32_t, row);
  }
  walk.at += row * rows->stride;
  return walk;
}
/* Goes on to the next row, which is `row`. */
HAI_HOT void hai_walk_on(hai_walk *walk, const hai_rows *rows, hai_index row) {
  walk->at += rows->stride;
  if (HAI_PAGES && --walk->left == 0) *walk = hai_walk_from(rows, row);
}

/* The row of keys or values at an address as a kernel reads it: as it lies, or widened into row j of `room`
   [][dim]. */
HAI_HOT const void *hai_rows_at(const hai_rows *rows, const char *at, const hai_kernel *kernel, float *room,
                                hai_index j) {
  if (hai_is_f32(rows->dtype) || rows->dtype == kernel->dtype) return at;
  room += j * rows->dim;
  if (HAI_CUSTOM && rows->custom)
    rows->custom(at, room, rows->dim);
  else
    kernel->widen(at, rows->dtype, rows->dim, room);
  return room;
}

/* A key or value row in float32: as it lies, or widened into `widened`. */
static const float *hai_rows_read(const hai_job *job, const hai_rows *rows, hai_index row, float *widened) {
  return HAI_AS(const float *,
                hai_rows_at(rows, hai_walk_from(rows, row).at, job->plan->float_kernel, widened, 0));
}
static const float *hai_key_row(const hai_job *job, hai_index key, float *widened) {
  return hai_rows_read(job, &job->tile->keys, key, widened);
}
static const float *hai_value_row(const hai_job *job, hai_index key, float *widened) {
  return hai_rows_read(job, &job->tile->values, key, widened);
}

/* Bits begin .. end - 1. */
HAI_HOT uint64_t hai_lane_bits(int begin, int end) {
  uint64_t below_end = end >= 64 ? UINT64_MAX : (UINT64_C(1) << end) - 1;
  return below_end & ~((UINT64_C(1) << begin) - 1);
}
/* The next keys are for lanes begin .. end - 1, and for all others in the same registers. Chunks are
   counted from here. */
static void hai_tile_aim(hai_tile *tile, int begin, int end) {
  int width = tile->kernel->width;
  tile->chunks = 0;
  tile->begin = begin / width * width;
  tile->end = (end + width - 1) / width * width;
  tile->used = hai_lane_bits(tile->begin, hai_to_int(hai_min(tile->end, tile->n)));
}
