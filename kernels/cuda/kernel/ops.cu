// The operations of a kernels.Graph that are no convolution, and the steps of sampling. Tensors are
// halves as in tile.h: a pixel is `parts` pieces of 8 channels. The grid of those that write such a
// tensor is [pieces of a sample / OpThreads, 1, samples].
#include "dk.h"

constexpr int OpThreads = 256; // exported: threads of a block

namespace ops {

// Piece is what a thread writes: 8 channels of a pixel.
struct Piece {
	size_t number; // within the tensor
	int y, x, part;
	bool exists;
};

DEV Piece piece(int height, int width, int parts) {
	size_t i = (size_t)blockIdx.x * OpThreads + threadIdx.x, n = (size_t)height * width * parts;
	size_t pixel = i / parts;
	return {blockIdx.z * n + i, (int)(pixel / width), (int)(pixel % width), (int)(i % parts), i < n};
}

DEV u32x4 packed(const float *v) { return {dk_pack(v[0], v[1]), dk_pack(v[2], v[3]), dk_pack(v[4], v[5]), dk_pack(v[6], v[7])}; }

// scaled is 8 channels of a pixel of a dense tensor, times factor, with zeros from channels on.
DEV u32x4 scaled(const float *pixel, int part, int channels, float factor) {
	float v[8];
	UNROLL
	for (int i = 0; i < 8; i++)
		v[i] = part * 8 + i < channels ? factor * pixel[part * 8 + i] : 0;
	return packed(v);
}

} // namespace ops

// op_import rounds a dense tensor x [sample, height, width, channels].
KERNEL(op_import)(const float *x, u32x4 *y, int height, int width, int channels, int parts) {
	auto p = ops::piece(height, width, parts);
	if (p.exists)
		y[p.number] = ops::scaled(x + p.number / parts * channels, p.part, channels, 1);
}

// op_export is the inverse: y [sample, pixels, channels], of which there are count values. The grid is
// [count / OpThreads].
KERNEL(op_export)(const f16 *x, float *y, int pixels, int channels, int parts) {
	size_t i = (size_t)blockIdx.x * OpThreads + threadIdx.x;
	if (i < (size_t)pixels * channels)
		y[i] = dk_h2f(x[i / channels * parts * 8 + i % channels]);
}

// op_rotate turns x by k quarter turns counterclockwise; height and width are those of y.
KERNEL(op_rotate)(const u32x4 *x, u32x4 *y, int height, int width, int parts, int k) {
	auto p = ops::piece(height, width, parts);
	if (!p.exists)
		return;
	int row = p.y, column = p.x, across = k & 1 ? height : width; // of x
	if (k == 1)
		row = p.x, column = height - 1 - p.y;
	else if (k == 2)
		row = height - 1 - p.y, column = width - 1 - p.x;
	else if (k == 3)
		row = width - 1 - p.x, column = p.y;
	y[p.number] = x[(blockIdx.z * (size_t)height * width + (size_t)row * across + column) * parts + p.part];
}

// op_shift moves x down by *rows rows, with zeros above.
KERNEL(op_shift)(const u32x4 *x, u32x4 *y, const int *rows, int height, int width, int parts) {
	auto p = ops::piece(height, width, parts);
	if (!p.exists)
		return;
	if (p.y >= *rows)
		y[p.number] = x[p.number - (size_t)*rows * width * parts];
	else
		y[p.number] = {0, 0, 0, 0};
}

// sample_input is what the network is given of the state x [sample, height, width, channels]: times
// scalars[0].
KERNEL(sample_input)(const float *x, const float *scalars, u32x4 *y, int height, int width, int channels, int parts) {
	auto p = ops::piece(height, width, parts);
	if (p.exists)
		y[p.number] = ops::scaled(x + p.number / parts * channels, p.part, channels, scalars[0]);
}

// sample_step makes the next state of n numbers: scalars[1]·x + scalars[2]·v. The grid is [n / OpThreads].
KERNEL(sample_step)(float *x, const float *v, const float *scalars, int n) {
	int i = blockIdx.x * OpThreads + threadIdx.x;
	if (i < n)
		x[i] = dk_fma(scalars[1], x[i], scalars[2] * v[i]);
}

// sample_pair ends the sampling of a pair x [2, n]: the mean, and half the absolute difference, to y
// [2, n]. The grid is [n / OpThreads].
KERNEL(sample_pair)(const float *x, float *y, int n) {
	int i = blockIdx.x * OpThreads + threadIdx.x;
	if (i >= n)
		return;
	float plus = x[i], minus = x[n + i];
	y[i] = (plus + minus) / 2;
	y[n + i] = dk_abs(plus - minus) / 2;
}
