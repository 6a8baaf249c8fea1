// The engine behind simt.h: blocks one after the other, the threads of a block as fibers that run until their next
// collective. Compiled without sanitizers, so that its own bookkeeping is no access of the kernel's.
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "planted.h"
#include "simt.h"

namespace simt {
namespace {

// The limits of an H100.
constexpr unsigned kMaxThreads = 1024, kMaxGridYZ = 65535;
constexpr size_t kMaxShared = 227 << 10;
constexpr uint64_t kUndefined = 0x7fc0dead7fc0deadULL;  // NaN, as one float or two

enum class State { kReady, kAtBarrier, kAtWarpCollective, kExited };

struct QueuedCopy {
  Copy copy;
  int group;
};
constexpr int kMaxCopies = 256;  // of one thread, under way at once

struct Thread {
  Fiber fiber;
  unsigned linear;
  uint3 index;
  State state;
  bool failed;
  Where where;  // the collective that it waits in
  Request request;
  uint64_t result;
  QueuedCopy copies[kMaxCopies];  // a ring
  int copies_begun, copies_done;
  int groups;                      // committed so far
  bool fenced;                     // since its last collective
  std::vector<unsigned*> atomics;  // of which it saw others' values since its last fence

  unsigned lane() const { return linear % warpSize; }
};

struct Launch {
  size_t shared_bytes;
  const std::function<void()>& body;
  std::vector<std::unique_ptr<unsigned char[]>> shared;  // of every block so far: freeing orders nothing that way
  char finished = 0;                                     // its address is where threads release at their end
};

// Of the running thread; simt.h shows them as CUDA's names.
uint3 thread_index, block_index;
dim3 block_size, grid_size;

unsigned schedule_seed = 0;

std::mutex launching;  // one launch at a time in the process
std::mt19937 random_numbers;
Launch* current_launch = nullptr;
std::vector<std::unique_ptr<Thread>> threads;  // kept from launch to launch: their stacks are reused
unsigned thread_count = 0;                     // of a block of this launch
std::vector<unsigned> ready;
Thread* running = nullptr;
std::string failure;

std::string text(uint3 i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}
std::string text(Where where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}
Error fault(const Thread& thread, Where where, const std::string& message) {
  return Error(text(where) + ": block " + text(block_index) + " thread " + text(thread.index) + ": " + message);
}

void wake(Thread& thread) {
  thread.state = State::kReady;
  ready.push_back(thread.linear);
}

// The host sees what the threads did, those of a block that a fault cut short included.
void join_threads() {
  for (unsigned i = 0; i < thread_count; ++i) threads[i]->fiber.release(&current_launch->finished);
  Fiber::acquire_here(&current_launch->finished);
}

// Everything that one of them did so far happens before everything that another does from now on.
void order(Thread** begin, Thread** end) {
  const auto address = std::make_unique<char>();
  for (Thread** thread = begin; thread != end; ++thread) (*thread)->fiber.release(address.get());
  for (Thread** thread = begin; thread != end; ++thread) (*thread)->fiber.acquire(address.get());
}

// Warp collectives

struct Group {
  Thread* members[warpSize];
  int size = 0;

