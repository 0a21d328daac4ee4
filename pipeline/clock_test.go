package pipeline

import (
	"sync"
	"testing"
	"time"
)

// fakeClock moves only when told to.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[*fakeTimer]bool
	added  chan struct{}
}

type fakeTimer struct {
	at time.Time
	c  chan time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Unix(2_000_000, 0).UTC(), timers: map[*fakeTimer]bool{}, added: make(chan struct{}, 1)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) After(d time.Duration) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &fakeTimer{at: c.now.Add(d), c: make(chan time.Time, 1)}
	if d <= 0 {
		t.c <- c.now
		return t.c, func() {}
	}
	c.timers[t] = true
	select {
	case c.added <- struct{}{}:
	default:
	}
	return t.c, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, t)
	}
}

// set sets the clock, forth or back, as a person does it: what is waited for is as far away as before.
func (c *fakeClock) set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := now.Sub(c.now)
	c.now = now
	timers := c.timers
	c.timers = map[*fakeTimer]bool{}
	for t := range timers {
		t.at = t.at.Add(d)
		c.timers[t] = true
	}
}

// advance moves the clock and fires what is due.
func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for t := range c.timers {
		if !t.at.After(c.now) {
			t.c <- c.now
			delete(c.timers, t)
		}
	}
}

// runAhead moves the clock by a second, again and again, until the returned
// function is called.
func (c *fakeClock) runAhead() (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(200 * time.Microsecond):
				c.advance(time.Second)
			}
		}
	}()
	return func() { close(end); <-done }
}

func TestBackOff(t *testing.T) {
	for n, want := range map[int64]time.Duration{0: 5 * time.Second, 1: 5 * time.Second, 2: 10 * time.Second, 5: 80 * time.Second, 8: 640 * time.Second, 9: 15 * time.Minute, 1 << 40: 15 * time.Minute} {
		for range 50 {
			if got := backOff(n); got < want*8/10 || got > want*12/10 {
				t.Errorf("after %d failures: %v, want about %v", n, got, want)
			}
		}
	}
}
