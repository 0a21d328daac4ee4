package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Storage is what the exposure of a detector's pixel is turned into before it is stored.
type Storage uint8

// Storages. All rise with what the rays met on their way, so that bone is bright.
const (
	Logarithm    Storage = iota // of the exposure: as raw images of flat panels and plates
	Root                        // of the exposure
	Linear                      // in the exposure
	Presentation                // an S-shaped curve of the logarithm: as sent for display
)

// Limits of a Detector.
const (
	MaxDetectorBlur = 2.0
	maxDetectorSide = 1 << 13
	leastDetector   = 16 // pixels a side
)

// Detector is the way of a radiograph from what the rays meet to the values that are stored: quanta
// are counted (Poisson), the light that they make spreads over some pixels, and their noise with it;
// electronics add white noise; the exposure is stored by a curve, then edges are enhanced as
// manufacturers do it. The zero value of every field but Range leaves its step out.
//
// Images are what a raw radiograph shows: 0 is the open beam, 1 the densest that is of interest, at
// an exposure exp(−Range) times that of the open beam.
type Detector struct {
	// Range is the logarithm of the exposures between 0 and 1, 0.5 to 5.
	Range float64
	// Blur is the spread of a Gaussian, pixels, 0 to MaxDetectorBlur: the detector's modulation
	// transfer is exp(−2π²·Blur²·f²) at f cycles per pixel. The quanta's noise goes through it.
	Blur float64
	// Electronic is the variance of the white noise of the electronics, in units of the variance
	// of the quanta's at the mean exposure. 0 to 10.
	Electronic float64
	Storage    Storage
	// Steep is how steep the curve of Presentation is in its middle, 1 to 8; 0 is 4.
	Steep float64
	// Enhance adds to the image a share of its difference from its Gaussian, in turn: unsharp
	// masking, or with two of them a coarse form of multi-frequency processing.
	Enhance [2]Unsharp
	// Inverted stores 1 − v, as images of MONOCHROME1 are stored.
	Inverted bool
	// Noise is the standard deviation of the stored noise, the root of its mean square over the
	// image, of full scale: 0.001 to 0.2, or 0.
	Noise float64
	// Bits are those of a stored value, 8 to 16; 0 stores floats. The least stored value is 0 and
	// the greatest 1.2, and values outside are cut off.
	Bits int
	// Open is the part of the image that the collimator leaves open, in shares of its sides: x0,
	// y0, x1, y1. All 0: all of it. Around it one value is stored: the least, or with Bright the
	// greatest.
	Open   [4]float64
	Bright bool
}

// Unsharp is one step of edge enhancement: Gain, 0 to 3, times the difference from a Gaussian of
// Spread pixels, 0.5 to 8.
type Unsharp struct{ Gain, Spread float64 }

// Check says what of the detector cannot be for an image of w×h pixels, by the name of the field.
func (d Detector) Check(w, h int) error {
	within := func(v, least, most float64) bool { return v >= least && v <= most }
	switch {
	case w < leastDetector || h < leastDetector || w > maxDetectorSide || h > maxDetectorSide:
		return fmt.Errorf("detector: an image of %d×%d pixels, allowed are %d to %d a side", w, h, leastDetector,
			maxDetectorSide)
	case !within(d.Range, 0.5, 5):
		return fmt.Errorf("detector: Range %g is outside 0.5 to 5", d.Range)
	case !within(d.Blur, 0, MaxDetectorBlur):
		return fmt.Errorf("detector: Blur %g is outside 0 to %g", d.Blur, MaxDetectorBlur)
	case !within(d.Electronic, 0, 10):
		return fmt.Errorf("detector: Electronic %g is outside 0 to 10", d.Electronic)
	case d.Storage > Presentation:
		return fmt.Errorf("detector: there is no Storage %d", d.Storage)
	case d.Steep != 0 && !within(d.Steep, 1, 8):
		return fmt.Errorf("detector: Steep %g is outside 1 to 8", d.Steep)
	case d.Noise != 0 && !within(d.Noise, 0.001, 0.2):
		return fmt.Errorf("detector: Noise %g is outside 0.001 to 0.2", d.Noise)
	case d.Bits != 0 && (d.Bits < 8 || d.Bits > 16):
		return fmt.Errorf("detector: Bits %d is outside 8 to 16", d.Bits)
	}
	for _, u := range d.Enhance {
		if u.Gain != 0 && !(within(u.Gain, 0, 3) && within(u.Spread, 0.5, 8)) {
			return fmt.Errorf("detector: Enhance %g of spread %g is outside 0 to 3 of 0.5 to 8", u.Gain, u.Spread)
		}
	}
	if o := d.Open; o != ([4]float64{}) && !(within(o[0], 0, 1) && within(o[1], 0, 1) && within(o[2], o[0], 1) &&
		within(o[3], o[1], 1)) {
		return fmt.Errorf("detector: Open %g is no part of the image", o)
	}
	return nil
}

