// The backward pass of one task, chunk by chunk from the last. The states of a chunk are computed
// again from its checkpoint, and stay in the first-level cache with their decays. Each lane is a
// channel. So the sums over states (for du and ddelta) are plain additions, and the sums over
// channels (dB, dC) add up in vectors until a block of lines ends.
#pragma once

#include "scan_forward.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// The values of one line in a chunk, [step][lane] each.
template <class T>
struct Columns {
  T *step_size, *slope;    // d = softplus(delta + bias), and its derivative by delta
  T* input;                // d x
  T *dy, *y;               // the gradient of y = <C, h> + D x, and y
  T *dinput, *dstep_size;  // sums over the states: gradients of d x, and of d through decays
  T* dgate;                // dout times the derivative of silu(z)
  T* state;                // [state][lane], before the chunk

  Columns() = default;
  Columns(Scratch& memory, int64_t dstate) {
    for (T** column : {&step_size, &slope, &input, &dy, &y, &dinput, &dstep_size, &dgate})
      *column = memory.take<T>(kSteps * Simd<T>::kLine);
    state = memory.take<T>(dstate * Simd<T>::kLine);
  }
};

template <class S>
struct BackwardScratch {
  using T = typename Storage<S>::T;
  T *carry, *dA;  // [line of the task][state][lane]
  T *dD, *dbias;  // [line of the task][lane]
  T *B, *C;       // [step][state]
  T *dB, *dC;     // [step][state of a group][lane of a vector]
  // As dB and dC, of a vector whose last lanes have no channel.
  T *spare_dB, *spare_dC;
  T *decay, *history;
  Columns<T> columns[kBlockLines];
  S *in[7], *out[5];  // rows that cannot be used in place: see stage_backward and finish_backward

  BackwardScratch(Scratch& memory, int64_t dstate, int64_t lines) {
    constexpr int kLine = Simd<T>::kLine;
    for (T** states : {&carry, &dA}) *states = memory.take<T>(lines * dstate * kLine);
    for (T** channels : {&dD, &dbias}) *channels = memory.take<T>(lines * kLine);
    for (T** map : {&B, &C}) *map = memory.take<T>(kSteps * dstate);
    for (T** group : {&dB, &dC, &decay, &history}) *group = memory.take<T>(kSteps * kBackwardGroup * Simd<T>::kLanes);
    for (Columns<T>& c : columns) c = Columns<T>(memory, dstate);
    for (S*& rows : in) rows = memory.take<S>(kSteps * kLine);
    for (S*& rows : out) rows = memory.take<S>(kSteps * kLine);
    for (T** group : {&spare_dB, &spare_dC}) *group = memory.take<T>(kSteps * kBackwardGroup * Simd<T>::kLanes);
  }
};

// Does the elementwise part before the loops over states. Returns whether every decay is moderate.
template <class S, class T>
bool stage_backward(const BackwardScratch<S>& w, const Columns<T>& to, const Weights<T>& weights, const ScanBackward& q,
                    const Chunk& c, int64_t batch, const Line& line) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLine = Simd<T>::kLine;
  const ScanForward& p = q.forward;
  const T *D = weights.D + line.index * kLine, *bias = weights.bias + line.index * kLine;
  const auto rows = [&](const In& x, const Steps& steps, int buffer) {
    return gather(x, batch, line.channel, line.channels, steps, w.in[buffer]);
  };
  const bool gated = p.z[0].data, skip = p.D;
  const Rows<const S> delta = rows(p.delta, c.steps, 0);
  Rows<const S> u[2], z[2], dout[2];
  for (int m = 0; m < p.streams; ++m) {
    u[m] = rows(p.u[m], c.pairs, 1 + m);
    dout[m] = rows(q.dout[m], c.pairs, 3 + m);
    if (gated) z[m] = rows(p.z[m], c.pairs, 5 + m);
  }

  Magnitude<T> magnitude;
  each_step<T>(c, [&](int i, int v) {
    const V biased = load(delta[i] + v) + at(bias + v);
    at(to.step_size + i * kLine + v) = biased;
    if (p.delta_softplus) at(to.slope + i * kLine + v) = exp_of_minus_magnitude<T, V, I>(biased);
  });
  const auto token = [&](int i, int v, V x, V dout, V gate, V slope_of_gate) {
    const int place = i * kLine + v;
    V step_size = at(to.step_size + place), slope = 1 - V{};
    if (p.delta_softplus) softplus<T>(V(step_size), V(at(to.slope + place)), step_size, slope);
    magnitude.add(v, step_size);
    at(to.step_size + place) = step_size;
    at(to.slope + place) = slope;
    at(to.input + place) = step_size * x;
    at(to.y + place) = skip ? V(at(D + v) * x) : V{};  // 0 times infinity would be NaN
    at(to.dinput + place) = at(to.dstep_size + place) = V{};
    at(to.dy + place) = dout * gate;
    at(to.dgate + place) = dout * slope_of_gate;
  };
  const auto silu = [&](V z, V& gate, V& slope) {
    const V s = sigmoid<T, V, I>(z);
    gate = z * s;
    slope = s + gate * (1 - s);
  };
  V gate = 1 - V{}, slope = V{};
  if (p.streams == 1) {
    each_row<T>(p, c, [&](int j, int i, int v) {
      if (gated) silu(load(z[0][j] + v), gate, slope);
      token(i, v, load(u[0][j] + v), load(dout[0][j] + v), gate, slope);
    });
  } else {
    const Order order(p);
    each_row<T>(p, c, [&](int j, int i, int v) {
      const V a = load(u[0][j] + v), b = load(u[1][j] + v);
      if (gated) silu(V(load(z[0][j] + v) * load(z[1][j] + v)), gate, slope);
      token(i + order.product, v, V(a * b), load(dout[0][j] + v), gate, slope);
      token(i + order.sum, v, V(a + b), load(dout[1][j] + v), gate, slope);
    });
  }
  return magnitude.moderate(weights.largest + line.index * kLine);
}

