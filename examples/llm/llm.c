// A small engine for GGUF models of Llama architecture, whose attention is computed by hyperattn.h. It shows
// what HyperAttention does to the speed and the perplexity of a real model.
//
//   llm perplexity --model M --text F [--context N] [--attention exact,default] [--layers 0-29,10-29] ...
//   llm generate   --model M --prompt P | --text F [--tokens N] [--chat] [--attention A] ...
//   llm decode     --model M --text F [--lengths 512,8192] [--steps N] [--context N] ...
//   llm dump       --model M --text F --heads LAYER/HEAD,... --out FOLDER [--context N] ...
//   llm tokens     --model M --text F [--context N]
//
// llm --help lists all options. docs/llm.md has results.
#include "matmul.h"
#include "model.h"
#include "tokenizer.h"

#include "dequant.h"
#include "pool.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#define PROGRAM "llm"
static const char usage[] =
    "usage: llm perplexity | generate | decode | dump | tokens  --model FILE.gguf ...\n"
    "  --text FILE            what is read (generate: or --prompt TEXT)\n"
    "  --context N            tokens of the window (default: 2048, or what the text has); generate reads "
    "all\n"
    "  --repeat               the window is its first half, twice\n"
    "  --cycle                a text that is too short starts over\n"
    "  --attention A[,B...]   exact, default, linear or paper; perplexity takes several (default: exact)\n"
    "  --layers A-B[,C-D...]  approximate these layers, others are exact (default: all); perplexity takes "
    "several\n"
    "  --min-seq-len N        shorter regions are exact (default: the preset's)\n"
    "  --tolerance X          of default and linear; 0: the budget and no more (default: the preset's)\n"
    "  --cache T              f32, f16, bf16 or q8_0: what keys and values are kept in (default: f16 for "
    "steps of\n"
    "                         one token, else f32)\n"
    "  --rope-base X          rotary base in place of the model's\n"
    "  --rope-scale X         positions are divided by X\n"
    "  --threads N            (default: as many as the machine runs at once)\n"
    "  --csv                  perplexity, decode: comma-separated, a line per run or length\n"
    "  --one-by-one           perplexity: tokens are read as generate's are written, by steps of one\n"
    "  --index                generate, decode, --one-by-one: steps look their keys up in an index, to "
    "--tolerance\n"
    "  --prompt TEXT  --chat  --tokens N  --temperature X  --seed N     generate\n"
    "  --lengths N[,N...]     decode: keys that a length's last step meets (default: 512,2048,8192,32768); "
    "those\n"
    "                         beyond the window are the window's, repeated\n"
    "  --steps N              decode: steps that are timed per length (default: 16)\n"
    "  --heads L/H[,L/H...]  --out FOLDER  --prefix NAME                dump\n";

#include "program.h"

typedef struct options {
  const char *command, *model, *text, *attention, *layers, *cache, *prompt, *heads, *out, *prefix, *lengths;
  int64_t context, min_seq_len, threads, tokens, seed, steps;
  double tolerance, rope_base, rope_scale, temperature;  // negative: not given
  int repeat, cycle, chat, csv, one_by_one, index;
} options;

// ---- Options --------------------------------------------------------------------------------------

