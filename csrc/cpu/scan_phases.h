// A scan that goes through phases, for inputs with fewer lines of channels than threads. A phase
// has a task for each chunk of a line or for each group of states, where otherwise a task is a
// line. The scan takes a segment of chunks at a time. The tasks of a phase run side by side, and
// what a phase leaves for the next lies in memory:
//
//     0  elementwise inputs; a task is a line in a chunk
//     1  the recurrence through time; a task is a line (backward: a block of lines) and a group of
//        states
//     2  sums over the groups, then outputs or gradients; a task is a line in a chunk
//     3  the end; a task is a line. Backward it adds up over the chunks of a segment, and finishes
//        after the last one
//
// Each number is computed by the same operations, in the same order, as in one piece: the phases
// change no bit.
#pragma once

#include "kernels.h"
#include "scan_backward.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// A segment of one sample: its chunks in the order of the pass.
template <class S, bool kBackward>
class Phases {
 protected:
  using T = typename Storage<S>::T;
  static constexpr int kLine = Simd<T>::kLine, kLanes = Simd<T>::kLanes, kColumn = kSteps * kLine;

  Phases(const ScanForward& p, const void* prepared, const Segment& segment, int64_t groups)
      : p_(p),
        segment_(segment),
        memory_{reinterpret_cast<uintptr_t>(segment.memory)},
        dstate_(p.size.dstate),
        groups_(groups),
        lines_(p.size.ngroups * lines_per_group<T>(p.size)),
        valid_(valid_length(p, segment.batch)),
        chunks_(ceil_div(valid_ * p.streams, chunk_steps(p.size))),
        weights_(const_cast<void*>(prepared), p.size) {
    moderate_ = memory_.template take<bool>(segment.most * lines_);
    partial_ = memory_.template take<T>(segment.most * lines_ * groups_ * kParts * kColumn);
  }

  // Sums over the states of one group: y, and in the backward pass also dinput and dstep_size.
  static constexpr int kParts = kBackward ? 3 : 1;

  Chunk chunk(int64_t k) const {
    const int64_t index = segment_.first + k;
    return chunk_at(p_, valid_, (kBackward ? chunks_ - 1 - index : index) * chunk_steps(p_.size));
  }
  bool last() const { return segment_.first + segment_.count >= chunks_; }
  Line line(int64_t index) const { return line_at<T>(p_.size, index); }
  // The place of a line's chunk among all of the segment.
  int64_t place(int64_t k, int64_t index) const { return k * lines_ + index; }
  const T* A2(int64_t line, int64_t n) const { return weights_.A2 + (line * dstate_ + n) * kLine; }
  T* partial(int64_t place, int group, int part) const {
    return partial_ + ((place * groups_ + group) * kParts + part) * kColumn;
  }
  void clear_partial(int64_t place, int group) const {
    T* sums = partial(place, group, 0);
    for (int i = 0; i < kParts * kColumn; ++i) sums[i] = 0;
  }
  void add_partial(int64_t place, int part, T* to) const {
    for (int group = 0; group < groups_; ++group) {
      const T* sums = partial(place, group, part);
      for (int i = 0; i < kColumn; ++i) to[i] += sums[i];
    }
  }

  const ScanForward& p_;
  Segment segment_;
  Scratch memory_;
  int64_t dstate_, groups_, lines_, valid_, chunks_;
  Weights<T> weights_;
  bool* moderate_;  // of each place
  T* partial_;      // [place][group][part][step][lane]
};

template <int kMost>
inline int64_t group_count(int64_t dstate) {
  int64_t count = 0;
  each_group<kMost>(dstate, [&]<int>(int64_t) { ++count; });
  return count;
}

// Calls f<kGroup>(first state) for one of the groups that each_group makes.
template <int kMost, class F>
inline void one_group(int64_t dstate, int64_t wanted, F f) {
  int64_t group = 0;
  each_group<kMost>(dstate, [&]<int kGroup>(int64_t n) {
    if (group++ == wanted) f.template operator()<kGroup>(n);
  });
}

