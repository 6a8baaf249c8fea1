#include "scan_backward_launch.cuh"

namespace cmimtl::cuda {

template void launch_backward<bfloat16>(const ScanBackward&, const ScanPlan&, const Split&, const Partial&, void*);
template void launch_sum_tiles<bfloat16>(const ScanBackward&, const ScanPlan&, const Partial&, void*);

}  // namespace cmimtl::cuda
