package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/dcm/transcode"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

const (
	maxContexts  = 128             // of one association, PS3.8 9.3.2.2
	linkIdle     = 5 * time.Second // a link without work is closed after this
	forwardBatch = 32
	breakAfter   = 3 // failures in a row that open the breaker
	giveUpAfter  = 8 // failures of one image, others stored in between, that end it
	// reachedPause bounds the pause of a destination that answers but takes
	// nothing: to ask it once a minute costs it nothing.
	reachedPause  = time.Minute
	storeGrace    = 30 * time.Second
	storeBase     = 5 * time.Minute
	storeMinSpeed = 64 << 10 // bytes per second that a store may count on
)

// breaker keeps a destination that fails from being asked all the time. Closed:
// work goes out. Open: nothing goes out until a pause has passed, which grows
// with each failure, up to reachedPause while the destination can be reached.
// Then half-open: a single store is tried; its success closes the breaker, its
// failure opens it for longer.
type breaker struct {
	failures int64
	open     bool
	whole    bool // the last failure was that it could not be reached
	until    time.Time
}

// Breaker states in status and metrics.
const (
	breakerClosed   = "closed"
	breakerHalfOpen = "half-open"
	breakerOpen     = "open"
	breakerLoop     = "loop" // open, because the destination leads back to this daemon
)

// ErrLoop is in the chain of an error of Sender.Open that says: the destination is
// this daemon itself, or sends its images back to it. It is asked again later like
// one that cannot be reached, and has stored nothing.
var ErrLoop = errors.New("the destination leads back to this daemon")

func (b *breaker) state(now time.Time) string {
	switch {
	case !b.open:
		return breakerClosed
	case now.Before(b.until):
		return breakerOpen
	}
	return breakerHalfOpen
}

// fail counts a failure; whole means that the destination could not be reached
// at all, which opens the breaker at once.
func (b *breaker) fail(now time.Time, whole bool, pause func(int64) time.Duration) {
	b.failures++
	b.whole = whole
	if whole || b.open || b.failures >= breakAfter {
		n := b.failures
		if !whole && !b.open {
			n = 1
		}
		d := pause(n)
		if !whole {
			d = min(d, reachedPause)
		}
		b.open = true
		b.until = now.Add(d)
	}
}

func (b *breaker) succeed() { *b = breaker{} }

// class is what a DICOM status of a C-STORE means for the queue (PS3.4 B.2.3, PS3.7 C).
type class int

const (
	stored    class = iota // success or warning: the peer has it
	transient              // try again later
	refused                // never
)

const statusDuplicate = 0x0111 // duplicate SOP instance

// maybe says that the destination may have the image by an attempt whose answer was lost.
func classify(status uint16, maybe bool) class {
	switch {
	case status == 0, status&0xF000 == 0xB000, status == 0x0001, status == 0x0107, status == 0x0116:
		return stored
	case status == statusDuplicate && maybe:
		return stored // PS3.7 annex C: it has it
	case status&0xFF00 == 0xA700:
		return transient
	case status&0xFF00 == 0xA900, status&0xF000 == 0xC000, status == 0x0122, status == 0x0117, status == 0x0124, status == statusDuplicate:
		return refused
	}
	return transient // 0110 and whatever else: nothing says that it will always be so
}

// forwarder serves the queue of one destination and owns the states of that
// destination's deliveries. It has two couriers with a link each: one for the
// queue, one for suspects, so that these hold nobody up. An acknowledged image
// is recorded before the courier sends the next one, so at most one image per courier
// is ever sent twice: the one whose acknowledgement came when the process died.
//
// A suspect is an image that failed, then others were stored, then it failed
// again. When that has gone on giveUpAfter times it is the image and not the
// destination: it ends as refused, and a person may put it back (Retry). While
// nothing else is stored nobody can tell which of the two it is, so then
// nothing is given up, however often it fails.
type forwarder struct {
	p            *forwarders
	d            Destination
	wake, doubts signal // work for the queue's courier, for that of the suspects
	stop         context.CancelFunc
	done         chan struct{}

	mu     sync.Mutex
	br     breaker
	loop   bool             // the last attempt to open a link met ErrLoop
	stores uint64           // images stored by this process
	failed map[int64]uint64 // instance -> stores when it last failed; only those that wait to be tried again
}

