package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/diffdenoise/denoised/models/net"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/internal/machine"
	"github.com/diffdenoise/denoised/kernels"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/diffusion"
	"github.com/diffdenoise/denoised/models/store"
)

// maxBenchSize bounds --size: an image of 8192 × 8192.
const maxBenchSize = 8192

// benchReport is what bench measured; its JSON is stable.
type benchReport struct {
	CPU     string        `json:"cpu"`
	Cores   int           `json:"cores"` // slices at once in the columns for N cores
	Rounds  int           `json:"rounds"`
	Model   string        `json:"model"`
	Peaks   []benchPeak   `json:"peaks"`
	Results []benchResult `json:"results"`
}

// benchPeak is the rate of multiply-adds on registers alone, one core.
type benchPeak struct {
	ISA    string  `json:"isa"`
	GFLOPS float64 `json:"gflop_per_s"`
}

// benchResult is one network at one size. Times are medians over the rounds,
// and the best round. Rates, shares and ns per pixel are of the best round, as
// the peak is: on a machine that does other work the median tells what was left
// of it, the best what the program can do.
type benchResult struct {
	Net       string  `json:"net"`
	ISA       string  `json:"isa"`
	Size      int     `json:"size"` // pixels, width and height
	GFLOP     float64 `json:"gflop"`
	OneCore   float64 `json:"one_core_ms"`
	OneBest   float64 `json:"one_core_best_ms"`
	NCores    float64 `json:"n_cores_ms_per_slice"`
	NBest     float64 `json:"n_cores_best_ms_per_slice"`
	GFLOPS    float64 `json:"gflop_per_s"`             // of one core
	PeakShare float64 `json:"peak_share,omitempty"`    // of one core, 0 to 1
	NShare    float64 `json:"peak_share_n,omitempty"`  // of N cores by N times the peak of one
	PerPixel  float64 `json:"ns_per_pixel"`            // of one core
	Flatness  float64 `json:"per_pixel_over_smallest"` // PerPixel by that of the smallest size
}

// benchCase is something to time: run computes one slice into dst.
type benchCase struct {
	result benchResult
	peak   int // index in peaks
	run    func(dst, y, sigma []float32) error
	pixels int
	one, n []float64 // seconds per slice, one per round
}

