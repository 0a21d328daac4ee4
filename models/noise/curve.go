package noise

import (
	"math"

	"github.com/diffdenoise/denoised/internal/numeric"
)

// curve is the noise as a function of the local mean, linear between points.
type curve struct {
	mean, sigma, weight, old []float32
	scale                    float32 // of a mean above the first point, into segment
	segment                  [256]uint8
}

// index prepares at; to be called after every change of the points.
func (c *curve) index() {
	n := len(c.mean)
	if n < 2 {
		return
	}
	c.scale = float32(len(c.segment)) / (c.mean[n-1] - c.mean[0])
	k := 1
	for i := range c.segment {
		for k < n-1 && c.mean[k] < c.mean[0]+float32(i)/c.scale {
			k++
		}
		c.segment[i] = uint8(k)
	}
}

func (c *curve) at(m float32) float32 {
	n := len(c.mean)
	switch {
	case n == 0:
		return 0
	case !(m > c.mean[0]):
		return c.sigma[0]
	case !(m < c.mean[n-1]):
		return c.sigma[n-1]
	}
	k := int(c.segment[min(max(int((m-c.mean[0])*c.scale), 0), len(c.segment)-1)])
	for k > 1 && m < c.mean[k-1] { // the table's entry may lie a rounding error beyond
		k--
	}
	for c.mean[k] < m {
		k++
	}
	f := (m - c.mean[k-1]) / (c.mean[k] - c.mean[k-1])
	return c.sigma[k-1] + f*(c.sigma[k]-c.sigma[k-1])
}

func (b *buffers) signalCurve() *curve {
	keys := b.order()
	bins := min(max(len(keys)/perBin, 1), maxBins)
	c := &b.curve
	c.mean, c.sigma, c.weight = c.mean[:0], c.sigma[:0], c.weight[:0]
	b.flat = b.flat[:0]
	var near, far float64
	for k := range bins {
		part := keys[len(keys)*k/bins : len(keys)*(k+1)/bins]
		// the flattest ones; where the last of them has equals, as they come
		n := max(int(float64(len(part))*flatShare), min(len(part), minSamples))
		b.vals = b.vals[:0]
		for _, key := range part {
			b.vals = append(b.vals, b.samples[uint32(key)].grad)
		}
		limit, below := numeric.Nth(b.vals, n-1), 0
		for _, v := range b.vals[:n] {
			if v < limit {
				below++
			}
		}
		equal := n - below
		from := len(b.flat)
		mean := 0.0
		b.vals = b.vals[:0]
		for _, key := range part {
			p := b.samples[uint32(key)]
			if p.grad > limit {
				continue
			}
			if p.grad == limit {
				if equal == 0 {
					continue
				}
				equal--
			}
			b.flat = append(b.flat, p)
			b.vals = append(b.vals, abs(p.res))
			mean += float64(p.mean)
		}
		flat := b.flat[from:]
		sg := robust(b.vals)
		for j, p := range flat {
			b.vals[j] = abs(p.fine)
		}
		fine := robust(b.vals)
		near, far = near+float64(sg), far+float64(fine)
		sg = min(sg, fine)
		mu := float32(mean / float64(len(flat)))
		// bins closer than the noise are sorted by the noise itself: they are one
		if n := len(c.mean); n > 0 && mu-c.mean[n-1] < max(sg, c.sigma[n-1]) {
			a, b := c.weight[n-1], float32(len(flat))
			c.sigma[n-1] = float32(math.Sqrt(float64((a*c.sigma[n-1]*c.sigma[n-1] + b*sg*sg) / (a + b))))
			c.mean[n-1] = (a*c.mean[n-1] + b*mu) / (a + b)
			c.weight[n-1] += b
			continue
		}
		c.mean, c.sigma, c.weight = append(c.mean, mu), append(c.sigma, sg), append(c.weight, float32(len(flat)))
	}
	if n := len(c.sigma); n >= 3 && b.filters.near == 1 {
		c.old = append(c.old[:0], c.sigma...)
		for k := range n {
			p, q, r := c.old[max(k-1, 0)], c.old[k], c.old[min(k+1, n-1)]
			c.sigma[k] = (p + 2*q + r) / 4
		}
	}
	c.index()
	b.samples, b.flat = b.flat, b.samples
	// The map of the correlation may not hold here. The filters then disagree, and
	// the one that sees less is right.
	b.filters.preferFar = b.filters.far > 0 && far < near
	b.filters.disagree = b.filters.far > 0 && b.filters.near == 1 && far < 0.8*near
	return c
}

