/* Random numbers. A counter-based generator, three rounds of SplitMix64's finaliser. It has no state, so that
   any task can draw its own numbers. They do not depend on batch and head, so that heads that share keys
   share draws. */

/* What a number is drawn for. */
enum {
  HAI_FOR_PLANES,
  HAI_FOR_PROBES,
  HAI_FOR_COLUMNS,
  HAI_FOR_CAP,
  HAI_FOR_JUDGES,
  HAI_FOR_AUDITORS,
  HAI_FOR_WIDE,
  HAI_FOR_DRAWS,
  HAI_FOR_OFFSETS
};

/* SplitMix64's finaliser: a bijection of 64 bits. */
static uint64_t hai_mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/* Number `index` of a region for a purpose. */
static uint64_t hai_random(uint64_t seed, uint64_t region, uint64_t purpose, uint64_t index) {
  uint64_t x = hai_mix(seed + 0x9e3779b97f4a7c15u);
  x = hai_mix(x + 0x9e3779b97f4a7c15u * (region + 1));
  return hai_mix(x + 0x9e3779b97f4a7c15u * (index + 1) + (purpose << 56));
}

/* begin + floor(u n) with u = random / 2^64, uniform in [0, 1): the high half of a product of 64 by 64
   bits. */
static uint64_t hai_uniform(uint64_t begin, uint64_t n, uint64_t random) {
  uint64_t n_low = n & 0xffffffffu, n_high = n >> 32, r_low = random & 0xffffffffu, r_high = random >> 32;
  uint64_t middle = n_high * r_low + (n_low * r_low >> 32), carry = (middle & 0xffffffffu) + n_low * r_high;
  return begin + n_high * r_high + (middle >> 32) + (carry >> 32);
}

/* One of n things, uniform in part i of `parts`. Over all i these are draws without replacement. */
static hai_index hai_draw(hai_index n, hai_index parts, hai_index i, uint64_t random) {
  hai_index begin = hai_cut(n, parts, i), end = hai_cut(n, parts, i + 1);
  return HAI_AS(hai_index, hai_uniform(HAI_AS(uint64_t, begin), HAI_AS(uint64_t, end - begin), random));
}
