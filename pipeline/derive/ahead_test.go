package derive_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/diffdenoise/denoised/pipeline/derive"
)

// TestAhead: frames come in their order, few are held, one that fails fails alone.
func TestAhead(t *testing.T) {
	const count, most = 50, 4
	broken := errors.New("broken")
	var held, peak atomic.Int64
	a := derive.NewAhead(count, most, func(i int) (int, error) {
		n := held.Add(1)
		for old := peak.Load(); n > old && !peak.CompareAndSwap(old, n); old = peak.Load() {
		}
		if i == 7 {
			return 0, broken
		}
		return 10 * i, nil
	})
	if _, err := a.Next(1); err == nil {
		t.Error("frame 1 came before frame 0")
	}
	for i := range count {
		got, err := a.Next(i)
		held.Add(-1)
		switch {
		case i == 7:
			if !errors.Is(err, broken) {
				t.Errorf("frame 7: %v", err)
			}
		case err != nil || got != 10*i:
			t.Errorf("frame %d is %d, %v", i, got, err)
		}
	}
	if _, err := a.Next(count); err == nil {
		t.Error("a frame too many")
	}
	if p := peak.Load(); p > most {
		t.Errorf("%d frames were held, want at most %d", p, most)
	}
	a.Wait()

	// Whoever gives up waits for those that were begun.
	var ended atomic.Int64
	a = derive.NewAhead(count, most, func(int) (int, error) { return int(ended.Add(1)), nil })
	if _, err := a.Next(0); err != nil {
		t.Fatal(err)
	}
	a.Wait()
	if n := ended.Load(); n != most {
		t.Errorf("%d frames ended, %d were begun", n, most)
	}
}
