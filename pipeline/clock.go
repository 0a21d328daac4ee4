package pipeline

import (
	"context"
	"math/rand/v2"
	"time"
)

// clock is the time as the stages see it.
type clock interface {
	Now() time.Time
	// After delivers once d has passed. stop frees it early.
	After(d time.Duration) (c <-chan time.Time, stop func())
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) After(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// wait returns when d has passed (false), or ctx ended or wake fired (true when ctx ended).
func wait(ctx context.Context, c clock, d time.Duration, wake <-chan struct{}) (ended bool) {
	t, stop := c.After(d)
	defer stop()
	select {
	case <-ctx.Done():
		return true
	case <-wake:
	case <-t:
	}
	return ctx.Err() != nil
}

// signal is a wake-up that is not lost while nobody waits and not counted either.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) fire() {
	select {
	case s <- struct{}{}:
	default:
	}
}

const (
	firstPause = 5 * time.Second
	lastPause  = 15 * time.Minute
)

// backOff is the pause after n failures in a row (n ≥ 1): 5 s, doubling up to
// 15 min, a fifth more or less by chance so that daemons do not return together.
func backOff(n int64) time.Duration {
	d := lastPause
	if n < 1 {
		n = 1
	}
	if n <= 8 {
		d = min(lastPause, firstPause<<(n-1))
	}
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}
