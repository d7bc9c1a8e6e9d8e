// Ends a chunk, for one of the three matrices of one head:
//
//   M = mu M - G min(1, max_norm / ||G||),  W = scale * W + M,  G = 0
//   scale[r] = norm[r] / (||W[r]|| + 1e-5)
//
//   gate, up [B, n, H, P]  down [B, n, P, H]  mu [B, n]
//   scales: s_gate, s_up [B, n, H]  s_down [B, n, P]; norms n_...: the same without B
//
// A simdgroup goes through whole rows, 32 elements at a time. G is needed twice: its
// elements stay in registers if they fit.
constexpr int SIMDGROUPS = 16;
constexpr int PIECES = H * P / (32 * SIMDGROUPS); // of 32 elements, of a simdgroup
constexpr bool RESIDENT = PIECES <= 32;

threadgroup float partial[SIMDGROUPS];

const int heads = mu_shape[1];
const int index = threadgroup_position_in_grid.y;
const int head = index % heads;
const int which = threadgroup_position_in_grid.x; // gate, up, down
const int simd = simdgroup_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;

const int rows = which == 2 ? P : H;
const int columns = which == 2 ? H : P;
const int matrix = index * H * P;
const device float* w = (which == 0 ? w_gate : which == 1 ? w_up : w_down) + matrix;
const device float* m = (which == 0 ? m_gate : which == 1 ? m_up : m_down) + matrix;
const device float* g = (which == 0 ? g_gate : which == 1 ? g_up : g_down) + matrix;
device float* w_out = (which == 0 ? w_gate_out : which == 1 ? w_up_out : w_down_out) + matrix;
device float* m_out = (which == 0 ? m_gate_out : which == 1 ? m_up_out : m_down_out) + matrix;
device float* g_out = (which == 0 ? g_gate_out : which == 1 ? g_up_out : g_down_out) + matrix;
const device float* scales =
    (which == 0 ? s_gate : which == 1 ? s_up : s_down) + index * rows;
device float* scales_out =
    (which == 0 ? s_gate_out : which == 1 ? s_up_out : s_down_out) + index * rows;
const device float* norms =
    (which == 0 ? n_gate : which == 1 ? n_up : n_down) + head * rows;

const int pieces = columns / 32; // of a row
float kept[RESIDENT ? PIECES : 1];
float squared = 0;
for (int i = 0; i < PIECES; i++) {
  const int row = simd + SIMDGROUPS * (i / pieces);
  const float x = g[row * columns + 32 * (i % pieces) + lane];
  kept[RESIDENT ? i : 0] = x;
  squared += x * x;
}
squared = simd_sum(squared);
if (lane == 0) {
  partial[simd] = squared;
}
threadgroup_barrier(mem_flags::mem_threadgroup);
squared = 0;
for (int i = 0; i < SIMDGROUPS; i++) {
  squared += partial[i];
}
const float clip = min(
    1.0f, max_norm / metal::precise::sqrt(max(squared, allmem::CLIP_FLOOR)));
float decay = 0;
if (lane == 0) {
  decay = mu[index];
}
decay = simd_broadcast(decay, 0);

for (int i = 0; i < PIECES; i += pieces) {
  const int row = simd + SIMDGROUPS * (i / pieces);
  float scale = 0;
  if (lane == 0) {
    scale = scales[row];
  }
  scale = simd_broadcast(scale, 0);
  squared = 0;
  for (int j = 0; j < pieces; j++) {
    const int at = row * columns + 32 * j + lane;
    const float grad = RESIDENT ? kept[i + j] : g[at];
    const float momentum = decay * m[at] - clip * grad;
    const float weight = scale * w[at] + momentum;
    m_out[at] = momentum;
    w_out[at] = weight;
    g_out[at] = 0;
    squared += weight * weight;
  }
  const float norm = metal::precise::sqrt(simd_sum(squared));
  if (lane == 0) {
    scales_out[row] = norms[row] / (norm + allmem::L2_EPS);
  }
}
