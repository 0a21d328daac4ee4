package phantom

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// IDs identify a series in DICOM. Fields may be changed before use.
type IDs struct {
	PatientID, PatientName                                   string
	StudyInstanceUID, SeriesInstanceUID, FrameOfReferenceUID string
	SeriesNumber                                             int
	SeriesDescription                                        string
	Time                                                     time.Time // of study, series and acquisition
}

// NewIDs returns identifiers that depend on nothing but the name.
func NewIDs(name string) IDs {
	return IDs{
		PatientID: "PHANTOM", PatientName: "Phantom^Head",
		StudyInstanceUID: uid("study", name), SeriesInstanceUID: uid("series", name), FrameOfReferenceUID: uid("frame", name),
		SeriesNumber: 1, SeriesDescription: "T1 AXIAL PHANTOM",
		Time: time.Date(2020, 1, 1, 12, 0, 0, 0, time.UTC),
	}
}

// SOPInstanceUID returns the UID of one slice of the series.
func (d IDs) SOPInstanceUID(slice int) string {
	return uid("instance", d.SeriesInstanceUID+"/"+strconv.Itoa(slice))
}

// uid is a UID made of a 128-bit number (PS3.5 B.2).
func uid(kind, name string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + name))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // RFC 9562, version 8
	return "2.25." + new(big.Int).SetBytes(sum[:16]).String()
}

const (
	mrImageStorage = "1.2.840.10008.5.1.4.1.1.4"
	explicitLE     = "1.2.840.10008.1.2.1"

	fieldOfView    = 230. // millimetres, the shorter side
	sliceThickness = 4.
)

// WriteDICOM writes one noisy slice as a Part-10 file: MR Image Storage,
// explicit VR little endian, 12 bits stored in 16, signal 1 stored as 3000.
func (v *Volume) WriteDICOM(w io.Writer, slice int, ids IDs) error {
	return v.write(w, slice, ids, v.Noisy)
}

