// The forward scan. A thread goes through time step by step, and holds kStates states of one
// channel, or of each of two neighbouring channels where those fill the GPU and lie in pairs (see
// plan.h).
//
// The issue slots of each element (one state of one channel at one step), for float32, dstate 16,
// all options and two channels in a thread, on sm_90:
//
//     recurrence      p = d a, e = 2^p, w = d x B, h = e h + w, y += C h                      5
//     B and C         2 LDS.128 for 4 states of 2 channels                                    0.25
//     softplus        2^-|x|, max, polynomial of 8 coefficients: 12 for a step of 16 states   0.75
//     gate            |z|, 2^z, 1 / (1 + e) shared by four steps, 3 more: 10                  0.6
//     streams         for a pair 3 copies, 3 loads and a store, 4 times 2 for 64-bit
//                     addresses                                                               0.5
//     the rest        bias, D and gate: 4 for a step; waits, the loop                         0.3
//
// The sum is 7.4. Half types save three coefficients and pay for conversions. With one channel in a
// thread, B and C cost 0.5 and the streams 0.75 or more: 7.9 in all. The MUFU pipe takes 8 cycles
// for each of 16 + 2.25 instructions in 16 elements, which is 9.1 an element. The 16 bytes of a
// step come from memory in about the same time, and the 24 bytes of a step with its share of a
// checkpoint take longer, so a second pass over the data would never pay.
//
// Asynchronous copies read memory before it is used, into two buffers: the tiles of B and C
// (scan_common.cuh), and two stages of kStage steps of the streams (loads_in_flight.cuh). The last
// steps of a sequence, fewer than 16, have code of their own (Follow). With two channels in a
// thread, a stage of that code takes 7.5 slots an element, and the last stage, the only one that
// may lack steps, takes fewer, as it has nothing left to load. With one channel, every such stage
// is masked, which costs 0.5 slots more, because the registers would not hold a separate last
// stage.
#pragma once

#include "loads_in_flight.cuh"
#include "scan_common.cuh"

namespace cmimtl::cuda {

// What follows a stage, and so what the stage starts to load.
//
//     kMany       at least one more whole stage: this stage loads a whole one
//     kFew        few steps: the stage that this one loads may lack steps, or there is none; with
//                 one channel in a thread this stage may lack steps too
//     kNothing    nothing: this stage loads nothing, and may lack steps
enum class Follow { kMany, kFew, kNothing };

// The forward scan of one thread. Its template arguments are:
//
//     kShare      how many lanes of a channel share what is done once for a step: 1, 2 or 4; lanes
//                 past the fourth repeat it
//     kChannels   neighbouring channels of a thread: 1, or 2 where kShare is 1
//     kStreams    2 for the cross scan, whose steps are the products and the sums of two streams
//     kGate       whether the call has a gate, or, where kKnown is false, may have one
//     kSummary    whether this is the first pass of a scan that is split over time (see split.h),
//                 which takes neither C nor D nor a gate
//
// Options that cost no slot where they are off are tested at run time. The gate costs some, so for
// dstate from 9 to 16, which is nearly every call, there is a kernel with a gate and one without.
// The other kernels test for it, which spares a fifth of the compilation.
template <class T, int kStates, int kShare, int kChannels, int kStreams, bool kGate, bool kSummary = false>
struct Forward {
  static_assert(kChannels == 1 || (kChannels == 2 && kShare == 1), "lanes that share a channel hold one");
  static_assert(!kSummary || (kChannels == 1 && !kGate),
                "a scan with two channels in a thread fills the GPU, so it is not split over time");
  // A stage is kGroups groups of kGroup steps. This lane prepares kOwn steps of a group, which are
  // made of kPoints steps of a stream and have as many gates.
  static constexpr int kGroups = kChannels, kGroup = kStage / kGroups;
  static constexpr int kOwn = kGroup / kShare;
  static constexpr int kPoints = kOwn < kStreams ? 1 : kOwn / kStreams;
  static constexpr bool kKnown = kStates * kShare == 16;
  static constexpr int kRows = kShare == 4 ? 4 : 16 / kShare;
  // The loop looks for a checkpoint every kUnit steps. A separate last stage has at most kApart.
  static constexpr int kUnit = kRows < kChunk ? kRows : kChunk;
  static constexpr int kApart = kChannels == 2 ? kStage : 0;
  static constexpr int kWidest = kShare == 4 ? int(kMostStates) : kShare * kStates;
  using Tiles = AsyncMapTiles<T, kRows, kWidest>;
  using Loads = LoadsInFlight<T, kChannels, kGroups*(kOwn + (kGate ? 2 : 1) * kStreams * kPoints)>;

