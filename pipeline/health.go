package pipeline

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/diffdenoise/denoised/pipeline/spool/journal"
)

// QueueHealth is the length of a queue and the age of its oldest image.
type QueueHealth struct {
	Waiting int64         `json:"waiting"`
	Age     time.Duration `json:"ageNs"`
}

// Health is the state of spool, journal and queues.
type Health struct {
	OK       bool                   `json:"ok"`       // images can be received
	Problems []string               `json:"problems"` // why not, or what needs a person
	DiskUsed float64                `json:"diskUsed"` // fraction
	Denoise  QueueHealth            `json:"denoise"`
	High     QueueHealth            `json:"high"`
	HighNow  *HighStep              `json:"highNow,omitempty"`
	NoHigh   string                 `json:"noHigh,omitempty"` // why the full method cannot run; empty if it can
	Forward  map[string]QueueHealth `json:"forward"`          // by destination
	Breakers map[string]string      `json:"breakers"`         // by destination
}

// maxRefused is how many images in a row may fail to be stored, for no fault of the
// sender, before Check says so. The next one that is stored ends it.
const maxRefused = 3

// Check writes to the spool and the journal and looks at disk and queues. It
// takes a few milliseconds.
func (p *Pipeline) Check() Health {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h := Health{OK: true, Problems: []string{}, Forward: map[string]QueueHealth{}, Breakers: map[string]string{}}
	bad := func(err error) {
		if err != nil {
			h.OK = false
			h.Problems = append(h.Problems, err.Error())
		}
	}
	cfg := p.cfg.Load()
	var err error
	h.DiskUsed, err = p.store.Used()
	bad(err)
	bad(p.store.Probe())
	bad(p.jrnl.Writable())
	if n := p.receiver.refused.Load(); n >= maxRefused {
		bad(fmt.Errorf("the last %d images could not be stored", n))
	}
	if err == nil && h.DiskUsed > cfg.DiskWarn {
		h.Problems = append(h.Problems, fmt.Sprintf("disk is %.0f %% full, images are refused above %.0f %%",
			100*h.DiskUsed, 100*cfg.DiskRefuse))
	}
	depths, err := p.jrnl.Depths(ctx)
	bad(err)
	now := p.clock.Now()
	queue := func(d journal.Depth) QueueHealth {
		q := QueueHealth{Waiting: d.Count}
		if d.Count > 0 {
			q.Age = now.Sub(d.Oldest)
		}
		return q
	}
	h.Denoise, h.High, h.HighNow = queue(depths.Fast), queue(depths.High), p.highNow(0)
	_, h.NoHigh = p.HighPossible("")
	for name, d := range depths.Forward {
		h.Forward[name] = queue(d)
	}
	for name, q := range h.Forward {
		if !slices.ContainsFunc(cfg.Destinations, func(d Destination) bool { return d.Name == name }) {
			h.Problems = append(h.Problems, fmt.Sprintf("%d images wait for destination %s, which is not configured",
				q.Waiting, name))
		}
	}
	stuck, err := p.jrnl.Stuck(ctx)
	bad(err)
	for _, name := range slices.Sorted(maps.Keys(stuck.Refused)) {
		h.Problems = append(h.Problems, fmt.Sprintf("%d images will not be sent to destination %s, which refused them, "+
			"or whose files are damaged: once the reason is mended, denoised retry SERIES sends them again",
			stuck.Refused[name], name))
	}
	if stuck.Conflict > 0 {
		h.Problems = append(h.Problems, fmt.Sprintf("%d images came with other bytes under a UID that is here already: "+
			"they are kept and not sent", stuck.Conflict))
	}
	for _, d := range cfg.Destinations {
		if s := p.forward.state(d.Name); s != "" {
			h.Breakers[d.Name] = s
			switch s {
			case breakerClosed:
			case breakerLoop:
				h.Problems = append(h.Problems,
					fmt.Sprintf("destination %s leads back to this daemon and gets nothing: correct its address",
						d.Name))
			default:
				h.Problems = append(h.Problems, fmt.Sprintf("destination %s does not take images", d.Name))
			}
		}
	}
	return h
}
