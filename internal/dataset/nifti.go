package dataset

import (
	"errors"
	"fmt"

	"github.com/diffdenoise/denoised/internal/nifti"
)

// nifti gives the volumes of a NIfTI file to add.
func (r *Reader) nifti(path, name string, add func(Volume) error) error {
	v, err := nifti.ReadLimit(path, maxVolumeBytes)
	if err != nil {
		reason, detail := readReason(err)
		if format := (*nifti.FormatError)(nil); errors.As(err, &format) {
			detail = format.Problem
			switch {
			case format.Colour:
				reason = Colour
			case format.Size:
				reason = TooLarge
			}
		}
		r.Skip(Skip{Source: name, Reason: reason, Detail: detail})
		return nil
	}
	for t := range v.Repeats {
		source := name
		if v.Repeats > 1 {
			source = fmt.Sprintf("%s#%d", name, t)
		}
		read := func(k int) (Image, error) { return NIfTISlice(v, t*v.Depth+k) }
		if err := add(Volume{Source: source, Subject: SubjectOf(name), Slices: v.Depth, Read: read}); err != nil {
			return err
		}
	}
	return nil
}

// NIfTISlice returns slice k, from 0 to v.Slices()-1, with the voxels that are not
// finite in Skip.
func NIfTISlice(v *nifti.Volume, k int) (Image, error) {
	img := Image{Width: v.Width, Height: v.Height, Pixels: make([]float32, v.Width*v.Height)}
	if err := v.Slice(img.Pixels, k); err != nil {
		return img, err
	}
	for i, p := range img.Pixels {
		if p-p != 0 { // NaN or infinite
			if img.Skip == nil {
				img.Skip = make([]bool, len(img.Pixels))
			}
			img.Skip[i] = true
		}
	}
	return img, nil
}
