// traps.cc shows what the emulation finds: each of its kernels has one mistake, but for the last, which
// has none. emulator_test.go runs them: traps NAME prints what a kernel has written, "reversed" after
// the name the other order.
#define DK_EMU
#include "../dk.h"

KERNEL(missing_barrier)(float *out) {
	SHARED(float, x, [64]);
	int t = threadIdx.x;
	x[t] = t;
	out[t] = x[63 - t];
}

KERNEL(uninitialised)(float *out) {
	SHARED(float, x, [64]);
	if (threadIdx.x > 0)
		x[threadIdx.x] = 1;
	__syncthreads();
	out[threadIdx.x] = x[threadIdx.x];
}

// missing_wait reads what it has asked to be copied.
KERNEL(missing_wait)(float *out) {
	SHARED(float, x, [64]);
	if (threadIdx.x < 16)
		dk_cp_async16(x + 4 * threadIdx.x, out + 64 + 4 * threadIdx.x, true);
	dk_cp_async_commit();
	dk_cp_async_wait<1>(); // and not 0
	__syncthreads();
	out[threadIdx.x] = x[threadIdx.x];
}

// early_copy fills memory again that others still read.
KERNEL(early_copy)(float *out) {
	SHARED(float, x, [64]);
	x[threadIdx.x] = 1;
	__syncthreads();
	if (threadIdx.x < 16)
		dk_cp_async16(x + 4 * threadIdx.x, nullptr, false);
	dk_cp_async_commit();
	out[threadIdx.x] = x[threadIdx.x];
	dk_cp_async_wait<0>();
}

KERNEL(some_at_barrier)(float *out) {
	if (threadIdx.x < 40)
		__syncthreads();
	else
		out[threadIdx.x] = dk_shfl_xor(1, 1); // lanes 8 to 31 of a warp
}

KERNEL(barriers_apart)(float *out) {
	if (threadIdx.x < 32)
		__syncthreads();
	else
		__syncthreads();
	out[threadIdx.x] = 1;
}

KERNEL(operations_apart)(float *out) {
	if (threadIdx.x & 1)
		out[threadIdx.x] = dk_shfl_xor(1, 1);
	else
		dk_syncwarp();
}

KERNEL(too_much_shared)(float *out) {
	SHARED(float, x, [48 * 256 + 1]);
	x[threadIdx.x] = 1;
	out[threadIdx.x] = x[threadIdx.x];
}

KERNEL(odd_address)(float *out) {
	SHARED(f16, x, [64 * 8 + 8]);
	u32 r[4];
	dk_ldmatrix_x4(r, x + 4 + threadIdx.x * 8);
	out[threadIdx.x] = r[0];
}

// right multiplies the matrices a [16, 16], a[i][j] = i - j, and b [16, 8], b[i][j] = 2i + j, in all
// ways: b by rows and transposed, or by columns. A lane adds what it has of both products, which are
// the same, by the number of the place.
KERNEL(right)(float *out) {
	SHARED(f16, a, [16][16]);
	SHARED(f16, b, [16][8]);
	SHARED(f16, bt, [8][16]);
	int t = threadIdx.x, lane = t & 31, warp = t >> 5, g = lane >> 2, q = lane & 3;
	for (int i = t; i < 256; i += 64)
		a[i / 16][i % 16] = dk_f2h(i / 16 - i % 16);
	for (int i = t; i < 128; i += 64) {
		b[i / 8][i % 8] = dk_f2h(2 * (i / 8) + i % 8);
		bt[i % 8][i / 8] = dk_f2h(2 * (i / 8) + i % 8);
	}
	__syncthreads();
	u32 ra[4], rb[4];
	dk_ldmatrix_x4(ra, &a[lane & 15][lane >> 4 << 3]);
	if (warp == 0)
		dk_ldmatrix_x4_trans(rb, &b[lane & 15][0]);
	else
		dk_ldmatrix_x4(rb, &bt[lane & 7][(lane >> 3 & 1) << 3]);
	float d[4] = {0, 0, 0, 0};
	dk_mma_m16n8k16(d, ra, rb);
	float sum = 0;
	for (int i = 0; i < 4; i++)
		sum += d[i] * (float)(8 * (g + i / 2 * 8) + 2 * q + i % 2);
	for (int m = 16; m > 0; m /= 2)
		sum += dk_shfl_xor(sum, m);
	out[t] = sum;
}

EMU_REGISTER(missing_barrier)
EMU_REGISTER(uninitialised)
EMU_REGISTER(missing_wait)
EMU_REGISTER(early_copy)
EMU_REGISTER(some_at_barrier)
EMU_REGISTER(barriers_apart)
EMU_REGISTER(operations_apart)
EMU_REGISTER(too_much_shared)
EMU_REGISTER(odd_address)
EMU_REGISTER(right)

int main(int argc, char **argv) {
	auto found = emu::kernels().find(argc > 1 ? argv[1] : "");
	if (found == emu::kernels().end())
		emu::die("there is no kernel of that name");
	emu::reversed = argc > 2 && !strcmp(argv[2], "reversed");
	alignas(16) float out[128];
	for (int i = 0; i < 128; i++)
		out[i] = i < 64 ? -1 : (float)(i - 64);
	float *p = out;
	void *params[] = {&p};
	emu::launch(found->second, {1, 1, 1}, {64, 1, 1}, 0, params);
	for (int i = 0; i < 64; i++)
		printf("%g ", out[i]);
}
