// emu.h runs kernels on the host, for tests: the same source, compiled as C++ with DK_EMU defined.
//
// Every CUDA thread is a fiber. The threads of a block take turns on one processor: one runs until it
// reaches a barrier or an operation of its warp, then the next. Blocks run one after the other, and
// launches too (launch holds a lock). What a kernel may not rely on is made as unkind as possible:
//
//   - shared memory holds 0xff bytes when a block starts (NaN, also as halves);
//   - threads and blocks run in ascending order, or, if `reversed` is set, in descending order. A
//     missing barrier gives wrong numbers in one of the two;
//   - an asynchronous copy is made when it is asked for in ascending order and when it is waited for
//     in descending order.
//
// A barrier that only some threads reach, or that threads reach in different places, an operation of
// a warp that some lanes skip, and too much shared memory end the process with a message. Accesses
// outside of global or shared memory are for the compiler to find: -fsanitize=address,undefined.
//
// Compile with -ffp-contract=off, since contracted products would differ between kernels, and on
// amd64 with -march=x86-64-v3: conversions and dk_fma are slow without the instructions for them.
#pragma once
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

#define __forceinline__ inline
#define __launch_bounds__(...)
#define DEV static inline
#define METHOD inline
#define KERNEL(name) extern "C" void name
#define UNROLL
#define NO_UNROLL

