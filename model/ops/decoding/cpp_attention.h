// Attention of few queries to many keys: what a decoder does for each token. Contracts in kernels.py.
//
// Keys and values are read from memory once, a block at a time; all queries of their head (beams, and the heads of a
// group) work on a block while it is in the cache. Softmax is over all keys at once. Included by cpp_decoding.cpp.

#pragma once

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpp_vectors.h"

namespace {

using at::Tensor;

constexpr int64_t kKeys = 128;  // keys of a block: 32 KiB at 64 features
constexpr int kQueries = 4;     // queries at a time

// Scores of QUERIES queries (rows of `width` floats) for the keys of one block, into scores[query][stride].
template <int QUERIES>
void score_keys(const float* queries, const float* keys, int64_t key_stride, int64_t count, int64_t width,
                float* scores, int64_t stride) {
  for (int64_t j = 0; j < count; ++j, keys += key_stride) {
    Vector sums[QUERIES] = {};
    for (int64_t d = 0; d < width; d += kLanes) {
      const Vector key = load<Vector>(keys + d);
#pragma GCC unroll 4
      for (int q = 0; q < QUERIES; ++q) sums[q] += key * load<Vector>(queries + q * width + d);
    }
    for (int q = 0; q < QUERIES; ++q) scores[q * stride + j] = sum_lanes(sums[q]);
  }
}

// out[query][width] += weights[query][key] * values[key], for the keys of one block, four at a time.
template <int QUERIES>
void add_values(const float* weights, int64_t stride, const float* values, int64_t value_stride, int64_t count,
                int64_t width, float* out) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4, values += 4 * value_stride)
    for (int64_t d = 0; d < width; d += kLanes) {
      const Vector first = load<Vector>(values + d), second = load<Vector>(values + value_stride + d),
                   third = load<Vector>(values + 2 * value_stride + d),
                   fourth = load<Vector>(values + 3 * value_stride + d);
#pragma GCC unroll 4
      for (int q = 0; q < QUERIES; ++q) {
        const float* weight = weights + q * stride + j;
        float* to = out + q * width + d;
        store(to, load<Vector>(to) + weight[0] * first + weight[1] * second + weight[2] * third + weight[3] * fourth);
      }
    }
  for (; j < count; ++j, values += value_stride)
    for (int64_t d = 0; d < width; d += kLanes)
      for (int q = 0; q < QUERIES; ++q) {
        float* to = out + q * width + d;
        store(to, load<Vector>(to) + weights[q * stride + j] * load<Vector>(values + d));
      }
}

// exp(x) for x <= 0, within 2 units in the last place (Cephes' polynomial); below -87 about 0.
inline Vector exponential(Vector x) {
  x = x < -87.0f ? Vector{} - 87.0f : x;
  const Vector scaled = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number in the low bits
  const Vector whole = scaled - 12582912.0f;
  const Vector rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector sum = spread(1.9875691500e-4f);
  for (const float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    sum = sum * rest + term;
  sum = sum * rest * rest + rest + 1.0f;
  const Integers power = __builtin_convertvector(whole, Integers) + 127;
  return sum * reinterpret_cast<Vector>(power << 23);
}

// Scaled and masked softmax of one query's scores, in place; returns the sum that its weights are to be divided by.
// `stride` floats hold the scores: those beyond `count` become 0. Without any key that it may attend to, all are 0.
float soften(float* scores, int64_t count, int64_t stride, float scale, const bool* mask, int64_t mask_step) {
  const float lowest = std::numeric_limits<float>::lowest();
  for (int64_t j = 0; j < count; ++j)
    scores[j] = mask != nullptr && !mask[j * mask_step] ? lowest : scores[j] * scale;
  std::fill(scores + count, scores + stride, lowest);
  const float most = *std::max_element(scores, scores + count);
  Vector sums{};
  for (int64_t j = 0; j < stride; j += kLanes) {
    const Vector score = load<Vector>(scores + j);
    const Vector weight = score == lowest ? Vector{} : exponential(score - most);
    store(scores + j, weight);
    sums += weight;
  }
  return most > lowest ? sum_lanes(sums) : 1.0f;
}

template <typename Function>
void by_queries(int64_t count, const Function& function) {
  for (int64_t first = 0; first < count; first += kQueries) {
    switch (std::min<int64_t>(kQueries, count - first)) {
      case 1: function(first, std::integral_constant<int, 1>()); break;
      case 2: function(first, std::integral_constant<int, 2>()); break;
      case 3: function(first, std::integral_constant<int, 3>()); break;
      default: function(first, std::integral_constant<int, kQueries>());
    }
  }
}

// q (B, G, N, K), k and v (B, G, M, K) float, the last dimension contiguous, K a multiple of kLanes; mask bool
// (B, G, N, M), of any strides, or none -> (B, G, N, K). N holds all queries that read a head of keys.
Tensor attend_few(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double scale) {
  const int64_t groups = k.size(1), num_queries = q.size(2), num_keys = k.size(2), width = q.size(3);
  TORCH_CHECK(width % kLanes == 0 && q.is_contiguous() && k.stride(3) == 1 && v.stride(3) == 1 && num_keys > 0,
              "attend_few: heads of ", width, " features, or strides, that it does not take");
  const int64_t stride = (num_keys + kLanes - 1) / kLanes * kLanes;
  Tensor out = at::zeros_like(q);
  const bool* allowed = mask ? mask->const_data_ptr<bool>() : nullptr;
  at::parallel_for(0, k.size(0) * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(num_queries * stride), totals(num_queries);
    for (int64_t head = begin; head < end; ++head) {
      const int64_t b = head / groups, g = head % groups;
      const float* queries = q.const_data_ptr<float>() + head * num_queries * width;
      const float* keys = k.const_data_ptr<float>() + b * k.stride(0) + g * k.stride(1);
      const float* values = v.const_data_ptr<float>() + b * v.stride(0) + g * v.stride(1);
      float* result = out.mutable_data_ptr<float>() + head * num_queries * width;
      for (int64_t j = 0; j < num_keys; j += kKeys)
        by_queries(num_queries, [&](int64_t n, auto few) {
          score_keys<few()>(queries + n * width, keys + j * k.stride(2), k.stride(2), std::min(kKeys, num_keys - j),
                            width, scores.data() + n * stride + j, stride);
        });
      for (int64_t n = 0; n < num_queries; ++n) {
        const bool* row = allowed ? allowed + b * mask->stride(0) + g * mask->stride(1) + n * mask->stride(2) : nullptr;
        totals[n] = soften(scores.data() + n * stride, num_keys, stride, static_cast<float>(scale), row,
                           allowed ? mask->stride(3) : 0);
      }
      for (int64_t j = 0; j < num_keys; j += kKeys)
        by_queries(num_queries, [&](int64_t n, auto few) {
          add_values<few()>(scores.data() + n * stride + j, stride, values + j * v.stride(2), v.stride(2),
                            std::min(kKeys, num_keys - j), width, result + n * width);
        });
      for (int64_t n = 0; n < num_queries; ++n)
        for (int64_t d = 0; d < width; ++d) result[n * width + d] /= totals[n];
    }
  });
  return out;
}

}  // namespace