// Run takes one image, w×h values, by the detector. Its noise is drawn from rng.
func (d Detector) Run(img []float32, w, h int, rng *rand.Rand) (*Acquired, error) {
	if err := d.Check(w, h); err != nil {
		return nil, err
	}
	if len(img) != w*h {
		return nil, fmt.Errorf("detector: %d values of %d×%d pixels", len(img), w, h)
	}
	f := d.spectra()
	exposure := d.expose(img)
	mean := append([]float32(nil), exposure...)
	blurred(mean, w, h, f.psf)
	ground := 0.0
	for _, e := range mean {
		ground += float64(e)
	}
	// variance of the electronics, for one quantum at the open beam
	electronic := d.Electronic * ground / float64(len(mean)) * f.spread
	sigma := make([]float32, len(img))
	var quanta, white, sum float64
	for i, e := range mean {
		s := d.slope(float64(e))
		q, wh := s*s*float64(e)*f.quantum, s*s*electronic*f.white
		sigma[i] = float32(q + wh)
		quanta, white, sum = quanta+q, white+wh, sum+q+wh
	}
	a := &Acquired{Width: w, Height: h, Sigma: sigma, Rho: f.rho(quanta, white)}
	a.Truth = d.store(mean, w, h)
	if d.Noise == 0 || sum == 0 {
		clear(sigma)
		a.Noisy = append([]float32(nil), a.Truth...)
		return a, nil
	}
	// quanta of the open beam
	count := sum / float64(len(mean)) / (d.Noise * d.Noise)
	for i, v := range sigma {
		sigma[i] = float32(math.Sqrt(float64(v) / count))
	}
	for i, e := range exposure {
		exposure[i] = float32(poisson(float64(e)*count, rng) / count)
	}
	blurred(exposure, w, h, f.psf)
	if electronic > 0 {
		sd := math.Sqrt(electronic / count)
		for i := range exposure {
			exposure[i] += float32(sd * rng.NormFloat64())
		}
	}
	a.Noisy = d.store(exposure, w, h)
	return a, nil
}

// Signal returns what is stored of an image without any noise.
func (d Detector) Signal(img []float32, w, h int) []float32 {
	e := d.expose(img)
	blurred(e, w, h, gaussian(d.Blur))
	return d.store(e, w, h)
}

// Carried returns the standard deviation that white noise of the image itself, sigma at each of its
// pixels, has in what is stored.
func (d Detector) Carried(img, sigma []float32) []float32 {
	f := d.spectra()
	gain := math.Sqrt(f.quantum)
	out := make([]float32, len(img))
	for i, v := range img {
		e := math.Exp(-d.Range * float64(v))
		out[i] = float32(gain * math.Abs(d.slope(e)) * e * d.Range * float64(sigma[i]))
	}
	return out
}

