package simulate

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// wedge is an image that is constant along y and rises along x from low to high.
func wedge(w, h int, low, high float32) []float32 {
	img := make([]float32, w*h)
	for i := range img {
		img[i] = low + (high-low)*float32(i%w)/float32(w-1)
	}
	return img
}

// TestDetectorNoise: strength and autocorrelation of the stored noise are those that are stated, for
// every storage, quanta and electronics alone and together, with blur and enhancement.
func TestDetectorNoise(t *testing.T) {
	const w, h = 256, 256
	for name, d := range map[string]Detector{
		"quanta, linear":    {Range: 2, Storage: Linear, Noise: 0.03},
		"quanta, root":      {Range: 2, Storage: Root, Noise: 0.03},
		"quanta, logarithm": {Range: 2, Noise: 0.02},
		"blurred":           {Range: 2, Blur: 0.9, Noise: 0.02},
		"electronics":       {Range: 2, Blur: 0.9, Electronic: 10, Storage: Linear, Noise: 0.02},
		"enhanced": {Range: 2, Blur: 0.7, Electronic: 0.3, Noise: 0.02,
			Enhance: [2]Unsharp{{1, 1.5}, {0.5, 5}}},
		"for display":          {Range: 2.5, Blur: 0.7, Storage: Presentation, Steep: 5, Noise: 0.02, Inverted: true},
		"all together, stored": {Range: 2, Blur: 0.8, Electronic: 0.5, Storage: Root, Noise: 0.03, Bits: 12},
	} {
		a, err := d.Run(wedge(w, h, 0.2, 0.8), w, h, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		const edge = 24
		var mean, power, stated, square float64
		var rho [5][5]float64
		unit := make([]float64, w*h)
		n := 0.0
		for i := range unit {
			unit[i] = float64(a.Noisy[i]-a.Truth[i]) / float64(a.Sigma[i])
		}
		for y := edge; y < h-edge; y++ {
			for x := edge; x < w-edge; x++ {
				i := y*w + x
				n++
				mean += unit[i]
				power += unit[i] * unit[i]
				e := float64(a.Noisy[i] - a.Truth[i])
				square += e * e
				stated += float64(a.Sigma[i]) * float64(a.Sigma[i])
				for dy := range rho {
					for dx := range rho[dy] {
						rho[dy][dx] += unit[i] * unit[i+dy*w+dx]
					}
				}
			}
		}
		if got := math.Sqrt(power / n); math.Abs(got-1) > 0.02 {
			t.Errorf("%s: noise is %.3f of what is stated", name, got)
		}
		if got := math.Sqrt(square / stated); math.Abs(got-1) > 0.02 {
			t.Errorf("%s: root of the mean square is %.3f of what is stated", name, got)
		}
		if got := mean / n; math.Abs(got) > 0.1 {
			t.Errorf("%s: the mean is off by %.3f standard deviations", name, got)
		}
		for dy := range rho {
			for dx := range rho[dy] {
				if got, want := rho[dy][dx]/power, a.Rho[dy][dx]; math.Abs(got-want) > 0.03 {
					t.Errorf("%s: correlation at (%d, %d) is %.3f, stated %.3f", name, dx, dy, got, want)
				}
			}
		}
		sum := 0.0
		for _, s := range a.Sigma {
			sum += float64(s) * float64(s)
		}
		if got := math.Sqrt(sum / (w * h)); math.Abs(got/d.Noise-1) > 1e-3 {
			t.Errorf("%s: noise of %.4f, asked for %.4f", name, got, d.Noise)
		}
	}
}

// TestDetectorClosedForms: counted quanta have the variance of Poisson's law behind each curve, a
// Gaussian of spread s leaves 1/(4πs²) of the variance and the correlation exp(−d²/4s²).
func TestDetectorClosedForms(t *testing.T) {
	const w, h, at = 64, 64, 0.5
	img := wedge(w, h, at, at)
	rng := rand.New(rand.NewPCG(3, 4))
	run := func(d Detector) *Acquired {
		a, err := d.Run(img, w, h, rng)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for d := range 4 {
		a := run(Detector{Range: 3, Blur: 1.2, Noise: 0.02})
		if got, want := a.Rho[0][d], math.Exp(-float64(d*d)/(4*1.2*1.2)); math.Abs(got-want) > 0.005 {
			t.Errorf("correlation at %d is %.4f, want %.4f", d, got, want)
		}
	}
	spread := (Detector{Range: 3, Blur: 1.2}).spectra().spread
	if got, want := spread, 1/(4*math.Pi*1.2*1.2); math.Abs(got/want-1) > 0.01 {
		t.Errorf("the blur leaves %.4f of the variance, want %.4f", got, want)
	}
	// over the range: d(log e)/Range has σ of 1/√N/Range; a root has the same everywhere
	a, err := Detector{Range: 2, Noise: 0.02}.Run(wedge(w, h, 0, 1), w, h, rng)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := float64(a.Sigma[w-1]/a.Sigma[0]), math.Exp(1); math.Abs(got/want-1) > 1e-3 {
		t.Errorf("behind the logarithm noise rises by %.4f, want %.4f", got, want)
	}
	if a, err = (Detector{Range: 2, Storage: Root, Noise: 0.02}).Run(wedge(w, h, 0, 1), w, h, rng); err != nil {
		t.Fatal(err)
	}
	if got := float64(a.Sigma[w-1] / a.Sigma[0]); math.Abs(got-1) > 1e-3 {
		t.Errorf("behind the root noise rises by %.4f", got)
	}
	for _, s := range []Storage{Logarithm, Root, Linear, Presentation} {
		d := Detector{Range: 2.5, Storage: s}
		if a, b := d.curve(1), d.curve(math.Exp(-d.Range)); math.Abs(a) > 1e-9 || math.Abs(b-1) > 1e-9 {
			t.Errorf("storage %d stores the open beam as %g and the densest as %g", s, a, b)
		}
		const e, step = 0.4, 1e-6
		if got, want := d.slope(e), (d.curve(e+step)-d.curve(e-step))/(2*step); math.Abs(got/want-1) > 1e-4 {
			t.Errorf("storage %d: slope %g, want %g", s, got, want)
		}
	}
}

// TestDetectorTruth: without noise the image is stored as Signal has it, and as it was where nothing
// is done to it; inversion turns it over; borders hold one value.
func TestDetectorTruth(t *testing.T) {
	const w, h = 80, 60
	img := wedge(w, h, 0.1, 0.9)
	d := Detector{Range: 3}
	a, err := d.Run(img, w, h, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range a.Truth {
		if math.Abs(float64(v-img[i])) > 1e-5 || a.Noisy[i] != v || a.Sigma[i] != 0 {
			t.Fatalf("pixel %d: %g is stored as %g and %g", i, img[i], v, a.Noisy[i])
		}
	}
	d.Inverted, d.Open, d.Bright, d.Bits, d.Noise = true, [4]float64{0.25, 0, 0.75, 1}, true, 10, 0.02
	if a, err = d.Run(img, w, h, rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	signal := d.Signal(img, w, h)
	for i, v := range signal {
		if a.Truth[i] != v {
			t.Fatalf("pixel %d: truth %g, signal %g", i, a.Truth[i], v)
		}
		x := i % w
		switch covered := x < 20 || x >= 60; {
		case covered && (v != 1.2 || a.Noisy[i] != 1.2):
			t.Fatalf("covered pixel %d holds %g and %g", i, v, a.Noisy[i])
		case !covered && math.Abs(float64(v-(1-img[i]))) > 1e-3:
			t.Fatalf("pixel %d: %g is stored inverted as %g", i, img[i], v)
		}
	}
}

// TestDetectorCarried: noise that the image has goes through as Carried says.
func TestDetectorCarried(t *testing.T) {
	const w, h, own = 200, 200, 0.01
	img := wedge(w, h, 0.5, 0.5)
	noisy, sigma := make([]float32, w*h), make([]float32, w*h)
	rng := rand.New(rand.NewPCG(5, 6))
	for i, v := range img {
		noisy[i], sigma[i] = v+float32(own*rng.NormFloat64()), own
	}
	d := Detector{Range: 2, Blur: 0.8, Storage: Presentation, Enhance: [2]Unsharp{{1, 2}}}
	got, want, carried := d.Signal(noisy, w, h), d.Signal(img, w, h), d.Carried(img, sigma)
	sum, n := 0.0, 0.0
	for y := 20; y < h-20; y++ {
		for x := 20; x < w-20; x++ {
			i := y*w + x
			e := float64(got[i]-want[i]) / float64(carried[i])
			sum, n = sum+e*e, n+1
		}
	}
	if r := math.Sqrt(sum / n); math.Abs(r-1) > 0.03 {
		t.Errorf("carried noise is %.3f of what is stated", r)
	}
}

func TestDetectorRefuses(t *testing.T) {
	for want, d := range map[string]Detector{
		"Range":      {},
		"Blur":       {Range: 2, Blur: 3},
		"Electronic": {Range: 2, Electronic: math.NaN()},
		"Storage":    {Range: 2, Storage: 9},
		"Steep":      {Range: 2, Steep: 20},
		"Enhance":    {Range: 2, Enhance: [2]Unsharp{{1, 0}}},
		"Noise":      {Range: 2, Noise: 0.5},
		"Bits":       {Range: 2, Bits: 20},
		"Open":       {Range: 2, Open: [4]float64{0.5, 0, 0.4, 1}},
	} {
		if _, err := d.Run(make([]float32, 32*32), 32, 32, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
	if _, err := (Detector{Range: 2}).Run(nil, 32, 32, nil); err == nil {
		t.Error("no error for an image without pixels")
	}
	if _, err := (Detector{Range: 2}).Run(nil, 4, 4, nil); err == nil {
		t.Error("no error for an image that is too small")
	}
}
