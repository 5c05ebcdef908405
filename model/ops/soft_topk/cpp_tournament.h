// The tournament on scores and its backward; contracts in tournament.py. Included by cpp_backend.cpp.
//
// B batch, N tokens, S slots. Scores and weights are float, or double for double scores.

#pragma once

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;

// Order of `count` scores, highest first, ties in their order. Radix sort: linear, and stable by nature.
struct Sorter {
  std::vector<uint64_t> items, others;  // key << 32 | index
  std::vector<int32_t> order;

  void sort(const float* scores, int64_t count) {
    items.resize(count), others.resize(count), order.resize(count);
    constexpr int kDigitBits = 11, kDigits = 3, kBuckets = 1 << kDigitBits, kKeyAt = 32;
    int32_t starts[kDigits][kBuckets] = {};
    const auto digit_of = [](uint64_t item, int digit) { return item >> (kKeyAt + digit * kDigitBits) & (kBuckets - 1); };
    for (int64_t i = 0; i < count; ++i) {
      const float score = scores[i] + 0.0f;  // -0 equals 0
      uint32_t bits;
      std::memcpy(&bits, &score, sizeof bits);
      // Bits that ascend as scores descend.
      const uint64_t key = bits >> 31 ? bits : ~bits & 0x7fffffffu;
      items[i] = key << kKeyAt | static_cast<uint64_t>(i);
      for (int digit = 0; digit < kDigits; ++digit) ++starts[digit][digit_of(items[i], digit)];
    }
    for (int digit = 0; digit < kDigits; ++digit) {
      std::exclusive_scan(starts[digit], starts[digit] + kBuckets, starts[digit], 0);
      for (const uint64_t item : items) others[starts[digit][digit_of(item, digit)]++] = item;
      items.swap(others);
    }
    for (int64_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(items[i] & 0xffffffffu);
  }

  void sort(const double* scores, int64_t count) {
    order.resize(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  }
};

// e^x. In float a polynomial after Cephes (2 ulp), which compilers vectorise; where float would overflow or vanish it stays
// at the bound.
inline double exponential(double x) { return std::exp(x); }

inline float exponential(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504088896341f + kRound) - kRound;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const uint32_t power = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;  // bits of 2^n
  float scale;
  std::memcpy(&scale, &power, sizeof scale);
  return (p * r * r + r + 1.0f) * scale;
}

// One round: survivor m of the next round is the pair (winner[m], loser[m]) of this one; loser -1: it stood alone.
template <typename T>
struct Round {
  std::vector<int32_t> winner, loser;
  std::vector<T> p;
  std::vector<T> scores, powers;  // of the survivors before the round: s and b^s
};

// The tournament of one document: rounds, then what is left of it.
template <typename T>
struct Game {
  std::vector<Round<T>> rounds;
  int64_t num_rounds = 0;
  std::vector<int32_t> tokens, positions;  // real tokens; position of each survivor's winner
  std::vector<T> scores;
  Sorter sorter;
  std::vector<int32_t> rank;

  void play(const T* all_scores, const bool* mask, int64_t num_tokens, int64_t k, T base) {
    tokens.clear(), scores.clear(), num_rounds = 0;
    for (int64_t i = 0; i < num_tokens; ++i)
      if (mask[i]) tokens.push_back(static_cast<int32_t>(i)), scores.push_back(all_scores[i]);
    positions = tokens;
    while (static_cast<int64_t>(scores.size()) > k) play_round(k, std::log(base));
  }

