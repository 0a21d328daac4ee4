package train

import (
	"time"
)

// Config says what to train and how.
type Config struct {
	Stage   string // one of Stages, or "all"
	Preset  string // one of Presets
	Seed    uint64
	Out     string // folder of checkpoints and of the model
	Resume  bool   // go on from the checkpoints in Out
	Workers int    // threads; 0: one per core. The weights are the same for any number.
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

// Names of the stages, in the order in which they run.
const (
	StageBSN       = "bsn"
	StageDiffusion = "diffusion"
	StageStudent   = "student"
)

// Stages are all of them.
var Stages = []string{StageBSN, StageDiffusion, StageStudent}
