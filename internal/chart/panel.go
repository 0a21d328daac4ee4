package chart

import (
	"fmt"
	"image/color"
	"image/png"
	"io"
	"strconv"

	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/vgimg"
)

// Tile is one grey image of a Panel. A value of Low is shown black, one of High
// white; what lies outside is shown as the nearer of the two, NaN as Low.
type Tile struct {
	Caption       string
	Width, Height int
	Pixels        []float32 // Width×Height, row major
	Low, High     float64
}

// Panel is a table of tiles, row by row. Under each stands its caption and its
// window, that is Low and High. Captions that are too long are cut.
type Panel struct {
	Title   string
	Columns int // 0: all tiles in one row
	// Zoom is how many pixels a side each pixel of a tile gets; 0: as many as
	// leave the widest tile at most 256 pixels, at least 1.
	Zoom  int
	Tiles []Tile
}

// Lengths of a Panel in pixels.
const (
	gap        = 8
	textHeight = 16
	textSize   = 12
	fullTile   = 256 // that Zoom 0 aims at
	leastTile  = 96  // width kept for the captions of small tiles
)

// WritePNG draws the tiles pixel by pixel, without interpolation.
func (p Panel) WritePNG(w io.Writer) error {
	if len(p.Tiles) == 0 {
		return fmt.Errorf("draw panel %q: no tiles", p.Title)
	}
	columns := p.Columns
	if columns <= 0 || columns > len(p.Tiles) {
		columns = len(p.Tiles)
	}
	wide, high := 0, 0
	for _, t := range p.Tiles {
		if t.Width < 1 || t.Height < 1 || t.Width > MaxSide || t.Height > MaxPixels/t.Width || len(t.Pixels) != t.Width*t.Height {
			return fmt.Errorf("draw panel %q: tile %q of %d×%d has %d pixels", p.Title, t.Caption, t.Width, t.Height, len(t.Pixels))
		}
		if !(t.Low < t.High) || t.High-t.Low > 1e30 {
			return fmt.Errorf("draw panel %q: tile %q has the window %g to %g", p.Title, t.Caption, t.Low, t.High)
		}
		wide, high = max(wide, t.Width), max(high, t.Height)
	}
	zoom := p.Zoom
	if zoom <= 0 {
		zoom = max(fullTile/wide, 1)
	}
	rows := (len(p.Tiles) + columns - 1) / columns
	if zoom > MaxSide || columns > MaxSide || rows > MaxSide {
		return fmt.Errorf("draw panel %q: %d columns, %d rows, zoom %d", p.Title, columns, rows, zoom)
	}
	cellW, cellH := max(wide*zoom, leastTile)+gap, high*zoom+2*textHeight+gap
	width, height := columns*cellW+gap, rows*cellH+gap
	top := gap
	if p.Title != "" {
		top += textHeight + gap
		height += textHeight + gap
	}
	if width > MaxSide || height > MaxSide || height > MaxPixels/width {
		return fmt.Errorf("draw panel %q: %d×%d pixels are more than %d", p.Title, width, height, MaxPixels)
	}
	c := vgimg.NewWith(vgimg.UseDPI(dpi), vgimg.UseWH(vg.Length(width), vg.Length(height)))
	face := font.DefaultCache.Lookup(font.Font{Typeface: "Liberation", Variant: "Sans"}, textSize)
	write := func(text string, x, y, room int) {
		c.SetColor(color.Black)
		c.FillString(face, vg.Point{X: vg.Length(x), Y: vg.Length(height - y - textHeight + 4)}, fit(face, text, room))
	}
	if p.Title != "" {
		write(p.Title, gap, gap/2, width-2*gap)
	}
	for k, t := range p.Tiles {
		x, y := gap+k%columns*cellW, top+k/columns*cellH+high*zoom
		write(t.Caption, x, y, cellW-gap)
		write(number(t.Low)+" to "+number(t.High), x, y+textHeight, cellW-gap)
	}
	canvas := c.Image()
	for k, t := range p.Tiles {
		x0, y0 := gap+k%columns*cellW, top+k/columns*cellH
		for y := range t.Height * zoom {
			for x := range t.Width * zoom {
				canvas.Set(x0+x, y0+y, color.Gray{grey(float64(t.Pixels[y/zoom*t.Width+x/zoom]), t.Low, t.High)})
			}
		}
	}
	return png.Encode(w, canvas)
}

// grey is the shade of a value in a window.
func grey(v, low, high float64) uint8 {
	v = (v - low) / (high - low) * 255
	switch {
	case v >= 255:
		return 255
	case v > 0:
		return uint8(v + 0.5)
	}
	return 0
}

// fit cuts a text to the room, in pixels.
func fit(face font.Face, text string, room int) string {
	if face.Width(text) <= vg.Length(room) {
		return text
	}
	r := []rune(text)
	for len(r) > 0 && face.Width(string(r)+"…") > vg.Length(room) {
		r = r[:len(r)-1]
	}
	return string(r) + "…"
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }
