// A sum of what several blocks have left in the workspace, in a fixed order.
#pragma once

#include "device.h"

namespace cmimtl::cuda {

// The sum of parts[k * stride] for k = 0 … count - 1, of kCount neighbouring numbers at once.
template <int kCount>
__device__ Vector<float, kCount> ordered_sum(const float* parts, int64_t stride, int64_t count) {
  Vector<float, kCount> sum{};
#pragma unroll 4  // so four loads are in flight
  for (int64_t k = 0; k < count; ++k) {
    const auto part = load_vector<Vector<float, kCount>>(parts + k * stride);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] += part[i];
  }
  return sum;
}

}  // namespace cmimtl::cuda
