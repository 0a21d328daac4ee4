package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/diffdenoise/denoised/internal/dcm"
	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool"
)

// ErrUnknownSeries says that there is no such series, image or file.
var ErrUnknownSeries = errors.New("not known")

// SeriesStatus is what there is to say about a series, without patient data.
type SeriesStatus struct {
	ID         int64     `json:"id"`
	UID        string    `json:"uid"` // "?<calling AE title>" collects objects without one
	StudyUID   string    `json:"studyUid"`
	Modality   string    `json:"modality"`
	Protocol   string    `json:"protocol"`
	Number     int64     `json:"number"`
	Calling    string    `json:"callingAeTitle"`
	Called     string    `json:"calledAeTitle"`
	Host       string    `json:"host"`
	State      string    `json:"state"`                // receiving, complete, incomplete
	CompleteBy string    `json:"completeBy,omitempty"` // multi-frame, count, quiet, max
	Expected   int64     `json:"expected,omitempty"`   // images announced by the scanner
	Missing    int64     `json:"missing,omitempty"`    // announced and not there
	Reopened   int64     `json:"reopened,omitempty"`   // times that an image came late
	FirstAt    time.Time `json:"firstAt"`
	LastAt     time.Time `json:"lastAt"`
	CompleteAt time.Time `json:"completeAt,omitzero"`
	Quality    string    `json:"quality"` // what a person asked for, else the highest that was asked for
	Channel    string    `json:"channel"` // what asked for it: flag, called-ae, rule, default
	Rule       string    `json:"rule,omitempty"`

	Flag *FlagStatus `json:"flag,omitempty"` // what a person asked for
	High *HighStatus `json:"high,omitempty"` // the high pass, if it was asked for

	Received int64 `json:"received"`
	Waiting  int64 `json:"waiting"` // for denoising
	Denoised int64 `json:"denoised"`
	Passed   int64 `json:"passed"` // forwarded as they came
	Failed   int64 `json:"failed"`
	Conflict int64 `json:"conflict"` // other bytes under a known UID: kept, not forwarded
	Lost     int64 `json:"lost"`

	Reasons      map[string]int64    `json:"reasons,omitempty"` // of passed and failed; of denoised: unchanged, gate, blended (see Remarks)
	Destinations []DestinationStatus `json:"destinations"`
	Instances    []InstanceStatus    `json:"instances,omitempty"` // SeriesByUID only
}

// FlagStatus is what a person asked for a series.
type FlagStatus struct {
	Quality string    `json:"quality"`
	Why     string    `json:"why,omitempty"`
	By      string    `json:"by,omitempty"`
	At      time.Time `json:"at"`
}

// States of the high pass of a series.
const (
	HighWaiting     = "waiting"      // the series is being received
	HighQueued      = "queued"       // other series, or the fast lane, come first
	HighRunning     = "running"      // an image of it is in hand
	HighDone        = "done"         // each image that gets it has its derived object
	HighIncomplete  = "incomplete"   // some have none: flag it again to try them again
	HighFailed      = "failed"       // none has one; the same
	HighNotPossible = "not-possible" // the model cannot do it
	HighCalledOff   = "called-off"   // fast or off was asked for after some were made
	HighNothing     = "nothing"      // no image of the series may be denoised
)

// HighStatus is the high pass of a series.
type HighStatus struct {
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"` // why, for states that are no success
	Images int64  `json:"images"`           // that get it
	Done   int64  `json:"done"`             // derived objects made, copies included
	Copies int64  `json:"copies,omitempty"` // made for images that the method failed for
	Failed int64  `json:"failed,omitempty"`

	Reasons map[string]int64 `json:"reasons,omitempty"` // unchanged, gate, blended, or why there is a copy or nothing
	Now     *HighStep        `json:"now,omitempty"`
	// RemainingSeconds is an estimate; 0: not known.
	RemainingSeconds float64 `json:"remainingSeconds,omitempty"`
}

// Remarks counts the derived objects that are not the plain result of the fast
// network, in words; empty: all are.
func (s SeriesStatus) Remarks() string { return remarks(s.Reasons) }

// Remarks is the same of the full method, without the copies that stand in for
// images that it failed for.
func (h HighStatus) Remarks() string { return remarks(h.Reasons) }

var remarkWords = []struct{ reason, text string }{{reasonUnchanged, "unchanged"}, {derive.HeldBack, "held back"}, {derive.Blended, "in part"}}

