// tile.h is what the convolutions for inference share.
//
// Activations are halves, [sample, height, width, channels], with the channels rounded up to a
// multiple of 16 and zeros in those that are not there. A block of threads computes a rectangle of
// pixels, 16 input channels (a chunk) after the other. The pixels that it reads of a chunk, with a
// border, are a tile in shared memory.
//
// A warp computes several rows of 16 pixels and groups of 16 output channels: a product of matrices,
// in which 16 pixels are the rows, 16 input channels the sum, and output channels the columns.
//
// Every sum begins with the bias and runs over chunks, then columns, then rows of the window, in
// every kernel. So a value has the same bits whichever kernel computes it.
#pragma once
#include "dk.h"

constexpr int ConvRows = 16;      // exported: pixels that a block of the 3×3 convolutions computes, down
constexpr int ConvColumns = 32;   // exported: and across
constexpr int ConvThreads = 256;  // exported: threads of such a block, and of one of the pointwise ones
constexpr int GroupChannels = 16; // exported: channels of a chunk, and of a group of outputs

namespace tile {

// A row of a tile is ConvColumns pixels and a border of one on either side. Rows lie Pitch pixels
// apart, a multiple of 4 that is not one of 8, for place.
constexpr int Columns = ConvColumns + 2;
constexpr int Pitch = 36;

// place is where 8 of the 16 channels of a pixel are, in halves. The two parts of a pixel change
// places every 4 pixels, so that the same part of 8 pixels in sequence, which ldmatrix reads at once,
// is in different banks, wherever they begin.
DEV int place(int pixel, int part) { return pixel * 16 + ((part ^ (pixel >> 2 & 1)) << 3); }

// fetch begins to copy rows of a tile, from row and column of an image on; zeros lie outside of it.
// x points to the first channel of the chunk, and pixels of the image are stride halves apart. With
// up = 1, x is an image of half the size, each pixel of which stands for 2×2.
template <int rows, int threads> DEV void fetch(f16 *tile, const f16 *x, int row, int column, int height, int width, int stride, int up) {
	for (int i = threadIdx.x; i < rows * Columns * 2; i += threads) {
		int part = i & 1, r = i / 2 / Columns, c = i / 2 % Columns;
		int py = row + r, px = column + c;
		bool inside = (unsigned)py < (unsigned)height && (unsigned)px < (unsigned)width;
		const f16 *from = x + ((size_t)(py >> up) * (width >> up) + (px >> up)) * stride + part * 8;
		dk_cp_async16(tile + place(r * Pitch + c, part), inside ? from : x, inside);
	}
}

// begin sets sums to the bias, for the first of the groups on. Lane l has, of the pixels l/4 and
// l/4 + 8 of 16, the channels 4(l%4) to 4(l%4)+3 of each group, as part reads them.
template <int R, int G> DEV void begin(float (&acc)[R][G][2][4], const float *bias, int first) {
	int q = threadIdx.x & 3;
	UNROLL
	for (int g = 0; g < G; g++) {
		f32x4 b = *(const f32x4 *)(bias + (first + g) * 16 + q * 4);
		UNROLL
		for (int r = 0; r < R; r++) {
			acc[r][g][0][0] = acc[r][g][0][2] = b.x;
			acc[r][g][0][1] = acc[r][g][0][3] = b.y;
			acc[r][g][1][0] = acc[r][g][1][2] = b.z;
			acc[r][g][1][1] = acc[r][g][1][3] = b.w;
		}
	}
}

// part is the four channels of a group that the lane has of a pixel: h = 0 for pixel l/4, 1 for the
// one 8 further.
DEV f32x4 part(const float (&acc)[2][4], int h) { return {acc[0][2 * h], acc[0][2 * h + 1], acc[1][2 * h], acc[1][2 * h + 1]}; }

// multiply adds the product of 16 pixels by 16 channels and a lane's share of the weights of a group.
DEV void multiply(float (&acc)[2][4], const u32 *a, u32x4 w) {
	u32 low[2] = {w.x, w.y}, high[2] = {w.z, w.w};
	dk_mma_m16n8k16(acc[0], a, low);
	dk_mma_m16n8k16(acc[1], a, high);
}

// accumulate adds the share of a chunk in a 3×3 convolution to the sums of R rows of 16 pixels from
// row and column of the tile on; row is even. weights are those of the chunk and the first group;
// groups is the number of groups that they are laid out for, [column, row, group, lane].
//
// The pixels under the window are read from shared memory three times, for its columns, not nine.
template <int R, int G> DEV void accumulate(float (&acc)[R][G][2][4], const f16 *tile, int row, int column, const u32x4 *weights, int groups) {
	int lane = threadIdx.x & 31;
	weights += lane;
	NO_UNROLL
	for (int dx = 0; dx < 3; dx++) {
		int pixel = row * Pitch + column + dx + (lane & 15);
		const f16 *even = tile + place(pixel, lane >> 4), *odd = tile + place(pixel + Pitch, lane >> 4);
		u32 a[R + 2][4];
		UNROLL
		for (int r = 0; r < R + 2; r++)
			dk_ldmatrix_x4(a[r], (r & 1 ? odd : even) + (r >> 1) * 2 * Pitch * 16);
		UNROLL
		for (int dy = 0; dy < 3; dy++) {
			UNROLL
			for (int g = 0; g < G; g++) {
				u32x4 w = weights[g * 32];
				UNROLL
				for (int r = 0; r < R; r++)
					multiply(acc[r][g], a[r + dy], w);
			}
			weights += groups * 32;
		}
	}
}

// activate multiplies what is below zero by slope; a slope of 0 makes that zero, an infinity too.
DEV float activate(float v, float slope) { return v < 0 ? (slope == 0 ? 0 : v * slope) : v; }

DEV f32x4 activate(f32x4 v, float slope) { return {activate(v.x, slope), activate(v.y, slope), activate(v.z, slope), activate(v.w, slope)}; }

// existing is v with zeros in the channels from out on: a sum there is not zero but NaN where the
// input has an infinity.
DEV f32x4 existing(f32x4 v, int channel, int out) {
	return {channel < out ? v.x : 0, channel + 1 < out ? v.y : 0, channel + 2 < out ? v.z : 0, channel + 3 < out ? v.w : 0};
}

DEV u32x2 halves(f32x4 v) { return {dk_pack(v.x, v.y), dk_pack(v.z, v.w)}; }

DEV f32x4 plus(f32x4 v, u32x2 h) { return {v.x + dk_lo(h.x), v.y + dk_hi(h.x), v.z + dk_lo(h.y), v.w + dk_hi(h.y)}; }

// Finish is what follows the sum of a convolution with out output channels.
struct Finish {
	const float *film; // z·(1 + film[c]) + film[out + c], for each sample filmStride numbers further; or null
	int filmStride;
	const f16 *residual; // as y, or null
	f16 *y;              // [sample, pixel, channels rounded up], or null
	float *dense;        // [sample, pixel, out] instead
	int out;
	float slope;

