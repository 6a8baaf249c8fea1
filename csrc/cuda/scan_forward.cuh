// The forward scan: sequential in time, a thread holds kStates states of one channel.
//
// Issue slots for each element (one state of one channel at one step), float32, dstate 16, all options, on sm_90:
//     recurrence      p = d a, e = 2^p, w = dx B, h = e h + w, y += C h                            5
//     B and C         2 LDS.128 for 4 states                                                       0.5
//     softplus        2^-|x|, max, polynomial of 8 coefficients: 12 for a step of 16 states        0.8
//     gate            |z|, 2^z, 1 / (1 + e) shared by four steps, 3 more: 10                       0.6
//     streams         3 loads, 1 store, 64-bit addresses, bias, D, gate, the loop: 20              1.2
// so 8.1. The MUFU pipe takes 8 cycles for each of 16 + 2.25 instructions in 16 elements: 9.1 an element. The 16 bytes of a
// step come from memory in about the same time, so nothing here is worth a second pass over the data.
#pragma once

#include "scan_common.cuh"

namespace cmimtl::cuda {

constexpr int kGroup = 4;  // steps at a time: what is done once for a step is spread over the lanes of its channel

// kShare: lanes of a channel that share that work, 1, 2 or 4; lanes past the fourth repeat it.
// kStreams: 2 for the cross scan, whose steps are the products and the sums of two streams.
// Options that cost no slot where they are off are tested at run time; the gate is not one of them.
template <class T, int kStates, int kShare, int kStreams, bool kGate>
struct Forward {
  static constexpr int kOwn = kGroup / kShare;                           // steps of a group that are this lane's
  static constexpr int kPoints = kOwn < kStreams ? 1 : kOwn / kStreams;  // steps of a stream, and gates, of those
  static constexpr int kRows = kShare == 4 ? kGroup : 16 / kShare;
  static constexpr int kWidest = kShare == 4 ? int(kMostStates) : kShare * kStates;
  using Tiles = MapTiles<T, kRows, kWidest>;
  static constexpr size_t kShared = 2 * 2 * Tiles::kValues * sizeof(float);

  const ScanForward& p;
  Place<kStates, kShare> place;
  Walk<const T> u[kStreams], z[kStreams], delta;  // at this lane's first step of the next group
  Walk<T> out[kStreams];
  T next_delta[kOwn], next_u[kStreams][kPoints], next_z[kStreams][kPoints];  // what lies there, on its way
  bool softplus_delta, summary;
  bool odd;          // this lane's first step is the second one of its pair, in the order of x
  int own;           // the first of this lane's steps of a group
  float bias, skip;  // bias times log2 e
  float a[kStates], h[kStates];
  float sum = 0.0f;  // of the step sizes that are this lane's, for a summary

  __device__ Forward(const ScanForward& p, const Split& split)
      : p(p), place(p.size, split.segments), softplus_delta(p.delta_softplus), summary(split.summary) {}

