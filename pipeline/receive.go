package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// Errors of Receive and Import, see package spool for their meaning.
var (
	ErrNoSpace  = spool.ErrNoSpace  // passing: the sender may try later
	ErrTooLarge = spool.ErrTooLarge // the object will never be taken
	ErrEmpty    = spool.ErrEmpty
)

// ErrUID says that a UID is empty, too long or has characters other than printable ASCII.
var ErrUID = errors.New("invalid UID")

// MismatchError says that the data set is not the object that the command announced
// (PS3.4 B.2.3, status A9xx). Nothing was kept.
type MismatchError struct {
	Attribute        string // SOPClassUID or SOPInstanceUID
	Command, DataSet string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s is %s in the command and %s in the data set", e.Attribute, quoted(e.Command),
		quoted(e.DataSet))
}

// quoted shows every byte of a foreign text, of a long one the first 80 and how many there are.
func quoted(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%+q… (%d bytes)", s[:80], len(s))
	}
	return strconv.QuoteToASCII(s)
}

// Incoming is what is known of an image besides its data set.
type Incoming struct {
	SOPClassUID, SOPInstanceUID, TransferSyntaxUID string
	CallingAETitle, CalledAETitle                  string
	RemoteHost                                     string
	AssociationID                                  uint64
}

// facts is what the pre-scan finds out.
type facts struct {
	series   journal.Series
	number   int64
	frames   int64
	verdict  derive.Verdict
	mismatch *MismatchError
	decision decision
	found    bool // by recovery: the sender may have had its answer
	conflict bool // and the file's name says so
}

// receiver makes images durable and gives them to the stages behind it. It owns what a file and its row say of an image
// that comes; nothing of it is kept between two images.
type receiver struct {
	*shared
	series     *seriesClock
	fast, high *lane
	forward    *forwarders
	refused    atomic.Int64 // images in a row that could not be stored, for no fault of the sender
}

// Receive stores one data set. Its nil is a promise: file, folder entry and
// journal row are durable, the image will be forwarded. It reads r to its end
// in every case, unless r itself or ctx fails. What it cannot understand it
// stores all the same.
//
// The same bytes under the same UID again are a success and change nothing.
// Other bytes under a UID that was there already are kept beside the first,
// flagged and not forwarded.
func (p *Pipeline) Receive(ctx context.Context, in Incoming, r io.Reader) error {
	cfg := p.cfg.Load()
	asked, ok := cfg.AETitles[in.CalledAETitle]
	if !ok {
		asked = Fast
	}
	return p.receiver.receive(ctx, cfg, in, asked, r)
}

// Import takes a Part-10 file, as from a hot folder. nil is the same promise as
// that of Receive: the file may be removed.
func (p *Pipeline) Import(ctx context.Context, path string, q Quality) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	defer f.Close()
	return p.ImportFile(ctx, f, q)
}

// ImportFile is Import of a file that the caller has opened, and closes.
func (p *Pipeline) ImportFile(ctx context.Context, f *os.File, q Quality) error {
	if !q.Valid() {
		return fmt.Errorf("import: quality %q, need off, fast or high", q)
	}
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	in, off, err := fileMeta(f, st.Size())
	if err != nil {
		return fmt.Errorf("import %s: %w", f.Name(), err)
	}
	in.RemoteHost = "import"
	return p.receiver.receive(ctx, p.cfg.Load(), in, q, io.NewSectionReader(f, off, st.Size()-off))
}

// fileMeta reads what a C-STORE command would have said from a Part-10 file.
func fileMeta(r io.ReaderAt, size int64) (in Incoming, off int64, err error) {
	o, serr := scan(r, size)
	if o == nil || o.TransferSyntaxUID() == "" || o.DataSetOffset() <= 0 {
		if serr == nil {
			serr = errors.New("no transfer syntax")
		}
		return in, 0, fmt.Errorf("not a DICOM file: %w", serr)
	}
	in.SOPClassUID, in.SOPInstanceUID = o.String(dcm.SOPClassUID), o.String(dcm.SOPInstanceUID)
	if in.SOPClassUID == "" {
		in.SOPClassUID = o.String(dcm.MediaStorageSOPClassUID)
	}
	if in.SOPInstanceUID == "" {
		in.SOPInstanceUID = o.String(dcm.MediaStorageSOPInstanceUID)
	}
	in.TransferSyntaxUID = o.TransferSyntaxUID()
	in.CallingAETitle = o.String(dcm.SourceApplicationEntityTitle)
	return in, o.DataSetOffset(), nil
}

// scan is dcm.Scan that survives its own bugs.
func scan(r io.ReaderAt, size int64) (o *dcm.Object, err error) {
	defer func() {
		if v := recover(); v != nil {
			o, err = nil, fmt.Errorf("scan data set: panic: %v", v)
		}
	}()
	return dcm.Scan(r, size)
}

