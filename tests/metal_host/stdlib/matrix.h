// Matrices of a simdgroup. What their functions do stands in one of two other headers: a
// lane of a kernel that runs computes its elements; for text that is only compiled, they
// are unknown to clang.
#pragma once
#ifdef OPAQUE_MATRICES
#include "opaque_matrix.h"
#else
#include "lane_matrix.h"
#endif

namespace metal {
template <class T, int COLUMNS, int ROWS = COLUMNS> struct simdgroup_matrix {
  static_assert(COLUMNS == 8 && ROWS == 8, "simdgroup matrices are 8x8");
  vec<T, 2> elements; // of a lane: two neighbours of a row
  INLINE simdgroup_matrix() : elements(host::matrix_undefined<T>()) {}
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
    bool transpose = false, CALLED) {
  m.elements = host::matrix_load(p, stride, origin, transpose, SITE("simdgroup_load"));
}
template <class T> INLINE void simdgroup_store(
    const simdgroup_matrix<T, 8, 8>& m, T* p, ulong stride = 8, vec<ulong, 2> origin = 0,
    bool transpose = false, CALLED) {
  host::matrix_store(m.elements, p, stride, origin, transpose, SITE("simdgroup_store"));
}
template <class D, class A, class B, class C> INLINE void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
    const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c, CALLED) {
  d.elements = host::matrix_multiply_accumulate<D>(
      a.elements, b.elements, c.elements, SITE("simdgroup_multiply_accumulate"));
}
template <class D, class A, class B> INLINE void simdgroup_multiply(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
    const simdgroup_matrix<B, 8, 8>& b, CALLED) {
  auto zero = make_filled_simdgroup_matrix<D, 8>(D(0));
  simdgroup_multiply_accumulate(d, a, b, zero, line_, column_);
}
template <class T> INLINE simdgroup_matrix<T, 8, 8> operator*(
    const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b) {
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}
} // namespace metal
