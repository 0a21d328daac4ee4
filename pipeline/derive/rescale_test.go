package derive_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/pipeline/derive"
)

// stored is an MR image of 16 bits that stores real values by slope and intercept.
func stored(values []uint16, signed bool, slope, intercept float64) *dcmtest.DataSet {
	cells := make([]uint16, len(values))
	for i, v := range values {
		cells[i] = uint16(int32(math.Round((float64(v) - intercept) / slope)))
	}
	d := dcmtest.MR(32, len(values)/32, 0).US(dcm.BitsStored, 16).US(dcm.HighBit, 15).Pixels(cells)
	if signed {
		d.US(dcm.PixelRepresentation, 1)
	}
	return d
}

func ds(f float64) string { return strconv.FormatFloat(f, 'g', 10, 64) }

func transformation(slope, intercept float64) dcm.Node {
	return dcm.Sequence(dcm.PixelValueTransformationSequence, []dcm.Node{
		dcm.Text(dcm.RescaleIntercept, dcm.DS, ds(intercept)), dcm.Text(dcm.RescaleSlope, dcm.DS, ds(slope)),
		dcm.Text(dcm.RescaleType, dcm.LO, "US")})
}

// TestRescale: the same real values give the same frames and the same results, whatever
// offset they are stored with.
func TestRescale(t *testing.T) {
	values := dcmtest.Disc(32, 32, 0)
	top := func(d *dcmtest.DataSet, slope, intercept float64) *dcmtest.DataSet {
		return d.Text(dcm.RescaleIntercept, dcm.DS, ds(intercept)).Text(dcm.RescaleSlope, dcm.DS, ds(slope))
	}
	group := func(sequence dcm.Tag, d *dcmtest.DataSet, signed bool, slope, intercept float64) *dcmtest.DataSet {
		e := dcmtest.EnhancedMR(32, 32, 1, nil)
		for _, tag := range []dcm.Tag{dcm.BitsStored, dcm.HighBit, dcm.PixelRepresentation, dcm.PixelData} {
			e.Set(d.Nodes[slices.IndexFunc(d.Nodes, func(n dcm.Node) bool { return n.Tag == tag })])
		}
		i := slices.IndexFunc(e.Nodes, func(n dcm.Node) bool { return n.Tag == sequence })
		e.Nodes[i].Items[0] = append(e.Nodes[i].Items[0], transformation(slope, intercept))
		return e
	}
	for _, c := range []struct {
		name             string
		d                *dcmtest.DataSet
		form             dcmtest.Form
		signed           bool
		slope, intercept float64
	}{
		{"as they are", stored(values, false, 1, 0), dcmtest.Form{}, false, 1, 0},
		{"signed", stored(values, true, 1, 0), dcmtest.Form{}, true, 1, 0},
		{"slope only", stored(values, false, 1, 0).Text(dcm.RescaleSlope, dcm.DS, "2.5"), dcmtest.Form{}, false, 1, 0},
		{"empty", stored(values, false, 1, 0).Text(dcm.RescaleSlope, dcm.DS, "").Text(dcm.RescaleIntercept, dcm.DS,
			" "), dcmtest.Form{}, false, 1, 0},
		{"offset", top(stored(values, false, 1, -1024), 1, -1024), dcmtest.Form{}, false, 1, -1024},
		{"offset, implicit", top(stored(values, false, 1, -1024), 1, -1024),
			dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian}, false, 1, -1024},
		{"intercept without slope", stored(values, false, 1, -40).Text(dcm.RescaleIntercept, dcm.DS, "-40"),
			dcmtest.Form{}, false, 1, -40},
		{"signed, from below", top(stored(values, true, 1, 20000), 1, 20000), dcmtest.Form{}, true, 1, 20000},
		{"signed, from far below", top(stored(values, true, 1, 32768), 1, 32768), dcmtest.Form{}, true, 1, 32768},
		{"turned round", top(stored(values, false, -1, 4095), -1, 4095), dcmtest.Form{}, false, -1, 4095},
		{"shared group", group(dcm.SharedFunctionalGroupsSequence, stored(values, false, 1, -300), false, 1, -300),
			dcmtest.Form{}, false, 1, -300},
		{"group of the frame", group(dcm.PerFrameFunctionalGroupsSequence, stored(values, true, 1, 300), true, 1,
			300), dcmtest.Form{}, true, 1, 300},
		{"group, implicit", group(dcm.PerFrameFunctionalGroupsSequence, stored(values, true, 1, 300), true, 1, 300),
			dcmtest.Form{TransferSyntaxUID: dcm.ImplicitVRLittleEndian, Undefined: true}, true, 1, 300},
	} {
		o, err := scanBytes(c.d.File(c.form))
		if err != nil {
			t.Fatal(err)
		}
		f, err := derive.ReadFrame(o, 0)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if i := slices.IndexFunc(f.Pixels, func(p float32) bool { return p != p }); i >= 0 ||
			len(f.Pixels) != len(values) {
			t.Fatalf("%s: %d pixels", c.name, len(f.Pixels))
		}
		for i, p := range f.Pixels {
			if p != float32(values[i]) {
				t.Fatalf("%s: pixel %d is %g, want %d", c.name, i, p, values[i])
			}
		}
		lo, hi := 0.0, 65535.0
		if c.signed {
			lo, hi = -32768, 32767
		}
		if a, b := c.slope*lo+c.intercept, c.slope*hi+c.intercept; f.Min != float32(min(a, b)) ||
			f.Max != float32(max(a, b)) {
			t.Errorf("%s: %g to %g", c.name, f.Min, f.Max)
		}
		params := derive.Params{Model: derive.ModelInfo{Name: "m"}, Strength: 1, Now: time.Unix(1e9, 0)}
		made, info, _ := write(t, o, params, smooth(o))
		if info.Changed < 900 || info.Clipped != 0 {
			t.Errorf("%s: %+v", c.name, info)
		}
		want, err := smooth(o)(0)
		if err != nil {
			t.Fatal(err)
		}
		raster, err := derive.ReadRaster(made, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, w := range want {
			n := float64(uint16(raster.Pixels[2*i]) | uint16(raster.Pixels[2*i+1])<<8)
			if c.signed {
				n = float64(int16(uint16(n)))
			}
			if got := c.slope*n + c.intercept; math.Abs(got-float64(w)) > 0.5 {
				t.Fatalf("%s: pixel %d became %g, want %g", c.name, i, got, w)
			}
		}
		// Copies are copies, also of a denoiser that does nothing.
		for _, strength := range []float64{0, 1} {
			params.Strength = strength
			if _, info, _ := write(t, o, params, unchanged(o)); info.Changed != 0 {
				t.Errorf("%s: strength %g changes %d pixels of a copy", c.name, strength, info.Changed)
			}
		}
	}
}

