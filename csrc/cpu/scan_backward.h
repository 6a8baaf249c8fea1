// The backward pass of one task, chunk by chunk from the last. The states of a chunk are computed again from its checkpoint
// and live in the first-level cache with their decays; lanes are channels, so that the sums over states (for du and
// ddelta) are plain additions, and the sums over channels (dB, dC) add up in vectors until the end of the chunk.
//
// With h_i = e_i h_{i-1} + d_i x_i B_i, e_i = exp(d_i A), y_i = <C_i, h_i> and g_i the gradient of h_i:
//   g_i = dy_i C_i + e_{i+1} g_{i+1}     dB_i = g_i d_i x_i     dC_i = dy_i h_i     dA = sum d_i g_i e_i h_{i-1}
//   dx_i = d_i <g_i, B_i>                dd_i = x_i <g_i, B_i> + <A, g_i e_i h_{i-1}>
#pragma once

#include "scan_forward.h"

namespace cmimtl::cpu::CMIMTL_ISA {

template <class T>
struct BackwardSlice {
  int count;
  bool moderate;
  const T *delta, *delta_x, *dy;  // [step][lane]
  T* y;                           // [step][lane] or null: not wanted
  T *dx, *ddelta;                 // [step][lane]  <g, B> and <A2, g e h> added
  const T *B, *C;                 // [step][dstate], at the group's first state
  int64_t dstate;
  const T *A2, *state;  // [state][lane]; the state before the chunk
  T *carry, *dA;        // [state][lane]; e g of the step after the chunk in, of its first step out
  T *dB, *dC;           // [step][state][lane], at the group's first state
  T *decay, *history;   // [step][state of the group][lane], scratch; history has one step more
};

// Two sums and two products for each state must fit the registers beside the carried gradient: four states of AVX2's
// sixteen registers.
constexpr int kBackwardGroup = 4;

template <int kGroup, class T>
void backward_group(const BackwardSlice<T>& s) {
  using V = typename Simd<T>::V;
  constexpr int kLanes = Simd<T>::kLanes, kRow = kGroup * kLanes;
  decays<kGroup>(s.count, s.moderate, s.delta, s.A2, s.decay);

  V state[kGroup];
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) at(s.history + n * kLanes) = state[n] = at(s.state + n * kLanes);
  for (int i = 0; i < s.count; ++i) {
    const T* B = s.B + i * s.dstate;
    const V delta_x = at(s.delta_x + i * kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      state[n] = at(s.decay + i * kRow + n * kLanes) * state[n] + delta_x * B[n];
      at(s.history + (i + 1) * kRow + n * kLanes) = state[n];
    }
    if (s.y) {
      const T* C = s.C + i * s.dstate;
      V y = at(s.y + i * kLanes);
#pragma GCC unroll 8
      for (int n = 0; n < kGroup; ++n) y += state[n] * C[n];
      at(s.y + i * kLanes) = y;
    }
  }

  V carry[kGroup], dA[kGroup];
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) {
    carry[n] = at(s.carry + n * kLanes);
    dA[n] = at(s.dA + n * kLanes);
  }
  for (int i = s.count - 1; i >= 0; --i) {
    const T *B = s.B + i * s.dstate, *C = s.C + i * s.dstate;
    T *dB = s.dB + i * s.dstate * kLanes, *dC = s.dC + i * s.dstate * kLanes;
    const T *decay = s.decay + i * kRow, *before = s.history + i * kRow, *after = before + kRow;
    const V delta = at(s.delta + i * kLanes), delta_x = at(s.delta_x + i * kLanes), dy = at(s.dy + i * kLanes);
    V dx = at(s.dx + i * kLanes), ddelta = at(s.ddelta + i * kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      const V g = carry[n] + dy * C[n];
      at(dC + n * kLanes) += dy * at(after + n * kLanes);
      at(dB + n * kLanes) += g * delta_x;
      dx += g * B[n];
      carry[n] = g * at(decay + n * kLanes);
      const V through = carry[n] * at(before + n * kLanes);
      dA[n] += through * delta;
      ddelta += through * at(s.A2 + n * kLanes);
    }
    at(s.dx + i * kLanes) = dx;
    at(s.ddelta + i * kLanes) = ddelta;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) {
    at(s.carry + n * kLanes) = carry[n];
    at(s.dA + n * kLanes) = dA[n];
  }
}

template <class T>
struct BackwardScratch {
  T *A2, *state, *carry, *dA;       // [tile][vector][state][lane]
  T *largest, *D, *bias, *dD, *dbias;  // [tile][channel]
  T *B, *C;                         // [step][state]
  T *dB, *dC;                       // [step][state][lane]
  T *delta, *slope, *raw, *x, *delta_x, *dy, *y, *dx, *ddelta, *z, *gate, *dgate;  // a tile each
  T *decay, *history;