func validUID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

func (p *receiver) receive(ctx context.Context, cfg *config, in Incoming, asked Quality, r io.Reader) (err error) {
	start := time.Now()
	own := false // an error is not of the sender's making
	defer func() {
		if err != nil {
			p.met.receiveFailed(err)
			if own && ctx.Err() == nil {
				p.refused.Add(1)
			}
			// The peer goes on sending; what it sends must be read to keep the association.
			if ctx.Err() == nil {
				_, _ = io.Copy(io.Discard, r)
			}
			return
		}
		p.refused.Store(0)
		p.met.receiveSeconds.Observe(time.Since(start).Seconds())
	}()
	for _, uid := range []string{in.SOPClassUID, in.SOPInstanceUID, in.TransferSyntaxUID} {
		if !validUID(uid) {
			return fmt.Errorf("receive %s: %w", quoted(uid), ErrUID)
		}
	}
	from := &source{Reader: r}
	t, err := p.store.Receive(ctx, dcm.FileMeta{SOPClassUID: in.SOPClassUID, SOPInstanceUID: in.SOPInstanceUID,
		TransferSyntaxUID: in.TransferSyntaxUID, SourceAETitle: in.CallingAETitle}, from)
	if err != nil {
		own = !from.failed && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrEmpty)
		return fmt.Errorf("receive %q: %w", in.SOPInstanceUID, err)
	}
	defer t.Discard()
	now := p.clock.Now()

	// The disk writes while the processor looks at the header.
	synced := make(chan error, 1)
	rec := spool.Record{Kind: spool.Original, Calling: in.CallingAETitle, Called: in.CalledAETitle, Host: in.RemoteHost,
		Quality: asked, Received: now.UTC()}
	go func() { synced <- t.Sync(rec) }()
	f := p.inspect(cfg, in, asked, t, t.Offset()+t.Size())
	if err := <-synced; err != nil {
		own = true
		return fmt.Errorf("receive %q: %w", in.SOPInstanceUID, err)
	}
	if f.mismatch != nil {
		return fmt.Errorf("receive %q: %w", in.SOPInstanceUID, f.mismatch)
	}
	name := spool.FileName(spool.Original, f.series.Key, in.SOPInstanceUID, p.store.Salt())
	if err := t.Publish(name); err != nil {
		own = true
		return fmt.Errorf("receive %q: %w", in.SOPInstanceUID, err)
	}
	row := journal.Instance{SOP: in.SOPInstanceUID, Class: in.SOPClassUID, Syntax: in.TransferSyntaxUID, File: name,
		Offset: t.Offset(), Size: t.Size(), CRC: t.CRC(),
		Received: now, Number: f.number, Frames: f.frames, Quality: f.decision.quality,
		Channel: f.decision.channel, Rule: f.decision.rule}
	row.Stage, row.Reason, row.Detail = stage(cfg, f)
	if err := p.record(ctx, cfg, in, f, row); err != nil {
		own = true
		return fmt.Errorf("receive %q: %w", in.SOPInstanceUID, err)
	}
	return nil
}

// source is what a sender sends. It is used by one goroutine.
type source struct {
	io.Reader
	failed bool // it ended before its end
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.failed = s.failed || err != nil && err != io.EOF
	return n, err
}

// stage is where an original goes after it is durable.
func stage(cfg *config, f facts) (stage state.Stage, reason state.Reason, detail string) {
	switch {
	case f.conflict:
		return state.Conflict, state.ReasonConflict, conflictDetail
	case f.verdict.Reason != "":
		return state.Passed, state.Reason(f.verdict.Reason), f.verdict.Detail
	case f.decision.quality == Off:
		return state.Passed, state.ReasonOff, ""
	case cfg.Denoiser == nil:
		return state.Passed, state.ReasonNoModel, ""
	}
	return state.Queued, "", ""
}

const conflictDetail = "other bytes than the first image with this UID"

// record makes a published file part of the journal, and its name durable beside
// it. On error the file is gone again, unless it is in use already or was found.
func (p *receiver) record(ctx context.Context, cfg *config, in Incoming, f facts, row journal.Instance) error {
	named := make(chan error, 1)
	go func() { named <- p.store.SyncName(row.File) }()
	dests := cfg.dests(spool.Original)
	if row.Stage == state.Conflict {
		dests = nil
	}
	arrival := journal.Arrival{Series: f.series, Instance: row, Start: p.highStart(f.series.Modality), Dests: dests,
		Found:    f.found,
		Unwanted: len(cfg.Destinations) > 0 && len(cfg.dests(spool.Original)) == 0}
	arrival.Series.Quality, arrival.Series.Channel, arrival.Series.Rule = row.Quality, row.Channel, row.Rule
	added, err := p.jrnl.AddOriginal(arrival)
	nameErr := <-named
	if errors.Is(err, journal.ErrExists) && nameErr == nil {
		return p.again(ctx, cfg, in, f, arrival)
	}
	if err == nil && nameErr != nil {
		if gone, ferr := p.jrnl.Forget(added.Instance); ferr != nil || !gone {
			return errors.Join(nameErr, ferr)
		}
	}
	if err := errors.Join(err, nameErr); err != nil {
		return errors.Join(err, p.drop(f, row.File))
	}
	p.arrived(in, f, row, added, dests)
	return nil
}

