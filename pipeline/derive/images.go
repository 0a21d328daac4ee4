package derive

import (
	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/dcm"
)

// Images lets a dataset.Reader read the objects that Inspect has nothing against.
type Images struct{}

// Inspect implements dataset.Objects.
func (Images) Inspect(o *dcm.Object) (reason, detail string) {
	v := Inspect(o)
	return string(v.Reason), v.Detail
}

// Frames implements dataset.Objects.
func (Images) Frames(o *dcm.Object) int { return Frames(o) }

// ReadFrame implements dataset.Objects.
func (Images) ReadFrame(o *dcm.Object, i int) (dataset.Image, error) {
	f, err := ReadFrame(o, i)
	if err != nil {
		return dataset.Image{}, err
	}
	return dataset.Image{Width: f.Width, Height: f.Height, Pixels: f.Pixels, Skip: f.Skip}, nil
}
