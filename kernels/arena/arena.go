// Package arena lays values out in one memory: a value that has been read for the last time
// gives its place to others.
package arena

// List hands out pieces of a memory that grows as needed. The zero value is an empty memory with
// pieces of any size. It is for one goroutine.
type List struct {
	Align  int     // pieces begin at multiples of it and are as long; 0 means 1
	pieces []piece // free ones, in order, never adjacent
	end    int
}

type piece struct{ at, size int }

// Size returns what a piece for n takes: n, rounded up to a multiple of Align.
func (l *List) Size(n int) int {
	a := max(l.Align, 1)
	return (n + a - 1) / a * a
}

// End returns the size of the memory.
func (l *List) End() int { return l.end }

// Take returns where a piece for n begins.
func (l *List) Take(n int) (at int) {
	want := l.Size(n)
	for i := range l.pieces {
		if p := &l.pieces[i]; p.size >= want {
			at = p.at
			p.at += want
			if p.size -= want; p.size == 0 {
				l.pieces = append(l.pieces[:i], l.pieces[i+1:]...)
			}
			return at
		}
	}
	at = l.end
	if n := len(l.pieces); n > 0 && l.pieces[n-1].at+l.pieces[n-1].size == l.end {
		at = l.pieces[n-1].at
		l.pieces = l.pieces[:n-1]
	}
	l.end = at + want
	return at
}

// Give gives a piece for n back that began at a place.
func (l *List) Give(at, n int) {
	i := 0
	for i < len(l.pieces) && l.pieces[i].at < at {
		i++
	}
	l.pieces = append(l.pieces[:i], append([]piece{{at, l.Size(n)}}, l.pieces[i:]...)...)
	for j := len(l.pieces) - 1; j > 0; j-- {
		if a := &l.pieces[j-1]; a.at+a.size == l.pieces[j].at {
			a.size += l.pieces[j].size
			l.pieces = append(l.pieces[:j], l.pieces[j+1:]...)
		}
	}
}
