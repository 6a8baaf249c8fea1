// The forward pass of one task. Lanes are channels; a group of states of one vector of channels stays in registers over a
// chunk, after the chunk's exponentials have been computed into the first-level cache: the exponentials are bound by
// throughput, the recurrence by latency, and apart each fills the pipes.
#pragma once

#include "chunk.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// What a vector of channels brings to a group of kGroup states, over the steps of a chunk.
template <class T>
struct ForwardSlice {
  int count;
  bool moderate;
  const T* delta;    // [step][lane]
  const T* delta_x;  // [step][lane]  delta * x
  T* y;              // [step][lane]  sum over states added
  const T *B, *C;    // [step][dstate], at the group's first state
  int64_t dstate;
  const T* A2;  // [state][lane]  A * log2(e)
  T* state;     // [state][lane]
  T* decay;     // [step][state of the group][lane], scratch
};

// States and the two halves of y fill eight and two of AVX2's sixteen registers.
constexpr int kForwardGroup = 8;

template <int kGroup, class T>
inline void decays(int count, bool moderate, const T* delta, const T* A2, T* decay) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLanes = Simd<T>::kLanes;
  V rate[kGroup];
  for (int n = 0; n < kGroup; ++n) rate[n] = at(A2 + n * kLanes);
  if (moderate) {
    for (int i = 0; i < count; ++i)
#pragma GCC unroll 8
      for (int n = 0; n < kGroup; ++n)
        at(decay + (i * kGroup + n) * kLanes) = exp2_product<T, V, I>(at(delta + i * kLanes), rate[n]);
  } else {
    for (int i = 0; i < count; ++i)
      for (int n = 0; n < kGroup; ++n)
        at(decay + (i * kGroup + n) * kLanes) = exp2_any<T, V, I>(V(at(delta + i * kLanes) * rate[n]));
  }
}

template <int kGroup, class T>
void forward_group(const ForwardSlice<T>& s) {
  using V = typename Simd<T>::V;
  constexpr int kLanes = Simd<T>::kLanes;
  decays<kGroup>(s.count, s.moderate, s.delta, s.A2, s.decay);
  V state[kGroup];
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) state[n] = at(s.state + n * kLanes);
  // Copies, since the compiler must take every store for one that may change *s.
  const int count = s.count;
  const int64_t dstate = s.dstate;
  const T *B = s.B, *C = s.C, *decay = s.decay, *delta_x_of = s.delta_x;
  T* y_of = s.y;
  for (int i = 0; i < count; ++i, B += dstate, C += dstate, decay += kGroup * kLanes) {
    const V delta_x = at(delta_x_of + i * kLanes);
    V y = at(y_of + i * kLanes), odd = V{};
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      state[n] = at(decay + n * kLanes) * state[n] + delta_x * B[n];
      (n % 2 ? odd : y) += state[n] * C[n];
    }
    at(y_of + i * kLanes) = y + odd;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) at(s.state + n * kLanes) = state[n];
}

// Calls f<kGroup>(first state) over all states, in groups of kMost and what is left in powers of two.
template <int kMost, class F>
inline void each_group(int64_t dstate, F f) {
  static_assert(kMost == 4 || kMost == 8);
  int64_t n = 0;
  for (; n + kMost <= dstate; n += kMost) f.template operator()<kMost>(n);
  if (dstate - n >= 4) f.template operator()<4>(n), n += 4;
  if (dstate - n >= 2) f.template operator()<2>(n), n += 2;
  if (dstate - n >= 1) f.template operator()<1>(n);
}

template <class T>
struct ForwardScratch {
  T *A2, *state;           // [slot][vector][state][lane]
  T *largest, *D, *bias;   // [slot][channel]
  T *B, *C;                // [step][state]
  T *delta, *x, *y, *z;    // a tile each
  T* decay;

