package pipeline

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/transcode"
)

// An archive of one transfer syntax gets what an image can become, and the
// spool keeps the image as it came.
func TestArchiveThatTakesImplicitOnly(t *testing.T) {
	a := newArchive()
	implicit := Context{classMR, dcm.ImplicitVRLittleEndian}
	a.syntax = map[Context]bool{implicit: true}
	a.store = func(_ int, _ Destination, o Outgoing, _ []byte) (uint16, error, bool) {
		if o.TransferSyntaxUID != implicit.TransferSyntaxUID {
			return 0x0122, nil, false
		}
		return 0, nil, true
	}
	o := options(t, a)
	p := start(t, o)
	im := slice(1, 1)
	receive(t, p, im)
	eventually(t, "original and derived stored", func() bool {
		return status(t, p, im.series).Destinations[0].Stored == 2
	})
	want, err := io.ReadAll(transcode.NewReader(bytes.NewReader(im.dataSet()), dcm.ExplicitVRLittleEndian,
		dcm.ImplicitVRLittleEndian))
	if err != nil {
		t.Fatal(err)
	}
	if got := a.copies("pacs", im.sop); len(got) != 1 || got[0] != sha256.Sum256(want) {
		t.Errorf("%d copies, or not the image in implicit VR", len(got))
	}
	s := status(t, p, im.series)
	for _, in := range s.Instances {
		if d := in.Deliveries[0]; d.Status != "0000" ||
			!strings.Contains(d.Detail, "sent as Implicit VR Little Endian") {
			t.Errorf("%s: %+v", in.Kind, d)
		}
	}
	rows, err := p.jrnl.SeriesInstances(t.Context(), s.ID, 10)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(o.StateDir, "spool", rows[0].File))
	if err != nil || !bytes.Contains(file, im.dataSet()) {
		t.Errorf("the spool does not hold the image as it came: %v", err)
	}
}

func TestNothingIsConvertedForAnArchiveThatTakesAll(t *testing.T) {
	a := newArchive()
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	receive(t, p, slice(1, 1))
	eventually(t, "stored", func() bool { return a.count("pacs") == 1 })
	if got := a.copies("pacs", slice(1, 1).sop); got[0] != sha256.Sum256(slice(1, 1).dataSet()) {
		t.Error("not the bytes that came")
	}
}

// What an archive takes in no form that the image has, or is too damaged to be
// given, ends as refused with the reason; the association goes on with the others.
func TestImagesThatCannotBeConverted(t *testing.T) {
	a := newArchive()
	a.syntax = map[Context]bool{{classMR, dcm.ImplicitVRLittleEndian}: true}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	compressed, damaged := slice(1, 1), slice(1, 2)
	in := compressed.incoming()
	in.TransferSyntaxUID = "1.2.840.10008.1.2.4.90" // JPEG 2000
	if err := p.Receive(t.Context(), in, bytes.NewReader(compressed.dataSet())); err != nil {
		t.Fatal(err)
	}
	data := damaged.dataSet()
	if err := p.Receive(t.Context(), damaged.incoming(), bytes.NewReader(data[:len(data)-3])); err != nil {
		t.Fatal(err)
	}
	receive(t, p, slice(1, 3))
	eventually(t, "two refused, one stored", func() bool {
		d := status(t, p, compressed.series).Destinations[0]
		return d.Refused == 2 && d.Stored == 1
	})
	for _, in := range status(t, p, compressed.series).Instances {
		want := map[string]string{compressed.sop: "no presentation context accepted",
			damaged.sop: "taken in Implicit VR Little Endian only, and: convert data set at byte"}[in.SOPInstanceUID]
		if want == "" {
			continue // of the derived images nothing is sent
		}
		if d := in.Deliveries[0]; !strings.Contains(d.Detail, want) {
			t.Errorf("%s: %+v, want %q", in.SOPInstanceUID, d, want)
		}
	}
}

// A file that the disk changed is damaged, whatever the converter thinks of it.
func TestDamagedFileIsNotTakenForUnconvertible(t *testing.T) {
	a := newArchive()
	a.syntax = map[Context]bool{{classMR, dcm.ImplicitVRLittleEndian}: true}
	o := options(t, a)
	originalsOnly(&o)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	im := slice(1, 1)
	receive(t, p, im)
	s := status(t, p, im.series)
	rows, err := p.jrnl.SeriesInstances(t.Context(), s.ID, 10)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(o.StateDir, "spool", rows[0].File)
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	file[rows[0].Offset+4] = '?' // a VR
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := run(p)
	defer func() { stop(); p.Close() }()
	eventually(t, "damaged", func() bool { return status(t, p, im.series).Destinations[0].Damaged == 1 })
	if a.count("pacs") != 0 {
		t.Error("sent")
	}
}

