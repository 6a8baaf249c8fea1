// The loops over the steps of a chunk. A loop works on one vector, each lane of which is a channel, and on one group of
// states, which stay in registers. Everything else in csrc/cpu/ serves these loops.
//
//     e_i  = exp(d_i A)
//     h_i  = e_i h_{i-1} + d_i x_i B_i
//     y_i  = <C_i, h_i>
//
// With g_i the gradient of h_i:
//
//     g_i  = dy_i C_i + e_{i+1} g_{i+1}
//     dB_i = g_i d_i x_i
//     dC_i = dy_i h_i
//     dA   = sum_i d_i g_i e_i h_{i-1}
//     dx_i = d_i <g_i, B_i>
//     dd_i = x_i <g_i, B_i> + <A, g_i e_i h_{i-1}>
#pragma once

#include "chunk.h"

namespace cmimtl::cpu::CMIMTL_ISA {

// Calls f<kGroup>(first state) for all states: in groups of kMost, and for the rest in groups of powers of two.
template <int kMost, class F>
inline void each_group(int64_t dstate, F f) {
  static_assert(kMost == 4 || kMost == 8);
  int64_t n = 0;
  for (; n + kMost <= dstate; n += kMost) f.template operator()<kMost>(n);
  if (dstate - n >= 4) f.template operator()<4>(n), n += 4;
  if (dstate - n >= 2) f.template operator()<2>(n), n += 2;
  if (dstate - n >= 1) f.template operator()<1>(n);
}

// AVX-512 has 32 registers, so that the exponential's constants have room beside eight states, and decays are computed
// where they are used. Elsewhere a loop of its own computes the decays first, into the first-level cache. The
// exponential is bound by throughput and the recurrence by latency, so each fills the pipes with the registers that it
// has.
constexpr bool kManyRegisters = CMIMTL_VECTOR_BYTES == 64;
constexpr int kForwardGroup = 8;

// The forward pass prefetches a row so many visits before it is used, to this cache. On a Xeon, 2 to 24 visits were
// equally good for the second level; with the first level a long scan was 7 % slower.
#if CMIMTL_AVX512_FP16
constexpr int kVisitsAhead = 4, kForwardLocality = kSecondLevel;
#else
constexpr int kVisitsAhead = 1, kForwardLocality = kFirstLevel;
#endif

// exp(d A), computed as 2^(d A2). `moderate` says whether |d A2| is known to be in the range of exp2_decay.
template <bool kModerate, class T>
inline typename Simd<T>::V decay_of(typename Simd<T>::V delta, typename Simd<T>::V A2) {
  using V = typename Simd<T>::V;
  using I = typename Simd<T>::I;
  if constexpr (kModerate) return exp2_decay<T, V, I>(delta, A2);
  return exp2_any<T, V, I>(V(delta * A2));
}

// One vector of channels, one group of states, over the steps of a chunk.
template <class T>
struct ForwardSlice {
  int count;
  const T *delta, *delta_x;  // [step][lane of the line]
  T* y;                      // [step][lane of the line]; the sum over the states of the group is added
  const T *B, *C;            // [step][dstate], at the group's first state
  int64_t dstate;
  const T* A2;  // [state][lane of the line]
  T* state;     // [state][lane of the line]
  T* decay;     // [step][state of the group][lane of the vector], scratch
  Ahead<kForwardLocality> ahead;
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
  const T *B = s.B, *C = s.C, *delta = s.delta, *delta_x = s.delta_x;
  T *y = s.y, *decay = s.decay;
  if constexpr (!kManyRegisters) {
    for (int i = 0; i < count; ++i)
#pragma GCC unroll 8
      for (int n = 0; n < kGroup; ++n)
        at(decay + i * kRow + n * kLanes) = decay_of<kModerate, T>(at(delta + i * kLine), A2[n]);
  }
  for (int i = 0; i < count; ++i, B += dstate, C += dstate) {
    s.ahead.step(i);
    const V d = at(delta + i * kLine), dx = at(delta_x + i * kLine);
    V even = V{}, odd = V{};
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      V e;
      if constexpr (kManyRegisters)
        e = decay_of<kModerate, T>(d, A2[n]);
      else
        e = at(decay + i * kRow + n * kLanes);
      state[n] = e * state[n] + dx * B[n];
      (n % 2 ? odd : even) += state[n] * C[n];
    }
    at(y + i * kLine) += even + odd;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) at(s.state + n * kLine) = state[n];
}

