package eval

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/score"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/gate"
	"github.com/diffdenoise/denoised/models/simulate"
)

// Config says what to measure.
type Config struct {
	// Methods are scored, in this order, below the noisy row.
	Methods []Method
	// Ours are the names of those methods that the others are compared with, best
	// last.
	Ours []string
	// Rows are the kinds of noise that are added, and Chains the scanners that slices are
	// sent through, Detectors what radiographs are taken by. All nil: simulate.Rows,
	// simulate.ChainRows and simulate.DetectorRows, each for the images that can have them.
	Rows      []simulate.Row
	Chains    []simulate.ChainRow
	Detectors []simulate.DetectorRow
	// Seed is of the noise.
	Seed uint64
	// Repetitions is how many repetitions of a slice are scored; 0: 3.
	Repetitions int
	// Workers is how many slices are denoised at a time; 0: one per core.
	Workers int
	// Progress, if not nil, is told how many of the steps are done. Calls do not
	// overlap.
	Progress func(done, total int)
}

// Names of the protocols.
const (
	Simulated   = "simulated"
	Scanner     = "scanner"
	Repetitions = "repetitions"
)

const defaultRepetitions = 3

// mostPSNR stands for an image that equals its reference, which has no PSNR.
const mostPSNR = 150

// Score is one denoised slice. PSNR is in dB on a scale of 1.
type Score struct {
	Protocol string `json:"protocol"`
	Group    string `json:"group"` // what it is averaged with
	Set      string `json:"set"`
	Slice    string `json:"slice"`
	Row      string `json:"row"` // kind of noise; the set, if it is of protocol Repetitions
	Method   string `json:"method"`

	PSNR       float64 `json:"psnr"`
	SSIM       float64 `json:"ssim"`
	TissuePSNR float64 `json:"tissue_psnr"`
	TissueSSIM float64 `json:"tissue_ssim"`
	Pixels     int     `json:"pixels"`
	Tissue     int     `json:"tissue_pixels"`
	// Edge and Flat are the mean squares of what was taken off where the reference is
	// steepest and flattest; of the noisy image, those of its error.
	Edge float64 `json:"removed_at_edges"`
	Flat float64 `json:"removed_in_flat_tissue"`

	// Outcome is what became of the slice, and Cause why, if it was not denoised or in part
	// only. Empty for what has no quality gate.
	Outcome Outcome `json:"outcome,omitempty"`
	Cause   string  `json:"cause,omitempty"`

	// Reliability is of what the method states of its error, in simulations; nil if that is
	// nothing.
	Reliability *Reliability `json:"reliability,omitempty"`

	// Repetition, from 0, is the one that was denoised, Others how many the reference is
	// the mean of, and the variances those of the reference's own noise. All are of
	// protocol Repetitions only.
	Repetition     *int    `json:"repetition,omitempty"`
	Others         int     `json:"others,omitempty"`
	Variance       float64 `json:"reference_variance,omitempty"`
	TissueVariance float64 `json:"tissue_reference_variance,omitempty"`
}

// Outcome is what became of a slice.
type Outcome string

// Outcomes.
const (
	Whole     Outcome = "whole"     // all that was found was taken off
	InPart    Outcome = "in part"   // the gate let a part of it through
	HeldBack  Outcome = "held back" // or nothing
	Untouched Outcome = "untouched" // it did not come so far
)

// outcome reads what became of a slice, and the check of the gate or other reason that
// decided it.
func outcome(r *models.Result) (o Outcome, cause string) {
	switch {
	case r.Gate == nil && r.Untouched == "":
		return "", ""
	case r.Gate == nil:
		return Untouched, r.Untouched
	case r.Gate.Action == gate.OK:
		return Whole, ""
	case r.Gate.Action == gate.Blend:
		o = InPart
	default:
		o = HeldBack
	}
	over := 0.0
	for _, c := range r.Gate.Checks {
		if q := c.Value / c.Limit; !c.Pass && q > over {
			over, cause = q, c.Name
		}
	}
	return o, cause
}

// key names the slice of a score among those of its table.
func (s *Score) key() string {
	if s.Repetition != nil {
		return fmt.Sprintf("%s repetition %d", s.Slice, *s.Repetition)
	}
	return s.Slice
}

// job is one noisy slice to be denoised by every method.
type job struct {
	protocol, group, set, slice, row string

	make   func() (example, error)
	rep    int
	others int
	keep   bool // the images, for a panel
	magni  bool

	scores []Score
	images []picture
	truth  example
}

// example is a noisy slice and what is known of it.
type example struct {
	w, h              int
	noisy, sigma, ref []float32
	mask              []bool
}

