package score_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/diffdenoise/denoised/internal/score"
)

func TestPSNR(t *testing.T) {
	a, b := []float32{0, 0, 0, 0}, []float32{0.1, -0.1, 0.1, -0.1}
	if got := score.PSNR(a, b, 1); math.Abs(got-20) > 1e-5 {
		t.Errorf("error 0.1 of 1: %g dB, want 20", got)
	}
	if !math.IsInf(score.PSNR(a, a, 1), 1) || !math.IsNaN(score.PSNR(a, b[:2], 1)) || !math.IsNaN(score.PSNR(nil, nil, 1)) {
		t.Error("equal, unequal length or empty images")
	}
}

// TestSSIMDirect compares with the definition, window by window.
func TestSSIMDirect(t *testing.T) {
	const w, h = 17, 14
	rng := rand.New(rand.NewPCG(1, 1))
	a, b := make([]float32, w*h), make([]float32, w*h)
	for i := range a {
		a[i] = rng.Float32()
		b[i] = a[i] + 0.2*rng.Float32()
	}
	total, n := 0.0, 0
	for y := 5; y < h-5; y++ {
		for x := 5; x < w-5; x++ {
			var sw, ma, mb float64
			visit := func(f func(g, p, q float64)) {
				for dy := -5; dy <= 5; dy++ {
					for dx := -5; dx <= 5; dx++ {
						f(math.Exp(-float64(dx*dx+dy*dy)/4.5), float64(a[(y+dy)*w+x+dx]), float64(b[(y+dy)*w+x+dx]))
					}
				}
			}
			visit(func(g, p, q float64) { sw, ma, mb = sw+g, ma+g*p, mb+g*q })
			ma, mb = ma/sw, mb/sw
			var va, vb, c float64
			visit(func(g, p, q float64) {
				va, vb, c = va+g/sw*(p-ma)*(p-ma), vb+g/sw*(q-mb)*(q-mb), c+g/sw*(p-ma)*(q-mb)
			})
			total += (2*ma*mb + 1e-4) * (2*c + 9e-4) / ((ma*ma + mb*mb + 1e-4) * (va + vb + 9e-4))
			n++
		}
	}
	if got, want := score.SSIM(a, b, w, h, 1), total/float64(n); math.Abs(got-want) > 1e-9 {
		t.Errorf("SSIM %.12f, by definition %.12f", got, want)
	}
	if got := score.SSIM(a, a, w, h, 1); math.Abs(got-1) > 1e-12 {
		t.Errorf("an image and itself: %g", got)
	}
	if got := score.SSIM(a[:6], a[:6], 3, 2, 1); math.Abs(got-1) > 1e-12 {
		t.Errorf("a tiny image and itself: %g", got)
	}
	if !math.IsNaN(score.SSIM(a, b, w, h+1, 1)) {
		t.Error("a wrong size gives a number")
	}
}

// TestMarked holds the scores of a part to those of that part alone.
func TestMarked(t *testing.T) {
	const w, h = 40, 30
	rng := rand.New(rand.NewPCG(2, 2))
	a, b, mask := make([]float32, w*h), make([]float32, w*h), make([]bool, w*h)
	var pa, pb, left, leftB []float32
	for i := range a {
		a[i], b[i] = rng.Float32(), rng.Float32()
		mask[i] = i%w >= 5 && i%w < 15 // the middles of windows within the left 20 columns
		if mask[i] {
			pa, pb = append(pa, a[i]), append(pb, b[i])
		}
		if i%w < 20 {
			left, leftB = append(left, a[i]), append(leftB, b[i])
		}
	}
	if got, want := score.PSNRIn(a, b, mask, 1), score.PSNR(pa, pb, 1); math.Abs(got-want) > 1e-12 {
		t.Errorf("PSNR of the part %g, want %g", got, want)
	}
	whole, in := score.SSIMIn(a, b, mask, w, h, 1)
	if want := score.SSIM(left, leftB, 20, h, 1); math.Abs(in-want) > 1e-12 || whole != score.SSIM(a, b, w, h, 1) {
		t.Errorf("SSIM of the part %g, want %g", in, want)
	}
	if _, in := score.SSIMIn(a, b, make([]bool, w*h), w, h, 1); !math.IsNaN(in) || !math.IsNaN(score.MSEIn(a, b, make([]bool, w*h))) {
		t.Error("a part without pixels has a score")
	}
	if !math.IsNaN(score.PSNRIn(a, b, mask[1:], 1)) {
		t.Error("a mask of another size gives a number")
	}
	if whole, _ := score.SSIMIn(a, b, mask[1:], w, h, 1); !math.IsNaN(whole) {
		t.Error("a mask of another size gives a number")
	}
}

func ExamplePSNR() {
	fmt.Printf("%.1f dB\n", score.PSNR([]float32{0, 1}, []float32{0.01, 0.99}, 1))
	// Output: 40.0 dB
}
