package train

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/score"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/eval"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/simulate"
)

// envClean names the file that TestCleanTargets writes its table to; without it the test does not
// run. Its networks go into the folder that envAblation names, or one that does not stay.
const envClean = "DENOISED_CLEAN"

// What TestCleanTargets trains and scores.
const (
	cleanSteps  = 2000
	cleanTrain  = 8 // heads
	cleanTest   = 1
	cleanSlices = 8 // of each, of cleanSide pixels a side
	cleanSide   = 256
	cleanFloor  = 0.5 // dB that noisy images may teach less
)

// TestCleanTargets compares what the default student learns from noisy images, as the product
// trains it, with what it learns from the same images without noise: the same chains, steps and
// seed. The images are generated heads; the noisy ones got white noise of known strength once. What
// trainings draw besides (simulate.Leaves) is the same for all. Scored is another head, sent through
// every row of simulate.ChainRows, in tissue; the students are told the truth about the noise, so
// that they and not the meter are compared.
func TestCleanTargets(t *testing.T) {
	path := os.Getenv(envClean)
	if path == "" {
		t.Skip(envClean + " is not set")
	}
	dir := t.TempDir()
	if s := os.Getenv(envAblation); s != "" {
		dir = filepath.Join(s, "clean")
	}
	levels := []float32{0, 2, 4} // of 255; the first is the one to compare with
	train, test := cleanImages(1, cleanTrain), cleanImages(1+cleanTrain, cleanTest)
	var programs []kernels.Program
	for _, level := range levels {
		programs = append(programs, cleanStudent(t, filepath.Join(dir, fmt.Sprint(level)), train, level/255))
	}

	var table bytes.Buffer
	student := cleanPreset(t).Student
	fmt.Fprintf(&table, "# What does a student lose by learning from noisy images?\n\n"+
		"Written by `make ablation-clean`. The default student (%d channels, %d blocks) after %d steps on %d slices\n"+
		"of generated heads that go through random scanner chains: as they are, and with white noise of 2/255 or\n"+
		"4/255 that was added once, so that it learns by recorruption alone. Same seed, same chains, and the same\n"+
		"share of drawn tissue without noise, as every training has it. Scored on %d slices of another head: PSNR in\n"+
		"tissue, dB, told the truth about the noise. The\n"+
		"goal is 0.2 dB.\n\n"+
		"| scanner | noisy | from clean images | from 2/255 | from 4/255 | 2/255 less clean | 4/255 less clean |\n"+
		"|---|---|---|---|---|---|---|\n",
		student.Channels, student.Blocks, cleanSteps, len(train), len(test))
	rows := simulate.ChainRows()
	sums := make([]float64, 1+len(programs))
	line := func(name string, db []float64) {
		fmt.Fprintf(&table, "| %s |", name)
		for _, v := range db {
			fmt.Fprintf(&table, " %.2f |", v)
		}
		for _, v := range db[2:] {
			fmt.Fprintf(&table, " %+.2f |", v-db[1])
		}
		table.WriteString("\n")
	}
	for _, row := range rows {
		db := cleanScores(t, row, test, programs)
		for i, v := range db {
			sums[i] += v / float64(len(rows))
		}
		line(row.Name, db)
	}
	line(eval.AllRows, sums)
	t.Log("\n" + table.String())
	for i, level := range levels[1:] {
		if lost := sums[1] - sums[2+i]; !(lost <= cleanFloor) {
			t.Errorf("a student of images with noise of %g/255 is %.2f dB below one of clean images", level, lost)
		}
	}
	if err := atomicfile.Write(path, 0o644, func(f *os.File) error {
		_, err := f.Write(table.Bytes())
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func cleanPreset(t *testing.T) Preset {
	p, err := FindPreset("default")
	if err != nil {
		t.Fatal(err)
	}
	k := slices.Index(Stages, StageStudent)
	p.Steps[k], p.Every = cleanSteps, cleanSteps/8
	return p
}

// cleanImages are the slices of generated heads, of which every one is drawn in its own way.
func cleanImages(first, heads uint64) [][]float32 {
	var list [][]float32
	for seed := first; seed < first+heads; seed++ {
		v := phantom.New(phantom.Spec{Seed: seed, Width: cleanSide, Height: cleanSide, Slices: cleanSlices,
			Shading: seed%2 == 0})
		list = append(list, v.Truth...)
	}
	return list
}

// cleanStudent trains the student as the product does, or goes on where it was, on images to which
// noise of standard deviation sigma was added.
func cleanStudent(t *testing.T, dir string, images [][]float32, sigma float32) kernels.Program {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Without noise, recorruption draws its numbers all the same, so that what is drawn after them
	// does not change.
	told := max(sigma, 1e-9)
	list := make([]Slice, len(images))
	for k := range list {
		img := slices.Clone(images[k])
		rng := rand.New(rand.NewPCG(uint64(k), 1))
		for i := range img {
			img[i] += sigma * float32(rng.NormFloat64())
		}
		list[k] = Slice{Pixels: img, Width: cleanSide, Height: cleanSide, Source: fmt.Sprint(k),
			Noise: &noise.Map{Width: cleanSide, Height: cleanSide, Sigma: slices.Repeat([]float32{told}, len(img)),
				Median: float64(told), Correlation: noise.White()}}
	}
	const validated = cleanSlices // one head
	log, err := OpenLog(filepath.Join(dir, "train.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c := Config{Stage: StageStudent, Seed: 1, Out: dir, Resume: true, Log: log}
	b := backend(t)
	tr := &training{Config: c, preset: cleanPreset(t), backend: b,
		set: &Set{Train: list[validated:], Validation: list[:validated]}}
	s, err := tr.stage(t.Context(), slices.Index(Stages, StageStudent))
	if err != nil {
		t.Fatal(err)
	}
	done, err := s.run(t.Context(), b, dir, c)
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.Compile(s.graph, done.params)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// cleanScores are the PSNR in tissue of the noisy images and of what each program makes of them.
func cleanScores(t *testing.T, row simulate.ChainRow, images [][]float32, programs []kernels.Program) []float64 {
	t.Helper()
	squares, pixels := make([]float64, 1+len(programs)), 0.0
	for k, img := range images {
		a, err := row.Chain(cleanSide, cleanSide).Run(img, cleanSide, cleanSide, rand.New(rand.NewPCG(uint64(k), 2)))
		if err != nil {
			t.Fatal(err)
		}
		// a student works on even sides
		w, h := a.Width/2*2, a.Height/2*2
		even := func(img []float32) []float32 { return rectangle(img, a.Width, w, h) }
		noisy, truth, sigma := even(a.Noisy), even(a.Truth), even(a.Sigma)
		mask := eval.Tissue(truth, w, h)
		if mask == nil {
			t.Fatalf("image %d has no tissue", k)
		}
		n := 0.0
		for _, in := range mask {
			if in {
				n++
			}
		}
		pixels += n
		squares[0] += n * score.MSEIn(noisy, truth, mask)
		correlation := noise.Correlation{Rho: a.Rho, Trust: 1}
		for i, p := range programs {
			out := make([]float32, len(noisy))
			if err := (studentProgram{p}).Forward(out, noisy, sigma, net.Tell(correlation), w, h); err != nil {
				t.Fatal(err)
			}
			squares[1+i] += n * score.MSEIn(out, truth, mask)
		}
	}
	for i := range squares {
		squares[i] = decibels(squares[i] / pixels)
	}
	return squares
}
