// Where threads wait for each other: barriers and simdgroup functions.
#pragma once
#include "../runtime/runtime.h"
#include "math.h"

namespace metal {
enum class mem_flags : unsigned { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((unsigned)a | (unsigned)b);
}
// The last parameters of every function at which threads wait: where it was called.
#define CALLED int line_ = __builtin_LINE(), int column_ = __builtin_COLUMN()
#define SITE(NAME) \
  host::Site { NAME, line_, column_ }
INLINE void threadgroup_barrier(mem_flags flags, CALLED) {
  host::threadgroup_barrier((unsigned)flags, SITE("threadgroup_barrier"));
}
INLINE void simdgroup_barrier(mem_flags flags, CALLED) {
  host::simdgroup_barrier((unsigned)flags, SITE("simdgroup_barrier"));
}
} // namespace metal

// ---------------------------------------------------------------- simdgroup functions
namespace host {
using namespace metal;
INLINE int lane() { return current->thread_index_in_simdgroup; }
template <class T> INLINE T value(const Slot& slot) {
  T v;
  __builtin_memcpy(&v, slot.bytes, sizeof v);
  return v;
}
template <class T> INLINE void set_value(Slot& slot, const T& v) {
  __builtin_memcpy(slot.bytes, &v, sizeof v);
}
// What `source` has posted; a lane that has not is an error, and gives NaN.
template <class T> INLINE T from_lane(const Posted& posted, int source, Site site) {
  T v;
  __builtin_memset(&v, 0xff, sizeof v);
  if (source < 0 || source > 31 || !(posted.active >> source & 1)) {
    report("inactive lane", site);
    return v;
  }
  return value<T>(posted.slots[source]);
}

// Reductions combine lanes whose numbers differ in bit 0, then 1, up to 4; so do Apple's
// GPUs, says mlx-lm.
template <class T, class Operation> UNCHECKED void reduce(
    const Slot* operands, unsigned active, Slot* results) {
  T v[32];
  for (int i = 0; i < 32; i++) {
    v[i] = active >> i & 1 ? value<T>(operands[i]) : Operation::unit();
  }
  for (int d = 1; d < 32; d *= 2) {
    for (int i = 0; i < 32; i += 2 * d) v[i] = Operation::apply(v[i], v[i + d]);
  }
  for (int i = 0; i < 32; i++) set_value(results[i], v[0]);
}
template <class T, class Operation, bool INCLUSIVE> UNCHECKED void scan(
    const Slot* operands, unsigned active, Slot* results) {
  T sum = Operation::unit();
  for (int i = 0; i < 32; i++) {
    T next = active >> i & 1 ? Operation::apply(sum, value<T>(operands[i])) : sum;
    set_value(results[i], INCLUSIVE ? next : sum);
    sum = next;
  }
}
template <class T> INLINE T least() {
  using E = typename host_vector<T>::element;
  if constexpr (is_floating_point_v<E>) return T(0) - (E)INFINITY;
  else return T(0) + numeric_limits<E>::min();
}
template <class T> INLINE T greatest() {
  using E = typename host_vector<T>::element;
  if constexpr (is_floating_point_v<E>) return T(0) + (E)INFINITY;
  else return T(0) + numeric_limits<E>::max();
}
#define OPERATION(NAME, UNIT, RESULT)                    \
  template <class T> struct NAME {                       \
    static INLINE T unit() { return UNIT; }              \
    static INLINE T apply(T x, T y) { return RESULT; }   \
  };
OPERATION(Sum, T(0), (T)(x + y))
OPERATION(Product, T(0) + (typename host_vector<T>::element)1, (T)(x * y))
OPERATION(Max, least<T>(), metal::max(x, y))
OPERATION(Min, greatest<T>(), metal::min(x, y))
OPERATION(And, (T)~T(0), (T)(x & y))
OPERATION(Or, T(0), (T)(x | y))
OPERATION(Xor, T(0), (T)(x ^ y))
} // namespace host
namespace metal {
#define COLLECTIVE(NAME, ...)                                                              \
  template <class T> INLINE T NAME(T x, CALLED) {                                          \
    return host::value<T>(                                                                 \
        host::simd_collective(&x, sizeof x, &__VA_ARGS__, SITE(#NAME))[host::lane()]);     \
  }
COLLECTIVE(simd_sum, host::reduce<T, host::Sum<T>>)
COLLECTIVE(simd_product, host::reduce<T, host::Product<T>>)
COLLECTIVE(simd_max, host::reduce<T, host::Max<T>>)
COLLECTIVE(simd_min, host::reduce<T, host::Min<T>>)
COLLECTIVE(simd_and, host::reduce<T, host::And<T>>)
COLLECTIVE(simd_or, host::reduce<T, host::Or<T>>)
COLLECTIVE(simd_xor, host::reduce<T, host::Xor<T>>)
COLLECTIVE(simd_prefix_exclusive_sum, host::scan<T, host::Sum<T>, false>)
COLLECTIVE(simd_prefix_inclusive_sum, host::scan<T, host::Sum<T>, true>)
COLLECTIVE(simd_prefix_exclusive_product, host::scan<T, host::Product<T>, false>)
COLLECTIVE(simd_prefix_inclusive_product, host::scan<T, host::Product<T>, true>)

// Lanes at the edge keep their own value where the source would be outside.
#define SHUFFLE(NAME, SOURCE)                                                         \
  template <class T> INLINE T NAME(T x, ushort k, CALLED) {                           \
    host::Posted posted = host::simd_exchange(&x, sizeof x, SITE(#NAME));             \
    [[maybe_unused]] int me = host::lane();                                           \
    int source = SOURCE;                                                              \
    return source < 0 ? x : host::from_lane<T>(posted, source, SITE(#NAME));          \
  }
SHUFFLE(simd_shuffle, k)
SHUFFLE(simd_broadcast, k)
SHUFFLE(simd_shuffle_xor, me ^ k)
SHUFFLE(simd_shuffle_down, me + k > 31 ? -1 : me + k)
SHUFFLE(simd_shuffle_up, me - k)
SHUFFLE(simd_shuffle_rotate_down, (me + k) & 31)
SHUFFLE(simd_shuffle_rotate_up, (me - k) & 31)
SHUFFLE(quad_shuffle, (me & ~3) + k)
SHUFFLE(quad_broadcast, (me & ~3) + k)
SHUFFLE(quad_shuffle_xor, me ^ k)

// Lanes beyond the edge of their `modulo` lanes take from `fill` instead.
#define SHUFFLE_AND_FILL(NAME, TARGET, BACK)                                           \
  template <class T> INLINE T NAME(T x, T fill, ushort k, ushort modulo = 32, CALLED) { \
    struct Pair {                                                                      \
      T x, fill;                                                                       \
    } pair{x, fill};                                                                   \
    host::Posted posted = host::simd_exchange(&pair, sizeof pair, SITE(#NAME));        \
    int first = host::lane() / modulo * modulo, target = host::lane() - first TARGET k; \
    bool inside = 0 <= target && target < modulo;                                      \
    int source = first + (inside ? target : target BACK modulo);                       \
    Pair found = host::from_lane<Pair>(posted, source, SITE(#NAME));                   \
    return inside ? found.x : found.fill;                                              \
  }
SHUFFLE_AND_FILL(simd_shuffle_and_fill_down, +, -)
SHUFFLE_AND_FILL(simd_shuffle_and_fill_up, -, +)

template <class T> INLINE T simd_broadcast_first(T x, CALLED) {
  host::Posted posted = host::simd_exchange(&x, sizeof x, SITE("simd_broadcast_first"));
  return host::value<T>(posted.slots[__builtin_ctz(posted.active)]);
}
struct simd_vote {
  ulong lanes;
  INLINE explicit operator ulong() const { return lanes; }
  INLINE bool all() const { return lanes == 0xffffffff; }
  INLINE bool any() const { return lanes != 0; }
};
INLINE simd_vote simd_ballot(bool x, CALLED) {
  uint bit = x ? 1u << host::lane() : 0;
  const host::Slot* results = host::simd_collective(
      &bit, sizeof bit, &host::reduce<uint, host::Or<uint>>, SITE("simd_ballot"));
  return {host::value<uint>(results[0])};
}
INLINE bool simd_any(bool x, CALLED) { return simd_max((int)x, line_, column_); }
INLINE bool simd_all(bool x, CALLED) { return simd_min((int)x, line_, column_); }
INLINE bool simd_is_first(CALLED) {
  return simd_broadcast_first(host::lane(), line_, column_) == host::lane();
}
} // namespace metal
