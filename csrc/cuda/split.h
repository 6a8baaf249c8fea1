// A scan that is split over time into segments, which run at the same time (see plan.h). The carry
// is the state, which goes from segment to segment, or the gradient of the state, which goes from
// the last segment to the first. "Before" and "after" are in the direction of the carry. There are
// three passes:
//
//     summary        runs each segment from zero. It leaves what the segment adds to the carry, and
//                    the sum of its step sizes, in the place of the segment after it. The final
//                    segment has none after it and is left out.
//     carry_states   turns these summaries into the carry into each segment
//     scan           runs every segment from its carry. The one that no other comes before starts
//                    as a scan that is not split does, from initial_state or dlast_state. The final
//                    one ends with last_state or dinitial_state.
#pragma once

#include "device.h"
#include "plan.h"
#include "selective_scan.h"

namespace cmimtl::cuda {

// What the kernels need to know of the split.
struct Split {
  int64_t segments, segment_steps;
  Segments summed;   // the segments that the summary runs
  bool paired_maps;  // states_in_pairs of plan.h, for the forward pass
  // Both are null where there is one segment. The place of the segment that no other comes before
  // is not used.
  // (batch, segments, dim, dstate): what the segment before adds, later the carry into this one.
  float* states;
  // (batch, segments, dim): the sum of the step sizes of the segment before, times log2 e.
  float* step_size_sums;

  __host__ __device__ Segments all() const { return {0, segments}; }
  __device__ int last() const { return int(segments) - 1; }
};

inline Split make_split(const ScanSizes& s, const ScanPlan& plan, bool backward, float* workspace) {
  Split split{.segments = plan.segments,
              .segment_steps = plan.segment_steps,
              .summed = plan.summed(backward),
              .paired_maps = false,
              .states = nullptr,
              .step_size_sums = nullptr};
  if (plan.segments > 1 && workspace)
    split.states = workspace, split.step_size_sums = workspace + s.batch * plan.segments * s.dim * s.dstate;
  return split;
}

// Turns states[b, s] from what the segment before s adds into the carry into segment s:
//
//     forward     carry[s] = exp(A step_size_sums[s]) carry[s - 1] + states[s], where carry[0] is
//                 `initial`, which is stored nowhere
//     backward    the same from the last segment to the first
//
// `initial` is (batch, dim, dstate), or null for zeros.
void carry_states(const ScanForward& p, const Split& split, bool backward, const float* initial, void* stream);

// The parts of sums that the blocks of the backward pass leave in the workspace.
// scan_backward_parts.cuh adds them up.
struct Partial {
  int64_t tiles;      // tiles_per_group of the plan
  int64_t sums;       // sums_of_samples of the plan
  float *dB, *dC;     // (tiles, batch, ngroups, steps, dstate)
  float* dA;          // (batch * segments + sums, dim, dstate)
  float *dD, *dbias;  // (batch * segments + sums, dim)
  // Tickets count the blocks that have left their part. They are null where the scan does not add
  // up the parts itself; sums_done is also null where there are no sums of samples.
  unsigned* maps_done;  // (batch, ngroups): the blocks of a sample and group
  // (ceil(batch / kSamplesOfLast), ngroups, tiles): the blocks of a tile of channels.
  unsigned* samples_done;
  unsigned* sums_done;  // (ngroups, tiles): the sums of samples of a tile of channels
};

// The workspace of the backward pass, laid out.
struct BackwardWorkspace {
  Split split;
  Partial partial;
  unsigned* first_ticket;  // the tickets are neighbours, and must be cleared before the scan
  int64_t tickets = 0;
  int64_t elements = 0;  // the size of the workspace in floats

  // Where dstate is a multiple of 4, so are the sizes of all arrays before step_size_sums, and rows
  // of states stay aligned.
  BackwardWorkspace(const ScanSizes& s, const ScanPlan& plan, float* workspace) {
    partial.tiles = plan.tiles_per_group, partial.sums = plan.sums_of_samples(s);
    const int64_t parts = s.batch * plan.segments + partial.sums;
    const int64_t maps = partial.tiles * s.batch * s.steps * s.ngroups * s.dstate;
    const auto take = [&](int64_t count) {
      float* const taken = workspace ? workspace + elements : nullptr;
      elements += count;
      return taken;
    };
    partial.dA = take(parts * s.dim * s.dstate);
    split = make_split(s, plan, true, take(split_elements(s, plan)));
    partial.dB = take(maps), partial.dC = take(maps);
    partial.dD = take(parts * s.dim), partial.dbias = take(parts * s.dim);
    const auto take_tickets = [&](bool any, int64_t count) {
      tickets += any * count;
      return any ? reinterpret_cast<unsigned*>(take(count)) : nullptr;
    };
    const int64_t tiles = s.ngroups * partial.tiles;
    partial.maps_done = take_tickets(plan.sums_maps(s), s.batch * s.ngroups);
    partial.samples_done = take_tickets(plan.sums_weights(s), ceil_div(s.batch, kSamplesOfLast) * tiles);
    partial.sums_done = take_tickets(partial.sums > 0, tiles);
    first_ticket = partial.maps_done ? partial.maps_done : partial.samples_done;
  }
};

// An instance of a scan's kernels, and how it is launched.
struct ForwardKernel {
  void (*run)(ScanForward, Split);
  LaunchSizes sizes;
};
struct ForwardKernels {
  // There is no summary where the plan fills the GPU, since it is not split over time then.
  ForwardKernel scan, summary;
};
struct BackwardKernel {
  void (*run)(ScanBackward, Split, Partial);
  LaunchSizes sizes;
};
struct BackwardKernels {
  BackwardKernel scan, summary;
};

// These are defined in scan_forward_launch.cuh and scan_backward_launch.cuh. Each T and number of
// streams has a file of its own, so that the files compile side by side. A driver that compiles PTX
// also takes one file at a time.
template <class T, int kStreams>
ForwardKernels forward_kernels(const ScanPlan& plan, bool gate);
template <class T, int kStreams>
BackwardKernels backward_kernels(const ScanPlan& plan, bool gate);
template <class T>
void launch_sum_tiles(const ScanBackward& q, const Partial& partial, void* stream);

// A sum of parts: out[i] = sum over k of parts[k][i], in the order of k; parts is (count, size).
// Where `out` is null there is no sum.
struct Parts {
  const float* parts;
  int64_t size;
  void* out;  // float
};
struct PartsOfWeights {
  Parts of[3];
};
// Adds up all of them in one launch.
void sum_parts(PartsOfWeights weights, int64_t count, void* stream);

}  // namespace cmimtl::cuda
