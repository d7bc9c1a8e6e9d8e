// What a lane does for the matrices of its simdgroup.
#pragma once
#include "simdgroup.h"

namespace host {
using namespace metal;
INLINE int matrix_row(int of = lane()) { return of / 16 * 4 + of / 2 % 4; }
INLINE int matrix_column(int of = lane()) { return of / 8 % 2 * 4 + of % 2 * 2; }
template <class T> INLINE vec<T, 2> matrix_undefined() {
  vec<T, 2> m;
  __builtin_memset(&m, 0xff, sizeof m);
  return m;
}
template <class T> INLINE vec<T, 2> matrix_of_diagonal(T diagonal) {
  vec<T, 2> m{};
  for (int i = 0; i < 2; i++) m[i] = matrix_row() == matrix_column() + i ? diagonal : T(0);
  return m;
}
// All lanes of a simdgroup take part in every operation on its matrices.
INLINE void whole_simdgroup(Site site) {
  char none = 0;
  if (simd_exchange(&none, 1, site).active != 0xffffffff) report("partial simdgroup", site);
}
// Which lane loads or stores which element, Metal does not say: to check mode, accesses
// between two of these are the whole simdgroup's.
INLINE void whole_accesses([[maybe_unused]] bool begin) {
#if __has_feature(thread_sanitizer)
  access_as_whole(begin);
#endif
}
template <class P>
INLINE P* element(P* p, ulong stride, vec<ulong, 2> origin, bool transpose, int i) {
  int r = matrix_row(), c = matrix_column() + i;
  return p + (origin.y + (transpose ? c : r)) * stride + origin.x + (transpose ? r : c);
}
template <class T> INLINE vec<T, 2> matrix_load(
    const T* p, ulong stride, vec<ulong, 2> origin, bool transpose, Site site) {
  vec<T, 2> m{};
  whole_simdgroup(site);
  whole_accesses(true);
  for (int i = 0; i < 2; i++) m[i] = *element(p, stride, origin, transpose, i);
  whole_accesses(false);
  return m;
}
template <class T> INLINE void matrix_store(
    vec<T, 2> m, T* p, ulong stride, vec<ulong, 2> origin, bool transpose, Site site) {
  whole_simdgroup(site);
  whole_accesses(true);
  for (int i = 0; i < 2; i++) *element(p, stride, origin, transpose, i) = m[i];
  whole_accesses(false);
}
// d = a b + c: products are added in order of k, in float, and rounded at the end.
template <class D, class A, class B, class C> struct MatrixOperands {
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
  UNCHECKED static void multiply(const Slot* operands, unsigned, Slot* results) {
    float a[8][8], b[8][8], sums[8][8];
    for (int lane = 0; lane < 32; lane++) {
      int r = matrix_row(lane), c = matrix_column(lane);
      MatrixOperands x = value<MatrixOperands>(operands[lane]);
      for (int i = 0; i < 2; i++) {
        a[r][c + i] = (float)x.a[i];
        b[r][c + i] = (float)x.b[i];
        sums[r][c + i] = (float)x.c[i];
      }
    }
    for (int r = 0; r < 8; r++) {
      for (int k = 0; k < 8; k++) {
        for (int c = 0; c < 8; c++) sums[r][c] = fma(a[r][k], b[k][c], sums[r][c]);
      }
    }
    for (int lane = 0; lane < 32; lane++) {
      int r = matrix_row(lane), c = matrix_column(lane);
      set_value(results[lane], vec<D, 2>{(D)sums[r][c], (D)sums[r][c + 1]});
    }
  }
};
template <class D, class A, class B, class C> INLINE vec<D, 2> matrix_multiply_accumulate(
    vec<A, 2> a, vec<B, 2> b, vec<C, 2> c, Site site) {
  using Operands = MatrixOperands<D, A, B, C>;
  Operands operands{a, b, c};
  return value<vec<D, 2>>(
      simd_collective(&operands, sizeof operands, &Operands::multiply, site)[lane()]);
}
} // namespace host
