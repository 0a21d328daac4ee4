package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// teacher is a HighDenoiser whose result is easy to predict and differs from the
// fast one's.
type teacher struct {
	halver
	hmu    sync.Mutex
	highs  int
	doHigh func(ctx context.Context, call int, f *derive.Frame, progress func(done, total int)) (*Denoised, error) // nil: smoother
	no     bool                                                                                                    // has no networks
}

const teacherSteps = 4

func (d *teacher) HasHigh() bool { return !d.no }

func (d *teacher) DenoiseHigh(ctx context.Context, f *derive.Frame, _ evidence.Sums, _ float64, progress func(done,
	total int)) (*Denoised, error) {
	d.hmu.Lock()
	d.highs++
	n := d.highs
	d.hmu.Unlock()
	if d.doHigh != nil {
		return d.doHigh(ctx, n, f, progress)
	}
	for i := range teacherSteps {
		progress(i+1, teacherSteps)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return smoother(f), nil
}

// calls is how often the full method was begun.
func (d *teacher) calls() int {
	d.hmu.Lock()
	defer d.hmu.Unlock()
	return d.highs
}

func smoother(f *derive.Frame) *Denoised {
	out := make([]float32, len(f.Pixels))
	for i, v := range f.Pixels {
		out[i] = (v + 3*700) / 4
	}
	return &Denoised{Pixels: out, Sigma: 12}
}

// highOptions complete a series as soon as nothing came for a moment.
func highOptions(t testing.TB, a *archive) (Options, *teacher) {
	o := options(t, a)
	d := &teacher{}
	o.Denoiser = d
	o.Quiet, o.QuietOpen = 30*time.Millisecond, 30*time.Millisecond
	return o, d
}

// hqSeries sends the first n images of series 1 to be denoised by the full method and
// returns its UID.
func hqSeries(t testing.TB, p *Pipeline, n int) (uid string) {
	t.Helper()
	for i := range n {
		hq(t, p, slice(1, i+1))
	}
	return slice(1, 1).series
}

// opened is a pipeline that runs until stop is called; the test closes it.
func opened(t testing.TB, o Options) (p *Pipeline, stop func()) {
	t.Helper()
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return p, run(p)
}

// hq sends an image to the AE title with quality high.
func hq(t testing.TB, p *Pipeline, im image) {
	t.Helper()
	in := im.incoming()
	in.CalledAETitle = "DENOISE_HQ"
	if err := p.Receive(context.Background(), in, strings.NewReader(string(im.dataSet()))); err != nil {
		t.Fatal(err)
	}
}

func setFlag(t testing.TB, p *Pipeline, uid string, q Quality) *Flagged {
	t.Helper()
	f, err := p.Flag(context.Background(), uid, Flag{Quality: q, Why: "lesion?", By: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func highState(t testing.TB, p *Pipeline, uid string) HighStatus {
	t.Helper()
	if h := status(t, p, uid).High; h != nil {
		return *h
	}
	return HighStatus{}
}

func awaitHigh(t testing.TB, p *Pipeline, uid, state string) HighStatus {
	t.Helper()
	eventually(t, "high pass "+state, func() bool { return highState(t, p, uid).State == state })
	return highState(t, p, uid)
}

// A series of the high AE title gets the fast series at once and, when it is
// complete, a second one that refers to the original and to the fast one.
func TestHighPass(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	clk := newFakeClock()
	o.clock, o.Quiet, o.QuietOpen = clk, 20*time.Second, 60*time.Second
	p := start(t, o)
	ev, stop := p.Events()
	defer stop()
	const n = 3
	for i := range n {
		hq(t, p, slice(1, i+1))
	}
	uid := slice(1, 1).series
	eventually(t, "originals and fast series in the archive", func() bool { return a.count("pacs") == 2*n })
	if h := highState(t, p, uid); h.State != HighWaiting || h.Images != n || d.calls() != 0 {
		t.Errorf("before the series is complete: %+v, %d calls", h, d.calls())
	}
	clk.advance(21 * time.Second)
	h := awaitHigh(t, p, uid, HighDone)
	if h.Done != n || h.Copies != 0 || h.Failed != 0 || d.calls() != n {
		t.Errorf("%+v, %d calls", h, d.calls())
	}
	eventually(t, "high series in the archive", func() bool { return a.count("pacs") == 3*n })
	steps := 0
	for len(ev) > 0 {
		if e := <-ev; e.Type == EventHigh && e.State == "step" && e.Steps == teacherSteps {
			steps++
		}
	}
	if steps < n { // at least the last step of each image is told
		t.Errorf("%d events about steps", steps)
	}
	series := map[string]bool{}
	for i := range n {
		orig, fast, high := object(t, p, uid, i+1, "original"), object(t, p, uid, i+1, "fast"), object(t, p, uid, i+1, "high")
		series[high.String(dcm.SeriesInstanceUID)] = true
		if high.String(dcm.SeriesNumber) != "20004" || high.String(dcm.SOPInstanceUID) == fast.String(dcm.SOPInstanceUID) || high.String(dcm.SeriesInstanceUID) == fast.String(dcm.SeriesInstanceUID) {
			t.Error("the high object is not one of its own")
		}
		if got := reference(high, dcm.SourceImageSequence); !slices.Equal(got, []string{orig.String(dcm.SOPInstanceUID)}) {
			t.Errorf("source %v", got)
		}
		if got := reference(high, dcm.ReferencedImageSequence); !slices.Equal(got, []string{fast.String(dcm.SOPInstanceUID)}) {
			t.Errorf("related image %v", got)
		}
		var refs []string
		for item := range high.Find(dcm.ReferencedSeriesSequence).Children() {
			refs = append(refs, item.Child(dcm.SeriesInstanceUID).String())
		}
		if !slices.Equal(refs, []string{uid, fast.String(dcm.SeriesInstanceUID)}) {
			t.Errorf("related series %v", refs)
		}
		if fast.Has(dcm.ReferencedImageSequence) || fast.Has(dcm.ReferencedSeriesSequence) {
			t.Error("the fast object was changed")
		}
	}
	if len(series) != 1 {
		t.Errorf("%d high series", len(series))
	}
	s := status(t, p, uid)
	if s.Denoised != n || s.Quality != "high" || s.Channel != state.ChannelAE || s.Flag != nil {
		t.Errorf("%+v", s)
	}
}

func object(t testing.TB, p *Pipeline, uid string, n int, which string) *dcm.Object {
	t.Helper()
	o, c, err := p.OpenObject(context.Background(), uid, n, which)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return o
}

func reference(o *dcm.Object, seq dcm.Tag) (uids []string) {
	for item := range o.Find(seq).Children() {
		uids = append(uids, item.Child(dcm.ReferencedSOPInstanceUID).String())
	}
	return uids
}

// The wish may come from a rule or from a person, before the first image, among
// them, after them, and after all was delivered; reason and author are kept.
func TestWhoAsksForHigh(t *testing.T) {
	a := newArchive()
	o, _ := highOptions(t, a)
	o.Rules = []Rule{{Name: "hq", When: `ProtocolName endsWith "_HQ"`, Quality: High}}
	clk := newFakeClock()
	o.clock, o.Quiet, o.QuietOpen = clk, time.Minute, time.Minute
	p := start(t, o)

	ruled := slice(1, 1)
	ruled.protocol = "t2_HQ"
	receive(t, p, ruled)

	before := slice(2, 1)
	if f := setFlag(t, p, before.series, High); f.Known || f.Until.IsZero() {
		t.Errorf("%+v", f)
	}
	receive(t, p, before)

	during := slice(3, 1)
	receive(t, p, during)
	if f := setFlag(t, p, during.series, High); !f.Known || f.Images != 1 || f.High != 1 || f.State != HighWaiting {
		t.Errorf("%+v", f)
	}
	receive(t, p, slice(3, 2))

	after := slice(4, 1)
	receive(t, p, after)
	eventually(t, "delivered", func() bool {
		s := status(t, p, after.series)
		return len(s.Destinations) == 1 && s.Destinations[0].Stored == 2
	})
	clk.advance(2 * time.Minute)
	eventually(t, "complete", func() bool { return status(t, p, after.series).State == state.SeriesComplete })
	if h := status(t, p, after.series).High; h != nil {
		t.Errorf("nobody asked: %+v", h)
	}
	setFlag(t, p, after.series, High)

	for im, channel := range map[*image]state.Channel{&ruled: state.ChannelRule, &before: state.ChannelFlag,
		&during: state.ChannelFlag, &after: state.ChannelFlag} {
		awaitHigh(t, p, im.series, HighDone)
		s := status(t, p, im.series)
		if s.Quality != "high" || s.Channel != channel {
			t.Errorf("series %s: quality %s by %s", im.series, s.Quality, s.Channel)
		}
		if channel == state.ChannelFlag && (s.Flag == nil || s.Flag.Why != "lesion?" || s.Flag.By != "test" ||
			s.Flag.At.IsZero()) {
			t.Errorf("flag on record: %+v", s.Flag)
		}
	}
	eventually(t, "everything in the archive", func() bool { return a.count("pacs") == 3+3+6+3 })
}

// A flag wins over AE title and rule, in both directions, for images that are
// here and for those that come.
func TestFlagWins(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	o.Rules = []Rule{{Name: "none", When: `ProtocolName == "scout"`, Quality: Off}}
	clk := newFakeClock()
	o.clock, o.Quiet, o.QuietOpen = clk, time.Minute, time.Minute
	p := start(t, o)
	scout := slice(1, 1)
	scout.protocol = "scout"
	receive(t, p, scout)
	if s := status(t, p, scout.series); s.Passed != 1 || s.Reasons[state.ReasonOff] != 1 {
		t.Fatalf("%+v", s)
	}
	setFlag(t, p, scout.series, High)
	scout2 := slice(1, 2)
	scout2.protocol = "scout"
	receive(t, p, scout2)
	clk.advance(2 * time.Minute)
	if h := awaitHigh(t, p, scout.series, HighDone); h.Done != 2 {
		t.Errorf("%+v", h)
	}
	if s := status(t, p, scout.series); s.Denoised != 2 || s.Passed != 0 {
		t.Errorf("%+v", s)
	}
	// Off before anything came: nothing is derived, not even for the high AE title.
	setFlag(t, p, slice(2, 1).series, Off)
	hq(t, p, slice(2, 1))
	s := status(t, p, slice(2, 1).series)
	if s.Passed != 1 || s.Reasons[state.ReasonOff] != 1 || s.Quality != "off" || s.High != nil {
		t.Errorf("%+v", s)
	}
	// Sending it again to another AE title does not overrule the person.
	hq(t, p, slice(2, 1))
	if s := status(t, p, slice(2, 1).series); s.Quality != "off" || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
	clk.advance(2 * time.Minute)
	eventually(t, "complete", func() bool { return status(t, p, slice(2, 1).series).State == state.SeriesComplete })
	if n := d.calls(); n != 2 {
		t.Errorf("%d calls", n)
	}
	// Fast makes up for it.
	setFlag(t, p, slice(2, 1).series, Fast)
	eventually(t, "denoised", func() bool { return status(t, p, slice(2, 1).series).Denoised == 1 })
}

// While the fast lane has work the high lane takes no step.
func TestHighYieldsToFast(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	o.Workers = 1
	fastHold, inFast := make(chan struct{}), make(chan struct{}, 10)
	var hold atomic.Bool
	d.do = func(_ int, f *derive.Frame) (*Denoised, error) {
		if hold.Load() {
			inFast <- struct{}{}
			<-fastHold
		}
		return smooth(f), nil
	}
	var steps atomic.Int64
	first, goOn := make(chan struct{}), make(chan struct{})
	d.doHigh = func(ctx context.Context, _ int, f *derive.Frame, progress func(int, int)) (*Denoised, error) {
		for i := range 3 {
			if i == 1 {
				close(first)
				<-goOn
			}
			progress(i+1, 3)
			steps.Add(1)
		}
		return smoother(f), nil
	}
	p := start(t, o)
	hq(t, p, slice(1, 1))
	<-first // the first step is done
	hold.Store(true)
	receive(t, p, slice(2, 1))
	<-inFast
	close(goOn)
	eventually(t, "paused", func() bool {
		h := highState(t, p, slice(1, 1).series)
		return h.Now != nil && h.Now.Step == 2 && h.Now.Paused
	})
	if n := steps.Load(); n != 1 {
		t.Errorf("%d steps ended while the fast lane worked", n)
	}
	if h := p.Check(); h.HighNow == nil || h.High.Waiting != 1 || !h.OK || h.NoHigh != "" {
		t.Errorf("%+v", h)
	}
	hold.Store(false)
	close(fastHold)
	awaitHigh(t, p, slice(1, 1).series, HighDone)
}

// Finished images stay, the one in hand is begun again by the next process.
func TestHighResumes(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	second := make(chan struct{})
	d.doHigh = func(ctx context.Context, n int, f *derive.Frame, progress func(int, int)) (*Denoised, error) {
		progress(1, 2)
		if n == 2 {
			close(second)
			<-ctx.Done() // the stop does not wait for it
			return nil, ctx.Err()
		}
		return smoother(f), nil
	}
	p, stop := opened(t, o)
	uid := hqSeries(t, p, 3)
	<-second
	stop()
	if h := highState(t, p, uid); h.Done != 1 || h.Images != 3 || h.State != HighQueued {
		t.Errorf("%+v", h)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = start(t, o)
	if h := awaitHigh(t, p, uid, HighDone); h.Done != 3 || d.calls() != 4 {
		t.Errorf("%+v, %d calls", h, d.calls())
	}
	eventually(t, "delivered", func() bool { return status(t, p, uid).Destinations[0].Stored == 9 })
	for _, uid := range a.sent() {
		if n := len(a.copies("pacs", uid)); n != 1 {
			t.Errorf("%s came %d times", uid, n)
		}
	}
}

// A late image reopens the series and gets its high object too.
func TestLateImageGetsHigh(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	p := start(t, o)
	uid := slice(1, 1).series
	hq(t, p, slice(1, 1))
	awaitHigh(t, p, uid, HighDone)
	hq(t, p, slice(1, 2))
	eventually(t, "both", func() bool { h := highState(t, p, uid); return h.State == HighDone && h.Done == 2 })
	if s := status(t, p, uid); s.Reopened != 1 || d.calls() != 2 {
		t.Errorf("reopened %d times, %d calls", s.Reopened, d.calls())
	}
}

// Fast calls a high pass off, the image in hand included; what is made stays.
// High takes it up again.
func TestCallOff(t *testing.T) {
	for _, q := range []Quality{Fast, Off} {
		t.Run(string(q), func(t *testing.T) {
			a := newArchive()
			o, d := highOptions(t, a)
			inHand := make(chan struct{})
			d.doHigh = func(ctx context.Context, n int, f *derive.Frame, progress func(int, int)) (*Denoised, error) {
				if n == 2 {
					close(inHand)
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return smoother(f), nil
			}
			p := start(t, o)
			uid := hqSeries(t, p, 3)
			<-inHand
			if f := setFlag(t, p, uid, q); f.High != 1 {
				t.Errorf("%+v", f)
			}
			h := awaitHigh(t, p, uid, HighCalledOff)
			if h.Done != 1 || h.Images != 1 {
				t.Errorf("%+v", h)
			}
			if s := status(t, p, uid); s.Denoised != 3 || s.Quality != q {
				t.Errorf("%+v", s)
			}
			setFlag(t, p, uid, High)
			if h := awaitHigh(t, p, uid, HighDone); h.Done != 3 || d.calls() != 4 {
				t.Errorf("%+v, %d calls", h, d.calls())
			}
		})
	}
}

// What fails for some images becomes a copy that says so, for the derived series
// must have no holes; what the model's own check holds back is recorded with its
// words. The fast objects are not touched by any of it.
func TestHighFailuresOfSome(t *testing.T) {
	for name, c := range map[string]struct {
		do     func(f *derive.Frame) (*Denoised, error)
		calls  int
		reason state.Reason
		copies int64
		remark string
		frames int // of each image; 0: not a multi-frame object
	}{
		"many frames": {func(*derive.Frame) (*Denoised, error) { panic("index") }, 1, state.ReasonPanic, 1,
			"the method failed (panic)", 3},
		"error": {func(*derive.Frame) (*Denoised, error) { return nil, errors.New("out of memory") }, 3,
			state.ReasonError, 1, "the method failed (error)", 0},
		"panic": {func(*derive.Frame) (*Denoised, error) { panic("index") }, 1, state.ReasonPanic, 1,
			"the method failed (panic)", 0},
		"nothing": {func(*derive.Frame) (*Denoised, error) { return nil, nil }, 3, state.ReasonError, 1,
			"the method failed (error)", 0},
		"not finite": {func(f *derive.Frame) (*Denoised, error) {
			r := smoother(f)
			r.Pixels[3] = float32(math.NaN())
			return r, nil
		}, 1, state.ReasonNotNumber, 1, "the method failed (gate-nan)", 0},
		"held back": {func(f *derive.Frame) (*Denoised, error) {
			return &Denoised{Pixels: slices.Clone(f.Pixels), Gate: "residual follows structure"}, nil
		}, 1, derive.HeldBack, 0, "quality check: residual follows structure", 0},
		"blended": {func(f *derive.Frame) (*Denoised, error) {
			return &Denoised{Pixels: slices.Clone(f.Pixels), Gate: "residual follows structure", Share: 0.71}, nil
		}, 1, derive.Blended, 0, "quality check: 71 % of the change kept: residual follows structure", 0},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchive()
			o, d := highOptions(t, a)
			o.StepTimeout = time.Minute
			bad := slice(1, 2).dataSet()
			first := float32(uint16(bad[len(bad)-512]) | uint16(bad[len(bad)-511])<<8)
			var calls atomic.Int64
			d.doHigh = func(_ context.Context, _ int, f *derive.Frame, _ func(int, int)) (*Denoised, error) {
				if f.Pixels[0] == first {
					calls.Add(1)
					return c.do(f)
				}
				return smoother(f), nil
			}
			clk := newFakeClock()
			o.clock = clk
			p := start(t, o)
			uid := slice(1, 1).series
			for i := range 3 {
				im := slice(1, i+1)
				if c.frames == 0 {
					hq(t, p, im)
					continue
				}
				im, data := im.frames(c.frames)
				in := im.incoming()
				in.CalledAETitle = "DENOISE_HQ"
				if err := p.Receive(t.Context(), in, bytes.NewReader(data)); err != nil {
					t.Fatal(err)
				}
			}
			defer clk.runAhead()()
			eventually(t, "three images through", func() bool { return highState(t, p, uid).Done == 3 })
			h := awaitHigh(t, p, uid, HighDone)
			if h.Copies != c.copies || h.Reasons[c.reason] != 1 {
				t.Errorf("%+v", h)
			}
			if n := int(calls.Load()); n != c.calls {
				t.Errorf("tried %d times, want %d", n, c.calls)
			}
			eventually(t, "all delivered", func() bool { return a.count("pacs") == 9 })
			o1, o2 := object(t, p, uid, 2, "original"), object(t, p, uid, 2, "high")
			if px(t, o1) != px(t, o2) {
				t.Error("the pixels are not the original's")
			}
			said := descriptions(o2)
			if len(said) != max(1, c.frames) {
				t.Errorf("%d descriptions", len(said))
			}
			for _, text := range said {
				if !strings.Contains(text, c.remark) || !strings.HasSuffix(text, derive.Untouched) {
					t.Errorf("description %q", text)
				}
			}
			var found *InstanceHigh
			for _, in := range status(t, p, uid).Instances {
				if in.SOPInstanceUID == slice(1, 2).sop {
					found = in.High
				}
			}
			if found == nil || found.Reason != c.reason || found.Copy != (c.copies > 0) || c.copies == 0 && "quality check: "+found.Detail != c.remark {
				t.Errorf("image: %+v", found)
			}
			if pic, err := p.Picture(t.Context(), uid, 2, "high", 1); err != nil ||
				pic.Remark != string(found.Reason)+": "+found.Detail {
				t.Errorf("shown with %+v, %v", pic, err)
			}
		})
	}
}

// descriptions are the texts of an object, or of its frames, about how it was made.
func descriptions(o *dcm.Object) (all []string) {
	if !o.Has(dcm.PerFrameFunctionalGroupsSequence) {
		return []string{o.String(dcm.DerivationDescription)}
	}
	for frame := range o.Find(dcm.PerFrameFunctionalGroupsSequence).Children() {
		for item := range frame.Child(dcm.DerivationImageSequence).Children() {
			all = append(all, item.Child(dcm.DerivationDescription).String())
		}
	}
	return all
}

func px(t testing.TB, o *dcm.Object) string {
	t.Helper()
	b, err := o.Bytes(dcm.PixelData, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// When it fails for all, the pass ends with a state and a reason, without trying
// every image, and nothing of it is delivered. Flagged again it is tried again.
func TestHighFailsForAll(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	o.Attempts = 1
	var mended atomic.Bool
	d.doHigh = func(_ context.Context, _ int, f *derive.Frame, _ func(int, int)) (*Denoised, error) {
		if !mended.Load() {
			return nil, errors.New("no memory for the network")
		}
		return smoother(f), nil
	}
	p := start(t, o)
	uid := slice(1, 1).series
	const n = 8
	for i := range n {
		hq(t, p, slice(1, i+1))
	}
	h := awaitHigh(t, p, uid, HighFailed)
	if d.calls() != journal.StopHighAfter || h.Failed != n || h.Done != 0 ||
		h.Reasons[state.ReasonError] != journal.StopHighAfter ||
		h.Reasons[state.ReasonStopped] != n-journal.StopHighAfter {
		t.Errorf("%d calls, %+v", d.calls(), h)
	}
	if h.Detail == "" {
		t.Error("no reason given")
	}
	eventually(t, "the fast series is there all the same", func() bool { return a.count("pacs") == 2*n })
	mended.Store(true)
	setFlag(t, p, uid, High)
	if h := awaitHigh(t, p, uid, HighDone); h.Done != n || h.Copies != 0 {
		t.Errorf("%+v", h)
	}
	eventually(t, "delivered", func() bool { return a.count("pacs") == 3*n })
}

// A step that never ends costs its image, even when the denoiser is deaf.
func TestHighStepTimeout(t *testing.T) {
	o, d := highOptions(t, newArchive())
	o.StepTimeout = 300 * time.Millisecond
	d.doHigh = func(ctx context.Context, n int, f *derive.Frame, _ func(int, int)) (*Denoised, error) {
		if n == 1 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return smoother(f), nil
	}
	p := start(t, o)
	hq(t, p, slice(1, 1))
	hq(t, p, slice(1, 2))
	if h := awaitHigh(t, p, slice(1, 1).series, HighDone); h.Copies != 1 || h.Reasons[state.ReasonTimeout] != 1 {
		t.Errorf("%+v", h)
	}
}

// Without the networks the wish is on record, holds nothing up, and is made up
// for when a model comes that has them.
func TestHighNotPossible(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	d.no = true
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(p)
	uid := slice(1, 1).series
	hq(t, p, slice(1, 1))
	receive(t, p, slice(2, 1))
	if f := setFlag(t, p, slice(2, 1).series, High); f.State != HighNotPossible || !strings.Contains(f.Detail, "model test has no networks") {
		t.Errorf("%+v", f)
	}
	h := awaitHigh(t, p, uid, HighNotPossible)
	if !strings.Contains(h.Detail, "model test has no networks") || p.Check().NoHigh == "" {
		t.Errorf("%+v", h)
	}
	eventually(t, "fast delivered", func() bool { return a.count("pacs") == 4 })
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	d.no = false
	p = start(t, o)
	awaitHigh(t, p, uid, HighDone)
	awaitHigh(t, p, slice(2, 1).series, HighDone)
	eventually(t, "high delivered", func() bool { return a.count("pacs") == 6 })
}

// choice leaves radiographs to another model.
type choice struct {
	*teacher
	radiographs *named
}

func (c choice) HasHigh() bool { return c.teacher.HasHigh() || c.radiographs.HasHigh() }

func (c choice) For(modality string) Denoiser {
	if modality == "CR" {
		return c.radiographs
	}
	return c.teacher
}

// named is a model with a name of its own.
type named struct{ teacher }

func (*named) Model() derive.ModelInfo {
	return derive.ModelInfo{Name: "of-radiographs", Version: "1", Hash: "0f0f"}
}

// Images of a modality go through its own model: the derived objects name it, and a wish for quality
// high that it has no networks for ends with that reason, whatever the other model has, asked for
// before or after the images came. Once it has them, the wish is made up for.
func TestModelByModality(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	own := &named{}
	own.no = true
	o.Denoiser = choice{d, own}
	p, stop := opened(t, o)
	cr, asked := slice(1, 1), slice(3, 1)
	cr.class, asked.class = classCR, classCR
	ahead := setFlag(t, p, asked.series, High)
	hq(t, p, cr)
	hq(t, p, slice(2, 1))
	receive(t, p, asked)
	if ahead.Known {
		t.Errorf("a series that is not here is known: %+v", ahead)
	}
	for _, uid := range []string{cr.series, asked.series} {
		h := awaitHigh(t, p, uid, HighNotPossible)
		if !strings.Contains(h.Detail, "model of-radiographs has no networks") {
			t.Errorf("%+v", h)
		}
	}
	awaitHigh(t, p, slice(2, 1).series, HighDone)
	if p.Check().NoHigh != "" {
		t.Errorf("no model has the networks: %s", p.Check().NoHigh)
	}
	for uid, want := range map[string]string{cr.series: "of-radiographs 1", slice(2, 1).series: "test 1"} {
		if text := object(t, p, uid, 1, "fast").String(dcm.DerivationDescription); !strings.Contains(text, want) {
			t.Errorf("%q does not name %s", text, want)
		}
	}
	if d.count() != 1 || own.count() != 2 || own.calls() != 0 {
		t.Errorf("%d and %d images, %d by the full method", d.count(), own.count(), own.calls())
	}
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	own.no = false
	p = start(t, o)
	for _, uid := range []string{cr.series, asked.series} {
		awaitHigh(t, p, uid, HighDone)
	}
	text := object(t, p, cr.series, 1, "high").String(dcm.DerivationDescription)
	if !strings.Contains(text, "of-radiographs 1") {
		t.Errorf("%q", text)
	}
}

// An object of the lane that is to be made again when the model has no networks,
// a copy included, holds nothing up, and is made once they are there.
func TestHighNotPossibleAgain(t *testing.T) {
	for name, n := range map[string]int{"result": 1, "copy": 2} {
		t.Run(name, func(t *testing.T) {
			a := newArchive()
			o, d := highOptions(t, a)
			d.doHigh = func(_ context.Context, call int, f *derive.Frame, _ func(int, int)) (*Denoised, error) {
				if call == 2 {
					panic("index")
				}
				return smoother(f), nil
			}
			p, stop := opened(t, o)
			uid := hqSeries(t, p, 2)
			eventually(t, "all delivered", func() bool {
				s := status(t, p, uid)
				return s.High.Done == 2 && s.High.Copies == 1 && s.Destinations[0].Stored == 6
			})
			file := fileOf(t, p, uid, n, spool.Derived, High)
			stop()
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(o.StateDir, "spool", file)); err != nil {
				t.Fatal(err)
			}
			d.no = true
			var err error
			if p, err = Open(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			h := highState(t, p, uid)
			if h.State != HighNotPossible || h.Done != 1 || h.Failed != 1 || h.Reasons[state.ReasonNotPossible] != 1 {
				t.Errorf("without networks: %+v", h)
			}
			if list, err := p.jrnl.Purgeable(t.Context(), 0, time.Now().Add(time.Hour), 10); err != nil || len(list) != 2 {
				t.Errorf("retention may have %d images, %v", len(list), err)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			d.no = false
			p = start(t, o)
			if h := awaitHigh(t, p, uid, HighDone); h.Done != 2 {
				t.Errorf("with networks: %+v", h)
			}
		})
	}
}

// fileOf is the file of image n, or of what was made of it.
func fileOf(t testing.TB, p *Pipeline, uid string, n int, kind spool.Kind, q Quality) string {
	t.Helper()
	s, err := p.jrnl.SeriesByKey(t.Context(), uid)
	if err != nil || s == nil {
		t.Fatal(s, err)
	}
	list, err := p.jrnl.SeriesInstances(t.Context(), s.ID, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range list {
		if in.Kind == kind && in.Number == int64(n) && (kind == spool.Original || in.Quality == q) {
			return in.File
		}
	}
	t.Fatalf("no %s file of image %d", kind, n)
	return ""
}

// The last image that the lane waits for is lost: those that failed get their copies,
// or wait for nothing if the model has no networks by then.
func TestLostImageSettlesHigh(t *testing.T) {
	for _, networks := range []bool{true, false} {
		t.Run(fmt.Sprintf("networks %v", networks), func(t *testing.T) { lostImage(t, networks) })
	}
}

func lostImage(t *testing.T, networks bool) {
	a := newArchive()
	o, d := highOptions(t, a)
	inHand := make(chan struct{})
	d.doHigh = func(ctx context.Context, call int, f *derive.Frame, _ func(int, int)) (*Denoised, error) {
		switch call {
		case 2:
			panic("index")
		case 3:
			close(inHand)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return smoother(f), nil
	}
	clk := newFakeClock()
	o.clock = clk
	p, stop := opened(t, o)
	uid := hqSeries(t, p, 3)
	end := clk.runAhead()
	<-inHand
	end()
	file := fileOf(t, p, uid, 3, spool.Original, High)
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(o.StateDir, "spool", file)); err != nil {
		t.Fatal(err)
	}
	if networks {
		p = start(t, o)
		eventually(t, "a copy for the one that failed", func() bool {
			h := highState(t, p, uid)
			return h.Done == 2 && h.Copies == 1 && h.Failed == 1
		})
		return
	}
	d.no = true
	p = start(t, o)
	if h := p.Check().High; h.Waiting != 0 {
		t.Errorf("without networks %d images wait", h.Waiting)
	}
}

// The high pass does without a fast object whose file is gone or unreadable.
func TestHighWithoutFastObject(t *testing.T) {
	for name, ruin := range map[string]func(path string) error{
		"gone":    os.Remove,
		"emptied": func(path string) error { return os.Truncate(path, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			o, d := highOptions(t, newArchive())
			clk := newFakeClock()
			o.clock, o.Quiet, o.QuietOpen = clk, 20*time.Second, 20*time.Second
			p := start(t, o)
			uid := slice(1, 1).series
			hq(t, p, slice(1, 1))
			eventually(t, "fast object delivered", func() bool {
				s := status(t, p, uid)
				return len(s.Destinations) == 1 && s.Destinations[0].Stored == 2
			})
			if err := ruin(filepath.Join(o.StateDir, "spool", fileOf(t, p, uid, 1, spool.Derived, Fast))); err != nil {
				t.Fatal(err)
			}
			clk.advance(21 * time.Second)
			if h := awaitHigh(t, p, uid, HighDone); h.Done != 1 || h.Copies != 0 || d.calls() != 1 {
				t.Errorf("%+v, %d calls", h, d.calls())
			}
			if o := object(t, p, uid, 1, "high"); o.Has(dcm.ReferencedImageSequence) || o.Has(dcm.ReferencedSeriesSequence) {
				t.Error("it refers to what nobody could read")
			}
		})
	}
}

// Maps and the like never reach the lane.
func TestHighOfUntouchable(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	p := start(t, o)
	adc := slice(1, 1)
	adc.imageType = `DERIVED\PRIMARY\DIFFUSION\ADC`
	hq(t, p, adc)
	if h := awaitHigh(t, p, adc.series, HighNothing); h.Images != 0 || h.Detail == "" {
		t.Errorf("%+v", h)
	}
	if d.calls() != 0 || a.count("pacs") > 1 {
		t.Error("something was made of it")
	}
}

// Originals of a series are kept while one of its images waits for the high pass.
func TestRetentionWaitsForHigh(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	clk := newFakeClock()
	o.clock = clk
	hold := make(chan struct{})
	d.doHigh = func(_ context.Context, n int, f *derive.Frame, _ func(int, int)) (*Denoised, error) {
		if n == 2 {
			<-hold
		}
		return smoother(f), nil
	}
	o.StepTimeout = time.Hour
	p := start(t, o)
	hq(t, p, slice(1, 1))
	hq(t, p, slice(1, 2))
	receive(t, p, slice(2, 1))
	eventually(t, "delivered but for the second high object", func() bool { clk.advance(10 * time.Millisecond); return a.count("pacs") == 7 })
	eventually(t, "only the other series is purged", func() bool { clk.advance(time.Hour); return spoolFiles(t, o.StateDir) == 5+1 }) // one is being written
	clk.advance(100 * time.Hour)
	close(hold)
	eventually(t, "all purged, after the second high object was delivered", func() bool { clk.advance(time.Hour); return spoolFiles(t, o.StateDir) == 0 })
	if n := a.count("pacs"); n != 8 {
		t.Errorf("%d objects in the archive", n)
	}
	if _, err := p.Flag(t.Context(), slice(2, 1).series, Flag{Quality: High}); !errors.Is(err, ErrPurged) {
		t.Errorf("error %v", err)
	}
	if s := status(t, p, slice(2, 1).series); s.Flag != nil || s.Quality != "fast" {
		t.Errorf("%+v", s)
	}
}

// The journal gone, flags and finished high objects are still known.
func TestRebuildKeepsFlags(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(p)
	setFlag(t, p, slice(1, 1).series, High)
	setFlag(t, p, slice(2, 1).series, Off)
	setFlag(t, p, "1.2.3.999", High)
	for i := range 2 {
		receive(t, p, slice(1, i+1))
		receive(t, p, slice(2, i+1))
	}
	awaitHigh(t, p, slice(1, 1).series, HighDone)
	eventually(t, "delivered", func() bool { return a.count("pacs") == 6+2 })
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Rebuild(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	calls := d.calls() + d.count()
	p = start(t, o)
	awaitHigh(t, p, slice(1, 1).series, HighDone)
	eventually(t, "delivered again", func() bool { return len(a.sent()) == 16 })
	for _, uid := range a.sent() {
		if c := a.copies("pacs", uid); len(c) != 2 || c[0] != c[1] {
			t.Errorf("%s: %d copies", uid, len(c))
		}
	}
	if n := d.calls() + d.count() - calls; n != 0 {
		t.Errorf("%d images denoised again", n)
	}
	s := status(t, p, slice(1, 1).series)
	if s.Flag == nil || s.Flag.Why != "lesion?" || s.Flag.By != "test" || s.Channel != state.ChannelFlag {
		t.Errorf("%+v", s.Flag)
	}
	if s := status(t, p, slice(2, 1).series); s.Quality != "off" || s.Passed != 2 {
		t.Errorf("%+v", s)
	}
	receive(t, p, image{series: "1.2.3.999", sop: "1.2.3.999.1", number: 1})
	awaitHigh(t, p, "1.2.3.999", HighDone)
}

// A flag's file that rots is set aside; the rest goes on.
func TestDamagedFlag(t *testing.T) {
	o, _ := highOptions(t, nil)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	setFlag(t, p, "1.2.3.1", High)
	setFlag(t, p, "1.2.3.2", High)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(o.StateDir, "spool", "flag", "*.flag"))
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[20] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.StateDir, "spool", "flag", "x.flag"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Rebuild(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(o.StateDir, "spool", "damaged", "*")); len(left) != 2 {
		t.Errorf("set aside: %v", left)
	}
	p = start(t, o)
	n := 0
	for _, uid := range []string{"1.2.3.1", "1.2.3.2"} {
		if f, err := p.jrnl.Flag(t.Context(), uid); err != nil {
			t.Error(err)
		} else if f != nil {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d flags left", n)
	}
}

// Nothing that somebody may send as a flag is believed.
func TestHostileFlags(t *testing.T) {
	o, _ := highOptions(t, nil)
	p := start(t, o)
	long := strings.Repeat("1.", 40) + "1"
	for _, c := range []struct {
		uid  string
		f    Flag
		want error
	}{
		{"1.2.3", Flag{Quality: "best"}, ErrFlag},
		{"1.2.3", Flag{}, ErrFlag},
		{"1.2.3", Flag{Quality: High, Why: strings.Repeat("ä", MaxWhy+1)}, ErrFlag},
		{"1.2.3", Flag{Quality: High, Why: strings.Repeat("x", 10<<20)}, ErrFlag},
		{"1.2.3", Flag{Quality: High, Why: "a\nb"}, ErrFlag},
		{"1.2.3", Flag{Quality: High, Why: "\x1b[2J"}, ErrFlag},
		{"1.2.3", Flag{Quality: High, Why: "\xff"}, ErrFlag},
		{"1.2.3", Flag{Quality: High, By: strings.Repeat("x", 65)}, ErrFlag},
		{"", Flag{Quality: High}, ErrUID},
		{long, Flag{Quality: High}, ErrUID},
		{"1..2", Flag{Quality: High}, ErrUID},
		{"1.02", Flag{Quality: High}, ErrUID},
		{"1.2.", Flag{Quality: High}, ErrUID},
		{"../../etc", Flag{Quality: High}, ErrUID},
		{"1.2\x00", Flag{Quality: High}, ErrUID},
		{"?MR1", Flag{Quality: High}, ErrUID},
	} {
		_, err := p.Flag(t.Context(), c.uid, c.f)
		if !errors.Is(err, c.want) {
			t.Errorf("%.30q %.30q: %v", c.uid, c.f.Why, err)
		}
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	}
	if n := spoolFiles(t, o.StateDir); n != 0 {
		t.Errorf("%d files", n)
	}
	if _, err := p.Flag(t.Context(), "1.2.3", Flag{Quality: High, Why: strings.Repeat("ä", MaxWhy)}); err != nil {
		t.Error(err)
	}
}

// Flags for series that never come are bounded and end with retention.
func TestFlagsAhead(t *testing.T) {
	o, _ := faulty(t, nil) // syncs nothing
	o.Denoiser = &teacher{}
	clk := newFakeClock()
	o.clock = clk
	p := start(t, o)
	for i := range MaxFlagsAhead {
		setFlag(t, p, fmt.Sprintf("1.2.3.%d", i), High)
	}
	if _, err := p.Flag(t.Context(), "1.2.4", Flag{Quality: High}); !errors.Is(err, ErrTooManyFlags) {
		t.Errorf("error %v", err)
	}
	setFlag(t, p, "1.2.3.7", Fast) // one that is there may be changed
	receive(t, p, image{series: "1.2.3.9", sop: "1.9", number: 1})
	setFlag(t, p, "1.2.4", High) // the one that came made room
	if n := spoolFiles(t, o.StateDir); n < MaxFlagsAhead+1 {
		t.Errorf("%d files", n)
	}
	clk.advance(73 * time.Hour)
	eventually(t, "only that of the series that came is left", func() bool {
		clk.advance(time.Minute)
		l, err := filepath.Glob(filepath.Join(o.StateDir, "spool", "flag", "*"))
		return err == nil && len(l) == 1
	})
	if s := status(t, p, "1.2.3.9"); s.Flag == nil || s.Flag.Quality != "high" {
		t.Errorf("%+v", s.Flag)
	}
}

// The limit of flags ahead does not concern a rebuild, which sets all flags before
// it knows any series.
func TestRebuildKeepsManyFlags(t *testing.T) {
	o, _ := faulty(t, nil) // syncs nothing
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	const n = MaxFlagsAhead + 20
	for i := range n {
		im := slice(i+1, 1)
		receive(t, p, im)
		setFlag(t, p, im.series, Off)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Rebuild(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(filepath.Join(o.StateDir, "spool", "flag", "*.flag")); len(files) != n {
		t.Errorf("%d of %d flags are left", len(files), n)
	}
	p = start(t, o)
	for i := range n {
		s := status(t, p, slice(i+1, 1).series)
		if s.Flag == nil || s.Passed != 1 || s.Reasons["off"] != 1 {
			t.Fatalf("series %d: flag %+v, %v", i+1, s.Flag, s.Reasons)
		}
	}
}

// A high object whose file rots before it is sent is made again, and not the
// fast one.
func TestDamagedHighObjectIsRemade(t *testing.T) {
	a := newArchive()
	o, d := highOptions(t, a)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(p)
	uid := slice(1, 1).series
	receive(t, p, slice(1, 1))
	eventually(t, "fast delivered", func() bool { s := status(t, p, uid); return len(s.Destinations) == 1 && s.Destinations[0].Stored == 2 })
	a.mu.Lock()
	a.store = func(int, Destination, Outgoing, []byte) (uint16, error, bool) { return 0xA700, nil, false }
	a.mu.Unlock()
	setFlag(t, p, uid, High)
	awaitHigh(t, p, uid, HighDone)
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(o.StateDir, "spool", "derived", "*", "*.dcm"))
	if len(files) != 2 {
		t.Fatal(files)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-5] ^= 1
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.mu.Lock()
	a.store = nil
	a.mu.Unlock()
	fast := d.count()
	p = start(t, o)
	eventually(t, "delivered", func() bool { return a.count("pacs") == 3 })
	if d.calls() != 2 || d.count() != fast {
		t.Errorf("%d high calls, %d fast ones more", d.calls(), d.count()-fast)
	}
	for _, uid := range a.sent() {
		if n := len(a.copies("pacs", uid)); n != 1 {
			t.Errorf("%s came %d times", uid, n)
		}
	}
}
