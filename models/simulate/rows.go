package simulate

import "fmt"

// ChainRow is one row of a table of scanner chains.
type ChainRow struct {
	Name string
	// Chain is for images of w×h pixels; what it stores is as large, to the pixel or nearly.
	Chain func(w, h int) Chain
}

// ChainRows are the scanners that a model is measured on: each step by itself, then together.
func ChainRows() []ChainRow {
	row := func(name string, c Chain) ChainRow {
		return ChainRow{name, func(w, h int) Chain {
			c := c
			r := max(c.Acceleration, 1)
			c.NativeWidth = int(float64(w)/atLeast1(c.FillX)) / (2 * r) * (2 * r)
			c.NativeHeight = int(float64(h)/atLeast1(c.FillY)) / (2 * r) * (2 * r)
			return c
		}}
	}
	const usual = 0.04
	return []ChainRow{
		row("plain magnitude, 4 %", Chain{Noise: usual, Bits: 12}),
		row("root of squares of 4 correlated coils", Chain{Coils: 4, CoilCorrelation: 0.3, Noise: usual, Bits: 12}),
		row("adaptive combination, zero-filled ×1.31", Chain{
			Coils: 8, Adaptive: true, FillX: 1.31, FillY: 1.31, Noise: usual, Bits: 12}),
		row("root of squares, zero-filled ×1.31 along x, 8 bits", Chain{
			Coils: 4, FillX: 1.31, Noise: 0.05, Bits: 8, Low: 0.02, High: 0.9}),
		row("Hamming, ×2", Chain{Coils: 1, Filter: Hamming, FillX: 2, FillY: 2, Noise: usual, Bits: 12}),
		row("R = 2, Hamming, ×1.6", Chain{
			Coils: 8, Acceleration: 2, Filter: Hamming, FillX: 1.6, FillY: 1.6, Noise: usual, Bits: 12}),
		row("R = 3, Fermi, ×1.31, 8 %", Chain{
			Coils: 8, Acceleration: 3, Filter: Fermi, FillX: 1.31, FillY: 1.31, Noise: 2 * usual, Bits: 12}),
		row("partial Fourier 0.7, round Fermi, ×1.5", Chain{
			Coils: 4, Adaptive: true, Partial: 0.7, Filter: Fermi, Round: true, FillX: 1.5, FillY: 1.5, Noise: usual,
			Bits: 12}),
		row("edge enhancement, Fermi, ×2", Chain{
			Coils: 4, Adaptive: true, Filter: Fermi, FillX: 2, FillY: 2, Sharpen: 0.7, SharpenSpread: 1, Noise: usual,
			Bits: 12}),
		row("gradient correction, uniform, ×1.31", Chain{
			Coils: 8, Adaptive: true, Uniform: true, FillX: 1.31, FillY: 1.31, Warp: 1.5, Noise: usual, Bits: 12}),
		row("faint: Hamming, ×1.31, 1 %", Chain{
			Coils: 4, Adaptive: true, Filter: Hamming, FillX: 1.31, FillY: 1.31, Noise: usual / 4, Bits: 12}),
		row("everything together, 4 %", Chain{
			Coils: 8, CoilCorrelation: 0.2, Acceleration: 2, Uniform: true, Partial: 0.8, Filter: Fermi,
			FillX: 1.6, FillY: 1.4, Warp: 1, Sharpen: 0.4, SharpenSpread: 0.8, Noise: usual, Bits: 12, Low: 0.02,
			High: 1}),
	}
}

// FindChain returns the row of that name.
func FindChain(name string) (ChainRow, error) {
	for _, r := range ChainRows() {
		if r.Name == name {
			return r, nil
		}
	}
	return ChainRow{}, fmt.Errorf("there is no scanner %q", name)
}

// DetectorRow is one row of a table of detectors.
type DetectorRow struct {
	Name     string
	Detector Detector
}

// DetectorRows are the detectors that a model of radiographs is measured on.
func DetectorRows() []DetectorRow {
	return []DetectorRow{
		{"flat panel, raw, 1 %", Detector{Range: 2.5, Blur: 0.5, Electronic: 0.05, Noise: 0.01, Bits: 14}},
		{"flat panel, raw, 3 %", Detector{Range: 2.5, Blur: 0.5, Electronic: 0.1, Noise: 0.03, Bits: 14}},
		{"storage plate, root, inverted, 3 %", Detector{
			Range: 2.5, Blur: 0.9, Electronic: 0.5, Storage: Root, Inverted: true, Noise: 0.03, Bits: 10}},
		{"for display, 2 %", Detector{
			Range: 2.5, Blur: 0.5, Electronic: 0.1, Storage: Presentation, Noise: 0.02, Bits: 12}},
		{"for display, edges enhanced, 3 %", Detector{
			Range: 2.5, Blur: 0.6, Electronic: 0.1, Storage: Presentation, Enhance: [2]Unsharp{{0.8, 1.5}}, Noise: 0.03,
			Bits: 12}},
		{"for display, multi-frequency, 8 bits, 4 %", Detector{
			Range: 2, Blur: 0.6, Electronic: 0.2, Storage: Presentation, Enhance: [2]Unsharp{{0.6, 1}, {0.5, 5}},
			Noise: 0.04, Bits: 8}},
		{"collimated, inverted, 2 %", Detector{
			Range: 2.5, Blur: 0.5, Electronic: 0.1, Inverted: true, Noise: 0.02, Bits: 12,
			Open: [4]float64{0.1, 0.08, 0.92, 1}}},
		{"faint, 0.5 %", Detector{Range: 2.5, Blur: 0.5, Electronic: 0.05, Noise: 0.005, Bits: 14}},
		{"low dose, 8 %", Detector{Range: 2, Blur: 0.6, Electronic: 0.5, Noise: 0.08, Bits: 12}},
	}
}

// FindDetector returns the row of that name.
func FindDetector(name string) (DetectorRow, error) {
	for _, r := range DetectorRows() {
		if r.Name == name {
			return r, nil
		}
	}
	return DetectorRow{}, fmt.Errorf("there is no detector %q", name)
}
