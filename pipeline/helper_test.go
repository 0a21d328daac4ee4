package pipeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
)

const (
	classMR = "1.2.840.10008.5.1.4.1.1.4"
	classCR = "1.2.840.10008.5.1.4.1.1.1"
)

// image describes a small MR object for tests.
type image struct {
	series, sop string
	number      int
	size        int // pixels per side; 0 = 16
	seed        uint64
	expected    int
	protocol    string
	imageType   string
	class       string // empty = classMR
	extra       []dcm.Node
}

// dataSet encodes im in explicit VR little endian.
func (im image) dataSet() []byte {
	if im.size == 0 {
		im.size = 16
	}
	if im.imageType == "" {
		im.imageType = `ORIGINAL\PRIMARY\M\ND`
	}
	if im.class == "" {
		im.class = classMR
	}
	modality := "MR"
	if im.class == classCR {
		modality = "CR"
	}
	us := func(t dcm.Tag, v int) dcm.Node {
		return dcm.Node{Tag: t, VR: dcm.US, Value: binary.LittleEndian.AppendUint16(nil, uint16(v))}
	}
	r := rand.New(rand.NewPCG(im.seed, uint64(im.number)))
	px := make([]byte, 2*im.size*im.size)
	for i := range im.size * im.size {
		binary.LittleEndian.PutUint16(px[2*i:], uint16(200+r.IntN(1000)))
	}
	nodes := []dcm.Node{
		dcm.Text(dcm.ImageType, dcm.CS, im.imageType),
		dcm.Text(dcm.SOPClassUID, dcm.UI, im.class),
		dcm.Text(dcm.SOPInstanceUID, dcm.UI, im.sop),
		dcm.Text(dcm.Modality, dcm.CS, modality),
		dcm.Text(dcm.Manufacturer, dcm.LO, "Phantom"),
		dcm.Text(dcm.PatientName, dcm.PN, "Secret^Name"),
		dcm.Text(dcm.PatientID, dcm.LO, "SECRET-ID"),
		dcm.Text(dcm.ProtocolName, dcm.LO, im.protocol),
		dcm.Text(dcm.StudyInstanceUID, dcm.UI, "1.2.3"),
		dcm.Text(dcm.SeriesInstanceUID, dcm.UI, im.series),
		dcm.Text(dcm.SeriesNumber, dcm.IS, "4"),
		dcm.Text(dcm.InstanceNumber, dcm.IS, strconv.Itoa(im.number)),
		dcm.Text(dcm.FrameOfReferenceUID, dcm.UI, "1.2.3.9"),
	}
	if im.expected > 0 {
		nodes = append(nodes, dcm.Text(dcm.ImagesInAcquisition, dcm.IS, strconv.Itoa(im.expected)))
	}
	nodes = append(nodes,
		us(dcm.SamplesPerPixel, 1),
		dcm.Text(dcm.PhotometricInterpretation, dcm.CS, "MONOCHROME2"),
		us(dcm.Rows, im.size), us(dcm.Columns, im.size),
		us(dcm.BitsAllocated, 16), us(dcm.BitsStored, 12), us(dcm.HighBit, 11), us(dcm.PixelRepresentation, 0),
		dcm.Node{Tag: dcm.PixelData, VR: dcm.OW, Value: px},
	)
	nodes = append(nodes, im.extra...)
	slices.SortStableFunc(nodes, func(a, b dcm.Node) int { return int(int64(a.Tag) - int64(b.Tag)) })
	return dcm.Encoding{}.Append(nil, nodes...)
}

const classEnhanced = "1.2.840.10008.5.1.4.1.1.4.1"

// frames makes im an Enhanced MR object of n frames with the same pixels.
func (im image) frames(n int) (image, []byte) {
	const side = 16
	im.class, im.size = classEnhanced, side
	im.extra = []dcm.Node{dcm.Text(dcm.NumberOfFrames, dcm.IS, strconv.Itoa(n)),
		dcm.Sequence(dcm.SharedFunctionalGroupsSequence, []dcm.Node{}), dcm.Sequence(dcm.PerFrameFunctionalGroupsSequence, slices.Repeat([][]dcm.Node{{}}, n)...)}
	one := im.dataSet()
	px := one[len(one)-2*side*side:]
	d := bytes.Clone(one[:len(one)-len(px)])
	binary.LittleEndian.PutUint32(d[len(d)-4:], uint32(n*len(px)))
	return im, append(d, bytes.Repeat(px, n)...)
}

func (im image) incoming() Incoming {
	if im.class == "" {
		im.class = classMR
	}
	return Incoming{SOPClassUID: im.class, SOPInstanceUID: im.sop, TransferSyntaxUID: dcm.ExplicitVRLittleEndian,
		CallingAETitle: "MR1", CalledAETitle: "DENOISE", RemoteHost: "10.0.0.1", AssociationID: 1}
}

func slice(series, n int) image {
	return image{series: fmt.Sprintf("1.2.3.%d", series), sop: fmt.Sprintf("1.2.3.%d.%d", series, n), number: n, seed: uint64(series)}
}

// halver is a Denoiser whose result is easy to predict.
type halver struct {
	mu    sync.Mutex
	calls int
	do    func(call int, f *derive.Frame) (*Denoised, error) // nil: smooth
}

func (h *halver) Model() derive.ModelInfo {
	return derive.ModelInfo{Name: "test", Version: "1", Hash: "00ff"}
}

func (h *halver) Measure(context.Context, *derive.Frame) (evidence.Sums, error) {
	return evidence.Sums{1}, nil
}

