// The first pass of a backward scan that is split over time (see split.h). It computes what a
// segment adds to the carry, and the sum of its step sizes.
#pragma once

#include "scan_backward_inputs.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kStreams>
struct BackwardSummary : BackwardInputs<T, kStates, kShare, kStreams, true, false> {
  using Inputs = BackwardInputs<T, kStates, kShare, kStreams, true, false>;
  using Shared = typename Inputs::Shared;
  using Inputs::kOwn, Inputs::p, Inputs::place, Inputs::shared, Inputs::count;
  float a[kStates], carry[kStates];
  float step_size_sum = 0.0f;

  __device__ BackwardSummary(const ScanBackward& q, const Split& split, const Partial& partial)
      : Inputs(q, split, partial) {
    place.load(static_cast<const float*>(p.A) + place.channel * p.size.dstate, int(p.size.dstate), a);
#pragma unroll
    for (int i = 0; i < kStates; ++i) carry[i] = 0.0f;
  }

  template <bool kMasked>
  __device__ void chunk(int k) {
    typename Inputs::Loaded inputs;
    float step_size[kOwn], input[kOwn];
    const auto tiles = this->load_tiles(k);
    this->template load<kMasked>(k, count - k, inputs);
    __syncthreads();
    tiles.template store<false>(shared.B_tile(), shared.C_tile());
    this->template prepare<kMasked>(inputs, count - k, step_size, input);
    __syncthreads();
    if (kShare < 4 || place.channel_lane < kShare) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) step_size_sum += step_size[i];
    }
#pragma unroll 2
    for (int t = kChunk - 1; t >= 0; --t) {
      const float step_size_t = *shared.step_values(t), dy = shared.row(Shared::kDy, t);
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const float4 c = load_vector<float4>(shared.C_tile() + t * place.states + place.state(i));
        carry[i] = ex2(step_size_t * a[i]) * fmaf(c.x, dy, carry[i]),
        carry[i + 1] = ex2(step_size_t * a[i + 1]) * fmaf(c.y, dy, carry[i + 1]);
        carry[i + 2] = ex2(step_size_t * a[i + 2]) * fmaf(c.z, dy, carry[i + 2]),
                  carry[i + 3] = ex2(step_size_t * a[i + 3]) * fmaf(c.w, dy, carry[i + 3]);
      }
    }
  }

  __device__ void run(const Split& split) {
    if (count > 0) {
      int k = this->last_chunk();
      chunk<true>(k);
#pragma unroll 1
      while ((k -= kChunk) >= 0) chunk<false>(k);
    }
    // The carry goes back in time, so the segment that gets it is the one with the lower number.
    const int64_t slot = place.sample * split.segments + place.segment - 1;
    step_size_sum = this->sum_over_channel_lanes(step_size_sum);
    place.store(split.states + (slot * p.size.dim + place.channel) * p.size.dstate, int(p.size.dstate), carry);
    if (place.live && place.channel_lane == 0) split.step_size_sums[slot * p.size.dim + place.channel] = step_size_sum;
  }
};

template <class T, int kStates, int kShare, int kStreams>
__global__ void __launch_bounds__(kThreads, 2)
    scan_backward_summary_kernel(const ScanBackward q, const Split split, const Partial partial) {
  BackwardSummary<T, kStates, kShare, kStreams>(q, split, partial).run(split);
}

}  // namespace cmimtl::cuda
