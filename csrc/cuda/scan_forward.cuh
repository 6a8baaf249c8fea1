// The forward scan: sequential in time, a thread holds kStates states of a channel, or of each of two neighbouring channels
// where they fill the chip and lie in pairs (see plan.h).
//
// Issue slots for each element (one state of one channel at one step), float32, dstate 16, all options, two channels in a
// thread, on sm_90:
//     recurrence      p = d a, e = 2^p, w = dx B, h = e h + w, y += C h                            5
//     B and C         2 LDS.128 for 4 states of 2 channels                                         0.25
//     softplus        2^-|x|, max, polynomial of 8 coefficients: 12 for a step of 16 states        0.75
//     gate            |z|, 2^z, 1 / (1 + e) shared by four steps, 3 more: 10                       0.6
//     streams         for a pair 3 copies, 3 loads and a store, 4 times 2 for 64-bit addresses     0.5
//     the rest        bias, D and gate: 4 for a step; waits, the loop                              0.3
// so 7.4; half types save three coefficients and pay for conversions. With one channel B and C cost 0.5 and the streams
// 0.75 and more: 7.9. The MUFU pipe takes 8 cycles for each of 16 + 2.25 instructions in 16 elements: 9.1 an element. The
// 16 bytes of a step come from memory in about the same time, the 24 of a step with its share of a checkpoint take longer, so
// nothing here is worth a second pass over the data.
//
// Memory is read ahead by asynchronous copies, double-buffered: the tiles of B and C (scan_common.cuh), and the streams,
// two stages of kStage steps (ahead.cuh). The last steps of a sequence, fewer than 16, have code of their own (Follow). Of
// two channels a stage of it takes 7.5 slots, and fewer where it has nothing left to load, as the last stage, the only one
// that may lack steps. Of one channel all of it is masked, 0.5 slots more: a last stage apart would not fit the registers.
#pragma once

#include "ahead.cuh"
#include "scan_common.cuh"

namespace cmimtl::cuda {

constexpr int kStage = 4;  // steps that are loaded together

// What follows a stage. Many steps: the stage that is loaded during it is a whole one. Few: that stage may lack steps, or
// there is none; with one channel in a thread this stage may lack steps too. Nothing: it loads nothing, and may lack steps.
enum class Follow { kMany, kFew, kNothing };

// kShare: lanes of a channel that share what is done once for a step, 1, 2 or 4; lanes past the fourth repeat it.
// kChannels: neighbouring channels of a thread, 2 only where kShare is 1.
// kStreams: 2 for the cross scan, whose steps are the products and the sums of two streams.
// kGate: there is a gate, or, where not kKnown, there may be one. Options that cost no slot where they are off are tested at
// run time. The gate costs some, so for dstate from 9 to 16, which is nearly every call, there is a kernel with it and one
// without; the others test it as well, which spares a fifth of the compilation.
// kSummary: the first pass of a scan that is split in time (see split.h), which takes neither C nor D nor a gate.
template <class T, int kStates, int kShare, int kChannels, int kStreams, bool kGate, bool kSummary = false>
struct Forward {
  static_assert(kChannels == 1 || (kChannels == 2 && kShare == 1), "lanes that share a channel hold one");
  static_assert(!kSummary || (kChannels == 1 && !kGate), "what fills the chip two channels to a thread is not split");
  static constexpr int kGroups = kChannels, kGroup = kStage / kGroups;   // steps at a time
  static constexpr int kOwn = kGroup / kShare;                           // steps of a group that are this lane's
  static constexpr int kPoints = kOwn < kStreams ? 1 : kOwn / kStreams;  // steps of a stream, and gates, of those
  static constexpr bool kKnown = kStates * kShare == 16;
  static constexpr int kRows = kShare == 4 ? 4 : 16 / kShare;
  static constexpr int kUnit = kRows < kChunk ? kRows : kChunk;  // steps between two looks for a checkpoint
  static constexpr int kApart = kChannels == 2 ? kStage : 0;     // most steps of a last stage apart
  static constexpr int kWidest = kShare == 4 ? int(kMostStates) : kShare * kStates;
  using Tiles = AsyncMapTiles<T, kRows, kWidest>;
  using Loads = Ahead<T, kChannels, kGroups*(kOwn + (kGate ? 2 : 1) * kStreams * kPoints)>;

