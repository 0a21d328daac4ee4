package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// each runs a test on every instruction set of this machine.
func each(t *testing.T, test func(t *testing.T, b *Backend)) {
	for _, name := range ISAs() {
		t.Run(string(name), func(t *testing.T) {
			b, err := New(name)
			if err != nil {
				t.Fatal(err)
			}
			test(t, b)
		})
	}
}

func TestBackend(t *testing.T) {
	each(t, func(t *testing.T, b *Backend) { kernelstest.Run(t, b, tolerance(b)) })
}

// tolerance is what the op list allows an instruction set.
func tolerance(b *Backend) kernelstest.Tolerance {
	switch {
	case b.isa.ints != nil:
		return kernelstest.Int8
	case b.isa.bf16 != nil:
		return kernelstest.BF16
	}
	return kernelstest.Single
}

// noise returns an image and a noise map.
func noise(seed uint64, n int) (y, sigma []float32) {
	rng := rand.New(rand.NewPCG(seed, 0))
	y, sigma = make([]float32, n), make([]float32, n)
	for i := range y {
		y[i], sigma[i] = rng.Float32(), 0.1*rng.Float32()
	}
	return y, sigma
}

// TestStrips: the cut into strips never changes a bit, whatever the width, also
// when strips are narrower than the network is deep.
func TestStrips(t *testing.T) {
	each(t, testStrips)
}

func testStrips(t *testing.T, b *Backend) {
	loaded, err := b.Load(kernelstest.RandomNet(5, 8, 5).Graph())
	if err != nil {
		t.Fatal(err)
	}
	n := loaded.(*network)
	const height = 9
	for _, width := range []int{1, 14, 47, 64, 100, 131, 430} {
		y, sigma := noise(uint64(width), width*height)
		want, got := make([]float32, len(y)), make([]float32, len(y))
		n.forward(want, y, sigma, width, height, nil, 1<<20, nil)
		for _, aim := range []int{1, 8, 9, 16, 24, 40} {
			n.forward(got, y, sigma, width, height, nil, aim, nil)
			if !slices.Equal(got, want) {
				t.Errorf("width %d: strips of about %d columns change the result", width, aim)
			}
		}
	}
}

// TestAssemblyAgrees: AVX2 and AVX-512 add in the same order with one rounding
// per multiply-add, so they agree in every bit; plain Go is close. Sets with bf16
// are as far off as Tolerance says.
func TestAssemblyAgrees(t *testing.T) {
	net := kernelstest.RandomNet(6, 32, 8)
	const width, height = 150, 61
	y, sigma := noise(1, width*height)
	results := map[ISA][]float32{}
	for _, name := range ISAs() {
		b, err := New(name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := b.Load(net.Graph())
		if err != nil {
			t.Fatal(err)
		}
		out := make([]float32, len(y))
		if err := n.Forward(out, y, sigma, width, height); err != nil {
			t.Fatal(err)
		}
		results[name] = out
	}
	if a, b := results[AVX2], results[AVX512]; a != nil && b != nil && !slices.Equal(a, b) {
		t.Error("AVX2 and AVX-512 differ")
	}
	var want []float64
	for _, v := range results[Go] {
		want = append(want, float64(v))
	}
	for name, got := range results {
		limit := 1e-6
		if b, err := New(name); err == nil && (b.isa.bf16 != nil || b.isa.ints != nil) {
			limit = b.Tolerance()
		}
		e := kernelstest.RelativeError(got, want)
		if !(e <= limit) {
			t.Errorf("%s and plain Go differ by %.3g", name, e)
		}
		t.Logf("%s and plain Go differ by %.2g", name, e)
	}
}

// TestRowGuards calls the row kernels on slices of exactly the promised length,
// between guard words, at every width around the tiles.
func TestRowGuards(t *testing.T) {
	each(t, testRowGuards)
	for _, b := range intBackends() {
		t.Run(string(b.ISA())+" tail", func(t *testing.T) { testRowGuards(t, &Backend{b.isa.ints.tail()}) })
	}
}

func testRowGuards(t *testing.T, b *Backend) {
	guard := float32(math.NaN())
	const words = 64
	for _, blk := range b.isa.blocks {
		for n := 1; n <= 20; n++ {
			for _, stride := range []int{4, 12, 16, 32} {
				if blk.lanes != 0 && 3*stride%blk.lanes != 0 {
					continue
				}
				taps, ys := 3*stride, blk.width+3
				surround := func(length int, fill float32) (inner, all []float32) {
					all = slices.Repeat([]float32{guard}, length+2*words)
					for i := range length {
						all[words+i] = fill
					}
					return all[words:][:length:length], all
				}
				input := func(length int, fill float32) (inner []float32, halfs []uint32) {
					inner, all := surround(length, fill)
					if b.isa.bf16 == nil {
						return inner, nil
					}
					halfs = make([]uint32, len(all)/2)
					roundPairs(halfs, all)
					return nil, halfs[words/2:][: length/2 : length/2]
				}
				r := &row{n: n, rows: 3, taps: taps, xs: stride, ys: ys, floor: 0}
				for i := range r.x {
					r.x[i], r.halfs[i] = input((n-1)*stride+taps, 1)
				}
				r.w, r.pairs = input(3*taps*blk.width, 0.5)
				r.bias, _ = surround(blk.width, 2)
				var outside []float32
				r.y, outside = surround((n-1)*ys+blk.width, -1)
				r.check(blk.width)
				blk.run(r)
				want := float32(2 + 3*taps/2)
				for i, v := range outside {
					at := i - words
					inside := at >= 0 && at < len(r.y)
					switch {
					case inside && at%ys < blk.width && v != want:
						t.Fatalf("block %d, %d pixels: output %d is %v, want %v", blk.width, n, at, v, want)
					case inside && at%ys >= blk.width && v != -1:
						t.Fatalf("block %d, %d pixels: wrote between pixels at %d", blk.width, n, at)
					case !inside && v == v:
						t.Fatalf("block %d, %d pixels: wrote outside at %d", blk.width, n, at)
					}
				}
			}
		}
	}
}

// TestRowCheck: a slice that is one float short stops in Go, before assembly.
func TestRowCheck(t *testing.T) {
	make1 := func() *row {
		r := &row{n: 3, rows: 3, taps: 12, xs: 4, ys: 8, y: make([]float32, 24), res: make([]float32, 24), w: make([]float32, 36*8), bias: make([]float32, 8)}
		for i := range r.x {
			r.x[i] = make([]float32, 20)
		}
		return r
	}
	halfs := func() *row {
		r := make1()
		r.w, r.pairs = nil, make([]uint32, 18*8)
		for i := range r.x {
			r.x[i], r.halfs[i] = nil, make([]uint32, 10)
		}
		return r
	}
	make1().check(8)
	halfs().check(8)
	for i, shorten := range []func(*row){
		func(r *row) { r.y = r.y[:23] },
		func(r *row) { r.res = r.res[:23] },
		func(r *row) { r.w = r.w[:36*8-1] },
		func(r *row) { r.bias = r.bias[:7] },
		func(r *row) { r.x[0] = r.x[0][:19] },
		func(r *row) { r.x[1] = r.x[1][:19] },
		func(r *row) { r.x[2] = r.x[2][:19] },
	} {
		r := make1()
		shorten(r)
		checkPanics(t, i, r)
	}
	for i, shorten := range []func(*row){
		func(r *row) { r.pairs = r.pairs[:18*8-1] },
		func(r *row) { r.halfs[0] = r.halfs[0][:9] },
		func(r *row) { r.halfs[2] = r.halfs[2][:9] },
	} {
		r := halfs()
		shorten(r)
		checkPanics(t, i, r)
	}
}

func checkPanics(t *testing.T, i int, r *row) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("case %d: a short slice passed", i)
		}
	}()
	r.check(8)
}

