//go:build cuda && linux && emulated

package cuda

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cuda/driver"
	"github.com/diffdenoise/denoised/kernels/internal/chain"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// These tests run on the emulated driver, in either of its orders, or on a GPU; "make test-emulated"
// builds it and says where it is.
func TestMain(m *testing.M) {
	if os.Getenv("DENOISED_CUDA_LIB") == "" {
		fmt.Println("tests with the tag emulated need a driver: run make test-emulated, or set DENOISED_CUDA_LIB")
		os.Exit(1)
	}
	if task := os.Getenv(taskVariable); task != "" {
		if err := tasks[task](); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if left := driver.Live(); left != (driver.Counts{}) && code == 0 {
		fmt.Printf("still alive after all tests: %+v\n", left)
		code = 1
	}
	os.Exit(code)
}

func open(t *testing.T, o Options) *Backend {
	t.Helper()
	b, err := Open(0, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// eachSize runs a test with the kernels for few multiprocessors and for many, between which size of an
// image and batch decide.
func eachSize(t *testing.T, test func(t *testing.T, b *Backend)) {
	for _, sms := range []int{1, 1000} {
		t.Run(fmt.Sprintf("%d SMs", sms), func(t *testing.T) {
			b := open(t, Options{})
			b.info.SMs = sms
			test(t, b)
		})
	}
}

// TestShapes: a function that runs the same three times runs both kinds of kernels, and nothing stays changed.
func TestShapes(t *testing.T) {
	b := open(t, Options{})
	own := b.info.SMs
	n := load(t, b, kernelstest.RandomNet(5, 32, 1))
	img := newImage(1, 64, 64)
	seen := map[string]bool{}
	var results [][]float32
	err := b.Shapes(func() error {
		out, err := img.forward(n)
		results = append(results, out)
		for _, p := range b.pool.idle {
			for _, s := range p.steps {
				seen[s.kernel] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !seen["net_block_tall_2"] || !seen["net_block_flat_2"] || !seen["net_head_1"] || !seen["net_head_2"] {
		t.Errorf("ran %v", seen)
	}
	if len(results) != 3 || !slices.Equal(results[0], results[1]) || !slices.Equal(results[0], results[2]) {
		t.Error("the results differ")
	}
	if b.info.SMs != own {
		t.Errorf("%d SMs, has %d", b.info.SMs, own)
	}
}

func TestBackend(t *testing.T) {
	eachSize(t, func(t *testing.T, b *Backend) { kernelstest.Run(t, b, kernelstest.Half) })
}

// TestSmoke runs the kernels of inference once or a few times, for slow tools.
func TestSmoke(t *testing.T) {
	eachSize(t, func(t *testing.T, b *Backend) {
		for _, channels := range []int{16, 32, 48, 64} {
			n := load(t, b, kernelstest.RandomNet(1, channels, 1))
			m := newImage(3, 70, 35)
			if _, err := m.forward(n); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Trace(make([]float32, len(m.y)), m.y, m.sigma, m.width, m.height); err != nil {
				t.Fatal(err)
			}
			g := new(kernels.Graph)
			x := g.Conv(kernels.Down2("a", channels, kernels.ReLU), g.Input(channels))
			g.Conv(kernels.Conv1("b", channels, kernels.Linear), x)
			p, err := b.Compile(g, g.Init(1))
			if err != nil {
				t.Fatal(err)
			}
			batch := &kernels.Batch{Count: 1, Height: 20, Width: 30, Inputs: [][]float32{make([]float32, 20*30*channels)}}
			if err := p.Run(make([]float32, 10*15*channels), batch); err != nil {
				t.Fatal(err)
			}
		}
		kernelstest.RunPrograms(t, b, kernelstest.Half)
		const h, w = 8, 12
		g, batch := sampled(h, w)
		p, err := b.Compile(g, g.Init(1))
		if err != nil {
			t.Fatal(err)
		}
		f := func() []float32 { return make([]float32, h*w) }
		if err := p.(kernels.Sampler).SamplePair(f(), f(), f(), batch, sampleSteps(2), nil); err != nil {
			t.Fatal(err)
		}
	})
}

func numbers(rng *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	return v
}

// image is what a network is run on.
type image struct {
	width, height int
	y, sigma      []float32
}

func newImage(seed uint64, width, height int) image {
	rng := rand.New(rand.NewPCG(seed, 7))
	return image{width, height, numbers(rng, width*height), numbers(rng, width*height)}
}

func (m image) forward(n kernels.Network) ([]float32, error) {
	dst := make([]float32, len(m.y))
	return dst, n.Forward(dst, m.y, m.sigma, m.width, m.height)
}

// fill takes the device's memory, but for a little.
func fill(b *Backend) (taken []driver.Ptr) {
	for bytes := 256 << 20; bytes > 1<<10; {
		p, err := b.device.Alloc(bytes)
		if err != nil {
			bytes /= 2
			continue
		}
		taken = append(taken, p)
	}
	return taken
}

func load(t *testing.T, b *Backend, net *chain.Net) *network {
	t.Helper()
	n, err := b.Load(net.Graph())
	if err != nil {
		t.Fatal(err)
	}
	return n.(*network)
}

// TestChannels: blocks and convolutions of every number of groups of channels, and of more than a
// block of threads computes, layer by layer and fused.
func TestChannels(t *testing.T) {
	eachSize(t, func(t *testing.T, b *Backend) {
		for _, channels := range []int{1, 16, 31, 48, 64, 65, 130} {
			net := kernelstest.RandomNet(uint64(channels), channels, 1)
			n := load(t, b, net)
			if got := n.layers[1].block; got != (channels <= 64) {
				t.Errorf("%d channels: fused is %v", channels, got)
			}
			m := newImage(3, 67, 19)
			want, _ := kernelstest.ReferenceNet(net, m.y, m.sigma, m.width, m.height)
			got, err := m.forward(n)
			if err != nil {
				t.Fatal(err)
			}
			traced := make([]float32, len(got))
			if _, err := n.Trace(traced, m.y, m.sigma, m.width, m.height); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, traced) {
				t.Errorf("%d channels: fused and layer by layer differ", channels)
			}
			for i := range got { // of the noise
				got[i], want[i] = m.y[i]-got[i], float64(m.y[i])-want[i]
			}
			if e := kernelstest.RelativeError(got, want); !(e <= kernelstest.Half.Output) {
				t.Errorf("%d channels: relative error %.3g", channels, e)
			}
		}
	})
}

// TestStudent: the default student's shape, with as many constants as go into one chunk beside the pixels,
// and with one more, fused and layer by layer.
func TestStudent(t *testing.T) {
	eachSize(t, func(t *testing.T, b *Backend) {
		for _, constants := range []int{7, 8} {
			net := kernelstest.RandomNet(uint64(constants), 16, 16)
			told := numbers(rand.New(rand.NewPCG(uint64(constants), 5)), constants)
			net.Constants = constants
			net.Layers[0].Conv = kernels.Conv{
				In: kernels.NetIn + constants, Out: 16, Bias: net.Layers[0].Bias,
				Weights: numbers(rand.New(rand.NewPCG(uint64(constants), 6)), 9*(kernels.NetIn+constants)*16),
			}
			n := load(t, b, net)
			if got, want := n.layers[0].chunks[0], constants-6; got != want {
				t.Errorf("%d constants: %d chunks, want %d", constants, got, want)
			}
			m := newImage(4, 39, 21)
			want, wantLayers := kernelstest.ReferenceNet(net, m.y, m.sigma, m.width, m.height, told...)
			got, traced := make([]float32, len(m.y)), make([]float32, len(m.y))
			if err := n.Forward(got, m.y, m.sigma, m.width, m.height, told...); err != nil {
				t.Fatal(err)
			}
			layers, err := n.Trace(traced, m.y, m.sigma, m.width, m.height, told...)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, traced) {
				t.Errorf("%d constants: fused and layer by layer differ", constants)
			}
			if e := kernelstest.RelativeError(layers[0], wantLayers[0]); !(e <= kernelstest.Half.Output) {
				t.Errorf("%d constants: first layer: relative error %.3g", constants, e)
			}
			for i := range got { // of the noise
				got[i], want[i] = m.y[i]-got[i], float64(m.y[i])-want[i]
			}
			e := kernelstest.RelativeError(got, want)
			t.Logf("%d constants: relative error %.2g", constants, e)
			if !(e <= kernelstest.Half.Output) {
				t.Errorf("%d constants: relative error %.3g", constants, e)
			}
		}
	})
}

// TestInfinity: an infinity stays one, and near, though its products with the weights of the channels
// that fill up groups are not zero but NaN.
func TestInfinity(t *testing.T) {
	b := open(t, Options{})
	net := kernelstest.RandomNet(1, 20, 1)
	for i := range net.Layers {
		for k, w := range net.Layers[i].Weights {
			net.Layers[i].Weights[k] = max(w, -w)
		}
	}
	n := load(t, b, net)
	const width, height, column, row = 64, 40, 30, 20
	m := newImage(1, width, height)
	want, err := m.forward(n)
	if err != nil {
		t.Fatal(err)
	}
	m.y[row*width+column] = float32(math.Inf(1))
	got, err := m.forward(n)
	if err != nil {
		t.Fatal(err)
	}
	traced := make([]float32, len(got))
	if _, err := n.Trace(traced, m.y, m.sigma, m.width, m.height); err != nil {
		t.Fatal(err)
	}
	margin := 2 * len(n.layers)
	for i, w := range want {
		x, y := i%width, i/width
		if x == column && y == row {
			continue // the difference of two infinities
		}
		if x >= column-margin && x <= column+1+margin && y >= row-margin && y <= row+1+margin {
			w = float32(math.Inf(-1))
		}
		if got[i] != w || traced[i] != w {
			t.Fatalf("(%d, %d) is %v, layer by layer %v, want %v", x, y, got[i], traced[i], w)
		}
	}
}

// TestOverflow: where halves have no room for what finite numbers become, there is an error and no image
// that is not finite: whole or in strips, alone or in a batch, and of programs.
func TestOverflow(t *testing.T) {
	net := kernelstest.RandomNet(1, 16, 1)
	const width, height = 24, 61
	good, bad := newImage(1, width, height), newImage(2, width, height)
	bad.y[20*width+7] = 1e5
	full := open(t, Options{})
	n := load(t, full, net)
	bytes := int64(n.layout(height, width, 1).free.End())
	for name, o := range map[string]Options{"whole": {}, "strips": {Memory: bytes - 1}} {
		t.Run(name, func(t *testing.T) {
			n := load(t, open(t, o), net)
			dst := make([]float32, width*height)
			if err := n.Forward(dst, bad.y, bad.sigma, width, height); !errors.Is(err, errRange) {
				t.Errorf("error is %v, want %v", err, errRange)
			}
			if slices.ContainsFunc(dst, func(v float32) bool { return v != 0 }) {
				t.Error("something was written")
			}
			if _, err := good.forward(n); err != nil {
				t.Errorf("the next image: %v", err)
			}
		})
	}
	want, err := good.forward(n)
	if err != nil {
		t.Fatal(err)
	}
	n.together(8, func(i int) {
		if i%2 == 0 {
			if _, err := bad.forward(n); !errors.Is(err, errRange) {
				t.Errorf("error is %v, want %v", err, errRange)
			}
		} else if got, err := good.forward(n); err != nil || !slices.Equal(got, want) {
			t.Errorf("an image in a batch with bad ones: %v, or it differs", err)
		}
	})

	const h, w = 8, 12
	g, b := sampled(h, w)
	c, err := full.Compile(g, g.Init(1))
	if err != nil {
		t.Fatal(err)
	}
	f := func() []float32 { return make([]float32, h*w) }
	x := f()
	x[50] = 1e6
	whole := *b
	whole.Inputs = [][]float32{x, b.Inputs[1], make([]float32, 3)}
	if err := c.Run(f(), &whole); !errors.Is(err, errRange) {
		t.Errorf("Run: error is %v, want %v", err, errRange)
	}
	if err := c.(kernels.Sampler).SamplePair(f(), f(), x, b, sampleSteps(2), nil); !errors.Is(err, errRange) {
		t.Errorf("SamplePair: error is %v, want %v", err, errRange)
	}
	x[50] = float32(math.Inf(1))
	if err := c.Run(f(), &whole); err != nil {
		t.Errorf("Run with an infinity: %v", err)
	}
}

// together calls f with 0 to count-1, each of which runs n once, so that all wait for it at the same time.
func (n *network) together(count int, f func(i int)) {
	// While nobody may lead, all of them gather.
	var held []*batch
	for range inFlight {
		held = append(held, <-n.free)
	}
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() { f(i) })
	}
	for gathered := 0; gathered < count; runtime.Gosched() {
		n.mu.Lock()
		gathered = len(n.waiting)
		n.mu.Unlock()
	}
	for _, h := range held {
		n.free <- h
	}
	wg.Wait()
}

// TestBatches: images that wait at the same time run together, and that changes no bit.
func TestBatches(t *testing.T) {
	b := open(t, Options{})
	n := load(t, b, kernelstest.RandomNet(4, 8, 1))
	var images []image
	var want [][]float32
	for i := range 40 {
		images = append(images, newImage(uint64(i), 40+i%2, 24))
		dst, err := images[i].forward(n)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, dst)
	}
	n.together(len(images), func(i int) {
		got, err := images[i].forward(n)
		if err != nil {
			t.Error(err)
		} else if !slices.Equal(got, want[i]) {
			t.Errorf("image %d differs from what it is alone", i)
		}
	})
	most := 0
	for _, p := range b.pool.idle {
		most = max(most, p.count)
	}
	if most != maxBatch {
		t.Errorf("the largest batch was %d, want %d", most, maxBatch)
	}
}

// TestMemory: with less memory batches are smaller, then images are cut into strips, which changes no
// bit, and with too little there is an error that says so. Images in use at the same time wait for each
// other.
func TestMemory(t *testing.T) {
	full := open(t, Options{})
	net := kernelstest.RandomNet(5, 32, 1)
	images := []image{newImage(1, 24, 61), newImage(2, 24, 60)}
	var want [][]float32
	var alone []int64 // bytes
	n := load(t, full, net)
	for _, m := range images {
		dst, err := m.forward(n)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, dst)
		alone = append(alone, int64(n.layout(m.height, m.width, 1).free.End()))
	}
	strip := int64(n.layout(2+4*len(n.layers)+1, 24, 1).free.End())
	for _, c := range []struct {
		name   string
		memory int64
		want   error
	}{
		{"one image", alone[0] + 1000, nil},
		{"half an image", alone[0] / 4 * 3, nil},
		{"strips of two rows", strip, nil},
		{"nothing", strip / 2, kernels.ErrMemory},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := open(t, Options{Memory: c.memory})
			n := load(t, b, net)
			var wg sync.WaitGroup
			for i, m := range images {
				for range 3 {
					wg.Go(func() {
						got, err := m.forward(n)
						if !errors.Is(err, c.want) {
							t.Errorf("error is %v, want %v", err, c.want)
						} else if err == nil && !slices.Equal(got, want[i]) {
							t.Error("the result differs from that with all memory")
						}
					})
				}
			}
			wg.Wait()
			if b.pool.used > c.memory {
				t.Errorf("%d bytes in use of %d", b.pool.used, c.memory)
			}
		})
	}
}

