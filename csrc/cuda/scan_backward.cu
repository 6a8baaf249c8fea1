// The host's part of the backward scan: it chooses the kernels, launches the passes of a scan that
// is split over time, and the sums that the scan does not add up itself.
#include "kernels.h"
#include "split.h"

namespace cmimtl::cuda {
namespace {

template <class T>
BackwardKernels kernels_of_type(const ScanPlan& plan, int streams, bool gate) {
  return streams == 1 ? backward_kernels<T, 1>(plan, gate) : backward_kernels<T, 2>(plan, gate);
}

// The functions that differ between the storage types.
struct OfType {
  BackwardKernels (*kernels)(const ScanPlan& plan, int streams, bool gate);
  void (*sum_tiles)(const ScanBackward& q, const Partial& partial, void* stream);
};
template <class T>
constexpr OfType kOf{.kernels = kernels_of_type<T>, .sum_tiles = launch_sum_tiles<T>};

OfType of_type(DType dtype) {
  return dtype == DType::kFloat32 ? kOf<float> : dtype == DType::kBFloat16 ? kOf<bfloat16> : kOf<float16>;
}

}  // namespace

int64_t backward_elements(const ScanSizes& s) { return BackwardWorkspace(s, plan_backward(s), nullptr).elements; }

void scan_backward(const ScanBackward& q, float* workspace, void* stream) {
  const ScanForward& p = q.forward;
  const ScanSizes& s = p.size;
  const ScanPlan plan = plan_backward(s);
  const BackwardWorkspace memory(s, plan, workspace);
  const Split& split = memory.split;
  const Partial& partial = memory.partial;
  const OfType of = of_type(p.dtype);
  if (memory.tickets > 0) clear_memory(memory.first_ticket, size_t(memory.tickets) * sizeof(unsigned), stream);
  if (plan.blocks(s) > 0) {
    const BackwardKernels kernels = of.kernels(plan, p.streams, p.z[0].data);
    const auto run = [&](const BackwardKernel& kernel, const Segments& segments) {
      launch(kernel.run, dim3(unsigned(plan.blocks(s, segments))), dim3(kernel.sizes.threads),
             kernel.sizes.shared_bytes, stream, q, split, partial);
    };
    if (plan.segments > 1) {
      run(kernels.summary, split.summed);
      carry_states(p, split, true, static_cast<const float*>(q.dlast_state), stream);
    }
    run(kernels.scan, split.all());
  }
  if (!plan.sums_maps(s)) of.sum_tiles(q, partial, stream);
  if (plan.sums_weights(s)) return;
  const PartsOfWeights weights{{
      {.parts = partial.dA, .size = s.dim * s.dstate, .out = q.dA},
      {.parts = partial.dD, .size = s.dim, .out = q.dD},
      {.parts = partial.dbias, .size = s.dim, .out = q.ddelta_bias},
  }};
  sum_parts(weights, s.batch * plan.segments, stream);
}

LaunchSizes scan_backward_launch(DType dtype, const ScanPlan& plan, int streams, bool gate) {
  return of_type(dtype).kernels(plan, streams, gate).scan.sizes;
}

}  // namespace cmimtl::cuda
