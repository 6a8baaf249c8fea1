#include "scan_forward.cuh"

namespace cmimtl::cuda {

template ForwardKernel forward_kernel<float16>(const ScanPlan&, int streams, bool gate);

}  // namespace cmimtl::cuda
