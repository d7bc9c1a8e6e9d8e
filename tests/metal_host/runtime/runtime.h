// What a rewritten kernel and the runtime know of each other.
#pragma once

namespace host {

struct U3 {
  unsigned x, y, z;
};

// An operand or a result of a simdgroup function, in a cache line of its own.
struct alignas(64) Slot {
  unsigned char bytes[64];
};

struct Simdgroup;

// The running thread; the names are those of Metal's kernel attributes.
struct Thread {
  U3 thread_position_in_grid, thread_position_in_threadgroup;
  U3 threadgroup_position_in_grid, threadgroups_per_grid;
  U3 threads_per_threadgroup, dispatch_threads_per_threadgroup, threads_per_grid;
  unsigned thread_index_in_threadgroup, thread_index_in_simdgroup;
  unsigned simdgroup_index_in_threadgroup, simdgroups_per_threadgroup;
  unsigned dispatch_simdgroups_per_threadgroup, threads_per_simdgroup;
  unsigned quadgroup_index_in_threadgroup, thread_index_in_quadgroup;
  unsigned quadgroups_per_threadgroup, dispatch_quadgroups_per_threadgroup;
  void* const* buffers;
  Simdgroup* simdgroup;
};
extern Thread* current;

// A place in the kernel where threads wait for each other.
struct Site {
  const char* operation;
  int line, column;
};

// What the lanes of a simdgroup have posted; a lane that is not active posted nothing.
struct Posted {
  const Slot* slots;
  unsigned active;
};

// Posts an operand and waits until every active lane has posted one at the same site.
Posted simd_exchange(const void* operand, unsigned size, Site site);

// The same; `f` then computes the results of all lanes at once.
typedef void (*Collective)(const Slot* operands, unsigned active, Slot* results);
const Slot* simd_collective(const void* operand, unsigned size, Collective f, Site site);

enum { MEM_DEVICE = 1, MEM_THREADGROUP = 2 };
void threadgroup_barrier(unsigned flags, Site site);
void simdgroup_barrier(unsigned flags, Site site);

void* threadgroup_variable(int id, unsigned long size, unsigned long align, const char* name);
void atomic_access(const volatile void* at, unsigned long size, bool write, void* caller);
void access_as_whole(bool begin);
void report(const char* kind, Site site);

} // namespace host
