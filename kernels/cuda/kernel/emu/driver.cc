// driver.cc is a CUDA driver library for computers without a GPU, for tests: it offers the functions
// that package driver calls, and runs the kernels of this folder by emu.h. "make emulator" builds it.
//
// It is stricter than a real one where that finds mistakes: device memory begins as 0xff bytes (NaN)
// and must not be written beyond its end, ranges of copies must lie in one allocation, host memory must
// be pinned, handles must be alive, the default stream is refused, and functions are found only in a
// module whose PTX declares them. What it cannot do is run PTX, and be fast.
//
// The environment variable DENOISED_EMU describes the device and what shall go wrong, as
// comma-separated items, read once:
//
//	cc=8.0              compute capability: 7.5, 8.0, 8.6, 8.9 or 9.0; shared memory goes with it
//	sms=4               multiprocessors
//	memory=256M         device memory, with K, M or G
//	name=TEXT           name of the device
//	devices=1           how many there are, all alike
//	driver=12020        version of CUDA
//	order=reversed      threads and blocks run in descending order; and the work of a stream is
//	                    done when it is waited for, not when it is enqueued. What is right only
//	                    in one of the two orders lacks a barrier, a Sync or a Wait
//	fail_init=100       error of cuInit
//	fail_alloc_after=N  after N allocations of device memory there is none left
//	fail_launch_after=N:CODE  the launch after N launches fails with this error. If that is one that
//	                    loses the context (700 and higher, but 701), the launch itself succeeds and
//	                    every later call fails. Launches of a graph count, and cannot fail otherwise
//	hang_launch=N:S     the launch after N launches takes S seconds more
#define DK_EMU
#include "../dk.h"

#include "table.inc"
#include "selftest.cu"

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <unordered_map>

#pragma GCC visibility push(default)
#include "../../driver/include/v1/cuda.h"
#pragma GCC visibility pop

namespace {

// --- What DENOISED_EMU says.

struct After {
	long count = -1; // -1: never
	int value = 0;
};

struct Config {
	int major = 8, minor = 0, sms = 4, devices = 1, version = 12020, failInit = 0;
	int sharedPerBlock = 0, sharedPerSM = 0;
	size_t memory = 256 << 20;
	std::string name = "Emulated GPU";
	long failAllocAfter = -1;
	After failLaunch, hangLaunch;

	Config();
	void set(const std::string &key, const std::string &value);
};

long number(const std::string &text, char **rest) {
	long n = strtol(text.c_str(), rest, 10);
	if (*rest == text.c_str() || n < 0)
		emu::die("DENOISED_EMU: %s is not a number", text.c_str());
	return n;
}

long number(const std::string &text) {
	char *rest;
	long n = number(text, &rest);
	if (*rest)
		emu::die("DENOISED_EMU: %s is not a number", text.c_str());
	return n;
}

After after(const std::string &text) {
	size_t colon = text.find(':');
	if (colon == std::string::npos)
		emu::die("DENOISED_EMU: %s is not of the form N:VALUE", text.c_str());
	return {number(text.substr(0, colon)), (int)number(text.substr(colon + 1))};
}

void Config::set(const std::string &key, const std::string &value) {
	if (key == "cc") {
		char *rest;
		major = (int)number(value, &rest);
		minor = *rest == '.' ? (int)number(rest + 1) : -1;
	} else if (key == "sms")
		sms = (int)number(value);
	else if (key == "memory") {
		char *rest;
		memory = (size_t)number(value, &rest);
		memory <<= *rest == 'K' ? 10 : *rest == 'M' ? 20 : *rest == 'G' ? 30 : 0;
	} else if (key == "name")
		name = value;
	else if (key == "devices")
		devices = (int)number(value);
	else if (key == "driver")
		version = (int)number(value);
	else if (key == "order" && (value == "reversed" || value == "forward"))
		emu::reversed = value == "reversed";
	else if (key == "fail_init")
		failInit = (int)number(value);
	else if (key == "fail_alloc_after")
		failAllocAfter = number(value);
	else if (key == "fail_launch_after")
		failLaunch = after(value);
	else if (key == "hang_launch")
		hangLaunch = after(value);
	else
		emu::die("DENOISED_EMU: unknown item %s=%s", key.c_str(), value.c_str());
}

Config::Config() {
	const char *text = getenv("DENOISED_EMU");
	std::string left = text ? text : "";
	while (!left.empty()) {
		size_t comma = left.find(','), equals = left.find('=');
		if (equals == std::string::npos || equals > comma)
			emu::die("DENOISED_EMU: %s lacks a value", left.substr(0, comma).c_str());
		set(left.substr(0, equals), left.substr(equals + 1, comma == std::string::npos ? comma : comma - equals - 1));
		left = comma == std::string::npos ? "" : left.substr(comma + 1);
	}
	static const struct {
		int major, minor, block, sm;
	} shared[] = {{7, 5, 64, 64}, {8, 0, 163, 164}, {8, 6, 99, 100}, {8, 9, 99, 100}, {9, 0, 227, 228}};
	for (auto &s : shared)
		if (s.major == major && s.minor == minor) {
			sharedPerBlock = s.block << 10;
			sharedPerSM = s.sm << 10;
		}
	if (!sharedPerBlock)
		emu::die("DENOISED_EMU: no device has compute capability %d.%d", major, minor);
}

const Config &config() {
	static const Config c;
	return c;
}

// --- What is alive. All of it is guarded by one lock, which is held while kernels run.

typedef std::function<void()> Work;

struct Capture {
	std::vector<Work> work;
	CUstream origin;
	bool broken = false;
};

} // namespace

