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
// A thread has kChannels neighbouring channels. One past the last channel computes what the last one does and stores
// nothing.
template <int kStates, int kShare, int kChannels = 1>
struct Place {
  int sample, segment, group;
  int tile;                        // of the group's channels, this block's
  int lanes;                       // of a channel; kShare, or more where kShare is 4
  int lane;                        // of this channel's
  int column;                      // thread within the warp, of those with the same `lane`
  int states;                      // of a channel, padded: lanes * kStates
  int channels;                    // of the group, from this block's on
  int offset;                      // this thread's first channel within the block's
  int64_t first_channel, channel;  // of dim: the block's first, this thread's first
  bool live;

  // `run`: the segments that the launch has blocks for.
  __device__ Place(const ScanSizes& s, const Segments& run) {
    lanes = kShare;
    if constexpr (kShare == 4) {
      while (lanes * kStates < s.dstate) lanes *= 2;
    }
    states = lanes * kStates;
    const int per_warp = kWarp / lanes, thread = int(thread_again());
    lane = thread % kWarp / per_warp;
    column = thread % per_warp;
    const int per_block = kThreads / lanes * kChannels, per_group = int(s.dim / s.ngroups);
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

  // The same as `offset`, `live` and `channel`, for where there is no register to keep them in.
  __device__ int offset_again() const {
    const int per_warp = kWarp / lanes, thread = int(thread_again());
    return (thread / kWarp * per_warp + thread % per_warp) * kChannels;
  }
  __device__ bool live_again() const { return offset_again() < channels; }
  __device__ bool live_now() const {
    if constexpr (kShare == 1) return int(threadIdx.x) < channels / kChannels;
    return live;
  }
  __device__ int64_t channel_again() const { return first_channel + min(offset_again(), channels - kChannels); }

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

// B and C of a block, from its first step on, in the order of processing.
template <class T>
struct Maps {
  const T *B, *C;  // at the first step, for the whole block
  int B_step, C_step, B_state, C_state;
  int states, dstate;

  __device__ Maps(const ScanForward& p, int sample, int group, int states, int64_t first)
      : B(static_cast<const T*>(p.B.data) + sample * p.B.batch + first * p.B.step + group * p.B.group),
        C(static_cast<const T*>(p.C.data) + sample * p.C.batch + first * p.C.step + group * p.C.group),
        B_step(int(p.reverse ? -p.B.step : p.B.step)),
        C_step(int(p.reverse ? -p.C.step : p.C.step)),
        B_state(int(p.B.state)),
        C_state(int(p.C.state)),
        states(states),
        dstate(int(p.size.dstate)) {}
  // The same from members that were kept elsewhere.
  __device__ Maps(const T* B, const T* C, int B_step, int C_step, int B_state, int C_state, int states, int dstate)
      : B(B),
        C(C),
        B_step(B_step),
        C_step(C_step),
        B_state(B_state),
        C_state(C_state),
        states(states),
        dstate(dstate) {}
  __device__ const T* B_at(int row, int n) const { return step_on(step_on(B, row, B_step), n, B_state); }
  __device__ const T* C_at(int row, int n) const { return step_on(step_on(C, row, C_step), n, C_state); }
};

// Tiles of kRows processed steps of B and of C, as float in shared memory: (row, state), padded with zeros; B times ln 2,
// as d is kept times log2 e. A tile is on its way, in registers, while the one before is used.
template <class T, int kRows, int kMostStatesOfChannel>
struct MapTiles : Maps<T> {
  static constexpr int kValues = kRows * kMostStatesOfChannel;
  static constexpr int kPerThread = (kValues + kThreads - 1) / kThreads;
  using Maps<T>::Maps, Maps<T>::states, Maps<T>::dstate;
  T b[kPerThread], c[kPerThread];

  // Rows [row, row + kRows) from the first step on; those from `count` on are zero. Without kWithB, of C alone.
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

// The same, but on its way by asynchronous copies of four bytes to shared memory, as the bytes are. A thread makes its
// values of the tile of what it has copied itself, so waiting for its copies is enough. Two neighbouring states of a half
// type are one copy where `paired` says that they lie so, see plan.h; where not, they are loaded and stored at once.
template <class T, int kRows, int kMostStatesOfChannel>
struct AsyncMapTiles : Maps<T> {
  static constexpr int kValues = kRows * kMostStatesOfChannel;
  static constexpr int kTogether = 4 / int(sizeof(T));
  static constexpr int kPerThread = (kValues / kTogether + kThreads - 1) / kThreads;
  static constexpr int kRawBytes = 2 * kValues * int(sizeof(T));
  using Maps<T>::states, Maps<T>::dstate;
  bool paired;
  T* raw;  // kRawBytes of shared memory: B, then C

  __device__ AsyncMapTiles(const Maps<T>& maps, bool paired, void* raw)
      : Maps<T>(maps), paired(kTogether == 1 || paired), raw(static_cast<T*>(raw)) {}

  // Rows [row, row + kRows) from the first step on; those from `count` on are zero. Without kWithC, of B alone.
  template <bool kWithC>
  __device__ void load(int row, int count) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int at = (int(threadIdx.x) + i * kThreads) * kTogether, r = row + at / states;
      const int n = at & anew(states - 1);  // a power of two; what is made of n would be kept in registers
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
  // kLater: groups of copies that the thread has committed after those of the tile, at least.
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
