package train

import (
	"errors"
	"fmt"
	"github.com/diffdenoise/denoised/models/net"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/internal/score"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/models/noise"
	"github.com/diffdenoise/denoised/models/safetensors"
	"github.com/diffdenoise/denoised/models/simulate"
)

// envAblation names the folder of TestAblation's networks; without it the test does
// not run. The trainings take an hour or two and go on where they were.
const envAblation = "DENOISED_ABLATION"

// Sizes and efforts of the networks that are compared. The U-Net and the student are
// the same for all that they are trained for.
var (
	ablationBlind   = net.BSNConfig{Channels: [3]int{16, 32, 48}, Mix: 32}
	ablationUNet    = net.TeacherConfig{Channels: [3]int{24, 32, 48}, Code: 32}
	ablationStudent = net.StudentConfig{Channels: 32, Blocks: 4}
)

const (
	blindSteps, blindBatch, blindSide           = 1600, 4, 96
	unetSteps, unetBatch, unetSide              = 2000, 8, 64
	studentSteps, studentBatchSize, studentSide = 2000, 8, 64
	mixedSteps                                  = 4000 // of a student for all kinds of noise

	ablationSlices = 16 // of a volume, for training
)

// ablationHeld are the volumes that are scored, three slices each; of their subjects
// nothing is trained on. ablationOut is of one of these subjects.
var (
	ablationHeld = []string{"ms_longitudinal/patient20_study2_T1W", "ms_longitudinal/patient20_study2_FLAIR", "brain_gd_clinical/brain1", "philips_mprage/mprage"}
	ablationOut  = "philips_dwi"
)

// law is a kind of noise whose correlation is known.
type law struct {
	simulate.Row
	kernel *noise.Kernel
	rho    [2]float32
	hole   int // index in holes that the correlation asks for
}

func lawOf(row simulate.Row) law {
	spread := 0.0
	switch row.Name {
	case "correlated 0.5":
		spread = 0.5
	case "correlated 1.2":
		spread = 1.2
	}
	l := law{Row: row, kernel: noise.Gaussian(spread, spread)}
	c := l.kernel.Correlation()
	l.rho = [2]float32{float32(c.At(1, 0)), float32(c.At(0, 1))}
	sx, _ := c.Holes()
	l.hole = slices.Index(holes, sx)
	return l
}

// specimen is a slice with noise added once, of which all is known.
type specimen struct {
	law
	w, h                int
	clean, noisy, sigma []float32
	blind               [3][]float32 // predictions across the holes
	target              []float32    // of a student
}

// study is the slices with noise of some laws and the networks trained on them: each
// slice to train on has noise of one of them, each slice to test on of all.
type study struct {
	*testing.T
	backend     *cpu.Backend
	dir         string
	hole        int // index in holes that the first law asks for
	train, test []specimen
}

// TestAblation measures what every part of the method is worth (docs/quality.md): on
// slices with noise of known strength and correlation, added once, so that the
// networks and not the estimates are compared; scored on slices of other subjects.
// No network but the one trained on clean targets sees a clean image.
func TestAblation(t *testing.T) {
	dir := os.Getenv(envAblation)
	if dir == "" {
		t.Skip(envAblation + " is not set")
	}
	rows := slices.DeleteFunc(simulate.Rows(), func(r simulate.Row) bool { return strings.HasPrefix(r.Name, "zero-filled") })
	t.Run("students", func(t *testing.T) { newStudy(t, filepath.Join(dir, "students"), rows...).students() })
	for _, row := range rows {
		if row.Name == "Gaussian 6/255" || row.Name == "correlated 1.2" {
			t.Run(row.Name, func(t *testing.T) {
				newStudy(t, filepath.Join(dir, strings.NewReplacer(" ", "-", "/", "-").Replace(row.Name)), row).pipeline()
			})
		}
	}
	t.Run("grid", func(t *testing.T) {
		found, err := simulate.Find("zero-filled 1.31", "zero-filled 2")
		if err != nil {
			t.Fatal(err)
		}
		newStudy(t, filepath.Join(dir, "grid"), found...).grids()
	})
}

