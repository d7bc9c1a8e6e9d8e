// Matrices of a simdgroup for text that is compiled and not run: values that unknown
// functions take and return, as the functions of Apple's compiler do. The address of a
// matrix is taken only where the kernel takes it.
#pragma once
#include "simdgroup.h"

namespace host {
using namespace metal;
#define OPAQUE template <class T> __attribute__((convergent))
OPAQUE vec<T, 2> matrix_of_diagonal(T diagonal);
OPAQUE vec<T, 2> matrix_load(const T* p, ulong stride, vec<ulong, 2> origin, bool transpose);
OPAQUE void matrix_store(
    vec<T, 2> m, T* p, ulong stride, vec<ulong, 2> origin, bool transpose);
template <class D, class A, class B, class C> __attribute__((convergent))
vec<D, 2> matrix_multiply_accumulate(vec<A, 2> a, vec<B, 2> b, vec<C, 2> c);
#undef OPAQUE
} // namespace host
namespace metal {
template <class T, int COLUMNS, int ROWS = COLUMNS> struct simdgroup_matrix {
  static_assert(COLUMNS == 8 && ROWS == 8, "simdgroup matrices are 8x8");
  vec<T, 2> elements;
  INLINE simdgroup_matrix() {}
  INLINE explicit simdgroup_matrix(T diagonal) : elements(host::matrix_of_diagonal(diagonal)) {}
  INLINE vec<T, 2>& thread_elements() { return elements; }
  INLINE const vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int COLUMNS, int ROWS = COLUMNS>
INLINE simdgroup_matrix<T, COLUMNS, ROWS> make_filled_simdgroup_matrix(T x) {
  simdgroup_matrix<T, COLUMNS, ROWS> m;
  m.elements = x;
  return m;
}
template <class T> INLINE void simdgroup_load(
    simdgroup_matrix<T, 8, 8>& m, const T* p, ulong stride = 8, vec<ulong, 2> origin = 0,
    bool transpose = false) {
  m.elements = host::matrix_load(p, stride, origin, transpose);
}
template <class T> INLINE void simdgroup_store(
    const simdgroup_matrix<T, 8, 8>& m, T* p, ulong stride = 8, vec<ulong, 2> origin = 0,
    bool transpose = false) {
  host::matrix_store(m.elements, p, stride, origin, transpose);
}
template <class D, class A, class B, class C> INLINE void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
    const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c) {
  d.elements = host::matrix_multiply_accumulate<D>(a.elements, b.elements, c.elements);
}
template <class D, class A, class B> INLINE void simdgroup_multiply(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
    const simdgroup_matrix<B, 8, 8>& b) {
  d.elements = host::matrix_multiply_accumulate<D>(a.elements, b.elements, vec<D, 2>(0));
}
template <class T> INLINE simdgroup_matrix<T, 8, 8> operator*(
    const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b) {
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}
} // namespace metal
