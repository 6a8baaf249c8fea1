// The device and the stream that a call runs on, from PyTorch. There is neither where tests run the
// kernels on a CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#ifndef CMIMTL_CUDA_ON_CPU
#include <dlfcn.h>
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

// The only function of libtorch_cuda that is needed. It is not linked, so that the library also
// loads beside a torch without CUDA. It is looked up at the first CUDA tensor, when libtorch_cuda
// is there too.
inline decltype(&aoti_torch_get_current_cuda_stream) stream_getter() {
  static const auto getter = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = torch_cuda ? dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream") : nullptr;
    STD_TORCH_CHECK(symbol, "cmimtl: torch must be a CUDA build to run CUDA kernels, got one without libtorch_cuda.so");
    return reinterpret_cast<decltype(&aoti_torch_get_current_cuda_stream)>(symbol);
  }();
  return getter;
}

// Makes the tensor's device current for as long as this object lives.
class CurrentStream {
 public:
  explicit CurrentStream(const torch::stable::Tensor& on) : guard_(on.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(stream_getter()(on.get_device_index(), &stream));
  }
  void* stream = nullptr;  // a cudaStream_t

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

#endif

}  // namespace cmimtl::cuda
