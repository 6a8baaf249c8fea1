// The backward scan: chunks of kChunk steps from the last to the first, a thread holds kStates states of one channel.
// With q_t = g_t + C_t dy_t the gradient of the state after step t, and g_{t-1} = e_t q_t that of the state before it,
//
//     dB_t = sum_channels q_t d_t x_t        dC_t = sum_channels h_t dy_t
//     dA   = sum_t d_t g_{t-1} h_{t-1}       d(d_t) = sum_n A g_{t-1} h_{t-1} + x_t sum_n q_t B_t
//     dx_t = d_t sum_n q_t B_t + D dy_t
//
// A chunk goes through:
//     states      from the checkpoint on: decays e stay in registers, states h go to shared memory (kept)
//     dC          sums over the channels of a warp, of h dy
//     gradients   backwards in time; each q takes the place of the h that was read before it
//     loads       of the chunk before it are started
//     dB          sums over the channels of a warp, of q dx; dB and dC of the block to the workspace
//     sizes       of the chunk before it, once for a channel and step: see scan_backward_inputs.cuh
// Only the last chunk can have fewer steps. It comes first, so its inputs, with their masks, are loaded before the loop.
//
// Issue slots for each element (one state of one channel at one step), float32, dstate 16, all options, on sm_90:
//     states      p = d a, e = 2^p, w = dx B, h = e h + w; B, h to shared memory                   4.5
//     gradients   q, y, sum q B, g, g h, sum A g h, dA; B, C, h, q through shared memory           8.1
//     decays      an eighth of them again                                                          0.3
//     dB, dC      2 products; h and q from shared memory, dx and dy for four channels at once      2.8
//     sizes       4 loads, 8 for addresses, softplus 11, slopes 4, gate 7, 4 more: a 16th of 40    2.6
//     end         9, 3 stores, 6 for addresses, mask, y: a 16th of 23                              1.4
//     rest        tiles, checkpoint, sums over warps, the loop                                     1.2
// so 20.9; bfloat16 takes 0.4 more to convert, the cross scan 0.6 for its pairs. The MUFU pipe takes 11 cycles of it.
// No atomics on floats: sums over blocks, samples and segments go through the workspace and are added in a fixed order.
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
  using Inputs::steps_of, Inputs::owner, Inputs::sum_over_lanes;
  using Sums = BackwardSums<kStates, kShare, kStreams, kGate>;
  // Decays of the last steps that are computed again, since no more of them fit the registers: the fewest without spills.
  static constexpr int kAgain = kStates < 16 ? 0 : kStreams == 2 && kArch >= 1000 ? 48 : 16;

  float a[kStates], g[kStates], dA[kStates];
  float d[kOwn], dx[kOwn];  // of the next chunk

  __device__ Backward(const ScanBackward& q, const Split& split, const Partial& partial) : Inputs(q, split, partial) {
    place.load(static_cast<const float*>(p.A) + place.channel * p.size.dstate, int(p.size.dstate), a);
#pragma unroll
    for (int i = 0; i < kStates; ++i) g[i] = dA[i] = 0.0f;
  }

  // Starts to copy the state before a chunk to where that after its last step will be kept, or was.
  __device__ void fetch(const float* checkpoint) const {
    const int dstate = anew(int(p.size.dstate));  // else all comparisons with it are kept in registers
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

  // The steps' places in the results, from the last of this lane's on.
  struct Outputs {
    WalkBack<T> ddelta, du[kStreams], dz[kStreams];
  };
  __device__ Outputs outputs(int k) const {
    Outputs to;
    to.ddelta = this->template walk<T>(Shared::kDdelta, k, 1);
#pragma unroll
    for (int m = 0; m < kStreams; ++m) {
      to.du[m] = this->template walk<T>(Shared::kDu + m, k, kStreams);
      if constexpr (kGate) to.dz[m] = this->template walk<T>(Shared::kDz + m, k, kStreams);
    }
    return to;
  }
  static __device__ void store_if(bool in, WalkBack<T>& to, float x) {
    T* const at = to.next();
    if (in) *at = from_float<T>(x);
  }

  // What step t of a chunk adds to each gradient, from its sizes {d, x, slope, dz / y}, y = sum C h, qB = sum q B ln 2 and
  // dd = sum A g h; `in` where it is to be stored. Steps come backwards, so of a pair the second one first: it leaves its
  // share behind.
  struct Added {
    float u[kStreams], x[kStreams];
    float skip, pair_dx = 0.0f, pair_dgate = 0.0f, dD = 0.0f, dbias = 0.0f;
  };
  __device__ void finish(Outputs& to, bool in, int t, float4 sizes, float dy, float y, float qB, float dd,
                         Added& added) const {
    float x = sizes.y;
    if constexpr (kStreams == 2) {
      if (t % 2 == 1) {
        added.u[0] = shared.sizes(t - 1)[1], added.u[1] = x;
        this->tokens(added.u, added.x);
      }
      x = added.x[t % 2];
    }
    const float ddelta = fmaf(qB, x * kLog2E, dd) * sizes.z, dx = fmaf(sizes.x, qB, added.skip * dy);
    y = fmaf(added.skip, x, y);
    const float dgate = y * sizes.w;
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
    shared.sizes(t)[3] = y;  // for output()
  }

  // The forward's output of the chunk at k again, for callers that did not keep it.
  __device__ void output(int k) const {
    const int left = place.live_again() ? count - k : 0;
#pragma unroll 1
    for (int t = 0; t < kChunk; ++t) {
      if (t >= left || !owner(t)) continue;
      const int point = (k + t) / kStreams;
      float y = shared.sizes(t)[3];
      if (this->gated()) {
        float w = 1.0f;
        for (int m = 0; m < kStreams; ++m)
          w *= to_float(*this->template at<const T>(load_vector<Start>(shared.start(Shared::kZ + m)), point));
        y *= w * sigmoid(w);
      }
      *this->template at<T>(load_vector<Start>(shared.start(Shared::kOut + t % kStreams)), point) = from_float<T>(y);
    }
  }

  // The chunk at k, whose inputs are in shared memory and whose checkpoint is on its way there.
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
      const float d_t = kShare == 1 ? d[t % kOwn] : *shared.sizes(t);
      const float dx_t = kShare == 1 ? dx[t % kOwn] : shared.row(Shared::kSizeX, t);
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const float4 b = load_vector<float4>(B + t * place.states + place.state(i));
#pragma unroll
        for (int j = i; j < i + 4; ++j) e[t][j] = ex2(d_t * a[j]);
        h[i] = fmaf(e[t][i], h[i], dx_t * b.x), h[i + 1] = fmaf(e[t][i + 1], h[i + 1], dx_t * b.y);
        h[i + 2] = fmaf(e[t][i + 2], h[i + 2], dx_t * b.z), h[i + 3] = fmaf(e[t][i + 3], h[i + 3], dx_t * b.w);
        store_vector(shared.keep(t, i / 4), make_float4(h[i], h[i + 1], h[i + 2], h[i + 3]));
      }
    }
    __syncwarp();
    Sums::template over_channels<false>(place.lanes);
    __syncwarp();

    Outputs to = outputs(k);
    const int left = place.live_again() ? count - k : 0;
    Added added;
    added.skip = shared.own_value(Shared::kSkip);
