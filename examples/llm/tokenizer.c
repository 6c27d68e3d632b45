#include "tokenizer.h"

#include "unicode.h"

#include <stdlib.h>
#include <string.h>

typedef struct tokenizer_slot {
  int32_t token;  // + 1; 0: free
} tokenizer_slot;

typedef struct tokenizer_merge {
  int32_t left, right, result;  // result + 1; 0: free
  int32_t rank;
} tokenizer_merge;

// ---- Characters -----------------------------------------------------------------------------------

// The character at *at; moves on. Bytes that are not UTF-8 are characters of their own, neither letter
// nor space.
static uint32_t next_character(const unsigned char **at, const unsigned char *end) {
  const unsigned char *p = *at;
  int more = p[0] < 0x80 ? 0 : p[0] >= 0xf0 && p[0] < 0xf8 ? 3 : p[0] >= 0xe0 ? 2 : p[0] >= 0xc2 ? 1 : -1;
  *at = p + 1;
  if (p[0] >= 0xf8 || more < 0 || end - p <= more) return more ? 0xfffd : p[0];
  uint32_t code = more ? p[0] & (0x3fu >> more) : p[0];
  for (int i = 1; i <= more; i++) {
    if ((p[i] & 0xc0) != 0x80) return 0xfffd;
    code = code << 6 | (p[i] & 0x3fu);
  }
  *at = p + 1 + more;
  return code;
}

// 'L' letter, 'N' number, 'S' white space, 'O' other.
static char kind_of(uint32_t code) {
  size_t low = 0, high = sizeof unicode_ranges / sizeof *unicode_ranges;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (code > unicode_ranges[middle].last)
      low = middle + 1;
    else
      high = middle;
  }
  int is_in = low < sizeof unicode_ranges / sizeof *unicode_ranges && code >= unicode_ranges[low].first;
  return is_in ? unicode_ranges[low].kind : 'O';
}

static char kind_at(const unsigned char *at, const unsigned char *end) {
  return at < end ? kind_of(next_character(&at, end)) : 0;
}

// GPT-2 writes bytes as printable characters: those that are printable in Latin-1 as themselves, the n-th
// of the others as U+0100 + n.
static int is_plain(unsigned byte) { return (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad); }
static uint32_t character_of_byte(unsigned byte) {
  if (is_plain(byte)) return byte;
  uint32_t n = 0;
  for (unsigned i = 0; i < byte; i++) n += !is_plain(i);
  return 0x100 + n;
}
static size_t spell_byte(unsigned byte, char spelling[2]) {
  uint32_t code = character_of_byte(byte);
  if (code < 0x80) return spelling[0] = (char)code, 1;
  spelling[0] = (char)(0xc0 | code >> 6), spelling[1] = (char)(0x80 | (code & 0x3f));
  return 2;
}

// ---- Vocabulary -----------------------------------------------------------------------------------

static size_t hash_bytes(const char *data, size_t size) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)data[i]) * 0x100000001b3u;
  return (size_t)(hash ^ hash >> 32);
}

// The slot of a spelling, or the free one where it belongs.
static tokenizer_slot *slot_of(const tokenizer *t, const char *data, size_t size) {
  for (size_t i = hash_bytes(data, size);; i++) {
    tokenizer_slot *slot = &t->ids[i & t->ids_mask];
    if (!slot->token) return slot;
    gguf_string other = t->tokens[slot->token - 1];
    if (other.size == size && !memcmp(other.data, data, size)) return slot;
  }
}
static int32_t find_token(const tokenizer *t, const char *data, size_t size) {
  return slot_of(t, data, size)->token - 1;
}

static tokenizer_merge *merge_of(const tokenizer *t, int32_t left, int32_t right) {
  uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
  for (size_t i = (size_t)(hash >> 32);; i++) {
    tokenizer_merge *merge = &t->merges[i & t->merges_mask];
    if (!merge->result || (merge->left == left && merge->right == right)) return merge;
  }
}

static size_t power_of_two(size_t at_least) {
  size_t size = 16;
  while (size < at_least) size *= 2;
  return size;
}

