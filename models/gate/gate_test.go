package gate_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/noise"
)

// sample is a slice with noise whose map is known.
type sample struct {
	w, h         int
	truth, noisy []float32
	noise        *noise.Map
}

// sigma of the noise, as in the rows of docs/quality.md.
const sigma = 6. / 255

var heads = sync.OnceValue(func() *phantom.Volume {
	return phantom.New(phantom.Spec{Seed: 11, Slices: 4, Width: 224, Height: 208, Shading: true})
})

func head(k int, kernel *noise.Kernel) sample {
	v := heads()
	s := sample{w: v.Spec.Width, h: v.Spec.Height, truth: v.Truth[k%len(v.Truth)]}
	s.add(kernel, uint64(k))
	return s
}

// add adds noise of the usual strength to the truth.
func (s *sample) add(kernel *noise.Kernel, seed uint64) {
	n := len(s.truth)
	s.noise = &noise.Map{Width: s.w, Height: s.h, Sigma: slices.Repeat([]float32{sigma}, n), Median: sigma, Correlation: kernel.Correlation()}
	s.noisy = make([]float32, n)
	s.noise.Draw(s.noisy, rand.New(rand.NewPCG(seed, 1)))
	for i, v := range s.truth {
		s.noisy[i] += v
	}
}

// left is the truth with a share of the noise: what a good denoiser returns.
func (s *sample) left(share float32) []float32 {
	out := make([]float32, len(s.truth))
	for i, v := range s.truth {
		out[i] = v + share*(s.noisy[i]-v)
	}
	return out
}

