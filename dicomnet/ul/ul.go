// Package ul is the DICOM upper layer protocol machine of PS3.8 section 9.2 as
// a pure value: an event goes in, the list of things to do comes out. It knows
// no socket and no clock, so every path can be written down and read.
//
// A reader needs two types: [Machine], with its one method Step, and [Effect].
package ul

import "fmt"

// State is a state of PS3.8 tables 9-1 to 9-5.
type State uint8

// The states. Sta1 is both the start and the end.
const (
	Sta1  State = 1 + iota // idle
	Sta2                   // transport open, awaiting A-ASSOCIATE-RQ
	Sta3                   // awaiting the local A-ASSOCIATE response
	Sta4                   // awaiting the transport connection
	Sta5                   // awaiting A-ASSOCIATE-AC or -RJ
	Sta6                   // association established, ready for data
	Sta7                   // awaiting A-RELEASE-RP
	Sta8                   // awaiting the local A-RELEASE response
	Sta9                   // release collision, requestor: awaiting the local response
	Sta10                  // release collision, acceptor: awaiting A-RELEASE-RP
	Sta11                  // release collision, requestor: awaiting A-RELEASE-RP
	Sta12                  // release collision, acceptor: awaiting the local response
	Sta13                  // awaiting the close of the transport connection
)

// String returns the standard's name of the state.
func (s State) String() string { return fmt.Sprintf("Sta%d", uint8(s)) }

// EventKind is an event of PS3.8 table 9-10.
type EventKind uint8

// The events, numbered as in the standard.
const (
	AssociateRequest    EventKind = 1 + iota // Evt1: local user
	TransportConfirm                         // Evt2
	AssociateACReceived                      // Evt3
	AssociateRJReceived                      // Evt4
	TransportIndication                      // Evt5
	AssociateRQReceived                      // Evt6
	AssociateAccept                          // Evt7: local user
	AssociateReject                          // Evt8: local user
	DataRequest                              // Evt9: local user
	DataReceived                             // Evt10
	ReleaseRequest                           // Evt11: local user
	ReleaseRQReceived                        // Evt12
	ReleaseRPReceived                        // Evt13
	ReleaseResponse                          // Evt14: local user
	AbortRequest                             // Evt15: local user
	AbortReceived                            // Evt16
	TransportClosed                          // Evt17
	ARTIMExpired                             // Evt18
	InvalidPDU                               // Evt19
)

// String returns the standard's number and words for the event.
func (k EventKind) String() string {
	names := [...]string{"", "associate request", "transport confirm", "A-ASSOCIATE-AC", "A-ASSOCIATE-RJ",
		"transport indication", "A-ASSOCIATE-RQ", "associate accept", "associate reject", "data request",
		"P-DATA-TF", "release request", "A-RELEASE-RQ", "A-RELEASE-RP", "release response",
		"abort request", "A-ABORT", "transport closed", "ARTIM expired", "invalid PDU"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("Evt%d", uint8(k))
	}
	return fmt.Sprintf("Evt%d (%s)", uint8(k), names[k])
}

// Event is one thing that happened.
type Event struct {
	Kind EventKind
	// Refuse, with AssociateRQReceived, says that the provider itself cannot
	// take the request (AE-6), for instance because of its protocol version.
	Refuse bool
	// Reason is the provider's A-ABORT reason if this event leads to one
	// (PS3.8 table 9-26); 0 with a PDU event means unexpected PDU.
	Reason byte
}

// EffectKind says what the caller must do.
type EffectKind uint8

// The effects. Send… means exactly one PDU; Issue… tells the local user.
const (
	OpenTransport      EffectKind = 1 + iota
	CloseTransport                // close without further ado
	SendAssociateRQ               //
	SendAssociateAC               //
	SendAssociateRJ               //
	SendData                      //
	SendReleaseRQ                 //
	SendReleaseRP                 //
	SendAbort                     // with Source and Reason
	IssueAssociate                // an acceptable request came in
	IssueAccepted                 // the peer accepted
	IssueRejected                 // the peer rejected
	IssueData                     //
	IssueRelease                  // the peer wants to release
	IssueReleased                 // the peer agreed to release
	IssueAbort                    // the peer aborted
	IssueProviderAbort            // the association is lost
	StartARTIM                    // or restart
	StopARTIM                     //
)