static int read_vocabulary(tokenizer *t, const gguf *file, llm_error *error) {
  const gguf_value *tokens = gguf_find(file, "tokenizer.ggml.tokens");
  const gguf_value *types = gguf_find(file, "tokenizer.ggml.token_type");
  if (!tokens || tokens->element != GGUF_STRING || tokens->count < 1 || tokens->count > INT32_MAX / 4)
    return llm_fail(error, "tokenizer.ggml.tokens is missing or not an array of strings");
  if (types && (types->element != GGUF_I32 || types->count != tokens->count))
    return llm_fail(error, "tokenizer.ggml.token_type does not fit the tokens");
  size_t n = (size_t)tokens->count;
  t->ids_mask = power_of_two(2 * n) - 1;
  t->tokens = calloc(n, sizeof *t->tokens);
  t->special = calloc(n, sizeof *t->special);
  t->ids = calloc(t->ids_mask + 1, sizeof *t->ids);
  if (!t->tokens || !t->special || !t->ids) return llm_fail(error, "out of memory");
  const unsigned char *cursor = tokens->data;
  t->n_tokens = (int32_t)n;
  for (int32_t id = 0; id < t->n_tokens; id++) {
    gguf_string text = t->tokens[id] = gguf_next_string(&cursor);
    uint32_t type = types ? gguf_u32(types->data + 4 * (size_t)id) : 1;
    if ((type == 3 || type == 4) && text.size) t->special[t->n_special++] = id;
    tokenizer_slot *slot = slot_of(t, text.data, text.size);
    if (!slot->token) slot->token = id + 1;
  }
  for (unsigned byte = 0; byte < 256; byte++) {
    char spelling[2];
    t->byte_token[byte] = find_token(t, spelling, spell_byte(byte, spelling));
  }
  return 1;
}

// A merge is written "left right"; neither side holds a space. One whose parts or result are no tokens is
// of no use.
static int read_merges(tokenizer *t, const gguf *file, llm_error *error) {
  const gguf_value *merges = gguf_find(file, "tokenizer.ggml.merges");
  if (!merges || merges->element != GGUF_STRING || merges->count > INT32_MAX / 4)
    return llm_fail(error, "tokenizer.ggml.merges is missing or not an array of strings");
  t->merges_mask = power_of_two(2 * (size_t)merges->count) - 1;
  t->merges = calloc(t->merges_mask + 1, sizeof *t->merges);
  char *both = NULL;
  size_t room = 0;
  const unsigned char *cursor = merges->data;
  for (uint64_t rank = 0; t->merges && rank < merges->count; rank++) {
    gguf_string text = gguf_next_string(&cursor);
    const char *space = text.size > 1 ? memchr(text.data + 1, ' ', text.size - 1) : NULL;
    if (!space) continue;
    size_t left = (size_t)(space - text.data), right = text.size - left - 1;
    if (text.size > room) {
      free(both);
      both = malloc(room = 2 * text.size);
      if (!both) break;
    }
    memcpy(both, text.data, left), memcpy(both + left, space + 1, right);
    tokenizer_merge merge = {find_token(t, both, left), find_token(t, both + left, right),
                             find_token(t, both, left + right) + 1, (int32_t)rank};
    if (merge.left < 0 || merge.right < 0 || merge.result < 1) continue;
    tokenizer_merge *slot = merge_of(t, merge.left, merge.right);
    if (!slot->result) *slot = merge;
  }
  int is_out_of_memory = !t->merges || (room && !both);
  free(both);
  return is_out_of_memory ? llm_fail(error, "out of memory") : 1;
}

static int32_t token_named(const tokenizer *t, const gguf *file, const char *key) {
  int64_t id = -1;
  return gguf_integer(file, key, &id) && id >= 0 && id < t->n_tokens ? (int32_t)id : -1;
}

int tokenizer_open(tokenizer *t, const gguf *file, llm_error *error) {
  *t = (tokenizer){0};
  gguf_string kind = {"", 0}, words = {"", 0};
  gguf_text(file, "tokenizer.ggml.model", &kind);
  gguf_text(file, "tokenizer.ggml.pre", &words);
  t->split_digits = gguf_equal(words, "smollm");
  if (!gguf_equal(kind, "gpt2"))
    return llm_fail(error, "its tokenizer is '%.*s'; only gpt2 (byte-level BPE) is read", gguf_shown(kind),
                    kind.data);
  if (!t->split_digits && !gguf_equal(words, "gpt-2"))
    return llm_fail(error, "it splits words as '%.*s'; only smollm and gpt-2 are known", gguf_shown(words),
                    words.data);
  if (!read_vocabulary(t, file, error) || !read_merges(t, file, error)) {
    tokenizer_close(t);
    return 0;
  }
  t->bos = token_named(t, file, "tokenizer.ggml.bos_token_id");
  t->eos = token_named(t, file, "tokenizer.ggml.eos_token_id");
  t->end_of_turn = find_token(t, "<|im_end|>", 10);
  return 1;
}

void tokenizer_close(tokenizer *t) {
  free(t->tokens), free(t->special), free(t->ids), free(t->merges);
  *t = (tokenizer){0};
}

// ---- Text to tokens -------------------------------------------------------------------------------

typedef struct token_list {
  int32_t *tokens;
  int64_t n;
} token_list;

