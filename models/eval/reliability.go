package eval

import (
	"fmt"
	"math"

	"github.com/diffdenoise/denoised/models"
)

// Lower ends of the ranges of the stated standard deviation that pixels are counted in. The last
// range has no upper end.
var (
	relativeEnds = []float64{0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1} // of the true noise
	absoluteEnds = []float64{0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12}  // of 255
)

// Reliability says how often the truth lies within the standard deviation that a method states for
// its error: pixels of tissue of simulations, whose truth is known.
type Reliability struct {
	All Within `json:"all"`
	// Relative and Absolute are by the stated standard deviation: of the true noise from 0, 0.2,
	// 0.3, 0.4, 0.5, 0.6, 0.8 and 1 on, and of the scale from 0, 0.5, 1, 1.5, 2, 3, 4, 6, 8 and
	// 12/255 on.
	Relative []Within `json:"relative"`
	Absolute []Within `json:"absolute"`
}

// Within counts pixels.
type Within struct {
	Pixels int     `json:"pixels"`
	One    int     `json:"within_one"` // standard deviation
	Two    int     `json:"within_two"`
	Stated float64 `json:"stated"` // sum of its squares
	Error  float64 `json:"error"`  // sum of the squares of the error
}

func (w *Within) add(o Within) {
	w.Pixels, w.One, w.Two = w.Pixels+o.Pixels, w.One+o.One, w.Two+o.Two
	w.Stated, w.Error = w.Stated+o.Stated, w.Error+o.Error
}

func newReliability() *Reliability {
	return &Reliability{Relative: make([]Within, len(relativeEnds)), Absolute: make([]Within, len(absoluteEnds))}
}

// reliability compares what a method states with the truth; nil if it states nothing.
func reliability(r *models.Result, e *example) *Reliability {
	if r.Uncertainty == nil {
		return nil
	}
	out := newReliability()
	for i, in := range e.mask {
		stated := float64(r.Uncertainty[i])
		if !in || e.sigma[i] <= 0 {
			continue
		}
		off := math.Abs(float64(r.Pixels[i]) - float64(e.ref[i]))
		w := Within{Pixels: 1, Stated: stated * stated, Error: off * off}
		if off <= stated {
			w.One = 1
		}
		if off <= 2*stated {
			w.Two = 1
		}
		out.All.add(w)
		out.Relative[rangeOf(relativeEnds, stated/float64(e.sigma[i]))].add(w)
		out.Absolute[rangeOf(absoluteEnds, 255*stated)].add(w)
	}
	return out
}

// rangeOf returns the range that a value is in.
func rangeOf(ends []float64, v float64) int {
	k := 0
	for k+1 < len(ends) && v >= ends[k+1] {
		k++
	}
	return k
}

func (r *Reliability) add(o *Reliability) {
	r.All.add(o.All)
	for k := range r.Relative {
		r.Relative[k].add(o.Relative[k])
	}
	for k := range r.Absolute {
		r.Absolute[k].add(o.Absolute[k])
	}
}

// pooled adds up what the scores of one row and method have; nil if that is nothing.
func pooled(list []*Score) *Reliability {
	var sum *Reliability
	for _, s := range list {
		if s.Reliability == nil {
			continue
		}
		if sum == nil {
			sum = newReliability()
		}
		sum.add(s.Reliability)
	}
	return sum
}

// reliabilities are the tables of what is stated, for each method that states something.
func (t *Table) reliabilities(methods []string) (grids []Grid) {
	for _, method := range methods {
		all := newReliability()
		rows := Grid{Title: "How often the truth lies within the standard deviation σ that " + method +
			" states: percent of the pixels of tissue (of a normal error, 68.3 and 95.4)",
			Head: []string{t.head(), "within σ", "within 2σ", "stated σ, of 255", "error, of 255"}}
		for _, m := range t.Means {
			if m.Method == method && m.Reliability != nil {
				all.add(m.Reliability)
				rows.Lines = append(rows.Lines, append([]string{m.Row}, m.Reliability.All.cells()[1:]...))
			}
		}
		if all.All.Pixels == 0 {
			continue
		}
		rows.Lines = append(rows.Lines, append([]string{"all pixels"}, all.All.cells()[1:]...))
		grids = append(grids, rows)
		for _, by := range []struct {
			title, head string
			ends        []float64
			list        []Within
		}{
			{"relative to the true noise", "σ, of the noise", relativeEnds, all.Relative},
			{"absolute", "σ, of 255", absoluteEnds, all.Absolute},
		} {
			g := Grid{Title: fmt.Sprintf("The same by the σ that %s states, %s: all percent", method, by.title),
				Head: []string{by.head, "pixels", "within σ", "within 2σ", "stated σ, of 255", "error, of 255"}}
			for k, w := range by.list {
				if w.Pixels == 0 {
					continue
				}
				text := fmt.Sprintf("%g and more", by.ends[k])
				if k+1 < len(by.ends) {
					text = fmt.Sprintf("%g to %g", by.ends[k], by.ends[k+1])
				}
				line := append([]string{text}, w.cells()...)
				line[1] = fmt.Sprintf("%.1f", 100*float64(w.Pixels)/float64(all.All.Pixels))
				g.Lines = append(g.Lines, line)
			}
			grids = append(grids, g)
		}
	}
	return grids
}

// cells are the number of pixels, those within one and two standard deviations in percent, and the
// root mean squares of what is stated and of the error.
func (w *Within) cells() []string {
	n := float64(max(w.Pixels, 1))
	return []string{fmt.Sprint(w.Pixels),
		fmt.Sprintf("%.1f", 100*float64(w.One)/n), fmt.Sprintf("%.1f", 100*float64(w.Two)/n),
		fmt.Sprintf("%.2f", 255*math.Sqrt(w.Stated/n)), fmt.Sprintf("%.2f", 255*math.Sqrt(w.Error/n))}
}
