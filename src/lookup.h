/* ---- Lookup: few queries over an index ----
   Stage LOOK estimates a query's scores with all keys of the index that end before its window, and raises
   each by HAI_LOOK_SURE deviations of what its key's length lets it err by: e_j for key j. Weights are w_j,
   about e^(HAI_LOOK_TILT (e_j - max)). Each key has a chance of min(1, w_j / level), the level such that as
   many would be kept as the budget says. Stage MEET keeps key j with
   probability P_j, the largest of its chances for the queries that meet keys together (meeting.h), and these
   meet what is kept, the sinks, the window and all that the index does not hold, by exact scores with
   log-weight -ln P_j. So e^lse and e^lse out are unbiased at a fixed budget, whatever the estimates are
   worth, and a key that has more than a budget's share of a query's weight is met for certain.

   The sample tells its error, squared and times |out|^2: D (sum (1 - P_j) a_j^2 + S^2 / (n (n + 1))), a_j the
   share of the attention with which kept key j was met, 1 / P_j included, n and S the number and the share of
   those of P_j < 1, and D the mean of |v_j - out|^2 over some of these. A query whose error is above
   HAI_LOOK_SAFE of the tolerance tries again, with the budget that its error calls for; where that is too
   large, it meets every key (few.h).

   The random numbers of a block's keys are evenly spread over [0, 1), in an order of the seed, and moved
   around by a number of the block and the first query: nothing depends on workers, or on which kv heads a
   call holds. */

#if HAI_INDEX
typedef struct hai_look {
  hyperattn_index *index;
  const hai_scan_kernel *kernel;
  hai_index begin, end; /* keys that are looked up: whole blocks but for sinks */
  hai_index last;       /* the query sees keys up to this one */
  float *weight;        /* [blocks][HAI_CHUNK] */
  float *high;          /* [spans][HAI_SPAN_BLOCKS]: of a block, the largest estimate, then its weight */
  float square;         /* the sum of its blocks' squares, for that of a span */
  float *span;          /* [spans][3]: the largest estimate, by which its weights are taken; their sum; and
                           the sum of its blocks' squares */
  int is_sure;          /* are there keys in the span that are met for sure? Their weight is infinite */
} hai_look;

/* ---- Where things lie ---- */

/* What query `row` of a head of the job's kv head looks up: the keys that are in the index, that it sees and
   that are not in its window. */
static void hai_look_aim(const hai_job *job, hai_look *look, hai_index head, hai_index row) {
  const hai_plan *plan = job->plan;
  hai_index first, end, blocks = hai_look_blocks(plan);
  hai_seen_keys(plan, row, &first, &look->last);
  look->index = plan->problem->index;
  look->kernel = plan->scan_kernel;
  end = hai_min(hai_to_index(look->index->length), look->last + 1 - plan->window);
  look->end = hai_max(0, end) / HAI_CHUNK * HAI_CHUNK;
  look->begin = hai_min(plan->sink_keys, look->end);
  look->weight = HAI_PLACE(float, hai_array_at(job, HAI_ARRAY_LOOK, hai_flat_head_of(job, head)));
  look->weight += row * hai_look_floats(plan);
  look->high = look->weight + blocks * HAI_CHUNK;
  look->span = look->high + hai_look_spans(plan) * HAI_SPAN_BLOCKS;
}
/* Are there keys enough to look up? */
static int hai_look_pays(const hai_look *look) { return look->end - look->begin >= HAI_LOOK_LEAST; }

#ifndef HYPERATTN_NO_COST
/* What a call is expected to cost, over what exact attention would: the index is read, and a few times the
   first budget of keys, which lie anywhere. */
static float hai_look_cost(const hai_plan *plan) {
  float n = HAI_AS(float, plan->n_key), always = HAI_AS(float, plan->window + plan->sink_keys);
  float cost = HAI_LOOK_COST + (always + HAI_LOOK_KEY_COST * HAI_AS(float, plan->sample_size)) / n;
  return cost < 0.999f ? cost : 0.999f; /* 1 is for what is exact */
}
#endif

/* ---- Stage LOOK ---- */

/* Turned and made codes: word [n_words], packed [head_dim] the query times the scale. A unit that is not
   finite: the query is not. */
