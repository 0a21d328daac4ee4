package train

import "fmt"

// sure is Stein's unbiased risk estimate by Monte Carlo: how far the result of a
// denoiser f is from the truth that nobody has, in the mean square. y is the image, fy
// is f(y), b is noise with the strength and the correlation of the image's own, and fyb
// is f(y + eps·b). sigma is the strength of the noise at every pixel.
//
// With C the covariance of the noise, sums over n pixels:
//
//	mse = ( |y − f(y)|² − Σ sigma² + 2·bᵀ( f(y + eps·b) − f(y) )/eps ) / n
//
// where the last sum has the mean tr(C ∂f/∂y).
//
// The noise must be Gaussian and f differentiable almost everywhere. A small eps, 0.01
// to 0.1, follows f where it bends; it must be above what f rounds. The estimate
// scatters by about 2·σ²·sqrt(2·correlation length²/n), so use whole slices. Source:
// Ramani, Blu and Unser, IEEE Trans. Image Process. 17 (2008) 1540, with the trace
// taken under C for correlated noise (Eldar, IEEE Trans. Signal Process. 57 (2009) 471).
func sure(y, fy, fyb, b []float32, eps float64, sigma []float32) (mse float64, err error) {
	n := len(y)
	if n == 0 || len(fy) != n || len(fyb) != n || len(b) != n || len(sigma) != n {
		return 0, fmt.Errorf("estimate the error of %d pixels: %d, %d and %d values, %d of strength", n, len(fy),
			len(fyb), len(b), len(sigma))
	}
	if !(eps > 0) {
		return 0, fmt.Errorf("estimate the error: step %g is not above 0", eps)
	}
	sum := 0.0
	for i := range y {
		r, s := float64(y[i]-fy[i]), float64(sigma[i])
		sum += r*r - s*s + 2*float64(b[i])*float64(fyb[i]-fy[i])/eps
	}
	return sum / float64(n), nil
}
