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

typedef struct tokenizer_pair {  // two neighbours that merge, the first of them at `at`
  int32_t rank;
  int64_t at;
} tokenizer_pair;

// GGUF's types of tokens. The sixth, a byte, belongs to other tokenizers.
enum { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED };

// ---- Characters -----------------------------------------------------------------------------------

// The character at *at, and moves *at behind it. A byte that is not UTF-8 is a character of its own, neither
// a letter nor a space.
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

// GPT-2 writes bytes as printable characters: a byte that is printable in Latin-1 as itself, the n-th of the
// other bytes as U+0100 + n.
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

// The slot of a spelling, or the free slot where it belongs.
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

// Orders special tokens by their spelling, and those with the same spelling by their number.
typedef struct spelt {
  gguf_string text;
  int32_t token;
} spelt;

static int compare_spelt(const void *a, const void *b) {
  const spelt *x = a, *y = b;
  size_t shared = x->text.size < y->text.size ? x->text.size : y->text.size;
  int order = memcmp(x->text.data, y->text.data, shared);
  if (!order) order = (x->text.size > y->text.size) - (x->text.size < y->text.size);
  return order ? order : (x->token > y->token) - (x->token < y->token);
}

static int sort_special(tokenizer *t, llm_error *error) {
  spelt *sorted = malloc(((size_t)t->n_special + 1) * sizeof *sorted);
  if (!sorted) return llm_fail(error, "out of memory");
  for (int32_t i = 0; i < t->n_special; i++) sorted[i] = (spelt){t->tokens[t->special[i]], t->special[i]};
  qsort(sorted, (size_t)t->n_special, sizeof *sorted, compare_spelt);
  for (int32_t i = 0; i < t->n_special; i++) t->special[i] = sorted[i].token;
  free(sorted);
  return 1;
}

static int read_vocabulary(tokenizer *t, const gguf *file, llm_error *error) {
  static const char tokens_key[] = "tokenizer.ggml.tokens", types_key[] = "tokenizer.ggml.token_type";
  const gguf_value *tokens, *types;
  if (!gguf_has(file, tokens_key, error) || !gguf_array(file, tokens_key, GGUF_STRING, &tokens, error) ||
      !gguf_array(file, types_key, GGUF_I32, &types, error))
    return 0;
  if (tokens->count < 1 || tokens->count > INT32_MAX / 4)
    return llm_fail(error, "%s has none, or too many", tokens_key);
  if (types && types->count != tokens->count)
    return llm_fail(error, "%s does not fit the tokens", types_key);
  size_t n = (size_t)tokens->count;
  t->ids_mask = power_of_two(2 * n) - 1;
  t->tokens = calloc(n, sizeof *t->tokens);
  t->types = calloc(n, sizeof *t->types);
  t->special = calloc(n, sizeof *t->special);
  t->ids = calloc(t->ids_mask + 1, sizeof *t->ids);
  if (!t->tokens || !t->types || !t->special || !t->ids) return llm_fail(error, "out of memory");
  const unsigned char *cursor = tokens->data;
  t->n_tokens = (int32_t)n;
  for (int32_t id = 0; id < t->n_tokens; id++) {
    gguf_string text = t->tokens[id] = gguf_next_string(&cursor);
    uint32_t type = types ? gguf_u32(types->data + 4 * (size_t)id) : NORMAL;
    if (type < NORMAL || type > UNUSED)
      return llm_fail(error, "%s of token %d is %d; only 1 to 5 are understood", types_key, (int)id,
                      (int)type);
    t->types[id] = (unsigned char)type;
    if (type != NORMAL && type != UNUSED && text.size) t->special[t->n_special++] = id;
    tokenizer_slot *slot = slot_of(t, text.data, text.size);
    if (!slot->token) slot->token = id + 1;
  }
  for (unsigned byte = 0; byte < 256; byte++) {
    char spelling[2];
    t->byte_token[byte] = find_token(t, spelling, spell_byte(byte, spelling));
  }
  return sort_special(t, error);
}

