package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/nifti"
	"github.com/diffdenoise/denoised/models"
	"github.com/diffdenoise/denoised/models/train"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// Limits of a folder that is read.
const (
	maxDatasetFiles = 2_000_000
	maxDatasetDepth = 64
	maxVolumeBytes  = 1 << 30 // of an uncompressed NIfTI file
)

// Reasons of what readDataset leaves out, besides those of models/train and of
// pipeline/derive.
const (
	skipLink      = "link" // a broken link, or one to what was read already
	skipNotAFile  = "not-a-file"
	skipNoAccess  = "no-access"
	skipDuplicate = "duplicate" // another file holds the same image
	skipGone      = "gone"      // removed while it was read, as a spool's images are in time
	skipConflict  = "conflict"  // the spool holds other pixels under the same UID
	skipColour    = "colour"
	skipNotImage  = "not-an-image"
)

// readDataset finds the images of a folder tree, a single file or the state
// folder of a daemon, and gives them to add, volume by volume: a NIfTI file is a
// volume, or as many as its fourth axis has; a DICOM series is one for each size
// of image, an enhanced object one by itself; a grey PNG is a volume of one
// slice. Everything else goes to skip. Files are only read, and may come and go
// meanwhile.
//
// Sources are paths relative to root, with forward slashes; a DICOM series is
// named by its first file. Volumes come in the order of their names.
func readDataset(ctx context.Context, root string, add func(train.Volume) error, skip func(train.Skip)) error {
	r := &datasetReader{add: add, skip: skip}
	return r.read(ctx, root)
}

// datasetReader is one call of readDataset. Its zero value with add and skip set is
// ready.
type datasetReader struct {
	add  func(train.Volume) error
	skip func(train.Skip)
	// exclude, if not nil, tells by their source what is not even looked at.
	exclude func(source string) bool
	spool   bool // set by read: root is the spool of a daemon

	root   string
	series map[string]*dicomSeries // by UID and size
	seen   map[[32]byte]bool       // hashes of SOP instance UIDs
}

func (r *datasetReader) read(ctx context.Context, root string) error {
	var err error
	if r.root, r.spool, err = datasetRoot(root); err != nil {
		return err
	}
	r.series, r.seen = map[string]*dicomSeries{}, map[[32]byte]bool{}
	var volumes []datasetVolume
	err = walkFiles(ctx, r.root, func(path string) error {
		volumes = append(volumes, r.look(path)...)
		return nil
	}, func(path, reason, detail string) {
		r.skip(train.Skip{Source: r.name(path), Reason: reason, Detail: detail})
	})
	if err != nil {
		return err
	}
	volumes = append(volumes, r.dicom()...)
	slices.SortFunc(volumes, func(a, b datasetVolume) int { return strings.Compare(a.source, b.source) })
	for _, v := range volumes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := v.read(r.add); err != nil {
			return err
		}
	}
	return nil
}

// datasetRoot is the folder of the originals if root is the state folder of a
// daemon or its spool, else root.
func datasetRoot(root string) (dir string, ours bool, err error) {
	info, err := os.Stat(root)
	if err != nil {
		return "", false, err
	}
	if !info.IsDir() {
		return root, false, nil
	}
	for _, dir := range []string{filepath.Join(root, "spool"), root} {
		if isFolder(filepath.Join(dir, string(spool.Original), "00")) && isFolder(filepath.Join(dir, string(spool.Derived), "00")) {
			return filepath.Join(dir, string(spool.Original)), true, nil
		}
	}
	return root, false, nil
}

// datasetVolume is something that holds volumes, not yet read.
type datasetVolume struct {
	source string
	read   func(add func(train.Volume) error) error
}

// name is the path relative to the root.
func (r *datasetReader) name(path string) string {
	rel, err := filepath.Rel(r.root, path)
	if err != nil || rel == "." {
		rel = filepath.Base(path)
	}
	return filepath.ToSlash(rel)
}

// look finds out what a file is and returns the volume that it is by itself. DICOM
// images are kept for dicom.
func (r *datasetReader) look(path string) []datasetVolume {
	name := r.name(path)
	no := func(reason, detail string) []datasetVolume {
		r.skip(train.Skip{Source: name, Reason: reason, Detail: detail})
		return nil
	}
	switch lower := strings.ToLower(name); {
	case r.exclude != nil && r.exclude(name):
		return no(skipExcluded, "")
	case nifti.IsName(lower):
		return []datasetVolume{{name, func(add func(train.Volume) error) error { return r.nifti(path, name, add) }}}
	case strings.HasSuffix(lower, ".png"):
		return []datasetVolume{{name, func(add func(train.Volume) error) error { return r.png(path, name, add) }}}
	case spool.InConflict(lower):
		return no(skipConflict, "")
	}
	ok, err := isPart10(path)
	switch {
	case err != nil:
		return no(readReason(err))
	case !ok:
		return no(skipNotImage, "neither NIfTI nor DICOM nor PNG")
	}
	o, f, err := openObject(path)
	if err != nil {
		return no(readReason(err))
	}
	defer f.Close()
	if v := derive.Inspect(o); !v.OK() {
		return no(string(v.Reason), v.Detail)
	}
	uid := sha256.Sum256([]byte(o.String(dcm.SOPInstanceUID)))
	if r.seen[uid] {
		return no(skipDuplicate, "another file has the same SOP instance UID")
	}
	r.seen[uid] = true
	rows, _ := o.Int(dcm.Rows)
	columns, _ := o.Int(dcm.Columns)
	frames := derive.Frames(o)
	key := fmt.Sprintf("%s %dx%d", o.String(dcm.SeriesInstanceUID), columns, rows)
	if frames > 1 {
		key = "object " + o.String(dcm.SOPInstanceUID)
	}
	s := r.series[key]
	if s == nil {
		s = &dicomSeries{subject: dicomSubject(o, name), modality: o.String(dcm.Modality)}
		r.series[key] = s
	}
	number, _ := o.Int(dcm.InstanceNumber)
	s.files = append(s.files, dicomFile{path: path, name: name, number: number, frames: frames})
	return nil
}

