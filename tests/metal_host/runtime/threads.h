// Threads as fibers, which run until they wait for others, and what lets them go on.
#pragma once
#include "cpu.h"
#include "memory.h"

namespace host {

static void wait();

static void fiber_main() {
  kernel();
  uint32_t lane = 1u << running->thread.thread_index_in_simdgroup;
  Simdgroup* s = running->thread.simdgroup;
  running->state = DONE;
  s->ready &= ~lane;
  s->live &= ~lane;
  wait();
  abort();
}

static void start_fiber(Fiber& f, uint32_t index) {
  f.state = READY;
  f.site = Site{"", 0, 0};
  // Tops of stacks that were all aligned alike would share the same cache sets.
  uintptr_t end = (uintptr_t)stacks + (index + 1) * STACK - index * 832u % 32768;
  void** top = (void**)((end & ~(uintptr_t)63) - 64);
#if defined(__x86_64__)
  *--top = nullptr; // in place of a return address
  *--top = (void*)&fiber_main;
  for (int i = 0; i < 6; i++) {
    *--top = nullptr;
  }
#else
  top -= 20;
  memset(top, 0, 20 * sizeof(void*));
  top[11] = (void*)&fiber_main; // x30
#endif
  f.stack_pointer = top;
}

static int pick(uint32_t lanes) {
  if (options.schedule == FORWARD) {
    return __builtin_ctz(lanes);
  }
  if (options.schedule == REVERSE) {
    return 31 - __builtin_clz(lanes);
  }
  for (uint32_t n = random_below(__builtin_popcount(lanes)); n; n--) {
    lanes &= lanes - 1;
  }
  return __builtin_ctz(lanes);
}

// The lanes of `lanes` that wait at the site where `f` waits.
static uint32_t at_site_of(const Simdgroup* s, uint32_t lanes, const Fiber* f) {
  uint32_t same = 0;
  for (uint32_t m = lanes; m; m &= m - 1) {
    int i = __builtin_ctz(m);
    const Fiber* g = s->lanes[i];
    if (g->state == f->state && g->site.line == f->site.line &&
        g->site.column == f->site.column && g->site.operation == f->site.operation) {
      same |= 1u << i;
    }
  }
  return same;
}

// Carries out the operation at which `lanes` wait.
static void complete(Simdgroup* s, uint32_t lanes) {
  unsigned side = s->side;
  s->active[side] = lanes;
  s->side ^= 1;
  for (uint32_t m = s->waiting & ~lanes; m; m &= m - 1) {
    int i = __builtin_ctz(m); // diverged: its turn comes later
    s->operands[side ^ 1][i] = s->operands[side][i];
  }
  Fiber* first = s->lanes[__builtin_ctz(lanes)];
  if (first->state == AT_SIMD_BARRIER) {
    result.simd_barriers++;
    s->barriers[0] += (first->flags & MEM_THREADGROUP) != 0;
    s->barriers[1] += (first->flags & MEM_DEVICE) != 0;
  } else {
    result.simd_ops++;
    if (first->collective) {
      first->collective(s->operands[side], lanes, s->results[side]);
    }
  }
  for (uint32_t m = lanes; m; m &= m - 1) {
    Fiber* f = s->lanes[__builtin_ctz(m)];
    f->state = READY;
    f->side = side;
  }
  s->waiting &= ~lanes;
  s->ready |= lanes;
}
// Does so if every lane that has not returned waits at it.
static bool complete_if_all_wait(Simdgroup* s) {
  if (!s->waiting || s->waiting != s->live) {
    return false;
  }
  const Fiber* first = s->lanes[__builtin_ctz(s->waiting)];
  if (at_site_of(s, s->waiting, first) != s->waiting) {
    return false;
  }
  complete(s, s->waiting);
  return true;
}

// The running thread waits or has returned: another lane continues, or the scheduler.
static void wait() {
  resolve_suspect();
  Fiber* me = running;
  Simdgroup* s = me->thread.simdgroup;
  if (!s->ready && complete_if_all_wait(s) && me->state == READY) {
    return;
  }
  if (!s->ready) {
    host_switch(&me->stack_pointer, scheduler);
    return;
  }
  running = s->lanes[pick(s->ready)];
  current = &running->thread;
  host_switch(&me->stack_pointer, running->stack_pointer);
}

static void wait_at(State state, Site site, unsigned flags, Collective f) {
  Fiber* me = running;
  Simdgroup* s = me->thread.simdgroup;
  uint32_t lane = 1u << me->thread.thread_index_in_simdgroup;
  me->state = state;
  me->site = site;
  me->flags = flags;
  me->collective = f;
  s->ready &= ~lane;
  s->waiting |= state == AT_BARRIER ? 0 : lane;
  wait();
}
static unsigned post(const void* operand, unsigned size, Collective f, Site site) {
  Fiber* me = running;
  Simdgroup* s = me->thread.simdgroup;
  memcpy(s->operands[s->side][me->thread.thread_index_in_simdgroup].bytes, operand, size);
  wait_at(AT_SIMD, site, 0, f);
  return me->side;
}
Posted simd_exchange(const void* operand, unsigned size, Site site) {
  Simdgroup* s = running->thread.simdgroup;
  unsigned side = post(operand, size, nullptr, site);
  return {s->operands[side], s->active[side]};
}
const Slot* simd_collective(const void* operand, unsigned size, Collective f, Site site) {
  Simdgroup* s = running->thread.simdgroup;
  return s->results[post(operand, size, f, site)];
}
void simdgroup_barrier(unsigned flags, Site site) {
  wait_at(AT_SIMD_BARRIER, site, flags, nullptr);
}
void threadgroup_barrier(unsigned flags, Site site) {
  wait_at(AT_BARRIER, site, flags, nullptr);
}

// ---------------------------------------------------------------- scheduler
static void shuffle(uint32_t* order, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    order[i] = options.schedule == REVERSE ? n - 1 - i : i;
  }
  for (uint32_t i = n; options.schedule == RANDOM && i > 1; i--) {
    uint32_t j = random_below(i), last = order[i - 1];
    order[i - 1] = order[j];
    order[j] = last;
  }
}

