// The loops over the steps of a chunk. A loop works on one vector, each lane of which is a channel,
// and on one group of states, which stay in registers. Everything else in csrc/cpu/ serves these
// loops.
//
//     e_i      = exp(d_i A)
//     h_i      = e_i h_{i-1} + d_i x_i B_i
//     y_i      = <C_i, h_i>
//
// With dstate_i the gradient of the state h_i:
//
//     dstate_i = dy_i C_i + e_{i+1} dstate_{i+1}
//     dB_i     = dstate_i d_i x_i
//     dC_i     = dy_i h_i
//     dA       = sum_i d_i dstate_i e_i h_{i-1}
//     dx_i     = d_i <dstate_i, B_i>
//     dd_i     = x_i <dstate_i, B_i> + <A, dstate_i e_i h_{i-1}>
//
// In the code d is the `step_size`, and d x, what a step adds to the state, is the `input`.
#pragma once

#include "chunk.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// Calls f<kGroup>(first state) for all states: in groups of kMost, and for the rest in groups of
// powers of two.
template <int kMost, class F>
inline void each_group(int64_t dstate, F f) {
  static_assert(kMost == 4 || kMost == 8);
  int64_t n = 0;
  for (; n + kMost <= dstate; n += kMost) f.template operator()<kMost>(n);
  if (dstate - n >= 4) f.template operator()<4>(n), n += 4;
  if (dstate - n >= 2) f.template operator()<2>(n), n += 2;
  if (dstate - n >= 1) f.template operator()<1>(n);
}

// AVX-512 has 32 registers, so that the exponential's constants have room beside eight states, and
// decays are computed where they are used. Elsewhere a loop of its own computes the decays first,
// into the first-level cache. The exponential is bound by throughput and the recurrence by latency,
// so each fills the pipes with the registers that it has.
constexpr bool kManyRegisters = CMIMTL_VECTOR_BYTES == 64;
constexpr int kForwardGroup = 8;

// The forward pass prefetches a row kPrefetchVisits visits before it is used, to this cache. On a
// Xeon, 2 to 24 visits were equally good for the second level; with the first level a long scan was
// 7 % slower.
#if CMIMTL_SAPPHIRE_RAPIDS
constexpr int kPrefetchVisits = 4, kForwardLocality = kSecondLevel;
#else
constexpr int kPrefetchVisits = 1, kForwardLocality = kFirstLevel;
#endif

// exp(d A), computed as 2^(d A2). `moderate` says whether |d A2| is known to be in the range of
// exp2_decay.
template <bool kModerate, class T>
inline typename Simd<T>::V decay_of(typename Simd<T>::V step_size, typename Simd<T>::V A2) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  if constexpr (kModerate) return exp2_decay<T, V, I>(step_size, A2);
  return exp2_any<T, V, I>(V(step_size * A2));
}

// One vector of channels, one group of states, over the steps of a chunk.
template <class T>
struct ForwardSlice {
  int count;
  const T *step_size, *input;  // [step][lane of the line]
  T* y;                        // [step][lane of the line]; the group's sum over its states is added
  const T *B, *C;              // [step][dstate], at the group's first state
  int64_t dstate;
  const T* A2;  // [state][lane of the line]
  T* state;     // [state][lane of the line]
  T* decay;     // [step][state of the group][lane of the vector], scratch
  PrefetchShare<kForwardLocality> prefetch;
};

template <int kGroup, bool kModerate, class T>
__attribute__((noinline)) void forward_group(const ForwardSlice<T> s) {
  using V = typename Simd<T>::V;
  constexpr int kLanes = Simd<T>::kLanes, kLine = Simd<T>::kLine, kRow = kGroup * kLanes;
  V state[kGroup], A2[kGroup];
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) state[n] = at(s.state + n * kLine), A2[n] = at(s.A2 + n * kLine);
  // Copies, since the compiler must take every store for one that may change *s.
  const int count = s.count;
  const int64_t dstate = s.dstate;
  const T *B = s.B, *C = s.C, *step_size = s.step_size, *input = s.input;
  T *y = s.y, *decay = s.decay;
  if constexpr (!kManyRegisters) {
    for (int i = 0; i < count; ++i)
#pragma GCC unroll 8
      for (int n = 0; n < kGroup; ++n)
        at(decay + i * kRow + n * kLanes) = decay_of<kModerate, T>(at(step_size + i * kLine), A2[n]);
  }
  for (int i = 0; i < count; ++i, B += dstate, C += dstate) {
    s.prefetch.step(i);
    const V step_size_i = at(step_size + i * kLine), input_i = at(input + i * kLine);
    V even = V{}, odd = V{};
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      V e;
      if constexpr (kManyRegisters)
        e = decay_of<kModerate, T>(step_size_i, A2[n]);
      else
        e = at(decay + i * kRow + n * kLanes);
      state[n] = e * state[n] + input_i * B[n];
      (n % 2 ? odd : even) += state[n] * C[n];
    }
    at(y + i * kLine) += even + odd;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) at(s.state + n * kLine) = state[n];
}

