package dataset

import (
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"slices"
)

// png gives a grey PNG of 8 or 16 bits to add.
func (r *Reader) png(path, name string, add func(Volume) error) error {
	img, reason, detail := readPNG(path)
	if reason != "" {
		r.Skip(Skip{Source: name, Reason: reason, Detail: detail})
		return nil
	}
	read := func(int) (Image, error) {
		c := img
		c.Pixels = slices.Clone(img.Pixels)
		return c, nil
	}
	return add(Volume{Source: name, Subject: SubjectOf(name), Slices: 1, Read: read})
}

func readPNG(path string) (img Image, reason, detail string) {
	f, err := os.Open(path)
	if err != nil {
		reason, detail = readReason(err)
		return img, reason, detail
	}
	defer f.Close()
	conf, err := png.DecodeConfig(f)
	switch {
	case err != nil:
		return img, Unreadable, err.Error()
	case conf.ColorModel != color.GrayModel && conf.ColorModel != color.Gray16Model:
		return img, Colour, "a PNG must be grey, of 8 or 16 bits"
	case conf.Width > maxPixels/max(conf.Height, 1):
		return img, TooLarge, fmt.Sprintf("%d×%d pixels", conf.Width, conf.Height)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return img, Unreadable, err.Error()
	}
	decoded, err := png.Decode(f)
	if err != nil {
		return img, Unreadable, err.Error()
	}
	img = Image{Width: conf.Width, Height: conf.Height, Pixels: make([]float32, 0, conf.Width*conf.Height)}
	b := decoded.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			switch p := decoded.(type) {
			case *image.Gray:
				img.Pixels = append(img.Pixels, float32(p.GrayAt(x, y).Y))
			case *image.Gray16:
				img.Pixels = append(img.Pixels, float32(p.Gray16At(x, y).Y))
			default: // grey with a transparent value
				return Image{}, Colour, "a PNG must be grey without transparency"
			}
		}
	}
	return img, "", ""
}
