// Package kernels describes networks, as graphs of convolutions and a few operations that move values
// (Graph), and what computes and trains them (Backend, GraphBackend). Package cpu computes them; package
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

// Fixed properties of the networks that Backend.Load takes.
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

	// Load prepares a network that predicts noise, see Network, for whole images: its graph is a head,
	// residual blocks and a tail, or more generally centred 3×3 convolutions each of which reads the one
	// before, with or without a ReLU, or with the residual of an earlier one. Its only input has NetIn
	// channels and up to MaxConstants more, its output NetOut. Any other graph is an error. The backend
	// copies what it needs.
	Load(g *Graph, params [][]float32) (Network, error)
}

// Network predicts noise at half resolution, on a Backend. Its methods are safe for concurrent use.
// For an image y and a map sigma of the noise's standard deviation, both [height, width]:
//
//  1. y and sigma are extended to an even height and width by repeating the last row and column;
//  2. channel 2*dy+dx of the graph's input is y[2i+dy, 2j+dx], channel 4 is SigmaScale times the mean
//     of sigma over that 2×2 cell, and the constants that follow are the same at every cell;
//  3. the graph runs;
//  4. the result is y[2i+dy, 2j+dx] minus channel 2*dy+dx of its output.
type Network interface {
	// Forward writes y minus the predicted noise to dst. All three slices are
	// [height, width], row major; dst may be y. Wrong lengths, sizes below 1 and
	// more than MaxPixels pixels are a *ShapeError. There are as many constants as
	// the graph's input has room for; ones left out at the end are 0.
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
