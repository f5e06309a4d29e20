#define KERNELS avx2_kernels
#define WIDTH 8
#define MAX_VECTORS 8
#include "kernels.h"