  BackwardScratch(Scratch memory, int64_t dstate) {
    for (T** states : {&A2, &state, &carry, &dA}) *states = memory.take<T>(kBlockChannels * dstate);
    for (T** channels : {&largest, &D, &bias, &dD, &dbias}) *channels = memory.take<T>(kBlockChannels);
    for (T** map : {&B, &C}) *map = memory.take<T>(kSteps * dstate);
    for (T** map : {&dB, &dC}) *map = memory.take<T>(kSteps * dstate * Simd<T>::kLanes);
    for (T** tile : {&delta, &slope, &raw, &x, &delta_x, &dy, &y, &dx, &ddelta, &z, &gate, &dgate})
      *tile = memory.take<T>(kSteps * kChannels);
    for (T** group : {&decay, &history}) *group = memory.take<T>((kSteps + 1) * kBackwardGroup * Simd<T>::kLanes);
  }
  static int64_t bytes(int64_t dstate) {
    const int64_t lanes = Simd<T>::kLanes;
    return int64_t(sizeof(T)) * (kBlockChannels * (4 * dstate + 5) + kSteps * dstate * 2 * (1 + lanes) +
                                 12 * kSteps * kChannels + 2 * (kSteps + 1) * kBackwardGroup * lanes) +
           64 * 32;
  }
};

// The chunk's elementwise inputs: d_t and its slope, x, d_t x, the gate and what it does to the gradients.
template <class T>
void stage_backward(const BackwardScratch<T>& w, const ScanBackward& q, const Chunk& c, int64_t batch, int64_t channel,
                    int channels, int tile, bool want_y) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  const ScanForward& p = q.forward;
  const int vectors = (channels + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
  const T *D = w.D + tile * kChannels, *bias = w.bias + tile * kChannels;

  load(p.dtype, p.delta, batch, channel, channels, c.steps, w.delta);
  step_sizes<T>(p, c, vectors, bias, w.delta, w.slope);
  for (int m = 0; m < p.streams; ++m) {
    load(p.dtype, p.u[m], batch, channel, channels, c.streams[m], w.raw);
    load(p.dtype, q.dout[m], batch, channel, channels, c.streams[m], w.dy);
    if (p.z[m].data) load(p.dtype, p.z[m], batch, channel, channels, c.streams[m], w.z);
  }
  if (p.streams == 2)
    each_pair<T>(c, vectors, [&](int product, int sum) {
      const V v = at(w.raw + product), t = at(w.raw + sum);
      at(w.x + product) = v * t;
      at(w.x + sum) = v + t;
    });
  const T* x = p.streams == 2 ? w.x : w.raw;
  each_step<T>(c, vectors, [&](int i, int channel) {
    at(w.delta_x + i) = at(w.delta + i) * at(x + i);
    if (want_y) at(w.y + i) = at(D + channel) * at(x + i);
    at(w.dx + i) = at(w.ddelta + i) = V{};
  });
  if (!p.z[0].data) return;
  const auto gate_of = [](V z, V& gate, V& slope) {
    const V s = sigmoid<T, V, I>(z);
    gate = z * s;
    slope = s * (1 + z * (1 - s));
  };
  const auto apply = [&](int i, V gate, V slope) {
    const V dout = at(w.dy + i);
    at(w.gate + i) = gate;
    at(w.dgate + i) = dout * slope;
    at(w.dy + i) = dout * gate;
  };
  V gate, slope;
  if (p.streams == 2)
    each_pair<T>(c, vectors, [&](int product, int sum) {
      gate_of(V(at(w.z + product) * at(w.z + sum)), gate, slope);
      apply(product, gate, slope);
      apply(sum, gate, slope);
    });
  else
    each_step<T>(c, vectors, [&](int i, int) {
      gate_of(V(at(w.z + i)), gate, slope);
      apply(i, gate, slope);
    });
}