struct CUctx_st {
	int references = 0;
	size_t used = 0;
};

struct CUmod_st {
	CUcontext ctx;
	std::string image;
	std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

struct CUfunc_st {
	CUcontext ctx;
	const emu::Kernel *kernel;
	int dynamic; // the most dynamic shared memory of a launch
};

struct CUstream_st {
	CUcontext ctx;
	std::deque<Work> queue;
	u64 enqueued = 0, done = 0;
	std::shared_ptr<Capture> capture; // what it is captured into
	u64 captured = 0;                 // how much work of this stream is in it
	bool joined = true;               // all of which another stream of the capture waits for
};

struct CUevent_st {
	CUcontext ctx;
	std::shared_ptr<CUstream_st> stream; // where it was last recorded, and after how much work
	u64 after = 0;
	u64 recorded = 0, passed = 0; // how often
	std::chrono::steady_clock::time_point time;
	std::shared_ptr<Capture> capture; // in which it was last recorded
};

struct CUgraph_st {
	std::vector<Work> work;
};

struct CUgraphExec_st {
	CUcontext ctx;
	std::vector<Work> work;
};

namespace {

struct Memory {
	CUcontext ctx;
	size_t bytes;
};

std::recursive_mutex mutex;
bool initialized = false;
CUresult lost = CUDA_SUCCESS; // what took the context
std::vector<CUctx_st> contexts;
std::map<size_t, Memory> device, pinned; // by address
std::unordered_map<CUmodule, std::shared_ptr<CUmod_st>> modules;
std::unordered_map<CUstream, std::shared_ptr<CUstream_st>> streams;
std::unordered_map<CUevent, std::shared_ptr<CUevent_st>> events;
std::unordered_map<CUgraph, std::shared_ptr<CUgraph_st>> graphs;
std::unordered_map<CUgraphExec, std::shared_ptr<CUgraphExec_st>> execs;
long allocations = 0, launches = 0;

thread_local CUcontext current = nullptr;
thread_local std::shared_ptr<Capture> capturing; // that this thread has begun

// alive returns the object that a handle stands for, nullptr if none does.
template <class T> std::shared_ptr<T> alive(std::unordered_map<T *, std::shared_ptr<T>> &table, T *handle) {
	auto found = table.find(handle);
	return found == table.end() ? nullptr : found->second;
}

template <class T> std::shared_ptr<T> make(std::unordered_map<T *, std::shared_ptr<T>> &table, T **handle) {
	auto made = std::make_shared<T>();
	*handle = made.get();
	table[made.get()] = made;
	return made;
}

// within tells if a range lies in one piece of memory.
bool within(const std::map<size_t, Memory> &table, size_t address, size_t bytes) {
	auto next = table.upper_bound(address);
	if (next == table.begin())
		return false;
	auto &[start, memory] = *std::prev(next);
	return address - start <= memory.bytes && bytes <= memory.bytes - (address - start);
}

// drain does the work of a stream until so much of it is done.
void drain(CUstream_st &s, u64 until) {
	while (s.done < until) {
		Work work = std::move(s.queue.front());
		s.queue.pop_front();
		s.done++;
		if (!lost)
			work();
	}
}

void drainAll(CUcontext ctx) {
	for (auto &[handle, s] : streams)
		if (s->ctx == ctx)
			drain(*s, s->enqueued);
}

CUresult enqueue(CUstream_st &s, Work work) {
	if (s.capture) {
		if (s.capture->broken)
			return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
		s.capture->work.push_back(std::move(work));
		s.captured++;
		s.joined = &s == s.capture->origin;
		return CUDA_SUCCESS;
	}
	s.queue.push_back(std::move(work));
	s.enqueued++;
	if (!emu::reversed)
		drain(s, s.enqueued);
	return CUDA_SUCCESS;
}

// The memory may have been freed since the work was enqueued.
void copy(const std::map<size_t, Memory> &to, size_t dst, const std::map<size_t, Memory> &from, size_t src, size_t bytes) {
	if (within(to, dst, bytes) && within(from, src, bytes))
		memcpy((void *)dst, (const void *)src, bytes);
	else
		lost = CUDA_ERROR_ILLEGAL_ADDRESS;
}

CUresult enqueueCopy(CUstream stream, const std::map<size_t, Memory> &to, size_t dst, const std::map<size_t, Memory> &from, size_t src, size_t bytes) {
	auto s = alive(streams, stream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	if (bytes == 0 || !within(to, dst, bytes) || !within(from, src, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	return enqueue(*s, [=, &to, &from] { copy(to, dst, from, src, bytes); });
}

bool losesContext(int code) { return code >= 700 && code != CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES; }

void run(const emu::Kernel &kernel, emu::Dim grid, emu::Dim block, size_t shared, void **params) {
	const Config &c = config();
	if (launches == c.hangLaunch.count)
		std::this_thread::sleep_for(std::chrono::seconds(c.hangLaunch.value));
	if (launches++ == c.failLaunch.count && losesContext(c.failLaunch.value)) {
		lost = (CUresult)c.failLaunch.value;
		return;
	}
	emu::launch(kernel, grid, block, shared, params);
}

// The bytes behind each piece of device memory, which nobody may write.
#ifdef __SANITIZE_ADDRESS__
const size_t Fence = 0; // the sanitizer has its own
#else
const size_t Fence = 64;
#endif
const int FenceByte = 0xa5;

void freeDevice(std::map<size_t, Memory>::iterator m) {
	char *end = (char *)m->first + m->second.bytes;
	for (size_t i = 0; i < Fence; i++)
		if (end[i] != (char)FenceByte)
			emu::die("device memory of %zu bytes was written %zu bytes beyond its end", m->second.bytes, i);
	m->second.ctx->used -= m->second.bytes;
	free((void *)m->first);
	device.erase(m);
}

// Entry is what every function begins with: the lock, and what can be wrong with any call.
struct Entry {
	std::lock_guard<std::recursive_mutex> guard{mutex};

	CUresult check() const {
		if (!initialized)
			return CUDA_ERROR_NOT_INITIALIZED;
		return lost;
	}
	CUresult checkContext() const {
		CUresult r = check();
		return r ? r : current && current->references > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
	}
	// For what must not be called by a thread that captures.
	CUresult checkUncaptured() const {
		CUresult r = checkContext();
		if (!r && capturing) {
			capturing->broken = true;
			return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
		}
		return r;
	}
};

#define CHECK(how)                       \
	Entry entry;                         \
	if (CUresult r = entry.how())        \
	return r

// declares tells if a module's PTX has a kernel.
bool declares(const CUmod_st &m, const std::string &name) {
	return m.image.find(".entry " + name + "(") != std::string::npos;
}

CUresult load(CUmodule *module, const void *image, std::string *log) {
	// A real driver compiles the text. This one reads the lines that say for what it was made.
	std::string text = (const char *)image;
	size_t target = text.find(".target sm_");
	if (text.find(".version ") == std::string::npos || target == std::string::npos) {
		*log = "emulated driver: the image is not PTX";
		return CUDA_ERROR_INVALID_IMAGE;
	}
	int sm = atoi(text.c_str() + target + strlen(".target sm_"));
	if (sm > config().major * 10 + config().minor) {
		*log = "emulated driver: the PTX is for sm_" + std::to_string(sm);
		return CUDA_ERROR_NO_BINARY_FOR_GPU;
	}
	auto m = make(modules, module);
	m->ctx = current;
	m->image = std::move(text);
	return CUDA_SUCCESS;
}

} // namespace

// --- The functions, in the order of the header.

CUresult cuInit(unsigned int flags) {
	Entry entry;
	if (flags != 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (config().failInit)
		return (CUresult)config().failInit;
	if (!initialized)
		contexts = std::vector<CUctx_st>((size_t)config().devices);
	initialized = true;
	return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext ctx) {
	Entry entry;
	if (ctx && ctx->references == 0)
		return CUDA_ERROR_INVALID_CONTEXT;
	current = ctx;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
	CHECK(check);
	if (ordinal < 0 || ordinal >= config().devices)
		return CUDA_ERROR_INVALID_DEVICE;
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
	CHECK(check);
	const Config &c = config();
	if (device < 0 || device >= c.devices)
		return CUDA_ERROR_INVALID_DEVICE;
	switch (attribute) {
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
		*value = c.major;
		break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
		*value = c.minor;
		break;
	case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
		*value = c.sms;
		break;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
		*value = c.sharedPerBlock;
		break;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
		*value = c.sharedPerSM;
		break;
	case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
		*value = 4 << 20;
		break;
	case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
		*value = 1500000;
		break;
	case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
		*value = 1000000;
		break;
	case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
		*value = 256;
		break;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
	CHECK(check);
	*count = config().devices;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
	CHECK(check);
	if (device < 0 || device >= config().devices || length < 1)
		return CUDA_ERROR_INVALID_VALUE;
	snprintf(name, (size_t)length, "%s", config().name.c_str());
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
	CHECK(check);
	if (device < 0 || device >= config().devices)
		return CUDA_ERROR_INVALID_DEVICE;
	CUcontext ctx = &contexts[(size_t)device];
	if (ctx->references == 0)
		return CUDA_ERROR_INVALID_CONTEXT;
	if (--ctx->references > 0)
		return CUDA_SUCCESS;
	// All that belongs to the context goes with it.
	drainAll(ctx);
	for (auto m = ::device.begin(); m != ::device.end();) {
		auto next = std::next(m);
		if (m->second.ctx == ctx)
			freeDevice(m);
		m = next;
	}
	std::erase_if(pinned, [=](auto &m) {
		if (m.second.ctx == ctx)
			free((void *)m.first);
		return m.second.ctx == ctx;
	});
	std::erase_if(modules, [=](auto &m) { return m.second->ctx == ctx; });
	std::erase_if(streams, [=](auto &s) { return s.second->ctx == ctx; });
	std::erase_if(events, [=](auto &e) { return e.second->ctx == ctx; });
	std::erase_if(execs, [=](auto &g) { return g.second->ctx == ctx; });
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice device) {
	CHECK(check);
	if (device < 0 || device >= config().devices)
		return CUDA_ERROR_INVALID_DEVICE;
	*ctx = &contexts[(size_t)device];
	(*ctx)->references++;
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned int flags) {
	CHECK(check);
	if (device < 0 || device >= config().devices)
		return CUDA_ERROR_INVALID_DEVICE;
	return flags & ~7u ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; // it never waits
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
	CHECK(check);
	if (device < 0 || device >= config().devices)
		return CUDA_ERROR_INVALID_DEVICE;
	*bytes = config().memory;
	return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
	*version = config().version;
	return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
	CHECK(checkContext);
	if (flags != CU_EVENT_DEFAULT)
		return CUDA_ERROR_INVALID_VALUE;
	make(events, event)->ctx = current;
	return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
	CHECK(checkContext);
	return events.erase(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
	CHECK(checkContext);
	auto a = alive(events, start), b = alive(events, end);
	if (!a || !b || a->recorded == 0 || b->recorded == 0)
		return CUDA_ERROR_INVALID_HANDLE;
	if (a->capture || b->capture)
		return CUDA_ERROR_CAPTURED_EVENT;
	if (a->passed != a->recorded || b->passed != b->recorded)
		return CUDA_ERROR_NOT_READY;
	*milliseconds = std::chrono::duration<float, std::milli>(b->time - a->time).count();
	return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
	CHECK(checkContext);
	auto e = alive(events, event);
	auto s = alive(streams, stream);
	if (!e || !s)
		return CUDA_ERROR_INVALID_HANDLE;
	e->stream = s;
	e->capture = s->capture;
	u64 recorded = ++e->recorded;
	if (s->capture) { // it orders what is captured, and is nothing in the graph
		e->after = s->captured;
		return s->capture->broken ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
	}
	e->after = s->enqueued + 1;
	return enqueue(*s, [=] {
		e->passed = recorded;
		e->time = std::chrono::steady_clock::now();
	});
}

CUresult cuEventSynchronize(CUevent event) {
	CHECK(checkContext);
	auto e = alive(events, event);
	if (!e)
		return CUDA_ERROR_INVALID_HANDLE;
	if (e->capture)
		return CUDA_ERROR_CAPTURED_EVENT;
	if (e->stream)
		drain(*e->stream, e->after);
	return lost;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
	CHECK(checkContext);
	if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || value > config().sharedPerBlock)
		return CUDA_ERROR_INVALID_VALUE;
	function->dynamic = value;
	return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
	static const std::map<int, const char *> texts = {
		{CUDA_SUCCESS, "no error"},
		{CUDA_ERROR_INVALID_VALUE, "invalid argument"},
		{CUDA_ERROR_OUT_OF_MEMORY, "out of memory"},
		{CUDA_ERROR_NOT_INITIALIZED, "not initialized"},
		{CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"},
		{CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"},
		{CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"},
		{CUDA_ERROR_INVALID_CONTEXT, "invalid device context"},
		{CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"},
		{CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"},
		{CUDA_ERROR_NOT_FOUND, "named symbol not found"},
		{CUDA_ERROR_NOT_READY, "device not ready"},
		{CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
		{CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"},
		{CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"},
		{CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"},
		{CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "system has unsupported display driver / cuda driver combination"},
		{CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
		{CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
	};
	auto found = texts.find(error);
	if (found == texts.end()) {
		*text = nullptr;
		return CUDA_ERROR_INVALID_VALUE;
	}
	*text = found->second;
	return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
	CHECK(check);
	return graphs.erase(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
	CHECK(checkContext);
	return execs.erase(exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
	CHECK(checkContext);
	auto g = alive(graphs, graph);
	if (!g || flags != 0)
		return CUDA_ERROR_INVALID_VALUE;
	auto made = make(execs, exec);
	made->ctx = current;
	made->work = g->work;
	return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
	CHECK(checkContext);
	auto g = alive(execs, exec);
	auto s = alive(streams, stream);
	if (!g)
		return CUDA_ERROR_INVALID_VALUE;
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	return enqueue(*s, [=] {
		for (auto &work : g->work)
			if (!lost)
				work();
	});
}

CUresult cuLaunchKernel(CUfunction function, unsigned int gridX, unsigned int gridY, unsigned int gridZ, unsigned int blockX, unsigned int blockY,
	unsigned int blockZ, unsigned int sharedBytes, CUstream stream, void **params, void **extra) {
	CHECK(checkContext);
	auto s = alive(streams, stream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	if (gridX < 1 || gridX > 0x7fffffff || gridY < 1 || gridY > 65535 || gridZ < 1 || gridZ > 65535 || blockX < 1 || blockX > 1024 || blockY < 1 ||
		blockY > 1024 || blockZ < 1 || blockZ > 64 || blockX * blockY * blockZ > 1024 || sharedBytes > (unsigned)function->dynamic || extra)
		return CUDA_ERROR_INVALID_VALUE;
	const After &fail = config().failLaunch;
	if (launches == fail.count && !losesContext(fail.value)) {
		launches++;
		return (CUresult)fail.value;
	}
	// The arguments are taken now, whenever the kernel may run.
	const emu::Kernel &kernel = *function->kernel;
	std::vector<std::vector<char>> values;
	for (size_t i = 0; i < kernel.sizes.size(); i++)
		values.emplace_back((char *)params[i], (char *)params[i] + kernel.sizes[i]);
	emu::Dim grid = {gridX, gridY, gridZ}, block = {blockX, blockY, blockZ};
	return enqueue(*s, [=, &kernel]() mutable {
		std::vector<void *> pointers;
		for (auto &value : values)
			pointers.push_back(value.data());
		run(kernel, grid, block, sharedBytes, pointers.data());
	});
}

CUresult cuMemAlloc(CUdeviceptr *ptr, size_t bytes) {
	CHECK(checkUncaptured);
	if (bytes == 0)
		return CUDA_ERROR_INVALID_VALUE;
	void *start;
	if (allocations == config().failAllocAfter || bytes > config().memory - current->used || posix_memalign(&start, 256, bytes + Fence))
		return CUDA_ERROR_OUT_OF_MEMORY;
	allocations++;
	memset(start, 0xff, bytes);
	memset((char *)start + bytes, FenceByte, Fence);
	current->used += bytes;
	device[(size_t)start] = {current, bytes};
	*ptr = (CUdeviceptr)start;
	return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr ptr) {
	CHECK(checkUncaptured);
	auto found = device.find((size_t)ptr);
	if (found == device.end())
		return CUDA_ERROR_INVALID_VALUE;
	drainAll(found->second.ctx);
	freeDevice(found);
	return lost;
}

CUresult cuMemFreeHost(void *ptr) {
	CHECK(checkUncaptured);
	auto found = pinned.find((size_t)ptr);
	if (found == pinned.end())
		return CUDA_ERROR_INVALID_VALUE;
	free(ptr);
	pinned.erase(found);
	return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *available, size_t *total) {
	CHECK(checkContext);
	*total = config().memory;
	*available = *total - current->used;
	return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **ptr, size_t bytes, unsigned int flags) {
	CHECK(checkUncaptured);
	if (bytes == 0 || flags != 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (posix_memalign(ptr, 4096, bytes))
		return CUDA_ERROR_OUT_OF_MEMORY;
	memset(*ptr, 0xff, bytes);
	pinned[(size_t)*ptr] = {current, bytes};
	return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream) {
	CHECK(checkContext);
	return enqueueCopy(stream, device, (size_t)dst, device, (size_t)src, bytes);
}

CUresult cuMemcpyDtoHAsync(void *dst, CUdeviceptr src, size_t bytes, CUstream stream) {
	CHECK(checkContext);
	return enqueueCopy(stream, pinned, (size_t)dst, device, (size_t)src, bytes);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream) {
	CHECK(checkContext);
	return enqueueCopy(stream, device, (size_t)dst, pinned, (size_t)src, bytes);
}

CUresult cuMemsetD32Async(CUdeviceptr dst, unsigned int value, size_t n, CUstream stream) {
	CHECK(checkContext);
	auto s = alive(streams, stream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	if (n == 0 || n > config().memory / 4 || dst % 4 || !within(device, (size_t)dst, 4 * n))
		return CUDA_ERROR_INVALID_VALUE;
	return enqueue(*s, [=] {
		if (within(device, (size_t)dst, 4 * n))
			std::fill_n((unsigned *)dst, n, value);
		else
			lost = CUDA_ERROR_ILLEGAL_ADDRESS;
	});
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
	CHECK(checkContext);
	auto m = alive(modules, module);
	if (!m)
		return CUDA_ERROR_INVALID_HANDLE;
	auto kernel = emu::kernels().find(name);
	if (kernel == emu::kernels().end() || !declares(*m, name))
		return CUDA_ERROR_NOT_FOUND;
	auto &f = m->functions[name];
	if (!f)
		f.reset(new CUfunc_st{current, &kernel->second, 48 << 10});
	*function = f.get();
	return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
	CHECK(checkUncaptured);
	std::string log;
	return load(module, image, &log);
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int n, CUjit_option *options, void **values) {
	CHECK(checkUncaptured);
	char *buffer = nullptr;
	size_t size = 0;
	for (unsigned i = 0; i < n; i++)
		if (options[i] == CU_JIT_ERROR_LOG_BUFFER)
			buffer = (char *)values[i];
		else if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
			size = (size_t)values[i];
		else
			return CUDA_ERROR_INVALID_VALUE;
	std::string log;
	CUresult r = load(module, image, &log);
	if (size)
		snprintf(buffer, size, "%s", log.c_str());
	return r;
}

CUresult cuModuleUnload(CUmodule module) {
	CHECK(checkUncaptured);
	auto m = alive(modules, module);
	if (!m)
		return CUDA_ERROR_INVALID_HANDLE;
	drainAll(m->ctx);
	modules.erase(module);
	return lost;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
	CHECK(checkContext);
	auto s = alive(streams, stream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (s->capture || capturing)
		return CUDA_ERROR_ILLEGAL_STATE;
	s->capture = capturing = std::make_shared<Capture>();
	s->capture->origin = stream;
	return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
	CHECK(checkContext);
	if (flags != CU_STREAM_NON_BLOCKING)
		return CUDA_ERROR_NOT_SUPPORTED;
	make(streams, stream)->ctx = current;
	return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
	CHECK(checkContext);
	auto s = alive(streams, stream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	if (s->capture) {
		s->capture->broken = true;
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	drain(*s, s->enqueued);
	streams.erase(stream);
	return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
	Entry entry;
	*graph = nullptr;
	auto s = alive(streams, stream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	auto capture = s->capture;
	if (!capture || capture->origin != stream)
		return CUDA_ERROR_ILLEGAL_STATE;
	if (capture != capturing)
		return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
	capturing = nullptr;
	bool joined = true;
	for (auto &[handle, other] : streams)
		if (other->capture == capture) {
			joined = joined && other->joined;
			other->capture = nullptr;
		}
	if (lost)
		return lost;
	if (capture->broken)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	if (!joined)
		return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
	make(graphs, graph)->work = std::move(capture->work);
	return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
	CHECK(checkContext);
	auto s = alive(streams, stream);
	if (!s)
		return CUDA_ERROR_INVALID_HANDLE;
	if (s->capture) {
		s->capture->broken = true;
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	drain(*s, s->enqueued);
	return lost;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
	CHECK(checkContext);
	auto s = alive(streams, stream);
	auto e = alive(events, event);
	if (!s || !e)
		return CUDA_ERROR_INVALID_HANDLE;
	if (flags != 0)
		return CUDA_ERROR_INVALID_VALUE;
	if (e->recorded == 0)
		return CUDA_SUCCESS;
	if (e->capture) {
		if (e->stream->capture != e->capture)
			return CUDA_ERROR_CAPTURED_EVENT; // of a capture that has ended
		if (s->capture && s->capture != e->capture)
			return CUDA_ERROR_STREAM_CAPTURE_MERGE;
		// The work is captured in the order in which it is enqueued, so that this order is kept. But
		// the graph would be refused if it had work that its origin does not wait for in the end.
		s->capture = e->capture;
		if (s == e->stream)
			return CUDA_SUCCESS;
		s->captured++;
		s->joined = stream == s->capture->origin;
		if (e->after == e->stream->captured)
			e->stream->joined = true;
		return CUDA_SUCCESS;
	}
	if (s->capture) {
		s->capture->broken = true;
		return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	}
	std::shared_ptr<CUstream_st> other = e->stream;
	u64 after = e->after;
	return enqueue(*s, [=] { drain(*other, after); });
}
