// A scan split over time, for inputs with fewer lines of channels than threads. A segment of chunks goes through three
// phases, each of them parallel; what one leaves for the next lies in memory, decays included:
//
//   forward:  1 elementwise inputs and decays, by line and chunk    2 the recurrence, by line and group of states
//             3 sums over the groups, gate and outputs, by line and chunk
//   backward: 1 states from the checkpoints, y and dC, by block and chunk    2 the carried gradient, by line and group
//             3 gradients, by block and chunk    and at the end the sums over chunks, by line
//
// Only phase 2 runs through time, and it has three (forward) and two (backward) of the operations of a step. Each number is
// computed by the operations, in the order, of the scan in one piece: splitting changes no bit.
#pragma once

#include "kernels.h"
#include "scan_backward.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// Groups of states as each_group makes them: f<kGroup>(first state, group index).
template <int kMost, class F>
inline void each_group_indexed(int64_t dstate, F f) {
  int index = 0;
  each_group<kMost>(dstate, [&]<int kGroup>(int64_t n) { f.template operator()<kGroup>(n, index++); });
}
template <int kMost>
inline int64_t group_count(int64_t dstate) {
  int64_t count = 0;
  each_group<kMost>(dstate, [&]<int>(int64_t) { ++count; });
  return count;
}

// Chunks of a segment of one sample, in the order of the pass.
template <class S, bool kBackward>
class Segment {
 public:
  using T = typename Storage<S>::T;
  static constexpr int kLine = Simd<T>::kLine, kLanes = Simd<T>::kLanes;

  Segment(const ScanForward& p, const void* prepared, const Split& split)
      : p_(p),
        split_(split),
        dstate_(p.size.dstate),
        lines_(p.size.ngroups * lines_per_group<T>(p.size)),
        valid_(valid_length(p, split.batch)),
        chunks_(ceil_div(valid_ * p.streams, chunk_steps(p.size))),
        weights_(const_cast<void*>(prepared), p.size) {}

 protected:
  Chunk chunk(int64_t k) const {
    const int64_t index = split_.first + k;
    return chunk_at(p_, valid_, (kBackward ? chunks_ - 1 - index : index) * chunk_steps(p_.size));
  }
  Line line(int64_t index) const { return line_at<T>(p_.size, index); }
  // The place of a line's chunk among all of the segment.
  int64_t place(int64_t k, int64_t index) const { return k * lines_ + index; }
  const T* A2(const Line& line, int64_t n) const { return weights_.A2 + (line.index * dstate_ + n) * kLine; }

  const ScanForward& p_;
  Split split_;
  int64_t dstate_, lines_, valid_, chunks_;
  Weights<T> weights_;
};

template <class S>
class ForwardSegment : Segment<S, false> {
  using Base = Segment<S, false>;
  using Base::A2, Base::chunk, Base::chunks_, Base::dstate_, Base::line, Base::lines_, Base::p_, Base::place,
      Base::split_, Base::valid_, Base::weights_, Base::kLine, Base::kLanes;
  using T = typename Base::T;

 public:
  ForwardSegment(const ScanForward& p, const void* prepared, const Split& split) : Base(p, prepared, split) {
    groups_ = group_count<kForwardGroup>(dstate_);
    Scratch memory{reinterpret_cast<uintptr_t>(split.memory)};
    state_ = memory.take<T>(lines_ * dstate_ * kLine);
    const int64_t count = split.most * lines_;
    column_ = kSteps * kLine;
    columns_ = memory.take<T>(count * 3 * column_);
    partial_ = memory.take<T>(count * groups_ * column_);
    decays_ = memory.take<T>(count * column_ * dstate_);
    end_ = memory.next;
  }
  static int64_t bytes(const ScanForward& p, const Split& split) {
    Split measure = split;
    measure.memory = nullptr;
    return int64_t(ForwardSegment(p, nullptr, measure).end_);
  }

  int64_t tasks(int phase) const {
    if (phase == 3) return split_.first + split_.count < chunks_ ? 0 : lines_;
    return phase == 1 ? lines_ * groups_ : split_.count * lines_;
  }

  void run(int phase, int64_t task, void* memory) const {
    Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
    const ForwardScratch<S> w(scratch, dstate_, 1);
    if (phase == 0) {
      stage(w, task / lines_, line(task % lines_));
    } else if (phase == 1) {
      recur(w, line(task / groups_), int(task % groups_));
    } else if (phase == 2) {
      finish(w, task / lines_, line(task % lines_));
    } else {
      end(line(task));
    }
  }

