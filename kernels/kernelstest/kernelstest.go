// Package kernelstest holds any kernels.Backend to one list of tests: every
// operation at awkward shapes, against a slow float64 reference.
//
// Run is all that a backend's own test calls. Reference and ReferenceNet are
// the definitions in code that it compares with.
package kernelstest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/internal/chain"
)

// Tolerance is what a backend's rounding may cost, as relative errors: the norm of
// the difference by the norm of the reference.
type Tolerance struct {
	Output   float64 // of a convolution, of every layer of a network and of a graph
	Network  float64 // of every layer of a network; 0 for Output
	Gradient float64 // of each parameter of a graph without activations
	// Kinked is Gradient with activations: rounding takes single values across the
	// kink, which turns their share of the gradient around.
	Kinked float64
}

// Single is the tolerance of backends that compute in single precision.
var Single = Tolerance{Output: 1e-5, Gradient: 2e-4, Kinked: 2e-4}

// BF16 is that of backends that multiply numbers of 8 bits, each of which is off by
// up to 0.4 %. Outputs of a few values are up to 1.2 % off, larger ones 0.3 %.
var BF16 = Tolerance{Output: 2e-2, Gradient: 1e-2, Kinked: 0.2}

// Half is that of backends that round weights and what passes between operations to
// halves. A network of some layers is 0.05 % off, one of 18 layers up to 0.15 %. They do
// not train.
var Half = Tolerance{Output: 2e-3}

// Int8 is that of backends that multiply numbers of 8 bits with one scale for many of
// them in the inner layers of networks, and compute all else in single precision.
// Layers of random networks are up to 1.3 % off.
var Int8 = Tolerance{Output: Single.Output, Network: 2e-2, Gradient: Single.Gradient, Kinked: Single.Kinked}

// guard surrounds every buffer that a backend may write. It is a NaN with a
// payload, so a stray write shows, and so does a stray read that is used.
var guard = math.Float32frombits(0x7fc0dead)

// Run tests b, whose results may be off by tol.
func Run(t *testing.T, b kernels.Backend, tol Tolerance) {
	t.Run("Conv3x3", func(t *testing.T) { testConv(t, b, tol) })
	t.Run("Special", func(t *testing.T) { testSpecial(t, b) })
	t.Run("Shapes", func(t *testing.T) { testShapes(t, b) })
	t.Run("Forward", func(t *testing.T) { testForward(t, b, tol) })
	t.Run("Concurrent", func(t *testing.T) { testConcurrent(t, b) })
}

// Reference is Conv3x3 by definition, summed in float64.
func Reference(src, residual []float32, height, width int, c *kernels.Conv) []float64 {
	in := make([]float64, len(src))
	for i, v := range src {
		in[i] = float64(v)
	}
	var res []float64
	for _, v := range residual {
		res = append(res, float64(v))
	}
	return reference(in, res, height, width, c)
}

func reference(src, residual []float64, height, width int, c *kernels.Conv) []float64 {
	weights := make([]float64, len(c.Weights)) // [Out, 3, 3, In], for speed
	for at, v := range c.Weights {
		weights[(at/(9*c.In)*9+at%9)*c.In+at/9%c.In] = float64(v)
	}
	dst := make([]float64, height*width*c.Out)
	for y := range height {
		for x := range width {
			for o := range c.Out {
				sum := float64(c.Bias[o])
				for k := range 9 {
					sy, sx := y+k/3-1, x+k%3-1
					if sy < 0 || sy >= height || sx < 0 || sx >= width {
						continue
					}
					w := weights[(o*9+k)*c.In:][:c.In]
					for i, v := range src[(sy*width+sx)*c.In:][:c.In] {
						sum += w[i] * v
					}
				}
				if c.ReLU && sum < 0 {
					sum = 0
				}
				at := (y*width+x)*c.Out + o
				if residual != nil {
					sum += residual[at]
				}
				dst[at] = sum
			}
		}
	}
	return dst
}