// TestProgramMemory: with less memory fewer samples run at once, which changes no bit, and with too
// little there is an error that says so.
func TestProgramMemory(t *testing.T) {
	const h, w, samples = 8, 12, 5
	g, one := sampled(h, w)
	rng := rand.New(rand.NewPCG(8, 9))
	batch := &kernels.Batch{Count: samples, Height: h, Width: w, Shifts: one.Shifts,
		Inputs: [][]float32{numbers(rng, samples*h*w), numbers(rng, samples*h*w*2), numbers(rng, samples*3)}}
	params := g.Init(1)
	run := func(o Options) ([]float32, *program, error) {
		b := open(t, o)
		c, err := b.Compile(g, params)
		if err != nil {
			t.Fatal(err)
		}
		dst := make([]float32, samples*h*w)
		return dst, c.(*program), c.Run(dst, batch)
	}
	want, p, err := run(Options{})
	if err != nil {
		t.Fatal(err)
	}
	alone := int64(p.layout(h, w, 1).free.End())
	got, p, err := run(Options{Memory: alone})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Error("samples one by one differ from samples together")
	}
	if idle := p.b.pool.idle; len(idle) != 1 || idle[0].count != 1 {
		t.Errorf("the plans are %v, want one for one sample", idle)
	}
	if _, _, err := run(Options{Memory: alone - 1}); !errors.Is(err, kernels.ErrMemory) {
		t.Errorf("error is %v, want %v", err, kernels.ErrMemory)
	}
}

