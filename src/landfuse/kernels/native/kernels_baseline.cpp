// SSE2 on x86-64, NEON on arm64: what every such processor has.
#define KERNELS baseline_kernels
#define WIDTH 4
#define MAX_VECTORS 8
#include "kernels.h"
