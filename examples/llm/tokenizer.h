// Byte-level BPE as GPT-2's, from the vocabulary and merges in a GGUF file.
#ifndef LLM_TOKENIZER_H
#define LLM_TOKENIZER_H

#include "gguf.h"

typedef struct tokenizer {
  gguf_string *tokens;  // in the file's own spelling, a printable character for each byte
  int32_t n_tokens;
  int32_t *special;  // ids of control tokens and of those the user defined
  int32_t n_special;
  int32_t byte_token[256];         // -1 where the vocabulary lacks the byte
  int split_digits;                // each digit is a word of its own
  int32_t bos, eos, end_of_turn;   // -1: none
  struct tokenizer_slot *ids;      // hash of spelling to token
  struct tokenizer_merge *merges;  // hash of two tokens to the one they become
  size_t ids_mask, merges_mask;
} tokenizer;

int tokenizer_open(tokenizer *t, const gguf *file, llm_error *error);  // the file outlives it
void tokenizer_close(tokenizer *t);

// The tokens of a text, allocated; NULL when out of memory. with_special: "<|im_start|>" and its like
// become one token each. Bytes that the vocabulary lacks are left out.
int32_t *tokenizer_encode(const tokenizer *t, const char *text, size_t size, int with_special,
                          int64_t *n_tokens);
// A token's bytes, at most `room` of them; returns how many.
size_t tokenizer_decode(const tokenizer *t, int32_t token, char *bytes, size_t room);

#endif
