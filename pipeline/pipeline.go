package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/lockfile"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// Pipeline is the assembled stages. Its methods are safe for concurrent use.
type Pipeline struct {
	lock  *os.File
	store *spool.Store
	jrnl  *spool.Journal
	log   *zap.Logger
	clock clock
	hook  func(string)
	met   *metrics
	bus   bus
	cfg   atomic.Pointer[config]

	trackMu sync.Mutex
	track   *tracker

	wakeTrack, wakeDenoise, wakeHigh, wakeConfig, wakePurge signal
	fwdMu                                                   sync.Mutex
	fwd                                                     map[string]*forwarder

	fast    traffic    // slices of the fast lane in hand
	high    highLane   // what the high lane is doing
	adapted adapted    // what its networks are adapted to
	flagMu  sync.Mutex // flags are set one at a time, so that file and row agree

	refused atomic.Int64 // images in a row that could not be stored, for no fault of the sender
	running atomic.Bool
	closed  sync.Once
	stuck   sync.WaitGroup // abandoned denoiser calls
}

// config is one consistent set of options.
type config struct {
	Options
	rules []rule
}

// Open opens spool and journal in o.StateDir, takes the folder for this process
// and recovers: unfinished files are removed, files without a row are recorded,
// rows without a file are marked. A journal that is missing or damaged is
// rebuilt from the files. Nothing runs before Run; Receive works at once.
func Open(ctx context.Context, o Options) (p *Pipeline, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return nil, err
	}
	rules, err := compileRules(o.Rules)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(o.StateDir, "spool"), 0o750); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	lock, err := lockfile.Take(filepath.Join(o.StateDir, "lock"))
	if err != nil {
		return nil, err
	}
	p = &Pipeline{lock: lock, log: o.Logger, clock: o.clock, hook: o.hook, met: newMetrics(), track: newTracker(&o), fwd: map[string]*forwarder{},
		wakeTrack: newSignal(), wakeDenoise: newSignal(), wakeHigh: newSignal(), wakeConfig: newSignal(), wakePurge: newSignal()}
	p.cfg.Store(&config{Options: o, rules: rules})
	opened := p // p is nil once an error is returned
	defer func() {
		if err != nil {
			opened.Close()
		}
	}()
	fsys := o.fs
	if fsys == nil {
		fsys = spool.DirFS(filepath.Join(o.StateDir, "spool"))
	}
	if p.store, err = spool.OpenStore(fsys, o.limits(), o.hook); err != nil {
		return nil, err
	}
	if err := p.openJournal(ctx, o.StateDir); err != nil {
		return nil, err
	}
	if err := p.recover(ctx); err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	// After it: what is to be made again waits in the high lane too.
	if err := p.jrnl.RestartHigh(p.highStart); err != nil {
		return nil, err
	}
	open, err := p.jrnl.OpenSeries(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range open {
		p.track.restore(s)
	}
	if err := p.met.register(p, o.Registerer); err != nil {
		return nil, err
	}
	return p, nil
}

// journalFile is the name of the journal in the state folder.
const journalFile = "journal.db"

func (p *Pipeline) openJournal(ctx context.Context, dir string) error {
	path := filepath.Join(dir, journalFile)
	j, _, err := spool.OpenJournal(ctx, path, p.hook, p.met.committed)
	if errors.Is(err, spool.ErrJournal) {
		p.log.Error("journal damaged, rebuilding it from the spool", zap.Error(err))
		if err := moveAside(path, p.clock.Now()); err != nil {
			return err
		}
		j, _, err = spool.OpenJournal(ctx, path, p.hook, p.met.committed)
	}
	if err != nil {
		return err
	}
	p.jrnl = j
	return nil
}

func moveAside(path string, now time.Time) error {
	suffix := ".damaged-" + now.UTC().Format("20060102T150405.000000000")
	for _, ext := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(path+ext, path+suffix+ext); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("move damaged journal aside: %w", err)
		}
	}
	return nil
}

// Rebuild moves the journal of a state folder aside, if there is one, and makes
// a new one from the spool files. What was delivered is not known afterwards:
// everything still in the spool is delivered again, under the same UIDs and
// with the same bytes. No other process may use the folder.
func Rebuild(ctx context.Context, o Options) error {
	if err := func() error {
		lock, err := lockfile.Take(filepath.Join(o.StateDir, "lock"))
		if err != nil {
			return err
		}
		defer lock.Close()
		return moveAside(filepath.Join(o.StateDir, journalFile), time.Now())
	}(); err != nil {
		return err
	}
	p, err := Open(ctx, o)
	if err != nil {
		return err
	}
	return p.Close()
}

