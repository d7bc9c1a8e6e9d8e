// Adds the gradient of T tokens to G, at U = scale * W, and their m to the decay.
//
//   Hg = K Ug^T, Hi = K Uu^T, A = SiLU(Hg) * Hi, GA = -V Ud
//   G_gate += (GA * Hi * SiLU'(Hg) * eta_gate)^T K
//   G_up   += (GA * SiLU(Hg) * eta_up)^T K
//   G_down += -V^T (A * eta_down)
//
//   w_gate, w_up, g_gate, g_up [B, n, H, P]  s_gate, s_up [B, n, H]
//   w_down, g_down [B, n, P, H]  s_down [B, n, P]  rows (k, v, eta, m) [B, n, T, 2P + 4]
//
// A threadgroup owns UNITS hidden units of one head: its parts of the three gradients
// need its parts of the three matrices only. A simdgroup owns 8 units, for which it
// holds Hg, Hi and GA of TOKENS tokens, transposed, in registers. K does not fit beside
// V, and is loaded twice. A sum runs over the tokens in order, whatever T is, so that it
// does not depend on how the document was cut.
constexpr int ROW = 2 * P + 4;
constexpr int LD = P + (P == 128 ? 0 : 4); // rows of a tile start in different banks
constexpr int TILES = TOKENS / 8;
constexpr int THREADS = 4 * UNITS;

threadgroup float tile[TOKENS * LD];
threadgroup float rates[TOKENS * 4];
threadgroup float down_scales[P];

const int T = rows_shape[2];
const int index = threadgroup_position_in_grid.y;
const int thread_index = thread_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;
const int unit = threadgroup_position_in_grid.x * UNITS +
    8 * simdgroup_index_in_threadgroup;
const int matrix = index * H * P;
const int by_unit = matrix + unit * P; // rows of gate and up
const int by_column = matrix + unit; // columns of down
const short own_unit = allmem::tile_row(lane);
const short own_token = allmem::tile_column(lane);

const float gate_scale = s_gate[index * H + unit + own_unit];
const float up_scale = s_up[index * H + unit + own_unit];
for (int i = thread_index; i < P; i += THREADS) {
  down_scales[i] = s_down[index * P + i];
}
const bool counts = threadgroup_position_in_grid.x == 0 && thread_index == 0;
float decay_sum = counts ? decay[index] : 0.0f;

for (int start = 0; start < T; start += TOKENS) {
  const device float* block = rows + (index * T + start) * ROW;
  const int valid = min(TOKENS, T - start);
  // Of device memory too: a tile reads the gradients that the one before it wrote.
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  allmem::stage<TOKENS, P, ROW, LD>(tile, block, valid, thread_index, THREADS);
  allmem::stage<TOKENS, 4, ROW, 4>(rates, block + 2 * P, valid, thread_index, THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  if (counts) {
    for (int t = 0; t < valid; t++) {
      decay_sum += rates[4 * t + 3];
    }
  }
  simdgroup_float8x8 gate[TILES];
  simdgroup_float8x8 up[TILES];
  simdgroup_float8x8 down[TILES];
  for (int j = 0; j < TILES; j++) {
    gate[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    up[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
    down[j] = make_filled_simdgroup_matrix<float, 8>(0.0f);
  }
  for (int i = 0; i < P; i += 8) {
    simdgroup_float8x8 gate_weight, up_weight;
    simdgroup_load(gate_weight, w_gate + by_unit + i, P);
    simdgroup_load(up_weight, w_up + by_unit + i, P);
    for (int j = 0; j < TILES; j++) {
      simdgroup_float8x8 key;
      simdgroup_load(key, tile + 8 * j * LD + i, LD, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(gate[j], gate_weight, key, gate[j]);
      simdgroup_multiply_accumulate(up[j], up_weight, key, up[j]);
    }
  }

  threadgroup_barrier(mem_flags::mem_threadgroup);
  allmem::stage<TOKENS, P, ROW, LD>(tile, block + P, valid, thread_index, THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = 0; i < P; i += 8) {
    simdgroup_float8x8 weight;
    simdgroup_load(weight, w_down + by_column + i * H, H, ulong2(0, 0), true);
    for (int e = 0; e < 2; e++) {
      weight.thread_elements()[e] *= down_scales[i + own_token + e];
    }
    for (int j = 0; j < TILES; j++) {
      simdgroup_float8x8 value;
      simdgroup_load(value, tile + 8 * j * LD + i, LD, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(down[j], weight, value, down[j]);
    }
  }

  for (int j = 0; j < TILES; j++) {
    for (int e = 0; e < 2; e++) {
      const threadgroup float* rate = rates + 4 * (8 * j + own_token + e);
      const float x = gate[j].thread_elements()[e] * gate_scale;
      const float in = up[j].thread_elements()[e] * up_scale;
      const float d_hidden = -down[j].thread_elements()[e];
      const float s = allmem::sigmoid(x);
      gate[j].thread_elements()[e] = rate[0] * d_hidden * in * s * (1 + x * (1 - s));
      up[j].thread_elements()[e] = rate[1] * d_hidden * x * s;
      down[j].thread_elements()[e] = -rate[2] * x * s * in;
    }
  }

  const device float* from = start == 0 ? g_down : down_out;
  for (int i = 0; i < P; i += 8) {
    simdgroup_float8x8 sum;
    simdgroup_load(sum, from + by_column + i * H, H, ulong2(0, 0), true);
    for (int j = 0; j < TILES; j++) {
      simdgroup_float8x8 value;
      simdgroup_load(value, tile + 8 * j * LD + i, LD);
      simdgroup_multiply_accumulate(sum, down[j], value, sum);
    }
    simdgroup_store(sum, down_out + by_column + i * H, H, ulong2(0, 0), true);
  }

  threadgroup_barrier(mem_flags::mem_threadgroup);
  allmem::stage<TOKENS, P, ROW, LD>(tile, block, valid, thread_index, THREADS);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const device float* gate_from = start == 0 ? g_gate : gate_out;
  const device float* up_from = start == 0 ? g_up : up_out;
  for (int i = 0; i < P; i += 8) {
    simdgroup_float8x8 gate_sum, up_sum;
    simdgroup_load(gate_sum, gate_from + by_unit + i, P);
    simdgroup_load(up_sum, up_from + by_unit + i, P);
    for (int j = 0; j < TILES; j++) {
      simdgroup_float8x8 key;
      simdgroup_load(key, tile + 8 * j * LD + i, LD);
      simdgroup_multiply_accumulate(gate_sum, gate[j], key, gate_sum);
      simdgroup_multiply_accumulate(up_sum, up[j], key, up_sum);
    }
    simdgroup_store(gate_sum, gate_out + by_unit + i, P);
    simdgroup_store(up_sum, up_out + by_unit + i, P);
  }
}
if (counts) {
  decay_out[index] = decay_sum;
}
