package eval

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/simulate"
)

// volumeOf is a Volume of the given slices, in some unit.
func volumeOf(source string, w, h int, unit float32, px ...[]float32) dataset.Volume {
	return dataset.Volume{Source: source, Slices: len(px), Read: func(k int) (dataset.Image, error) {
		img := dataset.Image{Width: w, Height: h, Pixels: slices.Clone(px[k])}
		for i := range img.Pixels {
			img.Pixels[i] *= unit
		}
		return img, nil
	}}
}

func truth(n int) [][]float32 {
	return phantom.New(phantom.Spec{Seed: 4, Width: 64, Height: 64, Slices: n}).Truth
}

// repeats are n acquisitions of a volume with Gaussian noise of the given strength.
func repeats(truth [][]float32, n int, sd float64) [][][]float32 {
	rng := rand.New(rand.NewPCG(8, 8))
	var list [][][]float32
	for range n {
		var v [][]float32
		for _, t := range truth {
			y, _, _ := simulate.Gaussian(sd)(t, 64, 64, rng)
			v = append(v, y)
		}
		list = append(list, v)
	}
	return list
}

func TestPlaces(t *testing.T) {
	for _, c := range []struct {
		depth, n   int
		margin     float64
		test, tune []int
	}{
		{40, 3, 0.15, []int{10, 20, 29}, []int{15, 24}},
		{1, 3, 0.15, []int{0}, nil},
		{2, 3, 0.15, []int{1}, []int{0}},
		{5, 9, 0, []int{0, 1, 3, 4}, []int{2}},
	} {
		test, tune := places(c.depth, c.n, c.margin)
		if !slices.Equal(test, c.test) || !slices.Equal(tune, c.tune) {
			t.Errorf("%d of %d slices: %v scored, %v tuned on, want %v and %v", c.n, c.depth, test, tune, c.test, c.tune)
		}
	}
	for depth := 1; depth < 60; depth++ {
		for n := 1; n < 12; n++ {
			test, tune := places(depth, n, margin)
			all := slices.Concat(test, tune)
			slices.Sort(all)
			if len(slices.Compact(slices.Clone(all))) != len(all) || all[0] < 0 || all[len(all)-1] >= depth || depth > 1 && len(tune) == 0 {
				t.Fatalf("%d of %d slices: %v scored, %v tuned on", n, depth, test, tune)
			}
		}
	}
}

func TestTissue(t *testing.T) {
	const w, h = 60, 50
	px := make([]float32, w*h)
	for i := range px {
		px[i] = 0.02
		if x, y := i%w, i/w; x >= 20 && x < 40 && y >= 15 && y < 35 {
			px[i] = 0.8
		}
	}
	px[25*w+30] = 0 // a hole that the closing fills
	mask := Tissue(px, w, h)
	for i, in := range mask {
		x, y := i%w, i/w
		if want := x >= 20 && x < 40 && y >= 15 && y < 35; in != want {
			t.Fatalf("pixel (%d, %d): %t", x, y, in)
		}
	}
	if Tissue(make([]float32, w*h), w, h) != nil {
		t.Error("an empty image has tissue")
	}
	clear(px)
	px[0] = 1
	if Tissue(px, w, h) != nil {
		t.Error("a single pixel is tissue")
	}
}

// TestNear compares with the definition.
func TestNear(t *testing.T) {
	const w, h = 17, 11
	rng := rand.New(rand.NewPCG(3, 3))
	mask := make([]bool, w*h)
	for i := range mask {
		mask[i] = rng.IntN(25) == 0
	}
	for _, radius := range []int{1, 3, 20} {
		got := near(mask, w, h, radius)
		for i := range mask {
			want := false
			for k, in := range mask {
				dx, dy := k%w-i%w, k/w-i/w
				want = want || in && dx*dx+dy*dy <= radius*radius
			}
			if got[i] != want {
				t.Fatalf("radius %d, pixel (%d, %d): %t", radius, i%w, i/w, got[i])
			}
		}
	}
}

