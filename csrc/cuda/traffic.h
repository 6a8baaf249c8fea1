// The bytes that the scans move between global memory and the chip, as a formula of sizes, options
// and plan. This file is plain C++; tests/cuda_on_cpu/test_traffic.py holds it against the accesses
// of the kernels, byte by byte.
//
// The same accesses are counted in three ways, from the memory to the threads:
//
//     read, written     counts each byte once in each launch: what memory moves, if the caches keep
//                       what the blocks of a launch share. What a launch has written itself is not
//                       read from memory, as the last block reads it soon after. What one launch
//                       writes and the next one reads counts twice.
//     read_by_blocks    counts each byte once in each block: what L2 hands out at least. Every
//                       block along the channels reads B and C, and the blocks of every sample read
//                       A. No two blocks write the same byte.
//     again             counts what a block reads a second time, from L2: the backward pass copies
//                       each checkpoint to shared memory before its chunk, and again when the
//                       gradients have come back to the chunk's first step. Loads that repeat an
//                       address of their block are not counted: those of threads past the last
//                       channel, of further lanes of a channel, and past a segment's first chunk.
//
// `least` is what every implementation that keeps these checkpoints must move: each input and each
// result once.
//
// The tickets of the backward pass, a few bytes for each block, are not counted. All steps are
// valid (with `lengths` less is read), and no tensor overlaps itself.
#pragma once

#include <vector>

#include "plan.h"

namespace cmimtl::cuda {

// The options of a call: its dtype, and which optional tensors it has.
struct ScanOptions {
  DType dtype;
  int streams;
  bool gate, skip, bias;  // whether it has z, D, delta_bias
  bool state;             // whether it has initial_state, and so dinitial_state
  bool last_gradient;     // whether it has dlast_state
};

inline ScanSizes scan_sizes(int streams, int64_t batch, int64_t length, int64_t dim, int64_t dstate, int64_t ngroups,
                            int64_t checkpoint_every) {
  const int64_t steps = streams * length, chunks = checkpoint_every > 0 ? ceil_div(steps, checkpoint_every) : 0;
  return {.batch = batch,
          .length = length,
          .steps = steps,
          .dim = dim,
          .dstate = dstate,
          .ngroups = ngroups,
          .checkpoint_every = checkpoint_every,
          .nchunks = chunks};
}

// What is moved of one tensor, or of one array of the workspace, in bytes.
struct Moved {
  const char* tensor;
  int64_t read = 0, written = 0, read_by_blocks = 0, again = 0, least = 0;
};

// The sizes of the tensors and of the arrays of the workspace, in bytes.
struct TensorBytes {
  int64_t stream, steps, map;      // u, z and out; delta; B
  int64_t A, channels, state;      // A; D; initial_state
  int64_t checkpoints;             // (batch, nchunks, dim, dstate)
  int64_t states;                  // of split.h: (batch, segments - 1, dim, dstate)
  int64_t step_size_sums;          // of split.h: (batch, segments - 1, dim)
  int64_t A_parts, channel_parts;  // (batch, segments, dim, dstate), (batch, segments, dim)
  int64_t A_sums, channel_sums;    // (sums_of_samples, dim, dstate), (sums_of_samples, dim)
  int64_t map_parts;               // (tiles_per_group, batch, ngroups, steps, dstate)

