// Package numeric has what the measurements of several packages are made of: slices that
// are used again, quantiles, and a transform.
package numeric

import "math"

// Grow returns a slice of n values that may hold anything: s where that is large enough,
// else a new one.
func Grow[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// Nth returns the value that would be at place k if v were sorted, and partitions
// v about it. k is 0 to len(v)-1; no value may be NaN, which compares as nothing.
func Nth(v []float32, k int) float32 {
	for lo, hi := 0, len(v)-1; lo < hi; {
		mid := lo + (hi-lo)/2
		// the median of three as pivot
		a, b, c := v[lo], v[mid], v[hi]
		p := max(min(a, b), min(max(a, b), c))
		i, j := lo, hi
		for i <= j {
			for v[i] < p {
				i++
			}
			for p < v[j] {
				j--
			}
			if i <= j {
				v[i], v[j] = v[j], v[i]
				i++
				j--
			}
		}
		switch {
		case k <= j:
			hi = j
		case k >= i:
			lo = i
		default:
			return v[k]
		}
	}
	return v[k]
}

// CosineSide is the number of points of Cosines.
const CosineSide = 8

// Cosines returns the discrete cosine transform of 8 points, orthonormal: [u][i].
func Cosines[T float32 | float64]() (t [CosineSide][CosineSide]T) {
	for u := range t {
		for i := range t[u] {
			a := math.Sqrt(2. / CosineSide)
			if u == 0 {
				a = math.Sqrt(1. / CosineSide)
			}
			t[u][i] = T(a * math.Cos(math.Pi*float64(u)*(float64(i)+.5)/CosineSide))
		}
	}
	return t
}