  ForwardScratch(Scratch memory, int64_t dstate, int64_t blocks) {
    for (T** states : {&A2, &state}) *states = memory.take<T>(blocks * kBlockChannels * dstate);
    for (T** channels : {&largest, &D, &bias}) *channels = memory.take<T>(blocks * kBlockChannels);
    for (T** map : {&B, &C}) *map = memory.take<T>(kSteps * dstate);
    for (T** tile : {&delta, &x, &y, &z}) *tile = memory.take<T>(kSteps * kChannels);
    decay = memory.take<T>(kSteps * kForwardGroup * Simd<T>::kLanes);
  }
  static int64_t bytes(int64_t dstate, int64_t blocks) {
    const int64_t tiles = kSteps * (4 * kChannels + kForwardGroup * Simd<T>::kLanes);
    return int64_t(sizeof(T)) * (blocks * kBlockChannels * (2 * dstate + 3) + 2 * kSteps * dstate + tiles) +
           Scratch::kPieces * (64 + Scratch::kGap);
  }
};

// One tile of one chunk: loads, the recurrence of every vector and group, gate, stores.
template <class T>
void forward_tile(const ForwardScratch<T>& w, const ScanForward& p, const Chunk& c, int64_t batch, const Tile& tile,
                  const Prefetch& next) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t channel = tile.channel, dstate = p.size.dstate;
  const int channels = tile.channels, vectors = (channels + kLanes - 1) / kLanes;
  const T *D = w.D + tile.slot * kChannels, *bias = w.bias + tile.slot * kChannels;
  const T *largest = w.largest + tile.slot * kChannels, *A2 = w.A2 + tile.slot * kChannels * dstate;
  T* states = w.state + tile.slot * kChannels * dstate;

  load(p.dtype, p.delta, batch, channel, channels, c.steps, w.delta);
  step_sizes<T>(p, c, vectors, bias, w.delta, nullptr);
  for (int m = 0; m < p.streams; ++m) load(p.dtype, p.u[m], batch, channel, channels, c.streams[m], w.x);
  if (p.streams == 2)
    each_pair<T>(c, vectors, [&](int product, int sum) {
      const V v = at(w.x + product), t = at(w.x + sum);
      at(w.x + product) = v * t;
      at(w.x + sum) = v + t;
    });
  each_step<T>(c, vectors, [&](int i, int channel) {
    const V x = at(w.x + i);
    at(w.y + i) = at(D + channel) * x;
    at(w.x + i) = at(w.delta + i) * x;
  });

  for (int v = 0; v < vectors; ++v) {
    next.portion(v, vectors);
    const int row = v * kSteps * kLanes;
    const bool usual = moderate(w.delta + row, c.count, at(largest + v * kLanes));
    each_group<kForwardGroup>(dstate, [&]<int kGroup>(int64_t n) {
      const int64_t first = (v * dstate + n) * kLanes;
      forward_group<kGroup>(ForwardSlice<T>{c.count, usual, w.delta + row, w.x + row, w.y + row, w.B + n, w.C + n,
                                            dstate, A2 + first, states + first, w.decay});
    });
  }

  if (p.z[0].data) {
    for (int m = 0; m < p.streams; ++m) load(p.dtype, p.z[m], batch, channel, channels, c.streams[m], w.z);
    if (p.streams == 2)
      each_pair<T>(c, vectors, [&](int product, int sum) {
        const V z = at(w.z + product) * at(w.z + sum), gate = z * sigmoid<T, V, I>(z);
        at(w.y + product) *= gate;
        at(w.y + sum) *= gate;
      });
    else
      each_step<T>(c, vectors, [&](int i, int) {
        const V z = at(w.z + i);
        at(w.y + i) *= z * sigmoid<T, V, I>(z);
      });
  }
  for (int m = 0; m < p.streams; ++m) store(p.dtype, p.out[m], batch, channel, channels, c.streams[m], w.y);
}

