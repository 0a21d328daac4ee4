package interop

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/dcm/dcmtest"
	"github.com/diffdenoise/denoised/internal/testdata"
)

// TestArchiveThatTakesImplicitOnly: an archive of DCMTK that takes Implicit VR
// Little Endian only gets every image that can become that, from the daemon and
// from denoised send, and has element by element what DCMTK's own converter makes of it.
func TestArchiveThatTakesImplicitOnly(t *testing.T) {
	t.Parallel()
	testdata.Peer(t, "storescp", "dcmdump", "dcmconv")
	archive := &recorder{t: t, aet: "SINK", port: freePort(t), dir: t.TempDir()}
	archive.proc = startPeer(t, []string{"TCP_NODELAY=1"}, testdata.Path(t, "storescp"),
		"-q", "+B", "+xi", "-pm", "+uf", "--fork", "-aet", archive.aet, "-od", archive.dir, strconv.Itoa(archive.port))
	archive.proc.waitTCP(loopback(archive.port), 10*time.Second)

	const asItCame = "2.25.4712.2" // implicit already
	dir := t.TempDir()
	files := map[string]string{} // by SOP instance UID
	for i, form := range []dcmtest.Form{
		{TransferSyntaxUID: dcm.ExplicitVRLittleEndian},
		{TransferSyntaxUID: dcm.ExplicitVRLittleEndian, Undefined: true},
		{TransferSyntaxUID: dcm.ImplicitVRLittleEndian},
		{TransferSyntaxUID: dcm.ExplicitVRBigEndian, Undefined: true},
	} {
		d := dcmtest.EnhancedMR(16, 16, 2, nil)
		d.Text(dcm.SOPInstanceUID, dcm.UI, fmt.Sprintf("2.25.4712.%d", i)).
			Text(dcm.SeriesInstanceUID, dcm.UI, fmt.Sprintf("2.25.4713.%d", i)).
			Set(dcm.Node{Tag: 0x00291002, VR: dcm.UN, Value: []byte{1, 0, 2, 0}}).
			Set(dcm.Text(0x00291003, dcm.LO, "private text")).
			Set(dcm.Sequence(0x00291004, []dcm.Node{
				dcm.Text(0x00290010, dcm.LO, "PHANTOM WORKS"), dcm.Text(0x00291005, dcm.DS, "1.5 ")}, nil)).
			Set(dcm.Sequence(dcm.ReferencedImageSequence)).
			US(dcm.PixelPaddingValue, 0)
		uid := d.Get(dcm.SOPInstanceUID)
		files[uid] = filepath.Join(dir, uid+".dcm")
		if err := os.WriteFile(files[uid], d.File(form), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	paths := slices.Sorted(maps.Values(files))

	s := startDenoised(t, destination{"sink", archive.aet, archive.port, "original"})
	var objects []raw
	for _, p := range paths {
		objects = append(objects, readRaw(t, p))
	}
	for _, r := range push(t, s.port, "OFF", objects) {
		if !r.Answered || r.Status != 0 {
			t.Errorf("%s: %v", r.File, r)
		}
	}
	s.settled(30 * time.Second)
	for uid, in := range s.instances() {
		d := delivery(in, "sink")
		converted := strings.Contains(d.Detail, "sent as Implicit VR Little Endian")
		if d.State != "stored" || converted == (uid == asItCame) {
			t.Errorf("%s: %+v", uid, d)
		}
	}
	compare := func(who string) {
		t.Helper()
		got := map[string]string{}
		for _, f := range dicomFiles(t, archive.dir) {
			got[fileUID(t, f)] = f
		}
		for uid, file := range files {
			if got[uid] == "" {
				t.Errorf("%s: %s did not arrive", who, uid)
				continue
			}
			want := file
			if uid != asItCame {
				want = filepath.Join(t.TempDir(), "want.dcm")
				if out, err := run(t, "dcmconv", "+ti", "-e", file, want); err != nil {
					t.Fatalf("dcmconv: %v\n%s", err, out)
				}
			}
			a, b := elements(t, want), elements(t, got[uid])
			for tag := range a {
				if a[tag] != b[tag] {
					t.Errorf("%s: %s: (%s)\n%swant\n%s", who, uid, tag, b[tag], a[tag])
				}
			}
			if len(a) != len(b) || len(a) < 40 {
				t.Errorf("%s: %s: %d elements, want %d", who, uid, len(b), len(a))
			}
			if p, q := pixels(t, source{want, a}), pixels(t, source{got[uid], b}); !slices.Equal(p, q) || len(p) == 0 {
				t.Errorf("%s: %s: other pixels", who, uid)
			}
		}
	}
	compare("serve")

	for _, f := range dicomFiles(t, archive.dir) {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	args := append([]string{"send", loopback(archive.port), "--aec", archive.aet}, paths...)
	report, err := exec.CommandContext(t.Context(), denoisedProgram(t), args...).CombinedOutput()
	if out := string(report); err != nil || !strings.Contains(out, "sent as Implicit VR Little Endian") {
		t.Errorf("denoised send: %v\n%s", err, out)
	}
	compare("send")
}