// Loads the states of the group that begins with n, (channel, dstate) in memory, to [state][lane]
// at n. Lanes without a channel get zeros.
template <class T>
void load_group(const T* from, int64_t dstate, int channels, int64_t n, int group_size, T* to) {
  constexpr int kLine = Simd<T>::kLine;
  for (int64_t i = 0; i < group_size * kLine; ++i) to[n * kLine + i] = 0;
  if (from) transpose(from + n, dstate, channels, group_size, to + n * kLine, kLine);
}

template <class S>
class ForwardPhases : Phases<S, false> {
  using Base = Phases<S, false>;
  using Base::dstate_, Base::groups_, Base::lines_, Base::p_, Base::segment_, Base::valid_, Base::weights_,
      Base::memory_;
  using Base::kLine, Base::kLanes, Base::kColumn, Base::moderate_;
  using typename Base::T;

 public:
  ForwardPhases(const ScanForward& p, const void* prepared, const Segment& segment)
      : Base(p, prepared, segment, group_count<kForwardGroup>(p.size.dstate)) {
    state_ = memory_.template take<T>(lines_ * dstate_ * kLine);
    columns_ = memory_.template take<char>(segment.most * lines_ * bytes_of<ForwardColumns<T>>());
  }
  static int64_t bytes(const ScanForward& p, Segment segment) {
    segment.memory = nullptr;
    return int64_t(ForwardPhases(p, nullptr, segment).memory_.next);
  }

  int64_t tasks(int phase) const {
    if (phase == 3) return this->last() ? lines_ : 0;
    return phase == 1 ? lines_ * groups_ : segment_.count * lines_;
  }

  void run(int phase, int64_t task, void* memory) const {
    Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
    const ForwardScratch<S> w(scratch, dstate_, 1);
    const Line line = this->line(phase == 1 ? task / groups_ : task % lines_);
    if (phase == 0) {
      const int64_t k = task / lines_, place = this->place(k, line.index);
      moderate_[place] = stage_forward(w, columns(place), weights_, p_, this->chunk(k), segment_.batch, line);
    } else if (phase == 1) {
      recur(w, line, int(task % groups_));
    } else if (phase == 2) {
      const int64_t k = task / lines_, place = this->place(k, line.index);
      this->add_partial(place, 0, columns(place).y);
      finish_forward<S, T>(w, columns(place).y, p_, this->chunk(k), segment_.batch, line);
    } else {
      store_states(state(line), dstate_, line.channels,
                   static_cast<T*>(p_.last_state) + (segment_.batch * p_.size.dim + line.channel) * dstate_);
      for (int m = 0; m < p_.streams; ++m)
        clear_rest<S>(p_.out[m], segment_.batch, line.channel, line.channels, valid_, p_.size.length);
    }
  }

 private:
  ForwardColumns<T> columns(int64_t place) const {
    Scratch memory{reinterpret_cast<uintptr_t>(columns_) + place * bytes_of<ForwardColumns<T>>()};
    return ForwardColumns<T>(memory);
  }
  T* state(const Line& line) const { return state_ + line.index * dstate_ * kLine; }

