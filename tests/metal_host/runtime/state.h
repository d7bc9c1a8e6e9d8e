// The threads of the running threadgroup, and the memory that they see.
#pragma once
#include "runtime.h"

#include <stddef.h>
#include <stdint.h>

namespace host {

enum Schedule { FORWARD, REVERSE, RANDOM };
enum State : uint8_t { READY, AT_SIMD, AT_SIMD_BARRIER, AT_BARRIER, DONE };

struct Fiber {
  Thread thread;
  void* stack_pointer;
  State state;
  Site site; // where it waits
  unsigned flags; // of the barrier
  Collective collective;
  unsigned side; // of the simdgroup's buffers: where its operation's operands are
};

// The lanes' operands and results are buffered twice: a lane may post the operand of the
// next operation before the others have read the results of this one.
struct Simdgroup {
  Slot operands[2][32], results[2][32];
  uint32_t active[2];
  unsigned side;
  uint32_t waiting, ready, live; // sets of lanes
  uint32_t barriers[2]; // passed, of those for threadgroup and for device memory
  Fiber* lanes[32];
};

// The last accesses to one byte. The counts of barriers passed are clocks.
struct Cell {
  uint32_t write_group, read_group; // number of the threadgroup, from 1; 0 for none
  uint32_t write_barriers, read_barriers;
  uint32_t write_simd_barriers, read_simd_barriers;
  uint16_t writer, reader;
  bool initialised, atomic;
};
// Who: a thread's index, or several lanes of one simdgroup or all of it as one, to which
// its index is added, or threads of several.
static const uint16_t LANES = 0x4000, WHOLE = 0x8000, MANY = 0xffff;

// A buffer or a threadgroup variable.
enum Kind { INPUT, OUTPUT, THREADGROUP };
struct Region {
  uintptr_t base;
  size_t size;
  Kind kind;
  const char* name;
  uint64_t loaded, stored;
  Cell* cells; // in check mode, of what can be written
  const bool* reached; // as in Buffer
};

struct Diagnostic {
  const char* kind; // a "note" is no mistake
  uintptr_t address; // in the code
  int line, column;
  uint64_t count;
  char message[400];
};

// What library.py passes and reads; the same structures are there.
struct Options {
  uint32_t check, schedule, seed, last;
};
struct Buffer {
  void* data;
  uint64_t size;
  const char* name;
  uint32_t output, initialised;
  uint64_t loaded, stored, unwritten; // bytes
  uint64_t origin; // where the kernel's pointer points
  const bool* reached; // for each byte, or none: is it part of an element?
};
struct Result {
  uint64_t threadgroups, barriers, simd_barriers, simd_ops;
  uint64_t threadgroup_bytes, threadgroup_loaded, threadgroup_stored;
  uint32_t diagnostics, faulted;
};

static const size_t BUFFERS = 32, BUFFER_SPAN = (size_t)1 << 34;
static const size_t VARIABLES = 64, VARIABLE_SPAN = (size_t)1 << 24;
static const size_t THREADS = 1024, STACK = 256 << 10;
static const size_t THREADGROUP_LIMIT = 32768;
static const size_t DIAGNOSTICS = 64;

static char *buffer_arena, *variable_arena, *stacks;
static size_t page;
static Options options;
static Result result;
static Fiber fibers[THREADS];
static Simdgroup simdgroups[THREADS / 32];
static uint32_t simdgroup_count;
static Fiber* running;
Thread* current; // that of `running`
static void* scheduler;
static void (*kernel)();
static volatile bool in_kernel;
static bool as_whole; // are accesses to memory those of all lanes as one?

static Region regions[BUFFERS], variables[VARIABLES];
static size_t region_count, variable_bytes;
static uint32_t group, barriers[2]; // passed in this threadgroup, as in Simdgroup
static Diagnostic diagnostics[DIAGNOSTICS];

static uint32_t random_state;
static uint32_t random_below(uint32_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return random_state % n;
}

} // namespace host
