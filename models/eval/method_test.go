package eval

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/score"
	"github.com/diffdenoise/denoised/models/simulate"
)

func run(t *testing.T, f filter, in Input) []float32 {
	t.Helper()
	kept := slices.Clone(in.Pixels)
	out, err := f(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(kept, in.Pixels) {
		t.Fatal("the input was changed")
	}
	return out
}

func noisyInput(w, h int) Input {
	rng := rand.New(rand.NewPCG(1, 2))
	in := Input{Width: w, Height: h, Pixels: make([]float32, w*h), Sigma: make([]float32, w*h), Strength: 0.7}
	for i := range in.Pixels {
		in.Sigma[i] = 0.02 + 0.06*float32(i%w)/float32(w)
		in.Pixels[i] = float32(i/w)/float32(h) + in.Sigma[i]*float32(rng.NormFloat64())
	}
	return in
}

// TestMirror meets the border once.
func TestMirror(t *testing.T) {
	for i, want := range []int{2, 1, 0, 1, 2, 3, 2, 1, 0, 1} { // places -2 … 7 of 4
		if got := mirror(i-2, 4); got != want {
			t.Errorf("place %d of 4 is reflected to %d, want %d", i-2, got, want)
		}
	}
}

func TestWaveletNoise(t *testing.T) {
	const w, h = 201, 150
	rng := rand.New(rand.NewPCG(4, 4))
	px := make([]float32, w*h)
	for i := range px {
		px[i] = 2*float32(i%w)/w - float32(i/w)/h // a plane has no diagonal part
		if i/w > h/2 {
			px[i] = 0 // blanked
			continue
		}
		px[i] += 0.05 * float32(rng.NormFloat64())
	}
	if got := waveletNoise(px, w, h); math.Abs(got/0.05-1) > 0.05 {
		t.Errorf("noise of 0.05 is taken for %.4f", got)
	}
	if got := waveletNoise(make([]float32, 64), 8, 8); got != 0 {
		t.Errorf("an empty image has noise of %g", got)
	}
	// an estimated method is not told, and is as good as one that is where the noise is white
	in := noisyInput(96, 80)
	for i := range in.Pixels {
		in.Sigma[i] = 0.04
		in.Pixels[i] = float32(i/96)/80 + 0.04*float32(rng.NormFloat64())
	}
	in.Strength = 0.8
	told := run(t, nlm(false), in)
	in.Sigma, in.Strength = nil, 0
	r, err := filter(nlm(false)).estimated(0.8)(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if d := math.Sqrt(score.MSE(told, r.Pixels)); d > 0.004 {
		t.Errorf("estimated and told differ by %.4f", d)
	}
}

// TestNLM compares with the definition, pixel by pixel.
func TestNLM(t *testing.T) {
	const w, h = 24, 19
	in := noisyInput(w, h)
	at := func(x, y int) float64 { return float64(in.Pixels[mirror(y, h)*w+mirror(x, w)]) }
	for _, rician := range []bool{false, true} {
		out := run(t, nlm(rician), in)
		for _, p := range [][2]int{{12, 9}, {0, 0}, {23, 18}, {3, 17}} {
			x, y := p[0], p[1]
			s := float64(in.Sigma[y*w+x])
			sum, weights, best := 0.0, 0.0, 0.0
			value := func(v float64) float64 {
				if rician {
					return v * v
				}
				return v
			}
			for dy := -5; dy <= 5; dy++ {
				for dx := -5; dx <= 5; dx++ {
					if dx == 0 && dy == 0 {
						continue
					}
					d := 0.0
					for v := -2; v <= 2; v++ {
						for u := -2; u <= 2; u++ {
							e := at(x+u, y+v) - at(x+dx+u, y+dy+v)
							d += e * e / 25
						}
					}
					g := math.Exp(-max(d-2*s*s, 0) / (0.7 * s * 0.7 * s))
					sum, weights, best = sum+g*value(at(x+dx, y+dy)), weights+g, max(best, g)
				}
			}
			want := (sum + best*value(at(x, y))) / (weights + best)
			if rician {
				want = math.Sqrt(max(want-2*s*s, 0))
			}
			if got := float64(out[y*w+x]); math.Abs(got-want) > 2e-3*s {
				t.Errorf("Rician %t, pixel %v: %.6f, by definition %.6f", rician, p, got, want)
			}
		}
	}
}

// TestTotalVariationStep uses a case with a known answer: of a step between two
// halves of n columns each side comes nearer by λ/n.
func TestTotalVariationStep(t *testing.T) {
	const w, h, sigma, strength = 16, 12, 0.1, 0.8
	in := Input{Width: w, Height: h, Pixels: make([]float32, w*h), Sigma: make([]float32, w*h), Strength: strength}
	for i := range in.Pixels {
		in.Sigma[i] = sigma
		if i%w >= w/2 {
			in.Pixels[i] = 1
		}
	}
	out := run(t, totalVariation, in)
	for i, v := range out {
		want := sigma * strength / (w / 2)
		if i%w >= w/2 {
			want = 1 - want
		}
		if math.Abs(float64(v)-want) > 0.01*sigma {
			t.Fatalf("pixel (%d, %d): %.5f, want %.5f", i%w, i/w, v, want)
		}
	}
}

func TestTotalVariationConverged(t *testing.T) {
	in := noisyInput(64, 48)
	a := run(t, totalVariation, in)
	b, err := totalVariationIn(t.Context(), in, 2*tvSteps)
	if err != nil {
		t.Fatal(err)
	}
	if d := math.Sqrt(score.MSE(a, b)); d > 0.01*0.05 {
		t.Errorf("twice the steps change the result by %.5f, the noise being 0.05", d)
	}
}

// pixels is a method without its verdict.
func pixels(m Method) filter {
	return func(ctx context.Context, in Input) ([]float32, error) {
		r, err := m.Run(ctx, in)
		if err != nil {
			return nil, err
		}
		return r.Pixels, nil
	}
}

// TestClassicalGain holds every method to a gain over the noisy phantom, for none
// of them may be a straw man.
func TestClassicalGain(t *testing.T) {
	v := phantom.New(phantom.Spec{Width: 128, Height: 128, Slices: 3})
	rows, err := simulate.Find("Gaussian 6/255", "Rician 6/255", "varying 3 to 12/255")
	if err != nil {
		t.Fatal(err)
	}
	floor := map[string][]float64{ // by row
		"non-local means, estimated": {2.5, 0.6, 1}, "total variation, estimated": {2, 0.5, 1},
		"non-local means": {3, 0.6, 4.5}, "non-local means, Rician": {0, 4, 0}, "total variation": {2.5, 0.6, 4},
	}
	for k, row := range rows {
		y, s, ref := row.Noise(v.Truth[1], 128, 128, rand.New(rand.NewPCG(5, 5)))
		for _, m := range Classical() {
			if m.Magnitude && !row.Magnitude {
				continue
			}
			best := math.Inf(-1)
			strengths := m.Strengths
			if strengths == nil {
				strengths = []float64{0} // it has one of its own
			}
			for _, strength := range strengths {
				out := run(t, pixels(m), Input{Width: 128, Height: 128, Pixels: y, Sigma: s, Strength: strength})
				best = max(best, score.PSNR(out, ref, 1)-score.PSNR(y, ref, 1))
			}
			t.Logf("%s, %s: %+.2f dB", row.Name, m.Name, best)
			if best < floor[m.Name][k] {
				t.Errorf("%s, %s: gains %.2f dB, want at least %.1f", row.Name, m.Name, best, floor[m.Name][k])
			}
		}
	}
}

func TestMethodsRefuse(t *testing.T) {
	good := noisyInput(8, 8)
	for _, m := range Classical() {
		for name, in := range map[string]Input{
			"pixels":   {Width: 9, Height: 8, Pixels: good.Pixels, Sigma: good.Sigma, Strength: 1},
			"no noise": {Width: 8, Height: 8, Pixels: good.Pixels, Strength: 1},
			"strength": {Width: 8, Height: 8, Pixels: good.Pixels, Sigma: good.Sigma},
			"size":     {Width: math.MaxInt, Height: math.MaxInt, Pixels: good.Pixels[:1], Sigma: good.Sigma[:1], Strength: 1},
		} {
			if m.Strengths == nil && (name == "no noise" || name == "strength") {
				continue // it finds both out by itself
			}
			if _, err := m.Run(t.Context(), in); err == nil {
				t.Errorf("%s takes wrong %s", m.Name, name)
			}
		}
		// an image smaller than the windows, without noise
		out := run(t, pixels(m), Input{Width: 2, Height: 1, Pixels: []float32{1, 1}, Sigma: []float32{0, 0},
			Strength: 1})
		if math.Abs(float64(out[0])-1) > 1e-5 {
			t.Errorf("%s changes a constant image to %v", m.Name, out)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := totalVariation(ctx, good); err == nil {
		t.Error("a cancelled context is not seen")
	}
	if _, err := nlm(false)(ctx, good); err == nil {
		t.Error("a cancelled context is not seen")
	}
}
