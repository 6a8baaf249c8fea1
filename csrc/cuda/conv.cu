// The host's part of the convolution: it chooses the kernels, and launches the sums over samples
// and tiles.
#include "conv.h"
#include "kernels.h"
#include "split.h"

namespace cmimtl::cuda {
namespace {

// The number of tiles of all samples, each of which leaves a part of the sums.
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
  const PartsOfWeights weights{{
      {.parts = dweight, .size = p.dim * p.width, .out = q.dweight},
      {.parts = dbias, .size = p.dim, .out = q.dbias},
  }};
  sum_parts(weights, parts(p), stream);
}

}  // namespace cmimtl::cuda
