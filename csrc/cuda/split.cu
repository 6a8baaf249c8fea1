// The pass over the carries of a split scan, and the sums of parts that a launch of its own adds
// up.
#include "ordered_sum.cuh"
#include "split.h"

namespace cmimtl::cuda {
namespace {

// A thread goes through the segments of one sample, channel and state.
__global__ void __launch_bounds__(kThreads)
    carry_kernel(const ScanSizes s, const float* A, const Split split, bool backward, const float* initial) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x, per_sample = s.dim * s.dstate;
  if (at >= s.batch * per_sample) return;
  const int64_t sample = at / per_sample, in_sample = at % per_sample, channel = in_sample / s.dstate;
  const float a = A[in_sample];
  float carry = initial ? initial[at] : 0.0f;
  for (int64_t i = 1; i < split.segments; ++i) {
    const int64_t slot = sample * split.segments + (backward ? split.segments - 1 - i : i);
    float& state = split.states[slot * per_sample + in_sample];
    state = carry = fmaf(ex2(a * split.step_size_sums[slot * s.dim + channel]), carry, state);
  }
}

__global__ void __launch_bounds__(kThreads) sum_parts_kernel(const PartsOfWeights weights, int64_t count) {
  int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
#pragma unroll
  for (const Parts& x : weights.of) {
    if (at < x.size) {
      static_cast<float*>(x.out)[at] = ordered_sum<1>(x.parts + at, x.size, count)[0];
      return;
    }
    at -= x.size;
  }
}

}  // namespace

void sum_parts(PartsOfWeights weights, int64_t count, void* stream) {
  int64_t size = 0;
  for (Parts& x : weights.of) {
    if (!x.out) x.size = 0;
    size += x.size;
  }
  if (size == 0) return;
  launch(sum_parts_kernel, dim3(unsigned(ceil_div(size, kThreads))), dim3(kThreads), 0, stream, weights, count);
}

void carry_states(const ScanForward& p, const Split& split, bool backward, const float* initial, void* stream) {
  const int64_t blocks = ceil_div(p.size.batch * p.size.dim * p.size.dstate, kThreads);
  launch(carry_kernel, dim3(unsigned(blocks)), dim3(kThreads), 0, stream, p.size, static_cast<const float*>(p.A), split,
         backward, initial);
}

}  // namespace cmimtl::cuda