// row is a kind of noise, and how it comes into a slice.
type row struct {
	protocol, name string
	magnitude      bool
	make           func(p *slice, rng *rand.Rand) (example, error)
}

// added adds noise to a slice.
func added(r simulate.Row) row {
	return row{Simulated, r.Name, r.Magnitude, func(p *slice, rng *rand.Rand) (example, error) {
		noisy, sigma, ref := r.Noise(p.px, p.w, p.h, rng)
		return example{p.w, p.h, noisy, sigma, ref, p.mask}, nil
	}}
}

// scanned sends a slice through a scanner, which may store it in another size.
func scanned(r simulate.ChainRow) row {
	return row{Scanner, r.Name, true, func(p *slice, rng *rand.Rand) (example, error) {
		a, err := r.Chain(p.w, p.h).Run(p.px, p.w, p.h, rng)
		if err != nil {
			return example{}, err
		}
		return example{a.Width, a.Height, a.Noisy, a.Sigma, a.Truth, signal(a.Truth, a.Width, a.Height)}, nil
	}}
}

// detected takes a slice by a detector.
func detected(r simulate.DetectorRow) row {
	return row{Scanner, r.Name, false, func(p *slice, rng *rand.Rand) (example, error) {
		a, err := r.Detector.Run(p.px, p.w, p.h, rng)
		if err != nil {
			return example{}, err
		}
		return example{a.Width, a.Height, a.Noisy, a.Sigma, a.Truth, signal(a.Truth, a.Width, a.Height)}, nil
	}}
}

type picture struct {
	method string
	px     []float32
}

// Run denoises and scores what a Collector holds, which is then spent. It is an
// error if that is nothing, or if a method fails.
func Run(ctx context.Context, c *Collector, cfg Config) (*Report, error) {
	sets := c.finish()
	if len(sets) == 0 {
		return nil, nothing(c.skipped)
	}
	if len(cfg.Methods) == 0 {
		return nil, errors.New("evaluate: no methods")
	}
	workers := cfg.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	r := &runner{cfg: cfg, workers: workers, strength: map[tuneKey]float64{}, seconds: map[string]float64{}, slices: map[string]int{}}
	var jobs []*job
	for k, s := range sets {
		jobs = append(jobs, r.jobs(s, k)...)
	}
	tunings := r.tunings(sets)
	r.total = len(tunings) + len(jobs)
	show := len(cfg.Ours) > 0
	if show {
		r.total += len(tables(jobs))
	}
	if err := r.each(ctx, len(tunings), func(ctx context.Context, i int) error { return r.tune(ctx, tunings[i]) }); err != nil {
		return nil, err
	}
	if err := r.each(ctx, len(jobs), func(ctx context.Context, i int) error { return r.score(ctx, jobs[i]) }); err != nil {
		return nil, err
	}
	var worst []*job
	if show {
		for _, list := range tables(jobs) {
			if j := least(list, cfg.Ours[len(cfg.Ours)-1]); j != nil {
				worst = append(worst, j)
			}
		}
		// The images were not kept, so they are made again.
		if err := r.each(ctx, len(worst), func(ctx context.Context, i int) error { return r.score(ctx, worst[i]) }); err != nil {
			return nil, err
		}
	}
	rep := &Report{Seed: cfg.Seed, Shrink: c.shrink, Skipped: c.skipped, ours: cfg.Ours, Seconds: map[string]float64{}}
	for name, s := range r.seconds {
		rep.Seconds[name] = s / float64(r.slices[name])
	}
	rep.Methods = append(rep.Methods, Noisy)
	for _, m := range cfg.Methods {
		rep.Methods = append(rep.Methods, m.Name)
	}
	for _, j := range jobs {
		rep.Scores = append(rep.Scores, j.scores...)
		if j.keep {
			rep.panels = append(rep.panels, j)
		}
	}
	rep.worst = worst
	for _, s := range sets {
		for _, p := range s.test {
			if !s.repeated {
				rep.References = append(rep.References, Reference{s.group, s.name, p.name, p.own})
			}
		}
	}
	rep.summarize(r.strength)
	return rep, nil
}

// tables are the jobs of each table, in the order of their first.
func tables(jobs []*job) [][]*job {
	var list [][]*job
	at := map[[2]string]int{}
	for _, j := range jobs {
		k, ok := at[[2]string{j.protocol, j.group}]
		if !ok {
			k = len(list)
			at[[2]string{j.protocol, j.group}] = k
			list = append(list, nil)
		}
		list[k] = append(list[k], j)
	}
	return list
}

