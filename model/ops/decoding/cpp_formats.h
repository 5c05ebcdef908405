// How weights lie in a panel, and how rows of inputs meet them, for each type of weights; contracts in kernels.py.
//
// A lane of 32 bits holds kGroup neighbouring input features of one output. Where the CPU multiplies pairs of bfloat16
// or quadruples of bytes and adds them up in one instruction, that many; elsewhere one, widened to float.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpp_vectors.h"

namespace {

// What turns a row's sums into its products.
struct Row {
  float scale = 1;
  int32_t high = 0, low = 0;  // what the sums of int8 begin with
};

// Weights widened to float; inputs as they are.
template <typename E>
struct Format {
  static constexpr int64_t kGroup = 1;
  using Input = float;
  using Weights = Vector;

  static Row convert(const float* x, int64_t width, Input* to) {
    std::copy(x, x + width, to);
    return {};
  }
  static Weights load(const E* from) { return load_as_float(from); }

  struct Sums {
    Vector sum = {};
    void begin(const Row&) {}
    void add(Input x, Weights weights) { sum += spread(x) * weights; }
    void add(const Sums& other) { sum += other.sum; }
    Vector total() const { return sum; }
  };
};

#ifdef __AVX512BF16__
// Pairs of bfloat16, inputs rounded to it: products are exact, sums float.
template <>
struct Format<Bfloat16> {
  static constexpr int64_t kGroup = 2;
  using Input = int32_t;
  using Weights = __m512bh;

  static uint32_t round(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;  // not a number
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;     // to the nearest, ties to even
  }
  static Row convert(const float* x, int64_t width, Input* to) {
    for (int64_t i = 0; i < width / 2; ++i) to[i] = static_cast<int32_t>(round(x[2 * i]) | round(x[2 * i + 1]) << 16);
    if (width % 2) to[width / 2] = static_cast<int32_t>(round(x[width - 1]));
    return {};
  }
  static Weights load(const Bfloat16* from) { return (Weights)_mm512_loadu_si512(from); }

  struct Sums {
    __m512 sum = _mm512_setzero_ps();
    void begin(const Row&) {}
    void add(Input x, Weights weights) { sum = _mm512_dpbf16_ps(sum, weights, (__m512bh)_mm512_set1_epi32(x)); }
    void add(const Sums& other) { sum += other.sum; }
    Vector total() const { return (Vector)sum; }
  };
};
#endif

#ifdef __AVX512VNNI__
// Quadruples of bytes. A row of inputs becomes integers of 15 bits with one scale, 128 high + low, two signed bytes; so
// its rounding is far below that of the weights. The instruction wants the other factor unsigned: weights lie in memory
// plus 128 (kernels.py), and sums begin with what that adds too much. Sums are exact integers.
template <>
struct Format<int8_t> {
  static constexpr int64_t kGroup = 4;
  static constexpr int kGreatest = 127 * 128;
  struct Input {
    int8_t high[4], low[4];
  };
  using Weights = __m512i;

  static Row convert(const float* x, int64_t width, Input* to) {
    float greatest = 0, broken = 0;
    for (int64_t i = 0; i < width; ++i) {
      greatest = std::max(greatest, std::fabs(x[i]));
      broken += x[i] * 0.0f;  // not a number if one of them is not
    }
    Row row{greatest / kGreatest + broken};
    const float inverse = greatest > 0 ? kGreatest / greatest : 0;
    int64_t high = 0, low = 0;
    for (int64_t i = 0; i < (width + 3) / 4 * 4; ++i) {
      const int32_t value = i < width ? static_cast<int32_t>(std::nearbyint(x[i] * inverse)) : 0;
      const int32_t upper = (value + 64) >> 7, lower = value - upper * 128;
      to[i / 4].high[i % 4] = static_cast<int8_t>(upper);
      to[i / 4].low[i % 4] = static_cast<int8_t>(lower);
      high += upper;
      low += lower;
    }
    row.high = static_cast<int32_t>(-128 * high);
    row.low = static_cast<int32_t>(-128 * low);
    return row;
  }
  static Weights load(const int8_t* from) { return _mm512_loadu_si512(from); }

  struct Sums {
    __m512i high = _mm512_setzero_si512(), low = _mm512_setzero_si512();
    void begin(const Row& row) {
      high = _mm512_set1_epi32(row.high);
      low = _mm512_set1_epi32(row.low);
    }
    void add(const Input& x, Weights weights) {
      int32_t bytes[2];
      std::memcpy(bytes, &x, 8);
      high = _mm512_dpbusd_epi32(high, weights, _mm512_set1_epi32(bytes[0]));
      low = _mm512_dpbusd_epi32(low, weights, _mm512_set1_epi32(bytes[1]));
    }
    void add(const Sums& other) {
      high = _mm512_add_epi32(high, other.high);
      low = _mm512_add_epi32(low, other.low);
    }
    Vector total() const {
      return (Vector)_mm512_cvtepi32_ps(high) * spread(128) + (Vector)_mm512_cvtepi32_ps(low);
    }
  };
};
#endif

}  // namespace