// The backward pass works on so many states at a time. For four states, AVX2's sixteen registers
// hold the carried gradients, the sums dA and what a step loads. For eight states, the columns of a
// line are read half as often, but dB, dC, decays and states take 32 KiB of the first-level cache.
// Sapphire Rapids has 48 KiB of it. Other AVX-512 cores work on four states, since a Zen 4 has 32
// KiB.
#if CMIMTL_SAPPHIRE_RAPIDS
constexpr int kBackwardGroup = 8;
#else
constexpr int kBackwardGroup = 4;
#endif

// One vector of channels, one group of states, over the steps of a chunk.
template <class T>
struct BackwardSlice {
  int count;
  const T *step_size, *input, *dy;  // [step][lane of the line]
  // [step][lane of the line]: the sums over the states of the group are added: <C, h>, and of the
  // gradients of input and step size <dstate, B> and <A2, dstate e h>.
  T *y, *dinput, *dstep_size;
  const T *B, *C;  // [step][dstate], at the group's first state
  int64_t dstate;
  const T *A2, *state;  // [state][lane of the line]; the state before the chunk
  // [state][lane of the line]; the carry is e dstate of the step after the chunk, and later of the
  // chunk's first step.
  T *carry, *dA;
  T *dB, *dC;          // [step][state of the group][lane of the vector]
  T *decay, *history;  // as dB, scratch: e_i and h_{i-1}
  PrefetchShare<kFirstLevel> prefetch;
};

// Computes the states and decays of the slice's steps, and from them y and dC. With `kFirst`, dC
// holds nothing yet.
template <int kGroup, bool kModerate, bool kFirst, class T>
__attribute__((noinline)) void replay_group(const BackwardSlice<T> s) {
  using V = typename Simd<T>::V;
  constexpr int kLanes = Simd<T>::kLanes, kLine = Simd<T>::kLine, kRow = kGroup * kLanes;
  // Copies, since the compiler must take every store for one that may change *s.
  const int count = s.count;
  const int64_t dstate = s.dstate;
  const T *B = s.B, *C = s.C, *step_size = s.step_size, *input = s.input, *dy = s.dy;
  T *y = s.y, *dC = s.dC, *decay = s.decay, *history = s.history;
  V A2[kGroup], state[kGroup];
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) A2[n] = at(s.A2 + n * kLine), state[n] = at(s.state + n * kLine);
  for (int i = 0; i < count; ++i, B += dstate, C += dstate) {
    s.prefetch.step(i);
    const V step_size_i = at(step_size + i * kLine), input_i = at(input + i * kLine), dy_i = at(dy + i * kLine);
    V sum = V{};
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      const int place = i * kRow + n * kLanes;
      const V e = decay_of<kModerate, T>(step_size_i, A2[n]);
      at(decay + place) = e;
      at(history + place) = state[n];
      state[n] = e * state[n] + input_i * B[n];
      sum += state[n] * C[n];
      at(dC + place) = (kFirst ? V{} : V(at(dC + place))) + dy_i * state[n];
    }
    at(y + i * kLine) += sum;
  }
}

// Computes the gradients, back through the steps. With `kFirst`, dB holds nothing yet.
template <int kGroup, bool kFirst, class T>
__attribute__((noinline)) void gradient_group(const BackwardSlice<T> s) {
  using V = typename Simd<T>::V;
  constexpr int kLanes = Simd<T>::kLanes, kLine = Simd<T>::kLine, kRow = kGroup * kLanes;
  const int64_t dstate = s.dstate;
  const T *B = s.B, *C = s.C, *step_size = s.step_size, *input = s.input, *dy = s.dy;
  const T *decay = s.decay, *history = s.history;
  T *dB = s.dB, *dinput = s.dinput, *dstep_size = s.dstep_size;
  V A2[kGroup], carry[kGroup], dA[kGroup];
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) A2[n] = at(s.A2 + n * kLine), carry[n] = at(s.carry + n * kLine), dA[n] = V{};
  for (int i = s.count - 1; i >= 0; --i) {
    const V step_size_i = at(step_size + i * kLine), input_i = at(input + i * kLine), dy_i = at(dy + i * kLine);
    V dinput_i = V{}, dstep_size_i = V{};
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      const int place = i * kRow + n * kLanes;
      const V dstate_n = carry[n] + dy_i * C[i * dstate + n];
      at(dB + place) = (kFirst ? V{} : V(at(dB + place))) + dstate_n * input_i;
      dinput_i += dstate_n * B[i * dstate + n];
      carry[n] = dstate_n * at(decay + place);
      const V through_decay = carry[n] * at(history + place);
      dA[n] += through_decay * step_size_i;
      dstep_size_i += through_decay * A2[n];
    }
    at(dinput + i * kLine) += dinput_i;
    at(dstep_size + i * kLine) += dstep_size_i;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) at(s.carry + n * kLine) = carry[n], at(s.dA + n * kLine) += dA[n];
}

template <int kGroup, class T>
inline void replay_any(const BackwardSlice<T>& s, bool moderate, bool first) {
  if (first)
    moderate ? replay_group<kGroup, true, true>(s) : replay_group<kGroup, false, true>(s);
  else
    moderate ? replay_group<kGroup, true, false>(s) : replay_group<kGroup, false, false>(s);
}
template <int kGroup, class T>
inline void gradient_any(const BackwardSlice<T>& s, bool first) {
  first ? gradient_group<kGroup, true>(s) : gradient_group<kGroup, false>(s);
}

}  // namespace cmimtl::cpu::CMIMTL_ISA
