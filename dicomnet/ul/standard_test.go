package ul

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// Each test here proves one statement of PS3.8 section 9.2, named above it.

// in returns a machine that has reached a state as one side.
func in(s State, requestor bool) *Machine { return &Machine{state: s, requestor: requestor} }

// does runs one event and describes what comes of it.
func does(t *testing.T, m *Machine, ev Event) string {
	t.Helper()
	effects, err := m.Step(ev)
	if err != nil {
		t.Fatalf("%v", err)
	}
	s := ""
	for _, e := range effects {
		s += e.Kind.String()
		if e.Kind == SendAbort {
			s += fmt.Sprintf(" %d/%d", e.Source, e.Reason)
		}
		s += "; "
	}
	return s + m.State().String()
}

var (
	pdus        = []EventKind{AssociateACReceived, AssociateRJReceived, AssociateRQReceived, DataReceived, ReleaseRQReceived, ReleaseRPReceived, InvalidPDU}
	established = []State{Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12}
)

// 9.2.1: a blank cell must not be acted on.
func TestBlankCellsAreErrors(t *testing.T) {
	blank := 0
	for k := AssociateRequest; k <= InvalidPDU; k++ {
		for s := Sta1; s <= Sta13; s++ {
			if cells[k][s].name != "" {
				continue
			}
			blank++
			m := in(s, true)
			var wrong *TransitionError
			if _, err := m.Step(Event{Kind: k}); !errors.As(err, &wrong) || wrong.State != s || wrong.Event != k || m.State() != s {
				t.Errorf("%v in %v: %v, then %v", k, s, err, m.State())
			}
		}
	}
	if blank != events*states-123 {
		t.Errorf("%d blank cells, %d are filled", blank, events*states-blank)
	}
}

// Table 9-10: whatever a peer or the network does in a state with a transport
// connection has an action, but for the timer, which runs in Sta2 and Sta13.
func TestPeerCanCauseNoBlankCell(t *testing.T) {
	for _, k := range append(slices.Clone(pdus), AbortReceived, TransportClosed) {
		for s := Sta2; s <= Sta13; s++ {
			if cells[k][s].name == "" && s != Sta4 {
				t.Errorf("%v in %v has no action", k, s)
			}
		}
	}
	for s := Sta1; s <= Sta13; s++ {
		if got, want := cells[ARTIMExpired][s].name != "", s == Sta2 || s == Sta13; got != want {
			t.Errorf("ARTIM in %v: action %v, want %v", s, got, want)
		}
	}
}

// 9.1.5 and AE-5: the acceptor starts ARTIM as soon as the transport is there.
func TestAcceptorStartsARTIM(t *testing.T) {
	if got := does(t, New(), Event{Kind: TransportIndication}); got != "start ARTIM; Sta2" {
		t.Error(got)
	}
}

// AE-6: a request that the provider cannot take is rejected and ARTIM started.
func TestProviderRefusal(t *testing.T) {
	if got := does(t, in(Sta2, false), Event{Kind: AssociateRQReceived, Refuse: true}); got != "stop ARTIM; send A-ASSOCIATE-RJ; start ARTIM; Sta13" {
		t.Error(got)
	}
	if got := does(t, in(Sta2, false), Event{Kind: AssociateRQReceived}); got != "stop ARTIM; issue associate indication; Sta3" {
		t.Error(got)
	}
}

// AA-1: before a request, anything else is aborted as by the service user.
func TestAbortBeforeRequest(t *testing.T) {
	for _, k := range pdus {
		if k == AssociateRQReceived {
			continue
		}
		if got := does(t, in(Sta2, false), Event{Kind: k, Reason: 6}); got != "send A-ABORT 0/0; start ARTIM; Sta13" {
			t.Errorf("%v: %s", k, got)
		}
	}
}

