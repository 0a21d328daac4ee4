package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diffdenoise/denoised/internal/dataset"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/models/train"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

func phantomDICOM(t *testing.T, v *phantom.Volume, k int, ids phantom.IDs) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := v.WriteDICOM(&b, k, ids); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// storeObject puts a file into a spool as the daemon does.
func storeObject(t *testing.T, s *spool.Store, kind spool.Kind, raw []byte, series, sop string) (name string) {
	t.Helper()
	f, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Discard()
	if _, err := f.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(spool.Record{Kind: kind}); err != nil {
		t.Fatal(err)
	}
	name = spool.FileName(kind, series, sop, "")
	if err := f.Publish(name); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestDataSpool: the state folder of a daemon gives its originals, not what
// it made of them; an image that goes meanwhile is a skip.
func TestDataSpool(t *testing.T) {
	state := t.TempDir()
	store, err := spool.OpenStore(spool.DirFS(filepath.Join(state, "spool")), spool.Limits{Refuse: 1, Reserve: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := phantom.New(phantom.Spec{Width: 64, Height: 64, Slices: 4, Sigma: 0.05})
	ids := phantom.NewIDs("spooled")
	names := make([]string, 4)
	for k := range 4 {
		raw := phantomDICOM(t, v, k, ids)
		names[k] = storeObject(t, store, spool.Original, raw, ids.SeriesInstanceUID, ids.SOPInstanceUID(k))
	}
	storeObject(t, store, spool.Derived, phantomDICOM(t, v, 0, phantom.NewIDs("ours")), "1.2", "1.2.3")
	write(t, filepath.Join(state, "spool", "tmp", "unfinished"), []byte("half"))
	write(t, filepath.Join(state, "journal.db"), []byte("not for us"))
	for _, root := range []string{state, filepath.Join(state, "spool")} {
		var volumes []dataset.Volume
		live, err := readData(t.Context(), root, nil, func(v dataset.Volume) error {
			volumes = append(volumes, v)
			return nil
		}, func(s dataset.Skip) { t.Errorf("%s: left out: %+v", root, s) })
		if err != nil || !live || len(volumes) != 1 || volumes[0].Slices != 4 {
			t.Fatalf("%s: %v, live %v, volumes %+v", root, err, live, volumes)
		}
	}
	// Retention takes the third image away while the second is read.
	b := train.NewBuilder(train.Options{})
	_, err = readData(t.Context(), state, nil, func(v dataset.Volume) error {
		read := v.Read
		v.Read = func(k int) (dataset.Image, error) {
			if k == 2 {
				if err := store.Remove(names[2]); err != nil {
					t.Error(err)
				}
			}
			return read(k)
		}
		return b.Add(context.Background(), v)
	}, b.Skip)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Build(t.Context())
	if err == nil || !strings.Contains(err.Error(), "3 usable slices") || !strings.Contains(err.Error(), "1 gone") {
		t.Errorf("an image that went: %v", err)
	}
}