// isRemark tells whether a reason is about a derived object that is there. That of a
// lost image says nothing any more.
func isRemark(reason string) bool {
	return slices.ContainsFunc(remarkWords, func(w struct{ reason, text string }) bool { return w.reason == reason })
}

func remarks(reasons map[string]int64) string {
	var out []string
	for _, r := range remarkWords {
		if n := reasons[r.reason]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, r.text))
		}
	}
	return strings.Join(out, ", ")
}

// HighStep is what the high lane has in hand.
type HighStep struct {
	SeriesID       int64  `json:"seriesId"` // SeriesStatus.ID
	SOPInstanceUID string `json:"sopInstanceUid"`
	Number         int64  `json:"number"` // instance number
	Frame          int    `json:"frame"`  // from 1; 0: not begun
	Frames         int64  `json:"frames"`
	Step           int    `json:"step"`
	Steps          int    `json:"steps"`            // 0: not known yet
	Paused         bool   `json:"paused,omitempty"` // the fast lane has work
}

// DestinationStatus counts the deliveries of a series, or of all, by state.
type DestinationStatus struct {
	Name     string `json:"name"`
	Breaker  string `json:"breaker,omitempty"` // closed, half-open, open
	Queued   int64  `json:"queued"`
	Stored   int64  `json:"stored"`
	Warnings int64  `json:"warnings,omitempty"` // of Stored
	Refused  int64  `json:"refused,omitempty"`
	Damaged  int64  `json:"damaged,omitempty"`
	Detail   string `json:"detail,omitempty"` // of a refused or damaged one
}

// InstanceStatus is one image, original or derived.
type InstanceStatus struct {
	SOPInstanceUID string           `json:"sopInstanceUid"`
	Kind           string           `json:"kind"`
	SourceUID      string           `json:"sourceUid,omitempty"` // derived: the original
	Number         int64            `json:"number"`
	Frames         int64            `json:"frames"`
	Bytes          int64            `json:"bytes"`
	ReceivedAt     time.Time        `json:"receivedAt"`
	State          string           `json:"state"` // queued, denoised, passed, failed, conflict, lost, made
	Reason         string           `json:"reason,omitempty"`
	Detail         string           `json:"detail,omitempty"`
	Quality        string           `json:"quality"`
	Channel        string           `json:"channel"`
	Rule           string           `json:"rule,omitempty"`
	Attempts       int64            `json:"attempts,omitempty"`
	High           *InstanceHigh    `json:"high,omitempty"`  // original: its place in the high lane
	Sigma          float64          `json:"sigma,omitempty"` // median noise, stored units
	Purged         bool             `json:"purged,omitempty"`
	Deliveries     []DeliveryStatus `json:"deliveries,omitempty"`
}

// InstanceHigh is the place of an original in the high lane.
type InstanceHigh struct {
	State    string `json:"state"` // queued, denoised, failed
	Reason   string `json:"reason,omitempty"`
	Detail   string `json:"detail,omitempty"`
	Copy     bool   `json:"copy,omitempty"` // the derived object is, or is to be, a copy
	Attempts int64  `json:"attempts,omitempty"`
}

// DeliveryStatus is one image on its way to one destination.
type DeliveryStatus struct {
	Destination string    `json:"destination"`
	State       string    `json:"state"` // queued, stored, refused, damaged
	Attempts    int64     `json:"attempts"`
	Status      string    `json:"status,omitempty"` // last DICOM status, four hexadecimal digits
	Detail      string    `json:"detail,omitempty"`
	DoneAt      time.Time `json:"doneAt,omitzero"`
}

const (
	maxListedSeries    = 200
	maxListedInstances = 20000
)

// Series lists the 200 series that changed last, newest first.
func (p *Pipeline) Series(ctx context.Context) ([]SeriesStatus, error) {
	list, err := p.jrnl.RecentSeries(ctx, maxListedSeries)
	if err != nil {
		return nil, err
	}
	out := make([]SeriesStatus, 0, len(list))
	for _, s := range list {
		st, err := p.status(ctx, s)
		if err != nil {
			return nil, err
		}
		out = append(out, *st)
	}
	return out, nil
}

