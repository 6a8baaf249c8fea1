// The device and the stream that a call runs on, from PyTorch; or neither, where the kernels run on a CPU in tests.
#pragma once

#include <torch/csrc/stable/tensor.h>

#ifndef CMIMTL_CUDA_ON_CPU
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace cmimtl::cuda {

#ifdef CMIMTL_CUDA_ON_CPU

struct CurrentStream {
  explicit CurrentStream(const torch::stable::Tensor&) {}
  void* stream = nullptr;
};

#else

// Makes the tensor's device current for as long as it lives.
class CurrentStream {
 public:
  explicit CurrentStream(const torch::stable::Tensor& on) : guard_(on.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  }
  void* stream = nullptr;  // a cudaStream_t

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

#endif

}  // namespace cmimtl::cuda