static options read_options(int argc, char **argv) {
  options o = {.attention = "exact", .layers = "all", .out = ".", .prefix = "", .tokens = 64};
  o.lengths = "512,2048,8192,32768", o.steps = 16;
  o.tolerance = o.rope_base = o.rope_scale = -1;
  o.threads = sysconf(_SC_NPROCESSORS_ONLN);
  const option table[] = {
      {.name = "--model", .text = &o.model},
      {.name = "--text", .text = &o.text},
      {.name = "--attention", .text = &o.attention},
      {.name = "--layers", .text = &o.layers},
      {.name = "--cache", .text = &o.cache},
      {.name = "--prompt", .text = &o.prompt},
      {.name = "--heads", .text = &o.heads},
      {.name = "--out", .text = &o.out},
      {.name = "--prefix", .text = &o.prefix},
      {.name = "--lengths", .text = &o.lengths},
      {.name = "--context", .integer = &o.context, .least = 2},
      {.name = "--min-seq-len", .integer = &o.min_seq_len, .least = 1},
      {.name = "--threads", .integer = &o.threads, .least = 1},
      {.name = "--tokens", .integer = &o.tokens, .least = 1},
      {.name = "--seed", .integer = &o.seed, .least = 0},
      {.name = "--steps", .integer = &o.steps, .least = 1},
      {.name = "--tolerance", .number = &o.tolerance},
      {.name = "--rope-base", .number = &o.rope_base},
      {.name = "--rope-scale", .number = &o.rope_scale},
      {.name = "--temperature", .number = &o.temperature},
      {.name = "--repeat", .flag = &o.repeat},
      {.name = "--cycle", .flag = &o.cycle},
      {.name = "--chat", .flag = &o.chat},
      {.name = "--csv", .flag = &o.csv},
      {.name = "--one-by-one", .flag = &o.one_by_one},
      {.name = "--index", .flag = &o.index},
  };
  read_table(argc, argv, table, sizeof table / sizeof *table, &o.command);
  if (!o.command) misuse("say what to do", NULL);
  if (!o.model) misuse("--model is missing", NULL);
  if (o.rope_base == 0 || o.rope_scale == 0) misuse("--rope-base and --rope-scale", "are above 0");
  return o;
}

// The next item of a comma-separated list, copied; 0 at its end.
static int next_item(const char **list, char *item, size_t room) {
  if (!**list) return 0;
  size_t n = strcspn(*list, ",");
  if (n == 0 || n >= room) misuse("an item of a list is empty or too long:", *list);
  memcpy(item, *list, n), item[n] = 0;
  *list += n + ((*list)[n] == ',');
  return 1;
}

// ---- What every command needs ---------------------------------------------------------------------

typedef struct engine {
  options o;
  hyperattn_dtype cache;
  gguf file;
  model m;
  tokenizer t;
  pool threads;
  hyperattn_parallel parallel;
} engine;

static void engine_open(engine *e, const options *o) {
  llm_error error;
  e->o = *o;
  if (!elements_named(o->cache, &e->cache)) misuse("--cache is f32, f16, bf16 or q8_0, not", o->cache);
  if (!gguf_open(&e->file, o->model, &error)) die("%s", error.text);
  if (!model_is_known(&e->file, &error) || !tokenizer_open(&e->t, &e->file, &error) ||
      !model_open(&e->m, &e->file, &error))
    die("the model: %s", error.text);
  if (o->rope_base > 0) e->m.rope_base = o->rope_base;
  if (o->rope_scale > 0) e->m.rope_scale = o->rope_scale;
  if (!pool_open(&e->threads, (int)o->threads)) die("%s", "threads cannot be started");
  e->parallel = (hyperattn_parallel){e->threads.n_workers, &e->threads, pool_for};
}

static void engine_close(engine *e) {
  pool_close(&e->threads);
  model_close(&e->m), tokenizer_close(&e->t), gguf_close(&e->file);
}

// The window that --text, --context, --repeat and --cycle ask for.
static int32_t *read_window(const engine *e, int64_t *n_tokens) {
  const options *o = &e->o;
  size_t size;
  int64_t has;
  char *text = read_file(o->text, &size);
  int32_t *tokens = tokenizer_encode(&e->t, text, size, 0, &has);
  free(text);
  if (!tokens) die("%s", "out of memory");
  int64_t n = o->context ? o->context : has < 2048 ? has : 2048, distinct = o->repeat ? (n + 1) / 2 : n;
  char why[96];
  snprintf(why, sizeof why, "has %" PRId64 " tokens, %" PRId64 " are wanted (--context, --cycle)", has,
           distinct);
  if (has < (o->cycle ? 1 : distinct) || n < 2) fprintf(stderr, "llm: %s %s\n", o->text, why), exit(1);
  int32_t *window = allocate((size_t)n, sizeof *window);
  for (int64_t i = 0; i < n; i++) window[i] = tokens[i % distinct % has];
  free(tokens);
  *n_tokens = n;
  return window;
}

// ---- Attention ------------------------------------------------------------------------------------

typedef struct method {
  char name[16];
  int64_t first, last;  // approximated layers; last < first: none
  hyperattn_params params;
  hyperattn_params *by_layer;
} method;

