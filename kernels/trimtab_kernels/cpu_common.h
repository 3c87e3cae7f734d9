// Common to the CPU kernels: threads, conversion of entries for computing, and names.

#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <string>

namespace trimtab {

using at::BFloat16;
using at::Half;
using at::Tensor;
using std::int64_t;

// With fewer bytes to read, a thread costs more to wake than it saves.
constexpr int64_t kMinBytesPerThread = 64 * 1024;
constexpr int64_t kCacheLineBytes = 64;

// Calls at::parallel_for inside libtorch. Compiled here, it could bring a second OpenMP runtime, with
// its own threads, into the process.
template <typename F>
void parallel_for(int64_t end, int64_t grain, const F& body) {
  const auto call = [](int64_t first, int64_t last, void* context) {
    (*static_cast<const F*>(context))(first, last);
  };
  const auto error = torch_parallel_for(0, end, grain, call, const_cast<F*>(&body));
  TORCH_CHECK(error == 0, "torch_parallel_for failed");
}

inline int64_t thread_count() {
  uint32_t threads = 1;
  TORCH_CHECK(torch_get_num_threads(&threads) == 0, "torch_get_num_threads failed");
  return threads;
}

template <typename W>
inline void prefetch(const W* row, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kCacheLineBytes / static_cast<int64_t>(sizeof(W))) {
    __builtin_prefetch(row + c, 0, 2);
  }
}

inline std::string name(at::ScalarType dtype) {
  return "torch." + std::string(c10::getDtypeNames(dtype).first);
}

inline std::string instruction_set() {
#if defined(__AVX512BF16__)
  return "AVX-512 BF16";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__ARM_NEON)
  return "NEON";
#else
  return "portable";
#endif
}

inline float widen(float value) {
  return value;
}
inline float widen(std::int8_t value) {
  return value;
}
inline float widen(BFloat16 value) {
  return static_cast<float>(value);
}
inline float widen(Half value) {
  return static_cast<float>(value);
}
inline double widen(double value) {
  return value;
}

}  // namespace trimtab
