// libggml-hyperattn.so: a backend of ggml for one operation, FLASH_ATTN_EXT, on the memory of ggml's CPU backend. Any
// program of llama.cpp runs its attention through hyperattn.h with it: docs/llamacpp.md.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"

static host ggml;
static settings environment;

// ---- What ran, told at exit ----

static atomic_long total[N_COUNTS], answers[N_REFUSALS];
static atomic_llong total_microseconds;
static _Atomic(const char *) route;

// Of the last operation, since not every program frees its contexts before it ends.
static void add_counts(attention *a) {
  for (int i = 0; i < N_COUNTS; i++) atomic_fetch_add(&total[i], a->count[i]), a->count[i] = 0;
  atomic_fetch_add(&total_microseconds, a->microseconds);
  atomic_store(&route, crew_route(&a->crew));
}

// Each count that is not 0, and the operations in any case.
__attribute__((destructor)) static void tell(void) {
#define TEXT(name, text) text,
  static const char *const counts[] = {ATTENTION_COUNTS(TEXT)}, *const reasons[] = {REFUSALS(TEXT)};
#undef TEXT
  if (!environment.statistics) return;
  const char *threads = atomic_load(&route);
  fprintf(stderr, "hyperattn: %s, threads %s, %.3f s:", environment.method, threads ? threads : "none",
          (double)total_microseconds / 1e6);
  for (int i = 0; i < N_COUNTS; i++)
    if (i == COUNT_OPERATIONS || total[i])
      fprintf(stderr, "%s %ld %s", i ? "," : "", (long)total[i], counts[i]);
  fprintf(stderr, "\n");
  for (int i = 1; i < N_REFUSALS; i++)
    if (answers[i])
      fprintf(stderr, "hyperattn: refused %ld times when asked: %s\n", (long)answers[i], reasons[i]);
}

// ---- An instance of the backend ----

typedef struct instance {
  host_word words[HOST_WORDS];  // ggml's structure
  attention attention;
  bool (*abort)(void *);
  void *abort_argument;
} instance;

static const char device_name[] = "HYPERATTN";

static const char *name_of_backend(ggml_backend_t backend) {
  (void)backend;
  return device_name;
}

static void close_instance(ggml_backend_t backend) {
  instance *i = (instance *)backend;
  attention_close(&i->attention);
  free(i);
}

// A graph's nodes that are to be computed; views and the like need nothing.
static enum ggml_status compute(ggml_backend_t backend, struct ggml_cgraph *graph) {
  instance *i = (instance *)backend;
  for (int n = 0; n < ggml.ggml_graph_n_nodes(graph); n++) {
    const struct ggml_tensor *node = ggml.ggml_graph_node(graph, n);
    if ((int)node->op != ggml.operation.flash_attention || !(node->flags & GGML_TENSOR_FLAG_COMPUTE))
      continue;
    if (i->abort && i->abort(i->abort_argument)) return GGML_STATUS_ABORTED;
    const char *why = attention_run(&i->attention, node);
    add_counts(&i->attention);
    if (!why) continue;
    fprintf(stderr, "hyperattn: %s: %s\n", node->name, why);
    return GGML_STATUS_FAILED;
  }
  return GGML_STATUS_SUCCESS;
}

static void set_n_threads(ggml_backend_t backend, int n) {
  ((instance *)backend)->attention.crew.n_threads = n > 0 ? n : 1;
}

static void set_abort(ggml_backend_t backend, ggml_abort_callback abort, void *argument) {
  instance *i = (instance *)backend;
  i->abort = abort;
  i->abort_argument = argument;
}

// ---- The device ----

static host_word device_words[HOST_WORDS], registry_words[HOST_WORDS];

static void put_data(host_word *words, int at, const void *data) { memcpy(&words[at], &data, sizeof data); }

static const char *name_of_device(ggml_backend_dev_t device) {
  (void)device;
  return device_name;
}
static const char *describe(ggml_backend_dev_t device) {
  (void)device;
  return "attention by hyperattn.h";
}
static void tell_memory(ggml_backend_dev_t device, size_t *available, size_t *all) {
  (void)device;
  *available = *all = 0;
}
static enum ggml_backend_dev_type type_of(ggml_backend_dev_t device) {
  (void)device;
  return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}