// AA-8 and table 9-26: an unexpected PDU is aborted by the provider with reason
// 2, an invalid one with the reason that the decoder found.
func TestAbortInsideAssociation(t *testing.T) {
	for _, s := range established {
		for _, k := range []EventKind{AssociateRQReceived, AssociateACReceived, AssociateRJReceived} {
			if got := does(t, in(s, true), Event{Kind: k}); got != "send A-ABORT 2/2; issue A-P-ABORT indication; start ARTIM; Sta13" {
				t.Errorf("%v in %v: %s", k, s, got)
			}
		}
		for _, reason := range []byte{0, 1, 4, 5, 6} {
			want := fmt.Sprintf("send A-ABORT 2/%d; issue A-P-ABORT indication; start ARTIM; Sta13", reason)
			if got := does(t, in(s, true), Event{Kind: InvalidPDU, Reason: reason}); got != want {
				t.Errorf("in %v: %s, want %s", s, got, want)
			}
		}
	}
}

// AA-3 and AA-4: an A-ABORT or the loss of the transport ends any association.
func TestEndOfAssociation(t *testing.T) {
	for _, s := range append([]State{Sta3, Sta5}, established...) {
		if got := does(t, in(s, true), Event{Kind: AbortReceived}); got != "issue A-ABORT indication; close transport; Sta1" {
			t.Errorf("%v: %s", s, got)
		}
		if got := does(t, in(s, true), Event{Kind: TransportClosed}); got != "issue A-P-ABORT indication; Sta1" {
			t.Errorf("%v: %s", s, got)
		}
		if got := does(t, in(s, true), Event{Kind: AbortRequest}); got != "send A-ABORT 0/0; start ARTIM; Sta13" {
			t.Errorf("%v: %s", s, got)
		}
	}
}

// 7.2.2.7 and AR-8: in a release collision the requestor of the association
// answers first, its acceptor waits for that answer.
func TestReleaseCollision(t *testing.T) {
	if got := does(t, in(Sta7, true), Event{Kind: ReleaseRQReceived}); got != "issue release indication; Sta9" {
		t.Error(got)
	}
	if got := does(t, in(Sta7, false), Event{Kind: ReleaseRQReceived}); got != "issue release indication; Sta10" {
		t.Error(got)
	}
}

// AR-6 and AR-7: data that is under way may still pass while a release waits.
func TestDataDuringRelease(t *testing.T) {
	if got := does(t, in(Sta7, true), Event{Kind: DataReceived}); got != "issue data; Sta7" {
		t.Error(got)
	}
	if got := does(t, in(Sta8, true), Event{Kind: DataRequest}); got != "send P-DATA-TF; Sta8" {
		t.Error(got)
	}
}

// Sta13: only a request or garbage is answered, and only by another A-ABORT;
// the timer or the peer closes.
func TestAwaitingClose(t *testing.T) {
	for _, k := range pdus {
		want := "Sta13"
		if k == AssociateRQReceived || k == InvalidPDU {
			want = "send A-ABORT 2/2; Sta13"
		}
		if got := does(t, in(Sta13, true), Event{Kind: k, Reason: 2}); got != want {
			t.Errorf("%v: %s", k, got)
		}
	}
	for _, k := range []EventKind{ARTIMExpired, AbortReceived} {
		if got := does(t, in(Sta13, true), Event{Kind: k}); got != "stop ARTIM; close transport; Sta1" {
			t.Errorf("%v: %s", k, got)
		}
	}
	if got := does(t, in(Sta13, true), Event{Kind: TransportClosed}); got != "stop ARTIM; Sta1" {
		t.Error(got)
	}
}

// Every action of tables 9-6 to 9-9 is reached from table 9-10.
func TestEveryActionIsUsed(t *testing.T) {
	used := map[string]bool{}
	for _, row := range cells {
		for _, c := range row {
			used[c.name] = true
		}
	}
	for name := range actions {
		if !used[name] {
			t.Errorf("no cell leads to %s", name)
		}
	}
	if len(actions) != 8+2+10+8 {
		t.Errorf("%d actions", len(actions))
	}
}
