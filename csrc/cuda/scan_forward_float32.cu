#include "scan_forward_launch.cuh"

namespace cmimtl::cuda {

template ForwardKernels forward_kernels<float>(const ScanPlan&, int streams, bool gate);

}  // namespace cmimtl::cuda
