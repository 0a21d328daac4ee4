// Package transcode writes a data set in another transfer syntax on its way to
// a peer that does not take the one that it is in (PS3.5 section 10.1: whoever
// sends an object must be able to send it as Implicit VR Little Endian).
//
//	for _, to := range transcode.Targets(from) {
//		if accepted(to) {
//			r = transcode.NewReader(r, from, to)
//		}
//	}
//
// Values are never changed, only how they are written: explicit and implicit VR,
// byte order, deflate. Compressed pixel data is not decoded. What an element loses
// on the way to implicit VR, its VR, is found again in the dictionary of PS3.6 or
// is UN (PS3.5 6.2.2).
package transcode