// A merge is written "left right". Neither side is empty or contains a space, and left, right and their
// concatenation are tokens.
static int read_merges(tokenizer *t, const gguf *file, llm_error *error) {
  static const char key[] = "tokenizer.ggml.merges";
  const gguf_value *merges;
  if (!gguf_has(file, key, error) || !gguf_array(file, key, GGUF_STRING, &merges, error)) return 0;
  if (merges->count > INT32_MAX / 4) return llm_fail(error, "%s has too many", key);
  t->merges_mask = power_of_two(2 * (size_t)merges->count) - 1;
  t->merges = calloc(t->merges_mask + 1, sizeof *t->merges);
  char *both = NULL;
  size_t room = 0;
  const unsigned char *cursor = merges->data;
  for (uint64_t rank = 0; t->merges && rank < merges->count; rank++) {
    gguf_string text = gguf_next_string(&cursor);
    const char *space = text.size > 1 ? memchr(text.data + 1, ' ', text.size - 1) : NULL;
    size_t left = space ? (size_t)(space - text.data) : 0, right = space ? text.size - left - 1 : 0;
    if (text.size > room) {
      free(both);
      both = malloc(room = 2 * text.size);
      if (!both) break;
    }
    if (right) memcpy(both, text.data, left), memcpy(both + left, space + 1, right);
    tokenizer_merge merge = {-1, -1, 0, (int32_t)rank};
    if (right) {
      merge.left = find_token(t, both, left), merge.right = find_token(t, both + left, right);
      merge.result = find_token(t, both, left + right) + 1;
    }
    if (merge.left < 0 || merge.right < 0 || merge.result < 1) {
      free(both);
      return llm_fail(error, "%s holds '%.*s', which does not make a token of two", key, gguf_shown(text),
                      text.data);
    }
    tokenizer_merge *slot = merge_of(t, merge.left, merge.right);
    if (!slot->result) *slot = merge;
  }
  int is_out_of_memory = !t->merges || (room && !both);
  free(both);
  return is_out_of_memory ? llm_fail(error, "out of memory") : 1;
}

static int read_token(const tokenizer *t, const gguf *file, const char *key, int32_t *token,
                      llm_error *error) {
  int64_t id = -1;
  if (!gguf_integer(file, key, 0, t->n_tokens - 1, &id, error)) return 0;
  *token = (int32_t)id;
  return 1;
}

static int read_tokenizer(tokenizer *t, const gguf *file, llm_error *error) {
  // Accepted only with the value that changes nothing.
  static const char *const off[] = {
      "tokenizer.ggml.add_eos_token",
      "tokenizer.ggml.add_sep_token",
      "tokenizer.ggml.add_space_prefix",
      "tokenizer.ggml.remove_extra_whitespaces",
  };
  // Harmless with any value: names of tokens that neither begin nor end a text; scores, which another kind of
  // tokenizer merges by; templates, which --chat does not use; and the same vocabulary in another notation.
  static const char *const harmless[] = {
      "tokenizer.chat_template",
      "tokenizer.chat_template.",
      "tokenizer.chat_templates",
      "tokenizer.ggml.cls_token_id",
      "tokenizer.ggml.fim_mid_token_id",
      "tokenizer.ggml.fim_pad_token_id",
      "tokenizer.ggml.fim_pre_token_id",
      "tokenizer.ggml.fim_rep_token_id",
      "tokenizer.ggml.fim_sep_token_id",
      "tokenizer.ggml.fim_suf_token_id",
      "tokenizer.ggml.mask_token_id",
      "tokenizer.ggml.middle_token_id",
      "tokenizer.ggml.padding_token_id",
      "tokenizer.ggml.prefix_token_id",
      "tokenizer.ggml.scores",
      "tokenizer.ggml.separator_token_id",
      "tokenizer.ggml.seperator_token_id",  // as GGUF spells it
      "tokenizer.ggml.suffix_token_id",
      "tokenizer.ggml.unknown_token_id",
      "tokenizer.huggingface.json",
  };
  static const char bos[] = "tokenizer.ggml.bos_token_id", add_bos[] = "tokenizer.ggml.add_bos_token";
  gguf_string kind = {"", 0}, words = {"", 0};
  if (!gguf_text(file, "tokenizer.ggml.model", &kind, error) ||
      !gguf_text(file, "tokenizer.ggml.pre", &words, error))
    return 0;
  t->split_digits = gguf_equal(words, "smollm");
  if (!gguf_equal(kind, "gpt2"))
    return llm_fail(error, "tokenizer.ggml.model is '%.*s'; only gpt2, byte-level BPE, is understood",
                    gguf_shown(kind), kind.data);
  if (!t->split_digits && !gguf_equal(words, "gpt-2"))
    return llm_fail(error, "tokenizer.ggml.pre is '%.*s'; only smollm and gpt-2 are understood",
                    gguf_shown(words), words.data);
  for (size_t i = 0; i < sizeof off / sizeof *off; i++)
    if (!gguf_is_only(file, off[i], 0, error)) return 0;
  gguf_pass_over(file, harmless, sizeof harmless / sizeof *harmless);
  if (!read_vocabulary(t, file, error) || !read_merges(t, file, error) ||
      !read_token(t, file, bos, &t->bos, error) ||
      !read_token(t, file, "tokenizer.ggml.eos_token_id", &t->eos, error) ||
      !read_token(t, file, "tokenizer.ggml.eot_token_id", &t->end_of_turn, error) ||
      !read_token(t, file, "tokenizer.ggml.eom_token_id", &t->end_of_message, error) ||
      !gguf_flag(file, add_bos, &t->add_bos, error))
    return 0;
  if (t->add_bos && !gguf_has(file, bos, error)) return 0;
  t->end_of_im = find_token(t, "<|im_end|>", 10);
  return gguf_keys_read(file, "tokenizer.", error);
}

