package derive

import (
	"fmt"
	"sync"
)

// Ahead makes the frames of an object ahead of whoever takes them in their order, as
// Write does, and holds at most a given number of them. One goroutine at a time calls
// its methods.
type Ahead[T any] struct {
	frame       func(i int) (T, error)
	count, most int
	begun       int            // frames
	made        []chan made[T] // those begun and not yet taken
	work        sync.WaitGroup
}

type made[T any] struct {
	frame T
	err   error
}

// NewAhead returns the queue of count frames, of which at most most, and at least one,
// are begun and not yet taken. frame makes frame i, each in a goroutine of its own; it
// must not panic.
func NewAhead[T any](count, most int, frame func(i int) (T, error)) *Ahead[T] {
	return &Ahead[T]{frame: frame, count: count, most: max(most, 1)}
}

// Next returns frame i, which must be the one after the last that was taken, from 0,
// or the error of making it.
func (a *Ahead[T]) Next(i int) (frame T, err error) {
	if i != a.begun-len(a.made) || i >= a.count {
		return frame, fmt.Errorf("frame %d of %d asked for out of order", i, a.count)
	}
	for a.begun < a.count && len(a.made) < a.most {
		c, k := make(chan made[T], 1), a.begun
		a.made = append(a.made, c)
		a.begun++
		a.work.Go(func() {
			f, err := a.frame(k)
			c <- made[T]{f, err}
		})
	}
	m := <-a.made[0]
	a.made = a.made[1:]
	return m.frame, m.err
}

// Wait returns when no frame is worked on any more. Frames that were begun and will
// not be taken are for the caller to call off.
func (a *Ahead[T]) Wait() { a.work.Wait() }
