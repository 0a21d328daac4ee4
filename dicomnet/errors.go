package dicomnet

import (
	"errors"
	"fmt"
)

// Errors to branch on.
var (
	// ErrServerClosed is what Serve returns after Shutdown or Close.
	ErrServerClosed = errors.New("dicomnet: server closed")
	// ErrObjectTooLarge is what a Store reader returns beyond Limits.ObjectBytes.
	// The peer is told 0xA700.
	ErrObjectTooLarge = errors.New("dicomnet: object is larger than the limit")
	// ErrIncomplete marks a data set that ended before its last fragment,
	// because the association died. A Store reader's error wraps it.
	ErrIncomplete = errors.New("dicomnet: data set is incomplete")
	// ErrReaderClosed is what a Store reader returns after Store has returned.
	ErrReaderClosed = errors.New("dicomnet: read after Store returned")
	// ErrNotAccepted says that the peer accepted no presentation context for
	// the object. Nothing was sent and the association is still good.
	ErrNotAccepted = errors.New("dicomnet: no accepted presentation context")
	// ErrAssociationClosed is a call on an association that was released,
	// aborted or broken before.
	ErrAssociationClosed = errors.New("dicomnet: association is closed")
	// ErrTimeout is a peer that was silent or too slow. Errors that wrap it say for how long.
	ErrTimeout = errors.New("dicomnet: timeout")

	errShutdown = errors.New("server is shutting down")
	errReleased = errors.New("released")
)

// RejectResult says whether trying again can help (PS3.8 table 9-21).
type RejectResult byte

// RejectSource says who refuses (PS3.8 table 9-21).
type RejectSource byte

// Values of PS3.8 table 9-21.
const (
	RejectedPermanent RejectResult = 1
	RejectedTransient RejectResult = 2

	RejectedByUser         RejectSource = 1
	RejectedByACSE         RejectSource = 2
	RejectedByPresentation RejectSource = 3
)

// RejectError is a refused association: returned by a Handler to refuse one,
// and by Dial when the peer did.
type RejectError struct {
	Result RejectResult
	Source RejectSource
	Reason byte
}

// The refusals that a Handler or the server has use for.
var (
	RejectNoReason           = &RejectError{RejectedPermanent, RejectedByUser, 1}
	RejectApplicationContext = &RejectError{RejectedPermanent, RejectedByUser, 2}
	RejectCallingAETitle     = &RejectError{RejectedPermanent, RejectedByUser, 3}
	RejectCalledAETitle      = &RejectError{RejectedPermanent, RejectedByUser, 7}
	RejectProtocolVersion    = &RejectError{RejectedPermanent, RejectedByACSE, 2}
	RejectCongestion         = &RejectError{RejectedTransient, RejectedByPresentation, 1}
	RejectLocalLimit         = &RejectError{RejectedTransient, RejectedByPresentation, 2}
)

// Transient reports whether the same request may succeed later.
func (e *RejectError) Transient() bool { return e.Result == RejectedTransient }

// Error gives the reason in the standard's words, with its three numbers.
func (e *RejectError) Error() string {
	reason := "unknown reason"
	switch [2]byte{byte(e.Source), e.Reason} {
	case [2]byte{1, 1}, [2]byte{2, 1}:
		reason = "no reason given"
	case [2]byte{1, 2}:
		reason = "application context name not supported"
	case [2]byte{1, 3}:
		reason = "calling AE title not recognized"
	case [2]byte{1, 7}:
		reason = "called AE title not recognized"
	case [2]byte{2, 2}:
		reason = "protocol version not supported"
	case [2]byte{3, 1}:
		reason = "temporary congestion"
	case [2]byte{3, 2}:
		reason = "local limit exceeded"
	}
	return fmt.Sprintf("association rejected: %s (%d/%d/%d)", reason, e.Result, e.Source, e.Reason)
}

// AbortError is an association that ended with an A-ABORT.
type AbortError struct {
	Source byte // 0 service user, 2 service provider
	Reason byte // of the provider, PS3.8 table 9-26
	ByPeer bool // else this side sent it
	Cause  error
}

// Error says who aborted and why.
func (e *AbortError) Error() string {
	who := "aborted"
	if e.ByPeer {
		who = "aborted by the peer"
	}
	if e.Cause != nil {
		return fmt.Sprintf("association %s (%d/%d): %v", who, e.Source, e.Reason, e.Cause)
	}
	return fmt.Sprintf("association %s (%d/%d)", who, e.Source, e.Reason)
}

// Unwrap returns what made this side abort.
func (e *AbortError) Unwrap() error { return e.Cause }

// protocolError is a violation by the peer; reason is what the A-ABORT says.
type protocolError struct {
	reason byte
	text   string
}

func (e *protocolError) Error() string { return "protocol violation: " + e.text }

func violation(reason byte, format string, args ...any) error {
	return &protocolError{reason, fmt.Sprintf(format, args...)}
}
