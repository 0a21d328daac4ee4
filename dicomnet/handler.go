package dicomnet

import (
	"context"
	"crypto/tls"
	"io"
	"net"

	"github.com/diffdenoise/denoised/dicomnet/dimse"
)

// Handler decides which associations a Server accepts.
type Handler interface {
	// Associate is called once per request, before anything is promised to the
	// peer. A *RejectError refuses with its reason; any other error aborts. ctx
	// ends with the association. Calls for different associations overlap.
	Associate(ctx context.Context, req *AssociateRequest) (Session, error)
}

// HandlerFunc makes a Handler of a function.
type HandlerFunc func(ctx context.Context, req *AssociateRequest) (Session, error)

// Associate calls f.
func (f HandlerFunc) Associate(ctx context.Context, req *AssociateRequest) (Session, error) {
	return f(ctx, req)
}

// Session serves one accepted association. Its methods never overlap.
type Session interface {
	// Store takes one object. It must read r to io.EOF, or return a failure.
	// Its Status goes to the peer after it returns, so success is a promise
	// that the object is already durable. The data set comes as on the wire,
	// in req.TransferSyntaxUID, without file meta information.
	//
	// r is only valid during the call and needs no buffering: it also
	// implements io.WriterTo, so io.Copy(file, r) copies once. Any error but
	// io.EOF means that the object is cut (see [ErrIncomplete]) or too large
	// ([ErrObjectTooLarge]) and must be thrown away. ctx ends with the
	// association, and when the server is closed.
	Store(ctx context.Context, req *StoreRequest, r io.Reader) Status

	// Close is called exactly once, when the association has ended. cause is
	// nil after a release by the peer.
	Close(cause error)
}

// Echoer is an optional ability of a Session: it answers C-ECHO. Without it
// the answer is success.
type Echoer interface {
	Echo(ctx context.Context) Status
}

// AssociateRequest is what a peer asks for. Nothing in it is verified but its
// form; text may hold any byte.
type AssociateRequest struct {
	CallingAETitle, CalledAETitle string // without padding; CallingAETitle is never empty
	RemoteAddr                    net.Addr
	TLS                           *tls.ConnectionState  // nil without TLS
	Contexts                      []PresentationContext // as proposed, 1 to 128
	MaxPDULength                  uint32                // the largest P-DATA-TF the peer takes, bytes; 0 = no limit
	ImplementationClassUID        string
	ImplementationVersionName     string
}

// PresentationContext offers an abstract syntax (a SOP class) in some transfer
// syntaxes.
type PresentationContext struct {
	ID               byte // odd, 1 to 255
	AbstractSyntax   string
	TransferSyntaxes []string
}

// StoreRequest is a C-STORE-RQ (PS3.7 section 9.3.1.1) with the transfer
// syntax of its presentation context.
type StoreRequest struct {
	MessageID uint16
	// SOPClassUID and SOPInstanceUID are checked to have the form of a UID, at
	// most 64 of 0-9 and '.', so they are safe in logs and file names. Whether
	// the data set agrees is not checked.
	SOPClassUID, SOPInstanceUID string
	TransferSyntaxUID           string
	Priority                    uint16
	MoveOriginatorAETitle       string // empty unless a C-MOVE caused the transfer
	MoveOriginatorMessageID     uint16
}

// Status is the status of a DIMSE response.
type Status = dimse.Status

// Statuses of C-STORE and C-ECHO (PS3.4 annex B.2.3, PS3.7 annex C).
const (
	StatusSuccess               = dimse.StatusSuccess
	StatusProcessingFailure     = dimse.StatusProcessingFailure
	StatusInvalidSOPInstance    = dimse.StatusInvalidSOPInstance
	StatusMissingAttribute      = dimse.StatusMissingAttribute
	StatusSOPClassNotSupported  = dimse.StatusSOPClassNotSupported
	StatusUnrecognizedOperation = dimse.StatusUnrecognizedOperation
	StatusMistypedArgument      = dimse.StatusMistypedArgument
	StatusOutOfResources        = dimse.StatusOutOfResources
	StatusDataSetMismatch       = dimse.StatusDataSetMismatch
	StatusCannotUnderstand      = dimse.StatusCannotUnderstand
	StatusCoercion              = dimse.StatusCoercion
	StatusElementsDiscarded     = dimse.StatusElementsDiscarded
)