  // Starts the loads of the next group, which ends the sequence after `left` of its steps; kMasked: where that is fewer
  // than all.
  template <bool kMasked>
  __device__ void load(int left) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) next_delta[i] = !kMasked || own + i < left ? delta[i] : T{};
    delta.advance(kGroup);
#pragma unroll
    for (int m = 0; m < kStreams; ++m) {
#pragma unroll
      for (int i = 0; i < kPoints; ++i) next_u[m][i] = !kMasked || own + i * kStreams < left ? u[m][i] : T{};
      u[m].advance(kGroup / kStreams);
    }
    if constexpr (kGate) {
#pragma unroll
      for (int m = 0; m < kStreams; ++m) {
#pragma unroll
        for (int i = 0; i < kPoints; ++i) next_z[m][i] = !kMasked || own + i * kStreams < left ? z[m][i] : T{};
        z[m].advance(kGroup / kStreams);
      }
    }
  }

  // Step sizes d, times log2 e, and inputs x of this lane's steps.
  template <bool kMasked>
  __device__ void prepare(int left, float (&d)[kOwn], float (&x)[kOwn]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) d[i] = fmaf(to_float(next_delta[i]), kLog2E, bias);
    if (softplus_delta) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) d[i] = softplus2<T>(d[i], ex2(-fabsf(d[i])));
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      if (kMasked && own + i >= left) d[i] = 0.0f;
    if constexpr (kStreams == 1) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) x[i] = to_float(next_u[0][i]);
    } else {
#pragma unroll
      for (int i = 0; i < kPoints; ++i) {
        const float v = to_float(next_u[0][i]), t = to_float(next_u[1][i]);
        x[i * kOwn / kPoints] = odd ? v + t : v * t;
        if constexpr (kOwn > 1) x[2 * i + 1] = odd ? v * t : v + t;
      }
    }
  }

  __device__ void gates(float (&gate)[kPoints]) const {
    float w[kPoints], e[kPoints], r[kPoints];
#pragma unroll
    for (int i = 0; i < kPoints; ++i) {
      w[i] = to_float(next_z[0][i]);
      if constexpr (kStreams == 2) w[i] *= to_float(next_z[1][i]);
      e[i] = exp_of_minus_magnitude(w[i]);
    }
    reciprocals(e, r);
#pragma unroll
    for (int i = 0; i < kPoints; ++i) gate[i] = silu(w[i], e[i], r[i]);
  }

  // The value of step j of a group, from the lane that has it.
  __device__ float of_step(const float (&x)[kOwn], int j) const {
    if constexpr (kShare == 1) {
      return x[j];
    } else {
      return __shfl_sync(kAllLanes, x[j % kOwn], j / kOwn * (kWarp / place.lanes) + place.column);
    }
  }
  __device__ float sum_over_lanes(float y) const {
    if constexpr (kShare > 1) {
      for (int o = kWarp / place.lanes; o < kWarp; o *= 2) y += __shfl_xor_sync(kAllLanes, y, o);
    }
    return y;
  }

  // One group of steps, whose rows of B and C are given, (kGroup, states).
  template <bool kMasked>
  __device__ void group(int left, const float* B, const float* C) {
    float d[kOwn], x[kOwn], dx[kOwn], y[kOwn], gate[kPoints];
    prepare<kMasked>(left, d, x);
    if constexpr (kGate) gates(gate);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      dx[i] = kMasked && own + i >= left ? 0.0f : d[i] * x[i];
      y[i] = skip * x[i];
    }
    load<kMasked>(left - kGroup);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float d_j = of_step(d, j), dx_j = of_step(dx, j);
      float y_j = kShare == 1 ? y[j % kOwn] : 0.0f;
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const int at = j * place.states + place.state(i);
        const float4 b = load_vector<float4>(B + at), c = load_vector<float4>(C + at);
        step(i, d_j, dx_j, b.x, c.x, y_j), step(i + 1, d_j, dx_j, b.y, c.y, y_j);
        step(i + 2, d_j, dx_j, b.z, c.z, y_j), step(i + 3, d_j, dx_j, b.w, c.w, y_j);
      }
      if constexpr (kShare == 1) {
        y[j % kOwn] = y_j;
      } else {
        y_j = sum_over_lanes(y_j);
        if (own / kOwn == j / kOwn) y[j % kOwn] += y_j;
      }
    }
    if constexpr (!kGate) {
      if (summary) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) sum += d[i];
        return;
      }
    }
    const bool mine = place.live && (kShare < 4 || place.lane < kShare);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int point = i * kPoints / kOwn, m = kOwn == 1 ? 0 : i % kStreams;
      if (mine && (!kMasked || own + i < left)) out[m][point] = from_float<T>(kGate ? y[i] * gate[point] : y[i]);
    }
