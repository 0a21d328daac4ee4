package dicomnet

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/grailbio/go-dicom/dicomuid"

	"github.com/diffdenoise/denoised/dicomnet/pdu"
)

// VerificationSOPClass is the SOP class of C-ECHO (PS3.4 annex A).
const VerificationSOPClass = "1.2.840.10008.1.1"

// Transfer syntaxes that negotiation treats specially (PS3.5 annex A).
const (
	ImplicitVRLittleEndian = "1.2.840.10008.1.2"
	ExplicitVRLittleEndian = "1.2.840.10008.1.2.1"
	ExplicitVRBigEndian    = "1.2.840.10008.1.2.2"

	gePrivateBigEndian     = "1.2.840.113619.5.2" // implicit VR, pixels big endian
	jpipReferenced         = "1.2.840.10008.1.2.4.94"
	jpipReferencedDeflated = "1.2.840.10008.1.2.4.95"
)

// ContextResult says what became of a proposed presentation context.
type ContextResult = pdu.ContextResult

// Results of a negotiation (PS3.8 table 9-18).
const (
	ContextAccepted                     = pdu.Accepted
	ContextRejectedByUser               = pdu.UserRejection
	ContextAbstractSyntaxNotSupported   = pdu.AbstractSyntaxNotSupported
	ContextTransferSyntaxesNotSupported = pdu.TransferSyntaxesNotSupported
)

// AcceptStorage is the default negotiation of a [Server]. It accepts
// Verification and everything that may be a storage SOP class: the standard's,
// retired, private and unknown ones, because a receiver that keeps bytes as
// they come need not know them, and one refused context costs some scanners
// the whole job. SOP classes known to belong to another service are refused.
//
// Of the transfer syntaxes it prefers Explicit, then Implicit VR Little Endian,
// then the first other one that was offered. Explicit VR Big Endian, other big
// endian ones and those that leave the pixel data on a server (JPIP) are taken
// only when nothing else is there.
func AcceptStorage(pc PresentationContext) (ContextResult, string) {
	if !validUID(pc.AbstractSyntax) || isOtherService(pc.AbstractSyntax) {
		return ContextAbstractSyntaxNotSupported, ""
	}
	best, bestRank := "", 1<<30
	for _, ts := range pc.TransferSyntaxes {
		if !validUID(ts) {
			continue
		}
		rank := 2
		switch ts {
		case ExplicitVRLittleEndian:
			rank = 0
		case ImplicitVRLittleEndian:
			rank = 1
		case ExplicitVRBigEndian, gePrivateBigEndian, jpipReferenced, jpipReferencedDeflated:
			rank = 3
		}
		if rank < bestRank {
			best, bestRank = ts, rank
		}
	}
	if best == "" {
		return ContextTransferSyntaxesNotSupported, ""
	}
	return ContextAccepted, best
}

// storageArc holds all storage SOP classes for images and the like, known and future.
const storageArc = "1.2.840.10008.5.1.4.1.1."

// newServices are prefixes of services younger than the UID dictionary (2017).
var newServices = []string{
	"1.2.840.10008.5.1.4.1.1.201.2", // inventory FIND, MOVE, GET, creation, repository query
	"1.2.840.10008.5.1.4.1.1.201.3",
	"1.2.840.10008.5.1.4.1.1.201.4",
	"1.2.840.10008.5.1.4.1.1.201.5",
	"1.2.840.10008.5.1.4.1.1.201.6",
	"1.2.840.10008.5.1.4.34.6.5", // unified procedure step query
	"1.2.840.10008.10.",          // real-time communication
}

// isOtherService reports whether uid is known to be no storage SOP class.
// Verification is not another service.
func isOtherService(uid string) bool {
	if uid == VerificationSOPClass {
		return false
	}
	for _, p := range newServices {
		if strings.HasPrefix(uid, p) {
			return true
		}
	}
	info, err := dicomuid.Lookup(uid)
	if err != nil {
		return false
	}
	if strings.HasPrefix(uid, storageArc) {
		return strings.HasSuffix(info.Name, "- FIND") || strings.HasSuffix(info.Name, "- MOVE") || strings.HasSuffix(info.Name, "- GET")
	}
	return info.Type != dicomuid.TypeSOPClass ||
		!strings.Contains(info.Name, "Storage") || strings.Contains(info.Name, "Storage Commitment")
}

// maxUID is the longest UID (PS3.5 section 9).
const maxUID = 64

// validUID reports whether s has the form of a UID. Components with leading
// zeros are let through: some devices write them.
func validUID(s string) bool {
	if s == "" || len(s) > maxUID || s[0] == '.' || s[len(s)-1] == '.' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '.' && (c < '0' || c > '9') || c == '.' && s[i-1] == '.' {
			return false
		}
	}
	return true
}

// uidName returns the dictionary's name of uid, or uid itself. What has not the form of a
// UID is quoted, so that every byte of it is seen, and cut: a peer can send 64 KiB as one.
func uidName(uid string) string {
	if info, err := dicomuid.Lookup(uid); err == nil && info.Name != "" {
		return info.Name
	}
	if validUID(uid) {
		return uid
	}
	if len(uid) > maxUID {
		return fmt.Sprintf("%+q… (%d bytes)", uid[:maxUID], len(uid))
	}
	return strconv.QuoteToASCII(uid)
}

// uidNames is for logs: the first few names.
func uidNames(uids []string) []string {
	names := make([]string, 0, 8)
	for _, uid := range uids[:min(len(uids), cap(names))] {
		names = append(names, uidName(uid))
	}
	return names
}
