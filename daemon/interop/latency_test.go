package interop

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/testdata"
)

// BenchmarkLastSlice measures what a person at the scanner waits for: from the
// acknowledgement of the last slice of a series of 40 images of 512×512 to the
// moment the last derived image is in Orthanc, which forwards and indexes on
// the same machine. Burst sends as fast as acknowledged, the others at the
// pace in their names. The number is "s-after-last-slice"; ns/op is the whole series.
//
//	go test -run '^$' -bench LastSlice -benchtime 3x ./daemon/interop
func BenchmarkLastSlice(b *testing.B) {
	testdata.Peer(b, "Orthanc")
	const slices = 40
	v := phantom.New(phantom.Spec{Seed: 1, Width: 512, Height: 512, Slices: slices, Sigma: 0.05, Shading: true})
	for _, pace := range []struct {
		name  string
		every time.Duration
	}{{"burst", 0}, {"4-a-second", 250 * time.Millisecond}, {"2-a-second", 500 * time.Millisecond}} {
		b.Run(pace.name, func(b *testing.B) {
			archive := startOrthanc(b)
			s := startDenoised(b, destination{"pacs", archive.aet, archive.dicom, "derived"})
			var after time.Duration
			b.StopTimer()
			for i := range b.N {
				ids := phantom.NewIDs(fmt.Sprintf("latency-%s-%d-%d", pace.name, b.N, i))
				objects := make([]raw, slices)
				for n := range objects {
					var file bytes.Buffer
					if err := v.WriteDICOM(&file, n, ids); err != nil {
						b.Fatal(err)
					}
					p, err := parsePart10(file.Bytes())
					if err != nil {
						b.Fatal(err)
					}
					objects[n] = raw{part10: p}
				}
				before, err := archive.count()
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				sendPaced(b, s.port, objects, pace.every)
				last := time.Now()
				eventually(b, time.Minute, "all derived images are in the archive", func() error {
					have, err := archive.count()
					if err == nil && have < before+slices {
						err = fmt.Errorf("%d of %d", have-before, slices)
					}
					return err
				})
				after += time.Since(last)
				b.StopTimer()
			}
			b.ReportMetric(after.Seconds()/float64(b.N), "s-after-last-slice")
		})
	}
}

// sendPaced sends a series over one association, one object every period (0: at
// once), and returns when the last is acknowledged.
func sendPaced(b *testing.B, port int, objects []raw, every time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	dialer := dicomnet.Dialer{CallingAETitle: "SCANNER", CalledAETitle: "DENOISE"}
	a, err := dialer.Dial(ctx, loopback(port), contexts(objects))
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := a.Release(ctx); err != nil {
			b.Errorf("release: %v", err)
		}
	}()
	var tick <-chan time.Time
	if every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		tick = t.C
	}
	for _, o := range objects {
		if tick != nil {
			<-tick
		}
		status, err := a.Store(ctx, &dicomnet.StoreRequest{SOPClassUID: o.SOPClassUID, SOPInstanceUID: o.SOPInstanceUID,
			TransferSyntaxUID: o.TransferSyntaxUID}, bytes.NewReader(o.DataSet))
		if err != nil || !status.IsSuccess() {
			b.Fatalf("send: %v, %v", status, err)
		}
	}
}
