package pipeline

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// A slice that fails, in whatever way, is forwarded as it came with the reason
// on record, and the next one is denoised.
func TestFailuresPassTheOriginalOn(t *testing.T) {
	set := func(at int, v float32) func(f *derive.Frame) (*Denoised, error) {
		return func(f *derive.Frame) (*Denoised, error) {
			d := smooth(f)
			d.Pixels[at] = v
			return d, nil
		}
	}
	for name, c := range map[string]struct {
		do     func(f *derive.Frame) (*Denoised, error)
		stage  state.Stage
		reason state.Reason
		calls  int
	}{
		"error": {func(*derive.Frame) (*Denoised, error) { return nil, errors.New("out of memory") }, state.Failed,
			state.ReasonError, 3},
		"permanent": {func(*derive.Frame) (*Denoised, error) {
			return nil,
				&PermanentError{"too-odd", errors.New("shape")}
		}, state.Failed, "too-odd", 1},
		"nothing": {func(*derive.Frame) (*Denoised, error) { return nil, nil }, state.Failed, state.ReasonError, 3},
		"panic": {func(*derive.Frame) (*Denoised, error) { panic("index out of range") }, state.Failed,
			state.ReasonPanic, 1},
		"NaN":      {set(7, float32(math.NaN())), state.Passed, state.ReasonNotNumber, 1},
		"infinite": {set(7, float32(math.Inf(-1))), state.Passed, state.ReasonNotNumber, 1},
		"range":    {set(7, 5000), state.Passed, state.ReasonRange, 1},
		"wrong size": {func(f *derive.Frame) (*Denoised, error) { return &Denoised{Pixels: f.Pixels[1:]}, nil },
			state.Passed, state.ReasonSize, 1},
		"constant": {func(f *derive.Frame) (*Denoised, error) {
			return &Denoised{Pixels: make([]float32, len(f.Pixels))}, nil
		}, state.Passed, state.ReasonConstant, 1},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchive()
			o := options(t, a)
			o.Workers = 1
			var calls atomic.Int64
			var good atomic.Bool
			o.Denoiser = &halver{do: func(_ int, f *derive.Frame) (*Denoised, error) {
				if good.Load() {
					return smooth(f), nil
				}
				calls.Add(1)
				return c.do(f)
			}}
			clk := newFakeClock()
			o.clock = clk
			p := start(t, o)
			defer clk.runAhead()()
			receive(t, p, slice(1, 1))
			eventually(t, "slice ended", func() bool { return status(t, p, slice(1, 1).series).Waiting == 0 })
			good.Store(true)
			receive(t, p, slice(1, 2))
			eventually(t, "two originals and one derived object", func() bool { return a.count("pacs") == 3 })
			s := status(t, p, slice(1, 1).series)
			if in := s.Instances[0]; in.State != c.stage || in.Reason != c.reason {
				t.Errorf("state %s, reason %s (%s)", in.State, in.Reason, in.Detail)
			}
			if n := int(calls.Load()); n != c.calls {
				t.Errorf("tried %d times, want %d", n, c.calls)
			}
			if s.Denoised != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Results that are not the network's plain one are counted as such, in journal,
// events and metrics; the derived object says so too, and a rebuilt journal knows it.
func TestRemarksAreOnRecord(t *testing.T) {
	for want, c := range map[state.Reason]struct {
		gate         string
		share        float64
		detail, says string // of the journal; end of the description
		counted      string
	}{
		state.ReasonUnchanged: {says: "strength 1" + derive.Untouched, counted: "1 unchanged"},
		derive.HeldBack: {gate: "a spot vanishes", detail: "a spot vanishes",
			says: "; quality check: a spot vanishes" + derive.Untouched, counted: "1 held back"},
		derive.Blended: {gate: "the mean shifts", share: 0.25, detail: "25 % of the change kept: the mean shifts",
			says: "; quality check: 25 % of the change kept: the mean shifts", counted: "1 in part"},
	} {
		t.Run(string(want), func(t *testing.T) {
			o := options(t, newArchive())
			registry := prometheus.NewRegistry()
			o.Registerer = registry
			o.Denoiser = &halver{do: func(_ int, f *derive.Frame) (*Denoised, error) {
				r := &Denoised{Pixels: slices.Clone(f.Pixels), Gate: c.gate, Share: c.share}
				if c.share > 0 {
					for i := range r.Pixels {
						r.Pixels[i] = (r.Pixels[i] + 700) / 2
					}
				}
				return r, nil
			}}
			p, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			stop := run(p)
			events, end := p.Events()
			im := slice(1, 1)
			receive(t, p, im)
			eventually(t, "denoised", func() bool { return status(t, p, im.series).Denoised == 1 })
			check := func(p *Pipeline) {
				t.Helper()
				s := status(t, p, im.series)
				if s.Reasons[want] != 1 || s.Remarks() != c.counted || s.Instances[0].Reason != want || s.Instances[0].Detail != c.detail {
					t.Errorf("%v, %q, image %s: %q", s.Reasons, s.Remarks(), s.Instances[0].Reason, s.Instances[0].Detail)
				}
			}
			check(p)
			if got := object(t, p, im.series, 1, "fast").String(dcm.DerivationDescription); !strings.HasSuffix(got, c.says) {
				t.Errorf("the object says %q", got)
			}
			if pic, err := p.Picture(t.Context(), im.series, 1, "fast", 1); err != nil ||
				pic.Remark != strings.TrimSuffix(string(want)+": "+c.detail, ": ") {
				t.Errorf("shown with %+v, %v", pic, err)
			}
			if pic, err := p.Picture(t.Context(), im.series, 1, "original", 1); err != nil || pic.Remark != "" {
				t.Errorf("the original is shown with %+v, %v", pic, err)
			}
			told := "" // after the journal knows
			eventually(t, "the event of the slice", func() bool {
				select {
				case e := <-events:
					told = e.Detail
					return e.Type == EventSlice
				default:
					return false
				}
			})
			end()
			if told != string(want) {
				t.Errorf("the event says %q", told)
			}
			counted := false
			families, err := registry.Gather()
			for _, f := range families {
				counted = counted || f.GetName() == "denoised_slices_total" &&
					strings.Contains(f.String(), `value:"`+string(want)+`"`)
			}
			if err != nil || !counted {
				t.Errorf("not counted in the metrics: %v", err)
			}
			stop()
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(o.StateDir, "journal.db")); err != nil {
				t.Fatal(err)
			}
			o.Registerer = nil
			check(start(t, o))
		})
	}
}

// A remark is about an object that is there: it goes when that is lost, or its
// original, and comes back with the next one.
func TestRemarksGoWithTheObject(t *testing.T) {
	o := options(t, newArchive())
	o.Denoiser = &halver{do: func(_ int, f *derive.Frame) (*Denoised, error) {
		return &Denoised{Pixels: slices.Clone(f.Pixels), Gate: "a spot vanishes"}, nil
	}}
	im := slice(1, 1)
	var p *Pipeline
	reopen := func(kind spool.Kind) {
		t.Helper()
		stop := run(p)
		eventually(t, "held back", func() bool { return status(t, p, im.series).Remarks() == "1 held back" })
		file := fileOf(t, p, im.series, 1, kind, Fast)
		stop()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(o.StateDir, "spool", file)); err != nil {
			t.Fatal(err)
		}
		var err error
		if p, err = Open(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	receive(t, p, im)
	reopen(spool.Derived)
	if s := status(t, p, im.series); s.Waiting != 1 || s.Remarks() != "" || s.Instances[0].Reason != "" || s.Instances[0].Detail != "" {
		t.Errorf("to be made again: %+v", s)
	}
	reopen(spool.Original)
	if s := status(t, p, im.series); s.Lost != 1 || s.Remarks() != "" {
		t.Errorf("lost: %+v", s)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// Off concerns the slices in hand too, whether they succeed or fail afterwards.
func TestOffWithASliceInHand(t *testing.T) {
	for name, attempts := range map[string]int{"made": 1, "fails": 1, "fails, to be tried again": 2} {
		t.Run(name, func(t *testing.T) {
			a := newArchive()
			o := options(t, a)
			o.Attempts = attempts
			inHand, release := make(chan struct{}, 10), make(chan struct{})
			o.Denoiser = &halver{do: func(_ int, f *derive.Frame) (*Denoised, error) {
				inHand <- struct{}{}
				<-release
				if name != "made" {
					return nil, errors.New("out of memory")
				}
				return smooth(f), nil
			}}
			p, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			stop := run(p)
			im := slice(1, 1)
			receive(t, p, im)
			<-inHand
			setFlag(t, p, im.series, Off)
			close(release)
			eventually(t, "the original in the archive", func() bool { return a.count("pacs") == 1 })
			stop() // ends the slice in hand
			s := status(t, p, im.series)
			if in := s.Instances[0]; s.Passed != 1 || in.State != state.Passed || in.Reason != "off" ||
				in.Detail != "" || in.Attempts != 0 || len(s.Instances) != 1 {
				t.Errorf("%+v", s.Instances)
			}
			if n := spoolFiles(t, o.StateDir); n != 2 { // the original and the flag
				t.Errorf("%d files", n)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A denoiser that hangs, even deaf to its context, costs its slice only.
func TestHangingDenoiser(t *testing.T) {
	release := make(chan struct{})
	o := options(t, newArchive())
	o.Workers, o.Attempts, o.SliceTimeout = 1, 1, 300*time.Millisecond
	o.Denoiser = &halver{do: func(n int, f *derive.Frame) (*Denoised, error) {
		if n == 1 {
			<-release
		}
		return smooth(f), nil
	}}
	p := start(t, o)
	t.Cleanup(func() { close(release) }) // runs before the pipeline stops
	receive(t, p, slice(1, 1))
	receive(t, p, slice(1, 2))
	eventually(t, "one failed, one denoised", func() bool {
		s := status(t, p, slice(1, 1).series)
		return s.Failed == 1 && s.Denoised == 1
	})
}

// Slices are taken from the series in turn.
func TestSmallSeriesIsNotHeldUp(t *testing.T) {
	o := options(t, newArchive())
	o.Workers = 1
	var mu sync.Mutex
	var order []int
	gateOpen := make(chan struct{})
	o.Denoiser = &halver{do: func(n int, f *derive.Frame) (*Denoised, error) {
		<-gateOpen
		mu.Lock()
		defer mu.Unlock()
		order = append(order, int(f.Pixels[0])%2)
		return smooth(f), nil
	}}
	p := start(t, o)
	sent := func(series, n int, mark uint16) {
		im := slice(series, n)
		d := im.dataSet()
		d[len(d)-2*16*16], d[len(d)-2*16*16+1] = byte(500+mark), byte((500+mark)>>8)
		if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(d)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 10 {
		sent(1, n+1, 0)
	}
	sent(2, 1, 1)
	close(gateOpen)
	eventually(t, "all denoised", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(order) == 11
	})
	if i := slices.Index(order, 1); i > 2 {
		t.Errorf("the second series was served as number %d: %v", i+1, order)
	}
}

// A multi-frame object is denoised frame by frame with all workers, and written in order.
func TestMultiFrame(t *testing.T) {
	const side, count = 16, 5
	o := options(t, newArchive())
	var mu sync.Mutex
	frames, now, most := 0, 0, 0
	o.Denoiser = &halver{do: func(_ int, f *derive.Frame) (*Denoised, error) {
		mu.Lock()
		frames++
		now++
		most = max(most, now)
		mu.Unlock()
		mu.Lock()
		now--
		mu.Unlock()
		return smooth(f), nil
	}}
	p := start(t, o)
	im, d := slice(1, 1).frames(count)
	for n := range count { // the first pixel names the frame
		binary.LittleEndian.PutUint16(d[len(d)-2*side*side*(count-n):], uint16(900+2*n))
	}
	if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(d)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "complete and denoised", func() bool {
		s := status(t, p, im.series)
		return s.Waiting == 0 && s.CompleteBy == state.ByFrames
	})
	s := status(t, p, im.series)
	if in := s.Instances[0]; in.Frames != count || in.State != state.Denoised {
		t.Fatalf("%+v", in)
	}
	mu.Lock()
	defer mu.Unlock()
	if frames != count || most > o.Workers {
		t.Errorf("%d frames denoised, %d at once", frames, most)
	}
	obj, c, err := p.OpenObject(t.Context(), im.series, 1, "fast")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	px, err := obj.Bytes(dcm.PixelData, len(d))
	if err != nil {
		t.Fatal(err)
	}
	for n := range count {
		if got, want := binary.LittleEndian.Uint16(px[2*side*side*n:]), uint16((900+2*n+700)/2); got != want {
			t.Errorf("frame %d starts with %d, want %d", n, got, want)
		}
	}
}

func TestGatePutsSkippedPixelsBack(t *testing.T) {
	in := &derive.Frame{Width: 2, Height: 1, Pixels: []float32{0, 100}, Skip: []bool{true, false}, Min: 0, Max: 4095}
	out := []float32{55, 90}
	if err := plausible(in, out); err != nil || out[0] != 0 || out[1] != 90 {
		t.Errorf("%v, %v", out, err)
	}
}

// Work in hand is finished when the pipeline stops, the rest waits for the next start.
func TestStopAndResume(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	o.Workers = 1
	inHand, release := make(chan struct{}, 10), make(chan struct{})
	o.Denoiser = &halver{do: func(_ int, f *derive.Frame) (*Denoised, error) {
		inHand <- struct{}{}
		<-release
		return smooth(f), nil
	}}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	for n := range 3 {
		receive(t, p, slice(1, n+1))
	}
	<-inHand
	cancel()
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s := status(t, p, slice(1, 1).series)
	if s.Denoised < 1 || s.Denoised > 2 || s.Waiting != 3-s.Denoised {
		t.Errorf("denoised %d, waiting %d", s.Denoised, s.Waiting)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = start(t, o)
	eventually(t, "everything in the archive", func() bool { return a.count("pacs") == 6 })
	eventually(t, "nothing queued", func() bool { return status(t, p, slice(1, 1).series).Destinations[0].Stored == 6 })
	for i := range 3 {
		if n := len(a.copies("pacs", slice(1, i+1).sop)); n != 1 {
			t.Errorf("slice %d came %d times", i+1, n)
		}
	}
}
