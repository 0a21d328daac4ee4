package pipeline

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/state"
)

func TestClassify(t *testing.T) {
	for status, want := range map[uint16]class{
		0x0000: stored, 0xB000: stored, 0xB006: stored, 0xB007: stored, 0x0107: stored,
		0xA700: transient, 0xA702: transient, 0x0110: transient, 0x0211: transient, 0xFE00: transient,
		0xA900: refused, 0xA9FF: refused, 0xC000: refused, 0xCFFF: refused, 0x0122: refused, 0x0117: refused, 0x0124: refused, 0x0111: refused,
	} {
		if got := classify(status, false); got != want {
			t.Errorf("%04X: %v, want %v", status, got, want)
		}
	}
	if classify(0x0111, true) != stored {
		t.Error("a duplicate of what may have been sent before is ours")
	}
}

func TestBreaker(t *testing.T) {
	pause := func(n int64) time.Duration { return time.Duration(n) * time.Second }
	var b breaker
	for range breakAfter - 1 {
		b.fail(at(0), false, pause)
	}
	if b.state(at(0)) != breakerClosed {
		t.Error("opened too early")
	}
	b.fail(at(0), false, pause)
	if b.state(at(0.5)) != breakerOpen || b.state(at(1)) != breakerHalfOpen {
		t.Errorf("%+v", b)
	}
	b.fail(at(1), false, pause) // the probe failed: longer
	if b.state(at(4.5)) != breakerOpen || b.state(at(5)) != breakerHalfOpen {
		t.Errorf("%+v", b)
	}
	b.succeed()
	if b.state(at(5)) != breakerClosed || b.failures != 0 {
		t.Errorf("%+v", b)
	}
	b.fail(at(5), true, pause)
	if b.state(at(5)) != breakerOpen {
		t.Error("unreachable must open at once")
	}
}

// originalsOnly is a destination without derived objects, to keep counts simple.
func originalsOnly(o *Options) { o.Destinations[0].Send = []string{"original"} }

func TestTransientStatusIsTriedAgain(t *testing.T) {
	a := newArchive()
	a.store = func(n int, _ Destination, _ Outgoing, _ []byte) (uint16, error, bool) {
		switch n {
		case 1:
			return 0xA700, nil, false
		case 2:
			return 0x0110, nil, false
		case 3:
			return 0, errors.New("connection reset"), false
		}
		return 0, nil, true
	}
	a.open = func(n int, _ Destination) error {
		if n == 1 {
			return errors.New("rejected: transient, local limit exceeded")
		}
		return nil
	}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	receive(t, p, slice(1, 1))
	eventually(t, "stored", func() bool { return status(t, p, slice(1, 1).series).Destinations[0].Stored == 1 })
	d := status(t, p, slice(1, 1).series).Instances[0].Deliveries[0]
	if d.Attempts != 4 || d.Status != "0000" || len(a.copies("pacs", slice(1, 1).sop)) != 1 {
		t.Errorf("%+v", d)
	}
}

func TestRefusedForGood(t *testing.T) {
	a := newArchive()
	var mended atomic.Bool
	a.store = func(_ int, _ Destination, o Outgoing, _ []byte) (uint16, error, bool) {
		if o.SOPInstanceUID == slice(1, 1).sop && !mended.Load() {
			return 0xC123, nil, false
		}
		return 0, nil, true
	}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	for n := range 3 {
		receive(t, p, slice(1, n+1))
	}
	eventually(t, "the others stored", func() bool {
		d := status(t, p, slice(1, 1).series).Destinations[0]
		return d.Stored == 2 && d.Refused == 1
	})
	d := status(t, p, slice(1, 1).series).Instances[0].Deliveries[0]
	if d.State != state.DeliveryRefused || d.Status != "C123" || d.Attempts != 1 {
		t.Errorf("%+v", d)
	}
	mended.Store(true)
	if n, err := p.Retry(t.Context(), slice(1, 1).series); n != 1 || err != nil {
		t.Errorf("retry: %d, %v", n, err)
	}
	eventually(t, "all stored", func() bool { return status(t, p, slice(1, 1).series).Destinations[0].Stored == 3 })
	if _, err := p.Retry(t.Context(), "9.9"); !errors.Is(err, ErrUnknownSeries) {
		t.Errorf("error %v", err)
	}
}

