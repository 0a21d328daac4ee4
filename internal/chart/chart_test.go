package chart_test

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/diffdenoise/denoised/internal/chart"
)

func decode(t *testing.T, b []byte) image.Image {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// coloured returns how many pixels are nearly of the given colour, and their
// mean place.
func coloured(img image.Image, want color.RGBA) (n int, x, y float64) {
	b := img.Bounds()
	for py := b.Min.Y; py < b.Max.Y; py++ {
		for px := b.Min.X; px < b.Max.X; px++ {
			r, g, bl, _ := img.At(px, py).RGBA()
			d := math.Abs(float64(r>>8)-float64(want.R)) + math.Abs(float64(g>>8)-float64(want.G)) + math.Abs(float64(bl>>8)-float64(want.B))
			if d < 24 {
				n++
				x, y = x+float64(px), y+float64(py)
			}
		}
	}
	return n, x / float64(n), y / float64(n)
}

var blue, orange = color.RGBA{0, 114, 178, 255}, color.RGBA{213, 94, 0, 255}

func TestPlot(t *testing.T) {
	p := chart.Plot{Title: "loss", XLabel: "step", YLabel: "mean square", Width: 640, Height: 400,
		Series: []chart.Series{
			{Name: "low", Y: []float64{1, 1, 1, 1}},
			{Name: "high", X: []float64{0, 1, 3}, Y: []float64{2, math.NaN(), 2}},
		}}
	var b, again bytes.Buffer
	if err := p.WritePNG(&b); err != nil {
		t.Fatal(err)
	}
	img := decode(t, b.Bytes())
	if img.Bounds() != image.Rect(0, 0, 640, 400) {
		t.Fatalf("size %v", img.Bounds())
	}
	nLow, _, low := coloured(img, blue)
	nHigh, _, high := coloured(img, orange)
	if nLow < 300 || nHigh < 300 {
		t.Fatalf("%d and %d pixels of the two lines", nLow, nHigh)
	}
	if high >= low-100 {
		t.Errorf("the line at 2 is drawn at row %.0f, the one at 1 at row %.0f", high, low)
	}
	if err := p.WritePNG(&again); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Errorf("drawn twice: different bytes or %v", err)
	}
}

// TestPlotLog draws y = 10^x, which is straight on a logarithmic axis.
func TestPlotLog(t *testing.T) {
	p := chart.Plot{LogY: true, Width: 500, Height: 400,
		Series: []chart.Series{{Name: "s", Points: true, X: []float64{0, 1, 2, 3, 4}, Y: []float64{1, 10, 100, 1000, 0}}}}
	var b bytes.Buffer
	if err := p.WritePNG(&b); err != nil {
		t.Fatal(err)
	}
	img := decode(t, b.Bytes())
	var at []float64 // rows of the marks, left of the legend
	for x := 0; x < 440; x++ {
		n, sum := 0, 0.0
		for y := range 400 {
			if r, g, bl, _ := img.At(x, y).RGBA(); r>>8 < 30 && g>>8 > 90 && g>>8 < 140 && bl>>8 > 150 {
				n, sum = n+1, sum+float64(y)
			}
		}
		if n > 5 {
			if len(at) == 0 || math.Abs(at[len(at)-1]-sum/float64(n)) > 5 {
				at = append(at, sum/float64(n))
			}
		}
	}
	if len(at) != 4 {
		t.Fatalf("marks at rows %v, want 4 of them", at)
	}
	for i := 1; i < 3; i++ {
		if d := at[i-1] - at[i] - (at[i] - at[i+1]); math.Abs(d) > 2 {
			t.Errorf("marks at rows %v are not evenly spaced", at)
		}
	}
}

func TestPlotZero(t *testing.T) {
	var with, without bytes.Buffer
	p := chart.Plot{Series: []chart.Series{{Y: []float64{5, 6}}}}
	if err := p.WritePNG(&without); err != nil {
		t.Fatal(err)
	}
	p.Zero = true
	if err := p.WritePNG(&with); err != nil {
		t.Fatal(err)
	}
	_, _, high := coloured(decode(t, with.Bytes()), blue)
	_, _, low := coloured(decode(t, without.Bytes()), blue)
	if high > low-50 {
		t.Errorf("with 0 in the range the line is at row %.0f, without at row %.0f", high, low)
	}
}

