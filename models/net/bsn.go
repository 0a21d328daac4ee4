package net

import (
	"fmt"
	"strconv"

	"github.com/diffdenoise/denoised/kernels"
)

// BSNConfig is the size of a blind-spot network.
type BSNConfig struct {
	// Channels at full size, at half and at a quarter.
	Channels [3]int
	Mix      int // channels of the pointwise layers at the end
}

// Graph returns the blind-spot network: it predicts every pixel from its
// surroundings without looking at the pixel itself, after Laine et al. 2019. One
// network that sees only its own row and those above runs on the image turned four
// ways; what it has seen is then moved away from the pixel by a shift, and the four
// directions are combined pointwise.
//
//	input 0:    y [H, W, 1], the scale of a Student
//	input 1, 2: the size of the hole along y and x, so that the network knows how
//	            far ahead it is to look
//	output:     [H, W, 1], the pixel as its surroundings have it
//
// BSNBatch fills inputs and shifts for a hole.
//
// H and W are multiples of 4.
func (c BSNConfig) Graph() *kernels.Graph {
	const vertical, horizontal, one = 0, 1, 2 // shifts
	above := func(name string, out int) kernels.Convolution {
		k := kernels.Conv3(name, out, kernels.LeakyReLU)
		k.Top = 2 // rows above and the own one
		return k
	}
	up := func(name string, out int) kernels.Convolution {
		k := above(name, out)
		k.Up = true
		return k
	}
	g := new(kernels.Graph)
	y := g.Input(1)
	var hole [2]kernels.Value // scale and offset of a layer, by shift
	hole[vertical] = g.Conv(scaling("hole", c.Channels[0]), g.Vector(holeCode))
	hole[horizontal] = g.Conv(scaling("hole", c.Channels[0]), g.Vector(holeCode))
	var seen [4]kernels.Value
	for turn := range seen {
		shift := vertical
		if turn%2 == 1 {
			shift = horizontal
		}
		// A halving joins a row with the one below. The shift before it keeps that
		// one out.
		x := g.Rotate(y, turn)                         // [H, W, 1]
		a := g.Conv(above("enc0.a", c.Channels[0]), x) //
		a = g.Conv(above("enc0.b", c.Channels[0]), a)  // [H, W, C0]
		b := g.Conv(kernels.Down2("down1", c.Channels[1], kernels.Linear), g.Shift(a, one))
		b = g.Conv(above("enc1", c.Channels[1]), b) // [H/2, W/2, C1]
		d := g.Conv(kernels.Down2("down2", c.Channels[2], kernels.Linear), g.Shift(b, one))
		d = g.Conv(above("enc2.a", c.Channels[2]), d)                    //
		d = g.Conv(above("enc2.b", c.Channels[2]), d)                    // [H/4, W/4, C2]
		b = g.Conv(up("dec1.a", c.Channels[1]), d, b)                    //
		b = g.Conv(above("dec1.b", c.Channels[1]), b)                    // [H/2, W/2, C1]
		a = g.Conv(film(up("dec0.a", c.Channels[0]), hole[shift]), b, a) //
		a = g.Conv(above("dec0.b", c.Channels[0]), a, x)                 // [H, W, C0]; the image itself is the best start
		seen[turn] = g.Rotate(g.Shift(a, shift), (4-turn)%4)
	}
	v := g.Conv(kernels.Conv1("mix.v", c.Mix, kernels.LeakyReLU), seen[0], seen[2])
	h := g.Conv(kernels.Conv1("mix.h", c.Mix, kernels.LeakyReLU), seen[1], seen[3])
	m := g.Conv(kernels.Conv1("mix.a", c.Mix, kernels.LeakyReLU), v, h)
	g.Conv(kernels.Conv1("mix.b", 1, kernels.Linear), m)
	return g
}

// scaling returns the layer that makes the scale and offset of another one's out
// channels (FiLM). It starts at no change.
func scaling(name string, out int) kernels.Convolution {
	k := kernels.Conv1(name+".film", 2*out, kernels.Linear)
	k.Start = 0
	return k
}

func film(k kernels.Convolution, by kernels.Value) kernels.Convolution {
	k.FiLM = by
	return k
}

// holeCode is the number of channels of the size of a hole: one for each.
const holeCode = 3

// BSNBatch returns what a blind-spot network is run on: count images w×h, one after
// the other, and a hole of sx×sy pixels, 1, 3 or 5 each, around every pixel.
func BSNBatch(y []float32, count, w, h, sx, sy int) *kernels.Batch {
	b := &kernels.Batch{Count: count, Height: h, Width: w, Inputs: [][]float32{y}, Shifts: []int{(sy + 1) / 2, (sx + 1) / 2, 1}}
	for _, size := range []int{sy, sx} {
		code := make([]float32, count*holeCode)
		for k := range count {
			code[k*holeCode+size/2] = 1
		}
		b.Inputs = append(b.Inputs, code)
	}
	return b
}

// String names the architecture, as weights files do.
func (c BSNConfig) String() string {
	return "denoised-bsn-v1 " + strconv.Itoa(c.Channels[0]) + "-" + strconv.Itoa(c.Channels[1]) + "-" + strconv.Itoa(c.Channels[2]) + "-" + strconv.Itoa(c.Mix)
}

// parseBSN reads what String wrote.
func parseBSN(s string) (c BSNConfig, err error) {
	if _, err = fmt.Sscanf(s, "denoised-bsn-v1 %d-%d-%d-%d", &c.Channels[0], &c.Channels[1], &c.Channels[2], &c.Mix); err != nil {
		return c, fmt.Errorf("weights are of format %.60q, want a blind-spot network", s)
	}
	return c, c.Graph().Err()
}
