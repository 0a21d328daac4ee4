package train_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/eval"
	"github.com/diffdenoise/denoised/models/meter"
	"github.com/diffdenoise/denoised/models/simulate"
	"github.com/diffdenoise/denoised/models/train"
)

const (
	// envAdapt names NIfTI volumes, with commas between them, and asks for the table of measuredAdapt.
	envAdapt      = "DENOISED_ADAPT"
	measuredAdapt = "../../docs/measured/adapt.md"
)

// adaptRows are the scanners that TestAdaptQuality is measured on: white noise, then less and less so.
var adaptRows = []string{"plain magnitude, 4 %", "adaptive combination, zero-filled ×1.31", "R = 2, Hamming, ×1.6",
	"edge enhancement, Fermi, ×2", "everything together, 4 %"}

// TestAdaptQuality measures what fitting a network to a series is worth: fourteen slices of a volume go
// through one scanner, three of them are scored in tissue.
func TestAdaptQuality(t *testing.T) {
	if os.Getenv(envAdapt) == "" {
		t.Skip(envAdapt + " is not set")
	}
	m, err := models.Default()
	if err != nil {
		t.Fatal(err)
	}
	on, err := cpu.Select()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("# What is --adapt worth?\n\nWritten by TestAdaptQuality ([quality.md](../quality.md)). Pooled " +
		"PSNR in tissue, dB; the error is Stein's estimate on held-out slices, of the noise's power.\n\n" +
		"| volume | scanner | noisy | fast | high | fast, fitted | high, fitted | error before | after |\n" +
		"|---|---|---|---|---|---|---|---|---|\n")
	var sums [5]float64
	n := 0.0
	for _, path := range strings.Split(os.Getenv(envAdapt), ",") {
		v, err := nifti.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range adaptRows {
			images, truth := through(t, v, name)
			var known meter.Series
			for _, img := range images {
				told, err := m.Measure(img)
				if err != nil {
					t.Fatal(err)
				}
				known = known.Plus(told)
			}
			a, err := train.Adapt(t.Context(), on, m, images, known, nil)
			if err != nil {
				t.Fatal(err)
			}
			methods := []func(img models.Image) (*models.Result, error){
				func(img models.Image) (*models.Result, error) { return &models.Result{Pixels: img.Pixels}, nil }}
			for _, by := range []*models.Model{m, a.Model} {
				methods = append(methods, func(img models.Image) (*models.Result, error) {
					return by.Denoise(t.Context(), img, models.Options{Strength: 1, Series: known})
				}, func(img models.Image) (*models.Result, error) {
					return by.High(t.Context(), img, models.HighOptions{Strength: 1, Series: known})
				})
			}
			fmt.Fprintf(&b, "| %s | %s ", path[strings.LastIndexByte(path, '/')+1:], name)
			for j, f := range methods {
				square, count := 0.0, 0.0
				for _, k := range []int{2, 7, 11} {
					r, err := f(images[k])
					if err != nil {
						t.Fatal(err)
					}
					for i, in := range eval.Tissue(truth[k], images[k].Width, images[k].Height) {
						if d := float64(r.Pixels[i] - truth[k][i]); in {
							square, count = square+d*d, count+1
						}
					}
				}
				db := -10 * math.Log10(square/count)
				sums[j] += db
				fmt.Fprintf(&b, "| %.2f ", db)
			}
			n++
			fmt.Fprintf(&b, "| %.3f | %.3f |\n", a.Before, a.After)
			t.Log(b.String()[strings.LastIndexByte(strings.TrimSpace(b.String()), '\n')+1:])
		}
	}
	b.WriteString("| **mean** | ")
	for _, s := range sums {
		fmt.Fprintf(&b, "| %.2f ", s/n)
	}
	b.WriteString("| | |\n")
	if err := os.WriteFile(measuredAdapt, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// through sends fourteen slices of the inner two thirds of a volume through a scanner.
func through(t *testing.T, v *nifti.Volume, name string) (images []models.Image, truth [][]float32) {
	t.Helper()
	row, err := simulate.FindChain(name)
	if err != nil {
		t.Fatal(err)
	}
	const count = 14
	for i := range count {
		img, err := dataset.NIfTISlice(v, v.Depth/6+i*v.Depth*2/3/count)
		if err != nil {
			t.Fatal(err)
		}
		most := float32(0)
		for _, p := range img.Pixels {
			most = max(most, p)
		}
		px := make([]float32, len(img.Pixels))
		for k, p := range img.Pixels {
			px[k] = p / most
		}
		a, err := row.Chain(img.Width, img.Height).Run(px, img.Width, img.Height, rand.New(rand.NewPCG(7, uint64(i))))
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, models.Image{Width: a.Width, Height: a.Height, Pixels: a.Noisy})
		truth = append(truth, a.Truth)
	}
	return images, truth
}
