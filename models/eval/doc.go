// Package eval measures how good denoisers are, ours and classical ones, on images
// that somebody has (docs/evaluation.md).
//
// A [Collector] is given volumes one by one and keeps the slices that are scored.
// [Run] then denoises them with every [Method] and returns a [Report]: a [Score]
// for every slice, kind of noise and method, their means and their paired
// differences. [Report.Write] makes tables, plots and image panels of it.
//
// There are two protocols, and their numbers must not be compared. Simulated: noise
// of models/simulate is added to slices that are taken for clean. Repetitions: a
// slice that was measured several times is compared with the mean of its other
// repetitions.
package eval
