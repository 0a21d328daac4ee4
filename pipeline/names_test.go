package pipeline

import (
	"slices"
	"testing"

	"github.com/diffdenoise/denoised/pipeline/derive"
)

// A derived series that was begun before study and series had a part in the names goes on
// under its names, so that an upgrade doubles and divides nothing; any other gets the present
// ones, by which a SOP Instance UID that stands in two series makes two objects.
func TestNamesOverAnUpgrade(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	p := start(t, o)
	par := derive.Params{Model: o.Denoiser.Model(), Strength: 1, Quality: string(Fast)}
	old := namedSeries{1, par.Model, par.Strength, par.Quality} // the first series of a journal has number 1
	p.names.first = map[namedSeries]bool{old: true}             // so the version before would have named it
	arrive := func(im image, n int64) []string {
		receive(t, p, im)
		eventually(t, "denoised", func() bool { return status(t, p, im.series).Denoised == n })
		eventually(t, "sent", func() bool { d := status(t, p, im.series).Destinations; return len(d) == 1 && d[0].Stored == 2*n })
		return a.sent()
	}
	first, second := slice(1, 1), slice(1, 2)
	if sent := arrive(first, 1); !slices.Contains(sent, derive.FirstSOPInstanceUID(first.sop, par)) {
		t.Fatalf("sent %q", sent)
	}
	p.names.mu.Lock()
	clear(p.names.first) // the new version knows nothing but its journal
	p.names.mu.Unlock()
	if sent := arrive(second, 2); !slices.Contains(sent, derive.FirstSOPInstanceUID(second.sop, par)) || len(sent) != 4 {
		t.Errorf("sent %q", sent)
	}
	twin := slice(2, 1)
	twin.sop = first.sop
	sent := arrive(twin, 1)
	slices.Sort(sent)
	if n := len(slices.Compact(sent)); n != 5 { // two originals of one name, three derived objects of three
		t.Errorf("%d names among %q", n, sent)
	}
	if made := derive.FirstSOPInstanceUID(twin.sop, par); len(a.copies(pacs.Name, made)) != 1 {
		t.Error("the object of the other series has the name of the first one's")
	}
}
