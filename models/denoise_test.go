package models

import (
	"context"
	"errors"
	"github.com/diffdenoise/denoised/models/net"
	"math"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/score"
	"github.com/diffdenoise/denoised/models/meter"
)

func noisySlice(t *testing.T, s phantom.Spec) (truth, noisy []float32, w, h int) {
	t.Helper()
	v := phantom.New(s)
	k := v.Spec.Slices / 2
	return v.Truth[k], v.Noisy[k], v.Spec.Width, v.Spec.Height
}

func defaultModel(t *testing.T) *Model {
	t.Helper()
	m, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDenoise: nearer to the truth, same mean, inside the range, the same twice,
// the input untouched, for native and zero-filled images.
func TestDenoise(t *testing.T) {
	m := defaultModel(t)
	for _, fill := range []float64{1, 1.5} {
		truth, noisy, w, h := noisySlice(t, phantom.Spec{Seed: 5, Slices: 3, Sigma: 0.03, Shading: true, ZeroFill: fill})
		for i := range noisy {
			noisy[i] = float32(math.Round(3000 * float64(noisy[i])))
			truth[i] *= 3000
		}
		before := slices.Clone(noisy)
		img := Image{Width: w, Height: h, Pixels: noisy}
		r, err := m.Denoise(context.Background(), img, Options{Strength: 1})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(before, noisy) {
			t.Fatal("the input changed")
		}
		gain := score.PSNR(r.Pixels, truth, 3000) - score.PSNR(noisy, truth, 3000)
		if gain < 1 {
			t.Errorf("zero fill %g: gain %.2f dB", fill, gain)
		}
		if slices.Max(r.Pixels) > slices.Max(noisy) || slices.Min(r.Pixels) < slices.Min(noisy) {
			t.Errorf("zero fill %g: new extrema", fill)
		}
		// the object, not the air, whose Rician mean is not signal
		in, out, n := 0., 0., 0.
		for i, v := range truth {
			if v > 900 {
				in, out, n = in+float64(noisy[i]), out+float64(r.Pixels[i]), n+1
			}
		}
		if math.Abs(out/in-1) > 0.005 {
			t.Errorf("zero fill %g: mean of the object changes by %.2f %%", fill, 100*(out/in-1))
		}
		again, err := m.Denoise(context.Background(), img, Options{Strength: 1})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(again.Pixels, r.Pixels) {
			t.Error("two calls differ")
		}
		half, err := m.Denoise(context.Background(), img, Options{Strength: 0.5})
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range half.Pixels {
			if mid := (noisy[i] + r.Pixels[i]) / 2; math.Abs(float64(v-mid)) > 1+1e-3*float64(mid) &&
				r.Pixels[i] > slices.Min(noisy) && r.Pixels[i] < slices.Max(noisy) {
				t.Fatalf("pixel %d at half strength is %g, between %g and %g", i, v, noisy[i], r.Pixels[i])
			}
		}
	}
}

// TestResidualHasNoStructure: what is taken off hardly correlates with what is there.
func TestResidualHasNoStructure(t *testing.T) {
	m := defaultModel(t)
	truth, noisy, w, h := noisySlice(t, phantom.Spec{Seed: 6, Slices: 3, Sigma: 0.03})
	r, err := m.Denoise(context.Background(), Image{Width: w, Height: h, Pixels: noisy}, Options{Strength: 1})
	if err != nil {
		t.Fatal(err)
	}
	var n, sa, sb, aa, bb, ab float64
	for i, v := range truth {
		if v < 0.3 {
			continue
		}
		a, b := float64(noisy[i]-r.Pixels[i]), float64(v)
		n, sa, sb, aa, bb, ab = n+1, sa+a, sb+b, aa+a*a, bb+b*b, ab+a*b
	}
	c := (ab - sa*sb/n) / math.Sqrt((aa-sa*sa/n)*(bb-sb*sb/n))
	if math.Abs(c) > 0.15 {
		t.Errorf("residual and truth correlate with %.3f", c)
	}
}

// TestNoiseFree: images of fine anatomy without any noise, as other filters leave them, come back as they
// are, and tell their series nothing.
func TestNoiseFree(t *testing.T) {
	m := defaultModel(t)
	for seed := range uint64(6) {
		for k, px := range phantom.New(phantom.Spec{Seed: seed, Slices: 3, Shading: seed%2 == 1}).Truth {
			r, err := m.Denoise(t.Context(), Image{Width: 256, Height: 256, Pixels: px}, Options{Strength: 1})
			if err != nil {
				t.Fatal(err)
			}
			if r.Untouched != UntouchedNoNoise || r.Series != (meter.Series{}) {
				t.Errorf("phantom %d, slice %d: %q, noise of %.4f is found", seed, k, r.Untouched, r.Sigma)
			}
		}
	}
}

// TestUntouched: strength 0, constant images, air and images without noise come
// back bit for bit; so do skipped pixels and blanked air.
func TestUntouched(t *testing.T) {
	m := defaultModel(t)
	ctx := context.Background()
	truth, noisy, w, h := noisySlice(t, phantom.Spec{Seed: 7, Slices: 3, Sigma: 0.03, Blank: true})
	r, err := m.Denoise(ctx, Image{Width: w, Height: h, Pixels: noisy}, Options{})
	if err != nil || !slices.Equal(r.Pixels, noisy) || r.Untouched == "" {
		t.Errorf("strength 0 changes the image (%v)", err)
	}
	static := make([]float32, 64*64)
	uniform := rand.New(rand.NewPCG(3, 3))
	for i := range static {
		static[i] = float32(uniform.IntN(256))
	}
	for name, img := range map[string]Image{
		"noise alone":  {Width: 64, Height: 64, Pixels: static},
		"zero":         {Width: 20, Height: 30, Pixels: make([]float32, 600)},
		"constant":     {Width: 20, Height: 30, Pixels: slices.Repeat([]float32{5}, 600)},
		"tiny":         {Width: 2, Height: 3, Pixels: []float32{1, 2, 3, 4, 5, 6}},
		"pixel":        {Width: 1, Height: 1, Pixels: []float32{1}},
		"all skipped":  {Width: 2, Height: 1, Pixels: []float32{1, float32(math.NaN())}, Skip: []bool{true, true}},
		"no noise":     {Width: w, Height: h, Pixels: truth},
		"all negative": {Width: 2, Height: 1, Pixels: []float32{-4, -5}},
	} {
		r, err := m.Denoise(ctx, img, Options{Strength: 1})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.Untouched == "" {
			t.Errorf("%s: denoised", name)
		}
		for i, v := range r.Pixels {
			if math.Float32bits(v) != math.Float32bits(img.Pixels[i]) {
				t.Errorf("%s: pixel %d changes", name, i)
				break
			}
		}
	}
	skip := make([]bool, w*h)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range skip {
		if i%w < 9 || rng.IntN(500) == 0 {
			skip[i] = true
			noisy[i] = float32(math.NaN())
		}
	}
	r, err = m.Denoise(ctx, Image{Width: w, Height: h, Pixels: noisy, Skip: skip}, Options{Strength: 1})
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i, v := range r.Pixels {
		switch {
		case skip[i]:
			if math.Float32bits(v) != math.Float32bits(noisy[i]) {
				t.Fatalf("skipped pixel %d changes", i)
			}
		case !finite(v):
			t.Fatalf("pixel %d is %g", i, v)
		case noisy[i] == 0 && i%w < 12 && v != 0:
			t.Fatalf("blanked air at %d becomes %g", i, v)
		case v != noisy[i]:
			changed++
		}
	}
	if changed < w*h/10 {
		t.Errorf("only %d pixels change", changed)
	}
}

func TestDenoiseRefuses(t *testing.T) {
	m := defaultModel(t)
	one := []float32{1}
	for name, c := range map[string]struct {
		img Image
		s   float64
	}{
		"size":     {Image{Width: 2, Height: 1, Pixels: one}, 1},
		"mask":     {Image{Width: 1, Height: 1, Pixels: one, Skip: make([]bool, 2)}, 1},
		"zero":     {Image{}, 1},
		"huge":     {Image{Width: math.MaxInt, Height: math.MaxInt, Pixels: one}, 1},
		"strength": {Image{Width: 1, Height: 1, Pixels: one}, math.NaN()},
		"NaN":      {Image{Width: 1, Height: 1, Pixels: []float32{float32(math.NaN())}}, 1},
	} {
		if _, err := m.Denoise(context.Background(), c.img, Options{Strength: c.s}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.Denoise(ctx, Image{Width: 1, Height: 1, Pixels: one}, Options{Strength: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// blur is a network that takes off whatever is fine, noise or not.
type blur struct{}

func (blur) Forward(dst, y, _ []float32, _ net.Told, w, h int) error {
	for i := range dst {
		x, n, sum := i%w, float32(0), float32(0)
		for j := max(i/w-1, 0); j <= min(i/w+1, h-1); j++ {
			for k := max(x-1, 0); k <= min(x+1, w-1); k++ {
				sum, n = sum+y[j*w+k], n+1
			}
		}
		dst[i] = sum / n
	}
	return nil
}

// TestConfirm: a network that takes off anatomy is held back where it does, and
// works where there is noise only.
func TestConfirm(t *testing.T) {
	truth, noisy, w, h := noisySlice(t, phantom.Spec{Seed: 9, Slices: 3, Sigma: 0.015})
	r, err := defaultModel(t).denoise(context.Background(), Image{Width: w, Height: h, Pixels: noisy},
		Options{Strength: 1}, by(blur{}))
	if err != nil {
		t.Fatal(err)
	}
	blurred := make([]float32, w*h)
	if err := (blur{}).Forward(blurred, noisy, nil, net.Told{}, w, h); err != nil {
		t.Fatal(err)
	}
	a, b, c := score.PSNR(noisy, truth, 1), score.PSNR(r.Pixels, truth, 1), score.PSNR(blurred, truth, 1)
	if b < a || c > a-3 {
		t.Errorf("noisy %.2f dB, held back %.2f, as the network has it %.2f", a, b, c)
	}
}

// TestMeans against the definition, also in images smaller than the window.
func TestMeans(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	for _, size := range [][2]int{{1, 1}, {2, 5}, {4, 3}, {9, 8}, {20, 17}} {
		w, h, half := size[0], size[1], windowRemoved
		v := make([]float32, w*h)
		for i := range v {
			v[i] = rng.Float32() - 0.5
		}
		got := slices.Clone(v)
		new(scratch).means(got, w, h, half)
		for i := range v {
			sum, n := 0.0, 0.0
			for y := max(i/w-half, 0); y <= min(i/w+half, h-1); y++ {
				for x := max(i%w-half, 0); x <= min(i%w+half, w-1); x++ {
					sum, n = sum+float64(v[y*w+x]), n+1
				}
			}
			if math.Abs(sum/n-float64(got[i])) > 1e-6 {
				t.Fatalf("%d×%d, pixel %d: %g, want %g", w, h, i, got[i], sum/n)
			}
		}
	}
}

// TestRanked against a sort, with negative values and zeros.
func TestRanked(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var b normalized
	img := Image{Width: 40, Height: 25, Pixels: make([]float32, 1000), Skip: make([]bool, 1000)}
	var kept []float32
	for i := range img.Pixels {
		img.Pixels[i] = float32(rng.IntN(300)-100) * float32(rng.IntN(3))
		if img.Skip[i] = rng.IntN(4) == 0; !img.Skip[i] {
			kept = append(kept, img.Pixels[i])
		}
	}
	slices.Sort(kept)
	for k, want := range kept {
		if got := b.ranked(img, k); got != want {
			t.Fatalf("place %d: %g, want %g", k, got, want)
		}
	}
}

// TestAllocations: a call allocates its result and little else. The collector may
// empty the pools between calls, so the bound is loose; without pools it is 4,000.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget at random")
	}
	_, noisy, w, h := noisySlice(t, phantom.Spec{Seed: 9, Slices: 1, Sigma: 0.03})
	img := Image{Width: w, Height: h, Pixels: noisy}
	m := defaultModel(t)
	n := testing.AllocsPerRun(10, func() {
		if _, err := m.denoise(context.Background(), img, Options{Strength: 1}, by(identity{})); err != nil {
			t.Fatal(err)
		}
	})
	if n > 100 {
		t.Errorf("%.0f allocations", n)
	}
}

// identity is a network that finds nothing, to time what is around it.
type identity struct{}

func (identity) Forward(dst, y, _ []float32, _ net.Told, _, _ int) error {
	copy(dst, y)
	return nil
}

// BenchmarkAround512 is Denoise of 512×512 pixels without the network, full and
// zero-filled; cpu-ms is processor time.
func BenchmarkAround512(b *testing.B) {
	benchmarkDenoise(b, identity{}, 1)
}

func BenchmarkAround512ZeroFilled(b *testing.B) {
	benchmarkDenoise(b, identity{}, 1.5)
}

func BenchmarkDenoise512(b *testing.B) {
	m, err := Default()
	if err != nil {
		b.Fatal(err)
	}
	benchmarkDenoise(b, m.Student(), 1)
}

func benchmarkDenoise(b *testing.B, f net.Forwarder, fill float64) {
	m, err := Default()
	if err != nil {
		b.Fatal(err)
	}
	v := phantom.New(phantom.Spec{Seed: 2, Width: 512, Height: 512, Slices: 1, Sigma: 0.02, ZeroFill: fill})
	img := Image{Width: 512, Height: 512, Pixels: v.Noisy[0]}
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.ReportAllocs()
	start := used()
	for b.Loop() {
		r, err := m.denoise(context.Background(), img, Options{Strength: 1}, by(f))
		if err != nil || r.Untouched != "" {
			b.Fatal(err, r.Untouched)
		}
	}
	b.ReportMetric(float64(used()-start)/float64(b.N)/1e6, "cpu-ms/op")
}

// head is a bright disc with fine detail in air, as a magnitude with noise; plant may add
// to it before the noise.
func head(t *testing.T, sigma float64, seed uint64, plant func(x, y int) float64) []float32 {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	out := make([]float32, headSide*headSide)
	for i := range out {
		x, y := i%headSide, i/headSide
		v := 0.0
		if r := math.Hypot(float64(x-headSide/2), float64(y-headSide/2)); r < 80 {
			v = 0.5 + 0.2*math.Sin(float64(x)/9)*math.Cos(float64(y)/7)
		} else if r < 86 {
			v = 0.9
		}
		v += plant(x, y)
		out[i] = float32(math.Hypot(v+sigma*rng.NormFloat64(), sigma*rng.NormFloat64()))
	}
	return out
}

const headSide = 256

// TestFaintObjects: what lies faintly in the air or the tissue of a magnitude stays, by
// the difference of the results with and without it over the same noise.
func TestFaintObjects(t *testing.T) {
	m := defaultModel(t)
	const sigma = 10. / 255
	denoise := func(y []float32) []float32 {
		r, err := m.Denoise(t.Context(), Image{Width: headSide, Height: headSide, Pixels: y}, Options{Strength: 1})
		if err != nil {
			t.Fatal(err)
		}
		return r.Pixels
	}
	for name, c := range map[string]struct {
		in   func(x, y int) bool
		high float64 // standard deviations of the noise
		kept float64 // at least, of the difference before
	}{
		"spot of 5×5 in air, 3 sd": {func(x, y int) bool { return x >= 20 && x < 25 && y >= 30 && y < 35 }, 3, 0.8},
		"spot of 3×3 in air, 4 sd": {func(x, y int) bool { return x >= 20 && x < 23 && y >= 30 && y < 33 }, 4, 0.8},
		"line of 2 in air, 4 sd":   {func(x, y int) bool { return x >= 20 && x < 22 && y >= 30 && y < 130 }, 4, 0.8},
		"spot of 5×5 in tissue, 3 sd": {func(x, y int) bool { return x >= 110 && x < 115 && y >= 120 && y < 125 }, 3,
			0.7},
		"line of 2 in tissue, 4 sd": {func(x, y int) bool { return x >= 110 && x < 112 && y >= 100 && y < 150 }, 4,
			0.8},
		"dark region of 40×40 in air, 1 sd": {func(x, y int) bool { return x >= 5 && x < 45 && y >= 5 && y < 45 }, 1,
			0.6},
		"dark region of 40×40 in air, 2 sd": {func(x, y int) bool { return x >= 5 && x < 45 && y >= 5 && y < 45 }, 2, 0.8},
	} {
		before, after := 0.0, 0.0
		for seed := range uint64(3) {
			plain := head(t, sigma, seed, func(int, int) float64 { return 0 })
			with := head(t, sigma, seed, func(x, y int) float64 {
				if c.in(x, y) {
					return c.high * sigma
				}
				return 0
			})
			a, b := denoise(plain), denoise(with)
			for i := range a {
				if c.in(i%headSide, i/headSide) {
					before += float64(with[i] - plain[i])
					after += float64(b[i] - a[i])
				}
			}
		}
		t.Logf("%s: %.2f of it stays", name, after/before)
		if after < c.kept*before {
			t.Errorf("%s: %.2f of it stays, want %.2f", name, after/before, c.kept)
		}
	}
}

// TestDarkTissue: a dark region within tissue keeps the mean that its magnitude has above
// its lift, or the result is held back.
func TestDarkTissue(t *testing.T) {
	m := defaultModel(t)
	const sigma = 10. / 255
	in := func(x, y int) bool { return x >= 110 && x < 148 && y >= 105 && y < 153 }
	for _, snr := range []float64{1.5, 2, 3} {
		y := head(t, sigma, 5, func(x, y int) float64 {
			if in(x, y) {
				return snr*sigma - 0.5 - 0.2*math.Sin(float64(x)/9)*math.Cos(float64(y)/7)
			}
			return 0
		})
		r, err := m.Denoise(t.Context(), Image{Width: headSide, Height: headSide, Pixels: y}, Options{Strength: 1})
		if err != nil {
			t.Fatal(err)
		}
		sum, n := 0.0, 0.0
		for i, v := range r.Pixels {
			if x, y := i%headSide, i/headSide; x >= 116 && x < 142 && y >= 111 && y < 147 && in(x, y) {
				sum, n = sum+float64(v)/sigma, n+1
			}
		}
		t.Logf("signal %g: mean %.2f", snr, sum/n)
		if mean := sum / n; mean < snr-0.5 {
			t.Errorf("dark tissue of %g standard deviations has the mean %.2f afterwards", snr, mean)
		}
	}
}

// TestFarApart: values that overflow in the network's scale leave the image as it is.
func TestFarApart(t *testing.T) {
	px := slices.Repeat([]float32{1e-30}, 64*64)
	px[70] = 1e30
	r, err := defaultModel(t).Denoise(t.Context(), Image{Width: 64, Height: 64, Pixels: px}, Options{Strength: 1})
	if err != nil || r.Untouched != UntouchedRange || !slices.Equal(r.Pixels, px) {
		t.Errorf("%v, %v", r, err)
	}
}
