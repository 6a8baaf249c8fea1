// What the blocks of the backward scan leave in the workspace, added up: dB and dC over the tiles of channels, dA, dD and
// ddelta_bias over the samples. Launches of their own do it, or, of short scans (ScanPlan::sums_itself), the scan: of the
// blocks that share a sum, the last one to end, while the parts are in the cache. That is whichever it happens to be; the
// parts are added in their own order, the same in both ways.
#pragma once

#include "ordered_sum.cuh"
#include "scan_common.cuh"

namespace cmimtl::cuda {

// dB and dC of kCount neighbouring states at one step; zero at steps past the sample's own.
template <class T, int kCount>
__device__ void sum_tiles(const ScanBackward& q, const Partial& partial, int64_t sample, int64_t group, int64_t step,
                          int64_t state) {
  const ScanSizes& s = q.forward.size;
  const int64_t tile = s.batch * s.ngroups * s.steps * s.dstate;
  const int64_t from = ((sample * s.ngroups + group) * s.steps + step) * s.dstate + state;
  const int64_t at = ((sample * s.steps + step) * s.ngroups + group) * s.dstate + state;
  const int64_t* lengths = q.forward.lengths;
  Vector<float, kCount> dB{}, dC{};
  if (!lengths || step < lengths[sample] * q.forward.streams) {
    dB = ordered_sum<kCount>(partial.dB + from, tile, partial.tiles);
    dC = ordered_sum<kCount>(partial.dC + from, tile, partial.tiles);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) dB[i] *= kLn2;  // as d was times log2 e
  store_vector(static_cast<T*>(q.dB) + at, from_floats<T, kCount>(dB.data));
  store_vector(static_cast<T*>(q.dC) + at, from_floats<T, kCount>(dC.data));
}

// One thread for each element.
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

// The threads of the last block share the sums.
template <class T, class Place>
struct LastBlock {
  const ScanBackward& q;
  const Partial& partial;
  const Place& place;
  const ScanSizes& s = q.forward.size;

  __device__ void run() const {
    unsigned* const last = shared_memory<unsigned>();
    __syncthreads();  // all threads have written their parts, and none needs the shared memory any more
    if (threadIdx.x == 0) {
      __threadfence();  // who sees the tickets sees the parts
      last[0] = take_ticket(place.group * partial.tiles + place.tile, s.batch);
      last[1] = take_ticket(s.ngroups * partial.tiles + place.sample * s.ngroups + place.group, partial.tiles);
      __threadfence();
    }
    __syncthreads();
    if (last[0]) sum_weights();
    if (last[1]) s.dstate % 4 == 0 ? sum_maps<4>() : sum_maps<1>();
  }

  // Is this the last of `blocks` blocks to take one?
  __device__ bool take_ticket(int64_t at, int64_t blocks) const {
    return atomicAdd(partial.tickets + at, 1u) == unsigned(blocks) - 1;
  }

  __device__ void sum_weights() const {
    const int64_t first = place.first_channel, count = min(place.channels, kThreads / place.lanes);
    s.dstate % 4 == 0 ? sum_samples<4>(partial.dA, s.dstate, first, count, q.dA)
                      : sum_samples<1>(partial.dA, s.dstate, first, count, q.dA);
    if (q.dD) sum_samples<1>(partial.dD, 1, first, count, q.dD);
    if (q.ddelta_bias) sum_samples<1>(partial.dbias, 1, first, count, q.ddelta_bias);
  }

  // Of `count` channels that each have `width` numbers. parts: (batch, dim, width).
  template <int kCount>
  __device__ void sum_samples(const float* parts, int64_t width, int64_t first, int64_t count, void* out) const {
    for (int64_t i = first * width + threadIdx.x * kCount; i < (first + count) * width; i += kThreads * kCount)
      store_vector(static_cast<float*>(out) + i, ordered_sum<kCount>(parts + i, s.dim * width, s.batch));
  }

  template <int kCount>
  __device__ void sum_maps() const {
    for (int64_t i = threadIdx.x * kCount; i < s.steps * s.dstate; i += kThreads * kCount)
      sum_tiles<T, kCount>(q, partial, place.sample, place.group, i / s.dstate, i % s.dstate);
  }
};

}  // namespace cmimtl::cuda
