package arena

import (
	"math/rand/v2"
	"testing"
)

// TestList: no two pieces in use overlap, all are aligned, and what is given back is used again.
func TestList(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	l := List{Align: 16}
	used := map[int]int{} // sizes by place
	held, most := 0, 0
	for range 20000 {
		if len(used) > 0 && (len(used) > 30 || rng.IntN(2) == 0) {
			for at, n := range used { // any
				l.Give(at, n)
				held -= l.Size(n)
				delete(used, at)
				break
			}
			continue
		}
		n := 1 + rng.IntN(100)
		at := l.Take(n)
		if at%16 != 0 || at+l.Size(n) > l.End() {
			t.Fatalf("a piece of %d at %d of %d", n, at, l.End())
		}
		for other, m := range used {
			if at < other+l.Size(m) && other < at+l.Size(n) {
				t.Fatalf("a piece of %d at %d overlaps one of %d at %d", n, at, m, other)
			}
		}
		used[at] = n
		held += l.Size(n)
		most = max(most, held)
	}
	if l.End() > 3*most {
		t.Errorf("a memory of %d for %d at most", l.End(), most)
	}
	for at, n := range used {
		l.Give(at, n)
	}
	if end := l.End(); l.Take(end) != 0 || l.End() != end {
		t.Error("what was given back is not one piece")
	}
}