// TestFullDevice: what idle plans hold goes to others, also where it is the device that has no memory
// left, and if that is not enough the error says so.
func TestFullDevice(t *testing.T) {
	b := open(t, Options{})
	emulated(t, b)
	n := load(t, b, kernelstest.RandomNet(5, 16, 1))
	small, large := newImage(1, 32, 30), newImage(1, 128, 120)
	for _, m := range []image{small, large, small} {
		if _, err := m.forward(n); err != nil {
			t.Fatal(err)
		}
	}
	// Less is left than the large image takes, but for the plan that it has run in.
	taken := fill(b)
	other := newImage(1, 120, 128)
	if _, err := other.forward(n); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(b.pool.idle, func(p *plan) bool { return p.key.width == large.width }) {
		t.Error("the plan of the large image is still there")
	}
	var weights driver.Ptr
	if err := b.pool.alloc(&weights, 4<<10); err != nil {
		t.Errorf("memory for weights, in place of an idle plan: %v", err)
	}
	if _, err := newImage(1, 1<<12, 1<<10).forward(n); !errors.Is(err, kernels.ErrMemory) {
		t.Errorf("error is %v, want %v", err, kernels.ErrMemory)
	}
	for _, p := range append(taken, weights) {
		if err := b.device.Free(p); err != nil {
			t.Error(err)
		}
	}
	if _, err := large.forward(n); err != nil {
		t.Errorf("after memory is free again: %v", err)
	}
}

