// A linear map whose weights are packed once and then read in one stream; contracts in kernels.py.
//
// What limits it with few rows is the memory that the weights come from. They lie in panels of kPanel output features,
// [panel][input features / kGroup][kPanel][kGroup], as float, bfloat16 or int8 (cpp_formats.h), so that a panel is one
// run of addresses. Included by cpp_decoding.cpp.

#pragma once

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "cpp_formats.h"

namespace {

using at::Tensor;

constexpr int64_t kPanel = 2 * kLanes;
constexpr int kRows = 6;  // rows at a time: 12 sums, 2 weights and 1 input fill AVX2's registers

// Products of ROWS rows and one panel, into out[row][kPanel]. UNROLL chains of sums hide the latency of few rows.
template <typename E, int ROWS, int UNROLL>
inline void multiply_panel(const typename Format<E>::Input* x, const Row* rows, int64_t groups, const E* panel,
                           float* out) {
  using F = Format<E>;
  typename F::Sums sums[UNROLL][ROWS][2];
  for (int row = 0; row < ROWS; ++row)
    for (int half = 0; half < 2; ++half) sums[0][row][half].begin(rows[row]);
  const auto add = [&](int u, int64_t k) __attribute__((always_inline)) {
    const E* from = panel + k * kPanel * F::kGroup;
    const auto low = F::load(from), high = F::load(from + kLanes * F::kGroup);
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
      sums[u][row][0].add(x[row * groups + k], low);
      sums[u][row][1].add(x[row * groups + k], high);
    }
  };
  int64_t k = 0;
  for (; k + UNROLL <= groups; k += UNROLL)
#pragma GCC unroll 4
    for (int u = 0; u < UNROLL; ++u) add(u, k + u);
  for (; k < groups; ++k) add(0, k);
  for (int row = 0; row < ROWS; ++row)
    for (int half = 0; half < 2; ++half) {
      for (int u = 1; u < UNROLL; ++u) sums[0][row][half].add(sums[u][row][half]);
      store(out + row * kPanel + half * kLanes, sums[0][row][half].total() * spread(rows[row].scale));
    }
}

template <typename E>
void multiply_rows(int count, const typename Format<E>::Input* x, const Row* rows, int64_t groups, const E* panel,
                   float* out) {
  switch (count) {
    case 1: return multiply_panel<E, 1, 4>(x, rows, groups, panel, out);
    case 2: return multiply_panel<E, 2, 2>(x, rows, groups, panel, out);
    case 3: return multiply_panel<E, 3, 2>(x, rows, groups, panel, out);
    case 4: return multiply_panel<E, 4, 1>(x, rows, groups, panel, out);
    case 5: return multiply_panel<E, 5, 1>(x, rows, groups, panel, out);
    default: return multiply_panel<E, kRows, 1>(x, rows, groups, panel, out);
  }
}

// Panel by panel, so that each is read from memory once, whatever the number of rows.
template <typename E>
void multiply(const float* x, int64_t rows, int64_t width, const E* packed, const float* scales, const float* bias,
              int64_t outputs, float* out) {
  using F = Format<E>;
  const int64_t groups = (width + F::kGroup - 1) / F::kGroup;
  std::vector<typename F::Input> inputs(rows * groups);
  std::vector<Row> of_row(rows);
  for (int64_t row = 0; row < rows; ++row)
    of_row[row] = F::convert(x + row * width, width, inputs.data() + row * groups);
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  const int64_t tiles = (rows + kRows - 1) / kRows;
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / (width * kPanel));
  at::parallel_for(0, panels, grain, [&](int64_t begin, int64_t end) {
    alignas(64) float products[kRows * kPanel];
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanel, features = std::min(kPanel, outputs - first);
      const E* weights = packed + panel * groups * kPanel * F::kGroup;
      for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
        const int64_t last = rows * (tile + 1) / tiles;
        multiply_rows(static_cast<int>(last - row), inputs.data() + row * groups, of_row.data() + row, groups, weights,
                      products);
        for (const float* product = products; row < last; ++row, product += kPanel)
          for (int64_t i = 0; i < features; ++i) {
            const float value = scales ? product[i] * scales[first + i] : product[i];
            out[row * outputs + first + i] = bias ? value + bias[first + i] : value;
          }
      }
    }
  });
}

template <typename E>
Tensor pack_groups(const Tensor& weight) {
  constexpr int64_t kGroup = Format<E>::kGroup;
  const int64_t outputs = weight.size(0), width = weight.size(1);
  const int64_t panels = (outputs + kPanel - 1) / kPanel, groups = (width + kGroup - 1) / kGroup;
  const Tensor padded = at::constant_pad_nd(weight, {0, groups * kGroup - width, 0, panels * kPanel - outputs});
  return padded.view({panels, kPanel, groups, kGroup}).transpose(1, 2).contiguous().flatten(2);
}

// (outputs, width) -> (panels, groups, kPanel * kGroup), features beyond the last ones zero.
Tensor pack(const Tensor& weight) {
  if (weight.scalar_type() == at::kFloat) return pack_groups<float>(weight);
  if (weight.scalar_type() == at::kBFloat16) return pack_groups<Bfloat16>(weight);
  const Tensor packed = pack_groups<int8_t>(weight);
  return Format<int8_t>::kGroup == 1 ? packed : packed.bitwise_xor_(-128);  // plus 128, unsigned
}

const float* optional_data(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

// x (..., width) float; scales and bias (outputs,) float -> (..., outputs) float.
Tensor packed_linear(const Tensor& given, const Tensor& packed, const std::optional<Tensor>& scales,
                     const std::optional<Tensor>& bias, int64_t outputs) {
  const Tensor x = given.contiguous();
  auto shape = x.sizes().vec();
  const int64_t width = shape.back(), rows = x.numel() / std::max<int64_t>(1, width);
  shape.back() = outputs;
  TORCH_CHECK(packed.is_contiguous() && packed.dim() == 3, "packed_linear: these weights are not packed");
  const int64_t group = packed.size(2) / kPanel;
  TORCH_CHECK(packed.size(1) == (width + group - 1) / group && packed.size(0) * kPanel >= outputs,
              "packed_linear: x has ", width, " features, the weights were packed for ", packed.size(1) * group);
  Tensor out = at::empty(shape, x.options());
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
