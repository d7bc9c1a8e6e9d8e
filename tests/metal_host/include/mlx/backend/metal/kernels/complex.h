// In place of MLX's: members for each address space would be the same member here. Only
// what other headers of MLX need to be compiled; kernels do not compute with it.
#pragma once
#include "mlx/backend/metal/kernels/bf16.h"

template <typename T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T real = 0, T imag = 0) : real(real), imag(imag) {}
};
using complex64_t = complex_t<float>;
