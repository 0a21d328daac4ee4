package eval

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/diffdenoise/denoised/models"
)

// Input is what a Method denoises: one slice of Width×Height pixels, row major, 1
// = 99.9th percentile of its volume.
type Input struct {
	Width, Height int
	Pixels        []float32 // not to be changed

	// What follows is for the classical methods, which get to know what the networks
	// must find out.

	// Sigma is the true standard deviation of the noise at every pixel.
	Sigma []float32
	// Strength is one of the method's Strengths.
	Strength float64
}

// Method is one column of a table: a denoiser.
type Method struct {
	Name string
	// Run returns the denoised pixels in memory of their own, and what a quality gate said
	// of them if there is one. It is called by several goroutines.
	Run func(ctx context.Context, in Input) (*models.Result, error)
	// Strengths are tried on slices that are not scored; the one with the best PSNR,
	// whole slices and tissue counting alike, is used. The first one is used where there
	// are no such slices. nil: the method needs none.
	Strengths []float64
	// Magnitude says that the method is for magnitude images only.
	Magnitude bool
}

// FromModel is the method that a function of a model makes, such as Model.Denoise
// with its options set. It is given the noisy pixels and nothing else.
func FromModel(name string, denoise func(ctx context.Context, img models.Image) (*models.Result, error)) Method {
	return Method{Name: name, Run: func(ctx context.Context, in Input) (*models.Result, error) {
		return denoise(ctx, models.Image{Width: in.Width, Height: in.Height, Pixels: in.Pixels})
	}}
}

// filter is a classical method.
type filter func(ctx context.Context, in Input) ([]float32, error)

func (f filter) run(ctx context.Context, in Input) (*models.Result, error) {
	px, err := f(ctx, in)
	if err != nil {
		return nil, err
	}
	return &models.Result{Pixels: px}, nil
}

// estimated is the filter as anybody can use it: told one standard deviation for the
// whole slice, which it estimates itself, and a strength that is the same for everything.
func (f filter) estimated(strength float64) func(context.Context, Input) (*models.Result, error) {
	return func(ctx context.Context, in Input) (*models.Result, error) {
		in.Sigma, in.Strength = make([]float32, len(in.Pixels)), strength
		if err := in.check(); err != nil {
			return nil, err
		}
		sigma := float32(waveletNoise(in.Pixels, in.Width, in.Height))
		for i := range in.Sigma {
			in.Sigma[i] = sigma
		}
		return f.run(ctx, in)
	}
}

// waveletNoise estimates the standard deviation of white noise: the median size of the
// finest diagonal coefficients of Haar's wavelet by 0.6745 (Donoho and Johnstone,
// Biometrika 81 (1994) 425). What is exactly 0 is blanked air and does not count.
func waveletNoise(px []float32, w, h int) float64 {
	var sizes []float32
	for y := 0; y+1 < h; y += 2 {
		for x := 0; x+1 < w; x += 2 {
			i := y*w + x
			if d := px[i] - px[i+1] - px[i+w] + px[i+w+1]; d != 0 {
				sizes = append(sizes, max(d, -d)/2)
			}
		}
	}
	if len(sizes) == 0 {
		return 0
	}
	slices.Sort(sizes)
	return float64(sizes[len(sizes)/2]) / 0.6745
}

// Noisy is the name of the first row of every table: the input itself.
const Noisy = "noisy"

// Classical returns the methods to beat. The estimated ones find out by themselves what
// the networks must find out, too. The others are told the true noise at every pixel, and
// their one free number is tuned for every kind of noise on slices that are not scored.
func Classical() []Method {
	means, rician, variation := filter(nlm(false)), filter(nlm(true)), filter(totalVariation)
	// the first is the best for most images
	similar, smooth := []float64{0.8, 0.15, 0.3, 0.45, 0.6, 1, 1.4, 2}, []float64{0.4, 0.1, 0.2, 0.6, 0.8, 1, 1.4, 2}
	return []Method{
		{Name: "non-local means, estimated", Run: means.estimated(similar[0])},
		{Name: "total variation, estimated", Run: variation.estimated(smooth[0])},
		{Name: "non-local means", Run: means.run, Strengths: similar},
		{Name: "non-local means, Rician", Run: rician.run, Strengths: similar, Magnitude: true},
		{Name: "total variation", Run: variation.run, Strengths: smooth},
	}
}

