// Training of graphs in single precision: convolutions forward and backward, what stands between
// them, the loss and the optimizer.
//
// A tensor is [samples, height, width, channels], the channels of a pixel padded with zeros to whole
// quads; every kernel that writes a tensor writes the padding too. Kernels that are told no number of
// channels treat all quads alike. A tensor has at most 2^30 quads, so that an int can count them.
//
// Nothing is added by atomic operations: sums over pixels have stages of a fixed order, so a result is
// the same to the bit from run to run.
#include "dk.h"

namespace train {

// Four channels.
typedef float quad __attribute__((vector_size(16)));

DEV quad zero() { return quad{0, 0, 0, 0}; }

// madd returns a·b + c.
DEV quad madd(quad a, float b, quad c) {
	UNROLL
	for (int i = 0; i < 4; i++)
		c[i] = dk_fma(a[i], b, c[i]);
	return c;
}

// some returns the first n of four floats, and zeros.
DEV quad some(const float *from, int n) {
	quad v = zero();
	UNROLL
	for (int i = 0; i < 4; i++)
		if (i < n)
			v[i] = from[i];
	return v;
}

// put writes v to quad at of a gradient dst. With add it is the sum of v and that quad of add: a
// gradient of several sources is written with dst for add, save the first time. With gate, the value
// that dst is the gradient of, the sum is taken back through the activation that made the value: that
// is the last time. The sign of the value is that of what was activated; zero counts as below.
DEV void put(quad *dst, const quad *add, const quad *gate, float slope, int at, quad v) {
	if (add)
		v += add[at];
	if (gate) {
		quad y = gate[at];
		UNROLL
		for (int i = 0; i < 4; i++)
			v[i] = y[i] > 0 ? v[i] : v[i] * slope;
	}
	dst[at] = v;
}

// Place is a pixel of a batch.
struct Place {
	int n, y, x;
};

DEV Place place(int pixel, int h, int w) {
	int line = pixel / w;
	return Place{line / h, line % h, pixel % w};
}

// later returns the pixel that is as far after p as step is after pixel 0.
DEV Place later(Place p, Place step, int h, int w) {
	p = Place{p.n + step.n, p.y + step.y, p.x + step.x};
	if (p.x >= w)
		p.x -= w, p.y++;
	if (p.y >= h)
		p.y -= h, p.n++;
	return p;
}

// Window is what a convolution with results [n, h, w] reads: the channels of x0 and those of x1, and
// zeros outside. With up, x0 is half as high and wide, and each of its pixels is there four times.
struct Window {
	const quad *x0, *x1;
	int quads0, quads1; // of a pixel
	int up;             // 0 or 1
	int n, h, w;
	int size; // 1, 3, or 2 with a stride of 2
	int top;  // rows above the pixel, for size 3
};

DEV int pixels_of(const Window &s) { return s.n * s.h * s.w; }
DEV int quads_of(const Window &s) { return s.quads0 + s.quads1; }
DEV int taps_of(const Window &s) { return 4 * s.size * s.size * quads_of(s); }

// under returns quad c of row dy and column dx of the window of p.
DEV quad under(const Window &s, Place p, int dy, int dx, int c) {
	int stride = s.size == 2 ? 2 : 1, h = s.h * stride, w = s.w * stride;
	int y = p.y * stride - s.top + dy, x = p.x * stride - s.size / 3 + dx;
	if ((unsigned)y >= (unsigned)h || (unsigned)x >= (unsigned)w)
		return zero();
	int line = p.n * h + y;
	if (c < s.quads0)
		return s.x0[((line >> s.up) * (w >> s.up) + (x >> s.up)) * s.quads0 + c];
	return s.x1[(line * w + x) * s.quads1 + c - s.quads0];
}

// A thread of a convolution, and of the gradient of its weights, has eight rows of four numbers: for
// every three quads that it reads from shared memory, it multiplies and adds eight quads.
constexpr int Rows = 8;

constexpr int TrainConvolveThreads = 128; // exported: threads of a block of a convolution

// Convolution is how a block computes pixels × channels results. If that takes less threads than there
// are, groups of threads have parts of the taps each.
template <int pixels, int channels> struct Convolution {
	static constexpr int lanes = channels / 4;
	static constexpr int groups = TrainConvolveThreads / (pixels / Rows * lanes);
	static constexpr int threads = TrainConvolveThreads / groups; // of a group
	static constexpr int span = pixels < 128 ? 32 : 16;           // taps that are in shared memory at a time
	static constexpr int each = span / groups;                    // taps of a group
	static constexpr int rows = Rows / groups;                    // results that a thread ends with
};

// Result says which results a thread has: quads of one column, of every step-th pixel.
struct Result {
	int pixel, step, column;
};

// convolve multiplies what lies under the windows, [pixel, tap], with weights [tap, column]; columns
// count quads. The block's results are those of pixels blockIdx.x·pixels and columns
// blockIdx.y·channels/4 on, and acc has those of the thread. While some taps are multiplied, the next
// ones are read.
template <int pixels, int channels> DEV Result convolve(quad *acc, const Window &s, const quad *weights, int columns) {
	typedef Convolution<pixels, channels> C;
	constexpr int lanes = C::lanes, quads = C::span / 4, loads = pixels * quads / TrainConvolveThreads;
	constexpr int tapStep = TrainConvolveThreads / lanes, weightLoads = (C::span + tapStep - 1) / tapStep;
	// A pixel has one place too many, so that the same quad of neighbours lies in different banks.
	SHARED(quad, xs, [2][pixels][quads + 1]);
	SHARED(quad, ws, [2][C::span][lanes]);
	int id = threadIdx.x, lane = id % lanes, group = id / C::threads, row = id % C::threads / lanes;
	int taps = taps_of(s), column = blockIdx.y * lanes + lane;

	// This thread reads quad id%quads of the taps, of some pixels, and some quads of weights.
	Place at[loads];
	UNROLL
	for (int i = 0; i < loads; i++)
		at[i] = place(dk_min(blockIdx.x * pixels + id / quads + i * (pixels / loads), pixels_of(s) - 1), s.h, s.w);
	int c = id % quads, dy = 0, dx = 0;
	quad x[loads], w[weightLoads];
	auto read = [&](int first) {
		for (; c >= quads_of(s); c -= quads_of(s))
			if (++dx == s.size)
				dx = 0, dy++;
		UNROLL
		for (int i = 0; i < loads; i++)
			x[i] = dy < s.size ? under(s, at[i], dy, dx, c) : zero();
		c += quads;
		UNROLL
		for (int i = 0; i < weightLoads; i++) {
			int tap = id / lanes + i * tapStep;
			bool inside = tap < C::span && first + tap < taps && column < columns;
			w[i] = inside ? weights[(first + tap) * columns + column] : zero();
		}
	};
	auto keep = [&](int half) {
		UNROLL
		for (int i = 0; i < loads; i++)
			xs[half][id / quads + i * (pixels / loads)][id % quads] = x[i];
		UNROLL
		for (int i = 0; i < weightLoads; i++) {
			int tap = id / lanes + i * tapStep;
			if (tap < C::span)
				ws[half][tap][lane] = w[i];
		}
	};

	quad sum[Rows];
	UNROLL
	for (int i = 0; i < Rows; i++)
		sum[i] = zero();
	for (int next = 0, half = 0;; next += C::span, half ^= 1) {
		bool more = next < taps;
		if (more)
			read(next);
		if (next > 0) {
			UNROLL
			for (int k = 0; k < C::each / 4; k++) {
				quad v[4];
				UNROLL
				for (int j = 0; j < 4; j++)
					v[j] = ws[half][group * C::each + 4 * k + j][lane];
				UNROLL
				for (int i = 0; i < Rows; i++) {
					quad u = xs[half][row + i * (pixels / Rows)][group * (C::each / 4) + k];
					UNROLL
					for (int j = 0; j < 4; j++)
						sum[i] = madd(v[j], u[j], sum[i]);
				}
			}
		}
		if (!more)
			break;
		keep(half ^ 1);
		__syncthreads();
	}

	// Each group adds up some of the rows, over the groups in order.
	quad *others = &xs[0][0][0];
	static_assert(C::groups == 1 || C::groups * C::rows * C::threads <= 2 * pixels * (quads + 1), "shared memory for the sums");
	UNROLL
	for (int g = 0; g < C::groups; g++) {
		if (C::groups > 1) {
			__syncthreads();
			UNROLL
			for (int i = 0; i < C::rows; i++)
				others[(group * C::rows + i) * C::threads + id % C::threads] = sum[g * C::rows + i];
			__syncthreads();
		}
		if (group == g) {
			UNROLL
			for (int i = 0; i < C::rows; i++) {
				acc[i] = C::groups > 1 ? others[i * C::threads + id % C::threads] : sum[i];
				for (int k = 1; k < C::groups; k++)
					acc[i] += others[(k * C::rows + i) * C::threads + id % C::threads];
			}
		}
	}
	return Result{(int)(blockIdx.x * pixels) + row + group * C::rows * (pixels / Rows), pixels / Rows, column};
}

// forward is a convolution and what follows it. y has out channels, z keeps what the scale and offset
// of film [n, 2·out] are applied to.
template <int pixels, int channels>
DEV void forward(quad *y, quad *z, const Window &s, const quad *weights, const float *bias, const float *film, const quad *residual, int out, float slope) {
	constexpr int rows = Convolution<pixels, channels>::rows;
	int columns = (out + 3) / 4, filmed = (2 * out + 3) / 4 * 4;
	quad acc[rows];
	Result r = convolve<pixels, channels>(acc, s, weights, columns);
	if (r.column >= columns)
		return;
	quad b = some(bias + 4 * r.column, out - 4 * r.column);
	UNROLL
	for (int i = 0; i < rows; i++) {
		int pixel = r.pixel + i * r.step, to = pixel * columns + r.column;
		if (pixel >= pixels_of(s))
			return;
		quad v = acc[i] + b;
		if (film) {
			z[to] = v;
			const float *f = film + pixel / (s.h * s.w) * filmed + 4 * r.column;
			quad scale = some(f, out - 4 * r.column), offset = some(f + out, out - 4 * r.column);
			UNROLL
			for (int j = 0; j < 4; j++)
				v[j] = dk_fma(v[j], 1 + scale[j], offset[j]);
		}
		UNROLL
		for (int j = 0; j < 4; j++)
			v[j] = v[j] < 0 ? v[j] * slope : v[j];
		if (residual)
			v += residual[to];
		y[to] = v;
	}
}

// backward is the gradient of a source of a convolution, which has the given quads: a window over the
// gradient of the results, with the weights turned around. If the convolution halves the size, the
// columns of the weights are those of four pixels of the source.
template <int pixels, int channels>
DEV void backward(quad *dst, const quad *add, const quad *gate, const Window &s, const quad *weights, int quads, int halves, float slope) {
	constexpr int rows = Convolution<pixels, channels>::rows;
	int columns = halves ? 4 * quads : quads;
	quad acc[rows];
	Result r = convolve<pixels, channels>(acc, s, weights, columns);
	if (r.column >= columns)
		return;
	UNROLL
	for (int i = 0; i < rows; i++) {
		int pixel = r.pixel + i * r.step, to = pixel * columns + r.column;
		if (pixel >= pixels_of(s))
			return;
		if (halves) {
			int part = r.column / quads, line = 2 * (pixel / s.w) + part / 2, x = 2 * (pixel % s.w) + part % 2;
			to = (line * 2 * s.w + x) * quads + r.column % quads;
		}
		put(dst, add, gate, slope, to, acc[i]);
	}
}

constexpr int TrainWeighTaps = 96;     // exported: taps whose gradients a block of train_weigh computes
constexpr int TrainWeighPixels = 32;   // exported: pixels that it takes at a time
constexpr int TrainWeighThreads = 384; // exported

// weigh sums the gradient of the weights [tap, column] over the pixels from blockIdx.z·length on, a
// multiple of TrainWeighPixels, and writes it to sums [blockIdx.z, taps + 1, columns]. The last row is
// that of the bias. dz is the gradient of the results. The block computes it for the taps from
// blockIdx.x·TrainWeighTaps and columns from blockIdx.y·channels/4 on; its groups of threads have parts
// of the pixels each.
template <int channels> DEV void weigh(quad *sums, const Window &s, const quad *dz, int columns, int length) {
	constexpr int lanes = channels / 4, threads = TrainWeighTaps / Rows * lanes, groups = TrainWeighThreads / threads;
	constexpr int quads = TrainWeighTaps / 4, loads = TrainWeighPixels * quads / TrainWeighThreads;
	SHARED(quad, xs, [2][TrainWeighPixels][quads]);
	SHARED(quad, ds, [2][TrainWeighPixels][lanes]);
	SHARED(quad, biases, [groups][lanes]);
	int id = threadIdx.x, group = id / threads, lane = id % lanes, row = id % threads / lanes * Rows;
	int begin = blockIdx.z * length, end = dk_min(begin + length, pixels_of(s));

	// This thread reads a quad of taps of some pixels, and maybe a quad of dz.
	int tap = blockIdx.x * quads + id % quads, c = tap % quads_of(s), dy = tap / quads_of(s) / s.size, dx = tap / quads_of(s) % s.size;
	int column = blockIdx.y * lanes + lane;
	Place at[loads], step = place(TrainWeighPixels, s.h, s.w);
	UNROLL
	for (int i = 0; i < loads; i++)
		at[i] = place(begin + id / quads + i * (TrainWeighPixels / loads), s.h, s.w);
	quad x[loads], d = zero();
	auto read = [&](int first) {
		UNROLL
		for (int i = 0; i < loads; i++) {
			bool inside = dy < s.size && first + id / quads + i * (TrainWeighPixels / loads) < end;
			x[i] = inside ? under(s, at[i], dy, dx, c) : zero();
			at[i] = later(at[i], step, s.h, s.w);
		}
		bool inside = id / lanes < TrainWeighPixels && first + id / lanes < end && column < columns;
		d = inside ? dz[(first + id / lanes) * columns + column] : zero();
	};
	auto keep = [&](int half) {
		UNROLL
		for (int i = 0; i < loads; i++)
			xs[half][id / quads + i * (TrainWeighPixels / loads)][id % quads] = x[i];
		if (id / lanes < TrainWeighPixels)
			ds[half][id / lanes][lane] = d;
	};

	quad acc[Rows], bias = zero();
	UNROLL
	for (int i = 0; i < Rows; i++)
		acc[i] = zero();
	for (int next = begin, half = 0;; next += TrainWeighPixels, half ^= 1) {
		bool more = next < end;
		if (more)
			read(next);
		if (next > begin) {
			UNROLL
			for (int k = 0; k < TrainWeighPixels / groups; k++) {
				int pixel = group * (TrainWeighPixels / groups) + k;
				quad v = ds[half][pixel][lane];
				UNROLL
				for (int i = 0; i < Rows; i++)
					acc[i] = madd(v, xs[half][pixel][row / 4 + i / 4][i % 4], acc[i]);
				if (row == 0)
					bias += v;
			}
		}
		if (!more)
			break;
		keep(half ^ 1);
		__syncthreads();
	}

	// The groups' sums come together in the first, in order.
	quad *others = &xs[0][0][0];
	if (row == 0)
		biases[group][lane] = bias;
	for (int g = 1; g < groups; g++) {
		__syncthreads();
		if (group == g)
			for (int i = 0; i < Rows; i++)
				others[(row + i) * lanes + lane] = acc[i];
		__syncthreads();
		if (group == 0)
			for (int i = 0; i < Rows; i++)
				acc[i] += others[(row + i) * lanes + lane];
	}
	if (group > 0 || column >= columns)
		return;
	int taps = taps_of(s);
	quad *to = sums + (size_t)blockIdx.z * (taps + 1) * columns + column;
	for (int i = 0; i < Rows; i++) {
		int tap = blockIdx.x * TrainWeighTaps + row + i;
		if (tap < taps)
			to[tap * columns] = acc[i];
	}
	if (blockIdx.x == 0 && row == 0) {
		for (int g = 1; g < groups; g++)
			bias += biases[g][lane];
		to[taps * columns] = bias;
	}
}

constexpr int TrainThreads = 256; // exported: of a block of all other kernels

// element returns the number of the thread in the grid.
DEV int element() { return (int)(blockIdx.x * TrainThreads + threadIdx.x); }

// total returns the sum of v over the block to its first thread.
DEV double total(double v) {
	SHARED(double, sums, [TrainThreads]);
	sums[threadIdx.x] = v;
	for (int n = TrainThreads / 2; n > 0; n /= 2) {
		__syncthreads();
		if ((int)threadIdx.x < n)
			sums[threadIdx.x] += sums[threadIdx.x + n];
	}
	__syncthreads(); // before the next total, whose first thread alone writes what it reads here
	return threadIdx.x == 0 ? sums[0] : 0;
}

// Layer is what pack and collect know of a convolution's parameters, all ints. Offsets of parameters
// count floats, those of packed weights and of sums quads.
struct Layer {
	int weights, bias;            // where the parameters [out, in0 + in1, size, size] and [out] are
	int out, in0, in1, size;      // channels of the result and of the sources
	int columns, quads0, quads1;  // their quads
	int forward, back0, back1;    // where the packed weights go, for the result and for each source; -1: nowhere
	int sums, parts;              // what weigh has written: [parts, taps + 1, columns]
};

// parameter returns the place of what is in row of the packed weights' taps and column o; -1 is padding.
DEV int parameter(const Layer &l, int row, int o) {
	int quads = l.quads0 + l.quads1, tap = row / (4 * quads), i = row % (4 * quads);
	if (i >= 4 * l.quads0)
		i = i - 4 * l.quads0 < l.in1 ? i - 4 * l.quads0 + l.in0 : -1;
	else if (i >= l.in0)
		i = -1;
	return i < 0 || o >= l.out ? -1 : l.weights + (o * (l.in0 + l.in1) + i) * l.size * l.size + tap;
}

} // namespace train

