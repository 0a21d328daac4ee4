package cpu

// tileScratch is what a call of the AMX kernels needs beside a row.
type tileScratch struct {
	config [64]byte
	sums   []float32 // tilePixels of the widest block
}