// courier sends one image after the other over one link.
type courier struct {
	*forwarder
	suspects bool
	link     Link
	proposed map[Context]bool
	used     bool // the link has carried an image
}

// failure counts a failed attempt to store an image: the value of
// Delivery.Failures that goes on record, and whether the destination is to
// blame as far as anybody can tell.
func (f *forwarder) failure(d journal.Delivery) (failures int64, blame bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, known := f.failed[d.Instance.ID]
	f.failed[d.Instance.ID] = f.stores
	if known && f.stores > before || d.Failures == 0 {
		d.Failures++
	}
	return d.Failures, d.Failures < 2
}

// forwarders serve the destinations, each by a forwarder of its own.
type forwarders struct {
	*shared
	fast, high *lane  // make what is damaged again
	config     signal // the destinations may have changed

	mu  sync.Mutex
	all map[string]*forwarder // by destination
}

// wake tells the forwarders of the named destinations that there is work.
func (p *forwarders) wake(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, f := range p.all {
		if slices.Contains(names, name) {
			f.wake.fire()
		}
	}
}

// state is that of a destination's breaker; empty if nothing is sent to it.
func (p *forwarders) state(dest string) string {
	p.mu.Lock()
	f := p.all[dest]
	p.mu.Unlock()
	if f == nil {
		return ""
	}
	return f.state()
}

// run runs one forwarder per configured destination until ctx ends.
func (p *forwarders) run(ctx context.Context) {
	defer func() {
		p.mu.Lock()
		list := maps.Clone(p.all)
		p.mu.Unlock()
		for _, f := range list {
			f.stop()
			<-f.done
		}
	}()
	for {
		want := map[string]Destination{}
		for _, d := range p.cfg.Load().Destinations {
			want[d.Name] = d
		}
		p.mu.Lock()
		have := maps.Clone(p.all)
		p.mu.Unlock()
		for name, f := range have {
			if d, ok := want[name]; ok && d.AETitle == f.d.AETitle && d.Address == f.d.Address && d.TLS == f.d.TLS {
				delete(want, name)
				continue
			}
			f.stop()
			<-f.done
			p.mu.Lock()
			delete(p.all, name)
			p.mu.Unlock()
		}
		for name, d := range want {
			fctx, stop := context.WithCancel(ctx)
			f := &forwarder{p: p, d: d, wake: newSignal(), doubts: newSignal(), stop: stop, done: make(chan struct{}), failed: map[int64]uint64{}}
			p.mu.Lock()
			p.all[name] = f
			p.mu.Unlock()
			go func() {
				defer close(f.done)
				var wg sync.WaitGroup
				wg.Go(func() { (&courier{forwarder: f, suspects: true}).run(fctx) })
				(&courier{forwarder: f}).run(fctx)
				wg.Wait()
			}()
		}
		select {
		case <-ctx.Done():
			return
		case <-p.config:
		}
	}
}

func (f *forwarder) state() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loop {
		return breakerLoop
	}
	return f.br.state(f.p.clock.Now())
}

// setLoop notes whether the destination was seen to lead back here.
func (f *forwarder) setLoop(loop bool) {
	f.mu.Lock()
	was := f.loop
	f.loop = loop
	f.mu.Unlock()
	if loop && !was {
		f.p.log.Error("ALARM: destination leads back to this daemon, nothing is sent to it: correct its address",
			zap.String("destination", f.d.Name), zap.String("address", f.d.Address))
		f.p.bus.send(Event{Time: f.p.clock.Now(), Type: EventDestination, Destination: f.d.Name, State: breakerLoop})
	}
}

func (f *forwarder) fail(whole bool) {
	f.mu.Lock()
	was := f.br.open
	f.br.fail(f.p.clock.Now(), whole, f.p.cfg.Load().pause)
	now := f.br.open
	f.mu.Unlock()
	if now && !was {
		f.p.log.Warn("destination does not take images, pausing", zap.String("destination", f.d.Name))
		f.p.bus.send(Event{Time: f.p.clock.Now(), Type: EventDestination, Destination: f.d.Name, State: breakerOpen})
	}
}

