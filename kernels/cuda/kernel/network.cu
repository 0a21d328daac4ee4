// The kernels of a kernels.Net: its input, blocks of two convolutions with a skip, and its output.
// See tile.h for how they compute. Images are float, [sample, H, W]; the rest is at half resolution,
// height = (H+1)/2 and width = (W+1)/2, also the noise, float, as the network sees it.
#include "tile.h"

constexpr int Constants = 12;    // exported: numbers that the first layer is told of each image
constexpr int BlockColumns = 30; // exported: pixels of a residual block's tile, across
constexpr int TallThreads = 256; // exported: threads of block_tall
constexpr int TallRows = 14;     // exported: pixels of its tile, down
constexpr int FlatThreads = 128; // exported: threads of block_flat
constexpr int FlatRows = 6;      // exported: pixels of its tile, down

// Bytes of dynamic shared memory for every 16 channels of a residual block.
constexpr int TallShared = 20736; // exported
constexpr int FlatShared = 11520; // exported

namespace network {

// rest is what rounding to halves takes from y; nothing of what becomes an infinity.
DEV float rest(float y) {
	float h = dk_h2f(dk_f2h(y));
	return h - h == 0 ? y - h : 0;
}

// cell makes a chunk of what the first layer sees of a pixel (py, px) at half resolution: four pixels of
// y, the noise, the rests of the four pixels, which have the weights of the pixels, since faint noise is
// less than what rounding would take, and Constants of the sample. The first chunk has 7 of those, the
// second one the others.
DEV void cell(u32x4 *part, int chunk, const float *y, float noise, const float *constants, int py, int px, int H, int W) {
	if (chunk) {
		part[0] = {dk_pack(constants[7], constants[8]), dk_pack(constants[9], constants[10]), dk_pack(constants[11], 0), 0};
		part[1] = {0, 0, 0, 0};
		return;
	}
	size_t row0 = (size_t)(2 * py) * W, row1 = (size_t)dk_min(2 * py + 1, H - 1) * W;
	int a = 2 * px, b = dk_min(2 * px + 1, W - 1);
	float y00 = y[row0 + a], y01 = y[row0 + b], y10 = y[row1 + a], y11 = y[row1 + b];
	part[0] = {dk_pack(y00, y01), dk_pack(y10, y11), dk_pack(noise, rest(y00)), dk_pack(rest(y01), rest(y10))};
	part[1] = {dk_pack(rest(y11), constants[0]), dk_pack(constants[1], constants[2]), dk_pack(constants[3], constants[4]), dk_pack(constants[5], constants[6])};
}

// head is the first layer, from the image on, where that sees one chunk.
template <int G>
DEV void head(const float *y, const float *noise, const float *constants, const u32x4 *weights, const float *bias, f16 *out, int H, int W, int channels, float slope) {
	SHARED(f16, input, [tile::TileHalves]);
	int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	int height = (H + 1) / 2, width = (W + 1) / 2, across = (width + ConvColumns - 1) / ConvColumns;
	int row = blockIdx.x / across * ConvRows, column = blockIdx.x % across * ConvColumns;
	int sample = blockIdx.z, first = blockIdx.y * G, groups = gridDim.y * G;
	size_t image = (size_t)H * W, pixels = (size_t)height * width;

	for (int i = threadIdx.x; i < (ConvRows + 2) * tile::Columns; i += ConvThreads) {
		int r = i / tile::Columns, c = i % tile::Columns, py = row - 1 + r, px = column - 1 + c;
		u32x4 part[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
		if ((unsigned)py < (unsigned)height && (unsigned)px < (unsigned)width)
			cell(part, 0, y + sample * image, noise[sample * pixels + (size_t)py * width + px], constants + sample * Constants, py, px, H, W);
		UNROLL
		for (int k = 0; k < 2; k++)
			*(u32x4 *)(input + tile::place(r * tile::Pitch + c, k)) = part[k];
	}
	__syncthreads();
	int wr = row + warp / 2 * 4, wc = column + warp % 2 * 16;
	if (wr >= height || wc >= width)
		return;
	float acc[4][G][2][4];
	tile::begin(acc, bias, first);
	tile::accumulate<4, G>(acc, input, warp / 2 * 4, warp % 2 * 16, weights + first * 32, groups);

	tile::Finish f = {nullptr, 0, nullptr, out, nullptr, channels, slope};
	UNROLL
	for (int g = 0; g < G; g++) {
		int channel = (first + g) * 16 + (lane & 3) * 4;
		if (channel >= f.stride())
			continue;
		UNROLL
		for (int r = 0; r < 4; r++)
			UNROLL
			for (int h = 0; h < 2; h++) {
				int py = wr + r, px = wc + (lane >> 2) + 8 * h;
				if (py < height && px < width)
					f.write(tile::part(acc[r][g], h), {}, sample * pixels + (size_t)py * width + px, channel);
			}
	}
}

// block is y = x + b(relu(a(x))) for channels of at most 16·K, with what is between in shared memory
// alone. To compute rows×BlockColumns pixels it computes a for two more rows and columns, and reads x
// for four. rows + 2 is four times the number of pairs of warps; the memory is that of x, until a has
// been summed, and then of what a gives, in the same places: that of pixel (r, c) lies one row and
// column up and left of it.
template <int K, int rows, int threads>
DEV void block(const f16 *x, f16 *y, const u32x4 *weightsA, const float *biasA, const u32x4 *weightsB, const float *biasB, int height, int width, int channels) {
	constexpr int Plane = (rows + 4) * tile::Pitch * 16; // halves of a chunk
	DYNAMIC_SHARED(f16, memory);
	int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	int across = (width + BlockColumns - 1) / BlockColumns;
	int row = blockIdx.x / across * rows, column = blockIdx.x % across * BlockColumns;
	int wr = warp / 2 * 4, wc = warp % 2 * 16;
	size_t first = (size_t)blockIdx.z * height * width;
	x += first * 16 * K;
	y += first * 16 * K;

	UNROLL
	for (int k = 0; k < K; k++) {
		tile::fetch<rows + 4, threads>(memory + k * Plane, x + k * 16, row - 2, column - 2, height, width, 16 * K, 0);
		dk_cp_async_commit();
	}
	float acc[4][K][2][4];
	tile::begin(acc, biasA, 0);
	NO_UNROLL
	for (int k = 0; k < K; k++) {
		if (k == K - 1)
			dk_cp_async_wait<0>();
		else if (k == K - 2)
			dk_cp_async_wait<1>();
		else if (k == K - 3)
			dk_cp_async_wait<2>();
		else
			dk_cp_async_wait<3>();
		__syncthreads();
		if (row - 1 + wr < height && column - 1 + wc < width)
			tile::accumulate<4, K>(acc, memory + k * Plane, wr, wc, weightsA + k * 9 * K * 32, K);
	}
	__syncthreads();
	UNROLL
	for (int r = 0; r < 4; r++)
		UNROLL
		for (int h = 0; h < 2; h++) {
			int c = wc + (lane >> 2) + 8 * h, py = row - 1 + wr + r, px = column - 1 + c, pixel = (wr + r) * tile::Pitch + c;
			bool inside = (unsigned)py < (unsigned)height && (unsigned)px < (unsigned)width;
			UNROLL
			for (int g = 0; g < K; g++) {
				int channel = g * 16 + (lane & 3) * 4;
				f32x4 v = tile::existing(tile::activate(tile::part(acc[r][g], h), 0), channel, inside ? channels : 0);
				*(u32x2 *)(memory + g * Plane + tile::place(pixel, (lane & 3) >> 1) + (lane & 1) * 4) = tile::halves(v);
			}
		}
	__syncthreads();
	if (row + wr >= height || column + wc >= width)
		return;
	tile::begin(acc, biasB, 0);
	NO_UNROLL
	for (int k = 0; k < K; k++)
		tile::accumulate<4, K>(acc, memory + k * Plane, wr, wc, weightsB + k * 9 * K * 32, K);

	tile::Finish f = {nullptr, 0, x, y, nullptr, channels, 1};
	UNROLL
	for (int r = 0; r < 4; r++)
		UNROLL
		for (int h = 0; h < 2; h++) {
			int c = wc + (lane >> 2) + 8 * h, py = row + wr + r, px = column + c;
			if (wr + r < rows && c < BlockColumns && py < height && px < width)
				UNROLL
				for (int g = 0; g < K; g++)
					f.write(tile::part(acc[r][g], h), {}, (size_t)py * width + px, g * 16 + (lane & 3) * 4);
		}
}

static_assert(TallShared == (TallRows + 4) * tile::Pitch * 32 && FlatShared == (FlatRows + 4) * tile::Pitch * 32, "bytes of shared memory");
static_assert(TallRows + 2 == TallThreads / 64 * 4 && FlatRows + 2 == FlatThreads / 64 * 4, "rows of the warps");

} // namespace network

// net_input makes the tensor that the first layer sees, [sample, height, width, chunk, 16]. constants
// are [sample, Constants], 0 where there are none. The grid is [256 pixels, samples].
KERNEL(net_input)(const float *y, const float *noise, const float *constants, u32x4 *out, int H, int W, int chunks) {
	int height = (H + 1) / 2, width = (W + 1) / 2;
	int i = blockIdx.x * 256 + threadIdx.x;
	size_t sample = blockIdx.y, pixel = sample * height * width + i;
	if (i < height * width)
		for (int k = 0; k < chunks; k++)
			network::cell(out + (pixel * chunks + k) * 2, k, y + sample * H * W, noise[pixel], constants + sample * Constants, i / width, i % width, H, W);
}

// net_head_1 to 4 are net_input and the first layer, [sample, height, width, channels rounded up], where
// that sees one chunk. The grid is [tiles, groups/G, samples].
#define HEAD(name, groups, blocks)                                                                                                                                     \
	KERNEL(__launch_bounds__(ConvThreads, blocks) name)                                                                                                                \
	(const float *y, const float *noise, const float *constants, const u32x4 *weights, const float *bias, f16 *out, int H, int W, int channels, float slope) {         \
		network::head<groups>(y, noise, constants, weights, bias, out, H, W, channels, slope);                                                                         \
	}

HEAD(net_head_1, 1, 2)
HEAD(net_head_2, 2, 2)
HEAD(net_head_3, 3, 1)
HEAD(net_head_4, 4, 1)

// net_block_tall_1 to 4 and net_block_flat_1 to 4 are a residual block of up to 16 times as many
// channels. y may not be x. The grid is [tiles, 1, samples]. Turing has shared memory for one tall
// block or two flat ones.
#define BLOCK(name, groups, rows, threads, blocks)                                                                                                                     \
	KERNEL(__launch_bounds__(threads, blocks) name)                                                                                                                    \
	(const f16 *x, f16 *y, const u32x4 *weightsA, const float *biasA, const u32x4 *weightsB, const float *biasB, int height, int width, int channels) {                \
		network::block<groups, rows, threads>(x, y, weightsA, biasA, weightsB, biasB, height, width, channels);                                                        \
	}

BLOCK(net_block_tall_1, 1, TallRows, TallThreads, DK_ARCH < 800 ? 1 : 2)
BLOCK(net_block_tall_2, 2, TallRows, TallThreads, DK_ARCH < 800 ? 1 : 2)
BLOCK(net_block_tall_3, 3, TallRows, TallThreads, 1)
BLOCK(net_block_tall_4, 4, TallRows, TallThreads, 1)
BLOCK(net_block_flat_1, 1, FlatRows, FlatThreads, DK_ARCH < 800 ? 2 : 4)
BLOCK(net_block_flat_2, 2, FlatRows, FlatThreads, DK_ARCH < 800 ? 2 : 4)
BLOCK(net_block_flat_3, 3, FlatRows, FlatThreads, 2)
BLOCK(net_block_flat_4, 4, FlatRows, FlatThreads, 2)

// net_tail is the last layer, and the image y less what it gives: dst, which may be y. x has chunks of
// 16 channels, residual is [sample, height, width, 16] or null. The grid is [tiles, 1, samples].
KERNEL(__launch_bounds__(ConvThreads, 2) net_tail)
(const f16 *x, const u32x4 *weights, const float *bias, const f16 *residual, const float *y, float *dst, int H, int W, int chunks, float slope) {
	SHARED(f16, tiles, [2][tile::TileHalves]);
	int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	int height = (H + 1) / 2, width = (W + 1) / 2, across = (width + ConvColumns - 1) / ConvColumns;
	int row = blockIdx.x / across * ConvRows, column = blockIdx.x % across * ConvColumns;
	size_t pixels = (size_t)height * width, image = blockIdx.z * (size_t)H * W;
	tile::Source s = {x + blockIdx.z * pixels * chunks * 16, nullptr, chunks, 0, 0};

	int wr = row + warp / 2 * 4, wc = column + warp % 2 * 16;
	float acc[4][1][2][4];
	tile::begin(acc, bias, 0);
	tile::convolve<1>(acc, tiles, s, row - 1, column - 1, height, width, weights, 1, wr < height && wc < width);
	if (lane & 3)
		return; // its channels do not exist
	UNROLL
	for (int r = 0; r < 4; r++)
		UNROLL
		for (int h = 0; h < 2; h++) {
			int py = wr + r, px = wc + (lane >> 2) + 8 * h;
			if (py >= height || px >= width)
				continue;
			f32x4 v = tile::activate(tile::part(acc[r][0], h), slope);
			if (residual)
				v = tile::plus(v, *(const u32x2 *)(residual + (blockIdx.z * pixels + (size_t)py * width + px) * 16));
			size_t at = image + (size_t)(2 * py) * W + 2 * px;
			bool right = 2 * px + 1 < W, below = 2 * py + 1 < H;
			dst[at] = y[at] - v.x;
			if (right)
				dst[at + 1] = y[at + 1] - v.y;
			if (below)
				dst[at + W] = y[at + W] - v.z;
			if (right && below)
				dst[at + W + 1] = y[at + W + 1] - v.w;
		}
}
