package cpu

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/kernels/internal/chain"
	"github.com/diffdenoise/denoised/kernels/kernelstest"
)

// fma32 is a*b+c, rounded once.
func fma32(a, b, c float32) float32 {
	p := float64(a) * float64(b) // exact
	sum := p + float64(c)
	// What the sum has lost makes its last bit odd, so that rounding again errs on no side.
	t := sum - p
	lost := (p - (sum - t)) + (float64(c) - t)
	if bits := math.Float64bits(sum); lost != 0 && bits&1 == 0 {
		if (lost > 0) == (sum > 0) {
			bits++
		} else {
			bits--
		}
		sum = math.Float64frombits(bits)
	}
	return float32(sum)
}

// intsGo is integers in plain Go: the definition that assembly must agree with in
// every bit.
func intsGo(lanes int, widths ...int) *integers {
	set := &integers{lanes: lanes, quantize: quantizeRowGo, tail: func() isa { return plainGo }}
	for _, width := range widths {
		set.blocks = append(set.blocks, intBlock{width, func(r *intRow) { intRowGo(r, width, lanes) }})
	}
	return set
}

func intRowGo(r *intRow, width, lanes int) {
	taps := 3 * r.stride
	for p := range r.tiles * tileColumns {
		from := (p/groupColumns*groupPixels + p%groupColumns) * r.stride
		for o := range width {
			var z float32
			for k := range 3 {
				sum := r.offsets[o/lanes*3*lanes+k*lanes+o%lanes]
				for t, x := range r.x[k][from:][:taps] {
					sum += int32(x) * int32(r.w[((k*taps+t)/4*width+o)*4+t%4])
				}
				z = fma32(float32(sum), r.scales[k][p/tileColumns], z)
			}
			z = fma32(z, r.channels[o], r.channels[width+o])
			if z < r.floor { // false for NaN, which must survive
				z = r.floor
			}
			if r.res != nil {
				z += r.res[p*r.ys+o]
			}
			r.y[p*r.ys+o] = z
		}
	}
}

func quantizeRowGo(q *quantizeRow) {
	const size = groupPixels
	for g := range q.groups {
		src := q.src[g*groupColumns*q.channels:][:size*q.channels]
		largest := uint32((127 - 100) << 23)
		for _, v := range src {
			largest = max(largest, math.Float32bits(v)&^(1<<31)) // of NaN, too
		}
		most := math.Float32frombits(largest)
		q.scales[2*g] = most / float32(q.top)
		q.scales[2*g+1] = q.scales[2*g]
		steps := float32(q.top) / most
		for i, v := range src {
			v = float32(v*steps) + float32(roundMagic+q.zero)
			q.dst[g*size*q.channels+i] = uint8(math.Float32bits(v))
		}
	}
}

// eachInts runs a test on the kernels of integers of this machine.
func eachInts(t *testing.T, test func(t *testing.T, set *integers)) {
	for _, s := range available() {
		if s.ints != nil {
			t.Run(string(s.name), func(t *testing.T) { test(t, s.ints) })
		}
	}
}

// surrounded returns n numbers between others that a kernel must not touch, and a
// check for those.
func surrounded[T int8 | uint8 | int32 | float32](n int, guard T) (inner []T, touched func() bool) {
	const words = 256
	all := slices.Repeat([]T{guard}, n+2*words)
	return all[words:][:n:n], func() bool {
		return slices.ContainsFunc(all[:words], func(v T) bool { return v != guard }) ||
			slices.ContainsFunc(all[words+n:], func(v T) bool { return v != guard })
	}
}

// TestIntRow: assembly and plain Go agree in every bit, on buffers of exactly the
// promised length. A scale of 1 for one row and 0 for the others shows the sums.
func TestIntRow(t *testing.T) {
	eachInts(t, func(t *testing.T, set *integers) { testIntRows(t, set, 16, 32, 48, 1024) })
}

func testIntRows(t *testing.T, set *integers, strides ...int) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, b := range set.blocks {
		for _, stride := range strides {
			for _, tiles := range []int{1, 2, 3, 4, 9, 10} {
				for variant := range 5 {
					testIntRow(t, rng, set, b, stride, tiles, variant)
				}
			}
		}
	}
}