// succeed notes that the destination has answered for good; stored that it has the image.
func (f *forwarder) succeed(stored bool) {
	f.mu.Lock()
	was := f.br.open
	f.br.succeed()
	if stored {
		f.stores++
	}
	f.mu.Unlock()
	if was {
		f.p.log.Info("destination takes images again", zap.String("destination", f.d.Name))
		f.p.bus.send(Event{Time: f.p.clock.Now(), Type: EventDestination, Destination: f.d.Name, State: breakerClosed})
	}
}

func (f *courier) run(ctx context.Context) {
	defer f.close(ctx)
	for probe := 0; ctx.Err() == nil; {
		now := f.p.clock.Now()
		f.mu.Lock()
		state, until, whole := f.br.state(now), f.br.until, f.br.whole
		f.mu.Unlock()
		var list []journal.Delivery
		var err error
		switch {
		case state == breakerOpen:
			f.close(ctx)
			if wait(ctx, f.p.clock, until.Sub(now), nil) {
				return
			}
			continue
		case f.suspects:
			list, err = f.p.jrnl.NextSuspects(ctx, f.d.Name, now, 1)
		case state == breakerHalfOpen:
			// From both ends in turn: images that nobody can take often come one
			// after the other.
			if probe++; whole || probe%2 == 1 {
				list, err = f.p.jrnl.NextDeliveries(ctx, f.d.Name, now, 1)
			} else {
				list, err = f.p.jrnl.NewestDelivery(ctx, f.d.Name, now)
			}
		default:
			list, err = f.p.jrnl.NextDeliveries(ctx, f.d.Name, now, forwardBatch)
		}
		if err != nil {
			if ctx.Err() == nil {
				f.p.log.Error("forward queue not readable", zap.String("destination", f.d.Name), zap.Error(err))
			}
			if wait(ctx, f.p.clock, firstPause, f.work()) {
				return
			}
			continue
		}
		if len(list) == 0 {
			if f.idle(ctx, now) {
				return
			}
			continue
		}
		for _, d := range list {
			if ctx.Err() != nil || !f.send(ctx, d) {
				break
			}
		}
		if f.suspects {
			f.close(ctx) // alone on its link
		}
	}
}

// work tells that there is something new for the courier.
func (f *courier) work() signal {
	if f.suspects {
		return f.doubts
	}
	return f.wake
}

// idle waits for work; a link is kept for a while, then closed.
func (f *courier) idle(ctx context.Context, now time.Time) (ended bool) {
	pause := time.Hour
	if at, ok, err := f.p.jrnl.NextDue(ctx, f.d.Name, f.suspects); err == nil && ok {
		pause = min(max(at.Sub(now), time.Millisecond), time.Minute) // the clock may change meanwhile
	}
	if f.link == nil {
		return wait(ctx, f.p.clock, pause, f.work())
	}
	t, stop := f.p.clock.After(linkIdle)
	defer stop()
	w, wstop := f.p.clock.After(pause)
	defer wstop()
	select {
	case <-ctx.Done():
		return true
	case <-f.work():
	case <-w:
	case <-t:
		f.close(ctx)
	}
	return ctx.Err() != nil
}

// close releases the link, also when ctx has ended already.
func (f *courier) close(ctx context.Context) {
	if f.link == nil {
		return
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := guard("close", func() error { return f.link.Close(cctx) }); err != nil {
		f.p.log.Debug("link not closed in order", zap.String("destination", f.d.Name), zap.Error(err))
	}
	f.link, f.proposed = nil, nil
}

// guard turns a panic of the plugged-in sender into an error.
func guard(what string, fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%s: panic: %v", what, v)
		}
	}()
	return fn()
}

// open makes sure that there is a link on which c was proposed.
func (f *courier) open(ctx context.Context, c Context) error {
	if f.link != nil && f.proposed[c] {
		return nil
	}
	f.close(ctx)
	var pairs [][2]string
	if !f.suspects {
		var err error
		if pairs, err = f.p.jrnl.Syntaxes(ctx, f.d.Name, maxContexts); err != nil {
			return fmt.Errorf("%w: %w", errJournal, err)
		}
	}
	want, proposed := contexts(c, pairs)
	var link Link
	if err := guard("open", func() (err error) { link, err = f.p.cfg.Load().Sender.Open(ctx, f.d, want); return err }); err != nil {
		return err
	}
	if link == nil {
		return errors.New("sender returned no link")
	}
	f.link, f.proposed, f.used = link, proposed, false
	f.setLoop(false)
	return nil
}