  // The block's shared memory, in bytes: two buffers of the tiles of B and C, what they are made of, and the stages.
  static constexpr int kRaw = 2 * 2 * Tiles::kValues * int(sizeof(float)), kRing = kRaw + Tiles::kRawBytes;
  static constexpr size_t kShared = kRing + Loads::kBytes;

  const ScanForward& p;
  Place<kStates, kShare, kChannels> place;
  Walk<const T> u[kStreams], z[kStreams], delta;  // at this lane's first step of the next stage to load
  Walk<T> out[kStreams];                          // of the next group
  Loads ahead;
  bool softplus_delta;
  bool odd;  // this lane's first step is the second one of its pair, in the order of x
  int own;   // the first of this lane's steps of a group
  float a[kChannels][kStates], h[kChannels][kStates];
  float bias[kChannels], skip[kChannels];  // bias times log2 e
  float sum = 0.0f;                        // of the step sizes that are this lane's, for a summary

  __device__ Forward(const ScanForward& p, const Split& split)
      : p(p), place(p.size, segments_of(split)), softplus_delta(p.delta_softplus) {}
  __device__ bool gated() const { return kGate && (kKnown || p.z[0].data); }
  __device__ static Segments segments_of(const Split& split) { return kSummary ? split.summed : split.all(); }

  // The slots of the i-th own step of delta, and of the i-th of stream m of u and of z, of group g.
  __device__ static constexpr int delta_slot(int g, int i) { return g * kOwn + i; }
  __device__ static constexpr int u_slot(int m, int g, int i) {
    return kGroups * kOwn + (m * kGroups + g) * kPoints + i;
  }
  __device__ static constexpr int z_slot(int m, int g, int i) { return u_slot(kStreams + m, g, i); }

  // To the lane's next step of a stream that has kSteps in a group, kCount of them the lane's, from the i-th.
  template <int kSteps, int kCount, class Along>
  __device__ static void next(Along& walk, int i) {
    if (i + 1 < kCount || kSteps == kCount) {
      walk.next();
    } else {
      walk.advance(kSteps - kCount + 1);
    }
  }

