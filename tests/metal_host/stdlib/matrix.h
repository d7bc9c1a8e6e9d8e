// Matrices of a simdgroup. Each lane holds two neighbours of a row.
#pragma once
#include "simdgroup.h"

namespace metal {
template <class T, int COLUMNS, int ROWS = COLUMNS> struct simdgroup_matrix {
  static_assert(COLUMNS == 8 && ROWS == 8, "simdgroup matrices are 8x8");
  vec<T, 2> elements;
  INLINE simdgroup_matrix() { __builtin_memset(&elements, 0xff, sizeof elements); }
  INLINE explicit simdgroup_matrix(T diagonal) {
    for (int i = 0; i < 2; i++) elements[i] = row() == column() + i ? diagonal : T(0);
  }
  INLINE vec<T, 2>& thread_elements() { return elements; }
  INLINE const vec<T, 2>& thread_elements() const { return elements; }
  static INLINE int row(int lane = host::lane()) { return lane / 16 * 4 + lane / 2 % 4; }
  static INLINE int column(int lane = host::lane()) { return lane / 8 % 2 * 4 + lane % 2 * 2; }
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
} // namespace metal
namespace host {
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
  int r = simdgroup_float8x8::row(), c = simdgroup_float8x8::column() + i;
  return p + (origin.y + (transpose ? c : r)) * stride + origin.x + (transpose ? r : c);
}
// d = a b + c: products are added in order of k, in float, and rounded at the end.
template <class D, class A, class B, class C> struct MatrixOperands {
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
  UNCHECKED static void multiply(const Slot* operands, unsigned, Slot* results) {
    float a[8][8], b[8][8], sums[8][8];
    for (int lane = 0; lane < 32; lane++) {
      int r = simdgroup_float8x8::row(lane), c = simdgroup_float8x8::column(lane);
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
      int r = simdgroup_float8x8::row(lane), c = simdgroup_float8x8::column(lane);
      set_value(results[lane], vec<D, 2>{(D)sums[r][c], (D)sums[r][c + 1]});
    }
  }
};
} // namespace host
namespace metal {
template <class T> INLINE void simdgroup_load(
    simdgroup_matrix<T, 8, 8>& m, const T* p, ulong stride = 8, vec<ulong, 2> origin = 0,
    bool transpose = false, CALLED) {
  host::whole_simdgroup(SITE("simdgroup_load"));
  host::whole_accesses(true);
  for (int i = 0; i < 2; i++) {
    m.elements[i] = *host::element(p, stride, origin, transpose, i);
  }
  host::whole_accesses(false);
}
template <class T> INLINE void simdgroup_store(
    const simdgroup_matrix<T, 8, 8>& m, T* p, ulong stride = 8, vec<ulong, 2> origin = 0,
    bool transpose = false, CALLED) {
  host::whole_simdgroup(SITE("simdgroup_store"));
  host::whole_accesses(true);
  for (int i = 0; i < 2; i++) {
    *host::element(p, stride, origin, transpose, i) = m.elements[i];
  }
  host::whole_accesses(false);
}
template <class D, class A, class B, class C> INLINE void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
    const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c, CALLED) {
  using Operands = host::MatrixOperands<D, A, B, C>;
  Operands operands{a.elements, b.elements, c.elements};
  const host::Slot* results = host::simd_collective(
      &operands, sizeof operands, &Operands::multiply, SITE("simdgroup_multiply_accumulate"));
  d.elements = host::value<vec<D, 2>>(results[host::lane()]);
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