// From the sums over states to the gradients of the inputs, and their stores.
template <class T>
void finish_backward(const BackwardScratch<T>& w, const ScanBackward& q, const Chunk& c, int64_t batch, int64_t channel,
                     int channels, int tile) {
  using V = typename Simd<T>::V;
  const ScanForward& p = q.forward;
  const int vectors = (channels + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
  const T* D = w.D + tile * kChannels;
  T *dD = w.dD + tile * kChannels, *dbias = w.dbias + tile * kChannels;
  const T* x = p.streams == 2 ? w.x : w.raw;

  each_step<T>(c, vectors, [&](int i, int channel) {
    const V sum = at(w.dx + i), dy = at(w.dy + i);
    const V ddelta = (at(x + i) * sum + at(w.ddelta + i) * T(kLn2)) * at(w.slope + i);
    at(w.ddelta + i) = ddelta;
    at(w.dx + i) = at(w.delta + i) * sum + at(D + channel) * dy;
    at(dD + channel) += dy * at(x + i);
    at(dbias + channel) += ddelta;
  });
  store(p.dtype, q.ddelta, batch, channel, channels, c.steps, w.ddelta);
  if (p.streams == 2)
    each_pair<T>(c, vectors, [&](int product, int sum) {
      const V dp = at(w.dx + product), ds = at(w.dx + sum), v = at(w.raw + product), t = at(w.raw + sum);
      at(w.dx + product) = t * dp + ds;
      at(w.dx + sum) = v * dp + ds;
    });
  for (int m = 0; m < p.streams; ++m) store(p.dtype, q.du[m], batch, channel, channels, c.streams[m], w.dx);

  if (p.z[0].data) {
    if (p.streams == 2)
      each_pair<T>(c, vectors, [&](int product, int sum) {
        const V dz = at(w.dgate + product) * at(w.y + product) + at(w.dgate + sum) * at(w.y + sum);
        at(w.dgate + product) = dz * at(w.z + sum);
        at(w.dgate + sum) = dz * at(w.z + product);
      });
    else
      each_step<T>(c, vectors, [&](int i, int) { at(w.dgate + i) *= at(w.y + i); });
    for (int m = 0; m < p.streams; ++m) store(p.dtype, q.dz[m], batch, channel, channels, c.streams[m], w.dgate);
  }
  if (p.out[0].data) {
    if (p.z[0].data) each_step<T>(c, vectors, [&](int i, int) { at(w.y + i) *= at(w.gate + i); });
    for (int m = 0; m < p.streams; ++m) store(p.dtype, p.out[m], batch, channel, channels, c.streams[m], w.y);
  }
}

// One tile of one chunk.
template <class T>
void backward_tile(const BackwardScratch<T>& w, const ScanBackward& q, const Chunk& c, int64_t batch, int64_t channel,
                   int channels, int tile) {
  constexpr int kLanes = Simd<T>::kLanes;
  const ScanForward& p = q.forward;
  const int64_t dstate = p.size.dstate, states = tile * kChannels * dstate;
  const int vectors = (channels + kLanes - 1) / kLanes;
  const bool want_y = p.z[0].data || p.out[0].data;
  const int64_t place = (batch * p.size.nchunks + c.begin / chunk_steps(p.size)) * p.size.dim + channel;
  load_states(static_cast<const T*>(p.checkpoints) + place * dstate, dstate, channels, T(1), w.state + states);
  stage_backward(w, q, c, batch, channel, channels, tile, want_y);

  bool usual[Simd<T>::kVectors];
  for (int v = 0; v < vectors; ++v)
    usual[v] = moderate(w.delta + v * kSteps * kLanes, c.count, at(w.largest + tile * kChannels + v * kLanes));
  // States outside, vectors inside: the sums dB and dC of one group, 8 KiB, stay in the first-level cache.
  each_group<kBackwardGroup>(dstate, [&]<int kGroup>(int64_t n) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t at_state = states + (v * dstate + n) * kLanes;
      const int at_step = v * kSteps * kLanes;
      backward_group<kGroup>(BackwardSlice<T>{
          c.count, usual[v], w.delta + at_step, w.delta_x + at_step, w.dy + at_step, want_y ? w.y + at_step : nullptr,
          w.dx + at_step, w.ddelta + at_step, w.B + n, w.C + n, dstate, w.A2 + at_state, w.state + at_state,
          w.carry + at_state, w.dA + at_state, w.dB + n * kLanes, w.dC + n * kLanes, w.decay, w.history});
    }
  });
  finish_backward(w, q, c, batch, channel, channels, tile);
}

// What a task leaves for the sums over tasks: dB and dC of its channels, and the weights' gradients of its sample.
template <class T>
struct Partial {
  T *dB, *dC;           // (blocks, batch, steps, dstate)
  T *dA, *dD, *dbias;   // (batch, dim, dstate), (batch, dim), (batch, dim)
};