// The tokens of one word: its bytes', of which the pair of lowest rank merges wherever it stands, until
// none can.
static void add_word(const tokenizer *t, const unsigned char *word, const unsigned char *end,
                     token_list *list) {
  int32_t *part = list->tokens + list->n;  // there is room for a token per byte of text
  int64_t n = 0;
  for (; word < end; word++)
    if (t->byte_token[*word] >= 0) part[n++] = t->byte_token[*word];
  while (n > 1) {
    int64_t best = -1;
    tokenizer_merge chosen = {0, 0, 0, INT32_MAX};
    for (int64_t i = 0; i + 1 < n; i++) {
      const tokenizer_merge *merge = merge_of(t, part[i], part[i + 1]);
      if (merge->result && merge->rank < chosen.rank) chosen = *merge, best = i;
    }
    if (best < 0) break;
    int64_t kept = best;
    for (int64_t i = best; i < n; kept++) {
      int is_pair = i + 1 < n && part[i] == chosen.left && part[i + 1] == chosen.right;
      part[kept] = is_pair ? chosen.result - 1 : part[i];
      i += is_pair ? 2 : 1;
    }
    n = kept;
  }
  list->n += n;
}

// The end of a run of one kind of character.
static const unsigned char *run_end(const unsigned char *at, const unsigned char *end, char kind) {
  while (at < end) {
    const unsigned char *next = at;
    if (kind_of(next_character(&next, end)) != kind) break;
    at = next;
  }
  return at;
}

// The end of the word at `at`, by GPT-2's expression:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
static const unsigned char *word_end(const unsigned char *at, const unsigned char *end) {
  if (*at == '\'' && end - at > 1) {
    if (strchr("stmd", at[1]) && at[1]) return at + 2;
    if (end - at > 2 && (!memcmp(at + 1, "re", 2) || !memcmp(at + 1, "ve", 2) || !memcmp(at + 1, "ll", 2)))
      return at + 3;
  }
  const unsigned char *word = at + (*at == ' ');
  char kind = kind_at(word, end);
  if (kind && kind != 'S') return run_end(word, end, kind);
  // White space; before a word its last character is left to the word.
  const unsigned char *stop = run_end(at, end, 'S'), *last = at;
  for (const unsigned char *next = at; next < stop; next_character(&next, end)) last = next;
  return stop < end && last > at ? last : stop;
}

// A stretch without special tokens. Digits stand alone and are ends to the stretches between them.
static void add_text(const tokenizer *t, const unsigned char *at, const unsigned char *end,
                     token_list *list) {
  while (at < end) {
    const unsigned char *stop = end;
    if (t->split_digits) {
      for (stop = at; stop < end && kind_at(stop, end) != 'N';) next_character(&stop, end);
      if (stop == at) {
        next_character(&stop, end);
        add_word(t, at, stop, list);
        at = stop;
        continue;
      }
    }
    while (at < stop) {
      const unsigned char *next = word_end(at, stop);
      add_word(t, at, next, list);
      at = next;
    }
  }
}

// The longest special token that the text begins with; -1: none.
static int32_t special_at(const tokenizer *t, const unsigned char *at, const unsigned char *end) {
  int32_t found = -1;
  size_t longest = 0;
  for (int32_t i = 0; i < t->n_special; i++) {
    gguf_string text = t->tokens[t->special[i]];
    if (text.size > longest && text.size <= (size_t)(end - at) && !memcmp(at, text.data, text.size))
      found = t->special[i], longest = text.size;
  }
  return found;
}

int32_t *tokenizer_encode(const tokenizer *t, const char *text, size_t size, int with_special,
                          int64_t *n_tokens) {
  const unsigned char *at = (const unsigned char *)text, *end = at + size, *begin = at;
  token_list list = {malloc((size + 1) * sizeof *list.tokens), 0};
  if (!list.tokens) return NULL;
  for (; with_special && at < end;) {
    int32_t special = special_at(t, at, end);
    if (special < 0) {
      at++;
      continue;
    }
    add_text(t, begin, at, &list);
    list.tokens[list.n++] = special;
    begin = at += t->tokens[special].size;
  }
  add_text(t, begin, end, &list);
  *n_tokens = list.n;
  return list.tokens;
}

size_t tokenizer_decode(const tokenizer *t, int32_t token, char *bytes, size_t room) {
  if (token < 0 || token >= t->n_tokens) return 0;
  gguf_string text = t->tokens[token];
  const unsigned char *at = (const unsigned char *)text.data, *end = at + text.size;
  size_t n = 0;
  while (at < end && n < room) {
    const unsigned char *begin = at;
    uint32_t code = next_character(&at, end);
    unsigned byte = 0;
    while (byte < 256 && character_of_byte(byte) != code) byte++;
    if (byte < 256) {
      bytes[n++] = (char)byte;
    } else {  // not of the byte alphabet: as it is
      while (begin < at && n < room) bytes[n++] = (char)*begin++;
    }
  }
  return n;
}
