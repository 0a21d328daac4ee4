package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/diffdenoise/denoised/pipeline/derive"
	"github.com/diffdenoise/denoised/pipeline/spool/journal"
	"github.com/diffdenoise/denoised/pipeline/state"
)

// ErrUnknownSeries says that there is no such series, image or file.
var ErrUnknownSeries = errors.New("not known")

// SeriesStatus is what there is to say about a series, without patient data.
type SeriesStatus struct {
	ID         int64            `json:"id"`
	UID        string           `json:"uid"` // "?<calling AE title>" collects objects without one
	StudyUID   string           `json:"studyUid"`
	Modality   string           `json:"modality"`
	Protocol   string           `json:"protocol"`
	Number     int64            `json:"number"`
	Calling    string           `json:"callingAeTitle"`
	Called     string           `json:"calledAeTitle"`
	Host       string           `json:"host"`
	State      state.Series     `json:"state"`                // receiving, complete, incomplete
	CompleteBy state.CompleteBy `json:"completeBy,omitempty"` // multi-frame, count, quiet, max
	Expected   int64            `json:"expected,omitempty"`   // images announced by the scanner
	Missing    int64            `json:"missing,omitempty"`    // announced and not there
	Reopened   int64            `json:"reopened,omitempty"`   // times that an image came late
	FirstAt    time.Time        `json:"firstAt"`
	LastAt     time.Time        `json:"lastAt"`
	CompleteAt time.Time        `json:"completeAt,omitzero"`
	Quality    Quality          `json:"quality"` // what a person asked for, else the highest that was asked for
	Channel    state.Channel    `json:"channel"` // what asked for it: flag, called-ae, rule, default
	Rule       string           `json:"rule,omitempty"`

	Flag *FlagStatus `json:"flag,omitempty"` // what a person asked for
	High *HighStatus `json:"high,omitempty"` // the high pass, if it was asked for

	Received int64 `json:"received"`
	Waiting  int64 `json:"waiting"` // for denoising
	Denoised int64 `json:"denoised"`
	Passed   int64 `json:"passed"` // forwarded as they came
	Failed   int64 `json:"failed"`
	Conflict int64 `json:"conflict"` // other bytes under a known UID: kept, not forwarded
	Lost     int64 `json:"lost"`

	// of passed and failed; of denoised: unchanged, gate, blended (see Remarks)
	Reasons      map[state.Reason]int64 `json:"reasons,omitempty"`
	Destinations []DestinationStatus    `json:"destinations"`
	Instances    []InstanceStatus       `json:"instances,omitempty"` // SeriesByUID only
}

// FlagStatus is what a person asked for a series.
type FlagStatus struct {
	Quality Quality   `json:"quality"`
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

	// unchanged, gate, blended, or why there is a copy or nothing
	Reasons map[state.Reason]int64 `json:"reasons,omitempty"`
	Now     *HighStep              `json:"now,omitempty"`
	// RemainingSeconds is an estimate; 0: not known.
	RemainingSeconds float64 `json:"remainingSeconds,omitempty"`
}

// Remarks counts the derived objects that are not the plain result of the fast
// network, in words; empty: all are.
func (s SeriesStatus) Remarks() string { return remarks(s.Reasons) }

// Remarks is the same of the full method, without the copies that stand in for
// images that it failed for.
func (h HighStatus) Remarks() string { return remarks(h.Reasons) }

var remarkWords = []struct {
	reason state.Reason
	text   string
}{{state.ReasonUnchanged, "unchanged"}, {derive.HeldBack, "held back"}, {derive.Blended, "in part"}}

// isRemark tells whether a reason is about a derived object that is there. That of a
// lost image says nothing any more.
func isRemark(reason state.Reason) bool {
	return slices.ContainsFunc(remarkWords, func(w struct {
		reason state.Reason
		text   string
	}) bool {
		return w.reason == reason
	})
}

func remarks(reasons map[state.Reason]int64) string {
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
	Breaker  string `json:"breaker,omitempty"` // closed, half-open, open, loop
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
	State          state.Stage      `json:"state"` // queued, denoised, passed, failed, conflict, lost, made
	Reason         state.Reason     `json:"reason,omitempty"`
	Detail         string           `json:"detail,omitempty"`
	Quality        Quality          `json:"quality"`
	Channel        state.Channel    `json:"channel"`
	Rule           string           `json:"rule,omitempty"`
	Attempts       int64            `json:"attempts,omitempty"`
	High           *InstanceHigh    `json:"high,omitempty"`  // original: its place in the high lane
	Sigma          float64          `json:"sigma,omitempty"` // median noise, stored units
	Purged         bool             `json:"purged,omitempty"`
	Deliveries     []DeliveryStatus `json:"deliveries,omitempty"`
}

// InstanceHigh is the place of an original in the high lane.
type InstanceHigh struct {
	State    state.Stage  `json:"state"` // queued, denoised, failed
	Reason   state.Reason `json:"reason,omitempty"`
	Detail   string       `json:"detail,omitempty"`
	Copy     bool         `json:"copy,omitempty"` // the derived object is, or is to be, a copy
	Attempts int64        `json:"attempts,omitempty"`
}

