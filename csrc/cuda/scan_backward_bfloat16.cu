#include "scan_backward_launch.cuh"

namespace cmimtl::cuda {

template BackwardKernels backward_kernels<bfloat16, 1>(const ScanPlan&, bool gate);
template void launch_sum_tiles<bfloat16>(const ScanBackward&, const Partial&, void*);

}  // namespace cmimtl::cuda
