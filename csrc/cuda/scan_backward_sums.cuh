// The sums dB and dC over the channels of a warp and of a block. scan_backward_parts.cuh adds up
// those of the blocks.
#pragma once

#include "scan_backward_shared.cuh"

namespace cmimtl::cuda {

// Computes sums[t][n], the sum over the warp's channels of kept[t][n] * row[t]. A lane makes four
// sums, and reads from shared memory what other lanes wrote. This transposition costs 1.5
// instructions for each value and map; a butterfly of shuffles would cost 4.
template <int kStates, int kShare, int kStreams, bool kGate>
struct BackwardSums {
  using Shared = BackwardShared<kStates, kShare, kStreams, kGate>;
  static constexpr int kQuads = Shared::kQuads;

  // The sums of dB take the place of `kept`. A pass writes 128 floats behind those of the passes
  // before it, and reads rows of 132 floats, at least one in each pass, so it overwrites nothing
  // that is still to be read. A slot holds the states of the step with its number for dC, and of
  // the next step, slot + 1 modulo kChunk, for dB.
  template <bool kOfB>
  static __device__ void over_channels(int channel_lanes) {
    const Shared shared(channel_lanes, 0);
    float* const kept = shared.warp;
    const float* const rows = kept + Shared::rows_at(channel_lanes);
    const int quads = channel_lanes * kQuads, columns = kWarp / channel_lanes,
              pitch = Shared::pitch_of_rows(channel_lanes);
    // With eight states there are fewer sums than lanes: two lanes share one.
    constexpr int kParts = kShare == 1 && kStates == 8 ? 2 : 1;
    const int lane = int(thread_again()) % kWarp, part = kParts == 1 ? 0 : lane / (kWarp / kParts);
    const int passes = kShare == 1 ? 1 : channel_lanes;
#pragma unroll 1
    for (int pass = 0; pass < passes; ++pass) {
      const int at = pass * kWarp + lane % (kWarp / kParts);
      const int slot = at >> log2_of(quads), quad = at & (quads - 1), t = kOfB ? (slot + 1) % kChunk : slot;
      const float* from = kept + (slot * kQuads + (quad >> log2_of(channel_lanes))) * Shared::kPitch +
                          (quad & (channel_lanes - 1)) * columns * 4;
      const float* factor = rows + ((kOfB ? Shared::kInput : Shared::kDy) * kChunk + t) * pitch;
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if constexpr (kShare < 4) {
        constexpr int kColumns = kWarp / kShare / kParts;
#pragma unroll
        for (int c = 0; c < kColumns; c += 4) {
          const float4 f = load_vector<float4>(factor + part * kColumns + c);
          const float* x = from + (part * kColumns + c) * 4;
          sum = add(sum, f.x, x), sum = add(sum, f.y, x + 4), sum = add(sum, f.z, x + 8), sum = add(sum, f.w, x + 12);
        }
      } else {
        for (int c = 0; c < columns; ++c) sum = add(sum, factor[c], from + c * 4);
      }
      if constexpr (kParts == 2) {
        constexpr int kHalf = kWarp / 2;
        sum.x += __shfl_xor_sync(kAllLanes, sum.x, kHalf), sum.y += __shfl_xor_sync(kAllLanes, sum.y, kHalf);
        sum.z += __shfl_xor_sync(kAllLanes, sum.z, kHalf), sum.w += __shfl_xor_sync(kAllLanes, sum.w, kHalf);
      }
      if constexpr (kOfB) __syncwarp();
      if (part == 0) store_vector(kept + (kOfB ? at * 4 : shared.dC_sums(at)), sum);
    }
  }
  static __device__ float4 add(float4 sum, float f, const float* p) {
    const float4 x = load_vector<float4>(p);
    return make_float4(fmaf(f, x.x, sum.x), fmaf(f, x.y, sum.y), fmaf(f, x.z, sum.z), fmaf(f, x.w, sum.w));
  }

  // Adds up the sums of the block's warps, in the order of the warps. Calls to(t, n, dB, dC) for
  // each step and state of the chunk.
  template <class To>
  static __device__ void over_warps(int channel_lanes, const To& to) {
    const Shared shared(channel_lanes, 0);
    const float* const first = shared.of_warp(0);
    const int states = channel_lanes * kStates, floats = Shared::floats_of_warp(channel_lanes);
    constexpr int kPasses = kShare == 4 ? 1 : (kChunk * kShare * kStates + kThreads - 1) / kThreads;
    const int passes = kShare == 4 ? (kChunk * states + kThreads - 1) / kThreads : kPasses;
#pragma unroll kPasses
    for (int pass = 0; pass < passes; ++pass) {
      const int at = pass * kThreads + int(threadIdx.x);
      if (at >= kChunk * states) break;
      const int t = at >> log2_of(states), n = at & (states - 1);
      const float* const of_B = first + (t + kChunk - 1) % kChunk * states + n;
      const float* const of_C = first + shared.dC_sums(at / 4) + at % 4;
      float dB = of_B[0], dC = of_C[0];
#pragma unroll
      for (int warp = 1; warp < Shared::kWarps; ++warp) dB += of_B[warp * floats], dC += of_C[warp * floats];
      to(t, n, dB, dC);
    }
  }
};

}  // namespace cmimtl::cuda