using train::quad;

// Convolutions. The names say how many pixels and channels a block computes; the grid is [pixels,
// channels].

#define FORWARD(pixels, channels)                                                                                    \
	KERNEL(__launch_bounds__(train::TrainConvolveThreads, 3) train_forward_##pixels##x##channels)                                                                                  \
	(quad * y, quad *z, const quad *x0, const quad *x1, const quad *weights, const float *bias, const float *film,         \
		const quad *residual, int quads0, int quads1, int up, int n, int h, int w, int size, int top, int out, float slope) { \
		train::Window s = {x0, x1, quads0, quads1, up, n, h, w, size, top};                                                \
		train::forward<pixels, channels>(y, z, s, weights, bias, film, residual, out, slope);                        \
	}
FORWARD(128, 32)
FORWARD(64, 32)
FORWARD(32, 32)
FORWARD(128, 16)
FORWARD(128, 8)

// [n, h, w] are the results of the convolution, of outs quads, size and top its window.
#define BACKWARD(pixels, channels)                                                                             \
	KERNEL(__launch_bounds__(train::TrainConvolveThreads, 3) train_backward_##pixels##x##channels)                                                                           \
	(quad * dst, const quad *add, const quad *gate, const quad *dz, const quad *weights, int outs, int n, int h, int w, \
		int size, int top, int quads, float slope) {                                                                  \
		train::Window s = {dz, nullptr, outs, 0, 0, n, h, w, size == 2 ? 1 : size, size == 3 ? 2 - top : 0};         \
		train::backward<pixels, channels>(dst, add, gate, s, weights, quads, size == 2, slope);                \
	}
BACKWARD(128, 32)
BACKWARD(64, 32)
BACKWARD(32, 32)
BACKWARD(128, 16)
BACKWARD(128, 8)

// The grid is [taps, channels, parts of the pixels].
#define WEIGH(channels)                                                                                               \
	KERNEL(__launch_bounds__(train::TrainWeighThreads) train_weigh_##channels)                                                                                          \
	(quad * sums, const quad *x0, const quad *x1, const quad *dz, int quads0, int quads1, int up, int n, int h, int w, \
		int size, int top, int columns, int length) {                                                                  \
		train::Window s = {x0, x1, quads0, quads1, up, n, h, w, size, top};                                           \
		train::weigh<channels>(sums, s, dz, columns, length);                                                         \
	}
WEIGH(32)
WEIGH(16)
WEIGH(8)

// pack lays parameters out for convolve. The grid is [any, layers].
KERNEL(train_pack)(float *packed, const float *params, const train::Layer *layers) {
	const train::Layer l = layers[blockIdx.y];
	int quads = l.quads0 + l.quads1, taps = l.size * l.size, wide = 4 * l.columns;
	for (int i = train::element(); i < 4 * taps * quads * wide; i += gridDim.x * train::TrainThreads) {
		int row = i / wide, o = i % wide, from = train::parameter(l, row, o);
		float v = from < 0 ? 0 : params[from];
		packed[4 * l.forward + i] = v;
		int tap = row / (4 * quads), c = row % (4 * quads), to = l.back0, deep = 4 * l.quads0;
		if (c >= deep) {
			c -= deep;
			to = l.back1, deep = 4 * l.quads1;
		}
		if (to >= 0)
			packed[4 * to + (l.size == 2 ? (o * 4 + tap) * deep : ((taps - 1 - tap) * wide + o) * deep) + c] = v;
	}
}

// collect adds the parts of gradients, multiplies them with scale, and lays them out like the
// parameters. It leaves the sum of their squares of each block in squares. The grid is [any, layers].
KERNEL(train_collect)(float *gradient, double *squares, const float *sums, const train::Layer *layers, float scale) {
	const train::Layer l = layers[blockIdx.y];
	int wide = 4 * l.columns, taps = 4 * l.size * l.size * (l.quads0 + l.quads1), part = (taps + 1) * wide;
	double square = 0;
	for (int i = train::element(); i < part; i += gridDim.x * train::TrainThreads) {
		int row = i / wide, o = i % wide, to = row < taps ? train::parameter(l, row, o) : o < l.out ? l.bias + o : -1;
		if (to < 0)
			continue;
		const float *from = sums + 4 * (size_t)l.sums + i;
		float sum = 0;
		for (int k = 0; k < l.parts; k++)
			sum += from[(size_t)k * part];
		sum *= scale;
		gradient[to] = sum;
		square += (double)sum * sum;
	}
	square = train::total(square);
	if (threadIdx.x == 0)
		squares[blockIdx.y * gridDim.x + blockIdx.x] = square;
}

// finish adds the losses and squares of all blocks and decides about the step. result is the sum of the
// losses, the norm of the gradient, what clipping multiplies the gradient with, and 1 if the two are
// finite, else 0. clip is the greatest norm; 0: none. The grid is one block.
KERNEL(train_finish)(double *result, const double *losses, int nlosses, const double *squares, int nsquares, float clip) {
	double loss = 0, norm = 0;
	for (int i = threadIdx.x; i < nlosses; i += train::TrainThreads)
		loss += losses[i];
	for (int i = threadIdx.x; i < nsquares; i += train::TrainThreads)
		norm += squares[i];
	loss = train::total(loss);
	norm = dk_sqrt(train::total(norm));
	if (threadIdx.x > 0)
		return;
	result[0] = loss;
	result[1] = norm;
	result[2] = clip > 0 && norm > clip ? clip / norm : 1;
	result[3] = loss - loss == 0 && norm - norm == 0 ? 1 : 0;
}

// step is AdamW and the exponential mean of the parameters. Nothing changes if result says that the
// gradient is not finite, or if factors[0] is 0. The others are the rate by the correction of the mean,
// the root of that of the squares, rate times decay, and how far the exponential mean goes. The first
// decayed parameters shrink.
KERNEL(train_step)
(float *params, float *means, float *squares, float *averages, const float *gradient, const double *result, const float *factors,
	int n, int decayed, float beta1, float beta2) {
	int i = train::element();
	if (i >= n || factors[0] == 0 || result[3] == 0)
		return;
	float g = gradient[i] * (float)result[2], p = params[i];
	float m = beta1 * means[i] + (1 - beta1) * g, s = beta2 * squares[i] + (1 - beta2) * g * g;
	float change = factors[1] * m / (dk_sqrt(s) * factors[2] + 1e-8f);
	p -= i < decayed ? factors[3] * p + change : change;
	means[i] = m;
	squares[i] = s;
	params[i] = p;
	averages[i] += factors[4] * (p - averages[i]);
}

// loss is the first gradient, that of the output y by itself: without the factor that makes the loss a
// mean. weight multiplies the loss of a pixel. It leaves the sum of the loss of each block in losses.
KERNEL(train_loss)
(quad *dst, double *losses, const quad *y, const float *target, const float *weight, const quad *gate, int pixels, int channels,
	float slope) {
	int quads = (channels + 3) / 4;
	double sum = 0;
	for (int i = train::element(); i < pixels * quads; i += gridDim.x * train::TrainThreads) {
		int pixel = i / quads, c = i % quads * 4;
		float w = weight[pixel];
		quad want = train::some(target + (size_t)pixel * channels + c, channels - c), d;
		UNROLL
		for (int j = 0; j < 4; j++) {
			float e = y[i][j] - want[j]; // 0 in padding
			sum += (double)w * e * e;
			d[j] = 2 * w * e;
		}
		train::put(dst, nullptr, gate, slope, i, d);
	}
	sum = train::total(sum);
	if (threadIdx.x == 0)
		losses[blockIdx.x] = sum;
}

// unfilm takes the gradient d of filmed values, [n, pixels], back through their scale, and sums up that
// of the scale and offset over length pixels of a sample: sums [n, gridDim.y, 2, quads]. z is what
// forward has kept. The grid is [n, parts of the
// pixels].
KERNEL(train_unfilm)(quad *d, quad *sums, const quad *z, const float *film, int pixels, int channels, int length) {
	SHARED(quad, parts, [2][train::TrainThreads]);
	int quads = (channels + 3) / 4, lanes = dk_min(32, train::TrainThreads / quads), id = threadIdx.x, lane = id / quads, c = id % quads;
	quad scale = train::zero(), offset = train::zero();
	if (lane < lanes) {
		quad f = train::some(film + blockIdx.x * ((2 * channels + 3) / 4 * 4) + 4 * c, channels - 4 * c);
		int end = dk_min((blockIdx.y + 1) * length, pixels);
		for (int pixel = blockIdx.y * length + lane; pixel < end; pixel += lanes) {
			int at = (blockIdx.x * pixels + pixel) * quads + c;
			quad v = d[at];
			offset += v;
			scale += v * z[at];
			d[at] = v + v * f;
		}
	}
	parts[0][id] = scale;
	parts[1][id] = offset;
	__syncthreads();
	if (id >= 2 * quads)
		return;
	quad sum = parts[id / quads][c];
	for (int i = 1; i < lanes; i++)
		sum += parts[id / quads][i * quads + c];
	sums[((blockIdx.x * gridDim.y + blockIdx.y) * 2 + id / quads) * quads + c] = sum;
}

// film_gradient adds what unfilm has left, of n samples, to the gradient of scales and offsets.
KERNEL(train_film_gradient)(quad *dst, const quad *add, const quad *gate, const float *sums, int n, int parts, int channels, float slope) {
	int quads = (2 * channels + 3) / 4, wide = (channels + 3) / 4 * 4, at = train::element();
	if (at >= n * quads)
		return;
	quad sum = train::zero();
	UNROLL
	for (int j = 0; j < 4; j++) {
		int c = at % quads * 4 + j, half = c / channels;
		if (half < 2)
			for (int k = 0; k < parts; k++)
				sum[j] += sums[((at / quads * parts + k) * 2 + half) * wide + c % channels];
	}
	train::put(dst, add, gate, slope, at, sum);
}

// pad copies an input [pixels, channels] to a tensor.
KERNEL(train_pad)(quad *dst, const float *src, int pixels, int channels) {
	int quads = (channels + 3) / 4, at = train::element(), c = at % quads * 4;
	if (at >= pixels * quads)
		return;
	dst[at] = train::some(src + (size_t)(at / quads) * channels + c, channels - c);
}

// The kernels below make values, and with add and gate gradients: see put. dst is [n, h, w].

// add writes src.
KERNEL(train_add)(quad *dst, const quad *add, const quad *gate, const quad *src, int quads, float slope) {
	int at = train::element();
	if (at < quads)
		train::put(dst, add, gate, slope, at, src[at]);
}

// rotate turns src by k quarter turns counterclockwise.
KERNEL(train_rotate)(quad *dst, const quad *add, const quad *gate, const quad *src, int n, int h, int w, int quads, int k, float slope) {
	int at = train::element();
	if (at >= n * h * w * quads)
		return;
	train::Place p = train::place(at / quads, h, w);
	int y = k == 1 ? p.x : k == 2 ? h - 1 - p.y : k == 3 ? w - 1 - p.x : p.y;
	int x = k == 1 ? h - 1 - p.y : k == 2 ? w - 1 - p.x : k == 3 ? p.y : p.x;
	int line = k % 2 ? p.n * w + y : p.n * h + y;
	train::put(dst, add, gate, slope, at, src[(line * (k % 2 ? h : w) + x) * quads + at % quads]);
}

// shift moves src down by *rows rows, or up if up is 1.
KERNEL(train_shift)(quad *dst, const quad *add, const quad *gate, const quad *src, const int *rows, int n, int h, int w, int quads, int up, float slope) {
	int at = train::element();
	if (at >= n * h * w * quads)
		return;
	int y = at / quads / w % h, by = up ? *rows : -*rows;
	quad v = (unsigned)(y + by) < (unsigned)h ? src[at + by * w * quads] : train::zero();
	train::put(dst, add, gate, slope, at, v);
}

// fold adds 2×2 pixels of src: the gradient of a source that was doubled in size.
KERNEL(train_fold)(quad *dst, const quad *add, const quad *gate, const quad *src, int n, int h, int w, int quads, float slope) {
	int at = train::element();
	if (at >= n * h * w * quads)
		return;
	int line = at / quads / w * 2, from = (line * 2 * w + at / quads % w * 2) * quads + at % quads;
	quad v = src[from] + src[from + quads];
	from += 2 * w * quads;
	train::put(dst, add, gate, slope, at, v + (src[from] + src[from + quads]));
}
