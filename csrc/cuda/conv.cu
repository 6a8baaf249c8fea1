// The convolution: dispatch, and the sums over samples and tiles.
#include "conv.h"
#include "kernels.h"
#include "split.h"

namespace cmimtl::cuda {
namespace {

int64_t parts(const ConvForward& p) { return p.batch * ceil_div(p.length, kConvBackwardSteps); }

}  // namespace

void conv_forward(const ConvForward& p, void* stream) {
  if (conv_blocks(p, kConvForwardSteps) == 0) return;
  const auto run = p.dtype == DType::kFloat32    ? launch_conv_forward<float>
                   : p.dtype == DType::kBFloat16 ? launch_conv_forward<bfloat16>
                                                 : launch_conv_forward<float16>;
  run(p, stream);
}

int64_t conv_backward_elements(const ConvForward& p) { return parts(p) * p.dim * (p.width + 1); }

void conv_backward(const ConvBackward& q, float* workspace, void* stream) {
  const ConvForward& p = q.forward;
  float *dweight = workspace, *dbias = workspace + parts(p) * p.dim * p.width;
  if (conv_blocks(p, kConvBackwardSteps) > 0) {
    const auto run = p.dtype == DType::kFloat32    ? launch_conv_backward<float>
                     : p.dtype == DType::kBFloat16 ? launch_conv_backward<bfloat16>
                                                   : launch_conv_backward<float16>;
    run(q, dweight, dbias, stream);
  }
  sum_parts({{{dweight, p.dim * p.width, q.dweight}, {dbias, p.dim, q.dbias}}}, parts(p), stream);
}

}  // namespace cmimtl::cuda
