// Package chart draws the two kinds of picture that reports need, as PNG: a
// [Plot] of named series over two axes, and a [Panel] of grey images side by side
// with captions. [Save] writes either into a file.
//
// Equal values give equal bytes on one platform. Nothing here is kept between
// calls, so everything may be called at the same time.
package chart

import (
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"github.com/diffdenoise/denoised/internal/atomicfile"
)

// Limits of a picture.
const (
	// MaxSide is the most pixels of a picture's side.
	MaxSide = 16384
	// MaxPixels is the most pixels of a picture.
	MaxPixels = 1 << 26

	defaultWidth, defaultHeight = 960, 560

	// dpi makes one pixel one point, the unit of all lengths.
	dpi = 72
)

// Series is one line of a Plot: the points (X[i], Y[i]), joined in their order.
type Series struct {
	Name string
	X    []float64 // nil: 0, 1, 2, …
	Y    []float64
	// Points marks the points and leaves the line between them out.
	Points bool
}

// Plot is a chart of some series. Points that are not finite, or not above 0 on
// a logarithmic axis, are left out.
type Plot struct {
	Title, XLabel, YLabel string
	Width, Height         int // pixels; 0: 960, 560
	LogX, LogY            bool
	// Names, where set, are written at x = 0, 1, 2, … instead of numbers.
	Names []string
	// Zero draws a line at y = 0, which is then in the range.
	Zero   bool
	Series []Series
}

// colours are those of Okabe and Ito 2008, which people who cannot tell red from
// green can tell apart; the yellow is left out, for it cannot be seen on white.
var colours = []color.RGBA{
	{0, 114, 178, 255}, {213, 94, 0, 255}, {0, 158, 115, 255}, {204, 121, 167, 255},
	{86, 180, 233, 255}, {230, 159, 0, 255}, {0, 0, 0, 255},
}

// dashes tell series of one colour apart.
var dashes = [][]vg.Length{nil, {8, 4}, {2, 3}, {8, 3, 2, 3}}

var glyphs = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.PyramidGlyph{}, draw.CrossGlyph{}}

