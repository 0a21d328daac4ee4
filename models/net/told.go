package net

import (
	"math"

	"github.com/diffdenoise/denoised/models/noise"
)

// Told is what networks are told of the correlation of the noise: at the lags (1, 0), (0, 1),
// (2, 0), (0, 2), (3, 0), (0, 3) and (1, 1) along (x, y), all 0 if it is white or not known.
type Told [7]float32

// Tell returns what a Student is told of a correlation.
func Tell(c noise.Correlation) (t Told) {
	for i, lag := range [...][2]int{{1, 0}, {0, 1}, {2, 0}, {0, 2}, {3, 0}, {0, 3}, {1, 1}} {
		t[i] = float32(c.At(lag[0], lag[1]))
	}
	return t
}

// axes returns the correlation along x and along y, from lag 0 on.
func (t Told) axes() (x, y [4]float64) {
	for d := range 3 {
		x[d+1], y[d+1] = float64(t[2*d]), float64(t[2*d+1])
	}
	x[0], y[0] = 1, 1
	return x, y
}

// Turned returns what is told of an image whose axes are exchanged.
func (t Told) Turned() Told { return Told{t[1], t[0], t[3], t[2], t[5], t[4], t[6]} }

// Correlation returns a correlation of which t is told: that of a separable filter, but for the
// lag (1, 1).
func (t Told) Correlation() noise.Correlation {
	c := noise.Correlation{Trust: 1}
	x, y := t.axes()
	for dy, v := range y {
		for dx, u := range x {
			c.Rho[dy][dx] = u * v
		}
	}
	c.Rho[1][1] = float64(t[6])
	return c
}

// Cropped returns what is told where only the central 1/fx and 1/fy of the frequencies along x
// and y are left, as separable filters have it, and the share of the noise's standard deviation
// that is left.
func (t Told) Cropped(fx, fy float64) (cropped Told, share float64) {
	x, y := t.axes()
	cx, sx := croppedAxis(x, fx)
	cy, sy := croppedAxis(y, fy)
	for d := range 3 {
		cropped[2*d], cropped[2*d+1] = float32(cx[d+1]), float32(cy[d+1])
	}
	cropped[6] = cropped[0] * cropped[1]
	return cropped, math.Sqrt(sx * sy)
}

// croppedAxis integrates the power spectrum of a correlation over the frequencies that are left.
func croppedAxis(rho [4]float64, factor float64) (cropped [4]float64, share float64) {
	const n = 64 // frequencies, from 0 to half a cycle per pixel
	all := 0.0
	for k := range n {
		f := (float64(k) + 0.5) / (2 * n)
		s := 1.0
		for d := 1; d < len(rho); d++ {
			s += 2 * rho[d] * math.Cos(2*math.Pi*f*float64(d))
		}
		s = max(s, 0) // the lags beyond are missing
		all += s
		if f*factor > 0.5 {
			continue
		}
		for d := range cropped {
			cropped[d] += s * math.Cos(2*math.Pi*f*factor*float64(d))
		}
	}
	inside := cropped[0]
	if inside == 0 {
		return [4]float64{1}, 0
	}
	for d := range cropped {
		cropped[d] /= inside
	}
	return cropped, inside / all
}