// TestRescaleFrames: every frame has its own.
func TestRescaleFrames(t *testing.T) {
	const frames = 3
	d := dcmtest.EnhancedMR(32, 32, frames, nil).US(dcm.BitsStored, 16).US(dcm.HighBit, 15)
	var cells []uint16
	i := slices.IndexFunc(d.Nodes, func(n dcm.Node) bool { return n.Tag == dcm.PerFrameFunctionalGroupsSequence })
	for k := range frames {
		for _, v := range dcmtest.Disc(32, 32, uint64(k)) {
			cells = append(cells, v+uint16(100*k))
		}
		if k > 0 { // the first has that of all
			d.Nodes[i].Items[k] = append(d.Nodes[i].Items[k], transformation(2, float64(-200*k)))
		}
	}
	o, err := scanBytes(d.Pixels(cells).File(dcmtest.Form{}))
	if err != nil {
		t.Fatal(err)
	}
	for k := range frames {
		f, err := derive.ReadFrame(o, k)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range dcmtest.Disc(32, 32, uint64(k)) {
			if f.Pixels[i] != float32(v) {
				t.Fatalf("frame %d, pixel %d is %g, want %d", k, i, f.Pixels[i], v)
			}
		}
	}
	params := derive.Params{Model: derive.ModelInfo{Name: "m"}, Strength: 1, Now: time.Unix(1e9, 0)}
	if _, info, _ := write(t, o, params, unchanged(o)); info.Changed != 0 || info.Frames != frames {
		t.Errorf("%+v", info)
	}
	_, info, _ := write(t, o, params, func(i int) ([]float32, error) {
		px := make([]float32, 32*32)
		for k := range px {
			px[k] = float32(-100*i) - 1 // just below what frame i can hold
		}
		return px, nil
	})
	if info.Clipped != frames*32*32 {
		t.Errorf("%d pixels clipped, want all", info.Clipped)
	}
}