// newStudy reads the slices and adds the noise. Its networks are in dir.
func newStudy(t *testing.T, dir string, rows ...simulate.Row) *study {
	t.Helper()
	s := &study{T: t, dir: dir, hole: lawOf(rows[0]).hole}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		s.Fatal(err)
	}
	var err error
	if s.backend, err = cpu.SelectInference(); err != nil {
		s.Fatal(err)
	}
	root := filepath.Join(testdata.Dir(s), "mri")
	paths, err := filepath.Glob(filepath.Join(root, "*", "*.nii.gz"))
	if err != nil || len(paths) == 0 {
		s.Fatal("no volumes in ", root, err)
	}
	isHeld := func(path string, whole bool) bool {
		return slices.ContainsFunc(ablationHeld, func(h string) bool {
			if !whole {
				h, _, _ = strings.Cut(h, "_study")
			}
			return strings.Contains(path, h)
		})
	}
	for _, path := range paths {
		if strings.Contains(path, ablationOut) || isHeld(path, false) && !isHeld(path, true) {
			continue
		}
		v, err := nifti.Read(path)
		if err != nil {
			s.Fatal(err)
		}
		held := isHeld(path, true)
		var at []int
		if held {
			at = []int{v.Depth * 2 / 5, v.Depth / 2, v.Depth * 3 / 5}
		} else {
			for k := range min(ablationSlices, v.Depth) {
				at = append(at, (2*k+1)*v.Depth/(2*min(ablationSlices, v.Depth)))
			}
		}
		for _, k := range at {
			px := make([]float32, v.Width*v.Height)
			if err := v.Slice(px, k); err != nil {
				s.Fatal(err)
			}
			top := slices.Sorted(slices.Values(px))[len(px)*999/1000]
			if top <= 0 {
				continue
			}
			for i := range px {
				px[i] /= top
			}
			w, h := v.Width/4*4, v.Height/4*4
			px = rectangle(px, v.Width, w, h)
			with := func(row simulate.Row) specimen {
				noisy, sigma, ref := row.Noise(px, w, h, rand.New(rand.NewPCG(uint64(len(s.train)), uint64(len(s.test)))))
				return specimen{law: lawOf(row), w: w, h: h, clean: ref, noisy: noisy, sigma: sigma}
			}
			if held {
				for _, row := range rows {
					s.test = append(s.test, with(row))
				}
			} else {
				s.train = append(s.train, with(rows[len(s.train)%len(rows)]))
			}
		}
	}
	s.Logf("%d slices to train on, %d scored: noisy %.2f dB", len(s.train), len(s.test), s.score(func(sp *specimen) []float32 { return sp.noisy }))
	return s
}

// network trains a network, or reads it if it was.
func (s *study) network(name string, g *kernels.Graph, steps int, batch func(rng *rand.Rand) (*kernels.Batch, error), validate func([][]float32) map[string]float64) kernels.Program {
	s.Helper()
	path := filepath.Join(s.dir, name+".safetensors")
	if f, err := os.Open(path); err == nil {
		defer f.Close()
		file, err := safetensors.Read(f)
		if err != nil {
			s.Fatal(err)
		}
		params := make([][]float32, len(g.Params))
		for i := range g.Params {
			params[i] = file.Tensors[g.Params[i].Name].Data
		}
		return s.compile(g, params)
	} else if !errors.Is(err, os.ErrNotExist) {
		s.Fatal(err)
	}
	st := &stage{name: name, architecture: name, graph: g, steps: steps, rate: 1e-3, decay: 1e-4, every: steps / 8,
		batch: func(_ int, rng *rand.Rand) (*kernels.Batch, error) { return batch(rng) }}
	last := 0.0
	if validate != nil {
		st.validate = func(params [][]float32) (map[string]float64, float64, error) {
			last-- // the last is what counts
			return validate(params), last, nil
		}
	}
	log, err := OpenLog(filepath.Join(s.dir, name+".jsonl"))
	if err != nil {
		s.Fatal(err)
	}
	defer log.Close()
	began := time.Now()
	done, err := st.run(s.Context(), s.backend, s.dir, Config{Seed: 1, Resume: true, Log: log})
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("%s: trained %d steps in %.0f s", name, steps, time.Since(began).Seconds())
	f, err := net.EncodeGraph(name, g, done.params)
	if err != nil {
		s.Fatal(err)
	}
	if err := writeWeights(path, f); err != nil {
		s.Fatal(err)
	}
	return s.compile(g, done.params)
}

func (s *study) compile(g *kernels.Graph, params [][]float32) kernels.Program {
	s.Helper()
	p, err := s.backend.Compile(g, params)
	if err != nil {
		s.Fatal(err)
	}
	return p
}

