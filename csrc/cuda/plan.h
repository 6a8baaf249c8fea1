// Who works on what: the sizes of a launch as a pure function of the sizes of the problem, the same on every device, so
// that the order of every sum is too. C++ alone; tests call it without a GPU.
#pragma once

#include <cstdint>

#include "selective_scan.h"

namespace cmimtl::cuda {

constexpr int kThreads = 128;           // of a block of the scans
constexpr int64_t kMostStates = 256;    // 16 lanes of 16 states
constexpr int64_t kMostTaps = 32;       // of the convolution: a thread holds four floats for each
constexpr int kChunk = 8;               // steps that the backward pass keeps the states of, see scan_backward.cuh
constexpr int64_t kMostWarps = 1056;    // 8 warps on each of 132 multiprocessors: more add no speed
constexpr int64_t kLeastSegment = 128;  // steps; the pass over the carries costs as much as a few of them
// What one block adds up alone of what others leave in the workspace: samples, few enough to run at the same time so that
// the cache still has what they left, and floats of dB, as many of dC.
constexpr int64_t kSamplesOfLast = 16, kMostOfMapsOfLast = 96 << 10;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a block.
struct LaunchSizes {
  int threads, shared_bytes;  // dynamic shared memory; the kernels have no other
};

// Some segments of every sample: [first, first + count).
struct Segments {
  int64_t first, count;
};

// A thread holds `states` states of each of `channels` neighbouring channels, `lanes` threads of a warp hold a channel.
// `segments` of `segment_steps` recurrence steps run at the same time; more than one only where there are too few
// channels.
struct ScanPlan {
  int states, lanes, channels;
  int64_t channels_per_block, tiles_per_group;  // blocks along the channels of one group
  int64_t segments, segment_steps;

  // What the scan itself runs, and what the pass before it sums up (see split.h): of the segment that comes last in the
  // direction of the carry, nothing is carried out.
  Segments all() const { return {0, segments}; }
  Segments summed(bool backward) const { return {backward ? 1 : 0, segments - 1}; }

  int64_t blocks(const ScanSizes& s, const Segments& run) const {
    return s.batch * run.count * s.ngroups * tiles_per_group;
  }
  int64_t blocks(const ScanSizes& s) const { return blocks(s, all()); }
  // Of a sample.
  int64_t steps(const ScanSizes& s, const Segments& run) const {
    const auto begin = [&](int64_t i) { return i * segment_steps < s.steps ? i * segment_steps : s.steps; };
    return begin(run.first + run.count) - begin(run.first);
  }

  // Do the blocks of the backward pass also add up what they leave in the workspace, of dA, dD and ddelta_bias, and of
  // dB and dC? It spares memory traffic, which matters most where scans are short, and the launches of the sums for one
  // that clears the tickets; the dB and dC of a long scan are more than one block should take.
  bool sums_weights(const ScanSizes& s) const { return segments == 1 && blocks(s) > 0; }
  bool sums_maps(const ScanSizes& s) const {
    return sums_weights(s) && tiles_per_group * s.steps * s.dstate <= kMostOfMapsOfLast;
  }
  // Samples are added up kSamplesOfLast at a time, then those sums: how many, where there is more than one.
  int64_t sums_of_samples(const ScanSizes& s) const {
    return sums_weights(s) && s.batch > kSamplesOfLast ? ceil_div(s.batch, kSamplesOfLast) : 0;
  }
};

inline ScanPlan plan_lanes(const ScanSizes& s, int states, int channels = 1, int least_lanes = 1) {
  ScanPlan plan{};
  plan.states = states;
  plan.channels = channels;
  plan.lanes = least_lanes;
  while (plan.lanes * states < s.dstate) plan.lanes *= 2;
  plan.channels_per_block = kThreads / plan.lanes * channels;
  plan.tiles_per_group = ceil_div(s.dim / s.ngroups, plan.channels_per_block);
  return plan;
}

inline int64_t warps(const ScanSizes& s, const ScanPlan& plan) {
  return s.batch * s.ngroups * plan.tiles_per_group * (kThreads / 32);
}

// Splits time until the machine is full. It nearly doubles the arithmetic, for the states must be known at the start of
// every segment first, so fewer than four segments gain nothing.
inline void split_time(const ScanSizes& s, ScanPlan& plan, int64_t most_warps = kMostWarps) {
  const int64_t steps = s.steps > 0 ? s.steps : 1, busy = warps(s, plan) > 0 ? warps(s, plan) : 1;
  int64_t segments = most_warps / busy;
  if (segments > steps / kLeastSegment) segments = steps / kLeastSegment;
  if (segments < 4) segments = 1;
  // Segments begin where checkpoints do, and where chunks and pairs of steps do.
  const int64_t unit = s.checkpoint_every > 0 ? s.checkpoint_every : kChunk;
  plan.segment_steps = ceil_div(ceil_div(steps, segments), unit) * unit;
  plan.segments = ceil_div(steps, plan.segment_steps);
}

// Are pairs of channels, from an even one of a group on, aligned words of the tensor? It may be absent.
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

// Are pairs of states, of a half type, aligned words of B and of C?
inline bool states_in_pairs(const ScanForward& p) {
  const auto pairs = [](const InMap& x) {
    return x.state == 1 && (x.batch | x.step | x.group) % 2 == 0 && reinterpret_cast<uintptr_t>(x.data) % 4 == 0;
  };
  return p.size.dstate % 2 == 0 && pairs(p.B) && pairs(p.C);
}

// Does the forward plan have these only where they fill the chip? It is not split in time then.
constexpr bool fills_the_chip(int states, int lanes) { return states == 16 && lanes == 1; }

// Two channels in a thread cost the fewest instructions, where `pairs` allows them, and 16 states; 8 states give twice the
// threads where those would leave the chip idle. `most_warps` fill it.
inline ScanPlan plan_forward(const ScanSizes& s, bool pairs = false, int64_t most_warps = kMostWarps) {
  ScanPlan plan = plan_lanes(s, s.dstate <= 8 ? 8 : 16);
  if (fills_the_chip(plan.states, plan.lanes)) {
    const ScanPlan two = plan_lanes(s, 16, 2);
    if (pairs && warps(s, two) >= most_warps) {
      plan = two;
    } else if (warps(s, plan) < most_warps) {
      plan = plan_lanes(s, 8);
    }
  }
  split_time(s, plan, most_warps);
  return plan;
}

// The kernels with 16 states in one or two lanes take rows of states four at a time alone; others are rare, and get four.
inline ScanPlan plan_backward(const ScanSizes& s) {
  ScanPlan plan = plan_lanes(s, s.dstate <= 8 ? 8 : 16, 1, s.dstate > 8 && s.dstate % 4 != 0 ? 4 : 1);
  split_time(s, plan);
  return plan;
}

// What a scan split in time keeps between its passes, float: the state (batch, segments, dim, dstate) that the segment
// before this one ends with, replaced by the one that this one starts with, and the sum of the step sizes of the segment
// before this one (batch, segments, dim).
inline int64_t split_elements(const ScanSizes& s, const ScanPlan& plan) {
  return plan.segments > 1 ? s.batch * plan.segments * s.dim * (s.dstate + 1) : 0;
}

}  // namespace cmimtl::cuda