// Makes the gradients of the inputs from the sums over states.
template <class S, class T>
void finish_backward(const BackwardScratch<S>& w, const Columns<T>& from, const Weights<T>& weights,
                     const ScanBackward& q, const Chunk& c, int64_t batch, const Line& line, T* dD_of, T* dbias_of) {
  using V = typename Simd<T>::V;
  constexpr int kLine = Simd<T>::kLine, kLanes = Simd<T>::kLanes;
  const ScanForward& p = q.forward;
  const T* D = weights.D + line.index * kLine;
  const bool gated = p.z[0].data, skip = p.D;
  const auto rows = [&](const In& x, int buffer) {
    return gather(x, batch, line.channel, line.channels, c.pairs, w.in[buffer]);
  };
  const auto to = [&](const Out& x, const Steps& steps, int buffer) {
    return target(x, batch, line.channel, line.channels, steps, w.out[buffer], elements(p.size));
  };
  Rows<const S> u[2], z[2];
  const Target<S> ddelta = to(q.ddelta, c.steps, 0);
  Target<S> du[2], dz[2];
  for (int m = 0; m < p.streams; ++m) {
    u[m] = rows(p.u[m], m);
    du[m] = to(q.du[m], c.pairs, 1 + m);
    if (gated) dz[m] = to(q.dz[m], c.pairs, 3 + m);
    if (gated && p.streams == 2) z[m] = rows(p.z[m], 2 + m);
  }

  V dD[Simd<T>::kVectors], dbias[Simd<T>::kVectors];
  for (int v = 0; v < kLine; v += kLanes) dD[v / kLanes] = dbias[v / kLanes] = V{};
  const auto token = [&](int i, int v, V x) {
    const int place = i * kLine + v;
    const V dinput = at(from.dinput + place), dy = at(from.dy + place);
    const V ddelta_i = (x * dinput + at(from.dstep_size + place) * T(kLn2)) * at(from.slope + place);
    ddelta.put(i, v, ddelta_i);
    dD[v / kLanes] += dy * x;
    dbias[v / kLanes] += ddelta_i;
    const V dx = at(from.step_size + place) * dinput;
    return skip ? V(dx + at(D + v) * dy) : dx;
  };
  const auto dgate = [&](int i, int v) { return V(at(from.dgate + i * kLine + v) * at(from.y + i * kLine + v)); };
  if (p.streams == 1) {
    each_row<T>(p, c, [&](int j, int i, int v) {
      du[0].put(j, v, token(i, v, load(u[0][j] + v)));
      if (gated) dz[0].put(j, v, dgate(i, v));
    });
  } else {
    const Order order(p);
    each_row<T>(p, c, [&](int j, int i, int v) {
      const int product = i + order.product, sum = i + order.sum;
      const V a = load(u[0][j] + v), b = load(u[1][j] + v);
      const V dp = token(product, v, V(a * b)), ds = token(sum, v, V(a + b));
      du[0].put(j, v, V(b * dp + ds));
      du[1].put(j, v, V(a * dp + ds));
      if (gated) {
        const V both = dgate(product, v) + dgate(sum, v);
        dz[0].put(j, v, V(both * load(z[1][j] + v)));
        dz[1].put(j, v, V(both * load(z[0][j] + v)));
      }
    });
  }
  for (int v = 0; v < kLine; v += kLanes) at(dD_of + v) += dD[v / kLanes], at(dbias_of + v) += dbias[v / kLanes];

  const auto done = [&](const Rows<S>& rows, const Out& x, const Steps& steps) {
    if (x.data) scatter(rows, x, batch, line.channel, line.channels, steps);
  };
  done(ddelta, q.ddelta, c.steps);
  for (int m = 0; m < p.streams; ++m) {
    done(du[m], q.du[m], c.pairs);
    done(dz[m], q.dz[m], c.pairs);
  }
}

