// A register of float32 numbers, and loads into it from narrower types.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstring>

#include "cpu_common.h"

namespace trimtab {

// How many float32 numbers one register holds.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

inline void store(float* target, Vector vector) {
  std::memcpy(target, &vector, sizeof vector);
}

inline Vector load(const float* source) {
  Vector result;
  std::memcpy(&result, source, sizeof result);
  return result;
}

inline Vector load(const BFloat16* source) {
  Halves halves;
  std::memcpy(&halves, source, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Vector result;
  std::memcpy(&result, &words, sizeof result);
  return result;
}

// By explicit instructions where they exist, since GCC 12 would widen the bytes one by one.
inline Vector load(const int8_t* source) {
  Bytes bytes;
  std::memcpy(&bytes, source, sizeof bytes);
#if defined(__AVX512F__)
  return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)bytes));
#elif defined(__AVX2__)
  const __m128i half = _mm_cvtsi64_si128((long long)bytes);
  return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half));
#else
  return __builtin_convertvector(bytes, Vector);
#endif
}

}  // namespace trimtab
