package derive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// MismatchError says in what a derived object differs from its source where it
// must not.
type MismatchError struct {
	Tag    dcm.Tag
	Reason string
}

// Error names the attribute and the rule, and no value.
func (e *MismatchError) Error() string {
	return fmt.Sprintf("verify derived object: %v %s", e.Tag, e.Reason)
}

func mismatch(t dcm.Tag, format string, args ...any) error {
	return &MismatchError{Tag: t, Reason: fmt.Sprintf(format, args...)}
}

// mayChange lists the top-level attributes that Write may replace or insert;
// verifyChanged says what some of them must keep.
var mayChange = map[dcm.Tag]bool{
	dcm.ImageType: true, dcm.InstanceCreationDate: true, dcm.InstanceCreationTime: true, dcm.InstanceCreatorUID: true,
	dcm.SOPInstanceUID: true, dcm.SeriesDate: true, dcm.ContentDate: true, dcm.SeriesTime: true, dcm.ContentTime: true,
	dcm.SeriesDescription: true, dcm.DerivationDescription: true, dcm.SourceImageSequence: true,
	dcm.SourceImageEvidenceSequence: true, dcm.DerivationCodeSequence: true, dcm.ContentQualification: true,
	dcm.ContributingEquipmentSequence: true, dcm.SeriesInstanceUID: true, dcm.SeriesNumber: true,
	dcm.SmallestImagePixelValue: true, dcm.LargestImagePixelValue: true, dcm.PixelData: true,
	dcm.SharedFunctionalGroupsSequence: true, dcm.PerFrameFunctionalGroupsSequence: true,
	dcm.ConcatenationUID: true, dcm.SOPInstanceUIDOfConcatenationSource: true,
	dcm.ReferencedImageSequence: true, dcm.ReferencedSeriesSequence: true,
}

// mayVanish lists the attributes that Write may remove.
var mayVanish = func() map[dcm.Tag]bool {
	m := map[dcm.Tag]bool{dcm.SmallestImagePixelValue: true, dcm.LargestImagePixelValue: true}
	for _, t := range removed {
		m[t] = true
	}
	return m
}()

// Verify compares a derived object with its source before it is sent. It fails
// with a *MismatchError unless every element outside the list of
// docs/derived-objects.md is the same, byte for byte; the changed ones keep what
// they must; the pixel data has the same length; and padding pixels and the
// bits above BitsStored are the source's. It reads both objects once.
func Verify(src, derived *dcm.Object) error {
	for _, o := range []*dcm.Object{src, derived} {
		if d := o.Damage(); d != nil {
			return fmt.Errorf("verify derived object: %w", d)
		}
		if o.Deflated() || !o.Ordered() {
			return mismatch(0, "cannot be compared: deflated or out of order")
		}
	}
	if src.TransferSyntaxUID() != derived.TransferSyntaxUID() || src.Encoding() != derived.Encoding() {
		return mismatch(dcm.TransferSyntaxUID, "differs")
	}
	if err := verifyElements(src, derived); err != nil {
		return err
	}
	if err := verifyIdentity(src, derived); err != nil {
		return err
	}
	return verifyPixels(src, derived)
}

// verifyElements walks both data sets side by side in tag order.
func verifyElements(src, derived *dcm.Object) error {
	stale := map[dcm.Tag]bool{}
	for _, t := range stalePrivate(src) {
		stale[t] = true
	}
	return merge(children(src), children(derived), func(a, b dcm.Element) error {
		switch {
		case !a.OK():
			if !mayChange[b.Tag()] {
				return mismatch(b.Tag(), "was added")
			}
		case !b.OK():
			if t := a.Tag(); !mayVanish[t] && !isGroupLength(t) && !stale[t] {
				return mismatch(t, "is missing")
			}
		case mayVanish[a.Tag()] && !mayChange[a.Tag()]:
			return mismatch(a.Tag(), "is stale and still there")
		case !mayChange[a.Tag()]:
			return same(a, b)
		default:
			return verifyChanged(a, b)
		}
		return nil
	})
}