// TestRescaleKeeps: with any slope and intercept, all values of 16 bits come back.
func TestRescaleKeeps(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	all := make([]uint16, 1<<16)
	for i := range all {
		all[i] = uint16(i)
	}
	for range 40 {
		slope := math.Exp(8*rng.NormFloat64()) * float64(1-2*rng.IntN(2))
		least := math.Abs(slope) * math.Exp(14*rng.Float64()) // of the real values, so that none is below 0
		intercept := least
		if slope < 0 {
			intercept += -slope * 65535
		}
		d := dcmtest.MR(256, 256, 0).US(dcm.BitsStored, 16).US(dcm.HighBit, 15).Pixels(all).
			Text(dcm.RescaleSlope, dcm.DS, ds(slope)).Text(dcm.RescaleIntercept, dcm.DS, ds(intercept))
		o, err := scanBytes(d.File(dcmtest.Form{}))
		if err != nil {
			t.Fatal(err)
		}
		params := derive.Params{Model: derive.ModelInfo{Name: "m"}, Strength: 1, Now: time.Unix(1e9, 0)}
		if _, info, _ := write(t, o, params, unchanged(o)); info.Changed != 0 {
			t.Errorf("slope %g, intercept %g: %d values changed", slope, intercept, info.Changed)
		}
	}
}

// TestRescaleRefused: what the header says of the values must be possible, and what is
// signed is no magnitude.
func TestRescaleRefused(t *testing.T) {
	values := dcmtest.Disc(32, 32, 0)
	noise := make([]uint16, 1024) // as in a phase image
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = uint16(rng.IntN(4096))
	}
	set := func(px []uint16, slope, intercept string) *dcmtest.DataSet {
		return dcmtest.MR(32, 32, 0).Pixels(px).Text(dcm.RescaleSlope, dcm.DS, slope).Text(dcm.RescaleIntercept,
			dcm.DS, intercept)
	}
	elsewhere := func(d *dcmtest.DataSet) *dcmtest.DataSet {
		return d.Set(dcm.Sequence(dcm.IconImageSequence, []dcm.Node{dcm.Text(dcm.RescaleIntercept, dcm.DS, "-5")}))
	}
	few := slices.Clone(values)
	for i := range 5 {
		few[200*i] = 0
	}
	for _, c := range []struct {
		name string
		d    *dcmtest.DataSet
		want derive.Reason
	}{
		{"slope 0", set(values, "0", "0"), derive.Inconsistent},
		{"no slope", set(values, "steep", "0"), derive.Inconsistent},
		{"slope NaN", set(values, "NaN", "0"), derive.Inconsistent},
		{"no intercept", set(values, "1", "?"), derive.Inconsistent},
		{"far away", set(values, "0.0001", "1000"), derive.Inconsistent},
		{"phase", set(noise, "2", "-4096"), derive.Phase},
		{"all below 0", set(values, "1", "-4096"), derive.Phase},
		{"air below 0", set(values, "1", "-100"), derive.Phase},
		{"few below 0", set(few, "1", "-20"), derive.Phase}, // the air is, by its noise
		{"few far below 0", set(few, "1", "-0.4"), ""},
		{"a negative intercept somewhere", elsewhere(dcmtest.MR(32, 32, 0)), derive.Phase},
		{"fractions", set(values, "0.37", "0.1"), ""},
	} {
		o, err := scanBytes(c.d.File(dcmtest.Form{}))
		if err != nil {
			t.Fatal(err)
		}
		if v := derive.Inspect(o); v.Reason != c.want || c.want != "" && v.Detail == "" {
			t.Errorf("%s: %v, want %q", c.name, v, c.want)
		}
	}
	// Padding is no pixel, a radiograph has no zero, and resampling may go a little below.
	padded := slices.Clone(values)
	for i := range 512 {
		padded[i] = 0
	}
	for i := 512; i < 1024; i++ {
		padded[i] += 2000
	}
	d := set(padded, "1", "-2000").US(dcm.PixelPaddingValue, 0)
	o, err := scanBytes(d.File(dcmtest.Form{}))
	if err != nil {
		t.Fatal(err)
	}
	f, err := derive.ReadFrame(o, 0)
	if err != nil || !f.Skip[0] || f.Skip[512] || f.Pixels[512] != float32(values[512]) {
		t.Errorf("padding: %v", err)
	}
	o, err = scanBytes(cr(`ORIGINAL\PRIMARY`).Text(dcm.RescaleSlope, dcm.DS, "-1").Text(dcm.RescaleIntercept, dcm.DS,
		"-4095").File(dcmtest.Form{}))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := derive.ReadFrame(o, 0); err != nil || f.Pixels[5] != float32(values[5]) || f.Min != 0 {
		t.Errorf("a radiograph: %v", err)
	}
	ringing := slices.Clone(values)
	for i := range ringing {
		ringing[i] += 1000
	}
	for i := range 60 {
		ringing[17*i] = 985
	}
	o, err = scanBytes(set(ringing, "1", "-1000").File(dcmtest.Form{}))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := derive.ReadFrame(o, 0); err != nil || f.Pixels[17] != -15 {
		t.Errorf("a little below 0: %v", err)
	}
}
