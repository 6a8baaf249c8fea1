#include "scan_forward.cuh"

namespace cmimtl::cuda {

template void launch_forward<float>(const ScanForward&, const ScanPlan&, const Split&, void*);

}  // namespace cmimtl::cuda
