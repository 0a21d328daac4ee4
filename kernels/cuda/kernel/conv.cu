// Convolutions of one or two sources for inference, in tensor cores: see tile.h.
#include "tile.h"

constexpr int PointPixels = 256; // exported: pixels that a block of the pointwise convolutions computes
constexpr int LinearThreads = 128; // exported: outputs that a block of linear computes

namespace conv {

// conv3 convolves with a 3×3 window, top of its two rows of padding above. The sources have chunks0
// and chunks1 chunks of 16 channels; with up = 1 the first is of half the size. weights are
// [chunk, window column, window row, group, lane] and bias [16·groups], for as many groups of outputs
// as the grid has, of which out channels exist. y or dense is [sample, height, width, …]; see
// tile::Finish. The grid is [tiles, groups/G, samples].
template <int G>
DEV void conv3(const f16 *x0, const f16 *x1, const u32x4 *weights, const float *bias, const float *film, const f16 *residual, f16 *y, float *dense, int height, int width,
	int chunks0, int chunks1, int out, int top, int up, int filmStride, float slope) {
	SHARED(f16, tiles, [2][tile::TileHalves]);
	int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	int across = (width + ConvColumns - 1) / ConvColumns;
	int row = blockIdx.x / across * ConvRows, column = blockIdx.x % across * ConvColumns;
	int sample = blockIdx.z, first = blockIdx.y * G, groups = gridDim.y * G;
	size_t pixels = (size_t)height * width;
	tile::Source s = {x0 + sample * (pixels >> 2 * up) * chunks0 * 16, x1 + sample * pixels * chunks1 * 16, chunks0, chunks1, up};

	int wr = row + warp / 2 * 4, wc = column + warp % 2 * 16;
	float acc[4][G][2][4];
	tile::begin(acc, bias, first);
	tile::convolve<G>(acc, tiles, s, row - top, column - 1, height, width, weights + first * 32, groups, wr < height && wc < width);

	tile::Finish f = {film, filmStride, residual, y, dense, out, slope};
	UNROLL
	for (int g = 0; g < G; g++) {
		int channel = (first + g) * 16 + (lane & 3) * 4;
		if (channel >= f.stride())
			continue;
		auto scale = f.scale(sample, channel);
		UNROLL
		for (int r = 0; r < 4; r++)
			UNROLL
			for (int h = 0; h < 2; h++) {
				int py = wr + r, px = wc + (lane >> 2) + 8 * h;
				if (py < height && px < width)
					f.write(tile::part(acc[r][g], h), scale, sample * pixels + (size_t)py * width + px, channel);
			}
	}
}

// Stages is the number of chunks that a pointwise convolution holds, all but one on their way.
constexpr int Stages = 4;

// point convolves with a window of size×size (1 or 2) that moves by its own size, so that a value is
// read for one pixel only: chunks, and within them the places of the window, are one long sum.
// height and width are those of the result; else it is as conv3. The grid is [PointPixels pixels,
// groups/G, samples].
template <int G>
DEV void point(const f16 *x0, const f16 *x1, const u32x4 *weights, const float *bias, const float *film, const f16 *residual, f16 *y, float *dense, int height, int width,
	int chunks0, int chunks1, int out, int size, int up, int filmStride, float slope) {
	SHARED(f16, tiles, [Stages][PointPixels * 16]);
	int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	int sample = blockIdx.z, first = blockIdx.y * G, groups = gridDim.y * G;
	int pixels = height * width, start = blockIdx.x * PointPixels;
	int taps = size * size, steps = (chunks0 + chunks1) * taps;
	size_t inputs = (size_t)pixels * taps; // pixels of an input
	x0 += sample * (inputs >> 2 * up) * chunks0 * 16;
	x1 += sample * inputs * chunks1 * 16;

	// A thread copies the same part of the same two pixels of every chunk.
	const int part = threadIdx.x & 1;
	int py[2], px[2];
	UNROLL
	for (int i = 0; i < 2; i++) {
		int pixel = start + (threadIdx.x >> 1) + i * (ConvThreads / 2);
		py[i] = pixel / width;
		px[i] = pixel % width;
	}
	auto fetch = [&](int step) {
		int k = step / taps, kx = step % taps / size, ky = step % taps % size;
		bool second = k >= chunks0;
		const f16 *x = second ? x1 + (k - chunks0) * 16 : x0 + k * 16;
		int stride = (second ? chunks1 : chunks0) * 16, u = second ? 0 : up;
		UNROLL
		for (int i = 0; i < 2; i++) {
			bool inside = py[i] < height;
			const f16 *from = x + ((size_t)((py[i] * size + ky) >> u) * ((width * size) >> u) + ((px[i] * size + kx) >> u)) * stride + part * 8;
			dk_cp_async16(tiles[step % Stages] + tile::place((threadIdx.x >> 1) + i * (ConvThreads / 2), part), inside ? from : x, inside);
		}
	};
	UNROLL
	for (int s = 0; s < Stages - 1; s++) {
		if (s < steps)
			fetch(s);
		dk_cp_async_commit();
	}
	float acc[2][G][2][4];
	tile::begin(acc, bias, first);
	bool active = start + warp * 32 < pixels;
	const u32x4 *w = weights + first * 32 + lane;
	for (int s = 0; s < steps; s++, w += groups * 32) {
		dk_cp_async_wait<Stages - 2>();
		__syncthreads();
		if (s + Stages - 1 < steps)
			fetch(s + Stages - 1);
		dk_cp_async_commit();
		if (!active)
			continue;
		u32 a[2][4];
		UNROLL
		for (int r = 0; r < 2; r++)
			dk_ldmatrix_x4(a[r], tiles[s % Stages] + tile::place(warp * 32 + r * 16 + (lane & 15), lane >> 4));
		UNROLL
		for (int g = 0; g < G; g++) {
			u32x4 b = w[g * 32];
			UNROLL
			for (int r = 0; r < 2; r++)
				tile::multiply(acc[r][g], a[r], b);
		}
	}

	tile::Finish f = {film, filmStride, residual, y, dense, out, slope};
	UNROLL
	for (int g = 0; g < G; g++) {
		int channel = (first + g) * 16 + (lane & 3) * 4;
		if (channel >= f.stride())
			continue;
		auto scale = f.scale(sample, channel);
		UNROLL
		for (int r = 0; r < 2; r++)
			UNROLL
			for (int h = 0; h < 2; h++) {
				int pixel = start + warp * 32 + r * 16 + (lane >> 2) + 8 * h;
				if (pixel < pixels)
					f.write(tile::part(acc[r][g], h), scale, (size_t)sample * pixels + pixel, channel);
			}
	}
}

} // namespace conv

