// What the memory takes from T tokens: q, the rows (k, v, eta, m), the output gate.
//
//   q, k = L2(RMSNorm(SiLU(conv(x)))),  v = SiLU(conv(x))
//   eta = softplus(x + bias + rate_offset),  m, g = sigmoid(x + bias)
//
//   projected [B, T, 3nP + 5n]  conv_state [B, TAPS - 1, 3nP]  conv_weight [3nP, TAPS]
//   queries [B, n, T, P]  rows [B, n, T, 2P + 4]  gates [B, n, T]
//
// A threadgroup has one simdgroup each for q, k and v of one head. It walks through
// SEGMENT tokens, so that the convolution reads a token once and not TAPS times.
constexpr int CHANNELS = P / 32; // of a lane
const int T = projected_shape[1];
const int heads = rate_bias_shape[0] / 5;
const int width = 3 * heads * P + 5 * heads;
const int lane = thread_index_in_simdgroup;
const int part = simdgroup_index_in_threadgroup;
const int head = threadgroup_position_in_grid.y;
const int segments = (T + SEGMENT - 1) / SEGMENT;
const int batch = threadgroup_position_in_grid.z / segments;
const int start = threadgroup_position_in_grid.z % segments * SEGMENT;
const int end = min(T, start + SEGMENT);

const int channel = (part * heads + head) * P + lane;
const int first = batch * T * width;
const int first_state = batch * (TAPS - 1) * 3 * heads * P;

float taps[TAPS][CHANNELS];
float window[TAPS][CHANNELS];
for (int i = 0; i < CHANNELS; i++) {
  const int c = channel + 32 * i;
  for (int j = 0; j < TAPS; j++) {
    taps[j][i] = float(conv_weight[c * TAPS + j]);
  }
  for (int j = 0; j < TAPS - 1; j++) {
    const int t = start - (TAPS - 1) + j;
    window[j][i] = t < 0 ? float(conv_state[first_state + (t + TAPS - 1) * 3 * heads * P + c])
                         : float(projected[first + t * width + c]);
  }
}
float norm_weight[CHANNELS];
for (int i = 0; i < CHANNELS; i++) {
  norm_weight[i] = part == 0 ? float(q_norm[lane + 32 * i])
      : part == 1            ? float(k_norm[lane + 32 * i])
                             : 1.0f;
}

for (int t = start; t < end; t++) {
  float y[CHANNELS];
  for (int i = 0; i < CHANNELS; i++) {
    window[TAPS - 1][i] = float(projected[first + t * width + channel + 32 * i]);
    float x = 0;
    for (int j = 0; j < TAPS; j++) {
      x += taps[j][i] * window[j][i];
    }
    y[i] = x * allmem::sigmoid(x);
    for (int j = 0; j < TAPS - 1; j++) {
      window[j][i] = window[j + 1][i];
    }
  }
  const int token = (batch * heads + head) * T + t;
  if (part < 2) {
    float squared = 0;
    for (int i = 0; i < CHANNELS; i++) {
      squared += y[i] * y[i];
    }
    const float scale = metal::precise::rsqrt(simd_sum(squared) / P + allmem::RMS_EPS);
    squared = 0;
    for (int i = 0; i < CHANNELS; i++) {
      y[i] *= scale * norm_weight[i];
      squared += y[i] * y[i];
    }
    const float norm =
        metal::precise::sqrt(max(simd_sum(squared), allmem::SQUARED_FLOOR));
    for (int i = 0; i < CHANNELS; i++) {
      y[i] /= norm + allmem::L2_EPS;
    }
  } else if (lane < 5) {
    const int i = lane < 3 ? 3 * head + lane : lane * heads + head;
    const float x = float(projected[first + t * width + 3 * heads * P + i]) +
        float(rate_bias[i]);
    if (lane < 3) {
      rows[token * (2 * P + 4) + 2 * P + lane] = allmem::softplus(x + rate_offset[0]);
    } else if (lane == 3) {
      rows[token * (2 * P + 4) + 2 * P + 3] = allmem::sigmoid(x);
    } else {
      gates[token] = allmem::sigmoid(x);
    }
  }
  for (int i = 0; i < CHANNELS; i++) {
    const int c = lane + 32 * i;
    if (part == 0) {
      queries[token * P + c] = y[i];
    } else {
      rows[token * (2 * P + 4) + (part - 1) * P + c] = y[i];
    }
  }
}

if (end == T) {
  for (int j = 0; j < TAPS - 1; j++) {
    for (int i = 0; i < CHANNELS; i++) {
      new_conv_state[first_state + j * 3 * heads * P + channel + 32 * i] =
          static_cast<InT>(window[j][i]);
    }
  }
}
