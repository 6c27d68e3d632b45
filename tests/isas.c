/* Prints the names of all kernels, with "absent" before those that this machine lacks. */
#define HYPERATTN_IMPLEMENTATION
#include "hyperattn.h"
#include "examples/amx.h"
#include <stdio.h>

int main(void) {
  hyperattn_problem nothing = {0};
  hyperattn_params params = hyperattn_default_params();
  nothing.batch = nothing.n_heads = nothing.n_kv_heads = nothing.head_dim = nothing.value_dim = 1;
  ask_for_amx();
  for (int isa = HYPERATTN_ISA_SCALAR; isa <= HYPERATTN_ISA_LAST; isa++) {
    params.isa = (hyperattn_isa)isa;
    int status = hyperattn_check(&nothing, &params, NULL, 0, 1);
    printf("%s%s\n", status == HYPERATTN_ERROR_ISA_ABSENT ? "absent " : "", hyperattn_isa_name(params.isa));
  }
  return 0;
}
