package models

import "math"

// stated returns the standard deviation of the error of the result at every pixel, in the scale of
// n: a share of what predicted.removed holds is taken off. Three things leave errors behind, and
// their squares add up:
//
//	what every result leaves         a share of the noise
//	what the model leaves open       the spread of the pair, its mean over 5×5 pixels
//	what was not taken off           by how much the mean square of what was, over 5×5 pixels, is
//	                                 less than the noise's
//
// The shares (uncertainty_shares.go) are such that 68 % of the pixels of tissue lie within it:
// `make calibrate` finds them on simulated scanners, and the table of measured/quality.md shows how
// well they do on others. It is finite, never negative, grows with the spread, and is 0 where
// nothing can change.
func (b *scratch) stated(p *predicted, n *normalized, sigma []float32, share float64) []float32 {
	f := b.surroundings(p, n)
	out := make([]float32, len(p.spread))
	for i := range out {
		if !n.outside[i] {
			out[i] = f.at(i, sigma[i], share).stated(sharePlain, shareSpread, shareLeft)
		}
	}
	return out
}

// surroundings are, over 5×5 pixels, the mean of the spread of the pair and of the square of what was
// taken off.
type surroundings struct{ spread, power []float32 }

// surroundings uses memory of b.
func (b *scratch) surroundings(p *predicted, n *normalized) surroundings {
	b.energy, b.level = append(b.energy[:0], p.removed...), append(b.level[:0], p.spread...)
	for i, v := range b.energy {
		b.energy[i] = v * v
	}
	b.means(b.energy, n.w, n.h, windowRemoved)
	b.means(b.level, n.w, n.h, windowRemoved)
	return surroundings{b.level, b.energy}
}

// sources of the error of a pixel, as standard deviations.
type sources struct{ noise, spread, left float64 }

// at tells what there is at a pixel whose noise is sigma.
func (e surroundings) at(i int, sigma float32, share float64) sources {
	s := float64(sigma)
	return sources{s, max(float64(e.spread[i]), 0) * share,
		math.Sqrt(max(s*s-share*(2-share)*float64(e.power[i]), 0))}
}

func (s sources) stated(plain, spread, left float64) float32 {
	return float32(math.Hypot(plain*s.noise, math.Hypot(spread*s.spread, left*s.left)))
}
