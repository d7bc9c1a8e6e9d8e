// Adds the gradient of T tokens to G, at U = scale * W, and their m to decay_sum. At the
// start of a chunk OPEN is false, and both are 0: nothing is loaded. Where ALL is false,
// only down is written: it alone has a G, which does not depend on it, and gate and up
// are those of W0, [n, H, P] and without scales.
//
//   Hg = K Ug^T, Hi = K Uu^T, A = SiLU(Hg) * Hi, GA = -V Ud
//   G_gate += (GA * Hi * SiLU'(Hg) * eta_gate)^T K
//   G_up   += (GA * SiLU(Hg) * eta_up)^T K
//   G_down += -V^T (A * eta_down)
//
//   w_gate, w_up, g_gate, g_up [B, n, H, P]  s_gate, s_up [B, n, H]
//   w_down, g_down [B, n, P, H]  s_down [B, n, P]  rows (k, v, eta, m) [B, n, T, 2P + 4]
//   squares [B, n, matrices, H / 8]: sums of squares of the new G, for each 8 hidden units
//
// rows may be part of a larger array. A threadgroup owns UNITS hidden units of one head:
// its parts of the three gradients need its parts of the three matrices only. A
// simdgroup owns 8 units, for which it holds Hg, Hi and GA of TOKENS tokens, transposed,
// in registers. K does not fit beside V, nor all of either if they are wide: COLUMNS of
// one are loaded at a time. A sum runs over the tokens in order, whatever T is, so that
// it does not depend on how the document was cut.
constexpr int COLUMNS = P == 128 ? 64 : P;
constexpr int LD = COLUMNS + 4; // rows of a tile start in different banks
constexpr int TILES = TOKENS / 8;
constexpr int THREADS = 4 * UNITS;
constexpr int WRITTEN = ALL ? 3 : 1;

threadgroup float tile[TOKENS * LD];
threadgroup float rates[TOKENS * 4];
threadgroup float down_scales[P];

const int T = rows_shape[2];
const int heads = rows_shape[1];
const long stride = rows_strides[2];
const long step = rows_strides[3];
const int index = threadgroup_position_in_grid.y;
const int thread_index = thread_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;
const int unit = threadgroup_position_in_grid.x * UNITS +
    8 * simdgroup_index_in_threadgroup;
const int by_unit = ((ALL ? index : index % heads) * H + unit) * P; // rows of gate and up
const int by_column = index * H * P + unit; // columns of down
const short own_unit = allmem::tile_row(lane);
const short own_token = allmem::tile_column(lane);

float gate_scale = 1;
float up_scale = 1;
if (ALL) {
  gate_scale = s_gate[index * H + unit + own_unit];
  up_scale = s_up[index * H + unit + own_unit];
  for (int i = thread_index; i < P; i += THREADS) {
    down_scales[i] = s_down[index * P + i];
  }
}
const bool counts = threadgroup_position_in_grid.x == 0 && thread_index == 0;
float total = OPEN && counts ? decay_sum[index] : 0.0f;
float gate_squared, up_squared, down_squared;