static method choose_method(const engine *e, const char *name, const char *layers) {
  const options *o = &e->o;
  method chosen = {.first = 0, .last = e->m.n_layers - 1};
  snprintf(chosen.name, sizeof chosen.name, "%s", name);
  hyperattn_params exact = hyperattn_default_params();
  exact.method = HYPERATTN_EXACT, exact.tolerance = 0;
  if (!strcmp(name, "exact")) {
    chosen.params = exact;
    chosen.last = -1;
  } else if (!strcmp(name, "paper")) {
    chosen.params = hyperattn_paper_params();
  } else if (!strcmp(name, "default") || !strcmp(name, "linear")) {
    chosen.params = strcmp(name, "linear") ? hyperattn_default_params() : hyperattn_linear_params();
    if (o->tolerance >= 0) chosen.params.tolerance = (float)o->tolerance;
  } else {
    misuse("--attention is exact, default, linear or paper, not", name);
  }
  if (o->min_seq_len) chosen.params.min_seq_len = o->min_seq_len;
  char past;
  if (chosen.last >= 0 && strcmp(layers, "all") != 0) {
    int n = sscanf(layers, "%" SCNd64 "-%" SCNd64 "%c", &chosen.first, &chosen.last, &past);
    if (n != 2 || chosen.first < 0 || chosen.last >= e->m.n_layers || chosen.first > chosen.last)
      misuse("--layers is first-last, counted from 0, not", layers);
  }
  chosen.by_layer = allocate((size_t)e->m.n_layers, sizeof *chosen.by_layer);
  for (int64_t i = 0; i < e->m.n_layers; i++)
    chosen.by_layer[i] = i >= chosen.first && i <= chosen.last ? chosen.params : exact;
  return chosen;
}

// ---- Progress: on a terminal only -----------------------------------------------------------------

typedef struct progress {
  const char *name;
  int64_t total;
  int is_shown;
} progress;

static progress progress_begin(const char *name, int64_t total) {
  return (progress){name, total, isatty(STDERR_FILENO)};
}
static void progress_show(const progress *p, int64_t done, const char *note) {
  if (!p->is_shown) return;
  fprintf(stderr, "\r  %-8s [%-40.*s] %s", p->name, (int)(done * 40 / p->total),
          "########################################", note);
}
static void progress_end(const progress *p) {
  if (p->is_shown) fprintf(stderr, "\r%79s\r", "");
}
static void on_layer(void *context, int64_t layer) {
  const progress *p = context;
  char note[32];
  snprintf(note, sizeof note, "layer %" PRId64 "  ", layer + 1);
  progress_show(p, layer + 1, note);
}

// Runs a window through the layers, with a progress bar. Returns seconds.
static double prefill(session *s, const method *with, const int32_t *tokens, int64_t n) {
  llm_error error;
  progress bar = progress_begin(with->name, s->m->n_layers);
  s->on_layer = on_layer, s->layer_context = &bar;
  double begin = seconds_now();
  if (!session_run(s, tokens, n, with->by_layer, &error)) die("%s", error.text);
  double seconds = seconds_now() - begin;
  s->on_layer = NULL;
  progress_end(&bar);
  return seconds;
}

static const char no_numbers[] = "what it predicts are infinities or no numbers";

// ---- Steps of one token ---------------------------------------------------------------------------

// What decoding needs beside a session. `with` is the attention of every step: exact, or by the index.
typedef struct decoder {
  session *s;
  method with;
  float *logits;
  double attention_seconds;  // of all steps
} decoder;

static decoder decoder_open(const engine *e, session *s) {
  float *logits = allocate((size_t)e->m.n_vocab, sizeof *logits);
  return (decoder){s, choose_method(e, s->index ? "default" : "exact", "all"), logits, 0};
}
static void decoder_close(decoder *d) { free(d->logits), free(d->with.by_layer); }

static void open_index(session *s) {
  llm_error error;
  if (!session_index(s, &error)) die("%s", error.text);
}

// Reads a token; the logits are then those of the next.
static void decode(decoder *d, int32_t token) {
  llm_error error;
  if (!session_run(d->s, &token, 1, d->with.by_layer, &error)) die("%s", error.text);
  session_logits(d->s, 0, d->logits);
  d->attention_seconds += d->s->attention_seconds;
}

// ---- perplexity -----------------------------------------------------------------------------------

// exp of the mean of losses [first, end).
static double perplexity_of(const double *losses, int64_t first, int64_t end) {
  double sum = 0;
  for (int64_t i = first; i < end; i++) sum += losses[i];
  return exp(sum / (double)(end - first));
}