// least is a copy, without results, of the job in which a method gains least over
// the noisy image in tissue; nil if it was not run.
func least(jobs []*job, method string) *job {
	var found *job
	gain := math.Inf(1)
	for _, j := range jobs {
		for _, s := range j.scores {
			// the noisy image comes first
			if v := s.TissuePSNR - j.scores[0].TissuePSNR; s.Method == method && (found == nil || v < gain) {
				found, gain = j, v
			}
		}
	}
	if found == nil {
		return nil
	}
	c := *found
	c.keep, c.scores, c.images = true, nil, nil
	return &c
}

// nothing says why there is nothing to evaluate.
func nothing(skipped []dataset.Skip) error {
	if len(skipped) == 0 {
		return errors.New("nothing to evaluate: no images were found")
	}
	s := skipped[0]
	return fmt.Errorf("nothing to evaluate: %d left out, the first, %s, because of %s (%s)", len(skipped), s.Source, s.Reason, s.Detail)
}

type runner struct {
	cfg     Config
	workers int

	mu       sync.Mutex
	done     int
	total    int
	strength map[tuneKey]float64
	seconds  map[string]float64
	slices   map[string]int
}

// each calls f for 0 to n-1, some at a time.
func (r *runner) each(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.workers)
	for i := range n {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(ctx, i); err != nil {
				return err
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.done++
			if r.cfg.Progress != nil {
				r.cfg.Progress(r.done, r.total)
			}
			return nil
		})
	}
	return g.Wait()
}

// rowsOf returns the kinds of noise of a group.
func (r *runner) rowsOf(group string) []row {
	noise, chains, detectors := r.cfg.Rows, r.cfg.Chains, r.cfg.Detectors
	mr := group != xray && group != pngs
	all := noise == nil && chains == nil && detectors == nil
	if all {
		noise, chains, detectors = simulate.Rows(), simulate.ChainRows(), simulate.DetectorRows()
	}
	var rows []row
	for _, n := range noise {
		if mr || !all || !n.MR {
			rows = append(rows, added(n))
		}
	}
	for _, c := range chains {
		if mr || !all {
			rows = append(rows, scanned(c))
		}
	}
	for _, d := range detectors {
		if group == xray || !all {
			rows = append(rows, detected(d))
		}
	}
	return rows
}

// row names the row of a set of repetitions: k is how many the reference is the mean of.
func (s *set) row() string { return fmt.Sprintf("%s, k = %d", s.name, len(s.repeats)-1) }

// jobs lists what is scored of a set, the k-th.
func (r *runner) jobs(s *set, k int) []*job {
	var jobs []*job
	middle := len(s.test) / 2
	if s.repeated {
		n := r.cfg.Repetitions
		if n <= 0 {
			n = defaultRepetitions
		}
		n = min(n, len(s.repeats))
		for q := range n {
			rep := int((float64(q) + 0.5) / float64(n) * float64(len(s.repeats)))
			for i, p := range s.test {
				jobs = append(jobs, &job{protocol: Repetitions, group: s.group, set: s.name, slice: p.name,
					row:  s.row(),
					make: func() (example, error) { return repeated(s.repeats, i, rep), nil }, rep: rep,
					others: len(s.repeats) - 1,
					keep:   i == middle && q == 0, magni: s.magnitude})
			}
		}
		return jobs
	}
	rows := r.rowsOf(s.group)
	for q, row := range rows {
		for i, p := range s.test {
			jobs = append(jobs, &job{protocol: row.protocol, group: s.group, set: s.name, slice: p.name, row: row.name,
				make: func() (example, error) { return r.example(p, row, 0) },
				keep: i == middle && q == k%len(rows), magni: row.magnitude})
		}
	}
	return jobs
}

// example makes a slice noisy. The noise follows from the seed, the slice's name, the
// row's name and the use, and from nothing else.
func (r *runner) example(p *slice, row row, use uint64) (example, error) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%d", p.name, row.name, use)
	e, err := row.make(p, rand.New(rand.NewPCG(h.Sum64(), r.cfg.Seed)))
	if err != nil {
		return e, fmt.Errorf("%s, %s: %w", p.name, row.name, err)
	}
	if e.mask == nil { // all that was tissue is gone
		e.mask = slices.Repeat([]bool{true}, len(e.ref))
	}
	return e, nil
}

