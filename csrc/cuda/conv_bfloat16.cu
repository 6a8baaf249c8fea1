#include "conv.cuh"

namespace cmimtl::cuda {

template void launch_conv_forward<bfloat16>(const ConvForward&, void*);
template void launch_conv_backward<bfloat16>(const ConvBackward&, float*, float*, void*);

}  // namespace cmimtl::cuda
