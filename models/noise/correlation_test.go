package noise_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/models/noise"
)

// heads are phantom slices without noise.
var heads = sync.OnceValue(func() *phantom.Volume {
	return phantom.New(phantom.Spec{Seed: 3, Slices: 4, Shading: true})
})

// noisyHead is slice k%4 with noise of strength 0.02 that kernel draws.
func noisyHead(kernel *noise.Kernel, k int) (img, clean []float32, w, h int) {
	v := heads()
	clean, w, h = v.Truth[k%4], v.Spec.Width, v.Spec.Height
	img = make([]float32, w*h)
	kernel.Draw(img, w, h, rand.New(rand.NewPCG(uint64(k), 9)))
	for i := range img {
		img[i] = clean[i] + 0.02*img[i]
	}
	return img, clean, w, h
}

// TestCorrelation: what the noise was drawn with is found again in images with
// anatomy, and the strength with it. Single values of the
// correlation were off by up to 0.06.
func TestCorrelation(t *testing.T) {
	for _, s := range [][2]float64{{0, 0}, {0.5, 0.5}, {0, 0.6}, {1.2, 1.2}, {0.4, 1}} {
		k := noise.Gaussian(s[0], s[1])
		want := k.Correlation()
		for seed := range 4 {
			img, _, w, h := noisyHead(k, seed)
			m := estimate(t, img, w, h, nil)
			if m.Correlation.Trust < 1 {
				t.Errorf("spread %v, seed %d: trust %g", s, seed, m.Correlation.Trust)
			}
			for _, lag := range [][2]int{{1, 0}, {0, 1}, {1, 1}, {2, 0}, {0, 2}, {3, 0}, {0, 3}} {
				if got, want := m.Correlation.At(lag[0], lag[1]), want.At(lag[0], lag[1]); math.Abs(got-want) > 0.1 {
					t.Errorf("spread %v, seed %d: correlation %.2f at %v, want %.2f", s, seed, got, lag, want)
				}
			}
			// half of the phantom is air
			if got := m.Median / 0.02; got < 0.8 || got > 1.25 {
				t.Errorf("spread %v, seed %d: strength is %.2f times the truth", s, seed, got)
			}
		}
	}
}

// TestCorrelationOfAnatomy: where there is no noise, none of its kind is found.
func TestCorrelationOfAnatomy(t *testing.T) {
	var s noise.Series
	for k, img := range heads().Truth {
		m := estimate(t, img, 256, 256, nil)
		if m.Correlation.Trust != 0 || m.Correlation.At(1, 0) != 0 {
			t.Errorf("slice %d: trust %g, correlation %.2f", k, m.Correlation.Trust, m.Correlation.At(1, 0))
		}
		if err := s.Add(img, 256, 256, nil); err != nil {
			t.Fatal(err)
		}
	}
	if c := s.Correlation(); c.Trust != 0 {
		t.Errorf("series: trust %g", c.Trust)
	}
}

// TestSeries: slices together tell more than one, and pairs of repetitions tell it
// where every place is anatomy.
func TestSeries(t *testing.T) {
	k := noise.Gaussian(0.5, 0.3)
	want := k.Correlation()
	var slices, pairs noise.Series
	if c := slices.Correlation(); c.Trust != 0 || c.At(1, 0) != 0 {
		t.Errorf("nothing added: %+v", c)
	}
	for seed := range 24 {
		img, clean, w, h := noisyHead(k, seed)
		again := make([]float32, len(img))
		k.Draw(again, w, h, rand.New(rand.NewPCG(uint64(seed), 10)))
		for i, v := range clean {
			again[i] = v + 0.02*again[i]
		}
		if err := slices.Add(img, w, h, nil); err != nil {
			t.Fatal(err)
		}
		// only the inside of the head
		var a, b []float32
		for y := 80; y < 176; y++ {
			a, b = append(a, img[y*w+80:y*w+176]...), append(b, again[y*w+80:y*w+176]...)
		}
		if err := addPair(&pairs, a, b, 96, 96); err != nil {
			t.Fatal(err)
		}
	}
	for name, s := range map[string]*noise.Series{"slices": &slices, "pairs": &pairs} {
		c := s.Correlation()
		for _, lag := range [][2]int{{1, 0}, {0, 1}, {1, 1}, {2, 0}, {0, 2}} {
			if got, want := c.At(lag[0], lag[1]), want.At(lag[0], lag[1]); c.Trust != 1 || math.Abs(got-want) > 0.03 {
				t.Errorf("%s: trust %g, correlation %.3f at %v, want %.3f", name, c.Trust, got, lag, want)
			}
		}
	}
	if err := slices.Add(make([]float32, 5), 2, 3, nil); err == nil {
		t.Error("a wrong size gives no error")
	}
}

