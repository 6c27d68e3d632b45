/* ---- Ordering: rows sorted by bucket ---- */

/* order [n] = rows begin .. begin + n - 1, sorted by code[row], rows of equal code in the order of rows.
   Leaves end [2^bits] = where the rows of each code end. Cost: n + 2^bits. */
static void hai_counting_sort(const uint16_t *code, hai_index begin, hai_index n, int bits, int32_t *end,
                              int32_t *order) {
  hai_index i, buckets = hai_power_of_2(bits);
  int32_t sum = 0;
  HYPERATTN_MEMSET(end, 0, HAI_AS(size_t, buckets) * sizeof(int32_t));
  for (i = 0; i < n; i++) end[code[begin + i]]++;
  for (i = 0; i < buckets; i++) {
    int32_t here = end[i];
    end[i] = sum;
    sum += here;
  }
  for (i = 0; i < n; i++) order[end[code[begin + i]]++] = hai_to_int(begin + i);
}

/* A sorted order: what hai_counting_sort has read and written. */
typedef struct hai_sorted {
  const uint16_t *code; /* [row of the tensor] */
  const int32_t *end;   /* [2^bits] */
  const int32_t *order;
} hai_sorted;

/* Where a row stands in it. Cost: log n. */
static int32_t hai_place_in(const hai_sorted *sorted, int32_t row) {
  int32_t bucket = sorted->code[row], low = bucket ? sorted->end[bucket - 1] : 0, high = sorted->end[bucket];
  while (low < high) {
    int32_t middle = low + (high - low) / 2;
    if (sorted->order[middle] < row)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* Notes where a query head's held-out queries stand: judges (audit 0) where there are any, and auditors (1)
   where there is a report. */
static void hai_place_queries(hai_job *job, const hai_sorted *sorted) {
  int i;
  for (job->audit = !job->plan->choosing; HAI_JUDGING && job->audit <= job->plan->reporting; job->audit++)
    for (i = 0; i < hai_n_held_out(job); i++)
      *hai_place_of(job, i) = hai_place_in(sorted, hai_to_int(hai_held_out_row(job, i)));
}

/* Notes which sub-blocks of a second pairing hold the columns of the query heads that share a kv head. Those
   of the wide draw are met without blocks. */
static void hai_place_columns(hai_job *job, const hai_sorted *sorted) {
  hai_index n_key = job->rect.n_key, n_blocks = hai_key_parts(job->plan, n_key), n = job->plan->heads_per_kv;
  int i;
  if (!HAI_JUDGING || job->pairing == 0) return;
  for (job->head = job->kv_head * n; job->head < (job->kv_head + 1) * n; job->head++)
    for (i = 0; i < hai_counts(job)[1]; i++) {
      hai_column *column = &hai_columns(job, 0)[i];
      column->block[1] = hai_to_int(hai_part_of(n_key, n_blocks, hai_place_in(sorted, column->key)));
    }
}

/* Stage ORDER: sorts a rectangle's queries (of job->head) or, where job->head < 0, its keys (of the kv
   head) by bucket. Reads query_code or key_code; writes query_order, and places in trials and record, or
   key_order, and the columns' blocks in a second pairing. This stage needs no tile, so the counters use the
   tile's memory. Cost: rows + 2^lsh_bits, and a binary search for each held-out query or column. */
HAI_APART void hai_stage_order(hai_job *job) {
  int of_key = job->head < 0;
  hai_index begin = of_key ? job->rect.key_begin : job->rect.query_begin;
  int32_t *end = HAI_PLACE(int32_t, job->tile), *order = of_key ? hai_key_order(job) : hai_query_order(job);
  hai_sorted sorted;
  if (job->pairing && !hai_is_needed(job)) return;
  sorted.code = hai_codes(job, of_key);
  sorted.end = end;
  sorted.order = order;
  hai_counting_sort(sorted.code, begin, of_key ? job->rect.n_key : job->rect.n_query,
                    job->plan->params->lsh_bits, end, order);
  if (of_key)
    hai_place_columns(job, &sorted);
  else
    hai_place_queries(job, &sorted);
}
