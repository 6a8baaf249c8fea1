// What the forward and the backward scan share: the place of a thread, which is its channel and
// states, and the tiles of B and C.
#pragma once

#include "device.h"
#include "plan.h"
#include "selective_scan.h"
#include "split.h"
#include "step_math.cuh"
#include "strided_pointer.cuh"

namespace cmimtl::cuda {

// The place of a thread. The lanes of a channel are kWarp / channel_lanes lanes of the warp apart,
// so that neighbouring lanes have neighbouring channels, which lie side by side in memory. The
// states of a channel go around its lanes in fours, see state(). A thread has kChannels
// neighbouring channels. A thread past the last channel computes what the last one does, and stores
// nothing.
template <int kStates, int kShare, int kChannels = 1>
struct Place {
  int sample, segment, group;
  int tile;                        // this block's tile, among those of the group's channels
  int channel_lanes;               // the lanes of a channel: kShare, or more where kShare is 4
  int channel_lane;                // this lane, among those of its channel
  int column;                      // this thread, among those of its warp with this channel_lane
  int states;                      // the states of a channel, padded: channel_lanes * kStates
  int channels;                    // the channels of the group, from this block's first one on
  int offset;                      // this thread's first channel, among those of the block
  int64_t first_channel, channel;  // the first channel of the block and of this thread, of all
  bool live;                       // whether this thread has a channel of its own

  // `run` has the segments that the launch has blocks for.
  __device__ Place(const ScanSizes& s, const Segments& run) {
    channel_lanes = kShare;
    if constexpr (kShare == 4) {
      while (channel_lanes * kStates < s.dstate) channel_lanes *= 2;
    }
    states = channel_lanes * kStates;
    const int per_warp = kWarp / channel_lanes, thread = int(thread_again());
    channel_lane = thread % kWarp / per_warp;
    column = thread % per_warp;
    const int per_block = kThreads / channel_lanes * kChannels, per_group = int(s.dim / s.ngroups);
    const unsigned tiles = unsigned((per_group + per_block - 1) / per_block);
    unsigned index = block_again();
    tile = int(index % tiles);
    index /= tiles;
    group = int(index % unsigned(s.ngroups));
    index /= unsigned(s.ngroups);
    segment = int(run.first) + int(index % unsigned(run.count));
    sample = int(index / unsigned(run.count));
    const int begin = tile * per_block;
    channels = per_group - begin;
    offset = (thread / kWarp * per_warp + column) * kChannels;
    live = begin + offset < per_group;
    offset = min(offset, channels - kChannels);
    first_channel = int64_t(group) * per_group + begin;
    channel = first_channel + offset;
  }

  // `offset`, `live` and `channel` computed again, for code that has no register to keep them in.
  __device__ int offset_again() const {
    const int per_warp = kWarp / channel_lanes, thread = int(thread_again());
    return (thread / kWarp * per_warp + thread % per_warp) * kChannels;
  }
  __device__ bool live_again() const { return offset_again() < channels; }
  __device__ bool live_now() const {
    if constexpr (kShare == 1) return int(threadIdx.x) < channels / kChannels;
    return live;
  }
  __device__ int64_t channel_again() const { return first_channel + min(offset_again(), channels - kChannels); }

  // The number of the i-th state of this thread, of those of its channel.
  __device__ int state(int i) const { return (i / 4 * channel_lanes + channel_lane) * 4 + i % 4; }