// The backward pass works on so many states at a time. For four states, AVX2's sixteen registers hold the carried
// gradients, the sums dA and what a step loads. For eight states, the columns of a line are read half as often, but dB,
// dC, decays and states take 32 KiB of the first-level cache. Cores with FP16 have 48 KiB of it. Other AVX-512 cores
// work on four states, since a Zen 4 has 32 KiB.
#if CMIMTL_AVX512_FP16
constexpr int kBackwardGroup = 8;
#else
constexpr int kBackwardGroup = 4;
#endif

// One vector of channels, one group of states, over the steps of a chunk.
template <class T>
struct BackwardSlice {
  int count;
  const T *delta, *delta_x, *dy;  // [step][lane of the line]
  T *y, *dx, *ddelta;             // [step][lane of the line]: <C, h>, <g, B> and <A2, g e h> of the group are added
  const T *B, *C;                 // [step][dstate], at the group's first state
  int64_t dstate;
  const T *A2, *state;  // [state][lane of the line]; the state before the chunk
  T *carry, *dA;        // [state][lane of the line]; e g of the step after the chunk in, of its first step out
  T *dB, *dC;           // [step][state of the group][lane of the vector]
  T *decay, *history;   // as dB, scratch: e_i and h_{i-1}
  Ahead<kFirstLevel> ahead;
};

// Computes the states and decays of the slice's steps, and from them y and dC. With `kFirst`, dC holds nothing yet.
template <int kGroup, bool kModerate, bool kFirst, class T>
__attribute__((noinline)) void replay_group(const BackwardSlice<T> s) {
  using V = typename Simd<T>::V;
  constexpr int kLanes = Simd<T>::kLanes, kLine = Simd<T>::kLine, kRow = kGroup * kLanes;
  // Copies, since the compiler must take every store for one that may change *s.
  const int count = s.count;
  const int64_t dstate = s.dstate;
  const T *B = s.B, *C = s.C, *delta = s.delta, *delta_x = s.delta_x, *dy = s.dy;
  T *y = s.y, *dC = s.dC, *decay = s.decay, *history = s.history;
  V A2[kGroup], state[kGroup];
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) A2[n] = at(s.A2 + n * kLine), state[n] = at(s.state + n * kLine);
  for (int i = 0; i < count; ++i, B += dstate, C += dstate) {
    s.ahead.step(i);
    const V d = at(delta + i * kLine), dx = at(delta_x + i * kLine), dy_i = at(dy + i * kLine);
    V sum = V{};
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      const int place = i * kRow + n * kLanes;
      const V e = decay_of<kModerate, T>(d, A2[n]);
      at(decay + place) = e;
      at(history + place) = state[n];
      state[n] = e * state[n] + dx * B[n];
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
  const T *B = s.B, *C = s.C, *delta = s.delta, *delta_x = s.delta_x, *dy = s.dy;
  const T *decay = s.decay, *history = s.history;
  T *dB = s.dB, *dx_sum = s.dx, *ddelta_sum = s.ddelta;
  V A2[kGroup], carry[kGroup], dA[kGroup];
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) A2[n] = at(s.A2 + n * kLine), carry[n] = at(s.carry + n * kLine), dA[n] = V{};
  for (int i = s.count - 1; i >= 0; --i) {
    const V d = at(delta + i * kLine), dx = at(delta_x + i * kLine), dy_i = at(dy + i * kLine);
    V to_x = V{}, to_delta = V{};
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      const int place = i * kRow + n * kLanes;
      const V g = carry[n] + dy_i * C[i * dstate + n];
      at(dB + place) = (kFirst ? V{} : V(at(dB + place))) + g * dx;
      to_x += g * B[i * dstate + n];
      carry[n] = g * at(decay + place);
      const V through = carry[n] * at(history + place);
      dA[n] += through * d;
      to_delta += through * A2[n];
    }
    at(dx_sum + i * kLine) += to_x;
    at(ddelta_sum + i * kLine) += to_delta;
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
