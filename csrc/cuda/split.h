// A scan split in time (see plan.h). The carry is the state, and goes from segment to segment, or its gradient, and goes
// from the last segment to the first; "before" and "after" are in the direction of the carry. There are three passes:
//     summary        runs each segment from zero, but for the final one, which nothing is carried out of: it leaves what
//                    the segment adds to the carry, and the sum of its step sizes, at the segment after it
//     carry_states   turns that into what is carried into each segment
//     scan           runs every segment from there. The one that no other comes before starts as a scan that is not
//                    split does, from initial_state or dlast_state; last_state or dinitial_state is what the final one
//                    ends with.
#pragma once

#include "device.h"
#include "plan.h"
#include "selective_scan.h"

namespace cmimtl::cuda {

struct Split {
  int64_t segments, segment_steps;
  Segments summed;   // that the summary runs
  bool paired_maps;  // states_in_pairs of plan.h, for the forward pass
  // Null where there is one segment; the place of the segment that no other comes before is not used.
  float* states;  // (batch, segments, dim, dstate): what the segment before this one adds, then the carry into this one
  float* sums;    // (batch, segments, dim): the step sizes of the segment before this one, times log2 e

  __host__ __device__ Segments all() const { return {0, segments}; }
  __device__ int last() const { return int(segments) - 1; }
};

inline Split make_split(const ScanSizes& s, const ScanPlan& plan, bool backward, float* workspace) {
  Split split{plan.segments, plan.segment_steps, plan.summed(backward), false, nullptr, nullptr};
  if (plan.segments > 1 && workspace)
    split.states = workspace, split.sums = workspace + s.batch * plan.segments * s.dim * s.dstate;
  return split;
}

// states[b, s] becomes the carry into segment s, from what the segment before it adds:
//     forward     carry[s] = exp(A sums[s]) carry[s - 1] + states[s], where carry[0] = initial, which is stored nowhere
//     backward    the same from the last segment to the first
// initial: (batch, dim, dstate), or null: zeros.
void carry_states(const ScanForward& p, const Split& split, bool backward, const float* initial, void* stream);

// Sums that the blocks of the backward pass leave in the workspace, added up by scan_backward_parts.cuh.
struct Partial {
  int64_t tiles;      // tiles_per_group of the plan
  int64_t sums;       // sums_of_samples of the plan
  float *dB, *dC;     // (tiles, batch, ngroups, steps, dstate)
  float* dA;          // (batch * segments + sums, dim, dstate)
  float *dD, *dbias;  // the same of (dim)
  // Tickets: how many have left theirs. Null where the scan does not add them up itself, the last one without sums too.
  unsigned* maps_done;     // (batch, ngroups): blocks of the same sample and group
  unsigned* samples_done;  // (ceil(batch / kSamplesOfLast), ngroups, tiles): blocks of the same channels
  unsigned* sums_done;     // (ngroups, tiles): sums of samples
};

// What the backward pass has in its workspace.
struct BackwardWorkspace {
  Split split;
  Partial partial;
  unsigned* first_ticket;  // of all, which are to be cleared before the scan
  int64_t tickets = 0;
  int64_t elements = 0;  // all of it

  // Where dstate is a multiple of 4, so is all that comes before the sums of step sizes: rows of states stay aligned.
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
  ForwardKernel scan, summary;  // no summary where the plan fills the chip: it is not split in time
};
struct BackwardKernel {
  void (*run)(ScanBackward, Split, Partial);
  LaunchSizes sizes;
};
struct BackwardKernels {
  BackwardKernel scan, summary;
};

// Of scan_forward_launch.cuh and scan_backward_launch.cuh, one file for each T and number of streams: they compile side by
// side, and a driver that compiles PTX does so for a file at a time.
template <class T, int kStreams>
ForwardKernels forward_kernels(const ScanPlan& plan, bool gate);
template <class T, int kStreams>
BackwardKernels backward_kernels(const ScanPlan& plan, bool gate);
template <class T>
void launch_sum_tiles(const ScanBackward& q, const Partial& partial, void* stream);

// out[i] = sum of parts[k][i] over k, in order; parts: (count, size). Without `out`, nothing.
struct Parts {
  const float* parts;
  int64_t size;
  void* out;  // float
};
struct PartsOfWeights {
  Parts of[3];
};
// All of them in one launch.
void sum_parts(PartsOfWeights weights, int64_t count, void* stream);

}  // namespace cmimtl::cuda