// contexts lists what to propose so that c, and of the pairs of SOP class and
// transfer syntax as many as fit, can be sent as they are or as what they can
// become. Each is a context of its own: the peer cannot choose to have an image
// converted that it takes as it is. proposed are c and the pairs that are in.
func contexts(c Context, pairs [][2]string) (want []Context, proposed map[Context]bool) {
	proposed = map[Context]bool{}
	listed := map[Context]bool{}
	add := func(c Context) {
		forms := forms(c)
		if len(want)+len(forms) > maxContexts {
			return
		}
		proposed[c] = true
		for _, x := range forms {
			if !listed[x] {
				listed[x] = true
				want = append(want, x)
			}
		}
	}
	add(c)
	for _, p := range pairs {
		add(Context{p[0], p[1]})
	}
	return want, proposed
}

// forms lists the contexts in which an image can be sent: its own one, then those
// that its data set can be converted to without loss.
func forms(c Context) []Context {
	out := make([]Context, 1, 1+transcode.MaxTargets)
	out[0] = c
	for _, ts := range transcode.Targets(c.TransferSyntaxUID) {
		out = append(out, Context{c.SOPClassUID, ts})
	}
	return out
}

// send tries one delivery and records what came of it. It returns false when
// the rest of the batch must wait.
func (f *courier) send(ctx context.Context, d journal.Delivery) bool {
	in := d.Instance
	c := Context{in.Class, in.Syntax}
	if err := f.open(ctx, c); err != nil {
		if ctx.Err() != nil {
			return false
		}
		if errors.Is(err, errJournal) {
			f.p.log.Error("forward queue not readable", zap.Error(err))
			return false
		}
		f.setLoop(errors.Is(err, ErrLoop))
		f.p.met.forward(f.d.Name, "unreachable")
		f.p.log.Warn("destination not reached", zap.String("destination", f.d.Name), zap.Error(err))
		if f.suspects { // perhaps one association is all that the destination allows
			return f.later(ctx, d, -1, err.Error(), d.Failures)
		}
		f.fail(true)
		return false
	}
	as := -1 // of forms(c)
	if err := guard("accepts", func() error {
		as = slices.IndexFunc(forms(c),
			f.link.Accepts)
		return nil
	}); err != nil {
		f.broken(ctx, d, err)
		return false
	}
	if as < 0 {
		f.p.met.forward(f.d.Name, "no-context")
		f.p.log.Error("ALARM: destination accepts no presentation context for an image: refused for good",
			zap.String("destination", f.d.Name), zap.String("instance", in.SOP), zap.String("sop_class", c.SOPClassUID),
			zap.String("transfer_syntax", c.TransferSyntaxUID))
		return f.end(ctx, d, state.DeliveryRefused, -1, fmt.Sprintf("no presentation context accepted for %+q in %+q%s",
			c.SOPClassUID, c.TransferSyntaxUID, orAs(c)))
	}
	file, err := f.p.store.Open(in.File)
	if errors.Is(err, fs.ErrNotExist) {
		return f.damaged(ctx, d, err)
	}
	if err != nil {
		return f.unreadable(ctx, d, err)
	}
	defer file.Close()
	n, err := file.Size()
	if err != nil {
		return f.unreadable(ctx, d, err)
	}
	if n != in.Offset+in.Size {
		return f.damaged(ctx, d, fmt.Errorf("file has %d bytes instead of %d: %w", n, in.Offset+in.Size, spool.ErrDamaged))
	}
	r := &seenReader{r: spool.NewReader(in.File, file, in.Offset, in.Size, in.CRC)}
	data := r
	out := Outgoing{SOPClassUID: in.Class, SOPInstanceUID: in.SOP, TransferSyntaxUID: in.Syntax, Size: in.Size}
	sentAs := ""
	if as > 0 { // the spool's bytes stay as they are
		out.TransferSyntaxUID, out.Size = forms(c)[as].TransferSyntaxUID, 0
		data = &seenReader{r: transcode.NewReader(r, in.Syntax, out.TransferSyntaxUID)}
		sentAs = fmt.Sprintf("sent as %s (%s)", transcode.Name(out.TransferSyntaxUID), out.TransferSyntaxUID)
	}
	sctx, cancel := f.storeContext(ctx, in.Size)
	defer cancel()
	var status uint16
	f.p.hook("send")
	err = guard("store", func() (err error) {
		status, err = f.link.Store(sctx, out, data)
		return err
	})
	if r.err != nil && errors.Is(r.err, spool.ErrDamaged) {
		f.close(ctx)
		return f.damaged(ctx, d, r.err)
	}
	if e := new(transcode.Error); errors.As(data.err, &e) {
		f.close(ctx)
		return f.unconvertible(ctx, d, out.TransferSyntaxUID, e)
	}
	if err != nil {
		f.broken(ctx, d, err)
		return false
	}
	f.used = true
	f.p.hook("sent")
	f.p.met.forward(f.d.Name, statusWord(status))
	// A derived object has its UID from what it was made of: nobody else can have given it away.
	switch classify(status, d.Unsure || in.Kind == spool.Derived) {
	case stored:
		detail := sentAs
		if status != 0 {
			detail = "stored with warning " + statusWord(status)
			if status == statusDuplicate {
				detail = "the destination has it already (0111 duplicate SOP instance)"
			}
			if sentAs != "" {
				detail += ", " + sentAs
			}
			f.p.log.Warn("destination stored an image with a warning", zap.String("destination", f.d.Name), zap.String("instance", in.SOP), zap.String("status", statusWord(status)))
		}
		f.succeed(true)
		return f.end(ctx, d, state.DeliveryStored, int(status), detail)
	case refused:
		f.succeed(false)
		f.p.log.Error("destination refused an image for good", zap.String("destination", f.d.Name), zap.String("instance", in.SOP), zap.String("status", statusWord(status)))
		return f.end(ctx, d, state.DeliveryRefused, int(status), "refused with status "+statusWord(status))
	}
	return f.again(ctx, d, int(status), "answered status "+statusWord(status)) && f.state() == breakerClosed
}