template <class T>
void load_maps(const ScanForward& p, const Chunk& c, int64_t batch, int64_t group, T* B, T* C) {
  for (int i = 0; i < c.count; ++i) {
    const int64_t step = c.steps.origin + c.steps.sign * i;
    load_map(p.dtype, p.B, batch, step, group, p.size.dstate, B + i * p.size.dstate);
    load_map(p.dtype, p.C, batch, step, group, p.size.dstate, C + i * p.size.dstate);
  }
}

// What a tile of forward reads, to be fetched while the tile before it is computed: the neighbour's, or at the end of the
// task's channels the first of the next chunk.
inline Prefetch next_inputs(const ScanForward& p, const Task& task, const Chunk& c, const Chunk* after, const Tile& tile) {
  const Block last = block_of(p.size, task.last_block - 1);
  const bool wrap = tile.channel + tile.channels >= last.channel + last.count;
  Prefetch next;
  if (wrap && !after) return next;
  const int64_t channel = wrap ? block_of(p.size, task.first_block).channel : tile.channel + tile.channels;
  const int64_t left = p.size.dim - channel;
  const int channels = int(left < kChannels ? left : kChannels);
  const Chunk& from = wrap ? *after : c;
  next.add(p.dtype, p.delta, task.batch, channel, channels, from.steps);
  for (int m = 0; m < p.streams; ++m) {
    next.add(p.dtype, p.u[m], task.batch, channel, channels, from.streams[m]);
    next.add(p.dtype, p.z[m], task.batch, channel, channels, from.streams[m]);
  }
  return next;
}

template <class T>
void forward_task(const ScanForward& p, const Task& task, void* memory) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t dstate = p.size.dstate, dim = p.size.dim, batch = task.batch, chunk = chunk_steps(p.size);
  const ForwardScratch<T> w(Scratch{static_cast<char*>(memory)}, dstate, task.blocks());
  const int64_t valid = valid_length(p, batch), total = valid * p.streams;

  each_tile(p.size, task, [&](const Tile& tile) {
    const int64_t first = tile.slot * kChannels * dstate, channel = tile.channel;
    load_states(static_cast<const T*>(p.A) + channel * dstate, dstate, tile.channels, T(kLog2E), w.A2 + first);
    largest_rates(w.A2 + first, dstate, (tile.channels + kLanes - 1) / kLanes, w.largest + tile.slot * kChannels);
    const T* initial = static_cast<const T*>(p.initial_state);
    load_states(initial ? initial + (batch * dim + channel) * dstate : nullptr, dstate, tile.channels, T(1),
                w.state + first);
    load_channels(p.D, channel, tile.channels, w.D + tile.slot * kChannels);
    load_channels(p.delta_bias, channel, tile.channels, w.bias + tile.slot * kChannels);
  });

  for (int64_t begin = 0; begin < total; begin += chunk) {
    const Chunk c = chunk_at(p, valid, begin);
    Chunk after;
    const bool more = begin + chunk < total;
    if (more) after = chunk_at(p, valid, begin + chunk);
    int64_t group = -1;
    for (int64_t i = task.first_block; i < task.last_block; ++i) {
      const Block block = block_of(p.size, i);
      if (block.group != group) load_maps(p, c, batch, group = block.group, w.B, w.C);
      each_tile(task, block, i, [&](const Tile& tile) {
        if (p.checkpoints) {
          const int64_t place = (batch * p.size.nchunks + begin / chunk) * dim + tile.channel;
          store_states(w.state + tile.slot * kChannels * dstate, dstate, tile.channels,
                       static_cast<T*>(p.checkpoints) + place * dstate);
        }
        forward_tile(w, p, c, batch, tile, next_inputs(p, task, c, more ? &after : nullptr, tile));
      });
    }
  }

  each_tile(p.size, task, [&](const Tile& tile) {
    store_states(w.state + tile.slot * kChannels * dstate, dstate, tile.channels,
                 static_cast<T*>(p.last_state) + (batch * dim + tile.channel) * dstate);
    for (int m = 0; m < p.streams; ++m)
      clear_rest(p.dtype, p.out[m], batch, tile.channel, tile.channels, valid, p.size.length, w.y);
  });
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
