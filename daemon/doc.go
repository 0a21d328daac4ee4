// Package daemon is the assembled process: it reads the configuration, plugs
// dicomnet, pipeline and models together, starts them in order, keeps them in
// sight and stops them in reverse.
//
// The two types a reader needs are [Config], which [LoadConfig] reads from the
// file that the site edits, and [Daemon]:
//
//	cfg, err := daemon.LoadConfig("/etc/denoised/denoised.yaml")
//	d, err := daemon.New(cfg)
//	err = d.Run(ctx) // until ctx ends, then drains
//
// docs/configuration.md describes every key, docs/operations.md what a person
// does when something is wrong.
package daemon