#pragma unroll
    for (int t = kChunk - 1; t >= 0; --t) {
      if (t == kChunk / 2) fetch(checkpoint);
      if (t == 0) copies_wait<0>();
      // Other lanes than the owner need d alone, and the owner replaces what is behind it.
      const float4 sizes = owner(t) ? load_vector<float4>(shared.sizes(t)) : make_float4(*shared.sizes(t), 0, 0, 0);
      const float dy = shared.row(Shared::kDy, t);
      float y = 0.0f, qB = 0.0f, dd = 0.0f;
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const int at = t * place.states + place.state(i);
        const float4 b = load_vector<float4>(B + at), c = load_vector<float4>(C + at);
        float* const before = shared.keep((t + kChunk - 1) % kChunk, i / 4);
        const float4 h_before = load_vector<float4>(before);
        if ((kChunk - 1 - t) * kStates + i < kAgain) {
#pragma unroll
          for (int j = i; j < i + 4; ++j) e[t][j] = ex2(sizes.x * a[j]);
        }
        float4 dh;
        dh.x = gradient(i, sizes.x, dy, e[t][i], b.x, c.x, h_before.x, h[i], y, qB, dd);
        dh.y = gradient(i + 1, sizes.x, dy, e[t][i + 1], b.y, c.y, h_before.y, h[i + 1], y, qB, dd);
        dh.z = gradient(i + 2, sizes.x, dy, e[t][i + 2], b.z, c.z, h_before.z, h[i + 2], y, qB, dd);
        dh.w = gradient(i + 3, sizes.x, dy, e[t][i + 3], b.w, c.w, h_before.w, h[i + 3], y, qB, dd);
        store_vector(before, dh);
      }
      y = sum_over_lanes(y), qB = sum_over_lanes(qB), dd = sum_over_lanes(dd);
      if (owner(t)) finish(to, t / kStreams * kStreams < left, t, sizes, dy, y, qB, dd, added);
    }
    shared.own_value(Shared::kSumD) += added.dD;
    shared.own_value(Shared::kSumBias) += added.dbias;
  }

  // One state at one step; h becomes that before the step. -> q
  __device__ float gradient(int i, float d, float dy, float e, float b, float c, float h_before, float& h, float& y,
                            float& qB, float& dd) {
    const float dh = fmaf(c, dy, g[i]);
    y = fmaf(c, h, y);
    qB = fmaf(dh, b, qB);
    g[i] = e * dh;
    const float gh = g[i] * h_before;
    dd = fmaf(a[i], gh, dd);
    dA[i] = fmaf(d, gh, dA[i]);
    h = h_before;
    return dh;
  }

  // Chunks from the last to the first.
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
    this->template prepare<true>(loaded, count - k, d, dx);
    copies_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (;; k -= kChunk) {
      chunk(k, checkpoint);
      __syncwarp();
      if (p.out[0].data) output(k);
      typename Inputs::Loaded next;
      const auto next_tiles = this->load_tiles(max(k - kChunk, 0));
      this->template load<false>(k - kChunk, kChunk, next);
      Sums::template over_channels<true>(place.lanes);
      __syncthreads();
      Sums::over_warps(place.lanes, [&](int t, int n, float dB, float dC) {
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
      this->template prepare<false>(next, kChunk, d, dx);
      copies_wait<0>();
      __syncthreads();
    }
  }

  __device__ void run(const Split& split, const Partial& partial) {
    const int dstate = int(p.size.dstate);
    if (place.segment < split.last()) {
      place.load(place.row(split.states, p.size, split.segments, place.segment), dstate, g);
    } else if (q.dlast_state) {
      place.load(place.row(static_cast<const float*>(q.dlast_state), p.size, 1, 0), dstate, g);
    }
    if (count > 0) chunks(split);
    const float dD = sum_over_lanes(shared.own_value(Shared::kSumD)),
                dbias = sum_over_lanes(shared.own_value(Shared::kSumBias));
    const Place<kStates, kShare> again(p.size, split.all());  // `place` would keep registers that the chunks need
    finish_segment(again, split, partial, dD, dbias);
    if (partial.samples_done)
      SumsOfBlocks<T, Place<kStates, kShare>, Shared::kAnyStates>{q, partial, again}.add_if_last();
  }

  // Results of the whole segment.
  __device__ void finish_segment(const Place<kStates, kShare>& place, const Split& split, const Partial& partial,
                                 float dD, float dbias) {
    const int dstate = int(p.size.dstate);
    const int64_t channel = (place.sample * split.segments + place.segment) * p.size.dim + place.channel;
    if (q.dinitial_state && place.segment == 0)
      place.store(place.row(static_cast<float*>(q.dinitial_state), p.size, 1, 0), dstate, g);
#pragma unroll
    for (int i = 0; i < kStates; ++i) dA[i] *= kLn2;
    place.store(partial.dA + channel * dstate, dstate, dA);
    if (!place.live || place.lane > 0) return;
    partial.dD[channel] = dD;
    partial.dbias[channel] = dbias;
    const int64_t steps = steps_of(place.sample), valid = steps / kStreams, first = place.segment * split.segment_steps;
    const int64_t begin = first / kStreams, end = min(begin + split.segment_steps / kStreams, p.size.length);
    for (int m = 0; m < kStreams; ++m)
      for (const Out* x : {&q.du[m], &q.dz[m], &p.out[m]})
        clear_steps<T>(*x, place.sample, place.channel, max(begin, valid), end);
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
