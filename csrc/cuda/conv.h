// Sizes of the convolution's launches, and what conv_<type>.cu instantiate.
#pragma once

#include "plan.h"
#include "selective_scan.h"

namespace cmimtl::cuda {

// Steps of a thread. A tile reads width - 1 steps of its neighbour: 9 % more for 32 steps and 4 taps, but from the L2
// cache; backward it also leaves its width + 1 sums in the workspace.
constexpr int64_t kConvForwardSteps = 32, kConvBackwardSteps = 64;

inline int64_t conv_blocks(const ConvForward& p, int64_t steps_of_tile) {
  return p.batch * ceil_div(p.length, steps_of_tile) * ceil_div(p.dim, kThreads);
}

template <class T>
void launch_conv_forward(const ConvForward& p, void* stream);
// dweight: (batch * tiles, dim, width), dbias: (batch * tiles, dim), float.
template <class T>
void launch_conv_backward(const ConvBackward& q, float* dweight, float* dbias, void* stream);

}  // namespace cmimtl::cuda
