// csrc/cuda/plan.h for test_plan.py, by ctypes.
#include "cuda/plan.h"

namespace {

using cmimtl::ScanSizes;
using cmimtl::cuda::ScanPlan;

}  // namespace

extern "C" {

__attribute__((visibility("default"))) ScanPlan plan_forward(ScanSizes sizes) {
  return cmimtl::cuda::plan_forward(sizes);
}
__attribute__((visibility("default"))) ScanPlan plan_forward_in_pairs(ScanSizes sizes) {
  return cmimtl::cuda::plan_forward(sizes, true);
}
__attribute__((visibility("default"))) ScanPlan plan_backward(ScanSizes sizes) {
  return cmimtl::cuda::plan_backward(sizes);
}
__attribute__((visibility("default"))) bool has_pairs(cmimtl::In x, int64_t element_bytes) {
  return cmimtl::cuda::has_pairs(x, element_bytes);
}
__attribute__((visibility("default"))) int64_t split_elements(ScanSizes sizes, ScanPlan plan) {
  return cmimtl::cuda::split_elements(sizes, plan);
}

}  // extern "C"
