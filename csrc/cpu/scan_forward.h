// The forward pass of one task: for each line and chunk, the recurrence and the elementwise work
// before and after it.
#pragma once

#include "scan_groups.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// The values of one line in a chunk, [step][lane] each: step sizes d, inputs d x, and y.
template <class T>
struct ForwardColumns {
  T *step_size, *input, *y;
  explicit ForwardColumns(Scratch& memory) {
    for (T** column : {&step_size, &input, &y}) *column = memory.take<T>(kSteps * Simd<T>::kLine);
  }
};

template <class S>
struct ForwardScratch {
  using T = typename Storage<S>::T;
  T* state;  // [line of the task][state][lane]
  T *B, *C;  // [step][state]
  ForwardColumns<T> columns;
  T* decay;
  // Rows of delta, the streams and the gates, and of the outputs, that cannot be used in place.
  S *in[5], *out[2];

  ForwardScratch(Scratch& memory, int64_t dstate, int64_t lines) : columns(memory) {
    constexpr int kLine = Simd<T>::kLine;
    state = memory.take<T>(lines * dstate * kLine);
    for (T** map : {&B, &C}) *map = memory.take<T>(kSteps * dstate);
    decay = memory.take<T>(kSteps * kForwardGroup * Simd<T>::kLanes);
    for (S*& rows : in) rows = memory.take<S>(kSteps * kLine);
    for (S*& rows : out) rows = memory.take<S>(kSteps * kLine);
  }
};

// Computes the step sizes d = softplus(delta + bias), the inputs d x, and y = D x, for the steps of
// a chunk. Returns whether every decay is moderate.
template <class S, class T>
bool stage_forward(const ForwardScratch<S>& w, const ForwardColumns<T>& to, const Weights<T>& weights,
                   const ScanForward& p, const Chunk& c, int64_t batch, const Line& line) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLine = Simd<T>::kLine;
  const T *D = weights.D + line.index * kLine, *bias = weights.bias + line.index * kLine;
  const bool skip = p.D;
  Magnitude<T> magnitude;
  const Rows<const S> delta = gather(p.delta, batch, line.channel, line.channels, c.steps, w.in[0]);
  const auto stream = [&](int m) { return gather(p.u[m], batch, line.channel, line.channels, c.pairs, w.in[1 + m]); };
  each_step<T>(c, [&](int i, int v) {
    const V biased = load(delta[i] + v) + at(bias + v);
    at(to.step_size + i * kLine + v) = biased;
    if (p.delta_softplus) at(to.input + i * kLine + v) = exp_of_minus_magnitude<T, V, I>(biased);
  });
  const auto token = [&](int i, int v, V x) {
    V step_size = at(to.step_size + i * kLine + v), slope;
    if (p.delta_softplus) softplus<T>(V(step_size), V(at(to.input + i * kLine + v)), step_size, slope);
    magnitude.add(v, step_size);
    at(to.step_size + i * kLine + v) = step_size;
    at(to.input + i * kLine + v) = step_size * x;
    at(to.y + i * kLine + v) = skip ? V(at(D + v) * x) : V{};  // 0 times infinity would be NaN
  };
  if (p.streams == 1) {
    const Rows<const S> u = stream(0);
    each_row<T>(p, c, [&](int j, int i, int v) { token(i, v, load(u[j] + v)); });
  } else {
    const Rows<const S> first = stream(0), second = stream(1);
    const Order order(p);
    each_row<T>(p, c, [&](int j, int i, int v) {
      const V a = load(first[j] + v), b = load(second[j] + v);
      token(i + order.product, v, V(a * b));
      token(i + order.sum, v, V(a + b));
    });
  }
  return magnitude.moderate(weights.largest + line.index * kLine);
}

// Writes y * silu(z), or y where there is no gate, to the outputs.
template <class S, class T>
void finish_forward(const ForwardScratch<S>& w, const T* y_of, const ScanForward& p, const Chunk& c, int64_t batch,
                    const Line& line) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  constexpr int kLine = Simd<T>::kLine;
  const bool gated = p.z[0].data;
  Rows<const S> z[2];
  Target<S> out[2];
  for (int m = 0; m < p.streams; ++m) {
    if (gated) z[m] = gather(p.z[m], batch, line.channel, line.channels, c.pairs, w.in[3 + m]);
    out[m] = target(p.out[m], batch, line.channel, line.channels, c.pairs, w.out[m], elements(p.size));
  }
  const auto silu = [&](V x) { return V(x * sigmoid<T, V, I>(x)); };
  const auto y = [&](int i, int v) -> V { return at(y_of + i * kLine + v); };
  if (p.streams == 1) {
    each_row<T>(p, c,
                [&](int j, int i, int v) { out[0].put(j, v, gated ? V(y(i, v) * silu(load(z[0][j] + v))) : y(i, v)); });
  } else {
    const Order order(p);
    each_row<T>(p, c, [&](int j, int i, int v) {
      V product = y(i + order.product, v), sum = y(i + order.sum, v);
      if (gated) {
        const V gate = silu(V(load(z[0][j] + v) * load(z[1][j] + v)));
        product *= gate;
        sum *= gate;
      }
      out[0].put(j, v, product);
      out[1].put(j, v, sum);
    });
  }
  for (int m = 0; m < p.streams; ++m) scatter(out[m], p.out[m], batch, line.channel, line.channels, c.pairs);
}