// expose returns the exposure of each pixel, of the open beam.
func (d Detector) expose(img []float32) []float32 {
	out := make([]float32, len(img))
	for i, v := range img {
		out[i] = float32(math.Exp(-d.Range * float64(v)))
	}
	return out
}

// densest is what Logarithm stores of no exposure at all.
const densest = 1.3

// curve returns the value of an exposure.
func (d Detector) curve(e float64) float64 {
	switch d.Storage {
	case Root:
		return (1 - math.Sqrt(max(e, 0))) / (1 - math.Exp(-d.Range/2))
	case Linear:
		return (1 - e) / (1 - math.Exp(-d.Range))
	}
	u := -math.Log(max(e, math.Exp(-densest*d.Range))) / d.Range
	if d.Storage == Presentation {
		low, high := d.logistic(0), d.logistic(1)
		u = (d.logistic(u) - low) / (high - low)
	}
	return u
}

// slope is the derivative of curve.
func (d Detector) slope(e float64) float64 {
	switch e = max(e, math.Exp(-densest*d.Range)); d.Storage {
	case Root:
		return -0.5 / math.Sqrt(e) / (1 - math.Exp(-d.Range/2))
	case Linear:
		return -1 / (1 - math.Exp(-d.Range))
	}
	s := -1 / (d.Range * e)
	if d.Storage == Presentation {
		l := d.logistic(-math.Log(e) / d.Range)
		s *= d.steep() * l * (1 - l) / (d.logistic(1) - d.logistic(0))
	}
	return s
}

func (d Detector) steep() float64 {
	if d.Steep == 0 {
		return 4
	}
	return d.Steep
}

func (d Detector) logistic(u float64) float64 { return 1 / (1 + math.Exp(-d.steep()*(u-0.5))) }

// store turns exposures into stored values.
func (d Detector) store(exposure []float32, w, h int) []float32 {
	img := make([]float32, len(exposure))
	for i, e := range exposure {
		img[i] = float32(d.curve(float64(e)))
	}
	for _, u := range d.Enhance {
		if u.Gain == 0 {
			continue
		}
		low := append([]float32(nil), img...)
		blurred(low, w, h, gaussian(u.Spread))
		for i, v := range img {
			img[i] = v + float32(u.Gain)*(v-low[i])
		}
	}
	const most = 1.2
	steps := float64(int(1)<<d.Bits - 1)
	for i, v := range img {
		if d.Inverted {
			v = 1 - v
		}
		if d.Bits > 0 {
			v = float32(math.Round(min(max(float64(v)/most, 0), 1)*steps) / steps * most)
		}
		img[i] = v
	}
	d.collimate(img, w, h, most)
	return img
}

// collimate covers what is not open.
func (d Detector) collimate(img []float32, w, h int, most float32) {
	if d.Open == ([4]float64{}) {
		return
	}
	x0, x1 := int(d.Open[0]*float64(w)), int(math.Ceil(d.Open[2]*float64(w)))
	y0, y1 := int(d.Open[1]*float64(h)), int(math.Ceil(d.Open[3]*float64(h)))
	if !d.Bright {
		most = 0
	}
	for y := range h {
		for x := range w {
			if x < x0 || x >= x1 || y < y0 || y >= y1 {
				img[y*w+x] = most
			}
		}
	}
}

// spectra is what a detector's filters make of white noise.
type spectra struct {
	psf             []float64 // of the blur, taps from the centre on
	spread          float64   // share of the quanta's variance that is left after the blur
	quantum, white  float64   // variance of noise before and after the blur, in what is stored
	blurs, enhances [detectorFreqs][detectorFreqs]float64
}

// detectorFreqs are the frequencies of spectra along an axis, from 0 to half a cycle per pixel.
const detectorFreqs = 48

func detectorFreq(k int) float64 { return (float64(k) + 0.5) / (2 * detectorFreqs) }