// Lanes wait at different simdgroup operations: those at the first in the source go on,
// as they do on a GPU, where the others join them further down.
static void resolve_divergence(Simdgroup* s) {
  const Fiber* first = nullptr;
  for (uint32_t m = s->waiting; m; m &= m - 1) {
    const Fiber* f = s->lanes[__builtin_ctz(m)];
    if (!first || f->site.line < first->site.line ||
        (f->site.line == first->site.line && f->site.column < first->site.column)) {
      first = f;
    }
  }
  uint32_t lanes = at_site_of(s, s->waiting, first);
  diagnose("divergence", 0, first->site.line, first->site.column,
           "%s reached by %d of %d lanes of simdgroup %u", first->site.operation,
           __builtin_popcount(lanes), __builtin_popcount(s->live),
           first->thread.simdgroup_index_in_threadgroup);
  complete(s, lanes);
}

static void pass_barrier(uint32_t threads) {
  const Fiber* first = nullptr;
  unsigned flags = ~0u;
  uint32_t arrived = 0;
  for (uint32_t i = 0; i < threads; i++) {
    Fiber& f = fibers[i];
    if (f.state != AT_BARRIER) {
      continue;
    }
    arrived++;
    flags &= f.flags;
    if (!first) {
      first = &f;
    } else if (f.site.line != first->site.line || f.site.column != first->site.column) {
      diagnose("divergence", 0, f.site.line, f.site.column,
               "thread %u waits at this barrier, thread %u at that of line %d", i,
               first->thread.thread_index_in_threadgroup, first->site.line);
    }
    f.state = READY;
    f.thread.simdgroup->ready |= 1u << f.thread.thread_index_in_simdgroup;
  }
  if (arrived != threads) {
    diagnose("divergence", 0, first->site.line, first->site.column,
             "barrier reached by %u of %u threads; the others have returned", arrived, threads);
  }
  result.barriers++;
  barriers[0] += (flags & MEM_THREADGROUP) != 0;
  barriers[1] += (flags & MEM_DEVICE) != 0;
}

static void run_threads(uint32_t threads) {
  uint32_t order[THREADS / 32];
  while (true) {
    shuffle(order, simdgroup_count);
    for (uint32_t i = 0; i < simdgroup_count; i++) {
      Simdgroup* s = &simdgroups[order[i]];
      while (s->ready || complete_if_all_wait(s)) {
        running = s->lanes[pick(s->ready)];
        current = &running->thread;
        host_switch(&scheduler, running->stack_pointer);
      }
    }
    bool diverged = false, all_returned = true;
    for (uint32_t i = 0; i < simdgroup_count; i++) {
      Simdgroup* s = &simdgroups[i];
      all_returned = all_returned && !s->live;
      if (s->waiting) {
        diverged = true;
        resolve_divergence(s);
      }
    }
    if (all_returned) {
      return;
    }
    if (!diverged) {
      pass_barrier(threads);
    }
  }
}

static void run_threadgroup(U3 at, U3 count, U3 grid, U3 full, void* const* buffers) {
  auto least = [](uint32_t a, uint32_t b) { return a < b ? a : b; };
  U3 size{least(full.x, grid.x - at.x * full.x), least(full.y, grid.y - at.y * full.y),
          least(full.z, grid.z - at.z * full.z)};
  uint32_t threads = size.x * size.y * size.z, full_threads = full.x * full.y * full.z;
  simdgroup_count = (threads + 31) / 32;
  for (uint32_t i = 0; i < simdgroup_count; i++) {
    Simdgroup& s = simdgroups[i];
    uint32_t lanes = least(32, threads - i * 32);
    s.side = s.waiting = s.barriers[0] = s.barriers[1] = 0;
    s.ready = s.live = lanes == 32 ? ~0u : (1u << lanes) - 1;
  }
  for (uint32_t i = 0; i < threads; i++) {
    Thread& t = fibers[i].thread;
    U3 in{i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    t.thread_position_in_threadgroup = in;
    t.thread_position_in_grid =
        U3{at.x * full.x + in.x, at.y * full.y + in.y, at.z * full.z + in.z};
    t.threadgroup_position_in_grid = at;
    t.threadgroups_per_grid = count;
    t.threads_per_threadgroup = size;
    t.dispatch_threads_per_threadgroup = full;
    t.threads_per_grid = grid;
    t.thread_index_in_threadgroup = i;
    t.thread_index_in_simdgroup = i % 32;
    t.simdgroup_index_in_threadgroup = i / 32;
    t.simdgroups_per_threadgroup = simdgroup_count;
    t.dispatch_simdgroups_per_threadgroup = (full_threads + 31) / 32;
    t.threads_per_simdgroup = 32;
    t.quadgroup_index_in_threadgroup = i / 4;
    t.thread_index_in_quadgroup = i % 4;
    t.quadgroups_per_threadgroup = (threads + 3) / 4;
    t.dispatch_quadgroups_per_threadgroup = (full_threads + 3) / 4;
    t.buffers = buffers;
    t.simdgroup = &simdgroups[i / 32];
    t.simdgroup->lanes[i % 32] = &fibers[i];
    start_fiber(fibers[i], i);
  }
  group++;
  barriers[0] = barriers[1] = 0;
  in_kernel = true;
  run_threads(threads);
  in_kernel = false;
  free_variables();
}

} // namespace host
