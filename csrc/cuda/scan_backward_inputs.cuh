// The part of the backward scan that is done once for each channel and step, before a chunk. It
// loads the inputs from global memory, and stores step sizes, inputs, gates and their slopes in the
// rows of BackwardShared.
#pragma once

#include "scan_backward_shared.cuh"

namespace cmimtl::cuda {

// A pointer into one channel of a tensor. It goes from the last processed step to the first one.
template <class T>
struct BackwardPointer {
  T* p;
  int stride;  // elements from a step to the next one
  int back;    // how many steps next() goes: -1, or 0 to stay
  __device__ T* next() {
    T* const at = p;
    p = step_on(p, back, stride);
    return at;
  }
};

// kGate: the call has a gate, or, where kKnown is false, may have one, as in scan_forward.cuh.
// kWhole: false for the first pass of a split scan, which needs only step sizes and dy, and neither
// x nor B.
template <class T, int kStates, int kShare, int kStreams, bool kGate, bool kWhole = true>
struct BackwardInputs {
  using Shared = BackwardShared<kStates, kShare, kStreams, kGate>;
  static constexpr int kOwn = kChunk / kShare;     // steps of a chunk that this lane prepares
  static constexpr int kPoints = kOwn / kStreams;  // the steps of a stream that these are made of
  static constexpr bool kKnown = kWhole && kStates * kShare == 16;

  const ScanBackward& q;
  const ScanForward& p;
  Place<kStates, kShare> place;
  Shared shared;
  static constexpr int kWidest = kShare == 4 ? int(kMostStates) : kShare * kStates;
  using Tiles = MapTiles<T, kChunk, kWidest>;
  int count;  // the number of steps of the segment
  // The values of a chunk that this lane loads.
  struct Loaded {
    T delta[kOwn], u[kStreams][kPoints], z[kStreams][kPoints], dout[kStreams][kPoints];
  };

  __device__ BackwardInputs(const ScanBackward& q, const Split& split, const Partial& partial)
      : q(q),
        p(q.forward),
        place(p.size, kWhole ? split.all() : split.summed),
        shared(place.channel_lanes, place.column) {
    const int64_t steps = steps_of(place.sample), first = place.segment * split.segment_steps, channel = place.channel;
    count = int(min(first + split.segment_steps, steps) - first);
    shared.own_value(Shared::kBias) = p.delta_bias ? static_cast<const float*>(p.delta_bias)[channel] * kLog2E : 0.0f;
    shared.own_value(Shared::kSkip) = kWhole && p.D ? static_cast<const float*>(p.D)[channel] : 0.0f;
    shared.own_value(Shared::kSumD) = shared.own_value(Shared::kSumBias) = 0.0f;
    // Threads past the last channel must add nothing to sums over channels, so they leave these
    // zeros as they are.
    if (place.channel_lane == 0) {
#pragma unroll
      for (int t = 0; t < kChunk; ++t) shared.row(Shared::kInput, t) = shared.row(Shared::kDy, t) = 0.0f;
    }
    find_tensors(partial, steps, first);
  }

  __device__ bool gated() const { return kGate && (kKnown || p.z[0].data); }
  __device__ int64_t steps_of(int sample) const { return valid_length(p.lengths, p.size.length, sample) * kStreams; }
  __device__ int64_t step_at(int64_t steps, int64_t k) const { return p.reverse ? steps - 1 - k : k; }
  __device__ int last_chunk() const { return (count - 1) / kChunk * kChunk; }

  __device__ bool owner(int t) const {
    return kShare == 1 || (place.channel_lane < kShare && place.channel_lane == t / kOwn);
  }
  __device__ float sum_over_channel_lanes(float y) const {
    if constexpr (kShare > 1) {
      for (int o = kWarp / place.channel_lanes; o < kWarp; o *= 2) y += __shfl_xor_sync(kAllLanes, y, o);
    }
    return y;
  }
  __device__ int first_own() const { return kShare == 1 ? 0 : place.channel_lane % kShare * kOwn; }

