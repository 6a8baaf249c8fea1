// How a thread goes along one channel of a tensor of (batch, step, channel) with any strides.
#pragma once

#include "device.h"
#include "selective_scan.h"

namespace cmimtl::cuda {

// The valid steps of a sample. Lengths on a GPU are read by nobody before: they are clamped here.
__device__ inline int64_t valid_length(const int64_t* lengths, int64_t length, int64_t sample) {
  const int64_t n = lengths ? lengths[sample] : length;
  // One comparison for nearly all: with two, the cross scan's forward kernels spill registers.
  return uint64_t(n) <= uint64_t(length) ? n : n < 0 ? 0 : length;
}

// A pointer to one sample, channel and step of a tensor. It goes forwards in time, or backwards
// with `reverse`. next() goes one step, by a number of bytes that the whole block shares and that
// therefore needs no register of a thread; advance() goes any number of steps. The stride of a step
// fits 32 bits, which the bindings have checked, so that an address is one instruction.
template <class T>
struct StridedPointer {
  T* p;
  int stride;     // elements from a step to the next one in the order of processing
  int64_t bytes;  // the same in bytes

  StridedPointer() = default;
  template <class Tensor>
  __device__ StridedPointer(const Tensor& x, int64_t sample, int64_t channel, int64_t first, bool reverse)
      : p(static_cast<T*>(const_cast<void*>(static_cast<const void*>(x.data))) + sample * x.batch + first * x.step +
          channel * x.dim),
        stride(stride_of_lane(int(reverse ? -x.step : x.step))),
        bytes(int64_t(sizeof(T)) * int(reverse ? -x.step : x.step)) {}
  __device__ T& operator[](int i) const { return *step_on(p, i, stride); }
  __device__ T* here() const { return in_global_memory(p); }
  __device__ void next() { p = bytes_on(p, bytes); }
  __device__ void advance(int steps) { p = step_on(p, steps, stride); }
};

// Stores zeros at steps [begin, end) of one sample and channel of a tensor that may be absent.
template <class T>
__device__ void clear_steps(const Out& x, int64_t sample, int64_t channel, int64_t begin, int64_t end) {
  if (!x.data) return;
  T* p = static_cast<T*>(x.data) + sample * x.batch + channel * x.dim;
  // The compiler would unroll it by four, and the seven calls of a backward kernel would be a fifth
  // of its code.
#pragma unroll 1
  for (int64_t i = begin; i < end; ++i) p[i * x.step] = T{};
}

}  // namespace cmimtl::cuda