// addPair takes in what differs between two repetitions of one slice, which is noise, and motion.
func addPair(s *noise.Series, first, second []float32, w, h int) error {
	outside := noise.Outside(nil, first, w, h, nil)
	d := make([]float32, w*h)
	for i, v := range first {
		d[i] = (v - second[i]) * math.Sqrt2 / 2
	}
	return s.Add(d, w, h, outside)
}

// TestRealRepetitions: the correlation from pairs of repetitions makes the strength
// in a single one right, where white noise had been assumed and hardly any found.
// The truth is the standard deviation over all repetitions, of neighbouring ones in
// time because of drift.
func TestRealRepetitions(t *testing.T) {
	dir := testdata.Dir(t)
	for _, name := range []string{"philips_epi_x60/epi_96x96x20x60.nii.gz", "philips_b0_x6/b0_128x128x44x6.nii.gz"} {
		v, err := nifti.Read(filepath.Join(dir, "repeats", name))
		if err != nil {
			t.Fatal(err)
		}
		n := v.Width * v.Height
		reps := make([][]float32, v.Repeats)
		for _, z := range []int{v.Depth / 4, v.Depth / 2, v.Depth * 3 / 4} {
			mean := make([]float32, n)
			for r := range reps {
				reps[r] = make([]float32, n)
				if err := v.Slice(reps[r], r*v.Depth+z); err != nil {
					t.Fatal(err)
				}
				for i, x := range reps[r] {
					mean[i] += x / float32(v.Repeats)
				}
			}
			var s noise.Series
			for r := 0; r+1 < min(v.Repeats, 10); r += 2 {
				if err := addPair(&s, reps[r], reps[r+1], v.Width, v.Height); err != nil {
					t.Fatal(err)
				}
			}
			c := s.Correlation()
			var m noise.Map
			if err := m.EstimateWith(noise.Known{Correlation: &c}, reps[0], v.Width, v.Height, nil); err != nil {
				t.Fatal(err)
			}
			var ratios []float64
			limit := 0.15 * percentile(mean)
			for i := range n {
				if mean[i] < limit {
					continue
				}
				sum := 0.0
				for r := 1; r < v.Repeats; r++ {
					d := float64(reps[r][i] - reps[r-1][i])
					sum += d * d / 2 / float64(v.Repeats-1)
				}
				ratios = append(ratios, float64(m.Sigma[i])/math.Sqrt(sum))
			}
			ratio := middle(ratios)
			t.Logf("%s slice %d: correlation %.2f along x, %.2f along y, trust %g; estimated noise is %.2f times the true one", name, z, c.At(1, 0), c.At(0, 1), c.Trust, ratio)
			if c.Trust < 1 || c.At(1, 0) < 0.15 || c.At(0, 1) < 0.15 {
				t.Errorf("%s slice %d: correlation %+v", name, z, c)
			}
			if ratio < 1/1.5 || ratio > 1.5 {
				t.Errorf("%s slice %d: estimated noise is %.2f times the true one", name, z, ratio)
			}
		}
	}
}

func ExampleSeries() {
	// two repetitions of a slice without anatomy
	const w, h = 128, 128
	k, rng := noise.Gaussian(0.6, 0), rand.New(rand.NewPCG(1, 2))
	a, b := make([]float32, w*h), make([]float32, w*h)
	k.Draw(a, w, h, rng)
	k.Draw(b, w, h, rng)
	var s noise.Series
	if err := addPair(&s, a, b, w, h); err != nil {
		fmt.Println(err)
		return
	}
	sx, sy := s.Correlation().Holes()
	fmt.Printf("hole %d×%d\n", sx, sy)
	// Output: hole 3×1
}

// TestExtremes: values near the end of the range and odd sizes give a map, and an
// impossible correlation does no harm.
func TestExtremes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, scale := range []float32{1e-38, 1, 3e38} {
		for _, size := range [][2]int{{16, 16}, {17, 31}, {64, 50}} {
			img := make([]float32, size[0]*size[1])
			for i := range img {
				img[i] = scale * (rng.Float32() - 0.5) * 2
			}
			m := estimate(t, img, size[0], size[1], nil)
			dst := make([]float32, len(img))
			m.Draw(dst, rng)
			bad := noise.White()
			for dy := range bad.Rho {
				for dx := range bad.Rho[dy] {
					bad.Rho[dy][dx] = 1
				}
			}
			for _, c := range []noise.Correlation{{}, bad} {
				if err := m.EstimateWith(noise.Known{Correlation: &c}, img, size[0], size[1], nil); err != nil {
					t.Fatal(err)
				}
				for i, s := range m.Sigma {
					if s-s != 0 || s < 0 {
						t.Fatalf("scale %g: sigma %g at %d", scale, s, i)
					}
				}
			}
		}
	}
}