// Collects the rows that a line of a chunk reads, or writes through the caches, to prefetch them.
template <class S>
Prefetch next_rows(const ScanForward& p, const Chunk& c, int64_t batch, int64_t channel, int64_t piece) {
  using T = typename Storage<S>::T;
  Prefetch next = kForwardLocality == kSecondLevel ? Prefetch(piece) : Prefetch();
  next.add<S>(p.delta, batch, channel, c.steps);
  for (int m = 0; m < p.streams; ++m) {
    next.add<S>(p.u[m], batch, channel, c.pairs);
    next.add<S>(p.z[m], batch, channel, c.pairs);
    if (!past_caches<S>(p.out[m], elements(p.size), batch, channel, c.pairs))
      next.add<S>(p.out[m], batch, channel, c.pairs);
  }
  if (p.checkpoints) next.add(checkpoint<T>(p, c, batch, channel), kLineBytes * p.size.dstate);
  return next;
}

// Computes one line of one chunk.
template <class S, class T>
void forward_line(const ForwardScratch<S>& w, const Weights<T>& weights, const ScanForward& p, const Chunk& c,
                  int64_t batch, const Line& line, T* state, const Prefetch& next) {
  constexpr int kLine = Simd<T>::kLine, kLanes = Simd<T>::kLanes;
  const int64_t dstate = p.size.dstate;
  const bool moderate = stage_forward(w, w.columns, weights, p, c, batch, line);
  const T* A2 = weights.A2 + line.index * kLine * dstate;
  const int groups = int(ceil_div(dstate, kForwardGroup));
  each_group<kForwardGroup>(dstate, [&]<int kGroup>(int64_t n) {
    const PrefetchShare<kForwardLocality> prefetch{.rows = &next, .part = int(n / kForwardGroup), .parts = groups};
    for (int v = 0; v < line.channels; v += kLanes) {
      const ForwardSlice<T> slice{.count = c.count,
                                  .step_size = w.columns.step_size + v,
                                  .input = w.columns.input + v,
                                  .y = w.columns.y + v,
                                  .B = w.B + n,
                                  .C = w.C + n,
                                  .dstate = dstate,
                                  .A2 = A2 + n * kLine + v,
                                  .state = state + n * kLine + v,
                                  .decay = w.decay,
                                  .prefetch = prefetch};
      moderate ? forward_group<kGroup, true>(slice) : forward_group<kGroup, false>(slice);
    }
  });
  finish_forward<S, T>(w, w.columns.y, p, c, batch, line);
}

template <class S>
void forward_task(const ScanForward& p, const void* prepared, int64_t batch, int64_t first, int64_t last,
                  void* memory) {
  using T = typename Storage<S>::T;
  constexpr int kLine = Simd<T>::kLine;
  const int64_t dstate = p.size.dstate, dim = p.size.dim, chunk = chunk_steps(p.size);
  const Weights<T> weights(const_cast<void*>(prepared), p.size);
  Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
  const ForwardScratch<S> w(scratch, dstate, last - first);
  const int64_t valid = valid_length(p, batch), total = valid * p.streams;
  const auto state_of = [&](int64_t index) { return w.state + (index - first) * dstate * kLine; };

  for (int64_t index = first; index < last; ++index) {
    const Line line = line_at<T>(p.size, index);
    const T* initial = static_cast<const T*>(p.initial_state);
    if (initial) initial += (batch * dim + line.channel) * dstate;
    load_states(initial, dstate, line.channels, state_of(index));
  }
  Visits visit(p.u[0], ceil_div(total, chunk), last - first), later = visit.later(kPrefetchVisits);
  const auto chunk_of = [&](const Visits& at) { return chunk_at(p, valid, at.chunk() * chunk); };
  const auto line_of = [&](const Visits& at) { return line_at<T>(p.size, first + at.piece()); };
  Maps<S, T> maps(p, batch, w.B, w.C);
  for (; visit.more(); visit.advance(), later.advance()) {
    const Chunk c = chunk_of(visit);
    const Line line = line_of(visit);
    maps.load(c, line.group);
    T* state = state_of(line.index);
    if (p.checkpoints) store_states(state, dstate, line.channels, checkpoint<T>(p, c, batch, line.channel));
    Prefetch next;
    if (later.more()) next = next_rows<S>(p, chunk_of(later), batch, line_of(later).channel, later.piece());
    forward_line<S>(w, weights, p, c, batch, line, state, next);
  }
  for (int64_t index = first; index < last; ++index) {
    const Line line = line_at<T>(p.size, index);
    store_states(state_of(index), dstate, line.channels,
                 static_cast<T*>(p.last_state) + (batch * dim + line.channel) * dstate);
    for (int m = 0; m < p.streams; ++m)
      clear_rest<S>(p.out[m], batch, line.channel, line.channels, valid, p.size.length);
  }
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
