package cpu

import "github.com/diffdenoise/denoised/kernels"

// constants are the weights of the first layer for those of its inputs that are the
// same at every pixel. Together they are a bias, which differs along the border
// because the padding is zero.
type constants struct {
	count, out, stride int       // stride channels of a bias, out of them used
	weights            []float32 // [out][count][9]
	bias               []float32 // [out]
}

// borders is the number of combinations of sides at which a pixel can lie.
const borders = 16

// border says at which sides of an image [h, w] a pixel lies.
func border(r, h, c, w int) int {
	b := 0
	for k, at := range [4]bool{r == 0, r == h-1, c == 0, c == w-1} {
		if at {
			b |= 1 << k
		}
	}
	return b
}

// take keeps the weights of the last count inputs of a convolution and returns it
// without them.
func (k *constants) take(c *kernels.Conv, count int) *kernels.Conv {
	k.count, k.out = count, c.Out
	if count == 0 {
		return c
	}
	rest := *c
	rest.In -= count
	rest.Weights = nil
	k.bias = append([]float32(nil), c.Bias...)
	for o := range c.Out {
		w := c.Weights[o*c.In*9:][:c.In*9]
		rest.Weights = append(rest.Weights, w[:rest.In*9]...)
		k.weights = append(k.weights, w[rest.In*9:]...)
	}
	return &rest
}

// biases returns the bias of the first layer at each border, [borders][stride], in
// room if it is large enough, or nil if there are no constants. Those that are not
// given are 0.
func (k *constants) biases(room, given []float32) []float32 {
	if k.count == 0 {
		return nil
	}
	if room == nil {
		room = aligned[float32](borders * k.stride)
	}
	for o := range k.out {
		var taps [9]float64
		for i, v := range given {
			for t, w := range k.weights[(o*k.count+i)*9:][:9] {
				taps[t] += float64(w) * float64(v)
			}
		}
		for b := range borders {
			sum := float64(k.bias[o])
			for t, v := range taps {
				top, bottom, left, right := t/3 == 0 && b&1 != 0, t/3 == 2 && b&2 != 0, t%3 == 0 && b&4 != 0,
					t%3 == 2 && b&8 != 0
				if !(top || bottom || left || right) {
					sum += v
				}
			}
			room[b*k.stride+o] = float32(sum)
		}
	}
	return room
}
