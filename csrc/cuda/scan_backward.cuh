// The backward scan. It goes through chunks of kChunk steps, from the last chunk to the first. A
// thread holds kStates states of one channel. With dstate_t the gradient of the state h_t, and the
// decays e_t = exp(d_t A):
//
//     carry_{t-1} = e_t dstate_t                what step t hands to the step before it
//     dstate_t    = carry_t + C_t dy_t
//     dB_t        = sum_channels dstate_t d_t x_t
//     dC_t        = sum_channels h_t dy_t
//     dA          = sum_t d_t carry_{t-1} h_{t-1}
//     dx_t        = d_t sum_n dstate_t B_t + D dy_t
//     d(d_t)      = sum_n A carry_{t-1} h_{t-1} + x_t sum_n dstate_t B_t
//
// A chunk goes through these parts:
//
//     states      computes states from the checkpoint on: decays e stay in registers, states h go
//                 to shared memory (`kept`)
//     dC          sums h dy over the channels of a warp
//     gradients   goes back in time; each dstate takes the place of the h that was read before it
//     loads       starts to load the chunk that is next, the one before it in time
//     dB          sums dstate d x over the channels of a warp; the block's dB and dC go to the
//                 workspace
//     inputs      prepares the next chunk, once for a channel and step: scan_backward_inputs.cuh
//
// Only the last chunk can have fewer steps. It comes first, so its inputs, with their masks, are
// loaded before the loop.
//
// The issue slots of each element (one state of one channel at one step), for float32, dstate 16
// and all options, on sm_90:
//
//     states      p = d a, e = 2^p, w = d x B, h = e h + w; B, h to shared memory             4.5
//     gradients   dstate, y, sum dstate B, carry, carry h, sum A carry h, dA;
//                 B, C, h, dstate through shared memory                                       8.1
//     decays      an eighth of them again                                                     0.3
//     dB, dC      2 products; h and dstate from shared memory, d x and dy of four channels
//                 at once                                                                     2.8
//     inputs      4 loads, 8 for addresses, softplus 11, slopes 4, gate 7, 4 more:
//                 a 16th of 40                                                                2.6
//     end         9, 3 stores, 6 for addresses, mask: a 16th of 22                            1.4
//     rest        tiles, checkpoint, sums over warps, the loop                                0.9
//
// The sum is 20.6. The cross scan in bfloat16 takes 1.2 more, to convert and for its pairs. The
// MUFU pipe takes 11 cycles of it.
//
// There are no atomics on floats: sums over blocks, samples and segments go through the workspace
// and are added in a fixed order.
#pragma once

#include "scan_backward_inputs.cuh"
#include "scan_backward_parts.cuh"
#include "scan_backward_sums.cuh"

namespace cmimtl::cuda {

template <class T, int kStates, int kShare, int kStreams, bool kGate>
struct Backward : BackwardInputs<T, kStates, kShare, kStreams, kGate> {
  using Inputs = BackwardInputs<T, kStates, kShare, kStreams, kGate>;
  using Shared = typename Inputs::Shared;
  using Inputs::kOwn, Inputs::q, Inputs::p, Inputs::place, Inputs::shared, Inputs::count;
  using Inputs::steps_of, Inputs::owner, Inputs::sum_over_channel_lanes;
  using Sums = BackwardSums<kStates, kShare, kStreams, kGate>;
  // The number of decays of the last steps that are computed a second time, because they do not fit
  // the registers. It is the smallest number without spills.
  static constexpr int kAgain = kStates < 16 ? 0 : kStreams == 2 && kArch >= 1000 ? 48 : 16;

  float a[kStates], carry[kStates], dA[kStates];
  float step_size[kOwn], input[kOwn];  // d and d x of the chunk that is next

  __device__ Backward(const ScanBackward& q, const Split& split, const Partial& partial) : Inputs(q, split, partial) {
    place.load(static_cast<const float*>(p.A) + place.channel * p.size.dstate, int(p.size.dstate), a);
#pragma unroll
    for (int i = 0; i < kStates; ++i) carry[i] = dA[i] = 0.0f;
  }

