// Byte-level BPE like GPT-2's, with the vocabulary and merges of a GGUF file.
#ifndef LLM_TOKENIZER_H
#define LLM_TOKENIZER_H

#include "gguf.h"

typedef struct tokenizer {
  gguf_string *tokens;   // as the file spells them, with a printable character for each byte
  unsigned char *types;  // a tokenizer_type each
  int32_t n_tokens;
  int32_t *special;  // ids of tokens that a text may name, ordered by spelling
  int32_t n_special;
  int32_t byte_token[256];                                   // -1 if the vocabulary lacks the byte
  int split_digits;                                          // each digit is a word of its own
  int add_bos;                                               // a text begins with `bos`
  int32_t bos, eos, end_of_turn, end_of_message, end_of_im;  // -1: none
  struct tokenizer_slot *ids;                                // hash of spelling to token
  struct tokenizer_merge *merges;  // hash of two tokens to the token that they become
  size_t ids_mask, merges_mask;
} tokenizer;

int tokenizer_open(tokenizer *t, const gguf *file, llm_error *error);  // the file must outlive it
void tokenizer_close(tokenizer *t);

// The tokens of a text, allocated; NULL when out of memory. with_special makes special tokens such as
// "<|im_start|>" one token each; user-defined tokens always become one. Bytes that the vocabulary lacks are
// left out.
int32_t *tokenizer_encode(const tokenizer *t, const char *text, size_t size, int with_special,
                          int64_t *n_tokens);

// Memory for merging, kept from word to word; all zeros at the beginning. The caller frees `links` and
// `pairs`.
typedef struct tokenizer_work {
  int64_t room;                  // the most tokens of a word
  int64_t *links;                // the links of the list of tokens, and the positions to merge next
  struct tokenizer_pair *pairs;  // a heap
  int64_t n_pairs;
  int64_t n_steps;  // merges looked up and levels of the heap passed, which determine the time
} tokenizer_work;

// Merges the tokens of a word in place, always the pair of lowest rank, until no pair merges. Returns how
// many tokens are left, or -1 when out of memory. n tokens take O(n log n) steps.
int64_t tokenizer_merge_word(const tokenizer *t, tokenizer_work *work, int32_t *tokens, int64_t n);

// Whether this token ends what a model writes.
int tokenizer_is_end(const tokenizer *t, int32_t token);
// A token's bytes, at most `room` of them; returns how many.
size_t tokenizer_decode(const tokenizer *t, int32_t token, char *bytes, size_t room);

#endif
