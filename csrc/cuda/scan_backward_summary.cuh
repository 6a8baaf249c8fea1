// The first pass of a backward scan that is split in time (see split.h): what a segment adds to the carry, and the sum
// of its step sizes.
#pragma once

#include "scan_backward_inputs.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kStreams>
struct BackwardSummary : BackwardInputs<T, kStates, kShare, kStreams, true, false> {
  using Inputs = BackwardInputs<T, kStates, kShare, kStreams, true, false>;
  using Shared = typename Inputs::Shared;
  using Inputs::kOwn, Inputs::p, Inputs::place, Inputs::shared, Inputs::count;
  float a[kStates], g[kStates];
  float sum = 0.0f;

  __device__ BackwardSummary(const ScanBackward& q, const Split& split, const Partial& partial)
      : Inputs(q, split, partial) {
    place.load(static_cast<const float*>(p.A) + place.channel * p.size.dstate, int(p.size.dstate), a);
#pragma unroll
    for (int i = 0; i < kStates; ++i) g[i] = 0.0f;
  }

  template <bool kMasked>
  __device__ void chunk(int k) {
    typename Inputs::Loaded inputs;
    float d[kOwn], dx[kOwn];
    const auto tiles = this->load_tiles(k);
    this->template load<kMasked>(k, count - k, inputs);
    __syncthreads();
    tiles.template store<false>(shared.B_tile(), shared.C_tile());
    this->template prepare<kMasked>(inputs, count - k, d, dx);
    __syncthreads();
    if (kShare < 4 || place.lane < kShare) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) sum += d[i];
    }
#pragma unroll 2
    for (int t = kChunk - 1; t >= 0; --t) {
      const float d_t = *shared.sizes(t), dy = shared.row(Shared::kDy, t);
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const float4 c = load_vector<float4>(shared.C_tile() + t * place.states + place.state(i));
        g[i] = ex2(d_t * a[i]) * fmaf(c.x, dy, g[i]), g[i + 1] = ex2(d_t * a[i + 1]) * fmaf(c.y, dy, g[i + 1]);
        g[i + 2] = ex2(d_t * a[i + 2]) * fmaf(c.z, dy, g[i + 2]),
              g[i + 3] = ex2(d_t * a[i + 3]) * fmaf(c.w, dy, g[i + 3]);
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
    const int64_t slot = place.sample * split.segments + place.segment - 1;  // of the one after
    sum = this->sum_over_lanes(sum);
    place.store(split.states + (slot * p.size.dim + place.channel) * p.size.dstate, int(p.size.dstate), g);
    if (place.live && place.lane == 0) split.sums[slot * p.size.dim + place.channel] = sum;
  }
};

template <class T, int kStates, int kShare, int kStreams>
__global__ void __launch_bounds__(kThreads, 2)
    scan_backward_summary_kernel(const ScanBackward q, const Split split, const Partial partial) {
  BackwardSummary<T, kStates, kShare, kStreams>(q, split, partial).run(split);
}

}  // namespace cmimtl::cuda