// Close ends a Pipeline; Run and every Receive must have returned. Everything
// unfinished is resumed by the next Open.
func (p *Pipeline) Close() error {
	var err error
	p.closed.Do(func() {
		p.met.unregister()
		if p.jrnl != nil {
			err = p.jrnl.Close()
		}
		p.bus.close()
		err = errors.Join(err, p.lock.Close())
	})
	return err
}

// drainStuck bounds the wait for denoiser calls that ignored their context.
const drainStuck = 10 * time.Second

// Run runs the stages until ctx ends. It then takes no new slice, finishes
// those in hand and the stores in flight, closes the links and returns nil. A
// slice in the high lane is dropped; the next process begins it again. Run may
// be called once.
func (p *Pipeline) Run(ctx context.Context) error {
	if !p.running.CompareAndSwap(false, true) {
		return errors.New("pipeline runs already")
	}
	var wg sync.WaitGroup
	for _, stage := range []func(context.Context){p.watchSeries, p.denoiseAll, p.denoiseHigh, p.forwardAll, p.retain} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			stage(ctx)
		}()
	}
	wg.Wait()
	done := make(chan struct{})
	go func() { p.stuck.Wait(); close(done) }()
	t := time.NewTimer(drainStuck)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		p.log.Error("a denoiser call did not end; leaving without it")
	}
	return nil
}

// Reconfigure replaces rules, destinations, timings, strength, AE titles,
// limits and watermarks. State folder, workers, denoiser, sender, logger and
// registry stay. On error nothing changes. Images that are queued already keep
// their quality and destinations.
func (p *Pipeline) Reconfigure(o Options) error {
	cur := p.cfg.Load()
	o.StateDir, o.Workers, o.Denoiser, o.Sender = cur.StateDir, cur.Workers, cur.Denoiser, cur.Sender
	o.Logger, o.Registerer, o.clock, o.fs, o.hook, o.pause = cur.Logger, cur.Registerer, cur.clock, cur.fs, cur.hook, cur.pause
	if o.Version == "" {
		o.Version = cur.Version
	}
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	rules, err := compileRules(o.Rules)
	if err != nil {
		return err
	}
	p.cfg.Store(&config{Options: o, rules: rules})
	p.store.SetLimits(o.limits())
	p.trackMu.Lock()
	p.track.configure(&o)
	p.trackMu.Unlock()
	p.wakeConfig.fire()
	p.wakeTrack.fire()
	p.wakePurge.fire()
	return nil
}

// AssociationOpened tells that a sender has opened an association. While it has
// one, its series are waited for longer.
func (p *Pipeline) AssociationOpened(id uint64, callingAE, host string) {
	p.trackMu.Lock()
	p.track.associationOpened(id, peer{callingAE, host})
	p.trackMu.Unlock()
}

// AssociationClosed ends what AssociationOpened began.
func (p *Pipeline) AssociationClosed(id uint64) {
	p.trackMu.Lock()
	p.track.associationClosed(id, p.clock.Now())
	p.trackMu.Unlock()
	p.wakeTrack.fire()
}

// watchSeries is the stage that ends series. It owns nothing durable but the
// series' state; after a restart the same times lead to the same states.
func (p *Pipeline) watchSeries(ctx context.Context) {
	for {
		p.trackMu.Lock()
		now := p.clock.Now()
		list := p.track.due(now)
		at, ok := p.track.next()
		p.trackMu.Unlock()
		d := time.Hour
		if ok {
			d = max(at.Sub(now), 0)
		}
		for _, c := range list {
			if err := p.jrnl.CompleteSeries(c.series, c.state, c.by, now); err != nil {
				p.log.Error("series not marked complete, will be tried again", zap.Int64("series", c.series), zap.Error(err))
				p.trackMu.Lock()
				p.track.putBack(c)
				p.trackMu.Unlock()
				d = min(d, firstPause)
				continue
			}
			p.bus.send(Event{Time: now, Type: EventSeries, SeriesID: c.series, State: c.state, Detail: c.by})
			p.wakeHigh.fire()
		}
		if wait(ctx, p.clock, d, p.wakeTrack) {
			return
		}
	}
}

// retry runs f until it succeeds or ctx ends. It is for records of what has
// already happened outside: giving up would mean doing that again.
func (p *Pipeline) retry(ctx context.Context, what string, f func() error) bool {
	for n := int64(1); ; n++ {
		err := f()
		if err == nil {
			return true
		}
		p.log.Error(what+" not recorded, trying again", zap.Error(err))
		if wait(ctx, p.clock, min(p.cfg.Load().pause(n), 30*time.Second), nil) {
			return false
		}
	}
}

// wakeForwarders tells the forwarders of the named destinations that there is work.
func (p *Pipeline) wakeForwarders(names []string) {
	p.fwdMu.Lock()
	defer p.fwdMu.Unlock()
	for name, f := range p.fwd {
		if slices.Contains(names, name) {
			f.wake.fire()
		}
	}
}
