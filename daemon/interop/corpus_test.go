package interop

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/pipeline"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// TestCorpus sends everything else there is: other vendors, compressed, colour,
// enhanced, not images, and objects broken on purpose. Whatever it is, it is
// answered, kept, forwarded as it came, and its state is told truthfully.
func TestCorpus(t *testing.T) {
	t.Parallel()
	requirePeers(t)
	dir := filepath.Join(testdata.Dir(t), "dicom")
	var files []string
	for _, file := range dicomFiles(t, dir) {
		if !strings.HasPrefix(file, filepath.Join(dir, "series")+string(filepath.Separator)) {
			files = append(files, file)
		}
	}
	var mu sync.Mutex
	total := tally{}
	t.Run("rounds", func(t *testing.T) {
		for i, round := range rounds(t, files) {
			t.Run(fmt.Sprint(i+1), func(t *testing.T) {
				t.Parallel()
				n := corpusRound(t, dir, round)
				mu.Lock()
				defer mu.Unlock()
				total.add(n)
			})
		}
	})
	t.Logf("%d files: %d sent by DCMTK, %d pushed raw; %d acknowledged, %d refused; in Orthanc %d, refused by it %d; derived %d",
		len(files), total.dcmtk, total.raw, total.acknowledged, total.refused, total.archived, total.unarchived, total.derived)
	if got := total.acknowledged + total.refused; got != len(files) {
		t.Errorf("%d of %d files were answered", got, len(files))
	}
}

type tally struct{ dcmtk, raw, acknowledged, refused, archived, unarchived, derived int }

func (a *tally) add(b tally) {
	a.dcmtk += b.dcmtk
	a.raw += b.raw
	a.acknowledged += b.acknowledged
	a.refused += b.refused
	a.archived += b.archived
	a.unarchived += b.unarchived
	a.derived += b.derived
}

// rounds groups files so that no two of a round claim to be the same instance:
// the collection holds many versions of the same one.
func rounds(t testing.TB, files []string) [][]string {
	t.Helper()
	const most = 150 // files of a round; the status lists 200 series
	var out [][]string
	var seen []map[string]bool
	for _, file := range files {
		uids := claimedUIDs(t, file)
		free := func(i int) bool {
			return len(out[i]) < most && !slices.ContainsFunc(uids, func(u string) bool { return seen[i][u] })
		}
		i := 0
		for i < len(out) && !free(i) {
			i++
		}
		if i == len(out) {
			out, seen = append(out, nil), append(seen, make(map[string]bool))
		}
		out[i] = append(out[i], file)
		for _, u := range uids {
			seen[i][u] = true
		}
	}
	return out
}

// claimedUIDs returns the instance UIDs that a file gives itself, in its meta
// group and in its data set.
func claimedUIDs(t testing.TB, file string) []string {
	t.Helper()
	uids := []string{readRaw(t, file).SOPInstanceUID}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := dcm.Scan(f, info.Size()); o != nil { // what could be read of a damaged one will do
		if uid := o.String(dcm.SOPInstanceUID); uid != "" {
			uids = append(uids, uid)
		}
	}
	return uids
}

