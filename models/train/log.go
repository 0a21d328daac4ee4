package train

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"time"

	"github.com/diffdenoise/denoised/internal/atomicfile"
)

// maxLogLine bounds a line of a log that is read.
const maxLogLine = 1 << 20

// Entry is one line of the log; its JSON is stable.
type Entry struct {
	Time  time.Time `json:"time,omitzero"`
	Stage string    `json:"stage"`
	Step  int       `json:"step"` // steps done in the stage
	// Loss, Norm and Rate are the mean loss and the norm of the gradient since the
	// last entry, and the learning rate of the step.
	Loss float64 `json:"loss"`
	Norm float64 `json:"norm,omitempty"`
	Rate float64 `json:"rate"`
	// Seconds is the time since the last entry, or since the run began.
	Seconds float64 `json:"seconds"`
	// Backend is what the last step was computed on.
	Backend string `json:"backend,omitempty"`
	// Scores are those of the validation: the names end in the unit where there is
	// one, as in "psnr_db". A value that is not finite is left out.
	Scores map[string]float64 `json:"scores,omitempty"`
}

// Log is a file of one JSON object per line, in the order of training. It is used
// by one goroutine at a time.
type Log struct {
	path string
	f    *os.File
	// write, if not nil, takes the lines instead of a file; for tests.
	write func(Entry) error
	// Now is the clock; nil leaves the times out.
	Now func() time.Time
}

// OpenLog opens the log at path for appending, a new one if there is none. What
// an end in the middle of a line left behind is dropped; a line in between that
// cannot be read is an error.
func OpenLog(path string) (*Log, error) {
	l := &Log{path: path, Now: time.Now}
	entries, whole, err := readLog(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case !whole:
		if err := l.replace(entries); err != nil {
			return nil, err
		}
	}
	return l, l.open()
}

func (l *Log) open() (err error) {
	if l.f, err = os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	return nil
}

// Write appends a line. When it returns nil the line is on the disk.
func (l *Log) Write(e Entry) error {
	if l.Now != nil && e.Time.IsZero() {
		e.Time = l.Now().UTC().Truncate(time.Second)
	}
	if l.write != nil {
		return l.write(e)
	}
	b, err := e.line()
	if err != nil {
		return fmt.Errorf("write log %s: %w", l.path, err)
	}
	if _, err := l.f.Write(b); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// line is the entry as JSON. A loss that is not finite, which ends a training,
// is written as 0 with a score "not_finite".
func (e Entry) line() ([]byte, error) {
	scores := map[string]float64{}
	for k, v := range e.Scores {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			scores[k] = v
		}
	}
	for _, v := range []*float64{&e.Loss, &e.Norm, &e.Rate, &e.Seconds} {
		if math.IsNaN(*v) || math.IsInf(*v, 0) {
			*v = 0
			scores["not_finite"] = 1
		}
	}
	e.Scores = scores
	b, err := json.Marshal(e)
	return append(b, '\n'), err
}

// Rewind drops the lines of a stage after the step of its checkpoint, and all of
// the stages named after: what comes next is written again. The file is replaced
// whole or not at all.
func (l *Log) Rewind(stage string, step int, after ...string) error {
	if l.write != nil {
		return nil
	}
	entries, whole, err := readLog(l.path)
	if err != nil {
		return err
	}
	n := len(entries)
	entries = slices.DeleteFunc(entries, func(e Entry) bool {
		return e.Stage == stage && e.Step > step || slices.Contains(after, e.Stage)
	})
	if len(entries) == n && whole {
		return nil
	}
	if err := l.f.Close(); err != nil {
		return fmt.Errorf("rewind log: %w", err)
	}
	if err := l.replace(entries); err != nil {
		return errors.Join(err, l.open())
	}
	return l.open()
}

// replace writes the file anew.
func (l *Log) replace(entries []Entry) error {
	return atomicfile.Write(l.path, 0o644, func(f *os.File) error {
		w := bufio.NewWriter(f)
		for _, e := range entries {
			b, err := e.line()
			if err != nil {
				return err
			}
			w.Write(b) // an error stays with w
		}
		return w.Flush()
	})
}

// Close ends the log.
func (l *Log) Close() error { return l.f.Close() }

// ReadLog returns the lines of a log. A last line without its end, which a crash
// leaves, is left out; any other that cannot be read is an error.
func ReadLog(path string) ([]Entry, error) {
	entries, _, err := readLog(path)
	return entries, err
}

// readLog also tells whether the last line is whole.
func readLog(path string) (entries []Entry, whole bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16)
	for n := 1; ; n++ {
		line, err := readLine(r)
		if err == io.EOF {
			return entries, len(line) == 0, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("read log %s: line %d: %w", path, n, err)
		}
		var e Entry
		d := json.NewDecoder(bytes.NewReader(line))
		if err := d.Decode(&e); err != nil || e.Stage == "" || e.Step < 0 {
			return nil, false, fmt.Errorf("read log %s: line %d is not an entry (remove the line, or the file to begin a new one)", path, n)
		}
		entries = append(entries, e)
	}
}

// readLine reads to the next line end. io.EOF comes with what is behind the last.
func readLine(r *bufio.Reader) (line []byte, err error) {
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLogLine {
			return nil, fmt.Errorf("longer than %d bytes", maxLogLine)
		}
		if err != bufio.ErrBufferFull {
			return line, err
		}
	}
}