  // Starts the loads of a stage, which ends the sequence after `left` of its steps; kMasked: where that may be fewer than
  // all.
  template <bool kMasked>
  __device__ void load(int left) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        ahead.fetch(delta_slot(g, i), delta.here(), !kMasked || g * kGroup + own + i < left);
        next<kGroup, kOwn>(delta, i);
      }
#pragma unroll
      for (int i = 0; i < kPoints; ++i) {
        const bool valid = !kMasked || g * kGroup + own + i * kStreams < left;
#pragma unroll
        for (int m = 0; m < kStreams; ++m) {
          ahead.fetch(u_slot(m, g, i), u[m].here(), valid);
          next<kGroup / kStreams, kPoints>(u[m], i);
          if constexpr (kGate) {
            if (!gated()) continue;
            ahead.fetch(z_slot(m, g, i), z[m].here(), valid);
            next<kGroup / kStreams, kPoints>(z[m], i);
          }
        }
      }
    }
    ahead.commit();
  }

  // Step sizes d, times log2 e, and inputs x of this lane's steps.
  template <bool kMasked>
  __device__ void prepare(int g, int left, float (&d)[kOwn][kChannels], float (&x)[kOwn][kChannels]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      ahead.get(delta_slot(g, i), d[i]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) d[i][c] = fmaf(d[i][c], kLog2E, bias[c]);
    }
    if (softplus_delta) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) d[i][c] = softplus2<T>(d[i][c], ex2(-fabsf(d[i][c])));
      }
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
        if (kMasked && own + i >= left) d[i][c] = 0.0f;
    }
    if constexpr (kStreams == 1) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) ahead.get(u_slot(0, g, i), x[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kPoints; ++i) {
        float v[kChannels], t[kChannels];
        ahead.get(u_slot(0, g, i), v), ahead.get(u_slot(1, g, i), t);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          x[i * kOwn / kPoints][c] = odd ? v[c] + t[c] : v[c] * t[c];
          if constexpr (kOwn > 1) x[2 * i + 1][c] = odd ? v[c] * t[c] : v[c] + t[c];
        }
      }
    }
  }

  __device__ void gates(int g, float (&gate)[kPoints * kChannels]) const {
    float w[kPoints * kChannels], e[kPoints * kChannels], r[kPoints * kChannels];
#pragma unroll
    for (int i = 0; i < kPoints; ++i) {
      float z[kStreams][kChannels];
#pragma unroll
      for (int m = 0; m < kStreams; ++m) ahead.get(z_slot(m, g, i), z[m]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int k = i * kChannels + c;
        w[k] = kStreams == 1 ? z[0][c] : z[0][c] * z[kStreams - 1][c];
        e[k] = exp_of_minus_magnitude(w[k]);
      }
    }
    reciprocals(e, r);
#pragma unroll
    for (int i = 0; i < kPoints * kChannels; ++i) gate[i] = silu(w[i], e[i], r[i]);
  }

  // The value of step j of a group, from the lane that has it.
  __device__ float of_step(const float (&x)[kOwn][kChannels], int j, int c) const {
    if constexpr (kShare == 1) {
      return x[j][c];
    } else {
      return __shfl_sync(kAllLanes, x[j % kOwn][c], j / kOwn * (kWarp / place.lanes) + place.column);
    }
  }
  __device__ float sum_over_lanes(float y) const {
    if constexpr (kShare > 1) {
      for (int o = kWarp / place.lanes; o < kWarp; o *= 2) y += __shfl_xor_sync(kAllLanes, y, o);
    }
    return y;
  }

  // Group g of a stage, whose rows of B and C are given, (kGroup, states). The last one starts loads, as all of the stage
  // has been read.
  template <Follow kFollow>
  __device__ void group(int g, int left, const float* B, const float* C) {
    constexpr bool kMasked = kFollow == Follow::kNothing || (kFollow == Follow::kFew && kApart == 0);
    float d[kOwn][kChannels], x[kOwn][kChannels], dx[kOwn][kChannels], y[kOwn][kChannels], gate[kPoints * kChannels];
    prepare<kMasked>(g, left, d, x);
    if constexpr (kGate) {
      if (gated()) gates(g, gate);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        dx[i][c] = kMasked && own + i >= left ? 0.0f : d[i][c] * x[i][c];
        y[i][c] = skip[c] * x[i][c];
      }
    }
    if (kFollow != Follow::kNothing && g == kGroups - 1) {
      if constexpr (kFollow == Follow::kFew) {
        const int follow = left + g * kGroup - Loads::kStages * kStage;
        if (kApart == 0 || follow > 0) load<true>(follow);
      } else {
        load<false>(kStage);
      }
      ahead.turn(kRing);
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      float d_j[kChannels], dx_j[kChannels], y_j[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        d_j[c] = of_step(d, j, c), dx_j[c] = of_step(dx, j, c);
        y_j[c] = kShare == 1 ? y[j % kOwn][c] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const int at = j * place.states + place.state(i);
        const float4 b4 = load_vector<float4>(B + at),
                     c4 = kSummary ? make_float4(0, 0, 0, 0) : load_vector<float4>(C + at);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          step(h[c][i], a[c][i], d_j[c], dx_j[c], b4.x, c4.x, y_j[c]);
          step(h[c][i + 1], a[c][i + 1], d_j[c], dx_j[c], b4.y, c4.y, y_j[c]);
          step(h[c][i + 2], a[c][i + 2], d_j[c], dx_j[c], b4.z, c4.z, y_j[c]);
          step(h[c][i + 3], a[c][i + 3], d_j[c], dx_j[c], b4.w, c4.w, y_j[c]);
        }
      }
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if constexpr (kShare == 1) {
          y[j % kOwn][c] = y_j[c];
        } else if constexpr (!kSummary) {
          y_j[c] = sum_over_lanes(y_j[c]);
          if (own / kOwn == j / kOwn) y[j % kOwn][c] += y_j[c];
        }
      }
    }
    if constexpr (kSummary) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) sum += d[i][0];
    } else {
      store_outputs<kMasked>(left, gate, y);
    }
  }

  template <bool kMasked>
  __device__ void store_outputs(int left, const float (&gate)[kPoints * kChannels], float (&y)[kOwn][kChannels]) {
    const bool mine = place.live_now() && (kShare < 4 || place.lane < kShare);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int k = i * kPoints / kOwn, m = kOwn == 1 ? 0 : i % kStreams;
      if (gated()) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) y[i][c] *= gate[k * kChannels + c];
      }
      if (mine && (!kMasked || own + i < left)) store_vector(out[m].here(), from_floats<T>(y[i]));
      next<kGroup / kStreams, kPoints>(out[m], k);
    }
  }

  template <Follow kFollow>
  __device__ void stage(int left, const float* B, const float* C) {
    if constexpr (kFollow == Follow::kMany) {
      ahead.wait();
    } else {
      ahead.wait_for_all();  // the stage before may have loaded nothing, so how many to wait for is not known
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int at = g * kGroup * place.states;
      group<kFollow>(g, left - g * kGroup, B + at, C + at);
    }
  }

  __device__ static void step(float& h, float a, float d, float dx, float b, float c, float& y) {
    h = fmaf(ex2(d * a), h, dx * b);
    y = fmaf(c, h, y);
  }

  // Of each of the thread's channels, side by side in memory.
  __device__ void load_states(const float* from, int dstate, float (&x)[kChannels][kStates]) const {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) place.load(from + c * dstate, dstate, x[c]);
  }
  __device__ static void store_states(const Place<kStates, kShare, kChannels>& place, float* to, int dstate,
                                      const float (&x)[kChannels][kStates]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) place.store(to + c * dstate, dstate, x[c]);
  }

  __device__ void run(const Split& split) {
    const int64_t valid = p.lengths ? p.lengths[place.sample] : p.size.length, steps = valid * kStreams;
    const int64_t first = place.segment * split.segment_steps;
    const int count = int((first + split.segment_steps < steps ? first + split.segment_steps : steps) - first);
    const int dstate = int(p.size.dstate);
    const int64_t channel = place.channel;
    const bool reverse = p.reverse;

    load_states(static_cast<const float*>(p.A) + channel * dstate, dstate, a);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
#pragma unroll
      for (int i = 0; i < kStates; ++i) h[c][i] = 0.0f;
      bias[c] = p.delta_bias ? static_cast<const float*>(p.delta_bias)[channel + c] * kLog2E : 0.0f;
      skip[c] = !kSummary && p.D ? static_cast<const float*>(p.D)[channel + c] : 0.0f;
    }
    if constexpr (!kSummary) {
      if (kChannels == 1 && first > 0) {
        load_states(place.row(split.states, p.size, split.segments, place.segment), dstate, h);
      } else if (p.initial_state) {
        load_states(place.row(static_cast<const float*>(p.initial_state), p.size, 1, 0), dstate, h);
      }
    }

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
        if (gated()) z[m] = Walk<const T>(p.z[m], place.sample, channel, point, reverse);
        out[m] = Walk<T>(p.out[m], place.sample, channel, point, reverse);
        u[m].advance(own / kStreams), out[m].advance(own / kStreams);
        if (gated()) z[m].advance(own / kStreams);
      }
      // In the order of the steps of x, the first of this lane's first. A lone lane's is odd with `reverse`, which the
      // compiler sees to be the same in all lanes; for two channels its code is the better without.
      if (kStreams == 2 && (kShare == 1 && kChannels == 1 ? reverse : odd)) {
        const Walk<T> first = out[0];
        out[0] = out[kStreams - 1], out[kStreams - 1] = first;
      }
      steps_of_segment(split, first, step, count);
    }

    const Place<kStates, kShare, kChannels> again(p.size, segments_of(split));  // of what was not kept meanwhile
    if constexpr (kSummary) {
      if (kShare > 1) sum = sum_over_lanes(place.lane < kShare ? sum : 0.0f);
      finish_summary(again, split);
    } else {
      finish(again, split);
    }
  }

  // At the segment after this one.
  __device__ void finish_summary(const Place<kStates, kShare, kChannels>& place, const Split& split) const {
    const int64_t slot = place.segment + 1;
    store_states(place, place.row(split.states, p.size, split.segments, slot), int(p.size.dstate), h);
    if (place.live && place.lane == 0)
      split.sums[(place.sample * split.segments + slot) * p.size.dim + place.channel] = sum;
  }

  // Results of the whole segment.
  __device__ void finish(const Place<kStates, kShare, kChannels>& place, const Split& split) const {
    const int dstate = int(p.size.dstate);
    if (kChannels == 2 || place.segment == split.last())
      store_states(place, place.row(static_cast<float*>(p.last_state), p.size, 1, 0), dstate, h);
    if (!place.live || place.lane > 0) return;
    // The rows of `out` that are past the sample's valid steps, a share for each segment.
    const int64_t valid = p.lengths ? p.lengths[place.sample] : p.size.length;
    const int64_t begin = place.segment * split.segment_steps / kStreams, end = begin + split.segment_steps / kStreams;
    for (int m = 0; m < kStreams; ++m) {
      for (int c = 0; c < kChannels; ++c)
        clear_steps<T>(p.out[m], place.sample, place.channel + c, max(begin, valid), min(end, p.size.length));
    }
  }

  __device__ void steps_of_segment(const Split& split, int64_t first, int64_t step, int count) {
    Tiles tiles(Maps<T>(p, place.sample, place.group, place.states, step), split.paired_maps, shared_memory() + kRaw);
    const int dstate = int(p.size.dstate), every = int(p.size.checkpoint_every);
    int due = p.checkpoints ? 0 : count;  // the step before which a checkpoint is due

    tiles.template load<!kSummary>(0, count);
    ahead.stage = kRing;
#pragma unroll
    for (int i = 0; i < Loads::kStages; ++i) {
      load<true>(count - i * kStage);
      ahead.turn(kRing);
    }
    const float* B = nullptr;
    int buffer = 0, k = 0;
    for (int row = 0; row < count; row += kRows, buffer ^= 1) {
      float* const tile = shared_memory<float>() + buffer * 2 * Tiles::kValues;
      tiles.template store<!kSummary, Loads::kCommits>(tile, tile + Tiles::kValues);
      __syncthreads();  // one is enough: the buffer that is written next was last read before it
      tiles.template load<!kSummary>(row + kRows, count);
      B = tile;
      do {
        if (!kSummary && k == due) {
          const int64_t row = place.sample * p.size.nchunks + (first + k) / every;
          float* const checkpoints = static_cast<float*>(p.checkpoints);
          store_states(place, checkpoints + (row * p.size.dim + place.channel_again()) * dstate, dstate, h);
          due += every;
        }
        if (k + kUnit + Loads::kStages * kStage <= count) {
#pragma unroll 1
          for (int i = 0; i < kUnit; i += kStage, B += kStage * place.states)
            stage<Follow::kMany>(kStage, B, B + Tiles::kValues);
          k += kUnit;
        } else {
          if (kApart > 0 && count - k <= kApart) break;
#pragma unroll 1
          do {
            stage<Follow::kFew>(count - k, B, B + Tiles::kValues);
            k += kStage, B += kStage * place.states;
          } while (k % kUnit != 0 && count - k > kApart);
        }
      } while (k % kRows != 0 && (kApart > 0 || k < count));
    }
    if constexpr (kApart > 0) stage<Follow::kNothing>(count - k, B, B + Tiles::kValues);
    copies_wait<0>();  // those of the stages past the last one: no thread ends before its copies
  }
};

template <class T, int kStates, int kShare, int kChannels, int kStreams, bool kGate>
__global__ void __launch_bounds__(kThreads, kShare == 4 ? 3 : 4)
    scan_forward_kernel(const ScanForward p, const Split split) {
  Forward<T, kStates, kShare, kChannels, kStreams, kGate>(p, split).run(split);
}

template <class T, int kStates, int kShare, int kStreams>
__global__ void __launch_bounds__(kThreads, kShare == 4 ? 3 : 4)
    scan_forward_summary_kernel(const ScanForward p, const Split split) {
  Forward<T, kStates, kShare, 1, kStreams, false, true>(p, split).run(split);
}

}  // namespace cmimtl::cuda