func (in Input) check() error {
	if in.Width < 1 || in.Height < 1 || in.Width > models.MaxPixels/in.Height || len(in.Pixels) != in.Width*in.Height || len(in.Sigma) != len(in.Pixels) {
		return fmt.Errorf("denoise %d×%d pixels: %d values, %d of the noise", in.Width, in.Height, len(in.Pixels), len(in.Sigma))
	}
	if !(in.Strength > 0) {
		return fmt.Errorf("denoise: strength %g is not above 0", in.Strength)
	}
	return nil
}

// mirror is the place in 0 … n-1 that i is reflected to, the border being met once.
func mirror(i, n int) int {
	if n == 1 {
		return 0
	}
	i = ((i % (2*n - 2)) + 2*n - 2) % (2*n - 2)
	if i >= n {
		i = 2*n - 2 - i
	}
	return i
}

// Sizes of non-local means: those that Manjón et al., Med. Image Anal. 12 (2008)
// 514, found best for MR images.
const (
	nlmSearch = 5 // 11×11 pixels are averaged
	nlmPatch  = 2 // by how alike the 5×5 pixels around them are; the inner loop adds up five
)

// least standard deviation of noise that a division uses.
const leastSigma = 1e-5

// nlm is non-local means (Buades, Coll and Morel, CVPR 2005; IPOL 1 (2011) 208)
// with the local noise of Manjón et al., J. Magn. Reson. Imaging 31 (2010) 192: a
// pixel j weighs exp(−max(d²−2σ², 0) / (Strength·σ)²), d² the mean square
// difference of the patches around i and j and σ the noise at i; i itself weighs
// as much as the best of the others. For Rician noise the squares are averaged and
// 2σ² taken off (Wiest-Daesslé et al., MICCAI 2008).
//
// For every offset, d² comes from sums that slide over the image (Darbon et al.,
// ISBI 2008), so the time does not grow with the patch.
func nlm(rician bool) func(context.Context, Input) ([]float32, error) {
	return func(ctx context.Context, in Input) ([]float32, error) {
		if err := in.check(); err != nil {
			return nil, err
		}
		w, h := in.Width, in.Height
		const margin = nlmSearch + nlmPatch
		pw, ph := w+2*margin, h+2*margin
		p := make([]float32, pw*ph) // mirrored at its borders
		for y := range ph {
			row := in.Pixels[mirror(y-margin, h)*w:][:w]
			for x := range pw {
				p[y*pw+x] = row[mirror(x-margin, w)]
			}
		}
		averaged := p
		if rician {
			averaged = make([]float32, len(p))
			for i, v := range p {
				averaged[i] = v * v
			}
		}
		const side = 2*nlmPatch + 1
		scale, free := make([]float32, w*h), make([]float32, w*h)
		for i, s := range in.Sigma {
			s := max(float64(s), leastSigma)
			scale[i] = float32(expSteps / (in.Strength * s * in.Strength * s))
			free[i] = float32(2 * s * s)
		}
		sum, weights, best := make([]float32, w*h), make([]float32, w*h), make([]float32, w*h)
		dw, dh := w+2*nlmPatch, h+2*nlmPatch
		diff := make([]float32, dw*dh)
		columns := make([]float32, dw)
		for dy := -nlmSearch; dy <= nlmSearch; dy++ {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			for dx := -nlmSearch; dx <= nlmSearch; dx++ {
				if dx == 0 && dy == 0 {
					continue
				}
				for y := range dh {
					a := p[(y+nlmSearch)*pw+nlmSearch:][:dw]
					b := p[(y+nlmSearch+dy)*pw+nlmSearch+dx:][:dw]
					d := diff[y*dw:][:dw]
					for x, v := range a {
						v -= b[x]
						d[x] = v * v
					}
				}
				for y := range h {
					// The sums over the patches' rows slide down the image, and are made anew now
					// and then, so that no rounding error grows.
					if y%nlmRenew == 0 {
						clear(columns)
						for k := range side {
							for x, v := range diff[(y+k)*dw:][:dw] {
								columns[x] += v
							}
						}
					} else {
						out, in := diff[(y-1)*dw:][:dw], diff[(y+side-1)*dw:][:dw]
						for x, v := range in {
							columns[x] += v - out[x]
						}
					}
					c0, c1, c2, c3, c4 := columns[:w], columns[1:][:w], columns[2:][:w], columns[3:][:w], columns[4:][:w]
					f, sc, to, wt, most := free[y*w:][:w], scale[y*w:][:w], sum[y*w:][:w], weights[y*w:][:w], best[y*w:][:w]
					for x, v := range averaged[(y+margin+dy)*pw+margin+dx:][:w] {
						d := c0[x] + c1[x] + c2[x] + c3[x] + c4[x]
						e := (d*(1./(side*side)) - f[x]) * sc[x]
						g := expTable[int(min(max(e, 0), expLast))&expLast]
						to[x] += g * v
						wt[x] += g
						most[x] = max(most[x], g)
					}
				}
			}
		}
		for i, v := range in.Pixels {
			g := best[i]
			if g == 0 {
				g = 1
			}
			if rician {
				m := (sum[i] + g*v*v) / (weights[i] + g)
				sum[i] = float32(math.Sqrt(max(float64(m-free[i]), 0)))
				continue
			}
			sum[i] = (sum[i] + g*v) / (weights[i] + g)
		}
		return sum, nil
	}
}

