// Floats of the kernels' workspaces, for test_plan.py, by ctypes.
#include "kernels.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int64_t forward_elements(cmimtl::ScanSizes sizes) { return cmimtl::cuda::forward_elements(sizes); }
EXPORTED int64_t backward_elements(cmimtl::ScanSizes sizes) { return cmimtl::cuda::backward_elements(sizes); }
EXPORTED int64_t conv_backward_elements(int64_t batch, int64_t length, int64_t dim, int64_t width) {
  cmimtl::ConvForward p{};
  p.batch = batch, p.length = length, p.dim = dim, p.width = width;
  return cmimtl::cuda::conv_backward_elements(p);
}
