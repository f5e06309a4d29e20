#define KERNELS avx512_kernels
#define WIDTH 16
#define MAX_VECTORS 4
#include "kernels.h"