func newBenchCmd() *cobra.Command {
	var (
		sizes   []int
		isas    []string
		backend string
		model   string
		rounds  int
		cores   int
		asJSON  bool
		gpu     gpuBench
	)
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the speed of the networks on this machine",
		Long: `Measure the speed of the networks on this machine.

Every round times each case once, so that a disturbance hits all of them; the
table has the medians. The cases are

  student   the network of the model
  plain32   a reference network: 8 layers of one 3×3 convolution 32→32 with
            ReLU and skip, head and tail (10 GFLOP at 512×512)
  layer32   one convolution 32→32 over a whole image of that size at half
            resolution: the kernel without the network around it

Times are medians and the best round; GFLOP/s, shares and ns per pixel are of the
best round. The share of the peak compares with multiply-adds on registers
alone, best of the same rounds. N cores compute N slices at once.

On a GPU (--backend cuda, or auto where there is one) the cases are

  student, bsn, diffusion
            one run of each network of the model, for each --batch
  srds      the sampling of one slice in full: a pair, --steps steps
  series    slices of the student a second, with that many series at once

The device's time is without copies from and to the host, the whole time with
them and with as many slices under way as keep it busy. Shares are of what the
device reaches in multiplying on tensor cores alone and in copying its memory,
measured first. Kernels are timed one by one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkBackend("bench", backend); err != nil {
				return err
			}
			if rounds < 1 || cores < 1 || cores > 1024 {
				return fmt.Errorf("bench: --rounds and --cores must be at least 1, --cores at most 1024")
			}
			for _, s := range sizes {
				if s < 1 || s > maxBenchSize {
					return fmt.Errorf("bench: --size %d is outside 1 to %d", s, maxBenchSize)
				}
			}
			for _, n := range gpu.batches {
				if n < 1 || n > maxBenchBatch {
					return fmt.Errorf("bench: --batch %d is outside 1 to %d", n, maxBenchBatch)
				}
			}
			if gpu.steps < 1 || gpu.steps > diffusion.MaxSteps || gpu.soak < 0 {
				return fmt.Errorf("bench: --steps must be 1 to %d, --soak not negative", diffusion.MaxSteps)
			}
			if len(isas) > 0 && backend != backendCUDA {
				backend = backendCPU
			}
			on, err := useBackend(cmd, backend, cpu.SelectInference)
			if err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			if on.onGPU() {
				gpu.model, gpu.sizes, gpu.rounds, gpu.asJSON = model, sizes, rounds, asJSON
				return errors.Join(gpu.run(cmd, on), on.close())
			}
			if gpu.soak > 0 {
				return errors.New("bench: --soak is for a GPU: use --backend cuda")
			}
			if len(isas) == 0 {
				// Plain Go is twenty times slower: it is timed when it is all there is.
				for _, name := range cpu.ISAs() {
					if name != cpu.Go || len(isas) == 0 {
						isas = append(isas, string(name))
					}
				}
			}
			progress := cmd.ErrOrStderr()
			if asJSON {
				progress = io.Discard
			}
			report, err := runBench(cmd.Context(), model, isas, sizes, rounds, cores, progress)
			if err != nil {
				return fmt.Errorf("bench: %w", err)
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(report)
			}
			return report.print(cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.IntSliceVar(&sizes, "size", []int{256, 320, 512}, "widths and heights of the slices, in pixels")
	f.StringSliceVar(&isas, "isa", nil, "instruction sets: go, avx2, avx512, avx512bf16, amx (default all assembly of this machine)")
	backendFlag(cmd, &backend)
	f.IntSliceVar(&gpu.batches, "batch", []int{1, maxBenchBatch}, "on a GPU: slices in one run")
	f.IntVar(&gpu.steps, "steps", 20, "on a GPU: steps of a sampling")
	f.IntVar(&gpu.soak, "soak", 0, "on a GPU: only run so many slices, and fail if memory or handles grow")
	f.StringVar(&model, "model", store.DefaultName, "model, by name or folder")
	f.IntVar(&rounds, "rounds", 9, "rounds")
	f.IntVar(&cores, "cores", runtime.GOMAXPROCS(0), "slices at once in the columns for N cores")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// runBench measures and reports.
func runBench(ctx context.Context, model string, isas []string, sizes []int, rounds, cores int, progress io.Writer) (*benchReport, error) {
	report := &benchReport{CPU: machine.Processor(), Cores: cores, Rounds: rounds}
	var (
		cases    []*benchCase
		backends []*cpu.Backend
	)
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	for i, name := range isas {
		b, err := cpu.New(cpu.ISA(name))
		if err != nil {
			return nil, err
		}
		backends = append(backends, b)
		m, err := models.OpenOn(b, model)
		if err != nil {
			return nil, err
		}
		report.Model = m.Name() + " " + m.Version()
		student, _ := m.Student().Graph()
		plain32, params := benchPlain32()
		plain, err := b.Load(plain32, params)
		if err != nil {
			return nil, err
		}
		conv := benchConv(nil, 32, 32)
		layer := &kernels.Conv{In: 32, Out: 32, Weights: conv[0], Bias: conv[1], ReLU: true}
		for _, size := range sizes {
			half := (size + 1) / 2
			src, out := benchFloats(half*half*32), make([]float32, half*half*32)
			for _, c := range []struct {
				net  string
				flop float64
				run  func(dst, y, sigma []float32) error
			}{
				{"student", student.FLOP(half, half), func(dst, y, sigma []float32) error {
					return m.Student().Forward(dst, y, sigma, net.Told{}, size, size)
				}},
				{"plain32", plain32.FLOP(half, half), func(dst, y, sigma []float32) error {
					return plain.Forward(dst, y, sigma, size, size)
				}},
				{"layer32", 18 * 32 * 32 * float64(half*half), func(_, _, _ []float32) error {
					return b.Conv3x3(out, src, nil, half, half, layer)
				}},
			} {
				cases = append(cases, &benchCase{
					result: benchResult{Net: c.net, ISA: name, Size: size, GFLOP: c.flop / 1e9},
					peak:   i, run: c.run, pixels: size * size,
				})
			}
		}
	}

	largest := sizes[len(sizes)-1]
	y, sigma := benchFloats(largest*largest), make([]float32, largest*largest)
	for i := range sigma {
		sigma[i] = 0.05
	}
	outputs := make([][]float32, cores)
	for i := range outputs {
		outputs[i] = make([]float32, len(y))
	}
	peaks := make([][]float64, len(backends))
	for round := range rounds + 1 { // the first one warms up
		for i, b := range backends {
			start := time.Now()
			flop := b.Peak(2_000_000)
			peaks[i] = append(peaks[i], flop/time.Since(start).Seconds()/1e9)
		}
		for _, c := range cases {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			one, err := c.time(1, outputs, y, sigma)
			if err != nil {
				return nil, err
			}
			c.one = append(c.one, one)
			if c.result.Net == "layer32" {
				continue // its buffers are for one core
			}
			n, err := c.time(cores, outputs, y, sigma)
			if err != nil {
				return nil, err
			}
			c.n = append(c.n, n)
		}
		fmt.Fprintf(progress, "round %d of %d\n", round, rounds)
	}

	for i := range backends {
		report.Peaks = append(report.Peaks, benchPeak{isas[i], slices.Max(peaks[i])})
	}
	smallest := map[string]float64{}
	for _, c := range cases {
		r := c.result
		one := slices.Min(c.one[1:])
		r.OneCore, r.OneBest = 1e3*benchMedian(c.one[1:]), 1e3*one
		r.GFLOPS = r.GFLOP / one
		r.PerPixel = 1e9 * one / float64(c.pixels)
		peak := report.Peaks[c.peak].GFLOPS
		if peak > 0 {
			r.PeakShare = r.GFLOPS / peak
		}
		if len(c.n) > 0 {
			n := slices.Min(c.n[1:])
			r.NCores, r.NBest = 1e3*benchMedian(c.n[1:]), 1e3*n
			if peak > 0 {
				r.NShare = r.GFLOP / n / (peak * float64(cores))
			}
		}
		if _, ok := smallest[r.Net+r.ISA]; !ok {
			smallest[r.Net+r.ISA] = r.PerPixel
		}
		r.Flatness = r.PerPixel / smallest[r.Net+r.ISA]
		report.Results = append(report.Results, r)
	}
	return report, nil
}

// time runs one slice on each of n cores and returns the seconds per slice.
func (c *benchCase) time(n int, outputs [][]float32, y, sigma []float32) (float64, error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	start := time.Now()
	for i := 1; i < n; i++ {
		wg.Go(func() { errs[i] = c.run(outputs[i][:c.pixels], y[:c.pixels], sigma[:c.pixels]) })
	}
	errs[0] = c.run(outputs[0][:c.pixels], y[:c.pixels], sigma[:c.pixels])
	wg.Wait()
	seconds := time.Since(start).Seconds() / float64(n)
	for _, err := range errs {
		if err != nil {
			return 0, fmt.Errorf("%s, %s, %d: %w", c.result.Net, c.result.ISA, c.result.Size, err)
		}
	}
	return seconds, nil
}

func (r *benchReport) print(w io.Writer) error {
	fmt.Fprintf(w, "%s, model %s, %d rounds\n", r.CPU, r.Model, r.Rounds)
	for _, p := range r.Peaks {
		if p.GFLOPS > 0 {
			fmt.Fprintf(w, "peak %s: %.0f GFLOP/s per core\n", p.ISA, p.GFLOPS)
		}
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "net\tisa\tsize\tGFLOP\tms, 1 core\tbest\tms/slice, %d cores\tbest\tGFLOP/s\tof peak\t%d cores\tns/pixel\tflat\t\n", r.Cores, r.Cores)
	percent := func(v float64) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprintf("%.0f %%", 100*v)
	}
	number := func(v float64) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f", v)
	}
	for _, x := range r.Results {
		fmt.Fprintf(t, "%s\t%s\t%d\t%.2f\t%.1f\t%.1f\t%s\t%s\t%.0f\t%s\t%s\t%.0f\t%.2f\t\n", x.Net, x.ISA, x.Size, x.GFLOP,
			x.OneCore, x.OneBest, number(x.NCores), number(x.NBest), x.GFLOPS, percent(x.PeakShare), percent(x.NShare), x.PerPixel, x.Flatness)
	}
	return t.Flush()
}

// benchPlain32 is the reference network of the measurements that chose the kernels.
func benchPlain32() (*kernels.Graph, [][]float32) {
	g := new(kernels.Graph)
	x := g.Conv(kernels.Conv3("head", 32, kernels.Linear), g.Input(kernels.NetIn))
	params := benchConv(nil, kernels.NetIn, 32)
	for i := range 8 {
		x = g.Conv(kernels.Conv3(strconv.Itoa(i), 32, kernels.ReLU), x)
		params = benchConv(params, 32, 32)
	}
	g.Conv(kernels.Conv3("tail", kernels.NetOut, kernels.Linear), x)
	return g, benchConv(params, 32, kernels.NetOut)
}

// benchConv appends weights and biases of a convolution.
func benchConv(params [][]float32, in, out int) [][]float32 {
	weights := benchFloats(9 * in * out)
	for i := range weights {
		weights[i] = (weights[i] - 0.5) / float32(math.Sqrt(9*float64(in)))
	}
	return append(params, weights, make([]float32, out))
}

// benchFloats returns n numbers between 0 and 1, the same at each call.
func benchFloats(n int) []float32 {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	s := make([]float32, n)
	for i := range s {
		s[i] = rng.Float32()
	}
	return s
}

func benchMedian(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