// readReason is why a file cannot be read.
func readReason(err error) (reason, detail string) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return skipGone, ""
	case errors.Is(err, fs.ErrPermission):
		return skipNoAccess, "no permission to read it"
	}
	return train.SkipUnreadable, err.Error()
}

// openObject scans a DICOM file; the caller closes it. Damage that leaves an
// Object is for derive.Inspect to judge.
func openObject(path string) (*dcm.Object, *os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	o, err := dcm.Scan(f, info.Size())
	if damage := (*dcm.ScanError)(nil); o == nil || err != nil && !errors.As(err, &damage) {
		f.Close()
		return nil, nil, cmp.Or(err, errors.New("not readable as DICOM"))
	}
	return o, f, nil
}

// dicomSubject tells the subjects of images apart: by the patient's ID, else the
// study's UID, else the path. It is never shown.
func dicomSubject(o *dcm.Object, name string) string {
	if id := o.String(dcm.PatientID); id != "" {
		return "patient " + id
	}
	if uid := o.String(dcm.StudyInstanceUID); uid != "" {
		return "study " + uid
	}
	return train.SubjectOf(name)
}

// dicomSeries is the images of one series and size, or one enhanced object.
type dicomSeries struct {
	subject, modality string
	files             []dicomFile
}

type dicomFile struct {
	path, name string
	number     int64 // InstanceNumber
	frames     int
}

// dicom returns the series that were found.
func (r *datasetReader) dicom() []datasetVolume {
	var list []datasetVolume
	for _, s := range r.series {
		slices.SortFunc(s.files, func(a, b dicomFile) int {
			return cmp.Or(cmp.Compare(a.number, b.number), strings.Compare(a.name, b.name))
		})
		first := slices.MinFunc(s.files, func(a, b dicomFile) int { return strings.Compare(a.name, b.name) })
		list = append(list, datasetVolume{first.name, func(add func(train.Volume) error) error { return s.read(first.name, add) }})
	}
	return list
}

// read gives the series to add. At most one file is open at a time.
func (s *dicomSeries) read(source string, add func(train.Volume) error) error {
	type frame struct{ file, frame int }
	var frames []frame
	for i, f := range s.files {
		for k := range f.frames {
			frames = append(frames, frame{i, k})
		}
	}
	var (
		at     = -1
		object *dcm.Object
		file   *os.File
	)
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	return add(train.Volume{Source: source, Subject: s.subject, Modality: s.modality, Slices: len(frames), Read: func(k int) (models.Image, error) {
		f := frames[k]
		if f.file != at {
			if file != nil {
				file.Close()
			}
			var err error
			at = -1
			if object, file, err = openObject(s.files[f.file].path); err != nil {
				file = nil
				reason, detail := readReason(err)
				return models.Image{}, &train.SkipError{Reason: reason, Detail: detail}
			}
			at = f.file
		}
		img, err := derive.ReadFrame(object, f.frame)
		if err != nil {
			return models.Image{}, fmt.Errorf("%s: %w", s.files[f.file].name, err)
		}
		return models.Image{Width: img.Width, Height: img.Height, Pixels: img.Pixels, Skip: img.Skip}, nil
	}})
}

