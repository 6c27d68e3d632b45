/* ---- Lookup: few queries over an index ----
   Stage LOOK estimates a query's scores with all keys of the index that end before its window, and raises
   each by HAI_LOOK_SURE deviations, which grow with its key's length: e_j for key j, kept as
   round(HAI_LOOK_STEPS e_j) in 16 bits, since all of them are written and read again. The weight w_j is
   about e^(HAI_LOOK_TILT (e_j - max)), a factor of 2 for 8 steps. Each key has a chance of min(1, w_j /
   level), the level such that as many would be kept as the budget says. Stage MEET keeps key j with
   probability P_j, the largest of its chances for the queries that meet keys together (meeting.h), and
   these meet what is kept, the sinks, the window and all that the index does not hold, by exact scores with
   log-weight -ln P_j. So at a fixed budget e^lse and e^lse out are unbiased, but for keys of P_j < 2^-19,
   whose chances the 22 bits of a random number round; and a key that has more than a budget's share of a
   query's weight is met for certain.

   The sample tells its error, squared and times |out|^2: D (sum (1 - P_j) a_j^2 + S^2 / (n (n + 1))), a_j
   the share of the attention with which kept key j was met, 1 / P_j included, n and S the number and the
   share of those of P_j < 1, and D the mean of |v_j - out|^2 over at most HAI_LOOK_JUDGED of the kept keys,
   weighted by (1 - P_j) a_j^2, or 2 |out|^2 where none of these is uncertain. Where n = 0, S is the share
   that estimates give to keys below the level. A query whose error is above HAI_LOOK_SAFE of the tolerance
   tries again, with the budget that its error calls for; where that is too large, it meets every key
   (few.h).

   The random numbers of a block's keys are evenly spread over [0, 1), in an order of the seed, and moved
   around by a number of the block and the first query: nothing depends on workers, or on which kv heads a
   call holds. */

#if HAI_INDEX
typedef struct hai_look_span {
  int32_t high;    /* the octave of the sum of its weights, in steps; HAI_STEP_NONE: there are none */
  float sum;       /* that sum over the weight of `high`: 1 to 2 */
  float square;    /* the sum of the blocks' squares; not finite where the query's unit is not */
  int32_t is_sure; /* are there keys that are met for sure? */
} hai_look_span;

typedef struct hai_look {
  hyperattn_index *index;
  const hai_scan_kernel *kernel;
  hai_index begin, end; /* keys that are looked up: whole blocks but for sinks */
  hai_index last;       /* the query sees keys up to this one */
  int16_t *score;       /* [blocks][HAI_CHUNK]: estimates, in steps; HAI_STEP_NONE for sinks and sure keys */
  uint64_t *sure;       /* [blocks]: bit j: key j is met for sure */
  hai_look_span *span;  /* [spans] */
  float square;         /* of the span that is looked at: see hai_look_span */
  int is_sure;
} hai_look;

/* ---- Where things lie ---- */

/* What query `row` of a head of the job's kv head looks up: the keys that are in the index, that it sees and
   that are not in its window. */