 private:
  ForwardColumns<T> columns(int64_t at) const {
    Scratch memory{reinterpret_cast<uintptr_t>(columns_ + at * 3 * column_)};
    return ForwardColumns<T>(memory);
  }
  T* partial(int64_t at, int group) const { return partial_ + (at * groups_ + group) * column_; }
  // Of a vector of channels and a group of states, [step][state][lane].
  T* decay(int64_t at, int64_t n, int v, int group_size) const {
    return decays_ + at * column_ * dstate_ + kSteps * (n * kLine + v * group_size);
  }
  ForwardSlice<T> slice(const ForwardColumns<T>& from, int64_t at, const Chunk& c, const Line& line, int64_t n,
                        int group, int group_size, int v, const ForwardScratch<S>& w, const Prefetch& none) const {
    return {c.count,      from.delta + v, from.delta_x + v, partial(at, group) + v,      w.B + n,
            w.C + n,      dstate_,        A2(line, n) + v,  state(line) + n * kLine + v, decay(at, n, v, group_size),
            {&none, 0, 1}};
  }
  T* state(const Line& line) const { return state_ + line.index * dstate_ * kLine; }

  void stage(const ForwardScratch<S>& w, int64_t k, const Line& line) const {
    const Chunk c = chunk(k);
    const int64_t at = place(k, line.index);
    const ForwardColumns<T> to = columns(at);
    const bool moderate = stage_forward(w, to, weights_, p_, c, split_.batch, line);
    const Prefetch none{};
    each_group_indexed<kForwardGroup>(dstate_, [&]<int kGroup>(int64_t n, int group) {
      for (int v = 0; v < line.channels; v += kLanes) {
        const ForwardSlice<T> s = slice(to, at, c, line, n, group, kGroup, v, w, none);
        moderate ? fill_decays<kGroup, true>(s) : fill_decays<kGroup, false>(s);
      }
      T* sums = partial(at, group);
      for (int i = 0; i < column_; ++i) sums[i] = 0;
    });
  }

  void recur(const ForwardScratch<S>& w, const Line& line, int wanted) const {
    T* states = state(line);
    Maps<S, T> maps(p_, split_.batch, w.B, w.C);
    const Prefetch none{};
    each_group_indexed<kForwardGroup>(dstate_, [&]<int kGroup>(int64_t n, int group) {
      if (group != wanted) return;
      if (split_.first == 0) {
        const T* initial = static_cast<const T*>(p_.initial_state);
        for (int64_t i = 0; i < kGroup * kLine; ++i) states[n * kLine + i] = 0;
        if (initial)
          transpose(initial + (split_.batch * p_.size.dim + line.channel) * dstate_ + n, dstate_, line.channels, kGroup,
                    states + n * kLine, kLine);
      }
      for (int64_t k = 0; k < split_.count; ++k) {
        const Chunk c = chunk(k);
        const int64_t at = place(k, line.index);
        maps.load(c, line.group);
        if (p_.checkpoints)
          transpose(states + n * kLine, kLine, kGroup, line.channels,
                    checkpoint<T>(p_, c, split_.batch, line.channel) + n, dstate_);
        for (int v = 0; v < line.channels; v += kLanes)
          forward_group<kGroup, true, true>(slice(columns(at), at, c, line, n, group, kGroup, v, w, none));
      }
    });
  }

  void finish(const ForwardScratch<S>& w, int64_t k, const Line& line) const {
    const int64_t at_line = place(k, line.index);
    T* y = columns(at_line).y;
    for (int group = 0; group < groups_; ++group) {
      const T* part = partial(at_line, group);
      for (int i = 0; i < column_; ++i) y[i] += part[i];
    }
    finish_forward(w, static_cast<const T*>(y), p_, chunk(k), split_.batch, line);
  }

  void end(const Line& line) const {
    store_states(state(line), dstate_, line.channels,
                 static_cast<T*>(p_.last_state) + (split_.batch * p_.size.dim + line.channel) * dstate_);
    for (int m = 0; m < p_.streams; ++m)
      clear_rest<S>(p_.out[m], split_.batch, line.channel, line.channels, valid_, p_.size.length);
  }

  int64_t groups_, column_;
  T *state_, *columns_, *partial_, *decays_;
  uintptr_t end_;
};

template <class S>
class BackwardSegment : Segment<S, true> {
  using Base = Segment<S, true>;
  using Base::A2, Base::chunk, Base::chunks_, Base::dstate_, Base::line, Base::lines_, Base::p_, Base::place,
      Base::split_, Base::valid_, Base::weights_, Base::kLine, Base::kLanes;
  using T = typename Base::T;

