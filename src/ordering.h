/* ---- Ordering: rows sorted by bucket ---- */

/* order [n] = rows begin .. begin + n - 1, sorted by code[row], rows of equal code in the order of rows.
   count [2^bits] is scratch. Cost: n + 2^bits. */
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

/* Stage ORDER: sorts a rectangle's queries (of job->head) or, where job->head < 0, its keys (of the kv
   head) by bucket. Reads query_code or key_code; writes query_order or key_order. This stage needs no
   tile, so the counters use the tile's memory. Cost: rows + 2^lsh_bits. */
HAI_APART void hai_stage_order(hai_job *job) {
  int of_key = job->head < 0;
  if (job->pairing && !hai_is_needed(job)) return;
  hai_counting_sort(hai_codes(job, of_key), of_key ? job->rect.key_begin : job->rect.query_begin,
                    of_key ? job->rect.n_key : job->rect.n_query, job->plan->params->lsh_bits,
                    HAI_PLACE(int32_t, job->tile), of_key ? hai_key_order(job) : hai_query_order(job));
}