static hai_index_query hai_look_encode(const hai_plan *plan, float *packed, int32_t *word) {
  hai_block_layout y = hai_block_layout_of(plan->head_dim);
  hai_index_query query = {word, y.groups, y.words, 0, 0.0f, 0.0f};
  float largest, inverse, square = 0.0f;
  hai_index t;
  hai_turn_one(packed, plan->head_dim);
  largest = hai_largest_size(packed, plan->head_dim);
  HYPERATTN_MEMSET(word, 0, HAI_AS(size_t, y.words) * sizeof *word);
  query.unit = largest * (1.0f / 127.0f);
  inverse = 127.0f / largest;
  if (!hai_finite(largest) || !hai_finite(inverse)) return query;
  for (t = 0; t < plan->head_dim; t++) {
    int code = HAI_AS(int, packed[t] * inverse + 127.5f) - 127;
    square += packed[t] * packed[t];
    query.sum += code;
    word[t / 4] |= HAI_AS(int32_t, (HAI_AS(uint32_t, code) & 255u) << t % 4 * 8);
  }
  query.more = HAI_LOOK_SURE * HAI_LOOK_ERROR * hai_sqrt(square);
  return query;
}

/* May the estimate of a key err so much that it tells nothing? Its norm code times norm_unit is `norm`. */
static int hai_look_is_sure(const hai_index_query *query, float norm) {
  return !(query->more * norm <= HAI_LOOK_SURE * HAI_LOOK_MOST);
}

/* Are all estimates of a block finite, whatever its codes? */
static int hai_look_can_tell(const hai_index_query *query, const hai_index_block *b) {
  float most = 127.0f * HAI_AS(float, HAI_GROUP_DIM * query->n_groups);
  float norm = 127.0f * b->norm_unit, mean = HAI_MEAN_MOST * b->mean_unit;
  return hai_finite(norm * (3.0f * most * query->unit + query->more) + mean * most * query->unit);
}

