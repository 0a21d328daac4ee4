package phantom_test

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// TestDeterministic: equal specs give equal volumes, other seeds others, and
// slices differ from each other.
func TestDeterministic(t *testing.T) {
	s := phantom.Spec{Seed: 4, Width: 96, Height: 80, Slices: 3, Sigma: 0.03, ZeroFill: 1.3, GFactor: true}
	a, b := phantom.New(s), phantom.New(s)
	s.Seed++
	c := phantom.New(s)
	for k := range 3 {
		if !slices.Equal(a.Noisy[k], b.Noisy[k]) || !slices.Equal(a.Truth[k], b.Truth[k]) {
			t.Errorf("slice %d differs between two calls", k)
		}
		if slices.Equal(a.Truth[k], c.Truth[k]) {
			t.Errorf("slice %d is the same for another seed", k)
		}
	}
	if slices.Equal(a.Truth[0], a.Truth[1]) {
		t.Error("two slices are equal")
	}
}

// TestNoiseLevel: air holds Rayleigh noise of the level asked for.
func TestNoiseLevel(t *testing.T) {
	v := phantom.New(phantom.Spec{Seed: 1, Width: 128, Height: 128, Slices: 1, Sigma: 0.04})
	sum, n := 0.0, 0.0
	for i, p := range v.Noisy[0] {
		if v.Truth[0][i] == 0 && i/128 < 12 {
			sum, n = sum+float64(p), n+1
		}
	}
	if got, want := sum/n, 0.04*math.Sqrt(math.Pi/2); n < 500 || math.Abs(got/want-1) > 0.05 {
		t.Errorf("mean of %g air pixels %.4f, want %.4f", n, got, want)
	}
	blank := phantom.New(phantom.Spec{Seed: 1, Width: 128, Height: 128, Slices: 1, Sigma: 0.04, Blank: true})
	if blank.Noisy[0][0] != 0 {
		t.Error("air is not blanked")
	}
}

// TestDICOM: objects can be scanned, are accepted for denoising and hold the
// pixels; dciodvfy finds no error.
func TestDICOM(t *testing.T) {
	v := phantom.New(phantom.Spec{Seed: 1, Width: 64, Height: 48, Slices: 2, Sigma: 0.02})
	ids := phantom.NewIDs("test")
	var paths []string
	for k := range 2 {
		var b bytes.Buffer
		if err := v.WriteDICOM(&b, k, ids); err != nil {
			t.Fatal(err)
		}
		o, err := dcm.Scan(bytes.NewReader(b.Bytes()), int64(b.Len()))
		if err != nil {
			t.Fatal(err)
		}
		if verdict := derive.Inspect(o); !verdict.OK() {
			t.Fatalf("refused: %v", verdict)
		}
		f, err := derive.ReadFrame(o, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range f.Pixels {
			if math.Abs(float64(p)-min(3000*float64(v.Noisy[k][i]), 4095)) > 0.51 {
				t.Fatalf("pixel %d is %g for signal %g", i, p, v.Noisy[k][i])
			}
		}
		path := filepath.Join(t.TempDir(), fmt.Sprint(k, ".dcm"))
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	if err := v.WriteDICOM(new(bytes.Buffer), 2, ids); err == nil {
		t.Error("a slice that is not there was written")
	}
	t.Run("dciodvfy", func(t *testing.T) {
		for _, path := range paths {
			out, err := exec.Command(testdata.Path(t, "dciodvfy"), path).CombinedOutput()
			if err != nil || strings.Contains(string(out), "Error") {
				t.Errorf("%v\n%s", err, out)
			}
		}
	})
}

func TestNIfTI(t *testing.T) {
	v := phantom.New(phantom.Spec{Seed: 1, Width: 64, Height: 48, Slices: 2, Sigma: 0.02})
	n, err := v.NIfTI(true)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]float32, 64*48)
	if err := n.Slice(buf, 1); err != nil {
		t.Fatal(err)
	}
	for i, p := range buf {
		if math.Abs(float64(p)-min(3000*float64(v.Truth[1][i]), 4095)) > 0.51 {
			t.Fatalf("voxel %d is %g for signal %g", i, p, v.Truth[1][i])
		}
	}
}

func Example() {
	v := phantom.New(phantom.Spec{Seed: 1, Width: 128, Height: 128, Slices: 4, Sigma: 0.03, Shading: true})
	var object bytes.Buffer
	if err := v.WriteDICOM(&object, 0, phantom.NewIDs("example")); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(v.Truth), "slices, each an object:", object.Len() > 2*128*128)
	// Output: 4 slices, each an object: true
}
