package interop

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/atomicfile"
	"github.com/diffdenoise/denoised/internal/machine"
	"github.com/diffdenoise/denoised/internal/phantom"
)

// envDaemon names the file that BenchmarkLastSlice writes its table to.
const envDaemon = "DENOISED_DAEMON"

// The series of BenchmarkLastSlice.
const (
	latencySlices = 40
	latencySide   = 512  // pixels
	latencyNoise  = 0.04 // of the brightest tissue
)

// BenchmarkLastSlice measures what a person at the scanner waits for: from the
// acknowledgement of the last slice of a series to the moment the last derived image is in
// the archive. The daemon is the program as it is shipped, with the embedded model and both series
// sent on; scanner and archive are our own, on the same machine. Burst sends as fast as
// acknowledged, the other at the pace in its name. The numbers are medians over the series after
// the first; "cpu-ms/slice" is the processor time of the daemon, which other work on the machine
// hardly changes. `make bench-daemon` writes them into docs/measured/daemon.md.
func BenchmarkLastSlice(b *testing.B) {
	v := phantom.New(phantom.Spec{Seed: 1, Width: latencySide, Height: latencySide, Slices: latencySlices,
		Sigma: latencyNoise, Shading: true})
	var lines []string
	for _, pace := range []struct {
		name, text string
		every      time.Duration
	}{
		{"burst", "as fast as acknowledged", 0},
		{"4-a-second", "4 slices a second", 250 * time.Millisecond},
	} {
		measured := false
		b.Run(pace.name, func(b *testing.B) {
			archive := startSink(b)
			s := startDenoised(b, destination{"pacs", archive.aet, archive.port, "original, derived"})
			var after, sent, cpu []float64 // seconds; seconds; milliseconds
			for i := range b.N + 1 {
				a, d, c := latencyRound(b, s, archive, v, fmt.Sprintf("latency-%s-%d-%d", pace.name, b.N, i), pace.every)
				if i > 0 { // the first warms up
					after, sent, cpu = append(after, a), append(sent, d), append(cpu, c)
				}
			}
			slices.Sort(after)
			middle := func(list []float64) float64 {
				list = slices.Sorted(slices.Values(list))
				return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
			}
			b.ReportMetric(middle(after), "s-after-last-slice")
			b.ReportMetric(middle(cpu), "cpu-ms/slice")
			line := fmt.Sprintf("| %s | %.1f | %.2f | %.2f to %.2f | %.0f |", pace.text, middle(sent), middle(after),
				after[0], after[len(after)-1], middle(cpu))
			if measured { // it is called with a small N first
				lines[len(lines)-1] = line
			} else {
				lines, measured = append(lines, line), true
			}
		})
	}
	path := os.Getenv(envDaemon)
	if path == "" || b.Failed() {
		return
	}
	page := fmt.Sprintf(`# How long after its last slice is a series in the archive?

Written by `+"`make bench-daemon`"+`: %d slices of %d×%d pixels, a generated head with %g %% noise, pushed over one
association to a running daemon with the embedded model, which sends the original and the derived series on. Scanner,
daemon and archive share the machine. Seconds from the acknowledgement of the last slice until the last derived one is
in the archive, median over several series and their range; processor time of the daemon for everything that it does
with a slice.
%s, %d cores.

| pace | sending took, s | after the last slice, s | range | processor time of a slice, ms |
|---|---|---|---|---|
%s
`, latencySlices, latencySide, latencySide, 100*latencyNoise, machine.Processor(), runtime.NumCPU(),
		strings.Join(lines, "\n"))
	if err := atomicfile.Write(path, 0o644, func(f *os.File) error {
		_, err := f.WriteString(page)
		return err
	}); err != nil {
		b.Fatal(err)
	}
}

// latencyRound sends one series and waits until all of it is in the archive. It returns the seconds
// between the acknowledgement of its last slice and the arrival of the last derived one, those that
// sending took, and the daemon's milliseconds of processor time for a slice.
func latencyRound(b *testing.B, s *system, archive *sink, v *phantom.Volume, name string, every time.Duration,
) (after, sent, cpu float64) {
	b.Helper()
	ids := phantom.NewIDs(name)
	objects, original := make([]raw, latencySlices), map[string]bool{}
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
		original[p.SOPInstanceUID] = true
	}
	before := archive.all()
	spent, began := s.proc.cpu(), time.Now()
	sendPaced(b, s.port, objects, every)
	last := time.Now()
	var derived time.Time
	eventually(b, 5*time.Minute, "all derived images are in the archive", func() error {
		have, originals := 0, 0
		derived = time.Time{}
		for uid, o := range archive.all() {
			switch _, old := before[uid]; {
			case old:
			case original[uid]:
				originals++
			default:
				have++
				if o.at.After(derived) {
					derived = o.at
				}
			}
		}
		if have < latencySlices || originals < latencySlices {
			return fmt.Errorf("%d derived and %d original of %d", have, originals, latencySlices)
		}
		return nil
	})
	s.settled(time.Minute)
	cpu = 1000 * (s.proc.cpu() - spent).Seconds() / latencySlices
	return derived.Sub(last).Seconds(), last.Sub(began).Seconds(), cpu
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
