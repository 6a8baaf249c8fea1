#include "scan_backward_launch.cuh"

namespace cmimtl::cuda {

template void launch_backward<float16>(const ScanBackward&, const ScanPlan&, const Split&, const Partial&, void*);
template void launch_sum_tiles<float16>(const ScanBackward&, const ScanPlan&, const Partial&, void*);

}  // namespace cmimtl::cuda