// TestIdle: images of many sizes do not leave a stream and a graph each, nor large ones all of their pinned
// memory, though there would be device memory for all plans.
func TestIdle(t *testing.T) {
	b := open(t, Options{Memory: 1 << 40})
	n := load(t, b, kernelstest.RandomNet(1, 1, 1))
	for i := range maxIdle + 10 {
		if _, err := newImage(1, 1+i, 1).forward(n); err != nil {
			t.Fatal(err)
		}
	}
	if live := driver.Live(); live.Streams > maxIdle || live.Graphs > maxIdle || live.Pinned > maxIdle {
		t.Errorf("alive after images of %d sizes: %v, want at most %d of each", maxIdle+10, live, maxIdle)
	}
	if !slices.ContainsFunc(b.pool.idle, func(p *plan) bool { return p.key.width == maxIdle+10 }) {
		t.Error("the plan of the last image is gone")
	}
	// As put sees plans of large images.
	for i := range 3 {
		p, err := b.pool.get(key{n.res, forward, 1, 1 + i, 1}, func() *layout { return n.layout(1, 1+i, 1) })
		if err != nil {
			t.Fatal(err)
		}
		p.in.bytes += maxPinned
		b.pool.put(p)
		if len(b.pool.idle) != 1 || b.pool.idle[0] != p {
			t.Errorf("%d plans are idle beside the one with much pinned memory", len(b.pool.idle)-1)
		}
	}
}

