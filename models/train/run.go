package train

import (
	"context"
	"errors"
	"fmt"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/store"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/safetensors"
)

// Config says what to train and how.
type Config struct {
	Stage  string // one of Stages, or StageAll
	Preset string // a name in Presets
	// Distil lets the student of From learn also from what the networks of From make of the training
	// images. Stage must be StageStudent.
	Distil bool
	// From is a model, by name or folder, whose networks the training goes on from; empty: from
	// nothing. Its networks must be of the preset's architecture; those that it does not have begin
	// from nothing, those that are not trained are part of the result as they are,
	// if the images are of the same kind.
	From string
	// AsWritten trains the diffusion network on the noisy image around the blind-spot
	// prediction, as arXiv 2504.00264 writes it, instead of the leak-free form. It is
	// there to compare with.
	AsWritten bool
	Seed      uint64
	Out       string // folder of checkpoints and weights; it must exist
	Resume    bool   // go on from the checkpoints in Out
	Workers   int    // threads; 0: one per core. The weights are the same for any number.
	// Deadline, if not zero, stops training with ErrStopped and a checkpoint.
	Deadline time.Time
	Log      *Log           // may be nil
	Progress func(Progress) // may be nil; called after every step
}

// Progress is where training is.
type Progress struct {
	Stage       string
	Step, Steps int
	Loss        float64
}

// Names of the stages, in the order in which they run. The diffusion network is given
// what the blind-spot network and the student say.
const (
	StageMeter     = store.NetworkMeter
	StageBSN       = store.NetworkBSN
	StageDiffusion = store.NetworkDiffusion
	StageStudent   = store.NetworkStudent
	StageAll       = "all"
)

// Stages are all of them.
var Stages = []string{StageMeter, StageBSN, StageStudent, StageDiffusion}

// Networks are the sizes of those that are trained.
type Networks struct {
	Meter     net.MeterConfig
	BSN       net.BSNConfig
	Diffusion net.TeacherConfig
	Student   net.StudentConfig
}

// Preset is a size of networks and an effort.
type Preset struct {
	Name string
	Networks
	// Steps, pieces per step and the side of a piece, in the order of Stages.
	Steps, Batch, Side [4]int
	Rate               [4]float64 // of learning, at its highest
	Every              int        // steps between checkpoints
}

// embedded are the networks of the embedded models.
var embedded = Networks{
	Meter:     net.MeterConfig{Channels: 64},
	BSN:       net.BSNConfig{Channels: [3]int{16, 32, 48}, Mix: 32},
	Diffusion: net.TeacherConfig{Condition: net.TeacherCondition, Channels: [3]int{32, 48, 64}, Code: 64},
	Student:   net.StudentConfig{Channels: 16, Blocks: 16},
}

// Presets are what Config.Preset may name. Tiny trains end to end in ten minutes on
// two cores; default is what the embedded model was trained with.
var Presets = []Preset{
	{
		Name: "tiny",
		Networks: Networks{
			Meter:     net.MeterConfig{Channels: 32},
			BSN:       net.BSNConfig{Channels: [3]int{16, 16, 16}, Mix: 16},
			Diffusion: net.TeacherConfig{Condition: net.TeacherCondition, Channels: [3]int{16, 32, 32}, Code: 32},
			Student:   net.StudentConfig{Channels: 32, Blocks: 3},
		},
		Steps: [4]int{800, 600, 2000, 800}, Batch: [4]int{8, 4, 8, 4}, Side: [4]int{64, 64, 64, 64}, Every: 100,
		Rate: [4]float64{2e-3, 1e-3, 1.5e-3, 1e-3},
	},
	{
		Name:     "default",
		Networks: embedded,
		Steps:    [4]int{12000, 3000, 28000, 3000}, Batch: [4]int{12, 4, 6, 4}, Side: [4]int{96, 96, 96, 96},
		Every: 500,
		Rate:  [4]float64{2e-3, 1e-3, 1.5e-3, 1e-3},
	},
	{
		// to go on from a model that has them (Config.From)
		Name:     "tune",
		Networks: embedded,
		Steps:    [4]int{2000, 1500, 8000, 1500}, Batch: [4]int{12, 4, 6, 4}, Side: [4]int{96, 96, 96, 96},
		Every: 250,
		Rate:  [4]float64{1e-3, 5e-4, 1e-3, 5e-4},
	},
	{
		Name: "large",
		Networks: Networks{
			Meter:     net.MeterConfig{Channels: 96},
			BSN:       net.BSNConfig{Channels: [3]int{32, 48, 64}, Mix: 48},
			Diffusion: net.TeacherConfig{Condition: net.TeacherCondition, Channels: [3]int{48, 64, 96}, Code: 64},
			Student:   net.StudentConfig{Channels: 64, Blocks: 8},
		},
		Steps: [4]int{20000, 20000, 60000, 30000}, Batch: [4]int{16, 8, 16, 8}, Side: [4]int{96, 128, 96, 96},
		Every: 500,
		Rate:  [4]float64{2e-3, 1e-3, 1e-3, 1e-3},
	},
}

