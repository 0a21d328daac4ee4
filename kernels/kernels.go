// Package kernels describes the one operation family that every network here
// is made of, a 3×3 convolution with bias, optional ReLU and optional residual
// (Conv), and a whole network of them (Net). Package cpu computes them; package
// kernelstest holds any Backend to the same list of tests.
package kernels

import (
	"errors"
	"fmt"
	"math"
)

// Limits of what a backend accepts. They bound what a weights file or an image
// can make a backend allocate.
const (
	MaxChannels = 1024    // of one layer
	MaxLayers   = 512     // of one network
	MaxPixels   = 1 << 26 // of one image, 8192 × 8192
)

// Errors of a backend on a device of its own, for errors.Is. Neither is the caller's
// fault, and the same call succeeds on the CPU.
var (
	// ErrMemory says that the device has too little memory for this call. Other
	// calls may have enough.
	ErrMemory = errors.New("out of device memory")
	// ErrDevice says that the device is of no use to this process any more. Every
	// later call of the backend, and of all that was made by it, says so, too.
	ErrDevice = errors.New("device lost")
)

// Conv is one 3×3 convolution: cross-correlation (no kernel flip), stride 1,
// zero padding 1. Per output channel it computes
//
//	y = relu(bias + Σ w·x) + residual
//
// where the ReLU and the residual are optional.
type Conv struct {
	In, Out int       // channels, 1 to MaxChannels
	Weights []float32 // [Out, In, 3, 3], the order of PyTorch
	Bias    []float32 // [Out]
	ReLU    bool      // clamp at zero before the residual is added
}

// Layer is a Conv within a Net.
type Layer struct {
	Conv
	// Skip, if not 0, adds as residual the output of the layer Skip places
	// before this one: 1 adds the layer's own input, 2 closes a block of two
	// convolutions. The channels of the two must agree.
	Skip int
}

// Net is a network that predicts noise at half resolution. For an image y and a
// map sigma of the noise's standard deviation, both [H, W]:
//
//  1. y and sigma are extended to even H, W by repeating the last row and column;
//  2. channel 2*dy+dx of the first layer's input is y[2i+dy, 2j+dx], channel 4
//     is SigmaScale times the mean of sigma over that 2×2 cell, and the Constants
//     that follow are the same at every cell;
//  3. the layers run in order;
//  4. the output is y[2i+dy, 2j+dx] minus channel 2*dy+dx of the last layer.
//
// So the first layer has NetIn + Constants input channels and the last NetOut output
// channels.
type Net struct {
	Constants int // 0 to MaxConstants
	Layers    []Layer
}

// Fixed properties of a Net.
const (
	NetIn      = 5
	NetOut     = 4
	SigmaScale = 10
	// MaxConstants is the most input channels that are the same at every pixel.
	MaxConstants = 12
)

// Backend computes on one device. Its methods are safe for concurrent use.
type Backend interface {
	// Name tells backends apart in logs and tests, e.g. "cpu/avx2".
	Name() string

	// Conv3x3 convolves a whole image. src is [height, width, c.In], dst and
	// residual are [height, width, c.Out]; a nil residual adds nothing. dst may
	// be residual, but not overlap it otherwise, nor src at all.
	// Wrong lengths are a *ShapeError.
	Conv3x3(dst, src, residual []float32, height, width int, c *Conv) error

	// Load prepares a network. The backend copies what it needs of net.
	Load(net *Net) (Network, error)
}

// Network is a Net on a Backend. Its methods are safe for concurrent use.
type Network interface {
	// Forward writes y minus the predicted noise to dst. All three slices are
	// [height, width], row major; dst may be y. Wrong lengths, sizes below 1 and
	// more than MaxPixels pixels are a *ShapeError. There are as many constants as
	// the Net says; ones left out at the end are 0.
	Forward(dst, y, sigma []float32, width, height int, constants ...float32) error

	// Trace is Forward that also returns the output of every layer, as
	// [channels, ceil(height/2), ceil(width/2)]. It is for tests.
	Trace(dst, y, sigma []float32, width, height int, constants ...float32) ([][]float32, error)
}

// ShapeError is the error for buffers and sizes that do not fit together.
type ShapeError struct {
	Op        string // what was asked for, e.g. "forward"
	What      string // which argument
	Got, Want int
}

func (e *ShapeError) Error() string {
	return fmt.Sprintf("%s: %s is %d, want %d", e.Op, e.What, e.Got, e.Want)
}

// Check reports the first inconsistency of c, including weights that are not
// finite.
func (c *Conv) Check() error {
	if c.In < 1 || c.In > MaxChannels || c.Out < 1 || c.Out > MaxChannels {
		return fmt.Errorf("convolution has %d input and %d output channels, allowed are 1 to %d", c.In, c.Out, MaxChannels)
	}
	if want := c.Out * c.In * 9; len(c.Weights) != want {
		return &ShapeError{"convolution", "number of weights", len(c.Weights), want}
	}
	if len(c.Bias) != c.Out {
		return &ShapeError{"convolution", "number of biases", len(c.Bias), c.Out}
	}
	for _, values := range [][]float32{c.Weights, c.Bias} {
		for _, v := range values {
			if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
				return fmt.Errorf("convolution has a weight that is not finite")
			}
		}
	}
	return nil
}

// Check reports the first inconsistency of n.
func (n *Net) Check() error {
	if len(n.Layers) < 1 || len(n.Layers) > MaxLayers {
		return fmt.Errorf("network has %d layers, allowed are 1 to %d", len(n.Layers), MaxLayers)
	}
	if n.Constants < 0 || n.Constants > MaxConstants {
		return &ShapeError{"network", "number of constants", n.Constants, MaxConstants}
	}
	in := NetIn + n.Constants
	for i := range n.Layers {
		l := &n.Layers[i]
		if err := l.Check(); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if l.In != in {
			return fmt.Errorf("layer %d: %w", i, &ShapeError{"network", "number of input channels", l.In, in})
		}
		if l.Skip < 0 || l.Skip > i {
			return fmt.Errorf("layer %d: residual from %d layers before", i, l.Skip)
		}
		if l.Skip > 0 && n.Layers[i-l.Skip].Out != l.Out {
			return fmt.Errorf("layer %d: %w", i, &ShapeError{"network", "channels of the residual", n.Layers[i-l.Skip].Out, l.Out})
		}
		in = l.Out
	}
	if in != NetOut {
		return &ShapeError{"network", "number of output channels", in, NetOut}
	}
	return nil
}

// FLOP returns the floating-point operations of one Forward, two per
// multiply-add, without padding or any other overhead of a backend.
func (n *Net) FLOP(width, height int) float64 {
	perPixel := 0.0
	for i := range n.Layers {
		perPixel += 18 * float64(n.Layers[i].In) * float64(n.Layers[i].Out)
	}
	return perPixel * float64((width+1)/2) * float64((height+1)/2)
}

// CheckImage reports sizes and lengths that Forward refuses; backends share it.
func CheckImage(op string, dst, y, sigma []float32, width, height int) error {
	switch {
	case width < 1:
		return &ShapeError{op, "width", width, 1}
	case height < 1:
		return &ShapeError{op, "height", height, 1}
	case width > MaxPixels/height:
		return &ShapeError{op, "width", width, MaxPixels / height}
	}
	for _, b := range []struct {
		what string
		got  int
	}{{"length of the output", len(dst)}, {"length of the image", len(y)}, {"length of the noise map", len(sigma)}} {
		if b.got != width*height {
			return &ShapeError{op, b.what, b.got, width * height}
		}
	}
	return nil
}
