package train

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/models/store"
)

// soft is a radiograph without any noise, and without edges.
func soft(side int) Slice {
	s := Slice{Width: side, Height: side, Pixels: make([]float32, side*side), Radiograph: true}
	for i := range s.Pixels {
		x, y := float64(i%side), float64(i/side)
		s.Pixels[i] = float32(0.5 + 0.2*math.Sin(x/40) + 0.15*math.Cos(y/55))
	}
	return s
}

// TestDetect: a detector's scenes have the noise that they say, strength and correlation, and the
// target is what is stored without it; what a collimator covers has none.
func TestDetect(t *testing.T) {
	const side = 96
	s := soft(400)
	var ratios []float64
	var apart float64
	scenes, covered := 0, 0
	for seed := range uint64(80) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p, w, h := take([]Slice{s}, side, sceneSides*side+64, rng)
		sc, target, err := detect(p, w, h, side, rng)
		if err != nil {
			t.Fatal(err)
		}
		if min(sc.w, sc.h) < side || len(sc.noisy) != sc.w*sc.h || len(target) != len(sc.noisy) ||
			len(sc.sigma) != len(sc.noisy) || len(sc.clean) != len(sc.noisy) {
			t.Fatalf("scene of %d×%d, %d and %d values", sc.w, sc.h, len(sc.noisy), len(target))
		}
		var power, n float64
		lag := [2]float64{}
		unit := make([]float64, len(target))
		for i, v := range target {
			if v != sc.clean[i] {
				t.Fatal("without noise of its own the target is not the image")
			}
			if sc.noisy[i] == v && (v == 0 || v == 1.2) {
				covered++
				continue
			}
			unit[i] = float64(sc.noisy[i]-v) / float64(sc.sigma[i])
			if math.IsNaN(unit[i]) {
				t.Fatalf("scene %d: %g against %g, noise %g", seed, sc.noisy[i], v, sc.sigma[i])
			}
			power, n = power+unit[i]*unit[i], n+1
		}
		for i := range unit[:len(unit)-sc.w] {
			if unit[i] != 0 && i%sc.w+1 < sc.w {
				lag[0] += unit[i] * unit[i+1]
				lag[1] += unit[i] * unit[i+sc.w]
			}
		}
		scenes++
		ratios = append(ratios, math.Sqrt(power/n))
		apart += math.Abs(lag[0]/power-sc.correlation.At(1, 0)) + math.Abs(lag[1]/power-sc.correlation.At(0, 1))
	}
	slices.Sort(ratios)
	if m := ratios[len(ratios)/2]; math.Abs(m-1) > 0.03 {
		t.Errorf("noise is %.3f of what is stated in the median", m)
	}
	// few quanta behind a logarithm, 8 bits and what is cut off at the ends are not in what is stated
	if a, b := ratios[len(ratios)/20], ratios[len(ratios)*19/20]; a < 0.85 || b > 1.15 {
		t.Errorf("nine scenes in ten have %.3f to %.3f of the noise that is stated", a, b)
	}
	if m := apart / float64(2*scenes); m > 0.05 {
		t.Errorf("correlations are off by %.3f in the mean", m)
	}
	if covered == 0 {
		t.Error("no scene is collimated")
	}
}

// TestResampled: a constant stays, and of white noise is left what is stated.
func TestResampled(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, size := range []int{150, 200, 260} {
		const n = 200
		flat, white := make([]float32, n*n), make([]float32, n*n)
		for i := range flat {
			flat[i], white[i] = 0.7, float32(rng.NormFloat64())
		}
		out, _ := resampled(flat, n, size)
		for i, v := range out {
			if math.Abs(float64(v)-0.7) > 1e-5 || len(out) != size*size {
				t.Fatalf("%d to %d: pixel %d of %d is %g", n, size, i, len(out), v)
			}
		}
		out, gain := resampled(white, n, size)
		sum := 0.0
		for _, v := range out {
			sum += float64(v) * float64(v)
		}
		if got := math.Sqrt(sum / float64(len(out))); math.Abs(got/gain-1) > 0.03 {
			t.Errorf("%d to %d: %.3f of the noise is left, stated %.3f", n, size, got, gain)
		}
	}
}

