// The kernels of one instruction set: define KERNELS (the name of its table), WIDTH and MAX_VECTORS, then include this.
// Everything is in an unnamed namespace: two sets in one library must not share a function.
#include <cstdint>
#include <utility>

#include "scan_arguments.h"

#define INLINE_MEMBER inline __attribute__((always_inline))

namespace {
#include "lanes.h"
#include "tiles.h"
#include "scan_kernel.h"
}  // namespace

extern const ScanKernels KERNELS;
const ScanKernels KERNELS = {WIDTH, MAX_VECTORS, forward, backward};
