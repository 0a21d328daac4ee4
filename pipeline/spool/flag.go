package spool

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"strings"
	"time"

	"github.com/diffdenoise/denoised/pipeline/state"
)

// flagDir holds one file for each flagged series, so that a rebuilt journal
// knows what people asked for:
//
//	flag/<hash of the series UID>.flag    the Flag as JSON, a line end, CRC-32C of the JSON in hexadecimal, a line end
const (
	flagDir    = "flag"
	flagSuffix = ".flag"
	// maxFlagFile is more than any flag needs; a longer file is not one of ours.
	maxFlagFile = 8 << 10
)

// Flag is what a person asked for a series.
type Flag struct {
	Key     string        `json:"series"`  // series UID
	Quality state.Quality `json:"quality"` // high, fast, off
	Why     string        `json:"why,omitempty"`
	By      string        `json:"by,omitempty"` // who, or by what means
	At      time.Time     `json:"at"`
}

type flagFile struct {
	Version int `json:"v"`
	Flag
}

func flagName(key string) string {
	h := sha256.Sum256([]byte(key))
	return fmt.Sprintf("%s/%x%s", flagDir, h[:16], flagSuffix)
}

// PutFlag makes a flag durable. It replaces the one that the series had.
func (s *Store) PutFlag(f Flag) (err error) {
	text, err := json.Marshal(flagFile{1, f})
	if err != nil {
		return fmt.Errorf("write flag: %w", err)
	}
	text = fmt.Appendf(text, "\n%08x\n", crc32.Checksum(text, castagnoli))
	tmp := fmt.Sprintf("%s/%s.%d.flag", tmpDir, s.run, s.seq.Add(1))
	file, err := s.fs.Create(tmp)
	if err != nil {
		return noSpace(fmt.Errorf("write flag: %w", err))
	}
	s.hook("flag-write")
	n, err := file.Write(text)
	if err == nil && n < len(text) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = s.fs.Rename(tmp, flagName(f.Key))
	}
	if err != nil {
		_ = s.fs.Remove(tmp) // else at the next start
		return noSpace(fmt.Errorf("write flag: %w", err))
	}
	s.hook("flag-renamed")
	if err := s.SyncName(flagName(f.Key)); err != nil {
		return err
	}
	s.hook("flag-written")
	return nil
}

// RemoveFlag deletes the file of a flag. One that is gone already is no error.
func (s *Store) RemoveFlag(key string) error { return s.Remove(flagName(key)) }

// Flags calls fn with every flag. bad is called with the name of a file that is
// not what was written; it may be set aside there.
func (s *Store) Flags(fn func(Flag) error, bad func(name string, err error) error) error {
	names, err := s.fs.List(flagDir)
	if err != nil {
		return fmt.Errorf("list spool folder %s: %w", flagDir, err)
	}
	for _, n := range names {
		if !strings.HasSuffix(n, flagSuffix) {
			continue
		}
		name := path.Join(flagDir, n)
		f, err := s.readFlag(name)
		var corrupt *CorruptError
		switch {
		case errors.As(err, &corrupt):
			err = bad(name, err)
		case err == nil:
			err = fn(f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) readFlag(name string) (Flag, error) {
	file, err := s.fs.Open(name)
	if err != nil {
		return Flag{}, fmt.Errorf("open flag: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.NewSectionReader(file, 0, maxFlagFile))
	if err != nil {
		return Flag{}, fmt.Errorf("read flag %s: %w", name, err)
	}
	body, sum, _ := bytes.Cut(text, []byte("\n"))
	if string(sum) != fmt.Sprintf("%08x\n", crc32.Checksum(body, castagnoli)) {
		return Flag{}, &CorruptError{File: name, Why: "checksum of the flag does not match"}
	}
	var f flagFile
	if err := json.Unmarshal(body, &f); err != nil || f.Version != 1 || flagName(f.Key) != name {
		return Flag{}, &CorruptError{File: name, Why: "flag unreadable"}
	}
	return f.Flag, nil
}