func testIntRow(t *testing.T, rng *rand.Rand, set *integers, b intBlock, stride, tiles, variant int) {
	t.Helper()
	groups, ys := (tiles+1)/2, b.width+8
	r := &intRow{tiles: tiles, stride: stride, ys: ys, floor: float32(math.Inf(-1))}
	touched := []func() bool{}
	for k := range 3 {
		x, changed := surrounded(groups*groupPixels*stride, uint8(77))
		for i := range x {
			x[i] = uint8(rng.Uint32())
			if variant == 4 {
				x[i] = 255
			}
		}
		r.x[k], r.scales[k] = x, make([]float32, tiles)
		for i := range r.scales[k] { // two tiles of a group share one
			if i%2 == 1 {
				r.scales[k][i] = r.scales[k][i-1]
				continue
			}
			switch variant {
			case 0, 1:
				r.scales[k][i] = rng.Float32()
			case 2, 3:
				r.scales[k][i] = float32(1 - min(1, (k-variant+3)*(k-variant+3)))
			default:
				r.scales[k][i] = 1
			}
		}
		touched = append(touched, changed)
	}
	r.w, r.offsets, r.channels = make([]int8, 9*stride*b.width), make([]int32, 3*b.width), make([]float32, 2*b.width)
	for i := range r.w {
		r.w[i] = int8(rng.IntN(255) - 127)
		if variant == 4 {
			r.w[i] = int8(127 - 254*(i/4%2))
		}
	}
	for i := range r.offsets {
		r.offsets[i] = int32(rng.IntN(1<<20) - 1<<19)
	}
	for o := range b.width {
		r.channels[o], r.channels[b.width+o] = 1, 0
		if variant < 2 {
			r.channels[o], r.channels[b.width+o] = rng.Float32(), float32(rng.NormFloat64())
		}
	}
	if variant == 1 {
		r.floor = 0
		r.res = randoms(rng.Uint64(), (tiles*tileColumns-1)*ys+b.width)
	}
	want := *r
	var changed func() bool
	r.y, changed = surrounded((tiles*tileColumns-1)*ys+b.width, float32(-1))
	want.y = slices.Repeat([]float32{-1}, len(r.y))
	touched = append(touched, changed)
	r.check(b.width)
	b.run(r)
	intRowGo(&want, b.width, set.lanes)
	for i, v := range r.y {
		if math.Float32bits(v) != math.Float32bits(want.y[i]) {
			t.Fatalf("%d outputs, %d channels, %d tiles, variant %d: output %d of pixel %d is %v, want %v", b.width,
				stride, tiles, variant, i%ys, i/ys, v, want.y[i])
		}
	}
	for i, changed := range touched {
		if changed() {
			t.Fatalf("%d outputs, %d tiles: wrote outside of buffer %d", b.width, tiles, i)
		}
	}
}

