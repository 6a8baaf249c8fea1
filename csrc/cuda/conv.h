// The sizes of the convolution's launches, and the functions that conv_<type>.cu instantiate.
#pragma once

#include "plan.h"
#include "selective_scan.h"

namespace cmimtl::cuda {

// The number of steps of a tile, which is a thread's. A tile also reads width - 1 steps of its
// neighbour: 9 % more for 32 steps and 4 taps, but from the L2 cache. Backward it also leaves its
// width + 1 sums in the workspace.
constexpr int64_t kConvForwardSteps = 32, kConvBackwardSteps = 64;

inline int64_t conv_blocks(const ConvForward& p, int64_t steps_of_tile) {
  return p.batch * ceil_div(p.length, steps_of_tile) * ceil_div(p.dim, kThreads);
}

template <class T>
void launch_conv_forward(const ConvForward& p, void* stream);
// dweight is (batch * tiles, dim, width) and dbias (batch * tiles, dim), float.
template <class T>
void launch_conv_backward(const ConvBackward& q, float* dweight, float* dbias, void* stream);

}  // namespace cmimtl::cuda
