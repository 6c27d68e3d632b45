/* ==== 8. Selection ===================================================================================
   Which keys, with which log-weight, a group of queries meets. Plain C; the only arithmetic in bulk is the
   kernel's products of a tile with a list of rows. */

/* ---- Hashing (Algorithm 1) ---- */

/* The position of Gray code `code`: neighbours in position differ in one bit of the code. */
static uint32_t hai_gray_decode(uint32_t code) {
  code ^= code >> 1;
  code ^= code >> 2;
  code ^= code >> 4;
  code ^= code >> 8;
  return code;
}

/* planes [bits][dim] of random signs: with +-1 every sum is rounded alike everywhere, so buckets are
   portable. */
static void hai_planes(uint64_t seed, int bits, hai_index dim, float *planes) {
  hai_index i;
  uint64_t word = 0;
  for (i = 0; i < bits * dim; i++) {
    if (i % 64 == 0) word = hai_random(seed, 0, HAI_FOR_PLANES, HAI_AS(uint64_t, i) / 64);
    planes[i] = word >> (i % 64) & 1 ? 1.0f : -1.0f;
  }
}

/* Is a pairing called for by job->head: to be tried, or once it was, as the choice? In tasks of a kv head, by
   any of its heads, unless it was the last that any of them tried: all about its keys is in place. */
static int hai_wanted(const hai_job *job) {
  hai_job each = *job;
  hai_index n = job->plan->heads_per_kv;
  int wanted = 0, tried = 0;
  if (!job->plan->choosing) return 1;
  for (each.head = job->kv_head * n; each.head < (job->kv_head + 1) * n; each.head++) {
    const hai_verdict *verdict = hai_verdict_of(&each);
    if (job->head >= 0 && job->head != each.head) continue;
    wanted |= verdict->tried <= job->pairing ? !verdict->settled : hai_takes_blocks(verdict, job->pairing);
    tried = verdict->tried > tried ? verdict->tried : tried;
  }
  return wanted && (job->head >= 0 || tried != job->pairing + 1);
}

/* Buckets of HAI_TASK_ROWS rows of a rectangle, of a query head or, with job->head < 0, of a kv head:
   code = Gray position of the signs of <row, plane>. Cost: rows * lsh_bits * head_dim. */
HAI_APART void hai_stage_hash(hai_job *job) {
  const hai_plan *plan = job->plan;
  hai_tile *tile = job->tile;
  int of_key = job->head < 0, bits = plan->params->lsh_bits, lanes = plan->float_kernel->lanes, i, b;
  hai_index first = of_key ? job->rect.key_begin : job->rect.query_begin,
            row = first + job->chunk * HAI_TASK_ROWS;
  hai_index end = hai_min(row + HAI_TASK_ROWS, first + (of_key ? job->rect.n_key : job->rect.n_query));
  uint16_t *code = hai_codes(job, of_key);
  float *planes = HAI_PLACE(float, job->scratch);
  const void *plane[16];
  if (job->pairing && !hai_wanted(job)) return;
  hai_planes(plan->params->seed, bits, plan->head_dim, planes);
  for (b = 0; b < bits; b++) plane[b] = planes + b * plan->head_dim;
  for (; row < end; row += lanes) {
    int count = hai_to_int(hai_min(lanes, end - row));
    for (i = 0; i < lanes; i++)
      tile->row[i] = i >= count ? HAI_NULL
                     : of_key   ? hai_key_row(job, row + i, hai_line(tile, i))
                                : hai_query_row(job, job->head, row + i, hai_line(tile, i));
    /* a negative scale turns every query around */
    plan->float_kernel->pack(tile->row, plan->head_dim, of_key || plan->scale > 0.0f ? 1.0f : -1.0f,
                             tile->query);
    plan->float_kernel->scores(tile->query, plan->head_dim, plane, bits, 0, lanes, tile->score);
    for (i = 0; i < count; i++) {
      uint32_t gray = 0;
      for (b = 0; b < bits; b++) gray |= HAI_AS(uint32_t, tile->score[b * lanes + i] > 0.0f) << b;
      code[row + i] = HAI_AS(uint16_t, hai_gray_decode(gray));
    }
  }
}
