/* ---- The k best candidates of a stream ----
   A candidate is a value (a score or a mass) with the id of what has it, packed into one word: the
   value's bits, in an encoding whose integer order is the order of the numbers, above the complement of
   the id. The larger word is the better candidate. Among equal values the smaller id wins, and NaN counts
   as -inf. The best k so far form a binary heap whose root is the worst of them. */

static uint64_t hai_candidate(float value, int32_t id) {
  uint32_t bits = hai_bits(value == value ? value + 0.0f : -hai_inf()); /* -0 + 0 = +0 */
  bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
  return HAI_AS(uint64_t, bits) << 32 | HAI_AS(uint32_t, ~id);
}
static int32_t hai_candidate_id(uint64_t candidate) {
  return HAI_AS(int32_t, ~HAI_AS(uint32_t, candidate));
}
static float hai_candidate_value(uint64_t candidate) {
  uint32_t bits = HAI_AS(uint32_t, candidate >> 32);
  return hai_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}

/* Restores the heap of the first n words after the one at `at` was replaced by a better one: moves it
   away from the root until neither child is worse. */
static void hai_sink(uint64_t *heap, hai_index n, hai_index at) {
  uint64_t word = heap[at];
  hai_index child;
  while ((child = 2 * at + 1) < n) {
    if (child + 1 < n) child += heap[child + 1] < heap[child];
    if (heap[child] >= word) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = word;
}

/* Offers a candidate to a heap of the *n best so far, of which at most k are kept. */
static void hai_offer(uint64_t *heap, int *n, int k, uint64_t candidate) {
  if (*n < k) {
    hai_index at = (*n)++;
    for (; at && heap[(at - 1) / 2] > candidate; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = candidate;
  } else if (k && candidate > heap[0]) {
    heap[0] = candidate;
    hai_sink(heap, k, 0);
  }
}

/* Writes the ids of a heap of n in ascending order; the heap's contents are lost. A heapsort by the
   complements of the ids: its root is the largest id that is left. */
static void hai_heap_ids(uint64_t *heap, hai_index n, int32_t *id) {
  hai_index at;
  for (at = 0; at < n; at++) heap[at] = HAI_AS(uint32_t, heap[at]);
  for (at = n / 2; at-- > 0;) hai_sink(heap, n, at);
  for (at = n; at-- > 0;) {
    id[at] = hai_candidate_id(heap[0]);
    heap[0] = heap[at];
    hai_sink(heap, at, 0);
  }
}