// The kernels differ in the groups of 16 output channels that a block computes.
#define CONVOLUTION(name, function, groups, blocks)                                                                                                                        \
	KERNEL(__launch_bounds__(ConvThreads, blocks) name)                                                                                                                     \
	(const f16 *x0, const f16 *x1, const u32x4 *weights, const float *bias, const float *film, const f16 *residual, f16 *y, float *dense, int height, int width,           \
		int chunks0, int chunks1, int out, int window, int up, int filmStride, float slope) {                                                                              \
		conv::function<groups>(x0, x1, weights, bias, film, residual, y, dense, height, width, chunks0, chunks1, out, window, up, filmStride, slope);                      \
	}

CONVOLUTION(conv3_1, conv3, 1, 2)
CONVOLUTION(conv3_2, conv3, 2, 2)
CONVOLUTION(conv3_3, conv3, 3, 1)
CONVOLUTION(conv3_4, conv3, 4, 1)
CONVOLUTION(point_1, point, 1, 2)
CONVOLUTION(point_2, point, 2, 2)
CONVOLUTION(point_3, point, 3, 2)
CONVOLUTION(point_4, point, 4, 2)

// linear is a pointwise convolution of vectors, in single precision: y [sample, out] from x0
// [sample, n0] and x1 [sample, n1]. weights are [n0 + n1, out]. The grid is [out/LinearThreads, samples].
KERNEL(linear)(const float *x0, const float *x1, const float *weights, const float *bias, const float *film, const float *residual, float *y, int n0, int n1, int out, int filmStride, float slope) {
	int o = blockIdx.x * LinearThreads + threadIdx.x;
	size_t sample = blockIdx.y;
	if (o >= out)
		return;
	float v = bias[o];
	for (int i = 0; i < n0; i++)
		v = dk_fma(x0[sample * n0 + i], weights[(size_t)i * out + o], v);
	for (int i = 0; i < n1; i++)
		v = dk_fma(x1[sample * n1 + i], weights[(size_t)(n0 + i) * out + o], v);
	if (film)
		v = dk_fma(v, 1 + film[sample * filmStride + o], film[sample * filmStride + out + o]);
	v = tile::activate(v, slope);
	if (residual)
		v += residual[sample * out + o];
	y[sample * out + o] = v;
}