// TestCollectorRefuses adds what cannot be scored; each is recorded with its
// reason, and with nothing else there is nothing to run.
func TestCollectorRefuses(t *testing.T) {
	good := truth(3)
	nan := slices.Clone(good[1])
	for i := range nan[:len(nan)*3/4] {
		nan[i] = float32(math.NaN())
	}
	cases := []struct {
		reason string
		v      dataset.Volume
	}{
		{SkipTooSmall, volumeOf("a", 16, 256, 1, good...)},
		{SkipConstant, volumeOf("b", 64, 64, 0, good...)},
		{SkipNoSignal, volumeOf("c", 64, 64, -1, good...)},
		{SkipPadding, volumeOf("d", 64, 64, 1, nan)},
		{dataset.Unreadable, volumeOf("e", 64, 63, 1, good...)},
		{SkipNoSignal, dataset.Volume{Source: "f"}},
		{dataset.TooLarge, volumeOf("g", MaxSide+1, 64, 1, good...)},
		{dataset.Unreadable, dataset.Volume{Source: "h", Slices: 1, Read: func(int) (dataset.Image,
			error) {
			return dataset.Image{}, errors.New("gone")
		}}},
		{SkipMixedSize, dataset.Volume{Source: "i", Slices: 2, Read: func(k int) (dataset.Image, error) {
			return dataset.Image{Width: 64 >> k, Height: 64 << k, Pixels: slices.Clone(good[0])}, nil
		}}},
		{SkipNotRepeats, volumeOf("j#0", 64, 64, 1, good...)},
	}
	for _, c := range cases {
		col := NewCollector(2, 1)
		col.Add(c.v)
		_, err := Run(t.Context(), col, Config{Methods: Classical()})
		if err == nil {
			t.Errorf("%s: %s is evaluated", c.v.Source, c.reason)
			continue
		}
		if len(col.skipped) == 0 || col.skipped[0].Reason != c.reason || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %+v (%v), want %s", c.v.Source, col.skipped, err, c.reason)
		}
	}
	if _, err := Run(t.Context(), NewCollector(1, 1), Config{Methods: Classical()}); err == nil {
		t.Error("nothing is evaluated")
	}
	col := NewCollector(1, 1)
	col.Add(volumeOf("k", 64, 64, 1, good...))
	if _, err := Run(t.Context(), col, Config{}); err == nil {
		t.Error("no methods are scored")
	}
}

func TestRepetitionsRefused(t *testing.T) {
	v := repeats(truth(2), 3, 0.01)
	col := NewCollector(1, 1)
	for r := range v {
		col.Add(volumeOf(fmt.Sprintf("x#%d", r), 64, 64, 1+float32(r)/2, v[r]...))
	}
	col.finish()
	if len(col.skipped) != 1 || col.skipped[0].Reason != SkipNotRepeats || !strings.Contains(col.skipped[0].Detail, "bright") {
		t.Errorf("brightness: %+v", col.skipped)
	}
	shifted := slices.Clone(v[1])
	for k, px := range shifted { // by eight rows
		shifted[k] = slices.Concat(px[8*64:], px[:8*64])
	}
	col = NewCollector(1, 1)
	col.Add(volumeOf("x#0", 64, 64, 1, v[0]...))
	col.Add(volumeOf("x#1", 64, 64, 1, shifted...))
	col.finish()
	if len(col.skipped) != 1 || col.skipped[0].Reason != SkipNotRepeats || !strings.Contains(col.skipped[0].Detail, "correlation") {
		t.Errorf("shifted: %+v", col.skipped)
	}
}

