// Package derive decides which images may be denoised and writes the derived
// objects.
//
// A reader needs two functions. [Inspect] looks at a scanned object and returns
// a [Verdict]: an empty [Reason], or a stable word why the image stays untouched.
// [Write] splices the derived object: original elements byte for byte, with the
// attributes of docs/derived-objects.md and the pixel data replaced. [Verify]
// compares the two afterwards and is meant to run before anything is forwarded.
package derive