// score is the mean PSNR of a method over the test slices, whole, in dB.
func (s *study) score(method func(sp *specimen) []float32) float64 {
	sum := make([]float64, len(s.test))
	each(len(s.test), func(k int) { sum[k] = score.PSNR(method(&s.test[k]), s.test[k].clean, 1) })
	return mean(sum)
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// crop draws side×side pixels of planes of a training slice, all turned alike.
func (s *study) crop(side int, rng *rand.Rand, planes func(sp *specimen) [][]float32) (*specimen, [][]float32) {
	for {
		sp := &s.train[rng.IntN(len(s.train))]
		if sp.w < side || sp.h < side {
			continue
		}
		x, y, turn := rng.IntN(sp.w-side+1), rng.IntN(sp.h-side+1), rng.IntN(8)
		sum := float32(0)
		for _, v := range window(sp.noisy, sp.w, x, y, side) {
			sum += v
		}
		if sum < minBright*float32(side*side) && rng.IntN(10) > 0 {
			continue
		}
		out := planes(sp)
		for i, p := range out {
			out[i] = net.Turned(window(p, sp.w, x, y, side), side, side, turn)
		}
		return sp, out
	}
}

// draw returns noise like that of an image with the noise map sigma.
func (l law) draw(sigma []float32, w, h int, rng *rand.Rand) []float32 {
	z := make([]float32, len(sigma))
	l.kernel.Draw(z, w, h, rng)
	for i := range z {
		z[i] *= sigma[i]
	}
	return z
}

// recorrupted is y + a·z.
func recorrupted(y, z []float32, a float32) []float32 {
	out := slices.Clone(y)
	for i, v := range z {
		out[i] += a * v
	}
	return out
}

func scaled(v []float32, a float32) []float32 {
	out := make([]float32, len(v))
	for i, x := range v {
		out[i] = a * x
	}
	return out
}

// louder is the noise of a recorrupted image, of that of the image.
var louder = float32(math.Sqrt(1 + tau*tau))

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (s *study) blindNetwork() kernels.Program {
	p := s.network("bsn", ablationBlind.Graph(), blindSteps, func(rng *rand.Rand) (*kernels.Batch, error) {
		const n = blindSide * blindSide
		hole := s.hole // half of the time, for it is what counts
		if rng.IntN(2) == 0 {
			hole = rng.IntN(3)
		}
		b := net.BSNBatch(make([]float32, blindBatch*n), blindBatch, blindSide, blindSide, holes[hole], holes[hole])
		for k := range blindBatch {
			_, p := s.crop(blindSide, rng, func(sp *specimen) [][]float32 { return [][]float32{sp.noisy} })
			copy(b.Inputs[0][k*n:], p[0])
		}
		b.Target = slices.Clone(b.Inputs[0])
		return b, nil
	}, nil)
	each(len(s.test), func(k int) {
		sp := &s.test[k]
		for i, size := range holes {
			sp.blind[i] = blindOf(p, sp.noisy, sp.w, sp.h, size)
		}
	})
	return p
}

func blindOf(p kernels.Program, y []float32, w, h, size int) []float32 {
	out := make([]float32, len(y))
	must(p.Run(out, net.BSNBatch(y, 1, w, h, size, size)))
	return out
}

func fused(blind, y, sigma []float32, w, h int) []float32 {
	out := make([]float32, len(y))
	net.Posterior(out, y, blind, sigma, w, h)
	return out
}

// diffusionStep is the training of a U-Net as a diffusion network: given returns the
// condition's planes, the base, the unit and what is to be found. still trains it for
// one call that starts from nothing, which is plain regression.
func (s *study) diffusionStep(conditions int, still bool, given func(rng *rand.Rand) (condition [][]float32, base, unit, image []float32)) func(rng *rand.Rand) (*kernels.Batch, error) {
	const side = unetSide
	const n = side * side
	return func(rng *rand.Rand) (*kernels.Batch, error) {
		b := &kernels.Batch{Count: unetBatch, Height: side, Width: side,
			Inputs: [][]float32{make([]float32, unetBatch*n), make([]float32, unetBatch*n*conditions), make([]float32,
				unetBatch*net.TimeCode)},
			Target: make([]float32, unetBatch*n)}
		seeds := drawSeeds(unetBatch, rng)
		each(unetBatch, func(k int) {
			rng := rand.New(rand.NewPCG(seeds[k], uint64(k)))
			condition, base, unit, image := given(rng)
			interleave(b.Inputs[1][k*n*conditions:], condition)
			x0, eps := make([]float32, n), make([]float32, n)
			for i := range x0 {
				x0[i] = (image[i] - base[i]) / unit[i]
				if !still {
					eps[i] = float32(rng.NormFloat64())
				}
			}
			t := rng.Float64()
			if still || rng.Float64() < startShare {
				t = 1
			}
			state := b.Inputs[0][k*n:][:n]
			diffusion.Diffuse(state, b.Target[k*n:][:n], x0, eps, t)
			net.StateInput(state, state, t)
			net.EncodeTime(b.Inputs[2][k*net.TimeCode:][:net.TimeCode], t)
		})
		return b, nil
	}
}

func interleave(dst []float32, planes [][]float32) {
	for c, p := range planes {
		for i, v := range p {
			dst[i*len(planes)+c] = v
		}
	}
}

// sampler draws from a diffusion network given a condition.
type sampler struct {
	program    kernels.Program
	batch      kernels.Batch // without the state and the time
	base, unit []float32
}

func newSampler(p kernels.Program, w, h int, condition [][]float32, base, unit []float32) *sampler {
	given := make([]float32, w*h*len(condition))
	interleave(given, condition)
	return &sampler{p, kernels.Batch{Count: 1, Height: h, Width: w, Inputs: [][]float32{nil, given, nil}}, base, unit}
}

func (s *sampler) image(x []float32) []float32 {
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = s.base[i] + s.unit[i]*v
	}
	return out
}

