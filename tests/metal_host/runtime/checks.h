// Diagnostics, the checks of every access to memory, and the functions that clang calls
// for them in a kernel compiled with -fsanitize.
#pragma once
#include "state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace host {

// One for each kind and place, with the number of times it came up.
static void diagnose(
    const char* kind, uintptr_t address, int line, int column, const char* format, ...) {
  uint32_t& n = result.diagnostics;
  for (uint32_t i = 0; i < n; i++) {
    Diagnostic& d = diagnostics[i];
    if (d.address == address && d.line == line && d.column == column &&
        strcmp(d.kind, kind) == 0) {
      d.count++;
      return;
    }
  }
  if (n == DIAGNOSTICS) {
    return;
  }
  Diagnostic& d = diagnostics[n++];
  d.kind = kind;
  d.address = address;
  d.line = line;
  d.column = column;
  d.count = 1;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(d.message, sizeof d.message, format, arguments);
  va_end(arguments);
}
void report(const char* kind, Site site) {
  diagnose(kind, 0, site.line, site.column, "%s", site.operation);
}

// ---------------------------------------------------------------- every access
static const char* describe(const Region& r) {
  return r.kind == INPUT ? "input" : r.kind == OUTPUT ? "output" : "threadgroup variable";
}
static bool in_buffers(uintptr_t a) {
  return a - (uintptr_t)buffer_arena < BUFFERS * BUFFER_SPAN;
}
static bool in_variables(uintptr_t a) {
  return a - (uintptr_t)variable_arena < VARIABLES * VARIABLE_SPAN;
}
static Region* find_region(uintptr_t a) {
  if (in_buffers(a)) {
    size_t i = (a - (uintptr_t)buffer_arena) / BUFFER_SPAN;
    return i < region_count ? &regions[i] : nullptr;
  }
  if (in_variables(a)) {
    Region* r = &variables[(a - (uintptr_t)variable_arena) / VARIABLE_SPAN];
    return r->base ? r : nullptr;
  }
  return nullptr;
}

// Two threads that write the same value to the same place are harmless on every GPU, and
// reported as a note. What a write stores is only known at the next callback.
static struct {
  bool on;
  uintptr_t at, address;
  size_t size;
  unsigned char old[16];
  char message[400];
} suspect;
static void resolve_suspect() {
  if (!suspect.on) {
    return;
  }
  suspect.on = false;
  bool same = memcmp((void*)suspect.at, suspect.old, suspect.size) == 0;
  diagnose(same ? "note: same-value race" : "race", suspect.address, 0, 0, "%s",
           suspect.message);
}

static uint16_t simdgroup_of(uint16_t who) {
  return who == MANY ? MANY : who < LANES ? who / 32 : who & 31;
}
struct Name {
  char text[32];
};
static Name name_of(uint16_t who) {
  Name name{"several threads"};
  if (who != MANY) {
    bool one = who < LANES;
    snprintf(name.text, sizeof name.text, one ? "thread %u" : "simdgroup %u",
             one ? who : simdgroup_of(who));
  }
  return name;
}
static void report_race(
    const Region& r, const char* race, uintptr_t at, size_t size, size_t byte,
    bool other_group, unsigned other, uint16_t me, uintptr_t address) {
  U3 at_group = running->thread.threadgroup_position_in_grid;
  char place[160], message[400];
  snprintf(place, sizeof place, "%s of %s '%s', byte %zu", race, describe(r), r.name, byte);
  if (other_group) {
    snprintf(message, sizeof message, "%s, by threadgroups %u and %u", place, other, group);
  } else {
    snprintf(message, sizeof message,
             "%s, by %s and %s of threadgroup (%u, %u, %u): no barrier with %s between", place,
             name_of(other).text, name_of(me).text, at_group.x, at_group.y, at_group.z,
             r.kind == THREADGROUP ? "mem_threadgroup" : "mem_device");
  }
  if (strcmp(race, "write after write") != 0 || size > sizeof suspect.old) {
    diagnose("race", address, 0, 0, "%s", message);
  } else if (!suspect.on) {
    suspect.on = true;
    suspect.at = at;
    suspect.size = size;
    suspect.address = address;
    memcpy(suspect.old, (void*)at, size);
    memcpy(suspect.message, message, sizeof message);
  }
}