  // Starts to copy the state before a chunk to shared memory, to the place of the state after its
  // last step.
  __device__ void fetch(const float* checkpoint) const {
    const int dstate = anew(int(p.size.dstate));  // else registers keep all comparisons with it
    if (dstate % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const int n = place.state(i);
        copy_async<16>(shared.keep(kChunk - 1, i / 4), checkpoint + n, (kShare == 1 && i == 0) || n < dstate);
      }
    } else if (!Shared::kAnyStates) {
      give_up();
    } else {
#pragma unroll 1
      for (int i = 0; i < kStates; ++i) {
        const int n = place.state(i);
        copy_async<4>(shared.keep(kChunk - 1, i / 4) + i % 4, checkpoint + n, n < dstate);
      }
    }
    copies_commit();
  }

  // Pointers into the results, at the last of this lane's steps.
  struct Outputs {
    BackwardPointer<T> ddelta, du[kStreams], dz[kStreams];
  };
  __device__ Outputs outputs(int k) const {
    Outputs to;
    to.ddelta = this->template pointer<T>(Shared::kDdelta, k, 1);
#pragma unroll
    for (int m = 0; m < kStreams; ++m) {
      to.du[m] = this->template pointer<T>(Shared::kDu + m, k, kStreams);
      if constexpr (kGate) to.dz[m] = this->template pointer<T>(Shared::kDz + m, k, kStreams);
    }
    return to;
  }
  static __device__ void store_if(bool in, BackwardPointer<T>& to, float x) {
    T* const at = to.next();
    if (in) *at = from_float<T>(x);
  }

  // What the steps of a chunk leave for each other, and for the sums over all steps.
  struct Added {
    float u[kStreams], x[kStreams];
    float skip, pair_dx = 0.0f, pair_dgate = 0.0f, dD = 0.0f, dbias = 0.0f;
  };
  // Makes the gradients of step t of a chunk, and stores them where `in` says that the step is the
  // sample's. They are made of the step's values {d, x, slope of softplus, dz / y}, of y = sum C h,
  // dstate_B = sum dstate B ln 2, and dstep_size = sum A carry h. Steps come backwards, so the
  // second step of a pair comes first, and leaves its share in `added`.
  __device__ void finish(Outputs& to, bool in, int t, float4 values, float dy, float y, float dstate_B,
                         float dstep_size, Added& added) const {
    float x = values.y;
    if constexpr (kStreams == 2) {
      if (t % 2 == 1) {
        added.u[0] = shared.step_values(t - 1)[1], added.u[1] = x;
        this->tokens(added.u, added.x);
      }
      x = added.x[t % 2];
    }
    const float ddelta = fmaf(dstate_B, x * kLog2E, dstep_size) * values.z,
                dx = fmaf(values.x, dstate_B, added.skip * dy);
    const float dgate = fmaf(added.skip, x, y) * values.w;
    added.dD = fmaf(dy, x, added.dD);
    added.dbias += ddelta;
    store_if(in, to.ddelta, ddelta);
    if constexpr (kStreams == 1) {
      store_if(in, to.du[0], dx);
      if constexpr (kGate) store_if(in && this->gated(), to.dz[0], dgate);
    } else if (t % 2 == 1) {
      added.pair_dx = dx, added.pair_dgate = dgate;
    } else {
      const float dp = p.reverse ? added.pair_dx : dx, ds = p.reverse ? dx : added.pair_dx;
      store_if(in, to.du[0], fmaf(added.u[1], dp, ds));
      store_if(in, to.du[1], fmaf(added.u[0], dp, ds));
      if (this->gated()) {
        const float dw = dgate + added.pair_dgate;
        const float2 z = load_vector<float2>(shared.pair(t));
        store_if(in, to.dz[0], dw * z.y);
        store_if(in, to.dz[1], dw * z.x);
      }
    }
  }

