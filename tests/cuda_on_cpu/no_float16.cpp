// In place of csrc/cuda's *_float16.cu, whose kernels are those of bfloat16 but for two conversions: a build that tries
// memory and order, and no values, does not compile them a second time.
#include <stdexcept>

#include "conv.h"
#include "device.h"
#include "split.h"

namespace cmimtl::cuda {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error("this build has no kernels of float16"); }

}  // namespace

template <>
ForwardKernels forward_kernels<float16, 1>(const ScanPlan&, bool) { refuse(); }
template <>
ForwardKernels forward_kernels<float16, 2>(const ScanPlan&, bool) { refuse(); }
template <>
BackwardKernels backward_kernels<float16, 1>(const ScanPlan&, bool) { refuse(); }
template <>
BackwardKernels backward_kernels<float16, 2>(const ScanPlan&, bool) { refuse(); }
template <>
void launch_sum_tiles<float16>(const ScanBackward&, const Partial&, void*) { refuse(); }
template <>
void launch_conv_forward<float16>(const ConvForward&, void*) { refuse(); }
template <>
void launch_conv_backward<float16>(const ConvBackward&, float*, float*, void*) { refuse(); }

}  // namespace cmimtl::cuda
