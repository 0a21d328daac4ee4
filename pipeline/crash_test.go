package pipeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline/evidence"
)

// The crash tests run this test binary as a child that receives, denoises and
// forwards a few images and kills itself with SIGKILL at the nth time it passes
// one durable step. A second child takes over the folder. The archive is a
// folder of files, so it survives both.
const (
	envState = "DENOISED_TEST_CRASH_STATE" // set: this process is a child
	envPoint = "DENOISED_TEST_CRASH_POINT" // name:n, empty = run to the end
	envPurge = "DENOISED_TEST_CRASH_PURGE" // set: remove files once delivered
	envHigh  = "DENOISED_TEST_CRASH_HIGH"  // before, after: flag the series then
)

const crashImages = 5

// childMain runs the child if this process is one.
func childMain() bool {
	state := os.Getenv(envState)
	if state == "" {
		return false
	}
	if err := child(state, os.Getenv(envPoint)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func child(state, point string) error {
	name, count, _ := strings.Cut(point, ":")
	n, _ := strconv.ParseInt(count, 10, 64)
	var armed atomic.Bool
	var seen atomic.Int64
	o := Options{StateDir: state, Destinations: []Destination{pacs}, Workers: 2, Denoiser: &halver{}, Sender: folderArchive(filepath.Join(state, "archive")), Version: "test",
		DiskWarn: 0.97, DiskRefuse: 0.99, pause: func(int64) time.Duration { return time.Millisecond },
		hook: func(step string) {
			if armed.Load() && step == name && seen.Add(1) == n {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // until the signal arrives
			}
		}}
	if os.Getenv(envPurge) != "" {
		o.AfterForward = time.Nanosecond
	}
	objects := 2 * crashImages
	if os.Getenv(envHigh) != "" {
		o.Denoiser, o.Quiet, o.QuietOpen = &teacher{}, 10*time.Millisecond, 10*time.Millisecond
		objects = 3 * crashImages
	}
	if os.Getenv("DENOISED_TEST_CRASH_LOG") != "" {
		o.Logger = zap.Must(zap.NewDevelopment())
	}
	ctx := context.Background()
	p, err := Open(ctx, o)
	if err != nil {
		return err
	}
	armed.Store(true)
	stop := run(p)
	acks, err := os.OpenFile(filepath.Join(state, "acks"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	// A scanner that sends again what it got no answer for, over two associations.
	known, err := os.ReadFile(acks.Name())
	if err != nil {
		return err
	}
	flag := func(when string) error {
		if os.Getenv(envHigh) != when || bytes.Contains(known, []byte("flag\n")) {
			return nil
		}
		if _, err := p.Flag(ctx, slice(1, 1).series, Flag{Quality: High, Why: "lesion?"}); err != nil {
			return err
		}
		_, err := acks.WriteString("flag\n")
		return err
	}
	if err := flag("before"); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, crashImages)
	todo := make(chan image, crashImages)
	for i := range crashImages {
		if im := slice(1, i+1); !bytes.Contains(known, []byte(im.sop+"\n")) {
			todo <- im
		}
	}
	close(todo)
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for im := range todo {
				if err := p.Receive(ctx, im.incoming(), bytes.NewReader(im.dataSet())); err != nil {
					errs <- err
					return
				}
				if _, err := acks.WriteString(im.sop + "\n"); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	if err := flag("after"); err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		s, err := p.SeriesByUID(ctx, slice(1, 1).series)
		if err != nil {
			return err
		}
		done := s.Received == crashImages && s.Denoised == crashImages && len(s.Destinations) == 1 && s.Destinations[0].Stored == int64(objects)
		if done && os.Getenv(envPurge) != "" {
			p.retention.fire()
			for _, in := range s.Instances {
				done = done && in.Purged
			}
		}
		if done {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not finished: %+v", s)
		}
		time.Sleep(2 * time.Millisecond) // between polls of a condition with a deadline
	}
	stop()
	return p.Close()
}

// folderArchive is a Sender that keeps each copy it gets as a file <uid>.<n>
// whose content is the digest of the data set.
type folderArchive string

func (a folderArchive) Open(context.Context, Destination, []Context) (Link, error) {
	return folderLink(a), os.MkdirAll(string(a), 0o700)
}

type folderLink string

func (folderLink) Accepts(Context) bool        { return true }
func (folderLink) Close(context.Context) error { return nil }

func (l folderLink) Store(_ context.Context, o Outgoing, r io.Reader) (uint16, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return 0, err
	}
	// A peer that is another process would not die half way: make each copy at once.
	tmp := filepath.Join(string(l), "."+o.SOPInstanceUID)
	if err := os.WriteFile(tmp, []byte(hex.EncodeToString(h.Sum(nil))), 0o600); err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(string(l)), "last"), []byte(o.SOPInstanceUID), 0o600); err != nil {
		return 0, err
	}
	for n := 1; ; n++ {
		err := os.Link(tmp, filepath.Join(string(l), fmt.Sprintf("%s.copy%d", o.SOPInstanceUID, n)))
		if os.IsExist(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		return 0, nil
	}
}

// runChild runs a child to its end and tells whether it killed itself.
func runChild(t *testing.T, state, point string, env ...string) (killed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), envState+"="+state, envPoint+"="+point), env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL {
		return true
	}
	t.Fatalf("child: %v\n%s", err, out)
	return false
}

// inFlight is the image that the archive took last. It may not have been marked
// in the journal when the child died.
func inFlight(state string) string {
	b, err := os.ReadFile(filepath.Join(state, "last"))
	if err != nil {
		return ""
	}
	return string(b)
}

