// How a thread goes along one channel of a (batch, step, channel) tensor of any strides.
#pragma once

#include "device.h"
#include "selective_scan.h"

namespace cmimtl::cuda {

// A tensor at one sample, channel and step; it walks forwards, or backwards with `reverse`: step by step, by a stride that
// the whole block shares and that so needs no register of a thread, or by any number of steps. Strides of a step fit 32
// bits, which the caller of the kernels has checked, so that an address is one instruction.
template <class T>
struct Walk {
  T* p;
  int stride;
  int64_t bytes;

  Walk() = default;
  template <class Tensor>
  __device__ Walk(const Tensor& x, int64_t sample, int64_t channel, int64_t first, bool reverse)
      : p(static_cast<T*>(const_cast<void*>(static_cast<const void*>(x.data))) + sample * x.batch + first * x.step +
          channel * x.dim),
        stride(stride_of_lane(int(reverse ? -x.step : x.step))),
        bytes(int64_t(sizeof(T)) * int(reverse ? -x.step : x.step)) {}
  __device__ T& operator[](int i) const { return *step_on(p, i, stride); }
  __device__ T* here() const { return in_global_memory(p); }
  __device__ void next() { p = bytes_on(p, bytes); }
  __device__ void advance(int steps) { p = step_on(p, steps, stride); }
};

// Zeros at steps [begin, end) of one sample and channel, if there is such a tensor.
template <class T>
__device__ void clear_steps(const Out& x, int64_t sample, int64_t channel, int64_t begin, int64_t end) {
  if (!x.data) return;
  T* p = static_cast<T*>(x.data) + sample * x.batch + channel * x.dim;
#pragma unroll 1  // by four, as the compiler would, the seven calls of a backward kernel are a fifth of what it compiles
  for (int64_t i = begin; i < end; ++i) p[i * x.step] = T{};
}

}  // namespace cmimtl::cuda
