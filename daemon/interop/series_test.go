package interop

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/testdata"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// denoisable is the number of images of each real series that must come back
// denoised, judged by looking at them: mosaics are pictures made of slices.
var denoisable = map[string]int{
	"acr_ge_artist_t1": 6, "acr_philips_achieva_t1": 6, "acr_siemens_aera_t1": 6,
	"philips_mprage_sag": 13, "philips_multiecho_phantom": 8, "siemens_ir_phantom": 3,
	"uih_t1_sag": 6, "prostate_tcia": 1,
	"siemens_mosaic": 0, "uih_dti_mosaic": 0,
}

// mayDiffer are the top-level elements that a derived object need not share
// with its source, in the order of the data set. Everything else must be equal.
var mayDiffer = map[string]string{
	"0008,0008": "ImageType: DERIVED",
	"0008,0012": "InstanceCreationDate", "0008,0013": "InstanceCreationTime", "0008,0014": "InstanceCreatorUID",
	"0008,0018": "SOPInstanceUID",
	"0008,0021": "SeriesDate", "0008,0031": "SeriesTime", "0008,0023": "ContentDate", "0008,0033": "ContentTime",
	"0008,103e": "SeriesDescription", "0008,2111": "DerivationDescription",
	"0008,2112": "SourceImageSequence", "0008,9215": "DerivationCodeSequence",
	"0018,a001": "ContributingEquipmentSequence",
	"0020,000e": "SeriesInstanceUID", "0020,0011": "SeriesNumber",
	"0028,0106": "SmallestImagePixelValue", "0028,0107": "LargestImagePixelValue",
	"0088,0200": "IconImageSequence", "4ffe,0001": "MACParametersSequence", "fffa,fffa": "DigitalSignaturesSequence",
	// Enhanced objects only:
	"0018,9004": "ContentQualification", "0008,9154": "SourceImageEvidenceSequence", "0008,9092": "ReferencedImageEvidenceSequence",
	"5200,9229": "SharedFunctionalGroupsSequence", "5200,9230": "PerFrameFunctionalGroupsSequence",
}

func requirePeers(t testing.TB) {
	t.Helper()
	testdata.Peer(t, "Orthanc", "storescp", "storescu", "dcmsend", "dcmdump", "dciodvfy", "dcentvfy")
}

// TestSeries sends every real series as a scanner does and looks at what came
// out at the other side.
func TestSeries(t *testing.T) {
	t.Parallel()
	requirePeers(t)
	dir := filepath.Join(testdata.Dir(t), "dicom", "series")
	files := dicomFiles(t, dir)
	for _, scanner := range []struct {
		name string
		send func(t testing.TB, port int, aet string, files ...string) []sent
	}{{"storescu", storescu}, {"dcmsend", dcmsend}} {
		t.Run(scanner.name, func(t *testing.T) {
			// What the sender delivers, and what Orthanc makes of it, without us.
			direct := startRoute(t)
			for _, port := range []int{direct.bits.port, direct.archive.dicom} {
				for _, s := range scanner.send(t, port, "ANY", files...) {
					if !s.Answered || s.Status != 0 {
						t.Fatalf("the test's own peers do not take %s: %v", s.File, s)
					}
				}
			}

			through := startRoute(t)
			s := startDenoised(t,
				destination{"pacs", through.archive.aet, through.archive.dicom, "original, derived"},
				destination{"bits", through.bits.aet, through.bits.port, "original"})
			report := scanner.send(t, s.port, "DENOISE", files...)
			if len(report) != len(files) {
				t.Errorf("%s reports on %d files of %d", scanner.name, len(report), len(files))
			}
			for _, r := range report {
				if !r.Answered || r.Status != 0 {
					t.Errorf("%s: %v", r.File, r)
				}
			}
			s.settled(time.Minute)

			compareOriginals(t, direct, through)
			derived := checkDerived(t, through.archive, sourcesOf(t, direct))
			for name, want := range denoisable {
				got := 0
				for _, file := range dicomFiles(t, filepath.Join(dir, name)) {
					if _, ok := derived[fileUID(t, file)]; ok {
						got++
					}
				}
				if got != want {
					t.Errorf("%s: %d derived instances in the archive, want %d", name, got, want)
				}
			}
			secondPass(t, s, through, derived)
		})
	}
}

// route is where objects end up: an archive and a recorder of bytes.
type route struct {
	archive *orthanc
	bits    *recorder
}

func startRoute(t testing.TB) route {
	t.Helper()
	return route{startOrthanc(t), startRecorder(t)}
}

