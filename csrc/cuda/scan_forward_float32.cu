#include "scan_forward.cuh"

namespace cmimtl::cuda {

template ForwardKernels forward_kernels<float>(const ScanPlan&, int streams, bool gate);

}  // namespace cmimtl::cuda
