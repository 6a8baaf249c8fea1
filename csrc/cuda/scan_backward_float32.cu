#include "scan_backward_launch.cuh"

namespace cmimtl::cuda {

template void launch_backward<float>(const ScanBackward&, const ScanPlan&, const Split&, const Partial&, void*);
template void launch_sum_tiles<float>(const ScanBackward&, const ScanPlan&, const Partial&, void*);

}  // namespace cmimtl::cuda
