//go:build cuda && linux && emulated

package models

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/kernels/cpu"
	"github.com/diffdenoise/denoised/kernels/cuda"
	"github.com/diffdenoise/denoised/models/net"
	"github.com/diffdenoise/denoised/models/safetensors"
	"github.com/diffdenoise/denoised/models/store"
)

// onDevice is the CUDA backend, on a device or in the emulation.
func onDevice(t *testing.T) *cuda.Backend {
	t.Helper()
	if os.Getenv("DENOISED_CUDA_LIB") == "" {
		t.Fatal("DENOISED_CUDA_LIB names no driver; make test-emulated makes one")
	}
	b, err := cuda.Open(0, cuda.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// inSingle is the default model on the CPU in single precision, so that what differs on the device is the device's.
func inSingle(t *testing.T) *Model {
	t.Helper()
	b, err := cpu.Select()
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenOn(b, store.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func readTensors(t *testing.T, path string) *safetensors.File {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Decode(b)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return f
}

// TestGoldenCUDA is TestGolden on the device.
func TestGoldenCUDA(t *testing.T) {
	m, err := OpenOn(onDevice(t), filepath.Join("testdata", "bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	const most = 2e-3
	for _, size := range []string{"2x3", "51x37", "64x48"} {
		golden := readTensors(t, filepath.Join("testdata", "golden_"+size+".safetensors"))
		y, sigma := golden.Tensors["input"], golden.Tensors["sigma"]
		got, err := m.Student().Activations(y.Data, sigma.Data, y.Shape[1], y.Shape[0])
		if err != nil {
			t.Fatal(err)
		}
		checked := 0
		for what, want := range golden.Tensors {
			if what == "input" || what == "sigma" {
				continue
			}
			// The output counts by the noise, below: where that is most of the image, what is left is a
			// small difference.
			if e := net.RelativeError(got[what], want.Data); !(e <= most) && what != "output" {
				t.Errorf("%s: %s: relative error %.3g", size, what, e)
			}
			checked++
		}
		if checked != 10 { // head, eight blocks, output
			t.Errorf("%s: %d results, want 10", size, checked)
		}
		noise, want := make([]float32, len(y.Data)), make([]float32, len(y.Data))
		for i, v := range y.Data {
			noise[i], want[i] = v-got["output"][i], v-golden.Tensors["output"].Data[i]
		}
		e := net.RelativeError(noise, want)
		t.Logf("%s: predicted noise: relative error %.2g", size, e)
		if !(e <= most) {
			t.Errorf("%s: predicted noise: relative error %.3g", size, e)
		}
	}
}

// TestFaintCUDA: on a bright image, where halves have steps of the size of faint noise, the prediction is off by
// 1e-4 of the range at most (root mean square), whatever the noise.
func TestFaintCUDA(t *testing.T) {
	there, err := OpenOn(onDevice(t), store.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	here := inSingle(t)
	const w, h = 60, 50
	for _, strength := range []float32{0.002, 0.004, 0.05} {
		rng := rand.New(rand.NewPCG(3, 4))
		y, sigma := make([]float32, w*h), make([]float32, w*h)
		for i := range y {
			y[i] = 0.75 + 0.2*float32(math.Sin(float64(i%w)/9)) + strength*float32(rng.NormFloat64())
			sigma[i] = strength
		}
		var noise [2][]float32
		for i, m := range []*Model{here, there} {
			noise[i] = make([]float32, w*h)
			if err := m.Student().Forward(noise[i], y, sigma, net.Told{}, w, h); err != nil {
				t.Fatal(err)
			}
			for k, v := range noise[i] {
				noise[i][k] = y[k] - v
			}
		}
		sum := 0.0
		for k, v := range noise[0] {
			sum += float64(noise[1][k]-v) * float64(noise[1][k]-v)
		}
		e := math.Sqrt(sum / (w * h))
		t.Logf("noise of %g: off by %.2g, relative error %.2g", strength, e, net.RelativeError(noise[1], noise[0]))
		if !(e <= 1e-4) {
			t.Errorf("noise of %g: off by %.3g", strength, e)
		}
	}
}

// TestVerifyCUDA: the embedded networks give their golden vectors.
func TestVerifyCUDA(t *testing.T) {
	m, err := OpenOn(onDevice(t), store.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	v, err := m.Verify()
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Networks) != 4 {
		t.Errorf("%d networks, want 4", len(v.Networks))
	}
	for _, n := range v.Networks {
		t.Logf("%s: relative error %.2g", n.Network, n.GoldenError)
		if !n.Golden {
			t.Errorf("%s has no golden vectors", n.Network)
		}
	}
}

// TestQualityCUDA: what rounding to halves costs is not to be seen in either quality.
func TestQualityCUDA(t *testing.T) {
	clean, noisy, w, h := noisySlice(t, phantom.Spec{Seed: 3, Width: 64, Height: 64, Slices: 1, Sigma: 0.05})
	there, err := OpenOn(onDevice(t), store.DefaultName)
	if err != nil {
		t.Fatal(err)
	}
	here := inSingle(t)
	img := Image{Width: w, Height: h, Pixels: noisy}
	psnr := func(r *Result, err error) float64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if r.Untouched != "" {
			t.Fatalf("untouched: %s", r.Untouched)
		}
		sum, most := 0.0, 0.0
		for i, v := range clean {
			d := float64(r.Pixels[i] - v)
			sum += d * d
			most = max(most, float64(v))
		}
		return 10 * math.Log10(most*most*float64(len(clean))/sum)
	}
	for name, run := range map[string]func(m *Model) float64{
		"fast": func(m *Model) float64 { return psnr(m.Denoise(context.Background(), img, Options{Strength: 1})) },
		"high": func(m *Model) float64 {
			return psnr(m.High(context.Background(), img, HighOptions{Strength: 1, Passes: 1}))
		},
	} {
		cpu, device := run(here), run(there)
		t.Logf("%s: %.3f dB on the CPU, %.3f on the device", name, cpu, device)
		if math.Abs(cpu-device) > 0.02 {
			t.Errorf("%s: %.3f dB on the CPU, %.3f on the device", name, cpu, device)
		}
	}
}