// FindPreset returns the preset of a name.
func FindPreset(name string) (Preset, error) {
	var names []string
	for _, p := range Presets {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Preset{}, fmt.Errorf("there is no preset %q; there are %s", name, strings.Join(names, ", "))
}

// Result is what a training made.
type Result struct {
	// Networks are the weights files of the networks that are in Out now, by name.
	Networks map[string]*safetensors.File
	// Stages say how those that ran were trained.
	Stages []store.Stage
}

// Run trains the stages that c asks for on set, on a backend. Checkpoints and, after
// each stage, its weights (Out/bsn.safetensors and so on) are written whole or not
// at all. A stage whose weights are in Out is not run again with Resume; a single
// stage reads the weights of those before it from there.
//
// An error that wraps ErrStopped means that it can be resumed. One goroutine at a
// time uses a folder.
func Run(ctx context.Context, backend kernels.GraphBackend, set *Set, c Config) (*Result, error) {
	preset, err := FindPreset(c.Preset)
	if err != nil {
		return nil, err
	}
	if c.Distil && (c.From == "" || c.Stage != StageStudent) {
		return nil, errors.New("train: to distil is to go on with a model's student: it needs From and the stage student")
	}
	if c.AsWritten {
		preset.Diffusion.Condition = net.WrittenCondition
	}
	t := &training{Config: c, preset: preset, set: set, backend: backend}
	if len(set.Validation) == 0 {
		return nil, errors.New("train: there are no slices to validate on")
	}
	r := &Result{Networks: map[string]*safetensors.File{}}
	ran := false
	for k, name := range Stages {
		if c.Stage != StageAll && c.Stage != name {
			continue
		}
		ran = true
		if c.Resume && c.Stage == StageAll {
			if _, err := t.weights(name); err == nil {
				continue
			} else if !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
		s, err := t.stage(ctx, k)
		if err == nil {
			s.start, err = t.from(name, s.architecture)
		}
		if err != nil {
			return nil, fmt.Errorf("train %s: %w", name, err)
		}
		began := time.Now()
		done, err := s.run(ctx, backend, c.Out, c)
		if err != nil {
			return nil, err
		}
		f, err := t.encode(name, s, done.params)
		if err != nil {
			return nil, err
		}
		if err := writeWeights(t.path(name), f); err != nil {
			return nil, err
		}
		parameters := 0
		for _, p := range done.params {
			parameters += len(p)
		}
		r.Stages = append(r.Stages, store.Stage{Network: name, Architecture: s.architecture, Parameters: parameters,
			Steps: s.steps, BestStep: done.step,
			Batch: preset.Batch[k], Crop: t.side(k), Loss: done.loss, Seconds: time.Since(began).Seconds(), Scores: done.scores})
	}
	if !ran {
		return nil, fmt.Errorf("there is no stage %q; there are %s and %s", c.Stage, strings.Join(Stages, ", "), StageAll)
	}
	for _, name := range Stages {
		f, err := t.read(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r.Networks[name] = f
	}
	return r, nil
}

// training is one call of Run.
type training struct {
	Config
	preset  Preset
	set     *Set
	backend kernels.GraphBackend
}

func (t *training) path(network string) string {
	return filepath.Join(t.Out, network+".safetensors")
}

// weights reads what a stage trained, and refuses what is damaged or of another network.
func (t *training) weights(network string) (*safetensors.File, error) {
	r, err := os.Open(t.path(network))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := safetensors.Read(r)
	if err == nil {
		_, _, err = t.decode(network, f)
	}
	if err != nil {
		return nil, fmt.Errorf("read weights %s: %w", t.path(network), err)
	}
	return f, nil
}

// read returns a network of Out, or if it is not there, of From, if that is for the same kind of images.
// If there is none, the error wraps os.ErrNotExist.
func (t *training) read(network string) (*safetensors.File, error) {
	f, err := t.weights(network)
	if !errors.Is(err, os.ErrNotExist) || t.From == "" {
		return f, err
	}
	m, err := store.Open(t.From)
	if err != nil {
		return nil, err
	}
	if m.Kind() != t.set.Kind {
		return nil, fmt.Errorf("model %s is for %s: %w", t.From, m.Kind(), os.ErrNotExist)
	}
	if f, err = m.Network(network); errors.Is(err, store.ErrNoNetwork) {
		return nil, fmt.Errorf("%w: %w", err, os.ErrNotExist)
	}
	return f, err
}

// from returns the parameters that the training of a network begins with; nil: drawn from the seed.
func (t *training) from(network, architecture string) ([][]float32, error) {
	if t.From == "" {
		return nil, nil
	}
	m, err := store.Open(t.From)
	if err != nil {
		return nil, err
	}
	f, err := m.Network(network)
	if errors.Is(err, store.ErrNoNetwork) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	_, params, err := t.decode(network, f)
	if err == nil && network != StageStudent && f.Metadata["format"] != architecture {
		err = fmt.Errorf("it is %q, that of preset %s is %q", f.Metadata["format"], t.preset.Name, architecture)
	}
	if err != nil {
		return nil, fmt.Errorf("model %s cannot be gone on from: its network %s: %w; choose the --preset that it was "+
			"trained with", t.From, network, err)
	}
	return params, nil
}

// program returns a network that an earlier stage trained.
func (t *training) program(network string) (kernels.Program, error) {
	f, err := t.read(network)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("this stage needs the %s network, and there is no %s: train that stage first, or all", network, t.path(network))
	}
	if err != nil {
		return nil, err
	}
	g, params, err := t.decode(network, f)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", network, err)
	}
	return t.backend.Compile(g, params)
}

// decode returns the graph of a weights file, which must be of the given network. A
// student's file does not tell its graph as the others do; it must be of the preset's.
func (t *training) decode(network string, f *safetensors.File) (*kernels.Graph, [][]float32, error) {
	kind, _, _ := strings.Cut(map[string]string{
		StageMeter: t.preset.Meter.String(), StageBSN: t.preset.BSN.String(),
		StageDiffusion: t.preset.Diffusion.String(), StageStudent: net.StudentFormat,
	}[network], " ")
	if got, _, _ := strings.Cut(f.Metadata["format"], " "); got != kind {
		return nil, nil, fmt.Errorf("weights are of format %.40q, want %q", got, kind)
	}
	if network != StageStudent {
		return net.DecodeGraph(f)
	}
	g := t.preset.Student.Graph()
	params := make([][]float32, len(g.Params))
	for i := range g.Params {
		params[i] = f.Tensors[g.Params[i].Name].Data
	}
	if len(f.Tensors) != len(params) {
		return nil, nil, fmt.Errorf("weights hold %d tensors, of which the student of preset %s uses %d",
			len(f.Tensors), t.preset.Name, len(params))
	}
	return g, params, g.CheckParams(params)
}

// teacher returns what the diffusion network needs of the other networks.
func (t *training) teacher() (*net.Teacher, error) {
	teacher := new(net.Teacher)
	var err error
	if teacher.Blind, err = t.program(StageBSN); err != nil || t.AsWritten {
		return teacher, err
	}
	student, err := t.program(StageStudent)
	teacher.Student = studentProgram{student}
	return teacher, err
}

func (t *training) encode(name string, s *stage, params [][]float32) (*safetensors.File, error) {
	f, err := net.EncodeGraph(s.architecture, s.graph, params)
	if err != nil {
		return nil, err
	}
	if name == StageStudent {
		f.Metadata["format"] = net.StudentFormat
	}
	return f, nil
}

func writeWeights(path string, f *safetensors.File) error {
	b, err := f.Encode()
	if err != nil {
		return fmt.Errorf("write weights %s: %w", path, err)
	}
	if err := atomicfile.Write(path, 0o644, func(w *os.File) error { _, err := w.Write(b); return err }); err != nil {
		return fmt.Errorf("write weights: %w", err)
	}
	return nil
}

// least is the smallest side of a piece that networks learn anything from.
const least = 32

// side returns the side of the pieces of stage k: the preset's, or less if most
// slices to train on or to validate on are smaller.
func (t *training) side(k int) int {
	most := func(slices []Slice, side int) bool {
		fit := 0
		for i := range slices {
			if min(slices[i].Width, slices[i].Height) >= side {
				fit++
			}
		}
		return 2*fit >= len(slices)
	}
	for side := t.preset.Side[k]; side > least; side -= 8 {
		if most(t.set.Train, side) && most(t.set.Validation, side) {
			return side
		}
	}
	return least
}

// distilled is the name, in log and checkpoint, of the training that Config.Distil asks for.
const distilled = "distilled"

// toldTruth is the share of a student's training, from its beginning, in which it is told the
// truth about the noise, misjudged: that is quick. Then it is told what the meter tells.
const toldTruth = 0.7

// meter returns the noise meter that an earlier stage trained; nil if there is none.
func (t *training) meter() (kernels.Program, error) {
	if _, err := t.read(StageMeter); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return t.program(StageMeter)
}

// stage returns the training of network k.
func (t *training) stage(ctx context.Context, k int) (*stage, error) {
	count, side, train := t.preset.Batch[k], t.side(k), t.set.Train
	s := &stage{name: Stages[k], steps: t.preset.Steps[k], every: t.preset.Every, rate: t.preset.Rate[k], decay: 1e-4}
	held, err := newHeldOut(t.set.Validation, side)
	if err != nil {
		return nil, err
	}
	switch s.name {
	case StageMeter:
		s.graph, s.architecture = t.preset.Meter.Graph(), t.preset.Meter.String()
		s.batch = func(_ int, rng *rand.Rand) (*kernels.Batch, error) { return meterBatch(train, count, side, rng) }
	case StageBSN:
		s.graph, s.architecture = t.preset.BSN.Graph(), t.preset.BSN.String()
		s.batch = func(_ int, rng *rand.Rand) (*kernels.Batch, error) { return bsnBatch(train, count, side, rng) }
		s.validate = held.with(t.backend, s.graph, blindDenoiser)
	case StageDiffusion:
		teacher, err := t.teacher()
		if err != nil {
			return nil, err
		}
		meter, err := t.meter()
		if err != nil {
			return nil, err
		}
		s.graph, s.architecture = t.preset.Diffusion.Graph(), t.preset.Diffusion.String()
		s.batch = func(_ int, rng *rand.Rand) (*kernels.Batch, error) {
			return diffusionBatch(train, meter, teacher, count, side, rng)
		}
		s.validate = held.with(t.backend, s.graph, diffusionDenoiser(teacher))
	case StageStudent:
		s.graph, s.architecture = t.preset.Student.Graph(), t.preset.Student.String()
		if t.Distil {
			targets, err := t.targets(ctx)
			if err != nil {
				return nil, err
			}
			// the one half is hardly noisy, the other has no network's mistakes
			train = append(targets, train...)
			s.name, s.steps, s.rate = distilled, s.steps*3/4, s.rate*2/3
		}
		meter, err := t.meter()
		if err != nil {
			return nil, err
		}
		s.batch = func(step int, rng *rand.Rand) (*kernels.Batch, error) {
			by := meter
			if float64(step) < toldTruth*float64(s.steps) {
				by = nil
			}
			return studentBatch(train, count, side, by, rng)
		}
		s.validate, s.last = held.with(t.backend, s.graph, studentDenoiser), true
	}
	return s, nil
}