  // Fills the table of where each tensor starts. `steps` is the number of steps of the sample.
  __device__ void find_tensors(const Partial& partial, int64_t steps, int64_t first) const {
    const int64_t step = step_at(steps, first), point = step_at(steps / kStreams, first / kStreams);
    const int sign = p.reverse ? -1 : 1;
    const auto find = [&](int tensor, const auto& x, int64_t at) {
      const T* data =
          static_cast<const T*>(x.data) + place.sample * x.batch + place.first_channel * x.dim + at * x.step;
      store_vector(shared.start(tensor),
                   Start{.p = const_cast<T*>(data), .step = sign * int(x.step), .channel = int(x.dim)});
    };
    if (threadIdx.x == 0) {
      const int64_t row = (place.tile * p.size.batch + place.sample) * p.size.ngroups + place.group;
      const int64_t at = (row * p.size.steps + step) * p.size.dstate;
      store_vector(shared.start(Shared::kPartB),
                   Start{.p = partial.dB + at, .step = sign * int(p.size.dstate), .channel = 1});
      store_vector(shared.start(Shared::kPartC),
                   Start{.p = partial.dC + at, .step = sign * int(p.size.dstate), .channel = 1});
      const auto maps = Maps<T>::of_block(p, place.sample, place.group, place.states, step);
      store_vector(shared.start(Shared::kB),
                   Start{.p = const_cast<T*>(maps.B), .step = maps.B_step, .channel = maps.B_state});
      store_vector(shared.start(Shared::kC),
                   Start{.p = const_cast<T*>(maps.C), .step = maps.C_step, .channel = maps.C_state});
      find(Shared::kDelta, p.delta, step), find(Shared::kDdelta, q.ddelta, step);
      for (int m = 0; m < kStreams; ++m) {
        find(Shared::kU + m, p.u[m], point), find(Shared::kDu + m, q.du[m], point);
        // The product of a pair of steps belongs to stream 0. With `reverse` it comes after the
        // sum.
        const int stream = kStreams == 2 && p.reverse ? 1 - m : m;
        find(Shared::kDout + m, q.dout[stream], point);
        if constexpr (kGate) find(Shared::kZ + m, p.z[m], point), find(Shared::kDz + m, q.dz[m], point);
      }
    }
    __syncthreads();
  }

  // Starts to load the tiles of B and C of the chunk that begins at step k.
  __device__ Tiles load_tiles(int k) const {
    const Start B = load_vector<Start>(shared.start(Shared::kB)), C = load_vector<Start>(shared.start(Shared::kC));
    Tiles tiles(Maps<T>{.B = static_cast<const T*>(B.p),
                        .C = static_cast<const T*>(C.p),
                        .B_step = B.step,
                        .C_step = C.step,
                        .B_state = B.channel,
                        .C_state = C.channel,
                        .states = place.states,
                        .dstate = int(p.size.dstate)});
    tiles.template load<kWhole>(k, count);
    return tiles;
  }

  // This thread's channel in a tensor, `steps` steps after the first step of the segment.
  template <class U>
  __device__ U* at(const Start& start, int steps) const {
    return step_on(step_on(static_cast<U*>(start.p), steps, start.step), place.offset, start.channel);
  }
  // A pointer to the last of this lane's steps of the chunk that begins at step k. The strides are
  // read from shared memory each time, because the compiler would keep products with them in
  // registers.
  template <class U>
  __device__ BackwardPointer<U> pointer(int tensor, int k, int streams, int back = -1) const {
    const Start start = load_vector<Start>(shared.start(tensor));
    return {.p = at<U>(start, -back * ((k + first_own() + kOwn) / streams - 1)), .stride = start.step, .back = back};
  }