  void recur(const ForwardScratch<S>& w, const Line& line, int group) const {
    T* states = state(line);
    Maps<S, T> maps(p_, segment_.batch, w.B, w.C);
    const Prefetch none{};
    one_group<kForwardGroup>(dstate_, group, [&]<int kGroup>(int64_t n) {
      const T* initial = static_cast<const T*>(p_.initial_state);
      if (initial) initial += (segment_.batch * p_.size.dim + line.channel) * dstate_;
      if (segment_.first == 0) load_group(initial, dstate_, line.channels, n, kGroup, states);
      for (int64_t k = 0; k < segment_.count; ++k) {
        const Chunk c = this->chunk(k);
        const int64_t place = this->place(k, line.index);
        maps.load(c, line.group);
        if (p_.checkpoints)
          transpose(states + n * kLine, kLine, kGroup, line.channels,
                    checkpoint<T>(p_, c, segment_.batch, line.channel) + n, dstate_);
        this->clear_partial(place, group);
        const ForwardColumns<T> from = columns(place);
        for (int v = 0; v < line.channels; v += kLanes) {
          const ForwardSlice<T> slice{.count = c.count,
                                      .step_size = from.step_size + v,
                                      .input = from.input + v,
                                      .y = this->partial(place, group, 0) + v,
                                      .B = w.B + n,
                                      .C = w.C + n,
                                      .dstate = dstate_,
                                      .A2 = this->A2(line.index, n) + v,
                                      .state = states + n * kLine + v,
                                      .decay = w.decay,
                                      .prefetch = {.rows = &none, .part = 0, .parts = 1}};
          moderate_[place] ? forward_group<kGroup, true>(slice) : forward_group<kGroup, false>(slice);
        }
      }
    });
  }

  T* state_;       // [line][state][lane]
  char* columns_;  // of each place, ForwardColumns
};

template <class S>
class BackwardPhases : Phases<S, true> {
  using Base = Phases<S, true>;
  using Base::dstate_, Base::groups_, Base::lines_, Base::p_, Base::segment_, Base::valid_, Base::weights_,
      Base::memory_;
  using Base::kLine, Base::kLanes, Base::kColumn, Base::moderate_;
  using typename Base::T;

 public:
  BackwardPhases(const ScanBackward& q, const void* prepared, const Partial<T>& sums, const Segment& segment)
      : Base(q.forward, prepared, segment, group_count<kBackwardGroup>(q.forward.size.dstate)), q_(q), sums_(sums) {
    states_ = dstate_ * kLine;
    const int64_t places = segment.most * lines_;
    carry_ = memory_.template take<T>(lines_ * states_);
    columns_ = memory_.template take<char>(places * of_columns());
    channels_ = memory_.template take<T>(places * 2 * kLine);
  }
  static int64_t bytes(const ScanBackward& q, Segment segment) {
    segment.memory = nullptr;
    return int64_t(BackwardPhases(q, nullptr, {}, segment).memory_.next);
  }

  int64_t tasks(int phase) const {
    if (phase == 3) return lines_;
    return phase == 1 ? block_count<T>(p_.size) * groups_ : segment_.count * lines_;
  }

  void run(int phase, int64_t task, void* memory) const {
    Scratch scratch{reinterpret_cast<uintptr_t>(memory)};
    const BackwardScratch<S> w(scratch, dstate_, 1);
    if (phase == 1) return gradients(w, task / groups_, int(task % groups_));
    const Line line = this->line(task % lines_);
    const int64_t k = task / lines_, place = this->place(k, line.index);
    if (phase == 0) {
      const Chunk c = this->chunk(k);
      const Columns<T> to = columns(place);
      load_states<T>(checkpoint<T>(p_, c, segment_.batch, line.channel), dstate_, line.channels, to.state);
      moderate_[place] = stage_backward(w, to, weights_, q_, c, segment_.batch, line);
    } else if (phase == 2) {
      const Columns<T> from = columns(place);
      T* const sums[] = {from.y, from.dinput, from.dstep_size};
      for (int part = 0; part < 3; ++part) this->add_partial(place, part, sums[part]);
      T* channels = channels_ + place * 2 * kLine;
      for (int c = 0; c < 2 * kLine; ++c) channels[c] = 0;
      finish_backward(w, from, weights_, q_, this->chunk(k), segment_.batch, line, channels, channels + kLine);
    } else {
      end(line);
    }
  }

