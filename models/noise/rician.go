package noise

import "math"

// koayTable is Koay and Basser, J. Magn. Reson. 179 (2006) 317, equations 17 to
// 19, inverted: mean by standard deviation of a Rician magnitude, and the factor
// from the latter to the standard deviation of the complex noise.
var koayTable = [...][2]float32{{1.913, 1.526}, {1.921, 1.443}, {1.996, 1.289}, {2.188, 1.167}, {2.485, 1.094},
	{2.859, 1.054}, {3.281, 1.034}, {4.199, 1.017}, {5.155, 1.011}, {8, 1}}

func koay(ratio float32) float32 {
	t := koayTable[:]
	if ratio <= t[0][0] {
		return t[0][1]
	}
	for k := 1; k < len(t); k++ {
		if ratio < t[k][0] {
			f := (ratio - t[k-1][0]) / (t[k][0] - t[k-1][0])
			return t[k-1][1] + f*(t[k][1]-t[k-1][1])
		}
	}
	return 1
}

// RicianBias returns by how much the mean of a Rician magnitude exceeds the signal a,
// both in standard deviations of the complex noise: 1.253 without signal, 1/(2a) where
// there is much (Gudbjartsson and Patz, Magn. Reson. Med. 34 (1995) 910, equation 2).
// a is at least 0.
func RicianBias(a float64) float64 {
	const step = 1. / 16
	k := a / step
	if k >= float64(len(ricianBias)-1) {
		return 1 / (2 * a)
	}
	i := int(k)
	return ricianBias[i] + (k-float64(i))*(ricianBias[i+1]-ricianBias[i])
}

var ricianBias = func() (t [16*8 + 1]float64) {
	for i := range t {
		a := float64(i) / 16
		x := a * a / 4
		// sums of the series of exp(−x)·I0(x) and exp(−x)·I1(x)
		half := x / 2
		term, i0, i1 := math.Exp(-x), 0.0, 0.0
		for k := 0.; k < 80; k++ {
			i0 += term
			i1 += term * half / (k + 1)
			term *= half / (k + 1) * half / (k + 1)
		}
		t[i] = math.Sqrt(math.Pi/2)*((1+2*x)*i0+2*x*i1) - a
	}
	return t
}()
