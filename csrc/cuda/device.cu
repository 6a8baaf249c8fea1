// The host's part of device.h, where nvcc compiles it: launches, and the exceptions where the
// device refuses one.
#include "device.h"

#ifdef __CUDACC__

#include <stdexcept>
#include <string>

namespace cmimtl::cuda {
namespace {

[[noreturn]] void refused(const std::string& what, cudaError_t status) {
  cudaGetLastError();  // takes the error away, or the next launch would be blamed for it
  throw std::runtime_error("cmimtl: CUDA refused " + what + ": " + cudaGetErrorString(status));
}

}  // namespace

void clear_memory(void* p, size_t bytes, void* stream) {
  const cudaError_t status = cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(stream));
  if (status != cudaSuccess) refused("to clear " + std::to_string(bytes) + " bytes", status);
}

void launch(const void* kernel, dim3 grid, dim3 block, size_t shared, void* stream, void** arguments) {
  constexpr size_t kWithoutOptIn = 48 << 10;
  cudaError_t status = cudaSuccess;
  if (shared > kWithoutOptIn)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (status == cudaSuccess)
    status = cudaLaunchKernel(kernel, grid, block, arguments, shared, static_cast<cudaStream_t>(stream));
  if (status == cudaSuccess) return;
  const auto size = [](dim3 d) { return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z); };
  refused("a launch of " + size(grid) + " blocks of " + size(block) + " threads with " + std::to_string(shared) +
              " bytes of shared memory",
          status);
}

}  // namespace cmimtl::cuda

#endif
