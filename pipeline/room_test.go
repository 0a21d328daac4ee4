package pipeline

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/pipeline/derive"
)

// TestFullDisk: while there is no room for derived objects images wait, in either lane, however often they are
// tried, and none is given up: a full disk is no fault of theirs.
func TestFullDisk(t *testing.T) {
	a := newArchive()
	o, f := faulty(t, a)
	var full atomic.Bool
	var tried atomic.Int64
	f.fail = func(op, name string, _ int64) error {
		if full.Load() && (op == "create" || op == "write") && strings.HasPrefix(name, "tmp/") {
			tried.Add(1)
			return syscall.ENOSPC
		}
		return nil
	}
	received := make(chan struct{})
	d := &teacher{halver: halver{do: func(_ int, f *derive.Frame) (*Denoised, error) {
		<-received
		return smoother(f), nil
	}}}
	clk := newFakeClock()
	o.clock, o.Denoiser, o.Attempts, o.Quiet, o.QuietOpen = clk, d, 2, time.Second, time.Second
	p := start(t, o)
	const n = 3
	uid := hqSeries(t, p, n)
	full.Store(true)
	close(received)
	eventually(t, "attempts without room", func() bool { clk.advance(time.Minute); return tried.Load() > 5*n })
	if s := status(t, p, uid); s.Failed != 0 || s.Passed != 0 || s.Denoised != 0 {
		t.Errorf("with a full disk: %+v", s)
	}
	full.Store(false)
	eventually(t, "all of them denoised, in both qualities", func() bool {
		clk.advance(time.Minute)
		s := status(t, p, uid)
		return s.Denoised == n && s.High != nil && s.High.Done == n && s.High.Copies == 0
	})
}