func (v *Volume) write(w io.Writer, slice int, ids IDs, from [][]float32) error {
	if slice < 0 || slice >= len(from) {
		return fmt.Errorf("write slice %d of %d: no such slice", slice, len(from))
	}
	sop := ids.SOPInstanceUID(slice)
	meta := dcm.FileMeta{SOPClassUID: mrImageStorage, SOPInstanceUID: sop, TransferSyntaxUID: explicitLE, SourceAETitle: "PHANTOM"}
	if _, err := dcm.WriteFileMeta(w, meta); err != nil {
		return err
	}
	s := v.Spec
	spacing := fieldOfView / float64(min(s.Width, s.Height))
	date, clock := ids.Time.Format("20060102"), ids.Time.Format("150405")
	z := (float64(slice) - float64(s.Slices-1)/2) * sliceThickness
	position := fmt.Sprintf("%.4f\\%.4f\\%.4f", -spacing*float64(s.Width-1)/2, -spacing*float64(s.Height-1)/2, z)
	pixels := make([]byte, 2*len(from[slice]))
	for i, p := range from[slice] {
		binary.LittleEndian.PutUint16(pixels[2*i:], stored(p))
	}
	lines := strconv.Itoa(int(float64(s.Height) / s.ZeroFill))
	var b elements
	b.text(0x00080005, "CS", "ISO_IR 100")
	b.text(0x00080008, "CS", `ORIGINAL\PRIMARY\M\NORM`)
	b.text(0x00080016, "UI", mrImageStorage)
	b.text(0x00080018, "UI", sop)
	b.text(0x00080020, "DA", date)
	b.text(0x00080021, "DA", date)
	b.text(0x00080022, "DA", date)
	b.text(0x00080023, "DA", date)
	b.text(0x00080030, "TM", clock)
	b.text(0x00080031, "TM", clock)
	b.text(0x00080032, "TM", clock)
	b.text(0x00080033, "TM", clock)
	b.text(0x00080050, "SH", "")
	b.text(0x00080060, "CS", "MR")
	b.text(0x00080070, "LO", "Phantom scanner")
	b.text(0x00080090, "PN", "")
	b.text(0x00081030, "LO", "PHANTOM")
	b.text(0x0008103E, "LO", ids.SeriesDescription)
	b.text(0x00081090, "LO", "Procedural head")
	b.text(0x00100010, "PN", ids.PatientName)
	b.text(0x00100020, "LO", ids.PatientID)
	b.text(0x00100030, "DA", "")
	b.text(0x00100040, "CS", "O")
	b.text(0x00180015, "CS", "HEAD")
	b.text(0x00180020, "CS", "GR")
	b.text(0x00180021, "CS", "SP")
	b.text(0x00180022, "CS", "")
	b.text(0x00180023, "CS", "2D")
	b.text(0x00180050, "DS", strconv.FormatFloat(sliceThickness, 'g', -1, 64))
	b.text(0x00180080, "DS", "500")
	b.text(0x00180081, "DS", "8")
	b.text(0x00180083, "DS", "1")
	b.text(0x00180084, "DS", "63.87")
	b.text(0x00180087, "DS", "1.5")
	b.text(0x00180088, "DS", strconv.FormatFloat(sliceThickness, 'g', -1, 64))
	b.text(0x00180089, "IS", lines)
	b.text(0x00180091, "IS", "1")
	b.text(0x00181020, "LO", "1")
	b.text(0x00181030, "LO", "T1_AX_PHANTOM")
	b.text(0x00181312, "CS", "ROW")
	b.text(0x00181314, "DS", "80")
	b.text(0x00185100, "CS", "HFS")
	b.text(0x0020000D, "UI", ids.StudyInstanceUID)
	b.text(0x0020000E, "UI", ids.SeriesInstanceUID)
	b.text(0x00200010, "SH", "1")
	b.text(0x00200011, "IS", strconv.Itoa(ids.SeriesNumber))
	b.text(0x00200012, "IS", "1")
	b.text(0x00200013, "IS", strconv.Itoa(slice+1))
	b.text(0x00200032, "DS", position)
	b.text(0x00200037, "DS", `1\0\0\0\1\0`)
	b.text(0x00200052, "UI", ids.FrameOfReferenceUID)
	b.text(0x00201002, "IS", strconv.Itoa(s.Slices))
	b.text(0x00201040, "LO", "")
	b.text(0x00201041, "DS", fmt.Sprintf("%.4f", z))
	b.word(0x00280002, 1)
	b.text(0x00280004, "CS", "MONOCHROME2")
	b.word(0x00280010, uint16(s.Height))
	b.word(0x00280011, uint16(s.Width))
	b.text(0x00280030, "DS", fmt.Sprintf("%.6g\\%.6g", spacing, spacing))
	b.word(0x00280100, 16)
	b.word(0x00280101, 12)
	b.word(0x00280102, 11)
	b.word(0x00280103, 0)
	b.text(0x00281050, "DS", "1400")
	b.text(0x00281051, "DS", "2800")
	b.put(0x7FE00010, "OW", pixels)
	_, err := w.Write(b)
	return err
}

// elements is a data set in explicit VR little endian (PS3.5 7.1.2).
type elements []byte

func (b *elements) text(tag uint32, vr, value string) {
	pad := " "
	if vr == "UI" {
		pad = "\x00"
	}
	if len(value)%2 == 1 {
		value += pad
	}
	b.put(tag, vr, []byte(value))
}

func (b *elements) word(tag uint32, v uint16) {
	b.put(tag, "US", binary.LittleEndian.AppendUint16(nil, v))
}

func (b *elements) put(tag uint32, vr string, value []byte) {
	le := binary.LittleEndian
	*b = le.AppendUint16(*b, uint16(tag>>16))
	*b = le.AppendUint16(*b, uint16(tag))
	*b = append(*b, vr...)
	if vr == "OW" {
		*b = append(*b, 0, 0)
		*b = le.AppendUint32(*b, uint32(len(value)))
	} else {
		*b = le.AppendUint16(*b, uint16(len(value)))
	}
	*b = append(*b, value...)
}
