#define _GNU_SOURCE
#include "host.h"

#include <dlfcn.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- Functions ----

// Names of libraries, each ended by a 0, and an empty one at the end; NULL: memory is short.
typedef struct names {
  char *text;
  size_t size;
} names;

static int add_name(struct dl_phdr_info *info, size_t size, void *arg) {
  (void)size;
  names *n = arg;
  size_t length = info->dlpi_name ? strlen(info->dlpi_name) : 0;
  if (!length) return 0;
  char *text = realloc(n->text, n->size + length + 2);
  if (!text) return 1;
  memcpy(text + n->size, info->dlpi_name, length + 1);
  n->text = text, n->size += length + 1;
  text[n->size] = 0;
  return 0;
}

static void *symbol_of(const char *library_name, const char *name) {
  void *library = dlopen(library_name, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return NULL;
  void *found = dlsym(library, name);
  dlclose(library);
  return found;
}

// Libraries may have been loaded for themselves alone (RTLD_LOCAL), so each is asked; after they have been listed, since
// whoever lists them holds a lock that dlopen takes.
static void *search_libraries(const char *name) {
  names n = {NULL, 0};
  void *found = NULL;
  dl_iterate_phdr(add_name, &n);
  for (const char *library = n.text; library && *library && !found; library += strlen(library) + 1)
    found = symbol_of(library, name);
  free(n.text);
  return found;
}

void *host_symbol(const void *address, const char *name) {
  void *found = NULL;
  Dl_info info;
  if (address && dladdr(address, &info) && info.dli_fname) found = symbol_of(info.dli_fname, name);
  if (!found) found = dlsym(RTLD_DEFAULT, name);
  return found ? found : search_libraries(name);
}

#ifdef GGML_HYPERATTN_LINKED
static const char *find_functions(host *h, const void *near) {
  (void)near;
#define TAKE(name) h->name = name;
  HOST_FUNCTIONS(TAKE)
#undef TAKE
  return NULL;
}
#else
static const char *sentence(const char *format, ...) {
  static char text[256];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  return text;
}

static const char *find_functions(host *h, const void *near) {
  void *found;
#define FIND(name)                                                                           \
  if (!(found = host_symbol(near, #name))) return sentence("this process has no %s", #name); \
  memcpy(&h->name, &found, sizeof found);
  HOST_FUNCTIONS(FIND)
#undef FIND
  return NULL;
}
#endif

// ---- Tensors: an attention is made, and what it says of itself must be what the headers of this build say ----

static int is_as_made(const struct ggml_tensor *op, struct ggml_tensor *const *source) {
  const float want[3] = {0.25f, 8, 30};
  if (memcmp(op->op_params, want, sizeof want)) return 0;
  for (int i = 0; i < 5; i++)
    if (op->src[i] != source[i]) return 0;
  const int64_t *key = source[1]->ne, *out = op->ne;
  const size_t *bytes = source[1]->nb;
  if (source[1]->type != GGML_TYPE_Q8_0 || source[2]->type != GGML_TYPE_F16 || op->type != GGML_TYPE_F32)
    return 0;
  return key[0] == 64 && key[1] == 7 && key[2] == 2 && key[3] == 3 && bytes[0] == 34 && bytes[1] == 68 &&
         bytes[2] == 476 && bytes[3] == 952 && out[0] == 32 && out[1] == 4 && out[2] == 5 && out[3] == 3;
}

// Formats are known by numbers that ggml writes to files; widening one tells where the function for that lies.
static int widens(const host *h) {
  const struct ggml_type_traits *q8_0 = h->ggml_get_type_traits(GGML_TYPE_Q8_0);
  if (q8_0->blck_size != 32 || q8_0->type_size != 34 || !q8_0->to_float) return 0;
  _Alignas(2) unsigned char block[34] = {0, 0x3C, 1, 2, 3, 0xFF};  // a scale of 1; 1, 2, 3, -1, 0, ...
  float wide[32];
  q8_0->to_float(block, wide, 32);
  return wide[0] == 1 && wide[1] == 2 && wide[2] == 3 && wide[3] == -1 && wide[4] == 0 && wide[31] == 0;
}

static const char *check_tensors(host *h) {
  struct ggml_init_params memory = {1 << 18, NULL, false};
  struct ggml_context *c = h->ggml_init(memory);
  if (!c) return "ggml_init fails";
  struct ggml_tensor *source[5] = {h->ggml_new_tensor_4d(c, GGML_TYPE_F32, 64, 5, 4, 3),
                                   h->ggml_new_tensor_4d(c, GGML_TYPE_Q8_0, 64, 7, 2, 3),
                                   h->ggml_new_tensor_4d(c, GGML_TYPE_F16, 32, 7, 2, 3),
                                   h->ggml_new_tensor_4d(c, GGML_TYPE_F16, 7, 64, 1, 3),
                                   h->ggml_new_tensor_1d(c, GGML_TYPE_F32, 4)};
  struct ggml_tensor *op =
      h->ggml_flash_attn_ext(c, source[0], source[1], source[2], source[3], 0.25f, 8, 30);
  h->ggml_flash_attn_ext_add_sinks(op, source[4]);
  struct ggml_tensor *row = source[4], *matrix = source[0], *view = h->ggml_view_1d(c, row, 2, 4);
  h->operation = (host_operations){(int)op->op,
                                   (int)row->op,
                                   (int)view->op,
                                   (int)h->ggml_reshape_1d(c, row, 4)->op,
                                   (int)h->ggml_permute(c, matrix, 0, 2, 1, 3)->op,
                                   (int)h->ggml_transpose(c, matrix)->op};
  struct ggml_cgraph *graph = h->ggml_new_graph_custom(c, 16, false);
  h->ggml_build_forward_expand(graph, op);
  int fits = is_as_made(op, source) && h->ggml_graph_n_nodes(graph) == 1 &&
             h->ggml_graph_node(graph, 0) == op && !strcmp(h->ggml_op_name(op->op), "FLASH_ATTN_EXT") &&
             !strcmp(h->ggml_type_name(GGML_TYPE_Q8_0), "q8_0") &&
             !strcmp(h->ggml_type_name(GGML_TYPE_BF16), "bf16") && widens(h) && view->view_src == row &&
             (char *)view->data == (char *)row->data + 4 && !view->src[1] && strstr(view->name, "view");
  int is_marked = (op->flags & GGML_TENSOR_FLAG_COMPUTE) != 0;
  h->ggml_free(c);
  if (fits && !is_marked) return "its graphs do not mark what is to be computed";
  return fits ? NULL
              : "its tensors or its attention are laid out otherwise than in the ggml that this was built "
                "for";
}

// ---- Structures of a backend: each word is a function that says its place, and ggml is made to call it ----

static int asked;  // the place of the first function that was called, or -1

#define PLACES(X)                                                                                       \
  X(0)                                                                                                  \
  X(1)                                                                                                  \
  X(2)                                                                                                  \
  X(3)                                                                                                  \
  X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) \
      X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31) X(32) X(33) X(34) X(35) X(36) X(37)   \
          X(38) X(39) X(40) X(41) X(42) X(43) X(44) X(45) X(46) X(47)
#define PLACE_FUNCTION(n)        \
  static void *place_##n(void) { \
    if (asked < 0) asked = n;    \
    return NULL;                 \
  }
PLACES(PLACE_FUNCTION)
#define PLACE_NAME(n) (host_word) place_##n,
static host_word places[HOST_WORDS] = {PLACES(PLACE_NAME)};

static int place_of(const void *word) {
  for (int i = 0; i < HOST_WORDS; i++)
    if (!memcmp(&word, &places[i], sizeof word)) return i;
  return -1;
}

#define ASK(place, call) (asked = -1, (void)(call), (place) = asked)

static const char *ask_layouts(host *h) {
  ggml_backend_t backend = (ggml_backend_t)(void *)places;
  ggml_backend_dev_t device = (ggml_backend_dev_t)(void *)places;
  ggml_backend_reg_t registry = (ggml_backend_reg_t)(void *)places;
  union {
    struct ggml_backend_dev_props props;
    char room[4096];
  } scratch;
  size_t size;
  ASK(h->backend.name, h->ggml_backend_name(backend));
  ASK(h->backend.graph_compute, h->ggml_backend_graph_compute(backend, NULL));
  ASK(h->backend.free, (h->ggml_backend_free(backend), 0));
  h->backend.device = place_of(h->ggml_backend_get_device(backend));
  ASK(h->device.name, h->ggml_backend_dev_name(device));
  ASK(h->device.description, h->ggml_backend_dev_description(device));
  ASK(h->device.memory, (h->ggml_backend_dev_memory(device, &size, &size), 0));
  ASK(h->device.type, h->ggml_backend_dev_type(device));
  ASK(h->device.props, (h->ggml_backend_dev_get_props(device, &scratch.props), 0));
  ASK(h->device.init, h->ggml_backend_dev_init(device, NULL));
  ASK(h->device.buffer_type, h->ggml_backend_dev_buffer_type(device));
  ASK(h->device.buffer_from_pointer,
      h->ggml_backend_dev_buffer_from_host_ptr(device, scratch.room, 64, 64));
  ASK(h->device.supports_op, h->ggml_backend_dev_supports_op(device, NULL));
  ASK(h->device.supports_buffer_type, h->ggml_backend_dev_supports_buft(device, NULL));
  h->device.registry = place_of(h->ggml_backend_dev_backend_reg(device));
  ASK(h->registry.name, h->ggml_backend_reg_name(registry));
  ASK(h->registry.device_count, h->ggml_backend_reg_dev_count(registry));
  ASK(h->registry.device, h->ggml_backend_reg_dev_get(registry, 0));
  ASK(h->registry.proc_address, h->ggml_backend_reg_get_proc_address(registry, ""));
  const int *learnt[] = {&h->backend.name, &h->device.name, &h->registry.name};
  const size_t n[] = {sizeof h->backend, sizeof h->device, sizeof h->registry};
  for (int i = 0; i < 3; i++)
    for (size_t j = 0; j < n[i] / sizeof(int); j++)
      if (learnt[i][j] < 0) return "its structures of backends cannot be told";
  return NULL;
}

const char *host_find(host *h, const void *near) {
  const char *why = find_functions(h, near);
  if (!why) why = check_tensors(h);
  return why ? why : ask_layouts(h);
}
