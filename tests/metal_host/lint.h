// Declarations of Metal's and MLX's functions for clang's C++ for OpenCL, which has
// Metal's address spaces under other names. Nothing is defined: types are checked only.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define METAL_FUNC inline

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;
typedef __bf16 bfloat;

#define VECTORS(T)                                    \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
VECTORS(char) VECTORS(uchar) VECTORS(short) VECTORS(ushort) VECTORS(int) VECTORS(uint)
VECTORS(long) VECTORS(ulong) VECTORS(half) VECTORS(bfloat) VECTORS(float)
template <class V, class... A> V host_make(A...);
template <class T> __local T* host_threadgroup();
template <class To, class From> To as_type(From x) { return __builtin_bit_cast(To, x); }

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

namespace metal {
// ---------------------------------------------------------------- types
template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { using type = T; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F> struct conditional { using type = T; };
template <class T, class F> struct conditional<false, T, F> { using type = F; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;
template <class A, class B> constexpr __constant bool is_same_v = __is_same(A, B);
template <class A, class B>
constexpr __constant bool is_convertible_v = __is_convertible_to(A, B);
template <class T> constexpr __constant bool is_integral_v = __is_integral(T);
template <class T> struct numeric_limits {
  static constexpr T min();
  static constexpr T max();
  static constexpr T lowest();
  static constexpr T epsilon();
  static constexpr T infinity();
  static constexpr T quiet_NaN();
};

// ---------------------------------------------------------------- functions
#define OF_ONE(NAME)                            \
  half NAME(half);                              \
  float NAME(float);                            \
  template <int N> vec<half, N> NAME(vec<half, N>); \
  template <int N> vec<float, N> NAME(vec<float, N>);
#define OF_TWO(NAME)                                           \
  half NAME(half, half);                                       \
  float NAME(float, float);                                    \
  template <int N> vec<half, N> NAME(vec<half, N>, vec<half, N>); \
  template <int N> vec<float, N> NAME(vec<float, N>, vec<float, N>);
#define OF_THREE(NAME)            \
  half NAME(half, half, half);    \
  float NAME(float, float, float);
#define FLOAT_FUNCTIONS                                                                    \
  OF_ONE(acos) OF_ONE(acosh) OF_ONE(asin) OF_ONE(asinh) OF_ONE(atan) OF_ONE(atanh)         \
  OF_ONE(ceil) OF_ONE(cos) OF_ONE(cosh) OF_ONE(cospi) OF_ONE(exp) OF_ONE(exp10)            \
  OF_ONE(exp2) OF_ONE(fabs) OF_ONE(floor) OF_ONE(fract) OF_ONE(log) OF_ONE(log10)          \
  OF_ONE(log2) OF_ONE(rint) OF_ONE(round) OF_ONE(rsqrt) OF_ONE(sin) OF_ONE(sinh)           \
  OF_ONE(sinpi) OF_ONE(sqrt) OF_ONE(tan) OF_ONE(tanh) OF_ONE(tanpi) OF_ONE(trunc)          \
  OF_TWO(atan2) OF_TWO(copysign) OF_TWO(fdim) OF_TWO(fmax) OF_TWO(fmin) OF_TWO(fmod)       \
  OF_TWO(pow) OF_TWO(powr) OF_TWO(nextafter) OF_TWO(divide)                                \
  OF_THREE(fmax3) OF_THREE(fmin3) OF_THREE(fmedian3)
FLOAT_FUNCTIONS
OF_ONE(sign) OF_ONE(saturate) OF_TWO(step)
OF_THREE(fma) OF_THREE(mix) OF_THREE(smoothstep)
namespace fast {
FLOAT_FUNCTIONS
}
namespace precise {
FLOAT_FUNCTIONS
}
#define ORDER(T)                                           \
  T abs(T);                                                \
  T min(T, T);                                             \
  T max(T, T);                                             \
  T clamp(T, T, T);                                        \
  T min3(T, T, T);                                         \
  T max3(T, T, T);                                         \
  T median3(T, T, T);                                      \
  template <int N> vec<T, N> abs(vec<T, N>);               \
  template <int N> vec<T, N> min(vec<T, N>, vec<T, N>);    \
  template <int N> vec<T, N> max(vec<T, N>, vec<T, N>);    \
  template <int N> vec<T, N> clamp(vec<T, N>, vec<T, N>, vec<T, N>);
ORDER(char) ORDER(uchar) ORDER(short) ORDER(ushort) ORDER(int) ORDER(uint) ORDER(long)
ORDER(ulong) ORDER(half) ORDER(float)
uint popcount(uint);
uint clz(uint);
uint ctz(uint);
float ldexp(float, int);
half ldexp(half, int);
bool isnan(float);
bool isnan(half);
bool isinf(float);
bool isinf(half);
bool isfinite(float);
bool isfinite(half);
template <class T> T select(T, T, bool);
bool all(bool);
bool any(bool);
template <class T, int N> T dot(vec<T, N>, vec<T, N>);
template <class T, int N> T length(vec<T, N>);
template <class T, int N> vec<T, N> normalize(vec<T, N>);

// ---------------------------------------------------------------- barriers and simdgroups
enum class mem_flags : unsigned { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((unsigned)a | (unsigned)b);
}
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

#define COLLECTIVE(NAME) template <class T> T NAME(T);
COLLECTIVE(simd_sum) COLLECTIVE(simd_product) COLLECTIVE(simd_max) COLLECTIVE(simd_min)
COLLECTIVE(simd_and) COLLECTIVE(simd_or) COLLECTIVE(simd_xor)
COLLECTIVE(simd_prefix_exclusive_sum) COLLECTIVE(simd_prefix_inclusive_sum)
COLLECTIVE(simd_prefix_exclusive_product) COLLECTIVE(simd_prefix_inclusive_product)
COLLECTIVE(simd_broadcast_first)
#define SHUFFLE(NAME) template <class T> T NAME(T, ushort);
SHUFFLE(simd_shuffle) SHUFFLE(simd_broadcast) SHUFFLE(simd_shuffle_xor)
SHUFFLE(simd_shuffle_down) SHUFFLE(simd_shuffle_up) SHUFFLE(simd_shuffle_rotate_down)
SHUFFLE(simd_shuffle_rotate_up) SHUFFLE(quad_shuffle) SHUFFLE(quad_broadcast)
SHUFFLE(quad_shuffle_xor)
template <class T> T simd_shuffle_and_fill_down(T, T, ushort, ushort = 32);
template <class T> T simd_shuffle_and_fill_up(T, T, ushort, ushort = 32);
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();

// An object cannot be assigned from a function's result here, a vector can.
template <class T> using made_matrix = vec<T, 16>;
template <class T, int COLUMNS, int ROWS = COLUMNS> struct simdgroup_matrix {
  simdgroup_matrix();
  explicit simdgroup_matrix(T);
  simdgroup_matrix(made_matrix<T>);
  void operator=(made_matrix<T>);
  __private vec<T, 2>& thread_elements();
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int COLUMNS, int ROWS = COLUMNS>
made_matrix<T> make_filled_simdgroup_matrix(T);
#define MATRIX(T) __private simdgroup_matrix<T, 8, 8>&
#define MATRIX_MEMORY(SPACE)                                                          \
  template <class T> void simdgroup_load(                                             \
      MATRIX(T), SPACE const T*, ulong = 8, vec<ulong, 2> = 0, bool = false);         \
  template <class T> void simdgroup_store(                                            \
      const MATRIX(T), SPACE T*, ulong = 8, vec<ulong, 2> = 0, bool = false);
MATRIX_MEMORY(__global) MATRIX_MEMORY(__local)
template <class D, class A, class B> void simdgroup_multiply(
    MATRIX(D), const MATRIX(A), const MATRIX(B));
template <class D, class A, class B, class C> void simdgroup_multiply_accumulate(
    MATRIX(D), const MATRIX(A), const MATRIX(B), const MATRIX(C));

// ---------------------------------------------------------------- atomics
enum memory_order { memory_order_relaxed };
template <class T> struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
template <class T> struct lint_same {
  using type = T;
};
#define UPDATE(SPACE, NAME, RESULT)           \
  template <class T> RESULT atomic_##NAME##_explicit( \
      volatile SPACE atomic<T>*, typename lint_same<T>::type, memory_order);
#define ATOMICS(SPACE)                                                                   \
  template <class T> T atomic_load_explicit(const volatile SPACE atomic<T>*, memory_order); \
  UPDATE(SPACE, store, void) UPDATE(SPACE, exchange, T) UPDATE(SPACE, fetch_add, T)      \
  UPDATE(SPACE, fetch_sub, T) UPDATE(SPACE, fetch_min, T) UPDATE(SPACE, fetch_max, T)    \
  UPDATE(SPACE, fetch_and, T) UPDATE(SPACE, fetch_or, T) UPDATE(SPACE, fetch_xor, T)
ATOMICS(__global) ATOMICS(__local)
} // namespace metal

// ---------------------------------------------------------------- MLX
using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;
float log1p(float);
bfloat16_t log1p(bfloat16_t);
template <class T, class U> T ceildiv(T, U);
template <class T = int64_t>
T elem_to_loc(T, __constant const int*, __constant const int64_t*, int);
template <class T = int64_t>
T elem_to_loc(uint3, __constant const int*, __constant const int64_t*, int);
// Functions that Metal lacks for bfloat16, for which it would take those for float.
namespace metal {
#define OF_BFLOAT(NAME) bfloat NAME(bfloat);
OF_BFLOAT(abs) OF_BFLOAT(ceil) OF_BFLOAT(cos) OF_BFLOAT(exp) OF_BFLOAT(exp2)
OF_BFLOAT(fabs) OF_BFLOAT(floor) OF_BFLOAT(log) OF_BFLOAT(log2) OF_BFLOAT(rint)
OF_BFLOAT(round) OF_BFLOAT(rsqrt) OF_BFLOAT(sin) OF_BFLOAT(sqrt) OF_BFLOAT(tanh)
OF_BFLOAT(trunc)
bfloat min(bfloat, bfloat);
bfloat max(bfloat, bfloat);
} // namespace metal