// String returns the effect in words.
func (k EffectKind) String() string {
	names := [...]string{"", "open transport", "close transport", "send A-ASSOCIATE-RQ", "send A-ASSOCIATE-AC",
		"send A-ASSOCIATE-RJ", "send P-DATA-TF", "send A-RELEASE-RQ", "send A-RELEASE-RP", "send A-ABORT",
		"issue associate indication", "issue accepted", "issue rejected", "issue data", "issue release indication",
		"issue release confirmation", "issue A-ABORT indication", "issue A-P-ABORT indication",
		"start ARTIM", "stop ARTIM"}
	if int(k) >= len(names) {
		return fmt.Sprintf("effect %d", uint8(k))
	}
	return names[k]
}

// Effect is one thing to do.
type Effect struct {
	Kind   EffectKind
	Source byte // SendAbort: 0 service user, 2 service provider
	Reason byte // SendAbort
}

// Sources of an A-ABORT (PS3.8 table 9-26).
const (
	SourceUser     byte = 0
	SourceProvider byte = 2
)

const reasonUnexpectedPDU = 2

// TransitionError is an event that PS3.8 table 9-10 does not allow in a state.
// From a peer it cannot come; it means that the local user broke the protocol.
type TransitionError struct {
	State State
	Event EventKind
}

// Error names state and event.
func (e *TransitionError) Error() string {
	return fmt.Sprintf("upper layer: %v is not allowed in %v", e.Event, e.State)
}

// Machine is the protocol machine of one association. The zero value is not
// usable, see [New]. It is not safe for concurrent use.
type Machine struct {
	state     State
	requestor bool
	out       []Effect
	room      [4]Effect // no allocation per step
}

// New returns a machine in Sta1.
func New() *Machine { return &Machine{state: Sta1} }

// State returns the current state.
func (m *Machine) State() State { return m.state }

// Step takes one event and returns what the caller must now do, in order. The
// slice is valid until the next call. An event that the table does not allow
// changes nothing and returns a *TransitionError.
func (m *Machine) Step(ev Event) ([]Effect, error) {
	if ev.Kind == 0 || ev.Kind > events {
		return nil, &TransitionError{m.state, ev.Kind}
	}
	a := cells[ev.Kind][m.state]
	if a.do == nil {
		return nil, &TransitionError{m.state, ev.Kind}
	}
	m.out = m.room[:0]
	a.do(m, ev)
	return m.out, nil
}

func (m *Machine) emit(kinds ...EffectKind) {
	for _, k := range kinds {
		m.out = append(m.out, Effect{Kind: k})
	}
}

func (m *Machine) abort(source, reason byte) {
	m.out = append(m.out, Effect{Kind: SendAbort, Source: source, Reason: reason})
}

