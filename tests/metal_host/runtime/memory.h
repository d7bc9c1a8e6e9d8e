// Where buffers and threadgroup variables are. Each ends at a protected page, far from
// all others, so that most accesses out of bounds fault even unchecked.
#pragma once
#include "checks.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

namespace host {

static size_t to_pages(size_t size) {
  return (size + page - 1) / page * page;
}
// Memory of `size` bytes ends where the pages from `start` on end, up to its alignment.
static uintptr_t end_aligned(char* start, size_t size, size_t align) {
  return ((uintptr_t)start + to_pages(size) - size) & ~(uintptr_t)(align - 1);
}
static void map_arenas() {
  if (stacks) {
    return;
  }
  page = sysconf(_SC_PAGESIZE);
  auto reserve = [](size_t size, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* p = mmap(nullptr, size, protection, flags, -1, 0);
    if (p == MAP_FAILED) {
      perror("mmap");
      abort();
    }
    return (char*)p;
  };
  buffer_arena = reserve(BUFFERS * BUFFER_SPAN, PROT_NONE);
  variable_arena = reserve(VARIABLES * VARIABLE_SPAN, PROT_NONE);
  stacks = reserve(THREADS * STACK, PROT_READ | PROT_WRITE);
  for (size_t i = 0; i < THREADS; i++) {
    mprotect(stacks + i * STACK, page, PROT_NONE);
  }
}

// The same for every thread of the threadgroup; filled with NaN when it starts.
void* threadgroup_variable(int id, unsigned long size, unsigned long align, const char* name) {
  Region& r = variables[id];
  if (r.base) {
    return (void*)r.base;
  }
  char* start = variable_arena + id * VARIABLE_SPAN + page;
  mprotect(start - page, VARIABLE_SPAN, PROT_NONE);
  mprotect(start, to_pages(size), PROT_READ | PROT_WRITE);
  r.base = end_aligned(start, size, align < 16 ? 16 : align);
  r.size = size;
  r.kind = THREADGROUP;
  r.name = name;
  memset((void*)r.base, 0xff, size);
  if (options.check) {
    r.cells = (Cell*)calloc(size, sizeof(Cell));
  }
  variable_bytes += (size + 15) / 16 * 16;
  if (variable_bytes > THREADGROUP_LIMIT) {
    diagnose("threadgroup memory", 0, 0, 0, "'%s' makes it %zu bytes, the limit is %zu", name,
             variable_bytes, THREADGROUP_LIMIT);
  }
  return (void*)r.base;
}
static void free_variables() {
  if (variable_bytes > result.threadgroup_bytes) {
    result.threadgroup_bytes = variable_bytes;
  }
  variable_bytes = 0;
  for (Region& r : variables) {
    result.threadgroup_loaded += r.loaded;
    result.threadgroup_stored += r.stored;
    free(r.cells);
    r = Region();
  }
}

static char* first_page(int i) {
  return buffer_arena + i * BUFFER_SPAN + BUFFER_SPAN / 2;
}
static void* copy_in(int i, const Buffer& b) {
  size_t pages = to_pages(b.size);
  if (pages) {
    mprotect(first_page(i), pages, PROT_READ | PROT_WRITE);
  }
  Region& r = regions[i];
  r = Region{end_aligned(first_page(i), b.size, 16), b.size, b.output ? OUTPUT : INPUT, b.name,
             0, 0, nullptr, b.reached};
  if (b.initialised) {
    memcpy((void*)r.base, b.data, b.size);
  } else {
    memset((void*)r.base, 0xff, b.size); // NaN in every floating-point type
  }
  if (pages && !b.output) {
    mprotect(first_page(i), pages, PROT_READ);
  }
  if (options.check && b.output) {
    r.cells = (Cell*)calloc(b.size + 1, sizeof(Cell));
    for (size_t k = 0; b.initialised && k < b.size; k++) {
      r.cells[k].initialised = true;
    }
  }
  return (void*)(r.base + b.origin);
}
static void copy_out(int i, Buffer& b) {
  Region& r = regions[i];
  b.loaded = r.loaded;
  b.stored = r.stored;
  if (b.output) {
    memcpy(b.data, (void*)r.base, b.size);
    for (size_t k = 0; r.cells && !options.last && k < b.size; k++) {
      b.unwritten += !r.cells[k].initialised;
    }
    free(r.cells);
  }
  if (size_t pages = to_pages(b.size)) {
    madvise(first_page(i), pages, MADV_DONTNEED);
    mprotect(first_page(i), pages, PROT_NONE);
  }
}

} // namespace host
