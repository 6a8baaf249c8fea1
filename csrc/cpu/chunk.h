// What forward and backward share: the geometry of a task and the tiles of a chunk of processed steps.
//
// A task is one sample and some blocks of channels. It goes through the sample's valid steps in the order of the recurrence,
// `chunk` processed steps at a time, a whole checkpoint interval where there are checkpoints, and in each chunk through its
// channels, so that rows stream from memory. Processed step i is step i of the sequence, or counted from the last valid
// one with `reverse`. In the cross scan two neighbouring steps are the product and the sum of one pair.
#pragma once

#include "tile.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// Channels whose parts of dB and dC are added up first: two tiles, never of two groups of B and C.
struct Block {
  int64_t channel;  // the first
  int count;        // <= kBlockChannels
  int64_t group;
};

inline int64_t block_count(const ScanSizes& s) {
  return s.ngroups * ((s.dim / s.ngroups + kBlockChannels - 1) / kBlockChannels);
}

inline Block block_of(const ScanSizes& s, int64_t index) {
  const int64_t per_group = s.dim / s.ngroups, blocks = (per_group + kBlockChannels - 1) / kBlockChannels;
  const int64_t group = index / blocks, offset = index % blocks * kBlockChannels;
  const int64_t left = per_group - offset;
  return {group * per_group + offset, int(left < kBlockChannels ? left : kBlockChannels), group};
}

// A task: some neighbouring blocks of one sample. How blocks are dealt out to tasks changes no result.
struct Task {
  int64_t batch, first_block, last_block;  // blocks first … last - 1
  int64_t blocks() const { return last_block - first_block; }
};

// The channels of one tile, and its place among the tiles of the task.
struct Tile {
  int64_t channel;
  int channels;  // <= kChannels
  int64_t slot;
};

// Calls f(tile) for the tiles of one block of the task.
template <class F>
inline void each_tile(const Task& task, const Block& block, int64_t index, F f) {
  for (int k = 0; k * kChannels < block.count; ++k) {
    const int left = block.count - k * kChannels;
    f(Tile{block.channel + k * kChannels, left < kChannels ? left : kChannels,
           (index - task.first_block) * (kBlockChannels / kChannels) + k});
  }
}
template <class F>
inline void each_tile(const ScanSizes& s, const Task& task, F f) {
  for (int64_t i = task.first_block; i < task.last_block; ++i) each_tile(task, block_of(s, i), i, f);
}

inline int64_t valid_length(const ScanForward& p, int64_t batch) {
  if (!p.lengths) return p.size.length;
  const int64_t n = p.lengths[batch];
  return n < 0 ? 0 : n > p.size.length ? p.size.length : n;
}

inline int chunk_steps(const ScanSizes& s) { return s.checkpoint_every ? int(s.checkpoint_every) : kSteps; }

// Processed steps begin … begin + count - 1 as spans of the step axis and of each stream.
struct Chunk {
  int64_t begin;
  int count;
  Span steps;       // of delta
  Span streams[2];  // of u, or of v (at the product's place) and t (at the sum's)
  int pairs;        // stream steps: count, or count / 2
};

inline Chunk chunk_at(const ScanForward& p, int64_t valid, int64_t begin) {
  const int64_t total = valid * p.streams, left = total - begin;
  const int chunk = chunk_steps(p.size);
  Chunk c;
  c.begin = begin;
  c.count = int(left < chunk ? left : chunk);
  c.pairs = c.count / p.streams;
  const int64_t sign = p.reverse ? -1 : 1;
  c.steps = {p.reverse ? total - 1 - begin : begin, sign, c.count, 0, 1};
  const int64_t origin = p.reverse ? valid - 1 - begin / p.streams : begin / p.streams;
  for (int m = 0; m < p.streams; ++m) {
    // Reversed, the sum comes first.
    const int place = p.reverse ? p.streams - 1 - m : m;
    c.streams[m] = {origin, sign, c.pairs, place, p.streams};
  }
  return c;
}