  // The block's shared memory, in bytes: two buffers of the tiles of B and C, the same in the
  // storage type (kRaw), and the stages (kRing).
  static constexpr int kRaw = 2 * 2 * Tiles::kValues * int(sizeof(float)), kRing = kRaw + Tiles::kRawBytes;
  static constexpr size_t kShared = kRing + Loads::kBytes;

  const ScanForward& p;
  Place<kStates, kShare, kChannels> place;
  // They are at this lane's first step: of the next stage to load, and of the next group.
  StridedPointer<const T> u[kStreams], z[kStreams], delta;
  StridedPointer<T> out[kStreams];
  Loads loads;
  bool softplus_delta;
  bool odd;  // whether this lane's first step is the second one of its pair, in the order of x
  int own;   // the number of this lane's first step, of those of a group
  float a[kChannels][kStates], h[kChannels][kStates];
  float bias[kChannels], skip[kChannels];  // delta_bias times log2 e, and D
  float step_size_sum = 0.0f;              // the sum of this lane's step sizes, for a summary

  __device__ Forward(const ScanForward& p, const Split& split)
      : p(p), place(p.size, segments_of(split)), softplus_delta(p.delta_softplus) {}
  __device__ bool gated() const { return kGate && (kKnown || p.z[0].data); }
  __device__ static Segments segments_of(const Split& split) { return kSummary ? split.summed : split.all(); }

  // The slots of group g: of this lane's i-th step of delta, and of its i-th step of stream m of u
  // and of z.
  __device__ static constexpr int delta_slot(int g, int i) { return g * kOwn + i; }
  __device__ static constexpr int u_slot(int m, int g, int i) {
    return kGroups * kOwn + (m * kGroups + g) * kPoints + i;
  }
  __device__ static constexpr int z_slot(int m, int g, int i) { return u_slot(kStreams + m, g, i); }

  // Moves a pointer from the lane's i-th step of a group to its next one. A group has kSteps steps
  // of the stream, and kCount of them are this lane's.
  template <int kSteps, int kCount, class Along>
  __device__ static void next(Along& pointer, int i) {
    if (i + 1 < kCount || kSteps == kCount) {
      pointer.next();
    } else {
      pointer.advance(kSteps - kCount + 1);
    }
  }

