package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/lockfile"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
)

// Pipeline is the assembled stages. Its methods are safe for concurrent use. Each part owns its state and the
// goroutines that Run gives it, and holds nothing but what it would read from spool and journal again.
type Pipeline struct {
	*shared
	lock      *os.File
	series    *seriesClock
	receiver  *receiver
	fast      *lane
	high      *lane
	forward   *forwarders
	retention signal // wakes the removal of files

	flagMu  sync.Mutex // flags are set one at a time, so that file and row agree
	running atomic.Bool
	closed  sync.Once
}

// shared is what all parts use. It is safe for concurrent use.
type shared struct {
	store *spool.Store
	jrnl  *journal.Journal
	log   *zap.Logger
	clock clock
	hook  func(string)
	met   *metrics
	bus   bus
	cfg   atomic.Pointer[config]
	stuck sync.WaitGroup // abandoned denoiser calls
}

// assemble makes the parts and tells them of each other. The journal is opened later.
func assemble(o *Options) *Pipeline {
	s := &shared{log: o.Logger, clock: o.clock, hook: o.hook, met: newMetrics()}
	p := &Pipeline{shared: s, retention: newSignal()}
	p.forward = &forwarders{shared: s, config: newSignal(), all: map[string]*forwarder{}}
	p.fast = fastLane(s)
	p.high = highLane(s, p.fast)
	p.fast.behind = p.high
	p.fast.forward, p.high.forward = p.forward, p.forward
	p.forward.fast, p.forward.high = p.fast, p.high
	p.series = &seriesClock{shared: s, high: p.high, wake: newSignal(), track: newTracker(o)}
	p.receiver = &receiver{shared: s, series: p.series, fast: p.fast, high: p.high, forward: p.forward}
	return p
}

// config is one consistent set of options.
type config struct {
	Options
	rules []rule
}

// Open opens spool and journal in o.StateDir, takes the folder for this process
// and recovers: unfinished files are removed, files without a row are recorded,
// rows without a file are marked. A journal that is missing or damaged is
// rebuilt from the files; one of an earlier version is migrated. ErrNewerJournal:
// the program is older than the journal, and nothing was touched. Nothing runs
// before Run; Receive works at once.
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
	p = assemble(&o)
	p.lock = lock
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
	if err := p.reconcile(ctx); err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	if err := p.bound(ctx, p.clock.Now()); err != nil {
		return nil, err
	}
	if err := p.jrnl.Doubt(forwardBatch); err != nil {
		return nil, err
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
		p.series.restore(s)
	}
	if err := p.met.register(p, o.Registerer); err != nil {
		return nil, err
	}
	return p, nil
}

// ErrNewerJournal says that a newer program wrote the journal of the state folder.
var ErrNewerJournal = journal.ErrNewer

// journalFile is the name of the journal in the state folder.
const journalFile = "journal.db"

func (p *Pipeline) openJournal(ctx context.Context, dir string) error {
	path := filepath.Join(dir, journalFile)
	j, found, err := journal.Open(ctx, path, p.hook, p.met.committed)
	if errors.Is(err, journal.ErrDamaged) {
		p.log.Error("journal damaged, rebuilding it from the spool", zap.Error(err))
		if err := moveAside(path, p.clock.Now()); err != nil {
			return err
		}
		j, found, err = journal.Open(ctx, path, p.hook, p.met.committed)
	}
	if err != nil {
		return err
	}
	if found > 0 && found < journal.SchemaVersion {
		p.log.Info("journal of an earlier version migrated, a copy is kept beside it", zap.Int("from", found),
			zap.Int("to", journal.SchemaVersion))
	}
	p.jrnl, p.fast.rows, p.high.rows = j, j.Lane(Fast), j.Lane(High)
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
	for _, stage := range []func(context.Context){p.series.run, p.fast.run, p.high.run, p.forward.run, p.retain} {
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
	p.series.configure(&o)
	p.forward.config.fire()
	p.retention.fire()
	return nil
}

// retry runs f until it succeeds or ctx ends. It is for records of what has
// already happened outside: giving up would mean doing that again.
func (p *shared) retry(ctx context.Context, what string, f func() error) bool {
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
