// Package dataset finds the images of a folder tree or a file and gives them volume by
// volume, whatever they are stored as: a NIfTI file is a volume, or as many as its
// fourth axis has; a DICOM series is one for each size of image, an enhanced object one
// by itself; a grey PNG is a volume of one slice.
package dataset

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/nifti"
)

// Limits of what is read.
const (
	maxFiles       = 2_000_000
	maxDepth       = 64
	maxVolumeBytes = 1 << 30 // of an uncompressed NIfTI file
	maxPixels      = 1 << 25 // of a PNG
)

// Image is one slice: Width×Height values, row major, in any unit.
type Image struct {
	Width, Height int
	Pixels        []float32
	// Skip marks pixels that are no measurement (padding, not finite); nil means none.
	Skip []bool
}

// Volume is one acquisition: slices with one scale.
type Volume struct {
	// Source names it in reports: its path relative to the root, with forward slashes; a
	// DICOM series is named by its first file. Volumes of one NIfTI file have the same
	// name but for "#0", "#1", … at its end, and follow each other.
	Source string
	// Subject is whoever or whatever it is of, empty if unknown. It is never shown.
	Subject string
	// Modality is DICOM's (0008,0060), empty if unknown.
	Modality string
	// Slices is their number.
	Slices int
	// Read returns slice k; slices may be read again and in any order, by one goroutine
	// at a time, and quickest in rising order. The pixels are the caller's then.
	Read func(k int) (Image, error)
}

// Skip is something that is left out. Its JSON is stable.
type Skip struct {
	Source string `json:"source"`
	Reason string `json:"reason"` // a stable word
	Detail string `json:"detail,omitempty"`
	Slices int    `json:"slices,omitempty"` // 0: a file of which no slice was read
}

// SkipError is an error of Volume.Read that has a reason of its own.
type SkipError struct{ Reason, Detail string }

// Error is the reason with its detail.
func (e *SkipError) Error() string { return strings.TrimSuffix(e.Reason+": "+e.Detail, ": ") }

// Reasons of what a Reader leaves out, besides those of its Objects.
const (
	Unreadable = "unreadable" // damaged, or not what its name says
	TooLarge   = "too-large"
	Link       = "link" // a broken link, or one to what was read already
	NotAFile   = "not-a-file"
	NoAccess   = "no-access"
	Duplicate  = "duplicate" // another file holds the same image
	Gone       = "gone"      // removed while it was read, as a spool's images are in time
	Colour     = "colour"
	NotImage   = "not-an-image"
)

// Objects is what a Reader has to be told about DICOM images. Package derive of the
// pipeline knows it.
type Objects interface {
	// Inspect says why an object must not be read; no reason means that it may.
	Inspect(o *dcm.Object) (reason, detail string)
	// Frames is the number of frames of an object that may be read.
	Frames(o *dcm.Object) int
	// ReadFrame returns frame i, from 0.
	ReadFrame(o *dcm.Object, i int) (Image, error)
}

// Reader finds images. All fields but Exclude are required. It is used by one
// goroutine at a time.
type Reader struct {
	Objects Objects
	// Add is given the volumes, in the order of their names; its error ends the reading.
	Add func(Volume) error
	// Skip is told what is left out.
	Skip func(Skip)
	// Exclude, if not nil, tells by its source why a file is not even looked at; an empty
	// reason means that it is.
	Exclude func(source string) (reason string)

	root   string
	series map[string]*series // by UID and size
	seen   map[[32]byte]bool  // hashes of SOP instance UIDs
}

// volume is something that holds volumes, not yet read.
type volume struct {
	source string
	read   func(add func(Volume) error) error
}

// Read reads a folder tree or a file. Files are only read, and may come and go
// meanwhile. The error is that of Add, of ctx, or of the root itself; everything else
// that is wrong goes to Skip.
func (r *Reader) Read(ctx context.Context, root string) error {
	r.root, r.series, r.seen = root, map[string]*series{}, map[[32]byte]bool{}
	var volumes []volume
	err := walk(ctx, r.root, func(path string) error {
		volumes = append(volumes, r.look(path)...)
		return nil
	}, func(path, reason, detail string) {
		r.Skip(Skip{Source: r.name(path), Reason: reason, Detail: detail})
	})
	if err != nil {
		return err
	}
	volumes = append(volumes, r.dicom()...)
	slices.SortFunc(volumes, func(a, b volume) int { return strings.Compare(a.source, b.source) })
	for _, v := range volumes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := v.read(r.Add); err != nil {
			return err
		}
	}
	return nil
}

// name is the path relative to the root.
func (r *Reader) name(path string) string {
	rel, err := filepath.Rel(r.root, path)
	if err != nil || rel == "." {
		rel = filepath.Base(path)
	}
	return filepath.ToSlash(rel)
}

// look finds out what a file is and returns the volume that it is by itself. DICOM
// images are kept for dicom.
func (r *Reader) look(path string) []volume {
	name := r.name(path)
	no := func(reason, detail string) []volume {
		r.Skip(Skip{Source: name, Reason: reason, Detail: detail})
		return nil
	}
	if r.Exclude != nil {
		if reason := r.Exclude(name); reason != "" {
			return no(reason, "")
		}
	}
	switch lower := strings.ToLower(name); {
	case nifti.IsName(lower):
		return []volume{{name, func(add func(Volume) error) error { return r.nifti(path, name, add) }}}
	case strings.HasSuffix(lower, ".png"):
		return []volume{{name, func(add func(Volume) error) error { return r.png(path, name, add) }}}
	}
	ok, err := IsDICOM(path)
	switch {
	case err != nil:
		return no(readReason(err))
	case !ok:
		return no(NotImage, "neither NIfTI nor DICOM nor PNG")
	}
	if reason, detail := r.keep(path, name); reason != "" {
		return no(reason, detail)
	}
	return nil
}

// readReason is why a file cannot be read.
func readReason(err error) (reason, detail string) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Gone, ""
	case errors.Is(err, fs.ErrPermission):
		return NoAccess, "no permission to read it"
	}
	return Unreadable, err.Error()
}

// subjectName finds "sub-01", "patient 7", "Subject_0012" in a path.
var subjectName = regexp.MustCompile(`(?i)(?:^|[^a-z])(sub|subj|subject|pat|patient|volunteer|case)[-_ ]?([0-9]+)`)

// SubjectOf guesses from the path of a file whose image it is: the first name
// like "sub-01" or "patient01" in it, otherwise the path itself.
func SubjectOf(name string) string {
	name = path.Clean(strings.ReplaceAll(name, `\`, "/"))
	if m := subjectName.FindStringSubmatch(name); m != nil {
		number := strings.TrimLeft(m[2], "0")
		return strings.ToLower(m[1]) + " " + number
	}
	return name
}