// ggml has cleared it.
static void tell_properties(ggml_backend_dev_t device, struct ggml_backend_dev_props *p) {
  p->name = name_of_device(device), p->description = describe(device), p->type = type_of(device);
}

// To decide by itself whether to use flash attention (-fa auto), llama.cpp first makes a graph of a token a sequence, and
// gives flash attention up if a device other than the layer's would run it. So the first graph of each context is refused,
// which costs nothing: all memory is the CPU's, so that a later graph may change sides. It has all cells of the cache, and
// is over when the same cache comes with another number of queries or of cells. Programs other than llama.cpp's ask no such
// question. A context is made and asks within one thread.
typedef struct first_graph {
  enum { NOT_AWAITED, AWAITED, BEGUN } stage;
  // Of the cache of most cells; that of layers with a window may have the same number in every graph.
  const struct ggml_tensor *cache;
  int64_t n_query, n_cell;
} first_graph;
static _Thread_local first_graph first;
static int is_llama;

// The cache that a tensor is a view of or is converted from; NULL: none.
static const struct ggml_tensor *cache_of(const struct ggml_tensor *t) {
  for (int step = 0; t && step < 8; step++, t = t->view_src ? t->view_src : t->src[0])
    if (!strncmp(t->name, "cache_", 6) && !t->view_src && !t->src[0]) return t;
  return NULL;
}

static int is_probe(const struct ggml_tensor *op) {
  if (first.stage == NOT_AWAITED || !is_llama) return 0;
  const struct ggml_tensor *cache = cache_of(op->src[1]);
  int64_t n_query = op->src[0]->ne[1], n_cell = op->src[1]->ne[1];
  if (first.stage == AWAITED || n_cell > first.n_cell) first = (first_graph){BEGUN, cache, n_query, n_cell};
  if (first.cache == cache && (first.n_query != n_query || first.n_cell != n_cell))
    first.stage = NOT_AWAITED;
  return first.stage == BEGUN;
}

static bool supports(ggml_backend_dev_t device, const struct ggml_tensor *op) {
  (void)device;
  const host_operations *o = &ggml.operation;
  int number = (int)op->op;
  if (number != o->flash_attention)
    return number == o->none || number == o->view || number == o->reshape || number == o->permute ||
           number == o->transpose;
  refusal why = attention_refusal(&ggml, op, environment.forced);
  if (is_probe(op) && !why) why = REFUSED_PROBE;
  if (why) atomic_fetch_add(&answers[why], 1);
  return why == REFUSED_TAKEN;
}

// The CPU's own memory: the scheduler hands an operation over only where both keep tensors in the same.
static ggml_backend_buffer_type_t memory_of(ggml_backend_dev_t device) {
  (void)device;
  return ggml.ggml_backend_cpu_buffer_type();
}
static ggml_backend_buffer_t wrap(ggml_backend_dev_t device, void *data, size_t size, size_t largest) {
  (void)device, (void)largest;
  return ggml.ggml_backend_cpu_buffer_from_ptr(data, size);
}
static bool reads(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
  (void)device;
  return ggml.ggml_backend_buft_is_host(type);
}

static ggml_backend_t open_instance(ggml_backend_dev_t device, const char *parameters) {
  (void)parameters;
  static unsigned char identity[16] = "hyperattn.h ggml";
  instance *i = calloc(1, sizeof *i);
  if (!i) return NULL;
  first = (first_graph){.stage = AWAITED};
  attention_open(&i->attention, &ggml, &environment);
  put_data(i->words, 0, identity);
  put_data(i->words, ggml.backend.device, device);
  i->words[ggml.backend.name] = (host_word)name_of_backend;
  i->words[ggml.backend.free] = (host_word)close_instance;
  i->words[ggml.backend.graph_compute] = (host_word)compute;
  return (ggml_backend_t)(void *)i;
}

