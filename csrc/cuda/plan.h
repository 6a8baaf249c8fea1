// The plan of a launch: which thread works on what. It is a pure function of the sizes of the
// problem, the same on every device, so that the order of every sum is the same too. This file is
// plain C++; tests call it without a GPU.
#pragma once

#include <cstdint>

#include "selective_scan.h"

namespace cmimtl::cuda {

constexpr int kThreads = 128;         // threads of a block of the scans
constexpr int64_t kMostStates = 256;  // the largest dstate: 16 lanes of 16 states
constexpr int kStage = 4;             // steps that the forward pass loads together
// The distance of the checkpoints, in steps. The backward pass starts a chunk from its checkpoint
// and keeps the states of all of its steps, so registers and shared memory grow with it.
constexpr int kChunk = 8;
// The largest width of a convolution. A thread holds four floats for each tap.
constexpr int64_t kMostTaps = 32;
// The warps that fill the GPU: 8 on each of 132 multiprocessors. More warps add no speed.
constexpr int64_t kMostWarps = 1056;
// The steps that a segment has at least. The pass over the carries costs as much as a few steps.
constexpr int64_t kLeastSegment = 128;

// The bytes of shared memory that a block of the backward pass takes at most, up to kFewStates and
// up to kMostStates states. Every device has the former: a block gets that much on compute
// capability 8.6, 8.9 and 12.0, which have the least.
constexpr int64_t kFewStates = 128;
constexpr int64_t kSharedOfFewStates = 99 << 10, kSharedOfManyStates = 120 << 10;
// The largest dstate on a device whose blocks get so many bytes of shared memory.
constexpr int64_t most_states(int64_t shared_bytes) {
  return shared_bytes >= kSharedOfManyStates ? kMostStates : kFewStates;
}

// What one block adds up alone of what other blocks leave in the workspace: so few samples that
// they run at the same time and the cache still has what they left, and so many floats of dB, and
// as many of dC.
constexpr int64_t kSamplesOfLast = 16, kMostOfMapsOfLast = 96 << 10;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What a block of a kernel is launched with.
struct LaunchSizes {
  int threads, shared_bytes;  // the shared memory is dynamic; the kernels have no other
};

// The segments [first, first + count) of every sample.
struct Segments {
  int64_t first, count;
};

// A thread holds `states` states of each of `channels` neighbouring channels, and `channel_lanes`
// lanes of a warp hold the states of a channel. `segments` segments of `segment_steps` recurrence
// steps run at the same time. There is more than one only where there are too few channels to fill
// the GPU.
struct ScanPlan {
  int states, channel_lanes, channels;
  int64_t channels_per_block, tiles_per_group;  // a group takes so many blocks along its channels
  int64_t segments, segment_steps;

  // The segments that the scan runs, and those that the summary before it runs (see split.h). The
  // summary leaves out the segment that comes last in the direction of the carry.
  Segments all() const { return {.first = 0, .count = segments}; }
  Segments summed(bool backward) const { return {.first = backward ? 1 : 0, .count = segments - 1}; }

  int64_t blocks(const ScanSizes& s, const Segments& run) const {
    return s.batch * run.count * s.ngroups * tiles_per_group;
  }
  int64_t blocks(const ScanSizes& s) const { return blocks(s, all()); }
  // The number of steps of a sample that these segments have.
  int64_t steps(const ScanSizes& s, const Segments& run) const {
    const auto begin = [&](int64_t i) { return i * segment_steps < s.steps ? i * segment_steps : s.steps; };
    return begin(run.first + run.count) - begin(run.first);
  }