// checkArchive compares the archive with what was acknowledged: every image and
// its derived object are there, all copies of one are the same bytes, and only
// images that were in flight at a kill came twice.
func checkArchive(t *testing.T, state string, inFlight ...string) {
	t.Helper()
	checkObjects(t, state, 2*crashImages, inFlight...)
}

// checkObjects is checkArchive for another number of objects.
func checkObjects(t *testing.T, state string, objects int, inFlight ...string) {
	t.Helper()
	acks, err := os.ReadFile(filepath.Join(state, "acks"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(state, "archive", "*.copy*"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		uid, _, _ := strings.Cut(filepath.Base(f), ".copy")
		got[uid] = append(got[uid], string(b))
	}
	for i := range crashImages {
		im := slice(1, i+1)
		if n := strings.Count(string(acks), im.sop+"\n"); n != 1 {
			t.Errorf("image %s acknowledged %d times", im.sop, n)
		}
		sum := sha256.Sum256(im.dataSet())
		if c := got[im.sop]; len(c) == 0 || c[0] != hex.EncodeToString(sum[:]) {
			t.Errorf("image %s: not in the archive as it was sent: %v", im.sop, c)
		}
	}
	// Each image told once, whatever had to be done again.
	if got, want := told(t, state), (evidence.Sums{crashImages}); !slices.Equal(got, want) {
		t.Errorf("the series told %v, want %v", got, want)
	}
	if len(got) != objects {
		t.Errorf("%d instances in the archive of %d images, want %d", len(got), crashImages, objects)
	}
	for uid, c := range got {
		for _, x := range c[1:] {
			if x != c[0] {
				t.Errorf("%s came again with other bytes", uid)
			}
		}
		if len(c) > 1 && !slices.Contains(inFlight, uid) || len(c) > 1+len(inFlight) {
			t.Errorf("%s came %d times, in flight were %v", uid, len(c), inFlight)
		}
	}
}

var crashPoints = []string{"file-sync", "file-synced", "rename", "renamed", "folder-sync", "folder-synced", "commit", "committed",
	"derive-write", "derive-written", "send", "sent", "marked"}

func TestKilledAtEveryDurableStep(t *testing.T) {
	counts := []int{1, 2, 5}
	if testing.Short() {
		counts = []int{2}
	}
	for _, pt := range crashPoints {
		for _, n := range counts {
			t.Run(fmt.Sprintf("%s/%d", pt, n), func(t *testing.T) {
				state := t.TempDir()
				if !runChild(t, state, fmt.Sprintf("%s:%d", pt, n)) {
					t.Fatal("the child did not pass this step often enough")
				}
				last := inFlight(state)
				if runChild(t, state, "") {
					t.Fatal("the second child was killed")
				}
				checkArchive(t, state, last)
			})
		}
	}
}

// A purge that is killed between mark and removal is finished by the next process.
func TestKilledWhilePurging(t *testing.T) {
	state := t.TempDir()
	if !runChild(t, state, "purge-marked:2", envPurge+"=1") {
		t.Fatal("the child did not purge")
	}
	last := inFlight(state)
	if runChild(t, state, "", envPurge+"=1") {
		t.Fatal("the second child was killed")
	}
	checkArchive(t, state, last)
	if n := spoolFiles(t, state); n != 0 {
		t.Errorf("%d files left in the spool", n)
	}
}

// Killed several times in a row, at steps of several stages.
func TestKilledAgainAndAgain(t *testing.T) {
	state := t.TempDir()
	var last []string
	for _, pt := range []string{"renamed:2", "commit:4", "derive-written:1", "marked:2", "committed:3", "folder-sync:1"} {
		if runChild(t, state, pt) {
			last = append(last, inFlight(state))
		}
	}
	if runChild(t, state, "") {
		t.Fatal("the last child was killed")
	}
	checkArchive(t, state, last...)
}

// A flag and the steps of the high pass: killed at each of them the next process
// ends with the same objects, each made of the same bytes.
func TestKilledInTheHighPass(t *testing.T) {
	points := []struct{ when, point string }{
		{"before", "flag-write:1"}, {"before", "flag-renamed:1"}, {"before", "flag-written:1"}, {"before", "committed:1"},
		{"after", "flag-written:1"}, {"after", "high-write:1"}, {"after", "high-write:3"}, {"after", "high-written:1"}, {"after", "high-written:5"},
		{"after", "sent:12"}, {"after", "renamed:12"}, {"after", "folder-synced:13"},
	}
	if testing.Short() {
		points = points[6:9]
	}
	for _, c := range points {
		t.Run(c.when+" "+c.point, func(t *testing.T) {
			state := t.TempDir()
			high := envHigh + "=" + c.when
			if !runChild(t, state, c.point, high) {
				t.Fatal("the child did not pass this step often enough")
			}
			last := inFlight(state)
			if runChild(t, state, "", high) {
				t.Fatal("the second child was killed")
			}
			checkObjects(t, state, 3*crashImages, last)
		})
	}
}

// Killed again and again while the high pass runs.
func TestKilledInTheHighPassAgainAndAgain(t *testing.T) {
	state := t.TempDir()
	high := envHigh + "=after"
	var last []string
	for _, pt := range []string{"high-write:2", "high-written:1", "high-written:2", "sent:2", "high-write:1"} {
		if runChild(t, state, pt, high) {
			last = append(last, inFlight(state))
		}
	}
	if runChild(t, state, "", high) {
		t.Fatal("the last child was killed")
	}
	checkObjects(t, state, 3*crashImages, last...)
}
