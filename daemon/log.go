package daemon

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

// LogForm is how a log is written.
type LogForm int

// Forms of a log.
const (
	LogJSON    LogForm = iota // one object a line
	LogText                   // for people
	LogJournal                // LogJSON with the level in front as systemd's journal reads it (sd-daemon(3)), so that journalctl -p finds it
)

// NewLogger logs to w. Levels can be changed through the returned level.
func NewLogger(w io.Writer, form LogForm, level string) (*zap.Logger, zap.AtomicLevel, error) {
	at, err := zap.ParseAtomicLevel(level)
	if err != nil {
		return nil, at, fmt.Errorf("log level: %w", err)
	}
	ec := zap.NewProductionEncoderConfig()
	ec.TimeKey, ec.EncodeTime = "time", zapcore.RFC3339NanoTimeEncoder
	ec.EncodeDuration = zapcore.StringDurationEncoder
	enc := zapcore.NewJSONEncoder(ec)
	switch form {
	case LogJournal:
		enc = journalEncoder{enc}
	case LogText:
		ec.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		ec.EncodeLevel = zapcore.CapitalLevelEncoder
		ec.EncodeCaller = nil
		enc = zapcore.NewConsoleEncoder(ec)
	}
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), at)), at, nil
}

var journalLines = buffer.NewPool()

// journalEncoder writes the level in front of each line.
type journalEncoder struct{ zapcore.Encoder }

// Clone implements zapcore.Encoder.
func (j journalEncoder) Clone() zapcore.Encoder { return journalEncoder{j.Encoder.Clone()} }

// EncodeEntry implements zapcore.Encoder.
func (j journalEncoder) EncodeEntry(e zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	line, err := j.Encoder.EncodeEntry(e, fields)
	if err != nil {
		return nil, err
	}
	defer line.Free()
	mark := "<2>"
	switch e.Level {
	case zapcore.DebugLevel:
		mark = "<7>"
	case zapcore.InfoLevel:
		mark = "<6>"
	case zapcore.WarnLevel:
		mark = "<4>"
	case zapcore.ErrorLevel:
		mark = "<3>"
	}
	out := journalLines.Get()
	out.AppendString(mark)
	_, err = out.Write(line.Bytes())
	return out, err
}

// LogLine is a line of the log for the status page.
type LogLine struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"message"`
	Detail  string    `json:"detail,omitempty"` // the fields
	Times   int       `json:"times"`            // since the start, as long as it was not crowded out
}

// maxLogLines is how many warnings and errors the status page can show.
const maxLogLines = 20

// recentLog is a zap core that remembers the last warnings and errors. What is
// said again and again, as for each image on a full disk, is one line with the
// latest fields and a count, so that it does not crowd out the rest.
type recentLog struct {
	zapcore.LevelEnabler
	fields []zapcore.Field
	lines  *logLines
}

type logLines struct {
	mu   sync.Mutex
	list []LogLine // oldest first
	keys []string  // of each: what makes it the same line again
}

func newRecentLog() *recentLog {
	return &recentLog{LevelEnabler: zapcore.WarnLevel, lines: &logLines{}}
}

// With implements zapcore.Core.
func (r *recentLog) With(fields []zapcore.Field) zapcore.Core {
	return &recentLog{r.LevelEnabler, append(slices.Clip(r.fields), fields...), r.lines}
}

// Check implements zapcore.Core.
func (r *recentLog) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if r.Enabled(e.Level) {
		return ce.AddCore(e, r)
	}
	return ce
}

// Write implements zapcore.Core.
func (r *recentLog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(slices.Clip(r.fields), fields...) {
		f.AddTo(enc)
	}
	var detail []string
	for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
		if !strings.HasSuffix(k, "Verbose") {
			detail = append(detail, fmt.Sprintf("%s=%v", k, enc.Fields[k]))
		}
	}
	key := fmt.Sprint(e.Level, e.Message, enc.Fields["destination"])
	line := LogLine{Time: e.Time, Level: e.Level.String(), Message: e.Message, Detail: strings.Join(detail, " "), Times: 1}
	l := r.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	old := slices.Index(l.keys, key)
	if old >= 0 {
		line.Times += l.list[old].Times
	} else if len(l.list) == maxLogLines {
		old = 0
	}
	if old >= 0 {
		l.list, l.keys = slices.Delete(l.list, old, old+1), slices.Delete(l.keys, old, old+1)
	}
	l.list, l.keys = append(l.list, line), append(l.keys, key)
	return nil
}

// Sync implements zapcore.Core.
func (r *recentLog) Sync() error { return nil }

// recent returns the remembered lines, newest first.
func (r *recentLog) recent() []LogLine {
	r.lines.mu.Lock()
	defer r.lines.mu.Unlock()
	out := slices.Clone(r.lines.list)
	slices.Reverse(out)
	return out
}