namespace emu {

struct Dim {
	unsigned x, y, z;
};

const size_t MaxStatic = 48 << 10;  // bytes of static shared memory of a block
const size_t MaxShared = 227 << 10; // of all shared memory of a block
const int MaxThreads = 1024;

// reversed is the order in which threads and blocks run; a driver sets it between launches.
inline bool reversed = false;

[[noreturn]] inline void die(const char *format, ...) {
	va_list args;
	va_start(args, format);
	fputs("emulated kernel: ", stderr);
	vfprintf(stderr, format, args);
	fputs("\n", stderr);
	va_end(args);
	abort();
}

// Copy is an asynchronous copy that is under way.
struct Copy {
	void *dst;
	const void *src; // nullptr: zeros
	void run() const {
		if (src)
			memcpy(dst, src, 16);
		else
			memset(dst, 0, 16);
	}
};

enum State { Ready, AtBarrier, AtWarp, Done };

struct Fiber {
	void *context; // where it goes on
	char *stack;
	int number; // within the block
	Dim index;
	State state;
	const char *file; // of the barrier or operation that it waits at
	int line;
	std::vector<Copy> copies;
	std::vector<size_t> groups; // the number of copies at each commit
	void *fake;                 // of the address sanitizer
};

// Warp collects the operands of an operation until all lanes have given theirs.
struct Warp {
	u32 in[32][6];
	u32 out[32][4];
	const void *rows[32];
	int given;
	const char *op;
};

// Block is the block that runs; there is one at a time.
struct Block {
	Fiber fibers[MaxThreads];
	Warp warps[MaxThreads / 32];
	int threads, alive, waiting; // waiting at a barrier
	u64 number;                  // counts all blocks that have run
	void *scheduler;
	Fiber *current;
	void (*body)(void **);
	void **params;
	char *dynamic;
	size_t dynamicBytes, staticBytes;
	void *fake;
};
inline Block block;
inline std::mutex lock;

#ifdef __SANITIZE_ADDRESS__
const size_t StackBytes = 256 << 10;
inline void leave(void **fake, const void *bottom, size_t bytes) { __sanitizer_start_switch_fiber(fake, bottom, bytes); }
inline void arrive(void *fake, const void **bottom, size_t *bytes) { __sanitizer_finish_switch_fiber(fake, bottom, bytes); }
#else
const size_t StackBytes = 64 << 10;
inline void leave(void **, const void *, size_t) {}
inline void arrive(void *, const void **, size_t *) {}
#endif
// The stack of the thread that launches, which the address sanitizer wants to know.
inline const void *hostBottom;
inline size_t hostBytes;

#ifndef EMU_UCONTEXT
// switchTo leaves where the caller goes on in *save, and goes on at to. It is not a function that is
// called, since processors predict where calls return to, and would be wrong each time. The compiler
// saves the registers that it still needs, but for two that it does not let go.
__attribute__((always_inline)) inline void switchTo(void **save, void *to) {
	asm volatile(
		"lea -128(%%rsp), %%rsp\n" // what a function may use below its stack pointer
		"push %%rbp\n"
		"push %%rbx\n"
		"lea 1f(%%rip), %%rax\n"
		"push %%rax\n"
		"mov %%rsp, (%0)\n"
		"mov %1, %%rsp\n"
		"pop %%rax\n"
		"jmp *%%rax\n"
		"1: pop %%rbx\n"
		"pop %%rbp\n"
		"lea 128(%%rsp), %%rsp\n"
		: "+D"(save), "+S"(to)
		:
		: "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
		  "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
}
inline void toScheduler() { switchTo(&block.current->context, block.scheduler); }
inline void toFiber(Fiber &f) { switchTo(&block.scheduler, f.context); }
inline void prepare(Fiber &f, void (*start)()) {
	// Not at the same distance from a page, or all stacks would compete for the same lines of the cache.
	size_t top = (size_t)f.stack + StackBytes - (size_t)f.number % 61 * 17 * 64;
	void **sp = (void **)(top & ~(size_t)15);
	*--sp = nullptr; // the return address of start, which does not return
	*--sp = (void *)start;
	f.context = sp;
}
#else
inline ucontext_t schedulerContext;
inline void toScheduler() { swapcontext((ucontext_t *)block.current->context, &schedulerContext); }
inline void toFiber(Fiber &f) { swapcontext(&schedulerContext, (ucontext_t *)f.context); }
inline void prepare(Fiber &f, void (*start)()) {
	if (!f.context)
		f.context = new ucontext_t;
	ucontext_t *u = (ucontext_t *)f.context;
	getcontext(u);
	u->uc_stack.ss_sp = f.stack;
	u->uc_stack.ss_size = StackBytes;
	u->uc_link = nullptr;
	makecontext(u, start, 0);
}
#endif

} // namespace emu

inline emu::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emu {

// yield lets others run until the state of the thread is Ready again.
inline void yield() {
	Fiber *f = block.current;
	leave(f->state == Done ? nullptr : &f->fake, hostBottom, hostBytes);
	toScheduler();
	arrive(f->fake, nullptr, nullptr);
}

inline void resume(Fiber &f) {
	block.current = &f;
	threadIdx = f.index;
	leave(&block.fake, f.stack, StackBytes);
	toFiber(f);
	arrive(block.fake, nullptr, nullptr);
}

// start is where a fiber begins.
inline void start() {
	arrive(nullptr, &hostBottom, &hostBytes);
	block.body(block.params);
	Fiber *f = block.current;
	f->state = Done;
	block.alive--;
	yield();
	abort();
}

inline void barrier(const char *file, int line) {
	Fiber *f = block.current;
	f->state = AtBarrier;
	f->file = file;
	f->line = line;
	block.waiting++;
	yield();
}

// release lets the threads go on that wait at a barrier, if that is all of them.
inline bool release() {
	if (block.waiting == 0 || block.waiting < block.alive)
		return false;
	block.waiting = 0;
	const Fiber *first = nullptr;
	for (int i = 0; i < block.threads; i++) {
		Fiber &f = block.fibers[i];
		if (f.state != AtBarrier)
			continue;
		if (!first)
			first = &f;
		if (f.line != first->line || strcmp(f.file, first->file))
			die("thread %d is at the barrier of %s:%d and thread %d at that of %s:%d", first->number, first->file, first->line, f.number, f.file, f.line);
		f.state = Ready;
	}
	return true;
}

[[noreturn]] inline void deadlock() {
	for (int i = 0; i < block.threads; i++) {
		Fiber &f = block.fibers[i];
		if (f.state == AtWarp)
			die("block %u,%u,%u: thread %d waits for its warp at %s:%d, where only %d lanes are; %d of %d threads wait at a barrier", blockIdx.x, blockIdx.y,
				blockIdx.z, f.number, f.file, f.line, block.warps[f.number / 32].given, block.waiting, block.alive);
	}
	die("block %u,%u,%u: only %d of %d threads reach a barrier", blockIdx.x, blockIdx.y, blockIdx.z, block.waiting, block.alive);
}

// collective gives n operands and maybe the address of a row to an operation op of the warp, which the
// last lane runs, and returns the results of the calling lane.
template <class F> inline const u32 *collective(const char *name, const char *file, int line, const u32 *in, int n, const void *row, F op) {
	Fiber *f = block.current;
	Warp &w = block.warps[f->number / 32];
	int lane = f->number % 32;
	if (w.given == 0)
		w.op = name;
	else if (w.op != name && strcmp(w.op, name))
		die("lanes of one warp are at %s and at %s (%s:%d)", w.op, name, file, line);
	for (int i = 0; i < n; i++)
		w.in[lane][i] = in[i];
	w.rows[lane] = row;
	if (++w.given < 32) {
		f->state = AtWarp;
		f->file = file;
		f->line = line;
		yield();
	} else {
		op(w);
		w.given = 0;
		for (int i = 0; i < 32; i++)
			block.fibers[f->number - lane + i].state = Ready;
	}
	return w.out[lane];
}

inline void runBlock() {
	Block &b = block;
	b.number++;
	b.alive = b.threads;
	b.waiting = 0;
	b.staticBytes = 0;
	memset(b.dynamic, 0xff, b.dynamicBytes);
	for (int i = 0; i < b.threads; i++) {
		Fiber &f = b.fibers[i];
		if (!f.stack)
			f.stack = (char *)malloc(StackBytes);
#ifdef __SANITIZE_ADDRESS__
		ASAN_UNPOISON_MEMORY_REGION(f.stack, StackBytes);
#endif
		f.number = i;
		f.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
		f.state = Ready;
		f.copies.clear();
		f.groups.clear();
		prepare(f, start);
	}
	const int warps = (b.threads + 31) / 32;
	for (int i = 0; i < warps; i++)
		b.warps[i].given = 0;
	while (b.alive > 0) {
		for (int k = 0; k < warps; k++) {
			// One warp for as long as it can, so that its stacks stay in the cache.
			int first = 32 * (reversed ? warps - 1 - k : k), lanes = b.threads - first < 32 ? b.threads - first : 32;
			bool moved = true;
			while (moved) {
				moved = false;
				for (int i = 0; i < lanes; i++) {
					Fiber &f = b.fibers[first + (reversed ? lanes - 1 - i : i)];
					if (f.state == Ready) {
						moved = true;
						resume(f);
					}
				}
			}
		}
		if (b.alive > 0 && !release())
			deadlock();
	}
}

// Static is the memory of one SHARED declaration.
class Static {
	char *memory;
	size_t bytes;
	u64 filled = 0; // for which block

  public:
	explicit Static(size_t bytes) : memory((char *)aligned_alloc(16, (bytes + 15) / 16 * 16)), bytes(bytes) {}
	void *get() {
		if (filled != block.number) {
			filled = block.number;
			memset(memory, 0xff, bytes);
			block.staticBytes += bytes;
			if (block.staticBytes > MaxStatic || block.staticBytes + block.dynamicBytes > MaxShared)
				die("%zu bytes of static and %zu of dynamic shared memory", block.staticBytes, block.dynamicBytes);
		}
		return memory;
	}
};

// Kernel is what a driver knows of a kernel.
struct Kernel {
	void (*call)(void **params);
	std::vector<size_t> sizes; // bytes of each parameter
	const char *name;
};

// kernels are the registered ones, by name.
inline std::map<std::string, Kernel> &kernels() {
	static std::map<std::string, Kernel> all;
	return all;
}

// launch runs a kernel with the parameters of cuLaunchKernel: params[i] points to parameter i. It
// returns when all is done.
inline void launch(const Kernel &k, Dim grid, Dim threads, size_t sharedBytes, void **params) {
	std::lock_guard<std::mutex> one(lock);
	u64 count = (u64)threads.x * threads.y * threads.z, blocks = (u64)grid.x * grid.y * grid.z;
	if (count < 1 || count > MaxThreads || blocks < 1 || sharedBytes > MaxShared)
		die("%s: %llu blocks of %llu threads with %zu bytes of shared memory", k.name, blocks, count, sharedBytes);
	blockDim = threads;
	gridDim = grid;
	block.threads = (int)count;
	block.body = k.call;
	block.params = params;
	// Of exactly this size, so that an access beyond it is found.
	block.dynamic = (char *)aligned_alloc(16, (sharedBytes + 15) / 16 * 16 + (sharedBytes == 0 ? 16 : 0));
	block.dynamicBytes = sharedBytes;
	for (u64 i = 0; i < blocks; i++) {
		u64 at = reversed ? blocks - 1 - i : i;
		blockIdx = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y), (unsigned)(at / grid.x / grid.y)};
		runBlock();
	}
	free(block.dynamic);
}

