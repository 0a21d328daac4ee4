package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/diffdenoise/denoised/models/train"
)

// progress is a bar on a terminal and a line at every tenth elsewhere. It is used by
// one goroutine at a time.
type progress struct {
	w     io.Writer
	bar   *mpb.Bar
	group *mpb.Progress
	last  int
}

// at says that so many are done. The first call begins the bar.
func (p *progress) at(done, total int, what string) {
	if p.group == nil {
		if f, ok := p.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			p.group = mpb.New(mpb.WithOutput(f), mpb.WithWidth(60))
			p.bar = p.group.AddBar(int64(total),
				mpb.PrependDecorators(decor.CountersNoUnit("%d / %d "+what)),
				mpb.AppendDecorators(decor.AverageETA(decor.ET_STYLE_GO)))
		}
	}
	if p.bar != nil {
		p.bar.SetCurrent(int64(done))
	} else if total >= 20 && done*10/total != p.last*10/total {
		fmt.Fprintf(p.w, "%d of %d %s\n", done, total, what)
	}
	p.last = done
}

// done removes what is left of a bar that did not come to its end.
func (p *progress) done() {
	if p.bar != nil {
		p.bar.Abort(false)
		p.group.Wait()
	}
}

// trainProgress shows how far the stages are: a bar on a terminal, elsewhere a line
// now and then.
type trainProgress struct {
	w     io.Writer
	group *mpb.Progress
	bar   *mpb.Bar
	now   func() time.Time

	mu    sync.Mutex
	stage string
	loss  float64
	first int       // step that this call began the stage with
	began time.Time // when it did
	told  time.Time
}

// tellEvery is the time between two lines of progress.
const tellEvery = 30 * time.Second

func newTrainProgress(w io.Writer) *trainProgress {
	p := &trainProgress{w: w, now: time.Now}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.group = mpb.New(mpb.WithOutput(f), mpb.WithWidth(40))
	}
	return p
}

// step is train.Config.Progress.
func (p *trainProgress) step(s train.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	fresh := s.Stage != p.stage
	if fresh {
		p.stage, p.loss, p.first, p.began, p.told = s.Stage, s.Loss, s.Step-1, now, now
	}
	p.loss += 0.02 * (s.Loss - p.loss) // single steps differ too much
	if p.group != nil {
		if fresh {
			if p.bar != nil {
				p.bar.SetTotal(-1, true)
			}
			p.bar = p.group.AddBar(int64(s.Steps),
				mpb.PrependDecorators(decor.Name(s.Stage+" "), decor.CountersNoUnit("%d / %d")),
				mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return p.lossText() }), decor.Name(" "),
					decor.AverageETA(decor.ET_STYLE_GO)))
			p.bar.DecoratorAverageAdjust(now)
			p.bar.SetCurrent(int64(s.Step - 1))
		}
		p.bar.SetCurrent(int64(s.Step))
		return
	}
	if fresh || s.Step == s.Steps || now.Sub(p.told) >= tellEvery {
		p.told = now
		left := ""
		if n := s.Step - p.first; n > 1 && s.Step < s.Steps {
			d := now.Sub(p.began) / time.Duration(n) * time.Duration(s.Steps-s.Step)
			left = fmt.Sprintf(", about %s left", d.Round(time.Second))
		}
		fmt.Fprintf(p.w, "%s: step %d of %d, loss %.4g%s\n", s.Stage, s.Step, s.Steps, p.loss, left)
	}
}

// lossText is called by the bar, in a goroutine of its own.
func (p *trainProgress) lossText() string {
	if !p.mu.TryLock() {
		return "loss …"
	}
	defer p.mu.Unlock()
	return fmt.Sprintf("loss %.4g", p.loss)
}

// done leaves the bar as it is.
func (p *trainProgress) done() {
	if p.group == nil {
		return
	}
	if p.bar != nil {
		p.bar.Abort(false)
	}
	p.group.Wait()
}
