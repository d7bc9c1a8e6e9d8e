// Metal's atomic operations.
#pragma once
#include "../runtime/runtime.h"
#include "types.h"

namespace metal {
// Threads are switched only where they wait, so that plain operations are atomic.
enum memory_order { memory_order_relaxed };
template <class T> struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
} // namespace metal
namespace host {
using namespace metal;
template <class T> struct Same {
  using type = T;
};
// Reads and maybe writes, with the callbacks of an atomic access and no others.
template <class T, class F>
__attribute__((noinline)) UNCHECKED T atomically(
    volatile atomic<T>* a, bool read, bool write, F f) {
  void* caller = __builtin_return_address(0);
  if (read) atomic_access(&a->value, sizeof(T), false, caller);
  if (write) atomic_access(&a->value, sizeof(T), true, caller);
  T old = a->value;
  if (write) a->value = f(old);
  return old;
}
} // namespace host
namespace metal {
template <class T> INLINE T atomic_load_explicit(const volatile atomic<T>* a, memory_order) {
  auto* p = const_cast<volatile atomic<T>*>(a);
  return host::atomically(p, true, false, [](T old) { return old; });
}
template <class T> INLINE void atomic_store_explicit(
    volatile atomic<T>* a, typename host::Same<T>::type x, memory_order) {
  host::atomically(a, false, true, [=](T) { return x; });
}
#define FETCH_AND(NAME, RESULT)                                                       \
  template <class T> INLINE T atomic_##NAME##_explicit(                               \
      volatile atomic<T>* a, typename host::Same<T>::type x, memory_order) {          \
    return host::atomically(a, true, true, [=](T old) { return (T)(RESULT); });       \
  }
FETCH_AND(exchange, x)
FETCH_AND(fetch_add, old + x)
FETCH_AND(fetch_sub, old - x)
FETCH_AND(fetch_min, x < old ? x : old)
FETCH_AND(fetch_max, old < x ? x : old)
FETCH_AND(fetch_and, old & x)
FETCH_AND(fetch_or, old | x)
FETCH_AND(fetch_xor, old ^ x)
template <class T> INLINE bool atomic_compare_exchange_weak_explicit(
    volatile atomic<T>* a, T* expected, typename host::Same<T>::type x, memory_order,
    memory_order) {
  T wanted = *expected;
  *expected = host::atomically(
      a, true, true, [=](T old) { return __builtin_memcmp(&old, &wanted, sizeof old) ? old : x; });
  return __builtin_memcmp(expected, &wanted, sizeof wanted) == 0;
}
} // namespace metal
