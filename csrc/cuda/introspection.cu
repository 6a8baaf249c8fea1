// What the built library tells of its scans, without a device: a C interface for the static report and for tests.
#include <string>

#include "device.h"
#include "kernels.h"
#include "traffic.h"

#define CMIMTL_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace cmimtl;
using namespace cmimtl::cuda;

ScanPlan plan_of(bool backward, const ScanSizes& s) {
  // Tensors without gaps: pairs of channels are aligned words where a group has an even number of them.
  return backward ? plan_backward(s) : plan_forward(s, s.dim / s.ngroups % 2 == 0, warps_to_fill(kMostWarps));
}

}  // namespace

// Of the kernel whose threads have `states` states of `channels` channels, `lanes` to a channel.
CMIMTL_EXPORT void cmimtl_cuda_scan_launch(bool backward, int dtype, int streams, bool gate, int states, int lanes,
                                           int channels, int* threads, int* shared_bytes) {
  ScanPlan plan{};
  plan.states = states, plan.lanes = lanes, plan.channels = channels;
  const auto launch = backward ? scan_backward_launch : scan_forward_launch;
  const LaunchSizes sizes = launch(DType(dtype), plan, streams, gate);
  *threads = sizes.threads, *shared_bytes = sizes.shared_bytes;
}

// traffic.h as comma-separated text, its first line the names of the columns; valid until the next call of the thread.
CMIMTL_EXPORT const char* cmimtl_cuda_scan_traffic(bool backward, int64_t batch, int64_t length, int64_t dim,
                                                   int64_t dstate, int64_t ngroups, int64_t checkpoint_every,
                                                   ScanOptions options) {
  const ScanSizes sizes = scan_sizes(options.streams, batch, length, dim, dstate, ngroups, checkpoint_every);
  const auto traffic = backward ? backward_traffic : forward_traffic;
  thread_local std::string text;
  text = "tensor,read,written,read_by_blocks,again,least\n";
  for (const Moved& m : traffic(sizes, plan_of(backward, sizes), options)) {
    text += m.tensor;
    for (const int64_t bytes : {m.read, m.written, m.read_by_blocks, m.again, m.least})
      text += ',' + std::to_string(bytes);
    text += '\n';
  }
  return text.c_str();
}
