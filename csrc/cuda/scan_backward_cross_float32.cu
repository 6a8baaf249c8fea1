#include "scan_backward_launch.cuh"

namespace cmimtl::cuda {

template BackwardKernels backward_kernels<float, 2>(const ScanPlan&, bool gate);

}  // namespace cmimtl::cuda
