package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/evidence"
	"github.com/diffdenoise/denoised/pipeline/spool"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// Quality is how well an image is to be denoised.
type Quality = state.Quality

// Qualities.
const (
	Off  = state.Off
	Fast = state.Fast
	High = state.High
)

// Denoiser makes one frame cleaner. It is safe for concurrent use. It may
// change neither the frame nor keep it.
//
// What frames tell of their series helps the others. known is what those of the
// series told that were denoised before, or all of them; nil for the first, which waits
// for nobody. Results depend on nothing but the arguments.
type Denoiser interface {
	Model() derive.ModelInfo
	Denoise(ctx context.Context, f *derive.Frame, known evidence.Sums, strength float64) (*Denoised, error)
	// Measure is what Denoise would give as Told.
	Measure(ctx context.Context, f *derive.Frame) (evidence.Sums, error)
}

// Chooser is a Denoiser that leaves images of some modalities to others.
type Chooser interface {
	Denoiser
	// For returns the Denoiser of images of a modality (0008,0060): always the same, never nil and
	// no Chooser.
	For(modality string) Denoiser
}

// HighDenoiser is a Denoiser that may know the full method too.
type HighDenoiser interface {
	Denoiser
	// HasHigh tells whether the model has the networks for it; that of a Chooser, whether one of
	// its models has. It never changes.
	HasHigh() bool
	// DenoiseHigh is like Denoise, by the full method, which may take minutes. It
	// calls progress from its own goroutine after each of its steps, 1 <= done <=
	// total; progress may block, for as long as images of the fast lane need the
	// processor. It must return soon after ctx has ended.
	DenoiseHigh(ctx context.Context, f *derive.Frame, known evidence.Sums, strength float64, progress func(done,
		total int)) (*Denoised, error)
}

// Denoised is a result in stored units, row by row like the frame.
type Denoised struct {
	Pixels []float32
	Sigma  float64 // median noise of the frame, stored units; 0 = not known
	// Gate says why the model's own check did not let all of its result through;
	// empty if it did. Share is the part of the change that it let through then: 0,
	// and Pixels are the frame itself, to below 1, and Pixels lie between the two.
	Gate  string
	Share float64
	// Told is what the frame by itself tells of its series, whatever is known. Unused
	// where DenoiseHigh gives it.
	Told evidence.Sums
}

// Sender opens links to destinations. It is safe for concurrent use.
type Sender interface {
	// Open associates with d, proposing want (1 to 128 contexts). Any error is
	// taken as passing: the destination is tried again later.
	Open(ctx context.Context, d Destination, want []Context) (Link, error)
}

// Link is one open association. One goroutine uses it at a time.
type Link interface {
	// Accepts tells whether the peer took the context.
	Accepts(Context) bool
	// Store sends one data set. status is the peer's DICOM status; err means
	// that the link is broken and that the outcome is not known. An error of r
	// must end the association without completing the object.
	Store(ctx context.Context, o Outgoing, r io.Reader) (status uint16, err error)
	Close(ctx context.Context) error
}

// Context is a pair that is negotiated for an association (PS3.8 7.1.1.13).
type Context struct{ SOPClassUID, TransferSyntaxUID string }

// Outgoing describes a data set to be sent.
type Outgoing struct {
	SOPClassUID, SOPInstanceUID, TransferSyntaxUID string
	Size                                           int64 // bytes; 0: not known, for it is converted on the way
}

// Destination is where images go.
type Destination struct {
	Name    string   // unique; names the queue in the journal
	AETitle string   // called AE title
	Address string   // host:port
	Send    []string // "original", "derived"; empty = both
	TLS     bool
}

func (d Destination) wants(kind spool.Kind) bool {
	return len(d.Send) == 0 || slices.Contains(d.Send, string(kind))
}

// Rule gives the images that match When a quality. The first match wins.
type Rule struct {
	Name    string
	When    string // expr-lang expression over DICOM keywords; see CheckRules
	Quality Quality
}