// TestWaiting: those that wait for memory of a full device do so without trying over and over, and get it.
func TestWaiting(t *testing.T) {
	b := open(t, Options{})
	emulated(t, b)
	n := load(t, b, kernelstest.RandomNet(5, 16, 1))
	get := func(width int) (*plan, error) {
		return b.pool.get(key{n.res, forward, 64, width, 1}, func() *layout { return n.layout(64, width, 1) })
	}
	held, err := get(66)
	if err != nil {
		t.Fatal(err)
	}
	taken := fill(b)
	var wg sync.WaitGroup
	for _, width := range []int{62, 64} {
		wg.Go(func() {
			p, err := get(width)
			if err != nil {
				t.Errorf("%d pixels: %v", width, err)
				return
			}
			b.pool.put(p)
		})
	}
	processor := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	time.Sleep(50 * time.Millisecond)
	before := processor()
	time.Sleep(200 * time.Millisecond)
	if took := processor() - before; took > 40*time.Millisecond {
		t.Errorf("%v of processor time to wait for 200 ms", took)
	}
	b.pool.put(held)
	wg.Wait()
	for _, p := range taken {
		if err := b.device.Free(p); err != nil {
			t.Error(err)
		}
	}
}

// TestRelease: the memory of networks and programs that nobody uses any more goes back.
func TestRelease(t *testing.T) {
	b := open(t, Options{})
	before := driver.Live()
	func() {
		n := load(t, b, kernelstest.RandomNet(5, 16, 1))
		if _, err := newImage(1, 32, 30).forward(n); err != nil {
			t.Fatal(err)
		}
		g, batch := sampled(8, 8)
		p, err := b.Compile(g, g.Init(1))
		if err != nil {
			t.Fatal(err)
		}
		whole := *batch
		whole.Inputs = [][]float32{make([]float32, 64), batch.Inputs[1], make([]float32, 3)}
		if err := p.Run(make([]float32, 64), &whole); err != nil {
			t.Fatal(err)
		}
	}()
	if driver.Live() == before {
		t.Fatal("a network and a program have nothing on the device")
	}
	for end := time.Now().Add(10 * time.Second); driver.Live() != before; {
		if time.Now().After(end) {
			t.Fatalf("alive: %+v, before the network and the program: %+v", driver.Live(), before)
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
}

// TestAllocations: an image allocates nothing once a plan is there.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget at random")
	}
	n := load(t, open(t, Options{}), kernelstest.RandomNet(5, 8, 1))
	m := newImage(1, 20, 12)
	dst := make([]float32, len(m.y))
	if allocs := testing.AllocsPerRun(20, func() {
		if err := n.Forward(dst, m.y, m.sigma, m.width, m.height); err != nil {
			t.Error(err)
		}
	}); allocs != 0 {
		t.Errorf("%v allocations per image", allocs)
	}
}