// verifyChanged checks what an allowed change must keep.
func verifyChanged(a, b dcm.Element) error {
	switch t := a.Tag(); t {
	case dcm.PixelData:
		if a.VR() != b.VR() || a.Length() != b.Length() || a.Encapsulated() != b.Encapsulated() {
			return mismatch(t, "has another form")
		}
	case dcm.ImageType:
		return derivedFrom(a, b)
	case dcm.SeriesDescription:
		old, err := a.Bytes(4096)
		if err != nil {
			return err
		}
		now, err := b.Bytes(4096 + 64)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(now, bytes.TrimRight(old, " \x00")) {
			return mismatch(t, "lost text")
		}
	case dcm.ContributingEquipmentSequence, dcm.DerivationCodeSequence, dcm.ReferencedImageSequence, dcm.ReferencedSeriesSequence:
		// the source's items stay in front
		items := collect(b)
		i := 0
		for item := range a.Children() {
			if i >= len(items) {
				return mismatch(t, "lost items")
			}
			if err := same(item, items[i]); err != nil {
				return err
			}
			i++
		}
	case dcm.SharedFunctionalGroupsSequence, dcm.PerFrameFunctionalGroupsSequence:
		return verifyGroups(a, b)
	}
	return nil
}

// verifyGroups compares functional groups: in each item only the derivation and
// the frame type may differ.
func verifyGroups(a, b dcm.Element) error {
	if a.VR() != b.VR() || a.Undefined() != b.Undefined() {
		return mismatch(a.Tag(), "has another form")
	}
	return pairs(a, b, func(x, y dcm.Element) error {
		return merge(collect(x), collect(y), func(p, q dcm.Element) error {
			switch {
			case !p.OK():
				if q.Tag() != dcm.DerivationImageSequence {
					return mismatch(q.Tag(), "was added to a functional group")
				}
			case !q.OK():
				if p.Tag() != dcm.DerivationImageSequence {
					return mismatch(p.Tag(), "is missing in a functional group")
				}
			case p.Tag() == dcm.DerivationImageSequence:
			case p.Tag() == dcm.MRImageFrameTypeSequence:
				return pairs(p, q, verifyFrameType)
			default:
				return same(p, q)
			}
			return nil
		})
	})
}

func verifyFrameType(a, b dcm.Element) error {
	return merge(collect(a), collect(b), func(p, q dcm.Element) error {
		switch {
		case !p.OK() && q.Tag() == dcm.FrameType:
			return nil
		case !p.OK():
			return mismatch(q.Tag(), "was added to a frame type")
		case !q.OK():
			return mismatch(p.Tag(), "is missing in a frame type")
		case p.Tag() == dcm.FrameType:
			return derivedFrom(p, q)
		}
		return same(p, q)
	})
}

// derivedFrom: value 1 is DERIVED, the others are kept, values may follow.
func derivedFrom(a, b dcm.Element) error {
	old, now := a.Strings(), b.Strings()
	if len(now) == 0 || now[0] != "DERIVED" || len(now) < len(old) {
		return mismatch(b.Tag(), "does not say DERIVED")
	}
	for i := 1; i < len(old); i++ {
		if old[i] != now[i] {
			return mismatch(b.Tag(), "value %d changed", i+1)
		}
	}
	return nil
}

// verifyIdentity: a new object in a new series of the same study, marked as ours.
func verifyIdentity(src, derived *dcm.Object) error {
	for _, t := range []dcm.Tag{dcm.SOPInstanceUID, dcm.SeriesInstanceUID, dcm.ConcatenationUID, dcm.SOPInstanceUIDOfConcatenationSource} {
		u := derived.String(t)
		if u == "" && src.String(t) == "" && concatenationUIDs[t] != "" {
			continue
		}
		if u == "" || u == src.String(t) {
			return mismatch(t, "is not new")
		}
		if !strings.HasPrefix(u, "2.25.") || len(u) > 64 {
			return mismatch(t, "is not of our making")
		}
	}
	for meta, t := range map[dcm.Tag]dcm.Tag{
		dcm.MediaStorageSOPInstanceUID: dcm.SOPInstanceUID, dcm.MediaStorageSOPClassUID: dcm.SOPClassUID,
	} {
		if derived.String(meta) != derived.String(t) {
			return mismatch(meta, "differs from the data set")
		}
	}
	if !refersTo(derived, src.String(dcm.SOPInstanceUID)) {
		return mismatch(dcm.SourceImageSequence, "does not refer to the source")
	}
	if !derived.Has(dcm.ImageType) || !derived.Has(dcm.ContributingEquipmentSequence) || !namesUs(derived) {
		return mismatch(dcm.ContributingEquipmentSequence, "does not name this product")
	}
	return nil
}

