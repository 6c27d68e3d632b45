/* ---- A sieve: is a row one of a few? ----
   One bit for each value of a row's last twelve bits, HAI_SIEVE words in all. Where the bit of a row is
   not set, the row is not among those that were added; where it is set, it may be, and a dearer look
   decides. */

static void hai_sieve_clear(uint32_t *sieve) { HYPERATTN_MEMSET(sieve, 0, HAI_SIEVE * sizeof(uint32_t)); }
static void hai_sieve_add(uint32_t *sieve, hai_index row) {
  sieve[HAI_AS(size_t, row) / 32 % HAI_SIEVE] |= UINT32_C(1) << HAI_AS(size_t, row) % 32;
}
static int hai_sieve_holds(const uint32_t *sieve, hai_index row) {
  return HAI_AS(int, sieve[HAI_AS(size_t, row) / 32 % HAI_SIEVE] >> HAI_AS(size_t, row) % 32 & 1);
}
