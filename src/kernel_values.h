/* Template within kernel_tile.h: values for the coordinates of HAI_EACH and up to HAI_REGISTERS registers, in
   functions named by HAI_THESE. */

/* o[r][i] = o[r][i] factor[i] + sum_j weight[j][i] value_j[at + r], in the lanes of n registers. */
HAI_TARGET HAI_INLINE void HAI_THESE(value_registers)(const float *weight, int n_keys,
                                                      const void *const *value, hai_index at,
                                                      const float *factor, float *o, const int n) {
  HAI_VECTOR a0, a1, a2, b;
  int j;
  HAI_EACH(HAI_SUMS)
  for (j = 0; j < n_keys; j++, weight += HAI_LANES) {
    const HAI_ELEMENT *v = HAI_AS(const HAI_ELEMENT *, value[j]) + at;
    HAI_LOAD(weight)
    HAI_EACH(HAI_VALUE_ADD)
  }
  HAI_LOAD(factor)
  HAI_EACH(HAI_VALUES_OUT)
}

HAI_TARGET static void HAI_THESE(value)(const float *weight, int n_keys, const void *const *value,
                                        hai_index at, const float *factor, float *o, int n) {
  if (HAI_REGISTERS > 2 && n == 3)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 2 ? 3 : 1);
  else if (HAI_REGISTERS > 1 && n == 2)
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, HAI_REGISTERS > 1 ? 2 : 1);
  else
    HAI_THESE(value_registers)(weight, n_keys, value, at, factor, o, 1);
}

#undef HAI_EACH
#undef HAI_REGISTERS
#undef HAI_THESE
