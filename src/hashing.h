/* ---- Hashing: the bucket of every query and key (Algorithm 1) ----
   A row's code has one bit for each of lsh_bits hyperplanes: the sign of its product with the plane's
   normal. Rows at a small angle differ in few bits. Its bucket is the position of that code in Gray
   order, in which neighbouring buckets differ in one bit, so that rows which are close together in the
   order of buckets tend to point in similar directions. */

/* The position of Gray code `code`, of at most 16 bits. */
static uint32_t hai_gray_decode(uint32_t code) {
  code ^= code >> 1;
  code ^= code >> 2;
  code ^= code >> 4;
  code ^= code >> 8;
  return code;
}

/* planes [bits][dim]: random signs, 64 from each random number. With entries +1 and -1 every product is
   rounded alike on all machines, so buckets do not depend on the ISA. */
static void hai_planes(uint64_t seed, int bits, hai_index dim, float *planes) {
  hai_index i;
  uint64_t word = 0;
  for (i = 0; i < bits * dim; i++) {
    if (i % 64 == 0) word = hai_random(seed, 0, HAI_FOR_PLANES, HAI_AS(uint64_t, i) / 64);
    planes[i] = word >> (i % 64) & 1 ? 1.0f : -1.0f;
  }
}

/* The bucket of the row in a lane, from its products with the planes. */
static uint16_t hai_bucket(const hai_tile *tile, int bits, int lanes, int lane) {
  uint32_t code = 0;
  int b;
  for (b = 0; b < bits; b++) code |= HAI_AS(uint32_t, tile->score[b * lanes + lane] > 0.0f) << b;
  return HAI_AS(uint16_t, hai_gray_decode(code));
}

/* Stage HASH: buckets of HAI_TASK_ROWS rows of a rectangle, queries of job->head or, where job->head < 0,
   keys of the kv head. Reads queries or keys; writes query_code or key_code. Cost: rows * lsh_bits *
   head_dim. */
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
  if (job->pairing && !hai_is_needed(job)) return;
  hai_planes(plan->params->seed, bits, plan->head_dim, planes);
  for (b = 0; b < bits; b++) plane[b] = planes + b * plan->head_dim;
  for (; row < end; row += lanes) {
    int count = hai_to_int(hai_min(lanes, end - row));
    for (i = 0; i < lanes; i++)
      tile->row[i] = i >= count ? HAI_NULL
                     : of_key   ? hai_key_row(job, row + i, hai_line(tile, i))
                                : hai_query_row(job, job->head, row + i, hai_line(tile, i));
    /* under a negative scale a query likes the keys opposite to it, so it is hashed with its sign turned */
    plan->float_kernel->pack(tile->row, plan->head_dim, of_key || plan->scale > 0.0f ? 1.0f : -1.0f,
                             tile->query);
    plan->float_kernel->scores(tile->query, plan->head_dim, plane, bits, 0, lanes, tile->score);
    for (i = 0; i < count; i++) code[row + i] = hai_bucket(tile, bits, lanes, i);
  }
}