// DeliveryStatus is one image on its way to one destination.
type DeliveryStatus struct {
	Destination string         `json:"destination"`
	State       state.Delivery `json:"state"` // queued, stored, refused, damaged
	Attempts    int64          `json:"attempts"`
	Status      string         `json:"status,omitempty"` // last DICOM status, four hexadecimal digits
	Detail      string         `json:"detail,omitempty"`
	DoneAt      time.Time      `json:"doneAt,omitzero"`
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
		ds := DeliveryStatus{Destination: d.Dest, State: d.State, Attempts: d.Attempts, Detail: d.Detail,
			DoneAt: d.DoneAt}
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
		inLane[h.Original] = &InstanceHigh{State: h.Stage, Reason: h.Reason, Detail: h.Detail, Copy: h.Fill,
			Attempts: h.Attempts}
	}
	for _, in := range list {
		st.Instances = append(st.Instances, InstanceStatus{SOPInstanceUID: in.SOP, Kind: string(in.Kind),
			SourceUID: sop[in.Source], Number: in.Number, Frames: in.Frames, Bytes: in.Size,
			ReceivedAt: in.Received, State: in.Stage, Reason: in.Reason, Detail: in.Detail, Quality: in.Quality, Channel: in.Channel, Rule: in.Rule,
			Attempts: in.Attempts, High: inLane[in.ID], Sigma: in.Sigma, Purged: in.Gone, Deliveries: by[in.ID]})
	}
	return st, nil
}

func (p *Pipeline) status(ctx context.Context, s journal.Series) (*SeriesStatus, error) {
	st := &SeriesStatus{ID: s.ID, UID: s.Key, StudyUID: s.Study, Modality: s.Modality, Protocol: s.Protocol,
		Number: s.Number, Calling: s.Calling, Called: s.Called, Host: s.Host,
		State: s.State, CompleteBy: s.CompleteBy, Expected: s.Expected, Missing: max(0,
			s.Expected-s.Received), Reopened: s.Reopened,
		FirstAt: s.FirstAt, LastAt: s.LastAt, CompleteAt: s.CompleteAt, Quality: s.Quality, Channel: s.Channel, Rule: s.Rule,
		Received: s.Received, Reasons: map[state.Reason]int64{}, Destinations: []DestinationStatus{}}
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
		case state.Queued:
			st.Waiting += c.Count
		case state.Denoised:
			st.Denoised += c.Count
		case state.Passed:
			st.Passed += c.Count
		case state.Failed:
			st.Failed += c.Count
		case state.Conflict:
			st.Conflict += c.Count
		case state.Lost:
			st.Lost += c.Count
		}
		if c.Reason != "" && (c.Stage == state.Denoised || !isRemark(c.Reason)) {
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
			st.Destinations = append(st.Destinations, DestinationStatus{Name: c.Dest, Breaker: p.forward.state(c.Dest)})
		}
		d := &st.Destinations[i]
		switch c.State {
		case state.DeliveryQueued:
			d.Queued = c.Count
		case state.DeliveryStored:
			d.Stored, d.Warnings = c.Count, c.Warnings
		case state.DeliveryRefused:
			d.Refused, d.Detail = c.Count, c.Detail
		case state.DeliveryDamaged:
			d.Damaged, d.Detail = c.Count, c.Detail
		}
	}
	return st, nil
}

// highStatus sums up the high pass of a series; nil when there is nothing to say.
func (p *Pipeline) highStatus(ctx context.Context, s journal.Series) (*HighStatus, error) {
	counts, err := p.jrnl.HighCounts(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	wanted := s.Quality == High
	if len(counts) == 0 && !wanted {
		return nil, nil
	}
	h := &HighStatus{Reasons: map[state.Reason]int64{}}
	var queued, impossible int64
	for _, c := range counts {
		h.Images += c.Count
		if c.Reason != "" && (c.Stage == state.Denoised || !isRemark(c.Reason)) {
			h.Reasons[c.Reason] += c.Count
		}
		switch c.Stage {
		case state.Queued:
			queued += c.Count
		case state.Denoised:
			h.Done += c.Count
			if c.Fill {
				h.Copies += c.Count
			}
		case state.Failed:
			h.Failed += c.Count
			h.Detail = c.Detail
			if c.Reason == state.ReasonNotPossible {
				impossible += c.Count
			}
		}
	}
	h.Now = p.highNow(s.ID)
	receiving := s.State == state.SeriesReceiving
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
	paused := p.fast.busy.is()
	p.high.mu.Lock()
	defer p.high.mu.Unlock()
	for _, h := range p.high.hand { // one at most
		if series == 0 || h.in.Series == series {
			return &HighStep{SeriesID: h.in.Series, SOPInstanceUID: h.in.SOP, Number: h.in.Number, Frame: h.frame,
				Frames: h.in.Frames, Step: h.step, Steps: h.steps, Paused: paused}
		}
	}
	return nil
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
