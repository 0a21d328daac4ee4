package simulate

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Leaves draws a w×h image without noise of which everything is known: a dead-leaves image
// (Lee, Mumford, Huang 2001), in which shapes of random size and brightness lie upon each other.
// Its edges, even areas and sizes are like those of natural images, and networks learn from it
// what even areas are (Achddou, Gousseau, Ladjal 2021). Half of the images are a body in dark
// air, as in a coil; a third hold little but a few parts, like a phantom. Values are 0 to 1, row
// major.
func Leaves(w, h int, rng *rand.Rand) []float32 {
	img := make([]float32, w*h)
	texture := leafTexture(w, h, rng)
	side := float64(min(w, h))
	body := rng.IntN(2) == 0
	least, most, count := 1.2, 0.35*side, 60+rng.IntN(300)
	if rng.IntN(3) == 0 { // few parts
		least, count = 3, 4+rng.IntN(16)
	}
	ground := leaf{x: float64(w) / 2, y: float64(h) / 2, a: 2 * side, b: 2 * side}
	if body {
		ground.a, ground.b = side*(0.3+0.25*rng.Float64()), side*(0.3+0.25*rng.Float64())
		ground.x += 0.1 * side * rng.NormFloat64()
		ground.y += 0.1 * side * rng.NormFloat64()
	}
	ground.look(rng)
	ground.draw(img, texture, w, h)
	inside := img
	if body {
		inside = make([]float32, len(img)) // where shapes show: all of them lie in the body
		one := ground
		one.value, one.slopeX, one.slopeY, one.rough = 1, 0, 0, 0
		one.draw(inside, texture, w, h)
	}
	for range count {
		r := 1 / (1/most + (1/least-1/most)*rng.Float64()) // radii fall off with their square
		l := leaf{x: float64(w) * rng.Float64(), y: float64(h) * rng.Float64(), a: r, b: r * (0.25 + 0.75*rng.Float64())}
		switch u := rng.Float64(); {
		case u < 0.15: // a vessel or a septum
			l.a, l.b = min(r*6, side), 0.7+1.5*rng.Float64()
		case u < 0.4:
			l.box = true
		}
		turn := 2 * math.Pi * rng.Float64()
		l.sin, l.cos = math.Sincos(turn)
		l.look(rng)
		if !body {
			l.draw(img, texture, w, h)
			continue
		}
		l.within = inside
		l.draw(img, texture, w, h)
	}
	shade(img, w, h, rng)
	brightest := slices.Max(img)
	for i := range img {
		img[i] /= max(brightest, 1e-3)
	}
	return img
}

// leaf is one shape of Leaves: an ellipse or a box with half axes a, b, turned.
type leaf struct {
	x, y, a, b     float64
	sin, cos       float64
	box            bool
	soft           float64 // width of the edge, pixels
	value          float64
	slopeX, slopeY float64 // of the value, per pixel
	rough          float64 // strength of the texture
	within         []float32
}

// look draws what the inside of the shape looks like.
func (l *leaf) look(rng *rand.Rand) {
	if l.sin == 0 && l.cos == 0 {
		l.cos = 1
	}
	l.value, l.soft = rng.Float64(), 0.6+1.2*rng.Float64()*rng.Float64()
	if rng.IntN(2) == 0 {
		l.slopeX = 0.2 * rng.NormFloat64() * l.value / (l.a + l.b)
		l.slopeY = 0.2 * rng.NormFloat64() * l.value / (l.a + l.b)
	}
	if rng.IntN(3) == 0 {
		l.rough = 0.15 * l.value * rng.Float64()
	}
}

// draw lays the shape upon an image.
func (l *leaf) draw(img, texture []float32, w, h int) {
	reach := math.Hypot(l.a, l.b) + l.soft
	x0, x1 := max(int(l.x-reach), 0), min(int(l.x+reach)+2, w)
	y0, y1 := max(int(l.y-reach), 0), min(int(l.y+reach)+2, h)
	for y := y0; y < y1; y++ {
		for x := x0; x < x1; x++ {
			dx, dy := float64(x)-l.x, float64(y)-l.y
			u, v := math.Abs(l.cos*dx+l.sin*dy), math.Abs(l.cos*dy-l.sin*dx)
			depth := min(l.a-u, l.b-v) // into the shape, pixels
			if !l.box {
				// along the ray from the middle: exact on the axes, harder between them
				q := math.Hypot(u/l.a, v/l.b)
				if q > 0 {
					depth = (1 - q) * math.Hypot(u, v) / q
				} else {
					depth = l.b
				}
			}
			cover := min(max(depth/l.soft+0.5, 0), 1)
			if cover == 0 {
				continue
			}
			i := y*w + x
			if l.within != nil {
				cover *= float64(l.within[i])
			}
			value := l.value + l.slopeX*dx + l.slopeY*dy + l.rough*float64(texture[i])
			img[i] += float32(cover * (max(value, 0) - float64(img[i])))
		}
	}
}

// leafTexture is a field of standard deviation 1, smooth over one to four pixels.
func leafTexture(w, h int, rng *rand.Rand) []float32 {
	field := make([]float64, w*h)
	for i := range field {
		field[i] = rng.NormFloat64()
	}
	spread := 0.5 + 1.5*rng.Float64()
	smooth(field, w, h, spread)
	sq := 0.0
	for _, v := range field {
		sq += v * v
	}
	scale := 1 / math.Sqrt(max(sq/float64(len(field)), 1e-12))
	out := make([]float32, len(field))
	for i, v := range field {
		out[i] = float32(scale * v)
	}
	return out
}

// shade multiplies an image as coils near one side of it do: by up to e^±0.5 from side to side.
func shade(img []float32, w, h int, rng *rand.Rand) {
	ax, ay := 0.4*rng.NormFloat64(), 0.4*rng.NormFloat64()
	ax, ay = min(max(ax, -1), 1), min(max(ay, -1), 1)
	for y := range h {
		fy := math.Exp(ay * (float64(y)/float64(h) - 0.5))
		for x := range w {
			img[y*w+x] *= float32(fy * math.Exp(ax*(float64(x)/float64(w)-0.5)))
		}
	}
}