  Thread** begin() { return members; }
  Thread** end() { return members + size; }
};

// The lanes of `first`'s mask, waiting for the same collective; empty while some are still on their way.
Group assembled(const Thread& first) {
  Group group;
  const unsigned base = first.linear - first.lane();
  for (unsigned lane = 0; lane < warpSize; ++lane) {
    if (!(first.request.mask >> lane & 1)) continue;
    if (base + lane >= thread_count || threads[base + lane]->state == State::kExited) {
      throw fault(first, first.where,
                  "the mask names lane " + std::to_string(lane) + ", which has exited or never was");
    }
    Thread& other = *threads[base + lane];
    if (other.state != State::kAtWarpCollective) return {};
    const Request &a = first.request, &b = other.request;
    if (a.mask != b.mask || a.kind != b.kind || a.width != b.width) {
      throw fault(first, first.where,
                  "lane " + std::to_string(lane) + " of the mask is in another collective (" + text(other.where) +
                      ") or disagrees on mask or width");
    }
    group.members[group.size++] = &other;
  }
  return group;
}

// The lane that `lane` reads in a shuffle: itself where the source falls outside of its section of `width` lanes.
int source_lane(const Request& request, int lane) {
  const int begin = lane / request.width * request.width, end = begin + request.width;
  const auto inside = [&](int source) { return source >= begin && source < end ? source : lane; };
  switch (request.kind) {
    case Collective::kShuffleUp:
      return inside(lane - request.argument);
    case Collective::kShuffleDown:
      return inside(lane + request.argument);
    case Collective::kShuffleXor:
      return inside(lane ^ request.argument);
    default:
      return begin + (request.argument & (request.width - 1));
  }
}

void complete(Group group) {
  const Request& request = group.members[0]->request;
  const bool shuffles = request.kind != Collective::kBallot && request.kind != Collective::kSyncWarp;
  uint64_t values[warpSize];
  std::fill(values, values + warpSize, kUndefined);
  uint64_t ballot = 0;
  for (const Thread* thread : group) {
    values[thread->lane()] = thread->request.value;
    ballot |= uint64_t(thread->request.value != 0) << thread->lane();
  }
  for (Thread* thread : group) {
    thread->result = shuffles ? values[source_lane(thread->request, int(thread->lane()))] : ballot;
  }
  if (request.kind == Collective::kSyncWarp) order(group.begin(), group.end());  // the others order no memory
  for (Thread* thread : group) wake(*thread);
}

// A thread has come to a collective, or to its end: what it waits for may now be complete, or never be.
void arrived_in_warp(const Thread& arrived) {
  if (arrived.state == State::kAtWarpCollective) {
    if (const Group group = assembled(arrived); group.size > 0) complete(group);
    return;
  }
  const unsigned begin = arrived.linear - arrived.lane();
  for (unsigned i = begin; i < std::min(begin + warpSize, thread_count); ++i) {
    if (threads[i]->state == State::kAtWarpCollective) assembled(*threads[i]);
  }
}

// Blocks

void complete_barrier() {
  std::vector<Thread*> arrived;
  const Thread *elsewhere = nullptr, *exited = nullptr;
  for (unsigned i = 0; i < thread_count; ++i) {
    Thread& thread = *threads[i];
    if (thread.state == State::kAtBarrier) arrived.push_back(&thread);
    if (thread.state == State::kAtWarpCollective) elsewhere = &thread;
    if (thread.state == State::kExited) exited = &thread;
  }
  if (elsewhere) {
    throw fault(*elsewhere, elsewhere->where,
                "waits for lanes that never come: " + std::to_string(arrived.size()) + " threads are in __syncthreads");
  }
  const Thread& first = *arrived[0];
  if (exited) throw fault(first, first.where, "__syncthreads, which thread " + text(exited->index) + " never reached");
  for (const Thread* thread : arrived) {
    if (thread->where.line() != first.where.line() || thread->where.column() != first.where.column() ||
        std::string(thread->where.file_name()) != first.where.file_name()) {
      throw fault(first, first.where,
                  "__syncthreads, while thread " + text(thread->index) + " is in that of " + text(thread->where));
    }
  }
  order(arrived.data(), arrived.data() + arrived.size());
  for (Thread* thread : arrived) wake(*thread);
}

void run_until_collective(Thread& thread) {
  running = &thread;
  thread_index = thread.index;
  thread.fiber.resume();
  if (thread.failed) {
    join_threads();  // before the text is read that it wrote
    throw fault(thread, thread.where, failure);
  }
  if (thread.state == State::kExited) {
    thread.fiber.release(&current_launch->finished);
    if (thread.copies_done < thread.copies_begun)
      throw fault(thread, thread.where, "exits with copies that were never waited for");
  }
  if (thread.state != State::kAtBarrier) arrived_in_warp(thread);
}

unsigned take_ready() {
  if (schedule_seed) std::swap(ready[random_numbers() % ready.size()], ready.back());
  const unsigned next = schedule_seed ? ready.back() : ready.front();
  ready.erase(schedule_seed ? ready.end() - 1 : ready.begin());
  return next;
}

void thread_main() {
  Fiber::entered();
  Thread& self = *running;
  try {
    current_launch->body();
  } catch (const std::exception& error) {
    failure = error.what();
    self.failed = true;
  }
  self.state = State::kExited;
  self.fiber.leave(true);
  std::abort();  // never resumed
}

void start_threads() {
  ready.clear();
  for (unsigned i = 0; i < thread_count; ++i) {
    Thread& thread = *threads[i];
    thread.linear = i;
    thread.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    thread.failed = false;
    thread.copies_begun = thread.copies_done = thread.groups = 0;
    thread.fenced = false;
    thread.atomics.clear();
    thread.fiber.start(thread_main);
    wake(thread);
  }
}

void run_block(uint3 index) {
  ++blocks_begun;
  block_index = index;
  const size_t bytes = current_launch->shared_bytes;
  current_launch->shared.emplace_back(new unsigned char[bytes]);
  std::memset(current_launch->shared.back().get(), 0xff, bytes);
  start_threads();
  for (;;) {
    while (!ready.empty()) run_until_collective(*threads[take_ready()]);
    bool all_exited = true;
    for (unsigned i = 0; i < thread_count; ++i) all_exited &= threads[i]->state == State::kExited;
    if (all_exited) return;
    complete_barrier();
  }
}

void check_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const auto size = [](dim3 d) { return text(uint3{d.x, d.y, d.z}); };
  const auto refuse = [&](const std::string& why) {
    throw Error("launch of " + size(grid) + " blocks of " + size(block) + " threads with " +
                std::to_string(shared_bytes) + " bytes of shared memory: " + why);
  };
  const uint64_t count = uint64_t(block.x) * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || !count) refuse("a size is 0");
  if (grid.x > 0x7fffffffu || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ) refuse("the grid is too large");
  if (count > kMaxThreads) refuse("more than " + std::to_string(kMaxThreads) + " threads");
  if (shared_bytes > kMaxShared) refuse("more than " + std::to_string(kMaxShared) + " bytes of shared memory");
}

