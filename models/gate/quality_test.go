package gate_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/simulate"
)

const (
	// envQuality asks for the tables of measured, which it writes.
	envQuality = "DENOISED_QUALITY"
	measured   = "../../docs/measured/gate.md"
)

// tally counts outcomes and what raised an alarm.
type tally struct {
	n, blended, refused int
	by, alone           map[string]int // alarms by check, and those that no other raised
}

func (c *tally) add(r *gate.Report) {
	c.n++
	switch r.Action {
	case gate.Blend:
		c.blended++
	case gate.PassThrough:
		c.refused++
	}
	if c.by == nil {
		c.by, c.alone = make(map[string]int), make(map[string]int)
	}
	names := strings.Fields(failed(r))
	for _, name := range names {
		c.by[name]++
	}
	if len(names) == 1 {
		c.alone[names[0]]++
	}
}

func (c *tally) alarms() float64 { return float64(c.blended+c.refused) / float64(max(c.n, 1)) }

// table counts by row.
type table struct {
	counts map[string]*tally
}

func (t *table) add(row string, r *gate.Report) {
	if t.counts == nil {
		t.counts = make(map[string]*tally)
	}
	if t.counts[row] == nil {
		t.counts[row] = new(tally)
	}
	t.counts[row].add(r)
}

func (t *table) rows() []string { return slices.Sorted(maps.Keys(t.counts)) }

func (t *table) String() string {
	var s strings.Builder
	s.WriteString("| result | of | refused | blended | by check, and by no other |\n|---|---|---|---|---|\n")
	for _, row := range t.rows() {
		c := t.counts[row]
		var by []string
		for name, n := range c.by {
			text := fmt.Sprintf("%s %d", name, n)
			if alone := c.alone[name]; alone > 0 {
				text += fmt.Sprintf(" (%d)", alone)
			}
			by = append(by, text)
		}
		slices.Sort(by)
		fmt.Fprintf(&s, "| %s | %d | %d | %d | %s |\n", row, c.n, c.refused, c.blended, strings.Join(by, ", "))
	}
	return s.String()
}

// picture is a slice without added noise, 1 its 99.9th percentile.
type picture struct {
	w, h int
	px   []float32
}

// pictures are slices of one half: those that the limits were chosen on, or the others.
func pictures(t testing.TB, tuned bool) []picture {
	var out []picture
	add := func(w, h int, px []float32) {
		scale := slices.Sorted(slices.Values(px))[len(px)*999/1000]
		p := picture{w, h, make([]float32, len(px))}
		for i, v := range px {
			p.px[i] = v / scale
		}
		out = append(out, p)
	}
	half := 0
	if tuned {
		half = 1
	}
	specs := []phantom.Spec{{Seed: 515}, {Seed: 8080, Shading: true}, {Seed: 77, Shading: true, Width: 320,
		Height: 288}}
	for k, spec := range specs {
		spec.Seed += uint64(1000 * half)
		spec.Slices = 6
		v := phantom.New(spec)
		add(v.Spec.Width, v.Spec.Height, v.Truth[1+k])
		add(v.Spec.Width, v.Spec.Height, v.Truth[3])
	}
	dir := testdata.Dir(t)
	for _, f := range []struct {
		path string
		z    []int
	}{
		{"brain_gd_clinical/brain1_256x256x25.nii.gz", []int{7, 10, 13, 16}},
		{"philips_mprage/mprage_sag_256.nii.gz", []int{10, 16, 22, 28}},
		{"ms_longitudinal/patient20_study2_T1W.nii.gz", []int{12, 20}},
		{"ms_longitudinal/patient20_study2_FLAIR.nii.gz", []int{14, 22}},
	} {
		v, err := nifti.Read(filepath.Join(dir, "mri", f.path))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]float32, v.Width*v.Height)
		for k, z := range f.z {
			if k%2 != half {
				continue
			}
			if err := v.Slice(buf, z); err != nil {
				t.Fatal(err)
			}
			add(v.Width, v.Height, buf)
		}
	}
	return out
}

// misjudged returns the map times 1 ± 0.15, which varies slowly over the image.
func misjudged(m *noise.Map, rng *rand.Rand) *noise.Map {
	out := *m
	out.Sigma = make([]float32, len(m.Sigma))
	px, py := 2*math.Pi*rng.Float64(), 2*math.Pi*rng.Float64()
	for i, s := range m.Sigma {
		x, y := float64(i%m.Width)/float64(m.Width), float64(i/m.Width)/float64(m.Height)
		out.Sigma[i] = s * float32(1+0.15*math.Sin(4*x+px)*math.Sin(4*y+py))
	}
	return &out
}