template <class> struct Signature;
template <class... A> struct Signature<void (*)(A...)> {
	static std::vector<size_t> sizes() { return {sizeof(A)...}; }
	template <void (*f)(A...)> static void call(void **params) { unpack<f>(params, std::index_sequence_for<A...>()); }

  private:
	template <void (*f)(A...), size_t... I> static void unpack([[maybe_unused]] void **params, std::index_sequence<I...>) { f(*(A *)params[I]...); }
};

struct Registration {
	template <class S> Registration(const char *name, void (*call)(void **), S) { kernels()[name] = {call, S::sizes(), name}; }
};

// EMU_REGISTER(name) makes a kernel known by its name.
#define EMU_REGISTER(name) static emu::Registration emu_register_##name(#name, emu::Signature<decltype(&name)>::call<&name>, emu::Signature<decltype(&name)>());

// Conversions of halves, by the processor or by arithmetic on the bits.
inline float fromHalf(u16 h) {
#if defined(__F16C__)
	return _cvtsh_ss(h);
#else
	_Float16 x;
	memcpy(&x, &h, 2);
	return (float)x;
#endif
}

inline u16 toHalf(float f) {
#if defined(__F16C__)
	return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT);
#else
	_Float16 x = (_Float16)f;
	u16 h;
	memcpy(&h, &x, 2);
	return h;