func (s *sampler) start(rng *rand.Rand) []float32 {
	eps := make([]float32, len(s.base))
	for i := range eps {
		eps[i] = float32(rng.NormFloat64())
	}
	return eps
}

// srds is the mean of the pair that starts at ±eps; one is a sample of its own.
func (s *sampler) srds(rng *rand.Rand, steps int) []float32 { return s.pair(s.start(rng), steps) }

func (s *sampler) pair(eps []float32, steps int) []float32 {
	mean, spread := make([]float32, len(eps)), make([]float32, len(eps))
	must(kernels.SamplePair(s.program, mean, spread, eps, &s.batch, net.SampleSteps(steps), nil))
	return s.image(mean)
}

func (s *sampler) one(rng *rand.Rand, steps int) []float32 {
	x := s.start(rng)
	state, v, b := make([]float32, len(x)), make([]float32, len(x)), s.batch
	for _, step := range net.SampleSteps(steps) {
		for i := range x {
			state[i] = step.State * x[i]
		}
		b.Inputs = [][]float32{state, s.batch.Inputs[1], step.Vector}
		must(s.program.Run(v, &b))
		for i := range x {
			x[i] = step.Keep*x[i] + step.Add*v[i]
		}
	}
	return s.image(x)
}

func (s *sampler) nothing() []float32 { return s.pair(make([]float32, len(s.base)), 1) }

func average(list ...[]float32) []float32 {
	out := make([]float32, len(list[0]))
	for _, v := range list {
		for i, x := range v {
			out[i] += x / float32(len(list))
		}
	}
	return out
}

func seeded(sp *specimen, k int) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(len(sp.noisy)), uint64(k)))
}

// written draws from the network as arXiv 2504.00264 has it: the noisy image around
// the blind-spot prediction.
func written(p kernels.Program, sp *specimen, hole int) *sampler {
	return newSampler(p, sp.w, sp.h, [][]float32{sp.blind[hole]}, sp.blind[hole], sp.sigma)
}

// leakFree draws from the network trained on recorrupted pairs, for the noisy image y.
func (s *study) leakFree(p, blind kernels.Program, y, sigma []float32, w, h int) *sampler {
	base := fused(blindOf(blind, y, w, h, holes[s.hole]), y, sigma, w, h)
	return newSampler(p, w, h, [][]float32{y, base}, base, sigma)
}

