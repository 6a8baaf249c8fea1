// What the forward and the backward scan share: which thread has which channel and states, and the tiles of B and C.
#pragma once

#include "device.h"
#include "plan.h"
#include "selective_scan.h"
#include "split.h"
#include "step_math.cuh"
#include "walk.cuh"

namespace cmimtl::cuda {

// Lanes of a channel lie kWarp / lanes apart, so that neighbours have neighbouring channels, which lie side by side in
// memory. Four states at a time go around the lanes: n = (q * lanes + lane) * 4 + i for q = 0 … kStates / 4 - 1.
// A thread past the last channel computes what the last one does and stores nothing.
template <int kStates, int kShare>
struct Place {
  int sample, segment, group;
  int tile;                        // of the group's channels, this block's
  int lanes;                       // of a channel; kShare, or more where kShare is 4
  int lane;                        // of this channel's
  int column;                      // channel within the warp
  int states;                      // of a channel, padded: lanes * kStates
  int channels;                    // of the group, from this block's on
  int offset;                      // channel within the block's
  int64_t first_channel, channel;  // of dim: the block's first, this thread's
  bool live;

  __device__ Place(const ScanSizes& s, int64_t segments) {
    lanes = kShare;
    if constexpr (kShare == 4) {
      while (lanes * kStates < s.dstate) lanes *= 2;
    }
    states = lanes * kStates;
    const int per_warp = kWarp / lanes, thread = int(thread_again());
    lane = thread % kWarp / per_warp;
    column = thread % per_warp;
    const int per_block = kThreads / lanes, per_group = int(s.dim / s.ngroups);
    const unsigned tiles = unsigned((per_group + per_block - 1) / per_block);
    unsigned index = block_again();
    tile = int(index % tiles);
    index /= tiles;
    group = int(index % unsigned(s.ngroups));
    index /= unsigned(s.ngroups);
    segment = int(index % unsigned(segments));
    sample = int(index / unsigned(segments));
    const int begin = tile * per_block;
    channels = per_group - begin;
    offset = thread / kWarp * per_warp + column;
    live = begin + offset < per_group;
    offset = min(offset, channels - 1);
    first_channel = int64_t(group) * per_group + begin;
    channel = first_channel + offset;
  }

  // The same as `live`, for where there is no register to keep it in.
  __device__ bool live_again() const {
    const int per_warp = kWarp / lanes, thread = int(thread_again());
    return thread / kWarp * per_warp + thread % per_warp < channels;
  }

  // Of the i-th of this thread's states.
  __device__ int state(int i) const { return (i / 4 * lanes + lane) * 4 + i % 4; }

  // The states of one (sample, slot) of `slots`, of a (batch, slots, dim, dstate) tensor.
  template <class T>
  __device__ T* row(T* p, const ScanSizes& s, int64_t slots, int64_t slot) const {
    return p + ((sample * slots + slot) * s.dim + channel) * s.dstate;
  }
  __device__ void load(const float* p, int dstate, float (&x)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates; ++i) x[i] = state(i) < dstate ? p[state(i)] : 0.0f;
  }
  // Into a tensor of our own, so aligned: four states at once where a row is.
  __device__ void store(float* p, int dstate, const float (&x)[kStates]) const {
    dstate = anew(dstate);
    if (!live) return;
    if (dstate % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kStates; i += 4)
        if (state(i) < dstate) store_vector(p + state(i), make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]));
    } else {
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        if (state(i) < dstate) p[state(i)] = x[i];
    }
  }
};

// Tiles of kRows processed steps of B and of C, as float in shared memory: (row, state), padded with zeros. A tile is on
// its way, in registers, while the one before is used.
template <class T, int kRows, int kMostStatesOfChannel>
struct MapTiles {
  static constexpr int kValues = kRows * kMostStatesOfChannel;
  static constexpr int kPerThread = (kValues + kThreads - 1) / kThreads;
  const T *B, *C;  // at the first step, for the whole block
  int B_step, C_step, B_state, C_state;
  int states, dstate;
  T b[kPerThread], c[kPerThread];

  __device__ MapTiles(const ScanForward& p, int sample, int group, int states, int64_t first)
      : B(static_cast<const T*>(p.B.data) + sample * p.B.batch + first * p.B.step + group * p.B.group),
        C(static_cast<const T*>(p.C.data) + sample * p.C.batch + first * p.C.step + group * p.C.group),
        B_step(int(p.reverse ? -p.B.step : p.B.step)),
        C_step(int(p.reverse ? -p.C.step : p.C.step)),
        B_state(int(p.B.state)),
        C_state(int(p.C.state)),
        states(states),
        dstate(int(p.size.dstate)) {}

  // The same from members that were kept elsewhere.
  __device__ MapTiles(const T* B, const T* C, int B_step, int C_step, int B_state, int C_state, int states, int dstate)
      : B(B),
        C(C),
        B_step(B_step),
        C_step(C_step),
        B_state(B_state),
        C_state(C_state),
        states(states),
        dstate(dstate) {}

  // Rows [row, row + kRows) from the first step on; those from `count` on are zero.
  __device__ void load(int row, int count) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = int(threadIdx.x) + i * kThreads, n = at % states, r = row + at / states;
      b[i] = c[i] = T{};
      if (at < kRows * states && n < dstate && r < count) {
        b[i] = *step_on(step_on(B, r, B_step), n, B_state);
        c[i] = *step_on(step_on(C, r, C_step), n, C_state);
      }
    }
  }
  // B is stored times ln 2, as d is kept times log2 e.
  __device__ void store(float* B_tile, float* C_tile) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = int(threadIdx.x) + i * kThreads;
      if (at < kRows * states) {
        B_tile[at] = to_float(b[i]) * kLn2;
        C_tile[at] = to_float(c[i]);
      }
    }
  }
};

}  // namespace cmimtl::cuda