 public:
  BackwardSegment(const ScanBackward& q, const void* prepared, const Partial<T>& partial, const Split& split)
      : Base(q.forward, prepared, split), q_(q), partial_(partial) {
    groups_ = group_count<kBackwardGroup>(dstate_);
    blocks_ = block_count<T>(p_.size);
    Scratch memory{reinterpret_cast<uintptr_t>(split.memory)};
    states_ = dstate_ * kLine;
    const int64_t count = split.most * lines_;
    of_columns_ = 9 * kSteps * kLine + states_;
    carry_ = memory.take<T>(lines_ * states_);
    columns_ = memory.take<T>(count * of_columns_);
    carries_ = memory.take<T>(count * states_);
    sums_ = memory.take<T>(count * (states_ + 2 * kLine));
    decays_ = memory.take<T>(count * kSteps * states_);
    history_ = memory.take<T>(count * kSteps * states_);
    end_ = memory.next;
  }
  static int64_t bytes(const ScanBackward& q, const Split& split) {
    Split measure = split;
    measure.memory = nullptr;
    return int64_t(BackwardSegment(q, nullptr, {}, measure).end_);
  }

  int64_t tasks(int phase) const {
    return phase == 1 ? lines_ * groups_ : phase == 3 ? lines_ : split_.count * blocks_;
  }

  void run(int phase, int64_t task, void* memory) const {
    Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
    const BackwardScratch<S> w(scratch, dstate_, 1);
    if (phase == 0) {
      replay(w, task / blocks_, task % blocks_);
    } else if (phase == 1) {
      carry(w, line(task / groups_), int(task % groups_));
    } else if (phase == 2) {
      gradients(w, task / blocks_, task % blocks_);
    } else {
      end(line(task));
    }
  }

 private:
  Columns<T> columns(int64_t at) const {
    Scratch memory{reinterpret_cast<uintptr_t>(columns_ + at * of_columns_)};
    return Columns<T>(memory, dstate_);
  }
  // Of a vector of channels and a group of states, [step][state][lane].
  int64_t of_group(int64_t at, int64_t n, int v, int group_size) const {
    return at * kSteps * states_ + kSteps * (n * kLine + v * group_size);
  }
  T* sums(int64_t at) const { return sums_ + at * (states_ + 2 * kLine); }
  // The parts of dB or dC of a group of states, summed over the lanes of a block of lines.
  void store_map(const Chunk& c, int64_t block, int64_t n, int group_size, const T* from, T* parts) const {
    const int64_t rows = (block * p_.size.batch + split_.batch) * p_.size.steps;
    for (int i = 0; i < c.count; ++i)
      sum_lanes(from + i * group_size * kLanes, group_size,
                parts + (rows + c.steps.origin + c.steps.sign * i) * dstate_ + n);
  }
  BackwardSlice<T> slice(const Columns<T>& to, int64_t at, const Chunk& c, const Line& line, int64_t n, int group_size,
                         int v, const BackwardScratch<S>& w, const Prefetch& none) const {
    const int64_t group = of_group(at, n, v, group_size);
    const int64_t state = at * states_ + n * kLine + v;
    return {c.count,
            to.delta + v,
            to.delta_x + v,
            to.dy + v,
            to.y + v,
            to.dx + v,
            to.ddelta + v,
            w.B + n,
            w.C + n,
            dstate_,
            A2(line, n) + v,
            to.state + n * kLine + v,
            carries_ + state,
            sums(at) + n * kLine + v,
            w.dB,
            w.dC,
            decays_ + group,
            history_ + group,
            {&none, 0, 1}};
  }

  void replay(const BackwardScratch<S>& w, int64_t k, int64_t index) const {
    const Chunk c = chunk(k);
    const Block block = block_at<T>(p_.size, index);
    Maps<S, T> maps(p_, split_.batch, w.B, w.C);
    maps.load(c, block.group);
    bool moderate[kBlockLines];
    for (int64_t i = block.first; i < block.last; ++i) {
      const Columns<T> to = columns(place(k, i));
      load_states<T>(checkpoint<T>(p_, c, split_.batch, line(i).channel), dstate_, line(i).channels, to.state);
      moderate[i - block.first] = stage_backward(w, to, weights_, q_, c, split_.batch, line(i));
      T* zero = sums(place(k, i));
      for (int64_t j = 0; j < states_ + 2 * kLine; ++j) zero[j] = 0;
    }
    const Prefetch none{};
    each_group<kBackwardGroup>(dstate_, [&]<int kGroup>(int64_t n) {
      bool first = true;
      for (int64_t i = block.first; i < block.last; ++i)
        for (int v = 0; v < line(i).channels; v += kLanes, first = false) {
          const int64_t at = place(k, i);
          replay_any<kGroup>(slice(columns(at), at, c, line(i), n, kGroup, v, w, none), moderate[i - block.first],
                             first);
        }
      store_map(c, index, n, kGroup, w.dC, partial_.dC);
    });
  }

