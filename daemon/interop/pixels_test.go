package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/testdata"
)

// pixels returns the stored values of a native 8 or 16 bit image, read by
// dcmdump and not by the code under test.
func pixels(t testing.TB, s source) []int {
	t.Helper()
	dir := t.TempDir()
	// +W writes the value of the pixel data into a file of its own.
	cmd := exec.CommandContext(t.Context(), testdata.Path(t, "dcmdump"), "-q", "+W", dir, s.file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("dcmdump +W %s: %v\n%s", s.file, err, out)
	}
	list, err := filepath.Glob(filepath.Join(dir, "*.raw"))
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: pixel data in %d files, %v", s.file, len(list), err)
	}
	var data []byte // the largest: an icon has pixel data of its own
	for _, name := range list {
		d, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(d) > len(data) {
			data = d
		}
	}
	if !containsNumber(s.elements["0028,0100"], "16") {
		out := make([]int, len(data))
		for i, b := range data {
			out[i] = int(b)
		}
		return out
	}
	signed := containsNumber(s.elements["0028,0103"], "1")
	out := make([]int, len(data)/2)
	for i := range out {
		v := uint16(data[2*i]) | uint16(data[2*i+1])<<8
		if out[i] = int(v); signed {
			out[i] = int(int16(v))
		}
	}
	return out
}

// containsNumber tells whether the value that dcmdump prints behind the VR is n.
func containsNumber(line, n string) bool {
	return len(line) > 15+len(n) && line[15:15+len(n)] == n && line[15+len(n)] == ' '
}

func mean(v []int) float64 {
	sum := 0
	for _, x := range v {
		sum += x
	}
	return float64(sum) / float64(len(v))
}