func (d Detector) spectra() *spectra {
	s := &spectra{psf: gaussian(d.Blur)}
	blur := transfer(s.psf)
	var masks [len(d.Enhance)][detectorFreqs]float64
	for k, u := range d.Enhance {
		masks[k] = transfer(gaussian(u.Spread))
	}
	const n = detectorFreqs * detectorFreqs
	for v := range detectorFreqs {
		for u := range detectorFreqs {
			g, e := blur[u]*blur[v], 1.0
			for k, m := range d.Enhance {
				e *= 1 + m.Gain*(1-masks[k][u]*masks[k][v])
			}
			s.blurs[v][u], s.enhances[v][u] = g*g, e*e
			s.spread += g * g / n
			s.quantum += g * g * e * e / n
			s.white += e * e / n
		}
	}
	return s
}

// rho returns the autocorrelation of quanta's and electronics' noise of the given variances.
func (s *spectra) rho(quanta, white float64) (rho [5][5]float64) {
	if quanta+white == 0 {
		rho[0][0] = 1
		return rho
	}
	var cos [5][detectorFreqs]float64
	for lag := range cos {
		for k := range cos[lag] {
			cos[lag][k] = math.Cos(2 * math.Pi * float64(lag) * detectorFreq(k))
		}
	}
	for v := range detectorFreqs {
		for u := range detectorFreqs {
			p := s.enhances[v][u] * (quanta/s.quantum*s.blurs[v][u] + white/s.white)
			for dy := range rho {
				for dx := range rho[dy] {
					rho[dy][dx] += p * cos[dy][v] * cos[dx][u]
				}
			}
		}
	}
	all := rho[0][0]
	for dy := range rho {
		for dx := range rho[dy] {
			rho[dy][dx] /= all
		}
	}
	return rho
}

// gaussian returns the taps of a Gaussian of that spread from its centre on, of sum 1 over all.
func gaussian(spread float64) []float64 {
	if spread == 0 {
		return []float64{1}
	}
	taps := make([]float64, int(math.Ceil(3.5*spread))+1)
	sum := 0.0
	for k := range taps {
		taps[k] = math.Exp(-float64(k*k) / (2 * spread * spread))
		sum += 2 * taps[k]
	}
	sum -= taps[0]
	for k := range taps {
		taps[k] /= sum
	}
	return taps
}

// transfer is what a filter of these taps does to each frequency.
func transfer(taps []float64) (t [detectorFreqs]float64) {
	for k := range t {
		t[k] = taps[0]
		for d := 1; d < len(taps); d++ {
			t[k] += 2 * taps[d] * math.Cos(2*math.Pi*float64(d)*detectorFreq(k))
		}
	}
	return t
}

// blurred convolves an image with taps along both axes, in place. At its borders it is continued by
// its outermost pixels.
func blurred(img []float32, w, h int, taps []float64) {
	if len(taps) == 1 {
		return
	}
	reach := len(taps) - 1
	k := make([]float32, len(taps))
	for i, v := range taps {
		k[i] = float32(v)
	}
	row := make([]float32, w+2*reach)
	for y := range h {
		line := img[y*w:][:w]
		copy(row[reach:], line)
		for i := range reach {
			row[i], row[reach+w+i] = line[0], line[w-1]
		}
		for x := range line {
			at := row[x : x+2*reach+1]
			s := k[0] * at[reach]
			for d := 1; d <= reach; d++ {
				s += k[d] * (at[reach-d] + at[reach+d])
			}
			line[x] = s
		}
	}
	src := append([]float32(nil), img...)
	for y := range h {
		out := img[y*w:][:w]
		for x, v := range src[y*w:][:w] {
			out[x] = k[0] * v
		}
		for d := 1; d <= reach; d++ {
			above, below := src[max(y-d, 0)*w:][:w], src[min(y+d, h-1)*w:][:w]
			for x := range out {
				out[x] += k[d] * (above[x] + below[x])
			}
		}
	}
}
