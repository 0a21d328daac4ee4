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

	"github.com/diffdenoise/denoised/internal/score"
	"github.com/diffdenoise/denoised/models/simulate"
)

// Config says what to measure.
type Config struct {
	// Methods are scored, in this order, below the noisy row.
	Methods []Method
	// Ours are the names of those methods that the others are compared with, best
	// last.
	Ours []string
	// Rows are the kinds of noise that are added; nil: simulate.Rows, without those
	// that only MR has for radiographs and PNG images.
	Rows []simulate.Row
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
	Row      string `json:"row"` // kind of noise; "real"
	Method   string `json:"method"`

	PSNR       float64 `json:"psnr"`
	SSIM       float64 `json:"ssim"`
	TissuePSNR float64 `json:"tissue_psnr"`
	TissueSSIM float64 `json:"tissue_ssim"`

	// Repetition, from 0, is the one that was denoised, and Others how many the
	// reference is the mean of. The corrected PSNR is without the reference's own
	// noise; it is nil where that explains all of the error. All are of protocol
	// Repetitions only.
	Repetition      *int     `json:"repetition,omitempty"`
	Others          int      `json:"others,omitempty"`
	Corrected       *float64 `json:"psnr_corrected,omitempty"`
	TissueCorrected *float64 `json:"tissue_psnr_corrected,omitempty"`
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

	make   func() example
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

type picture struct {
	method string
	px     []float32
}

// realRow is the name of the row of protocol Repetitions.
const realRow = "real"

// Run denoises and scores what a Collector holds, which is then spent. It is an
// error if that is nothing, or if a method fails.
func Run(ctx context.Context, c *Collector, cfg Config) (*Report, error) {
	sets := c.finish()
	if len(sets) == 0 {
		return nil, nothing(c.skipped)
	}
	if cfg.Rows != nil && len(cfg.Rows) == 0 || len(cfg.Methods) == 0 {
		return nil, errors.New("evaluate: no kinds of noise or no methods")
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
func nothing(skipped []Skip) error {
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
func (r *runner) rowsOf(group string) []simulate.Row {
	rows := r.cfg.Rows
	if rows == nil {
		for _, row := range simulate.Rows() {
			if !row.MR || group != xray && group != pngs {
				rows = append(rows, row)
			}
		}
	}
	return rows
}

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
				jobs = append(jobs, &job{protocol: Repetitions, group: s.group, set: s.name, slice: p.name, row: realRow,
					make: func() example { return repeated(s.repeats, i, rep) }, rep: rep, others: len(s.repeats) - 1,
					keep: i == middle && q == 0, magni: s.group != xray})
			}
		}
		return jobs
	}
	rows := r.rowsOf(s.group)
	for q, row := range rows {
		for i, p := range s.test {
			jobs = append(jobs, &job{protocol: Simulated, group: s.group, set: s.name, slice: p.name, row: row.Name,
				make: func() example { return r.simulated(p, row, 0) },
				keep: i == middle && q == k%len(rows), magni: row.Magnitude})
		}
	}
	return jobs
}

// simulated adds noise to a slice. The noise follows from the seed, the slice's
// name, the row's name and the use, and from nothing else.
func (r *runner) simulated(p *slice, row simulate.Row, use uint64) example {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%d", p.name, row.Name, use)
	noisy, sigma, ref := row.Noise(p.px, p.w, p.h, rand.New(rand.NewPCG(h.Sum64(), r.cfg.Seed)))
	return example{w: p.w, h: p.h, noisy: noisy, sigma: sigma, ref: ref, mask: p.mask}
}

// repeated is repetition rep of slice i against the mean of the others. The noise
// that the classical methods are told is measured from all repetitions: half the
// mean square of what changes from one to the next, averaged over 7×7 pixels.
func repeated(repeats [][]*slice, i, rep int) example {
	p := repeats[rep][i]
	e := example{w: p.w, h: p.h, noisy: p.px, ref: meanOf(repeats, i, rep)}
	if e.mask = Tissue(e.ref, p.w, p.h); e.mask == nil {
		e.mask = p.mask
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
	examples func() []example
}

// tunings lists what has a strength to find.
func (r *runner) tunings(sets []*set) []tuning {
	var list []tuning
	add := func(protocol, group, row string, magnitude bool, examples func() []example) {
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
			if len(s.tune) > 0 {
				add(Repetitions, s.group, realRow, s.group != xray, func() []example {
					var list []example
					for i := range s.tune {
						list = append(list, repeated(s.tuneRepeats, i, i%len(s.tuneRepeats)))
					}
					return list
				})
			}
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
			add(Simulated, name, row.Name, row.Magnitude, func() []example {
				var list []example
				for _, p := range few {
					list = append(list, r.simulated(p, row, 1))
				}
				return list
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
	examples := t.examples()
	best, at := math.Inf(-1), t.method.Strengths[0]
	for _, strength := range t.method.Strengths {
		sum := 0.0
		for _, e := range examples {
			out, err := t.method.Run(ctx, Input{Width: e.w, Height: e.h, Pixels: e.noisy, Sigma: e.sigma, Strength: strength})
			if err != nil {
				return fmt.Errorf("tune %s for %s: %w", t.method.Name, t.key.row, err)
			}
			if sum += psnr(score.MSE(out, e.ref)); e.mask != nil {
				sum += psnr(score.MSEIn(out, e.ref, e.mask))
			}
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
	e := j.make()
	variance, inside, n := 0.0, 0.0, 0.0
	for i, s := range e.sigma {
		v := float64(s) * float64(s)
		if variance += v; e.mask[i] {
			inside, n = inside+v, n+1
		}
	}
	variance, inside = variance/float64(len(e.sigma)), inside/n
	add := func(method string, px []float32) {
		s := Score{Protocol: j.protocol, Group: j.group, Set: j.set, Slice: j.slice, Row: j.row, Method: method}
		whole, tissue := score.MSE(px, e.ref), score.MSEIn(px, e.ref, e.mask)
		s.PSNR, s.TissuePSNR = psnr(whole), psnr(tissue)
		s.SSIM, s.TissueSSIM = score.SSIMIn(px, e.ref, e.mask, e.w, e.h, 1)
		if j.protocol == Repetitions {
			s.Repetition, s.Others = &j.rep, j.others
			s.Corrected = corrected(whole, variance/float64(j.others))
			s.TissueCorrected = corrected(tissue, inside/float64(j.others))
		}
		j.scores = append(j.scores, s)
		if j.keep {
			j.images = append(j.images, picture{method, px})
		}
	}
	add(Noisy, e.noisy)
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
		px, err := m.Run(ctx, in)
		if err != nil {
			return fmt.Errorf("%s on %s, %s: %w", m.Name, j.slice, j.row, err)
		}
		if len(px) != len(e.noisy) {
			return fmt.Errorf("%s on %s, %s: %d pixels of %d", m.Name, j.slice, j.row, len(px), len(e.noisy))
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
		add(m.Name, px)
	}
	if j.keep {
		j.truth = e
	}
	return nil
}

// corrected is the PSNR without the reference's own noise, of the given variance.
func corrected(mse, variance float64) *float64 {
	if mse <= variance {
		return nil
	}
	p := psnr(mse - variance)
	return &p
}