// nifti gives the volumes of a NIfTI file to add.
func (r *datasetReader) nifti(path, name string, add func(train.Volume) error) error {
	v, err := nifti.ReadLimit(path, maxVolumeBytes)
	if err != nil {
		reason, detail := readReason(err)
		if format := (*nifti.FormatError)(nil); errors.As(err, &format) {
			detail = format.Problem
			switch {
			case format.Colour:
				reason = skipColour
			case format.Size:
				reason = train.SkipTooLarge
			}
		}
		r.skip(train.Skip{Source: name, Reason: reason, Detail: detail})
		return nil
	}
	for t := range v.Repeats {
		source := name
		if v.Repeats > 1 {
			source = fmt.Sprintf("%s#%d", name, t)
		}
		err := add(train.Volume{Source: source, Subject: train.SubjectOf(name), Slices: v.Depth, Read: func(k int) (models.Image, error) {
			return niftiSlice(v, t*v.Depth+k)
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

// niftiSlice returns slice k with the voxels that are not finite masked.
func niftiSlice(v *nifti.Volume, k int) (models.Image, error) {
	img := models.Image{Width: v.Width, Height: v.Height, Pixels: make([]float32, v.Width*v.Height)}
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

// png gives a grey PNG of 8 or 16 bits to add.
func (r *datasetReader) png(path, name string, add func(train.Volume) error) error {
	img, reason, detail := readPNG(path)
	if reason != "" {
		r.skip(train.Skip{Source: name, Reason: reason, Detail: detail})
		return nil
	}
	return add(train.Volume{Source: name, Subject: train.SubjectOf(name), Slices: 1, Read: func(int) (models.Image, error) {
		c := img
		c.Pixels = slices.Clone(img.Pixels)
		return c, nil
	}})
}

func readPNG(path string) (img models.Image, reason, detail string) {
	f, err := os.Open(path)
	if err != nil {
		reason, detail = readReason(err)
		return img, reason, detail
	}
	defer f.Close()
	conf, err := png.DecodeConfig(f)
	switch {
	case err != nil:
		return img, train.SkipUnreadable, err.Error()
	case conf.ColorModel != color.GrayModel && conf.ColorModel != color.Gray16Model:
		return img, skipColour, "a PNG must be grey, of 8 or 16 bits"
	case conf.Width > derive.MaxPixels/max(conf.Height, 1):
		return img, train.SkipTooLarge, fmt.Sprintf("%d×%d pixels", conf.Width, conf.Height)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return img, train.SkipUnreadable, err.Error()
	}
	decoded, err := png.Decode(f)
	if err != nil {
		return img, train.SkipUnreadable, err.Error()
	}
	img = models.Image{Width: conf.Width, Height: conf.Height, Pixels: make([]float32, 0, conf.Width*conf.Height)}
	b := decoded.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			switch p := decoded.(type) {
			case *image.Gray:
				img.Pixels = append(img.Pixels, float32(p.GrayAt(x, y).Y))
			case *image.Gray16:
				img.Pixels = append(img.Pixels, float32(p.Gray16At(x, y).Y))
			default: // grey with a transparent value
				return models.Image{}, skipColour, "a PNG must be grey without transparency"
			}
		}
	}
	return img, "", ""
}

// walkFiles calls visit for every file of a tree, in the order of the names
// within a folder, and skip for what cannot be visited. Links are followed; a
// file or folder that two ways lead to is visited once, so loops end. root may
// be a file. The error is that of visit, of ctx, or of the root itself.
func walkFiles(ctx context.Context, root string, visit func(path string) error, skip func(path, reason, detail string)) error {
	w := &fileWalk{ctx: ctx, visit: visit, skip: skip, seen: map[string]bool{}}
	info, err := os.Stat(root)
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		return visit(root)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is neither a file nor a folder", root)
	}
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	if _, err := os.ReadDir(root); err != nil {
		return err
	}
	return w.folder(root, real, 0)
}

type fileWalk struct {
	ctx   context.Context
	visit func(path string) error
	skip  func(path, reason, detail string)
	seen  map[string]bool // paths without links
	files int
}

// folder walks a folder whose path without links is real.
func (w *fileWalk) folder(path, real string, depth int) error {
	if w.seen[real] {
		w.skip(path, skipLink, "it leads to a folder that is read already")
		return nil
	}
	w.seen[real] = true
	if depth > maxDatasetDepth {
		w.skip(path, skipNotAFile, fmt.Sprintf("folders nested deeper than %d", maxDatasetDepth))
		return nil
	}
	items, err := os.ReadDir(path)
	if err != nil {
		reason, detail := readReason(err)
		w.skip(path, reason, detail)
		return nil
	}
	for _, item := range items {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		p, r, mode := filepath.Join(path, item.Name()), filepath.Join(real, item.Name()), item.Type()
		if mode&fs.ModeSymlink != 0 {
			target, err := filepath.EvalSymlinks(p)
			if err != nil {
				w.skip(p, skipLink, "it leads nowhere, or in a circle")
				continue
			}
			info, err := os.Stat(target)
			if err != nil {
				reason, detail := readReason(err)
				w.skip(p, reason, detail)
				continue
			}
			r, mode = target, info.Mode().Type()
		}
		switch {
		case mode.IsDir():
			if err := w.folder(p, r, depth+1); err != nil {
				return err
			}
		case !mode.IsRegular():
			w.skip(p, skipNotAFile, "a device, socket or pipe")
		case w.seen[r]:
			w.skip(p, skipLink, "it leads to a file that is read already")
		default:
			if w.files++; w.files > maxDatasetFiles {
				return fmt.Errorf("more than %d files in %s; choose a smaller folder", maxDatasetFiles, path)
			}
			w.seen[r] = true
			if err := w.visit(p); err != nil {
				return err
			}
		}
	}
	return nil
}
