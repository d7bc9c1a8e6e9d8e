// Ends a chunk, mu being the mean of its m:
//
//   M = mu M - G min(1, max_norm / ||G||),  W = scale * W + M
//   scale[r] = norm[r] / (||W[r]|| + 1e-5)
//
//   gate, up [B, n, H, P]  down [B, n, P, H]  decay_sum [B, n]
//   scales: s_gate, s_up [B, n, H]  s_down [B, n, P]; norms n_...: the same without B
//   squares [B, n, matrices, PARTS]: ||G||^2 in parts  limits: max_norm, number of tokens
//
// Where ALL is false, there is down alone.
//
// A simdgroup goes through whole rows, 32 elements at a time, H elements in all: one row
// of down, or H / P rows of gate or up.
constexpr int SIMDGROUPS = 8;
constexpr int WRITTEN = ALL ? 3 : 1;

const int heads = threadgroups_per_grid.y / WRITTEN;
const int head = threadgroup_position_in_grid.y % heads;
const int number = threadgroup_position_in_grid.y / heads;
const int which = number + 3 - WRITTEN; // gate, up, down
const int index = threadgroup_position_in_grid.z * heads + head;
const int part = threadgroup_position_in_grid.x * SIMDGROUPS +
    simdgroup_index_in_threadgroup;
const int lane = thread_index_in_simdgroup;

const int columns = which == 2 ? H : P;
const int rows = H * P / columns;
const int matrix = index * H * P;
const device float* w = (which == 0 ? w_gate : which == 1 ? w_up : w_down) + matrix;
const device float* m = (which == 0 ? m_gate : which == 1 ? m_up : m_down) + matrix;
const device float* g = (which == 0 ? g_gate : which == 1 ? g_up : g_down) + matrix;
device float* w_out = (which == 0 ? w_gate_out : which == 1 ? w_up_out : w_down_out) + matrix;
device float* m_out = (which == 0 ? m_gate_out : which == 1 ? m_up_out : m_down_out) + matrix;
const device float* scales =
    (which == 0 ? s_gate : which == 1 ? s_up : s_down) + index * rows;
device float* scales_out =
    (which == 0 ? s_gate_out : which == 1 ? s_up_out : s_down_out) + index * rows;
const device float* norms =
    (which == 0 ? n_gate : which == 1 ? n_up : n_down) + head * rows;

float squared = 0;
for (int i = lane; i < PARTS; i += 32) {
  squared += squares[(WRITTEN * index + number) * PARTS + i];
}
squared = simd_sum(squared);
float clip = 0;
float mu = 0;
if (lane == 0) {
  clip = min(
      1.0f, limits[0] / metal::precise::sqrt(max(squared, allmem::CLIP_FLOOR)));
  mu = decay_sum[index] / limits[1];
}
clip = simd_broadcast(clip, 0);
mu = simd_broadcast(mu, 0);

for (int i = 0; i < H / columns; i++) {
  const int row = part * (H / columns) + i;
  float scale = 0;
  if (lane == 0) {
    scale = scales[row];
  }
  scale = simd_broadcast(scale, 0);
  squared = 0;
  for (int at = row * columns + lane; at < (row + 1) * columns; at += 32) {
    const float momentum = mu * m[at] - clip * g[at];
    const float weight = scale * w[at] + momentum;
    m_out[at] = momentum;
    w_out[at] = weight;
    squared += weight * weight;
  }
  const float norm = metal::precise::sqrt(simd_sum(squared));
  if (lane == 0) {
    scales_out[row] = norms[row] / (norm + allmem::L2_EPS);
  }
}
