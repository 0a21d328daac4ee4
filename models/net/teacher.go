package net

import (
	"fmt"
	"math"

	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/models/diffusion"
)

// TeacherConfig is the size of a diffusion network.
type TeacherConfig struct {
	// Condition is the number of channels that the network is given beside the
	// state of the diffusion: TeacherCondition, or WrittenCondition.
	Condition int
	// Channels at full size, at half and at a quarter.
	Channels [3]int
	Code     int // channels of the code of time inside the network
}

// TimeCode is the number of channels of EncodeTime.
const TimeCode = 16

// Graph returns the conditional diffusion network, a plain U-Net whose layers are
// scaled and shifted by the time (FiLM, Perez et al. 2018):
//
//	input 0: StateInput of x_t [H, W, 1], the state of the diffusion
//	input 1: the condition [H, W, Condition]
//	input 2: EncodeTime(t) [TimeCode]
//	output:  v [H, W, 1] (Salimans and Ho 2022)
//
// H and W are multiples of 4.
func (c TeacherConfig) Graph() *kernels.Graph {
	g := new(kernels.Graph)
	x, condition := g.Input(1), g.Input(c.Condition)
	t := g.Conv(kernels.Conv1("time.a", c.Code, kernels.LeakyReLU), g.Vector(TimeCode))
	t = g.Conv(kernels.Conv1("time.b", c.Code, kernels.LeakyReLU), t)
	layer := func(k kernels.Convolution, from ...kernels.Value) kernels.Value {
		return g.Conv(film(k, g.Conv(scaling(k.Name, k.Out), t)), from...)
	}
	conv := func(name string, out int, from ...kernels.Value) kernels.Value {
		return layer(kernels.Conv3(name, out, kernels.LeakyReLU), from...)
	}
	up := func(name string, out int, low, skip kernels.Value) kernels.Value {
		k := kernels.Conv3(name, out, kernels.LeakyReLU)
		k.Up = true
		return layer(k, low, skip)
	}
	a := conv("enc0.a", c.Channels[0], x, condition)
	a = conv("enc0.b", c.Channels[0], a) // [H, W, C0]
	b := g.Conv(kernels.Down2("down1", c.Channels[1], kernels.Linear), a)
	b = conv("enc1.a", c.Channels[1], b)
	b = conv("enc1.b", c.Channels[1], b) // [H/2, W/2, C1]
	d := g.Conv(kernels.Down2("down2", c.Channels[2], kernels.Linear), b)
	d = conv("enc2.a", c.Channels[2], d)
	d = conv("enc2.b", c.Channels[2], d) // [H/4, W/4, C2]
	b = up("dec1.a", c.Channels[1], d, b)
	b = conv("dec1.b", c.Channels[1], b) // [H/2, W/2, C1]
	a = up("dec0.a", c.Channels[0], b, a)
	a = conv("dec0.b", c.Channels[0], a) // [H, W, C0]
	last := kernels.Conv3("out", 1, kernels.Linear)
	last.Start = 0
	g.Conv(last, a)
	return g
}

// StateInput writes the state x at the time t as the network is given it: times the share
// α(t) of the image in it. At t = 1, where sampling begins, the state is noise that says
// nothing, and the network need not learn to ignore it.
func StateInput(dst, x []float32, t float64) {
	a := float32(diffusion.Alpha(t))
	for i, v := range x {
		dst[i] = a * v
	}
}

// EncodeTime writes the code of the time t, 0 to 1, to dst: sines and cosines of
// rising frequency.
func EncodeTime(dst []float32, t float64) {
	for i := range TimeCode / 2 {
		s, c := math.Sincos(math.Pi * t * math.Pow(1.7, float64(i)))
		dst[2*i], dst[2*i+1] = float32(s), float32(c)
	}
}

// String names the architecture, as weights files do.
func (c TeacherConfig) String() string {
	return fmt.Sprintf("denoised-diffusion-v2 %d %d-%d-%d %d", c.Condition, c.Channels[0], c.Channels[1], c.Channels[2], c.Code)
}

// parseTeacher reads what String wrote.
func parseTeacher(s string) (c TeacherConfig, err error) {
	if _, err = fmt.Sscanf(s, "denoised-diffusion-v2 %d %d-%d-%d %d", &c.Condition, &c.Channels[0], &c.Channels[1], &c.Channels[2], &c.Code); err != nil {
		return c, fmt.Errorf("weights are of format %.60q, want a diffusion network", s)
	}
	return c, c.Graph().Err()
}

// Channels of Condition.
const (
	// TeacherCondition is the leak-free form, which High is made for: the network is
	// trained on pairs of images with independent noise, so it may be given the noisy
	// image itself, and counts from what the student makes of it.
	TeacherCondition = 6
	// WrittenCondition is the method as arXiv 2504.00264 writes it: the network is
	// given the blind-spot prediction alone and learns the distribution of the noisy
	// image around it.
	WrittenCondition = 1
)