  // Starts the loads of a stage. With kMasked the sequence may end within it, after `left` of its
  // steps.
  template <bool kMasked>
  __device__ void load(int left) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        loads.fetch(delta_slot(g, i), delta.here(), !kMasked || g * kGroup + own + i < left);
        next<kGroup, kOwn>(delta, i);
      }
#pragma unroll
      for (int i = 0; i < kPoints; ++i) {
        const bool valid = !kMasked || g * kGroup + own + i * kStreams < left;
#pragma unroll
        for (int m = 0; m < kStreams; ++m) {
          loads.fetch(u_slot(m, g, i), u[m].here(), valid);
          next<kGroup / kStreams, kPoints>(u[m], i);
          if constexpr (kGate) {
            if (!gated()) continue;
            loads.fetch(z_slot(m, g, i), z[m].here(), valid);
            next<kGroup / kStreams, kPoints>(z[m], i);
          }
        }
      }
    }
    loads.commit();
  }

  // Computes the step sizes, times log2 e, and the tokens x of this lane's steps of group g.
  template <bool kMasked>
  __device__ void prepare(int g, int left, float (&step_size)[kOwn][kChannels], float (&x)[kOwn][kChannels]) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      loads.get(delta_slot(g, i), step_size[i]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) step_size[i][c] = fmaf(step_size[i][c], kLog2E, bias[c]);
    }
    if (softplus_delta) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
          step_size[i][c] = softplus2<T>(step_size[i][c], ex2(-fabsf(step_size[i][c])));
      }
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
        if (kMasked && own + i >= left) step_size[i][c] = 0.0f;
    }
    if constexpr (kStreams == 1) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) loads.get(u_slot(0, g, i), x[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kPoints; ++i) {
        float v[kChannels], t[kChannels];
        loads.get(u_slot(0, g, i), v), loads.get(u_slot(1, g, i), t);
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
      for (int m = 0; m < kStreams; ++m) loads.get(z_slot(m, g, i), z[m]);
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

  // The value of step j of a group, which comes from the lane that has it.
  __device__ float of_step(const float (&x)[kOwn][kChannels], int j, int c) const {
    if constexpr (kShare == 1) {
      return x[j][c];
    } else {
      return __shfl_sync(kAllLanes, x[j % kOwn][c], j / kOwn * (kWarp / place.channel_lanes) + place.column);
    }
  }
  __device__ float sum_over_channel_lanes(float y) const {
    if constexpr (kShare > 1) {
      for (int o = kWarp / place.channel_lanes; o < kWarp; o *= 2) y += __shfl_xor_sync(kAllLanes, y, o);
    }
    return y;
  }

  // Computes group g of a stage, with its rows of B and C, (kGroup, states). The last group starts
  // the loads of another stage, since all of this one has been read.
  template <Follow kFollow>
  __device__ void group(int g, int left, const float* B, const float* C) {
    constexpr bool kMasked = kFollow == Follow::kNothing || (kFollow == Follow::kFew && kApart == 0);
    float step_size[kOwn][kChannels], x[kOwn][kChannels], input[kOwn][kChannels], y[kOwn][kChannels],
        gate[kPoints * kChannels];
    prepare<kMasked>(g, left, step_size, x);
    if constexpr (kGate) {
      if (gated()) gates(g, gate);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        input[i][c] = kMasked && own + i >= left ? 0.0f : step_size[i][c] * x[i][c];
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
      loads.turn(kRing);
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      float step_size_j[kChannels], input_j[kChannels], y_j[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        step_size_j[c] = of_step(step_size, j, c), input_j[c] = of_step(input, j, c);
        y_j[c] = kShare == 1 ? y[j % kOwn][c] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kStates; i += 4) {
        const int at = j * place.states + place.state(i);
        const float4 b4 = load_vector<float4>(B + at),
                     c4 = kSummary ? make_float4(0, 0, 0, 0) : load_vector<float4>(C + at);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          step(h[c][i], a[c][i], step_size_j[c], input_j[c], b4.x, c4.x, y_j[c]);
          step(h[c][i + 1], a[c][i + 1], step_size_j[c], input_j[c], b4.y, c4.y, y_j[c]);
          step(h[c][i + 2], a[c][i + 2], step_size_j[c], input_j[c], b4.z, c4.z, y_j[c]);
          step(h[c][i + 3], a[c][i + 3], step_size_j[c], input_j[c], b4.w, c4.w, y_j[c]);
        }
      }
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if constexpr (kShare == 1) {
          y[j % kOwn][c] = y_j[c];
        } else if constexpr (!kSummary) {
          y_j[c] = sum_over_channel_lanes(y_j[c]);
          if (own / kOwn == j / kOwn) y[j % kOwn][c] += y_j[c];
        }
      }
    }
    if constexpr (kSummary) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) step_size_sum += step_size[i][0];
    } else {
      store_outputs<kMasked>(left, gate, y);
    }
  }

  template <bool kMasked>
  __device__ void store_outputs(int left, const float (&gate)[kPoints * kChannels], float (&y)[kOwn][kChannels]) {
    const bool mine = place.live_now() && (kShare < 4 || place.channel_lane < kShare);
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
      loads.wait();
    } else {
      // The stage before may have loaded nothing, so the number of groups of copies in flight is
      // not known.
      loads.wait_for_all();
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int at = g * kGroup * place.states;
      group<kFollow>(g, left - g * kGroup, B + at, C + at);
    }
  }

  __device__ static void step(float& h, float a, float step_size, float input, float b, float c, float& y) {
    h = fmaf(ex2(step_size * a), h, input * b);
    y = fmaf(c, h, y);
  }

  // These load and store the states of each of the thread's channels, which lie side by side in
  // memory.
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
    const int64_t valid = valid_length(p.lengths, p.size.length, place.sample), steps = valid * kStreams;
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
      own = kShare == 1 ? 0 : place.channel_lane % kShare * kOwn;
      odd = reverse != (own % 2 == 1);
      delta = StridedPointer<const T>(p.delta, place.sample, channel, step, reverse);
      delta.advance(own);
