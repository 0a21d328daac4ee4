package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// ErrNotShown says that the pixels of an image cannot be read here, as of
// compressed ones, or that it has no such frame.
var ErrNotShown = errors.New("cannot be shown")

// Picture is one frame of an image, to be shown.
type Picture struct {
	derive.Raster
	Inverse bool // small values are bright (MONOCHROME1)
	// WindowCenter and WindowWidth are the first window in stored values; width 0:
	// there is none.
	WindowCenter, WindowWidth float64
	// Remark says why a derived image is not the plain result of its method, as the
	// journal does; empty if it is.
	Remark string
}

// Picture reads a frame, counted from 1, of an image as OpenObject finds it.
// Errors are ErrUnknownSeries, ErrNotShown, and those of disk and journal.
func (p *Pipeline) Picture(ctx context.Context, seriesUID string, n int, which string, frame int) (*Picture, error) {
	found, remark, err := p.find(ctx, seriesUID, n, which)
	if err != nil {
		return nil, err
	}
	o, closer, err := p.open(found)
	if err != nil {
		return nil, fmt.Errorf("series %q image %d: %w", seriesUID, n, err)
	}
	defer closer.Close()
	pic, err := picture(o, frame)
	if err == nil {
		pic.Remark = remark
	}
	return pic, err
}

func picture(o *dcm.Object, frame int) (*Picture, error) {
	r, err := derive.ReadRaster(o, frame-1)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotShown, err)
	}
	pic := &Picture{Raster: *r, Inverse: o.String(dcm.PhotometricInterpretation) == "MONOCHROME1"}
	number := func(t dcm.Tag, without float64) float64 {
		v := o.Strings(t)
		if len(v) == 0 {
			return without
		}
		x, err := strconv.ParseFloat(strings.TrimSpace(v[0]), 64)
		if err != nil {
			return math.NaN()
		}
		return x
	}
	slope, intercept := number(dcm.RescaleSlope, 1), number(dcm.RescaleIntercept, 0)
	c, w := (number(dcm.WindowCenter, math.NaN())-intercept)/slope, number(dcm.WindowWidth, math.NaN())/slope
	if w > 0 && c-c == 0 && w-w == 0 { // finite
		pic.WindowCenter, pic.WindowWidth = c, w
	}
	return pic, nil
}
