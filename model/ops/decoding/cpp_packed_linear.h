// A linear map whose weights are packed once and then read in one stream; contracts in kernels.py.
//
// What limits it with few rows is the memory that the weights come from. They lie in panels of kPanel output features,
// [panel][input feature][kPanel], as float, bfloat16 or int8, so that a panel is one run of addresses; products and sums
// are float. Included by cpp_decoding.cpp.

#pragma once

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpp_vectors.h"

namespace {

using at::Tensor;

constexpr int64_t kPanel = 2 * kLanes;
constexpr int kRows = 6;  // rows at a time: 12 sums, 2 weights and 1 input fill AVX2's registers

template <typename E>
inline void widen(const E* from, Vector& low, Vector& high) {
  low = load_as_float(from);
  high = load_as_float(from + kLanes);
}

// Sums of ROWS rows over one panel, into out[row][kPanel]. UNROLL chains of sums hide the latency of few rows.
template <typename E, int ROWS, int UNROLL>
inline void multiply_panel(const float* x, int64_t width, const E* panel, float* out) {
  Vector sums[UNROLL][ROWS][2] = {};
  int64_t k = 0;
  for (; k + UNROLL <= width; k += UNROLL) {
#pragma GCC unroll 4
    for (int u = 0; u < UNROLL; ++u) {
      Vector low, high;
      widen(panel + (k + u) * kPanel, low, high);
#pragma GCC unroll 6
      for (int row = 0; row < ROWS; ++row) {
        const Vector value = spread(x[row * width + k + u]);
        sums[u][row][0] += value * low;
        sums[u][row][1] += value * high;
      }
    }
  }
  for (; k < width; ++k) {
    Vector low, high;
    widen(panel + k * kPanel, low, high);
    for (int row = 0; row < ROWS; ++row) {
      sums[0][row][0] += x[row * width + k] * low;
      sums[0][row][1] += x[row * width + k] * high;
    }
  }
  for (int row = 0; row < ROWS; ++row) {
    for (int u = 1; u < UNROLL; ++u)
      for (int half = 0; half < 2; ++half) sums[0][row][half] += sums[u][row][half];
    store(out + row * kPanel, sums[0][row][0]);
    store(out + row * kPanel + kLanes, sums[0][row][1]);
  }
}

template <typename E>
void multiply_rows(int rows, const float* x, int64_t width, const E* panel, float* out) {
  switch (rows) {
    case 1: return multiply_panel<E, 1, 4>(x, width, panel, out);
    case 2: return multiply_panel<E, 2, 2>(x, width, panel, out);
    case 3: return multiply_panel<E, 3, 2>(x, width, panel, out);
    case 4: return multiply_panel<E, 4, 1>(x, width, panel, out);
    case 5: return multiply_panel<E, 5, 1>(x, width, panel, out);
    default: return multiply_panel<E, kRows, 1>(x, width, panel, out);
  }
}

// Panel by panel, so that each is read from memory, and widened, once, whatever the number of rows.
template <typename E>
void multiply(const float* x, int64_t rows, int64_t width, const E* packed, const float* scales, const float* bias,
              int64_t outputs, float* out) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  const int64_t tiles = (rows + kRows - 1) / kRows;
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / (width * kPanel));
  at::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kRows * kPanel];
    std::vector<float> widened(tiles > 1 && !std::is_same_v<E, float> ? width * kPanel : 0);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanel, features = std::min(kPanel, outputs - first);
      const E* weights = packed + panel * width * kPanel;
      for (size_t i = 0; i < widened.size(); i += kLanes) store(widened.data() + i, load_as_float(weights + i));
      for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
        const int64_t last = rows * (tile + 1) / tiles;
        const int count = static_cast<int>(last - row);
        if (widened.empty())
          multiply_rows(count, x + row * width, width, weights, sums);
        else
          multiply_rows(count, x + row * width, width, widened.data(), sums);
        for (const float* sum = sums; row < last; ++row, sum += kPanel)
          for (int64_t i = 0; i < features; ++i) {
            const float value = scales ? sum[i] * scales[first + i] : sum[i];
            out[row * outputs + first + i] = bias ? value + bias[first + i] : value;
          }
      }
    }
  });
}

// (outputs, width) -> (panels, width, kPanel), features beyond the last one zero.
Tensor pack(const Tensor& weight) {
  const int64_t outputs = weight.size(0), panels = (outputs + kPanel - 1) / kPanel;
  const Tensor padded = at::constant_pad_nd(weight, {0, 0, 0, panels * kPanel - outputs});
  return padded.view({panels, kPanel, weight.size(1)}).transpose(1, 2).contiguous();
}

const float* optional_data(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

// x (rows, width) float, contiguous; scales and bias (outputs,) float -> (rows, outputs) float.
Tensor packed_linear(const Tensor& x, const Tensor& packed, const std::optional<Tensor>& scales,
                     const std::optional<Tensor>& bias, int64_t outputs) {
  const int64_t rows = x.size(0), width = x.size(1);
  TORCH_CHECK(x.is_contiguous() && packed.is_contiguous() && packed.dim() == 3, "packed_linear: not contiguous");
  TORCH_CHECK(packed.size(1) == width && packed.size(2) == kPanel && packed.size(0) * kPanel >= outputs,
              "packed_linear: x has ", width, " features, the weights were packed for ", packed.size(1));
  Tensor out = at::empty({rows, outputs}, x.options());
  const auto run = [&](const auto* weights) {
    multiply(x.const_data_ptr<float>(), rows, width, weights, optional_data(scales), optional_data(bias), outputs,
             out.mutable_data_ptr<float>());
  };
  if (packed.scalar_type() == at::kFloat)
    run(packed.const_data_ptr<float>());
  else if (packed.scalar_type() == at::kBFloat16)
    run(reinterpret_cast<const Bfloat16*>(packed.const_data_ptr<at::BFloat16>()));
  else
    run(packed.const_data_ptr<int8_t>());
  return out;
}

}  // namespace
