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
  for (int i = 0; i < s.count; ++i) {
    const T *B = s.B + i * s.dstate, *C = s.C + i * s.dstate, *decay = s.decay + i * kGroup * kLanes;
    const V delta_x = at(s.delta_x + i * kLanes);
    V y = at(s.y + i * kLanes), odd = V{};
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      state[n] = at(decay + n * kLanes) * state[n] + delta_x * B[n];
      (n % 2 ? odd : y) += state[n] * C[n];
    }
    at(s.y + i * kLanes) = y + odd;
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
  T *A2, *largest, *state;   // [tile][vector][state][lane], [tile][vector][lane], as A2
  T *D, *bias;               // [tile][channel]
  T *B, *C;                  // [step][state]
  T *delta, *x, *y, *z;      // a tile each
  T* decay;

  ForwardScratch(Scratch memory, int64_t dstate) {
    A2 = memory.take<T>(kBlockChannels * dstate);
    state = memory.take<T>(kBlockChannels * dstate);
    largest = memory.take<T>(kBlockChannels);
    D = memory.take<T>(kBlockChannels);
    bias = memory.take<T>(kBlockChannels);
    B = memory.take<T>(kSteps * dstate);
    C = memory.take<T>(kSteps * dstate);
    for (T** tile : {&delta, &x, &y, &z}) *tile = memory.take<T>(kSteps * kChannels);
    decay = memory.take<T>(kSteps * 8 * Simd<T>::kLanes);
  }
  static int64_t bytes(int64_t dstate) {
    return int64_t(sizeof(T)) * (kBlockChannels * (2 * dstate + 3) + kSteps * (2 * dstate + 4 * kChannels + 8 * 16)) +
           64 * 16;
  }
};

// One tile of one chunk: loads, the recurrence of every vector and group, gate, stores.
template <class T>
void forward_tile(const ForwardScratch<T>& w, const ScanForward& p, const Chunk& c, int64_t batch, int64_t channel,
                  int channels, int tile) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLanes = Simd<T>::kLanes;
  const int vectors = (channels + kLanes - 1) / kLanes;
  const int64_t dstate = p.size.dstate;
  const T *D = w.D + tile * kChannels, *bias = w.bias + tile * kChannels;
  T* states = w.state + tile * kChannels * dstate;
  const T* A2 = w.A2 + tile * kChannels * dstate;

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
    const T* delta = w.delta + v * kSteps * kLanes;
    const bool usual = moderate(delta, c.count, at(w.largest + tile * kChannels + v * kLanes));
    each_group<kForwardGroup>(dstate, [&]<int kGroup>(int64_t n) {
      const int64_t first = (v * dstate + n) * kLanes;
      forward_group<kGroup>(ForwardSlice<T>{c.count, usual, delta, w.x + v * kSteps * kLanes,
                                            w.y + v * kSteps * kLanes, w.B + n, w.C + n, dstate, A2 + first,
                                            states + first, w.decay});
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

// Calls f(tile, channel, channels) for the tiles of a block.
template <class F>
inline void each_tile(const Block& block, F f) {
  for (int tile = 0; tile * kChannels < block.count; ++tile) {
    const int left = block.count - tile * kChannels;
    f(tile, block.channel + tile * kChannels, left < kChannels ? left : kChannels);
  }
}

template <class T>
void forward_task(const ScanForward& p, int64_t batch, int64_t index, void* memory) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t dstate = p.size.dstate, dim = p.size.dim;
  const ForwardScratch<T> w(Scratch{static_cast<char*>(memory)}, dstate);
  const Block block = block_of(p.size, index);
  const int64_t valid = valid_length(p, batch);

  each_tile(block, [&](int tile, int64_t channel, int channels) {
    const int64_t first = tile * kChannels * dstate;
    load_states(static_cast<const T*>(p.A) + channel * dstate, dstate, channels, T(kLog2E), w.A2 + first);
    largest_rates(w.A2 + first, dstate, (channels + kLanes - 1) / kLanes, w.largest + tile * kChannels);
    const T* initial = static_cast<const T*>(p.initial_state);
    load_states(initial ? initial + (batch * dim + channel) * dstate : nullptr, dstate, channels, T(1), w.state + first);
    load_channels(p.D, channel, channels, w.D + tile * kChannels, T(0));
    load_channels(p.delta_bias, channel, channels, w.bias + tile * kChannels, T(0));
  });

  for (int64_t begin = 0; begin < valid * p.streams; begin += chunk_steps(p.size)) {
    const Chunk c = chunk_at(p, valid, begin);
    load_maps(p, c, batch, block.group, w.B, w.C);
    each_tile(block, [&](int tile, int64_t channel, int channels) {
      if (p.checkpoints) {
        const int64_t place = (batch * p.size.nchunks + begin / chunk_steps(p.size)) * dim + channel;
        store_states(w.state + tile * kChannels * dstate, dstate, channels, T(1),
                     static_cast<T*>(p.checkpoints) + place * dstate);
      }
      forward_tile(w, p, c, batch, channel, channels, tile);
    });
  }

  each_tile(block, [&](int tile, int64_t channel, int channels) {
    store_states(w.state + tile * kChannels * dstate, dstate, channels, T(1),
                 static_cast<T*>(p.last_state) + (batch * dim + channel) * dstate);
    for (int m = 0; m < p.streams; ++m)
      clear_rest(p.dtype, p.out[m], batch, channel, channels, valid, p.size.length, w.y);
  });
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