// compareOriginals holds what came through against what came directly: the same
// objects, once each, byte for byte.
func compareOriginals(t *testing.T, direct, through route) {
	t.Helper()
	want, got := direct.bits.objects(), through.bits.objects()
	for uid := range want {
		if a, b := once(t, want, uid), once(t, got, uid); !bytes.Equal(a, b) {
			t.Errorf("%s: the data set was changed on its way: %s", uid, firstDifference(a, b))
		}
	}
	for uid := range got {
		if want[uid] == nil {
			t.Errorf("%s was forwarded and never sent", uid)
		}
	}
	wantIn, gotIn := direct.archive.instances(), through.archive.instances()
	for uid, a := range wantIn {
		b, ok := gotIn[uid]
		if !ok {
			t.Errorf("%s is not in the archive", uid)
			continue
		}
		x, errX := parsePart10(direct.archive.file(a))
		y, errY := parsePart10(through.archive.file(b))
		if errX != nil || errY != nil {
			t.Errorf("%s: files from the archive: %v, %v", uid, errX, errY)
		} else if !bytes.Equal(x.DataSet, y.DataSet) {
			t.Errorf("%s: the archived data set differs: %s", uid, firstDifference(x.DataSet, y.DataSet))
		}
	}
}

// source is an original as the archive has it.
type source struct {
	file     string
	elements map[string]string
}

// sourcesOf fetches every instance of the route that we had no part in.
func sourcesOf(t testing.TB, direct route) map[string]source {
	t.Helper()
	return fetch(t, direct.archive, direct.archive.instances())
}

// fetch writes archived instances into files and reads their elements.
func fetch(t testing.TB, o *orthanc, list map[string]archived) map[string]source {
	t.Helper()
	dir := t.TempDir()
	out := make(map[string]source, len(list))
	for uid, a := range list {
		file := filepath.Join(dir, uid+".dcm")
		if err := os.WriteFile(file, o.file(a), 0o644); err != nil {
			t.Fatal(err)
		}
		out[uid] = source{file: file, elements: elements(t, file)}
	}
	return out
}

// sourceImage finds the instance that a SourceImageSequence names, in the text of
// the element that holds the sequence.
var sourceImage = regexp.MustCompile(`(?s)\(0008,2112\).*?\(0008,1155\) UI \[([0-9.]+)\]`)

// sourceUID returns the instance that a derived object says it was made from:
// at the top level, in enhanced objects in the derivation image functional group.
func sourceUID(d source) string {
	for _, tag := range []string{"0008,2112", "5200,9229", "5200,9230"} {
		if m := sourceImage.FindStringSubmatch(d.elements[tag]); m != nil {
			return m[1]
		}
	}
	return ""
}

// checkDerived looks at every instance of the archive that is not one of the
// sources: each must be a proper derived object of exactly one of them. It
// returns them by the UID of their source.
func checkDerived(t *testing.T, archive *orthanc, sources map[string]source) map[string]source {
	t.Helper()
	list := archive.instances()
	maps.DeleteFunc(list, func(uid string, _ archived) bool { _, ok := sources[uid]; return ok })
	return checkDerivedOf(t, archive, list, sources)
}

// checkDerivedOf is checkDerived for the named instances.
func checkDerivedOf(t *testing.T, archive *orthanc, list map[string]archived, sources map[string]source) map[string]source {
	t.Helper()
	derived := make(map[string]source)
	series := make(map[string]string) // source series -> derived series
	for uid, d := range fetch(t, archive, list) {
		from := sourceUID(d)
		if from == "" {
			t.Errorf("%s names no source image", uid)
			continue
		}
		src, ok := sources[from]
		if !ok {
			t.Errorf("%s is derived from %s, which was not sent", uid, from)
			continue
		}
		if other, twice := derived[from]; twice {
			t.Errorf("%s has two derived instances: %s and %s", from, uid, filepath.Base(other.file))
		}
		derived[from] = d
		compareElements(t, from, src, d)
		comparePixels(t, from, src, d)
		compareErrorClasses(t, from, src.file, d.file)

		was, is := value(src, "0020,000e"), value(d, "0020,000e")
		if was == is {
			t.Errorf("%s: the derived instance is in its source's series", from)
		}
		if s, ok := series[was]; ok && s != is {
			t.Errorf("series %s has two derived series: %s and %s", was, s, is)
		}
		series[was] = is
	}
	compareEntities(t, sources, derived)
	return derived
}

