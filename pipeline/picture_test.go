package pipeline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// What is shown are the stored values, of originals and of what was made of them.
func TestPicture(t *testing.T) {
	a := newArchive()
	o, _ := highOptions(t, a)
	p := start(t, o)
	im := slice(1, 1)
	hq(t, p, im)
	awaitHigh(t, p, im.series, HighDone)
	d := im.dataSet()
	for which, value := range map[string]func(v uint16) uint16{
		"original": func(v uint16) uint16 { return v },
		"fast":     func(v uint16) uint16 { return uint16((float32(v)+700)/2 + 0.5) },
		"high":     func(v uint16) uint16 { return uint16((float32(v)+3*700)/4 + 0.5) },
	} {
		pic, err := p.Picture(t.Context(), im.series, 1, which, 1)
		if err != nil {
			t.Fatal(err)
		}
		if pic.WindowWidth != 0 || pic.Width != 16 || pic.Height != 16 || pic.Frames != 1 || pic.Signed || pic.Stored != 12 || len(pic.Pixels) != 512 {
			t.Errorf("%s: %+v", which, pic)
		}
		for k := range 256 {
			in, out := binary.LittleEndian.Uint16(d[len(d)-512+2*k:]), binary.LittleEndian.Uint16(pic.Pixels[2*k:])
			if out != value(in) {
				t.Fatalf("%s: pixel %d is %d of %d", which, k, out, in)
			}
		}
	}
	for _, c := range []struct {
		uid, which string
		n, frame   int
		want       error
	}{{im.series, "original", 2, 1, ErrUnknownSeries}, {im.series, "best", 1, 1, ErrUnknownSeries}, {"1.9", "original", 1, 1, ErrUnknownSeries}, {im.series, "fast", 0, 1, ErrUnknownSeries},
		{im.series, "original", 1, 2, ErrNotShown}, {im.series, "original", 1, 0, ErrNotShown}} {
		if _, err := p.Picture(t.Context(), c.uid, c.n, c.which, c.frame); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// The window is given in stored values, or not at all if it makes no sense; cells
// of eight bits and signed ones become 16 bits.
func TestPictureForms(t *testing.T) {
	scanned := func(d *dcmtest.DataSet) *dcm.Object {
		o, err := d.Scan(dcmtest.Form{})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, c := range []struct {
		center, width, slope, intercept string
		wantC, wantW                    float64
	}{
		{"300", "500", "", "", 300, 500}, {"300\\40", "500\\80", "2", "100", 100, 250}, {"", "", "", "", 0, 0}, {"300", "", "", "", 0, 0},
		{"x", "500", "", "", 0, 0}, {"300", "-5", "", "", 0, 0}, {"300", "500", "0", "", 0, 0}, {"NaN", "1e308", "1e-300", "", 0, 0},
	} {
		d := dcmtest.MR(20, 16, 1)
		for tag, v := range map[dcm.Tag]string{dcm.WindowCenter: c.center, dcm.WindowWidth: c.width, dcm.RescaleSlope: c.slope, dcm.RescaleIntercept: c.intercept} {
			d.Remove(tag)
			if v != "" {
				d.Text(tag, dcm.DS, v)
			}
		}
		pic, err := picture(scanned(d), 1)
		if err != nil || pic.WindowCenter != c.wantC || pic.WindowWidth != c.wantW || pic.Height != 20 || pic.Width != 16 {
			t.Errorf("%+v: %+v %v", c, pic, err)
		}
	}
	d := dcmtest.MR(20, 16, 1).US(dcm.BitsAllocated, 8).US(dcm.BitsStored, 8).US(dcm.HighBit, 7).Text(dcm.PhotometricInterpretation, dcm.CS, "MONOCHROME1").
		Set(dcm.Node{Tag: dcm.PixelData, VR: dcm.OB, Value: bytes.Repeat([]byte{0, 255}, 160)})
	if pic, err := picture(scanned(d), 1); err != nil || !pic.Inverse || !bytes.Equal(pic.Pixels[:4], []byte{0, 0, 255, 0}) || len(pic.Pixels) != 640 {
		t.Errorf("8 bits: %+v %v", pic, err)
	}
	d = dcmtest.MR(20, 16, 1).US(dcm.BitsStored, 12).US(dcm.HighBit, 11).US(dcm.PixelRepresentation, 1).
		Set(dcm.Node{Tag: dcm.PixelData, VR: dcm.OW, Value: bytes.Repeat([]byte{0xFE, 0x0F}, 320)})
	if pic, err := picture(scanned(d), 1); err != nil || !pic.Signed || !bytes.Equal(pic.Pixels[:2], []byte{0xFE, 0xFF}) {
		t.Errorf("signed: %v", err)
	}
	d = dcmtest.MR(20, 16, 1).US(dcm.SamplesPerPixel, 3)
	var refused *derive.RefusedError
	if _, err := picture(scanned(d), 1); !errors.Is(err, ErrNotShown) || !errors.As(err, &refused) {
		t.Errorf("colour: %v", err)
	}
}
