package gate

import (
	"math"

	"github.com/diffdenoise/denoised/internal/numeric"
)

// Noise lifts a magnitude where there is little signal: of L coils, the mean of the square
// is signal² + 2L·noise². A window that cuts off what is dark does much the same. A result
// without it is not to be blamed for that, so what changes as the lift does is taken off
// first. With after and before the means of both at one signal, in standard deviations of
// the noise,
//
//	c² = before² − after²
//
// would be the same at every signal. It is measured at the knots, may only fall with
// the signal, and is 0 where a result is brighter than the image. So what a result takes
// off bright tissue is never explained by the lift, unless it takes off more in the dark.
type lift struct {
	dark  float32                            // c where the result is darkest; 0: there is no lift
	table [liftReach*liftSteps + 1]liftEntry // by the signal
}

// liftEntry is at one signal what a magnitude is lifted by, and one by the standard
// deviation of its noise.
type liftEntry struct{ lift, scale float32 }

const (
	liftReach = 64 // of the table, standard deviations of the noise
	liftSteps = 16 // of it, per standard deviation
	mostLift  = 8  // of 32 coils, without signal
	leastLift = 0.1
	leastKnot = 12           // cells
	sparse    = 2            // rows of cells, one in so many is looked at
	bound     = mostLift + 4 // of what a pixel adds to a knot, standard deviations
	plain     = 0.5          // lift in the dark below which the noise is as strong there as elsewhere
	magnitude = 0.4          // share of the noise's variance that a magnitude loses without signal, at least
)

// knots are the signals between which changes are pooled, standard deviations of the noise.
var knots = [...]float32{0.3, 0.8, 1.5, 2.5, 3.5, 5, 7, 10, 15, 25, 40}

// measureLift finds what was taken off as the lift of a magnitude.
func (s *scratch) measureLift() {
	var signal, taken, count [len(knots) + 1]float64
	for y := 0; y < s.hh; y += sparse {
		for x := range s.hw {
			k := y*s.hw + x
			around := s.around[k]
			if around != around || s.inside[k] < 4 {
				continue
			}
			i := 2*y*s.w + 2*x
			a := around * s.inverse[i]
			// flat enough that what is around tells the signal here
			if d := s.after[k]/4*s.inverse[i] - a; d > 1 || d < -1 {
				continue
			}
			j := 0
			for j < len(knots) && a > knots[j] {
				j++
			}
			sum := float32(0)
			for _, v := range [...]float32{s.z[i], s.z[i+1], s.z[i+s.w], s.z[i+s.w+1]} {
				sum += min(max(v, -bound), bound)
			}
			signal[j], taken[j], count[j] = signal[j]+float64(a), taken[j]+float64(sum/4), count[j]+1
		}
	}
	type point struct{ a, square float64 }
	var points []point
	most := float64(mostLift * mostLift)
	for j, n := range count {
		if n < leastKnot {
			continue
		}
		a, before := signal[j]/n, (signal[j]+taken[j])/n
		most = min(most, max(before*before-a*a, 0))
		points = append(points, point{max(a, 0), most})
	}
	s.lift.dark = 0
	if len(points) == 0 || points[0].square < leastLift*leastLift {
		return
	}
	dark := math.Sqrt(points[0].square)
	s.lift.dark = float32(dark)
	j := 0
	for k := range s.lift.table {
		a := float64(k) / liftSteps
		for j < len(points)-1 && points[j+1].a < a {
			j++
		}
		square := points[j].square
		if j < len(points)-1 && a > points[j].a {
			f := (a - points[j].a) / (points[j+1].a - points[j].a)
			square += f * (points[j+1].square - square)
		}
		lift := math.Sqrt(a*a+square) - a
		loss := magnitude * lift / dark * min(dark/plain, 1)
		s.lift.table[k] = liftEntry{float32(lift), float32(1 / math.Sqrt(1-loss))}
	}
}

// at returns the entry of a signal in standard deviations of the noise.
func (l *lift) at(a float32) liftEntry {
	switch k := a * liftSteps; {
	case !(k > 0):
		return l.table[0]
	case k < liftReach*liftSteps:
		return l.table[int(k+0.5)]
	}
	e := l.table[liftReach*liftSteps]
	return liftEntry{e.lift * liftReach / a, 1}
}

// Noise of several coils lifts the dark by the same everywhere, whatever the map says of the
// noise in tissue, and maps are misjudged. So the lift is adjusted, by little and smoothly.
const (
	tile       = 16 // side of the areas that it is adjusted in, cells
	prior      = 8  // cells that say that nothing is to be adjusted
	mostAdjust = 1.5
)

