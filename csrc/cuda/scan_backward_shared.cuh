// The shared memory of a block of the backward scan.
#pragma once

#include "scan_common.cuh"

namespace cmimtl::cuda {

// Where a tensor has the first step of a segment and the first channel of a block, and its strides in the order of
// processing.
struct alignas(16) Start {
  void* p;
  int step, channel;
};

// Per warp, where a column is one of its channels:
//     kept      (kChunk, kQuads, kWarp + 1) float4: the states h of a chunk, then their q; four of a lane side by side
//     sizes     (kChunk, columns) float4: d, x, the slope of softplus, dz / y; of x the cross scan keeps v and t
//     rows      (kRowKinds, kChunk, columns + 4): d x and dy, which the sums over channels read four at a time
//     pairs     (kChunk / 2, columns) float2: z of both streams; cross scan with a gate alone
//     own       (kOwnValues, kWarp)
//     dC_sums   (kChunk, states); with one lane to a channel they are in the 33rd columns of `kept`
// Per block: the tiles of B and C, (kChunk, states), and where each tensor has the segment's first step.
template <int kStates, int kShare, int kStreams, bool kGate>
struct BackwardShared {
  static constexpr int kQuads = kStates / 4;
  static constexpr bool kAnyStates = kStates == 8 || kShare == 4;  // with 16 states in 1 or 2 lanes, 4 divides dstate
  static constexpr int kPitch = (kWarp + 1) * 4;  // floats of a row of `kept`: conflict-free along both axes
  static constexpr int kKept = kChunk * kQuads * kPitch;
  static constexpr int kWarps = kThreads / kWarp;
  enum Row { kSizeX, kDy, kRowKinds };
  // Of a thread, which has no register left for them: kBias is times log2 e, the last two are sums over chunks.
  enum OwnValue { kBias, kSkip, kSumD, kSumBias, kOwnValues };
  enum Tensor {
    kB,
    kC,
    kDelta,
    kDdelta,
    kPartB,  // this block's part of dB
    kPartC,
    kU,
    kZ = kU + kStreams,
    kDout = kZ + kStreams,
    kDu = kDout + kStreams,
    kDz = kDu + kStreams,
    kOut = kDz + kStreams,
    kTensors = kOut + kStreams
  };

  int lanes;  // of a channel
  int column;
  float* warp;

  __device__ BackwardShared(int lanes, int column)
      : lanes(lanes), column(column), warp(of_warp(int(thread_again()) / kWarp)) {}

  static __host__ __device__ constexpr int columns(int lanes) { return kWarp / lanes; }
  static __host__ __device__ constexpr int pitch_of_rows(int lanes) { return columns(lanes) + 4; }
  static __host__ __device__ constexpr int rows_at(int lanes) { return kKept + kChunk * columns(lanes) * 4; }
  static __host__ __device__ constexpr int pairs_at(int lanes) {
    return rows_at(lanes) + kRowKinds * kChunk * pitch_of_rows(lanes);
  }
  static __host__ __device__ constexpr int own_at(int lanes) {
    return pairs_at(lanes) + (kStreams == 2 && kGate ? kChunk * columns(lanes) : 0);
  }
  static __host__ __device__ constexpr int dC_sums_at(int lanes) { return own_at(lanes) + kOwnValues * kWarp; }
  static __host__ __device__ constexpr int floats_of_warp(int lanes) {
    return dC_sums_at(lanes) + (kShare == 1 ? 0 : kChunk * lanes * kStates);
  }
  static constexpr size_t bytes(int lanes) {
    return (kWarps * floats_of_warp(lanes) + 2 * kChunk * lanes * kStates) * sizeof(float) + kTensors * sizeof(Start);
  }

  __device__ float* of_warp(int i) const { return shared_memory<float>() + i * floats_of_warp(lanes); }
  __device__ float* B_tile() const { return of_warp(kWarps); }
  __device__ float* C_tile() const { return B_tile() + kChunk * lanes * kStates; }
  __device__ Start* start(int tensor) const {
    return reinterpret_cast<Start*>(C_tile() + kChunk * lanes * kStates) + tensor;
  }

  // Four of this thread's states, in the place of the slot-th step.
  __device__ float* keep(int slot, int quad) const {
    return warp + (slot * kQuads + quad) * kPitch + int(threadIdx.x) % kWarp * 4;
  }
  __device__ float* sizes(int t) const { return warp + kKept + (t * columns(lanes) + column) * 4; }
  __device__ float& row(Row kind, int t) const {
    return warp[rows_at(lanes) + (kind * kChunk + t) * pitch_of_rows(lanes) + column];
  }
  __device__ float* pair(int t) const { return warp + pairs_at(lanes) + (t / 2 * columns(lanes) + column) * 2; }
  __device__ float& own_value(OwnValue kind) const {
    return warp[own_at(lanes) + kind * kWarp + int(threadIdx.x) % kWarp];
  }
  // The i-th four of (kChunk, states) sums of a warp.
  __device__ int dC_sums(int i) const { return kShare == 1 ? i * kPitch + kWarp * 4 : dC_sums_at(lanes) + i * 4; }
};

// The cross scan with a gate has the most. Up to 128 states fit what a block gets on compute capability 8.6, 8.9 and 12.0;
// for more, cmimtl_kernels/backends.py asks the device whether it has this much.
constexpr size_t kSmallestDevice = 99 << 10, kSharedOfManyStates = 120 << 10;
static_assert(BackwardShared<8, 1, 2, true>::bytes(1) <= kSmallestDevice);
static_assert(BackwardShared<16, 1, 2, true>::bytes(1) <= kSmallestDevice);
static_assert(BackwardShared<16, 2, 2, true>::bytes(2) <= kSmallestDevice);
static_assert(BackwardShared<16, 4, 2, true>::bytes(4) <= kSmallestDevice);
static_assert(BackwardShared<16, 4, 2, true>::bytes(128 / 16) <= kSmallestDevice);
static_assert(BackwardShared<16, 4, 2, true>::bytes(int(kMostStates) / 16) <= kSharedOfManyStates);

}  // namespace cmimtl::cuda