for (int start = 0; start < T; start += TOKENS) {
  const device float* keys = rows + index / heads * rows_strides[0] +
      index % heads * rows_strides[1] + start * stride;
  const device float* values = keys + P * step;
  const int valid = min(TOKENS, T - start);
  // A tile reads the gradients that the one before it wrote.
  threadgroup_barrier(mem_flags::mem_device);
  allmem::load_rows<TOKENS, 4, 4>(
      rates, keys + 2 * P * step, stride, step, valid, thread_index, THREADS);

  simdgroup_float8x8 gate[TILES];
  simdgroup_float8x8 up[TILES];
  simdgroup_float8x8 down[TILES];
#pragma clang loop unroll(full)
  for (int j = 0; j < TILES; j++) {
    gate[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    up[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    down[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
  }
  for (int first = 0; first < P; first += COLUMNS) {
    allmem::replace_rows<TOKENS, COLUMNS, LD>(
        tile, keys + first * step, stride, step, valid, thread_index, THREADS);
    for (int i = 0; i < COLUMNS; i += 8) {
      simdgroup_float8x8 gate_weight, up_weight;
      simdgroup_load(gate_weight, w_gate + by_unit + first + i, P);
      simdgroup_load(up_weight, w_up + by_unit + first + i, P);
#pragma clang loop unroll(full)
      for (int j = 0; j < TILES; j++) {
        simdgroup_float8x8 key;
        simdgroup_load(key, tile + 8 * j * LD + i, LD, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(gate[j], gate_weight, key, gate[j]);
        simdgroup_multiply_accumulate(up[j], up_weight, key, up[j]);
      }
    }
  }
  if (counts) {
    for (int t = 0; t < valid; t++) {
      total += rates[4 * t + 3];
    }
  }

  for (int first = 0; ALL && first < P; first += COLUMNS) {
    allmem::replace_rows<TOKENS, COLUMNS, LD>(
        tile, values + first * step, stride, step, valid, thread_index, THREADS);
    for (int i = 0; i < COLUMNS; i += 8) {
      simdgroup_float8x8 weight;
      simdgroup_load(
          weight, w_down + by_column + (first + i) * H, H, ulong2(0, 0), true);
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; e++) {
        weight.thread_elements()[e] *= down_scales[first + i + own_token + e];
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < TILES; j++) {
        simdgroup_float8x8 value;
        simdgroup_load(value, tile + 8 * j * LD + i, LD, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(down[j], weight, value, down[j]);
      }
    }
  }

#pragma clang loop unroll(full)
  for (int j = 0; j < TILES; j++) {
#pragma clang loop unroll(full)
    for (int e = 0; e < 2; e++) {
      const threadgroup float* rate = rates + 4 * (8 * j + own_token + e);
      const float x = gate[j].thread_elements()[e] * gate_scale;
      const float in = up[j].thread_elements()[e] * up_scale;
      const float d_hidden = -down[j].thread_elements()[e];
      const float s = allmem::sigmoid(x);
      if (ALL) {
        gate[j].thread_elements()[e] = rate[0] * d_hidden * in * s * (1 + x * (1 - s));
        up[j].thread_elements()[e] = rate[1] * d_hidden * x * s;
      }
      down[j].thread_elements()[e] = -rate[2] * x * s * in;
    }
  }

  gate_squared = up_squared = down_squared = 0; // those of the last tile count
  const bool adds = OPEN || start > 0;
  const device float* down_from = start == 0 ? g_down : down_out;
  for (int first = P - COLUMNS; first >= 0; first -= COLUMNS) {
    if (!ALL || first < P - COLUMNS) { // else the last columns are still there
      allmem::replace_rows<TOKENS, COLUMNS, LD>(
          tile, values + first * step, stride, step, valid, thread_index, THREADS);
    }
    for (int i = 0; i < COLUMNS; i += 8) {
      const int at = by_column + (first + i) * H;
      simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8>(0.0f);
      if (adds) {
        simdgroup_load(sum, down_from + at, H, ulong2(0, 0), true);
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < TILES; j++) {
        simdgroup_float8x8 value;
        simdgroup_load(value, tile + 8 * j * LD + i, LD);
        simdgroup_multiply_accumulate(sum, down[j], value, sum);
      }
      simdgroup_store(sum, down_out + at, H, ulong2(0, 0), true);
      down_squared += allmem::squared(sum);
    }
  }

  const device float* gate_from = start == 0 ? g_gate : gate_out;
  const device float* up_from = start == 0 ? g_up : up_out;
  for (int first = 0; ALL && first < P; first += COLUMNS) {
    allmem::replace_rows<TOKENS, COLUMNS, LD>(
        tile, keys + first * step, stride, step, valid, thread_index, THREADS);
    for (int i = 0; i < COLUMNS; i += 8) {
      const int at = by_unit + first + i;
      simdgroup_float8x8 gate_sum = make_filled_simdgroup_matrix<float, 8>(0.0f);
      simdgroup_float8x8 up_sum = make_filled_simdgroup_matrix<float, 8>(0.0f);
      if (adds) {
        simdgroup_load(gate_sum, gate_from + at, P);
        simdgroup_load(up_sum, up_from + at, P);
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < TILES; j++) {
        simdgroup_float8x8 key;
        simdgroup_load(key, tile + 8 * j * LD + i, LD);
        simdgroup_multiply_accumulate(gate_sum, gate[j], key, gate_sum);
        simdgroup_multiply_accumulate(up_sum, up[j], key, up_sum);
      }
      simdgroup_store(gate_sum, gate_out + at, P);
      simdgroup_store(up_sum, up_out + at, P);
      gate_squared += allmem::squared(gate_sum);
      up_squared += allmem::squared(up_sum);
    }
  }
}

if (ALL) {
  gate_squared = simd_sum(gate_squared);
  up_squared = simd_sum(up_squared);
}
down_squared = simd_sum(down_squared);
if (lane == 0) {
  device float* own = squares + WRITTEN * index * (H / 8) + unit / 8;
  if (ALL) {
    own[0] = gate_squared;
    own[H / 8] = up_squared;
  }
  own[(WRITTEN - 1) * (H / 8)] = down_squared;
}
if (counts) {
  decay_sum_out[index] = total;
}
