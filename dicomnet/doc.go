// Package dicomnet is the DICOM upper layer and message exchange (PS3.8, PS3.7)
// as a library: receive and send objects by C-STORE, answer and ask C-ECHO.
//
// To receive, give a [Server] a [Handler]; it makes a [Session] per association,
// whose Store streams the bare data set, byte for byte as sent, in fixed memory.
// To send, a [Dialer] makes an [Association].
//
// The package parses nothing of a data set. It takes any storage SOP class,
// private and unknown ones included, in any transfer syntax, and leaves what to
// do with them to the caller.
package dicomnet

// Identity of this implementation in association negotiation (PS3.7 annex D.3.3.2).
const (
	ImplementationClassUID    = "2.25.164903740383080889927073056748225862983"
	ImplementationVersionName = "DENOISED_1"
)
