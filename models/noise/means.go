package noise

// Means sets dst to the means of the w×h image src over windows of 2·half+1 pixels a
// side, as far as they lie in the image. The sums slide, in double precision so that
// nothing of a bright edge stays behind. dst may be src; tmp is as large and sums as wide
// as the image, both are overwritten.
func Means(dst, src, tmp []float32, sums []float64, w, h, half int) {
	y := 0
	for ; y+4 <= h; y += 4 { // rows do not wait for each other's sums
		slide4(tmp[y*w:][:4*w], src[y*w:][:4*w], w, half)
	}
	for ; y < h; y++ {
		slide(tmp[y*w:][:w], src[y*w:][:w], half)
	}
	clear(sums)
	n := min(half, h)
	for x, v := range tmp[:n*w] {
		sums[x%w] += float64(v)
	}
	for y := range h {
		if y+half < h {
			for x, v := range tmp[(y+half)*w:][:w] {
				sums[x] += float64(v)
			}
			n++
		}
		if y > half {
			for x, v := range tmp[(y-half-1)*w:][:w] {
				sums[x] -= float64(v)
			}
			n--
		}
		out, scale := dst[y*w:][:w], 1/float64(n)
		for x, s := range sums {
			out[x] = float32(s * scale)
		}
	}
}

// slide sets out to the means of row over 2·half+1 values, as far as there are any.
func slide(out, row []float32, half int) {
	w := len(row)
	s, n := 0.0, min(half, w)
	for _, v := range row[:n] {
		s += float64(v)
	}
	inner := max(w-half, 0)
	for x := range out {
		if x < inner {
			s, n = s+float64(row[x+half]), n+1
		}
		if x > half {
			s, n = s-float64(row[x-half-1]), n-1
		}
		out[x] = float32(s / float64(n))
	}
}

// slide4 does slide for four rows of w values at once.
func slide4(out, rows []float32, w, half int) {
	r0, r1, r2, r3 := rows[:w], rows[w:][:w], rows[2*w:][:w], rows[3*w:][:w]
	o0, o1, o2, o3 := out[:w], out[w:][:w], out[2*w:][:w], out[3*w:][:w]
	s0, s1, s2, s3, n := 0.0, 0.0, 0.0, 0.0, min(half, w)
	for x := range n {
		s0, s1, s2, s3 = s0+float64(r0[x]), s1+float64(r1[x]), s2+float64(r2[x]), s3+float64(r3[x])
	}
	inner := max(w-half, 0)
	for x := range w {
		if k := x + half; x < inner {
			s0, s1, s2, s3 = s0+float64(r0[k]), s1+float64(r1[k]), s2+float64(r2[k]), s3+float64(r3[k])
			n++
		}
		if k := x - half - 1; k >= 0 {
			s0, s1, s2, s3 = s0-float64(r0[k]), s1-float64(r1[k]), s2-float64(r2[k]), s3-float64(r3[k])
			n--
		}
		c := float64(n)
		o0[x], o1[x], o2[x], o3[x] = float32(s0/c), float32(s1/c), float32(s2/c), float32(s3/c)
	}
}

// box3 sets dst to the 3×3 means of src, with the edge repeated. tmp is one row.
func box3(dst, src, tmp []float32, w, h int) {
	tmp = tmp[:w]
	for y := range h {
		u, c, d := src[max(y-1, 0)*w:][:w], src[y*w:][:w], src[min(y+1, h-1)*w:][:w]
		for x := range tmp {
			tmp[x] = u[x] + c[x] + d[x]
		}
		o := dst[y*w:][:w]
		o[0] = (tmp[0] + tmp[0] + tmp[min(1, w-1)]) * (1. / 9)
		for x := 1; x < len(tmp)-1; x++ {
			o[x] = (tmp[x-1] + tmp[x] + tmp[x+1]) * (1. / 9)
		}
		if w > 1 {
			o[w-1] = (tmp[w-2] + tmp[w-1] + tmp[w-1]) * (1. / 9)
		}
	}
}
