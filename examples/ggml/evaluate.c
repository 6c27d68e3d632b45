// What a model of llama.cpp makes of a text: the loss of each token, the logits of the last ones, the
// tokens it goes on with, and how fast. A backend that GGML_BACKEND_PATH names takes part, so that two runs
// show what it changes.
//
//   evaluate MODEL.gguf --tokens FILE | --text FILE [--losses FILE] [--logits FILE] [--greedy N] ...
//
// evaluate --help lists all options. It uses llama.cpp's public interface only.
#include "ggml-backend.h"
#include "llama.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROGRAM "evaluate"
static const char usage[] =
    "usage: evaluate MODEL.gguf --tokens FILE | --text FILE ...\n"
    "  --tokens FILE       token ids as decimal text, taken as they are\n"
    "  --text FILE         text, which the model's tokenizer reads\n"
    "  --limit N           read the first N tokens (default: all)\n"
    "  --ubatch N          tokens that run through the model at once (default: 512)\n"
    "  --batch N           tokens given to llama.cpp at once (default: 2048; with --losses, as --ubatch)\n"
    "  --threads N         (default: as many as the machine runs at once)\n"
    "  --cache T           f32, f16 or q8_0: what keys and values are kept in (default: f16)\n"
    "  --flash-attn F      on, auto or off (default: on)\n"
    "  --losses FILE       a line for each token after the first: index, token, natural-log loss\n"
    "  --logits FILE       logits of the last position as raw float32\n"
    "  --positions N       --logits: of the last N positions, one after the other (default: 1)\n"
    "  --greedy N          then go on with the N likeliest tokens, one by one; their ids go to stdout\n";

#include "program.h"

typedef struct options {
  const char *model, *tokens, *text, *losses, *logits;
  enum ggml_type cache;
  enum llama_flash_attn_type flash_attn;
  int64_t limit, ubatch, batch, threads, greedy, positions;
} options;

// ---- Options --------------------------------------------------------------------------------------

static enum ggml_type cache_type(const char *name) {
  if (!strcmp(name, "f32")) return GGML_TYPE_F32;
  if (!strcmp(name, "f16")) return GGML_TYPE_F16;
  if (strcmp(name, "q8_0") != 0) misuse("--cache is f32, f16 or q8_0, not", name);
  return GGML_TYPE_Q8_0;
}

static enum llama_flash_attn_type flash_attn_type(const char *name) {
  if (!strcmp(name, "on")) return LLAMA_FLASH_ATTN_TYPE_ENABLED;
  if (!strcmp(name, "auto")) return LLAMA_FLASH_ATTN_TYPE_AUTO;
  if (strcmp(name, "off") != 0) misuse("--flash-attn is on, auto or off, not", name);
  return LLAMA_FLASH_ATTN_TYPE_DISABLED;
}

static options read_options(int argc, char **argv) {
  options o = {.limit = INT32_MAX, .ubatch = 512, .batch = 2048, .positions = 1};
  o.threads = sysconf(_SC_NPROCESSORS_ONLN);
  const char *cache = "f16", *flash_attn = "on";
  const option table[] = {
      {.name = "--tokens", .text = &o.tokens},
      {.name = "--text", .text = &o.text},
      {.name = "--cache", .text = &cache},
      {.name = "--flash-attn", .text = &flash_attn},
      {.name = "--losses", .text = &o.losses},
      {.name = "--logits", .text = &o.logits},
      {.name = "--limit", .integer = &o.limit, .least = 1},
      {.name = "--ubatch", .integer = &o.ubatch, .least = 1},
      {.name = "--batch", .integer = &o.batch, .least = 1},
      {.name = "--threads", .integer = &o.threads, .least = 1},
      {.name = "--greedy", .integer = &o.greedy, .least = 1},
      {.name = "--positions", .integer = &o.positions, .least = 1},
  };
  read_table(argc, argv, table, sizeof table / sizeof *table, &o.model);
  if (!o.model) misuse("say which model", NULL);
  if (!o.tokens == !o.text) misuse("say what is read, by --tokens or by --text", NULL);
  o.cache = cache_type(cache), o.flash_attn = flash_attn_type(flash_attn);
  // llama.cpp keeps a batch's logits until the next one: those of a long batch and a large vocabulary are
  // gigabytes.
  if (o.losses || o.batch < o.ubatch) o.batch = o.ubatch;
  return o;
}

// ---- Progress: on a terminal only -----------------------------------------------------------------

static void show_progress(const char *name, int64_t done, int64_t total) {
  if (isatty(STDERR_FILENO))
    fprintf(stderr, "\r  %s: %" PRId64 " of %" PRId64 " tokens ", name, done, total);
}
static void clear_progress(void) {
  if (isatty(STDERR_FILENO)) fprintf(stderr, "\r%79s\r", "");
}

