/* For a Cortex-M without an operating system or a C library: runs the fixture, compares the results with
   the host's, and fills the stack with a pattern to see how deep the library goes. Output and exit are by
   semihosting. */
#include "fixture.h"

extern const float fixture_q[], fixture_k[], fixture_v[],
    fixture_expected[]; /* [N][D]; expected is [CASES][N][D] */
extern unsigned stack_low[], stack_top[];
static float out[N * D];

/* Compilers call these by themselves. */
void *memcpy(void *to, const void *from, size_t n) {
  for (size_t i = 0; i < n; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
  return to;
}
void *memset(void *to, int byte, size_t n) {
  for (size_t i = 0; i < n; i++) ((volatile char *)to)[i] = (char)byte;
  return to;
}
void *fw_memcpy(void *to, const void *from, size_t n) { return memcpy(to, from, n); }
void *fw_memset(void *to, int byte, size_t n) { return memset(to, byte, n); }

static void semihost(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}
static void put(const char *text) { semihost(4, text); }
static void put_number(unsigned long x) {
  char text[12], *at = text + sizeof text - 1;
  for (*at = 0; x || !*at; x /= 10) {
    *--at = (char)('0' + x % 10);
    if (x < 10) break;
  }
  put(at);
}
static __attribute__((noreturn)) void leave(int good) {
  semihost(0x18, (const void *)(good ? 0x20026 : 0x20023));
  for (;;) continue;
}
static __attribute__((noreturn)) void fault(void) {
  put("fault\n");
  leave(0);
}

#define PAINT 0xa5a5a5a5u
static unsigned *stack_now(void) {
  unsigned *sp;
  __asm__ volatile("mov %0, sp" : "=r"(sp));
  return sp;
}
static __attribute__((noinline)) void paint(void) {
  for (volatile unsigned *at = stack_low; at < (unsigned *)stack_now(); at++) *at = PAINT;
}
static unsigned long depth(const unsigned *from) { /* bytes below `from` that have been overwritten */
  const unsigned *at = stack_low;
  while (at < from && *at == PAINT) at++;
  return (unsigned long)((const char *)from - (const char *)at);
}

static int check(int number) {
  const float *expected = fixture_expected + (size_t)number * N * D;
  float most = 0.0f, least = 0.0f;
  size_t bytes = 0;
  unsigned long deep;
  hyperattn_status status;
  paint();
  status = run_case(number, fixture_q, fixture_k, fixture_v, out, &bytes);
  deep = depth(stack_now());
  for (int i = 0; i < N * D; i++) {
    float difference = out[i] - expected[i];
    if (!(difference <= most)) most = difference;
    if (!(difference >= least)) least = difference;
  }
  if (-least > most) most = -least;
  put(case_name[number]), put(": "), put(hyperattn_status_string(status));
  put(", difference "), put_number(most < 1.0f ? (unsigned long)(most * 1e9f) : 999999999ul);
  put("e-9, workspace "), put_number((unsigned long)bytes);
  put(" bytes, deepest stack "), put_number(deep), put(" bytes (at most 1024)\n");
  return status == HYPERATTN_OK && most <= 1e-5f && deep <= 1024;
}

static __attribute__((noreturn)) void start(void) {
  int good;
  *(volatile unsigned *)0xe000ed88 |= 0xfu << 20; /* CPACR: enables the FPU */
  __asm__ volatile("dsb\n\tisb");
  good = 1;
  for (int i = 0; i < CASES; i++) good &= check(i);
  leave(good);
}

extern void (*const vectors[])(void);
__attribute__((section(".vectors"), used)) void (*const vectors[])(void) = {
    (void (*)(void))stack_top, start, fault, fault, fault, fault, fault};
