package pipeline

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// reconcile makes files and journal agree, whatever the last process was doing:
//
//  1. A row without its file: the row was committed, the name was not yet
//     durable, nothing was acknowledged. An original is marked lost (the sender
//     will send it again and heal it), a derived object is made again.
//  2. A file whose row says purged: the removal is finished.
//  3. An original without a row: the name was durable, the row was not. It is
//     recorded as if it had just come; the sender's repetition will be a twin.
//  4. A derived file without a row: recorded for its original, whatever that waits
//     for by now, since what is finished stays and is sent. It is removed if its
//     original is not held, and if off was asked for and this is no rebuild: the
//     journal then says that it was not finished before.
//  5. A file that is not what its own record says is set aside, with an alarm.
//  6. A flag's file that the journal does not know: the flag is set.
//
// With an empty journal 3 and 4 concern every file: that is the rebuild.
func (p *Pipeline) reconcile(ctx context.Context) error {
	if err := p.recoverFlags(ctx); err != nil { // before the originals that they are about
		return err
	}
	seed := maphash.MakeSeed()
	hash := func(name string) uint64 { return maphash.String(seed, name) }

	// Hashes, not names: a full spool has a million of them.
	var onDisk []uint64
	for _, k := range []spool.Kind{spool.Original, spool.Derived} {
		if err := p.store.Walk(k, func(name string) error { onDisk = append(onDisk, hash(name)); return ctx.Err() }); err != nil {
			return err
		}
	}
	slices.Sort(onDisk)
	var known []uint64
	var missing []journal.Instance
	err := p.jrnl.Files(ctx, func(in journal.Instance) error {
		h := hash(in.File)
		known = append(known, h)
		if _, ok := slices.BinarySearch(onDisk, h); !ok && in.Stage != state.Lost {
			missing = append(missing, in)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(known)
	rebuild := len(known) == 0
	if !rebuild { // or one that was cut short goes on
		if rebuild, err = p.jrnl.Indexed(ctx); err != nil {
			return err
		}
	}
	for _, in := range missing {
		p.log.Warn("row without a file", zap.String("instance", in.SOP), zap.String("kind", string(in.Kind)))
		if in.Kind == spool.Derived {
			err = p.jrnl.Remake(in.ID, in.Source, p.highStart(""), p.clock.Now())
		} else {
			p.met.lost.Inc()
			err = p.jrnl.Lose(in.ID, "the file is not in the spool")
		}
		if err != nil {
			return err
		}
	}
	// Originals first, for derived objects are recorded for them; and of these
	// the ones in conflict last, so that the first image stays the first.
	adopted, indexed := 0, false
	for _, pass := range []struct {
		kind     spool.Kind
		conflict bool
	}{{spool.Original, false}, {spool.Original, true}, {spool.Derived, false}} {
		k := pass.kind
		err := p.store.Walk(k, func(name string) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if spool.InConflict(name) != pass.conflict {
				return nil
			}
			if _, ok := slices.BinarySearch(known, hash(name)); ok {
				return nil
			}
			if !indexed {
				if err := p.jrnl.IndexFiles(true); err != nil {
					return err
				}
				indexed = true
			}
			row, err := p.jrnl.ByFile(ctx, name)
			if err != nil {
				return err
			}
			if row != nil {
				if row.Gone {
					return p.store.Remove(name)
				}
				return nil
			}
			adopted++
			err = p.adopt(ctx, k, name, rebuild)
			var corrupt *spool.CorruptError
			if errors.As(err, &corrupt) || errors.Is(err, spool.ErrDamaged) {
				p.met.integrity.Inc()
				p.log.Error("ALARM: spool file unusable, set aside", zap.String("file", name), zap.Error(err))
				return p.store.SetAside(name)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := p.jrnl.IndexFiles(false); err != nil {
		return err
	}
	if adopted > 0 {
		p.log.Warn("files without a row taken up; what the journal does not know as delivered is delivered again", zap.Int("files", adopted))
		if len(known) == 0 {
			p.met.rebuilds.Inc() // there was no journal
		}
	}
	return nil
}

// adopt records one published file that the journal does not know; rebuild says that
// the journal is being made anew.
func (p *Pipeline) adopt(ctx context.Context, k spool.Kind, name string, rebuild bool) error {
	f, err := p.store.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	rec, off, err := spool.ReadRecord(name, f)
	if err != nil {
		return err
	}
	if rec.Kind != k {
		return &spool.CorruptError{File: name, Why: fmt.Sprintf("is of kind %q", rec.Kind)}
	}
	if err := spool.Verify(name, f, off, rec.Size, rec.CRC); err != nil {
		return err
	}
	if k == spool.Derived {
		return p.adoptDerived(ctx, name, rec, f, off, rebuild)
	}
	// The file meta information says what the command said, also where the data
	// set cannot be read.
	head, _ := scan(f, off)
	if head == nil {
		return &spool.CorruptError{File: name, Why: "header unreadable"}
	}
	in := Incoming{SOPClassUID: head.String(dcm.MediaStorageSOPClassUID), SOPInstanceUID: head.String(dcm.MediaStorageSOPInstanceUID),
		TransferSyntaxUID: head.TransferSyntaxUID(), CallingAETitle: rec.Calling, CalledAETitle: rec.Called, RemoteHost: rec.Host}
	cfg := p.cfg.Load()
	asked := Quality(rec.Quality)
	if !asked.Valid() {
		asked = Fast
	}
	facts := p.receiver.inspect(cfg, in, asked, f, off+rec.Size)
	if facts.mismatch != nil {
		return &spool.CorruptError{File: name, Why: facts.mismatch.Error()}
	}
	facts.conflict, facts.found = spool.InConflict(name), true
	row := journal.Instance{SOP: in.SOPInstanceUID, Class: in.SOPClassUID, Syntax: in.TransferSyntaxUID, File: name,
		Offset: off, Size: rec.Size, CRC: rec.CRC,
		Received: rec.Received, Number: facts.number, Frames: facts.frames, Quality: facts.decision.quality,
		Channel: facts.decision.channel, Rule: facts.decision.rule}
	row.Stage, row.Reason, row.Detail = stage(cfg, facts)
	return p.receiver.record(ctx, cfg, in, facts, row)
}

func (p *Pipeline) adoptDerived(ctx context.Context, name string, rec spool.Record, f spool.File, off int64, rebuild bool) error {
	src, err := p.jrnl.ByFile(ctx, rec.Source)
	if err != nil {
		return err
	}
	held := src != nil && !src.Gone && src.Stage != state.Lost && src.Stage != state.Conflict
	o, err := scan(f, off+rec.Size)
	if !held || o == nil || err != nil || !rebuild && src.Quality == Off {
		return p.store.Remove(name) // were it needed, it would be made again
	}
	row := journal.Instance{SOP: o.String(dcm.SOPInstanceUID), Class: o.String(dcm.SOPClassUID),
		Syntax: o.TransferSyntaxUID(), File: name, Offset: off, Size: rec.Size, CRC: rec.CRC,
		Received: rec.Received, Number: src.Number, Frames: src.Frames, Quality: rec.Quality, Channel: src.Channel,
		Rule: src.Rule, Sigma: rec.Sigma, Reason: rec.Reason, Detail: rec.Detail, Told: rec.Told}
	if err := p.store.SyncName(name); err != nil {
		return err
	}
	err = p.jrnl.Adopt(src.ID, row, rec.Fill, p.cfg.Load().dests(spool.Derived), p.clock.Now())
	if errors.Is(err, journal.ErrExists) {
		return p.store.Remove(name)
	}
	return err
}
