#if HAI_SIMD && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

/* Which kernels this machine can run, and which one a call takes. */

/* What the processor has. FAST: bfloat16 products take less time than float32's multiply-adds, as on AMD's
   cores; on Intel's they take twice as long. */
enum {
  HAI_CPU_KNOWN = 1,
  HAI_CPU_AVX2 = 2,
  HAI_CPU_AVX512 = 4,
  HAI_CPU_AVX512_BF16 = 8,
  HAI_CPU_AVX512_BF16_FAST = 16,
  HAI_CPU_AMX = 32,
  HAI_CPU_AVX512_VNNI = 64,
  HAI_CPU_AVX_VNNI = 128
};

#if HAI_AVX512 || HAI_AVX2
/* CPUID leaf and subleaf into eax, ebx, ecx, edx. */
static void hai_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
}
/* Which register states the system saves: bit 1 SSE, 2 AVX, 5 to 7 AVX-512. Only after CPUID has shown
   OSXSAVE. */
static uint64_t hai_xcr0(void) {
  uint32_t low, high;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0"
                   : "=a"(low), "=d"(high)
                   : "c"(0)); /* xgetbv, for old assemblers */
  return HAI_AS(uint64_t, high) << 32 | low;
}

/* The features that the processor has and whose registers the system saves. Tests pass two functions of their
   own. */
static int hai_cpu_features(void (*cpuid)(uint32_t, uint32_t, uint32_t[4]), uint64_t (*xcr0)(void)) {
  uint32_t r[4], leaves;
  uint64_t saved;
  int features = HAI_CPU_KNOWN, is_amd, has_512, has_tiles;
  cpuid(0, 0, r);
  leaves = r[0];
  is_amd = r[1] == 0x68747541u && r[3] == 0x69746e65u && r[2] == 0x444d4163u; /* "AuthenticAMD" */
  if (leaves < 7) return features;
  cpuid(1, 0, r);
  if (!(r[2] >> 27 & 1)) return features; /* OSXSAVE */
  saved = xcr0();
  if ((saved & 0x06) != 0x06) return features;
  if (!(r[2] >> 28 & 1) || !(r[2] >> 12 & 1) || !(r[2] >> 29 & 1)) return features; /* AVX, FMA, F16C */
  cpuid(7, 0, r);
  if (!(r[1] >> 5 & 1)) return features; /* AVX2 */
  features |= HAI_CPU_AVX2;
  has_512 = (saved & 0xe6) == 0xe6 && (r[1] >> 16 & 1) && (r[1] >> 17 & 1) && (r[1] >> 30 & 1) &&
            (r[1] >> 31 & 1); /* F, DQ, BW, VL */
  has_tiles = (r[3] >> 22 & 1) && (r[3] >> 24 & 1) && (saved & 0x60000) == 0x60000; /* BF16, TILE */
  if (has_512) features |= HAI_CPU_AVX512 | (r[2] >> 11 & 1 ? HAI_CPU_AVX512_VNNI : 0);
  if (!r[0]) return features;
  cpuid(7, 1, r);
  if (r[0] >> 4 & 1) features |= HAI_CPU_AVX_VNNI;
  if (!has_512 || !(r[0] >> 5 & 1)) return features;
  if (has_tiles) features |= HAI_CPU_AMX;
  features |= HAI_CPU_AVX512_BF16 | (is_amd ? HAI_CPU_AVX512_BF16_FAST : 0);
  return features;
}

/* The same, kept after the first call: CPUID is slow, above all in a virtual machine. Threads that come first
   together write the same word. */
static int hai_cpu(void) {
  static int word;
  int features = __atomic_load_n(&word, __ATOMIC_RELAXED);
  if (!features) {
    features = hai_cpu_features(hai_cpuid, hai_xcr0);
    __atomic_store_n(&word, features, __ATOMIC_RELAXED);
  }
  return features;
}
#else
static int hai_cpu(void) { return HAI_CPU_KNOWN; }
#endif

#if HAI_AMX
/* Whether the process has asked Linux for AMX's registers: using them without permission raises SIGILL. The
   answer can turn to yes at any time and never back, so only yes is kept, and no size depends on it. */
static int hai_amx_permitted(void) {
  static int word;
  uint64_t mask = 0;
  long result = 158; /* arch_prctl */
  if (!(hai_cpu() & HAI_CPU_AMX)) return 0;
  if (__atomic_load_n(&word, __ATOMIC_RELAXED)) return 1;
  __asm__ volatile("syscall" /* ARCH_GET_XCOMP_PERM */
                   : "+a"(result)
                   : "D"(0x1022L), "S"(&mask)
                   : "rcx", "r11", "memory");
  if (result || !(mask >> 18 & 1)) return 0;
  __atomic_store_n(&word, 1, __ATOMIC_RELAXED);
  return 1;
}
#endif

/* ---- The table of ISAs ---- */

#if HAI_AVX512
#define HAI_IF_AVX512(x) x
#else
#define HAI_IF_AVX512(x) HAI_NULL
#endif
#if HAI_AVX512_BF16
#define HAI_IF_AVX512_BF16(x) x
#else
#define HAI_IF_AVX512_BF16(x) HAI_NULL
#endif
#if HAI_AMX
#define HAI_IF_AMX(x) x
#else
#define HAI_IF_AMX(x) HAI_NULL
#endif
#if HAI_AVX2
#define HAI_IF_AVX2(x) x
#else
#define HAI_IF_AVX2(x) HAI_NULL
#endif
#if HAI_NEON
#define HAI_IF_NEON(x) x
#else
#define HAI_IF_NEON(x) HAI_NULL
#endif