// TestRun scores known methods: one that returns the input, one that is off by a
// known amount.
func TestRun(t *testing.T) {
	rows, err := simulate.Find("Gaussian 6/255", "Rician 6/255")
	if err != nil {
		t.Fatal(err)
	}
	same := Method{Name: "same", Run: func(_ context.Context, in Input) (*models.Result, error) {
		if in.Sigma != nil {
			return nil, errors.New("the noise was told")
		}
		return &models.Result{Pixels: in.Pixels}, nil
	}}
	smooth := Classical()[4]
	rician := Method{Name: "magnitude only", Magnitude: true, Run: same.Run}
	var steps []int
	run := func() *Report {
		col := NewCollector(2, 1)
		col.Add(volumeOf("one.nii", 64, 64, 700, truth(6)...))
		col.Add(volumeOf("pics/a.png", 64, 64, 255, truth(1)...))
		col.Add(volumeOf("pics/b.png", 64, 64, 255, truth(1)...))
		for r, v := range repeats(truth(4), 5, 0.02) {
			col.Add(volumeOf(fmt.Sprintf("four.nii#%d", r), 64, 64, 300, v...))
		}
		col.Skip(dataset.Skip{Source: "x|<y>", Reason: "colour"})
		rep, err := Run(t.Context(), col, Config{Methods: []Method{smooth, rician, same}, Ours: []string{"same"},
			Rows: rows, Chains: simulate.ChainRows()[2:3], Seed: 3, Workers: 2,
			Progress: func(done, total int) { steps = append(steps, done, total) }})
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	rep := run()
	if n := len(steps); n == 0 || steps[n-2] != steps[n-1] || steps[0] != 1 {
		t.Errorf("progress %v", steps)
	}
	if len(rep.Tables) != 5 || rep.Tables[2].Protocol != Scanner || rep.Tables[4].Protocol != Repetitions {
		t.Fatalf("tables %+v", rep.Tables)
	}
	for i := range rep.Tables {
		tb := &rep.Tables[i]
		row := "Gaussian 6/255"
		want := 32.57
		switch tb.Protocol {
		case Scanner:
			row, want = simulate.ChainRows()[2].Name, 0
		case Repetitions:
			// noise of one, and of the mean of the other four
			row, want = "four.nii, k = 4", -10*math.Log10(0.02*0.02*(1+1./4))
			noisy := tb.mean(row, Noisy)
			if noisy.Corrected == nil || math.Abs(*noisy.Corrected-20*math.Log10(1/0.02)) > 0.15 {
				t.Errorf("without the reference's noise %v, want %.2f", noisy.Corrected, 20*math.Log10(1/0.02))
			}
		}
		noisy, own := tb.mean(row, Noisy), tb.mean(row, "same")
		if noisy == nil || own == nil || want > 0 && math.Abs(noisy.PSNR-want) > 0.15 || own.PSNR != noisy.PSNR ||
			own.TissueSSIM != noisy.TissueSSIM {
			t.Fatalf("%s: %+v and %+v, want %.2f dB", tb.Title(), noisy, own, want)
		}
		for _, p := range tb.Pairs {
			if p.Than == Noisy && (p.PSNR.Mean != 0 || p.PSNR.StdError != 0 || p.Tissue.Worst != 0) {
				t.Errorf("the input differs from itself: %+v", p)
			}
			if p.Than == smooth.Name && (p.PSNR.Mean >= 0 || p.PSNR.Worst > p.PSNR.Mean) && p.Row == "Gaussian 6/255" {
				t.Errorf("%s: the tuned filter is no better than the noisy image: %+v", tb.Title(), p)
			}
		}
		if s := tb.mean(row, smooth.Name).Strength; !slices.Contains(smooth.Strengths, s) {
			t.Errorf("%s: strength %g", tb.Title(), s)
		}
		if m := tb.mean("Gaussian 6/255", rician.Name); m != nil {
			t.Errorf("a method for magnitudes has a score for complex noise: %+v", m)
		}
	}
	if m := rep.Tables[0].mean("Rician 6/255", rician.Name); m == nil {
		t.Error("no score for magnitudes")
	}
	a, b := t.TempDir(), filepath.Join(t.TempDir(), "deep", "er")
	if err := rep.Write(a); err != nil {
		t.Fatal(err)
	}
	if err := run().Write(b); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, rep, a, b)
}

