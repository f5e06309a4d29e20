// The library's three functions: how large its arguments are, how many channels it takes per block, and the scan itself,
// whose blocks are shared out over threads. This file is compiled for the plainest processor of the platform.
#include "export.h"
#include "scan_arguments.h"

#include <atomic>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

extern const ScanKernels baseline_kernels;

#if defined(__x86_64__)
#include <cpuid.h>
extern const ScanKernels avx2_kernels, avx512_kernels;

namespace {
// Which vector registers the operating system saves (XCR0); an instruction set it does not save must not be used.
uint64_t saved_registers() {
  uint32_t low, high;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));  // xgetbv
  return ((uint64_t)high << 32) | low;
}

int best_isa() {
  unsigned a, b, c, d;
  const unsigned fma_movbe_xsave_f16c = (1u << 12) | (1u << 22) | (1u << 27) | (1u << 29);
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & fma_movbe_xsave_f16c) != fma_movbe_xsave_f16c) return 0;
  const uint64_t saved = saved_registers();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  const unsigned bmi1_avx2_bmi2 = (1u << 3) | (1u << 5) | (1u << 8);
  const unsigned f_dq_cd_bw_vl = (1u << 16) | (1u << 17) | (1u << 28) | (1u << 30) | (1u << 31);
  const bool avx2 = (b & bmi1_avx2_bmi2) == bmi1_avx2_bmi2 && (saved & 0x06) == 0x06;  // x86-64-v3
  const bool avx512 = avx2 && (b & f_dq_cd_bw_vl) == f_dq_cd_bw_vl && (saved & 0xe6) == 0xe6;  // x86-64-v4
  return avx512 ? 2 : avx2 ? 1 : 0;
}
}  // namespace
#else
namespace {
int best_isa() { return 0; }
}  // namespace
#endif

namespace {
const ScanKernels& kernels_for(int isa) {
  static const int best = best_isa();
#if defined(__x86_64__)
  const int used = isa < 0 || isa > best ? best : isa;
  return used == 2 ? avx512_kernels : used == 1 ? avx2_kernels : baseline_kernels;
#else
  (void)isa;
  (void)best;
  return baseline_kernels;
#endif
}

int64_t blocks_for(const ScanArguments& a, int width) { return (a.channels / a.groups + width - 1) / width; }

// Wide blocks share the work of B and C over more channels; narrow ones fill more threads and waste fewer lanes.
int choose_vectors(const ScanArguments& a, const ScanKernels& kernels) {
  const int wanted = (a.states <= 4 ? 64 : 32) / kernels.width;
  int vectors = wanted < 1 ? 1 : wanted > kernels.max_vectors ? kernels.max_vectors : wanted;
  const int64_t per_group = a.channels / a.groups, items = a.batch * (a.image ? 1 : a.groups);
  while (vectors > 1 && (per_group <= kernels.width * vectors / 2 ||
                         items * blocks_for(a, kernels.width * vectors) < a.threads))
    vectors /= 2;
  return vectors;
}

// A fresh large result costs one page fault per 4 KiB, which is most of the time of a scan over a large image.
void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 4096, first = ((uintptr_t)data + page - 1) & ~(page - 1);
  const uintptr_t end = ((uintptr_t)data + (uintptr_t)bytes) & ~(page - 1);
  if (data && bytes >= (4 << 20) && end > first) madvise((void*)first, end - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

class Scratch {  // aligned to 64 bytes, the widest vector
 public:
  explicit Scratch(size_t floats) : memory_(std::malloc(floats * sizeof(float) + 64)) {}
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* floats() const { return memory_ ? (float*)(((uintptr_t)memory_ + 63) & ~(uintptr_t)63) : nullptr; }

 private:
  void* memory_;
};
}  // namespace

// A caller that was written for another layout of the arguments must not call the scan.
EXPORT int64_t landfuse_scan_arguments_size() { return (int64_t)sizeof(ScanArguments); }

// Channels per block, so that the caller can make room for one part of dB and dC per block.
EXPORT int64_t landfuse_scan_block(const ScanArguments* a) {
  const ScanKernels& kernels = kernels_for(a->isa);
  return (int64_t)kernels.width * choose_vectors(*a, kernels);
}

// 0, or 1 if there was no memory for scratch.
EXPORT int landfuse_scan_run(const ScanArguments* arguments, int backward) {
  const ScanArguments& a = *arguments;
  const ScanKernels& kernels = kernels_for(a.isa);
  const int vectors = choose_vectors(a, kernels), width = kernels.width * vectors;
  const int64_t per_group = a.channels / a.groups, blocks = blocks_for(a, width);
  // The groups of an image add to the same y (and du), so one thread takes them all, one after the other.
  const int64_t groups_apart = a.image ? 1 : a.groups, groups_together = a.image ? a.groups : 1;
  const int64_t tasks = a.batch * groups_apart * blocks;
  const size_t per_lane = backward ? (6 + 4 * TIME_TILE) * a.states + (3 + TIME_TILE) * a.rank : 3 * a.states + a.rank;

  const int64_t values = a.batch * a.length * (a.image ? per_group : a.channels) * (int64_t)sizeof(float);
  prefer_huge_pages(backward ? a.du.data : a.y.data, values);
  if (backward) prefer_huge_pages(a.ddelta.data, values);

  std::atomic<int64_t> next(0);
  std::atomic<int> failed(0);
  auto work = [&]() {
    const Scratch scratch(per_lane * width);
    if (!scratch.floats()) {
      failed = 1;
      return;
    }
    for (int64_t i; (i = next.fetch_add(1)) < tasks;) {
      ScanTask task;
      task.part = i % blocks;
      task.batch = i / blocks / groups_apart;
      task.first_channel = task.part * width;
      task.lanes = (int)(per_group - task.first_channel < width ? per_group - task.first_channel : width);
      for (int64_t g = 0; g < groups_together; g++) {
        task.group = i / blocks % groups_apart + g;
        (backward ? kernels.backward : kernels.forward)(a, task, vectors, scratch.floats());
      }
    }
  };
  const int64_t threads = a.threads < tasks ? a.threads : tasks;
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < threads; i++) others.emplace_back(work);
  } catch (const std::system_error&) {
    // The system gives no more threads: those that started share the work with this one.
  }
  work();
  for (std::thread& other : others) other.join();
  return failed;
}
