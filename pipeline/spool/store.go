package spool

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/diffdenoise/denoised/internal/dcm"
)

// The folders of a Store:
//
//	spool/
//	  tmp/                    files being written; whatever is here at start is removed
//	  original/00 … ff/       as received:  <series hash>-<instance hash>.dcm; .conflict.dcm: see MarkConflict
//	  derived/00 … ff/        made by us:   the same names
//	  flag/                   what people asked for, see PutFlag
//	  damaged/                files that recovery could not use, kept for a person
//
// The two digits are the first of the series hash, so a series shares one
// folder and its folder syncs coalesce. No name comes from a UID itself.
const (
	tmpDir     = "tmp"
	damagedDir = "damaged"
	suffix     = ".dcm"
	// spaceStep is how many bytes may be written between two looks at the free space.
	spaceStep = 8 << 20
)

// Errors of the receive path.
var (
	// ErrNoSpace: the disk is fuller than the watermark allows, or full.
	ErrNoSpace = errors.New("not enough free disk space")
	// ErrTooLarge: the object exceeds the configured maximum.
	ErrTooLarge = errors.New("object exceeds the size limit")
	// ErrEmpty: the data set has no bytes.
	ErrEmpty = errors.New("empty data set")
	// ErrDamaged: a file's data set is not the one that was written.
	ErrDamaged = errors.New("stored data set is damaged")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Limits bound what may be written.
type Limits struct {
	MaxObject int64   // bytes of one data set; 0 = 4 GiB
	Refuse    float64 // fraction of the disk in use above which nothing is written; 0 = 0.90
	Reserve   uint64  // bytes always left free for the journal; 0 = 64 MiB
}

func (l Limits) withDefaults() Limits {
	if l.MaxObject <= 0 {
		l.MaxObject = 4 << 30
	}
	if l.Refuse <= 0 || l.Refuse > 1 {
		l.Refuse = 0.90
	}
	if l.Reserve == 0 {
		l.Reserve = 64 << 20
	}
	return l
}

// Store holds the files. All methods are safe for concurrent use.
type Store struct {
	fs     FS
	limits atomic.Pointer[Limits]
	seq    atomic.Uint64
	run    string // differs between processes so that temporary names never meet
	hook   func(step string)

	mu   sync.Mutex
	dirs map[string]*dirSync
}

// OpenStore prepares the folders and removes what an earlier process left in
// tmp: those files were never acknowledged. hook, which may be nil, is called
// by name before and after every durable step; tests die there.
func OpenStore(fsys FS, l Limits, hook func(step string)) (*Store, error) {
	if hook == nil {
		hook = func(string) {}
	}
	var id [6]byte
	rand.Read(id[:]) // never fails
	s := &Store{fs: fsys, run: hex.EncodeToString(id[:]), hook: hook, dirs: map[string]*dirSync{}}
	s.SetLimits(l)
	for _, d := range []string{".", tmpDir, damagedDir, flagDir, string(Original), string(Derived)} {
		if err := fsys.MkdirAll(d); err != nil {
			return nil, fmt.Errorf("make spool folder %s: %w", d, err)
		}
	}
	for _, k := range []Kind{Original, Derived} {
		have, err := fsys.List(string(k))
		if err != nil {
			return nil, fmt.Errorf("list spool folder %s: %w", k, err)
		}
		if len(have) < 256 {
			for i := range 256 {
				if err := fsys.MkdirAll(fmt.Sprintf("%s/%02x", k, i)); err != nil {
					return nil, fmt.Errorf("make spool folder: %w", err)
				}
			}
		}
		if err := fsys.SyncDir(string(k)); err != nil {
			return nil, fmt.Errorf("sync spool folder %s: %w", k, err)
		}
	}
	if err := fsys.SyncDir("."); err != nil {
		return nil, fmt.Errorf("sync spool folder: %w", err)
	}
	old, err := fsys.List(tmpDir)
	if err != nil {
		return nil, fmt.Errorf("list spool folder %s: %w", tmpDir, err)
	}
	for _, n := range old {
		if err := fsys.Remove(path.Join(tmpDir, n)); err != nil {
			return nil, fmt.Errorf("remove unfinished file: %w", err)
		}
	}
	return s, nil
}

// SetLimits replaces the limits for objects that begin from now on.
func (s *Store) SetLimits(l Limits) { l = l.withDefaults(); s.limits.Store(&l) }

// Used is the fraction of the disk that is in use, 0 to 1.
func (s *Store) Used() (float64, error) {
	total, free, err := s.fs.Free()
	if err != nil || total == 0 {
		return 0, err
	}
	return 1 - float64(free)/float64(total), nil
}

// space answers whether n more bytes may be written.
func (s *Store) space(n int64) error {
	l := s.limits.Load()
	total, free, err := s.fs.Free()
	if err != nil {
		return fmt.Errorf("ask for free disk space: %w", err)
	}
	keep := max(l.Reserve, uint64((1-l.Refuse)*float64(total)))
	if free < keep+uint64(n) {
		return fmt.Errorf("%d MiB free, %d MiB are kept: %w", free>>20, keep>>20, ErrNoSpace)
	}
	return nil
}

// FileName is the name for an instance: hashes, so no UID ever becomes a path.
// salt tells apart files of the same instance.
func FileName(k Kind, series, sop, salt string) string {
	sh := sha256.Sum256([]byte(series))
	ih := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", series, sop, salt))
	return fmt.Sprintf("%s/%02x/%x-%x%s", k, sh[0], sh[:8], ih[:16], suffix)
}

// conflictSuffix ends the name of a file whose UID was taken by other bytes. It
// is in the name so that a rebuilt journal does not take it for the first.
const conflictSuffix = ".conflict" + suffix

// InConflict tells whether a published file was marked by MarkConflict.
func InConflict(name string) bool { return strings.HasSuffix(name, conflictSuffix) }

// MarkConflict renames a published file so that recovery knows that it is in
// conflict. The new name is durable. On error it has the old name, if that can be
// given back.
func (s *Store) MarkConflict(name string) (string, error) {
	if InConflict(name) {
		return name, nil
	}
	to := strings.TrimSuffix(name, suffix) + conflictSuffix
	if err := s.fs.Rename(name, to); err != nil {
		return "", fmt.Errorf("mark file in conflict: %w", err)
	}
	if err := s.SyncName(to); err != nil {
		return "", errors.Join(err, s.fs.Rename(to, name))
	}
	return to, nil
}

// Salt returns a value that no other call returns, for FileName.
func (s *Store) Salt() string { return fmt.Sprintf("%s.%d", s.run, s.seq.Add(1)) }

// Temp is a file being written. One goroutine uses it at a time. End it with
// Publish or Discard.
type Temp struct {
	s     *Store
	f     File
	name  string
	max   int64
	head  *header
	off   int64 // of the data set; 0 until the header is complete
	size  int64
	crc   uint32
	check int64 // size at which free space is looked at again
	done  bool
}

// Create begins a file. What is written to it must be a DICOM Part-10 file;
// the spool's own header elements are spliced in.
func (s *Store) Create() (*Temp, error) {
	if err := s.space(0); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s/%s.%d.part", tmpDir, s.run, s.seq.Add(1))
	f, err := s.fs.Create(name)
	if err != nil {
		return nil, noSpace(fmt.Errorf("create spool file: %w", err))
	}
	return &Temp{s: s, f: f, name: name, max: s.limits.Load().MaxObject, head: new(header), check: spaceStep}, nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// Receive streams the data set in r into a new file behind a header made of m.
// The file is neither synced nor published yet. On error no file is left.
func (s *Store) Receive(ctx context.Context, m dcm.FileMeta, r io.Reader) (*Temp, error) {
	t, err := s.Create()
	if err != nil {
		return nil, err
	}
	if _, err := dcm.WriteFileMeta(t, m); err != nil {
		t.Discard()
		return nil, fmt.Errorf("write header: %w", err)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		if err := ctx.Err(); err != nil {
			t.Discard()
			return nil, fmt.Errorf("receive data set: %w", err)
		}
		n, rerr := fill(r, *buf)
		if n > 0 {
			if _, err := t.Write((*buf)[:n]); err != nil {
				t.Discard()
				return nil, err
			}
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			t.Discard()
			return nil, fmt.Errorf("receive data set: %w", rerr)
		}
	}
	if t.size == 0 {
		t.Discard()
		return nil, ErrEmpty
	}
	return t, nil
}

// fill reads until b is full or r ends. A reader that returns nothing and no
// error again and again is given up on.
func fill(r io.Reader, b []byte) (n int, err error) {
	for idle := 0; n < len(b); {
		k, err := r.Read(b[n:])
		n += k
		if err != nil {
			return n, err
		}
		if k > 0 {
			idle = 0
		} else if idle++; idle == 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// Write appends to the file: the header first, then the data set.
func (t *Temp) Write(p []byte) (int, error) {
	rest := p
	if t.head != nil {
		head, more, err := t.head.add(p)
		if err != nil {
			return 0, err
		}
		if head == nil {
			return len(p), nil
		}
		t.head, t.off, rest = nil, int64(len(head)), more
		if err := t.put(head); err != nil {
			return 0, err
		}
	}
	if len(rest) == 0 {
		return len(p), nil
	}
	if t.size+int64(len(rest)) > t.max {
		return 0, fmt.Errorf("more than %d bytes: %w", t.max, ErrTooLarge)
	}
	if t.size+int64(len(rest)) > t.check {
		if err := t.s.space(int64(len(rest))); err != nil {
			return 0, err
		}
		t.check = t.size + spaceStep
	}
	if err := t.put(rest); err != nil {
		return 0, err
	}
	t.size += int64(len(rest))
	t.crc = crc32.Update(t.crc, castagnoli, rest)
	return len(p), nil
}

func (t *Temp) put(b []byte) error {
	n, err := t.f.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return noSpace(fmt.Errorf("write spool file: %w", err))
	}
	return nil
}

// noSpace makes the disk's own "full" the same as the watermark's.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// Size is the length of the data set so far, in bytes.
func (t *Temp) Size() int64 { return t.size }

// CRC is the CRC-32C of the data set so far.
func (t *Temp) CRC() uint32 { return t.crc }

// Offset is where the data set starts in the file.
func (t *Temp) Offset() int64 { return t.off }

// ReadAt reads the file as written so far, header included.
func (t *Temp) ReadAt(p []byte, off int64) (int, error) { return t.f.ReadAt(p, off) }

// Sync writes rec, completed with size and CRC, and makes the content durable.
func (t *Temp) Sync(rec Record) error {
	if t.head != nil {
		return errNotPart10
	}
	rec.Size, rec.CRC = t.size, t.crc
	b, err := rec.encode()
	if err != nil {
		return err
	}
	n, err := t.f.WriteAt(b, t.off-recLen)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return noSpace(fmt.Errorf("write spool record: %w", err))
	}
	t.s.hook("file-sync")
	if err := t.f.Sync(); err != nil {
		return noSpace(fmt.Errorf("sync spool file: %w", err))
	}
	t.s.hook("file-synced")
	return nil
}

// Publish gives the synced file its final name. The name is durable only after
// SyncName. On error the temporary file is gone.
func (t *Temp) Publish(name string) error {
	t.s.hook("rename")
	if err := t.f.Close(); err != nil {
		t.Discard()
		return fmt.Errorf("close spool file: %w", err)
	}
	if err := t.s.fs.Rename(t.name, name); err != nil {
		t.Discard()
		return noSpace(fmt.Errorf("rename spool file: %w", err))
	}
	t.done = true
	t.s.hook("renamed")
	return nil
}

// Discard closes and removes the file. After Publish it does nothing.
func (t *Temp) Discard() {
	if t.done {
		return
	}
	t.done = true
	t.f.Close()
	// A file that cannot be removed now is removed at the next start.
	_ = t.s.fs.Remove(t.name)
}

// dirSync lets callers that wait for one folder share a sync: a sync that
// starts after a rename covers it.
type dirSync struct {
	mu      sync.Mutex
	running bool
	next    *dirRound
}

type dirRound struct {
	done chan struct{}
	err  error
}

// SyncName makes the name of a published file durable.
func (s *Store) SyncName(name string) error {
	dir := path.Dir(name)
	s.mu.Lock()
	d := s.dirs[dir]
	if d == nil {
		d = new(dirSync)
		s.dirs[dir] = d
	}
	s.mu.Unlock()

	s.hook("folder-sync")
	d.mu.Lock()
	if d.running { // join the next round; its leader is whoever finishes this one
		if d.next == nil {
			d.next = &dirRound{done: make(chan struct{})}
		}
		r := d.next
		d.mu.Unlock()
		<-r.done
		if r.err == nil {
			s.hook("folder-synced")
		}
		return r.err
	}
	d.running = true
	d.mu.Unlock()
	err := s.syncDir(dir)
	d.mu.Lock()
	if d.next == nil {
		d.running = false
	} else {
		// Those who came meanwhile must not wait for what this caller does next.
		go s.finishRounds(d, dir)
	}
	d.mu.Unlock()
	if err == nil {
		s.hook("folder-synced")
	}
	return err
}

// finishRounds serves the rounds that gathered while one ran, until none is left.
func (s *Store) finishRounds(d *dirSync, dir string) {
	for {
		d.mu.Lock()
		r := d.next
		d.next = nil
		if r == nil {
			d.running = false
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
		r.err = s.syncDir(dir)
		close(r.done)
	}
}

func (s *Store) syncDir(dir string) error {
	if err := s.fs.SyncDir(dir); err != nil {
		return fmt.Errorf("sync spool folder: %w", err)
	}
	return nil
}

// Open opens a published file.
func (s *Store) Open(name string) (File, error) {
	f, err := s.fs.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open spool file: %w", err)
	}
	return f, nil
}

// Remove deletes a published file. One that is gone already is no error.
func (s *Store) Remove(name string) error {
	if err := s.fs.Remove(name); err != nil && !missing(err) {
		return fmt.Errorf("remove spool file: %w", err)
	}
	return nil
}

// SetAside moves a file that recovery cannot use where a person can look at it.
func (s *Store) SetAside(name string) error {
	return s.fs.Rename(name, path.Join(damagedDir, path.Base(name)))
}

// Walk calls fn with the name of every published file of a kind.
func (s *Store) Walk(k Kind, fn func(name string) error) error {
	dirs, err := s.fs.List(string(k))
	if err != nil {
		return fmt.Errorf("list spool folder: %w", err)
	}
	for _, d := range dirs {
		dir := path.Join(string(k), d)
		names, err := s.fs.List(dir)
		if err != nil {
			return fmt.Errorf("list spool folder: %w", err)
		}
		for _, n := range names {
			if strings.HasSuffix(n, suffix) { // unknown files are not ours to judge
				if err := fn(path.Join(dir, n)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Same tells whether the data set of the published file equals t's, byte for byte.
func (s *Store) Same(t io.ReaderAt, tOff, size int64, name string, off int64) (bool, error) {
	f, err := s.fs.Open(name)
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open spool file: %w", err)
	}
	defer f.Close()
	if n, err := f.Size(); err != nil || n != off+size {
		return false, err
	}
	a := io.NewSectionReader(t, tOff, size)
	b := io.NewSectionReader(f, off, size)
	x, y := buffers.Get().(*[]byte), buffers.Get().(*[]byte)
	defer buffers.Put(x)
	defer buffers.Put(y)
	for {
		n, aerr := fill(a, *x)
		m, berr := fill(b, *y)
		if n != m || !bytes.Equal((*x)[:n], (*y)[:m]) {
			return false, nil
		}
		if aerr == io.EOF && berr == io.EOF {
			return true, nil
		}
		if err := errors.Join(notEOF(aerr), notEOF(berr)); err != nil {
			return false, fmt.Errorf("compare spool files: %w", err)
		}
	}
}

func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// Verify reads the data set of a file and compares length and CRC.
func Verify(name string, f File, off, size int64, crc uint32) error {
	n, err := f.Size()
	if err != nil {
		return fmt.Errorf("size of spool file: %w", err)
	}
	if n != off+size {
		return &CorruptError{File: name, Offset: min(n, off+size), Why: fmt.Sprintf("data set has %d bytes instead of %d", n-off, size)}
	}
	_, err = io.Copy(io.Discard, NewReader(name, f, off, size, crc))
	return err
}

// Reader gives out a data set but holds back the last part of it until the
// CRC over all of it has matched: a damaged data set can never be complete at
// the receiver. It then fails with an error that is ErrDamaged.
type Reader struct {
	name string
	src  *io.SectionReader
	want uint32
	crc  uint32
	cur  []byte // may be given out
	held []byte // waits for what follows
	a, b []byte
	end  bool
	err  error
}

// readPart is the piece held back, in bytes.
const readPart = 128 << 10

// NewReader returns a Reader of size bytes from off in f.
func NewReader(name string, f io.ReaderAt, off, size int64, crc uint32) *Reader {
	part := int(min(int64(readPart), max(size, 1)))
	return &Reader{name: name, src: io.NewSectionReader(f, off, size), want: crc, a: make([]byte, part), b: make([]byte, part)}
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	for len(r.cur) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.end {
			if r.crc != r.want || r.src.Size() == 0 {
				r.err = fmt.Errorf("spool file %s: %w", r.name, ErrDamaged)
				return 0, r.err
			}
			if len(r.held) == 0 {
				r.err = io.EOF
				return 0, io.EOF
			}
			r.cur, r.held = r.held, nil
			continue
		}
		n, err := io.ReadFull(r.src, r.a)
		r.crc = crc32.Update(r.crc, castagnoli, r.a[:n])
		switch {
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
			r.end = true
			if pos, _ := r.src.Seek(0, io.SeekCurrent); pos != r.src.Size() {
				r.err = fmt.Errorf("spool file %s ends early: %w", r.name, ErrDamaged)
				return 0, r.err
			}
		case err != nil:
			r.err = fmt.Errorf("read spool file %s: %w", r.name, err)
			return 0, r.err
		}
		if n == 0 {
			continue
		}
		// What was held may go out now unless this was the last piece.
		r.cur, r.held = r.held, r.a[:n]
		r.a, r.b = r.b, r.a
		if r.end { // both pieces wait for the verdict
			if r.crc != r.want {
				r.err = fmt.Errorf("spool file %s: %w", r.name, ErrDamaged)
				r.cur = nil
				return 0, r.err
			}
		}
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	return n, nil
}

// Probe writes, syncs, renames and removes a small file. What it leaves behind
// when it fails is removed at the next start.
func (s *Store) Probe() error {
	if err := s.space(0); err != nil {
		return err
	}
	name := fmt.Sprintf("%s/%s.%d.probe", tmpDir, s.run, s.seq.Add(1))
	f, err := s.fs.Create(name)
	if err != nil {
		return fmt.Errorf("write to spool: %w", err)
	}
	_, err = f.Write([]byte("ok"))
	err = errors.Join(err, f.Sync(), f.Close())
	named := name + ".named"
	if rerr := s.fs.Rename(name, named); rerr != nil {
		err = errors.Join(err, rerr, s.fs.Remove(name))
	} else {
		err = errors.Join(err, s.fs.SyncDir(tmpDir), s.fs.Remove(named))
	}
	if err != nil {
		return fmt.Errorf("write to spool: %w", err)
	}
	return nil
}
