package derive

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/big"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// UIDs are the SOP Instance UID and Series Instance UID of the derived object:
// a hash of the source's UIDs, the model and the parameters, and of nothing
// else, so that a retry after a crash makes an object of the same name. Study and
// series of the source have a part in both: a SOP Instance UID that stands in two
// series, as scanners and anonymizers give, makes two objects (PS3.5 9). They have
// the form 2.25.<UUID as a decimal number> (PS3.5 B.2), at most 44 characters.
func UIDs(o *dcm.Object, p Params) (sopInstance, series string) {
	return p.uid("instance", o, o.String(dcm.SOPInstanceUID)), p.uid("series", o, o.String(dcm.SeriesInstanceUID))
}

// uid replaces a UID of a kind in the source o.
func (p *Params) uid(kind string, o *dcm.Object, source string) string {
	return p.hash("denoised derived object 2", kind, source, o.String(dcm.SeriesInstanceUID),
		o.String(dcm.StudyInstanceUID))
}

// hash makes a UID of what is named and of the parameters.
func (p *Params) hash(named ...string) string {
	h := sha256.New()
	field := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	for _, s := range append(named, p.Model.Name, p.Model.Version, p.Model.Hash, p.Model.Method, p.Quality) {
		field(s)
	}
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], math.Float64bits(p.Strength+0)) // -0 and 0 are one strength
	h.Write(n[:])
	id := h.Sum(nil)[:16]
	id[6] = id[6]&0x0F | 0x80 // a version 8 UUID, RFC 9562
	id[8] = id[8]&0x3F | 0x80
	return "2.25." + new(big.Int).SetBytes(id).String()
}
