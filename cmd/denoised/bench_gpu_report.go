//go:build cuda && linux

package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// gpuReport is what bench measured on a GPU; its JSON is stable.
type gpuReport struct {
	Device   string      `json:"device"`
	Driver   string      `json:"driver"`
	Kernels  string      `json:"kernels"`
	Model    string      `json:"model"`
	Rounds   int         `json:"rounds"`
	Ceilings gpuCeilings `json:"ceilings"`
	Results  []gpuResult `json:"results"`
	SRDS     []gpuSRDS   `json:"srds,omitempty"`
	Series   []gpuSeries `json:"series"`
}

// gpuCeilings is what the device does at best.
type gpuCeilings struct {
	Tensor float64 `json:"tensor_tflop_per_s"` // products of halves
	Single float64 `json:"single_tflop_per_s"`
	Copy   float64 `json:"copy_gb_per_s"` // read and written
}

// gpuResult is one network at one size and batch. Times are medians over the rounds.
type gpuResult struct {
	Net    string  `json:"net"`
	Size   int     `json:"size"` // pixels, width and height
	Batch  int     `json:"batch"`
	GFLOP  float64 `json:"gflop_per_slice"`
	Device float64 `json:"device_ms_per_slice"` // without copies from and to the host
	Whole  float64 `json:"whole_ms_per_slice"`  // with them, and slices under way to keep it busy
	TFLOPS float64 `json:"tflop_per_s"`         // of Device
	Tensor float64 `json:"tensor_share"`        // of Ceilings.Tensor
	GBs    float64 `json:"gb_per_s"`            // moved at least, of Device
	Copy   float64 `json:"copy_share"`          // of Ceilings.Copy
	// Roofline is the share of what the ceilings allow: the longer of the times that they give
	// for the work and for what must be moved, by Device.
	Roofline float64     `json:"roofline_share"`
	Kernels  []gpuKernel `json:"kernels"`
}

// gpuKernel is the part of one kernel, timed by itself.
type gpuKernel struct {
	Kernel   string  `json:"kernel"`
	Launches int     `json:"launches"`
	Micros   float64 `json:"us"`
	TFLOPS   float64 `json:"tflop_per_s"`
	GBs      float64 `json:"gb_per_s"`
}

// gpuSRDS is the sampling of one slice, a pair of so many steps.
type gpuSRDS struct {
	Size  int     `json:"size"`
	Steps int     `json:"steps"`
	Whole float64 `json:"ms"`
}

// gpuSeries is the student with several series at once, each of which sends one slice after the other.
type gpuSeries struct {
	Size   int     `json:"size"`
	Series int     `json:"series"`
	Slices float64 `json:"slices_per_s"`
}

func (r *gpuReport) print(w io.Writer) error {
	fmt.Fprintf(w, "%s, driver %s, kernels %s, model %s, %d rounds\n", r.Device, r.Driver, r.Kernels, r.Model, r.Rounds)
	fmt.Fprintf(w, "at best: %.1f TFLOP/s on tensor cores, %.1f in single precision, %.0f GB/s copied\n\n", r.Ceilings.Tensor, r.Ceilings.Single, r.Ceilings.Copy)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "net\tsize\tbatch\tGFLOP\tms/slice, device\twhole\tTFLOP/s\tof peak\tGB/s\tof peak\tof roofline\t")
	for _, x := range r.Results {
		fmt.Fprintf(t, "%s\t%d\t%d\t%.2f\t%.4f\t%.4f\t%.1f\t%.0f %%\t%.0f\t%.0f %%\t%.0f %%\t\n", x.Net, x.Size, x.Batch, x.GFLOP,
			x.Device, x.Whole, x.TFLOPS, 100*x.Tensor, x.GBs, 100*x.Copy, 100*x.Roofline)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "net\tsize\tbatch\tkernel\tlaunches\tus\tTFLOP/s\tGB/s\t")
	for _, x := range r.Results {
		for _, k := range x.Kernels {
			fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%d\t%.1f\t%.1f\t%.0f\t\n", x.Net, x.Size, x.Batch, k.Kernel, k.Launches, k.Micros, k.TFLOPS, k.GBs)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, x := range r.SRDS {
		fmt.Fprintf(w, "srds %d: %d steps in %.2f ms\n", x.Size, x.Steps, x.Whole)
	}
	for _, x := range r.Series {
		fmt.Fprintf(w, "%d series at once of %d: %.0f slices a second\n", x.Series, x.Size, x.Slices)
	}
	return nil
}