// TestIntRowCheck: a slice that is one short stops in Go, before assembly.
func TestIntRowCheck(t *testing.T) {
	make1 := func() *intRow {
		r := &intRow{tiles: 3, stride: 16, ys: 8, y: make([]float32, 168), res: make([]float32, 168), w: make([]int8,
			9*16*8), offsets: make([]int32, 24), channels: make([]float32, 16)}
		for k := range r.x {
			r.x[k], r.scales[k] = make([]uint8, 2*16*16), make([]float32, 3)
		}
		return r
	}
	make1().check(8)
	for i, shorten := range []func(*intRow){
		func(r *intRow) { r.y = r.y[:167] },
		func(r *intRow) { r.res = r.res[:167] },
		func(r *intRow) { r.w = r.w[1:] },
		func(r *intRow) { r.offsets = r.offsets[1:] },
		func(r *intRow) { r.channels = r.channels[1:] },
		func(r *intRow) { r.x[1] = r.x[1][1:] },
		func(r *intRow) { r.scales[2] = r.scales[2][1:] },
	} {
		r := make1()
		shorten(r)
		if !panics(func() { r.check(8) }) {
			t.Errorf("case %d: a short slice passed", i)
		}
	}
	for i, q := range []quantizeRow{
		{groups: 2, channels: 16, dst: make([]uint8, 511), scales: make([]float32, 4), src: make([]float32, 480)},
		{groups: 2, channels: 16, dst: make([]uint8, 512), scales: make([]float32, 3), src: make([]float32, 480)},
		{groups: 2, channels: 16, dst: make([]uint8, 512), scales: make([]float32, 4), src: make([]float32, 479)},
	} {
		if !panics(q.check) {
			t.Errorf("rounding, case %d: a short slice passed", i)
		}
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

// TestQuantizeRow: as TestIntRow, for the rounding of activations.
func TestQuantizeRow(t *testing.T) {
	eachInts(t, testQuantize)
}

func testQuantize(t *testing.T, set *integers) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, channels := range []int{16, 32, 48, 160, set.lanes} {
		for groups := 1; groups <= 4; groups++ {
			for _, size := range []float32{0, 1e-38, 1e-20, 1, 1e30} {
				for _, zero := range []int{0, 128} {
					src := randoms(rng.Uint64(), (groups*groupColumns+2)*channels)
					for i := range src {
						src[i] *= size
						if zero == 0 {
							src[i] = max(src[i], 0)
						}
						if i/channels%7 == 3 { // ties where the largest number is a power of two
							src[i] = size * float32(rng.IntN(256)) / 2
						}
					}
					got := &quantizeRow{src: src, groups: groups, channels: channels, zero: zero, top: 255 - zero}
					want := *got
					var touched [2]func() bool
					got.dst, touched[0] = surrounded(groups*groupPixels*channels, uint8(99))
					got.scales, touched[1] = surrounded(2*groups, float32(-1))
					want.dst, want.scales = make([]uint8, len(got.dst)), make([]float32, len(got.scales))
					got.check()
					set.quantize(got)
					quantizeRowGo(&want)
					if !slices.Equal(got.dst, want.dst) || !slices.Equal(got.scales, want.scales) {
						t.Fatalf("%d channels, %d groups, numbers of %g, zero at %d: differs", channels, groups, size,
							zero)
					}
					if touched[0]() || touched[1]() {
						t.Fatalf("%d channels, %d groups: wrote outside", channels, groups)
					}
					for i, v := range src { // half a step is what rounding costs
						for g := range groups {
							at := i - g*groupColumns*channels
							if at < 0 || at >= groupPixels*channels {
								continue
							}
							step := float64(got.scales[2*g])
							back := step * float64(int(got.dst[g*groupPixels*channels+at])-zero)
							if math.Abs(back-float64(v)) > 0.5001*step {
								t.Fatalf("numbers of %g: %v became %v in steps of %v", size, v, back, step)
							}
						}
					}
				}
			}
		}
	}
}

// TestIntWeights: rounding the weights of an output keeps each within one and a half
// steps, and what the window adds up to within half a step for each input.
func TestIntWeights(t *testing.T) {
	c := kernelstest.RandomNet(1, 20, 1).Layers[1].Conv
	set := intsGo(16, 32, 16)
	p := packInts(set, &c, 32, false)
	for o := range c.Out {
		b := &p.blocks[0]
		step := float64(b.channels[o])
		total := int32(0)
		for i := range c.In {
			sum := 0.0
			for k := range 9 {
				tap := k/3*3*32 + k%3*32 + i
				q := b.weights[(tap/4*b.width+o)*4+tap%4]
				w := float64(c.Weights[(o*c.In+i)*9+k])
				if math.Abs(w-step*float64(q)) > 1.01*step {
					t.Fatalf("weight %v became %v steps of %v", w, q, step)
				}
				sum += w - step*float64(q)
				total += int32(q)
			}
			if math.Abs(sum) > 0.51*step {
				t.Fatalf("output %d, input %d: the window is off by %v steps", o, i, sum/step)
			}
		}
		if got := b.offsets[o/16*48+o%16] + b.offsets[o/16*48+16+o%16] + b.offsets[o/16*48+32+o%16]; got != -128*total {
			t.Fatalf("output %d: offsets are %d, want %d", o, got, -128*total)
		}
	}
}

// intsBackend computes the inner layers in integers in plain Go.
func intsBackend(lanes int, widths ...int) *Backend {
	s := plainGo
	s.ints = intsGo(lanes, widths...)
	return &Backend{s}
}

// TestInts runs the list on plain Go, so that packing and the order of rows and
// strips are tested where no kernel for integers is.
func TestInts(t *testing.T) {
	if raceEnabled {
		t.Skip("slow then, and nothing in it is concurrent that TestBackend does not run")
	}
	b := intsBackend(16, 32, 16)
	t.Run("Backend", func(t *testing.T) { kernelstest.Run(t, b, kernelstest.Int8) })
	t.Run("Strips", func(t *testing.T) { testStrips(t, b) })
	t.Run("Narrow", func(t *testing.T) { testStrips(t, intsBackend(8, 8)) })
}

// TestIntsAgree: whole networks agree with plain Go in every bit where the first and
// last layers are the same.
func TestIntsAgree(t *testing.T) {
	for _, s := range available() {
		if s.ints != nil {
			testIntsAgree(t, s)
		}
	}
}

func testIntsAgree(t *testing.T, s isa) {
	plain := s
	ints := *s.ints
	ints.quantize = quantizeRowGo
	ints.blocks = nil
	for _, b := range s.ints.blocks {
		ints.blocks = append(ints.blocks, intsGo(ints.lanes, b.width).blocks...)
	}
	plain.ints = &ints
	for _, channels := range []int{7, 16, 19, 32, 48} {
		net := kernelstest.RandomNet(uint64(channels), channels, 2)
		const width, height = 75, 14
		y, sigma := noise(1, width*height)
		var results [2][][]float32
		for k, b := range []*Backend{{s}, {plain}} {
			n, err := b.Load(net.Graph())
			if err != nil {
				t.Fatal(err)
			}
			if results[k], err = n.Trace(make([]float32, len(y)), y, sigma, width, height); err != nil {
				t.Fatal(err)
			}
		}
		for i := range results[0] {
			if !slices.Equal(results[0][i], results[1][i]) {
				t.Fatalf("%s, %d channels: layer %d differs", s.name, channels, i)
			}
		}
	}
}

// outlierError is the error of the predicted noise, relative to a network in float32,
// over the pixels for which use is true.
func outlierError(t *testing.T, b *Backend, net *chain.Net, y, sigma []float32, width, height int, use func(x,
	y int) bool) float64 {
	t.Helper()
	exact, err := New(Go)
	if err != nil {
		t.Fatal(err)
	}
	var out [2][]float32
	for k, b := range []*Backend{b, exact} {
		n, err := b.Load(net.Graph())
		if err != nil {
			t.Fatal(err)
		}
		out[k] = make([]float32, len(y))
		if err := n.Forward(out[k], y, sigma, width, height); err != nil {
			t.Fatal(err)
		}
	}
	diff, norm := 0.0, 0.0
	for i := range y {
		if use(i%width, i/width) {
			d, r := float64(out[0][i]-out[1][i]), float64(y[i]-out[1][i])
			diff += d * d
			norm += r * r
		}
	}
	return math.Sqrt(diff / norm)
}

// TestOutliers: what is 20 or 1000 times brighter than the rest neither clips nor
// costs the rest of the image its resolution.
func TestOutliers(t *testing.T) {
	if raceEnabled {
		t.Skip("slow then, and nothing in it is concurrent")
	}
	const width, height = 260, 120
	net := kernelstest.RandomNet(3, 16, 3)
	y, sigma := noise(9, width*height)
	all := func(int, int) bool { return true }
	// A scale reaches 30 columns on either side in each layer, and rows of the window.
	far := func(x, y int) bool { return x < 20 || y < 40 }
	for _, b := range append([]*Backend{intsBackend(16, 16)}, intBackends()...) {
		quiet := outlierError(t, b, net, y, sigma, width, height, all)
		quietFar := outlierError(t, b, net, y, sigma, width, height, far)
		for _, factor := range []float32{20, 1000} {
			bright := slices.Clone(y)
			for r := 70; r < 78; r++ {
				for c := 200; c < 208; c++ {
					bright[r*width+c] *= factor
				}
			}
			whole := outlierError(t, b, net, bright, sigma, width, height, all)
			rest := outlierError(t, b, net, bright, sigma, width, height, far)
			t.Logf("%s, %g times: error %.4f without, %.4f with; far from it %.4f and %.4f", b.Name(), factor, quiet,
				whole, quietFar, rest)
			limit := 1.2 * quiet
			if factor > 20 {
				limit = 5 * quiet
			}
			if !(whole < limit) {
				t.Errorf("%s: an outlier of %g raises the error from %.4f to %.4f", b.Name(), factor, quiet, whole)
			}
			if rest != quietFar {
				t.Errorf("%s: an outlier of %g changes the error far from it from %.4f to %.4f", b.Name(), factor,
					quietFar, rest)
			}
		}
	}
}

func intBackends() (list []*Backend) {
	for _, s := range available() {
		if s.ints != nil {
			list = append(list, &Backend{s})
		}
	}
	return list
}

// TestIntsNaN: what is not a number does not become one.
func TestIntsNaN(t *testing.T) {
	const width, height = 64, 20
	net := kernelstest.RandomNet(3, 16, 1)
	for _, b := range append([]*Backend{intsBackend(16, 16)}, intBackends()...) {
		n, err := b.Load(net.Graph())
		if err != nil {
			t.Fatal(err)
		}
		for _, special := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
			y, sigma := noise(9, width*height)
			y[9*width+30] = float32(special)
			dst := make([]float32, len(y))
			if err := n.Forward(dst, y, sigma, width, height); err != nil {
				t.Fatal(err)
			}
			for r := 6; r < 13; r++ {
				for c := 27; c < 34; c++ {
					if v := float64(dst[r*width+c]); !math.IsNaN(v) && !math.IsInf(v, 0) {
						t.Fatalf("%s: %v at (30, 9) gave %v at (%d, %d)", b.Name(), special, v, c, r)
					}
				}
			}
		}
	}
}