// ---- The model and what it reads ------------------------------------------------------------------

typedef struct run {
  options o;
  struct llama_model *model;
  const struct llama_vocab *vocab;
  struct llama_context *context;
  struct llama_batch batch;
  int32_t n_vocab;
  int64_t n_prompt, n_tokens;  // n_tokens: with those it went on with
  llama_token *tokens;
  int64_t first_wanted;  // logits are computed from this position on
  FILE *losses, *logits;
} run;

static void print_errors(enum ggml_log_level level, const char *text, void *unused) {
  static enum ggml_log_level last;
  (void)unused;
  if (level != GGML_LOG_LEVEL_CONT) last = level;
  if (last == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void open_model(run *r) {
  struct llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  r->model = llama_model_load_from_file(r->o.model, params);
  if (!r->model) die("%s: cannot be loaded", r->o.model);
  r->vocab = llama_model_get_vocab(r->model);
  r->n_vocab = llama_vocab_n_tokens(r->vocab);
}

// Both return how many tokens the text has; `tokens` has room for one a byte, and for those a tokenizer
// adds.
static int64_t parse_ids(const run *r, const char *text, llama_token *tokens) {
  int64_t n = 0;
  char *end;
  for (; *(text += strspn(text, " \t\r\n")); text = end) {
    long id = strtol(text, &end, 10);
    if (end == text || !strchr(" \t\r\n", *end)) die("%s: is not token ids", r->o.tokens);
    if (id < 0 || id >= r->n_vocab) die("%s: has a token that the model does not", r->o.tokens);
    tokens[n++] = (llama_token)id;
  }
  return n;
}
static int64_t tokenize(const run *r, const char *text, size_t size, llama_token *tokens, size_t room) {
  if (llama_vocab_type(r->vocab) == LLAMA_VOCAB_TYPE_NONE)
    die("%s: has no tokenizer; use --tokens", r->o.model);
  if (room > INT32_MAX) die("%s: is too long", r->o.text);
  int32_t n = llama_tokenize(r->vocab, text, (int32_t)size, tokens, (int32_t)room, true, false);
  if (n < 0) die("%s: cannot be tokenized", r->o.text);
  return n;
}

static void read_tokens(run *r) {
  const options *o = &r->o;
  size_t size;
  char *text = read_file(o->tokens ? o->tokens : o->text, &size);
  const size_t room = size + 16;
  r->tokens = allocate(room + (size_t)o->greedy, sizeof *r->tokens);
  int64_t n = o->tokens ? parse_ids(r, text, r->tokens) : tokenize(r, text, size, r->tokens, room);
  free(text);
  if (!n) die("%s: has no tokens", o->tokens ? o->tokens : o->text);
  r->n_tokens = r->n_prompt = n < o->limit ? n : o->limit;
  r->first_wanted = o->losses || r->n_prompt < o->positions ? 0 : r->n_prompt - o->positions;
}

static void open_context(run *r) {
  const options *o = &r->o;
  struct llama_context_params params = llama_context_default_params();
  if (r->n_prompt + o->greedy > INT32_MAX) die("%s", "too many tokens");
  params.n_ctx = (uint32_t)(r->n_prompt + o->greedy);
  params.n_batch = (uint32_t)o->batch, params.n_ubatch = (uint32_t)o->ubatch;
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = (int32_t)o->threads;
  params.flash_attn_type = o->flash_attn;
  params.type_k = params.type_v = o->cache;
  params.op_offload = false;
  // Layers with a window keep only what it can see, and write over what it has left, as they do in
  // llama.cpp's own programs.
  params.swa_full = false;
  r->context = llama_init_from_model(r->model, params);
  if (!r->context) die("%s: a context cannot be made", o->model);
  r->batch = llama_batch_init((int32_t)o->batch, 0, 1);
}

static FILE *open_output(const char *path) {
  FILE *file = path ? fopen(path, "wb") : NULL;
  if (path && !file) die("%s: cannot be written", path);
  return file;
}
static void close_output(FILE *file, const char *path) {
  if (!file) return;
  int failed = fflush(file) || ferror(file);
  if (fclose(file) || failed) die("%s: cannot be written", path);
}

// ---- Evaluation -----------------------------------------------------------------------------------

// Runs n tokens from `first` on, which fit in a batch, through the model. Returns seconds.
static double evaluate(run *r, int64_t first, int64_t n) {
  struct llama_batch *b = &r->batch;
  b->n_tokens = (int32_t)n;
  for (int64_t i = 0; i < n; i++) {
    b->token[i] = r->tokens[first + i], b->pos[i] = (llama_pos)(first + i);
    b->n_seq_id[i] = 1, b->seq_id[i][0] = 0;
    b->logits[i] = first + i >= r->first_wanted;
  }
  const int64_t begin = ggml_time_us();
  if (llama_decode(r->context, *b)) die("%s: llama.cpp cannot evaluate it", r->o.model);
  llama_synchronize(r->context);
  return (double)(ggml_time_us() - begin) * 1e-6;
}

// Of the i-th token of the last batch.
static const float *logits_of(const run *r, int64_t i) {
  const float *logits = llama_get_logits_ith(r->context, (int32_t)i);
  if (!logits) die("%s: llama.cpp has no logits", r->o.model);
  for (int32_t k = 0; k < r->n_vocab; k++)
    if (!isfinite(logits[k])) die("%s: its logits are infinities or no numbers", r->o.model);
  return logits;
}

static double loss_of(const float *logits, int32_t n_vocab, llama_token token) {
  double sum = 0, largest = logits[0];
  for (int32_t k = 1; k < n_vocab; k++) largest = fmax(largest, (double)logits[k]);
  for (int32_t k = 0; k < n_vocab; k++) sum += exp((double)logits[k] - largest);
  return log(sum) + largest - (double)logits[token];
}

static void write_outputs(const run *r, int64_t first, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const int64_t position = first + i, next = position + 1;
    if (position < r->first_wanted) continue;
    const float *logits = logits_of(r, i);
    if (r->losses && next < r->n_prompt) {
      const llama_token token = r->tokens[next];
      fprintf(r->losses, "%" PRId64 " %d %.9g\n", next, (int)token, loss_of(logits, r->n_vocab, token));
    }
    if (r->logits && position >= r->n_prompt - r->o.positions)
      fwrite(logits, sizeof *logits, (size_t)r->n_vocab, r->logits);
  }
}

static void read_prompt(run *r) {
  double seconds = 0;
  for (int64_t first = 0, n; first < r->n_prompt; first += n) {
    n = r->n_prompt - first < r->o.batch ? r->n_prompt - first : r->o.batch;
    show_progress("prefill", first, r->n_prompt);
    seconds += evaluate(r, first, n);
    write_outputs(r, first, n);
  }
  clear_progress();
  fprintf(stderr, "prefill: %" PRId64 " tokens, %.1f tokens/s\n", r->n_prompt,
          (double)r->n_prompt / seconds);
}

// The likeliest token; *lead is by how much its logit is above the next one's.
static llama_token likeliest(const float *logits, int32_t n_vocab, float *lead) {
  llama_token best = 0;
  float second = -INFINITY;
  for (int32_t k = 1; k < n_vocab; k++) {
    if (logits[k] > logits[best]) {
      second = logits[best], best = k;
    } else if (logits[k] > second) {
      second = logits[k];
    }
  }
  *lead = logits[best] - second;
  return best;
}

static void go_on(run *r) {
  double seconds = 0;
  float lead, smallest = INFINITY, largest = 0;
  int64_t i = (r->n_prompt - 1) % r->o.batch;
  for (int64_t n = 1;; n++, i = 0) {
    const float *logits = logits_of(r, i);
    const llama_token token = likeliest(logits, r->n_vocab, &lead);
    smallest = fminf(smallest, lead), largest = fmaxf(largest, logits[token]);
    printf("%d\n", (int)token);
    if (n == r->o.greedy) break;
    show_progress("decode", n, r->o.greedy);
    r->tokens[r->n_tokens++] = token;
    seconds += evaluate(r, r->n_tokens - 1, 1);
  }
  clear_progress();
  const double steps = (double)(r->o.greedy - 1);
  fprintf(stderr, "decode: %.0f steps, %.1f tokens/s; smallest lead of a token %.3g, largest logit %.3g\n",
          steps, steps > 0 ? steps / seconds : 0, (double)smallest, (double)largest);
}

int main(int argc, char **argv) {
  run r = {.o = read_options(argc, argv)};
  llama_log_set(print_errors, NULL);
  ggml_backend_load_all();
  llama_backend_init();
  open_model(&r);
  read_tokens(&r);
  open_context(&r);
  r.losses = open_output(r.o.losses), r.logits = open_output(r.o.logits);
  read_prompt(&r);
  close_output(r.losses, r.o.losses), close_output(r.logits, r.o.logits);
  if (r.o.greedy) go_on(&r);
  llama_batch_free(r.batch);
  llama_free(r.context);
  llama_model_free(r.model);
  llama_backend_free();
  free(r.tokens);
  return 0;
}
