//go:build cuda && linux

package driver

/*
#include "cuda.h"

// The calls that gorgonia.org/cu lacks; doc.go gives the reasons. Each sets the context for
// its thread itself, so that a call is one step into C and needs no locked thread.

static const char *error_text(int code) {
	const char *text = NULL;
	return cuGetErrorString((CUresult)code, &text) == CUDA_SUCCESS ? text : NULL;
}

static CUresult host_alloc(CUcontext ctx, void **ptr, size_t bytes) {
	CUresult r = cuCtxSetCurrent(ctx);
	return r ? r : cuMemHostAlloc(ptr, bytes, 0);
}

static CUresult set_shared(CUcontext ctx, CUfunction f, int bytes) {
	CUresult r = cuCtxSetCurrent(ctx);
	return r ? r : cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
}

static CUresult load_log(CUcontext ctx, const void *image, char *log, size_t bytes) {
	CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
	void *values[] = {log, (void *)bytes};
	CUmodule module;
	CUresult r = cuCtxSetCurrent(ctx);
	if (!r)
		r = cuModuleLoadDataEx(&module, image, 2, options, values);
	if (!r)
		cuModuleUnload(module);
	return r;
}

enum { MAX_ARGS = 64 };

static CUresult launch(CUcontext ctx, CUstream stream, CUfunction f,
	unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
	unsigned int shared, uint64_t *args, int n) {
	void *params[MAX_ARGS];
	for (int i = 0; i < n; i++)
		params[i] = &args[i];
	CUresult r = cuCtxSetCurrent(ctx);
	return r ? r : cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, stream, params, NULL);
}

static CUresult capture_begin(CUcontext ctx, CUstream stream) {
	CUresult r = cuCtxSetCurrent(ctx);
	return r ? r : cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
}

static CUresult graph_make(CUcontext ctx, CUgraphExec *exec, CUgraph graph) {
	CUresult r = cuCtxSetCurrent(ctx);
	return r ? r : cuGraphInstantiateWithFlags(exec, graph, 0);
}

static CUresult graph_launch(CUcontext ctx, CUgraphExec graph, CUstream stream) {
	CUresult r = cuCtxSetCurrent(ctx);
	return r ? r : cuGraphLaunch(graph, stream);
}

static CUresult graph_free(CUcontext ctx, CUgraphExec graph) {
	CUresult r = cuCtxSetCurrent(ctx);
	return r ? r : cuGraphExecDestroy(graph);
}

#cgo noescape host_alloc
#cgo nocallback host_alloc
#cgo noescape launch
#cgo nocallback launch
*/
import "C"

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"gorgonia.org/cu"
)

// The types of gorgonia.org/cu whose C value is not exported are structs of just
// that value.
var (
	_ [unsafe.Sizeof(cu.CUContext{})]byte = [unsafe.Sizeof(uintptr(0))]byte{}
	_ [unsafe.Sizeof(cu.Function{})]byte  = [unsafe.Sizeof(uintptr(0))]byte{}
)

func rawContext(c cu.CUContext) C.CUcontext  { return *(*C.CUcontext)(unsafe.Pointer(&c)) }
func rawFunction(f cu.Function) C.CUfunction { return *(*C.CUfunction)(unsafe.Pointer(&f)) }
func rawStream(s cu.Stream) C.CUstream       { return C.CUstream(unsafe.Pointer(s.C())) }

// text is what the driver calls a CUresult.
func text(code int) string {
	if t := C.error_text(C.int(code)); t != nil {
		return C.GoString(t)
	}
	return "unknown error"
}

func (d *Device) hostAlloc(bytes int) (unsafe.Pointer, error) {
	var p unsafe.Pointer
	r := C.host_alloc(rawContext(d.ctx), &p, C.size_t(bytes))
	return p, failure("cuMemHostAlloc", int(r))
}

func (d *Device) setShared(f cu.Function, bytes int) error {
	return failure("cuFuncSetAttribute", int(C.set_shared(rawContext(d.ctx), rawFunction(f), C.int(bytes))))
}

// loadLog is what the driver's compiler has to say against a module's image.
func (d *Device) loadLog(image []byte) string {
	const size = 4 << 10
	log := C.calloc(1, size)
	defer C.free(log)
	text := C.CBytes(append(image[:len(image):len(image)], 0)) // PTX must end in a zero byte
	defer C.free(text)
	C.load_log(rawContext(d.ctx), text, (*C.char)(log), size-1)
	return line(C.GoString((*C.char)(log)))
}