// order fills b.keys with the samples' places in the order of their local mean,
// equal ones as they come.
func (b *buffers) order() []uint64 {
	n := len(b.samples)
	b.keys, b.keys2 = numeric.Grow(b.keys, n), numeric.Grow(b.keys2, n)
	var count [4][256]int
	for i, s := range b.samples {
		k := math.Float32bits(s.mean)
		if k>>31 == 1 {
			k = ^k
		} else {
			k |= 1 << 31
		}
		b.keys[i] = uint64(k)<<32 | uint64(i)
		for d := range count {
			count[d][k>>(8*d)&255]++
		}
	}
	for d := range count {
		sum := 0
		for i, c := range count[d] {
			count[d][i], sum = sum, sum+c
		}
		for _, k := range b.keys {
			at := &count[d][k>>(32+8*d)&255]
			b.keys2[*at] = k
			*at++
		}
		b.keys, b.keys2 = b.keys2, b.keys
	}
	return b.keys
}

// toComplex turns the spread of a magnitude, which is smaller where there is
// little signal (0.655 of it in air), into that of the real and imaginary parts.
// That is what the networks are trained with. Images whose darkest parts are not
// well above zero, measured by their noise, are no magnitudes and stay as they are.
func (c *curve) toComplex() {
	if len(c.mean) == 0 || c.mean[0] < 1.5*c.sigma[0] {
		return
	}
	for k, s := range c.sigma {
		if s > 0 {
			c.sigma[k] *= koay(c.mean[k] / s)
		}
	}
}

// fromAir is toComplex where the complex noise is known from the air: it is that of
// all that is dark.
func (c *curve) fromAir(sigma float32) {
	const bright = 3 // standard deviations, where magnitudes have the whole noise
	for k, m := range c.mean {
		if m < bright*sigma {
			c.sigma[k] = sigma
		}
	}
}

// envelope cuts off what anatomy adds in some bins. The variance of noise is a
// constant plus a part in proportion to the signal, or to its square; anatomy only
// adds to that, here more and there less. So the law is the one that runs along the
// lower bins, and none lies far above it.
func (c *curve) envelope() {
	const (
		least   = 5    // bins, fewer give no law
		lower   = 0.4  // share of the bins that lie below the law
		outside = 1.25 // times the law is what a bin may have
	)
	n := len(c.mean)
	if n < least || c.mean[0] < 0 {
		return
	}
	base := min(c.sigma[0], c.sigma[1])
	base *= base
	best, law := float32(math.Inf(1)), [2]float32{}
	for p := range 2 {
		power := func(m float32) float32 {
			if p == 1 {
				return m * m
			}
			return m
		}
		c.old = c.old[:0]
		for k := 1; k < n; k++ {
			c.old = append(c.old, max(c.sigma[k]*c.sigma[k]-base, 0)/power(c.mean[k]))
		}
		b := numeric.Nth(c.old, int(lower*float64(len(c.old))))
		c.old = c.old[:0]
		for k := 1; k < n; k++ {
			c.old = append(c.old,
				abs(float32(math.Log(float64((c.sigma[k]*c.sigma[k]+1e-12*c.mean[n-1]*c.mean[n-1])/(base+b*power(c.mean[k])+1e-12*c.mean[n-1]*c.mean[n-1]))))))
		}
		if off := numeric.Nth(c.old, len(c.old)/2); off < best {
			best, law[p], law[1-p] = off, b, 0
		}
	}
	for k, m := range c.mean {
		c.sigma[k] = min(c.sigma[k], outside*float32(math.Sqrt(float64(base+law[0]*m+law[1]*m*m))))
	}
}

// level holds the curve to the noise of the darker places. Noise of long
// correlation has the frequencies of anatomy, and in tissue cannot be told from it.
func (c *curve) level() {
	const most = 1.3
	heaviest := 0
	for k := range (len(c.weight) + 1) / 2 {
		if c.weight[k] > c.weight[heaviest] {
			heaviest = k
		}
	}
	base := c.sigma[heaviest]
	for k, s := range c.sigma {
		c.sigma[k] = min(s, most*base)
	}
}