// actions holds PS3.8 tables 9-6 to 9-9 under their names. Each comment names
// the cells of table 9-10 that lead there.
var actions = map[string]func(m *Machine, ev Event){
	// Evt1 in Sta1.
	"AE-1": func(m *Machine, _ Event) { m.requestor = true; m.emit(OpenTransport); m.state = Sta4 },
	// Evt2 in Sta4.
	"AE-2": func(m *Machine, _ Event) { m.emit(SendAssociateRQ); m.state = Sta5 },
	// Evt3 in Sta5.
	"AE-3": func(m *Machine, _ Event) { m.emit(IssueAccepted); m.state = Sta6 },
	// Evt4 in Sta5.
	"AE-4": func(m *Machine, _ Event) { m.emit(IssueRejected, CloseTransport); m.state = Sta1 },
	// Evt5 in Sta1.
	"AE-5": func(m *Machine, _ Event) { m.requestor = false; m.emit(StartARTIM); m.state = Sta2 },
	// Evt6 in Sta2.
	"AE-6": func(m *Machine, ev Event) {
		m.emit(StopARTIM)
		if ev.Refuse {
			m.emit(SendAssociateRJ, StartARTIM)
			m.state = Sta13
			return
		}
		m.emit(IssueAssociate)
		m.state = Sta3
	},
	// Evt7 in Sta3.
	"AE-7": func(m *Machine, _ Event) { m.emit(SendAssociateAC); m.state = Sta6 },
	// Evt8 in Sta3.
	"AE-8": func(m *Machine, _ Event) { m.emit(SendAssociateRJ, StartARTIM); m.state = Sta13 },

	// Evt9 in Sta6.
	"DT-1": func(m *Machine, _ Event) { m.emit(SendData) },
	// Evt10 in Sta6.
	"DT-2": func(m *Machine, _ Event) { m.emit(IssueData) },

	// Evt11 in Sta6.
	"AR-1": func(m *Machine, _ Event) { m.emit(SendReleaseRQ); m.state = Sta7 },
	// Evt12 in Sta6.
	"AR-2": func(m *Machine, _ Event) { m.emit(IssueRelease); m.state = Sta8 },
	// Evt13 in Sta7 and Sta11.
	"AR-3": func(m *Machine, _ Event) { m.emit(IssueReleased, CloseTransport); m.state = Sta1 },
	// Evt14 in Sta8 and Sta12.
	"AR-4": func(m *Machine, _ Event) { m.emit(SendReleaseRP, StartARTIM); m.state = Sta13 },
	// Evt17 in Sta13.
	"AR-5": func(m *Machine, _ Event) { m.emit(StopARTIM); m.state = Sta1 },
	// Evt10 in Sta7.
	"AR-6": func(m *Machine, _ Event) { m.emit(IssueData) },
	// Evt9 in Sta8.
	"AR-7": func(m *Machine, _ Event) { m.emit(SendData) },
	// Evt12 in Sta7: both sides asked at once.
	"AR-8": func(m *Machine, _ Event) {
		m.emit(IssueRelease)
		m.state = Sta10
		if m.requestor {
			m.state = Sta9
		}
	},
	// Evt14 in Sta9.
	"AR-9": func(m *Machine, _ Event) { m.emit(SendReleaseRP); m.state = Sta11 },
	// Evt13 in Sta10.
	"AR-10": func(m *Machine, _ Event) { m.emit(IssueReleased); m.state = Sta12 },

	// Evt3, 4, 10, 12, 13 and 19 in Sta2; Evt15 in Sta3 and Sta5 to Sta12.
	"AA-1": func(m *Machine, _ Event) { m.abort(SourceUser, 0); m.emit(StartARTIM); m.state = Sta13 },
	// Evt15 in Sta4; Evt16 and 18 in Sta2 and Sta13.
	"AA-2": func(m *Machine, _ Event) { m.emit(StopARTIM, CloseTransport); m.state = Sta1 },
	// Evt16 in Sta3 and Sta5 to Sta12. Who aborted is in the PDU, which the
	// caller has; both indications are one effect here.
	"AA-3": func(m *Machine, _ Event) { m.emit(IssueAbort, CloseTransport); m.state = Sta1 },
	// Evt17 in Sta3 to Sta12.
	"AA-4": func(m *Machine, _ Event) { m.emit(IssueProviderAbort); m.state = Sta1 },
	// Evt17 in Sta2.
	"AA-5": func(m *Machine, _ Event) { m.emit(StopARTIM); m.state = Sta1 },
	// Evt3, 4, 10, 12 and 13 in Sta13: ignored.
	"AA-6": func(*Machine, Event) {},
	// Evt6 and 19 in Sta13.
	"AA-7": func(m *Machine, ev Event) { m.abort(SourceProvider, providerReason(ev)) },
	// Every PDU that is unexpected or invalid in Sta3 and Sta5 to Sta12.
	"AA-8": func(m *Machine, ev Event) {
		m.abort(SourceProvider, providerReason(ev))
		m.emit(IssueProviderAbort, StartARTIM)
		m.state = Sta13
	},
}

func providerReason(ev Event) byte {
	if ev.Reason == 0 && ev.Kind != InvalidPDU {
		return reasonUnexpectedPDU
	}
	return ev.Reason
}