// drop removes the file of an image that is not acknowledged. One that recovery found
// may have been, so it waits for the next start.
func (p *receiver) drop(f facts, file string) error {
	if f.found {
		return nil
	}
	return p.store.Remove(file)
}

func (p *receiver) arrived(in Incoming, f facts, row journal.Instance, added journal.Added, dests []string) {
	row.Stage, row.Reason = added.Stage, added.Reason
	p.series.arrived(row.Received, added, peer{in.CallingAETitle, in.RemoteHost}, row.Frames > 1)
	if row.Stage == state.Queued {
		p.fast.wake.fire()
	} else {
		p.met.slice(row.Stage, row.Reason)
	}
	p.forward.wake(dests)
	p.met.received.Inc()
	p.met.receivedBytes.Add(float64(row.Size))
	p.bus.send(Event{Time: row.Received, Type: EventReceived, Series: f.series.Key, SeriesID: added.Series,
		Instance: row.SOP, State: string(row.Stage), Detail: string(row.Reason)})
}

// again decides about an instance that the journal has already. row's file is
// published and its name durable.
func (p *receiver) again(ctx context.Context, cfg *config, in Incoming, f facts, a journal.Arrival) error {
	row := a.Instance
	const rounds = 20 // twins that arrive at once may change the answer between question and entry
	for range rounds {
		have, err := p.jrnl.Variants(ctx, f.series.Key, row.SOP)
		if err != nil {
			return errors.Join(err, p.drop(f, row.File))
		}
		for _, v := range have {
			if v.File == row.File { // recovery found the row but not how it was queued
				return nil
			}
			if v.Stage == state.Lost {
				return p.replace(cfg, in, f, v, row)
			}
			if v.Size != row.Size || v.CRC != row.CRC {
				continue
			}
			same, err := p.sameAs(row, v)
			if err != nil {
				return errors.Join(err, p.drop(f, row.File))
			}
			switch {
			case same || v.Gone:
				return p.twin(f, v, row)
			case p.verify(v) != nil:
				return p.replace(cfg, in, f, v, row)
			}
		}
		// Other bytes under the same UID. Which of them is right nobody here can
		// know: the first one stays what is forwarded.
		a.Variants = int64(len(have))
		a.Dests = nil
		a.Instance.Stage, a.Instance.Reason, a.Instance.Detail = state.Conflict, state.ReasonConflict, conflictDetail
		if len(have) == 0 { // forgotten meanwhile: this is the first again
			a.Dests = cfg.dests(spool.Original)
			a.Instance.Stage, a.Instance.Reason, a.Instance.Detail = row.Stage, row.Reason, row.Detail
		}
		if len(have) > 0 {
			name, err := p.store.MarkConflict(a.Instance.File)
			if err != nil {
				return errors.Join(err, p.drop(f, a.Instance.File))
			}
			a.Instance.File, row.File = name, name
		}
		added, err := p.jrnl.AddOriginal(a)
		if errors.Is(err, journal.ErrExists) {
			continue
		}
		if err != nil {
			return errors.Join(err, p.drop(f, row.File))
		}
		if len(have) > 0 {
			p.met.conflicts.Inc()
			p.log.Warn("other bytes under a known instance UID: kept, not forwarded", zap.String("series", f.series.Key), zap.String("instance", row.SOP), zap.String("file", row.File))
		}
		p.arrived(in, f, a.Instance, added, a.Dests)
		return nil
	}
	return errors.Join(fmt.Errorf("record instance: still changing after %d looks", rounds), p.drop(f, row.File))
}

// twin acknowledges an identical image: nothing new but the wish for a higher quality.
func (p *receiver) twin(f facts, have, row journal.Instance) error {
	// The first one may have been refused because its folder could not be synced.
	if !have.Gone {
		if err := p.store.SyncName(have.File); err != nil {
			return errors.Join(err, p.drop(f, row.File))
		}
	}
	if err := p.jrnl.Raise(have.ID, row.Quality, row.Channel, row.Rule, p.highStart(f.series.Modality),
		p.clock.Now()); err != nil {
		return errors.Join(err, p.drop(f, row.File))
	}
	p.fast.wake.fire()
	p.high.wake.fire()
	p.met.duplicates.Inc()
	return p.store.Remove(row.File)
}

