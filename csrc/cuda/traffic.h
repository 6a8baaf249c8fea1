// What the scans move between global memory and the chip, as a formula of sizes, options and plan. C++ alone;
// tests/cuda_on_cpu/test_traffic.py holds it against the accesses of the kernels, byte by byte.
//
// Of the same accesses there are three counts, from the memory to the threads:
//     read, written     each byte once in each launch: what memory moves, where the caches keep what the blocks of a
//                       launch share. What a launch has written itself is not read from memory, as the last block
//                       reads it soon after; what one launch writes and the next one reads counts twice.
//     read_by_blocks    each byte once in each block: what L2 hands out at least. B and C are read by every block along
//                       the channels, A by the blocks of every sample. No two blocks write the same byte.
//     again             what a block reads a second time, from L2: the backward pass copies each checkpoint to shared
//                       memory before its chunk, and again when the gradients have come back to the chunk's first step.
//                       Not counted are loads that repeat an address of their block: those of threads past the last
//                       channel, of further lanes of a channel, and past a segment's first chunk.
// `least` is what no implementation that keeps these checkpoints can do without: each input and each result once.
//
// Not counted are the tickets of the backward pass, a few bytes for each block.
//
// All steps are valid, and no tensor overlaps itself: with `lengths` less is read.
#pragma once

#include <vector>

#include "plan.h"

namespace cmimtl::cuda {

// Of a call: its dtype and which optional tensors there are.
struct ScanOptions {
  DType dtype;
  int streams;
  bool gate, skip, bias;  // z, D, delta_bias
  bool state;             // initial_state, and so dinitial_state
  bool last_gradient;     // dlast_state
  bool output;            // the backward pass writes `out` again
};

inline ScanSizes scan_sizes(int streams, int64_t batch, int64_t length, int64_t dim, int64_t dstate, int64_t ngroups,
                            int64_t checkpoint_every) {
  const int64_t steps = streams * length, chunks = checkpoint_every > 0 ? ceil_div(steps, checkpoint_every) : 0;
  return {batch, length, steps, dim, dstate, ngroups, checkpoint_every, chunks};
}

// One tensor, or one part of the workspace; bytes.
struct Moved {
  const char* tensor;
  int64_t read, written, read_by_blocks, again, least;
};

struct TensorBytes {
  int64_t stream, steps, map;      // u, z, out; delta; B
  int64_t A, channels, state;      // A; D; initial_state
  int64_t checkpoints;             // (batch, nchunks, dim, dstate)
  int64_t states, sums;            // of split.h, of all segments but one: (batch, segments - 1, dim, dstate), (…, dim)
  int64_t A_parts, channel_parts;  // (batch, segments, dim, dstate), (batch, segments, dim)
  int64_t A_sums, channel_sums;    // of samples: (sums_of_samples, dim, dstate), (sums_of_samples, dim)
  int64_t map_parts;               // (tiles_per_group, batch, ngroups, steps, dstate)

