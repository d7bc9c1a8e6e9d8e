// Matrices of a simdgroup for text that is compiled and not run: values that unknown
// functions take and return, as the functions of Apple's compiler do. The address of a
// matrix is taken only where the kernel takes it.
#pragma once
#include "simdgroup.h"

namespace host {
using namespace metal;
#define OPAQUE __attribute__((convergent))
template <class T> OPAQUE vec<T, 2> matrix_of_diagonal(T diagonal);
template <class T> OPAQUE vec<T, 2> matrix_load(
    const T* p, ulong stride, vec<ulong, 2> origin, bool transpose, Site site);
template <class T> OPAQUE void matrix_store(
    vec<T, 2> m, T* p, ulong stride, vec<ulong, 2> origin, bool transpose, Site site);
template <class D, class A, class B, class C> OPAQUE vec<D, 2> matrix_multiply_accumulate(
    vec<A, 2> a, vec<B, 2> b, vec<C, 2> c, Site site);
#undef OPAQUE
template <class T> INLINE vec<T, 2> matrix_undefined() {
  vec<T, 2> m;
  return m;
}
} // namespace host