  // Computes the chunk that begins at step k. Its inputs are in shared memory, and its checkpoint
  // is being copied there.
  __device__ void chunk(int k, const float* checkpoint) {
    float h[kStates], e[kChunk][kStates];
#pragma unroll
    for (int i = 0; i < kStates; i += 4) {
      const float4 v = load_vector<float4>(shared.keep(kChunk - 1, i / 4));
      h[i] = v.x, h[i + 1] = v.y, h[i + 2] = v.z, h[i + 3] = v.w;
    }
    const float* const B = shared.B_tile();
    const float* const C = shared.C_tile();
#pragma unroll
    for (int t = 0; t < kChunk; ++t) {
      const float step_size_t = kShare == 1 ? step_size[t % kOwn] : *shared.step_values(t);
      const float input_t = kShare == 1 ? input[t % kOwn] : shared.row(Shared::kInput, t);
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const float4 b = load_vector<float4>(B + t * place.states + place.state(i));
#pragma unroll
        for (int j = i; j < i + 4; ++j) e[t][j] = ex2(step_size_t * a[j]);
        h[i] = fmaf(e[t][i], h[i], input_t * b.x), h[i + 1] = fmaf(e[t][i + 1], h[i + 1], input_t * b.y);
        h[i + 2] = fmaf(e[t][i + 2], h[i + 2], input_t * b.z), h[i + 3] = fmaf(e[t][i + 3], h[i + 3], input_t * b.w);
        store_vector(shared.keep(t, i / 4), make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]));
      }
    }
    __syncwarp();
    Sums::template over_channels<false>(place.channel_lanes);
    __syncwarp();

    Outputs to = outputs(k);
    const int left = place.live_again() ? count - k : 0;
    Added added;
    added.skip = shared.own_value(Shared::kSkip);