// checkFiles reads a report back, and compares it with that of a second run.
func checkFiles(t *testing.T, rep *Report, a, b string) {
	t.Helper()
	list, err := os.ReadDir(a)
	if err != nil {
		t.Fatal(err)
	}
	pictures := 0
	for _, e := range list {
		x, err := os.ReadFile(filepath.Join(a, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if y, err := os.ReadFile(filepath.Join(b, e.Name())); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s is not the same the second time (%v)", e.Name(), err)
		}
		switch filepath.Ext(e.Name()) {
		case ".png":
			pictures++
			if _, err := png.Decode(bytes.NewReader(x)); err != nil {
				t.Errorf("%s: %v", e.Name(), err)
			}
		case ".json":
			var back Report
			if err := json.Unmarshal(x, &back); err != nil || len(back.Scores) != len(rep.Scores) || back.Tables[0].Means[0].PSNR != rep.Tables[0].Means[0].PSNR {
				t.Errorf("results.json holds %d scores of %d (%v)", len(back.Scores), len(rep.Scores), err)
			}
		case ".csv":
			lines, err := csv.NewReader(bytes.NewReader(x)).ReadAll()
			if err != nil || len(lines) != len(rep.Scores)+1 {
				t.Errorf("results.csv holds %d lines (%v)", len(lines), err)
			}
		case ".html", ".md":
			for _, p := range append(slices.Clone(rep.Pictures), "one.nii slice", "32.5", "left out") {
				if !strings.Contains(strings.ToLower(string(x)), strings.ToLower(p)) {
					t.Errorf("%s does not name %s", e.Name(), p)
				}
			}
			if strings.Contains(string(x), "<y>") || strings.Contains(string(x), "x|") && filepath.Ext(e.Name()) == ".md" {
				t.Errorf("%s has a name in it that is not escaped", e.Name())
			}
		}
	}
	// psnr and gain of four tables, differences and the worst of five, panels of three sets
	if pictures != len(rep.Pictures) || pictures != 4*2+5+5+3 {
		t.Errorf("%d pictures, %d named", pictures, len(rep.Pictures))
	}
}

// TestRunFails: what a method does wrong ends the run and says where.
func TestRunFails(t *testing.T) {
	for name, f := range map[string]filter{
		"error": func(context.Context, Input) ([]float32, error) { return nil, errors.New("broken") },
		"size":  func(context.Context, Input) ([]float32, error) { return make([]float32, 3), nil },
		"not finite": func(_ context.Context, in Input) ([]float32, error) {
			in.Pixels[5] = float32(math.NaN())
			return in.Pixels, nil
		},
	} {
		col := NewCollector(1, 1)
		col.Add(volumeOf("v", 64, 64, 1, truth(3)...))
		if _, err := Run(t.Context(), col, Config{Methods: []Method{{Name: "bad", Run: f.run}}}); err == nil ||
			!strings.Contains(err.Error(), "bad on v slice") {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	col := NewCollector(1, 1)
	col.Add(volumeOf("v", 64, 64, 1, truth(3)...))
	if _, err := Run(ctx, col, Config{Methods: Classical()}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled run ends with %v", err)
	}
}

// TestPool: PSNR is of the mean squared error over the pixels of all slices, and what the
// reference has of noise comes off that.
func TestPool(t *testing.T) {
	score := func(pixels int, mse, variance float64) *Score {
		return &Score{Row: "r", Method: "m", PSNR: psnr(mse), TissuePSNR: psnr(mse / 2), Pixels: pixels,
			Tissue: pixels / 2, Variance: variance,
			Edge: 4 * mse, Flat: mse}
	}
	m := mean([]*Score{score(100, 0.01, 0.002), score(300, 0.002, 0.002)})
	if want := -10 * math.Log10(0.004); math.Abs(m.PSNR-want) > 1e-9 ||
		math.Abs(m.TissuePSNR-want-10*math.Log10(2)) > 1e-9 {
		t.Errorf("%.3f and %.3f dB, want %.3f and 3.01 more", m.PSNR, m.TissuePSNR, want)
	}
	if want := -10 * math.Log10(0.002); m.Corrected == nil || math.Abs(*m.Corrected-want) > 1e-9 ||
		m.TissueCorrected != nil {
		t.Errorf("without the reference's noise %v and %v, want %.3f and none", m.Corrected, m.TissueCorrected, want)
	}
	if m.Edges == nil || math.Abs(*m.Edges-2) > 1e-9 {
		t.Errorf("at edges %v times that in flat tissue, want 2", m.Edges)
	}
	if m := mean([]*Score{score(100, 1e-4, 2e-4)}); m.Corrected != nil {
		t.Error("an error below the reference's noise has a corrected score")
	}
	if p := psnr(0); p != mostPSNR { // it must be writable as JSON
		t.Errorf("no error at all is %g dB", p)
	}
}

func TestOutcome(t *testing.T) {
	checks := []gate.Result{{Name: gate.CheckMean, Value: 1.2, Limit: 1}, {Name: gate.CheckSpot, Value: 3, Limit: 2},
		{Name: gate.CheckLine, Value: 9, Limit: 10, Pass: true}}
	var scores []*Score
	for _, c := range []struct {
		r     models.Result
		want  Outcome
		cause string
	}{
		{models.Result{}, "", ""},
		{models.Result{Untouched: models.UntouchedNoNoise}, Untouched, models.UntouchedNoNoise},
		{models.Result{Gate: &gate.Report{}}, Whole, ""},
		{models.Result{Gate: &gate.Report{Action: gate.Blend, Checks: checks}}, InPart, gate.CheckSpot},
		{models.Result{Gate: &gate.Report{Action: gate.PassThrough, Checks: checks[:1]},
			Untouched: models.UntouchedGate}, HeldBack, gate.CheckMean},
	} {
		o, cause := outcome(&c.r)
		if o != c.want || cause != c.cause {
			t.Errorf("%+v: %q because of %q, want %q and %q", c.r, o, cause, c.want, c.cause)
		}
		scores = append(scores, &Score{Row: "r", Method: "m", Outcome: o, Cause: cause})
	}
	m := mean(scores[1:])
	tb := Table{Means: []Mean{m, mean(scores[:1])}}
	if g := tb.outcomes(); len(g.Lines) != 1 ||
		!slices.Equal(g.Lines[0], []string{"r", "m", "25", "25", "25", "25", "mean 1, no noise found 1, spot 1"}) {
		t.Errorf("%q", g.Lines)
	}
}

// TestScanner: the classical methods are told the noise of what is stored, the reference
// is as large, and tissue is where it is above a tenth.
func TestScanner(t *testing.T) {
	p := &slice{name: "s", w: 64, h: 64, px: truth(1)[0]}
	r := &runner{cfg: Config{Seed: 1}}
	for _, c := range simulate.ChainRows() {
		e, err := r.example(p, scanned(c), 0)
		if err != nil {
			t.Fatal(err)
		}
		n := e.w * e.h
		if len(e.noisy) != n || len(e.ref) != n || len(e.sigma) != n || len(e.mask) != n {
			t.Fatalf("%s: %d×%d pixels of %d, %d, %d and %d values", c.Name, e.w, e.h, len(e.noisy), len(e.ref),
				len(e.sigma), len(e.mask))
		}
		most := slices.Max(e.ref)
		for i, v := range e.ref {
			if v > 0.12*most && !e.mask[i] {
				t.Fatalf("%s: %.3f of at most %.3f is no tissue", c.Name, v, most)
			}
		}
		err2, told := 0.0, 0.0
		for i, in := range e.mask {
			if in {
				d, s := float64(e.noisy[i]-e.ref[i]), float64(e.sigma[i])
				err2, told = err2+d*d, told+s*s
			}
		}
		if q := math.Sqrt(err2 / told); math.Abs(q-1) > 0.08 {
			t.Errorf("%s: the noise in tissue is %.3f times what is told", c.Name, q)
		}
	}
	tiny := &slice{name: "tiny", w: 12, h: 12, px: make([]float32, 144)}
	if _, err := r.example(tiny, scanned(simulate.ChainRows()[0]), 0); err == nil || !strings.Contains(err.Error(),
		"tiny") {
		t.Errorf("12×12 pixels: %v", err)
	}
}

// TestDefaultRows: what only MR has is not added to radiographs unless it is asked for.
func TestDefaultRows(t *testing.T) {
	r := &runner{}
	if mr, all := len(r.rowsOf("MR")), len(simulate.Rows())+len(simulate.ChainRows()); mr != all {
		t.Errorf("%d rows of MR, want %d", mr, all)
	}
	var names []string
	for _, row := range r.rowsOf(pngs) {
		names = append(names, row.name)
		if row.protocol != Simulated || row.magnitude {
			t.Errorf("%s for PNG", row.name)
		}
	}
	for _, want := range []string{"Gaussian 6/255", "Poisson 200", "gamma 100", "correlated 1.2"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s for PNG: %q", want, names)
		}
	}
	r.cfg.Chains = simulate.ChainRows()[:2]
	if n := len(r.rowsOf(xray)); n != 2 {
		t.Errorf("%d rows, 2 were asked for", n)
	}
}

func TestEdges(t *testing.T) {
	const w, h = 40, 30
	ref, mask := make([]float32, w*h), make([]bool, w*h)
	for i := range ref {
		if i%w >= 20 {
			ref[i] = 1
		}
		mask[i] = i/w >= 5
	}
	edge, flat := edges(ref, mask, w, h)
	for i := range ref {
		x, y := i%w, i/w
		inside := y >= 5 && y < h-1 && x >= 1 && x < w-1
		if flat[i] != (inside && x != 19 && x != 20) || edge[i] && (!inside || x != 19 && x != 20) {
			t.Fatalf("pixel (%d, %d): edge %t, flat %t", x, y, edge[i], flat[i])
		}
	}
	for i := range ref { // a ramp that gets steeper: the tenth at its end
		ref[i] = float32(i%w) * float32(i%w)
	}
	if edge, _ = edges(ref, mask, w, h); !edge[10*w+w-2] || edge[10*w+w/2] {
		t.Error("the steepest pixels are not the edge")
	}
	edge, flat = edges(ref, make([]bool, w*h), w, h)
	if count(edge)+count(flat) != 0 {
		t.Error("edges without tissue")
	}
}

// TestSaturated: what is cut off in any repetition is no tissue.
func TestSaturated(t *testing.T) {
	var list [][]*slice
	for r, v := range repeats(truth(1), 3, 0.02) {
		px := v[0]
		for i, p := range px {
			px[i] = min(p, 0.6+0.02*float32(r))
		}
		list = append(list, []*slice{{name: "s", w: 64, h: 64, px: px}})
	}
	e := repeated(list, 0, 1)
	for i, in := range e.mask {
		for r := range list {
			if in && list[r][0].px[i] >= 0.6+0.02*float32(r) {
				t.Fatalf("pixel (%d, %d) is cut off in repetition %d", i%64, i/64, r)
			}
		}
	}
	if n := count(e.mask); n < 500 {
		t.Errorf("%d pixels of tissue", n)
	}
}

// TestPair: two measurements are a pair, each scored against the other, and a single slice
// of them is tuned on.
func TestPair(t *testing.T) {
	col := NewCollector(1, 1)
	for r, v := range repeats(truth(1), 2, 0.03) {
		col.Add(volumeOf(fmt.Sprintf("a and b#%d", r), 64, 64, 100, v...))
	}
	rep, err := Run(t.Context(), col, Config{Methods: Classical()[2:3]})
	if err != nil {
		t.Fatal(err)
	}
	tb := rep.Tables[0]
	noisy, best := tb.mean("a and b, k = 1", Noisy), tb.mean("a and b, k = 1", "non-local means")
	if tb.Group != pairs || noisy == nil || best == nil || noisy.Slices != 2 {
		t.Fatalf("%+v", tb)
	}
	want := -20 * math.Log10(0.03)
	if math.Abs(*noisy.Corrected-want) > 0.3 || math.Abs(noisy.PSNR-want+10*math.Log10(2)) > 0.3 {
		t.Errorf("noisy %.2f dB, without the other's noise %.2f, want %.2f", noisy.PSNR, *noisy.Corrected, want)
	}
	if *best.Corrected < *noisy.Corrected+1 || best.Strength == 0 {
		t.Errorf("%+v", best)
	}
}

func TestShrink(t *testing.T) {
	img := dataset.Image{Width: 5, Height: 4, Pixels: []float32{
		1, 3, 0, 0, 9,
		5, 7, 0, 4, 9,
		2, 2, 8, 8, 9,
		2, 2, 8, 8, 9}, Skip: make([]bool, 20)}
	img.Skip[7] = true
	out := shrunk(img, 2)
	if out.Width != 2 || out.Height != 2 || !slices.Equal(out.Pixels, []float32{4, 1, 2, 8}) || !slices.Equal(out.Skip, []bool{false, true, false, false}) {
		t.Errorf("%+v", out)
	}
	col := NewCollector(1, 2)
	col.Add(volumeOf("v", 128, 64, 1, slices.Repeat(truth(1)[0], 2)))
	for _, v := range repeats(truth(2), 2, 0.02) {
		col.Add(volumeOf(fmt.Sprintf("r#%d", len(col.open)), 64, 64, 1, v...))
	}
	sets := col.finish()
	if len(sets) != 2 || sets[0].test[0].w != 64 || sets[1].test[0].w != 64 || sets[1].test[0].h != 32 {
		t.Errorf("%d sets, skipped %+v", len(sets), col.skipped)
	}
}

// TestOwnNoise: what a reference has of noise stands in the report.
func TestOwnNoise(t *testing.T) {
	v := phantom.New(phantom.Spec{Seed: 4, Width: 128, Height: 128, Slices: 3})
	for _, sd := range []float64{0, 0.03} {
		y, _, _ := simulate.Gaussian(sd)(v.Truth[1], 128, 128, rand.New(rand.NewPCG(1, 1)))
		got := ownNoise(&slice{w: 128, h: 128, px: y})
		if math.Abs(got-sd) > 0.007 {
			t.Errorf("noise of %.3f is taken for %.3f", sd, got)
		}
	}
}

func TestLeast(t *testing.T) {
	make := func(gain float64) *job {
		return &job{group: "g", scores: []Score{{Method: Noisy, TissuePSNR: 30}, {Method: "other", TissuePSNR: 20}, {Method: "ours", TissuePSNR: 30 + gain}}}
	}
	jobs := []*job{make(2), make(-1), make(0)}
	if list := tables(append(slices.Clone(jobs), &job{group: "h"})); len(list) != 2 || len(list[0]) != 3 {
		t.Fatalf("%d tables", len(list))
	}
	jobs[1].slice = "worst"
	if j := least(jobs, "ours"); j.slice != "worst" || !j.keep || j.scores != nil || jobs[1].scores == nil {
		t.Errorf("%+v", j)
	}
	if least(jobs, "missing") != nil {
		t.Error("a method that was not run has a worst slice")
	}
}

func TestSigned(t *testing.T) {
	for v, want := range map[float64]string{-0.001: "+0.00", 0: "+0.00", -0.006: "-0.01", 1.234: "+1.23"} {
		if got := signed(v); got != want {
			t.Errorf("%g is written %s, want %s", v, got, want)
		}
	}
}

func TestFileName(t *testing.T) {
	for in, want := range map[string]string{
		"../../etc/passwd":       "panel_.._.._etc_passwd.png",
		"a b\x00ü":               "panel_a_b__.png",
		strings.Repeat("x", 300): "panel_" + strings.Repeat("x", 120) + ".png",
	} {
		if got := fileName("panel", in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func ExampleRun() {
	v := phantom.New(phantom.Spec{Width: 64, Height: 64, Slices: 4})
	c := NewCollector(1, 1)
	c.Add(dataset.Volume{Source: "phantom", Modality: "MR", Slices: 4, Read: func(k int) (dataset.Image, error) {
		return dataset.Image{Width: 64, Height: 64, Pixels: slices.Clone(v.Truth[k])}, nil
	}})
	rows, err := simulate.Find("Gaussian 6/255")
	if err != nil {
		panic(err)
	}
	r, err := Run(context.Background(), c, Config{Methods: Classical(), Rows: rows})
	if err != nil {
		panic(err)
	}
	for _, m := range r.Tables[0].Means {
		fmt.Printf("%s %t\n", m.Method, m.PSNR > 32)
	}
	// Output:
	// noisy true
	// non-local means, estimated true
	// total variation, estimated true
	// non-local means true
	// total variation true
}