  void play_round(int64_t k, T log_base) {
    if (num_rounds == static_cast<int64_t>(rounds.size())) rounds.emplace_back();
    Round<T>& round = rounds[num_rounds++];
    const int64_t count = scores.size();
    int64_t size = k;  // "any n and k": as if padded with empty slots to the next k * 2^r
    while (size < count) size *= 2;
    const int64_t half = size / 2;
    round.scores.swap(scores);
    sorter.sort(round.scores.data(), count);  // 1. sort
    rank.assign(count, -1);
    for (int64_t i = 0; i < half; ++i) rank[sorter.order[i]] = static_cast<int32_t>(i);
    round.winner.resize(half), round.loser.resize(half), round.p.resize(half), scores.resize(half);
    int64_t next = 0;
    for (int64_t v = 0; v < count; ++v) {  // 5. in document order of the winners
      if (rank[v] < 0) continue;
      const int64_t partner = size - 1 - rank[v];  // 2. the best meets the worst
      round.winner[next] = static_cast<int32_t>(v);
      round.loser[next] = partner < count ? sorter.order[partner] : -1;
      positions[next++] = positions[v];  // next <= v
    }
    positions.resize(half);
    round.powers.resize(count);
    for (int64_t v = 0; v < count; ++v) round.powers[v] = exponential(round.scores[v] * log_base);
    for (int64_t m = 0; m < half; ++m)  // alone: e^-infinity, p = 1
      round.p[m] = round.loser[m] < 0 ? T(-100) : round.powers[round.loser[m]] - round.powers[round.winner[m]];
    for (int64_t m = 0; m < half; ++m) round.p[m] = 1 / (1 + exponential(round.p[m]));  // 3. sigmoid(b^a - b^c)
    for (int64_t m = 0; m < half; ++m) {
      const T a = round.scores[round.winner[m]], p = round.p[m];
      scores[m] = round.loser[m] < 0 ? a : p * a + (1 - p) * round.scores[round.loser[m]];  // 4. merge
    }
  }
};

// From the last round to the first: `values` of a round's outcomes become those of its survivors, times their share
// if `shares`. With slots this finds each token's group, with ones its weight.
template <typename T, typename Value>
void spread(const Round<T>& round, std::vector<Value>& values, bool shares) {
  std::vector<Value> before(round.scores.size());
  for (size_t m = 0; m < round.winner.size(); ++m) {
    before[round.winner[m]] = shares ? static_cast<Value>(values[m] * round.p[m]) : values[m];
    if (round.loser[m] >= 0) before[round.loser[m]] = shares ? static_cast<Value>(values[m] * (1 - round.p[m])) : values[m];
  }
  values.swap(before);
}

template <typename T>
void tournament_rows(const Tensor& scores, const Tensor& mask, const Tensor& k, double base, Tensor& weights,
                     Tensor& pooled, Tensor& groups, Tensor& positions, Tensor& filled) {
  const int64_t num_tokens = scores.size(1), slots = pooled.size(1);
  at::parallel_for(0, scores.size(0), 1, [&](int64_t begin, int64_t end) {
    Game<T> game;
    for (int64_t row = begin; row < end; ++row) {
      game.play(scores.const_data_ptr<T>() + row * num_tokens, mask.const_data_ptr<bool>() + row * num_tokens,
                num_tokens, k.const_data_ptr<int64_t>()[row], static_cast<T>(base));
      for (size_t v = 0; v < game.scores.size(); ++v) {
        const int64_t place = row * slots + v;
        pooled.mutable_data_ptr<T>()[place] = game.scores[v];
        positions.mutable_data_ptr<int64_t>()[place] = game.positions[v];
        filled.mutable_data_ptr<bool>()[place] = true;
      }
      std::vector<int32_t> slot(game.scores.size());
      std::iota(slot.begin(), slot.end(), 0);
      std::vector<T> weight(game.scores.size(), T(1));
      for (int64_t r = game.num_rounds; r-- > 0;) {
        spread(game.rounds[r], slot, false);
        spread(game.rounds[r], weight, true);
      }
      for (size_t v = 0; v < game.tokens.size(); ++v) {
        groups.mutable_data_ptr<int64_t>()[row * num_tokens + game.tokens[v]] = slot[v];
        weights.mutable_data_ptr<T>()[row * num_tokens + game.tokens[v]] = weight[v];
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> tournament(const Tensor& scores_, const Tensor& mask_,
                                                              const Tensor& k_, int64_t slots, double base) {
  const Tensor scores = scores_.contiguous(), mask = mask_.contiguous(), k = k_.contiguous();
  const int64_t batch = scores.size(0), num_tokens = scores.size(1), width = std::min(slots, num_tokens);
  const auto integers = scores.options().dtype(at::kLong);
  Tensor weights = at::zeros({batch, num_tokens}, scores.options()), pooled = at::zeros({batch, width}, scores.options());
  Tensor groups = at::full({batch, num_tokens}, -1, integers), positions = at::zeros({batch, width}, integers);
  Tensor filled = at::zeros({batch, width}, scores.options().dtype(at::kBool));
  if (scores.scalar_type() == at::kDouble)
    tournament_rows<double>(scores, mask, k, base, weights, pooled, groups, positions, filled);
  else
    tournament_rows<float>(scores, mask, k, base, weights, pooled, groups, positions, filled);
  return {weights, pooled, groups, positions, filled};
}

// The chain rule through the rounds. A survivor's weight so far is the product of its shares below; with
//   above[m] = product of m's shares in later rounds,  below[v] = sum over v's tokens of dL/dw_i * shares so far,
// a pair's p gets dL/dp = above[m] * (below[winner] - below[loser]) + dL/ds_m * (s_winner - s_loser).
template <typename T>
void tournament_backward_rows(const Tensor& grad_weights, const Tensor& grad_pooled, const Tensor& scores,
                              const Tensor& mask, const Tensor& k, double base, Tensor& grad) {
  const int64_t num_tokens = scores.size(1), slots = grad_pooled.size(1);
  const T log_base = std::log(static_cast<T>(base));
  at::parallel_for(0, scores.size(0), 1, [&](int64_t begin, int64_t end) {
    Game<T> game;
    std::vector<std::vector<T>> above, below;
    for (int64_t row = begin; row < end; ++row) {
      game.play(scores.const_data_ptr<T>() + row * num_tokens, mask.const_data_ptr<bool>() + row * num_tokens,
                num_tokens, k.const_data_ptr<int64_t>()[row], static_cast<T>(base));
      const int64_t num_rounds = game.num_rounds;
      above.assign(num_rounds + 1, {}), below.assign(num_rounds + 1, {});
      above[num_rounds].assign(game.scores.size(), T(1));
      for (int64_t r = num_rounds; r-- > 0;) {
        above[r] = above[r + 1];
        spread(game.rounds[r], above[r], true);
      }
      below[0].resize(game.tokens.size());
      for (size_t v = 0; v < game.tokens.size(); ++v)
        below[0][v] = grad_weights.const_data_ptr<T>()[row * num_tokens + game.tokens[v]];
      for (int64_t r = 0; r < num_rounds; ++r) {
        const Round<T>& round = game.rounds[r];
        below[r + 1].resize(round.winner.size());
        for (size_t m = 0; m < round.winner.size(); ++m) {
          const T loser = round.loser[m] < 0 ? T(0) : below[r][round.loser[m]];
          below[r + 1][m] = round.p[m] * below[r][round.winner[m]] + (1 - round.p[m]) * loser;
        }
      }
      std::vector<T> grads(game.scores.size());
      for (size_t v = 0; v < grads.size(); ++v) grads[v] = grad_pooled.const_data_ptr<T>()[row * slots + v];
      for (int64_t r = num_rounds; r-- > 0;) {
        const Round<T>& round = game.rounds[r];
        std::vector<T> before(round.scores.size());
        for (size_t m = 0; m < round.winner.size(); ++m) {
          const int32_t winner = round.winner[m], loser = round.loser[m];
          if (loser < 0) {
            before[winner] = grads[m];
            continue;
          }
          const T a = round.scores[winner], c = round.scores[loser], p = round.p[m];
          const T grad_p = above[r + 1][m] * (below[r][winner] - below[r][loser]) + grads[m] * (a - c);
          const T grad_difference = grad_p * p * (1 - p) * log_base;
          before[winner] = grads[m] * p + grad_difference * round.powers[winner];
          before[loser] = grads[m] * (1 - p) - grad_difference * round.powers[loser];
        }
        grads.swap(before);
      }
      for (size_t v = 0; v < game.tokens.size(); ++v) grad.mutable_data_ptr<T>()[row * num_tokens + game.tokens[v]] = grads[v];
    }
  });
}

Tensor tournament_backward(const Tensor& grad_weights, const Tensor& grad_pooled, const Tensor& scores_,
                           const Tensor& mask_, const Tensor& k_, double base) {
  const Tensor scores = scores_.contiguous(), mask = mask_.contiguous(), k = k_.contiguous();
  const Tensor weights = grad_weights.contiguous(), pooled = grad_pooled.contiguous();
  Tensor grad = at::zeros(scores.sizes(), scores.options());
  if (scores.scalar_type() == at::kDouble)
    tournament_backward_rows<double>(weights, pooled, scores, mask, k, base, grad);
  else
    tournament_backward_rows<float>(weights, pooled, scores, mask, k, base, grad);
  return grad;
}

}  // namespace