#pragma unroll
    for (int t = kChunk - 1; t >= 0; --t) {
      if (t == kChunk / 2) fetch(checkpoint);
      if (t == 0) copies_wait<0>();
      // Lanes other than the owner need only d, and the owner replaces the value that stands last.
      const float4 values =
          owner(t) ? load_vector<float4>(shared.step_values(t)) : make_float4(*shared.step_values(t), 0, 0, 0);
      const float dy = shared.row(Shared::kDy, t);
      float y = 0.0f, dstate_B = 0.0f, dstep_size = 0.0f;
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const int at = t * place.states + place.state(i);
        const float4 b = load_vector<float4>(B + at), c = load_vector<float4>(C + at);
        float* const before = shared.keep((t + kChunk - 1) % kChunk, i / 4);
        const float4 h_before = load_vector<float4>(before);
        if ((kChunk - 1 - t) * kStates + i < kAgain) {
#pragma unroll
          for (int j = i; j < i + 4; ++j) e[t][j] = ex2(values.x * a[j]);
        }
        float4 dstates;
        dstates.x = gradient(i, values.x, dy, e[t][i], b.x, c.x, h_before.x, h[i], y, dstate_B, dstep_size);
        dstates.y = gradient(i + 1, values.x, dy, e[t][i + 1], b.y, c.y, h_before.y, h[i + 1], y, dstate_B, dstep_size);
        dstates.z = gradient(i + 2, values.x, dy, e[t][i + 2], b.z, c.z, h_before.z, h[i + 2], y, dstate_B, dstep_size);
        dstates.w = gradient(i + 3, values.x, dy, e[t][i + 3], b.w, c.w, h_before.w, h[i + 3], y, dstate_B, dstep_size);
        store_vector(before, dstates);
      }
      y = sum_over_channel_lanes(y), dstate_B = sum_over_channel_lanes(dstate_B),
      dstep_size = sum_over_channel_lanes(dstep_size);
      if (owner(t)) finish(to, t / kStreams * kStreams < left, t, values, dy, y, dstate_B, dstep_size, added);
    }
    shared.own_value(Shared::kSumD) += added.dD;
    shared.own_value(Shared::kSumBias) += added.dbias;
  }

  // Computes the gradient of one state at one step, which it returns. h becomes the state before
  // the step.
  __device__ float gradient(int i, float step_size, float dy, float e, float b, float c, float h_before, float& h,
                            float& y, float& dstate_B, float& dstep_size) {
    const float dstate_t = fmaf(c, dy, carry[i]);
    y = fmaf(c, h, y);
    dstate_B = fmaf(dstate_t, b, dstate_B);
    carry[i] = e * dstate_t;
    const float through_decay = carry[i] * h_before;
    dstep_size = fmaf(a[i], through_decay, dstep_size);
    dA[i] = fmaf(step_size, through_decay, dA[i]);
    h = h_before;
    return dstate_t;
  }

  // Goes through the chunks, from the last to the first.
  __device__ void chunks(const Split& split) {
    const int64_t first = place.segment * split.segment_steps;
    const int dstate = int(p.size.dstate);
    int k = this->last_chunk();
    const float* checkpoint =
        place.row(static_cast<const float*>(p.checkpoints), p.size, p.size.nchunks, (first + k) / kChunk);
    const auto tiles = this->load_tiles(k);
    typename Inputs::Loaded loaded;
    this->template load<true>(k, count - k, loaded);
    fetch(checkpoint);
    tiles.template store<true>(shared.B_tile(), shared.C_tile());
    this->template prepare<true>(loaded, count - k, step_size, input);
    copies_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (;; k -= kChunk) {
      chunk(k, checkpoint);
      __syncwarp();
      typename Inputs::Loaded next;
      const auto next_tiles = this->load_tiles(max(k - kChunk, 0));
      this->template load<false>(k - kChunk, kChunk, next);
      Sums::template over_channels<true>(place.channel_lanes);
      __syncthreads();
      Sums::over_warps(place.channel_lanes, [&](int t, int n, float dB, float dC) {
        if (n >= dstate || k + t >= count) return;
        const Start B = load_vector<Start>(shared.start(Shared::kPartB)),
                    C = load_vector<Start>(shared.start(Shared::kPartC));
        *step_on(static_cast<float*>(B.p) + n, k + t, B.step) = dB;
        *step_on(static_cast<float*>(C.p) + n, k + t, C.step) = dC;
      });
      if (k == 0) break;
      checkpoint = step_on(checkpoint, -dstate, int(p.size.dim));
      fetch(checkpoint);
      next_tiles.template store<true>(shared.B_tile(), shared.C_tile());
      this->template prepare<false>(next, kChunk, step_size, input);
      copies_wait<0>();
      __syncthreads();
    }
  }

  __device__ void run(const Split& split, const Partial& partial) {
    const int dstate = int(p.size.dstate);
    if (place.segment < split.last()) {
      place.load(place.row(split.states, p.size, split.segments, place.segment), dstate, carry);
    } else if (q.dlast_state) {
      place.load(place.row(static_cast<const float*>(q.dlast_state), p.size, 1, 0), dstate, carry);
    }
    if (count > 0) chunks(split);
    const float dD = sum_over_channel_lanes(shared.own_value(Shared::kSumD)),
                dbias = sum_over_channel_lanes(shared.own_value(Shared::kSumBias));
    // `place` would keep registers that the chunks need, so it is computed again.
    const Place<kStates, kShare> again(p.size, split.all());
    finish_segment(again, split, partial, dD, dbias);
    if (partial.samples_done)
      SumsOfBlocks<T, Place<kStates, kShare>, Shared::kAnyStates>{.q = q, .partial = partial, .place = again}
          .add_if_last();
  }

  // Stores the results of the whole segment.
  __device__ void finish_segment(const Place<kStates, kShare>& place, const Split& split, const Partial& partial,
                                 float dD, float dbias) {
    const int dstate = int(p.size.dstate);
    const int64_t channel = (place.sample * split.segments + place.segment) * p.size.dim + place.channel;
    if (q.dinitial_state && place.segment == 0)
      place.store(place.row(static_cast<float*>(q.dinitial_state), p.size, 1, 0), dstate, carry);
#pragma unroll
    for (int i = 0; i < kStates; ++i) dA[i] *= kLn2;
    place.store(partial.dA + channel * dstate, dstate, dA);
    if (!place.live || place.channel_lane > 0) return;
    partial.dD[channel] = dD;
    partial.dbias[channel] = dbias;
    const int64_t steps = steps_of(place.sample), valid = steps / kStreams, first = place.segment * split.segment_steps;
    const int64_t begin = first / kStreams, end = min(begin + split.segment_steps / kStreams, p.size.length);
    for (int m = 0; m < kStreams; ++m)
      for (const Out* x : {&q.du[m], &q.dz[m]}) clear_steps<T>(*x, place.sample, place.channel, max(begin, valid), end);
    clear_steps<T>(q.ddelta, place.sample, place.channel, max(first, steps),
                   min(first + split.segment_steps, p.size.steps));
  }
};

template <class T, int kStates, int kShare, int kStreams, bool kGate>
__global__ void __launch_bounds__(kThreads, 2)
    scan_backward_kernel(const ScanBackward q, const Split split, const Partial partial) {
  Backward<T, kStates, kShare, kStreams, kGate>(q, split, partial).run(split, partial);
}

}  // namespace cmimtl::cuda
