package pipeline

import (
	"bytes"
	"strings"
	"syscall"
	"testing"
)

// TestRefusedInARow: a spool that takes no new name is told by Check, by the probe
// where it fails in general and after three images where it fails for images only;
// the first image that is stored ends it.
func TestRefusedInARow(t *testing.T) {
	for _, c := range []struct {
		name, prefix string
		images       int // until it is told
	}{{"every rename", "", 0}, {"renames of images", "original/", maxRefused}} {
		t.Run(c.name, func(t *testing.T) {
			o, f := faulty(t, nil)
			o.Denoiser = nil
			p := start(t, o)
			setFail := func(fail func(op, name string, n int64) error) { f.mu.Lock(); f.fail = fail; f.mu.Unlock() }
			if h := p.Check(); !h.OK {
				t.Fatalf("at first: %q", h.Problems)
			}
			setFail(func(op, name string, _ int64) error {
				if op == "rename" && strings.HasPrefix(name, c.prefix) {
					return syscall.EROFS
				}
				return nil
			})
			im := slice(1, 1)
			im.size = 16
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
			setFail(nil)
			if err := p.Receive(t.Context(), im.incoming(), bytes.NewReader(im.dataSet())); err != nil {
				t.Fatal(err)
			}
			if h := p.Check(); !h.OK {
				t.Errorf("after a stored image: %q", h.Problems)
			}
		})
	}
}
