package pipeline

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
)

// pupil is a teacher that adapts to series.
type pupil struct {
	*teacher
	mu      sync.Mutex
	adapted []int // frames of each call that had any
	fail    func(ctx context.Context) error
}

// taught is what a pupil becomes.
type taught struct {
	*teacher
	fitted string
}

func (d taught) Model() derive.ModelInfo {
	m := d.teacher.Model()
	m.Method, m.Fitted = "adapted", d.fitted
	return m
}

func (d *pupil) Adapts() bool { return true }

func (d *pupil) Adapt(ctx context.Context, frames []*derive.Frame, _ evidence.Sums,
	progress func(done, total int)) (HighDenoiser,
	string, error) {
	if len(frames) == 0 {
		return taught{d.teacher, ""}, "none", nil
	}
	d.mu.Lock()
	d.adapted = append(d.adapted, len(frames))
	d.mu.Unlock()
	progress(1, 2)
	if d.fail != nil {
		if err := d.fail(ctx); err != nil {
			return nil, "", err
		}
	}
	return taught{d.teacher, "0123abcd"}, "better", nil
}

func (d *pupil) calls() []int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.adapted)
}

// TestAdapt: before the high pass of a series the networks adapt to it, once, and its objects say so.
// Where that fails, by whatever, they are made by the networks as they are, under the same UIDs.
func TestAdapt(t *testing.T) {
	const n = 4
	made := map[string][]string{}
	for name, c := range map[string]struct {
		fail  func(ctx context.Context) error
		calls int
		says  bool
	}{
		"better": {nil, 1, true},
		"fails":  {func(context.Context) error { return errors.New("no memory") }, 1, false},
		"panics": {func(context.Context) error { panic("bug") }, 1, false},
		"silent": {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 1, false},
	} {
		a := newArchive()
		o, d := highOptions(t, a)
		by := &pupil{teacher: d, fail: c.fail}
		o.Denoiser, o.StepTimeout = by, 200*time.Millisecond
		p := start(t, o)
		uid := hqSeries(t, p, n)
		if h := awaitHigh(t, p, uid, HighDone); h.Done != n || h.Copies != 0 {
			t.Errorf("%s: %+v", name, h)
		}
		if got := by.calls(); len(got) != c.calls || got[0] != n {
			t.Errorf("%s: adapted to %v frames, want all %d of them %d times", name, got, n, c.calls)
		}
		for i := range n {
			high := object(t, p, uid, i+1, "high")
			made[name] = append(made[name], high.String(dcm.SOPInstanceUID), high.String(dcm.SeriesInstanceUID))
			if says := strings.Contains(high.String(dcm.DerivationDescription),
				"fitted to this series (SHA-256 0123abcd)"); says != c.says {
				t.Errorf("%s: image %d: %q", name, i+1, high.String(dcm.DerivationDescription))
			}
			if fast := object(t, p, uid, i+1, "fast"); strings.Contains(fast.String(dcm.DerivationDescription),
				"fitted") {
				t.Errorf("%s: the fast object says %q", name, fast.String(dcm.DerivationDescription))
			}
		}
	}
	for name, uids := range made {
		if !slices.Equal(uids, made["better"]) {
			t.Errorf("%s: %v, want the UIDs that a fitted network gives, %v", name, uids, made["better"])
		}
	}
}

// TestAdaptCalledOff: a flag that takes the high pass back ends the adapting, too.
func TestAdaptCalledOff(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	began, ended := make(chan struct{}), make(chan struct{})
	o.Denoiser = &pupil{teacher: d, fail: func(ctx context.Context) error {
		close(began)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}}
	p := start(t, o)
	uid := hqSeries(t, p, 2)
	<-began
	setFlag(t, p, uid, Fast)
	<-ended
	eventually(t, "nothing is left to do", func() bool { return highState(t, p, uid).Images == 0 })
	if d.calls() != 0 {
		t.Errorf("%d images were made", d.calls())
	}
}