// TestSetKind: of which kind a set is, its modality says, or the one who asks.
func TestSetKind(t *testing.T) {
	for _, c := range []struct {
		modality    string
		asked, want store.Kind
	}{
		{"DX", "", store.Radiograph},
		{"CR", "", store.Radiograph},
		{"MR", "", store.MR},
		{"", "", store.MR},
		{"", store.Radiograph, store.Radiograph},
		{"DX", store.MR, store.MR},
	} {
		b := NewBuilder(Options{Kind: c.asked, Workers: 1})
		rng := rand.New(rand.NewPCG(1, 1))
		for k := range MinSlices + 1 {
			s := soft(64)
			for i := range s.Pixels {
				s.Pixels[i] += float32(0.02 * rng.NormFloat64())
			}
			v := dataset.Volume{Source: string(rune('a' + k)), Modality: c.modality, Slices: 1,
				Read: func(int) (dataset.Image, error) {
					return dataset.Image{Width: 64, Height: 64, Pixels: slices.Clone(s.Pixels)}, nil
				}}
			if err := b.Add(context.Background(), v); err != nil {
				t.Fatal(err)
			}
		}
		set, err := b.Build(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if set.Kind != c.want || set.Train[0].Radiograph != (c.want == store.Radiograph) || set.Train[0].Cropped {
			t.Errorf("modality %q, asked for %q: kind %q, slices %+v", c.modality, c.asked, set.Kind,
				set.Train[0].Radiograph)
		}
	}
}

// TestFrom: a training that goes on from a model begins with its parameters, and refuses one of
// another architecture.
func TestFrom(t *testing.T) {
	m, err := store.Default()
	if err != nil {
		t.Fatal(err)
	}
	tune, err := FindPreset("tune")
	if err != nil {
		t.Fatal(err)
	}
	tiny, err := FindPreset("tiny")
	if err != nil {
		t.Fatal(err)
	}
	graphs := map[string]*stage{
		StageStudent:   {name: StageStudent, graph: tune.Student.Graph(), architecture: tune.Student.String()},
		StageMeter:     {name: StageMeter, graph: tune.Meter.Graph(), architecture: tune.Meter.String()},
		StageBSN:       {name: StageBSN, graph: tune.BSN.Graph(), architecture: tune.BSN.String()},
		StageDiffusion: {name: StageDiffusion, graph: tune.Diffusion.Graph(), architecture: tune.Diffusion.String()},
	}
	for name, s := range graphs {
		tr := &training{Config: Config{From: store.DefaultName}, preset: tune}
		params, err := tr.from(s)
		if err != nil {
			t.Fatal(err)
		}
		f, err := m.Network(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.graph.CheckParams(params); err != nil {
			t.Fatal(err)
		}
		if p := s.graph.Params[0].Name; !slices.Equal(params[0], f.Tensors[p].Data) {
			t.Errorf("%s does not begin with the model's %s", name, p)
		}
	}
	for name, s := range map[string]*stage{
		StageStudent: {name: StageStudent, graph: tiny.Student.Graph(), architecture: tiny.Student.String()},
		StageMeter:   {name: StageMeter, graph: tiny.Meter.Graph(), architecture: tiny.Meter.String()},
	} {
		tr := &training{Config: Config{From: store.DefaultName}, preset: tiny}
		if _, err := tr.from(s); err == nil || !strings.Contains(err.Error(), "--preset") {
			t.Errorf("%s of another architecture: %v", name, err)
		}
	}
	tr := &training{Config: Config{From: "nowhere"}, preset: tune}
	if _, err := tr.from(graphs[StageMeter]); err == nil {
		t.Error("a model that is not there: no error")
	}
	tr.From = ""
	if p, err := tr.from(graphs[StageMeter]); p != nil || err != nil {
		t.Errorf("from nothing: %v, %v", p, err)
	}
}
