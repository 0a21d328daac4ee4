package interop

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/testdata"
)

// orthanc is a running Orthanc with an empty archive of its own.
type orthanc struct {
	t     testing.TB
	proc  *process
	aet   string
	dicom int    // port
	url   string // of the REST interface
}

// startOrthanc starts an archive on free loopback ports that takes whatever is
// sent to it. It shares nothing with an Orthanc that the machine may run as a
// service.
func startOrthanc(t testing.TB) *orthanc {
	t.Helper()
	dir := t.TempDir()
	o := &orthanc{t: t, aet: "PACS", dicom: freePort(t)}
	web := freePort(t)
	o.url = "http://" + loopback(web)
	config := map[string]any{
		"Name": "denoised-interop", "StorageDirectory": filepath.Join(dir, "db"), "IndexDirectory": filepath.Join(dir, "db"),
		"HttpPort": web, "RemoteAccessAllowed": false, "AuthenticationEnabled": false,
		"DicomPort": o.dicom, "DicomAet": o.aet, "DicomCheckCalledAet": false, "DicomAlwaysAllowStore": true,
		"UnknownSopClassAccepted": true, "OverwriteInstances": false, "SaveJobs": false, "Plugins": []string{},
		"DicomScpTimeout": 3, // it waits this long for the rest of a data set that is not what it says
	}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "orthanc.json")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	o.proc = startPeer(t, nil, testdata.Path(t, "Orthanc"), file)
	eventually(t, 30*time.Second, "Orthanc answers", func() error {
		o.proc.mustRun()
		_, err := o.get("/system")
		return err
	})
	return o
}

func (o *orthanc) get(path string) ([]byte, error) {
	resp, err := http.Get(o.url + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return data, err
}

// archived is one instance as Orthanc lists it.
type archived struct {
	ID           string
	ParentSeries string
	Tags         struct{ SOPInstanceUID string } `json:"MainDicomTags"`
}

// instances returns everything in the archive by SOP Instance UID. An instance
// that is there twice (Orthanc keys by patient too) fails the test.
func (o *orthanc) instances() map[string]archived {
	o.t.Helper()
	data, err := o.get("/instances?expand")
	if err != nil {
		o.t.Fatal(err)
	}
	var list []archived
	if err := json.Unmarshal(data, &list); err != nil {
		o.t.Fatal(err)
	}
	out := make(map[string]archived, len(list))
	for _, a := range list {
		if other, twice := out[a.Tags.SOPInstanceUID]; twice {
			o.t.Errorf("instance %s is in the archive twice: %s and %s", a.Tags.SOPInstanceUID, other.ID, a.ID)
		}
		out[a.Tags.SOPInstanceUID] = a
	}
	return out
}

// file returns an archived instance as a DICOM file.
func (o *orthanc) file(a archived) []byte {
	o.t.Helper()
	data, err := o.get("/instances/" + a.ID + "/file")
	if err != nil {
		o.t.Fatal(err)
	}
	return data
}

// recorder is a running storescp of DCMTK that writes what it receives exactly
// as it came, each object into a file of its own even if it comes twice.
type recorder struct {
	t    testing.TB
	proc *process
	aet  string
	port int
	dir  string
}

func startRecorder(t testing.TB) *recorder {
	t.Helper()
	r := &recorder{t: t, aet: "RECORDER", port: freePort(t), dir: t.TempDir()}
	r.proc = startPeer(t, []string{"TCP_NODELAY=1"}, testdata.Path(t, "storescp"),
		"-q", "+B", "+xa", "-pm", "+uf", "--fork", "-pdu", "131072", "-aet", r.aet, "-od", r.dir, strconv.Itoa(r.port))
	r.proc.waitTCP(loopback(r.port), 10*time.Second)
	return r
}

// objects returns the data sets received so far by the SOP Instance UID of the
// C-STORE request; more than one for a UID that came more than once.
func (r *recorder) objects() map[string][][]byte {
	r.t.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	out := make(map[string][][]byte)
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(r.dir, e.Name()))
		if err != nil {
			r.t.Fatal(err)
		}
		p, err := parsePart10(data)
		if err != nil {
			continue // still being written
		}
		out[p.SOPInstanceUID] = append(out[p.SOPInstanceUID], p.DataSet)
	}
	return out
}

// once returns the one data set received for uid and fails the test if there
// were none or several.
func once(t testing.TB, objects map[string][][]byte, uid string) []byte {
	t.Helper()
	if n := len(objects[uid]); n != 1 {
		t.Errorf("instance %s was received %d times, want once", uid, n)
	}
	if len(objects[uid]) == 0 {
		return nil
	}
	return objects[uid][0]
}

// firstDifference describes where two byte strings part, for error messages.
func firstDifference(a, b []byte) string {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return fmt.Sprintf("lengths %d and %d, first difference at byte %d: % x and % x", len(a), len(b), i,
				a[i:min(i+16, len(a))], b[i:min(i+16, len(b))])
		}
	}
	if len(a) == len(b) {
		return "none"
	}
	return fmt.Sprintf("lengths %d and %d, equal up to the shorter", len(a), len(b))
}