// ---- The registry ----

// Of ggml's backends. A ggml that loads the library and has another one says so itself; where the library joins by
// itself, what ggml was asked for stands for it.
enum { INTERFACE_VERSION = 2 };

static const char *name_of_registry(ggml_backend_reg_t registry) {
  (void)registry;
  return device_name;
}
static size_t count_devices(ggml_backend_reg_t registry) {
  (void)registry;
  return 1;
}
static ggml_backend_dev_t device_of(ggml_backend_reg_t registry, size_t index) {
  (void)registry, (void)index;
  return (ggml_backend_dev_t)(void *)device_words;
}
static void *function_of(ggml_backend_reg_t registry, const char *name) {
  (void)registry;
  host_word function = NULL;
  if (!strcmp(name, "ggml_backend_set_n_threads")) function = (host_word)set_n_threads;
  if (!strcmp(name, "ggml_backend_set_abort_callback")) function = (host_word)set_abort;
  void *data;
  memcpy(&data, &function, sizeof data);
  return data;
}

static void fill_words(void) {
  const host_device_layout *d = &ggml.device;
  const host_registry_layout *r = &ggml.registry;
  device_words[d->name] = (host_word)name_of_device;
  device_words[d->description] = (host_word)describe;
  device_words[d->memory] = (host_word)tell_memory;
  device_words[d->type] = (host_word)type_of;
  device_words[d->props] = (host_word)tell_properties;
  device_words[d->init] = (host_word)open_instance;
  device_words[d->buffer_type] = (host_word)memory_of;
  device_words[d->buffer_from_pointer] = (host_word)wrap;
  device_words[d->supports_op] = (host_word)supports;
  device_words[d->supports_buffer_type] = (host_word)reads;
  put_data(device_words, d->registry, registry_words);
  const int version = INTERFACE_VERSION;
  memcpy(registry_words, &version, sizeof version);
  registry_words[r->name] = (host_word)name_of_registry;
  registry_words[r->device_count] = (host_word)count_devices;
  registry_words[r->device] = (host_word)device_of;
  registry_words[r->proc_address] = (host_word)function_of;
}

// ---- Being loaded ----

static ggml_backend_reg_t registry;

static const char *load(const void *near) {
  const char *why = settings_read(&environment);
  if (!why) why = host_find(&ggml, near);
  if (why) return why;
  fill_words();
  is_llama = host_symbol(near, "llama_decode") != NULL;
  if (strcmp(environment.method, "off") != 0) registry = (ggml_backend_reg_t)(void *)registry_words;
  return NULL;
}

static ggml_backend_reg_t load_once(const void *near) {
  if (registry) return registry;
  const char *why = load(near);
  if (why) fprintf(stderr, "hyperattn: not used: %s\n", why);
  environment.statistics &= !why;
  return registry;
}

// What ggml calls when it has loaded the library. NULL: it does not fit, and the program runs on without it.
__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void);
ggml_backend_reg_t ggml_backend_init(void) { return load_once(__builtin_return_address(0)); }

// 1 if this library was not opened by the program but came with it: linked, or by LD_PRELOAD.
#ifdef GGML_HYPERATTN_LINKED
static int came_with_program(void) { return 1; }
#else
static int came_with_program(void) {
  Dl_info info;
  const char *preloaded = getenv("LD_PRELOAD");
  if (!preloaded || !dladdr(device_name, &info) || !info.dli_fname) return 0;
  const char *slash = strrchr(info.dli_fname, '/');
  return strstr(preloaded, slash ? slash + 1 : info.dli_fname) &&
         host_symbol(NULL, "ggml_backend_register");
}
#endif

// Then nothing else registers it. A process without ggml is left alone, and so is one whose CPU backend is yet to be
// loaded: it will read GGML_BACKEND_PATH.
__attribute__((constructor)) static void join(void) {
  if (!came_with_program()) return;
  ggml_backend_reg_t mine = load_once(host_symbol(NULL, "ggml_backend_register"));
  if (mine && ggml.ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) ggml.ggml_backend_register(mine);
}