// refersTo reports a reference to the instance in one of the sequences that
// name the source.
func refersTo(o *dcm.Object, instance string) bool {
	for item := range o.Find(dcm.SourceImageSequence).Children() {
		if item.Child(dcm.ReferencedSOPInstanceUID).String() == instance {
			return true
		}
	}
	for study := range o.Find(dcm.SourceImageEvidenceSequence).Children() {
		for series := range study.Child(dcm.ReferencedSeriesSequence).Children() {
			for item := range series.Child(dcm.ReferencedSOPSequence).Children() {
				if item.Child(dcm.ReferencedSOPInstanceUID).String() == instance {
					return true
				}
			}
		}
	}
	return false
}

// verifyPixels: padding and unused bits are untouched, no pixel became padding.
func verifyPixels(src, derived *dcm.Object) error {
	v, l := pixelLayout(src)
	if !v.OK() {
		return &RefusedError{v}
	}
	b := derived.Find(dcm.PixelData)
	if !b.OK() {
		return mismatch(dcm.PixelData, "is missing")
	}
	c := newCells(src, l)
	above := ^c.mask
	switch {
	case c.signed: // the sign may extend over the rest
		above = 0
	case !c.wide:
		above &= 0xFF
	}
	const chunk = 64 << 10
	n := min(l.pixels.Length(), chunk)
	buf := make([]byte, 2*n)
	for pos := int64(0); pos < l.pixels.Length(); pos += n {
		k := min(n, l.pixels.Length()-pos)
		x, y := buf[:k], buf[n:n+k]
		if err := l.pixels.ReadAt(x, pos); err != nil {
			return err
		}
		if err := b.ReadAt(y, pos); err != nil {
			return err
		}
		if above == 0 && !c.padded {
			continue
		}
		if !c.padded { // only bits to compare: any number of cells at a time
			if differ(x, y, above, c.wide) {
				return mismatch(dcm.PixelData, "bits above the stored ones changed")
			}
			continue
		}
		for i := range int(k) / c.bytes() {
			p, q := c.cell(x, i), c.cell(y, i)
			if p == q {
				continue
			}
			if (p^q)&above != 0 {
				return mismatch(dcm.PixelData, "bits above the stored ones changed")
			}
			if c.padded && (c.isPadding(p, c.value(p)) || c.isPadding(q, c.value(q))) {
				return mismatch(dcm.PixelData, "padding changed")
			}
		}
	}
	return nil
}

// differ reports whether x and y, equally long, differ in the bits of mask in
// any cell.
func differ(x, y []byte, mask uint16, wide bool) bool {
	lanes := uint64(mask) * 0x0001000100010001
	if !wide {
		lanes = uint64(mask&0xFF) * 0x0101010101010101
	}
	for len(x) >= 8 {
		if (binary.LittleEndian.Uint64(x)^binary.LittleEndian.Uint64(y))&lanes != 0 {
			return true
		}
		x, y = x[8:], y[8:]
	}
	for i := range x {
		if (x[i]^y[i])&byte(lanes>>(8*i)) != 0 {
			return true
		}
	}
	return false
}

func same(a, b dcm.Element) error {
	ok, err := a.EqualEncoding(b)
	if err != nil {
		return err
	}
	if !ok {
		return mismatch(a.Tag(), "changed")
	}
	return nil
}

func children(o *dcm.Object) []dcm.Element {
	list := make([]dcm.Element, 0, 256)
	for e := range o.Elements() {
		list = append(list, e)
	}
	return list
}

func collect(e dcm.Element) []dcm.Element {
	var list []dcm.Element
	for c := range e.Children() {
		list = append(list, c)
	}
	return list
}

// merge walks two lists with ascending tags and calls visit for each tag, with
// the zero Element where one list lacks it.
func merge(a, b []dcm.Element, visit func(a, b dcm.Element) error) error {
	for len(a) > 0 || len(b) > 0 {
		var x, y dcm.Element
		if len(b) == 0 || len(a) > 0 && a[0].Tag() <= b[0].Tag() {
			x = a[0]
		}
		if len(a) == 0 || len(b) > 0 && b[0].Tag() <= a[0].Tag() {
			y = b[0]
		}
		if x.OK() {
			a = a[1:]
		}
		if y.OK() {
			b = b[1:]
		}
		if err := visit(x, y); err != nil {
			return err
		}
	}
	return nil
}

// pairs calls visit for the items of two sequences, which must be as many.
func pairs(a, b dcm.Element, visit func(a, b dcm.Element) error) error {
	x, y := collect(a), collect(b)
	if len(x) != len(y) {
		return mismatch(a.Tag(), "has another number of items")
	}
	for i := range x {
		if err := visit(x[i], y[i]); err != nil {
			return err
		}
	}
	return nil
}
