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
  T *A2, *carry, *dA;                  // [slot][vector][state][lane]
  T *largest, *D, *bias, *dD, *dbias;  // [slot][channel]
  T* state;                            // [vector][state][lane]
  T *B, *C;                            // [step][state]
  T *dB, *dC;                          // [step][state][lane]
  T *delta, *slope, *raw, *x, *delta_x, *dy, *y, *dx, *ddelta, *z, *gate, *dgate;  // a tile each
  T *decay, *history;

  BackwardScratch(Scratch memory, int64_t dstate, int64_t blocks) {
    for (T** states : {&A2, &carry, &dA}) *states = memory.take<T>(blocks * kBlockChannels * dstate);
    for (T** channels : {&largest, &D, &bias, &dD, &dbias}) *channels = memory.take<T>(blocks * kBlockChannels);
    state = memory.take<T>(kChannels * dstate);
    for (T** map : {&B, &C}) *map = memory.take<T>(kSteps * dstate);
    for (T** map : {&dB, &dC}) *map = memory.take<T>(kSteps * dstate * Simd<T>::kLanes);
    for (T** tile : {&delta, &slope, &raw, &x, &delta_x, &dy, &y, &dx, &ddelta, &z, &gate, &dgate})
      *tile = memory.take<T>(kSteps * kChannels);
    for (T** group : {&decay, &history}) *group = memory.take<T>((kSteps + 1) * kBackwardGroup * Simd<T>::kLanes);
  }
  static int64_t bytes(int64_t dstate, int64_t blocks) {
    const int64_t lanes = Simd<T>::kLanes, tiles = 12 * kSteps * kChannels + 2 * (kSteps + 1) * kBackwardGroup * lanes;
    return int64_t(sizeof(T)) * (blocks * kBlockChannels * (3 * dstate + 5) + kChannels * dstate +
                                 2 * kSteps * dstate * (1 + lanes) + tiles) +
           Scratch::kPieces * (64 + Scratch::kGap);
  }
};

