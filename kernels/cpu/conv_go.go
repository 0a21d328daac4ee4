package cpu

// goBlock is the number of output channels of the plain Go kernel: with two
// pixels that makes eight sums, four weights and two inputs, which fit into the
// sixteen registers that compilers find on most machines.
const goBlock = 4

// convRowGo is the row kernel in plain Go. It adds in the same order as the
// assembly; the results differ in the last bits because the assembly rounds
// once per multiply-add.
func convRowGo(r *row) {
	n := r.n
	for p := 0; p < n; p += 2 {
		q := min(p+1, n-1) // an odd last pixel is computed twice
		a0, a1, a2, a3 := r.bias[0], r.bias[1], r.bias[2], r.bias[3]
		b0, b1, b2, b3 := a0, a1, a2, a3
		w := r.w
		for _, x := range r.x[:r.rows] {
			xa := x[p*r.xs:][:r.taps]
			xb := x[q*r.xs:][:len(xa)]
			for k, a := range xa {
				b := xb[k]
				c := (*[goBlock]float32)(w)
				a0 += a * c[0]
				a1 += a * c[1]
				a2 += a * c[2]
				a3 += a * c[3]
				b0 += b * c[0]
				b1 += b * c[1]
				b2 += b * c[2]
				b3 += b * c[3]
				w = w[goBlock:]
			}
		}
		r.storeGo(p, a0, a1, a2, a3)
		if q != p {
			r.storeGo(q, b0, b1, b2, b3)
		}
	}
}

func (r *row) storeGo(p int, sums ...float32) {
	for i, v := range sums {
		if v < r.floor { // false for NaN, which must survive
			v = r.floor
		}
		if r.slope != 0 && v < r.slope*v {
			v *= r.slope
		}
		if r.res != nil {
			v += r.res[p*r.ys+i]
		}
		r.y[p*r.ys+i] = v
	}
}

// gradRowsGo is the kernel of the gradient of weights in plain Go.
func gradRowsGo(g *gradRows) {
	for r := range g.h {
		for t := 0; t < g.taps; t += 2 {
			w0, w1 := (*[goBlock]float32)(g.dw[t*g.dws:]), (*[goBlock]float32)(g.dw[(t+1)*g.dws:])
			x, dy := g.x[r*g.xrow+t:], g.dy[r*g.yrow:]
			var a0, a1, a2, a3, b0, b1, b2, b3 float32
			for p := range g.n {
				d := (*[goBlock]float32)(dy[p*g.ys:])
				a, b := x[p*g.xs], x[p*g.xs+1]
				a0 += a * d[0]
				a1 += a * d[1]
				a2 += a * d[2]
				a3 += a * d[3]
				b0 += b * d[0]
				b1 += b * d[1]
				b2 += b * d[2]
				b3 += b * d[3]
			}
			w0[0] += a0
			w0[1] += a1
			w0[2] += a2
			w0[3] += a3
			w1[0] += b0
			w1[1] += b1
			w1[2] += b2
			w1[3] += b3
		}
	}
}