// Options says what a Pipeline does. The zero value of a field is its default.
type Options struct {
	StateDir     string             // folder of spool and journal; required
	AETitles     map[string]Quality // called AE title -> quality; one that is not here gets Fast
	Rules        []Rule
	Admit        []string // words of image types that count as magnitudes, see derive.CheckAdmit
	Destinations []Destination

	Quiet     time.Duration // a series is complete this long after its last image, association closed; default 20s
	QuietOpen time.Duration // the same while its sender has an association open; default 60s
	MaxSeries time.Duration // a series is closed after this whatever happens; default 30m

	AfterForward time.Duration // files are kept this long after the last delivery; default 72h
	DiskWarn     float64       // fraction in use above which delivered files are removed early; default 0.80
	DiskRefuse   float64       // fraction in use above which nothing is received; default 0.90
	MaxObject    int64         // bytes of one object; default 4 GiB

	Workers      int           // slices denoised at once; default one per core
	Strength     float64       // 0..1, blend with the original; default 1 (use quality off for none)
	SliceTimeout time.Duration // for one frame; default 60s
	StepTimeout  time.Duration // for one step of the full method; default 10m
	Attempts     int           // tries per slice before it is given up; default 3

	Version    string
	Denoiser   Denoiser // nil: nothing is denoised, originals are forwarded; a HighDenoiser for quality high
	Sender     Sender   // required when there are destinations
	Logger     *zap.Logger
	Registerer prometheus.Registerer

	clock clock                       // tests only
	fs    spool.FS                    // tests only
	hook  func(step string)           // tests only: called before and after every durable step
	pause func(n int64) time.Duration // tests only: back-off after n failures
}

// withDefaults fills and checks everything but the rules.
func (o Options) withDefaults() (Options, error) {
	if o.StateDir == "" {
		return o, errors.New("pipeline options: no state folder")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Quiet, 20*time.Second)
	def(&o.QuietOpen, 60*time.Second)
	def(&o.MaxSeries, 30*time.Minute)
	def(&o.AfterForward, 72*time.Hour)
	def(&o.SliceTimeout, time.Minute)
	def(&o.StepTimeout, 10*time.Minute)
	if o.DiskWarn == 0 {
		o.DiskWarn = 0.80
	}
	if o.DiskRefuse == 0 {
		o.DiskRefuse = 0.90
	}
	if o.DiskWarn < 0 || o.DiskRefuse > 1 || o.DiskWarn > o.DiskRefuse {
		return o, fmt.Errorf("pipeline options: disk watermarks warn %g and refuse %g must be in order between 0 and 1", o.DiskWarn, o.DiskRefuse)
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Attempts <= 0 {
		o.Attempts = 3
	}
	if o.Strength == 0 {
		o.Strength = 1
	}
	if !(o.Strength > 0 && o.Strength <= 1) {
		return o, fmt.Errorf("pipeline options: strength %g is not in (0, 1]", o.Strength)
	}
	for ae, q := range o.AETitles {
		if !q.Valid() {
			return o, fmt.Errorf("pipeline options: AE title %q has quality %q, need off, fast or high", ae, q)
		}
	}
	for _, word := range o.Admit {
		if err := derive.CheckAdmit(word); err != nil {
			return o, fmt.Errorf("pipeline options: admit: %w", err)
		}
	}
	seen := map[string]bool{}
	for _, d := range o.Destinations {
		switch {
		case d.Name == "":
			return o, errors.New("pipeline options: a destination has no name")
		case seen[d.Name]:
			return o, fmt.Errorf("pipeline options: two destinations are named %q", d.Name)
		case o.Sender == nil:
			return o, errors.New("pipeline options: destinations but no sender")
		}
		seen[d.Name] = true
		for _, s := range d.Send {
			if s != string(spool.Original) && s != string(spool.Derived) {
				return o, fmt.Errorf("pipeline options: destination %q sends %q, need original or derived", d.Name, s)
			}
		}
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.clock == nil {
		o.clock = systemClock{}
	}
	if o.hook == nil {
		o.hook = func(string) {}
	}
	if o.pause == nil {
		o.pause = backOff
	}
	return o, nil
}

func (o *Options) limits() spool.Limits {
	return spool.Limits{MaxObject: o.MaxObject, Refuse: o.DiskRefuse}
}

// dests names the destinations that get images of a kind.
func (o *Options) dests(kind spool.Kind) []string {
	var names []string
	for _, d := range o.Destinations {
		if d.wants(kind) {
			names = append(names, d.Name)
		}
	}
	return names
}