func corpusRound(t *testing.T, dir string, files []string) (n tally) {
	name := func(file string) string {
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			t.Fatal(err)
		}
		return rel
	}

	// Without us: which files DCMTK can send at all, and what it sends.
	direct := startRoute(t)
	answered := make(map[string]bool)
	for _, r := range dcmsend(t, direct.bits.port, "ANY", files...) {
		answered[r.File] = r.Answered && r.Status == 0
	}
	want := make(map[string][sha256.Size]byte)
	for uid, sets := range direct.bits.objects() {
		want[uid] = sha256.Sum256(once(t, map[string][][]byte{uid: sets}, uid))
	}
	var byDCMTK []string
	var byUs []raw
	for _, file := range files {
		if answered[file] {
			byDCMTK = append(byDCMTK, file)
			continue
		}
		o := readRaw(t, file)
		byUs = append(byUs, o)
		want[o.SOPInstanceUID] = sha256.Sum256(o.DataSet)
	}
	n.dcmtk, n.raw = len(byDCMTK), len(byUs)

	// What Orthanc answers to each: some it refuses, at some it hangs up.
	orthancTakes, hangsUp := make(map[string]bool), make(map[string]bool)
	for _, r := range dcmsend(t, direct.archive.dicom, "ANY", byDCMTK...) {
		orthancTakes[r.File] = r.Answered && r.Status == 0
	}
	for _, r := range push(t, direct.archive.dicom, "ANY", byUs) {
		orthancTakes[r.File], hangsUp[r.File] = r.Answered && r.Status == 0, !r.Answered
	}

	archive, bits := startOrthanc(t), startSink(t)
	s := startDenoised(t,
		destination{"pacs", archive.aet, archive.dicom, "original, derived"},
		destination{"bits", bits.aet, bits.port, "original"})
	report := dcmsend(t, s.port, "DENOISE", byDCMTK...)
	for i, r := range report {
		if _, ok := want[r.SOPInstanceUID]; !ok {
			// DCMTK announces what the data set says and reports what the meta group says.
			report[i].SOPInstanceUID = dataSetUID(t, r.File)
		}
	}
	takes := make(map[string]bool) // by UID
	note := func(list []sent) {
		for _, r := range list {
			takes[r.SOPInstanceUID] = orthancTakes[r.File]
		}
	}
	note(report)
	// Last those that make the archive hang up: every one costs all others a
	// pause, so how often each was tried by then is not looked at.
	calm := slices.DeleteFunc(slices.Clone(byUs), func(o raw) bool { return hangsUp[o.file] })
	upsetting := slices.DeleteFunc(slices.Clone(byUs), func(o raw) bool { return !hangsUp[o.file] })
	upset := make(map[string]bool) // by UID
	for _, part := range [][]raw{calm, upsetting} {
		answers := push(t, s.port, "DENOISE", part)
		note(answers)
		report = append(report, answers...)
		for i, r := range answers {
			upset[r.SOPInstanceUID] = hangsUp[part[i].file]
		}
		s.forwarded(2*time.Minute, func(uid string, d pipeline.DeliveryStatus) bool {
			return d.Destination == "pacs" && !takes[uid] && (upset[uid] || d.Attempts > 0 && d.Detail != "")
		})
	}

	status, got := s.instances(), bits.all()
	sources := make(map[string]bool)
	for _, r := range report {
		uid := r.SOPInstanceUID
		switch {
		case !r.Answered && readRaw(t, r.File).SOPClassUID == mediaStorageDirectory:
			n.refused++ // a table of contents, not an object of the Storage service
			continue
		case !r.Answered:
			t.Errorf("%s: no answer", name(r.File))
			continue
		case r.Status != 0:
			n.refused++
			if !mayRefuse(t, r) {
				t.Errorf("%s: refused with %v", name(r.File), r)
			}
			if got[uid].copies > 0 {
				t.Errorf("%s: refused and forwarded all the same", name(r.File))
			}
			continue
		}
		n.acknowledged++
		if got[uid].copies != 1 || got[uid].sum != want[uid] {
			t.Errorf("%s: arrived %d times; unchanged: %v", name(r.File), got[uid].copies, got[uid].sum == want[uid])
		}
		st, ok := status[uid]
		if !ok {
			t.Errorf("%s: acknowledged and not in the status", name(r.File))
			continue
		}
		t.Logf("%-9s %-16s %s  %s", st.State, st.Reason, name(r.File), st.Detail)
		switch st.State {
		case state.Denoised:
			n.derived++
			sources[uid] = true
		case state.Passed:
			if st.Reason == "" {
				t.Errorf("%s: passed on without a reason", name(r.File))
			}
		default:
			t.Errorf("%s: state %q (%s: %s)", name(r.File), st.State, st.Reason, st.Detail)
		}
		switch d := delivery(st, "pacs"); {
		case orthancTakes[r.File] && d.State == state.DeliveryStored:
			n.archived++
		case !orthancTakes[r.File] && d.State != state.DeliveryStored:
			n.unarchived++
		default:
			t.Errorf("%s: Orthanc takes it directly: %v; from us: %q, status %s %s", name(r.File), orthancTakes[r.File], d.State, d.Status, d.Detail)
		}
	}

	directIn, throughIn := direct.archive.instances(), archive.instances()
	for uid, a := range throughIn {
		b, ok := directIn[uid]
		if !ok {
			continue // derived, looked at below
		}
		x, errX := parsePart10(direct.archive.file(b))
		y, errY := parsePart10(archive.file(a))
		if errX != nil || errY != nil || !bytes.Equal(x.DataSet, y.DataSet) {
			t.Errorf("%s: archived data sets differ (%v, %v): %s", uid, errX, errY, firstDifference(x.DataSet, y.DataSet))
		}
	}
	list := make(map[string]archived)
	for uid, a := range directIn {
		if sources[uid] {
			list[uid] = a
		}
	}
	known := fetch(t, direct.archive, list)
	only := make(map[string]archived)
	for uid, a := range throughIn {
		if _, original := directIn[uid]; !original {
			only[uid] = a
		}
	}
	derived := checkDerivedOf(t, archive, only, known)
	for uid := range sources {
		if _, ok := derived[uid]; !ok && takes[uid] {
			t.Errorf("%s: denoised, but no derived instance is in the archive", uid)
		}
	}
	return n
}

