package pipeline

import (
	"bytes"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// An image of a kind that is not known passes with the reason. Once the kind is admitted, those
// that come are denoised, in the high lane too. Whatever waits is judged again before it is denoised,
// so that what is queued by an earlier version, or under another configuration, stays untouched.
func TestAdmit(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	o.Denoiser = &teacher{}
	o.Quiet, o.QuietOpen = time.Millisecond, time.Millisecond
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	send := func(series int, title string) image {
		im := slice(series, 1)
		im.imageType = `ORIGINAL\PRIMARY\M\SWI`
		in := im.incoming()
		in.CalledAETitle = title
		if err := p.Receive(t.Context(), in, bytes.NewReader(im.dataSet())); err != nil {
			t.Fatal(err)
		}
		return im
	}
	admit := func(words ...string) error {
		o.Admit = words
		return p.Reconfigure(o)
	}
	unknown := func(im image) {
		t.Helper()
		i := status(t, p, im.series).Instances[0]
		if i.State != "passed" || i.Reason != state.Reason(derive.UnknownKind) {
			t.Errorf("%s, reason %q: %q", i.State, i.Reason, i.Detail)
		}
	}
	unknown(send(1, "DENOISE"))
	if err := admit("ADC"); err == nil {
		t.Error("a map was admitted")
	}
	if err := admit("swi"); err != nil {
		t.Fatal(err)
	}
	waits := send(2, "DENOISE")
	if err := admit(); err != nil {
		t.Fatal(err)
	}
	defer run(p)()
	eventually(t, "judged again", func() bool { return status(t, p, waits.series).Passed == 1 })
	unknown(waits)
	if err := admit("SWI"); err != nil {
		t.Fatal(err)
	}
	high := send(3, "DENOISE_HQ")
	eventually(t, "two derived objects", func() bool { return a.count(pacs.Name) == 5 })
	if s := status(t, p, high.series); s.Denoised != 1 {
		t.Errorf("%+v", s.Instances)
	}
}
