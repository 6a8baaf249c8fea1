// csrc/cuda/plan.h and conv.h for test_plan.py, by ctypes.
#include "cuda/conv.h"
#include "cuda/plan.h"

namespace {

using cmimtl::ConvForward;
using cmimtl::ScanForward;
using cmimtl::ScanSizes;
using cmimtl::cuda::ScanPlan;

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED ScanPlan plan_forward(ScanSizes sizes) { return cmimtl::cuda::plan_forward(sizes); }
EXPORTED ScanPlan plan_forward_in_pairs(ScanSizes sizes) { return cmimtl::cuda::plan_forward(sizes, true); }
EXPORTED ScanPlan plan_backward(ScanSizes sizes) { return cmimtl::cuda::plan_backward(sizes); }
EXPORTED bool sums_weights(ScanPlan plan, ScanSizes sizes) { return plan.sums_weights(sizes); }
EXPORTED bool sums_maps(ScanPlan plan, ScanSizes sizes) { return plan.sums_maps(sizes); }
EXPORTED int64_t sums_of_samples(ScanPlan plan, ScanSizes sizes) { return plan.sums_of_samples(sizes); }
EXPORTED int64_t blocks(ScanPlan plan, ScanSizes sizes) { return plan.blocks(sizes); }
EXPORTED int64_t split_elements(ScanSizes sizes, ScanPlan plan) { return cmimtl::cuda::split_elements(sizes, plan); }
EXPORTED bool has_pairs(cmimtl::In x, int64_t element_bytes) { return cmimtl::cuda::has_pairs(x, element_bytes); }
EXPORTED bool channels_in_pairs(const ScanForward* p) { return cmimtl::cuda::channels_in_pairs(*p); }
EXPORTED bool states_in_pairs(const ScanForward* p) { return cmimtl::cuda::states_in_pairs(*p); }
EXPORTED int64_t bytes_of_scan_forward() { return sizeof(ScanForward); }

// Of the convolution's two passes.
EXPORTED int64_t conv_blocks(int64_t batch, int64_t length, int64_t dim, bool backward) {
  ConvForward p{};
  p.batch = batch, p.length = length, p.dim = dim;
  return cmimtl::cuda::conv_blocks(p, backward ? cmimtl::cuda::kConvBackwardSteps : cmimtl::cuda::kConvForwardSteps);
}
