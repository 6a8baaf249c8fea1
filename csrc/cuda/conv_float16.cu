#include "conv.cuh"

namespace cmimtl::cuda {

template void launch_conv_forward<float16>(const ConvForward&, void*);
template void launch_conv_backward<float16>(const ConvBackward&, float*, float*, void*);

}  // namespace cmimtl::cuda