/* The largest of n estimates; -inf if there are none. */
static float hai_look_highest(const float *x, int n) {
  float most = -hai_inf();
  int i;
  for (i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
  return most;
}

/* A block of a kv head, and where it lies. */
typedef struct hai_look_place {
  hai_block_layout layout;
  const uint8_t *at;
  hai_index block;
} hai_look_place;
static hai_look_place hai_look_at(const hai_job *job, hai_index block) {
  hyperattn_index *index = job->plan->problem->index;
  hai_look_place place;
  place.layout = hai_block_layout_of(job->plan->head_dim);
  place.at = hai_index_block_at(index, hai_flat_kv_head(job), block);
  place.block = block;
  return place;
}
static void hai_look_on(hai_look_place *place) {
  place->at += place->layout.size;
  place->block++;
}

/* No estimate for sinks and for keys that are met for sure. */
static void hai_look_hide(hai_look *look, const hai_index_query *query, const hai_index_block *b,
                          hai_index block) {
  float *score = look->weight + block * HAI_CHUNK;
  int j;
  for (j = 0; j < HAI_CHUNK; j++)
    if (block * HAI_CHUNK + j < look->begin ||
        hai_look_is_sure(query, HAI_AS(float, b->norm[j]) * b->norm_unit))
      score[j] = -hai_inf();
  look->high[block] = hai_look_highest(score, HAI_CHUNK);
}

/* No estimate at all. */
static void hai_look_blind(hai_look *look, hai_index block) {
  int j;
  for (j = 0; j < HAI_CHUNK; j++) look->weight[block * HAI_CHUNK + j] = -hai_inf();
  look->high[block] = -hai_inf();
  look->is_sure = 1;
}

/* Estimates of a block, weight and high, for n queries, at most HAI_LOOK_GUESSED. Of the blocks up to `end`,
   one some way ahead starts to load. */
static void hai_look_block(const hai_job *job, hai_look *look, const hai_index_query *query, int n,
                           const hai_look_place *place, hai_index end) {
  hai_index_block b;
  hai_index block = place->block;
  int is_known = hai_index_read(&place->layout, place->at, &b), i;
  float *score[HAI_LOOK_GUESSED], high[HAI_LOOK_GUESSED], softcap = job->plan->problem->softcap;
  for (i = 0; i < n; i++) score[i] = look[i].weight + block * HAI_CHUNK;
  if (block + HAI_LOOK_AHEAD < end) {
    b.ahead = HAI_LOOK_AHEAD * place->layout.size;
    hai_fetch(HAI_REINTERPRET(const char *, b.norm) + b.ahead, place->layout.size - place->layout.norm);
  }
  if (is_known) look->kernel->guess(query, n, &b, score, high);
  for (i = 0; i < n; i++) {
    int is_sure = hai_look_is_sure(&query[i], 127.0f * b.norm_unit);
    if (!is_known || !hai_look_can_tell(&query[i], &b)) {
      hai_look_blind(&look[i], block);
      continue;
    }
    look[i].square += b.square;
    look[i].is_sure |= is_sure;
    if (HAI_SOFTCAP && softcap > 0.0f) {
      hai_cap_row(job->plan->float_kernel, score[i], softcap);
      high[i] = hai_capped(high[i], softcap, hai_inverse(softcap));
    }
    look[i].high[block] = high[i];
    if (is_sure || block * HAI_CHUNK < look[i].begin) hai_look_hide(&look[i], &query[i], &b, block);
  }
}

/* Weights of the keys of a block that are met for sure, infinite, but for sinks; the block's too. */
static void hai_look_mark(const hai_look *look, const hai_index_query *query, const hai_look_place *place) {
  hai_index_block b;
  hai_index j = hai_max(0, look->begin - place->block * HAI_CHUNK);
  int is_known = hai_index_read(&place->layout, place->at, &b) && hai_look_can_tell(query, &b);
  if (is_known && !hai_look_is_sure(query, 127.0f * b.norm_unit)) return;
  look->high[place->block] = hai_inf();
  for (; j < HAI_CHUNK; j++)
    if (!is_known || hai_look_is_sure(query, HAI_AS(float, b.norm[j]) * b.norm_unit))
      look->weight[place->block * HAI_CHUNK + j] = hai_inf();
}

/* The weights of a span's blocks begin .. end - 1, whose estimates are there; those of a span without any
   estimate are 0. */
static void hai_look_weigh(const hai_look *look, const hai_index_query *query, hai_look_place place,
                           hai_index end, float *span) {
  hai_index begin = place.block, n = end - begin, block;
  float *high = look->high + begin, from;
  for (block = hai_max(n, 0); block < HAI_SPAN_BLOCKS; block++) high[block] = -hai_inf();
  span[0] = hai_look_highest(high, HAI_SPAN_BLOCKS);
  span[1] = 0.0f;
  span[2] = look->square;
  if (n <= 0) return;
  from = hai_shift(span[0]);
  span[1] = look->kernel->weigh(look->weight + begin * HAI_CHUNK, n * HAI_CHUNK, HAI_LOOK_TILT, from);
  look->kernel->weigh(high, HAI_SPAN_BLOCKS, HAI_LOOK_TILT, from);
  for (; look->is_sure && place.block < end; hai_look_on(&place)) hai_look_mark(look, query, &place);
}

/* Opens row `row` of a kv head's queries: heads first, then positions. `packed`: [head_dim]. */
static void hai_look_open(const hai_job *job, hai_look *look, hai_index_query *query, hai_index row,
                          float *packed, int32_t *word) {
  const hai_plan *plan = job->plan;
  hai_index head = job->kv_head * plan->heads_per_kv + row % plan->heads_per_kv, t;
  const float *from = hai_query_row(job, head, row / plan->heads_per_kv, packed);
  for (t = 0; t < plan->head_dim; t++) packed[t] = plan->scale * from[t];
  *query = hai_look_encode(plan, packed, word);
  hai_look_aim(job, look, head, row / plan->heads_per_kv);
  look->square = 0.0f;
  look->is_sure = 0;
}

/* A span of keys, for all queries that share a kv head. Each block is read once for up to HAI_FEW_ROWS
   queries, of which those behind the first that sees it do too. */
HAI_APART void hai_stage_look(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_look *look = HAI_PLACE(hai_look, job->scratch);
  hai_index_query *query = HAI_PLACE(hai_index_query, look + HAI_FEW_ROWS);
  float *packed = HAI_PLACE(float, query + HAI_FEW_ROWS);
  int32_t *word = HAI_PLACE(int32_t, packed + plan->head_dim);
  hai_index begin = job->chunk * HAI_SPAN_BLOCKS, to = begin + HAI_SPAN_BLOCKS, row, i, n;
  hai_index rows = plan->n_query * plan->heads_per_kv;
  for (row = 0; row < rows; row += n) {
    hai_look_place place = hai_look_at(job, begin);
    hai_index end, first = 0;
    n = hai_min(HAI_FEW_ROWS, rows - row);
    for (i = 0; i < n; i++)
      hai_look_open(job, &look[i], &query[i], row + i, packed, word + i * place.layout.words);
    end = hai_min(to, look[n - 1].end / HAI_CHUNK);
    for (; place.block < end; hai_look_on(&place)) {
      while (place.block * HAI_CHUNK >= look[first].end) first++;
      for (i = first; i < n; i += HAI_LOOK_GUESSED)
        hai_look_block(job, &look[i], &query[i], hai_to_int(hai_min(n - i, HAI_LOOK_GUESSED)), &place, end);
    }
    place = hai_look_at(job, begin);
    for (i = 0; i < n; i++) {
      float *span = look[i].span + 3 * job->chunk;
      hai_look_weigh(&look[i], &query[i], place, hai_min(to, look[i].end / HAI_CHUNK), span);
      if (!hai_finite(query[i].unit)) span[0] = span[1] = query[i].unit;
    }
  }
}
#endif
