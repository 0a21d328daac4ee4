package models

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/diffdenoise/denoised/models/noise"
)

// MaxPixels is the most pixels of an Image.
const MaxPixels = 1 << 26

// Image is one slice: Width×Height values, row major, in any unit.
type Image struct {
	Width, Height int
	Pixels        []float32
	// Skip marks pixels that are no measurement (padding); nil means none. They
	// are never looked at, so they may hold anything, and come back bit for bit.
	Skip []bool
}

// Options steer Denoise.
type Options struct {
	// Strength blends: 0 returns the image bit for bit, 1 the network's result.
	Strength float64
}

// Result is a denoised slice.
type Result struct {
	Pixels []float32
	// Sigma is the median standard deviation of the noise that was found, in the
	// unit of the image; 0 if none was.
	Sigma float64
	// NativeWidth and NativeHeight are the size of the k-space that was measured,
	// smaller than the image if that is zero-filled.
	NativeWidth, NativeHeight int
	// Untouched says why the image came back as it was; empty if it did not.
	Untouched string
}

// Reasons of Result.Untouched.
const (
	UntouchedStrength = "strength is 0"
	UntouchedNoNoise  = "no noise found"
	UntouchedEmpty    = "nothing but air"
)

// forwarder is the network; Student is one.
type forwarder interface {
	Forward(dst, y, sigma []float32, width, height int) error
}

// Denoise takes the noise off one slice on one core:
//
//  1. the scale is set so that the 99.9th percentile of the measured pixels is 1;
//  2. a zero-filled image goes to its native k-space grid (noise.Detect), where
//     its noise is white;
//  3. noise.Estimate measures the noise there and the network predicts it;
//  4. the prediction is held to the energy that noise can have (restrain);
//  5. it is zero-filled back and taken off the original image, so
//     what lies outside the measured k-space stays as it was;
//  6. out = y + strength·(denoised − y).
//
// Skipped pixels and blanked air (noise.Outside) are returned bit for bit, all
// others stay between the least and the greatest measured value of the slice.
// The result is finite and the same at every call. A pixel that is not finite
// and not skipped is an error, as are sizes that do not fit and a strength
// outside 0 to 1. The image is not changed. Safe for concurrent use.
func (m *Model) Denoise(ctx context.Context, img Image, o Options) (*Result, error) {
	return denoise(ctx, m.Student(), img, o)
}