	// stride is the halves of a pixel.
	METHOD int stride() const { return (out + 15) & ~15; }

	// Scale is what film says for four channels.
	struct Scale {
		float scale[4], offset[4];
	};
	METHOD Scale scale(int sample, int channel) const {
		Scale s = {};
		if (!film)
			return s;
		const float *f = film + (size_t)sample * filmStride;
		UNROLL
		for (int i = 0; i < 4; i++)
			if (channel + i < out) {
				s.scale[i] = 1 + f[channel + i];
				s.offset[i] = f[out + channel + i];
			}
		return s;
	}

	// write finishes four channels of a pixel, counted through all samples.
	METHOD void write(f32x4 v, const Scale &s, size_t pixel, int channel) const {
		if (film)
			v = {dk_fma(v.x, s.scale[0], s.offset[0]), dk_fma(v.y, s.scale[1], s.offset[1]), dk_fma(v.z, s.scale[2], s.offset[2]), dk_fma(v.w, s.scale[3], s.offset[3])};
		v = existing(activate(v, slope), channel, out);
		size_t at = pixel * stride() + channel;
		if (residual)
			v = plus(v, *(const u32x2 *)(residual + at));
		if (!dense) {
			*(u32x2 *)(y + at) = halves(v);
			return;
		}
		float *to = dense + pixel * out + channel;
		const float values[4] = {v.x, v.y, v.z, v.w};
		UNROLL
		for (int i = 0; i < 4; i++)
			if (channel + i < out)
				to[i] = values[i];
	}
};

// Source is one or two tensors whose channels a convolution reads.
struct Source {
	const f16 *x0, *x1; // of the sample
	int chunks0, chunks1;
	int up; // of x0

	METHOD int chunks() const { return chunks0 + chunks1; }
};

// fetch of a Source begins to copy chunk k of its pixels, height×width after any doubling.
template <int rows, int threads> DEV void fetch(f16 *tile, const Source &s, int k, int row, int column, int height, int width) {
	bool second = k >= s.chunks0;
	fetch<rows, threads>(tile, second ? s.x1 + (k - s.chunks0) * 16 : s.x0 + k * 16, row, column, height, width, (second ? s.chunks1 : s.chunks0) * 16, second ? 0 : s.up);
}

// TileHalves is the halves of one of the two tiles of convolve.
constexpr int TileHalves = (ConvRows + 2) * Pitch * 16;

// convolve is the loop over chunks of a block of ConvThreads that computes ConvRows×ConvColumns
// pixels; its tiles begin at row and column of the source. Warp w computes rows 4(w/2) on and
// columns 16(w%2) on. It does nothing but wait if active is false.
template <int G> DEV void convolve(float (&acc)[4][G][2][4], f16 (&tiles)[2][TileHalves], const Source &s, int row, int column, int height, int width, const u32x4 *weights, int groups, bool active) {
	int warp = threadIdx.x >> 5;
	fetch<ConvRows + 2, ConvThreads>(tiles[0], s, 0, row, column, height, width);
	dk_cp_async_commit();
	for (int k = 0; k < s.chunks(); k++) {
		dk_cp_async_wait<0>();
		__syncthreads();
		if (k + 1 < s.chunks()) {
			fetch<ConvRows + 2, ConvThreads>(tiles[(k + 1) & 1], s, k + 1, row, column, height, width);
			dk_cp_async_commit();
		}
		if (active)
			accumulate<4, G>(acc, tiles[k & 1], warp / 2 * 4, warp % 2 * 16, weights + (size_t)k * 9 * groups * 32, groups);
	}
}

} // namespace tile