#endif
}

inline u32 bits(float f) {
	u32 u;
	memcpy(&u, &f, 4);
	return u;
}

inline float number(u32 u) {
	float f;
	memcpy(&f, &u, 4);
	return f;
}

// multiply is dk_mma_m16n8k16 for a warp: out is the product alone.
inline void multiply(Warp &w) {
	alignas(32) u16 ah[16][16], bh[16][8];
	for (int l = 0; l < 32; l++) {
		int g = l / 4, q = l % 4;
		const u32 *in = w.in[l];
		memcpy(&ah[g][2 * q], &in[0], 4);
		memcpy(&ah[g + 8][2 * q], &in[1], 4);
		memcpy(&ah[g][2 * q + 8], &in[2], 4);
		memcpy(&ah[g + 8][2 * q + 8], &in[3], 4);
		for (int k = 0; k < 2; k++) {
			bh[2 * q + 8 * k][g] = (u16)in[4 + k];
			bh[2 * q + 8 * k + 1][g] = (u16)(in[4 + k] >> 16);
		}
	}
	typedef float Row __attribute__((vector_size(32)));
	Row b[16];
	for (int k = 0; k < 16; k++) {
#if defined(__F16C__)
		b[k] = (Row)_mm256_cvtph_ps(_mm_load_si128((const __m128i *)bh[k]));
#else
		for (int n = 0; n < 8; n++)
			b[k][n] = fromHalf(bh[k][n]);
#endif
	}
	for (int m = 0; m < 16; m++) {
		Row d = {};
		for (int k = 0; k < 16; k++)
			d += fromHalf(ah[m][k]) * b[k];
		for (int q = 0; q < 4; q++)
			memcpy(&w.out[m % 8 * 4 + q][m / 8 * 2], (const float *)&d + 2 * q, 8);
	}
}

inline void loadMatrices(Warp &w, bool transposed) {
	for (int l = 0; l < 32; l++)
		for (int i = 0; i < 4; i++) {
			if (!transposed) {
				memcpy(&w.out[l][i], (const char *)w.rows[8 * i + l / 4] + 4 * (l % 4), 4);
				continue;
			}
			u16 v[2];
			for (int k = 0; k < 2; k++)
				memcpy(&v[k], (const char *)w.rows[8 * i + 2 * (l % 4) + k] + 2 * (l / 4), 2);
			memcpy(&w.out[l][i], v, 4);
		}
}