func (h *halver) Denoise(_ context.Context, f *derive.Frame, _ evidence.Sums, _ float64) (*Denoised, error) {
	h.mu.Lock()
	h.calls++
	n := h.calls
	h.mu.Unlock()
	if h.do != nil {
		return h.do(n, f)
	}
	return smooth(f), nil
}

// count is how often it was called.
func (h *halver) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls
}

func smooth(f *derive.Frame) *Denoised {
	out := make([]float32, len(f.Pixels))
	for i, v := range f.Pixels {
		out[i] = (v + 700) / 2
	}
	return &Denoised{Pixels: out, Sigma: 12, Told: evidence.Sums{1}}
}

// archive is the far end: a PACS keyed by SOP instance UID that remembers
// everything it was sent and can be told to misbehave.
type archive struct {
	mu     sync.Mutex
	got    map[string]map[string][][32]byte // destination, UID -> digest of each copy
	order  []string
	opens  int
	stores int
	syntax map[Context]bool // accepted; nil = all
	open   func(n int, d Destination) error
	store  func(n int, d Destination, o Outgoing, data []byte) (status uint16, err error, keep bool)
	change chan struct{}
}

func newArchive() *archive {
	return &archive{got: map[string]map[string][][32]byte{}, change: make(chan struct{}, 1)}
}

type archiveLink struct {
	a *archive
	d Destination
	p map[Context]bool
}

func (a *archive) Open(_ context.Context, d Destination, want []Context) (Link, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.opens++
	if len(want) == 0 || len(want) > 128 {
		return nil, fmt.Errorf("%d contexts", len(want))
	}
	if a.open != nil {
		if err := a.open(a.opens, d); err != nil {
			return nil, err
		}
	}
	l := &archiveLink{a: a, d: d, p: map[Context]bool{}}
	for _, c := range want {
		l.p[c] = a.syntax == nil || a.syntax[c]
	}
	return l, nil
}

func (l *archiveLink) Accepts(c Context) bool { return l.p[c] }

func (l *archiveLink) Store(_ context.Context, o Outgoing, r io.Reader) (uint16, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return 0, err
	}
	if o.Size != 0 && int64(len(data)) != o.Size {
		return 0, errors.New("size differs")
	}
	a := l.a
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stores++
	status, keep := uint16(0), true
	if a.store != nil {
		status, err, keep = a.store(a.stores, l.d, o, data)
	}
	if keep {
		m := a.got[l.d.Name]
		if m == nil {
			m = map[string][][32]byte{}
			a.got[l.d.Name] = m
		}
		m[o.SOPInstanceUID] = append(m[o.SOPInstanceUID], sha256.Sum256(data))
		a.order = append(a.order, o.SOPInstanceUID)
	}
	select {
	case a.change <- struct{}{}:
	default:
	}
	return status, err
}

func (l *archiveLink) Close(context.Context) error { return nil }

func (a *archive) copies(dest, uid string) [][32]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.got[dest][uid])
}

// sent lists the UIDs of all copies in order of arrival.
func (a *archive) sent() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.order)
}

// links counts the associations so far.
func (a *archive) links() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.opens
}

func (a *archive) count(dest string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.got[dest])
}

// eventually polls cond until it holds or a minute has passed.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond) // between polls of a condition with a deadline
	}
}

var pacs = Destination{Name: "pacs", AETitle: "PACS", Address: "127.0.0.1:104"}

func options(t testing.TB, a *archive) Options {
	o := Options{StateDir: t.TempDir(), AETitles: map[string]Quality{"DENOISE": Fast, "DENOISE_HQ": High, "STORE": Off},
		Destinations: []Destination{pacs}, Workers: 2, Denoiser: &halver{}, Version: "test", DiskWarn: 0.97, DiskRefuse: 0.99,
		pause: func(int64) time.Duration { return time.Millisecond }}
	if a != nil {
		o.Sender = a
	} else {
		o.Destinations = nil
	}
	if _, ok := t.(*testing.B); !ok {
		o.Logger = zaptest.NewLogger(t)
	}
	return o
}

// start opens a pipeline and runs it until the test ends.
func start(t testing.TB, o Options) *Pipeline {
	t.Helper()
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stop := run(p)
	t.Cleanup(func() {
		stop()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// run runs p; the returned function stops and waits.
func run(p *Pipeline) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Run(ctx); err != nil {
			panic(err)
		}
	}()
	return func() { cancel(); <-done }
}

func receive(t testing.TB, p *Pipeline, im image) {
	t.Helper()
	if err := p.Receive(context.Background(), im.incoming(), bytes.NewReader(im.dataSet())); err != nil {
		t.Fatal(err)
	}
}

func status(t testing.TB, p *Pipeline, uid string) *SeriesStatus {
	t.Helper()
	s, err := p.SeriesByUID(context.Background(), uid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMain(m *testing.M) {
	if childMain() {
		return
	}
	goleak.VerifyTestMain(m)
}

// blocked is a Denoiser that waits.
type blocked struct{ hold chan struct{} }

func (b *blocked) Model() derive.ModelInfo { return derive.ModelInfo{Name: "test", Hash: "00"} }

func (b *blocked) Measure(context.Context, *derive.Frame) (evidence.Sums, error) { return nil, nil }

func (b *blocked) Denoise(ctx context.Context, f *derive.Frame, _ evidence.Sums, _ float64) (*Denoised, error) {
	select {
	case <-b.hold:
	case <-ctx.Done():
	}
	return smooth(f), nil
}
