/* Makes this machine look like one with fewer instructions, for tests. Loaded by LD_PRELOAD, with
   HIDE=amx-bf16 (or avx512-bf16, avx512, avx2, each with all that depends on it), it hides those bits of
   CPUID from the program. It works on x86-64 Linux by CPUID faulting: CPUID traps, and a signal handler
   answers. Where the system or the processor cannot do that, it ends the program. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static unsigned leaf_7_ebx, leaf_7_edx, leaf_7_1_eax; /* the bits to hide */

static int set_cpuid(int allowed) {
  return (int)syscall(SYS_arch_prctl, 0x1012 /* ARCH_SET_CPUID */, (long)allowed);
}

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)r[REG_RIP];
  (void)info;
  (void)number;
  if (code[0] != 0x0f || code[1] != 0xa2) abort(); /* the fault was not by CPUID */
  unsigned leaf = (unsigned)r[REG_RAX], subleaf = (unsigned)r[REG_RCX], a, b, c, d;
  set_cpuid(1);
  __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
  set_cpuid(0);
  if (leaf == 7 && subleaf == 0) b &= ~leaf_7_ebx, d &= ~leaf_7_edx;
  if (leaf == 7 && subleaf == 1) a &= ~leaf_7_1_eax;
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

/* Keeps the handler, which cmocka would replace by its own. */
int sigaction(int number, const struct sigaction *to, struct sigaction *was) {
  typedef int function(int, const struct sigaction *, struct sigaction *);
  function *next = (function *)dlsym(RTLD_NEXT, "sigaction");
  return next(number, number == SIGSEGV && leaf_7_edx && to && to->sa_sigaction != answer ? NULL : to, was);
}
sighandler_t signal(int number, sighandler_t to) {
  typedef sighandler_t function(int, sighandler_t);
  function *next = (function *)dlsym(RTLD_NEXT, "signal");
  return number == SIGSEGV && leaf_7_edx ? SIG_DFL : next(number, to);
}

__attribute__((constructor)) static void hide(void) {
  static const char *const isas[] = {"amx-bf16", "avx512-bf16", "avx512", "avx2"};
  const char *name = getenv("HIDE");
  int n = 0;
  while (n < 4 && (!name || strcmp(name, isas[n]))) n++;
  if (n == 4) return;
  leaf_7_edx = 1u << 22 | 1u << 24 | 1u << 25; /* AMX */
  if (n >= 1) leaf_7_1_eax = 1u << 5;          /* AVX512_BF16 */
  if (n >= 2) leaf_7_ebx = 1u << 16;           /* AVX512F */
  if (n >= 3) leaf_7_ebx |= 1u << 5;           /* AVX2 */
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer, action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSEGV, &action, NULL) || set_cpuid(0)) _exit(77);
}