#pragma unroll
    for (int m = 0; m < kStreams; ++m) out[m].advance(kGroup / kStreams);
  }

  __device__ void step(int i, float d, float dx, float b, float c, float& y) {
    h[i] = fmaf(ex2(d * a[i]), h[i], dx * b);
    y = fmaf(c, h[i], y);
  }

  __device__ void run(const Split& split) {
    const int64_t valid = p.lengths ? p.lengths[place.sample] : p.size.length, steps = valid * kStreams;
    const int64_t first = place.segment * split.segment_steps;
    const int count = int((first + split.segment_steps < steps ? first + split.segment_steps : steps) - first);
    const int dstate = int(p.size.dstate);
    const int64_t channel = place.channel;
    const bool reverse = p.reverse;

    place.load(static_cast<const float*>(p.A) + channel * dstate, dstate, a);
#pragma unroll
    for (int i = 0; i < kStates; ++i) h[i] = 0.0f;
    if (!summary) {
      if (split.states) {
        place.load(place.row(split.states, p.size, split.segments, place.segment), dstate, h);
      } else if (p.initial_state) {
        place.load(place.row(static_cast<const float*>(p.initial_state), p.size, 1, 0), dstate, h);
      }
    }
    bias = p.delta_bias ? static_cast<const float*>(p.delta_bias)[channel] * kLog2E : 0.0f;
    skip = p.D ? static_cast<const float*>(p.D)[channel] : 0.0f;

    if (count > 0) {
      const int64_t step = reverse ? steps - 1 - first : first,
                    point = reverse ? valid - 1 - first / kStreams : first / kStreams;
      own = kShare == 1 ? 0 : place.lane % kShare * kOwn;
      odd = reverse != (own % 2 == 1);
      delta = Walk<const T>(p.delta, place.sample, channel, step, reverse);
      delta.advance(own);
#pragma unroll
      for (int m = 0; m < kStreams; ++m) {
        u[m] = Walk<const T>(p.u[m], place.sample, channel, point, reverse);
        if constexpr (kGate) z[m] = Walk<const T>(p.z[m], place.sample, channel, point, reverse);
        // out[] is in the order of the steps of x, the first of this lane's first.
        out[m] = Walk<T>(p.out[kStreams == 2 && odd ? 1 - m : m], place.sample, channel, point, reverse);
        u[m].advance(own / kStreams), out[m].advance(own / kStreams);
        if constexpr (kGate) z[m].advance(own / kStreams);
      }
      steps_of_segment(first, step, count);
    }

    if (kShare > 1 && summary) sum = sum_over_lanes(place.lane < kShare ? sum : 0.0f);
    finish(Place<kStates, kShare>(p.size, split.segments), split);
  }

  // Results of the whole segment; all that the place is made of was not kept while it ran.
  __device__ void finish(const Place<kStates, kShare>& place, const Split& split) const {
    const int dstate = int(p.size.dstate);
    if (!kGate && split.summary) {
      place.store(place.row(split.states, p.size, split.segments, place.segment), dstate, h);
      if (place.live && place.lane == 0)
        split.sums[(place.sample * split.segments + place.segment) * p.size.dim + place.channel] = sum;
      return;
    }
    if (!split.states) place.store(place.row(static_cast<float*>(p.last_state), p.size, 1, 0), dstate, h);
    if (!place.live || place.lane > 0) return;
    // The rows of `out` that are past the sample's valid steps, a share for each segment.
    const int64_t valid = p.lengths ? p.lengths[place.sample] : p.size.length;
    const int64_t begin = place.segment * split.segment_steps / kStreams, end = begin + split.segment_steps / kStreams;
    for (int m = 0; m < kStreams; ++m)
      clear_steps<T>(p.out[m], place.sample, place.channel, max(begin, valid), min(end, p.size.length));
  }

  __device__ void steps_of_segment(int64_t first, int64_t step, int count) {
    Tiles tiles(p, place.sample, place.group, place.states, step);
    const int dstate = int(p.size.dstate), every = int(p.size.checkpoint_every);
    int next = p.checkpoints && !summary ? 0 : count;  // the step before which a checkpoint is due

    tiles.load(0, count);
    load<true>(count);
    int buffer = 0, k = 0;
    for (int row = 0; row < count; row += kRows, buffer ^= 1) {
      const float* B = shared_memory<float>() + buffer * 2 * Tiles::kValues;
      tiles.store(const_cast<float*>(B), const_cast<float*>(B) + Tiles::kValues);
      __syncthreads();  // one is enough: the buffer that is written next was last read before it
      tiles.load(row + kRows, count);
      const int end_of_tile = min(row + kRows, count);
      while (k < end_of_tile) {
        if (k == next) {
          place.store(place.row(static_cast<float*>(p.checkpoints), p.size, p.size.nchunks, (first + k) / every),
                      dstate, h);
          next += every;
        }
        const int end = min(end_of_tile, next), end_of_full = min(end, count - 2 * kGroup + 1);
        for (; k < end_of_full; k += kGroup, B += kGroup * place.states) group<false>(kGroup, B, B + Tiles::kValues);
        for (; k < end; k += kGroup, B += kGroup * place.states) group<true>(count - k, B, B + Tiles::kValues);
      }
    }
  }
};

template <class T, int kStates, int kShare, int kStreams, bool kGate>
__global__ void __launch_bounds__(kThreads, kShare == 4 ? 3 : 4)
    scan_forward_kernel(const ScanForward p, const Split split) {
  Forward<T, kStates, kShare, kStreams, kGate>(p, split).run(split);
}

template <class T, int kStates, int kShare, int kStreams, bool kGate>
void launch_forward(const ScanForward& p, const ScanPlan& plan, const Split& split, void* stream) {
  launch(scan_forward_kernel<T, kStates, kShare, kStreams, kGate>, dim3(unsigned(plan.blocks(p.size))), dim3(kThreads),
         Forward<T, kStates, kShare, kStreams, kGate>::kShared, stream, p, split);
}

template <class T, int kStreams, bool kGate>
void launch_forward(const ScanForward& p, const ScanPlan& plan, const Split& split, void* stream) {
  if (plan.states == 8 && plan.lanes == 1) return launch_forward<T, 8, 1, kStreams, kGate>(p, plan, split, stream);
  if (plan.states == 8) return launch_forward<T, 8, 2, kStreams, kGate>(p, plan, split, stream);
  if (plan.lanes == 1) return launch_forward<T, 16, 1, kStreams, kGate>(p, plan, split, stream);
  if (plan.lanes == 2) return launch_forward<T, 16, 2, kStreams, kGate>(p, plan, split, stream);
  return launch_forward<T, 16, 4, kStreams, kGate>(p, plan, split, stream);
}

template <class T>
void launch_forward(const ScanForward& p, const ScanPlan& plan, const Split& split, void* stream) {
  const bool gate = p.z[0].data && !split.summary;
  const auto run = gate ? (p.streams == 1 ? launch_forward<T, 1, true> : launch_forward<T, 2, true>)
                        : (p.streams == 1 ? launch_forward<T, 1, false> : launch_forward<T, 2, false>);
  run(p, plan, split, stream);
}

}  // namespace cmimtl::cuda
