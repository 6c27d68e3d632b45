/* ---- The key index: a sketch that a cache keeps ----
   Keys that do not change need to be sketched once. An index holds, for each kv head, blocks of HAI_CHUNK
   keys, of which the keys that make up no whole block are left out. Keys are turned: multiplied by one
   orthogonal matrix, which products with queries that are turned likewise do not notice, and which makes
   coordinates alike. A block knows the mean of its turned keys, and each key by 2 bits a coordinate of what
   it differs from the mean, worth -3, -1, 1, 3 times one number for the key:
     turned key[t] is about mean_unit (mean[t] - HAI_MEAN_RAISED) + norm_unit norm (2 code[t] - 3).
   A block depends on its own keys alone, so the bits do not depend on how appends were cut.

   In the caller's memory, from an aligned address on: this header; for each kv head of the batch, how many
   blocks it has, room in which they are made, and the blocks, capacity / HAI_CHUNK of them. */

#if HAI_INDEX
struct hyperattn_index {
  uint64_t check; /* a hash of all that follows */
  int64_t batch, n_kv_heads, head_dim, capacity, length;
  const void *self; /* where it lies */
};

/* Parts of a block, in bytes from its begin. */
typedef struct hai_block_layout {
  hai_index groups; /* of HAI_GROUP_DIM coordinates */
  hai_index words;  /* of four coordinates of a mean, which is padded to HAI_ALIGN bytes */
  size_t norm, mean, units, size;
} hai_block_layout;

static hai_block_layout hai_block_layout_of(hai_index head_dim) {
  hai_block_layout y;
  y.groups = hai_ceil_div(head_dim, HAI_GROUP_DIM);
  y.norm = HAI_AS(size_t, y.groups * HAI_CHUNK * 4);
  y.mean = y.norm + HAI_CHUNK;
  y.units = y.mean + hai_round_up(HAI_AS(size_t, head_dim));
  y.words = HAI_AS(hai_index, (y.units - y.mean) / 4);
  y.size = hai_round_up(y.units + 3 * sizeof(float));
  return y;
}

/* Bytes of the room for making a block: floats of hai_index_room. */
static size_t hai_index_room_bytes(int64_t head_dim) {
  return hai_round_up(HAI_AS(size_t, head_dim * (HAI_TURNED + 2) + HAI_CHUNK) * sizeof(float));
}

/* Where the rooms and the blocks begin, of so many kv heads of the whole batch. */
static size_t hai_index_rooms(size_t heads) {
  return hai_round_up(hai_plus(sizeof(hyperattn_index), hai_times(heads, sizeof(int64_t))));
}
static size_t hai_index_blocks(size_t heads, int64_t head_dim) {
  return hai_plus(hai_index_rooms(heads), hai_times(heads, hai_index_room_bytes(head_dim)));
}

/* Bytes from an aligned address on; SIZE_MAX: too many. */
static size_t hai_index_bytes(int64_t batch, int64_t n_kv_heads, int64_t head_dim, int64_t capacity) {
  size_t heads = hai_times(HAI_AS(size_t, batch), HAI_AS(size_t, n_kv_heads));
  size_t blocks = hai_times(HAI_AS(size_t, capacity / HAI_CHUNK), heads);
  size_t bytes = hai_times(blocks, hai_block_layout_of(hai_to_index(head_dim)).size);
  size_t others = hai_times(heads, sizeof(int64_t) + hai_index_room_bytes(head_dim));
  if (hai_plus(bytes, others) > PTRDIFF_MAX / 2) return SIZE_MAX;
  return hai_index_blocks(heads, head_dim) + bytes;
}

static uint64_t hai_index_check(const hyperattn_index *index) {
  const int64_t field[] = {index->batch, index->n_kv_heads, index->head_dim, index->capacity, index->length};
  uint64_t hash = hai_mix(HAI_REINTERPRET(uintptr_t, index->self) + 1u);
  int i;
  for (i = 0; i < 5; i++) hash = hai_mix(hash ^ HAI_AS(uint64_t, field[i]));
  return hash;
}

/* Is it an index, and where it was made? No field is believed before. */
static int hai_index_is_sound(const hyperattn_index *index) {
  return index && HAI_REINTERPRET(uintptr_t, index) % HAI_ALIGN == 0 && index->self == index &&
         index->check == hai_index_check(index);
}

/* Is it one for keys of the problem's shape, however many? */
static int hai_index_fits(const hyperattn_index *index, const hyperattn_problem *p) {
  return hai_index_is_sound(index) && index->batch == p->batch && index->n_kv_heads == p->n_kv_heads &&
         index->head_dim == p->head_dim;
}

/* How many blocks of a kv head there are. */
static int64_t *hai_index_done(hyperattn_index *index, hai_index flat_kv_head) {
  return HAI_PLACE(int64_t, HAI_REINTERPRET(char *, index + 1)) + flat_kv_head;
}

/* Room for making its blocks. */
static float *hai_index_space(hyperattn_index *index, hai_index flat_kv_head) {
  size_t heads = HAI_AS(size_t, index->batch * index->n_kv_heads), at = HAI_AS(size_t, flat_kv_head);
  char *rooms = HAI_REINTERPRET(char *, index) + hai_index_rooms(heads);
  return HAI_PLACE(float, rooms + at * hai_index_room_bytes(index->head_dim));
}

/* Block `block` of a kv head. */
static uint8_t *hai_index_block_at(hyperattn_index *index, hai_index flat_kv_head, hai_index block) {
  size_t heads = HAI_AS(size_t, index->batch * index->n_kv_heads), at = HAI_AS(size_t, flat_kv_head);
  size_t blocks = at * HAI_AS(size_t, index->capacity / HAI_CHUNK) + HAI_AS(size_t, block);
  return HAI_REINTERPRET(uint8_t *, index) + hai_index_blocks(heads, index->head_dim) +
         blocks * hai_block_layout_of(hai_to_index(index->head_dim)).size;
}

/* The block at `at` as a kernel reads it. Returns 0 if a key of it was not finite: nothing is known of it
   then. */
static int hai_index_read(const hai_block_layout *y, const uint8_t *at, hai_index_block *b) {
  float unit[3];
  b->code = at;
  b->norm = at + y->norm;
  b->mean = at + y->mean;
  HYPERATTN_MEMCPY(unit, at + y->units, sizeof unit);
  b->mean_unit = unit[0];
  b->norm_unit = unit[1];
  b->square = unit[2];
  b->ahead = 0;
  return hai_finite(unit[0]) && hai_finite(unit[1]);
}
#endif