// The losses of all steps. Returns seconds.
static double read_one_by_one(decoder *d, const int32_t *tokens, int64_t n, double *losses) {
  progress bar = progress_begin("steps", n - 1);
  double begin = seconds_now();
  for (int64_t i = 0; i < n - 1; i++) {
    decode(d, tokens[i]);
    losses[i] = model_loss(d->s->m, d->logits, tokens[i + 1]);
    if (i % 64 == 63) progress_show(&bar, i, "");
  }
  progress_end(&bar);
  return seconds_now() - begin;
}

static void losses_of(session *s, const char *name, const int32_t *tokens, int64_t n, double *losses) {
  progress bar = progress_begin(name, n - 1);
  const int64_t step = 8 * SESSION_LOSS_ROWS;
  for (int64_t i = 0; i < n - 1; i += step) {
    int64_t rows = n - 1 - i < step ? n - 1 - i : step;
    session_losses(s, i, rows, tokens + i + 1, losses + i);
    char note[32];
    snprintf(note, sizeof note, "perplexity %.3f", perplexity_of(losses, 0, i + rows));
    progress_show(&bar, i + rows, note);
  }
  progress_end(&bar);
}

typedef struct baseline {
  double second_half, attention;
} baseline;

// One line of the table. The mean loss is over tokens 1 .. n - 1, that of the second half over i >= n / 2.
static void measure(session *s, const engine *e, const method *with, const int32_t *tokens, int64_t n,
                    baseline *exact) {
  double *losses = allocate((size_t)n, sizeof *losses);
  double seconds, attention;
  s->n_past = 0;
  if (e->o.one_by_one) {
    decoder d = decoder_open(e, s);
    seconds = read_one_by_one(&d, tokens, n, losses), attention = d.attention_seconds;
    decoder_close(&d);
  } else {
    seconds = prefill(s, with, tokens, n), attention = s->attention_seconds;
    losses_of(s, with->name, tokens, n, losses);
  }
  double whole = perplexity_of(losses, 0, n - 1), half = perplexity_of(losses, n / 2 - 1, n - 1);
  if (!isfinite(whole)) die("the model: %s", no_numbers);
  int is_exact = with->last < 0;
  if (is_exact) *exact = (baseline){half, attention};
  int64_t min_seq_len = with->params.min_seq_len, n_layers = is_exact ? 0 : with->last - with->first + 1;
  char ratio[32] = "", speedup[32] = "";
  if (exact->second_half > 0) {
    snprintf(ratio, sizeof ratio, "%.4f", half / exact->second_half);
    snprintf(speedup, sizeof speedup, "%.2f", exact->attention / attention);
  }
  if (e->o.csv)
    printf("%s,%d,%" PRId64 ",%s,%" PRId64 ",%" PRId64 ",%" PRId64
           ",%g,%.5f,%.5f,%s,%.3f,%.1f,%.3f,%.4f,%s\n",
           e->o.text, e->o.repeat, n, with->name, n_layers, is_exact ? 0 : with->first,
           is_exact ? 0 : min_seq_len, (double)with->params.tolerance, whole, half, ratio, seconds,
           (double)n / seconds, attention, attention / seconds, speedup);
  else
    printf("%-9s %6" PRId64 " %10.4f %11.4f %8s %9.1f %10.3f %6.1f%% %8s\n", with->name, n_layers, whole,
           half, ratio, (double)n / seconds, attention, 100 * attention / seconds, speedup);
  fflush(stdout);
  free(losses);
}

// Every method of --attention with every range of --layers, but exact attention only once.
static method *choose_methods(const engine *e, int64_t *n_methods) {
  char name[16], layers[32];
  int64_t n = 0, most = (int64_t)(strlen(e->o.attention) * strlen(e->o.layers));
  method *methods = allocate((size_t)most, sizeof *methods);
  for (const char *names = e->o.attention; next_item(&names, name, sizeof name);)
    for (const char *ranges = e->o.layers; next_item(&ranges, layers, sizeof layers);) {
      methods[n++] = choose_method(e, name, layers);
      if (methods[n - 1].last < 0) break;
    }
  *n_methods = n;
  return methods;
}

