// Package noise measures the noise of one MR image from the image alone.
//
// Its two types are Map, the standard deviation at every pixel that Estimate
// finds, and Grid, the relation between a zero-filled image and the k-space that
// was measured for it, which Detect finds. On the native grid the noise is white,
// which Estimate relies on.
//
// The map is the product of two curves. One is the noise as a function of the
// local mean: Poisson, gamma and Rician noise depend on the signal. The other is
// a smooth gain over the image: coil combination and parallel imaging amplify
// the noise where coils see little. Both are taken from finite differences in
// the flatter half of the image, with robust statistics; of two orders of
// differences the one that sees less is believed, since structure only adds.
package noise
