// Metal's types: numbers, vectors, and what templates ask about them.
#pragma once

#define INLINE inline __attribute__((always_inline))
// For functions that access memory in ways that are not the kernel's.
#define UNCHECKED __attribute__((no_sanitize("thread", "undefined")))

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
typedef __bf16 bfloat;

#define VECTORS(T)                                       \
  typedef T T##2 __attribute__((ext_vector_type(2)));    \
  typedef T T##3 __attribute__((ext_vector_type(3)));    \
  typedef T T##4 __attribute__((ext_vector_type(4)));
VECTORS(char) VECTORS(uchar) VECTORS(short) VECTORS(ushort) VECTORS(int) VECTORS(uint)
VECTORS(long) VECTORS(ulong) VECTORS(half) VECTORS(bfloat) VECTORS(float)
// Metal's bool vectors have a byte for each component; clang's have a bit.
typedef signed char bool2 __attribute__((ext_vector_type(2)));
typedef signed char bool3 __attribute__((ext_vector_type(3)));
typedef signed char bool4 __attribute__((ext_vector_type(4)));

// float4(a, b.xy, c) is a cast in C++; the rewriting makes it host_make<float4>(a, b.xy, c).
template <class T> struct host_vector {
  static constexpr int n = 1;
  using element = T;
  static INLINE T at(T v, int) { return v; }
};
template <class T, int N> struct host_vector<T __attribute__((ext_vector_type(N)))> {
  static constexpr int n = N;
  using element = T;
  template <class V> static INLINE T at(const V& v, int i) { return v[i]; }
};
template <class V, class A> INLINE void host_append(V& v, int& k, const A& a) {
  for (int i = 0; i < host_vector<A>::n; i++) {
    v[k++] = (typename host_vector<V>::element)host_vector<A>::at(a, i);
  }
}
template <class V, class... A> INLINE V host_make(A... a) {
  constexpr int n = host_vector<V>::n, given = (host_vector<A>::n + ... + 0);
  V v{};
  int k = 0;
  if constexpr (given == 1) {
    for (int i = 0; i < n; i++) {
      (host_append(v, k, a), ...);
    }
  } else if constexpr (given != 0) {
    static_assert(given == n, "a vector made of the wrong number of components");
    (host_append(v, k, a), ...);
  }
  return v;
}

namespace metal {
using ::bfloat;
using ::half;
using ::uchar;
using ::uint;
using ::ulong;
using ::ushort;
template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));

template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional { using type = T; };
template <class T, class F> struct conditional<false, T, F> { using type = F; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;
template <class T> using remove_cv_t = __remove_cv(T);
template <class A, class B> constexpr bool is_same_v = __is_same(A, B);
template <class A, class B> constexpr bool is_convertible_v = __is_convertible_to(A, B);
template <class T> constexpr bool is_integral_v = __is_integral(T);
template <class T> constexpr bool is_floating_point_v = __is_floating_point(T) ||
    __is_same(remove_cv_t<T>, half) || __is_same(remove_cv_t<T>, bfloat);
template <class T> constexpr bool is_signed_v = is_floating_point_v<T> || __is_signed(T);
template <class T> constexpr bool is_unsigned_v = __is_unsigned(T);

template <class T> struct numeric_limits {
  static constexpr T min() { return T(-1) < 0 ? T(1ul << (8 * sizeof(T) - 1)) : T(0); }
  static constexpr T max() { return T(~min()); }
  static constexpr T lowest() { return min(); }
};
template <> struct numeric_limits<bool> {
  static constexpr bool min() { return false; }
  static constexpr bool max() { return true; }
};
#define FLOAT_LIMITS(T, MIN, MAX, EPSILON)                            \
  template <> struct numeric_limits<T> {                              \
    static constexpr T min() { return (T)MIN; }                       \
    static constexpr T max() { return (T)MAX; }                       \
    static constexpr T lowest() { return (T)-MAX; }                   \
    static constexpr T epsilon() { return (T)EPSILON; }               \
    static constexpr T infinity() { return (T)__builtin_inff(); }     \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); }  \
  };
FLOAT_LIMITS(float, 0x1p-126f, 0x1.fffffep127f, 0x1p-23f)
FLOAT_LIMITS(half, 0x1p-14f, 0x1.ffcp15f, 0x1p-10f)
FLOAT_LIMITS(bfloat, 0x1p-126f, 0x1.fep127f, 0x1p-7f)
} // namespace metal

template <class To, class From> INLINE constexpr To as_type(const From& from) {
  return __builtin_bit_cast(To, from);
}

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX 0x1.fffffep127f
#define FLT_MIN 0x1p-126f
#define FLT_EPSILON 0x1p-23f
#define M_PI_F 3.14159265358979323846f
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define M_SQRT2_F 1.41421356237309504880f