static void run_perplexity(engine *e) {
  const options *o = &e->o;
  llm_error error;
  int64_t n, n_methods;
  method *methods = choose_methods(e, &n_methods);
  if (o->one_by_one && (n_methods > 1 || methods[0].last >= 0))
    misuse("--one-by-one is exact, not --attention", o->attention);
  if (o->index && !o->one_by_one) misuse("--index serves steps: perplexity needs", "--one-by-one too");
  int32_t *tokens = read_window(e, &n);
  session s;
  if (!session_open(&s, &e->m, &e->parallel, n, o->one_by_one, e->cache, &error)) die("%s", error.text);
  if (n > e->m.trained_context && o->rope_base < 0 && o->rope_scale < 0)
    fprintf(stderr,
            "llm: the model was trained for %" PRId64
            " tokens; beyond them --rope-base or --rope-scale helps\n",
            e->m.trained_context);
  if (o->csv)
    printf(
        "text,repeat,tokens,attention,layers,first_layer,min_seq_len,tolerance,perplexity,second_half,"
        "ratio,"
        "prefill_seconds,tokens_per_second,attention_seconds,attention_share,attention_speedup\n");
  else
    printf("%s%s: %" PRId64 " tokens, %" PRId64
           " layers, %s cache, %d threads, %s, products by %s\n%-9s %6s %10s %11s %8s %9s %10s %7s %8s\n",
           o->text, o->repeat ? ", first half twice" : "", n, e->m.n_layers, o->cache, e->threads.n_workers,
           hyperattn_isa_name(hyperattn_detect_isa()), matmul_name(), "attention", "layers", "perplexity",
           "second half", "ratio", "tokens/s", "attention s", "share", "speedup");
  baseline exact = {0, 0};
  for (int64_t i = 0; i < n_methods; i++) {
    measure(&s, e, &methods[i], tokens, n, &exact);
    free(methods[i].by_layer);
  }
  if (o->index) {
    method with = choose_method(e, "default", "all");
    open_index(&s);
    measure(&s, e, &with, tokens, n, &exact);
    free(with.by_layer);
  }
  free(methods);
  session_close(&s);
  free(tokens);
}

// ---- generate -------------------------------------------------------------------------------------