inline void checkAligned(const void *p, const char *op, const char *file, int line) {
	if ((size_t)p % 16)
		die("%s:%d: %s of an address that is not a multiple of 16", file, line, op);
}

} // namespace emu

#define SHARED(type, name, dims)                         \
	typedef type emu_type_##name dims;                   \
	static emu::Static emu_static_##name(sizeof(emu_type_##name)); \
	emu_type_##name &name = *(emu_type_##name *)emu_static_##name.get()
#define DYNAMIC_SHARED(type, name) type *const name = reinterpret_cast<type *>(emu::block.dynamic)

// What dk.h declares for the device. The last arguments say where the call is.
#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(EMU_HERE) { emu::barrier(file, line); }

static inline void dk_syncwarp(EMU_HERE) {
	emu::collective("dk_syncwarp", file, line, nullptr, 0, nullptr, [](emu::Warp &) {});
}

static inline float dk_h2f(f16 h) { return emu::fromHalf(h); }
static inline f16 dk_f2h(float f) { return emu::toHalf(f); }
static inline u32 dk_pack(float lo, float hi) { return (u32)dk_f2h(lo) | (u32)dk_f2h(hi) << 16; }
static inline float dk_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float dk_sqrt(float x) { return sqrtf(x); }
static inline double dk_sqrt(double x) { return sqrt(x); }
static inline float dk_abs(float x) { return fabsf(x); }

static inline float dk_shfl_xor(float v, int mask, EMU_HERE) {
	u32 in[2] = {emu::bits(v), (u32)mask};
	return emu::number(*emu::collective("dk_shfl_xor", file, line, in, 2, nullptr, [](emu::Warp &w) {
		for (int l = 0; l < 32; l++)
			w.out[l][0] = w.in[l ^ (w.in[l][1] & 31)][0];
	}));
}

static inline void dk_mma_m16n8k16(float *d, const u32 *a, const u32 *b, EMU_HERE) {
	u32 in[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
	const u32 *out = emu::collective("dk_mma_m16n8k16", file, line, in, 6, nullptr, emu::multiply);
	for (int i = 0; i < 4; i++)
		d[i] += emu::number(out[i]);
}

static inline void dk_ldmatrix_x4(u32 *r, const void *row, EMU_HERE) {
	emu::checkAligned(row, "dk_ldmatrix_x4", file, line);
	memcpy(r, emu::collective("dk_ldmatrix_x4", file, line, nullptr, 0, row, [](emu::Warp &w) { emu::loadMatrices(w, false); }), 16);
}

static inline void dk_ldmatrix_x4_trans(u32 *r, const void *row, EMU_HERE) {
	emu::checkAligned(row, "dk_ldmatrix_x4_trans", file, line);
	memcpy(r, emu::collective("dk_ldmatrix_x4_trans", file, line, nullptr, 0, row, [](emu::Warp &w) { emu::loadMatrices(w, true); }), 16);
}

static inline void dk_cp_async16(void *dst, const void *src, bool inside, EMU_HERE) {
	emu::checkAligned(dst, "dk_cp_async16", file, line);
	if (inside)
		emu::checkAligned(src, "dk_cp_async16", file, line);
	emu::Copy c = {dst, inside ? src : nullptr};
	if (emu::reversed)
		emu::block.current->copies.push_back(c);
	else
		c.run();
}

static inline void dk_cp_async_commit() { emu::block.current->groups.push_back(emu::block.current->copies.size()); }

template <int newest> static inline void dk_cp_async_wait() {
	auto &copies = emu::block.current->copies;
	auto &groups = emu::block.current->groups;
	if ((int)groups.size() <= newest)
		return;
	size_t n = groups.size() - newest, made = groups[n - 1];
	for (size_t i = 0; i < made; i++)
		copies[i].run();
	copies.erase(copies.begin(), copies.begin() + (long)made);
	groups.erase(groups.begin(), groups.begin() + (long)n);
	for (size_t &g : groups)
		g -= made;
}
