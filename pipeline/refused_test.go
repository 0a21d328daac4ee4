package pipeline

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
)

// TestRefusedInARow: a spool or a journal that takes no image is told by Check, by the probe where it fails in general
// and after three images where it fails for images only; the first image that is stored ends it.
func TestRefusedInARow(t *testing.T) {
	for _, c := range []struct {
		name   string
		fail   func(op, name string, n int64) error // of the spool
		commit bool                                 // the journal cannot commit
		images int                                  // until it is told
	}{
		{"every rename", func(op, _ string, _ int64) error {
			if op == "rename" {
				return syscall.EROFS
			}
			return nil
		}, false, 0},
		{"renames of images", func(op, name string, _ int64) error {
			if op == "rename" && strings.HasPrefix(name, "original/") {
				return syscall.EROFS
			}
			return nil
		}, false, maxRefused},
		{"writes beyond the first", func(op, _ string, n int64) error {
			if op == "write" && n > 100 {
				return syscall.EIO
			}
			return nil
		}, false, maxRefused},
		{"a quota that images exceed", func(op, _ string, n int64) error {
			if op == "write" && n > 100 {
				return syscall.EDQUOT
			}
			return nil
		}, false, maxRefused},
		{"every file", func(op, _ string, _ int64) error {
			if op == "create" {
				return syscall.EMFILE
			}
			return nil
		}, false, 0},
		{"the journal", nil, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, f := faulty(t, nil)
			o.Denoiser = nil
			var full atomic.Bool
			o.hook = func(step string) {
				if step == "commit" && full.Load() {
					panic("disk full")
				}
			}
			p := start(t, o)
			setFail := func(on bool) {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.fail = nil
				if on {
					f.fail = c.fail
				}
				full.Store(on && c.commit)
			}
			if h := p.Check(); !h.OK {
				t.Fatalf("at first: %q", h.Problems)
			}
			setFail(true)
			im := slice(1, 1)
			for n := range c.images {
				if h := p.Check(); !h.OK {
					t.Errorf("after %d images: %q", n, h.Problems)
				}
				if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(im.dataSet())); err == nil {
					t.Fatal("an image was taken")
				}
			}
			if h := p.Check(); h.OK {
				t.Errorf("sound after %d images that were refused", c.images)
			}
			setFail(false)
			receive(t, p, im)
			if h := p.Check(); !h.OK {
				t.Errorf("after a stored image: %q", h.Problems)
			}
		})
	}
}

// TestRefusedForTheSender: what is wrong with an image or its sender is no fault of ours, however often it comes.
func TestRefusedForTheSender(t *testing.T) {
	o := options(t, nil)
	o.Denoiser, o.MaxObject = nil, 4<<10
	p := start(t, o)
	im := slice(1, 1)
	large := im
	large.size = 64
	other := im.incoming()
	other.SOPInstanceUID = "1.2.3.99"
	unnamed := im.incoming()
	unnamed.SOPInstanceUID = ""
	broken := errors.New("connection reset")
	for name, c := range map[string]struct {
		in Incoming
		r  func() io.Reader
	}{
		"empty":              {im.incoming(), func() io.Reader { return bytes.NewReader(nil) }},
		"too large":          {im.incoming(), func() io.Reader { return bytes.NewReader(large.dataSet()) }},
		"another one inside": {other, func() io.Reader { return bytes.NewReader(im.dataSet()) }},
		"no UID":             {unnamed, func() io.Reader { return bytes.NewReader(im.dataSet()) }},
		"the connection broke": {im.incoming(), func() io.Reader {
			return io.MultiReader(bytes.NewReader(im.dataSet()[:99]), iotest.ErrReader(broken))
		}},
	} {
		for range maxRefused {
			if err := p.Receive(t.Context(), c.in, c.r()); err == nil {
				t.Errorf("%s: taken", name)
			}
		}
		if h := p.Check(); !h.OK {
			t.Errorf("%s: %q", name, h.Problems)
		}
	}
}