// Checks one access to buffers or threadgroup memory, and counts it.
static void check_access(uintptr_t at, size_t size, bool write, bool atomic, uintptr_t address) {
  if (!in_kernel) {
    return;
  }
  resolve_suspect();
  const Thread& t = running->thread;
  const char* verb = write ? "write" : "read";
  if (!in_buffers(at) && !in_variables(at)) {
    uintptr_t offset = at - (uintptr_t)stacks;
    if (offset < THREADS * STACK && offset / STACK != t.thread_index_in_threadgroup) {
      diagnose("private", address, 0, 0, "%s of thread %zu's private memory by thread %u", verb,
               offset / STACK, t.thread_index_in_threadgroup);
    }
    return;
  }
  Region* r = find_region(at);
  if (!r || at < r->base || at + size > r->base + r->size) {
    // A wilder access than this one still meets a protected page.
    if (r) {
      diagnose("out of bounds", address, 0, 0,
               "%s of %zu bytes at byte %ld of %s '%s', which has %zu, by thread %u of "
               "threadgroup (%u, %u, %u)",
               verb, size, (long)(at - r->base), describe(*r), r->name, r->size,
               t.thread_index_in_threadgroup, t.threadgroup_position_in_grid.x,
               t.threadgroup_position_in_grid.y, t.threadgroup_position_in_grid.z);
    } else {
      diagnose("out of bounds", address, 0, 0, "%s outside every buffer", verb);
    }
    return;
  }
  (write ? r->stored : r->loaded) += size;
  if (r->kind == INPUT) {
    if (write) {
      diagnose("write to input", address, 0, 0, "'%s'", r->name);
    } else if (r->reached && memchr(r->reached + (at - r->base), false, size)) {
      diagnose("not an element", address, 0, 0,
               "read of byte %zu of input '%s', whose strides leave it out, by thread %u",
               (size_t)(at - r->base), r->name, t.thread_index_in_threadgroup);
    }
    return;
  }

  // Accesses of other threads are in order if a barrier for this memory was passed since.
  // So are those of one thread; but not those of a simdgroup as a whole: another lane may
  // load an element of a matrix than has stored it. Only where a simdgroup stores after it
  // has loaded there are both in order, as the matrix that it stores was computed by then
  // from all of the one that it loaded.
  int memory = r->kind == THREADGROUP ? 0 : 1;
  uint32_t now = barriers[memory], simd_now = t.simdgroup->barriers[memory];
  uint16_t my_simdgroup = t.simdgroup_index_in_threadgroup;
  uint16_t me = as_whole ? WHOLE + my_simdgroup : t.thread_index_in_threadgroup;
  bool reported = false; // once for all bytes
  for (size_t i = 0; i < size; i++) {
    Cell& c = r->cells[at - r->base + i];
    const char* race = nullptr;
    bool other_group = false;
    unsigned other = 0;
    if (c.write_group && !(atomic && c.atomic)) {
      bool ordered = (c.writer == me && !as_whole) || c.write_barriers != now ||
          (simdgroup_of(c.writer) == my_simdgroup && c.write_simd_barriers < simd_now);
      other_group = c.write_group != group;
      if (other_group || !ordered) {
        race = write ? "write after write" : "read after write";
        other = other_group ? c.write_group : c.writer;
      }
    }
    if (!race && write && c.read_group) {
      bool ordered = c.reader == me || c.read_barriers != now ||
          (simdgroup_of(c.reader) == my_simdgroup && c.read_simd_barriers < simd_now);
      other_group = c.read_group != group;
      if (other_group || !ordered) {
        race = "write after read";
        other = other_group ? c.read_group : c.reader;
      }
    }
    if (race && !reported) {
      reported = true;
      report_race(*r, race, at, size, at - r->base + i, other_group, other, me, address);
    }
    if (write) {
      c.write_group = group;
      c.write_barriers = now;
      c.write_simd_barriers = simd_now;
      c.writer = me;
      c.initialised = true;
      c.atomic = atomic;
      continue;
    }
    if (!c.initialised && !reported) {
      reported = true;
      diagnose("uninitialised", address, 0, 0, "read of %s '%s', byte %zu, by %s",
               describe(*r), r->name, (size_t)(at - r->base + i), name_of(me).text);
    }
    if (atomic) {
      continue;
    }
    if (c.read_group != group || c.read_barriers != now) {
      c.reader = me;
    } else if (simdgroup_of(c.reader) != my_simdgroup) {
      c.reader = MANY;
    } else if (c.read_simd_barriers < simd_now) {
      c.reader = me; // later than all others, to this simdgroup and to no other
    } else if (c.reader != me) {
      c.reader = LANES + my_simdgroup;
    }
    c.read_group = group;
    c.read_barriers = now;
    c.read_simd_barriers = simd_now;
  }
}
void access_as_whole(bool begin) {
  as_whole = begin;
}
void atomic_access(const volatile void* at, unsigned long size, bool write, void* caller) {
  if (options.check) {
    check_access((uintptr_t)at, size, write, true, (uintptr_t)caller);
  }
}

} // namespace host