 private:
  int64_t of_columns() const { return bytes_of<Columns<T>>(dstate_); }
  Columns<T> columns(int64_t place) const {
    Scratch memory{reinterpret_cast<uintptr_t>(columns_) + place * of_columns()};
    return Columns<T>(memory, dstate_);
  }
  int64_t of_sample(int64_t line) const { return (segment_.batch * lines_ + line) * kLine; }

  void gradients(const BackwardScratch<S>& w, int64_t index, int group) const {
    const Block block = block_at<T>(p_.size, index);
    Maps<S, T> maps(p_, segment_.batch, w.B, w.C);
    const Prefetch none{};
    one_group<kBackwardGroup>(dstate_, group, [&]<int kGroup>(int64_t n) {
      for (int64_t i = block.first; i < block.last && segment_.first == 0; ++i) {
        const T* last = static_cast<const T*>(q_.dlast_state);
        if (last) last += (segment_.batch * p_.size.dim + this->line(i).channel) * dstate_;
        load_group(last, dstate_, this->line(i).channels, n, kGroup, carry_ + i * states_);
        load_group<T>(nullptr, dstate_, 0, n, kGroup, sums_.dA + of_sample(i) * dstate_);
      }
      for (int64_t k = 0; k < segment_.count; ++k) {
        const Chunk c = this->chunk(k);
        maps.load(c, block.group);
        bool first = true;
        for (int64_t i = block.first; i < block.last; ++i) {
          const int64_t place = this->place(k, i);
          const Columns<T> to = columns(place);
          this->clear_partial(place, group);
          for (int v = 0; v < this->line(i).channels; v += kLanes, first = false) {
            const auto part = [&](int which) { return this->partial(place, group, which) + v; };
            const BackwardSlice<T> slice{.count = c.count,
                                         .step_size = to.step_size + v,
                                         .input = to.input + v,
                                         .dy = to.dy + v,
                                         .y = part(0),
                                         .dinput = part(1),
                                         .dstep_size = part(2),
                                         .B = w.B + n,
                                         .C = w.C + n,
                                         .dstate = dstate_,
                                         .A2 = this->A2(i, n) + v,
                                         .state = to.state + n * kLine + v,
                                         .carry = carry_ + i * states_ + n * kLine + v,
                                         .dA = sums_.dA + of_sample(i) * dstate_ + n * kLine + v,
                                         .dB = w.dB,
                                         .dC = w.dC,
                                         .decay = w.decay,
                                         .history = w.history,
                                         .prefetch = {.rows = &none, .part = 0, .parts = 1}};
            backward_vector<kGroup>(w, slice, moderate_[place], this->line(i).channels - v, first);
          }
        }
        store_maps(p_, sums_, c, segment_.batch, index, n, kGroup, w.dB, w.dC);
      }
    });
  }

  void end(const Line& line) const {
    T *dD = sums_.dD + of_sample(line.index), *dbias = sums_.dbias + of_sample(line.index);
    for (int c = 0; c < kLine && segment_.first == 0; ++c) dD[c] = dbias[c] = 0;
    for (int64_t k = 0; k < segment_.count; ++k) {
      const T* from = channels_ + this->place(k, line.index) * 2 * kLine;
      for (int c = 0; c < kLine; ++c) dD[c] += from[c], dbias[c] += from[kLine + c];
    }
    if (!this->last()) return;
    if (q_.dinitial_state)
      store_states(carry_ + line.index * states_, dstate_, line.channels,
                   static_cast<T*>(q_.dinitial_state) + (segment_.batch * p_.size.dim + line.channel) * dstate_);
    clear_backward<S>(q_, segment_.batch, line, valid_);
  }

  const ScanBackward& q_;
  Partial<T> sums_;
  int64_t states_;
  T *carry_, *channels_;  // [line][state][lane]; of each place the sums dD and dbias
  char* columns_;         // of each place, Columns
};

}  // namespace cmimtl::cpu::CMIMTL_ISA