template <class T>
void backward_task(const ScanBackward& q, const Partial<T>& partial, int64_t batch, int64_t index, void* memory) {
  constexpr int kLanes = Simd<T>::kLanes;
  const ScanForward& p = q.forward;
  const int64_t dstate = p.size.dstate, dim = p.size.dim;
  const BackwardScratch<T> w(Scratch{static_cast<char*>(memory)}, dstate);
  const Block block = block_of(p.size, index);
  const int64_t valid = valid_length(p, batch), total = valid * p.streams;

  each_tile(block, [&](int tile, int64_t channel, int channels) {
    const int64_t first = tile * kChannels * dstate;
    load_states(static_cast<const T*>(p.A) + channel * dstate, dstate, channels, T(kLog2E), w.A2 + first);
    largest_rates(w.A2 + first, dstate, (channels + kLanes - 1) / kLanes, w.largest + tile * kChannels);
    const T* carry = static_cast<const T*>(q.dlast_state);
    load_states(carry ? carry + (batch * dim + channel) * dstate : nullptr, dstate, channels, T(1), w.carry + first);
    for (int64_t i = 0; i < kChannels * dstate; ++i) w.dA[first + i] = 0;
    for (int i = 0; i < kChannels; ++i) w.dD[tile * kChannels + i] = w.dbias[tile * kChannels + i] = 0;
    load_channels(p.D, channel, channels, w.D + tile * kChannels, T(0));
    load_channels(p.delta_bias, channel, channels, w.bias + tile * kChannels, T(0));
  });

  const int chunk = chunk_steps(p.size);
  for (int64_t begin = (total + chunk - 1) / chunk * chunk - chunk; begin >= 0; begin -= chunk) {
    const Chunk c = chunk_at(p, valid, begin);
    load_maps(p, c, batch, block.group, w.B, w.C);
    for (int64_t i = 0; i < c.count * dstate * kLanes; ++i) w.dB[i] = w.dC[i] = 0;
    each_tile(block, [&](int tile, int64_t channel, int channels) {
      backward_tile(w, q, c, batch, channel, channels, tile);
    });
    const int64_t rows = (index * p.size.batch + batch) * p.size.steps;
    for (int i = 0; i < c.count; ++i) {
      const int64_t row = (rows + c.steps.origin + c.steps.sign * i) * dstate;
      sum_lanes(w.dB + i * dstate * kLanes, dstate, partial.dB + row);
      sum_lanes(w.dC + i * dstate * kLanes, dstate, partial.dC + row);
    }
  }

  each_tile(block, [&](int tile, int64_t channel, int channels) {
    const int64_t first = tile * kChannels * dstate, place = batch * dim + channel;
    store_states(w.dA + first, dstate, channels, T(1), partial.dA + place * dstate);
    for (int i = 0; i < channels; ++i) {
      partial.dD[place + i] = w.dD[tile * kChannels + i];
      partial.dbias[place + i] = w.dbias[tile * kChannels + i];
    }
    if (q.dinitial_state)
      store_states(w.carry + first, dstate, channels, T(1), static_cast<T*>(q.dinitial_state) + place * dstate);
    clear_rest(p.dtype, q.ddelta, batch, channel, channels, total, p.size.steps, w.dx);
    for (int m = 0; m < p.streams; ++m) {
      clear_rest(p.dtype, q.du[m], batch, channel, channels, valid, p.size.length, w.dx);
      if (q.dz[m].data) clear_rest(p.dtype, q.dz[m], batch, channel, channels, valid, p.size.length, w.dx);
      if (p.out[m].data) clear_rest(p.dtype, p.out[m], batch, channel, channels, valid, p.size.length, w.dx);
    }
  });
}

// dB and dC of one step of one sample: the blocks' parts added in the order of the channels.
template <class T>
void reduce_maps(const ScanBackward& q, const Partial<T>& partial, int64_t batch, int64_t step, T* row) {
  const ScanForward& p = q.forward;
  const int64_t dstate = p.size.dstate, per_group = block_count(p.size) / p.size.ngroups;
  const bool inside = step < valid_length(p, batch) * p.streams;
  const auto reduce = [&](const T* parts, void* out) {
    for (int64_t group = 0; group < p.size.ngroups; ++group) {
      for (int64_t n = 0; n < dstate; ++n) row[n] = 0;
      for (int64_t k = 0; inside && k < per_group; ++k) {
        const int64_t block = group * per_group + k;
        const T* part = parts + ((block * p.size.batch + batch) * p.size.steps + step) * dstate;
        for (int64_t n = 0; n < dstate; ++n) row[n] += part[n];
      }
      const int64_t offset = ((batch * p.size.steps + step) * p.size.ngroups + group) * dstate;
      store_row(p.dtype, row, dstate, out, offset);
    }
  };
  reduce(partial.dB, q.dB);
  reduce(partial.dC, q.dC);
}

// Gradients of the weights: the samples' parts added in the order of the batch. Elements begin … end - 1 of (dim * dstate).
template <class T>
void reduce_samples(const T* parts, int64_t samples, int64_t size, int64_t begin, int64_t end, T* out) {
  for (int64_t i = begin; i < end; ++i) out[i] = 0;
  for (int64_t b = 0; b < samples; ++b)
    for (int64_t i = begin; i < end; ++i) out[i] += parts[b * size + i];
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