func TestWarningIsStored(t *testing.T) {
	a := newArchive()
	a.store = func(int, Destination, Outgoing, []byte) (uint16, error, bool) { return 0xB007, nil, true }
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	receive(t, p, slice(1, 1))
	eventually(t, "stored with a warning", func() bool {
		d := status(t, p, slice(1, 1).series).Destinations[0]
		return d.Stored == 1 && d.Warnings == 1
	})
	if d := status(t, p, slice(1, 1).series).Instances[0].Deliveries[0]; d.Status != "B007" || d.Detail == "" {
		t.Errorf("%+v", d)
	}
}

// A context that the peer does not take costs the instances that need it, not the others.
func TestNoContext(t *testing.T) {
	a := newArchive()
	a.syntax = map[Context]bool{{classMR, dcm.ExplicitVRLittleEndian}: true}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	in := slice(2, 1).incoming()
	in.SOPClassUID = "1.3.46.670589.11.0.0.12.1" // private
	if err := p.Receive(t.Context(), in, bytes.NewReader([]byte("not a data set"))); err != nil {
		t.Fatal(err)
	}
	receive(t, p, slice(1, 1))
	eventually(t, "one stored", func() bool { return a.count("pacs") == 1 })
	eventually(t, "one refused", func() bool {
		s := status(t, p, "?MR1")
		return len(s.Destinations) == 1 && s.Destinations[0].Refused == 1
	})
	if d := status(t, p, "?MR1").Destinations[0].Detail; d == "" {
		t.Error("no reason")
	}
}