// smoothed is the truth with half of the noise, whose fine part is taken off: what many
// denoisers leave.
func (s *sample) smoothed() []float32 {
	out := make([]float32, len(s.truth))
	for i, v := range s.truth {
		out[i] = (s.noisy[i] - v) / 2
	}
	blur(1)(s, out, nil)
	for i, v := range s.truth {
		out[i] += v
	}
	return out
}

// scanned sends a picture through a chain; the noise of the sample is what the chain knows.
func scanned(t testing.TB, row simulate.ChainRow, p picture, seed uint64) sample {
	a, err := row.Chain(p.w, p.h).Run(p.px, p.w, p.h, rand.New(rand.NewPCG(seed, 2718)))
	if err != nil {
		t.Fatal(err)
	}
	m := &noise.Map{Width: a.Width, Height: a.Height, Sigma: a.Sigma, Correlation: noise.Correlation{Rho: a.Rho,
		Trust: 1}}
	m.Median = float64(slices.Sorted(slices.Values(a.Sigma))[len(a.Sigma)/2])
	return sample{w: a.Width, h: a.Height, truth: a.Truth, noisy: a.Noisy, noise: m}
}

// result is what a denoiser may return.
type result struct {
	name string
	px   []float32
}

// good are results that are to pass.
func (s *sample) good() []result {
	return []result{
		{"the truth", s.left(0)}, {"0.3 of the noise left", s.left(0.3)}, {"0.6 of the noise left", s.left(0.6)},
		{"smooth noise left", s.smoothed()},
	}
}

// faulty are the chains that faults are planted on: zero-filled by 1.31 and by 2.
var faulty = []string{"adaptive combination, zero-filled ×1.31", "Hamming, ×2"}

// faults are planted into results on correlated noise.
var faults = []failure{
	{"removed vessel, 2 wide, 32 long, contrast 4", gate.CheckLine, vessel(4, 2, 32)},
	{"hallucinated blob, radius 6, contrast 3", gate.CheckSpot, blob(3, 6)},
	{"removed lesion, radius 5, contrast 4", gate.CheckSpot, blob(-4, 5)},
	{"blurred by 1", gate.CheckStructure, blur(1)},
}

// TestQualityGate counts alarms on good results and on planted failures.
func TestQualityGate(t *testing.T) {
	if os.Getenv(envQuality) == "" {
		t.Skip(envQuality + " is not set")
	}
	var good, planted, chains table
	for k, p := range pictures(t, false) {
		for j, row := range simulate.ChainRows() {
			s := scanned(t, row, p, uint64(100*k+j))
			known := s.noise
			rng := rand.New(rand.NewPCG(uint64(k), uint64(j)))
			for _, g := range s.good() {
				s.noise = known
				r := s.check(t, g.px)
				good.add(row.Name, r)
				good.add("all: "+g.name, r)
				for range 2 {
					s.noise = misjudged(known, rng)
					r := s.check(t, g.px)
					good.add(row.Name+", map misjudged", r)
					good.add("all, map misjudged: "+g.name, r)
				}
			}
			if !slices.Contains(faulty, row.Name) {
				continue
			}
			s.noise = known
			for i, f := range faults {
				out := s.left(0.2)
				f.plant(&s, out, rand.New(rand.NewPCG(uint64(k), uint64(100+i))))
				chains.add(row.Name+": "+f.name, s.check(t, out))
			}
		}
		for name, spread := range map[string]float64{"Gaussian 6/255": 0, "correlated 0.5": 0.5} {
			s := sample{w: p.w, h: p.h, truth: p.px}
			s.add(noise.Gaussian(spread, spread), uint64(k))
			for i, f := range failures {
				out := s.left(0.2)
				f.plant(&s, out, rand.New(rand.NewPCG(uint64(k), uint64(100+i))))
				planted.add(name+": "+f.name, s.check(t, out))
			}
		}
	}
	text := fmt.Sprintf("# What does the gate find?\n\nWritten by TestQualityGate ([gate.md](../gate.md)).\n\n"+
		"## Good results\n\n%s\n## Planted failures\n\n%s\n## Planted failures on what scanners store\n\n%s",
		&good, &planted, &chains)
	t.Log("\n" + text)
	for _, row := range good.rows() {
		most := 0.1
		if strings.HasPrefix(row, "all") {
			most = 0.05
		}
		if rate := good.counts[row].alarms(); rate > most {
			t.Errorf("%s: an alarm in %.0f %%", row, 100*rate)
		}
	}
	for _, c := range []*table{&planted, &chains} {
		for _, row := range c.rows() {
			if rate := c.counts[row].alarms(); rate < 0.75 {
				t.Errorf("%s: found in %.0f %%", row, 100*rate)
			}
		}
	}
	if err := os.WriteFile(measured, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