// repeated is repetition rep of slice i against the mean of the others. The noise
// that the classical methods are told is measured from all repetitions: half the
// mean square of what changes from one to the next, averaged over 7×7 pixels. Pixels
// that are at the least or greatest value of their slice in any repetition are no tissue:
// they may have been cut off there.
func repeated(repeats [][]*slice, i, rep int) example {
	p := repeats[rep][i]
	e := example{w: p.w, h: p.h, noisy: p.px, ref: meanOf(repeats, i, rep)}
	if e.mask = Tissue(e.ref, p.w, p.h); e.mask == nil {
		e.mask = p.mask
	}
	cutOff := make([]bool, len(p.px))
	for r := range repeats {
		saturated(cutOff, repeats[r][i].px)
	}
	inner := make([]bool, len(p.px))
	for k, in := range e.mask {
		inner[k] = in && !cutOff[k]
	}
	if count(inner) > 0 {
		e.mask = inner
	}
	variance := make([]float64, len(p.px))
	for r := range len(repeats) - 1 {
		a, b := repeats[r][i].px, repeats[r+1][i].px
		for k := range variance {
			d := float64(b[k]) - float64(a[k])
			variance[k] += d * d / 2 / float64(len(repeats)-1)
		}
	}
	e.sigma = make([]float32, len(p.px))
	const half = 3
	for y := range p.h {
		for x := range p.w {
			sum, n := 0.0, 0.0
			for v := max(y-half, 0); v < min(y+half+1, p.h); v++ {
				for u := max(x-half, 0); u < min(x+half+1, p.w); u++ {
					sum, n = sum+variance[v*p.w+u], n+1
				}
			}
			e.sigma[y*p.w+x] = float32(math.Sqrt(sum / n))
		}
	}
	return e
}

// tuneKey names what a strength is tuned for.
type tuneKey struct{ protocol, group, row, method string }

type tuning struct {
	key      tuneKey
	method   Method
	examples func() ([]example, error)
}

// tunings lists what has a strength to find.
func (r *runner) tunings(sets []*set) []tuning {
	var list []tuning
	add := func(protocol, group, row string, magnitude bool, examples func() ([]example, error)) {
		for _, m := range r.cfg.Methods {
			if m.Strengths != nil && (!m.Magnitude || magnitude) {
				list = append(list, tuning{tuneKey{protocol, group, row, m.Name}, m, examples})
			}
		}
	}
	groups := map[string][]*slice{}
	var names []string
	for _, s := range sets {
		if s.repeated {
			add(Repetitions, s.group, s.row(), s.magnitude, func() (list []example, err error) {
				for i := range s.tune {
					list = append(list, repeated(s.tuneRepeats, i, i%len(s.tuneRepeats)))
				}
				if len(list) == 0 { // there is one slice alone: rather too good for the classical methods
					list = append(list, repeated(s.repeats, 0, len(s.repeats)-1))
				}
				return list, nil
			})
			continue
		}
		if groups[s.group] == nil {
			names = append(names, s.group)
		}
		groups[s.group] = append(groups[s.group], s.tune...)
	}
	for _, name := range names {
		var few []*slice
		all := groups[name]
		for i := range min(tuneSlices, len(all)) {
			few = append(few, all[i*len(all)/min(tuneSlices, len(all))].middle())
		}
		if len(few) == 0 {
			continue
		}
		for _, row := range r.rowsOf(name) {
			add(row.protocol, name, row.name, row.magnitude, func() (list []example, err error) {
				for _, p := range few {
					e, err := r.example(p, row, 1)
					if err != nil {
						return nil, err
					}
					list = append(list, e)
				}
				return list, nil
			})
		}
	}
	return list
}

// What a strength is tuned on.
const (
	tuneSlices = 3   // per group and kind of noise
	tuneSide   = 256 // their middle, pixels
)

// middle is the middle of a slice.
func (p *slice) middle() *slice {
	x, y, w, h := window(p.w, p.h, p.w/2, p.h/2, tuneSide)
	px := cut(p.px, p.w, x, y, w, h)
	return &slice{name: p.name, w: w, h: h, px: px, mask: Tissue(px, w, h)}
}

// window is the part of at most side×side pixels of a w×h image that lies around
// (cx, cy) as far as the borders allow.
func window(w, h, cx, cy, side int) (x, y, ww, wh int) {
	ww, wh = min(w, side), min(h, side)
	return min(max(cx-ww/2, 0), w-ww), min(max(cy-wh/2, 0), h-wh), ww, wh
}

func cut(px []float32, stride, x, y, w, h int) []float32 {
	out := make([]float32, 0, w*h)
	for k := range h {
		out = append(out, px[(y+k)*stride+x:][:w]...)
	}
	return out
}

