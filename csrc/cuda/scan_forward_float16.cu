#include "scan_forward_launch.cuh"

namespace cmimtl::cuda {

template ForwardKernels forward_kernels<float16, 1>(const ScanPlan&, bool gate);

}  // namespace cmimtl::cuda
