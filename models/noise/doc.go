// Package noise measures the noise of one MR image from the image alone, and draws
// noise like it.
//
// Its types are Map, the standard deviation at every pixel that Estimate finds,
// with the Correlation of neighbouring pixels; Grid, the relation between a
// zero-filled image and the k-space that was measured for it, which Detect finds;
// Series, which measures the correlation on many slices; and Kernel, which makes
// noise of a given correlation. On the native grid only the scanner's filters are
// left of what correlates the noise.
//
// The map is the product of two curves. One is the noise as a function of the
// local mean: Poisson, gamma and Rician noise depend on the signal. The other is
// a smooth gain over the image: coil combination and parallel imaging amplify
// the noise where coils see little. Both are taken from finite differences in
// the flattest part of the image, as far apart as the correlation asks for, with
// robust statistics; of two kinds of differences the one that sees less is
// believed, since structure only adds. docs/noise.md says what that is worth.
package noise