// tune finds the strength of the best PSNR, whole slices and tissue counting alike.
func (r *runner) tune(ctx context.Context, t tuning) error {
	examples, err := t.examples()
	if err != nil {
		return fmt.Errorf("tune %s: %w", t.method.Name, err)
	}
	best, at := math.Inf(-1), t.method.Strengths[0]
	for _, strength := range t.method.Strengths {
		sum := 0.0
		for _, e := range examples {
			out, err := t.method.Run(ctx, Input{Width: e.w, Height: e.h, Pixels: e.noisy, Sigma: e.sigma, Strength: strength})
			if err != nil {
				return fmt.Errorf("tune %s for %s: %w", t.method.Name, t.key.row, err)
			}
			sum += psnr(score.MSE(out.Pixels, e.ref)) + psnr(score.MSEIn(out.Pixels, e.ref, e.mask))
		}
		if sum > best {
			best, at = sum, strength
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.strength[t.key] = at
	return nil
}

func psnr(mse float64) float64 { return min(-10*math.Log10(mse), mostPSNR) }

// score runs all methods on a job.
func (r *runner) score(ctx context.Context, j *job) error {
	e, err := j.make()
	if err != nil {
		return err
	}
	edge, flat := edges(e.ref, e.mask, e.w, e.h)
	variance, inside, n := 0.0, 0.0, 0.0
	for i, s := range e.sigma {
		v := float64(s) * float64(s)
		if variance += v; e.mask[i] {
			inside, n = inside+v, n+1
		}
	}
	variance, inside = variance/float64(len(e.sigma)), inside/n
	add := func(method string, r *models.Result) {
		px := r.Pixels
		s := Score{Protocol: j.protocol, Group: j.group, Set: j.set, Slice: j.slice, Row: j.row, Method: method,
			Pixels: len(px), Tissue: int(n)}
		s.PSNR, s.TissuePSNR = psnr(score.MSE(px, e.ref)), psnr(score.MSEIn(px, e.ref, e.mask))
		s.SSIM, s.TissueSSIM = score.SSIMIn(px, e.ref, e.mask, e.w, e.h, 1)
		left := px
		if method == Noisy {
			left = e.ref
		}
		s.Edge, s.Flat = meanSquare(e.noisy, left, edge), meanSquare(e.noisy, left, flat)
		s.Outcome, s.Cause = outcome(r)
		if j.protocol == Repetitions {
			s.Repetition, s.Others = &j.rep, j.others
			s.Variance, s.TissueVariance = variance/float64(j.others), inside/float64(j.others)
		} else {
			s.Reliability = reliability(r, &e)
		}
		j.scores = append(j.scores, s)
		if j.keep {
			j.images = append(j.images, picture{method, px})
		}
	}
	add(Noisy, &models.Result{Pixels: e.noisy})
	for _, m := range r.cfg.Methods {
		if m.Magnitude && !j.magni {
			continue
		}
		in := Input{Width: e.w, Height: e.h, Pixels: slices.Clone(e.noisy)}
		if m.Strengths != nil {
			in.Sigma, in.Strength = e.sigma, m.Strengths[0]
			r.mu.Lock()
			if s, ok := r.strength[tuneKey{j.protocol, j.group, j.row, m.Name}]; ok {
				in.Strength = s
			}
			r.mu.Unlock()
		}
		started := time.Now()
		result, err := m.Run(ctx, in)
		if err != nil {
			return fmt.Errorf("%s on %s, %s: %w", m.Name, j.slice, j.row, err)
		}
		px := result.Pixels
		if len(px) != len(e.noisy) {
			return fmt.Errorf("%s on %s, %s: %d pixels of %d", m.Name, j.slice, j.row, len(px), len(e.noisy))
		}
		if u := result.Uncertainty; u != nil && len(u) != len(px) {
			return fmt.Errorf("%s on %s, %s: %d values of uncertainty of %d", m.Name, j.slice, j.row, len(u), len(px))
		}
		for i, v := range px {
			if v-v != 0 {
				return fmt.Errorf("%s on %s, %s: pixel (%d, %d) is not finite", m.Name, j.slice, j.row, i%e.w, i/e.w)
			}
		}
		r.mu.Lock()
		r.seconds[m.Name] += time.Since(started).Seconds()
		r.slices[m.Name]++
		r.mu.Unlock()
		add(m.Name, result)
	}
	if j.keep {
		j.truth = e
	}
	return nil
}

// meanSquare is that of the difference where it is marked; 0 if nothing is.
func meanSquare(a, b []float32, mask []bool) float64 {
	if v := score.MSEIn(a, b, mask); v == v {
		return v
	}
	return 0
}
