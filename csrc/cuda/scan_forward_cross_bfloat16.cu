#include "scan_forward_launch.cuh"

namespace cmimtl::cuda {

template ForwardKernels forward_kernels<bfloat16, 2>(const ScanPlan&, bool gate);

}  // namespace cmimtl::cuda
