// Products of pairs of bfloat16 numbers, whatever the processor has, for test_pairs.py.

#define TRIMTAB_PAIR_PRODUCTS

#include "../../kernels/trimtab_kernels/decode_step/cpu_products.h"

using namespace trimtab;

// out[r, o] = x[r] . weight[o], for `rows` rows of x and contiguous rows of weights.
extern "C" void dense(const BFloat16* x, int64_t rows, int64_t width, const BFloat16* weight,
                      int64_t outputs, float* out) {
  Input in;
  in.resize(rows, width);
  std::transform(x, x + rows * width, in.row(0), [](BFloat16 number) { return widen(number); });
  in.round<BFloat16>();
  dot_products(in, weight, width, {0, outputs}, out, outputs);
}

// numbers -> what they are once they are rounded to be multiplied
extern "C" void rounded(float* numbers, int64_t count) {
  Input in;
  in.resize(1, count);
  std::copy(numbers, numbers + count, in.row(0));
  in.round<BFloat16>();
  std::copy(in.row(0), in.row(1), numbers);
}
