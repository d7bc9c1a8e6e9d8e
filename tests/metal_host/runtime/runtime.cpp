// Runs a kernel: the threads of a threadgroup are fibers on one thread of the CPU, which
// are switched only where Metal's threads wait for each other. In check mode the kernel
// is compiled with -fsanitize=thread; the functions that clang then calls before every
// access are this library's own, not ThreadSanitizer's.
//
// Written without the C++ library, so that it links against nothing but libc.
#include "threads.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>

namespace host {

static sigjmp_buf after_fault;

static void on_fault(int signal_number, siginfo_t* info, void*) {
  if (!in_kernel) {
    signal(signal_number, SIG_DFL);
    return;
  }
  uintptr_t at = (uintptr_t)info->si_addr;
  Region* r = find_region(at);
  const Site& site = running->site;
  char who[80];
  snprintf(who, sizeof who, "by thread %u, %s", running->thread.thread_index_in_threadgroup,
           site.line ? "which last waited at this line" : "before it waited for others");
  if (at - (uintptr_t)stacks < THREADS * STACK) {
    diagnose("private memory", 0, 0, 0, "that of a thread exceeds %zu KB", STACK >> 10);
  } else if (r) {
    bool inside = at - r->base < r->size; // an input is protected against writes only
    diagnose(inside ? "write to input" : "out of bounds", 0, site.line, site.column,
             "byte %ld of '%s', which has %zu, %s", (long)(at - r->base), r->name, r->size, who);
  } else {
    diagnose("fault", 0, site.line, site.column, "signal %d at address %p, %s", signal_number,
             (void*)at, who);
  }
  siglongjmp(after_fault, 1);
}

// While a kernel runs, a fault is a diagnostic and denormals are zero.
static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
struct Environment {
  struct sigaction actions[4];
  stack_t stack;
  uint64_t mode;
};
static void enter(Environment& saved) {
  static char stack[65536];
  stack_t ours{};
  ours.ss_sp = stack;
  ours.ss_size = sizeof stack;
  sigaltstack(&ours, &saved.stack);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < 4; i++) {
    sigaction(SIGNALS[i], &action, &saved.actions[i]);
  }
  saved.mode = float_mode();
  set_float_mode(saved.mode | FLUSH_TO_ZERO);
}
static void leave(const Environment& saved) {
  set_float_mode(saved.mode);
  for (int i = 0; i < 4; i++) {
    sigaction(SIGNALS[i], &saved.actions[i], nullptr);
  }
  sigaltstack(&saved.stack, nullptr);
}

static void run_grid(U3 grid, U3 full, void* const* buffers) {
  U3 count{(grid.x + full.x - 1) / full.x, (grid.y + full.y - 1) / full.y,
           (grid.z + full.z - 1) / full.z};
  uint32_t groups = count.x * count.y * count.z;
  uint32_t first = options.last && options.last < groups ? groups - options.last : 0;
  uint32_t* order = (uint32_t*)malloc(groups * sizeof(uint32_t) + 1);
  shuffle(order, groups - first);
  if (sigsetjmp(after_fault, 1) == 0) {
    for (uint32_t i = 0; i < groups - first; i++) {
      uint32_t g = first + order[i];
      U3 at{g % count.x, g / count.x % count.y, g / (count.x * count.y)};
      run_threadgroup(at, count, grid, full, buffers);
    }
  } else {
    result.faulted = 1;
    in_kernel = false;
    free_variables();
  }
  result.threadgroups = groups;
  free(order);
}

} // namespace host

extern "C" {
using namespace host;

const Result* host_run(
    void (*function)(), Buffer* buffers, int count, const U3* grid, const U3* threadgroup,
    const Options* chosen) {
  map_arenas();
  options = *chosen;
  random_state = options.seed * 2654435761u + 88172645u;
  kernel = function;
  result = Result();
  group = 0;
  suspect.on = as_whole = false;
  region_count = count;
  void* pointers[BUFFERS];
  for (int i = 0; i < count; i++) {
    pointers[i] = copy_in(i, buffers[i]);
  }
  Environment saved;
  enter(saved);
  run_grid(*grid, *threadgroup, pointers);
  leave(saved);
  for (int i = 0; i < count; i++) {
    copy_out(i, buffers[i]);
  }
  return &result;
}

const Diagnostic* host_diagnostics() {
  return diagnostics;
}

// Where the library that contains `symbol` was loaded.
const void* host_base(const void* symbol) {
  Dl_info info;
  return dladdr(symbol, &info) ? info.dli_fbase : nullptr;
}

// Rounds to bfloat16. Where the CPU cannot, clang calls a function by this name.
__attribute__((weak)) __bf16 __truncsfbf2(float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  uint32_t rounded = x != x ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
  return __builtin_bit_cast(__bf16, (uint16_t)(rounded >> 16));
}

} // extern "C"