func statusWord(s uint16) string { return fmt.Sprintf("%04X", s) }

// seenReader remembers the error of the data set's own reader, so that a
// damaged file is told from a broken link.
type seenReader struct {
	r   io.Reader
	err error
}

func (s *seenReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// storeContext lets a store in flight end in order after ctx has, for a while.
func (f *courier) storeContext(ctx context.Context, size int64) (context.Context, context.CancelFunc) {
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeBase+time.Duration(size/storeMinSpeed)*time.Second)
	stop := context.AfterFunc(ctx, func() {
		t := time.NewTimer(storeGrace)
		defer t.Stop()
		select {
		case <-t.C:
			cancel()
		case <-sctx.Done():
		}
	})
	return sctx, func() { stop(); cancel() }
}

// broken: the link failed under a store; whether the peer has the image is not known.
func (f *courier) broken(ctx context.Context, d journal.Delivery, err error) {
	used := f.used
	f.close(ctx)
	f.p.met.forward(f.d.Name, "broken")
	f.p.log.Warn("link broke while sending", zap.String("destination", f.d.Name), zap.String("instance", d.Instance.SOP), zap.Error(err))
	if used {
		// Peers close associations that have been quiet: a new one may work at
		// once. If not, the next failure is on a fresh link and counts.
		f.p.retry(ctx, "failed delivery", func() error {
			return f.p.jrnl.RetryDelivery(d.Instance.ID, f.d.Name, -1, err.Error(), d.Failures, f.p.clock.Now(), true)
		})
		return
	}
	d.Unsure = true
	f.again(ctx, d, -1, err.Error())
}