static int32_t choose_token(const float *logits, int64_t n, double temperature, uint64_t *state) {
  int32_t best = 0;
  for (int32_t i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  if (!isfinite(logits[best])) die("the model: %s", no_numbers);
  if (temperature <= 0) return best;
  double sum = 0, most = (double)logits[best];
  for (int32_t i = 0; i < n; i++) sum += exp(((double)logits[i] - most) / temperature);
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  double point = (double)(*state >> 11) * 0x1p-53 * sum;
  for (int32_t i = 0; i < n; i++)
    if ((point -= exp(((double)logits[i] - most) / temperature)) < 0) return i;
  return best;
}

static char *chat_prompt(const char *text, size_t *size) {
  static const char before[] = "<|im_start|>user\n", after[] = "<|im_end|>\n<|im_start|>assistant\n";
  char *prompt = allocate(*size + sizeof before + sizeof after, 1);
  memcpy(prompt, before, sizeof before - 1);
  memcpy(prompt + sizeof before - 1, text, *size);
  memcpy(prompt + sizeof before - 1 + *size, after, sizeof after - 1);
  *size += sizeof before + sizeof after - 2;
  return prompt;
}

static void print_token(const tokenizer *t, int32_t token) {
  char bytes[512];
  fwrite(bytes, 1, tokenizer_decode(t, token, bytes, sizeof bytes), stdout);
  fflush(stdout);
}

static void run_generate(engine *e) {
  const options *o = &e->o;
  llm_error error;
  size_t size = 0;
  if (!o->prompt == !o->text) misuse("generate wants --prompt or --text, one of them", NULL);
  if (o->chat && e->t.end_of_im < 0) die("--chat: %s is no token of the model", "<|im_end|>");
  char *given = o->text ? read_file(o->text, &size) : NULL;
  if (o->prompt) size = strlen(o->prompt);
  char *prompt = o->chat ? chat_prompt(given ? given : o->prompt, &size) : NULL;
  int64_t n;
  int32_t *tokens = tokenizer_encode(&e->t, prompt ? prompt : given ? given : o->prompt, size, 1, &n);
  if (!tokens) die("%s", "out of memory");
  if (n < 1) die("%s", "the prompt is empty");
  session s;
  if (!session_open(&s, &e->m, &e->parallel, n + o->tokens, 1, e->cache, &error)) die("%s", error.text);
  if (o->index) open_index(&s);
  method with = choose_method(e, o->attention, o->layers);
  decoder d = decoder_open(e, &s);

  double read_seconds = prefill(&s, &with, tokens, n), read_attention = s.attention_seconds;
  double begin = seconds_now();
  session_logits(&s, n - 1, d.logits);
  uint64_t state = (uint64_t)o->seed * 2 + 1;
  int64_t made = 0;
  for (; made < o->tokens; made++) {
    int32_t token = choose_token(d.logits, e->t.n_tokens, o->temperature, &state);
    if (tokenizer_is_end(&e->t, token)) break;
    print_token(&e->t, token);
    decode(&d, token);
  }
  double seconds = seconds_now() - begin;
  fprintf(stderr,
          "\nllm: %" PRId64 " tokens read at %.1f a second (%.1f%% of the time in attention), %" PRId64
          " written at %.1f (%.1f%%)\n",
          n, (double)n / read_seconds, 100 * read_attention / read_seconds, made, (double)made / seconds,
          100 * d.attention_seconds / seconds);
  decoder_close(&d);
  session_close(&s);
  free(with.by_layer), free(tokens), free(prompt), free(given);
}

// ---- decode ---------------------------------------------------------------------------------------

// The next of --lengths; 0 at their end.
static int next_length(const options *o, const char **list, int64_t *length) {
  char item[32], past;
  if (!next_item(list, item, sizeof item)) return 0;
  if (sscanf(item, "%" SCNd64 "%c", length, &past) != 1 || *length <= o->steps + 1 || *length > INT32_MAX)
    misuse("--lengths are numbers of keys, more than --steps and one, not", item);
  return 1;
}

// One line of the table: steps that end with `length` keys, after one that is not timed.
static void time_steps(const engine *e, decoder *d, int64_t length, int32_t token) {
  int64_t steps = e->o.steps;
  double begin = 0;
  d->s->n_past = length - steps - 1;
  for (int64_t i = -1; i < steps; i++) {
    if (i == 0) d->attention_seconds = 0, begin = seconds_now();
    decode(d, token);
    token = choose_token(d->logits, e->t.n_tokens, 0, NULL);
  }
  double seconds = (seconds_now() - begin) / (double)steps,
         attention = d->attention_seconds / (double)steps;
  printf(e->o.csv ? "%" PRId64 ",%" PRId64 ",%.2f,%.3f,%.3f,%.4f\n"
                  : "%8" PRId64 " %6" PRId64 " %9.1f %9.2f %13.3f %7.3f\n",
         length, steps, 1 / seconds, 1e3 * seconds, 1e3 * attention, attention / seconds);
  fflush(stdout);
}

static void run_decode(engine *e) {
  const options *o = &e->o;
  llm_error error;
  int64_t n, length, capacity = 0;
  for (const char *list = o->lengths; next_length(o, &list, &length);)
    if (length > capacity) capacity = length;
  if (!capacity) misuse("--lengths is empty", NULL);
  int32_t *tokens = read_window(e, &n);
  if (n > capacity) n = capacity;
  session s;
  if (!session_open(&s, &e->m, &e->parallel, capacity, 1, e->cache, &error)) die("%s", error.text);
  if (o->index) open_index(&s);
  method with = choose_method(e, o->attention, o->layers);
  decoder d = decoder_open(e, &s);
  prefill(&s, &with, tokens, n);
  session_repeat(&s);
  if (o->csv)
    printf("length,steps,tokens_per_second,milliseconds,attention_milliseconds,attention_share\n");
  else
    printf("%s: %" PRId64 " tokens, repeated; %s cache, %d threads, %s\n%8s %6s %9s %9s %13s %7s\n",
           o->text, n, o->cache, e->threads.n_workers, hyperattn_isa_name(hyperattn_detect_isa()), "length",
           "steps", "tokens/s", "ms/token", "attention, ms", "share");
  for (const char *list = o->lengths; next_length(o, &list, &length);)
    time_steps(e, &d, length, tokens[n - 1]);
  decoder_close(&d);
  session_close(&s);
  free(with.by_layer), free(tokens);
}

// ---- dump -----------------------------------------------------------------------------------------

// FOLDER/PREFIXlLLhH.PART.f16: n rows of head_dim little-endian halves.
static void dump_rows(const engine *e, int64_t layer, int64_t head, const char *part, const float *rows,
                      int64_t stride, int64_t n) {
  char path[1024];
  int64_t dim = e->m.head_dim;
  snprintf(path, sizeof path, "%s/%sl%02" PRId64 "h%" PRId64 ".%s.f16", e->o.out, e->o.prefix, layer, head,
           part);
  FILE *file = fopen(path, "wb");
  for (int64_t i = 0; file && i < n; i++)
    for (int64_t k = 0; k < dim; k++) {
      uint16_t half = float_to_half(rows[i * stride + k]);
      fputc(half & 255, file), fputc(half >> 8, file);
    }
  if (!file || fflush(file) || ferror(file)) die("%s: cannot be written", path);
  fclose(file);
}

static int next_head(const engine *e, const char **list, int64_t *layer, int64_t *head) {
  char item[32], past;
  if (!next_item(list, item, sizeof item)) return 0;
  if (sscanf(item, "%" SCNd64 "/%" SCNd64 "%c", layer, head, &past) != 2 || *layer < 0 ||
      *layer >= e->m.n_layers || *head < 0 || *head >= e->m.n_heads)
    misuse("--heads is layer/head, counted from 0, not", item);
  return 1;
}

typedef struct dump {
  const engine *e;
  const session *s;
  int64_t n;
} dump;

static void dump_layer(void *context, int64_t ready) {
  const dump *d = context;
  const engine *e = d->e;
  int64_t layer, head, dim = e->m.head_dim, group = e->m.n_heads / e->m.n_kv_heads;
  for (const char *heads = e->o.heads; next_head(e, &heads, &layer, &head);) {
    if (layer != ready) continue;
    dump_rows(e, layer, head, "q", d->s->query + head * dim, e->m.n_heads * dim, d->n);
    dump_rows(e, layer, head, "k", session_keys(d->s, layer, head / group), dim, d->n);
    dump_rows(e, layer, head, "v", session_values(d->s, layer, head / group), dim, d->n);
  }
}

static void run_dump(engine *e) {
  const options *o = &e->o;
  llm_error error;
  int64_t n, layer, head;
  if (!o->heads) misuse("dump wants --heads", NULL);
  if (e->cache != HYPERATTN_F32) misuse("dump takes what an f32 cache holds, not", o->cache);
  for (const char *heads = o->heads; next_head(e, &heads, &layer, &head);) continue;
  int32_t *tokens = read_window(e, &n);
  session s;
  if (!session_open(&s, &e->m, &e->parallel, n, 0, e->cache, &error)) die("%s", error.text);
  method with = choose_method(e, o->attention, o->layers);
  dump d = {e, &s, n};
  s.on_ready = dump_layer, s.ready_context = &d;
  prefill(&s, &with, tokens, n);
  session_close(&s);
  free(with.by_layer), free(tokens);
}

// ---- tokens ---------------------------------------------------------------------------------------

static void run_tokens(engine *e) {
  int64_t n;
  int32_t *tokens = read_window(e, &n);
  for (int64_t i = 0; i < n; i++) printf("%" PRId32 "\n", tokens[i]);
  free(tokens);
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*run)(engine *);
    int decodes;
  } commands[] = {{"perplexity", run_perplexity, 0},
                  {"generate", run_generate, 1},
                  {"decode", run_decode, 1},
                  {"dump", run_dump, 0},
                  {"tokens", run_tokens, 0}};
  const size_t n = sizeof commands / sizeof *commands;
  matmul_start(argv);
  options o = read_options(argc, argv);
  size_t i = 0;
  while (i < n && strcmp(o.command, commands[i].name) != 0) i++;
  if (i == n) misuse("there is no command", o.command);
  int decodes = commands[i].decodes || o.one_by_one;
  if (!o.cache) o.cache = decodes ? "f16" : "f32";
  engine e;
  llm_error error;
  engine_open(&e, &o);
  if (decodes && !model_pack(&e.m, &error)) die("the model: %s", error.text);
  commands[i].run(&e);
  engine_close(&e);
  return 0;
}
