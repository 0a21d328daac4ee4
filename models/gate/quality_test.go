package gate_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/simulate"
)

// envQuality asks for the table of docs/gate.md.
const envQuality = "DENOISED_QUALITY"

// tally counts outcomes and what raised an alarm.
type tally struct {
	n, alarms, passed int
	by                map[string]int
}

func (c *tally) add(r *gate.Report) {
	c.n++
	if r.Pass {
		return
	}
	c.alarms++
	if r.Action == gate.PassThrough {
		c.passed++
	}
	if c.by == nil {
		c.by = make(map[string]int)
	}
	for _, name := range strings.Fields(failed(r)) {
		c.by[name]++
	}
}

func (c *tally) String() string {
	var by []string
	for name, n := range c.by {
		by = append(by, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(by)
	return fmt.Sprintf("%d of %d\t%d\t%s", c.alarms, c.n, c.passed, strings.Join(by, ", "))
}

// truths are slices without added noise, 1 the 99.9th percentile of their volume.
func truths(t *testing.T) []sample {
	var out []sample
	add := func(w, h int, px []float32) { out = append(out, sample{w: w, h: h, truth: px}) }
	for seed, shading := range map[uint64]bool{515: false, 8080: true} {
		v := phantom.New(phantom.Spec{Seed: seed, Slices: 6, Shading: shading})
		for _, k := range []int{1, 2, 4} {
			add(v.Spec.Width, v.Spec.Height, v.Truth[k])
		}
	}
	dir := testdata.Dir(t)
	for _, f := range []struct {
		path string
		z    int
	}{
		{"repeats/philips_epi_x60/epi_96x96x20x60.nii.gz", 11}, {"repeats/philips_b0_x6/b0_128x128x44x6.nii.gz", 24},
		{"mri/ms_longitudinal/patient01_study1_T2W.nii.gz", 19}, {"mri/ms_longitudinal/patient04_study1_T1W.nii.gz", 31},
		{"mri/brain_gd_clinical/brain1_256x256x25.nii.gz", 10}, {"mri/fetal_haste/sub-01_run-1_T2w.nii.gz", 7},
	} {
		v, err := nifti.Read(filepath.Join(dir, f.path))
		if err != nil {
			t.Fatal(err)
		}
		n := v.Width * v.Height
		mean, buf := make([]float32, n), make([]float32, n)
		for r := range v.Repeats {
			if err := v.Slice(buf, r*v.Depth+f.z); err != nil {
				t.Fatal(err)
			}
			for i, x := range buf {
				mean[i] += x
			}
		}
		scale := slices.Sorted(slices.Values(mean))[n*999/1000]
		for i := range mean {
			mean[i] /= scale
		}
		add(v.Width, v.Height, mean)
	}
	return out
}

// TestQualityGate counts alarms on good results, on those of the embedded network,
// and on planted failures.
func TestQualityGate(t *testing.T) {
	if os.Getenv(envQuality) == "" {
		t.Skip(envQuality + " is not set")
	}
	m, err := models.Default()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := simulate.Find("Gaussian 6/255", "Gaussian 2/255", "varying 3 to 12/255", "Poisson 200", "gamma 500", "correlated 0.5", "correlated 1.2", "Rician 6/255")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]*noise.Kernel{"correlated 0.5": noise.Gaussian(0.5, 0.5), "correlated 1.2": noise.Gaussian(1.2, 1.2)}
	counts := make(map[string]*tally)
	var order []string
	count := func(name string, r *gate.Report) {
		if counts[name] == nil {
			counts[name] = new(tally)
			order = append(order, name)
		}
		counts[name].add(r)
	}
	for k, s := range truths(t) {
		for _, row := range rows {
			var sg []float32
			s.noisy, sg, s.truth = row.Noise(s.truth, s.w, s.h, rand.New(rand.NewPCG(uint64(k), 31415)))
			truthMap := &noise.Map{Width: s.w, Height: s.h, Sigma: sg, Correlation: noise.White()}
			if kernel := known[row.Name]; kernel != nil {
				truthMap.Correlation = kernel.Correlation()
			}
			estimated, err := noise.Estimate(s.noisy, s.w, s.h, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !row.Magnitude { // the truth of a magnitude is not its mean
				for _, share := range []float32{0, 0.3, 0.6} {
					s.noise = truthMap
					count(fmt.Sprintf("good: %g of the noise left, true map", share), s.check(t, s.left(share)))
					if s.noise = estimated; estimated.Median > 0 {
						count(fmt.Sprintf("good: %g of the noise left, estimated map", share), s.check(t, s.left(share)))
					}
				}
			}
			res, err := m.Denoise(context.Background(), models.Image{Width: s.w, Height: s.h, Pixels: s.noisy}, models.Options{Strength: 1})
			if err != nil {
				t.Fatal(err)
			}
			if res.Untouched == "" && res.NativeWidth == s.w && res.NativeHeight == s.h {
				s.noise = estimated
				count("embedded network, estimated map: "+row.Name, s.check(t, res.Pixels))
			}
			if row.Name != "Gaussian 6/255" && row.Name != "correlated 0.5" {
				continue
			}
			for i, f := range failures {
				rng := rand.New(rand.NewPCG(uint64(k), uint64(100+i)))
				s.noise = truthMap
				out := s.left(0.2)
				f.plant(&s, out, rng)
				count("planted, "+row.Name+": "+f.name, s.check(t, out))
			}
		}
	}
	slices.Sort(order)
	var table strings.Builder
	tab := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "result\talarms\tpassed through\tby check")
	for _, name := range order {
		c := counts[name]
		fmt.Fprintf(tab, "%s\t%v\n", name, c)
		switch rate := float64(c.alarms) / float64(c.n); {
		case strings.HasPrefix(name, "good") && (strings.HasSuffix(name, "true map") && rate > 0.05 || rate > 0.15):
			t.Errorf("%s: an alarm in %.0f %%", name, 100*rate)
		case strings.HasPrefix(name, "planted, Gaussian") && rate < 0.8:
			t.Errorf("%s: found in %.0f %%", name, 100*rate)
		}
	}
	tab.Flush()
	t.Log("\n" + table.String())
}