// Collects the rows that a line of a chunk reads, and the rows of gradients that it writes through
// the caches, to prefetch them.
template <class S>
Prefetch next_rows(const ScanBackward& q, const Chunk& c, int64_t batch, int64_t channel) {
  const ScanForward& p = q.forward;
  Prefetch next;
  const auto result = [&](const Out& x, const Steps& steps) {
    if (!past_caches<S>(x, elements(p.size), batch, channel, steps)) next.add<S>(x, batch, channel, steps);
  };
  next.add<S>(p.delta, batch, channel, c.steps);
  result(q.ddelta, c.steps);
  for (int m = 0; m < p.streams; ++m) {
    for (const In* x : {&p.u[m], &p.z[m], &q.dout[m]}) next.add<S>(*x, batch, channel, c.pairs);
    for (const Out* x : {&q.du[m], &q.dz[m]}) result(*x, c.pairs);
  }
  next.add(checkpoint<typename Storage<S>::T>(p, c, batch, channel), kLineBytes * p.size.dstate);
  return next;
}

// The parts that tasks leave for the sums over tasks: dB and dC of a block of lines, and the
// weights' gradients of a sample.
template <class T>
struct Partial {
  T *dB, *dC;     // (blocks, batch, steps, dstate)
  T* dA;          // (batch, lines, dstate, lane)
  T *dD, *dbias;  // (batch, lines, lane)
};

// Writes zeros to the invalid steps of every gradient that has steps.
template <class S>
void clear_backward(const ScanBackward& q, int64_t batch, const Line& line, int64_t valid) {
  const ScanForward& p = q.forward;
  const auto clear = [&](const Out& x, int64_t from, int64_t length) {
    if (x.data) clear_rest<S>(x, batch, line.channel, line.channels, from, length);
  };
  clear(q.ddelta, valid * p.streams, p.size.steps);
  for (int m = 0; m < p.streams; ++m)
    for (const Out* x : {&q.du[m], &q.dz[m]}) clear(*x, valid, p.size.length);
}

// Adds up dB and dC of a block and a group of states, [step][state][lane], over the lanes, into the
// block's parts.
template <class T>
void store_maps(const ScanForward& p, const Partial<T>& partial, const Chunk& c, int64_t batch, int64_t block,
                int64_t n, int group_size, const T* dB, const T* dC) {
  const int64_t rows = (block * p.size.batch + batch) * p.size.steps;
  for (int i = 0; i < c.count; ++i) {
    const int64_t row = (rows + c.steps.origin + c.steps.sign * i) * p.size.dstate + n;
    sum_lanes(dB + i * group_size * Simd<T>::kLanes, group_size, partial.dB + row);
    sum_lanes(dC + i * group_size * Simd<T>::kLanes, group_size, partial.dC + row);
  }
}

// Computes one vector of a line, for one group of states, of which only the first `channels` lanes
// have a channel. The other lanes compute with zeros. These give NaN where B or C is infinite, and
// that must not get into the sums over channels.
template <int kGroup, class S, class T>
__attribute__((noinline)) void partial_vector(const BackwardScratch<S>& w, BackwardSlice<T> s, bool moderate,
                                              int channels, bool first) {
  using V = typename Simd<T>::V;
  constexpr int kLanes = Simd<T>::kLanes;
  T *const dB = s.dB, *const dC = s.dC;
  s.dB = w.spare_dB, s.dC = w.spare_dC;
  replay_any<kGroup>(s, moderate, true);
  gradient_any<kGroup>(s, true);
  typename Simd<T>::I has_channel;
  for (int l = 0; l < kLanes; ++l) has_channel[l] = l < channels ? -1 : 0;
  const auto add = [&](const T* from, T* to) {
    for (int i = 0; i < s.count * kGroup * kLanes; i += kLanes) {
      const V sum = has_channel ? V(at(from + i)) : V{};
      at(to + i) = first ? sum : V(at(to + i) + sum);
    }
  };
  add(w.spare_dB, dB), add(w.spare_dC, dC);
}

