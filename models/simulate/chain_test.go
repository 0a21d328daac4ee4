package simulate

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// flat is an image of one value.
func flat(w, h int, v float32) []float32 { return slices.Repeat([]float32{v}, w*h) }

func scanner(t *testing.T, c Chain, w, h int, seed uint64) *Scanner {
	t.Helper()
	s, err := c.Scanner(w, h, newRand(seed))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// spread is the standard deviation of n images, made by draw, at every pixel.
func spread(n int, draw func() []float32) []float64 {
	var sum, sq []float64
	for range n {
		img := draw()
		if sum == nil {
			sum, sq = make([]float64, len(img)), make([]float64, len(img))
		}
		for i, v := range img {
			sum[i], sq[i] = sum[i]+float64(v), sq[i]+float64(v)*float64(v)
		}
	}
	for i, s := range sum {
		sq[i] = math.Sqrt(max(sq[i]-s*s/float64(n), 0) / float64(n-1))
	}
	return sq
}

// rms is the root of the mean square of the pixels that are at least the margin from the border.
func rms[T float32 | float64](img []T, w, margin int) float64 {
	sum, n := 0.0, 0.0
	for i, v := range img {
		x, y := i%w, i/w
		if x >= margin && y >= margin && x < w-margin && y < len(img)/w-margin {
			sum, n = sum+float64(v)*float64(v), n+1
		}
	}
	return math.Sqrt(sum / n)
}

// TestSENSE gives two coils sensitivities whose g-factor is known: (cos θ, sin θ), which sees all
// tissue alike, and unfolds two pixels with g = 1/sin(θ₁ − θ₂).
func TestSENSE(t *testing.T) {
	const side, level = 64, 0.02
	for _, alongX := range []bool{false, true} {
		s := scanner(t, Chain{Coils: 2, Acceleration: 2, AlongX: alongX, Noise: level}, side, side, 1)
		theta := func(k int) float64 { return 2 * float64(k) / side * (1 + 0.5*float64(k)/side) }
		place := func(i int) int {
			if alongX {
				return i % side
			}
			return i / side
		}
		for i := range side * side {
			sin, cos := math.Sincos(theta(place(i)))
			s.coils[0][i], s.coils[1][i] = complex(cos, 0), complex(0, sin)
		}
		if err := s.combine(); err != nil {
			t.Fatal(err)
		}
		s.measure(newRand(2))
		g := make([]float64, side*side)
		for i := range g {
			k := place(i)
			g[i] = 1 / math.Abs(math.Sin(theta(k)-theta((k+side/2)%side)))
			if got := float64(s.gainNative[i]) / math.Sqrt2; math.Abs(got/g[i]-1) > 0.01 {
				t.Fatalf("along x %t, line %d: g-factor %.3f, by its formula %.3f", alongX, k, got, g[i])
			}
		}
		mean := rms(g, side, 0)
		rng, img := newRand(3), flat(side, side, 1)
		sd := spread(40, func() []float32 { return s.Acquire(img, rng) })
		for _, k := range []int{2, 20, 31, 40, 63} { // whole lines, 40 times
			sum, n := 0.0, 0.0
			for i, v := range sd {
				if place(i) == k {
					sum, n = sum+v*v, n+1
				}
			}
			at := k * side
			if alongX {
				at = k
			}
			want := level * g[at] / mean
			if got := math.Sqrt(sum / n); math.Abs(got/want-1) > 0.05 {
				t.Errorf("along x %t, line %d: noise %.4f, by the g-factor %.4f", alongX, k, got, want)
			}
		}
	}
}

// TestCorrelation compares with the sum over the measured frequencies.
func TestCorrelation(t *testing.T) {
	const side, native = 192, 120
	for _, filter := range []Filter{NoFilter, Hamming, Fermi} {
		s := scanner(t, Chain{NativeWidth: native, NativeHeight: side, FillX: 1.6, Filter: filter, Noise: 0.04}, side,
			side, 5)
		if s.Width != side || s.Height != side {
			t.Fatalf("%d×%d pixels are stored", s.Width, s.Height)
		}
		axis := func(n int) (rho [5]float64) {
			for d := range rho {
				top, bottom := 0.0, 0.0
				for k := 1 - n/2; k <= n/2; k++ {
					w := 1.0
					switch u := math.Abs(float64(k)) / float64(n/2); filter {
					case Hamming:
						w = 0.54 + 0.46*math.Cos(math.Pi*u)
					case Fermi:
						w = 1 / (1 + math.Exp((u-0.9)/0.05))
					}
					top, bottom = top+w*w*math.Cos(2*math.Pi*float64(k*d)/side), bottom+w*w
				}
				rho[d] = top / bottom
			}
			return rho
		}
		x, y := axis(native), axis(side)
		for dy := range s.Rho {
			for dx, got := range s.Rho[dy] {
				if want := x[dx] * y[dy]; math.Abs(got-want) > 0.03 {
					t.Errorf("filter %d, lag (%d, %d): correlation %.3f, by its formula %.3f", filter, dx, dy, got,
						want)
				}
			}
		}
	}
}

// TestMagnitude: the moments of the non-central chi distribution of L coils.
func TestMagnitude(t *testing.T) {
	const side, level = 128, 0.05
	for _, coils := range []int{1, 4, 8} {
		s := scanner(t, Chain{Coils: coils, Noise: level}, side, side, 7)
		for _, a := range []float32{0, 0.05, 0.5} {
			img := flat(side, side, a)
			truth, noisy := s.Signal(img), s.Acquire(img, newRand(8))
			sum, want, mean := 0.0, 0.0, 0.0
			for i, v := range noisy {
				m := float64(v)
				sum, mean = sum+m*m, mean+m/(side*side)
				want += float64(truth[i])*float64(truth[i]) + 2*float64(coils)*s.level*s.level
			}
			if math.Abs(sum/want-1) > 0.02 {
				t.Errorf("%d coils, tissue of %g: mean square %.5f, want %.5f", coils, a, sum/side/side, want/side/side)
			}
			up, _ := math.Lgamma(float64(coils) + 0.5)
			down, _ := math.Lgamma(float64(coils))
			if air := s.level * math.Sqrt2 * math.Exp(up-down); a == 0 && math.Abs(mean/air-1) > 0.01 {
				t.Errorf("%d coils: mean of air %.5f, want %.5f", coils, mean, air)
			}
		}
		if math.Abs(s.level/level-1) > 0.02 {
			t.Errorf("%d coils of independent noise: %.4f of each, stored %.4f", coils, s.level, level)
		}
	}
}

func TestCoilNoise(t *testing.T) {
	const side = 128
	s := scanner(t, Chain{Coils: 4, CoilCorrelation: 0.6, Noise: 0.1}, side, side, 1)
	noise := s.drawNoise(side*side, newRand(2))
	for j := range noise {
		for k := range noise {
			sum := 0.0
			for i := range noise[j] {
				a, b := noise[j][i], noise[k][i]
				sum += (real(a)*real(b) + imag(a)*imag(b)) / (2 * side * side * s.level * s.level)
			}
			if want := math.Pow(0.6, math.Abs(float64(j-k))); math.Abs(sum-want) > 0.02 {
				t.Errorf("coils %d and %d: correlation %.3f, want %.3f", j, k, sum, want)
			}
		}
	}
}

// chains are some of each step, for 64×64 pixels.
func chains() map[string]Chain {
	return map[string]Chain{
		"plain":             {Noise: 0.03},
		"small matrix":      {NativeWidth: 40, NativeHeight: 48, Noise: 0.03},
		"coils":             {Coils: 4, CoilCorrelation: 0.5, Noise: 0.03},
		"coils, uniform":    {Coils: 4, CoilCorrelation: 0.5, Uniform: true, FillX: 1.5, Noise: 0.03},
		"adaptive, uniform": {Coils: 8, CoilCorrelation: 0.3, Adaptive: true, Uniform: true, Noise: 0.03},
		"R = 2":             {Coils: 4, CoilCorrelation: 0.4, Acceleration: 2, FillY: 1.5, Noise: 0.02},
		"R = 4, uniform":    {Coils: 8, Acceleration: 4, AlongX: true, Uniform: true, Noise: 0.02},
		"Hamming":           {Filter: Hamming, FillX: 1.25, FillY: 1.5, Noise: 0.03},
		"round Fermi":       {Filter: Fermi, Round: true, FillX: 2, Noise: 0.03},
		"partial":           {Partial: 0.7, Noise: 0.03},
		"homodyne":          {Partial: 0.6, Homodyne: true, AlongX: true, Noise: 0.03},
		"homodyne of coils": {Coils: 4, Partial: 0.7, Homodyne: true, Filter: Hamming, Noise: 0.03},
		"warp":              {Warp: 2, Noise: 0.03},
		"sharp":             {Sharpen: 0.8, SharpenSpread: 1, FillX: 1.5, FillY: 1.5, Noise: 0.03},
	}
}

// TestNoiseLevel: the map says how much the stored pixels vary, everywhere; its root mean square is
// Chain.Noise; and Carried says the same of noise that is in the image already.
func TestNoiseLevel(t *testing.T) {
	const side, own = 64, 0.03
	for name, c := range chains() {
		s := scanner(t, c, side, side, 11)
		rng, img := newRand(12), flat(side, side, 1)
		if got := rms(s.Sigma, s.Width, 0); math.Abs(got/c.Noise-1) > 1e-4 {
			t.Errorf("%s: root mean square of the map %.4f, want %.4f", name, got, c.Noise)
		}
		// the order of the pixels by their noise, in fifths
		order := make([]int, 0, len(s.Sigma))
		const margin = 8 // k-space goes around, and rings at the border
		for i := range s.Sigma {
			if x, y := i%s.Width, i/s.Width; x >= margin && y >= margin && x < s.Width-margin && y < s.Height-margin {
				order = append(order, i)
			}
		}
		compare := func(what string, sd []float64, want []float32) {
			t.Helper()
			slices.SortFunc(order, func(a, b int) int { return int(math.Copysign(1, float64(want[a]-want[b]))) })
			for fifth := range 5 {
				sum, expected := 0.0, 0.0
				for _, i := range order[fifth*len(order)/5 : (fifth+1)*len(order)/5] {
					sum, expected = sum+sd[i]*sd[i], expected+float64(want[i])*float64(want[i])
				}
				if ratio := math.Sqrt(sum / expected); math.Abs(ratio-1) > 0.05 {
					t.Errorf("%s, %s, fifth %d of the map: %.3f times the map's", name, what, fifth, ratio)
				}
			}
		}
		compare("noise", spread(40, func() []float32 { return s.Acquire(img, rng) }), s.Sigma)
		sigma := make([]float32, side*side)
		for i := range sigma {
			sigma[i] = own * (0.5 + float32(i/side)/side)
		}
		tissue := make([]float32, side*side)
		compare("carried", spread(40, func() []float32 {
			for i, sd := range sigma {
				tissue[i] = 1 + sd*float32(rng.NormFloat64())
			}
			return s.Signal(tissue)
		}), s.Carried(sigma))
	}
}

// TestTruth: without noise the noisy image is the truth, the truth does not depend on the noise, and
// everything follows from the seed.
func TestTruth(t *testing.T) {
	const w, h = 80, 72
	img := ramp(w, h)
	kept := slices.Clone(img)
	for _, row := range ChainRows() {
		c := row.Chain(w, h)
		run := func(c Chain, seed uint64) *Acquired {
			a, err := c.Run(img, w, h, newRand(seed))
			if err != nil {
				t.Fatalf("%s: %v", row.Name, err)
			}
			return a
		}
		a, again, other := run(c, 3), run(c, 3), run(c, 4)
		if !slices.Equal(a.Noisy, again.Noisy) || !slices.Equal(a.Sigma, again.Sigma) || a.Rho != again.Rho {
			t.Errorf("%s: the same seed gives another image", row.Name)
		}
		if slices.Equal(a.Noisy, other.Noisy) {
			t.Errorf("%s: another seed gives the same image", row.Name)
		}
		c.Noise = 0
		silent := run(c, 3)
		if !slices.Equal(silent.Noisy, a.Truth) || !slices.Equal(silent.Truth, a.Truth) || slices.Equal(a.Noisy,
			a.Truth) {
			t.Errorf("%s: the truth is not what is stored without noise", row.Name)
		}
		if rms(silent.Sigma, silent.Width, 0) != 0 {
			t.Errorf("%s: a map of noise without noise", row.Name)
		}
		if math.Abs(float64(a.Width-w)) > 8 || math.Abs(float64(a.Height-h)) > 8 || len(a.Noisy) != a.Width*a.Height ||
			len(a.Sigma) != len(a.Noisy) {
			t.Errorf("%s: %d×%d pixels of %d×%d", row.Name, a.Width, a.Height, w, h)
		}
	}
	if !slices.Equal(img, kept) {
		t.Error("the image was changed")
	}
}

// TestNothing: the zero chain leaves an image as it is, of any size.
func TestNothing(t *testing.T) {
	for _, size := range [][2]int{{51, 37}, {64, 32}, {16, 16}} {
		w, h := size[0], size[1]
		s := scanner(t, Chain{}, w, h, 1)
		if s.Width != w || s.Height != h {
			t.Fatalf("%d×%d pixels of %v", s.Width, s.Height, size)
		}
		img := ramp(w, h)
		for i, v := range s.Signal(img) {
			if math.Abs(float64(v-img[i])) > 1e-6 {
				t.Fatalf("pixel %d is %g, was %g", i, v, img[i])
			}
		}
	}
}

// still is a scanner whose tissue has no phase.
func still(t *testing.T, c Chain, w, h int) *Scanner {
	s := scanner(t, c, w, h, 2)
	for i := range s.phase {
		s.phase[i] = 1
	}
	return s
}

// TestSignal: what is known to come out of a wave.
func TestSignal(t *testing.T) {
	const side = 64
	wave := func(n int, k, high float64) []float32 {
		img := make([]float32, n*n)
		for i := range img {
			img[i] = float32(1 + high*math.Cos(2*math.Pi*k*float64(i%n)/float64(n)))
		}
		return img
	}
	const f = 10 // periods
	u := f / (side / 2.)
	for name, c := range map[string]struct {
		chain Chain
		high  float64 // what is left of a wave of 0.2
	}{
		"cut and filled": {Chain{NativeWidth: 32, NativeHeight: 48, FillX: 2, FillY: 4. / 3}, 0.2},
		"filled":         {Chain{FillX: 1.5, FillY: 1.5}, 0.2},
		"Hamming":        {Chain{Filter: Hamming}, 0.2 * (0.54 + 0.46*math.Cos(math.Pi*u))},
		"round Fermi, filled": {Chain{Filter: Fermi, Round: true, FillX: 1.5, FillY: 1.5}, 0.2 / (1 +
			math.Exp((u-0.9)/0.05))},
		"homodyne": {Chain{Partial: 0.6, Homodyne: true, AlongX: true}, 0.2},
		"sharp": {Chain{Sharpen: 0.5, SharpenSpread: 1}, 0.2 * (1 +
			0.5*(1-math.Exp(-2*math.Pi*math.Pi*f*f/side/side)))},
		"beyond the measured part": {Chain{NativeWidth: 18, NativeHeight: 64}, 0},
	} {
		s := still(t, c.chain, side, side)
		got := s.Signal(wave(side, f, 0.2))
		for i, v := range got {
			want := 1 + c.high*math.Cos(2*math.Pi*f*float64(i%s.Width)/float64(s.Width))
			if math.Abs(float64(v)-want) > 2e-3 {
				t.Errorf("%s: pixel %d is %.4f, want %.4f", name, i, v, want)
				break
			}
		}
	}
	// half of a wave is measured on one side alone: its half is left, and its magnitude
	s := still(t, Chain{Partial: 0.6, AlongX: true}, side, side)
	for i, v := range s.Signal(wave(side, f, 0.2)) {
		sin, cos := math.Sincos(2 * math.Pi * f * float64(i%side) / side)
		if want := math.Hypot(1+0.1*cos, 0.1*sin); math.Abs(float64(v)-want) > 1e-5 {
			t.Fatalf("partial: pixel %d is %.4f, want %.4f", i, v, want)
		}
	}
	// the highest frequency has no counterpart
	img := wave(side, side/2, 0.2)
	for i, v := range still(t, Chain{Partial: 0.7, Homodyne: true, AlongX: true}, side, side).Signal(img) {
		if math.Abs(float64(v-img[i])) > 1e-5 {
			t.Fatalf("homodyne: pixel %d is %.4f, want %.4f", i, v, img[i])
		}
	}
}

// TestWarp: cubic convolution keeps a plane.
func TestWarp(t *testing.T) {
	const w, h = 60, 40
	s := still(t, Chain{Warp: 3}, w, h)
	most := float32(0)
	for i := range s.dx {
		most = max(most, s.dx[i], -s.dx[i], s.dy[i], -s.dy[i])
	}
	if math.Abs(float64(most)-3) > 1e-5 {
		t.Errorf("the greatest displacement is %g", most)
	}
	img := make([]float32, w*h)
	for i := range img {
		img[i] = 0.01*float32(i%w) + 0.02*float32(i/w)
	}
	for i, v := range s.Signal(img) {
		x, y := i%w, i/w
		if want := 0.01*(float32(x)+s.dx[i]) + 0.02*(float32(y)+s.dy[i]); x > 4 && y > 4 && x < w-5 && y < h-5 &&
			math.Abs(float64(v-want)) > 1e-5 {
			t.Fatalf("pixel (%d, %d) is %.5f, want %.5f", x, y, v, want)
		}
	}
	spike := flat(w, h, 0)
	spike[20*w+30] = 1
	if least := slices.Min(s.Signal(spike)); least < 0 {
		t.Errorf("a magnitude of %g", least)
	}
}

func TestStorage(t *testing.T) {
	const side = 64
	img := make([]float32, side*side)
	for i := range img {
		img[i] = 1.5 * float32(i) / float32(len(img))
	}
	for _, c := range []struct {
		chain     Chain
		low, high float64
	}{{Chain{Bits: 12}, 0, 1.2}, {Chain{Bits: 8, Low: 0.02, High: 0.9}, 0.02, 0.9}, {Chain{Bits: 16, Low: -0.5,
		High: 2}, -0.5, 2}} {
		steps := float64(int(1)<<c.chain.Bits - 1)
		for i, v := range still(t, c.chain, side, side).Signal(img) {
			want := min(max(float64(img[i]), c.low), c.high) - c.low
			k := float64(v) / (c.high - c.low) * steps
			if math.Abs(float64(v)-want) > 0.51*(c.high-c.low)/steps || math.Abs(k-math.Round(k)) > 0.01 {
				t.Fatalf("%+v: %.5f is stored as %.5f, step %.3f, want %.5f", c.chain, img[i], v, k, want)
			}
		}
	}
}

// TestCheck names the field of every chain that cannot be.
func TestCheck(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		field string
		chain Chain
	}{
		{"NativeWidth", Chain{NativeWidth: 65}}, {"NativeWidth", Chain{NativeWidth: 15}}, {"NativeWidth",
			Chain{NativeWidth: -32}},
		{"NativeHeight", Chain{NativeHeight: 49}}, {"NativeHeight", Chain{NativeHeight: 8}},
		{"Coils", Chain{Coils: MaxCoils + 1}}, {"Coils", Chain{Coils: -1}},
		{"CoilCorrelation", Chain{Coils: 2, CoilCorrelation: 0.95}}, {"CoilCorrelation", Chain{CoilCorrelation: nan}},
		{"Acceleration", Chain{Coils: 2, Acceleration: 3}}, {"Acceleration", Chain{Coils: 8, Acceleration: 5}},
		{"Acceleration", Chain{Acceleration: -1}},
		{"Acceleration", Chain{Coils: 4, Acceleration: 3, AlongX: true}}, {"Acceleration", Chain{Coils: 8,
			Acceleration: 2, NativeHeight: 47}},
		{"Partial", Chain{Partial: 0.5}}, {"Partial", Chain{Partial: 1.1}}, {"Partial", Chain{Partial: nan}},
		{"Filter", Chain{Filter: Fermi + 1}},
		{"FillX", Chain{FillX: 0.9}}, {"FillX", Chain{FillX: 2.1}}, {"FillY", Chain{FillY: math.Inf(1)}},
		{"Warp", Chain{Warp: -1}}, {"Warp", Chain{Warp: nan}}, {"Warp", Chain{Warp: 9}},
		{"Sharpen", Chain{Sharpen: -0.1}}, {"Sharpen", Chain{Sharpen: nan}},
		{"SharpenSpread", Chain{Sharpen: 1}}, {"SharpenSpread", Chain{Sharpen: 1, SharpenSpread: 4}},
		{"Noise", Chain{Noise: 0.3}}, {"Noise", Chain{Noise: -0.1}}, {"Noise", Chain{Noise: nan}},
		{"Bits", Chain{Bits: 7}}, {"Bits", Chain{Bits: 17}},
		{"Low", Chain{Bits: 8, Low: 1, High: 0.5}}, {"Low", Chain{Bits: 8, Low: nan, High: 1}}, {"High",
			Chain{Bits: 12, High: math.Inf(1)}},
	} {
		for _, err := range []error{c.chain.Check(64, 48), func() error {
			_, err := c.chain.Scanner(64, 48,
				newRand(1))
			return err
		}()} {
			if err == nil || !strings.Contains(err.Error(), c.field) {
				t.Errorf("%+v: %v, want one that names %s", c.chain, err, c.field)
			}
		}
	}
	for _, size := range [][2]int{{15, 64}, {64, 15}, {1<<13 + 1, 64}, {-1, -1}} {
		if err := (Chain{}).Check(size[0], size[1]); err == nil {
			t.Errorf("an image of %v", size)
		}
	}
	if err := (Chain{Coils: MaxCoils}).Check(4096, 4096); err == nil || !strings.Contains(err.Error(), "Coils") {
		t.Errorf("%v", err)
	}
	if _, err := (Chain{}).Run(make([]float32, 3), 64, 48, rand.New(rand.NewPCG(1, 1))); err == nil {
		t.Error("3 values of 64×48 pixels")
	}
	for _, row := range ChainRows() {
		for _, size := range [][2]int{{32, 32}, {33, 47}, {256, 256}, {274, 384}, {512, 460}, {67, 1024}} {
			if err := row.Chain(size[0], size[1]).Check(size[0], size[1]); err != nil {
				t.Errorf("%s, %v pixels: %v", row.Name, size, err)
			}
		}
	}
}