// adjustLift sets s.gain to the factors of the lift in the middle of each tile.
func (s *scratch) adjustLift() {
	s.tw, s.th = (s.hw+tile-1)/tile, (s.hh+tile-1)/tile
	s.gain = numeric.Grow(s.gain, s.tw*s.th)
	for k := range s.gain {
		var seen, expected float32
		x0, y0 := k%s.tw*tile, k/s.tw*tile
		for y := y0; y < min(y0+tile, s.hh); y += sparse {
			for x := x0; x < min(x0+tile, s.hw); x++ {
				i, j := 2*y*s.w+2*x, y*s.hw+x
				if around := s.around[j]; around == around && s.inside[j] == 4 {
					if e := s.lift.at(around * s.inverse[i]); e.lift > lifted {
						seen += e.lift * (s.z[i] + s.z[i+1] + s.z[i+s.w] + s.z[i+s.w+1]) / 4
						expected += e.lift * e.lift
					}
				}
			}
		}
		more := prior * s.lift.dark * s.lift.dark
		s.gain[k] = min(max((seen+more)/(expected+more), 1/mostAdjust), mostAdjust)
	}
}

// gainAt interpolates between the middles of the tiles.
func (s *scratch) gainAt(x, y int) float32 {
	fx, fy := min(max((float32(x)+0.5)/tile-0.5, 0), float32(s.tw-1)), min(max((float32(y)+0.5)/tile-0.5, 0),
		float32(s.th-1))
	x0, y0 := int(fx), int(fy)
	x1, y1 := min(x0+1, s.tw-1), min(y0+1, s.th-1)
	fx, fy = fx-float32(x0), fy-float32(y0)
	up, down := s.gain[y0*s.tw:], s.gain[y1*s.tw:]
	return (up[x0]*(1-fx)+up[x1]*fx)*(1-fy) + (down[x0]*(1-fx)+down[x1]*fx)*fy
}

// lifted is the mean lift of a cell, in standard deviations of the noise, above which noise
// has other frequencies than elsewhere.
const lifted = 0.2

// takeLift takes the lift off s.z, as far as it was taken off around, and sums the rest over the
// cells. Beside bright edges a result may have kept it.
func (s *scratch) takeLift(in Input) {
	if s.lift.dark > 0 {
		s.adjustLift()
		s.takenAround(in)
	}
	for y := range s.hh {
		for x := range s.hw {
			k, i := y*s.hw+x, 2*y*s.w+2*x
			s.raised[k] = 0
			if s.lift.dark > 0 && s.inside[k] > 0 {
				gain := s.gainAt(x, y)
				for _, j := range [...]int{i, i + 1, i + s.w, i + s.w + 1} {
					if s.mark[j] == look {
						e := s.lift.at(in.After[j] * s.inverse[j])
						s.z[j] = (s.z[j] - e.lift*gain*s.taken[k]) * e.scale
						s.raised[k] += e.lift
					}
				}
			}
			a, b, c, d := s.z[i], s.z[i+1], s.z[i+s.w], s.z[i+s.w+1]
			s.half[k], s.power[k] = a+b+c+d, a*a+b*b+c*c+d*d
		}
	}
}

// takenAround sets s.taken to the share of the lift that was taken off in the 5×5 cells around
// each, at most 1.
func (s *scratch) takenAround(in Input) {
	const half = 2
	n := s.hw * s.hh
	s.taken, s.seen, s.expected = numeric.Grow(s.taken, n), numeric.Grow(s.seen, n), numeric.Grow(s.expected, n)
	for y := range s.hh {
		for x := range s.hw {
			k, i, gain := y*s.hw+x, 2*y*s.w+2*x, s.gainAt(x, y)
			s.seen[k], s.expected[k] = 0, 0
			for _, j := range [...]int{i, i + 1, i + s.w, i + s.w + 1} {
				if s.mark[j] == look {
					e := s.lift.at(in.After[j]*s.inverse[j]).lift * gain
					s.seen[k], s.expected[k] = s.seen[k]+e*s.z[j], s.expected[k]+e*e
				}
			}
		}
	}
	more := s.lift.dark * s.lift.dark
	for y := range s.hh {
		y0, y1 := max(y-half, 0), min(y+half, s.hh-1)
		for x := range s.hw {
			x0, n := max(x-half, 0), min(x+half, s.hw-1)-max(x-half, 0)+1
			seen, expected := more, more
			for v := y0; v <= y1; v++ {
				a, b := s.seen[v*s.hw+x0:][:n], s.expected[v*s.hw+x0:][:n]
				for u := range a {
					seen, expected = seen+a[u], expected+b[u]
				}
			}
			s.taken[y*s.hw+x] = min(max(seen/expected, 0), 1)
		}
	}
}