func denoise(ctx context.Context, net forwarder, img Image, o Options) (*Result, error) {
	w, h := img.Width, img.Height
	switch {
	case w < 1 || h < 1 || w > MaxPixels/h:
		return nil, fmt.Errorf("denoise: %d×%d pixels are outside 1 to %d", w, h, MaxPixels)
	case len(img.Pixels) != w*h || img.Skip != nil && len(img.Skip) != w*h:
		return nil, fmt.Errorf("denoise %d×%d pixels: %d values, %d mask values", w, h, len(img.Pixels), len(img.Skip))
	case !(o.Strength >= 0 && o.Strength <= 1):
		return nil, fmt.Errorf("denoise: strength %g is outside 0 to 1", o.Strength)
	}
	for i, v := range img.Pixels {
		if !finite(v) && (img.Skip == nil || !img.Skip[i]) {
			return nil, fmt.Errorf("denoise: pixel (%d, %d) is not finite", i%w, i/w)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	res := &Result{Pixels: slices.Clone(img.Pixels), NativeWidth: w, NativeHeight: h}
	if o.Strength == 0 {
		res.Untouched = UntouchedStrength
		return res, nil
	}
	y, outside, scale, least, most := prepare(img)
	if scale == 0 {
		res.Untouched = UntouchedEmpty
		return res, nil
	}
	grid, err := noise.Detect(y, w, h)
	if err != nil {
		return nil, err
	}
	res.NativeWidth, res.NativeHeight = grid.NativeWidth, grid.NativeHeight
	native := grid.Crop(y)
	nw, nh := grid.NativeWidth, grid.NativeHeight
	sigma, err := noise.Estimate(native, nw, nh, grid.Mask(outside))
	if err != nil {
		return nil, err
	}
	res.Sigma = sigma.Median * float64(scale)
	if sigma.Median == 0 {
		res.Untouched = UntouchedNoNoise
		return res, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	clean := make([]float32, nw*nh)
	if err := net.Forward(clean, native, sigma.Sigma, nw, nh); err != nil {
		return nil, err
	}
	for i, v := range clean {
		if !finite(v) {
			return nil, fmt.Errorf("denoise: the network's result is not finite at (%d, %d)", i%nw, i/nw)
		}
		clean[i] = native[i] - v
	}
	restrain(clean, sigma.Sigma, nw, nh)
	removed := grid.Fill(clean)
	for i := range res.Pixels {
		if outside[i] {
			continue
		}
		v := float64(img.Pixels[i]) - o.Strength*float64(removed[i])*float64(scale)
		res.Pixels[i] = min(max(float32(v), least), most)
	}
	return res, nil
}

// Bounds of what is taken off.
const (
	mostRemoved   = 2.5 // of one pixel, in standard deviations of its noise
	windowRemoved = 2   // half the window over which the energy is compared
)

// restrain holds the removed part down to what noise can be. Noise of standard
// deviation sigma has the mean square sigma²; where the network takes off more,
// the rest is anatomy, so the removed part is scaled down to that energy over a
// 5×5 window, and no pixel changes by more than mostRemoved times its noise.
func restrain(removed, sigma []float32, w, h int) {
	energy, tmp := make([]float32, w*h), make([]float32, w*h)
	for y := range h { // sums along rows, then columns
		row := removed[y*w:][:w]
		for x := range row {
			lo, hi := max(x-windowRemoved, 0), min(x+windowRemoved, w-1)
			s := float32(0)
			for _, v := range row[lo : hi+1] {
				s += v * v
			}
			tmp[y*w+x] = s / float32(hi-lo+1)
		}
	}
	for y := range h {
		lo, hi := max(y-windowRemoved, 0), min(y+windowRemoved, h-1)
		out := energy[y*w:][:w]
		for j := lo; j <= hi; j++ {
			for x, v := range tmp[j*w:][:w] {
				out[x] += v
			}
		}
		for x := range out {
			out[x] /= float32(hi - lo + 1)
		}
	}
	for i, v := range removed {
		s := sigma[i]
		v = min(max(v, -mostRemoved*s), mostRemoved*s)
		if e := energy[i]; e > s*s {
			v *= s * s / e
		}
		removed[i] = v
	}
}

func finite(v float32) bool {
	f := float64(v)
	return !math.IsNaN(f) && !math.IsInf(f, 0)
}

// prepare returns the image in the network's scale with skipped pixels set to
// the least value, the pixels that must not change, the scale, and the range of
// the measured values. scale is 0 if there is nothing to denoise.
func prepare(img Image) (y []float32, outside []bool, scale, least, most float32) {
	w, h := img.Width, img.Height
	values := make([]float32, 0, w*h)
	for i, v := range img.Pixels {
		if img.Skip == nil || !img.Skip[i] {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return nil, nil, 0, 0, 0
	}
	slices.Sort(values)
	least, most = values[0], values[len(values)-1]
	if scale = values[int(0.999*float64(len(values)-1))]; scale <= 0 {
		scale = most // less than one pixel in a thousand is not air
	}
	if scale <= 0 || least == most {
		return nil, nil, 0, least, most
	}
	y = make([]float32, w*h)
	for i, v := range img.Pixels {
		if img.Skip != nil && img.Skip[i] {
			v = least
		}
		y[i] = v / scale
	}
	return y, noise.Outside(y, w, h, img.Skip), scale, least, most
}