// again records a failed attempt: to be tried later, or given up. It returns
// false when that could not be recorded.
func (f *courier) again(ctx context.Context, d journal.Delivery, status int, detail string) bool {
	failures, blame := f.failure(d)
	if blame {
		f.fail(false)
	}
	if failures < giveUpAfter {
		return f.later(ctx, d, status, detail, failures)
	}
	f.p.log.Error("destination takes other images but never this one, given up", zap.String("destination", f.d.Name), zap.String("instance", d.Instance.SOP), zap.String("answer", detail))
	return f.end(ctx, d, state.DeliveryRefused, status,
		fmt.Sprintf("given up after %d attempts, others were stored in between; last: %s", d.Attempts+1, detail))
}

// unconvertible: the destination takes the image only in another transfer syntax,
// and its data set is too damaged for that, as it came. Nothing whole has been sent.
func (f *courier) unconvertible(ctx context.Context, d journal.Delivery, to string, err error) bool {
	f.p.met.forward(f.d.Name, "not-convertible")
	f.p.log.Error("ALARM: image cannot be converted for a destination: refused for good",
		zap.String("destination", f.d.Name),
		zap.String("instance", d.Instance.SOP), zap.String("transfer_syntax", to), zap.Error(err))
	return f.end(ctx, d, state.DeliveryRefused, -1, fmt.Sprintf("taken in %s only, and: %v", transcode.Name(to), err))
}

// orAs names what an image could also have been sent as.
func orAs(c Context) string {
	var s strings.Builder
	for _, x := range forms(c)[1:] {
		s.WriteString(", nor in " + transcode.Name(x.TransferSyntaxUID))
	}
	return s.String()
}

// later puts a delivery back.
func (f *courier) later(ctx context.Context, d journal.Delivery, status int, detail string, failures int64) bool {
	next := f.p.clock.Now().Add(f.p.cfg.Load().pause(d.Attempts + 1))
	ok := f.p.retry(ctx, "failed delivery", func() error {
		return f.p.jrnl.RetryDelivery(d.Instance.ID, f.d.Name, status, detail, failures, next, d.Unsure)
	})
	if failures > 1 && !f.suspects {
		f.doubts.fire()
	}
	return ok
}

// end records a final state. It returns false when that could not be done: then
// nothing more may be sent, or the next round would send this one again.
func (f *forwarder) end(ctx context.Context, d journal.Delivery, to state.Delivery, status int, detail string) bool {
	now := f.p.clock.Now()
	ok := f.p.retry(ctx, "delivery", func() error {
		return f.p.jrnl.EndDelivery(d.Instance.ID, f.d.Name, to, status,
			detail, now)
	})
	if !ok {
		return false
	}
	f.mu.Lock()
	delete(f.failed, d.Instance.ID)
	f.mu.Unlock()
	f.p.hook("marked")
	f.p.bus.send(Event{Time: now, Type: EventDelivery, SeriesID: d.Instance.Series, Instance: d.Instance.SOP,
		Kind: string(d.Instance.Kind), Destination: f.d.Name, State: string(to), Detail: detail})
	return true
}

// unreadable: our own file cannot be looked at now, perhaps for want of
// descriptors. That says nothing about its bytes.
func (f *courier) unreadable(ctx context.Context, d journal.Delivery, err error) bool {
	f.p.log.Error("spool file not readable, will be tried again", zap.String("file", d.Instance.File), zap.Error(err))
	return f.later(ctx, d, -1, err.Error(), d.Failures)
}

// damaged: our own file is not what it was. An original waits for the sender to
// send it again; a derived object is made anew.
func (f *courier) damaged(ctx context.Context, d journal.Delivery, err error) bool {
	in := d.Instance
	f.p.met.integrity.Inc()
	f.p.met.forward(f.d.Name, "damaged")
	f.p.log.Error("ALARM: spool file damaged, not sent", zap.String("file", in.File), zap.String("instance", in.SOP), zap.Error(err))
	if in.Kind == spool.Derived {
		ok := f.p.retry(ctx, "damaged derived object", func() error {
			return f.p.jrnl.Remake(in.ID, in.Source, f.p.highStart(""), f.p.clock.Now())
		})
		f.p.fast.wake.fire()
		f.p.high.wake.fire()
		return ok
	}
	return f.p.retry(ctx, "damaged file", func() error {
		return f.p.jrnl.DamagedDelivery(in.ID, f.d.Name, in.File, err.Error(), f.p.clock.Now())
	})
}
