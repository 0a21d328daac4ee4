package dimse

import "fmt"

// Status is the status (0000,0900) of a response: PS3.7 annex C, for C-STORE
// also PS3.4 annex B.2.3.
type Status uint16

// Statuses in use here. For the A7, A9 and C0 families any value with the same
// first byte, or nibble, means the same.
const (
	StatusSuccess               Status = 0x0000
	StatusProcessingFailure     Status = 0x0110
	StatusInvalidSOPInstance    Status = 0x0117
	StatusMissingAttribute      Status = 0x0120
	StatusSOPClassNotSupported  Status = 0x0122
	StatusUnrecognizedOperation Status = 0x0211
	StatusMistypedArgument      Status = 0x0212
	StatusOutOfResources        Status = 0xA700
	StatusDataSetMismatch       Status = 0xA900 // data set does not match SOP class
	StatusCannotUnderstand      Status = 0xC000
	StatusCoercion              Status = 0xB000 // warning: coercion of data elements
	StatusElementsDiscarded     Status = 0xB006 // warning
	StatusDataSetMismatchWarn   Status = 0xB007 // warning
	StatusCancel                Status = 0xFE00
	StatusPending               Status = 0xFF00
)

// IsSuccess reports 0x0000: stored, without reservation.
func (s Status) IsSuccess() bool { return s == StatusSuccess }

// IsWarning reports the Bxxx class and 0001, 0107, 0116: stored, with a remark.
func (s Status) IsWarning() bool {
	return s>>12 == 0xB || s == 0x0001 || s == 0x0107 || s == 0x0116
}

// IsPending reports FF00 and FF01, which C-STORE never has.
func (s Status) IsPending() bool { return s == StatusPending || s == 0xFF01 }

// IsFailure reports everything else: not stored. An unknown code is a failure.
func (s Status) IsFailure() bool { return !s.IsSuccess() && !s.IsWarning() && !s.IsPending() }

// String returns the code and its meaning.
func (s Status) String() string {
	meaning := "failure"
	switch {
	case s == StatusSuccess:
		meaning = "success"
	case s == StatusProcessingFailure:
		meaning = "processing failure"
	case s == StatusInvalidSOPInstance:
		meaning = "invalid SOP instance"
	case s == 0x0106:
		meaning = "invalid attribute value"
	case s == StatusMissingAttribute:
		meaning = "missing attribute"
	case s == 0x0121:
		meaning = "missing attribute value"
	case s == StatusSOPClassNotSupported:
		meaning = "SOP class not supported"
	case s == 0x0124:
		meaning = "not authorized"
	case s == 0x0210:
		meaning = "duplicate invocation"
	case s == StatusUnrecognizedOperation:
		meaning = "unrecognized operation"
	case s == StatusMistypedArgument:
		meaning = "mistyped argument"
	case s == 0x0213:
		meaning = "resource limitation"
	case s>>8 == 0xA7:
		meaning = "out of resources"
	case s>>8 == 0xA9:
		meaning = "data set does not match SOP class"
	case s>>12 == 0xC:
		meaning = "cannot understand"
	case s == StatusCoercion:
		meaning = "warning: coercion of data elements"
	case s == StatusElementsDiscarded:
		meaning = "warning: elements discarded"
	case s == StatusDataSetMismatchWarn:
		meaning = "warning: data set does not match SOP class"
	case s.IsWarning():
		meaning = "warning"
	case s == StatusCancel:
		meaning = "cancel"
	case s.IsPending():
		meaning = "pending"
	}
	return fmt.Sprintf("0x%04X (%s)", uint16(s), meaning)
}
