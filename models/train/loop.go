package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// stage is the training of one network.
type stage struct {
	name         string // of files and log lines
	architecture string
	graph        *kernels.Graph
	steps        int
	rate         float64 // at its highest
	decay        float64
	ema          float64
	// batch makes the batch of a step. rng is the step's own, so that training can
	// go on at any step.
	batch func(step int, rng *rand.Rand) (*kernels.Batch, error)
	// validate scores weights, for the log and to keep the best; may be nil. Less
	// is better.
	validate func(params [][]float32) (scores map[string]float64, score float64, err error)
	every    int // steps between validations and checkpoints
	// last keeps the weights of the last step, whatever was validated: for a network of all kinds
	// of noise, a few scenes tell less than the fall of the rate.
	last bool
}

// ErrStopped is the error for training that ended before its last step, at the
// deadline or because it was asked to. A checkpoint was written; resuming goes on
// with the next step.
var ErrStopped = errors.New("training stopped before its last step")

// clip is the greatest norm of a gradient. Usual ones are a quarter of it; without it, one bad
// batch can throw a deep network so far that it does not come back.
const clip = 0.02

// warmUp is the share of the steps over which the rate rises.
const warmUp = 0.02

// rateAt is a linear rise and a cosine down to a hundredth.
func (s *stage) rateAt(step int) float64 {
	x := float64(step) / float64(s.steps)
	if x < warmUp {
		return s.rate * (x + 1/float64(s.steps)) / warmUp
	}
	x = (x - warmUp) / (1 - warmUp)
	return s.rate * (0.01 + 0.99*(0.5+0.5*math.Cos(math.Pi*min(x, 1))))
}

// trained is what a stage ends with.
type trained struct {
	params [][]float32
	step   int // after which they were so
	loss   float64
	scores map[string]float64
}

// run trains from the checkpoint in dir, if resume is set and there is one, else
// from the start. It returns the mean weights: the best validated ones if the stage
// validates, else the last.
func (s *stage) run(ctx context.Context, backend kernels.GraphBackend, dir string, c Config) (*trained, error) {
	path := filepath.Join(dir, s.name+".checkpoint")
	cp := &checkpoint{state: kernels.NewState(s.graph.Init(c.Seed)), best: math.Inf(1)}
	if c.Resume {
		switch old, err := readCheckpoint(path, s, c.Seed); {
		case err == nil:
			cp = old
		case !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("resume: %w", err)
		}
	}
	if c.Log != nil { // lines after the checkpoint are written again
		if err := c.Log.Rewind(s.name, cp.state.Step); err != nil {
			return nil, err
		}
	}
	trainer, err := backend.Train(s.graph, cp.state, kernels.TrainOptions{Decay: s.decay, Clip: clip,
		EMA: s.ema, Workers: c.Workers})
	if err != nil {
		return nil, err
	}
	if c, ok := trainer.(io.Closer); ok {
		defer c.Close()
	}
	save := func() error {
		cp.state = trainer.State()
		return cp.write(path, s, c.Seed)
	}
	began, loss, counted := time.Now(), 0.0, 0
	for step := cp.state.Step; step < s.steps; step++ {
		if err := ctx.Err(); err != nil || !c.Deadline.IsZero() && time.Now().After(c.Deadline) {
			if err := save(); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("%s: %w: %d of %d done", s.name, ErrStopped, step, s.steps)
		}
		b, err := s.batch(step, rand.New(rand.NewPCG(c.Seed, stepSeed(s.name, step))))
		if err != nil {
			return nil, fmt.Errorf("train %s: step %d: %w", s.name, step+1, err)
		}
		rate := s.rateAt(step)
		l, norm, err := trainer.Step(b, rate)
		if err != nil {
			return nil, fmt.Errorf("train %s: %w", s.name, err)
		}
		loss, counted = loss+l, counted+1
		if c.Progress != nil {
			c.Progress(Progress{Stage: s.name, Step: step + 1, Steps: s.steps, Loss: l})
		}
		if (step+1)%s.every != 0 && step+1 < s.steps {
			continue
		}
		e := Entry{Step: step + 1, Stage: s.name, Loss: loss / float64(counted), Rate: rate, Norm: norm, Seconds: time.Since(began).Seconds(), Backend: backend.Name()}
		began, loss, counted = time.Now(), 0, 0
		state := trainer.State()
		if s.validate != nil {
			var score float64
			if e.Scores, score, err = s.validate(state.EMA); err != nil {
				return nil, fmt.Errorf("validate %s after step %d: %w", s.name, step+1, err)
			}
			if score < cp.best || s.last {
				cp.best, cp.bestStep, cp.bestParams = score, step+1, state.EMA
				cp.loss, cp.scores = e.Loss, maps.Clone(e.Scores)
				maps.DeleteFunc(cp.scores, func(_ string, v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) }) // no JSON
			}
		} else {
			cp.loss = e.Loss
		}
		if err := save(); err != nil {
			return nil, err
		}
		if c.Log != nil {
			if err := c.Log.Write(e); err != nil {
				return nil, err
			}
		}
	}
	if cp.bestParams == nil {
		return &trained{trainer.State().EMA, s.steps, cp.loss, nil}, nil
	}
	return &trained{cp.bestParams, cp.bestStep, cp.loss, cp.scores}, nil
}

