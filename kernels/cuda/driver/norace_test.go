//go:build cuda && linux && emulated && !race

package driver

import "testing"

// The race detector allocates.
func TestLaunchAllocatesNothing(t *testing.T) {
	l := newLab(t)
	x := l.alloc(4)
	f := l.function("scale")
	n := testing.AllocsPerRun(50, func() {
		if err := l.stream.Launch(f, [3]int{1, 1, 1}, [3]int{1, 1, 1}, 0, uint64(x), bits(1), 1); err != nil {
			t.Error(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per launch", n)
	}
}
