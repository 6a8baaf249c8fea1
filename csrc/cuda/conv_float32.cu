#include "conv.cuh"

namespace cmimtl::cuda {

template void launch_conv_forward<float>(const ConvForward&, void*);
template void launch_conv_backward<float>(const ConvBackward&, float*, float*, void*);

}  // namespace cmimtl::cuda