// Computes one vector of a line, for one group of states. With `first`, dB and dC hold nothing yet.
template <int kGroup, class S, class T>
inline void backward_vector(const BackwardScratch<S>& w, const BackwardSlice<T>& s, bool moderate, int channels,
                            bool first) {
  if (channels < Simd<T>::kLanes) return partial_vector<kGroup>(w, s, moderate, channels, first);
  replay_any<kGroup>(s, moderate, first);
  gradient_any<kGroup>(s, first);
}

// Computes one block of lines in one chunk. The outer loop is over groups of states and the inner
// one over lines, so that the sums dB and dC of one group stay in the first-level cache. The
// elementwise work of a line is done beside its first and its last group, while the line's columns
// are in the cache.
template <class S, class T>
void backward_block(const BackwardScratch<S>& w, const Weights<T>& weights, const ScanBackward& q,
                    const Partial<T>& partial, const Chunk& c, int64_t batch, int64_t block_index, int64_t first_line,
                    const Prefetch* next) {
  constexpr int kLine = Simd<T>::kLine, kLanes = Simd<T>::kLanes;
  const ScanForward& p = q.forward;
  const Block block = block_at<T>(p.size, block_index);
  const int64_t dstate = p.size.dstate;
  const int groups = int(ceil_div(dstate, kBackwardGroup));
  bool moderate[kBlockLines];
  each_group<kBackwardGroup>(dstate, [&]<int kGroup>(int64_t n) {
    const int group = int(n / kBackwardGroup);
    bool first = true;
    for (int64_t index = block.first; index < block.last; ++index) {
      const int k = int(index - block.first);
      const Line line = line_at<T>(p.size, index);
      const Columns<T>& columns = w.columns[k];
      if (n == 0) {
        load_states<T>(checkpoint<T>(p, c, batch, line.channel), dstate, line.channels, columns.state);
        moderate[k] = stage_backward(w, columns, weights, q, c, batch, line);
      }
      const int64_t of_task = (index - first_line) * kLine, states = of_task * dstate + n * kLine;
      for (int v = 0; v < line.channels; v += kLanes, first = false) {
        const BackwardSlice<T> slice{.count = c.count,
                                     .step_size = columns.step_size + v,
                                     .input = columns.input + v,
                                     .dy = columns.dy + v,
                                     .y = columns.y + v,
                                     .dinput = columns.dinput + v,
                                     .dstep_size = columns.dstep_size + v,
                                     .B = w.B + n,
                                     .C = w.C + n,
                                     .dstate = dstate,
                                     .A2 = weights.A2 + (index * dstate + n) * kLine + v,
                                     .state = columns.state + n * kLine + v,
                                     .carry = w.carry + states + v,
                                     .dA = w.dA + states + v,
                                     .dB = w.dB,
                                     .dC = w.dC,
                                     .decay = w.decay,
                                     .history = w.history,
                                     .prefetch = {.rows = next + k, .part = group, .parts = groups}};
        backward_vector<kGroup>(w, slice, moderate[k], line.channels - v, first);
      }
      if (n + kGroup == dstate)
        finish_backward(w, columns, weights, q, c, batch, line, w.dD + of_task, w.dbias + of_task);
    }
    store_maps(p, partial, c, batch, block_index, n, kGroup, w.dB, w.dC);
  });
}