func (s *sample) check(t testing.TB, after []float32) *gate.Report {
	t.Helper()
	rep, err := gate.Check(gate.Input{Width: s.w, Height: s.h, Before: s.noisy, After: after, Noise: s.noise})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// failed lists the names of the failed checks.
func failed(r *gate.Report) string {
	var names []string
	for _, c := range r.Checks {
		if !c.Pass {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, " ")
}

// TestSilent: nothing is said against good results.
func TestSilent(t *testing.T) {
	for name, kernel := range map[string]*noise.Kernel{"white": noise.Gaussian(0, 0), "0.5": noise.Gaussian(0.5, 0.5), "1.2": noise.Gaussian(1.2, 1.2)} {
		for k := range 4 {
			s := head(k, kernel)
			for _, share := range []float32{0, 0.2, 0.5, 1} {
				if r := s.check(t, s.left(share)); !r.Pass || r.Reason != "" || r.Action != gate.OK || r.Blend != 1 {
					t.Errorf("noise %s, slice %d, %g of the noise left: %v, %s", name, k, share, r.Action, r.Reason)
				}
			}
		}
	}
}

// failure plants something into a good result.
type failure struct {
	name  string
	check string // that must find it
	plant func(s *sample, out []float32, rng *rand.Rand)
}

// tissue returns a place in tissue, away from the borders.
func (s *sample) tissue(rng *rand.Rand) (x, y int) {
	for {
		x, y = 30+rng.IntN(s.w-60), 30+rng.IntN(s.h-60)
		if v := s.truth[y*s.w+x]; v > 0.2 {
			return x, y
		}
	}
}

// blob adds a disc of the given contrast, in standard deviations of the noise.
func blob(contrast, r float64) func(*sample, []float32, *rand.Rand) {
	return func(s *sample, out []float32, rng *rand.Rand) {
		cx, cy := s.tissue(rng)
		for i := range out {
			d := math.Hypot(float64(i%s.w-cx), float64(i/s.w-cy))
			out[i] += float32(contrast * s.noise.Median / (1 + math.Exp(2*(d-r))))
		}
	}
}

// vessel takes a line away.
func vessel(contrast, width, length float64) func(*sample, []float32, *rand.Rand) {
	return func(s *sample, out []float32, rng *rand.Rand) {
		cx, cy := s.tissue(rng)
		sin, cos := math.Sincos(math.Pi * rng.Float64())
		for i := range out {
			dx, dy := float64(i%s.w-cx), float64(i/s.w-cy)
			if along, across := dx*cos+dy*sin, dy*cos-dx*sin; math.Abs(along) <= length/2 {
				out[i] -= float32(contrast * s.noise.Median / (1 + math.Exp(3*(math.Abs(across)-width/2))))
			}
		}
	}
}

// blur smooths with a Gaussian.
func blur(spread float64) func(*sample, []float32, *rand.Rand) {
	return func(s *sample, out []float32, _ *rand.Rand) {
		var taps [9]float64
		sum := 0.0
		for i := range taps {
			taps[i] = math.Exp(-float64((i-4)*(i-4)) / (2 * spread * spread))
			sum += taps[i]
		}
		for _, step := range []int{1, s.w} {
			in := slices.Clone(out)
			for i := range out {
				v := 0.0
				for j, t := range taps {
					if k := i + (j-4)*step; k >= 0 && k < len(in) {
						v += t / sum * float64(in[k])
					}
				}
				out[i] = float32(v)
			}
		}
	}
}

// louder leaves more noise than there was.
func louder(factor float32) func(*sample, []float32, *rand.Rand) {
	return func(s *sample, out []float32, _ *rand.Rand) {
		for i, v := range s.truth {
			out[i] = v + factor*(s.noisy[i]-v)
		}
	}
}

// other puts other noise in the place of the image's.
func other(factor float32) func(*sample, []float32, *rand.Rand) {
	return func(s *sample, out []float32, rng *rand.Rand) {
		s.noise.Draw(out, rng)
		for i, v := range s.truth {
			out[i] = v + factor*out[i]
		}
	}
}

var failures = []failure{
	{"hallucinated blob, radius 4, contrast 2", gate.CheckSpot, blob(2, 4)},
	{"hallucinated blob, radius 8, contrast 1", gate.CheckSpot, blob(1, 8)},
	{"removed vessel, 2 wide, 24 long, contrast 2.5", gate.CheckLine, vessel(2.5, 2, 24)},
	{"removed vessel, 1 wide, 32 long, contrast 4", gate.CheckLine, vessel(4, 1, 32)},
	{"all brighter by 1 %", gate.CheckMean, func(_ *sample, out []float32, _ *rand.Rand) {
		for i := range out {
			out[i] *= 1.01
		}
	}},
	{"32×32 pixels brighter by 5 %", gate.CheckSpot, func(s *sample, out []float32, rng *rand.Rand) {
		cx, cy := s.tissue(rng)
		for y := cy - 16; y < cy+16; y++ {
			for x := cx - 16; x < cx+16; x++ {
				out[y*s.w+x] *= 1.05
			}
		}
	}},
	{"blurred by 0.6", gate.CheckStructure, blur(0.6)},
	{"blurred by 1", gate.CheckStructure, blur(1)},
	{"noise doubled", gate.CheckAdded, louder(2)},
	{"noise 1.3 times as strong", gate.CheckAdded, louder(1.3)},
	{"other noise", gate.CheckSpectrum, other(1)},
	{"other noise, 0.8 as strong", gate.CheckSpectrum, other(0.8)},
	{"checkerboard of a quarter of the noise", gate.CheckGrid, func(s *sample, out []float32, _ *rand.Rand) {
		for i := range out {
			out[i] += sigma / 4 * float32(1-2*((i%s.w+i/s.w)&1))
		}
	}},
	{"columns of a quarter of the noise", gate.CheckGrid, func(s *sample, out []float32, _ *rand.Rand) {
		for i := range out {
			out[i] += sigma / 4 * float32(1-2*(i%s.w&1))
		}
	}},
	{"fine texture of 40×40 pixels vanishes, contrast 1.5", gate.CheckStrength, func(s *sample, out []float32,
		rng *rand.Rand) {
		cx, cy := s.tissue(rng)
		for y := cy - 20; y < cy+20; y++ {
			for x := cx - 20; x < cx+20; x++ {
				out[y*s.w+x] += float32(1.5 * s.noise.Median * float64(1-2*rng.IntN(2)))
			}
		}
	}},
	{"3 pixels of a thousand off by 6", gate.CheckRange, func(s *sample, out []float32, rng *rand.Rand) {
		for range 3 * len(out) / 1000 {
			out[rng.IntN(len(out))] += float32(6 * s.noise.Median * float64(1-2*rng.IntN(2)))
		}
	}},
	{"single wild pixels", gate.CheckRange, func(s *sample, out []float32, rng *rand.Rand) {
		for range 100 {
			out[rng.IntN(len(out))] += 1.5
		}
	}},
}

// TestPlanted: every failure is caught, by the check that is there for it.
func TestPlanted(t *testing.T) {
	white := noise.Gaussian(0, 0)
	for _, f := range failures {
		for k := range 3 {
			s := head(k, white)
			out := s.left(0.2)
			f.plant(&s, out, rand.New(rand.NewPCG(uint64(k), 3)))
			r := s.check(t, out)
			if !strings.Contains(failed(r), f.check) {
				t.Errorf("%s, slice %d: failed checks %q, want %q among them", f.name, k, failed(r), f.check)
			}
			if r.Pass || r.Reason == "" || r.Action == gate.OK || r.Blend >= 1 || (r.Action == gate.PassThrough) != (r.Blend == 0) {
				t.Errorf("%s, slice %d: %+v", f.name, k, r)
			}
		}
	}
}

// TestPlace: a spot and a line are found where they are.
func TestPlace(t *testing.T) {
	s := head(0, noise.Gaussian(0, 0))
	for name, plant := range map[string]func(*sample, []float32, *rand.Rand){gate.CheckSpot: blob(3, 4), gate.CheckLine: vessel(3, 2, 20)} {
		out := s.left(0.2)
		plant(&s, out, rand.New(rand.NewPCG(5, 5)))
		x, y := s.tissue(rand.New(rand.NewPCG(5, 5)))
		r := s.check(t, out)
		for _, c := range r.Checks {
			if c.Name == name && math.Hypot(float64(c.X-x), float64(c.Y-y)) > 16 {
				t.Errorf("%s at (%d, %d), found at (%d, %d)", name, x, y, c.X, c.Y)
			}
		}
	}
}

// TestBlend: the share that is advised makes a result pass that shifts the mean.
func TestBlend(t *testing.T) {
	s := head(1, noise.Gaussian(0, 0))
	out := s.left(0.2)
	for i := range out {
		out[i] *= 1.0095
	}
	r := s.check(t, out)
	if r.Action != gate.Blend || r.Blend < 0.6 || r.Blend > 0.9 {
		t.Fatalf("%v by %.2f: %s", r.Action, r.Blend, r.Reason)
	}
	for i, v := range s.noisy {
		out[i] = v + float32(r.Blend)*(out[i]-v)
	}
	if r := s.check(t, out); !r.Pass {
		t.Errorf("blended: %s", r.Reason)
	}
}

// TestUncertainty: a result that does not know itself is not sent.
func TestUncertainty(t *testing.T) {
	s := head(2, noise.Gaussian(0, 0))
	out := s.left(0.2)
	for value, want := range map[float32]bool{0.1 * sigma: true, 0.5 * sigma: true, sigma: false, float32(math.NaN()): false} {
		r, err := gate.Check(gate.Input{Width: s.w, Height: s.h, Before: s.noisy, After: out, Noise: s.noise, Uncertainty: slices.Repeat([]float32{value}, len(out))})
		if err != nil {
			t.Fatal(err)
		}
		if r.Pass != want {
			t.Errorf("uncertainty %g: passes %v, %s", value, r.Pass, r.Reason)
		}
	}
}

// TestSkip: what skipped pixels hold, even NaN, changes nothing.
func TestSkip(t *testing.T) {
	s := head(0, noise.Gaussian(0, 0))
	out := s.left(0.2)
	skip := make([]bool, len(out))
	for i := range skip {
		skip[i] = i/s.w < 60 && i%s.w < 60
	}
	check := func() *gate.Report {
		r, err := gate.Check(gate.Input{Width: s.w, Height: s.h, Before: s.noisy, After: out, Noise: s.noise, Skip: skip})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	want := fmt.Sprint(*check())
	for i, k := range skip {
		if k {
			s.noisy[i], out[i] = float32(math.NaN()), float32(i)
		}
	}
	if got := fmt.Sprint(*check()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.noisy[len(out)-1] = float32(math.Inf(1))
	if _, err := gate.Check(gate.Input{Width: s.w, Height: s.h, Before: s.noisy, After: out, Noise: s.noise, Skip: skip}); err == nil {
		t.Error("an infinite pixel that is not skipped gives no error")
	}
}

// TestLeaky: a result that holds some of the noise shifts no mean. What is left of its
// noise must not sort the pixels of one tissue into brighter and darker classes.
func TestLeaky(t *testing.T) {
	s := sample{w: 256, h: 256, truth: slices.Repeat([]float32{0.5}, 256*256), noisy: make([]float32, 256*256)}
	s.noise = &noise.Map{Width: s.w, Height: s.h, Sigma: slices.Repeat([]float32{sigma}, s.w*s.h), Median: sigma, Correlation: noise.White()}
	s.noise.Draw(s.noisy, rand.New(rand.NewPCG(9, 9)))
	for i, v := range s.truth {
		s.noisy[i] += v
	}
	if r := s.check(t, s.left(0.5)); !r.Pass {
		t.Error(r.Reason)
	}
}

// TestAir: air may change, tissue may not, and air must be as many pixels as the image.
func TestAir(t *testing.T) {
	s := head(0, noise.Gaussian(0, 0))
	out := s.left(0.2)
	air := make([]bool, len(out))
	for i, v := range s.truth {
		if air[i] = v == 0; air[i] {
			out[i] -= 1.5 * sigma
		}
	}
	for _, in := range []struct {
		air  []bool
		want bool
	}{{air, true}, {nil, false}} {
		r, err := gate.Check(gate.Input{Width: s.w, Height: s.h, Before: s.noisy, After: out, Noise: s.noise, Air: in.air})
		if err != nil || r.Pass != in.want {
			t.Errorf("air given: %v; %v, %v", in.air != nil, r, err)
		}
	}
	if _, err := gate.Check(gate.Input{Width: s.w, Height: s.h, Before: s.noisy, After: out, Noise: s.noise, Air: air[1:]}); err == nil {
		t.Error("air of another size is no error")
	}
}

// TestEdges: sizes that do not fit are errors; tiny, unchanged and wholly skipped
// images pass; a change without noise does not.
func TestEdges(t *testing.T) {
	flat := func(n int, v float32) []float32 { return slices.Repeat([]float32{v}, n) }
	for _, size := range [][2]int{{1, 1}, {2, 3}, {5, 5}, {7, 1}, {9, 17}, {40, 33}} {
		w, h := size[0], size[1]
		n := w * h
		m := &noise.Map{Width: w, Height: h, Sigma: flat(n, 1), Correlation: noise.White()}
		r, err := gate.Check(gate.Input{Width: w, Height: h, Before: flat(n, 5), After: flat(n, 5), Noise: m})
		if err != nil || !r.Pass {
			t.Errorf("%v unchanged: %+v, %v", size, r, err)
		}
		r, err = gate.Check(gate.Input{Width: w, Height: h, Before: flat(n, 5), After: flat(n, 7), Noise: m, Skip: slices.Repeat([]bool{true}, n)})
		if err != nil || !r.Pass {
			t.Errorf("%v skipped: %+v, %v", size, r, err)
		}
		if _, err = gate.Check(gate.Input{Width: w, Height: h, Before: flat(n, 5), After: flat(n, 5.2), Noise: m}); err != nil {
			t.Errorf("%v: %v", size, err)
		}
		none := &noise.Map{Width: w, Height: h, Sigma: flat(n, 0)}
		r, err = gate.Check(gate.Input{Width: w, Height: h, Before: flat(n, 5), After: flat(n, 5.2), Noise: none})
		if err != nil || r.Pass || r.Action != gate.PassThrough || r.Reason == "" {
			t.Errorf("%v without noise: %+v, %v", size, r, err)
		}
		for _, in := range []gate.Input{
			{Width: w, Height: h + 1, Before: flat(n, 5), After: flat(n, 5), Noise: m},
			{Width: w, Height: h, Before: flat(n, 5), After: flat(n+1, 5), Noise: m},
			{Width: w, Height: h, Before: flat(n, 5), After: flat(n, 5)},
			{Width: w, Height: h, Before: flat(n, 5), After: flat(n, 5), Noise: m, Skip: make([]bool, n+1)},
			{Width: w, Height: h, Before: flat(n, 5), After: flat(n, 5), Noise: &noise.Map{Width: h + 1, Height: w, Sigma: flat(n, 1)}},
		} {
			if _, err := gate.Check(in); err == nil {
				t.Errorf("%v: no error", size)
			}
		}
	}
}

// TestConcurrent: the same report however many run at once.
func TestConcurrent(t *testing.T) {
	s := head(3, noise.Gaussian(0.5, 0.5))
	out := s.left(0.3)
	want := fmt.Sprint(*s.check(t, out))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			r, err := gate.Check(gate.Input{Width: s.w, Height: s.h, Before: s.noisy, After: out, Noise: s.noise})
			if err != nil {
				t.Error(err)
			} else if got := fmt.Sprint(*r); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
	wg.Wait()
}

// magnitude is a head under the noise of the root of the sum of squares of coils.
func magnitude(coils int, seed uint64) sample {
	v := heads()
	s := sample{w: v.Spec.Width, h: v.Spec.Height, truth: slices.Clone(v.Truth[1])}
	s.squares(coils, seed)
	return s
}

// squares adds the noise of coils, of which one sees the truth.
func (s *sample) squares(coils int, seed uint64) {
	n := len(s.truth)
	s.noise = &noise.Map{Width: s.w, Height: s.h, Sigma: slices.Repeat([]float32{sigma}, n), Median: sigma,
		Correlation: noise.White()}
	rng := rand.New(rand.NewPCG(seed, uint64(coils)))
	s.noisy = make([]float32, n)
	for i, v := range s.truth {
		sum := 0.0
		for k := range 2 * coils {
			part := sigma * rng.NormFloat64()
			if k == 0 {
				part += float64(v)
			}
			sum += part * part
		}
		s.noisy[i] = float32(math.Sqrt(sum))
	}
}

// crop keeps the pixels at the upper left.
func (s *sample) crop(w, h int) {
	for _, px := range []*[]float32{&s.truth, &s.noisy, &s.noise.Sigma} {
		var kept []float32
		for y := range h {
			kept = append(kept, (*px)[y*s.w:][:w]...)
		}
		*px = kept
	}
	s.w, s.h, s.noise.Width, s.noise.Height = w, h, w, h
}

// TestLift: the truth passes whatever number of coils has lifted the image, with windows that
// cut it off, and what goes beyond the lift is found.
func TestLift(t *testing.T) {
	for _, coils := range []int{1, 2, 4, 12, 32} {
		for _, share := range []float32{0, 0.3, 0.6} {
			s := magnitude(coils, 1)
			if share == 0 {
				s.crop(s.w-1, s.h-1)
			}
			if r := s.check(t, s.left(share)); !r.Pass {
				t.Errorf("%d coils, %g of the noise left: %v, %s", coils, share, r.Action, r.Reason)
			}
		}
		s := magnitude(coils, 2)
		for i, v := range s.noisy {
			s.noisy[i] = min(max(v-0.5*sigma, 0), 0.8)
			s.truth[i] = min(max(s.truth[i]-0.5*sigma, 0), 0.8)
		}
		if r := s.check(t, s.truth); !r.Pass {
			t.Errorf("%d coils, cut off: %v, %s", coils, r.Action, r.Reason)
		}
	}
}

// TestBeyondLift: what a result takes off beyond the lift is found, in tissue, in dark tissue
// and in air.
func TestBeyondLift(t *testing.T) {
	square := func(x0, y0, side int) func(x, y int) bool {
		return func(x, y int) bool { return x >= x0 && x < x0+side && y >= y0 && y < y0+side }
	}
	for _, f := range []struct {
		name   string
		signal float64 // of the object, standard deviations of the noise
		in     func(x, y int) bool
		check  string
	}{
		{"spot of 5×5 in air", 3, square(12, 20, 5), gate.CheckSpot},
		{"spot of 3×3 in air", 4, square(12, 20, 3), gate.CheckSpot},
		{"line of 2 in air", 4, func(x, y int) bool { return x >= 8 && x < 10 && y >= 30 && y < 130 }, gate.CheckLine},
		{"region of 40×40 in air", 2, square(5, 5, 40), gate.CheckSpot},
		{"dark tissue", 3, square(100, 95, 40), gate.CheckSpot},
	} {
		for seed := range uint64(3) {
			s := sample{w: 224, h: 208}
			s.truth = slices.Clone(heads().Truth[1])
			for i := range s.truth {
				if x, y := i%s.w, i/s.w; f.in(x, y) {
					s.truth[i] = float32(f.signal * sigma)
				}
			}
			s.squares(1, seed)
			if r := s.check(t, s.truth); !r.Pass {
				t.Errorf("%s stays: %s", f.name, r.Reason)
			}
			out := slices.Clone(s.truth)
			for i := range out {
				if f.in(i%s.w, i/s.w) {
					out[i] = 0
				}
			}
			if r := s.check(t, out); !strings.Contains(failed(r), f.check) {
				t.Errorf("%s vanishes: failed checks %q, want %q among them", f.name, failed(r), f.check)
			}
		}
	}
	s := magnitude(1, 5)
	for i := range s.truth {
		s.truth[i] *= 1.01
	}
	if r := s.check(t, s.truth); !strings.Contains(failed(r), gate.CheckMean) {
		t.Errorf("all brighter by 1 %%: failed checks %q", failed(r))
	}
}

func BenchmarkCheck512(b *testing.B) {
	const w, h = 512, 512
	m := &noise.Map{Width: w, Height: h, Sigma: slices.Repeat([]float32{sigma}, w*h), Correlation: noise.White()}
	y, x := make([]float32, w*h), make([]float32, w*h)
	m.Draw(y, rand.New(rand.NewPCG(1, 1)))
	for i := range y {
		x[i] = float32(i%64) / 64
		y[i] += x[i]
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := gate.Check(gate.Input{Width: w, Height: h, Before: y, After: x, Noise: m}); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleCheck() {
	const w, h = 128, 128
	m := &noise.Map{Width: w, Height: h, Sigma: slices.Repeat([]float32{5}, w*h), Correlation: noise.White()}
	truth := slices.Repeat([]float32{100}, w*h)
	noisy := make([]float32, w*h)
	m.Draw(noisy, rand.New(rand.NewPCG(1, 1)))
	for i, v := range truth {
		noisy[i] += v
	}
	r, err := gate.Check(gate.Input{Width: w, Height: h, Before: noisy, After: truth, Noise: m})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r.Pass, r.Action)
	for y := 40; y < 60; y++ { // something that was not there
		for x := 70; x < 90; x++ {
			truth[y*w+x] += 5
		}
	}
	if r, err = gate.Check(gate.Input{Width: w, Height: h, Before: noisy, After: truth, Noise: m}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(r.Pass, r.Action)
	// Output:
	// true ok
	// false pass through
}
