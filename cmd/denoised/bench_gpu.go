package main

// maxBenchBatch is the most slices that a GPU computes in one run.
const maxBenchBatch = 16

// gpuBench is what bench is to do on a GPU.
type gpuBench struct {
	model   string
	sizes   []int
	batches []int
	rounds  int
	steps   int // of a sampling
	soak    int // slices; 0: measure
	asJSON  bool
}
