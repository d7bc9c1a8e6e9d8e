// What differs between CPUs: switching stacks, and how denormals are treated.
#pragma once
#include <stdint.h>

// Saves the stack pointer and, on the stack, the registers that a call preserves, and
// continues where `next` was saved.
extern "C" void host_switch(void** saved, void* next);

#if defined(__x86_64__)
#define SWITCH                                                       \
  "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n" \
  "pushq %r15\n movq %rsp, (%rdi)\n movq %rsi, %rsp\n popq %r15\n"   \
  "popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n"
#elif defined(__aarch64__)
#define SWITCH                                                        \
  "sub sp, sp, #160\n"                                                \
  "stp x19, x20, [sp, #0]\n stp x21, x22, [sp, #16]\n"                \
  "stp x23, x24, [sp, #32]\n stp x25, x26, [sp, #48]\n"               \
  "stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n"               \
  "stp d8, d9, [sp, #96]\n stp d10, d11, [sp, #112]\n"                \
  "stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"             \
  "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"                          \
  "ldp x19, x20, [sp, #0]\n ldp x21, x22, [sp, #16]\n"                \
  "ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"               \
  "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n"               \
  "ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"                \
  "ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n"             \
  "add sp, sp, #160\n ret\n"
#else
#error "no context switch for this CPU"
#endif
#if defined(__APPLE__)
#define SYMBOL "_host_switch"
#else
#define SYMBOL "host_switch"
#endif
asm(".text\n.globl " SYMBOL "\n.p2align 4\n" SYMBOL ":\n" SWITCH);

// Apple's GPUs flush float32 denormals to zero. Returns the mode that was on.
static uint64_t float_mode() {
#if defined(__x86_64__)
  return __builtin_ia32_stmxcsr();
#else
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#endif
}
static void set_float_mode(uint64_t mode) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr((unsigned)mode);
#else
  asm volatile("msr fpcr, %0" : : "r"(mode));
#endif
}
#if defined(__x86_64__)
static const uint64_t FLUSH_TO_ZERO = 0x8040; // FTZ and DAZ
#else
static const uint64_t FLUSH_TO_ZERO = 1 << 24;
#endif
