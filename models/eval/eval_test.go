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

	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/simulate"
)

// volumeOf is a Volume of the given slices, in some unit.
func volumeOf(source string, w, h int, unit float32, px ...[]float32) Volume {
	return Volume{Source: source, Slices: len(px), Read: func(k int) (models.Image, error) {
		img := models.Image{Width: w, Height: h, Pixels: slices.Clone(px[k])}
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
		v      Volume
	}{
		{SkipTooSmall, volumeOf("a", 16, 256, 1, good...)},
		{SkipConstant, volumeOf("b", 64, 64, 0, good...)},
		{SkipNoSignal, volumeOf("c", 64, 64, -1, good...)},
		{SkipPadding, volumeOf("d", 64, 64, 1, nan)},
		{SkipUnreadable, volumeOf("e", 64, 63, 1, good...)},
		{SkipNoSignal, Volume{Source: "f"}},
		{SkipTooLarge, volumeOf("g", MaxSide+1, 64, 1, good...)},
		{SkipUnreadable, Volume{Source: "h", Slices: 1, Read: func(int) (models.Image, error) { return models.Image{}, errors.New("gone") }}},
		{SkipMixedSize, Volume{Source: "i", Slices: 2, Read: func(k int) (models.Image, error) {
			return models.Image{Width: 64 >> k, Height: 64 << k, Pixels: slices.Clone(good[0])}, nil
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
	same := Method{Name: "same", Run: func(_ context.Context, in Input) ([]float32, error) {
		if in.Sigma != nil {
			return nil, errors.New("the noise was told")
		}
		return in.Pixels, nil
	}}
	smooth := Classical()[0]
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
		col.Skip(Skip{Source: "x|<y>", Reason: "colour"})
		rep, err := Run(t.Context(), col, Config{Methods: []Method{smooth, rician, same}, Ours: []string{"same"}, Rows: rows, Seed: 3, Workers: 2,
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
	if len(rep.Tables) != 3 || rep.Tables[2].Protocol != Repetitions {
		t.Fatalf("tables %+v", rep.Tables)
	}
	for i := range rep.Tables {
		tb := &rep.Tables[i]
		row := "Gaussian 6/255"
		want := 32.57
		if tb.Protocol == Repetitions {
			// noise of one, and of the mean of the other four
			row, want = realRow, -10*math.Log10(0.02*0.02*(1+1./4))
			noisy := tb.mean(row, Noisy)
			if noisy.Corrected == nil || math.Abs(*noisy.Corrected-20*math.Log10(1/0.02)) > 0.15 || tb.Others != 4 {
				t.Errorf("without the reference's noise %v of %d others, want %.2f", noisy.Corrected, tb.Others, 20*math.Log10(1/0.02))
			}
		}
		noisy, own := tb.mean(row, Noisy), tb.mean(row, "same")
		if noisy == nil || own == nil || math.Abs(noisy.PSNR-want) > 0.15 || own.PSNR != noisy.PSNR || own.TissueSSIM != noisy.TissueSSIM {
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
	if pictures != len(rep.Pictures) || pictures != 2*2+3+3+3 { // psnr and gain of two tables, differences and the worst of three, panels of three sets
		t.Errorf("%d pictures, %d named", pictures, len(rep.Pictures))
	}
}

// TestRunFails: what a method does wrong ends the run and says where.
func TestRunFails(t *testing.T) {
	for name, f := range map[string]func(context.Context, Input) ([]float32, error){
		"error": func(context.Context, Input) ([]float32, error) { return nil, errors.New("broken") },
		"size":  func(context.Context, Input) ([]float32, error) { return make([]float32, 3), nil },
		"not finite": func(_ context.Context, in Input) ([]float32, error) {
			in.Pixels[5] = float32(math.NaN())
			return in.Pixels, nil
		},
	} {
		col := NewCollector(1, 1)
		col.Add(volumeOf("v", 64, 64, 1, truth(3)...))
		if _, err := Run(t.Context(), col, Config{Methods: []Method{{Name: "bad", Run: f}}}); err == nil || !strings.Contains(err.Error(), "bad on v slice") {
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

// TestPerfect gives a method the truth: its score must be writable as JSON.
func TestPerfect(t *testing.T) {
	if p := psnr(0); p != mostPSNR {
		t.Errorf("no error at all is %g dB", p)
	}
	if corrected(1e-4, 2e-4) != nil {
		t.Error("an error below the reference's noise has a corrected score")
	}
}

func TestShrink(t *testing.T) {
	img := models.Image{Width: 5, Height: 4, Pixels: []float32{
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
	c.Add(Volume{Source: "phantom", Modality: "MR", Slices: 4, Read: func(k int) (models.Image, error) {
		return models.Image{Width: 64, Height: 64, Pixels: slices.Clone(v.Truth[k])}, nil
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
	// Gaussian true
	// non-local means true
	// total variation true
}
