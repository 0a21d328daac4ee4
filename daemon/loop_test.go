package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/dicomnet"
)

// reserve finds a port that is free now.
func reserve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// looping tells whether a destination counts as a loop, and that none of the images
// counts as delivered to it.
func looping(d *Daemon, name string, images []image) error {
	h := d.pipe.Check()
	if h.Breakers[name] != "loop" || !strings.Contains(strings.Join(h.Problems, "\n"), name+" leads back") {
		return fmt.Errorf("destination %s is %q, %v", name, h.Breakers[name], h.Problems)
	}
	list, err := d.pipe.Series(context.Background())
	if err != nil {
		return err
	}
	for _, s := range list {
		for _, dest := range s.Destinations {
			if dest.Name == name && dest.Stored > 0 {
				return fmt.Errorf("%d images count as stored by %s", dest.Stored, name)
			}
		}
	}
	return nil
}

func TestDestinationThatIsThisDaemon(t *testing.T) {
	c := testConfig(t)
	c.DICOM.Listen = reserve(t)
	c.Destinations = []Destination{{Name: "self", AETitle: "DENOISE", Address: c.DICOM.Listen}}
	d := startDaemon(t, c)
	images := phantomSeries(t, "", 2)
	pushOK(t, d.Daemon, "DENOISE", images)
	eventually(t, "a loop", func() error { return looping(d.Daemon, "self", images) })
	findings := Check(t.Context(), c, WorkerProgram{})
	if !slices.ContainsFunc(findings, func(f Finding) bool {
		return f.What == "destination self" && f.Outcome == Bad && strings.Contains(f.Detail, "loop")
	}) {
		t.Errorf("check: %+v", findings)
	}
}

// Two daemons that have each other as their destination: neither counts anything as
// delivered, whichever begins, and also when both have forgotten whom they talked to.
func TestDaemonsThatPointAtEachOther(t *testing.T) {
	a, b := testConfig(t), testConfig(t)
	a.DICOM.Listen, b.DICOM.Listen = reserve(t), reserve(t)
	a.Destinations = []Destination{{Name: "b", AETitle: "DENOISE", Address: b.DICOM.Listen}}
	b.Destinations = []Destination{{Name: "a", AETitle: "DENOISE", Address: a.DICOM.Listen}}
	images := phantomSeries(t, "", 1)
	for round := range 2 {
		other, one := startDaemon(t, b), startDaemon(t, a)
		if round == 0 {
			pushOK(t, one.Daemon, "DENOISE", images)
		}
		eventually(t, "a loop at the one that has images", func() error { return looping(one.Daemon, "b", images) })
		eventually(t, "a problem at the other one", func() error {
			if p := strings.Join(other.Status().Problems, "\n"); !strings.Contains(p,
				"destination a sends to this daemon") {
				return errors.New(p)
			}
			return nil
		})
		c := *b
		c.HTTP.Listen = other.HTTPAddr().String()
		if f := Check(t.Context(), &c, WorkerProgram{}); !slices.ContainsFunc(f, func(f Finding) bool {
			return f.What == "destination a" && f.Outcome == Bad && strings.Contains(f.Detail, "loop: ")
		}) {
			t.Errorf("check: %+v", f)
		}
		if list, err := other.pipe.Series(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("images went to the other one: %+v, %v", list, err)
		}
		for _, d := range []*running{one, other} {
			if err := d.stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A daemon that sends on to another one which sends to an archive is no loop.
func TestDaemonBehindDaemon(t *testing.T) {
	archive := startPACS(t)
	far := startDaemon(t, testConfig(t, archive))
	c := testConfig(t)
	c.Destinations = []Destination{{Name: "far", AETitle: "DENOISE", Address: far.DICOMAddr().String(),
		Send: []string{"original"}}}
	near := startDaemon(t, c)
	images := phantomSeries(t, "", 2)
	pushOK(t, near.Daemon, "DENOISE", images)
	eventually(t, "the archive has the images and what was made of them", func() error {
		if n := archive.count(); n != 4 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if s := near.pipe.Check().Breakers["far"]; s != "closed" {
		t.Errorf("far is %q", s)
	}
}

func TestIdentityStays(t *testing.T) {
	dir := t.TempDir()
	first, err := identity(dir)
	if err != nil || !isInstallation(dicomnet.Implementation{ClassUID: dicomnet.ImplementationClassUID,
		VersionName: first}) {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := identity(dir); again != first || err != nil {
		t.Errorf("%q, then %q, %v", first, again, err)
	}
	other, err := identity(t.TempDir())
	if err != nil || other == first {
		t.Errorf("two installations are %q, %v", other, err)
	}
	if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("DENOISED_1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if name, err := identity(dir); err != nil || name == "DENOISED_1" {
		t.Errorf("a damaged file gives %q, %v", name, err)
	}
	if name, err := identity(filepath.Join(dir, "missing")); err == nil || len(name) != installationLength {
		t.Errorf("no folder: %q, %v", name, err)
	}
}

func TestDestinationsAreNotAskedAllTheTime(t *testing.T) {
	const live = "127.0.0.1:104"
	asked := map[string]int{}
	l := newLoops(func(_ context.Context, p place) (dicomnet.Implementation, error) {
		asked[p.address]++
		if p.address == "dead" {
			return dicomnet.Implementation{}, errors.New("no answer")
		}
		return dicomnet.Implementation{ClassUID: dicomnet.ImplementationClassUID, VersionName: "DENOISED_1_AAAAA"}, nil
	})
	from := dicomnet.Implementation{ClassUID: dicomnet.ImplementationClassUID, VersionName: "DENOISED_1_BBBBB"}
	for _, d := range []Destination{{Name: "x", Address: "dead"}, {Name: "y", Address: live}} {
		for range 3 {
			if name, ok := l.sendsTo(t.Context(), from, "127.0.0.1", []Destination{d}); ok {
				t.Errorf("%s is taken for another", name)
			}
		}
	}
	if asked["dead"] != 1 || asked[live] != 1 {
		t.Errorf("asked %v", asked)
	}
	from.VersionName = "DENOISED_1_AAAAA"
	for _, c := range []struct {
		host  string
		leads bool
	}{{"10.9.8.7", false}, {"127.0.0.1", true}} { // who calls itself so from elsewhere is refused, and stops nothing
		name, ok := l.sendsTo(t.Context(), from, c.host, []Destination{{Name: "y", Address: live}})
		if !ok || name != "y" || l.leadBack(place{address: live}) != c.leads {
			t.Errorf("from %s: %q, %v, leads back: %v", c.host, name, ok, !c.leads)
		}
	}
	l.leads[place{address: live}] = time.Now().Add(-loopHolds)
	if l.leadBack(place{address: live}) {
		t.Error("a loop never ends")
	}
}
