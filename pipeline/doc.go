// Package pipeline takes images in, denoises them and sends them on, so that
// none is lost or doubled whatever stops in between.
//
// The two types a reader needs are [Options], which says what to do and plugs in
// the [Denoiser] and the [Sender], and [Pipeline], which does it:
//
//	p, err := pipeline.Open(ctx, options) // recovers what an earlier process left
//	go p.Run(ctx)                         // denoise, forward, retention until ctx ends
//	err = p.Receive(ctx, incoming, data)  // nil: durable, may be acknowledged
//
// A Pipeline is put together from parts, each with its own state and goroutines: a receiver (receive.go), a clock that
// ends series (seriesclock.go), two lanes that denoise (lane.go; fast.go and high.go say how they differ), forwarders
// (forward.go) and retention. Everything that must survive is in packages spool and journal; the stages here hold only
// row numbers and may be stopped or killed at any point. docs/data-path.md
// follows one image through the stages, docs/spool-format.md describes the files.
package pipeline
