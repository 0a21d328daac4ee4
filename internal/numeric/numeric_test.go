package numeric

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestNth against a sort, with many equal values.
func TestNth(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	for n := 1; n < 200; n++ {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.IntN(1 + n/3))
		}
		want := slices.Sorted(slices.Values(v))
		for _, k := range []int{0, n / 3, n / 2, n * 9 / 10, n - 1} {
			if got := Nth(v, k); got != want[k] {
				t.Fatalf("place %d of %d: %g, want %g", k, n, got, want[k])
			}
		}
	}
}

// TestCosines: the rows are orthonormal, and the first is the mean.
func TestCosines(t *testing.T) {
	c := Cosines[float64]()
	for u := range c {
		for v := range c {
			want, sum := 0.0, 0.0
			if u == v {
				want = 1
			}
			for i := range c[u] {
				sum += c[u][i] * c[v][i]
			}
			if math.Abs(sum-want) > 1e-14 {
				t.Errorf("rows %d and %d: %g, want %g", u, v, sum, want)
			}
		}
	}
	for _, v := range c[0] {
		if math.Abs(v-math.Sqrt(1./CosineSide)) > 1e-15 {
			t.Errorf("first row %v", c[0])
		}
	}
}