template <class S>
void backward_task(const ScanBackward& q, const void* prepared, const Partial<typename Storage<S>::T>& partial,
                   int64_t batch, int64_t first_block, int64_t last_block, void* memory) {
  using T = typename Storage<S>::T;
  constexpr int kLine = Simd<T>::kLine;
  const ScanForward& p = q.forward;
  const int64_t dstate = p.size.dstate, dim = p.size.dim, chunk = chunk_steps(p.size);
  const int64_t first = block_at<T>(p.size, first_block).first, last = block_at<T>(p.size, last_block - 1).last;
  const Weights<T> weights(const_cast<void*>(prepared), p.size);
  Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
  const BackwardScratch<S> w(scratch, dstate, last - first);
  const int64_t valid = valid_length(p, batch), total = valid * p.streams;

  for (int64_t index = first; index < last; ++index) {
    const Line line = line_at<T>(p.size, index);
    const T* carry = static_cast<const T*>(q.dlast_state);
    if (carry) carry += (batch * dim + line.channel) * dstate;
    load_states(carry, dstate, line.channels, w.carry + (index - first) * dstate * kLine);
  }
  for (int64_t i = 0; i < (last - first) * dstate * kLine; ++i) w.dA[i] = 0;
  for (int64_t i = 0; i < (last - first) * kLine; ++i) w.dD[i] = w.dbias[i] = 0;

  const int64_t chunks = ceil_div(total, chunk);
  Visits visit(p.u[0], chunks, last_block - first_block), later = visit.later(1);
  const auto chunk_of = [&](const Visits& at) { return chunk_at(p, valid, (chunks - 1 - at.chunk()) * chunk); };
  Maps<S, T> maps(p, batch, w.B, w.C);
  for (; visit.more(); visit.advance(), later.advance()) {
    const Chunk c = chunk_of(visit);
    const int64_t index = first_block + visit.piece();
    maps.load(c, block_at<T>(p.size, index).group);
    Prefetch next[kBlockLines];
    if (later.more()) {
      const Chunk after = chunk_of(later);
      const Block block = block_at<T>(p.size, first_block + later.piece());
      for (int64_t i = block.first; i < block.last; ++i)
        next[i - block.first] = next_rows<S>(q, after, batch, line_at<T>(p.size, i).channel);
    }
    backward_block(w, weights, q, partial, c, batch, index, first, next);
  }

  const int64_t lines = p.size.ngroups * lines_per_group<T>(p.size);
  for (int64_t index = first; index < last; ++index) {
    const Line line = line_at<T>(p.size, index);
    const int64_t of_task = (index - first) * kLine, of_sample = (batch * lines + index) * kLine;
    for (int64_t i = 0; i < dstate * kLine; ++i) partial.dA[of_sample * dstate + i] = w.dA[of_task * dstate + i];
    for (int c = 0; c < kLine; ++c) {
      partial.dD[of_sample + c] = w.dD[of_task + c];
      partial.dbias[of_sample + c] = w.dbias[of_task + c];
    }
    if (q.dinitial_state)
      store_states(w.carry + of_task * dstate, dstate, line.channels,
                   static_cast<T*>(q.dinitial_state) + (batch * dim + line.channel) * dstate);
    clear_backward<S>(q, batch, line, valid);
  }
}

// Adds up dB and dC of one step of one sample: the blocks' parts, in the order of the channels.
template <class S, class T>
void reduce_maps(const ScanBackward& q, const Partial<T>& partial, int64_t batch, int64_t step, T* row) {
  const ScanForward& p = q.forward;
  const int64_t dstate = p.size.dstate, per_group = block_count<T>(p.size) / p.size.ngroups;
  const bool inside = step < valid_length(p, batch) * p.streams;
  const auto reduce = [&](const T* parts, void* out) {
    for (int64_t group = 0; group < p.size.ngroups; ++group) {
      for (int64_t n = 0; n < dstate; ++n) row[n] = 0;
      for (int64_t k = 0; inside && k < per_group; ++k) {
        const int64_t block = group * per_group + k;
        const T* part = parts + ((block * p.size.batch + batch) * p.size.steps + step) * dstate;
        for (int64_t n = 0; n < dstate; ++n) row[n] += part[n];
      }
      S* to = static_cast<S*>(out) + ((batch * p.size.steps + step) * p.size.ngroups + group) * dstate;
      for (int64_t n = 0; n < dstate; ++n) narrow(row[n], to[n]);
    }
  };
  reduce(partial.dB, q.dB);
  reduce(partial.dC, q.dC);
}

// Adds up the gradients of the weights of one line: the samples' parts, in the order of the batch.
template <class T>
void reduce_weights(const ScanBackward& q, const Partial<T>& partial, int64_t index) {
  constexpr int kLine = Simd<T>::kLine;
  const ScanSizes& s = q.forward.size;
  const Line line = line_at<T>(s, index);
  const int64_t lines = s.ngroups * lines_per_group<T>(s);
  // Adds up over the batch, into the first sample's part.
  const auto sum = [&](T* parts, int64_t size) {
    T* total = parts + index * size;
    for (int64_t b = 1; b < s.batch; ++b)
      for (int64_t i = 0; i < size; ++i) total[i] += parts[(b * lines + index) * size + i];
    return total;
  };
  const auto channels = [&](T* parts, void* out) {
    const T* total = sum(parts, kLine);
    for (int c = 0; c < line.channels; ++c) static_cast<T*>(out)[line.channel + c] = total[c];
  };
  store_states(sum(partial.dA, s.dstate * kLine), s.dstate, line.channels,
               static_cast<T*>(q.dA) + line.channel * s.dstate);
  if (q.dD) channels(partial.dD, q.dD);
  if (q.ddelta_bias) channels(partial.dbias, q.ddelta_bias);
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
