// Reads the memory: out = g RMSNorm(W_down (SiLU(W_gate q) * (W_up q)) + q) per head.
//
//   w_gate, w_up [B, n, H, P]  w_down [B, n, P, H]  queries [B, n, T, P]
//   gates [B, n, T]  norm_weight [P]  eps  out [B, T, nP]
//
// Where ALL is false, gate and up are never written: they are W0's, [n, H, P].
//
// queries and gates may be parts of larger arrays. A threadgroup reads TOKENS tokens
// for one head. In turn, a simdgroup owns 8 hidden units, then 8 rows of w_down: what it
// multiplies with stands transposed, [unit, token]. A token's sums are the same
// whichever tokens it shares a threadgroup with.
constexpr int SIMDGROUPS = P == 128 ? 8 : P / 8;
constexpr int THREADS = 32 * SIMDGROUPS;
constexpr int TILES = TOKENS / 8;
constexpr int LD = P + 4; // rows of a tile start in different banks
constexpr int LD_HIDDEN = H + 4;

threadgroup float values[TOKENS * LD]; // Q, then what is read
threadgroup float hidden[TOKENS * LD_HIDDEN];
threadgroup float norm[P];

const int T = queries_shape[2];
const int heads = queries_shape[1];
const int index = threadgroup_position_in_grid.y;
const int batch = index / heads;
const int head = index % heads;
const int start = threadgroup_position_in_grid.z * TOKENS;
const int tokens = min(TOKENS, T - start);
const int thread_index = thread_index_in_threadgroup;
const int simd = simdgroup_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;
const int initial = (ALL ? index : head) * H * P;
const device float* gate_rows = w_gate + initial;
const device float* up_rows = w_up + initial;
const device float* down_rows = w_down + index * H * P;

allmem::load_rows<TOKENS, P, LD>(
    values,
    queries + batch * queries_strides[0] + head * queries_strides[1] +
        start * queries_strides[2],
    queries_strides[2],
    queries_strides[3],
    tokens,
    thread_index,
    THREADS);
for (int i = thread_index; i < P; i += THREADS) {
  norm[i] = float(norm_weight[i]);
}
threadgroup_barrier(mem_flags::mem_threadgroup);

for (int unit = 8 * simd; unit < H; unit += 8 * SIMDGROUPS) {
  simdgroup_float8x8 gate[TILES];
  simdgroup_float8x8 up[TILES];
#pragma clang loop unroll(full)
  for (int j = 0; j < TILES; j++) {
    gate[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    up[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
  }
  for (int i = 0; i < P; i += 8) {
    simdgroup_float8x8 gate_weight, up_weight;
    simdgroup_load(gate_weight, gate_rows + unit * P + i, P);
    simdgroup_load(up_weight, up_rows + unit * P + i, P);
#pragma clang loop unroll(full)
    for (int j = 0; j < TILES; j++) {
      simdgroup_float8x8 query;
      simdgroup_load(query, values + 8 * j * LD + i, LD, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(gate[j], gate_weight, query, gate[j]);
      simdgroup_multiply_accumulate(up[j], up_weight, query, up[j]);
    }
  }
#pragma clang loop unroll(full)
  for (int j = 0; j < TILES; j++) {
#pragma clang loop unroll(full)
    for (int e = 0; e < 2; e++) {
      const float x = gate[j].thread_elements()[e];
      gate[j].thread_elements()[e] =
          x * allmem::sigmoid(x) * up[j].thread_elements()[e];
    }
    simdgroup_store(
        gate[j], hidden + 8 * j * LD_HIDDEN + unit, LD_HIDDEN, ulong2(0, 0), true);
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

for (int row = 8 * simd; row < P; row += 8 * SIMDGROUPS) {
  simdgroup_float8x8 sums[TILES];
#pragma clang loop unroll(full)
  for (int j = 0; j < TILES; j++) {
    sums[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
  }
  for (int i = 0; i < H; i += 8) {
    simdgroup_float8x8 weight;
    simdgroup_load(weight, down_rows + row * H + i, H);
#pragma clang loop unroll(full)
    for (int j = 0; j < TILES; j++) {
      simdgroup_float8x8 unit;
      simdgroup_load(
          unit, hidden + 8 * j * LD_HIDDEN + i, LD_HIDDEN, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(sums[j], weight, unit, sums[j]);
    }
  }
#pragma clang loop unroll(full)
  for (int j = 0; j < TILES; j++) {
    simdgroup_float8x8 value;
    simdgroup_load(value, values + 8 * j * LD + row, LD, ulong2(0, 0), true);
#pragma clang loop unroll(full)
    for (int e = 0; e < 2; e++) {
      value.thread_elements()[e] += sums[j].thread_elements()[e];
    }
    simdgroup_store(value, values + 8 * j * LD + row, LD, ulong2(0, 0), true);
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);

const float epsilon = eps[0];
for (int t = simd; t < tokens; t += SIMDGROUPS) {
  const threadgroup float* value = values + t * LD;
  float squared = 0;
  for (int i = lane; i < P; i += 32) {
    squared += value[i] * value[i];
  }
  float gate = 0;
  if (lane == 0) {
    gate = gates
        [batch * gates_strides[0] + head * gates_strides[1] +
         (start + t) * gates_strides[2]];
  }
  const float scale = simd_broadcast(gate, 0) *
      metal::precise::rsqrt(simd_sum(squared) / P + epsilon);
  for (int i = lane; i < P; i += 32) {
    out[((batch * T + start + t) * heads + head) * P + i] =
        static_cast<InT>(scale * value[i] * norm[i]);
  }
}
