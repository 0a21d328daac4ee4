// Kernels for the tests of package driver. Only the emulated driver has them.
#include "../dk.h"

// selftest_parameters stores each kind of parameter as the kernel sees it.
KERNEL(selftest_parameters)(u32 *out, int i, unsigned u, float f, const u32 *in) {
	if (blockIdx.x == 0 && threadIdx.x == 0) {
		float *number = (float *)out;
		int *integer = (int *)out;
		integer[0] = i;
		out[1] = u;
		number[2] = f;
		out[3] = *in;
		out[4] = gridDim.x * gridDim.y * gridDim.z;
		out[5] = blockDim.x * blockDim.y * blockDim.z;
	}
}

// selftest_scale is x *= a for n numbers.
KERNEL(selftest_scale)(float *x, float a, int n) {
	int i = blockIdx.x * blockDim.x + threadIdx.x;
	if (i < n)
		x[i] *= a;
}

// selftest_reverse reverses each block's part of x, through dynamic shared memory of which it uses
// the last blockDim.x numbers of n.
KERNEL(selftest_reverse)(u32 *x, int n) {
	DYNAMIC_SHARED(u32, tile);
	u32 *last = tile + n - blockDim.x;
	last[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
	__syncthreads();
	x[blockIdx.x * blockDim.x + threadIdx.x] = last[blockDim.x - 1 - threadIdx.x];
}

// selftest_order stores at each thread's place how many threads came before it, which only the
// emulator can do without a race.
KERNEL(selftest_order)(u32 *out, u32 *count) {
	out[blockIdx.x * blockDim.x + threadIdx.x] = (*count)++;
}

// selftest_garbage stores the dynamic shared memory that it found.
KERNEL(selftest_garbage)(u32 *out) {
	DYNAMIC_SHARED(u32, tile);
	int i = blockIdx.x * blockDim.x + threadIdx.x;
	out[i] = tile[threadIdx.x];
	tile[threadIdx.x] = i;
}

#ifdef DK_EMU
EMU_REGISTER(selftest_parameters)
EMU_REGISTER(selftest_scale)
EMU_REGISTER(selftest_reverse)
EMU_REGISTER(selftest_order)
EMU_REGISTER(selftest_garbage)
#endif