  // Whether the blocks of the backward pass also add up their parts of dA, dD and ddelta_bias, and
  // those of dB and dC. That spares memory traffic, which matters most where scans are short, and
  // replaces the launches of the sums by one that clears the tickets. The dB and dC of a long scan
  // are more than one block should add up.
  bool sums_weights(const ScanSizes& s) const { return segments == 1 && blocks(s) > 0; }
  bool sums_maps(const ScanSizes& s) const {
    return sums_weights(s) && tiles_per_group * s.steps * s.dstate <= kMostOfMapsOfLast;
  }
  // Samples are added up kSamplesOfLast at a time, and then these sums are. This is their number,
  // or 0 where there is one.
  int64_t sums_of_samples(const ScanSizes& s) const {
    return sums_weights(s) && s.batch > kSamplesOfLast ? ceil_div(s.batch, kSamplesOfLast) : 0;
  }
};

// A plan of how a block divides channels and states among its threads, which is not split over time
// yet.
inline ScanPlan plan_block(const ScanSizes& s, int states, int channels = 1, int least_channel_lanes = 1) {
  ScanPlan plan{};
  plan.states = states;
  plan.channels = channels;
  plan.channel_lanes = least_channel_lanes;
  while (plan.channel_lanes * states < s.dstate) plan.channel_lanes *= 2;
  plan.channels_per_block = kThreads / plan.channel_lanes * channels;
  plan.tiles_per_group = ceil_div(s.dim / s.ngroups, plan.channels_per_block);
  return plan;
}

inline int64_t warps(const ScanSizes& s, const ScanPlan& plan) {
  return s.batch * s.ngroups * plan.tiles_per_group * (kThreads / 32);
}

// Splits the scan over time until they fill the GPU. That nearly doubles the arithmetic, because
// the state at the start of every segment must be known first, so fewer than four segments gain
// nothing.
inline void split_time(const ScanSizes& s, ScanPlan& plan, int64_t most_warps = kMostWarps) {
  const int64_t steps = s.steps > 0 ? s.steps : 1, busy = warps(s, plan) > 0 ? warps(s, plan) : 1;
  int64_t segments = most_warps / busy;
  if (segments > steps / kLeastSegment) segments = steps / kLeastSegment;
  if (segments < 4) segments = 1;
  // A segment begins where a checkpoint does, and where a chunk and a pair of steps do.
  const int64_t unit = s.checkpoint_every > 0 ? s.checkpoint_every : kChunk;
  plan.segment_steps = ceil_div(ceil_div(steps, segments), unit) * unit;
  plan.segments = ceil_div(steps, plan.segment_steps);
}

// Whether pairs of channels, from an even one of a group on, are aligned words of the tensor. A
// tensor that is absent has pairs.
template <class Tensor>
bool has_pairs(const Tensor& x, int64_t element_bytes) {
  return !x.data || (x.dim == 1 && (x.batch | x.step) % 2 == 0 &&
                     reinterpret_cast<uintptr_t>(x.data) % uintptr_t(2 * element_bytes) == 0);
}
inline bool channels_in_pairs(const ScanForward& p) {
  const int64_t bytes = p.dtype == DType::kFloat32 ? 4 : 2;
  bool all = p.size.dim / p.size.ngroups % 2 == 0 && has_pairs(p.delta, bytes);
  for (int m = 0; m < p.streams; ++m)
    all = all && has_pairs(p.u[m], bytes) && has_pairs(p.z[m], bytes) && has_pairs(p.out[m], bytes);
  return all;
}

// Whether pairs of states of a half type are aligned words of B and of C.
inline bool states_in_pairs(const ScanForward& p) {
  const auto pairs = [](const InMap& x) {
    return x.state == 1 && (x.batch | x.step | x.group) % 2 == 0 && reinterpret_cast<uintptr_t>(x.data) % 4 == 0;
  };
  return p.size.dstate % 2 == 0 && pairs(p.B) && pairs(p.C);
}

// Whether the forward plan has such threads only where they fill the GPU, so that it is never split
// over time with them.
constexpr bool fills_the_gpu(int states, int channel_lanes) { return states == 16 && channel_lanes == 1; }

// The plan of the forward pass. Two channels of 16 states in a thread cost the fewest instructions,
// where `pairs` allows them. 8 states give twice as many threads, where 16 would leave the GPU
// partly idle. `most_warps` warps fill it.
inline ScanPlan plan_forward(const ScanSizes& s, bool pairs = false, int64_t most_warps = kMostWarps) {
  ScanPlan plan = plan_block(s, s.dstate <= 8 ? 8 : 16);
  if (fills_the_gpu(plan.states, plan.channel_lanes)) {
    const ScanPlan two = plan_block(s, 16, 2);
    if (pairs && warps(s, two) >= most_warps) {
      plan = two;
    } else if (warps(s, plan) < most_warps) {
      plan = plan_block(s, 8);
    }
  }
  split_time(s, plan, most_warps);
  return plan;
}

// The plan of the backward pass. Its kernels with 16 states in one or two lanes need a dstate that
// 4 divides. Other numbers above 8 are rare, and get four lanes.
inline ScanPlan plan_backward(const ScanSizes& s) {
  ScanPlan plan = plan_block(s, s.dstate <= 8 ? 8 : 16, 1, s.dstate > 8 && s.dstate % 4 != 0 ? 4 : 1);
  split_time(s, plan);
  return plan;
}

// The number of floats that a scan which is split over time keeps between its passes: `states` and
// `step_size_sums` of split.h.
inline int64_t split_elements(const ScanSizes& s, const ScanPlan& plan) {
  return plan.segments > 1 ? s.batch * plan.segments * s.dim * (s.dstate + 1) : 0;
}

}  // namespace cmimtl::cuda
