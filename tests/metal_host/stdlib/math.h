// Metal's functions of numbers and of vectors.
#pragma once
#include "types.h"

namespace host {
#define BUILTIN(NAME) \
  INLINE float NAME(float x) { return __builtin_##NAME##f(x); }
#define BUILTINS(X)                                                                         \
  X(acos) X(acosh) X(asin) X(asinh) X(atan) X(atanh) X(ceil) X(cos) X(cosh) X(exp) X(exp2)  \
  X(fabs) X(floor) X(log) X(log10) X(log2) X(rint) X(round) X(sin) X(sinh) X(sqrt) X(tan)   \
  X(tanh) X(trunc)
BUILTINS(BUILTIN)
INLINE float exp10(float x) { return __builtin_powf(10.0f, x); }
INLINE float rsqrt(float x) { return 1.0f / sqrt(x); }
INLINE float fract(float x) { return __builtin_fminf(x - floor(x), 0x1.fffffep-1f); }
INLINE float sinpi(float x) { return (float)__builtin_sin(3.14159265358979323846 * x); }
INLINE float cospi(float x) { return (float)__builtin_cos(3.14159265358979323846 * x); }
INLINE float tanpi(float x) { return (float)__builtin_tan(3.14159265358979323846 * x); }
INLINE float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f; }
INLINE float saturate(float x) { return __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f); }
INLINE float atan2(float y, float x) { return __builtin_atan2f(y, x); }
INLINE float copysign(float x, float y) { return __builtin_copysignf(x, y); }
INLINE float fdim(float x, float y) { return __builtin_fdimf(x, y); }
INLINE float fmax(float x, float y) { return __builtin_fmaxf(x, y); }
INLINE float fmin(float x, float y) { return __builtin_fminf(x, y); }
INLINE float fmod(float x, float y) { return __builtin_fmodf(x, y); }
INLINE float pow(float x, float y) { return __builtin_powf(x, y); }
INLINE float powr(float x, float y) { return __builtin_powf(x, y); }
INLINE float nextafter(float x, float y) { return __builtin_nextafterf(x, y); }
INLINE float divide(float x, float y) { return x / y; }
INLINE float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
INLINE float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
INLINE float mix(float x, float y, float a) { return x + (y - x) * a; }
INLINE float smoothstep(float low, float high, float x) {
  float t = saturate((x - low) / (high - low));
  return t * t * (3.0f - 2.0f * t);
}
INLINE float fmax3(float x, float y, float z) { return fmax(x, fmax(y, z)); }
INLINE float fmin3(float x, float y, float z) { return fmin(x, fmin(y, z)); }
INLINE float fmedian3(float x, float y, float z) {
  return fmax(fmin(x, y), fmin(fmax(x, y), z));
}
} // namespace host

#define UNARY(X) \
  BUILTINS(X) X(cospi) X(exp10) X(fract) X(rsqrt) X(sinpi) X(tanpi)
#define BINARY(X)                                                                          \
  X(atan2) X(copysign) X(fdim) X(fmax) X(fmin) X(fmod) X(pow) X(powr) X(nextafter) X(divide)
#define TERNARY(X) X(fmax3) X(fmin3) X(fmedian3)

// For half and float and their vectors. A bfloat becomes a float, as in Metal.
#define OF_ONE_TYPE(T, NAME, PARAMETERS, ARGUMENTS, VECTORS, COMPONENTS)  \
  INLINE T NAME PARAMETERS(T) { return (T)host::NAME ARGUMENTS; }         \
  template <int N> INLINE vec<T, N> NAME VECTORS(T) {                     \
    vec<T, N> r{};                                                        \
    for (int i = 0; i < N; i++) {                                         \
      r[i] = (T)host::NAME COMPONENTS;                                    \
    }                                                                     \
    return r;                                                             \
  }
#define ONE(T) (T x)
#define TWO(T) (T x, T y)
#define THREE(T) (T x, T y, T z)
#define ONE_VECTOR(T) (vec<T, N> x)
#define TWO_VECTORS(T) (vec<T, N> x, vec<T, N> y)
#define THREE_VECTORS(T) (vec<T, N> x, vec<T, N> y, vec<T, N> z)
#define OF_ONE(NAME)                                                \
  OF_ONE_TYPE(half, NAME, ONE, (x), ONE_VECTOR, (x[i]))             \
  OF_ONE_TYPE(float, NAME, ONE, (x), ONE_VECTOR, (x[i]))
#define OF_TWO(NAME)                                                \
  OF_ONE_TYPE(half, NAME, TWO, (x, y), TWO_VECTORS, (x[i], y[i]))   \
  OF_ONE_TYPE(float, NAME, TWO, (x, y), TWO_VECTORS, (x[i], y[i]))
#define OF_THREE(NAME)                                                               \
  OF_ONE_TYPE(half, NAME, THREE, (x, y, z), THREE_VECTORS, (x[i], y[i], z[i]))       \
  OF_ONE_TYPE(float, NAME, THREE, (x, y, z), THREE_VECTORS, (x[i], y[i], z[i]))