func TestPlotRefuses(t *testing.T) {
	for name, p := range map[string]chart.Plot{
		"no series":       {},
		"nothing finite":  {Series: []chart.Series{{Y: []float64{math.NaN(), math.Inf(1)}}}},
		"nothing above 0": {LogY: true, Series: []chart.Series{{Y: []float64{0, -1}}}},
		"lengths":         {Series: []chart.Series{{X: []float64{1}, Y: []float64{1, 2}}}},
		"negative size":   {Width: -1, Series: []chart.Series{{Y: []float64{1, 2}}}},
		"huge":            {Width: 1 << 14, Height: 1 << 14, Series: []chart.Series{{Y: []float64{1, 2}}}},
		"names too long":  {Width: 100, Series: []chart.Series{{Name: "a name of a series that is far too long", Y: []float64{1, 2}}}},
	} {
		if err := p.WritePNG(new(bytes.Buffer)); err == nil {
			t.Errorf("%s: drawn", name)
		}
	}
	// one value, names at the axis, both axes logarithmic: drawn
	for _, p := range []chart.Plot{
		{Series: []chart.Series{{Y: []float64{5}}}},
		{LogX: true, LogY: true, Series: []chart.Series{{X: []float64{3, 3}, Y: []float64{3, 3}}}},
		{Zero: true, LogY: true, Series: []chart.Series{{Y: []float64{5, 6}}}},
		{Names: []string{"one", "two"}, Series: []chart.Series{{Y: []float64{0, 0}}}},
	} {
		if err := p.WritePNG(new(bytes.Buffer)); err != nil {
			t.Error(err)
		}
	}
}

func TestPanel(t *testing.T) {
	ramp := []float32{0, 0.5, 1, 2, -1, float32(math.NaN())}
	p := chart.Panel{Title: "a title", Columns: 2, Zoom: 4, Tiles: []chart.Tile{
		{Caption: "ramp", Width: 3, Height: 2, Pixels: ramp, Low: 0, High: 1},
		{Caption: "residual, a caption that cannot fit here", Width: 3, Height: 2, Pixels: ramp, Low: -1, High: 1},
		{Caption: "third", Width: 2, Height: 1, Pixels: ramp[:2], Low: 0, High: 2},
	}}
	path := filepath.Join(t.TempDir(), "panel.png")
	if err := chart.Save(path, p); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	img := decode(t, b)
	// gap 8, title 16+8; cells of 96+8 by 2·4+32+8
	if got := img.Bounds(); got != image.Rect(0, 0, 8+2*104, 8+24+2*48) {
		t.Fatalf("size %v", got)
	}
	grey := func(x, y int) int {
		r, g, bl, _ := img.At(x, y).RGBA()
		if r != g || g != bl {
			t.Fatalf("pixel (%d, %d) is coloured", x, y)
		}
		return int(r >> 8)
	}
	for _, c := range []struct{ tile, x, y, want int }{
		{0, 0, 0, 0}, {0, 1, 0, 128}, {0, 2, 0, 255}, {0, 0, 1, 255}, {0, 1, 1, 0}, {0, 2, 1, 0},
		{1, 0, 0, 128}, {1, 1, 0, 191}, {1, 1, 1, 0},
		{2, 0, 0, 0}, {2, 1, 0, 64},
	} {
		x0, y0 := 8+c.tile%2*104, 32+c.tile/2*48
		for _, d := range []int{0, 3} { // both corners of the enlarged pixel
			if got := grey(x0+4*c.x+d, y0+4*c.y+d); got != c.want {
				t.Errorf("tile %d pixel (%d, %d): %d, want %d", c.tile, c.x, c.y, got, c.want)
			}
		}
	}
	dark := 0
	for y := 32 + 8; y < 32+8+32; y++ {
		for x := 8; x < 104; x++ {
			if grey(x, y) < 128 {
				dark++
			}
		}
	}
	if dark < 30 {
		t.Errorf("%d dark pixels where caption and window stand", dark)
	}
}

func TestPanelRefuses(t *testing.T) {
	tile := chart.Tile{Width: 1, Height: 1, Pixels: []float32{1}, High: 1}
	short, flat, zoomed := tile, tile, tile
	short.Height, flat.High = 2, 0
	for name, p := range map[string]chart.Panel{
		"no tiles":  {},
		"too short": {Tiles: []chart.Tile{short}},
		"no window": {Tiles: []chart.Tile{flat}},
		"too large": {Tiles: []chart.Tile{zoomed}, Zoom: 1 << 14},
	} {
		if err := p.WritePNG(new(bytes.Buffer)); err == nil {
			t.Errorf("%s: drawn", name)
		}
	}
}

func ExamplePlot() {
	p := chart.Plot{Title: "loss", XLabel: "step", LogY: true, Series: []chart.Series{{Name: "train", Y: []float64{1, 0.5, 0.3}}}}
	if err := p.WritePNG(new(bytes.Buffer)); err != nil {
		panic(err)
	}
	// Output:
}
