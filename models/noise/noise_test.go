package noise_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models/noise"
)

// scene is a smooth image with a few edges, values 0.1 to 1.
func scene(w, h int) []float32 {
	img := make([]float32, w*h)
	for i := range img {
		x, y := float64(i%w)/float64(w), float64(i/w)/float64(h)
		v := 0.4 + 0.3*math.Sin(5*x)*math.Cos(4*y)
		if math.Hypot(x-.5, y-.5) < .25 {
			v += 0.25
		}
		img[i] = float32(v)
	}
	return img
}

func estimate(t *testing.T, img []float32, w, h int, skip []bool) *noise.Map {
	t.Helper()
	m, err := noise.Estimate(img, w, h, skip)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range m.Sigma {
		if !(s >= 0) || math.IsInf(float64(s), 0) {
			t.Fatalf("sigma %g at %d", s, i)
		}
	}
	return m
}

// TestWhite: the right value over three decades of noise. Over 40 seeds single
// images gave 0.950 to 1.040 times the truth at 0.001 and 0.01 (mean 0.99). At 0.1
// they gave 0.975 to 1.081 (mean 1.036): the darkest parts lie at one standard
// deviation, where the turn from magnitude to complex noise sets in.
func TestWhite(t *testing.T) {
	const w, h, seeds = 200, 160, 8
	for sg, want := range map[float64][2]float64{0.001: {0.97, 1.02}, 0.01: {0.97, 1.02}, 0.1: {1, 1.06}} {
		sum := 0.0
		for seed := range uint64(seeds) {
			rng := rand.New(rand.NewPCG(seed, 2))
			img := scene(w, h)
			for i := range img {
				img[i] += float32(sg * rng.NormFloat64())
			}
			r := estimate(t, img, w, h, nil).Median / sg
			if r < 0.94 || r > 1.1 {
				t.Errorf("sigma %g, seed %d: estimated %g times that", sg, seed, r)
			}
			sum += r / seeds
		}
		if sum < want[0] || sum > want[1] {
			t.Errorf("sigma %g: estimated %g times that in the mean, want %v", sg, sum, want)
		}
	}
}

// TestSignalDependent: noise in proportion to the signal is followed. Over 20
// seeds half of the pixels were off by less than a factor of 1.037, 95 % by less
// than 1.121 and the worst by 1.48 to 1.87. The worst lie where the scene is
// darkest, and always have too high a value: the lowest of the curve's points is
// the mean over signals of 0.12 to 0.25, over which this noise doubles.
func TestSignalDependent(t *testing.T) {
	const w, h = 256, 256
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 2))
		clean := scene(w, h)
		img := slices.Clone(clean)
		for i := range img {
			img[i] *= 1 + 0.08*float32(rng.NormFloat64())
		}
		m := estimate(t, img, w, h, nil)
		var off []float64
		for y := 10; y < h-10; y += 5 {
			for x := 10; x < w-10; x += 5 {
				i := y*w + x
				off = append(off, math.Exp(math.Abs(math.Log(float64(m.Sigma[i])/(0.08*float64(clean[i]))))))
			}
		}
		slices.Sort(off)
		n := len(off)
		if off[n/2] > 1.06 || off[n*95/100] > 1.17 || off[n-1] > 2 {
			t.Errorf("seed %d: local noise is off by a factor of %.3f (half of the pixels), %.3f (95 %%), %.2f (worst)", seed, off[n/2], off[n*95/100], off[n-1])
		}
	}
}

// TestVaryingOverImage: a noise four times higher on one side is seen.
func TestVaryingOverImage(t *testing.T) {
	const w, h = 256, 256
	rng := rand.New(rand.NewPCG(4, 2))
	img := make([]float32, w*h)
	for i := range img {
		img[i] = 0.5 + float32((0.01+0.03*float64(i%w)/w)*rng.NormFloat64())
	}
	m := estimate(t, img, w, h, nil)
	l, r := m.Sigma[128*w+20], m.Sigma[128*w+235]
	if l < 0.009 || l > 0.018 || r < 0.029 || r > 0.045 {
		t.Errorf("left %.4f, want about 0.0123; right %.4f, want about 0.0375", l, r)
	}
}

// TestBlankAir: exact zeros neither lower the estimate nor get none themselves.
func TestBlankAir(t *testing.T) {
	const w, h = 256, 256
	rng := rand.New(rand.NewPCG(5, 2))
	img := make([]float32, w*h)
	for i := range img {
		if math.Hypot(float64(i%w-128), float64(i/w-128)) < 60 { // 80 % is air
			img[i] = 0.6 + 0.03*float32(rng.NormFloat64())
		}
	}
	m := estimate(t, img, w, h, nil)
	if m.Median < 0.027 || m.Median > 0.033 {
		t.Errorf("median %.4f, want 0.03", m.Median)
	}
	if s := m.Sigma[128*w+66]; s < 0.015 {
		t.Errorf("air beside the object has sigma %.4f", s)
	}
}

