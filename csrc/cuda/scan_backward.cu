// The backward scan: dispatch, the passes of one that is split in time, and the sums over blocks, samples and segments.
#include <utility>

#include "kernels.h"
#include "split.h"

namespace cmimtl::cuda {
namespace {

int64_t maps(const ScanSizes& s, const ScanPlan& plan) {
  return plan.tiles_per_group * s.batch * s.steps * s.ngroups * s.dstate;
}

template <class T>
void run(const ScanBackward& q, const ScanPlan& plan, Split split, const Partial& partial, void* stream) {
  const ScanForward& p = q.forward;
  if (plan.blocks(p.size) > 0) {
    if (plan.segments > 1) {
      split.summary = true;
      launch_backward<T>(q, plan, split, partial, stream);
      carry_states(p, split, true, static_cast<const float*>(q.dlast_state), static_cast<float*>(q.dinitial_state),
                   stream);
      split.summary = false;
    }
    launch_backward<T>(q, plan, split, partial, stream);
  }
  launch_sum_tiles<T>(q, plan, partial, stream);
}

}  // namespace

int64_t backward_elements(const ScanSizes& s) {
  const ScanPlan plan = plan_backward(s);
  return split_elements(s, plan) + 2 * maps(s, plan) + s.batch * plan.segments * s.dim * (s.dstate + 2);
}

void scan_backward(const ScanBackward& q, float* workspace, void* stream) {
  const ScanSizes& s = q.forward.size;
  const ScanPlan plan = plan_backward(s);
  // Where dstate is a multiple of 4, so is all that comes before the sums of step sizes: rows of states stay aligned.
  float* next = workspace;
  const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
  const int64_t parts = s.batch * plan.segments;
  Partial partial{};
  partial.dA = take(parts * s.dim * s.dstate);
  const Split split = make_split(s, plan, take(split_elements(s, plan)));
  partial.dB = take(maps(s, plan)), partial.dC = take(maps(s, plan));
  partial.dD = take(parts * s.dim), partial.dbias = take(parts * s.dim);

  const auto run_typed = q.forward.dtype == DType::kFloat32    ? run<float>
                         : q.forward.dtype == DType::kBFloat16 ? run<bfloat16>
                                                               : run<float16>;
  run_typed(q, plan, split, partial, stream);
  sum_parts(partial.dA, parts, s.dim * s.dstate, static_cast<float*>(q.dA), stream);
  if (q.dD) sum_parts(partial.dD, parts, s.dim, static_cast<float*>(q.dD), stream);
  if (q.ddelta_bias) sum_parts(partial.dbias, parts, s.dim, static_cast<float*>(q.ddelta_bias), stream);
}

}  // namespace cmimtl::cuda