// pipeline measures the method as written and in its leak-free form.
func (s *study) pipeline() {
	row := func(name string, db float64) { s.Logf("| %s | %.2f |", name, db) }
	blind := s.blindNetwork()
	for i, size := range holes {
		row(fmt.Sprintf("BSN, hole %d", size), s.score(func(sp *specimen) []float32 { return sp.blind[i] }))
		row(fmt.Sprintf("BSN + posterior, hole %d", size), s.score(func(sp *specimen) []float32 { return fused(sp.blind[i], sp.noisy, sp.sigma, sp.w, sp.h) }))
	}
	s.Logf("noise in the BSN's output: %.2f of the input's", s.passed(blind))

	// as written
	jittered := func(hole int) func(rng *rand.Rand) (condition [][]float32, base, unit, image []float32) {
		each(len(s.train), func(k int) {
			if sp := &s.train[k]; sp.blind[hole] == nil {
				sp.blind[hole] = blindOf(blind, sp.noisy, sp.w, sp.h, holes[hole])
			}
		})
		return func(rng *rand.Rand) (condition [][]float32, base, unit, image []float32) {
			_, p := s.crop(unetSide, rng, func(sp *specimen) [][]float32 { return [][]float32{sp.blind[hole], sp.noisy, sp.sigma} })
			c := slices.Clone(p[0])
			for i := range c {
				c[i] += jitter * p[2][i] * float32(rng.NormFloat64())
			}
			return [][]float32{c}, p[0], p[2], p[1]
		}
	}
	asWritten := ablationUNet
	asWritten.Condition = 1
	g := asWritten.Graph()
	w := s.network("written", g, unetSteps, s.diffusionStep(1, false, jittered(s.hole)), func(params [][]float32) map[string]float64 {
		p := s.compile(g, params)
		return map[string]float64{
			"psnr_db": s.score(func(sp *specimen) []float32 { return written(p, sp, s.hole).srds(seeded(sp, 0), 2) }),
			"leak":    s.leak(func(sp *specimen) []float32 { return written(p, sp, s.hole).srds(seeded(sp, 0), 2) }),
		}
	})
	entries, err := ReadLog(filepath.Join(s.dir, "written.jsonl"))
	if err != nil {
		s.Fatal(err)
	}
	for _, e := range entries {
		s.Logf("as written, K=2, after %d steps: %.2f dB, leak %.2f", e.Step, e.Scores["psnr_db"], e.Scores["leak"])
	}
	var single, pair, two float64
	for _, k := range []int{1, 2, 4, 10, 20} {
		pair = s.score(func(sp *specimen) []float32 { return written(w, sp, s.hole).srds(seeded(sp, 0), k) })
		single = s.score(func(sp *specimen) []float32 { return written(w, sp, s.hole).one(seeded(sp, 0), k) })
		two = s.score(func(sp *specimen) []float32 {
			d := written(w, sp, s.hole)
			return average(d.one(seeded(sp, 0), k), d.one(seeded(sp, 1), k))
		})
		s.Logf("| as written, K=%d | one sample %.2f | two independent %.2f | SRDS %.2f |", k, single, two, pair)
		if k == 10 {
			if pair < single+1 {
				s.Errorf("a stabilized pair is at %.2f dB, one sample at %.2f", pair, single)
			}
			s.Logf("variance of SRDS, of that of two independent samples' mean, K=10: %.3f", s.variance(w))
		}
	}
	for i := s.hole + 1; i < len(holes); i++ {
		wide := s.network(fmt.Sprintf("written-hole%d", holes[i]), g, unetSteps, s.diffusionStep(1, false, jittered(i)), nil)
		row(fmt.Sprintf("as written with hole %d, SRDS K=10", holes[i]), s.score(func(sp *specimen) []float32 { return written(wide, sp, i).srds(seeded(sp, 0), 10) }))
	}
	row("as written, SRDS K=10, + posterior", s.score(func(sp *specimen) []float32 {
		return fused(written(w, sp, s.hole).srds(seeded(sp, 0), 10), sp.noisy, sp.sigma, sp.w, sp.h)
	}))
	r := s.network("regression", g, unetSteps, s.diffusionStep(1, true, jittered(s.hole)), nil)
	row("direct regression from the BSN to the noisy image", s.score(func(sp *specimen) []float32 { return written(r, sp, s.hole).nothing() }))

	// leak-free
	two1 := ablationUNet
	two1.Condition = 2
	recorrupt := func(rng *rand.Rand) (condition [][]float32, base, unit, image []float32) {
		sp, p := s.crop(unetSide, rng, func(sp *specimen) [][]float32 { return [][]float32{sp.noisy, sp.sigma} })
		z := sp.draw(p[1], unetSide, unetSide, rng)
		y1, sigma := recorrupted(p[0], z, tau), scaled(p[1], louder)
		base = fused(blindOf(blind, y1, unetSide, unetSide, holes[s.hole]), y1, sigma, unetSide, unetSide)
		return [][]float32{y1, base}, base, sigma, recorrupted(p[0], z, -1/tau)
	}
	l := s.network("leakfree", two1.Graph(), unetSteps, s.diffusionStep(2, false, recorrupt), nil)
	draws := func(sp *specimen, count, steps int) []float32 {
		var list [][]float32
		for k := range count {
			y1 := recorrupted(sp.noisy, sp.draw(sp.sigma, sp.w, sp.h, seeded(sp, 100+k)), tau)
			list = append(list, s.leakFree(l, blind, y1, scaled(sp.sigma, louder), sp.w, sp.h).srds(seeded(sp, k), steps))
		}
		return average(list...)
	}
	for _, k := range []int{1, 2, 4, 10} {
		single = s.score(func(sp *specimen) []float32 {
			return s.leakFree(l, blind, sp.noisy, sp.sigma, sp.w, sp.h).one(seeded(sp, 0), k)
		})
		pair = s.score(func(sp *specimen) []float32 {
			return s.leakFree(l, blind, sp.noisy, sp.sigma, sp.w, sp.h).srds(seeded(sp, 0), k)
		})
		s.Logf("| leak-free on the image itself, K=%d | one sample %.2f | SRDS %.2f |", k, single, pair)
	}
	for _, count := range []int{1, 4, 8} {
		row(fmt.Sprintf("leak-free, SRDS K=1, mean of %d recorruptions", count), s.score(func(sp *specimen) []float32 { return draws(sp, count, 1) }))
	}
	f := s.network("recorrupted", two1.Graph(), unetSteps, s.diffusionStep(2, true, recorrupt), nil)
	row("the same U-Net on the same pairs, without diffusion", s.score(func(sp *specimen) []float32 {
		return s.leakFree(f, blind, sp.noisy, sp.sigma, sp.w, sp.h).nothing()
	}))

	// distilled
	distilled := func(name string, target func(sp *specimen) []float32) kernels.Program {
		if _, err := os.Stat(filepath.Join(s.dir, name+".safetensors")); err != nil {
			each(len(s.train), func(k int) { s.train[k].target = target(&s.train[k]) })
		}
		return s.student(name, studentSteps, func(rng *rand.Rand) (l law, y, sigma, found []float32) {
			sp, p := s.crop(studentSide, rng, func(sp *specimen) [][]float32 { return [][]float32{sp.noisy, sp.sigma, sp.target} })
			if rng.IntN(2) == 0 {
				return sp.law, p[0], p[1], p[2]
			}
			sigma = scaled(p[1], float32(0.5+1.5*rng.Float64()))
			return sp.law, recorrupted(p[2], sp.draw(sigma, studentSide, studentSide, rng), 1), sigma, p[2]
		})
	}
	k := distilled("student-written", func(sp *specimen) []float32 { return written(w, sp, s.hole).srds(seeded(sp, 0), 2) })
	distilled("student-posterior", func(sp *specimen) []float32 { return fused(sp.blind[s.hole], sp.noisy, sp.sigma, sp.w, sp.h) })
	distilled("student-leakfree", func(sp *specimen) []float32 { return draws(sp, 2, 1) })
	s.student("student-neighbours", studentSteps, func(rng *rand.Rand) (l law, y, sigma, found []float32) {
		sp, p := s.crop(2*studentSide, rng, func(sp *specimen) [][]float32 { return [][]float32{sp.noisy, sp.sigma} })
		y, sigma, found = neighbours(p[0], p[1], rng)
		return sp.law, y, sigma, found
	})
	s.pairs(studentSteps)
	sp := &s.test[0]
	began := time.Now()
	written(w, sp, s.hole).srds(seeded(sp, 0), 10)
	teacher := time.Since(began)
	began = time.Now()
	s.run(k, sp)
	s.Logf("SRDS K=10 takes %.0f times as long as the student", teacher.Seconds()/time.Since(began).Seconds())
}

