package pipeline

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline/spool/journal"
)

// seriesClock is the stage that ends series. It owns nothing durable but their state; after a restart the same times
// lead to the same states.
type seriesClock struct {
	*shared
	high *lane  // works on complete series
	wake signal // something may end earlier or later than it was

	mu    sync.Mutex
	track *tracker
}

// restore puts back a series that an earlier process was receiving.
func (p *seriesClock) restore(s journal.Series) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.track.restore(s)
}

// arrived notes a durable image.
func (p *seriesClock) arrived(at time.Time, a journal.Added, from peer, multiframe bool) {
	p.mu.Lock()
	p.track.arrived(at, a.Series, from, a.Received, a.Expected, multiframe)
	p.mu.Unlock()
	p.wake.fire()
}

// configure takes over the periods of o.
func (p *seriesClock) configure(o *Options) {
	p.mu.Lock()
	p.track.configure(o)
	p.mu.Unlock()
	p.wake.fire()
}

// AssociationOpened tells that a sender has opened an association. While it has
// one, its series are waited for longer.
func (p *Pipeline) AssociationOpened(id uint64, callingAE, host string) {
	p.series.mu.Lock()
	p.series.track.associationOpened(id, peer{callingAE, host})
	p.series.mu.Unlock()
}

// AssociationClosed ends what AssociationOpened began.
func (p *Pipeline) AssociationClosed(id uint64) {
	p.series.mu.Lock()
	p.series.track.associationClosed(id, p.clock.Now())
	p.series.mu.Unlock()
	p.series.wake.fire()
}

// run ends series until ctx ends.
func (p *seriesClock) run(ctx context.Context) {
	for {
		p.mu.Lock()
		now := p.clock.Now()
		list := p.track.due(now)
		at, ok := p.track.next()
		p.mu.Unlock()
		d := time.Hour
		if ok {
			d = max(at.Sub(now), 0)
		}
		for _, c := range list {
			if err := p.jrnl.CompleteSeries(c.series, c.state, c.by, now); err != nil {
				p.log.Error("series not marked complete, will be tried again", zap.Int64("series", c.series),
					zap.Error(err))
				p.mu.Lock()
				p.track.putBack(c)
				p.mu.Unlock()
				d = min(d, firstPause)
				continue
			}
			p.bus.send(Event{Time: now, Type: EventSeries, SeriesID: c.series, State: string(c.state),
				Detail: string(c.by)})
			p.high.wake.fire()
		}
		if wait(ctx, p.clock, d, p.wake) {
			return
		}
	}
}