// TestAllocations: a slice allocates nothing once the buffers are there.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget at random")
	}
	each(t, func(t *testing.T, b *Backend) {
		n, err := b.Load(kernelstest.RandomNet(5, 8, 2).Graph())
		if err != nil {
			t.Fatal(err)
		}
		const width, height = 40, 12
		y, sigma := noise(1, width*height)
		dst := make([]float32, len(y))
		if allocs := testing.AllocsPerRun(50, func() {
			if err := n.Forward(dst, y, sigma, width, height); err != nil {
				t.Error(err)
			}
		}); allocs != 0 {
			t.Errorf("%v allocations per slice", allocs)
		}
	})
}

func TestSelect(t *testing.T) {
	t.Setenv(EnvISA, "")
	b, err := Select()
	if err != nil || b.isa.bf16 != nil || b.isa.ints != nil || b.isa.wino != nil || b.ISA() == Go && len(ISAs()) > 1 {
		t.Errorf("Select() = %v, %v, want the fastest without bf16 of %v", b, err, ISAs())
	}
	want := b.ISA()
	for _, faster := range []ISA{AVX2Winograd, AVX512Winograd, AVX512BF16, AVXVNNI, AVX512VNNI, AMX} {
		if slices.Contains(ISAs(), faster) && (faster != AVX512BF16 || fastBF16()) {
			want = faster
		}
	}
	if b, err := SelectInference(); err != nil || b.ISA() != want {
		t.Errorf("SelectInference() = %v, %v, want %s of %v", b, err, want, ISAs())
	}
	t.Setenv(EnvISA, "go")
	if b, err := Select(); err != nil || b.Name() != "cpu/go" {
		t.Errorf("Select() with go = %v, %v", b, err)
	}
	t.Setenv(EnvISA, "sse9")
	for _, choice := range []func() (*Backend, error){Select, SelectInference} {
		if _, err := choice(); err == nil || !strings.Contains(err.Error(), EnvISA) {
			t.Errorf("choice with nonsense = %v", err)
		}
	}
	for _, known := range []ISA{AVX2, AVX512, AVX512BF16, AMX, AVX512VNNI, AVXVNNI, AVX512Winograd, AVX2Winograd} {
		_, err := New(known)
		if has := slices.Contains(ISAs(), known); has != (err == nil) {
			t.Errorf("New(%s) = %v, available: %v", known, err, has)
		}
	}
}

func TestPeak(t *testing.T) {
	each(t, func(t *testing.T, b *Backend) {
		if got := b.Peak(10); (got > 0) != (b.ISA() != Go && b.ISA() != AMX) {
			t.Errorf("Peak(10) = %v", got)
		}
	})
}

func ExampleSelect() {
	backend, err := Select()
	if err != nil {
		fmt.Println(err)
		return
	}
	network, err := backend.Load(kernelstest.RandomNet(1, 32, 8).Graph())
	if err != nil {
		fmt.Println(err)
		return
	}
	image, sigma := make([]float32, 64*48), make([]float32, 64*48)
	fmt.Println(network.Forward(image, image, sigma, 64, 48))
	// Output: <nil>
}
