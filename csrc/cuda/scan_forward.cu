// The host's part of the forward scan: it chooses the kernels, and launches the passes of a scan
// that is split over time.
#include "kernels.h"
#include "split.h"

namespace cmimtl::cuda {
namespace {

template <class T>
ForwardKernels kernels_of_type(const ScanPlan& plan, int streams, bool gate) {
  return streams == 1 ? forward_kernels<T, 1>(plan, gate) : forward_kernels<T, 2>(plan, gate);
}

ForwardKernels kernels_of(DType dtype, const ScanPlan& plan, int streams, bool gate) {
  const auto of = dtype == DType::kFloat32    ? kernels_of_type<float>
                  : dtype == DType::kBFloat16 ? kernels_of_type<bfloat16>
                                              : kernels_of_type<float16>;
  return of(plan, streams, gate);
}

}  // namespace

// Channels are paired only where the GPU is full either way, and then the scan is not split over
// time, so pairing never changes the workspace.
int64_t forward_elements(const ScanSizes& s) {
  return split_elements(s, plan_forward(s, false, warps_to_fill(kMostWarps)));
}

void scan_forward(const ScanForward& p, float* workspace, void* stream) {
  const ScanPlan plan = plan_forward(p.size, channels_in_pairs(p), warps_to_fill(kMostWarps));
  if (plan.blocks(p.size) == 0) return;
  Split split = make_split(p.size, plan, false, workspace);
  split.paired_maps = states_in_pairs(p);
  const auto run = [&](const ForwardKernel& kernel, const Segments& segments) {
    launch(kernel.run, dim3(unsigned(plan.blocks(p.size, segments))), dim3(kernel.sizes.threads),
           kernel.sizes.shared_bytes, stream, p, split);
  };
  const ForwardKernels kernels = kernels_of(p.dtype, plan, p.streams, p.z[0].data);
  if (plan.segments > 1) {
    run(kernels.summary, split.summed);
    carry_states(p, split, false, static_cast<const float*>(p.initial_state), stream);
  }
  run(kernels.scan, split.all());
}

LaunchSizes scan_forward_launch(DType dtype, const ScanPlan& plan, int streams, bool gate) {
  return kernels_of(dtype, plan, streams, gate).scan.sizes;
}

}  // namespace cmimtl::cuda