// stepSeed tells the steps of all stages apart.
func stepSeed(stage string, step int) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for _, c := range []byte(stage) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h ^ uint64(step)<<20
}

// checkpoint is all that training needs to go on: with it, the weights after the
// last step are the same to the bit as without the break.
type checkpoint struct {
	state      *kernels.State
	best       float64 // score of bestParams
	bestStep   int
	bestParams [][]float32 // nil: none yet
	// loss until bestStep and the scores there; of the last step if nothing is validated
	loss   float64
	scores map[string]float64
}

const checkpointFormat = "denoised-checkpoint-v1"

// write replaces the file at path, whole or not at all.
func (cp *checkpoint) write(path string, s *stage, seed uint64) error {
	f := &safetensors.File{Metadata: map[string]string{
		"format": checkpointFormat, "stage": s.name, "architecture": s.architecture,
		"step": strconv.Itoa(cp.state.Step), "steps": strconv.Itoa(s.steps), "seed": strconv.FormatUint(seed, 10),
		"best_step": strconv.Itoa(cp.bestStep), "best": strconv.FormatFloat(cp.best, 'g', -1, 64), "loss": strconv.FormatFloat(cp.loss, 'g', -1, 64),
	}, Tensors: map[string]safetensors.Tensor{}}
	if cp.scores != nil {
		b, err := json.Marshal(cp.scores)
		if err != nil {
			return fmt.Errorf("write checkpoint %s: %w", path, err)
		}
		f.Metadata["scores"] = string(b)
	}
	for name, values := range cp.parts() {
		for i, p := range *values {
			f.Tensors[name+"."+s.graph.Params[i].Name] = safetensors.Tensor{Shape: s.graph.Params[i].Shape, Data: p}
		}
	}
	b, err := f.Encode()
	if err != nil {
		return fmt.Errorf("write checkpoint %s: %w", path, err)
	}
	if err := atomicfile.Write(path, 0o644, func(w *os.File) error { _, err := w.Write(b); return err }); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	return nil
}

func (cp *checkpoint) parts() map[string]*[][]float32 {
	return map[string]*[][]float32{"params": &cp.state.Params, "mean": &cp.state.Mean, "squares": &cp.state.Squares, "ema": &cp.state.EMA, "best": &cp.bestParams}
}

func readCheckpoint(path string, s *stage, seed uint64) (*checkpoint, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := safetensors.Read(r)
	if err != nil {
		return nil, fmt.Errorf("read checkpoint %s: %w", path, err)
	}
	for key, want := range map[string]string{"format": checkpointFormat, "stage": s.name, "architecture": s.architecture, "steps": strconv.Itoa(s.steps), "seed": strconv.FormatUint(seed, 10)} {
		if got := f.Metadata[key]; got != want {
			return nil, fmt.Errorf("read checkpoint %s: it is of %s %.60q, this training of %q: use another folder, or the same settings", path, key, got, want)
		}
	}
	cp := &checkpoint{state: new(kernels.State)}
	if cp.state.Step, err = strconv.Atoi(f.Metadata["step"]); err != nil || cp.state.Step < 0 || cp.state.Step > s.steps {
		return nil, fmt.Errorf("read checkpoint %s: step %.20q", path, f.Metadata["step"])
	}
	cp.bestStep, _ = strconv.Atoi(f.Metadata["best_step"])
	if cp.best, err = strconv.ParseFloat(f.Metadata["best"], 64); err != nil {
		return nil, fmt.Errorf("read checkpoint %s: best score %.20q", path, f.Metadata["best"])
	}
	if v, ok := f.Metadata["loss"]; ok {
		if cp.loss, err = strconv.ParseFloat(v, 64); err != nil {
			return nil, fmt.Errorf("read checkpoint %s: loss %.20q", path, v)
		}
	}
	if v, ok := f.Metadata["scores"]; ok {
		if err := json.Unmarshal([]byte(v), &cp.scores); err != nil {
			return nil, fmt.Errorf("read checkpoint %s: scores %.60q", path, v)
		}
	}
	for name, values := range cp.parts() {
		if name == "best" && cp.bestStep == 0 {
			continue
		}
		for i := range s.graph.Params {
			p := &s.graph.Params[i]
			t, ok := f.Tensors[name+"."+p.Name]
			if !ok || len(t.Data) != p.Len() {
				return nil, fmt.Errorf("read checkpoint %s: %s.%s is missing or of another shape", path, name, p.Name)
			}
			*values = append(*values, t.Data)
		}
		if err := s.graph.CheckParams(*values); err != nil {
			return nil, fmt.Errorf("read checkpoint %s: %s: %w", path, name, err)
		}
	}
	return cp, nil
}
