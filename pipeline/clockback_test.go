package pipeline

import (
	"testing"
	"time"

	"github.com/diffdenoise/denoised/pipeline/state"
)

// TestClockThatWasAhead: after the system clock was a year ahead and went back, over a restart or not, series end, the
// high pass runs and files are removed in the usual time.
func TestClockThatWasAhead(t *testing.T) {
	for name, restart := range map[string]bool{"over a restart": true, "while it runs": false} {
		t.Run(name, func(t *testing.T) {
			a := newArchive()
			o, _ := highOptions(t, a)
			clk := newFakeClock()
			right := clk.Now()
			o.clock, o.Quiet, o.QuietOpen, o.AfterForward = clk, time.Minute, time.Minute, time.Hour
			clk.advance(365 * 24 * time.Hour)
			p, stop := opened(t, o)
			uid := hqSeries(t, p, 2)
			eventually(t, "sent", func() bool { return a.count("pacs") == 4 })
			if restart {
				stop()
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
			}
			clk.set(right)
			if restart {
				p, stop = opened(t, o)
			}
			defer p.Close()
			defer stop()
			forward := func(d time.Duration) func() bool {
				return func() bool { clk.advance(d); return true }
			}
			eventually(t, "the series complete", func() bool {
				forward(time.Minute)()
				return status(t, p, uid).State == state.SeriesComplete && status(t, p, uid).High.Done == 2
			})
			if d := clk.Now().Sub(right); d > 12*time.Hour {
				t.Fatalf("only after %v", d)
			}
			eventually(t, "the files removed", func() bool {
				forward(10 * time.Minute)()
				for _, in := range status(t, p, uid).Instances {
					if !in.Purged {
						return false
					}
				}
				return true
			})
			if d := clk.Now().Sub(right); d > 48*time.Hour {
				t.Errorf("files are removed only after %v", d)
			}
		})
	}
}