// One association carries everything while there is work; a class that was not
// proposed opens a new one.
func TestAssociationIsKept(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	originalsOnly(&o)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 40 {
		receive(t, p, slice(1, n+1))
	}
	stop := run(p)
	defer func() { stop(); p.Close() }()
	eventually(t, "all stored", func() bool { return a.count("pacs") == 40 })
	if n := a.links(); n != 1 {
		t.Errorf("%d associations", n)
	}
	in := slice(2, 1).incoming()
	in.SOPClassUID = "1.3.12.2.1107.5.9.1"
	if err := p.Receive(t.Context(), in, bytes.NewReader([]byte("something else"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new class stored", func() bool { return a.count("pacs") == 41 })
	if n := a.links(); n != 2 {
		t.Errorf("%d associations", n)
	}
}

func TestMoreContextsThanAnAssociationHolds(t *testing.T) {
	a := newArchive() // fails an Open with more than 128
	o := options(t, a)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 150 {
		in := slice(1, n+1).incoming()
		in.SOPClassUID = fmt.Sprintf("1.2.3.4.%d", n)
		if err := p.Receive(t.Context(), in, bytes.NewReader([]byte("no data set"))); err != nil {
			t.Fatal(err)
		}
	}
	stop := run(p)
	defer func() { stop(); p.Close() }()
	eventually(t, "all stored", func() bool { return a.count("pacs") == 150 })
	if n := a.links(); n != 3 { // 64 classes, each as it is and as implicit VR
		t.Errorf("%d associations", n)
	}
}

// A dead destination holds up neither receiving nor the other one; when it
// comes back it gets everything, oldest first.
func TestDeadDestination(t *testing.T) {
	a := newArchive()
	var alive atomic.Bool
	a.open = func(_ int, d Destination) error {
		if d.Name == "dead" && !alive.Load() {
			return errors.New("connection refused")
		}
		return nil
	}
	o := options(t, a)
	dead := Destination{Name: "dead", Send: []string{"original"}}
	o.Destinations = append(o.Destinations, dead)
	p := start(t, o)
	for n := range 20 {
		receive(t, p, slice(1, n+1))
	}
	eventually(t, "the living one has all", func() bool { return a.count("pacs") == 40 })
	eventually(t, "the breaker is open", func() bool { return p.forward.state("dead") != breakerClosed })
	if h := p.Check(); !h.OK || len(h.Problems) == 0 || h.Forward["dead"].Waiting != 20 {
		t.Errorf("%+v", h)
	}
	a.mu.Lock()
	a.order = nil
	a.mu.Unlock()
	alive.Store(true)
	eventually(t, "the other one has all", func() bool { return a.count("dead") == 20 })
	order := a.sent()
	for n := range 20 {
		if order[n] != slice(1, n+1).sop {
			t.Fatalf("order %v", order)
		}
	}
}

// What a destination never takes while it takes everything else ends as refused
// and holds nobody up: neither the others nor, by way of the breaker, the destination.
func TestImageThatIsNeverTaken(t *testing.T) {
	a := newArchive()
	full, breaks := slice(1, 1).sop, slice(1, 2).sop
	var mended atomic.Bool
	a.store = func(_ int, _ Destination, o Outgoing, _ []byte) (uint16, error, bool) {
		switch {
		case mended.Load():
		case o.SOPInstanceUID == full:
			return 0xA700, nil, false
		case o.SOPInstanceUID == breaks:
			return 0, errors.New("association aborted"), false
		}
		return 0, nil, true
	}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	receive(t, p, slice(1, 1))
	receive(t, p, slice(1, 2))
	n := 2
	ended := func() bool { return status(t, p, slice(1, 1).series).Destinations[0].Refused == 2 }
	eventually(t, "given up while others are stored", func() bool {
		n++
		receive(t, p, slice(1, n))
		eventually(t, "the others are not held up", func() bool { return a.count("pacs") == n-2 })
		if n < giveUpAfter && ended() {
			t.Fatalf("given up after %d other images", n-2)
		}
		return ended()
	})
	for uid, want := range map[string]string{full: "A700", breaks: ""} {
		list := status(t, p, slice(1, 1).series).Instances
		i := slices.IndexFunc(list, func(in InstanceStatus) bool { return in.SOPInstanceUID == uid })
		if i < 0 || len(list[i].Deliveries) != 1 {
			t.Fatalf("%s is not among %+v", uid, list)
		}
		d := list[i].Deliveries[0]
		if d.State != state.DeliveryRefused || d.Status != want || !strings.Contains(d.Detail, "given up after") ||
			d.Attempts < giveUpAfter {
			t.Errorf("%+v", d)
		}
	}
	mended.Store(true)
	if n, err := p.Retry(t.Context(), slice(1, 1).series); n != 2 || err != nil {
		t.Errorf("retry: %d, %v", n, err)
	}
	eventually(t, "all stored", func() bool { return a.count("pacs") == n })
}

// A destination that takes nothing, whatever its answer, is asked for ever.
func TestNothingIsGivenUpWhileNothingIsStored(t *testing.T) {
	a := newArchive()
	var free atomic.Bool
	var tries atomic.Int64
	a.store = func(n int, _ Destination, _ Outgoing, _ []byte) (uint16, error, bool) {
		tries.Add(1)
		switch {
		case n <= 3 || free.Load(): // it was good at first
			return 0, nil, true
		case n%2 == 0:
			return 0xA700, nil, false
		}
		return 0, errors.New("association aborted"), false
	}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	for n := range 8 {
		receive(t, p, slice(1, n+1))
	}
	eventually(t, "each image tried often", func() bool { return tries.Load() > 20*giveUpAfter })
	if d := status(t, p, slice(1, 1).series).Destinations[0]; d.Stored != 3 || d.Queued != 5 {
		t.Errorf("%+v", d)
	}
	free.Store(true)
	eventually(t, "all stored", func() bool { return a.count("pacs") == 8 })
}

// The count of failures outlives the process.
func TestFailuresAreOnRecord(t *testing.T) {
	a := newArchive()
	bad := slice(1, 1).sop
	a.store = func(_ int, _ Destination, o Outgoing, _ []byte) (uint16, error, bool) {
		if o.SOPInstanceUID == bad {
			return 0xA700, nil, false
		}
		return 0, nil, true
	}
	o := options(t, a)
	originalsOnly(&o)
	good := 0
	for range 2 * giveUpAfter { // processes, each good for a failure or two
		p, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		stop := run(p)
		receive(t, p, slice(1, 1))
		delivery := func() DeliveryStatus { return status(t, p, slice(1, 1).series).Instances[0].Deliveries[0] }
		for range 2 {
			good++
			receive(t, p, slice(1, good+1))
			eventually(t, "stored", func() bool { return a.count("pacs") == good })
			tried := delivery().Attempts
			eventually(t, "the bad one tried since", func() bool {
				d := delivery()
				return d.Attempts > tried+1 || d.State == state.DeliveryRefused
			})
		}
		refused := delivery().State == state.DeliveryRefused
		stop()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if refused {
			return
		}
	}
	t.Fatal("never given up")
}

// A suspect at which the destination hangs holds up no other image.
func TestSuspectThatHangs(t *testing.T) {
	a := newArchive()
	bad := slice(1, 1).sop
	hold := make(chan struct{})
	var hung atomic.Int64
	defer close(hold)
	var failures int
	good := true // the last one was another
	a.store = func(_ int, _ Destination, o Outgoing, _ []byte) (uint16, error, bool) {
		if o.SOPInstanceUID != bad {
			good = true
			return 0, nil, true
		}
		if good {
			failures++
		}
		if good = false; failures > 3 {
			hung.Add(1)
			a.mu.Unlock() // the fake holds it
			<-hold
			a.mu.Lock()
			hung.Add(-1)
		}
		return 0, errors.New("association aborted"), false
	}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	receive(t, p, slice(1, 1))
	n := 1
	eventually(t, "a hanging suspect", func() bool {
		n++
		receive(t, p, slice(1, n))
		eventually(t, "stored", func() bool { return a.count("pacs") == n-1 })
		return hung.Load() == 1
	})
	for range 20 {
		n++
		receive(t, p, slice(1, n))
	}
	eventually(t, "the others stored meanwhile", func() bool { return a.count("pacs") == n-1 })
	if hung.Load() != 1 {
		t.Error("it hangs no longer")
	}
}

// A panic of the plugged-in sender is a broken link, no more.
func TestPanickingSender(t *testing.T) {
	a := newArchive()
	a.store = func(n int, _ Destination, _ Outgoing, _ []byte) (uint16, error, bool) {
		if n == 1 {
			defer a.mu.Lock() // the fake holds it
			a.mu.Unlock()
			panic("nil pointer")
		}
		return 0, nil, true
	}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	receive(t, p, slice(1, 1))
	eventually(t, "stored", func() bool { return a.count("pacs") == 1 })
}

// A file that rots in the spool is never complete at the receiver. The sender's
// repetition heals an original; a derived object is made again.
func TestRotIsNotSent(t *testing.T) {
	a := newArchive()
	var alive atomic.Bool
	a.open = func(int, Destination) error {
		if !alive.Load() {
			return errors.New("connection refused")
		}
		return nil
	}
	o := options(t, a)
	p := start(t, o)
	im := slice(1, 1)
	im.size = 512 // several pieces
	receive(t, p, im)
	eventually(t, "denoised", func() bool { return status(t, p, im.series).Denoised == 1 })
	var files []string
	for _, k := range []spool.Kind{spool.Original, spool.Derived} {
		if err := p.store.Walk(k, func(name string) error { files = append(files, name); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if len(files) != 2 {
		t.Fatal(files)
	}
	for _, name := range files {
		f, err := os.OpenFile(filepath.Join(o.StateDir, "spool", name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{0xAA, 0xAA, 0xAA}, st.Size()-1000); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	alive.Store(true)
	eventually(t, "damage found", func() bool {
		s := status(t, p, im.series)
		return s.Destinations[0].Damaged == 1 && s.Failed == 1 // the derived one could not be made again either
	})
	if n := a.count("pacs"); n != 0 {
		t.Fatalf("%d damaged images sent", n)
	}
	receive(t, p, im)
	eventually(t, "original and derived object sent", func() bool { return a.count("pacs") == 2 })
	if c := a.copies("pacs", im.sop); len(c) != 1 || c[0] != sha256.Sum256(im.dataSet()) {
		t.Error("not the original")
	}
}

func TestReconfigureDestinations(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	receive(t, p, slice(1, 1))
	eventually(t, "stored", func() bool { return a.count("pacs") == 1 })
	o2 := o
	o2.Destinations = []Destination{{Name: "other", Send: []string{"original"}}}
	if err := p.Reconfigure(o2); err != nil {
		t.Fatal(err)
	}
	receive(t, p, slice(1, 2))
	eventually(t, "stored at the new one", func() bool { return a.count("other") == 1 })
	if a.count("pacs") != 1 {
		t.Error("the old one got more")
	}
	o2.Destinations = slices.Repeat(o2.Destinations, 2)
	if err := p.Reconfigure(o2); err == nil {
		t.Error("two destinations with one name")
	}
	receive(t, p, slice(1, 3))
	eventually(t, "still running", func() bool { return a.count("other") == 2 })
}
