package eval

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/simulate"
)

// TestReliability: of white noise that is left as it is and stated as it is, 68.3 % lies within;
// where half of it is stated, 38.3 %. Methods that state nothing have no table, nor have
// repetitions, of which nobody knows the truth.
func TestReliability(t *testing.T) {
	const sd = 6. / 255
	states := func(name string, share float32) Method {
		return Method{Name: name, Run: func(_ context.Context, in Input) (*models.Result, error) {
			r := &models.Result{Pixels: in.Pixels}
			if share > 0 {
				r.Uncertainty = slices.Repeat([]float32{share * sd * 1.0001}, len(in.Pixels))
			}
			return r, nil
		}}
	}
	c := NewCollector(3, 1)
	c.Add(volumeOf("head", 64, 64, 1, truth(6)...))
	for k, v := range repeats(truth(4), 3, sd) {
		c.Add(volumeOf("again#"+string(rune('0'+k)), 64, 64, 1, v...))
	}
	rows := []simulate.Row{{Name: "Gaussian 6/255", Noise: simulate.Gaussian(sd)},
		{Name: "Gaussian 12/255", Noise: simulate.Gaussian(2 * sd)}}
	r, err := Run(t.Context(), c, Config{Rows: rows, Methods: []Method{states("all", 1), states("half", 0.5),
		states("nothing", 0)}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.Tables {
		table := &r.Tables[i]
		for _, method := range r.Methods {
			for _, row := range table.rows() {
				m := table.mean(row, method)
				wants := table.Protocol == Simulated && row != AllRows && (method == "all" || method == "half")
				if got := m.Reliability; (got != nil) != wants {
					t.Fatalf("%s, %s, %s: reliability %v", table.Protocol, row, method, got)
				}
				if !wants {
					continue
				}
				stated := 1.
				if method == "half" {
					stated /= 2
				}
				noise := 1.
				if row == "Gaussian 12/255" {
					noise = 2
				}
				all := m.Reliability.All
				for _, c := range []struct {
					got int
					at  float64
				}{{all.One, stated / noise}, {all.Two, 2 * stated / noise}} {
					got, want := float64(c.got)/float64(all.Pixels), math.Erf(c.at/math.Sqrt2)
					// four standard deviations of chance
					if math.Abs(got-want) > 4*math.Sqrt(want*(1-want)/float64(all.Pixels)) {
						t.Errorf("%s, %s: %.3f of %d pixels lie within, want %.3f", row, method, got, all.Pixels, want)
					}
				}
				if k := rangeOf(relativeEnds, stated/noise*(1+1e-6)); m.Reliability.Relative[k].Pixels != all.Pixels {
					t.Errorf("%s, %s: not all pixels in range %d: %v", row, method, k, m.Reliability.Relative)
				}
				if k := rangeOf(absoluteEnds, 6*stated*(1+1e-6)); m.Reliability.Absolute[k].Pixels != all.Pixels {
					t.Errorf("%s, %s: not all pixels in range %d: %v", row, method, k, m.Reliability.Absolute)
				}
			}
		}
		titles := 0
		for _, g := range r.Grids(table) {
			if strings.Contains(g.Title, "σ that") {
				titles++
				for _, l := range g.Lines {
					if len(l) != len(g.Head) {
						t.Errorf("%q has a line %q under %q", g.Title, l, g.Head)
					}
				}
			}
		}
		if want := map[string]int{Simulated: 6}[table.Protocol]; titles != want {
			t.Errorf("%s: %d tables of what is stated, want %d", table.Protocol, titles, want)
		}
	}
	short := Method{Name: "short", Run: func(_ context.Context, in Input) (*models.Result, error) {
		return &models.Result{Pixels: in.Pixels, Uncertainty: make([]float32, 3)}, nil
	}}
	c = NewCollector(1, 1)
	c.Add(volumeOf("head", 64, 64, 1, truth(2)...))
	if _, err := Run(t.Context(), c, Config{Rows: rows, Methods: []Method{short}}); err == nil {
		t.Error("an uncertainty of three pixels passed")
	}
}