  // Starts the loads of the chunk that begins at step k. With kMasked the sequence ends after
  // `left` of its steps. Where there is no such chunk, k < 0, every load is of the segment's first
  // step, and its value is not used.
  template <bool kMasked>
  __device__ void load(int k, int left, Loaded& x) const {
    const int back = k < 0 ? 0 : -1;
    left -= first_own();
    auto delta_k = pointer<const T>(Shared::kDelta, k, 1, back);
#pragma unroll
    for (int i = kOwn - 1; i >= 0; --i) x.delta[i] = get<kMasked>(delta_k, i < left);
#pragma unroll
    for (int m = 0; m < kStreams; ++m) {
      auto u_k = pointer<const T>(Shared::kU + m, k, kStreams, back);
      auto dout_k = pointer<const T>(Shared::kDout + m, k, kStreams, back);
#pragma unroll
      for (int i = kPoints - 1; i >= 0; --i) {
        if constexpr (kWhole) x.u[m][i] = get<kMasked>(u_k, i * kStreams < left);
        x.dout[m][i] = get<kMasked>(dout_k, i * kStreams < left);
      }
      if (gated()) {
        auto z_k = pointer<const T>(Shared::kZ + m, k, kStreams, back);
#pragma unroll
        for (int i = kPoints - 1; i >= 0; --i) x.z[m][i] = get<kMasked>(z_k, i * kStreams < left);
      }
    }
  }
  template <bool kMasked>
  static __device__ T get(BackwardPointer<const T>& from, bool in) {
    const T* const at = from.next();
    return !kMasked || in ? *at : T{};
  }

  // Fills the rows of the chunk that was loaded. Step sizes d and inputs d x, both times log2 e,
  // stay in registers too. Steps past the last one get d = dy = 0, and a slope of 0, so that their
  // ddelta is 0.
  template <bool kMasked>
  __device__ void prepare(const Loaded& from, int left, float (&step_size)[kOwn], float (&input)[kOwn]) const {
    float slope[kOwn];
    const float bias = shared.own_value(Shared::kBias);
    const int own = first_own();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) step_size[i] = slope[i] = fmaf(to_float(from.delta[i]), kLog2E, bias);
    if (p.delta_softplus) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) step_size[i] = softplus2<T>(step_size[i], ex2(-fabsf(step_size[i])));
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      slope[i] = softplus2_slope(slope[i], step_size[i]);  // this is 1 where there is no softplus
      if (kMasked && own + i >= left) step_size[i] = slope[i] = 0.0f;
    }
    const bool live = place.live_again(), mine = kShare < 4 || place.channel_lane < kShare;
#pragma unroll
    for (int point = 0; point < kPoints; ++point) {
      float u_t[kStreams] = {}, x[kStreams] = {}, dy[kStreams], dgate[kStreams];
#pragma unroll
      for (int m = 0; m < kStreams; ++m) {
        if constexpr (kWhole) u_t[m] = to_float(from.u[m][point]);
        dy[m] = to_float(from.dout[m][point]), dgate[m] = 0.0f;
      }
      if constexpr (kWhole) tokens(u_t, x);
      if (gated()) {
        float w = to_float(from.z[0][point]);
        if constexpr (kStreams == 2) {
          const float z0 = w, z1 = to_float(from.z[1][point]);
          w = z0 * z1;
          if (mine) store_vector(shared.pair(own + point * 2), make_float2(z0, z1));
        }
        const float s = sigmoid(w), gate = w * s, slope_of_gate = fmaf(gate, 1.0f - s, s);
#pragma unroll
        for (int m = 0; m < kStreams; ++m) dgate[m] = dy[m] * slope_of_gate, dy[m] *= gate;
      }
#pragma unroll
      for (int m = 0; m < kStreams; ++m) {
        const int i = point * kStreams + m, t = own + i;
        input[i] = step_size[i] * x[m];
        if constexpr (kWhole) {
          if (mine) store_vector(shared.step_values(t), make_float4(step_size[i], u_t[m], slope[i], dgate[m]));
          if (mine && live) shared.row(Shared::kInput, t) = input[i], shared.row(Shared::kDy, t) = dy[m];
        } else {
          if (mine) *shared.step_values(t) = step_size[i];
          if (mine && live) shared.row(Shared::kDy, t) = dy[m];
        }
      }
    }
  }

  // The tokens x that a step of the streams makes, in the order of processing.
  __device__ void tokens(const float (&u)[kStreams], float (&x)[kStreams]) const {
    if constexpr (kStreams == 1) {
      x[0] = u[0];
    } else {
      const float product = u[0] * u[1], sum = u[0] + u[1];
      x[0] = p.reverse ? sum : product, x[1] = p.reverse ? product : sum;
    }
  }
};

}  // namespace cmimtl::cuda
