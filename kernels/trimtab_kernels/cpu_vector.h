// A register of float32 numbers, loads into it from narrower types, and products of bfloat16 numbers.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

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
// Whether the processor multiplies pairs of bfloat16 numbers. A test defines TRIMTAB_PAIR_PRODUCTS to have
// the code for it run on other processors.
#if defined(__AVX512BF16__) || defined(TRIMTAB_PAIR_PRODUCTS)
constexpr bool kPairProducts = true;
#else
constexpr bool kPairProducts = false;
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

// A register of bfloat16 numbers, two in every lane.
typedef uint16_t Pairs __attribute__((vector_size(4 * kLanes)));

// Whether products with weights of this type are those of pairs, by an instruction of their own. What
// they are multiplied by is then rounded to bfloat16, as it is in a model of this dtype.
template <typename W>
constexpr bool kByPairs = kPairProducts && std::is_same_v<W, BFloat16>;

template <typename N, typename T>
inline N load_as(const T* source) {
  if constexpr (std::is_same_v<N, Pairs>) {
    Pairs result;
    std::memcpy(&result, source, sizeof result);
    return result;
  } else {
    return load(source);
  }
}

inline Vector add_product(Vector sums, Vector a, Vector b) {
  return sums + a * b;
}

// Adds the products of the high halves of every lane, then those of the low ones.
inline Vector add_product(Vector sums, Pairs a, Pairs b) {
#if defined(__AVX512BF16__)
  return (Vector)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
  const auto high = [](Pairs pairs) { return (Vector)((Words)pairs & 0xFFFF0000u); };
  const auto low = [](Pairs pairs) { return (Vector)((Words)pairs << 16); };
  return sums + high(a) * high(b) + low(a) * low(b);
#endif
}

}  // namespace trimtab
