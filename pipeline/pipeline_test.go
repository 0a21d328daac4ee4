package pipeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/diffdenoise/denoised/internal/dcm"
)

func TestImageTravelsThrough(t *testing.T) {
	a := newArchive()
	p := start(t, options(t, a))
	im := slice(1, 1)
	receive(t, p, im)
	eventually(t, "original and derived object in the archive", func() bool { return a.count("pacs") == 2 })
	if got := a.copies("pacs", im.sop); len(got) != 1 || got[0] != sha256.Sum256(im.dataSet()) {
		t.Errorf("original arrived %d times, or not byte for byte", len(got))
	}
	if a.sent()[0] != im.sop {
		t.Errorf("derived object sent before its original")
	}
	eventually(t, "status", func() bool {
		s := status(t, p, im.series)
		return s.Denoised == 1 && len(s.Destinations) == 1 && s.Destinations[0].Stored == 2
	})
	s := status(t, p, im.series)
	if len(s.Instances) != 2 || s.Instances[1].Kind != "derived" || s.Instances[1].SourceUID != im.sop || s.Instances[1].Sigma != 12 {
		t.Errorf("instances: %+v", s.Instances)
	}
	o, c, err := p.OpenObject(t.Context(), im.series, 1, "fast")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := o.String(dcm.SOPInstanceUID); got != s.Instances[1].SOPInstanceUID {
		t.Errorf("opened %s", got)
	}
}

func TestRefusals(t *testing.T) {
	o := options(t, nil)
	o.MaxObject = 4000
	p := start(t, o)
	im := slice(1, 1)
	wrongSOP := im.incoming()
	wrongSOP.SOPInstanceUID = "1.9"
	wrongClass := im.incoming()
	wrongClass.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
	badUID := im.incoming()
	badUID.SOPInstanceUID = "a b\n"
	big := im
	big.size = 64
	var mismatch *MismatchError
	for name, c := range map[string]struct {
		in   Incoming
		data []byte
		ok   func(error) bool
	}{
		"other instance": {wrongSOP, im.dataSet(), func(err error) bool { return errors.As(err, &mismatch) }},
		"other class":    {wrongClass, im.dataSet(), func(err error) bool { return errors.As(err, &mismatch) }},
		"bad UID":        {badUID, im.dataSet(), func(err error) bool { return errors.Is(err, ErrUID) }},
		"too large":      {im.incoming(), big.dataSet(), func(err error) bool { return errors.Is(err, ErrTooLarge) }},
		"empty":          {im.incoming(), nil, func(err error) bool { return errors.Is(err, ErrEmpty) }},
	} {
		r := bytes.NewReader(c.data)
		if err := p.Receive(t.Context(), c.in, r); !c.ok(err) {
			t.Errorf("%s: %v", name, err)
		}
		if r.Len() > 0 {
			t.Errorf("%s: %d bytes not read", name, r.Len())
		}
	}
	if n := spoolFiles(t, o.StateDir); n != 0 {
		t.Errorf("%d files left", n)
	}
	if l, err := p.Series(t.Context()); err != nil || len(l) != 0 {
		t.Errorf("series %v, %v", l, err)
	}
}

func TestUnreadableIsStoredAndForwarded(t *testing.T) {
	a := newArchive()
	p := start(t, options(t, a))
	junk := bytes.Repeat([]byte{0xfe, 0xff, 0x13}, 5000)
	in := slice(1, 1).incoming()
	if err := p.Receive(t.Context(), in, bytes.NewReader(junk)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "in the archive", func() bool { return a.count("pacs") == 1 })
	if got := a.copies("pacs", in.SOPInstanceUID); got[0] != sha256.Sum256(junk) {
		t.Error("not byte for byte")
	}
	l, err := p.Series(t.Context())
	if err != nil || len(l) != 1 || l[0].Passed != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	t.Log(l[0].Reasons)
}

// BenchmarkReceive stores 525 KB images with real syncs, as the DICOM server
// would call it: one or four associations, each waiting for its answer.
func BenchmarkReceive(b *testing.B) {
	for _, writers := range []int{1, 4} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			o := options(b, nil)
			o.Denoiser = nil
			p, err := Open(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			work := make(chan int)
			errs := make(chan error, writers)
			cpu := cpuTime()
			b.ResetTimer()
			for w := range writers {
				const sop = "1.2.3.4.00000000"
				im := image{series: fmt.Sprintf("1.2.3.%d", w), sop: sop, number: 1, size: 512}
				data, in := im.dataSet(), im.incoming()
				at := bytes.Index(data, []byte(sop))
				b.SetBytes(int64(len(data)))
				go func() {
					var err error
					for i := range work {
						in.SOPInstanceUID = fmt.Sprintf("1.2.3.4.%08d", 10000000*(w+1)+i)
						copy(data[at:], in.SOPInstanceUID)
						if e := p.Receive(context.Background(), in, bytes.NewReader(data)); e != nil {
							err = e
						}
					}
					errs <- err
				}()
			}
			for i := range b.N {
				work <- i
			}
			close(work)
			for range writers {
				if err := <-errs; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "images/s")
			b.ReportMetric(float64((cpuTime()-cpu).Microseconds())/float64(b.N)/1000, "cpu-ms/image")
		})
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// spoolFiles counts all files of the spool.
func spoolFiles(t testing.TB, state string) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(state, "spool"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