// mediaStorageDirectory is the class of DICOMDIR files.
const mediaStorageDirectory = "1.2.840.10008.1.3.10"

// forwarded waits until nothing waits, but for hopeless deliveries: those that
// the archive takes from nobody. It says so with "out of resources" or by
// hanging up, which a sender has to take as passing.
func (s *system) forwarded(limit time.Duration, hopeless func(uid string, d pipeline.DeliveryStatus) bool) {
	s.t.Helper()
	eventuallyEvery(s.t, 500*time.Millisecond, limit, "everything is forwarded that can be", func() error {
		s.proc.mustRun()
		var list []pipeline.SeriesStatus
		s.getJSON("/api/series", &list)
		for _, series := range list {
			if series.Waiting > 0 {
				return fmt.Errorf("series %s: %d images wait to be denoised", series.UID, series.Waiting)
			}
			if !slices.ContainsFunc(series.Destinations, func(d pipeline.DestinationStatus) bool { return d.Queued > 0 }) {
				continue
			}
			for uid, st := range s.instancesOf(series.UID) {
				for _, d := range st.Deliveries {
					if d.State == state.DeliveryQueued && !hopeless(uid, d) {
						return fmt.Errorf("%s waits for %s after %d attempts (%s)", uid, d.Destination, d.Attempts, d.Detail)
					}
				}
			}
		}
		return nil
	})
}

// dataSetUID returns the SOP Instance UID that the data set of a file names.
func dataSetUID(t testing.TB, file string) string {
	t.Helper()
	data := wrap(t, readRaw(t, file))
	o, err := dcm.Scan(bytes.NewReader(data), int64(len(data)))
	if o == nil {
		t.Fatalf("%s: %v", file, err)
	}
	return o.String(dcm.SOPInstanceUID)
}

// mayRefuse tells whether there is a reason to refuse an object: its UID is none
// (PS3.7 C.5.21, 0117), its class is not that of the presentation context (0122:
// DCMTK opens the context by the meta group), or the data set is not the instance or the class that
// the C-STORE command announced (PS3.4 B.2.3, A9xx).
func mayRefuse(t testing.TB, r sent) bool {
	t.Helper()
	file := readRaw(t, r.File)
	data := wrap(t, file)
	head, err := dcm.Scan(bytes.NewReader(data), int64(len(data)))
	if head == nil {
		t.Errorf("%s: %v", r.File, err)
		return false
	}
	uid := head.String(dcm.SOPInstanceUID)
	switch dicomnet.Status(r.Status) {
	case dicomnet.StatusInvalidSOPInstance:
		return !wellFormed(r.SOPInstanceUID)
	case dicomnet.StatusSOPClassNotSupported:
		// Where the data set has its class with VR UN, DCMTK announces a hexadecimal dump of it.
		return head.String(dcm.SOPClassUID) != file.SOPClassUID || head.Find(dcm.SOPClassUID).VR().String() != "UI"
	case dicomnet.StatusDataSetMismatch:
		// DCMTK cuts a UID that is too long when it announces it.
		return !wellFormed(uid) || uid != r.SOPInstanceUID || head.String(dcm.SOPClassUID) != file.SOPClassUID
	}
	return false
}

// wrap gives a data set a meta group, so that it can be scanned.
func wrap(t testing.TB, o raw) []byte {
	t.Helper()
	var b bytes.Buffer
	_, err := dcm.WriteFileMeta(&b, dcm.FileMeta{SOPClassUID: o.SOPClassUID, SOPInstanceUID: o.SOPInstanceUID, TransferSyntaxUID: o.TransferSyntaxUID})
	if err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), o.DataSet...)
}

// delivery returns the delivery of an instance to a destination.
func delivery(st pipeline.InstanceStatus, to string) pipeline.DeliveryStatus {
	for _, d := range st.Deliveries {
		if d.Destination == to {
			return d
		}
	}
	return pipeline.DeliveryStatus{}
}