// ReferenceNet is Network.Trace by definition, in float64: the output, and what
// every layer puts out as [channels, h, w].
func ReferenceNet(net *chain.Net, y, sigma []float32, width, height int, constants ...float32) (out []float64,
	layers [][]float64) {
	w, h := (width+1)/2, (height+1)/2
	at := func(row, col int) int { return min(row, height-1)*width + min(col, width-1) }
	in := kernels.NetIn + net.Constants
	x := make([]float64, h*w*in)
	for r := range h {
		for c := range w {
			p := x[(r*w+c)*in:]
			for k, v := range constants {
				p[kernels.NetIn+k] = float64(v)
			}
			for k := range 4 {
				p[k] = float64(y[at(2*r+k/2, 2*c+k%2)])
				p[4] += kernels.SigmaScale / 4.0 * float64(sigma[at(2*r+k/2, 2*c+k%2)])
			}
		}
	}
	var outputs [][]float64 // [h, w, channels]
	for i := range net.Layers {
		l := &net.Layers[i]
		var res []float64
		if l.Skip > 0 {
			res = outputs[i-l.Skip]
		}
		x = reference(x, res, h, w, &l.Conv)
		outputs = append(outputs, x)
		plane := make([]float64, len(x))
		for p := range h * w {
			for c := range l.Out {
				plane[c*h*w+p] = x[p*l.Out+c]
			}
		}
		layers = append(layers, plane)
	}
	out = make([]float64, width*height)
	for r := range height {
		for c := range width {
			out[r*width+c] = float64(y[r*width+c]) - x[((r/2)*w+c/2)*kernels.NetOut+2*(r%2)+c%2]
		}
	}
	return out, layers
}

// RelativeError is the norm of got-want by the norm of want.
func RelativeError(got []float32, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	diff, norm := 0.0, 0.0
	for i, v := range want {
		d := float64(got[i]) - v
		diff += d * d
		norm += v * v
	}
	if diff == 0 {
		return 0
	}
	return math.Sqrt(diff / norm) // NaN and Inf in got arrive here
}

// RandomNet makes a network of the student's form: a head, blocks of two
// convolutions with a skip, a tail.
func RandomNet(seed uint64, channels, blocks int) *chain.Net {
	rng := rand.New(rand.NewPCG(seed, 1))
	net := &chain.Net{Layers: []chain.Layer{{Conv: *randomConv(rng, kernels.NetIn, channels, false)}}}
	for range blocks {
		net.Layers = append(net.Layers,
			chain.Layer{Conv: *randomConv(rng, channels, channels, true)},
			chain.Layer{Conv: *randomConv(rng, channels, channels, false), Skip: 2})
	}
	net.Layers = append(net.Layers, chain.Layer{Conv: *randomConv(rng, channels, kernels.NetOut, false)})
	return net
}

func randomConv(rng *rand.Rand, in, out int, relu bool) *kernels.Conv {
	c := &kernels.Conv{In: in, Out: out, ReLU: relu, Weights: randoms(rng, 9*in*out), Bias: randoms(rng, out)}
	for i := range c.Weights {
		c.Weights[i] *= float32(1 / math.Sqrt(9*float64(in)))
	}
	return c
}

func randoms(rng *rand.Rand, n int) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = float32(rng.NormFloat64())
	}
	return s
}

// guarded returns n floats with guard words around them, and a check for them.
func guarded(n int) (s []float32, check func() error) {
	const words = 64
	all := make([]float32, n+2*words)
	for i := range all {
		all[i] = guard
	}
	return all[words:][:n:n], func() error {
		for i, v := range all {
			if (i < words || i >= words+n) && math.Float32bits(v) != math.Float32bits(guard) {
				return fmt.Errorf("guard word %d of a buffer of %d was overwritten with %v", i-words, n, v)
			}
		}
		return nil
	}
}

// copyGuarded is guarded with contents.
func copyGuarded(values []float32) ([]float32, func() error) {
	s, check := guarded(len(values))
	copy(s, values)
	return s, check
}