// SeriesByUID reads one series with its images. ErrUnknownSeries: there is none.
func (p *Pipeline) SeriesByUID(ctx context.Context, uid string) (*SeriesStatus, error) {
	s, err := p.jrnl.SeriesByKey(ctx, uid)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, fmt.Errorf("series %q: %w", uid, ErrUnknownSeries)
	}
	st, err := p.status(ctx, *s)
	if err != nil {
		return nil, err
	}
	list, err := p.jrnl.SeriesInstances(ctx, s.ID, maxListedInstances)
	if err != nil {
		return nil, err
	}
	deliveries, err := p.jrnl.SeriesDeliveries(ctx, s.ID, 4*maxListedInstances)
	if err != nil {
		return nil, err
	}
	by := map[int64][]DeliveryStatus{}
	for _, d := range deliveries {
		ds := DeliveryStatus{Destination: d.Dest, State: d.State, Attempts: d.Attempts, Detail: d.Detail, DoneAt: d.DoneAt}
		if d.Status >= 0 {
			ds.Status = statusWord(uint16(d.Status))
		}
		by[d.Instance] = append(by[d.Instance], ds)
	}
	sop := map[int64]string{}
	for _, in := range list {
		sop[in.ID] = in.SOP
	}
	high, err := p.jrnl.SeriesHigh(ctx, s.ID, maxListedInstances)
	if err != nil {
		return nil, err
	}
	inLane := map[int64]*InstanceHigh{}
	for _, h := range high {
		inLane[h.Original] = &InstanceHigh{State: h.Stage, Reason: h.Reason, Detail: h.Detail, Copy: h.Fill, Attempts: h.Attempts}
	}
	for _, in := range list {
		st.Instances = append(st.Instances, InstanceStatus{SOPInstanceUID: in.SOP, Kind: string(in.Kind), SourceUID: sop[in.Source], Number: in.Number, Frames: in.Frames, Bytes: in.Size,
			ReceivedAt: in.Received, State: in.Stage, Reason: in.Reason, Detail: in.Detail, Quality: in.Quality, Channel: in.Channel, Rule: in.Rule,
			Attempts: in.Attempts, High: inLane[in.ID], Sigma: in.Sigma, Purged: in.Gone, Deliveries: by[in.ID]})
	}
	return st, nil
}

