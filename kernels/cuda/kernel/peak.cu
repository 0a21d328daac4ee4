// The ceilings of a card, measured: what "denoised bench" holds kernels against.
#include "dk.h"

constexpr int PeakThreads = 256; // exported: of a block of the peak kernels
constexpr int PeakChains = 8;    // exported: products of a warp, or sums of a thread, that do not wait for each other

// peak_tensor multiplies halves on the tensor cores, out of registers: every warp makes
// rounds·PeakChains products of 16×16 by 16×8. Nothing is written unless sum, which the caller
// makes 0, says so; the compiler cannot know.
KERNEL(peak_tensor)(float *out, int rounds, float sum) {
	u32 a[4], b[2];
	UNROLL
	for (int i = 0; i < 4; i++)
		a[i] = dk_pack(0.001f * (threadIdx.x & 31), 0.002f);
	UNROLL
	for (int i = 0; i < 2; i++)
		b[i] = dk_pack(0.003f, -0.001f * (threadIdx.x & 31));
	float d[PeakChains][4] = {};
	for (int r = 0; r < rounds; r++) {
		UNROLL
		for (int i = 0; i < PeakChains; i++)
			dk_mma_m16n8k16(d[i], a, b);
	}
	float total = 0;
	UNROLL
	for (int i = 0; i < PeakChains; i++)
		total += d[i][0] + d[i][1] + d[i][2] + d[i][3];
	if (sum != 0)
		out[blockIdx.x * PeakThreads + threadIdx.x] = total;
}

// peak_single multiplies and adds in single precision, out of registers: every thread does so
// rounds·PeakChains times. sum is as above.
KERNEL(peak_single)(float *out, int rounds, float sum) {
	float d[PeakChains];
	UNROLL
	for (int i = 0; i < PeakChains; i++)
		d[i] = 0.001f * (threadIdx.x + i);
	for (int r = 0; r < rounds; r++) {
		UNROLL
		for (int i = 0; i < PeakChains; i++)
			d[i] = dk_fma(d[i], 0.999f, 0.001f);
	}
	float total = 0;
	UNROLL
	for (int i = 0; i < PeakChains; i++)
		total += d[i];
	if (sum != 0)
		out[blockIdx.x * PeakThreads + threadIdx.x] = total;
}

// peak_copy copies n pieces of 16 bytes within the card's memory.
KERNEL(peak_copy)(u32x4 *dst, const u32x4 *src, int n) {
	for (int i = blockIdx.x * PeakThreads + threadIdx.x; i < n; i += gridDim.x * PeakThreads)
		dst[i] = src[i];
}