func testConv(t *testing.T, b kernels.Backend, tol Tolerance) {
	rng := rand.New(rand.NewPCG(1, 2))
	type shape struct{ in, out, width, height int }
	var shapes []shape
	// Every width around the tiles, at the channels of the default network.
	for width := 1; width <= 18; width++ {
		shapes = append(shapes, shape{32, 32, width, 3})
	}
	for _, ch := range [][2]int{{1, 1}, {5, 32}, {32, 4}, {3, 7}, {4, 8}, {8, 16}, {17, 33}, {48, 48}, {64, 40}, {33, 31}} {
		for _, size := range [][2]int{{1, 1}, {1, 9}, {2, 1}, {7, 5}, {31, 2}, {33, 4}} {
			shapes = append(shapes, shape{ch[0], ch[1], size[0], size[1]})
		}
	}
	for _, s := range shapes {
		for _, relu := range []bool{false, true} {
			for _, skip := range []string{"none", "residual", "in place"} {
				name := fmt.Sprintf("%dx%d %d→%d relu=%v skip=%s", s.width, s.height, s.in, s.out, relu, skip)
				c := randomConv(rng, s.in, s.out, relu)
				src, checkSrc := copyGuarded(randoms(rng, s.width*s.height*s.in))
				dst, checkDst := guarded(s.width * s.height * s.out)
				var res []float32
				checkRes := func() error { return nil }
				if skip != "none" {
					res, checkRes = copyGuarded(randoms(rng, len(dst)))
				}
				want := Reference(src, res, s.height, s.width, c)
				if skip == "in place" {
					dst, checkDst = res, checkRes
				}
				if err := b.Conv3x3(dst, src, res, s.height, s.width, c); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if e := RelativeError(dst, want); !(e <= tol.Output) {
					t.Errorf("%s: relative error %.3g", name, e)
				}
				if err := errors.Join(checkSrc(), checkDst(), checkRes()); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

// testSpecial: a NaN or an infinity reaches exactly the pixels around it, also
// through the ReLU.
func testSpecial(t *testing.T, b kernels.Backend) {
	const width, height, channels = 19, 6, 32
	rng := rand.New(rand.NewPCG(3, 4))
	c := randomConv(rng, channels, channels, true)
	clean := randoms(rng, width*height*channels)
	want := make([]float32, len(clean))
	if err := b.Conv3x3(want, clean, nil, height, width, c); err != nil {
		t.Fatal(err)
	}
	for _, special := range []float32{float32(math.NaN()), float32(math.Inf(1))} {
		for _, at := range [][2]int{{0, 0}, {7, 2}, {8, 3}, {18, 5}} {
			src := slices.Clone(clean)
			src[(at[1]*width+at[0])*channels+11] = special
			got := make([]float32, len(clean))
			if err := b.Conv3x3(got, src, nil, height, width, c); err != nil {
				t.Fatal(err)
			}
			for i := range got {
				x, y := i/channels%width, i/channels/width
				near := x-at[0] <= 1 && at[0]-x <= 1 && y-at[1] <= 1 && at[1]-y <= 1
				v := float64(got[i])
				switch {
				case !near && got[i] != want[i]:
					t.Fatalf("%v at %v changed pixel (%d, %d)", special, at, x, y)
				case near && math.IsNaN(float64(special)) && !math.IsNaN(v):
					t.Fatalf("NaN at %v gave %v at (%d, %d)", at, v, x, y)
				case near && math.IsInf(float64(special), 1) && v != 0 && !math.IsInf(v, 1):
					t.Fatalf("infinity at %v gave %v at (%d, %d)", at, v, x, y)
				}
			}
		}
	}
}

// testShapes: buffers and networks that do not fit are refused, not computed.
func testShapes(t *testing.T, b kernels.Backend) {
	rng := rand.New(rand.NewPCG(5, 6))
	c := randomConv(rng, 4, 8, false)
	f := func(n int) []float32 { return make([]float32, n) }
	shape := func(what string, err error) {
		t.Helper()
		var e *kernels.ShapeError
		if !errors.As(err, &e) {
			t.Errorf("%s: error is %v, want a *ShapeError", what, err)
		}
	}
	shape("short input", b.Conv3x3(f(6*8), f(6*4-1), nil, 2, 3, c))
	shape("long output", b.Conv3x3(f(6*8+1), f(6*4), nil, 2, 3, c))
	shape("short residual", b.Conv3x3(f(6*8), f(6*4), f(1), 2, 3, c))
	shape("no rows", b.Conv3x3(nil, nil, nil, 0, 3, c))
	shape("too large", b.Conv3x3(nil, nil, nil, math.MaxInt/2, math.MaxInt/2, c))
	bad := *c
	bad.Weights = bad.Weights[1:]
	shape("short weights", b.Conv3x3(f(6*8), f(6*4), nil, 2, 3, &bad))

	load := func(what string, change func(*chain.Net)) {
		t.Helper()
		net := RandomNet(1, 8, 1)
		change(net)
		if _, err := b.Load(net.Graph()); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	load("no layers", func(n *chain.Net) { n.Layers = nil })
	load("broken chain", func(n *chain.Net) { n.Layers = append(n.Layers[:1], n.Layers[3]); n.Layers[0].Out = 7 })
	load("skip from nowhere", func(n *chain.Net) { n.Layers[1].Skip = 2 })
	load("negative skip", func(n *chain.Net) { n.Layers[1].Skip = -1 })
	load("skip of other width", func(n *chain.Net) { n.Layers[3].Skip = 1 })
	load("weight not finite", func(n *chain.Net) { n.Layers[0].Weights[5] = float32(math.NaN()) })
	load("wrong output", func(n *chain.Net) { n.Layers = n.Layers[:3] })

	network, err := b.Load(RandomNet(1, 8, 1).Graph())
	if err != nil {
		t.Fatal(err)
	}
	shape("output", network.Forward(f(5), f(6), f(6), 3, 2))
	shape("image", network.Forward(f(6), f(7), f(6), 3, 2))
	shape("noise map", network.Forward(f(6), f(6), f(0), 3, 2))
	shape("width", network.Forward(nil, nil, nil, 0, 2))
	shape("height", network.Forward(nil, nil, nil, 2, -1))
	shape("constants", network.Forward(f(6), f(6), f(6), 3, 2, 1))
	shape("huge", network.Forward(nil, nil, nil, math.MaxInt, math.MaxInt))
}

func testForward(t *testing.T, b kernels.Backend, tol Tolerance) {
	single := RandomNet(9, 8, 0) // layers that add their own input, and a longer skip
	rng := rand.New(rand.NewPCG(7, 8))
	for range 4 {
		single.Layers = slices.Insert(single.Layers, 1, chain.Layer{Conv: *randomConv(rng, 8, 8, false), Skip: 1})
	}
	single.Layers[4].Skip = 4
	nets := map[string]*chain.Net{
		"head and tail": RandomNet(1, 6, 0),
		"student's":     RandomNet(2, 32, 2),
		"odd channels":  RandomNet(3, 19, 3),
		"skips":         single,
	}
	for _, n := range []int{1, 2, kernels.MaxConstants} {
		net := RandomNet(4, 9, 1)
		net.Constants, net.Layers[0].Conv = n, *randomConv(rng, kernels.NetIn+n, 9, false)
		nets[fmt.Sprintf("%d constants", n)] = net
	}
	sizes := [][2]int{{1, 1}, {2, 1}, {1, 2}, {3, 2}, {2, 3}, {1, 40}, {40, 1}, {15, 17}, {16, 16}, {33, 9}, {301, 6}, {530, 5}}
	limit := cmp.Or(tol.Network, tol.Output)
	for _, name := range slices.Sorted(maps.Keys(nets)) {
		net := nets[name]
		network, err := b.Load(net.Graph())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, size := range sizes {
			width, height := size[0], size[1]
			at := fmt.Sprintf("%s, %dx%d", name, width, height)
			y, checkY := copyGuarded(randoms(rng, width*height))
			sigma, checkSigma := copyGuarded(randoms(rng, width*height))
			dst, checkDst := guarded(width * height)
			constants := randoms(rng, net.Constants)
			want, wantLayers := ReferenceNet(net, y, sigma, width, height, constants...)
			layers, err := network.Trace(dst, y, sigma, width, height, constants...)
			if err != nil {
				t.Fatalf("%s: %v", at, err)
			}
			if len(layers) != len(wantLayers) {
				t.Fatalf("%s: %d layers traced, want %d", at, len(layers), len(wantLayers))
			}
			for i := range layers {
				if e := RelativeError(layers[i], wantLayers[i]); !(e <= limit) {
					t.Errorf("%s: layer %d: relative error %.3g", at, i, e)
				}
			}
			noise := make([]float32, len(dst)) // the output may happen to be near zero
			for i, v := range dst {
				noise[i], want[i] = y[i]-v, float64(y[i])-want[i]
			}
			if e := RelativeError(noise, want); !(e <= limit) {
				t.Errorf("%s: relative error %.3g", at, e)
			}
			traced := slices.Clone(dst)
			if err := network.Forward(y, y, sigma, width, height, constants...); err != nil {
				t.Fatalf("%s in place: %v", at, err)
			}
			if !slices.Equal(y, traced) {
				t.Errorf("%s: in place differs", at)
			}
			if last := len(constants) - 1; last >= 0 { // one that is left out is 0
				given, absent := slices.Clone(y), slices.Clone(y)
				constants[last] = 0
				if err := errors.Join(network.Forward(given, y, sigma, width, height, constants...),
					network.Forward(absent, y, sigma, width, height, constants[:last]...)); err != nil {
					t.Fatalf("%s: %v", at, err)
				}
				if !slices.Equal(given, absent) {
					t.Errorf("%s: a constant that is left out is not 0", at)
				}
			}
			if err := errors.Join(checkY(), checkSigma(), checkDst()); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
	}
}

// testConcurrent: several slices of different sizes at once give what they give
// one by one.
func testConcurrent(t *testing.T, b kernels.Backend) {
	network, err := b.Load(RandomNet(4, 16, 2).Graph())
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(9, 10))
	var wg sync.WaitGroup
	for _, width := range []int{7, 64, 21, 300} {
		const height = 12
		y, sigma := randoms(rng, width*height), randoms(rng, width*height)
		want := make([]float32, len(y))
		if err := network.Forward(want, y, sigma, width, height); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			got := make([]float32, len(y))
			for range 5 {
				if err := network.Forward(got, y, sigma, width, height); err != nil {
					t.Errorf("width %d: %v", width, err)
				} else if !slices.Equal(got, want) {
					t.Errorf("width %d: differs from the first run", width)
				}
			}
		})
	}
	wg.Wait()
}
