// Package state has the words that files, journal, status and metrics use for what an image, a series
// or a delivery is in, and why. They are written to disk and shown to people, so a word that has been
// released keeps its meaning for ever; docs/data-path.md has the table.
package state

import "strings"

// Quality is how well an image is to be denoised, or has been.
type Quality string

// Qualities.
const (
	Off  Quality = "off"  // forward as it came
	Fast Quality = "fast" // the student network, at once
	// the full method once the series is complete; the fast result is made all the same and never delayed
	High Quality = "high"
)

// Valid tells whether q is one of the qualities.
func (q Quality) Valid() bool { return q == Off || q == Fast || q == High }

// Channel is by what a quality was decided. In order of precedence:
type Channel string

// Channels.
const (
	ChannelFlag    Channel = "flag"      // a person asked for this very series
	ChannelAE      Channel = "called-ae" // a called AE title or folder that says high or off
	ChannelRule    Channel = "rule"
	ChannelDefault Channel = "default" // nobody asked for anything else
)

// Stage is where an original is in a lane; Made is that of a derived object.
type Stage string

// Stages. In the high lane an original is queued, denoised or failed.
const (
	Queued   Stage = "queued"   // waits for a worker
	Denoised Stage = "denoised" // the derived object is durable
	Passed   Stage = "passed"   // must not or could not be denoised safely; the reason says why
	Failed   Stage = "failed"   // tried and given up; the reason says why
	Conflict Stage = "conflict" // other bytes under a UID that was there already: kept, never sent
	Made     Stage = "made"     // the row is a derived object
	Lost     Stage = "lost"     // the journal has the row but the file is gone or damaged
)

// Reason is why an image passed or failed, or why its derived object is not the method's plain result.
// What derive.Inspect finds in a header (derive.Reason) is one too.
type Reason string

// Reasons.
const (
	ReasonOff         Reason = "off"         // passed because nothing else was asked for
	ReasonNoModel     Reason = "no-model"    // passed because nothing can denoise it
	ReasonUnparseable Reason = "unparseable" // passed because it cannot be scanned
	ReasonConflict    Reason = "conflict"    // of images in that stage

	ReasonPanic   Reason = "panic"
	ReasonTimeout Reason = "timeout"
	ReasonError   Reason = "error"
	ReasonDerive  Reason = "derive"  // the derived object could not be written, or not be read back
	ReasonDamaged Reason = "damaged" // the file of the original is not what was written
	ReasonLost    Reason = "lost"    // the file of the original is gone

	// A result that cannot be right.
	ReasonSize      Reason = "gate-size"
	ReasonNotNumber Reason = "gate-nan"
	ReasonRange     Reason = "gate-range"
	ReasonConstant  Reason = "gate-constant"

	// A derived object was made and is a copy: no noise was found that the model can treat.
	ReasonUnchanged Reason = "unchanged"

	ReasonNotPossible Reason = "not-possible" // high lane: the model has no networks for it
	ReasonStopped     Reason = "stopped"      // high lane: so many images failed that the rest was not tried
)

// impossible are the reasons of results that were there and could not be right.
var impossible = []Reason{ReasonSize, ReasonNotNumber, ReasonRange, ReasonConstant}

// Impossible tells whether r says that a result was there and could not be right.
func (r Reason) Impossible() bool {
	for _, i := range impossible {
		if r == i {
			return true
		}
	}
	return false
}

// ImpossibleSQL is the list of the reasons that are Impossible, as SQL writes it: 'a','b'.
func ImpossibleSQL() string {
	var b strings.Builder
	for i, r := range impossible {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString("'" + string(r) + "'")
	}
	return b.String()
}

// Delivery is the state of one image on its way to one destination.
type Delivery string

// States of a delivery.
const (
	DeliveryQueued  Delivery = "queued"  // to be sent, or sent again
	DeliveryStored  Delivery = "stored"  // the destination answered success or a warning
	DeliveryRefused Delivery = "refused" // the destination said that it will never take it
	DeliveryDamaged Delivery = "damaged" // our own copy failed its check; not sent
)

// Series is the state of a series.
type Series string

// States of a series.
const (
	SeriesReceiving  Series = "receiving"
	SeriesComplete   Series = "complete"
	SeriesIncomplete Series = "incomplete" // the hard limit ended it, or images are known to be missing
)

// CompleteBy is by what a series was found complete.
type CompleteBy string

// Ways in which a series is found complete.
const (
	ByFrames CompleteBy = "multi-frame" // one object holds the whole series
	ByCount  CompleteBy = "count"       // as many images as (0020,1002) × (0020,0105) announce
	ByQuiet  CompleteBy = "quiet"       // nothing more came for the quiet period
	ByMax    CompleteBy = "max"         // the hard limit
)
