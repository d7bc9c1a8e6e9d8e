// Metal's standard library on a CPU, as far as kernels that compute need it. Included
// before a kernel; declares everything itself, since names of C's library such as log1p
// must stay free for kernels.
#pragma once
#include "atomic.h"
#include "math.h"
#include "matrix.h"

#define METAL_FUNC inline __attribute__((always_inline))
#define __METAL_MAYBE_FAST_MATH__ 0
#define __METAL_FAST_MATH__ 0
#define __METAL_PRECISE_MATH__ 0

// ---------------------------------------------------------------- MLX's bfloat16 functions
// MLX defines them by these internal names of Apple's library.
#define INTERNAL_UNARY(NAME) \
  INLINE float __metal_##NAME(float x, int) { return host::NAME(x); }
#define INTERNAL_BINARY(NAME) \
  INLINE float __metal_##NAME(float x, float y, int) { return host::NAME(x, y); }
#define INTERNAL_TERNARY(NAME) \
  INLINE float __metal_##NAME(float x, float y, float z, int) { return host::NAME(x, y, z); }
UNARY(INTERNAL_UNARY) BINARY(INTERNAL_BINARY) TERNARY(INTERNAL_TERNARY)
INLINE float __metal_fma(float x, float y, float z) { return host::fma(x, y, z); }
INLINE float __metal_nextafter(float x, float y) { return host::nextafter(x, y); }
INLINE float __metal_ldexp(float x, int k, int) { return __builtin_ldexpf(x, k); }
INLINE float __metal_frexp(float x, int* k) { return __builtin_frexpf(x, k); }
#define INTERNAL_COLLECTIVE(NAME) \
  template <class T> INLINE T __metal_##NAME(T x) { return metal::NAME(x); }
INTERNAL_COLLECTIVE(simd_sum) INTERNAL_COLLECTIVE(simd_product)
INTERNAL_COLLECTIVE(simd_max) INTERNAL_COLLECTIVE(simd_min)
INTERNAL_COLLECTIVE(simd_prefix_exclusive_sum) INTERNAL_COLLECTIVE(simd_prefix_inclusive_sum)
INTERNAL_COLLECTIVE(simd_prefix_exclusive_product)
INTERNAL_COLLECTIVE(simd_prefix_inclusive_product)
float __metal_simd_xor(float x); // no such function
#define INTERNAL_SHUFFLE(NAME) \
  template <class T> INLINE T __metal_##NAME(T x, ushort k) { return metal::NAME(x, k); }
INTERNAL_SHUFFLE(simd_broadcast) INTERNAL_SHUFFLE(simd_shuffle)
INTERNAL_SHUFFLE(simd_shuffle_down) INTERNAL_SHUFFLE(simd_shuffle_up)
INTERNAL_SHUFFLE(simd_shuffle_xor) INTERNAL_SHUFFLE(simd_shuffle_rotate_down)
INTERNAL_SHUFFLE(simd_shuffle_rotate_up)
#define INTERNAL_FILL(NAME)                                            \
  template <class T> INLINE T __metal_##NAME(T x, T fill, ushort k, ushort modulo) { \
    return metal::NAME(x, fill, k, modulo);                            \
  }
INTERNAL_FILL(simd_shuffle_and_fill_down) INTERNAL_FILL(simd_shuffle_and_fill_up)
INLINE ushort __metal_get_simdgroup_size(ushort) { return 32; }

// ---------------------------------------------------------------- entry
template <class T> INLINE T& host_threadgroup(int id, const char* name) {
  return *(T*)host::threadgroup_variable(id, sizeof(T), alignof(T), name);
}
INLINE uint3 host_uint3(host::U3 u) { return uint3{u.x, u.y, u.z}; }

// Words that a kernel may use.
#undef INLINE
#undef CALLED
#undef UNCHECKED
