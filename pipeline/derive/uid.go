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
// else, so that a retry after a crash makes an object of the same name. They have
// the form 2.25.<UUID as a decimal number> (PS3.5 B.2), at most 44 characters.
func UIDs(o *dcm.Object, p Params) (sopInstance, series string) {
	return hashUID("instance", o.String(dcm.SOPInstanceUID), p), hashUID("series", o.String(dcm.SeriesInstanceUID), p)
}

func hashUID(kind, source string, p Params) string {
	h := sha256.New()
	field := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	for _, s := range []string{"denoised derived object 1", kind, source, p.Model.Name, p.Model.Version, p.Model.Hash, p.Model.Method, p.Quality} {
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