  TensorBytes(const ScanSizes& s, const ScanPlan& plan, const ScanOptions& o) {
    const int64_t element = o.dtype == DType::kFloat32 ? 4 : 2, acc = sizeof(float);
    stream = o.streams * s.batch * s.length * s.dim * element;
    steps = s.batch * s.steps * s.dim * element;
    map = s.batch * s.steps * s.ngroups * s.dstate * element;
    A = s.dim * s.dstate * acc, channels = s.dim * acc;
    state = s.batch * A;
    checkpoints = s.nchunks * state;
    states = (plan.segments - 1) * state, sums = s.batch * (plan.segments - 1) * channels;
    A_parts = plan.segments * state, channel_parts = s.batch * plan.segments * channels;
    A_sums = plan.sums_of_samples(s) * A, channel_sums = plan.sums_of_samples(s) * channels;
    map_parts = plan.tiles_per_group * s.batch * s.steps * s.ngroups * s.dstate * acc;
  }
};

// Of bytes that are spread evenly over the steps, those that the summary of a split scan reads.
inline int64_t in_summary(int64_t bytes, const ScanSizes& s, const ScanPlan& plan, bool backward) {
  return plan.segments > 1 ? bytes / s.steps * plan.steps(s, plan.summed(backward)) : 0;
}

// What both passes read.
inline std::vector<Moved> inputs_traffic(const ScanSizes& s, const ScanPlan& plan, const ScanOptions& o,
                                         bool backward) {
  const TensorBytes bytes(s, plan, o);
  const int64_t split = plan.segments > 1;  // has a summary and carries too, see split.h
  // Blocks that have the same channels.
  const int64_t blocks = s.batch * plan.segments, of_summary = s.batch * plan.summed(backward).count;
  const auto of_steps = [&](const char* name, int64_t n, int64_t tiles, bool summed) {
    const int64_t all = n + (summed ? in_summary(n, s, plan, backward) : 0);
    return Moved{name, all, 0, tiles * all, 0, n};
  };
  // The states are summed up of u and B, their gradients of C and of what backward_traffic has.
  std::vector<Moved> moved = {
      of_steps("u", bytes.stream, 1, !backward),
      of_steps("delta", bytes.steps, 1, true),
      // The carries of a split scan take A too, one thread for each sample and state.
      {"A", (1 + 2 * split) * bytes.A, 0, (blocks + of_summary + split * s.batch) * bytes.A, 0, bytes.A},
      of_steps("B", bytes.map, plan.tiles_per_group, !backward),
      of_steps("C", bytes.map, plan.tiles_per_group, backward),
  };
  if (o.skip) moved.push_back({"D", bytes.channels, 0, blocks * bytes.channels, 0, bytes.channels});
  if (o.bias) {
    moved.push_back(
        {"delta_bias", (1 + split) * bytes.channels, 0, (blocks + of_summary) * bytes.channels, 0, bytes.channels});
  }
  if (split) {
    moved.push_back({"states of segments", 2 * bytes.states, 2 * bytes.states, 2 * bytes.states, 0, 0});
    moved.push_back({"sums of segments", bytes.sums, bytes.sums, bytes.sums, 0, 0});
  }
  // What the carry begins with, and so does the scan of the segment that no other comes before.
  if (backward ? o.last_gradient : o.state) {
    const int64_t read = (1 + split) * bytes.state;
    moved.push_back({backward ? "dlast_state" : "initial_state", read, 0, read, 0, bytes.state});
  }
  return moved;
}

inline std::vector<Moved> forward_traffic(const ScanSizes& s, const ScanPlan& plan, const ScanOptions& o) {
  const TensorBytes bytes(s, plan, o);
  std::vector<Moved> moved = inputs_traffic(s, plan, o, false);
  const auto read_once = [&](const char* name, int64_t n) { moved.push_back({name, n, 0, n, 0, n}); };
  const auto written = [&](const char* name, int64_t n) { moved.push_back({name, 0, n, 0, 0, n}); };
  if (o.gate) read_once("z", bytes.stream);  // what a segment adds to the states needs no gate
  written("out", bytes.stream), written("last_state", bytes.state);
  if (s.checkpoint_every > 0) written("checkpoints", bytes.checkpoints);
  return moved;
}

inline std::vector<Moved> backward_traffic(const ScanSizes& s, const ScanPlan& plan, const ScanOptions& o) {
  const TensorBytes bytes(s, plan, o);
  std::vector<Moved> moved = inputs_traffic(s, plan, o, true);
  const auto read = [&](const char* name, int64_t n) {
    const int64_t all = n + in_summary(n, s, plan, true);
    moved.push_back({name, all, 0, all, 0, n});
  };
  const auto written = [&](const char* name, int64_t n) { moved.push_back({name, 0, n, 0, 0, n}); };
  // What the scan adds up itself comes from the cache. `sums`: of samples, in the same tensor.
  const auto parts = [&](const char* name, int64_t n, bool summed, bool by_scan, int64_t sums = 0) {
    const int64_t read = summed ? n + sums : 0;
    moved.push_back({name, by_scan ? 0 : read, n + (summed ? sums : 0), read, 0, 0});
  };
  read("dout", bytes.stream);
  if (o.gate) read("z", bytes.stream), written("dz", bytes.stream);
  moved.push_back({"checkpoints", bytes.checkpoints, 0, bytes.checkpoints, bytes.checkpoints, bytes.checkpoints});
  written("du", bytes.stream), written("ddelta", bytes.steps);
  written("dA", bytes.A), written("dB", bytes.map), written("dC", bytes.map);
  if (o.skip) written("dD", bytes.channels);
  if (o.bias) written("ddelta_bias", bytes.channels);
  if (o.state) written("dinitial_state", bytes.state);
  if (o.output) written("out", bytes.stream);
  const bool maps = plan.sums_maps(s), weights = plan.sums_weights(s);
  parts("parts of dA", bytes.A_parts, true, weights, bytes.A_sums);
  parts("parts of dB", bytes.map_parts, true, maps), parts("parts of dC", bytes.map_parts, true, maps);
  parts("parts of dD", bytes.channel_parts, o.skip, weights, bytes.channel_sums);
  parts("parts of ddelta_bias", bytes.channel_parts, o.bias, weights, bytes.channel_sums);
  return moved;
}

}  // namespace cmimtl::cuda