int tokenizer_open(tokenizer *t, const gguf *file, llm_error *error) {
  *t = (tokenizer){0};
  if (read_tokenizer(t, file, error)) return 1;
  tokenizer_close(t);
  return 0;
}

int tokenizer_is_end(const tokenizer *t, int32_t token) {
  return token == t->eos || token == t->end_of_turn || token == t->end_of_message || token == t->end_of_im;
}

void tokenizer_close(tokenizer *t) {
  free(t->tokens), free(t->types), free(t->special), free(t->ids), free(t->merges);
  *t = (tokenizer){0};
}

// ---- Merging --------------------------------------------------------------------------------------

static int is_before(tokenizer_pair a, tokenizer_pair b) {
  return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void push_pair(tokenizer_work *w, tokenizer_pair pair) {
  int64_t i = w->n_pairs++;
  for (; i > 0 && is_before(pair, w->pairs[(i - 1) / 2]); i = (i - 1) / 2, w->n_steps++)
    w->pairs[i] = w->pairs[(i - 1) / 2];
  w->pairs[i] = pair;
}

static tokenizer_pair pop_pair(tokenizer_work *w) {
  tokenizer_pair top = w->pairs[0], last = w->pairs[--w->n_pairs];
  int64_t i = 0, child;
  for (; (child = 2 * i + 1) < w->n_pairs; i = child, w->n_steps++) {
    if (child + 1 < w->n_pairs && is_before(w->pairs[child + 1], w->pairs[child])) child++;
    if (!is_before(w->pairs[child], last)) break;
    w->pairs[i] = w->pairs[child];
  }
  w->pairs[i] = last;
  return top;
}

static int make_room(tokenizer_work *w, int64_t n) {
  if (n <= w->room) return 1;
  int64_t room = n > 64 ? n : 64;
  free(w->links), free(w->pairs);
  // A merge takes a pair off the heap and adds at most two, so there are never more than two per token.
  w->links = malloc((size_t)(4 * room) * sizeof *w->links);
  w->pairs = malloc((size_t)(2 * room) * sizeof *w->pairs);
  w->room = w->links && w->pairs ? room : 0;
  return w->room > 0;
}

// A word's tokens as a linked list. When two merge, the first becomes the result and the second becomes -1,
// which means removed. `after` the last is n, `before` the first -1.
typedef struct word_list {
  const tokenizer *t;
  tokenizer_work *w;
  int32_t *tokens;
  int64_t n, *before, *after;
} word_list;

// How the token at `at` merges with the next, or NULL.
static const tokenizer_merge *merge_at(const word_list *l, int64_t at) {
  l->w->n_steps++;
  if (l->tokens[at] < 0 || l->after[at] >= l->n) return NULL;
  const tokenizer_merge *merge = merge_of(l->t, l->tokens[at], l->tokens[l->after[at]]);
  return merge->result ? merge : NULL;
}

static void push_at(const word_list *l, int64_t at) {
  const tokenizer_merge *merge = merge_at(l, at);
  if (merge) push_pair(l->w, (tokenizer_pair){merge->rank, at});
}

int64_t tokenizer_merge_word(const tokenizer *t, tokenizer_work *w, int32_t *tokens, int64_t n) {
  if (!make_room(w, n)) return -1;
  word_list l = {t, w, tokens, n, w->links, w->links + n};
  int64_t *now = w->links + 2 * n, kept = 0;
  w->n_pairs = 0;
  for (int64_t i = 0; i < n; i++) l.before[i] = i - 1, l.after[i] = i + 1;
  for (int64_t i = 0; i < n; i++) push_at(&l, i);
  while (w->n_pairs) {
    // All pairs of the lowest rank merge before any pair that these merges create, even one of lower rank.
    int64_t n_now = 0;
    int32_t rank = w->pairs[0].rank;
    while (w->n_pairs && w->pairs[0].rank == rank) now[n_now++] = pop_pair(w).at;
    for (int64_t k = 0; k < n_now; k++) {
      int64_t at = now[k], gone = l.after[at];
      const tokenizer_merge *merge = merge_at(&l, at);
      if (!merge || merge->rank != rank) continue;  // one of the two has merged with another token since
      tokens[at] = merge->result - 1, tokens[gone] = -1;
      l.after[at] = l.after[gone];
      if (l.after[at] < n) l.before[l.after[at]] = at;
      if (l.before[at] >= 0) push_at(&l, l.before[at]);
      push_at(&l, at);
    }
  }
  for (int64_t i = 0; i < n; i = l.after[i]) tokens[kept++] = tokens[i];
  return kept;
}

// ---- Text to tokens -------------------------------------------------------------------------------

typedef struct token_list {
  int32_t *tokens;  // room for one more than the text has bytes
  int64_t n;
  tokenizer_work work;
} token_list;

// Each returns 0 when out of memory.
static int add_word(const tokenizer *t, const unsigned char *word, const unsigned char *end,
                    token_list *list) {
  int32_t *tokens = list->tokens + list->n;
  int64_t n = 0;
  for (; word < end; word++)
    if (t->byte_token[*word] >= 0) tokens[n++] = t->byte_token[*word];
  if (n > 1) n = tokenizer_merge_word(t, &list->work, tokens, n);
  if (n < 0) return 0;
  list->n += n;
  return 1;
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
  // White space. If a word follows, the last character belongs to the word.
  const unsigned char *stop = run_end(at, end, 'S'), *last = at;
  for (const unsigned char *next = at; next < stop; next_character(&next, end)) last = next;
  return stop < end && last > at ? last : stop;
}

// Adds the tokens of text without special tokens. With split_digits each digit is a word of its own and ends
// the one before.
static int add_text(const tokenizer *t, const unsigned char *at, const unsigned char *end,
                    token_list *list) {
  while (at < end) {
    const unsigned char *stop = end;
    if (t->split_digits) {
      for (stop = at; stop < end && kind_at(stop, end) != 'N';) next_character(&stop, end);
      if (stop == at) {
        next_character(&stop, end);
        if (!add_word(t, at, stop, list)) return 0;
        at = stop;
        continue;
      }
    }
    while (at < stop) {
      const unsigned char *next = word_end(at, stop);
      if (!add_word(t, at, next, list)) return 0;
      at = next;
    }
  }
  return 1;
}

// Of the special tokens [low, high), which all have the same first k bytes and are longer, the first whose
// byte k is at least `byte`.
static int32_t first_at_least(const tokenizer *t, int32_t low, int32_t high, size_t k, int byte) {
  while (low < high) {
    int32_t middle = low + (high - low) / 2;
    if ((unsigned char)t->tokens[t->special[middle]].data[k] < byte)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The longest special token that the text begins with; -1 if there is none.
static int32_t special_at(const tokenizer *t, const unsigned char *at, const unsigned char *end,
                          int with_special) {
  int32_t found = -1, low = 0, high = t->n_special;
  for (size_t k = 0; at + k < end; k++) {
    low = first_at_least(t, low, high, k, at[k]), high = first_at_least(t, low, high, k, at[k] + 1);
    int32_t first = low;
    while (low < high && t->tokens[t->special[low]].size == k + 1) low++;
    for (int32_t i = low; i-- > first;)
      if (with_special || t->types[t->special[i]] == USER_DEFINED) found = t->special[i];
    if (low == high) break;
  }
  return found;
}

static int add_all(const tokenizer *t, const unsigned char *at, const unsigned char *end, int with_special,
                   token_list *list) {
  const unsigned char *begin = at;
  if (t->add_bos) list->tokens[list->n++] = t->bos;
  while (at < end) {
    int32_t special = special_at(t, at, end, with_special);
    if (special < 0) {
      at++;
      continue;
    }
    if (!add_text(t, begin, at, list)) return 0;
    list->tokens[list->n++] = special;
    begin = at += t->tokens[special].size;
  }
  return add_text(t, begin, end, list);
}

int32_t *tokenizer_encode(const tokenizer *t, const char *text, size_t size, int with_special,
                          int64_t *n_tokens) {
  const unsigned char *bytes = (const unsigned char *)text;
  token_list list = {.tokens = malloc((size + 1) * sizeof *list.tokens)};
  if (list.tokens && !add_all(t, bytes, bytes + size, with_special, &list)) {
    free(list.tokens);
    list.tokens = NULL;
  }
  free(list.work.links), free(list.work.pairs);
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
    } else {  // not in the alphabet of bytes: copied as it is
      while (begin < at && n < room) bytes[n++] = (char)*begin++;
    }
  }
  return n;
}
