// ggml as it is in this process: its functions, found among the libraries that are loaded, since none is named at link
// time; and how it lays out the structures that a backend fills, asked of ggml itself, since they change between
// versions under the same version of the interface.
#ifndef GGML_HOST_H
#define GGML_HOST_H

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#define HOST_FUNCTIONS(X)                  \
  X(ggml_time_us)                          \
  X(ggml_op_name)                          \
  X(ggml_type_name)                        \
  X(ggml_get_type_traits)                  \
  X(ggml_init)                             \
  X(ggml_free)                             \
  X(ggml_new_tensor_4d)                    \
  X(ggml_new_tensor_1d)                    \
  X(ggml_view_1d)                          \
  X(ggml_reshape_1d)                       \
  X(ggml_permute)                          \
  X(ggml_transpose)                        \
  X(ggml_flash_attn_ext)                   \
  X(ggml_flash_attn_ext_add_sinks)         \
  X(ggml_custom_inplace)                   \
  X(ggml_new_graph_custom)                 \
  X(ggml_build_forward_expand)             \
  X(ggml_graph_add_node)                   \
  X(ggml_graph_n_nodes)                    \
  X(ggml_graph_node)                       \
  X(ggml_backend_name)                     \
  X(ggml_backend_free)                     \
  X(ggml_backend_graph_compute)            \
  X(ggml_backend_get_device)               \
  X(ggml_backend_dev_name)                 \
  X(ggml_backend_dev_description)          \
  X(ggml_backend_dev_memory)               \
  X(ggml_backend_dev_type)                 \
  X(ggml_backend_dev_get_props)            \
  X(ggml_backend_dev_init)                 \
  X(ggml_backend_dev_buffer_type)          \
  X(ggml_backend_dev_buffer_from_host_ptr) \
  X(ggml_backend_dev_supports_op)          \
  X(ggml_backend_dev_supports_buft)        \
  X(ggml_backend_dev_backend_reg)          \
  X(ggml_backend_reg_name)                 \
  X(ggml_backend_reg_dev_count)            \
  X(ggml_backend_reg_dev_get)              \
  X(ggml_backend_reg_get_proc_address)     \
  X(ggml_backend_dev_by_type)              \
  X(ggml_backend_register)                 \
  X(ggml_backend_cpu_buffer_type)          \
  X(ggml_backend_cpu_buffer_from_ptr)      \
  X(ggml_backend_buft_is_host)

// The numbers of operations, which change between versions.
typedef struct host_operations {
  int flash_attention, none, view, reshape, permute, transpose;
} host_operations;

// Places of a structure's members, in words of a pointer's size from its start.
typedef struct host_backend_layout {
  int name, free, graph_compute, device;
} host_backend_layout;
typedef struct host_device_layout {
  int name, description, memory, type, props, init, buffer_type, buffer_from_pointer, supports_op,
      supports_buffer_type, registry;
} host_device_layout;
typedef struct host_registry_layout {
  int name, device_count, device, proc_address;
} host_registry_layout;

typedef struct host {
#define HOST_MEMBER(name) __typeof__(&name) name;
  HOST_FUNCTIONS(HOST_MEMBER)
#undef HOST_MEMBER
  host_operations operation;
  host_backend_layout backend;
  host_device_layout device;
  host_registry_layout registry;
} host;

// Such a structure, and one of its members: mostly functions, and data by their bytes.
enum { HOST_WORDS = 48 };  // more than any of them has
typedef void (*host_word)(void);

// Fills it from the ggml that an address lies in: a process may have two. NULL, or a sentence that says why this ggml
// cannot be served.
const char *host_find(host *h, const void *near);

// A function of a library by its name, first in the library that holds the address and in those that it needs, then
// in all. NULL: there is none.
void *host_symbol(const void *address, const char *name);

#endif