// TestQuantised: 8-bit steps as large as the noise.
func TestQuantised(t *testing.T) {
	const w, h = 256, 256
	for _, sg := range []float64{0.7, 1, 3} {
		rng := rand.New(rand.NewPCG(6, 2))
		img := scene(w, h)
		for i, v := range img {
			img[i] = float32(math.Round(200*float64(v) + sg*rng.NormFloat64()))
		}
		want := math.Sqrt(sg*sg + 1./12)
		if m := estimate(t, img, w, h, nil); m.Median < 0.85*want || m.Median > 1.15*want {
			t.Errorf("sigma %g: estimated %.3f, want %.3f", sg, m.Median, want)
		}
	}
}

// TestNothing: constant, tiny and wholly skipped images have no noise to find.
func TestNothing(t *testing.T) {
	for _, size := range [][2]int{{1, 1}, {2, 3}, {5, 5}, {7, 1}, {64, 64}} {
		img := slices.Repeat([]float32{7}, size[0]*size[1])
		if m := estimate(t, img, size[0], size[1], nil); m.Median != 0 || slices.Max(m.Sigma) != 0 {
			t.Errorf("constant %v: sigma %g", size, m.Median)
		}
	}
	rng := rand.New(rand.NewPCG(7, 2))
	img, skip := make([]float32, 64*64), slices.Repeat([]bool{true}, 64*64)
	for i := range img {
		img[i] = float32(rng.NormFloat64())
	}
	if m := estimate(t, img, 64, 64, skip); slices.Max(m.Sigma) != 0 {
		t.Error("noise found among skipped pixels")
	}
}

// TestSkip: what skipped pixels hold, even NaN, changes nothing.
func TestSkip(t *testing.T) {
	const w, h = 128, 128
	rng := rand.New(rand.NewPCG(8, 2))
	img, skip := scene(w, h), make([]bool, w*h)
	for i := range img {
		img[i] += 0.02 * float32(rng.NormFloat64())
		skip[i] = i%w > 90
	}
	want := estimate(t, img, w, h, skip)
	for i := range img {
		if skip[i] {
			img[i] = float32(1000 * rng.NormFloat64())
		}
	}
	got := estimate(t, img, w, h, skip)
	if math.Abs(got.Median/want.Median-1) > 1e-6 || got.Median < 0.018 || got.Median > 0.022 {
		t.Errorf("sigma %.4f with wild skipped pixels, %.4f before, want 0.02", got.Median, want.Median)
	}
	img[5] = float32(math.NaN())
	if _, err := noise.Estimate(img, w, h, skip); err == nil {
		t.Error("a NaN that is not skipped gives no error")
	}
	if _, err := noise.Estimate(img, w, h+1, nil); err == nil {
		t.Error("a wrong size gives no error")
	}
}

// TestDetect: the native grid of a zero-filled series is found, and none where
// there is none.
func TestDetect(t *testing.T) {
	for _, fill := range []float64{1, 1.31, 1.5, 2} {
		v := phantom.New(phantom.Spec{Seed: 2, Slices: 3, Sigma: 0.02, ZeroFill: fill})
		for k, img := range v.Noisy {
			g, err := noise.Detect(img, 256, 256)
			if err != nil {
				t.Fatal(err)
			}
			want := 256 / fill
			for _, got := range []int{g.NativeWidth, g.NativeHeight} {
				if math.Abs(float64(got)-want) > 0.04*256 {
					t.Errorf("zero fill %g, slice %d: native side %d, want about %.0f", fill, k, got, want)
				}
			}
			if g.Filled() != (fill > 1) {
				t.Errorf("zero fill %g, slice %d: filled is %v", fill, k, g.Filled())
			}
		}
	}
}

// magnitude is the magnitude of a zero-filled image with complex noise, and what was
// measured of it.
func magnitude(g *noise.Grid, native []float32, sigma float64, rng *rand.Rand) (img, cropped []float32) {
	re, im := slices.Clone(native), make([]float32, len(native))
	for i := range re {
		re[i], im[i] = re[i]+float32(sigma*rng.NormFloat64()), float32(sigma*rng.NormFloat64())
	}
	re, im = g.Fill(nil, re), g.Fill(nil, im)
	for i := range re {
		re[i] = float32(math.Hypot(float64(re[i]), float64(im[i])))
	}
	return re, g.Crop(nil, re)
}