namespace metal {
UNARY(OF_ONE) OF_ONE(sign) OF_ONE(saturate)
BINARY(OF_TWO) OF_TWO(step)
TERNARY(OF_THREE) OF_THREE(fma) OF_THREE(mix) OF_THREE(smoothstep)
namespace fast {
UNARY(OF_ONE) BINARY(OF_TWO) TERNARY(OF_THREE)
}
namespace precise {
UNARY(OF_ONE) BINARY(OF_TWO) TERNARY(OF_THREE)
}

// One function for each type, so that arguments of two types are ambiguous as in Metal.
#define ORDER(T, LESS, GREATER)                                                        \
  INLINE T min(T x, T y) { return LESS; }                                              \
  INLINE T max(T x, T y) { return GREATER; }                                           \
  INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }                \
  INLINE T min3(T x, T y, T z) { return min(x, min(y, z)); }                           \
  INLINE T max3(T x, T y, T z) { return max(x, max(y, z)); }                           \
  INLINE T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); }        \
  template <int N> INLINE vec<T, N> min(vec<T, N> x, vec<T, N> y) {                    \
    vec<T, N> r{};                                                                     \
    for (int i = 0; i < N; i++) r[i] = min(x[i], y[i]);                                \
    return r;                                                                          \
  }                                                                                    \
  template <int N> INLINE vec<T, N> max(vec<T, N> x, vec<T, N> y) {                    \
    vec<T, N> r{};                                                                     \
    for (int i = 0; i < N; i++) r[i] = max(x[i], y[i]);                                \
    return r;                                                                          \
  }                                                                                    \
  template <int N> INLINE vec<T, N> clamp(vec<T, N> x, vec<T, N> low, vec<T, N> high) { \
    return min(max(x, low), high);                                                     \
  }
#define INTEGER_ORDER(T) ORDER(T, y < x ? y : x, x < y ? y : x)
#define FLOAT_ORDER(T) \
  ORDER(T, (T)host::fmin((float)x, (float)y), (T)host::fmax((float)x, (float)y))
INTEGER_ORDER(char) INTEGER_ORDER(uchar) INTEGER_ORDER(short) INTEGER_ORDER(ushort)
INTEGER_ORDER(int) INTEGER_ORDER(uint) INTEGER_ORDER(long) INTEGER_ORDER(ulong)
FLOAT_ORDER(half) FLOAT_ORDER(float)

#define MAGNITUDE(T) \
  INLINE T abs(T x) { return x < 0 ? (T)-x : x; }
MAGNITUDE(char) MAGNITUDE(short) MAGNITUDE(int) MAGNITUDE(long)
INLINE float abs(float x) { return host::fabs(x); }
INLINE half abs(half x) { return (half)host::fabs(x); }
template <class T, int N> INLINE vec<T, N> abs(vec<T, N> x) {
  vec<T, N> r{};
  for (int i = 0; i < N; i++) r[i] = abs(x[i]);
  return r;
}

INLINE uint popcount(uint x) { return __builtin_popcount(x); }
INLINE uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
INLINE uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
INLINE float ldexp(float x, int k) { return __builtin_ldexpf(x, k); }
INLINE half ldexp(half x, int k) { return (half)__builtin_ldexpf(x, k); }
INLINE float frexp(float x, int& k) { return __builtin_frexpf(x, &k); }
INLINE bool isnan(float x) { return x != x; }
INLINE bool isnan(half x) { return x != x; }
INLINE bool isinf(float x) { return __builtin_fabsf(x) == INFINITY; }
INLINE bool isinf(half x) { return isinf((float)x); }
INLINE bool isfinite(float x) { return __builtin_fabsf(x) < INFINITY; }
INLINE bool isfinite(half x) { return isfinite((float)x); }
template <class T> INLINE T select(T x, T y, bool c) { return c ? y : x; }
template <class T, int N, class M>
INLINE vec<T, N> select(vec<T, N> x, vec<T, N> y, vec<M, N> c) {
  vec<T, N> r{};
  for (int i = 0; i < N; i++) r[i] = c[i] ? y[i] : x[i];
  return r;
}
INLINE bool all(bool x) { return x; }
INLINE bool any(bool x) { return x; }
template <class M, int N> INLINE bool all(vec<M, N> x) {
  bool r = true;
  for (int i = 0; i < N; i++) r = r && x[i] != 0;
  return r;
}
template <class M, int N> INLINE bool any(vec<M, N> x) {
  bool r = false;
  for (int i = 0; i < N; i++) r = r || x[i] != 0;
  return r;
}
template <class T, int N> INLINE T dot(vec<T, N> x, vec<T, N> y) {
  T sum = x[0] * y[0];
  for (int i = 1; i < N; i++) sum += x[i] * y[i];
  return sum;
}
template <class T, int N> INLINE T length_squared(vec<T, N> x) { return dot(x, x); }
template <class T, int N> INLINE T length(vec<T, N> x) { return (T)host::sqrt(dot(x, x)); }
template <class T, int N> INLINE vec<T, N> normalize(vec<T, N> x) {
  return x * (T)host::rsqrt(dot(x, x));
}
} // namespace metal