// Calls f(product, sum) with the offsets of the two steps of each pair in every vector of a tile.
template <class T, class F>
inline void each_pair(const Chunk& c, int vectors, F f) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int v = 0; v < vectors; ++v)
    for (int j = 0; j < c.pairs; ++j) {
      const int pair = (v * kSteps + 2 * j) * kLanes;
      f(pair + c.streams[0].first * kLanes, pair + c.streams[1].first * kLanes);
    }
}
template <class T, class F>
inline void each_step(const Chunk& c, int vectors, F f) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int v = 0; v < vectors; ++v)
    for (int i = 0; i < c.count; ++i) f((v * kSteps + i) * kLanes, v * kLanes);
}

// One value for each channel of a tile; 0 past the last, and where there is no tensor.
template <class T>
void load_channels(const void* data, int64_t channel, int count, T* out) {
  for (int c = 0; c < kChannels; ++c) out[c] = data && c < count ? static_cast<const T*>(data)[channel + c] : T(0);
}

// States of a tile: (channel, dstate) in memory, [vector][state][lane] here.
template <class T>
void load_states(const T* from, int64_t dstate, int count, T scale, T* to) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int c = 0; c < padded; ++c) {
    T* lane = to + c / kLanes * dstate * kLanes + c % kLanes;
    for (int64_t n = 0; n < dstate; ++n) lane[n * kLanes] = c < count && from ? from[c * dstate + n] * scale : T(0);
  }
}
template <class T>
void store_states(const T* from, int64_t dstate, int count, T* to) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int c = 0; c < count; ++c) {
    const T* lane = from + c / kLanes * dstate * kLanes + c % kLanes;
    for (int64_t n = 0; n < dstate; ++n) to[c * dstate + n] = lane[n * kLanes];
  }
}

// Raw step sizes -> d_t = softplus(delta + bias); with `slope`, its derivative too.
template <class T>
void step_sizes(const ScanForward& p, const Chunk& c, int vectors, const T* bias, T* delta, T* slope) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  each_step<T>(c, vectors, [&](int i, int channel) {
    V x = at(delta + i) + at(bias + channel), d = 1 - V{};
    if (p.delta_softplus) softplus<T, V, I>(V(x), x, d);
    at(delta + i) = x;
    if (slope) at(slope + i) = d;
  });
}

// Whether |d_t * A| stays where exp2_product holds, for every step and channel of a vector. False for NaN too.
template <class T>
bool moderate(const T* delta, int count, typename Simd<T>::V largest) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  I all = ~I{};
  for (int i = 0; i < count; ++i) {
    const V x = at(delta + i * Simd<T>::kLanes) * largest;
    all &= (x < FloatTraits<T>::kMaxExponent) & (x > -FloatTraits<T>::kMaxExponent);
  }
  for (int l = 0; l < Simd<T>::kLanes; ++l)
    if (!all[l]) return false;
  return true;
}

// The largest |A| of each channel, times log2(e) as A2 is. [vector][lane]
template <class T>
void largest_rates(const T* A2, int64_t dstate, int vectors, T* out) {
  using V = typename Simd<T>::V;
  constexpr int kLanes = Simd<T>::kLanes;
  for (int v = 0; v < vectors; ++v) {
    V most = V{};
    for (int64_t n = 0; n < dstate; ++n) {
      V x = at(A2 + (v * dstate + n) * kLanes);
      x = x < 0 ? V(-x) : x;
      most = x > most ? x : most;
    }
    at(out + v * kLanes) = most;
  }
}

// The sum over the lanes of each state: [state][lane] -> [state].
template <class T>
void sum_lanes(const T* from, int64_t dstate, T* to) {
  constexpr int kLanes = Simd<T>::kLanes;
  for (int64_t n = 0; n < dstate; ++n) {
    T sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += from[n * kLanes + l];
    to[n] = sum;
  }
}

// Hands out pieces of a task's scratch memory, aligned to a cache line. Three lines between two pieces keep tiles, whose
// size is a power of two, from sharing the sets of the first-level cache step by step.
struct Scratch {
  static constexpr int64_t kGap = 3 * 64, kPieces = 40;
  char* next;
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += (count * int64_t(sizeof(T)) + 63) / 64 * 64 + kGap;
    return piece;
  }
};

}  // namespace cmimtl::cpu::CMIMTL_ISA
