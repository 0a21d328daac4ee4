package numeric

// Mirror returns the place within 0 to n-1 that i falls on when a line of n is mirrored at its
// ends, again and again.
func Mirror(i, n int) int {
	if n == 1 {
		return 0
	}
	if i = i % (2*n - 2); i < 0 {
		i += 2*n - 2
	}
	return min(i, 2*n-2-i)
}
