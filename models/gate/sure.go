package gate

import "fmt"

// SURE is Stein's unbiased risk estimate by Monte Carlo: how far the result of a
// denoiser f is from the truth that nobody has, in the mean square. y is the image, fy
// is f(y), b is noise with the strength and the correlation of the image's own
// (noise.Map.Draw), and fyb is f(y + eps·b). sigma is the strength of the noise at
// every pixel; pixels with skip set (nil: none) do not count.
//
// With C the covariance of the noise, sums over n pixels:
//
//	mse  = ( |y − f(y)|² − Σ sigma² + 2·leak·Σ sigma² ) / n
//	leak = bᵀ( f(y + eps·b) − f(y) ) / ( eps·Σ sigma² ), of mean tr(C ∂f/∂y) / tr(C)
//
// leak is the share of the noise that is still in the result: 1 of a denoiser that
// does nothing, 0 of one that ignores the pixel and all that shares its noise.
//
// The noise must be Gaussian and f differentiable almost everywhere. A small eps, 0.01
// to 0.1, follows f where it bends; it must be above what f rounds. The estimate
// scatters by about 2·σ²·sqrt(2·correlation length²/n), so use whole slices. Source:
// Ramani, Blu and Unser, IEEE Trans. Image Process. 17 (2008) 1540, with the trace
// taken under C for correlated noise (Eldar, IEEE Trans. Signal Process. 57 (2009) 471).
func SURE(y, fy, fyb, b []float32, eps float64, sigma []float32, skip []bool) (mse, leak float64, err error) {
	n := len(y)
	if len(fy) != n || len(fyb) != n || len(b) != n || len(sigma) != n || skip != nil && len(skip) != n {
		return 0, 0, fmt.Errorf("estimate the error of %d pixels: %d, %d and %d values, %d of strength, %d mask values", n, len(fy), len(fyb), len(b), len(sigma), len(skip))
	}
	if !(eps > 0) {
		return 0, 0, fmt.Errorf("estimate the error: step %g is not above 0", eps)
	}
	var square, trace, energy, count float64
	for i := range y {
		if skip != nil && skip[i] {
			continue
		}
		r, s := float64(y[i])-float64(fy[i]), float64(sigma[i])
		square += r * r
		trace += float64(b[i]) * (float64(fyb[i]) - float64(fy[i]))
		energy += s * s
		count++
	}
	if count == 0 || energy == 0 {
		return 0, 0, fmt.Errorf("estimate the error of %d pixels: none has noise", n)
	}
	leak = trace / eps / energy
	return (square - energy + 2*leak*energy) / count, leak, nil
}