// passed is the noise in the output of a blind-spot network, of the input's: the root
// of what two draws of noise on the same slice differ by.
func (s *study) passed(blind kernels.Program) float64 {
	shares := make([]float64, len(s.test))
	each(len(s.test), func(k int) {
		sp := &s.test[k]
		var in, out [2][]float32
		for j := range in {
			in[j] = recorrupted(sp.clean, sp.draw(sp.sigma, sp.w, sp.h, seeded(sp, 200+j)), 1)
			out[j] = blindOf(blind, in[j], sp.w, sp.h, holes[s.hole])
		}
		shares[k] = math.Sqrt(score.MSE(out[0], out[1]) / score.MSE(in[0], in[1]))
	})
	return mean(shares)
}

// leak is the slope of a result's error on the noise.
func (s *study) leak(method func(sp *specimen) []float32) float64 {
	slopes := make([]float64, len(s.test))
	each(len(s.test), func(k int) {
		sp, both, square := &s.test[k], 0.0, 0.0
		for i, v := range method(sp) {
			n := float64(sp.noisy[i] - sp.clean[i])
			both += n * float64(v-sp.clean[i])
			square += n * n
		}
		slopes[k] = both / square
	})
	return mean(slopes)
}

// variance is that of a stabilized pair over its start, of that of the mean of two
// samples that start independently.
func (s *study) variance(w kernels.Program) float64 {
	const draws = 6
	shares := make([]float64, len(s.test))
	each(len(s.test), func(k int) {
		sp := &s.test[k]
		var pair, two [][]float32
		d := written(w, sp, s.hole)
		for j := range draws {
			pair = append(pair, d.srds(seeded(sp, 300+j), 10))
			two = append(two, average(d.one(seeded(sp, 400+j), 10), d.one(seeded(sp, 500+j), 10)))
		}
		shares[k] = spread(pair) / spread(two)
	})
	return mean(shares)
}

// spread is the mean square distance from the mean.
func spread(list [][]float32) float64 {
	m, sum := average(list...), 0.0
	for _, v := range list {
		sum += score.MSE(v, m)
	}
	return sum
}

