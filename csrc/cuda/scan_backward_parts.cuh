// Adds up the parts that the blocks of the backward scan leave in the workspace: dB and dC over the
// tiles of channels, dA, dD and ddelta_bias over samples and segments. Kernels of their own do
// that, or, where the plan says so, the scan itself: of the blocks that share a sum, the last one
// to end adds it up, while the cache still has the parts. Which block that is differs from run to
// run, but the order of the sum does not.
#pragma once

#include "ordered_sum.cuh"
#include "scan_common.cuh"

namespace cmimtl::cuda {

// Adds up dB and dC of kCount neighbouring states at one step. They are zero at steps past the
// sample's own.
template <class T, int kCount>
__device__ void sum_tiles(const ScanBackward& q, const Partial& partial, int64_t sample, int64_t group, int64_t step,
                          int64_t state) {
  const ScanSizes& s = q.forward.size;
  const int64_t tile = s.batch * s.ngroups * s.steps * s.dstate;
  const int64_t from = ((sample * s.ngroups + group) * s.steps + step) * s.dstate + state;
  const int64_t at = ((sample * s.steps + step) * s.ngroups + group) * s.dstate + state;
  Vector<float, kCount> dB{}, dC{};
  if (step < valid_length(q.forward.lengths, s.length, sample) * q.forward.streams) {
    dB = ordered_sum<kCount>(partial.dB + from, tile, partial.tiles);
    dC = ordered_sum<kCount>(partial.dC + from, tile, partial.tiles);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) dB[i] *= kLn2;  // since d was times log2 e
  store_vector(static_cast<T*>(q.dB) + at, from_floats<T, kCount>(dB.data));
  store_vector(static_cast<T*>(q.dC) + at, from_floats<T, kCount>(dC.data));
}

// A thread adds up one element of dB and one of dC.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_tiles_kernel(const ScanBackward q, const Partial partial) {
  const ScanSizes& s = q.forward.size;
  const int64_t row = s.ngroups * s.dstate, at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= s.batch * s.steps * row) return;
  sum_tiles<T, 1>(q, partial, at / row / s.steps, at % row / s.dstate, at / row % s.steps, at % s.dstate);
}

template <class T>
void launch_sum_tiles(const ScanBackward& q, const Partial& partial, void* stream) {
  const ScanSizes& s = q.forward.size;
  const int64_t size = s.batch * s.steps * s.ngroups * s.dstate;
  if (size == 0) return;
  launch(sum_tiles_kernel<T>, dim3(unsigned(ceil_div(size, kThreads))), dim3(kThreads), 0, stream, q, partial);
}

// What all threads of a block do together at its end: the block takes its tickets, and adds up the
// sums for which it is the last one. Without kAnyStates, 4 divides dstate, so the code for other
// rows is spared.
template <class T, class Place, bool kAnyStates>
struct SumsOfBlocks {
  const ScanBackward& q;
  const Partial& partial;
  const Place& place;
  const ScanSizes& s = q.forward.size;

  __device__ void add_if_last() const {
    if (partial.maps_done && is_last(partial.maps_done + place.sample * s.ngroups + place.group, partial.tiles))
      fours() ? sum_maps<4>() : sum_maps<1>();
    const int64_t tiles = s.ngroups * partial.tiles, tile = place.group * partial.tiles + place.tile;
    const int64_t together = place.sample / kSamplesOfLast, begin = together * kSamplesOfLast;
    const int64_t samples = min(s.batch - begin, kSamplesOfLast);
    if (!is_last(partial.samples_done + together * tiles + tile, samples)) return;
    // First the samples are added up, then their sums where there is more than one. The loops here
    // and in sum_weights keep the code small: twelve sums written out took two fifths of a kernel's
    // compilation.
    int64_t first = begin, count = samples;
#pragma unroll 1
    for (bool all = !partial.sums_done;; all = true) {
      const int64_t to = s.batch + together;
      sum_weights(first, count, static_cast<float*>(all ? q.dA : row(partial.dA, s.dstate, to)),
                  static_cast<float*>(all || !q.dD ? q.dD : row(partial.dD, 1, to)),
                  static_cast<float*>(all || !q.ddelta_bias ? q.ddelta_bias : row(partial.dbias, 1, to)));
      if (all || !is_last(partial.sums_done + tile, partial.sums)) return;
      first = s.batch, count = partial.sums;
    }
  }

  // Whether this is the last of `blocks` blocks to come here. If it is, it sees what the others
  // have written before.
  __device__ bool is_last(unsigned* ticket, int64_t blocks) const {
    unsigned* const last = shared_memory<unsigned>();
    // By this barrier all threads have written their parts, and none needs the shared memory any
    // more.
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();  // a block that sees the ticket also sees the parts
      *last = atomicAdd(ticket, 1u) == unsigned(blocks) - 1;
      __threadfence();
    }
    __syncthreads();
    return *last;
  }

  __device__ bool fours() const { return !kAnyStates || s.dstate % 4 == 0; }

  // Adds up dB and dC of this sample and group. The plan asks for it only where they are few
  // (kMostOfMapsOfLast).
  template <int kCount>
  __device__ void sum_maps() const {
    const int dstate = int(s.dstate), size = int(s.steps) * dstate;
    for (int i = int(threadIdx.x) * kCount; i < size; i += kThreads * kCount)
      sum_tiles<T, kCount>(q, partial, place.sample, place.group, i / dstate, i % dstate);
  }

  // Adds up rows [first, first + count) of the parts of dA, dD and ddelta_bias, for this block's
  // channels. A null pointer gets no sum.
  __device__ void sum_weights(int64_t first, int64_t count, float* A, float* D, float* bias) const {
    if (fours()) sum_rows<4>(partial.dA, s.dstate, first, count, A);
#pragma unroll 1
    for (int i = fours() ? 1 : 0; i < 3; ++i) {
      float* const to = i == 0 ? A : i == 1 ? D : bias;
      if (to)
        sum_rows<1>(i == 0 ? partial.dA : i == 1 ? partial.dD : partial.dbias, i == 0 ? s.dstate : 1, first, count, to);
    }
  }

  // Adds up rows of (dim, width) of `parts` into the one row `out`.
  template <int kCount>
  __device__ void sum_rows(const float* parts, int64_t width, int64_t first, int64_t count, float* out) const {
    const int64_t channels = min(place.channels, kThreads / place.channel_lanes), begin = place.first_channel * width;
    for (int64_t i = begin + threadIdx.x * kCount; i < begin + channels * width; i += kThreads * kCount)
      store_vector(out + i, ordered_sum<kCount>(row(parts, width, first) + i, s.dim * width, count));
  }
  template <class X>
  __device__ X* row(X* parts, int64_t width, int64_t i) const {
    return parts + i * s.dim * width;
  }
};

}  // namespace cmimtl::cuda
