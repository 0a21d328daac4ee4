package train_test

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/diffdenoise/denoised/models/train"
)

func openLog(t *testing.T, path string) *train.Log {
	t.Helper()
	l, err := train.OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	l.Now = nil
	return l
}

func entry(stage string, step int) train.Entry {
	return train.Entry{Stage: stage, Step: step, Loss: 1 / float64(step), Rate: 1e-3, Seconds: 2, Scores: map[string]float64{"psnr_db": 30 + float64(step)}}
}

func writeAll(t *testing.T, l *train.Log, list ...train.Entry) {
	t.Helper()
	for _, e := range list {
		if err := l.Write(e); err != nil {
			t.Fatal(err)
		}
	}
}

func wantLog(t *testing.T, path string, want ...train.Entry) {
	t.Helper()
	got, err := train.ReadLog(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("log is %+v, %v\nwant %+v", got, err, want)
	}
}

// TestLog: what was written is read again, also after another opening.
func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.jsonl")
	l := openLog(t, path)
	writeAll(t, l, entry("bsn", 10), entry("bsn", 20))
	writeAll(t, openLog(t, path), entry("diffusion", 10))
	wantLog(t, path, entry("bsn", 10), entry("bsn", 20), entry("diffusion", 10))
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(b), `{"stage":"bsn","step":10,"loss":0.1,"rate":0.001,"seconds":2,"scores":{"psnr_db":40}}`+"\n") {
		t.Errorf("%v: %s", err, b)
	}
	l.Now = func() time.Time { return time.Unix(1e9, 5) }
	writeAll(t, l, entry("student", 1))
	got, err := train.ReadLog(path)
	if err != nil || !got[3].Time.Equal(time.Unix(1e9, 0)) {
		t.Errorf("%v, time %v", err, got)
	}
}

// TestLogCrash: half a line at the end is dropped, by the reader and by the next
// opening; what is appended then stands on a line of its own.
func TestLogCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.jsonl")
	writeAll(t, openLog(t, path), entry("bsn", 10), entry("bsn", 20))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole) - 1; cut > len(whole)/2+1; cut -= 7 {
		if err := os.WriteFile(path, whole[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		wantLog(t, path, entry("bsn", 10))
		writeAll(t, openLog(t, path), entry("bsn", 30))
		wantLog(t, path, entry("bsn", 10), entry("bsn", 30))
	}
	for _, bad := range []string{"not json\n" + string(whole), `{"step":3}` + "\n", string(whole) + `{"stage":"x","step":-1}` + "\n"} {
		if err := os.WriteFile(path, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := train.OpenLog(path); err == nil || !strings.Contains(err.Error(), "is not an entry") {
			t.Errorf("OpenLog of %.20q: %v", bad, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != bad {
			t.Error("a log that is not understood was changed")
		}
	}
}

// TestLogRewind: training that goes on from a checkpoint drops what came after it.
func TestLogRewind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.jsonl")
	l := openLog(t, path)
	writeAll(t, l, entry("bsn", 10), entry("bsn", 20), entry("diffusion", 10), entry("diffusion", 20), entry("student", 5))
	if err := l.Rewind("diffusion", 10, "student"); err != nil {
		t.Fatal(err)
	}
	wantLog(t, path, entry("bsn", 10), entry("bsn", 20), entry("diffusion", 10))
	writeAll(t, l, entry("diffusion", 15))
	wantLog(t, path, entry("bsn", 10), entry("bsn", 20), entry("diffusion", 10), entry("diffusion", 15))
	if err := l.Rewind("diffusion", 15); err != nil {
		t.Fatal(err)
	}
	writeAll(t, l, entry("diffusion", 20))
	wantLog(t, path, entry("bsn", 10), entry("bsn", 20), entry("diffusion", 10), entry("diffusion", 15), entry("diffusion", 20))
}

// TestLogNotFinite: JSON has no NaN; the line is written all the same.
func TestLogNotFinite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log.jsonl")
	e := entry("bsn", 10)
	e.Loss, e.Norm, e.Scores["sure"] = math.NaN(), math.Inf(1), math.NaN()
	writeAll(t, openLog(t, path), e)
	want := entry("bsn", 10)
	want.Loss, want.Scores["not_finite"] = 0, 1
	wantLog(t, path, want)
	if _, ok := e.Scores["sure"]; !ok {
		t.Error("the caller's scores were changed")
	}
}

func TestLogRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := train.OpenLog(dir); err == nil {
		t.Error("a folder is opened as a log")
	}
	if _, err := train.OpenLog(filepath.Join(dir, "none", "log.jsonl")); err == nil {
		t.Error("a log in a folder that is not there")
	}
}