// The chunk's elementwise inputs: d_t and its slope, x, d_t x, the gate and what it does to the gradients.
template <class T>
void stage_backward(const BackwardScratch<T>& w, const ScanBackward& q, const Chunk& c, int64_t batch, const Tile& tile,
                    bool want_y) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  const ScanForward& p = q.forward;
  const int64_t channel = tile.channel;
  const int channels = tile.channels, vectors = (channels + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
  const T *D = w.D + tile.slot * kChannels, *bias = w.bias + tile.slot * kChannels;

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
void finish_backward(const BackwardScratch<T>& w, const ScanBackward& q, const Chunk& c, int64_t batch,
                     const Tile& tile) {
  using V = typename Simd<T>::V;
  const ScanForward& p = q.forward;
  const int64_t channel = tile.channel;
  const int channels = tile.channels, vectors = (channels + Simd<T>::kLanes - 1) / Simd<T>::kLanes;
  const T* D = w.D + tile.slot * kChannels;
  T *dD = w.dD + tile.slot * kChannels, *dbias = w.dbias + tile.slot * kChannels;
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
void backward_tile(const BackwardScratch<T>& w, const ScanBackward& q, const Chunk& c, int64_t batch, const Tile& tile,
                   const Prefetch& next) {
  constexpr int kLanes = Simd<T>::kLanes;
  const ScanForward& p = q.forward;
  const int64_t dstate = p.size.dstate, states = tile.slot * kChannels * dstate;
  const int vectors = (tile.channels + kLanes - 1) / kLanes;
  const bool want_y = p.z[0].data || p.out[0].data;
  const int64_t place = (batch * p.size.nchunks + c.begin / chunk_steps(p.size)) * p.size.dim + tile.channel;
  load_states(static_cast<const T*>(p.checkpoints) + place * dstate, dstate, tile.channels, T(1), w.state);
  stage_backward(w, q, c, batch, tile, want_y);

  bool usual[Simd<T>::kVectors];
  for (int v = 0; v < vectors; ++v)
    usual[v] = moderate(w.delta + v * kSteps * kLanes, c.count, at(w.largest + tile.slot * kChannels + v * kLanes));
  // States outside, vectors inside: the sums dB and dC of one group, 8 KiB, stay in the first-level cache.
  each_group<kBackwardGroup>(dstate, [&]<int kGroup>(int64_t n) {
    if (n + kGroup == dstate || n == 0) next.portion(n != 0, 2);
    for (int v = 0; v < vectors; ++v) {
      const int64_t of_tile = (v * dstate + n) * kLanes, of_task = states + of_tile;
      const int row = v * kSteps * kLanes;
      backward_group<kGroup>(BackwardSlice<T>{
          c.count, usual[v], w.delta + row, w.delta_x + row, w.dy + row, want_y ? w.y + row : nullptr, w.dx + row,
          w.ddelta + row, w.B + n, w.C + n, dstate, w.A2 + of_task, w.state + of_tile, w.carry + of_task,
          w.dA + of_task, w.dB + n * kLanes, w.dC + n * kLanes, w.decay, w.history});
    }
  });
  finish_backward(w, q, c, batch, tile);
}

// What tasks leave for the sums over them: dB and dC of a block of channels, and the weights' gradients of its sample.
template <class T>
struct Partial {
  T *dB, *dC;           // (blocks, batch, steps, dstate)
  T *dA, *dD, *dbias;   // (batch, dim, dstate), (batch, dim), (batch, dim)
};

template <class T>
void backward_task(const ScanBackward& q, const Partial<T>& partial, const Task& task, void* memory) {
  constexpr int kLanes = Simd<T>::kLanes;
  const ScanForward& p = q.forward;
  const int64_t dstate = p.size.dstate, dim = p.size.dim, batch = task.batch, chunk = chunk_steps(p.size);
  const BackwardScratch<T> w(Scratch{static_cast<char*>(memory)}, dstate, task.blocks());
  const int64_t valid = valid_length(p, batch), total = valid * p.streams;

  each_tile(p.size, task, [&](const Tile& tile) {
    const int64_t first = tile.slot * kChannels * dstate, channel = tile.channel;
    load_states(static_cast<const T*>(p.A) + channel * dstate, dstate, tile.channels, T(kLog2E), w.A2 + first);
    largest_rates(w.A2 + first, dstate, (tile.channels + kLanes - 1) / kLanes, w.largest + tile.slot * kChannels);
    const T* carry = static_cast<const T*>(q.dlast_state);
    load_states(carry ? carry + (batch * dim + channel) * dstate : nullptr, dstate, tile.channels, T(1),
                w.carry + first);
    for (int64_t i = 0; i < kChannels * dstate; ++i) w.dA[first + i] = 0;
    for (int c = 0; c < kChannels; ++c) w.dD[tile.slot * kChannels + c] = w.dbias[tile.slot * kChannels + c] = 0;
    load_channels(p.D, channel, tile.channels, w.D + tile.slot * kChannels);
    load_channels(p.delta_bias, channel, tile.channels, w.bias + tile.slot * kChannels);
  });

  for (int64_t begin = (total + chunk - 1) / chunk * chunk - chunk; begin >= 0; begin -= chunk) {
    const Chunk c = chunk_at(p, valid, begin);
    Chunk after;
    if (begin) after = chunk_at(p, valid, begin - chunk);
    int64_t group = -1;
    for (int64_t i = task.first_block; i < task.last_block; ++i) {
      const Block block = block_of(p.size, i);
      if (block.group != group) load_maps(p, c, batch, group = block.group, w.B, w.C);
      for (int64_t k = 0; k < c.count * dstate * kLanes; ++k) w.dB[k] = w.dC[k] = 0;
      each_tile(task, block, i, [&](const Tile& tile) {
        Prefetch next = next_inputs(p, task, c, begin ? &after : nullptr, tile);
        backward_tile(w, q, c, batch, tile, next);
      });
      const int64_t rows = (i * p.size.batch + batch) * p.size.steps;
      for (int k = 0; k < c.count; ++k) {
        const int64_t row = (rows + c.steps.origin + c.steps.sign * k) * dstate;
        sum_lanes(w.dB + k * dstate * kLanes, dstate, partial.dB + row);
        sum_lanes(w.dC + k * dstate * kLanes, dstate, partial.dC + row);
      }
    }
  }

  each_tile(p.size, task, [&](const Tile& tile) {
    const int64_t first = tile.slot * kChannels * dstate, place = batch * dim + tile.channel;
    store_states(w.dA + first, dstate, tile.channels, partial.dA + place * dstate);
    for (int c = 0; c < tile.channels; ++c) {
      partial.dD[place + c] = w.dD[tile.slot * kChannels + c];
      partial.dbias[place + c] = w.dbias[tile.slot * kChannels + c];
    }
    if (q.dinitial_state)
      store_states(w.carry + first, dstate, tile.channels, static_cast<T*>(q.dinitial_state) + place * dstate);
    const auto clear = [&](const Out& x, int64_t from, int64_t length) {
      if (x.data) clear_rest(p.dtype, x, batch, tile.channel, tile.channels, from, length, w.dx);
    };
    clear(q.ddelta, total, p.size.steps);
    for (int m = 0; m < p.streams; ++m)
      for (const Out* x : {&q.du[m], &q.dz[m], &p.out[m]}) clear(*x, valid, p.size.length);
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