// TestAir: the noise of a zero-filled magnitude is found in its air and in its tissue,
// although the native grid leaves less of it in air.
func TestAir(t *testing.T) {
	const sigma = 0.03
	for _, native := range [][2]int{{195, 195}, {195, 256}, {129, 129}} {
		g := noise.Filled(256, 256, native[0], native[1])
		v := phantom.New(phantom.Spec{Seed: 5, Slices: 3, Width: native[0], Height: native[1]})
		img, cropped := magnitude(g, v.Truth[1], sigma, rand.New(rand.NewPCG(6, uint64(native[0]))))
		air := noise.Air(g, img, cropped, nil)
		if air < 0.85*sigma || air > 1.1*sigma {
			t.Errorf("%v: %.4f, true %.4f", native, air, sigma)
		}
		m := new(noise.Map)
		if err := m.EstimateWith(noise.Known{Air: air}, cropped, native[0], native[1], nil); err != nil {
			t.Fatal(err)
		}
		var found []float64
		for i, x := range v.Truth[1] {
			if x == 0 {
				found = append(found, float64(m.Sigma[i])/sigma)
			}
		}
		if got := middle(found); got < 0.55 || got > 1.2 { // not much is trusted where nothing is flat
			t.Errorf("%v: in air %.2f of the noise is found", native, got)
		}
	}
}

// TestNoAir: dark tissue is no air, however much of the image it is.
func TestNoAir(t *testing.T) {
	const sigma = 0.04
	for _, native := range [][2]int{{245, 245}, {216, 216}, {161, 320}} {
		for _, snr := range []float64{1.5, 1.75, 2, 2.5, 4} {
			for _, texture := range []float64{0, 0.06, 0.1} {
				g := noise.Filled(320, 320, native[0], native[1])
				truth := make([]float32, native[0]*native[1])
				for i := range truth {
					x, y := float64(i%native[0]), float64(i/native[0])
					truth[i] = float32(snr * sigma)
					if math.Hypot(x-float64(native[0])/2, y-float64(native[1])/2) < 60 {
						truth[i] = float32(0.6 + texture*math.Sin(x*1.3)*math.Sin(y*1.1))
					}
				}
				img, cropped := magnitude(g, truth, sigma, rand.New(rand.NewPCG(7, uint64(native[0]))))
				if air := noise.Air(g, img, cropped, nil); air > 1.15*sigma {
					t.Errorf("%v, signal to noise %g, texture %g: noise %.4f in air, true %.4f without any", native, snr, texture, air, sigma)
				}
			}
		}
	}
	if noise.Air(noise.Full(8, 8), make([]float32, 64), make([]float32, 64), nil) != 0 || noise.Air(noise.Filled(256, 256, 129, 129), nil, nil, nil) != 0 {
		t.Error("air where there cannot be any")
	}
}

// TestGridRoundTrip: filling what was cropped gives the image's own low pass, so
// doing it twice changes nothing; the mean stays.
func TestGridRoundTrip(t *testing.T) {
	v := phantom.New(phantom.Spec{Seed: 2, Width: 240, Height: 203, Slices: 1, Sigma: 0.02, ZeroFill: 1.5})
	img := v.Noisy[0]
	g, err := noise.Detect(img, 240, 203)
	if err != nil {
		t.Fatal(err)
	}
	if !g.Filled() {
		t.Fatal("not found to be zero-filled")
	}
	native := g.Crop(nil, img)
	if len(native) != g.NativeWidth*g.NativeHeight {
		t.Fatalf("native image has %d pixels", len(native))
	}
	once := g.Fill(nil, native)
	twice := g.Fill(nil, g.Crop(nil, once))
	sum, low := 0.0, 0.0
	for i := range img {
		if d := math.Abs(float64(once[i] - twice[i])); d > 1e-5 {
			t.Fatalf("pixel %d moves by %g", i, d)
		}
		sum, low = sum+float64(img[i]), low+float64(once[i])
	}
	if math.Abs(sum/low-1) > 1e-5 {
		t.Errorf("mean changes by a factor of %g", low/sum)
	}
}

// cpu reports processor time, which other work on the machine changes less than
// the wall clock.
func cpu(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := used()
	return func() { b.ReportMetric(float64(used()-start)/float64(b.N)/1e6, "cpu-ms/op") }
}

func BenchmarkEstimate512(b *testing.B) {
	v := phantom.New(phantom.Spec{Seed: 2, Width: 512, Height: 512, Slices: 1, Sigma: 0.02})
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		if _, err := noise.Estimate(v.Noisy[0], 512, 512, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDetect512(b *testing.B) {
	v := phantom.New(phantom.Spec{Seed: 2, Width: 512, Height: 512, Slices: 1, Sigma: 0.02})
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		if _, err := noise.Detect(v.Noisy[0], 512, 512); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleEstimate() {
	const w, h = 128, 128
	rng := rand.New(rand.NewPCG(1, 1))
	img := make([]float32, w*h)
	for i := range img {
		img[i] = 100 + 5*float32(rng.NormFloat64())
	}
	m, err := noise.Estimate(img, w, h, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%.0f\n", m.Median)
	// Output: 5
}