  TensorBytes(const ScanSizes& s, const ScanPlan& plan, const ScanOptions& o) {
    const int64_t element = o.dtype == DType::kFloat32 ? 4 : 2, acc = sizeof(float);
    stream = o.streams * s.batch * s.length * s.dim * element;
    steps = s.batch * s.steps * s.dim * element;
    map = s.batch * s.steps * s.ngroups * s.dstate * element;
    A = s.dim * s.dstate * acc, channels = s.dim * acc;
    state = s.batch * A;
    checkpoints = s.nchunks * state;
    states = (plan.segments - 1) * state, step_size_sums = s.batch * (plan.segments - 1) * channels;
    A_parts = plan.segments * state, channel_parts = s.batch * plan.segments * channels;
    A_sums = plan.sums_of_samples(s) * A, channel_sums = plan.sums_of_samples(s) * channels;
    map_parts = plan.tiles_per_group * s.batch * s.steps * s.ngroups * s.dstate * acc;
  }
};

// How many of `bytes`, which are spread evenly over the steps, the summary of a split scan reads.
inline int64_t in_summary(int64_t bytes, const ScanSizes& s, const ScanPlan& plan, bool backward) {
  return plan.segments > 1 ? bytes / s.steps * plan.steps(s, plan.summed(backward)) : 0;
}

// The inputs that both passes read.
inline std::vector<Moved> inputs_traffic(const ScanSizes& s, const ScanPlan& plan, const ScanOptions& o,
                                         bool backward) {
  const TensorBytes bytes(s, plan, o);
  const int64_t split = plan.segments > 1;  // 1 where there are a summary and carries, see split.h
  // The numbers of blocks that have the same channels.
  const int64_t blocks = s.batch * plan.segments, of_summary = s.batch * plan.summed(backward).count;
  const auto of_steps = [&](const char* name, int64_t n, int64_t tiles, bool summed) {
    const int64_t all = n + (summed ? in_summary(n, s, plan, backward) : 0);
    return Moved{.tensor = name, .read = all, .read_by_blocks = tiles * all, .least = n};
  };
  // The forward summary reads u and B, and the backward one C and what backward_traffic has.
  std::vector<Moved> moved = {
      of_steps("u", bytes.stream, 1, !backward),
      of_steps("delta", bytes.steps, 1, true),
      // The pass over the carries of a split scan reads A too, with a thread for each sample and
      // state.
      {.tensor = "A",
       .read = (1 + 2 * split) * bytes.A,
       .read_by_blocks = (blocks + of_summary + split * s.batch) * bytes.A,
       .least = bytes.A},
      of_steps("B", bytes.map, plan.tiles_per_group, !backward),
      of_steps("C", bytes.map, plan.tiles_per_group, backward),
  };
  if (o.skip) {
    moved.push_back(
        {.tensor = "D", .read = bytes.channels, .read_by_blocks = blocks * bytes.channels, .least = bytes.channels});
  }
  if (o.bias) {
    moved.push_back({.tensor = "delta_bias",
                     .read = (1 + split) * bytes.channels,
                     .read_by_blocks = (blocks + of_summary) * bytes.channels,
                     .least = bytes.channels});
  }
  if (split) {
    const int64_t states = 2 * bytes.states, sums = bytes.step_size_sums;
    moved.push_back({.tensor = "states of segments", .read = states, .written = states, .read_by_blocks = states});
    moved.push_back({.tensor = "sums of segments", .read = sums, .written = sums, .read_by_blocks = sums});
  }
  // The carry begins with this tensor, and so does the scan of the segment that no other comes
  // before.
  if (backward ? o.last_gradient : o.state) {
    const int64_t read = (1 + split) * bytes.state;
    moved.push_back({.tensor = backward ? "dlast_state" : "initial_state",
                     .read = read,
                     .read_by_blocks = read,
                     .least = bytes.state});
  }
  return moved;
}

inline std::vector<Moved> forward_traffic(const ScanSizes& s, const ScanPlan& plan, const ScanOptions& o) {
  const TensorBytes bytes(s, plan, o);
  std::vector<Moved> moved = inputs_traffic(s, plan, o, false);
  const auto read_once = [&](const char* name, int64_t n) {
    moved.push_back({.tensor = name, .read = n, .read_by_blocks = n, .least = n});
  };
  const auto written = [&](const char* name, int64_t n) {
    moved.push_back({.tensor = name, .written = n, .least = n});
  };
  if (o.gate) read_once("z", bytes.stream);  // the summary needs no gate
  written("out", bytes.stream), written("last_state", bytes.state);
  if (s.checkpoint_every > 0) written("checkpoints", bytes.checkpoints);
  return moved;
}

inline std::vector<Moved> backward_traffic(const ScanSizes& s, const ScanPlan& plan, const ScanOptions& o) {
  const TensorBytes bytes(s, plan, o);
  std::vector<Moved> moved = inputs_traffic(s, plan, o, true);
  const auto read = [&](const char* name, int64_t n) {
    const int64_t all = n + in_summary(n, s, plan, true);
    moved.push_back({.tensor = name, .read = all, .read_by_blocks = all, .least = n});
  };
  const auto written = [&](const char* name, int64_t n) {
    moved.push_back({.tensor = name, .written = n, .least = n});
  };
  // Parts that the scan adds up itself come from the cache. `sums` are the bytes of sums of samples
  // in the same array.
  const auto parts = [&](const char* name, int64_t n, bool summed, bool by_scan, int64_t sums = 0) {
    const int64_t read = summed ? n + sums : 0;
    moved.push_back(
        {.tensor = name, .read = by_scan ? 0 : read, .written = n + (summed ? sums : 0), .read_by_blocks = read});
  };
  read("dout", bytes.stream);
  if (o.gate) read("z", bytes.stream), written("dz", bytes.stream);
  moved.push_back({.tensor = "checkpoints",
                   .read = bytes.checkpoints,
                   .read_by_blocks = bytes.checkpoints,
                   .again = bytes.checkpoints,
                   .least = bytes.checkpoints});
  written("du", bytes.stream), written("ddelta", bytes.steps);
  written("dA", bytes.A), written("dB", bytes.map), written("dC", bytes.map);
  if (o.skip) written("dD", bytes.channels);
  if (o.bias) written("ddelta_bias", bytes.channels);
  if (o.state) written("dinitial_state", bytes.state);
  const bool maps = plan.sums_maps(s), weights = plan.sums_weights(s);
  parts("parts of dA", bytes.A_parts, true, weights, bytes.A_sums);
  parts("parts of dB", bytes.map_parts, true, maps), parts("parts of dC", bytes.map_parts, true, maps);
  parts("parts of dD", bytes.channel_parts, o.skip, weights, bytes.channel_sums);
  parts("parts of ddelta_bias", bytes.channel_parts, o.bias, weights, bytes.channel_sums);
  return moved;
}

}  // namespace cmimtl::cuda