  void carry(const BackwardScratch<S>& w, const Line& line, int wanted) const {
    using V = typename Simd<T>::V;
    Maps<S, T> maps(p_, split_.batch, w.B, w.C);
    T* carried = carry_ + line.index * states_;
    int group = 0;
    each_group<kBackwardGroup>(dstate_, [&]<int kGroup>(int64_t n) {
      if (group++ != wanted) return;
      if (split_.first == 0) {
        const T* last = static_cast<const T*>(q_.dlast_state);
        for (int64_t i = 0; i < kGroup * kLine; ++i) carried[n * kLine + i] = 0;
        if (last)
          transpose(last + (split_.batch * p_.size.dim + line.channel) * dstate_ + n, dstate_, line.channels, kGroup,
                    carried + n * kLine, kLine);
      }
      for (int64_t k = 0; k < split_.count; ++k) {
        const Chunk c = chunk(k);
        const int64_t at_line = place(k, line.index);
        maps.load(c, line.group);
        const T* dy = columns(at_line).dy;
        for (int v = 0; v < kLine; v += kLanes) {
          const T* decay = decays_ + of_group(at_line, n, v, kGroup);
          V g[kGroup];
#pragma GCC unroll 4
          for (int s = 0; s < kGroup; ++s)
            at(carries_ + at_line * states_ + (n + s) * kLine + v) = g[s] = at(carried + (n + s) * kLine + v);
          if (v < line.channels)
            for (int i = c.count - 1; i >= 0; --i) {
              const V dy_i = at(dy + i * kLine + v);
#pragma GCC unroll 4
              for (int s = 0; s < kGroup; ++s)
                g[s] = (g[s] + dy_i * w.C[i * dstate_ + n + s]) * at(decay + (i * kGroup + s) * kLanes);
            }
#pragma GCC unroll 4
          for (int s = 0; s < kGroup; ++s) at(carried + (n + s) * kLine + v) = g[s];
        }
      }
    });
  }

  void gradients(const BackwardScratch<S>& w, int64_t k, int64_t index) const {
    const Chunk c = chunk(k);
    const Block block = block_at<T>(p_.size, index);
    Maps<S, T> maps(p_, split_.batch, w.B, w.C);
    maps.load(c, block.group);
    const Prefetch none{};
    each_group<kBackwardGroup>(dstate_, [&]<int kGroup>(int64_t n) {
      bool first = true;
      for (int64_t i = block.first; i < block.last; ++i)
        for (int v = 0; v < line(i).channels; v += kLanes, first = false) {
          const int64_t at = place(k, i);
          gradient_any<kGroup>(slice(columns(at), at, c, line(i), n, kGroup, v, w, none), first);
        }
      store_map(c, index, n, kGroup, w.dB, partial_.dB);
    });
    for (int64_t i = block.first; i < block.last; ++i) {
      T* channels = sums(place(k, i)) + states_;
      finish_backward(w, columns(place(k, i)), weights_, q_, c, split_.batch, line(i), channels, channels + kLine);
    }
  }

  // After each segment: its sums, in the order of the pass; after the last, what is left.
  void end(const Line& line) const {
    const int64_t of_sample = split_.batch * lines_ + line.index;
    T *dA = partial_.dA + of_sample * states_, *dD = partial_.dD + of_sample * kLine,
      *dbias = partial_.dbias + of_sample * kLine;
    if (split_.first == 0) {
      for (int64_t i = 0; i < states_; ++i) dA[i] = 0;
      for (int c = 0; c < kLine; ++c) dD[c] = dbias[c] = 0;
    }
    for (int64_t k = 0; k < split_.count; ++k) {
      const T* from = sums(place(k, line.index));
      for (int64_t i = 0; i < states_; ++i) dA[i] += from[i];
      for (int c = 0; c < kLine; ++c) dD[c] += from[states_ + c], dbias[c] += from[states_ + kLine + c];
    }
    if (split_.first + split_.count < chunks_) return;
    if (q_.dinitial_state)
      store_states(carry_ + line.index * states_, dstate_, line.channels,
                   static_cast<T*>(q_.dinitial_state) + (split_.batch * p_.size.dim + line.channel) * dstate_);
    clear_backward<S>(q_, split_.batch, line, valid_);
  }

  const ScanBackward& q_;
  Partial<T> partial_;
  int64_t groups_, blocks_, states_, of_columns_;
  T *carry_, *columns_, *carries_, *sums_, *decays_, *history_;
  uintptr_t end_;
};

}  // namespace cmimtl::cpu::CMIMTL_ISA