static void hai_look_aim(const hai_job *job, hai_look *look, hai_index head, hai_index row) {
  const hai_plan *plan = job->plan;
  hai_index first, end, blocks = hai_look_blocks(plan);
  uint32_t *words;
  hai_seen_keys(plan, row, &first, &look->last);
  look->index = plan->problem->index;
  look->kernel = plan->scan_kernel;
  end = hai_min(hai_to_index(look->index->length), look->last + 1 - plan->window);
  look->end = hai_max(0, end) / HAI_CHUNK * HAI_CHUNK;
  look->begin = hai_min(plan->sink_keys, look->end);
  words = HAI_PLACE(uint32_t, hai_array_at(job, HAI_ARRAY_LOOK, hai_flat_head_of(job, head)));
  words += row * hai_look_words(plan);
  look->score = HAI_PLACE(int16_t, words);
  look->sure = HAI_PLACE(uint64_t, look->score + blocks * HAI_CHUNK);
  look->span = HAI_PLACE(hai_look_span, look->sure + blocks);
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

/* Turns packed [head_dim], the query times the scale, and makes codes of it: word [n_words]. The unit is
   not finite where a turned coordinate is not, as a finite query's may be. Where the query is too small to
   have codes, they and `more` are 0. */
static hai_index_query hai_look_encode(const hai_plan *plan, float *packed, int32_t *word) {
  hai_block_layout y = hai_block_layout_of(plan->head_dim);
  hai_index_query query = {word, y.groups, y.words, 0, 0.0f, 0.0f};
  float largest, inverse, square = 0.0f;
  hai_index t;
  hai_turn_one(packed, plan->head_dim);
  largest = hai_largest_size(packed, plan->head_dim);
  HYPERATTN_MEMSET(word, 0, HAI_AS(size_t, y.words) * sizeof *word);
  query.unit = HAI_LOOK_STEPS * largest * (1.0f / 127.0f);
  inverse = 127.0f / largest;
  if (!hai_finite(query.unit) || !hai_finite(inverse)) return query;
  for (t = 0; t < plan->head_dim; t++) {
    int code = HAI_AS(int, packed[t] * inverse + 127.5f) - 127;
    square += packed[t] * packed[t];
    query.sum += code;
    word[t / 4] |= HAI_AS(int32_t, (HAI_AS(uint32_t, code) & 255u) << t % 4 * 8);
  }
  query.more = HAI_LOOK_STEPS * HAI_LOOK_SURE * HAI_LOOK_ERROR * hai_sqrt(square);
  return query;
}

/* May the estimate of a key err so much that it tells nothing? Its norm code times norm_unit is `norm`. */
static int hai_look_is_sure(const hai_index_query *query, float norm) {
  return !(query->more * norm <= HAI_LOOK_STEPS * HAI_LOOK_SURE * HAI_LOOK_MOST);
}

/* The most that the size of a block's estimates may be, whatever its codes. Below 32767 they are not cut;
   from HAI_STEP_MOST on they are not in the range of integers, and tell nothing. Between these, keys that are
   cut at the top are met for certain, since levels are cut too, and those at the bottom weigh nothing beside
   any key that a level reaches (HAI_LEVEL_LEAST). */
static float hai_look_reach(const hai_index_query *query, const hai_index_block *b) {
  float most = 127.0f * HAI_AS(float, HAI_GROUP_DIM * query->n_groups);
  float norm = 127.0f * b->norm_unit, mean = HAI_MEAN_MOST * b->mean_unit;
  return norm * (3.0f * most * query->unit + query->more) + mean * most * query->unit;
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

/* Sets the scores of sinks and of keys that are met for sure to HAI_STEP_NONE. Returns the bits of the
   latter; b HAI_NULL: every key but sinks is one. */
static uint64_t hai_look_hide(const hai_look *look, const hai_index_query *query, const hai_index_block *b,
                              hai_index block) {
  int16_t *score = look->score + block * HAI_CHUNK;
  uint64_t sure = 0;
  int j;
  for (j = 0; j < HAI_CHUNK; j++) {
    int is_sink = block * HAI_CHUNK + j < look->begin;
    int is_sure = !b || hai_look_is_sure(query, HAI_AS(float, b->norm[j]) * b->norm_unit);
    if (is_sink || is_sure) score[j] = HAI_STEP_NONE;
    sure |= HAI_AS(uint64_t, is_sure && !is_sink) << j;
  }
  return sure;
}

/* Caps a block's estimates. `room`: [HAI_CHUNK]. */
static void hai_look_cap(const hai_plan *plan, int16_t *score, float *room) {
  int j;
  for (j = 0; j < HAI_CHUNK; j++) room[j] = HAI_AS(float, score[j]);
  hai_cap_row(plan->float_kernel, room, HAI_LOOK_STEPS * plan->problem->softcap);
  for (j = 0; j < HAI_CHUNK; j++) score[j] = hai_index_cut(room[j]);
}

/* The queries that a task looks at together. */
typedef struct hai_look_group {
  hai_look look[HAI_FEW_ROWS];
  hai_index_query query[HAI_FEW_ROWS];
  hai_weights weights[HAI_FEW_ROWS];     /* of the span so far */
  hai_weights nothing[HAI_LOOK_GUESSED]; /* for those that are not wanted */
  hai_index_query worst;                 /* has the largest unit and `more` of all */
  float room[HAI_CHUNK];
} hai_look_group;

/* Finishes query i's estimates of a block: caps them, withdraws those of sinks and of keys that are met for
   sure, and adds their weights. Returns the bits of the keys that are met for sure; where b is HAI_NULL or
   the estimates may exceed HAI_STEP_MOST, these are all but sinks. */
static uint64_t hai_look_mend(const hai_plan *plan, hai_look_group *group, hai_index i,
                              const hai_index_block *b, hai_index block) {
  hai_look *look = &group->look[i];
  const hai_index_query *query = &group->query[i];
  int16_t *score = look->score + block * HAI_CHUNK;
  uint64_t sure = 0;
  if (!b || !(hai_look_reach(query, b) < HAI_STEP_MOST)) return hai_look_hide(look, query, HAI_NULL, block);
  look->square += b->square;
  if (HAI_SOFTCAP && plan->problem->softcap > 0.0f) hai_look_cap(plan, score, group->room);
  if (block * HAI_CHUNK < look->begin || hai_look_is_sure(query, 127.0f * b->norm_unit))
    sure = hai_look_hide(look, query, b, block);
  look->kernel->weigh(score, &group->weights[i]);
  return sure;
}

/* Estimates of a block for n queries from number i on, at most HAI_LOOK_GUESSED. A block some way ahead
   starts to load, in whichever span it lies. */
static void hai_look_block(const hai_plan *plan, hai_look_group *group, hai_index i, int n,
                           const hai_look_place *place) {
  hai_index_block b;
  hai_index block = place->block, last = i + n, first = i;
  int is_known = hai_index_read(&place->layout, place->at, &b), is_plain;
  int16_t *score[HAI_LOOK_GUESSED];
  for (; i < last; i++) score[i - first] = group->look[i].score + block * HAI_CHUNK;
  if ((block + HAI_LOOK_AHEAD) * HAI_CHUNK < group->look[first].end) {
    b.ahead = HAI_LOOK_AHEAD * place->layout.size;
    hai_fetch(HAI_REINTERPRET(const char *, b.norm) + b.ahead, place->layout.size - place->layout.norm);
  }
  is_plain = is_known && hai_look_reach(&group->worst, &b) < 32767.0f &&
             !hai_look_is_sure(&group->worst, 127.0f * b.norm_unit) && block * HAI_CHUNK >= plan->sink_keys &&
             !(HAI_SOFTCAP && plan->problem->softcap > 0.0f);
  if (is_known)
    group->look->kernel->guess(group->query + first, n, &b, score,
                               is_plain ? group->weights + first : group->nothing);
  for (i = first; i < last; i++) {
    uint64_t sure = 0;
    if (is_plain)
      group->look[i].square += b.square;
    else
      sure = hai_look_mend(plan, group, i, is_known ? &b : HAI_NULL, block);
    group->look[i].sure[block] = sure;
    group->look[i].is_sure |= sure != 0;
  }
}

/* The largest of n scores. */
static int hai_look_highest(const int16_t *score, hai_index n) {
  int high = HAI_STEP_NONE;
  hai_index j;
  for (j = 0; j < n; j++) high = score[j] > high ? score[j] : high;
  return high;
}

/* Weights of a span are summed relative to the octave of its first key's estimate. References are whole
   octaves everywhere, since only these weights multiply exactly: hai_step_weight(a + b) is the product of
   both where one is a multiple of 8. */
static void hai_look_refer(hai_look_group *group, hai_index n, const hai_look_place *place) {
  hai_index_block b;
  int is_known = hai_index_read(&place->layout, place->at, &b);
  hai_index i;
  HYPERATTN_MEMSET(group->weights, 0, sizeof group->weights);
  for (i = 0; is_known && i < n; i++) {
    int16_t *score = group->look[i].score + place->block * HAI_CHUNK;
    if (place->block * HAI_CHUNK >= group->look[i].end) continue;
    group->look[i].kernel->guess(group->query + i, 1, &b, &score, group->nothing);
    group->weights[i].from = hai_step_octave(score[0]);
  }
}

/* The sum of the weights of n keys. Where the reference was so far away that weights were cut, which sums
   beyond 2^-60 .. 2^96 tell, they are summed again relative to the largest. */
static float hai_look_sum(const hai_look *look, const int16_t *score, hai_index n, hai_weights *weights) {
  float sum = hai_lanes_sum(weights->lane);
  if (sum > 1e-18f && sum < 1e29f) return sum;
  HYPERATTN_MEMSET(weights, 0, sizeof *weights);
  weights->from = hai_step_octave(hai_look_highest(score, n));
  for (; n > 0; n -= HAI_CHUNK, score += HAI_CHUNK) look->kernel->weigh(score, weights);
  return hai_lanes_sum(weights->lane);
}

/* What there is for a query of a span that begins at a block, up to block `end`. */
static hai_look_span hai_look_whole(const hai_look *look, const hai_index_query *query, hai_weights *weights,
                                    hai_index block, hai_index end) {
  hai_look_span span = {HAI_STEP_NONE, 0.0f, look->square, look->is_sure};
  const int16_t *score = look->score + block * HAI_CHUNK;
  float sum = end > block ? hai_look_sum(look, score, (end - block) * HAI_CHUNK, weights) : 0.0f;
  int octaves;
  if (!hai_finite(query->unit)) span.square = query->unit;
  if (!(sum > 0.0f)) return span;
  octaves = hai_step_octave(hai_step_of(sum));
  span.high = weights->from + octaves;
  span.sum = sum * hai_step_weight(-octaves);
  return span;
}

/* Opens n rows of a kv head's queries from `row` on: heads first, then positions. packed [head_dim], word
   [n] of what a query's codes take. */
static void hai_look_open(const hai_job *job, hai_look_group *group, hai_index row, hai_index n,
                          float *packed, int32_t *word) {
  const hai_plan *plan = job->plan;
  hai_index heads = plan->heads_per_kv, words = hai_block_layout_of(plan->head_dim).words, i, t;
  HYPERATTN_MEMSET(&group->worst, 0, sizeof group->worst);
  HYPERATTN_MEMSET(group->nothing, 0, sizeof group->nothing);
  for (i = 0; i < n; i++) {
    hai_look *look = &group->look[i];
    hai_index_query *query = &group->query[i];
    hai_index head = job->kv_head * heads + (row + i) % heads;
    const float *from = hai_query_row(job, head, (row + i) / heads, packed);
    for (t = 0; t < plan->head_dim; t++) packed[t] = plan->scale * from[t];
    *query = hai_look_encode(plan, packed, word + i * words);
    hai_look_aim(job, look, head, (row + i) / heads);
    look->square = 0.0f;
    look->is_sure = 0;
    group->worst.n_groups = query->n_groups;
    if (query->unit > group->worst.unit) group->worst.unit = query->unit;
    if (query->more > group->worst.more) group->worst.more = query->more;
  }
}

/* A span of keys, for all queries that share a kv head. Each block is read once for up to HAI_FEW_ROWS
   queries, of which those behind the first that sees it do too. */
HAI_APART void hai_stage_look(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_look_group *group = HAI_PLACE(hai_look_group, job->scratch);
  float *packed = HAI_PLACE(float, group + 1);
  int32_t *word = HAI_PLACE(int32_t, packed + plan->head_dim);
  hai_index span = hai_look_spans(plan) - 1 - job->chunk; /* the first task's is the first: see hai_job_at */
  hai_index begin = span * HAI_SPAN_BLOCKS, to = begin + HAI_SPAN_BLOCKS, row, i, n;
  hai_index rows = plan->n_query * plan->heads_per_kv;
  for (row = 0; row < rows; row += n) {
    hai_look_place place = hai_look_at(job, begin);
    hai_index end, first = 0;
    n = hai_min(HAI_FEW_ROWS, rows - row);
    hai_look_open(job, group, row, n, packed, word);
    end = hai_min(to, group->look[n - 1].end / HAI_CHUNK);
    if (begin < end) hai_look_refer(group, n, &place);
    for (; place.block < end; hai_look_on(&place)) {
      while (place.block * HAI_CHUNK >= group->look[first].end) first++;
      for (i = first; i < n; i += HAI_LOOK_GUESSED)
        hai_look_block(plan, group, i, hai_to_int(hai_min(n - i, HAI_LOOK_GUESSED)), &place);
    }
    for (i = 0; i < n; i++) {
      const hai_look *look = &group->look[i];
      end = hai_min(to, look->end / HAI_CHUNK);
      look->span[span] = hai_look_whole(look, &group->query[i], &group->weights[i], begin, end);
    }
  }
}
#endif
