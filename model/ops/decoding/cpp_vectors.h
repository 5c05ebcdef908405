// Vectors of floats as the compiler knows them (GCC and Clang), of the width that its target has.

#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

struct Bfloat16 {
  uint16_t bits;
};

inline Vector spread(float value) { return value - Vector{}; }

template <typename V>
inline V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

inline void store(float* to, Vector value) { std::memcpy(to, &value, sizeof(Vector)); }

inline Vector load_as_float(const float* from) { return load<Vector>(from); }

inline Vector load_as_float(const Bfloat16* from) {
  return reinterpret_cast<Vector>(__builtin_convertvector(load<Halves>(from), Bits) << 16);
}

// Spelt out: GCC's own conversion of bytes is many times slower.
inline Vector load_as_float(const int8_t* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  return __builtin_convertvector(__builtin_convertvector(load<Bytes>(from), Integers), Vector);
#endif
}

inline float sum_lanes(Vector value) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += value[i];
  return sum;
}

}  // namespace
