// The forward scan: dispatch, and the passes of one that is split in time.
#include "kernels.h"
#include "split.h"

namespace cmimtl::cuda {
namespace {

auto kernel_of(DType dtype) {
  return dtype == DType::kFloat32    ? forward_kernel<float>
         : dtype == DType::kBFloat16 ? forward_kernel<bfloat16>
                                     : forward_kernel<float16>;
}

}  // namespace

// Pairs of channels change nothing here: they fill the chip, so time is not split, nor without them.
int64_t forward_elements(const ScanSizes& s) {
  return split_elements(s, plan_forward(s, false, warps_to_fill(kMostWarps)));
}

void scan_forward(const ScanForward& p, float* workspace, void* stream) {
  const ScanPlan plan = plan_forward(p.size, channels_in_pairs(p), warps_to_fill(kMostWarps));
  if (plan.blocks(p.size) == 0) return;
  const auto run = [&](const Split& split, bool gate) {
    const ForwardKernel kernel = kernel_of(p.dtype)(plan, p.streams, gate);
    launch(kernel.scan, dim3(unsigned(plan.blocks(p.size))), dim3(kernel.sizes.threads), kernel.sizes.shared_bytes,
           stream, p, split);
  };
  Split split = make_split(p.size, plan, workspace);
  split.paired_maps = states_in_pairs(p);
  if (plan.segments > 1) {
    split.summary = true;
    run(split, false);
    carry_states(p, split, false, static_cast<const float*>(p.initial_state), static_cast<float*>(p.last_state),
                 stream);
    split.summary = false;
  }
  run(split, p.z[0].data);
}

LaunchSizes scan_forward_launch(DType dtype, const ScanPlan& plan, int streams, bool gate) {
  return kernel_of(dtype)(plan, streams, gate).sizes;
}

}  // namespace cmimtl::cuda
