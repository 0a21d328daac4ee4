package noise_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/simulate"
)

// off is the largest |log(estimated/true strength)| of the median tissue pixel that
// a row may have, the median over phantom slices. docs/noise.md has what is measured.
var off = map[string]float64{
	"Gaussian 6/255": 0.17, "Gaussian 2/255": 0.22, "Gaussian 12/255": 0.15, "varying 3 to 12/255": 0.2,
	"Poisson 200": 0.13, "Poisson 700": 0.17, "gamma 100": 0.15, "gamma 500": 0.2,
	"correlated 0.5": 0.3, "correlated 1.2": 0.35, "Rician 6/255": 0.15, "Rician 10/255": 0.15,
	"zero-filled 1.31": 0.3, "zero-filled 2": 0.6, "zero-filled 1.31, magnitude": 0.35, "zero-filled 2, magnitude": 0.75,
}

// TestQualityStrength holds the estimate to the true strength in tissue, on slices
// that no setting was chosen on.
func TestQualityStrength(t *testing.T) {
	t.Run("phantom", func(t *testing.T) {
		strengths(t, append(phantoms(515, false, 1, 4), phantoms(8080, true, 2)...), off)
	})
	t.Run("real", func(t *testing.T) {
		if !full() {
			t.Skip(envQuality + " is not set")
		}
		strengths(t, pictures(t, fresh), nil)
	})
}

func strengths(t *testing.T, pics []picture, limits map[string]float64) {
	var table strings.Builder
	tab := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "row\tfound\tmedian |log|\tworst\tmedian log\tcorrelation at (1, 0), (2, 0), (0, 1)\ttrust")
	for _, r := range simulate.Rows() {
		var offs, logs, rho1, rho2, rhoY, trust []float64
		for i, p := range pics {
			y, sigma, ref := r.Noise(p.px, p.w, p.h, rand.New(rand.NewPCG(uint64(i), freshSeed)))
			g, err := noise.Detect(y, p.w, p.h)
			if err != nil {
				t.Fatal(err)
			}
			m, native, outside := new(noise.Map), g.Crop(nil, y), noise.Outside(nil, y, p.w, p.h, nil)
			if err := m.EstimateWith(noise.Known{Air: noise.Air(g, y, native, outside)}, native, g.NativeWidth, g.NativeHeight, g.Mask(nil, outside)); err != nil {
				t.Fatal(err)
			}
			c := m.Correlation
			rho1, rho2, rhoY, trust = append(rho1, c.At(1, 0)), append(rho2, c.At(2, 0)), append(rhoY, c.At(0, 1)), append(trust, c.Trust)
			if m.Median == 0 {
				continue
			}
			nativeRef, nativeSigma := g.Crop(nil, ref), g.Crop(nil, sigma)
			var a, l []float64
			for k, v := range nativeRef {
				if v >= tissue {
					d := math.Log(float64(m.Sigma[k]) / float64(nativeSigma[k]))
					a, l = append(a, math.Abs(d)), append(l, d)
				}
			}
			offs, logs = append(offs, middle(a)), append(logs, middle(l))
		}
		if len(offs) == 0 {
			offs, logs = []float64{math.Inf(1)}, []float64{math.Inf(1)}
		}
		fmt.Fprintf(tab, "%s\t%d of %d\t%.2f\t%.2f\t%+.2f\t%.2f, %.2f, %.2f\t%.2f\n", r.Name, len(offs), len(pics), middle(offs), slices.Max(offs), middle(logs), mean(rho1), mean(rho2), mean(rhoY), mean(trust))
		if limit, ok := limits[r.Name]; ok && !(middle(offs) <= limit) {
			t.Errorf("%s: off by a factor of e^%.2f, want at most %.2f", r.Name, middle(offs), limit)
		}
	}
	tab.Flush()
	t.Logf("%d slices\n%s", len(pics), table.String())
}

// TestPhantomPairs holds the estimate to the noise of real phantoms, which is what
// differs between two acquisitions, in the central quarter. In two of them drift adds
// to that; what is drift is common to a neighbourhood and taken off.
func TestPhantomPairs(t *testing.T) {
	dir := filepath.Join(testdata.Dir(t), "repeats", "phantom_pairs")
	for _, name := range []string{"aera_tra", "sola_body_ax", "sola_body_cor", "sola_headneck", "sola_knee", "sola_breast"} {
		refused := ""
		a := frame(t, filepath.Join(dir, name, "acq1.dcm"), &refused)
		b := frame(t, filepath.Join(dir, name, "acq2.dcm"), &refused)
		if a == nil || b == nil {
			t.Logf("%s: %s", name, refused)
			continue
		}
		w, h := a.Width, a.Height
		m := estimate(t, a.Pixels, w, h, a.Skip)
		// drift: the mean difference over 16×16 pixels
		var sum, n float64
		var sigma []float64
		for y0 := h * 3 / 8; y0+16 <= h*5/8; y0 += 16 {
			for x0 := w * 3 / 8; x0+16 <= w*5/8; x0 += 16 {
				var s, ss float64
				for y := y0; y < y0+16; y++ {
					for x := x0; x < x0+16; x++ {
						d := float64(a.Pixels[y*w+x] - b.Pixels[y*w+x])
						s, ss = s+d, ss+d*d
						sigma = append(sigma, float64(m.Sigma[y*w+x]))
					}
				}
				sum, n = sum+ss-s*s/256, n+255
			}
		}
		truth := math.Sqrt(sum / n / 2)
		ratio := middle(sigma) / truth
		t.Logf("%s: true %.2f, estimated %.2f, ratio %.2f; correlation %.2f, %.2f along x, %.2f along y, %.2f diagonal, trust %.2f", name, truth, middle(sigma), ratio,
			m.Correlation.At(1, 0), m.Correlation.At(2, 0), m.Correlation.At(0, 1), m.Correlation.At(1, 1), m.Correlation.Trust)
		if name != "sola_breast" && (ratio < 1/1.5 || ratio > 1.5) {
			t.Errorf("%s: estimated noise is %.2f times the true one", name, ratio)
		}
	}
}
