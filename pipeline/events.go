package pipeline

import (
	"sync"
	"time"
)

// Types of events.
const (
	EventReceived    = "received"    // an image is durable; State is its stage
	EventSlice       = "slice"       // an image went through the denoise stage
	EventHigh        = "high"        // the high lane: State is step, or what became of an image (denoised, failed)
	EventFlag        = "flag"        // a person asked for a quality, which is State
	EventDelivery    = "delivery"    // a delivery ended
	EventSeries      = "series"      // a series changed its state
	EventDestination = "destination" // a destination's breaker opened or closed
)

// Event is something that happened, for people who watch. It never holds
// patient data. Events are hints: the journal is what counts.
type Event struct {
	Time        time.Time `json:"time"`
	Type        string    `json:"type"`
	Series      string    `json:"series,omitempty"`   // series UID, where known at hand
	SeriesID    int64     `json:"seriesId,omitempty"` // SeriesStatus.ID
	Instance    string    `json:"instance,omitempty"` // SOP instance UID
	Kind        string    `json:"kind,omitempty"`
	Destination string    `json:"destination,omitempty"`
	State       string    `json:"state,omitempty"`
	Detail      string    `json:"detail,omitempty"`
	Frame       int       `json:"frame,omitempty"` // in hand, from 1; EventHigh only, as the next two
	Step        int       `json:"step,omitempty"`  // of Steps in that frame
	Steps       int       `json:"steps,omitempty"`
}

// eventBacklog is how many events a reader may be behind before it loses some.
const eventBacklog = 256

type bus struct {
	mu     sync.Mutex
	subs   map[chan Event]bool
	closed bool
}

func (b *bus) send(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.subs {
		select {
		case c <- e:
		default:
		}
	}
}

func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for c := range b.subs {
		close(c)
	}
	b.subs = nil
}

// Events returns a channel of what happens from now on, and a function that
// ends it. A reader that is too slow loses events; it never holds anything up.
func (p *Pipeline) Events() (<-chan Event, func()) {
	b := &p.bus
	c := make(chan Event, eventBacklog)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(c)
		return c, func() {}
	}
	if b.subs == nil {
		b.subs = map[chan Event]bool{}
	}
	b.subs[c] = true
	return c, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.subs[c] {
			delete(b.subs, c)
			close(c)
		}
	}
}
