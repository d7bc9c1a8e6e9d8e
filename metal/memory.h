// Shared by the memory's kernels. B documents, n heads of width P, H hidden units, T tokens.
#include <metal_simdgroup_matrix>

namespace allmem {

constant constexpr float RMS_EPS = 1e-6f;
constant constexpr float L2_EPS = 1e-5f;
constant constexpr float SQUARED_FLOOR = 1e-20f;
constant constexpr float CLIP_FLOOR = 1e-12f;

inline float sigmoid(float x) {
  return 1.0f / (1.0f + metal::precise::exp(-x));
}

inline float softplus(float x) {
  return metal::max(x, 0.0f) + log1p(metal::precise::exp(-metal::abs(x)));
}

// Of an 8x8 matrix a lane holds the elements (row, column) and (row, column + 1).
inline short tile_row(uint lane) {
  return (lane / 16) * 4 + (lane / 2) % 4;
}

inline short tile_column(uint lane) {
  return (lane / 8) % 2 * 4 + lane % 2 * 2;
}

// Of a matrix, what this lane holds.
inline float squared(thread metal::simdgroup_float8x8& matrix) {
  const float x = matrix.thread_elements()[0];
  const float y = matrix.thread_elements()[1];
  return x * x + y * y;
}

// tile[t][c] = rows[t][c] for TOKENS tokens, of which `valid` exist; the others are 0.
// The rows may be part of larger ones: what lies between two of them is `stride`, and
// between two of their elements `step`.
template <int TOKENS, int WIDTH, int LD>
inline void load_rows(
    threadgroup float* tile,
    const device float* rows,
    long stride,
    long step,
    int valid,
    uint thread_index,
    uint threads) {
  for (int i = thread_index; i < TOKENS * WIDTH; i += threads) {
    const int t = i / WIDTH;
    const int c = i % WIDTH;
    tile[t * LD + c] = t < valid ? rows[t * stride + c * step] : 0.0f;
  }
}

// The same in place of what every thread of the threadgroup has done with.
template <int TOKENS, int WIDTH, int LD>
inline void replace_rows(
    threadgroup float* tile,
    const device float* rows,
    long stride,
    long step,
    int valid,
    uint thread_index,
    uint threads) {
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
  load_rows<TOKENS, WIDTH, LD>(tile, rows, stride, step, valid, thread_index, threads);
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);
}

} // namespace allmem
