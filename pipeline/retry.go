package pipeline

import (
	"context"
	"fmt"
	"strconv"

	"github.com/diffdenoise/denoised/pipeline/spool"
)

// Retry puts the deliveries of a series that were refused for good back into
// their queues, once a person has mended the reason. It returns how many.
func (p *Pipeline) Retry(ctx context.Context, seriesUID string) (int64, error) {
	s, err := p.jrnl.SeriesByKey(ctx, seriesUID)
	if err != nil {
		return 0, err
	}
	if s == nil {
		return 0, fmt.Errorf("retry series %s: %w", strconv.Quote(seriesUID), ErrUnknownSeries)
	}
	n, err := p.jrnl.Requeue(s.ID)
	p.forward.wake(p.cfg.Load().dests(spool.Original))
	p.forward.wake(p.cfg.Load().dests(spool.Derived))
	return n, err
}