// WritePNG draws the chart. It is an error if no point of any series can be
// drawn, if X and Y of a series differ in length, or if the size is out of range.
func (p Plot) WritePNG(w io.Writer) error {
	width, height := p.Width, p.Height
	if width == 0 {
		width = defaultWidth
	}
	if height == 0 {
		height = defaultHeight
	}
	if width < 1 || height < 1 || width > MaxSide || height > MaxPixels/width {
		return fmt.Errorf("draw plot %q: %d×%d pixels are outside 1 to %d", p.Title, width, height, MaxPixels)
	}
	c := plot.New()
	c.Title.Text, c.X.Label.Text, c.Y.Label.Text = p.Title, p.XLabel, p.YLabel
	c.Title.Padding, c.X.Padding, c.Y.Padding = 6, 4, 4
	legend := plot.NewLegend()
	legend.Top, legend.Padding = true, 3
	for _, s := range []*text.Style{&c.Title.TextStyle, &c.X.Label.TextStyle, &c.Y.Label.TextStyle, &c.X.Tick.Label, &c.Y.Tick.Label, &legend.TextStyle} {
		s.Font.Variant = "Sans"
		s.Font.Size = 13
	}
	c.X.Min, c.X.Max, c.Y.Min, c.Y.Max = math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{225}, color.Gray{225}
	c.Add(grid)
	drawn := 0
	for i, s := range p.Series {
		pts, err := s.points(p.LogX, p.LogY)
		if err != nil {
			return fmt.Errorf("draw plot %q: %w", p.Title, err)
		}
		if len(pts) == 0 {
			continue
		}
		drawn++
		colour := colours[i%len(colours)]
		round := i / len(colours)
		line, marks, err := plotter.NewLinePoints(pts)
		if err != nil {
			return fmt.Errorf("draw plot %q, series %q: %w", p.Title, s.Name, err)
		}
		line.Color, line.Width, line.Dashes = colour, 1.6, dashes[round%len(dashes)]
		marks.Color, marks.Radius, marks.Shape = colour, 3.5, glyphs[round%len(glyphs)]
		if s.Points || len(pts) == 1 {
			c.Add(marks)
			legend.Add(s.Name, marks)
		} else {
			c.Add(line)
			legend.Add(s.Name, line)
		}
	}
	if drawn == 0 {
		return fmt.Errorf("draw plot %q: no points", p.Title)
	}
	if p.Names != nil {
		var ticks plot.ConstantTicks
		for i, name := range p.Names {
			ticks = append(ticks, plot.Tick{Value: float64(i), Label: name})
		}
		c.X.Tick.Marker = ticks
		c.X.Tick.Label.Rotation = math.Pi / 5
		c.X.Tick.Label.XAlign, c.X.Tick.Label.YAlign = draw.XRight, draw.YCenter
		c.X.Min, c.X.Max = min(c.X.Min, -0.5), max(c.X.Max, float64(len(p.Names))-0.5)
	}
	if p.Zero && !p.LogY {
		c.Y.Min, c.Y.Max = min(c.Y.Min, 0), max(c.Y.Max, 0)
		zero := plotter.NewFunction(func(float64) float64 { return 0 })
		zero.Color, zero.Width, zero.Samples = color.Gray{90}, 1, 2
		c.Add(zero)
	}
	widen(&c.X, p.LogX)
	widen(&c.Y, p.LogY)

	canvas := draw.New(vgimg.NewWith(vgimg.UseDPI(dpi), vgimg.UseWH(vg.Length(width), vg.Length(height))))
	named := legend.Rectangle(canvas).Size().X
	if named > vg.Length(width)/2 {
		return fmt.Errorf("draw plot %q: the names of the series leave no room in %d pixels", p.Title, width)
	}
	c.Draw(draw.Crop(canvas, 8, -named-24, 8, -8))
	legend.Draw(draw.Crop(canvas, 0, -8, 0, -28))
	_, err := vgimg.PngCanvas{Canvas: canvas.Canvas.(*vgimg.Canvas)}.WriteTo(w)
	return err
}

// points returns what can be drawn of a series.
func (s Series) points(logX, logY bool) (plotter.XYs, error) {
	if s.X != nil && len(s.X) != len(s.Y) {
		return nil, fmt.Errorf("series %q has %d x for %d y", s.Name, len(s.X), len(s.Y))
	}
	var pts plotter.XYs
	for i, y := range s.Y {
		x := float64(i)
		if s.X != nil {
			x = s.X[i]
		}
		if x-x != 0 || y-y != 0 || logX && x <= 0 || logY && y <= 0 {
			continue
		}
		pts = append(pts, plotter.XY{X: x, Y: y})
	}
	return pts, nil
}

// widen leaves some room around the points, and makes a range of a single value.
func widen(a *plot.Axis, log bool) {
	if log {
		a.Scale, a.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		by := max(math.Pow(a.Max/a.Min, 0.03), 1.01)
		a.Min, a.Max = a.Min/by, a.Max*by
		// a tick with a label is a power of ten: take one in
		if math.Ceil(math.Log10(a.Min)) > math.Floor(math.Log10(a.Max)) {
			a.Min = math.Pow(10, math.Floor(math.Log10(a.Min)))
		}
		return
	}
	by := 0.03 * (a.Max - a.Min)
	if by == 0 {
		by = max(0.05*math.Abs(a.Max), 1e-3)
	}
	a.Min, a.Max = a.Min-by, a.Max+by
}

// Save writes a picture into a file, whole or not at all.
func Save(path string, picture interface{ WritePNG(w io.Writer) error }) error {
	if picture == nil {
		return errors.New("save a picture: there is none")
	}
	return atomicfile.Write(path, 0o644, func(f *os.File) error { return picture.WritePNG(f) })
}
