package pipeline

import (
	"context"
	"time"

	"go.uber.org/zap"
)

const (
	retentionRound = time.Minute
	purgeBatch     = 200
	keepRows       = 30 * 24 * time.Hour // rows of purged series, so that a late twin is still known
)

// retain is the retention stage. It owns the removal of files: only those whose
// image and derived object have been stored by every destination they were
// queued for, after AfterForward, or at once while the disk is fuller than
// DiskWarn. The row is marked before the file goes, so a crash leaves at most a
// file that recovery removes.
func (p *Pipeline) retain(ctx context.Context) {
	for last := p.clock.Now(); ; {
		cfg := p.cfg.Load()
		now := p.clock.Now()
		if now.Round(0).Before(last.Round(0)) { // without the monotonic clock, which never goes back
			if err := p.bound(ctx, now); err != nil && ctx.Err() == nil {
				p.log.Error("times after now not set to now", zap.Error(err))
			}
		}
		last = now
		if len(cfg.Destinations) > 0 {
			n, err := p.purge(ctx, now.Add(-cfg.AfterForward), nil)
			used, uerr := p.store.Used()
			if err == nil && uerr == nil && used > cfg.DiskWarn {
				p.log.Warn("disk fuller than disk_warn, removing delivered files early", zap.Float64("used", used))
				var m int
				m, err = p.purge(ctx, now, func() bool {
					used, err := p.store.Used()
					return err == nil && used > cfg.DiskWarn
				})
				n += m
			}
			if err != nil && ctx.Err() == nil {
				p.log.Error("retention", zap.Error(err))
			}
			if n > 0 {
				p.log.Info("delivered files removed", zap.Int("images", n))
			}
		}
		if err := p.dropFlags(ctx, now.Add(-cfg.AfterForward)); err != nil && ctx.Err() == nil {
			p.log.Error("flags not removed", zap.Error(err))
		}
		if _, err := p.jrnl.Compact(now.Add(-keepRows), 20); err != nil && ctx.Err() == nil {
			p.log.Error("journal not compacted", zap.Error(err))
		}
		if wait(ctx, p.clock, retentionRound, p.retention) {
			return
		}
	}
}

// bound sets times on record that lie after now to now.
func (p *Pipeline) bound(ctx context.Context, now time.Time) error {
	ahead, err := p.jrnl.Bound(ctx, now)
	if ahead && err == nil {
		p.log.Warn("the system clock was ahead: times on record after now are set to now")
	}
	return err
}

// purge removes what ended before a time, oldest first, while more agrees.
func (p *Pipeline) purge(ctx context.Context, before time.Time, more func() bool) (int, error) {
	var after int64
	n := 0
	for ctx.Err() == nil {
		list, err := p.jrnl.Purgeable(ctx, after, before, purgeBatch)
		if err != nil || len(list) == 0 {
			return n, err
		}
		for _, in := range list {
			after = in.ID
			if ctx.Err() != nil || more != nil && !more() {
				return n, nil
			}
			files, err := p.jrnl.Purge(in.ID, p.clock.Now())
			if err != nil {
				return n, err
			}
			p.hook("purge-marked")
			if err := p.removeAll(files); err != nil {
				p.log.Error("purged file not removed", zap.Error(err)) // recovery does it
			}
			if len(files) > 0 {
				n++
			}
		}
	}
	return n, nil
}

func (p *Pipeline) removeAll(files []string) error {
	for _, f := range files {
		if err := p.store.Remove(f); err != nil {
			return err
		}
	}
	return nil
}