func TestContextsLeaveRoomForWhatImagesCanBecome(t *testing.T) {
	var pairs [][2]string
	for n := range 100 {
		class := fmt.Sprintf("1.2.%d", n)
		pairs = append(pairs, [2]string{class, dcm.ExplicitVRLittleEndian}, [2]string{class, "1.2.840.10008.1.2.4.90"})
	}
	c := Context{"1.2.99", dcm.ExplicitVRBigEndian}
	want, proposed := contexts(c, pairs)
	if len(want) > maxContexts || want[0] != c || !proposed[c] {
		t.Fatalf("%d contexts, the first %v", len(want), want[0])
	}
	in := map[Context]bool{}
	for _, x := range want {
		if in[x] {
			t.Errorf("%v twice", x)
		}
		in[x] = true
	}
	for x := range proposed {
		for _, y := range forms(x) {
			if !in[y] {
				t.Errorf("%v counts as proposed without %v", x, y)
			}
		}
	}
}

// A rebuilt journal does not know what was delivered. An archive that has the
// image already says so (0111), and that is as good as stored. What was never
// sent is not ours because somebody else's image has the UID.
func TestDuplicateAnswers(t *testing.T) {
	a := newArchive()
	var duplicates atomic.Bool
	a.store = func(int, Destination, Outgoing, []byte) (uint16, error, bool) {
		if duplicates.Load() {
			return statusDuplicate, nil, false
		}
		return 0, nil, true
	}
	o := options(t, a)
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(p)
	im := slice(1, 1)
	receive(t, p, im)
	eventually(t, "stored", func() bool { return status(t, p, im.series).Destinations[0].Stored == 2 })
	stop()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(o.StateDir, "journal.db*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			t.Fatal(err)
		}
	}
	duplicates.Store(true)
	p = start(t, o)
	eventually(t, "stored again", func() bool {
		d := status(t, p, im.series).Destinations
		return len(d) == 1 && d[0].Stored == 2
	})
	for _, in := range status(t, p, im.series).Instances {
		if d := in.Deliveries[0]; d.Status != "0111" || !strings.Contains(d.Detail, "has it already") {
			t.Errorf("%s: %+v", in.Kind, d)
		}
	}

	fresh := slice(2, 1)
	in := fresh.incoming()
	in.CalledAETitle = "STORE" // nothing is derived
	if err := p.Receive(t.Context(), in, bytes.NewReader(fresh.dataSet())); err != nil {
		t.Fatal(err)
	}
	refused := func() bool { return status(t, p, fresh.series).Destinations[0].Refused == 1 }
	eventually(t, "another's image under the UID", refused)
	for range 2 { // asking again makes it no more ours
		if n, err := p.Retry(t.Context(), fresh.series); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		eventually(t, "refused again", refused)
	}
}

// A destination that leads back to this daemon has nothing and gets nothing.
func TestLoopIsNeverStored(t *testing.T) {
	a := newArchive()
	var mended atomic.Bool
	a.open = func(int, Destination) error {
		if !mended.Load() {
			return fmt.Errorf("associate: %w", ErrLoop)
		}
		return nil
	}
	o := options(t, a)
	originalsOnly(&o)
	p := start(t, o)
	receive(t, p, slice(1, 1))
	eventually(t, "loop", func() bool { return p.forward.state("pacs") == breakerLoop })
	h := p.Check()
	problems := strings.Join(h.Problems, "\n")
	if h.Breakers["pacs"] != breakerLoop || !strings.Contains(problems, "destination pacs leads back") {
		t.Errorf("%+v", h)
	}
	if d := status(t, p, slice(1, 1).series).Destinations[0]; d.Queued != 1 || d.Stored != 0 ||
		d.Breaker != breakerLoop {
		t.Errorf("%+v", d)
	}
	mended.Store(true)
	eventually(t, "stored", func() bool { return status(t, p, slice(1, 1).series).Destinations[0].Stored == 1 })
	if s := p.forward.state("pacs"); s != breakerClosed {
		t.Errorf("still %s", s)
	}
}

// What was refused before a byte of it left, or answered without being stored, is not ours when the archive has
// another image under its UID, however often a person asks for it.
func TestDuplicateOfWhatWasNeverSent(t *testing.T) {
	for name, refuse := range map[string]func(a *archive){
		"no context": func(a *archive) { a.syntax = map[Context]bool{} },
		"refused": func(a *archive) {
			a.store = func(int, Destination, Outgoing, []byte) (uint16, error, bool) { return 0x0122, nil, false }
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchive()
			refuse(a)
			o := options(t, a)
			originalsOnly(&o)
			p := start(t, o)
			im := slice(1, 1)
			receive(t, p, im)
			refused := func() bool { return status(t, p, im.series).Destinations[0].Refused == 1 }
			eventually(t, "refused", refused)
			a.mu.Lock()
			a.syntax = nil
			a.store = func(int, Destination, Outgoing, []byte) (uint16, error, bool) {
				return statusDuplicate, nil,
					false
			}
			a.mu.Unlock()
			for range 2 {
				if n, err := p.Retry(t.Context(), im.series); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				eventually(t, "refused again", refused)
			}
			if s := status(t, p, im.series).Destinations[0]; s.Stored != 0 {
				t.Errorf("somebody else's image counts as ours: %+v", s)
			}
		})
	}
}
