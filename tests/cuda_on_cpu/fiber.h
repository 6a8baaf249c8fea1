// A stack of its own that is entered and left at will. x86-64 switches in six instructions; elsewhere ucontext does.
// Compiled without sanitizers; SIMT_ADDRESS and SIMT_THREAD say which one the kernels have, to be told of each switch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_USE_UCONTEXT 1
#include <ucontext.h>
#endif

#ifdef SIMT_ADDRESS
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#endif
#ifdef SIMT_THREAD
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace simt {

#ifndef SIMT_USE_UCONTEXT
// Saves the stack pointer to *from and goes on where `to` was saved.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
      "ret");
}
#endif

class Fiber {
 public:
  Fiber() {
    bottom_ = static_cast<char*>(map(nullptr, kGuard + kStack, 0)) + kGuard;
    mprotect(bottom_ - kGuard, kGuard, PROT_NONE);
  }
  Fiber(const Fiber&) = delete;
  ~Fiber() {
    forget();
    munmap(bottom_ - kGuard, kGuard + kStack);
  }

  // The next resume() begins entry(), which must never return.
  void start(void (*entry)()) {
#ifdef SIMT_ADDRESS
    __asan_unpoison_memory_region(bottom_, kStack);
    fake_stack_ = nullptr;
#endif
#ifdef SIMT_THREAD
    map(bottom_, kStack, MAP_FIXED);  // forgets the accesses of the thread that had this stack before
    forget();
    tsan_ = __tsan_create_fiber(0);
#endif
#ifdef SIMT_USE_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom_;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#else
    constexpr int kSavedRegisters = 6;
    void** top = reinterpret_cast<void**>(bottom_ + kStack);
    *--top = nullptr;  // aligns the stack as after a call; entry() does not return here
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
    stack_pointer_ = top;
#endif
  }

  // From the scheduler into the fiber, until it calls leave().
  void resume() {
#ifdef SIMT_THREAD
    scheduler_.tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, kNoOrder);
#endif
#ifdef SIMT_ADDRESS
    __sanitizer_start_switch_fiber(&scheduler_.fake_stack, bottom_, kStack);
#endif
#ifdef SIMT_USE_UCONTEXT
    swapcontext(&scheduler_.context, &context_);
#else
    switch_stacks(&scheduler_.stack_pointer, stack_pointer_);
#endif
#ifdef SIMT_ADDRESS
    __sanitizer_finish_switch_fiber(scheduler_.fake_stack, nullptr, nullptr);
#endif
  }

  // The first thing that entry() does.
  static void entered() {
#ifdef SIMT_ADDRESS
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_.bottom, &scheduler_.size);
#endif
  }

  // From the fiber back to the scheduler; `last`: the fiber is not resumed again.
  void leave([[maybe_unused]] bool last = false) {
#ifdef SIMT_THREAD
    __tsan_switch_to_fiber(scheduler_.tsan, kNoOrder);
#endif
#ifdef SIMT_ADDRESS
    __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, scheduler_.bottom, scheduler_.size);
#endif
#ifdef SIMT_USE_UCONTEXT
    swapcontext(&context_, &scheduler_.context);
#else
    switch_stacks(&stack_pointer_, scheduler_.stack_pointer);
#endif
#ifdef SIMT_ADDRESS
    __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_.bottom, &scheduler_.size);
#endif
  }

  // What the fiber did so far happens before what follows an acquire of the same address, and the other way round.
  // Called by the scheduler.
  void release([[maybe_unused]] void* address) {
#ifdef SIMT_THREAD
    void* self = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, kNoOrder);
    __tsan_release(address);
    __tsan_switch_to_fiber(self, kNoOrder);
#endif
  }
  void acquire([[maybe_unused]] void* address) {
#ifdef SIMT_THREAD
    void* self = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, kNoOrder);
    __tsan_acquire(address);
    __tsan_switch_to_fiber(self, kNoOrder);
#endif
  }
  // The same of whatever runs: the scheduler, or a fiber.
  static void release_here([[maybe_unused]] void* address) {
#ifdef SIMT_THREAD
    __tsan_release(address);
#endif
  }
  static void acquire_here([[maybe_unused]] void* address) {
#ifdef SIMT_THREAD
    __tsan_acquire(address);
#endif
  }

 private:
  static constexpr size_t kGuard = 4096;
#ifdef SIMT_THREAD
  static constexpr size_t kStack = 64 << 10;  // map() has the sanitizer clear four times as much
#else
  static constexpr size_t kStack = 256 << 10;
#endif
  static constexpr unsigned kNoOrder = 1;  // a switch orders nothing

  static void* map(void* address, size_t bytes, int flags) {
    flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(address, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return memory;
  }
  void forget() {
#ifdef SIMT_THREAD
    if (tsan_) __tsan_destroy_fiber(tsan_);
    tsan_ = nullptr;
#endif
  }

  struct Scheduler {
    void *stack_pointer, *fake_stack, *tsan;
    const void* bottom;
    size_t size;
#ifdef SIMT_USE_UCONTEXT
    ucontext_t context;
#endif
  };
  static inline Scheduler scheduler_{};

  char* bottom_ = nullptr;
  void *stack_pointer_ = nullptr, *fake_stack_ = nullptr, *tsan_ = nullptr;
#ifdef SIMT_USE_UCONTEXT
  ucontext_t context_;
#endif
};

}  // namespace simt
