// Reads the memory: out = g RMSNorm(W_down (SiLU(W_gate q) * (W_up q)) + q) per head.
//
//   w_gate, w_up [B, n, H, P]  w_down [B, n, P, H]  queries [B, n, T, P]
//   gates [B, n, T]  norm_weight [P]  eps  out [B, T, nP]
//
// One threadgroup for each head of each document. It goes through the tokens in tiles
// of TOKENS; everything stands transposed, [unit, token]. A simdgroup owns 8 hidden
// units at a time, and then 8 rows of w_down, of which SPLITS simdgroups take a part of
// the columns each. Its parts of the weights stay in registers if they fit.
constexpr int SPLITS = P == 32 ? 4 : P == 64 ? 2 : 1;
constexpr int SIMDGROUPS = P / 8 * SPLITS;
constexpr int SLICES = (H / 8 + SIMDGROUPS - 1) / SIMDGROUPS;
constexpr int COLUMNS = H / SPLITS;
constexpr bool RESIDENT = SLICES == 1 && P <= 96;
constexpr int LD = TOKENS + 4; // rows of a tile start in different banks

threadgroup float values[P * LD]; // Q^T, then what is read
threadgroup float hidden[H * LD];

const int T = queries_shape[2];
const int heads = queries_shape[1];
const int index = threadgroup_position_in_grid.y;
const int batch = index / heads;
const int head = index % heads;
const int thread_index = thread_index_in_threadgroup;
const int simd = simdgroup_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;

const device float* gate_rows = w_gate + index * H * P;
const device float* up_rows = w_up + index * H * P;
const int row = simd % (P / 8) * 8;
const int split = simd / (P / 8);
const device float* down_rows =
    w_down + index * H * P + row * H + split * COLUMNS;

simdgroup_float8x8 gate_tiles[RESIDENT ? P / 8 : 1];
simdgroup_float8x8 up_tiles[RESIDENT ? P / 8 : 1];
simdgroup_float8x8 down_tiles[RESIDENT ? COLUMNS / 8 : 1];
const float epsilon = eps; // loaded once
float norm[P / 32];
if (simd < T) {
  for (int i = 0; i < P / 32; i++) {
    norm[i] = float(norm_weight[lane + 32 * i]);
  }
}

for (int start = 0; start < T; start += TOKENS) {
  const int tokens = min(TOKENS, T - start);
  for (int i = thread_index; i < TOKENS * P; i += 32 * SIMDGROUPS) {
    const int t = i / P;
    const int c = i % P;
    values[c * LD + t] =
        t < tokens ? queries[(index * T + start + t) * P + c] : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (int slice = 0; slice < SLICES; slice++) {
    const int unit = 8 * (simd + slice * SIMDGROUPS);
    if (unit < H) {
      simdgroup_float8x8 gate[TOKENS / 8];
      simdgroup_float8x8 up[TOKENS / 8];
      for (int j = 0; j < TOKENS / 8; j++) {
        gate[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
        up[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
      }
      for (int i = 0; i < P / 8; i++) {
        const int kept = RESIDENT ? i : 0;
        if (!RESIDENT || start == 0) {
          simdgroup_load(gate_tiles[kept], gate_rows + unit * P + 8 * i, P);
          simdgroup_load(up_tiles[kept], up_rows + unit * P + 8 * i, P);
        }
        for (int j = 0; j < TOKENS / 8; j++) {
          simdgroup_float8x8 query;
          simdgroup_load(query, values + 8 * i * LD + 8 * j, LD);
          simdgroup_multiply_accumulate(gate[j], gate_tiles[kept], query, gate[j]);
          simdgroup_multiply_accumulate(up[j], up_tiles[kept], query, up[j]);
        }
      }
      for (int j = 0; j < TOKENS / 8; j++) {
        for (int e = 0; e < 2; e++) {
          const float x = gate[j].thread_elements()[e];
          gate[j].thread_elements()[e] =
              x * allmem::sigmoid(x) * up[j].thread_elements()[e];
        }
        simdgroup_store(gate[j], hidden + unit * LD + 8 * j, LD);
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  simdgroup_float8x8 sums[TOKENS / 8];
  for (int j = 0; j < TOKENS / 8; j++) {
    sums[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
  }
  for (int i = 0; i < COLUMNS / 8; i++) {
    const int kept = RESIDENT ? i : 0;
    if (!RESIDENT || start == 0) {
      simdgroup_load(down_tiles[kept], down_rows + 8 * i, H);
    }
    for (int j = 0; j < TOKENS / 8; j++) {
      simdgroup_float8x8 unit;
      simdgroup_load(unit, hidden + (split * COLUMNS + 8 * i) * LD + 8 * j, LD);
      simdgroup_multiply_accumulate(sums[j], down_tiles[kept], unit, sums[j]);
    }
  }
  for (int turn = 0; turn < SPLITS; turn++) {
    if (turn == split) {
      for (int j = 0; j < TOKENS / 8; j++) {
        simdgroup_float8x8 value;
        simdgroup_load(value, values + row * LD + 8 * j, LD);
        for (int e = 0; e < 2; e++) {
          value.thread_elements()[e] += sums[j].thread_elements()[e];
        }
        simdgroup_store(value, values + row * LD + 8 * j, LD);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  for (int t = simd; t < tokens; t += SIMDGROUPS) {
    float squared = 0;
    for (int i = 0; i < P / 32; i++) {
      const float x = values[(lane + 32 * i) * LD + t];
      squared += x * x;
    }
    float gate = 0;
    if (lane == 0) {
      gate = gates[index * T + start + t];
    }
    const float scale = simd_broadcast(gate, 0) *
        metal::precise::rsqrt(simd_sum(squared) / P + epsilon);
    for (int i = 0; i < P / 32; i++) {
      const int c = lane + 32 * i;
      out[((batch * T + start + t) * heads + head) * P + c] =
          static_cast<InT>(scale * values[c * LD + t] * norm[i]);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
