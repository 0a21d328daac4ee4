package dataset

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// IsDICOM looks for the prefix of PS3.10 7.1.
func IsDICOM(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var b [132]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil
		}
		return false, err
	}
	return string(b[128:]) == "DICM", nil
}

// openObject scans a DICOM file; the caller closes it. Damage that leaves an
// Object is for Objects to judge.
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

// series is the images of one series and size, or one enhanced object.
type series struct {
	objects           Objects
	subject, modality string
	files             []dicomFile
}

type dicomFile struct {
	path, name string
	number     int64 // InstanceNumber
	frames     int
}

// keep notes a DICOM file with those of its series, or says why it does not.
func (r *Reader) keep(path, name string) (reason, detail string) {
	o, f, err := openObject(path)
	if err != nil {
		return readReason(err)
	}
	defer f.Close()
	if reason, detail := r.Objects.Inspect(o); reason != "" {
		return reason, detail
	}
	uid := sha256.Sum256([]byte(o.String(dcm.SOPInstanceUID)))
	if r.seen[uid] {
		return Duplicate, "another file has the same SOP instance UID"
	}
	r.seen[uid] = true
	rows, _ := o.Int(dcm.Rows)
	columns, _ := o.Int(dcm.Columns)
	frames := r.Objects.Frames(o)
	key := fmt.Sprintf("%s %dx%d", o.String(dcm.SeriesInstanceUID), columns, rows)
	if frames > 1 {
		key = "object " + o.String(dcm.SOPInstanceUID)
	}
	s := r.series[key]
	if s == nil {
		s = &series{objects: r.Objects, subject: subjectOf(o, name), modality: o.String(dcm.Modality)}
		r.series[key] = s
	}
	number, _ := o.Int(dcm.InstanceNumber)
	s.files = append(s.files, dicomFile{path: path, name: name, number: number, frames: frames})
	return "", ""
}

// subjectOf tells the subjects of images apart: by the patient's ID, else the
// study's UID, else the path.
func subjectOf(o *dcm.Object, name string) string {
	if id := o.String(dcm.PatientID); id != "" {
		return "patient " + id
	}
	if uid := o.String(dcm.StudyInstanceUID); uid != "" {
		return "study " + uid
	}
	return SubjectOf(name)
}

// dicom returns the series that were found, each in the order of its instance numbers.
func (r *Reader) dicom() []volume {
	var list []volume
	for _, s := range r.series {
		slices.SortFunc(s.files, func(a, b dicomFile) int {
			return cmp.Or(cmp.Compare(a.number, b.number), strings.Compare(a.name, b.name))
		})
		first := slices.MinFunc(s.files, func(a, b dicomFile) int { return strings.Compare(a.name, b.name) })
		list = append(list, volume{first.name, func(add func(Volume) error) error { return s.read(first.name, add) }})
	}
	return list
}

// read gives the series to add. At most one file is open at a time.
func (s *series) read(source string, add func(Volume) error) error {
	type place struct{ file, frame int }
	var places []place
	for i, f := range s.files {
		for k := range f.frames {
			places = append(places, place{i, k})
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
	read := func(k int) (Image, error) {
		p := places[k]
		if p.file != at {
			if file != nil {
				file.Close()
			}
			var err error
			at = -1
			if object, file, err = openObject(s.files[p.file].path); err != nil {
				file = nil
				reason, detail := readReason(err)
				return Image{}, &SkipError{Reason: reason, Detail: detail}
			}
			at = p.file
		}
		img, err := s.objects.ReadFrame(object, p.frame)
		if err != nil {
			return Image{}, fmt.Errorf("%s: %w", s.files[p.file].name, err)
		}
		return img, nil
	}
	return add(Volume{Source: source, Subject: s.subject, Modality: s.modality, Slices: len(places), Read: read})
}