// replace heals a lost or damaged file with the copy that has just arrived.
func (p *receiver) replace(cfg *config, in Incoming, f facts, have, row journal.Instance) error {
	dests := cfg.dests(spool.Original)
	if err := p.jrnl.Replace(have.ID, row, dests, p.highStart(f.series.Modality)); err != nil {
		return errors.Join(err, p.drop(f, row.File))
	}
	p.log.Warn("damaged file replaced by a new copy from the sender", zap.String("series", f.series.Key), zap.String("instance", row.SOP))
	if have.File != row.File {
		if err := p.store.Remove(have.File); err != nil {
			p.log.Warn("damaged file not removed", zap.String("file", have.File), zap.Error(err))
		}
	}
	p.fast.wake.fire()
	p.high.wake.fire()
	p.forward.wake(dests)
	return nil
}

func (p *shared) sameAs(a, b journal.Instance) (bool, error) {
	if b.Gone {
		return false, nil
	}
	f, err := p.store.Open(a.File)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return p.store.Same(f, a.Offset, a.Size, b.File, b.Offset)
}

// verify reads a file and compares it with its row.
func (p *shared) verify(in journal.Instance) error {
	f, err := p.store.Open(in.File)
	if err != nil {
		return err
	}
	defer f.Close()
	return spool.Verify(in.File, f, in.Offset, in.Size, in.CRC)
}

// unknownSeries is the key for objects without a readable series UID: one
// group per sender, so that a person can find them.
func unknownSeries(in Incoming) string { return "?" + in.CallingAETitle }

// inspect looks at a stored object. It never fails: what cannot be read gets a
// verdict that says so.
func (p *receiver) inspect(cfg *config, in Incoming, asked Quality, r io.ReaderAt, size int64) (f facts) {
	f = facts{series: journal.Series{Key: unknownSeries(in), Calling: in.CallingAETitle, Called: in.CalledAETitle,
		Host: in.RemoteHost},
		frames: 1, verdict: derive.Verdict{Reason: derive.Reason(state.ReasonUnparseable)},
		decision: decision{quality: Fast, channel: state.ChannelDefault}}
	base := f
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("panic while inspecting an object; it is passed on untouched", zap.String("instance", in.SOPInstanceUID), zap.Any("panic", v))
			keep := f.mismatch
			f = base
			f.mismatch = keep
		}
	}()
	o, err := scan(r, size)
	if o == nil {
		if err != nil {
			f.verdict.Detail = err.Error()
		}
		return f
	}
	for _, c := range []struct {
		name    string
		command string
		tag     dcm.Tag
	}{{"SOPClassUID", in.SOPClassUID, dcm.SOPClassUID}, {"SOPInstanceUID", in.SOPInstanceUID, dcm.SOPInstanceUID}} {
		if got := o.String(c.tag); got != "" && got != c.command {
			f.mismatch = &MismatchError{Attribute: c.name, Command: c.command, DataSet: got}
			return f
		}
	}
	if uid := o.String(dcm.SeriesInstanceUID); validUID(uid) {
		f.series.Key = uid
	}
	if uid := o.String(dcm.StudyInstanceUID); validUID(uid) {
		f.series.Study = uid
	}
	f.series.Modality, f.series.Protocol = clipped(o.String(dcm.Modality)), clipped(o.String(dcm.ProtocolName))
	f.series.Number, _ = o.Int(dcm.SeriesNumber)
	f.number, _ = o.Int(dcm.InstanceNumber)
	if n, ok := o.Int(dcm.NumberOfFrames); ok && n > 1 {
		f.frames = n
	}
	if n, ok := o.Int(dcm.ImagesInAcquisition); ok && n > 0 && n <= maxExpected {
		f.series.Expected = n
		if t, ok := o.Int(dcm.NumberOfTemporalPositions); ok && t > 1 && n*t <= maxExpected {
			f.series.Expected = n * t
		}
	}
	var ruleErr error
	if f.decision, ruleErr = decide(cfg.rules, asked, o, in); ruleErr != nil {
		p.log.Warn("rule failed on an object and was skipped", zap.String("instance", in.SOPInstanceUID), zap.Error(ruleErr))
	}
	base.series, base.number, base.frames, base.decision = f.series, f.number, f.frames, f.decision
	f.verdict = derive.Inspect(o, cfg.Admit...)
	return f
}

// maxExpected bounds an announced number of images; beyond it nobody counts.
const maxExpected = 1 << 20

// clipped bounds text from a header that goes into rows and answers.
func clipped(s string) string {
	if len(s) > 64 {
		return s[:64]
	}
	return s
}