func compareElements(t *testing.T, uid string, src, d source) {
	t.Helper()
	for tag, was := range src.elements {
		if _, ok := mayDiffer[tag]; ok || strings.HasSuffix(tag, ",0000") {
			continue
		}
		if is := d.elements[tag]; is != was {
			t.Errorf("%s: element %s changed:\n  from %.200s\n  to   %.200s", uid, tag, was, is)
		}
	}
	for tag := range d.elements {
		if _, ok := src.elements[tag]; !ok && mayDiffer[tag] == "" {
			t.Errorf("%s: element %s was added: %.200s", uid, tag, d.elements[tag])
		}
	}
	if got := value(d, "0008,0008"); !strings.HasPrefix(got, `DERIVED\PRIMARY\`) && !strings.HasPrefix(got, `DERIVED\SECONDARY\`) {
		t.Errorf("%s: ImageType of the derived object is %s", uid, got)
	}
	if !strings.Contains(d.elements["0018,a001"], "109102") {
		t.Errorf("%s: ContributingEquipmentSequence does not name the processing equipment:\n%s", uid, d.elements["0018,a001"])
	}
}

// comparePixels: pixels were changed, but not what the picture shows. Where no
// noise was found they are the source's, and a single-frame object says so.
func comparePixels(t *testing.T, uid string, src, d source) {
	t.Helper()
	a, b := pixels(t, src), pixels(t, d)
	if len(a) != len(b) || len(a) == 0 {
		t.Errorf("%s: %d pixels became %d", uid, len(a), len(b))
		return
	}
	_, frames := src.elements["0028,0008"]
	if same, said := slices.Equal(a, b), strings.Contains(d.elements["0008,2111"], derive.Untouched); !frames && same != said {
		t.Errorf("%s: the derived pixels are those of the source: %v, and the object says so: %v", uid, same, said)
	}
	meanA, meanB := mean(a), mean(b)
	if math.Abs(meanA-meanB) > 0.02*math.Abs(meanA)+1 {
		t.Errorf("%s: mean pixel value went from %.2f to %.2f", uid, meanA, meanB)
	}
}

// compareErrorClasses: dciodvfy may find in a derived object what was wrong
// with its source already, nothing new.
func compareErrorClasses(t *testing.T, uid, src, d string) {
	t.Helper()
	known := errorClasses(t, src)
	for class := range errorClasses(t, d) {
		if !known[class] {
			t.Errorf("%s: dciodvfy finds something new in the derived object: %s", uid, class)
		}
	}
}

// compareEntities: dcentvfy looks for patients, studies and series whose
// attributes contradict each other between objects. Derived series beside their
// sources may add no contradiction.
func compareEntities(t *testing.T, sources, derived map[string]source) {
	t.Helper()
	if len(derived) == 0 {
		return
	}
	var before, after []string
	for uid, s := range sources {
		before = append(before, s.file)
		if d, ok := derived[uid]; ok {
			after = append(after, d.file)
		}
	}
	known := entityErrors(t, before)
	for e := range entityErrors(t, append(after, before...)) {
		if !known[e] {
			t.Errorf("dcentvfy finds a new contradiction beside the derived series: %s", e)
		}
	}
}

var uidInText = regexp.MustCompile(`\b\d+(\.\d+){5,}\b|<[^<>]*>`)

func entityErrors(t testing.TB, files []string) map[string]bool {
	t.Helper()
	slices.Sort(files)
	out, _ := run(t, "dcentvfy", files...) // the exit status says nothing that the text does not
	classes := make(map[string]bool)
	for line := range strings.Lines(out) {
		if strings.Contains(line, "Error") {
			classes[uidInText.ReplaceAllString(strings.TrimSpace(line), "<>")] = true
		}
	}
	return classes
}

// secondPass sends derived instances back: they must be recognised, forwarded
// at most as what they are, and not denoised again.
func secondPass(t *testing.T, s *system, through route, derived map[string]source) {
	t.Helper()
	if len(derived) == 0 {
		t.Error("nothing derived, nothing to send back")
		return
	}
	before := through.archive.instances()
	var files []string
	for _, d := range derived {
		files = append(files, d.file)
	}
	for _, r := range dcmsend(t, s.port, "DENOISE", files...) {
		if !r.Answered || r.Status != 0 {
			t.Errorf("derived instance sent back: %v", r)
		}
	}
	s.settled(time.Minute)
	after := through.archive.instances()
	for uid := range after {
		if _, ok := before[uid]; !ok {
			t.Errorf("%s appeared after the second pass: a derived image was denoised again", uid)
		}
	}
	status := s.instances()
	for _, d := range derived {
		uid := value(d, "0008,0018")
		if got := status[uid]; got.State != state.Passed || got.Reason != state.Reason(derive.AlreadyDenoised) {
			t.Errorf("%s, derived, was sent back: state %q, reason %q, want %q, %q", uid, got.State, got.Reason,
				state.Passed, derive.AlreadyDenoised)
		}
	}
}

var bracketed = regexp.MustCompile(`\[(.*)\]`)

// value returns the text value of an element as dcmdump prints it.
func value(s source, tag string) string {
	m := bracketed.FindStringSubmatch(s.elements[tag])
	if m == nil {
		return ""
	}
	return m[1]
}

// fileUID returns the SOP Instance UID of a well-formed file.
func fileUID(t testing.TB, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p, err := parsePart10(data)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", file, err))
	}
	return p.SOPInstanceUID
}