void run_grid() {
  std::vector<uint64_t> blocks(uint64_t(grid_size.x) * grid_size.y * grid_size.z);
  for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  if (schedule_seed) std::shuffle(blocks.begin(), blocks.end(), random_numbers);
  for (const uint64_t i : blocks) {
    const uint64_t row = i / grid_size.x;
    run_block({unsigned(i % grid_size.x), unsigned(row % grid_size.y), unsigned(row / grid_size.y)});
  }
}

void wait_in(State state, Where where) {
  Thread& self = *running;
  self.state = state;
  self.where = where;
  self.fenced = false;
  self.fiber.leave();
}

}  // namespace

void set_seed(unsigned seed) { schedule_seed = seed; }

int planted_fault() {
  const char* const number = std::getenv("CMIMTL_PLANTED_FAULT");
  return number ? std::atoi(number) : 0;
}
const int awake = planted_fault();

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  check_launch(grid, block, shared_bytes);
  const std::lock_guard lock(launching);
  ++launches_begun;
  Launch launch{shared_bytes, body, {}};
  current_launch = &launch;
  grid_size = grid, block_size = block;
  thread_count = block.x * block.y * block.z;
  random_numbers.seed(schedule_seed);
  while (threads.size() < thread_count) threads.push_back(std::make_unique<Thread>());
  try {
    run_grid();
  } catch (...) {
    join_threads();
    throw;
  }
  join_threads();
}

unsigned char* shared_memory() { return current_launch->shared.back().get(); }

void fail(const char* message, Where where) {
  failure = message;
  running->failed = true;
  running->where = where;
  running->fiber.leave(true);
  std::abort();  // never resumed
}

void barrier(Where where) { wait_in(State::kAtBarrier, where); }

uint64_t warp_collective(Request request, Where where) {
  if (!(request.mask >> running->lane() & 1)) fail("the calling lane is not in its own mask", where);
  const int width = request.width;
  if (width < 1 || width > warpSize || (width & (width - 1))) fail("the width is not a power of two up to 32", where);
  running->request = request;
  Thread& self = *running;
  wait_in(State::kAtWarpCollective, where);
  return self.result;
}

void queue_copy(Copy copy, Where where) {
  const auto offset = static_cast<unsigned char*>(copy.shared) - shared_memory();
  if (offset < 0 || size_t(offset) + copy.bytes > current_launch->shared_bytes) {
    fail("copy_async: the target is not in shared memory", where);
  }
  Thread& self = *running;
  if (self.copies_begun - self.copies_done == kMaxCopies) fail("copy_async: too many copies under way", where);
  self.where = where;
  self.copies[self.copies_begun++ % kMaxCopies] = {copy, self.groups};
}

void copies_commit() { ++running->groups; }

void fence() {
  for (unsigned* p : running->atomics) Fiber::acquire_here(p);
  running->atomics.clear();
  running->fenced = true;
}

unsigned atomic_add(unsigned* p, unsigned value) {
  if (running->fenced) Fiber::release_here(p);
  running->atomics.push_back(p);
  const unsigned before = *p;
  *p += value;
  return before;
}

bool take_copy(int groups, Copy& copy) {
  Thread& self = *running;
  const QueuedCopy& next = self.copies[self.copies_done % kMaxCopies];
  if (self.copies_done == self.copies_begun || next.group >= self.groups - groups) return false;
  copy = next.copy;
  ++self.copies_done;
  return true;
}

}  // namespace simt

const uint3& threadIdx = simt::thread_index;
const uint3& blockIdx = simt::block_index;
const dim3& blockDim = simt::block_size;
const dim3& gridDim = simt::grid_size;
