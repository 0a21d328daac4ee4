package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/diffdenoise/denoised/daemon"
	"github.com/diffdenoise/denoised/dicomnet"
	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/internal/phantom"
	"github.com/diffdenoise/denoised/internal/score"
)

// Names of the parties of the demo.
const (
	demoScanner = "SCANNER"
	demoCalled  = "DENOISE"
	demoArchive = "ARCHIVE"
)

// demoWhite is the stored value of signal 1, as phantom.WriteDICOM says.
const demoWhite = 3000

// demoLimit bounds the wait for the archive after the last slice was sent, on
// top of what each slice may take on a slow machine.
const (
	demoLimit    = 60 * time.Second
	demoPerSlice = 3 * time.Second
)

// demo is one run of the demo.
type demo struct {
	out, errOut   io.Writer
	once          bool
	size, slices  int
	rate, sigma   float64
	dir, httpAddr string
	seed          uint64
}

func newDemoCmd() *cobra.Command {
	var o demo
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See the main job: a made-up scanner, the daemon and an archive in one process",
		Long: `See the main job in one process on loopback: a phantom scanner pushes a noisy
series to the daemon by C-STORE, the daemon denoises it slice by slice and sends
original and derived series to a small archive. The phantom's truth is known, so
it ends with a table of how far both are from it. The status page stays up until
Ctrl-C, or with --once the demo ends there, with exit code 1 if anything was
lost, changed or not improved.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.size < 32 || o.size > 2048:
				return usagef("--size %d is not from 32 to 2048", o.size)
			case o.slices < 1 || o.slices > 512:
				return usagef("--slices %d is not from 1 to 512", o.slices)
			case !(o.rate > 0):
				return usagef("--rate %g is not above 0", o.rate)
			case !(o.sigma > 0 && o.sigma <= 0.5):
				return usagef("--sigma %g is not above 0 and at most 0.5", o.sigma)
			}
			o.out, o.errOut = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return o.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.once, "once", false, "end after the table")
	f.IntVar(&o.size, "size", 256, "pixels along each side")
	f.IntVar(&o.slices, "slices", 24, "slices of the series")
	f.Float64Var(&o.rate, "rate", 8, "slices the scanner sends in a second")
	f.Float64Var(&o.sigma, "sigma", 0.06, "noise, as a part of white")
	f.Uint64Var(&o.seed, "seed", 1, "of the phantom and its noise")
	f.StringVar(&o.dir, "out", "", "folder for the archive's files (default a new one among the temporary files)")
	f.StringVar(&o.httpAddr, "http", "127.0.0.1:0", "address of the status page; port 0 is any free one")
	return cmd
}

func (o *demo) run(ctx context.Context) (err error) {
	state, err := os.MkdirTemp("", "denoised-demo-state-")
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	if o.dir == "" {
		o.dir, err = os.MkdirTemp("", "denoised-demo-archive-")
	} else {
		err = os.MkdirAll(o.dir, 0o755)
	}
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return fmt.Errorf("demo: %w", err)
	}

	arch, err := startArchive(o.dir)
	if err != nil {
		return fmt.Errorf("demo: start the archive: %w", err)
	}
	defer func() { err = errors.Join(err, arch.stop()) }()
	d, stop, err := o.startDaemon(ctx, state, arch.addr)
	if err != nil {
		return fmt.Errorf("demo: start the daemon: %w", err)
	}
	defer func() { err = errors.Join(err, stop()) }()
	page := "http://" + d.HTTPAddr().String() + "/"
	fmt.Fprintf(o.out, "archive      %s at %s, files in %s\n", demoArchive, arch.addr, o.dir)
	fmt.Fprintf(o.out, "daemon       %s at %s, status page %s\n", demoCalled, d.DICOMAddr(), page)
	fmt.Fprintf(o.out, "scanner      phantom, %d slices of %d×%d, noise %.3g of white, %g slices/s\n\n", o.slices, o.size, o.size, o.sigma, o.rate)

	vol := phantom.New(phantom.Spec{Seed: o.seed, Width: o.size, Height: o.size, Slices: o.slices, Sigma: o.sigma, Shading: true})
	sent, err := o.scan(ctx, vol, d.DICOMAddr().String(), arch)
	if err != nil {
		return fmt.Errorf("demo: scanner: %w", err)
	}
	last := time.Now()
	waitCtx, cancel := context.WithTimeout(ctx, demoLimit+time.Duration(o.slices)*demoPerSlice)
	err = arch.wait(waitCtx, 2*o.slices)
	cancel()
	if ctx.Err() != nil {
		return fmt.Errorf("demo: %w", context.Cause(ctx))
	}
	if err == nil {
		fmt.Fprintf(o.out, "\nthe last derived slice was in the archive %v after the last slice was sent\n", arch.latest().Sub(last).Round(time.Millisecond))
	}
	failure := o.report(vol, sent, arch)
	fmt.Fprintf(o.out, "\nfiles        %s\n", o.dir)
	if o.once {
		return failure
	}
	if failure != nil {
		fmt.Fprintf(o.errOut, "denoised: %v\n", failure)
	}
	fmt.Fprintf(o.out, "status page  %s\n", page)
	fmt.Fprintf(o.out, "\nStill serving; Ctrl-C ends it. Send files of your own from another terminal:\n  denoised send %s --aet %s FILES\n", d.DICOMAddr(), demoScanner)
	<-ctx.Done()
	return failure
}

// startDaemon runs the real daemon between the two.
func (o *demo) startDaemon(ctx context.Context, state string, archive net.Addr) (d *daemon.Daemon, stop func() error, err error) {
	cfg := daemon.DefaultConfig()
	cfg.StateDir = state
	cfg.DICOM.Listen, cfg.HTTP.Listen = "127.0.0.1:0", o.httpAddr
	cfg.DICOM.Peers = []daemon.Peer{{AETitle: demoScanner, Hosts: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}}
	cfg.Series = daemon.SeriesConfig{Quiet: 2 * time.Second, QuietOpen: 5 * time.Second, Max: time.Minute}
	cfg.Destinations = []daemon.Destination{{Name: "archive", AETitle: demoArchive, Address: archive.String(), Send: []string{"original", "derived"}}}
	cfg.Retention.DiskWarn, cfg.Retention.DiskRefuse = 0.98, 0.99 // little is written
	cfg.Log.Level = "warn"
	log, level, err := daemon.NewLogger(o.errOut, daemon.LogText, cfg.Log.Level)
	if err != nil {
		return nil, nil, err
	}
	if d, err = daemon.New(cfg, daemon.WithLogger(log, level), daemon.WithVersion(thisBuild().Version)); err != nil {
		return nil, nil, err
	}
	// It outlives ctx: what is in hand at Ctrl-C is finished first.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- d.Run(running) }()
	select {
	case <-d.Ready():
	case err := <-ended:
		cancel()
		return nil, nil, err
	}
	return d, func() error {
		cancel()
		return <-ended
	}, nil
}

// demoSlice is a slice as the scanner sent it.
type demoSlice struct {
	uid      string
	data     []byte // the bare data set
	answered bool   // with success
}

// scan pushes the phantom at the stated pace.
func (o *demo) scan(ctx context.Context, vol *phantom.Volume, address string, arch *archive) ([]*demoSlice, error) {
	ids := phantom.NewIDs(fmt.Sprintf("demo %d %d", time.Now().UnixNano(), os.Getpid()))
	ids.Time = time.Now()
	var slices []*demoSlice
	var objects []*scuObject
	for i := range o.slices {
		var file bytes.Buffer
		if err := vol.WriteDICOM(&file, i, ids); err != nil {
			return nil, err
		}
		obj, err := dcm.Scan(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			return nil, err
		}
		s := &demoSlice{uid: obj.String(dcm.SOPInstanceUID), data: file.Bytes()[obj.DataSetOffset():]}
		slices = append(slices, s)
		objects = append(objects, &scuObject{name: fmt.Sprintf("slice %d", i+1), class: obj.String(dcm.SOPClassUID), uid: s.uid, syntax: obj.TransferSyntaxUID(),
			open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(s.data)), nil }})
	}
	pace := time.NewTicker(time.Duration(float64(time.Second) / o.rate))
	defer pace.Stop()
	var began time.Time
	n := 0
	every := (o.slices + 39) / 40 // lines are for people
	err := push(ctx, &dicomnet.Dialer{CallingAETitle: demoScanner, CalledAETitle: demoCalled}, address, objects,
		func(i int) error {
			if i > 0 {
				select {
				case <-pace.C:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			began = time.Now()
			return nil
		},
		func(so *scuObject, status dicomnet.Status, err error) {
			s := slices[n]
			n++
			s.answered = err == nil && status.IsSuccess()
			switch {
			case err != nil:
				fmt.Fprintf(o.out, "%s not sent: %v\n", so.name, err)
			case !s.answered:
				fmt.Fprintf(o.out, "%s refused: %v\n", so.name, status)
			case n%every == 0 || n == o.slices:
				originals, derived := arch.counts(slices)
				fmt.Fprintf(o.out, "slice %3d of %d acknowledged in %v; archive: %d original, %d derived\n", n, o.slices, time.Since(began).Round(100*time.Microsecond), originals, derived)
			}
		})
	return slices, err
}

// report prints counts and scores. The error says what went wrong.
func (o *demo) report(vol *phantom.Volume, sent []*demoSlice, arch *archive) error {
	acknowledged, originals, identical, derived := 0, 0, 0, 0
	var sum [2]struct{ psnr, tissue, ssim float64 }
	var problems []error
	for i, s := range sent {
		if s.answered {
			acknowledged++
		}
		orig, der, err := arch.find(s.uid)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if orig != nil {
			originals++
			if bytes.Equal(orig, s.data) {
				identical++
			}
		}
		if der != nil {
			derived++
		}
		if orig == nil || der == nil {
			continue
		}
		for k, data := range [][]byte{orig, der} {
			img, err := trueUnits(data, o.size*o.size)
			if err != nil {
				problems = append(problems, fmt.Errorf("slice %d: %w", i+1, err))
				continue
			}
			sum[k].psnr += score.PSNR(img, vol.Truth[i], 1)
			sum[k].tissue += score.PSNR(where(img, vol.Truth[i]), where(vol.Truth[i], vol.Truth[i]), 1)
			sum[k].ssim += score.SSIM(img, vol.Truth[i], o.size, o.size, 1)
		}
	}
	fmt.Fprintf(o.out, "\nsent %d, acknowledged %d, originals archived %d (byte-identical %d), derived archived %d, stored by the archive %d\n\n",
		len(sent), acknowledged, originals, identical, derived, arch.total())
	n := float64(len(sent))
	if acknowledged != len(sent) || identical != len(sent) || derived != len(sent) || arch.total() != 2*len(sent) {
		problems = append(problems, errors.New("images were lost, changed or doubled"))
	} else {
		t := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "against the truth\tPSNR dB\tin tissue\tSSIM\t")
		fmt.Fprintf(t, "original\t%.2f\t%.2f\t%.4f\t\n", sum[0].psnr/n, sum[0].tissue/n, sum[0].ssim/n)
		fmt.Fprintf(t, "derived\t%.2f\t%.2f\t%.4f\t\n", sum[1].psnr/n, sum[1].tissue/n, sum[1].ssim/n)
		fmt.Fprintf(t, "gain\t%+.2f\t%+.2f\t%+.4f\t\n", (sum[1].psnr-sum[0].psnr)/n, (sum[1].tissue-sum[0].tissue)/n, (sum[1].ssim-sum[0].ssim)/n)
		if err := t.Flush(); err != nil {
			return err
		}
		if !(sum[1].psnr > sum[0].psnr) {
			problems = append(problems, errors.New("the derived series is not nearer to the truth than the original"))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// where returns the pixels of img in tissue: not air, whose noise never has the
// mean of the truth and would hide what happens to the anatomy.
func where(img, truth []float32) []float32 {
	var in []float32
	for i, v := range truth {
		if v >= 0.1 {
			in = append(in, img[i])
		}
	}
	return in
}

// trueUnits reads the pixels of a phantom's object in the unit of its truth: the
// stored values by way of rescale slope and intercept (PS3.3 C.11.1.1.2).
func trueUnits(data []byte, pixels int) ([]float32, error) {
	var file bytes.Buffer
	if _, err := dcm.WriteFileMeta(&file, dcm.FileMeta{SOPClassUID: "1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID: "1.2", TransferSyntaxUID: dicomnet.ExplicitVRLittleEndian}); err != nil {
		return nil, err
	}
	file.Write(data)
	o, err := dcm.Scan(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		return nil, err
	}
	raw, err := o.Bytes(dcm.PixelData, 2*pixels)
	if err != nil {
		return nil, err
	}
	if len(raw) != 2*pixels {
		return nil, fmt.Errorf("%d bytes of pixels, expected %d", len(raw), 2*pixels)
	}
	slope, intercept := 1.0, 0.0
	if v, ok := o.Float(dcm.RescaleSlope); ok {
		slope = v
	}
	if v, ok := o.Float(dcm.RescaleIntercept); ok {
		intercept = v
	}
	img := make([]float32, pixels)
	for i := range img {
		img[i] = float32((float64(binary.LittleEndian.Uint16(raw[2*i:]))*slope + intercept) / demoWhite)
		if math.IsNaN(float64(img[i])) {
			return nil, errors.New("the rescale slope is not a number")
		}
	}
	return img, nil
}

// archive is a storage SCP that keeps what it gets in files.
type archive struct {
	dir    string
	addr   net.Addr
	server *dicomnet.Server
	ended  chan error

	mu      sync.Mutex
	files   map[string]string // SOP instance UID -> path
	derived map[string]string // UID of the source -> path
	stored  int               // C-STOREs answered with success
	at      time.Time         // of the last one
	changed chan struct{}     // closed and replaced at each
}

func startArchive(dir string) (*archive, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a := &archive{dir: dir, addr: l.Addr(), ended: make(chan error, 1), files: map[string]string{}, derived: map[string]string{}, changed: make(chan struct{})}
	a.server = &dicomnet.Server{Handler: dicomnet.HandlerFunc(func(_ context.Context, req *dicomnet.AssociateRequest) (dicomnet.Session, error) {
		if req.CalledAETitle != demoArchive {
			return nil, dicomnet.RejectCalledAETitle
		}
		return archiveSession{a}, nil
	})}
	go func() { a.ended <- a.server.Serve(l) }()
	return a, nil
}

func (a *archive) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := a.server.Shutdown(ctx)
	if e := <-a.ended; !errors.Is(e, dicomnet.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

type archiveSession struct{ a *archive }

// Close implements dicomnet.Session.
func (archiveSession) Close(error) {}

// Store implements dicomnet.Session: a Part-10 file, complete or not there.
func (s archiveSession) Store(_ context.Context, req *dicomnet.StoreRequest, r io.Reader) dicomnet.Status {
	path := filepath.Join(s.a.dir, req.SOPInstanceUID+".dcm") // checked to be digits and dots
	source, err := keep(path, dcm.FileMeta{SOPClassUID: req.SOPClassUID, SOPInstanceUID: req.SOPInstanceUID, TransferSyntaxUID: req.TransferSyntaxUID}, r)
	if err != nil {
		_, _ = io.Copy(io.Discard, r) // the rest must be read
		return dicomnet.StatusProcessingFailure
	}
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	s.a.files[req.SOPInstanceUID] = path
	if source != "" {
		s.a.derived[source] = path
	}
	s.a.stored++
	s.a.at = time.Now()
	close(s.a.changed)
	s.a.changed = make(chan struct{})
	return dicomnet.StatusSuccess
}

// keep writes a file and returns the UID of the image it is derived from, if any.
func keep(path string, meta dcm.FileMeta, r io.Reader) (source string, err error) {
	f, err := os.Create(path + ".part")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := dcm.WriteFileMeta(f, meta); err != nil {
		return "", err
	}
	if _, err := io.Copy(f, r); err != nil {
		return "", err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", err
	}
	if o, err := dcm.Scan(f, size); err == nil {
		source = sourceUID(o)
	}
	if err := f.Close(); err != nil {
		return "", err
	}
	return source, os.Rename(path+".part", path)
}

// sourceUID returns the first image that an object names as its source.
func sourceUID(o *dcm.Object) string {
	seq := o.Find(dcm.SourceImageSequence)
	if !seq.OK() {
		return ""
	}
	for item := range seq.Children() {
		if e := item.Child(dcm.ReferencedSOPInstanceUID); e.OK() {
			uid, err := e.Bytes(64)
			if err != nil {
				return ""
			}
			return strings.TrimRight(string(uid), "\x00 ")
		}
	}
	return ""
}

// counts tells how many of the slices the archive has.
func (a *archive) counts(list []*demoSlice) (originals, derived int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range list {
		if a.files[s.uid] != "" {
			originals++
		}
		if a.derived[s.uid] != "" {
			derived++
		}
	}
	return originals, derived
}

func (a *archive) total() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stored
}

func (a *archive) latest() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at
}

// wait waits until n objects have been stored.
func (a *archive) wait(ctx context.Context, n int) error {
	for {
		a.mu.Lock()
		stored, changed := a.stored, a.changed
		a.mu.Unlock()
		if stored >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// find returns the data sets of an original and of what is derived from it; nil
// is one that is not there.
func (a *archive) find(uid string) (original, derived []byte, err error) {
	a.mu.Lock()
	paths := []string{a.files[uid], a.derived[uid]}
	a.mu.Unlock()
	var found [2][]byte
	for i, path := range paths {
		if path == "" {
			continue
		}
		file, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		o, err := dcm.Scan(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		found[i] = file[o.DataSetOffset():]
	}
	return found[0], found[1], nil
}
