package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// ramp is an image whose columns rise from 0 to 1.
func ramp(w, h int) []float32 {
	img := make([]float32, w*h)
	for i := range img {
		img[i] = float32(i%w) / float32(w-1)
	}
	return img
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// TestRows holds every row to its own map: over columns of equal signal the mean
// error is 0 and its standard deviation what the map says.
func TestRows(t *testing.T) {
	const w, h = 96, 768
	img := ramp(w, h)
	kept := slices.Clone(img)
	for _, r := range Rows() {
		t.Run(r.Name, func(t *testing.T) {
			y, s, ref := r.Noise(img, w, h, newRand(3))
			again, _, _ := r.Noise(img, w, h, newRand(3))
			other, _, _ := r.Noise(img, w, h, newRand(4))
			if !slices.Equal(y, again) || slices.Equal(y, other) {
				t.Error("the noise does not follow the source's seed")
			}
			if !slices.Equal(img, kept) {
				t.Fatal("the image was changed")
			}
			var sum, sq, want, n float64
			for i := range y {
				if x := i % w; x < w/4 || x > w*7/8 { // where a magnitude is biased, and a filter rings
					continue
				}
				d := float64(y[i] - ref[i])
				sum, sq, want, n = sum+d, sq+d*d, want+float64(s[i])*float64(s[i]), n+1
			}
			if mean, sd := sum/n, math.Sqrt(want/n); math.Abs(mean) > 0.05*sd {
				t.Errorf("mean %.5f at a standard deviation of %.5f", mean, sd)
			}
			if ratio := math.Sqrt(sq / want); math.Abs(ratio-1) > 0.03 {
				t.Errorf("standard deviation %.3f times the map's", ratio)
			}
		})
	}
	y, _, _ := Gaussian(Level)(img, w, h, newRand(1))
	sq := 0.0
	for i, v := range y {
		d := float64(v - img[i])
		sq += d * d / float64(len(y))
	}
	if psnr := -10 * math.Log10(sq); math.Abs(psnr-32.57) > 0.1 {
		t.Errorf("Gaussian 6/255 has %.2f dB, want 32.57", psnr)
	}
}

func TestPoisson(t *testing.T) {
	const w, h, peak = 64, 64, 200
	img := make([]float32, w*h)
	for i := range img {
		img[i] = 0.1 // 20 counts: drawn one by one
	}
	img[0] = -1
	y, s, _ := Poisson(peak)(img, w, h, newRand(2))
	if y[0] != 0 || s[0] != 0 {
		t.Errorf("a negative pixel gives %g ± %g", y[0], s[0])
	}
	for i, v := range y {
		if n := float64(v) * peak; math.Abs(n-math.Round(n)) > 1e-4 || n < 0 {
			t.Fatalf("pixel %d is %g counts", i, n)
		}
	}
}

// TestCorrelated compares with the smoothing done in the Fourier domain, and with
// the correlation of the transfer function.
func TestCorrelated(t *testing.T) {
	for _, c := range []struct {
		w, h        int
		spread, off float64 // how far from the Fourier domain, of the standard deviation
	}{{48, 31, 0.5, 1e-12}, {256, 7, 1.2, 1e-12}, {1, 1, 1.2, 1e-12}, {300, 290, 0.5, 0.002}, {300, 290, 3, 1e-6}} {
		rng := newRand(9)
		f, n := make([]complex128, c.w*c.h), make([]float64, c.w*c.h)
		for i := range n {
			n[i] = rng.NormFloat64()
			f[i] = complex(n[i], 0)
		}
		smooth(n, c.w, c.h, c.spread)
		filter(f, c.w, c.h, func(fx, fy float64) float64 {
			return math.Exp(-2 * math.Pi * math.Pi * c.spread * c.spread * (fx*fx + fy*fy))
		})
		worst, energy := 0.0, 0.0
		for i, v := range n {
			worst, energy = max(worst, math.Abs(v-real(f[i]))), energy+v*v
		}
		if rms := math.Sqrt(energy / float64(len(n))); worst > c.off*rms {
			t.Errorf("%d×%d, spread %g: up to %.2g of the standard deviation off the Fourier domain's", c.w, c.h, c.spread, worst/rms)
		}
	}
	const w, h = 300, 290
	for _, spread := range []float64{0.5, 1.2, 3} {
		y, _, _ := Correlated(spread, Level)(make([]float32, w*h), w, h, newRand(9))
		var r0, rx, ry float64
		for i := range h - 1 {
			for x := range w - 1 {
				v := float64(y[i*w+x])
				r0, rx, ry = r0+v*v, rx+v*float64(y[i*w+x+1]), ry+v*float64(y[i*w+w+x])
			}
		}
		var top, bottom float64
		for f := -0.4995; f < 0.5; f += 0.001 {
			p := math.Exp(-4 * math.Pi * math.Pi * spread * spread * f * f)
			top, bottom = top+p*math.Cos(2*math.Pi*f), bottom+p
		}
		if want := top / bottom; math.Abs(rx/r0-want) > 0.02 || math.Abs(ry/r0-want) > 0.02 {
			t.Errorf("spread %g: correlation %.3f and %.3f with the next pixel, want %.3f", spread, rx/r0, ry/r0, want)
		}
	}
	if y, _, _ := Correlated(1.2, Level)([]float32{0}, 1, 1, newRand(1)); math.Abs(float64(y[0])) < Level/2 {
		t.Error("no noise on a tiny image")
	}
}

func TestComplex(t *testing.T) {
	const w, h = 64, 48
	air := make([]float32, w*h)
	y, _, ref := Complex(1, Level, true)(air, w, h, newRand(5))
	mean := 0.0
	for i, v := range y {
		mean += float64(v) / (w * h)
		if ref[i] != 0 || v < 0 {
			t.Fatal("the reference of air is not 0, or a magnitude is below 0")
		}
	}
	if want := Level * math.Sqrt(math.Pi/2); math.Abs(mean/want-1) > 0.03 { // of a Rayleigh distribution
		t.Errorf("mean of air %.5f, want %.5f", mean, want)
	}
	// beyond the measured share of k-space there is nothing
	y, _, _ = Complex(2, Level, false)(ramp(w, h), w, h, newRand(5))
	c := make([]complex128, w*h)
	for i, v := range y {
		c[i] = complex(float64(v), 0)
	}
	filter(c, w, h, func(fx, fy float64) float64 {
		if math.Abs(fx) <= 0.25 && math.Abs(fy) <= 0.25 {
			return 0
		}
		return 1
	})
	for i, v := range c {
		if math.Abs(real(v)) > 1e-6 {
			t.Fatalf("pixel %d has %g outside the measured k-space", i, real(v))
		}
	}
}

func TestFind(t *testing.T) {
	rows, err := Find("gamma 500", "Gaussian 2/255")
	if err != nil || len(rows) != 2 || rows[0].Name != "gamma 500" || rows[1].Noise == nil {
		t.Errorf("%v, %v", rows, err)
	}
	if _, err := Find("Gaussian"); err == nil {
		t.Error("an unknown row is found")
	}
	seen := map[string]bool{}
	for _, r := range Rows() {
		if seen[r.Name] {
			t.Errorf("%q stands twice", r.Name)
		}
		seen[r.Name] = true
	}
}

func BenchmarkCrop(b *testing.B) {
	const side = 128
	img := ramp(side, side)
	for _, r := range Rows() {
		b.Run(r.Name, func(b *testing.B) {
			rng := newRand(1)
			for b.Loop() {
				r.Noise(img, side, side, rng)
			}
		})
	}
}

func ExampleRow() {
	rows, err := Find("Gaussian 6/255")
	if err != nil {
		panic(err)
	}
	flat := []float32{0.5, 0.5, 0.5, 0.5}
	noisy, sigma, _ := rows[0].Noise(flat, 2, 2, rand.New(rand.NewPCG(1, 2)))
	fmt.Printf("%d pixels, standard deviation %.4f\n", len(noisy), sigma[0])
	// Output: 4 pixels, standard deviation 0.0235
}