// student trains a student on what found gives, scores it and returns it.
func (s *study) student(name string, steps int, given func(rng *rand.Rand) (l law, y, sigma, found []float32)) kernels.Program {
	s.Helper()
	const cells = studentSide / 2 * studentSide / 2
	p := s.network(name, ablationStudent.Graph(), steps, func(rng *rand.Rand) (*kernels.Batch, error) {
		b := &kernels.Batch{Count: studentBatchSize, Height: studentSide / 2, Width: studentSide / 2,
			Inputs: [][]float32{make([]float32, studentBatchSize*cells*net.StudentIn)}, Target: make([]float32,
				studentBatchSize*cells*4)}
		seeds := drawSeeds(studentBatchSize, rng)
		each(studentBatchSize, func(k int) {
			l, y, sigma, found := given(rand.New(rand.NewPCG(seeds[k], uint64(k))))
			studentWindow(b.Inputs[0][k*cells*net.StudentIn:], y, sigma, studentSide, studentSide, net.Told{l.rho[0],
				l.rho[1]})
			unshuffle(b.Target[k*cells*4:], recorrupted(y, found, -1), studentSide, studentSide)
		})
		return b, nil
	}, nil)
	s.Logf("| %s | %.2f |", name, s.score(func(sp *specimen) []float32 { return s.run(p, sp) }))
	return p
}

func (s *study) run(p kernels.Program, sp *specimen) []float32 {
	out := make([]float32, len(sp.noisy))
	err := studentProgram{p}.Forward(out, sp.noisy, sp.sigma, net.Told{sp.rho[0], sp.rho[1]}, sp.w, sp.h)
	must(err)
	return out
}

// pairs trains one student on recorrupted pairs of noisy images and one on clean
// targets, both on the same slices.
func (s *study) pairs(steps int) (noisy, clean kernels.Program) {
	s.Helper()
	noisy = s.student("student-recorrupted", steps, func(rng *rand.Rand) (l law, y, sigma, found []float32) {
		sp, p := s.crop(studentSide, rng, func(sp *specimen) [][]float32 { return [][]float32{sp.noisy, sp.sigma} })
		z := sp.draw(p[1], studentSide, studentSide, rng)
		return sp.law, recorrupted(p[0], z, tau), scaled(p[1], louder), recorrupted(p[0], z, -1/tau)
	})
	clean = s.student("student-clean", steps, func(rng *rand.Rand) (l law, y, sigma, found []float32) {
		sp, p := s.crop(studentSide, rng, func(sp *specimen) [][]float32 { return [][]float32{sp.noisy, sp.sigma, sp.clean} })
		return sp.law, p[0], p[1], p[2]
	})
	return noisy, clean
}

// students compares, row by row, what one student for all of them learns from noisy
// images with what it learns from clean ones. What learns from noisy magnitudes finds
// their mean, which noise lifts where there is little signal. That can be taken off
// afterwards; or the lowered results are given new noise, and a second student learns to
// find them.
func (s *study) students() {
	noisy, clean := s.pairs(mixedSteps)
	for k := range s.train {
		if sp := &s.train[k]; sp.Magnitude {
			sp.target = s.run(noisy, sp)
			lower(sp.target, sp.sigma)
			empty(sp.target, sp.sigma, sp.w, sp.h)
		}
	}
	again := s.student("student-resynthesized", mixedSteps, func(rng *rand.Rand) (l law, y, sigma, found []float32) {
		sp, p := s.crop(studentSide, rng, func(sp *specimen) [][]float32 {
			if sp.Magnitude {
				return [][]float32{sp.target, sp.sigma}
			}
			return [][]float32{sp.noisy, sp.sigma}
		})
		z := sp.draw(p[1], studentSide, studentSide, rng)
		if !sp.Magnitude {
			return sp.law, recorrupted(p[0], z, tau), scaled(p[1], louder), recorrupted(p[0], z, -1/tau)
		}
		y = recorrupted(p[0], z, 1)
		for i, v := range sp.draw(p[1], studentSide, studentSide, rng) {
			y[i] = hypot(y[i], v)
		}
		return sp.law, y, p[1], p[0]
	})
	var rows []string
	for _, sp := range s.test {
		if !slices.Contains(rows, sp.Name) {
			rows = append(rows, sp.Name)
		}
	}
	for _, name := range rows {
		of := &study{T: s.T, test: slices.DeleteFunc(slices.Clone(s.test), func(sp specimen) bool { return sp.Name != name })}
		before := of.score(func(sp *specimen) []float32 { return sp.noisy })
		lifted := of.score(func(sp *specimen) []float32 { return of.run(noisy, sp) })
		lowered := of.score(func(sp *specimen) []float32 {
			out := of.run(noisy, sp)
			if sp.Magnitude {
				lower(out, sp.sigma)
			}
			return out
		})
		without := of.score(func(sp *specimen) []float32 { return of.run(again, sp) })
		with := of.score(func(sp *specimen) []float32 { return of.run(clean, sp) })
		s.Logf("| %s | noisy %.2f | from noisy images %.2f, lowered %.2f, with new noise %.2f | from clean images %.2f |", name, before, lifted, lowered, without, with)
		if without < with-0.5 {
			s.Errorf("%s: a student of noisy images is at %.2f dB, of clean ones at %.2f", name, without, with)
		}
	}
}