// nlmRenew is after how many rows the sums of nlm are made anew.
const nlmRenew = 16

// expTable is exp(−t) in steps of 1/expSteps; beyond t = 8 it is 0.
const expSteps, expLast = 256, 8*256 - 1

var expTable = func() (t [expLast + 1]float32) {
	for i := range t[1:expLast] {
		t[i+1] = float32(math.Exp(-(float64(i) + 1.5) / expSteps))
	}
	t[0] = 1
	return t
}()

// tvSteps is the number of steps of totalVariation; with twice as many the result
// changes by less than a hundredth of the noise.
const tvSteps = 60

// totalVariation returns the image u of least Σ|∇u| + Σ (u−y)²/(2λ), λ = Strength
// times the local noise σ (Rudin, Osher and Fatemi 1992), by projection in the
// dual as in Chambolle, J. Math. Imaging Vis. 20 (2004) 89, u = y + λ div p with
// |p| ≤ 1, accelerated as in Beck and Teboulle, IEEE Trans. Image Process. 18
// (2009) 2419. As λ varies over the image, so does the step: 1/8 of the largest λ
// around.
func totalVariation(ctx context.Context, in Input) ([]float32, error) {
	return totalVariationIn(ctx, in, tvSteps)
}

func totalVariationIn(ctx context.Context, in Input, steps int) ([]float32, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	w, h := in.Width, in.Height
	n := w * h
	lambda, step := make([]float32, n), make([]float32, n)
	for i, s := range in.Sigma {
		lambda[i] = float32(in.Strength * max(float64(s), leastSigma))
	}
	for i := range step {
		l := lambda[i]
		if i%w+1 < w {
			l = max(l, lambda[i+1])
		}
		if i+w < n {
			l = max(l, lambda[i+w])
		}
		step[i] = 1 / (8 * l)
	}
	u := make([]float32, n)
	px, py := make([]float32, n), make([]float32, n) // the dual
	qx, qy := make([]float32, n), make([]float32, n) // and where the next step starts
	primal := func(ax, ay []float32) {
		for y := range h {
			for x := range w {
				i := y*w + x
				div := float32(0)
				if x+1 < w {
					div = ax[i]
				}
				if x > 0 {
					div -= ax[i-1]
				}
				if y+1 < h {
					div += ay[i]
				}
				if y > 0 {
					div -= ay[i-w]
				}
				u[i] = in.Pixels[i] + lambda[i]*div
			}
		}
	}
	t := 1.0
	for range steps {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		primal(qx, qy)
		next := (1 + math.Sqrt(1+4*t*t)) / 2
		ahead := float32((t - 1) / next)
		t = next
		for y := range h {
			for x := range w {
				i := y*w + x
				gx, gy := float32(0), float32(0)
				if x+1 < w {
					gx = u[i+1] - u[i]
				}
				if y+1 < h {
					gy = u[i+w] - u[i]
				}
				ax, ay := qx[i]+step[i]*gx, qy[i]+step[i]*gy
				if m := ax*ax + ay*ay; m > 1 {
					m = 1 / float32(math.Sqrt(float64(m)))
					ax, ay = ax*m, ay*m
				}
				qx[i], qy[i] = ax+ahead*(ax-px[i]), ay+ahead*(ay-py[i])
				px[i], py[i] = ax, ay
			}
		}
	}
	primal(px, py)
	return u, nil
}