extern "C" {
using namespace host;

// ---------------------------------------------------------------- -fsanitize=thread
#define CALLER ((uintptr_t)__builtin_return_address(0))
#define ACCESS(NAME, SIZE, WRITE) \
  void __tsan_##NAME##SIZE(void* p) { check_access((uintptr_t)p, SIZE, WRITE, false, CALLER); }
#define ACCESSES(SIZE)               \
  ACCESS(read, SIZE, false)          \
  ACCESS(write, SIZE, true)          \
  ACCESS(unaligned_read, SIZE, false) \
  ACCESS(unaligned_write, SIZE, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_init() {}
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  if (n) {
    check_access((uintptr_t)from, n, false, false, CALLER);
    check_access((uintptr_t)to, n, true, false, CALLER);
  }
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  if (n) {
    check_access((uintptr_t)from, n, false, false, CALLER);
    check_access((uintptr_t)to, n, true, false, CALLER);
  }
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  if (n) {
    check_access((uintptr_t)to, n, true, false, CALLER);
  }
  return memset(to, value, n);
}

// ---------------------------------------------------------------- -fsanitize=undefined
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
#define UNDEFINED(NAME, KIND, ...)                                          \
  void __ubsan_handle_##NAME(SourceLocation* at, ##__VA_ARGS__) {           \
    bool known = at->file && strcmp(at->file, "kernel") == 0;               \
    diagnose("undefined behaviour", CALLER, known ? at->line : 0, known ? at->column : 0, \
             "%s", KIND);                                                   \
  }
UNDEFINED(out_of_bounds, "index out of an array's bounds", void*)
UNDEFINED(shift_out_of_bounds, "shift by too much", void*, void*)
UNDEFINED(divrem_overflow, "division by zero or overflow", void*, void*)
UNDEFINED(add_overflow, "overflow of an addition", void*, void*)
UNDEFINED(sub_overflow, "overflow of a subtraction", void*, void*)
UNDEFINED(mul_overflow, "overflow of a multiplication", void*, void*)
UNDEFINED(negate_overflow, "overflow of a negation", void*)
UNDEFINED(float_cast_overflow, "floating-point value out of the integer's range", void*)
UNDEFINED(implicit_conversion, "integer that its new type cannot hold", void*, void*)
UNDEFINED(load_invalid_value, "bool that is neither true nor false", void*)
UNDEFINED(type_mismatch_v1, "misaligned access", void*)

} // extern "C"