func (p *Pipeline) status(ctx context.Context, s spool.Series) (*SeriesStatus, error) {
	st := &SeriesStatus{ID: s.ID, UID: s.Key, StudyUID: s.Study, Modality: s.Modality, Protocol: s.Protocol, Number: s.Number, Calling: s.Calling, Called: s.Called, Host: s.Host,
		State: s.State, CompleteBy: s.CompleteBy, Expected: s.Expected, Missing: max(0, s.Expected-s.Received), Reopened: s.Reopened,
		FirstAt: s.FirstAt, LastAt: s.LastAt, CompleteAt: s.CompleteAt, Quality: s.Quality, Channel: s.Channel, Rule: s.Rule,
		Received: s.Received, Reasons: map[string]int64{}, Destinations: []DestinationStatus{}}
	f, err := p.jrnl.Flag(ctx, s.Key)
	if err != nil {
		return nil, err
	}
	if f != nil {
		st.Flag = &FlagStatus{Quality: f.Quality, Why: f.Why, By: f.By, At: f.At}
	}
	if st.High, err = p.highStatus(ctx, s); err != nil {
		return nil, err
	}
	stages, err := p.jrnl.StageCounts(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	for _, c := range stages {
		switch c.Stage {
		case spool.StageQueued:
			st.Waiting += c.Count
		case spool.StageDenoised:
			st.Denoised += c.Count
		case spool.StagePassed:
			st.Passed += c.Count
		case spool.StageFailed:
			st.Failed += c.Count
		case spool.StageConflict:
			st.Conflict += c.Count
		case spool.StageLost:
			st.Lost += c.Count
		}
		if c.Reason != "" && (c.Stage == spool.StageDenoised || !isRemark(c.Reason)) {
			st.Reasons[c.Reason] += c.Count
		}
	}
	counts, err := p.jrnl.DeliveryCounts(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	for _, c := range counts {
		i := slices.IndexFunc(st.Destinations, func(d DestinationStatus) bool { return d.Name == c.Dest })
		if i < 0 {
			i = len(st.Destinations)
			st.Destinations = append(st.Destinations, DestinationStatus{Name: c.Dest, Breaker: p.breakerState(c.Dest)})
		}
		d := &st.Destinations[i]
		switch c.State {
		case spool.DeliveryQueued:
			d.Queued = c.Count
		case spool.DeliveryStored:
			d.Stored, d.Warnings = c.Count, c.Warnings
		case spool.DeliveryRefused:
			d.Refused, d.Detail = c.Count, c.Detail
		case spool.DeliveryDamaged:
			d.Damaged, d.Detail = c.Count, c.Detail
		}
	}
	return st, nil
}

// highStatus sums up the high pass of a series; nil when there is nothing to say.
func (p *Pipeline) highStatus(ctx context.Context, s spool.Series) (*HighStatus, error) {
	counts, err := p.jrnl.HighCounts(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	wanted := s.Quality == string(High)
	if len(counts) == 0 && !wanted {
		return nil, nil
	}
	h := &HighStatus{Reasons: map[string]int64{}}
	var queued, impossible int64
	for _, c := range counts {
		h.Images += c.Count
		if c.Reason != "" && (c.Stage == spool.StageDenoised || !isRemark(c.Reason)) {
			h.Reasons[c.Reason] += c.Count
		}
		switch c.Stage {
		case spool.StageQueued:
			queued += c.Count
		case spool.StageDenoised:
			h.Done += c.Count
			if c.Fill {
				h.Copies += c.Count
			}
		case spool.StageFailed:
			h.Failed += c.Count
			h.Detail = c.Detail
			if c.Reason == spool.ReasonNotPossible {
				impossible += c.Count
			}
		}
	}
	h.Now = p.highNow(s.ID)
	receiving := s.State == spool.SeriesReceiving
	possible, why := p.HighPossible(s.Modality)
	switch {
	case h.Now != nil:
		h.State = HighRunning
	case queued > 0 && receiving, wanted && h.Images == 0 && receiving:
		h.State = HighWaiting
	case queued > 0:
		h.State = HighQueued
	case impossible > 0 && impossible == h.Failed:
		h.State = HighNotPossible
	case h.Failed > 0 && h.Done == 0:
		h.State = HighFailed
	case h.Failed > 0:
		h.State = HighIncomplete
	case !wanted:
		h.State = HighCalledOff
	case h.Images == 0 && !possible:
		h.State, h.Detail = HighNotPossible, why
	case h.Images == 0:
		h.State, h.Detail = HighNothing, "no image of the series may be denoised"
	default:
		h.State = HighDone
	}
	h.RemainingSeconds = p.highRemaining(queued, h.Now)
	return h, nil
}

// HighNow is what the high lane has in hand; nil: nothing.
func (p *Pipeline) HighNow() *HighStep { return p.highNow(0) }

// highNow is what the high lane has in hand, if it is of the series; series 0 is any.
func (p *Pipeline) highNow(series int64) *HighStep {
	paused := p.fast.busy()
	h := &p.high
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.in == nil || series != 0 && h.in.Series != series {
		return nil
	}
	return &HighStep{SeriesID: h.in.Series, SOPInstanceUID: h.in.SOP, Number: h.in.Number, Frame: h.frame, Frames: h.in.Frames, Step: h.step, Steps: h.steps, Paused: paused}
}

// highRemaining estimates the seconds that images need, the one in hand included.
func (p *Pipeline) highRemaining(images int64, now *HighStep) float64 {
	p.high.mu.Lock()
	mean := p.high.mean.Seconds()
	p.high.mu.Unlock()
	left := float64(images)
	if now != nil && now.Steps > 0 && now.Frames > 0 && now.Frame > 0 {
		left -= (float64(now.Frame-1) + float64(now.Step)/float64(now.Steps)) / float64(now.Frames)
	}
	return max(0, left) * mean
}

func (p *Pipeline) breakerState(dest string) string {
	p.fwdMu.Lock()
	f := p.fwd[dest]
	p.fwdMu.Unlock()
	if f == nil {
		return ""
	}
	return f.state()
}

// OpenObject opens image n (1-based, by instance number, then arrival) of a
// series: which is "original", "fast" or "high". The Object reads from the returned
// Closer's file. ErrUnknownSeries: there is no such image, or its file is purged.
func (p *Pipeline) OpenObject(ctx context.Context, seriesUID string, n int, which string) (*dcm.Object, io.Closer, error) {
	found, _, err := p.find(ctx, seriesUID, n, which)
	if err != nil {
		return nil, nil, err
	}
	o, f, err := p.open(found)
	if err != nil {
		return nil, nil, fmt.Errorf("series %q image %d: %w", seriesUID, n, err)
	}
	return o, f, nil
}

// find returns the row of what OpenObject opens, and what is on record about it: why
// a derived object is not the plain result of its method, empty if it is.
func (p *Pipeline) find(ctx context.Context, seriesUID string, n int, which string) (found spool.Instance, remark string, err error) {
	none := fmt.Errorf("series %q image %d %s: %w", seriesUID, n, which, ErrUnknownSeries)
	s, err := p.jrnl.SeriesByKey(ctx, seriesUID)
	if err != nil {
		return found, "", err
	}
	if s == nil {
		return found, "", none
	}
	original, err := p.jrnl.Original(ctx, s.ID, n)
	if err != nil {
		return found, "", err
	}
	if original == nil {
		return found, "", none
	}
	found = *original
	switch which {
	case "original":
	case string(Fast), string(High):
		// The last one, should there be objects of several models.
		d, err := p.jrnl.Derived(ctx, found.ID, which)
		if err != nil {
			return found, "", err
		}
		if d == nil {
			return found, "", none
		}
		reason, detail := found.Reason, found.Detail
		if which == string(High) {
			h, err := p.jrnl.High(ctx, found.ID)
			if err != nil {
				return found, "", err
			}
			if reason, detail = "", ""; h != nil {
				reason, detail = h.Reason, h.Detail
			}
		}
		found, remark = *d, strings.TrimSuffix(reason+": "+detail, ": ")
	default:
		return found, "", none
	}
	if found.Gone {
		return found, "", none
	}
	return found, remark, nil
}

// open opens and scans the file of a row.
func (p *Pipeline) open(in spool.Instance) (*dcm.Object, io.Closer, error) {
	f, err := p.store.Open(in.File)
	if err != nil {
		return nil, nil, err
	}
	o, err := scan(f, in.Offset+in.Size)
	if o == nil {
		f.Close()
		return nil, nil, fmt.Errorf("read header of spool file %s: %w", in.File, err)
	}
	return o, f, nil
}

// QueueHealth is the length of a queue and the age of its oldest image.
type QueueHealth struct {
	Waiting int64         `json:"waiting"`
	Age     time.Duration `json:"ageNs"`
}

// Health is the state of spool, journal and queues.
type Health struct {
	OK       bool                   `json:"ok"`       // images can be received
	Problems []string               `json:"problems"` // why not, or what needs a person
	DiskUsed float64                `json:"diskUsed"` // fraction
	Denoise  QueueHealth            `json:"denoise"`
	High     QueueHealth            `json:"high"`
	HighNow  *HighStep              `json:"highNow,omitempty"`
	NoHigh   string                 `json:"noHigh,omitempty"` // why the full method cannot run; empty if it can
	Forward  map[string]QueueHealth `json:"forward"`          // by destination
	Breakers map[string]string      `json:"breakers"`         // by destination
}

// maxRefused is how many images in a row may fail to be stored, for no fault of the
// sender, before Check says so. The next one that is stored ends it.
const maxRefused = 3

// Check writes to the spool and the journal and looks at disk and queues. It
// takes a few milliseconds.
func (p *Pipeline) Check() Health {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	h := Health{OK: true, Problems: []string{}, Forward: map[string]QueueHealth{}, Breakers: map[string]string{}}
	bad := func(err error) {
		if err != nil {
			h.OK = false
			h.Problems = append(h.Problems, err.Error())
		}
	}
	cfg := p.cfg.Load()
	var err error
	h.DiskUsed, err = p.store.Used()
	bad(err)
	bad(p.store.Probe())
	bad(p.jrnl.Writable())
	if n := p.refused.Load(); n >= maxRefused {
		bad(fmt.Errorf("the last %d images could not be stored", n))
	}
	if err == nil && h.DiskUsed > cfg.DiskWarn {
		h.Problems = append(h.Problems, fmt.Sprintf("disk is %.0f %% full, images are refused above %.0f %%", 100*h.DiskUsed, 100*cfg.DiskRefuse))
	}
	depths, err := p.jrnl.Depths(ctx)
	bad(err)
	now := p.clock.Now()
	queue := func(d spool.Depth) QueueHealth {
		q := QueueHealth{Waiting: d.Count}
		if d.Count > 0 {
			q.Age = now.Sub(d.Oldest)
		}
		return q
	}
	h.Denoise, h.High, h.HighNow = queue(depths.Fast), queue(depths.High), p.highNow(0)
	_, h.NoHigh = p.HighPossible("")
	for name, d := range depths.Forward {
		h.Forward[name] = queue(d)
	}
	for name, q := range h.Forward {
		if !slices.ContainsFunc(cfg.Destinations, func(d Destination) bool { return d.Name == name }) {
			h.Problems = append(h.Problems, fmt.Sprintf("%d images wait for destination %s, which is not configured", q.Waiting, name))
		}
	}
	for _, d := range cfg.Destinations {
		if s := p.breakerState(d.Name); s != "" {
			h.Breakers[d.Name] = s
			if s != breakerClosed {
				h.Problems = append(h.Problems, fmt.Sprintf("destination %s does not take images", d.Name))
			}
		}
	}
	return h
}