// lower turns the mean of Rician magnitudes into their signal.
func lower(mean, sigma []float32) {
	for i, m := range mean {
		sg := float64(sigma[i])
		low, high := 0.0, float64(max(m, 0))/sg
		for range 30 {
			if a := (low + high) / 2; a+noise.RicianBias(a) > float64(m)/sg {
				high = a
			} else {
				low = a
			}
		}
		mean[i] = float32(low * sg)
	}
}

// empty sets to 0 what is air by the mean of the 7×7 pixels around.
func empty(img, sigma []float32, w, h int) {
	const half, most = 3, 0.7 // standard deviations of the noise
	air := make([]bool, len(img))
	for i := range img {
		sum, n := float32(0), float32(0)
		for y := max(i/w-half, 0); y <= min(i/w+half, h-1); y++ {
			for _, v := range img[y*w+max(i%w-half, 0) : y*w+min(i%w+half, w-1)+1] {
				sum, n = sum+v, n+1
			}
		}
		air[i] = sum < most*sigma[i]*n
	}
	for i := range img {
		if air[i] {
			img[i] = 0
		}
	}
}

// grids compares going to the native grid with a wider hole where k-space is
// zero-filled; each blind-spot network is trained on what it is run on.
func (s *study) grids() {
	native := &study{T: s.T, backend: s.backend, dir: filepath.Join(s.dir, "native")}
	if err := os.MkdirAll(native.dir, 0o755); err != nil {
		s.Fatal(err)
	}
	for k := range s.train {
		c, _ := s.cropped(&s.train[k])
		native.train = append(native.train, c)
	}
	s.blindNetwork()
	onNative := native.blindNetwork()
	for _, fill := range []string{"zero-filled 1.31", "zero-filled 2"} {
		of := &study{T: s.T, test: slices.DeleteFunc(slices.Clone(s.test), func(sp specimen) bool { return sp.Name != fill })}
		s.Logf("%s: noisy %.2f dB", fill, of.score(func(sp *specimen) []float32 { return sp.noisy }))
		for i, size := range holes {
			blind := of.score(func(sp *specimen) []float32 { return sp.blind[i] })
			posterior := of.score(func(sp *specimen) []float32 { return fused(sp.blind[i], sp.noisy, sp.sigma, sp.w, sp.h) })
			filled := of.score(func(sp *specimen) []float32 {
				c, g := s.cropped(sp)
				out := fused(blindOf(onNative, c.noisy, c.w, c.h, size), c.noisy, c.sigma, c.w, c.h)
				removed := make([]float32, g.NativeWidth*g.NativeHeight)
				for r := range c.h {
					for x := range c.w {
						removed[r*g.NativeWidth+x] = c.noisy[r*c.w+x] - out[r*c.w+x]
					}
				}
				return recorrupted(sp.noisy, g.Fill(nil, removed), -1)
			})
			s.Logf("| %s, hole %d | BSN %.2f | + posterior %.2f | + posterior, native grid %.2f |", fill, size, blind, posterior, filled)
		}
	}
}

// cropped brings a slice to its native grid, as far as networks take it.
func (s *study) cropped(sp *specimen) (specimen, *noise.Grid) {
	g, err := noise.Detect(sp.noisy, sp.w, sp.h)
	must(err)
	c := specimen{law: sp.law, w: g.NativeWidth / 4 * 4, h: g.NativeHeight / 4 * 4}
	c.noisy = rectangle(g.Crop(nil, sp.noisy), g.NativeWidth, c.w, c.h)
	c.sigma = rectangle(sp.sigma, sp.w, c.w, c.h) // the same everywhere, and kept by the crop
	return c, g
}

// neighbours makes two images of half the size: of each 2×2 pixels, one has one and
// the other a neighbour of it (Huang et al. 2021, Neighbor2Neighbor, without its
// regularizer).
func neighbours(img, sigma []float32, rng *rand.Rand) (y, s, found []float32) {
	const w = 2 * studentSide
	for r := 0; r < w; r += 2 {
		for c := 0; c < w; c += 2 {
			k := rng.IntN(4)
			other := k ^ (1 + rng.IntN(2)) // along x or along y
			at := func(k int) int { return (r+k/2)*w + c + k%2 }
			y, s, found = append(y, img[at(k)]), append(s, sigma[at(k)]), append(found, img[at(other)])
		}
	}
	return y, s, found
}