// Launch starts a kernel on a grid of blocks of threads, each given as x, y, z,
// with shared bytes of dynamic shared memory per block. There is one argument
// for every parameter, at most 64: an address, or an integer or float32 whose
// bits are in the low bytes. The driver knows the kernel's parameters, but cannot
// check the arguments against them: too few, or an address that is none, ends in
// an error on the device that loses the context.
func (s *Stream) Launch(f *Function, grid, block [3]int, shared int, args ...uint64) error {
	if s.gone.Load() || f.module.gone.Load() {
		return fmt.Errorf("launch %s: stream or module %w", f.name, ErrReleased)
	}
	for _, n := range [...]int{grid[0], grid[1], grid[2], block[0], block[1], block[2], shared + 1} {
		if n < 1 || n > 1<<31-1 {
			return fmt.Errorf("launch %s: grid %v of blocks %v with %d bytes of shared memory is none", f.name, grid, block, shared)
		}
	}
	if len(args) > C.MAX_ARGS {
		return fmt.Errorf("launch %s: %d arguments, the most are %d", f.name, len(args), C.MAX_ARGS)
	}
	r := C.launch(rawContext(s.device.ctx), rawStream(s.stream), rawFunction(f.function),
		C.uint(grid[0]), C.uint(grid[1]), C.uint(grid[2]), C.uint(block[0]), C.uint(block[1]), C.uint(block[2]),
		C.uint(shared), (*C.uint64_t)(unsafe.SliceData(args)), C.int(len(args)))
	if r != C.CUDA_SUCCESS {
		return fmt.Errorf("launch %s, grid %v, block %v, %d bytes of shared memory: %w", f.name, grid, block, shared,
			failure("cuLaunchKernel", int(r)))
	}
	return nil
}

// Graph is a sequence of work that was captured from a stream, to be launched
// with one call.
type Graph struct {
	device *Device
	exec   C.CUgraphExec
	gone   atomic.Bool
}

// Capture collects what record enqueues on the stream into a Graph instead of
// running it. The arguments of launches are taken as they are now, the memory
// that they name as it will be. Work on another stream belongs to it from a Wait
// for an event recorded here on, and this stream must Wait for it in turn.
//
// Meanwhile record may allocate nothing, load nothing and wait for nothing on its
// own goroutine; other goroutines may, but should leave this stream alone. An
// error of record is returned as it is.
func (s *Stream) Capture(record func() error) (*Graph, error) {
	if s.gone.Load() {
		return nil, fmt.Errorf("capture: stream %w", ErrReleased)
	}
	// A capture must end on the thread that began it, and only that thread's other
	// calls are restricted.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	graph, err := s.capture(record)
	if err != nil {
		return nil, err
	}
	defer C.cuGraphDestroy(graph)
	g := &Graph{device: s.device}
	if r := C.graph_make(rawContext(s.device.ctx), &g.exec, graph); r != C.CUDA_SUCCESS {
		return nil, fmt.Errorf("make a captured graph: %w", failure("cuGraphInstantiateWithFlags", int(r)))
	}
	s.device.count(func(c *Counts) { c.Graphs++ })
	return g, nil
}

// capture returns the captured graph, which is the caller's to destroy.
func (s *Stream) capture(record func() error) (graph C.CUgraph, err error) {
	if r := C.capture_begin(rawContext(s.device.ctx), rawStream(s.stream)); r != C.CUDA_SUCCESS {
		return nil, fmt.Errorf("capture: %w", failure("cuStreamBeginCapture", int(r)))
	}
	recorded := false
	defer func() { // also when record panics
		r := C.cuStreamEndCapture(rawStream(s.stream), &graph)
		if recorded && err == nil && r != C.CUDA_SUCCESS {
			err = fmt.Errorf("capture: %w", failure("cuStreamEndCapture", int(r)))
		}
		if graph != nil && (!recorded || err != nil) {
			C.cuGraphDestroy(graph)
			graph = nil
		}
	}()
	err = record()
	recorded = true
	return nil, err
}

// Launch enqueues the graph's work on a stream of its device, after what was
// enqueued there before. Launches of one graph run one after the other.
func (g *Graph) Launch(s *Stream) error {
	if g.gone.Load() || s.gone.Load() {
		return fmt.Errorf("launch a graph: graph or stream %w", ErrReleased)
	}
	if r := C.graph_launch(rawContext(g.device.ctx), g.exec, rawStream(s.stream)); r != C.CUDA_SUCCESS {
		return fmt.Errorf("launch a graph: %w", failure("cuGraphLaunch", int(r)))
	}
	return nil
}

// Free releases the graph. A launch that still runs is not disturbed.
func (g *Graph) Free() error {
	if g.gone.Swap(true) {
		return fmt.Errorf("free a graph: %w", ErrReleased)
	}
	g.device.count(func(c *Counts) { c.Graphs-- })
	if r := C.graph_free(rawContext(g.device.ctx), g.exec); r != C.CUDA_SUCCESS {
		return fmt.Errorf("free a graph: %w", failure("cuGraphExecDestroy", int(r)))
	}
	return nil
}
