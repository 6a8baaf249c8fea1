// The entry points of the CUDA kernels: what bindings.cpp calls. C++ alone. `stream` is a cudaStream_t. They throw
// std::runtime_error where the device refuses a launch or to clear memory.
#pragma once

#include "plan.h"
#include "selective_scan.h"

namespace cmimtl::cuda {

// workspace: forward_elements(p.size) floats.
int64_t forward_elements(const ScanSizes& s);
void scan_forward(const ScanForward& p, float* workspace, void* stream);

// workspace: backward_elements(q.forward.size) floats.
int64_t backward_elements(const ScanSizes& s);
void scan_backward(const ScanBackward& q, float* workspace, void* stream);

// How the kernel of a scan is launched that the plan, the streams and the gate choose.
LaunchSizes scan_forward_launch(DType dtype, const ScanPlan& plan, int streams, bool gate);
LaunchSizes scan_backward_launch(DType dtype, const ScanPlan& plan, int streams, bool gate);

void conv_forward(const ConvForward& p, void* stream);

// workspace: conv_backward_elements(q.forward) floats.
int64_t conv_backward_elements(const ConvForward& p);
void conv_backward(const ConvBackward& q, float* workspace, void* stream);

}  // namespace cmimtl::cuda
