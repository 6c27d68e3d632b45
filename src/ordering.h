/* ---- Ordering ---- */

/* order = rows begin .. begin + n - 1, stably sorted by code[row]; count has 2^bits places. Cost: n +
   2^bits. */
static void hai_counting_sort(const uint16_t *code, hai_index begin, hai_index n, int bits, int32_t *count,
                              int32_t *order) {
  hai_index i, buckets = hai_power_of_2(bits);
  int32_t sum = 0;
  HYPERATTN_MEMSET(count, 0, HAI_AS(size_t, buckets) * sizeof(int32_t));
  for (i = 0; i < n; i++) count[code[begin + i]]++;
  for (i = 0; i < buckets; i++) {
    int32_t here = count[i];
    count[i] = sum;
    sum += here;
  }
  for (i = 0; i < n; i++) order[count[code[begin + i]]++] = hai_to_int(begin + i);
}

/* Sorts a rectangle's queries (one query head) or keys (one kv head) by bucket. No tile is needed: the
   counters take its place. */
HAI_APART void hai_stage_order(hai_job *job) {
  int of_key = job->head < 0;
  if (job->pairing && !hai_wanted(job)) return;
  hai_counting_sort(hai_codes(job, of_key), of_key ? job->rect.key_begin : job->rect.query_begin,
                    of_key ? job->rect.n_key : job->rect.n_query, job->plan->params->lsh_bits,
                    HAI_PLACE(int32_t, job->tile), of_key ? hai_key_order(job) : hai_query_order(job));
}
