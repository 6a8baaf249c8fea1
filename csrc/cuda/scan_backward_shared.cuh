// The shared memory of a block of the backward scan.
#pragma once

#include "scan_common.cuh"

namespace cmimtl::cuda {

// Where a tensor has the first step of a segment and the first channel of a block, and its strides
// in the order of processing. For B and C, and for the parts of dB and dC, a state takes the place
// of a channel.
struct alignas(16) Start {
  void* p;
  int step, channel;
};

// Each warp has these arrays, in which a column is one of its channels:
//
//     kept          (kChunk, kQuads, kWarp + 1) float4: the states h of a chunk, later their
//                   gradients; a lane's four states lie side by side
//     step_values   (kChunk, columns) float4: d, x, the slope of softplus, dz / y; the cross scan
//                   keeps v and t in the places of x
//     rows          (kRowKinds, kChunk, columns + 4) float: d x and dy, which the sums over
//                   channels read four at a time
//     pairs         (kChunk / 2, columns) float2: z of both streams, in a cross scan with a gate
//     own           (kOwnValues, kWarp) float
//     dC_sums       (kChunk, states) float; with one lane to a channel they lie in the 33rd columns
//                   of `kept`
//
// Each block has the tiles of B and C, (kChunk, states), and a table of where each tensor has the
// segment's first step.
template <int kStates, int kShare, int kStreams, bool kGate>
struct BackwardShared {
  static constexpr int kQuads = kStates / 4;
  // With 16 states in 1 or 2 lanes, 4 divides dstate.
  static constexpr bool kAnyStates = kStates == 8 || kShare == 4;
  // The number of floats of a row of `kept`. The odd column frees accesses along both axes of bank
  // conflicts.
  static constexpr int kPitch = (kWarp + 1) * 4;
  static constexpr int kKept = kChunk * kQuads * kPitch;
  static constexpr int kWarps = kThreads / kWarp;
  enum Row { kInput, kDy, kRowKinds };
  // Values that a thread has no register left for. kBias is times log2 e; the last two are sums
  // over chunks.
  enum OwnValue { kBias, kSkip, kSumD, kSumBias, kOwnValues };
  enum Tensor {
    kB,
    kC,
    kDelta,
    kDdelta,
    kPartB,  // this block's part of dB
    kPartC,  // this block's part of dC
    kU,
    kZ = kU + kStreams,
    kDout = kZ + kStreams,
    kDu = kDout + kStreams,
    kDz = kDu + kStreams,
    kTensors = kDz + kStreams
  };

  int channel_lanes;  // the lanes of a channel
  int column;         // this thread's
  float* warp;

  __device__ BackwardShared(int channel_lanes, int column)
      : channel_lanes(channel_lanes), column(column), warp(of_warp(int(thread_again()) / kWarp)) {}

  static __host__ __device__ constexpr int columns(int channel_lanes) { return kWarp / channel_lanes; }
  static __host__ __device__ constexpr int pitch_of_rows(int channel_lanes) { return columns(channel_lanes) + 4; }
  static __host__ __device__ constexpr int rows_at(int channel_lanes) {
    return kKept + kChunk * columns(channel_lanes) * 4;
  }
  static __host__ __device__ constexpr int pairs_at(int channel_lanes) {
    return rows_at(channel_lanes) + kRowKinds * kChunk * pitch_of_rows(channel_lanes);
  }
  static __host__ __device__ constexpr int own_at(int channel_lanes) {
    return pairs_at(channel_lanes) + (kStreams == 2 && kGate ? kChunk * columns(channel_lanes) : 0);
  }
  static __host__ __device__ constexpr int dC_sums_at(int channel_lanes) {
    return own_at(channel_lanes) + kOwnValues * kWarp;
  }
  static __host__ __device__ constexpr int floats_of_warp(int channel_lanes) {
    return dC_sums_at(channel_lanes) + (kShare == 1 ? 0 : kChunk * channel_lanes * kStates);
  }
  static constexpr size_t bytes(int channel_lanes) {
    return (kWarps * floats_of_warp(channel_lanes) + 2 * kChunk * channel_lanes * kStates) * sizeof(float) +
           kTensors * sizeof(Start);
  }

  __device__ float* of_warp(int i) const { return shared_memory<float>() + i * floats_of_warp(channel_lanes); }
  __device__ float* B_tile() const { return of_warp(kWarps); }
  __device__ float* C_tile() const { return B_tile() + kChunk * channel_lanes * kStates; }
  __device__ Start* start(int tensor) const {
    return reinterpret_cast<Start*>(C_tile() + kChunk * channel_lanes * kStates) + tensor;
  }

  // The place for four of this thread's states, at the slot-th step.
  __device__ float* keep(int slot, int quad) const {
    return warp + (slot * kQuads + quad) * kPitch + int(threadIdx.x) % kWarp * 4;
  }
  __device__ float* step_values(int t) const { return warp + kKept + (t * columns(channel_lanes) + column) * 4; }
  __device__ float& row(Row kind, int t) const {
    return warp[rows_at(channel_lanes) + (kind * kChunk + t) * pitch_of_rows(channel_lanes) + column];
  }
  __device__ float* pair(int t) const {
    return warp + pairs_at(channel_lanes) + (t / 2 * columns(channel_lanes) + column) * 2;
  }
  __device__ float& own_value(OwnValue kind) const {
    return warp[own_at(channel_lanes) + kind * kWarp + int(threadIdx.x) % kWarp];
  }
  // The offset of the i-th four sums of a warp's (kChunk, states).
  __device__ int dC_sums(int i) const {
    return kShare == 1 ? i * kPitch + kWarp * 4 : dC_sums_at(channel_lanes) + i * 4;
  }
};

// A cross scan with a gate takes the most, and must fit what plan.h says that a block takes.
static_assert(BackwardShared<8, 1, 2, true>::bytes(1) <= kSharedOfFewStates);
static_assert(BackwardShared<16, 1, 2, true>::bytes(1) <= kSharedOfFewStates);
static_assert(BackwardShared<16, 2, 2, true>::bytes(2) <= kSharedOfFewStates);
static_assert(BackwardShared<16, 4, 2, true>::bytes(4) <= kSharedOfFewStates);
static_assert(BackwardShared<16, 4, 2, true>::bytes(int(kFewStates) / 16) <= kSharedOfFewStates);
static_assert(BackwardShared<16, 4, 2, true>::bytes(int(kMostStates) / 16) <= kSharedOfManyStates);

}  // namespace cmimtl::cuda