typedef struct hai_isa {
  unsigned char isa;        /* hyperattn_isa */
  unsigned char features;   /* that the processor must have */
  const hai_kernel *kernel; /* for rows of float32; NULL where this build has none */
  const char *name;
} hai_isa;

/* One row for each ISA, the best first: HYPERATTN_ISA_AUTO stands for the first that this machine has. */
static const hai_isa hai_isas[] = {
    {HYPERATTN_ISA_AMX_BF16, HAI_CPU_AMX, HAI_IF_AMX(&hai_kernel_avx512), "amx-bf16"},
    {HYPERATTN_ISA_AVX512_BF16, HAI_CPU_AVX512_BF16, HAI_IF_AVX512_BF16(&hai_kernel_avx512), "avx512-bf16"},
    {HYPERATTN_ISA_AVX512, HAI_CPU_AVX512, HAI_IF_AVX512(&hai_kernel_avx512), "avx512"},
    {HYPERATTN_ISA_AVX2, HAI_CPU_AVX2, HAI_IF_AVX2(&hai_kernel_avx2), "avx2"},
    {HYPERATTN_ISA_NEON, 0, HAI_IF_NEON(&hai_kernel_neon), "neon"},
    {HYPERATTN_ISA_SCALAR, 0, &hai_kernel_scalar, "scalar"},
    {HYPERATTN_ISA_AUTO, 0, HAI_NULL, "auto"}};
enum { HAI_N_ISAS = sizeof hai_isas / sizeof hai_isas[0] };

static int hai_can_run(const hai_isa *row) {
#if HAI_AMX
  if (row->isa == HYPERATTN_ISA_AMX_BF16) return hai_amx_permitted();
#endif
  return row->kernel && !(row->features & ~hai_cpu());
}

/* The kernel of an ISA for rows of float32, NULL where this machine or build has none. AUTO skips the
   row of AMX, whose test asks the system each time until it permits; a later row has the same kernel. */
HAI_APART const hai_kernel *hai_kernel_of(hyperattn_isa isa) {
  int i;
  for (i = 0; i < HAI_N_ISAS; i++) {
    int fits = isa == HYPERATTN_ISA_AUTO ? hai_isas[i].isa != HYPERATTN_ISA_AMX_BF16
                                         : hai_isas[i].isa == HAI_AS(int, isa);
    if (fits && hai_can_run(&hai_isas[i])) return hai_isas[i].kernel;
  }
  return HAI_NULL;
}

/* ---- Kernels that read bfloat16 ---- */

/* Whether AMX's kernel may be chosen now, or later, once the process asks for it. */
static int hai_may_use_amx(hyperattn_isa isa, hai_index head_dim, hai_index value_dim) {
#if HAI_AMX
  return (isa == HYPERATTN_ISA_AUTO || isa == HYPERATTN_ISA_AMX_BF16) && (hai_cpu() & HAI_CPU_AMX) &&
         head_dim % HAI_AMX_PRODUCTS == 0 && value_dim % HAI_AMX_ROWS == 0;
#else
  (void)isa, (void)head_dim, (void)value_dim;
  return 0;
#endif
}

/* The kernel whose products read bfloat16, NULL where there is none or, under AUTO, where it is slower than
   the one for float32. */
static const hai_kernel *hai_kernel_of_bf16(hyperattn_isa isa, hai_index head_dim, hai_index value_dim) {
#if HAI_AMX
  if (hai_may_use_amx(isa, head_dim, value_dim) && hai_amx_permitted()) return &hai_kernel_amx;
#endif
  if (head_dim % 2) return HAI_NULL;
#if HAI_AVX512_BF16
  if (isa == HYPERATTN_ISA_AVX512_BF16 || isa == HYPERATTN_ISA_AMX_BF16 ||
      (isa == HYPERATTN_ISA_AUTO && (hai_cpu() & HAI_CPU_AVX512_BF16_FAST)))
    return &hai_kernel_avx512_bf16;
#endif
#if HAI_NEON_BF16
  if (isa == HYPERATTN_ISA_AUTO || isa == HYPERATTN_ISA_NEON) return &hai_kernel_neon_bf16;
#endif
  (void)isa, (void)value_dim;
  return HAI_NULL;
}

/* ---- Kernels of the scan ---- */

/* The scan's kernel beside a kernel for float32: the fastest way of the same ISA, with the same lanes, that a
   processor with these features has. */
static const hai_scan_kernel *hai_scan_kernel_by(const hai_kernel *kernel, int features) {
  (void)kernel, (void)features;
#if HAI_SCAN
#if HAI_AVX512
  if (kernel->isa == HYPERATTN_ISA_AVX512)
    return features & HAI_CPU_AVX512_VNNI ? &hai_scan_kernel_avx512_vnni : &hai_scan_kernel_avx512;
#endif
#if HAI_AVX_VNNI
  if (kernel->isa == HYPERATTN_ISA_AVX2 && (features & HAI_CPU_AVX_VNNI)) return &hai_scan_kernel_avx2_vnni;
#endif
#if HAI_AVX2
  if (kernel->isa == HYPERATTN_ISA_AVX2) return &hai_scan_kernel_avx2;
#endif
#if HAI_NEON
  if (kernel->isa == HYPERATTN_ISA_NEON) return &hai_scan_kernel_neon;
#endif
  return &hai_scan_kernel_scalar;
#else
  return HAI_NULL;
#endif
}
static const hai_scan_kernel *hai_scan_kernel_of(const hai_kernel *kernel) {
  return hai_scan_kernel_by(kernel, hai_cpu());
}