// TestWeightRange: a weight that is no half is refused.
func TestWeightRange(t *testing.T) {
	b := open(t, Options{})
	net := kernelstest.RandomNet(5, 8, 1)
	net.Layers[1].Weights[7] = 65519 // rounds to 65504
	if _, err := b.Load(net.Graph()); err != nil {
		t.Error(err)
	}
	net.Layers[1].Weights[7] = -65520
	if _, err := b.Load(net.Graph()); err == nil {
		t.Error("a weight beyond all halves passed")
	}
}

func TestHalf(t *testing.T) {
	for h := range 1 << 16 {
		f := fromHalf(uint16(h))
		back := toHalf(f)
		if f != f {
			if h&0x7c00 != 0x7c00 || h&0x3ff == 0 || back&0x7c00 != 0x7c00 || back&0x3ff == 0 {
				t.Fatalf("%#x is NaN, and that is %#x", h, back)
			}
			continue
		}
		if int(back) != h {
			t.Fatalf("%#x is %v, and that is %#x", h, f, back)
		}
		// Halfway to the next, and on either side of it.
		if next := fromHalf(uint16(h + 1)); h&0x7fff < 0x7bff {
			middle := (f + next) / 2
			even := uint16(h + h&1)
			toward, away := math.Nextafter32(middle, f), math.Nextafter32(middle, next)
			if a, b, c := toHalf(toward), toHalf(middle), toHalf(away); a != uint16(h) || b != even || c != uint16(h+1) {
				t.Fatalf("around the middle %v of %#x and the next: %#x, %#x, %#x", middle, h, a, b, c)
			}
		}
	}
	for f, want := range map[float32]uint16{65519.99: 0x7bff, 65520: 0x7c00, 1e30: 0x7c00, -65520: 0xfc00, 0x1p-25: 0, 0x1.8p-25: 1} {
		if got := toHalf(f); got != want {
			t.Errorf("%v is %#x, want %#x", f, got, want)
		}
	}
}

// fromHalf is exact.
func fromHalf(h uint16) float32 {
	bits := uint32(h&0x7fff) << 13
	if h&0x7c00 == 0x7c00 {
		bits |= 0x7f800000
	} else {
		bits = math.Float32bits(math.Float32frombits(bits) * 0x1p112)
	}
	return math.Float32frombits(bits | uint32(h&0x8000)<<16)
}

func TestFinite(t *testing.T) {
	inf := float32(math.Inf(1))
	for f, want := range map[float32]bool{0: true, -1: true, math.MaxFloat32: true, -math.MaxFloat32: true, math.SmallestNonzeroFloat32: true,
		inf: false, -inf: false, float32(math.NaN()): false} {
		if finite([]float32{1, f, -2}) != want {
			t.Errorf("%v: finite is %v", f, !want)
		}
	}
	if !finite(nil) {
		t.Error("nothing is not finite")
	}
}