#pragma unroll
      for (int m = 0; m < kStreams; ++m) {
        u[m] = StridedPointer<const T>(p.u[m], place.sample, channel, point, reverse);
        if (gated()) z[m] = StridedPointer<const T>(p.z[m], place.sample, channel, point, reverse);
        out[m] = StridedPointer<T>(p.out[m], place.sample, channel, point, reverse);
        u[m].advance(own / kStreams), out[m].advance(own / kStreams);
        if (gated()) z[m].advance(own / kStreams);
      }
      // The outputs come in the order of x, and the one of this lane's first step comes first. A
      // channel of a single lane is odd exactly with `reverse`, which the compiler knows to be the
      // same in all lanes. With two channels in a thread its code is better without that knowledge.
      if (kStreams == 2 && (kShare == 1 && kChannels == 1 ? reverse : odd)) {
        const StridedPointer<T> first = out[0];
        out[0] = out[kStreams - 1], out[kStreams - 1] = first;
      }
      steps_of_segment(split, first, step, count);
    }

    // The place is computed again, so that no register had to keep it during the steps.
    const Place<kStates, kShare, kChannels> again(p.size, segments_of(split));
    if constexpr (kSummary) {
      if (kShare > 1) step_size_sum = sum_over_channel_lanes(place.channel_lane < kShare ? step_size_sum : 0.0f);
      finish_summary(again, split);
    } else {
      finish(again, split);
    }
  }

  // Stores the summary of this segment in the place of the segment after it.
  __device__ void finish_summary(const Place<kStates, kShare, kChannels>& place, const Split& split) const {
    const int64_t slot = place.segment + 1;
    store_states(place, place.row(split.states, p.size, split.segments, slot), int(p.size.dstate), h);
    if (place.live && place.channel_lane == 0)
      split.step_size_sums[(place.sample * split.segments + slot) * p.size.dim + place.channel] = step_size_sum;
  }

  // Stores the results of the whole segment.
  __device__ void finish(const Place<kStates, kShare, kChannels>& place, const Split& split) const {
    const int dstate = int(p.size.dstate);
    if (kChannels == 2 || place.segment == split.last())
      store_states(place, place.row(static_cast<float*>(p.last_state), p.size, 1, 0), dstate, h);
    if (!place.live || place.channel_lane > 0) return;
    // Each segment clears its share of the rows of `out` that are past the sample's valid steps.
    const int64_t valid = valid_length(p.lengths, p.size.length, place.sample);
    const int64_t begin = place.segment * split.segment_steps / kStreams, end = begin + split.segment_steps / kStreams;
    for (int m = 0; m < kStreams; ++m) {
      for (int c = 0; c < kChannels; ++c)
        clear_steps<T>(p.out[m], place.sample, place.channel + c, max(begin, valid), min(end, p.size.length));
    }
  }

  __device__ void steps_of_segment(const Split& split, int64_t first, int64_t step, int count) {
    Tiles tiles(Maps<T>::of_block(p, place.sample, place.group, place.states, step), split.paired_maps,
                shared_memory() + kRaw);
    const int dstate = int(p.size.dstate), every = int(p.size.checkpoint_every);
    int due = p.checkpoints ? 0 : count;  // a checkpoint is due before this step

    tiles.template load<!kSummary>(0, count);
    loads.stage = kRing;
#pragma unroll
    for (int i = 0; i < Loads::kStages; ++i) {
      load<true>(count - i * kStage);
      loads.turn(kRing);
    }
    const float* B = nullptr;
    int buffer = 0, k = 0;
    for (int row = 0; row < count; row += kRows, buffer ^= 1) {
      float* const tile = shared_memory<float>() + buffer * 2 * Tiles::kValues;
      tiles.template store<!kSummary, Loads::kCommits>(tile, tile + Tiles::kValues);
      // One barrier is enough: the buffer that is written next was last read before it.
      __syncthreads();
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
    // No thread may end before its copies, those of stages past the last one included.
    copies_wait<0>();
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
