#include "scan_forward.cuh"

namespace cmimtl::cuda {

template ForwardKernel forward_kernel<float>(const ScanPlan&, int streams, bool gate);

}  // namespace cmimtl::cuda