  // Where a tensor of (batch, slots, dim, dstate) has the states of this sample and channel in one
  // of its slots.
  template <class T>
  __device__ T* row(T* p, const ScanSizes& s, int64_t slots, int64_t slot) const {
    return p + ((sample * slots + slot) * s.dim + channel) * s.dstate;
  }
  __device__ void load(const float* p, int dstate, float (&x)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates; ++i) x[i] = state(i) < dstate ? p[state(i)] : 0.0f;
  }
  // Stores the states in a tensor of our own. It is aligned, so four states are one store where
  // dstate allows it.
  __device__ void store(float* p, int dstate, const float (&x)[kStates]) const {
    dstate = anew(dstate);
    if (!live_now()) return;
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

// Where a block reads B and C, from its first step on, in the order of processing.
template <class T>
struct Maps {
  const T *B, *C;  // at the first step
  int B_step, C_step, B_state, C_state;
  int states, dstate;

  static __device__ Maps of_block(const ScanForward& p, int sample, int group, int states, int64_t first) {
    return {.B = static_cast<const T*>(p.B.data) + sample * p.B.batch + first * p.B.step + group * p.B.group,
            .C = static_cast<const T*>(p.C.data) + sample * p.C.batch + first * p.C.step + group * p.C.group,
            .B_step = int(p.reverse ? -p.B.step : p.B.step),
            .C_step = int(p.reverse ? -p.C.step : p.C.step),
            .B_state = int(p.B.state),
            .C_state = int(p.C.state),
            .states = states,
            .dstate = int(p.size.dstate)};
  }
  __device__ const T* B_at(int row, int n) const { return step_on(step_on(B, row, B_step), n, B_state); }
  __device__ const T* C_at(int row, int n) const { return step_on(step_on(C, row, C_step), n, C_state); }
};

// Tiles of B and of C, kRows processed steps each, as float in shared memory: (row, state), padded
// with zeros. B is multiplied by ln 2, because d is kept times log2 e. While one tile is used,
// registers hold the next one.
template <class T, int kRows, int kMostStatesOfChannel>
struct MapTiles : Maps<T> {
  static constexpr int kValues = kRows * kMostStatesOfChannel;
  static constexpr int kPerThread = (kValues + kThreads - 1) / kThreads;
  using Maps<T>::states, Maps<T>::dstate;
  T b[kPerThread], c[kPerThread];

  __device__ explicit MapTiles(const Maps<T>& maps) : Maps<T>(maps) {}

  // Loads rows [row, row + kRows), counted from the first step; those from `count` on are zero.
  // Without kWithB it loads only C.
  template <bool kWithB>
  __device__ void load(int row, int count) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = int(threadIdx.x) + i * kThreads, n = at & (states - 1), r = row + (at >> log2_of(states));
      b[i] = c[i] = T{};
      if (at < kRows * states && n < dstate && r < count) {
        if constexpr (kWithB) b[i] = *this->B_at(r, n);
        c[i] = *this->C_at(r, n);
      }
    }
  }
  template <bool kWithB>
  __device__ void store(float* B_tile, float* C_tile) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = int(threadIdx.x) + i * kThreads;
      if (at < kRows * states) {
        if constexpr (kWithB) B_tile[at] = to_float(b[i]) * kLn2;
        C_tile[at] = to_float(c[i]);
      }
    }
  }
};

// The same tiles, but the next one lies in shared memory in the storage type, where asynchronous
// copies of four bytes put it. A thread converts only what it has copied itself, so it need wait
// for no other thread's copies. Two neighbouring states of a half type are one copy where `paired`
// says that they are one aligned word (states_in_pairs of plan.h). Where they are not, they are
// loaded and stored without a copy.
template <class T, int kRows, int kMostStatesOfChannel>
struct AsyncMapTiles : Maps<T> {
  static constexpr int kValues = kRows * kMostStatesOfChannel;
  static constexpr int kTogether = 4 / int(sizeof(T));
  static constexpr int kPerThread = (kValues / kTogether + kThreads - 1) / kThreads;
  static constexpr int kRawBytes = 2 * kValues * int(sizeof(T));
  using Maps<T>::states, Maps<T>::dstate;
  bool paired;
  T* raw;  // kRawBytes of shared memory: first B, then C

  __device__ AsyncMapTiles(const Maps<T>& maps, bool paired, void* raw)
      : Maps<T>(maps), paired(kTogether == 1 || paired), raw(static_cast<T*>(raw)) {}

  // Starts to load rows [row, row + kRows), counted from the first step; those from `count` on are
  // zero. Without kWithC it loads only B.
  template <bool kWithC>
  __device__ void load(int row, int count) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = (int(threadIdx.x) + i * kThreads) * kTogether, r = row + at / states;
      // The number of states is a power of two. Without anew() registers would keep what is made of
      // n.
      const int n = at & anew(states - 1);
      if (at >= kRows * states) break;
      const int left = r < count ? dstate - n : 0;
      load(raw + at, this->B_at(r, n), this->B_state, left);
      if constexpr (kWithC) load(raw + kValues + at, this->C_at(r, n), this->C_state, left);
    }
    copies_commit();
  }
  __device__ void load(T* to, const T* from, int stride, int left) const {
    if (paired) {
      copy_async<4>(to, from, left > 0);
    } else {
#pragma unroll 1
      for (int k = 0; k < kTogether; ++k) to[k] = k < left ? from[k * stride] : T{};
    }
  }
  // Converts the tile that was loaded. Since then the thread has committed at least kLater groups
  // of copies.
  template <bool kWithC, int kLater>
  __device__ void store(float* B_tile, float* C_tile) const {
    copies_wait<kLater>();
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = (int(threadIdx.x) + i * kThreads) * kTogether;
      if (at >= kRows * states) break;
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        B_tile[at + k] = to_float(raw[at + k]) * kLn2;
        if constexpr (kWithC) C_tile[at + k] = to_float(raw[kValues + at + k]);
      }
    }
  }
};

}  // namespace cmimtl::cuda
